// Jobs that go straight into flight: when they do, when they must not, and that it makes no difference but the way.
#include <gtest/gtest.h>

#include <algorithm>

#include "broker/entry_codec.h"
#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherPassTest : public testing::DispatcherTest {
 protected:
  JobSpec Kept(int priority = kPriorityDefault) {
    JobSpec job = Job(priority);
    job.options.durability = Durability::kRedis;
    return job;
  }
  std::vector<JobSpec> Jobs(std::size_t n, bool kept) {
    std::vector<JobSpec> jobs;
    while (jobs.size() < n) jobs.push_back(kept ? Kept() : Job());
    return jobs;
  }
  void Cancel(const JobSpec& job) {
    Handle(event::FromClient{.peer = "c",
                             .message = wire::Cancel{.request = 5,
                                                     .org = kDefaultOrg,
                                                     .items = {{.id = job.id.uuid, .is_run = false}},
                                                     .actor = "cli me",
                                                     .reason = "no longer needed"}});
    Settle();
  }
  // How many entries the operations since the last call put into flight, into lines, and claimed from there.
  struct Ways {
    std::size_t passed = 0, put = 0, claims = 0;
    friend bool operator==(const Ways&, const Ways&) = default;
  };
  Ways Since() {
    Ways ways;
    for (const QueueOp& op : std::exchange(executed_, {})) {
      if (const auto* put = std::get_if<queue_op::Enqueue>(&op))
        ways.passed += put->passed.size(), ways.put += put->entries.size();
      if (std::holds_alternative<queue_op::Claim>(op)) ++ways.claims;
    }
    return ways;
  }
};

TEST_F(DispatcherPassTest, BothClassesOfAWholeBatchGoInOrder) {
  Hello("w", 100);
  for (const bool kept : {false, true}) {
    executed_.clear();
    grants_.clear();
    const std::vector<JobSpec> jobs = Jobs(20, kept);
    Submit(jobs);
    EXPECT_EQ(Since(), (Ways{.passed = 20}));
    EXPECT_EQ(Granted(), IdsOf(jobs));
    ExpectDepth(0, 20);
    for (std::size_t i = 0; i < jobs.size(); ++i) End(i, AttemptEnd::kSucceeded);
    ExpectDepth(0, 0);
    for (const JobSpec& job : jobs) EXPECT_EQ(Outcome(job), JobState::kSucceeded);
  }
}

TEST_F(DispatcherPassTest, WhatFindsNoCreditWaitsBehind) {
  Hello("w", 5);
  std::vector<JobSpec> jobs = Jobs(8, false);
  Submit(jobs);
  EXPECT_EQ(Since(), (Ways{.passed = 5, .put = 3}));
  ExpectDepth(3, 5);
  const std::vector<JobSpec> later = Jobs(2, false);
  Submit(later);
  EXPECT_EQ(Since(), (Ways{.put = 2}));
  jobs.insert(jobs.end(), later.begin(), later.end());
  End(0, AttemptEnd::kSucceeded, true, 100);
  EXPECT_EQ(Since(), (Ways{.claims = 1}));
  EXPECT_EQ(Granted(), IdsOf(jobs)) << "in the order of their submits";
  Submit(Jobs(1, false));
  EXPECT_EQ(Since(), (Ways{.passed = 1})) << "the line is empty again";
}

TEST_F(DispatcherPassTest, NobodyOvertakesWhatWaitsInTheLine) {
  const JobSpec first = Kept();
  Submit({first});
  executed_.clear();
  hold_replies_ = true;
  Hello("w", 10);  // its claim is under way
  const JobSpec second = Kept();
  Submit({second});
  EXPECT_EQ(Since(), (Ways{.put = 1, .claims = 2})) << "the first claim may have left something behind";
  LetRepliesThrough();
  EXPECT_EQ(Granted(), IdsOf({first, second}));
}

