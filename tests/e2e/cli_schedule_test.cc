// Schedules from the command line: previews, errors in the file, backfills that survive whoever feeds them.
#include <gmock/gmock.h>

#include <set>

#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CliSchedules : public CliTest {
 protected:
  // A pipeline whose schedule fires once a day at noon, and never while the test runs.
  void Apply(const std::string& command = "[\"true\"]", const std::string& more = "") {
    std::filesystem::create_directories(home_);
    WritePipeline(
        "day", "  c: { command: " + command + ", retry: { max_attempts: 1 } }\n",
        "schedule: { cron: \"0 12 * * *\", timezone: America/New_York, end: 2026-01-31, overlap: queue" + more + " }\n");
    const CliResult applied = Run({"pipeline", "apply", "day.yaml"});
    ASSERT_EQ(applied.code, 0) << applied.err;
  }
  nlohmann::json Backfill(std::vector<std::string> more, int code = 0) {
    std::vector<std::string> args{"backfill", "day", "--from", "2026-01-05", "--to", "2026-01-14"};
    args.insert(args.end(), more.begin(), more.end());
    auto json = RunJson(args, code);
    return json.is_array() ? json.at(0) : json;
  }
  nlohmann::json Show(const std::string& id) { return RunJson({"backfill", "show", id}).at(0); }
  bool Ended(const std::string& id) { return Show(id).at("state") == "ended"; }
};

TEST_F(CliSchedules, NextShowsWhatHappensAroundTheJumpsOfTheClock) {
  const auto rows = RunJson({"schedule", "next", "--cron", "30 2 * * *", "--timezone", "America/New_York", "--from",
                             "2024-01-01T00:00:00Z", "--transitions"});
  std::set<std::string> jumps;
  std::vector<std::string> in;
  for (const auto& row : rows) {
    jumps.insert(row.at("transition"));
    if (row.at("part") == "in") in.push_back(row.at("local").get<std::string>() + ": " + row.at("rule").get<std::string>());
  }
  EXPECT_EQ(jumps, (std::set<std::string>{"2024-03-10T07:00:00Z", "2024-11-03T06:00:00Z"}));
  EXPECT_EQ(in, std::vector<std::string>{"2024-03-10 02:30:00: gap, once: fires when the gap ends"});
  const CliResult none = Run({"schedule", "next", "--cron", "@daily", "--transitions"});
  EXPECT_EQ(none.code, 0);
  EXPECT_THAT(none.err, HasSubstr("the clock of UTC does not jump"));
}

TEST_F(CliSchedules, SeveralArePausedAtOnce) {
  for (const std::string name : {"one", "two"}) {
    WritePipeline(name, "  c: { command: [\"true\"] }\n", "schedule: { cron: \"0 12 * * *\" }\n");
    std::filesystem::create_directories(home_);
    ASSERT_EQ(Run({"pipeline", "apply", name + ".yaml"}).code, 0);
  }
  EXPECT_EQ(RunJson({"schedule", "pause", "one", "two"}).size(), 2u);
  for (const auto& row : RunJson({"schedule", "list"})) EXPECT_EQ(row.at("paused"), true);
  const CliResult some = Run({"schedule", "resume", "oen", "two"});
  EXPECT_EQ(some.code, 3);
  EXPECT_THAT(some.err, HasSubstr("did you mean 'one'?"));
  EXPECT_THAT(some.out, HasSubstr("two")) << "the other one was resumed";
  for (const auto& row : RunJson({"schedule", "list"})) EXPECT_EQ(row.at("paused"), row.at("pipeline") == "one");
}

