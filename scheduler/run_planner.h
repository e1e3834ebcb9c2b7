// Plans the runs of slots, from the pipeline versions that the ledger keeps.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/ledger/ledger.h"
#include "common/model/pipeline.h"
#include "common/model/run_plan.h"
#include "scheduler/schedule_book.h"

namespace millrace::scheduler {

// Not thread-safe.
class RunPlanner {
 public:
  RunPlanner(Ledger& ledger, IdGenerator& ids) : ledger_(ledger), ids_(ids) {}

  // Reads the versions of these schedules that are not known. What is known beyond kVersionsMax is forgotten before.
  Result<void> Load(std::span<ScheduleBook::Entry* const> entries, MonoTime deadline);
  void Forget(OrgId org, const std::string& pipeline) { versions_.erase({org, pipeline}); }
  void Clear() { versions_.clear(); }

  enum class Known : std::uint8_t {
    kYes,
    kNotYet,  // the row's version was not read, or it was applied a moment ago: the change of the row is read next
    kBroken,  // it cannot be read as a pipeline, which was said in the log
  };
  Known Knows(const ScheduleRow& row) const;

  // The run of a slot, decided at `now`. An error is the schedule's (a parameter that it cannot give).
  // REQUIRES: Knows(row) is kYes.
  Result<RunPlan> Plan(const ScheduleRow& row, WallTime slot, WallTime now) const;
  // The same before the slot is due: as if it were decided at its very instant, which its ids name too.
  Result<RunPlan> PlanAhead(const ScheduleRow& row, WallTime slot);
  // A plan of PlanAhead is decided at `now` in truth.
  static void Decided(RunPlan& plan, WallTime slot, WallTime now);

  static constexpr std::size_t kVersionsMax = 10'000;

 private:
  struct Version {
    std::int64_t number = 0;  // 0: broken
    Pipeline pipeline;
    std::string base_dir;
  };
  // Together, ids of an instant that is to come, as random as those of `ids`.
  struct SlotClock final : Clock {
    MonoTime Now() const override { return {}; }
    WallTime WallNow() const override { return slot; }
    WallTime slot{};
  };
  struct TailOf final : Random {
    explicit TailOf(IdGenerator& of) : ids(of) {}
    std::uint64_t Next() override;
    IdGenerator& ids;
  };

  Result<RunPlan> PlanWith(const ScheduleRow& row, WallTime slot, WallTime now, IdGenerator& ids) const;

  Ledger& ledger_;
  IdGenerator& ids_;
  std::map<std::pair<OrgId, std::string>, Version> versions_;  // a cache
  SlotClock slot_clock_;
  TailOf tail_{ids_};
  std::optional<IdGenerator> slot_ids_;  // of slot_clock_.slot
};

}  // namespace millrace::scheduler
