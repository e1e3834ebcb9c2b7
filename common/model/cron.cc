#include "common/model/cron.h"

#include <date/tz.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <stdexcept>

namespace millrace {
namespace {

namespace chr = std::chrono;

constexpr int kSearchYearsMax = 50;  // 29 February on a given weekday recurs within 40 years
constexpr std::size_t kCronBytesMax = 256;

struct FieldRange {
  std::string_view name;
  int low, high;
};
constexpr FieldRange kSecond{"second", 0, 59}, kMinute{"minute", 0, 59}, kHour{"hour", 0, 23}, kDay{"day-of-month", 1, 31},
    kMonth{"month", 1, 12}, kWeekday{"day-of-week", 0, 7};
constexpr std::array<std::string_view, 12> kMonthNames{"JAN", "FEB", "MAR", "APR", "MAY", "JUN",
                                                       "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"};
constexpr std::array<std::string_view, 7> kWeekdayNames{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"};

std::string Upper(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0;;) {
    const std::size_t end = text.find(separator, at);
    parts.push_back(text.substr(at, end == std::string_view::npos ? end : end - at));
    if (end == std::string_view::npos) return parts;
    at = end + 1;
  }
}

std::vector<std::string_view> SplitBlanks(std::string_view text) {
  std::vector<std::string_view> parts;
  std::size_t at = 0;
  while (true) {
    at = text.find_first_not_of(" \t", at);
    if (at == std::string_view::npos) return parts;
    const std::size_t end = std::min(text.find_first_of(" \t", at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end;
  }
}

Result<int> ParseValue(std::string_view text, const FieldRange& range) {
  const auto bad = [&](std::string_view why) {
    return Fail(ErrorCode::kInvalidArgument, "cron field {}: '{}' {} [{}, {}]", range.name, text, why, range.low, range.high);
  };
  const std::string upper = Upper(text);
  if (range.name == kMonth.name)
    if (const auto it = std::ranges::find(kMonthNames, upper); it != kMonthNames.end())
      return static_cast<int>(it - kMonthNames.begin()) + 1;
  if (range.name == kWeekday.name)
    if (const auto it = std::ranges::find(kWeekdayNames, upper); it != kWeekdayNames.end())
      return static_cast<int>(it - kWeekdayNames.begin());
  int value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || end != text.data() + text.size() || text.starts_with('-')) return bad("is not a value in");
  if (value < range.low || value > range.high) return bad("is outside");
  return value;
}

// One element of a list: *, a, a-b, each with an optional /step. Values go to `set`.
Result<void> ParseElement(std::string_view element, const FieldRange& range, std::bitset<60>& set) {
  std::string_view body = element;
  int step = 1;
  bool has_step = false;
  if (const std::size_t slash = element.find('/'); slash != std::string_view::npos) {
    body = element.substr(0, slash);
    const std::string_view step_text = element.substr(slash + 1);
    const auto [end, ec] = std::from_chars(step_text.data(), step_text.data() + step_text.size(), step);
    if (ec != std::errc{} || end != step_text.data() + step_text.size() || step < 1 || step > range.high)
      return Fail(ErrorCode::kInvalidArgument, "cron field {}: step '{}' in '{}' is not an integer in [1, {}]", range.name,
                  step_text, element, range.high);
    has_step = true;
  }
  int low = range.low, high = range.high;
  if (body != "*" && body != "?") {
    const std::size_t dash = body.find('-', 1);
    MILLRACE_TRY_ASSIGN(low, ParseValue(body.substr(0, dash), range));
    if (dash != std::string_view::npos) {
      MILLRACE_TRY_ASSIGN(high, ParseValue(body.substr(dash + 1), range));
      if (high == 0 && range.name == kWeekday.name && low > 0) high = 7;  // FRI-SUN
      if (high < low)
        return Fail(ErrorCode::kInvalidArgument, "cron field {}: range '{}' goes backwards; write it as two ranges", range.name,
                    body);
    } else if (!has_step) {
      high = low;  // with a step, `5/10` runs to the end of the range
    }
  }
  for (int v = low; v <= high; v += step) set.set(static_cast<std::size_t>(v));
  return {};
}

Result<std::bitset<60>> ParseField(std::string_view text, const FieldRange& range) {
  std::bitset<60> set;
  for (const std::string_view element : Split(text, ',')) MILLRACE_TRY(ParseElement(element, range, set));
  return set;
}

constexpr bool StartsWithStar(std::string_view field) { return field.starts_with('*') || field.starts_with('?'); }

Result<std::string_view> ExpandMacro(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kMacros{{{"@YEARLY", "0 0 1 1 *"},
                                                                                         {"@ANNUALLY", "0 0 1 1 *"},
                                                                                         {"@MONTHLY", "0 0 1 * *"},
                                                                                         {"@WEEKLY", "0 0 * * 0"},
                                                                                         {"@DAILY", "0 0 * * *"},
                                                                                         {"@MIDNIGHT", "0 0 * * *"},
                                                                                         {"@HOURLY", "0 * * * *"}}};
  if (!text.starts_with('@')) return text;
  const std::string upper = Upper(text);
  for (const auto& [macro, expansion] : kMacros)
    if (upper == macro) return expansion;
  return Fail(ErrorCode::kInvalidArgument,
              "cron '{}' is not one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly", text);
}

const date::time_zone& Zone(const void* zone) { return *static_cast<const date::time_zone*>(zone); }

std::int64_t Seconds(date::sys_seconds t) { return t.time_since_epoch().count(); }

}  // namespace

std::string_view Name(DstRule rule) {
  switch (rule) {
    case DstRule::kOnce: return "once";
    case DstRule::kSkip: return "skip";
    case DstRule::kBoth: return "both";
  }
  return "unknown";
}

Result<DstRule> ParseDstRule(std::string_view name) {
  for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth})
    if (Name(rule) == name) return rule;
  return Fail(ErrorCode::kInvalidArgument, "dst '{}' is not one of once, skip, both", name);
}

