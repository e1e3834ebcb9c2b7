// The schema that the first extract of a stage pins (lake.h, PinnedSchemaPath), and how a later file differs from it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

struct PinnedSchema {
  std::vector<ColumnSpec> columns;
  std::map<std::string, std::string> read_options;  // csv: as sniffed
  friend bool operator==(const PinnedSchema&, const PinnedSchema&) = default;
};

std::string ToJson(const PinnedSchema& schema);
Result<PinnedSchema> PinnedSchemaFromJson(std::string_view json);

// nullopt when nothing is pinned at `path` (absolute).
Result<std::optional<PinnedSchema>> ReadPinnedSchema(const std::string& path);

enum class Compare : bool { kNames, kNamesAndTypes };
// "" when equal, else "missing: a bigint; new: b; c: date, was bigint; order: ...".
std::string SchemaDiff(const std::vector<ColumnSpec>& pinned, const std::vector<ColumnSpec>& now, Compare compare,
                       bool ordered);

}  // namespace millrace
