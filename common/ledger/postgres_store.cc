#include "common/ledger/postgres_store.h"

#include <algorithm>
#include <thread>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/ledger/migrations.h"

namespace millrace::ledger {
namespace {

constexpr int kTransactRoundsMax = 5;
constexpr auto kReconnectPause = Millis{20};
// A process that stops in the middle of a transaction holds its shards' rows that long: less than kOwnershipTtl, so that a
// takeover does not wait for it. Nothing here leaves a transaction idle for longer than a round trip.
constexpr auto kIdleInTransaction = Millis{3000};
// Shared by those who verify, exclusive for the end of a step that prunes.
constexpr std::int64_t kHistoryLock = 7318349394477059;
constexpr auto kReleaseBudget = Millis{5000};
constexpr std::string_view kLockTimedOut = "55P03";

using Kinds = std::vector<PgResult::Kind>;

Kinds KindsOf(const PgResult& result) {
  Kinds kinds;
  for (int c = 0; c < result.columns(); ++c) kinds.push_back(result.KindOf(c));
  return kinds;
}

void AppendRow(const PgResult& result, int r, const Kinds& kinds, std::vector<Value>& cells) {
  for (int c = 0; c < static_cast<int>(kinds.size()); ++c) {
    switch (result.IsNull(r, c) ? PgResult::Kind::kNull : kinds[static_cast<std::size_t>(c)]) {
      case PgResult::Kind::kNull: cells.push_back({}); break;
      case PgResult::Kind::kInt: cells.push_back(Value::Of(result.Int(r, c))); break;
      case PgResult::Kind::kBool: cells.push_back(Value::Of(std::int64_t{result.Bool(r, c)})); break;
      case PgResult::Kind::kTime: cells.push_back(Value::Of(result.Time(r, c))); break;
      case PgResult::Kind::kBytes: cells.push_back(Value::Of(result.Bytes(r, c))); break;
    }
  }
}

Rows ToRows(PgResult result) {
  auto kept = std::make_shared<PgResult>(std::move(result));
  Rows rows;
  rows.columns = static_cast<std::size_t>(kept->columns());
  rows.changed = static_cast<std::size_t>(kept->affected());
  rows.cells.reserve(rows.columns * static_cast<std::size_t>(kept->rows()));
  const Kinds kinds = KindsOf(*kept);
  for (int r = 0; r < kept->rows(); ++r) AppendRow(*kept, r, kinds, rows.cells);
  rows.memory = std::move(kept);
  return rows;
}

bool IsLost(ErrorCode code) { return code == ErrorCode::kMaybeApplied || code == ErrorCode::kUnavailable; }

}  // namespace

PgParams ToPg(const Params& params) {
  PgParams out;
  for (const Param& p : params.all()) {
    switch (p.kind) {
      case Param::Kind::kInt: out.Int(p.number); break;
      case Param::Kind::kText: out.Text(p.bytes); break;
      case Param::Kind::kBytes: out.Bytes(p.bytes); break;
      case Param::Kind::kTime: out.Time(FromUnixMicros(p.number)); break;
      case Param::Kind::kIds: out.IdArray(p.ids); break;
      case Param::Kind::kInts: out.IntArray(p.numbers); break;
      case Param::Kind::kTexts: out.TextArray(std::vector<std::string_view>(p.texts.begin(), p.texts.end())); break;
      case Param::Kind::kId:
        if (p.null)
          out.NullableId(std::nullopt);
        else
          out.Id(*Uuid::FromBytes(p.bytes));
        break;
    }
  }
  return out;
}

PostgresStore::PostgresStore(const LedgerOptions& options, Millis lock_timeout)
    : options_(options), lock_timeout_(lock_timeout) {}

Result<void> PostgresStore::Connect(MonoTime deadline) {
  if (connection_ && !connection_->broken()) return {};
  connection_.reset();
  session_.reset();
  PgOptions options;
  options.dsn = options_.dsn;
  options.application_name = "millrace " + options_.actor;
  options.search_path = "millrace";
  options.lock_timeout = lock_timeout_;
  options.idle_in_transaction_timeout = kIdleInTransaction;
  MILLRACE_TRY_ASSIGN(connection_, PgConnection::Connect(options, *options_.clock, deadline));
  return {};
}

Error PostgresStore::Explained(Error error) const {
  if (!connection_) return error;
  const std::string_view state = connection_->last_sqlstate();
  if (state == "42P01" || state == "3F000" || state == "42883" || state == "42703")
    error.message += "; has the ledger's schema been created (migrated)?";
  if (state == "MR002") error.code = ErrorCode::kConflict;
  return error;
}

Result<Rows> PostgresStore::RunOnce(std::string_view sql, const Params& params, MonoTime deadline) {
  MILLRACE_TRY(Connect(deadline));
  auto result = connection_->Query(sql, ToPg(params), deadline);
  if (!result) return std::unexpected(Explained(std::move(result.error())));
  return ToRows(std::move(*result));
}

Result<Rows> PostgresStore::Run(std::string_view sql, const Params& params, MonoTime deadline) {
  auto rows = RunOnce(sql, params, deadline);
  if (in_transact_ || rows || !IsLost(rows.error().code) || (connection_ && !connection_->broken())) return rows;
  rows = RunOnce(sql, params, deadline);
  if (!rows && rows.error().code == ErrorCode::kMaybeApplied) rows.error().code = ErrorCode::kUnavailable;  // it only reads
  return rows;
}

// By ranges of blocks: of a partitioned table the same range of each partition at once, as readers of the table see it.
Result<void> PostgresStore::Scan(std::string_view table, const std::string& what,
                                 const std::function<Result<void>(std::span<const Value>)>& visit, MonoTime deadline) {
  constexpr std::int64_t kBlocksOfPage = 512;
  MILLRACE_TRY_ASSIGN(
      const Rows size,
      Run("with recursive t(oid) as (select cast(to_regclass($1) as oid) union all select i.inhrelid from "
          "pg_catalog.pg_inherits "
          "i join t on i.inhparent = t.oid) select count(*), coalesce(max(pg_catalog.pg_relation_size(c.oid) / "
          "current_setting('block_size')::bigint), 0)::bigint, coalesce(bool_and(c.relkind in ('r', 'p')), false) "
          "from t join pg_catalog.pg_class c on c.oid = t.oid",
          Params().Text(table), deadline));
  const std::string sql = fmt::format("select {} from {} t", what, table);
  if (size[0][2].number == 0) return ScanPage(sql, visit, deadline);  // it is no table any more: whatever answers
  const std::int64_t blocks = size[0][1].number, step = std::max<std::int64_t>(1, kBlocksOfPage / size[0][0].number);
  for (std::int64_t block = 0; block < blocks; block += step)
    MILLRACE_TRY(
        ScanPage(sql + fmt::format(" where t.ctid >= '({},0)' and t.ctid < '({},0)'", block, block + step), visit, deadline));
  return {};
}

Result<void> PostgresStore::ScanPage(const std::string& sql, const std::function<Result<void>(std::span<const Value>)>& visit,
                                     MonoTime deadline) {
  MILLRACE_TRY(Connect(deadline));
  std::vector<Value> cells;
  Kinds kinds;  // of every row the same
  auto done = connection_->Stream(
      sql, {},
      [&](const PgResult& row) {
        if (kinds.empty()) kinds = KindsOf(row);
        cells.clear();
        AppendRow(row, 0, kinds, cells);
        return visit(cells);
      },
      deadline);
  if (!done) return std::unexpected(Explained(std::move(done.error())));
  return {};
}

Result<WallTime> PostgresStore::Now(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, Run("select clock_timestamp()", {}, deadline));
  return TimeOf(rows[0][0]);
}

