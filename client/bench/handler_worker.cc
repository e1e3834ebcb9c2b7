#include "client/bench/handler_worker.h"

#include <algorithm>
#include <deque>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/bench/line.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/random.h"

namespace millrace::bench {
namespace {

constexpr Millis kRepeatAfter{5000};  // a report that was not answered
constexpr Millis kWaitMax{100};

class HandlerLoop {
 public:
  HandlerLoop(const HandlerOptions& options, Scoreboard board, Line line)
      : options_(options), board_(board), score_(board.handler(options.index)), line_(std::move(line)), ids_(clock_, random_) {
    me_ = ids_.Next<WorkerId>();
  }

  Result<void> Serve(const std::atomic<bool>& stop) {
    MILLRACE_TRY(Hello());
    while (!stop) {
      line_.Wait(kWaitMax, options_.sleep.count() > 0 ? alarm_.fd() : -1);
      while (true) {
        auto message = line_.Receive();
        if (!message) {
          LogWarn("broker: {}", message.error().message);
        } else if (*message) {
          MILLRACE_TRY(Take(**message));
        } else {
          break;
        }
      }
      Finish(clock_.Now());
      MILLRACE_TRY(Report());
      if (Limit() - said_ >= std::max(1u, options_.concurrency / 8)) MILLRACE_TRY(TellCredit());
      if (clock_.Now() >= next_beat_) MILLRACE_TRY(EverySecond());
    }
    return line_.Send(wire::Goodbye{.worker = me_});
  }

 private:
  struct Held {
    Token token;
    WallTime started_at{};
    MonoTime intended{}, reported_at{};  // reported_at 0: still running
    bool revoked = false;
  };

  struct Running {
    MonoTime end;
    JobId job;
    Token token;
  };
  struct Waiting {
    JobId job;
    Token token;
    std::string payload;
  };

  // A slot is free when its job has ended, as of every worker; what waits for its answer is bounded by what a beat can name.
  // Jobs that take no time would then hold no slot at all: those keep theirs until they are answered.
  std::uint64_t Limit() const {
    const auto left = [](std::uint64_t all, std::uint64_t used) { return all > used ? all - used : 0; };
    if (options_.sleep.count() == 0) return granted_ + left(options_.concurrency, held_.size());
    return granted_ + std::min(left(options_.concurrency + options_.prefetch, running_.size() + waiting_.size()),
                               left(kConcurrencyMax, held_.size()));
  }
  std::vector<wire::Hello::Held> HeldJobs() const {
    std::vector<wire::Hello::Held> held;
    held.reserve(held_.size());
    for (const auto& [job, one] : held_) held.push_back({.job = JobId{job}, .token = one.token});
    return held;
  }
  Result<void> Hello() {
    granted_ = 0;
    said_ = Limit();
    return line_.Send(wire::Hello{.worker = me_,
                                  .name = options_.name,
                                  .queues = {options_.queue},
                                  .kinds = {options_.kind},
                                  .roots = {},
                                  .concurrency = options_.concurrency,
                                  .credit_limit = said_,
                                  .held = HeldJobs()});
  }
  Result<void> Beat() {
    said_ = Limit();
    return line_.Send(wire::Beat{.worker = me_, .credit_limit = said_, .held = HeldJobs(), .progress = {}, .draining = false});
  }
  // Answers freed credit, and no report says so. A beat would: with all that is held, many times a second.
  Result<void> TellCredit() {
    said_ = Limit();
    return line_.Send(wire::Ended{.worker = me_, .credit_limit = said_, .reports = {}});
  }
  Result<void> EverySecond() {
    next_beat_ = clock_.Now() + kHeartbeatInterval;
    if (!known_) return Hello();
    const MonoTime before = clock_.Now() - kRepeatAfter;
    for (auto& [job, one] : held_)
      if (one.reported_at != MonoTime{} && one.reported_at < before) AddReport(JobId{job}, one);
    MILLRACE_TRY(Report());
    return Beat();
  }

  Result<void> Take(const wire::Message& message) {
    if (const auto* grant = std::get_if<wire::Grant>(&message)) {
      for (const auto& job : grant->jobs) Hold(job);
    } else if (const auto* reply = std::get_if<wire::EndedReply>(&message)) {
      Answered(*reply);
    } else if (const auto* revoke = std::get_if<wire::Revoke>(&message)) {
      for (const auto& item : revoke->items) {
        const auto it = held_.find(item.job.uuid);
        if (it == held_.end() || it->second.token != item.token) continue;
        if (it->second.reported_at != MonoTime{}) continue;  // it has ended: the answer decides
        it->second.revoked = true;
      }
    } else if (std::holds_alternative<wire::Welcome>(message)) {
      known_ = true;
      score_.ready = 1;
    } else if (const auto* beat = std::get_if<wire::BrokerBeat>(&message); beat != nullptr && !beat->known && known_) {
      known_ = false;
      return Hello();
    }
    return {};
  }

