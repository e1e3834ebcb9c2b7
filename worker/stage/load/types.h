// How a dataset's columns travel: DuckDB type -> what the SELECT over the dataset casts to -> what the destination stores.
// Pure functions; nothing here talks to a database.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace::load {

enum class DuckKind : std::uint8_t {
  kBoolean,
  kTinyint,
  kSmallint,
  kInteger,
  kBigint,
  kHugeint,
  kUtinyint,
  kUsmallint,
  kUinteger,
  kUbigint,
  kUhugeint,
  kFloat,
  kDouble,
  kDecimal,
  kVarchar,
  kBlob,
  kDate,
  kTime,
  kTimeTz,
  kTimestamp,
  kTimestampTz,
  kInterval,
  kUuid,
  kJson,
  kNested,  // list, array, struct, map, union: stored as JSON
};

// A parsed DuckDB type. `precision` and `scale` belong to kDecimal.
struct DuckType {
  DuckKind kind = DuckKind::kVarchar;
  int precision = 0;
  int scale = 0;
};

// Any spelling DuckDB accepts, any case ("int8", "DOUBLE PRECISION", "numeric(10,2)", "integer[]").
// kInvalidArgument names a type that no destination can store.
Result<DuckType> ParseDuckType(std::string_view type);

// The form of a value in PostgreSQL's binary COPY.
enum class PgWire : std::uint8_t {
  kBool,
  kInt2,
  kInt4,
  kInt8,
  kFloat4,
  kFloat8,
  kNumeric,  // from DECIMAL
  kHugeint,  // numeric, from HUGEINT
  kText,
  kBytea,
  kDate,
  kTime,
  kTimestamp,
  kInterval,
  kUuid,
  kJsonb,  // a version byte, then text
};

// One column on its way into PostgreSQL.
struct PgColumn {
  std::string name;
  std::string pg_type;  // as in CREATE TABLE
  bool not_null = false;
  PgWire wire = PgWire::kText;
  int scale = 0;            // kNumeric
  bool identifies = false;  // part of the key: names the row in messages
  std::string expression;   // over the dataset's SELECT; its DuckDB type is the one that `wire` needs
};

// The type a new table gets.
std::string PgTypeFor(const DuckType& type);

// How `column` goes into a PostgreSQL column of type `pg_type` (format_type's spelling). kInvalidArgument says why it does
// not fit: every value of the dataset's type must fit, except the length of varchar(n) and the syntax of json, which the
// server checks value by value.
Result<PgColumn> PlanPgColumn(const ColumnSpec& column, std::string_view pg_type);

// One column on its way into SQLite.
struct SqliteColumn {
  std::string name;
  std::string declared;  // as in CREATE TABLE
  bool not_null = false;
  enum class Bind : std::uint8_t { kInteger, kReal, kText, kBlob } bind = Bind::kText;
  std::string expression;  // BIGINT, DOUBLE, VARCHAR or BLOB
};

// SQLite has neither exact decimals nor times: decimals up to 15 digits are NUMERIC, longer ones, hugeint and ubigint exact
// text; dates and times are ISO 8601 text, timestamps with a zone in UTC with "+00:00". kInvalidArgument as ParseDuckType.
Result<SqliteColumn> PlanSqliteColumn(const ColumnSpec& column);

// A name in double quotes. kInvalidArgument: empty, or a zero byte.
Result<std::string> QuoteIdent(std::string_view name);
// A text in single quotes, for DuckDB and SQLite (no backslash escapes there).
std::string QuoteText(std::string_view text);

// "select <expressions> from (<dataset>) as dataset", each column under its own name.
std::string CastSql(const std::vector<std::string>& names, const std::vector<std::string>& expressions,
                    std::string_view dataset);

}  // namespace millrace::load
