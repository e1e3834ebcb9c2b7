#include "client/bench/probe.h"

#include <fmt/format.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string_view>

#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/drivers/sqlite.h"

namespace millrace::bench {
namespace {

constexpr Millis kConnectTimeout{10'000};
constexpr Millis kCountTimeout{300'000};  // a count over tens of millions of rows

const SystemClock& TheClock() {
  static const SystemClock clock;
  return clock;
}

Result<std::unique_ptr<PgConnection>> ConnectLedger(const Installation& at) {
  PgOptions options;
  options.dsn = at.ledger;
  options.application_name = "millrace bench";
  options.statement_timeout = kCountTimeout;
  return PgConnection::Connect(options, TheClock(), TheClock().Now() + kConnectTimeout);
}

Result<redis::Connection> ConnectRedis(const Installation& at) {
  MILLRACE_TRY_ASSIGN(const auto endpoint, redis::ParseEndpoint(at.redis));
  return redis::Connection::Connect(endpoint, {}, TheClock().Now() + kConnectTimeout);
}

// The value of one line "key:value" of INFO.
std::string InfoValue(const std::string& info, std::string_view key) {
  const auto at = info.find(std::string(key) + ":");
  if (at == std::string::npos) return {};
  const auto begin = at + key.size() + 1;
  return info.substr(begin, info.find_first_of("\r\n", begin) - begin);
}

std::int64_t FileBytes(const std::string& path) {
  std::int64_t bytes = 0;
  for (const char* suffix : {"", "-wal"}) {
    std::error_code ec;
    const auto size = std::filesystem::file_size(path + suffix, ec);
    if (!ec) bytes += static_cast<std::int64_t>(size);
  }
  return bytes;
}

std::string FirstValue(const char* path, std::string_view key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const auto begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

std::string FilesystemName(std::int64_t type) {
  switch (type) {
    case 0xef53: return "ext4";
    case 0x58465342: return "xfs";
    case 0x9123683e: return "btrfs";
    case 0x01021994: return "tmpfs";
    case 0x794c7630: return "overlay";
    default: return fmt::format("type 0x{:x}", type);
  }
}

}  // namespace

Result<StoreSizes> ProbeSizes(const Installation& at) {
  StoreSizes sizes;
  if (at.sqlite) {
    sizes.queue_bytes = FileBytes(at.queue_path);
    sizes.ledger_bytes = FileBytes(at.ledger);
    return sizes;
  }
  MILLRACE_TRY_ASSIGN(auto redis, ConnectRedis(at));
  MILLRACE_TRY_ASSIGN(const auto info, redis.Call({"INFO", "memory"}, TheClock().Now() + kConnectTimeout));
  sizes.queue_bytes = std::atoll(InfoValue(info.text, "used_memory_dataset").c_str());
  MILLRACE_TRY_ASSIGN(auto ledger, ConnectLedger(at));
  MILLRACE_TRY_ASSIGN(
      const auto rows,
      ledger->QueryOnce("select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c "
                        "join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'millrace' and c.relkind = 'r'",
                        {}, TheClock().Now() + kCountTimeout));
  sizes.ledger_bytes = rows.Int(0, 0);
  return sizes;
}

Result<OutcomeCount> CountOutcomes(const Installation& at, JobId first, JobId last, const std::string& worker) {
  OutcomeCount count;
  if (at.sqlite) {
    MILLRACE_TRY_ASSIGN(auto ledger, sqlite::Database::Open(at.ledger, {.access = sqlite::Access::kReadOnly}));
    MILLRACE_TRY_ASSIGN(auto statement, ledger.Prepare("select count(*), coalesce(sum(state = 10), 0), "
                                                       "coalesce(sum(deliveries > 1), 0) from outcome "
                                                       "where job between ? and ? and substr(worker, 1, ?) = ?"));
    statement.BindAll(sqlite::Blob{first.AsBytes()}, sqlite::Blob{last.AsBytes()}, worker.size(), worker);
    MILLRACE_TRY_ASSIGN(const bool row, statement.Step());
    if (row) count = {.rows = statement.Uint64(0), .succeeded = statement.Uint64(1), .redelivered = statement.Uint64(2)};
    return count;
  }
  MILLRACE_TRY_ASSIGN(auto ledger, ConnectLedger(at));
  PgParams params;
  params.Id(first.uuid).Id(last.uuid).Text(worker);
  MILLRACE_TRY_ASSIGN(const auto rows, ledger->QueryOnce("select count(*), count(*) filter (where state = 10), "
                                                         "count(*) filter (where deliveries > 1) from millrace.outcome "
                                                         "where job between $1 and $2 and starts_with(worker, $3)",
                                                         params, TheClock().Now() + kCountTimeout));
  return OutcomeCount{.rows = static_cast<std::uint64_t>(rows.Int(0, 0)),
                      .succeeded = static_cast<std::uint64_t>(rows.Int(0, 1)),
                      .redelivered = static_cast<std::uint64_t>(rows.Int(0, 2))};
}

Result<RunOutcomeCount> CountRunOutcomes(const Installation& at, std::span<const RunId> runs) {
  RunOutcomeCount count;
  if (at.sqlite) {
    MILLRACE_TRY_ASSIGN(auto ledger, sqlite::Database::Open(at.ledger, {.access = sqlite::Access::kReadOnly}));
    for (const RunId& run : runs) {
      MILLRACE_TRY_ASSIGN(auto statement,
                          ledger.Prepare("select count(*), coalesce(sum(o.state = 10), 0), coalesce(sum(o.deliveries > 1), 0) "
                                         "from job j join outcome o using (job) where j.run = ?"));
      statement.Bind(1, sqlite::Blob{run.AsBytes()});
      MILLRACE_TRY_ASSIGN(const bool row, statement.Step());
      if (!row) continue;
      count.rows += statement.Uint64(0);
      count.succeeded += statement.Uint64(1);
      count.repeated += statement.Uint64(2);
    }
    return count;
  }
  MILLRACE_TRY_ASSIGN(auto ledger, ConnectLedger(at));
  std::vector<Uuid> ids;
  for (const RunId& run : runs) ids.push_back(run.uuid);
  PgParams params;
  params.IdArray(ids);
  MILLRACE_TRY_ASSIGN(
      const auto rows,
      ledger->QueryOnce("select count(*), count(*) filter (where o.state = 10), count(*) filter (where o.deliveries > 1) "
                        "from millrace.job j join millrace.outcome o using (job) where j.run = any($1)",
                        params, TheClock().Now() + kCountTimeout));
  const auto number = [&](int column) { return static_cast<std::uint64_t>(rows.Int(0, column)); };
  return RunOutcomeCount{.rows = number(0), .succeeded = number(1), .repeated = number(2)};
}

Result<std::vector<std::pair<std::string, std::string>>> ProbeServers(const Installation& at) {
  std::vector<std::pair<std::string, std::string>> out;
  if (at.sqlite) {
    out.emplace_back("sqlite", sqlite::LibraryVersion());
    out.emplace_back("ledger_fsync", "WAL, synchronous=FULL");
    return out;
  }
  MILLRACE_TRY_ASSIGN(auto redis, ConnectRedis(at));
  const MonoTime deadline = TheClock().Now() + kConnectTimeout;
  MILLRACE_TRY_ASSIGN(const auto info, redis.Call({"INFO", "everything"}, deadline));
  out.emplace_back("redis", InfoValue(info.text, "redis_version"));
  std::string policy = InfoValue(info.text, "aof_enabled") == "1" ? "AOF" : "no AOF";
  if (const auto config = redis.Call({"CONFIG", "GET", "appendfsync"}, deadline);
      config && policy == "AOF" && config->elements.size() == 2)
    policy += ", appendfsync " + config->elements[1].text;
  out.emplace_back("redis_fsync", policy);
  MILLRACE_TRY_ASSIGN(auto ledger, ConnectLedger(at));
  MILLRACE_TRY_ASSIGN(const auto rows, ledger->QueryOnce("select current_setting('server_version'), current_setting('fsync'), "
                                                         "current_setting('synchronous_commit')",
                                                         {}, deadline));
  out.emplace_back("postgres", rows.Text(0, 0));
  out.emplace_back("ledger_fsync", fmt::format("fsync {}, synchronous_commit {}", rows.Bytes(0, 1), rows.Bytes(0, 2)));
  return out;
}

std::vector<std::pair<std::string, std::string>> ProbeMachine() {
  std::vector<std::pair<std::string, std::string>> out;
  out.emplace_back("cpu", FirstValue("/proc/cpuinfo", "model name"));
  out.emplace_back("cores", std::to_string(::sysconf(_SC_NPROCESSORS_ONLN)));
  const double gib = std::atof(FirstValue("/proc/meminfo", "MemTotal").c_str()) / 1048576;
  out.emplace_back("memory", fmt::format("{:.1f} GiB", gib));
  utsname name{};
  if (::uname(&name) == 0) out.emplace_back("kernel", name.release);
  struct statfs fs{};
  if (::statfs(std::filesystem::temp_directory_path().c_str(), &fs) == 0)
    out.emplace_back("filesystem", FilesystemName(fs.f_type));
  std::ifstream load("/proc/loadavg");
  std::string one, five, fifteen;
  load >> one >> five >> fifteen;
  out.emplace_back("load_before", fmt::format("{} {} {}", one, five, fifteen));
  return out;
}

}  // namespace millrace::bench
