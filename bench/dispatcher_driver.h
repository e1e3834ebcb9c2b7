// A dispatcher with one shard, one client and one worker, whose ledger and queue answer at once and keep no more than they must
// to do so: what is left is what the dispatcher itself costs. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "bench/sample_messages.h"
#include "broker/dispatcher.h"
#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace::bench {

struct DriverOptions {
  Durability durability = Durability::kLedger;
  bool crowd = false;         // 4 priorities, 1,000 orgs, 10,000 limit keys
  std::uint32_t waiting = 0;  // jobs that are ahead of a new one all the time; a multiple of kBatch
};

class DispatcherDriver {
 public:
  explicit DispatcherDriver(DriverOptions options)
      : options_(options), dispatcher_({.name = "b", .shard_count = 1, .shards = {kShard}, .random = &samples_.random()}) {
    MILLRACE_CHECK(options.waiting % kBatch == 0, "waiting: {} is no multiple of {}", options.waiting, kBatch);
    ConfigureLog(LogLevel::kOff, LogFormat::kText, "bench");
    Handle(event::ShardTaken{.hold = kHold});
    Settle();
    wire::Hello hello{.worker = worker_,
                      .name = "w",
                      .queues = {},
                      .kinds = {"work"},
                      .roots = {},
                      .concurrency = kBatch,
                      .credit_limit = 0,
                      .held = {}};
    Handle(event::FromWorker{.peer = kWorker, .message = std::move(hello)});
    Settle();
    Prepare(open_jobs() / kBatch);
    while (!submits_.empty()) SubmitNext();
    wire::Beat beat{.worker = worker_, .credit_limit = kBatch, .held = {}, .progress = {}, .draining = false};
    Handle(event::FromWorker{.peer = kWorker, .message = std::move(beat)});
    Settle();
  }

  // Makes what the client sends in that many steps, so that a step does not.
  void Prepare(std::size_t steps) {
    for (std::size_t i = 0; i < steps; ++i) {
      wire::SubmitJobs m{.request = ++requests_, .jobs = {}};
      for (int n = 0; n < kBatch; ++n) {
        JobSpec& job = m.jobs.emplace_back(options_.crowd ? samples_.CrowdJob(numbers_++) : samples_.Job(numbers_++));
        job.options.durability = options_.durability;
      }
      submits_.emplace_back(std::move(m));
    }
  }
  // A millisecond of a broker with 100,000 jobs per second: kBatch jobs come and as many end, in one flush, and whatever
  // follows from it. REQUIRES: prepared.
  void Step() {
    EndRunning();
    SubmitNext();
  }
  // Ends everything that still waits or runs.
  void Drain() {
    while (!running_.empty()) {
      EndRunning();
      Settle();
    }
  }
  // After a step kBatch jobs run and `waiting` wait; after Drain none does.
  std::uint64_t open_jobs() const { return options_.waiting + kBatch; }
  // Whether each job was accepted, each but `open` of them recorded and ended, all once, and nothing else happened.
  bool AllEndedBut(std::uint64_t open) const {
    return submitted_ > open && accepted_ == submitted_ && ended_ + open == submitted_ && recorded_ == ended_ &&
           granted_ == ended_ + running_.size() && unexpected_ == 0;
  }

