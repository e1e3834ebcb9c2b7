// From DuckDB chunks to PostgreSQL's binary COPY: one encoder, one or more connections.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "common/drivers/postgres.h"
#include "worker/stage/load/pg_binary.h"
#include "worker/stage/load/types.h"
#include "worker/stage/stage_context.h"

namespace millrace::load {

// What a message calls a row by: its key, or else its first columns. Rows have no numbers: DuckDB sends them in any order.
class RowLabel {
 public:
  explicit RowLabel(const std::vector<PgColumn>& columns);  // which must outlive it
  void Add(std::size_t column, std::string_view value);     // in order; columns that are not shown are ignored
  std::string text() const { return "(" + text_ + ")"; }    // "(id=7, name=ann)"

 private:
  const std::vector<PgColumn>& columns_;
  bool keyed_ = false;
  int shown_ = 0;
  std::string text_;
};

// Encodes the current chunk of `stream`, whose columns are those of `columns`, in order.
// kInvalidArgument names column and row: an infinite or too large date or timestamp, a zero byte in a text.
Result<void> EncodeChunk(const duck::RowStream& stream, std::size_t rows, const std::vector<PgColumn>& columns,
                         PgBinaryBuffer& buffer);

struct CopyTotals {
  std::int64_t rows = 0, bytes = 0;
};

// Streams `select_sql` from DuckDB into `copy_sql` ("copy t (...) from stdin (format binary)") over all of `targets` at once
// (each row goes over exactly one). The COPYs are complete when this returns; transactions are the caller's. After an error
// the COPYs have been aborted where that was possible.
Result<CopyTotals> CopyRows(duck::Connection& source, std::string_view select_sql, const std::vector<PgColumn>& columns,
                            const std::vector<PgConnection*>& targets, std::string_view copy_sql, const Clock& clock,
                            const ProgressFn& progress);

}  // namespace millrace::load
