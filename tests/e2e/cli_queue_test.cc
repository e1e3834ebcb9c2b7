// millrace queue: settings with and without a broker, pause and resume of what really runs.
#include <gmock/gmock.h>

#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

class CliQueues : public CliTest {};

TEST_F(CliQueues, SettingsAreStoredWithoutABroker) {
  const CliResult set =
      Run({"queue",   "set",           "api",  "--concurrency",       "8",       "--key-concurrency", "2",        "--rate",
           "100/1s",  "--key-rate",    "5/1m", "--key-burst",         "9",       "--order",           "weighted", "--weights",
           "9,3,2,1", "--max-waiting", "1000", "--max-waiting-bytes", "1000000", "--aging",           "30s"});
  ASSERT_EQ(set.code, 0) << set.err;
  EXPECT_THAT(set.err, HasSubstr("within 2 s"));
  ASSERT_EQ(Run({"queue", "pause", "api"}).code, 0);
  const auto rows = RunJson({"queue", "show", "api"});
  ASSERT_EQ(rows.size(), 1u);
  const auto& row = rows[0];
  EXPECT_EQ(row["queue"], "api");
  EXPECT_EQ(row["revision"], 2);
  EXPECT_EQ(row["paused"], true);
  EXPECT_EQ(row["concurrency"], 8) << "what was not given stays";
  EXPECT_EQ(row["key_concurrency"], 2);
  EXPECT_EQ(row["rate"], "100/1s");
  EXPECT_EQ(row["key_rate"], "5/1m burst 9");
  EXPECT_EQ(row["weights"], "9,3,2,1");
  EXPECT_EQ(row["max_waiting_jobs"], 1000);
  EXPECT_EQ(row["max_waiting_bytes"], 1'000'000);
  EXPECT_TRUE(row["ready"].is_null()) << "nobody knows without a broker";
  ASSERT_EQ(Run({"queue", "set", "api", "--concurrency", "8"}).code, 0);
  EXPECT_EQ(RunJson({"queue", "list"})[0]["revision"], 2) << "what is so already makes no revision";
  EXPECT_EQ(Run({"audit", "verify"}).code, 0);
}

TEST_F(CliQueues, SeveralArePausedAtOnce) {
  const auto paused = RunJson({"queue", "pause", "a", "b"});
  ASSERT_EQ(paused.size(), 2u);
  EXPECT_EQ(paused[1]["queue"], "b");
  for (const auto& row : RunJson({"queue", "list"})) EXPECT_EQ(row["paused"], true);
  EXPECT_EQ(Run({"queue", "resume", "a", "b", "-q"}).out, "a\nb\n");
  for (const auto& row : RunJson({"queue", "list"})) EXPECT_EQ(row["paused"], false);
  const CliResult wrong = Run({"queue", "pause", "a", std::string(200, 'x')});
  EXPECT_EQ(wrong.code, 2) << wrong.err;
  EXPECT_EQ(RunJson({"queue", "show", "a"})[0]["paused"], false) << "names are looked at before anything is set";
  EXPECT_EQ(Run({"queue", "pause"}).code, 2);
}

TEST_F(CliQueues, AWrongValueIsNamedAndNothingIsStored) {
  for (const auto& [flag, value, complaint] :
       {std::tuple{"--rate", "100", "--rate: '100' is no rate"}, std::tuple{"--rate", "1/2h", "--rate: a period of 7200000 ms"},
        std::tuple{"--weights", "1,2,3", "--weights '1,2,3': give 4 numbers"},
        std::tuple{"--durability", "disk", "durability: 'disk' is neither ledger nor redis"},
        std::tuple{"--order", "fast", "neither strict nor weighted"}, std::tuple{"--aging", "0s", "aging"},
        std::tuple{"--concurrency", "-1", "--concurrency"}, std::tuple{"--concurrency", "9999999", "concurrency: 9999999"}}) {
    const CliResult result = Run({"queue", "set", "q", flag, value});
    EXPECT_EQ(result.code, 2) << flag << " " << value << ": " << result.err;
    EXPECT_THAT(result.err, HasSubstr(complaint));
  }
  EXPECT_EQ(Run({"queue", "show", "q"}).code, 3);
}

