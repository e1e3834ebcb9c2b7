// Jobs of `durability: redis` in the dispatcher, one step at a time, against a queue and a ledger in memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "broker/ledger_pump.h"
#include "broker/recent_ids.h"
#include "common/base/log.h"
#include "common/model/instants.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"

namespace millrace {
namespace {

class DurabilityTest : public testing::Test {
 protected:
  DurabilityTest() {
    ConfigureLog(LogLevel::kOff, LogFormat::kText, "test");
    ledger_.before_commit = [this](const OwnerBatch& batch) {
      rows_ += batch.jobs.size() + batch.attempts.size() + batch.outcomes.size();
    };
    Settle();
    clock_.Advance(5s);  // what is submitted from now on is certainly new
  }
  void Settle() {
    for (int round = 0; round < 80; ++round) {
      std::vector<Event> events;
      if (pump_on_) pump_->Step(events);
      for (Event& event : events) Handle(std::move(event));
      if (!Flush() && events.empty()) return;
    }
    FAIL() << "does not settle";
  }
  void Handle(Event event) { dispatcher_->Handle(std::move(event), clock_.Now(), clock_.WallNow()); }
  bool Flush() {
    std::vector<Command> commands;
    dispatcher_->Flush(clock_.Now(), clock_.WallNow(), commands);
    event::QueueReplies replies;
    for (Command& command : commands) {
      if (auto* ledger = std::get_if<LedgerCommand>(&command)) {
        reads_ += std::holds_alternative<command::ReadKnown>(*ledger) ? 1U : 0U;
        pump_->Post(std::move(*ledger));
      }
      if (auto* execute = std::get_if<command::Execute>(&command)) {
        if (std::holds_alternative<queue_op::Take>(execute->op) && ++takes_ > 0 && before_take_) before_take_();
        replies.replies.emplace_back(execute->id, queue_down_ ? Fail(ErrorCode::kMaybeApplied, "down")
                                                              : std::move(queue_.Execute(std::span{&execute->op, 1}).front()));
      }
      if (auto* send = std::get_if<command::SendWorker>(&command))
        if (const auto* grant = std::get_if<wire::Grant>(&send->message))
          grants_.insert(grants_.end(), grant->jobs.begin(), grant->jobs.end());
      if (auto* send = std::get_if<command::SendClient>(&command)) client_.push_back(std::move(send->message));
    }
    if (!replies.replies.empty()) Handle(std::move(replies));
    return !commands.empty();
  }
  void Advance(Micros d) {
    clock_.Advance(d);
    Handle(event::Tick{});
    Settle();
  }
  JobSpec Job() {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "work";
    job.payload = "p";
    job.retry = {.max_attempts = 2, .backoff_base = Millis{1000}, .backoff_cap = Millis{1000}};
    job.options.durability = Durability::kRedis;
    return job;
  }
  void Submit(std::vector<JobSpec> jobs) {
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = ++request_, .jobs = std::move(jobs)}});
    Settle();
  }
  void Hello(std::uint64_t credit) {
    Handle(event::FromWorker{.peer = "w",
                             .message = wire::Hello{.worker = worker_,
                                                    .name = "w",
                                                    .queues = {},
                                                    .kinds = {},
                                                    .roots = {},
                                                    .concurrency = 100,
                                                    .credit_limit = credit,
                                                    .held = {}}});
    Settle();
  }
  void End(std::size_t grant, AttemptEnd end, bool retryable = true, std::uint64_t credit = 0) {
    AttemptReport report;
    report.job = grants_.at(grant).id;
    report.token = grants_.at(grant).token;
    report.end = end;
    report.retryable = retryable;
    report.error = end == AttemptEnd::kSucceeded ? "" : "broke";
    Handle(
        event::FromWorker{.peer = "w", .message = wire::Ended{.worker = worker_, .credit_limit = credit, .reports = {report}}});
    Settle();
  }
  // The broker dies and another process takes its place; the queue and the ledger stay.
  void Restart(Micros later = {}) {
    dispatcher_ = std::make_unique<Dispatcher>(options_);
    pump_ = MakePump();
    worker_ = ids_.Next<WorkerId>();
    grants_.clear();
    clock_.Advance(kOwnershipTtl + 1s);
    Settle();
    if (later > Micros{}) Advance(later);
    ASSERT_TRUE(dispatcher_->Ready(ShardId{0}));
  }
  std::unique_ptr<LedgerPump> MakePump() {
    return std::make_unique<LedgerPump>(
        LedgerPumpOptions{.owner = ids_.Next<OwnerId>(), .owner_name = "b", .shards = {ShardId{0}}, .shard_count = 1}, ledger_,
        clock_);
  }
  bool Succeeded(const JobSpec& job) {
    const auto it = ledger_.jobs.find(job.id);
    return it != ledger_.jobs.end() && it->second.outcome && it->second.outcome->state == JobState::kSucceeded;
  }
  template <class T>
  const T* Last() {
    return client_.empty() ? nullptr : std::get_if<T>(&client_.back());
  }
  void ExpectQueue(std::uint64_t ready, std::uint64_t scheduled, std::uint64_t in_flight) {
    const auto depth = *queue_.Depth(ShardId{0});
    EXPECT_EQ(std::tuple(depth.ready, depth.scheduled, depth.in_flight), std::tuple(ready, scheduled, in_flight));
  }

  FakeClock clock_;
  SeededRandom random_{7};
  IdGenerator ids_{clock_, random_};
  test::MemoryLedger ledger_{clock_};
  test::MemoryQueue queue_;
  DispatcherOptions options_{.name = "b", .shard_count = 1, .shards = {ShardId{0}}, .random = &random_};
  std::unique_ptr<Dispatcher> dispatcher_ = std::make_unique<Dispatcher>(options_);
  std::unique_ptr<LedgerPump> pump_ = MakePump();
  // A job that leaves its class to its queue.
  JobSpec Unsaid() {
    JobSpec job = Job();
    job.options = {};
    return job;
  }
  void SetClass(Durability durability, const std::string& queue = "default") {
    wire::SetQueue set{.request = ++request_, .settings = {}, .actor = "t"};
    set.settings = ledger_.queues[{kDefaultOrg, queue}];
    set.settings.queue = queue;
    set.settings.durability = durability;
    Handle(event::FromClient{.peer = "c", .message = std::move(set)});
    Settle();
    ASSERT_NE(Last<wire::SetQueueReply>(), nullptr);
  }
  // What a ledger that was not told of the job by an attempt knows of it.
  bool Accepted(const JobSpec& job) const { return ledger_.jobs.contains(job.id); }

  WorkerId worker_ = ids_.Next<WorkerId>();
  std::vector<wire::Grant::Job> grants_;
  std::vector<wire::Message> client_;
  std::uint64_t request_ = 0;
  std::size_t rows_ = 0, reads_ = 0, takes_ = 0;
  std::function<void()> before_take_;
  bool pump_on_ = true, queue_down_ = false;
};

