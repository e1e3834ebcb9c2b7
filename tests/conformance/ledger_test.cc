// One suite for both ledgers. PostgreSQL needs MILLRACE_TEST_POSTGRES.
#include "common/ledger/ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "common/model/instants.h"
#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;
using testing::LedgerTest;

TEST_P(LedgerTest, MigrateIsRepeatableAndRefusesANewerSchema) {
  EXPECT_TRUE(ledger_->Migrate(In()).has_value());
  Raw("insert into schema_version values (99, " + std::string(GetParam() == LedgerKind::kPostgres ? "now())" : "0)"));
  const auto refused = ledger_->Migrate(In());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message,
              ::testing::MatchesRegex("ledger is of version 99, this program knows up to [0-9]+: use a newer millrace"));
}

TEST_P(LedgerTest, ClockIsNear) { EXPECT_LT(std::chrono::abs(Now() - clock_.WallNow()), 5s); }

TEST_P(LedgerTest, OwnershipIsTakenRenewedLostAndReleased) {
  const auto first = ledger_->TakeShard(ShardId{2}, owner_, "b1", In());
  ASSERT_TRUE(first.has_value()) << first.error().message;
  EXPECT_EQ(*first, Epoch{1});
  EXPECT_EQ(*ledger_->TakeShard(ShardId{2}, owner_, "b1", In()), Epoch{2});
  const auto other = NewId<OwnerId>();
  const auto refused = ledger_->TakeShard(ShardId{2}, other, "b2", In());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kConflict);
  EXPECT_NE(refused.error().message.find("'b1'"), std::string::npos);

  const std::vector<ShardHold> hold = {{ShardId{2}, Epoch{2}}}, old = {{ShardId{2}, Epoch{1}}};
  EXPECT_TRUE(ledger_->RenewShards(hold, owner_, In()).has_value());
  EXPECT_EQ(ledger_->RenewShards(old, owner_, In()).error().code, ErrorCode::kStale);
  Raw(GetParam() == LedgerKind::kPostgres ? "update shard_renewal set renewed_at = renewed_at - interval '6 seconds'"
                                          : "update shard_renewal set renewed_at = renewed_at - 6000000");
  EXPECT_EQ(*ledger_->TakeShard(ShardId{2}, other, "b2", In()), Epoch{3});
  EXPECT_EQ(ledger_->RenewShards(hold, owner_, In()).error().code, ErrorCode::kStale);
  EXPECT_TRUE(ledger_->ReleaseShards(hold, owner_, In()).has_value());  // not his any more: changes nothing
  auto shards = *ledger_->Shards(In());
  ASSERT_EQ(shards.size(), 1u);
  EXPECT_EQ(shards[0].owner, other);
  EXPECT_EQ(shards[0].owner_name, "b2");
  EXPECT_EQ(shards[0].epoch, Epoch{3});
  EXPECT_LT(std::chrono::abs(shards[0].renewed_at - Now()), 5s);
  const std::vector<ShardHold> now = {{ShardId{2}, Epoch{3}}};
  EXPECT_TRUE(ledger_->ReleaseShards(now, other, In()).has_value());
  EXPECT_FALSE((*ledger_->Shards(In()))[0].owner.has_value());
  EXPECT_EQ(*ledger_->TakeShard(ShardId{2}, owner_, "b1", In()), Epoch{4});
}

TEST_P(LedgerTest, WhichBrokersLive) {
  const OwnerId other = ids_.Next<OwnerId>();
  const BrokerAddress a{.name = "a", .clients = "tcp://127.0.0.1:7410"}, b{.name = "b"};
  const auto sorted = [](std::vector<OwnerId> ids) {
    std::ranges::sort(ids);
    return ids;
  };
  EXPECT_EQ(ledger_->AnnounceBroker(owner_, a, false, In()).value(), std::vector{owner_});
  EXPECT_EQ(ledger_->AnnounceBroker(other, b, false, In()).value(), sorted({owner_, other}));
  EXPECT_EQ(ledger_->AnnounceBroker(owner_, a, false, In()).value(), sorted({owner_, other})) << "said again";
  const auto living = [&] { return ledger_->LivingBrokers(In()).value(); };
  EXPECT_EQ(living(), (std::map<OwnerId, BrokerAddress>{{owner_, a}, {other, b}})) << "neither holds a shard";
  Raw("update broker_presence set renewed_at = " +
      std::string(GetParam() == LedgerKind::kPostgres ? "renewed_at - interval '6 s'" : "renewed_at - 6000000") +
      " where name = 'b'");
  EXPECT_EQ(ledger_->AnnounceBroker(owner_, a, false, In()).value(), std::vector{owner_}) << "silent for too long";
  EXPECT_EQ(living(), (std::map<OwnerId, BrokerAddress>{{owner_, a}}));
  EXPECT_EQ(ledger_->AnnounceBroker(other, b, false, In()).value(), sorted({owner_, other})) << "and back";
  EXPECT_EQ(ledger_->AnnounceBroker(owner_, a, true, In()).value(), std::vector{other});
  EXPECT_EQ(living(), (std::map<OwnerId, BrokerAddress>{{other, b}}));
}

