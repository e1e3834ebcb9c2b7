#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
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
  const struct {
    const char *key, *value, *message;
  } kTable[] = {
      {"log.level", "loud", "flag: log.level: 'loud' is not one of debug, info, warn, error, off"},
      {"log.levle", "x", "flag: unknown key 'log.levle'; did you mean 'log.level'?"},
      {"worker.concurrency", "-1", "flag: worker.concurrency: '-1' is not an integer in [1, 10000]"},
      {"worker.drain_timeout", "30", "flag: worker.drain_timeout: '30' is not a duration like 500ms, 30s, 5m, 2h or 7d"},
      {"worker.memory_max", "64MB", "flag: worker.memory_max: '64MB' is not a size like 512KiB, 64MiB or 2GiB"},
      {"broker.listen_clients", "tcp://0.0.0.0:7410",
       "flag: broker.listen_clients: 'tcp://0.0.0.0:7410' is not a loopback address; that needs CURVE, which this version does "
       "not have"},
      {"broker.listen_clients", "tcp://x",
       "flag: broker.listen_clients: 'tcp://x' is not an endpoint like tcp://127.0.0.1:7410"},
      {"broker.listen_clients", "tcp://127.0.0.1:7411",
       "flag: broker.listen_clients: 'tcp://127.0.0.1:7411' is also broker.listen_workers; give each a port of its own"},
      {"broker.listen_workers", "tcp://localhost:7410",
       "flag: broker.listen_workers: 'tcp://localhost:7410' is also broker.listen_clients; give each a port of its own"},
      {"scheduler.lead_ttl", "999ms", "flag: scheduler.lead_ttl: '999ms' is below 1s"},
      {"ledger.retention", "12h", "flag: ledger.retention: '12h' is below 1d; give at least 1d, or 0s to keep everything"},
      {"worker.drain_timeout", "3651d", "flag: worker.drain_timeout: '3651d' is longer than 3650d"},
      {"worker.drain_timeout", "99999999999999999999s",
       "flag: worker.drain_timeout: '99999999999999999999s' is longer than 3650d"},
      {"worker.memory_max", "9999999TiB", "flag: worker.memory_max: '9999999TiB' is more than 9223372036854775807B"},
      {"connections.W.type", "sqlite",
       "flag: unknown key 'connections.W.type'; the name of a connection has 1 to 64 of the characters a-z, 0-9, _ and -, not "
       "'W'"},
      {"connections.dw", "x",
       "flag: unknown key 'connections.dw'; a connection has connections.dw.type and connections.dw.dsn"},
      {"lake", "", "flag: lake: is empty; give a value, or leave it out for the default"},
      {"org", "0", "flag: org: '0' is no org; give an integer in [1, 9223372036854775807]"},
      {"org", "7x", "flag: org: '7x' is no org; give an integer in [1, 9223372036854775807]"},
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

TEST(ConfigTest, TheOrgIsAKeyLikeAnyOther) {
  ConfigInputs in = Inputs();
  EXPECT_EQ(LoadConfig(in)->config.org, kDefaultOrg);
  in.env["MILLRACE_ORG"] = "9223372036854775807";
  EXPECT_EQ(LoadConfig(in)->config.org, OrgId{INT64_MAX});
  in.flags = {{"org", "7"}};
  const auto c = LoadConfig(in);
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->config.org, OrgId{7});
  EXPECT_EQ(ShownOf(*c, "org"), "7 | flag");
}

TEST(ConfigTest, NamesFitWhereTheyGo) {
  ConfigInputs in = Inputs();
  in.flags = {{"worker.name", std::string(129, 'w')}};
  EXPECT_EQ(LoadConfig(in).error().message, "flag: worker.name: has 129 bytes; the limit is 128");
  in.flags = {{"broker.name", "a\nb"}};
  EXPECT_EQ(LoadConfig(in).error().message, "flag: broker.name: has a control character in it");
  in.flags.clear();
  in.host = std::string(250, 'h');
  const auto c = LoadConfig(in);
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->config.scheduler.name.size(), 128u);
}

