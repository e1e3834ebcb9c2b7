#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "common/base/failpoint.h"
#include "common/drivers/sqlite.h"
#include "worker/stage/load/sinks.h"
#include "worker/stage/load/types.h"
#include "worker/stage/stage_context.h"

namespace millrace::load {
namespace {

using sqlite::Transaction;
constexpr std::int64_t kProgressRows = 50'000;

constexpr const char* kTables = R"sql(
create table if not exists millrace_fence (effect text primary key, token integer not null,
  raised_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) strict;
create table if not exists millrace_target (target text primary key, table_name text not null unique,
  version integer not null default 0, cursor text, last_effect text, updated_at text) strict;
create table if not exists millrace_receipt (effect text primary key, token integer not null, run text, pipeline text not null,
  stage text not null, target text not null, mode text not null, plan text not null, rows_read integer not null,
  rows_loaded integer not null, rows_deduplicated integer not null, inserted integer not null, updated integer not null,
  unchanged integer not null, deleted integer not null, bytes integer not null, checksum text not null, cursor text,
  version integer not null, published_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) strict;
)sql";

class SqliteLoad {
 public:
  SqliteLoad(LoadJob& job, duck::Connection& source, sqlite::Database& db) : job_(job), source_(source), db_(db) {
    table_ = job.spec.table;
    std::replace(table_.begin(), table_.end(), '.', '_');  // no schemas here
    quoted_ = duck::QuoteName(table_);
  }

  Outcome<Loaded> Run() {
    if (table_.empty() || table_.find('\0') != std::string::npos) return Refuse("invalid_target", "the table has no name");
    if (table_.starts_with("millrace_") || table_.starts_with("sqlite_"))
      return Refuse("invalid_target", fmt::format("table names beginning with millrace_ or sqlite_ are taken: {}", table_));
    // The fence holds off other processes of this machine, which do not survive a power loss either: it need not be on the
    // disk before the publish is, and that one takes it along.
    MILLRACE_TRY(db_.Exec("pragma synchronous = normal"));
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, Raise());
    MILLRACE_TRY(db_.Exec("pragma synchronous = full"));
    if (stored) return Loaded{std::move(*stored), true};
    if (job_.order.fence_only) return Fenced();
    MILLRACE_FAILPOINT("load.after_fence");
    MILLRACE_TRY(CheckBatch(job_, source_));
    std::vector<std::string> names, expressions;
    for (const ColumnSpec& c : job_.columns) {
      auto planned = PlanSqliteColumn(c);
      if (!planned) return Refuse("schema_mismatch", std::move(planned.error().message));
      columns_.push_back(std::move(*planned));
      names.push_back(c.name);
      expressions.push_back(columns_.back().expression);
    }
    select_ = CastSql(names, expressions, job_.dataset_sql);
    Receipt receipt = job_.NewReceipt("");
    if (job_.spec.mode == LoadMode::kMerge) {
      MILLRACE_TRY_ASSIGN(BatchKeys keys, CheckKeys(job_, source_, select_));
      select_ = keys.select_sql;
      receipt.rows.deduplicated = keys.deduplicated;
    }
    MILLRACE_FAILPOINT("load.after_staging");
    return Publish(std::move(receipt));
  }

 private:
  std::int64_t token() const { return static_cast<std::int64_t>(job_.order.token.value()); }