TEST_F(DurabilityTest, AFirstTrySuccessCostsOneRow) {
  Hello(10);
  const JobSpec job = Job();
  Submit({job});
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].payload, "p");
  EXPECT_EQ(rows_, 0U) << "nothing is written before it ends";
  End(0, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(job));
  EXPECT_EQ(rows_, 1U);
  EXPECT_EQ(reads_, 0U) << "a fresh job is not looked up";
  ExpectQueue(0, 0, 0);
  EXPECT_TRUE(dispatcher_->Idle());
}

TEST_F(DurabilityTest, AcceptedWithoutTheLedgerAndNotWithoutTheQueue) {
  pump_on_ = false;
  Submit({Job()});
  EXPECT_NE(Last<wire::SubmitReply>(), nullptr) << "the ledger was not asked";
  queue_down_ = true;
  Submit({Job()});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "unavailable");
}

TEST_F(DurabilityTest, ABatchOfBothClassesIsAnsweredOnce) {
  JobSpec ledger = Job();
  ledger.options = {};
  pump_on_ = false;
  Submit({Job(), ledger, Job()});
  EXPECT_TRUE(client_.empty()) << "one of them is not durable yet";
  pump_on_ = true;
  Settle();
  ASSERT_EQ(client_.size(), 1U);
  EXPECT_EQ(Last<wire::SubmitReply>()->accepted.size(), 3U);
  Hello(5);
  EXPECT_EQ(grants_.size(), 3U);
}

