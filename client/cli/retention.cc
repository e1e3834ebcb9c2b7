#include "client/cli/retention.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "common/base/log.h"

namespace millrace::cli {
namespace {

constexpr Millis kStepBudget{3'600'000}, kCountBudget{600'000};
constexpr int kConflictsMax = 5;  // in a row: somebody else prunes, or submits what is old
// Weeks that go an hour later hurt nobody; a verification that hangs must not keep them for ever.
constexpr Millis kPatience{3'600'000};

}  // namespace

Result<std::vector<RetainedWeek>> WeeksFor(const RetentionPolicy& policy, Ledger& ledger, const Clock& clock) {
  if (policy.bytes == 0) return std::vector<RetainedWeek>{};
  return ledger.Retained(clock.Now() + kCountBudget);
}

WallTime PruneBefore(const RetentionPolicy& policy, const std::vector<RetainedWeek>& weeks, WallTime now) {
  WallTime before{};
  if (policy.age > Millis{0}) before = now - policy.age;
  if (policy.bytes == 0) return before;
  std::uint64_t kept = 0;
  for (auto week = weeks.rbegin(); week != weeks.rend(); ++week) {
    kept += week->bytes;
    if (kept <= policy.bytes) continue;
    constexpr auto kWeek = std::chrono::hours{24 * 7};
    return std::max(before, std::min(week->begin + kWeek, now));
  }
  return before;
}

bool GrowsWithoutBound(const RetentionPolicy& policy, const HistorySize& size) {
  if (policy.age > Millis{0} || policy.bytes > 0) return false;
  return size.finished_jobs > kUnprunedJobsMax || size.bytes > kUnprunedBytesMax;
}

Result<PruneTotal> PruneHistory(Ledger& ledger, PruneRequest request, const std::string& lake, const Clock& clock,
                                const std::function<bool()>& stop) {
  PruneTotal total;
  bool more = true;
  bool waiting = false;
  MonoTime waiting_since{};
  for (int conflicts = 0; more && !stop();) {
    const auto step = ledger.PruneOldest(request, clock.Now() + kStepBudget);
    if (!step && step.error().code == ErrorCode::kConflict && ++conflicts < kConflictsMax) continue;
    if (!step) return std::unexpected(step.error());
    conflicts = 0;
    if (step->waits) {
      if (!std::exchange(waiting, true)) {
        LogInfo("retention: waiting for a verification of the audit trail");
        waiting_since = clock.Now();
      }
      if (clock.Now() - waiting_since < kPatience) continue;
      LogWarn("retention: going on, although the audit trail has been verified for an hour");
      request.despite_verification = true;
      continue;
    }
    waiting = false;  // the next verification is another one
    ++total.steps;
    total.before = step->before;
    total.rows += step->rows;
    total.records += step->records;
    total.held_by = step->held_by;
    more = step->more;
  }
  if (!more) total.result_files = RemoveResults(lake, total.before);
  return total;
}

std::uint64_t RemoveResults(const std::string& lake, WallTime before) {
  std::uint64_t gone = 0;
  std::error_code error;
  std::filesystem::directory_iterator it(lake + "/results", error);
  if (error) return 0;  // no command of this lake ever left a result
  std::vector<std::filesystem::path> old;
  for (; !error && it != std::filesystem::directory_iterator{}; it.increment(error)) {
    const auto id = Uuid::Parse(it->path().filename().string());
    if (id && TimeOf(*id) < before) old.push_back(it->path());
  }
  for (const auto& folder : old) {
    const auto removed = std::filesystem::remove_all(folder, error);
    if (error)
      LogWarn("retention: '{}' cannot be removed: {}", folder.string(), error.message());
    else
      gone += removed - 1;
  }
  return gone;
}

}  // namespace millrace::cli