TEST(ConfigTest, APasswordWithoutItsSchemeIsRefusedAndNotShown) {
  ConfigInputs in = Inputs();
  in.flags = {{"queue.redis", "u:hunter2@h:1"}};
  const auto c = LoadConfig(in);
  ASSERT_FALSE(c);
  EXPECT_EQ(c.error().message, "flag: queue.redis: a user or password is only taken as redis://USER:PASSWORD@HOST:PORT");
  EXPECT_EQ(RedactDsn("u:hunter2@h:1"), "***@h:1");
}

TEST(ConfigTest, ShardsFollowTheLedger) {
  ConfigInputs in = Inputs();
  in.flags = {{"queue.redis", "127.0.0.1:1"}};
  EXPECT_EQ(LoadConfig(in)->config.broker.shards, 1);
  in.flags.emplace_back("ledger.dsn", "postgresql://h/d");
  EXPECT_EQ(LoadConfig(in)->config.broker.shards, 16);
}

TEST(ConfigTest, FilesAreStrictAndErrorsSayWhere) {
  const struct {
    const char *text, *message;
  } kTable[] = {
      {"version: 1\nlogg: {level: info}\n", "f:2:1: unknown key 'logg'; did you mean 'log'?"},
      {"version: 1\nlog:\n  levle: info\n", "f:3:3: unknown key 'log.levle'; did you mean 'log.level'?"},
      {"version: 1\nlake: a\nlake: b\n", "f:3:1: duplicate key 'lake'; it is already given in line 2"},
      {"version: 1\nlake: [a]\n", "f:2:1: 'lake' must be a single value"},
      {"version: 1\nworker:\n  queues: a\n", "f:3:3: 'worker.queues' must be a list; write [a, b]"},
      {"version: 2\n", "f:1:1: version must be 1, not '2'"},
      {"version: 1\nconnections:\n  W X: {type: sqlite}\n",
       "f:3:3: unknown key 'connections.W X'; the name of a connection has 1 to 64 of the characters a-z, 0-9, _ and -, not 'W "
       "X'"},
      {"version: 1\nconnections: {dw: {dns: x}}\n",
       "f:2:20: unknown key 'connections.dw.dns'; did you mean 'connections.dw.dsn'?"},
      {"version: 1\nconnections: {dw: {x: y}}\n",
       "f:2:20: unknown key 'connections.dw.x'; a connection has connections.dw.type and connections.dw.dsn"},
      {"lake: a\n", "f:1:1: the key 'version: 1' is missing"},
      {"", "f:1:1: the file is empty; it needs 'version: 1'"},
      {"# nothing\n", "f:1:1: the file is empty; it needs 'version: 1'"},
      {"version: 1\nlake: *a\n", "f:2:8: aliases (*name) are not allowed; write the value out"},
      {"version: 1\nlake: \"\xff\"\n", "f:2:8: byte 0xff is not UTF-8; save the file as UTF-8"},
      {"version: 1\n---\nlake: a\n", "f:2:1: a second document starts here; keep one document per file"},
      {"version: 1\nworker:\n", "f:2:1: 'worker' is a section and has no keys; add one, or leave it out"},
  };
  for (const auto& [text, message] : kTable) {
    const auto raw = ParseConfigFile("f", text, "/");
    ASSERT_FALSE(raw) << text;
    EXPECT_EQ(raw.error().message, message);
  }
  EXPECT_FALSE(ParseConfigFile("f", "version: 1\nlog: {level: [", "/"));
}

// A folder of configuration files for one test.
class ConfigFilesTest : public testing::Test {
 protected:
  ConfigFilesTest() {
    char folder[] = "/tmp/millrace_config_XXXXXX";
    EXPECT_NE(::mkdtemp(folder), nullptr);
    dir_ = folder;
    in_.working_dir = dir_ + "/work";
    in_.system_file = dir_ + "/etc/config.yaml";
    in_.env["XDG_CONFIG_HOME"] = dir_ + "/xdg";
  }
  ~ConfigFilesTest() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = dir_ + "/" + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  LoadedConfig Must() const {
    auto loaded = LoadConfig(in_);
    EXPECT_TRUE(loaded) << loaded.error().message;
    return loaded ? std::move(*loaded) : LoadedConfig{};
  }
  std::string Refused() const {
    const auto loaded = LoadConfig(in_);
    EXPECT_FALSE(loaded);
    return loaded ? "" : loaded.error().message;
  }
  std::string dir_;
  ConfigInputs in_ = Inputs();
};

