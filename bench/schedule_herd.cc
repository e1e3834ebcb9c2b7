// A herd of schedules at one minute, decided by two competing scheduler processes on a real PostgreSQL (MILLRACE_TEST_POSTGRES;
// a database of its own, dropped afterwards), and what schedules cost while nothing is due.
//
//   millrace_schedule_herd [SCHEDULES] [IDLE_SCHEDULES] [lead|both]
//
// lead (default): one leads, one stands by, as in production. both: the two share the lease, so that every slot is decided
// twice and only the slot's unique key is left. Prints JSON; exit code 1 when a slot is missing, doubled or later than a
// minute.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/postgres.h"
#include "common/ledger/ledger.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/queue/sqlite_queue.h"
#include "scheduler/scheduler.h"

namespace millrace {
namespace {

using std::chrono::duration_cast;

struct World {
  SystemClock clock;
  SystemRandom random;
  IdGenerator ids{clock, random};
  std::string server, name = "mr_herd_" + std::to_string(getpid());

  MonoTime In(Millis wait) const { return clock.Now() + wait; }
  std::string dsn() const { return server + " dbname=" + name; }
  std::unique_ptr<PgConnection> Connect(const std::string& to) const {
    PgOptions options;
    options.dsn = to;
    auto connection = PgConnection::Connect(options, clock, In(20s));
    return connection ? std::move(*connection) : nullptr;
  }
  Result<void> Sql(PgConnection& connection, const std::string& sql) const { return connection.Exec(sql, In(300s)); }
  Result<std::int64_t> Number(PgConnection& connection, const std::string& sql) const {
    MILLRACE_TRY_ASSIGN(const PgResult result, connection.QueryOnce(sql, {}, In(60s)));
    return result.Int(0, 0);
  }
  Result<std::unique_ptr<Ledger>> OpenLedger() {
    return OpenPostgresLedger(
        {.dsn = dsn(), .clock = &clock, .writer = ids.Next<AuditWriterId>(), .shard_count = 16, .actor = "herd"}, In(20s));
  }
};

// A scheduler in a process of its own, until it gets SIGTERM.
pid_t StartScheduler(World& world, OwnerId id, int number) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  ConfigureLog(LogLevel::kWarn, LogFormat::kJson, "herd");
  auto ledger = world.OpenLedger();
  if (!ledger) ::_exit(1);
  LocalInbox inbox;
  scheduler::Scheduler scheduler({.name = fmt::format("s{}", number), .id = id, .lead_ttl = 3000ms, .shard_count = 16},
                                 **ledger, inbox, world.clock, world.ids);
  std::thread runner([&] { scheduler.Run(); });
  int signal = 0;
  sigwait(&stop, &signal);
  scheduler.RequestStop();
  runner.join();
  ::_exit(0);
}

struct Cost {
  double cpu_s = 0;
  long rss_kb = 0;  // of the larger one
};
Cost Stop(const std::array<pid_t, 2>& children) {
  Cost cost;
  for (const pid_t child : children) ::kill(child, SIGTERM);
  for (const pid_t child : children) {
    rusage usage{};
    int status = 0;
    ::wait4(child, &status, 0, &usage);
    cost.cpu_s += static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                  static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    cost.rss_kb = std::max(cost.rss_kb, usage.ru_maxrss);
  }
  return cost;
}

// One pipeline applied as everybody does, the others copied from it.
Result<void> MakeSchedules(World& world, PgConnection& db, const std::string& prefix, std::int64_t count,
                           const std::string& cron, const std::string& end) {
  const std::string yaml = fmt::format(
      "version: 1\npipeline: {}\nschedule: {{ cron: \"{}\", catchup: all, overlap: allow{} }}\nstages:\n  a: {{ command: "
      "[echo, one] }}\n",
      prefix, cron, end.empty() ? "" : fmt::format(", end: \"{}\"", end));
  const auto parsed = ParsePipeline(yaml, "herd.yaml");
  if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, yaml));
  MILLRACE_TRY_ASSIGN(const auto ledger, world.OpenLedger());
  MILLRACE_TRY(ledger->ApplyPipeline(*parsed.pipeline, ToJson(*parsed.pipeline), yaml, "/srv", kDefaultOrg, world.In(20s)));
  return world.Sql(
      db, fmt::format(
              "set search_path = millrace;"
              "insert into pipeline_version select org, '{0}' || g, version, source, replace(definition, '\"{0}\"', '\"{0}' "
              "|| g || '\"'), base_dir, applied_at, audit_writer, audit_seq, audit_index from pipeline_version, "
              "generate_series(2, {1}) g where pipeline = '{0}';"
              "insert into schedule (org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, "
              "version, watermark, starts, ends) select org, '{0}' || g, schedule, cron, timezone, catchup, overlap, dst, "
              "misfire_grace_ms, version, watermark, starts, ends from schedule, generate_series(2, {1}) g where "
              "pipeline = '{0}'; analyze;",
              prefix, count));
}

