// CHECK: an invariant of our own, always on. For anything a peer, a file or an operator can cause, return an Error instead.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace millrace {
[[noreturn]] void CheckFailed(std::string_view expression, std::string_view file, int line, std::string_view message);
}  // namespace millrace

// CHECK(condition, "job {}: token {} does not follow {}", ...): prints the place and the message to stderr and aborts.
#define MILLRACE_CHECK(condition, ...)                                                     \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::millrace::CheckFailed(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
  } while (false)
