#include "client/bench/payload.h"

#include <algorithm>
#include <cstring>

namespace millrace::bench {
namespace {

class Noise {  // splitmix64: eight bytes a step, no state beyond the counter
 public:
  explicit Noise(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

}  // namespace

std::string EncodePayload(const Payload& payload, std::size_t bytes) {
  std::string out(std::max(bytes, kPayloadBytesMin), '\0');
  const std::int64_t intended = payload.intended.time_since_epoch().count();
  std::memcpy(out.data(), &payload.number, 8);
  std::memcpy(out.data() + 8, &intended, 8);
  Noise noise(payload.number);
  for (std::size_t at = kPayloadBytesMin; at < out.size(); at += 8) {
    const std::uint64_t word = noise.Next();
    std::memcpy(out.data() + at, &word, std::min<std::size_t>(8, out.size() - at));
  }
  return out;
}

std::optional<Payload> DecodePayload(std::string_view bytes) {
  if (bytes.size() < kPayloadBytesMin) return std::nullopt;
  Payload payload;
  std::int64_t intended = 0;
  std::memcpy(&payload.number, bytes.data(), 8);
  std::memcpy(&intended, bytes.data() + 8, 8);
  payload.intended = MonoTime{Micros{intended}};
  Noise noise(payload.number);
  for (std::size_t at = kPayloadBytesMin; at < bytes.size(); at += 8) {
    const std::uint64_t word = noise.Next();
    if (std::memcmp(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at)) != 0) return std::nullopt;
  }
  return payload;
}

}  // namespace millrace::bench