TEST_F(ConfigFilesTest, ProjectBeatsUserBeatsSystem) {
  Write("etc/config.yaml", "version: 1\nlog: {level: error, format: json}\nworker: {name: system}\nqueue: {prefix: sys}\n");
  Write("xdg/millrace/config.yaml", "version: 1\nlog: {level: warn}\nworker: {name: user}\n");
  Write("work/millrace.yaml", "version: 1\nlog: {level: debug}\n");
  LoadedConfig c = Must();
  EXPECT_EQ(c.config.log_level, LogLevel::kDebug);
  EXPECT_EQ(c.config.worker.name, "user");
  EXPECT_EQ(c.config.log_format, LogFormat::kJson);
  EXPECT_EQ(c.config.queue.prefix, "sys");
  EXPECT_EQ(ShownOf(c, "worker.name"), "user | " + dir_ + "/xdg/millrace/config.yaml:3:10");
  EXPECT_EQ(ShownOf(c, "queue.prefix"), "sys | " + dir_ + "/etc/config.yaml:4:9");
  in_.env.erase("XDG_CONFIG_HOME");
  in_.env["HOME"] = dir_ + "/home";
  Write("home/.config/millrace/config.yaml", "version: 1\nworker: {name: at_home}\n");
  EXPECT_EQ(Must().config.worker.name, "at_home");
  Write("other.yaml", "version: 1\nlog: {level: off}\n");
  in_.file = "../other.yaml";
  c = Must();
  EXPECT_EQ(c.config.log_level, LogLevel::kOff) << "--config takes the place of ./millrace.yaml";
  EXPECT_EQ(c.config.worker.name, "at_home") << "and not that of the others";
  in_.file = "nowhere.yaml";
  const auto missing = LoadConfig(in_);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("nowhere.yaml"), std::string::npos);
}

TEST(ConfigTest, APasswordNobodyCanTellTheEndOfIsNotShown) {
  const struct {
    const char *dsn, *shown;
  } kTable[] = {
      {"host=h password=my secretpw", "host=h password=***"},
      {"host=h password=my secret=pw", "host=h password=***"},
      {"host=h password = 'my secretpw' dbname=d", "host=h password = *** dbname=d"},
      {"host=h password=a\\ secretpw sslpassword=secret port=1", "host=h password=*** sslpassword=*** port=1"},
      {"host=h password='secret", "host=h password=***"},
      {"host=h password='secret://pw' user=u", "host=h password=*** user=u"},
      {"host=h password='secret://pw", "host=h password=***"},
      {"host=h password=my secret://pw:x@y", "host=h password=***"},
      {"x=y postgres://u:secret@host/db", "x=y postgres://u:***@host/db"},
      {"postgres://u:p%40ss/secret@host/db", "postgres://***"},
      {"postgres://u:p@secret@host/db", "postgres://***"},
      {"postgres://u:secret@host:5432/db?password=secret pw&sslmode=require",
       "postgres://u:***@host:5432/db?password=***&sslmode=require"},
      {"postgres://u@host/db", "postgres://u@host/db"},
      {"/home/x/ledger.db", "/home/x/ledger.db"},
  };
  for (const auto& [dsn, shown] : kTable) EXPECT_EQ(RedactDsn(dsn), shown);
}

TEST(ConfigTest, ADsnThatLibpqWouldTakeApartWronglyIsRefused) {
  for (const char* dsn : {"host=h password=my w0rd", "host=h password='w0rd", "postgres://u:p%40ss/w0rd@host/db",
                          "postgres://u:p@w0rd@host/db", "postgres://host:w0rd/db", "postgres://a,b:w0rd,c/db"}) {
    for (const char* key : {"ledger.dsn", "connections.dw.dsn"}) {
      ConfigInputs in = Inputs();
      in.flags = {{"connections.dw.type", "postgres"}, {"connections.dw.dsn", "host=h"}, {key, dsn}};
      const auto loaded = LoadConfig(in);
      ASSERT_FALSE(loaded) << dsn;
      EXPECT_NE(loaded.error().message.find(key), std::string::npos) << loaded.error().message;
      EXPECT_EQ(loaded.error().message.find("w0rd"), std::string::npos) << loaded.error().message;
    }
  }
  for (const char* dsn : {"host=h password='my w0rd' dbname=d", "host=h password='a://b@c@d:e'",
                          "postgres://u:p%40ss@host,[::1]:5433/db?sslmode=require", "postgresql:///db?host=/run/x&user=a@b",
                          "  host = h\tport=1 "})
    EXPECT_TRUE(CheckPostgresDsn(dsn)) << dsn;
}

