// Every JobQueue behaves the same: each case runs on SQLite and on Redis (MILLRACE_TEST_REDIS).
#include "common/queue/job_queue.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <ranges>
#include <set>

#include "common/base/random.h"
#include "common/drivers/redis.h"
#include "common/drivers/sqlite.h"
#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"
#include "tests/support/job_queue_fixture.h"

namespace millrace::testing {
namespace {

TEST_P(JobQueueTest, SaysHowFullTheStoreIs) {
  const auto memory = queue_->Memory();
  ASSERT_TRUE(memory) << memory.error().message;
  EXPECT_EQ(memory->used > 0, GetParam() == "redis");
  EXPECT_TRUE(GetParam() == "redis" || *memory == QueueMemory{}) << "a file has no limit";
}

TEST_P(JobQueueTest, FifoPerLineAndRequeueGoesToTheFront) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2, "b"), Entry(3), Entry(4)}});
  EXPECT_EQ(ClaimIds(2), Ids({1, 3}));
  ExpectDepth(2, 0, 2);
  Must(Requeue{kShard, kEpoch, {Entry(1), Entry(3)}});
  EXPECT_EQ(ClaimIds(10), Ids({1, 3, 4}));
  EXPECT_EQ(ClaimIds(10), Ids({}));
  EXPECT_EQ(ClaimIds(10, "b"), Ids({2}));
  EXPECT_EQ(ClaimIds(10, "no such line"), Ids({}));
  ExpectDepth(0, 0, 4);
}

TEST_P(JobQueueTest, FinishRemovesAndIgnoresUnknownIds) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2)}});
  ClaimIds(2);
  Must(Finish{kShard, kEpoch, {MakeId(1), MakeId(99)}});
  Must(Finish{kShard, kEpoch, {}});
  ExpectDepth(0, 0, 1);
}

TEST_P(JobQueueTest, EpochsFence) {
  Must(Enqueue{kShard, kEpoch, {Entry(1)}});
  EXPECT_EQ(CodeOf(Enqueue{kShard, Epoch{6}, {Entry(2)}}), ErrorCode::kStale);
  EXPECT_EQ(CodeOf(Claim{kShard, Epoch{8}, "a", 1}), ErrorCode::kStale);
  EXPECT_EQ(CodeOf(Take{kShard, Epoch{6}}), ErrorCode::kStale);
  ExpectDepth(1, 0, 0);
  auto other = Open();
  const QueueOp take[] = {Take{kShard, Epoch{10}}};
  ASSERT_TRUE(other->Execute(take).front());
  EXPECT_EQ(CodeOf(Take{kShard, Epoch{9}}), ErrorCode::kStale) << "compared as numbers, not as text";
  EXPECT_EQ(CodeOf(Finish{kShard, kEpoch, {MakeId(1)}}), ErrorCode::kStale);
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueTest, TakingAgainEmpties) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2, "b"), Due(3, 5)}});
  ClaimIds(1);
  Must(Take{kShard, kEpoch});
  ExpectDepth(0, 0, 1);
  Must(Enqueue{kShard, kEpoch, {Entry(9)}});
  EXPECT_EQ(ClaimIds(5), Ids({9}));
}

// `durability: redis`: what waits in a kept line is nowhere else.

