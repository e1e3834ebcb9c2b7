// --org: what a command reads and writes is of one org, and no command shows one org what is another's.
#include <gmock/gmock.h>

#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CliOrgs : public CliTest {
 protected:
  static std::string Line(std::string text) {
    if (text.ends_with('\n')) text.pop_back();
    return text;
  }
  static std::vector<std::string> Of7(std::vector<std::string> args) {
    args.insert(args.end(), {"--org", "7"});
    return args;
  }
  // What org 7 gets with code 0, org 1 does not find.
  void ExpectOnlyOf7(const std::vector<std::string>& args) {
    const CliResult others = Run(args);
    EXPECT_EQ(others.code, 3) << ::testing::PrintToString(args) << others.out << others.err;
    const CliResult own = Run(Of7(args));
    EXPECT_EQ(own.code, 0) << ::testing::PrintToString(args) << own.err;
  }
  // The same of lists: empty for org 1.
  void ExpectListedOnlyFor7(std::vector<std::string> args) {
    EXPECT_EQ(RunJson(args), nlohmann::json::array()) << ::testing::PrintToString(args);
    EXPECT_NE(RunJson(Of7(args)), nlohmann::json::array()) << ::testing::PrintToString(args);
  }
  std::unique_ptr<CliProcess> Up() {
    auto up = Start({"up"});
    EXPECT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
    return up;
  }
  static void Stop(CliProcess& up) {
    up.Signal(SIGTERM);
    EXPECT_EQ(up.Wait(std::chrono::seconds{20}).code, 0);
  }
  static std::vector<std::string> Command(const std::string& script) {
    return {"job", "submit", "--kind", "command", "--payload", R"({"argv": ["sh", "-c", ")" + script + R"("]})", "-q"};
  }
};

TEST_F(CliOrgs, JobsAndQueuesAreOfOneOrg) {
  const auto up = Up();
  auto submit = Of7(Command("echo seven >$MILLRACE_RESULT"));
  submit.emplace_back("--wait");
  const CliResult submitted = Run(submit);
  ASSERT_EQ(submitted.code, 0) << submitted.err;
  const std::string job = Line(submitted.out);
  EXPECT_EQ(RunJson(Of7({"job", "show", job})).at("org"), 7);
  EXPECT_EQ(Run({"job", "result", job}, {.env = {{"MILLRACE_ORG", "7"}}}).out, "seven\n");
  ExpectOnlyOf7({"job", "show", job});
  ExpectOnlyOf7({"job", "show", job.substr(0, 13)});
  ExpectOnlyOf7({"job", "show", "last"});
  ExpectOnlyOf7({"job", "result", job});
  ExpectListedOnlyFor7({"job", "list"});

  auto fail = Of7(Command("exit 1"));
  fail.insert(fail.end(), {"--max-attempts", "1", "--wait"});
  const std::string dead = Line(Run(fail).out);
  EXPECT_EQ(Run({"job", "requeue", dead}).code, 3);
  EXPECT_EQ(Run({"job", "discard", dead}).code, 3);
  EXPECT_EQ(Run({"job", "requeue", "--kind", "command", "--dry-run", "-q"}).out, "");
  EXPECT_EQ(RunJson(Of7({"job", "requeue", "--kind", "command", "--dry-run"})).size(), 1u);
  EXPECT_EQ(Run(Of7({"job", "requeue", dead})).code, 0);

  ASSERT_EQ(Run(Of7({"queue", "pause", "mail"})).code, 0);
  auto wait = Of7(Command("exit 0"));
  wait.insert(wait.end(), {"--queue", "mail"});
  const std::string waits = Line(Run(wait).out);
  ExpectOnlyOf7({"queue", "show", "mail"});
  ExpectListedOnlyFor7({"queue", "list"});
  EXPECT_EQ(RunJson(Of7({"queue", "show", "mail"}))[0]["waiting"], 1);
  ASSERT_EQ(Run({"queue", "set", "mail", "--concurrency", "3"}).code, 0);
  EXPECT_EQ(RunJson(Of7({"queue", "show", "mail"}))[0]["paused"], true);
  EXPECT_TRUE(RunJson(Of7({"queue", "show", "mail"}))[0]["concurrency"].is_null()) << "queues of one name are two queues";
  EXPECT_EQ(Run({"job", "cancel", waits}).code, 3) << "a whole id is nobody else's either";
  EXPECT_EQ(Run(Of7({"job", "cancel", waits})).code, 0);
  Stop(*up);
  EXPECT_EQ(Run({"job", "cancel", waits}).code, 3) << "nor without a broker";
}

