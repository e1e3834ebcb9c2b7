// What every stage of this process works with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/stage_task.h"

namespace millrace {

// Called as often as the stage likes with totals so far; the receiver limits the rate. Called from the stage's own thread.
using ProgressFn = std::function<void(std::int64_t rows, std::int64_t bytes)>;

// A failed StageResult. `error_class` is a stable snake_case name (ops/docs/errors.md).
StageResult FailedStage(std::string_view error_class, std::string message, bool retryable);
// The same from an Error: its class is derived from the code (kLimit -> resource_exhausted, kCorrupt -> source_malformed,
// kCancelled -> cancelled, kUnavailable -> io_error, otherwise `fallback_class`).
StageResult FailedStage(std::string_view fallback_class, const Error& error);

}  // namespace millrace
