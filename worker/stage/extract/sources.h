// Source files as SQL: which reader a name's ending asks for, and the reader call with a fixed schema.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

// By the ending, before an optional ".gz" or ".zst": csv, tsv, ndjson, jsonl, json, parquet. kAuto when it says nothing.
FileFormat FormatOf(std::string_view path);
bool IsCsv(FileFormat format);   // csv or tsv
bool IsJson(FileFormat format);  // ndjson or json

struct ReaderOptions {
  FileFormat format = FileFormat::kParquet;
  std::vector<ColumnSpec> columns{};  // types by name; empty: let the engine guess over the whole file
  std::map<std::string, std::string>
      options{};                               // csv: delimiter, header, quote, escape, null, skip, dateformat, timestampformat
  bool all_text = false;                       // every column as text
  bool store_rejects = false;                  // csv: bad rows go to reject_errors
  int rejects_limit = 0;                       // csv, of each file: rows kept in reject_errors; 0: all
  bool skip_bad_rows = false;                  // csv: bad rows are left out
  std::vector<std::string> guessed_doubles{};  // columns that nobody declared a double: whole numbers must stay exact in them
  std::string source_column{};  // a last column of this name with the path of the row's file; empty: none. A plain name
};

// kInvalidArgument names an option that the format does not have.
Result<void> CheckOptions(FileFormat format, const std::map<std::string, std::string>& options);

// "read_csv(['a.csv', ...], ...)" and the like. REQUIRES: paths is not empty; CheckOptions passed.
std::string ReaderCall(const std::vector<std::string>& paths, const ReaderOptions& options);

// SELECT of `columns` in their order from ReaderCall, with Parquet values cast to the types.
std::string ReaderSelect(const std::vector<std::string>& paths, const ReaderOptions& options);

// The arguments of read_csv (delimiter, quote, header ...), each with a leading ", ".
std::string CsvArguments(FileFormat format, const std::map<std::string, std::string>& options);

}  // namespace millrace
