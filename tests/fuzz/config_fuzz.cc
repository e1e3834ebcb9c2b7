// Any bytes as a configuration file, as values of keys, and as a DSN or a password in one. What is accepted stays within its
// bounds and is stable: written and read again it is the same; what is refused names its place or its key and shows no secret.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/config/config.h"
#include "tests/fuzz/accepted.h"

namespace {

using namespace millrace;

// A double-quoted YAML scalar in ASCII. REQUIRES: UTF-8, as every accepted file is.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    std::uint32_t point = length == 1 ? lead : lead & (0x7Fu >> length);
    for (std::size_t i = 1; i < length; ++i) {
      MILLRACE_CHECK(at + i < text.size(), "an accepted value is not UTF-8");
      point = point << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
    }
    at += length;
    if (point >= 0x20 && point < 0x7F && point != '"' && point != '\\')
      out += static_cast<char>(point);
    else
      out += fmt::format("\\U{:08X}", point);
  }
  return out + '"';
}

std::string Print(const RawConfig& config) {
  std::string out = "version: 1\n";
  for (const auto& [key, value] : config) {
    std::string list;
    for (const std::string& item : value.items) list += (list.empty() ? "" : ", ") + Quoted(item);
    out += fmt::format("{}: {}\n", key, value.is_list ? "[" + list + "]" : list);
  }
  return out;
}

// A process's configuration with nothing but these values in it: no file is read.
Result<LoadedConfig> Load(const RawConfig& raw) {
  ConfigInputs inputs;
  inputs.working_dir = inputs.system_file = "/nonexistent/millrace-fuzz";
  for (const auto& [key, value] : raw) {
    std::string text;
    for (const std::string& item : value.items) text += (text.empty() ? "" : ",") + item;
    if (text.find("${") == std::string::npos) inputs.flags.emplace_back(key, text);
  }
  return LoadConfig(inputs);
}

