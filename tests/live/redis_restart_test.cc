// The Redis queue while its server dies, freezes, is emptied, runs out of memory or asks for a password. Each test runs a
// redis-server of its own on a free port of 127.0.0.1; nothing is shared with MILLRACE_TEST_REDIS.
#include <gtest/gtest.h>
#include <poll.h>

#include <barrier>
#include <cstdlib>
#include <set>
#include <thread>

#include "common/drivers/redis.h"
#include "common/queue/redis_queue.h"
#include "common/queue/redis_queue_hot.h"
#include "tests/support/redis_server.h"

namespace millrace {
namespace {

using namespace queue_op;
constexpr ShardId kShard{3};

JobId MakeId(std::uint64_t n) {
  JobId id;
  for (std::size_t i = 0; i < 8; ++i) id.uuid.bytes[15 - i] = static_cast<std::uint8_t>(n >> (8 * i));
  return id;
}
QueueEntry Entry(std::uint64_t n, std::string body = "body") {
  return {.id = MakeId(n), .line = "a", .body = std::move(body), .run_at = {}, .expires_at = {}};
}

class RedisRestartTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::RedisServer::Installed()) {
      if (std::getenv("CI") != nullptr) FAIL() << "there is no redis-server on the path";
      GTEST_SKIP() << "there is no redis-server on the path: run ops/setup";
    }
    ASSERT_TRUE(server_->Start());
  }
  std::unique_ptr<RedisQueue> Open(Millis timeout = 5000ms, std::string endpoint = {}) {
    auto queue = RedisQueue::Open(
        {.endpoint = endpoint.empty() ? server_->endpoint() : endpoint, .prefix = "t", .operation_timeout = timeout},
        clock_.Now() + 5s);
    EXPECT_TRUE(queue) << queue.error().message;
    return queue ? std::move(*queue) : nullptr;
  }
  static Result<QueueReply> Do(JobQueue& queue, QueueOp op) {
    const QueueOp ops[] = {std::move(op)};
    return std::move(queue.Execute(ops).front());
  }
  static QueueReply Must(JobQueue& queue, QueueOp op) {
    auto reply = Do(queue, std::move(op));
    EXPECT_TRUE(reply) << reply.error().message;
    return reply.value_or(QueueReply{});
  }
  static Error ErrorOf(JobQueue& queue, QueueOp op) {
    const auto reply = Do(queue, std::move(op));
    EXPECT_FALSE(reply) << "was accepted";
    return reply ? Error{ErrorCode::kCancelled, ""} : reply.error();
  }
  static std::size_t Ready(JobQueue& queue) {
    const auto depth = queue.Depth(kShard);
    EXPECT_TRUE(depth) << depth.error().message;
    return depth ? depth->ready : 0;
  }

  SystemClock clock_;
  // `always`: under `everysec` Redis holds writes back for up to 2 s while a background fsync runs, although it has answered
  // them, so that even a killed process may lose them.
  const std::unique_ptr<testing::RedisServer> server_ = std::make_unique<testing::RedisServer>("always");
};

TEST_F(RedisRestartTest, AKilledServerIsWipedUntilTheShardIsTakenAnew) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  Must(*queue, Enqueue{kShard, Epoch{7}, {Entry(1), Entry(2), Entry(3)}});
  const std::string old_run = queue->Describe().run_id;
  server_->Kill();
  EXPECT_EQ(ErrorOf(*queue, Claim{kShard, Epoch{7}, "a", 1}).code, ErrorCode::kUnavailable);
  EXPECT_EQ(ErrorOf(*queue, Claim{kShard, Epoch{7}, "a", 1}).code, ErrorCode::kUnavailable)
      << "nobody listens: nothing was applied";
  ASSERT_TRUE(server_->Start());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ErrorOf(*queue, Claim{kShard, Epoch{7}, "a", 1}).code, ErrorCode::kWiped);
    EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(4)}}).code, ErrorCode::kWiped);
    EXPECT_EQ(ErrorOf(*queue, Finish{kShard, Epoch{7}, {MakeId(1)}}).code, ErrorCode::kWiped);
    EXPECT_EQ(ErrorOf(*queue, Requeue{kShard, Epoch{7}, {Entry(1)}}).code, ErrorCode::kWiped);
    EXPECT_EQ(ErrorOf(*queue, Promote{kShard, Epoch{7}, FromUnixMicros(0), 1}).code, ErrorCode::kWiped);
  }
  EXPECT_NE(queue->Describe().run_id, old_run);
  EXPECT_EQ(Ready(*queue), 3u)
      << "the append-only file brought everything back: with appendfsync always a killed process loses nothing";

  const QueueOp ops[] = {Claim{kShard, Epoch{8}, "a", 5}, Take{kShard, Epoch{8}}, Enqueue{kShard, Epoch{8}, {Entry(9)}},
                         Claim{kShard, Epoch{8}, "a", 5}};
  const auto results = queue->Execute(ops);
  ASSERT_FALSE(results[0]);
  EXPECT_EQ(results[0].error().code, ErrorCode::kWiped);
  ASSERT_TRUE(results[1] && results[2] && results[3]);
  EXPECT_EQ(results[3]->claimed, std::vector{Entry(9)});
}