TEST_F(CliSchedules, WrongRulesAreMarkedInTheFile) {
  WritePipeline("p", "  c: { command: [\"true\"] }\n",
                "schedule:\n  cron: \"0 12 * * *\"\n  start: 2026-02-30\n  end: soon\n  jitter: 25h\n  max_parallel: 0\n  "
                "overlap: stop\n");
  const CliResult check = Run({"check", "p.yaml"});
  EXPECT_EQ(check.code, 1);
  EXPECT_THAT(check.err, AllOf(HasSubstr("p.yaml:5:10: error: schedule.start: '2026-02-30' is not a day like 2026-11-21"),
                               HasSubstr("p.yaml:6:8: error: schedule.end: 'soon' is neither a day"),
                               HasSubstr("p.yaml:7:11: error: schedule.jitter is 25h; it must be at most 24h"),
                               HasSubstr("p.yaml:8:17: error: schedule.max_parallel is 0; it must be between 1 and 10000"),
                               HasSubstr("p.yaml:9:12: error: schedule.overlap must be skip, queue, allow or cancel")));
  WritePipeline("q", "  c: { command: [\"true\"] }\n",
                "schedule: { cron: \"0 12 * * *\", start: 2026-02-02, end: 2026-02-01, overlap: allow, max_parallel: 2 }\n");
  EXPECT_THAT(Run({"check", "q.yaml"}).err,
              HasSubstr("schedule.end 2026-02-01 is not after schedule.start 2026-02-02: it would never fire"));
  WritePipeline(
      "r", "  c: { command: [\"true\"] }\n",
      "schedule: { cron: \"0 12 * * *\", start: 2026-02-02, overlap: allow, max_parallel: 2, jitter: 30s, dst: both }\n");
  EXPECT_THAT(
      Run({"check", "r.yaml"}).err,
      HasSubstr(
          "schedule: 0 12 * * * UTC, from 2026-02-02, dst both, overlap allow of at most 2 runs, jitter 30000 ms, next "));
}

TEST_F(CliSchedules, ABackfillIsFedByTheSchedulerAndSurvivesItsDeath) {
  Apply("[sh, -c, \"echo x >> days; sleep 0.3\"]");
  const auto preview = Backfill({"--dry-run"});
  EXPECT_EQ(preview.at("slots"), 10);
  EXPECT_EQ(preview.at("to_run"), 10);
  EXPECT_EQ(preview.at("first"), "2026-01-05T17:00:00Z");
  EXPECT_EQ(preview.at("last"), "2026-01-14T17:00:00Z");
  EXPECT_EQ(RunJson({"backfill", "list"}).size(), 0u) << "nothing was stored";
  const auto made = Backfill({"--max-parallel", "2"});
  EXPECT_EQ(made.at("created"), true);
  EXPECT_EQ(made.at("generation"), 1);
  const std::string id = made.at("backfill");
  EXPECT_EQ(Backfill({"--max-parallel", "2"}).at("backfill"), id) << "asking again is asking once";
  EXPECT_EQ(Show(id).at("state"), "feeding");
  for (const std::size_t until : {2u, 5u}) {
    const auto up = Start({"up"});
    ASSERT_TRUE(Eventually([&] { return ReadAll(dir_ / "days").size() / 2 >= until; })) << up->Err();
    up->Signal(SIGKILL);
    (void)up->Wait(std::chrono::seconds{5});
    const auto shown = Show(id);
    EXPECT_LE(shown.at("active").get<int>(), 2);
    EXPECT_NE(shown.at("state"), "ended");
  }
  const auto up = Start({"up"});
  ASSERT_TRUE(Eventually([&] { return Ended(id); }, std::chrono::seconds{40})) << up->Err();
  const auto shown = Show(id);
  EXPECT_EQ(shown.at("runs"), 10);
  EXPECT_EQ(shown.at("succeeded"), 10);
  EXPECT_EQ(shown.at("decided"), 10);
  EXPECT_THAT(shown.at("created_by").get<std::string>(), ::testing::StartsWith("cli "));
  std::map<std::string, int> slots;
  for (const auto& run : RunJson({"run", "list", "--pipeline", "day", "-n", "500"})) ++slots[run.at("slot").get<std::string>()];
  EXPECT_EQ(slots.size(), 10u);
  for (const auto& [slot, runs] : slots) EXPECT_EQ(runs, 1) << slot;
  const auto again = Backfill({"--dry-run"});
  EXPECT_EQ(again.at("with_run"), 10);
  EXPECT_EQ(again.at("to_run"), 0);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{15}).code, 0);
  ExpectSound();
}

