// What both ledgers know of jobs of `durability: redis`.
#include <algorithm>

#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;

class LedgerDurabilityTest : public testing::LedgerTest {
 protected:
  JobSpec Kept() {
    JobSpec job = Job();
    job.options.durability = Durability::kRedis;
    return job;
  }
};

TEST_P(LedgerDurabilityTest, AnOutcomeAloneIsAJob) {
  const ShardHold hold = Own();
  const JobSpec job = Kept();
  auto batch = BatchOf(hold);
  batch.outcomes = {Outcome(job)};
  Commit(batch);
  const auto detail = ledger_->GetJob(kDefaultOrg, job.id, In());
  ASSERT_TRUE(detail) << detail.error().message;
  EXPECT_EQ(detail->spec.id, job.id);
  EXPECT_EQ(detail->spec.options.durability, Durability::kRedis);
  EXPECT_EQ(detail->spec.kind, "") << "nothing stored it";
  ASSERT_TRUE(detail->outcome);
  EXPECT_EQ(detail->outcome->state, JobState::kSucceeded);
  EXPECT_EQ(ledger_->GetJob(OrgId{2}, job.id, In()).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 10}, In())->jobs.empty());
  ExpectSound();
}

TEST_P(LedgerDurabilityTest, ASpecComesWithTheFirstAttemptThatFailed) {
  const ShardHold hold = Own();
  const JobSpec retried = Kept(), dead = Kept();
  auto batch = BatchOf(hold);
  batch.jobs = {retried, dead};
  batch.attempts = {Attempt(retried, 1, {.deliveries = 1, .failures = 1, .crashes = 0})};
  batch.outcomes = {Outcome(dead, JobState::kDead)};
  EXPECT_TRUE(Commit(batch).duplicate_jobs.empty());
  const auto live = ledger_->LiveSingleJobs(hold.shard, kShards, std::nullopt, {.jobs = 10}, In());
  ASSERT_TRUE(live) << live.error().message;
  ASSERT_EQ(live->jobs.size(), 1u) << "the dead one is not live";
  EXPECT_EQ(live->jobs.at(0).spec, retried);
  EXPECT_EQ(live->jobs.at(0).counters.failures, 1u);
  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, dead.id, In())->spec, dead);
  ExpectSound();
}

TEST_P(LedgerDurabilityTest, KnownAreJobsAndOutcomes) {
  const ShardHold hold = Own();
  const JobSpec waiting = Job(), ended = Kept(), both = Job(), unknown = Kept();
  auto batch = BatchOf(hold);
  batch.jobs = {waiting, both};
  batch.outcomes = {Outcome(ended), Outcome(both)};
  Commit(batch);
  const std::vector<JobId> asked{unknown.id, ended.id, waiting.id, both.id};
  const auto known = ledger_->KnownJobs(asked, In());
  ASSERT_TRUE(known) << known.error().message;
  std::vector<JobId> expected{waiting.id, ended.id, both.id};
  std::ranges::sort(expected);
  EXPECT_EQ(*known, expected);
  EXPECT_TRUE(ledger_->KnownJobs({}, In())->empty());
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerDurabilityTest, ::testing::Values(LedgerKind::kSqlite, LedgerKind::kPostgres),
                         [](const auto& i) { return i.param == LedgerKind::kPostgres ? "postgres" : "sqlite"; });

}  // namespace
}  // namespace millrace
