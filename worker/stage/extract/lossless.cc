#include "worker/stage/extract/lossless.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "worker/stage/exact_text.h"

namespace millrace {
namespace {

constexpr int kRejectsForPlace = 100'000;
constexpr const char* kSourceColumn = "_millrace_source_file";

bool CommaDecimals(const ReaderOptions& reader) {
  const auto found = reader.options.find("decimal_separator");
  return IsCsv(reader.format) && found != reader.options.end() && found->second == ",";
}

// "struct(\"a\" bigint)[]" as "struct(\"a\" double)[]": where the engine would round inside a list, map or struct, it keeps the
// fraction. Decimals of more digits than a double holds stay.
std::string LooseType(std::string_view type) {
  constexpr int kDoubleDigits = 15;
  std::string out;
  for (std::size_t i = 0; i < type.size();) {
    if (type[i] == '"' || type[i] == '\'') {
      const std::size_t end = std::min(type.find(type[i], i + 1), type.size() - 1);
      out += type.substr(i, end + 1 - i);
      i = end + 1;
      continue;
    }
    std::size_t end = i;
    while (end < type.size() && ((type[end] >= 'a' && type[end] <= 'z') || type[end] == '_')) ++end;
    if (type.substr(i, end - i) == "decimal") end = std::min(type.find(')', end), type.size() - 1) + 1;
    const std::string_view word = type.substr(i, std::max<std::size_t>(end - i, 1));
    const bool wide = IsDecimalType(word) && std::atoi(std::string(word.substr(8)).c_str()) > kDoubleDigits;
    out += IsExactType(word) && !wide ? "double" : word;
    i += word.size();
  }
  return out;
}

bool IsNestedExact(std::string_view type) {
  const bool nested = type.ends_with(']') || type.starts_with("struct(") || type.starts_with("map(");
  return nested && LooseType(type) != type;
}

// Whether reading text or JSON as this type can round.
bool IsChecked(std::string_view type) { return IsExactType(type) || IsNestedExact(type); }

ReaderOptions AsText(ReaderOptions reader) {
  for (auto& c : reader.columns) {
    if (IsChecked(c.type)) c.type = IsNestedExact(c.type) && IsJson(reader.format) ? "json" : "varchar";
  }
  reader.store_rejects = false;
  return reader;
}

// The text as SQL casts it: with a point.
std::string Number(const ColumnSpec& c, const ReaderOptions& reader) {
  const std::string name = duck::QuoteName(c.name);
  return IsDecimalType(c.type) && CommaDecimals(reader) ? fmt::format("replace({}, ',', '.')", name) : name;
}

std::string RoundsSql(const ColumnSpec& c, const ReaderOptions& reader) {
  if (!IsNestedExact(c.type)) return TextRoundsSql(Number(c, reader), c.type);
  return fmt::format(
      "(TRY_CAST({0} AS {1}) IS NOT NULL AND CAST(TRY_CAST({0} AS {1}) AS {2}) IS DISTINCT FROM TRY_CAST({0} AS {2}))",
      duck::QuoteName(c.name), c.type, LooseType(c.type));
}

std::string UnfitSql(const ColumnSpec& c, const ReaderOptions& reader) {
  const std::string number = Number(c, reader);
  return fmt::format("({0} IS NOT NULL AND TRY_CAST({0} AS {1}) IS NULL) OR {2}", number, c.type, RoundsSql(c, reader));
}

// The line of the first row whose `column` holds `value`, when reading that column as `type` fails for it. 0: it does not.
std::int64_t RejectedLine(duck::Connection& connection, const std::string& path, ReaderOptions reader,
                          const std::string& column, const std::string& value, const std::string& type) {
  for (auto& c : reader.columns) c.type = c.name == column ? type : "varchar";
  reader.store_rejects = true;
  reader.rejects_limit = kRejectsForPlace;
  const std::string scan = ReaderSelect({path}, reader);
  if (!connection.Query(fmt::format("SELECT count({}) FROM ({})", duck::QuoteName(column), scan))) return 0;
  const auto line = connection.Query(fmt::format("SELECT min(line) FROM reject_errors WHERE contains(error_message, {})",
                                                 duck::QuoteText(fmt::format("string \"{}\" to ", value))));
  return line && !line->rows.empty() && line->rows.front().front() ? line->Int() : 0;
}

// First with the other decimal separator, which rejects few rows: fractions are what cannot be converted then. Then as a type
// that no number is, which rejects every row and so finds only what stands near the beginning.
std::int64_t LineOf(duck::Connection& connection, const std::string& path, const ReaderOptions& reader,
                    const std::string& column, const std::string& value) {
  ReaderOptions other = reader;
  other.options["decimal_separator"] = CommaDecimals(reader) ? "." : ",";
  const std::int64_t line = RejectedLine(connection, path, std::move(other), column, value, "double");
  return line > 0 ? line : RejectedLine(connection, path, reader, column, value, "uuid");
}

StageOutcome<void> FailWith(duck::Connection& connection, const std::vector<std::string>& paths, const ReaderOptions& reader,
                            const ColumnSpec& column, std::int64_t count) {
  const std::string name = duck::QuoteName(column.name);
  for (const auto& path : paths) {
    MILLRACE_TRY_ASSIGN(
        const duck::Table first,
        connection.Query(fmt::format("SELECT {0}, \"record number\" FROM (SELECT {0}, row_number() OVER () AS \"record "
                                     "number\" FROM ({1})) WHERE {2} LIMIT 1",
                                     name, ReaderSelect({path}, AsText(reader)), RoundsSql(column, reader))));
    if (first.rows.empty()) continue;
    std::string place = std::filesystem::path(path).filename().string();
    if (IsJson(reader.format)) {
      place += fmt::format(": record {}", first.Int(1));
    } else if (const std::int64_t line = LineOf(connection, path, reader, column.name, first.Text(0)); line > 0) {
      place += fmt::format(":{}", line);
    }
    return std::unexpected(StageFailure(
        "bad_value", fmt::format("{}: column '{}': '{}' does not fit {} without rounding{}", place, column.name, first.Text(0),
                                 column.type, count == 1 ? "" : fmt::format(" ({} such values in all)", count))));
  }
  return std::unexpected(
      StageFailure("source_changed", fmt::format("column '{}' changed while it was read", column.name), true));
}

}  // namespace

bool CanRound(const ReaderOptions& reader) {
  return reader.format != FileFormat::kParquet &&
         std::any_of(reader.columns.begin(), reader.columns.end(), [](const ColumnSpec& c) { return IsChecked(c.type); });
}

StageOutcome<void> FailOnRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                  const ReaderOptions& reader) {
  if (!CanRound(reader)) return {};
  std::string counts;
  for (const auto& c : reader.columns) {
    if (IsChecked(c.type)) counts += fmt::format("{}count_if({})", counts.empty() ? "" : ", ", RoundsSql(c, reader));
  }
  MILLRACE_TRY_ASSIGN(const duck::Table table,
                      connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect(paths, AsText(reader)))));
  std::size_t at = 0;
  for (const auto& c : reader.columns) {
    if (!IsChecked(c.type)) continue;
    if (const std::int64_t count = table.Int(at++); count > 0) return FailWith(connection, paths, reader, c, count);
  }
  return {};
}

