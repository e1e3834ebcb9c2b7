// Entries that go straight into flight (Enqueue::passed): as if they had been put and claimed, on SQLite and on Redis
// (MILLRACE_TEST_REDIS). Out of memory and without its scripts: tests/live/redis_restart_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <ranges>

#include "common/base/random.h"
#include "tests/support/job_queue_fixture.h"

namespace millrace::testing {
namespace {

class JobQueuePassTest : public JobQueueTest {
 protected:
  static Enqueue Pass(std::vector<QueueEntry> passed, std::vector<QueueEntry> entries = {}, Epoch epoch = kEpoch) {
    return {kShard, epoch, std::move(entries), std::move(passed)};
  }
  static std::vector<QueueEntry> Many(std::uint64_t first, std::uint64_t last, const std::string& line) {
    std::vector<QueueEntry> many;
    for (std::uint64_t n = first; n <= last; ++n) many.push_back(Entry(n, line, fmt::format("body {}", n)));
    return many;
  }
  static std::vector<JobId> IdsOfAll(const std::vector<QueueEntry>& entries) {
    std::vector<JobId> ids;
    for (const QueueEntry& entry : entries) ids.push_back(entry.id);
    return ids;
  }
  // What a Take shows of kept lines in flight, page by page; each page is finished.
  std::map<JobId, QueueEntry> TakeAll(Epoch epoch) {
    std::map<JobId, QueueEntry> seen;
    for (QueueReply page = Must(Take{kShard, epoch}); !page.claimed.empty(); page = Must(Take{kShard, epoch})) {
      for (const QueueEntry& entry : page.claimed) EXPECT_TRUE(seen.emplace(entry.id, entry).second);
      Must(Finish{kShard, epoch, IdsOf(page)});
    }
    return seen;
  }
};

TEST_P(JobQueuePassTest, IsInFlightAndNowhereElse) {
  EXPECT_TRUE(Must(Pass({Entry(1), Entry(2, kKept), Entry(3, "b")})).claimed.empty()) << "nobody reads them back";
  ExpectDepth(0, 0, 3);
  for (const std::string& line : {std::string("a"), std::string("b"), kKept}) EXPECT_EQ(ClaimIds(5, line), Ids({}));
  Must(Finish{kShard, kEpoch, Ids({1, 2})});
  ExpectDepth(0, 0, 1);
  Must(Requeue{kShard, kEpoch, {Entry(3, "b")}});
  ExpectDepth(1, 0, 0);
  EXPECT_EQ(ClaimIds(5, "b"), Ids({3}));
}

TEST_P(JobQueuePassTest, OthersOfTheSameBatchWait) {
  Must(Pass({Entry(1), Entry(2)}, {Entry(3), Entry(4, kKept), Due(5, 50)}));
  ExpectDepth(2, 1, 2);
  EXPECT_EQ(ClaimIds(5), Ids({3}));
  EXPECT_EQ(ClaimIds(5, kKept), Ids({4}));
  EXPECT_EQ(Must(Promote{kShard, kEpoch, FromUnixMicros(50), 5}).promoted, (std::vector<LineCount>{{"a", 1}}));
  Must(Pass({}));
  ExpectDepth(1, 0, 4);
}

TEST_P(JobQueuePassTest, WhatWaitsInTheLineStaysWhereItIs) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2)}});
  Must(Pass({Entry(3)}, {Entry(4)}));
  ExpectDepth(3, 0, 1);
  EXPECT_EQ(ClaimIds(5), Ids({1, 2, 4}));
}

