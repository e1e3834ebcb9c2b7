#include <filesystem>
#include <limits>
#include <system_error>

#include "common/base/check.h"
#include "common/base/failpoint.h"
#include "common/drivers/sqlite.h"
#include "common/ledger/migrations.h"
#include "common/ledger/sql_store.h"

namespace millrace::ledger {
namespace {

std::string_view View(const Digest& d) { return {reinterpret_cast<const char*>(d.data()), d.size()}; }

// "$1" is "?1" here.
std::string Translated(std::string_view sql) {
  std::string text(sql);
  for (char& c : text)
    if (c == '$') c = '?';
  return text;
}

void BindCell(sqlite::Statement& statement, int at, ColumnType type, const Value& value) {
  if (value.null) {
    statement.Bind(at, nullptr);
  } else if (type == ColumnType::kText) {
    statement.Bind(at, value.bytes);
  } else if (type == ColumnType::kInt || type == ColumnType::kBool || type == ColumnType::kTime) {
    statement.Bind(at, value.number);
  } else {
    statement.Bind(at, sqlite::Blob{value.bytes});
  }
}

std::string JsonText(std::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      json += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20)
      json += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else
      json += c;
  }
  return json + '"';
}

void BindParam(sqlite::Statement& statement, int at, const Param& p) {
  switch (p.kind) {
    case Param::Kind::kInt:
    case Param::Kind::kTime: statement.Bind(at, p.number); break;
    case Param::Kind::kText: statement.Bind(at, p.bytes); break;
    case Param::Kind::kBytes: statement.Bind(at, sqlite::Blob{p.bytes}); break;
    case Param::Kind::kId:
      if (p.null)
        statement.Bind(at, nullptr);
      else
        statement.Bind(at, sqlite::Blob{p.bytes});
      break;
    case Param::Kind::kIds: {
      std::string json = "[";
      for (const Uuid& id : p.ids) {
        if (json.size() > 1) json += ',';
        json += '"' + ToHex(id.bytes) + '"';
      }
      statement.Bind(at, json + "]");
      break;
    }
    case Param::Kind::kInts: MILLRACE_CHECK(false, "an array of numbers is for PostgreSQL");
    case Param::Kind::kTexts: {
      std::string json = "[";
      for (const std::string& text : p.texts) json += (json.size() > 1 ? "," : "") + JsonText(text);
      statement.Bind(at, json + "]");
      break;
    }
  }
}

class SqliteStore final : public SqlStore {
 public:
  SqliteStore(const LedgerOptions& options, sqlite::Database database) : options_(options), database_(std::move(database)) {}

  Result<Rows> Run(std::string_view sql, const Params& params, MonoTime deadline) override {
    database_.SetDeadline(deadline);
    auto rows = RunStatement(sql, params);
    if (!rows && rows.error().message.find("no such table") != std::string::npos)
      rows.error().message += "; has the ledger's schema been created (migrated)?";
    return rows;
  }

  Result<void> Transact(const std::function<Result<void>()>& body, MonoTime deadline) override {
    database_.SetDeadline(deadline);
    MILLRACE_TRY_ASSIGN(auto transaction, sqlite::Transaction::Begin(database_));
    MILLRACE_TRY(body());
    return transaction.Commit();
  }

  // A snapshot. The log grows as long as it lasts: a verification takes one only after a prune has disturbed it.
  Result<bool> HoldHistory(MonoTime deadline) override {
    database_.SetDeadline(deadline);
    MILLRACE_TRY(database_.Exec("begin"));
    return true;
  }
  void ReleaseHistory() override { static_cast<void>(database_.Exec("rollback")); }
  Result<bool> HistoryIsHeld(MonoTime) override { return false; }
  std::vector<Statement> UnlessHistoryIsHeld() const override { return {}; }
  Result<void> Scan(std::string_view table, const std::string& what,
                    const std::function<Result<void>(std::span<const Value>)>& visit, MonoTime deadline) override;
  Result<WallTime> Now(MonoTime) override { return options_.clock->WallNow(); }
  Result<void> Migrate(std::uint16_t shard_count, MonoTime deadline) override;
  Result<Applied> Apply(const WriteSet& set, const AuditRecord* record, MonoTime deadline) override;

