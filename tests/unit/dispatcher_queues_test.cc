// Limits, pause and budgets of queues inside the dispatcher: through failure, loss, retry and takeover.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "broker/dispatcher.h"
#include "broker/ledger_pump.h"
#include "common/base/log.h"
#include "common/model/whole_org.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"

namespace millrace {
namespace {

class DispatcherQueuesTest : public testing::Test {
 protected:
  DispatcherQueuesTest() {
    ConfigureLog(LogLevel::kOff, LogFormat::kText, "test");
    Start();
  }
  // A new process: nothing of the old one is left but ledger and queue.
  void Start() {
    dispatcher_ = std::make_unique<Dispatcher>(
        DispatcherOptions{.name = "b", .shard_count = 1, .shards = {ShardId{0}}, .random = &random_});
    pump_ = std::make_unique<LedgerPump>(
        LedgerPumpOptions{.owner = ids_.Next<OwnerId>(), .owner_name = "b", .shards = {ShardId{0}}, .shard_count = 1}, ledger_,
        clock_);
    Settle();
  }
  void Settle() {
    for (int round = 0; round < 200; ++round) {
      std::vector<Event> events;
      pump_->Step(events);
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
      if (auto* ledger = std::get_if<LedgerCommand>(&command)) pump_->Post(std::move(*ledger));
      if (auto* execute = std::get_if<command::Execute>(&command))
        replies.Add(execute->id, execute->op, std::move(queue_.Execute(std::span{&execute->op, 1}).front()));
      if (auto* send = std::get_if<command::SendWorker>(&command))
        if (const auto* grant = std::get_if<wire::Grant>(&send->message))
          for (const auto& job : grant->jobs) running_.emplace_back(send->peer, job);
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
  // Time passes while the worker goes on beating.
  void Live(const std::string& peer, Micros d) {
    for (; d > Micros{0}; d -= Micros{500'000}) {
      clock_.Advance(std::min(d, Micros{500'000}));
      Beat(peer);
      Handle(event::Tick{});
      Settle();
    }
  }
  JobSpec Job(const std::string& limit_key = "") {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "work";
    job.payload = std::string(100, 'x');
    job.retry = {.max_attempts = 3, .backoff_base = Millis{1000}, .backoff_cap = Millis{1000}};
    job.options.limit_key = limit_key;
    return job;
  }
  std::vector<JobSpec> Jobs(int n, const std::string& limit_key = "") {
    std::vector<JobSpec> jobs;
    for (int i = 0; i < n; ++i) jobs.push_back(Job(limit_key));
    return jobs;
  }
  void Submit(std::vector<JobSpec> jobs) {
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = 1, .jobs = std::move(jobs)}});
    Settle();
  }
  void Set(QueueSettings settings) {
    client_.clear();
    Handle(
        event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = std::move(settings), .actor = "t"}});
    Settle();
  }
  QueueSettings Settings() const {
    QueueSettings settings;
    settings.queue = "default";
    const auto it = ledger_.queues.find({kDefaultOrg, "default"});
    return it == ledger_.queues.end() ? settings : it->second;
  }
  void Hello(const std::string& peer) {
    if (!workers_.contains(peer)) workers_[peer] = ids_.Next<WorkerId>();
    Handle(event::FromWorker{.peer = peer,
                             .message = wire::Hello{.worker = workers_[peer],
                                                    .name = peer,
                                                    .queues = {},
                                                    .kinds = {},
                                                    .roots = {},
                                                    .concurrency = 100,
                                                    .credit_limit = 1000,
                                                    .held = {}}});
    Settle();
  }
  void Beat(const std::string& peer) {
    wire::Beat beat{.worker = workers_[peer], .credit_limit = 1000, .held = {}, .progress = {}, .draining = false};
    for (const auto& [who, job] : running_)
      if (who == peer) beat.held.push_back({.job = job.id, .token = job.token});
    Handle(event::FromWorker{.peer = peer, .message = std::move(beat)});
    Settle();
  }
  void EndFirst(AttemptEnd end) {
    const auto [peer, job] = running_.front();
    running_.erase(running_.begin());
    AttemptReport report;
    report.job = job.id;
    report.token = job.token;
    report.end = end;
    Handle(event::FromWorker{.peer = peer,
                             .message = wire::Ended{.worker = workers_[peer], .credit_limit = 1000, .reports = {report}}});
    Settle();
  }
  const wire::Problem* Refusal() const { return client_.empty() ? nullptr : std::get_if<wire::Problem>(&client_.front()); }
  wire::ListQueuesReply::Item Listed() {
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = wire::ListQueues{.request = 9, .org = kDefaultOrg, .after = {}}});
    Settle();
    const auto* reply = client_.empty() ? nullptr : std::get_if<wire::ListQueuesReply>(&client_.front());
    return reply == nullptr || reply->queues.empty() ? wire::ListQueuesReply::Item{} : reply->queues.front();
  }

