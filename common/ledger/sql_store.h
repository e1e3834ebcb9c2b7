// The seam under SqlLedger: one database connection that runs the ledger's SQL. Two implementations, PostgresStore and
// SqliteStore. SQL texts are shared: parameters are $1, $2 ..., names are unqualified. Internal to common/ledger.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/ledger/rows.h"

namespace millrace::ledger {

struct Param {
  enum class Kind : std::uint8_t { kInt, kText, kBytes, kId, kTime, kIds, kTexts, kInts };
  Kind kind;
  bool null = false;
  std::int64_t number = 0;
  std::string bytes;
  std::vector<Uuid> ids;
  std::vector<std::string> texts{};
  std::vector<std::int64_t> numbers{};
};

class Params {
 public:
  Params& Int(std::int64_t value) { return Put({Param::Kind::kInt, false, value, {}, {}}); }
  Params& Text(std::string_view value) { return Put({Param::Kind::kText, false, 0, std::string(value), {}}); }
  Params& Bytes(std::string_view value) { return Put({Param::Kind::kBytes, false, 0, std::string(value), {}}); }
  Params& Id(const Uuid& value) { return Put({Param::Kind::kId, false, 0, std::string(value.AsBytes()), {}}); }
  Params& NullId() { return Put({Param::Kind::kId, true, 0, {}, {}}); }
  Params& Time(WallTime value) { return Put({Param::Kind::kTime, false, ToUnixMicros(value), {}, {}}); }
  Params& Ids(std::vector<Uuid> values) { return Put({Param::Kind::kIds, false, 0, {}, std::move(values)}); }
  Params& Texts(std::span<const std::string> values) {
    return Put({Param::Kind::kTexts, false, 0, {}, {}, {values.begin(), values.end()}});
  }
  Params& Ints(std::span<const std::int64_t> values) {  // PostgreSQL only
    return Put({Param::Kind::kInts, false, 0, {}, {}, {}, {values.begin(), values.end()}});
  }
  std::span<const Param> all() const { return params_; }

 private:
  Params& Put(Param param) {
    params_.push_back(std::move(param));
    return *this;
  }
  std::vector<Param> params_;
};

// The rows of an answer; owns what its cells point to.
struct Rows {
  std::size_t columns = 0;
  std::vector<Value> cells;
  std::shared_ptr<const void> memory;
  std::size_t changed = 0;  // rows that an insert, update or delete touched
  std::size_t size() const { return columns == 0 ? 0 : cells.size() / columns; }
  bool empty() const { return cells.empty(); }
  std::span<const Value> operator[](std::size_t row) const { return std::span(cells).subspan(row * columns, columns); }
};

struct Statement {
  std::string sql;
  Params params;
};

struct Item {  // a run or a single job, in live_run, live_job, outbox
  Uuid id;
  OrgId org;
  ShardId shard;
};

struct ItemBatch {  // many runs in one row of outbox_batch
  Uuid id;          // of the first
  ShardId shard;
  std::string runs;  // 16 bytes each
};

// One write transaction: fence, audited rows (all new), bookkeeping, audit record.
struct WriteSet {
  std::vector<ShardHold> holds;
  std::optional<OwnerId> owner;  // set: holds are checked against it
  struct TableRows {
    std::vector<Value> cells;         // row after row
    std::vector<std::int64_t> index;  // audit_index of each row
  };
  std::array<TableRows, kTableCount> tables;
  std::vector<Item> live_runs, live_jobs, outbox_runs, outbox_jobs;
  std::vector<ItemBatch> outbox_batches;
  std::vector<Item> ended_runs, ended_jobs;  // their outbox rows go too
  std::vector<Uuid> outbox_done_batches;     // taken over, in the shards of `holds`
  std::vector<Uuid> outbox_done;             // likewise; one with a cancel request stays
  std::vector<Uuid> outbox_done_cancels;     // likewise, with their requests
  std::vector<Statement> others;
  Arena arena;
};

struct RefusedGone {
  std::uint64_t rows = 0;
  bool more = false;
};

class SqlStore {
 public:
  virtual ~SqlStore() = default;

