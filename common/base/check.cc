#include "common/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace millrace {

void CheckFailed(std::string_view expression, std::string_view file, int line, std::string_view message) {
  const std::string text = fmt::format("invariant broken: {} ({}:{}): {}\n", expression, file, line, message);
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace
