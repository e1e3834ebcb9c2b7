// The frames between a worker and millrace-stage (common/model/stage_task.h): u32 little-endian length, then JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "common/base/result.h"
#include "common/model/stage_task.h"

namespace millrace::worker {

// One frame around `json`. REQUIRES: json.size() <= kFrameBytesMax.
std::string EncodeStageFrame(std::string_view json);

// Cuts a byte stream into frames. Not thread-safe.
class StageFrameParser {
 public:
  void Append(std::string_view bytes) { buffer_.append(bytes); }
  // The next complete frame's JSON, or nothing yet. kCorrupt: a frame is longer than kFrameBytesMax; give the stream up.
  Result<std::optional<std::string>> Next();

 private:
  std::string buffer_;
  std::size_t begin_ = 0;  // of what has not been returned
};

struct StageReady {};
struct StageProgress {
  std::int64_t rows = 0, bytes = 0;
};
using StageMessage = std::variant<StageReady, StageProgress, StageResult>;

// kCorrupt: not one of {"ready":true}, {"progress":{"rows":n,"bytes":n}}, {"result":StageResult}.
Result<StageMessage> ParseStageMessage(std::string_view json);

}  // namespace millrace::worker
