#include "client/cli/query.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/base/suggest.h"
#include "common/crypto/audit.h"
#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"
#include "common/model/sql_scan.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

// A blob as psql shows it.
std::string BlobText(std::string_view bytes) {
  return "\\x" + ToHex({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

Cell SqliteCell(const sqlite::Statement& row, int column) {
  switch (row.KindOf(column)) {
    case sqlite::Statement::Kind::kNull: return {};
    case sqlite::Statement::Kind::kInteger: return row.Int64(column);
    case sqlite::Statement::Kind::kReal: return row.Double(column);
    case sqlite::Statement::Kind::kText: return row.String(column);
    case sqlite::Statement::Kind::kBlob: return BlobText(row.View(column));
  }
  return {};
}

// "no such table: shop.orders" comes with what the table is called here.
Error WithTableHint(Error error, sqlite::Database& database) {
  constexpr std::string_view kMissing = "no such table: ";
  const std::size_t at = error.message.find(kMissing);
  if (at == std::string::npos) return error;
  std::string wrong = error.message.substr(at + kMissing.size());
  wrong.resize(std::min(wrong.find(' '), wrong.size()));
  auto list = database.Prepare("select name from sqlite_schema where type in ('table', 'view') and name not like 'sqlite_%'");
  std::vector<std::string> names;
  while (list) {
    const auto row = list->Step();
    if (!row || !*row) break;
    names.push_back(list->String(0));
  }
  std::string flat = wrong;
  std::ranges::replace(flat, '.', '_');
  const std::vector<std::string_view> views(names.begin(), names.end());
  if (flat != wrong && std::ranges::find(views, flat) != views.end()) {
    error.message += fmt::format("; SQLite has no schemas: the table '{}' is called {} here", wrong, flat);
  } else if (const auto near = Suggest(flat, views)) {
    error.message += fmt::format("; did you mean {}?", *near);
  }
  return error;
}

// JSON objects cannot have a name twice.
std::vector<std::string> DistinctNames(const std::vector<std::string>& names) {
  std::vector<std::string> distinct;
  for (const std::string& name : names) {
    std::string candidate = name;
    for (int n = 2; std::ranges::find(distinct, candidate) != distinct.end(); ++n) candidate = fmt::format("{}_{}", name, n);
    distinct.push_back(std::move(candidate));
  }
  return distinct;
}

Result<Table> QuerySqlite(const std::string& path, const std::string& sql, const Clock& clock, MonoTime deadline) {
  if (!std::filesystem::exists(path))
    return Fail(ErrorCode::kNotFound, "there is no database at {}: nothing was loaded yet", path);
  MILLRACE_TRY_ASSIGN(auto database, sqlite::Database::Open(path, {.access = sqlite::Access::kReadOnly, .clock = &clock}));
  database.SetDeadline(deadline);
  auto prepared = database.Prepare(sql);
  if (!prepared) return std::unexpected(WithTableHint(std::move(prepared.error()), database));
  sqlite::Statement statement = std::move(*prepared);
  Table table;
  for (int c = 0; c < statement.ColumnCount(); ++c) table.columns.push_back(statement.ColumnName(c));
  table.columns = DistinctNames(table.columns);
  while (true) {
    MILLRACE_TRY_ASSIGN(const bool row, statement.Step());
    if (!row) return table;
    if (table.rows.size() >= kQueryRowsMax)
      return Fail(ErrorCode::kInvalidArgument, "query: more than {} rows; add a limit", kQueryRowsMax);
    std::vector<Cell> cells;
    for (int c = 0; c < statement.ColumnCount(); ++c) cells.push_back(SqliteCell(statement, c));
    table.rows.push_back(std::move(cells));
  }
}

// A number as the server wrote it: where int64 and double cannot hold it exactly it stays text.
Cell NumberCell(const std::string& text) {
  std::int64_t whole = 0;
  const char* const last = text.data() + text.size();
  if (const auto [end, failed] = std::from_chars(text.data(), last, whole); failed == std::errc{} && end == last) return whole;
  double number = 0;
  if (const auto [end, failed] = std::from_chars(text.data(), last, number); failed != std::errc{} || end != last) return text;
  std::string plain = text;
  if (plain.find('.') != std::string::npos && plain.find('e') == std::string::npos) {
    plain.resize(plain.find_last_not_of('0') + 1);
    if (plain.ends_with('.')) plain.pop_back();
  }
  return fmt::format("{}", number) == plain || plain.find('e') != std::string::npos ? Cell{number} : Cell{text};
}

// `text`: one JSON value, as the server made it.
Cell JsonCell(const std::string& text) {
  if (text == "null") return {};
  if (text == "true" || text == "false") return text == "true";
  if (text.starts_with('{') || text.starts_with('[')) return text;
  if (!text.starts_with('"')) return NumberCell(text);
  const Json value = Json::parse(text, nullptr, false);
  return value.is_string() ? value.get<std::string>() : text;
}

// Every PostgreSQL type has a JSON form, so the server does the rendering, value by value.
Result<Table> QueryPostgres(const std::string& dsn, const std::string& sql, const Clock& clock, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const auto connection,
      PgConnection::Connect({.dsn = dsn, .application_name = "millrace query", .search_path = {}}, clock, deadline));
  MILLRACE_TRY(connection->Exec("begin transaction read only", deadline));
  std::string text = sql;
  while (!text.empty() && (text.back() == ';' || text.back() == ' ' || text.back() == '\n')) text.pop_back();
  MILLRACE_TRY_ASSIGN(const PgResult shape,
                      connection->QueryOnce(fmt::format("select * from ({}\n) q limit 0", text), PgParams{}, deadline));
  Table table;
  std::string values, names;
  for (int c = 0; c < shape.columns(); ++c) {
    table.columns.emplace_back(shape.column_name(c));
    values += fmt::format("{}to_json(c{})::text", c == 0 ? "" : ", ", c);
    names += fmt::format("{}c{}", c == 0 ? "" : ", ", c);
  }
  table.columns = DistinctNames(table.columns);
  if (table.columns.empty()) return table;
  const std::string wrapped = fmt::format("select {} from ({}\n) q({}) limit {}", values, text, names, kQueryRowsMax + 1);
  MILLRACE_TRY_ASSIGN(const PgResult rows, connection->QueryOnce(wrapped, PgParams{}, deadline));
  for (int r = 0; r < rows.rows(); ++r) {
    if (table.rows.size() >= kQueryRowsMax)
      return Fail(ErrorCode::kInvalidArgument, "query: more than {} rows; add a limit", kQueryRowsMax);
    std::vector<Cell> cells;
    for (int c = 0; c < rows.columns(); ++c) cells.push_back(rows.IsNull(r, c) ? Cell{} : JsonCell(rows.Text(r, c)));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

// The connections are opened for reading only; this is for what a reader could do all the same (a second statement that is
// silently left out, temporary tables, settings) and for clear words.
Result<void> RequireOneQuery(const std::string& sql) {
  const SqlScan scan = ScanSql(sql);
  if (scan.statements != 1)
    return Fail(ErrorCode::kInvalidArgument, "query: {} statements in the SQL; give one", scan.statements);
  const std::string_view first = scan.first_word;
  if (first != "select" && first != "with" && first != "values")
    return Fail(ErrorCode::kInvalidArgument, "query only reads: the SQL starts with SELECT, WITH or VALUES, not '{}'", first);
  return {};
}

}  // namespace

Result<Table> RunQuery(const ConnectionSpec& connection, const std::string& sql, const Clock& clock, MonoTime deadline) {
  MILLRACE_TRY(RequireOneQuery(sql));
  auto table = connection.type == "sqlite" ? QuerySqlite(connection.dsn, sql, clock, deadline)
                                           : QueryPostgres(connection.dsn, sql, clock, deadline);
  if (!table) return Prefixed(std::move(table.error()), "connection '{}'", connection.name);
  table->verbatim = true;
  return table;
}

}  // namespace millrace::cli
