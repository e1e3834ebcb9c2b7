#include "scheduler/slot_planner.h"

#include <charconv>

namespace millrace::scheduler {

Result<Catchup> ParseCatchup(std::string_view text) {
  if (text == "none") return Catchup{Catchup::Kind::kNone, 0};
  if (text == "latest") return Catchup{Catchup::Kind::kNewest, 1};
  if (text == "all") return Catchup{Catchup::Kind::kAll, 0};
  if (text.starts_with("all(") && text.ends_with(")")) {
    const std::string_view number = text.substr(4, text.size() - 5);
    std::uint32_t limit = 0;
    const auto [end, ec] = std::from_chars(number.data(), number.data() + number.size(), limit);
    if (ec == std::errc{} && end == number.data() + number.size() && limit >= 1 && limit <= kCatchupRunsMax)
      return Catchup{Catchup::Kind::kNewest, limit};
  }
  return Fail(ErrorCode::kInvalidArgument, "catchup '{}' is not none, latest, all or all(N) with N in [1, {}]", text,
              kCatchupRunsMax);
}

std::string_view Name(SlotFate fate) {
  switch (fate) {
    case SlotFate::kFired: return "fired";
    case SlotFate::kSkipped: return "skipped";
    case SlotFate::kMissed: return "missed";
  }
  return "unknown";
}

namespace {

// Whether a missed slot runs after all. `newer_due` counts the due slots after it, as far as they were looked at: with
// `latest`, an outage that ends within the grace of the newest slot needs no other.
bool CaughtUp(const Catchup& catchup, std::size_t newer_due) {
  switch (catchup.kind) {
    case Catchup::Kind::kNone: return false;
    case Catchup::Kind::kNewest: return newer_due < catchup.limit;
    case Catchup::Kind::kAll: return true;
  }
  return false;
}

}  // namespace

Result<SlotPlan> PlanSlots(const ScheduleSpec& spec, const CronSchedule& cron, WallTime watermark, WallTime now,
                           bool pipeline_active, bool paused) {
  MILLRACE_TRY_ASSIGN(const Catchup catchup, ParseCatchup(spec.catchup));
  SlotPlan plan{.slots = {}, .watermark = watermark};
  // Beyond a full pass, look as far ahead as the catch-up rule needs to know how many newer slots are due.
  const std::vector<WallTime> due = cron.Between(watermark, now, kSlotsPerPassMax + kCatchupRunsMax);
  const std::size_t decided = std::min(due.size(), kSlotsPerPassMax);
  const bool skip_overlap = spec.overlap == "skip";
  for (std::size_t i = 0; i < decided; ++i) {
    const bool late = now - due[i] > spec.misfire_grace;
    PlannedSlot slot{.slot = due[i], .fate = SlotFate::kFired, .reason = {}};
    if (paused) {
      slot.fate = SlotFate::kSkipped;
      slot.reason = "paused";
    } else if (late && !CaughtUp(catchup, due.size() - 1 - i)) {
      slot.fate = SlotFate::kMissed;
      slot.reason = fmt::format("{} s late, misfire_grace is {} s, catchup: {}",
                                std::chrono::duration_cast<std::chrono::seconds>(now - due[i]).count(),
                                std::chrono::duration_cast<std::chrono::seconds>(spec.misfire_grace).count(), spec.catchup);
    } else if (skip_overlap && pipeline_active) {
      slot.fate = SlotFate::kSkipped;
      slot.reason = "an earlier run had not ended (overlap: skip)";
    } else {
      pipeline_active = true;
    }
    plan.slots.push_back(std::move(slot));
    plan.watermark = due[i];
  }
  return plan;
}

}  // namespace millrace::scheduler