TEST_F(CliSchedules, ABackfillIsCancelledWithItsRuns) {
  Apply("[sh, -c, \"echo x >> days; sleep 60\"]");
  const std::string early = Backfill({}).at("backfill");
  ASSERT_EQ(Run({"backfill", "cancel", early}).code, 0);
  const auto up = Start({"up"});
  ASSERT_TRUE(Eventually([&] { return Show(early).at("state") == "cancelled"; }, std::chrono::seconds{30})) << up->Err();
  EXPECT_EQ(Show(early).at("decided"), 0) << "it was cancelled before anything was fed";
  const std::string id = Backfill({"--max-parallel", "2"}).at("backfill");
  ASSERT_TRUE(Eventually([&] { return !ReadAll(dir_ / "days").empty(); })) << up->Err();
  const auto cancelled = RunJson({"backfill", "cancel", id, "--running", "--reason", "wrong range"}).at(0);
  EXPECT_GE(cancelled.at("runs_cancelled").get<int>(), 1);
  ASSERT_TRUE(Eventually([&] { return Show(id).at("state") == "cancelled"; }, std::chrono::seconds{30})) << up->Err();
  const auto shown = Show(id);
  EXPECT_EQ(shown.at("reason"), "wrong range");
  EXPECT_THAT(shown.at("stopped_by").get<std::string>(), ::testing::StartsWith("cli "));
  EXPECT_LE(shown.at("runs").get<int>(), 2) << "nothing more was fed";
  EXPECT_EQ(shown.at("cancelled"), shown.at("runs"));
  EXPECT_FALSE(shown.at("ended_at").is_null());
  EXPECT_EQ(Run({"backfill", "cancel", id}).code, 0) << "again is once";
  EXPECT_EQ(Run({"backfill", "cancel", "01a1fc86-aaa1-71b6-be1e-5b4980682c42"}).code, 3);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{15}).code, 0);
  ExpectSound();
}

