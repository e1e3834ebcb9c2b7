// One chunk of rows as the engine hands them over, and what makes binary COPY of them: the ten columns of `bench load`, every
// 20th quantity null. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "worker/stage/load/pg_binary.h"
#include "worker/stage/load/pg_copy.h"
#include "worker/stage/load/types.h"

namespace millrace::bench {

class CopyChunk {
 public:
  static constexpr std::size_t kRows = 2048;      // DuckDB's chunk
  static constexpr std::size_t kBytes = 223'385;  // of the encoded rows

  static Result<std::unique_ptr<CopyChunk>> Make() {
    MILLRACE_TRY_ASSIGN(duck::Database database, duck::Database::Open({.threads = 1}));
    MILLRACE_TRY_ASSIGN(duck::Connection connection, database.Connect());
    MILLRACE_TRY_ASSIGN(duck::RowStream rows, connection.Stream(kSelect));
    MILLRACE_TRY_ASSIGN(const std::size_t count, rows.Next());
    if (count != kRows) return Fail(ErrorCode::kCorrupt, "the chunk has {} rows, not {}", count, kRows);
    std::unique_ptr<CopyChunk> chunk(new CopyChunk(std::move(database), std::move(connection), std::move(rows)));
    MILLRACE_TRY(chunk->Encode());
    if (chunk->buffer_.size() != kBytes || !chunk->FirstRowIsRight())
      return Fail(ErrorCode::kCorrupt, "{} bytes were encoded, not {}, or others", chunk->buffer_.size(), kBytes);
    return chunk;
  }
  // All rows, into the same buffer each time.
  Result<void> Encode() {
    buffer_.Clear();
    return load::EncodeChunk(rows_, kRows, columns_, buffer_);
  }
  std::string_view encoded() const { return buffer_.view(); }

 private:
  static constexpr std::string_view kSelect = R"(
    select 10000000 + i as order_id, cast(1 + i * 7919 % 2000000 as integer) as customer_id,
           timestamp '2019-01-01 00:00:00' + to_seconds(i * 86413) as created_at,
           cast(date '2019-01-01' + cast(i as integer) as date) as ship_date,
           if(i % 20 = 0, null, cast(1 + i % 200 as smallint)) as qty,
           cast(i * 977 % 2000000 / 100.0 as decimal(10,2)) as unit_price,
           cast(i % 10000 / 10000.0 as decimal(6,4)) as discount,
           ['DE', 'FR', 'US', 'GB', 'IT'][1 + i % 5] as country, printf('sku-%06d', i * 31 % 100000) as sku,
           ['new', 'paid', 'shipped', 'returned', 'cancelled'][1 + i % 5] as status
    from range(2048) as r(i))";

  CopyChunk(duck::Database database, duck::Connection connection, duck::RowStream rows)
      : database_(std::move(database)), connection_(std::move(connection)), rows_(std::move(rows)) {
    using load::PgWire;
    const auto add = [this](const char* name, const char* type, PgWire wire, int scale = 0) {
      columns_.push_back({.name = name, .pg_type = type, .not_null = false, .wire = wire, .scale = scale, .expression = ""});
    };
    add("order_id", "bigint", PgWire::kInt8);
    add("customer_id", "integer", PgWire::kInt4);
    add("created_at", "timestamp", PgWire::kTimestamp);
    add("ship_date", "date", PgWire::kDate);
    add("qty", "smallint", PgWire::kInt2);
    add("unit_price", "numeric(10,2)", PgWire::kNumeric, 2);
    add("discount", "numeric(6,4)", PgWire::kNumeric, 4);
    for (const char* name : {"country", "sku", "status"}) add(name, "text", PgWire::kText);
  }
  // As many columns as there are, and the key.
  bool FirstRowIsRight() const {
    constexpr std::string_view kBegin("\0\x0a\0\0\0\x08\0\0\0\0\0\x98\x96\x80", 14);  // 10 columns; 8 bytes: 10,000,000
    return encoded().starts_with(kBegin);
  }

  duck::Database database_;
  duck::Connection connection_;
  duck::RowStream rows_;
  std::vector<load::PgColumn> columns_;
  load::PgBinaryBuffer buffer_;
};

}  // namespace millrace::bench
