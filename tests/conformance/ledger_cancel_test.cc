// Options of jobs, cancel requests and what became of an item: one suite for both ledgers.
#include <future>

#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;

class LedgerCancelTest : public testing::LedgerTest {
 protected:
  CancelRow Cancel(Uuid item, bool is_run) {
    return {.item = item,
            .is_run = is_run,
            .org = kDefaultOrg,
            .actor = "cli root@host",
            .reason = "Zürich \"later\"",
            .requested_at = FromUnixMicros(1'700'000'004'000'001)};
  }
};

TEST_P(LedgerCancelTest, OptionsOfAJobComeBackAsTheyWere) {
  const ShardHold hold = Own();
  JobSpec plain = Job(), rich = Job();
  rich.options.limit_key = "customer-é";
  rich.options.expires_at = FromUnixMicros(1'800'000'000'000'001);
  rich.options.no_retry = {"source_changed"};
  rich.options.durability = Durability::kRedis;
  rich.options.retry_of = plain.id;
  auto batch = BatchOf(hold);
  batch.jobs = {plain, rich};
  Commit(batch);
  const auto live = ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 10}, In());
  ASSERT_TRUE(live) << live.error().message;
  ASSERT_EQ(live->jobs.size(), 2u);
  EXPECT_EQ(live->jobs.at(0).spec, plain);
  EXPECT_EQ(live->jobs.at(1).spec, rich);
  ExpectSound();
}

TEST_P(LedgerCancelTest, ACancelIsSeenByWhoeverRebuilds) {
  const ShardHold hold = Own();
  const RunSpec run = Run();
  const JobSpec of_run = Job(run.id, "a"), single = Job(), other = Job();
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {of_run, single, other};
  Commit(batch);
  auto request = BatchOf(hold);
  request.cancels = {Cancel(run.id.uuid, true), Cancel(single.id.uuid, false)};
  Commit(request);
  Commit(request);  // asked twice: the first request stays
  const auto jobs = ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 10}, In());
  ASSERT_TRUE(jobs) << jobs.error().message;
  ASSERT_EQ(jobs->jobs.size(), 2u);
  EXPECT_TRUE(jobs->jobs.at(0).cancelling);
  EXPECT_FALSE(jobs->jobs.at(1).cancelling);
  const auto runs = ledger_->LiveRuns(hold.shard, kShards, std::nullopt, 10, In());
  ASSERT_TRUE(runs) << runs.error().message;
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_TRUE(runs->front().cancelling);
  EXPECT_EQ(runs->front().cancel_reason, "cancelled by cli root@host: Zürich \"later\"");
  ExpectSound();
}

TEST_P(LedgerCancelTest, StatesSayWhatBecameOfEachItem) {
  const ShardHold hold = Own();
  const RunSpec live_run = Run(), ended_run = Run();
  const JobSpec of_run = Job(live_run.id, "a"), of_ended = Job(ended_run.id, "a"), ended = Job();
  JobSpec live = Job(), fenced = Job();
  fenced.options.has_sink = true;
  auto batch = BatchOf(hold);
  batch.runs = {live_run, ended_run};
  batch.jobs = {of_run, of_ended, live, ended, fenced};
  batch.attempts = {Attempt(live, 4, {3, 2, 1})};
  batch.outcomes = {Outcome(of_ended), Outcome(ended, JobState::kDead)};
  batch.run_outcomes = {{ended_run.id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)}};
  batch.cancels = {Cancel(live.id.uuid, false)};
  Commit(batch);
  live.payload.clear();  // it is large where there are many, and nobody needs it
  EXPECT_EQ(ledger_->States(kDefaultOrg, std::vector{fenced.id.uuid}, In())->at(0).live->spec, fenced) << "it starts once more";
  const std::vector<Uuid> items = {ended.id.uuid, live_run.id.uuid,  NewId<JobId>().uuid,
                                   live.id.uuid,  ended_run.id.uuid, of_run.id.uuid};
  const auto states = ledger_->States(kDefaultOrg, items, In());
  ASSERT_TRUE(states) << states.error().message;
  ASSERT_EQ(states->size(), 6u);
  EXPECT_EQ(states->at(0).job_ended, JobState::kDead);
  EXPECT_TRUE(states->at(1).known && !states->at(1).run_ended && !states->at(1).cancelling);
  EXPECT_FALSE(states->at(2).known);
  ASSERT_TRUE(states->at(3).live.has_value());
  EXPECT_EQ(states->at(3).live->spec, live);
  EXPECT_EQ(states->at(3).live->counters, (Counters{3, 2, 1}));
  EXPECT_TRUE(states->at(3).cancelling);
  EXPECT_EQ(states->at(4).run_ended, RunState::kSucceeded);
  EXPECT_FALSE(states->at(5).known) << "a job of a run is cancelled with its run";
  EXPECT_TRUE(states->at(5).of_run) << "and the answer names it";
  const std::vector<Uuid> twice = {items[3], items[4], items[3], items[5], items[5]};
  const auto repeated = ledger_->States(kDefaultOrg, twice, In());
  ASSERT_TRUE(repeated);
  for (const std::size_t at : {0u, 2u}) {
    ASSERT_TRUE(repeated->at(at).live.has_value()) << "as often as it is asked for";
    EXPECT_EQ(repeated->at(at).live->spec, live);
  }
  EXPECT_EQ(repeated->at(3).of_run, states->at(5).of_run);
  EXPECT_EQ(repeated->at(4).of_run, states->at(5).of_run);
  const auto foreign = ledger_->States(OrgId{77}, items, In());
  ASSERT_TRUE(foreign);
  for (const ItemState& state : *foreign) EXPECT_FALSE(state.known || state.of_run) << "another org's";
}

