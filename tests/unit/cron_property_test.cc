// Cron over every IANA zone, ten years, three daylight-saving rules: strictly increasing, nothing doubled, nothing skipped that
// the rule does not allow.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <sstream>

#include "common/base/random.h"
#include "common/model/cron.h"

namespace millrace {
namespace {

using std::chrono::days;
using Seconds = std::chrono::seconds;

constexpr const char* kTableFolder = "/usr/share/zoneinfo";
constexpr std::size_t kZonesMin = 300;  // every table of the last twenty years has more

struct ZoneTable {
  std::vector<std::string> known;  // to the tz library
  std::size_t listed = 0;
};

// The zones of the system's table in `folder`. Names that mean the same zone only where they are asked for: the answers are the
// same.
ZoneTable ReadZones(const std::string& folder, bool with_links) {
  ZoneTable zones;
  for (const char* table : {"tzdata.zi", "zone1970.tab", "zone.tab"}) {
    std::ifstream in(folder + "/" + table);
    const bool compact = std::string_view(table).ends_with(".zi");
    for (std::string line; std::getline(in, line);) {
      std::istringstream fields(line);
      std::string a, b, c;
      fields >> a >> b >> c;
      if (compact && a == "Z") zones.known.push_back(b);
      if (compact && a == "L" && with_links) zones.known.push_back(c);
      if (!compact && !a.empty() && a[0] != '#') zones.known.push_back(c);
    }
    if (!zones.known.empty()) break;
  }
  zones.listed = zones.known.size();
  std::erase_if(zones.known, [](const std::string& zone) { return !CronSchedule::Make("0 0 * * *", zone, DstRule::kOnce); });
  return zones;
}

// That nearly every zone there is will be tried.
void ExpectAllZones(const ZoneTable& zones) {
  EXPECT_GE(zones.known.size(), kZonesMin) << "the system's time zone table lists " << zones.listed
                                           << " zones: is the package tzdata installed?";
  EXPECT_GE(zones.known.size() + 5, zones.listed) << "the tz library does not know many of the zones that the system lists";
}

class CronPropertyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const ZoneTable zones = ReadZones(kTableFolder, false);
    ExpectAllZones(zones);
    zones_ = zones.known;
    ASSERT_FALSE(HasFailure()) << "without the zones there is nothing to look at";
  }
  std::vector<std::string> zones_;
};

TEST(CronZonesTest, ATableThatIsMissingOrShortFails) {
  EXPECT_NONFATAL_FAILURE(ExpectAllZones(ReadZones("/nonexistent", false)), "is the package tzdata installed?");
  const auto zones = [](std::size_t known, std::size_t listed) {
    return ZoneTable{std::vector<std::string>(known, "UTC"), listed};
  };
  EXPECT_NONFATAL_FAILURE(ExpectAllZones(zones(kZonesMin - 1, kZonesMin - 1)), "lists 299 zones");
  EXPECT_NONFATAL_FAILURE(ExpectAllZones(zones(kZonesMin, kZonesMin + 6)), "does not know many");
  ExpectAllZones(zones(kZonesMin, kZonesMin + 5));
}

const WallTime kFrom = *ParseRfc3339("2020-01-01T00:00:00Z");
const WallTime kUntil = *ParseRfc3339("2030-01-01T00:00:00Z");

