// Rows of ten typical columns from a chunk of the engine's into PostgreSQL's binary COPY: what encoding them costs, without
// making them and without sending them.
#include <benchmark/benchmark.h>

#include "bench/copy_chunk.h"

namespace millrace::bench {
namespace {

void BM_CopyEncode(benchmark::State& state) {
  const auto chunk = CopyChunk::Make();
  if (!chunk) return state.SkipWithError(chunk.error().message.c_str());
  for (auto _ : state) {
    if (!(*chunk)->Encode()) {
      state.SkipWithError("a row was not encoded");
      break;
    }
    benchmark::DoNotOptimize((*chunk)->encoded().data());
  }
  constexpr auto kRows = static_cast<std::int64_t>(CopyChunk::kRows), kBytes = static_cast<std::int64_t>(CopyChunk::kBytes);
  state.SetItemsProcessed(state.iterations() * kRows);
  state.SetBytesProcessed(state.iterations() * kBytes);
  state.counters["bytes_per_row"] = static_cast<double>(kBytes) / static_cast<double>(kRows);
}
BENCHMARK(BM_CopyEncode);

}  // namespace
}  // namespace millrace::bench

BENCHMARK_MAIN();
