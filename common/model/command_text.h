// What a command's words and variables may be. A NUL ends what a program is given: it would get less than was said.
#pragma once

#include <string_view>

namespace millrace {

inline bool HasNul(std::string_view text) { return text.find('\0') != std::string_view::npos; }

inline bool IsVariableName(std::string_view name) {
  return !name.empty() && name.find('=') == std::string_view::npos && !HasNul(name);
}

}  // namespace millrace