TEST_F(DurabilityTest, AFailedJobBecomesTheLedgersWithItsSpec) {
  Hello(10);
  const JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kFailed);
  const auto& rows = ledger_.jobs.at(job.id);
  EXPECT_EQ(rows.spec.payload, "p");
  EXPECT_EQ(rows.attempts.size(), 1U);
  queue_.Wipe();  // from now on even that loses nothing
  Advance(1s), Advance(1s);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[1].delivery, 2U);
  End(1, AttemptEnd::kFailed);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->state, JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->counters.failures, 2U);
}

TEST_F(DurabilityTest, ADeadJobCanBeInspected) {
  Hello(10);
  const JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kFailed, false);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->state, JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(job.id).spec.payload, "p");
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, ALostWorkersJobStartsAgainWhenTheLedgerHasIt) {
  Hello(10);
  const JobSpec job = Job();
  Submit({job});
  pump_on_ = false;
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = worker_}});
  Settle();
  ExpectQueue(0, 0, 1);
  pump_on_ = true;
  Settle();
  ExpectQueue(1, 0, 0);
  worker_ = ids_.Next<WorkerId>();
  Hello(10);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_GT(grants_[1].token, grants_[0].token);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(job));
}

TEST_F(DurabilityTest, SurvivesABrokerThatDies) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 9; ++i) jobs.push_back(Job());
  JobSpec later = Job();
  later.run_at = clock_.WallNow() + 60s;
  Hello(5);
  Submit(jobs);
  Submit({later});
  ASSERT_EQ(grants_.size(), 5U);
  const Token before = grants_.back().token;
  ExpectQueue(0, 1, 9);  // four wait in the memory of the broker
  Restart();
  ExpectQueue(9, 1, 0);
  Hello(20);
  ASSERT_EQ(grants_.size(), 9U);
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_GT(grants_[i].token, before);
    End(i, AttemptEnd::kSucceeded);
  }
  for (const JobSpec& job : jobs) EXPECT_TRUE(Succeeded(job));
  Advance(60s);
  Hello(20);
  ASSERT_EQ(grants_.size(), 10U) << "the scheduled one came too";
}

// The queue counts a page of them at a time: none is left out, and nothing starts before the last is counted.
TEST_F(DurabilityTest, LinesOfManyPagesAreAllCountedBeforeTheShardIsReady) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 15; ++i) {
    jobs.push_back(Job());
    jobs.back().options.limit_key = fmt::format("customer-{}", i);
  }
  Submit(jobs);
  ExpectQueue(15, 0, 0);
  queue_.take_lines = 4;
  takes_ = 0;
  Restart();
  EXPECT_EQ(takes_, 4U);
  Hello(20);
  ASSERT_EQ(grants_.size(), 15U);
  for (std::size_t i = 0; i < 15; ++i) End(i, AttemptEnd::kSucceeded);
  for (const JobSpec& job : jobs) EXPECT_TRUE(Succeeded(job));
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, AStoreThatIsReplacedWhileLinesAreCountedIsTakenAnew) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 9; ++i) {
    jobs.push_back(Job());
    jobs.back().options.limit_key = fmt::format("customer-{}", i);
  }
  Submit(jobs);
  queue_.Save();
  Hello(4);
  for (std::size_t i = 0; i < 4; ++i) End(i, AttemptEnd::kSucceeded);
  takes_ = 0;
  before_take_ = [this] {
    if (takes_ == 2) queue_.RollBack();
  };
  Restart(3s);
  EXPECT_GT(takes_, 5U) << "once for the store that went";
  Hello(20);
  ASSERT_EQ(grants_.size(), 5U) << "four had ended";
}

