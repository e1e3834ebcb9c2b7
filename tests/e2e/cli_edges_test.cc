// Where a command line meets what people have: their folders, full disks, words too many, databases with their own numbers.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <tuple>

#include "tests/support/cli_runner.h"
#include "tests/support/test_postgres.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kPipeline =
    "version: 1\npipeline: shop\nstages:\n  raw: { extract: { from: file, path: a.csv } }\n"
    "  out: { load: { from: raw, to: warehouse, table: t, mode: replace } }\n";

class CliEdges : public CliTest {
 protected:
  void Shop() {
    Write("a.csv", "id,v\n1,x\n2,y\n");
    Write("shop.yaml", kPipeline);
  }
  mode_t ModeOf(const std::string& name) {
    struct stat about{};
    EXPECT_EQ(::stat((dir_ / name).c_str(), &about), 0);
    return about.st_mode & 07777U;
  }
};

TEST_F(CliEdges, AFolderThatIsThereIsLeftAsItIs) {
  Shop();
  std::filesystem::create_directory(dir_ / "mine");
  ASSERT_EQ(::chmod((dir_ / "mine").c_str(), 0755), 0);
  EXPECT_EQ(Run({"run", "shop.yaml", "--home", "mine"}).code, 0);
  EXPECT_EQ(ModeOf("mine"), 0755U);
  EXPECT_EQ(Run({"run", "shop.yaml", "--home", "new"}).code, 0);
  EXPECT_EQ(ModeOf("new"), 0700U);
  std::filesystem::create_directory(dir_ / "open");
  ASSERT_EQ(::chmod((dir_ / "open").c_str(), 01777), 0);
  for (const auto& command : {"run", "up"}) {
    const CliResult open = Run({command, "shop.yaml", "--home", "open"});
    EXPECT_EQ(open.code, 5);
    EXPECT_THAT(open.err, AllOf(HasSubstr("everybody may write in it (mode 1777)"), HasSubstr("give another one")));
  }
  EXPECT_EQ(ModeOf("open"), 01777U);
  EXPECT_TRUE(std::filesystem::is_empty(dir_ / "open"));
}

TEST_F(CliEdges, WordsTooManyAreRefused) {
  Shop();
  ASSERT_EQ(Run({"run", "shop.yaml"}).code, 0);
  for (const auto& [args, text] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"run", "list", "shop"}, "'run list' takes no 'shop'"},
           {{"run", "show", "last", "extra"}, "'run show' takes no 'extra'"},
           {{"backfill", "list", "nope"}, "'backfill list' takes no 'nope'"},
           {{"backfill", "list", "--from", "x"},
            "'backfill list' takes no --from; for a pipeline of that name: millrace backfill OPTIONS -- list"},
           {{"run", "list", "-n", "0"}, "-n: 0 is not in [1, 500]"},
           {{"schedule", "next", "--cron", "@daily", "-n", "0"}, "-n: 0 is not in [1, 10000]"},
           {{"schedule", "next", "shop.yaml", "--cron", "@daily"}, "give 'shop.yaml' or --cron '@daily', not both"},
           {{"schedule", "next", "shop.yaml", "--timezone", "UTC"}, "--timezone is the zone of --cron"}}) {
    const CliResult refused = Run(args);
    EXPECT_EQ(refused.code, 2) << text;
    EXPECT_EQ(refused.out, "") << text;
    EXPECT_THAT(refused.err, HasSubstr(text));
  }
  EXPECT_EQ(Run({"run", "list", "--pipeline", "shop", "-q"}).code, 0);
}

TEST_F(CliEdges, APortThatIsTakenIsKnownByItsSetting) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string taken = "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  for (const std::string key : {"broker.listen_clients", "broker.listen_workers"}) {
    const std::string other = key.ends_with("clients") ? "broker.listen_workers" : "broker.listen_clients";
    const CliResult broker = Run({"broker", "--set", "ledger.dsn=postgres://nobody@127.0.0.1:1/none", "--set",
                                  key + "=" + taken, "--set", other + "=tcp://127.0.0.2:7499"});
    EXPECT_EQ(broker.code, 5);
    EXPECT_THAT(broker.err, HasSubstr("millrace: " + key + ": bind " + taken +
                                      ": bind: Address already in use; give it another port, or end what listens there"));
  }
  ::close(fd);
}

