// Jobs per second through enqueue, claim and finish in batches of 100, for SQLite and, with MILLRACE_TEST_REDIS, Redis.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"

namespace millrace {
namespace {

constexpr int kBatch = 100;

void Cycle(benchmark::State& state, JobQueue& queue) {
  constexpr ShardId kShard{0};
  constexpr Epoch kEpoch{1};
  queue_op::Enqueue put{kShard, kEpoch, {}};
  queue_op::Finish finish{kShard, kEpoch, {}};
  for (int i = 0; i < kBatch; ++i) {
    QueueEntry entry{.id = {}, .line = "line", .body = std::string(100, 'x'), .run_at = {}, .expires_at = {}};
    entry.id.uuid.bytes[15] = static_cast<std::uint8_t>(i);
    finish.ids.push_back(entry.id);
    put.entries.push_back(std::move(entry));
  }
  const QueueOp take[] = {queue_op::Take{kShard, kEpoch}};
  const QueueOp ops[] = {put, queue_op::Claim{kShard, kEpoch, "line", kBatch}, finish};
  if (!queue.Execute(take).front()) state.SkipWithError("take failed");
  for (auto _ : state) {
    const auto results = queue.Execute(ops);
    if (!results[1] || results[1]->claimed.size() != kBatch) state.SkipWithError("claim failed");
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  static_cast<void>(queue.Execute(take));
}

void BM_SqliteQueue(benchmark::State& state) {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("millrace_queue_bench_{}.db", ::getpid());
  if (auto queue = OpenSqliteQueue({.path = path}))
    Cycle(state, **queue);
  else
    state.SkipWithError(queue.error().message.c_str());
  for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path.string() + suffix);
}
void BM_RedisQueue(benchmark::State& state) {
  const char* endpoint = std::getenv("MILLRACE_TEST_REDIS");
  if (endpoint == nullptr) return state.SkipWithError("MILLRACE_TEST_REDIS is not set");
  const SystemClock clock;
  const RedisQueueOptions options{.endpoint = endpoint, .prefix = fmt::format("bench{}", ::getpid())};
  if (auto queue = RedisQueue::Open(options, clock.Now() + 5s))
    Cycle(state, **queue);
  else
    state.SkipWithError(queue.error().message.c_str());
}
BENCHMARK(BM_SqliteQueue)->UseRealTime();
BENCHMARK(BM_RedisQueue)->UseRealTime();

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
