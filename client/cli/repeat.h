// What repeats a dead job or a failed run: new jobs with the same effect keys, so that nothing is loaded twice. Pure.
#pragma once

#include <string>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"

namespace millrace::cli {

// A new single job that repeats `dead` (options.retry_of) at once: no run_at, and as long until its deadline and expiry as
// the old one had. kCorrupt: the payload of a stage or command is not readable.
Result<JobSpec> RepeatJob(const JobSpec& dead, WallTime now, IdGenerator& ids);

// A new run with the slot, generation and parameters of a run that has failed. Its stages have the old effect keys: what
// succeeded answers from its receipt or manifest. Jobs without an effect (commands) that succeeded are left out. `actions` has
// the dead jobs that no action was taken on. kInvalidArgument: the run has not ended, or it succeeded.
Result<Requeue> RepeatRun(const RunDetail& failed, const std::string& actor, const std::string& reason, WallTime now,
                          IdGenerator& ids);

}  // namespace millrace::cli