  FakeClock clock_;
  SeededRandom random_{7};
  IdGenerator ids_{clock_, random_};
  test::MemoryLedger ledger_{clock_};
  test::MemoryQueue queue_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<LedgerPump> pump_;
  std::map<std::string, WorkerId> workers_;
  std::vector<std::pair<std::string, wire::Grant::Job>> running_;
  std::vector<wire::Message> client_;
};

TEST_F(DispatcherQueuesTest, ConcurrencyHoldsThroughFailureLossAndRetry) {
  QueueSettings settings = Settings();
  settings.concurrency = 3;
  settings.key_concurrency = 2;
  Set(settings);
  ASSERT_FALSE(client_.empty());
  ASSERT_NE(std::get_if<wire::SetQueueReply>(&client_.front()), nullptr);
  EXPECT_EQ(std::get<wire::SetQueueReply>(client_.front()).revision, 1);
  Hello("w");
  Submit(Jobs(6, "customer"));
  EXPECT_EQ(running_.size(), 2U);
  Submit(Jobs(6));
  EXPECT_EQ(running_.size(), 3U);
  EndFirst(AttemptEnd::kSucceeded);
  EXPECT_EQ(running_.size(), 3U);
  EndFirst(AttemptEnd::kHandedBack);  // starts again at once
  EXPECT_EQ(running_.size(), 3U);
  EndFirst(AttemptEnd::kFailed);  // waits for its backoff
  EXPECT_EQ(running_.size(), 3U);
  EXPECT_EQ(dispatcher_->leases(), 3U);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  Settle();
  EXPECT_EQ(dispatcher_->leases(), 0U);
  running_.clear();
  Hello("v");
  EXPECT_EQ(running_.size(), 3U) << "what a lost worker held counts no more";
  std::size_t ended = 0;
  for (int i = 0; i < 100 && ended < 11; ++i) {
    ASSERT_LE(dispatcher_->leases(), 3U);
    if (running_.empty()) {
      Live("v", 1s);
      continue;
    }
    EndFirst(AttemptEnd::kSucceeded);
    ++ended;
  }
  EXPECT_EQ(ended, 11U);
  for (const auto& [id, rows] : ledger_.jobs) EXPECT_TRUE(rows.outcome);
}

TEST_F(DispatcherQueuesTest, LimitsHoldAfterATakeoverAndAWipe) {
  QueueSettings settings = Settings();
  settings.concurrency = 2;
  Set(settings);
  Hello("w");
  Submit(Jobs(5));
  EXPECT_EQ(running_.size(), 2U);
  queue_.Wipe();
  EndFirst(AttemptEnd::kSucceeded);  // finds out: taken anew, everything revoked
  running_.clear();
  Advance(1s);
  Advance(1s);
  EXPECT_EQ(dispatcher_->leases(), 2U);
  EXPECT_EQ(running_.size(), 2U);
  clock_.Advance(kOwnershipTtl + 1s);
  running_.clear();
  Start();
  Hello("v");
  EXPECT_EQ(running_.size(), 0U) << "what may run counts: the limit is reached";
  EXPECT_EQ(dispatcher_->leases(), 2U);
  Live("v", 4s);
  EXPECT_EQ(running_.size(), 2U) << "another process reads the same settings before it grants";
  for (int i = 0; i < 4; ++i) {
    ASSERT_FALSE(running_.empty());
    EndFirst(AttemptEnd::kSucceeded);
    EXPECT_LE(running_.size(), 2U);
  }
  EXPECT_TRUE(std::ranges::all_of(ledger_.jobs, [](const auto& j) { return j.second.outcome.has_value(); }));
}

TEST_F(DispatcherQueuesTest, ARateLetsJobsStartInTheirTime) {
  QueueSettings settings = Settings();
  settings.rate = {.count = 2, .per = Millis{1000}, .burst = 0};
  Advance(1s);  // the broker has just taken the shard: its buckets are empty
  Set(settings);
  Hello("w");
  Submit(Jobs(6));
  EXPECT_EQ(running_.size(), 2U);
  ASSERT_TRUE(dispatcher_->NextDue());
  EXPECT_EQ(*dispatcher_->NextDue(), clock_.WallNow() + Micros{500'000}) << "the loop wakes for the next token";
  clock_.Advance(Micros{500'000});
  Settle();  // without a tick
  EXPECT_EQ(running_.size(), 3U);
  Live("w", 1s);
  EXPECT_EQ(running_.size(), 5U);
  // A job that is handed back takes another token.
  EndFirst(AttemptEnd::kHandedBack);
  EXPECT_EQ(running_.size(), 4U);
  Live("w", 500ms);
  EXPECT_EQ(running_.size(), 5U);
}

TEST_F(DispatcherQueuesTest, ANewOwnerSpendsNoTokenTwice) {
  QueueSettings settings = Settings();
  settings.rate = {.count = 1, .per = Millis{10'000}, .burst = 3};
  for (int i = 0; i < 30; ++i) Advance(1s);
  Set(settings);
  Hello("w");
  Submit(Jobs(6));
  EXPECT_EQ(running_.size(), 3U);
  clock_.Advance(kOwnershipTtl + 1s);
  running_.clear();
  Start();
  Hello("w");
  EXPECT_EQ(running_.size(), 0U);
  Live("w", 10s);
  EXPECT_EQ(running_.size(), 1U);
}

TEST_F(DispatcherQueuesTest, APausedQueueGrantsNothingAndWhatRunsGoesOn) {
  Hello("w");
  Submit(Jobs(2));
  ASSERT_EQ(running_.size(), 2U);
  QueueSettings settings = Settings();
  settings.paused = true;
  Set(settings);
  Submit(Jobs(3));
  ASSERT_NE(std::get_if<wire::SubmitReply>(&client_.front()), nullptr) << "a paused queue accepts";
  EndFirst(AttemptEnd::kSucceeded);
  EndFirst(AttemptEnd::kHandedBack);
  EXPECT_TRUE(running_.empty());
  const auto listed = Listed();
  EXPECT_EQ(listed.ready, 4U);
  EXPECT_EQ(listed.running, 0U);
  EXPECT_EQ(listed.waiting, 4U);
  EXPECT_EQ(listed.waiting_bytes, 400U);
  EXPECT_TRUE(listed.settings.paused);
  // Somebody else resumes it in the ledger: seen with the next poll.
  settings = Settings();
  settings.paused = false;
  ASSERT_TRUE(ledger_.PutQueueSettings(settings, "cli", clock_.Now()));
  Live("w", 2s);
  EXPECT_EQ(running_.size(), 4U);
}

TEST_F(DispatcherQueuesTest, ASettingThatComesDuringATakeoverCounts) {
  Submit(Jobs(3));
  clock_.Advance(kOwnershipTtl + 1s);
  dispatcher_ = std::make_unique<Dispatcher>(
      DispatcherOptions{.name = "c", .shard_count = 1, .shards = {ShardId{0}}, .random = &random_});
  QueueSettings settings = Settings();
  settings.concurrency = 1;
  client_.clear();
  Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = settings, .actor = "t"}});
  pump_ = std::make_unique<LedgerPump>(
      LedgerPumpOptions{.owner = ids_.Next<OwnerId>(), .owner_name = "c", .shards = {ShardId{0}}, .shard_count = 1}, ledger_,
      clock_);
  Hello("w");
  Settle();
  ASSERT_FALSE(client_.empty());
  EXPECT_TRUE(std::holds_alternative<wire::SetQueueReply>(client_.front()));
  EXPECT_EQ(running_.size(), 1U);
}

TEST_F(DispatcherQueuesTest, AStaleRevisionIsRefused) {
  QueueSettings settings = Settings();
  Set(settings);
  Set(settings);
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "conflict");
  settings = Settings();
  settings.queue = "";
  Set(settings);
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "invalid_argument");
}

TEST_F(DispatcherQueuesTest, ASubmitBeyondTheBudgetIsRefusedBeforeAnythingIsWritten) {
  QueueSettings settings = Settings();
  settings.max_waiting_jobs = 5;
  Set(settings);
  Submit(Jobs(4));
  ASSERT_NE(std::get_if<wire::SubmitReply>(&client_.front()), nullptr);
  Submit(Jobs(2));
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "queue_full");
  for (const char* part : {"'default'", "4 jobs wait", "2 more", "limit of 5", "--max-waiting"})
    EXPECT_NE(Refusal()->message.find(part), std::string::npos) << Refusal()->message;
  EXPECT_EQ(ledger_.jobs.size(), 4U);
  Submit(Jobs(6));
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "invalid_argument") << "it never fits: nobody should try again";
  Submit(Jobs(1));
  EXPECT_EQ(ledger_.jobs.size(), 5U);
  Hello("w");  // takes all of them
  ASSERT_EQ(running_.size(), 5U);
  Submit(Jobs(5));
  EXPECT_EQ(ledger_.jobs.size(), 10U) << "running jobs do not wait";
}

