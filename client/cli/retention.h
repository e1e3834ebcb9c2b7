// Retention of finished work: by age and by bytes, from the command line and by a broker once an hour. See ops/docs/ledger.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"

namespace millrace::cli {

struct RetentionPolicy {
  Millis age{0};            // what was submitted longer ago goes; 0 = nothing
  std::uint64_t bytes = 0;  // the oldest weeks go while the others take more; 0 = no limit
};

// The weeks of `ledger`, if the policy looks at them: counting them takes long when there is much.
Result<std::vector<RetainedWeek>> WeeksFor(const RetentionPolicy& policy, Ledger& ledger, const Clock& clock);

// What goes by that policy: everything submitted before it, `now` at most: the present week stays. The epoch when nothing goes.
WallTime PruneBefore(const RetentionPolicy& policy, const std::vector<RetainedWeek>& weeks, WallTime now);

// Without any retention a ledger that holds more than one of these is worth a word.
inline constexpr std::uint64_t kUnprunedJobsMax = 1'000'000;
inline constexpr std::uint64_t kUnprunedBytesMax = 10ull << 30;
// Whether `size`, counted up to kUnprunedJobsMax + 1 jobs, is such a ledger.
bool GrowsWithoutBound(const RetentionPolicy& policy, const HistorySize& size);

struct PruneTotal {
  WallTime before{};
  std::uint64_t rows = 0, records = 0, steps = 0, result_files = 0;
  std::string held_by;
};
// Prunes step by step until nothing is left to go or `stop` says so; for each verification of the audit trail it waits an
// hour at most. Then the results in the lake that belong to what went.
Result<PruneTotal> PruneHistory(Ledger& ledger, PruneRequest request, const std::string& lake, const Clock& clock,
                                const std::function<bool()>& stop);

// Removes "results/<run>" of runs submitted before `before`; how many files went. Repeatable; errors are said in the log.
std::uint64_t RemoveResults(const std::string& lake, WallTime before);

}  // namespace millrace::cli
