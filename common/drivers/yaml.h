// libfyaml behind a plain tree: every node knows its line and column. A deliberately small YAML: one document, no anchors,
// aliases, merge keys or tags (nothing can expand), scalar keys, no duplicate keys. Scalars keep their text: who reads them
// decides the type, so `no` and `0123` stay text.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

struct YamlNode {
  enum class Kind : unsigned char { kScalar, kSequence, kMapping };
  Kind kind = Kind::kScalar;
  std::string text;             // scalar: its value
  bool plain = false;           // scalar: without quotes, not a block
  bool literal = false;         // scalar: a `|` block; its text lines are file lines
  int line = 0, column = 0;     // 1-based, columns in code points. A literal block: of its first text line
  int length = 1;               // code points to mark in an excerpt; >= 1
  std::vector<YamlNode> items;  // of a sequence; the values of a mapping
  std::vector<YamlNode> keys;   // of a mapping: keys[i] is the key of items[i]
  // Plain and empty, `~` or `null`: nothing was written.
  bool IsNull() const;
  // The value of a key, or nullptr. Linear.
  const YamlNode* Find(std::string_view key) const;
};

struct YamlComplaint {
  int line = 0, column = 0, length = 1;  // 1-based; 0 = the whole file
  std::string
      code;  // yaml_syntax, tab_indent, duplicate_key, yaml_alias, yaml_tag, too_deep, too_large, invalid_utf8, empty_file, ...
  std::string message;
  std::string help;  // may be empty
};

struct YamlLimits {
  std::size_t bytes_max = std::size_t{4} << 20;
  std::size_t depth_max = 64;
};

struct YamlDocument {
  std::optional<YamlNode> root;  // absent if the text could not be read to its end
  std::vector<YamlComplaint> complaints;
};

// Never throws, never prints. Pure; thread-safe.
YamlDocument ParseYaml(std::string_view source, const YamlLimits& limits = {});

}  // namespace millrace
