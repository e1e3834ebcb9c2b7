// What becomes of jobs that fail: crash quarantine, deadlines, lists, requeue, discard, and runs that are retried.
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>

#include "common/drivers/sqlite.h"
#include "tests/support/cli_runner.h"
#include "tests/support/fault_shim.h"
#include "tests/support/test_postgres.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CliJobs : public CliTest {
 protected:
  std::string Ids(std::vector<std::string> args) {
    args.insert(args.end(), {"-q"});
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  }
  static std::string Line(std::string text) {
    if (text.ends_with('\n')) text.pop_back();
    return text;
  }
  bool Ended(const std::string& run) {
    const auto json = RunJson({"run", "show", run});
    return json.at("state") == "succeeded" || json.at("state") == "failed";
  }
};

TEST_F(CliJobs, ACommandThatKillsItsOwnProcessIsQuarantined) {
  WritePipeline("crash",
                "  boom:\n"
                "    command: [sh, -c, \"echo x >> tries; echo the last words >&2; kill -SEGV $$\"]\n"
                "    retry: { max_attempts: 50, backoff: fixed, backoff_base: 10ms }\n");
  const auto run = RunJson({"run", "crash.yaml"}, 1);
  EXPECT_EQ(ReadAll(dir_ / "tries"), "x\nx\nx\n") << "three times, whatever max_attempts says";
  EXPECT_EQ(StageOf(run, "boom").at("error_class"), "crash_quarantine");
  const std::string id = StageOf(run, "boom").at("job");
  EXPECT_EQ(Ids({"job", "list", "--state", "dead"}), id + "\n");
  EXPECT_EQ(Ids({"job", "list", "--open", "--error-class", "crash_quarantine", "--since", "1h"}), id + "\n");
  EXPECT_EQ(Ids({"job", "list", "--state", "dead", "--kind", "stage"}), "");
  const auto job = RunJson({"job", "show", id});
  EXPECT_EQ(job.at("state"), "dead");
  EXPECT_EQ(job.at("deliveries"), 3);
  EXPECT_EQ(job.at("failures"), 3);
  EXPECT_EQ(job.at("crashes"), 3);
  ASSERT_EQ(job.at("attempts").size(), 3u);
  for (const auto& attempt : job.at("attempts")) {
    EXPECT_EQ(attempt.at("end"), "crashed");
    EXPECT_EQ(attempt.at("signal"), SIGSEGV);
    EXPECT_THAT(attempt.at("log_tail").get<std::string>(), HasSubstr("the last words"));
  }
  EXPECT_EQ(job.at("attempts").at(0).at("error_class"), "crashed");
  EXPECT_EQ(job.at("attempts").at(2).at("error_class"), "crash_quarantine");
  const CliResult people = Run({"job", "show", id});
  EXPECT_THAT(people.out, AllOf(HasSubstr("crashes 3"), HasSubstr("signal 11"), HasSubstr("the last words")));

  CliResult result = Run({"job", "requeue", "--error-class", "crash_quarantine", "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 job would be requeued"));
  EXPECT_EQ(Ids({"job", "list", "--open"}), id + "\n") << "a dry run changes nothing";
  result = Run({"job", "discard", id, "--reason", "known bug"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(Ids({"job", "list", "--open"}), "");
  EXPECT_EQ(RunJson({"job", "show", id}).at("action").at("reason"), "known bug");
  result = Run({"job", "requeue", id});
  EXPECT_EQ(result.code, 1) << "somebody has decided";
  EXPECT_THAT(result.out, HasSubstr("somebody has acted on it before"));
  result = Run({"job", "discard", id});
  EXPECT_EQ(result.code, 0) << "the same again is no refusal";
  EXPECT_THAT(result.out, HasSubstr("already discarded"));
  const CliResult dry = Run({"job", "requeue", id, "--dry-run"});
  EXPECT_EQ(dry.code, 1) << "a dry run says what would happen";
  EXPECT_THAT(dry.out, HasSubstr("somebody has acted on it before"));
  EXPECT_EQ(Run({"job", "requeue"}).code, 2) << "neither ids nor a filter";
  const CliResult none = Run({"job", "requeue", id, "--max-attempts", "0"});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, AllOf(HasSubstr("--max-attempts"), HasSubstr("0"), HasSubstr("1"), HasSubstr("100")));
  EXPECT_THAT(Run({"worker", "--concurrency", "0"}).err, AllOf(HasSubstr("--concurrency"), HasSubstr("1"), HasSubstr("10000")));
  EXPECT_EQ(Run({"worker", "--concurrency", "0"}).code, 2);
  ExpectSound();
}

TEST_F(CliJobs, AStagesDeadlineEndsItWhileItRuns) {
  WritePipeline("late",
                "  nap:\n"
                "    command: [sh, -c, \"sleep 30\"]\n"
                "    deadline: 1s\n"
                "    retry: { max_attempts: 5, backoff: 10ms }\n");
  const CliResult result = Run({"run", "late.yaml", "-o", "json"});
  EXPECT_EQ(result.code, 1);
  EXPECT_LT(result.wall.count(), 15'000);
  const auto run = nlohmann::json::parse(result.out);
  EXPECT_EQ(StageOf(run, "nap").at("error_class"), "deadline_exceeded");
  ExpectSound();
}

TEST_F(CliJobs, ADeadJobIsRequeuedAsANewOne) {
  WritePipeline("flaky", "  gate: { command: [sh, -c, \"test -e open\"], retry: { max_attempts: 1 } }\n");
  const auto run = RunJson({"run", "flaky.yaml"}, 1);
  const std::string id = StageOf(run, "gate").at("job");
  const auto engine = Start({"up", "--log-level", "warn"});
  Write("open", "");
  const std::string again = Line(Ids({"job", "requeue", id, "--max-attempts", "2", "--priority", "0"}));
  ASSERT_NE(again, "");
  EXPECT_TRUE(Eventually([&] { return RunJson({"job", "show", again}).at("state") == "succeeded"; }));
  const auto repeated = RunJson({"job", "show", again});
  EXPECT_EQ(repeated.at("options").at("retry_of"), id);
  EXPECT_EQ(repeated.at("priority"), 0);
  EXPECT_EQ(repeated.at("max_attempts"), 2);
  EXPECT_EQ(RunJson({"job", "show", id}).at("state"), "dead") << "a terminal state never changes";
  EXPECT_EQ(RunJson({"job", "show", id}).at("action").at("new_job"), again);
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, ARetriedRunRepeatsOnlyWhatFailed) {
  Write("a.csv", "id,amount\n1,10\n2,20\n");
  WritePipeline("shop",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  once: { command: [sh, -c, \"echo x >> onces\"], after: raw }\n"
                "  l: { load: { from: raw, to: warehouse, table: t } }\n"
                "  gate: { command: [sh, -c, \"test -e open\"], after: [l, once], retry: { max_attempts: 1 } }\n"
                "  last: { load: { from: raw, to: warehouse, table: u }, after: gate }\n");
  const auto failed = RunJson({"run", "shop.yaml"}, 1);
  const std::string id = failed.at("run");
  EXPECT_EQ(StageOf(failed, "last").at("state"), "skipped");
  const auto engine = Start({"up", "--log-level", "warn"});
  Write("open", "");
  const std::string again = Line(Ids({"run", "retry", "last"}));
  ASSERT_NE(again, "");
  EXPECT_TRUE(Eventually([&] { return Ended(again); }));
  const auto run = RunJson({"run", "show", again});
  EXPECT_EQ(run.at("state"), "succeeded") << run.dump(2);
  EXPECT_EQ(StageOf(run, "raw").at("already_applied"), true);
  EXPECT_EQ(StageOf(run, "l").at("already_applied"), true);
  EXPECT_EQ(StageOf(run, "last").at("already_applied"), false);
  EXPECT_EQ(ReadAll(dir_ / "onces"), "x\n") << "a command that succeeded has no receipt: it is left out";
  EXPECT_EQ(Ids({"job", "list", "--open"}), "") << "the dead job was repeated";
  EXPECT_EQ(Run({"run", "retry", again}).code, 5) << "it succeeded";
  const auto second = RunJson({"run", "retry", id});
  EXPECT_EQ(second.at(0).at("run"), again) << "a run is retried once, whoever asks";
  EXPECT_EQ(second.at(0).at("already"), true);
  const CliResult third = Run({"run", "retry", id, "-q"});
  EXPECT_EQ(third.code, 0);
  EXPECT_EQ(Line(third.out), again);
  EXPECT_THAT(third.err, HasSubstr("already retried as " + again));
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  EXPECT_EQ(Warehouse("select count(*) n from t"), "n\n2\n") << "append, once";
  EXPECT_EQ(Warehouse("select count(*) n from u"), "n\n2\n");
  EXPECT_EQ(RunJson({"run", "show", id}).at("state"), "failed");
  ExpectSound();
}

TEST_F(CliJobs, AJobOfAKindThatNoOwnWorkerServesSaysSo) {
  const auto engine = Start({"up", "--log-level", "warn"});
  // It answers before its ledger is there.
  ASSERT_TRUE(Eventually([&] { return Run({"status", "-o", "ndjson"}).out.contains("broker"); }));
  const auto status = RunJson({"status"});
  ASSERT_EQ(status.at("brokers").size(), 1u);
  EXPECT_EQ(status.at("brokers").at(0).at("name"), status.at("broker"));
  const std::string complaint = "kind 'nosuch' waits for a connected worker that serves it";
  const auto waiting = Start({"job", "submit", "--kind", "nosuch", "--wait"});
  ASSERT_TRUE(Eventually([&] { return Ids({"job", "list"}) != ""; }));
  const std::string id = Line(Ids({"job", "list"}));
  EXPECT_THAT(Run({"job", "show", id}).out, HasSubstr(complaint));
  EXPECT_THAT(RunJson({"job", "show", "last"}).at("unserved").get<std::string>(), HasSubstr(complaint));
  EXPECT_EQ(Run({"job", "cancel", id.substr(0, 30)}).code, 0) << "a job is named by its beginning, as a run is";
  const CliResult ended = waiting->Wait(std::chrono::seconds{20});
  EXPECT_EQ(ended.code, 1);
  EXPECT_THAT(ended.out, HasSubstr("cancelled"));
  const auto first = ended.err.find(complaint);
  EXPECT_NE(first, std::string::npos) << ended.err;
  EXPECT_EQ(ended.err.find(complaint, first + 1), std::string::npos) << ended.err;
  EXPECT_EQ(RunJson({"job", "show", id}).at("unserved"), nullptr) << "it has ended";
  EXPECT_EQ(Run({"job", "show", "01"}).code, 2);
  EXPECT_EQ(Run({"job", "show", "ffffffff"}).code, 3);
  const CliResult served = Run({"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})", "--wait"});
  EXPECT_EQ(served.code, 0) << served.err;
  EXPECT_THAT(served.out, HasSubstr("succeeded"));
  EXPECT_EQ(served.err, "");
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, HowFarACommandIsCanBeSeenWhileItRuns) {
  const auto engine = Start({"up", "--log-level", "warn"});
  ASSERT_TRUE(Eventually([&] { return Run({"status", "-o", "ndjson"}).out.contains("broker"); }));
  const std::string script = "echo '1200 4096' > $MILLRACE_PROGRESS; until [ -e " + Path("go") + " ]; do sleep 0.02; done";
  const std::string payload = nlohmann::json{{"argv", {"sh", "-c", script}}}.dump();
  const std::string id = Line(Ids({"job", "submit", "--kind", "command", "--payload", payload}));
  WritePipeline("slow", "  copy: { command: [sh, -c, \"" + script + "\"] }\n  late: { command: [\"true\"], after: copy }\n");
  ASSERT_EQ(Run({"pipeline", "apply", "slow.yaml"}).code, 0);
  const std::string run = Line(Ids({"run", "now", "slow"}));
  const auto far = [](const nlohmann::json& of) { return of.at("progress").is_object() && of["progress"]["rows"] == 1200; };
  EXPECT_TRUE(Eventually([&] { return far(RunJson({"job", "show", id})); }));
  EXPECT_TRUE(Eventually([&] { return far(StageOf(RunJson({"run", "show", run}), "copy")); }));
  const auto job = RunJson({"job", "show", id});
  EXPECT_EQ(job.at("state"), "live");
  EXPECT_EQ(job.at("progress").at("bytes"), 4096);
  EXPECT_NE(job.at("progress").at("worker"), "");
  EXPECT_THAT(Run({"job", "show", id}).out, AllOf(HasSubstr("running on "), HasSubstr(": 1,200 rows, 4.1 kB so far")));
  const auto stages = RunJson({"run", "show", run});
  const auto copy = StageOf(stages, "copy");
  EXPECT_EQ(copy.at("state"), "running");
  EXPECT_EQ(copy.at("progress"), job.at("progress"));
  EXPECT_EQ(StageOf(stages, "late").at("progress"), nullptr) << "it waits";
  EXPECT_THAT(Run({"run", "show", run}).out, HasSubstr("copy: running on "));
  EXPECT_EQ(RunJson({"job", "show", copy.at("job")}).at("progress"), job.at("progress")) << "a job of a run, by itself";
  Write("go", "");
  EXPECT_TRUE(Eventually([&] { return RunJson({"job", "show", id}).at("state") == "succeeded" && Ended(run); }));
  EXPECT_EQ(RunJson({"job", "show", id}).at("progress"), nullptr) << "it has ended";
  EXPECT_EQ(StageOf(RunJson({"run", "show", run}), "copy").at("progress"), nullptr);
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, WhatIsRecordedWhileNobodyRunsSaysSo) {
  WritePipeline("flaky", "  gate: { command: [sh, -c, \"test -e open\"], retry: { max_attempts: 1 } }\n");
  const auto run = RunJson({"run", "flaky.yaml"}, 1);
  const CliResult retried = Run({"run", "retry", run.at("run")});
  EXPECT_EQ(retried.code, 0) << retried.err;
  EXPECT_THAT(retried.err, AllOf(HasSubstr("recorded; no broker answers at"), HasSubstr("the new run waits for one"),
                                 HasSubstr("millrace up --home")));
  const CliResult early = Run({"run", "retry", "last"});
  EXPECT_EQ(early.code, 5) << "it has not ended: that may change";
  EXPECT_THAT(early.err, HasSubstr("has not ended"));
}

TEST_F(CliJobs, JobsAreCancelledByAFilterAfterAPreview) {
  const auto submit = [&](const std::string& queue, const std::string& kind) {
    return Line(Ids({"job", "submit", "--kind", kind, "--payload", R"({"argv": ["true"]})", "--queue", queue}));
  };
  std::filesystem::create_directories(home_);
  ASSERT_EQ(Run({"queue", "pause", "mail", "news"}).code, 0);
  for (int i = 0; i < 3; ++i) submit("mail", "command");
  const std::string other_kind = submit("mail", "nosuch"), other_queue = submit("news", "command");
  EXPECT_EQ(Run({"job", "cancel"}).code, 2) << "neither ids nor a filter";
  EXPECT_EQ(Run({"job", "cancel", other_kind, "--queue", "mail"}).code, 2) << "both";
  EXPECT_EQ(Run({"job", "cancel", "--queue", "mail", "--error-class", "x"}).code, 2) << "what lives has no error";
  // Nobody runs: the ledger is asked, and the requests are recorded there.
  CliResult result = Run({"job", "cancel", "--queue", "mail", "--kind", "command", "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("3 jobs would be cancelled"));
  EXPECT_THAT(result.out, HasSubstr("would be cancelled"));
  EXPECT_EQ(Ids({"job", "cancel", "--queue", "news", "--dry-run"}), other_queue + "\n");
  result = Run({"job", "cancel", "--queue", "mail", "--since", "1h", "--kind", "nosuch", "--reason", "obsolete"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("recorded"), HasSubstr("1 job cancelled or being cancelled")));
  const auto engine = Start({"up", "--log-level", "warn"});
  ASSERT_TRUE(Eventually([&] { return RunJson({"job", "show", other_kind}).at("state") == "cancelled"; }));
  EXPECT_THAT(Ids({"job", "list", "--state", "cancelled"}), other_kind + "\n") << "a dry run has cancelled nothing";
  result = Run({"job", "cancel", "--queue", "mail"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("3 jobs cancelled or being cancelled"));
  EXPECT_TRUE(Eventually([&] { return RunJson({"job", "list", "--state", "cancelled"}).size() == 4; }));
  result = Run({"job", "cancel", "--queue", "mail"});
  EXPECT_EQ(result.code, 0) << "nothing is left";
  EXPECT_THAT(result.err, HasSubstr("0 jobs"));
  const CliResult named = Run({"job", "cancel", other_kind, other_queue, "--dry-run"});
  EXPECT_EQ(named.code, 5) << "one has ended";
  EXPECT_THAT(named.out, AllOf(HasSubstr("would be cancelled"), HasSubstr("ended")));
  EXPECT_EQ(RunJson({"job", "show", other_queue}).at("state"), "live");
  EXPECT_EQ(Ids({"job", "list", "--state", "live"}), other_queue + "\n");
  for (const std::vector<std::string>& other : {std::vector<std::string>{"--open"}, {"--error-class", "exit"}}) {
    std::vector<std::string> both{"job", "list", "--state", "live"};
    both.insert(both.end(), other.begin(), other.end());
    const CliResult refused = Run(both);
    EXPECT_EQ(refused.code, 2) << refused.out;
    EXPECT_THAT(refused.err, AllOf(HasSubstr("--state live"), HasSubstr(other.front())));
  }
  ASSERT_EQ(Run({"queue", "resume", "mail", "news"}).code, 0);
  EXPECT_TRUE(Eventually([&] { return RunJson({"job", "show", other_queue}).at("state") == "succeeded"; }));
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, ABulkCancelThatFailsMidwaySaysWhatItDidFirst) {
  std::string lines;
  for (int i = 0; i < 1002; ++i)
    lines += R"({"kind": "command", "queue": "mail", "payload": {"argv": ["true"]}})"
             "\n";
  Write("jobs", lines);
  std::filesystem::create_directories(home_);
  Ids({"job", "submit", "--batch", "jobs"});
  const auto exec = [&](const std::string& sql) {
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {});
    ASSERT_TRUE(db) << db.error().message;
    const auto done = db->Exec(sql);
    ASSERT_TRUE(done) << done.error().message;
  };
  exec(
      "create trigger full before insert on cancel when (select count(*) from cancel) = 1000"
      " begin select raise(abort, 'no room'); end");
  const CliResult result = Run({"job", "cancel", "--queue", "mail", "-q"});
  EXPECT_NE(result.code, 0);
  EXPECT_EQ(std::ranges::count(result.out, '\n'), 1000);
  EXPECT_THAT(result.err, AllOf(HasSubstr("1000 jobs cancelled or being cancelled"), HasSubstr("recorded; "),
                                HasSubstr("1000 of 1002 jobs were asked to stop before this: ")));
  exec("drop trigger full");
  EXPECT_EQ(std::ranges::count(Ids({"job", "cancel", "--queue", "mail"}), '\n'), 1002);
}

TEST_F(CliJobs, JobsThatOnlyTheQueueHasAreCancelledByAFilterToo) {
  const auto submit = [&](const std::string& queue, const std::string& script, const std::string& options) {
    return Line(Ids({"job", "submit", "--kind", "command", "--payload", R"({"argv": ["sh", "-c", ")" + script + R"("]})",
                     "--queue", queue, "--options", options}));
  };
  std::filesystem::create_directories(home_);
  ASSERT_EQ(Run({"queue", "pause", "mail", "news"}).code, 0);
  const std::string ledger = submit("mail", "exit 0", "{}");
  CliResult result = Run({"job", "cancel", "--queue", "mail", "--dry-run"});
  EXPECT_THAT(result.err, AllOf(HasSubstr("1 job would be cancelled"), HasSubstr("durability: redis"))) << "nobody was asked";
  const auto engine = Start({"up", "--log-level", "warn"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const std::string redis = R"({"durability": "redis"})";
  const std::string first = submit("mail", "exit 0", redis), second = submit("mail", "exit 0", redis);
  const std::string news = submit("news", "exit 0", redis), runs = submit("busy", "sleep 60", redis);
  ASSERT_TRUE(Eventually([&] { return Run({"queue", "show", "busy"}).out.find("1") != std::string::npos; }));
  result = Run({"job", "cancel", "--queue", "mail", "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "3 jobs would be cancelled\n");
  for (const std::string& id : {ledger, first, second}) EXPECT_THAT(result.out, HasSubstr(id));
  EXPECT_THAT(Run({"job", "cancel", "--queue", "mail", "--kind", "nosuch", "--dry-run"}).err, HasSubstr("0 jobs"));
  EXPECT_THAT(Run({"job", "cancel", "--since", "2099-01-01T00:00:00Z", "--dry-run"}).err, HasSubstr("0 jobs"));
  EXPECT_THAT(Run({"job", "cancel", "--since", "1h", "--dry-run"}).err, HasSubstr("5 jobs would be"));
  result = Run({"job", "cancel", "--queue", "mail"});
  EXPECT_THAT(result.err, HasSubstr("3 jobs cancelled or being cancelled"));
  EXPECT_THAT(Run({"job", "cancel", "--queue", "busy"}).err, HasSubstr("1 job cancelled or being"));
  for (const std::string& id : {ledger, first, second, runs})
    EXPECT_TRUE(Eventually([&] { return Run({"job", "show", id}).out.find("cancelled") != std::string::npos; })) << id;
  EXPECT_THAT(Run({"job", "cancel", "--queue", "mail", "--dry-run"}).err, HasSubstr("0 jobs"));
  ASSERT_EQ(Run({"queue", "resume", "mail", "news"}).code, 0);
  EXPECT_TRUE(Eventually([&] { return Run({"job", "show", news}).out.find("succeeded") != std::string::npos; }));
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, AJobThatOnlyTheQueueHasIsPreviewedByItsIdAndNamedWhenNobodyRuns) {
  const std::string nobody = "0190f5c8-0000-7000-8000-000000000000";
  std::filesystem::create_directories(home_);
  ASSERT_EQ(Run({"queue", "pause", "mail"}).code, 0);
  auto engine = Start({"up", "--log-level", "warn"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const std::string id = Line(Ids({"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})", "--queue",
                                   "mail", "--durability", "redis"}));
  CliResult result = Run({"job", "cancel", id, nobody, "--dry-run"});
  EXPECT_EQ(result.code, 3) << "there is no other";
  EXPECT_THAT(result.err, HasSubstr("1 job would be cancelled"));
  EXPECT_THAT(result.out, AllOf(HasSubstr("would be cancelled"), HasSubstr("not_found")));
  result = Run({"job", "cancel", id, "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(Run({"job", "cancel", "--queue", "mail", "--dry-run"}).err, HasSubstr("1 job would")) << "it still waits";
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"job", "cancel", id}, {"job", "cancel", id, "--dry-run"}, {"job", "cancel", nobody, id}}) {
    result = Run(args);
    EXPECT_EQ(result.code, 6) << result.out;
    EXPECT_THAT(result.out, HasSubstr("unknown"));
    EXPECT_THAT(result.err, AllOf(HasSubstr("durability: redis"), HasSubstr("start 'millrace up --home ")));
  }
  EXPECT_THAT(result.out, HasSubstr("not_found")) << "which the queue of the home has not either";
  result = Run({"job", "cancel", nobody});
  EXPECT_EQ(result.code, 3);
  EXPECT_THAT(result.err, ::testing::Not(HasSubstr("durability")));
  engine = Start({"up", "--log-level", "warn"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  EXPECT_EQ(Run({"job", "cancel", id}).code, 0);
  EXPECT_EQ(RunJson({"job", "show", id}).at("state"), "cancelled");
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, RunsAreRetriedAndCancelledByAFilterAfterAPreview) {
  WritePipeline("flaky", "  gate: { command: [sh, -c, \"test -e open\"], retry: { max_attempts: 1 } }\n");
  WritePipeline("other", "  gate: { command: [sh, -c, \"exit 1\"], retry: { max_attempts: 1 } }\n");
  std::vector<std::string> failed;
  for (int i = 0; i < 3; ++i) failed.push_back(RunJson({"run", "flaky.yaml"}, 1).at("run"));
  const std::string other = RunJson({"run", "other.yaml"}, 1).at("run");
  EXPECT_EQ(Run({"run", "retry"}).code, 2);
  EXPECT_EQ(Run({"run", "retry", other, "--pipeline", "flaky"}).code, 2);
  EXPECT_EQ(Run({"run", "retry", "--state", "succeeded"}).code, 2);
  EXPECT_EQ(Run({"run", "cancel", "--state", "failed"}).code, 2);
  ASSERT_EQ(Run({"run", "retry", failed[1]}).code, 0);
  CliResult result = Run({"run", "retry", "--pipeline", "flaky", "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("2 runs would be retried")) << "one was";
  EXPECT_EQ(Ids({"run", "retry", "--pipeline", "flaky", "--dry-run"}), failed[0] + "\n" + failed[2] + "\n") << "oldest first";
  const auto named = RunJson({"run", "retry", failed[0], failed[1], "--dry-run"});
  EXPECT_EQ(named.at(0).at("already"), false);
  EXPECT_EQ(named.at(0).at("jobs"), 1);
  EXPECT_EQ(named.at(1).at("already"), true);
  EXPECT_EQ(RunJson({"run", "list", "--state", "running"}).size(), 1u) << "a dry run starts nothing";
  // What is retried waits for somebody to run it: cancelled by filter, as the ledger knows it.
  ASSERT_EQ(RunJson({"run", "retry", "--state", "failed"}).size(), 3u);
  result = Run({"run", "cancel", "--pipeline", "flaky", "--dry-run"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("3 runs would be cancelled"));
  result = Run({"run", "cancel", "--pipeline", "other", "--reason", "wrong"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 run cancelled or being cancelled"));
  Write("open", "");
  const auto engine = Start({"up", "--log-level", "warn"});
  EXPECT_TRUE(Eventually([&] { return RunJson({"run", "list", "--state", "succeeded"}).size() == 3; }));
  EXPECT_TRUE(Eventually([&] { return RunJson({"run", "list", "--state", "cancelled", "--pipeline", "other"}).size() == 1; }));
  // Each id has an answer of its own.
  const CliResult mixed = Run({"run", "retry", "last", failed[0], "-o", "json"});
  EXPECT_EQ(mixed.code, RunJson({"run", "show", "last"}).at("state") == "succeeded" ? 5 : 0);
  EXPECT_THAT(mixed.out, HasSubstr(failed[0]));
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

// A client whose clock is wrong, and a ledger whose clock is not.
TEST_F(CliJobs, WhatCountsFromTheSubmitOnCountsByTheLedgersClock) {
  MILLRACE_NEED_POSTGRES();
  TestDatabase database("cli_clock");
  auto shim = ShimControl::Make(Path("clock"));
  ASSERT_TRUE(shim) << shim.error().message;
  const CliOptions shifted{.env = shim->Env()};
  const auto with_ledger = [&](std::vector<std::string> args) {
    args.insert(args.end(), {"--set", "ledger.dsn=" + database.dsn(), "--set", "broker.listen_clients=tcp://127.0.0.1:1"});
    return args;
  };
  const auto expect_counted = [&](const std::string& job) {
    const auto shown = RunJson(with_ledger({"job", "show", job}));
    const auto true_now = std::chrono::duration<double, std::micro>(std::chrono::system_clock::now().time_since_epoch());
    EXPECT_NEAR(shown.at("options").at("deadline_us").get<double>(), true_now.count() + 7200e6, 600e6) << shown.dump(2);
    EXPECT_NEAR(shown.at("options").at("expires_at_us").get<double>(), true_now.count() + 3600e6, 600e6) << shown.dump(2);
  };
  const std::string line =
      R"({"kind": "command", "payload": {"argv": ["true"]}, "deadline_in_ms": 7200000, "expires_in_ms": 3600000})";
  Write("jobs", line + "\n");
  for (const auto step : {std::chrono::hours{24}, -std::chrono::hours{24}}) {
    shim->StepClockTo(step);
    const CliResult single = Run(with_ledger({"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})",
                                              "--deadline", "2h", "--expires-in", "1h", "-q"}),
                                 shifted);
    ASSERT_EQ(single.code, 0) << single.err;
    expect_counted(Line(single.out));
    const CliResult batch = Run(with_ledger({"job", "submit", "--batch", "jobs", "-q"}), shifted);
    ASSERT_EQ(batch.code, 0) << batch.err;
    expect_counted(Line(batch.out));
    const CliResult run = Run(with_ledger({"job", "submit", "--batch", "jobs", "--then", line, "-o", "json"}), shifted);
    ASSERT_EQ(run.code, 0) << run.err;
    expect_counted(nlohmann::json::parse(run.out).at(0).at("then").get<std::string>());
  }
}

TEST_F(CliJobs, ASubmitSaysHowAndHowLongItIsTried) {
  std::filesystem::create_directories(home_);
  const auto submit = [&](std::vector<std::string> more) {
    std::vector<std::string> args{"job", "submit", "--kind", "command", "--payload", R"({"argv": ["false"]})"};
    args.insert(args.end(), more.begin(), more.end());
    return Run(args);
  };
  for (const auto& [option, value, complaint] :
       {std::tuple{"--backoff", "linear", "--backoff: 'linear' is neither fixed nor exponential"},
        std::tuple{"--backoff-base", "fast", "--backoff-base: 'fast' is not a duration like 500ms"},
        std::tuple{"--backoff-base", "2m", "--backoff-base: 2m is over --backoff-cap"},
        std::tuple{"--backoff-cap", "10ms", "--backoff-cap: 10ms is under --backoff-base"},
        std::tuple{"--deadline", "0s", "--deadline: '0s' is too short"},
        std::tuple{"--deadline", "tomorrow", "--deadline: 'tomorrow' is not a duration"},
        std::tuple{"--expires-in", "-5s", "--expires-in: '-5s' is not a duration"},
        std::tuple{"--timeout", "5", "--timeout: '5' is not a duration"}}) {
    const CliResult result = submit({std::string(option) + "=" + value});
    EXPECT_EQ(result.code, 2) << option << " " << value << ": " << result.err;
    EXPECT_THAT(result.err, HasSubstr(complaint));
  }
  CliResult twice = submit({"--deadline", "1h", "--options", R"({"deadline_us": 1900000000000000})"});
  EXPECT_EQ(twice.code, 2);
  EXPECT_THAT(twice.err, HasSubstr("deadline_in_ms: options says it too (deadline_us)"));
  Write("jobs", R"({"kind": "command", "payload": {"argv": ["false"]}, "expires_in_ms": 0})"
                "\n");
  EXPECT_THAT(Run({"job", "submit", "--batch", "jobs"}).err, HasSubstr("jobs:1: expires_in_ms: 0 is not in [1, "));
  EXPECT_THAT(Run({"job", "submit", "--batch", "jobs", "--deadline", "1h"}).err, HasSubstr("give 'deadline_in_ms' there"));
  EXPECT_EQ(Run({"job", "list"}).code, 3) << "there is no ledger: nothing was submitted";

  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch());
  const CliResult kept = submit({"-q", "--queue", "idle", "--backoff", "fixed", "--deadline", "2h", "--expires-in", "1h",
                                 "--run-at", "2100-01-01T00:00:00Z"});
  ASSERT_EQ(kept.code, 0) << kept.err;
  const auto options = RunJson({"job", "show", Line(kept.out)}).at("options");
  EXPECT_EQ(options.at("backoff"), "fixed");
  EXPECT_NEAR(options.at("deadline_us").get<double>(), static_cast<double>(now.count()) + 7200e6, 60e6);
  EXPECT_NEAR(options.at("expires_at_us").get<double>(), static_cast<double>(now.count()) + 3600e6, 60e6);

  const auto engine = Start({"up", "--log-level", "warn"});
  const CliResult fixed =
      submit({"--backoff", "fixed", "--backoff-base", "300ms", "--max-attempts", "3", "--wait", "-o", "json"});
  EXPECT_EQ(fixed.code, 1) << fixed.err;
  const auto job = RunJson({"job", "show", nlohmann::json::parse(fixed.out).at(0).at("job").get<std::string>()});
  ASSERT_EQ(job.at("attempts").size(), 3u);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_NE(job.at("attempts").at(i).at("next_run_at"), nullptr);
  Write("jobs", R"({"kind": "command", "payload": {"argv": ["true"]}, "run_at": "2100-01-01T00:00:00Z", "expires_in_ms": 50})"
                "\n"
                R"({"kind": "command", "payload": {"argv": ["true"]}, "run_at": "2100-01-01T00:00:00Z", "deadline_in_ms": 50, )"
                R"("backoff": "fixed"})"
                "\n");
  const CliResult batch = Run({"job", "submit", "--batch", "jobs", "--wait", "-o", "json"});
  EXPECT_EQ(batch.code, 1) << batch.err;
  EXPECT_THAT(batch.out, AllOf(HasSubstr("expired"), HasSubstr("dead")));
  engine->Signal(SIGTERM);
  EXPECT_EQ(engine->Wait(std::chrono::seconds{20}).code, 0);
  ExpectSound();
}

TEST_F(CliJobs, ASubmitSaysWhatIsWrongAndWhatIsRight) {
  std::filesystem::create_directories(home_);
  const auto expect_usage = [&](const std::vector<std::string>& args, const std::string& complaint, int code = 2) {
    const CliResult refused = Run(args);
    EXPECT_EQ(refused.code, code) << fmt::format("{}: {}", fmt::join(args, " "), refused.err);
    EXPECT_THAT(refused.err, HasSubstr(complaint)) << fmt::format("{}", fmt::join(args, " "));
  };
  for (const auto& [option, value, complaint] :
       {std::tuple{"--priority", "-1", "--priority"}, std::tuple{"--priority", "4", "--priority"},
        std::tuple{"--max-attempts", "0", "--max-attempts"}, std::tuple{"--max-attempts", "101", "--max-attempts"},
        std::tuple{"--queue", "", "--queue: is empty"},
        std::tuple{"--options", R"({"unique_key": ""})", "unique_key: is empty"},
        std::tuple{"--options", R"({"unique_until": "never"})", "give one of started, ended, window"},
        std::tuple{"--options", R"({"unique_until": "window"})", "says nothing without a unique_key"},
        std::tuple{"--options", R"({"unique_key": "k", "unique_until": "window"})", "give unique_window_ms in [1, "},
        std::tuple{"--options", R"({"retry_of": "01a1fc86-aaa1-71b6-be1e-5b4980682c42"})", "retry_of"},
        std::tuple{"--payload", R"({"argv": ["tr\u0000ue"]})", "payload: argv[0]: contains a NUL"}}) {
    std::vector<std::string> args{"job", "submit", "--kind", "command", option, value};
    if (std::string(option) != "--payload") args.insert(args.end(), {"--payload", R"({"argv": ["true"]})"});
    expect_usage(args, complaint);
  }
  for (const auto& [line, complaint] :
       {std::pair{R"("priority": 4)", "jobs:1: priority: 4 is not in [0, 3]"},
        std::pair{R"("max_attempts": 101)", "jobs:1: max_attempts: 101 is not in [1, 100]"},
        std::pair{R"("max_attempts": 18446744073709551615)", "max_attempts: 18446744073709551615 is too large"},
        std::pair{R"("queue": "")", "jobs:1: queue: is empty; give a name of 1 to 128 bytes"},
        std::pair{R"("backoff_base_ms": 5000, "backoff_cap_ms": 1000)", "jobs:1: backoff_base_ms: 5000 is over backoff_cap_ms"},
        std::pair{R"("options": {"retry_of": "01a1fc86-aaa1-71b6-be1e-5b4980682c42"})", "jobs:1: options: "}}) {
    Write("jobs", fmt::format(R"({{"kind": "noop", {}}})", line));
    expect_usage({"job", "submit", "--batch", "jobs"}, complaint);
  }
  Write("jobs", R"({"kind": "noop"})");
  expect_usage({"job", "submit", "--batch", "jobs", "--priority", "0"}, "give 'priority' there");
  expect_usage({"job", "submit", "--batch", "jobs", "--max-attempts", "1"}, "give 'max_attempts' there");
  std::string lines;
  for (int i = 0; i < 10'000; ++i) lines += "{\"kind\": \"noop\"}\n";
  Write("jobs", lines);
  expect_usage({"job", "submit", "--batch", "jobs", "--then", R"({"kind": "noop"})"}, "jobs:10000: more than 9999 jobs");
  expect_usage({"job", "submit", "--batch", dir_.string()}, "cannot read '" + dir_.string() + "'", 3);
  for (const std::string command : {"list", "cancel", "requeue", "discard"})
    expect_usage({"job", command, "--queue", ""}, "--queue: is empty");
  expect_usage({"run", "cancel", "--state", "running", "--pipeline", ""}, "--pipeline: is empty");
  EXPECT_EQ(Run({"job", "list"}).code, 3) << "there is no ledger: nothing was submitted";
}

}  // namespace
}  // namespace millrace::testing
