// Which run of a pipeline may start: limits of parallel runs, and backfills behind everything else.
#include <gtest/gtest.h>

#include "broker/run_coordinator.h"
#include "common/base/random.h"

namespace millrace {
namespace {

class RunOverlapTest : public ::testing::Test {
 protected:
  struct Made {
    RunSpec run;
    JobSpec job;
  };
  Made Make(const std::string& overlap, std::uint32_t generation = 0) {
    Made made;
    made.run.id = ids_.Next<RunId>();
    made.run.pipeline = "p";
    made.run.overlap = overlap;
    made.run.generation = generation;
    made.job.id = ids_.Next<JobId>();
    made.job.run = made.run.id;
    made.job.stage = "s";
    return made;
  }
  static LiveRun Live(const Made& made) {
    return {.spec = made.run,
            .jobs = {made.job},
            .ended = {},
            .counters = {},
            .next_run_at = {},
            .cancelling = false,
            .cancel_reason = {}};
  }
  // The id of the run; `started_` grows when it did.
  RunId Add(const std::string& overlap, std::uint32_t generation = 0) {
    const Made made = Make(overlap, generation);
    jobs_[made.run.id] = made.job.id;
    Note(runs_.AddRun(made.run, {made.job}));
    return made.run.id;
  }
  void End(RunId run) {
    RunCoordinator::Job* job = runs_.Find(jobs_.at(run));
    runs_.Apply(*job, JobEvent::kUnblocked);
    runs_.Apply(*job, JobEvent::kLeased);
    Note(runs_.JobEnded(jobs_.at(run), JobState::kSucceeded, {}, ""));
    runs_.Remove(run);
  }
  void Note(const RunEffects& effects) {
    started_.insert(started_.end(), effects.started.begin(), effects.started.end());
    for (const auto& end : effects.ended)
      if (end.state == RunState::kSkipped) ++skipped_;
  }

  SystemClock clock_;
  SeededRandom random_{1};
  IdGenerator ids_{clock_, random_};
  RunCoordinator runs_;
  std::map<RunId, JobId> jobs_;
  std::vector<RunId> started_;
  int skipped_ = 0;
};
using Ids = std::vector<RunId>;

TEST_F(RunOverlapTest, AllowWithALimitQueuesTheRest) {
  const RunId a = Add("allow(2)"), b = Add("allow(2)"), c = Add("allow(2)"), d = Add("allow(2)");
  EXPECT_EQ(started_, (Ids{a, b}));
  End(b);
  EXPECT_EQ(started_, (Ids{a, b, c}));
  End(a);
  EXPECT_EQ(started_, (Ids{a, b, c, d})) << "in the order in which they came";
  const RunId free = Add("allow");
  EXPECT_EQ(started_.back(), free) << "without a limit nothing waits";
}

TEST_F(RunOverlapTest, ARunByHandWaitsForAllAndIsNotOvertaken) {
  const RunId a = Add("allow(3)"), hand = Add("queue"), b = Add("allow(3)");
  EXPECT_EQ(started_, (Ids{a})) << "first come, first served";
  End(a);
  EXPECT_EQ(started_, (Ids{a, hand, b})) << "b bears runs beside it";
}

TEST_F(RunOverlapTest, ARunByHandIsNotHeldUpByRunsThatComeAfterItAndWaitForNobody) {
  const RunId a = Add("allow"), hand = Add("queue"), b = Add("allow"), hand2 = Add("queue"), c = Add("allow");
  EXPECT_EQ(started_, (Ids{a, b, c}));
  End(a);
  EXPECT_EQ(started_, (Ids{a, b, c, hand})) << "b and c came after it";
  const RunId d = Add("allow");
  End(b);
  EXPECT_EQ(started_, (Ids{a, b, c, hand, d})) << "the run by hand before it is active";
  End(hand);
  EXPECT_EQ(started_, (Ids{a, b, c, hand, d, hand2})) << "c and d came after it";
}

TEST_F(RunOverlapTest, AfterARestartARunByHandWaitsForTheSameRuns) {
  Ids ids;
  for (const char* overlap : {"allow", "queue", "allow", "queue", "allow"}) {
    const Made m = Make(overlap);
    jobs_[m.run.id] = m.job.id;
    ids.push_back(m.run.id);
    LiveRun live = Live(m);
    if (ids.size() % 2 == 1) live.counters[m.job.id] = {1, 0, 0};  // those that allow had begun
    runs_.Restore(live);
  }
  Note(runs_.FinishRestore());
  EXPECT_EQ(started_, (Ids{ids[0], ids[2], ids[4]}));
  const RunId later = Add("allow");
  End(ids[0]);
  EXPECT_EQ(started_, (Ids{ids[0], ids[2], ids[4], later, ids[1]}));
  End(ids[2]);
  End(ids[1]);
  EXPECT_EQ(started_, (Ids{ids[0], ids[2], ids[4], later, ids[1], ids[3]}));
}

TEST_F(RunOverlapTest, TheScheduleNeverWaitsBehindAQueuedBackfill) {
  const RunId b1 = Add("queue", 1), b2 = Add("queue", 1);
  EXPECT_EQ(started_, (Ids{b1, b2})) << "how many runs of a backfill there are is for its feeder to say";
  const RunId live = Add("queue"), b3 = Add("queue", 1), live2 = Add("queue");
  End(b1);
  EXPECT_EQ(started_, (Ids{b1, b2})) << "no run of a backfill starts while another one waits";
  End(b2);
  EXPECT_EQ(started_, (Ids{b1, b2, live}));
  End(live);
  EXPECT_EQ(started_, (Ids{b1, b2, live, live2})) << "before b3, which came earlier";
  End(live2);
  EXPECT_EQ(started_, (Ids{b1, b2, live, live2, b3}));
}

TEST_F(RunOverlapTest, ABackfillIsNoReasonToSkipTheSchedule) {
  const RunId b = Add("queue", 2), live = Add("skip");
  EXPECT_EQ(skipped_, 0);
  EXPECT_EQ(started_, (Ids{b}));
  Add("skip");
  EXPECT_EQ(skipped_, 1) << "another run of the schedule is";
  End(b);
  EXPECT_EQ(started_, (Ids{b, live}));
}

TEST_F(RunOverlapTest, TheLimitHoldsAcrossARestart) {
  std::vector<Made> made;
  for (int i = 0; i < 4; ++i) made.push_back(Make("allow(2)"));
  const Made backfill = Make("queue", 1);
  runs_.Restore(Live(backfill));
  for (const Made& m : made) {
    LiveRun live = Live(m);
    if (&m == &made[3]) live.counters[m.job.id] = {1, 0, 0};  // it had begun
    jobs_[m.run.id] = m.job.id;
    runs_.Restore(live);
  }
  Note(runs_.FinishRestore());
  EXPECT_EQ(started_, (Ids{made[3].run.id, made[0].run.id}));
  End(made[3].run.id);
  End(made[0].run.id);
  EXPECT_EQ(started_, (Ids{made[3].run.id, made[0].run.id, made[1].run.id, made[2].run.id}));
  End(made[1].run.id);
  End(made[2].run.id);
  EXPECT_EQ(started_.back(), backfill.run.id);
}

}  // namespace
}  // namespace millrace
