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
  JobSpec Kept() {
    JobSpec job = Job();
    job.options.durability = Durability::kRedis;
    return job;
  }
  void SetQueue(const QueueSettings& settings) {
    Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 7, .settings = settings, .actor = "me"}});
    Settle();
    ASSERT_NE(Last<wire::SetQueueReply>(), nullptr);
  }
  void ExpectEmptyQueue() {
    const auto depth = queue_.Depth(ShardId{0});
    EXPECT_EQ(depth->ready, 0U);
    EXPECT_EQ(depth->scheduled, 0U);
    EXPECT_EQ(depth->in_flight, 0U);
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
  ExpectEmptyQueue();
  Hello("w", 10);
  EXPECT_TRUE(grants_.empty());
}

TEST_F(DispatcherCancelTest, WhatWaitsLeavesQueueAndBudgetAtOnceAlsoWhenItIsPaused) {
  QueueSettings settings;
  settings.queue = "default";
  settings.paused = true;
  settings.max_waiting_jobs = 2;
  SetQueue(settings);
  JobSpec ready = Job(), later = Job(), third = Job();
  later.run_at = clock_.WallNow() + Millis{3'600'000};
  Submit({ready, later});
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 1U);
  Submit({third});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "queue_full");
  Cancel(ready.id.uuid, false);
  Cancel(later.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kCancelled);
  ExpectEmptyQueue();
  Submit({third, Job()});
  EXPECT_EQ(ledger_.jobs.size(), 4U) << "there is room again";
}

TEST_F(DispatcherCancelTest, TheJobsOfACancelledRunLeaveTheQueue) {
  std::vector<JobSpec> jobs{Job(), Job(), Job()};
  jobs[1].run_at = clock_.WallNow() + Millis{3'600'000};
  jobs[2].depends_on = {jobs[0].id};
  const RunSpec run = SubmitRun(jobs);
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 1U);
  Cancel(run.id.uuid, true);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
  ExpectEmptyQueue();
}

TEST_F(DispatcherCancelTest, AFenceWaitsForNoPauseNoRateAndNoLimit) {
  QueueSettings settings;
  settings.queue = "default";
  settings.concurrency = 1;
  settings.rate = {1, Millis{3'600'000}, 1};
  SetQueue(settings);
  Advance(Millis{3'600'000});  // the bucket of a new owner begins empty
  Hello("w", 10);
  const JobSpec job = Load(), other = Job();
  Submit({job});
  ASSERT_EQ(grants_.size(), 1U);
  Submit({other});
  Cancel(job.id.uuid, false);
  settings.paused = true;
  settings.revision = 1;
  SetQueue(settings);
  End(0, AttemptEnd::kCancelled);
  ASSERT_EQ(grants_.size(), 2U) << "paused, and its token is spent";
  EXPECT_TRUE(grants_[1].second.fence_only);
  EXPECT_EQ(grants_[1].second.id, job.id);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  EXPECT_EQ(grants_.size(), 2U) << "the other one waits for the pause";
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
}

TEST_F(DispatcherCancelTest, AFenceThatNobodyReachesEndsItsJobDead) {
  reach_.roots = {"/lake/here"};
  Hello("w", 10);
  JobSpec job = Load();
  job.root = "/lake/here";
  std::vector<JobSpec> jobs{job};
  const RunSpec run = SubmitRun(jobs);
  Cancel(run.id.uuid, true);
  Advance(kLeaseTtl + Millis{1});  // the only worker that reaches the destination is gone
  reach_.roots = {"/lake/there"};
  Hello("v", 10);
  for (int i = 0; i < 15; ++i) {
    Beat("v", 10);
    Advance(Millis{1000});
  }
  EXPECT_EQ(Outcome(jobs[0]), JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->report.error_class, "unreachable_input");
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
}

