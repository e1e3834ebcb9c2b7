// A shard goes from one owner to the next: rebalancing, and attempts that go on.
#include <gtest/gtest.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class HandoverTest : public testing::DispatcherTest {
 protected:
  using Held = std::vector<wire::Hello::Held>;
  void Orphans(const std::string& peer, Held items) {
    Handle(event::FromWorker{.peer = peer, .message = wire::Orphans{.worker = workers_.at(peer), .items = std::move(items)}});
    Settle();
  }
  Held HeldOf(std::size_t grant) { return {{grants_.at(grant).second.id, grants_.at(grant).second.token}}; }
  // The broker takes its shard with a higher epoch, as after an unknown outcome; the queue goes on.
  void TakeAnew() {
    Handle(event::QueueReplies{});  // nothing
    pump_.Post(command::TakeShardAnew{.dropped = Hold(), .reason = "test"});
    Handle(event::ShardLost{.shard = ShardId{0}, .reason = "test", .owner_name = {}});
    Advance(Millis{250});
    ASSERT_TRUE(dispatcher_.Ready(ShardId{0}));
  }
  ShardHold Hold() { return {.shard = ShardId{0}, .epoch = ledger_.EpochOf(ShardId{0})}; }
};

TEST_F(HandoverTest, AnAttemptGoesOnUnderTheNewOwner) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1u);
  TakeAnew();
  ASSERT_EQ(revokes_.size(), 1u);
  EXPECT_EQ(revokes_[0].reason, wire::kHandedOver);
  EXPECT_EQ(grants_.size(), 1u) << "its worker has time to speak up";
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 1u);
  ASSERT_EQ(adopts_.size(), 1u);
  EXPECT_EQ(adopts_[0].token, grants_[0].second.token) << "the token is burnt into the sink's fence: it stays";
  for (int i = 0; i < 6; ++i) {
    Beat("w", 10, HeldOf(0));
    Advance(kHeartbeatInterval);
  }
  EXPECT_EQ(grants_.size(), 1u);
  End(0, AttemptEnd::kSucceeded);
  EXPECT_TRUE(replies_.back().accepted);
  EXPECT_EQ(Outcome(job), JobState::kSucceeded);
  EXPECT_EQ(ledger_.jobs.at(job.id).attempts.size(), 0u);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0u);
}

TEST_F(HandoverTest, WhatNobodyRunsStartsAgainWhenTheWindowIsOver) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  TakeAnew();
  Beat("w", 10);
  Advance(kAdoptionWindow - Millis{1});
  EXPECT_EQ(grants_.size(), 1u);
  Beat("w", 10);
  Advance(Millis{2});
  ASSERT_EQ(grants_.size(), 2u);
  EXPECT_GT(grants_[1].second.token, grants_[0].second.token);
  ASSERT_EQ(ledger_.jobs.at(job.id).attempts.size(), 1u) << "the end of the old attempt is recorded before the new one begins";
  const Token ended = ledger_.jobs.at(job.id).attempts[0].report.token;
  EXPECT_GT(ended, grants_[0].second.token);
  EXPECT_LT(ended, grants_[1].second.token);
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 0u) << "too late";
  EXPECT_EQ(revokes_.back().token, grants_[0].second.token);
  EXPECT_EQ(revokes_.back().reason, "no_lease");
  End(0, AttemptEnd::kSucceeded);
  EXPECT_FALSE(replies_.back().accepted);
}

TEST_F(HandoverTest, AnAttemptWhoseEndIsRecordedIsNotAdopted) {
  Submit({Job()});
  Hello("w", 10);
  End(0, AttemptEnd::kFailed, true, 10);
  Beat("w", 10);
  Advance(Millis{1000});
  Beat("w", 10);
  ASSERT_EQ(grants_.size(), 2u);
  Beat("w", 10, HeldOf(1));
  TakeAnew();
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 0u);
  Orphans("w", HeldOf(1));
  EXPECT_EQ(dispatcher_.adopted(), 1u);
}

