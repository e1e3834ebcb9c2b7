// The life of work from its beginning in somebody's transaction to its end by retention: rows that become jobs, results that
// are too long for a row, stages that go where their size belongs, and weeks that go.
#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "common/drivers/sqlite.h"
#include "tests/support/cli_runner.h"
#include "tests/support/fault_shim.h"
#include "tests/support/redis_server.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

class CliLife : public CliTest {
 protected:
  std::string JobOf(const nlohmann::json& run, const std::string& stage) { return StageOf(run, stage).at("job"); }
};

TEST_F(CliLife, ACommandsOutputIsKeptInTheRowOrInAFileOfTheLake) {
  WritePipeline("out",
                "  small:\n    command: [sh, -c, \"printf 'Zürich\\\\n42' > $MILLRACE_RESULT\"]\n"
                "  none:\n    command: [\"true\"]\n"
                "  large:\n    command: [sh, -c, \"head -c 100000 /dev/zero > $MILLRACE_RESULT\"]\n"
                "  huge:\n    command: [sh, -c, \"head -c 17000000 /dev/zero > $MILLRACE_RESULT\"]\n"
                "    retry: { max_attempts: 1 }\n"
                "  link:\n    command: [sh, -c, \"ln -s /dev/null $MILLRACE_RESULT\"]\n");
  const auto run = RunJson({"run", "out.yaml"}, 1);
  EXPECT_EQ(StageOf(run, "link").at("error_class"), "result_not_a_file");
  EXPECT_EQ(StageOf(run, "link").at("failures"), 1) << "the next attempt would do the same";
  EXPECT_EQ(StageOf(run, "huge").at("error_class"), "result_too_large");
  CliResult result = Run({"job", "result", JobOf(run, "small")});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "Zürich\n42");
  EXPECT_EQ(RunJson({"job", "show", JobOf(run, "small")}).at("result").at("output"), "Zürich\n42");
  EXPECT_THAT(Run({"job", "show", JobOf(run, "small")}).out, HasSubstr("-- result"));
  EXPECT_THAT(Run({"job", "result", JobOf(run, "none")}).out, HasSubstr("\"ok\":true"));

  const auto file = RunJson({"job", "show", JobOf(run, "large")}).at("result").at("output_file");
  EXPECT_EQ(file.at("bytes"), 100'000);
  const std::filesystem::path path = home_ / "lake" / file.at("path").get<std::string>();
  EXPECT_EQ(std::filesystem::file_size(path), 100'000u);
  EXPECT_EQ(path.parent_path(), home_ / "lake" / "results" / run.at("run").get<std::string>());
  result = Run({"job", "result", JobOf(run, "large")});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, std::string(100'000, '\0'));
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(50'000).put('\x10');  // one bit
  result = Run({"job", "result", JobOf(run, "large")});
  EXPECT_NE(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("is not what the job wrote"));
  std::ofstream(path, std::ios::binary | std::ios::app) << "x";
  result = Run({"job", "result", JobOf(run, "large")});
  EXPECT_NE(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("is not what the job wrote"));
  std::filesystem::remove(path);
  EXPECT_THAT(Run({"job", "result", JobOf(run, "large")}).err, HasSubstr("cannot be read"));
}

TEST_F(CliLife, AStageGoesToTheQueueOfItsSize) {
  Write("in.csv", "id,v\n1,a\n2,b\n3,c\n");
  WritePipeline("sized",
                "  rows:\n    extract: { from: file, path: in.csv }\n"
                "  few:\n    transform: select * from rows\n"
                "  many:\n    transform: select * from rows\n    route_by_size: 2\n"
                "  mine:\n    transform: select * from rows\n    queue: elsewhere\n",
                "route_by_size: true\n");
  const auto run = RunJson({"run", "sized.yaml"});
  const auto routed = [&](const std::string& stage) { return RunJson({"job", "show", JobOf(run, stage)}).at("routed_to"); };
  EXPECT_EQ(routed("rows"), "");
  EXPECT_EQ(routed("few"), "small");
  EXPECT_EQ(routed("many"), "large");
  EXPECT_EQ(routed("mine"), "");
  EXPECT_THAT(Run({"job", "show", JobOf(run, "many")}).out, HasSubstr("routed by size to queue large"));
}

TEST_F(CliLife, ARowOfTheEnqueueTableRunsAndABadOneSaysWhy) {
  WritePipeline("other", "  x:\n    command: [\"true\"]\n");
  EXPECT_EQ(Run({"run", "other.yaml"}).code, 0);
  {
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {});
    ASSERT_TRUE(db) << db.error().message;
    const auto done = db->Exec(
        "begin; insert into enqueue (kind, payload) values ('command', cast('{\"argv\": [\"sh\", \"-c\", "
        "\"echo hello > $MILLRACE_RESULT\"]}' as blob)), ('command', x'7b7d'); commit");
    ASSERT_TRUE(done) << done.error().message;
  }
  const auto up = Start({"up"});
  std::string id;
  for (int i = 0; i < 200 && id.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds{100});
    const auto jobs = RunJson({"job", "list", "--state", "succeeded"});
    for (const auto& job : jobs)
      if (job.at("stage") == "") id = job.at("job");
  }
  ASSERT_FALSE(id.empty()) << "the row became a job, and it ran";
  EXPECT_EQ(Run({"job", "result", id}).out, "hello\n");
  const auto refused = RunJson({"job", "refused"});
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_THAT(refused[0].at("reason").get<std::string>(), HasSubstr("argv"));
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{30}).code, 0);
  ExpectSound();
}

