// `millrace bench`: what it counts, the shape of its JSON, its errors. Never how fast anything is.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

class CliBench : public CliTest {
 protected:
  CliBench() : temporary_(Path("tmp")) { std::filesystem::create_directories(temporary_); }
  void TearDown() override { EXPECT_TRUE(std::filesystem::is_empty(temporary_)) << "benchmarks tidy up"; }

  nlohmann::json Bench(std::vector<std::string> args) {
    args.insert(args.begin(), "bench");
    args.insert(args.end(), {"-o", "json"});
    const CliResult result = Start(args, {.env = {{"TMPDIR", temporary_}}})->Wait(std::chrono::seconds{100});
    EXPECT_EQ(result.code, 0) << result.err << result.out;
    auto json = nlohmann::json::parse(result.out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << result.out;
    return json;
  }
  static void ExpectLatency(const nlohmann::json& l, int count) {
    EXPECT_EQ(l.at("count"), count);
    EXPECT_GT(l.at("p50_us"), 0);
    EXPECT_LE(l.at("p50_us"), l.at("p99_us"));
    EXPECT_LE(l.at("p99_us"), l.at("p999_us"));
    EXPECT_LE(l.at("p999_us"), l.at("max_us"));
  }
  static void ExpectCounts(const nlohmann::json& r, int jobs) {
    EXPECT_EQ(r.at("jobs"), jobs);
    EXPECT_EQ(r.at("accepted"), jobs);
    EXPECT_EQ(r.at("executed"), jobs);
    EXPECT_EQ(r.at("outcomes"), jobs);
    EXPECT_EQ(r.at("lost"), 0);
    EXPECT_EQ(r.at("duplicated"), 0);
    EXPECT_EQ(r.at("corrupted"), 0);
  }
  // All of it is counted for losses, so many jobs in the end; what ended in the window is what the rates are about.
  static void ExpectSteady(const nlohmann::json& r, int all) {
    EXPECT_EQ(r.at("form"), "steady");
    for (const char* count : {"accepted", "executed", "outcomes"}) EXPECT_EQ(r.at(count), all) << count;
    for (const char* none : {"lost", "duplicated", "corrupted"}) EXPECT_EQ(r.at(none), 0) << none;
    EXPECT_GT(r.at("jobs"), 0);
    EXPECT_LT(r.at("jobs"), all);
    for (const char* rate : {"enqueued_per_s", "recorded_per_s"}) EXPECT_GT(r.at(rate), 0) << rate;
    EXPECT_GE(r.at("executed_per_s"), 0) << "all of so few may have been called before the window began";
    EXPECT_NEAR(r.at("recorded_per_s").get<double>() * r.at("wall_s").get<double>() / r.at("jobs").get<double>(), 1, 0.5);
    EXPECT_LE(r.at("waiting").at("min"), r.at("waiting").at("mean"));
    EXPECT_LE(r.at("waiting").at("mean"), r.at("waiting").at("max"));
    EXPECT_GT(r.at("processes").at("broker").at("cpu_us_per_job"), 0);
  }
  void ExpectUsage(std::vector<std::string> args, const std::string& words) {
    args.insert(args.begin(), "bench");
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_EQ(result.out, "");
  }

  const std::string temporary_;  // where its benchmarks make their folders
};

TEST_F(CliBench, QueueOnServersOfItsOwnCountsEveryJobOnce) {
  const auto json = Bench({"queue", "--jobs", "1500", "--workers", "2", "--concurrency", "400", "--batch", "100"});
  EXPECT_EQ(json.at("bench"), "queue");
  EXPECT_EQ(json.at("installation"), "own");
  EXPECT_EQ(json.at("sound"), true);
  EXPECT_EQ(json.at("durability").at("redis_fsync"), "AOF, appendfsync everysec");
  EXPECT_EQ(json.at("durability").at("ledger_fsync"), "fsync on, synchronous_commit on");
  for (const char* component : {"millrace", "redis", "postgres"}) EXPECT_NE(json.at("versions").at(component), "");
  for (const char* fact : {"cpu", "cores", "memory", "kernel", "load_before"}) EXPECT_TRUE(json.at("machine").contains(fact));
  ASSERT_EQ(json.at("results").size(), 1u);
  const auto& r = json.at("results").at(0);
  ExpectCounts(r, 1500);
  EXPECT_EQ(r.at("durability"), "ledger");
  EXPECT_EQ(r.at("form"), "flow");
  for (const char* rate : {"enqueued_per_s", "executed_per_s", "recorded_per_s"}) EXPECT_GT(r.at(rate), 0) << rate;
  EXPECT_GE(r.at("executed_per_s"), r.at("recorded_per_s"));
  for (const char* latency : {"accept", "pickup", "outcome"}) ExpectLatency(r.at(latency), 1500);
  for (const char* process : {"broker", "redis", "postgres", "handlers", "client"}) {
    ASSERT_TRUE(r.at("processes").contains(process)) << process;
    EXPECT_GT(r.at("processes").at(process).at("pss_mb"), 0) << process;
  }
  EXPECT_GT(r.at("processes").at("broker").at("cpu_us_per_job"), 0);
  EXPECT_TRUE(r.at("queue_bytes_per_waiting_job").is_null());
}

TEST_F(CliBench, ADrainOfRedisClassAlsoTellsTheBytesOfAWaitingJob) {
  const auto json = Bench({"queue", "--jobs", "2000", "--drain", "--durability", "redis", "--appendfsync", "always"});
  EXPECT_EQ(json.at("durability").at("redis_fsync"), "AOF, appendfsync always");
  const auto& r = json.at("results").at(0);
  ExpectCounts(r, 2000);
  EXPECT_EQ(r.at("durability"), "redis");
  EXPECT_EQ(r.at("form"), "drain");
  EXPECT_GE(r.at("queue_bytes_per_waiting_job"), 100) << "the payload alone";
  EXPECT_LT(r.at("queue_bytes_per_waiting_job"), 1000);
  EXPECT_LT(r.at("ledger_bytes_per_waiting_job"), 100) << "no row before the outcome";
}

TEST_F(CliBench, EmbeddedStoresAndLatencyOfBothClasses) {
  const auto json = Bench({"latency", "--storage", "sqlite", "--jobs", "60", "--warmup", "10", "--rate", "200"});
  EXPECT_EQ(json.at("durability").at("ledger_fsync"), "WAL, synchronous=FULL");
  ASSERT_EQ(json.at("results").size(), 2u);
  EXPECT_EQ(json.at("results").at(0).at("durability"), "ledger");
  EXPECT_EQ(json.at("results").at(1).at("durability"), "redis");
  for (const auto& r : json.at("results")) {
    ExpectCounts(r, 70);
    ExpectLatency(r.at("pickup"), 60);
    ExpectLatency(r.at("accept"), 60);
  }
}

TEST_F(CliBench, AnOpenLoopKeepsItsRateWhateverHappens) {
  const auto r = Bench({"queue", "--storage", "sqlite", "--jobs", "300", "--rate", "200"}).at("results").at(0);
  ExpectCounts(r, 300);
  EXPECT_LE(r.at("enqueued_per_s"), 210) << "never ahead of the intended times";
}

TEST_F(CliBench, OrgsLimitKeysAndPriorities) {
  const auto r =
      Bench({"queue", "--jobs", "600", "--orgs", "7", "--limit-keys", "50", "--priorities", "4"}).at("results").at(0);
  ExpectCounts(r, 600);
  EXPECT_EQ(r.at("redelivered"), 0) << "tokens of two shards may be equal: a worker must tell such attempts apart";
}

TEST_F(CliBench, ScaleGoesThroughItsSteps) {
  const auto workers = Bench({"scale", "--storage", "sqlite", "--worker-counts", "1,2", "--jobs", "500"}).at("results");
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers.at(1).at("workers"), 2);
  ExpectSteady(workers.at(0), 1000 + 50 + 25 + 50 + 500);  // that wait, run, are held beside, warm up, count
  ExpectSteady(workers.at(1), 2 * (1000 + 50 + 25 + 50 + 500));
  const auto json = Bench({"scale", "--storage", "sqlite", "--depths", "50,4000", "--jobs", "2000", "--concurrency", "300",
                           "--batch", "100", "--warmup", "100"});
  EXPECT_EQ(json.at("sound"), true);
  const auto& depths = json.at("results");
  ASSERT_EQ(depths.size(), 2u);
  EXPECT_EQ(depths.at(1).at("depth"), 4000);
  ExpectSteady(depths.at(0), 50 + 300 + 200 + 2000);
  ExpectSteady(depths.at(1), 4000 + 300 + 200 + 2000);
  // A closed loop of 4,300: what does not wait is held, or on its way.
  EXPECT_GE(depths.at(1).at("waiting").at("min"), 1000);
  EXPECT_LE(depths.at(1).at("waiting").at("max"), 4300);
  EXPECT_LE(depths.at(0).at("waiting").at("max"), 350);
}

