// The newest token of each of the last kRecentlyEndedMax jobs that were told to it. Not thread-safe.
#pragma once

#include <deque>
#include <unordered_map>

#include "broker/events.h"
#include "common/base/ids.h"

namespace millrace {

class RecentTokens {
 public:
  void Remember(JobId job, Token token) {
    if (tokens_.insert_or_assign(job, token).second) order_.push_back(job);
    if (order_.size() <= kRecentlyEndedMax) return;
    tokens_.erase(order_.front());
    order_.pop_front();
  }
  // Token{}: none is known.
  Token Of(JobId job) const {
    const auto found = tokens_.find(job);
    return found == tokens_.end() ? Token{} : found->second;
  }

 private:
  std::unordered_map<JobId, Token> tokens_;
  std::deque<JobId> order_;
};

}  // namespace millrace