  bool HasFunctions() const override { return false; }
  std::string Columns(Table table, std::string_view alias) const override {
    std::string list;
    for (const Column& c : DefOf(table).columns)
      list += (list.empty() ? "" : ", ") + std::string(alias) + "." + std::string(c.name);
    return list;
  }
  std::string In(int parameter) const override {
    return " in (select unhex(value) from json_each($" + std::to_string(parameter) + "))";
  }
  std::string InTexts(int parameter) const override {
    return " in (select value from json_each($" + std::to_string(parameter) + "))";
  }
  std::string_view ForUpdate() const override { return ""; }
  std::vector<Statement> DropBefore(const Uuid& end, WallTime, std::span<const std::int64_t> expected,
                                    std::vector<Statement> all) const override {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const TableDef& def = DefOf(kPrunedTables[i]);
      const std::string rows = fmt::format("{} where {} < $1{}", def.name, def.columns[0].name, GoesOf(kPrunedTables[i]));
      all.push_back({"insert into prune_check select count(*) = $2 from " + rows, Params().Id(end).Int(expected[i])});
      all.push_back({"delete from " + rows, Params().Id(end)});
    }
    all.push_back({"delete from prune_check", {}});
    return all;
  }
  Result<RefusedGone> DropRefusedBefore(WallTime before, std::int64_t rows_max, MonoTime deadline) override {
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        Run("delete from enqueue_refused where (org, job) in (select r.org, r.job from enqueue_refused r "
                            "where r.refused_at < $1 limit $2)",
                            Params().Time(before).Int(rows_max), deadline));
    return RefusedGone{.rows = rows.changed, .more = rows.changed == static_cast<std::size_t>(rows_max)};
  }
  bool DropsWeeks() const override { return false; }
  Result<std::uint64_t> BytesOfHistory(MonoTime deadline) override {  // of the whole file: nearly all of it is history
    MILLRACE_TRY_ASSIGN(const Rows rows, Run("select (select page_count from pragma_page_count) - (select freelist_count from "
                                             "pragma_freelist_count), (select page_size from pragma_page_size)",
                                             {}, deadline));
    return static_cast<std::uint64_t>(rows[0][0].number * rows[0][1].number);
  }
  std::string Sound(Table table, std::string_view alias) const override;
  std::string SoundRecord(std::string_view alias) const override {
    return fmt::format(
        "typeof({0}.writer) = 'blob' and length({0}.writer) = 16 and typeof({0}.seq) = 'integer' and typeof({0}.previous) = "
        "'blob' and typeof({0}.at) = 'integer' and typeof({0}.actor) = 'text' and typeof({0}.leaves) = 'blob' and "
        "typeof({0}.root) = 'blob' and typeof({0}.hash) = 'blob'",
        alias);
  }

 private:
  Result<Rows> RunStatement(std::string_view sql, const Params& params);
  Result<void> CheckHolds(const WriteSet& set);
  Result<void> InsertRows(Table table, const WriteSet::TableRows& rows, const AuditRecord& record);
  Result<void> InsertRecord(const AuditRecord& record);
  Result<void> Bookkeeping(const WriteSet& set);
  Result<void> InsertItems(std::string_view sql, const std::vector<Item>& items);
  Result<void> DeleteItems(std::string_view sql, const std::vector<Item>& items);
  Result<void> DeleteOutbox(const std::vector<Item>& items);

  LedgerOptions options_;
  sqlite::Database database_;
};

// `strict` tables hold no other types, but a file can be edited. 10 and '10abc' would have the same leaf.
std::string SqliteStore::Sound(Table table, std::string_view alias) const {
  std::string sql = fmt::format(
      "typeof({0}.audit_writer) = 'blob' and typeof({0}.audit_seq) = 'integer' and typeof({0}.audit_index) = 'integer'", alias);
  for (const Column& c : DefOf(table).columns) {
    const bool number = c.type == ColumnType::kInt || c.type == ColumnType::kBool || c.type == ColumnType::kTime;
    const std::string_view type = number ? "integer" : c.type == ColumnType::kText ? "text" : "blob";
    sql += fmt::format(" and typeof({}.{}) in ('null', '{}')", alias, c.name, type);
  }
  return sql;
}