// The clocks of two brokers may be apart by more than any bound: a job runs although its time has not come here.
TEST_F(HandoverTest, AnAttemptThatAnOwnerWhoseClockIsAheadBeganGoesOn) {
  for (const bool of_run : {false, true}) {
    std::vector<JobSpec> jobs{Job()};
    jobs[0].run_at = clock_.WallNow() + Millis{600'000};
    if (of_run)
      SubmitRun(jobs);
    else
      Submit(jobs);
    Hello("w", 10);
    clock_.StepWall(Millis{600'000});
    Advance(Millis{200});
    const std::size_t first = grants_.size() - 1;
    ASSERT_EQ(grants_.at(first).second.id, jobs[0].id);
    clock_.StepWall(Millis{-600'000});
    TakeAnew();
    Orphans("w", HeldOf(first));
    ASSERT_FALSE(adopts_.empty());
    EXPECT_EQ(adopts_.back().token, grants_[first].second.token);
    End(first, AttemptEnd::kSucceeded);
    EXPECT_EQ(Outcome(jobs[0]), JobState::kSucceeded);
    EXPECT_EQ(ledger_.jobs.at(jobs[0].id).attempts.size(), 0U);
  }
}

// The end of its attempt is durable, but the owner died before it told the queue.
TEST_F(HandoverTest, WhatNobodyRunsWaitsForTheTimeItHad) {
  for (const bool of_run : {false, true}) {
    std::vector<JobSpec> jobs{Job()};
    jobs[0].retry = {.max_attempts = 3, .backoff_base = Millis{20'000}, .backoff_cap = Millis{20'000}};
    jobs[0].options.backoff = Backoff::kFixed;
    if (of_run)
      SubmitRun(jobs);
    else
      Submit(jobs);
    Hello("w", 10);
    End(grants_.size() - 1, AttemptEnd::kFailed, true, 10);
    const auto& attempts = ledger_.jobs.at(jobs[0].id).attempts;
    ASSERT_EQ(attempts.size(), 1U);
    const WallTime due = attempts[0].next_run_at;
    queue_.Deliver(ShardId{0}, jobs[0].id);
    TakeAnew();
    const std::size_t granted = grants_.size();
    const auto advance = [&](Millis by) {
      Beat("w", 10 + granted);
      Advance(by);
    };
    for (int i = 0; i < 8; ++i) advance(kAdoptionWindow / 2);
    ASSERT_EQ(attempts.size(), 2U) << "whether another attempt began is not known";
    EXPECT_EQ(attempts[1].report.end, AttemptEnd::kLost);
    EXPECT_EQ(attempts[1].counters.failures, 1U);
    EXPECT_EQ(attempts[1].next_run_at, due);
    EXPECT_EQ(grants_.size(), granted) << "its backoff is not over";
    for (int i = 0; i < 8; ++i) advance(kAdoptionWindow / 2);
    ASSERT_EQ(grants_.size(), granted + 1);
    End(granted, AttemptEnd::kSucceeded);
    EXPECT_EQ(Outcome(jobs[0]), JobState::kSucceeded);
    EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  }
}

TEST_F(HandoverTest, WhatIsCancelledIsFencedWhenTheWindowIsOverWhateverItWaitedFor) {
  JobSpec job = Job();
  job.options.has_sink = true;
  job.retry = {.max_attempts = 3, .backoff_base = Millis{3'600'000}, .backoff_cap = Millis{3'600'000}};
  job.options.backoff = Backoff::kFixed;
  Submit({job});
  Hello("w", 10);
  End(0, AttemptEnd::kFailed, true, 10);
  queue_.Deliver(ShardId{0}, job.id);
  ledger_.cancels[job.id.uuid] = {job.id.uuid, false, kDefaultOrg, "cli me", "wrong day", {}};
  TakeAnew();
  Beat("w", 10);
  Advance(kAdoptionWindow - Millis{1});
  EXPECT_EQ(grants_.size(), 1U) << "its attempt may run";
  Beat("w", 10);
  Advance(Millis{2});
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_TRUE(grants_[1].second.fence_only);
  End(1, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

// Attempts of durability redis are not adopted: while such a job waits to start again, its old one may go on.
TEST_F(HandoverTest, AJobOfTheQueueThatIsCancelledWhileItWaitsIsStoppedWhereItRuns) {
  JobSpec job = Job();
  job.options.durability = Durability::kRedis;
  Submit({job});
  Hello("w", 1);
  ASSERT_EQ(grants_.size(), 1U);
  TakeAnew();
  ASSERT_EQ(grants_.size(), 1U) << "nobody has credit";
  wire::Cancel cancel{
      .request = 5, .org = kDefaultOrg, .items = {{.id = job.id.uuid, .is_run = false}}, .actor = "t", .reason = ""};
  Handle(event::FromClient{.peer = "c", .message = cancel});
  Settle();
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  const std::size_t revoked = revokes_.size();
  Orphans("w", HeldOf(0));
  ASSERT_EQ(revokes_.size(), revoked + 1);
  EXPECT_EQ(revokes_.back().token, grants_[0].second.token);
  EXPECT_EQ(revokes_.back().reason, wire::kNoLease);
}

TEST_F(HandoverTest, NothingIsAdoptedOfAQueueThatLostItsState) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  queue_.Wipe();
  TakeAnew();
  ASSERT_EQ(grants_.size(), 2u) << "what was delivered is not known: nothing waits";
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 0u);
  TakeAnew();
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 0u) << "nor later: the token is of an epoch that the queue does not reach back to";
  Orphans("w", HeldOf(1));
  EXPECT_EQ(dispatcher_.adopted(), 1u);
}

// As `millrace up` after a kill: nobody is left to say what he runs, and the history has every delivery nevertheless.
TEST_F(HandoverTest, WhatARestartedQueueRemembersIsLostAtOnceAndRecorded) {
  const JobSpec job = Job();
  std::vector<JobSpec> of_run{Job()};
  Submit({job});
  SubmitRun(of_run);
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 2u);
  queue_.Restart();
  TakeAnew();
  ASSERT_EQ(grants_.size(), 4u) << "nobody is waited for";
  for (const JobSpec& each : {job, of_run[0]}) {
    ASSERT_EQ(ledger_.jobs.at(each.id).attempts.size(), 1u);
    const AttemptRow& lost = ledger_.jobs.at(each.id).attempts[0];
    EXPECT_EQ(lost.report.end, AttemptEnd::kLost);
    EXPECT_EQ(lost.report.error_class, "worker_lost");
    EXPECT_EQ(lost.counters.deliveries, 1u);
    EXPECT_EQ(lost.counters.failures, 0u);
  }
  Orphans("w", HeldOf(0));
  EXPECT_EQ(dispatcher_.adopted(), 0u);
  End(2, AttemptEnd::kSucceeded);
  End(3, AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->counters.deliveries, 2u);
  EXPECT_EQ(ledger_.jobs.at(of_run[0].id).outcome->counters.deliveries, 2u);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0u);
}

TEST_F(HandoverTest, AnAttemptOfARunGoesOnAndTheRunEnds) {
  std::vector<JobSpec> jobs{Job(), Job()};
  jobs[1].depends_on = {jobs[0].id};
  const RunSpec run = SubmitRun(jobs);
  Hello("w", 10);
  TakeAnew();
  TakeAnew();  // twice: the token stays what it is
  Orphans("w", HeldOf(0));
  End(0, AttemptEnd::kSucceeded, true, 10);
  ASSERT_EQ(grants_.size(), 2u);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kSucceeded);
}

TEST_F(HandoverTest, AJobThatIsCancelledMeanwhileIsStopped) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  TakeAnew();
  wire::Cancel cancel{
      .request = 5, .org = kDefaultOrg, .items = {{.id = job.id.uuid, .is_run = false}}, .actor = "t", .reason = ""};
  Handle(event::FromClient{.peer = "c", .message = cancel});
  Settle();
  EXPECT_EQ(Outcome(job), std::nullopt) << "its attempt may run";
  Orphans("w", HeldOf(0));
  EXPECT_EQ(revokes_.back().reason, "cancelled");
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

// The request came while nobody owned the shard: what a worker may still run has not ended, whether or not it has a sink.
TEST_F(HandoverTest, AJobOfACancelledRunEndsWhenItsWorkerHasStoppedIt) {
  for (const bool has_sink : {false, true}) {
    std::vector<JobSpec> jobs{Job(), Job()};
    jobs[0].options.has_sink = has_sink;
    jobs[1].depends_on = {jobs[0].id};
    const RunSpec run = SubmitRun(jobs);
    Hello("w", 10);
    const std::size_t first = grants_.size() - 1;
    ASSERT_EQ(grants_[first].second.id, jobs[0].id);
    ledger_.cancels[run.id.uuid] = {run.id.uuid, true, kDefaultOrg, "cli me", "wrong day", {}};
    TakeAnew();
    EXPECT_EQ(Outcome(jobs[0]), std::nullopt) << "its attempt may run";
    EXPECT_EQ(Outcome(jobs[1]), JobState::kCancelled);
    EXPECT_FALSE(ledger_.run_outcomes.contains(run.id));
    Orphans("w", HeldOf(first));
    ASSERT_FALSE(revokes_.empty());
    EXPECT_EQ(revokes_.back().token, grants_[first].second.token);
    EXPECT_EQ(revokes_.back().reason, "cancelled");
    EXPECT_EQ(Outcome(jobs[0]), std::nullopt) << "it is not gone yet";
    End(first, AttemptEnd::kCancelled, true, 10);
    if (has_sink) {
      ASSERT_EQ(grants_.size(), first + 2);
      EXPECT_TRUE(grants_.back().second.fence_only);
      End(first + 1, AttemptEnd::kCancelled);
    }
    EXPECT_EQ(Outcome(jobs[0]), JobState::kCancelled);
    EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kCancelled);
    EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  }
}

