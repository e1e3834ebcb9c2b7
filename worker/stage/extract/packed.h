// What the bytes of a source file must be, looked at while its digest is made: a packed file has to be whole, for the engine
// takes a cut one for a short one, and a record of a line file has to fit the readers' buffers.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

// The longest line of CSV and the longest record of JSON that is read. The readers are told so too.
inline constexpr std::size_t kRecordBytesMax = 16u << 20;

// One per file. Not thread-safe.
class SourceBytes {
 public:
  virtual ~SourceBytes() = default;
  // The next bytes of the file, in order; then Finish once. kCorrupt says what is wrong, "x.csv.gz is cut off at byte 17".
  virtual Result<void> Feed(std::string_view bytes) = 0;
  virtual Result<void> Finish() = 0;
};

// By the ending as the engine does: .gz (every member with its checksum and length), .zst (every frame, and its checksum if it
// has one); in NDJSON also the length of each line. Null when there is nothing to look at.
std::unique_ptr<SourceBytes> WatchBytes(const std::string& path, FileFormat format);

}  // namespace millrace