TEST_P(LedgerTest, AStaleOwnerCommitsNothing) {
  const ShardHold hold = Own();
  const ShardId second{static_cast<std::uint16_t>((hold.shard.value() + 1) % kShards)};
  const Epoch epoch = *ledger_->TakeShard(second, owner_, "b1", In());
  const JobSpec job = Job();
  auto batch = BatchOf(hold);
  batch.jobs.push_back(job);
  batch.holds.push_back({second, Epoch{epoch.value() + 1}});
  auto refused = ledger_->Commit(batch, In());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kStale);
  EXPECT_NE(refused.error().message.find("shard " + std::to_string(second.value())), std::string::npos)
      << refused.error().message;
  batch.holds.back().epoch = epoch;
  batch.owner = NewId<OwnerId>();
  EXPECT_EQ(ledger_->Commit(batch, In()).error().code, ErrorCode::kStale);
  batch.holds = {{ShardId{static_cast<std::uint16_t>((hold.shard.value() + 2) % kShards)}, Epoch{1}}};  // never owned
  batch.owner = owner_;
  EXPECT_EQ(ledger_->Commit(batch, In()).error().code, ErrorCode::kStale);
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, job.id, In()).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(ledger_->AuditHeads(In())->empty());
  batch.holds = {hold, {second, epoch}};
  Commit(batch);
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, job.id, In()).has_value());
}

TEST_P(LedgerTest, AnEmptyBatchIsNothing) {
  OwnerBatch batch;
  batch.owner = owner_;
  EXPECT_TRUE(ledger_->Commit(batch, In()).has_value());
}

TEST_P(LedgerTest, RowsComeBackAsTheyWentIn) {
  const ShardHold hold = Own();
  RunSpec run = Run();
  run.slot = FromUnixMicros(-1'000'001);
  run.schedule = "default";
  run.generation = 4'000'000'000u;
  JobSpec a = Job(run.id, "a"), b = Job(run.id, "b");
  b.depends_on = {a.id, NewId<JobId>()};
  b.effect = "1/flights/b/x/2001-01-01T06:15:00Z/-#0";
  b.root = "/data/it's \"here\"";
  b.retry = {5, Millis{10}, Millis{20}};
  b.timeout = Millis{7};
  b.run_at = FromUnixMicros(1'800'000'000'000'001);
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {a, b};
  batch.attempts = {Attempt(a, 1, {1, 1, 0}), Attempt(a, 2, {2, 1, 0})};
  batch.outcomes = {Outcome(a)};
  Commit(batch);
  const auto detail = ledger_->GetRun(kDefaultOrg, run.id, In());
  ASSERT_TRUE(detail.has_value()) << detail.error().message;
  EXPECT_EQ(detail->summary.spec, run);
  EXPECT_EQ(detail->summary.state, RunState::kRunning);
  EXPECT_EQ(detail->summary.jobs, 2u);
  EXPECT_EQ(detail->summary.jobs_ended, 1u);
  EXPECT_EQ(detail->summary.jobs_succeeded, 1u);
  ASSERT_EQ(detail->jobs.size(), 2u);
  EXPECT_EQ(detail->jobs[0].spec, a);
  EXPECT_EQ(detail->jobs[0].attempts, batch.attempts);
  EXPECT_EQ(detail->jobs[0].outcome, batch.outcomes[0]);
  EXPECT_EQ(detail->jobs[1].spec, b);
  EXPECT_FALSE(detail->jobs[1].outcome.has_value());
  EXPECT_EQ(ledger_->GetRun(OrgId{2}, run.id, In()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(ledger_->GetJob(OrgId{2}, a.id, In()).error().code, ErrorCode::kNotFound);
  ExpectSound();
  auto end = BatchOf(hold);
  end.outcomes = {Outcome(b, JobState::kDead)};
  Commit(end);
  const auto ended = ledger_->GetRun(kDefaultOrg, run.id, In());
  ASSERT_TRUE(ended.has_value()) << ended.error().message;
  EXPECT_EQ(ended->summary.jobs_ended, 2u);
  EXPECT_EQ(ended->summary.jobs_succeeded, 1u);
}

TEST_P(LedgerTest, EveryInstantThatAJobMayNameIsStored) {
  const ShardHold hold = Own();
  const ShardId shard = hold.shard;
  auto batch = BatchOf(hold);
  for (const WallTime at : {kInstantMin, WallTime{}, kInstantMax}) {
    JobSpec job = Job();
    job.submitted_at = at;
    job.run_at = job.options.deadline = job.options.expires_at = at;
    AttemptRow attempt = Attempt(job, 1, {1, 1, 0});
    attempt.report.started_at = attempt.report.finished_at = attempt.next_run_at = at;
    batch.jobs.push_back(job);
    batch.attempts.push_back(attempt);
  }
  Commit(batch);
  const auto live = ledger_->LiveSingleJobs(shard, kShards, std::nullopt, {.jobs = 10}, In());
  ASSERT_TRUE(live) << live.error().message;
  ASSERT_EQ(live->jobs.size(), batch.jobs.size());
  for (std::size_t i = 0; i < live->jobs.size(); ++i) {
    EXPECT_EQ(live->jobs[i].spec, batch.jobs[i]);
    EXPECT_EQ(live->jobs[i].next_run_at, batch.attempts[i].next_run_at);
  }
  ExpectSound();
}

TEST_P(LedgerTest, BadTextIsMadeStorable) {
  auto batch = BatchOf(Own());
  JobSpec job = Job();
  batch.jobs = {job};
  batch.outcomes = {Outcome(job, JobState::kDead)};
  batch.outcomes[0].report.error = std::string("a\0b\xff", 4) + "c\xc3\xa9";
  Commit(batch);
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, job.id, In())->outcome->report.error, "a\uFFFDb\uFFFDc\u00e9");
  ExpectSound();
}

TEST_P(LedgerTest, DuplicatesAreReportedAndNothingChanges) {
  const ShardHold hold = Own();
  const RunSpec run = Run();
  const JobSpec in_run = Job(run.id, "a"), single = Job();
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {in_run, single};
  batch.attempts = {Attempt(single, 1, {1, 0, 0})};
  batch.outcomes = {Outcome(single)};
  batch.run_outcomes = {{run.id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)}};
  const auto first = Commit(batch);
  EXPECT_TRUE(first.duplicate_runs.empty() && first.duplicate_jobs.empty() && first.duplicate_outcomes.empty());

  auto again = batch;
  const JobSpec fresh = Job();
  again.jobs.insert(again.jobs.begin() + 1, fresh);
  again.jobs.push_back(fresh);  // twice in one batch
  again.outcomes = {Outcome(single, JobState::kDead), Outcome(fresh)};
  again.run_outcomes[0].state = RunState::kFailed;
  const auto second = Commit(again);
  EXPECT_EQ(second.duplicate_runs, std::vector{run.id});
  EXPECT_EQ(second.duplicate_jobs, (std::vector{in_run.id, single.id, fresh.id}));
  EXPECT_EQ(second.duplicate_outcomes, std::vector{single.id});
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, single.id, In())->outcome->state, JobState::kSucceeded);
  EXPECT_EQ(ledger_->GetRun(kDefaultOrg, run.id, In())->summary.state, RunState::kSucceeded);
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, fresh.id, In())->outcome.has_value());
  Commit(batch);  // nothing new at all
  ExpectSound();
}

