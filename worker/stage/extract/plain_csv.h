// Most CSV files are plain: every field is what its type looks like, nothing has to be guessed, cut or rounded. Such a file is
// proven here without the engine, in one pass that costs little more than reading it. Of any other file nothing is said: the
// engine's scans decide, and name what is wrong with it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/stage/extract/sources.h"

namespace millrace {

// The columns' names as the engine would read them from the header: all that a file says of itself when nothing has to be
// guessed. Only of names in letters, digits and underscores, no two of which differ only in case, over lines that are plain
// texts of as many fields, as far as the engine looks. nullopt: not certain, or unreadable.
std::optional<std::vector<std::string>> PlainNames(const std::string& path, FileFormat format,
                                                   const std::map<std::string, std::string>& options);

// Remembers what it has proven. Not thread-safe.
class PlainCsv {
 public:
  explicit PlainCsv(int threads) : threads_(threads) {}

  // The number of rows of the file, when reading it as `reader` says is certain to succeed, to find exactly these rows, to lose
  // nothing of any value and to find no null in a column that must not have one. nullopt: not certain, or unreadable. The file
  // must not be written to meanwhile: a SourceWatch that was started before says whether it was.
  std::optional<std::int64_t> Rows(const std::string& path, const ReaderOptions& reader);
  // The same of all files together.
  std::optional<std::int64_t> Rows(const std::vector<std::string>& paths, const ReaderOptions& reader);

 private:
  struct Known {
    std::vector<ColumnSpec> columns;
    std::map<std::string, std::string> options;
    std::vector<std::string> guessed_doubles;
    std::optional<std::int64_t> rows;
  };
  int threads_;
  std::map<std::string, Known> known_;  // by path
};

}  // namespace millrace
