// Unique keys, what is done about dead jobs, and lists of jobs: one suite for both ledgers.
#include <algorithm>
#include <set>
#include <thread>

#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;

class LedgerJobsTest : public testing::LedgerTest {
 protected:
  JobSpec Unique(std::string key, UniqueUntil until = UniqueUntil::kEnded, Millis window = Millis{0}) {
    JobSpec job = Job();
    job.options.unique_key = std::move(key);
    job.options.unique_until = until;
    job.options.unique_window = window;
    return job;
  }
  DeadActionRow Action(const JobSpec& job, DeadAction action, std::optional<JobId> new_job = {}) {
    return {.job = job.id,
            .org = job.org,
            .action = action,
            .new_job = new_job,
            .actor = "cli root@host",
            .reason = "Zürich \"later\"",
            .at = FromUnixMicros(1'700'000'004'000'001)};
  }
  std::vector<JobId> Listed(const JobFilter& filter) {
    const auto jobs = ledger_->ListJobs(filter, In());
    EXPECT_TRUE(jobs) << jobs.error().message;
    std::vector<JobId> ids;
    if (jobs)
      for (const JobSummary& job : *jobs) ids.push_back(job.spec.id);
    return ids;
  }
};

TEST_P(LedgerJobsTest, OneBatchGivesAKeyToItsFirstJob) {
  const ShardHold hold = Own();
  const JobSpec a = Unique("k"), b = Unique("k"), plain = Job(), c = Unique("k'\\"), d = Unique("k'\\");
  JobSpec elsewhere = Unique("k");
  elsewhere.queue = "other";
  auto batch = BatchOf(hold);
  batch.jobs = {a, b, plain, c, d, elsewhere};
  const auto result = Commit(batch);
  EXPECT_EQ(result.conflicts, (std::vector<UniqueConflict>{{.job = b.id, .holder = a.id}, {.job = d.id, .holder = c.id}}));
  EXPECT_TRUE(result.duplicate_jobs.empty());
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, b.id, In()));
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, elsewhere.id, In()));
  const auto again = Commit(batch);
  EXPECT_EQ(again.duplicate_jobs.size(), 4u) << "the same submit again: duplicates, and the same conflicts";
  EXPECT_EQ(again.conflicts.size(), 2u);
  ExpectSound();
}

TEST_P(LedgerJobsTest, AKeyIsFreedWithTheOutcomeOrTheStartInTheSameTransaction) {
  const ShardHold hold = Own();
  const JobSpec ended = Unique("e"), started = Unique("s", UniqueUntil::kStarted), never = Unique("n", UniqueUntil::kStarted);
  auto batch = BatchOf(hold);
  batch.jobs = {ended, started, never};
  EXPECT_TRUE(Commit(batch).conflicts.empty());
  const JobSpec after_end = Unique("e"), after_start = Unique("s", UniqueUntil::kStarted), after_never = Unique("n");
  batch = BatchOf(hold);
  batch.unique_started = {started.id, ended.id};  // the other one is held until it ends
  Commit(batch);
  batch = BatchOf(hold);
  batch.jobs = {after_end, after_start};
  EXPECT_EQ(Commit(batch).conflicts, (std::vector<UniqueConflict>{{.job = after_end.id, .holder = ended.id}}));
  batch = BatchOf(hold);
  batch.outcomes = {Outcome(ended), Outcome(never)};
  batch.jobs = {after_end, after_never, ended};  // the last is a duplicate: the rows are gone over once more
  const auto result = Commit(batch);
  EXPECT_TRUE(result.conflicts.empty()) << "the end and the next submit in one batch";
  EXPECT_EQ(result.duplicate_jobs, std::vector{ended.id});
  ExpectSound();
}

