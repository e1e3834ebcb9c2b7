#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "common/drivers/redis.h"
#include "common/queue/redis_keys.h"
#include "common/queue/redis_queue.h"

namespace millrace {
namespace {

class RedisInbox final : public Inbox {
 public:
  RedisInbox(RedisQueueOptions options, redis::Endpoint endpoint)
      : options_(std::move(options)), endpoint_(std::move(endpoint)), clock_(options_.clock ? *options_.clock : system_) {}

  Result<void> Ring(ShardId shard) override {
    const std::scoped_lock lock(mutex_);
    const MonoTime deadline = clock_.Now() + options_.operation_timeout;
    // A server that restarted since the last ring shows only now: once more, on a new connection. Ringing twice is harmless.
    if (auto rung = RingOnce(shard, deadline); rung || clock_.Now() >= deadline) return rung;
    return RingOnce(shard, deadline);
  }

  Result<std::vector<ShardId>> Wait(std::span<const ShardId> shards, Millis timeout) override {
    std::vector<ShardId> rung;
    if (shards.empty()) return rung;
    const MonoTime deadline = clock_.Now() + std::max(timeout, Millis{0}) + options_.operation_timeout;
    MILLRACE_TRY(Connect(waiting_, deadline));
    std::vector<std::string> keys;
    for (const ShardId shard : shards) keys.push_back(ShardKeys(options_.prefix, shard).inbox);
    for (const std::string& key : keys) waiting_->Append({"LPOP", key});
    std::vector<Result<redis::Reply>> popped = waiting_->Flush(deadline);
    for (std::size_t i = 0; i < popped.size(); ++i) {
      MILLRACE_TRY(popped[i]);
      MILLRACE_TRY_ASSIGN(const auto mark, popped[i]->AsOptionalString("LPOP inbox"));
      if (mark) rung.push_back(shards[i]);
    }
    if (!rung.empty() || timeout <= Millis{0}) return rung;  // BLPOP would take 0 for "for ever"
    std::vector<std::string_view> command{"BLPOP"};
    command.insert(command.end(), keys.begin(), keys.end());
    const std::string seconds = fmt::format("{:.3f}", static_cast<double>(timeout.count()) / 1000);
    command.emplace_back(seconds);
    waiting_->Append(command);
    MILLRACE_TRY_ASSIGN(const redis::Reply reply, std::move(waiting_->Flush(deadline).front()));
    MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> pair, reply.AsArray("BLPOP inbox"));
    for (std::size_t i = 0; i < keys.size() && pair.size() == 2; ++i)
      if (keys[i] == pair[0].text) rung.push_back(shards[i]);
    return rung;
  }

 private:
  Result<void> RingOnce(ShardId shard, MonoTime deadline) {
    MILLRACE_TRY(Connect(ringing_, deadline));
    const std::string key = ShardKeys(options_.prefix, shard).inbox;
    ringing_->Append({"LPUSH", key, "1"});
    ringing_->Append({"LTRIM", key, "0", "0"});
    MILLRACE_TRY_ASSIGN(const redis::Reply reply, std::move(ringing_->Flush(deadline).front()));
    MILLRACE_TRY(reply.AsInteger("LPUSH inbox"));
    return {};
  }

  Result<void> Connect(std::optional<redis::Connection>& connection, MonoTime deadline) {
    if (connection && connection->open()) return {};
    MILLRACE_TRY_ASSIGN(connection, redis::Connection::Connect(endpoint_, {.clock = &clock_}, deadline));
    return {};
  }

  RedisQueueOptions options_;
  redis::Endpoint endpoint_;
  SystemClock system_;
  const Clock& clock_;
  std::mutex mutex_;
  std::optional<redis::Connection> ringing_;  // guarded by mutex_
  std::optional<redis::Connection> waiting_;
};

}  // namespace

Result<std::unique_ptr<Inbox>> OpenRedisInbox(const RedisQueueOptions& options) {
  MILLRACE_TRY_ASSIGN(redis::Endpoint endpoint, redis::ParseEndpoint(options.endpoint));
  return std::unique_ptr<Inbox>(std::make_unique<RedisInbox>(options, std::move(endpoint)));
}

}  // namespace millrace
