// What a job of a benchmark carries: a dense sequence number, the moment at which it was meant to be sent, and pseudo-random
// bytes that its handler can check.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/clock.h"

namespace millrace::bench {

inline constexpr std::size_t kPayloadBytesMin = 16;

struct Payload {
  std::uint64_t number = 0;  // 0, 1, 2, ...: what is lost or comes twice shows
  MonoTime intended{};       // CLOCK_MONOTONIC is one clock for all processes of a host
};

// REQUIRES: bytes >= kPayloadBytesMin. Everything after the first 16 bytes depends on the number alone.
std::string EncodePayload(const Payload& payload, std::size_t bytes);
// Empty when the bytes are not what EncodePayload made.
std::optional<Payload> DecodePayload(std::string_view bytes);

}  // namespace millrace::bench
