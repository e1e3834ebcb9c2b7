#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/base/suggest.h"
#include "common/config/config.h"

namespace millrace {
namespace {

template <class T>
concept Formattable = fmt::is_formattable<T>::value;
template <class T>
concept Streamable = requires(std::ostream& out, const T& value) { out << value; };
static_assert(!Formattable<Secret> && !Streamable<Secret> && !std::is_convertible_v<Secret, std::string>);

ConfigInputs Inputs() {
  ConfigInputs inputs;
  inputs.working_dir = "/nowhere";
  inputs.system_file = "/nowhere/system.yaml";
  inputs.host = "h";
  inputs.cores = 3;
  return inputs;
}

std::string ShownOf(const LoadedConfig& loaded, std::string_view key) {
  for (const ConfigValue& v : loaded.values)
    if (v.key == key) return v.shown + " | " + v.origin;
  return "(absent)";
}

TEST(SecretTest, RevealsOnRequestAndComparesByValue) {
  std::string plain = "hunter2";
  Secret secret(std::move(plain));
  EXPECT_TRUE(plain.empty());  // NOLINT: the contract says so
  EXPECT_EQ(secret.Reveal(), "hunter2");
  const Secret moved = std::move(secret);
  EXPECT_TRUE(secret.empty());  // NOLINT
  EXPECT_TRUE(moved == Secret::CopyOf("hunter2"));
  EXPECT_FALSE(moved == Secret::CopyOf("hunter3"));
}

TEST(SuggestTest, FindsTheNearestOrNothing) {
  const std::string_view names[] = {"extract", "transform", "load"};
  EXPECT_EQ(Suggest("extarct", names), "extract");
  EXPECT_EQ(Suggest("Laod", names), "load");
  EXPECT_EQ(Suggest("zebra", names), std::nullopt);
  EXPECT_EQ(Suggest("", names), std::nullopt);
}

TEST(ConfigTest, DefaultsDeriveFromHome) {
  ConfigInputs in = Inputs();
  in.env["MILLRACE_HOME"] = "/h";
  const auto c = LoadConfig(in);
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->config.ledger.dsn.Reveal(), "/h/ledger.db");
  EXPECT_EQ(c->config.queue.path, "/h/queue.db");
  EXPECT_EQ(c->config.lake, "/h/lake");
  EXPECT_EQ(c->config.connections.at("warehouse").dsn.Reveal(), "/h/warehouse.db");
  EXPECT_EQ(c->config.audit.checkpoint_dir, "/h/checkpoints");
  EXPECT_EQ(c->config.worker.concurrency, 3u);
  EXPECT_EQ(c->config.broker.shards, 1);
  EXPECT_EQ(LoadConfig(Inputs())->config.home, "/nowhere/.millrace");
}

TEST(ConfigTest, FlagBeatsEnvironmentBeatsFileAndSecretsAreRedacted) {
  const auto dir = std::filesystem::temp_directory_path() / ("millrace-config-" + std::to_string(getpid()));
  std::filesystem::create_directories(dir);
  std::ofstream(dir / "millrace.yaml") << "version: 1\nlog:\n  level: warn\n  format: json\nworker:\n  queues: [a, b]\n"
                                          "  name: ${env:WHO}\nlake: data\nqueue:\n  redis: redis://u:pw@r:1/2\n";
  ConfigInputs in = Inputs();
  in.working_dir = dir.string();
  in.env = {{"MILLRACE_LOG__LEVEL", "error"}, {"WHO", "w9"}, {"MILLRACE_LEDGER__DSN", "host=x password=topsecret"}};
  in.flags = {{"log.level", "debug"}};
  const auto c = LoadConfig(in);
  std::filesystem::remove_all(dir);
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->config.log_level, LogLevel::kDebug);
  EXPECT_EQ(c->config.log_format, LogFormat::kJson);
  EXPECT_EQ(c->config.worker.queues, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(c->config.worker.name, "w9");
  EXPECT_EQ(c->config.lake, (dir / "data").string());
  EXPECT_EQ(c->config.queue.password.Reveal(), "pw");
  EXPECT_EQ(c->config.queue.port, 1);
  EXPECT_EQ(c->config.queue.database, 2);
  EXPECT_EQ(c->config.ledger.kind, LedgerConfig::Kind::kPostgres);
  EXPECT_EQ(ShownOf(*c, "log.format"), "json | millrace.yaml:4:3");
  EXPECT_EQ(ShownOf(*c, "log.level"), "debug | flag");
  EXPECT_EQ(ShownOf(*c, "ledger.dsn"), "host=x password=*** | env MILLRACE_LEDGER__DSN");
  EXPECT_EQ(ShownOf(*c, "queue.redis"), "redis://u:***@r:1/2 | millrace.yaml:10:3");
}

TEST(ConfigTest, WrongValuesNameOriginKeyAndFix) {
  const struct { const char *key, *value, *message; } kTable[] = {
      {"log.level", "loud", "flag: log.level: 'loud' is not one of debug, info, warn, error, off"},
      {"log.levle", "x", "flag: unknown key 'log.levle'; did you mean 'log.level'?"},
      {"worker.concurrency", "-1", "flag: worker.concurrency: '-1' is not an integer in [1, 10000]"},
      {"worker.drain_timeout", "30", "flag: worker.drain_timeout: '30' is not a duration like 500ms, 30s, 5m, 2h or 7d"},
      {"worker.memory_max", "64MB", "flag: worker.memory_max: '64MB' is not a size like 512KiB, 64MiB or 2GiB"},
      {"broker.listen_clients", "tcp://0.0.0.0:7410",
       "flag: broker.listen_clients: 'tcp://0.0.0.0:7410' is not a loopback address; that needs CURVE, which this version does not have"},
      {"broker.listen_clients", "tcp://x", "flag: broker.listen_clients: 'tcp://x' is not an endpoint like tcp://127.0.0.1:7410"},
      {"lake", "${env:NOPE}", "flag: lake: environment variable NOPE is not set"},
      {"connections.dw.type", "postgres", "flag: connections.dw.type: connection 'dw' has no dsn; set connections.dw.dsn"},
  };
  for (const auto& [key, value, message] : kTable) {
    ConfigInputs in = Inputs();
    in.flags = {{key, value}};
    const auto c = LoadConfig(in);
    ASSERT_FALSE(c) << key;
    EXPECT_EQ(c.error().message, message);
  }
}

TEST(ConfigTest, FilesAreStrictAndErrorsSayWhere) {
  const struct { const char *text, *message; } kTable[] = {
      {"version: 1\nlogg: {level: info}\n", "f:2:1: unknown key 'logg'; did you mean 'log'?"},
      {"version: 1\nlog:\n  levle: info\n", "f:3:3: unknown key 'log.levle'; did you mean 'log.level'?"},
      {"version: 1\nlake: a\nlake: b\n", "f:3:1: duplicate key 'lake'"},
      {"version: 1\nlake: [a]\n", "f:2:1: 'lake' must be a single value"},
      {"version: 1\nworker:\n  queues: a\n", "f:3:3: 'worker.queues' must be a list"},
      {"version: 2\n", "f:1:1: version must be 1"},
      {"lake: a\n", "f:1:1: the first key must be 'version: 1'"},
      {"", "f:1:1: the file is empty; it needs 'version: 1'"},
  };
  for (const auto& [text, message] : kTable) {
    const auto raw = ParseConfigFile("f", text, "/");
    ASSERT_FALSE(raw) << text;
    EXPECT_EQ(raw.error().message, message);
  }
  EXPECT_FALSE(ParseConfigFile("f", "version: 1\nlog: {level: [", "/"));
}

}  // namespace
}  // namespace millrace
