// A queue without memory: what it cannot take waits in the broker, everything else goes on, and nothing is lost or doubled.
#include <gtest/gtest.h>

#include <map>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherRefusedTest : public testing::DispatcherTest {
 protected:
  using DispatcherTest::DispatcherTest;
  std::vector<JobSpec> Jobs(std::size_t n, Durability durability = Durability::kLedger) {
    std::vector<JobSpec> jobs;
    while (jobs.size() < n) {
      jobs.push_back(Job());
      jobs.back().options.durability = durability;
    }
    return jobs;
  }
  // Whatever is granted succeeds, until nothing is granted any more for some time.
  void Work(std::uint64_t credit) {
    for (int quiet = 0; quiet < 15;) {
      const std::size_t before = ended_;
      while (ended_ < grants_.size()) End(ended_++, AttemptEnd::kSucceeded, true, credit += 1);
      Beat("w", credit);
      Advance(kDispatcherTick);
      quiet = ended_ == before ? quiet + 1 : 0;
    }
  }
  void ExpectEachRanOnce(const std::vector<JobSpec>& jobs) {
    std::map<JobId, int> runs;
    for (const JobId& id : Granted()) ++runs[id];
    for (const JobSpec& job : jobs) {
      EXPECT_EQ(runs[job.id], 1) << job.id.ToString();
      EXPECT_EQ(Outcome(job), JobState::kSucceeded);
    }
    ExpectDepth(0, 0);
  }
  std::ptrdiff_t Takes() const {
    return std::ranges::count_if(executed_, [](const QueueOp& op) { return std::holds_alternative<queue_op::Take>(op); });
  }
  std::size_t ended_ = 0;
};

TEST_F(DispatcherRefusedTest, WhatTheQueueCannotTakeStartsAsItDrains) {
  executed_.clear();
  queue_.memory_max = 10;
  std::vector<JobSpec> jobs;
  for (int message = 0; message < 10; ++message) {
    const std::vector<JobSpec> more = Jobs(4);
    Submit(more);
    ASSERT_NE(Last<wire::SubmitReply>(), nullptr) << "the ledger has it: it is accepted";
    jobs.insert(jobs.end(), more.begin(), more.end());
  }
  EXPECT_EQ(ledger_.jobs.size(), 40U);
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
  EXPECT_EQ(Takes(), 0) << "what is in the queue was never given up";
}

TEST_F(DispatcherRefusedTest, WhatWouldHaveGoneStraightIntoFlightGivesItsPlaceBack) {
  QueueSettings settings;
  settings.queue = "default";
  settings.concurrency = 2;
  Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = settings, .actor = "t"}});
  Settle();
  Hello("w", 10);
  queue_.memory_max = 0;
  const std::vector<JobSpec> jobs = Jobs(5);
  Submit(jobs);
  EXPECT_TRUE(grants_.empty());
  queue_.memory_max = SIZE_MAX;
  Advance(kDispatcherTick);
  EXPECT_EQ(grants_.size(), 2U) << "the limit of the queue counts what runs, not what was refused";
  Work(10);
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherRefusedTest, AJobOfTheFastClassIsRefusedAndMayBeSubmittedAgain) {
  Hello("w", 1);
  const std::vector<JobSpec> first = Jobs(3, Durability::kRedis);
  Submit(first);  // one runs, two wait in memory
  queue_.memory_max = 3;
  const std::vector<JobSpec> jobs = Jobs(4, Durability::kRedis);
  Submit(jobs);
  const auto* refusal = Last<wire::Problem>();
  ASSERT_NE(refusal, nullptr);
  EXPECT_EQ(refusal->code, "queue_full");
  EXPECT_NE(refusal->message.find("raise maxmemory"), std::string::npos) << refusal->message;
  Work(1);
  EXPECT_EQ(Granted(), IdsOf(first));
  queue_.memory_max = SIZE_MAX;
  Submit(jobs);
  Work(10);
  std::map<JobId, int> runs;
  for (const JobId& id : Granted()) ++runs[id];
  for (const JobSpec& job : jobs) EXPECT_EQ(runs[job.id], 1);
}