TEST_P(LedgerTest, RebuildSeesWhatIsLive) {
  const ShardHold hold = Own();
  const RunSpec run = Run(), done = Run();
  const JobSpec a = Job(run.id, "a"), b = Job(run.id, "b"), one = Job(), two = Job(), ended = Job();
  auto batch = BatchOf(hold);
  batch.runs = {run, done};
  batch.jobs = {a, b, one, two, ended};
  batch.attempts = {Attempt(b, 1, {1, 0, 0}), Attempt(b, 2, {3, 2, 1}), Attempt(two, 1, {1, 1, 0})};
  batch.outcomes = {Outcome(a), Outcome(ended)};
  batch.run_outcomes = {{done.id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)}};
  Commit(batch);
  const auto runs = ledger_->LiveRuns(hold.shard, kShards, std::nullopt, 10, In());
  ASSERT_TRUE(runs.has_value()) << runs.error().message;
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_EQ((*runs)[0].spec, run);
  EXPECT_EQ((*runs)[0].jobs, (std::vector{a, b}));
  EXPECT_EQ((*runs)[0].ended, (std::map<JobId, JobState>{{a.id, JobState::kSucceeded}}));
  EXPECT_EQ((*runs)[0].counters, (std::map<JobId, Counters>{{b.id, {3, 2, 1}}}));
  EXPECT_EQ((*runs)[0].next_run_at.at(b.id), batch.attempts[1].next_run_at);
  EXPECT_EQ((*runs)[0].last_tokens, (std::map<JobId, Token>{{b.id, batch.attempts[1].report.token}}));
  const auto jobs = ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 1}, In());
  ASSERT_EQ(jobs->jobs.size(), 1u);
  EXPECT_EQ(jobs->jobs[0].spec, one);
  EXPECT_FALSE(jobs->jobs[0].next_run_at.has_value());
  const auto more = ledger_->LiveSingleJobs(hold.shard, kShards, one.id, {.jobs = 10}, In());
  ASSERT_EQ(more->jobs.size(), 1u);
  EXPECT_EQ(more->jobs[0].spec, two);
  EXPECT_EQ(more->jobs[0].counters, (Counters{1, 1, 0}));
  EXPECT_EQ(more->jobs[0].next_run_at, batch.attempts[2].next_run_at);
  EXPECT_EQ(more->jobs[0].last_token, batch.attempts[2].report.token);
  EXPECT_TRUE(ledger_->LiveRuns(hold.shard, kShards, run.id, 10, In())->empty());
  EXPECT_TRUE(
      ledger_
          ->LiveRuns(ShardId{static_cast<std::uint16_t>((hold.shard.value() + 1) % kShards)}, kShards, std::nullopt, 10, In())
          ->empty());
  EXPECT_EQ(ledger_->LiveRuns(hold.shard, 16, std::nullopt, 10, In()).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(*ledger_->BusyPipelines(kDefaultOrg, std::vector<std::string>{"flights"}, In()),
            std::vector<std::string>{"flights"});
}

TEST_P(LedgerTest, OutboxIsTakenOver) {
  const RunSpec run = Run();
  const std::vector<JobSpec> of_run = {Job(run.id, "a"), Job(run.id, "b")}, singles = {Job(), Job()};
  ASSERT_TRUE(ledger_->SubmitRun(run, of_run, In()).has_value());
  ASSERT_TRUE(ledger_->SubmitRun(run, of_run, In()).has_value());  // not an error
  ASSERT_TRUE(ledger_->SubmitJobs(singles, In()).has_value());
  ASSERT_TRUE(ledger_->SubmitJobs(singles, In()).has_value());
  const ShardHold hold = Own();
  auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox.has_value()) << outbox.error().message;
  ASSERT_EQ(outbox->runs.size(), 1u);
  EXPECT_EQ(outbox->runs[0].spec, run);
  EXPECT_EQ(outbox->runs[0].jobs, of_run);
  ASSERT_EQ(outbox->jobs.size(), 2u);
  EXPECT_EQ(outbox->jobs[1].spec, singles[1]);
  auto batch = BatchOf(hold);
  batch.outbox_done_runs = {run.id};
  batch.outbox_done_jobs = {singles[0].id};
  Commit(batch);
  outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  EXPECT_TRUE(outbox->runs.empty());
  ASSERT_EQ(outbox->jobs.size(), 1u);
  EXPECT_EQ(outbox->jobs[0].spec.id, singles[1].id);
  EXPECT_EQ(ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 10}, In())->jobs.size(), 2u);
  ExpectSound();
}

