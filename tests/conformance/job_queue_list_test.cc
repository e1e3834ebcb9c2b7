// What waits in kept lines is listed and stays where it is: on SQLite and on Redis (MILLRACE_TEST_REDIS).
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "tests/support/job_queue_fixture.h"

namespace millrace::testing {
namespace {

// Queue, priority, org, root.
std::string KeptLine(const std::string& org, const std::string& queue = "q") {
  return std::string(1, kKeptLineMark) + queue + "\x1f" + "2" + "\x1f" + org + "\x1f" + "r";
}

class JobQueueListTest : public JobQueueTest {
 protected:
  std::set<JobId> ListAll(const std::string& org, std::uint32_t max = 1000, std::string cursor = {}) {
    std::set<JobId> all;
    steps_ = 0;
    do {
      QueueReply reply = Must(ListKept{kShard, kEpoch, org, std::move(cursor), max});
      EXPECT_TRUE(reply.claimed.empty());
      for (const QueueEntry& entry : reply.listed) {
        EXPECT_EQ(OrgOfLine(entry.line), org);
        all.insert(entry.id);
      }
      cursor = std::move(reply.cursor);
      if (between_ && !cursor.empty()) between_();
    } while (!cursor.empty() && ++steps_ < 10'000);
    return all;
  }
  static std::set<JobId> Set(std::vector<JobId> ids) { return {ids.begin(), ids.end()}; }
  std::size_t steps_ = 0;
  std::function<void()> between_;
};

TEST_P(JobQueueListTest, WhatWaitsOfAnOrgIsListedAndStays) {
  const std::string ours = KeptLine("1"), other_queue = KeptLine("1", "z"), theirs = KeptLine("12");
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2, ours), Entry(3, ours), Entry(4, other_queue), Entry(5, theirs)}});
  Must(Enqueue{kShard, kEpoch, {Due(6, 50, ours), Due(7, 50), Due(8, 50, theirs)}});
  Must(
      Enqueue{kShard, kEpoch, {Expiring(Entry(9, ours), 500), Expiring(Due(10, 50, ours), 500), Expiring(Entry(11, ours), 5)}});
  Must(ExpireDue{kShard, kEpoch, FromUnixMicros(10), 10});
  for (const std::uint32_t max : {1000U, 2U, 1U}) {
    EXPECT_EQ(ListAll("1", max), Set(Ids({2, 3, 4, 6, 9, 10}))) << max;
    EXPECT_EQ(ListAll("12", max), Set(Ids({5, 8})));
    EXPECT_EQ(ListAll("2", max), Set({})) << "the priority";
  }
  ExpectDepth(6, 4, 1);
  EXPECT_EQ(ClaimIds(10, ours), Ids({2, 3, 9})) << "in their order";
  EXPECT_EQ(ListAll("1"), Set(Ids({4, 6, 10}))) << "what is in flight does not wait";
  EXPECT_EQ(CodeOf(ListKept{kShard, Epoch{6}, "1", {}, 10}), ErrorCode::kStale);
}

TEST_P(JobQueueListTest, ManyAreListedInPagesWhileTheLinesChange) {
  const std::string ours = KeptLine("1");
  std::vector<QueueEntry> entries;
  for (std::uint64_t n = 1; n <= 3000; ++n) entries.push_back(n % 3 == 0 ? Due(n, 5000, ours) : Entry(n, ours));
  Must(Enqueue{kShard, kEpoch, entries});
  std::uint64_t next = 100'000;
  between_ = [&] {
    Must(Enqueue{kShard, kEpoch, {Entry(next++, ours), Entry(next++, ours)}});
    Must(Claim{kShard, kEpoch, ours, 1});
  };
  const std::set<JobId> all = ListAll("1", 50);
  EXPECT_GE(steps_, 3U) << "what came together is one step in Redis";
  std::set<JobId> gone;
  for (const QueueEntry& entry : Must(Take{kShard, kEpoch}).claimed) gone.insert(entry.id);
  for (std::uint64_t n = 1; n <= 3000; ++n) {
    if (!gone.contains(MakeId(n))) {
      ASSERT_TRUE(all.contains(MakeId(n))) << n;
    }
  }
}

TEST_P(JobQueueListTest, ACursorThatNoReplyGaveIsHarmless) {
  const std::string ours = KeptLine("1");
  Must(Enqueue{kShard, kEpoch, {Entry(1, ours), Due(2, 50, ours)}});
  for (const std::string cursor :
       {"x", "s999999999999999999999 ", "s-1 ", "lfoo bar", "l1e300 x", "l999999999999999 nowhere"}) {
    EXPECT_TRUE(Do(ListKept{kShard, kEpoch, "1", cursor, 10})) << cursor;
    EXPECT_TRUE(Do(ListKept{kShard, kEpoch, "1", cursor + ours, 10})) << cursor;
  }
  EXPECT_TRUE(Do(ListKept{kShard, kEpoch, "1", "l999999999999999 " + ours, 10}));
  EXPECT_EQ(ListAll("1"), Set(Ids({1, 2})));
  ExpectDepth(1, 1, 0);
}

INSTANTIATE_TEST_SUITE_P(All, JobQueueListTest, ::testing::Values("sqlite", "redis"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::testing
