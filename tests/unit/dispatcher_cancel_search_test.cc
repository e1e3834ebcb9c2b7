// Cancelling jobs that only the queue has: whoever asks gets at jobs of their own org alone, and requests that look for the
// same job wait for each other without asking the ledger again and again.
#include <gtest/gtest.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

constexpr OrgId kOther{77};

class DispatcherCancelSearchTest : public testing::DispatcherTest {
 protected:
  JobSpec Kept(OrgId org = kDefaultOrg) {
    JobSpec job = Job();
    job.org = org;
    job.options.durability = Durability::kRedis;
    return job;
  }
  void Ask(std::uint64_t request, OrgId org, const std::vector<JobSpec>& jobs) {
    wire::Cancel cancel{.request = request, .org = org, .items = {}, .actor = "cli me", .reason = {}};
    for (const JobSpec& job : jobs) cancel.items.push_back({job.id.uuid, false});
    Handle(event::FromClient{.peer = "c", .message = std::move(cancel)});
    Settle();
  }
  // The ledger is asked about it before it starts: its id is an old one.
  JobSpec Doubtful() {
    JobSpec job = Kept();
    job.options.deadline = clock_.WallNow() + 2 * kFreshIdAge;
    clock_.Advance(kFreshIdAge + Millis{1000});
    return job;
  }
  void FailNextLedgerRead() {
    ledger_.fault = [asked = 0]() mutable { return asked++ == 0 ? test::LedgerFault::kUnavailable : test::LedgerFault::kNone; };
  }
  // Of each item; empty: the request is not answered.
  std::vector<CancelEffect> Answer(std::uint64_t request) {
    std::vector<CancelEffect> effects;
    for (const wire::Message& message : client_)
      if (const auto* reply = std::get_if<wire::CancelReply>(&message); reply != nullptr && reply->request == request)
        for (const auto& item : reply->items) {
          effects.push_back(item.effect);
          EXPECT_TRUE(item.effect != CancelEffect::kUnknown || item.state.empty());
        }
    return effects;
  }
  std::size_t Requeued() const {
    std::size_t n = 0;
    for (const QueueOp& op : executed_)
      if (const auto* requeue = std::get_if<queue_op::Requeue>(&op)) n += requeue->entries.size();
    return n;
  }
  using Effects = std::vector<CancelEffect>;
};

TEST_F(DispatcherCancelSearchTest, ARequestOfAnotherOrgMovesNothing) {
  const JobSpec first = Kept(), second = Kept(), third = Kept(), theirs = Kept(kOther);
  JobSpec later = Kept();
  later.run_at = clock_.WallNow() + Millis{3'600'000};
  JobSpec expiring = Kept();
  expiring.options.deadline = clock_.WallNow() + Millis{3'600'000};
  Submit({first, second, third, later, expiring});
  Submit({theirs});
  Ask(5, kOther, {second, later, expiring, third, Kept()});
  EXPECT_EQ(Answer(5), Effects(5, CancelEffect::kUnknown)) << "as for an id that nobody knows";
  EXPECT_EQ(Requeued(), 0U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 5U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 1U);
  EXPECT_TRUE(ledger_.jobs.empty());
  EXPECT_TRUE(ledger_.cancels.empty());
  Ask(6, kOther, {theirs});
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kCancelled}) << "their own they find";
  Hello("w", 10);
  EXPECT_EQ(Granted(), (std::vector<JobId>{first.id, second.id, third.id, expiring.id})) << "in the order of their lines";
}

TEST_F(DispatcherCancelSearchTest, ARequestOfAnotherOrgDoesNotStandInTheWay) {
  const JobSpec job = Kept();
  Submit({job, Kept()});
  hold_replies_ = true;
  Ask(5, kOther, {job});  // its look is under way
  Ask(6, kDefaultOrg, {job});
  EXPECT_TRUE(Answer(5).empty());
  LetRepliesThrough();
  EXPECT_EQ(Answer(5), Effects{CancelEffect::kUnknown});
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kCancelled});
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

