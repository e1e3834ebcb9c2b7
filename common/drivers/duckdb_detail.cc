#include "common/drivers/duckdb_detail.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

namespace millrace::duck {
namespace {

struct TypeRow {
  duckdb_type id;
  Type type;
  const char* name;
};
constexpr std::array kTypes = {
    TypeRow{DUCKDB_TYPE_BOOLEAN, Type::kBoolean, "boolean"},
    TypeRow{DUCKDB_TYPE_TINYINT, Type::kInt8, "tinyint"},
    TypeRow{DUCKDB_TYPE_SMALLINT, Type::kInt16, "smallint"},
    TypeRow{DUCKDB_TYPE_INTEGER, Type::kInt32, "integer"},
    TypeRow{DUCKDB_TYPE_BIGINT, Type::kInt64, "bigint"},
    TypeRow{DUCKDB_TYPE_UTINYINT, Type::kUInt8, "utinyint"},
    TypeRow{DUCKDB_TYPE_USMALLINT, Type::kUInt16, "usmallint"},
    TypeRow{DUCKDB_TYPE_UINTEGER, Type::kUInt32, "uinteger"},
    TypeRow{DUCKDB_TYPE_UBIGINT, Type::kUInt64, "ubigint"},
    TypeRow{DUCKDB_TYPE_HUGEINT, Type::kHugeInt, "hugeint"},
    TypeRow{DUCKDB_TYPE_UHUGEINT, Type::kUHugeInt, "uhugeint"},
    TypeRow{DUCKDB_TYPE_FLOAT, Type::kFloat, "float"},
    TypeRow{DUCKDB_TYPE_DOUBLE, Type::kDouble, "double"},
    TypeRow{DUCKDB_TYPE_DECIMAL, Type::kDecimal, "decimal"},
    TypeRow{DUCKDB_TYPE_VARCHAR, Type::kVarchar, "varchar"},
    TypeRow{DUCKDB_TYPE_BLOB, Type::kBlob, "blob"},
    TypeRow{DUCKDB_TYPE_DATE, Type::kDate, "date"},
    TypeRow{DUCKDB_TYPE_TIME, Type::kTime, "time"},
    TypeRow{DUCKDB_TYPE_TIMESTAMP_S, Type::kTimestampS, "timestamp_s"},
    TypeRow{DUCKDB_TYPE_TIMESTAMP_MS, Type::kTimestampMs, "timestamp_ms"},
    TypeRow{DUCKDB_TYPE_TIMESTAMP, Type::kTimestamp, "timestamp"},
    TypeRow{DUCKDB_TYPE_TIMESTAMP_NS, Type::kTimestampNs, "timestamp_ns"},
    TypeRow{DUCKDB_TYPE_TIMESTAMP_TZ, Type::kTimestampTz, "timestamp with time zone"},
    TypeRow{DUCKDB_TYPE_INTERVAL, Type::kInterval, "interval"},
    TypeRow{DUCKDB_TYPE_UUID, Type::kUuid, "uuid"},
};

std::string TakeText(char* text) {
  std::string out = text == nullptr ? "" : text;
  duckdb_free(text);
  return out;
}

std::string StructName(duckdb_logical_type type) {
  std::string out = "struct(";
  const idx_t count = duckdb_struct_type_child_count(type);
  for (idx_t i = 0; i < count; ++i) {
    const LogicalType child(duckdb_struct_type_child_type(type, i));
    out += fmt::format("{}{} {}", i == 0 ? "" : ", ", QuoteName(TakeText(duckdb_struct_type_child_name(type, i))),
                       TypeName(child.get()));
  }
  return out + ")";
}

std::string EnumName(duckdb_logical_type type) {
  std::string out = "enum(";
  const std::uint32_t count = duckdb_enum_dictionary_size(type);
  for (std::uint32_t i = 0; i < count; ++i) {
    out += (i == 0 ? "" : ", ") + QuoteText(TakeText(duckdb_enum_dictionary_value(type, i)));
  }
  return out + ")";
}

}  // namespace

std::string TypeName(duckdb_logical_type type) {
  const duckdb_type id = duckdb_get_type_id(type);
  switch (id) {
    case DUCKDB_TYPE_DECIMAL: return fmt::format("decimal({},{})", duckdb_decimal_width(type), duckdb_decimal_scale(type));
    case DUCKDB_TYPE_LIST: return TypeName(LogicalType(duckdb_list_type_child_type(type)).get()) + "[]";
    case DUCKDB_TYPE_ARRAY:
      return fmt::format("{}[{}]", TypeName(LogicalType(duckdb_array_type_child_type(type)).get()),
                         duckdb_array_type_array_size(type));
    case DUCKDB_TYPE_STRUCT: return StructName(type);
    case DUCKDB_TYPE_MAP:
      return fmt::format("map({}, {})", TypeName(LogicalType(duckdb_map_type_key_type(type)).get()),
                         TypeName(LogicalType(duckdb_map_type_value_type(type)).get()));
    case DUCKDB_TYPE_ENUM: return EnumName(type);
    case DUCKDB_TYPE_BIT: return "bit";
    case DUCKDB_TYPE_TIME_TZ: return "time with time zone";
    case DUCKDB_TYPE_TIME_NS: return "time_ns";
    case DUCKDB_TYPE_BIGNUM: return "bignum";
    case DUCKDB_TYPE_SQLNULL: return "\"null\"";
    default: break;
  }
  const auto row = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& r) { return r.id == id; });
  return row == kTypes.end() ? "unknown" : row->name;
}

