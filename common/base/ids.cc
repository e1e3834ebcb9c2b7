#include "common/base/ids.h"

#include <cstring>

#include "common/base/check.h"

namespace millrace {
namespace {

constexpr std::uint32_t kSequenceMax = (1u << 26) - 1;

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

constexpr bool IsDashPosition(std::size_t i) { return i == 8 || i == 13 || i == 18 || i == 23; }

}  // namespace

std::string Uuid::ToString() const {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  text.reserve(36);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kHex[bytes[i] >> 4];
    text += kHex[bytes[i] & 15];
  }
  return text;
}

Result<Uuid> Uuid::Parse(std::string_view text) {
  const auto bad = [&] {
    return Fail(ErrorCode::kInvalidArgument, "'{}' is not an id like 01890a5d-ac96-774b-bcce-b302099a8057", text.substr(0, 64));
  };
  if (text.size() != 36) return bad();
  Uuid uuid;
  std::size_t nibble = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (IsDashPosition(i)) {
      if (text[i] != '-') return bad();
      continue;
    }
    const int value = HexValue(text[i]);
    if (value < 0) return bad();
    auto& byte = uuid.bytes[nibble / 2];
    byte = static_cast<std::uint8_t>(nibble % 2 == 0 ? value << 4 : byte | value);
    ++nibble;
  }
  return uuid;
}

Result<Uuid> Uuid::FromBytes(std::string_view raw) {
  if (raw.size() != 16) return Fail(ErrorCode::kCorrupt, "an id has {} bytes, expected 16", raw.size());
  Uuid uuid;
  std::memcpy(uuid.bytes.data(), raw.data(), 16);
  return uuid;
}

Uuid IdGenerator::Next() {
  std::int64_t ms;
  std::uint32_t sequence;
  {
    const std::scoped_lock lock(mutex_);
    const std::int64_t now_ms = ToUnixMicros(clock_.WallNow()) / 1000;
    if (now_ms > last_ms_) {
      last_ms_ = now_ms;
      sequence_ = static_cast<std::uint32_t>(random_.Next() & (kSequenceMax >> 1));  // headroom for increments
    } else if (sequence_ < kSequenceMax) {
      ++sequence_;
    } else {  // 2^25 ids in one millisecond, or a clock that went back: borrow from the future, stay increasing
      ++last_ms_;
      sequence_ = 0;
    }
    ms = last_ms_;
    sequence = sequence_;
  }
  const std::uint64_t tail = random_.Next();
  Uuid uuid;
  for (int i = 0; i < 6; ++i) uuid.bytes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
  uuid.bytes[6] = static_cast<std::uint8_t>(0x70 | ((sequence >> 22) & 0x0f));
  uuid.bytes[7] = static_cast<std::uint8_t>(sequence >> 14);
  uuid.bytes[8] = static_cast<std::uint8_t>(0x80 | ((sequence >> 8) & 0x3f));
  uuid.bytes[9] = static_cast<std::uint8_t>(sequence);
  for (std::size_t i = 0; i < 6; ++i) uuid.bytes[10 + i] = static_cast<std::uint8_t>(tail >> (8 * i));
  return uuid;
}

WallTime TimeOf(const Uuid& v7) {
  std::int64_t ms = 0;
  for (std::size_t i = 0; i < 6; ++i) ms = (ms << 8) | v7.bytes[i];
  return WallTime{Millis{ms}};
}

ShardId ShardOf(OrgId org, std::uint16_t shard_count) {
  MILLRACE_CHECK(shard_count > 0, "shard count is 0");
  std::uint64_t x = static_cast<std::uint64_t>(org.value()) + 0x9e3779b97f4a7c15ull;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return ShardId{static_cast<std::uint16_t>((x ^ (x >> 31)) % shard_count)};
}

}  // namespace millrace
