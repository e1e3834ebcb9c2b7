#include "common/model/stage_task.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace millrace {
namespace {

StageTask SampleTask() {
  StageTask t;
  t.pipeline = "p";
  t.version = 3;
  t.run = *RunId::Parse("01890000-0000-7000-8000-000000000001");
  t.job = *JobId::Parse("01890000-0000-7000-8000-000000000002");
  t.effect = "1/p/w/db:t/2001-01-01T00:00:00Z/-#2";
  t.generation = 2;
  t.slot = FromUnixMicros(978'307'200'000'000);
  t.stage.name = "w";
  t.stage.work = LoadSpec{"a", "db", "t", "", LoadMode::kMerge, {"k"}, true};
  t.stage.checks = {{CheckKind::kRowCount, {}, {}, "", 1, std::nullopt}};
  t.stage.contract = ContractSpec{{{"k", "bigint", true}}, OnViolation::kDrop};
  t.stage.retry = {7, Millis{10}, Millis{20}};
  t.inputs = {{"a", "1/p/a/lake/x/-#2"}};
  t.params = {{"since", "date", "2001-01-01"}};
  t.base_dir = "/srv/p";
  return t;
}

TEST(EffectKey, IsReadableAndUnambiguous) {
  EXPECT_EQ(
      EffectKey(kDefaultOrg, "flight_delays", "warehouse", "warehouse:analytics.flight_delays", "2001-01-01T06:15:00Z", "-", 0),
      "1/flight_delays/warehouse/warehouse:analytics.flight_delays/2001-01-01T06:15:00Z/-#0");
  EXPECT_EQ(EffectKey(OrgId{7}, "p", "s", "file:out/x#1%.csv", "r", "", 4), "7/p/s/file:out%2Fx%231%25.csv/r/-#4");
  EXPECT_NE(EffectKey(kDefaultOrg, "a/b", "c", "s", "r", "-", 0), EffectKey(kDefaultOrg, "a", "b/c", "s", "r", "-", 0));
}

TEST(StageTaskJson, RoundTrips) {
  const StageTask task = SampleTask();
  const auto again = StageTaskFromJson(ToJson(task));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(*again, task);

  CommandTask command{"p", "c", task.run, task.job, {{"echo", ""}, {{"A", "b"}}}, "/srv"};
  EXPECT_EQ(*CommandTaskFromJson(ToJson(command)), command);
  EXPECT_EQ(ToJson(command).find("org"), std::string::npos) << "a reader that does not know the key reads it";
  command.org = OrgId{7};
  EXPECT_EQ(*CommandTaskFromJson(ToJson(command)), command);

  StageOrder order{
      task, Token::Make(Epoch{0xFFFFFFFF}, 9), "/lake", "/tmp/x", ConnectionSpec{"db", "sqlite", "/x.db"}, 1u << 30, 4, false};
  const auto order2 = StageOrderFromJson(ToJson(order));
  ASSERT_TRUE(order2) << order2.error().message;
  EXPECT_EQ(order2->task, task);
  EXPECT_EQ(order2->token, order.token);
  EXPECT_EQ(order2->connection->dsn, "/x.db");
  EXPECT_EQ(order2->memory_bytes_max, 1u << 30);
  EXPECT_EQ(order2->threads, 4);
  EXPECT_FALSE(order2->sandbox);

  StageResult result;
  result.error_class = "check_failed";
  result.rows = {10, 7, 1, 1, 1};
  result.quarantine = "1/p/q";
  EXPECT_EQ(*StageResultFromJson(ToJson(result)), result);
}

TEST(CommandPayload, IsOfTheJobsOrgWhateverItSays) {
  const JobId job = SampleTask().job;
  const auto made = CommandPayload(R"({"argv": ["true"]})", job, OrgId{7});
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(CommandTaskFromJson(*made)->org, OrgId{7});
  EXPECT_EQ(*CommandPayload(*made, job, OrgId{7}), *made);
  EXPECT_EQ(CommandTaskFromJson(*CommandPayload(*made, job, OrgId{8}))->org, OrgId{8});
}

// A program would be given what stands before the NUL.
TEST(CommandPayload, AWordThatAProgramWouldNotGetWholeIsRefused) {
  const JobId job = SampleTask().job;
  const std::pair<std::string, std::string> cases[] = {
      {R"({"argv": ["tr\u0000ue"]})", "argv[0]: contains a NUL"},
      {R"({"argv": ["sh", "-c", "a", "b", "\u0000"]})", "argv[4]: contains a NUL"},
      {R"({"argv": ["sh"], "env": {"A": "b\u0000"}})", "env.A: contains a NUL"},
      {R"({"argv": ["sh"], "env": {"A\u0000": "b"}})", "env: a name contains a NUL"},
      {R"({"argv": ["sh"], "env": {"": "b"}})", "env: '' is not the name of an environment variable"},
      {R"({"argv": ["sh"], "env": {"A=B": "b"}})", "env: 'A=B' is not the name of an environment variable"},
      {R"({"argv": ["sh"], "base_dir": "/srv\u0000/"})", "base_dir: contains a NUL"},
  };
  for (const auto& [json, message] : cases) {
    const auto made = CommandPayload(json, job, kDefaultOrg);
    ASSERT_FALSE(made) << json;
    EXPECT_EQ(made.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(made.error().message, "payload: " + message);
  }
  CommandTask task = *CommandTaskFromJson(*CommandPayload(R"({"argv": ["true"]})", job, kDefaultOrg));
  task.command.argv[0].push_back('\0');
  const auto read = CommandTaskFromJson(ToJson(task));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().message, "command_task: command.argv[0]: contains a NUL");
  EXPECT_EQ(CommandPayload(ToJson(task), job, kDefaultOrg).error().message, "payload: command.argv[0]: contains a NUL");
}

std::string Replace(std::string text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(StageTaskJson, IsStrict) {
  const std::string good = ToJson(SampleTask());
  const struct {
    std::string json, message;
  } cases[] = {
      {"", "stage_task: not a JSON document"},
      {"[]", "stage_task: expected an object"},
      {Replace(good, "\"pipeline\":\"p\"", "\"pipeline\":1"), "stage_task: pipeline: expected a string"},
      {Replace(good, "\"version\":3", "\"version\":3.5"), "stage_task: version: expected an integer in range"},
      {Replace(good, "\"version\":3,", ""), "stage_task: version: is missing"},
      {Replace(good, "\"generation\":2", "\"generation\":-1"), "stage_task: generation: expected an integer in range"},
      {Replace(good, "\"mode\":\"merge\"", "\"mode\":\"upsert\""),
       "stage_task: stage.load.mode: unknown value 'upsert'; give one of append, replace, merge"},
      {Replace(good, "\"table\":", "\"tabel\":"), "stage_task: stage.load.tabel: unknown key"},
      {Replace(good, "\"name\":\"k\"", "\"name\":null"), "stage_task: stage.contract.columns[0].name: expected a string"},
      {Replace(good, "\"load\":{", "\"transform\":{\"sql\":\"\"},\"load\":{"),
       "stage_task: stage: expected exactly one kind of work"},
  };
  for (const auto& c : cases) {
    const auto r = StageTaskFromJson(c.json);
    ASSERT_FALSE(r) << c.json;
    EXPECT_EQ(r.error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(r.error().message, c.message);
  }
  StageTask command = SampleTask();
  command.stage.work = CommandSpec{{"x"}, {}};
  EXPECT_FALSE(StageTaskFromJson(ToJson(command)));
}

TEST(StageTaskJson, SurvivesBytesThatAreNotUtf8) {
  StageResult r;
  r.error = "file \xff.csv";
  const auto again = StageResultFromJson(ToJson(r));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->error, "file \xEF\xBF\xBD.csv");
}

}  // namespace
}  // namespace millrace