// Embedded, as with Redis: what a job says, else what its queue is set to.
TEST_F(CliQueues, AJobIsOfItsQueuesClassUnlessItSaysItsOwn) {
  const auto up = Start({"up"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const auto class_of = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args{"job",     "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})",
                                  "--queue", "fast",   "-q",     "--wait"};
    args.insert(args.end(), more.begin(), more.end());
    const CliResult submitted = Run(args);
    EXPECT_EQ(submitted.code, 0) << submitted.err;
    return RunJson({"job", "show", submitted.out.substr(0, 36)}).at("durability").get<std::string>();
  };
  EXPECT_EQ(class_of({}), "ledger");
  EXPECT_EQ(class_of({"--durability", "redis"}), "redis");
  const CliResult set = Run({"queue", "set", "fast", "--durability", "redis"});
  ASSERT_EQ(set.code, 0) << set.err;
  EXPECT_EQ(set.err, "") << "through the broker";
  EXPECT_EQ(RunJson({"queue", "show", "fast"})[0]["durability"], "redis");
  EXPECT_EQ(class_of({}), "redis");
  EXPECT_EQ(class_of({"--durability", "ledger"}), "ledger");
  EXPECT_EQ(class_of({"--options", R"({"durability": "ledger"})"}), "ledger");
  EXPECT_EQ(class_of({"--options", R"({"unique_key": "k"})"}), "ledger");
  ASSERT_EQ(Run({"queue", "set", "fast", "--durability", "ledger"}).code, 0);
  EXPECT_EQ(RunJson({"queue", "list"})[0]["durability"], "ledger");
  EXPECT_EQ(class_of({}), "ledger");
  EXPECT_EQ(class_of({"--durability", "redis"}), "redis");
  for (const auto& [args, complaint] :
       {std::pair{std::vector<std::string>{"--durability", "disk"}, "durability: \"disk\" is neither ledger nor redis"},
        std::pair{std::vector<std::string>{"--durability", "redis", "--options", R"({"durability": "redis"})"},
                  "options says it too"}}) {
    std::vector<std::string> wrong{"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})"};
    wrong.insert(wrong.end(), args.begin(), args.end());
    const CliResult result = Run(wrong);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_THAT(result.err, HasSubstr(complaint));
  }
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{20}).code, 0);
}