Result<bool> Herd(World& world, PgConnection& db, std::int64_t count, bool both) {
  MILLRACE_TRY_ASSIGN(const std::int64_t now_us,
                      world.Number(db, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint"));
  // The first whole minute that leaves time to make them and to start.
  const WallTime slot = std::chrono::ceil<std::chrono::minutes>(FromUnixMicros(now_us) + 30s);
  MILLRACE_TRY(MakeSchedules(world, db, "herd", count, "* * * * *", ToRfc3339(slot + 30s)));
  MILLRACE_TRY(
      world.Sql(db, fmt::format("update millrace.schedule set watermark = to_timestamp({}) where pipeline like 'herd%'",
                                ToUnixMicros(slot - 1s) / 1'000'000)));
  const OwnerId shared = world.ids.Next<OwnerId>();
  std::array<pid_t, 2> children{};
  for (int i = 0; i < 2; ++i)
    children[static_cast<std::size_t>(i)] = StartScheduler(world, both ? shared : world.ids.Next<OwnerId>(), i);
  std::array<double, 3> late{-1, -1, -1};  // s after the slot when so much was committed
  const std::array<std::int64_t, 3> marks{(count + 1) / 2, (count * 99 + 99) / 100, count};
  double seen = 0;
  while (late[2] < 0 && seen < 180) {
    std::this_thread::sleep_for(100ms);
    MILLRACE_TRY_ASSIGN(const std::int64_t decided,
                        world.Number(db, "select count(*) from millrace.slot where pipeline like 'herd%'"));
    seen = static_cast<double>(duration_cast<Millis>(world.clock.WallNow() - slot).count()) / 1000;
    for (std::size_t m = 0; m < marks.size(); ++m)
      if (late[m] < 0 && decided >= marks[m]) late[m] = seen;
  }
  const Cost cost = Stop(children);
  MILLRACE_TRY_ASSIGN(const std::int64_t slots,
                      world.Number(db, "select count(*) from millrace.slot where pipeline like 'herd%'"));
  MILLRACE_TRY_ASSIGN(
      const std::int64_t runs,
      world.Number(db,
                   "select count(distinct r.pipeline) from millrace.run r join millrace.slot s on s.run = r.run "
                   "join millrace.outbox o on o.item = r.run where r.pipeline like 'herd%'"));
  MILLRACE_TRY_ASSIGN(const std::int64_t all_runs,
                      world.Number(db, "select count(*) from millrace.run where pipeline like 'herd%'"));
  const bool good = slots == count && runs == count && all_runs == count && late[2] >= 0 && late[2] < 60;
  fmt::print(
      "{{\"herd\": {}, \"mode\": \"{}\", \"slots\": {}, \"runs\": {}, \"late_p50_s\": {:.1f}, \"late_p99_s\": {:.1f}, "
      "\"late_max_s\": {:.1f}, \"cpu_s\": {:.1f}, \"rss_mb\": {}, \"exactly_once_within_a_minute\": {}}}\n",
      count, both ? "both" : "lead", slots, all_runs, late[0], late[1], late[2], cost.cpu_s, cost.rss_kb / 1024, good);
  return good;
}

Result<void> Idle(World& world, PgConnection& db, std::int64_t count) {
  MILLRACE_TRY(MakeSchedules(world, db, "idle", count, "0 0 1 1 *", ""));
  const auto commits = [&] {
    return world.Number(db, "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()");
  };
  MILLRACE_TRY_ASSIGN(const std::int64_t before, commits());
  const std::array<pid_t, 2> children{StartScheduler(world, world.ids.Next<OwnerId>(), 0),
                                      StartScheduler(world, world.ids.Next<OwnerId>(), 1)};
  constexpr Millis kFor{20'000};
  std::this_thread::sleep_for(kFor);
  const Cost cost = Stop(children);
  MILLRACE_TRY_ASSIGN(const std::int64_t after, commits());
  const double seconds = static_cast<double>(kFor.count()) / 1000;
  fmt::print(
      "{{\"idle\": {}, \"seconds\": {}, \"cpu_percent_of_both\": {:.2f}, \"rss_mb\": {}, \"transactions_per_s\": {:.1f}}}\n",
      count, seconds, cost.cpu_s / seconds * 100, cost.rss_kb / 1024, static_cast<double>(after - before) / seconds);
  return {};
}

int Main(int argc, char** argv) {
  World world;
  const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
  if (server == nullptr) {
    fmt::print(stderr, "MILLRACE_TEST_POSTGRES is not set\n");
    return 2;
  }
  world.server = server;
  const std::int64_t count = argc > 1 ? std::atoll(argv[1]) : 60'000, idle = argc > 2 ? std::atoll(argv[2]) : 10'000;
  const bool both = argc > 3 && std::string(argv[3]) == "both";
  const auto admin = world.Connect(world.server);
  if (!admin || !world.Sql(*admin, "create database " + world.name)) return 2;
  const auto measure = [&]() -> Result<bool> {
    {
      MILLRACE_TRY_ASSIGN(const auto ledger, world.OpenLedger());
      MILLRACE_TRY(ledger->Migrate(world.In(60s)));
    }
    const auto db = world.Connect(world.dsn());
    if (!db) return Fail(ErrorCode::kUnavailable, "cannot connect");
    if (idle > 0) MILLRACE_TRY(Idle(world, *db, idle));
    return count > 0 ? Herd(world, *db, count, both) : Result<bool>(true);
  };
  const auto good = measure();
  if (!good) fmt::print(stderr, "{}\n", good.error().message);
  (void)world.Sql(*admin, "drop database if exists " + world.name + " with (force)");
  return good && *good ? 0 : 1;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
