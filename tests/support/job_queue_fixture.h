// A queue of each kind to test against: SQLite, and Redis (MILLRACE_TEST_REDIS) under a prefix of the test's own.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/drivers/redis.h"
#include "common/drivers/sqlite.h"
#include "common/queue/job_queue.h"
#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"

namespace millrace::testing {

using namespace queue_op;
inline constexpr ShardId kShard{3};
inline constexpr Epoch kEpoch{7};

inline JobId MakeId(std::uint64_t n) {
  JobId id;
  for (std::size_t i = 0; i < 8; ++i) id.uuid.bytes[15 - i] = static_cast<std::uint8_t>(n >> (8 * i));
  return id;
}
inline QueueEntry Entry(std::uint64_t n, std::string line = "a", std::string body = "body") {
  return {.id = MakeId(n), .line = std::move(line), .body = std::move(body), .run_at = {}, .expires_at = {}};
}
inline QueueEntry Due(std::uint64_t n, std::int64_t us, std::string line = "a") {
  QueueEntry entry = Entry(n, std::move(line));
  entry.run_at = FromUnixMicros(us);
  return entry;
}

inline const std::string kKept = std::string(1, kKeptLineMark) + "q";

inline QueueEntry Expiring(QueueEntry entry, std::int64_t us) {
  entry.expires_at = FromUnixMicros(us);
  return entry;
}
inline std::vector<JobId> IdsOf(const QueueReply& reply) {
  std::vector<JobId> ids;
  for (const QueueEntry& entry : reply.claimed) ids.push_back(entry.id);
  std::ranges::sort(ids);
  return ids;
}

class JobQueueTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    static int counter = 0;
    const std::string unique = fmt::format("t{}_{}", ::getpid(), ++counter);
    if (GetParam() == "redis") {
      const char* endpoint = std::getenv("MILLRACE_TEST_REDIS");
      if (endpoint == nullptr) {
        if (std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set";
        GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: no Redis to test against";
      }
      options_ = {.endpoint = endpoint, .prefix = unique};
    } else {
      path_ = std::filesystem::temp_directory_path() / ("millrace_queue_" + unique + ".db");
    }
    queue_ = Open();
    Must(Take{kShard, kEpoch});
  }
  void TearDown() override {
    queue_.reset();
    if (!path_.empty())
      for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path_.string() + suffix);
    if (!options_.prefix.empty() && !options_.endpoint.empty()) WipeBehindItsBack();
  }
  std::unique_ptr<JobQueue> Open() {
    if (path_.empty()) {
      auto queue = RedisQueue::Open(options_, clock_.Now() + 5s);
      EXPECT_TRUE(queue) << queue.error().message;
      return std::move(*queue);
    }
    auto queue = OpenSqliteQueue({.path = path_});
    EXPECT_TRUE(queue) << queue.error().message;
    return std::move(*queue);
  }
  redis::Connection Direct() {
    return *redis::Connection::Connect(*redis::ParseEndpoint(options_.endpoint), {}, clock_.Now() + 5s);
  }
  void WipeBehindItsBack() {
    if (!path_.empty()) {
      auto db = *sqlite::Database::Open(path_, {});
      ASSERT_TRUE(db.Exec(
          "delete from shard; delete from ready; delete from line; delete from due; delete from flight; delete from kept"));
      return;
    }
    redis::Connection direct = Direct();
    const auto keys = direct.Call({"KEYS", "{" + options_.prefix + ":*"}, clock_.Now() + 5s);
    ASSERT_TRUE(keys);
    for (const redis::Reply& key : keys->elements) ASSERT_TRUE(direct.Call({"DEL", key.text}, clock_.Now() + 5s));
  }
  Result<QueueReply> Do(QueueOp op) {
    const QueueOp ops[] = {std::move(op)};
    return std::move(queue_->Execute(ops).front());
  }
  QueueReply Must(QueueOp op) {
    auto reply = Do(std::move(op));
    EXPECT_TRUE(reply) << reply.error().message;
    return reply ? *reply : QueueReply{};
  }
  ErrorCode CodeOf(QueueOp op) {
    const auto reply = Do(std::move(op));
    EXPECT_FALSE(reply) << "was accepted";
    return reply ? ErrorCode::kCancelled : reply.error().code;
  }
  std::vector<JobId> ClaimIds(std::uint32_t max, std::string line = "a") {
    std::vector<JobId> ids;
    for (const QueueEntry& e : Must(Claim{kShard, kEpoch, std::move(line), max}).claimed) ids.push_back(e.id);
    return ids;
  }
  void ExpectDepth(std::uint64_t ready, std::uint64_t scheduled, std::uint64_t in_flight, ShardId shard = kShard) {
    const auto depth = queue_->Depth(shard);
    ASSERT_TRUE(depth) << depth.error().message;
    EXPECT_EQ(std::tuple(depth->ready, depth->scheduled, depth->in_flight), std::tuple(ready, scheduled, in_flight));
  }
  std::vector<JobId> Ids(std::initializer_list<std::uint64_t> numbers) {
    std::vector<JobId> ids;
    for (const auto n : numbers) ids.push_back(MakeId(n));
    return ids;
  }

  SystemClock clock_;
  RedisQueueOptions options_{.endpoint = {}, .prefix = {}};
  std::filesystem::path path_;
  std::unique_ptr<JobQueue> queue_;
};

}  // namespace millrace::testing
