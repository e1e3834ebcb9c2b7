#include "client/bench/installation.h"

#include <fmt/format.h>
#include <pwd.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "client/bench/line.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/wire/stream_socket.h"

namespace millrace::bench {
namespace {

namespace fs = std::filesystem;

constexpr Millis kServerTimeout{60'000};
constexpr Millis kBrokerTimeout{30'000};
constexpr Millis kLookAgain{20};
constexpr const char* kPostgresUser = "postgres";

std::string FindProgram(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "/usr/bin:/bin" : path;
  while (!rest.empty()) {
    const auto colon = std::min(rest.find(':'), rest.size());
    const std::string candidate = std::string(rest.substr(0, colon)) + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return {};
}

// Debian keeps each version's server programs in a folder of its own; the newest is taken.
std::string FindPostgres() {
  std::error_code ec;
  std::vector<std::pair<int, std::string>> found;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ec))
    if (fs::exists(version.path() / "bin/postgres"))
      found.emplace_back(std::atoi(version.path().filename().c_str()), version.path() / "bin");
  if (!found.empty()) return std::ranges::max(found).second;
  const std::string postgres = FindProgram("postgres");
  return postgres.empty() ? "" : fs::path(postgres).parent_path().string();
}

std::string LastLine(const std::string& path) {
  std::ifstream in(path);
  std::string line, last;
  while (std::getline(in, line))
    if (!line.empty()) last = line;
  return last;
}

// A server that has run for a while writes its log into segments that it has used before; a new one makes each of them, 16 MiB
// of zeros and an fsync, while the transaction that needs it waits (40 to 60 ms here, every 3 s at 5,000 jobs a second). So
// that the figures are those of the former, kLogSegments are made and used first: min_wal_size has the checkpoint keep them.
constexpr int kLogSegments = 64;
constexpr const char* kKeepLogSegments = "min_wal_size=1GB";
static_assert(kLogSegments * 16 == 1024);

// A queue's log is mostly about jobs that are gone: with Redis' own 64mb it is written anew every few seconds.
constexpr const char* kRewriteLogFrom = "1gb";

Result<void> UseLogSegments(PgConnection& connection, MonoTime deadline) {
  MILLRACE_TRY(
      connection.Exec(fmt::format("do $$ begin for i in 1..{} loop perform pg_logical_emit_message(false, 'bench', ''); "
                                  "perform pg_switch_wal(); end loop; end $$",
                                  kLogSegments),
                      deadline));
  return connection.Exec("checkpoint", deadline);
}

}  // namespace

Result<std::string> MakeTemporaryFolder() {
  std::string path = (fs::temp_directory_path() / "millrace-bench.XXXXXX").string();
  if (::mkdtemp(path.data()) == nullptr || ::chmod(path.c_str(), 0755) != 0)
    return Fail(ErrorCode::kUnavailable, "cannot make a temporary folder {}: {}", path, std::strerror(errno));
  return path;
}

Result<void> AwaitBroker(const std::string& endpoint, std::size_t workers, Millis timeout) {
  const SystemClock clock;
  const MonoTime give_up = clock.Now() + timeout;
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(endpoint));
  std::uint64_t request = 0;
  while (clock.Now() < give_up && !Interrupted()) {
    // A broker that is not there yet must not keep the signal handler waiting: look again soon.
    if (auto sent = line.TrySend(wire::Status{.request = ++request}); sent) line.Wait(Millis{200});
    while (true) {
      MILLRACE_TRY_ASSIGN(const auto message, line.Receive());
      if (!message) break;
      const auto* status = std::get_if<wire::StatusReply>(&*message);
      if (status != nullptr && !status->shards.empty() && status->workers.size() >= workers) return {};
    }
    std::this_thread::sleep_for(kLookAgain);
  }
  if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
  return Fail(ErrorCode::kUnavailable, "no broker answers at {}", endpoint);
}

OwnInstallation::Folder::~Folder() {
  std::error_code ec;
  if (!path.empty() && !keep) fs::remove_all(path, ec);
}

OwnInstallation::~OwnInstallation() {
  while (!processes_.empty()) {  // last started, first stopped
    processes_.back().second.Stop();
    processes_.pop_back();
  }
}

std::string OwnInstallation::LastWords(const std::string& name) const { return LastLine(folder_.path + "/" + name + ".log"); }

Result<OwnInstallation> OwnInstallation::Start(const OwnOptions& options) {
  OwnInstallation own;
  MILLRACE_TRY_ASSIGN(own.folder_.path, MakeTemporaryFolder());
  own.folder_.keep = options.keep;
  own.at_.sqlite = options.sqlite;
  if (!options.sqlite) {
    MILLRACE_TRY(own.StartRedis(options));
    MILLRACE_TRY(own.StartPostgres());
  }
  MILLRACE_TRY(own.WriteConfig(options));
  MILLRACE_TRY(own.StartMillrace(options));
  return own;
}

Result<void> OwnInstallation::StartProcess(const std::string& name, std::vector<std::string> argv, int stop_signal,
                                           const std::string& user) {
  MILLRACE_TRY_ASSIGN(auto process, Process::Start({.argv = std::move(argv),
                                                    .log = folder_.path + "/" + name + ".log",
                                                    .out = "",
                                                    .stop_signal = stop_signal,
                                                    .user = user}));
  at_.processes.emplace_back(name, process.pid());
  processes_.emplace_back(name, std::move(process));
  return {};
}

Result<std::uint16_t> OwnInstallation::HoldPort() {
  MILLRACE_TRY_ASSIGN(wire::HeldPort port, wire::HoldPort());
  held_ports_.push_back(std::move(port.fd));
  return port.number;
}

Result<void> OwnInstallation::StartRedis(const OwnOptions& options) {
  const std::string program = FindProgram("redis-server");
  if (program.empty()) return Fail(ErrorCode::kNotFound, "redis-server is not installed: apt-get install redis-server");
  MILLRACE_TRY_ASSIGN(const std::uint16_t port, HoldPort());
  const std::string dir = folder_.path + "/redis";
  fs::create_directory(dir);
  MILLRACE_TRY(
      StartProcess("redis",
                   {program, "--port", std::to_string(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly",
                    "yes", "--appendfsync", options.appendfsync, "--auto-aof-rewrite-min-size", kRewriteLogFrom},
                   SIGTERM, ""));
  at_.redis = fmt::format("127.0.0.1:{}", port);
  MILLRACE_TRY_ASSIGN(const auto endpoint, redis::ParseEndpoint(at_.redis));
  const SystemClock clock;
  for (const MonoTime give_up = clock.Now() + kServerTimeout; !Interrupted();) {
    if (redis::Connection::Connect(endpoint, {}, clock.Now() + Millis{1000})) return {};
    if (!processes_.back().second.Running() || clock.Now() >= give_up)
      return Fail(ErrorCode::kUnavailable, "redis-server does not start: {}", LastWords("redis"));
    std::this_thread::sleep_for(kLookAgain);
  }
  return Fail(ErrorCode::kCancelled, "interrupted");
}

Result<void> OwnInstallation::StartPostgres() {
  const std::string bin = FindPostgres();
  if (bin.empty()) return Fail(ErrorCode::kNotFound, "there is no PostgreSQL server: apt-get install postgresql");
  const std::string user = ::geteuid() == 0 ? kPostgresUser : "", dir = folder_.path + "/postgres", data = dir + "/data";
  fs::create_directory(dir);
  if (!user.empty()) {
    const passwd* entry = ::getpwnam(user.c_str());
    if (entry == nullptr) return Fail(ErrorCode::kNotFound, "PostgreSQL does not run as root, and there is no user '{}'", user);
    if (::chown(dir.c_str(), entry->pw_uid, entry->pw_gid) != 0)
      return Fail(ErrorCode::kUnavailable, "cannot give {} to {}: {}", dir, user, std::strerror(errno));
  }
  const std::string log = folder_.path + "/postgres.log";
  MILLRACE_TRY_ASSIGN(auto initdb, Process::Start({.argv = {bin + "/initdb", "-D", data, "-U", kPostgresUser, "-A", "trust",
                                                            "-E", "UTF8", "--no-locale", "--no-sync"},
                                                   .log = log,
                                                   .out = "",
                                                   .stop_signal = SIGTERM,
                                                   .user = user}));
  if (initdb.Wait(kServerTimeout) != 0) return Fail(ErrorCode::kUnavailable, "initdb failed: {}", LastLine(log));
  MILLRACE_TRY_ASSIGN(const std::uint16_t port, HoldPort());
  std::vector<std::string> argv{bin + "/postgres", "-D", data, "-p", std::to_string(port)};
  for (const std::string& setting : {std::string("listen_addresses=127.0.0.1"), "unix_socket_directories=" + dir,
                                     std::string("max_connections=200"), std::string("shared_buffers=512MB"),
                                     std::string("max_wal_size=8GB"), std::string(kKeepLogSegments), std::string("jit=off")}) {
    argv.emplace_back("-c");
    argv.push_back(setting);
  }
  MILLRACE_TRY(StartProcess("postgres", std::move(argv), SIGINT, user));
  const std::string server = fmt::format("host=127.0.0.1 port={} user={} dbname=", port, kPostgresUser);
  const SystemClock clock;
  for (const MonoTime give_up = clock.Now() + kServerTimeout; !Interrupted();) {
    PgOptions options;
    options.dsn = server + "postgres";
    options.statement_timeout = kServerTimeout;
    if (auto connection = PgConnection::Connect(options, clock, clock.Now() + Millis{1000}); connection) {
      for (const char* database : {"millrace", "warehouse"})
        MILLRACE_TRY((*connection)->Exec(fmt::format("create database {}", database), clock.Now() + kServerTimeout));
      MILLRACE_TRY(UseLogSegments(**connection, clock.Now() + kServerTimeout));
      at_.ledger = server + "millrace";
      return {};
    }
    if (!processes_.back().second.Running() || clock.Now() >= give_up)
      return Fail(ErrorCode::kUnavailable, "PostgreSQL does not start: {}", LastWords("postgres"));
    std::this_thread::sleep_for(kLookAgain);
  }
  return Fail(ErrorCode::kCancelled, "interrupted");
}

Result<void> OwnInstallation::WriteConfig(const OwnOptions& options) {
  MILLRACE_TRY_ASSIGN(const std::uint16_t clients, HoldPort());
  MILLRACE_TRY_ASSIGN(const std::uint16_t workers, HoldPort());
  at_.clients = fmt::format("tcp://127.0.0.1:{}", clients);
  at_.workers = fmt::format("tcp://127.0.0.1:{}", workers);
  const std::string home = folder_.path + "/home";
  if (options.sqlite) {
    at_.ledger = home + "/ledger.db";
    at_.queue_path = home + "/queue.db";
  }
  at_.config = folder_.path + "/millrace.yaml";
  std::ofstream out(at_.config);
  out << fmt::format("version: 1\nhome: {}\nlake: {}/lake\nlog: {{ level: {} }}\n", home, folder_.path, options.log_level);
  if (!options.sqlite) {
    std::string warehouse = at_.ledger;
    warehouse.replace(warehouse.find("dbname=millrace"), std::string::npos, "dbname=warehouse");
    out << fmt::format("ledger: {{ dsn: \"{}\" }}\nqueue: {{ redis: \"{}\" }}\n", at_.ledger, at_.redis)
        << fmt::format("connections:\n  warehouse: {{ type: postgres, dsn: \"{}\" }}\n", warehouse);
  }
  out << fmt::format("broker: {{ listen_clients: \"{}\", listen_workers: \"{}\" }}\n", at_.clients, at_.workers)
      << fmt::format("worker: {{ brokers: [\"{}\"], concurrency: {} }}\n", at_.workers, options.worker_concurrency);
  out.close();
  if (!out) return Fail(ErrorCode::kUnavailable, "cannot write {}", at_.config);
  return {};
}

Result<void> OwnInstallation::StartMillrace(const OwnOptions& options) {
  const std::vector<std::string> millrace{OwnProgram(), "--config", at_.config};
  const auto start = [&](const std::string& name, std::vector<std::string> words) {
    std::vector<std::string> argv = millrace;
    argv.insert(argv.end(), words.begin(), words.end());
    return StartProcess(name, std::move(argv), SIGTERM, "");
  };
  // `millrace broker` refuses SQLite, which only `millrace up` may share: here one process alone uses it.
  MILLRACE_TRY(options.sqlite ? start("broker", {"bench", "serve-broker"}) : start("broker", {"broker"}));
  if (auto ready = AwaitBroker(at_.clients, 0, kBrokerTimeout); !ready)
    return Prefixed(std::move(ready.error()), "{}", LastWords("broker"));
  for (int i = 1; i <= options.workers; ++i)
    MILLRACE_TRY(start(fmt::format("worker-{}", i), {"worker", "--name", fmt::format("worker-{}", i)}));
  if (options.workers > 0) MILLRACE_TRY(AwaitBroker(at_.clients, static_cast<std::size_t>(options.workers), kBrokerTimeout));
  if (options.scheduler) MILLRACE_TRY(start("scheduler", {"scheduler"}));
  return {};
}

}  // namespace millrace::bench