TEST_P(LedgerJobsTest, AWindowEndsByTheLedgersClock) {
  const JobSpec first = Unique("w", UniqueUntil::kWindow, Millis{60'000}),
                second = Unique("w", UniqueUntil::kWindow, Millis{60'000});
  ASSERT_TRUE(ledger_->SubmitJobs(std::span{&first, 1}, In()));
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  batch.outcomes = {Outcome(first)};
  Commit(batch);
  auto refused = ledger_->SubmitJobs(std::span{&second, 1}, In());
  ASSERT_TRUE(refused) << refused.error().message;
  EXPECT_EQ(refused->conflicts, (std::vector<UniqueConflict>{{.job = second.id, .holder = first.id}})) << "ended or not";
  Raw("update live_unique set until_us = 1");
  auto accepted = ledger_->SubmitJobs(std::span{&second, 1}, In());
  ASSERT_TRUE(accepted) << accepted.error().message;
  EXPECT_TRUE(accepted->conflicts.empty());
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox);
  EXPECT_EQ(outbox->jobs.size(), 1u);
  ExpectSound();
}

TEST_P(LedgerJobsTest, OfManyWhoSubmitAtTheSameTimeOneGetsEachKey) {
  constexpr int kWriters = 4, kRounds = 12, kKeys = 3;
  std::vector<std::vector<JobSpec>> jobs(kWriters);
  std::vector<std::unique_ptr<Ledger>> ledgers;
  for (auto& mine : jobs) {
    ledgers.push_back(Open());
    for (int i = 0; i < kRounds * kKeys; ++i) mine.push_back(Unique(fmt::format("key {}", i)));
  }
  std::vector<std::vector<UniqueConflict>> conflicts(kWriters);
  {
    std::vector<std::jthread> threads;
    for (std::size_t w = 0; w < kWriters; ++w)
      threads.emplace_back([&, w] {
        for (std::size_t r = 0; r < kRounds; ++r) {
          std::vector<JobSpec> batch(jobs[w].begin() + static_cast<std::ptrdiff_t>(r * kKeys),
                                     jobs[w].begin() + static_cast<std::ptrdiff_t>((r + 1) * kKeys));
          if (w % 2 == 1) std::ranges::reverse(batch);  // everybody in an order of their own
          auto done = ledgers[w]->SubmitJobs(batch, clock_.Now() + 30s);
          ASSERT_TRUE(done) << done.error().message;
          conflicts[w].insert(conflicts[w].end(), done->conflicts.begin(), done->conflicts.end());
        }
      });
  }
  std::map<std::string, JobId> holders;
  std::map<JobId, JobId> refused;
  for (const auto& all : conflicts)
    for (const UniqueConflict& c : all) EXPECT_TRUE(refused.emplace(c.job, c.holder).second);
  for (const auto& mine : jobs)
    for (const JobSpec& job : mine) {
      const bool stored = ledger_->GetJob(kDefaultOrg, job.id, In()).has_value();
      EXPECT_NE(stored, refused.contains(job.id));
      if (stored) {
        EXPECT_TRUE(holders.emplace(job.options.unique_key, job.id).second) << "two hold " << job.options.unique_key;
      }
    }
  EXPECT_EQ(holders.size(), static_cast<std::size_t>(kRounds * kKeys));
  for (const auto& mine : jobs)
    for (const JobSpec& job : mine)
      if (refused.contains(job.id)) {
        EXPECT_EQ(refused.at(job.id), holders.at(job.options.unique_key));
      }
  ExpectSound();
}

TEST_P(LedgerJobsTest, ADeadJobIsRequeuedOrDiscardedOnce) {
  const ShardHold hold = Own();
  const JobSpec dead = Job(), other = Job();
  auto batch = BatchOf(hold);
  batch.jobs = {dead, other};
  batch.outcomes = {Outcome(dead, JobState::kDead), Outcome(other, JobState::kDead)};
  Commit(batch);
  JobSpec again = Job(), late = Job();
  again.options.retry_of = late.options.retry_of = dead.id;
  auto done =
      ledger_->RequeueDead({.run = {}, .jobs = {again}, .actions = {Action(dead, DeadAction::kRequeued, again.id)}}, In());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_TRUE(done->already_done.empty());
  done =
      ledger_->RequeueDead({.run = {},
                            .jobs = {late},
                            .actions = {Action(dead, DeadAction::kRequeued, late.id), Action(other, DeadAction::kDiscarded)}},
                           In());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(done->already_done, std::vector{dead.id});
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, late.id, In())) << "not repeated twice";
  const auto detail = ledger_->GetJob(kDefaultOrg, dead.id, In());
  ASSERT_TRUE(detail && detail->dead_action);
  EXPECT_EQ(*detail->dead_action, Action(dead, DeadAction::kRequeued, again.id));
  EXPECT_EQ(detail->outcome->state, JobState::kDead) << "a terminal state never changes";
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, other.id, In())->dead_action->action, DeadAction::kDiscarded);
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox && outbox->jobs.size() == 1u);
  EXPECT_EQ(outbox->jobs[0].spec, again);
  // What repeats a dead job can meet its unique key.
  const JobSpec holder = Unique("k"), died = Job(), clash = Unique("k");
  batch = BatchOf(hold);
  batch.jobs = {holder, died};
  batch.outcomes = {Outcome(died, JobState::kDead)};
  Commit(batch);
  done = ledger_->RequeueDead({.run = {}, .jobs = {clash}, .actions = {Action(died, DeadAction::kRequeued, clash.id)}}, In());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(done->conflicts, (std::vector<UniqueConflict>{{.job = clash.id, .holder = holder.id}}));
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, died.id, In())->dead_action) << "it is still open";
  ExpectSound();
}

