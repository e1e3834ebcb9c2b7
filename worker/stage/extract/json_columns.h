// Names and types of what a file holds, where the engine's own answer loses something: it renames columns of equal names, and
// it takes any text that looks like a date for one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// Class source_malformed (JSON) or duplicate_column (CSV) names two names of the file that differ only in case, or not at all:
// the engine makes "a_1" of the second, and a JSON reader leaves its values out. `columns`: as the engine sees `path`.
StageOutcome<void> RefuseEqualNames(duck::Connection& connection, const std::string& path, FileFormat format,
                                    const std::map<std::string, std::string>& options, const std::vector<ColumnSpec>& columns);

// Sniffed types of JSON columns as they are pinned: numbers and booleans keep theirs, texts that are dates or timestamps in ISO
// form without exception too, other texts and mixed values are varchar, and what is nested is json.
StageOutcome<void> PlainJsonTypes(duck::Connection& connection, const std::string& path, FileFormat format,
                                  std::vector<ColumnSpec>* columns);

}  // namespace millrace