// It runs: that it was refused would be no answer.
TEST_F(DispatcherRefusedTest, AJobOfTheFastClassThatHasStartedIsNotAnsweredQueueFull) {
  Hello("w", 10);
  queue_.memory_max = 0;
  QueueSettings settings;
  settings.queue = "default";
  settings.max_waiting_jobs = 2;
  Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = settings, .actor = "t"}});
  Settle();
  const std::vector<JobSpec> jobs = Jobs(2, Durability::kRedis);
  Submit(jobs);
  EXPECT_EQ(Granted(), IdsOf(jobs));
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "unavailable");
  EXPECT_NE(Last<wire::Problem>()->message.find("submit again with the same ids"), std::string::npos);
  const std::vector<JobSpec> later = Jobs(1, Durability::kRedis);
  Submit(later);
  EXPECT_EQ(Granted(), IdsOf(jobs)) << "it is known by now that the queue takes nothing";
  EXPECT_EQ(Last<wire::Problem>()->code, "queue_full");
  queue_.memory_max = SIZE_MAX;
  Submit(jobs);  // while they run
  Work(10);
  Submit(jobs);  // and after that
  Work(10);
  ExpectEachRanOnce(jobs);
  const std::vector<JobSpec> waiting = Jobs(2, Durability::kRedis);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  Settle();
  Submit(waiting);
  EXPECT_EQ(Last<wire::SubmitReply>()->accepted.size(), 2u) << "the budget counts what waits";
}

TEST_F(DispatcherRefusedTest, OneThatIsCancelledWhileItIsHeldNeverRuns) {
  queue_.memory_max = 0;
  const std::vector<JobSpec> jobs = Jobs(3);
  Submit(jobs);
  Handle(event::FromClient{
      .peer = "c",
      .message = wire::Cancel{
          .request = 5, .org = kDefaultOrg, .items = {{.id = jobs[1].id.uuid, .is_run = false}}, .actor = "me", .reason = {}}});
  Settle();
  EXPECT_EQ(Outcome(jobs[1]), JobState::kCancelled);
  queue_.memory_max = SIZE_MAX;
  Hello("w", 10);
  Work(10);
  EXPECT_EQ(Granted(), IdsOf({jobs[0], jobs[2]}));
  ExpectDepth(0, 0);
}

// The look for it is answered after the entry has come back.
TEST_F(DispatcherRefusedTest, ACancelThatMeetsARefusedPutOnTheWayIsNotOvertaken) {
  for (const bool room_again : {false, true}) {
    const std::vector<JobSpec> jobs = Jobs(2);
    queue_.memory_max = 0;
    Submit(jobs);
    hold_replies_ = true;
    Handle(event::FromClient{.peer = "c",
                             .message = wire::Cancel{.request = 5,
                                                     .org = kDefaultOrg,
                                                     .items = {{.id = jobs[0].id.uuid, .is_run = false}},
                                                     .actor = "me",
                                                     .reason = {}}});
    Settle();
    if (room_again) queue_.memory_max = SIZE_MAX;
    Advance(kDispatcherTick);
    queue_.memory_max = SIZE_MAX;
    LetRepliesThrough();
    Advance(kDispatcherTick);
    grants_.clear(), ended_ = 0;
    Hello("w", 10);
    Work(10);
    EXPECT_EQ(Granted(), IdsOf({jobs[1]}));
  }
}

