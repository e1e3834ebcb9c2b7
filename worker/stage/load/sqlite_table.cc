#include "worker/stage/load/sqlite_table.h"

#include <algorithm>

namespace millrace::load {
namespace {

// Lower case, with one space for any white space.
std::string Squeezed(std::string_view sql) {
  std::string out;
  for (const char c : LowerCase(sql)) {
    const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!space)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  return out;
}

}  // namespace

std::string LowerCase(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

char SqliteAffinity(std::string_view type) {
  const std::string name = LowerCase(type);
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (has("int")) return 'i';  // the order matters
  if (has("char") || has("clob") || has("text")) return 't';
  if (name.empty() || has("blob") || name == "any") return 'b';
  if (has("real") || has("floa") || has("doub")) return 'r';
  return 'n';
}

Outcome<SqliteTable> DescribeSqliteTable(sqlite::Database& db, const std::string& table) {
  SqliteTable out;
  MILLRACE_TRY_ASSIGN(sqlite::Statement columns,
                      db.Prepare("select name, type, \"notnull\" and dflt_value is null and pk = 0, hidden"
                                 " from pragma_table_xinfo(?)"));
  columns.BindAll(table);
  while (true) {
    MILLRACE_TRY_ASSIGN(const bool row, columns.Step());
    if (!row) break;
    out.exists = true;
    out.columns[columns.String(0)] = {columns.String(1), columns.Int64(2) != 0, columns.Int64(3) != 0};
  }
  if (!out.exists) return out;
  MILLRACE_TRY_ASSIGN(sqlite::Statement schema,
                      db.Prepare("select type, coalesce(sql, '') from sqlite_master where tbl_name = ? collate nocase"
                                 " and type in ('table', 'view', 'trigger')"));
  schema.BindAll(table);
  while (true) {
    MILLRACE_TRY_ASSIGN(const bool row, schema.Step());
    if (!row) break;
    out.is_view = out.is_view || schema.View(0) == "view";
    if (schema.View(0) == "trigger") out.may_ignore = true;
    if (schema.View(0) != "table") continue;
    const std::string sql = Squeezed(schema.View(1));
    out.may_replace = sql.find("on conflict replace") != std::string::npos;
    out.may_ignore = out.may_ignore || sql.find("on conflict ignore") != std::string::npos;
  }
  return out;
}

bool SqliteKeyIndex::IsBinary() const {
  return std::ranges::all_of(parts, [](const Part& p) { return p.collation == "BINARY"; });
}

Outcome<std::vector<SqliteKeyIndex>> FindKeyIndexes(sqlite::Database& db, const std::string& table,
                                                    const std::vector<std::string>& key) {
  MILLRACE_TRY_ASSIGN(
      sqlite::Statement s,
      db.Prepare("select l.name, coalesce(x.name, ''), upper(x.coll) from pragma_index_list(?1) l, pragma_index_xinfo(l.name) x"
                 " where l.\"unique\" and not l.partial and x.key"
                 " union all select '', t.name, 'BINARY' from pragma_table_info(?1) t where t.pk > 0"
                 "  and not exists (select 1 from pragma_index_list(?1) p where p.origin = 'pk')"));
  s.BindAll(table);
  std::map<std::string, SqliteKeyIndex> indexes;
  while (true) {
    MILLRACE_TRY_ASSIGN(const bool row, s.Step());
    if (!row) break;
    indexes[s.String(0)].parts.push_back({s.String(1), s.String(2)});
  }
  std::vector<std::string> wanted = key;
  std::ranges::sort(wanted);
  std::vector<SqliteKeyIndex> out;
  for (auto& [name, index] : indexes) {
    std::ranges::sort(index.parts, {}, &SqliteKeyIndex::Part::column);
    if (std::ranges::equal(index.parts, wanted, {}, &SqliteKeyIndex::Part::column)) out.push_back(std::move(index));
  }
  return out;
}

}  // namespace millrace::load