TEST_F(DurabilityTest, WhatEndedBeforeTheCrashDoesNotRunAgain) {
  Hello(10);
  const JobSpec done = Job(), open = Job(), failed = Job();
  Submit({done, open, failed});
  ASSERT_EQ(grants_.size(), 3U);
  // The rows are committed, and the process dies before it can tell the queue.
  pump_on_ = false;
  End(0, AttemptEnd::kSucceeded);
  End(2, AttemptEnd::kFailed);
  std::vector<Event> unheard;
  pump_->Step(unheard);
  EXPECT_TRUE(Succeeded(done));
  pump_on_ = true;
  ExpectQueue(0, 0, 3);
  Restart();
  EXPECT_GT(reads_, 0U);
  Advance(3s);
  Hello(10);
  ASSERT_EQ(grants_.size(), 2U) << "the one that runs anew, and the retry, once";
  std::set<JobId> again{grants_[0].id, grants_[1].id};
  EXPECT_EQ(again, (std::set{open.id, failed.id}));
  End(0, AttemptEnd::kSucceeded);
  End(1, AttemptEnd::kSucceeded);
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, AStoreThatComesBackOlderRunsNothingTwice) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 6; ++i) jobs.push_back(Job());
  Submit(jobs);
  queue_.Save();
  Hello(4);
  for (std::size_t i = 0; i < 4; ++i) End(i, AttemptEnd::kSucceeded);
  queue_.RollBack();
  Submit({Job()});  // finds out
  Advance(3s);
  ExpectQueue(6, 0, 0);
  grants_.clear();
  Hello(20);
  ASSERT_EQ(grants_.size(), 2U) << "four had ended";
  for (const auto& grant : grants_) EXPECT_TRUE(std::ranges::find(jobs, grant.id, &JobSpec::id) >= jobs.begin() + 4);
}

TEST_F(DurabilityTest, ARepeatedSubmitRunsOnce) {
  Hello(10);
  const JobSpec job = Job();
  Submit({job});
  Submit({job});  // at once: it is running
  ASSERT_EQ(grants_.size(), 1U);
  End(0, AttemptEnd::kSucceeded, true, 20);
  EXPECT_EQ(grants_.size(), 1U);
  Submit({job});  // it has ended
  EXPECT_EQ(grants_.size(), 1U);
  Advance(60s);
  Hello(20);
  Submit({job});  // long after
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_NE(Last<wire::SubmitReply>(), nullptr);
  ExpectQueue(0, 0, 0);
  EXPECT_EQ(dispatcher_->leases(), 0U);
}

TEST_F(DurabilityTest, RefusedWhereTheLedgerIsNeeded) {
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "p";
  JobSpec job = Job();
  job.run = run.id;
  job.stage = "s";
  Handle(event::FromClient{.peer = "c", .message = wire::SubmitRun{.request = 2, .run = run, .jobs = {job}, .watch = false}});
  Settle();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->message, "jobs[0]: durability redis is for single jobs: those of a run are in the ledger");
  JobSpec unique = Job();
  unique.options.unique_key = "k";
  Submit({unique});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "invalid_argument");
}

TEST_F(DurabilityTest, UnservedKeptLinesEndDeadWithTheirSpec) {
  Hello(10);
  JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kSucceeded);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = worker_}});
  JobSpec far = Job();
  far.root = "/far";
  Submit({far});
  worker_ = ids_.Next<WorkerId>();
  const auto hello = [&] {
    Handle(event::FromWorker{.peer = "w",
                             .message = wire::Hello{.worker = worker_,
                                                    .name = "w",
                                                    .queues = {},
                                                    .kinds = {},
                                                    .roots = {"/near"},
                                                    .concurrency = 1,
                                                    .credit_limit = 1,
                                                    .held = {}}});
    Settle();
  };
  for (int i = 0; i < 16; ++i) hello(), Advance(1s);
  ASSERT_TRUE(ledger_.jobs.contains(far.id));
  EXPECT_EQ(ledger_.jobs.at(far.id).outcome->report.error_class, "unreachable_input");
  EXPECT_EQ(ledger_.jobs.at(far.id).spec.root, "/far");
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, AJobThatACancelHadTakenOutWaitsForItsTimeAlsoAfterATakeover) {
  JobSpec later = Job();
  later.run_at = clock_.WallNow() + 60s;
  Submit({later});
  const QueueOp look = queue_op::Remove{ShardId{0}, ledger_.EpochOf(ShardId{0}), {}, true, {later.id}, {}, 100};
  ASSERT_TRUE(queue_.Execute(std::span{&look, 1}).front());
  ExpectQueue(0, 0, 1);
  Restart();
  Hello(1);
  EXPECT_TRUE(grants_.empty());
  ExpectQueue(0, 1, 0);
}