TEST_P(LedgerTest, AnItemThatEndedIsNoLongerInTheOutbox) {
  // It was found by a rebuild and ended before its outbox row was read: nobody may start it again.
  const RunSpec run = Run();
  const std::vector<JobSpec> of_run = {Job(run.id, "a")}, singles = {Job(), Job()};
  ASSERT_TRUE(ledger_->SubmitRun(run, of_run, In()).has_value());
  ASSERT_TRUE(ledger_->SubmitJobs(singles, In()).has_value());
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  batch.outcomes = {Outcome(of_run[0]), Outcome(singles[0])};
  batch.run_outcomes = {{run.id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)}};
  Commit(batch);
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox.has_value()) << outbox.error().message;
  EXPECT_TRUE(outbox->runs.empty());
  ASSERT_EQ(outbox->jobs.size(), 1u);
  EXPECT_EQ(outbox->jobs[0].spec.id, singles[1].id);
}

TEST_P(LedgerTest, ARunThatExistsTakesNoMoreJobs) {
  const ShardHold hold = Own();
  const RunSpec run = Run();
  const JobSpec first = Job(run.id, "a"), late = Job(run.id, "b");
  auto batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {first};
  Commit(batch);
  batch.jobs = {first, late};  // submitted again, planned anew
  const auto again = Commit(batch);
  EXPECT_EQ(again.duplicate_runs, std::vector{run.id});
  EXPECT_EQ(again.duplicate_jobs, (std::vector{first.id, late.id}));
  EXPECT_EQ(ledger_->GetRun(kDefaultOrg, run.id, In())->jobs.size(), 1u) << "nobody would ever run the other one";
  ExpectSound();
}

TEST_P(LedgerTest, OnePageHoldsABoundedNumberOfJobs) {
  constexpr std::size_t kJobs = 9000;
  std::vector<RunSpec> runs;
  for (int i = 0; i < 3; ++i) {
    runs.push_back(Run());
    std::vector<JobSpec> jobs;
    for (std::size_t n = 0; n < kJobs; ++n) {
      jobs.push_back(Job(runs.back().id, "s"));
      jobs.back().payload.clear();
    }
    ASSERT_TRUE(ledger_->SubmitRun(runs.back(), jobs, In()).has_value());
  }
  const ShardHold hold = Own();
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 100, In());
  ASSERT_TRUE(outbox.has_value()) << outbox.error().message;
  EXPECT_EQ(outbox->runs.size(), 2u);
  EXPECT_TRUE(outbox->more);
  std::vector<RunId> seen;
  for (std::optional<RunId> after;;) {
    const auto page = ledger_->LiveRuns(hold.shard, kShards, after, 100, In());
    ASSERT_TRUE(page.has_value()) << page.error().message;
    if (page->empty()) break;
    std::size_t jobs = 0;
    for (const LiveRun& run : *page) {
      seen.push_back(run.spec.id);
      jobs += run.jobs.size();
    }
    EXPECT_LE(jobs, 20'000u);
    after = seen.back();
  }
  EXPECT_EQ(seen, (std::vector{runs[0].id, runs[1].id, runs[2].id}));
}

TEST_P(LedgerTest, ApplyIsIdempotentAndVersions) {
  Pipeline p = Scheduled();
  const auto v1 = ledger_->ApplyPipeline(p, "{}", "source 1", "/data", kDefaultOrg, In());
  ASSERT_TRUE(v1.has_value()) << v1.error().message;
  EXPECT_EQ(v1->version, 1);
  EXPECT_EQ(ledger_->ApplyPipeline(p, "{}", "# a comment", "/data", kDefaultOrg, In())->version, 1);
  const auto before = (*ledger_->Schedules(kDefaultOrg, In()))[0];
  EXPECT_EQ(before.spec, p.schedules[0]);
  EXPECT_LT(std::chrono::abs(before.watermark - Now()), 5s);
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":1})", "source 2", "/data", kDefaultOrg, In())->version, 2);
  const auto after = (*ledger_->Schedules(std::nullopt, In()))[0];
  EXPECT_EQ(after.watermark, before.watermark);
  EXPECT_EQ(after.version, 2);
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":1})", "source 2", "/elsewhere", kDefaultOrg, In())->version, 3);
  p.schedules[0].cron = "0 7 * * *";  // an edit decides only slots after now
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":1})", "source 2", "/elsewhere", kDefaultOrg, In())->version, 3)
      << "the definition is what makes a version";
  EXPECT_GT((*ledger_->Schedules(std::nullopt, In()))[0].watermark, before.watermark);
  p.schedules.clear();
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":2})", "source 3", "/elsewhere", kDefaultOrg, In())->version, 4);
  EXPECT_TRUE(ledger_->Schedules(kDefaultOrg, In())->empty());

  EXPECT_EQ(ledger_->GetPipeline(kDefaultOrg, "flights", 2, In())->source, "source 2");
  EXPECT_EQ(ledger_->GetPipeline(kDefaultOrg, "flights", std::nullopt, In())->version, 4);
  EXPECT_EQ(ledger_->GetPipeline(kDefaultOrg, "flights", 9, In()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(ledger_->GetPipeline(OrgId{2}, "flights", std::nullopt, In()).error().code, ErrorCode::kNotFound);
  const auto list = *ledger_->ListPipelines(kDefaultOrg, In());
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].version, 4);
  EXPECT_EQ(list[0].source, "");
  ExpectSound();
}

