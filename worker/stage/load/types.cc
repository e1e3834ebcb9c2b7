#include "worker/stage/load/types.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

namespace millrace::load {
namespace {

std::string Normalized(std::string_view type) {
  std::string out;
  bool space = false;
  for (const char c : type) {
    if (c == ' ' || c == '\t' || c == '\n') {
      space = !out.empty();
      continue;
    }
    if (space && c != '(' && c != ',' && c != ')' && out.back() != '(' && out.back() != ',') out += ' ';
    space = false;
    out += (c >= 'A' && c <= 'Z') ? static_cast<char>(c + 32) : c;
  }
  return out;
}

std::optional<int> ParseInt(std::string_view text) {
  int value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "(10,2)" or "(10)"; scale 0 when absent.
std::optional<std::pair<int, int>> ParsePrecision(std::string_view text) {
  if (!text.starts_with('(') || !text.ends_with(')')) return std::nullopt;
  text = text.substr(1, text.size() - 2);
  const auto comma = text.find(',');
  const auto precision = ParseInt(text.substr(0, comma));
  const auto scale = comma == std::string_view::npos ? std::optional<int>(0) : ParseInt(text.substr(comma + 1));
  if (!precision || !scale) return std::nullopt;
  return std::pair{*precision, *scale};
}

struct Spelling {
  std::string_view name;
  DuckKind kind;
};
constexpr std::array kSpellings{
    Spelling{"boolean", DuckKind::kBoolean},
    Spelling{"bool", DuckKind::kBoolean},
    Spelling{"logical", DuckKind::kBoolean},
    Spelling{"tinyint", DuckKind::kTinyint},
    Spelling{"int1", DuckKind::kTinyint},
    Spelling{"smallint", DuckKind::kSmallint},
    Spelling{"int2", DuckKind::kSmallint},
    Spelling{"int16", DuckKind::kSmallint},
    Spelling{"short", DuckKind::kSmallint},
    Spelling{"integer", DuckKind::kInteger},
    Spelling{"int", DuckKind::kInteger},
    Spelling{"int4", DuckKind::kInteger},
    Spelling{"int32", DuckKind::kInteger},
    Spelling{"signed", DuckKind::kInteger},
    Spelling{"bigint", DuckKind::kBigint},
    Spelling{"int8", DuckKind::kBigint},
    Spelling{"int64", DuckKind::kBigint},
    Spelling{"long", DuckKind::kBigint},
    Spelling{"oid", DuckKind::kBigint},
    Spelling{"hugeint", DuckKind::kHugeint},
    Spelling{"int128", DuckKind::kHugeint},
    Spelling{"utinyint", DuckKind::kUtinyint},
    Spelling{"uint8", DuckKind::kUtinyint},
    Spelling{"usmallint", DuckKind::kUsmallint},
    Spelling{"uint16", DuckKind::kUsmallint},
    Spelling{"uinteger", DuckKind::kUinteger},
    Spelling{"uint32", DuckKind::kUinteger},
    Spelling{"ubigint", DuckKind::kUbigint},
    Spelling{"uint64", DuckKind::kUbigint},
    Spelling{"uhugeint", DuckKind::kUhugeint},
    Spelling{"uint128", DuckKind::kUhugeint},
    Spelling{"float", DuckKind::kFloat},
    Spelling{"float4", DuckKind::kFloat},
    Spelling{"real", DuckKind::kFloat},
    Spelling{"double", DuckKind::kDouble},
    Spelling{"float8", DuckKind::kDouble},
    Spelling{"double precision", DuckKind::kDouble},
    Spelling{"varchar", DuckKind::kVarchar},
    Spelling{"text", DuckKind::kVarchar},
    Spelling{"string", DuckKind::kVarchar},
    Spelling{"char", DuckKind::kVarchar},
    Spelling{"bpchar", DuckKind::kVarchar},
    Spelling{"nvarchar", DuckKind::kVarchar},
    Spelling{"bit", DuckKind::kVarchar},
    Spelling{"bitstring", DuckKind::kVarchar},
    Spelling{"enum", DuckKind::kVarchar},
    Spelling{"blob", DuckKind::kBlob},
    Spelling{"bytea", DuckKind::kBlob},
    Spelling{"binary", DuckKind::kBlob},
    Spelling{"varbinary", DuckKind::kBlob},
    Spelling{"date", DuckKind::kDate},
    Spelling{"time", DuckKind::kTime},
    Spelling{"time with time zone", DuckKind::kTimeTz},
    Spelling{"timetz", DuckKind::kTimeTz},
    Spelling{"timestamp", DuckKind::kTimestamp},
    Spelling{"datetime", DuckKind::kTimestamp},
    Spelling{"timestamp_us", DuckKind::kTimestamp},
    Spelling{"timestamp_s", DuckKind::kTimestamp},
    Spelling{"timestamp_ms", DuckKind::kTimestamp},
    Spelling{"timestamp_ns", DuckKind::kTimestamp},
    Spelling{"timestamp without time zone", DuckKind::kTimestamp},
    Spelling{"time without time zone", DuckKind::kTime},
    Spelling{"timestamp with time zone", DuckKind::kTimestampTz},
    Spelling{"timestamptz", DuckKind::kTimestampTz},
    Spelling{"interval", DuckKind::kInterval},
    Spelling{"uuid", DuckKind::kUuid},
    Spelling{"guid", DuckKind::kUuid},
    Spelling{"json", DuckKind::kJson},
};

// What the SELECT casts to so that the encoder meets exactly one physical type per wire form.
std::string DuckCast(PgWire wire, const DuckType& type) {
  switch (wire) {
    case PgWire::kBool: return "boolean";
    case PgWire::kInt2: return "smallint";
    case PgWire::kInt4: return "integer";
    case PgWire::kInt8: return "bigint";
    case PgWire::kFloat4: return "float";
    case PgWire::kFloat8: return "double";
    case PgWire::kNumeric: return fmt::format("decimal({},{})", type.precision, type.scale);
    case PgWire::kHugeint: return "hugeint";
    case PgWire::kText:
    case PgWire::kJsonb: return "varchar";
    case PgWire::kBytea: return "blob";
    case PgWire::kDate: return "date";
    case PgWire::kTime: return "time";
    case PgWire::kTimestamp: return type.kind == DuckKind::kTimestampTz ? "timestamp with time zone" : "timestamp";
    case PgWire::kInterval: return "interval";
    case PgWire::kUuid: return "uuid";
  }
  return "varchar";
}

std::string Quoted(std::string_view name) {
  std::string out = "\"";
  for (const char c : name) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

// Digits before the decimal point that hold every value of an integer type; 0 = not an integer type.
int IntegerDigits(DuckKind kind) {
  switch (kind) {
    case DuckKind::kTinyint:
    case DuckKind::kUtinyint: return 3;
    case DuckKind::kSmallint:
    case DuckKind::kUsmallint: return 5;
    case DuckKind::kInteger:
    case DuckKind::kUinteger: return 10;
    case DuckKind::kBigint: return 19;
    case DuckKind::kUbigint: return 20;
    case DuckKind::kHugeint: return 39;
    default: return 0;
  }
}

// Bytes of the smallest signed PostgreSQL integer that holds the type; 0 = none does.
int IntegerBytes(DuckKind kind) {
  switch (kind) {
    case DuckKind::kTinyint:
    case DuckKind::kUtinyint:
    case DuckKind::kSmallint: return 2;
    case DuckKind::kUsmallint:
    case DuckKind::kInteger: return 4;
    case DuckKind::kUinteger:
    case DuckKind::kBigint: return 8;
    default: return 0;
  }
}

bool IsTextTarget(std::string_view t) {
  return t == "text" || t.starts_with("character varying") || t.starts_with("character(") || t == "character" ||
         t.starts_with("varchar");
}

std::optional<PgWire> IntegerWire(DuckKind kind, std::string_view t) {
  const int bytes = IntegerBytes(kind);
  if (bytes != 0) {
    if (t == "smallint" && bytes <= 2) return PgWire::kInt2;
    if (t == "integer" && bytes <= 4) return PgWire::kInt4;
    if (t == "bigint") return PgWire::kInt8;
    if (t == "double precision" && bytes <= 4) return PgWire::kFloat8;
    if (t == "real" && bytes <= 2) return PgWire::kFloat4;
  }
  if (t == "numeric") return PgWire::kHugeint;
  if (t.starts_with("numeric(")) {
    const auto p = ParsePrecision(t.substr(7));
    if (p && p->first - p->second >= IntegerDigits(kind)) return PgWire::kHugeint;
  }
  return std::nullopt;
}

std::optional<PgWire> DecimalWire(const DuckType& type, std::string_view t) {
  if (t == "numeric") return PgWire::kNumeric;
  if (!t.starts_with("numeric(")) return std::nullopt;
  const auto p = ParsePrecision(t.substr(7));
  if (p && p->second >= type.scale && p->first - p->second >= type.precision - type.scale) return PgWire::kNumeric;
  return std::nullopt;
}

// The wire form in which `type` fits into the PostgreSQL type `t`, or nothing.
std::optional<PgWire> FitInto(const DuckType& type, std::string_view t) {
  switch (type.kind) {
    case DuckKind::kBoolean: return t == "boolean" ? std::optional(PgWire::kBool) : std::nullopt;
    case DuckKind::kTinyint:
    case DuckKind::kSmallint:
    case DuckKind::kInteger:
    case DuckKind::kBigint:
    case DuckKind::kUtinyint:
    case DuckKind::kUsmallint:
    case DuckKind::kUinteger:
    case DuckKind::kUbigint:
    case DuckKind::kHugeint: return IntegerWire(type.kind, t);
    case DuckKind::kUhugeint: break;
    case DuckKind::kFloat:
      if (t == "real") return PgWire::kFloat4;
      return t == "double precision" ? std::optional(PgWire::kFloat8) : std::nullopt;
    case DuckKind::kDouble: return t == "double precision" ? std::optional(PgWire::kFloat8) : std::nullopt;
    case DuckKind::kDecimal: return DecimalWire(type, t);
    case DuckKind::kVarchar:
    case DuckKind::kTimeTz:
    case DuckKind::kJson:
    case DuckKind::kNested:
      if (t == "jsonb" && type.kind != DuckKind::kTimeTz) return PgWire::kJsonb;
      if (t == "json" && type.kind != DuckKind::kTimeTz) return PgWire::kText;
      return IsTextTarget(t) ? std::optional(PgWire::kText) : std::nullopt;
    case DuckKind::kBlob: return t == "bytea" ? std::optional(PgWire::kBytea) : std::nullopt;
    case DuckKind::kDate:
      if (t == "date") return PgWire::kDate;
      return t == "timestamp without time zone" || t == "timestamp" ? std::optional(PgWire::kTimestamp) : std::nullopt;
    case DuckKind::kTime: return t == "time without time zone" || t == "time" ? std::optional(PgWire::kTime) : std::nullopt;
    case DuckKind::kTimestamp:
      return t == "timestamp without time zone" || t == "timestamp" ? std::optional(PgWire::kTimestamp) : std::nullopt;
    case DuckKind::kTimestampTz:
      return t == "timestamp with time zone" || t == "timestamptz" ? std::optional(PgWire::kTimestamp) : std::nullopt;
    case DuckKind::kInterval: return t == "interval" ? std::optional(PgWire::kInterval) : std::nullopt;
    case DuckKind::kUuid: return t == "uuid" ? std::optional(PgWire::kUuid) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

Result<DuckType> ParseDuckType(std::string_view type) {
  const std::string text = Normalized(type);
  if (text.ends_with(']') || text.starts_with("struct(") || text.starts_with("map(") || text.starts_with("union(") ||
      text.starts_with("row("))
    return DuckType{DuckKind::kNested};
  if (text.starts_with("enum(")) return DuckType{DuckKind::kVarchar};
  const auto open = text.find('(');
  const std::string_view base = std::string_view(text).substr(0, open);
  if (base == "decimal" || base == "numeric" || base == "dec") {
    if (open == std::string::npos) return DuckType{DuckKind::kDecimal, 18, 3};
    const auto p = ParsePrecision(std::string_view(text).substr(open));
    if (!p || p->first < 1 || p->first > 38 || p->second < 0 || p->second > p->first)
      return Fail(ErrorCode::kInvalidArgument, "type '{}' is not decimal(1..38, scale)", type);
    return DuckType{DuckKind::kDecimal, p->first, p->second};
  }
  for (const Spelling& s : kSpellings) {
    if (s.name != base) continue;
    if (s.kind == DuckKind::kUhugeint)
      return Fail(ErrorCode::kInvalidArgument, "type 'uhugeint' fits in no destination type; cast it in a transform");
    return DuckType{s.kind};
  }
  return Fail(ErrorCode::kInvalidArgument, "type '{}' is not a type that can be loaded", type);
}

std::string PgTypeFor(const DuckType& type) {
  switch (type.kind) {
    case DuckKind::kBoolean: return "boolean";
    case DuckKind::kTinyint:
    case DuckKind::kUtinyint:
    case DuckKind::kSmallint: return "smallint";
    case DuckKind::kUsmallint:
    case DuckKind::kInteger: return "integer";
    case DuckKind::kUinteger:
    case DuckKind::kBigint: return "bigint";
    case DuckKind::kUbigint: return "numeric(20,0)";
    case DuckKind::kHugeint:
    case DuckKind::kUhugeint: return "numeric(39,0)";
    case DuckKind::kFloat: return "real";
    case DuckKind::kDouble: return "double precision";
    case DuckKind::kDecimal: return fmt::format("numeric({},{})", type.precision, type.scale);
    case DuckKind::kVarchar:
    case DuckKind::kTimeTz: return "text";
    case DuckKind::kBlob: return "bytea";
    case DuckKind::kDate: return "date";
    case DuckKind::kTime: return "time without time zone";
    case DuckKind::kTimestamp: return "timestamp without time zone";
    case DuckKind::kTimestampTz: return "timestamp with time zone";
    case DuckKind::kInterval: return "interval";
    case DuckKind::kUuid: return "uuid";
    case DuckKind::kJson:
    case DuckKind::kNested: return "json";
  }
  return "text";
}

Result<PgColumn> PlanPgColumn(const ColumnSpec& column, std::string_view pg_type) {
  auto type = ParseDuckType(column.type);
  if (!type) return Prefixed(std::move(type.error()), "column '{}'", column.name);
  const auto wire = FitInto(*type, pg_type);
  if (!wire)
    return Fail(ErrorCode::kInvalidArgument, "column '{}': {} does not fit into {}", column.name, column.type, pg_type);
  PgColumn out;
  out.name = column.name;
  out.pg_type = std::string(pg_type);
  out.not_null = column.not_null;
  out.wire = *wire;
  out.scale = type->kind == DuckKind::kDecimal ? type->scale : 0;
  const std::string name = Quoted(column.name);
  const std::string value = type->kind == DuckKind::kNested ? fmt::format("to_json({})", name) : name;
  out.expression = fmt::format("cast({} as {})", value, DuckCast(*wire, *type));
  return out;
}

Result<SqliteColumn> PlanSqliteColumn(const ColumnSpec& column) {
  auto type = ParseDuckType(column.type);
  if (!type) return Prefixed(std::move(type.error()), "column '{}'", column.name);
  using Bind = SqliteColumn::Bind;
  SqliteColumn out{column.name, "TEXT", column.not_null, Bind::kText, {}};
  const std::string name = Quoted(column.name);
  const auto as = [&](std::string declared, Bind bind, std::string expression) {
    out.declared = std::move(declared);
    out.bind = bind;
    out.expression = std::move(expression);
  };
  const auto finite = [&](std::string_view text) {  // SQLite's date functions know no infinity
    return fmt::format("case when not isfinite({0}) then error({1}) else {2} end", name,
                       QuoteText("column '" + column.name + "': an infinite date or timestamp cannot be stored"), text);
  };
  switch (type->kind) {
    case DuckKind::kBoolean: as("BOOLEAN", Bind::kInteger, fmt::format("cast({} as bigint)", name)); break;
    case DuckKind::kTinyint:
    case DuckKind::kSmallint:
    case DuckKind::kInteger:
    case DuckKind::kBigint:
    case DuckKind::kUtinyint:
    case DuckKind::kUsmallint:
    case DuckKind::kUinteger: as("INTEGER", Bind::kInteger, fmt::format("cast({} as bigint)", name)); break;
    case DuckKind::kFloat:
    case DuckKind::kDouble:
      as("REAL", Bind::kReal,
         fmt::format("case when isnan({0}) then error({1}) else cast({0} as double) end", name,
                     QuoteText("column '" + column.name + "': NaN cannot be stored, SQLite would make it null")));
      break;
    case DuckKind::kDecimal:
      as(type->precision <= 15 ? "NUMERIC" : "TEXT", Bind::kText,
         fmt::format("cast(cast({} as decimal({},{})) as varchar)", name, type->precision, type->scale));
      break;
    case DuckKind::kBlob: as("BLOB", Bind::kBlob, fmt::format("cast({} as blob)", name)); break;
    case DuckKind::kNested: as("TEXT", Bind::kText, fmt::format("cast(to_json({}) as varchar)", name)); break;
    case DuckKind::kDate: as("TEXT", Bind::kText, finite(fmt::format("cast(cast({} as date) as varchar)", name))); break;
    case DuckKind::kTimestamp:
      as("TEXT", Bind::kText, finite(fmt::format("cast(cast({} as timestamp) as varchar)", name)));
      break;
    case DuckKind::kTimestampTz:
      as("TEXT", Bind::kText, finite(fmt::format("cast(make_timestamp(epoch_us({})) as varchar) || '+00:00'", name)));
      break;
    default: as("TEXT", Bind::kText, fmt::format("cast({} as varchar)", name)); break;
  }
  return out;
}

Result<std::string> QuoteIdent(std::string_view name) {
  if (name.empty()) return Fail(ErrorCode::kInvalidArgument, "an empty name");
  if (name.find('\0') != std::string_view::npos) return Fail(ErrorCode::kInvalidArgument, "a name with a zero byte");
  return Quoted(name);
}

std::string QuoteText(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') out += '\'';
    out += c;
  }
  return out + '\'';
}

std::string CastSql(const std::vector<std::string>& names, const std::vector<std::string>& expressions,
                    std::string_view dataset) {
  std::string sql = "select ";
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i != 0) sql += ", ";
    sql += expressions[i] + " as " + Quoted(names[i]);
  }
  return sql + fmt::format(" from ({}) as dataset", dataset);
}

}  // namespace millrace::load