Result<CronExpression> CronExpression::Parse(std::string_view text) {
  if (text.size() > kCronBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "cron: {} bytes, limit {}", text.size(), kCronBytesMax);
  MILLRACE_TRY_ASSIGN(const std::string_view expanded, ExpandMacro(text));
  std::vector<std::string_view> fields = SplitBlanks(expanded);
  if (fields.size() != 5 && fields.size() != 6)
    return Fail(ErrorCode::kInvalidArgument,
                "cron '{}' has {} fields; expected 5 (minute hour day month weekday) or 6 with leading seconds", text,
                fields.size());
  if (fields.size() == 5) fields.insert(fields.begin(), "0");

  CronExpression e;
  MILLRACE_TRY_ASSIGN(e.seconds_, ParseField(fields[0], kSecond));
  MILLRACE_TRY_ASSIGN(e.minutes_, ParseField(fields[1], kMinute));
  MILLRACE_TRY_ASSIGN(const auto hours, ParseField(fields[2], kHour));
  MILLRACE_TRY_ASSIGN(const auto months, ParseField(fields[4], kMonth));
  for (std::size_t i = 0; i < 24; ++i) e.hours_[i] = hours[i];
  for (std::size_t i = 1; i <= 12; ++i) e.months_[i] = months[i];
  e.hour_star_ = StartsWithStar(fields[2]);
  e.day_star_ = StartsWithStar(fields[3]);
  e.weekday_star_ = StartsWithStar(fields[5]);

  std::bitset<60> days, weekdays;
  for (const std::string_view element : Split(fields[3], ',')) {
    if (element == "L" || element == "l") {
      e.last_day_ = true;
    } else {
      MILLRACE_TRY(ParseElement(element, kDay, days));
    }
  }
  for (std::size_t i = 1; i <= 31; ++i) e.days_[i] = days[i];
  for (const std::string_view element : Split(fields[5], ',')) {
    if (const std::size_t hash = element.find('#'); hash != std::string_view::npos) {
      MILLRACE_TRY_ASSIGN(const int weekday, ParseValue(element.substr(0, hash), kWeekday));
      const std::string_view nth = element.substr(hash + 1);
      if (nth.size() != 1 || nth[0] < '1' || nth[0] > '5')
        return Fail(ErrorCode::kInvalidArgument, "cron field day-of-week: '{}' in '{}' is not a number in [1, 5]", nth,
                    element);
      e.nth_weekdays_ |= std::uint64_t{1} << (weekday % 7 * 6 + (nth[0] - '0'));
    } else if (element.size() > 1 && (element.back() == 'L' || element.back() == 'l')) {
      MILLRACE_TRY_ASSIGN(const int weekday, ParseValue(element.substr(0, element.size() - 1), kWeekday));
      e.last_weekdays_.set(static_cast<std::size_t>(weekday % 7));
    } else {
      MILLRACE_TRY(ParseElement(element, kWeekday, weekdays));
    }
  }
  for (std::size_t i = 0; i <= 7; ++i)
    if (weekdays[i]) e.weekdays_.set(i % 7);

  if (!e.NextLocal(0)) return Fail(ErrorCode::kInvalidArgument, "cron '{}' never fires: no such day exists", text);
  return e;
}

