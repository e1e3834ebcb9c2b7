#include "worker/stage_frames.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/limits.h"

namespace millrace::worker {
namespace {
constexpr std::size_t kLengthBytes = 4;
}  // namespace

std::string EncodeStageFrame(std::string_view json) {
  std::string frame;
  frame.reserve(kLengthBytes + json.size());
  const auto length = static_cast<std::uint32_t>(json.size());
  for (unsigned shift = 0; shift < 32; shift += 8) frame += static_cast<char>((length >> shift) & 0xFFu);
  frame += json;
  return frame;
}

Result<std::optional<std::string>> StageFrameParser::Next() {
  if (buffer_.size() - begin_ < kLengthBytes) return std::optional<std::string>{};
  std::size_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::size_t{static_cast<std::uint8_t>(buffer_[begin_ + i])} << (8 * i);
  if (length > kFrameBytesMax) return Fail(ErrorCode::kCorrupt, "frame of {} bytes, limit {}", length, kFrameBytesMax);
  if (buffer_.size() - begin_ - kLengthBytes < length) return std::optional<std::string>{};
  std::optional<std::string> json = buffer_.substr(begin_ + kLengthBytes, length);
  begin_ += kLengthBytes + length;
  if (begin_ == buffer_.size() || begin_ > kFrameBytesMax) {
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  return json;
}

Result<StageMessage> ParseStageMessage(std::string_view json) {
  const auto root = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || root.size() != 1)
    return Fail(ErrorCode::kCorrupt, "a stage sent something that is not an object with one key");
  const auto entry = root.begin();  // not items(): its elements live no longer than the iterator
  const std::string& key = entry.key();
  const auto& value = entry.value();
  if (key == "ready") return StageMessage{StageReady{}};
  if (key == "progress") {
    const auto number = [&value](const char* name) -> std::int64_t {
      const auto it = value.find(name);
      return it != value.end() && it->is_number_integer() ? it->template get<std::int64_t>() : 0;
    };
    if (!value.is_object()) return Fail(ErrorCode::kCorrupt, "a stage's progress is not an object");
    return StageMessage{StageProgress{number("rows"), number("bytes")}};
  }
  if (key != "result") return Fail(ErrorCode::kCorrupt, "a stage sent an unknown message");
  auto result = StageResultFromJson(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  if (!result) return Fail(ErrorCode::kCorrupt, "a stage's result: {}", result.error().message);
  return StageMessage{std::move(*result)};
}

}  // namespace millrace::worker