  // One statement. Outside a Transact body: a read, or what bears repetition; repeated once on a new connection when the old
  // one was lost.
  virtual Result<Rows> Run(std::string_view sql, const Params& params, MonoTime deadline) = 0;
  // `body` in one write transaction; run again from its start when the transaction was rolled back by a lost connection or a
  // serialization failure. A lost answer to COMMIT runs it again too: bodies must bear that.
  virtual Result<void> Transact(const std::function<Result<void>()>& body, MonoTime deadline) = 0;
  // Every row of a table that was there when the call began, each once, in the order of storage, through no index and in short
  // statements: "select `what` from `table` t". `visit` gets one row at a time, must not use the store, and its error ends it.
  virtual Result<void> Scan(std::string_view table, const std::string& what,
                            const std::function<Result<void>(std::span<const Value>)>& visit, MonoTime deadline) = 0;
  virtual Result<WallTime> Now(MonoTime deadline) = 0;
  virtual Result<void> Migrate(std::uint16_t shard_count, MonoTime deadline) = 0;

  enum class Applied : std::uint8_t { kYes, kKeyExists };
  // All or nothing. kKeyExists: nothing was written, because the key of an audited row or a unique
  // key was there. kStale: a hold is not the
  // owner's. A lost COMMIT answer is resolved by looking `record` up; a set without record must be repeatable.
  virtual Result<Applied> Apply(const WriteSet& set, const AuditRecord* record, MonoTime deadline) = 0;

  // Dialect.
  virtual bool HasFunctions() const = 0;  // take_shard, renew_shards, announce_broker, try_lead: one round trip each
  virtual std::string Columns(Table table, std::string_view alias) const = 0;  // "r.run, r.org, ..." in the order of DefOf
  virtual std::string In(int parameter) const = 0;                             // " = any($1)", for an Ids parameter
  virtual std::string InTexts(int parameter) const = 0;                        // the same for a Texts parameter
  virtual std::string_view ForUpdate() const = 0;
  // `first`, without a limit of time, and the statements by which the rows of runs and jobs with ids below `end`, which is the
  // first id of `before`, leave the tables, `expected` of each of kPrunedTables; another number fails the transaction. From
  // these to the commit everybody who writes waits.
  virtual std::vector<Statement> DropBefore(const Uuid& end, WallTime before, std::span<const std::int64_t> expected,
                                            std::vector<Statement> first) const = 0;
  // Rows of enqueue_refused that were refused earlier than `before`, a Monday, go; of those that go one by one at most
  // `rows_max`.
  virtual Result<RefusedGone> DropRefusedBefore(WallTime before, std::int64_t rows_max, MonoTime deadline) = 0;
  // AuditSource::HoldHistory and its end.
  virtual Result<bool> HoldHistory(MonoTime deadline) = 0;
  virtual void ReleaseHistory() = 0;
  // Whether prunes have to wait for such a hold; asks for about 2 s, in which somebody else who prunes may come to an end: that
  // one is no hold. The statements make a transaction fail (kConflict) when either is there, and keep new ones waiting until it
  // ends.
  virtual Result<bool> HistoryIsHeld(MonoTime deadline) = 0;
  virtual std::vector<Statement> UnlessHistoryIsHeld() const = 0;
  // Whether whole weeks go at once; else a step is bounded by its rows.
  virtual bool DropsWeeks() const = 0;
  // What the tables of kPrunedTables take, with their indexes, about.
  virtual Result<std::uint64_t> BytesOfHistory(MonoTime deadline) = 0;
  // Conditions: every cell of a row has the type and shape that Apply writes, so that rows with equal leaves are equal. What
  // the schema does not forbid, or forbids only until somebody changes it.
  virtual std::string Sound(Table table, std::string_view alias) const = 0;
  virtual std::string SoundRecord(std::string_view alias) const = 0;
};

Result<std::unique_ptr<SqlStore>> OpenPostgresStore(const LedgerOptions& options, MonoTime deadline);
Result<std::unique_ptr<SqlStore>> OpenSqliteStore(const LedgerOptions& options, MonoTime deadline);

// What retention takes, in this order; the first column of each is the id that decides.
inline constexpr std::array kPrunedTables = {Table::kRun,        Table::kJob,    Table::kAttempt,   Table::kOutcome,
                                             Table::kRunOutcome, Table::kCancel, Table::kDeadAction};
// A condition: what goes of such a table when it is old. The request to stop a backfill stays, or the backfill would go on.
inline std::string_view GoesOf(Table table) {
  return table == Table::kCancel ? " and not exists (select 1 from backfill b where b.backfill = item)" : "";
}

// "insert into job (job, org, ..., audit_writer, audit_seq, audit_index) "
std::string InsertHead(Table table);
// "(values ($1, $2), ($3, $4))"
std::string ValuesOf(std::size_t rows, std::size_t columns);

}  // namespace millrace::ledger