bool CronExpression::DayMatches(int year, unsigned month, unsigned day) const {
  const chr::year_month_day ymd{chr::year{year}, chr::month{month}, chr::day{day}};
  const chr::weekday weekday{chr::sys_days{ymd}};
  const auto last = static_cast<unsigned>((ymd.year() / ymd.month() / chr::last).day());
  const unsigned w = weekday.c_encoding();
  const bool day_of_month = days_[day] || (last_day_ && day == last);
  const bool day_of_week =
      weekdays_[w] || (last_weekdays_[w] && day + 7 > last) || ((nth_weekdays_ >> (w * 6 + (day - 1) / 7 + 1)) & 1) != 0;
  if (day_star_ || weekday_star_) return day_of_month && day_of_week;
  return day_of_month || day_of_week;
}

std::optional<std::int64_t> CronExpression::NextLocal(std::int64_t from_local_s) const {
  chr::sys_days day = chr::floor<chr::days>(chr::sys_seconds{chr::seconds{from_local_s}});
  std::int64_t second_of_day = from_local_s - chr::duration_cast<chr::seconds>(day.time_since_epoch()).count();
  const int year_max = static_cast<int>(chr::year_month_day{day}.year()) + kSearchYearsMax;
  for (;; day += chr::days{1}, second_of_day = 0) {
    chr::year_month_day ymd{day};
    if (static_cast<int>(ymd.year()) > year_max) return std::nullopt;
    if (!months_[static_cast<unsigned>(ymd.month())]) {
      day = chr::sys_days{ymd.year() / ymd.month() / chr::last};  // the loop adds the day that starts the next month
      continue;
    }
    if (!DayMatches(static_cast<int>(ymd.year()), static_cast<unsigned>(ymd.month()), static_cast<unsigned>(ymd.day())))
      continue;
    const auto first_hour = static_cast<std::size_t>(second_of_day / 3600);
    for (std::size_t h = first_hour; h < 24; ++h) {
      if (!hours_[h]) continue;
      const bool same_hour = h == first_hour;
      const auto first_minute = same_hour ? static_cast<std::size_t>(second_of_day / 60 % 60) : 0;
      for (std::size_t m = first_minute; m < 60; ++m) {
        if (!minutes_[m]) continue;
        for (std::size_t s = same_hour && m == first_minute ? static_cast<std::size_t>(second_of_day % 60) : 0; s < 60; ++s)
          if (seconds_[s])
            return chr::duration_cast<chr::seconds>(day.time_since_epoch()).count() +
                   static_cast<std::int64_t>(h * 3600 + m * 60 + s);
      }
    }
  }
}

namespace {

Result<const date::time_zone*> FindZone(std::string_view timezone) {
  // A name goes into a file path inside tzdata: nothing but letters, digits and a few signs, and no dot-dot.
  const bool safe = !timezone.empty() && timezone.size() <= 64 && !timezone.starts_with('/') &&
                    timezone.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_/+-") ==
                        std::string_view::npos &&
                    timezone != "localtime";  // each machine\'s own: no two would agree on a slot
  try {
    if (safe) return date::locate_zone(std::string(timezone));
  } catch (const std::runtime_error&) {  // unknown zone
  }
  return Fail(ErrorCode::kInvalidArgument, "timezone '{}' is not an IANA time zone (like UTC, Europe/Paris, America/New_York)",
              timezone.substr(0, 64));
}

// The first instant of a local day: where midnight does not exist, the end of the gap; where it comes twice, the first.
WallTime StartOfDay(const date::time_zone& zone, chr::sys_days day) {
  const date::local_seconds midnight{day.time_since_epoch()};
  const date::local_info info = zone.get_info(midnight);
  if (info.result == date::local_info::nonexistent) return FromUnixMicros(Seconds(info.first.end) * 1'000'000);
  return FromUnixMicros((midnight.time_since_epoch().count() - info.first.offset.count()) * 1'000'000);
}

}  // namespace

