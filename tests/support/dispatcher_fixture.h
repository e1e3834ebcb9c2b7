// A dispatcher with its ledger pump, against a queue and a ledger in memory and a clock that stands: the fixture of the
// dispatcher's unit tests. Everything is settled after each call.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "broker/dispatcher.h"
#include "broker/ledger_pump.h"
#include "common/base/log.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"

namespace millrace::testing {

class DispatcherTest : public ::testing::Test {
 protected:
  explicit DispatcherTest(std::size_t unqueued_bytes_max = kUnqueuedBytesMax, std::uint16_t shard_count = 1)
      : ledger_{clock_, shard_count},
        dispatcher_{{.name = "b",
                     .shard_count = shard_count,
                     .shards = ShardsOf(shard_count),
                     .random = &random_,
                     .unqueued_bytes_max = unqueued_bytes_max}},
        pump_{{.owner = ids_.Next<OwnerId>(), .owner_name = "b", .shards = ShardsOf(shard_count), .shard_count = shard_count},
              ledger_,
              clock_} {
    ConfigureLog(LogLevel::kOff, LogFormat::kText, "test");
    Settle();
  }
  static std::vector<ShardId> ShardsOf(std::uint16_t count) {
    std::vector<ShardId> shards;
    while (shards.size() < count) shards.emplace_back(static_cast<std::uint16_t>(shards.size()));
    return shards;
  }
  // Runs until nothing is left to do at this time.
  void Settle() {
    for (int round = 0; round < 50; ++round) {
      std::vector<Event> events;
      pump_.Step(events);
      for (Event& event : events) Handle(std::move(event));
      if (!Flush() && events.empty()) return;
    }
    FAIL() << "does not settle";
  }
  void Handle(Event event) { dispatcher_.Handle(std::move(event), clock_.Now(), clock_.WallNow()); }
  bool Flush() {
    std::vector<Command> commands;
    dispatcher_.Flush(clock_.Now(), clock_.WallNow(), commands);
    event::QueueReplies replies;
    for (Command& command : commands) {
      if (HoldKnown(command)) continue;
      if (auto* ledger = std::get_if<LedgerCommand>(&command)) {
        if (std::holds_alternative<command::ReadStates>(*ledger)) ++state_reads_;
        if (std::holds_alternative<command::ReadQueueSettings>(*ledger)) ++settings_reads_;
        pump_.Post(std::move(*ledger));
      }
      if (auto* execute = std::get_if<command::Execute>(&command)) {
        ++queue_ops_;
        executed_.push_back(execute->op);
        replies.Add(execute->id, execute->op, std::move(queue_.Execute(std::span{&execute->op, 1}).front()));
      }
      if (auto* send = std::get_if<command::SendWorker>(&command)) Sort(send->peer, send->message);
      if (auto* send = std::get_if<command::SendClient>(&command)) client_.push_back(std::move(send->message));
    }
    if (hold_replies_) {
      std::ranges::move(replies.replies, std::back_inserter(held_.replies));
      std::ranges::move(replies.refused, std::back_inserter(held_.refused));
    } else if (!replies.replies.empty()) {
      Handle(std::move(replies));
    }
    return !commands.empty();
  }
  void Sort(const std::string& peer, const wire::Message& message) {
    if (const auto* grant = std::get_if<wire::Grant>(&message))
      for (const auto& job : grant->jobs) grants_.emplace_back(peer, job);
    if (const auto* reply = std::get_if<wire::EndedReply>(&message))
      replies_.insert(replies_.end(), reply->items.begin(), reply->items.end());
    if (const auto* revoke = std::get_if<wire::Revoke>(&message))
      revokes_.insert(revokes_.end(), revoke->items.begin(), revoke->items.end());
    if (const auto* adopt = std::get_if<wire::Adopt>(&message))
      adopts_.insert(adopts_.end(), adopt->items.begin(), adopt->items.end());
    if (const auto* beat = std::get_if<wire::BrokerBeat>(&message)) known_ = beat->known;
  }
  void Advance(Micros d) {
    clock_.Advance(d);
    Handle(event::Tick{});
    Settle();
  }
  JobSpec Job(int priority = kPriorityDefault) {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "work";
    job.priority = priority;
    job.retry = {.max_attempts = 2, .backoff_base = Millis{1000}, .backoff_cap = Millis{1000}};
    return job;
  }
  void Submit(std::vector<JobSpec> jobs) {
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = 1, .jobs = std::move(jobs)}});
    Settle();
  }
  RunSpec SubmitRun(std::vector<JobSpec>& jobs, const std::string& overlap = "queue", bool watch = false) {
    RunSpec run;
    run.id = ids_.Next<RunId>();
    run.pipeline = "p";
    run.overlap = overlap;
    for (JobSpec& job : jobs) job.run = run.id;
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitRun{.request = 2, .run = run, .jobs = jobs, .watch = watch}});
    Settle();
    return run;
  }
  void Hello(const std::string& peer, std::uint64_t credit, std::vector<wire::Hello::Held> held = {}) {
    if (!workers_.contains(peer)) workers_[peer] = ids_.Next<WorkerId>();
    wire::Hello hello{.worker = workers_[peer],
                      .name = peer,
                      .queues = reach_.queues,
                      .kinds = reach_.kinds,
                      .roots = reach_.roots,
                      .concurrency = 100,
                      .credit_limit = credit,
                      .held = std::move(held)};
    Handle(event::FromWorker{.peer = peer, .message = std::move(hello)});
    Settle();
  }
  void Beat(const std::string& peer, std::uint64_t credit, std::vector<wire::Hello::Held> held = {}) {
    if (!workers_.contains(peer)) workers_[peer] = ids_.Next<WorkerId>();
    Handle(event::FromWorker{
        .peer = peer,
        .message = wire::Beat{
            .worker = workers_[peer], .credit_limit = credit, .held = std::move(held), .progress = {}, .draining = false}});
    Settle();
  }
  void End(std::size_t grant, AttemptEnd end, bool retryable = true, std::uint64_t credit = 0) {
    AttemptReport report;
    report.end = end;
    report.retryable = retryable;
    report.error = end == AttemptEnd::kSucceeded ? "" : "broke";
    End(grant, std::move(report), credit);
  }
  void End(std::size_t grant, AttemptReport report, std::uint64_t credit = 0) {
    const auto [peer, job] = grants_.at(grant);
    report.job = job.id;
    report.token = job.token;
    Handle(event::FromWorker{.peer = peer,
                             .message = wire::Ended{.worker = workers_[peer], .credit_limit = credit, .reports = {report}}});
    Settle();
  }
  std::optional<JobState> Outcome(const JobSpec& job) {
    const auto& outcome = ledger_.jobs.at(job.id).outcome;
    return outcome ? std::optional(outcome->state) : std::nullopt;
  }
  std::vector<JobId> Granted() const {
    std::vector<JobId> ids;
    for (const auto& [peer, job] : grants_) ids.push_back(job.id);
    return ids;
  }
  static std::vector<JobId> IdsOf(const std::vector<JobSpec>& jobs) {
    std::vector<JobId> ids;
    for (const JobSpec& job : jobs) ids.push_back(job.id);
    return ids;
  }
  void LetRepliesThrough() {
    hold_replies_ = false;
    Handle(std::exchange(held_, {}));
    Settle();
  }
  bool HoldKnown(Command& command) {
    auto* ledger = std::get_if<LedgerCommand>(&command);
    if (!hold_known_ || ledger == nullptr || !std::holds_alternative<command::ReadKnown>(*ledger)) return false;
    held_known_.push_back(std::move(*ledger));
    return true;
  }
  void LetKnownThrough() {
    hold_known_ = false;
    for (LedgerCommand& read : std::exchange(held_known_, {})) pump_.Post(std::move(read));
    Settle();
  }
  void ExpectDepth(std::uint64_t ready, std::uint64_t in_flight) {
    const auto depth = *queue_.Depth(ShardId{0});
    EXPECT_EQ(std::pair(depth.ready, depth.in_flight), std::pair(ready, in_flight));
  }
  template <class T>
  const T* Last() {
    for (auto it = client_.rbegin(); it != client_.rend(); ++it)
      if (const auto* found = std::get_if<T>(&*it)) return found;
    return nullptr;
  }

  FakeClock clock_;
  SeededRandom random_{7};
  IdGenerator ids_{clock_, random_};
  test::MemoryLedger ledger_;
  test::MemoryQueue queue_;
  Dispatcher dispatcher_;
  LedgerPump pump_;
  WorkerReach reach_;
  std::map<std::string, WorkerId> workers_;
  std::vector<std::pair<std::string, wire::Grant::Job>> grants_;
  std::vector<wire::EndedReply::Item> replies_;
  std::vector<wire::Revoke::Item> revokes_;
  std::vector<wire::Hello::Held> adopts_;
  std::vector<wire::Message> client_;
  std::size_t queue_ops_ = 0, state_reads_ = 0, settings_reads_ = 0;
  std::vector<QueueOp> executed_;
  bool hold_replies_ = false;  // the queue answers, but the answers are under way
  event::QueueReplies held_;
  bool hold_known_ = false;  // the ledger has not answered yet what it knows of doubtful entries
  std::vector<LedgerCommand> held_known_;
  bool known_ = true;
};

}  // namespace millrace::testing
