// Which slots of one schedule are due, and what becomes of each. Pure: the times come in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/cron.h"
#include "common/model/pipeline.h"
#include "common/model/schedule_rules.h"

namespace millrace::scheduler {

inline constexpr std::size_t kSlotsPerPassMax = 1000;  // of one schedule; the rest follows in the next pass

// What happens to slots that are later than their misfire grace.
struct Catchup {
  enum class Kind : std::uint8_t { kNone, kNewest, kAll };
  Kind kind = Kind::kNewest;
  std::uint32_t limit = 1;  // kNewest: only those that are among the newest so many due slots
};
Result<Catchup> ParseCatchup(std::string_view text);  // none | latest | all | all(N), N in [1, kCatchupRunsMax]

enum class SlotFate : std::uint8_t { kFired, kSkipped, kMissed };
std::string_view Name(SlotFate fate);  // "fired", "skipped", "missed", as stored in the slot's row

struct PlannedSlot {
  WallTime slot{};
  SlotFate fate = SlotFate::kFired;
  std::string reason;  // empty when fired
};

struct SlotPlan {
  std::vector<PlannedSlot> slots;  // oldest first
  WallTime watermark{};            // every slot at or before it is decided once `slots` are stored
};

// Decides the slots in (watermark, now]. A slot within `spec.misfire_grace` of now always fires (overlap: skip excepted); an
// older one is missed and goes to the catch-up rule. `pipeline_active`: a run of the pipeline has not ended. `paused`: every
// due slot is skipped, also one that was due before the pause.
Result<SlotPlan> PlanSlots(const ScheduleSpec& spec, const CronSchedule& cron, WallTime watermark, WallTime now,
                           bool pipeline_active, bool paused = false);

}  // namespace millrace::scheduler
