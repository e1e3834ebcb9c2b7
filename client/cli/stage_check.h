// One run of `millrace-stage --check`: a question and its answer.
#pragma once

#include <future>
#include <string>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::cli {

// The answer to `request`. The child outlives neither the call nor the calling thread. Where stop signals are blocked
// (BlockStopSignals) one that comes meanwhile is taken, and ends the call with kCancelled; elsewhere it ends the process.
// kUnavailable: it cannot be started; kTimedOut; kCorrupt: it ended without an answer.
Result<std::string> CallStageCheck(const std::string& request, MonoTime deadline);

// The same of an answer that a worker gets (Engine::Ask). One that is not waited for any longer is the worker's to end.
Result<std::string> AwaitStageCheck(std::future<Result<std::string>> answer, MonoTime deadline);

}  // namespace millrace::cli
