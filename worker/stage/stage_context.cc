#include "worker/stage/stage_context.h"

#include <vector>

namespace millrace {
namespace {

std::string_view ClassOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kLimit: return "resource_exhausted";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kCancelled: return "cancelled";
    case ErrorCode::kUnavailable: return "io_error";
    case ErrorCode::kInvalidArgument: return "invalid_stage";
    default: return "stage_failed";
  }
}

}  // namespace

StageFailure::StageFailure(Error error)
    : error_class(ClassOf(error.code)),
      message(std::move(error.message)),
      retryable(error.code == ErrorCode::kLimit || error.code == ErrorCode::kUnavailable) {}

StageResult FailedStage(StageFailure failure) {
  StageResult result;
  result.ok = false;
  result.error_class = std::move(failure.error_class);
  result.error = std::move(failure.message);
  if (result.error.size() > kErrorMessageBytesMax) result.error.resize(kErrorMessageBytesMax);
  result.retryable = failure.retryable;
  return result;
}

namespace {
bool deferred = false;
std::vector<std::function<void()>>& Pending() {
  static std::vector<std::function<void()>> pending;
  return pending;
}
}  // namespace

void AfterResult(std::function<void()> work) {
  if (!deferred) return work();
  Pending().push_back(std::move(work));
}
void DeferAfterResult() { deferred = true; }
void RunAfterResult() {
  for (const auto& work : std::exchange(Pending(), {})) work();
}

}  // namespace millrace