bool IsPath(const std::string& path) { return path.starts_with('/') && path.find("//") == std::string::npos; }
bool IsName(const std::string& name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

void CheckBounds(const Config& c) {
  MILLRACE_CHECK(IsPath(c.home) && IsPath(c.lake) && IsPath(c.audit.checkpoint_dir) && IsPath(c.audit.key_file), "paths");
  MILLRACE_CHECK(c.org.value() >= 1, "org");
  MILLRACE_CHECK(!c.ledger.dsn.empty() && (c.ledger.kind == LedgerConfig::Kind::kPostgres || IsPath(c.ledger.dsn.Reveal())),
                 "ledger.dsn");
  MILLRACE_CHECK(c.ledger.retention.count() == 0 || c.ledger.retention >= kRetentionMin, "ledger.retention");
  MILLRACE_CHECK(c.queue.kind == QueueConfig::Kind::kSqlite ? IsPath(c.queue.path) : !c.queue.host.empty() && c.queue.port > 0,
                 "queue");
  MILLRACE_CHECK(!c.queue.prefix.empty(), "queue.prefix");
  MILLRACE_CHECK(IsName(c.broker.name) && IsName(c.worker.name) && IsName(c.scheduler.name), "names");
  MILLRACE_CHECK(c.broker.shards >= 1 && c.broker.shards <= 1024, "broker.shards");
  MILLRACE_CHECK(c.worker.concurrency >= 1 && c.worker.concurrency <= 10'000, "worker.concurrency");
  MILLRACE_CHECK(c.worker.stage_processes <= 256, "worker.stage_processes");
  MILLRACE_CHECK(c.worker.memory_max >= (64u << 20), "worker.memory_max");
  MILLRACE_CHECK(c.worker.drain_timeout >= Millis{0}, "worker.drain_timeout");
  MILLRACE_CHECK(c.scheduler.lead_ttl >= 1s, "scheduler.lead_ttl");
  MILLRACE_CHECK(!c.worker.brokers.empty(), "worker.brokers");
  for (const std::string& broker : c.worker.brokers) MILLRACE_CHECK(broker.starts_with("tcp://"), "worker.brokers");
  MILLRACE_CHECK(c.broker.listen_clients.starts_with("tcp://") && c.broker.listen_workers.starts_with("tcp://"), "listen");
  MILLRACE_CHECK(c.connections.contains("warehouse"), "connections");
  for (const auto& [name, connection] : c.connections)
    MILLRACE_CHECK(!name.empty() && !connection.dsn.empty(), "a connection has a name and a dsn");
}

void CheckFile(std::string_view text) {
  const auto raw = ParseConfigFile("fuzz.yaml", text, "/");
  if (!raw) {
    MILLRACE_CHECK(raw.error().code == (text.size() > kConfigFileBytesMax ? ErrorCode::kLimit : ErrorCode::kInvalidArgument),
                   "how a file is refused");
    MILLRACE_CHECK(raw.error().message.starts_with("fuzz.yaml:"), "a refusal does not say where");
    MILLRACE_CHECK(raw.error().message.size() > sizeof "fuzz.yaml:1:1: ", "a refusal does not say why");
    return;
  }
  ++fuzz::accepted;
  for (const auto& [key, value] : *raw) {
    MILLRACE_CHECK(value.origin.starts_with("fuzz.yaml:") && value.base_dir == "/", "where a value comes from");
    MILLRACE_CHECK(value.is_list || value.items.size() == 1, "a plain value is one");
  }
  const auto again = ParseConfigFile("again.yaml", Print(*raw), "/");
  MILLRACE_CHECK(again.has_value() && std::ranges::equal(*raw, *again,
                                                         [](const auto& a, const auto& b) {
                                                           return a.first == b.first && a.second.items == b.second.items &&
                                                                  a.second.is_list == b.second.is_list;
                                                         }),
                 "what was read, written and read again is another configuration");
  const auto loaded = Load(*raw);
  if (loaded) return CheckBounds(loaded->config);
  MILLRACE_CHECK(loaded.error().code == ErrorCode::kInvalidArgument, "how a value is refused");
  const std::string& message = loaded.error().message;
  MILLRACE_CHECK(std::ranges::any_of(*raw, [&](const auto& value) { return message.find(value.first) != std::string::npos; }),
                 "a refusal does not name the key");
}

void CheckUnits(std::string_view text) {
  const std::string quoted = fmt::format("'{}'", text.substr(0, 64));
  if (const auto duration = ParseDuration(text)) {
    MILLRACE_CHECK(duration->count() >= 0 && *duration <= std::chrono::days{3650}, "a duration has no bounds");
    MILLRACE_CHECK(ParseDuration(fmt::format("{}ms", duration->count())) == *duration, "a duration is not stable");
  } else {
    const std::string& message = duration.error().message;
    MILLRACE_CHECK(duration.error().code == ErrorCode::kInvalidArgument && message.starts_with(quoted) &&
                       (message.contains("30s") || message.ends_with("is longer than 3650d")),
                   "a refused duration is not shown with one that is right, or with the limit");
  }
  if (const auto size = ParseSize(text)) {
    MILLRACE_CHECK(*size <= std::uint64_t{INT64_MAX}, "a size has no bounds");
    MILLRACE_CHECK(ParseSize(fmt::format("{}B", *size)) == *size, "a size is not stable");
  } else {
    const std::string& message = size.error().message;
    MILLRACE_CHECK(size.error().code == ErrorCode::kInvalidArgument && message.starts_with(quoted) &&
                       (message.contains("64MiB") || message.contains("is more than ")),
                   "a refused size is not shown with one that is right, or with the limit");
  }
}

// The text as a password, written as the check demands it: accepted, and never shown.
void CheckPassword(std::string_view text) {
  std::string encoded, escaped;
  for (const char c : text) {
    encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    escaped += (c == '\'' || c == '\\' ? "\\" : "") + std::string(1, c);
  }
  const std::array<std::pair<std::string, std::string>, 3> forms{
      {{"postgres://u:" + encoded + "@h:5432/db?sslmode=require", "postgres://u:***@h:5432/db?sslmode=require"},
       {"postgresql://h/db?user=u&password=" + encoded + "&sslmode=require",
        "postgresql://h/db?user=u&password=***&sslmode=require"},
       {"host=h password='" + escaped + "' user=u", "host=h password=*** user=u"}}};
  for (const auto& [dsn, shown] : forms) {
    MILLRACE_CHECK(CheckPostgresDsn(dsn).has_value(), "a password that is written as it should be is refused");
    MILLRACE_CHECK(RedactDsn(dsn) == shown, "{} is shown as {}", dsn, RedactDsn(dsn));
  }
  const std::string once = RedactDsn(text);
  MILLRACE_CHECK(RedactDsn(once) == once, "what is redacted is not stable");
  if (const auto checked = CheckPostgresDsn(text); !checked)
    MILLRACE_CHECK(checked.error().code == ErrorCode::kInvalidArgument && !checked.error().message.empty(), "a DSN is refused");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  CheckFile(text);
  CheckUnits(text);
  CheckPassword(text);
  return 0;
}
