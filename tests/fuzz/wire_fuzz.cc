// Any bytes as a frame: must not crash, and what decodes must survive another round trip.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/base/check.h"
#include "common/wire/codec.h"
#include "tests/fuzz/accepted.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string_view frame(reinterpret_cast<const char*>(data), size);
  if (const auto message = wire::Decode(frame)) {
    ++fuzz::accepted;
    const auto again = wire::Decode(wire::Encode(*message));
    MILLRACE_CHECK(again && *again == *message, "a decoded message does not survive its own encoding");
    MILLRACE_CHECK(wire::KindOf(frame) != wire::Kind::kUnknown, "a decoded frame has no kind");
  }
  if (const auto spec = wire::DecodeJobSpec(frame)) {
    const auto again = wire::DecodeJobSpec(wire::EncodeJobSpec(*spec));
    MILLRACE_CHECK(again && *again == *spec, "a decoded job spec does not survive its own encoding");
  }
  return 0;
}