TEST_F(DispatcherQueuesTest, BytesCountAndARebuildCountsAgain) {
  QueueSettings settings = Settings();
  settings.max_waiting_bytes = 350;
  Set(settings);
  auto later = Jobs(1);
  later[0].run_at = clock_.WallNow() + 60s;
  Submit(later);
  Submit(Jobs(2));
  Submit(Jobs(1));
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_NE(Refusal()->message.find("300 bytes wait, 100 more"), std::string::npos) << Refusal()->message;
  clock_.Advance(kOwnershipTtl + 1s);
  Start();
  EXPECT_EQ(Listed().waiting_bytes, 300U);
  Submit(Jobs(1));
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "queue_full");
}

TEST_F(DispatcherQueuesTest, AnOrgsBudgetIsOverAllItsQueuesAndHoldsAfterATakeover) {
  const auto jobs = [&](OrgId org, const std::vector<std::string>& queues) {
    auto all = Jobs(static_cast<int>(queues.size()));
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].org = org;
      all[i].queue = queues[i];
    }
    return all;
  };
  const OrgId other{2};
  Submit(jobs(kDefaultOrg, {"a"}));  // before anything is set
  QueueSettings settings;
  settings.queue = kWholeOrg;
  settings.max_waiting_jobs = 3;
  Set(settings);
  ASSERT_NE(std::get_if<wire::SetQueueReply>(&client_.front()), nullptr);
  Submit(jobs(kDefaultOrg, {"b"}));
  ASSERT_EQ(ledger_.jobs.size(), 2U);
  Submit(jobs(kDefaultOrg, {"c", "d"}));
  ASSERT_NE(Refusal(), nullptr) << "another name is no way around it";
  EXPECT_EQ(Refusal()->code, "queue_full");
  for (const char* part : {"org 1", "2 jobs wait", "2 more", "limit of 3", "millrace queue set '*' --max-waiting"})
    EXPECT_NE(Refusal()->message.find(part), std::string::npos) << Refusal()->message;
  EXPECT_EQ(ledger_.jobs.size(), 2U);
  Submit(jobs(other, {"a", "b", "c", "d"}));
  EXPECT_EQ(ledger_.jobs.size(), 6U) << "another org has its own";
  const auto listed = Listed();
  EXPECT_EQ(listed.settings.queue, "*");
  EXPECT_EQ(listed.settings.max_waiting_jobs, 3U);
  EXPECT_EQ(listed.waiting, 2U);
  EXPECT_EQ(listed.waiting_bytes, 200U);

  clock_.Advance(kOwnershipTtl + 1s);
  Start();
  Submit(jobs(kDefaultOrg, {"e", "f"}));
  ASSERT_NE(Refusal(), nullptr) << "a new owner counts what it rebuilds";
  EXPECT_EQ(Refusal()->code, "queue_full");
  Hello("w");  // takes all of them
  ASSERT_EQ(running_.size(), 6U);
  Submit(jobs(kDefaultOrg, {"e", "f", "g"}));
  EXPECT_EQ(ledger_.jobs.size(), 9U);
}

