#include <algorithm>
#include <memory>
#include <utility>

#include "common/base/failpoint.h"
#include "common/drivers/sqlite.h"
#include "worker/stage/load/sinks.h"
#include "worker/stage/load/sqlite_table.h"
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
    if (const std::string lower = LowerCase(table_); lower.starts_with("millrace_") || lower.starts_with("sqlite_"))
      return Refuse("invalid_target", fmt::format("table names beginning with millrace_ or sqlite_ are taken: {}", table_));
    // The fence holds off other processes of this machine, which do not survive a power loss either: it need not be on the
    // disk before the publish is, and that one takes it along.
    MILLRACE_TRY(db_.Exec("pragma temp_store = memory; pragma synchronous = normal"));  // a confined stage has no /tmp
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, Raise());
    MILLRACE_TRY(db_.Exec("pragma synchronous = full"));
    if (stored) return Loaded{std::move(*stored), true};
    if (job_.order.fence_only) return Fenced();
    MILLRACE_FAILPOINT("load.after_fence");
    MILLRACE_TRY(job_.checked);
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
    MILLRACE_TRY(RequireUntouchedSources(job_));
    MILLRACE_TRY(WriteReceipt(receipt));
    MILLRACE_FAILPOINT("load.before_commit");
    MILLRACE_TRY(transaction.Commit());
    MILLRACE_FAILPOINT("load.after_commit");
    return Loaded{std::move(receipt), false};
  }

  // "a.b", "a_b" and "A_B" would be one table: the first to come owns the name.
  Outcome<void> ClaimName() {
    MILLRACE_TRY(
        db_.Run("insert into millrace_target (target, table_name) values (?, ?) on conflict do nothing", job_.target, table_));
    MILLRACE_TRY_ASSIGN(sqlite::Statement s,
                        db_.Prepare("select target from millrace_target where table_name = ? collate nocase"
                                    " order by rowid limit 1"));
    s.BindAll(table_);
    MILLRACE_TRY_ASSIGN(const bool row, s.Step());
    if (!row || s.View(0) != job_.target)
      return Refuse("invalid_target",
                    fmt::format("table {} already stands for target '{}'; SQLite has no schemas, so '{}' needs another name",
                                table_, row ? s.String(0) : "?", job_.target));
    return {};
  }

  Outcome<void> PrepareTarget() {
    MILLRACE_TRY_ASSIGN(existing_, DescribeSqliteTable(db_, table_));
    if (!existing_.exists) return CreateTarget();
    if (existing_.is_view) return Refuse("invalid_target", fmt::format("{} is a view, not a table", table_));
    MILLRACE_TRY(CompareSchema());
    if (job_.spec.mode == LoadMode::kMerge) return PrepareMerge();
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

  static bool Fits(char from, char into) {
    if (into == 'b' || from == into) return true;
    if (from == 'i' || from == 'n') return into == 'n' || into == 'i';
    if (from == 'r') return into == 'n';
    return false;  // text and blobs would be turned into numbers where they look like some
  }

  Outcome<void> CompareSchema() {
    const auto& existing = existing_.columns;
    std::string diff;
    const auto complain = [&](const std::string& line) { diff += (diff.empty() ? "" : "; ") + line; };
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const auto found = existing.find(columns_[i].name);
      if (found == existing.end())
        complain(fmt::format("{}: {} in the dataset, missing in the table", columns_[i].name, job_.columns[i].type));
      else if (found->second.generated)
        complain(fmt::format("{}: generated in the table", columns_[i].name));
      else if (!Fits(SqliteAffinity(columns_[i].declared), SqliteAffinity(found->second.type)))
        complain(
            fmt::format("{}: {} in the dataset, {} in the table", columns_[i].name, job_.columns[i].type, found->second.type));
    }
    for (const auto& [name, column] : existing)
      if (column.must_have_value &&
          std::none_of(columns_.begin(), columns_.end(), [&](const SqliteColumn& c) { return c.name == name; }))
        complain(fmt::format("{}: not in the dataset, not null without default in the table", name));
    if (!diff.empty())
      return Refuse("schema_mismatch", "the dataset does not fit the table: " + diff +
                                           "; cast or rename the columns in a transform, or alter the table");
    return {};
  }

  Outcome<void> PrepareMerge() {
    if (existing_.may_replace)
      return Refuse("invalid_target",
                    fmt::format("a constraint of {} says ON CONFLICT REPLACE: a merge would delete rows that it"
                                " could not count",
                                quoted_));
    MILLRACE_TRY_ASSIGN(const std::vector<SqliteKeyIndex> indexes, FindKeyIndexes(db_, table_, job_.spec.key));
    if (indexes.empty()) return MissingUniqueIndex();
    for (const SqliteKeyIndex& index : indexes)
      if (!index.IsBinary()) MILLRACE_TRY(CreateSeen(index));
    return {};
  }

  // The batch's keys differ byte by byte; whether they do for the table's collation, a temporary table of them finds out.
  Outcome<void> CreateSeen(const SqliteKeyIndex& index) {
    Seen seen;
    std::string columns, names, marks;
    for (const SqliteKeyIndex::Part& part : index.parts) {
      const auto at = std::ranges::find(columns_, part.column, &SqliteColumn::name) - columns_.begin();
      seen.columns.push_back(static_cast<std::size_t>(at));
      columns += fmt::format("{} {} collate {}, ", duck::QuoteName(part.column),
                             TypeOf(SqliteAffinity(existing_.columns.at(part.column).type)), duck::QuoteName(part.collation));
      names += (names.empty() ? "" : ", ") + duck::QuoteName(part.column);
      marks += marks.empty() ? "?" : ", ?";
    }
    const std::string table = fmt::format("temp.millrace_seen_{}", seen_.size());
    MILLRACE_TRY(db_.Exec(fmt::format("create table {} ({}unique ({}))", table, columns, names)));
    seen.insert_sql = fmt::format("insert into {} values ({})", table, marks);
    seen_.push_back(std::move(seen));
    return {};
  }

  static std::string_view TypeOf(char affinity) {
    switch (affinity) {
      case 'i': return "integer";
      case 't': return "text";
      case 'r': return "real";
      case 'n': return "numeric";
      default: return "blob";
    }
  }

  Outcome<void> MissingUniqueIndex() const {
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

  // The bytes that were bound.
  Outcome<std::int64_t> Bind(const duck::RowStream& stream, std::size_t row, std::size_t i, sqlite::Statement& into,
                             int at) const {
    using Bind = SqliteColumn::Bind;
    const duck::ChunkColumn column = stream.Column(i);
    if (column.IsNull(row)) {
      into.Bind(at, nullptr);
      return 0;
    }
    switch (columns_[i].bind) {
      case Bind::kInteger: into.Bind(at, column.Values<std::int64_t>()[row]); return 8;
      case Bind::kReal: into.Bind(at, column.Values<double>()[row]); return 8;
      case Bind::kBlob: into.Bind(at, sqlite::Blob{column.Text(row)}); break;
      case Bind::kText:
        if (column.Text(row).find('\0') != std::string_view::npos)
          return Refuse("data_rejected", fmt::format("column '{}': a text contains a zero byte", columns_[i].name));
        into.Bind(at, column.Text(row));
        break;
    }
    return static_cast<std::int64_t>(column.Text(row).size());
  }

  Outcome<void> BindRow(const duck::RowStream& stream, std::size_t row, sqlite::Statement& into, std::int64_t& bytes) const {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      MILLRACE_TRY_ASSIGN(const std::int64_t bound, Bind(stream, row, i, into, static_cast<int>(i) + 1));
      bytes += bound;
    }
    return {};
  }

  // "(id=7, name=ann)": the key, or else the first columns.
  std::string NameOf(const duck::RowStream& stream, std::size_t row) const {
    constexpr std::size_t kShownMax = 3, kBytesShownMax = 40;
    std::string out;
    std::size_t shown = 0;
    for (std::size_t i = 0; i < columns_.size() && shown < kShownMax; ++i) {
      const std::vector<std::string>& key = job_.spec.key;
      if (!key.empty() && std::ranges::find(key, columns_[i].name) == key.end()) continue;
      const duck::ChunkColumn column = stream.Column(i);
      std::string value = "null";
      using Bind = SqliteColumn::Bind;
      if (columns_[i].bind == Bind::kBlob) continue;
      if (!column.IsNull(row)) {
        if (columns_[i].bind == Bind::kInteger) value = fmt::format("{}", column.Values<std::int64_t>()[row]);
        if (columns_[i].bind == Bind::kReal) value = fmt::format("{}", column.Values<double>()[row]);
        if (columns_[i].bind == Bind::kText) value = std::string(column.Text(row).substr(0, kBytesShownMax));
      }
      out += fmt::format("{}{}={}", shown++ == 0 ? "" : ", ", columns_[i].name, value);
    }
    return "(" + out + ")";
  }

  Outcome<void> RefuseSeen(const duck::RowStream& stream, std::size_t row) {
    for (const Seen& seen : seen_) {
      MILLRACE_TRY_ASSIGN(sqlite::Statement insert, db_.Prepare(seen.insert_sql));
      int at = 0;
      for (const std::size_t i : seen.columns) MILLRACE_TRY(Bind(stream, row, i, insert, ++at));
      const auto done = insert.Run();
      if (!done && done.error().code == ErrorCode::kConflict)
        return Refuse(
            "duplicate_key_in_batch",
            fmt::format("the batch has another row whose key the table's collation finds equal: {}", NameOf(stream, row)));
      MILLRACE_TRY(done);
    }
    return {};
  }

  // A row that changed nothing is there already, or it was dropped.
  Outcome<void> RequireStored(const duck::RowStream& stream, std::size_t row) {
    if (job_.spec.mode == LoadMode::kMerge && !existing_.may_ignore) return {};
    if (job_.spec.mode == LoadMode::kMerge) {
      std::string same;
      for (const SqliteColumn& c : columns_)
        same += fmt::format("{}{} is ?", same.empty() ? "" : " and ", duck::QuoteName(c.name));
      MILLRACE_TRY_ASSIGN(sqlite::Statement find, db_.Prepare(fmt::format("select 1 from {} where {}", quoted_, same)));
      std::int64_t ignored = 0;
      MILLRACE_TRY(BindRow(stream, row, find, ignored));
      MILLRACE_TRY_ASSIGN(const bool there, find.Step());
      if (there) return {};
    }
    return Refuse("data_rejected",
                  fmt::format("a constraint with ON CONFLICT IGNORE, or a trigger, dropped the row {}", NameOf(stream, row)));
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
    const bool counts = job_.spec.mode == LoadMode::kMerge || existing_.may_replace;
    std::int64_t before = 0;
    if (counts) {
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
        MILLRACE_TRY(RefuseSeen(*stream, row));
        MILLRACE_TRY(BindRow(*stream, row, insert, receipt.bytes));
        MILLRACE_TRY(insert.Run());
        const std::int64_t stored = db_.Changes();
        if (stored == 0) MILLRACE_TRY(RequireStored(*stream, row));
        changed += stored;
        if (++sent % kProgressRows == 0 && job_.progress) job_.progress(sent, receipt.bytes);
      }
      MILLRACE_FAILPOINT("load.mid_copy");
    }
    if (job_.progress) job_.progress(sent, receipt.bytes);
    receipt.inserted = sent;
    std::int64_t after = 0;
    if (counts) {
      MILLRACE_TRY_ASSIGN(after, CountRows());
    }
    if (existing_.may_replace && after - before != sent)
      return Refuse("data_rejected", fmt::format("{} rows were inserted, the table grew by {}: its ON CONFLICT REPLACE deletes"
                                                 " rows that have an equal key",
                                                 sent, after - before));
    if (job_.spec.mode == LoadMode::kMerge) {
      receipt.inserted = after - before;
      receipt.updated = changed - receipt.inserted;
      receipt.unchanged = sent - changed;
    }
    receipt.rows.loaded = sent;
    return {};
  }

  Outcome<void> WriteReceipt(const Receipt& r) {
    MILLRACE_TRY(RequireBalance(r));
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
  SqliteTable existing_;  // as it was before this load
  struct Seen {           // a temporary table of the keys of this batch
    std::vector<std::size_t> columns;
    std::string insert_sql;
  };
  std::vector<Seen> seen_;
  bool created_ = false;
};

}  // namespace

Outcome<Loaded> LoadIntoSqlite(LoadJob& job, duck::Connection& source) {
  sqlite::Options options;
  options.busy_timeout = kSqlitePatience;
  options.synchronous = sqlite::Synchronous::kFull;
  MILLRACE_TRY_ASSIGN(sqlite::Database opened, sqlite::Database::Open(job.order.connection->dsn, options));
  auto db = std::make_shared<sqlite::Database>(std::move(opened));
  auto loaded = SqliteLoad(job, source, *db).Run();
  // Writing the log back into the file and syncing both takes long: nobody waits for that, the receipt is durable. A confined
  // process cannot remove the log; one that is left empty says nothing to whoever finds it.
  AfterResult([db]() mutable {
    (void)db->Exec("pragma busy_timeout = 0; pragma wal_checkpoint(truncate)");
    db.reset();
  });
  return loaded;
}

}  // namespace millrace::load
