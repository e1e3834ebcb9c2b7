#include "worker/stage/exact_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "common/drivers/duckdb.h"

namespace millrace {
namespace {

bool IsInteger(std::string_view type) {
  constexpr std::array<std::string_view, 10> kTypes = {"tinyint",  "smallint",  "integer",  "bigint",  "hugeint",
                                                       "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"};
  return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end();
}
// "decimal(18,3)" -> "3".
std::string_view Scale(std::string_view type) {
  const std::size_t comma = type.find(',');
  if (comma == std::string_view::npos) return "0";
  type = type.substr(comma + 1);
  type.remove_suffix(1);
  while (type.starts_with(' ')) type.remove_prefix(1);
  return type;
}

}  // namespace

bool IsDecimalType(std::string_view type) { return type.starts_with("decimal(") && type.ends_with(")"); }

bool IsExactType(std::string_view type) { return IsInteger(type) || IsDecimalType(type); }

bool IsTemporalType(std::string_view type) {
  constexpr std::array<std::string_view, 6> kTypes = {"date",        "time",         "timestamp",
                                                      "timestamp_s", "timestamp_ms", "timestamp_ns"};
  return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end();
}

namespace {
// An offset of zero says UTC, which is what a timestamp is; nothing is lost with it. A sign right behind a time is an offset.
// The cheap test comes first, in a CASE, because every value passes it.
std::string TimeLosesSql(std::string_view text_sql, std::string_view type) {
  if (type == "date") {
    return fmt::format(
        "CASE WHEN contains({0}, ':') THEN NOT regexp_full_match({0}, '.*[T ]\\s*0?0:00(:00([.]0*)?)?\\s*(Z|z)?\\s*') ELSE "
        "false "
        "END",
        text_sql);
  }
  return fmt::format(
      "CASE WHEN contains(right({0}, 10), '+') OR contains(right({0}, 10), '-') THEN "
      "regexp_matches({0}, ':[0-9]{{2}}([.,][0-9]*)?\\s*[+-][0-9]{{1,2}}(:?[0-9]{{2}})*\\s*$') AND NOT "
      "regexp_matches({0}, '[+-]0{{1,2}}(:?00)*\\s*$') ELSE false END",
      text_sql);
}
}  // namespace

// Only an exponent or more digits of a fraction than the type holds can be rounded; the cheap test comes first because every
// value passes it. Doubles hold 15 digits exactly.
std::string TextLosesSql(std::string_view text_sql, std::string_view type) {
  if (IsTemporalType(type)) return TimeLosesSql(text_sql, type);
  const bool decimal = IsDecimalType(type);
  const std::string fraction = decimal ? fmt::format("[0-9]{{0,{}}}0*", Scale(type)) : "0*";
  const std::string suspect =
      decimal ? fmt::format("instr({0}, '.') > 0 AND length({0}) - instr({0}, '.') > {1}", text_sql, Scale(type))
              : fmt::format("contains({}, '.')", text_sql);
  return fmt::format(
      "CASE WHEN ({3}) OR contains({0}, 'e') OR contains({0}, 'E') THEN NOT coalesce(regexp_full_match({0}, "
      "'\\s*[+-]?[0-9]*([.]{1})?\\s*') OR (length({0}) <= 15 AND TRY_CAST({0} AS DOUBLE) = CAST(TRY_CAST({0} AS {2}) AS "
      "DOUBLE)), false) ELSE false END",
      text_sql, fraction, type, suspect);
}

std::string WideIntegerSql(std::string_view text_sql) {
  return fmt::format(
      "CASE WHEN length({0}) > 15 AND regexp_full_match({0}, '\\s*[+-]?[0-9]{{16,}}\\s*') THEN coalesce(TRY_CAST(TRY_CAST({0} "
      "AS DOUBLE) AS HUGEINT) <> TRY_CAST({0} AS HUGEINT), true) ELSE false END",
      text_sql);
}

std::string LossAdvice(std::string_view type) {
  if (type == "double") return " (declare decimal(38,0) or text to keep every digit)";
  if (type == "date") return " (declare timestamp to keep the time of day)";
  if (type == "time") return " (declare text to keep its UTC offset)";
  return IsTemporalType(type) ? " (declare timestamptz to keep its UTC offset)" : "";
}

std::string RowJson(const std::vector<ColumnSpec>& columns) {
  std::string fields;
  for (const auto& c : columns)
    fields += fmt::format("{}{}: {}", fields.empty() ? "" : ", ", duck::QuoteText(c.name), duck::QuoteName(c.name));
  return fmt::format("CAST(to_json({{{}}}) AS VARCHAR)", fields);
}

}  // namespace millrace
