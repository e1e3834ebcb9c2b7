// DuckDB behind RAII: one Database per process, Connections on it, small results as text, large ones as typed chunks without
// copies. Only duckdb.cc includes DuckDB's header. Only millrace-stage links this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/pipeline.h"
#include "common/model/stage_task.h"

namespace millrace::duck {

// What a column of a Stream holds, and the C++ type for ChunkColumn::Values<T>().
enum class Type : std::uint8_t {
  kBoolean,  // bool (one byte)
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
  kHugeInt,   // Int128
  kUHugeInt,  // Int128 read as unsigned
  kFloat,
  kDouble,
  kDecimal,  // ColumnType::storage says how: kInt16, kInt32, kInt64 or kHugeInt, scaled by 10^scale
  kVarchar,  // Text()
  kBlob,     // Text(): raw bytes
  kDate,     // std::int32_t, days since 1970-01-01; INT32_MAX / -INT32_MAX = +/- infinity
  kTime,     // std::int64_t, microseconds since midnight
  kTimestampS,
  kTimestampMs,
  kTimestamp,
  kTimestampNs,  // std::int64_t since 1970-01-01 in s, ms, us, ns
  kTimestampTz,  // std::int64_t, UTC microseconds; INT64_MAX / -INT64_MAX = +/- infinity
  kInterval,     // Interval
  kUuid,         // Int128 whose top bit is flipped; UuidBytes() undoes that
};

struct Int128 {
  std::uint64_t lower = 0;
  std::int64_t upper = 0;
};
struct Interval {
  std::int32_t months = 0;
  std::int32_t days = 0;
  std::int64_t micros = 0;
};
// The 16 bytes of a uuid, big-endian, as PostgreSQL's binary format wants them.
std::array<std::uint8_t, 16> UuidBytes(Int128 stored);

struct ColumnType {
  std::string name;
  Type type = Type::kVarchar;
  Type storage = Type::kVarchar;  // decimals: the integer type of the values; otherwise == type
  int width = 0, scale = 0;       // decimals
  std::string sql_type;   // "decimal(10,2)", "timestamp with time zone", "integer[]": as declared by the query, lower case
  bool rendered = false;  // a type without a C++ form (list, struct, map, enum, bit ...), cast to text by Stream
};

// One column of one chunk. Valid until the next RowStream::Next(). Not thread-safe, like all that follows.
class ChunkColumn {
 public:
  ChunkColumn(const void* data, const std::uint64_t* validity, std::size_t rows)
      : data_(data), validity_(validity), rows_(rows) {}
  bool HasNulls() const { return validity_ != nullptr; }  // false: IsNull is false for every row
  bool IsNull(std::size_t row) const { return validity_ != nullptr && ((validity_[row / 64] >> (row % 64)) & 1U) == 0; }
  // REQUIRES: T is the type's form (see Type). Values of null rows are unspecified.
  template <class T>
  std::span<const T> Values() const {
    return {static_cast<const T*>(data_), rows_};
  }
  // REQUIRES: kVarchar or kBlob, and not null. Points into the chunk.
  std::string_view Text(std::size_t row) const {
    constexpr std::size_t kEntryBytes = 16, kInlineBytesMax = 12;
    const char* entry = static_cast<const char*>(data_) + row * kEntryBytes;
    std::uint32_t length = 0;
    std::memcpy(&length, entry, sizeof length);
    if (length <= kInlineBytesMax) return {entry + sizeof length, length};
    const char* text = nullptr;
    std::memcpy(&text, entry + 8, sizeof text);
    return {text, length};
  }

 private:
  const void* data_;
  const std::uint64_t* validity_;
  std::size_t rows_;
};

// A result read chunk by chunk; the query runs as far as it is read. Movable. Keeps its connection busy until destroyed.
class RowStream {
 public:
  RowStream(RowStream&&) noexcept;
  RowStream& operator=(RowStream&&) noexcept;
  ~RowStream();
  const std::vector<ColumnType>& columns() const;
  // Fetches the next chunk (at most 2048 rows); the number of rows, 0 at the end. An error ends the stream.
  Result<std::size_t> Next();
  ChunkColumn Column(std::size_t index) const;  // REQUIRES: the last Next() returned > 0