TEST_F(RedisRestartTest, TheFirstRingAfterARestartIsHeard) {
  const RedisQueueOptions options{.endpoint = server_->endpoint(), .prefix = "t", .operation_timeout = 5000ms};
  auto ringing = OpenRedisInbox(options);
  auto waiting = OpenRedisInbox(options);
  ASSERT_TRUE(ringing && waiting);
  ASSERT_TRUE((*ringing)->Ring(kShard));
  const ShardId shards[] = {kShard};
  ASSERT_EQ(*(*waiting)->Wait(shards, 1000ms), std::vector{kShard});
  server_->Kill();
  EXPECT_FALSE((*ringing)->Ring(kShard)) << "nobody listens";
  ASSERT_TRUE(server_->Start());
  EXPECT_TRUE((*ringing)->Ring(kShard));
  server_->Kill();
  ASSERT_TRUE(server_->Start());  // the connection broke and the server is back before anyone looked
  const auto rung = (*ringing)->Ring(kShard);
  EXPECT_TRUE(rung) << rung.error().message;
  auto heard = OpenRedisInbox(options);
  EXPECT_EQ(*(*heard)->Wait(shards, 1000ms), std::vector{kShard});
}

TEST_F(RedisRestartTest, AServerThatLostItsFileIsWipedForEveryOwner) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  EXPECT_EQ(server_->Said({"FLUSHALL"}), "OK");
  server_->Kill();
  ASSERT_TRUE(server_->Start());
  auto fresh = Open();  // never took the shard: only the missing epoch tells it
  EXPECT_EQ(ErrorOf(*fresh, Claim{kShard, Epoch{7}, "a", 1}).code, ErrorCode::kWiped);
  Must(*fresh, Take{kShard, Epoch{8}});
}

TEST_F(RedisRestartTest, AnEmptiedServerIsWipedForEveryOperation) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  Must(*queue, Enqueue{kShard, Epoch{7}, {Entry(1)}});
  EXPECT_EQ(server_->Said({"FLUSHALL"}), "OK");
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(2)}}).code, ErrorCode::kWiped);
  EXPECT_EQ(ErrorOf(*queue, Claim{kShard, Epoch{7}, "a", 1}).code, ErrorCode::kWiped);
  EXPECT_EQ(ErrorOf(*queue, Finish{kShard, Epoch{7}, {MakeId(1)}}).code, ErrorCode::kWiped);
  EXPECT_EQ(ErrorOf(*queue, Requeue{kShard, Epoch{7}, {Entry(1)}}).code, ErrorCode::kWiped);
  EXPECT_EQ(ErrorOf(*queue, Promote{kShard, Epoch{7}, FromUnixMicros(1), 1}).code, ErrorCode::kWiped);
  EXPECT_EQ(Ready(*queue), 0u) << "nothing that was refused left a trace";
  Must(*queue, Take{kShard, Epoch{8}});
  Must(*queue, Enqueue{kShard, Epoch{8}, {Entry(3)}});
  EXPECT_EQ(Must(*queue, Claim{kShard, Epoch{8}, "a", 5}).claimed, std::vector{Entry(3)});
}

