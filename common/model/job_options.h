// JobOptions as JSON text: how the ledger stores them and the wire sends them.
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

// Only what differs from the default; empty when nothing does.
std::string ToJson(const JobOptions& options);
// kInvalidArgument names the key: unknown, of the wrong type, or beyond a limit of common/base/limits.h. Empty text: defaults.
Result<JobOptions> JobOptionsFromJson(std::string_view text);

}  // namespace millrace