 private:
  friend class Connection;
  struct State;
  explicit RowStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A small result, every value as text; null is nullopt.
struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<std::optional<std::string>>> rows;
  // The first row's value as an integer; 0 when there is none. REQUIRES: an integer column.
  std::int64_t Int(std::size_t column = 0, std::size_t row = 0) const;
  std::string Text(std::size_t column = 0, std::size_t row = 0) const;  // "" for null or no row
};

// What the engine said when the last statement of a connection failed.
struct SqlError {
  std::string type;                     // "Binder", "Parser", "Conversion", "Out of Memory", "IO", ... (DuckDB's names)
  std::string message;                  // first line, without the type
  std::optional<std::size_t> position;  // byte offset in the SQL text as passed in
  std::vector<std::string> candidates;  // names the engine proposes instead
};

struct DatabaseOptions {
  int threads = 1;
  std::uint64_t memory_bytes_max = 0;  // 0 = DuckDB's default (80 % of RAM)
  std::string temp_directory{};        // empty: no spilling
};

class Connection;
class RowSource;  // duckdb_rows.h

// An in-memory database with extension loading, community extensions and persistent secrets off. Thread-safe.
class Database {
 public:
  static Result<Database> Open(const DatabaseOptions& options);
  Database(Database&&) noexcept;
  Database& operator=(Database&&) noexcept;
  ~Database();
  Result<Connection> Connect();

 private:
  struct State;
  explicit Database(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

// REQUIRES: one thread at a time, except Interrupt and Progress. Errors: kInvalidArgument (SQL that cannot be right, a bad
// parameter), kRejected (the engine refused while running: conversion, permission, missing file), kLimit (out of memory or
// temporary space), kCancelled (interrupted), kCorrupt (a file that is not what its name says). last_error() has the details.
class Connection {
 public:
  Connection(Connection&&) noexcept;
  Connection& operator=(Connection&&) noexcept;
  ~Connection();

  // Settings that may change after the database is open. Call Restrict last: it turns external access off (only `paths` and
  // what lies below `directories` can be opened, for reading and writing) and locks the configuration.
  Result<void> Configure(const DatabaseOptions& options);
  Result<void> Restrict(const std::vector<std::string>& paths, const std::vector<std::string>& directories);

  // Makes rows of this program a table: what stands for it after FROM. The connection's statements may read it from then on.
  // kInvalidArgument: a column of a type that a RowSource cannot have. When a reading fails, so does its statement, as if
  // a file of the engine's own could not be read: the reading's message and type "IO", kLimit as "Out of Memory".
  Result<std::string> Offer(std::shared_ptr<const RowSource> source);

  // Runs one or more statements; parameters are only for a single one. The number of rows changed (INSERT, COPY ... TO, CREATE
  // TABLE AS) or 0.
  Result<std::int64_t> Execute(std::string_view sql, const std::vector<BoundParam>& params = {});
  // Reads the whole result. For results known to be small.
  Result<Table> Query(std::string_view sql, const std::vector<BoundParam>& params = {});
  // `sql` is one SELECT. Parameters are named $name; those it does not mention are ignored, one it lacks is an error.
  Result<RowStream> Stream(std::string_view sql, const std::vector<BoundParam>& params = {});
  // Names and types of one SELECT without running it. not_null is always false. kInvalidArgument unless `sql` is exactly one
  // statement and that is a SELECT (also WITH, VALUES, FROM ...).
  Result<std::vector<ColumnSpec>> Describe(std::string_view sql, const std::vector<BoundParam>& params = {});

  // Stops the running statement at the next point where the engine looks (which may be far: kill the process for certainty).
  // Thread-safe.
  void Interrupt();
  // Rows the running statement has read from its sources, as far as is known, or as many as the last reading of an offered
  // table if that is more; -1 = unknown. Thread-safe.
  std::int64_t RowsProcessed() const;
  const SqlError& last_error() const;

 private:
  friend class Database;
  friend class RowStream;
  struct State;
  explicit Connection(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The statement without its closing ';' and what follows, so that it can stand in parentheses (put a newline before the ')').
// REQUIRES: `sql` passed Describe.
std::string_view StripSemicolon(std::string_view sql);

// "name" with quotes doubled; 'text' with quotes doubled.
std::string QuoteName(std::string_view name);
std::string QuoteText(std::string_view text);

}  // namespace millrace::duck
