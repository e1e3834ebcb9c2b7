#include "common/drivers/yaml.h"

#include "common/config/config.h"
#include "common/config/keys.h"

namespace millrace {
namespace {

using config_detail::FindKey;
using config_detail::IsSection;
using config_detail::UnknownKey;

class Reader {
 public:
  Reader(std::string_view name, std::string base_dir) : name_(name), base_dir_(std::move(base_dir)) {}

  Result<RawConfig> Read(std::string_view text) {
    const YamlDocument document = ParseYaml(text, {.bytes_max = kConfigFileBytesMax});
    if (!document.complaints.empty()) return Complain(document.complaints.front());
    MILLRACE_TRY(ReadMapping(*document.root, ""));
    if (!version_seen_) return Fail(ErrorCode::kInvalidArgument, "{}:1:1: the key 'version: 1' is missing", name_);
    return std::move(values_);
  }

 private:
  std::unexpected<Error> Complain(const YamlComplaint& complaint) const {
    const auto code = complaint.code == "too_large" ? ErrorCode::kLimit : ErrorCode::kInvalidArgument;
    const std::string where = complaint.line == 0 ? name_ : fmt::format("{}:{}:{}", name_, complaint.line, complaint.column);
    if (complaint.code == "empty_file") return Fail(code, "{}:1:1: the file is empty; it needs 'version: 1'", name_);
    return Fail(code, "{}: {}{}{}", where, complaint.message, complaint.help.empty() ? "" : "; ", complaint.help);
  }

  std::string Where(const YamlNode& node) const { return fmt::format("{}:{}:{}", name_, node.line, node.column); }
  template <class... Args>
  std::unexpected<Error> Wrong(const YamlNode& node, fmt::format_string<Args...> format, Args&&... args) const {
    return Fail(ErrorCode::kInvalidArgument, "{}: {}", Where(node), fmt::format(format, std::forward<Args>(args)...));
  }

  Result<void> ReadMapping(const YamlNode& node, const std::string& prefix) {
    if (node.kind != YamlNode::Kind::kMapping)
      return Wrong(node, "{} must be a mapping of keys to values", prefix.empty() ? "the file" : "'" + prefix + "'");
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      const std::string& key = node.keys[i].text;
      MILLRACE_TRY(ReadPair(node.keys[i], node.items[i], prefix.empty() ? key : prefix + "." + key));
    }
    return {};
  }

  Result<void> ReadPair(const YamlNode& key_node, const YamlNode& value, const std::string& name) {
    if (name == "version") {
      if (value.kind != YamlNode::Kind::kScalar) return Wrong(key_node, "version must be 1");
      if (value.text != "1") return Wrong(key_node, "version must be 1, not '{}'", value.text.substr(0, 64));
      version_seen_ = true;
      return {};
    }
    const auto key = FindKey(name);
    if (!key && !IsSection(name)) return Wrong(key_node, "{}", UnknownKey(name));
    if (!key) {
      if (value.IsNull()) return Wrong(key_node, "'{}' is a section and has no keys; add one, or leave it out", name);
      return ReadMapping(value, name);
    }
    RawConfigValue raw{{}, key->is_list, Where(key_node), base_dir_};
    if (key->is_list) {
      if (value.kind != YamlNode::Kind::kSequence) return Wrong(key_node, "'{}' must be a list; write [a, b]", name);
      for (const YamlNode& item : value.items) {
        if (item.kind != YamlNode::Kind::kScalar) return Wrong(item, "'{}' must be a list of plain values", name);
        raw.items.push_back(item.text);
      }
    } else {
      if (value.kind != YamlNode::Kind::kScalar) return Wrong(key_node, "'{}' must be a single value", name);
      raw.items.push_back(value.text);
    }
    // 'log.level: debug' at the top is a second spelling of the nested one.
    if (!values_.try_emplace(name, std::move(raw)).second) return Wrong(key_node, "duplicate key '{}'", name);
    return {};
  }

  std::string name_, base_dir_;
  RawConfig values_;
  bool version_seen_ = false;
};

}  // namespace

Result<RawConfig> ParseConfigFile(std::string_view name, std::string_view text, const std::string& base_dir) {
  return Reader(name, base_dir).Read(text);
}

}  // namespace millrace