TEST_F(HandoverTest, AJobOfACancelledRunThatNobodyRunsEndsWhenTheWindowIsOver) {
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs);
  Hello("w", 10);
  ledger_.cancels[run.id.uuid] = {run.id.uuid, true, kDefaultOrg, "cli me", "wrong day", {}};
  TakeAnew();
  Advance(kAdoptionWindow - Millis{1});
  EXPECT_EQ(Outcome(jobs[0]), std::nullopt);
  Advance(Millis{2});
  EXPECT_EQ(Outcome(jobs[0]), JobState::kCancelled);
  ASSERT_EQ(ledger_.jobs.at(jobs[0].id).attempts.size(), 1U);
  EXPECT_EQ(ledger_.jobs.at(jobs[0].id).attempts[0].report.error_class, "worker_lost");
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kCancelled);
}

TEST_F(HandoverTest, AYieldedShardStartsNothingAndIsReleasedWhenNothingIsUnderWay) {
  Hello("w", 1);
  Submit({Job(), Job()});
  ASSERT_EQ(grants_.size(), 1u);
  hold_replies_ = true;  // the queue's answers are late
  End(0, AttemptEnd::kSucceeded, true, 10);
  const ShardHold hold = Hold();
  Handle(event::YieldShard{.hold = hold});
  Settle();
  EXPECT_TRUE(pump_.holds().contains(ShardId{0})) << "an operation of the queue is under way";
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  Settle();
  EXPECT_FALSE(pump_.holds().contains(ShardId{0}));
  EXPECT_FALSE(dispatcher_.Ready(ShardId{0}));
}

