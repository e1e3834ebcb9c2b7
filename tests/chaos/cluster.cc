#include "tests/chaos/cluster.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <pwd.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <utility>

#include "common/drivers/redis.h"
#include "tests/chaos/network_lab.h"

namespace millrace::chaos {
namespace {

namespace fs = std::filesystem;

constexpr Millis kServerStart{30'000};
constexpr Millis kAttempt{3'000};  // of reaching a server that is starting
constexpr Millis kStopTimeout{20'000};
constexpr Millis kSlotsTimeout{60'000};
constexpr Millis kPoll{50};
constexpr std::size_t kLogLines = 8;

const SystemClock& TheClock() {
  static const SystemClock clock;
  return clock;
}

Result<void> WriteFile(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return Fail(ErrorCode::kRejected, "cannot write {}", path);
  return {};
}

std::string EndOf(const std::string& log) {
  std::ifstream file(log);
  std::deque<std::string> last;
  for (std::string line; std::getline(file, line);) {
    last.push_back(line);
    if (last.size() > kLogLines) last.pop_front();
  }
  return fmt::format("{}", fmt::join(last, "\n"));
}

std::uint16_t PortOf(const std::string& endpoint) {
  return static_cast<std::uint16_t>(std::stoul(endpoint.substr(endpoint.rfind(':') + 1)));
}

bool Listens(const std::string& endpoint) {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(PortOf(endpoint));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return fd && ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

std::string PipelineFile(std::string_view name, std::string_view cron, std::string_view overlap, std::string_view load,
                         bool copy) {
  constexpr std::string_view kRetry = "retry: { max_attempts: 50, backoff: 200ms, backoff_max: 1s }";
  return fmt::format(R"(version: 1
pipeline: {0}
schedule: {{ cron: "{1}", timezone: UTC, catchup: all, overlap: {2} }}
stages:
  input:
    extract: {{ from: file, path: rows.csv, columns: {{ id: bigint, name: text, amount: double }}, copy: {5} }}
    {4}
  shaped:
    transform: |
      select id, name, amount * 2 as amount from input where id % 10 <> 0
    {4}
  target:
    load: {{ from: shaped, to: warehouse, {3} }}
    {4}
)",
                     name, cron, overlap, load, kRetry, copy);
}

}  // namespace

Cluster::~Cluster() {
  // Producers of work first, so that nothing complains about servers that are gone. Moved-from: nothing is there.
  for (auto it = members_.rbegin(); it != members_.rend(); ++it) {
    if (it->role == Role::kPostgres) it->process.Signal(SIGQUIT);  // its children end too
    if (it->role == Role::kPostgres) (void)it->process.Wait(kStopTimeout);
    it->process.KillAndReap();
  }
  std::error_code ec;
  if (!keep_ && !dir_.empty()) fs::remove_all(dir_, ec);
}

Result<Cluster> Cluster::Start(const ClusterOptions& options) {
  Cluster cluster;
  cluster.options_ = options;
  std::string pattern = fs::temp_directory_path() / "millrace-chaos-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) return Fail(ErrorCode::kRejected, "cannot make a temporary folder");
  cluster.dir_ = pattern;
  ::chmod(cluster.dir_.c_str(), 0755);
  for (const char* sub : {"logs", "pg", "redis", "files", "lake", "history"}) fs::create_directory(cluster.dir_ + "/" + sub);
  MILLRACE_TRY(cluster.StartPostgres());
  MILLRACE_TRY(cluster.StartRedis());
  MILLRACE_TRY(cluster.CreateTargets());
  MILLRACE_TRY(cluster.WriteFiles());
  MILLRACE_TRY(cluster.StartMembers());
  MILLRACE_TRY(cluster.WaitForWorkers());
  for (const std::string_view name : {kAppendPipeline, kMergePipeline}) {
    MILLRACE_TRY_ASSIGN(const int code,
                        cluster.Run({"pipeline", "apply", fmt::format("{}/files/{}.yaml", cluster.dir_, name)}, kServerStart));
    if (code != 0)
      return Fail(ErrorCode::kRejected, "pipeline apply {}: exit code {}, see {}/logs/cli.log", name, code, cluster.dir_);
  }
  MILLRACE_TRY_ASSIGN(const PgResult now, cluster.AskLedger("select clock_timestamp()"));
  cluster.slots_.from = now.Time(0, 0);
  MILLRACE_TRY(cluster.SlowCommits());
  return cluster;
}

Result<void> Cluster::Launch(Role role, std::string name, std::vector<std::string> argv) {
  ProcessOptions options = role == Role::kPostgres || role == Role::kRedis
                               ? ProcessOptions{.argv = std::move(argv), .env = {}, .log = dir_ + "/logs/" + name + ".log"}
                               : Millrace(name, std::move(argv));
  if (options_.shimmed) {
    MILLRACE_TRY_ASSIGN(auto shim, testing::ShimControl::Make(dir_ + "/shim-" + name));
    for (auto& entry : shim.Env()) options.env.push_back(std::move(entry));
    shims_.emplace(name, std::move(shim));
  }
  MILLRACE_TRY_ASSIGN(options.argv, OnHost(name, std::move(options.argv)));
  MILLRACE_TRY_ASSIGN(TestProcess process, TestProcess::Start(options));
  members_.push_back({role, std::move(name), std::move(options), std::move(process)});
  return WaitUntilItAnswers(members_.back());
}

Result<std::uint16_t> Cluster::TakePort(std::uint64_t salt) {
  if (options_.lab != nullptr) return testing::FreePort(salt);
  MILLRACE_TRY_ASSIGN(wire::HeldPort held, wire::HoldPort());
  ports_.push_back(std::move(held));
  return ports_.back().number;
}

std::vector<std::string> Cluster::EndpointsOf(std::string_view broker) const {
  for (std::size_t i = 0; i < client_endpoints_.size(); ++i)
    if (broker == fmt::format("broker-{}", i + 1)) return {client_endpoints_[i], worker_endpoints_[i]};
  return {};
}

// Ports of a host are published before it starts to listen.
Result<std::vector<std::string>> Cluster::OnHost(const std::string& name, std::vector<std::string> argv) {
  if (options_.lab == nullptr) return argv;
  MILLRACE_TRY(options_.lab->AddHost(name));
  std::vector<std::uint16_t> ports;
  if (name == "postgres") ports = {postgres_port_};
  if (name == "redis") ports = {redis_port_};
  for (const std::string& endpoint : EndpointsOf(name)) ports.push_back(PortOf(endpoint));
  for (const std::uint16_t port : ports) MILLRACE_TRY(options_.lab->Publish(name, port));
  std::vector<std::string> out = options_.lab->On(name);
  out.insert(out.end(), argv.begin(), argv.end());
  return out;
}

Result<void> Cluster::Restart(Member& member) {
  MILLRACE_TRY_ASSIGN(member.process, TestProcess::Start(member.options));
  return WaitUntilItAnswers(member);
}

std::vector<std::string> Cluster::Dead() {
  std::vector<std::string> dead;
  for (Member& member : members_) {
    if (member.stopped || member.process.Running()) continue;
    dead.push_back(fmt::format("{} ended by itself with code {}; its log ends with\n{}", member.name,
                               member.process.Wait(Millis{0}).value_or(-1), EndOf(member.options.log)));
  }
  return dead;
}

Result<void> Cluster::WaitUntilItListens(Member& broker) {
  const MonoTime deadline = TheClock().Now() + kServerStart;
  while (!std::ranges::all_of(EndpointsOf(broker.name), Listens)) {
    if (!broker.process.Running() || TheClock().Now() >= deadline)
      return Fail(ErrorCode::kTimedOut, "{} does not listen; its log ends with\n{}", broker.name, EndOf(broker.options.log));
    testing::SleepFor(kPoll);
  }
  return {};
}

Result<void> Cluster::WaitUntilItAnswers(Member& member) {
  if (member.role == Role::kBroker) return WaitUntilItListens(member);
  if (member.role != Role::kPostgres && member.role != Role::kRedis) return {};
  const MonoTime deadline = TheClock().Now() + kServerStart;
  while (true) {
    const MonoTime attempt = std::min(deadline, TheClock().Now() + kAttempt);
    std::string why;
    if (member.role == Role::kPostgres) {
      PgOptions options;
      options.dsn = fmt::format("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres_port_);
      auto connection = PgConnection::Connect(options, TheClock(), attempt);
      if (connection) return {};
      why = connection.error().message;
    } else {
      redis::Endpoint endpoint;
      endpoint.host = "127.0.0.1";
      endpoint.port = redis_port_;
      auto client = redis::Connection::Connect(endpoint, {}, attempt);
      if (client) {  // while it reads its append-only file, it accepts connections and answers LOADING
        const auto pong = client->Call({"PING"}, attempt);
        if (pong && pong->kind == redis::Reply::Kind::kStatus) return {};
        why = pong ? pong->text : pong.error().message;
      } else {
        why = client.error().message;
      }
    }
    if (TheClock().Now() >= deadline) return Fail(ErrorCode::kTimedOut, "{} does not answer: {}", member.name, why);
    testing::SleepFor(kPoll);
  }
}

Result<void> Cluster::StartPostgres() {
  MILLRACE_TRY_ASSIGN(const std::string bin, testing::PostgresBin());
  const std::string pg = dir_ + "/pg";
  if (::geteuid() == 0) {
    const passwd* user = ::getpwnam("postgres");
    if (user == nullptr || ::chown(pg.c_str(), user->pw_uid, user->pw_gid) != 0)
      return Fail(ErrorCode::kRejected, "there is no user 'postgres'");
  }
  MILLRACE_TRY_ASSIGN(const int code,
                      testing::RunToEnd({.argv = testing::AsPostgres({bin + "/initdb", "-D", pg + "/data", "-U", "postgres",
                                                                      "-A", "trust", "-E", "UTF8", "--no-locale"}),
                                         .env = {},
                                         .log = dir_ + "/logs/initdb.log"},
                                        kServerStart * 2));
  if (code != 0) return Fail(ErrorCode::kRejected, "initdb: exit code {}, see {}/logs/initdb.log", code, dir_);
  if (options_.lab != nullptr) {
    std::ofstream hba(pg + "/data/pg_hba.conf", std::ios::app);
    hba << "host all all 0.0.0.0/0 trust\n";  // inside the lab a peer has its host's address
  }
  MILLRACE_TRY_ASSIGN(postgres_port_, TakePort(options_.seed * 31));
  const auto dsn = [&](std::string_view database) {
    return fmt::format("host=127.0.0.1 port={} user=postgres dbname={}", postgres_port_, database);
  };
  ledger_dsn_ = dsn("millrace");
  warehouse_dsn_ = dsn("warehouse");
  return Launch(
      Role::kPostgres, "postgres",
      testing::AsPostgres({bin + "/postgres", "-D", pg + "/data", "-p", std::to_string(postgres_port_), "-c",
                           "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + pg, "-c", "max_connections=200"}));
}

Result<void> Cluster::StartRedis() {
  MILLRACE_TRY_ASSIGN(redis_port_, TakePort(options_.seed * 31 + 1000));
  return Launch(
      Role::kRedis, "redis",
      {"redis-server", "--port", std::to_string(redis_port_), "--bind", "127.0.0.1", "--dir", dir_ + "/redis", "--save", "",
       "--appendonly", "yes", "--appendfsync", "everysec", "--protected-mode", options_.lab == nullptr ? "yes" : "no"});
}

Result<void> Cluster::Sql(const std::string& dsn, std::string_view sql) {
  PgOptions options;
  options.dsn = dsn;
  const MonoTime deadline = TheClock().Now() + kServerStart;
  MILLRACE_TRY_ASSIGN(const auto connection, PgConnection::Connect(options, TheClock(), deadline));
  return connection->Exec(sql, deadline);
}

Result<PgResult> Cluster::AskLedger(std::string_view sql) {
  PgOptions options;
  options.dsn = ledger_dsn_;
  const MonoTime deadline = TheClock().Now() + kServerStart;
  MILLRACE_TRY_ASSIGN(const auto connection, PgConnection::Connect(options, TheClock(), deadline));
  return connection->QueryOnce(sql, {}, deadline);
}

Result<void> Cluster::CreateTargets() {
  const std::string postgres = fmt::format("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres_port_);
  MILLRACE_TRY(Sql(postgres, "create database millrace"));
  MILLRACE_TRY(Sql(postgres, "create database warehouse"));
  // The append target has no unique key: nothing but the effect's receipt keeps rows from coming twice.
  MILLRACE_TRY(Sql(warehouse_dsn_,
                   "create schema wh;"
                   "create table wh.appended (id bigint, name text, amount double precision,"
                   " _millrace_effect text, _millrace_token bigint);"
                   "create table wh.merged (id bigint primary key, name text, amount double precision);"
                   "create function wh.wait() returns trigger language plpgsql as"
                   " $$ begin perform pg_sleep(tg_argv[0]::float8); return null; end $$"));
  if (!options_.slow_target) return {};
  return Sql(warehouse_dsn_,
             "create trigger slow after insert on wh.appended for each statement execute function wh.wait('0.5');"
             "create trigger slow after insert on wh.merged for each statement execute function wh.wait('0.5')");
}

// The product makes its tables at the first load.
Result<void> Cluster::SlowCommits() {
  std::string sql =
      "create constraint trigger slow_commit after insert on millrace.receipt deferrable initially deferred"
      " for each row execute function wh.wait('0.25')";
  if (options_.slow_target)
    sql += "; create trigger slow after insert on millrace.receipt for each statement execute function wh.wait('0.25')";
  const MonoTime deadline = TheClock().Now() + kServerStart;
  while (true) {
    auto done = Sql(warehouse_dsn_, sql);
    if (done || TheClock().Now() >= deadline) return done;
    testing::SleepFor(kPoll);
  }
}

Result<void> Cluster::WriteFiles() {
  std::string rows = "id,name,amount\n";
  for (int i = 1; i <= kInputRows; ++i) rows += fmt::format("{},name {},{}.5\n", i, i, i);
  MILLRACE_TRY(WriteFile(dir_ + "/files/rows.csv", rows));
  MILLRACE_TRY(WriteFile(fmt::format("{}/files/{}.yaml", dir_, kAppendPipeline),
                         PipelineFile(kAppendPipeline, kAppendCron, "allow",
                                      "table: wh.appended, mode: append, provenance: true", options_.copy)));
  MILLRACE_TRY(
      WriteFile(fmt::format("{}/files/{}.yaml", dir_, kMergePipeline),
                PipelineFile(kMergePipeline, kMergeCron, "queue", "table: wh.merged, mode: merge, key: [id]", options_.copy)));
  for (std::uint64_t i = 0; i < 2; ++i) {
    MILLRACE_TRY_ASSIGN(const std::uint16_t clients, TakePort(options_.seed * 31 + 2000 + 100 * i));
    MILLRACE_TRY_ASSIGN(const std::uint16_t workers, TakePort(options_.seed * 31 + 3000 + 100 * i));
    client_endpoints_.push_back(fmt::format("tcp://127.0.0.1:{}", clients));
    worker_endpoints_.push_back(fmt::format("tcp://127.0.0.1:{}", workers));
  }
  return WriteConfig();
}

Result<std::uint16_t> Cluster::ProxyTo(std::uint16_t port) {
  if (!options_.proxied) return port;
  MILLRACE_TRY_ASSIGN(auto proxy, testing::TcpProxy::Start({.upstream_port = port, .seed = options_.seed}));
  const std::uint16_t instead = proxy->port();
  if (options_.lab != nullptr) MILLRACE_TRY(options_.lab->PublishOwn(instead));
  proxies_.push_back(std::move(proxy));
  return instead;
}

Result<void> Cluster::WriteConfig() {
  MILLRACE_TRY_ASSIGN(const std::uint16_t postgres, ProxyTo(postgres_port_));
  MILLRACE_TRY_ASSIGN(const std::uint16_t redis, ProxyTo(redis_port_));
  std::vector<std::string> brokers;
  for (const std::string& endpoint : worker_endpoints_) {
    MILLRACE_TRY_ASSIGN(const std::uint16_t instead, ProxyTo(PortOf(endpoint)));
    brokers.push_back(fmt::format("tcp://127.0.0.1:{}", instead));
  }
  const auto dsn = [&](std::string_view database) {
    return fmt::format("host=127.0.0.1 port={} user=postgres dbname={}", postgres, database);
  };
  return WriteFile(dir_ + "/millrace.yaml", fmt::format(R"(version: 1
home: {0}/home
lake: {0}/lake
log: {{ format: text }}
ledger: {{ dsn: "{1}" }}
queue: {{ redis: "127.0.0.1:{2}" }}
broker: {{ listen_clients: "{3}", listen_workers: "{4}" }}
worker: {{ brokers: ["{5}", "{6}"], concurrency: 8 }}
scheduler: {{ lead_ttl: 2s }}
audit: {{ checkpoint_dir: {0}/checkpoints, key_file: {0}/audit.key }}
connections:
  warehouse: {{ type: postgres, dsn: "{7}" }}
)",
                                                        dir_, dsn("millrace"), redis, client_endpoints_[0],
                                                        worker_endpoints_[0], brokers[0], brokers[1], dsn("warehouse")));
}

ProcessOptions Cluster::Millrace(const std::string& name, std::vector<std::string> arguments) const {
  std::vector<std::string> argv{options_.bin + "/millrace", "--config", dir_ + "/millrace.yaml"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  ProcessOptions options{.argv = std::move(argv), .env = {}, .log = fmt::format("{}/logs/{}.log", dir_, name)};
  options.env.emplace_back("MILLRACE_HISTORY", history());
  if (!options_.failpoints.empty()) {
    options.env.emplace_back("MILLRACE_FAILPOINTS", options_.failpoints);
    options.env.emplace_back("MILLRACE_FAILPOINT_SEED", std::to_string(options_.seed));
  }
  return options;
}

Result<void> Cluster::StartMembers() {
  for (std::size_t i = 0; i < 2; ++i) {
    MILLRACE_TRY(
        Launch(Role::kBroker, fmt::format("broker-{}", i + 1),
               {"--set", "broker.listen_clients=" + client_endpoints_[i], "--set",
                "broker.listen_workers=" + worker_endpoints_[i], "broker", "--name", fmt::format("broker-{}", i + 1)}));
    if (i > 0) continue;
    // The first one alone creates the schema, the audit key and takes the shards.
    const MonoTime deadline = TheClock().Now() + kServerStart;
    while (true) {
      MILLRACE_TRY_ASSIGN(const int code, Run({"status"}, kServerStart));
      if (code == 0) break;
      if (TheClock().Now() >= deadline)
        return Fail(ErrorCode::kTimedOut, "the first broker does not answer; see {}/logs", dir_);
      testing::SleepFor(kPoll);
    }
  }
  for (const int i : {1, 2}) {
    const std::string worker = fmt::format("worker-{}", i), scheduler = fmt::format("scheduler-{}", i);
    MILLRACE_TRY(Launch(Role::kWorker, worker, {"worker", "--name", worker}));
    MILLRACE_TRY(Launch(Role::kScheduler, scheduler, {"scheduler", "--name", scheduler}));
  }
  return {};
}

Result<void> Cluster::WaitForWorkers() {
  const MonoTime deadline = TheClock().Now() + kServerStart;
  while (TheClock().Now() < deadline) {
    const std::string both = "\"$0\" --config \"$1\" status -o json | grep -c '\"worker-' | grep -q 2";
    MILLRACE_TRY_ASSIGN(const int code,
                        testing::RunToEnd({.argv = {"sh", "-c", both, options_.bin + "/millrace", dir_ + "/millrace.yaml"},
                                           .env = {},
                                           .log = dir_ + "/logs/cli.log"},
                                          kServerStart));
    if (code == 0) return {};
    testing::SleepFor(kPoll);
  }
  return Fail(ErrorCode::kTimedOut, "the workers did not connect; see {}/logs", dir_);
}

std::vector<Member*> Cluster::OfRole(Role role) {
  std::vector<Member*> found;
  for (Member& member : members_)
    if (member.role == role) found.push_back(&member);
  return found;
}

Result<redis::Connection> Cluster::ConnectToRedis() const {
  redis::Endpoint endpoint;
  endpoint.host = "127.0.0.1";
  endpoint.port = redis_port_;
  return redis::Connection::Connect(endpoint, {}, TheClock().Now() + kServerStart);
}

Result<std::string> Cluster::AskRedis(std::initializer_list<std::string_view> command) {
  MILLRACE_TRY_ASSIGN(redis::Connection client, ConnectToRedis());
  MILLRACE_TRY_ASSIGN(const redis::Reply reply, client.Call(command, TheClock().Now() + kServerStart));
  return reply.text;
}

Result<void> Cluster::WaitForSlots() {
  MILLRACE_TRY_ASSIGN(const PgResult now, AskLedger("select clock_timestamp()"));
  const WallTime to = now.Time(0, 0);
  const std::string behind = fmt::format(
      "select pipeline from millrace.schedule s where not exists (select 1 from millrace.slot x where x.org = s.org"
      " and x.pipeline = s.pipeline and x.schedule = s.schedule and x.slot > '{}')",
      ToRfc3339(to));
  for (const MonoTime deadline = TheClock().Now() + kSlotsTimeout;; testing::SleepFor(kPoll)) {
    MILLRACE_TRY_ASSIGN(const PgResult late, AskLedger(behind));
    if (late.rows() == 0) break;
    if (TheClock().Now() >= deadline)
      return Fail(ErrorCode::kTimedOut, "no slot of {} after {} was decided within {} s", late.Text(0, 0), ToRfc3339(to),
                  kSlotsTimeout.count() / 1000);
  }
  slots_.to = to;
  return {};
}

void Cluster::StepServersClock(Millis offset) {
  // What it says until it was set back, and before that for as long as the step is wide.
  clock_steps_.from = std::min(clock_steps_.from, TheClock().WallNow() + std::min(offset, Millis{0}));
  shims_.at("postgres").StepClockTo(offset);
  clock_steps_.to = std::max(clock_steps_.to, TheClock().WallNow() + std::max(clock_offset_, Millis{0}));
  clock_offset_ = offset;
  clock_least_ = std::min(clock_least_, offset);
  clock_most_ = std::max(clock_most_, offset);
  clock_steps_.back = clock_most_ - clock_least_;
}

Result<void> Cluster::FlushRedis() {
  MILLRACE_TRY_ASSIGN(redis::Connection client, ConnectToRedis());
  MILLRACE_TRY_ASSIGN(const redis::Reply reply, client.Call({"FLUSHALL"}, TheClock().Now() + kServerStart));
  return reply.AsOk("FLUSHALL");
}

Result<void> Cluster::LimitRedis(unsigned percent) {
  MILLRACE_TRY_ASSIGN(redis::Connection client, ConnectToRedis());
  const MonoTime deadline = TheClock().Now() + kServerStart;
  MILLRACE_TRY_ASSIGN(const redis::Reply info, client.Call({"INFO", "memory"}, deadline));
  MILLRACE_TRY_ASSIGN(const std::string_view text, info.AsString("INFO"));
  constexpr std::string_view kUsed = "used_memory:";
  const auto at = text.find(kUsed);
  if (at == std::string_view::npos) return Fail(ErrorCode::kCorrupt, "INFO memory does not say used_memory");
  const std::uint64_t used = std::strtoull(std::string(text.substr(at + kUsed.size(), 20)).c_str(), nullptr, 10);
  const std::string limit = std::to_string(used / 100 * percent);
  MILLRACE_TRY_ASSIGN(const redis::Reply reply, client.Call({"CONFIG", "SET", "maxmemory", limit}, deadline));
  return reply.AsOk("CONFIG SET");
}

Result<void> Cluster::StopSchedulers() {
  Result<void> flows = WaitForSlots();
  for (Member* scheduler : OfRole(Role::kScheduler)) {
    // One that was restarted a moment ago may still be on its way to where it takes its signals.
    const MonoTime ready_by = TheClock().Now() + kStopTimeout;
    while (!scheduler->process.Blocks(SIGTERM) && TheClock().Now() < ready_by) testing::SleepFor(kPoll);
    if (!scheduler->process.Running()) continue;  // Dead tells
    scheduler->process.Signal(SIGTERM);
    const auto code = scheduler->process.Wait(kStopTimeout);
    if (!code || *code != 0)
      return Fail(ErrorCode::kRejected, "{} did not end well after SIGTERM: {}", scheduler->name,
                  code ? fmt::format("exit code {}", *code) : "still running");
    scheduler->stopped = true;
  }
  return flows;
}

Result<int> Cluster::Run(std::vector<std::string> arguments, Millis timeout) {
  ProcessOptions options = Millrace("cli", std::move(arguments));
  std::erase_if(options.env, [](const auto& entry) { return entry.first != "MILLRACE_HISTORY"; });
  return testing::RunToEnd(options, timeout);
}

}  // namespace millrace::chaos