Result<Rows> SqliteStore::RunStatement(std::string_view sql, const Params& params) {
  MILLRACE_TRY_ASSIGN(sqlite::Statement statement, database_.Prepare(Translated(sql)));
  int at = 0;
  for (const Param& p : params.all()) BindParam(statement, ++at, p);
  auto memory = std::make_shared<Arena>();
  Rows rows;
  rows.columns = static_cast<std::size_t>(statement.ColumnCount());
  for (;;) {
    MILLRACE_TRY_ASSIGN(const bool more, statement.Step());
    if (!more) break;
    for (int c = 0; c < statement.ColumnCount(); ++c) {
      if (statement.IsNull(c))
        rows.cells.push_back({});
      else
        rows.cells.push_back({false, statement.Int64(c), {}});
      // Int64 of a text or blob reads its digits; View of a number prints it. The reader knows which one it wants.
      if (!rows.cells.back().null) rows.cells.back().bytes = memory->emplace_back(statement.View(c));
    }
  }
  rows.memory = std::move(memory);
  rows.changed = static_cast<std::size_t>(database_.Changes());
  return rows;
}

namespace {

// A name by which the numbers of a table's rows can be asked for: a column of that name, which anybody can add, hides them.
// Empty: all are taken.
Result<std::string> NameOfRowid(sqlite::Database& database, std::string_view table) {
  for (const std::string name : {"rowid", "_rowid_", "oid"}) {
    MILLRACE_TRY_ASSIGN(const std::int64_t taken,
                        database.QueryInt64(fmt::format(
                            "select count(*) from pragma_table_xinfo('{}') where lower(name) = '{}'", table, name)));
    if (taken == 0) return name;
  }
  return std::string{};
}

}  // namespace

// Pages of rows by their number: a read that lasts keeps the log from being taken over into the file.
Result<void> SqliteStore::Scan(std::string_view table, const std::string& what,
                               const std::function<Result<void>(std::span<const Value>)>& visit, MonoTime deadline) {
  constexpr int kPageRows = 5000;
  database_.SetDeadline(deadline);
  const std::string from = " from " + std::string(table) + " t";
  MILLRACE_TRY_ASSIGN(const std::string rowid, NameOfRowid(database_, table));
  auto statement = database_.Prepare(
      fmt::format("select t.{0}, {1}{2} where t.{0} >= ?1 order by t.{0} limit {3}", rowid, what, from, kPageRows));
  const bool pages = !rowid.empty() && statement.has_value();
  if (!pages) statement = database_.Prepare("select 0, " + what + from);  // somebody made the table without numbers
  if (!statement) return std::unexpected(std::move(statement.error()));
  std::vector<Value> row(static_cast<std::size_t>(statement->ColumnCount()) - 1);
  Arena memory;
  std::int64_t next = std::numeric_limits<std::int64_t>::min();
  for (int met = kPageRows; met == kPageRows;) {
    if (pages) statement->Bind(1, next);
    for (met = 0;; ++met) {
      MILLRACE_TRY_ASSIGN(const bool more, statement->Step());
      if (!more) break;
      memory.clear();
      for (std::size_t c = 0; c < row.size(); ++c) {
        const int at = static_cast<int>(c) + 1;
        row[c] = {};
        if (!statement->IsNull(at)) row[c] = {false, statement->Int64(at), memory.emplace_back(statement->View(at))};
      }
      MILLRACE_TRY(visit(row));
      const std::int64_t number = statement->Int64(0);
      if (pages && number == std::numeric_limits<std::int64_t>::max()) return {};
      next = number + 1;
    }
    if (!pages) break;
    statement->Reset();
  }
  return {};
}

Result<void> SqliteStore::Migrate(std::uint16_t shard_count, MonoTime deadline) {
  return Transact(
      [&]() -> Result<void> {
        MILLRACE_TRY(database_.Exec(
            "create table if not exists schema_version (version integer primary key, applied_at integer not null) strict"));
        MILLRACE_TRY_ASSIGN(const std::int64_t found,
                            database_.QueryInt64("select coalesce(max(version), 0) from schema_version"));
        const auto all = SqliteMigrations();
        if (found > static_cast<std::int64_t>(all.size()))
          return Fail(ErrorCode::kUnsupported, "ledger is of version {}, this program knows up to {}: use a newer millrace",
                      found, all.size());
        for (auto v = static_cast<std::size_t>(found); v < all.size(); ++v) {
          MILLRACE_TRY(database_.Exec(std::string(all[v])));
          MILLRACE_TRY(database_.Run("insert into schema_version (version, applied_at) values (?1, ?2)", v + 1,
                                     ToUnixMicros(options_.clock->WallNow())));
        }
        MILLRACE_TRY(database_.Run(
            "insert into ledger_setting (name, number) values ('shard_count', ?1) on conflict do nothing", shard_count));
        MILLRACE_TRY_ASSIGN(const std::int64_t stored,
                            database_.QueryInt64("select number from ledger_setting where name = 'shard_count'"));
        if (stored != shard_count)
          return Fail(ErrorCode::kConflict,
                      "the ledger was made for {} shards, this program is set to {}: set broker.shards to {}", stored,
                      shard_count, stored);
        return {};
      },
      deadline);
}

