// What the dispatcher itself costs per job, from the submit to its durable end, in batches of 100: both classes; jobs of one
// line and of 10,000; workers that keep up (what comes passes straight into flight), and 10,000 jobs ahead of each new one.
#include <benchmark/benchmark.h>

#include "bench/dispatcher_driver.h"

namespace millrace::bench {
namespace {

constexpr std::size_t kPrepared = 100;  // steps at a time: making what the client sends is not measured

void BM_DispatcherStep(benchmark::State& state) {
  DispatcherDriver driver({.durability = state.range(0) > 0 ? Durability::kRedis : Durability::kLedger,
                           .crowd = state.range(1) > 0,
                           .waiting = static_cast<std::uint32_t>(state.range(2))});
  std::size_t prepared = 0;
  for (auto _ : state) {
    if (prepared == 0) {
      state.PauseTiming();
      driver.Prepare(prepared = kPrepared);
      state.ResumeTiming();
    }
    --prepared;
    driver.Step();
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  driver.Drain();
  if (!driver.AllEndedBut(0)) state.SkipWithError("not each job was accepted, recorded and ended, once");
}
BENCHMARK(BM_DispatcherStep)->ArgNames({"redis", "crowd", "waiting"})->ArgsProduct({{0, 1}, {0, 1}, {0, 10'000}});

}  // namespace
}  // namespace millrace::bench

BENCHMARK_MAIN();