// Both would load: a run of a later generation has effect keys of its own.
TEST_P(LedgerJobsTest, WhatALaterGenerationHasRunIsNotRepeated) {
  const ShardHold hold = Own();
  const auto fire = [&](std::int64_t minute, std::uint32_t generation, bool fired = true) {
    SlotDecision slot = Slot(minute, fired);
    slot.slot.key.generation = generation;
    if (fired) slot.run->generation = generation;
    const auto done = ledger_->Fire({.decisions = {slot}, .watermarks = {}, .steps = {}, .now = Now()}, In());
    EXPECT_TRUE(done && done->already_decided.empty());
    return slot;
  };
  const SlotDecision old = fire(0, 1), passed_over = fire(1, 0), newest = fire(2, 2);
  const JobSpec dead = old.jobs.at(0), free = passed_over.jobs.at(0), last = newest.jobs.at(0), single = Job();
  // A job that repeated one of the slot's and died, too.
  const JobSpec before = fire(0, 0).jobs.at(0);
  JobSpec repeated = Job();
  repeated.options.retry_of = before.id;
  ASSERT_TRUE(ledger_->RequeueDead(
      {.run = {}, .jobs = {Job()}, .actions = {Action(free, DeadAction::kRequeued, NewId<JobId>())}, .preview = true}, In()));
  auto batch = BatchOf(hold);
  batch.jobs = {single, repeated};
  for (const JobSpec& job : {dead, free, last, single, repeated}) batch.outcomes.push_back(Outcome(job, JobState::kDead));
  Commit(batch);
  fire(1, 1, false);  // decided, but nothing ran
  fire(2, 1);
  fire(0, 2);
  const SlotDecision later = fire(0, 3);
  for (const bool preview : {true, false}) {
    Requeue again{.run = {}, .jobs = {}, .actions = {}, .preview = preview};
    for (const JobSpec& job : {dead, free, last, single, repeated}) {
      again.jobs.push_back(Job());
      again.jobs.back().options.retry_of = job.id;
      again.actions.push_back(Action(job, DeadAction::kRequeued, again.jobs.back().id));
    }
    const auto done = ledger_->RequeueDead(again, In());
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_TRUE(done->already_done.empty());
    ASSERT_EQ(done->later.size(), 2u);
    for (const LaterRun& run : done->later) {
      EXPECT_EQ(run.run, *later.slot.run) << "the newest";
      EXPECT_EQ(run.slot.generation, 3u);
      EXPECT_EQ(run.slot.slot, old.slot.key.slot);
    }
    EXPECT_EQ(done->later[0].of, dead.id.uuid);
    EXPECT_EQ(done->later[1].of, repeated.id.uuid);
    for (std::size_t i = 0; i < again.jobs.size(); ++i) {
      const bool repeats = !preview && i > 0 && i < 4;
      EXPECT_EQ(ledger_->GetJob(kDefaultOrg, again.jobs[i].id, In()).has_value(), repeats) << i;
      EXPECT_EQ(ledger_->GetJob(kDefaultOrg, again.actions[i].job, In())->dead_action.has_value(), repeats) << i;
    }
  }
  const auto discarded = ledger_->RequeueDead({.run = {}, .jobs = {}, .actions = {Action(dead, DeadAction::kDiscarded)}}, In());
  ASSERT_TRUE(discarded) << discarded.error().message;
  EXPECT_TRUE(discarded->later.empty()) << "nothing of it runs";
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, dead.id, In())->dead_action->action, DeadAction::kDiscarded);
  ExpectSound();
}