TEST_F(DispatcherQueuesTest, TheWholeOrgIsNoQueue) {
  auto jobs = Jobs(1);
  jobs[0].queue = kWholeOrg;
  Submit(jobs);
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "invalid_argument");
  EXPECT_EQ(Refusal()->message, "jobs[0]: queue: '*' is all queues of an org; give the name of one");
  QueueSettings settings;
  settings.queue = kWholeOrg;
  settings.paused = true;
  Set(settings);
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "invalid_argument");
  EXPECT_EQ(Refusal()->message.find("paused: "), 0U) << Refusal()->message;
}

TEST_F(DispatcherQueuesTest, WhatIsBeingAcceptedCountsAndARefusedCommitDoesNot) {
  QueueSettings settings = Settings();
  settings.max_waiting_jobs = 3;
  Set(settings);
  client_.clear();
  for (int i = 0; i < 3; ++i)
    Handle(
        event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = static_cast<std::uint64_t>(i), .jobs = Jobs(2)}});
  EXPECT_EQ(client_.size(), 0U);
  Settle();
  EXPECT_EQ(std::ranges::count_if(client_, [](const auto& m) { return std::holds_alternative<wire::Problem>(m); }), 2);
  EXPECT_EQ(ledger_.jobs.size(), 2U);
  EXPECT_EQ(Listed().waiting, 2U);
}