TEST_F(ConfigFilesTest, FileReferencesAreReadWithoutTheirLastNewline) {
  Write("work/millrace.yaml",
        "version: 1\nledger: {dsn: \"host=db password=${file:secrets/pw}\"}\nworker: {name: \"${env:A}-${env:B}\"}\n");
  Write("work/secrets/pw", "p4ss\r\n\n");
  in_.env["A"] = "x";
  in_.env["B"] = "";
  const LoadedConfig c = Must();
  EXPECT_EQ(c.config.ledger.dsn.Reveal(), "host=db password=p4ss");
  EXPECT_EQ(c.config.worker.name, "x-");
  EXPECT_EQ(ShownOf(c, "worker.name"), "${env:A}-${env:B} | millrace.yaml:3:10");
  for (const ConfigValue& value : c.values) EXPECT_EQ(value.shown.find("p4"), std::string::npos) << value.key;
  Write("work/secrets/pw", std::string(70'000, 'x'));
  EXPECT_NE(Refused().find("is larger than 65536 bytes"), std::string::npos) << Refused();
  std::filesystem::remove(dir_ + "/work/secrets/pw");
  EXPECT_NE(Refused().find("ledger.dsn: cannot read " + dir_ + "/work/secrets/pw"), std::string::npos) << Refused();
}

TEST_F(ConfigFilesTest, PathsStartAtTheirOwnFile) {
  Write("xdg/millrace/config.yaml", "version: 1\nlake: data\n");
  in_.env["MILLRACE_AUDIT__CHECKPOINT_DIR"] = "checks/../c";
  const LoadedConfig c = Must();
  EXPECT_EQ(c.config.lake, dir_ + "/xdg/millrace/data");
  EXPECT_EQ(c.config.audit.checkpoint_dir, dir_ + "/work/c");
}

TEST_F(ConfigFilesTest, ListsFromTheEnvironment) {
  in_.env["MILLRACE_WORKER__QUEUES"] = "a,b,c";
  in_.env["MILLRACE_WORKER__BROKERS"] = "tcp://127.0.0.1:1,tcp://127.0.0.2:2";
  LoadedConfig c = Must();
  EXPECT_EQ(c.config.worker.queues, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(c.config.worker.brokers.size(), 2u);
  EXPECT_EQ(ShownOf(c, "worker.queues"), "a, b, c | env MILLRACE_WORKER__QUEUES");
  in_.env["MILLRACE_WORKER__QUEUES"] = "";
  EXPECT_TRUE(Must().config.worker.queues.empty());
  in_.env["MILLRACE_WORKER__QUEUES"] = "a,,b";
  EXPECT_EQ(Refused(), "env MILLRACE_WORKER__QUEUES: worker.queues: has an empty item; leave it out");
  in_.env.erase("MILLRACE_WORKER__QUEUES");
  in_.env["MILLRACE_WORKER__BROKERS"] = "";
  EXPECT_EQ(Refused(),
            "env MILLRACE_WORKER__BROKERS: worker.brokers: must name at least one broker, like tcp://127.0.0.1:7411");
  in_.env.erase("MILLRACE_WORKER__BROKERS");
  in_.env["MILLRACE_WORKER__QUEUE"] = "a";
  EXPECT_EQ(Refused(), "env MILLRACE_WORKER__QUEUE: unknown key 'worker.queue'; did you mean 'worker.queues'?");
}

TEST_F(ConfigFilesTest, ConnectionsFromFileAndEnvironment) {
  Write("work/millrace.yaml",
        "version: 1\nconnections:\n  dw: {type: postgres, dsn: \"host=dw password=${env:PW}\"}\n  local: {dsn: l.db}\n");
  in_.env["PW"] = "topsecret";
  in_.env["MILLRACE_CONNECTIONS__LAKE2__TYPE"] = "postgres";
  in_.env["MILLRACE_CONNECTIONS__LAKE2__DSN"] = "postgres://u:hidden@h/d";
  const LoadedConfig c = Must();
  EXPECT_EQ(c.config.connections.size(), 4u);
  EXPECT_EQ(c.config.connections.at("dw").type, LedgerConfig::Kind::kPostgres);
  EXPECT_EQ(c.config.connections.at("dw").dsn.Reveal(), "host=dw password=topsecret");
  EXPECT_EQ(c.config.connections.at("local").dsn.Reveal(), dir_ + "/work/l.db");
  EXPECT_EQ(c.config.connections.at("lake2").dsn.Reveal(), "postgres://u:hidden@h/d");
  EXPECT_EQ(c.config.connections.at("warehouse").type, LedgerConfig::Kind::kSqlite);
  for (const ConfigValue& value : c.values) {
    EXPECT_EQ(value.shown.find("topsecret"), std::string::npos) << value.key;
    EXPECT_EQ(value.shown.find("hidden"), std::string::npos) << value.key;
  }
  in_.env["MILLRACE_CONNECTIONS__LAKE2__TYPE"] = "oracle";
  EXPECT_EQ(Refused(),
            "env MILLRACE_CONNECTIONS__LAKE2__TYPE: connections.lake2.type: 'oracle' is not one of sqlite, postgres");
}

// A reference on a wrong key must not print what it stands for: it may be a secret all the same.
TEST_F(ConfigFilesTest, NoErrorShowsWhatAReferenceStandsFor) {
  Write("work/secret", "s3cret-value\n");
  in_.env["SECRET"] = "s3cret-value";
  for (const std::string key : {"log.level", "worker.concurrency", "worker.drain_timeout", "worker.memory_max",
                                "worker.sandbox", "broker.shards", "broker.listen_clients", "broker.listen_workers",
                                "worker.brokers", "scheduler.lead_ttl", "queue.redis", "connections.dw.type"}) {
    for (const std::string reference :
         {"${file:secret}", "${env:SECRET}", "x${env:SECRET}", "tcp://${file:secret}", "tcp://${file:secret}:1"}) {
      in_.flags = {{key, reference}};
      const std::string message = Refused();
      EXPECT_EQ(message.find("s3cret"), std::string::npos) << message;
      EXPECT_NE(message.find(key), std::string::npos) << message;
      EXPECT_TRUE(key == "queue.redis" || message.find(reference) != std::string::npos)
          << "the reference is shown instead: " << message;
    }
  }
  in_.flags = {{"worker.memory_max", "${env:SMALL}"}};
  in_.env["SMALL"] = "1B";
  EXPECT_EQ(Refused(), "flag: worker.memory_max: '${env:SMALL}' is below 64MiB");
  for (const char* text : {"host=h password=a${s3cret}b", "host=h password=a${s3cret"}) {
    in_.flags = {{"ledger.dsn", text}};
    EXPECT_EQ(Refused().find("s3cret"), std::string::npos) << Refused();
  }
  for (const char* text :
       {"redis://s3cret@h:1", "redis://u:s3cret@h:x", "redis://u:s3cret@:1", "redis://:s3cret@h:1/x", "s3cret"}) {
    in_.flags = {{"queue.redis", text}};
    EXPECT_EQ(Refused().find("s3cret"), std::string::npos) << Refused();
  }
}

TEST(SecretTest, OldBytesAreOverwritten) {
  std::string plain(64, 'k');
  const Secret secret(std::move(plain));
  EXPECT_EQ(secret.Reveal(), std::string(64, 'k'));
  plain.resize(plain.capacity());  // NOLINT: the caller's own buffer, still there
  EXPECT_EQ(plain.find('k'), std::string::npos);
  std::string wiped(16, 'k');
  WipeMemory(wiped.data(), wiped.size());
  EXPECT_EQ(wiped, std::string(16, '\0'));
}

}  // namespace
}  // namespace millrace