TEST_P(LedgerCancelTest, ARequestOfSomebodyElseShowsTheOwnerWhatItConcerns) {
  const ShardHold hold = Own();
  const RunSpec run = Run();
  const JobSpec of_run = Job(run.id, "a"), live = Job(), ended = Job();
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {of_run, live, ended};
  batch.outcomes = {Outcome(ended)};
  Commit(batch);
  const std::vector<CancelRow> rows = {Cancel(run.id.uuid, true), Cancel(live.id.uuid, false), Cancel(ended.id.uuid, false)};
  ASSERT_TRUE(ledger_->RequestCancel(rows, In()));
  ASSERT_TRUE(ledger_->RequestCancel(rows, In())) << "twice is once";
  const JobSpec other = Job();
  auto more = BatchOf(hold);
  more.jobs = {other};
  Commit(more);
  const std::vector<CancelRow> alike(2, Cancel(other.id.uuid, false));
  ASSERT_TRUE(ledger_->RequestCancel(alike, In())) << "also within one request";
  ExpectSound();
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox) << outbox.error().message;
  ASSERT_EQ(outbox->runs.size(), 1u);
  EXPECT_TRUE(outbox->runs[0].cancelling);
  ASSERT_EQ(outbox->jobs.size(), 2u) << "what has ended is nobody's business";
  EXPECT_EQ(outbox->jobs[0].spec.id, live.id);
  EXPECT_TRUE(outbox->jobs[0].cancelling);
  ExpectSound();
}

TEST_P(LedgerCancelTest, WhatIsCancelledIsFoundAmongWhatWaitsInTheOutbox) {
  const ShardHold hold = Own();
  const JobSpec jobs[] = {Job(), Job(), Job(), Job()};
  ASSERT_TRUE(ledger_->SubmitJobs(jobs, In()));
  const RunSpec run = Run(), other_run = Run();
  for (const RunSpec& one : {run, other_run}) {
    const JobSpec of_run = Job(one.id, "a");
    ASSERT_TRUE(ledger_->SubmitRun(one, std::span{&of_run, 1}, In()));
  }
  const auto none = ledger_->ReadOutboxCancels(hold.shard, kShards, 10, In());
  ASSERT_TRUE(none) << none.error().message;
  EXPECT_TRUE(none->jobs.empty() && none->runs.empty() && none->batches.empty() && !none->more);
  const CancelRow rows[] = {Cancel(jobs[1].id.uuid, false), Cancel(jobs[3].id.uuid, false), Cancel(run.id.uuid, true)};
  ASSERT_TRUE(ledger_->RequestCancel(rows, In()));
  const auto found = ledger_->ReadOutboxCancels(hold.shard, kShards, 10, In());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_FALSE(found->more);
  ASSERT_EQ(found->jobs.size(), 2u);
  EXPECT_EQ(found->jobs[0].spec, jobs[1]);
  EXPECT_EQ(found->jobs[1].spec.id, jobs[3].id);
  EXPECT_TRUE(found->jobs[0].cancelling && found->jobs[1].cancelling);
  ASSERT_EQ(found->runs.size(), 1u);
  EXPECT_EQ(found->runs[0].spec.id, run.id);
  EXPECT_TRUE(found->runs[0].cancelling);
  EXPECT_EQ(found->runs[0].jobs.size(), 1u);
  const auto page = ledger_->ReadOutboxCancels(hold.shard, kShards, 2, In());
  ASSERT_TRUE(page);
  EXPECT_TRUE(page->more);
  EXPECT_EQ(page->jobs.size() + page->runs.size(), 2u);
  EXPECT_EQ(ledger_->ReadOutbox(hold.shard, kShards, 10, In())->jobs.size(), 4u);
  const ShardId elsewhere{static_cast<std::uint16_t>((hold.shard.value() + 1) % kShards)};
  EXPECT_TRUE(ledger_->ReadOutboxCancels(elsewhere, kShards, 10, In())->jobs.empty());
}