TEST_P(JobQueueTest, ATakeLeavesKeptLinesAndShowsWhatIsInFlight) {
  Must(Enqueue{
      kShard, kEpoch, {Entry(1), Entry(2, kKept, "two"), Entry(3, kKept), Entry(4, kKept), Due(5, 50, kKept), Due(6, 40)}});
  EXPECT_EQ(ClaimIds(5), Ids({1}));
  EXPECT_EQ(ClaimIds(1, kKept), Ids({2}));
  ExpectDepth(2, 2, 2);
  QueueReply stayed = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(stayed.kept, (std::vector<LineCount>{{kKept, 2}}));
  EXPECT_EQ(stayed.claimed, std::vector{Entry(2, kKept, "two")});
  EXPECT_EQ(stayed.next_due, FromUnixMicros(50));
  EXPECT_FALSE(stayed.maybe_old) << "nothing was restarted";
  ExpectDepth(2, 1, 2);
  EXPECT_EQ(stayed.in_flight, Ids({1})) << "of an ordinary line: its id alone stays";
  EXPECT_EQ(CodeOf(Requeue{kShard, kEpoch, stayed.claimed}), ErrorCode::kStale);
  Must(Requeue{kShard, Epoch{8}, stayed.claimed});
  stayed = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(stayed.kept, (std::vector<LineCount>{{kKept, 3}}));
  EXPECT_TRUE(stayed.claimed.empty());
  EXPECT_EQ(Must(Promote{kShard, Epoch{8}, FromUnixMicros(60), 10}).promoted, (std::vector<LineCount>{{kKept, 1}}));
  std::vector<JobId> order;
  for (const QueueEntry& e : Must(Claim{kShard, Epoch{8}, kKept, 10}).claimed) order.push_back(e.id);
  EXPECT_EQ(order, Ids({2, 3, 4, 5})) << "what was in flight is first again";
  Must(Finish{kShard, Epoch{8}, Ids({2, 3, 4, 5})});
  stayed = Must(Take{kShard, Epoch{9}});
  EXPECT_TRUE(stayed.kept.empty() && stayed.claimed.empty() && !stayed.next_due);
}

TEST_P(JobQueueTest, TakeTellsWhatWasDeliveredSinceTheStoreIsUnbroken) {
  const Epoch since = Must(Take{kShard, Epoch{8}}).unbroken_since;
  EXPECT_LE(since, Epoch{8});
  Must(Enqueue{kShard, Epoch{8}, {Entry(1), Entry(2), Entry(3), Entry(4), Entry(5)}});
  for (const QueueEntry& e : Must(Claim{kShard, Epoch{8}, "a", 4}).claimed) EXPECT_TRUE(e.run_at == std::nullopt);
  Must(Finish{kShard, Epoch{8}, Ids({1})});
  Must(Requeue{kShard, Epoch{8}, {Entry(2)}});
  for (const Epoch epoch : {Epoch{9}, Epoch{10}}) {
    QueueReply taken = Must(Take{kShard, epoch});
    std::ranges::sort(taken.in_flight);
    EXPECT_EQ(taken.in_flight, Ids({3, 4})) << "until they are out of flight, whoever takes the shard";
    EXPECT_EQ(taken.unbroken_since, since);
  }
  ExpectDepth(0, 0, 2);
  Must(Requeue{kShard, Epoch{10}, {Entry(3)}});
  Must(Finish{kShard, Epoch{10}, Ids({4})});
  EXPECT_TRUE(Must(Take{kShard, Epoch{11}}).in_flight.empty());
  Must(Enqueue{kShard, Epoch{11}, {Entry(6)}});
  Must(Claim{kShard, Epoch{11}, "a", 1});
  WipeBehindItsBack();
  const QueueReply anew = Must(Take{kShard, Epoch{12}});
  EXPECT_TRUE(anew.in_flight.empty());
  EXPECT_EQ(anew.unbroken_since, Epoch{12}) << "what was delivered before is not known";
}

// Of a store that a process opens anew: what it remembers may be told, but nobody may rely on it.
TEST_P(JobQueueTest, AFileThatIsOpenedAgainTellsWhatWasDelivered) {
  if (path_.empty()) GTEST_SKIP() << "a server outlives those who use it";
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2), Entry(3)}});
  Must(Claim{kShard, kEpoch, "a", 2});
  Must(Finish{kShard, kEpoch, Ids({1})});
  queue_ = Open();
  const Epoch next{kEpoch.value() + 1};
  const QueueReply taken = Must(Take{kShard, next});
  EXPECT_EQ(taken.in_flight, Ids({2}));
  EXPECT_EQ(taken.unbroken_since, next);
  EXPECT_TRUE(taken.maybe_old);
  Must(Requeue{kShard, next, {Entry(2)}});
  ExpectDepth(1, 0, 0);
}

