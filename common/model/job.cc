#include "common/model/job.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/failpoint.h"

namespace millrace {
namespace {

template <class E, std::size_t N>
std::optional<E> FindName(const std::array<E, N>& all, std::string_view name) {
  for (const E e : all)
    if (Name(e) == name) return e;
  return std::nullopt;
}

template <class E, std::size_t N>
Result<E> ParseName(const std::array<E, N>& all, std::string_view what, std::string_view name) {
  std::string known;
  for (const E e : all) {
    if (Name(e) == name) return e;
    known += known.empty() ? "" : ", ";
    known += Name(e);
  }
  return Fail(ErrorCode::kInvalidArgument, "{} '{}' is not one of {}", what, name, known);
}

}  // namespace

std::string_view Name(JobState state) {
  switch (state) {
    case JobState::kBlocked: return "blocked";
    case JobState::kScheduled: return "scheduled";
    case JobState::kReady: return "ready";
    case JobState::kRunning: return "running";
    case JobState::kCancelling: return "cancelling";
    case JobState::kSucceeded: return "succeeded";
    case JobState::kDead: return "dead";
    case JobState::kCancelled: return "cancelled";
    case JobState::kExpired: return "expired";
    case JobState::kSkipped: return "skipped";
  }
  return "unknown";
}

Result<JobState> ParseJobState(std::string_view name) {
  using enum JobState;
  static constexpr std::array kAll{kBlocked,   kScheduled, kReady,     kRunning, kCancelling,
                                   kSucceeded, kDead,      kCancelled, kExpired, kSkipped};
  return ParseName(kAll, "job state", name);
}

std::string_view Name(RunState state) {
  switch (state) {
    case RunState::kQueued: return "queued";
    case RunState::kRunning: return "running";
    case RunState::kCancelling: return "cancelling";
    case RunState::kSucceeded: return "succeeded";
    case RunState::kFailed: return "failed";
    case RunState::kCancelled: return "cancelled";
    case RunState::kSkipped: return "skipped";
  }
  return "unknown";
}

Result<RunState> ParseRunState(std::string_view name) {
  using enum RunState;
  static constexpr std::array kAll{kQueued, kRunning, kCancelling, kSucceeded, kFailed, kCancelled, kSkipped};
  return ParseName(kAll, "run state", name);
}

std::string_view Name(AttemptEnd end) {
  switch (end) {
    case AttemptEnd::kSucceeded: return "succeeded";
    case AttemptEnd::kFailed: return "failed";
    case AttemptEnd::kCrashed: return "crashed";
    case AttemptEnd::kTimedOut: return "timed_out";
    case AttemptEnd::kHandedBack: return "handed_back";
    case AttemptEnd::kLost: return "lost";
    case AttemptEnd::kCancelled: return "cancelled";
  }
  return "unknown";
}

std::string_view Name(Backoff backoff) {
  switch (backoff) {
    case Backoff::kExponential: return "exponential";
    case Backoff::kFixed: return "fixed";
  }
  return "unknown";
}

std::string_view Name(RunWhen when) {
  switch (when) {
    case RunWhen::kAllSucceeded: return "all_succeeded";
    case RunWhen::kAllEnded: return "all_ended";
  }
  return "unknown";
}

std::string_view Name(Durability durability) {
  switch (durability) {
    case Durability::kUnsaid: return "unsaid";
    case Durability::kLedger: return "ledger";
    case Durability::kRedis: return "redis";
  }
  return "unknown";
}

std::string_view Name(UniqueUntil until) {
  switch (until) {
    case UniqueUntil::kStarted: return "started";
    case UniqueUntil::kEnded: return "ended";
    case UniqueUntil::kWindow: return "window";
  }
  return "unknown";
}

std::string CancelReason(std::string_view actor, std::string_view reason) {
  std::string text = "cancelled";
  if (!actor.empty()) text.append(" by ").append(actor);
  if (!reason.empty()) text.append(": ").append(reason);
  return text;
}

std::string_view Name(CancelEffect effect) {
  switch (effect) {
    case CancelEffect::kCancelled: return "cancelled";
    case CancelEffect::kCancelling: return "cancelling";
    case CancelEffect::kEnded: return "ended";
    case CancelEffect::kUnknown: return "not_found";
  }
  return "unknown";
}

std::string_view Name(DeadAction action) {
  switch (action) {
    case DeadAction::kRequeued: return "requeued";
    case DeadAction::kDiscarded: return "discarded";
  }
  return "unknown";
}

std::optional<Backoff> ParseBackoff(std::string_view name) {
  return FindName(std::array{Backoff::kExponential, Backoff::kFixed}, name);
}
std::optional<RunWhen> ParseRunWhen(std::string_view name) {
  return FindName(std::array{RunWhen::kAllSucceeded, RunWhen::kAllEnded}, name);
}
std::optional<Durability> ParseDurability(std::string_view name) {
  return FindName(std::array{Durability::kLedger, Durability::kRedis}, name);
}
std::optional<UniqueUntil> ParseUniqueUntil(std::string_view name) {
  return FindName(std::array{UniqueUntil::kStarted, UniqueUntil::kEnded, UniqueUntil::kWindow}, name);
}

Millis BackoffDelay(const RetryPolicy& policy, Backoff kind, int failures, std::uint64_t random) {
  const std::int64_t cap = std::max<std::int64_t>(policy.backoff_cap.count(), 0);
  std::int64_t full = std::clamp<std::int64_t>(policy.backoff_base.count(), 0, cap);
  if (kind == Backoff::kFixed) return Millis{full};
  for (int i = 1; i < failures && full > 0 && full < cap; ++i) full = full > cap / 2 ? cap : full * 2;
  return Millis{static_cast<std::int64_t>(random % (static_cast<std::uint64_t>(full) + 1))};
}

std::optional<WaitEnd> EndOfWait(const JobOptions& options, const Counters& counters) {
  std::optional<WaitEnd> end;
  if (options.expires_at && counters.deliveries == 0) end = {.at = *options.expires_at, .state = JobState::kExpired};
  if (options.deadline && (!end || *options.deadline <= end->at)) end = {.at = *options.deadline, .state = JobState::kDead};
  return end;
}

Result<JobState> NextState(JobState from, JobEvent event) {
  using S = JobState;
  using E = JobEvent;
  const auto refuse = [&] {
    return Fail(ErrorCode::kConflict, "job event {} cannot happen in state {}", static_cast<int>(event), Name(from));
  };
  switch (from) {
    case S::kBlocked:
      if (event == E::kUnblocked) return S::kReady;
      if (event == E::kDelayed) return S::kScheduled;
      if (event == E::kCancelRequested) return S::kCancelled;
      if (event == E::kExpired) return S::kExpired;
      if (event == E::kDeadlinePassed) return S::kDead;
      if (event == E::kDependencyFailed) return S::kSkipped;
      return refuse();
    case S::kScheduled:
      if (event == E::kDue) return S::kReady;
      if (event == E::kFenceNeeded) return S::kCancelling;
      if (event == E::kCancelRequested) return S::kCancelled;
      if (event == E::kExpired) return S::kExpired;
      if (event == E::kDeadlinePassed) return S::kDead;
      return refuse();
    case S::kReady:
      if (event == E::kLeased) return S::kRunning;
      if (event == E::kFenceNeeded) return S::kCancelling;
      if (event == E::kCancelRequested) return S::kCancelled;
      if (event == E::kExpired) return S::kExpired;
      if (event == E::kDeadlinePassed) return S::kDead;
      return refuse();
    case S::kRunning:
      if (event == E::kSucceeded) return S::kSucceeded;
      if (event == E::kFailedForGood) return S::kDead;
      if (event == E::kRetry) return S::kScheduled;
      if (event == E::kRequeued) return S::kReady;
      if (event == E::kCancelRequested) return S::kCancelling;
      return refuse();
    case S::kCancelling:
      if (event == E::kSucceeded) return S::kSucceeded;  // cancel_too_late: the receipt exists
      if (event == E::kCancelled) return S::kCancelled;
      if (event == E::kFailedForGood) return S::kDead;  // cancel_unfenced: the sink could not be reached
      return refuse();
    case S::kSucceeded:
    case S::kDead:
    case S::kCancelled:
    case S::kExpired:
    case S::kSkipped: return refuse();
  }
  return refuse();
}

AttemptVerdict Judge(const RetryPolicy& policy, Counters before, AttemptEnd end, bool retryable) {
  AttemptVerdict verdict{.counters = before, .terminal = std::nullopt, .immediate = false};
  ++verdict.counters.deliveries;
  const auto fail = [&] {
    ++verdict.counters.failures;
    if (!retryable || std::cmp_greater_equal(verdict.counters.failures, policy.max_attempts))
      verdict.terminal = JobState::kDead;
  };
  switch (end) {
    case AttemptEnd::kSucceeded: verdict.terminal = JobState::kSucceeded; break;
    case AttemptEnd::kFailed:
    case AttemptEnd::kTimedOut: fail(); break;
    case AttemptEnd::kCrashed:
      ++verdict.counters.crashes;
      fail();
      if (verdict.counters.crashes >= static_cast<std::uint32_t>(kCrashesMax)) verdict.terminal = JobState::kDead;
      break;
    case AttemptEnd::kHandedBack:
      if (MILLRACE_MUTANT("mutant.hand_back_fails")) {
        fail();
        break;
      }
      [[fallthrough]];
    case AttemptEnd::kLost:
    case AttemptEnd::kCancelled: verdict.immediate = true; break;  // nobody asked for a cancel: it starts elsewhere
  }
  return verdict;
}

}  // namespace millrace
