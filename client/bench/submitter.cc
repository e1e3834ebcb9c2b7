#include "client/bench/submitter.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/bench/line.h"
#include "client/bench/payload.h"
#include "client/bench/processes.h"
#include "common/base/random.h"

namespace millrace::bench {
namespace {

constexpr Millis kSilenceMax{30'000};
constexpr Millis kWaitMax{100};
constexpr Millis kAskAgain{1};

class Submitter {
 public:
  Submitter(const SubmitOptions& options, SubmitResult& result, Line line)
      : options_(options), result_(result), line_(std::move(line)), ids_(clock_, random_) {}

  Result<void> Run() {
    start_ = clock_.Now();
    heard_ = start_;
    if (result_.sent == 0) result_.first_sent = start_;
    while (result_.sent < options_.jobs || !waiting_.empty()) {
      MILLRACE_TRY(options_.rate > 0 ? SendDue() : Fill());
      if (options_.rate > 0 && result_.sent < options_.jobs) {
        alarm_.Set(IntendedAt(result_.sent));
        line_.Wait(kWaitMax, alarm_.fd());
      } else if (options_.allowed && result_.sent < options_.jobs) {
        alarm_.Set(clock_.Now() + kAskAgain);
        line_.Wait(kWaitMax, alarm_.fd());
      } else {
        line_.Wait(kWaitMax);
      }
      MILLRACE_TRY(Receive());
      if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      if (!waiting_.empty() && clock_.Now() - heard_ > kSilenceMax)
        return Fail(ErrorCode::kTimedOut, "the broker has not answered {} messages for {} s", waiting_.size(),
                    kSilenceMax.count() / 1000);
    }
    return {};
  }

 private:
  MonoTime IntendedAt(std::uint64_t number) const {
    return start_ + Micros{static_cast<std::int64_t>(std::llround(static_cast<double>(number) * 1e6 / options_.rate))};
  }

  // From when the latency of a job counts that was sent at `sent`.
  MonoTime Begin(std::uint64_t number, MonoTime sent) const {
    return options_.rate > 0 && !options_.from_send ? IntendedAt(number) : sent;
  }

  Result<void> Fill() {
    const std::uint64_t allowed = options_.allowed ? options_.allowed(result_.accepted) : options_.jobs;
    if (const MonoTime now = clock_.Now(); std::exchange(allowed_, allowed) != allowed) {
      grew_ = now;
    } else if (options_.allowed && now - grew_ > kSilenceMax) {
      return Fail(ErrorCode::kTimedOut, "no job has ended for {} s; {} were accepted", kSilenceMax.count() / 1000,
                  result_.accepted);
    }
    while (waiting_.size() < options_.outstanding && result_.sent < options_.jobs) {
      const std::uint64_t count = std::min<std::uint64_t>(options_.batch, options_.jobs - result_.sent);
      if (result_.sent + count > allowed) break;
      MILLRACE_TRY(SendMessage(count));
    }
    return {};
  }

  Result<void> SendDue() {
    if (result_.sent >= options_.jobs) return {};
    const MonoTime now = clock_.Now();
    std::uint64_t count = 0;
    while (count < options_.batch && result_.sent + count < options_.jobs && IntendedAt(result_.sent + count) <= now) ++count;
    return count == 0 ? Result<void>{} : SendMessage(count);
  }

  Result<void> SendMessage(std::uint64_t count) {
    const std::uint64_t request = next_request_++;
    wire::SubmitJobs submit{.request = request, .jobs = {}};
    submit.jobs.reserve(count);
    const MonoTime now = clock_.Now();
    const std::uint64_t first = result_.sent;
    for (std::uint64_t number = first; number < first + count; ++number) submit.jobs.push_back(Make(number, now));
    if (first == 0) result_.first = submit.jobs.front().id;
    result_.last = submit.jobs.back().id;
    MILLRACE_TRY(line_.Send(submit));
    result_.sent += count;
    if (waiting_.empty()) heard_ = now;
    waiting_.emplace(request, std::pair{first, now});
    return {};
  }

  JobSpec Make(std::uint64_t number, MonoTime now) {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = options_.kind;
    job.queue = options_.queue;
    job.org = OrgId{1 + static_cast<std::int64_t>(number % options_.orgs)};
    if (options_.priorities > 1) job.priority = static_cast<int>(number % options_.priorities);
    if (options_.limit_keys > 0) job.options.limit_key = "key-" + std::to_string(number % options_.limit_keys);
    job.options.durability = options_.durability;
    MonoTime intended = Begin(number, now);
    if (number < options_.warmup) intended = MonoTime{};
    job.payload = EncodePayload({.number = number, .intended = intended}, options_.payload_bytes);
    return job;
  }

  Result<void> Receive() {
    while (true) {
      MILLRACE_TRY_ASSIGN(const auto message, line_.Receive());
      if (!message) return {};
      heard_ = clock_.Now();
      if (const auto* problem = std::get_if<wire::Problem>(&*message))
        return Fail(ErrorCode::kRejected, "the broker refused jobs: {}: {}", problem->code, problem->message);
      const auto* reply = std::get_if<wire::SubmitReply>(&*message);
      if (reply == nullptr) continue;
      const auto it = waiting_.find(reply->request);
      if (it == waiting_.end()) continue;
      Accepted(*reply, it->second.first, it->second.second);
      waiting_.erase(it);
    }
  }

  void Accepted(const wire::SubmitReply& reply, std::uint64_t first, MonoTime sent_at) {
    for (std::size_t i = 0; i < reply.accepted.size(); ++i) {
      const std::uint64_t number = first + i;
      result_.duplicates += reply.accepted[i].duplicate ? 1U : 0U;
      if (number < options_.warmup) continue;
      result_.accept.Add((heard_ - Begin(number, sent_at)).count());
    }
    result_.accepted += reply.accepted.size();
    result_.last_accepted = heard_;
  }

  const SubmitOptions& options_;
  SubmitResult& result_;
  Line line_;
  Alarm alarm_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_;
  MonoTime start_{}, heard_{}, grew_{};
  std::uint64_t allowed_ = 0;  // at last, and since grew_
  std::uint64_t next_request_ = 1;
  std::unordered_map<std::uint64_t, std::pair<std::uint64_t, MonoTime>> waiting_;  // request: first number, when sent
};

}  // namespace

Result<void> SubmitAll(const SubmitOptions& options, SubmitResult& result) {
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(options.endpoint));
  return Submitter(options, result, std::move(line)).Run();
}

}  // namespace millrace::bench