// Taking the shard anew would not make it readable: it is nowhere else.
TEST_F(DurabilityTest, ADamagedEntryEndsAloneAndTheOthersRun) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(Job());
  jobs[3].options.expires_at = clock_.WallNow() + 60s;
  Submit(jobs);
  Restart();
  for (const std::size_t damaged : {1U, 3U, 4U}) queue_.Damage(ShardId{0}, jobs[damaged].id);
  const std::size_t takes = takes_;
  const auto is_dead = [&](const JobSpec& job) {
    const auto it = ledger_.jobs.find(job.id);
    return it != ledger_.jobs.end() && it->second.outcome && it->second.outcome->state == JobState::kDead &&
           it->second.outcome->report.error_class == "damaged_entry" && it->second.outcome->org == kDefaultOrg;
  };
  Advance(61s);
  EXPECT_TRUE(is_dead(jobs[3])) << "it is found when its time is over";
  wire::Cancel cancel{
      .request = ++request_, .org = kDefaultOrg, .items = {{.id = jobs[4].id.uuid}}, .actor = "t", .reason = ""};
  Handle(event::FromClient{.peer = "c", .message = std::move(cancel)});
  Settle();
  EXPECT_TRUE(is_dead(jobs[4])) << "it is found by a look for it";
  Hello(10);
  EXPECT_TRUE(is_dead(jobs[1]));
  ASSERT_EQ(grants_.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) End(i, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(jobs[0]) && Succeeded(jobs[2]));
  EXPECT_EQ(takes_, takes);
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, WhatExpiresIsRecordedWithItsSpec) {
  JobSpec job = Job(), later = Job();
  job.options.expires_at = clock_.WallNow() + 2s;
  later.options.expires_at = clock_.WallNow() + 60s;
  later.run_at = clock_.WallNow() + 50s;
  Submit({job, later});
  Advance(3s);
  ASSERT_TRUE(ledger_.jobs.contains(job.id));
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->state, JobState::kExpired);
  EXPECT_EQ(ledger_.jobs.at(job.id).spec.payload, "p");
  ExpectQueue(0, 1, 0);
  Restart();
  Advance(60s);
  ASSERT_TRUE(ledger_.jobs.contains(later.id)) << "the next owner knows that something may expire";
  EXPECT_EQ(ledger_.jobs.at(later.id).outcome->state, JobState::kExpired);
  Hello(10);
  EXPECT_TRUE(grants_.empty());
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, WhatWasInFlightAtATakeoverStillExpires) {
  JobSpec job = Job();
  job.options.expires_at = clock_.WallNow() + 60s;
  Hello(1);
  Submit({job});
  ASSERT_EQ(grants_.size(), 1U);
  Restart();
  ExpectQueue(1, 0, 0);
  Advance(60s);
  ASSERT_TRUE(ledger_.jobs.contains(job.id));
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->state, JobState::kExpired);
  ExpectQueue(0, 0, 0);
}

// One that the ledger took over waits in a line of the ledger; an old entry of it that expires says nothing about it.
TEST_F(DurabilityTest, AnEntryThatExpiresEndsNothingThatTheLedgerHas) {
  JobSpec job = Job();
  job.options.expires_at = clock_.WallNow() + 3s;
  Hello(1);
  Submit({job});
  Submit({job});
  ASSERT_EQ(grants_.size(), 1U);
  End(0, AttemptEnd::kFailed);
  Advance(4s);
  ASSERT_TRUE(ledger_.jobs.contains(job.id));
  EXPECT_FALSE(ledger_.jobs.at(job.id).outcome) << "it was started in time";
  Hello(10);
  ASSERT_EQ(grants_.size(), 2U);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(job));
  ExpectQueue(0, 0, 0);
}

TEST_F(DurabilityTest, LimitsHoldForBothClassesAndOverATakeover) {
  QueueSettings settings;
  settings.queue = "default";
  settings.concurrency = 2;
  settings.max_waiting_jobs = 3;
  settings.revision = 1;
  ledger_.queues[{kDefaultOrg, "default"}] = settings;
  Restart();
  JobSpec ledger = Job();
  ledger.options = {};
  Submit({Job(), ledger, Job()});
  Submit({Job()});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "queue_full");
  Restart();
  Submit({Job()});
  EXPECT_EQ(Last<wire::Problem>()->code, "queue_full") << "what stayed counts";
  Hello(10);
  ASSERT_EQ(grants_.size(), 2U);
  End(0, AttemptEnd::kSucceeded, true, 10);
  ASSERT_EQ(grants_.size(), 3U);
  End(1, AttemptEnd::kSucceeded, true, 10);
  End(2, AttemptEnd::kSucceeded, true, 10);
  Submit({Job(), Job(), Job()});
  EXPECT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_EQ(grants_.size(), 5U);
}