Result<WallTime> ParseRangeEdge(std::string_view text, std::string_view timezone, RangeEdge edge) {
  MILLRACE_TRY_ASSIGN(const date::time_zone* const zone, FindZone(timezone));
  if (text.size() != 10) {
    auto instant = ParseRfc3339(text);
    if (instant) return *instant;
    return Fail(ErrorCode::kInvalidArgument, "'{}' is neither a day like 2026-11-21 nor a time like 2026-11-21T06:15:00Z",
                text.substr(0, 64));
  }
  const auto day = ParseRfc3339(std::string(text) + "T00:00:00Z");
  if (!day) return Fail(ErrorCode::kInvalidArgument, "'{}' is not a day like 2026-11-21", text);
  const auto first = chr::floor<chr::days>(*day);
  const WallTime begins = StartOfDay(*zone, first), ends = StartOfDay(*zone, first + chr::days{1});
  if (begins == ends)
    return Fail(ErrorCode::kInvalidArgument, "{} has no day {}: its clock jumped over it; give the day before or after it",
                timezone, text);
  return edge == RangeEdge::kTo ? ends : begins;
}

Result<CronSchedule> CronSchedule::Make(std::string_view cron, std::string_view timezone, DstRule rule) {
  MILLRACE_TRY_ASSIGN(const CronExpression expression, CronExpression::Parse(cron));
  MILLRACE_TRY_ASSIGN(const date::time_zone* const zone, FindZone(timezone));
  return CronSchedule(expression, zone, rule);
}

Result<CronSchedule> CronSchedule::Make(const ScheduleSpec& spec) {
  MILLRACE_TRY_ASSIGN(const DstRule rule, ParseDstRule(spec.dst));
  MILLRACE_TRY_ASSIGN(CronSchedule schedule, Make(spec.cron, spec.timezone, rule));
  const auto edge = [&](const std::string& text, RangeEdge which, std::string_view key) -> Result<std::optional<WallTime>> {
    if (text.empty()) return std::nullopt;
    auto at = ParseRangeEdge(text, spec.timezone, which);
    if (!at) return Prefixed(std::move(at.error()), "{}", key);
    return *at;
  };
  MILLRACE_TRY_ASSIGN(schedule.start_, edge(spec.start, RangeEdge::kFrom, "start"));
  MILLRACE_TRY_ASSIGN(schedule.end_, edge(spec.end, RangeEdge::kTo, "end"));
  if (schedule.start_ && schedule.end_ && *schedule.end_ <= *schedule.start_)
    return Fail(ErrorCode::kInvalidArgument, "end: '{}' is not after start '{}': the schedule would never fire", spec.end,
                spec.start);
  return schedule;
}

std::optional<WallTime> CronSchedule::Next(WallTime after) const {
  if (start_ && after < *start_) after = *start_ - Micros{1};
  if (end_ && after >= *end_) return std::nullopt;
  const auto next = NextUnbounded(after);
  if (next && end_ && *next >= *end_) return std::nullopt;
  return next;
}

// There is no search backwards: windows before `before` that double until they hold enough.
std::vector<WallTime> CronSchedule::LastBefore(WallTime before, WallTime from, std::size_t limit) const {
  std::vector<WallTime> found;
  if (start_) from = std::max(from, *start_);
  for (Micros window = chr::minutes{1}; from < before; window *= 2) {
    const bool all = before - from <= window;
    found.clear();
    auto slot = Next((all ? from : before - window) - Micros{1});
    for (; slot && *slot < before; slot = Next(*slot)) found.push_back(*slot);
    if (all || found.size() >= limit) break;
  }
  std::ranges::reverse(found);
  if (found.size() > limit) found.resize(limit);
  return found;
}