TEST_F(DispatcherPassTest, AClaimThatGaveLessThanItWasAskedForKeepsTheOrder) {
  queue_.claim_max = 1;
  std::vector<JobSpec> jobs = Jobs(3, true);
  Submit(jobs);
  hold_replies_ = true;
  Hello("w", 10);
  jobs.push_back(Kept());
  Submit({jobs.back()});
  LetRepliesThrough();
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherPassTest, WhatIsPutBackToTheFrontGoesFirst) {
  Hello("w", 2);
  const JobSpec one = Job(), two = Job();
  Submit({one, two});
  ASSERT_EQ(grants_.size(), 2u);
  executed_.clear();
  // A hand-back makes room and comes to the front of the line in the flush in which the next one is enqueued.
  const JobSpec three = Job();
  Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = 1, .jobs = {three}}});
  AttemptReport report;
  report.job = one.id;
  report.token = grants_[0].second.token;
  report.end = AttemptEnd::kHandedBack;
  Handle(
      event::FromWorker{.peer = "w", .message = wire::Ended{.worker = workers_["w"], .credit_limit = 4, .reports = {report}}});
  Settle();
  EXPECT_EQ(Since().passed, 0u);
  EXPECT_EQ(Granted(), IdsOf({one, two, one, three}));
}

TEST_F(DispatcherPassTest, WhatIsBeingPromotedGoesFirst) {
  Hello("w", 10);
  JobSpec due = Kept();
  due.run_at = clock_.WallNow() + 1s;
  Submit({due});
  EXPECT_EQ(Since(), (Ways{.put = 1}));
  hold_replies_ = true;
  Advance(1s);  // the promotion is under way
  const JobSpec next = Kept();
  Submit({next});
  EXPECT_EQ(Since(), (Ways{.put = 1, .claims = 1}));
  LetRepliesThrough();
  EXPECT_EQ(Granted(), IdsOf({due, next}));
}

TEST_F(DispatcherPassTest, OtherLinesPassWhileOneWaits) {
  Hello("w", 10);
  queue_.claim_max = 1;
  hold_replies_ = true;
  Submit(Jobs(12, false));  // ten pass, two wait
  EXPECT_EQ(Since(), (Ways{.passed = 10, .put = 2}));
  LetRepliesThrough();
  Hello("x", 10);
  executed_.clear();
  Submit({Kept(kPriorityDefault - 1), Job(), Kept(kPriorityDefault - 1)});
  EXPECT_EQ(Since(), (Ways{.passed = 3}));
}

TEST_F(DispatcherPassTest, AcceptedIsSaidWhenTheQueueHasIt) {
  Hello("w", 1);
  hold_replies_ = true;
  Submit(Jobs(3, true));  // one starts, two wait
  EXPECT_EQ(Last<wire::SubmitReply>(), nullptr);
  EXPECT_EQ(grants_.size(), 1u);
  LetRepliesThrough();
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_EQ(Last<wire::SubmitReply>()->accepted.size(), 3u);
  EXPECT_EQ(grants_.size(), 1u);
}

// A few jobs of the fast class start while the queue is being told of them; more, or behind another write, with its answer.
TEST_F(DispatcherPassTest, AFewOfTheFastClassStartAhead) {
  Hello("w", 1000);
  hold_replies_ = true;
  Submit(Jobs(1, false));
  EXPECT_TRUE(grants_.empty()) << "of ledger class none";
  LetRepliesThrough();
  ASSERT_EQ(grants_.size(), 1u);
  hold_replies_ = true;
  Submit(Jobs(kStartAheadMax, true));
  EXPECT_EQ(grants_.size(), 1 + kStartAheadMax);
  EXPECT_EQ(Last<wire::SubmitReply>()->accepted.size(), 1u) << "was told that they are accepted";
  Submit(Jobs(1, true));
  EXPECT_EQ(grants_.size(), 1 + kStartAheadMax) << "the write before is not answered";
  LetRepliesThrough();
  EXPECT_EQ(grants_.size(), 2 + kStartAheadMax);
  hold_replies_ = true;
  Submit(Jobs(kStartAheadMax + 1, true));
  EXPECT_EQ(grants_.size(), 2 + kStartAheadMax) << "too many";
  LetRepliesThrough();
  EXPECT_EQ(grants_.size(), 3 + 2 * kStartAheadMax);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  ExpectDepth(0, 0);
}

