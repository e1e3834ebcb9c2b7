// What a job must be to be accepted, whoever submits it: over the wire or through the ledger's enqueue table.
#pragma once

#include <chrono>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/instants.h"
#include "common/model/job.h"

namespace millrace::wire {

// Backoff, timeout and unique window of a job: ten years. What is added to a clock's time does not overflow.
inline constexpr Millis kJobTimeMax = std::chrono::days{3650};

// kInvalidArgument names the field: longer than `max` bytes, no UTF-8 text, or with a control character.
Result<void> CheckName(std::string_view field, std::string_view value, std::size_t max);

// kInvalidArgument names the field and the range: not in [kInstantMin, kInstantMax].
Result<void> CheckInstant(std::string_view field, WallTime time);

// kInvalidArgument names the field and its limit. Whether a run or dependencies are allowed is the caller's to say.
Result<void> CheckJob(const JobSpec& job);

// What a client says of a single job, beyond that. kInvalidArgument: an option that only Millrace itself gives, or one that
// means nothing without another. Not of stored jobs: those that were accepted go on.
Result<void> CheckClientsOptions(const JobOptions& options);

}  // namespace millrace::wire
