// Runs of several stages, each stage after the one before: what a dependency costs, one run at a time or many per second.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/bench/cost_meter.h"
#include "client/bench/installation.h"
#include "client/bench/queue_bench.h"
#include "common/base/result.h"
#include "common/model/run_plan.h"

namespace millrace::bench {

struct ChainOptions {
  std::uint32_t runs = 1, warmup = 0;  // warm-up runs come first and are counted, not timed
  std::uint32_t stages = 2;
  Millis sleep{0};         // of each stage
  double rate = 0;         // runs per second, open loop; 0: one after another
  bool processes = false;  // stages are `command: [sleep, ...]` of workers that are there; otherwise jobs of handler processes
  std::uint32_t workers = 1, concurrency = 100;  // handler processes
  std::string folder;
};

struct ChainResult {
  bool processes = false;
  std::uint64_t runs = 0, succeeded = 0, outcomes = 0;
  std::uint64_t lost = 0;        // stages without a succeeded outcome
  std::uint64_t duplicated = 0;  // stages that were executed (processes: delivered) more than once
  double runs_per_min = 0;       // first intended send to the end of the last run
  Latency accept, ended;         // from the intended send to "accepted", and to the end of the run, which is durable then
  std::vector<std::uint64_t> ended_p99_by_quarter;  // of the runs in the order of their sending: flat, or growing
  Costs costs;                                      // per stage

  bool Sound() const { return lost == 0 && duplicated == 0 && succeeded == runs; }
};

// kTimedOut: no run ends any more; kCancelled: Interrupted(); kRejected: the broker refused a run.
Result<ChainResult> MeasureChain(const Installation& at, const ChainOptions& options);

}  // namespace millrace::bench