// Places in what is remembered of lost attempts are for jobs that may have one.
class CrowdedHandoverTest : public HandoverTest, public ::testing::WithParamInterface<bool> {};

// A takeover changes nothing where the queue was there all the time: it says what of the ledger's was delivered.
TEST_P(CrowdedHandoverTest, ALostAttemptIsStoppedHoweverManyWaitingJobsWereCancelledSince) {
  Submit({Job()});
  Hello("w", 1);
  ASSERT_EQ(grants_.size(), 1u);
  clock_.Advance(kLeaseTtl);
  Advance(Millis{1000});
  Hello("w", 0);
  queue_.take_page = 1000;
  std::vector<wire::Cancel> cancels;
  for (std::size_t n = 0; n < kRecentlyEndedMax; n += 512) {
    std::vector<JobSpec> jobs;
    wire::Cancel& cancel = cancels.emplace_back();
    cancel = {.request = 5, .org = kDefaultOrg, .items = {}, .actor = "cli me", .reason = {}};
    for (std::size_t i = 0; i < 512; ++i) {
      jobs.push_back(Job());
      if (i % 2 == 0) jobs.back().options.durability = Durability::kRedis;
      cancel.items.push_back({jobs.back().id.uuid, false});
    }
    Submit(jobs);
  }
  if (GetParam()) TakeAnew();
  for (wire::Cancel& cancel : cancels) {
    Handle(event::FromClient{.peer = "c", .message = std::move(cancel)});
    Settle();
    ASSERT_EQ(Last<wire::CancelReply>()->items.back().effect, CancelEffect::kCancelled);
  }
  revokes_.clear();
  Orphans("w", HeldOf(0));
  ASSERT_EQ(revokes_.size(), 1u);
  EXPECT_EQ(revokes_[0].reason, wire::kNoLease);
}

