// Named entries leave a queue, and what a store packs together does not show: on SQLite and on Redis (MILLRACE_TEST_REDIS).
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <ranges>

#include "common/base/random.h"
#include "tests/support/job_queue_fixture.h"

namespace millrace::testing {
namespace {

// As the owner does it: until the look is over.
struct Removed {
  std::vector<JobId> ids;
  std::map<std::string, std::uint32_t> lost;
  std::map<JobId, QueueEntry> entries;
  std::size_t steps = 0;
};

class JobQueueRemoveTest : public JobQueueTest {
 protected:
  Removed RemoveAll(Remove op) {
    Removed all;
    while (true) {
      QueueReply reply = Must(op);
      ++all.steps;
      for (QueueEntry& entry : reply.claimed) {
        all.ids.push_back(entry.id);
        if (!op.lines.empty()) std::erase(op.ids, entry.id);
        all.entries[entry.id] = std::move(entry);
      }
      for (const LineCount& lost : reply.lost) all.lost[lost.line] += lost.count;
      if (reply.cursor.empty() || all.steps > 10'000) break;
      op.cursor = std::move(reply.cursor);
      if (between_) between_();
    }
    std::ranges::sort(all.ids);
    return all;
  }
  Removed RemoveAll(std::vector<JobId> ids, std::vector<std::string> lines, bool scheduled = false, std::uint32_t max = 1000) {
    return RemoveAll(Remove{kShard, kEpoch, std::move(lines), scheduled, std::move(ids), {}, max});
  }
  std::function<void()> between_;  // steps of one look
};

TEST_P(JobQueueRemoveTest, NamedEntriesLeaveTheirLinesAndTheSchedule) {
  Must(Enqueue{kShard, kEpoch, {Entry(1), Entry(2, "a", "two"), Entry(3), Entry(4, "b"), Due(5, 50), Due(6, 60, "b")}});
  const Removed removed = RemoveAll(Ids({2, 4, 5, 99}), {"a", "b"}, true);
  EXPECT_EQ(removed.ids, Ids({2, 4, 5}));
  EXPECT_EQ(removed.lost, (std::map<std::string, std::uint32_t>{{"a", 1}, {"b", 1}}));
  EXPECT_EQ(removed.entries.at(MakeId(2)), Entry(2, "a", "two"));
  EXPECT_EQ(removed.entries.at(MakeId(5)), Entry(5)) << "run_at is unset";
  ExpectDepth(2, 1, 3);
  EXPECT_EQ(RemoveAll(Ids({2, 4, 5}), {"a", "b"}, true).ids, Ids({})) << "again: nothing is left to remove";
  EXPECT_EQ(ClaimIds(10), Ids({1, 3})) << "the order of the others is kept";
  EXPECT_EQ(ClaimIds(10, "b"), Ids({}));
  Must(Promote{kShard, kEpoch, FromUnixMicros(100), 10});
  EXPECT_EQ(ClaimIds(10, "b"), Ids({6}));
  Must(Requeue{kShard, kEpoch, {Entry(2, "a", "two")}});
  EXPECT_EQ(ClaimIds(10), Ids({2})) << "it may come back";
  Must(Finish{kShard, kEpoch, Ids({1, 2, 3, 4, 5, 6})});
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueRemoveTest, WhatIsInFlightOrElsewhereStays) {
  Must(Enqueue{kShard,
               kEpoch,
               {Entry(1), Entry(2), Entry(3, "b"), Due(4, 50), Entry(5, kKept), Expiring(Entry(6), 500),
                Expiring(Entry(7, "b"), 500), Expiring(Due(8, 50), 500)}});
  EXPECT_EQ(ClaimIds(1), Ids({1}));
  EXPECT_EQ(RemoveAll(Ids({1, 3, 4, 5, 7, 8}), {"a"}).ids, Ids({})) << "in flight, another line, the schedule, a kept line";
  EXPECT_EQ(RemoveAll(Ids({2, 6}), {}).ids, Ids({})) << "no kept line has them";
  ExpectDepth(5, 2, 1);
  EXPECT_EQ(CodeOf(Remove{kShard, Epoch{6}, {"a"}, true, Ids({2}), {}, 10}), ErrorCode::kStale);
  EXPECT_EQ(RemoveAll({}, {"a"}, true).ids, Ids({}));
}

TEST_P(JobQueueRemoveTest, EntriesOfKeptLinesAreFoundWhereverTheyWait) {
  const std::string other = kKept + "2";
  Must(Enqueue{
      kShard,
      kEpoch,
      {Entry(1, kKept, "one"), Entry(2, other, "two"), Due(3, 50, kKept), Entry(4, other),
       Expiring(Entry(5, kKept, "five"), 500), Expiring(Due(6, 60, other), 600), Entry(7, "a"), Entry(2, kKept, "again")}});
  const Removed removed = RemoveAll(Ids({1, 2, 3, 5, 6, 7, 8}), {});
  EXPECT_EQ(removed.ids, Ids({1, 2, 2, 3, 5, 6})) << "2 was there twice";
  EXPECT_EQ(removed.lost, (std::map<std::string, std::uint32_t>{{kKept, 3}, {other, 1}}));
  EXPECT_EQ(removed.entries.at(MakeId(5)), Entry(5, kKept, "five"));
  ExpectDepth(2, 0, 5);
  const QueueReply stayed = Must(Take{kShard, Epoch{8}});
  EXPECT_EQ(IdsOf(stayed), Ids({1, 2, 3, 5, 6})) << "in flight until their end is recorded";
  EXPECT_EQ(stayed.kept, (std::vector<LineCount>{{other, 1}}));
  Must(Finish{kShard, Epoch{8}, Ids({1, 2, 3, 5, 6})});
  EXPECT_TRUE(Must(ExpireDue{kShard, Epoch{8}, FromUnixMicros(10'000), 10}).claimed.empty());
  ExpectDepth(1, 0, 0);
}

TEST_P(JobQueueRemoveTest, WhatCanExpireIsRemovedWithItsTime) {
  Must(Enqueue{
      kShard, kEpoch, {Entry(1), Expiring(Entry(2, "a", "two"), 100), Expiring(Due(3, 50), 100), Expiring(Entry(4), 100)}});
  const Removed removed = RemoveAll(Ids({2, 3}), {"a"}, true);
  EXPECT_EQ(removed.ids, Ids({2, 3}));
  EXPECT_EQ(removed.entries.at(MakeId(2)), Entry(2, "a", "two"));
  EXPECT_EQ(removed.lost, (std::map<std::string, std::uint32_t>{{"a", 1}}));
  ExpectDepth(2, 0, 2);
  EXPECT_EQ(Must(Promote{kShard, kEpoch, FromUnixMicros(60), 10}).promoted, std::vector<LineCount>{});
  EXPECT_EQ(IdsOf(Must(ExpireDue{kShard, kEpoch, FromUnixMicros(100), 10})), Ids({4}));
  EXPECT_EQ(ClaimIds(10), Ids({1}));
  Must(Finish{kShard, kEpoch, Ids({1, 2, 3, 4})});
  ExpectDepth(0, 0, 0);
}

TEST_P(JobQueueRemoveTest, ALongLookGoesOnWhileTheLinesChange) {
  std::vector<QueueEntry> many;
  std::vector<JobId> wanted;
  for (std::uint64_t i = 1; i <= 6000; ++i) {
    many.push_back(i % 3 == 0 ? Due(i, static_cast<std::int64_t>(1'000'000 + i)) : Entry(i, i % 3 == 1 ? "a" : "b"));
    if (i > 600 && i % 7 == 0) wanted.push_back(many.back().id);
  }
  Must(Enqueue{kShard, kEpoch, many});
  std::uint64_t next = 10'000;
  std::int64_t now = 1'000'000;
  std::size_t claimed = 0;
  between_ = [&] {  // what is not wanted comes in at both ends, and some of it is claimed
    ++next;
    Must(Enqueue{kShard, kEpoch, {Entry(next), Entry(next + 1'000'000, "b"), Due(next + 2'000'000, 2'000'000'000)}});
    Must(Requeue{kShard, kEpoch, {Entry(next + 3'000'000)}});
    claimed += ClaimIds(2).size() + ClaimIds(1, "b").size();
    now += 40;
    Must(Promote{kShard, kEpoch, FromUnixMicros(now), 50});
  };
  const Removed removed = RemoveAll(wanted, {"b", "a"}, true, 100);
  EXPECT_EQ(removed.ids, wanted);
  EXPECT_EQ(GetParam() == "redis", removed.steps > 10) << removed.steps << " steps";
  EXPECT_LT(claimed, 400U) << "or it claimed what it looked for";
  const auto depth = queue_->Depth(kShard);
  ASSERT_TRUE(depth);
  EXPECT_EQ(depth->in_flight, wanted.size() + claimed);
  EXPECT_EQ(depth->ready + depth->scheduled + depth->in_flight, 6000 + 4 * (removed.steps - 1));
}

TEST_P(JobQueueRemoveTest, LargeBodiesComeInSeveralAnswers) {
  std::vector<QueueEntry> big;
  std::vector<JobId> ids;
  for (std::uint64_t i = 1; i <= 40; ++i) {
    big.push_back(Entry(i, "big", std::string(1u << 20, static_cast<char>(i))));
    if (i % 2 == 0) big.back().expires_at = FromUnixMicros(1'000'000);
    ids.push_back(MakeId(i));
  }
  Must(Enqueue{kShard, kEpoch, big});
  const Removed removed = RemoveAll(ids, {"big"});
  EXPECT_EQ(removed.ids, ids);
  EXPECT_GE(removed.steps, 2U);
  for (const QueueEntry& entry : big) EXPECT_TRUE(removed.entries.at(entry.id).body == entry.body);
  ExpectDepth(0, 0, 40);
}

TEST_P(JobQueueRemoveTest, RandomisedAgainstAModel) {
  SeededRandom random(20261122);
  std::map<JobId, std::string> waiting;
  std::uint64_t next = 0;
  for (int step = 0; step < 400; ++step) {
    SCOPED_TRACE(fmt::format("seed 20261122 step {}", step));
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t n = random.Below(12); n > 0; --n) {
      QueueEntry entry = Entry(++next, random.Below(4) == 0 ? kKept : std::string(1, static_cast<char>('a' + random.Below(2))));
      if (random.Below(3) == 0) entry.run_at = FromUnixMicros(static_cast<std::int64_t>(1000 + random.Below(50)));
      if (random.Below(3) == 0) entry.expires_at = FromUnixMicros(static_cast<std::int64_t>(5000 + next));
      waiting[entry.id] = entry.line;
      op.entries.push_back(std::move(entry));
    }
    Must(op);
    if (random.Below(4) == 0) Must(Promote{kShard, kEpoch, FromUnixMicros(1025), 3});
    if (random.Below(3) == 0)
      for (const JobId& id : ClaimIds(static_cast<std::uint32_t>(random.Below(4)))) waiting.erase(id);
    std::vector<JobId> ids, expected;
    for (std::uint64_t n = random.Below(10); n > 0 && next > 0; --n) ids.push_back(MakeId(1 + random.Below(next)));
    std::ranges::sort(ids);
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    const bool kept = random.Below(3) == 0;
    for (const JobId& id : ids)
      if (const auto it = waiting.find(id); it != waiting.end() && IsKeptLine(it->second) == kept) expected.push_back(id);
    for (const JobId& id : expected) waiting.erase(id);
    const auto lines = kept ? std::vector<std::string>{} : std::vector<std::string>{"a", "b"};
    ASSERT_EQ(RemoveAll(ids, lines, true, 1 + static_cast<std::uint32_t>(random.Below(5))).ids, expected);
    Must(Finish{kShard, kEpoch, expected});
    const auto depth = queue_->Depth(kShard);
    ASSERT_TRUE(depth);
    ASSERT_EQ(depth->ready + depth->scheduled, waiting.size());
  }
}

// What is left over of a batch is one entry like any other.
TEST_P(JobQueueRemoveTest, OneEntryLeftOfABatchIsAnEntry) {
  const auto expect_empty = [&](Epoch next) {
    const auto depth = queue_->Depth(kShard);
    ASSERT_TRUE(depth);
    EXPECT_EQ(depth->ready + depth->scheduled + depth->in_flight, 0u);
    EXPECT_TRUE(Must(Take{kShard, next}).claimed.empty());
  };
  const auto nine = [&](Epoch epoch) {
    Enqueue batch{kShard, epoch, {}};
    for (int i = 1; i <= 9; ++i) batch.entries.push_back(Entry(static_cast<std::uint64_t>(i), kKept));
    Must(batch);
  };
  nine(kEpoch);
  std::vector<JobId> ids;
  for (const std::uint32_t n : {8U, 8U})
    for (const QueueEntry& e : Must(Claim{kShard, kEpoch, kKept, n}).claimed) ids.push_back(e.id);
  EXPECT_EQ(ids.size(), 9u);
  Must(Finish{kShard, kEpoch, ids});
  const Epoch second{kEpoch.value() + 1}, third{kEpoch.value() + 2};
  expect_empty(second);

  nine(second);
  const std::vector<JobId> eight(ids.begin(), ids.begin() + 8);
  QueueReply removed = Must(Remove{kShard, second, {}, false, eight, {}, 1000});
  EXPECT_EQ(removed.claimed.size(), 8u);
  const auto last = Must(Claim{kShard, second, kKept, 5}).claimed;
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].id, ids[8]);
  Must(Finish{kShard, second, ids});
  expect_empty(third);
}

// Kept lines in batches of any size, claimed, settled and taken over in parts: what a store packs together must not show.
TEST_P(JobQueueRemoveTest, BatchesOfKeptLinesAgainstAModel) {
  SeededRandom random(20261122);
  std::map<std::string, std::deque<QueueEntry>> ready{{kKept, {}}, {kKept + "2", {}}};
  std::map<JobId, QueueEntry> flight;
  std::uint64_t next = 0;
  Epoch epoch = kEpoch;
  const auto take_some = [&](std::uint64_t most) {
    std::vector<QueueEntry> some;
    for (std::uint64_t n = 1 + random.Below(most); n > 0 && !flight.empty(); --n) {
      const auto at = std::next(flight.begin(), static_cast<std::ptrdiff_t>(random.Below(flight.size())));
      some.push_back(at->second);
      flight.erase(at);
    }
    return some;
  };
  const auto settle = [&](const std::vector<QueueEntry>& some) {
    Finish finish{kShard, epoch, {}};
    Requeue back{kShard, epoch, {}};
    for (const QueueEntry& entry : some) {
      if (random.Below(2) == 0)
        finish.ids.push_back(entry.id);
      else
        back.entries.push_back(entry);
    }
    Must(finish);
    Must(back);
    for (const QueueEntry& entry : std::views::reverse(back.entries)) ready[entry.line].push_front(entry);
  };
  for (int step = 0; step < 600; ++step) {
    SCOPED_TRACE(fmt::format("seed 20261122 step {}", step));
    const std::string line = random.Below(3) == 0 ? kKept + "2" : kKept;
    switch (random.Below(8)) {
      case 0:
      case 1: {
        Enqueue op{kShard, epoch, {}};
        for (std::uint64_t n = random.Below(2) == 0 ? random.Below(10) : random.Below(400); n > 0; --n) {
          op.entries.push_back(Entry(++next, line, std::string(random.Below(40) == 0 ? 20'000 : random.Below(200), 'x')));
          if (random.Below(100) == 0) op.entries.back() = Expiring(op.entries.back(), 1'000'000);
        }
        Must(op);
        for (QueueEntry& entry : op.entries) ready[line].push_back(std::move(entry));
        break;
      }
      case 2:
      case 3:
      case 4: {
        const auto max = static_cast<std::uint32_t>(1 + random.Below(random.Below(2) == 0 ? 20 : 300));
        const auto got = Must(Claim{kShard, epoch, line, max}).claimed;
        ASSERT_EQ(got.size(), std::min<std::size_t>(max, ready[line].size()));
        for (const QueueEntry& entry : got) {
          QueueEntry expected = ready[line].front();
          expected.expires_at.reset();
          ASSERT_EQ(entry, expected);
          ready[line].pop_front();
          flight[entry.id] = entry;
        }
        break;
      }
      case 5:
      case 6: settle(take_some(random.Below(3) == 0 ? 3 : 400)); break;
      default: {
        std::vector<JobId> ids;
        for (std::uint64_t n = random.Below(20); n > 0 && !ready[line].empty(); --n)
          ids.push_back(ready[line][random.Below(ready[line].size())].id);
        std::ranges::sort(ids);
        ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
        const Removed removed =
            RemoveAll(Remove{kShard, epoch, {}, false, ids, {}, 1 + static_cast<std::uint32_t>(random.Below(500))});
        ASSERT_EQ(removed.ids, ids);
        for (const auto& [id, entry] : removed.entries) flight[id] = entry;
        std::erase_if(ready[line], [&](const QueueEntry& entry) { return removed.entries.contains(entry.id); });
      }
    }
    if (step % 20 == 0) ExpectDepth(ready[kKept].size() + ready[kKept + "2"].size(), 0, flight.size());
    if (step % 150 != 149) continue;
    epoch = Epoch{epoch.value() + 1};
    QueueReply taken = Must(Take{kShard, epoch});
    std::map<std::string, std::uint32_t> counts, expected;
    for (const LineCount& count : taken.kept) counts[count.line] = count.count;
    for (const auto& [name, entries] : ready)
      if (!entries.empty()) expected[name] = static_cast<std::uint32_t>(entries.size());
    ASSERT_EQ(counts, expected);
    for (; !taken.claimed.empty(); taken = Must(Take{kShard, epoch})) {
      EXPECT_LE(taken.claimed.size(), 4000u);
      for (const QueueEntry& entry : taken.claimed) {
        ASSERT_EQ(entry, flight.at(entry.id));
        flight.erase(entry.id);
      }
      settle(taken.claimed);
    }
    ASSERT_TRUE(flight.empty());
  }
  EXPECT_GT(next, 10'000u);
}

// Two orgs may use the same ids, and nobody gets at what is not theirs.
class JobQueueRemoveOrgTest : public JobQueueRemoveTest {
 protected:
  static std::string LineOf(std::string_view org, std::string_view kind = "work") {
    return fmt::format("{}q\x1f{}\x1f{}\x1f\x1f{}\x1f", kKeptLineMark, 2, org, kind);
  }
};

TEST_P(JobQueueRemoveOrgTest, ALookForAnOrgLeavesTheLinesOfOthersAlone) {
  const std::string ours = LineOf("1"), theirs = LineOf("11"), tricky = LineOf("11", "1"), more = LineOf("1", "11");
  EXPECT_EQ(OrgOfLine(ours), "1");
  EXPECT_EQ(OrgOfLine(tricky), "11");
  EXPECT_EQ(OrgOfLine(kKept), "");
  Enqueue batch{kShard, kEpoch, {}};
  for (std::uint64_t i = 1; i <= 20; ++i) batch.entries.push_back(Entry(i, theirs));
  Must(batch);
  Must(Enqueue{kShard,
               kEpoch,
               {Entry(30, tricky), Expiring(Entry(31, theirs), 500), Due(32, 50, theirs), Expiring(Due(33, 50, theirs), 500),
                Entry(34, kKept), Entry(5, ours), Entry(40, ours), Due(41, 50, ours), Expiring(Entry(42, more), 500)}});
  const std::vector<JobId> ids = Ids({5, 6, 30, 31, 32, 33, 34, 41, 42});
  EXPECT_EQ(RemoveAll(Remove{kShard, kEpoch, {}, false, ids, {}, 4, "12"}).ids, Ids({}));
  EXPECT_EQ(RemoveAll(Remove{kShard, kEpoch, {}, false, ids, {}, 4, "2"}).ids, Ids({})) << "the priority";
  const Removed removed = RemoveAll(Remove{kShard, kEpoch, {}, false, ids, {}, 4, "1"});
  EXPECT_EQ(removed.ids, Ids({5, 41, 42}));
  EXPECT_EQ(removed.lost, (std::map<std::string, std::uint32_t>{{ours, 1}, {more, 1}}));
  ExpectDepth(24, 2, 3);
  std::vector<JobId> order;
  for (const std::uint32_t n : {15U, 15U})
    for (const QueueEntry& entry : Must(Claim{kShard, kEpoch, theirs, n}).claimed) order.push_back(entry.id);
  std::vector<JobId> expected;
  for (std::uint64_t i = 1; i <= 20; ++i) expected.push_back(MakeId(i));
  expected.push_back(MakeId(31));
  EXPECT_EQ(order, expected) << "as they were put";
}

INSTANTIATE_TEST_SUITE_P(All, JobQueueRemoveTest, ::testing::Values("sqlite", "redis"), [](const auto& p) { return p.param; });
INSTANTIATE_TEST_SUITE_P(All, JobQueueRemoveOrgTest, ::testing::Values("sqlite", "redis"),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::testing