TEST_F(DispatcherQueuesTest, ARunCountsItsFirstStagesAndItsDependentsAreNeverRefused) {
  QueueSettings settings = Settings();
  settings.max_waiting_jobs = 1;
  Set(settings);
  const auto submit_run = [&] {
    RunSpec run;
    run.id = ids_.Next<RunId>();
    run.pipeline = "p" + run.id.ToString();
    auto jobs = Jobs(4);
    for (JobSpec& job : jobs) job.run = run.id;
    for (std::size_t i = 1; i < jobs.size(); ++i) jobs[i].depends_on = {jobs[0].id};
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitRun{.request = 2, .run = run, .jobs = jobs, .watch = false}});
    Settle();
  };
  submit_run();
  EXPECT_EQ(ledger_.runs.size(), 1U);
  submit_run();
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "queue_full");
  EXPECT_EQ(ledger_.runs.size(), 1U);
  Hello("w");
  for (int i = 0; i < 4; ++i) EndFirst(AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.size(), 1U);
  EXPECT_EQ(Listed().waiting, 0U);
}

TEST_F(DispatcherQueuesTest, AStoreThatIsFourFifthsFullTakesNoMore) {
  Handle(event::QueueMemoryRead{.memory = {.used = 799'999, .max = 1'000'000}});
  Submit(Jobs(1));
  EXPECT_EQ(ledger_.jobs.size(), 1U);
  Handle(event::QueueMemoryRead{.memory = {.used = 800'000, .max = 1'000'000}});
  Submit(Jobs(1));
  ASSERT_NE(Refusal(), nullptr);
  EXPECT_EQ(Refusal()->code, "queue_full");
  EXPECT_NE(Refusal()->message.find("maxmemory of 1000000"), std::string::npos) << Refusal()->message;
  EXPECT_EQ(ledger_.jobs.size(), 1U);
  Handle(event::QueueMemoryRead{.memory = {.used = 5'000'000'000, .max = 0}});  // no limit
  Submit(Jobs(1));
  EXPECT_EQ(ledger_.jobs.size(), 2U);
}

TEST_F(DispatcherQueuesTest, ThousandsOfLimitKeysAllGetTheirTurn) {
  QueueSettings settings = Settings();
  settings.key_concurrency = 1;
  Set(settings);
  for (int key = 0; key < 2000; key += 500) {
    std::vector<JobSpec> jobs;
    for (int i = 0; i < 500; ++i)
      for (int twice = 0; twice < 2; ++twice) jobs.push_back(Job(std::to_string(key + i)));
    Submit(std::move(jobs));
  }
  Hello("w");
  EXPECT_EQ(running_.size(), 1000U) << "all its credit";
  std::set<std::string> keys;
  for (const auto& [peer, job] : running_) keys.insert(ledger_.jobs.at(job.id).spec.options.limit_key);
  EXPECT_EQ(keys.size(), 1000U) << "one job of each";
}

}  // namespace
}  // namespace millrace
