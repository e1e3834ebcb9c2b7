#include "common/model/pipeline_parser.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <iterator>

#include "common/model/param.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_places.h"

namespace millrace {
namespace {

constexpr std::string_view kHead = "version: 1\npipeline: p\n";

std::string Rendered(std::string_view source) {
  const ParseResult r = ParsePipeline(source, "p.yaml");
  EXPECT_EQ(r.pipeline.has_value(), r.diagnostics.empty());
  return RenderAll(r.diagnostics, source);
}

std::string Codes(std::string_view source) {
  std::string out;
  for (const Diagnostic& d : ParsePipeline(source, "p.yaml").diagnostics)
    out += fmt::format("{}:{}:{} ", d.place.line, d.place.column, d.code);
  if (!out.empty()) out.pop_back();
  return out;
}

std::string WithStages(std::string_view stages) { return std::string(kHead) + "stages:\n" + std::string(stages); }
constexpr const char* kCommandHelp = "write [program, argument, ...], or [sh, -c, \"...\"] for a shell";
constexpr std::string_view kA = "  a: { extract: { from: file, path: a.csv } }\n";

std::string Scheduled(std::string_view keys) {
  return fmt::format("{}schedule: {{ cron: \"@daily\", {} }}\nstages:\n{}", kHead, keys, kA);
}
std::string OneStage(std::string_view keys) { return WithStages(fmt::format("  b: {{ command: [x], {} }}\n{}", keys, kA)); }

TEST(PipelineParser, ReadsTheDemo) {
  std::ifstream in(std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/flight_delays.yaml");
  const std::string source{std::istreambuf_iterator<char>(in), {}};
  const ParseResult r = ParsePipeline(source, "flight_delays.yaml");
  ASSERT_TRUE(r.pipeline) << RenderAll(r.diagnostics, source);
  const Pipeline& p = *r.pipeline;
  EXPECT_EQ(p.name, "flight_delays");
  ASSERT_EQ(p.schedules.size(), 1u);
  EXPECT_EQ(p.schedules[0].cron, "15 6 * * *");
  EXPECT_EQ(p.schedules[0].timezone, "America/New_York");
  ASSERT_EQ(p.params.size(), 1u);
  EXPECT_EQ(p.params[0].type, "date");
  ASSERT_EQ(p.stages.size(), 4u);
  const StageSpec* delays = p.FindStage("delays");
  ASSERT_NE(delays, nullptr);
  EXPECT_EQ(delays->inputs, (std::vector<std::string>{"flights", "airports"}));
  EXPECT_EQ(delays->depends_on, (std::vector<std::string>{"airports", "flights"}));
  EXPECT_EQ(delays->param_names, std::vector<std::string>{"since"});
  ASSERT_TRUE(delays->contract);
  EXPECT_EQ(delays->contract->columns, (std::vector<ColumnSpec>{{"day", "date", true}, {"flights", "bigint", true}}));
  EXPECT_EQ(delays->contract->on_violation, OnViolation::kQuarantine);
  ASSERT_EQ(delays->checks.size(), 3u);
  EXPECT_EQ(delays->checks[2].expression, "flights > 0");
  EXPECT_EQ(delays->sql_place.column, 7);
  const auto& load = std::get<LoadSpec>(p.FindStage("warehouse")->work);
  EXPECT_EQ(load.mode, LoadMode::kMerge);
  EXPECT_EQ(load.key, (std::vector<std::string>{"origin", "day"}));

  const auto again = PipelineFromJson(ToJson(p));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(*again, p);
  EXPECT_EQ(ToJson(*again), ToJson(p));
}

TEST(PipelineParser, ReadsTheTutorial) {
  std::ifstream in(std::string(MILLRACE_SOURCE_DIR) + "/ops/docs/pipeline.md");
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  const auto start = page.find("```yaml\n") + 8;
  const std::string source = page.substr(start, page.find("```", start) - start);
  EXPECT_EQ(Rendered(source), "");
  EXPECT_EQ(ParsePipeline(source, "p.yaml").pipeline->stages.size(), 3u);
}

TEST(PipelineParser, ReadsEveryKey) {
  const std::string source = R"(version: 1
pipeline: everything
schedule: { cron: "@daily", catchup: all(5), overlap: skip, dst: both, misfire_grace: 5m }
params: { n: 7, f: 1.50, b: true, t: "12", at: 2020-02-29T10:00:00+02:00, keep: no, id: 0123, r: { type: date, default: 2001-01-01 } }
stages:
  in:
    extract: { from: file, path: [a.csv, "b/*.csv"], format: csv, options: { delimiter: ";", header: false, skip: 2, null: "" }, copy: true, allow_empty: true }
    retry: { max_attempts: 5, backoff: 500ms, backoff_max: 2m }
    timeout: 10m
    queue: bulk
    priority: 0
  out:
    load: { from: t, to: file, path: out.parquet, provenance: true }
  t:
    transform: { sql: "select * from in where n > $n" }
    checks:
      - accepted_values: { column: c, values: [x, "y"] }
      - row_count: { min: 1, max: 9 }
  note:
    command: { argv: [echo, ""], env: { A: b } }
    after: out
)";
  const ParseResult r = ParsePipeline(source, "p.yaml");
  ASSERT_TRUE(r.pipeline) << RenderAll(r.diagnostics, source);
  const Pipeline& p = *r.pipeline;
  std::string params, order;
  for (const auto& q : p.params) params += q.name + ":" + q.type + "=" + q.default_value + " ";
  EXPECT_EQ(params,
            "n:bigint=7 f:double=1.5 b:boolean=true t:text=12 at:timestamp=2020-02-29 08:00:00 keep:text=no id:text=0123 "
            "r:date=2001-01-01 ");
  for (const auto& s : p.stages) order += s.name + " ";
  EXPECT_EQ(order, "in t out note ");
  const StageSpec& in = p.stages[0];
  const auto& extract = std::get<ExtractSpec>(in.work);
  EXPECT_EQ(extract.paths, (std::vector<std::string>{"a.csv", "b/*.csv"}));
  EXPECT_EQ(extract.options,
            (std::map<std::string, std::string>{{"delimiter", ";"}, {"header", "false"}, {"null", ""}, {"skip", "2"}}));
  EXPECT_TRUE(extract.copy && extract.allow_empty);
  EXPECT_EQ(in.retry, (RetryPolicy{5, Millis{500}, Millis{120'000}}));
  EXPECT_EQ(in.timeout, Millis{600'000});
  EXPECT_EQ(in.queue, "bulk");
  EXPECT_EQ(in.priority, 0);
  EXPECT_TRUE(std::get<LoadSpec>(p.FindStage("out")->work).provenance);
  EXPECT_EQ(p.FindStage("note")->depends_on, std::vector<std::string>{"out"});
  EXPECT_TRUE(p.FindStage("note")->inputs.empty());
  EXPECT_EQ(std::get<CommandSpec>(p.FindStage("note")->work).argv, (std::vector<std::string>{"echo", ""}));
  EXPECT_EQ(*PipelineFromJson(ToJson(p)), p);
}

TEST(PipelineParser, RendersWithCaretAndSuggestion) {
  EXPECT_EQ(Rendered(WithStages(std::string(kA) + "  w:\n    load: { from: a, to: db, tabel: x }\n")),
            "p.yaml:6:5: error: a load to a connection needs the key 'table'\n"
            "    6 |     load: { from: a, to: db, tabel: x }\n"
            "      |     ^~~~\n"
            "p.yaml:6:30: error: unknown key 'tabel'\n"
            "    6 |     load: { from: a, to: db, tabel: x }\n"
            "      |                              ^~~~~\n"
            "  help: did you mean 'table'?\n");
  EXPECT_EQ(
      Rendered(WithStages(
          "  flights: { extract: { from: file, path: a.csv } }\n  t:\n    transform: |\n      select *\n      from flight\n")),
      "p.yaml:8:12: error: the SQL reads 'flight', which is no stage\n"
      "    8 |       from flight\n"
      "      |            ^~~~~~\n"
      "  help: did you mean 'flights'?\n");
  EXPECT_EQ(Rendered(WithStages("  a: { transform: select * from b }\n  b: { transform: select * from a }\n")),
            "p.yaml:4:3: error: stages wait for each other: a -> b -> a\n"
            "    4 |   a: { transform: select * from b }\n"
            "      |   ^\n"
            "  help: no stage of this circle can ever start; remove one of its arrows\n");
  EXPECT_EQ(Rendered(WithStages(std::string(kA) + "  b: { transform: select $x from a }\n")),
            "p.yaml:5:26: error: the SQL binds $x, which is no parameter\n"
            "    5 |   b: { transform: select $x from a }\n"
            "      |                          ^~\n"
            "  help: declare it: params: { x: ... }\n");
  EXPECT_EQ(Rendered(""),
            "p.yaml: error: the file is empty\n"
            "  help: a pipeline file has at least version: 1, pipeline: NAME and stages\n");
}

TEST(PipelineParser, RefusesEachMistakeAtItsPlace) {
  struct Case {
    std::string source, codes;
  };
  const std::string a(kA), head(kHead);
  const Case cases[] = {
      {"", "0:0:empty_file"},
      {"# only a comment\n", "0:0:empty_file"},
      {"- a\n", "1:1:wrong_type"},
      {"hello", "1:1:wrong_type"},
      {head + "stages: {}\n", "3:9:bad_value"},
      {head, "1:1:missing_key"},
      {"version: 2\npipeline: p\nstages:\n" + a, "1:10:unsupported_version"},
      {"version: 1\npipeline: Bad\nstages:\n" + a, "2:11:bad_name"},
      {head + "stages:\n" + a + a, "5:3:duplicate_key"},
      {WithStages("\ta: 1\n"), "4:1:tab_indent"},
      {WithStages("  A: { command: [x] }\n"), "4:3:bad_name"},
      {WithStages("  a: { extract: { from: file, path: a.csv }, command: [x] }\n"), "4:46:two_kinds"},
      {WithStages("  a: { queue: x }\n"), "4:3:no_kind"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: t, mode: merge } }\n"), "5:49:missing_key"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: t, key: [x] } }\n"), "5:48:bad_value"},
      {WithStages(a + "  b: { load: { from: c, to: db, table: t } }\n"), "5:22:unknown_stage"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: a.b.c } }\n"), "5:40:bad_name"},
      {WithStages(a + "  b: { load: { from: a, to: file, path: x.txt } }\n"), "5:41:bad_value"},
      {WithStages(a + "  b: { load: { from: a, to: file, path: ./x/../a.csv } }\n"), "5:41:bad_value"},
      {WithStages("  a: { extract: { from: file, path: d/*.csv } }\n  b: { load: { from: a, to: file, path: d/out.csv } }\n"),
       "5:41:bad_value"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: Millrace.receipt } }\n"), "5:40:bad_name"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: millrace_receipt } }\n"), "5:40:bad_name"},
      {WithStages(a + "  b: { load: { from: a, to: db, table: SQLite_master } }\n"), "5:40:bad_name"},
      {WithStages("  b: { command: [x] }\n  c: { load: { from: b, to: db, table: t } }\n"), "5:22:no_data"},
      {WithStages("  b: { command: [x], timeout: 10 }\n"), "4:31:bad_duration"},
      {WithStages("  b: { command: [x], timeout: 10min }\n"), "4:31:bad_duration"},
      {WithStages("  b: { command: [x], timeout: 0s }\n"), ""},
      {WithStages("  b: { command: [x], deadline: 0s }\n"), "4:32:bad_value"},
      {WithStages("  b: { command: [x], deadline: 1ms }\n"), ""},
      {WithStages("  b: { command: [x], priority: 4 }\n"), "4:32:bad_value"},
      {WithStages("  b: { command: [x], priority: high }\n"), "4:32:wrong_type"},
      {WithStages("  b: { command: ls -l }\n"), "4:17:wrong_type"},
      {WithStages("  b: { command: [x, \"a\\0b\"] }\n"), "4:22:bad_value"},
      {WithStages("  b: { command: { argv: [x], env: { A: \"a\\0b\" } } }\n"), "4:41:bad_value"},
      {WithStages("  b: { command: { argv: [x], env: { \"A\\0\": b } } }\n"), "4:38:bad_name"},
      {WithStages("  b: { command: [x], after: [nope] }\n"), "4:30:unknown_stage"},
      {WithStages("  b: { command: [x], after: [b] }\n"), "4:3:pipeline_cycle"},
      {WithStages("  b: { extract: { from: file, path: x, copy: yes } }\n"), "4:46:wrong_type"},
      {WithStages("  b: { transform: delete from x }\n"), "4:19:bad_sql"},
      {WithStages(a + "  b: { transform: select 1; select 2 }\n"), "5:19:bad_sql"},
      {WithStages("  b: { transform: \"select 'x\" }\n"), "4:27:bad_sql"},
      {WithStages("  b: { transform: select * from 'x.csv' }\n"), "4:33:bad_sql"},
      {WithStages(a + "  b: &x { command: [x] }\n"), "5:9:yaml_alias"},
      {WithStages("  b: *x\n"), "4:7:yaml_alias"},
      {WithStages("  b: { command: [x], <<: {} }\n"), "4:22:yaml_alias"},
      {WithStages("  b: !!str x\n"), "4:12:yaml_tag"},
      {WithStages(a) + "---\na: 1\n", "5:1:yaml_documents"},
      {head + "params: { x: { type: int, default: 1 } }\nstages:\n" + a, "3:22:bad_value"},
      {head + "params: { x: { type: date, default: 2001-02-30 } }\nstages:\n" + a, "3:37:wrong_type"},
      {head + "params: { x: {} }\nstages:\n" + a, "3:11:missing_key"},
      {head + "params: { x: { required: true } }\nstages:\n" + a, ""},
      {head + "params: { x: { required: true } }\nschedule: { cron: \"@daily\" }\nstages:\n" + a, "3:11:bad_value"},
      {head + "schedule: { cron: \"99 * * * *\" }\nstages:\n" + a, "3:20:bad_schedule"},
      {head + "schedule: { cron: \"@daily\", catchup: all(0) }\nstages:\n" + a, "3:38:bad_value"},
      {WithStages("  b: { command: [\"\xff\"] }\n"), "4:19:invalid_utf8"},
      {WithStages(std::string("  b: \0\n", 7)), "4:6:invalid_character"},
      {WithStages("  b: \xc2\x9a\n"), "4:6:invalid_character"},
      {WithStages("  b:\n    transform: |\n    select 1\n      from t\n"), "6:5:yaml_syntax"},
      {"%YAML 1.1\n---\n" + WithStages(a), "1:1:yaml_directive"},
      {"%o %opassword \xdc\x89\n", "1:1:yaml_directive"},
      {"a: [", "1:5:yaml_syntax"},
  };
  for (const Case& c : cases) EXPECT_EQ(Codes(c.source), c.codes) << c.source << Rendered(c.source);
}

TEST(PipelineParser, AComplaintHasTheValueAndTheFix) {
  const struct {
    std::string source, place_and_message, help;
  } cases[] = {
      {Scheduled("catchup: all(1001)"), "3:38: schedule.catchup is all(1001); N of all(N) must be a number between 1 and 1000",
       "write for example all(10), or all for every slot"},
      {Scheduled("catchup: all(0)"), "3:38: schedule.catchup is all(0); N of all(N) must be a number between 1 and 1000",
       "write for example all(10), or all for every slot"},
      {Scheduled("catchup: all(N)"), "3:38: schedule.catchup is all(N); N of all(N) must be a number between 1 and 1000",
       "write for example all(10), or all for every slot"},
      {Scheduled("misfire_grace: 367d"), "3:44: schedule.misfire_grace is 367d; it must be at most 366d", ""},
      {Scheduled("start: 2026-02-02, end: 2026-02-01"),
       "3:53: schedule.end 2026-02-01 is not after schedule.start 2026-02-02: it would never fire",
       "write a later end, an earlier start, or leave one of them out"},
      {std::string(kHead) + "schedule: { cron: \"\" }\nstages:\n" + std::string(kA), "3:20: schedule.cron is empty",
       "write 5 fields, for example \"0 6 * * *\", or @daily"},
      {std::string(kHead) + "stages: {}\n", "3:9: the pipeline has no stage",
       "add one, for example hello: { command: [echo, hello] }"},
      {OneStage("timeout: 99999999999999999999h"), "4:31: timeout is 99999999999999999999h; it must be at most 366d", ""},
      {OneStage("timeout: -5s"), "4:31: timeout: '-5s' is not a time",
       "write a whole number and a unit: ms, s, m, h or d, for example 90s"},
      {OneStage("priority: 99999999999999999999"), "4:32: priority is 99999999999999999999; it must be between 0 and 3", ""},
      {OneStage("retry: { backoff_base: 10s, backoff_cap: 1s }"),
       "4:63: retry.backoff_cap is 1s, shorter than the first wait, 10s", "write at least 10s, or a shorter backoff_base"},
      {OneStage("after: [nope]"), "4:30: after names the stage 'nope', which does not exist", "the stages are: b, a"},
      {WithStages("  orders: { command: [x] }\n  b: { command: [x], after: [order] }\n"),
       "5:30: after names the stage 'order', which does not exist", "did you mean 'orders'?"},
      {OneStage("after: []"), "4:29: after is an empty list", "name at least one"},
      {WithStages("  t: { transform: select * from zzzz }\n"), "4:33: the SQL reads 'zzzz', which is no stage",
       "the stages are: t"},
      {WithStages("  b: { command: [] }\n"), "4:17: the command is empty", kCommandHelp},
      {WithStages("  b: { command: [\"\"] }\n"), "4:19: a word of a command is empty", kCommandHelp},
      {WithStages("  a: { extract: { from: file, path: a.csv }, checks: [ row_count: { min: 5, max: 3 } ] }\n"),
       "4:74: row_count.min is 5, greater than row_count.max, 3",
       "write a smaller min, a greater max, or leave one of them out"},
      {WithStages(std::string(kA) + "  b: { load: { from: a, to: file, path: x.txt } }\n"),
       "5:41: load.path is 'x.txt'; it must end in .parquet or .csv", ""},
      {std::string(kHead) + "params: { n: { type: bigint, default: x } }\nstages:\n" + std::string(kA),
       "3:39: parameter 'n': 'x' is not a bigint", "write a bigint, or give the parameter another type"},
  };
  for (const auto& [source, place_and_message, help] : cases) {
    const ParseResult r = ParsePipeline(source, "p.yaml");
    ASSERT_EQ(r.diagnostics.size(), 1u) << source << Rendered(source);
    const Diagnostic& d = r.diagnostics[0];
    EXPECT_EQ(fmt::format("{}:{}: {}", d.place.line, d.place.column, d.message), place_and_message) << source;
    EXPECT_EQ(d.help, help) << source;
  }
  EXPECT_TRUE(ParsePipeline(Scheduled("catchup: all(1000), misfire_grace: 366d"), "p.yaml").pipeline);
}

TEST(PipelineParser, CollectsSeveralUpToTheLimit) {
  std::string stages;
  for (int i = 0; i < 30; ++i) stages += fmt::format("  s{}: {{ command: [x], oops: 1 }}\n", i);
  const ParseResult r = ParsePipeline(WithStages(stages), "p.yaml");
  EXPECT_EQ(r.diagnostics.size(), kDiagnosticsMax);
  EXPECT_EQ(r.diagnostics[19].place.line, 23);
}

TEST(PipelineParser, ReadsRetriesAndDeadlines) {
  const auto stage = [](std::string_view options) {
    const std::string source = WithStages("  a: { extract: { from: file, path: a.csv }, " + std::string(options) + " }\n");
    const ParseResult r = ParsePipeline(source, "p.yaml");
    EXPECT_TRUE(r.pipeline) << RenderAll(r.diagnostics, source);
    if (!r.pipeline) return StageSpec{};
    const auto again = PipelineFromJson(ToJson(*r.pipeline));
    EXPECT_TRUE(again && *again == *r.pipeline) << "it comes back from the ledger as it was";
    return r.pipeline->stages.front();
  };
  const StageSpec full = stage(
      "deadline: 2h, retry: { max_attempts: 5, backoff: fixed, backoff_base: 10s, backoff_cap: 5m, no_retry: [check_failed] }");
  EXPECT_EQ(full.retry, (RetryPolicy{5, Millis{10'000}, Millis{300'000}}));
  EXPECT_EQ(full.backoff, Backoff::kFixed);
  EXPECT_EQ(full.no_retry, std::vector<std::string>{"check_failed"});
  EXPECT_EQ(full.deadline, Millis{7'200'000});
  EXPECT_EQ(stage("retry: { backoff: exponential, no_retry: crashed }").backoff, Backoff::kExponential);
  EXPECT_EQ(stage("retry: { backoff: 500ms, backoff_max: 2m }").retry, (RetryPolicy{3, Millis{500}, Millis{120'000}}));
  EXPECT_EQ(stage("retry: { backoff_base: 5m }").retry.backoff_cap, Millis{300'000}) << "no cap below the first wait";
  const auto refused = [](std::string_view retry) {
    return Rendered(WithStages("  a: { extract: { from: file, path: a.csv }, retry: { " + std::string(retry) + " } }\n"));
  };
  EXPECT_NE(refused("backoff: fixd").find("fixed"), std::string::npos);
  EXPECT_NE(refused("backoff: 1s, backoff_base: 2s").find("says both 'backoff' and 'backoff_base'"), std::string::npos);
  EXPECT_NE(refused("backoff_cap: 1s, backoff_max: 2s").find("says both"), std::string::npos);
  EXPECT_NE(refused("backoff_base: 1500ms, backoff_cap: 1s").find("help: write at least 1500ms"), std::string::npos);
  EXPECT_NE(refused("no_retry: [Bad Class]").find("is not an error class"), std::string::npos);
  EXPECT_NE(refused("no_retry: [nonsense_class]").find("'nonsense_class' is not an error class"), std::string::npos);
  EXPECT_NE(refused("no_retry: check_faild").find("did you mean 'check_failed'?"), std::string::npos);
  EXPECT_NE(refused("no_retry: [a, a]").find("names 'a' twice"), std::string::npos);
}

TEST(PipelineParser, WhatWasNotWrittenIsWhereItsKeyIs) {
  EXPECT_EQ(Codes("version: 1\npipeline: x\nschedule:\nstages:\n"), "3:1:wrong_type 4:1:wrong_type");
  EXPECT_EQ(Codes(WithStages(std::string(kA) + "  b:\n")), "5:3:wrong_type");
}

TEST(PipelineParser, HasLimits) {
  EXPECT_EQ(Codes(std::string(kHead) + "x: " + std::string(100, '[') + std::string(100, ']')), "3:67:too_deep");
  EXPECT_EQ(Codes(std::string(kPipelineFileBytesMax + 1, ' ')), "0:0:too_large");
  std::string stages;
  for (std::size_t i = 0; i <= kStagesPerPipelineMax; ++i) stages += fmt::format("  s{}: {{ command: [x] }}\n", i);
  EXPECT_EQ(Codes(WithStages(stages)), "10004:3:too_many_stages");
}

TEST(PipelineParser, AsksTheScheduleValidator) {
  const std::string source = std::string(kHead) + "schedule: { cron: x }\nstages:\n" + std::string(kA);
  ParseOptions options;
  options.schedule_validator = [](const ScheduleSpec& s) -> std::optional<std::string> { return "no " + s.cron; };
  const ParseResult r = ParsePipeline(source, "p.yaml", options);
  ASSERT_EQ(r.diagnostics.size(), 1u);
  EXPECT_EQ(r.diagnostics[0].message, "no x");
  options.schedule_validator = [](const ScheduleSpec&) { return std::optional<std::string>(); };
  EXPECT_TRUE(ParsePipeline(source, "p.yaml", options).pipeline);
}

TEST(PipelineParser, TenThousandStagesInAChainTakeLessThanASecond) {
  std::string stages = "  s0: { extract: { from: file, path: a.csv } }\n";
  for (int i = 1; i < 10'000; ++i) stages += fmt::format("  s{}: {{ transform: select * from s{} }}\n", i, i - 1);
  const std::string source = WithStages(stages);
  const auto start = std::clock();
  const ParseResult r = ParsePipeline(source, "p.yaml");
  const double cpu_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(r.pipeline);
  EXPECT_EQ(r.pipeline->stages.back().name, "s9999");
  EXPECT_LT(cpu_s, 3.0);  // unoptimised builds under a sanitizer too; quadratic work would take minutes
  RecordProperty("cpu_ms", static_cast<int>(cpu_s * 1000));
}

TEST(Param, InfersAndCanonicalises) {
  const std::pair<std::string_view, std::string_view> types[] = {{"true", "boolean"},
                                                                 {"True", "text"},
                                                                 {"no", "text"},
                                                                 {"0", "bigint"},
                                                                 {"-5", "bigint"},
                                                                 {"0123", "text"},
                                                                 {"0x1f", "text"},
                                                                 {"1e3", "double"},
                                                                 {".5", "double"},
                                                                 {"1.", "double"},
                                                                 {"2001-02-29", "text"},
                                                                 {"2004-02-29", "date"},
                                                                 {"2004-02-29 10:00:00", "timestamp"},
                                                                 {"", "text"},
                                                                 {"1_0", "text"}};
  for (const auto& [text, type] : types) EXPECT_EQ(InferParamType(text), type) << text;
  EXPECT_EQ(*CanonicalParam("bigint", "+5"), "5");
  EXPECT_EQ(*CanonicalParam("double", "1.50"), "1.5");
  EXPECT_EQ(*CanonicalParam("timestamp", "2001-01-01T00:00:00.5Z"), "2001-01-01 00:00:00.500000");
  EXPECT_EQ(CanonicalParam("bigint", "5x").error().message, "'5x' is not a bigint");
  EXPECT_FALSE(CanonicalParam("double", "inf"));
  EXPECT_FALSE(CanonicalParam("blob", "x"));
}

TEST(PipelineParser, ATypeWithACommaIsToldToBeQuoted) {
  const std::string flow =
      WithStages("  a: { extract: { from: file, path: a.csv, columns: { x: struct(a int, b decimal(4,1)), y: text } } }\n");
  const std::string text = Rendered(flow);
  EXPECT_EQ(Codes(flow), "4:58:bad_value");
  EXPECT_NE(text.find("the type of column 'x' has a comma"), std::string::npos) << text;
  EXPECT_NE(text.find("quote it: { x: \"struct(a int,b decimal(4,1))\" }"), std::string::npos) << text;
  EXPECT_EQ(
      Codes(WithStages("  a: { extract: { from: file, path: a.csv }, contract: { x: decimal(12, 2) not null, y: text } }\n")),
      "4:61:bad_value");
  // Quoted, in a block, or never closed: nothing to say about commas.
  EXPECT_EQ(Codes(WithStages("  a: { extract: { from: file, path: a.csv, columns: { x: \"decimal(12,2)\" } } }\n")), "");
  EXPECT_EQ(
      Codes(WithStages("  a:\n    extract:\n      from: file\n      path: a.csv\n      columns:\n        x: decimal(12,2)\n")),
      "");
}

TEST(PipelineParser, AValueThatBeginsWithAStarOrAnAtIsToldToBeQuoted) {
  const auto cron = [](std::string_view line) {
    return Rendered("version: 1\npipeline: p\n" + std::string(line) + "\n" + "stages:\n" + std::string(kA));
  };
  for (const char* line :
       {"schedule: { cron: */5 * * * * }", "schedule:\n  cron: */5 * * * *  # often", "schedule: {cron: */5 * * * *}"}) {
    const std::string text = cron(line);
    EXPECT_NE(text.find("error: a value that begins with * must be quoted"), std::string::npos) << text;
    EXPECT_NE(text.find("help: quote it: \"*/5 * * * *\"\n"), std::string::npos) << text;
  }
  EXPECT_NE(cron("schedule:\n  cron: * * * * *").find("quote it: \"* * * * *\"\n"), std::string::npos);
  EXPECT_NE(cron("schedule: { cron: @daily }").find("quote it: \"@daily\"\n"), std::string::npos);
  EXPECT_NE(cron("schedule: { cron: *nightly }").find("aliases (*name) are not allowed"), std::string::npos);
  EXPECT_EQ(Codes(WithStages("  a: { extract: { from: file, path: *.csv } }\n")), "4:37:yaml_syntax");
}

TEST(PipelinePlaces, FindsTheWordThatAPathLeadsTo) {
  const PipelinePlaces places(WithStages(
      "  a:\n    extract: { from: file, path: a.csv, columns: { id: bigint } }\n    checks:\n      - unique: [id, \"b c\"]\n"
      "      - not_null: id\n      - expression: 'id > 0'\n  b:\n    transform:\n      sql: |\n        select\n          id "
      "from a\n"));
  const auto find = [&](StagePart part, std::string_view stage = "a") {
    const auto mark = places.Find(stage, part);
    return mark ? fmt::format("{}:{}+{}", mark->place.line, mark->place.column, mark->length) : "none";
  };
  EXPECT_EQ(find({}), "4:3+1");
  EXPECT_EQ(find({}, "zz"), "none");
  EXPECT_EQ(find({.path = {"extract", "columns", "id"}, .key = true}), "5:52+2");
  EXPECT_EQ(find({.path = {"extract", "columns", "id"}}), "5:56+6");
  EXPECT_EQ(find({.path = {"checks", "0", "unique", "0"}}), "7:18+2");
  EXPECT_EQ(find({.path = {"checks", "0", "unique", "1"}}), "7:23+3");
  EXPECT_EQ(find({.path = {"checks", "1", "not_null", "0"}}), "8:19+2");
  EXPECT_EQ(find({.path = {"checks", "2", "expression"}, .offset = 5, .length = 1}), "9:27+1");
  EXPECT_EQ(find({.path = {"checks", "9", "unique"}}), "6:5+6") << "the deepest part that is there";
  EXPECT_EQ(find({.path = {"transform"}, .offset = 9, .length = 2}, "b"), "14:11+2");
}

}  // namespace
}  // namespace millrace