TEST_P(LedgerTest, StoringAVersionLeavesTheSchedulesInForce) {
  Pipeline p = Scheduled();
  ASSERT_EQ(ledger_->ApplyPipeline(p, "{}", "s", "/", kDefaultOrg, In())->version, 1);
  const auto before = *ledger_->Schedules(kDefaultOrg, In());
  p.schedules.clear();
  EXPECT_EQ(ledger_->StorePipeline(p, "{}", "s", "/", kDefaultOrg, In())->version, 1) << "the same definition";
  EXPECT_EQ(ledger_->StorePipeline(p, R"({"a":1})", "s", "/", kDefaultOrg, In())->version, 2);
  const auto after = *ledger_->Schedules(kDefaultOrg, In());
  ASSERT_EQ(after.size(), 1u);
  EXPECT_EQ(after[0].version, 1);
  EXPECT_EQ(after[0].spec, before[0].spec);
  EXPECT_EQ(after[0].watermark, before[0].watermark);
  // Applying what was only stored makes the schedule run it.
  const auto stored = *ledger_->GetPipeline(kDefaultOrg, "flights", 2, In());
  const auto applied = *ledger_->ApplyPipeline(Scheduled(), R"({"a":1})", "s", "/", kDefaultOrg, In());
  EXPECT_EQ(applied.version, 2) << "the file has not changed";
  EXPECT_EQ(applied.applied_at, stored.applied_at);
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].version, 2);
  EXPECT_EQ(ledger_->GetPipeline(kDefaultOrg, "flights", std::nullopt, In())->version, 2);
  ExpectSound();
}

TEST_P(LedgerTest, AFileThatRanByHandBeforeIsOneVersionWhenItsScheduleComesIntoForce) {
  ASSERT_EQ(ledger_->StorePipeline(Scheduled(), "{}", "s", "/", kDefaultOrg, In())->version, 1);
  EXPECT_TRUE(ledger_->Schedules(kDefaultOrg, In())->empty());
  EXPECT_EQ(ledger_->ApplyPipeline(Scheduled(), "{}", "s", "/", kDefaultOrg, In())->version, 1);
  const auto schedules = *ledger_->Schedules(kDefaultOrg, In());
  ASSERT_EQ(schedules.size(), 1u);
  EXPECT_EQ(schedules[0].version, 1);
  EXPECT_LT(std::chrono::abs(schedules[0].watermark - Now()), 5s);
  EXPECT_EQ(ledger_->StorePipeline(Scheduled(), "{}", "s", "/", kDefaultOrg, In())->version, 1);
  ExpectSound();
}

TEST_P(LedgerTest, APauseIsDurableSurvivesNewVersionsAndIsOfOneOrgAndPipeline) {
  Pipeline p = Scheduled();
  ASSERT_TRUE(ledger_->ApplyPipeline(p, "{}", "s", "/", kDefaultOrg, In()));
  ASSERT_TRUE(ledger_->ApplyPipeline(p, "{}", "s", "/", OrgId{2}, In()));
  Pipeline other = Scheduled();
  other.name = "other";
  ASSERT_TRUE(ledger_->ApplyPipeline(other, "{}", "s", "/", kDefaultOrg, In()));
  const auto before = (*ledger_->Schedules(kDefaultOrg, In()))[0];
  ASSERT_EQ(before.pipeline, "flights");
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, "flights", true, In())) << "repeatable";
  const auto paused = [&] {
    std::string out;
    const auto rows = *Open()->Schedules(std::nullopt, In());  // what another process sees
    for (const ScheduleRow& row : rows) out += fmt::format("{}/{}:{} ", row.org.value(), row.pipeline, row.paused);
    return out;
  };
  EXPECT_EQ(paused(), "1/flights:true 1/other:false 2/flights:false ");
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, before.watermark);
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":1})", "s", "/", kDefaultOrg, In())->version, 2);
  p.schedules[0].cron = "0 7 * * *";
  EXPECT_EQ(ledger_->ApplyPipeline(p, R"({"a":1})", "s", "/", kDefaultOrg, In())->version, 2);
  EXPECT_EQ(paused(), "1/flights:true 1/other:false 2/flights:false ");
  ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, "flights", false, In()));
  EXPECT_EQ(paused(), "1/flights:false 1/other:false 2/flights:false ");

  p.schedules.clear();
  ASSERT_TRUE(ledger_->ApplyPipeline(p, R"({"a":2})", "s", "/", kDefaultOrg, In()));
  const auto none = ledger_->SetPaused(kDefaultOrg, "flights", true, In());
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(none.error().message, "pipeline 'flights' has no schedule");
  const auto unknown = ledger_->SetPaused(kDefaultOrg, "nosuch", true, In());
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(unknown.error().message, "no pipeline 'nosuch' has been applied");
  ExpectSound();
}