TEST_P(LedgerJobsTest, ARunWhoseSlotRanAgainIsNotRetried) {
  const ShardHold hold = Own();
  SlotDecision old = Slot(0), later = Slot(0);
  later.slot.key.generation = later.run->generation = 1;
  ASSERT_TRUE(ledger_->Fire({.decisions = {old}, .watermarks = {}, .steps = {}, .now = Now()}, In()));
  auto batch = BatchOf(hold);
  batch.outcomes = {Outcome(old.jobs[0], JobState::kDead)};
  Commit(batch);
  const auto retry = [&](bool preview) {
    RunSpec run = *old.run;
    run.id = NewId<RunId>();
    const JobSpec job = Job(run.id, "extract");
    return ledger_->RequeueDead({.run = run,
                                 .jobs = {job},
                                 .actions = {Action(old.jobs[0], DeadAction::kRequeued, job.id)},
                                 .retry = RunRetry{.of = old.run->id, .actor = "cli me", .reason = "", .at = Now()},
                                 .preview = preview},
                                In());
  };
  EXPECT_TRUE(retry(true)->later.empty());
  ASSERT_TRUE(ledger_->Fire({.decisions = {later}, .watermarks = {}, .steps = {}, .now = Now()}, In()));
  for (const bool preview : {true, false}) {
    const auto done = retry(preview);
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_FALSE(done->retried_as);
    ASSERT_EQ(done->later.size(), 1u);
    EXPECT_EQ(done->later[0].of, old.run->id.uuid);
    EXPECT_EQ(done->later[0].run, later.run->id);
  }
  EXPECT_EQ(ledger_->ListRuns(Filter("flights", std::nullopt), In())->size(), 2u);
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, old.jobs[0].id, In())->dead_action) << "it is still open";
  ExpectSound();
}

TEST_P(LedgerJobsTest, ARunThatRepeatsAnotherComesWithItsJobs) {
  const ShardHold hold = Own();
  const RunSpec old = Run(), again = Run();
  const JobSpec dead = Job(old.id, "a"), one = Job(again.id, "a"), two = Job(again.id, "b");
  auto batch = BatchOf(hold);
  batch.runs = {old};
  batch.jobs = {dead};
  batch.outcomes = {Outcome(dead, JobState::kDead)};
  Commit(batch);
  for (const bool first : {true, false}) {
    const auto done = ledger_->RequeueDead(
        {.run = again, .jobs = {one, two}, .actions = {Action(dead, DeadAction::kRequeued, one.id)}}, In());
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(done->already_done.empty(), first) << "an unknown outcome may be asked for again";
  }
  const auto run = ledger_->GetRun(kDefaultOrg, again.id, In());
  ASSERT_TRUE(run && run->jobs.size() == 2u);
  ExpectSound();
}