TEST_P(JobQueueTest, ManyKeptEntriesInFlightComeInPages) {
  constexpr std::size_t page_max = 4000;
  std::vector<QueueEntry> many;
  for (std::uint64_t i = 1; i <= 9000; ++i) many.push_back(Entry(i, kKept, fmt::format("body {}", i)));
  Must(Enqueue{kShard, kEpoch, many});
  for (int i = 0; i < 18; ++i) ASSERT_EQ(ClaimIds(500, kKept).size(), 500u);
  std::map<JobId, QueueEntry> seen;
  std::size_t pages = 0;
  for (QueueReply page = Must(Take{kShard, Epoch{8}}); !page.claimed.empty(); page = Must(Take{kShard, Epoch{8}}), ++pages) {
    EXPECT_LE(page.claimed.size(), page_max);
    std::vector<JobId> ended;
    std::vector<QueueEntry> back;
    for (const QueueEntry& e : page.claimed) {
      EXPECT_TRUE(seen.emplace(e.id, e).second) << "shown again after it was settled";
      e.id.uuid.bytes[15] % 2 == 0 ? ended.push_back(e.id) : back.push_back(e);
    }
    Must(Finish{kShard, Epoch{8}, ended});
    Must(Requeue{kShard, Epoch{8}, back});
  }
  EXPECT_GE(pages, (many.size() + page_max - 1) / page_max);
  EXPECT_EQ(seen.size(), many.size());
  for (const QueueEntry& e : many) EXPECT_EQ(seen[e.id], e);
  ExpectDepth(4500, 0, 0);
}

// Whatever came with a page: the last answer says how many wait in each line.
TEST_P(JobQueueTest, TheLastPagesHaveTheCountsOfEveryLine) {
  std::vector<QueueEntry> many;
  std::vector<LineCount> expected;
  for (std::uint64_t i = 1; i <= 1500; ++i) {
    many.push_back(Entry(2 * i, fmt::format("{}{:04}", kKept, i)));
    many.push_back(Entry(2 * i + 1, many.back().line));
    expected.push_back({many.back().line, 2});
  }
  Must(Enqueue{kShard, kEpoch, many});
  Must(Enqueue{kShard, kEpoch, {Entry(1, kKept), Entry(9000, "ordinary")}});
  EXPECT_EQ(ClaimIds(1, kKept), Ids({1}));
  QueueReply taken = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(taken.claimed.size(), 1u);
  Must(Finish{kShard, Epoch{8}, Ids({1})});
  taken = Must(Take{kShard, Epoch{8}});
  EXPECT_TRUE(taken.claimed.empty());
  std::vector<LineCount> counted = taken.kept;
  while (!taken.cursor.empty()) {
    taken = Must(Take{kShard, Epoch{8}, taken.cursor});
    counted.insert(counted.end(), taken.kept.begin(), taken.kept.end());
  }
  std::ranges::sort(counted, {}, &LineCount::line);
  EXPECT_EQ(counted, expected);
  ExpectDepth(3000, 0, 0);
}

TEST_P(JobQueueTest, ABatchOfBothClassesIsFinished) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2, kKept)}});
  ClaimIds(1), ClaimIds(1, kKept);
  Must(Finish{kShard, kEpoch, Ids({1, 2, 3})});
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueTest, WipedBehindItsBack) {
  Must(Enqueue{kShard, kEpoch, {Entry(1)}});
  WipeBehindItsBack();
  EXPECT_EQ(CodeOf(Claim{kShard, kEpoch, "a", 1}), ErrorCode::kWiped);
  EXPECT_EQ(CodeOf(Enqueue{kShard, kEpoch, {Entry(2)}}), ErrorCode::kWiped);
  Must(Take{kShard, Epoch{8}});
}

