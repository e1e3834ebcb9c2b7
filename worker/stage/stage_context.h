// What every stage of this process works with.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/result.h"
#include "common/model/stage_task.h"

namespace millrace {

// Called as often as the stage likes with totals so far; the receiver limits the rate. Thread-safe.
using ProgressFn = std::function<void(std::int64_t rows, std::int64_t bytes)>;

// Why a stage failed, in the words of StageResult. `error_class` is a stable snake_case name (ops/docs/errors.md).
struct StageFailure {
  std::string error_class;
  std::string message;
  bool retryable = false;

  StageFailure(std::string_view name, std::string text, bool retry = false)
      : error_class(name), message(std::move(text)), retryable(retry) {}
  // Implicit, so that MILLRACE_TRY passes an Error on. The class follows the code: kLimit resource_exhausted, kCorrupt
  // corrupt, kCancelled cancelled, kUnavailable io_error, kInvalidArgument invalid_stage, others stage_failed.
  StageFailure(Error error);  // NOLINT(google-explicit-constructor)
};

template <class T>
using StageOutcome = std::expected<T, StageFailure>;

StageResult FailedStage(StageFailure failure);

// Work that the outcome does not depend on, such as closing a destination's file. Done at once, unless DeferAfterResult was
// called: then by RunAfterResult, once the result has been reported. Not thread-safe: the main thread's.
void AfterResult(std::function<void()> work);
void DeferAfterResult();
void RunAfterResult();

}  // namespace millrace
