// Frames between the worker and this process (common/model/stage_task.h): u32 little-endian length, then JSON.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace {

// kUnavailable: end of stream or a read error. kLimit: longer than kFrameBytesMax.
Result<std::string> ReadFrame(int fd);
Result<void> WriteFrame(int fd, std::string_view json);

// Progress frames, at most five a second. Thread-safe.
class ProgressWriter {
 public:
  ProgressWriter(int fd, const Clock& clock) : fd_(fd), clock_(clock) {}
  // Totals; lower ones than before are ignored.
  void Report(std::int64_t rows, std::int64_t bytes);
  // Nothing is written after this.
  void Close();

 private:
  const int fd_;
  const Clock& clock_;
  std::mutex mutex_;
  bool closed_ = false;
  MonoTime last_{};
  std::int64_t rows_ = 0, bytes_ = 0;
};

}  // namespace millrace