TEST_F(CliLife, ABatchCallsBackWhenAllOfItHasEnded) {
  const std::string dir = dir_.string();
  Write("batch.ndjson", R"({"kind": "command", "payload": {"argv": ["sh", "-c", "echo 1 >> done"], "base_dir": ")" + dir +
                            R"("}})"
                            "\n\n"
                            R"({"kind": "command", "payload": {"argv": ["false"]}, "max_attempts": 1, "queue": "other"})"
                            "\n");
  const std::string then =
      R"({"kind": "command", "payload": {"argv": ["sh", "-c", "echo all $MILLRACE_RUN >> done"], "base_dir": ")" + dir +
      R"("}})";
  const auto up = Start({"up"});
  CliResult submitted = Run({"job", "submit", "--batch", "batch.ndjson", "--then", then, "-q"});
  ASSERT_EQ(submitted.code, 0) << submitted.err;
  const std::string run = submitted.out.substr(0, submitted.out.find('\n'));
  nlohmann::json shown;
  for (int i = 0; i < 200; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds{100});
    shown = RunJson({"run", "show", run});
    if (shown.at("state") == "failed" || shown.at("state") == "succeeded") break;
  }
  EXPECT_EQ(shown.at("state"), "failed") << "a callback that ran does not make a batch with a dead job a success";
  EXPECT_EQ(ReadAll(dir_ / "done"), "1\nall " + run + "\n") << "the callback last, though one of them is dead";
  EXPECT_EQ(StageOf(shown, "2").at("state"), "dead");
  EXPECT_EQ(StageOf(shown, "then").at("state"), "succeeded");

  const CliResult one = Run({"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})", "-q"});
  EXPECT_EQ(one.code, 0) << one.err;
  Write("bad.ndjson", "{\"kind\": \"command\", \"payload\": {\"argv\": [\"true\"]}}\n{\"colour\": 1}\n");
  const CliResult bad = Run({"job", "submit", "--batch", "bad.ndjson"});
  EXPECT_EQ(bad.code, 2) << bad.err;
  EXPECT_THAT(bad.err, HasSubstr("bad.ndjson:2: unknown key 'colour'"));
  Write("twice.ndjson", R"({"kind": "x", "options": {"unique_key": "k"}})"
                        "\n"
                        R"({"kind": "x", "options": {"unique_key": "k"}})"
                        "\n");
  const auto twice = RunJson({"job", "submit", "--batch", "twice.ndjson"});
  EXPECT_EQ(twice[1].at("conflict_with"), twice[0].at("job")) << "a conflict is a value, not an error";
  EXPECT_NE(Run({"job", "submit"}).code, 0);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{30}).code, 0);
}

TEST_F(CliLife, WeeksAreListedAndOnlyThoseThatAreOverGo) {
  WritePipeline("p", "  x:\n    command: [\"true\"]\n");
  EXPECT_EQ(Run({"run", "p.yaml"}).code, 0);
  const auto weeks = RunJson({"ledger", "list"});
  ASSERT_EQ(weeks.size(), 1u);
  EXPECT_EQ(weeks[0].at("jobs"), 1);
  EXPECT_EQ(weeks[0].at("runs"), 1);
  EXPECT_EQ(RunJson({"ledger", "prune", "--older-than", "30d", "--dry-run"}).size(), 0u);
  const auto pruned = RunJson({"ledger", "prune", "--older-than", "30d"});
  EXPECT_EQ(pruned[0].at("rows"), 0);
  EXPECT_EQ(RunJson({"ledger", "list"}).size(), 1u);
  EXPECT_THAT(Run({"ledger", "prune"}).err, HasSubstr("--older-than"));
  EXPECT_THAT(Run({"ledger", "prune", "--older-than", "soon"}).err, HasSubstr("--older-than"));
  EXPECT_THAT(Run({"config", "show", "--set", "ledger.retention=1h"}).err, HasSubstr("below 1d"));
  ExpectSound();
}

