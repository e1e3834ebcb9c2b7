// Jobs that cancel requests look for in the kept lines of a shard, each by one request at a time. An org that names the
// id of another org's job looks for one of its own. Not thread-safe: part of a shard's state.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "common/base/ids.h"

namespace millrace {

class WantedJobs {
 public:
  // False, and nothing is changed: another request of the org looks for it.
  bool Add(JobId job, OrgId org, std::uint64_t request) { return seekers_.try_emplace({job, org}, request).second; }
  // The request of the org that looks for it.
  std::optional<std::uint64_t> Seeker(JobId job, OrgId org) const {
    const auto it = seekers_.find({job, org});
    return it == seekers_.end() ? std::nullopt : std::optional(it->second);
  }
  // The look is over: as Seeker, and forgotten.
  std::optional<std::uint64_t> Take(JobId job, OrgId org) {
    const auto node = seekers_.extract({job, org});
    return node.empty() ? std::nullopt : std::optional(node.mapped());
  }
  bool Empty() const { return seekers_.empty(); }
  // Some org's request looks for a job of this id.
  bool contains(JobId job) const {  // NOLINT(readability-identifier-naming): as a container's
    const auto it = seekers_.lower_bound({job, OrgId{INT64_MIN}});
    return it != seekers_.end() && it->first.first == job;
  }

 private:
  std::map<std::pair<JobId, OrgId>, std::uint64_t> seekers_;
};

}  // namespace millrace