TEST_P(JobQueueTest, OneFailureInABatchLeavesTheOthers) {
  const QueueOp ops[] = {Enqueue{kShard, kEpoch, {Entry(1)}}, Enqueue{kShard, Epoch{1}, {Entry(2)}},
                         Claim{kShard, kEpoch, "a", 5}};
  const auto results = queue_->Execute(ops);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_TRUE(results[0]);
  ASSERT_FALSE(results[1]);
  EXPECT_EQ(results[1].error().code, ErrorCode::kStale);
  ASSERT_TRUE(results[2]);
  EXPECT_EQ(results[2]->claimed, std::vector{Entry(1)});
}

TEST_P(JobQueueTest, PromoteInOrderBoundedWithNextDue) {
  Must(Enqueue{kShard, kEpoch, {Due(1, 30), Due(2, 10), Due(3, 20, "b"), Due(4, 1'700'000'000'000'001)}});
  EXPECT_EQ(Must(Promote{kShard, kEpoch, FromUnixMicros(9), 10}).next_due, FromUnixMicros(10));
  auto reply = Must(Promote{kShard, kEpoch, FromUnixMicros(30), 2});
  EXPECT_EQ(reply.promoted, (std::vector<LineCount>{{"a", 1}, {"b", 1}}));
  EXPECT_EQ(reply.next_due, FromUnixMicros(30));
  reply = Must(Promote{kShard, kEpoch, FromUnixMicros(30), 10});
  EXPECT_EQ(reply.next_due, FromUnixMicros(1'700'000'000'000'001));
  EXPECT_EQ(ClaimIds(10), Ids({2, 1}));
  Must(Requeue{kShard, kEpoch, {Due(2, 50)}});
  ExpectDepth(1, 2, 1);
  EXPECT_EQ(Must(Promote{kShard, kEpoch, FromUnixMicros(1'700'000'000'000'001), 10}).next_due, std::nullopt);
  EXPECT_EQ(ClaimIds(10), Ids({2, 4}));
}

TEST_P(JobQueueTest, BigBatchesBodiesAndOddLines) {
  const std::string odd("\0\xff\r\n{x}:", 9);
  std::vector<QueueEntry> many;
  for (std::uint64_t i = 0; i < 10'000; ++i) many.push_back(Entry(i, odd, std::string("\0b", 2)));
  Must(Enqueue{kShard, kEpoch, many});
  EXPECT_EQ(Must(Claim{kShard, kEpoch, odd, 10'000}).claimed, many);
  Must(Requeue{kShard, kEpoch, many});
  EXPECT_EQ(Must(Claim{kShard, kEpoch, odd, 10'000}).claimed, many);
  std::vector<JobId> ids;
  for (const auto& e : many) ids.push_back(e.id);
  Must(Finish{kShard, kEpoch, ids});
  ExpectDepth(0, 0, 0);
  std::vector<QueueEntry> big;
  for (std::uint64_t i = 0; i < 20; ++i) big.push_back(Entry(i, "big", std::string(1u << 20, static_cast<char>(i))));
  Must(Enqueue{kShard, kEpoch, big});
  std::vector<QueueEntry> got;
  while (got.size() < big.size()) {
    const auto part = Must(Claim{kShard, kEpoch, "big", 20}).claimed;
    ASSERT_FALSE(part.empty());
    got.insert(got.end(), part.begin(), part.end());
  }
  EXPECT_TRUE(got == big);
}

TEST_P(JobQueueTest, ManyLinesAndIndependentShards) {
  constexpr ShardId kOther{4};
  Must(Take{kOther, Epoch{2}});
  std::vector<QueueEntry> many;
  for (std::uint64_t i = 0; i < 1000; ++i) many.push_back(Entry(i, fmt::format("line{}", i)));
  Must(Enqueue{kShard, kEpoch, many});
  Must(Enqueue{kOther, Epoch{2}, {Entry(1)}});
  ExpectDepth(1000, 0, 0);
  EXPECT_EQ(ClaimIds(5, "line77"), Ids({77}));
  Must(Take{kShard, Epoch{8}});
  ExpectDepth(0, 0, 1);
  ExpectDepth(1, 0, 0, kOther);
}

TEST_P(JobQueueTest, RandomisedAgainstAModel) {
  SeededRandom random(20261121);
  std::map<std::string, std::deque<JobId>> ready;
  std::map<std::int64_t, QueueEntry> due;  // run_at is unique here
  std::map<JobId, std::string> flight;
  std::uint64_t next = 0;
  std::int64_t now = 0;
  for (int step = 0; step < 3000; ++step) {
    const std::string line(1, static_cast<char>('a' + random.Below(4)));
    SCOPED_TRACE(fmt::format("seed 20261121 step {}", step));
    switch (random.Below(5)) {
      case 0: {
        Enqueue op{kShard, kEpoch, {}};
        for (std::uint64_t n = random.Below(6); n > 0; --n) {
          ++next;
          if (random.Below(3) == 0) {
            op.entries.push_back(Due(next, now + static_cast<std::int64_t>(next), line));
            if (!due.emplace(now + static_cast<std::int64_t>(next), op.entries.back()).second) op.entries.pop_back();
          } else {
            op.entries.push_back(Entry(next, line));
            ready[line].push_back(MakeId(next));
          }
        }
        Must(op);
        break;
      }
      case 1: {
        std::vector<JobId> expected;
        const auto max = static_cast<std::uint32_t>(random.Below(5));
        for (auto& q = ready[line]; expected.size() < max && !q.empty(); q.pop_front()) expected.push_back(q.front());
        for (const JobId& id : expected) flight[id] = line;
        ASSERT_EQ(ClaimIds(max, line), expected);
        break;
      }
      case 2:
      case 3: {
        if (flight.empty()) break;
        const auto [id, of] = *std::next(flight.begin(), static_cast<std::ptrdiff_t>(random.Below(flight.size())));
        flight.erase(id);
        if (random.Below(2) == 0) {
          Must(Finish{kShard, kEpoch, {id}});
        } else {
          Must(Requeue{kShard, kEpoch, {{.id = id, .line = of, .body = "body", .run_at = {}, .expires_at = {}}}});
          ready[of].push_front(id);
        }
        break;
      }
      default: {
        now += static_cast<std::int64_t>(random.Below(200));
        std::map<std::string, std::uint32_t> counts, got;
        for (int n = 0; n < 7 && !due.empty() && due.begin()->first <= now; ++n) {
          ready[due.begin()->second.line].push_back(due.begin()->second.id);
          ++counts[due.begin()->second.line];
          due.erase(due.begin());
        }
        const auto reply = Must(Promote{kShard, kEpoch, FromUnixMicros(now), 7});
        for (const LineCount& c : reply.promoted) got[c.line] += c.count;
        ASSERT_EQ(got, counts);
        ASSERT_EQ(reply.next_due.has_value(), !due.empty());
        if (!due.empty()) {
          ASSERT_EQ(ToUnixMicros(*reply.next_due), due.begin()->first);
        }
      }
    }
    if (step % 50 == 0) {
      std::uint64_t waiting = 0;
      for (const auto& [name, q] : ready) waiting += q.size();
      ExpectDepth(waiting, due.size(), flight.size());
    }
  }
}

TEST_P(JobQueueTest, WhatExpiresLeavesItsLineOrItsSchedule) {
  Must(Enqueue{kShard,
               kEpoch,
               {Entry(1), Expiring(Entry(2), 100), Expiring(Entry(3), 300), Expiring(Entry(4, "b", std::string("x\0y", 3)), 50),
                Expiring(Due(5, 900), 100), Expiring(Due(6, 200), 400)}});
  ExpectDepth(4, 2, 0);
  auto reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(49), 10});
  EXPECT_TRUE(reply.claimed.empty());
  EXPECT_TRUE(reply.lost.empty());
  EXPECT_EQ(reply.next_due, FromUnixMicros(50));
  reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(100), 10});
  EXPECT_EQ(IdsOf(reply), Ids({2, 4, 5}));
  for (const QueueEntry& entry : reply.claimed)
    if (entry.id == MakeId(4)) {
      EXPECT_EQ(entry.body, std::string("x\0y", 3));
      EXPECT_EQ(entry.line, "b");
    }
  std::ranges::sort(reply.lost, {}, &LineCount::line);
  EXPECT_EQ(reply.lost, (std::vector<LineCount>{{.line = "a", .count = 1}, {.line = "b", .count = 1}}));
  EXPECT_EQ(reply.next_due, FromUnixMicros(300));
  ExpectDepth(2, 1, 3);
  EXPECT_EQ(ClaimIds(10, "b"), Ids({}));
  EXPECT_EQ(ClaimIds(10), Ids({1, 3})) << "the order of the others is kept";
  const auto promoted = Must(Promote{kShard, kEpoch, FromUnixMicros(1000), 10});
  EXPECT_EQ(promoted.promoted, (std::vector<LineCount>{{.line = "a", .count = 1}})) << "5 is gone, 6 is ready now";
  ExpectDepth(1, 0, 5);
  reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(1000), 10});
  EXPECT_EQ(IdsOf(reply), Ids({6})) << "it expires wherever it waits; 3 is in flight and stays";
  EXPECT_EQ(reply.lost, (std::vector<LineCount>{{.line = "a", .count = 1}}));
  EXPECT_EQ(reply.next_due, std::nullopt);
  Must(Finish{kShard, kEpoch, Ids({1, 2, 3, 4, 5, 6})});
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueTest, ExpiringIsBoundedFencedAndEmptiedByATake) {
  std::vector<QueueEntry> many;
  for (std::uint64_t i = 1; i <= 600; ++i) many.push_back(Expiring(Entry(i), static_cast<std::int64_t>(i)));
  many.push_back(Entry(1000));
  Must(Enqueue{kShard, kEpoch, many});
  EXPECT_EQ(CodeOf(ExpireDue{kShard, Epoch{6}, FromUnixMicros(1), 1}), ErrorCode::kStale);
  auto reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(590), 500});
  EXPECT_EQ(reply.claimed.size(), 500U);
  EXPECT_EQ(reply.next_due, FromUnixMicros(501)) << "the rest is due at once";
  ExpectDepth(101, 0, 500);
  reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(590), 500});
  EXPECT_EQ(reply.claimed.size(), 90U);
  const auto claimed = ClaimIds(2);
  EXPECT_EQ(claimed, Ids({591, 592})) << "what expired before them is passed over";
  Must(Requeue{kShard, kEpoch, {Expiring(Entry(591), 700), Expiring(Entry(592), 800)}});
  reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(750), 500});
  EXPECT_EQ(reply.claimed.size(), 9U) << "593 to 600, and 591 at its new time";
  EXPECT_EQ(ClaimIds(10), Ids({592, 1000}));
  Must(Enqueue{kShard, kEpoch, {Expiring(Entry(2000), 5), Expiring(Due(2001, 5), 5)}});
  Must(Take{kShard, Epoch{8}});
  reply = Must(ExpireDue{kShard, Epoch{8}, FromUnixMicros(1'000'000), 500});
  EXPECT_TRUE(reply.claimed.empty());
  EXPECT_EQ(reply.next_due, std::nullopt);
  ExpectDepth(0, 0, 601);
}

TEST_P(JobQueueTest, WhatIsDueAndWhatExpiresIsBoundedInBytes) {
  constexpr std::uint32_t kJobs = 40, kMax = 1000, kOfOneAnswerMax = 17;  // 16 MiB, and what they end within
  for (std::uint64_t n = 1; n <= kJobs; ++n) {
    QueueEntry entry = Expiring(Due(n, 10, n % 2 == 0 ? "a" : kKept), static_cast<std::int64_t>(100 + n));
    entry.body = std::string(1u << 20, static_cast<char>('a' + n % 26));
    Must(Enqueue{kShard, kEpoch, {entry}});
  }
  std::uint32_t promoted = 0;
  for (int answers = 0; answers < 4; ++answers) {
    const QueueReply reply = Must(Promote{kShard, kEpoch, FromUnixMicros(50), kMax});
    std::uint32_t n = 0;
    for (const LineCount& line : reply.promoted) n += static_cast<std::uint32_t>(line.count);
    EXPECT_LE(n, kOfOneAnswerMax);
    promoted += n;
    EXPECT_EQ(reply.next_due.has_value(), promoted < kJobs) << "what is left is due at once";
  }
  EXPECT_EQ(promoted, kJobs);
  std::vector<JobId> expired;
  for (int answers = 0; answers < 4; ++answers) {
    const QueueReply reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(1000), kMax});
    EXPECT_LE(reply.claimed.size(), kOfOneAnswerMax);
    for (const QueueEntry& entry : reply.claimed) {
      EXPECT_EQ(entry.body.size(), 1u << 20);
      expired.push_back(entry.id);
    }
    EXPECT_EQ(reply.next_due.has_value(), expired.size() < kJobs);
  }
  EXPECT_EQ(std::set<JobId>(expired.begin(), expired.end()).size(), kJobs);
  ExpectDepth(0, 0, kJobs);
}

TEST_P(JobQueueTest, ATombstoneInTheMiddleOfALineIsNoEntry) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Expiring(Entry(2), 10), Expiring(Entry(3), 10), Entry(4)}});
  Must(ExpireDue{kShard, kEpoch, FromUnixMicros(10), 10});
  ExpectDepth(2, 0, 2);
  EXPECT_EQ(ClaimIds(2), Ids({1, 4})) << "two were asked for and two are there";
  ExpectDepth(0, 0, 4);
}