Result<void> PostgresStore::Transact(const std::function<Result<void>()>& body, MonoTime deadline) {
  for (int round = 1;; ++round) {
    MILLRACE_TRY(Connect(deadline));
    Result<void> done = connection_->Exec("begin", deadline);
    if (done) {
      in_transact_ = true;
      done = body();
      in_transact_ = false;
      if (done) done = connection_->Exec("commit", deadline);
    }
    if (done) return {};
    const std::string state(connection_->last_sqlstate());
    const bool lost = connection_->broken();
    if (!lost && connection_->in_transaction()) {
      if (!connection_->Exec("rollback", deadline)) connection_.reset();
    }
    const bool again = lost || state.starts_with("40");
    if (!again || round >= kTransactRoundsMax) return std::unexpected(std::move(done.error()));
  }
}

// ---- verifying and pruning
// A lock of the session, for a transaction that lasts as long as a verification would keep dead rows from being cleared away,
// and its locks on tables would have everybody who writes wait behind somebody who wants to drop a partition.

Result<bool> PostgresStore::HoldHistory(MonoTime deadline) {
  // It stands in line with those who prune, behind the step that is under way.
  const auto held = Run(
      fmt::format("select set_config('lock_timeout', '20s', true), pg_advisory_lock_shared({})", kHistoryLock), {}, deadline);
  if (held) return true;
  if (held.error().code == ErrorCode::kConflict) return false;
  return std::unexpected(held.error());
}

