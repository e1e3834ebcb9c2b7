// The rows of CSV files that are proven plain (plain_csv.h), read without the engine's reader: each value is what that reader
// would make of it, to the bit, in two fifths of its processor time. Files are read in pieces of 8 MB, as the engine does:
// within a piece rows come in their order, and one thread takes the pieces in theirs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/drivers/duckdb_rows.h"
#include "worker/stage/extract/sources.h"

namespace millrace {

// REQUIRES: PlainCsv found `rows` rows in these files, read in this way. Null: not a form that can be proven. Every value
// that is read is looked at again: a file that is no longer what was proven ends the reading with kConflict, one that cannot be
// read with kUnavailable. (Of columns that nobody asks for only the borders are.) One thread holds 1 MiB of rows, a line, and
// 256 KiB.
std::shared_ptr<const duck::RowSource> PlainRows(std::vector<std::string> paths, const ReaderOptions& reader,
                                                 std::int64_t rows);

}  // namespace millrace