TEST_P(LedgerTest, ASlotFiresOnceAndTheWatermarkNeverGoesBack) {
  ASSERT_TRUE(ledger_->ApplyPipeline(Scheduled(), "{}", "s", "/", kDefaultOrg, In()).has_value());
  FireBatch batch;
  batch.decisions = {Slot(0), Slot(1, false)};
  const WallTime ahead = Now() + 1h;
  batch.watermarks = {{kDefaultOrg, "flights", "default", ahead}};
  const auto first = ledger_->Fire(batch, In());
  ASSERT_TRUE(first.has_value()) << first.error().message;
  EXPECT_TRUE(first->already_decided.empty());
  FireBatch second;
  second.decisions = {Slot(0), Slot(2)};
  second.watermarks = {{kDefaultOrg, "flights", "default", ahead - 30min}};
  const auto fired = ledger_->Fire(second, In());
  ASSERT_TRUE(fired.has_value()) << fired.error().message;
  ASSERT_EQ(fired->already_decided.size(), 1u);
  EXPECT_EQ(fired->already_decided[0].slot, second.decisions[0].slot.key.slot);
  EXPECT_EQ(ledger_->GetRun(kDefaultOrg, second.decisions[0].run->id, In()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, second.decisions[0].jobs[0].id, In()).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(ledger_->GetRun(kDefaultOrg, second.decisions[1].run->id, In()).has_value());
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, ahead);
  const auto slots = *ledger_->Slots(kDefaultOrg, "flights", 10, In());
  ASSERT_EQ(slots.size(), 3u);
  EXPECT_EQ(slots[0].key.slot, second.decisions[1].slot.key.slot);
  EXPECT_EQ(slots[1].state, "missed");
  EXPECT_EQ(slots[1].reason, "misfire");
  EXPECT_FALSE(slots[1].run.has_value());
  EXPECT_EQ(slots[2].run, batch.decisions[0].run->id);
  EXPECT_EQ(ledger_->ReadOutbox(ShardOf(kDefaultOrg, kShards), kShards, 10, In())->runs.size(), 2u);
  ExpectSound();
}

TEST_P(LedgerTest, TwoSchedulersFireEachSlotOnce) {
  constexpr int kSlots = 40;
  std::array<std::unique_ptr<Ledger>, 2> ledgers = {Open(), Open()};
  std::array<std::vector<FireBatch>, 2> batches;
  for (auto& list : batches)
    for (int i = 0; i < kSlots; i += 2) {
      list.emplace_back();
      list.back().decisions = {Slot(i), Slot(i + 1)};
    }
  std::array<std::size_t, 2> lost{};
  std::array<std::string, 2> errors;
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        for (const auto& batch : batches[t]) {
          const auto fired = ledgers[t]->Fire(batch, In());
          if (!fired)
            errors[t] = fired.error().message;
          else
            lost[t] += fired->already_decided.size();
        }
      });
  }
  EXPECT_EQ(errors[0] + errors[1], "");
  EXPECT_EQ(lost[0] + lost[1], static_cast<std::size_t>(kSlots));
  EXPECT_EQ(ledger_->Slots(kDefaultOrg, "flights", 500, In())->size(), static_cast<std::size_t>(kSlots));
  RunFilter running{.pipeline = "flights", .state = RunState::kRunning, .before = {}, .limit = 500};
  EXPECT_EQ(ledger_->ListRuns(running, In())->size(), static_cast<std::size_t>(kSlots));
  ExpectSound();
}

TEST_P(LedgerTest, OneLeads) {
  const auto a = NewId<OwnerId>(), b = NewId<OwnerId>();
  auto lead = ledger_->TryLead(a, "s1", 30s, In());
  ASSERT_TRUE(lead.has_value()) << lead.error().message;
  EXPECT_TRUE(lead->leader);
  EXPECT_EQ(lead->epoch, 1u);
  EXPECT_EQ(ledger_->TryLead(a, "s1", 30s, In())->epoch, 1u);
  lead = ledger_->TryLead(b, "s2", 30s, In());
  EXPECT_FALSE(lead->leader);
  EXPECT_EQ(lead->holder, "s1");
  ASSERT_TRUE(ledger_->TryLead(a, "s1", Millis{-1}, In())->leader);  // expires at once
  lead = ledger_->TryLead(b, "s2", 30s, In());
  EXPECT_TRUE(lead->leader);
  EXPECT_EQ(lead->epoch, 2u);
  EXPECT_FALSE(ledger_->TryLead(a, "s1", 30s, In())->leader);
}

TEST_P(LedgerTest, ListsRunsByPage) {
  auto batch = BatchOf(Own());
  for (int i = 0; i < 7; ++i) batch.runs.push_back(Run(i % 2 == 0 ? "even" : "odd"));
  batch.run_outcomes = {{batch.runs[2].id, kDefaultOrg, RunState::kFailed, "stage 'x' is dead", FromUnixMicros(9)}};
  Commit(batch);
  RunFilter filter;
  filter.limit = 3;
  std::vector<RunId> seen;
  for (;;) {
    const auto page = ledger_->ListRuns(filter, In());
    ASSERT_TRUE(page.has_value()) << page.error().message;
    if (page->empty()) break;
    EXPECT_LE(page->size(), 3u);
    for (const auto& s : *page) seen.push_back(s.spec.id);
    filter.before = seen.back();
  }
  ASSERT_EQ(seen.size(), 7u);
  for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(seen[i], batch.runs[6 - i].id);
  EXPECT_EQ(ledger_->ListRuns(Filter("odd", std::nullopt), In())->size(), 3u);
  EXPECT_EQ(ledger_->ListRuns(Filter("even", RunState::kRunning), In())->size(), 3u);
  const auto failed = *ledger_->ListRuns(Filter(std::nullopt, RunState::kFailed), In());
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].reason, "stage 'x' is dead");
  EXPECT_EQ(failed[0].finished_at, FromUnixMicros(9));
  filter = {};
  filter.org = OrgId{2};
  EXPECT_TRUE(ledger_->ListRuns(filter, In())->empty());
}