TEST_F(RedisRestartTest, AFrozenServerIsGivenUpInTimeAndNothingComesTwice) {
  auto queue = Open(300ms);
  Must(*queue, Take{kShard, Epoch{7}});
  server_->Stop();
  MonoTime start = clock_.Now();
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(1)}}).code, ErrorCode::kMaybeApplied);
  EXPECT_LT(clock_.Now() - start, 6s);
  start = clock_.Now();
  const ErrorCode second = ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(2)}}).code;  // a new connection that nobody answers
  EXPECT_TRUE(second == ErrorCode::kUnavailable || second == ErrorCode::kTimedOut) << Name(second);
  EXPECT_LT(clock_.Now() - start, 6s);
  server_->Continue();
  // What the owner had ready before it heard of that: made for a state that may not be the one that is there.
  ErrorCode third = ErrorOf(*queue, Requeue{kShard, Epoch{7}, {Entry(1)}}).code;
  while (third == ErrorCode::kUnavailable || third == ErrorCode::kTimedOut)
    third = ErrorOf(*queue, Requeue{kShard, Epoch{7}, {Entry(1)}}).code;
  EXPECT_EQ(third, ErrorCode::kWiped);

  auto after = Open();
  std::vector<QueueEntry> claimed = Must(*after, Claim{kShard, Epoch{7}, "a", 10}).claimed;
  ::poll(nullptr, 0, 100);
  for (const QueueEntry& late : Must(*after, Claim{kShard, Epoch{7}, "a", 10}).claimed) claimed.push_back(late);
  EXPECT_LE(claimed.size(), 1u);
  for (const QueueEntry& entry : claimed) EXPECT_EQ(entry, Entry(1)) << "an operation that was kUnavailable was applied";
}

TEST_F(RedisRestartTest, WhatWasSentToAFrozenServerIsFencedByTheNextOwner) {
  auto queue = Open(300ms);
  auto next = Open(10'000ms);
  Must(*queue, Take{kShard, Epoch{7}});
  server_->Stop();
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(1)}}).code, ErrorCode::kMaybeApplied);
  server_->Continue();
  Must(*next, Take{kShard, Epoch{8}});
  Must(*next, Enqueue{kShard, Epoch{8}, {Entry(1)}});  // as the contract says: taken anew and written again
  ::poll(nullptr, 0, 100);
  EXPECT_EQ(Must(*next, Claim{kShard, Epoch{8}, "a", 10}).claimed, std::vector{Entry(1)});
}

TEST_F(RedisRestartTest, APipelineThatDoesNotFitTellsWhatCannotHaveBeenApplied) {
  auto queue = Open(500ms);
  Must(*queue, Take{kShard, Epoch{7}});
  std::vector<QueueOp> ops;
  for (std::uint64_t i = 1; i <= 48; ++i) ops.emplace_back(Enqueue{kShard, Epoch{7}, {Entry(i, std::string(1u << 20, 'x'))}});
  server_->Stop();
  const auto results = queue->Execute(ops);
  server_->Continue();
  std::set<JobId> unknown, not_sent;
  for (std::size_t i = 0; i < results.size(); ++i) {
    ASSERT_FALSE(results[i]);
    const ErrorCode code = results[i].error().code;
    ASSERT_TRUE(code == ErrorCode::kMaybeApplied || code == ErrorCode::kTimedOut) << Name(code);
    (code == ErrorCode::kMaybeApplied ? unknown : not_sent).insert(MakeId(i + 1));
  }
  EXPECT_FALSE(unknown.empty());
  EXPECT_FALSE(not_sent.empty());
  auto after = Open();
  ::poll(nullptr, 0, 200);
  std::set<JobId> applied;
  while (true) {
    const auto claimed = Must(*after, Claim{kShard, Epoch{7}, "a", 10}).claimed;
    if (claimed.empty()) break;
    for (const QueueEntry& entry : claimed) {
      EXPECT_TRUE(applied.insert(entry.id).second) << "twice: " << entry.id.ToString();
      EXPECT_TRUE(unknown.contains(entry.id)) << "applied but reported as not sent: " << entry.id.ToString();
    }
  }
}