TEST_F(DurabilityTest, ACancelFindsAJobBeforeAndAfterItBecameTheLedgers) {
  const JobSpec waits = Job(), job = Job();
  const auto cancel = [&](const JobSpec& which) {
    Handle(event::FromClient{.peer = "c",
                             .message = wire::Cancel{.request = ++request_,
                                                     .org = kDefaultOrg,
                                                     .items = {{.id = which.id.uuid, .is_run = false}},
                                                     .actor = "me",
                                                     .reason = ""}});
    Settle();
    EXPECT_NE(Last<wire::CancelReply>(), nullptr);
    return Last<wire::CancelReply>()->items.at(0).effect;
  };
  Submit({waits, job});
  EXPECT_EQ(cancel(waits), CancelEffect::kCancelled);
  Hello(1);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].id, job.id);
  End(0, AttemptEnd::kFailed);
  EXPECT_EQ(cancel(job), CancelEffect::kCancelled) << "it is the ledger's now";
  Advance(2s);
  Hello(10);
  EXPECT_EQ(grants_.size(), 1U);
}

TEST(EntryCodec, OfBothClassesAndSmall) {
  FakeClock clock;
  SeededRandom random(11);
  IdGenerator ids(clock, random);
  JobSpec spec;
  spec.id = ids.Next<JobId>();
  spec.kind = "resize_image";
  spec.payload = std::string(100, 'x');
  spec.submitted_at = clock.WallNow() + 3ms;
  spec.options.durability = Durability::kRedis;
  LineKey line = LineKey::Of(spec);
  line.durability = Durability::kRedis;
  EXPECT_LE(EncodeEntry(spec, {}, line).size(), spec.payload.size() + 7);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    const auto any = [&](auto& field, auto value) {
      if (random.Below(3) == 0) field = value;
    };
    JobEntry entry{.spec = spec, .counters = {}, .check = random.Below(2) == 0};
    JobSpec& s = entry.spec;
    any(s.queue, std::string("odd\x1fqueue\x1e"));
    any(s.priority, 3);
    any(s.org, OrgId{static_cast<std::int64_t>(random.Next() >> 1)});
    any(s.root, std::string("/data"));
    any(s.stage, std::string("stage"));
    any(s.effect, std::string("e/f"));
    any(s.timeout, Millis{static_cast<std::int64_t>(random.Next() >> 1)});
    const auto instant = [&] {
      return kInstantMin + Micros{random.Below(static_cast<std::uint64_t>((kInstantMax - kInstantMin).count()))};
    };
    any(s.run_at, instant());
    any(s.submitted_at, instant());
    any(s.retry.max_attempts, static_cast<int>(random.Below(101)));
    any(s.retry.backoff_cap, Millis{1});
    any(s.options.limit_key, std::string("k"));
    any(entry.counters.deliveries, static_cast<std::uint32_t>(random.Next()));
    any(entry.counters.crashes, 3U);
    s.payload.resize(random.Below(300), '\x1e');
    s.options.durability = random.Below(2) == 0 ? Durability::kRedis : Durability::kLedger;
    LineKey of = LineKey::Of(s);
    if (s.options.durability == Durability::kRedis && random.Below(2) == 0) of.durability = Durability::kRedis;
    const auto parsed = LineKey::Parse(of.ToString());
    ASSERT_TRUE(parsed);
    ASSERT_EQ(*parsed, of);
    EXPECT_EQ(IsKeptLine(of.ToString()), of.durability == Durability::kRedis);
    const std::string bytes = EncodeEntry(s, entry.counters, of, entry.check);
    const auto back = DecodeEntry(bytes, s.id, of);
    ASSERT_TRUE(back) << back.error().message;
    ASSERT_EQ(*back, entry);
    EXPECT_FALSE(DecodeEntry(std::string_view(bytes).substr(0, random.Below(bytes.size())), s.id, of));
  }
}

