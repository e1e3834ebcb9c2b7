#include "common/model/dst_preview.h"

#include <algorithm>
#include <cstdlib>

namespace millrace {
namespace {

using Seconds = std::chrono::seconds;
constexpr std::size_t kAround = 2;  // ordinary fires shown on each side

WallTime AtUtc(std::int64_t second) { return FromUnixMicros(second * 1'000'000); }
std::int64_t UtcSecond(WallTime t) { return std::chrono::floor<Seconds>(t.time_since_epoch()).count(); }

bool Fires(const CronSchedule& schedule, WallTime t) { return schedule.Next(t - Micros{1}) == t; }

// What decides whether a match fires at `at`: a bound of the schedule, else how it treats jumps.
std::string Rule(const CronSchedule& schedule, WallTime at) {
  if (const auto bound = schedule.OutOfBound(at); !bound.empty()) return bound == "start" ? "before start" : "past end";
  return schedule.expression().follows_elapsed_time() ? "wildcard hour" : std::string(Name(schedule.rule()));
}

// An ordinary fire. Between it and the jump that is shown there may be another one.
PreviewRow Ordinary(const CronSchedule& schedule, PreviewPart part, WallTime t) {
  const std::int64_t offset = schedule.OffsetAt(t);
  return {.part = part, .local = LocalText(UtcSecond(t) + offset), .offset = offset, .fire = t, .why = {}};
}

// A local time that the clock leaves out. It can fire only at the end of the gap.
PreviewRow InGap(const CronSchedule& schedule, const ClockJump& jump, std::int64_t local) {
  PreviewRow row{.part = PreviewPart::kIn, .local = LocalText(local), .offset = jump.before, .fire = {}, .why = {}};
  const bool moves = !schedule.expression().follows_elapsed_time() && schedule.rule() != DstRule::kSkip;
  if (moves && Fires(schedule, jump.at)) row.fire = jump.at;
  row.why = fmt::format("gap, {}: {}", Rule(schedule, jump.at), row.fire ? "fires when the gap ends" : "does not fire");
  return row;
}

PreviewRow Repeated(const CronSchedule& schedule, const ClockJump& jump, std::int64_t local, bool second_time) {
  const std::int64_t offset = second_time ? jump.after : jump.before;
  PreviewRow row{.part = PreviewPart::kIn, .local = LocalText(local), .offset = offset, .fire = {}, .why = {}};
  const WallTime at = AtUtc(local - offset);
  if (Fires(schedule, at)) row.fire = at;
  row.why = fmt::format("{} time, {}: {}", second_time ? "second" : "first", Rule(schedule, at),
                        row.fire ? "fires" : "does not fire");
  return row;
}

JumpPreview PreviewOf(const CronSchedule& schedule, const ClockJump& jump) {
  JumpPreview preview{.jump = jump, .rows = {}, .left_out = 0};
  const std::int64_t at = UtcSecond(jump.at), width = std::abs(jump.seconds());
  const bool gap = jump.seconds() > 0;
  const WallTime in_from = gap ? jump.at : AtUtc(at - width), in_to = gap ? jump.at : AtUtc(at + width);
  auto before = schedule.LastBefore(in_from, in_from - std::chrono::days{400}, kAround);
  std::ranges::reverse(before);
  for (const WallTime t : before) preview.rows.push_back(Ordinary(schedule, PreviewPart::kBefore, t));

  const std::int64_t first_local = at + std::min(jump.before, jump.after), last_local = first_local + width;
  const auto& expression = schedule.expression();
  std::size_t shown = 0;
  for (int pass = 0; pass < (gap ? 1 : 2); ++pass) {
    for (auto local = expression.NextLocal(first_local); local && *local < last_local;
         local = expression.NextLocal(*local + 1)) {
      if (++shown > kPreviewInMax) {
        ++preview.left_out;
        continue;
      }
      preview.rows.push_back(gap ? InGap(schedule, jump, *local) : Repeated(schedule, jump, *local, pass == 1));
    }
  }

  auto next = schedule.Next(in_to - Micros{1});
  // A fire at the end of a gap that stands for left-out times alone was shown as theirs.
  if (gap && next == jump.at && expression.NextLocal(at + jump.after) != at + jump.after) next = schedule.Next(*next);
  for (std::size_t i = 0; i < kAround && next; ++i, next = schedule.Next(*next))
    preview.rows.push_back(Ordinary(schedule, PreviewPart::kAfter, *next));
  return preview;
}

}  // namespace

std::string_view Name(PreviewPart part) {
  switch (part) {
    case PreviewPart::kBefore: return "before";
    case PreviewPart::kIn: return "in";
    case PreviewPart::kAfter: return "after";
  }
  return "unknown";
}

std::string OffsetText(std::int64_t seconds) {
  const std::int64_t minutes = std::abs(seconds) / 60;
  return fmt::format("{}{:02}:{:02}", seconds < 0 ? '-' : '+', minutes / 60, minutes % 60);
}

std::vector<JumpPreview> PreviewTransitions(const CronSchedule& schedule, WallTime after, int count) {
  std::vector<JumpPreview> all;
  for (auto jump = schedule.NextJump(after); jump && count > 0; jump = schedule.NextJump(jump->at), --count)
    all.push_back(PreviewOf(schedule, *jump));
  return all;
}

}  // namespace millrace
