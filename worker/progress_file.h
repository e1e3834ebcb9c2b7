// How far a command is, as it says itself: lines "ROWS BYTES" in the file that $MILLRACE_PROGRESS names (ops/docs/jobs.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace millrace::worker {

inline constexpr std::size_t kProgressBytesMax = 256;  // of the file's end, which is all that is read

struct ProgressCounts {
  std::int64_t rows = 0, bytes = 0;
  friend bool operator==(const ProgressCounts&, const ProgressCounts&) = default;
};

// The last complete line of the file at `path`; nothing, when there is no file or it is empty. Waits for nobody: what is no
// plain file is not read. kInvalidArgument: it holds something else; the message says what.
Result<std::optional<ProgressCounts>> ReadProgressFile(const std::string& path);

// A line without its end: one or two integers from 0 on, with blanks between them; bytes are 0 when left out.
std::optional<ProgressCounts> ParseProgress(std::string_view line);

}  // namespace millrace::worker
