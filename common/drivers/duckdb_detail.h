// Inside the DuckDB driver only: names of types, classes of errors.
#pragma once

#include <duckdb.h>

#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/drivers/duckdb.h"

namespace millrace::duck {

struct DestroyLogicalType {
  void operator()(duckdb_logical_type type) const noexcept { duckdb_destroy_logical_type(&type); }
};
using LogicalType = std::unique_ptr<std::remove_pointer_t<duckdb_logical_type>, DestroyLogicalType>;

// As SQL spells it, lower case: "bigint", "decimal(10,2)", "integer[]", "struct(a integer)"; "unknown" before binding.
std::string TypeName(duckdb_logical_type type);
ColumnType DescribeColumn(std::string name, duckdb_logical_type type);

// From the text of an error, as JSON (errors_as_json) or plain ("Binder Error: ...").
SqlError ParseSqlError(std::string_view raw);
ErrorCode CodeOf(std::string_view error_type);

}  // namespace millrace::duck
