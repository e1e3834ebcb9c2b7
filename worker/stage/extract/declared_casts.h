// Declared types over a format that has types of its own: Parquet's values are cast, and every cast is proven to lose nothing.
#pragma once

#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "worker/stage/extract/lossless.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// Where the types of `wanted` differ from those of the files.
struct DeclaredCasts {
  bool none = true;
  std::string violation;    // the reason as SQL, null where the casts lose nothing
  std::string select_list;  // of the cast columns, in the order of the files'
};
StageOutcome<DeclaredCasts> PlanCasts(duck::Connection& connection, const std::vector<ColumnSpec>& of_files,
                                      const std::vector<ColumnSpec>& wanted);

// Class bad_value names file, record, column and value of the first cast that would lose something.
StageOutcome<void> FailOnLossyCasts(duck::Connection& connection, const std::vector<std::string>& paths,
                                    const DeclaredCasts& casts);

// The rows in two disjoint parts, as SplitRounding. REQUIRES: !casts.none.
ExactRows SplitLossyCasts(const std::vector<std::string>& paths, const std::vector<ColumnSpec>& of_files,
                          const DeclaredCasts& casts);

}  // namespace millrace
