#include "common/wire/text.h"

#include <algorithm>
#include <cstring>

namespace millrace::wire {
namespace {

constexpr std::uint8_t Byte(std::string_view s, std::size_t i) { return static_cast<std::uint8_t>(s[i]); }

// Length of the well-formed sequence at `i`, 0 if there is none (Unicode 15, table 3-7).
std::size_t SequenceLength(std::string_view s, std::size_t i) {
  const std::uint8_t lead = Byte(s, i);
  if (lead == 0) return 0;
  if (lead < 0x80) return 1;
  std::size_t length = 0;
  std::uint8_t low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (s.size() - i < length) return 0;
  if (Byte(s, i + 1) < low || Byte(s, i + 1) > high) return 0;
  for (std::size_t k = 2; k < length; ++k) {
    if ((Byte(s, i + k) & 0xC0) != 0x80) return 0;
  }
  return length;
}

constexpr bool IsContinuation(char c) { return (static_cast<std::uint8_t>(c) & 0xC0) == 0x80; }

}  // namespace

bool IsText(std::string_view bytes) {
  std::size_t i = 0;
  // Eight bytes at a time, as long as they are ASCII without NUL: with the high bit of any byte that is neither.
  constexpr std::uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;
  for (std::uint64_t word = 0; i + sizeof word <= bytes.size(); i += sizeof word) {
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if (((word | (word - kOnes)) & kHighs) != 0) break;
  }
  while (i < bytes.size()) {
    const std::size_t length = SequenceLength(bytes, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string CleanText(std::string_view bytes, std::size_t bytes_max, Keep keep) {
  // Cleaning never lengthens, so what lies beyond the limit need not be looked at; 4 bytes are slack for a cut sequence.
  const std::size_t window = std::min(bytes.size(), bytes_max + 4);
  bytes = keep == Keep::kHead ? bytes.substr(0, window) : bytes.substr(bytes.size() - window);
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t i = 0; i < bytes.size();) {
    const std::size_t length = SequenceLength(bytes, i);
    if (length == 0) {
      text += '?';
      ++i;
    } else {
      text.append(bytes.substr(i, length));
      i += length;
    }
  }
  if (text.size() <= bytes_max) return text;
  if (keep == Keep::kHead) {
    std::size_t end = bytes_max;
    while (end > 0 && IsContinuation(text[end])) --end;
    text.resize(end);
  } else {
    std::size_t begin = text.size() - bytes_max;
    while (begin < text.size() && IsContinuation(text[begin])) ++begin;
    text.erase(0, begin);
  }
  return text;
}

}  // namespace millrace::wire