TEST_P(LedgerTest, OpenRunsAreThoseThatFailedOrWereCancelledAndThatNobodyHasRetried) {
  auto batch = BatchOf(Own());
  for (int i = 0; i < 5; ++i) batch.runs.push_back(Run());
  const auto end = [&](std::size_t i, RunState state) {
    batch.run_outcomes.push_back({batch.runs[i].id, kDefaultOrg, state, "", FromUnixMicros(9)});
  };
  end(0, RunState::kFailed);
  end(1, RunState::kCancelled);
  end(2, RunState::kSucceeded);
  end(3, RunState::kFailed);
  Commit(batch);
  const auto open = [&](std::optional<RunState> state) {
    RunFilter filter = Filter("flights", state);
    filter.open = true;
    std::vector<RunId> ids;
    const auto runs = ledger_->ListRuns(filter, In());
    EXPECT_TRUE(runs.has_value()) << runs.error().message;
    for (const RunSummary& run : *runs) ids.push_back(run.spec.id);
    return ids;
  };
  const auto id = [&](std::size_t i) { return batch.runs[i].id; };
  EXPECT_EQ(open(std::nullopt), (std::vector{id(3), id(1), id(0)}));
  Requeue retry;
  retry.run = Run();
  retry.retry = RunRetry{.of = id(3), .actor = "test", .reason = "", .at = FromUnixMicros(10)};
  ASSERT_TRUE(ledger_->RequeueDead(retry, In()));
  EXPECT_EQ(open(std::nullopt), (std::vector{id(1), id(0)}));
  EXPECT_EQ(open(RunState::kFailed), std::vector{id(0)});
  EXPECT_TRUE(open(RunState::kSucceeded).empty());
}

TEST_P(LedgerTest, TamperingIsVisible) {
  auto batch = BatchOf(Own());
  const JobSpec job = Job();
  batch.jobs = {job};
  batch.outcomes = {Outcome(job, JobState::kDead)};
  Commit(batch);
  const auto record = (*ledger_->AuditRecords(last_writer_, 0, 10, In()))[0];
  Raw("update outcome set state = 10");
  const auto rows = *ledger_->AuditedRows(last_writer_, 1, In());
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].leaf, record.leaves[0]);
  EXPECT_NE(rows[1].leaf, record.leaves[1]);
  EXPECT_EQ(rows[1].key, "outcome " + job.id.ToString());
  Raw("insert into run_outcome select run, org, 10, '', created_at, audit_writer, 77, 0 from (select job as run, org, "
      "submitted_at as "
      "created_at, audit_writer from job) x");
  const auto orphans = *ledger_->OrphanRows(10, In());
  ASSERT_EQ(orphans.size(), 1u);
  EXPECT_EQ(orphans[0].table, "run_outcome");
  EXPECT_EQ(orphans[0].seq, 77u);
  const auto totals = *ledger_->Totals(In());
  ASSERT_EQ(totals.heads.size(), 1u);
  EXPECT_EQ(totals.heads[0].writer, last_writer_);
  EXPECT_EQ(totals.heads[0].hash, record.Hash());
  EXPECT_EQ(record.stored_hash, record.Hash());
  EXPECT_EQ(totals.records, 1u);
  EXPECT_EQ(totals.rows.at("job"), 1u);
  EXPECT_EQ(totals.rows.at("run_outcome"), 1u);
  EXPECT_EQ(totals.rows.at("run"), 0u);
  EXPECT_FALSE(totals.stray);
}

TEST_P(LedgerTest, NoRecordHasANumberBelowOne) {
  auto batch = BatchOf(Own());
  batch.jobs = {Job()};
  Commit(batch);
  for (const char* sql : {"update audit_record set seq = 0",
                          "insert into audit_record select writer, -5, previous, at, actor, "
                          "leaves, root, hash from audit_record"})
    EXPECT_FALSE(TryRaw(sql)) << sql;
  EXPECT_FALSE(ledger_->Totals(In())->stray);
}

