// The newest token of each of the last kRecentlyEndedMax jobs that were told to it. Not thread-safe.
#pragma once

#include <cstddef>
#include <vector>

#include "broker/events.h"
#include "common/base/id_map.h"
#include "common/base/ids.h"

namespace millrace {

class RecentTokens {
 public:
  void Remember(JobId job, Token token) {
    if (const auto known = tokens_.find(job); known != tokens_.end()) {
      known->second = token;
      return;
    }
    if (order_.size() < kRecentlyEndedMax) {
      order_.push_back(job);
    } else {
      tokens_.erase(order_[oldest_]);
      order_[oldest_] = job;
      oldest_ = (oldest_ + 1) % kRecentlyEndedMax;
    }
    tokens_.try_emplace(job, token);
  }
  // Token{}: none is known.
  Token Of(JobId job) const {
    const auto found = tokens_.find(job);
    return found == tokens_.end() ? Token{} : found->second;
  }

 private:
  IdMap<JobId, Token> tokens_;
  std::vector<JobId> order_;  // a ring, once it is full
  std::size_t oldest_ = 0;
};

}  // namespace millrace
