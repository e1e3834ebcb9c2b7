// What a schedule does around the jumps of its zone's clock, for people. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/model/cron.h"

namespace millrace {

enum class PreviewPart : std::uint8_t { kBefore, kIn, kAfter };
std::string_view Name(PreviewPart part);  // "before", "in", "after"

// One local time that the expression matches near a jump, and what comes of it.
struct PreviewRow {
  PreviewPart part = PreviewPart::kBefore;
  std::string local;             // "2026-03-08 02:30:00", also where the clock does not show it
  std::int64_t offset = 0;       // seconds east of UTC in force at that reading of the clock
  std::optional<WallTime> fire;  // empty: it does not fire
  std::string why;               // "gap, once: fires when the gap ends"; empty for ordinary fires
};

struct JumpPreview {
  ClockJump jump;
  std::vector<PreviewRow> rows;  // in order of time; at most kPreviewInMax of the jump itself
  std::size_t left_out = 0;      // rows of the jump beyond those
};

inline constexpr std::size_t kPreviewInMax = 40;

// The next `count` jumps of the zone's clock after `after`: for each the last two fires before the local times that are left
// out or come twice, every match of those local times, and the next two fires behind them. Whether a row fires is what
// CronSchedule::Next says, not what the rule promises.
std::vector<JumpPreview> PreviewTransitions(const CronSchedule& schedule, WallTime after, int count);

// "+05:30"
std::string OffsetText(std::int64_t seconds);

}  // namespace millrace