StageOutcome<std::int64_t> CountRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                         const ReaderOptions& reader) {
  if (!CanRound(reader)) return std::int64_t{0};
  std::string any;
  for (const auto& c : reader.columns) {
    if (!IsChecked(c.type)) continue;
    any += fmt::format("{}({})", any.empty() ? "" : " OR ", IsJson(reader.format) ? UnfitSql(c, reader) : RoundsSql(c, reader));
  }
  ReaderOptions text = AsText(reader);
  text.skip_bad_rows = true;
  MILLRACE_TRY_ASSIGN(const duck::Table table,
                      connection.Query(fmt::format("SELECT count_if({}) FROM ({})", any, ReaderSelect(paths, text))));
  return table.Int();
}

ExactRows SplitRounding(const std::vector<std::string>& paths, const ReaderOptions& reader) {
  std::string list, reasons, row;
  for (const auto& c : reader.columns) {
    const std::string name = duck::QuoteName(c.name);
    row += fmt::format("{}{}: {}", row.empty() ? "" : ", ", duck::QuoteText(c.name), name);
    list += list.empty() ? "" : ", ";
    list += IsChecked(c.type) ? fmt::format("CAST({} AS {}) AS {}", Number(c, reader), c.type, name) : name;
    if (!IsChecked(c.type)) continue;
    reasons +=
        fmt::format(" WHEN {} THEN {} || {}", UnfitSql(c, reader),
                    duck::QuoteText(fmt::format("{} is not a {}: ", c.name, c.type)), fmt::format("CAST({} AS VARCHAR)", name));
  }
  const std::string reason = fmt::format("CASE{} END", reasons);
  ReaderOptions kept = AsText(reader);
  kept.store_rejects = reader.store_rejects;
  ReaderOptions bad = AsText(reader);
  bad.skip_bad_rows = true;
  bad.source_column = kSourceColumn;
  // The row in the WHERE makes the scan convert every column, also when rows are only counted: a row that the reader rejects is
  // then no row here either.
  return {.kept = fmt::format("SELECT {} FROM ({}) WHERE {} IS NULL", list, ReaderSelect(paths, kept), reason),
          .rejects = fmt::format(
              "SELECT {0} AS reason, {2} AS source, CAST(NULL AS BIGINT) AS line, CAST(to_json({{{3}}}) AS VARCHAR) "
              "AS row FROM ({1}) WHERE {0} IS NOT NULL AND to_json({{{3}}}) IS NOT NULL",
              reason, ReaderSelect(paths, bad), kSourceColumn, row)};
}

}  // namespace millrace