TEST_P(JobQueuePassTest, IsFencedAndAllOrNothing) {
  EXPECT_EQ(CodeOf(Pass({Entry(1), Entry(2, kKept)}, {Entry(3)}, Epoch{6})), ErrorCode::kStale);
  EXPECT_EQ(CodeOf(Pass({Entry(1)}, {}, Epoch{8})), ErrorCode::kStale);
  ExpectDepth(0, 0, 0);
  WipeBehindItsBack();
  EXPECT_EQ(CodeOf(Pass({Entry(1), Entry(2, kKept)}, {Entry(3)})), ErrorCode::kWiped);
  EXPECT_EQ(CodeOf(Pass({Entry(1)}, {Due(3, 50)})), ErrorCode::kWiped);
  EXPECT_EQ(CodeOf(Finish{kShard, kEpoch, Ids({1})}), ErrorCode::kWiped);
  Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(CodeOf(Finish{kShard, kEpoch, Ids({1})}), ErrorCode::kStale);
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueuePassTest, ATakeTreatsThemAsClaimed) {
  const Epoch since = Must(Take{kShard, kEpoch}).unbroken_since;
  Must(Pass({Entry(1), Entry(2), Entry(3, kKept, "three")}));
  for (const QueueEntry& entry : Many(10, 60, kKept)) Must(Pass({entry}));
  Must(Pass(Many(100, 400, kKept)));
  Must(Finish{kShard, kEpoch, Ids({1, 11, 101, 102, 350})});
  Must(Requeue{kShard, kEpoch, {Entry(12, kKept), Entry(103, kKept)}});
  QueueReply taken = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(taken.in_flight, Ids({2})) << "adoptable";
  EXPECT_EQ(taken.unbroken_since, since);
  EXPECT_EQ(taken.kept, (std::vector<LineCount>{{kKept, 2}}));
  std::map<JobId, QueueEntry> expected{{MakeId(3), Entry(3, kKept, "three")}};
  for (const auto& [first, last] : {std::pair{10, 60}, std::pair{100, 400}})
    for (const QueueEntry& entry : Many(static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(last), kKept))
      expected.emplace(entry.id, entry);
  for (const std::uint64_t gone : {11u, 101u, 102u, 350u, 12u, 103u}) expected.erase(MakeId(gone));
  EXPECT_EQ(TakeAll(Epoch{8}), expected) << "with all that is needed to start them again";
  ExpectDepth(2, 0, 1);
}

// An owner puts jobs into flight and back into their lines before the first is answered: what it hands back must not be in
// both places.
TEST_P(JobQueuePassTest, WhatIsPutBackInTheSameCallIsOnlyInItsLine) {
  for (const std::uint64_t size : {1u, 7u, 8u, 100u, 300u}) {
    SCOPED_TRACE(size);
    const std::vector<QueueEntry> all = Many(1, size, kKept);
    const std::vector<QueueEntry> rest(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(size / 2));
    const std::vector<QueueOp> ops{Pass(all),
                                   Requeue{kShard, kEpoch, {all.begin() + static_cast<std::ptrdiff_t>(size / 2), all.end()}}};
    for (const auto& result : queue_->Execute(ops)) ASSERT_TRUE(result) << result.error().message;
    ExpectDepth(size - size / 2, 0, size / 2);
    std::vector<JobId> in_line;
    for (const QueueEntry& entry : Must(Claim{kShard, kEpoch, kKept, static_cast<std::uint32_t>(size)}).claimed)
      in_line.push_back(entry.id);
    EXPECT_EQ(in_line, IdsOfAll({all.begin() + static_cast<std::ptrdiff_t>(size / 2), all.end()}));
    Must(Finish{kShard, kEpoch, IdsOfAll(all)});
    ExpectDepth(0, 0, 0);
    EXPECT_TRUE(Must(Take{kShard, kEpoch}).claimed.empty());
  }
}

// A put that is refused leaves nothing behind that a later one of the same ids could meet.
TEST_P(JobQueuePassTest, WhatWasRefusedCanBePutAgain) {
  const std::vector<QueueEntry> all = Many(1, 40, kKept);
  EXPECT_EQ(CodeOf(Pass(all, {}, Epoch{6})), ErrorCode::kStale);
  Must(Take{kShard, kEpoch});
  Must(Pass(all));
  Must(Finish{kShard, kEpoch, Ids({1})});
  ExpectDepth(0, 0, 39);
  EXPECT_EQ(TakeAll(Epoch{8}).size(), 39u);
}

