// A herd of schedules at one minute, decided by two competing scheduler processes on a real PostgreSQL (MILLRACE_TEST_POSTGRES;
// a database of its own, dropped afterwards), and what schedules cost while nothing is due.
//
//   millrace_schedule_herd [SCHEDULES] [IDLE_SCHEDULES] [lead|both] [POSTMASTER_PID]
//
// lead (default): one leads, one stands by, as in production. both: the two share the lease, so that every slot is decided
// twice and only the slot's unique key is left. With MILLRACE_TEST_REDIS a broker runs too, in a process of its own, and
// "queued" says when so many of the runs' jobs were in Redis (its keys are removed afterwards).
//
// Prints JSON: seconds from the slot's instant until half, 99 % and all of the slots were in the ledger ("decided_s", by the
// rows that the schedulers' audit records name, looked at every 20 ms) and of the jobs in Redis ("queued_s"), and until the
// last watermark was moved ("settled_s"); slots and jobs that are lost or doubled; processor seconds of each process from its
// start to the slot's instant ("cpu_ahead_s": schedules are read, runs planned), from there until everything was queued
// ("cpu_queued_s") and until everything was settled ("cpu_s": that of Redis and, given the postmaster's process id, of
// PostgreSQL with all its processes are in it). "asking" in it is what the program's own questions cost PostgreSQL. Exit code
// 1 when a slot is missing, doubled or later than a minute.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/ledger/ledger.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"
#include "common/wire/zmtp_transport.h"
#include "scheduler/scheduler.h"

