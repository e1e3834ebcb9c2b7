// Text on the wire is UTF-8 without NUL, because it ends in a ledger whose text columns take nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::wire {

// Well-formed UTF-8 (no overlong forms, no surrogates, <= U+10FFFF) without a NUL byte.
bool IsText(std::string_view bytes);

enum class Keep : std::uint8_t { kHead, kTail };

// `bytes` as text: every byte that does not belong to a well-formed sequence, and every NUL, becomes '?'. When that is longer
// than `bytes_max`, the head or the tail is kept, cut between characters.
std::string CleanText(std::string_view bytes, std::size_t bytes_max, Keep keep = Keep::kHead);

}  // namespace millrace::wire