// Batches with blocks, sizes around their bounds, entries too large for a block.
TEST_P(JobQueuePassTest, BatchesOfEverySizeLeaveTheFlightWhole) {
  const std::string large(9u << 10, 'x');
  std::uint64_t next = 1;
  for (const std::size_t size : {1u, 7u, 8u, 9u, 127u, 128u, 129u, 500u, 6000u}) {
    for (const std::string& line : {std::string("a"), kKept}) {
      SCOPED_TRACE(fmt::format("{} entries, kept: {}", size, IsKeptLine(line)));
      std::vector<QueueEntry> batch = Many(next, next + size - 1, line);
      next += size;
      if (size == 129) batch[64].body = large;
      std::vector<JobId> ids = IdsOfAll(batch);
      Must(Pass(batch));
      ExpectDepth(0, 0, size);
      std::ranges::reverse(ids);
      const auto middle = ids.begin() + static_cast<std::ptrdiff_t>(size / 3);
      Must(Finish{kShard, kEpoch, {ids.begin(), middle}});
      ExpectDepth(0, 0, size - size / 3);
      Must(Finish{kShard, kEpoch, {middle, ids.end()}});
      ExpectDepth(0, 0, 0);
    }
  }
}

TEST_P(JobQueuePassTest, SeveralLinesInOneBatchKeepTheirBodies) {
  std::vector<QueueEntry> batch = Many(1, 20, kKept);
  std::ranges::copy(Many(21, 25, kKept + "2"), std::back_inserter(batch));
  std::ranges::copy(Many(26, 60, "a"), std::back_inserter(batch));
  std::ranges::copy(Many(61, 90, kKept), std::back_inserter(batch));
  Must(Pass(batch));
  ExpectDepth(0, 0, 90);
  std::map<JobId, QueueEntry> expected;
  for (const QueueEntry& entry : batch)
    if (IsKeptLine(entry.line)) expected.emplace(entry.id, entry);
  EXPECT_EQ(TakeAll(Epoch{8}), expected);
}

// As a crowd comes: each entry of another line, which differ in org, priority and key, a few of them large or of lines that
// are not kept. What is in flight together has to be found, put back and ended one by one.
TEST_P(JobQueuePassTest, ACrowdOfLinesIsOneBatchOfJobs) {
  const auto line_of = [](std::uint64_t n) {
    return fmt::format("{}default\x1f{}\x1f{}\x1f\x1fnoop\x1fkey-{}", n % 7 == 0 ? "" : "\x1e", n % 4, n % 10, n);
  };
  std::uint64_t next = 1;
  for (const std::uint64_t size : {7u, 16u, 31u, 129u, 1000u}) {
    SCOPED_TRACE(size);
    std::vector<QueueEntry> batch;
    for (std::uint64_t n = next; n < next + size; ++n)
      batch.push_back(Entry(n, line_of(n), n % 50 == 1 ? std::string(9u << 10, 'x') : fmt::format("body {}", n)));
    next += size;
    // A third goes back to the lines and a third has ended before the put is answered.
    std::vector<QueueEntry> back;
    std::vector<JobId> over;
    std::map<JobId, QueueEntry> in_flight;
    std::vector<JobId> delivered;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (i % 3 == 0)
        back.push_back(batch[i]);
      else if (i % 3 == 1)
        over.push_back(batch[i].id);
      else if (IsKeptLine(batch[i].line))
        in_flight.emplace(batch[i].id, batch[i]);
      else
        delivered.push_back(batch[i].id);
    }
    const std::vector<QueueOp> ops{Pass(batch), Requeue{kShard, kEpoch, back}, Finish{kShard, kEpoch, over}};
    for (const auto& result : queue_->Execute(ops)) ASSERT_TRUE(result) << result.error().message;
    ExpectDepth(back.size(), 0, in_flight.size() + delivered.size());
    for (const QueueEntry& entry : back) {
      const QueueReply claimed = Must(Claim{kShard, kEpoch, entry.line, 5});
      ASSERT_EQ(claimed.claimed.size(), 1u);
      EXPECT_EQ(claimed.claimed[0], entry);
    }
    Must(Finish{kShard, kEpoch, IdsOfAll(back)});
    // The next owner's takeover finds each with its own line.
    Must(Finish{kShard, kEpoch, delivered});
    EXPECT_EQ(TakeAll(kEpoch), in_flight);
    ExpectDepth(0, 0, 0);
  }
}

