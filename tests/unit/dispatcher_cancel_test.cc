// Cancelling: durable first, then stopped, then fenced, then ended; a success that exists wins.
#include <gtest/gtest.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherCancelTest : public testing::DispatcherTest {
 protected:
  void Cancel(Uuid id, bool is_run) {
    Handle(event::FromClient{.peer = "c",
                             .message = wire::Cancel{.request = 5,
                                                     .org = kDefaultOrg,
                                                     .items = {{.id = id, .is_run = is_run}},
                                                     .actor = "cli me",
                                                     .reason = "wrong day"}});
    Settle();
  }
  CancelEffect Answer() {
    const auto* reply = Last<wire::CancelReply>();
    EXPECT_NE(reply, nullptr);
    return reply == nullptr ? CancelEffect::kUnknown : reply->items.at(0).effect;
  }
  JobSpec Load() {
    JobSpec job = Job();
    job.kind = "stage";
    job.options.has_sink = true;
    return job;
  }
  RunState EndOf(const RunSpec& run) {
    const auto it = ledger_.run_outcomes.find(run.id);
    return it == ledger_.run_outcomes.end() ? RunState::kRunning : it->second.state;
  }
  // The queue is emptied: the shard is taken anew.
  void Retake() {
    queue_.Wipe();
    Submit({Job()});
    for (int i = 0; i < 4; ++i) Advance(Millis{500});
  }
};

TEST_F(DispatcherCancelTest, AJobThatWaitsEndsWithItsRequestAndIsNeverGranted) {
  const JobSpec job = Job();
  Submit({job});
  Cancel(job.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  EXPECT_TRUE(ledger_.cancels.contains(job.id.uuid));
  EXPECT_EQ(ledger_.cancels.at(job.id.uuid).actor, "cli me");
  Hello("w", 10);
  EXPECT_TRUE(grants_.empty());
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U) << "its entry was claimed and finished";
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 0U);
}

TEST_F(DispatcherCancelTest, NothingIsStoppedBeforeTheRequestIsDurable) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  ledger_.fault = [this] { return client_.empty() ? test::LedgerFault::kNone : test::LedgerFault::kUnavailable; };
  Cancel(job.id.uuid, false);
  EXPECT_TRUE(revokes_.empty());
  EXPECT_EQ(Last<wire::CancelReply>(), nullptr);
}

TEST_F(DispatcherCancelTest, ARunningJobIsRevokedAndEndsWhenItsWorkerSaysSo) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  Cancel(job.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kCancelling);
  ASSERT_EQ(revokes_.size(), 1U);
  EXPECT_EQ(revokes_[0].reason, "cancelled");
  EXPECT_EQ(Outcome(job), std::nullopt);
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  EXPECT_EQ(dispatcher_.leases(), 0U);
  EXPECT_EQ(grants_.size(), 1U) << "no sink, no fence";
}

TEST_F(DispatcherCancelTest, ASuccessThatCameBeforeTheSignalWins) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  Cancel(job.id.uuid, false);
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(job), JobState::kSucceeded);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->report.error_class, "cancel_too_late");
}

TEST_F(DispatcherCancelTest, ALostWorkerEndsACancelledJobWithoutASink) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  Cancel(job.id.uuid, false);
  Advance(kLeaseTtl + Millis{1});
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  Hello("w2", 10);
  EXPECT_EQ(grants_.size(), 1U) << "it never starts again";
}

TEST_F(DispatcherCancelTest, ALoadIsFencedBeforeItEnds) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Load()};
  const RunSpec run = SubmitRun(jobs);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_FALSE(grants_[0].second.fence_only);
  Cancel(run.id.uuid, true);
  EXPECT_EQ(Answer(), CancelEffect::kCancelling);
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(jobs[0]), std::nullopt) << "an old attempt could still publish";
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_TRUE(grants_[1].second.fence_only);
  EXPECT_GT(grants_[1].second.token, grants_[0].second.token);
  End(1, AttemptEnd::kFailed);  // the destination is down
  EXPECT_EQ(Outcome(jobs[0]), std::nullopt);
  Advance(Millis{1100});
  ASSERT_EQ(grants_.size(), 3U);
  EXPECT_TRUE(grants_[2].second.fence_only);
  End(2, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(jobs[0]), JobState::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).reason, "cancelled by cli me: wrong day");
  EXPECT_TRUE(dispatcher_.Idle());
}

TEST_F(DispatcherCancelTest, AReceiptThatExistsWins) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Load()};
  const RunSpec run = SubmitRun(jobs);
  Cancel(run.id.uuid, true);
  Advance(kLeaseTtl + Millis{1});  // the worker died; its load may have committed
  Hello("w2", 10);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_TRUE(grants_[1].second.fence_only);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(jobs[0]), JobState::kSucceeded);
  EXPECT_EQ(EndOf(run), RunState::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).reason, "cancel_too_late: every stage had succeeded");
}

TEST_F(DispatcherCancelTest, AFenceThatCannotBeRaisedEndsDeadInTheEnd) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Load()};
  const RunSpec run = SubmitRun(jobs);
  Cancel(run.id.uuid, true);
  End(0, AttemptEnd::kCancelled);
  for (std::size_t i = 1; i < 30 && !Outcome(jobs[0]); ++i) {
    ASSERT_EQ(grants_.size(), i + 1);
    End(i, AttemptEnd::kFailed);
    Advance(Millis{1100});
  }
  EXPECT_EQ(Outcome(jobs[0]), JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(jobs[0].id).outcome->report.error_class, "cancel_unfenced");
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
}