TEST_P(LedgerCancelTest, WhatDoesNotExistOrIsAnotherOrgsIsRequestedByNobody) {
  const ShardHold hold = Own();
  const RunSpec run = Run();
  const JobSpec of_run = Job(run.id, "a"), live = Job();
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {of_run, live};
  Commit(batch);
  CancelRow foreign = Cancel(live.id.uuid, false), foreign_run = Cancel(run.id.uuid, true);
  foreign.org = foreign_run.org = OrgId{77};
  const std::vector<CancelRow> refused = {foreign,
                                          foreign_run,
                                          Cancel(ids_.Next<JobId>().uuid, false),
                                          Cancel(of_run.id.uuid, false),
                                          Cancel(run.id.uuid, false),
                                          Cancel(live.id.uuid, true)};
  for (const CancelRow& row : refused) {
    const std::vector<CancelRow> both = {Cancel(live.id.uuid, false), row};
    const auto done = ledger_->RequestCancel(both, In());
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::kNotFound);
  }
  const std::vector<Uuid> items = {live.id.uuid, run.id.uuid};
  for (const ItemState& state : *ledger_->States(kDefaultOrg, items, In()))
    EXPECT_FALSE(state.cancelling) << "nothing was written";
  ExpectSound();
}

TEST_P(LedgerCancelTest, ARequestSurvivesTheOwnersTakingOver) {
  // The owner has read the outbox row, the request comes, and only then the owner takes the row out.
  const std::vector<JobSpec> jobs = {Job(), Job()};
  ASSERT_TRUE(ledger_->SubmitJobs(jobs, In()));
  const ShardHold hold = Own();
  ASSERT_EQ(ledger_->ReadOutbox(hold.shard, kShards, 10, In())->jobs.size(), 2u);
  const CancelRow request = Cancel(jobs[0].id.uuid, false);
  ASSERT_TRUE(ledger_->RequestCancel(std::span{&request, 1}, In()));
  auto taken = BatchOf(hold);
  taken.outbox_done_jobs = {jobs[0].id, jobs[1].id};
  Commit(taken);
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_EQ(outbox->jobs.size(), 1u) << "the request would be known at the next takeover only";
  EXPECT_TRUE(outbox->jobs[0].cancelling);
  auto seen = BatchOf(hold);
  seen.outbox_done_cancels = {jobs[0].id.uuid};
  Commit(seen);
  EXPECT_TRUE(ledger_->ReadOutbox(hold.shard, kShards, 10, In())->jobs.empty()) << "it holds up no others until the job ends";
  EXPECT_TRUE(ledger_->LiveSingleJobs(hold.shard, kShards, {}, {.jobs = 10}, In())->jobs.front().cancelling)
      << "the next owner knows it too";
}

TEST_P(LedgerCancelTest, WhatEndsLeavesTheOutboxWithItsRequest) {
  const JobSpec job = Job();
  ASSERT_TRUE(ledger_->SubmitJobs(std::span{&job, 1}, In()));
  const ShardHold hold = Own();
  const CancelRow request = Cancel(job.id.uuid, false);
  ASSERT_TRUE(ledger_->RequestCancel(std::span{&request, 1}, In()));
  auto ended = BatchOf(hold);
  ended.outcomes = {Outcome(job, JobState::kCancelled)};
  Commit(ended);
  EXPECT_TRUE(ledger_->ReadOutbox(hold.shard, kShards, 10, In())->jobs.empty());
}

// The end has taken its rows out of both tables and is not committed when the request comes.
TEST_P(LedgerCancelTest, ARequestThatMeetsTheEndLeavesNothing) {
  if (GetParam() != LedgerKind::kPostgres) GTEST_SKIP() << "one writer at a time";
  const ShardHold hold = Own();
  const JobSpec job = Job();
  const RunSpec run = Run();
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {Job(run.id, "a"), job};
  Commit(batch);
  auto ending = database_->Connect();
  ASSERT_TRUE(
      ending->Exec("begin; delete from millrace.live_job; delete from millrace.live_run; delete from millrace.outbox", In()));
  const std::vector<CancelRow> requests{Cancel(job.id.uuid, false), Cancel(run.id.uuid, true)};
  auto requested = std::async(std::launch::async, [&] { return ledger_->RequestCancel(requests, In()); });
  auto watch = database_->Connect();
  const auto waits = [&] {
    const auto rows = watch->QueryOnce(
        "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not l.granted and "
        "a.datname = current_database()",
        {}, In());
    EXPECT_TRUE(rows) << rows.error().message;
    return !rows || rows->Int(0, 0) > 0;
  };
  while (requested.wait_for(1ms) == std::future_status::timeout && !waits()) {
  }
  ASSERT_TRUE(ending->Exec("commit", In()));
  const auto done = requested.get();
  ASSERT_TRUE(done) << done.error().message;
  const auto left = watch->QueryOnce("select count(*) from millrace.outbox", {}, In());
  ASSERT_TRUE(left) << left.error().message;
  EXPECT_EQ(left->Int(0, 0), 0) << "a row of what has ended would be read by every owner from now on";
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerCancelTest, ::testing::Values(LedgerKind::kSqlite, LedgerKind::kPostgres),
                         [](const auto& i) { return i.param == LedgerKind::kPostgres ? "postgres" : "sqlite"; });

}  // namespace
}  // namespace millrace
