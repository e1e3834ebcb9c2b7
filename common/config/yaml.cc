#include <libfyaml.h>
#include <algorithm>

#include <memory>
#include <set>

#include "common/config/config.h"
#include "common/config/keys.h"

namespace millrace {
namespace {

using config_detail::FindKey;
using config_detail::IsSection;
using config_detail::UnknownKey;

struct DocumentFree {
  void operator()(fy_document* document) const noexcept { fy_document_destroy(document); }
};
struct DiagFree {
  void operator()(fy_diag* diag) const noexcept { fy_diag_destroy(diag); }
};

// Of bytes that are not UTF-8 libfyaml may never come back, at a byte order mark in the text it gives up the process.
bool IsPlainUtf8(std::string_view text) {
  const auto continues = [&](std::size_t from, std::size_t count) {
    if (text.size() - from < count + 1) return false;
    return std::ranges::all_of(text.substr(from + 1, count),
                               [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; });
  };
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const std::size_t more = c < 0x80                ? 0
                             : c >= 0xC2 && c < 0xE0 ? 1
                             : c >= 0xE0 && c < 0xF0 ? 2
                             : c >= 0xF0 && c < 0xF5 ? 3
                                                     : 4;
    if (more == 4 || !continues(i, more)) return false;
    if (i > 0 && text.substr(i, 3) == "\xEF\xBB\xBF") return false;
    i += more + 1;
  }
  return true;
}

class Reader {
 public:
  Reader(std::string_view name, std::string base_dir) : name_(name), base_dir_(std::move(base_dir)) {}

  Result<RawConfig> Read(std::string_view text) {
    if (text.size() > kConfigFileBytesMax)
      return Fail(ErrorCode::kLimit, "{}: {} bytes, limit {}", name_, text.size(), kConfigFileBytesMax);
    if (text.find('\0') != std::string_view::npos) return Fail(ErrorCode::kInvalidArgument, "{}: has a NUL byte", name_);
    if (!IsPlainUtf8(text))
      return Fail(ErrorCode::kInvalidArgument, "{}: is not UTF-8, or has a byte order mark inside: save it as UTF-8", name_);
    fy_diag_cfg diag_config;
    fy_diag_cfg_default(&diag_config);
    diag_config.fp = nullptr;
    diag_config.colorize = false;
    const std::unique_ptr<fy_diag, DiagFree> diag(fy_diag_create(&diag_config));
    if (!diag) return Fail(ErrorCode::kUnavailable, "{}: out of memory", name_);
    fy_diag_set_collect_errors(diag.get(), true);
    fy_parse_cfg config{};
    config.flags = static_cast<fy_parse_cfg_flags>(FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_ALLOW_DUPLICATE_KEYS);
    config.diag = diag.get();
    const std::unique_ptr<fy_document, DocumentFree> document(fy_document_build_from_string(&config, text.data(), text.size()));
    if (!document) return SyntaxError(diag.get());
    fy_node* root = fy_document_root(document.get());
    if (root == nullptr) return Fail(ErrorCode::kInvalidArgument, "{}:1:1: the file is empty; it needs 'version: 1'", name_);
    MILLRACE_TRY(ReadMapping(root, ""));
    if (!version_seen_) return Fail(ErrorCode::kInvalidArgument, "{}:1:1: the first key must be 'version: 1'", name_);
    return std::move(values_);
  }

 private:
  Result<RawConfig> SyntaxError(fy_diag* diag) const {
    void* iterator = nullptr;
    const fy_diag_error* error = fy_diag_errors_iterate(diag, &iterator);
    if (error == nullptr || error->msg == nullptr)  // no document and nothing to complain about: blank or only comments
      return Fail(ErrorCode::kInvalidArgument, "{}:1:1: the file is empty; it needs 'version: 1'", name_);
    return Fail(ErrorCode::kInvalidArgument, "{}:{}:{}: {}", name_, error->line, error->column, error->msg);
  }