// The same id in two blocks: the one entry that is left stands for both, and its end is the end of both.
TEST_P(JobQueuePassTest, AnIdThatIsPutTwiceEndsOnce) {
  std::vector<QueueEntry> batch;
  for (std::uint64_t n = 1; n <= 40; ++n) batch.push_back(Entry(n, fmt::format("{}{}", kKept, n % 3), "body"));
  Must(Pass(batch));
  Must(Pass({batch.begin() + 10, batch.begin() + 30}));
  Must(Finish{kShard, kEpoch, IdsOfAll({batch.begin(), batch.begin() + 20})});
  std::map<JobId, QueueEntry> left;
  for (std::size_t i = 20; i < batch.size(); ++i) left.emplace(batch[i].id, batch[i]);
  EXPECT_EQ(TakeAll(Epoch{8}), left);
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueuePassTest, WhatCanExpireWaitsNoMore) {
  Must(Pass({Expiring(Entry(1), 100), Expiring(Entry(2, kKept), 100)}, {Expiring(Entry(3), 100)}));
  ExpectDepth(1, 0, 2);
  const QueueReply expired = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(200), 10});
  EXPECT_EQ(IdsOf(expired), Ids({3}));
  EXPECT_FALSE(expired.next_due);
  Must(Finish{kShard, kEpoch, Ids({1, 2, 3})});
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueuePassTest, AnIdThatIsThereTwiceLeavesTheFlightOnce) {
  const std::vector<QueueEntry> batch = Many(1, 30, kKept);
  std::vector<QueueEntry> twice = batch;
  std::ranges::copy(batch, std::back_inserter(twice));
  Must(Pass(twice));
  Must(Pass({batch[3]}));
  Must(Enqueue{kShard, kEpoch, {batch[5]}});
  EXPECT_EQ(ClaimIds(1, kKept), Ids({6}));
  Must(Finish{kShard, kEpoch, IdsOfAll(batch)});
  EXPECT_TRUE(Must(Take{kShard, Epoch{8}}).claimed.empty());
  ExpectDepth(0, 0, 0);
}

// The same history by put and claim, and by passing: both queues must end the same.
TEST_P(JobQueuePassTest, AsIfPutAndClaimed) {
  const ShardId other{4};
  Must(Take{other, kEpoch});
  SeededRandom random(77);
  std::uint64_t next = 0;
  std::vector<QueueEntry> flying;
  for (int step = 0; step < 300; ++step) {
    SCOPED_TRACE(fmt::format("seed 77 step {}", step));
    const std::string line = random.Below(2) == 0 ? kKept : "a";
    if (random.Below(2) == 0) {
      const std::uint64_t n = random.Below(40);
      const std::vector<QueueEntry> batch = n == 0 ? std::vector<QueueEntry>{} : Many(next + 1, next + n, line);
      next += n;
      Must(Pass(batch));
      Must(Enqueue{other, kEpoch, batch});
      ASSERT_EQ(Must(Claim{other, kEpoch, line, 100}).claimed, batch);
      std::ranges::copy(batch, std::back_inserter(flying));
    } else {
      std::vector<JobId> ids;
      for (std::uint64_t n = random.Below(60); n > 0 && !flying.empty(); --n) {
        const auto at = flying.begin() + static_cast<std::ptrdiff_t>(random.Below(flying.size()));
        ids.push_back(at->id);
        flying.erase(at);
      }
      for (const ShardId shard : {kShard, other}) Must(Finish{shard, kEpoch, ids});
    }
    for (const ShardId shard : {kShard, other}) ExpectDepth(0, 0, flying.size(), shard);
  }
  QueueReply one = Must(Take{kShard, Epoch{8}}), two = Must(Take{other, Epoch{8}});
  for (QueueReply* reply : {&one, &two}) {
    std::ranges::sort(reply->in_flight);
    std::ranges::sort(reply->claimed, {}, &QueueEntry::id);
  }
  EXPECT_EQ(one.in_flight, two.in_flight);
  EXPECT_EQ(one.claimed, two.claimed);
  EXPECT_GT(one.claimed.size(), 0u);
}

INSTANTIATE_TEST_SUITE_P(All, JobQueuePassTest, ::testing::Values("sqlite", "redis"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::testing
