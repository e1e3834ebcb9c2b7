#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/config/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)millrace::ParseConfigFile("fuzz.yaml", text, "/");
  (void)millrace::ParseDuration(text);
  (void)millrace::ParseSize(text);
  (void)millrace::RedactDsn(text);
  return 0;
}
