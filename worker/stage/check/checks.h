// Checks of a stage, run in DuckDB on its rows before anything is published or sent.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "common/model/pipeline.h"

namespace millrace {

// Runs every check over `rows_sql` (a SELECT or the quoted name of a table or view). kConflict when one does not hold: the
// message names the check, how many rows fail and up to 5 of them (error class "check_failed"). Other codes: the check itself
// cannot run (an unknown column).
Result<void> RunChecks(duck::Connection& connection, std::string_view rows_sql, const std::vector<CheckSpec>& checks);

// "unique(origin, day)", "expression(flights > 0)": how messages name a check.
std::string CheckName(const CheckSpec& check);

// The expression of a check as a SELECT that yields the offending rows; empty for row_count.
std::string OffendersSql(std::string_view rows_sql, const CheckSpec& check);

}  // namespace millrace