TEST_F(CliEdges, APipelineMayBeCalledLikeACommand) {
  Write("list.yaml", "version: 1\npipeline: list\nschedule: { cron: \"@daily\" }\nstages:\n  c: { command: [\"true\"] }\n");
  ASSERT_EQ(Run({"pipeline", "apply", "list.yaml"}).code, 0);
  const CliResult dry = Run({"--home", home_.string(), "backfill", "--from", "2026-01-01", "--to", "2026-01-02", "--dry-run",
                             "-o", "json", "--", "list"});
  ASSERT_EQ(dry.code, 0) << dry.err;
  EXPECT_EQ(nlohmann::json::parse(dry.out)[0].at("slots"), 2);
}

TEST_F(CliEdges, AScheduleThatIsNotThereIsSaidToBe) {
  Shop();
  const auto missing = [&](const std::string& what, const std::string& text) {
    const CliResult next = Run({"schedule", "next", what});
    EXPECT_EQ(next.code, 3) << what;
    EXPECT_THAT(next.err, HasSubstr(text));
  };
  missing("/nowhere/shop.yaml", "/nowhere/shop.yaml: no such file");
  missing("shop.yaml", "shop.yaml: the pipeline has no schedule; write one, or give --cron EXPR");
  missing("shop", "there is no ledger at");
  ASSERT_EQ(Run({"pipeline", "apply", "shop.yaml"}).code, 0);
  missing("shop", "pipeline 'shop' has no schedule; apply it with one, or give --cron EXPR");
  missing("shp", "'shp' is no file: no pipeline 'shp' has been applied; did you mean 'shop'?");
}

TEST_F(CliEdges, QuietPrintsWhatTheRowsAreCalledByAndNothingElse) {
  Shop();
  Write("list.yaml", "version: 1\npipeline: list\nschedule: { cron: \"@daily\" }\nstages:\n  c: { command: [\"true\"] }\n");
  ASSERT_EQ(Run({"pipeline", "apply", "list.yaml"}).code, 0);
  ASSERT_EQ(Run({"queue", "set", "q", "--concurrency", "3"}).code, 0);
  const auto quiet = [&](std::vector<std::string> args) {
    args.emplace_back("-q");
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 0) << args[0] << " " << args[1] << result.err;
    return result.out;
  };
  EXPECT_EQ(quiet({"pipeline", "apply", "shop.yaml", "--cron", "@hourly"}), "shop\n");
  EXPECT_EQ(quiet({"pipeline", "list"}), "list\nshop\n");
  EXPECT_EQ(quiet({"pipeline", "list", "-o", "json"}), "list\nshop\n");
  EXPECT_EQ(quiet({"pipeline", "show", "shop"}), "shop\n");
  EXPECT_EQ(quiet({"schedule", "list"}), "list\nshop\n");
  EXPECT_EQ(quiet({"schedule", "pause", "shop"}), "shop\n");
  EXPECT_EQ(quiet({"schedule", "resume", "shop"}), "shop\n");
  EXPECT_EQ(quiet({"schedule", "slots", "shop"}), "");
  const std::vector<std::string> next{"schedule", "next", "--cron", "@daily", "--from", "2026-01-01T00:00:00Z", "-n", "2"};
  EXPECT_EQ(quiet(next), "2026-01-02T00:00:00Z\n2026-01-03T00:00:00Z\n");
  EXPECT_EQ(quiet({"queue", "list"}), "q\n");
  EXPECT_EQ(quiet({"queue", "show", "q"}), "q\n");
  EXPECT_EQ(quiet({"queue", "pause", "q"}), "q\n");
  const std::string run = quiet({"run", "shop.yaml"});
  EXPECT_EQ(quiet({"run", "list"}), run);
  EXPECT_EQ(quiet({"run", "show", "last"}), run);
  EXPECT_EQ(quiet({"job", "show", "last"}), quiet({"job", "list", "-n", "1"}));
  EXPECT_THAT(quiet({"config", "show"}), HasSubstr("value")) << "settings have no ids";
}