TEST_P(LedgerTest, TenThousandRows) {
  auto batch = BatchOf(Own());
  for (int i = 0; i < 10'000; ++i) batch.jobs.push_back(Job());
  Commit(batch);
  batch.outcomes.reserve(10'000);
  for (const auto& j : batch.jobs) batch.outcomes.push_back(Outcome(j));
  const auto second = Commit(batch);
  EXPECT_EQ(second.duplicate_jobs.size(), 10'000u);
  EXPECT_TRUE(second.duplicate_outcomes.empty());
  EXPECT_TRUE(ledger_->LiveSingleJobs(batch.holds[0].shard, kShards, std::nullopt, {.jobs = 10}, In())->jobs.empty());
  ExpectSound();
}

// What rows have in common may travel once: whatever that is, each row comes back as it was given, and so do its leaves.
TEST_P(LedgerTest, BatchesWhoseRowsShareSomeColumns) {
  const ShardHold hold = Own();
  SeededRandom random(11);
  std::vector<JobSpec> all;
  for (int round = 0; round < 60; ++round) {
    OwnerBatch batch = BatchOf(hold);
    const std::uint64_t differ = random.Next();  // a bit per column: it differs from row to row
    const std::size_t count = round % 5 == 0 ? 1 : 2 + random.Below(14);
    for (std::size_t i = 0; i < count; ++i) {
      const auto n = [&](int bit) { return (differ >> bit & 1U) != 0 ? static_cast<int>(i) : round; };
      JobSpec j = Job();
      j.kind = "kind" + std::to_string(n(0));
      j.queue = "queue" + std::to_string(n(1));
      j.payload = std::string(static_cast<std::size_t>(n(2)), 'x');
      j.priority = n(3) % 4;
      if (n(4) % 2 == 0) j.run_at = FromUnixMicros(1'700'000'000'000'000 + n(5));
      if (n(6) % 3 != 0) j.depends_on.assign(static_cast<std::size_t>(n(7) % 3), j.id);
      j.timeout = Millis{n(8)};
      if (n(9) % 2 == 0) j.options.limit_key = "key" + std::to_string(n(10));
      batch.jobs.push_back(j);
      all.push_back(j);
    }
    Commit(batch);
  }
  std::ranges::sort(all, {}, &JobSpec::id);
  const auto live = ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 5000}, In());
  ASSERT_TRUE(live) << live.error().message;
  ASSERT_EQ(live->jobs.size(), all.size());
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(live->jobs[i].spec, all[i]) << i;
  ExpectSound();
}

TEST_P(LedgerTest, ContentsNameWhatAShardHasNone) {
  const ShardHold hold = Own();
  const auto mine = [&] {
    const auto all = ledger_->Contents(In());
    EXPECT_TRUE(all) << all.error().message;
    EXPECT_EQ(all->size(), 1U);
    return all->at(0);
  };
  EXPECT_EQ(mine().shard, hold.shard);
  EXPECT_FALSE(mine().live_runs || mine().live_jobs || mine().outbox || mine().queue_settings);
  const JobSpec job = Job();
  ASSERT_TRUE(ledger_->SubmitJobs(std::vector{job}, In()));
  EXPECT_TRUE(mine().live_jobs && mine().outbox);
  EXPECT_FALSE(mine().live_runs || mine().queue_settings);
  ASSERT_TRUE(ledger_->SubmitRun(Run(), {}, In()));
  EXPECT_TRUE(mine().live_runs);
  OwnerBatch batch = BatchOf(hold);
  batch.outcomes = {Outcome(job)};
  Commit(batch);
  EXPECT_FALSE(mine().live_jobs);
}

TEST_P(LedgerTest, ThreadsCommitToTheirOwnShards) {
  constexpr int kRounds = 20;
  std::vector<std::unique_ptr<Ledger>> ledgers;
  for (int t = 0; t < kShards; ++t) ledgers.push_back(Open());
  std::vector<std::string> errors(kShards);
  {
    std::vector<std::jthread> threads;
    for (std::uint16_t t = 0; t < kShards; ++t)
      threads.emplace_back([&, t] {
        const auto owner = NewId<OwnerId>();
        const auto epoch = ledgers[t]->TakeShard(ShardId{t}, owner, "b", In());
        if (!epoch) {
          errors[t] = epoch.error().message;
          return;
        }
        for (int i = 0; i < kRounds; ++i) {
          OwnerBatch batch;
          batch.holds = {{ShardId{t}, *epoch}};
          batch.owner = owner;
          for (int k = 0; k < 10; ++k) batch.jobs.push_back(Job());
          const auto done = ledgers[t]->Commit(batch, In());
          if (!done) errors[t] = done.error().message;
        }
      });
  }
  for (const auto& e : errors) EXPECT_EQ(e, "");
  EXPECT_EQ(ledger_->AuditHeads(In())->size(), kShards);
  EXPECT_EQ(ledger_->LiveSingleJobs(ShardOf(kDefaultOrg, kShards), kShards, std::nullopt, {.jobs = 5000}, In())->jobs.size(),
            10u * kRounds * kShards);
  ExpectSound();
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& test) { return test.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

TEST(SqliteLedger, AClockThatWasSetBackKeepsNobodyOut) {
  char folder[] = "/tmp/millrace_ledger_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  FakeClock clock;
  SeededRandom random(3);
  IdGenerator ids(clock, random);
  {
    auto ledger = OpenSqliteLedger(
        {.dsn = std::string(folder) + "/l.db", .clock = &clock, .writer = ids.Next<AuditWriterId>(), .shard_count = 1},
        clock.Now() + 10s);
    ASSERT_TRUE(ledger.has_value());
    const auto in = [&] { return clock.Now() + 10s; };
    ASSERT_TRUE((*ledger)->Migrate(in()).has_value());
    const auto dead = ids.Next<OwnerId>(), next = ids.Next<OwnerId>();
    ASSERT_TRUE((*ledger)->TakeShard(ShardId{0}, dead, "dead", in()).has_value());
    ASSERT_TRUE((*ledger)->TryLead(dead, "dead", Millis{5000}, in())->leader);
    clock.StepWall(-1h);
    EXPECT_TRUE((*ledger)->TakeShard(ShardId{0}, next, "next", in()).has_value());
    EXPECT_TRUE((*ledger)->TryLead(next, "next", Millis{5000}, in())->leader);
    clock.StepWall(-2s);  // a small step is no reason to take anything
    EXPECT_FALSE((*ledger)->TakeShard(ShardId{0}, dead, "dead", in()).has_value());
    EXPECT_FALSE((*ledger)->TryLead(dead, "dead", Millis{5000}, in())->leader);
  }
  std::filesystem::remove_all(folder);
}

TEST(SqliteLedgerOpen, SaysWhatIsMissing) {
  SystemClock clock;
  const auto in = clock.Now() + 5s;
  const auto open = [&](std::string path) {
    return OpenSqliteLedger({.dsn = std::move(path), .clock = &clock, .writer = {}}, in);
  };
  EXPECT_EQ(open("/nonexistent/x/l.db").error().message,
            "ledger '/nonexistent/x/l.db': the folder '/nonexistent/x' does not exist; create it first");
  EXPECT_EQ(open("l.db").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(open("/tmp").error().code, ErrorCode::kInvalidArgument);
}

TEST(PostgresLedgerOpen, SaysWhatIsWrong) {
  SystemClock clock;
  const auto open = [&](std::string dsn) {
    return OpenPostgresLedger({.dsn = std::move(dsn), .clock = &clock, .writer = {}}, clock.Now() + 5s);
  };
  EXPECT_EQ(open("host=127.0.0.1 port=1 dbname=x user=x password=hunter2").error().code, ErrorCode::kUnavailable);
  const auto bad = open("pass word=hunter2").error();
  EXPECT_EQ(bad.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(bad.message.find("hunter2"), std::string::npos);
}

}  // namespace
}  // namespace millrace
