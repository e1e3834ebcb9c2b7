// Cron expressions with IANA time zones and a stated daylight-saving rule. Pure: no clock, no I/O besides the system's tzdata.
//
// Fields: [seconds] minutes hours day-of-month month day-of-week. Lists `1,15`, ranges `9-17`, steps `*/5` `9-17/2` `5/10`,
// names JAN-DEC SUN-SAT (any case), `?` = `*`, day-of-week 0 and 7 = Sunday, `L` in day-of-month = the month's last day,
// `5L` / `FRIL` in day-of-week = the month's last Friday, `MON#2` = its second Monday.
// Macros: @yearly @annually @monthly @weekly @daily @midnight @hourly.
// Both day fields restricted (neither begins with `*` or `?`): either may match, as Vixie cron does.
//
// Daylight saving. If the hour field begins with `*`, the schedule follows elapsed time: every local wall-clock match fires,
// those of a repeated hour twice, those of a skipped hour never. Otherwise the rule decides:
//   once   a time in the gap fires once, at the end of the gap; a repeated time fires once, the first time
//   skip   a time in the gap does not fire that day; a repeated time fires once, the first time
//   both   a time in the gap fires once, at the end of the gap; a repeated time fires both times
// `schedule next --transitions` shows what that means for a schedule (PreviewTransitions, dst_preview.h).
// Known limit: from 2038 on the zone's last standard time holds all year. The tz library reads the transitions that the
// system's compiled tzdata lists, which end in 2037, and not the rule behind them.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

enum class DstRule : std::uint8_t { kOnce, kSkip, kBoth };
std::string_view Name(DstRule rule);
Result<DstRule> ParseDstRule(std::string_view name);

// The five or six fields, as sets.
class CronExpression {
 public:
  // kInvalidArgument names the field, the text and its range; an expression that can never fire is refused.
  static Result<CronExpression> Parse(std::string_view text);

  // The first matching local civil time >= `from` (seconds since 1970-01-01T00:00:00 local). Empty: none within 50 years.
  std::optional<std::int64_t> NextLocal(std::int64_t from_local_s) const;
  bool follows_elapsed_time() const { return hour_star_; }

 private:
  bool DayMatches(int year, unsigned month, unsigned day) const;

  std::bitset<60> seconds_, minutes_;
  std::bitset<24> hours_;
  std::bitset<32> days_;     // 1..31
  std::bitset<13> months_;   // 1..12
  std::bitset<7> weekdays_;  // 0 = Sunday
  std::bitset<7> last_weekdays_;
  std::uint64_t nth_weekdays_ = 0;  // bit weekday * 6 + n
  bool last_day_ = false;
  bool day_star_ = false, weekday_star_ = false, hour_star_ = false;
};

// "2026-03-08 02:30:00" of a local civil time (seconds since 1970-01-01T00:00:00 local).
std::string LocalText(std::int64_t local_s);

// The edge of a range of slots, as people write it: an instant ("2026-11-21T06:15:00Z", with an offset or Z), or a day of the
// zone ("2026-11-21"). Ranges are half-open, [from, to): an instant as `to` is outside; a day as `to` is inside, as a whole.
// kInvalidArgument: also a day that the zone does not have (Samoa went over the date line).
enum class RangeEdge : std::uint8_t { kFrom, kTo };
Result<WallTime> ParseRangeEdge(std::string_view text, std::string_view timezone, RangeEdge edge);

// The local clock of a zone jumps: from offset `before` to offset `after`, both seconds east of UTC.
struct ClockJump {
  WallTime at;
  std::int64_t before = 0, after = 0;
  std::int64_t seconds() const { return after - before; }  // > 0: local times are left out; < 0: they come twice
};

// An expression in a zone, within [start, end) where a spec has them. Immutable; thread-safe.
class CronSchedule {
 public:
  static Result<CronSchedule> Make(std::string_view cron, std::string_view timezone, DstRule rule);
  static Result<CronSchedule> Make(const ScheduleSpec& spec);

  // The first slot strictly after `after`. Empty: none before the end, or none within 50 years.
  std::optional<WallTime> Next(WallTime after) const;
  // The last slots before `before` and not before `from`, newest first, at most `limit`.
  std::vector<WallTime> LastBefore(WallTime before, WallTime from, std::size_t limit) const;
  // Slots in (after, until], oldest first, at most `limit`.
  std::vector<WallTime> Between(WallTime after, WallTime until, std::size_t limit) const;
  // "2026-11-21 06:15:00 EST (-05:00)"
  std::string InZone(WallTime t) const;
  // The zone's offset at `t`, seconds east of UTC.
  std::int64_t OffsetAt(WallTime t) const;
  // The bound that keeps `t` from being a slot: "start" or "end"; empty when it is within both.
  std::string_view OutOfBound(WallTime t) const;

  // The first jump of the zone's clock strictly after `after`. Empty: none within 50 years.
  std::optional<ClockJump> NextJump(WallTime after) const;
  const CronExpression& expression() const { return expression_; }
  DstRule rule() const { return rule_; }

 private:
  std::optional<WallTime> NextUnbounded(WallTime after) const;
  CronSchedule(CronExpression expression, const void* zone, DstRule rule) : expression_(expression), zone_(zone), rule_(rule) {}

  CronExpression expression_;
  const void* zone_;  // const date::time_zone*, owned by the tz database for the life of the process
  DstRule rule_;
  std::optional<WallTime> start_, end_;
};

}  // namespace millrace