TEST_F(RedisRestartTest, OutOfMemoryRefusesNewWorkAndStillFinishesTheOld) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  QueueEntry due = Entry(4);
  due.run_at = FromUnixMicros(10);
  QueueEntry late = Entry(7), named = Entry(8);
  late.expires_at = FromUnixMicros(20);
  late.line = named.line = "b";
  Must(*queue, Enqueue{kShard, Epoch{7}, {Entry(1), Entry(2), Entry(3), due, late, named}});
  const std::string kept_line = std::string(1, kKeptLineMark) + "k";
  Enqueue kept{kShard, Epoch{7}, {}};  // one block
  for (std::uint64_t n = 10; n < 30; ++n) kept.entries.push_back(Entry(n)), kept.entries.back().line = kept_line;
  Must(*queue, kept);
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "maxmemory", "1000"}), "OK");
  const Error refused = ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {Entry(5)}});
  EXPECT_EQ(refused.code, ErrorCode::kLimit);
  EXPECT_NE(refused.message.find("OOM command not allowed"), std::string::npos) << refused.message;
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {}, {Entry(6)}}).code, ErrorCode::kLimit);
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {due}, {Entry(6)}}).code, ErrorCode::kLimit);
  Enqueue passed{kShard, Epoch{7}, {Entry(5)}, std::exchange(kept.entries, {})};
  for (QueueEntry& entry : passed.passed) entry.id.uuid.bytes[0] = 1;
  EXPECT_EQ(ErrorOf(*queue, passed).code, ErrorCode::kLimit);
  // One that is in flight already, refused the second time: the first entry goes on counting.
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "maxmemory", "0"}), "OK");
  Enqueue flying{kShard, Epoch{7}, {}, passed.passed};
  for (QueueEntry& entry : flying.passed) entry.id.uuid.bytes[0] = 2;
  Must(*queue, flying);
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "maxmemory", "1000"}), "OK");
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {}, {flying.passed[0]}}).code, ErrorCode::kLimit);
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{7}, {}, flying.passed}).code, ErrorCode::kLimit);
  std::vector<JobId> landed;
  for (std::size_t i = 1; i < flying.passed.size(); ++i) landed.push_back(flying.passed[i].id);
  Must(*queue, Finish{kShard, Epoch{7}, landed});
  EXPECT_EQ(queue->Depth(kShard)->in_flight, 1u);
  Must(*queue, Finish{kShard, Epoch{7}, {flying.passed[0].id}});
  EXPECT_EQ(queue->Depth(kShard)->in_flight, 0u);
  EXPECT_EQ(Must(*queue, Claim{kShard, Epoch{7}, "a", 2}).claimed, (std::vector{Entry(1), Entry(2)}));
  Must(*queue, Finish{kShard, Epoch{7}, {MakeId(1)}});
  EXPECT_EQ(Must(*queue, Claim{kShard, Epoch{7}, kept_line, 12}).claimed.size(), 12u);
  Must(*queue, Finish{kShard, Epoch{7}, {MakeId(10), MakeId(11), MakeId(20)}});
  Must(*queue, Requeue{kShard, Epoch{7}, {Entry(2)}});
  EXPECT_EQ(Must(*queue, ExpireDue{kShard, Epoch{7}, FromUnixMicros(30), 5}).claimed.size(), 1u);
  Remove remove{.shard = kShard, .epoch = Epoch{7}, .lines = {"b"}, .ids = {named.id}, .cursor = {}, .max = 100};
  EXPECT_EQ(Must(*queue, remove).claimed, (std::vector{named}));
  Must(*queue, Finish{kShard, Epoch{7}, {late.id, named.id}});
  EXPECT_EQ(Must(*queue, Promote{kShard, Epoch{7}, FromUnixMicros(10), 5}).promoted, (std::vector<LineCount>{{"a", 1}}));
  auto depth = *queue->Depth(kShard);
  EXPECT_EQ(std::tuple(depth.ready, depth.scheduled, depth.in_flight), std::tuple(3u + 8u, 0u, 9u))
      << "a refused operation did half of its work";
  EXPECT_EQ(Must(*queue, Claim{kShard, Epoch{7}, "a", 9}).claimed, (std::vector{Entry(2), Entry(3), Entry(4)}));
  const QueueReply taken = Must(*queue, Take{kShard, Epoch{8}});
  EXPECT_EQ(taken.kept, (std::vector<LineCount>{{kept_line, 8}}));
  EXPECT_EQ(taken.claimed.size(), 9u);
  EXPECT_EQ(ErrorOf(*queue, Enqueue{kShard, Epoch{8}, {Entry(5)}}).code, ErrorCode::kLimit);
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "maxmemory", "0"}), "OK");
  Must(*queue, Enqueue{kShard, Epoch{8}, {Entry(5)}});
}