constexpr std::int64_t FloorDiv(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
constexpr std::int64_t FloorMod(std::int64_t a, std::int64_t b) { return a - FloorDiv(a, b) * b; }

// How the local clock of a zone jumps: at which instant, and how many seconds forward (+) or back (-).
struct Jump {
  WallTime at;
  std::int64_t seconds;
};

// A second view of a zone's local time, made from nothing but what CronSchedule::InZone shows.
class LocalClock {
 public:
  explicit LocalClock(const std::string& zone, WallTime from = kFrom, WallTime until = kUntil)
      : schedule_(*CronSchedule::Make("0 0 * * *", zone, DstRule::kOnce)) {
    const WallTime begin = from - days{14};
    first_offset_ = Offset(begin);
    std::int64_t before = first_offset_;
    for (WallTime week = begin; week < until + days{14}; week += days{7}) {
      while (before != Offset(week + days{7})) {  // no suspension of daylight saving is shorter than a week
        WallTime low = week, high = week + days{7};
        while (high - low > 1s) {
          const WallTime middle = std::chrono::floor<Seconds>(low + (high - low) / 2);
          (Offset(middle) == before ? low : high) = middle;
        }
        jumps_.push_back({high, Offset(high) - before});
        before = Offset(high);
      }
    }
  }
  const std::vector<Jump>& jumps() const { return jumps_; }
  std::int64_t Second(WallTime t) const {
    std::int64_t second = ToUnixMicros(t) / 1'000'000 + first_offset_;
    for (const Jump& jump : jumps_) {
      if (jump.at > t) break;
      second += jump.seconds;
    }
    return second;
  }
  std::int64_t Day(WallTime t) const { return FloorDiv(Second(t), 86400); }
  std::string Show(WallTime t) const { return schedule_.InZone(t); }

 private:
  std::int64_t Offset(WallTime t) const {  // "2026-11-21 06:15:00 EST (-05:00)", but to the second
    std::string text = schedule_.InZone(t).substr(0, 19) + "Z";
    text[10] = 'T';
    return ToUnixMicros(*ParseRfc3339(text)) / 1'000'000 - ToUnixMicros(t) / 1'000'000;
  }
  CronSchedule schedule_;
  std::int64_t first_offset_ = 0;
  std::vector<Jump> jumps_;
};

struct DailyCounts {
  std::int64_t first_day = 0;
  std::vector<int> fires;
};

// Counts the fires of a daily time per local day in [from, until] and looks at the time of each.
DailyCounts CountDaily(const LocalClock& local, const CronSchedule& schedule, DstRule rule, std::int64_t wanted, WallTime from,
                       WallTime until) {
  DailyCounts counts{local.Day(from), std::vector<int>(static_cast<std::size_t>(local.Day(until) - local.Day(from) + 2))};
  WallTime last = from;
  for (const WallTime t : schedule.Between(from, until, 1'000'000)) {
    if (t <= last) ADD_FAILURE() << "not increasing: " << local.Show(t);
    last = t;
    ++counts.fires[static_cast<std::size_t>(local.Day(t) - counts.first_day)];
    if (FloorMod(local.Second(t), 86400) == wanted) continue;
    // Any other time is the end of a gap, and never under `skip`.
    EXPECT_NE(rule, DstRule::kSkip) << local.Show(t);
    EXPECT_TRUE(std::ranges::any_of(local.jumps(), [&](const Jump& j) { return j.at == t && j.seconds > 0; })) << local.Show(t);
  }
  return counts;
}

// One per day with `once`; what `skip` leaves out and `both` doubles is on a day whose clock jumps that way.
void ExpectDaily(const LocalClock& local, const DailyCounts& counts, DstRule rule) {
  for (std::size_t i = 1; i + 2 < counts.fires.size(); ++i) {
    const int n = counts.fires[i];
    if (n == 1) continue;
    const std::int64_t day = counts.first_day + static_cast<std::int64_t>(i);
    const bool forward = n == 0;
    const bool jumped = std::ranges::any_of(
        local.jumps(), [&](const Jump& j) { return (j.seconds > 0) == forward && std::abs(local.Day(j.at) - day) <= 1; });
    const bool allowed = jumped && ((rule == DstRule::kSkip && n == 0) || (rule == DstRule::kBoth && n == 2));
    EXPECT_TRUE(allowed) << Name(rule) << ": " << n << " fires on local day " << day;
  }
}

TEST_F(CronPropertyTest, ADailyTimeFiresOncePerLocalDayInEveryZone) {
  constexpr std::pair<const char*, std::int64_t> kDaily[] = {
      {"30 2 * * *", 9000}, {"15 0 * * *", 900}, {"30 1 * * *", 5400}, {"0 3 * * *", 10800}};
  std::size_t fires = 0, jumps = 0;
  for (const std::string& zone : zones_) {
    SCOPED_TRACE(zone);
    const LocalClock local(zone);
    jumps += local.jumps().size();
    for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth}) {
      for (const auto& [cron, wanted] : kDaily) {
        const auto schedule = CronSchedule::Make(cron, zone, rule);
        ASSERT_TRUE(schedule);
        // Ten years for one time of day, and around each jump for the others.
        if (wanted == 9000 && (rule == DstRule::kOnce || !local.jumps().empty())) {
          const DailyCounts counts = CountDaily(local, *schedule, rule, wanted, kFrom, kUntil);
          fires += counts.fires.size();
          ExpectDaily(local, counts, rule);
        } else {
          for (const Jump& jump : local.jumps())
            ExpectDaily(local, CountDaily(local, *schedule, rule, wanted, jump.at - days{4}, jump.at + days{4}), rule);
        }
      }
    }
  }
  fmt::print("{} zones, {} jumps, {} days\n", zones_.size(), jumps, fires);
  EXPECT_GT(jumps, 100u);
}