  static const fy_mark* MarkOf(fy_node* node) {
    if (fy_token* token = fy_node_get_scalar_token(node)) return fy_token_start_mark(token);
    void* iterator = nullptr;  // a collection starts where its first element does
    if (fy_node_is_mapping(node)) {
      if (fy_node_pair* pair = fy_node_mapping_iterate(node, &iterator))
        if (fy_node* key = fy_node_pair_key(pair); key != nullptr && fy_node_is_scalar(key)) return MarkOf(key);
    } else if (fy_node_is_sequence(node)) {
      if (fy_node* item = fy_node_sequence_iterate(node, &iterator); item != nullptr && fy_node_is_scalar(item))
        return MarkOf(item);
    }
    return nullptr;
  }
  std::string Where(fy_node* node) const {
    const fy_mark* mark = node == nullptr ? nullptr : MarkOf(node);
    return mark == nullptr ? name_ : fmt::format("{}:{}:{}", name_, mark->line + 1, mark->column + 1);
  }
  template <class... Args>
  std::unexpected<Error> Wrong(fy_node* node, fmt::format_string<Args...> format, Args&&... args) const {
    return Fail(ErrorCode::kInvalidArgument, "{}: {}", Where(node), fmt::format(format, std::forward<Args>(args)...));
  }
  static std::optional<std::string> Scalar(fy_node* node) {
    if (node == nullptr || !fy_node_is_scalar(node) || fy_node_is_alias(node)) return std::nullopt;
    std::size_t size = 0;
    const char* text = fy_node_get_scalar(node, &size);
    return text == nullptr ? std::string() : std::string(text, size);
  }

  Result<void> ReadMapping(fy_node* node, const std::string& prefix) {
    if (!fy_node_is_mapping(node))
      return Wrong(node, "{} must be a mapping of keys to values", prefix.empty() ? "the file" : "'" + prefix + "'");
    std::set<std::string> seen;
    void* iterator = nullptr;
    while (fy_node_pair* pair = fy_node_mapping_iterate(node, &iterator)) {
      fy_node* key_node = fy_node_pair_key(pair);
      const auto key = Scalar(key_node);
      if (!key) return Wrong(key_node, "a key must be a plain word");
      const std::string name = prefix.empty() ? *key : prefix + "." + *key;
      if (!seen.insert(*key).second) return Wrong(key_node, "duplicate key '{}'", name.substr(0, 128));
      MILLRACE_TRY(ReadPair(key_node, fy_node_pair_value(pair), name));
    }
    return {};
  }

  Result<void> ReadPair(fy_node* key_node, fy_node* value, const std::string& name) {
    if (name == "version") {
      if (Scalar(value) != "1") return Wrong(key_node, "version must be 1");
      version_seen_ = true;
      return {};
    }
    // Only the dots that nesting makes: 'log.level: debug' at the top would be a second spelling.
    const auto key = FindKey(name);
    if (!key && !IsSection(name)) return Wrong(key_node, "{}", UnknownKey(name));
    if (!key) {
      if (value == nullptr) return Wrong(key_node, "'{}' is a section and has no keys", name);
      return ReadMapping(value, name);
    }
    RawConfigValue raw{{}, key->is_list, Where(key_node), base_dir_};
    if (key->is_list) {
      if (value == nullptr || !fy_node_is_sequence(value)) return Wrong(key_node, "'{}' must be a list", name);
      void* iterator = nullptr;
      while (fy_node* item = fy_node_sequence_iterate(value, &iterator)) {
        auto text = Scalar(item);
        if (!text) return Wrong(key_node, "'{}' must be a list of plain values", name);
        raw.items.push_back(std::move(*text));
      }
    } else {
      auto text = Scalar(value);
      if (!text) return Wrong(key_node, "'{}' must be a single value", name);
      raw.items.push_back(std::move(*text));
    }
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