TEST_F(DispatcherCancelTest, AJobThatOnlyTheQueueHasIsFoundById) {
  JobSpec ready = Kept(), later = Kept(), other = Kept();
  later.run_at = clock_.WallNow() + Millis{3'600'000};
  Submit({ready, later, other});
  EXPECT_TRUE(ledger_.jobs.empty());
  for (const JobSpec& job : {ready, later}) {
    Cancel(job.id.uuid, false);
    EXPECT_EQ(Answer(), CancelEffect::kCancelled);
    EXPECT_EQ(Outcome(job), JobState::kCancelled) << "its end is on the record";
    EXPECT_EQ(ledger_.jobs.at(job.id).spec.kind, "work");
    EXPECT_EQ(ledger_.cancels.at(job.id.uuid).reason, "wrong day");
  }
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled + queue_.Depth(ShardId{0})->in_flight, 0U);
  Cancel(ids_.Next<JobId>().uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kUnknown) << "looked for, and there is none";
  Cancel(ready.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kEnded);
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].second.id, other.id);
}

TEST_F(DispatcherCancelTest, AJobOfTheQueueThatRunsIsStopped) {
  Hello("w", 10);
  const JobSpec job = Kept();
  Submit({job});
  Cancel(job.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kCancelling);
  EXPECT_TRUE(ledger_.jobs.contains(job.id)) << "the ledger's from now on: no takeover forgets the request";
  ASSERT_EQ(revokes_.size(), 1U);
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  ExpectEmptyQueue();
}

