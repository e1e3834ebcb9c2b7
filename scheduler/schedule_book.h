// The schedules of the ledger as a scheduler keeps them: compiled once, in order of their next slot. Pure.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/model/cron.h"

namespace millrace::scheduler {

// What a tick costs depends on what is due, not on how many schedules there are. Not thread-safe.
class ScheduleBook {
 public:
  class Entry {
   public:
    const ScheduleRow& row() const { return row_; }
    const CronSchedule& cron() const { return cron_; }
    WallTime next() const { return *next_; }  // REQUIRES: it came from Due

   private:
    friend class ScheduleBook;
    Entry(ScheduleRow row, CronSchedule cron) : row_(std::move(row)), cron_(std::move(cron)) {}
    ScheduleRow row_;
    CronSchedule cron_;
    std::optional<WallTime> next_;  // empty: parked or never again
  };

  // Takes over the ledger's row: added, changed or (inactive) forgotten. kInvalidArgument: the row makes no schedule; what
  // was known of it is forgotten.
  Result<void> Take(ScheduleRow row);
  void Clear();

  // Entries with a slot at or before `now`: those within their misfire_grace first, then those that are late; both by slot.
  // The pointers are good until the next Take or Clear.
  std::vector<Entry*> Due(WallTime now);
  // Every slot up to `watermark` is decided.
  void Advance(Entry& entry, WallTime watermark);
  // It is not due again before its row changes.
  void Park(Entry& entry);

  std::optional<WallTime> Next() const;
  std::size_t size() const { return entries_.size(); }

 private:
  using Order = std::set<std::pair<WallTime, Entry*>>;
  void Place(Entry& entry, std::optional<WallTime> next);

  std::unordered_map<std::string, std::unique_ptr<Entry>> entries_;  // by org, pipeline, schedule
  Order order_;
};

}  // namespace millrace::scheduler
