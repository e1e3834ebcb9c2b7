#include "common/model/run_plan.h"

#include <gtest/gtest.h>

#include "common/model/pipeline_parser.h"
#include "common/model/stage_task.h"

namespace millrace {
namespace {

class RunPlanTest : public testing::Test {
 protected:
  RunPlanTest() {
    const std::string_view source = R"(version: 1
pipeline: p
params: { since: 2001-01-01, who: { required: true } }
stages:
  w: { load: { from: t, to: db, table: s.t } }
  t: { transform: "select * from a, b where d >= $since", priority: 1, queue: bulk, timeout: 5s }
  a: { extract: { from: file, path: [ "in/x/*.csv", in/y/z.csv ] } }
  b: { extract: { from: file, path: /abs/b.csv } }
  c: { command: [ echo, hi ], after: [ w ] }
)";
    const ParseResult r = ParsePipeline(source, "p.yaml");
    EXPECT_TRUE(r.pipeline) << RenderAll(r.diagnostics, source);
    pipeline_ = r.pipeline.value_or(Pipeline{});
    request_.version = 4;
    request_.base_dir = "/srv/p";
    request_.params = {{"who", "me"}};
    request_.now = clock_.WallNow();
  }
  const JobSpec& Job(const RunPlan& plan, std::string_view stage) {
    for (const JobSpec& j : plan.jobs)
      if (j.stage == stage) return j;
    ADD_FAILURE() << stage;
    return plan.jobs.front();
  }
  FakeClock clock_;
  SeededRandom random_{1};
  IdGenerator ids_{clock_, random_};
  Pipeline pipeline_;
  RunRequest request_;
};

TEST_F(RunPlanTest, RetriesAndTheDeadlineOfAStageBecomeOptionsOfItsJob) {
  for (StageSpec& stage : pipeline_.stages) {
    if (stage.name != "t") continue;
    stage.backoff = Backoff::kFixed;
    stage.no_retry = {"check_failed"};
    stage.deadline = Millis{7'200'000};
  }
  const auto plan = PlanRun(pipeline_, request_, ids_);
  ASSERT_TRUE(plan) << plan.error().message;
  const JobOptions& options = Job(*plan, "t").options;
  EXPECT_EQ(options.backoff, Backoff::kFixed);
  EXPECT_EQ(options.no_retry, std::vector<std::string>{"check_failed"});
  EXPECT_EQ(options.deadline, request_.now + 2h) << "from the run's creation";
  EXPECT_EQ(Job(*plan, "a").options.deadline, std::nullopt);
}

TEST_F(RunPlanTest, MakesOneJobPerStageInOrder) {
  request_.org = OrgId{7};
  const auto plan = PlanRun(pipeline_, request_, ids_);
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->jobs.size(), 5u);
  EXPECT_EQ(plan->run.params, R"({"since":"2001-01-01","who":"me"})");
  EXPECT_EQ(plan->run.version, 4);
  for (std::size_t i = 1; i < plan->jobs.size(); ++i) EXPECT_LT(plan->jobs[i - 1].id, plan->jobs[i].id);
  for (const JobSpec& j : plan->jobs) {
    EXPECT_EQ(j.run, plan->run.id);
    for (const JobId d : j.depends_on) EXPECT_LT(d, j.id);
  }
  const JobSpec& t = Job(*plan, "t");
  EXPECT_EQ(t.depends_on, (std::vector<JobId>{Job(*plan, "a").id, Job(*plan, "b").id}));
  EXPECT_EQ(t.queue, "bulk");
  EXPECT_EQ(t.priority, 1);
  EXPECT_EQ(t.timeout, Millis{5000});
  EXPECT_EQ(Job(*plan, "a").root, "/srv/p/in");
  EXPECT_EQ(Job(*plan, "b").root, "/abs");
  EXPECT_EQ(t.root, "");
  const JobSpec& c = Job(*plan, "c");
  EXPECT_EQ(c.kind, kJobKindCommand);
  EXPECT_EQ(c.effect, "");
  EXPECT_EQ(CommandTaskFromJson(c.payload)->command.argv, (std::vector<std::string>{"echo", "hi"}));
  EXPECT_EQ(CommandTaskFromJson(c.payload)->org, OrgId{7});
}

TEST_F(RunPlanTest, EffectsNameSlotOrRun) {
  const auto by_hand = PlanRun(pipeline_, request_, ids_);
  ASSERT_TRUE(by_hand);
  EXPECT_EQ(Job(*by_hand, "w").effect, "1/p/w/db:s.t/" + by_hand->run.id.ToString() + "/-#0");
  request_.slot = *ParseRfc3339("2001-01-01T06:15:00Z");
  request_.generation = 2;
  const auto fired = PlanRun(pipeline_, request_, ids_);
  ASSERT_TRUE(fired);
  EXPECT_EQ(Job(*fired, "w").effect, "1/p/w/db:s.t/2001-01-01T06:15:00Z/-#2");
  EXPECT_EQ(Job(*fired, "t").effect, "1/p/t/lake/2001-01-01T06:15:00Z/-#2");
  const auto task = StageTaskFromJson(Job(*fired, "t").payload);
  ASSERT_TRUE(task) << task.error().message;
  EXPECT_EQ(task->inputs, (std::vector<StageInput>{{"a", "1/p/a/lake/2001-01-01T06:15:00Z/-#2"},
                                                   {"b", "1/p/b/lake/2001-01-01T06:15:00Z/-#2"}}));
  EXPECT_EQ(task->params, (std::vector<BoundParam>{{"since", "date", "2001-01-01"}, {"who", "text", "me"}}));
  EXPECT_EQ(task->stage, *pipeline_.FindStage("t"));
  const auto again = PlanRun(pipeline_, request_, ids_);
  EXPECT_EQ(Job(*again, "w").effect, Job(*fired, "w").effect);
  EXPECT_NE(Job(*again, "w").id, Job(*fired, "w").id);
}

TEST_F(RunPlanTest, RefusesWrongParameters) {
  request_.params = {};
  EXPECT_EQ(PlanRun(pipeline_, request_, ids_).error().message, "parameter 'who' (text) is required: give who=...");
  request_.params = {{"who", "me"}, {"sinse", "x"}};
  EXPECT_EQ(PlanRun(pipeline_, request_, ids_).error().message, "pipeline 'p' has no parameter 'sinse'; did you mean 'since'?");
  request_.params = {{"who", "me"}, {"since", "yesterday"}};
  const auto r = PlanRun(pipeline_, request_, ids_);
  EXPECT_EQ(r.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(r.error().message, "parameter 'since': 'yesterday' is not a date");
}

}  // namespace
}  // namespace millrace
