// A dispatcher whose queue and ledger are in memory, one step at a time: the fixture of jobs of `durability: redis`.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "broker/dispatcher.h"
#include "broker/ledger_pump.h"
#include "common/base/log.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"

namespace millrace::testing {

class DurabilityTest : public ::testing::Test {
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
  WorkerId worker_ = ids_.Next<WorkerId>();
  std::vector<wire::Grant::Job> grants_;
  std::vector<wire::Message> client_;
  std::uint64_t request_ = 0;
  std::size_t rows_ = 0, reads_ = 0, takes_ = 0;
  std::function<void()> before_take_;
  bool pump_on_ = true, queue_down_ = false;
};

}  // namespace millrace::testing
