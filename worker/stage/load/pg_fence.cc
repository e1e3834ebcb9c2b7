#include "worker/stage/load/pg_fence.h"

#include <chrono>
#include <thread>
#include <utility>

#include "common/base/failpoint.h"

namespace millrace::load {
namespace {

constexpr auto kStatementDeadline = std::chrono::hours{6};  // the stage's own timeout ends it sooner
constexpr auto kConnectDeadline = std::chrono::seconds{10};
constexpr Millis kLockTimeout{10'000};
constexpr int kRaiseTries = 4;
constexpr int kResolveTries = 8;
constexpr auto kResolvePause = std::chrono::milliseconds{250};

constexpr std::string_view kTables = R"sql(
begin;
select pg_advisory_xact_lock(7237128319472001);
create schema if not exists millrace;
create table if not exists millrace.fence (
  effect text primary key, token bigint not null, raised_at timestamptz not null default now());
create table if not exists millrace.target (
  target text primary key, version bigint not null default 0, cursor text, last_effect text,
  updated_at timestamptz not null default now());
create table if not exists millrace.receipt (
  effect text primary key, token bigint not null, run uuid, pipeline text not null, stage text not null,
  target text not null, mode text not null, plan text not null, rows_read bigint not null, rows_loaded bigint not null,
  rows_deduplicated bigint not null, inserted bigint not null, updated bigint not null, unchanged bigint not null,
  deleted bigint not null, bytes bigint not null, checksum text not null, cursor text, version bigint not null,
  published_at timestamptz not null default clock_timestamp());
create index if not exists receipt_target on millrace.receipt (target, version);
create table if not exists millrace.staging (
  name text primary key, effect text not null, token bigint not null, created_at timestamptz not null default now());
commit;
)sql";

constexpr std::string_view kReceiptSql =
    "select token, run, pipeline, stage, target, mode, plan, rows_read, rows_loaded, rows_deduplicated, inserted, updated,"
    " unchanged, deleted, bytes, checksum from millrace.receipt where effect = $1";

PgOptions OptionsOf(const LoadJob& job) {
  PgOptions options;
  options.dsn = job.order.connection->dsn;
  // pg_stat_activity shows whose session it is, and a newer attempt can end a frozen older one.
  options.application_name = fmt::format("millrace load {} {}", job.hash, job.order.token.value());
  options.application_name_wins = true;
  options.search_path = "pg_catalog,pg_temp";  // every other name in our SQL is qualified
  options.statement_timeout = Millis{0};
  options.lock_timeout = kLockTimeout;
  options.idle_in_transaction_timeout = Millis{10 * 60'000};
  return options;
}

}  // namespace

MonoTime PgFence::Deadline() const { return clock_.Now() + kStatementDeadline; }

Outcome<PgResult> PgFence::Query(std::string_view sql, const PgParams& params) {
  auto result = connection_->QueryOnce(sql, params, Deadline());
  if (!result) return std::unexpected(Failure(std::move(result.error())));
  return std::move(*result);
}

Outcome<void> PgFence::Exec(std::string_view sql) {
  MILLRACE_TRY(connection_->Exec(sql, Deadline()));
  return {};
}

Outcome<std::unique_ptr<PgConnection>> PgFence::Connect() const {
  auto connection = PgConnection::Connect(OptionsOf(job_), clock_, clock_.Now() + kConnectDeadline);
  if (!connection && connection.error().code == ErrorCode::kInvalidArgument)  // the dsn's fault, not the data's
    return Refuse("invalid_target", std::move(connection.error().message));
  if (!connection) return std::unexpected(Failure(std::move(connection.error())));
  return std::move(*connection);
}

Outcome<std::unique_ptr<PgFence>> PgFence::Open(const LoadJob& job, const Clock& clock) {
  std::unique_ptr<PgFence> fence(new PgFence(job, clock));
  MILLRACE_TRY_ASSIGN(fence->connection_, fence->Connect());
  // A destination whose owner's machine died must notice: its transaction holds locks that the next attempt needs.
  MILLRACE_TRY(fence->Exec("set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3"));
  return fence;
}

Outcome<void> PgFence::CreateTables() {
  MILLRACE_TRY_ASSIGN(PgResult there, Query("select to_regclass('millrace.staging') is not null as there"));
  if (there.Bool(0, 0)) return {};  // also spares a role without CREATE the attempt
  return Exec(kTables);
}

// The token on record afterwards: mine, or a higher one.
Outcome<std::uint64_t> PgFence::RaiseOnce() {
  MILLRACE_TRY_ASSIGN(
      PgResult raised,
      Query("insert into millrace.fence as f (effect, token) values ($1, $2) on conflict (effect) do update"
            " set token = excluded.token, raised_at = clock_timestamp() where f.token < excluded.token returning f.token",
            PgParams{}.Text(job_.order.task.effect).Int(token())));
  if (raised.rows() == 1) return static_cast<std::uint64_t>(raised.Int(0, 0));
  MILLRACE_TRY_ASSIGN(PgResult seen,
                      Query("select token from millrace.fence where effect = $1", PgParams{}.Text(job_.order.task.effect)));
  if (seen.rows() == 0) return Refuse("destination_corrupt", "the fence's row vanished from millrace.fence");
  return static_cast<std::uint64_t>(seen.Int(0, 0));
}

// Sessions of this effect's older attempts, which may sit frozen on the fence's row. Ending one is safe at any moment: its
// COMMIT either happened or did not.
Outcome<void> PgFence::EndOlderSessions(bool also_mine) {
  MILLRACE_TRY(
      Query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and usename = current_user and pid <> pg_backend_pid()"
            " and application_name ~ ('^millrace load ' || $1 || ' [0-9]+$')"
            " and split_part(application_name, ' ', 4)::numeric < $2::numeric",
            PgParams{}.Text(job_.hash).Int(token() + (also_mine ? 1 : 0))));
  return {};
}

Outcome<std::optional<Receipt>> PgFence::Raise() {
  MILLRACE_TRY(CreateTables());
  std::uint64_t seen = 0;
  for (int attempt = 1;; ++attempt) {
    auto raised = RaiseOnce();
    if (raised) {
      seen = *raised;
      break;
    }
    if (connection_->last_sqlstate() != "55P03" || attempt == kRaiseTries) return std::unexpected(std::move(raised.error()));
    MILLRACE_TRY(EndOlderSessions(false));
  }
  if (seen > job_.order.token.value() && !MILLRACE_MUTANT("mutant.no_fence")) return std::unexpected(Stale(job_, seen));
  MILLRACE_FAILPOINT("load.after_fence");
  MILLRACE_TRY_ASSIGN(std::optional<Receipt> receipt, FindReceipt());
  if (!receipt) MILLRACE_TRY(DropOrphans());
  return receipt;
}

// Of older attempts of this effect, of attempts that were overtaken, and of whoever is gone: <kind>_<hash>_<token> names the
// session (OptionsOf) that would still be at work. At random, so that tables that cannot be dropped do not hide the others.
Outcome<void> PgFence::DropOrphans() {
  MILLRACE_TRY_ASSIGN(PgResult orphans,
                      Query("select s.name from millrace.staging s where (s.effect = $1 and s.token <= $2)"
                            " or exists (select 1 from millrace.fence f where f.effect = s.effect and f.token > s.token)"
                            " or (s.created_at < now() - interval '10 minutes' and not exists (select 1 from pg_stat_activity a"
                            "     where a.datname = current_database() and a.application_name = 'millrace load '"
                            "           || split_part(s.name, '_', 2) || ' ' || split_part(s.name, '_', 3)))"
                            " order by random() limit 100",
                            PgParams{}.Text(job_.order.task.effect).Int(token())));
  for (int i = 0; i < orphans.rows(); ++i) {
    DropStaging(orphans.Text(i, 0), "500ms");  // a frozen attempt may still hold its table: then the next load tries again
    if (connection_->in_transaction()) MILLRACE_TRY(Exec("rollback"));
    if (connection_->broken()) return std::unexpected(Failure("destination_unavailable", "the connection was lost", true));
  }
  return {};
}

void PgFence::DropStaging(const std::string& name, std::string_view lock_timeout) {
  (void)Exec(
      fmt::format("begin; set local lock_timeout = '{}'; drop table if exists millrace.{};"
                  " delete from millrace.staging where name = {}; commit",
                  lock_timeout, PgIdentifier(name), PgLiteral(name)));
}

void PgFence::DropOwnStaging() {
  if (staging_.empty()) return;
  if (connection_->broken()) {
    auto connection = Connect();
    if (!connection) return;
    connection_ = std::move(*connection);
  }
  if (connection_->in_transaction() && !Exec("rollback")) return;
  DropStaging(staging_, "5s");
}

Outcome<std::string> PgFence::NewStaging(std::string_view kind, std::string_view ddl_after_name, bool unlogged) {
  const std::string name = fmt::format("{}_{}_{}", kind, job_.hash, token());
  const std::string quoted = "millrace." + PgIdentifier(name);
  MILLRACE_TRY(Exec(fmt::format(
      "begin; insert into millrace.staging (name, effect, token) values ({}, {}, {});"
      " create {} table {} {}; commit",
      PgLiteral(name), PgLiteral(job_.order.task.effect), token(), unlogged ? "unlogged" : "", quoted, ddl_after_name)));
  staging_ = name;
  return quoted;
}

Outcome<void> PgFence::Begin() { return Exec("begin isolation level read committed"); }

Outcome<std::optional<Receipt>> PgFence::FindReceipt() {
  if (MILLRACE_MUTANT("mutant.no_receipt")) return std::optional<Receipt>{};
  MILLRACE_TRY_ASSIGN(PgResult found, Query(kReceiptSql, PgParams{}.Text(job_.order.task.effect)));
  if (found.rows() == 0) return std::optional<Receipt>{};
  Receipt r;
  r.effect = job_.order.task.effect;
  r.token = Token{static_cast<std::uint64_t>(found.Int(0, 0))};
  r.run = found.IsNull(0, 1) ? "" : found.Id(0, 1).ToString();
  r.pipeline = found.Text(0, 2);
  r.stage = found.Text(0, 3);
  r.target = found.Text(0, 4);
  r.mode = found.Text(0, 5);
  r.plan = found.Text(0, 6);
  r.rows.read = found.Int(0, 7);
  r.rows.loaded = found.Int(0, 8);
  r.rows.deduplicated = found.Int(0, 9);
  r.inserted = found.Int(0, 10);
  r.updated = found.Int(0, 11);
  r.unchanged = found.Int(0, 12);
  r.deleted = found.Int(0, 13);
  r.bytes = found.Int(0, 14);
  r.checksum = found.Text(0, 15);
  return std::optional<Receipt>(std::move(r));
}

Outcome<std::optional<Receipt>> PgFence::LockTarget() {
  MILLRACE_TRY_ASSIGN(PgResult fence, Query("select token from millrace.fence where effect = $1 for update",
                                            PgParams{}.Text(job_.order.task.effect)));
  if (fence.rows() != 1) return Refuse("destination_corrupt", "the fence's row vanished from millrace.fence");
  const auto seen = static_cast<std::uint64_t>(fence.Int(0, 0));
  if (seen != job_.order.token.value() && !MILLRACE_MUTANT("mutant.no_fence")) return std::unexpected(Stale(job_, seen));
  MILLRACE_TRY_ASSIGN(std::optional<Receipt> receipt, FindReceipt());
  if (receipt) return receipt;
  MILLRACE_TRY(Query("insert into millrace.target (target) values ($1) on conflict do nothing", PgParams{}.Text(job_.target)));
  MILLRACE_TRY(Query("select version from millrace.target where target = $1 for update", PgParams{}.Text(job_.target)));
  return std::optional<Receipt>{};
}

Outcome<void> PgFence::WriteReceipt(const Receipt& r, std::int64_t version) {
  if (MILLRACE_MUTANT("mutant.no_receipt")) return {};
  MILLRACE_TRY(
      Query("insert into millrace.receipt (effect, token, run, pipeline, stage, target, mode, plan, rows_read,"
            " rows_loaded, rows_deduplicated, inserted, updated, unchanged, deleted, bytes, checksum, version)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
            PgParams{}
                .Text(r.effect)
                .Int(token())
                .Id(job_.order.task.run.uuid)
                .Text(r.pipeline)
                .Text(r.stage)
                .Text(r.target)
                .Text(r.mode)
                .Text(r.plan)
                .Int(r.rows.read)
                .Int(r.rows.loaded)
                .Int(r.rows.deduplicated)
                .Int(r.inserted)
                .Int(r.updated)
                .Int(r.unchanged)
                .Int(r.deleted)
                .Int(r.bytes)
                .Text(r.checksum)
                .Int(version)));
  return {};
}

Outcome<Receipt> PgFence::Finish(const Receipt& r) {
  MILLRACE_TRY(RequireBalance(r));
  // Mine alone: where the table of an older attempt could not be dropped, its row is what names it.
  MILLRACE_TRY(Query("delete from millrace.staging where effect = $1 and token = $2", PgParams{}.Text(r.effect).Int(token())));
  MILLRACE_TRY_ASSIGN(PgResult version,
                      Query("update millrace.target set version = version + 1, last_effect = $2, updated_at = now()"
                            " where target = $1 returning version",
                            PgParams{}.Text(job_.target).Text(r.effect)));
  if (version.rows() != 1) return Refuse("destination_corrupt", "the target's row vanished from millrace.target");
  MILLRACE_TRY(WriteReceipt(r, version.Int(0, 0)));
  MILLRACE_FAILPOINT("load.before_commit");
  auto committed = connection_->Exec("commit", Deadline());
  if (!committed) {
    // Only an answer of the server is an answer. Anything else is "unknown" until the receipt has been looked up.
    const bool refused = !connection_->broken() && !connection_->last_sqlstate().empty();
    if (refused) return std::unexpected(Failure(std::move(committed.error())));
    return Resolve(r, committed.error());
  }
  staging_.clear();
  MILLRACE_FAILPOINT("load.after_commit");
  return r;
}

// The publish transaction held the fence's row, so that once this session holds it, that transaction has ended and the receipt
// is there or never will be.
Outcome<Receipt> PgFence::Resolve(const Receipt& receipt, const Error& lost) {
  std::string why = lost.message;
  for (int attempt = 1; attempt <= kResolveTries; ++attempt) {
    std::this_thread::sleep_for(kResolvePause * attempt);
    auto connection = Connect();
    if (!connection) {
      why = connection.error().message;
      continue;
    }
    connection_ = std::move(*connection);
    auto locked = Exec("begin");
    if (locked) {
      auto row = Query("select token from millrace.fence where effect = $1 for update", PgParams{}.Text(receipt.effect));
      if (row) {
        auto found = FindReceipt();
        if (found) {
          (void)Exec("rollback");
          if (*found) {
            staging_.clear();
            return std::move(**found);
          }
          return std::unexpected(Failure("destination_unavailable",
                                         "the connection was lost at COMMIT and nothing was applied: " + lost.message, true));
        }
        locked = std::unexpected(std::move(found.error()));
      } else {
        if (connection_->last_sqlstate() == "55P03") {
          (void)Exec("rollback");
          (void)EndOlderSessions(true);
        }
        locked = std::unexpected(std::move(row.error()));
      }
    }
    why = locked.error().message;
  }
  return std::unexpected(Failure("outcome_unknown",
                                 "the answer to COMMIT was lost and the receipt could not be looked up; the next attempt does"
                                 " that first: " +
                                     why,
                                 true));
}

Failure PgFence::Explain(Failure failure) {
  if (failure.error_class == "stale_token" || failure.error_class == "outcome_unknown") return failure;
  if (connection_->broken()) {
    auto connection = Connect();
    if (!connection) return failure;
    connection_ = std::move(*connection);
  } else if (connection_->in_transaction() && !Exec("rollback")) {
    return failure;
  }
  auto seen = Query("select token from millrace.fence where effect = $1", PgParams{}.Text(job_.order.task.effect));
  if (seen && seen->rows() == 1 && static_cast<std::uint64_t>(seen->Int(0, 0)) > job_.order.token.value())
    return Stale(job_, static_cast<std::uint64_t>(seen->Int(0, 0)));
  return failure;
}

}  // namespace millrace::load