Result<void> SqliteStore::CheckHolds(const WriteSet& set) {
  for (const ShardHold& hold : set.holds) {
    MILLRACE_TRY_ASSIGN(const Rows rows, RunStatement("select owner, owner_name, epoch from shard_owner where shard = $1",
                                                      Params().Int(hold.shard.value())));
    const bool mine =
        !rows.empty() && !rows[0][0].null && UuidOf(rows[0][0]) == set.owner->uuid && rows[0][2].number == hold.epoch.value();
    if (mine) continue;
    return Fail(ErrorCode::kStale, "shard {}: epoch {} of this owner is stale, the ledger has epoch {} (owner {})",
                hold.shard.value(), hold.epoch.value(), rows.empty() ? 0 : rows[0][2].number,
                rows.empty() || rows[0][0].null ? "none" : rows[0][1].bytes);
  }
  return {};
}

Result<void> SqliteStore::InsertRows(Table table, const WriteSet::TableRows& rows, const AuditRecord& record) {
  if (rows.index.empty()) return {};
  const TableDef& def = DefOf(table);
  const std::size_t width = def.columns.size();
  std::string sql = InsertHead(table) + "values (";
  for (std::size_t i = 1; i <= width + 3; ++i) sql += (i > 1 ? ", ?" : "?") + std::to_string(i);
  MILLRACE_TRY_ASSIGN(sqlite::Statement statement, database_.Prepare(sql + ")"));
  for (std::size_t r = 0; r < rows.index.size(); ++r) {
    int at = 0;
    for (std::size_t c = 0; c < width; ++c) BindCell(statement, ++at, def.columns[c].type, rows.cells[r * width + c]);
    statement.Bind(at + 1, sqlite::Blob{record.writer.AsBytes()}).Bind(at + 2, record.seq).Bind(at + 3, rows.index[r]);
    MILLRACE_TRY(statement.Run());
  }
  return {};
}

Result<void> SqliteStore::InsertRecord(const AuditRecord& r) {
  std::string leaves;
  for (const Digest& leaf : r.leaves) leaves += View(leaf);
  const Digest hash = r.Hash();
  return database_.Run(
      "insert into audit_record (writer, seq, previous, at, actor, leaves, root, hash) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
      sqlite::Blob{r.writer.AsBytes()}, r.seq, sqlite::Blob{View(r.previous)}, ToUnixMicros(r.at), r.actor,
      sqlite::Blob{leaves}, sqlite::Blob{View(r.root)}, sqlite::Blob{View(hash)});
}

Result<void> SqliteStore::InsertItems(std::string_view sql, const std::vector<Item>& items) {
  if (items.empty()) return {};
  MILLRACE_TRY_ASSIGN(sqlite::Statement insert, database_.Prepare(sql));
  for (const Item& item : items)
    MILLRACE_TRY(insert.BindAll(sqlite::Blob{item.id.AsBytes()}, item.org.value(), item.shard.value()).Run());
  return {};
}

// ?1 is the shard, ?2 the item.
Result<void> SqliteStore::DeleteItems(std::string_view sql, const std::vector<Item>& items) {
  if (items.empty()) return {};
  MILLRACE_TRY_ASSIGN(sqlite::Statement statement, database_.Prepare(sql));
  for (const Item& item : items) MILLRACE_TRY(statement.BindAll(item.shard.value(), sqlite::Blob{item.id.AsBytes()}).Run());
  return {};
}

// Nearly always the outbox is empty: that is asked once.
Result<void> SqliteStore::DeleteOutbox(const std::vector<Item>& items) {
  if (items.empty()) return {};
  MILLRACE_TRY_ASSIGN(const std::int64_t any, database_.QueryInt64("select exists (select 1 from outbox)"));
  if (any == 0) return {};
  return DeleteItems("delete from outbox where shard = ?1 and item = ?2", items);
}