void PostgresStore::ReleaseHistory() {
  if (!connection_ || connection_->broken()) return;
  const auto released = connection_->Exec(fmt::format("select pg_advisory_unlock_shared({})", kHistoryLock),
                                          options_.clock->Now() + kReleaseBudget);
  if (!released) connection_.reset(), session_.reset();  // which releases it too
}

Result<bool> PostgresStore::HistoryIsHeld(MonoTime deadline) {
  constexpr int kAsks = 20;
  const std::string sql = fmt::format(
      // Those who verify, also those who still stand in line, and those who prune.
      "select count(*) filter (where l.mode = 'ShareLock'), count(*) from pg_locks l where l.locktype = 'advisory' and l.pid "
      "<> "
      "pg_backend_pid() and l.objsubid = 1 and l.database = (select oid from pg_database where datname = current_database()) "
      "and ((l.classid::bigint << 32) | l.objid::bigint) = {}",
      kHistoryLock);
  for (int ask = 1;; ++ask) {
    MILLRACE_TRY_ASSIGN(const Rows rows, Run(sql, {}, deadline));
    if (rows[0][1].number == 0) return false;
    if (ask == kAsks) return rows[0][0].number != 0;
    std::this_thread::sleep_for(Millis{100});
  }
}

std::vector<Statement> PostgresStore::UnlessHistoryIsHeld() const {
  return {{fmt::format("do $$ begin if not pg_try_advisory_xact_lock({}) then raise exception 'the audit trail is being "
                       "verified, or somebody else prunes' using errcode = '40001'; end if; end $$",
                       kHistoryLock),
           {}}};
}

Result<RefusedGone> PostgresStore::DropRefusedBefore(WallTime before, std::int64_t rows_max, MonoTime deadline) {
  RefusedGone gone;
  const auto drop = [&]() -> Result<void> {
    MILLRACE_TRY(connection_->Exec("set local statement_timeout = 0", deadline));
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        Run("select gone, more from prune_refused($1, $2)", Params().Time(before).Int(rows_max), deadline));
    gone = {.rows = static_cast<std::uint64_t>(rows[0][0].number), .more = rows[0][1].number != 0};
    return {};
  };
  MILLRACE_TRY(Transact(drop, deadline));
  return gone;
}

Result<std::uint64_t> PostgresStore::BytesOfHistory(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      Run("select coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint from (values ('run'), ('job'), "
                          "('attempt'), ('outcome'), ('run_outcome'), ('cancel'), ('dead_action')) n(name), lateral "
                          "pg_partition_tree(('millrace.' || n.name)::regclass) t",
                          {}, deadline));
  return static_cast<std::uint64_t>(rows[0][0].number);
}

// ---- schema
// ------------------------------------------------------------------------------------------------------------------

Result<void> PostgresStore::Migrate(std::uint16_t shard_count, MonoTime deadline) {
  for (bool more = true; more;) MILLRACE_TRY(Transact([&] { return MigrateNext(shard_count, more, deadline); }, deadline));
  connection_.reset();  // statements prepared against an older schema
  session_.reset();
  MILLRACE_TRY(Connect(deadline));
  for (bool more = true; more;) {
    const auto made = MakePartitions(deadline);
    if (!made) LogWarn("ledger: partitions of the next weeks were not made yet: {}", made.error().message);
    more = made && *made;
  }
  return {};
}