TEST_F(DispatcherCancelSearchTest, RequestsForTheSameJobWaitForTheFirst) {
  const JobSpec job = Kept(), other = Kept();
  Submit({job, other});
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {job});
  Ask(6, kDefaultOrg, {job});
  Ask(7, kDefaultOrg, {job});
  EXPECT_EQ(state_reads_, 3U) << "one each; the second and the third wait";
  Advance(Millis{1000});
  EXPECT_EQ(state_reads_, 3U);
  EXPECT_TRUE(Answer(6).empty());
  LetRepliesThrough();
  EXPECT_EQ(state_reads_, 6U) << "and one each when there is something new";
  EXPECT_EQ(Answer(5), Effects{CancelEffect::kCancelled});
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kEnded});
  EXPECT_EQ(Answer(7), Effects{CancelEffect::kEnded});
  Hello("w", 10);
  EXPECT_EQ(Granted(), std::vector<JobId>{other.id});
}

TEST_F(DispatcherCancelSearchTest, RequestsForAJobThatIsNotThereWaitForTheFirst) {
  Submit({Kept()});
  const JobSpec none = Kept();
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {none});
  Ask(6, kDefaultOrg, {none, none});
  LetRepliesThrough();
  EXPECT_EQ(Answer(5), Effects{CancelEffect::kUnknown});
  EXPECT_EQ(Answer(6), Effects(2, CancelEffect::kUnknown));
  EXPECT_EQ(state_reads_, 5U) << "the second looks too: the job may have come behind the first one's look";
}

TEST_F(DispatcherCancelSearchTest, TheSecondLooksForItselfWhenTheFirstFails) {
  const JobSpec job = Kept(), other = Kept();
  Submit({job, other});
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {job});
  Ask(6, kDefaultOrg, {job});
  FailNextLedgerRead();
  LetRepliesThrough();
  ledger_.fault = nullptr;
  ASSERT_NE(Last<wire::Problem>(), nullptr) << "the first one's second look into the ledger";
  EXPECT_TRUE(Answer(5).empty());
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kCancelled});
  Hello("w", 10);
  EXPECT_EQ(Granted(), std::vector<JobId>{other.id});
}

TEST_F(DispatcherCancelSearchTest, RequestsThatOverlapDoNotWaitForEachOther) {
  const JobSpec a = Kept(), b = Kept(), c = Kept();
  Submit({a, b, c});
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {a, b});
  Ask(6, kDefaultOrg, {b, c});
  Ask(7, kDefaultOrg, {c, a});
  LetRepliesThrough();
  EXPECT_EQ(Answer(5), Effects(2, CancelEffect::kCancelled));
  EXPECT_EQ(Answer(6), (Effects{CancelEffect::kEnded, CancelEffect::kCancelled}));
  EXPECT_EQ(Answer(7), Effects(2, CancelEffect::kEnded));
  EXPECT_LE(state_reads_, 9U);
  for (const JobSpec& job : {a, b, c}) EXPECT_EQ(Outcome(job), JobState::kCancelled);
}

// What the request has found goes back to where it was, also when that is the schedule.
TEST_F(DispatcherCancelSearchTest, ARequestThatFailsStartsNothingBeforeItsTime) {
  JobSpec later = Kept();
  later.run_at = clock_.WallNow() + Millis{3'600'000};
  const JobSpec ready = Kept();
  Submit({ready, later});
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {ready, later});
  ledger_.fault = [] { return test::LedgerFault::kUnavailable; };  // when it is asked again
  LetRepliesThrough();
  EXPECT_TRUE(Answer(5).empty());
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  ledger_.fault = nullptr;
  Advance(Millis{1000});
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 1U);
  Hello("w", 10);
  EXPECT_EQ(Granted(), std::vector<JobId>{ready.id});
}

// Out of its line, but neither started nor ended: no look finds it.
TEST_F(DispatcherCancelSearchTest, RequestsWaitForWhatTheLedgerIsAskedAbout) {
  const JobSpec job = Doubtful();
  Submit({job});
  hold_known_ = true;
  Hello("w", 1);
  Ask(5, kDefaultOrg, {job});
  Ask(6, kDefaultOrg, {job});
  Ask(7, kOther, {job});
  ASSERT_EQ(held_known_.size(), 1U);
  EXPECT_TRUE(Answer(5).empty());
  EXPECT_TRUE(Answer(6).empty());
  LetKnownThrough();
  EXPECT_EQ(Granted(), std::vector<JobId>{job.id});
  EXPECT_EQ(Answer(5), Effects{CancelEffect::kCancelling});
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kCancelling});
  EXPECT_EQ(Answer(7), Effects{CancelEffect::kUnknown});
  EXPECT_FALSE(revokes_.empty());
}

