#include "worker/stage/check/checks.h"

#include <fmt/format.h>

#include <limits>

namespace millrace {
namespace {

constexpr int kOffendersShown = 5;
constexpr std::size_t kCellBytesShown = 60;

std::string Names(const std::vector<std::string>& columns) {
  std::string out;
  for (const auto& c : columns) out += (out.empty() ? "" : ", ") + duck::QuoteName(c);
  return out;
}

std::string From(std::string_view rows_sql) {
  const bool is_name = rows_sql.starts_with('"');
  return is_name ? std::string(rows_sql) : fmt::format("({}\n)", rows_sql);
}

std::string Row(const duck::Table& table, std::size_t row) {
  std::string out;
  for (std::size_t c = 0; c < table.columns.size(); ++c) {
    std::string value = table.rows[row][c] ? *table.rows[row][c] : "null";
    if (value.size() > kCellBytesShown) value = value.substr(0, kCellBytesShown) + "...";
    for (char& ch : value) ch = ch == '\n' || ch == '\r' ? ' ' : ch;
    out += fmt::format("{}{}={}", out.empty() ? "" : ", ", table.columns[c], value);
  }
  return "{" + out + "}";
}

Result<void> CheckRowCount(duck::Connection& connection, std::string_view rows_sql, const CheckSpec& check) {
  MILLRACE_TRY_ASSIGN(const duck::Table table, connection.Query(fmt::format("SELECT count(*) FROM {}", From(rows_sql))));
  const std::int64_t rows = table.Int();
  if (rows >= check.min_rows.value_or(0) && rows <= check.max_rows.value_or(std::numeric_limits<std::int64_t>::max()))
    return {};
  return Fail(ErrorCode::kConflict, "check {} does not hold: {} rows", CheckName(check), rows);
}

}  // namespace

std::string CheckName(const CheckSpec& check) {
  const auto list = [](const std::vector<std::string>& items) {
    std::string out;
    for (const auto& item : items) out += (out.empty() ? "" : ", ") + item;
    return out;
  };
  switch (check.kind) {
    case CheckKind::kNotNull: return fmt::format("not_null({})", list(check.columns));
    case CheckKind::kUnique: return fmt::format("unique({})", list(check.columns));
    case CheckKind::kAcceptedValues: return fmt::format("accepted_values({}: {})", list(check.columns), list(check.values));
    case CheckKind::kExpression: return fmt::format("expression({})", check.expression);
    case CheckKind::kRowCount: break;
  }
  return fmt::format("row_count(min {}, max {})", check.min_rows ? fmt::format("{}", *check.min_rows) : "-",
                     check.max_rows ? fmt::format("{}", *check.max_rows) : "-");
}

std::string OffendersSql(std::string_view rows_sql, const CheckSpec& check) {
  const std::string from = From(rows_sql);
  std::string condition;
  switch (check.kind) {
    case CheckKind::kNotNull:
      for (const auto& c : check.columns)
        condition += fmt::format("{}{} IS NULL", condition.empty() ? "" : " OR ", duck::QuoteName(c));
      return fmt::format("SELECT * FROM {} WHERE {}", from, condition);
    case CheckKind::kUnique: {
      const std::string names = Names(check.columns);
      return fmt::format("SELECT {}, count(*) AS copies FROM {} GROUP BY {} HAVING count(*) > 1", names, from, names);
    }
    case CheckKind::kAcceptedValues: {
      std::string values;
      for (const auto& v : check.values) values += (values.empty() ? "" : ", ") + duck::QuoteText(v);
      return fmt::format("SELECT * FROM {} WHERE CAST({} AS VARCHAR) NOT IN ({})", from, duck::QuoteName(check.columns.at(0)),
                         values);
    }
    case CheckKind::kExpression:  // null is not true
      return fmt::format("SELECT * FROM {} WHERE NOT coalesce(CAST(({}\n) AS BOOLEAN), false)", from, check.expression);
    case CheckKind::kRowCount: break;
  }
  return {};
}

Result<void> RunChecks(duck::Connection& connection, std::string_view rows_sql, const std::vector<CheckSpec>& checks) {
  for (const auto& check : checks) {
    if (check.kind == CheckKind::kRowCount) {
      MILLRACE_TRY(CheckRowCount(connection, rows_sql, check));
      continue;
    }
    const std::string offenders = OffendersSql(rows_sql, check);
    auto count = connection.Query(fmt::format("SELECT count(*) FROM ({})", offenders));
    if (!count) return Prefixed(std::move(count.error()), "check {} cannot run", CheckName(check));
    if (count->Int() == 0) continue;
    MILLRACE_TRY_ASSIGN(const duck::Table rows, connection.Query(fmt::format("SELECT COLUMNS(*)::VARCHAR FROM ({}) LIMIT {}",
                                                                             offenders, kOffendersShown)));
    std::string shown;
    for (std::size_t r = 0; r < rows.rows.size(); ++r) shown += (r == 0 ? "" : ", ") + Row(rows, r);
    return Fail(ErrorCode::kConflict, "check {} does not hold for {} {}, for example {}", CheckName(check), count->Int(),
                check.kind == CheckKind::kUnique ? "keys" : "rows", shown);
  }
  return {};
}

}  // namespace millrace
