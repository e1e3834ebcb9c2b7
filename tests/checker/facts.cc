#include "tests/checker/facts.h"

#include <filesystem>
#include <utility>

#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"

namespace millrace::checker {
namespace {

constexpr Millis kConnectTimeout{20'000}, kAskTimeout{300'000};

const SystemClock& TheClock() {
  static const SystemClock clock;
  return clock;
}

std::optional<Uuid> MaybeId(const Cell& cell) { return cell.null ? std::nullopt : std::optional(cell.Id()); }

}  // namespace

Uuid Cell::Id() const { return Uuid::FromBytes(bytes).value_or(Uuid{}); }

struct Database::Impl {
  std::unique_ptr<PgConnection> postgres;
  std::optional<sqlite::Database> sqlite;

  Result<std::vector<Row>> AskPostgres(const std::string& sql) {
    MILLRACE_TRY_ASSIGN(const PgResult found, postgres->QueryOnce(sql, {}, TheClock().Now() + kAskTimeout));
    std::vector<Row> rows(static_cast<std::size_t>(found.rows()));
    for (int i = 0; i < found.rows(); ++i)
      for (int c = 0; c < found.columns(); ++c) {
        Cell cell{.null = found.IsNull(i, c)};
        switch (found.KindOf(i, c)) {
          case PgResult::Kind::kNull: break;
          case PgResult::Kind::kInt: cell.number = found.Int(i, c); break;
          case PgResult::Kind::kBool: cell.number = found.Bool(i, c) ? 1 : 0; break;
          case PgResult::Kind::kTime: cell.number = ToUnixMicros(found.Time(i, c)); break;
          case PgResult::Kind::kBytes: cell.bytes = found.Text(i, c); break;
        }
        rows[static_cast<std::size_t>(i)].push_back(std::move(cell));
      }
    return rows;
  }