TEST_F(DispatcherCancelTest, WhatHasNotStartedEndsAtOnceAndWhatSucceededStays) {
  Hello("w", 1);
  std::vector<JobSpec> jobs{Job(), Job(), Job()};
  jobs[1].depends_on = {jobs[0].id};
  jobs[2].depends_on = {jobs[1].id};
  const RunSpec run = SubmitRun(jobs);
  End(0, AttemptEnd::kSucceeded, true, 2);
  Cancel(run.id.uuid, true);
  EXPECT_EQ(Outcome(jobs[2]), JobState::kCancelled);
  EXPECT_EQ(Outcome(jobs[1]), std::nullopt);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(jobs[0]), JobState::kSucceeded);
  EXPECT_EQ(Outcome(jobs[1]), JobState::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
}

TEST_F(DispatcherCancelTest, AQueuedRunIsCancelledAndTheNextOneStarts) {
  Hello("w", 10);
  std::vector<JobSpec> a{Job()}, b{Job()}, c{Job()};
  SubmitRun(a);
  const RunSpec second = SubmitRun(b), third = SubmitRun(c);
  Cancel(second.id.uuid, true);
  EXPECT_EQ(EndOf(second), RunState::kCancelled);
  EXPECT_EQ(Outcome(b[0]), JobState::kCancelled);
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[1].second.id, c[0].id);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(EndOf(third), RunState::kSucceeded);
}

TEST_F(DispatcherCancelTest, OverlapCancelReplacesTheRunThatIsActive) {
  Hello("w", 10);
  std::vector<JobSpec> old_jobs{Job()}, new_jobs{Job()};
  const RunSpec old_run = SubmitRun(old_jobs);
  const RunSpec new_run = SubmitRun(new_jobs, "cancel");
  EXPECT_TRUE(ledger_.cancels.contains(old_run.id.uuid)) << "on the record, like any other request";
  ASSERT_EQ(revokes_.size(), 1U);
  EXPECT_EQ(grants_.size(), 1U) << "the new one starts when nothing of the old one runs";
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(EndOf(old_run), RunState::kCancelled);
  ASSERT_EQ(grants_.size(), 2U);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(EndOf(new_run), RunState::kSucceeded);
}

TEST_F(DispatcherCancelTest, ACancelSurvivesTheOwner) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Job(), Load(), Job()};
  jobs[1].depends_on = {jobs[0].id};
  jobs[2].depends_on = {jobs[1].id};
  const RunSpec run = SubmitRun(jobs);
  End(0, AttemptEnd::kSucceeded, true, 20);
  ASSERT_EQ(grants_.size(), 2U);
  const JobSpec single = Job();
  Submit({single});
  Cancel(run.id.uuid, true);
  Cancel(single.id.uuid, false);
  Retake();
  Beat("w", 40);
  EXPECT_EQ(Outcome(jobs[2]), JobState::kCancelled);
  EXPECT_EQ(Outcome(single), JobState::kCancelled);
  const auto fence = std::ranges::find_if(grants_, [&](const auto& g) { return g.second.fence_only; });
  ASSERT_NE(fence, grants_.end());
  EXPECT_EQ(fence->second.id, jobs[1].id);
  End(static_cast<std::size_t>(fence - grants_.begin()), AttemptEnd::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).reason, "cancelled by cli me: wrong day");
  EXPECT_EQ(Outcome(jobs[0]), JobState::kSucceeded);
}

TEST_F(DispatcherCancelTest, ARequestPutIntoTheLedgerByOthersIsFound) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  const JobSpec single = Job();
  Submit({single});
  const CancelRow rows[] = {
      {.item = run.id.uuid, .is_run = true, .org = kDefaultOrg, .actor = "x", .reason = {}, .requested_at = {}},
      {.item = single.id.uuid, .is_run = false, .org = kDefaultOrg, .actor = "x", .reason = {}, .requested_at = {}}};
  ASSERT_TRUE(ledger_.RequestCancel(rows, clock_.Now() + 1s));
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(revokes_.size(), 2U);
  End(0, AttemptEnd::kCancelled);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
  EXPECT_EQ(Outcome(single), JobState::kCancelled);
}

TEST_F(DispatcherCancelTest, TooLateAndUnknownAreAnsweredAsWhatTheyAre) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kSucceeded);
  Cancel(job.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kEnded);
  EXPECT_EQ(Last<wire::CancelReply>()->items[0].state, "succeeded");
  Cancel(job.id.uuid, true);
  EXPECT_EQ(Answer(), CancelEffect::kUnknown) << "a job is not a run";
  Cancel(ids_.Next<JobId>().uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kUnknown);
}

TEST_F(DispatcherCancelTest, AFailureThatComesWhileTheRequestIsWrittenIsNotRetried) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  for (const auto& [id, is_run] : {std::pair{job.id.uuid, false}, std::pair{run.id.uuid, true}})
    Handle(event::FromClient{
        .peer = "c",
        .message = wire::Cancel{.request = 5, .org = kDefaultOrg, .items = {{id, is_run}}, .actor = {}, .reason = {}}});
  Flush();
  std::vector<Event> events;
  pump_.Step(events);
  for (Event& event : events) Handle(std::move(event));  // the states are known, nothing is written
  EXPECT_TRUE(ledger_.cancels.empty());
  End(0, AttemptEnd::kFailed);
  End(1, AttemptEnd::kFailed);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
  Advance(Millis{1500});
  EXPECT_EQ(grants_.size(), 2U);
}

}  // namespace
}  // namespace millrace