INSTANTIATE_TEST_SUITE_P(Takeover, CrowdedHandoverTest, ::testing::Bool());

// What waits may have been delivered by an owner before, and the ledger says nothing of it.
TEST_F(HandoverTest, AnAttemptOfAnOwnerBeforeIsStoppedWhenItsJobIsCancelledWhileItWaits) {
  for (const bool kept : {true, false}) {
    JobSpec job = Job();
    if (kept) job.options.durability = Durability::kRedis;
    Submit({job});
    Hello("w", 1);
    ASSERT_EQ(grants_.size(), 1u);
    const Held old = HeldOf(0);
    grants_.clear();
    if (!kept) queue_.Restart();  // it cannot vouch for what it delivered
    TakeAnew();
    Hello("w", 0);
    if (!kept) queue_.ForgetDelivered(ShardId{0});
    Handle(event::FromClient{
        .peer = "c",
        .message =
            wire::Cancel{.request = 5, .org = kDefaultOrg, .items = {{job.id.uuid, false}}, .actor = "cli me", .reason = {}}});
    Settle();
    ASSERT_EQ(Last<wire::CancelReply>()->items[0].effect, CancelEffect::kCancelled);
    revokes_.clear();
    Orphans("w", old);
    ASSERT_EQ(revokes_.size(), 1u) << kept;
    EXPECT_EQ(revokes_[0].reason, wire::kNoLease);
  }
}

// The request is found by the rebuild.
TEST_F(HandoverTest, AnAttemptOfAnOwnerBeforeIsStoppedWhenItsJobWasCancelledMeanwhile) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 1);
  ASSERT_EQ(grants_.size(), 1u);
  const Held old = HeldOf(0);
  grants_.clear();
  const CancelRow request{job.id.uuid, false, kDefaultOrg, "cli", "why", clock_.WallNow()};
  ASSERT_TRUE(ledger_.RequestCancel(std::span{&request, 1}, {}));
  queue_.Restart();
  queue_.ForgetDelivered(ShardId{0});
  TakeAnew();
  ASSERT_TRUE(ledger_.jobs.at(job.id).outcome);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->state, JobState::kCancelled);
  Hello("w", 0);
  revokes_.clear();
  Orphans("w", old);
  ASSERT_EQ(revokes_.size(), 1u);
  EXPECT_EQ(revokes_[0].reason, wire::kNoLease);
}