TEST_F(RedisRestartTest, SaysHowMuchItHoldsAndMayHold) {
  auto queue = Open();
  const auto before = queue->Memory();
  ASSERT_TRUE(before) << before.error().message;
  EXPECT_GT(before->used, 0u);
  EXPECT_EQ(before->max, 0u) << "no limit";
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "maxmemory", "123456789"}), "OK");
  Must(*queue, Take{kShard, Epoch{7}});
  Must(*queue, Enqueue{kShard, Epoch{7}, {Entry(1, std::string(1u << 20, 'x'))}});
  const auto after = queue->Memory();
  ASSERT_TRUE(after) << after.error().message;
  EXPECT_EQ(after->max, 123'456'789u);
  EXPECT_GT(after->used, before->used + (1u << 20));
}

TEST_F(RedisRestartTest, LostScriptsChangeNeitherOrderNorOutcome) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  QueueEntry due = Entry(6), kept = Entry(2);
  due.run_at = FromUnixMicros(50);
  kept.line = std::string(1, kKeptLineMark) + "k";
  std::vector<QueueOp> ops;
  ops.emplace_back(Finish{kShard, Epoch{7}, {MakeId(99)}});
  ops.emplace_back(Enqueue{kShard, Epoch{7}, {Entry(3), Entry(4)}, {Entry(1), kept}});
  ops.emplace_back(Claim{kShard, Epoch{7}, "a", 1});
  ops.emplace_back(Enqueue{kShard, Epoch{7}, {Entry(5), due}});
  ops.emplace_back(Finish{kShard, Epoch{7}, {MakeId(1)}});
  ops.emplace_back(Claim{kShard, Epoch{7}, "a", 5});
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(server_->Said({"SCRIPT", "FLUSH"}), "OK");
    const auto results = queue->Execute(ops);
    for (const auto& result : results) ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(results[2]->claimed, std::vector{Entry(3)});
    EXPECT_EQ(results[5]->claimed, (std::vector{Entry(4), Entry(5)}));
    const auto depth = *queue->Depth(kShard);
    EXPECT_EQ(std::tuple(depth.ready, depth.scheduled, depth.in_flight), std::tuple(0u, 1u, 4u));
    Must(*queue, Finish{kShard, Epoch{7}, {MakeId(2), MakeId(3), MakeId(4), MakeId(5)}});
    Must(*queue, Take{kShard, Epoch{7}});
  }
}

// Whichever script a pipeline misses first, all of them come back: the next one does not run in part.
TEST_F(RedisRestartTest, AfterALostScriptCacheNoPipelineRunsInPart) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  Must(*queue, Enqueue{kShard, Epoch{7}, {Entry(1), Entry(2), Entry(3)}});
  EXPECT_EQ(server_->Said({"SCRIPT", "FLUSH"}), "OK");
  EXPECT_EQ(Must(*queue, Claim{kShard, Epoch{7}, "a", 1}).claimed, std::vector{Entry(1)});
  std::vector<QueueOp> ops;
  ops.emplace_back(Finish{kShard, Epoch{7}, {MakeId(1)}});
  ops.emplace_back(Claim{kShard, Epoch{7}, "a", 1});
  const auto results = queue->Execute(ops);
  ASSERT_TRUE(results[0]) << results[0].error().message;
  ASSERT_TRUE(results[1]) << results[1].error().message;
  EXPECT_EQ(results[1]->claimed, std::vector{Entry(2)});
}