// The next version, so that no lock outlasts it; of a new ledger, which is in nobody's way, all of them. A current one is read
// without a lock: most starts find one, and none of them has to wait for somebody else.
Result<void> PostgresStore::MigrateNext(std::uint16_t shard_count, bool& more, MonoTime deadline) {
  const auto all = PostgresMigrations();
  MILLRACE_TRY_ASSIGN(std::size_t version, SchemaVersion(deadline));
  if (version < all.size()) {
    MILLRACE_TRY(LockSchema(deadline));
    MILLRACE_TRY(
        connection_->Exec("create schema if not exists millrace; "
                          "create table if not exists millrace.schema_version (version integer primary key, "
                          "applied_at timestamptz not null default now())",
                          deadline));
    MILLRACE_TRY_ASSIGN(version, SchemaVersion(deadline));
  }
  if (version > all.size())
    return Fail(ErrorCode::kUnsupported, "ledger is of version {}, this program knows up to {}: use a newer millrace", version,
                all.size());
  if (version > 0) MILLRACE_TRY(KeepShardCount(shard_count, deadline));
  const std::size_t upto = version == 0 ? all.size() : std::min(version + 1, all.size());
  for (std::size_t v = version; v < upto; ++v) {
    MILLRACE_TRY(connection_->Exec(all[v], deadline));
    MILLRACE_TRY(connection_->QueryOnce("insert into millrace.schema_version (version) values ($1)",
                                        PgParams().Int(static_cast<std::int64_t>(v + 1)), deadline));
  }
  more = upto < all.size();
  if (version > 0) return {};
  MILLRACE_TRY(KeepShardCount(shard_count, deadline));
  MILLRACE_TRY(connection_->QueryOnce("select millrace.ensure_partitions(now(), 4)", {}, deadline));
  return {};
}

// 0: there are no tables yet.
Result<std::size_t> PostgresStore::SchemaVersion(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const PgResult there,
      connection_->QueryOnce("select pg_catalog.to_regclass('millrace.schema_version') is not null", {}, deadline));
  if (!there.Bool(0, 0)) return 0;
  MILLRACE_TRY_ASSIGN(const PgResult row,
                      connection_->QueryOnce("select coalesce(max(version), 0) from millrace.schema_version", {}, deadline));
  return static_cast<std::size_t>(row.Int(0, 0));
}

// Whoever has it may read a long history, which takes as long as the caller's deadline allows for it: the session's own limit
// is for the locks that hold up a running system. Waited for in slices, between which a stop is heard.
Result<void> PostgresStore::LockSchema(MonoTime deadline) {
  constexpr auto kForTheAnswer = Millis{500}, kSlice = Millis{500};
  MILLRACE_TRY(connection_->Exec("set local statement_timeout = 0; savepoint unlocked", deadline));
  const MonoTime begin = options_.clock->Now(), end = deadline - kForTheAnswer;
  for (bool said = false;;) {
    if (options_.stop && options_.stop())
      return Fail(ErrorCode::kCancelled, "stopped before the tables were made or changed; the next start does it");
    const MonoTime now = options_.clock->Now();
    const Millis slice = std::clamp(std::chrono::duration_cast<Millis>(end - now), Millis{1}, kSlice);
    auto locked = connection_->Exec(fmt::format("set local lock_timeout = {}; select "
                                                "pg_catalog.pg_advisory_xact_lock(7318349394477057); "
                                                "set local lock_timeout to default",
                                                slice.count()),
                                    deadline);
    if (locked || connection_->last_sqlstate() != kLockTimedOut) return locked;
    if (now >= end) break;
    if (!said && now - begin >= lock_timeout_) {
      said = true;
      LogInfo("ledger: another process makes or changes the tables; waiting for it for up to {} s",
              std::chrono::duration_cast<std::chrono::seconds>(end - now).count());
    }
    MILLRACE_TRY(connection_->Exec("rollback to savepoint unlocked", deadline));
  }
  return Fail(ErrorCode::kUnavailable,
              "another process still makes or changes the tables: start again when it has ended (pg_stat_activity shows it)");
}

Result<void> PostgresStore::KeepShardCount(std::uint16_t shard_count, MonoTime deadline) {
  MILLRACE_TRY(connection_->QueryOnce(
      "insert into millrace.ledger_setting (name, number) values ('shard_count', $1) on conflict do nothing",
      PgParams().Int(shard_count), deadline));
  MILLRACE_TRY_ASSIGN(
      const PgResult stored,
      connection_->QueryOnce("select number from millrace.ledger_setting where name = 'shard_count'", {}, deadline));
  if (stored.Int(0, 0) == shard_count) return {};
  return Fail(ErrorCode::kConflict, "the ledger was made for {} shards, this program is set to {}: set broker.shards to {}",
              stored.Int(0, 0), shard_count, stored.Int(0, 0));
}

Result<bool> PostgresStore::MakePartitions(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const PgResult more, connection_->QueryOnce("call millrace.make_partitions(now(), 4)", {}, deadline));
  return more.Bool(0, 0);
}

