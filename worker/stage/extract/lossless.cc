#include "worker/stage/extract/lossless.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "worker/stage/exact_text.h"

namespace millrace {
namespace {

constexpr int kRejectsForPlace = 100'000;
constexpr const char* kIsoDate = "[0-9]{4}-[0-9]{2}-[0-9]{2}";
constexpr const char* kIsoTimestamp = "[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?)?";
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

bool IsNamed(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Whether reading text or JSON as this type can lose something.
bool IsChecked(const ColumnSpec& c, const ReaderOptions& reader) {
  return IsExactType(c.type) || IsTemporalType(c.type) || IsNestedExact(c.type) ||
         (c.type == "double" && IsNamed(reader.guessed_doubles, c.name));
}

std::vector<std::string> CheckedColumns(const ReaderOptions& reader) {
  std::vector<std::string> names;
  for (const auto& c : reader.columns)
    if (IsChecked(c, reader)) names.push_back(c.name);
  return names;
}

ReaderOptions AsText(ReaderOptions reader, const std::vector<std::string>& names) {
  for (auto& c : reader.columns) {
    if (IsNamed(names, c.name)) c.type = IsNestedExact(c.type) && IsJson(reader.format) ? "json" : "varchar";
  }
  reader.store_rejects = false;
  return reader;
}

std::string Option(const ReaderOptions& reader, const std::string& name) {
  const auto found = reader.options.find(name);
  return IsCsv(reader.format) && found != reader.options.end() ? found->second : "";
}

// The text as SQL casts it: with a point.
std::string Number(const ColumnSpec& c, const ReaderOptions& reader) {
  const std::string name = duck::QuoteName(c.name);
  return (IsDecimalType(c.type) || c.type == "double") && CommaDecimals(reader) ? fmt::format("replace({}, ',', '.')", name)
                                                                                : name;
}

// The text as the reader reads it; null where it cannot.
std::string ParsedSql(const ColumnSpec& c, const ReaderOptions& reader) {
  const bool stamp = c.type.starts_with("timestamp");
  const std::string format = c.type == "date" ? Option(reader, "dateformat") : stamp ? Option(reader, "timestampformat") : "";
  if (format.empty()) return fmt::format("TRY_CAST({} AS {})", Number(c, reader), c.type);
  return fmt::format("TRY_CAST(try_strptime({}, {}) AS {})", duck::QuoteName(c.name), duck::QuoteText(format), c.type);
}

std::string RoundsSql(const ColumnSpec& c, const ReaderOptions& reader) {
  if (c.type == "double") return WideIntegerSql(duck::QuoteName(c.name));
  // With a format that has the offset, the reader adds it: the instant is kept.
  if (c.type.starts_with("timestamp") && Option(reader, "timestampformat").find("%z") != std::string::npos) return "false";
  if (!IsNestedExact(c.type)) return TextLosesSql(Number(c, reader), c.type);
  return fmt::format(
      "(TRY_CAST({0} AS {1}) IS NOT NULL AND CAST(TRY_CAST({0} AS {1}) AS {2}) IS DISTINCT FROM TRY_CAST({0} AS {2}))",
      duck::QuoteName(c.name), c.type, LooseType(c.type));
}

std::string UnfitSql(const ColumnSpec& c, const ReaderOptions& reader) {
  return fmt::format("({} IS NOT NULL AND {} IS NULL) OR {}", duck::QuoteName(c.name), ParsedSql(c, reader),
                     RoundsSql(c, reader));
}

constexpr std::size_t kTextBytesShown = 60;
std::string Cut(std::string text) {
  if (text.size() <= kTextBytesShown) return text;
  std::size_t end = kTextBytesShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
  return text.substr(0, end) + "...";
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
                                     name, ReaderSelect({path}, AsText(reader, {column.name})), RoundsSql(column, reader))));
    if (first.rows.empty()) continue;
    std::string place = std::filesystem::path(path).filename().string();
    if (IsJson(reader.format)) {
      place += fmt::format(": record {}", first.Int(1));
    } else if (const std::int64_t line = LineOf(connection, path, reader, column.name, first.Text(0)); line > 0) {
      place += fmt::format(":{}", line);
    }
    return std::unexpected(StageFailure(
        "bad_value", fmt::format("{}: column '{}': '{}' does not fit {} without {}{}{}", place, column.name, Cut(first.Text(0)),
                                 column.type, IsTemporalType(column.type) ? "loss" : "rounding", LossAdvice(column.type),
                                 count == 1 ? "" : fmt::format(" ({} such values in all)", count))));
  }
  return std::unexpected(
      StageFailure("source_changed", fmt::format("column '{}' changed while it was read", column.name), true));
}

}  // namespace