TEST_F(DispatcherRefusedTest, ARebuildThatDoesNotFitGoesOnWithWhatFits) {
  const std::vector<JobSpec> jobs = Jobs(30);
  Submit(jobs);
  queue_.memory_max = 5;
  queue_.Wipe();
  Hello("w", 1);
  for (int i = 0; i < 5; ++i) Advance(1s);
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherRefusedTest, WhatIsOnlyInTheLedgerStaysThereWhileTheStoreIsNearlyFull) {
  Handle(event::QueueMemoryRead{.memory = {.used = 800'000, .max = 1'000'000}});
  const std::vector<JobSpec> jobs = Jobs(20);
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  Advance(kOutboxPollInterval + 1ms);
  ExpectDepth(0, 0);
  queue_.Wipe();
  Submit({});
  Hello("w", 1);
  for (int i = 0; i < 5; ++i) Advance(1s);
  EXPECT_TRUE(grants_.empty()) << "nor does a rebuild put it into the queue";
  Handle(event::QueueMemoryRead{.memory = {.used = 500'000, .max = 1'000'000}});
  Hello("w", 5);
  Work(5);
  ExpectEachRanOnce(jobs);
  EXPECT_TRUE(ledger_.outbox_jobs.empty());
}

// What is cancelled through the ledger needs no memory of the store, and gives some back.
TEST_F(DispatcherRefusedTest, WhatIsCancelledInTheLedgerEndsAlsoWhileTheStoreIsNearlyFull) {
  ledger_.outbox_page_max = 2;
  const std::vector<JobSpec> in_queue = Jobs(1);
  Submit(in_queue);
  Handle(event::QueueMemoryRead{.memory = {.used = 800'000, .max = 1'000'000}});
  const std::vector<JobSpec> jobs = Jobs(9);
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  for (const bool together : {false, true}) {
    ledger_.together = together;  // its row is a batch's, and the request has a row beside it
    RunSpec run;
    run.id = ids_.Next<RunId>();
    run.pipeline = "p";
    JobSpec of_run = Job();
    of_run.run = run.id;
    ASSERT_TRUE(ledger_.SubmitRun(run, std::span{&of_run, 1}, {}));
    const CancelRow request{run.id.uuid, true, kDefaultOrg, "cli", "why", clock_.WallNow()};
    ASSERT_TRUE(ledger_.RequestCancel(std::span{&request, 1}, {}));
  }
  std::vector<CancelRow> requests;
  for (std::size_t i = 4; i < jobs.size(); ++i)
    requests.push_back({jobs[i].id.uuid, false, kDefaultOrg, "cli", "why", clock_.WallNow()});
  requests.push_back({in_queue[0].id.uuid, false, kDefaultOrg, "cli", "why", clock_.WallNow()});
  ASSERT_TRUE(ledger_.RequestCancel(requests, {}));
  Advance(kOutboxPollInterval + 1ms);
  for (std::size_t i = 4; i < jobs.size(); ++i) EXPECT_EQ(Outcome(jobs[i]), JobState::kCancelled) << i;
  EXPECT_EQ(Outcome(in_queue[0]), JobState::kCancelled);
  EXPECT_EQ(ledger_.run_outcomes.size(), 2U);
  ExpectDepth(0, 0);
  Handle(event::QueueMemoryRead{.memory = {.used = 500'000, .max = 1'000'000}});
  Hello("w", 5);
  Work(5);
  ExpectEachRanOnce({jobs.begin(), jobs.begin() + 4});
  EXPECT_EQ(Granted().size(), 4U);
  EXPECT_TRUE(ledger_.outbox_jobs.empty() && ledger_.outbox_runs.empty() && ledger_.outbox_batches.empty());
}

// Of the ledger-class job the ledger has accepted the submit, whose other half the queue refuses: it is not "nothing was
// taken".
TEST_F(DispatcherRefusedTest, ASubmitThatWasTakenInPartIsNotAnsweredQueueFull) {
  queue_.memory_max = 0;
  std::vector<JobSpec> jobs = Jobs(1);
  const std::vector<JobSpec> fast = Jobs(1, Durability::kRedis);
  jobs.insert(jobs.end(), fast.begin(), fast.end());
  Submit(jobs);
  const auto* problem = Last<wire::Problem>();
  ASSERT_NE(problem, nullptr);
  EXPECT_EQ(problem->code, "unavailable");
  EXPECT_NE(problem->message.find("the outcome is not known"), std::string::npos) << problem->message;
  EXPECT_EQ(Last<wire::SubmitReply>(), nullptr);
  EXPECT_TRUE(ledger_.jobs.contains(jobs[0].id));
  queue_.memory_max = SIZE_MAX;
  Submit(jobs);
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr) << "the same ids are accepted";
  Hello("w", 10);
  Work(10);
  ExpectEachRanOnce(jobs);
}

// They waited in memory for the answer to their put, and went to their lines before it came.
TEST_F(DispatcherRefusedTest, JobsThatWentToTheirLinesMeanwhileAreNotAnsweredQueueFull) {
  Hello("w", 1);
  Submit(Jobs(1, Durability::kRedis));
  queue_.memory_max = 1;
  hold_replies_ = true;
  Submit(Jobs(4, Durability::kRedis));
  Handle(event::StopRequested{});
  Settle();
  EXPECT_EQ((*queue_.Depth(ShardId{0})).ready, 4U);
  LetRepliesThrough();
  const auto* problem = Last<wire::Problem>();
  ASSERT_NE(problem, nullptr);
  EXPECT_EQ(problem->code, "unavailable") << "they may run";
}

TEST_F(DispatcherRefusedTest, ARefusedPutOfManyJobsInSeveralLinesIsTakenBackWhole) {
  Hello("w", 1);
  Submit(Jobs(1, Durability::kRedis));
  queue_.memory_max = 1;
  hold_replies_ = true;
  std::vector<JobSpec> jobs = Jobs(900, Durability::kRedis);
  for (std::size_t i = 0; i < jobs.size(); ++i) jobs[i].priority = static_cast<int>(i % 3);
  Submit(jobs);
  LetRepliesThrough();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "queue_full");
  queue_.memory_max = SIZE_MAX;
  Work(10);
  EXPECT_EQ(grants_.size(), 1U) << "what was refused is nowhere";
  Submit(jobs);
  Work(100);
  EXPECT_EQ(grants_.size(), 1U + jobs.size());
  ExpectDepth(0, 0);
}

TEST_F(DispatcherRefusedTest, AFullStoreIsNoReasonToReadTheSettingsMoreOften) {
  Handle(event::QueueMemoryRead{.memory = {.used = 800'000, .max = 1'000'000}});
  Advance(kOutboxPollInterval);
  settings_reads_ = 0;
  for (int i = 0; i < 50; ++i) Advance(kDispatcherTick);
  EXPECT_LE(settings_reads_, 6U) << "in five times kOutboxPollInterval";
  const std::vector<JobSpec> jobs = Jobs(1);
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  Hello("w", 1);
  EXPECT_TRUE(grants_.empty());
  Handle(event::QueueMemoryRead{.memory = {.used = 500'000, .max = 1'000'000}});
  Settle();
  EXPECT_EQ(Granted(), IdsOf(jobs)) << "at once, not at the next poll";
}

// The broker holds ten jobs of what the queue has no memory for; the rest is read from the ledger again.
class DispatcherUnreadTest : public DispatcherRefusedTest {
 protected:
  static constexpr std::size_t kPayload = 100 << 10;
  DispatcherUnreadTest() : DispatcherRefusedTest(10 * kPayload) {}
  std::vector<JobSpec> Large(std::size_t n) {
    std::vector<JobSpec> jobs = Jobs(n);
    for (JobSpec& job : jobs) job.payload.assign(kPayload, 'x');
    return jobs;
  }
  // Rebuilds the shard with a queue that takes five.
  void Rebuild() {
    queue_.memory_max = 5;
    queue_.Wipe();
    executed_.clear();
    TakeAnew();
    Advance(250ms);
    ASSERT_TRUE(dispatcher_.Ready(ShardId{0}));
    ASSERT_GT(Takes(), 0);
  }
  // Its put is executed, and the answer is under way.
  void RebuildUpToItsFirstPut() {
    queue_.Wipe();
    TakeAnew();
    hold_replies_ = true;
    Advance(250ms);
    Handle(std::exchange(held_, {}));  // to the take
    Settle();
  }
  void TakeAnew() {
    pump_.Post(
        command::TakeShardAnew{.dropped = {.shard = ShardId{0}, .epoch = ledger_.EpochOf(ShardId{0})}, .reason = "test"});
    Handle(event::ShardLost{.shard = ShardId{0}, .reason = "test", .owner_name = {}});
    ASSERT_FALSE(dispatcher_.Ready(ShardId{0}));
  }
  void Cancel(const JobSpec& job) {
    Handle(event::FromClient{
        .peer = "c",
        .message = wire::Cancel{
            .request = 5, .org = kDefaultOrg, .items = {{.id = job.id.uuid, .is_run = false}}, .actor = "me", .reason = {}}});
    Settle();
  }
};

TEST_F(DispatcherUnreadTest, ARebuildOfMoreThanTheBrokerMayHoldBecomesReadyAndRunsAll) {
  const std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  ASSERT_NO_FATAL_FAILURE(Rebuild());
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
  EXPECT_LE(Takes(), 2);
}

TEST_F(DispatcherUnreadTest, WhatIsAcceptedWhileTheQueueRefusesIsBoundedToo) {
  executed_.clear();
  queue_.memory_max = 5;
  std::vector<JobSpec> jobs;
  for (int message = 0; message < 10; ++message) {
    const std::vector<JobSpec> more = Large(6);
    Submit(more);
    jobs.insert(jobs.end(), more.begin(), more.end());
  }
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
  EXPECT_EQ(Takes(), 0) << "what is in the queue was never given up";
}

// What the queue has in flight and the ledger shows last is not taken for ended: what its worker still runs goes on.
TEST_F(DispatcherUnreadTest, WhatRunsIsAdoptedWhereverTheLedgerShowsIt) {
  const std::vector<JobSpec> jobs = Large(60);
  Submit({jobs.back()});
  Hello("w", 1);
  ASSERT_EQ(grants_.size(), 1U);
  Submit({jobs.begin(), jobs.end() - 1});
  queue_.memory_max = 5;
  ASSERT_NO_FATAL_FAILURE(TakeAnew());
  Advance(250ms);
  ASSERT_TRUE(dispatcher_.Ready(ShardId{0}));
  const wire::Hello::Held held{grants_[0].second.id, grants_[0].second.token};
  Handle(event::FromWorker{.peer = "w", .message = wire::Orphans{.worker = workers_.at("w"), .items = {held}}});
  Settle();
  EXPECT_EQ(dispatcher_.adopted(), 1U);
  Work(3);
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherUnreadTest, AJobThatIsCancelledWhileOnlyTheLedgerHasItNeverRuns) {
  std::vector<JobSpec> jobs = Large(60);
  jobs[58].options.has_sink = true;
  Submit(jobs);
  ASSERT_NO_FATAL_FAILURE(Rebuild());
  Cancel(jobs[59]);
  Cancel(jobs[58]);
  EXPECT_EQ(Outcome(jobs[59]), JobState::kCancelled);
  const CancelRow request{jobs[57].id.uuid, false, kDefaultOrg, "cli", "why", clock_.WallNow()};
  ASSERT_TRUE(ledger_.RequestCancel(std::span{&request, 1}, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(Outcome(jobs[57]), JobState::kCancelled);
  Hello("w", 3);
  Work(3);
  std::map<JobId, int> runs;
  for (const auto& [peer, job] : grants_) runs[job.id] += job.fence_only ? 0 : 1;
  for (std::size_t i = 0; i < jobs.size(); ++i) EXPECT_EQ(runs[jobs[i].id], i < 57 ? 1 : 0) << i;
  ExpectDepth(0, 0);
}

TEST_F(DispatcherUnreadTest, AJobThatIsSubmittedAgainWhileOnlyTheLedgerHasItRunsOnce) {
  const std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  ASSERT_NO_FATAL_FAILURE(Rebuild());
  Submit({jobs.end() - 20, jobs.end()});
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_TRUE(Last<wire::SubmitReply>()->accepted.front().duplicate);
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
}

// A store that does not answer: what it has to take stays in the ledger's outbox behind the broker's limit.
TEST_F(DispatcherUnreadTest, AnOutboxIsReadAsFarAsTheStoreKeepsUp) {
  const std::vector<JobSpec> jobs = Large(60);
  ledger_.outbox_page_max = 5;
  hold_replies_ = true;
  ASSERT_TRUE(ledger_.SubmitJobs(jobs, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  for (int i = 0; i < 5; ++i) Advance(kOutboxPollInterval + 1ms);
  EXPECT_EQ(ledger_.outbox_jobs.size(), 50U) << "ten of them are as much as the broker may hold";
  LetRepliesThrough();
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherUnreadTest, NothingIsReadIntoANearlyFullStore) {
  const std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  ASSERT_NO_FATAL_FAILURE(Rebuild());
  Handle(event::QueueMemoryRead{.memory = {.used = 800'000, .max = 1'000'000}});
  Hello("w", 3);
  Work(3);
  EXPECT_LT(grants_.size(), jobs.size());
  Handle(event::QueueMemoryRead{.memory = {.used = 500'000, .max = 1'000'000}});
  Work(3 + grants_.size());
  ExpectEachRanOnce(jobs);
}

// What a page put into the queue counts until that put is answered, not until none is under way: under steady submits there
// is always one.
TEST_F(DispatcherUnreadTest, WhatTheLedgerHasIsReadThoughAPutIsAlwaysUnderWay) {
  std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  RebuildUpToItsFirstPut();
  ASSERT_TRUE(dispatcher_.Ready(ShardId{0}));
  ExpectDepth(10, 0);
  for (int round = 0; round < 20; ++round) {
    event::QueueReplies before = std::exchange(held_, {});
    const std::vector<JobSpec> more = Jobs(1);
    jobs.insert(jobs.end(), more.begin(), more.end());
    Submit(more);
    ASSERT_FALSE(held_.replies.empty());
    Handle(std::move(before));
    Advance(kDispatcherTick);
  }
  ExpectDepth(80, 0);
  LetRepliesThrough();
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
}

TEST_F(DispatcherUnreadTest, WhatAPageHasCountsThoughThePutBeforeItIsAnsweredMeanwhile) {
  std::vector<JobSpec> jobs = Large(60);
  Submit(jobs);
  RebuildUpToItsFirstPut();
  ExpectDepth(10, 0);
  event::QueueReplies before = std::exchange(held_, {});
  jobs.push_back(Job());
  Submit({jobs.back()});
  Handle(std::move(before));
  Flush();
  std::vector<Event> pages;
  pump_.Step(pages);
  ASSERT_EQ(std::ranges::count_if(pages, [](const Event& e) { return std::holds_alternative<event::LiveJobsRead>(e); }), 1);
  for (Event& page : pages) Handle(std::move(page));
  Handle(std::exchange(held_, {}));
  Settle();
  ExpectDepth(21, 0);
  LetRepliesThrough();
  Hello("w", 3);
  Work(3);
  ExpectEachRanOnce(jobs);
}

class DispatcherUnreadOfTwoTest : public DispatcherRefusedTest {
 protected:
  static constexpr std::size_t kPayload = 100 << 10;
  static constexpr ShardId kBusy{0}, kOther{1};
  DispatcherUnreadOfTwoTest() : DispatcherRefusedTest(10 * kPayload, 2) {}
  std::vector<JobSpec> JobsOf(ShardId shard, std::size_t n, std::size_t bytes) {
    OrgId org{1};
    while (ShardOf(org, 2) != shard) org = OrgId{org.value() + 1};
    std::vector<JobSpec> jobs = Jobs(n);
    for (JobSpec& job : jobs) {
      job.org = org;
      job.payload.assign(bytes, 'x');
    }
    return jobs;
  }
  void TakeAnew(ShardId shard) {
    pump_.Post(command::TakeShardAnew{.dropped = {.shard = shard, .epoch = ledger_.EpochOf(shard)}, .reason = "test"});
    Handle(event::ShardLost{.shard = shard, .reason = "test", .owner_name = {}});
    Advance(250ms);
  }
  // What was under way is answered after something else went out.
  void Answer() {
    event::QueueReplies before = std::exchange(held_, {});
    Submit(JobsOf(kBusy, 1, 1));
    ASSERT_FALSE(held_.replies.empty());
    Handle(std::move(before));
    Settle();
  }
  std::uint64_t Waiting(ShardId shard) { return queue_.Depth(shard)->ready; }
};

// The one shard never has all its puts answered: what it read, and the queue has, is no reason to leave the other's jobs
// unread.
TEST_F(DispatcherUnreadOfTwoTest, ABusyShardLeavesTheRebuildOfAnotherAlone) {
  Submit(JobsOf(kBusy, 10, kPayload));
  Submit(JobsOf(kOther, 5, kPayload));
  queue_.Wipe();
  hold_replies_ = true;
  TakeAnew(kBusy);
  Handle(std::exchange(held_, {}));  // to the take
  Settle();
  ASSERT_EQ(Waiting(kBusy), 10U) << "as much as may be under way";
  Answer();
  TakeAnew(kOther);
  EXPECT_EQ(Waiting(kOther), 0U);
  Answer();
  ASSERT_TRUE(dispatcher_.Ready(kOther));
  EXPECT_EQ(Waiting(kOther), 5U);
}

TEST_F(DispatcherUnreadOfTwoTest, WhatALostShardHeldCountsNoMore) {
  Submit(JobsOf(kOther, 5, kPayload));
  queue_.memory_max = 0;
  Submit(JobsOf(kBusy, 12, kPayload));
  Handle(event::ShardLost{.shard = kBusy, .reason = "test", .owner_name = "another"});
  queue_.memory_max = SIZE_MAX;
  queue_.Wipe();
  TakeAnew(kOther);
  ASSERT_TRUE(dispatcher_.Ready(kOther));
  EXPECT_EQ(Waiting(kOther), 5U);
}

}  // namespace
}  // namespace millrace