namespace millrace {
namespace {

using std::chrono::duration_cast;

struct World {
  SystemClock clock;
  SystemRandom random;
  IdGenerator ids{clock, random};
  std::string server, redis, name = "mr_herd_" + std::to_string(getpid());
  long postmaster = 0;

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
  RedisQueueOptions Queue() const {
    RedisQueueOptions options;
    options.endpoint = redis;
    options.prefix = name;
    return options;
  }
  Result<std::unique_ptr<Ledger>> OpenLedger(const std::string& actor) {
    return OpenPostgresLedger(
        {.dsn = dsn(), .clock = &clock, .writer = ids.Next<AuditWriterId>(), .shard_count = 16, .actor = actor}, In(20s));
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
  auto ledger = world.OpenLedger("herd");
  if (!ledger) ::_exit(1);
  LocalInbox nobody;
  std::unique_ptr<Inbox> ring;
  if (!world.redis.empty()) {
    auto opened = OpenRedisInbox(world.Queue());
    if (!opened) ::_exit(1);
    ring = std::move(*opened);
  }
  Inbox& inbox = ring ? *ring : nobody;
  scheduler::Scheduler scheduler({.name = fmt::format("s{}", number),
                                  .id = id,
                                  .lead_ttl = 3000ms,
                                  .shard_count = 16,
                                  .open_ledger = [&] { return world.OpenLedger("herd"); }},
                                 **ledger, inbox, world.clock, world.ids);
  std::thread runner([&] { scheduler.Run(); });
  int signal = 0;
  sigwait(&stop, &signal);
  scheduler.RequestStop();
  runner.join();
  ::_exit(0);
}

// The product's broker in a process of its own, until it gets SIGTERM. No worker: what is queued stays.
pid_t StartBroker(World& world) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  ConfigureLog(LogLevel::kWarn, LogFormat::kJson, "herd");
  BrokerOptions options;
  options.owner = world.ids.Next<OwnerId>();
  options.front_endpoints = {"inproc://front"};
  options.back_endpoints = {"inproc://back"};
  options.shard_count = 16;
  options.clock = &world.clock;
  options.random = &world.random;
  options.make_ledger = [&] { return world.OpenLedger("broker"); };
  options.make_queue = [&]() -> Result<std::unique_ptr<JobQueue>> {
    MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open(world.Queue(), world.In(10s)));
    return std::unique_ptr<JobQueue>(std::move(queue));
  };
  options.make_inbox = [&] { return OpenRedisInbox(world.Queue()); };
  const auto names = wire::MakeLocalNames();
  options.make_transport = [&] { return wire::MakeZmtpTransport(names); };
  Broker broker(std::move(options));
  if (!broker.Start()) ::_exit(1);
  int signal = 0;
  sigwait(&stop, &signal);
  broker.RequestStop();
  broker.Join();
  ::_exit(0);
}

// Seconds of CPU of a process and its children that live.
double CpuSeconds(long pid) {
  double ticks = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(entry.path() / "stat");
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto at = text.rfind(')');
    if (at == std::string::npos) continue;
    std::istringstream rest(text.substr(at + 2));
    std::string state, skip;
    long parent = 0, user = 0, system = 0;
    rest >> state >> parent;
    for (int i = 0; i < 9; ++i) rest >> skip;
    rest >> user >> system;
    if (std::atol(name.c_str()) == pid || parent == pid) ticks += static_cast<double>(user + system);
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

void DropKeys(const World& world) {
  const auto endpoint = redis::ParseEndpoint(world.redis);
  auto connection = redis::Connection::Connect(*endpoint, {}, world.In(20s));
  if (!connection) return;
  const auto keys = connection->Call({"KEYS", "{" + world.name + ":*"}, world.In(20s));
  if (!keys) return;
  const auto names = keys->AsArray("keys");
  if (!names) return;
  for (const auto& key : *names)
    if (const auto name = key.AsString("key")) (void)connection->Call({"UNLINK", *name}, world.In(20s));
}

struct Cost {
  double cpu_s = 0;
  long rss_kb = 0;  // of the larger one
};
Cost Stop(const std::vector<pid_t>& children) {
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

// One pipeline applied as everybody does, the others copied from it. Vacuumed, as a server does that has had them for a while:
// it would begin with that at any moment.
Result<void> MakeSchedules(World& world, PgConnection& db, const std::string& prefix, std::int64_t count,
                           const std::string& cron, const std::string& end, WallTime watermark) {
  const std::string yaml = fmt::format(
      "version: 1\npipeline: {}\nschedule: {{ cron: \"{}\", catchup: all, overlap: allow{} }}\nstages:\n  a: {{ command: "
      "[echo, one] }}\n",
      prefix, cron, end.empty() ? "" : fmt::format(", end: \"{}\"", end));
  const auto parsed = ParsePipeline(yaml, "herd.yaml");
  if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, yaml));
  MILLRACE_TRY_ASSIGN(const auto ledger, world.OpenLedger("bench"));
  MILLRACE_TRY(ledger->ApplyPipeline(*parsed.pipeline, ToJson(*parsed.pipeline), yaml, "/srv", kDefaultOrg, world.In(20s)));
  MILLRACE_TRY(world.Sql(
      db, fmt::format(
              "set search_path = millrace;"
              "update schedule set watermark = to_timestamp({2}) where pipeline = '{0}';"
              "insert into pipeline_version select org, '{0}' || g, version, source, replace(definition, '\"{0}\"', '\"{0}' "
              "|| g || '\"'), base_dir, applied_at, audit_writer, audit_seq, audit_index from pipeline_version, "
              "generate_series(2, {1}) g where pipeline = '{0}';"
              "insert into schedule (org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, "
              "version, watermark, starts, ends) select org, '{0}' || g, schedule, cron, timezone, catchup, overlap, dst, "
              "misfire_grace_ms, version, watermark, starts, ends from schedule, generate_series(2, {1}) g where "
              "pipeline = '{0}'",
              prefix, count, ToUnixMicros(watermark) / 1'000'000)));
  return world.Sql(db, "vacuum analyze");
}

// Processor seconds of everybody at one instant.
struct Cpu {
  double schedulers = 0, broker = 0, redis = 0, postgres = 0, asking = 0;
  double all() const { return schedulers + broker + redis + postgres; }
  Cpu operator-(const Cpu& o) const {
    return {schedulers - o.schedulers, broker - o.broker, redis - o.redis, postgres - o.postgres, asking - o.asking};
  }
  std::string Json() const {
    return fmt::format(
        "{{\"schedulers\": {:.2f}, \"broker\": {:.2f}, \"redis\": {:.2f}, \"postgres\": {:.2f}, \"asking\": {:.2f}, \"all\": "
        "{:.2f}}}",
        schedulers, broker, redis, postgres, asking, all());
  }
};

double OwnCpuSeconds(long pid) {  // of a process without its children
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto at = text.rfind(')');
  if (at == std::string::npos) return 0;
  std::istringstream rest(text.substr(at + 2));
  std::string skip;
  long user = 0, system = 0;
  for (int i = 0; i < 11; ++i) rest >> skip;
  rest >> user >> system;
  return static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

struct Processes {
  std::vector<pid_t> schedulers, brokers;
  long redis = 0, postmaster = 0, asking = 0;  // the backend of our own questions
  Cpu Now() const {
    Cpu cpu;
    for (const pid_t pid : schedulers) cpu.schedulers += OwnCpuSeconds(pid);
    for (const pid_t pid : brokers) cpu.broker += OwnCpuSeconds(pid);
    if (redis > 0) cpu.redis = OwnCpuSeconds(redis);
    if (postmaster > 0) cpu.postgres = CpuSeconds(postmaster);
    cpu.asking = OwnCpuSeconds(asking);
    return cpu;
  }
};

long RedisPid(const World& world) {
  const auto endpoint = redis::ParseEndpoint(world.redis);
  auto connection = redis::Connection::Connect(*endpoint, {}, world.In(20s));
  if (!connection) return 0;
  const auto info = connection->Call({"INFO", "server"}, world.In(20s));
  if (!info) return 0;
  const auto text = info->AsString("info");
  const auto at = text ? text->find("process_id:") : std::string_view::npos;
  return at == std::string_view::npos ? 0 : std::atol(std::string(text->substr(at + 11)).c_str());
}

using Late = std::array<double, 3>;  // s after the slot when half, 99 % and all were there; -1: never
struct Course {
  Late decided{-1, -1, -1}, queued{-1, -1, -1};
  double settled = -1;
  Cpu cpu_ahead, cpu_queued, cpu;
};

// Looks on until everything is queued and settled. A fired slot is three audited rows (slot, run, job), whose leaves its
// transaction's record holds: counting those is one short look, however many slots there are.
Result<Course> Follow(World& world, PgConnection& db, RedisQueue* queue, const Processes& all, const Cpu& start,
                      std::int64_t count, WallTime slot) {
  Course course;
  const std::array<std::int64_t, 3> marks{(count + 1) / 2, (count * 99 + 99) / 100, count};
  const auto since = [&] { return static_cast<double>(duration_cast<Millis>(world.clock.WallNow() - slot).count()) / 1000; };
  const auto note = [&](Late& times, std::int64_t n) {
    for (std::size_t m = 0; m < marks.size(); ++m)
      if (times[m] < 0 && n >= marks[m]) times[m] = since();
  };
  std::this_thread::sleep_until(std::chrono::system_clock::time_point(slot.time_since_epoch()));
  const Cpu before = all.Now();
  course.cpu_ahead = before - start;
  while (course.settled < 0 && since() < 180) {
    std::this_thread::sleep_for(20ms);
    if (course.decided[2] < 0) {
      MILLRACE_TRY_ASSIGN(const std::int64_t leaves,
                          world.Number(db,
                                       "select coalesce(sum(length(leaves)), 0)::bigint / 32 from millrace.audit_record "
                                       "where actor = 'herd'"));
      note(course.decided, leaves / 3);
    }
    if (queue != nullptr && course.queued[2] < 0) {
      MILLRACE_TRY_ASSIGN(const QueueDepth depth, queue->Depth(ShardOf(kDefaultOrg, 16)));
      note(course.queued, static_cast<std::int64_t>(depth.ready));
      if (course.queued[2] >= 0) course.cpu_queued = all.Now() - before;
    }
    if (course.decided[2] < 0 || (queue != nullptr && course.queued[2] < 0)) continue;
    std::this_thread::sleep_for(480ms);
    MILLRACE_TRY_ASSIGN(const std::int64_t behind,
                        world.Number(db, fmt::format("select count(*) from millrace.schedule where pipeline like 'herd%' and "
                                                     "watermark < to_timestamp({})",
                                                     ToUnixMicros(slot) / 1'000'000)));
    if (behind == 0) course.settled = since();
  }
  course.cpu = all.Now() - before;
  return course;
}

std::string CronAt(WallTime slot) {  // once a day
  const std::chrono::hh_mm_ss time(duration_cast<std::chrono::seconds>(slot.time_since_epoch() % std::chrono::days{1}));
  return fmt::format("{} {} {} * * *", time.seconds().count(), time.minutes().count(), time.hours().count());
}

Result<bool> Herd(World& world, PgConnection& db, std::int64_t count, bool both) {
  MILLRACE_TRY_ASSIGN(const std::int64_t now_us,
                      world.Number(db, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint"));
  // A whole second that leaves time to make them and to start.
  const WallTime slot = std::chrono::ceil<std::chrono::seconds>(FromUnixMicros(now_us) + 30s);
  MILLRACE_TRY(MakeSchedules(world, db, "herd", count, CronAt(slot), ToRfc3339(slot + 30s), slot - 1s));
  const OwnerId shared = world.ids.Next<OwnerId>();
  Processes all;
  all.postmaster = world.postmaster;
  if (!world.redis.empty()) all.brokers.push_back(StartBroker(world));
  for (int i = 0; i < 2; ++i) all.schedulers.push_back(StartScheduler(world, both ? shared : world.ids.Next<OwnerId>(), i));
  std::unique_ptr<RedisQueue> queue;
  if (!world.redis.empty()) {
    MILLRACE_TRY_ASSIGN(queue, RedisQueue::Open(world.Queue(), world.In(10s)));
    all.redis = RedisPid(world);
  }
  MILLRACE_TRY_ASSIGN(all.asking, world.Number(db, "select pg_backend_pid()::bigint"));
  Cpu start;  // of Redis and PostgreSQL, which were there before
  start.redis = all.Now().redis;
  start.postgres = all.Now().postgres;
  MILLRACE_TRY_ASSIGN(const Course course, Follow(world, db, queue.get(), all, start, count, slot));
  std::this_thread::sleep_for(500ms);  // who doubles a slot may still be at it
  std::int64_t jobs = count;
  if (queue) {
    MILLRACE_TRY_ASSIGN(const QueueDepth depth, queue->Depth(ShardOf(kDefaultOrg, 16)));
    jobs = static_cast<std::int64_t>(depth.ready);
  }
  const Cost cost = Stop(all.schedulers), broker = Stop(all.brokers);
  MILLRACE_TRY_ASSIGN(const std::int64_t slots,
                      world.Number(db, "select count(*) from millrace.slot where pipeline like 'herd%'"));
  MILLRACE_TRY_ASSIGN(
      const std::int64_t runs,
      world.Number(db,
                   "select count(distinct r.pipeline) from millrace.run r join millrace.slot s on s.run = r.run "
                   "where r.pipeline like 'herd%' and exists (select 1 from millrace.live_run l where l.run = r.run)"));
  MILLRACE_TRY_ASSIGN(const std::int64_t all_runs,
                      world.Number(db, "select count(*) from millrace.run where pipeline like 'herd%'"));
  MILLRACE_TRY_ASSIGN(const std::int64_t outbox,
                      world.Number(db,
                                   "select (select count(*) from millrace.outbox) + (select count(*) from "
                                   "millrace.outbox_batch)"));
  const std::int64_t lost = (count - std::min(count, runs)) + (count - std::min(count, jobs)),
                     doubled = (all_runs - runs) + (std::max(count, jobs) - count);
  const bool good = slots == count && runs == count && lost == 0 && doubled == 0 && course.decided[2] >= 0 &&
                    course.decided[2] < 60 && (!queue || (course.queued[2] >= 0 && outbox == 0));
  const auto late = [](const Late& l) { return fmt::format("[{:.2f}, {:.2f}, {:.2f}]", l[0], l[1], l[2]); };
  fmt::print(
      "{{\"herd\": {}, \"mode\": \"{}\", \"slots\": {}, \"runs\": {}, \"queued\": {}, \"lost\": {}, \"doubled\": {}, "
      "\"decided_s\": {}, \"queued_s\": {}, \"settled_s\": {:.2f}, \"cpu_ahead_s\": {}, \"cpu_queued_s\": {}, \"cpu_s\": {}, "
      "\"rss_mb\": "
      "{{\"scheduler\": {}, \"broker\": {}}}, \"exactly_once_within_a_minute\": {}}}\n",
      count, both ? "both" : "lead", slots, all_runs, jobs, lost, doubled, late(course.decided), late(course.queued),
      course.settled, course.cpu_ahead.Json(), course.cpu_queued.Json(), course.cpu.Json(), cost.rss_kb / 1024,
      broker.rss_kb / 1024, good);
  return good;
}

Result<void> Idle(World& world, PgConnection& db, std::int64_t count) {
  MILLRACE_TRY(MakeSchedules(world, db, "idle", count, "0 0 1 1 *", "", world.clock.WallNow()));
  const auto commits = [&] {
    return world.Number(db, "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()");
  };
  MILLRACE_TRY_ASSIGN(const std::int64_t before, commits());
  const std::vector<pid_t> children{StartScheduler(world, world.ids.Next<OwnerId>(), 0),
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
  if (const char* redis = std::getenv("MILLRACE_TEST_REDIS")) world.redis = redis;
  world.postmaster = argc > 4 ? std::atol(argv[4]) : 0;
  const std::int64_t count = argc > 1 ? std::atoll(argv[1]) : 60'000, idle = argc > 2 ? std::atoll(argv[2]) : 10'000;
  const bool both = argc > 3 && std::string(argv[3]) == "both";
  const auto admin = world.Connect(world.server);
  if (!admin || !world.Sql(*admin, "create database " + world.name)) return 2;
  const auto measure = [&]() -> Result<bool> {
    {
      MILLRACE_TRY_ASSIGN(const auto ledger, world.OpenLedger("bench"));
      MILLRACE_TRY(ledger->Migrate(world.In(60s)));
    }
    const auto db = world.Connect(world.dsn());
    if (!db) return Fail(ErrorCode::kUnavailable, "cannot connect");
    if (idle > 0) MILLRACE_TRY(Idle(world, *db, idle));
    return count > 0 ? Herd(world, *db, count, both) : Result<bool>(true);
  };
  const auto good = measure();
  if (!good) fmt::print(stderr, "{}\n", good.error().message);
  if (!world.redis.empty()) DropKeys(world);
  (void)world.Sql(*admin, "drop database if exists " + world.name + " with (force)");
  return good && *good ? 0 : 1;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