TEST_F(DurabilityTest, AJobThatDoesNotSayIsOfItsQueuesClass) {
  SetClass(Durability::kRedis);
  JobSpec taken = Unsaid(), said = Unsaid(), elsewhere = Unsaid(), unique = Unsaid();
  said.options.durability = Durability::kLedger;
  elsewhere.queue = "other";
  unique.options.unique_key = "k";
  Submit({taken, said, elsewhere, unique});
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_FALSE(Accepted(taken)) << "only the queue has it";
  EXPECT_TRUE(Accepted(said));
  EXPECT_TRUE(Accepted(elsewhere)) << "the setting is of one queue";
  EXPECT_TRUE(Accepted(unique)) << "its key is decided in the ledger";
  EXPECT_EQ(ledger_.jobs.at(said.id).spec.options, JobOptions{}) << "a row says nothing of it, as ever";
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "p";
  run.overlap = "allow";
  JobSpec stage = Unsaid();
  stage.run = run.id;
  stage.stage = "a";
  Handle(event::FromClient{.peer = "c", .message = wire::SubmitRun{.request = 9, .run = run, .jobs = {stage}, .watch = false}});
  Settle();
  EXPECT_TRUE(Accepted(stage)) << "jobs of a run are the ledger's";
  SetClass(Durability::kLedger);
  clock_.Advance(1ms);
  JobSpec later = Unsaid();
  const JobSpec fast = Job();
  Submit({later, fast});
  EXPECT_TRUE(Accepted(later));
  EXPECT_FALSE(Accepted(fast)) << "it says redis";
  Hello(10);
  EXPECT_EQ(grants_.size(), 7U);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(taken) && Succeeded(fast) && Succeeded(later));
}

TEST_F(DurabilityTest, AJobOfItsQueuesClassThatFailedIsShownWithIt) {
  SetClass(Durability::kRedis);
  const JobSpec job = Unsaid();
  Submit({job});
  Hello(1);
  End(0, AttemptEnd::kFailed);
  EXPECT_EQ(ledger_.jobs.at(job.id).spec.options.durability, Durability::kRedis);
}

TEST_F(DurabilityTest, ARepeatedSubmitHasTheClassOfTheFirstOne) {
  const JobSpec first = Unsaid();
  Submit({first});
  clock_.Advance(1ms);
  SetClass(Durability::kRedis);
  Submit({first});
  clock_.Advance(1ms);
  const JobSpec second = Unsaid();
  Submit({second});
  SetClass(Durability::kLedger);
  for (const Micros wait : {Micros{0}, Micros{5s}, Micros{60s}}) {
    Advance(wait);
    Submit({second});
    EXPECT_FALSE(Accepted(second));
  }
  Hello(10);
  EXPECT_EQ(grants_.size(), 2U);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  Submit({first, second});
  Advance(1s);
  EXPECT_EQ(grants_.size(), 2U) << "they have ended";
  EXPECT_TRUE(Succeeded(first) && Succeeded(second));
}

// Clocks of brokers are minutes apart, and step.
TEST_F(DurabilityTest, ARepeatedSubmitOfAnIdThatIsAheadRunsOnce) {
  for (const bool takeover : {false, true})
    for (const bool changed : {false, true}) {
      SetClass(Durability::kRedis);
      clock_.Advance(60s);
      const JobSpec job = Unsaid();
      Submit({job});
      EXPECT_FALSE(Accepted(job));
      if (changed) SetClass(Durability::kLedger);
      clock_.StepWall(-60s);
      if (takeover) Restart();
      if (!takeover) Advance(13s);
      Submit({job});
      EXPECT_FALSE(Accepted(job)) << takeover << changed;
    }
  Hello(10);
  EXPECT_EQ(grants_.size(), 4U);
}

// A setting that was written past the broker counts from when it reads it; what is stored is older.
TEST_F(DurabilityTest, AJobThatWasTakenBeforeTheBrokerKnewOfTheChangeRunsOnce) {
  SetClass(Durability::kRedis);
  QueueSettings next = ledger_.queues[{kDefaultOrg, "default"}];
  next.durability = Durability::kLedger;
  ASSERT_TRUE(ledger_.PutQueueSettings(next, "x", {}));
  clock_.Advance(1500ms);
  const JobSpec job = Unsaid();
  Submit({job});
  EXPECT_FALSE(Accepted(job)) << "not read yet";
  Restart();
  Submit({job});
  Hello(10);
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_FALSE(Accepted(job));
  clock_.Advance(5s);
  const JobSpec fresh = Unsaid();
  Submit({fresh});
  EXPECT_TRUE(Accepted(fresh)) << "nobody can have been asked for this one";
}

