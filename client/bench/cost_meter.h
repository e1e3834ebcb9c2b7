// What a stretch of work cost: processor time, memory, and which processor was full.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "client/bench/installation.h"
#include "client/bench/processes.h"
#include "common/base/clock.h"

namespace millrace::bench {

struct Cost {
  double cpu_us_per_job = 0, rss_mb = 0, pss_mb = 0;
};
struct Costs {
  std::vector<std::pair<std::string, Cost>> processes;  // of this host: servers, broker, handlers together, client
  std::vector<double> core_busy;                        // share of the time that each processor was busy, whoever used it
  double wall_s = 0;
};

class CostMeter {
 public:
  explicit CostMeter(const Installation& at) : at_(at) {}
  // `handlers` may be empty here and started later: then all that they use counts.
  void Begin(const std::vector<Process>& handlers);
  Costs End(const std::vector<Process>& handlers, double jobs) const;

 private:
  std::vector<std::pair<std::string, Usage>> Usages(const std::vector<Process>& handlers) const;
  const Installation& at_;
  SystemClock clock_;
  std::vector<std::pair<std::string, Usage>> before_;
  std::vector<double> cores_before_;
  MonoTime began_{};
};

}  // namespace millrace::bench
