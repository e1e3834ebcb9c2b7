#include "worker/stage/extract/pinned_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "worker/stage/files.h"

namespace millrace {

std::string ToJson(const PinnedSchema& schema) {
  nlohmann::ordered_json columns = nlohmann::ordered_json::array();
  for (const auto& c : schema.columns) columns.push_back({{"name", c.name}, {"type", c.type}, {"not_null", c.not_null}});
  const nlohmann::ordered_json root = {{"version", 1}, {"columns", columns}, {"read_options", schema.read_options}};
  return root.dump(2);
}

Result<PinnedSchema> PinnedSchemaFromJson(std::string_view json) try {
  const auto root = nlohmann::json::parse(json);
  if (root.at("version").get<int>() != 1)
    return Fail(ErrorCode::kUnsupported, "pinned schema: version {}", root.at("version").dump());
  PinnedSchema schema;
  for (const auto& c : root.at("columns")) {
    schema.columns.push_back({.name = c.at("name").get<std::string>(),
                              .type = c.at("type").get<std::string>(),
                              .not_null = c.at("not_null").get<bool>()});
  }
  schema.read_options = root.at("read_options").get<std::map<std::string, std::string>>();
  return schema;
} catch (const nlohmann::json::exception& e) {
  return Fail(ErrorCode::kCorrupt, "pinned schema: {}", e.what());
}

Result<std::optional<PinnedSchema>> ReadPinnedSchema(const std::string& path) {
  constexpr std::size_t kBytesMax = 8u << 20;
  const auto text = ReadWholeFile(path, kBytesMax);
  if (!text && text.error().code == ErrorCode::kNotFound) return std::nullopt;
  if (!text) return std::unexpected(text.error());
  auto schema = PinnedSchemaFromJson(*text);
  if (!schema) return Prefixed(std::move(schema.error()), "{}", path);
  return std::move(*schema);
}

std::string SchemaDiff(const std::vector<ColumnSpec>& pinned, const std::vector<ColumnSpec>& now, Compare compare,
                       bool ordered) {
  const auto find = [](const std::vector<ColumnSpec>& columns, const std::string& name) {
    return std::find_if(columns.begin(), columns.end(), [&](const ColumnSpec& c) { return c.name == name; });
  };
  std::string diff;
  const auto add = [&](std::string text) { diff += (diff.empty() ? "" : "; ") + text; };
  for (const auto& c : pinned) {
    const auto other = find(now, c.name);
    if (other == now.end()) {
      add(fmt::format("missing: {} {}", c.name, c.type));
    } else if (compare == Compare::kNamesAndTypes && other->type != c.type) {
      add(fmt::format("{}: {}, was {}", c.name, other->type, c.type));
    }
  }
  for (const auto& c : now) {
    if (find(pinned, c.name) == pinned.end()) add(fmt::format("new: {}", c.name));
  }
  const auto same_name = [](const ColumnSpec& a, const ColumnSpec& b) { return a.name == b.name; };
  if (diff.empty() && ordered && !std::equal(pinned.begin(), pinned.end(), now.begin(), now.end(), same_name)) {
    std::string names;
    for (const auto& c : now) names += (names.empty() ? "" : ", ") + c.name;
    add(fmt::format("columns come in another order: {}", names));
  }
  return diff;
}

}  // namespace millrace
