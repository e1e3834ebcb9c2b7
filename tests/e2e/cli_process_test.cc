// The command line as processes: locks, signals, kills, services, ledgers of another version, commands and the audit trail.
#include <gmock/gmock.h>
#include <sys/mount.h>

#include <algorithm>
#include <cstdlib>

#include "common/drivers/sqlite.h"
#include "tests/support/cli_runner.h"
#include "tests/support/process.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CliProcesses : public CliTest {
 protected:
  CliProcesses() { Write("a.csv", "id,amount\n1,10\n2,20\n"); }

  void WriteSlow(const std::string& seconds, const std::string& more = "") const { WriteNap("sleep " + seconds, more); }
  void WriteNap(const std::string& nap, const std::string& more = "") const {
    WritePipeline("slow",
                  "  raw: { extract: { from: file, path: a.csv } }\n"
                  "  nap: { command: [sh, -c, \"echo x >> naps; " +
                      nap + "\"], after: raw" + more +
                      " }\n"
                      "  l: { load: { from: raw, to: warehouse, table: x }, after: nap }\n");
  }
  bool NapStarted() const { return !ReadAll(dir_ / "naps").empty(); }
  void Sql(const std::string& sql) const {
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {});
    ASSERT_TRUE(db) << db.error().message;
    const auto done = db->Exec(sql);
    ASSERT_TRUE(done) << done.error().message;
  }
  std::size_t Runs(const std::string& state) {
    const CliResult result = Run({"run", "list", "--state", state, "-q", "-n", "500"});
    return static_cast<std::size_t>(std::count(result.out.begin(), result.out.end(), '\n'));
  }
};

