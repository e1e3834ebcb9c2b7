#include "worker/log_tail.h"

#include <utility>

#include "common/wire/text.h"

namespace millrace::worker {

void LogTail::Append(std::string_view bytes) {
  tail_.append(bytes.size() > kLogTailBytesMax ? bytes.substr(bytes.size() - kLogTailBytesMax) : bytes);
  if (tail_.size() > 2 * kLogTailBytesMax) tail_.erase(0, tail_.size() - kLogTailBytesMax);
  if (!on_line_) return;
  while (!bytes.empty()) {
    const auto newline = bytes.find('\n');
    const std::string_view part = bytes.substr(0, newline);
    if (line_.size() < kLineBytesMax) line_.append(part.substr(0, kLineBytesMax - line_.size()));
    if (newline == std::string_view::npos) return;
    on_line_(wire::CleanText(line_, kLineBytesMax));
    line_.clear();
    bytes.remove_prefix(newline + 1);
  }
}

std::string LogTail::Text() const {
  std::string_view tail = tail_;
  if (tail.size() > kLogTailBytesMax) {
    tail.remove_prefix(tail.size() - kLogTailBytesMax);
    const auto newline = tail.find('\n');
    if (newline != std::string_view::npos && newline + 1 < tail.size()) tail.remove_prefix(newline + 1);
  }
  return wire::CleanText(tail, kLogTailBytesMax, wire::Keep::kTail);
}

}  // namespace millrace::worker