bool CanRound(const ReaderOptions& reader) {
  return reader.format != FileFormat::kParquet &&
         std::any_of(reader.columns.begin(), reader.columns.end(), [&](const ColumnSpec& c) { return IsChecked(c, reader); });
}

StageOutcome<void> FailOnRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                  const ReaderOptions& reader) {
  if (!CanRound(reader)) return {};
  std::string counts;
  for (const auto& c : reader.columns) {
    if (IsChecked(c, reader)) counts += fmt::format("{}count_if({})", counts.empty() ? "" : ", ", RoundsSql(c, reader));
  }
  MILLRACE_TRY_ASSIGN(const duck::Table table,
                      connection.Query(fmt::format("SELECT {} FROM ({})", counts,
                                                   ReaderSelect(paths, AsText(reader, CheckedColumns(reader))))));
  std::size_t at = 0;
  for (const auto& c : reader.columns) {
    if (!IsChecked(c, reader)) continue;
    if (const std::int64_t count = table.Int(at++); count > 0) return FailWith(connection, paths, reader, c, count);
  }
  return {};
}

StageOutcome<std::vector<std::string>> ColumnsThatRound(duck::Connection& connection, const std::vector<std::string>& paths,
                                                        const ReaderOptions& reader) {
  std::vector<std::string> found;
  if (!CanRound(reader)) return found;
  const std::vector<std::string> checked = CheckedColumns(reader);
  std::string counts;
  for (const auto& c : reader.columns) {
    if (!IsChecked(c, reader)) continue;
    counts += fmt::format("{}count_if({})", counts.empty() ? "" : ", ",
                          IsJson(reader.format) ? UnfitSql(c, reader) : RoundsSql(c, reader));
  }
  ReaderOptions text = AsText(reader, checked);
  text.skip_bad_rows = true;
  MILLRACE_TRY_ASSIGN(const duck::Table table,
                      connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect(paths, text))));
  for (std::size_t i = 0; i < checked.size(); ++i)
    if (table.Int(i) > 0) found.push_back(checked[i]);
  return found;
}

ExactRows SplitRounding(const std::vector<std::string>& paths, const ReaderOptions& reader,
                        const std::vector<std::string>& columns) {
  std::string list, reasons;
  for (const auto& c : reader.columns) {
    const std::string name = duck::QuoteName(c.name);
    list += list.empty() ? "" : ", ";
    list += IsNamed(columns, c.name) ? fmt::format("{} AS {}", ParsedSql(c, reader), name) : name;
    if (!IsNamed(columns, c.name)) continue;
    reasons += fmt::format(" WHEN {} THEN {} || CAST({} AS VARCHAR) || CASE WHEN {} THEN {} ELSE '' END", UnfitSql(c, reader),
                           duck::QuoteText(fmt::format("{} is not a {}: ", c.name, c.type)), name, RoundsSql(c, reader),
                           duck::QuoteText(LossAdvice(c.type)));
  }
  const std::string reason = fmt::format("CASE{} END", reasons), row = RowJson(reader.columns);
  ReaderOptions kept = AsText(reader, columns);
  kept.store_rejects = reader.store_rejects;
  ReaderOptions bad = AsText(reader, columns);
  bad.skip_bad_rows = true;
  bad.source_column = kSourceColumn;
  // The row in the WHERE makes the scan convert every column, also when rows are only counted: a row that the reader rejects is
  // then no row here either.
  return {.kept = fmt::format("SELECT {} FROM ({}) WHERE {} IS NULL", list, ReaderSelect(paths, kept), reason),
          .rejects = fmt::format("SELECT {0} AS reason, {2} AS source, CAST(NULL AS BIGINT) AS line, {3} AS row FROM ({1}) "
                                 "WHERE {0} IS NOT NULL AND {3} IS NOT NULL",
                                 reason, ReaderSelect(paths, bad), kSourceColumn, row)};
}

