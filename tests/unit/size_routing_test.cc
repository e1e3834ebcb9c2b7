// Which queue a stage goes to by what its inputs reported, also after a rebuild, and that whoever says a queue keeps it.
#include "broker/size_routing.h"

#include <gtest/gtest.h>

#include <map>

#include "broker/run_coordinator.h"
#include "common/base/random.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/model/run_plan.h"
#include "common/model/stage_task.h"

namespace millrace {
namespace {

constexpr std::string_view kFile = R"(version: 1
pipeline: shop
route_by_size: 100
stages:
  orders:
    extract: { from: file, path: orders.csv }
  people:
    extract: { from: file, path: people.csv }
  joined:
    transform: select * from orders join people using (id)
  chosen:
    transform: select * from orders
    queue: mine
  off:
    transform: select * from orders
    route_by_size: false
  own:
    transform: select * from orders
    route_by_size: 10
  last:
    load: { from: joined, to: warehouse, table: t }
    after: [people]
)";

class SizeRoutingTest : public ::testing::Test {
 protected:
  SizeRoutingTest() {
    const ParseResult parsed = ParsePipeline(kFile, "shop.yaml");
    EXPECT_TRUE(parsed.pipeline) << RenderAll(parsed.diagnostics, kFile);
    RunRequest request;
    request.version = 1;
    request.base_dir = "/data";
    auto plan = PlanRun(parsed.pipeline.value_or(Pipeline{}), request, ids_);
    EXPECT_TRUE(plan) << plan.error().message;
    plan_ = std::move(*plan);
    for (const JobSpec& job : plan_.jobs) id_of_[job.stage] = job.id;
  }
  static std::string Result(std::int64_t rows) {
    StageResult result;
    result.ok = true;
    result.rows = {.read = rows, .loaded = rows};
    return ToJson(result);
  }
  std::string QueueOf(const RunCoordinator& runs, const std::string& stage) { return runs.Find(id_of_.at(stage))->spec->queue; }
  RunEffects End(RunCoordinator& runs, const std::string& stage, std::int64_t rows) {
    RunCoordinator::Job& job = *runs.Find(id_of_.at(stage));
    runs.Apply(job, JobEvent::kUnblocked);
    runs.Apply(job, JobEvent::kLeased);
    job.result = Result(rows);
    return runs.JobEnded(job.spec->id, JobState::kSucceeded, {1, 0, 0}, "");
  }

  FakeClock clock_;
  SeededRandom random_{1};
  IdGenerator ids_{clock_, random_};
  RunPlan plan_;
  std::map<std::string, JobId> id_of_;
};

TEST_F(SizeRoutingTest, WhatTheInputsReportedDecides) {
  RunCoordinator runs;
  runs.AddRun(plan_.run, plan_.jobs);
  EXPECT_EQ(QueueOf(runs, "orders"), "default") << "nothing is known of an extract before it runs";
  End(runs, "orders", 60);
  EXPECT_EQ(QueueOf(runs, "joined"), "default") << "not ready yet";
  EXPECT_EQ(QueueOf(runs, "own"), "large") << "60 rows are more than its own 10";
  EXPECT_EQ(QueueOf(runs, "chosen"), "mine");
  EXPECT_EQ(QueueOf(runs, "off"), "default");
  End(runs, "people", 40);
  EXPECT_EQ(QueueOf(runs, "joined"), "small") << "exactly 100 rows of both";
  End(runs, "joined", 101);
  EXPECT_EQ(QueueOf(runs, "last"), "large") << "what it is only ordered after does not count";
  EXPECT_EQ(RoutedQueue(*runs.Find(id_of_.at("last"))->spec), "large");
  EXPECT_EQ(RoutedQueue(*runs.Find(id_of_.at("chosen"))->spec), "");
}

TEST_F(SizeRoutingTest, TheLimitKeyAndTheThresholdReachTheJob) {
  const auto parsed = ParsePipeline(
      "version: 1\npipeline: p\nstages:\n  a:\n    extract: { from: file, path: a.csv }\n    limit_key: api\n"
      "  b:\n    transform: select * from a\n    route_by_size: true\n",
      "p.yaml");
  ASSERT_TRUE(parsed.pipeline);
  const auto stored = PipelineFromJson(ToJson(*parsed.pipeline));
  ASSERT_TRUE(stored) << stored.error().message;
  EXPECT_EQ(*stored, *parsed.pipeline);
  const auto plan = PlanRun(*stored, RunRequest{}, ids_);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->jobs[0].options.limit_key, "api");
  EXPECT_EQ(plan->jobs[0].options.route_rows, 0);
  EXPECT_EQ(plan->jobs[1].options.limit_key, "");
  EXPECT_EQ(plan->jobs[1].options.route_rows, kRouteRowsDefault);
}