TEST_F(CliProcesses, OneHomeHasOneEngine) {
  WriteNap("while [ ! -e awake ]; do sleep 0.1; done");
  const auto first = Start({"run", "slow.yaml", "-q"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  for (const auto& args : {std::vector<std::string>{"run", "slow.yaml"}, {"up"}}) {
    const CliResult second = Run(args);
    EXPECT_EQ(second.code, 5);
    EXPECT_THAT(second.err, AllOf(HasSubstr("is in use by process " + std::to_string(first->pid()) + " (millrace run)"),
                                  HasSubstr("another --home")));
  }
  EXPECT_EQ(Runs("running"), 1u) << "looking needs no lock";
  Write("awake", "");
  const CliResult other = Run({"run", "slow.yaml", "-q", "--home", Path("other")});
  EXPECT_EQ(other.code, 0) << "another home is another engine: " << other.err;
  EXPECT_EQ(first->Wait(std::chrono::seconds{30}).code, 0);
  ExpectSound();
}

// The real stage process, with DuckDB in it, in the middle of a query.
TEST_F(CliProcesses, AStageProcessThatAbortsOrSegfaultsIsACrashOfItsAttempt) {
  WritePipeline("heavy",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  t: { transform: \"select count(*) as n from raw a, range(100000000) r(i) where hash(r.i) % 7 = 0\" }\n"
                "  l: { load: { from: t, to: warehouse, table: x } }\n");
  const auto engine = Start({"run", "heavy.yaml", "-q"});
  const auto count = [&](const std::string& sql) -> std::int64_t {
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {.access = sqlite::Access::kReadOnly});
    if (!db) return -1;
    auto rows = db->Prepare(sql);
    return rows && rows->Step().value_or(false) ? rows->Int64(0) : -1;
  };
  // It confines itself when it has its order; nothing else has one while the transform runs.
  const auto busy = [&] {
    for (const pid_t pid : ChildrenOf(engine->pid(), "millrace-stage")) {
      std::ifstream status("/proc/" + std::to_string(pid) + "/status");
      for (std::string line; std::getline(status, line);)
        if (line == "NoNewPrivs:\t1") return pid;
    }
    return pid_t{-1};
  };
  ASSERT_TRUE(Eventually([&] { return count("select count(*) from outcome") == 1; })) << "the extract";
  int crashes = 0;
  for (const int signal : {SIGABRT, SIGSEGV}) {  // the third crash would end the job
    pid_t stage = -1;
    ASSERT_TRUE(Eventually([&] { return (stage = busy()) > 0; }));
    ASSERT_EQ(::kill(stage, signal), 0);
    ++crashes;
    ASSERT_TRUE(Eventually([&] { return count("select count(*) from attempt where ended = 3") == crashes; })) << signal;
  }
  EXPECT_EQ(engine->Wait(std::chrono::seconds{120}).code, 0);
  EXPECT_EQ(count("select count(*) from attempt where ended = 3 and signal = 6"), 1);  // sanitizers catch the other
  ExpectSound();
}

TEST_F(CliProcesses, ARunIsCancelledWhileItRuns) {
  WriteSlow("60");
  const auto engine = Start({"run", "slow.yaml", "-q"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  const std::string run = Run({"run", "list", "-q"}).out.substr(0, 36);
  const CliResult cancelled = Run({"run", "cancel", run, "--reason", "wrong day", "--wait"});
  EXPECT_EQ(cancelled.code, 0) << cancelled.err;
  EXPECT_THAT(cancelled.err, AllOf(HasSubstr("recorded"), HasSubstr("cancelled by cli"), HasSubstr("wrong day")));
  EXPECT_LT(cancelled.wall.count(), 30'000) << "it waited for the command";
  EXPECT_EQ(engine->Wait(std::chrono::seconds{30}).code, 1);
  EXPECT_EQ(Runs("cancelled"), 1u);
  EXPECT_NE(Run({"query", "warehouse", "select * from x"}).code, 0) << "nothing was loaded";
  const CliResult late = Run({"run", "cancel", run});
  EXPECT_EQ(late.code, 5);
  EXPECT_THAT(late.err + late.out, HasSubstr("cancelled"));
  EXPECT_EQ(Run({"run", "cancel", "0190f5c8-0000-7000-8000-000000000000"}).code, 3);
  ExpectSound();
}

TEST_F(CliProcesses, AServiceStopsWhatItsClientsCancel) {
  WriteSlow("60");
  const auto up = Start({"up", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(home_ / "broker.sock"); }));
  ASSERT_TRUE(Eventually([&] { return Run({"run", "start", "slow", "-q"}).code == 0; }));
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  const std::string run = Run({"run", "list", "-q"}).out.substr(0, 36);
  const CliResult cancelled = Run({"run", "cancel", run, "--wait"});
  EXPECT_EQ(cancelled.code, 0) << cancelled.err;
  EXPECT_THAT(cancelled.out, AllOf(HasSubstr("cancelled  cancelled"), Not(HasSubstr("cancelling")))) << "its end";
  EXPECT_THAT(cancelled.err, HasSubstr("cancelled by cli"));
  EXPECT_EQ(Runs("cancelled"), 1u);
  const CliResult again = Run({"run", "cancel", run, "-q"});
  EXPECT_EQ(again.code, 5);
  EXPECT_EQ(again.out, run + "\n");
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{10}).code, 0);
  ExpectSound();
}

TEST_F(CliProcesses, EachIdOfACancelListGetsItsOwnAnswer) {
  WriteSlow("60");
  const auto killed = Start({"run", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  killed->Signal(SIGKILL);
  killed->Wait(std::chrono::seconds{5});
  const std::string run = Run({"run", "list", "-q"}).out.substr(0, 36);
  const std::string nap = StageOf(RunJson({"run", "show", run}), "nap").at("job");
  const std::string nobody = "0190f5c8-0000-7000-8000-000000000000";
  const CliResult jobs = Run({"job", "cancel", nobody, nap, "-o", "json"});
  EXPECT_EQ(jobs.code, 3);
  EXPECT_THAT(jobs.err,
              HasSubstr("job " + nap + " is a job of run " + run + "; it is cancelled with its run: millrace run cancel"));
  const auto answers = nlohmann::json::parse(jobs.out, nullptr, false);
  ASSERT_EQ(answers.size(), 2U) << jobs.out;
  for (const auto& answer : answers) EXPECT_EQ(answer.at("effect"), "not_found");
  EXPECT_EQ(Run({"run", "cancel", run}).code, 0) << "nothing of the list was recorded before";
}

TEST_F(CliProcesses, AHandBackConsumesNoAttempt) {
  WriteSlow("30", ", retry: { max_attempts: 1 }");
  const auto first = Start({"up", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(home_ / "broker.sock"); }));
  ASSERT_TRUE(Eventually([&] { return Run({"run", "start", "slow", "-q"}).code == 0; }));
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  const std::string run = Run({"run", "list", "-q"}).out.substr(0, 36);
  first->Signal(SIGTERM);
  ASSERT_TRUE(Eventually([&] { return first->Err().find("draining") != std::string::npos; }));
  first->Signal(SIGTERM);
  EXPECT_EQ(first->Wait(std::chrono::seconds{10}).code, 0) << "a second signal hands back at once";
  WriteSlow("0", ", retry: { max_attempts: 1 }");
  const auto next = Start({"up"});
  ASSERT_TRUE(Eventually([&] { return std::ranges::count(ReadAll(dir_ / "naps"), 'x') == 2; })) << next->Err();
  EXPECT_EQ(Runs("failed"), 0U) << "its only attempt was not used up";
  const auto job = RunJson({"job", "show", StageOf(RunJson({"run", "show", run}), "nap").at("job")});
  ASSERT_FALSE(job.at("attempts").empty());
  EXPECT_EQ(job.at("attempts").at(0).at("end"), "handed_back");
  EXPECT_EQ(job.at("failures"), 0);
  EXPECT_EQ(Run({"run", "cancel", run, "--wait"}).code, 0);
  next->Signal(SIGTERM);
  EXPECT_EQ(next->Wait(std::chrono::seconds{15}).code, 0);
  ExpectSound();
}

TEST_F(CliProcesses, ACancelWithoutAnEngineIsKeptForTheNextOne) {
  WriteSlow("1");
  const auto killed = Start({"run", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  killed->Signal(SIGKILL);
  killed->Wait(std::chrono::seconds{5});
  const std::string run = Run({"run", "list", "-q"}).out.substr(0, 36);
  const CliResult cancelled = Run({"run", "cancel", run});
  EXPECT_EQ(cancelled.code, 0) << cancelled.err;
  EXPECT_THAT(cancelled.err, HasSubstr("recorded"));
  EXPECT_EQ(Run({"run", "slow.yaml", "-q"}).code, 0);
  EXPECT_EQ(Runs("cancelled"), 1u);
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n2\n") << "the cancelled one loaded nothing";
  ExpectSound();
}

TEST_F(CliProcesses, AKilledRunIsFinishedByTheNextEngineAndLoadedOnce) {
  WriteSlow("1");
  const auto killed = Start({"run", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  killed->Signal(SIGKILL);
  EXPECT_EQ(killed->Wait(std::chrono::seconds{5}).code, 128 + SIGKILL);
  EXPECT_EQ(Runs("running"), 1u);
  const CliResult next = Run({"run", "slow.yaml", "-q"});
  EXPECT_EQ(next.code, 0) << next.err;
  EXPECT_EQ(Runs("running"), 0u) << "the same pipeline's runs go one after the other";
  EXPECT_EQ(Runs("failed"), 0u);
  const std::size_t runs = Runs("succeeded");
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n" + std::to_string(2 * runs) + "\n")
      << "append: two rows for each run, once";
  const std::string newest_first = Run({"run", "list", "-q"}).out;
  const std::string run = newest_first.substr(newest_first.size() - 37, 36);
  EXPECT_THAT(
      Run({"run", "logs", run, "--stage", "nap"}).out,
      AllOf(HasSubstr("nap attempt 1 on nobody: lost: a former broker had delivered it"), HasSubstr("nap attempt 2 on ")))
      << "the history has every delivery and how it ended";
  ExpectSound();
}

TEST_F(CliProcesses, CtrlCKeepsTheRunAndTheNextEngineGoesOn) {
  WriteSlow("30");
  const auto run = Start({"run", "slow.yaml"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  run->Signal(SIGINT);
  const CliResult interrupted = run->Wait(std::chrono::seconds{10});
  EXPECT_EQ(interrupted.code, 130);
  EXPECT_THAT(interrupted.err, AllOf(HasSubstr("interrupted; run "), HasSubstr("goes on with the next 'millrace up'")));
  EXPECT_EQ(Runs("running"), 1u);
  const auto up = Start({"up"});
  EXPECT_TRUE(Eventually([&] { return std::ranges::count(ReadAll(dir_ / "naps"), 'x') == 2; })) << "the stage starts again";
  up->Signal(SIGTERM);
  EXPECT_TRUE(Eventually([&] { return up->Err().find("draining") != std::string::npos; }));
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{10}).code, 0) << "a second signal hands back at once";
  ExpectSound();
}

// What its type check waits for, stopped: its --check child, or of `run` the nursery of which it asks one.
std::optional<pid_t> StoppedCheckOf(pid_t parent, std::string_view mode) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (std::chrono::steady_clock::now() < until) {
    for (const pid_t child : ChildrenOf(parent, "millrace-stage")) {
      if (!ReadAll(fmt::format("/proc/{}/cmdline", child)).contains(mode)) continue;
      ::kill(child, SIGSTOP);
      return child;
    }
  }
  return std::nullopt;
}
bool Lives(pid_t pid) {  // what has ended and is not reaped yet has no command line
  return !ReadAll(fmt::format("/proc/{}/cmdline", pid)).empty();
}

TEST_F(CliProcesses, AStopSignalDuringTheTypeCheckLeavesNothingBehind) {
  std::string stages = "  raw: { extract: { from: file, path: a.csv } }\n";
  for (int i = 0; i < 100; ++i) stages += fmt::format("  t{}: {{ transform: 'select id, amount + {} as v from raw' }}\n", i, i);
  WritePipeline("wide", stages);
  const std::filesystem::path scratch = dir_ / "scratch";
  std::filesystem::create_directory(scratch);
  const CliOptions options{.env = {{"TMPDIR", scratch.string()}}};
  const std::vector<std::string> run{"run", "wide.yaml"}, check{"check", "wide.yaml"};
  for (const auto& [args, signal] : std::vector<std::pair<std::vector<std::string>, int>>{
           {run, SIGINT}, {run, SIGTERM}, {check, SIGINT}, {run, SIGKILL}, {check, SIGKILL}}) {
    SCOPED_TRACE(fmt::format("{} {}", args[0], signal));
    const auto command = Start(args, options);
    const auto child = StoppedCheckOf(command->pid(), args == run ? "--nursery" : "--check");
    ASSERT_TRUE(child) << command->Err();
    command->Signal(signal);
    const CliResult ended = command->Wait(std::chrono::seconds{10});
    EXPECT_TRUE(Eventually([&] { return !Lives(*child); })) << "its check goes on";
    if (Lives(*child)) ::kill(*child, SIGKILL);
    EXPECT_FALSE(std::filesystem::exists(home_)) << "a home that was not there before";
    if (signal == SIGKILL) continue;  // its scratch is the next worker's to remove
    EXPECT_EQ(ended.code, 130);
    EXPECT_TRUE(std::filesystem::is_empty(scratch));
    if (args != run) continue;
    EXPECT_THAT(ended.err, HasSubstr("interrupted while the types were checked: nothing was run"));
  }
}

TEST_F(CliProcesses, ARefusedFileStartsNothingOfAnEarlierRun) {
  WriteSlow("600");
  const auto first = Start({"run", "slow.yaml", "-q"});
  ASSERT_TRUE(Eventually([&] { return NapStarted(); }));
  first->Signal(SIGTERM);
  first->Signal(SIGTERM);
  EXPECT_EQ(first->Wait(std::chrono::seconds{20}).code, 130);
  ASSERT_EQ(Runs("running"), 1u) << "it is kept";
  const std::string naps = ReadAll(dir_ / "naps"), versions = Run({"pipeline", "list"}).out;

  std::string stages = "  raw: { extract: { from: file, path: a.csv } }\n";  // the check of many takes its time
  for (int i = 0; i < 100; ++i) stages += fmt::format("  t{}: {{ transform: 'select id, amount + {} as v from raw' }}\n", i, i);
  WritePipeline("wrong", stages + "  bad: { transform: select nosuch from raw }\n");
  const CliResult refused = Run({"run", "wrong.yaml"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("nosuch"));
  EXPECT_EQ(ReadAll(dir_ / "naps"), naps) << "no job was started beside the check";
  EXPECT_EQ(Run({"pipeline", "list"}).out, versions) << "no version was stored";
  EXPECT_EQ(Runs("running"), 1u);
  EXPECT_EQ(Runs("failed"), 0u);
  ExpectSound();
}

TEST_F(CliProcesses, StatusNamesABrokerThatHoldsNoShard) {
  const auto engine = Start({"up", "--log-level", "warn"});
  // It answers before its ledger is there.
  ASSERT_TRUE(Eventually([&] { return Run({"status", "-o", "ndjson"}).out.contains("broker"); }));
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch());
  Sql(fmt::format("insert into broker_presence (owner, name, renewed_at) values (randomblob(16), 'idle', {})", now.count()));
  const auto status = RunJson({"status"});
  ASSERT_EQ(status.at("brokers").size(), 2u) << status.dump(2);
  for (const auto& broker : status.at("brokers"))
    EXPECT_EQ(broker.at("shards").empty(), broker.at("name") == "idle") << status.dump(2);
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
}

TEST_F(CliProcesses, APausedScheduleSkipsItsSlotsAndResumes) {
  WritePipeline("tick", "  raw: { extract: { from: file, path: a.csv } }\n",
                "schedule: { cron: \"* * * * * *\", catchup: all }\n");
  EXPECT_EQ(Run({"schedule", "pause", "tick"}).code, 3) << "no ledger yet";
  ASSERT_EQ(Run({"pipeline", "apply", "tick.yaml"}).code, 0);
  const CliResult typo = Run({"schedule", "pause", "tik"});
  EXPECT_EQ(typo.code, 3);
  EXPECT_THAT(typo.err, HasSubstr("no pipeline 'tik' has been applied; did you mean 'tick'?"));
  EXPECT_EQ(RunJson({"schedule", "pause", "tick"})[0].at("paused"), true);
  const auto up = Start({"up", "tick.yaml"});  // which applies the file again
  const auto slots = [&](const std::string& state) {
    int n = 0;
    for (const auto& slot : RunJson({"schedule", "slots", "tick"}))
      n += slot.at("state") == state && (state != "skipped" || slot.at("reason") == "paused");
    return n;
  };
  ASSERT_TRUE(Eventually([&] { return slots("skipped") >= 2; })) << up->Err();
  EXPECT_EQ(slots("fired"), 0);
  EXPECT_THAT(up->Err(),
              AllOf(HasSubstr("pipeline tick: schedule '* * * * * *' UTC, paused"), HasSubstr("is skipped: paused")));
  EXPECT_TRUE(RunJson({"schedule", "list"})[0].at("next").is_null());
  EXPECT_EQ(RunJson({"schedule", "list"})[0].at("paused"), true);
  const auto resumed = RunJson({"schedule", "resume", "tick"});
  EXPECT_EQ(resumed[0].at("paused"), false);
  EXPECT_TRUE(resumed[0].at("next").is_string());
  ASSERT_TRUE(Eventually([&] { return Runs("succeeded") >= 1; })) << up->Err();
  EXPECT_GE(slots("skipped"), 2);
  up->Signal(SIGTERM);
  const CliResult stopped = up->Wait(std::chrono::seconds{15});
  EXPECT_THAT(stopped.err, AllOf(::testing::ContainsRegex("pipeline tick, run [0-9a-f-]+: starts: 1 stage, slot 20"),
                                 ::testing::ContainsRegex("pipeline tick, run [0-9a-f-]+: succeeded in [0-9.]+ s, 2 rows read"),
                                 ::testing::ContainsRegex("run [0-9a-f-]+, stage raw, slot [0-9TZ:-]+: succeeded in ")));
  ExpectSound();
}

TEST_F(CliProcesses, ARunIsNamedByItsBeginningOrAsTheLast) {
  WritePipeline("p", "  raw: { extract: { from: file, path: a.csv } }\n");
  WritePipeline("q", "  c: { command: [sh, -c, \"echo it broke >&2; exit 3\"], retry: { max_attempts: 1 } }\n");
  const std::string p = RunJson({"run", "p.yaml"}).at("run");
  const std::string q = RunJson({"run", "q.yaml"}, 1).at("run");
  EXPECT_EQ(RunJson({"run", "show", "last"}).at("run"), q);
  EXPECT_EQ(RunJson({"run", "show", "last", "--pipeline", "p"}).at("run"), p);
  EXPECT_EQ(RunJson({"run", "show", p.substr(0, 13)}).at("run"), p);
  std::string digits = p;
  std::erase(digits, '-');
  for (char& c : digits) c = static_cast<char>(std::toupper(c));
  EXPECT_EQ(RunJson({"run", "show", digits.substr(0, 13)}).at("run"), p);
  EXPECT_EQ(RunJson({"run", "show", digits}).at("run"), p);
  EXPECT_EQ(RunJson({"run", "logs", q.substr(0, 13)})[0].at("log"), "it broke\n");
  EXPECT_EQ(RunJson({"run", "show", p.substr(0, 4), "--pipeline", "p"}).at("run"), p);
  const CliResult both = Run({"run", "show", p.substr(0, 4)});
  EXPECT_EQ(both.code, 2);
  EXPECT_THAT(both.err, AllOf(HasSubstr("several runs begin with '" + p.substr(0, 4) + "': give 13 characters of one of them"),
                              HasSubstr("\n  " + p), HasSubstr("\n  " + q)));
  const CliResult few = Run({"run", "show", p.substr(0, 3)});
  EXPECT_EQ(few.code, 2);
  EXPECT_THAT(few.err, HasSubstr("at least 4"));
  const CliResult none = Run({"run", "show", "ffff"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("no run begins with 'ffff'"));
  EXPECT_EQ(Run({"run", "show", "last", "--pipeline", "zz"}).code, 3);
  const CliResult list = Run({"run", "list"});
  EXPECT_THAT(list.out, AllOf(HasSubstr(p.substr(0, 13) + "  p"), HasSubstr(q.substr(0, 13) + "  q"), Not(HasSubstr(p))));
  std::istringstream lines(list.out);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  EXPECT_EQ(RunJson({"run", "list"})[0].at("run"), q) << "whole ids for programs";
}

TEST_F(CliProcesses, UpFiresOnItsScheduleAnswersOthersAndDrains) {
  WritePipeline(
      "tick",
      "  raw: { extract: { from: file, path: a.csv } }\n  t: { transform: \"select id, amount + $n as amount from raw\" }\n"
      "  l: { load: { from: t, to: warehouse, table: x, mode: merge, key: id } }\n",
      "schedule: { cron: \"* * * * * *\" }\nparams: { n: 3 }\n");
  const CliResult nobody = Run({"status"});
  EXPECT_EQ(nobody.code, 6);
  EXPECT_THAT(nobody.err, HasSubstr("start 'millrace up --home " + home_.string() + "'"));
  const auto up = Start({"up", "tick.yaml"});
  ASSERT_TRUE(Eventually([&] { return Runs("succeeded") >= 2; })) << up->Err();
  const auto status = RunJson({"status"});
  EXPECT_EQ(status.at("shards").size(), 1u);
  ASSERT_EQ(status.at("workers").size(), 1u);
  EXPECT_EQ(Run({"status", "-o", "csv"}).code, 0);
  const auto run = RunJson({"run", "start", "tick", "-p", "n=100", "--wait"});
  EXPECT_EQ(run.at("state"), "succeeded");
  EXPECT_EQ(run.at("slot"), nullptr);
  const CliResult started = Run({"run", "start", "tick", "-q"});
  EXPECT_EQ(started.code, 0);
  EXPECT_EQ(started.out.size(), 37u) << "an id and a newline";
  EXPECT_EQ(Run({"run", "start", "nosuch"}).code, 3);
  EXPECT_EQ(Run({"run", "start", "tick", "-p", "n=x"}).code, 2);
  const auto schedules = RunJson({"schedule", "list"});
  ASSERT_EQ(schedules.size(), 1u);
  EXPECT_EQ(schedules[0].at("cron"), "* * * * * *");
  up->Signal(SIGTERM);
  const CliResult stopped = up->Wait(std::chrono::seconds{15});
  EXPECT_EQ(stopped.code, 0) << stopped.err;
  EXPECT_EQ(stopped.out, "") << "logs belong to stderr";
  EXPECT_THAT(stopped.err, HasSubstr("has drained"));
  std::map<std::string, int> slots;
  for (const auto& r : RunJson({"run", "list", "-n", "500"}))
    if (!r.at("slot").is_null()) ++slots[r.at("slot")];
  for (const auto& [slot, runs] : slots) EXPECT_EQ(runs, 1) << slot;
  const CliResult after = Run({"run", "start", "tick", "--wait"});
  EXPECT_EQ(after.code, 6);
  EXPECT_THAT(after.err, HasSubstr("nothing was submitted"));
  ExpectSound();
}

TEST_F(CliProcesses, CommandsGetTheirWordsAndTheirWholeGroupIsKilledAtTheDeadline) {
  WritePipeline("cmd",
                "  ok: { command: { argv: [sh, -c, 'printf \"%s|\" \"$@\" \"$GREETING\" >&2; pwd >&2', sh, \"a b\", \"c'd\", "
                "\"*\"], env: { GREETING: \"hello world\" } } }\n"
                "  bad: { command: [sh, -c, \"echo oops >&2; exit 7\"], retry: { max_attempts: 2, backoff: 10ms } }\n"
                "  late: { command: [sh, -c, \"sleep 987123 & sleep 987123\"], timeout: 500ms, retry: { max_attempts: 1 } }\n"
                "  missing: { command: [no_such_program_x], retry: { max_attempts: 1 } }\n");
  const auto run = RunJson({"run", "cmd.yaml"}, 1);
  EXPECT_EQ(StageOf(run, "ok").at("state"), "succeeded");
  EXPECT_EQ(StageOf(run, "bad").at("error_class"), "command_failed");
  EXPECT_EQ(StageOf(run, "bad").at("failures"), 2);
  EXPECT_THAT(StageOf(run, "bad").at("error").get<std::string>(), HasSubstr("exit code 7"));
  EXPECT_EQ(StageOf(run, "late").at("error_class"), "timed_out");
  EXPECT_EQ(StageOf(run, "missing").at("error_class"), "command_not_startable");
  const std::string id = run.at("run");
  EXPECT_THAT(Run({"run", "logs", id, "--stage", "ok"}).out,
              HasSubstr("a b|c'd|*|hello world|" + std::filesystem::canonical(dir_).string()));
  EXPECT_THAT(Run({"run", "logs", id, "--stage", "bad"}).out,
              AllOf(HasSubstr("bad attempt 1"), HasSubstr("bad attempt 2"), HasSubstr("oops")));
  EXPECT_TRUE(Eventually(
      [] {  // nobody of the group is left
        for (const auto& entry : std::filesystem::directory_iterator("/proc"))
          if (ReadAll(entry.path() / "cmdline").find("987123") != std::string::npos) return false;
        return true;
      },
      std::chrono::seconds{3}));
  ExpectSound();
}

TEST_F(CliProcesses, AFileThatHasNotChangedIsOneVersion) {
  WritePipeline("daily", "  c: { command: [\"true\"] }\n");
  const std::string file = ReadAll(dir_ / "daily.yaml");
  Write("daily.yaml", file + "schedule: { cron: \"0 0 1 1 *\", timezone: UTC }\n");
  EXPECT_EQ(RunJson({"run", "daily.yaml"}).at("version"), 1);
  EXPECT_TRUE(RunJson({"schedule", "list"}).empty());
  const auto up = Start({"up", "daily.yaml"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const auto schedules = RunJson({"schedule", "list"});
  ASSERT_EQ(schedules.size(), 1u);
  EXPECT_EQ(schedules.at(0).at("version"), 1) << "only its schedule came into force";
  EXPECT_EQ(RunJson({"pipeline", "list"}).at(0).at("version"), 1);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{10}).code, 0);
  const CliResult future = Run({"backfill", "daily", "--from", "2090-01-01", "--to", "2091-01-01"});
  EXPECT_EQ(future.code, 2);
  EXPECT_THAT(future.err, HasSubstr("own when they are due"));
  EXPECT_THAT(Run({"version"}).out, HasSubstr("duckdb"));
  ExpectSound();
}

TEST_F(CliProcesses, ALedgerOfANewerVersionIsLeftAlone) {
  WritePipeline("p", "  c: { command: [\"true\"] }\n");
  ASSERT_EQ(Run({"run", "p.yaml", "-q"}).code, 0);
  Sql("insert into schema_version select max(version) + 1, 0 from schema_version");
  for (const auto& args :
       {std::vector<std::string>{"run", "p.yaml"}, {"up"}, {"run", "list"}, {"pipeline", "list"}, {"audit", "verify"}}) {
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 5) << args[0];
    EXPECT_THAT(result.err, AllOf(HasSubstr("ledger is of version "), HasSubstr("use a newer millrace"))) << args[0];
  }
  EXPECT_EQ(Run({"doctor"}).code, 1);
}

TEST_F(CliProcesses, ADamagedLedgerAndAHomeThatIsNoneAreSaidClearly) {
  WritePipeline("p", "  c: { command: [\"true\"] }\n");
  ASSERT_EQ(Run({"run", "p.yaml", "-q"}).code, 0);
  for (const char* name : {"ledger.db-wal", "ledger.db-shm"}) std::filesystem::remove(home_ / name);
  check_history_ = false;  // there is no ledger any more
  Write("home/ledger.db", std::string(100'000, 'z'));
  for (const auto& args : {std::vector<std::string>{"run", "p.yaml"}, {"run", "list"}, {"audit", "verify"}}) {
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 1) << args[0];
    EXPECT_THAT(result.err, AllOf(HasSubstr("not a database"), HasSubstr("restore this file from a backup")));
  }
  Write("file", "x");
  home_ = dir_ / "file";
  for (const auto& args : {std::vector<std::string>{"run", "p.yaml"}, {"run", "list"}, {"doctor"}}) {
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 2) << args[0];
    EXPECT_THAT(result.err, HasSubstr("is not a directory: give another one"));
  }
  EXPECT_EQ(ReadAll(dir_ / "file"), "x");
  const CliResult none = Run({"run", "list", "--home", Path("nosuch")});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("there is no ledger at"));
  home_ = dir_ / "readonly" / "home";
  std::filesystem::create_directories(dir_ / "readonly");
  if (::mount("tmpfs", (dir_ / "readonly").c_str(), "tmpfs", MS_RDONLY, "") != 0) GTEST_SKIP() << "cannot mount: run as root";
  const CliResult readonly = Run({"run", "p.yaml"});
  EXPECT_EQ(readonly.code, 2);
  EXPECT_THAT(readonly.err, HasSubstr("Read-only file system"));
  ::umount2((dir_ / "readonly").c_str(), MNT_DETACH);
}

TEST_F(CliProcesses, AnEditInTheLedgerIsFoundAndNamed) {
  check_history_ = false;  // edited on purpose
  WritePipeline("p",
                "  raw: { extract: { from: file, path: a.csv } }\n  l: { load: { from: raw, to: warehouse, table: x } }\n");
  ASSERT_EQ(Run({"run", "p.yaml", "-q"}).code, 0);
  ASSERT_EQ(Run({"run", "p.yaml", "-q"}).code, 0);
  const auto sound = RunJson({"audit", "verify"});
  EXPECT_TRUE(sound.at("ok"));
  EXPECT_GT(sound.at("rows").get<int>(), 6);
  EXPECT_GT(sound.at("checkpoints").get<int>(), 0);
  Sql("update outcome set finished_at = finished_at + 1 where job = (select max(job) from outcome)");
  const auto edited = RunJson({"audit", "verify"}, 1);
  EXPECT_FALSE(edited.at("ok"));
  EXPECT_EQ(edited.at("first_bad").at("table"), "outcome");
  EXPECT_THAT(Run({"audit", "verify"}).out, AllOf(HasSubstr("TAMPERED"), HasSubstr("row: outcome ")));
  Sql("update outcome set finished_at = finished_at - 1 where job = (select max(job) from outcome)");
  EXPECT_EQ(Run({"audit", "verify"}).code, 0) << "put back";
  Sql("delete from outcome where job = (select max(job) from outcome)");
  EXPECT_EQ(Run({"audit", "verify"}).code, 1);
}

TEST_F(CliProcesses, EachRunSignsOnlyWhatIsNewAndAMissingFileIsNoticed) {
  WritePipeline("p", "  c: { command: [\"true\"] }\n");
  for (int i = 0; i < 5; ++i) ASSERT_EQ(Run({"run", "p.yaml", "-q"}).code, 0);
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::directory_iterator(home_ / "checkpoints")) files.push_back(file.path());
  ASSERT_EQ(files.size(), 5u);
  std::size_t entries = 0;
  for (const auto& path : files) {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) entries += nlohmann::json::parse(line).at("records").size();
  }
  EXPECT_EQ(entries, RunJson({"audit", "verify"}).at("records").get<std::size_t>());
  std::ranges::sort(files);
  std::filesystem::remove(files[2]);
  EXPECT_EQ(RunJson({"audit", "verify"}, 1).at("first_bad").at("kind"), "checkpoint");
}

TEST_F(CliProcesses, ProgressGoesToStderrOneLineAStep) {
  WritePipeline("p", "  c: { command: [\"true\"] }\n");
  const CliResult run = Run({"run", "p.yaml"});
  EXPECT_EQ(run.code, 0);
  EXPECT_THAT(run.err, AllOf(HasSubstr("stage c: running\n"), HasSubstr("stage c: succeeded"), Not(HasSubstr("\x1b["))));
  EXPECT_THAT(run.out, Not(HasSubstr("stage c: running")));
  EXPECT_LT(run.wall.count(), 15'000);
  EXPECT_EQ(Run({"run", "p.yaml", "--no-progress"}).err, "");
  EXPECT_EQ(Run({"run", "p.yaml", "-q"}).err, "");
}

}  // namespace
}  // namespace millrace::testing
