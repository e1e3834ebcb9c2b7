// What the command line prints: tables, CSV, JSON, run reports and progress lines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/run_report.h"
#include "common/base/random.h"

namespace millrace::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Table, AlignsWhatATerminalShowsNotBytes) {
  const Table table{.columns = {"name", "n", "last"},
                    .rows = {{std::string("Zürich"), std::int64_t{3'000'000}, std::string("x")},
                             {std::string("東京"), std::int64_t{-7}, {}},
                             {std::string("e\u0301"), {}, std::string("two\nlines\x1b[31m")}}};
  EXPECT_EQ(Format(table, OutputFormat::kTable),
            "name            n  last\n"
            "Zürich  3,000,000  x\n"
            "東京           -7\n"
            "e\u0301                  two lines [31m\n");
  EXPECT_EQ(Format(Table{.columns = {"a", "b"}, .rows = {}}, OutputFormat::kTable), "a  b\n");
}

TEST(Table, OneFieldALineIsReadFromTheLeft) {
  const Table table{.columns = {"of", "value"},
                    .rows = {{std::string("queue"), std::string("default")}, {std::string("waiting"), std::int64_t{7}}}};
  EXPECT_EQ(Format(table, OutputFormat::kTable), "of       value\nqueue    default\nwaiting  7\n");
}

TEST(Table, IdsAreTheFirstColumnAndNoneTwiceInSuccession) {
  const Table table{.columns = {"stage", "column"},
                    .rows = {{std::string("a"), std::string("x")},
                             {std::string("a"), std::string("y")},
                             {std::string("b"), std::string("x")},
                             {std::int64_t{1'000'000}, Cell{}}}};
  EXPECT_EQ(Format(table, OutputFormat::kIds), "a\nb\n1000000\n");
  EXPECT_EQ(Format(Table{.columns = {"a"}, .rows = {}}, OutputFormat::kIds), "");
}

TEST(Table, WidthCountsWideAndCombiningCharactersAndBadBytes) {
  EXPECT_EQ(DisplayWidth(""), 0u);
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("ü"), 1u);
  EXPECT_EQ(DisplayWidth("東京"), 4u);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1u);
  EXPECT_EQ(DisplayWidth("\xff\xfe"), 2u);
  EXPECT_EQ(DisplayWidth(std::string_view("a\0b", 3)), 3u);
  EXPECT_EQ(DisplayWidth("\xe6\x9d"), 2u) << "a character that is cut off";
}

TEST(Csv, QuotesWhatNeedsIt) {
  const Table table{.columns = {"a", "b,c"},
                    .rows = {{std::string("plain"), std::string("with \"quotes\"")},
                             {std::string("two\r\nlines"), std::int64_t{1'000'000}},
                             {Cell{}, 0.1},
                             {true, std::numeric_limits<double>::quiet_NaN()}}};
  EXPECT_EQ(Format(table, OutputFormat::kCsv),
            "a,\"b,c\"\r\nplain,\"with \"\"quotes\"\"\"\r\n\"two\r\nlines\",1000000\r\n,0.1\r\ntrue,nan\r\n");
}

TEST(Json, KeepsTypesAndColumnOrderAndSurvivesAnyValue) {
  const Table table{.columns = {"z", "a"},
                    .rows = {{std::int64_t{std::numeric_limits<std::int64_t>::max()}, std::string("\xff")},
                             {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()},
                             {0.1, Cell{}}}};
  EXPECT_EQ(Format(table, OutputFormat::kNdjson),
            "{\"z\":9223372036854775807,\"a\":\"\uFFFD\"}\n{\"z\":null,\"a\":null}\n{\"z\":0.1,\"a\":null}\n");
  EXPECT_EQ(nlohmann::json::parse(Format(table, OutputFormat::kJson)).size(), 3u);
  EXPECT_EQ(Format(Table{.columns = {"a"}, .rows = {}}, OutputFormat::kJson), "[]\n");
}

TEST(Formats, AreNamed) {
  EXPECT_EQ(*ParseOutputFormat("ndjson"), OutputFormat::kNdjson);
  EXPECT_EQ(ParseOutputFormat("xml").error().message, "--output: 'xml' is not one of table, json, ndjson, csv");
}

