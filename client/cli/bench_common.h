// What the bench commands share: which installation, checked options, and how results are shown.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/bench/chain_bench.h"
#include "client/bench/installation.h"
#include "client/bench/queue_bench.h"
#include "client/cli/context.h"
#include "client/cli/options.h"

namespace millrace::cli {

// Where a benchmark runs: the configured installation when the configuration names servers and --own is not given, otherwise
// one that is started now and gone afterwards.
class BenchTarget {
 public:
  struct Needs {
    int workers = 0;  // processes of `millrace worker`, of an own installation
    std::uint32_t worker_concurrency = 2;
    bool scheduler = false;
  };
  // Catches SIGINT and SIGTERM. kUnavailable: the configured broker does not answer.
  static Result<BenchTarget> Make(const Options& options, Context& context, const Needs& needs);

  const bench::Installation& at() const { return own_ ? own_->at() : running_; }
  bool own() const { return own_.has_value(); }
  const std::string& folder() const { return own_ ? own_->folder() : folder_; }
  // The machine as it was before anything was started.
  const std::vector<std::pair<std::string, std::string>>& machine() const { return machine_; }
  // A failed benchmark leaves its logs behind, and says where.
  void KeepLogs();
  ~BenchTarget();
  BenchTarget(BenchTarget&&) = default;
  BenchTarget& operator=(BenchTarget&&) = delete;

 private:
  BenchTarget() = default;
  std::optional<bench::OwnInstallation> own_;
  bench::Installation running_;
  std::vector<std::pair<std::string, std::string>> machine_;
  std::string folder_;  // of files that a benchmark of a running installation needs
};

// kInvalidArgument names the option, the value and what is expected.
Result<Durability> BenchDurability(const std::string& text);
Result<std::vector<std::uint64_t>> BenchList(const std::string& option, const std::string& text, std::uint64_t min,
                                             std::uint64_t max);
Result<void> BenchRange(const char* option, std::uint64_t value, std::uint64_t min, std::uint64_t max);
Result<Millis> BenchDuration(const char* option, const std::string& text, Millis max);

// One finished benchmark.
struct BenchReport {
  std::string name;           // "queue", "latency", ...
  std::string results_json;   // an array of objects
  std::vector<Table> tables;  // for people; csv and ndjson print the first
  bool sound = true;          // nothing lost, nothing done twice
};
// Prints it in the context's format, with machine, versions, durability and load. kWorkFailed when it is not sound.
Result<ExitCode> PrintBench(Context& context, const BenchTarget& target, const BenchReport& report);

// Starts or finds the installation, measures, prints. A failure leaves the logs and says where they are.
using BenchMeasure = std::function<Result<BenchReport>(BenchTarget&)>;
Result<ExitCode> RunBench(const Options& options, Context& context, const BenchTarget::Needs& needs,
                          const BenchMeasure& measure);

// The forms of one queue measurement. `label` goes before everything else ({"workers": 4}).
std::string ToJson(const bench::QueueResult& result, const std::vector<std::pair<std::string, std::int64_t>>& label = {});
// An object of counts, latencies by name, and costs.
std::string BenchJson(const std::vector<std::pair<std::string, std::uint64_t>>& counts,
                      const std::vector<std::pair<std::string, bench::Latency>>& latencies, const bench::Costs& costs);
std::string JsonArray(const std::vector<std::string>& items);
Table LatencyTable(const std::vector<bench::QueueResult>& results);
std::string ToJson(const bench::ChainResult& result, std::uint32_t stages);
Table CostTable(const std::vector<std::pair<std::string, bench::Costs>>& costs);  // each with its label
std::string BusiestCore(const bench::Costs& costs);                               // "97 %"

}  // namespace millrace::cli