TEST_F(CliLife, WithARetentionOldWeeksGoByThemselves) {
  WritePipeline("p", "  x:\n    command: [sh, -c, \"head -c 100000 /dev/zero > $MILLRACE_RESULT\"]\n");
  auto past = ShimControl::Make(Path("clock"));
  ASSERT_TRUE(past) << past.error().message;
  past->StepClockTo(-std::chrono::hours{24 * 60});
  CliOptions then;
  then.env = past->Env();
  ASSERT_EQ(Run({"run", "p.yaml"}, then).code, 0);
  const auto run = RunJson({"run", "p.yaml"});
  ASSERT_EQ(RunJson({"ledger", "list"}).size(), 2u) << "weeks";
  const auto results = [this] {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(home_ / "lake" / "results")) ++count;
    return count;
  };
  EXPECT_EQ(results(), 2u);
  const auto up = Start({"up", "--set", "ledger.retention=30d"});
  EXPECT_TRUE(Eventually([&] { return RunJson({"ledger", "list"}).size() == 1 && results() == 1; })) << up->Err();
  EXPECT_THAT(up->Err(), HasSubstr("retention: 4 rows of before "));
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{30}).code, 0);
  EXPECT_EQ(RunJson({"run", "show", run.at("run").get<std::string>()}).at("state"), "succeeded") << "this week's stays";
  EXPECT_EQ(RunJson({"run", "list"}).size(), 1u);
  EXPECT_EQ(Run({"audit", "verify"}).code, 0);
}

TEST_F(CliLife, ALargeLedgerWithoutRetentionIsSaid) {
  check_history_ = false;
  WritePipeline("one", "  c: { command: [\"true\"] }\n");
  ASSERT_EQ(Run({"run", "one.yaml"}).code, 0);
  const auto finding = [&](int code, std::vector<std::string> more = {}) {
    std::vector<std::string> args{"doctor"};
    args.insert(args.end(), more.begin(), more.end());
    for (const auto& row : RunJson(args, code))
      if (row.at("check") == "retention") return row;
    return nlohmann::json();
  };
  EXPECT_EQ(finding(0).at("ok"), true);
  EXPECT_THAT(finding(0).at("found").get<std::string>(), HasSubstr("none is set, nothing ever goes; 1 finished jobs"));
  {
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {});
    ASSERT_TRUE(db) << db.error().message;
    const auto grown = db->Exec(
        "create temp table many as with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000) "
        "select o.* from n, (select * from outcome limit 1) o; "
        "update many set job = cast(printf('%016d', rowid) as blob); insert into outcome select * from many");
    ASSERT_TRUE(grown) << grown.error().message;
  }
  const auto row = finding(1);
  EXPECT_EQ(row.at("ok"), false);
  EXPECT_THAT(row.at("found").get<std::string>(), HasSubstr("more than 1000000 finished jobs"));
  EXPECT_THAT(row.at("fix").get<std::string>(), HasSubstr("ledger.retention (e.g. 90d)"));
  EXPECT_EQ(finding(0, {"--set", "ledger.retention=90d"}).at("ok"), true);
  EXPECT_EQ(finding(0, {"--set", "ledger.retention_bytes=20GiB"}).at("ok"), true);
}

TEST_F(CliLife, ARedisThatIsNearlyFullIsSaid) {
  if (!RedisServer::Installed()) {
    if (std::getenv("CI") != nullptr) FAIL() << "there is no redis-server on the path";
    GTEST_SKIP() << "there is no redis-server on the path: run ops/setup";
  }
  RedisServer server("everysec");
  ASSERT_TRUE(server.Start());
  const auto finding = [&](int code) {
    for (const auto& row : RunJson({"doctor", "--set", "queue.redis=" + server.endpoint()}, code))
      if (row.at("check") == "queue") return row;
    return nlohmann::json();
  };
  EXPECT_THAT(finding(0).at("found").get<std::string>(), HasSubstr(", no maxmemory"));
  EXPECT_EQ(server.Said({"SET", "somebody", std::string(85'000'000, 'x')}), "OK");
  EXPECT_EQ(server.Said({"CONFIG", "SET", "maxmemory", "150000000"}), "OK");
  const auto good = finding(0);
  EXPECT_EQ(good.at("ok"), true);
  EXPECT_THAT(good.at("found").get<std::string>(), HasSubstr(" of its maxmemory of 150"));
  EXPECT_EQ(server.Said({"CONFIG", "SET", "maxmemory", "100000000"}), "OK");
  const auto bad = finding(1);
  EXPECT_EQ(bad.at("ok"), false);
  EXPECT_THAT(bad.at("found").get<std::string>(), HasSubstr("of its maxmemory of 100"));
  EXPECT_THAT(bad.at("found").get<std::string>(), HasSubstr("from 80 % on every submit is refused (queue_full)"));
  EXPECT_THAT(bad.at("fix").get<std::string>(), HasSubstr("raise Redis' maxmemory"));
}

}  // namespace
}  // namespace millrace::testing
