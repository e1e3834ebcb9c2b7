// The filter that options of the command line say: job list, requeue, discard, cancel.
#pragma once

#include "client/cli/options.h"
#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"

namespace millrace::cli {

inline constexpr std::size_t kFilteredMax = 100'000;     // jobs that one command acts on by filter
inline constexpr std::size_t kFilteredRunsMax = 10'000;  // runs
inline constexpr std::uint32_t kListPageMax = 500;       // of one look into the ledger

// --state, --queue, --kind, --error-class and --since. kInvalidArgument names the option.
Result<JobFilter> FilterOf(const Options& options, WallTime now);

// Ids of everything that the filter means, newest first. kLimit: more than the limits above; `command` says so.
Result<std::vector<JobId>> AllJobs(Ledger& ledger, JobFilter filter, std::string_view command, const Clock& clock);
Result<std::vector<RunId>> AllRuns(Ledger& ledger, RunFilter filter, std::string_view command, const Clock& clock);

}  // namespace millrace::cli