TEST_F(CliSchedules, FailedSlotsAreReprocessed) {
  Apply("[sh, -c, \"echo x >> tries; test $(wc -l < tries) -gt 10\"]");
  const auto up = Start({"up"});
  const std::string first = Backfill({"--max-parallel", "1", "--newest-first"}).at("backfill");
  ASSERT_TRUE(Eventually([&] { return Ended(first); }, std::chrono::seconds{40})) << up->Err();
  EXPECT_EQ(Show(first).at("failed"), 10);
  EXPECT_EQ(Backfill({"--dry-run"}).at("to_run"), 0);
  const auto second = Backfill({"--reprocess", "failed", "--max-parallel", "4"});
  EXPECT_EQ(second.at("to_run"), 10);
  EXPECT_EQ(second.at("generation"), 2);
  ASSERT_TRUE(Eventually([&] { return Ended(second.at("backfill")); }, std::chrono::seconds{40}));
  const CliResult asked =
      Run({"backfill", "day", "--from", "2026-01-05", "--to", "2026-01-14", "--newest-first", "--generation", "1"});
  EXPECT_EQ(asked.code, 0);
  EXPECT_THAT(asked.err, HasSubstr("it was stored before and has ended"));
  EXPECT_EQ(Show(second.at("backfill")).at("succeeded"), 10);
  EXPECT_EQ(Backfill({"--reprocess", "failed", "--dry-run"}).at("to_run"), 0);
  EXPECT_EQ(Backfill({"--reprocess", "all", "--dry-run"}).at("to_run"), 10);
  EXPECT_EQ(RunJson({"backfill", "list", "--pipeline", "day"}).size(), 2u);
  EXPECT_EQ(Backfill({"--dry-run", "--generation", "1"}).at("to_run"), 0);
  // What the second generation has run is not loaded again by a retry of the first one.
  for (const char* more : {"--dry-run", "-q"}) {
    const CliResult retried = Run({"run", "retry", "--pipeline", "day", more});
    EXPECT_EQ(retried.code, 0);
    EXPECT_THAT(retried.err, HasSubstr("10 runs left out: a later generation of the slot (a backfill) has run or is running"));
  }
  const std::string old = RunJson({"run", "list", "--state", "failed"}).at(0).at("run");
  const CliResult refused = Run({"run", "retry", old});
  EXPECT_EQ(refused.code, 5);
  EXPECT_THAT(refused.err, HasSubstr("ran again in generation 2, as run "));
  // Nor is a dead job of it.
  for (const char* more : {"--dry-run", "-q"}) {
    const CliResult requeued = Run({"job", "requeue", "--error-class", "command_failed", more});
    EXPECT_EQ(requeued.code, 0) << requeued.err;
    EXPECT_THAT(requeued.err, HasSubstr("10 jobs left out: a later generation of the slot (a backfill) has run or is running"));
    EXPECT_THAT(requeued.err, HasSubstr(more == std::string("-q") ? "0 jobs requeued\n" : "0 jobs would be requeued\n"));
  }
  const std::string dead = RunJson({"job", "list", "--open"}).at(0).at("job");
  for (const std::vector<std::string>& more : {std::vector<std::string>{"--dry-run"}, {}}) {
    std::vector<std::string> args{"job", "requeue", dead};
    args.insert(args.end(), more.begin(), more.end());
    const CliResult named = Run(args);
    EXPECT_EQ(named.code, 5);
    EXPECT_THAT(named.err, HasSubstr("job " + dead + ": its slot"));
    EXPECT_THAT(named.err, HasSubstr("ran again in generation 2, as run "));
    EXPECT_THAT(named.out, HasSubstr("its slot ran again in generation 2"));
  }
  EXPECT_EQ(RunJson({"job", "list", "--open"}).size(), 10u) << "nothing was written";
  EXPECT_EQ(RunJson({"run", "list", "--state", "running"}).size(), 0u);
  const auto run = RunJson({"run", "now", "day", "--wait"});
  EXPECT_EQ(run.at("state"), "succeeded");
  EXPECT_EQ(run.at("slot"), nullptr);
}

TEST_F(CliSchedules, WrongBackfillsAreRefused) {
  Apply();
  const std::pair<std::vector<std::string>, std::pair<int, const char*>> cases[] = {
      {{"backfill", "nosuch", "--from", "2026-01-01", "--to", "2026-01-02"}, {3, "nosuch"}},
      {{"backfill", "day", "--to", "2026-01-02"}, {2, "--from is missing"}},
      {{"backfill", "day", "--from", "2026-01-03", "--to", "2026-01-01"}, {2, "is not after --from"}},
      {{"backfill", "day", "--from", "x", "--to", "2026-01-01"}, {2, "--from: 'x' is neither a day"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "--reprocess", "some"}, {2, "none, failed or all"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "--max-parallel", "0"}, {2, "--max-parallel: 0"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "--generation", "0"},
       {2, "--generation: 0 is not in [1, 1000000000]: leave it out for the next one"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "--generation", "4294967295", "--dry-run"},
       {2, "--generation: 4294967295 is not in [1, 1000000000]"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "-p", "x=1"}, {2, "no parameter 'x'"}},
      {{"backfill", "day", "--from", "2026-01-01", "--to", "2026-01-02", "--schedule", "other"},
       {3, "has no schedule 'other'"}},
      {{"backfill"}, {2, "give a pipeline"}},
      {{"backfill", "show", "01a1fc86-aaa1-71b6-be1e-5b4980682c42"}, {3, "there is no backfill"}}};
  for (const auto& [args, expected] : cases) {
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, expected.first) << ::testing::PrintToString(args) << result.err;
    EXPECT_THAT(result.err, HasSubstr(expected.second));
  }
}

}  // namespace
}  // namespace millrace::testing
