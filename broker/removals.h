// Which entries are to be taken out of a shard's queue by name, and how far that is: one look (queue_op::Remove, in steps) at
// a time for each of the two classes. An id is kept from the moment it is named until one look that began after it is over:
// then no entry of it is in the queue. Not thread-safe: part of a shard's state.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "common/queue/job_queue.h"

namespace millrace {

class Removals {
 public:
  // A job of ledger class that waits in `line` or, if it ever was due later, perhaps in the schedule.
  void Add(JobId id, std::string line, bool scheduled) {
    if (leaving_.insert(id).second) ledger_.waiting.push_back({.id = id, .line = std::move(line), .scheduled = scheduled});
  }
  // A job of `durability: redis` and of this org, wherever it waits.
  void Search(OrgId org, JobId id) { kept_.waiting.push_back({.id = id, .line = {}, .scheduled = true, .org = org}); }

  // Added, and the look is not over: whatever entry of it comes out of the queue, it does not count.
  bool Leaving(JobId id) const { return leaving_.contains(id); }

  // The next step, unless one is under way. Shard and epoch are the caller's.
  std::optional<queue_op::Remove> Next(bool kept) {
    Lane& lane = kept ? kept_ : ledger_;
    if (lane.asked || (!lane.look && lane.waiting.empty())) return std::nullopt;
    if (!lane.look) Begin(lane);
    lane.asked = true;
    return lane.look;
  }
  // The ids of a look that is over; and, for `durability: redis`, whose jobs they are.
  struct Over {
    OrgId org;
    std::vector<JobId> ids;
  };
  // The answer to it. Gives nothing as long as the look goes on.
  Over Answered(bool kept, const QueueReply& reply) {
    Lane& lane = kept ? kept_ : ledger_;
    lane.asked = false;
    if (!kept)
      for (const QueueEntry& entry : reply.claimed) std::erase(lane.look->ids, entry.id);
    lane.look->cursor = reply.cursor;
    if (!reply.cursor.empty() && !lane.look->ids.empty()) return {};
    lane.look.reset();
    if (!kept)
      for (const JobId& id : lane.ids) leaving_.erase(id);
    return {.org = lane.org.value_or(OrgId{}), .ids = std::exchange(lane.ids, {})};
  }

 private:
  static constexpr std::size_t kIdsMax = 1000;        // of one look
  static constexpr std::uint32_t kEntriesMax = 5000;  // that one step looks at, about: a few milliseconds
  struct Named {
    JobId id;
    std::string line;
    bool scheduled = false;
    std::optional<OrgId> org{};  // kept lines
  };
  struct Lane {
    std::deque<Named> waiting;
    std::optional<queue_op::Remove> look;
    std::optional<OrgId> org;  // of the look
    std::vector<JobId> ids;    // of the look
    bool asked = false;
  };

  static void Begin(Lane& lane) {
    queue_op::Remove& look = lane.look.emplace();
    look.max = kEntriesMax;
    lane.org = lane.waiting.front().org;
    if (lane.org) look.org = std::to_string(lane.org->value());
    for (; !lane.waiting.empty() && lane.waiting.front().org == lane.org && look.ids.size() < kIdsMax;
         lane.waiting.pop_front()) {
      Named& named = lane.waiting.front();
      look.ids.push_back(named.id);
      look.scheduled = look.scheduled || named.scheduled;
      if (!named.line.empty() && std::ranges::find(look.lines, named.line) == look.lines.end())
        look.lines.push_back(std::move(named.line));
    }
    lane.ids = look.ids;
  }

  Lane ledger_, kept_;
  std::unordered_set<JobId> leaving_;
};

}  // namespace millrace