void PostgresStore::EnsurePartitions(MonoTime deadline) {
  constexpr auto kEvery = std::chrono::hours{6};
  constexpr auto kAgain = std::chrono::minutes{10};
  const MonoTime now = options_.clock->Now();
  if (partitions_due_at_ && now < *partitions_due_at_) return;
  partitions_due_at_ = now + kEvery;
  if (!Connect(deadline)) return;
  const auto more = MakePartitions(deadline);
  if (more && *more) partitions_due_at_ = now;
  if (more) return;
  // They are made weeks ahead, and rows find the default partition until then: worth a warning, not a failed commit.
  partitions_due_at_ = now + kAgain;
  LogWarn("ledger: partitions of the next weeks were not made, the next attempt is in 10 minutes: {}", more.error().message);
}

// ---- writing
// -----------------------------------------------------------------------------------------------------------------

Result<void> PostgresStore::Register(MonoTime deadline) {
  MILLRACE_TRY(Connect(deadline));
  if (session_) return {};
  for (int round = 0; round < 2; ++round) {
    auto answer = connection_->Query("select register_writer($1)", PgParams().Id(options_.writer.uuid), deadline);
    if (answer) {
      session_ = answer->Int(0, 0);
      return {};
    }
    if (connection_->last_sqlstate() != kLockTimedOut || round > 0)
      return std::unexpected(Explained(std::move(answer.error())));
    // Our own old backend still holds the writer's lock (its client side is gone, it has not noticed): end it.
    MILLRACE_TRY(
        connection_->Query("select pg_terminate_backend(l.pid) from pg_locks l where l.locktype = 'advisory' and l.granted and "
                           "l.pid <> pg_backend_pid() and l.objsubid = 1 and l.database = (select oid from pg_database where "
                           "datname = current_database()) and ((l.classid::bigint << 32) | l.objid::bigint) = writer_lock($1)",
                           PgParams().Id(options_.writer.uuid), deadline));
  }
  return {};
}

Result<bool> PostgresStore::Resolve(const AuditRecord* record, const Error& lost, MonoTime deadline) {
  for (;;) {
    // Registering waits for the lost transaction's end and forbids it to commit later, so that the look-up is final.
    if (auto registered = Register(deadline); registered) {
      if (record == nullptr) return false;  // repeatable
      auto rows = RunOnce("select hash from audit_record where writer = $1 and seq = $2",
                          Params().Id(record->writer.uuid).Int(static_cast<std::int64_t>(record->seq)), deadline);
      if (rows) {
        const Digest hash = record->Hash();
        return !rows->empty() &&
               (*rows)[0][0].bytes == std::string_view(reinterpret_cast<const char*>(hash.data()), hash.size());
      }
    }
    if (options_.clock->Now() + kReconnectPause >= deadline) return std::unexpected(lost);
    std::this_thread::sleep_for(kReconnectPause);
  }
}

Result<SqlStore::Applied> PostgresStore::Apply(const WriteSet& set, const AuditRecord* record, MonoTime deadline) {
  EnsurePartitions(deadline);
  for (int round = 1;; ++round) {
    if (auto ready = Register(deadline); !ready) {
      if (connection_ && connection_->broken() && round < kTransactRoundsMax) continue;
      if (ready.error().code == ErrorCode::kMaybeApplied)
        ready.error().code = ErrorCode::kUnavailable;  // nothing of the batch was sent
      return std::unexpected(std::move(ready.error()));
    }
    const auto statements = Statements(set, record);
    const Micros left = deadline - options_.clock->Now();  // the last third is for finding out what became of it
    auto results = connection_->Pipeline(statements, deadline - left / 3);
    if (results) return Applied::kYes;
    Error error = Explained(std::move(results.error()));
    const std::string state(connection_->last_sqlstate());
    if (!connection_->broken()) {
      if (state == "23505") return Applied::kKeyExists;
      if (state.starts_with("40") && round < kTransactRoundsMax) continue;
      return std::unexpected(std::move(error));
    }
    if (error.code == ErrorCode::kMaybeApplied) {
      MILLRACE_TRY_ASSIGN(const bool applied, Resolve(record, error, deadline));
      if (applied) return Applied::kYes;
      error.code = ErrorCode::kUnavailable;
    }
    if (!IsLost(error.code) || round >= kTransactRoundsMax) return std::unexpected(std::move(error));
  }
}

Result<std::unique_ptr<SqlStore>> OpenPostgresStore(const LedgerOptions& options, MonoTime deadline) {
  MILLRACE_CHECK(options.clock != nullptr, "a ledger needs a clock");
  auto store = std::make_unique<PostgresStore>(options);
  MILLRACE_TRY(store->Connect(deadline));
  return store;
}

}  // namespace millrace::ledger
