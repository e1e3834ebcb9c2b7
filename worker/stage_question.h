// A question for millrace-stage that is no job: its process, and who waits for the answer. Not thread-safe: belongs to the
// worker's loop thread, which must outlive it (child.h).
#pragma once

#include <future>
#include <memory>
#include <string>

#include "common/base/result.h"
#include "worker/process.h"

namespace millrace::worker {

class StageQuestion {
 public:
  // `request` is JSON of at most kFrameBytesMax with its frame; the answer comes through `answer`: JSON, or kCorrupt when the
  // process ended or said something else.
  StageQuestion(std::unique_ptr<Process> process, std::string_view request, std::promise<Result<std::string>> answer);
  ~StageQuestion();  // kills the process; kCancelled for who still waits
  StageQuestion(const StageQuestion&) = delete;
  StageQuestion& operator=(const StageQuestion&) = delete;

  // Looks for the answer; true: it has been given, and the process has gone. Call after Poller::Dispatch.
  bool Tick();

 private:
  void Answer(Result<std::string> answer);

  std::unique_ptr<Process> process_;
  std::promise<Result<std::string>> answer_;
  bool answered_ = false;
};

}  // namespace millrace::worker
