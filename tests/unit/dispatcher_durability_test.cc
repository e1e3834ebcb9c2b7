// Jobs of `durability: redis` in the dispatcher, one step at a time, against a queue and a ledger in memory.
#include <algorithm>

#include "broker/entry_codec.h"
#include "broker/recent_ids.h"
#include "common/model/instants.h"
#include "tests/support/durability_fixture.h"

namespace millrace {
namespace {

using testing::DurabilityTest;

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