LogicalType TypeNamed(std::string_view name) {
  if (constexpr std::string_view kDecimal = "decimal("; name.starts_with(kDecimal)) {
    int width = 0, scale = 0;
    const char* end = name.data() + name.size();
    const auto first = std::from_chars(name.data() + kDecimal.size(), end, width);
    if (first.ec != std::errc{} || first.ptr == end || *first.ptr != ',') return nullptr;
    const auto second = std::from_chars(first.ptr + 1, end, scale);
    if (second.ec != std::errc{} || width < 1 || width > 38 || scale < 0 || scale > width) return nullptr;
    return LogicalType(duckdb_create_decimal_type(static_cast<std::uint8_t>(width), static_cast<std::uint8_t>(scale)));
  }
  const auto row = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& r) { return r.name == name; });
  return row == kTypes.end() || row->id == DUCKDB_TYPE_DECIMAL ? nullptr : LogicalType(duckdb_create_logical_type(row->id));
}

ColumnType DescribeColumn(std::string name, duckdb_logical_type type) {
  ColumnType column{.name = std::move(name), .sql_type = TypeName(type)};
  const duckdb_type id = duckdb_get_type_id(type);
  const auto row = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& r) { return r.id == id; });
  if (row == kTypes.end()) {
    column.rendered = true;
    return column;
  }
  column.type = column.storage = row->type;
  if (id != DUCKDB_TYPE_DECIMAL) return column;
  column.width = duckdb_decimal_width(type);
  column.scale = duckdb_decimal_scale(type);
  switch (duckdb_decimal_internal_type(type)) {
    case DUCKDB_TYPE_SMALLINT: column.storage = Type::kInt16; break;
    case DUCKDB_TYPE_INTEGER: column.storage = Type::kInt32; break;
    case DUCKDB_TYPE_BIGINT: column.storage = Type::kInt64; break;
    default: column.storage = Type::kHugeInt; break;
  }
  return column;
}

namespace {

std::string FirstLine(std::string_view text) {
  std::string line(text.substr(0, text.find("\n\nLINE ")));
  while (!line.empty() && line.back() == '\n') line.pop_back();
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

SqlError ParsePlain(std::string_view raw) {
  SqlError error;
  const std::size_t end = raw.find(" Error: ");
  if (end != std::string_view::npos && end < 40) {
    error.type = std::string(raw.substr(0, end));
    raw.remove_prefix(end + 8);
  } else {
    error.type = "Engine";
  }
  error.message = FirstLine(raw);
  return error;
}

}  // namespace

SqlError ParseSqlError(std::string_view raw) {
  const std::size_t brace = raw.find('{');
  if (brace == std::string_view::npos) return ParsePlain(raw);
  const auto json = nlohmann::json::parse(raw.substr(brace), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("exception_message") || !json["exception_message"].is_string())
    return ParsePlain(raw);
  SqlError error;
  error.message = FirstLine(json["exception_message"].get<std::string>());
  error.type = json.value("exception_type", "Engine");
  if (const std::string position = json.value("position", ""); !position.empty()) {
    std::size_t value = 0;
    const auto [stop, code] = std::from_chars(position.data(), position.data() + position.size(), value);
    if (code == std::errc{} && stop == position.data() + position.size()) error.position = value;
  }
  if (const std::string names = json.value("candidates", ""); !names.empty()) {
    for (std::size_t at = 0; at <= names.size();) {
      const std::size_t comma = std::min(names.find(',', at), names.size());
      if (comma > at) error.candidates.push_back(names.substr(at, comma - at));
      at = comma + 1;
    }
  }
  return error;
}

ErrorCode CodeOf(std::string_view type) {
  if (type == "Out of Memory") return ErrorCode::kLimit;
  if (type == "INTERRUPT") return ErrorCode::kCancelled;
  if (type == "Parser" || type == "Syntax" || type == "Binder" || type == "Catalog" || type == "Parameter Not Resolved") {
    return ErrorCode::kInvalidArgument;
  }
  return ErrorCode::kRejected;
}

std::string_view StripSemicolon(std::string_view sql) {
  std::size_t i = 0;
  const auto skip_to = [&](std::string_view end, std::size_t from) {
    const std::size_t at = sql.find(end, from);
    return at == std::string_view::npos ? sql.size() : at + end.size();
  };
  while (i < sql.size()) {
    const char c = sql[i];
    if (c == ';') return sql.substr(0, i);
    if (c == '\'' || c == '"') {
      i = skip_to(std::string_view(&c, 1), i + 1);
    } else if (sql.substr(i, 2) == "--") {
      i = skip_to("\n", i);
    } else if (sql.substr(i, 2) == "/*") {
      i = skip_to("*/", i + 2);
    } else if (c == '$') {
      std::size_t end = i + 1;
      while (end < sql.size() && ((sql[end] | 0x20) >= 'a' && (sql[end] | 0x20) <= 'z')) ++end;
      const bool dollar_quote = end < sql.size() && sql[end] == '$';
      i = dollar_quote ? skip_to(sql.substr(i, end + 1 - i), end + 1) : end;
    } else {
      ++i;
    }
  }
  return sql;
}

}  // namespace millrace::duck
