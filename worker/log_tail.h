// The last bytes of a child's output, and its lines for the worker's own log. Not thread-safe.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "common/base/limits.h"

namespace millrace::worker {

class LogTail {
 public:
  static constexpr std::size_t kLineBytesMax = 1024;  // of one forwarded line; a longer one is cut
  using LineFn = std::function<void(std::string_view line)>;

  // `on_line` (may be empty) gets each line that becomes complete, without its newline.
  explicit LogTail(LineFn on_line = {}) : on_line_(std::move(on_line)) {}
  void Append(std::string_view bytes);
  // At most kLogTailBytesMax bytes of clean text (wire::CleanText), starting at a line's start where there is one.
  std::string Text() const;

 private:
  LineFn on_line_;
  std::string tail_;  // up to twice the limit, cut now and then
  std::string line_;
};

}  // namespace millrace::worker