  void Hold(const wire::Grant::Job& job) {
    if (const auto it = held_.find(job.id.uuid); it != held_.end()) {
      if (job.token <= it->second.token) return;  // a repeat, or from before
      held_.erase(it);                            // granted anew: nobody waits for the earlier attempt's report any more
    }
    ++granted_;
    Held& held = held_[job.id.uuid] = Held{.token = job.token, .started_at = {}, .intended = {}, .reported_at = {}};
    if (options_.sleep.count() == 0 || running_.size() < options_.concurrency) {
      Start(job.id, held, job.payload);
    } else {
      waiting_.emplace_back(job.id, job.token, job.payload);
    }
  }

  void Start(JobId id, Held& held, std::string_view bytes) {
    const MonoTime now = clock_.Now();
    const bool ours = options_.kind != kJobKindCommand;
    const std::optional<Payload> payload = ours ? DecodePayload(bytes) : Payload{.number = score_.executed, .intended = {}};
    if (payload) {
      Handle(*payload, now);
      held.intended = payload->intended;
    } else {
      Bump(score_.corrupted);
    }
    held.started_at = clock_.WallNow();
    running_.emplace_back(now + options_.sleep, id, held.token);
  }

  void StartWaiting() {
    for (; !waiting_.empty() && running_.size() < options_.concurrency; waiting_.pop_front()) {
      const Waiting& next = waiting_.front();
      const auto it = held_.find(next.job.uuid);
      if (it == held_.end() || it->second.token != next.token) continue;  // granted anew meanwhile: another one waits or runs
      if (it->second.revoked) {
        AddReport(next.job, it->second);
      } else {
        Start(next.job, it->second, next.payload);
      }
    }
  }

  // The handler: all that a benchmark's job does is to be noticed.
  void Handle(const Payload& payload, MonoTime now) {
    board_.Mark(payload.number);
    if (payload.intended != MonoTime{}) score_.pickup.Add((now - payload.intended).count());
    if (score_.first_us == 0) score_.first_us = now.time_since_epoch().count();
    score_.last_us = now.time_since_epoch().count();
    Bump(score_.executed);
  }

  void Finish(MonoTime now) {
    for (; !running_.empty() && running_.front().end <= now; running_.pop_front()) {
      const auto it = held_.find(running_.front().job.uuid);
      if (it != held_.end() && it->second.token == running_.front().token) AddReport(running_.front().job, it->second);
    }
    if (options_.sleep.count() == 0) return;
    StartWaiting();
    running_.empty() ? alarm_.Clear() : alarm_.Set(running_.front().end);
  }

  void AddReport(JobId job, Held& held) {
    held.reported_at = clock_.Now();
    AttemptReport report;
    report.job = job;
    report.token = held.token;
    report.end = held.revoked ? AttemptEnd::kHandedBack : AttemptEnd::kSucceeded;
    if (held.revoked) report.error_class = "revoked";
    report.worker = options_.name;
    const bool slept = options_.sleep.count() > 0;
    report.started_at = held.started_at == WallTime{} ? clock_.WallNow() : held.started_at;
    report.finished_at = slept ? clock_.WallNow() : report.started_at;
    reports_.push_back(std::move(report));
  }

  Result<void> Report() {
    for (std::size_t at = 0; at < reports_.size(); at += kBatchJobsMax) {
      said_ = Limit();
      wire::Ended ended{.worker = me_, .credit_limit = said_, .reports = {}};
      const std::size_t end = std::min(at + kBatchJobsMax, reports_.size());
      ended.reports.assign(std::make_move_iterator(reports_.begin() + static_cast<std::ptrdiff_t>(at)),
                           std::make_move_iterator(reports_.begin() + static_cast<std::ptrdiff_t>(end)));
      MILLRACE_TRY(line_.Send(ended));
    }
    reports_.clear();
    return {};
  }

  void Answered(const wire::EndedReply& reply) {
    const MonoTime now = clock_.Now();
    std::uint64_t recorded = 0;
    for (const auto& item : reply.items) {
      const auto it = held_.find(item.job.uuid);
      if (it == held_.end() || it->second.token != item.token) continue;
      if (item.accepted && !it->second.revoked) {
        ++recorded;
        if (it->second.intended != MonoTime{}) score_.outcome.Add((now - it->second.intended).count());
      }
      held_.erase(it);
    }
    if (recorded == 0) return;
    score_.last_recorded_us = now.time_since_epoch().count();
    Bump(score_.recorded, recorded);
  }

  const HandlerOptions& options_;
  Scoreboard board_;
  HandlerScore& score_;
  Line line_;
  Alarm alarm_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_;
  WorkerId me_;
  bool known_ = false;
  MonoTime next_beat_{};
  std::uint64_t granted_ = 0, said_ = 0;  // grants since Hello; the limit that the broker heard last
  std::unordered_map<Uuid, Held> held_;   // until the report is answered; a token alone is not unique across shards
  std::deque<Running> running_;           // all take equally long: ordered by their end
  std::deque<Waiting> waiting_;           // for a slot: in the order of their grants
  std::vector<AttemptReport> reports_;
};

}  // namespace

Result<void> ServeHandlers(const HandlerOptions& options, Scoreboard board, const std::atomic<bool>& stop) {
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(options.endpoint));
  return HandlerLoop(options, board, std::move(line)).Serve(stop);
}

}  // namespace millrace::bench
