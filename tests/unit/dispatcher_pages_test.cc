// A ledger whose answers have to come in time: what is live, what waits in the outbox and what the queue had no memory for is
// read in pages of bounded size, whatever the payloads.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>
#include <vector>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherPagesTest : public testing::DispatcherTest {
 protected:
  DispatcherPagesTest() : DispatcherTest(10 * kPayloadBytesMax) {
    ledger_.bytes_in_time = kPageBytesMax + kPayloadBytesMax - 1;
  }
  std::vector<JobSpec> Large(std::size_t n) {
    std::vector<JobSpec> jobs;
    while (jobs.size() < n) {
      jobs.push_back(Job());
      jobs.back().payload.assign(kPayloadBytesMax, static_cast<char>('a' + jobs.size() % 26));
    }
    return jobs;
  }
  void TakeAnew() {
    pump_.Post(
        command::TakeShardAnew{.dropped = {.shard = ShardId{0}, .epoch = ledger_.EpochOf(ShardId{0})}, .reason = "test"});
    Handle(event::ShardLost{.shard = ShardId{0}, .reason = "test", .owner_name = {}});
    ASSERT_FALSE(dispatcher_.Ready(ShardId{0}));
    Advance(250ms);
    ASSERT_TRUE(dispatcher_.Ready(ShardId{0}));
  }
  // Whatever is granted succeeds, until nothing is granted any more for some time.
  void Work() {
    for (int quiet = 0; quiet < 15;) {
      const std::size_t before = ended_;
      for (; ended_ < grants_.size(); ++ended_) End(ended_, AttemptEnd::kSucceeded, true, ended_ + 4);
      Beat("w", ended_ + 3);
      Advance(kDispatcherTick);
      quiet = ended_ == before ? quiet + 1 : 0;
    }
  }
  void ExpectEachRanOnce(const std::vector<JobSpec>& jobs) {
    std::map<JobId, int> runs;
    for (const auto& [peer, job] : grants_) ++runs[job.id];
    for (const JobSpec& job : jobs) {
      EXPECT_EQ(runs[job.id], 1) << job.id.ToString();
      EXPECT_EQ(Outcome(job), JobState::kSucceeded);
    }
    ExpectDepth(0, 0);
  }
  std::size_t ended_ = 0;
};

TEST_F(DispatcherPagesTest, AShardOfLargeLiveJobsBecomesReadyAndRunsAll) {
  const std::vector<JobSpec> jobs = Large(40);
  Submit(jobs);
  queue_.Wipe();
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  Hello("w", 3);
  Work();
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherPagesTest, WhatTheQueueHadNoMemoryForIsReadInPagesToo) {
  const std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  queue_.memory_max = 5;
  queue_.Wipe();
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  Hello("w", 3);
  Work();
  ExpectEachRanOnce(jobs);
}

// A rebuild passes over them; it does not even read their payloads.
TEST_F(DispatcherPagesTest, LargeJobsThatWaitInTheOutboxHoldUpNoRebuild) {
  const std::vector<JobSpec> jobs = Large(40);
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  const std::size_t in_time = std::exchange(ledger_.bytes_in_time, 0);
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  ledger_.bytes_in_time = in_time;
  Hello("w", 3);
  Work();
  ExpectEachRanOnce(jobs);
  EXPECT_TRUE(ledger_.outbox_jobs.empty());
}

TEST_F(DispatcherPagesTest, LargeRunsBecomeReadyAndRunToTheirEnds) {
  std::vector<JobSpec> all;
  for (int i = 0; i < 12; ++i) {
    RunSpec run;
    run.id = ids_.Next<RunId>();
    run.pipeline = run.id.ToString();
    std::vector<JobSpec> jobs = Large(2);
    for (JobSpec& job : jobs) job.run = run.id;
    ASSERT_TRUE(ledger_.SubmitRun(run, jobs, {}));
    all.insert(all.end(), jobs.begin(), jobs.end());
  }
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  Hello("w", 3);
  Work();
  ExpectEachRanOnce(all);
}

// The owner before started it and was gone before its outbox row was: it goes on, and is known with its payload.
TEST_F(DispatcherPagesTest, WhatMayRunIsReadWholeAlthoughTheOutboxShowsIt) {
  std::vector<JobSpec> jobs = Large(9);
  Hello("w", 9);
  Submit({jobs[0], jobs[4], jobs[5]});
  ASSERT_EQ(grants_.size(), 3U);
  for (const JobSpec& job : {jobs[0], jobs[4], jobs[5]}) ledger_.outbox_jobs.insert(job.id);
  for (const std::size_t i : {1U, 2U, 3U, 6U, 7U, 8U}) ASSERT_TRUE(ledger_.SubmitJobs(std::span(&jobs[i], 1), {}));
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  const std::vector<wire::Hello::Held> held{{jobs[0].id, grants_[0].second.token}, {jobs[5].id, grants_[2].second.token}};
  Handle(event::FromWorker{.peer = "w", .message = wire::Orphans{.worker = workers_.at("w"), .items = held}});
  Settle();
  EXPECT_EQ(dispatcher_.adopted(), 2U);
  End(0, AttemptEnd::kSucceeded, true, 20);
  End(2, AttemptEnd::kSucceeded, true, 20);
  ended_ = 3;
  Work();
  Advance(kAdoptionWindow);
  Work();
  std::map<JobId, int> runs;
  for (const auto& [peer, grant] : grants_) {
    ++runs[grant.id];
    EXPECT_EQ(grant.payload, std::ranges::find(jobs, grant.id, &JobSpec::id)->payload);
  }
  for (const JobSpec& job : jobs) {
    EXPECT_EQ(runs[job.id], job.id == jobs[4].id ? 2 : 1) << "of one nobody knew anything";
    EXPECT_EQ(Outcome(job), JobState::kSucceeded);
  }
  EXPECT_TRUE(ledger_.outbox_jobs.empty());
}

}  // namespace
}  // namespace millrace