// A standby leads a client to the owner by what the ledger says of it.
TEST_F(HandoverTest, BrokersOfOneShardSayThatTheyLiveToo) {
  test::MemoryLedger ledger{clock_, 1};
  const OwnerId asks = ids_.Next<OwnerId>();
  const auto others = [&] { return ledger.AnnounceBroker(asks, {}, false, {}).value().size() - 1; };
  const auto make = [&](bool sole) {
    return LedgerPump(
        {.owner = ids_.Next<OwnerId>(), .owner_name = "x", .shards = {ShardId{0}}, .shard_count = 1, .sole = sole}, ledger,
        clock_);
  };
  LedgerPump a = make(false), b = make(false);
  std::vector<Event> out;
  for (int s = 0; s < 20; ++s, clock_.Advance(Millis{1000})) a.Step(out), b.Step(out);
  EXPECT_EQ(others(), 2u);
  EXPECT_EQ(a.holds().size(), 1u) << "it stays where it is";
  EXPECT_EQ(b.holds().size(), 0u);
  EXPECT_TRUE(std::ranges::none_of(out, [](const Event& e) { return std::holds_alternative<event::YieldShard>(e); }));
  a.Release();
  EXPECT_EQ(others(), 1u) << "who leaves says so";
  b.Release();
  LedgerPump alone = make(true);
  alone.Step(out);
  EXPECT_EQ(alone.holds().size(), 1u);
  EXPECT_EQ(others(), 0u) << "there is nobody to be told";
}

TEST_F(HandoverTest, ShardsAreSharedByTheBrokersThatLive) {
  test::MemoryLedger ledger{clock_, 4};
  const std::vector<ShardId> all{ShardId{0}, ShardId{1}, ShardId{2}, ShardId{3}};
  const auto make = [&](OwnerId id) {
    return LedgerPump({.owner = id, .owner_name = "x", .shards = all, .shard_count = 4}, ledger, clock_);
  };
  std::size_t yields = 0;
  const auto step = [&](LedgerPump& pump) {
    std::vector<Event> out;
    pump.Step(out);
    for (const Event& e : out)
      if (const auto* yield = std::get_if<event::YieldShard>(&e)) {
        ++yields;
        pump.Post(command::ReleaseShard{.hold = yield->hold});
      }
  };
  LedgerPump a = make(ids_.Next<OwnerId>());
  step(a);
  EXPECT_EQ(a.holds().size(), 4u);
  {
    LedgerPump blink = make(ids_.Next<OwnerId>());  // comes and is gone before anybody trusts it
    step(blink);
    EXPECT_TRUE(blink.holds().empty());
  }
  LedgerPump b = make(ids_.Next<OwnerId>());
  for (int s = 0; s < 5; ++s, clock_.Advance(Millis{1000})) step(a), step(b);
  EXPECT_EQ(yields, 0u) << "not at once";
  for (int s = 0; s < 10; ++s, clock_.Advance(Millis{1000})) step(a), step(b);
  EXPECT_EQ(yields, 2u);
  EXPECT_EQ(a.holds().size(), 2u);
  EXPECT_EQ(b.holds().size(), 2u);
  for (int s = 0; s < 30; ++s, clock_.Advance(Millis{1000})) step(a), step(b);
  EXPECT_EQ(yields, 2u) << "nothing goes to and fro";
  b.Release();
  for (int s = 0; s < 2; ++s, clock_.Advance(Millis{1000})) step(a);
  EXPECT_EQ(a.holds().size(), 4u) << "who leaves says so";
  LedgerPump c = make(ids_.Next<OwnerId>());
  for (int s = 0; s < 9; ++s, clock_.Advance(Millis{1000})) step(a), step(c);
  EXPECT_EQ(c.holds().size(), 2u);
  for (int s = 0; s < 7; ++s, clock_.Advance(Millis{1000})) step(a);  // c was killed
  EXPECT_EQ(a.holds().size(), 4u);
}

}  // namespace
}  // namespace millrace
