// Exit codes of the millrace command. Stable: scripts depend on them (ops/docs/cli.md).
#pragma once

#include "common/base/result.h"

namespace millrace::cli {

enum class ExitCode : int {
  kOk = 0,
  kWorkFailed = 1,  // a stage or a check failed, an audit does not verify, a file has errors
  kUsage = 2,
  kNotFound = 3,
  kAuth = 4,
  kConflict = 5,     // a precondition does not hold: locked home, newer ledger, ...
  kUnavailable = 6,  // a server or the network
  kTimedOut = 7,
  kInterrupted = 130,
};

// The exit code for an error that ended a command.
constexpr ExitCode ExitCodeFor(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return ExitCode::kUsage;
    case ErrorCode::kNotFound: return ExitCode::kNotFound;
    case ErrorCode::kConflict:
    case ErrorCode::kStale:
    case ErrorCode::kWiped:
    case ErrorCode::kUnsupported: return ExitCode::kConflict;
    case ErrorCode::kLimit:
    case ErrorCode::kUnavailable: return ExitCode::kUnavailable;
    case ErrorCode::kTimedOut:
    case ErrorCode::kMaybeApplied: return ExitCode::kTimedOut;
    case ErrorCode::kRejected:
    case ErrorCode::kCorrupt: return ExitCode::kWorkFailed;
    case ErrorCode::kCancelled: return ExitCode::kInterrupted;
  }
  return ExitCode::kWorkFailed;
}

}  // namespace millrace::cli