  Result<std::vector<Row>> AskSqlite(const std::string& sql) {
    MILLRACE_TRY_ASSIGN(sqlite::Statement statement, sqlite->Prepare(sql));
    std::vector<Row> rows;
    while (true) {
      MILLRACE_TRY_ASSIGN(const bool more, statement.Step());
      if (!more) return rows;
      Row& row = rows.emplace_back();
      for (int c = 0; c < statement.ColumnCount(); ++c) {
        if (statement.IsNull(c))
          row.emplace_back();
        else
          row.push_back({.null = false, .number = statement.Int64(c), .bytes = statement.String(c)});
      }
    }
  }
};

Database::Database(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Database::Database(Database&&) noexcept = default;
Database::~Database() = default;
bool Database::postgres() const { return impl_->postgres != nullptr; }

Result<Database> Database::Open(const std::string& where) {
  auto impl = std::make_unique<Impl>();
  std::error_code ec;
  if (std::filesystem::exists(where, ec)) {
    MILLRACE_TRY_ASSIGN(impl->sqlite, sqlite::Database::Open(where, {.access = sqlite::Access::kReadOnly}));
    return Database(std::move(impl));
  }
  PgOptions options;
  options.dsn = where;
  options.application_name = "history check";
  options.search_path = "millrace";
  options.statement_timeout = kAskTimeout;
  MILLRACE_TRY_ASSIGN(impl->postgres, PgConnection::Connect(options, TheClock(), TheClock().Now() + kConnectTimeout));
  return Database(std::move(impl));
}

Result<std::vector<Row>> Database::Ask(const std::string& sql) {
  return impl_->postgres ? impl_->AskPostgres(sql) : impl_->AskSqlite(sql);
}

namespace {

Result<void> ReadJobs(Database& ledger, Facts& facts) {
  // A list of ids is an array there and 16 bytes each here.
  const std::string depends_on =
      ledger.postgres() ? "(select string_agg(uuid_send(d), ''::bytea) from unnest(depends_on) d)" : "depends_on";
  MILLRACE_TRY_ASSIGN(const auto outcomes, ledger.Ask("select job, token, org, ended, state, recorded_at from outcome"));
  for (const Row& row : outcomes)
    facts.outcomes[row[0].Id()] = {.token = row[1].number,
                                   .org = row[2].number,
                                   .ended = row[3].number,
                                   .state = row[4].number,
                                   .recorded_at = FromUnixMicros(row[5].number)};
  MILLRACE_TRY_ASSIGN(const auto attempts, ledger.Ask("select job, token, org, ended from attempt"));
  for (const Row& row : attempts)
    facts.attempts.push_back({.job = row[0].Id(), .token = row[1].number, .org = row[2].number, .ended = row[3].number});
  MILLRACE_TRY_ASSIGN(const auto jobs,
                      ledger.Ask("select job, org, run, stage, kind, effect, options, " + depends_on + " from job"));
  for (const Row& row : jobs) {
    JobFact job{.org = row[1].number,
                .run = MaybeId(row[2]),
                .stage = row[3].bytes,
                .kind = row[4].bytes,
                .effect = row[5].bytes,
                .depends_on = {},
                .options = row[6].bytes};
    for (std::size_t at = 0; at + 16 <= row[7].bytes.size(); at += 16)
      if (const auto id = Uuid::FromBytes(std::string_view(row[7].bytes).substr(at, 16))) job.depends_on.push_back(*id);
    facts.jobs.emplace(row[0].Id(), std::move(job));
  }
  MILLRACE_TRY_ASSIGN(const auto live, ledger.Ask("select job from live_job"));
  for (const Row& row : live) facts.live_jobs.insert(row[0].Id());
  return {};
}

Result<void> ReadRuns(Database& ledger, Facts& facts) {
  MILLRACE_TRY_ASSIGN(const auto ended, ledger.Ask("select run, org, state from run_outcome"));
  for (const Row& row : ended) facts.run_outcomes[row[0].Id()] = {row[1].number, row[2].number};
  MILLRACE_TRY_ASSIGN(const auto runs, ledger.Ask("select run, org, generation, pipeline, schedule, slot from run"));
  for (const Row& row : runs)
    facts.runs[row[0].Id()] = {.org = row[1].number,
                               .generation = row[2].number,
                               .pipeline = row[3].bytes,
                               .schedule = row[4].bytes,
                               .slot = row[5].null ? std::nullopt : std::optional(row[5].number)};
  for (const auto& [id, job] : facts.jobs)
    if (job.run && job.options.find("\"retry_of\"") != std::string::npos) facts.runs[*job.run].repeats = true;
  MILLRACE_TRY_ASSIGN(const auto live, ledger.Ask("select run from live_run"));
  for (const Row& row : live) facts.live_runs.insert(row[0].Id());
  MILLRACE_TRY_ASSIGN(const auto slots,
                      ledger.Ask("select org, slot, generation, pipeline, schedule, state, reason, run from slot"));
  for (const Row& row : slots)
    facts.slots.push_back({.org = row[0].number,
                           .slot = row[1].number,
                           .generation = row[2].number,
                           .pipeline = row[3].bytes,
                           .schedule = row[4].bytes,
                           .state = row[5].bytes,
                           .reason = row[6].bytes,
                           .run = MaybeId(row[7])});
  MILLRACE_TRY_ASSIGN(const auto schedules,
                      ledger.Ask("select pipeline, schedule, cron, timezone, dst, active, paused from schedule"));
  for (const Row& row : schedules)
    facts.schedules[{row[0].bytes, row[1].bytes}] = {.cron = row[2].bytes,
                                                     .timezone = row[3].bytes,
                                                     .dst = row[4].bytes,
                                                     .active = row[5].number == 1 && row[6].number == 0};
  return {};
}

}  // namespace

Result<Facts> ReadFacts(Database& ledger) {
  Facts facts;
  MILLRACE_TRY(ledger.Ask(ledger.postgres() ? "begin isolation level repeatable read read only" : "begin"));
  MILLRACE_TRY(ReadJobs(ledger, facts));
  MILLRACE_TRY(ReadRuns(ledger, facts));
  MILLRACE_TRY_ASSIGN(
      const auto others,
      ledger.Ask("select (select count(*) from outbox) + (select count(*) from outbox_batch), (select count(*) from pruned)"));
  facts.outbox = others[0][0].number;
  facts.pruned = others[0][1].number > 0;
  MILLRACE_TRY(ledger.Ask("commit"));
  return facts;
}

}  // namespace millrace::checker