TEST_P(LedgerJobsTest, ARunIsRetriedOnceWhoeverAsks) {
  const ShardHold hold = Own();
  const RunSpec old = Run();
  const JobSpec dead = Job(old.id, "a");
  auto batch = BatchOf(hold);
  batch.runs = {old};
  batch.jobs = {dead};
  batch.outcomes = {Outcome(dead, JobState::kDead)};
  Commit(batch);
  constexpr std::size_t kCallers = 4;
  std::vector<RunSpec> runs;
  std::vector<JobSpec> jobs;
  for (std::size_t i = 0; i < kCallers; ++i) {
    runs.push_back(Run());
    jobs.push_back(Job(runs.back().id, "a"));
  }
  const auto retry = [&](Ledger& ledger, const RunSpec& of, const RunSpec& run, const JobSpec& job) {
    const RunRetry why{.of = of.id, .actor = "cli me", .reason = "again", .at = FromUnixMicros(1'700'000'005'000'000)};
    return ledger.RequeueDead({.run = run, .jobs = {job}, .actions = {}, .retry = why}, In());
  };
  std::vector<Result<RequeueResult>> results(kCallers, RequeueResult{});
  std::vector<std::unique_ptr<Ledger>> ledgers;
  for (std::size_t i = 0; i < kCallers; ++i) ledgers.push_back(Open());
  {
    std::vector<std::jthread> callers;
    for (std::size_t i = 0; i < kCallers; ++i)
      callers.emplace_back([&, i] { results[i] = retry(*ledgers[i], old, runs[i], jobs[i]); });
  }
  std::optional<RunId> first;
  for (std::size_t i = 0; i < kCallers; ++i) {
    ASSERT_TRUE(results[i]) << results[i].error().message;
    if (!results[i]->retried_as) {
      EXPECT_FALSE(first) << "two retries of one run";
      first = runs[i].id;
    }
  }
  ASSERT_TRUE(first);
  for (std::size_t i = 0; i < kCallers; ++i) {
    EXPECT_EQ(results[i]->retried_as.value_or(*first), *first);
    EXPECT_EQ(ledger_->GetRun(kDefaultOrg, runs[i].id, In()).has_value(), runs[i].id == *first);
    EXPECT_EQ(ledger_->GetJob(kDefaultOrg, jobs[i].id, In()).has_value(), runs[i].id == *first);
  }
  const auto outbox = ledger_->ReadOutbox(hold.shard, kShards, 10, In());
  ASSERT_TRUE(outbox && outbox->runs.size() == 1u);
  // The retry is a run of its own: it may be retried again.
  const RunSpec* retried = &*std::ranges::find(runs, *first, &RunSpec::id);
  const RunSpec third = Run();
  auto again = retry(*ledger_, *retried, third, Job(third.id, "a"));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_FALSE(again->retried_as);
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, dead.id, In())->dead_action) << "its jobs have actions of their own";
  ExpectSound();
}

