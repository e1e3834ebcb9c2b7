// Typed configuration of every process. Precedence: flags > environment (MILLRACE_SECTION__KEY) > project file (--config or
// ./millrace.yaml) > user file > system file > defaults. Every key, default and name: ops/docs/configuration.md.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/base/result.h"
#include "common/base/secret.h"

namespace millrace {

inline constexpr std::size_t kConfigFileBytesMax = 1u << 20;

struct LedgerConfig {
  enum class Kind : std::uint8_t { kSqlite, kPostgres };
  Kind kind = Kind::kSqlite;
  Secret dsn;                         // postgres: conninfo or URI; sqlite: absolute path
  Millis retention{0};                // finished runs and jobs go after it; 0 = never
  std::uint64_t retention_bytes = 0;  // the oldest weeks go while the rest takes more; 0 = no limit
};
struct QueueConfig {
  enum class Kind : std::uint8_t { kSqlite, kRedis };
  Kind kind = Kind::kSqlite;
  std::string path;  // sqlite: <home>/queue.db
  std::string host;  // redis
  std::uint16_t port = 6379;
  std::uint16_t database = 0;
  std::string user;    // empty: the default user
  Secret password;     // empty: none
  std::string prefix;  // of every key
};
struct BrokerConfig {
  std::string name, listen_clients, listen_workers;
  std::uint16_t shards = 1;
};
struct WorkerConfig {
  std::string name;
  std::vector<std::string> brokers, queues, roots;
  std::uint32_t concurrency = 1, stage_processes = 1;
  Millis drain_timeout{};
  std::uint64_t memory_max = 0;  // bytes, of one stage process
  bool sandbox = true;
};
struct SchedulerConfig {
  std::string name;
  Millis lead_ttl{};
};
struct AuditConfig {
  std::string checkpoint_dir, key_file;
};
struct ConnectionConfig {
  LedgerConfig::Kind type = LedgerConfig::Kind::kSqlite;
  Secret dsn;
};
struct Config {
  std::string home;         // absolute, as are all paths below
  OrgId org = kDefaultOrg;  // whom commands speak for; processes serve all of them
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kAuto;
  LedgerConfig ledger;
  QueueConfig queue;
  BrokerConfig broker;
  WorkerConfig worker;
  std::string lake;
  SchedulerConfig scheduler;
  AuditConfig audit;
  std::map<std::string, ConnectionConfig> connections;  // always holds `warehouse`
};

// What `config show --origin` prints.
struct ConfigValue {
  std::string key;
  std::string shown;   // secrets are redacted; a value with ${...} is shown unresolved
  std::string origin;  // "millrace.yaml:4:3", "env MILLRACE_LOG__LEVEL", "flag", "default"
};
struct LoadedConfig {
  Config config;
  std::vector<ConfigValue> values;  // in key order
};

// Everything a load depends on, so that it is a function of its arguments and the files they name.
struct ConfigInputs {
  std::vector<std::pair<std::string, std::string>> flags;  // key, value; the last of one key wins
  std::map<std::string, std::string> env;
  std::optional<std::string> file;  // --config: must exist; otherwise <working_dir>/millrace.yaml if there is one
  std::string working_dir;          // absolute
  std::string system_file = "/etc/millrace/config.yaml";
  std::string host = "localhost";  // the default of the names
  std::uint32_t cores = 1;
};
// Environment, folder, host name and cores of this process. Call before threads start.
ConfigInputs ConfigInputsOfProcess();

// kInvalidArgument names the origin, the key, the value and the fix; kNotFound: --config names no file. Thread-safe.
Result<LoadedConfig> LoadConfig(const ConfigInputs& inputs);

// One configuration file, checked for form and keys but not resolved. `name` is what errors call it. For tools and fuzzing.
struct RawConfigValue {
  std::vector<std::string> items;  // one for a scalar
  bool is_list = false;
  std::string origin;
  std::string base_dir;  // relative paths start here
};
using RawConfig = std::map<std::string, RawConfigValue>;
Result<RawConfig> ParseConfigFile(std::string_view name, std::string_view text, const std::string& base_dir);

// Strict: digits and one unit, nothing else. ms, s, m, h, d / B, KiB, MiB, GiB, TiB. Errors quote the text.
Result<Millis> ParseDuration(std::string_view text);
Result<std::uint64_t> ParseSize(std::string_view text);
// A DSN without its password, for people: URI user info and `password=` values become ***. Where it is in doubt which part is
// the password (an '@' too many, a word without '='), everything from where it begins. Thread-safe.
std::string RedactDsn(std::string_view dsn);
// Refuses (kInvalidArgument) what libpq would take apart in another way than it was meant: a password whose special characters
// are not percent-encoded, or with a space and no quotes. The message has no part of the text. Thread-safe.
Result<void> CheckPostgresDsn(std::string_view dsn);

}  // namespace millrace