  // Its own transaction, visible to every other attempt before anything else happens.
  Outcome<std::optional<Receipt>> Raise() {
    MILLRACE_TRY_ASSIGN(Transaction transaction, Transaction::Begin(db_));
    MILLRACE_TRY(db_.Exec(kTables));
    MILLRACE_TRY(
        db_.Run("insert into millrace_fence (effect, token) values (?, ?) on conflict (effect) do update set"
                " token = excluded.token, raised_at = excluded.raised_at where millrace_fence.token < excluded.token",
                job_.order.task.effect, token()));
    MILLRACE_TRY_ASSIGN(const std::int64_t seen, FenceToken());
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> receipt, FindReceipt());
    MILLRACE_TRY(transaction.Commit());
    if (seen > token()) return std::unexpected(Stale(job_, static_cast<std::uint64_t>(seen)));
    return receipt;
  }

  Outcome<std::int64_t> FenceToken() {
    MILLRACE_TRY_ASSIGN(const std::int64_t seen,
                        db_.QueryInt64("select token from millrace_fence where effect = ?", job_.order.task.effect));
    return seen;
  }

  Outcome<std::optional<Receipt>> FindReceipt() {
    MILLRACE_TRY_ASSIGN(
        sqlite::Statement s,
        db_.Prepare("select token, run, pipeline, stage, target, mode, plan, rows_read, rows_loaded, rows_deduplicated,"
                    " inserted, updated, unchanged, deleted, bytes, checksum from millrace_receipt where effect = ?"));
    s.BindAll(job_.order.task.effect);
    MILLRACE_TRY_ASSIGN(const bool row, s.Step());
    if (!row) return std::optional<Receipt>{};
    Receipt r;
    r.effect = job_.order.task.effect;
    r.token = Token{s.Uint64(0)};
    r.run = s.String(1);
    r.pipeline = s.String(2);
    r.stage = s.String(3);
    r.target = s.String(4);
    r.mode = s.String(5);
    r.plan = s.String(6);
    r.rows.read = s.Int64(7);
    r.rows.loaded = s.Int64(8);
    r.rows.deduplicated = s.Int64(9);
    r.inserted = s.Int64(10);
    r.updated = s.Int64(11);
    r.unchanged = s.Int64(12);
    r.deleted = s.Int64(13);
    r.bytes = s.Int64(14);
    r.checksum = s.String(15);
    return std::optional<Receipt>(std::move(r));
  }

  Outcome<Loaded> Publish(Receipt receipt) {
    MILLRACE_TRY_ASSIGN(Transaction transaction, Transaction::Begin(db_));
    MILLRACE_TRY_ASSIGN(const std::int64_t seen, FenceToken());
    if (seen != token()) return std::unexpected(Stale(job_, static_cast<std::uint64_t>(seen)));
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, FindReceipt());
    if (stored) return Loaded{std::move(*stored), true};
    MILLRACE_TRY(ClaimName());
    MILLRACE_TRY(PrepareTarget());
    MILLRACE_TRY(Write(receipt));
    receipt.plan = fmt::format("{}: {}{} in one transaction", receipt.mode, created_ ? "create table, " : "",
                               job_.spec.mode == LoadMode::kMerge                  ? "upsert"
                               : job_.spec.mode == LoadMode::kReplace && !created_ ? "delete and insert"
                                                                                   : "insert");
    MILLRACE_TRY(BeforeCommit(job_, receipt));
    MILLRACE_TRY(WriteReceipt(receipt));
    MILLRACE_FAILPOINT("load.before_commit");
    MILLRACE_TRY(transaction.Commit());
    MILLRACE_FAILPOINT("load.after_commit");
    return Loaded{std::move(receipt), false};
  }

  // "a.b" and "a_b" would be one table: the first to come owns the name.
  Outcome<void> ClaimName() {
    MILLRACE_TRY(
        db_.Run("insert into millrace_target (target, table_name) values (?, ?) on conflict do nothing", job_.target, table_));
    MILLRACE_TRY_ASSIGN(sqlite::Statement s, db_.Prepare("select target from millrace_target where table_name = ?"));
    s.BindAll(table_);
    MILLRACE_TRY_ASSIGN(const bool row, s.Step());
    if (!row || s.View(0) != job_.target)
      return Refuse("invalid_target",
                    fmt::format("table {} already stands for target '{}'; SQLite has no schemas, so '{}' needs another name",
                                table_, row ? s.String(0) : "?", job_.target));
    return {};
  }

  struct Existing {
    std::string type;
    bool must_have_value = false;
    bool generated = false;
  };

  Outcome<void> PrepareTarget() {
    std::map<std::string, Existing> existing;
    {
      MILLRACE_TRY_ASSIGN(sqlite::Statement s,
                          db_.Prepare("select name, type, \"notnull\" and dflt_value is null and pk = 0, hidden"
                                      " from pragma_table_xinfo(?)"));
      s.BindAll(table_);
      while (true) {
        MILLRACE_TRY_ASSIGN(const bool row, s.Step());
        if (!row) break;
        existing[s.String(0)] = {s.String(1), s.Int64(2) != 0, s.Int64(3) != 0};
      }
    }
    if (existing.empty()) return CreateTarget();
    MILLRACE_TRY(CompareSchema(existing));
    if (job_.spec.mode == LoadMode::kMerge) return RequireUniqueKey();
    if (job_.spec.mode == LoadMode::kReplace) return RefuseReferenced();
    return {};
  }

  Outcome<void> CreateTarget() {
    created_ = true;
    std::string body, key;
    for (const SqliteColumn& c : columns_) {
      const bool is_key = std::find(job_.spec.key.begin(), job_.spec.key.end(), c.name) != job_.spec.key.end();
      body += fmt::format("{}{} {}{}", body.empty() ? "" : ", ", duck::QuoteName(c.name), c.declared,
                          c.not_null || (is_key && job_.spec.mode == LoadMode::kMerge) ? " not null" : "");
    }
    for (const std::string& k : job_.spec.key) key += (key.empty() ? "" : ", ") + duck::QuoteName(k);
    if (job_.spec.mode == LoadMode::kMerge) body += ", unique (" + key + ")";
    MILLRACE_TRY(db_.Exec(fmt::format("create table {} ({})", quoted_, body)));
    return {};
  }

  // SQLite's affinity rules (datatype3.html, 3.1): the order matters.
  static char Affinity(std::string type) {
    std::transform(type.begin(), type.end(), type.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
    const auto has = [&](std::string_view part) { return type.find(part) != std::string::npos; };
    if (has("INT")) return 'i';
    if (has("CHAR") || has("CLOB") || has("TEXT")) return 't';
    if (type.empty() || has("BLOB") || type == "ANY") return 'b';
    if (has("REAL") || has("FLOA") || has("DOUB")) return 'r';
    return 'n';
  }

  static bool Fits(char from, char into) {
    if (into == 'b' || from == into) return true;
    if (from == 'i' || from == 'n') return into == 'n' || into == 'i';
    if (from == 'r') return into == 'n';
    return false;  // text and blobs would be turned into numbers where they look like some
  }

  Outcome<void> CompareSchema(const std::map<std::string, Existing>& existing) {
    std::string diff;
    const auto complain = [&](const std::string& line) { diff += (diff.empty() ? "" : "; ") + line; };
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const auto found = existing.find(columns_[i].name);
      if (found == existing.end())
        complain(fmt::format("{}: {} in the dataset, missing in the table", columns_[i].name, job_.columns[i].type));
      else if (found->second.generated)
        complain(fmt::format("{}: generated in the table", columns_[i].name));
      else if (!Fits(Affinity(columns_[i].declared), Affinity(found->second.type)))
        complain(
            fmt::format("{}: {} in the dataset, {} in the table", columns_[i].name, job_.columns[i].type, found->second.type));
    }
    for (const auto& [name, column] : existing)
      if (column.must_have_value &&
          std::none_of(columns_.begin(), columns_.end(), [&](const SqliteColumn& c) { return c.name == name; }))
        complain(fmt::format("{}: not in the dataset, not null without default in the table", name));
    if (!diff.empty()) return Refuse("schema_mismatch", "the dataset does not fit the table: " + diff);
    return {};
  }

  Outcome<void> RequireUniqueKey() {
    std::vector<std::string> key = job_.spec.key;
    std::sort(key.begin(), key.end());
    MILLRACE_TRY_ASSIGN(sqlite::Statement s,
                        db_.Prepare("select l.name, i.name from pragma_index_list(?1) l, pragma_index_info(l.name) i"
                                    " where l.\"unique\" and not l.partial"
                                    " union all select '', name from pragma_table_info(?1) where pk > 0"));
    s.BindAll(table_);
    std::map<std::string, std::vector<std::string>> indexes;
    while (true) {
      MILLRACE_TRY_ASSIGN(const bool row, s.Step());
      if (!row) break;
      indexes[s.String(0)].push_back(s.String(1));
    }
    for (auto& [name, columns] : indexes) {
      std::sort(columns.begin(), columns.end());
      if (columns == key) return {};
    }
    std::string list;
    for (const std::string& k : job_.spec.key) list += (list.empty() ? "" : ", ") + duck::QuoteName(k);
    return Refuse("missing_unique_index",
                  fmt::format("merge needs a unique index on exactly the key; run: create unique index {} on {} ({})",
                              duck::QuoteName(table_ + "_key"), quoted_, list));
  }

  // Deleting all rows would cascade into, or be refused by, the tables that refer to this one.
  Outcome<void> RefuseReferenced() {
    MILLRACE_TRY_ASSIGN(sqlite::Statement s, db_.Prepare("select m.name from sqlite_master m, pragma_foreign_key_list(m.name) f"
                                                         " where m.type = 'table' and f.\"table\" = ? collate nocase limit 1"));
    s.BindAll(table_);
    MILLRACE_TRY_ASSIGN(const bool row, s.Step());
    if (row)
      return Refuse("replace_refused",
                    fmt::format("foreign keys of table {} refer to the table; use mode: merge", s.String(0)));
    return {};
  }

  std::string InsertSql() const {
    std::string names, marks, key, set, differs;
    for (const SqliteColumn& c : columns_) {
      const std::string name = duck::QuoteName(c.name);
      names += (names.empty() ? "" : ", ") + name;
      marks += marks.empty() ? "?" : ", ?";
      if (std::find(job_.spec.key.begin(), job_.spec.key.end(), c.name) != job_.spec.key.end()) continue;
      set += fmt::format("{}{} = excluded.{}", set.empty() ? "" : ", ", name, name);
      differs += fmt::format("{}{}.{} is not excluded.{}", differs.empty() ? "" : " or ", quoted_, name, name);
    }
    std::string sql = fmt::format("insert into {} ({}) values ({})", quoted_, names, marks);
    if (job_.spec.mode != LoadMode::kMerge) return sql;
    for (const std::string& k : job_.spec.key) key += (key.empty() ? "" : ", ") + duck::QuoteName(k);
    sql += fmt::format(" on conflict ({}) do ", key);
    return sql + (set.empty() ? "nothing" : fmt::format("update set {} where {}", set, differs));
  }

  Outcome<void> BindRow(const duck::RowStream& stream, std::size_t row, sqlite::Statement& insert, std::int64_t& bytes) const {
    using Bind = SqliteColumn::Bind;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const duck::ChunkColumn column = stream.Column(i);
      const int at = static_cast<int>(i) + 1;
      if (column.IsNull(row)) {
        insert.Bind(at, nullptr);
        continue;
      }
      switch (columns_[i].bind) {
        case Bind::kInteger:
          insert.Bind(at, column.Values<std::int64_t>()[row]);
          bytes += 8;
          break;
        case Bind::kReal:
          insert.Bind(at, column.Values<double>()[row]);
          bytes += 8;
          break;
        case Bind::kBlob:
          insert.Bind(at, sqlite::Blob{column.Text(row)});
          bytes += static_cast<std::int64_t>(column.Text(row).size());
          break;
        case Bind::kText: {
          const std::string_view text = column.Text(row);
          if (text.find('\0') != std::string_view::npos)
            return Refuse("data_rejected", fmt::format("column '{}': a text contains a zero byte", columns_[i].name));
          insert.Bind(at, text);
          bytes += static_cast<std::int64_t>(text.size());
          break;
        }
      }
    }
    return {};
  }

  Outcome<std::int64_t> CountRows() {
    MILLRACE_TRY_ASSIGN(const std::int64_t rows, db_.QueryInt64("select count(*) from " + quoted_));
    return rows;
  }

  // Inserted and updated rows are told apart by the table's size: SQLite counts both as one change, an equal row as none.
  Outcome<void> Write(Receipt& receipt) {
    if (job_.spec.mode == LoadMode::kReplace && !created_) {
      MILLRACE_TRY_ASSIGN(receipt.deleted, CountRows());
      MILLRACE_TRY(db_.Exec("delete from " + quoted_));
    }
    std::int64_t before = 0;
    if (job_.spec.mode == LoadMode::kMerge) {
      MILLRACE_TRY_ASSIGN(before, CountRows());
    }
    std::int64_t sent = 0, changed = 0;
    MILLRACE_TRY_ASSIGN(sqlite::Statement insert, db_.Prepare(InsertSql()));
    auto stream = source_.Stream(select_);
    if (!stream) return Refuse("data_rejected", std::move(stream.error().message));
    while (true) {
      auto rows = stream->Next();
      if (!rows) return Refuse("data_rejected", std::move(rows.error().message));
      if (*rows == 0) break;
      for (std::size_t row = 0; row < *rows; ++row) {
        MILLRACE_TRY(BindRow(*stream, row, insert, receipt.bytes));
        MILLRACE_TRY(insert.Run());
        changed += db_.Changes();
        if (++sent % kProgressRows == 0 && job_.progress) job_.progress(sent, receipt.bytes);
      }
      MILLRACE_FAILPOINT("load.mid_copy");
    }
    if (job_.progress) job_.progress(sent, receipt.bytes);
    receipt.inserted = sent;
    if (job_.spec.mode == LoadMode::kMerge) {
      MILLRACE_TRY_ASSIGN(const std::int64_t after, CountRows());
      receipt.inserted = after - before;
      receipt.updated = changed - receipt.inserted;
      receipt.unchanged = sent - changed;
    }
    receipt.rows.loaded = sent;
    return {};
  }

  Outcome<void> WriteReceipt(const Receipt& r) {
    MILLRACE_TRY(
        db_.Run("update millrace_target set version = version + 1, last_effect = ?2,"
                " updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') where target = ?1",
                job_.target, r.effect));
    MILLRACE_TRY(
        db_.Run("insert into millrace_receipt (effect, token, run, pipeline, stage, target, mode, plan, rows_read, rows_loaded,"
                " rows_deduplicated, inserted, updated, unchanged, deleted, bytes, checksum, version)"
                " select ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, version from millrace_target where target = ?",
                r.effect, token(), r.run, r.pipeline, r.stage, r.target, r.mode, r.plan, r.rows.read, r.rows.loaded,
                r.rows.deduplicated, r.inserted, r.updated, r.unchanged, r.deleted, r.bytes, r.checksum, r.target));
    return {};
  }

  LoadJob& job_;
  duck::Connection& source_;
  sqlite::Database& db_;
  std::string table_, quoted_, select_;
  std::vector<SqliteColumn> columns_;
  bool created_ = false;
};

}  // namespace

Outcome<Loaded> LoadIntoSqlite(LoadJob& job, duck::Connection& source) {
  sqlite::Options options;
  options.busy_timeout = Millis{30'000};
  options.synchronous = sqlite::Synchronous::kFull;
  MILLRACE_TRY_ASSIGN(sqlite::Database opened, sqlite::Database::Open(job.order.connection->dsn, options));
  auto db = std::make_shared<sqlite::Database>(std::move(opened));
  auto loaded = SqliteLoad(job, source, *db).Run();
  // The last connection's close writes the log back into the file and syncs both: nobody waits for that. The receipt is
  // durable.
  AfterResult([db]() mutable { db.reset(); });
  return loaded;
}

}  // namespace millrace::load
