// Claims of many lines at once get what one after the other would get, on SQLite and on Redis (MILLRACE_TEST_REDIS).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>

#include "common/base/random.h"
#include "tests/support/job_queue_fixture.h"

namespace millrace::testing {
namespace {

constexpr std::size_t kLinesOfOneRunMax = 256;  // of the Redis queue: one claim more is two runs of its script

std::uint64_t Seed() {
  const char* given = std::getenv("MILLRACE_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : SystemRandom().Next();
}

class JobQueueClaimsTest : public JobQueueTest {
 protected:
  std::vector<Result<QueueReply>> All(const std::vector<QueueOp>& ops) { return queue_->Execute(ops); }
  static std::vector<JobId> InOrder(const Result<QueueReply>& reply) {
    std::vector<JobId> ids;
    if (!reply) return ids;
    for (const QueueEntry& entry : reply->claimed) ids.push_back(entry.id);
    return ids;
  }
};

TEST_P(JobQueueClaimsTest, EachGetsWhatIsInItsLine) {
  Must(Enqueue{
      kShard, kEpoch, {Entry(1, "a"), Entry(2, "a"), Entry(3, "b", ""), Expiring(Entry(4, "c"), 900), Entry(5, kKept)}});
  const auto replies = All({Claim{kShard, kEpoch, "a", 1}, Claim{kShard, kEpoch, "nothing", 5}, Claim{kShard, kEpoch, "b", 5},
                            Claim{kShard, kEpoch, "c", 5}, Claim{kShard, kEpoch, kKept, 0}, Claim{kShard, kEpoch, kKept, 5},
                            Claim{kShard, kEpoch, "a", 5}});
  ASSERT_EQ(replies.size(), 7U);
  EXPECT_EQ(InOrder(replies[0]), Ids({1}));
  EXPECT_EQ(InOrder(replies[1]), Ids({}));
  EXPECT_EQ(InOrder(replies[2]), Ids({3}));
  EXPECT_EQ(InOrder(replies[3]), Ids({4}));
  EXPECT_EQ(InOrder(replies[4]), Ids({}));
  EXPECT_EQ(InOrder(replies[5]), Ids({5}));
  EXPECT_EQ(InOrder(replies[6]), Ids({2}));
  EXPECT_EQ(replies[2]->claimed.front(), Entry(3, "b", ""));
  EXPECT_EQ(replies[3]->claimed.front(), Entry(4, "c"));
  ExpectDepth(0, 0, 5);
}

TEST_P(JobQueueClaimsTest, OfMoreLinesThanOneRunTakes) {
  Enqueue put{kShard, kEpoch, {}};
  std::vector<QueueOp> claims;
  for (std::uint64_t n = 1; n <= 2 * kLinesOfOneRunMax + 3; ++n) {
    const std::string line = (n % 3 == 0 ? kKept : std::string("line ")) + std::to_string(n);
    put.entries.push_back(Entry(n, line));
    claims.emplace_back(Claim{kShard, kEpoch, line, 2});
  }
  Must(put);
  const auto replies = All(claims);
  ASSERT_EQ(replies.size(), claims.size());
  for (std::uint64_t n = 1; n <= replies.size(); ++n) EXPECT_EQ(InOrder(replies[n - 1]), Ids({n}));
  ExpectDepth(0, 0, replies.size());
}

// Several shards, and an owner that was deposed, in one batch: each claim fails or succeeds by itself.
TEST_P(JobQueueClaimsTest, OfSeveralOwners) {
  const ShardId other{4};
  Must(Take{other, Epoch{9}});
  Must(Enqueue{kShard, kEpoch, {Entry(1)}});
  Must(Enqueue{other, Epoch{9}, {Entry(2), Entry(3, "b")}});
  const auto replies = All({Claim{kShard, Epoch{6}, "a", 1}, Claim{kShard, Epoch{6}, "b", 1}, Claim{kShard, kEpoch, "a", 1},
                            Claim{other, Epoch{9}, "a", 1}, Claim{other, Epoch{9}, "b", 1}});
  ASSERT_EQ(replies.size(), 5U);
  for (const std::size_t deposed : {0U, 1U}) {
    ASSERT_FALSE(replies[deposed]);
    EXPECT_EQ(replies[deposed].error().code, ErrorCode::kStale);
  }
  EXPECT_EQ(InOrder(replies[2]), Ids({1}));
  EXPECT_EQ(InOrder(replies[3]), Ids({2}));
  EXPECT_EQ(InOrder(replies[4]), Ids({3}));
}

// Bodies that are too much for one answer: every line still gives at least one entry, since an empty answer says that the line
// is empty; the rest waits.
TEST_P(JobQueueClaimsTest, LargeBodiesLeaveNoLineWithoutAny) {
  const std::string large(6u << 20, 'x');
  Enqueue put{kShard, kEpoch, {}};
  for (std::uint64_t n = 1; n <= 6; ++n) put.entries.push_back(Entry(n, n <= 3 ? "a" : kKept, large));
  put.entries.push_back(Entry(7, "c"));
  Must(put);
  std::map<std::string, std::size_t> got;
  for (int round = 0; round < 6; ++round) {
    const std::array<std::string, 3> lines{"a", kKept, "c"};
    std::vector<QueueOp> claims;
    for (const std::string& line : lines) claims.emplace_back(Claim{kShard, kEpoch, line, 5});
    const auto replies = All(claims);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      ASSERT_TRUE(replies[i]) << replies[i].error().message;
      if (round == 0) {
        EXPECT_FALSE(replies[i]->claimed.empty()) << lines[i];
      }
      got[lines[i]] += replies[i]->claimed.size();
    }
  }
  EXPECT_EQ(got, (std::map<std::string, std::size_t>{{"a", 3}, {kKept, 3}, {"c", 1}}));
}

// Random operations on two shards; on one of them the claims of a round go one by one, on the other all at once.
TEST_P(JobQueueClaimsTest, AreAsOneAfterTheOther) {
  const std::uint64_t seed = Seed();
  std::printf("MILLRACE_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  SeededRandom random(seed);
  const ShardId single{11}, batched{12};
  for (const ShardId shard : {single, batched}) Must(Take{shard, kEpoch});
  const std::array<std::string, 5> lines{"a", "b", kKept, kKept + "2", kKept + "3"};
  std::map<JobId, std::string> flying;
  std::uint64_t next = 0;
  for (int round = 0; round < 120; ++round) {
    std::vector<QueueEntry> put;
    const auto add = [&](const std::string& line) {
      ++next;
      QueueEntry entry = Entry(next, line, "body " + std::to_string(next));
      if (random.Below(6) == 0) entry = Expiring(std::move(entry), static_cast<std::int64_t>(next) + 1'000'000);
      put.push_back(std::move(entry));
    };
    const std::string& busy = lines[random.Below(lines.size())];
    for (std::uint64_t n = random.Below(30); n > 0; --n) add(busy);  // enough in a row for a block
    for (std::uint64_t n = random.Below(8); n > 0; --n) add(lines[random.Below(lines.size())]);
    std::vector<JobId> ended;
    std::vector<QueueEntry> back;
    for (auto it = flying.begin(); it != flying.end();) {
      const auto dice = random.Below(4);
      if (dice == 0) ended.push_back(it->first);
      if (dice == 1) back.push_back({.id = it->first, .line = it->second, .body = "again", .run_at = {}, .expires_at = {}});
      it = dice < 2 ? flying.erase(it) : std::next(it);
    }
    const bool expire = random.Below(10) == 0;
    std::vector<std::pair<std::string, std::uint32_t>> claims;
    for (std::uint64_t n = random.Below(9); n > 0; --n)
      claims.emplace_back(lines[random.Below(lines.size())], static_cast<std::uint32_t>(random.Below(25)));
    std::array<std::vector<std::vector<QueueEntry>>, 2> got;
    for (const ShardId shard : {single, batched}) {
      if (!put.empty()) Must(Enqueue{shard, kEpoch, put});
      if (!ended.empty()) Must(Finish{shard, kEpoch, ended});
      if (!back.empty()) Must(Requeue{shard, kEpoch, back});
      if (expire) {
        const QueueReply expired =
            Must(ExpireDue{shard, kEpoch, FromUnixMicros(1'000'000 + static_cast<std::int64_t>(next) / 2), 100});
        Must(Finish{shard, kEpoch, IdsOf(expired)});
      }
      auto& of_shard = got[shard == batched ? 1 : 0];
      if (shard == single) {
        for (const auto& [line, max] : claims) of_shard.push_back(Must(Claim{shard, kEpoch, line, max}).claimed);
        continue;
      }
      std::vector<QueueOp> all;
      for (const auto& [line, max] : claims) all.emplace_back(Claim{shard, kEpoch, line, max});
      for (const auto& reply : All(all)) {
        ASSERT_TRUE(reply) << reply.error().message;
        of_shard.push_back(reply->claimed);
      }
    }
    ASSERT_EQ(got[0], got[1]) << "round " << round;
    for (const auto& claimed : got[1])
      for (const QueueEntry& entry : claimed) ASSERT_TRUE(flying.emplace(entry.id, entry.line).second) << "claimed twice";
    const auto one = queue_->Depth(single), other = queue_->Depth(batched);
    ASSERT_TRUE(one && other);
    ASSERT_EQ(std::tuple(one->ready, one->scheduled, one->in_flight),
              std::tuple(other->ready, other->scheduled, other->in_flight));
    ASSERT_EQ(other->in_flight, flying.size());
  }
  EXPECT_GT(next, 500U);
}

INSTANTIATE_TEST_SUITE_P(All, JobQueueClaimsTest, ::testing::Values("sqlite", "redis"),
                         [](const auto& of) { return of.param; });

}  // namespace
}  // namespace millrace::testing