TEST_P(LedgerJobsTest, ListsJobsByFilterAndPage) {
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  for (int i = 0; i < 20; ++i) {
    JobSpec job = Job();
    job.queue = i % 2 == 0 ? "even" : "odd";
    job.kind = i % 4 == 0 ? "four" : "other";
    batch.jobs.push_back(job);
    if (i >= 15) continue;
    OutcomeRow outcome = Outcome(job, i < 10 ? JobState::kDead : JobState::kSucceeded);
    outcome.report.error_class = i < 5 ? "timed_out" : "broke";
    batch.outcomes.push_back(outcome);
  }
  Commit(batch);
  JobSpec foreign = Job();
  foreign.org = OrgId{77};
  ASSERT_TRUE(ledger_->SubmitJobs(std::span{&foreign, 1}, In()));
  const auto ids = [&](auto keep) {
    std::vector<JobId> out;
    for (int i = 19; i >= 0; --i)
      if (keep(i)) out.push_back(batch.jobs[static_cast<std::size_t>(i)].id);
    std::ranges::sort(out, std::greater{});
    return out;
  };
  EXPECT_EQ(Listed({}), ids([](int) { return true; })) << "of one org, newest first";
  JobFilter filter;
  filter.state = JobState::kDead;
  EXPECT_EQ(Listed(filter), ids([](int i) { return i < 10; }));
  filter.queue = "even";
  filter.kind = "four";
  filter.error_class = "broke";
  EXPECT_EQ(Listed(filter), ids([](int i) { return i == 8; }));
  JobFilter open;
  open.open = true;
  open.limit = 3;
  ASSERT_TRUE(ledger_->RequeueDead({.run = {}, .jobs = {}, .actions = {Action(batch.jobs[4], DeadAction::kDiscarded)}}, In()));
  std::vector<JobId> paged;
  for (auto page = Listed(open); !page.empty(); page = Listed(open)) {
    EXPECT_LE(page.size(), 3u);
    paged.insert(paged.end(), page.begin(), page.end());
    open.before = page.back();
  }
  EXPECT_EQ(paged, ids([](int i) { return i < 10 && i != 4; }));
  JobFilter since;
  since.since = clock_.WallNow() + 1h;
  EXPECT_TRUE(Listed(since).empty());
  since.since = clock_.WallNow() - 1h;
  EXPECT_EQ(Listed(since).size(), 20u);
  filter = {};
  filter.state = JobState::kDead;
  filter.error_class = "timed_out";
  filter.limit = 1;
  const auto summary = ledger_->ListJobs(filter, In());
  ASSERT_TRUE(summary && summary->size() == 1u);
  EXPECT_EQ(summary->front().outcome->counters, (Counters{4, 2, 1}));
  EXPECT_EQ(summary->front().outcome->report.signal, 9);
  EXPECT_TRUE(summary->front().spec.payload.empty()) << "a list carries no payloads";
}

TEST_P(LedgerJobsTest, LiveSingleJobsAreListedWithoutWhatHasEndedAndWithoutRuns) {
  auto batch = BatchOf(Own());
  const RunSpec run = Run();
  batch.runs = {run};
  for (int i = 0; i < 6; ++i) {
    JobSpec job = Job();
    job.queue = i % 2 == 0 ? "even" : "odd";
    job.kind = i < 3 ? "mail" : "command";
    batch.jobs.push_back(job);
  }
  batch.jobs.push_back(Job(run.id, "a stage"));
  batch.outcomes = {Outcome(batch.jobs[0]), Outcome(batch.jobs[5], JobState::kDead)};
  Commit(batch);
  std::vector<JobId> all;
  for (const JobSpec& job : batch.jobs) all.push_back(job.id);
  const auto id = [&](std::size_t i) { return all[i]; };
  JobFilter live;
  live.live = true;
  EXPECT_EQ(Listed(live), (std::vector{id(4), id(3), id(2), id(1)}));
  live.queue = "even";
  EXPECT_EQ(Listed(live), (std::vector{id(4), id(2)}));
  live.kind = "mail";
  EXPECT_EQ(Listed(live), std::vector{id(2)});
  live = {};
  live.live = true;
  live.limit = 3;
  live.before = id(4);
  EXPECT_EQ(Listed(live), (std::vector{id(3), id(2), id(1)})) << "by page";
  live.since = clock_.WallNow() + 1h;
  EXPECT_TRUE(Listed(live).empty());
  live = {};
  live.live = live.live_of_runs = true;
  EXPECT_EQ(Listed(live), (std::vector{id(6), id(4), id(3), id(2), id(1)}));
  batch = BatchOf(batch.holds[0]);
  batch.outcomes = {Outcome(Job(run.id, "a stage"))};
  batch.outcomes[0].report.job = id(6);
  Commit(batch);
  EXPECT_EQ(Listed(live), (std::vector{id(4), id(3), id(2), id(1)})) << "its run has not ended";
  live.org = OrgId{2};
  EXPECT_TRUE(Listed(live).empty());
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerJobsTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& i) { return i.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