StageOutcome<bool> HoldsOnlyIsoDates(duck::Connection& connection, const std::vector<std::string>& paths,
                                     const ReaderOptions& reader) {
  std::string counts;
  std::vector<std::string> names;
  for (const auto& c : reader.columns) {
    const bool stamp = c.type.starts_with("timestamp");
    if ((!stamp && c.type != "date") || !Option(reader, stamp ? "timestampformat" : "dateformat").empty()) continue;
    const std::string name = duck::QuoteName(c.name);
    counts +=
        fmt::format("{0}count_if({1} IS NOT NULL AND NOT (TRY_CAST({1} AS {2}) IS NOT NULL AND regexp_full_match({1}, '{3}')))",
                    counts.empty() ? "" : " + ", name, c.type, stamp ? kIsoTimestamp : kIsoDate);
    names.push_back(c.name);
  }
  if (names.empty()) return true;
  const auto table = connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect(paths, AsText(reader, names))));
  return table && table->Int() == 0;  // what is wrong with the file is the sniffer's to find
}

StageOutcome<void> KeepWideIntegers(duck::Connection& connection, const std::string& path, const ReaderOptions& reader,
                                    const std::vector<std::string>& guessed, std::vector<ColumnSpec>* columns) {
  constexpr const char* kWide = "decimal(38,0)";
  std::string counts;
  ReaderOptions text = reader;
  text.columns = *columns;
  text.store_rejects = false;
  text.skip_bad_rows = true;
  std::vector<ColumnSpec*> doubtful;
  for (std::size_t i = 0; i < columns->size(); ++i) {
    ColumnSpec& c = (*columns)[i];
    text.columns[i].type = IsJson(reader.format) ? "json" : "varchar";
    if (!IsNamed(guessed, c.name) || (c.type != "double" && !(c.type == "bigint" && IsJson(reader.format)))) continue;
    const std::string name = duck::QuoteName(c.name);
    const std::string value = IsJson(reader.format) ? fmt::format("({} ->> '$')", name) : name;
    const std::string unfit = fmt::format("TRY_CAST({} AS BIGINT) IS NULL", value);
    counts += fmt::format("{}count_if({} IS NOT NULL AND {}), count_if({} IS NOT NULL AND (TRY_CAST({} AS {}) IS NULL OR {}))",
                          counts.empty() ? "" : ", ", value, c.type == "double" ? WideIntegerSql(value) : unfit, value, value,
                          kWide, TextLosesSql(value, kWide));
    doubtful.push_back(&c);
  }
  if (doubtful.empty()) return {};
  const auto answer = connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect({path}, text)));
  if (!answer) return {};  // the scan finds what is wrong with the file, and proves the doubles again
  const duck::Table& table = *answer;
  for (std::size_t i = 0; i < doubtful.size(); ++i) {
    if (table.Int(2 * i) == 0) continue;
    ColumnSpec& c = *doubtful[i];
    if (table.Int(2 * i + 1) > 0)
      return std::unexpected(
          StageFailure("source_malformed",
                       fmt::format("{}: column '{}' has whole numbers that a double would not keep exactly, beside other "
                                   "numbers; declare columns: {{ {}: text }}, or {{ {}: double }} if that is exact enough",
                                   std::filesystem::path(path).filename().string(), c.name, c.name, c.name)));
    c.type = kWide;
  }
  return {};
}

}  // namespace millrace
