#include "worker/stage/stage_context.h"

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

}  // namespace millrace
