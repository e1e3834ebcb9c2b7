// Outbox rows that stand for many runs (Ledger::Outbox::Batch), as a broker takes them.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "tests/support/dispatcher_fixture.h"

namespace millrace::testing {
namespace {

class DispatcherOutboxTest : public DispatcherTest {
 protected:
  // Runs of one job each, which one transaction of a scheduler put there.
  std::vector<RunId> Herd(int runs) {
    std::vector<RunId> ids;
    for (int i = 0; i < runs; ++i) {
      RunSpec run;
      run.id = ids_.Next<RunId>();
      run.pipeline = run.id.ToString();  // none waits for another
      JobSpec job = Job();
      job.run = run.id;
      EXPECT_TRUE(ledger_.SubmitRun(run, std::span{&job, 1}, {}));
      ledger_.outbox_runs.erase(run.id);
      ids.push_back(run.id);
    }
    ledger_.outbox_batches[ids.front().uuid] = ids;
    return ids;
  }
  void EndAll() {
    for (std::size_t i = 0; i < grants_.size(); ++i)
      if (!ledger_.jobs.at(grants_[i].second.id).outcome) End(i, AttemptEnd::kSucceeded, true, 100);
  }
  std::map<JobId, int> Grants() const {
    std::map<JobId, int> granted;
    for (const auto& [peer, job] : grants_) ++granted[job.id];
    return granted;
  }
};

TEST_F(DispatcherOutboxTest, ABatchIsTakenOnceHoweverOftenItRings) {
  Hello("w", 100);
  const auto runs = Herd(7);
  for (int i = 0; i < 3; ++i) Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(grants_.size(), 7U);
  EXPECT_TRUE(ledger_.outbox_batches.empty());
  EndAll();
  for (const RunId& run : runs) EXPECT_TRUE(ledger_.run_outcomes.contains(run));
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

// One run in a row of its own, a later one of the same pipeline in a batch: the earlier one is first.
TEST_F(DispatcherOutboxTest, RunsOfBothKindsOfRowsComeInTheOrderOfTheirIds) {
  Hello("w", 100);
  const auto put = [&](const std::string& pipeline) {
    RunSpec run;
    run.id = ids_.Next<RunId>();
    run.pipeline = pipeline;
    run.overlap = "skip";
    JobSpec job = Job();
    job.run = run.id;
    EXPECT_TRUE(ledger_.SubmitRun(run, std::span{&job, 1}, {}));
    clock_.Advance(2ms);
    return std::pair{run.id, job.id};
  };
  const auto older = put("p"), newer = put("p"), other = put("q");
  for (const auto& [run, job] : {newer, other}) ledger_.outbox_runs.erase(run);
  ledger_.outbox_batches[newer.first.uuid] = {newer.first, other.first};
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(Grants(), (std::map<JobId, int>{{older.second, 1}, {other.second, 1}}));
  ASSERT_TRUE(ledger_.run_outcomes.contains(newer.first)) << "the later one is skipped, not the earlier one";
  EXPECT_EQ(ledger_.run_outcomes.at(newer.first).state, RunState::kSkipped);
}

TEST_F(DispatcherOutboxTest, MoreBatchesThanOneReadGivesAreAllTaken) {
  Hello("w", 100);
  ledger_.outbox_page_max = 2;
  for (int i = 0; i < 7; ++i) Herd(3);
  const JobSpec single = Job();
  ASSERT_TRUE(ledger_.SubmitJobs(std::span{&single, 1}, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(grants_.size(), 22U) << "without another ring";
  EXPECT_TRUE(ledger_.outbox_batches.empty() && ledger_.outbox_jobs.empty());
}

TEST_F(DispatcherOutboxTest, ARequestToCancelIsSeenBesideItsBatch) {
  Hello("w", 100);
  const auto runs = Herd(3);
  // Its id is the batch's too.
  const CancelRow request{runs[0].uuid, true, kDefaultOrg, "cli", "why", clock_.WallNow()};
  ASSERT_TRUE(ledger_.RequestCancel(std::span{&request, 1}, {}));
  for (int i = 0; i < 2; ++i) Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(grants_.size(), 2U);
  Advance(kOutboxPollInterval + 1ms);
  EXPECT_TRUE(ledger_.outbox_batches.empty());
  ASSERT_TRUE(ledger_.run_outcomes.contains(runs[0]));
  EXPECT_EQ(ledger_.run_outcomes.at(runs[0]).state, RunState::kCancelled);
  EndAll();
  for (const RunId& run : runs) EXPECT_TRUE(ledger_.run_outcomes.contains(run));
}

// Nobody can raise their fences: they may take long.
TEST_F(DispatcherOutboxTest, WhatIsBeingCancelledHoldsUpNothingElse) {
  ledger_.outbox_page_max = 2;
  std::vector<JobSpec> jobs;
  std::vector<CancelRow> requests;
  for (int i = 0; i < 5; ++i) {
    jobs.push_back(Job());
    jobs.back().options.has_sink = true;
    requests.push_back({jobs.back().id.uuid, false, kDefaultOrg, "cli", "why", clock_.WallNow()});
  }
  const JobSpec later = Job();
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  ASSERT_TRUE(ledger_.RequestCancel(requests, {}));
  ASSERT_TRUE(ledger_.SubmitJobs(std::span{&later, 1}, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_TRUE(ledger_.outbox_jobs.empty());
  ExpectDepth(1, 0);
  Hello("w", 10);
  std::map<JobId, bool> fence_only;
  for (const auto& [peer, job] : grants_) fence_only[job.id] = job.fence_only;
  EXPECT_EQ(fence_only.size(), 6U);
  for (const JobSpec& job : jobs) EXPECT_TRUE(fence_only[job.id]);
  EXPECT_FALSE(fence_only[later.id]);
}

// The broker dies between what it made of a batch and the removal of its row: some of the runs have ended, others run or wait.
// Whoever comes next finds the row again, and what is left of it.
TEST_F(DispatcherOutboxTest, ABatchThatWasPartlyConsumedWhenItsBrokerDiedStartsNothingTwice) {
  Hello("w", 3);
  const auto runs = Herd(6);
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  ASSERT_EQ(grants_.size(), 3U);
  End(0, AttemptEnd::kSucceeded);
  End(1, AttemptEnd::kSucceeded);
  ASSERT_EQ(ledger_.run_outcomes.size(), 2U);
  ledger_.outbox_batches[runs.front().uuid] = runs;  // the removal was not committed
  queue_.Wipe();                                     // the shard is taken anew, and rebuilt
  Submit({Job()});
  Advance(1s);
  for (int i = 0; i < 5; ++i) {
    Beat("w", 100);
    EndAll();
    Advance(kOutboxPollInterval + 1ms);
  }
  EXPECT_GT(ledger_.EpochOf(ShardId{0}), Epoch{1});
  EXPECT_TRUE(ledger_.outbox_batches.empty());
  for (const RunId& run : runs) {
    ASSERT_TRUE(ledger_.run_outcomes.contains(run));
    EXPECT_EQ(ledger_.run_outcomes.at(run).state, RunState::kSucceeded);
  }
  int ended_before = 0;
  for (const auto& [job, times] : Grants()) ended_before += times == 1 ? 1 : 0;
  EXPECT_GE(ended_before, 2) << "what had ended was not granted again";
  for (const auto& [id, rows] : ledger_.jobs) EXPECT_TRUE(rows.outcome);
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

// A commit whose answer is lost, and then the batch that was in it.
TEST_F(DispatcherOutboxTest, ABatchIsTakenAgainWhenItsRemovalIsUnknown) {
  for (const test::LedgerFault fault : {test::LedgerFault::kAppliedButUnknown, test::LedgerFault::kNotAppliedButUnknown}) {
    Hello("w", 100);
    const auto runs = Herd(4);
    int struck = 0;
    ledger_.fault = [&] { return ledger_.outbox_batches.empty() || struck++ != 1 ? test::LedgerFault::kNone : fault; };
    Handle(event::Rung{.shard = ShardId{0}});
    Settle();
    ledger_.fault = {};
    for (int i = 0; i < 6; ++i) {
      Advance(2s);
      Beat("w", 100);
      EndAll();
    }
    EXPECT_TRUE(ledger_.outbox_batches.empty());
    for (const RunId& run : runs) EXPECT_TRUE(ledger_.run_outcomes.contains(run));
  }
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

}  // namespace
}  // namespace millrace::testing
