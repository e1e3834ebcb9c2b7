// The table of configuration keys. Private to common/config.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::config_detail {

struct Key {
  std::string_view name;
  bool is_list = false;
  bool is_secret = false;
};

std::span<const Key> Keys();  // all but connections.*, in alphabetical order
// A key by its dotted name; connections.<name>.{type,dsn} included.
std::optional<Key> FindKey(std::string_view name);
// "unknown key 'x'; did you mean 'y'?"
std::string UnknownKey(std::string_view name);
bool IsSection(std::string_view name);  // "log", "connections", "connections.x"

}  // namespace millrace::config_detail
