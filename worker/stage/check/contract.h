// A contract as SQL over a stage's rows: which rows keep it, and with what types they are published.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "common/model/pipeline.h"

namespace millrace {

struct ContractPlan {
  std::vector<ColumnSpec> columns{};  // after the contract: its types and not_null, other columns as they were
  std::string
      violation{};  // SQL: text that says what is wrong with a row, null when it keeps the contract; empty: none can be wrong
  std::string select_list{};  // the columns with their casts
  bool casts = false;         // false: rows that keep the contract are published as they are
};

// `actual` are the columns of the rows. Types in both are compared in DuckDB's canonical form. A cast must keep the value: text
// that does not parse, or a number or time that loses something, is a violation. kInvalidArgument: a contract column is missing
// (names it, and a similar one) or a type is unknown.
Result<ContractPlan> PlanContract(duck::Connection& connection, const std::vector<ColumnSpec>& actual,
                                  const ContractSpec& contract);

// A type as the engine spells it ("text" -> "varchar"). kInvalidArgument: no such type.
Result<std::string> CanonicalType(duck::Connection& connection, std::string_view type);

}  // namespace millrace