TEST_F(CronPropertyTest, ElapsedSchedulesFireEveryThirtyMinutesWhateverTheClockDoes) {
  for (const std::string& zone : zones_) {
    SCOPED_TRACE(zone);
    const LocalClock local(zone);
    const auto rule = static_cast<DstRule>(zone.size() % 3);  // makes no difference here
    const auto schedule = CronSchedule::Make("*/30 * * * *", zone, rule);
    // Where nothing jumps, ten years are the same day again and again: around each jump, and one month.
    std::vector<std::pair<WallTime, WallTime>> spans{{kFrom, kFrom + days{31}}};
    for (const Jump& jump : local.jumps()) spans.emplace_back(jump.at - days{1}, jump.at + days{1});
    for (const auto& [from, until] : spans) {
      const auto fires = schedule->Between(from, until, 10'000);
      ASSERT_GE(fires.size(), 90u);
      for (std::size_t i = 1; i < fires.size(); ++i) {
        const auto gap = std::chrono::duration_cast<Seconds>(fires[i] - fires[i - 1]);
        if (gap == 30min) continue;
        // Only a jump that is no multiple of half an hour may move the matches themselves.
        const bool odd = std::ranges::any_of(
            local.jumps(), [&](const Jump& j) { return j.at > fires[i - 1] && j.at <= fires[i] && j.seconds % 1800 != 0; });
        EXPECT_TRUE(odd && gap <= 60min) << gap.count() << " s before " << local.Show(fires[i]);
      }
    }
  }
}

TEST_F(CronPropertyTest, NoDoubleLocalTimeUnlessBothAndNoneLostUnlessSkip) {
  for (const std::string& zone : zones_) {
    SCOPED_TRACE(zone);
    const LocalClock local(zone);
    for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth}) {
      const auto schedule = CronSchedule::Make("0,20,40 0-4 * * *", zone, rule);
      for (const Jump& jump : local.jumps()) {
        const WallTime from = jump.at - days{2}, until = jump.at + days{2};
        std::map<std::int64_t, int> seen;
        for (const WallTime t : schedule->Between(from, until, 10'000)) ++seen[local.Second(t)];
        const std::int64_t after = local.Second(jump.at), before = after - jump.seconds;
        for (const auto& [second, count] : seen) {
          const bool repeated = jump.seconds < 0 && second >= after && second < before;
          EXPECT_LE(count, rule == DstRule::kBoth && repeated ? 2 : 1) << local.Show(jump.at) << " " << Name(rule);
        }
        // Every wall-clock match that exists fires; one that does not exist fires at the end of the gap or, with skip, not.
        bool lost_in_gap = false;
        for (std::int64_t s = local.Second(from) / 1200 * 1200 + 2400; s < local.Second(until) - 2400; s += 1200) {
          if (FloorMod(s, 86400) >= 5 * 3600) continue;
          const bool in_gap = jump.seconds > 0 && s >= before && s < after;
          lost_in_gap = lost_in_gap || in_gap;
          const bool twice = rule == DstRule::kBoth && jump.seconds < 0 && s >= after && s < before;
          EXPECT_GE(seen[s], in_gap  ? 0
                             : twice ? 2
                                     : 1)
              << local.Show(jump.at) << " " << Name(rule) << ": local second " << s << " is lost";
        }
        EXPECT_TRUE(!lost_in_gap || rule == DstRule::kSkip || seen.contains(after))
            << "the end of the gap: " << local.Show(jump.at);
      }
    }
  }
}

TEST_F(CronPropertyTest, LastAndNthDaysAreThoseDaysInEveryZone) {
  const auto zones = ReadZones(kTableFolder, true).known;
  for (const std::string& zone : zones) {
    SCOPED_TRACE(zone);
    const auto last = CronSchedule::Make("45 12 L * *", zone, DstRule::kOnce);
    const auto second_monday = CronSchedule::Make("45 12 * * MON#2", zone, DstRule::kBoth);
    ASSERT_TRUE(last && second_monday);
    const auto last_days = last->Between(kFrom, kUntil, 1000), mondays = second_monday->Between(kFrom, kUntil, 1000);
    EXPECT_EQ(last_days.size(), 120u);
    EXPECT_EQ(mondays.size(), 120u);
    for (const WallTime t : last_days) EXPECT_EQ(last->InZone(t + days{1}).substr(8, 2), "01") << last->InZone(t);
    for (const WallTime t : mondays) {
      const std::string text = last->InZone(t);
      const std::chrono::year_month_day date{std::chrono::year{std::stoi(text.substr(0, 4))},
                                             std::chrono::month(static_cast<unsigned>(std::stoi(text.substr(5, 2)))),
                                             std::chrono::day(static_cast<unsigned>(std::stoi(text.substr(8, 2))))};
      EXPECT_EQ(std::chrono::year_month_weekday(std::chrono::sys_days(date)).index(), 2u) << text;
      EXPECT_EQ(std::chrono::weekday(std::chrono::sys_days(date)), std::chrono::Monday) << text;
    }
  }
  fmt::print("{} zone names\n", zones.size());
}

TEST_F(CronPropertyTest, RandomExpressionsNeitherCrashNorGoBack) {
  const auto zones = ReadZones(kTableFolder, true).known;
  const std::uint64_t seed = SystemRandom().Next() % 1'000'000'000;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  SeededRandom random(seed);
  const auto number = [&](std::uint64_t low, std::uint64_t high) { return low + random.Below(high - low + 1); };
  const auto field = [&](std::uint64_t low, std::uint64_t high) -> std::string {
    switch (random.Below(5)) {
      case 0: return "*";
      case 1: return fmt::format("*/{}", number(1, high));
      case 2: {
        const auto a = number(low, high);
        return fmt::format("{}-{}", a, number(a, high));
      }
      case 3: return fmt::format("{},{}", number(low, high), number(low, high));
      default: return std::to_string(number(low, high));
    }
  };
  int parsed = 0;
  for (int i = 0; i < 1500; ++i) {
    const std::string cron =
        fmt::format("{} {} {} {} {}", field(0, 59), field(0, 23), random.Below(8) == 0 ? "L" : field(1, 31), field(1, 12),
                    random.Below(8) == 0 ? "5L" : field(0, 7));
    const auto schedule = CronSchedule::Make(cron, zones[random.Below(zones.size())], static_cast<DstRule>(random.Below(3)));
    if (!schedule) continue;  // 30 February
    ++parsed;
    WallTime t = kFrom + Micros{static_cast<std::int64_t>(random.Below(10ull * 365 * 86400 * 1'000'000))};
    for (int n = 0; n < 20; ++n) {
      const auto next = schedule->Next(t);
      if (!next) break;
      ASSERT_GT(*next, t) << cron;
      // Next does not depend on where it starts between two slots.
      ASSERT_EQ(schedule->Next(t + (*next - t) / 2), next) << cron;
      ASSERT_EQ(schedule->Next(*next - 1us), next) << cron;
      t = *next;
    }
  }
  EXPECT_GT(parsed, 1000);
}

// A second cron, minute by minute, that knows neither transitions nor fields as sets: what a person would do with a calendar
// and the zone's clock.
class ByHand {
 public:
  ByHand(std::string cron, DstRule rule) : rule_(rule) {
    std::istringstream in(cron);
    for (std::size_t f = 0; f < fields_.size(); ++f) {
      in >> fields_[f];
      for (std::int64_t value = 0; value < 60; ++value)
        matching_[f].push_back(Field(fields_[f], value, f == 2 || f == 3 ? 1 : 0));
    }
  }
  bool Matches(std::int64_t local_second) const {
    const std::int64_t day = FloorDiv(local_second, 86400), of_day = FloorMod(local_second, 86400);
    const auto is = [&](std::size_t field, std::int64_t value) { return matching_[field][static_cast<std::size_t>(value)]; };
    if (!is(0, of_day / 60 % 60) || !is(1, of_day / 3600)) return false;
    const std::chrono::sys_days date{days{day}};
    const std::chrono::year_month_day ymd{date};
    if (!is(3, static_cast<unsigned>(ymd.month()))) return false;
    const auto weekday = static_cast<std::int64_t>(std::chrono::weekday{date}.c_encoding());
    const bool by_day = is(2, static_cast<unsigned>(ymd.day()));
    const bool by_weekday = is(4, weekday) || (weekday == 0 && is(4, 7));
    return fields_[2][0] == '*' || fields_[4][0] == '*' ? by_day && by_weekday : by_day || by_weekday;
  }
  // Every fire in [from, until), both whole minutes.
  std::vector<WallTime> Walk(const LocalClock& local, WallTime from, WallTime until) const {
    const bool wildcard = fields_[1][0] == '*';
    std::vector<WallTime> fires;
    std::int64_t second = local.Second(from);
    auto jump = std::ranges::find_if(local.jumps(), [&](const Jump& j) { return j.at > from; });
    const Jump* back = nullptr;  // the clock went back here, and has not come to where it was
    for (WallTime t = from; t < until; t += 1min, second += 60) {
      bool moved = false;  // a left-out time that is made up for now
      if (jump != local.jumps().end() && jump->at == t) {
        for (std::int64_t s = second; s < second + jump->seconds; s += 60)
          moved = moved || (!wildcard && rule_ != DstRule::kSkip && Matches(s));
        second += jump->seconds;
        back = jump->seconds < 0 ? &*jump : nullptr;
        ++jump;
      }
      if (back != nullptr && t >= back->at - std::chrono::seconds{back->seconds}) back = nullptr;
      const bool again = back != nullptr && !wildcard && rule_ != DstRule::kBoth;
      if (moved || (!again && Matches(second))) fires.push_back(t);
    }
    return fires;
  }

 private:
  static bool Field(const std::string& field, std::int64_t value, std::int64_t low) {
    std::istringstream in(field);
    for (std::string part; std::getline(in, part, ',');) {
      const auto slash = part.find('/');
      const std::int64_t step = slash == std::string::npos ? 1 : std::stoll(part.substr(slash + 1));
      const std::string range = part.substr(0, slash);
      const auto dash = range.find('-');
      const std::int64_t first = range == "*" ? low : std::stoll(range);
      const std::int64_t last = range == "*" ? 99 : dash == std::string::npos ? first : std::stoll(range.substr(dash + 1));
      if (value >= first && value <= last && (value - first) % step == 0) return true;
    }
    return false;
  }
  std::array<std::string, 5> fields_;
  std::array<std::vector<bool>, 5> matching_;  // by value
  DstRule rule_;
};

TEST_F(CronPropertyTest, RandomExpressionsAreWhatAMinuteWalkOverThreeYearsFinds) {
  constexpr std::pair<const char*, const char*> kPlaces[] = {
      {"America/New_York", "2024-01-01"},  {"Europe/Berlin", "2024-01-01"},   {"Australia/Lord_Howe", "2023-01-01"},
      {"Africa/Casablanca", "2022-01-01"}, {"Africa/El_Aaiun", "2022-01-01"}, {"America/Sao_Paulo", "2016-01-01"},
      {"Asia/Beirut", "2022-01-01"},       {"America/Havana", "2022-01-01"},  {"Europe/Dublin", "2023-01-01"},
      {"Antarctica/Troll", "2023-01-01"}};
  const std::uint64_t seed = SystemRandom().Next() % 1'000'000'000;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  SeededRandom random(seed);
  const auto number = [&](std::uint64_t low, std::uint64_t high) { return low + random.Below(high - low + 1); };
  const auto field = [&](std::uint64_t low, std::uint64_t high) -> std::string {
    switch (random.Below(6)) {
      case 0: return "*";
      case 1: return fmt::format("*/{}", number(1, high));
      case 2: {
        const auto a = number(low, high);
        return fmt::format("{}-{}", a, number(a, high));
      }
      case 3: return fmt::format("{},{}", number(low, high), number(low, high));
      default: return std::to_string(number(low, high));
    }
  };
  std::size_t fires = 0;
  for (const auto& [zone, begin] : kPlaces) {
    const WallTime from = *ParseRfc3339(std::string(begin) + "T00:00:00Z"), until = from + days{3 * 365};
    const LocalClock local(zone, from, until);
    EXPECT_FALSE(local.jumps().empty()) << zone;
    for (int i = 0; i < 4; ++i) {
      // Hours near midnight and the early morning, where clocks jump; days mostly free, so that few jumps are missed.
      const std::string hour = i == 0                 ? "*"
                               : i == 1               ? "0-3"
                               : random.Below(2) == 0 ? std::to_string(number(0, 3))
                                                      : field(0, 23);
      const std::string cron = fmt::format("{} {} {} {} {}", field(0, 59), hour, random.Below(3) == 0 ? field(1, 31) : "*",
                                           random.Below(4) == 0 ? field(1, 12) : "*", random.Below(3) == 0 ? field(0, 7) : "*");
      const auto rule = static_cast<DstRule>(random.Below(3));
      const auto schedule = CronSchedule::Make(cron, zone, rule);
      if (!schedule) continue;  // 30 February
      SCOPED_TRACE(fmt::format("{} in {}, {}", cron, zone, Name(rule)));
      const auto expected = ByHand(cron, rule).Walk(local, from, until);
      const auto found = schedule->Between(from - 1us, until - 1us, 10'000'000);
      fires += found.size();
      const auto [a, b] = std::ranges::mismatch(expected, found);
      EXPECT_TRUE(a == expected.end() && b == found.end()) << "by hand " << (a == expected.end() ? "nothing" : local.Show(*a))
                                                           << ", found " << (b == found.end() ? "nothing" : local.Show(*b));
    }
  }
  fmt::print("{} fires\n", fires);
  EXPECT_GT(fires, 10'000u);
}

}  // namespace
}  // namespace millrace