Result<void> SqliteStore::Bookkeeping(const WriteSet& set) {
  MILLRACE_TRY(InsertItems("insert into live_run (run, org, shard) values (?1, ?2, ?3) on conflict do nothing", set.live_runs));
  MILLRACE_TRY(InsertItems("insert into live_job (job, org, shard) values (?1, ?2, ?3) on conflict do nothing", set.live_jobs));
  MILLRACE_TRY(InsertItems("insert into outbox (item, org, shard, is_run) values (?1, ?2, ?3, 1) on conflict do nothing",
                           set.outbox_runs));
  MILLRACE_TRY(InsertItems("insert into outbox (item, org, shard, is_run) values (?1, ?2, ?3, 0) on conflict do nothing",
                           set.outbox_jobs));
  for (const ItemBatch& row : set.outbox_batches)
    MILLRACE_TRY(database_.Run("insert into outbox_batch (batch, shard, runs) values (?1, ?2, ?3)",
                               sqlite::Blob{row.id.AsBytes()}, row.shard.value(), sqlite::Blob{row.runs}));
  for (const ShardHold& hold : set.holds)
    for (const Uuid& id : set.outbox_done_batches)
      MILLRACE_TRY(database_.Run("delete from outbox_batch where shard = ?1 and batch = ?2", hold.shard.value(),
                                 sqlite::Blob{id.AsBytes()}));
  MILLRACE_TRY(DeleteItems("delete from live_run where run = ?2", set.ended_runs));
  MILLRACE_TRY(DeleteItems("delete from live_job where shard = ?1 and job = ?2", set.ended_jobs));
  MILLRACE_TRY(DeleteOutbox(set.ended_runs));
  MILLRACE_TRY(DeleteOutbox(set.ended_jobs));
  for (const ShardHold& hold : set.holds) {
    for (const Uuid& id : set.outbox_done)
      MILLRACE_TRY(database_.Run("delete from outbox where shard = ?1 and item = ?2 and cancel_requested = 0",
                                 hold.shard.value(), sqlite::Blob{id.AsBytes()}));
    for (const Uuid& id : set.outbox_done_cancels)
      MILLRACE_TRY(
          database_.Run("delete from outbox where shard = ?1 and item = ?2", hold.shard.value(), sqlite::Blob{id.AsBytes()}));
  }
  for (const Statement& s : set.others) MILLRACE_TRY(RunStatement(s.sql, s.params));
  return {};
}

Result<SqlStore::Applied> SqliteStore::Apply(const WriteSet& set, const AuditRecord* record, MonoTime deadline) {
  database_.SetDeadline(deadline);
  MILLRACE_TRY_ASSIGN(auto transaction, sqlite::Transaction::Begin(database_));
  if (set.owner && !MILLRACE_MUTANT("mutant.no_epoch")) MILLRACE_TRY(CheckHolds(set));
  for (const Table table : kTables) {
    const auto& rows = set.tables[static_cast<std::size_t>(table)];
    if (rows.index.empty()) continue;
    if (auto done = InsertRows(table, rows, *record); !done) {
      if (done.error().code == ErrorCode::kConflict) return Applied::kKeyExists;
      return std::unexpected(std::move(done.error()));
    }
  }
  if (auto done = Bookkeeping(set); !done) {
    if (done.error().code == ErrorCode::kConflict) return Applied::kKeyExists;  // a unique key is held
    return std::unexpected(std::move(done.error()));
  }
  if (record != nullptr) MILLRACE_TRY(InsertRecord(*record));
  MILLRACE_TRY(transaction.Commit());
  return Applied::kYes;
}

}  // namespace

Result<std::unique_ptr<SqlStore>> OpenSqliteStore(const LedgerOptions& options, MonoTime deadline) {
  MILLRACE_CHECK(options.clock != nullptr, "a ledger needs a clock");
  const std::filesystem::path path(options.dsn);
  std::error_code ignored;
  if (options.dsn.empty() || !path.is_absolute())
    return Fail(ErrorCode::kInvalidArgument, "ledger '{}': a SQLite ledger is named by an absolute path", options.dsn);
  if (!std::filesystem::is_directory(path.parent_path(), ignored))
    return Fail(ErrorCode::kNotFound, "ledger '{}': the folder '{}' does not exist; create it first", options.dsn,
                path.parent_path().string());
  if (std::filesystem::is_directory(path, ignored))
    return Fail(ErrorCode::kInvalidArgument, "ledger '{}' is a folder, not a file", options.dsn);
  sqlite::Options settings;
  settings.clock = options.clock;
  auto database = sqlite::Database::Open(options.dsn, settings);
  if (!database) return Prefixed(std::move(database.error()), "ledger '{}'", options.dsn);
  database->SetDeadline(deadline);
  return std::make_unique<SqliteStore>(options, std::move(*database));
}

}  // namespace millrace::ledger
