// What a command prints on stdout: data, in one of four formats. Everything else (progress, logs, errors) goes to stderr.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::cli {

// kIds (--quiet) is asked for beside the others: only what the rows are called by.
enum class OutputFormat : std::uint8_t { kTable, kJson, kNdjson, kCsv, kIds };
Result<OutputFormat> ParseOutputFormat(std::string_view name);

// A cell: nothing, a number, a flag or text. Text holds UTF-8; bytes that are not are shown as U+FFFD.
using Cell = std::variant<std::monostate, std::int64_t, double, bool, std::string>;

struct Table {
  std::vector<std::string> columns;  // snake_case: the field names of the JSON forms, stable
  std::vector<std::vector<Cell>> rows;
  bool verbatim = false;  // people's own data: numbers are shown as they are, neither rounded nor grouped
};

// json: one array of objects; ndjson: one object a line; csv: RFC 4180 with a header line; table: aligned columns, numbers
// to the right with thousands separated, for people; ids: the first column, one a line, and none twice in succession.
std::string Format(const Table& table, OutputFormat format);
void Print(const Table& table, OutputFormat format);
// {"ok": true, "errors": [], "<rows>": [the table's rows]}: what a command that checks something prints as JSON.
std::string FormatChecked(const Table& table, std::string_view rows);

// For people.
std::string HumanCount(std::int64_t n);      // "3,000,000"
std::string HumanBytes(std::int64_t bytes);  // "12.9 MB"
std::string HumanDuration(Micros d);         // "640 ms", "2.31 s", "3 min 12 s"
// A column `duration` of text for people, `duration_ms` of whole milliseconds for programs.
Cell DurationCell(Micros d, OutputFormat format);

// `text` cut to at most `columns` columns of a terminal, with "..." at its end where something is missing. Cuts between
// characters. REQUIRES: columns >= 3.
std::string Ellipsized(std::string_view text, std::size_t columns);

// Columns a terminal shows for `text` (wide and combining characters counted as terminals do).
std::size_t DisplayWidth(std::string_view text);

}  // namespace millrace::cli