TEST_F(CliEdges, DataThatCannotBeWrittenIsAnError) {
  Shop();
  ASSERT_EQ(Run({"run", "shop.yaml"}).code, 0);
  const std::string millrace = std::string(MILLRACE_BIN_DIR) + "/millrace --home home ";
  const auto shell = [&](const std::string& command) {
    const std::string line = "cd '" + dir_.string() + "' && " + command + " 2>err.txt";
    const int status = std::system(line.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  for (const char* command : {"run list", "run show last -o json", "query warehouse 'select * from t'", "version"}) {
    EXPECT_EQ(shell(millrace + command + " >/dev/full"), 1) << command;
    EXPECT_THAT(ReadAll(dir_ / "err.txt"), HasSubstr("stdout cannot be written")) << command;
    EXPECT_EQ(shell(millrace + command + " >&-"), 1) << command;
  }
  EXPECT_EQ(shell("bash -c 'set -o pipefail; " + millrace + "run list | true'"), 0) << "a reader that has seen enough";
}

// Nobody reads what a command says on stderr: its work, its results and its exit code are what they would have been.
TEST_F(CliEdges, WordsThatCannotBeWrittenChangeNothing) {
  Shop();
  Write("broken.yaml",
        "version: 1\npipeline: broken\nstages:\n  raw: { extract: { from: file, path: a.csv } }\n"
        "  once: { transform: select 1 as id from raw, checks: [{ unique: [id] }] }\n");
  ASSERT_EQ(Run({"run", "broken.yaml"}).code, 1);
  const std::string dead = RunJson({"job", "list", "--state", "dead"}).at(0).at("job");
  const std::string shell = "cd '" + dir_.string() + "' && " + MILLRACE_BIN_DIR + "/millrace --home home ";
  for (const auto& [command, code, out] :
       std::vector<std::tuple<std::string, int, std::string>>{{"job show zzzz", 2, ""},
                                                              {"run shop.yaml -o json", 0, "\"state\": \"succeeded\""},
                                                              {"job discard " + dead, 0, dead},
                                                              {"run retry --pipeline broken --dry-run", 0, "broken"},
                                                              {"job nonsense", 2, ""}}) {
    for (const char* where : {"2>/dev/full", "2>&-", "2>&- <&-"}) {
      const int status = std::system((shell + command + " >out.txt " + where).c_str());
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == code) << command << " " << where << ": " << status;
      EXPECT_THAT(ReadAll(dir_ / "out.txt"), HasSubstr(out)) << command << " " << where;
    }
  }
}

TEST_F(CliEdges, ARunOfAFileLeavesSchedulesAlone) {
  Shop();
  ASSERT_EQ(Run({"pipeline", "apply", "shop.yaml", "--cron", "0 7 * * *"}).code, 0);
  ASSERT_EQ(Run({"run", "shop.yaml"}).code, 0);
  auto schedules = RunJson({"schedule", "list"});
  ASSERT_EQ(schedules.size(), 1u);
  EXPECT_EQ(schedules[0].at("cron"), "0 7 * * *");
  EXPECT_EQ(schedules[0].at("version"), 1);
  CliResult show = Run({"pipeline", "show", "shop"});
  EXPECT_EQ(show.out, kPipeline);
  EXPECT_THAT(show.err, HasSubstr("schedule in force: 0 7 * * * UTC; the file says: none"));
  EXPECT_EQ(RunJson({"pipeline", "show", "shop"})[0].at("schedule"), "0 7 * * * UTC");

  Write("timed.yaml", std::string(kPipeline) + "schedule: { cron: \"0 8 * * *\" }\n");
  ASSERT_EQ(Run({"run", "timed.yaml"}).code, 0);
  schedules = RunJson({"schedule", "list"});
  EXPECT_EQ(schedules[0].at("cron"), "0 7 * * *") << "the file's schedule was not applied";
  EXPECT_EQ(schedules[0].at("version"), 1);
  EXPECT_EQ(RunJson({"pipeline", "list"})[0].at("version"), 3);
  ASSERT_EQ(Run({"pipeline", "apply", "timed.yaml"}).code, 0);
  EXPECT_EQ(RunJson({"schedule", "list"})[0].at("cron"), "0 8 * * *");
  EXPECT_EQ(Run({"pipeline", "show", "shop"}).err, "") << "the file's own schedule is in force";
}

TEST_F(CliEdges, RelativeFoldersAndZonesAreKeptAsTheyWereMeant) {
  Shop();
  std::filesystem::create_directory(dir_ / "cu");
  Write("cu/a.csv", "id,v\n1,x\n");
  ASSERT_EQ(Run({"pipeline", "apply", "shop.yaml", "--base-dir", "cu", "--cron", "@daily"}).code, 0);
  EXPECT_EQ(RunJson({"pipeline", "list"})[0].at("base_dir"), (dir_ / "cu").string());
  EXPECT_THAT(Run({"pipeline", "apply", "shop.yaml", "--timezone", "Europe/Paris"}).err,
              HasSubstr("--timezone is the zone of --cron"));
  std::filesystem::create_directory(dir_ / "shop");
  EXPECT_EQ(Run({"schedule", "next", "shop"}).code, 0) << "a folder is no pipeline file";
  const CliResult local = Run({"schedule", "next", "--cron", "@daily", "--timezone", "localtime"});
  EXPECT_EQ(local.code, 2);
  EXPECT_THAT(local.err, HasSubstr("'localtime' is not an IANA time zone"));
  EXPECT_EQ(Run({"run", "shop.yaml", "--set", "broker.shards=3"}).code, 5);
  EXPECT_THAT(Run({"run", "shop.yaml", "--set", "broker.shards=3"}).err, HasSubstr("set broker.shards to 1"));
}

TEST_F(CliEdges, NumbersOfAPostgresQueryAreExact) {
  MILLRACE_NEED_POSTGRES();
  TestDatabase database("cli_query");
  const auto query = [&](const std::string& sql) {
    const CliResult result = Run({"query", "pg", sql, "-o", "json", "--set", "connections.pg.type=postgres", "--set",
                                  "connections.pg.dsn=" + database.dsn()});
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::ordered_json::parse(result.out, nullptr, false);
  };
  auto rows = query(
      "select 18446744073709551615::numeric big, 12345678901234567890.123456789::numeric wide, 12.50::numeric price, "
      "0.1::float8 tenth, 7 whole, true yes, null::text nothing, '{\"a\":1}'::jsonb doc, 'te\"xt' t");
  EXPECT_EQ(rows[0].at("big"), "18446744073709551615");
  EXPECT_EQ(rows[0].at("wide"), "12345678901234567890.123456789");
  EXPECT_EQ(rows[0].at("price"), 12.5);
  EXPECT_EQ(rows[0].at("tenth"), 0.1);
  EXPECT_EQ(rows[0].at("whole"), 7);
  EXPECT_EQ(rows[0].at("yes"), true);
  EXPECT_TRUE(rows[0].at("nothing").is_null());
  EXPECT_EQ(rows[0].at("doc"), "{\"a\": 1}");
  EXPECT_EQ(rows[0].at("t"), "te\"xt");
  EXPECT_EQ(query("select 1 a, 2 a, count(*), count(*)").dump(), R"([{"a":1,"a_2":2,"count":1,"count_2":1}])");
  const CliResult empty = Run({"query", "pg", "select 1 a where false", "-o", "csv", "--set", "connections.pg.type=postgres",
                               "--set", "connections.pg.dsn=" + database.dsn()});
  EXPECT_EQ(empty.out, "a\r\n");
}

}  // namespace
}  // namespace millrace::testing
