// One job through the index of lines, from ready to ended, with 10,000 lines: of 10,000 limit keys, and of 1,000 orgs; with and
// without limits; for a worker that serves everything, and for one that serves a tenth.
#include <benchmark/benchmark.h>

#include <string>
#include <utility>
#include <vector>

#include "broker/line_index.h"

namespace millrace {
namespace {

constexpr ShardId kShard{0};
constexpr std::int64_t kLines = 10'000;

struct Filled {
  LineIndex index;
  std::vector<std::string> names;
  MonoTime now{Micros{1'000'000}};
  void Add(const LineKey& key, std::uint64_t jobs = 10) {
    names.push_back(key.ToString());
    index.Add(kShard, names.back(), jobs, now);
  }
};

LineKey Key(std::int64_t org, const std::string& queue, const std::string& limit_key) {
  return {.queue = queue, .priority = kPriorityDefault, .org = OrgId{org}, .root = "", .kind = "work", .limit_key = limit_key};
}

// Whatever is taken comes back, so that every line stays where it is.
void Turn(benchmark::State& state, Filled& filled, const WorkerReach& reach) {
  const auto view = filled.index.ViewOf(reach);
  for (auto _ : state) {
    filled.now += Micros{10};
    filled.index.Advance(filled.now);
    LineIndex::Line* line = filled.index.Next(*view);
    if (line == nullptr) {
      state.SkipWithError("nothing may start");
      break;
    }
    const LineKey key = line->key();
    const std::string name = line->name();
    filled.index.Take(*line, 1, filled.now);
    filled.index.Add(kShard, name, 1, filled.now);
    filled.index.Ended(key, filled.now);
  }
  state.SetItemsProcessed(state.iterations());
}

void BM_LimitKeys(benchmark::State& state) {
  Filled filled;
  if (state.range(0) > 0) {
    QueueSettings settings;
    settings.queue = "q";
    settings.concurrency = 100'000;
    settings.key_concurrency = 1;
    settings.rate = {.count = 1'000'000, .per = Millis{1000}, .burst = 0};
    settings.key_rate = {.count = 100, .per = Millis{1000}, .burst = 0};
    filled.index.Set(kShard, settings, filled.now);
  }
  for (std::int64_t i = 0; i < kLines; ++i) filled.Add(Key(1, "q", std::to_string(i)));
  Turn(state, filled, {});
}
BENCHMARK(BM_LimitKeys)->ArgName("limits")->Arg(0)->Arg(1);

// Every line holds one job: each turn empties one and fills it again.
void BM_LinesThatComeAndGo(benchmark::State& state) {
  Filled filled;
  for (std::int64_t i = 0; i < kLines; ++i) filled.Add(Key(1, "q", std::to_string(i)), 1);
  Turn(state, filled, {});
}
BENCHMARK(BM_LinesThatComeAndGo);

void BM_OrgsAndQueues(benchmark::State& state) {
  Filled filled;
  for (std::int64_t org = 1; org <= kLines / 10; ++org)
    for (int queue = 0; queue < 10; ++queue) filled.Add(Key(org, "q" + std::to_string(queue), ""));
  WorkerReach reach;
  if (state.range(0) > 0) reach.queues = {"q9"};
  Turn(state, filled, reach);
}
BENCHMARK(BM_OrgsAndQueues)->ArgName("serves_a_tenth")->Arg(0)->Arg(1);

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