TEST_F(DispatcherCancelSearchTest, WhatHasExpiredWhenTheLedgerIsAskedEndsByItsTimeForAllWhoLook) {
  const JobSpec job = Doubtful();
  Submit({job, Kept()});
  hold_known_ = true;
  Advance(2 * kFreshIdAge);
  ASSERT_EQ(held_known_.size(), 1U);
  for (const std::uint64_t request : {5U, 6U, 7U}) Ask(request, kDefaultOrg, {job});
  LetKnownThrough();
  EXPECT_EQ(Outcome(job), JobState::kDead) << "its deadline";
  for (const std::uint64_t request : {5U, 6U, 7U}) EXPECT_EQ(Answer(request), Effects{CancelEffect::kEnded}) << request;
}

TEST_F(DispatcherCancelSearchTest, ALookThatTheFirstsEntryIsPutBackBehindDoesNotCount) {
  const JobSpec job = Kept();
  Submit({job, Kept()});
  hold_replies_ = true;
  Ask(5, kDefaultOrg, {job});
  wire::Cancel second{.request = 6, .org = kDefaultOrg, .items = {{job.id.uuid, false}}, .actor = "cli me", .reason = {}};
  Handle(event::FromClient{.peer = "c", .message = std::move(second)});
  Flush();
  std::vector<Event> read;
  pump_.Step(read);
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  while (Flush()) {
  }  // the first one has it, and what the ledger says of that is under way
  for (Event& event : read) Handle(std::move(event));
  while (Flush()) {
  }  // what the second one does without it
  FailNextLedgerRead();  // the first one's
  Settle();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_TRUE(Answer(5).empty());
  EXPECT_EQ(Answer(6), Effects{CancelEffect::kCancelled});
}

// Two requests wait for one job; meanwhile the entry of another one comes back, and the later request looks for it.
class DispatcherLaterSearchTest : public DispatcherCancelSearchTest {
 protected:
  DispatcherLaterSearchTest() {
    both_ = {Kept(), Doubtful()};
    Hello("w", 1);
    hold_known_ = true;
    Submit({both_[1]});  // claimed
    Submit({both_[0]});
    hold_replies_ = true;
    Ask(5, kDefaultOrg, {both_[0]});
    Ask(6, kDefaultOrg, both_);
    FailNextLedgerRead();
    LetRepliesThrough();
    EXPECT_NE(Last<wire::Problem>(), nullptr) << "5 fails, and the entry is back";
    EXPECT_TRUE(Answer(6).empty());
  }
  std::vector<JobSpec> both_;
};

TEST_F(DispatcherLaterSearchTest, ARequestWaitsForALaterOnesLookBeforeItHasLookedItself) {
  hold_replies_ = true;
  Ask(7, kDefaultOrg, {both_[0]});
  clock_.Advance(2 * kFreshIdAge);  // the other one is over, and 6 need not look for it
  LetKnownThrough();
  EXPECT_TRUE(Answer(6).empty());
  LetRepliesThrough();
  EXPECT_EQ(Answer(6), (Effects{CancelEffect::kEnded, CancelEffect::kEnded}));
  EXPECT_EQ(Answer(7), Effects{CancelEffect::kCancelled});
}

TEST_F(DispatcherLaterSearchTest, ARequestTakesWhatALaterOneHasFound) {
  Ask(7, kDefaultOrg, both_);
  EXPECT_TRUE(Answer(7).empty());
  LetKnownThrough();
  EXPECT_EQ(Answer(6), (Effects{CancelEffect::kCancelled, CancelEffect::kCancelling}));
  EXPECT_EQ(Answer(7), (Effects{CancelEffect::kEnded, CancelEffect::kCancelling}));
}

TEST_F(DispatcherLaterSearchTest, WhatWasTakenFromARequestItLooksForAgainWhenTheTakerFails) {
  Ask(7, kDefaultOrg, both_);
  ledger_.fault = [asked = 0]() mutable {  // what is known; the states for 6 and for 7; for 6 again
    return asked++ == 3 ? test::LedgerFault::kUnavailable : test::LedgerFault::kNone;
  };
  LetKnownThrough();
  EXPECT_TRUE(Answer(6).empty());
  EXPECT_EQ(Answer(7), (Effects{CancelEffect::kCancelled, CancelEffect::kCancelling}));
}

}  // namespace
}  // namespace millrace