TEST_F(CliQueues, APausedQueueHoldsARunUntilItIsResumed) {
  Write("a.csv", "id,amount\n1,10\n2,20\n");
  WritePipeline("small",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  l: { load: { from: raw, to: warehouse, table: x } }\n");
  const auto up = Start({"up", "small.yaml"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const CliResult pause = Run({"queue", "pause", "default"});
  ASSERT_EQ(pause.code, 0) << pause.err;
  EXPECT_EQ(pause.err, "") << "through the broker";
  ASSERT_EQ(Run({"run", "start", "small"}).code, 0);
  nlohmann::json row;
  ASSERT_TRUE(Eventually([&] {
    row = RunJson({"queue", "show", "default"})[0];
    return row["waiting"] == 1;
  })) << row.dump();
  EXPECT_EQ(row["ready"], 1);
  EXPECT_EQ(row["running"], 0);
  EXPECT_EQ(row["paused"], true);
  EXPECT_EQ(Run({"run", "list", "--state", "succeeded", "-q"}).out, "");
  ASSERT_EQ(Run({"queue", "resume", "default"}).code, 0);
  EXPECT_TRUE(Eventually([&] { return !Run({"run", "list", "--state", "succeeded", "-q"}).out.empty(); }));
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{20}).code, 0);
}

TEST_F(CliQueues, AnOrgsBudgetIsOverAllItsQueues) {
  const auto up = Start({"up"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  const auto submit = [&](const std::string& queue, const std::string& org) {
    return std::vector<std::string>{"job",     "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})",
                                    "--queue", queue,    "--org",  org,       "--wait",    "--no-progress"};
  };
  for (const char* queue : {"a", "b"}) ASSERT_EQ(Run({"queue", "pause", queue}).code, 0);
  ASSERT_EQ(Run({"queue", "set", "*", "--max-waiting", "2"}).code, 0);
  const auto first = Start(submit("a", "1")), second = Start(submit("b", "1"));
  nlohmann::json row;
  ASSERT_TRUE(Eventually([&] {
    row = RunJson({"queue", "show", "*"})[0];
    return row["waiting"] == 2;
  })) << row.dump();
  EXPECT_EQ(row["max_waiting_jobs"], 2);
  EXPECT_TRUE(row["paused"].is_null()) << "what only a queue has";
  EXPECT_EQ(RunJson({"queue", "list"})[0]["queue"], "*");
  const auto third = Start(submit("c", "1"));
  EXPECT_EQ(Run(submit("c", "2")).code, 0) << "the others have budgets of their own";
  EXPECT_EQ(RunJson({"job", "list"}).size(), 2u) << "the third one was not taken";
  ASSERT_EQ(Run({"queue", "resume", "a"}).code, 0);
  EXPECT_EQ(first->Wait(std::chrono::seconds{60}).code, 0);
  EXPECT_EQ(third->Wait(std::chrono::seconds{60}).code, 0) << "there is room again";
  ASSERT_EQ(Run({"queue", "resume", "b"}).code, 0);
  EXPECT_EQ(second->Wait(std::chrono::seconds{60}).code, 0);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{20}).code, 0);
}

TEST_F(CliQueues, TheWholeOrgIsNoQueue) {
  for (const auto& [command, complaint] :
       {std::pair{std::vector<std::string>{"queue", "pause", "*"}, "paused: '*' is the whole org"},
        std::pair{std::vector<std::string>{"queue", "set", "*", "--concurrency", "1"}, "concurrency: '*' is the whole org"},
        std::pair{std::vector<std::string>{"queue", "set", "*", "--rate", "1/1s"}, "rate: '*' is the whole org"},
        std::pair{std::vector<std::string>{"queue", "set", "*", "--order", "weighted"}, "order: '*' is the whole org"},
        std::pair{std::vector<std::string>{"job", "submit", "--kind", "command", "--payload", R"({"argv": ["true"]})",
                                           "--queue", "*"},
                  "queue: '*' is all queues of an org"},
        std::pair{std::vector<std::string>{"job", "submit", "--batch", "jobs"}, "jobs:1: queue: '*' is all queues of an org"},
        std::pair{std::vector<std::string>{"check", "all.yaml"}, "queue '*' is not a valid name"}}) {
    Write("jobs", "{\"kind\": \"mail\", \"queue\": \"*\"}\n");
    WritePipeline("all", "  c: { command: [sh, -c, \"exit 0\"], queue: \"*\" }\n");
    const CliResult result = Run(command);
    EXPECT_THAT(result.code, ::testing::AnyOf(1, 2)) << complaint;
    EXPECT_THAT(result.err, HasSubstr(complaint));
  }
  EXPECT_EQ(Run({"queue", "show", "*"}).code, 3) << "nothing was stored";
}

TEST_F(CliQueues, WhatNobodyServesIsSaidWithWhatHelps) {
  const auto finding = [&](int code = 0) {
    for (const auto& row : RunJson({"doctor"}, code))
      if (row["check"] == "workers") return row;
    return nlohmann::json();
  };
  EXPECT_TRUE(finding().is_null()) << "no broker runs: nothing is known";
  WritePipeline("small", "  c: { command: [sh, -c, \"exit 0\"] }\n");
  const auto up = Start({"up", "small.yaml"});
  ASSERT_TRUE(Eventually([&] { return Run({"status"}).code == 0; }));
  ASSERT_TRUE(Eventually([&] { return Run({"doctor"}).out.find("taken by a connected worker") != std::string::npos; }));
  EXPECT_EQ(finding()["ok"], true);
  ASSERT_EQ(Run({"job", "submit", "--kind", "mail", "--queue", "mails", "-q"}).code, 0);
  nlohmann::json row;
  ASSERT_TRUE(Eventually([&] {
    row = RunJson({"queue", "show", "mails"})[0];
    return row["unserved"] == 1 && row["unserved_since"].is_string();
  })) << row.dump();
  EXPECT_EQ(row["unserved_what"], "1 of kind 'mail'");
  EXPECT_THAT(Run({"queue", "show", "mails", "-o", "table"}).out, HasSubstr("connect a worker that serves kind 'mail'"));
  const nlohmann::json found = finding(1);
  EXPECT_EQ(found["ok"], false);
  EXPECT_THAT(found["found"].get<std::string>(), HasSubstr("queue 'mails': 1 of kind 'mail' ready since 20"));
  EXPECT_THAT(found["fix"].get<std::string>(), HasSubstr("connect a worker that serves kind 'mail'"));
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(std::chrono::seconds{20}).code, 0);
}

}  // namespace
}  // namespace millrace::testing