TEST_P(JobQueueTest, ATakeKeepsTheTimesOfKeptLines) {
  Must(Enqueue{kShard,
               kEpoch,
               {Expiring(Entry(1, kKept, "one"), 10), Expiring(Entry(2, kKept, "two"), 100), Entry(3, kKept),
                Expiring(Entry(4, kKept, "four"), 20), Expiring(Due(5, 50, kKept), 200), Expiring(Due(6, 60, kKept), 20),
                Expiring(Entry(2, "a", "not this one"), 90), Expiring(Due(7, 5), 10)}});
  auto reply = Must(ExpireDue{kShard, kEpoch, FromUnixMicros(30), 10});
  EXPECT_EQ(IdsOf(reply), Ids({1, 4, 6, 7}));
  EXPECT_EQ(reply.lost, (std::vector<LineCount>{{.line = kKept, .count = 2}}));
  EXPECT_EQ(reply.next_due, FromUnixMicros(90));
  ExpectDepth(3, 1, 4);
  reply = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(reply.kept, (std::vector<LineCount>{{.line = kKept, .count = 2}})) << "what expired is no ready entry";
  EXPECT_EQ(IdsOf(reply), Ids({1, 4, 6})) << "it is in flight until its end is recorded";
  const auto four = std::ranges::find(reply.claimed, MakeId(4), &QueueEntry::id);
  ASSERT_NE(four, reply.claimed.end());
  EXPECT_EQ(four->body, "four");
  Must(Finish{kShard, Epoch{8}, Ids({1, 4})});
  Must(Requeue{kShard, Epoch{8}, {Expiring(Entry(6, kKept), 300)}});
  ExpectDepth(3, 1, 1);
  reply = Must(ExpireDue{kShard, Epoch{8}, FromUnixMicros(150), 10});
  ASSERT_EQ(IdsOf(reply), Ids({2}));
  EXPECT_EQ(reply.claimed[0].body, "two");
  EXPECT_EQ(reply.next_due, FromUnixMicros(200));
  Must(Promote{kShard, Epoch{8}, FromUnixMicros(1000), 10});
  ExpectDepth(3, 0, 2);
  std::vector<JobId> left;
  for (const QueueEntry& entry : Must(Claim{kShard, Epoch{8}, kKept, 10}).claimed) left.push_back(entry.id);
  EXPECT_EQ(left, Ids({6, 3, 5}));
  Must(Finish{kShard, Epoch{8}, Ids({2, 3, 5, 6})});
  ExpectDepth(0, 0, 1);
}