// One of the scripts came back (another client loaded it) while a pipeline ran: what stands before an operation that was
// executed stays undone, and says so.
TEST_F(RedisRestartTest, AScriptThatIsMissingAloneFailsItsOwnOperation) {
  auto queue = Open();
  Must(*queue, Take{kShard, Epoch{7}});
  Must(*queue, Enqueue{kShard, Epoch{7}, {}, {Entry(1)}});
  EXPECT_EQ(server_->Said({"SCRIPT", "FLUSH"}), "OK");
  EXPECT_FALSE(server_->Said({"SCRIPT", "LOAD", kPutScript}).empty());
  std::vector<QueueOp> ops;
  ops.emplace_back(Finish{kShard, Epoch{7}, {MakeId(1)}});
  ops.emplace_back(Enqueue{kShard, Epoch{7}, {}, {Entry(2)}});
  const auto results = queue->Execute(ops);
  ASSERT_FALSE(results[0]);
  EXPECT_EQ(results[0].error().code, ErrorCode::kUnavailable);
  EXPECT_NE(results[0].error().message.find("NOSCRIPT"), std::string::npos) << results[0].error().message;
  ASSERT_TRUE(results[1]);
  auto depth = *queue->Depth(kShard);
  EXPECT_EQ(depth.in_flight, 2u);
  Must(*queue, Finish{kShard, Epoch{7}, {MakeId(1)}});  // nothing was executed after it: loaded again
  EXPECT_EQ(queue->Depth(kShard)->in_flight, 1u);
}

TEST_F(RedisRestartTest, PasswordsAreAskedForAndNeverShown) {
  EXPECT_EQ(server_->Said({"CONFIG", "SET", "requirepass", "s3cret-word"}), "OK");
  const auto open = [&](const std::string& login) {
    return RedisQueue::Open({.endpoint = "redis://" + login + server_->endpoint(), .prefix = "t"}, clock_.Now() + 5s);
  };
  const auto none = open("");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kRejected);
  EXPECT_NE(none.error().message.find("NOAUTH"), std::string::npos) << none.error().message;
  for (const char* login : {":wr0ng-word@", "nobody:wr0ng-word@", "nobody:s3cret-word@"}) {
    const auto wrong = open(login);
    ASSERT_FALSE(wrong) << login;
    EXPECT_EQ(wrong.error().code, ErrorCode::kRejected) << wrong.error().message;
    EXPECT_EQ(wrong.error().message.find("wr0ng"), std::string::npos);
    EXPECT_EQ(wrong.error().message.find("s3cret"), std::string::npos);
  }
  auto right = open(":s3cret-word@");
  ASSERT_TRUE(right) << right.error().message;
  Must(**right, Take{kShard, Epoch{1}});
  EXPECT_EQ(server_->Said({"PING"}).find("s3cret"), std::string::npos);
}

TEST_F(RedisRestartTest, TwoOwnersRaceAndTheHigherEpochHolds) {
  constexpr std::uint32_t kRounds = 300;
  std::barrier start(2), done(2);
  std::array<std::vector<std::string>, 2> wrong;
  std::array<std::uint32_t, 2> won_low{};
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        auto queue = Open(20'000ms);
        for (std::uint32_t round = 0; round < kRounds; ++round) {
          const bool high = (round + t) % 2 == 0;  // who has the higher epoch alternates
          const Epoch mine{2 * round + (high ? 2 : 1)};
          start.arrive_and_wait();
          const auto took = Do(*queue, Take{kShard, mine});
          if (high && !took) wrong[t].push_back(took.error().message);
          if (!high && !took && took.error().code != ErrorCode::kStale) wrong[t].push_back(took.error().message);
          if (!high && took) ++won_low[t];
          done.arrive_and_wait();
          const auto put = Do(*queue, Enqueue{kShard, mine, {Entry(mine.value())}});
          if (high && !put) wrong[t].push_back("the higher epoch was refused: " + put.error().message);
          if (!high && (put || put.error().code != ErrorCode::kStale)) wrong[t].push_back("the lower epoch was accepted");
        }
      });
  }
  EXPECT_EQ(wrong[0], std::vector<std::string>{});
  EXPECT_EQ(wrong[1], std::vector<std::string>{});
  fmt::print("the lower epoch came first in {} of {} races\n", won_low[0] + won_low[1], kRounds);
  auto queue = Open();
  const auto left = Must(*queue, Claim{kShard, Epoch{2 * kRounds}, "a", 10}).claimed;
  EXPECT_EQ(left, std::vector{Entry(2 * kRounds)}) << "each Take empties: only the last winner's entry is there";
}

}  // namespace
}  // namespace millrace