TEST_F(CliOrgs, PipelinesRunsSchedulesAndBackfillsAreOfOneOrg) {
  const std::string head = "schedule: { cron: \"0 3 * * *\", timezone: UTC, start: 2026-01-01 }\n";
  WritePipeline("small", "  c: { command: [sh, -c, \"exit 0\"] }\n", head);
  const auto up = Up();
  ASSERT_EQ(Run(Of7({"pipeline", "apply", "small.yaml"})).code, 0);
  ExpectOnlyOf7({"pipeline", "show", "small"});
  ExpectListedOnlyFor7({"pipeline", "list"});
  ExpectListedOnlyFor7({"schedule", "list"});
  ExpectOnlyOf7({"schedule", "next", "small"});
  ExpectOnlyOf7({"schedule", "slots", "small"});
  ExpectOnlyOf7({"schedule", "pause", "small"});
  ExpectOnlyOf7({"schedule", "resume", "small"});

  ExpectOnlyOf7({"run", "start", "small", "--wait"});
  const std::string run = Line(Run(Of7({"run", "list", "-q"})).out);
  ASSERT_EQ(run.size(), 36u) << run;
  ExpectListedOnlyFor7({"run", "list"});
  for (const std::string& id : {run, run.substr(0, 13), std::string("last")}) {
    ExpectOnlyOf7({"run", "show", id});
    ExpectOnlyOf7({"run", "logs", id});
  }
  EXPECT_EQ(Run({"run", "retry", run}).code, 3);
  EXPECT_EQ(Run({"run", "cancel", run}).code, 3);
  EXPECT_EQ(Run(Of7({"run", "cancel", run})).code, 5) << "it has ended";

  const std::vector<std::string> backfill{"backfill", "small", "--from", "2026-02-01", "--to", "2026-02-01", "-q"};
  EXPECT_EQ(Run(backfill).code, 3);
  const std::string id = Line(Run(Of7(backfill)).out);
  ExpectListedOnlyFor7({"backfill", "list"});
  ExpectOnlyOf7({"backfill", "show", id});
  EXPECT_EQ(Run({"backfill", "cancel", id}).code, 3);
  EXPECT_TRUE(Eventually([&] { return RunJson(Of7({"backfill", "show", id}))[0]["succeeded"] == 1; }))
      << "the scheduler and the broker serve all orgs";
  Stop(*up);
}

TEST_F(CliOrgs, ARunByHandAndABatchAreOfTheOrgToo) {
  Write("a.csv", "id,amount\n1,10\n2,20\n");
  WritePipeline("small",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  l: { load: { from: raw, to: warehouse, table: x } }\n");
  const CliResult ran = Run(Of7({"run", "small.yaml"}));
  ASSERT_EQ(ran.code, 0) << ran.err << ran.out;
  EXPECT_THAT(ran.out, HasSubstr(" --org 7)")) << "what is named for looking at it later finds it";
  EXPECT_TRUE(std::filesystem::exists(home_ / "lake" / "7" / "small"));
  ExpectListedOnlyFor7({"run", "list"});
  Write("two", R"({"kind": "command", "payload": {"argv": ["true"]}})"
               "\n"
               R"({"kind": "command", "payload": {"argv": ["true"]}})"
               "\n");
  const std::vector<std::string> batch{
      "job", "submit", "--batch", "two", "--then", R"({"kind": "command", "payload": {"argv": ["true"]}})", "--wait"};
  const auto up = Up();
  EXPECT_EQ(Run(Of7(batch)).code, 0);
  EXPECT_EQ(RunJson(Of7({"job", "list", "--kind", "command"})).size(), 3u);
  ExpectListedOnlyFor7({"run", "list"});
  ExpectListedOnlyFor7({"job", "list"});
  Stop(*up);
}

TEST_F(CliOrgs, WhatACommandSubmitsIsOfItsOrg) {
  const std::string submits = std::string(MILLRACE_BIN_DIR) + "/millrace --home " + home_.string() +
                              " job submit --kind command --queue from_command --payload '{\\\"argv\\\": [\\\"true\\\"]}'";
  const auto up = Up();
  auto submit = Of7(Command(submits));
  submit.emplace_back("--wait");
  const CliResult single = Run(submit);
  ASSERT_EQ(single.code, 0) << single.err;
  EXPECT_EQ(RunJson(Of7({"job", "list", "--queue", "from_command"})).size(), 1u);

  WritePipeline("small", "  c: { command: [sh, -c, \"" + submits + "\"] }\n");
  ASSERT_EQ(Run(Of7({"pipeline", "apply", "small.yaml"})).code, 0);
  ASSERT_EQ(Run(Of7({"run", "start", "small", "--wait"})).code, 0);
  EXPECT_EQ(RunJson(Of7({"job", "list", "--queue", "from_command"})).size(), 2u);
  EXPECT_EQ(RunJson({"job", "list", "--queue", "from_command"}), nlohmann::json::array());
  Stop(*up);
}

TEST_F(CliOrgs, WhatIsNoOrgIsNamed) {
  for (const std::string wrong : {"0", "-1", "x", "7x", "9223372036854775808", "1.5"}) {
    const CliResult result = Run({"job", "list", "--org=" + wrong});
    EXPECT_EQ(result.code, 2) << wrong;
    EXPECT_THAT(result.err, HasSubstr("org: '" + wrong + "' is no org; give an integer in [1, 9223372036854775807]"));
  }
  const CliResult empty = Run({"job", "list", "--org", ""});
  EXPECT_EQ(empty.code, 2) << "an empty variable of a script is not org 1";
  EXPECT_THAT(empty.err, HasSubstr("--org"));
  const CliResult result = Run({"job", "list"}, {.env = {{"MILLRACE_ORG", "seven"}}});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("env MILLRACE_ORG"), HasSubstr("'seven' is no org")));
  const auto shown = RunJson({"config", "show", "--origin", "--org", "9223372036854775807"});
  EXPECT_THAT(shown.dump(), HasSubstr("9223372036854775807"));
}

}  // namespace
}  // namespace millrace::testing