std::optional<ClockJump> CronSchedule::NextJump(WallTime after) const {
  const date::time_zone& zone = Zone(zone_);
  const std::int64_t first = chr::floor<chr::seconds>(after.time_since_epoch()).count();
  date::sys_info info = zone.get_info(date::sys_seconds{chr::seconds{first}});
  while (Seconds(info.end) < first + std::int64_t{kSearchYearsMax} * 366 * 86400) {
    const date::sys_info next = zone.get_info(info.end);
    // Many transitions change only the zone's abbreviation or what counts as daylight saving.
    if (next.offset != info.offset)
      return ClockJump{FromUnixMicros(Seconds(info.end) * 1'000'000), info.offset.count(), next.offset.count()};
    info = next;
  }
  return std::nullopt;
}

// Between two transitions the offset is constant, so local time is UTC plus a constant and the search is pure civil
// arithmetic. The daylight-saving rule acts only where one such segment begins.
std::optional<WallTime> CronSchedule::NextUnbounded(WallTime after) const {
  const date::time_zone& zone = Zone(zone_);
  const std::int64_t first = chr::floor<chr::seconds>(after.time_since_epoch()).count() + 1;
  const std::int64_t give_up = first + std::int64_t{kSearchYearsMax} * 366 * 86400;
  std::int64_t from = first;  // the earliest UTC second that may be returned
  while (from < give_up) {
    const date::sys_info info = zone.get_info(date::sys_seconds{chr::seconds{from}});
    const std::int64_t begin = Seconds(info.begin), end = Seconds(info.end), offset = info.offset.count();
    std::int64_t local_from = from + offset;
    if (!expression_.follows_elapsed_time() && info.begin > date::sys_seconds{chr::seconds{std::int64_t{-1} << 40}}) {
      const std::int64_t old_offset = zone.get_info(info.begin - chr::seconds{1}).offset.count();
      const std::int64_t jump = offset - old_offset;
      if (jump > 0 && from == begin && rule_ != DstRule::kSkip) {
        // Local times [begin + old_offset, begin + offset) do not exist today; those that match fire now.
        const auto skipped = expression_.NextLocal(begin + old_offset);
        if (skipped && *skipped < begin + offset) return FromUnixMicros(begin * 1'000'000);
      }
      if (jump < 0 && rule_ != DstRule::kBoth) {
        // Local times [begin + offset, begin + old_offset) have been: each fired in the segment before.
        local_from = std::max(local_from, begin + old_offset);
      }
    }
    const auto local = expression_.NextLocal(local_from);
    if (!local) return std::nullopt;
    if (*local - offset < end) return FromUnixMicros((*local - offset) * 1'000'000);
    from = end;
  }
  return std::nullopt;
}

std::vector<WallTime> CronSchedule::Between(WallTime after, WallTime until, std::size_t limit) const {
  std::vector<WallTime> slots;
  for (auto slot = Next(after); slot && *slot <= until && slots.size() < limit; slot = Next(*slot)) slots.push_back(*slot);
  return slots;
}

std::string LocalText(std::int64_t local_s) {
  std::string text = ToRfc3339(FromUnixMicros(local_s * 1'000'000));
  text[text.find('T')] = ' ';  // not always the eleventh: years may have five digits
  text.pop_back();
  return text;
}

std::string CronSchedule::InZone(WallTime t) const {
  const date::sys_info info = Zone(zone_).get_info(chr::floor<chr::seconds>(t));
  const std::int64_t minutes = info.offset.count() / 60;
  return fmt::format("{} {} ({}{:02}:{:02})", LocalText(chr::floor<chr::seconds>(t.time_since_epoch() + info.offset).count()),
                     info.abbrev, minutes < 0 ? '-' : '+', std::abs(minutes) / 60, std::abs(minutes) % 60);
}

std::int64_t CronSchedule::OffsetAt(WallTime t) const {
  return Zone(zone_).get_info(chr::floor<chr::seconds>(t)).offset.count();
}

std::string_view CronSchedule::OutOfBound(WallTime t) const {
  if (start_ && t < *start_) return "start";
  return end_ && t >= *end_ ? "end" : "";
}

}  // namespace millrace