TEST(ForPeople, NumbersAreReadable) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(-1234567), "-1,234,567");
  EXPECT_EQ(HumanCount(std::numeric_limits<std::int64_t>::min()), "-9,223,372,036,854,775,808");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(12'900'000), "12.9 MB");
  EXPECT_EQ(HumanDuration(Micros{1'500}), "1.5 ms");
  EXPECT_EQ(HumanDuration(Micros{640'000}), "640 ms");
  EXPECT_EQ(HumanDuration(Micros{2'310'000}), "2.31 s");
  EXPECT_EQ(HumanDuration(Micros{192'000'000}), "3 min 12 s");
  EXPECT_EQ(HumanDuration(Micros{7'380'000'000}), "2 h 3 min");
  EXPECT_EQ(std::get<std::string>(DurationCell(Micros{640'000}, OutputFormat::kTable)), "640 ms");
  EXPECT_EQ(std::get<std::int64_t>(DurationCell(Micros{640'999}, OutputFormat::kCsv)), 640);
}

class Report : public ::testing::Test {
 protected:
  Report() {
    report_.run = "01a1fc86-aaa1-71b6-be1e-5b4980682c42";
    report_.pipeline = "shop";
    report_.version = 3;
    report_.state = RunState::kSucceeded;
    report_.created_at = WallTime{Micros{1'000'000}};
    report_.finished_at = WallTime{Micros{3'500'000}};
    StageReport load;
    load.stage = "warehouse";
    load.kind = "load";
    load.state = JobState::kSucceeded;
    load.counters.deliveries = 1;
    load.started_at = WallTime{Micros{1'000'000}};
    load.finished_at = WallTime{Micros{1'250'000}};
    StageResult result;
    result.ok = true;
    result.rows = {.read = 5000, .loaded = 4999, .filtered = 0, .quarantined = 0, .deduplicated = 1};
    result.inserted = 4000;
    result.updated = 9;
    result.unchanged = 990;
    result.bytes_written = 1'234'567;
    result.target = "shop.orders";
    result.plan = "merge";
    load.result = result;
    report_.stages.push_back(load);
  }
  RunReport report_;
};

TEST_F(Report, CountsWhatLoadsChangedAndWhetherRowsAddUp) {
  EXPECT_EQ(report_.Changed(), 4009);
  EXPECT_TRUE(report_.HasLoad());
  EXPECT_TRUE(report_.Balanced());
  report_.stages[0].result->already_applied = true;
  EXPECT_EQ(report_.Changed(), 0);
  report_.stages[0].result->rows.loaded = 1;
  EXPECT_FALSE(report_.Balanced());
  EXPECT_THAT(ForPeople(report_), AllOf(HasSubstr("DOES NOT HOLD"), HasSubstr("applied before, nothing was done again")));
}

TEST_F(Report, IsATableForPeopleAndNumbersForPrograms) {
  EXPECT_THAT(ForPeople(report_),
              AllOf(HasSubstr("shop version 3: run 01a1fc86-aaa1-71b6-be1e-5b4980682c42 succeeded in 2.50 s"),
                    HasSubstr("warehouse: shop.orders (merge): 4,000 inserted, 9 updated, 990 unchanged"), HasSubstr("1.2 MB"),
                    HasSubstr("250 ms")));
  const std::string csv = Format(StageTable(report_, OutputFormat::kCsv), OutputFormat::kCsv);
  EXPECT_EQ(csv,
            "stage,kind,state,attempts,read,loaded,filtered,quarantined,deduplicated,bytes,duration_ms\r\n"
            "warehouse,load,succeeded,1,5000,4999,0,0,1,1234567,250\r\n");
  const auto json = nlohmann::json::parse(ToJson(report_));
  EXPECT_EQ(json.at("duration_ms"), 2500);
  EXPECT_EQ(json.at("slot"), nullptr);
  EXPECT_EQ(json.at("stages")[0].at("rows").at("deduplicated"), 1);
}

TEST_F(Report, WhatRunsSaysWhereAndHowFar) {
  StageReport copy;
  copy.stage = "copy";
  copy.job = "01a1fc86-aaa1-71b6-be1e-5b4980682c43";
  copy.state = JobState::kReady;
  report_.stages.push_back(copy);
  report_.state = RunState::kRunning;
  wire::RunUpdate::Stage running;
  running.job = JobId::Parse(copy.job).value();
  running.state = JobState::kRunning;
  running.worker = "w1";
  running.rows = 1200;
  running.bytes = 4096;
  AddRunning(report_, std::array{running});
  EXPECT_EQ(report_.stages[0].state, JobState::kSucceeded);
  EXPECT_THAT(ForPeople(report_), HasSubstr("copy: running on w1: 1,200 rows, 4.1 kB so far\n"));
  const auto json = nlohmann::json::parse(ToJson(report_));
  EXPECT_EQ(json.at("stages")[0].at("progress"), nullptr);
  EXPECT_EQ(json.at("stages")[1].at("state"), "running");
  EXPECT_EQ(json.at("stages")[1].at("progress"), (nlohmann::json{{"worker", "w1"}, {"rows", 1200}, {"bytes", 4096}}));
  running.bytes = 0;
  EXPECT_EQ(ProgressText(running), "on w1: 1,200 rows so far");
  running.rows = 1;
  EXPECT_EQ(ProgressText(running), "on w1: 1 row so far");
  running.rows = 0;
  EXPECT_EQ(ProgressText(running), "on w1");
  running.bytes = 500;
  EXPECT_EQ(ProgressText(running), "on w1: 500 B so far");
  report_.stages[1].state = JobState::kDead;
  report_.stages[1].running.reset();
  AddRunning(report_, std::array{running});
  EXPECT_FALSE(report_.stages[1].running) << "the ledger knows more";
}

TEST_F(Report, AFailureNamesStageAttemptsClassAndLog) {
  StageReport command;
  command.stage = "notify";
  command.kind = "command";
  command.state = JobState::kDead;
  command.counters.deliveries = 2;
  command.error_class = "command_failed";
  command.error = "the command ended with exit code 7";
  command.log_tail = "oops\nagain";
  report_.stages.push_back(command);
  report_.state = RunState::kFailed;
  report_.reason = "stage 'notify' is dead";
  EXPECT_THAT(ForPeople(report_),
              AllOf(HasSubstr("stage notify dead after 2 attempts: command_failed: the command ended with exit code 7\n"
                              "  | oops\n  | again\n"),
                    Not(HasSubstr("stage 'notify' is dead")), Not(HasSubstr("holds for every stage"))))
      << "the reason repeats what the stage said";
  const auto stages = nlohmann::json::parse(ToJson(report_)).at("stages");
  EXPECT_EQ(stages[1].size(), stages[0].size());
  for (const auto& [key, value] : stages[0].items()) EXPECT_TRUE(stages[1].contains(key)) << key << " is a key of every stage";
  for (const char* key : {"rows", "bytes_read", "inserted", "already_applied", "target", "quarantine"})
    EXPECT_EQ(stages[1].value(key, nlohmann::json("absent")), nullptr) << key << " of a stage without a result";
}

TEST(Progress, SaysOneLineForEachStepOfEachStage) {
  FakeClock clock;
  SeededRandom random{1};
  IdGenerator ids{clock, random};
  ProgressView view(ProgressStyle::kLines, clock);
  wire::RunUpdate update;
  update.changed.emplace_back();
  auto& stage = update.changed.back();
  stage.job = ids.Next<JobId>();
  stage.stage = "orders";
  ::testing::internal::CaptureStderr();
  stage.state = JobState::kReady;
  view.Update(update);
  stage.state = JobState::kRunning;
  stage.counters.deliveries = 1;
  view.Update(update);
  stage.rows = 1000;  // progress of the same attempt says nothing
  view.Update(update);
  clock.Advance(Millis{1500});
  stage.state = JobState::kDead;
  stage.error = "no space";
  view.Update(update);
  view.Finish();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "stage orders: ready\nstage orders: running\nstage orders: dead in 1.50 s: no space\n");
}

TEST(Progress, BarsAreRedrawnInPlaceAndNoneIsSilent) {
  FakeClock clock;
  SeededRandom random{1};
  IdGenerator ids{clock, random};
  wire::RunUpdate update;
  for (const char* name : {"orders", "per_country"}) {
    update.changed.emplace_back();
    update.changed.back().job = ids.Next<JobId>();
    update.changed.back().stage = name;
    update.changed.back().state = JobState::kRunning;
    update.changed.back().rows = 1234;
  }
  ::testing::internal::CaptureStderr();
  ProgressView silent(ProgressStyle::kNone, clock);
  silent.Update(update);
  silent.Finish();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");

  clock.Advance(Millis{1000});
  ProgressView bars(ProgressStyle::kBars, clock);
  ::testing::internal::CaptureStderr();
  bars.Update(update);
  clock.Advance(Millis{50});
  bars.Tick();  // too soon
  clock.Advance(Millis{100});
  bars.Tick();
  bars.Finish();
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, AllOf(HasSubstr("orders"), HasSubstr("per_country"), HasSubstr("1,234 rows"), HasSubstr("\x1b[2A")));
  std::size_t draws = 0;
  for (std::size_t at = 0; (at = text.find("per_country", at)) != std::string::npos; ++at) ++draws;
  EXPECT_EQ(draws, 3u);
}

RunSummary Summary(const std::string& id, const std::string& pipeline, RunState state, std::string_view created) {
  RunSummary run;
  run.spec.id = *RunId::Parse(id);
  run.spec.pipeline = pipeline;
  run.spec.created_at = *ParseRfc3339(created);
  run.state = state;
  run.jobs = 3;
  return run;
}

TEST(RunList, FitsATerminalAndKeepsWhatTellsRunsApart) {
  std::vector<RunSummary> runs{
      Summary("01a1fc86-aaa1-71b6-be1e-5b4980682c42", "shop", RunState::kRunning, "2026-11-21T06:15:04.250Z"),
      Summary("01a1fc86-aaa1-7200-be1e-5b4980682c42", std::string(60, 'p'), RunState::kFailed, "2026-11-20T06:15:04Z"),
      Summary("0193e0c5-0000-7200-be1e-5b4980682c42", "shop", RunState::kSucceeded, "2025-12-31T23:59:59Z")};
  runs[1].spec.slot = *ParseRfc3339("2026-11-19T06:15:00Z");
  runs[2].spec.slot = *ParseRfc3339("2025-12-31T23:59:00Z");
  runs[1].finished_at = *ParseRfc3339("2026-11-20T09:27:16Z");
  runs[1].jobs_ended = 3;
  runs[1].jobs_succeeded = 1;
  runs[1].reason = "stage '東京' is dead: " + std::string(200, 'x') + "\nmore";
  const std::string text = RunsForPeople(runs, *ParseRfc3339("2026-11-21T07:00:00Z"));
  EXPECT_THAT(text, HasSubstr("\n01a1fc86-aaa1-71  shop"));
  EXPECT_THAT(text, HasSubstr("\n01a1fc86-aaa1-72  ppppp"));
  EXPECT_THAT(text, HasSubstr("ppp...  failed     11-20 06:15  11-19 06:15  3 h 12 min  1/3     stage"));
  EXPECT_THAT(text, HasSubstr("succeeded  2025-12-31   23:59:00"));
  EXPECT_THAT(text, HasSubstr("...\n"));
  std::istringstream lines(text);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) EXPECT_LE(DisplayWidth(line), kRunListColumns) << line;
  EXPECT_EQ(count, 4);
}

TEST(RunList, WithoutSlotsHasRoomForReasons) {
  std::vector<RunSummary> runs{
      Summary("01a1fc86-aaa1-71b6-be1e-5b4980682c42", "shop", RunState::kFailed, "2026-11-21T06:15:04Z")};
  runs[0].reason = "stage 'orders' is dead: " + std::string(100, 'x');
  const std::string text = RunsForPeople(runs, *ParseRfc3339("2026-11-21T07:00:00Z"));
  EXPECT_THAT(text, AllOf(Not(HasSubstr("slot")), HasSubstr("stage 'orders' is dead: xxx")));
  EXPECT_EQ(DisplayWidth(text.substr(text.find('\n') + 1, text.rfind('\n') - text.find('\n') - 1)), kRunListColumns);
  EXPECT_THAT(RunsForPeople({}, *ParseRfc3339("2026-11-21T07:00:00Z")), HasSubstr("run  pipeline"));
}

TEST(Ellipsis, CutsBetweenCharactersAndNeverBeyondTheWidth) {
  EXPECT_EQ(Ellipsized("abc", 3), "abc");
  EXPECT_EQ(Ellipsized("abcd", 3), "...");
  EXPECT_EQ(Ellipsized("Zürich am See", 8), "Züric...");
  EXPECT_EQ(Ellipsized("東京東京東京", 8), "東京...");
  EXPECT_EQ(Ellipsized("", 3), "");
}

}  // namespace
}  // namespace millrace::cli
