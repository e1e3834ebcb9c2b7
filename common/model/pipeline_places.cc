#include "common/model/pipeline_places.h"

#include <algorithm>
#include <charconv>

#include "common/base/limits.h"
#include "common/drivers/yaml.h"
#include "common/model/parse_context.h"

namespace millrace {
namespace {

struct Found {
  const YamlNode* key = nullptr;
  const YamlNode* value = nullptr;
};

// One step down; nothing if it leads nowhere.
std::optional<Found> Step(const YamlNode& node, std::string_view name) {
  if (node.kind == YamlNode::Kind::kMapping) {
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      if (node.keys[i].text == name) return Found{&node.keys[i], &node.items[i]};
    return std::nullopt;
  }
  std::size_t index = 0;
  const auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (ec != std::errc{} || end != name.data() + name.size()) return std::nullopt;
  if (node.kind == YamlNode::Kind::kScalar) return index == 0 ? std::optional(Found{nullptr, &node}) : std::nullopt;
  return index < node.items.size() ? std::optional(Found{nullptr, &node.items[index]}) : std::nullopt;
}

Mark MarkOf(const YamlNode& node) { return {{node.line, node.column}, node.length}; }

}  // namespace

Mark MarkInText(const YamlNode& node, std::string_view text, std::size_t offset, std::size_t length) {
  const auto columns = [](std::string_view s) {
    return static_cast<int>(std::ranges::count_if(s, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  };
  offset = std::min(offset, text.size());
  const std::string_view before = text.substr(0, offset);
  const int marked = std::max(1, columns(text.substr(offset, length)));
  const auto lines = static_cast<int>(std::ranges::count(before, '\n'));
  const auto line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  const int column = columns(before.substr(line_start));
  if (node.literal) return {{node.line + lines, node.column + column}, marked};
  const bool one_line = node.length > 1 && columns(text) <= node.length;
  if (!one_line) return MarkOf(node);
  return {{node.line, node.column + column}, marked};  // the mark of a quoted text is behind its quote
}

struct PipelinePlaces::Document {
  YamlDocument yaml;
};

PipelinePlaces::PipelinePlaces(std::string_view source)
    : document_(std::make_unique<Document>(ParseYaml(source, {kPipelineFileBytesMax, kPipelineDepthMax}))) {}
PipelinePlaces::PipelinePlaces(PipelinePlaces&&) noexcept = default;
PipelinePlaces::~PipelinePlaces() = default;

std::optional<Mark> PipelinePlaces::Find(std::string_view stage, const StagePart& part) const {
  if (!document_->yaml.root) return std::nullopt;
  const YamlNode* stages = document_->yaml.root->Find("stages");
  const auto start = stages ? Step(*stages, stage) : std::nullopt;
  if (!start) return std::nullopt;
  Found at{start->key, start->value};
  std::size_t depth = 0;
  for (; depth < part.path.size(); ++depth) {
    auto next = Step(*at.value, part.path[depth]);
    if (!next) break;
    if (part.path[depth] == "transform" && next->value->kind == YamlNode::Kind::kMapping) {
      if (auto sql = Step(*next->value, "sql")) next = sql;
    }
    at = *next;
  }
  const bool whole = depth == part.path.size();
  if (depth == 0 || (at.key != nullptr && (!whole || part.key))) return MarkOf(at.key ? *at.key : *at.value);
  const bool text = at.value->kind == YamlNode::Kind::kScalar;
  if (whole && part.offset && text) return MarkInText(*at.value, at.value->text, *part.offset, part.length);
  // A list or mapping has no word of its own to mark: the key that leads to it says more than its first item.
  return MarkOf(text || at.key == nullptr ? *at.value : *at.key);
}

}  // namespace millrace
