// Text sources hold numbers as text, and the engine's readers round what does not fit: 10.55 becomes the bigint 11. Here every
// value of an integer or decimal column is proven to fit without loss, or is found.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// True for a text format with a column of an integer, decimal, date, time or timestamp type, with a list, map or struct of
// numbers, or with a guessed double: only there can reading lose something. Inside, decimals of more than 15 digits are not
// looked at.
bool CanRound(const ReaderOptions& reader);

// One scan of those columns as text. Class bad_value names file, place, column and value of the first value that reading as
// `reader` says would round or cut. REQUIRES: `paths` is not empty and reads without an error or reject as `reader` says.
StageOutcome<void> FailOnRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                  const ReaderOptions& reader);

// The columns that would round or be cut in some row; rows that cannot be read as CSV rows are left out. For JSON also the
// columns with a value that does not parse.
StageOutcome<std::vector<std::string>> ColumnsThatRound(duck::Connection& connection, const std::vector<std::string>& paths,
                                                        const ReaderOptions& reader);

// The rows of `reader` in two parts that are disjoint: `kept` in the columns and types of `reader`, `rejects` as (reason,
// source, line, row) with every row in which a value of `columns` does not parse or would lose something.
struct ExactRows {
  std::string kept;
  std::string rejects;
};
ExactRows SplitRounding(const std::vector<std::string>& paths, const ReaderOptions& reader,
                        const std::vector<std::string>& columns);

// Whether every value of the date and timestamp columns without a format of their own is in ISO form (2026-01-31, and a time
// without an offset), which no guess of a format would read otherwise. One scan of those columns; rows that are no CSV rows are
// left out.
StageOutcome<bool> HoldsOnlyIsoDates(duck::Connection& connection, const std::vector<std::string>& paths,
                                     const ReaderOptions& reader);

// Gives the columns of `schema` that were guessed as double or bigint, and hold whole numbers that would not stay exact, the
// type decimal(38,0). Class source_malformed, with the declaration that is needed, when they do not fit that either. `guessed`:
// the columns whose type nobody declared.
StageOutcome<void> KeepWideIntegers(duck::Connection& connection, const std::string& path, const ReaderOptions& reader,
                                    const std::vector<std::string>& guessed, std::vector<ColumnSpec>* columns);

}  // namespace millrace