TEST_P(JobQueueTest, AnIdThatWasPutInTwiceLeavesTheFlightOnce) {
  std::vector<QueueEntry> batch, again;
  for (std::uint64_t i = 1; i <= 40; ++i) batch.push_back(Entry(i, kKept));
  again.assign(batch.begin() + 5, batch.begin() + 25);
  for (const auto& entries : {batch, again, std::vector{batch[30]}, batch}) Must(Enqueue{kShard, kEpoch, entries});
  ExpectDepth(101, 0, 0);
  EXPECT_EQ(ClaimIds(101, kKept).size(), 101u);
  std::vector<JobId> ids;
  for (const QueueEntry& entry : batch) ids.push_back(entry.id);
  Must(Finish{kShard, kEpoch, {ids.begin(), ids.begin() + 20}});
  Must(Finish{kShard, kEpoch, {ids.begin() + 20, ids.end()}});
  EXPECT_TRUE(Must(Take{kShard, Epoch{8}}).claimed.empty());
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueTest, RedisMemoryPerWaitingJob) {
  if (GetParam() != "redis") GTEST_SKIP() << "measures Redis";
  std::vector<QueueEntry> many;
  for (std::uint64_t i = 0; i < 10'000; ++i) many.push_back(Entry(i, "a", std::string(100, 'x')));
  Must(Enqueue{kShard, kEpoch, many});
  const auto usage =
      Direct().Call({"MEMORY", "USAGE", fmt::format("{{{}:3}}:l:a", options_.prefix), "SAMPLES", "0"}, clock_.Now() + 5s);
  ASSERT_TRUE(usage);
  fmt::print("redis: {} bytes per waiting job of 100 bytes\n", usage->integer / 10'000);
  EXPECT_GT(usage->integer, 0);
  EXPECT_LE(usage->integer / 10'000, 140) << "an entry of 100 bytes and its id";
}

TEST_P(JobQueueTest, InboxRingsOnceForManyRings) {
  std::unique_ptr<Inbox> inbox = std::make_unique<LocalInbox>();
  if (GetParam() == "redis") inbox = *OpenRedisInbox(options_);
  const ShardId shards[] = {ShardId{1}, ShardId{2}, ShardId{3}};
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(inbox->Ring(ShardId{2}));
  ASSERT_TRUE(inbox->Ring(ShardId{3}));
  ASSERT_TRUE(inbox->Ring(ShardId{9}));
  auto rung = inbox->Wait(shards, 1000ms);
  ASSERT_TRUE(rung) << rung.error().message;
  EXPECT_EQ(*rung, (std::vector{ShardId{2}, ShardId{3}}));
  rung = inbox->Wait(shards, 20ms);
  ASSERT_TRUE(rung) << rung.error().message;
  EXPECT_TRUE(rung->empty());
}

INSTANTIATE_TEST_SUITE_P(All, JobQueueTest, ::testing::Values("sqlite", "redis"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::testing
