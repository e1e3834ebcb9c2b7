#include "worker/stage/extract/json_columns.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "worker/stage/extract/sources.h"

namespace millrace {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

// Whether some column is named like another one with "_1", "_2" ... behind it: then the engine may have done that.
bool MayBeRenamed(const std::vector<ColumnSpec>& columns) {
  return std::any_of(columns.begin(), columns.end(), [&](const ColumnSpec& c) {
    const std::size_t bar = c.name.rfind('_');
    if (bar == std::string::npos || bar + 1 == c.name.size()) return false;
    if (c.name.find_first_not_of("0123456789", bar + 1) != std::string::npos) return false;
    const std::string base = Lower(std::string_view(c.name).substr(0, bar));
    return std::any_of(columns.begin(), columns.end(), [&](const ColumnSpec& other) { return Lower(other.name) == base; });
  });
}

Result<std::vector<std::string>> NamesInFile(duck::Connection& connection, const std::string& path, FileFormat format,
                                             const std::map<std::string, std::string>& options, std::size_t count) {
  std::vector<std::string> names;
  if (IsJson(format)) {
    MILLRACE_TRY_ASSIGN(
        const duck::Table keys,
        connection.Query(
            fmt::format("SELECT DISTINCT unnest(json_keys(json)) AS key FROM read_json_objects([{}], format = '{}') ORDER BY 1",
                        duck::QuoteText(path), format == FileFormat::kJson ? "array" : "newline_delimited")));
    for (std::size_t r = 0; r < keys.rows.size(); ++r) names.push_back(keys.Text(0, r));
    return names;
  }
  ReaderOptions reader{.format = format, .options = options};
  reader.options["header"] = "false";
  reader.options.erase("null");
  for (std::size_t i = 0; i < count; ++i) reader.columns.push_back({.name = fmt::format("c{}", i), .type = "varchar"});
  MILLRACE_TRY_ASSIGN(const duck::Table first, connection.Query(ReaderSelect({path}, reader) + " LIMIT 1"));
  for (std::size_t c = 0; !first.rows.empty() && c < count; ++c) names.push_back(first.Text(c));
  return names;
}

}  // namespace

StageOutcome<void> RefuseEqualNames(duck::Connection& connection, const std::string& path, FileFormat format,
                                    const std::map<std::string, std::string>& options, const std::vector<ColumnSpec>& columns) {
  const auto header = options.find("header");
  const bool named = IsJson(format) || (IsCsv(format) && (header == options.end() || header->second == "true"));
  if (!named || !MayBeRenamed(columns)) return {};
  MILLRACE_TRY_ASSIGN(const std::vector<std::string> names, NamesInFile(connection, path, format, options, columns.size()));
  const std::string file = std::filesystem::path(path).filename().string();
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t k = i + 1; k < names.size(); ++k) {
      if (names[i].empty() || Lower(names[i]) != Lower(names[k])) continue;
      if (IsJson(format))
        return std::unexpected(StageFailure(
            "source_malformed",
            fmt::format("{}: keys '{}' and '{}' differ only in case and would be one column; rename one of them in the source",
                        file, names[i], names[k])));
      return std::unexpected(
          StageFailure("duplicate_column",
                       fmt::format("{}: columns {} and {} are named '{}' and '{}'; rename one in the file, or set options: "
                                   "{{ header: false, skip: 1 }} to number the columns",
                                   file, i + 1, k + 1, names[i], names[k])));
    }
  }
  return {};
}

StageOutcome<void> PlainJsonTypes(duck::Connection& connection, const std::string& path, FileFormat format,
                                  std::vector<ColumnSpec>* columns) {
  ReaderOptions text{.format = format};
  std::string counts;
  std::vector<ColumnSpec*> dates;
  for (auto& c : *columns) {
    const bool kept = c.type == "bigint" || c.type == "ubigint" || c.type == "double" || c.type == "boolean";
    const bool date = c.type == "date" || c.type == "timestamp";
    const bool words = c.type == "varchar" || c.type == "uuid" || c.type == "time";
    if (words) c.type = "varchar";
    if (!kept && !date && !words) c.type = "json";
    text.columns.push_back({.name = c.name, .type = "varchar"});
    if (!date) continue;
    const std::string_view form = c.type == "date"
                                      ? "[0-9]{4}-[0-9]{2}-[0-9]{2}"
                                      : "[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?Z?";
    const std::string name = duck::QuoteName(c.name);
    counts += fmt::format("{}count_if({} IS NOT NULL AND NOT regexp_full_match({}, '{}'))", counts.empty() ? "" : ", ", name,
                          name, form);
    dates.push_back(&c);
  }
  if (dates.empty()) return {};
  MILLRACE_TRY_ASSIGN(const duck::Table table,
                      connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect({path}, text))));
  for (std::size_t i = 0; i < dates.size(); ++i)
    if (table.Int(i) > 0) dates[i]->type = "varchar";
  return {};
}

}  // namespace millrace