TEST_F(CliBench, ChainsOfJobsAndOfProcesses) {
  const auto json = Bench({"chain", "--stages", "5", "--runs", "4", "--warmup", "1", "--sleep", "2ms", "--storage", "sqlite"});
  const auto& r = json.at("results").at(0);
  EXPECT_EQ(r.at("runs"), 4);
  EXPECT_EQ(r.at("succeeded"), 4);
  EXPECT_EQ(r.at("outcomes"), 25) << "the warm-up too";
  EXPECT_EQ(r.at("lost"), 0);
  EXPECT_EQ(r.at("duplicated"), 0);
  ExpectLatency(r.at("ended"), 4);
  EXPECT_GE(r.at("ended").at("p50_us"), 10'000) << "five stages of 2 ms";
  const auto rated =
      Bench({"chain", "--stages", "2", "--runs", "40", "--rate", "50", "--storage", "sqlite"}).at("results").at(0);
  EXPECT_EQ(rated.at("succeeded"), 40);
  EXPECT_EQ(rated.at("ended_p99_us_by_quarter").size(), 4u);
  const auto processes = Bench({"chain", "--stages", "2", "--runs", "2", "--warmup", "0", "--handlers", "processes"});
  EXPECT_EQ(processes.at("results").at(0).at("succeeded"), 2);
  EXPECT_EQ(processes.at("results").at(0).at("outcomes"), 4);
  const auto sql = Bench({"chain", "--stages", "3", "--runs", "2", "--warmup", "1", "--handlers", "sql", "--rows", "10"});
  EXPECT_EQ(sql.at("results").at(0).at("handlers"), "sql");
  EXPECT_EQ(sql.at("results").at(0).at("succeeded"), 2);
  EXPECT_EQ(sql.at("results").at(0).at("outcomes"), 9) << "the warm-up too";
  EXPECT_GT(sql.at("results").at(0).at("stages_per_core_s"), 0);
}

TEST_F(CliBench, EverySlotFiresOnce) {
  const auto r = Bench({"cron", "--schedules", "4", "--seconds", "2"}).at("results").at(0);
  EXPECT_EQ(r.at("slots"), 8);
  EXPECT_EQ(r.at("fired"), 8);
  EXPECT_EQ(r.at("runs"), 8);
  EXPECT_EQ(r.at("outcomes"), 8);
  EXPECT_EQ(r.at("lost"), 0);
  EXPECT_EQ(r.at("duplicated"), 0);
  ExpectLatency(r.at("started"), 8);
  EXPECT_LE(r.at("started").at("p50_us"), r.at("recorded").at("p50_us"));
}

TEST_F(CliBench, LoadsArriveWhole) {
  for (const char* to : {"sqlite", "parquet", "postgres"}) {
    const auto results = Bench({"load", "--to", to, "--rows", "1000", "--runs", "2"}).at("results");
    ASSERT_EQ(results.size(), 2u) << to;
    for (const auto& r : results) {
      EXPECT_EQ(r.at("rows"), 1000);
      EXPECT_EQ(r.at("loaded"), r.at("expected"));
      EXPECT_GT(r.at("loaded"), 900);
      EXPECT_EQ(r.at("keys_agree"), true);
      EXPECT_GT(r.at("stage_ms").at("result"), 0);
    }
  }
}

TEST_F(CliBench, AMergeLeavesWhatTheOneByHandLeaves) {
  const auto results = Bench({"load", "--mode", "merge", "--rows", "2000", "--by-hand", "--own"}).at("results");
  ASSERT_EQ(results.size(), 1u);
  const auto& r = results.at(0);
  EXPECT_EQ(r.at("rows"), 200) << "a tenth is changed";
  EXPECT_EQ(r.at("loaded"), r.at("expected"));
  EXPECT_EQ(r.at("keys_agree"), true);
  EXPECT_EQ(r.at("same_rows_as_by_hand"), true);
  EXPECT_GT(r.at("by_hand").at("wall_s"), 0);
  const auto sqlite = Bench({"load", "--mode", "merge", "--to", "sqlite", "--rows", "2000"}).at("results").at(0);
  EXPECT_EQ(sqlite.at("loaded"), r.at("loaded"));
  EXPECT_EQ(sqlite.at("by_hand"), nullptr);
  for (const char* mode : {"append", "replace"}) {
    const auto load = Bench({"load", "--mode", mode, "--rows", "1000", "--by-hand", "--own"}).at("results").at(0);
    EXPECT_GT(load.at("by_hand").at("wall_ratio"), 0) << mode;
    EXPECT_EQ(load.at("duplicated"), 0);
    EXPECT_EQ(load.at("by_hand").at("raw_copy_s").is_number(), mode == std::string("append")) << mode;
  }
  const auto unlogged = Bench({"load", "--unlogged", "--rows", "1000", "--by-hand", "--own"}).at("results").at(0);
  EXPECT_EQ(unlogged.at("loaded"), unlogged.at("expected"));
  EXPECT_EQ(unlogged.at("unlogged"), true);
  EXPECT_GT(unlogged.at("by_hand").at("raw_copy_s"), 0);
}

TEST_F(CliBench, AReplaceIsMeasuredBesideThePrototypeWhichMustLeaveTheSameRows) {
  const std::string plain = std::string(MILLRACE_BIN_DIR) + "/../bench/millrace_plain_load";
  const std::vector<std::string> words{"load", "--mode", "replace", "--rows", "5000", "--by-hand", "--own", "--prototype"};
  const auto with = [&](const std::string& prototype) {
    auto all = words;
    all.push_back(prototype);
    return all;
  };
  const auto r = Bench(with(plain)).at("results").at(0);
  EXPECT_EQ(r.at("loaded"), r.at("expected"));
  EXPECT_EQ(r.at("keys_agree"), true);
  EXPECT_GT(r.at("by_hand").at("prototype_s"), 0);

  const std::string partial = Path("partial.sh");
  {
    std::ofstream out(partial);
    out << "#!/bin/sh\nhead -n 100 \"$1\" >\"$1.head\" && exec " << plain << " \"$1.head\" \"$2\" \"$3\"\n";
  }
  std::filesystem::permissions(partial, std::filesystem::perms::owner_all);
  const std::string kept = Path("kept");  // what a benchmark that fails leaves to be looked at
  std::filesystem::create_directories(kept);
  auto argv = with(partial);
  argv.insert(argv.begin(), "bench");
  const auto done = Run(argv, {.env = {{"TMPDIR", kept}}});
  EXPECT_NE(done.code, 0);
  EXPECT_THAT(done.err, AllOf(HasSubstr(partial), HasSubstr("rows in its table, which are not those of the file")));
}

TEST_F(CliBench, ARunningInstallationIsUsedAndLeftAsItWas) {
  // Servers: those of a benchmark that is kept waiting by its rate.
  const auto keeper = Start({"bench", "queue", "--jobs", "100000", "--rate", "5"}, {.env = {{"TMPDIR", temporary_}}});
  std::string config;
  EXPECT_TRUE(Eventually([&] {
    for (const auto& entry : std::filesystem::directory_iterator(temporary_))
      if (std::filesystem::exists(entry.path() / "handlers.log")) config = (entry.path() / "millrace.yaml").string();
    return !config.empty();
  }));
  const auto json = Bench({"queue", "--jobs", "500", "--config", config});
  EXPECT_EQ(json.at("installation"), "running");
  ExpectCounts(json.at("results").at(0), 500);
  EXPECT_TRUE(json.at("results").at(0).at("processes").contains("broker"));
  keeper->Signal(SIGTERM);
  EXPECT_EQ(keeper->Wait(std::chrono::seconds{30}).code, 130);
  EXPECT_FALSE(std::filesystem::exists(config)) << "an interrupted benchmark tidies up";
  const CliResult gone = Run({"bench", "queue", "--set", "ledger.dsn=host=127.0.0.1 port=1", "--set", "queue.redis=127.0.0.1:1",
                              "--set", "broker.listen_clients=tcp://127.0.0.1:1"});
  EXPECT_EQ(gone.code, 6) << gone.err;
  EXPECT_THAT(gone.err, AllOf(HasSubstr("no broker answers at tcp://127.0.0.1:1"), HasSubstr("--own")));
}

TEST_F(CliBench, WrongOptionsAreNamedBeforeAnythingStarts) {
  ExpectUsage({"queue", "--jobs", "0"}, "--jobs 0: expected 1 to 100000000");
  ExpectUsage({"queue", "--payload", "8"}, "--payload 8: expected 16 to 1048576");
  ExpectUsage({"queue", "--durability", "disk"}, "--durability 'disk': expected ledger or redis");
  ExpectUsage({"queue", "--batch", "2000"}, "--batch 2000: expected 1 to 1000");
  ExpectUsage({"queue", "--concurrency", "20000"}, "--concurrency 20000: expected 1 to 10000");
  ExpectUsage({"queue", "--rate", "-1"}, "--rate -1: expected 0 (closed loop)");
  ExpectUsage({"queue", "--rate", "100", "--drain"}, "a drain has no rate");
  ExpectUsage({"queue", "--storage", "files"}, "--storage 'files': expected servers or sqlite");
  ExpectUsage({"queue", "--appendfsync", "maybe"}, "--appendfsync 'maybe': expected always, everysec or no");
  ExpectUsage({"queue", "--sleep", "5"}, "--sleep '5': expected a duration");
  ExpectUsage({"queue", "--job", "5"}, "did you mean '--jobs'?");
  ExpectUsage({"latency", "--rate", "0"}, "latency needs a rate");
  ExpectUsage({"scale", "--worker-counts", "1,,2"}, "--worker-counts '1,,2': expected numbers from 1 to 256");
  ExpectUsage({"scale", "--depths", "10,x"}, "--depths '10,x': expected numbers from 1 to 100000000");
  ExpectUsage({"scale", "--depths", "10", "--worker-counts", "1"}, "--depths and --worker-counts: one at a time");
  ExpectUsage({"scale", "--jobs", "0"}, "--jobs 0: expected 1 to 100000000");
  ExpectUsage({"scale", "--warmup", "200000000"}, "--warmup 200000000: expected 0 to 100000000");
  ExpectUsage({"chain", "--handlers", "threads"}, "--handlers 'threads': expected inprocess, processes or sql");
  ExpectUsage({"cron", "--seconds", "0"}, "--seconds 0: expected 1 to 3600");
  ExpectUsage({"load", "--mode", "upsert"}, "--mode 'upsert': expected append, replace or merge");
  ExpectUsage({"load", "--mode", "merge", "--to", "parquet"}, "a file can only be replaced");
  ExpectUsage({"load", "--by-hand", "--to", "sqlite"}, "--by-hand: for --to postgres");
  ExpectUsage({"load", "--unlogged", "--to", "sqlite"}, "--unlogged: for --to postgres");
  ExpectUsage({"load", "--by-hand", "--prototype", "/bin/true"}, "--prototype: for --to postgres");
  ExpectUsage({"load", "--unlogged", "--mode", "merge"}, "--unlogged: for --to postgres and --mode append");
  ExpectUsage({"load", "--to", "mysql"}, "--to 'mysql': expected postgres, sqlite or parquet");
}

}  // namespace
}  // namespace millrace::testing