TEST_F(DurabilityTest, SomeTimeAfterTheChangeEveryJobIsOfTheNewClass) {
  SetClass(Durability::kRedis);
  SetClass(Durability::kLedger);
  JobSpec doubtful = Unsaid();
  clock_.Advance(kClassChangeDoubt);
  Submit({doubtful});
  EXPECT_FALSE(Accepted(doubtful)) << "made when brokers may still have known the former class";
  clock_.Advance(1ms);
  const JobSpec old = Unsaid();
  clock_.Advance(60s);
  Submit({old});
  EXPECT_TRUE(Accepted(old)) << "it was kept for a minute, but is of a time when it was ledger class for sure";
}

// Classes are set, jobs submitted, repeated, run and taken over in any order: each runs to its end once.
TEST_F(DurabilityTest, WhateverIsSetMeanwhileAJobRunsOnce) {
  SeededRandom random(11);
  std::vector<JobSpec> jobs;
  std::set<JobId> ended;
  std::size_t seen = 0;
  std::uint64_t credit = 0;
  const auto run = [&](std::uint64_t more) {  // few enough that jobs wait
    credit += more;
    Hello(credit);
    for (; seen < grants_.size(); ++seen) {
      EXPECT_TRUE(ended.insert(grants_[seen].id).second) << "it ran twice";
      End(seen, AttemptEnd::kSucceeded, true, credit);
    }
  };
  for (int step = 0; step < 3000; ++step) {
    clock_.Advance(Micros{static_cast<std::int64_t>(random.Below(4) == 0 ? random.Below(4'000'000) : random.Below(2'000))});
    const std::uint64_t what = random.Below(100);
    if (what < 25) {
      SetClass(what < 12 ? Durability::kRedis : Durability::kLedger);
    } else if (what < 55) {
      jobs.push_back(Unsaid());
      Submit({jobs.back()});
    } else if (what < 80 && !jobs.empty()) {
      Submit({jobs[jobs.size() - 1 - random.Below(std::min<std::size_t>(jobs.size(), 20))]});
    } else if (what < 97) {
      run(1 + random.Below(3));
    } else {
      Restart();
      seen = 0;
      credit = 0;
    }
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
  for (int i = 0; i < 60; ++i, Advance(1s)) run(100);  // what a broker before left running starts again after a while
  EXPECT_EQ(ended.size(), jobs.size()) << "all were accepted";
}

TEST(RecentIds, ForgetsAfterTwoPeriods) {
  SeededRandom random(3);
  FakeClock clock;
  IdGenerator ids(clock, random);
  RecentIds recent(1s);
  MonoTime now{10s};
  std::vector<Uuid> many;
  for (int i = 0; i < 5000; ++i) many.push_back(ids.Next());
  for (const Uuid& id : many) EXPECT_FALSE(recent.Seen(id, now));
  for (const Uuid& id : many) EXPECT_TRUE(recent.Seen(id, now + 900ms));
  for (const Uuid& id : many) EXPECT_TRUE(recent.Seen(id, now + 1500ms));
  for (const Uuid& id : many) EXPECT_TRUE(recent.Seen(id, now + 2400ms)) << "the hit before was a new one";
  EXPECT_FALSE(recent.Seen(many.front(), now + 10s));
}

TEST(RecentIds, GivesItsMemoryBackWhenNothingIsAskedAnyMore) {
  SeededRandom random(4);
  FakeClock clock;
  IdGenerator ids(clock, random);
  RecentIds recent(1s);
  MonoTime now{10s};
  const Uuid first = ids.Next();
  EXPECT_FALSE(recent.Seen(first, now));
  for (int i = 0; i < 5000; ++i) recent.Seen(ids.Next(), now);
  EXPECT_GE(recent.MemoryBytes(), 5000 * sizeof(std::uint64_t));
  recent.Forget(now + 900ms);
  recent.Forget(now + 1100ms);
  EXPECT_GE(recent.MemoryBytes(), 5000 * sizeof(std::uint64_t)) << "one period is kept";
  EXPECT_TRUE(recent.Seen(first, now + 1500ms));
  recent.Forget(now + 2200ms);
  recent.Forget(now + 3300ms);
  EXPECT_EQ(recent.MemoryBytes(), 0u);
}

}  // namespace
}  // namespace millrace
