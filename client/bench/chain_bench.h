// Runs of several stages, each stage after the one before: what a dependency costs, one run at a time or many per second.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/bench/cost_meter.h"
#include "client/bench/installation.h"
#include "client/bench/queue_bench.h"
#include "common/base/result.h"
#include "common/model/run_plan.h"

namespace millrace::bench {

// What a stage is.
enum class ChainHandlers {
  kInProcess,  // a job of a handler process
  kProcesses,  // a command of a worker
  kSql         // a transform of a worker: SQL over the rows of the stage before it, in a confined process of its own
};
std::string_view Name(ChainHandlers handlers);  // inprocess, processes, sql
std::optional<ChainHandlers> ParseChainHandlers(std::string_view text);

struct ChainOptions {
  std::uint32_t runs = 1, warmup = 0;  // warm-up runs come first and are counted, not timed
  std::uint32_t stages = 2;
  Millis sleep{0};  // of each stage; not of sql
  double rate = 0;  // runs per second, open loop; 0: one after another
  ChainHandlers handlers = ChainHandlers::kInProcess;
  std::uint32_t rows = 1000;                     // sql: that each stage writes
  std::uint32_t workers = 1, concurrency = 100;  // handler processes
  std::string folder;
};

struct ChainResult {
  ChainHandlers handlers = ChainHandlers::kInProcess;
  std::uint64_t runs = 0, succeeded = 0, outcomes = 0;
  std::uint64_t lost = 0;        // stages without a succeeded outcome
  std::uint64_t duplicated = 0;  // stages that were executed (by a worker: delivered) more than once
  double runs_per_min = 0;       // first intended send to the end of the last run
  Latency accept, ended;         // from the intended send to "accepted", and to the end of the run, which is durable then
  std::vector<std::uint64_t> ended_p99_by_quarter;  // of the runs in the order of their sending: flat, or growing
  Costs costs;                                      // per stage
  double stages_per_core_s = 0;                     // by the processor time of all processes, bench itself left out

  bool Sound() const { return lost == 0 && duplicated == 0 && succeeded == runs; }
};

// kTimedOut: no run ends any more; kCancelled: Interrupted(); kRejected: the broker refused a run.
Result<ChainResult> MeasureChain(const Installation& at, const ChainOptions& options);

}  // namespace millrace::bench
