#include "client/bench/cost_meter.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace millrace::bench {
namespace {

double OwnCpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

std::vector<std::pair<std::string, Usage>> CostMeter::Usages(const std::vector<Process>& handlers) const {
  std::vector<std::pair<std::string, Usage>> all;
  for (const auto& [name, pid] : at_.processes)
    if (const auto usage = UsageOf(pid)) all.emplace_back(name, *usage);
  Usage together;
  for (const Process& handler : handlers) {
    const auto usage = UsageOf(handler.pid());
    if (!usage) continue;
    together.cpu_s += usage->cpu_s;
    together.pss_bytes += usage->pss_bytes;
    together.rss_bytes = std::max(together.rss_bytes, usage->rss_bytes);
  }
  all.emplace_back("handlers", together);
  Usage client = OwnUsage();  // alone: the others may be our children
  client.cpu_s = OwnCpuSeconds();
  all.emplace_back("client", client);
  return all;
}

void CostMeter::Begin(const std::vector<Process>& handlers) {
  before_ = Usages(handlers);
  cores_before_ = CoreBusySeconds();
  began_ = clock_.Now();
}

Costs CostMeter::End(const std::vector<Process>& handlers, double jobs) const {
  Costs costs;
  costs.wall_s = static_cast<double>((clock_.Now() - began_).count()) / 1e6;
  const auto cores = CoreBusySeconds();
  for (std::size_t i = 0; i < std::min(cores.size(), cores_before_.size()); ++i)
    costs.core_busy.push_back(costs.wall_s > 0 ? std::min(1.0, (cores[i] - cores_before_[i]) / costs.wall_s) : 0);
  for (const auto& [name, after] : Usages(handlers)) {
    double cpu = after.cpu_s;
    for (const auto& [other, before] : before_)
      if (other == name) cpu -= before.cpu_s;
    costs.processes.emplace_back(name, Cost{.cpu_us_per_job = cpu * 1e6 / std::max(1.0, jobs),
                                            .rss_mb = static_cast<double>(after.rss_bytes) / 1e6,
                                            .pss_mb = static_cast<double>(after.pss_bytes) / 1e6});
  }
  return costs;
}

}  // namespace millrace::bench
