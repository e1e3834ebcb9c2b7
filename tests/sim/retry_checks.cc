// What must hold of repetitions: recomputed from what workers reported, without the product's own rules (Judge, BackoffDelay).
#include <algorithm>

#include "tests/sim/world.h"

namespace millrace::sim {
namespace {

void Count(AttemptEnd end, Counters& counters) {
  ++counters.deliveries;
  if (end == AttemptEnd::kFailed || end == AttemptEnd::kTimedOut || end == AttemptEnd::kCrashed) ++counters.failures;
  if (end == AttemptEnd::kCrashed) ++counters.crashes;
}

bool Failed(AttemptEnd end) {
  return end == AttemptEnd::kFailed || end == AttemptEnd::kTimedOut || end == AttemptEnd::kCrashed;
}

// Whether the job has had its last attempt, whatever becomes of it otherwise.
bool Spent(const JobSpec& spec, const AttemptReport& report, const Counters& counters) {
  if (!Failed(report.end)) return false;
  return !report.retryable || counters.failures >= static_cast<std::uint32_t>(spec.retry.max_attempts) ||
         counters.crashes >= static_cast<std::uint32_t>(kCrashesMax);
}

// The longest wait after so many failures.
Millis FullBackoff(const JobSpec& spec, std::uint32_t failures) {
  Millis full = spec.retry.backoff_base;
  if (spec.options.backoff == Backoff::kExponential)
    for (std::uint32_t i = 1; i < failures && full < spec.retry.backoff_cap; ++i) full *= 2;
  return std::min(full, spec.retry.backoff_cap);
}

}  // namespace

bool World::Cancelling(const JobSpec& spec, const OwnerBatch& batch) const {
  const Uuid item = spec.run ? spec.run->uuid : spec.id.uuid;
  return ledger_.cancels.contains(item) || std::ranges::find(batch.cancels, item, &CancelRow::item) != batch.cancels.end();
}

void World::CheckCounters(const AttemptReport& report, const Counters& counters) {
  Counters expected;
  if (const auto rows = ledger_.jobs.find(report.job); rows != ledger_.jobs.end())
    for (const AttemptRow& row : rows->second.attempts) Count(row.report.end, expected);
  if (report.token != Token{}) {
    Count(report.end, expected);
    const auto reported = reported_.find({report.job, report.token});
    if (report.end != AttemptEnd::kLost && (reported == reported_.end() || reported->second != report.end))
      Violation(fmt::format("retry: an attempt is recorded as {}, but that is not what its worker reported", Name(report.end)));
  }
  if (counters != expected)
    Violation(fmt::format(
        "retry: the counters are {}/{}/{} (deliveries, failures, crashes) instead of {}/{}/{} after an attempt that {}",
        counters.deliveries, counters.failures, counters.crashes, expected.deliveries, expected.failures, expected.crashes,
        Name(report.end)));
}

void World::CheckRetry(const Node& n, const JobSpec& spec, const AttemptRow& row) {
  if (Spent(spec, row.report, row.counters)) Violation("retry: a job goes on after its last attempt");
  if (row.report.end == AttemptEnd::kSucceeded) Violation("retry: a job goes on after it succeeded");
  if (Failed(row.report.end)) ++report_.retries;
  if (row.report.end == AttemptEnd::kHandedBack) ++report_.handed_back;
  CheckBackoff(n, spec, row);
}

// Brokers go by their own clocks: the bounds are as wide as those were off.
void World::CheckBackoff(const Node& n, const JobSpec& spec, const AttemptRow& row) {
  if (!Failed(row.report.end)) {
    WallTime most = n.clock.High();
    if (row.report.end == AttemptEnd::kLost) {  // it may not have begun: then it waits as it did before
      const auto rows = ledger_.jobs.find(spec.id);
      const bool first = rows == ledger_.jobs.end() || rows->second.attempts.empty();
      most = std::max(most, first ? spec.run_at.value_or(most) : rows->second.attempts.back().next_run_at);
    }
    if (row.next_run_at > most) Violation("retry: what did not fail waits");
    return;
  }
  const Millis full = FullBackoff(spec, row.counters.failures);
  const Millis least = spec.options.backoff == Backoff::kFixed ? full : Millis{0};
  if (row.next_run_at < row.report.finished_at + n.clock.LeastOffset() + least) Violation("retry: the backoff is too short");
  if (row.next_run_at > n.clock.High() + full) Violation("retry: the backoff is too long");
}

void World::CheckVerdict(const JobSpec& spec, const OutcomeRow& row) {
  const bool spent = Spent(spec, row.report, row.counters);
  const bool late = row.report.error_class == kErrorDeadlineExceeded;
  const bool succeeded = row.report.end == AttemptEnd::kSucceeded;
  if (succeeded != (row.state == JobState::kSucceeded)) Violation("retry: the outcome is not what the last attempt was");
  if (row.state == JobState::kDead && !spent && !late) Violation("retry: a job is dead that had attempts left");
  if (spent && row.state != JobState::kDead) Violation("retry: a job had its last attempt and is not dead");
  const bool quarantined =
      row.report.end == AttemptEnd::kCrashed && row.counters.crashes >= static_cast<std::uint32_t>(kCrashesMax);
  if (quarantined != (row.report.error_class == kErrorCrashQuarantine))
    Violation("retry: crash quarantine does not follow from the crashes");
  if (spent && !quarantined && row.report.retryable) ++report_.spent;
}

void World::CheckOutcomeTime(const Node& n, const JobSpec& spec, const OutcomeRow& row) {
  const JobOptions& options = spec.options;
  if (row.state == JobState::kExpired && (!options.expires_at || n.clock.High() < *options.expires_at))
    Violation("expired before its time");
  if (row.report.error_class == kErrorDeadlineExceeded && (!options.deadline || n.clock.High() < *options.deadline))
    Violation("dead before its deadline");
}

void World::CheckStart(const Node& n, const JobSpec& spec, const wire::Grant::Job& job) {
  const auto rows = ledger_.jobs.find(job.id);
  const std::size_t before = rows == ledger_.jobs.end() ? 0 : rows->second.attempts.size();
  if (job.delivery != before + 1) Violation(fmt::format("retry: delivery {} after {} recorded ones", job.delivery, before));
  if (job.fence_only) return;
  WallTime high = n.clock.High();
  if (kept_.contains(job.id))  // it stays in its line when the owner changes, and the older one's clock may have been ahead
    for (const Node& other : brokers_) high = std::max(high, other.clock.High());
  if (before == 0 && spec.run_at && high < *spec.run_at) Violation("a job starts before its time");
  if (before > 0 && high < rows->second.attempts.back().next_run_at)
    Violation("retry: an attempt starts before its backoff is over");
}

}  // namespace millrace::sim
