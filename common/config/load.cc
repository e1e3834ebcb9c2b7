#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <span>
#include <thread>

#include "common/base/limits.h"
#include "common/config/config.h"
#include "common/config/keys.h"

extern char** environ;

namespace millrace {
namespace {

using config_detail::FindKey;
using config_detail::UnknownKey;
namespace fs = std::filesystem;

constexpr std::size_t kReferencedFileBytesMax = 64u << 10;

Result<std::string> ReadWholeFile(const std::string& path, std::size_t bytes_max) {
  std::ifstream in(path, std::ios::binary);
  std::error_code failed;
  if (!in || fs::is_directory(path, failed)) return Fail(ErrorCode::kNotFound, "cannot read {}", path);
  std::string text(bytes_max + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > bytes_max) return Fail(ErrorCode::kLimit, "{} is larger than {} bytes", path, bytes_max);
  return text;
}

std::string Absolute(const std::string& path, const std::string& base) {
  return (fs::path(path).is_absolute() ? fs::path(path) : fs::path(base) / path).lexically_normal().string();
}

std::string WithoutAlias(std::string endpoint) {
  constexpr std::string_view kAlias = "tcp://localhost:";
  return endpoint.starts_with(kAlias) ? endpoint.replace(0, kAlias.size(), "tcp://127.0.0.1:") : endpoint;
}

std::vector<std::string> SplitList(std::string_view text) {
  std::vector<std::string> items;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    items.emplace_back(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return items;
}

class Loader {
 public:
  explicit Loader(const ConfigInputs& inputs) : in_(inputs) {}

  Result<LoadedConfig> Load() {
    MILLRACE_TRY(ReadFiles());
    MILLRACE_TRY(ReadEnvironment());
    for (const auto& [key, value] : in_.flags) MILLRACE_TRY(Put(key, value, "flag"));
    MILLRACE_TRY(ResolveHome());
    MILLRACE_TRY(ResolveStores());
    MILLRACE_TRY(ResolveProcesses());
    MILLRACE_TRY(ResolveConnections());
    std::ranges::sort(out_.values, {}, &ConfigValue::key);
    return std::move(out_);
  }

 private:
  std::string Env(const std::string& name) const {
    const auto found = in_.env.find(name);
    return found == in_.env.end() ? "" : found->second;
  }

  // ---- layers, lowest first: each overwrites what is below it ----------------------------------------------------------
  Result<void> ReadFiles() {
    MILLRACE_TRY(ReadFile(in_.system_file, in_.system_file, false));
    std::string user = Env("XDG_CONFIG_HOME");
    if (user.empty() && !Env("HOME").empty()) user = Env("HOME") + "/.config";
    if (!user.empty()) MILLRACE_TRY(ReadFile(user + "/millrace/config.yaml", user + "/millrace/config.yaml", false));
    if (in_.file) return ReadFile(*in_.file, Absolute(*in_.file, in_.working_dir), true);
    return ReadFile("millrace.yaml", in_.working_dir + "/millrace.yaml", false);
  }

  Result<void> ReadFile(const std::string& name, const std::string& path, bool must_exist) {
    std::error_code failed;
    if (!must_exist && !fs::exists(path, failed)) return {};
    MILLRACE_TRY_ASSIGN(const std::string text, ReadWholeFile(path, kConfigFileBytesMax));
    MILLRACE_TRY_ASSIGN(RawConfig layer, ParseConfigFile(name, text, fs::path(path).parent_path().string()));
    for (auto& [key, value] : layer) raw_.insert_or_assign(key, std::move(value));
    return {};
  }

  Result<void> ReadEnvironment() {
    for (const auto& [name, value] : in_.env) {
      if (!name.starts_with("MILLRACE_")) continue;
      if (name != "MILLRACE_HOME" && name.find("__") == std::string::npos && name != "MILLRACE_LAKE" && name != "MILLRACE_ORG")
        continue;
      std::string key;
      for (std::size_t i = 9; i < name.size(); ++i) {
        const bool separator = name.compare(i, 2, "__") == 0;
        key += separator ? '.' : name[i] >= 'A' && name[i] <= 'Z' ? static_cast<char>(name[i] - 'A' + 'a') : name[i];
        if (separator) ++i;
      }
      MILLRACE_TRY(Put(key, value, "env " + name));
    }
    return {};
  }

  Result<void> Put(const std::string& name, const std::string& value, std::string origin) {
    const auto key = FindKey(name);
    if (!key) return Fail(ErrorCode::kInvalidArgument, "{}: {}", origin, UnknownKey(name));
    auto items = key->is_list ? SplitList(value) : std::vector{value};
    raw_.insert_or_assign(name, RawConfigValue{std::move(items), key->is_list, std::move(origin), in_.working_dir});
    return {};
  }

  // ---- one value -------------------------------------------------------------------------------------------------------
  template <class... Args>
  std::unexpected<Error> Wrong(const std::string& key, fmt::format_string<Args...> format, Args&&... args) const {
    const auto raw = raw_.find(key);
    return Fail(ErrorCode::kInvalidArgument, "{}: {}: {}", raw == raw_.end() ? "default" : raw->second.origin, key,
                fmt::format(format, std::forward<Args>(args)...));
  }

  // A value as a message may repeat it: what ${...} stands for may be secret, whatever the key, so the reference is shown.
  std::string Quoted(const std::string& key, const std::string& text) const {
    const auto raw = raw_.find(key);
    if (raw == raw_.end()) return text;
    const auto& items = raw->second.items;
    const auto reference =
        std::ranges::find_if(items, [](const std::string& item) { return item.find("${") != std::string::npos; });
    return reference == items.end() ? text : *reference;
  }

  Result<std::string> Expand(const std::string& key, const std::string& text, const std::string& base_dir) const {
    std::string out;
    std::size_t at = 0;
    while (true) {
      const std::size_t start = text.find("${", at);
      out.append(text, at, start == std::string::npos ? std::string::npos : start - at);
      if (start == std::string::npos) return out;
      const std::size_t end = text.find('}', start);
      if (end == std::string::npos) return Wrong(key, "a '${{' without its '}}'");
      const std::string reference = text.substr(start + 2, end - start - 2);
      if (reference.starts_with("env:")) {
        const auto found = in_.env.find(reference.substr(4));
        if (found == in_.env.end()) return Wrong(key, "environment variable {} is not set", reference.substr(4));
        out += found->second;
      } else if (reference.starts_with("file:")) {
        auto content = ReadWholeFile(Absolute(reference.substr(5), base_dir), kReferencedFileBytesMax);
        if (!content) return Wrong(key, "{}", content.error().message);
        while (!content->empty() && (content->back() == '\n' || content->back() == '\r')) content->pop_back();
        out += *content;
      } else {
        const auto known = FindKey(key);
        return Wrong(key, "'${{{}}}' is neither ${{env:NAME}} nor ${{file:PATH}}",
                     known && known->is_secret ? "..." : reference);
      }
      at = end + 1;
    }
  }

  void Show(const std::string& key, const std::string& fallback) {
    const auto raw = raw_.find(key);
    if (raw == raw_.end()) {
      out_.values.push_back({key, fallback, "default"});
      return;
    }
    const auto known = FindKey(key);
    std::string shown;
    for (const std::string& item : raw->second.items) {
      if (!shown.empty()) shown += ", ";
      shown += known && known->is_secret ? RedactDsn(item) : item;
    }
    out_.values.push_back({key, std::move(shown), raw->second.origin});
  }

  Result<std::string> Text(const std::string& key, std::string fallback) {
    Show(key, fallback);
    const auto raw = raw_.find(key);
    if (raw == raw_.end()) return fallback;
    MILLRACE_TRY_ASSIGN(std::string text, Expand(key, raw->second.items.front(), raw->second.base_dir));
    if (text.empty()) return Wrong(key, "is empty; give a value, or leave it out for the default");
    return text;
  }
  Result<std::vector<std::string>> List(const std::string& key, const std::vector<std::string>& fallback) {
    Show(key, fmt::format("{}", fmt::join(fallback, ", ")));
    const auto raw = raw_.find(key);
    if (raw == raw_.end()) return fallback;
    std::vector<std::string> items;
    for (const std::string& item : raw->second.items) {
      MILLRACE_TRY_ASSIGN(std::string text, Expand(key, item, raw->second.base_dir));
      if (text.empty()) return Wrong(key, "has an empty item; leave it out");
      items.push_back(std::move(text));
    }
    return items;
  }
  // Of a process, as it stands in logs, records and on the wire.
  Result<std::string> Name(const std::string& key, std::string fallback) {
    fallback.resize(std::min(fallback.size(), kNameBytesMax));
    MILLRACE_TRY_ASSIGN(std::string text, Text(key, std::move(fallback)));
    if (text.size() > kNameBytesMax) return Wrong(key, "has {} bytes; the limit is {}", text.size(), kNameBytesMax);
    if (std::ranges::any_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }))
      return Wrong(key, "has a control character in it");
    return text;
  }
  Result<void> CheckPostgres(const std::string& key, const std::string& dsn) const {
    if (const auto checked = CheckPostgresDsn(dsn); !checked) return Wrong(key, "{}", checked.error().message);
    return {};
  }
  std::string BaseOf(const std::string& key) const {
    const auto raw = raw_.find(key);
    return raw == raw_.end() ? in_.working_dir : raw->second.base_dir;
  }
  Result<std::string> Path(const std::string& key, const std::string& fallback) {
    MILLRACE_TRY_ASSIGN(const std::string text, Text(key, fallback));
    return Absolute(text, BaseOf(key));
  }
  Result<std::uint32_t> Number(const std::string& key, std::uint32_t fallback, std::uint32_t min, std::uint32_t max) {
    MILLRACE_TRY_ASSIGN(const std::string text, Text(key, std::to_string(fallback)));
    std::uint32_t number = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed != std::errc{} || end != text.data() + text.size() || number < min || number > max)
      return Wrong(key, "'{}' is not an integer in [{}, {}]", Quoted(key, text), min, max);
    return number;
  }
  Result<OrgId> Org(const std::string& key) {
    MILLRACE_TRY_ASSIGN(const std::string text, Text(key, std::to_string(kDefaultOrg.value())));
    std::int64_t number = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed != std::errc{} || end != text.data() + text.size() || number < 1)
      return Wrong(key, "'{}' is no org; give an integer in [1, {}]", Quoted(key, text),
                   std::numeric_limits<std::int64_t>::max());
    return OrgId{number};
  }
  Result<std::size_t> OneOf(const std::string& key, std::span<const std::string_view> words, std::size_t fallback) {
    MILLRACE_TRY_ASSIGN(const std::string text, Text(key, std::string(words[fallback])));
    for (std::size_t i = 0; i < words.size(); ++i)
      if (words[i] == text) return i;
    return Wrong(key, "'{}' is not one of {}", Quoted(key, text), fmt::join(words, ", "));
  }
  Result<Millis> Duration(const std::string& key, const std::string& fallback, Millis min = Millis{0}) {
    MILLRACE_TRY_ASSIGN(const std::string text, Text(key, fallback));
    auto duration = ParseDuration(text);
    if (!duration) return Wrong(key, "{}", ParseDuration(Quoted(key, text)).error().message);
    if (*duration < min) return Wrong(key, "'{}' is below {}s", Quoted(key, text), min.count() / 1000);
    return *duration;
  }
  Result<void> CheckEndpoint(const std::string& key, const std::string& text) const {
    if (!text.starts_with("tcp://")) return Wrong(key, "'{}' is not an endpoint like tcp://127.0.0.1:7410", Quoted(key, text));
    const std::size_t colon = text.rfind(':');
    const std::string host = colon > 6 ? text.substr(6, colon - 6) : "";
    unsigned port = 0;
    const char* const last = text.data() + text.size();
    const auto [end, failed] = std::from_chars(text.data() + colon + 1, last, port);
    if (host.empty() || failed != std::errc{} || end != last || port == 0 || port > 65535)
      return Wrong(key, "'{}' is not an endpoint like tcp://127.0.0.1:7410", Quoted(key, text));
    const auto in_127 = [](std::string_view h) {
      return h.starts_with("127.") && h.find_first_not_of("0123456789.") == std::string_view::npos;
    };
    if (!in_127(host) && host != "localhost" && host != "[::1]")
      return Wrong(key, "'{}' is not a loopback address; that needs CURVE, which this version does not have",
                   Quoted(key, text));
    return {};
  }
  Result<std::string> Endpoint(const std::string& key, const std::string& fallback) {
    MILLRACE_TRY_ASSIGN(std::string text, Text(key, fallback));
    MILLRACE_TRY(CheckEndpoint(key, text));
    return text;
  }

  // ---- sections --------------------------------------------------------------------------------------------------------
  Result<void> ResolveHome() {
    Config& c = out_.config;
    MILLRACE_TRY_ASSIGN(c.home, Path("home", Absolute(".millrace", in_.working_dir)));
    MILLRACE_TRY_ASSIGN(c.org, Org("org"));
    constexpr std::string_view kLevels[] = {"debug", "info", "warn", "error", "off"};
    constexpr std::string_view kFormats[] = {"auto", "text", "json"};
    MILLRACE_TRY_ASSIGN(const std::size_t level, OneOf("log.level", kLevels, 1));
    c.log_level = static_cast<LogLevel>(level);
    MILLRACE_TRY_ASSIGN(const std::size_t format, OneOf("log.format", kFormats, 0));
    c.log_format = static_cast<LogFormat>(format);
    MILLRACE_TRY_ASSIGN(c.lake, Path("lake", c.home + "/lake"));
    MILLRACE_TRY_ASSIGN(c.audit.checkpoint_dir, Path("audit.checkpoint_dir", c.home + "/checkpoints"));
    MILLRACE_TRY_ASSIGN(c.audit.key_file, Path("audit.key_file", c.home + "/audit.key"));
    return {};
  }

  Result<void> ResolveStores() {
    Config& c = out_.config;
    MILLRACE_TRY_ASSIGN(std::string dsn, Text("ledger.dsn", c.home + "/ledger.db"));
    const bool postgres = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://") ||
                          (dsn.find('=') != std::string::npos && !dsn.starts_with('/'));
    if (postgres) MILLRACE_TRY(CheckPostgres("ledger.dsn", dsn));
    c.ledger.kind = postgres ? LedgerConfig::Kind::kPostgres : LedgerConfig::Kind::kSqlite;
    c.ledger.dsn = Secret(postgres ? std::move(dsn) : Absolute(dsn, BaseOf("ledger.dsn")));
    MILLRACE_TRY_ASSIGN(c.ledger.retention, Duration("ledger.retention", "0s"));
    if (c.ledger.retention > Millis{0} && c.ledger.retention < kRetentionMin)
      return Wrong("ledger.retention", "'{}' is below 1d; give at least 1d, or 0s to keep everything",
                   Quoted("ledger.retention", raw_.at("ledger.retention").items.front()));
    MILLRACE_TRY_ASSIGN(const std::string bytes, Text("ledger.retention_bytes", "0B"));
    const auto size = ParseSize(bytes);
    if (!size) return Wrong("ledger.retention_bytes", "{}", ParseSize(Quoted("ledger.retention_bytes", bytes)).error().message);
    c.ledger.retention_bytes = *size;
    c.queue.path = c.home + "/queue.db";
    MILLRACE_TRY_ASSIGN(c.queue.prefix, Text("queue.prefix", "mr"));
    if (raw_.contains("queue.redis")) {
      MILLRACE_TRY_ASSIGN(std::string redis, Text("queue.redis", ""));
      return ResolveRedis(std::move(redis));
    }
    out_.values.push_back({"queue.redis", "(none: " + c.queue.path + ")", "default"});
    return {};
  }

  // host:port, or redis://[user]:[password]@host[:port][/database]. No message repeats the text: it may hold the password.
  Result<void> ResolveRedis(std::string text) {
    QueueConfig& q = out_.config.queue;
    q.kind = QueueConfig::Kind::kRedis;
    const auto number = [](std::string_view digits, std::uint16_t& out) {
      const auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
      return failed == std::errc{} && end == digits.data() + digits.size();
    };
    const auto bad = [&] {
      return Wrong("queue.redis", "is neither HOST:PORT nor redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]");
    };
    const bool uri = text.starts_with("redis://");
    std::string rest = uri ? text.substr(8) : text;
    WipeMemory(text.data(), text.size());
    if (!uri && rest.find('@') != std::string::npos)
      return Wrong("queue.redis", "a user or password is only taken as redis://USER:PASSWORD@HOST:PORT");
    if (const std::size_t at = rest.rfind('@'); uri && at != std::string::npos) {
      const std::size_t colon = rest.find(':');
      if (colon >= at) return bad();
      q.user = rest.substr(0, colon);
      q.password = Secret(rest.substr(colon + 1, at - colon - 1));
      WipeMemory(rest.data(), at);
      rest.erase(0, at + 1);
    }
    if (const std::size_t slash = rest.find('/'); slash != std::string::npos) {
      if (!uri || !number(std::string_view(rest).substr(slash + 1), q.database)) return bad();
      rest.resize(slash);
    }
    const std::size_t colon = rest.rfind(':');
    if (colon == std::string::npos && !uri) return bad();
    if (colon != std::string::npos && (!number(std::string_view(rest).substr(colon + 1), q.port) || q.port == 0)) return bad();
    q.host = rest.substr(0, colon);
    if (q.host.empty()) return bad();
    return {};
  }

  Result<void> ResolveProcesses() {
    Config& c = out_.config;
    MILLRACE_TRY_ASSIGN(c.broker.name, Name("broker.name", "broker-" + in_.host));
    MILLRACE_TRY_ASSIGN(c.broker.listen_clients, Endpoint("broker.listen_clients", "tcp://127.0.0.1:7410"));
    MILLRACE_TRY_ASSIGN(c.broker.listen_workers, Endpoint("broker.listen_workers", "tcp://127.0.0.1:7411"));
    if (WithoutAlias(c.broker.listen_clients) == WithoutAlias(c.broker.listen_workers)) {
      const bool workers = raw_.contains("broker.listen_workers");
      const std::string key = workers ? "broker.listen_workers" : "broker.listen_clients";
      return Wrong(key, "'{}' is also broker.listen_{}; give each a port of its own",
                   Quoted(key, workers ? c.broker.listen_workers : c.broker.listen_clients), workers ? "clients" : "workers");
    }
    const bool embedded = c.ledger.kind == LedgerConfig::Kind::kSqlite;
    MILLRACE_TRY_ASSIGN(const std::uint32_t shards,
                        Number("broker.shards", embedded ? kShardCountEmbedded : kShardCountDistributed, 1, 1024));
    c.broker.shards = static_cast<std::uint16_t>(shards);
    MILLRACE_TRY_ASSIGN(c.worker.name, Name("worker.name", "worker-" + in_.host));
    MILLRACE_TRY_ASSIGN(c.worker.brokers, List("worker.brokers", {"tcp://127.0.0.1:7411"}));
    if (c.worker.brokers.empty()) return Wrong("worker.brokers", "must name at least one broker, like tcp://127.0.0.1:7411");
    for (const std::string& broker : c.worker.brokers) MILLRACE_TRY(CheckEndpoint("worker.brokers", broker));
    MILLRACE_TRY_ASSIGN(c.worker.concurrency, Number("worker.concurrency", std::max(in_.cores, 1u), 1, 10'000));
    MILLRACE_TRY_ASSIGN(c.worker.queues, List("worker.queues", {}));
    MILLRACE_TRY_ASSIGN(c.worker.roots, List("worker.roots", {}));
    MILLRACE_TRY_ASSIGN(c.worker.drain_timeout, Duration("worker.drain_timeout", "30s"));
    MILLRACE_TRY_ASSIGN(c.worker.stage_processes, Number("worker.stage_processes", 3, 0, 256));
    MILLRACE_TRY_ASSIGN(const std::string memory, Text("worker.memory_max", "2GiB"));
    const auto bytes = ParseSize(memory);
    if (!bytes) return Wrong("worker.memory_max", "{}", ParseSize(Quoted("worker.memory_max", memory)).error().message);
    if (*bytes < (64u << 20)) return Wrong("worker.memory_max", "'{}' is below 64MiB", Quoted("worker.memory_max", memory));
    c.worker.memory_max = *bytes;
    constexpr std::string_view kSwitch[] = {"off", "on"};
    MILLRACE_TRY_ASSIGN(const std::size_t sandbox, OneOf("worker.sandbox", kSwitch, 1));
    c.worker.sandbox = sandbox == 1;
    MILLRACE_TRY_ASSIGN(c.scheduler.name, Name("scheduler.name", "scheduler-" + in_.host));
    MILLRACE_TRY_ASSIGN(c.scheduler.lead_ttl, Duration("scheduler.lead_ttl", "5s", 1s));
    return {};
  }

  Result<void> ResolveConnections() {
    std::vector<std::string> names;
    for (const auto& [key, value] : raw_)
      if (key.starts_with("connections.")) names.push_back(key.substr(12, key.rfind('.') - 12));
    names.erase(std::unique(names.begin(), names.end()), names.end());  // sorted with their keys
    if (std::ranges::find(names, "warehouse") == names.end()) names.emplace_back("warehouse");
    constexpr std::string_view kTypes[] = {"sqlite", "postgres"};
    for (const std::string& name : names) {
      const std::string type_key = "connections." + name + ".type", dsn_key = "connections." + name + ".dsn";
      ConnectionConfig connection;
      MILLRACE_TRY_ASSIGN(const std::size_t type, OneOf(type_key, kTypes, 0));
      const bool sqlite = type == 0;
      connection.type = sqlite ? LedgerConfig::Kind::kSqlite : LedgerConfig::Kind::kPostgres;
      if (!raw_.contains(dsn_key) && !(sqlite && name == "warehouse"))
        return Wrong(type_key, "connection '{}' has no dsn; set {}", name, dsn_key);
      MILLRACE_TRY_ASSIGN(std::string dsn, Text(dsn_key, out_.config.home + "/" + name + ".db"));
      if (!sqlite) MILLRACE_TRY(CheckPostgres(dsn_key, dsn));
      connection.dsn = Secret(sqlite ? Absolute(dsn, BaseOf(dsn_key)) : std::move(dsn));
      out_.config.connections.emplace(name, std::move(connection));
    }
    return {};
  }

  const ConfigInputs& in_;
  RawConfig raw_;
  LoadedConfig out_;
};

}  // namespace

Result<LoadedConfig> LoadConfig(const ConfigInputs& inputs) { return Loader(inputs).Load(); }

ConfigInputs ConfigInputsOfProcess() {
  ConfigInputs inputs;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (const std::size_t equals = text.find('='); equals != std::string_view::npos)
      inputs.env.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  std::error_code failed;
  inputs.working_dir = fs::current_path(failed).string();
  char host[256] = {};
  if (gethostname(host, sizeof host - 1) == 0 && host[0] != '\0') inputs.host = host;
  inputs.cores = std::max(1u, std::thread::hardware_concurrency());
  return inputs;
}

}  // namespace millrace