TEST_F(DispatcherCancelTest, AJobOfTheQueueWithASinkIsFenced) {
  JobSpec job = Kept();
  job.options.has_sink = true;
  Submit({job});
  Cancel(job.id.uuid, false);
  EXPECT_EQ(Answer(), CancelEffect::kCancelling);
  EXPECT_EQ(Outcome(job), std::nullopt) << "an attempt of a former owner could still publish";
  ExpectEmptyQueue();
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_TRUE(grants_[0].second.fence_only);
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

TEST_F(DispatcherCancelTest, OneMessageNamesAnItemTwiceAndAJobOfARun) {
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  const JobSpec single = Job(), kept = Kept();
  Submit({single, kept});
  wire::Cancel cancel{.request = 6, .org = kDefaultOrg, .items = {}, .actor = "cli me", .reason = {}};
  for (const JobId& id : {single.id, kept.id, jobs[0].id, kept.id, single.id}) cancel.items.push_back({id.uuid, false});
  Handle(event::FromClient{.peer = "c", .message = cancel});
  Settle();
  const auto* reply = Last<wire::CancelReply>();
  ASSERT_NE(reply, nullptr);
  ASSERT_EQ(reply->items.size(), 5U);
  for (const std::size_t i : {0U, 1U, 3U, 4U}) {
    EXPECT_EQ(reply->items[i].id, cancel.items[i].id);
    EXPECT_EQ(reply->items[i].effect, CancelEffect::kCancelled) << i;
  }
  EXPECT_EQ(reply->items[2].effect, CancelEffect::kUnknown);
  EXPECT_EQ(reply->items[2].state, run.id.ToString()) << "it is cancelled with its run";
  EXPECT_EQ(EndOf(run), RunState::kRunning);
}

TEST_F(DispatcherCancelTest, ARunOfAnotherOrgIsNeitherCancelledNorWatched) {
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  Handle(event::FromClient{.peer = "c", .message = wire::Watch{.request = 8, .org = OrgId{77}, .run = run.id}});
  Handle(event::FromClient{
      .peer = "c",
      .message = wire::Cancel{.request = 9, .org = OrgId{77}, .items = {{run.id.uuid, true}}, .actor = {}, .reason = {}}});
  Settle();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->request, 8U);
  EXPECT_EQ(Last<wire::Problem>()->code, "not_found");
  EXPECT_EQ(Last<wire::RunUpdate>(), nullptr);
  EXPECT_EQ(Answer(), CancelEffect::kUnknown);
  EXPECT_TRUE(ledger_.cancels.empty());
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

// Of a job of `durability: redis` that the ledger knows since its first attempt was handed back.
TEST_F(DispatcherCancelTest, ADeadlineThatPassesWhileTheRequestIsWrittenEndsTheJobOnce) {
  JobSpec job = Kept();
  job.options.has_sink = true;
  job.options.deadline = clock_.WallNow() + Millis{10'000};
  Submit({job});
  Hello("w", 1);
  ASSERT_EQ(grants_.size(), 1U);
  End(0, AttemptEnd::kHandedBack);
  ASSERT_TRUE(ledger_.jobs.contains(job.id));
  hold_replies_ = true;
  Advance(Millis{11'000});  // its entry comes out of the queue, and the answer is under way
  Handle(event::FromClient{.peer = "c",
                           .message = wire::Cancel{.request = 5,
                                                   .org = kDefaultOrg,
                                                   .items = {{.id = job.id.uuid, .is_run = false}},
                                                   .actor = "cli me",
                                                   .reason = "late"}});
  Flush();
  std::vector<Event> events;
  pump_.Step(events);
  for (Event& event : events) Handle(std::move(event));
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  Settle();
  EXPECT_EQ(Outcome(job), JobState::kDead);
  Hello("x", 10);
  Advance(Millis{1000});
  EXPECT_EQ(grants_.size(), 1U) << "it has ended: nothing is to be fenced";
  ExpectEmptyQueue();
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

TEST_F(DispatcherCancelTest, ARevokeThatWasLostIsRepeatedWithTheNextBeat) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  Cancel(job.id.uuid, false);
  ASSERT_EQ(revokes_.size(), 1U);
  Advance(Millis{600});
  Beat("w", 10, {{job.id, grants_[0].second.token}});
  ASSERT_EQ(revokes_.size(), 2U);
  EXPECT_EQ(revokes_[1].reason, "cancelled");
}

TEST_F(DispatcherCancelTest, ALoadThatWaitsForItsBackoffIsFencedAtOnce) {
  Hello("w", 10);
  JobSpec job = Load();
  job.retry.backoff_base = job.retry.backoff_cap = Millis{3'600'000};
  job.options.backoff = Backoff::kFixed;
  job.retry.max_attempts = 5;
  Submit({job});
  End(0, AttemptEnd::kFailed);
  Cancel(job.id.uuid, false);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_TRUE(grants_[1].second.fence_only);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

TEST_F(DispatcherCancelTest, AFenceHasItsTimeAlsoAfterTheDeadline) {
  Hello("w", 10);
  JobSpec job = Load();
  job.timeout = Millis{60'000};
  job.options.deadline = clock_.WallNow() + Millis{1000};
  std::vector<JobSpec> jobs{job};
  const RunSpec run = SubmitRun(jobs);
  EXPECT_LE(grants_.at(0).second.timeout_ms, 1000U);
  Cancel(run.id.uuid, true);
  Advance(Millis{2000});
  End(0, AttemptEnd::kCancelled);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[1].second.timeout_ms, 60'000U);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(EndOf(run), RunState::kCancelled);
}

TEST_F(DispatcherCancelTest, AStopNobodyAskedForStartsElsewhere) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  End(0, AttemptEnd::kCancelled);
  ASSERT_EQ(grants_.size(), 2U);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(EndOf(run), RunState::kSucceeded);
}

TEST_F(DispatcherCancelTest, ATakeoverCompletesAReplacement) {
  Hello("w", 10);
  std::vector<JobSpec> old_jobs{Job()}, new_jobs{Job()};
  const RunSpec old_run = SubmitRun(old_jobs);
  bool down = false;  // the new run gets in, its cancel row does not
  ledger_.before_commit = [&](const OwnerBatch& batch) { down = down || !batch.runs.empty(); };
  ledger_.fault = [&] { return down ? test::LedgerFault::kUnavailable : test::LedgerFault::kNone; };
  const RunSpec new_run = SubmitRun(new_jobs, "cancel");
  EXPECT_TRUE(ledger_.runs.contains(new_run.id));
  EXPECT_TRUE(ledger_.cancels.empty());
  ledger_.before_commit = nullptr;
  queue_.Wipe();
  down = false;
  ledger_.fault = nullptr;
  Submit({Job()});
  for (int i = 0; i < 4; ++i) Advance(Millis{500});
  EXPECT_TRUE(ledger_.cancels.contains(old_run.id.uuid));
  Beat("w", 40);
  EXPECT_EQ(EndOf(old_run), RunState::kCancelled);
}

}  // namespace
}  // namespace millrace