TEST_F(DispatcherPassTest, OneThatHasEndedBeforeItIsAcceptedLeavesTheQueue) {
  Hello("w", 10);
  for (const AttemptEnd end : {AttemptEnd::kSucceeded, AttemptEnd::kFailed}) {
    const JobSpec job = Kept();
    hold_replies_ = true;
    Submit({job});
    End(grants_.size() - 1, end, false);
    EXPECT_EQ(Outcome(job), end == AttemptEnd::kSucceeded ? JobState::kSucceeded : JobState::kDead);
    LetRepliesThrough();
    ASSERT_EQ(Last<wire::SubmitReply>()->accepted.size(), 1u);
    EXPECT_EQ(Last<wire::SubmitReply>()->accepted[0].id, job.id.uuid);
    ExpectDepth(0, 0);
    const std::size_t granted = grants_.size();
    Submit({job});
    EXPECT_EQ(grants_.size(), granted) << "submitted again, it does not run again";
    ExpectDepth(0, 0);
  }
}

TEST_F(DispatcherPassTest, OneThatIsCancelledBeforeItIsAcceptedIsStopped) {
  Hello("w", 10);
  const JobSpec job = Kept();
  hold_replies_ = true;
  Submit({job});
  ASSERT_EQ(grants_.size(), 1u);
  Cancel(job);
  LetRepliesThrough();
  End(0, AttemptEnd::kCancelled);
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  ExpectDepth(0, 0);
}

TEST_F(DispatcherPassTest, AQueueThatFailsAcceptsNothingAndStartsAFewAtMost) {
  Hello("w", 50);
  queue_.Wipe();
  const JobSpec job = Kept(), in_ledger = Job();
  Submit({job});
  EXPECT_EQ(grants_.size(), 1u);
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "unavailable") << "submit again: it may have run";
  EXPECT_EQ(Last<wire::SubmitReply>(), nullptr);
  Advance(1s);
  Submit({in_ledger, job});
  EXPECT_EQ(grants_.size(), 3u) << "taken anew, with the worker's whole credit";
  queue_.Wipe();
  Submit(Jobs(kStartAheadMax + 1, true));
  EXPECT_EQ(grants_.size(), 3u);
  Advance(1s);
  Submit(Jobs(48, true));
  EXPECT_EQ(grants_.size(), 50u) << "all of its credit but what it says itself that it has";
}

TEST_F(DispatcherPassTest, OneThatIsCancelledMeanwhileDoesNotStart) {
  Hello("w", 10);
  const JobSpec job = Job();
  hold_replies_ = true;
  Submit({job});
  EXPECT_EQ(Since(), (Ways{.passed = 1}));
  Cancel(job);
  LetRepliesThrough();
  EXPECT_TRUE(grants_.empty());
  EXPECT_EQ(Outcome(job), JobState::kCancelled);
  ExpectDepth(0, 0);
  Submit(Jobs(10, false));
  EXPECT_EQ(grants_.size(), 10u) << "nothing of its credit is lost";
}

TEST_F(DispatcherPassTest, ARepeatedSubmitRunsOnce) {
  Hello("w", 10);
  clock_.Advance(5s);
  const JobSpec job = Kept();
  Submit({job, job});
  EXPECT_EQ(grants_.size(), 1u) << "the second is looked up";
  End(0, AttemptEnd::kSucceeded);
  Submit({job});
  EXPECT_EQ(grants_.size(), 1u) << "it has ended";
  EXPECT_GE(Since().passed, 2u);
  ExpectDepth(0, 0);
}

