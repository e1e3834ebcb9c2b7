// The cancelled jobs of a shard that wait to have the fence of their sink raised. They do not wait in the queue: no limit, rate
// or pause of it may hold a fence back. What is here is in the ledger too (a cancel row and no outcome), so a new owner finds
// it again. Not thread-safe: part of a shard's state.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "broker/lines.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"

namespace millrace {

class FenceList {
 public:
  struct Fence {
    std::shared_ptr<const JobSpec> spec;
    Counters counters;
    LineKey key;
    WallTime due{};
    std::optional<MonoTime> unserved_since = {};  // kept by the dispatcher
  };

  // Not to be granted before `due`. One that is here already stays as it is.
  void Add(std::shared_ptr<const JobSpec> spec, const Counters& counters, WallTime due) {
    const JobId id = spec->id;
    if (fences_.contains(id)) return;
    order_.emplace(due, id);
    LineKey key = LineKey::Of(*spec);
    fences_.emplace(id, Fence{.spec = std::move(spec), .counters = counters, .key = std::move(key), .due = due});
  }
  void Erase(JobId id) {
    const auto node = fences_.extract(id);
    if (!node.empty()) order_.erase({node.mapped().due, id});
  }
  bool Contains(JobId id) const { return fences_.contains(id); }
  bool Empty() const { return fences_.empty(); }
  Fence& At(JobId id) { return fences_.at(id); }  // REQUIRES: Contains(id)
  // When the next one after `now` is due.
  std::optional<WallTime> DueAfter(WallTime now) const {
    const auto it = order_.upper_bound({now, kLast});
    return it == order_.end() ? std::nullopt : std::optional(it->first);
  }
  // Those that are due by `now`, the earliest first.
  std::vector<JobId> Due(WallTime now) const {
    std::vector<JobId> due;
    for (auto it = order_.begin(); it != order_.end() && it->first <= now; ++it) due.push_back(it->second);
    return due;
  }

 private:
  static constexpr JobId kLast = [] {
    JobId id;
    id.uuid.bytes.fill(0xff);
    return id;
  }();
  std::unordered_map<JobId, Fence> fences_;
  std::set<std::pair<WallTime, JobId>> order_;
};

}  // namespace millrace
