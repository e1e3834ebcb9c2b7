// What is wrong with a CSV file that the engine could not read, in words that name file, line and the option to set.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "common/model/pipeline.h"

namespace millrace {

// The first mistake in the file: "sales.csv:3: 3 fields where the first line has 2". Looks for another encoding, quotes
// that are never closed (they come before other mistakes: they swallow lines), lines that do not have as many fields as the
// first, and lines longer than kRecordBytesMax; nothing when it finds none of them, the file is
// compressed, or the mistake is not in its first `bytes_max` bytes. REQUIRES: a CSV or TSV format.
inline constexpr std::size_t kDiagnosedBytesMax = 64u << 20;
struct CsvProblem {
  enum class Kind : std::uint8_t { kEncoding, kFields, kQuote, kTooLong };
  Kind kind = Kind::kFields;
  std::string message;  // with what to do about it
};
std::optional<CsvProblem> FindCsvProblem(const std::string& path, FileFormat format,
                                         const std::map<std::string, std::string>& options,
                                         std::size_t bytes_max = kDiagnosedBytesMax);

// The engine's message without its advice about options that a pipeline file does not have, and with at most 60 bytes of any
// value that it quotes.
std::string WithoutEngineAdvice(std::string message);

// When the only column of a file has a name like "id;name", the separator it seems to be written with: ';', '\t', '|' or ','.
std::optional<char> OtherDelimiter(std::string_view only_column, char delimiter);

}  // namespace millrace
