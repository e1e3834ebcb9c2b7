#include "common/config/keys.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/base/suggest.h"

namespace millrace::config_detail {
namespace {

constexpr Key kKeys[] = {
    {"audit.checkpoint_dir"},
    {"audit.key_file"},
    {"broker.listen_clients"},
    {"broker.listen_workers"},
    {"broker.name"},
    {"broker.shards"},
    {"home"},
    {"lake"},
    {"ledger.dsn", false, true},
    {"ledger.retention"},
    {"ledger.retention_bytes"},
    {"log.format"},
    {"log.level"},
    {"org"},
    {"queue.prefix"},
    {"queue.redis", false, true},
    {"scheduler.lead_ttl"},
    {"scheduler.name"},
    {"worker.brokers", true},
    {"worker.concurrency"},
    {"worker.drain_timeout"},
    {"worker.memory_max"},
    {"worker.name"},
    {"worker.queues", true},
    {"worker.roots", true},
    {"worker.sandbox"},
    {"worker.stage_processes"},
};
constexpr std::string_view kConnections = "connections";
constexpr std::size_t kConnectionNameBytesMax = 64;

bool IsConnectionName(std::string_view name) {
  return !name.empty() && name.size() <= kConnectionNameBytesMax && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

// What is wrong with a key of a connection: the connection's name, or what is asked of it.
std::string OfConnection(std::string_view rest) {
  const std::size_t dot = rest.rfind('.');
  const std::string_view name = rest.substr(0, dot);
  if (!IsConnectionName(name))
    return fmt::format("; the name of a connection has 1 to {} of the characters a-z, 0-9, _ and -, not '{}'",
                       kConnectionNameBytesMax, name.substr(0, 128));
  constexpr std::string_view kFields[] = {"type", "dsn"};
  const auto near = dot == rest.npos ? std::nullopt : Suggest(rest.substr(dot + 1), kFields);
  return near ? fmt::format("; did you mean 'connections.{}.{}'?", name, *near)
              : fmt::format("; a connection has connections.{0}.type and connections.{0}.dsn", name);
}

}  // namespace

std::span<const Key> Keys() { return kKeys; }

std::optional<Key> FindKey(std::string_view name) {
  for (const Key& key : kKeys)
    if (key.name == name) return key;
  if (!name.starts_with("connections.")) return std::nullopt;
  const std::size_t dot = name.rfind('.');
  const std::string_view connection = name.substr(0, dot).substr(std::min(dot, kConnections.size() + 1));
  const std::string_view field = name.substr(dot + 1);
  if (!IsConnectionName(connection)) return std::nullopt;
  if (field == "type") return Key{name};
  if (field == "dsn") return Key{name, false, true};
  return std::nullopt;
}

bool IsSection(std::string_view name) {
  if (name == kConnections) return true;
  if (name.starts_with("connections.")) return IsConnectionName(name.substr(kConnections.size() + 1));
  return std::ranges::any_of(kKeys, [&](const Key& key) {
    return key.name.size() > name.size() && key.name.starts_with(name) && key.name[name.size()] == '.';
  });
}

std::string UnknownKey(std::string_view name) {
  std::vector<std::string_view> candidates;
  for (const Key& key : kKeys) candidates.push_back(key.name);
  for (const std::string_view section :
       {"version", "audit", "broker", "connections", "ledger", "log", "queue", "scheduler", "worker"})
    candidates.push_back(section);
  std::string text = fmt::format("unknown key '{}'", name.substr(0, 128));
  if (name.starts_with("connections.")) return text + OfConnection(name.substr(kConnections.size() + 1));
  if (const auto near = Suggest(name, candidates)) text += fmt::format("; did you mean '{}'?", *near);
  return text;
}

}  // namespace millrace::config_detail