TEST_F(SizeRoutingTest, ARebuildSendsItWhereItWas) {
  for (const auto& [rows, queue] : {std::pair{60, "small"}, std::pair{61, "large"}}) {
    RunCoordinator runs;
    LiveRun live{.spec = plan_.run, .jobs = plan_.jobs, .ended = {}, .counters = {}, .next_run_at = {}, .cancel_reason = {}};
    for (const std::string stage : {"orders", "people"}) {
      live.ended[id_of_.at(stage)] = JobState::kSucceeded;
      live.results[id_of_.at(stage)] = Result(stage == "orders" ? rows : 40);
    }
    runs.Restore(live);
    runs.FinishRestore();
    EXPECT_EQ(QueueOf(runs, "joined"), queue);
  }
}

TEST_F(SizeRoutingTest, WhatIsNotKnownIsLarge) {
  const JobSpec& joined = plan_.jobs[2];
  ASSERT_EQ(joined.stage, "joined");
  EXPECT_EQ(RouteBySize(joined, [](std::string_view) { return std::nullopt; }), kQueueLarge);
  EXPECT_EQ(RouteBySize(joined, [](std::string_view) { return 0; }), kQueueSmall);
  EXPECT_EQ(RowsInResult(""), std::nullopt);
  EXPECT_EQ(RowsInResult("no json"), std::nullopt);
  EXPECT_EQ(RowsInResult(Result(7)), 7);
  JobSpec command = joined;
  command.kind = kJobKindCommand;
  EXPECT_EQ(RouteBySize(command, [](std::string_view) { return 0; }), "");
}

TEST_F(SizeRoutingTest, TheParserRefusesWhatHasNoMeaning) {
  const auto code_of = [](const std::string& stage) {
    const auto parsed =
        ParsePipeline("version: 1\npipeline: p\nstages:\n  a:\n    extract: { from: file, path: a.csv }\n" + stage, "p.yaml");
    return parsed.diagnostics.empty() ? std::string() : parsed.diagnostics.front().message;
  };
  EXPECT_EQ(code_of("  b:\n    transform: select * from a\n    route_by_size: true\n"), "");
  EXPECT_TRUE(code_of("    route_by_size: 10\n").contains("reads no other stage"));
  EXPECT_TRUE(
      code_of("  b:\n    transform: select * from a\n    route_by_size: 5\n    queue: x\n").contains("routed by its size"));
  EXPECT_TRUE(code_of("  b:\n    transform: select * from a\n    route_by_size: 0\n").contains("must be between 1"));
  EXPECT_EQ(code_of("  b:\n    transform: select * from a\n    limit_key: warehouse-api\n"), "");
  EXPECT_NE(code_of("  b:\n    transform: select * from a\n    limit_key: \"\"\n"), "");
  EXPECT_TRUE(code_of("  b:\n    transform: select * from a\n    limit_key: " + std::string(129, 'x') + "\n")
                  .contains("limit_key must have"));
}

}  // namespace
}  // namespace millrace
