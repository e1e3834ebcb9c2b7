// The schedules of the ledger as a scheduler keeps them: compiled once, in order of their next slot. Pure.
#pragma once

#include <cstdint>
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
#include "common/model/run_plan.h"

namespace millrace::scheduler {

inline constexpr std::size_t kPlannedRunsMax = 100'000;                  // runs that are planned before they are due ...
inline constexpr std::size_t kPlannedBytesMax = std::size_t{256} << 20;  // ... and what they take, about

// What a tick costs depends on what is due, not on how many schedules there are. Not thread-safe.
class ScheduleBook {
 public:
  class Entry {
   public:
    const ScheduleRow& row() const { return row_; }
    const CronSchedule& cron() const { return cron_; }
    WallTime next() const { return *next_; }           // REQUIRES: it came from Due, Soonest or Unplanned
    bool planned() const { return plan_ != nullptr; }  // the run of next()

   private:
    friend class ScheduleBook;
    Entry(ScheduleRow row, CronSchedule cron) : row_(std::move(row)), cron_(cron) {}
    ScheduleRow row_;
    CronSchedule cron_;
    std::uint64_t number_ = 0;       // of its Take
    std::optional<WallTime> next_;   // empty: parked or never again
    std::unique_ptr<RunPlan> plan_;  // of the run of next_
    std::size_t plan_bytes_ = 0;
    bool tried_ = false;  // planning it: there may be no plan
  };

  // Takes over the ledger's row: added, changed or (inactive) forgotten. kInvalidArgument: the row makes no schedule; what
  // was known of it is forgotten.
  Result<void> Take(ScheduleRow row);
  void Clear();

  // Entries with a slot at or before `now`: those within their misfire_grace first, then those that are late; both by slot,
  // those of one slot in the order in which they were taken over.
  // The pointers are good until the next Take or Clear.
  std::vector<Entry*> Due(WallTime now);
  // Every slot up to `watermark` is decided.
  void Advance(Entry& entry, WallTime watermark);
  // It is not due again before its row changes.
  void Park(Entry& entry);

  // Plans of runs whose slots are not due yet. A plan is its entry's: what forgets or changes the entry, moves it to another
  // slot or parks it, forgets the plan.
  //
  // Entries whose next slot is after `now` and at most `until`, by slot, that nobody tried to plan yet; none once the plans
  // have reached kPlannedRunsMax or kPlannedBytesMax. Paused ones are not among them. Good until the next Take or Clear.
  std::vector<Entry*> Unplanned(WallTime now, WallTime until);
  bool PlansAreFull() const { return plans_ >= kPlannedRunsMax || plan_bytes_ >= kPlannedBytesMax; }
  void Keep(Entry& entry, RunPlan plan);
  void KeepNone(Entry& entry) { entry.tried_ = true; }  // it has none: decided when it is due
  // The plan of the entry's next slot, if there is one; it is the caller's then.
  std::optional<RunPlan> TakePlan(Entry& entry);

  std::optional<WallTime> Next() const;
  std::vector<const Entry*> Soonest(std::size_t max) const;  // those that are due next
  std::size_t size() const { return entries_.size(); }

 private:
  using Order = std::set<std::tuple<WallTime, std::uint64_t, Entry*>>;  // the entry's next slot and number
  void Place(Entry& entry, std::optional<WallTime> next);
  void Forget(Entry& entry);  // its plan

  std::unordered_map<std::string, std::unique_ptr<Entry>> entries_;  // by org, pipeline, schedule
  Order order_;
  std::uint64_t taken_ = 0;                 // ever
  std::size_t plans_ = 0, plan_bytes_ = 0;  // of all entries
};

}  // namespace millrace::scheduler