 private:
  static constexpr ShardId kShard{0};
  static constexpr ShardHold kHold{.shard = kShard, .epoch = Epoch{1}};
  static constexpr const char* kWorker = "worker";
  static constexpr Micros kStep{1'000};

  void SubmitNext() {
    MILLRACE_CHECK(!submits_.empty(), "no step is prepared");
    submitted_ += kBatch;
    Handle(event::FromClient{.peer = "client", .message = std::move(submits_.front())});
    submits_.pop_front();
    Settle();
    samples_.clock().Advance(kStep);
    if (samples_.clock().Now() < next_tick_) return;
    next_tick_ = samples_.clock().Now() + kDispatcherTick;
    Handle(event::Tick{});
    Settle();
  }
  void EndRunning() {
    if (running_.empty()) return;
    wire::Ended m{.worker = worker_, .credit_limit = granted_ + kBatch, .reports = {}};
    m.reports.reserve(running_.size());
    for (const auto& [job, token] : running_) m.reports.push_back(samples_.Report(job, token));
    running_.clear();
    Handle(event::FromWorker{.peer = kWorker, .message = std::move(m)});
  }

  void Handle(Event event) { dispatcher_.Handle(std::move(event), samples_.clock().Now(), samples_.clock().WallNow()); }
  // Until nothing follows from what was answered.
  void Settle() {
    do {
      commands_.clear();
      dispatcher_.Flush(samples_.clock().Now(), samples_.clock().WallNow(), commands_);
      event::QueueReplies replies;
      for (Command& command : commands_) std::visit([&](auto& c) { Do(c, replies); }, command);
      if (!replies.replies.empty()) Handle(std::move(replies));
    } while (!commands_.empty());
  }

  void Do(LedgerCommand& c, event::QueueReplies&) {
    std::visit([this](auto& command) { Answer(command); }, c);
  }
  void Do(command::Execute& c, event::QueueReplies& replies) {
    replies.Add(c.id, c.op, std::visit([this](auto& op) { return Apply(op); }, c.op));
  }
  void Do(command::SendWorker& c, event::QueueReplies&) {
    if (const auto* grant = std::get_if<wire::Grant>(&c.message)) {
      for (const auto& job : grant->jobs) running_.emplace_back(job.id, job.token);
      granted_ += grant->jobs.size();
    } else if (const auto* reply = std::get_if<wire::EndedReply>(&c.message)) {
      for (const auto& item : reply->items) ++(item.accepted ? ended_ : unexpected_);
    } else if (!std::holds_alternative<wire::Welcome>(c.message) && !std::holds_alternative<wire::BrokerBeat>(c.message)) {
      ++unexpected_;
    }
  }
  void Do(command::SendClient& c, event::QueueReplies&) {
    const auto* reply = std::get_if<wire::SubmitReply>(&c.message);
    if (reply == nullptr) {
      ++unexpected_;
      return;
    }
    for (const auto& item : reply->accepted) ++(item.duplicate ? unexpected_ : accepted_);
  }

  void Answer(command::Commit& c) {
    recorded_ += c.rows.outcomes.size();
    c.rows.holds = {c.hold};
    Handle(event::Committed{.pieces = {c.piece}, .batch = std::move(c.rows), .result = {}});
  }
  void Answer(command::ReadLiveRuns& c) { Handle(event::LiveRunsRead{.hold = c.hold, .runs = {}, .last = true}); }
  void Answer(command::ReadLiveJobs& c) { Handle(event::LiveJobsRead{.hold = c.hold, .jobs = {}, .last = true}); }
  void Answer(command::ReadOutbox& c) { Handle(event::OutboxRead{.hold = c.hold, .rows = {}, .cancels_only = c.cancels_only}); }
  void Answer(command::ReadQueueSettings& c) { Handle(event::QueueSettingsRead{.hold = c.hold, .settings = {}}); }
  template <class Other>
  void Answer(Other&) {
    ++unexpected_;
  }

  Result<QueueReply> Apply(const queue_op::Take& op) {
    QueueReply reply;
    reply.unbroken_since = op.epoch;
    return reply;
  }
  Result<QueueReply> Apply(queue_op::Enqueue& op) {
    for (QueueEntry& entry : op.entries) lines_[entry.line].push_back(std::move(entry));
    return QueueReply{};
  }
  Result<QueueReply> Apply(const queue_op::Claim& op) {
    QueueReply reply;
    const auto it = lines_.find(op.line);
    if (it == lines_.end()) return reply;
    for (; reply.claimed.size() < op.max && !it->second.empty(); it->second.pop_front())
      reply.claimed.push_back(std::move(it->second.front()));
    if (it->second.empty()) lines_.erase(it);
    return reply;
  }
  Result<QueueReply> Apply(const queue_op::Finish&) { return QueueReply{}; }
  template <class Other>
  Result<QueueReply> Apply(const Other&) {
    ++unexpected_;
    return QueueReply{};
  }

  const DriverOptions options_;
  SampleMessages samples_;
  WorkerId worker_ = samples_.ids().Next<WorkerId>();
  Dispatcher dispatcher_;
  std::unordered_map<std::string, std::deque<QueueEntry>> lines_;
  std::deque<wire::Message> submits_;
  std::vector<std::pair<JobId, Token>> running_;
  std::vector<Command> commands_;
  MonoTime next_tick_{};
  std::uint64_t requests_ = 0, submitted_ = 0, accepted_ = 0, granted_ = 0, recorded_ = 0, ended_ = 0;
  std::uint64_t numbers_ = 0;     // of jobs that were made
  std::uint64_t unexpected_ = 0;  // what no step asks for: a refusal, a second acceptance, a question to the ledger
};

}  // namespace millrace::bench
