// Inside the DuckDB driver only: names of types, classes of errors.
#pragma once

#include <duckdb.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "common/drivers/duckdb_rows.h"

namespace millrace::duck {

struct DestroyLogicalType {
  void operator()(duckdb_logical_type type) const noexcept { duckdb_destroy_logical_type(&type); }
};
using LogicalType = std::unique_ptr<std::remove_pointer_t<duckdb_logical_type>, DestroyLogicalType>;

// As SQL spells it, lower case: "bigint", "decimal(10,2)", "integer[]", "struct(a integer)"; "unknown" before binding.
std::string TypeName(duckdb_logical_type type);
ColumnType DescribeColumn(std::string name, duckdb_logical_type type);
// The type that TypeName names so; null unless it is one that a RowSource may have.
LogicalType TypeNamed(std::string_view name);

// From the text of an error, as JSON (errors_as_json) or plain ("Binder Error: ...").
SqlError ParseSqlError(std::string_view raw);
ErrorCode CodeOf(std::string_view error_type);

// What the offered tables of a connection have come to. Thread-safe.
class OfferedRows {
 public:
  void Count(std::size_t rows) { rows_ += static_cast<std::int64_t>(rows); }
  void Forget() { rows_ = 0; }
  std::int64_t rows() const { return rows_; }
  void Fail(Error error);
  // The error of a reading, if `message` is what the engine made of it.
  std::optional<Error> Behind(std::string_view message) const;

 private:
  std::atomic<std::int64_t> rows_ = 0;
  mutable std::mutex mutex_;
  std::vector<Error> errors_;
};

// `offered` outlives the connection's statements.
Result<void> RegisterRows(duckdb_connection connection, const std::string& name, std::shared_ptr<const RowSource> source,
                          std::shared_ptr<OfferedRows> offered);

}  // namespace millrace::duck
