// Many kept lines, long names and large elements: what one operation costs does not depend on what waits. On SQLite and on
// Redis (MILLRACE_TEST_REDIS), and with a redis-server of the test's own.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "common/wire/codec.h"
#include "tests/support/job_queue_fixture.h"
#include "tests/support/redis_server.h"

namespace millrace::testing {
namespace {

constexpr std::uint64_t kFew = 1000, kMany = 40'000;  // lines
constexpr std::size_t kLinesOfOneTake = 1100;
constexpr ShardId kFewShard{4};

// Queue, priority, org, root, kind, limit key.
std::string KeptLine(const std::string& org, const std::string& key, const std::string& queue = "mail",
                     const std::string& root = {}) {
  return fmt::format("{}{}\x1f{}\x1f{}\x1f{}\x1f{}\x1f{}", kKeptLineMark, queue, 2, org, root, "send", key);
}
// As long as the name of a line can be.
std::string LongestLine(const std::string& org) {
  return KeptLine(org, std::string(kNameBytesMax, 'k'), std::string(kNameBytesMax, 'q'),
                  "/" + std::string(wire::kPathBytesMax - 1, 'r'));
}

class JobQueueLinesTest : public JobQueueTest {
 protected:
  // One entry in each of `n` lines of an org.
  void FillLines(ShardId shard, std::uint64_t n, const std::string& org = "1") {
    constexpr std::uint64_t kBatch = 1000;
    for (std::uint64_t i = 0; i < n; i += kBatch) {
      Enqueue op{shard, kEpoch, {}};
      for (std::uint64_t k = i; k < std::min(n, i + kBatch); ++k)
        op.entries.push_back(Entry(k, KeptLine(org, fmt::format("customer-{}", k))));
      Must(std::move(op));
    }
  }
  // The ready entries of each line, as an owner counts them.
  std::map<std::string, std::uint32_t> TakeAll(ShardId shard, Epoch epoch, std::size_t* pages = nullptr) {
    std::map<std::string, std::uint32_t> lines;
    Take op{shard, epoch};
    for (std::size_t step = 0; step < 10'000; ++step) {
      const QueueReply reply = Must(op);
      EXPECT_TRUE(reply.claimed.empty());
      EXPECT_LE(reply.kept.size(), kLinesOfOneTake);
      for (const LineCount& line : reply.kept) EXPECT_TRUE(lines.emplace(line.line, line.count).second) << "counted twice";
      if (pages != nullptr) ++*pages;
      op.cursor = reply.cursor;
      if (op.cursor.empty()) return lines;
    }
    ADD_FAILURE() << "the lines have no end";
    return lines;
  }
  // The fastest of some: what else runs on the machine does not count.
  Micros Fastest(const std::function<void()>& what) {
    Micros best = Micros::max();
    for (int i = 0; i < 7; ++i) {
      const MonoTime begin = clock_.Now();
      what();
      best = std::min(best, std::chrono::duration_cast<Micros>(clock_.Now() - begin));
    }
    return best;
  }
};

TEST_P(JobQueueLinesTest, ATakeCountsManyLinesInPages) {
  FillLines(kShard, kMany);
  Must(Enqueue{kShard, kEpoch, {Entry(kMany, KeptLine("1", "customer-7")), Entry(kMany + 1, "ordinary")}});
  std::size_t pages = 0;
  auto lines = TakeAll(kShard, Epoch{8}, &pages);
  EXPECT_EQ(lines.size(), kMany);
  EXPECT_GE(pages, kMany / kLinesOfOneTake);
  EXPECT_EQ(lines[KeptLine("1", "customer-7")], 2U);
  EXPECT_EQ(lines[KeptLine("1", "customer-8")], 1U);
  ExpectDepth(kMany + 1, 0, 0);
}

TEST_P(JobQueueLinesTest, WhatAPageCostsDoesNotDependOnHowManyLinesThereAre) {
  Must(Take{kFewShard, kEpoch});
  FillLines(kFewShard, kFew);
  FillLines(kShard, kMany);
  const auto cost = [&](const std::function<void(ShardId)>& what) {
    const Micros few = Fastest([&] { what(kFewShard); }), many = Fastest([&] { what(kShard); });
    EXPECT_LT(many, 8 * few + 20ms) << few.count() << " us with few lines";  // and a turn of whoever else runs
  };
  cost([&](ShardId shard) { EXPECT_GE(Must(ListKept{shard, kEpoch, "1", {}, 100}).listed.size(), 100U); });
  cost([&](ShardId shard) { EXPECT_TRUE(Must(ListKept{shard, kEpoch, "2", {}, 100}).listed.empty()); });
  cost([&](ShardId shard) { Must(Remove{shard, kEpoch, {}, true, Ids({1'000'000}), {}, 100}); });
  cost([&](ShardId shard) { Must(Remove{shard, kEpoch, {}, true, Ids({1'000'000}), {}, 100, "2"}); });
  if (GetParam() == "redis") cost([&](ShardId shard) { Must(Take{shard, kEpoch}); });
}

TEST_P(JobQueueLinesTest, AllOfManyLinesAreListedAndFound) {
  constexpr std::uint64_t kLines = 2500;
  FillLines(kShard, kLines, "1");
  Must(Enqueue{kShard, kEpoch, {Entry(900'000, KeptLine("12", "x")), Entry(900'001, KeptLine("0", "x"))}});
  std::set<JobId> all;
  std::size_t steps = 0;
  std::string cursor;
  do {
    QueueReply reply = Must(ListKept{kShard, kEpoch, "1", std::move(cursor), 130});
    EXPECT_LE(reply.listed.size(), 130U);
    for (const QueueEntry& entry : reply.listed) {
      EXPECT_EQ(OrgOfLine(entry.line), "1");
      all.insert(entry.id);
    }
    if (++steps % 3 == 0 && !all.empty()) {  // a line goes, and the one that the cursor names may be it
      for (std::uint64_t n = 0; n < 10; ++n) {
        const std::uint64_t i = (steps * 97 + n * 13) % kLines;
        if (all.contains(MakeId(i))) Must(Claim{kShard, kEpoch, KeptLine("1", fmt::format("customer-{}", i)), 1});
      }
    }
    cursor = std::move(reply.cursor);
  } while (!cursor.empty() && steps < 1000);
  EXPECT_EQ(all.size(), kLines);
  std::set<JobId> removed;
  Remove op{kShard, kEpoch, {}, true, {MakeId(2001), MakeId(2499), MakeId(900'000), MakeId(900'001)}, {}, 200};
  do {
    QueueReply reply = Must(op);
    for (const QueueEntry& entry : reply.claimed) removed.insert(entry.id);
    op.cursor = std::move(reply.cursor);
  } while (!op.cursor.empty());
  EXPECT_TRUE(removed.contains(MakeId(900'000)) && removed.contains(MakeId(900'001))) << "of every org";
}

TEST_P(JobQueueLinesTest, ManyOrdinaryLinesGoInPages) {
  for (std::uint64_t i = 0; i < 3000; i += 1000) {
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t k = i; k < i + 1000; ++k) op.entries.push_back(Entry(k, fmt::format("line-{}", k)));
    Must(std::move(op));
  }
  Must(Enqueue{kShard, kEpoch, {Entry(5000, KeptLine("1", "k"))}});
  EXPECT_EQ(TakeAll(kShard, Epoch{8}), (std::map<std::string, std::uint32_t>{{KeptLine("1", "k"), 1}}));
  ExpectDepth(1, 0, 0);
}

TEST_P(JobQueueLinesTest, ATakeGoesOnOnlyOnTheStoreItBeganWith) {
  FillLines(kShard, 3000);
  const std::string cursor = Must(Take{kShard, Epoch{8}}).cursor;
  ASSERT_FALSE(cursor.empty());
  EXPECT_EQ(CodeOf(Take{kShard, Epoch{9}, cursor}), ErrorCode::kWiped) << "another epoch begins from the beginning";
  EXPECT_FALSE(Must(Take{kShard, Epoch{8}, cursor}).kept.empty());
  EXPECT_FALSE(Must(Take{kShard, Epoch{9}}).cursor.empty());
  EXPECT_EQ(CodeOf(Take{kShard, Epoch{8}, cursor}), ErrorCode::kStale);
  WipeBehindItsBack();
  EXPECT_EQ(CodeOf(Take{kShard, Epoch{9}, cursor}), ErrorCode::kWiped);
}

// As the queue holds an entry that waits alone.
TEST_P(JobQueueLinesTest, ASetOfLinesThatAnOlderBrokerWroteIsRead) {
  if (GetParam() != "redis") GTEST_SKIP() << "Redis only";
  constexpr std::uint64_t kLines = 2500;
  redis::Connection direct = Direct();
  const std::string tag = fmt::format("{{{}:{}}}", options_.prefix, kShard.value());
  for (std::uint64_t i = 0; i < kLines; ++i) {
    const std::string line = i % 5 == 0 ? fmt::format("line-{}", i) : KeptLine("1", fmt::format("customer-{}", i));
    direct.Append({"RPUSH", fmt::format("{}:l:{}", tag, line), std::string{MakeId(i).AsBytes()} + "body"});
    direct.Append({"SADD", tag + ":lines", line});
  }
  direct.Append({"SADD", tag + ":lines", KeptLine("1", "gone")});
  for (const auto& reply : direct.Flush(clock_.Now() + 10s)) ASSERT_TRUE(reply);
  const auto lines = TakeAll(kShard, Epoch{8});
  EXPECT_EQ(lines.size(), kLines * 4 / 5);
  for (const auto& [line, count] : lines) EXPECT_EQ(count, 1U) << line;
  ExpectDepth(kLines * 4 / 5, 0, 0);
  EXPECT_EQ(TakeAll(kShard, Epoch{9}), lines) << "and again";
  EXPECT_EQ(Must(Claim{kShard, Epoch{9}, KeptLine("1", "customer-1"), 5}).claimed,
            (std::vector<QueueEntry>{Entry(1, KeptLine("1", "customer-1"))}));
}

// 32 small ones behind many that are large once they are unpacked.
TEST_P(JobQueueLinesTest, APageIsBoundedWhateverItsElementsHold) {
  const std::string line = KeptLine("1", "k");
  constexpr std::uint64_t kBlocks = 200, kOfOne = 128, kMax = 400;
  for (std::uint64_t i = 0; i < kBlocks; i += 8) {
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t k = i * kOfOne; k < (i + 8) * kOfOne; ++k) op.entries.push_back(Entry(k, line, "b"));
    Must(std::move(op));
  }
  for (std::uint64_t k = 0; k < 32; ++k) Must(Enqueue{kShard, kEpoch, {Entry(100'000 + k, line, "b")}});
  std::set<JobId> all;
  std::string cursor;
  do {
    QueueReply reply = Must(ListKept{kShard, kEpoch, "1", std::move(cursor), kMax});
    ASSERT_LE(reply.listed.size(), 2 * kMax);
    for (const QueueEntry& entry : reply.listed) all.insert(entry.id);
    cursor = std::move(reply.cursor);
  } while (!cursor.empty());
  EXPECT_EQ(all.size(), kBlocks * kOfOne + 32);
  std::vector<JobId> some;
  for (std::uint64_t k = 3; k < kBlocks * kOfOne; k += 5) some.push_back(MakeId(k));
  Remove op{kShard, kEpoch, {}, true, some, {}, kMax};
  std::vector<JobId> removed;
  std::uint64_t lost = 0;
  do {
    QueueReply reply = Must(op);
    if (GetParam() == "redis") {
      ASSERT_LE(reply.claimed.size(), 2 * kMax);
    }
    for (const QueueEntry& entry : reply.claimed) {
      EXPECT_EQ(entry.line, line);
      removed.push_back(entry.id);
    }
    for (const LineCount& count : reply.lost) lost += count.count;
    op.cursor = std::move(reply.cursor);
  } while (!op.cursor.empty());
  std::ranges::sort(removed);
  EXPECT_EQ(removed, some);
  EXPECT_EQ(lost, some.size());
  ExpectDepth(kBlocks * kOfOne + 32 - some.size(), 0, some.size());
}

// By a client that gets pages and sends cursors over the wire.
TEST_P(JobQueueLinesTest, ALineOfTheLongestNameIsListed) {
  const std::string line = LongestLine("1");
  constexpr std::uint64_t kJobs = 4500;
  for (std::uint64_t i = 0; i < kJobs; i += 500) {
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t k = i; k < i + 500; ++k) op.entries.push_back(Entry(k, line));
    Must(std::move(op));
  }
  std::set<JobId> all;
  std::size_t steps = 0;
  wire::ListKept question{.request = 1, .org = OrgId{1}, .queue = {}, .kind = {}, .cursor = {}};
  do {
    const auto asked = wire::Decode(wire::Encode(question));
    ASSERT_TRUE(asked) << asked.error().message;
    const QueueReply reply = Must(ListKept{kShard, kEpoch, "1", std::get<wire::ListKept>(*asked).cursor, 4000});
    wire::ListKeptReply page{.request = 1, .jobs = {}, .cursor = reply.cursor};
    for (const QueueEntry& entry : reply.listed) page.jobs.push_back(entry.id);
    const auto answer = wire::Decode(wire::Encode(page));
    ASSERT_TRUE(answer) << answer.error().message;
    all.insert(page.jobs.begin(), page.jobs.end());
    question.cursor = std::get<wire::ListKeptReply>(*answer).cursor;
  } while (!question.cursor.empty() && ++steps < 100);
  EXPECT_EQ(all.size(), kJobs);
  EXPECT_GE(steps, 1U) << "no cursor was needed";
}

INSTANTIATE_TEST_SUITE_P(All, JobQueueLinesTest, ::testing::Values("sqlite", "redis"), [](const auto& p) { return p.param; });

// What the server counts is this test's alone.
class RedisQueueCostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!RedisServer::Installed()) GTEST_SKIP() << "no redis-server";
    ASSERT_TRUE(server_.Start());
    auto queue = RedisQueue::Open({.endpoint = server_.endpoint(), .operation_timeout = Millis{60'000}}, clock_.Now() + 5s);
    ASSERT_TRUE(queue) << queue.error().message;
    queue_ = std::move(*queue);
    Must(Take{kShard, kEpoch});
  }
  QueueReply Must(QueueOp op) {
    const QueueOp ops[] = {std::move(op)};
    auto reply = std::move(queue_->Execute(ops).front());
    EXPECT_TRUE(reply) << reply.error().message;
    return reply ? *reply : QueueReply{};
  }
  std::uint64_t Info(const std::string& section, const std::string& field) {
    const std::string text = server_.Said({"INFO", section});
    const auto at = text.find("\n" + field + ":");
    EXPECT_NE(at, std::string::npos) << field;
    return at == std::string::npos ? 0 : std::stoull(text.substr(at + field.size() + 2));
  }
  // 32 small entries behind large ones.
  void FillLarge(const std::string& line, std::uint64_t large) {
    for (std::uint64_t k = 0; k < large; k += 10) {
      Enqueue op{kShard, kEpoch, {}};
      for (std::uint64_t i = k; i < k + 10; ++i) op.entries.push_back(Entry(i, line, std::string(kPayloadBytesMax, 'x')));
      Must(std::move(op));
    }
    for (std::uint64_t k = 0; k < 32; ++k) Must(Enqueue{kShard, kEpoch, {Entry(10'000 + k, line)}});
  }

  SystemClock clock_;
  RedisServer server_{"no"};
  std::unique_ptr<RedisQueue> queue_;
};

TEST_F(RedisQueueCostTest, LargeElementsDoNotFillTheServersMemory) {
  constexpr std::uint64_t kLarge = 150;
  const std::string line = KeptLine("1", "k");
  FillLarge(line, kLarge);
  const std::uint64_t before = std::max(Info("memory", "used_memory"), Info("memory", "used_memory_peak"));
  std::set<JobId> listed;
  ListKept list{kShard, kEpoch, "1", {}, 4000};
  do {
    QueueReply reply = Must(list);
    for (const QueueEntry& entry : reply.listed) listed.insert(entry.id);
    list.cursor = std::move(reply.cursor);
  } while (!list.cursor.empty());
  EXPECT_EQ(listed.size(), kLarge + 32);
  Remove remove{kShard, kEpoch, {}, true, {MakeId(999'999)}, {}, 4000};
  do {
    remove.cursor = Must(remove).cursor;
  } while (!remove.cursor.empty());
  EXPECT_LT(Info("memory", "used_memory_peak"), before + (48u << 20));
}

TEST_F(RedisQueueCostTest, AnAnswerNamesALineOnce) {
  const std::string line = LongestLine("1");
  std::vector<JobId> ids;
  for (std::uint64_t i = 0; i < 4000; i += 500) {
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t k = i; k < i + 500; ++k) op.entries.push_back(Entry(k, line));
    for (std::uint64_t k = i; k < i + 500; ++k) ids.push_back(MakeId(k));
    Must(std::move(op));
  }
  const std::uint64_t before = Info("stats", "total_net_output_bytes");
  EXPECT_EQ(Must(ListKept{kShard, kEpoch, "1", {}, 5000}).listed.size(), ids.size());
  const QueueReply removed = Must(Remove{kShard, kEpoch, {}, true, ids, {}, 5000});
  EXPECT_EQ(removed.claimed.size(), ids.size());
  for (const QueueEntry& entry : removed.claimed) ASSERT_EQ(entry.line, line);
  EXPECT_LT(Info("stats", "total_net_output_bytes") - before, 1u << 20) << "of " << 2 * ids.size() << " entries";
}

// What takes a server's time cannot be interrupted: nobody else is answered meanwhile.
TEST_F(RedisQueueCostTest, NoRunOfAScriptLooksAtAllLines) {
  constexpr std::uint64_t kLines = 60'000;
  for (std::uint64_t i = 0; i < kLines; i += 1000) {
    Enqueue op{kShard, kEpoch, {}};
    for (std::uint64_t k = i; k < i + 1000; ++k) op.entries.push_back(Entry(k, KeptLine("1", fmt::format("customer-{}", k))));
    Must(std::move(op));
  }
  server_.Said({"CONFIG", "RESETSTAT"});
  Take take{kShard, kEpoch};
  std::uint64_t lines = 0, runs = 0;
  do {
    QueueReply reply = Must(take);
    lines += reply.kept.size();
    ++runs;
    take.cursor = std::move(reply.cursor);
  } while (!take.cursor.empty());
  EXPECT_EQ(lines, kLines);
  for (int i = 0; i < 10; ++i, ++runs) Must(ListKept{kShard, kEpoch, "1", {}, 500});
  for (int i = 0; i < 10; ++i, ++runs) Must(Remove{kShard, kEpoch, {}, true, {MakeId(999'999)}, {}, 500});
  const std::string stats = server_.Said({"INFO", "commandstats"});
  const auto calls = [&](const std::string& command) {
    const auto at = stats.find("cmdstat_" + command + ":calls=");
    return at == std::string::npos ? 0 : std::stoull(stats.substr(at + command.size() + 15));
  };
  EXPECT_EQ(calls("evalsha"), runs);
  EXPECT_EQ(calls("smembers"), 1U) << "only of what is in flight, once";
  EXPECT_LE(calls("llen"), kLines + 1000);
  EXPECT_LE(calls("lrange"), 20 * 600U);
  EXPECT_LE(calls("zrangebylex"), kLines / 100 + runs + 20 * 10);
}

}  // namespace
}  // namespace millrace::testing
