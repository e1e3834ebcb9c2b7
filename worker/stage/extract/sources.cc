#include "worker/stage/extract/sources.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "common/drivers/duckdb.h"
#include "worker/stage/extract/packed.h"

namespace millrace {
namespace {

using duck::QuoteName;
using duck::QuoteText;

// What the pipeline file calls an option, and what the engine does.
constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kCsvOptions = {{
    {"delimiter", "delim"},
    {"header", "header"},
    {"quote", "quote"},
    {"escape", "escape"},
    {"null", "nullstr"},
    {"skip", "skip"},
    {"dateformat", "dateformat"},
    {"timestampformat", "timestampformat"},
    {"decimal_separator", "decimal_separator"},
    {"comment", "comment"},
    {"encoding", "encoding"},
}};

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

std::string ColumnMap(const std::vector<ColumnSpec>& columns, bool all_text) {
  std::string out = "{";
  for (const auto& c : columns) {
    out += fmt::format("{}{}: {}", out.size() > 1 ? ", " : "", QuoteText(c.name), QuoteText(all_text ? "varchar" : c.type));
  }
  return out + "}";
}

}  // namespace

FileFormat FormatOf(std::string_view path) {
  std::string name = Lower(path);
  for (const std::string_view packed : {".gz", ".zst"}) {
    if (name.ends_with(packed)) {
      name.resize(name.size() - packed.size());
      break;
    }
  }
  if (name.ends_with(".csv")) return FileFormat::kCsv;
  if (name.ends_with(".tsv")) return FileFormat::kTsv;
  if (name.ends_with(".ndjson") || name.ends_with(".jsonl")) return FileFormat::kNdjson;
  if (name.ends_with(".json")) return FileFormat::kJson;
  if (name.ends_with(".parquet")) return FileFormat::kParquet;
  return FileFormat::kAuto;
}

bool IsCsv(FileFormat format) { return format == FileFormat::kCsv || format == FileFormat::kTsv; }
bool IsJson(FileFormat format) { return format == FileFormat::kNdjson || format == FileFormat::kJson; }

Result<void> CheckOptions(FileFormat format, const std::map<std::string, std::string>& options) {
  for (const auto& [name, value] : options) {
    bool known = name == "skip_bad_rows";  // our own, in manifests
    for (const auto& row : kCsvOptions) known = known || (IsCsv(format) && row.first == name);
    if (!known) return Fail(ErrorCode::kInvalidArgument, "option '{}': not an option of this file format", name);
    if (name == "header" && value != "true" && value != "false") {
      return Fail(ErrorCode::kInvalidArgument, "option 'header': '{}' is neither true nor false", value);
    }
    if (name == "encoding" && value != "utf-8" && value != "utf-16" && value != "latin-1")
      return Fail(ErrorCode::kInvalidArgument, "option 'encoding': '{}' is not one of utf-8, utf-16, latin-1", value);
    if (name == "skip" && (value.empty() || value.size() > 9 || value.find_first_not_of("0123456789") != std::string::npos)) {
      return Fail(ErrorCode::kInvalidArgument, "option 'skip': '{}' is not a number of lines", value);
    }
  }
  return {};
}

std::string CsvArguments(FileFormat format, const std::map<std::string, std::string>& options) {
  // `skip` too is said: the engine's guess leaves out first lines, header and all, when later ones have more fields.
  std::map<std::string, std::string> values = {{"delim", format == FileFormat::kTsv ? "'\t'" : "','"},
                                               {"quote", "'\"'"},
                                               {"escape", "'\"'"},
                                               {"header", "true"},
                                               {"skip", "0"}};
  for (const auto& row : kCsvOptions) {
    const auto found = options.find(std::string(row.first));
    if (found == options.end()) continue;
    const bool bare = row.first == "header" || row.first == "skip";
    values[std::string(row.second)] = bare ? found->second : QuoteText(found->second == "\\t" ? "\t" : found->second);
  }
  std::string out;
  for (const auto& [name, value] : values) out += fmt::format(", {} = {}", name, value);
  return out;
}

std::string ReaderCall(const std::vector<std::string>& paths, const ReaderOptions& o) {
  std::string list;
  for (const auto& path : paths) list += (list.empty() ? "" : ", ") + QuoteText(path);
  const std::string source = o.source_column.empty() ? "" : fmt::format(", filename = {}", QuoteText(o.source_column));
  if (o.format == FileFormat::kParquet) return fmt::format("read_parquet([{}], hive_partitioning = false{})", list, source);
  if (IsJson(o.format)) {
    const std::string columns = o.columns.empty() ? fmt::format("sample_size = -1, maximum_depth = {}", o.all_text ? 1 : 2)
                                                  : "columns = " + ColumnMap(o.columns, o.all_text);
    return fmt::format("read_json([{}], format = '{}', {}, maximum_object_size = {}, hive_partitioning = false{})", list,
                       o.format == FileFormat::kJson ? "array" : "newline_delimited", columns, kRecordBytesMax, source);
  }
  std::string arguments = CsvArguments(o.format, o.options);
  if (o.columns.empty()) {
    arguments += o.all_text ? ", all_varchar = true" : ", sample_size = -1";
  } else {
    arguments += ", auto_detect = false, columns = " + ColumnMap(o.columns, o.all_text);
  }
  // A line must fit the buffer, which is of the engine's own default size; left alone it would grow with the line.
  arguments += fmt::format(", max_line_size = {}, buffer_size = {}", kRecordBytesMax, 2 * kRecordBytesMax);
  if (o.store_rejects) arguments += fmt::format(", store_rejects = true, rejects_limit = {}", o.rejects_limit);
  if (o.skip_bad_rows && !o.store_rejects) arguments += ", ignore_errors = true";
  return fmt::format("read_csv([{}]{}, hive_partitioning = false{})", list, arguments, source);
}

std::string ReaderSelect(const std::vector<std::string>& paths, const ReaderOptions& options) {
  std::string list;
  for (const auto& c : options.columns) {
    const std::string name = QuoteName(c.name);
    list += list.empty() ? "" : ", ";
    list += options.format == FileFormat::kParquet ? fmt::format("CAST({} AS {}) AS {}", name, c.type, name) : name;
  }
  if (!list.empty() && !options.source_column.empty()) list += ", " + options.source_column;
  return fmt::format("SELECT {} FROM {}", list.empty() ? "*" : list, ReaderCall(paths, options));
}

}  // namespace millrace
