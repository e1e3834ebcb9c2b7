#include "worker/stage/exact_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

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

// Only a fraction or an exponent can be rounded; the cheap test comes first because every value passes it. Doubles hold 15
// digits exactly.
std::string TextRoundsSql(std::string_view text_sql, std::string_view type) {
  const std::string fraction = IsDecimalType(type) ? fmt::format("[0-9]{{0,{}}}0*", Scale(type)) : "0*";
  return fmt::format(
      "CASE WHEN contains({0}, '.') OR contains({0}, 'e') OR contains({0}, 'E') THEN NOT coalesce(regexp_full_match({0}, "
      "'\\s*[+-]?[0-9]*([.]{1})?\\s*') OR (length({0}) <= 15 AND TRY_CAST({0} AS DOUBLE) = CAST(TRY_CAST({0} AS {2}) AS "
      "DOUBLE)), false) ELSE false END",
      text_sql, fraction, type);
}

}  // namespace millrace
