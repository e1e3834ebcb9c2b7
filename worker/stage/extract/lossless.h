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

// True for a text format with an integer or decimal column, or one inside a list, map or struct: only there can reading round.
// Inside, decimals of more than 15 digits are not looked at.
bool CanRound(const ReaderOptions& reader);

// One scan of those columns as text. Class bad_value names file, place, column and value of the first value that reading as
// `reader` says would round. REQUIRES: `paths` is not empty and reads without an error or reject as `reader` says.
StageOutcome<void> FailOnRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                  const ReaderOptions& reader);

// How many rows would round; rows that cannot be read as CSV rows are left out. For JSON also rows whose number does not parse.
StageOutcome<std::int64_t> CountRounding(duck::Connection& connection, const std::vector<std::string>& paths,
                                         const ReaderOptions& reader);

// The rows of `reader` in two parts that are disjoint: `kept` in the columns and types of `reader`, `rejects` as (reason,
// source, line, row) with every row whose number does not parse or would round.
struct ExactRows {
  std::string kept;
  std::string rejects;
};
ExactRows SplitRounding(const std::vector<std::string>& paths, const ReaderOptions& reader);

}  // namespace millrace
