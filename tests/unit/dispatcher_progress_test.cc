// How far jobs are: what workers say of it in their beats reaches who watches a run or asks for a job.
#include <gtest/gtest.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

using Counts = std::pair<std::int64_t, std::int64_t>;

class DispatcherProgressTest : public testing::DispatcherTest {
 protected:
  static wire::Hello::Held HeldOf(const wire::Grant::Job& job) { return {job.id, job.token}; }
  void Say(const std::string& peer, std::vector<wire::Hello::Held> held, std::vector<wire::Beat::Progress> progress) {
    Handle(event::FromWorker{.peer = peer,
                             .message = wire::Beat{.worker = workers_[peer],
                                                   .credit_limit = 10,
                                                   .held = std::move(held),
                                                   .progress = std::move(progress),
                                                   .draining = false}});
    Settle();
  }
  // The broker's answer about a single job; nothing, when it is a refusal.
  std::optional<wire::RunUpdate> Asked(JobId job, OrgId org = kDefaultOrg) {
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = wire::Watch{.request = 5, .org = org, .run = RunId{job.uuid}}});
    Settle();
    const auto* update = Last<wire::RunUpdate>();
    if (update != nullptr) return *update;
    EXPECT_NE(Last<wire::Problem>(), nullptr) << "an answer in any case";
    return std::nullopt;
  }
  Counts CountsOf(JobId job) {
    const auto update = Asked(job);
    if (!update || update->changed.size() != 1) return {-1, -1};
    return {update->changed[0].rows, update->changed[0].bytes};
  }
};

TEST_F(DispatcherProgressTest, OfASingleJobItIsKeptAndAnswered) {
  const JobSpec job = Job();
  Submit({job});
  EXPECT_FALSE(Asked(job.id)) << "it waits";
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(CountsOf(job.id), Counts(0, 0)) << "it has said none";
  const auto held = HeldOf(grants_[0].second);
  Say("w", {held}, {{job.id, 7, 4096}});
  const auto update = Asked(job.id);
  ASSERT_TRUE(update);
  EXPECT_EQ(update->run.uuid, job.id.uuid);
  EXPECT_EQ(update->state, RunState::kRunning);
  ASSERT_EQ(update->changed.size(), 1U);
  EXPECT_EQ(update->changed[0].job, job.id);
  EXPECT_EQ(update->changed[0].state, JobState::kRunning);
  EXPECT_EQ(update->changed[0].worker, "w");
  EXPECT_EQ(CountsOf(job.id), Counts(7, 4096));
  Say("w", {held}, {});
  EXPECT_EQ(CountsOf(job.id), Counts(7, 4096)) << "a beat without progress takes none back";
  Say("w", {held}, {{job.id, 5, 5000}});
  EXPECT_EQ(CountsOf(job.id), Counts(5, 5000)) << "what counts is the latest";
  EXPECT_FALSE(Asked(job.id, OrgId{77})) << "jobs of others are as good as none";
  End(0, AttemptEnd::kSucceeded);
  EXPECT_FALSE(Asked(job.id)) << "it has ended";
}

TEST_F(DispatcherProgressTest, AnAnswerIsGivenOnce) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  ASSERT_TRUE(Asked(job.id));
  client_.clear();
  Say("w", {HeldOf(grants_[0].second)}, {{job.id, 7, 8}});
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(Last<wire::RunUpdate>(), nullptr) << "who asks for a job does not watch it";
}

TEST_F(DispatcherProgressTest, OfARunsJobItIsToldToWhoWatches) {
  std::vector<JobSpec> jobs{Job()};
  const RunSpec run = SubmitRun(jobs, "queue", true);
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  client_.clear();
  const auto held = HeldOf(grants_[0].second);
  Say("w", {held}, {{jobs[0].id, 7, 4096}});
  const auto* update = Last<wire::RunUpdate>();
  ASSERT_NE(update, nullptr);
  EXPECT_EQ(update->run, run.id);
  ASSERT_EQ(update->changed.size(), 1U);
  EXPECT_EQ(Counts(update->changed[0].rows, update->changed[0].bytes), Counts(7, 4096));
  client_.clear();
  Say("w", {held}, {{jobs[0].id, 7, 4096}});
  EXPECT_EQ(Last<wire::RunUpdate>(), nullptr) << "the same again is no news";
  EXPECT_EQ(CountsOf(jobs[0].id), Counts(7, 4096)) << "it can be asked for alone, too";
}

TEST_F(DispatcherProgressTest, OfAnotherAttemptItIsNotTaken) {
  const JobSpec job = Job();
  Submit({job});
  Hello("w", 10);
  Hello("other", 0);
  ASSERT_EQ(grants_.size(), 1U);
  const auto held = HeldOf(grants_[0].second);
  Say("w", {held}, {{job.id, 7, 8}});
  Say("other", {held}, {{job.id, 70, 80}});
  EXPECT_EQ(CountsOf(job.id), Counts(7, 8)) << "another worker's";
  Say("w", {{job.id, Token{held.token.value() - 1}}}, {{job.id, 71, 81}});
  EXPECT_EQ(CountsOf(job.id), Counts(7, 8)) << "an older attempt's";
  Say("w", {}, {{job.id, 72, 82}});
  EXPECT_EQ(CountsOf(job.id), Counts(7, 8)) << "an attempt that this beat does not hold";
}

TEST_F(DispatcherProgressTest, TheNextAttemptBeginsWithNone) {
  JobSpec single = Job();
  std::vector<JobSpec> jobs{Job()};
  Submit({single});
  const RunSpec run = SubmitRun(jobs, "queue", true);
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 2U);
  Say("w", {HeldOf(grants_[0].second), HeldOf(grants_[1].second)}, {{single.id, 7, 8}, {jobs[0].id, 9, 10}});
  End(0, AttemptEnd::kFailed, true, 10);
  End(1, AttemptEnd::kFailed, true, 10);
  Advance(Millis{1001});
  ASSERT_EQ(grants_.size(), 4U);
  EXPECT_EQ(CountsOf(single.id), Counts(0, 0));
  client_.clear();
  Handle(event::FromClient{.peer = "c", .message = wire::Watch{.request = 5, .org = kDefaultOrg, .run = run.id}});
  Settle();
  const auto* update = Last<wire::RunUpdate>();
  ASSERT_NE(update, nullptr);
  ASSERT_EQ(update->changed.size(), 1U);
  EXPECT_EQ(update->changed[0].state, JobState::kRunning);
  EXPECT_EQ(Counts(update->changed[0].rows, update->changed[0].bytes), Counts(0, 0));
}

}  // namespace
}  // namespace millrace