TEST_F(DispatcherPassTest, ATakeoverStartsKeptJobsAgainAndAdoptsOthers) {
  Hello("w", 10);
  const JobSpec kept = Kept(), in_ledger = Job();
  Submit({kept, in_ledger});
  EXPECT_EQ(Since(), (Ways{.passed = 2}));
  Dispatcher next({.name = "n", .shard_count = 1, .shards = {ShardId{0}}, .random = &random_});
  const QueueOp take = queue_op::Take{.shard = ShardId{0}, .epoch = Epoch{100}};
  const QueueReply taken = *queue_.Execute(std::span{&take, 1}).front();
  EXPECT_EQ(taken.in_flight, IdsOf({in_ledger}));
  ASSERT_EQ(taken.claimed.size(), 1u);
  EXPECT_EQ(taken.claimed[0].id, kept.id);
  const auto line = LineKey::Parse(taken.claimed[0].line);
  ASSERT_TRUE(line);
  const auto entry = DecodeEntry(taken.claimed[0].body, kept.id, *line);
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->spec.kind, kept.kind);
}

TEST_F(DispatcherPassTest, LimitsHold) {
  QueueSettings settings;
  settings.queue = "default";
  settings.concurrency = 2;
  Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = settings, .actor = "t"}});
  Settle();
  Hello("w", 10);
  executed_.clear();
  const std::vector<JobSpec> jobs = Jobs(4, false);
  Submit(jobs);
  EXPECT_EQ(Since(), (Ways{.passed = 2, .put = 2}));
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(Granted(), IdsOf({jobs[0], jobs[1], jobs[2]}));
  End(1, AttemptEnd::kSucceeded);
  End(2, AttemptEnd::kSucceeded);
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherPassTest, StagesOfARunPassAsTheyBecomeReady) {
  Hello("w", 10);
  std::vector<JobSpec> jobs{Job(), Job()};
  jobs[1].depends_on = {jobs[0].id};
  SubmitRun(jobs);
  EXPECT_EQ(Since(), (Ways{.passed = 1}));
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(Since(), (Ways{.passed = 1}));
  EXPECT_EQ(Granted(), IdsOf(jobs));
  End(1, AttemptEnd::kSucceeded);
  ExpectDepth(0, 0);
}

// What expiry or a cancel takes out of a line may have been promised to a claim under way: then a job that came after it still
// counts, and is not overtaken for ever.
TEST_F(DispatcherPassTest, AJobBehindOneThatExpiresWhileItIsClaimedIsStarted) {
  Hello("w", 1);
  const JobSpec first = Job(), behind = Job();
  JobSpec leaves = Job();
  leaves.options.expires_at = clock_.WallNow() + 1s;
  Submit({first});
  Submit({leaves});
  hold_replies_ = true;
  clock_.Advance(1s);
  End(0, AttemptEnd::kSucceeded, true, 2);
  Submit({behind});
  LetRepliesThrough();
  Advance(1s);
  EXPECT_EQ(Granted(), IdsOf({first, behind}));
}

TEST_F(DispatcherPassTest, AJobBehindOneThatIsCancelledWhileItIsClaimedIsStarted) {
  Hello("w", 1);
  const JobSpec first = Job(), leaves = Job(), behind = Job();
  Submit({first});
  Submit({leaves});
  hold_replies_ = true;
  Cancel(leaves);
  End(0, AttemptEnd::kSucceeded, true, 2);
  Submit({behind});
  LetRepliesThrough();
  Advance(1s);
  EXPECT_EQ(Granted(), IdsOf({first, behind}));
}

TEST_F(DispatcherPassTest, AJobWhoseTimeIsOverWhenItWouldStartExpires) {
  Hello("w", 10);
  JobSpec job = Kept();
  job.options.expires_at = clock_.WallNow() + 1s;
  hold_replies_ = true;
  Submit({job});
  EXPECT_EQ(Since(), (Ways{.passed = 1}));
  clock_.Advance(1s);
  LetRepliesThrough();
  EXPECT_TRUE(grants_.empty());
  EXPECT_EQ(Outcome(job), JobState::kExpired);
  ExpectDepth(0, 0);
}

}  // namespace
}  // namespace millrace
