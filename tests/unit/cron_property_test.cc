// Cron over every IANA zone, ten years, three daylight-saving rules: strictly increasing, nothing doubled, nothing skipped that
// the rule does not allow.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <tuple>

#include "common/base/random.h"
#include "common/model/cron.h"

namespace millrace {
namespace {

using std::chrono::days;
using Seconds = std::chrono::seconds;

// The zones of the system's table; a fixed choice where there is none.
std::vector<std::string> Zones() {
  std::vector<std::string> zones;
  for (const char* table : {"/usr/share/zoneinfo/tzdata.zi", "/usr/share/zoneinfo/zone1970.tab", "/usr/share/zoneinfo/zone.tab"}) {
    std::ifstream in(table);
    const bool compact = std::string_view(table).ends_with(".zi");
    for (std::string line; std::getline(in, line);) {
      std::istringstream fields(line);
      std::string a, b, c;
      fields >> a >> b >> c;
      if (compact && a == "Z") zones.push_back(b);
      if (compact && a == "L") zones.push_back(c);
      if (!compact && !a.empty() && a[0] != '#') zones.push_back(c);
    }
    if (!zones.empty()) break;
  }
  if (zones.empty())
    zones = {"America/New_York", "Europe/Dublin", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "America/Sao_Paulo",
             "Asia/Gaza", "Antarctica/Troll", "Asia/Kathmandu", "America/Havana", "Asia/Tehran"};
  return zones;
}

const WallTime kFrom = *ParseRfc3339("2020-01-01T00:00:00Z");
const WallTime kUntil = *ParseRfc3339("2030-01-01T00:00:00Z");

// The local civil second, from what InZone shows: "2026-11-21 06:15:00 EST (-05:00)".
std::int64_t LocalSecond(const CronSchedule& schedule, WallTime t) {
  std::string text = schedule.InZone(t).substr(0, 19) + "Z";
  text[10] = 'T';
  return ToUnixMicros(*ParseRfc3339(text)) / 1'000'000;
}
std::int64_t LocalDay(const CronSchedule& schedule, WallTime t) {
  const std::int64_t s = LocalSecond(schedule, t);
  return (s - ((s % 86400 + 86400) % 86400)) / 86400;
}

std::vector<WallTime> Fires(std::string_view cron, const std::string& zone, DstRule rule) {
  const auto schedule = CronSchedule::Make(cron, zone, rule);
  EXPECT_TRUE(schedule) << zone << ": " << schedule.error().message;
  if (!schedule) return {};
  auto fires = schedule->Between(kFrom, kUntil, 1'000'000);
  WallTime last = kFrom;
  for (const WallTime t : fires) {
    EXPECT_GT(t, last) << zone << " " << cron;
    last = t;
  }
  return fires;
}

CronSchedule Zone(const std::string& zone) { return *CronSchedule::Make("0 0 * * *", zone, DstRule::kOnce); }

// How the local clock of a zone jumps in the ten years: the instants and the seconds it goes forward (+) or back (-).
struct Jump {
  WallTime at;
  std::int64_t seconds;
};
std::vector<Jump> JumpsOf(const CronSchedule& zone) {
  std::vector<Jump> jumps;
  const auto offset = [&](WallTime t) { return LocalSecond(zone, t) - ToUnixMicros(t) / 1'000'000; };
  for (WallTime day = kFrom; day < kUntil; day += days{1}) {
    std::int64_t before = offset(day);
    if (before == offset(day + days{1})) continue;
    WallTime low = day, high = day + days{1};
    while (high - low > 1s) {
      const WallTime middle = std::chrono::floor<Seconds>(low + (high - low) / 2);
      (offset(middle) == before ? low : high) = middle;
    }
    jumps.push_back({high, offset(high) - before});
  }
  return jumps;
}

TEST(CronPropertyTest, ADailyTimeFiresOncePerLocalDayInEveryZone) {
  const auto zones = Zones();
  ASSERT_GE(zones.size(), 11u);
  std::size_t fires_seen = 0, jumps_seen = 0;
  for (const std::string& zone : zones) {
    SCOPED_TRACE(zone);
    const CronSchedule local = Zone(zone);
    const auto jumps = JumpsOf(local);
    jumps_seen += jumps.size();
    // The hours in which clocks usually jump, wherever this zone jumps at all; elsewhere one of them is enough.
    constexpr std::pair<const char*, std::int64_t> kDaily[] = {
        {"30 2 * * *", 9000}, {"15 0 * * *", 900}, {"30 1 * * *", 5400}, {"0 3 * * *", 10800}};
    for (const auto& [cron, wanted] : kDaily) {
      if (jumps.empty() && wanted != 9000) continue;
      std::map<DstRule, std::map<std::int64_t, int>> per_day;
      for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth}) {
        for (const WallTime t : Fires(cron, zone, rule)) {
          ++per_day[rule][LocalDay(local, t)];
          ++fires_seen;
          const std::int64_t second = (LocalSecond(local, t) % 86400 + 86400) % 86400;
          if (second == wanted) continue;
          // Any other time is the end of a gap, and never under `skip`.
          EXPECT_NE(rule, DstRule::kSkip) << local.InZone(t);
          EXPECT_TRUE(std::ranges::any_of(jumps, [&](const Jump& j) { return j.at == t && j.seconds > 0; })) << local.InZone(t);
        }
      }
      const std::int64_t first = LocalDay(local, kFrom) + 1, last = LocalDay(local, kUntil) - 1;
      for (std::int64_t day = first; day <= last; ++day) {
        EXPECT_EQ(per_day[DstRule::kOnce][day], 1) << cron << " once, day " << day;
        const int skip = per_day[DstRule::kSkip][day], both = per_day[DstRule::kBoth][day];
        // What `skip` leaves out and `both` doubles is on a day whose clock jumps that way.
        const auto jumped = [&](bool forward) {
          return std::ranges::any_of(jumps, [&](const Jump& j) {
            return (j.seconds > 0) == forward && std::abs(LocalDay(local, j.at) - day) <= 1;
          });
        };
        EXPECT_TRUE(skip == 1 || (skip == 0 && jumped(true))) << cron << " skip, day " << day << ": " << skip;
        EXPECT_TRUE(both == 1 || (both == 2 && jumped(false))) << cron << " both, day " << day << ": " << both;
      }
    }
  }
  fmt::print("{} zones, {} jumps, {} fires\n", zones.size(), jumps_seen, fires_seen);
  EXPECT_GT(jumps_seen, 100u);
}

TEST(CronPropertyTest, ElapsedSchedulesFireEveryThirtyMinutesWhateverTheClockDoes) {
  for (const std::string& zone : Zones()) {
    SCOPED_TRACE(zone);
    const CronSchedule local = Zone(zone);
    const auto jumps = JumpsOf(local);
    const auto rule = static_cast<DstRule>(zone.size() % 3);  // makes no difference here
    const auto schedule = CronSchedule::Make("*/30 * * * *", zone, rule);
    // Ten years where nothing jumps are the same day again and again: around each jump, and one month.
    std::vector<std::pair<WallTime, WallTime>> spans{{kFrom, kFrom + days{31}}};
    for (const Jump& jump : jumps) spans.emplace_back(jump.at - days{1}, jump.at + days{1});
    for (const auto& [from, until] : spans) {
      const auto fires = schedule->Between(from, until, 10'000);
      ASSERT_GE(fires.size(), 90u);
      for (std::size_t i = 1; i < fires.size(); ++i) {
        const auto gap = std::chrono::duration_cast<Seconds>(fires[i] - fires[i - 1]);
        // A jump that is no multiple of half an hour moves the matches themselves (Lord Howe's half hour is one).
        const auto jump = std::ranges::find_if(jumps, [&](const Jump& j) { return j.at > fires[i - 1] && j.at <= fires[i] && j.seconds % 1800 != 0; });
        if (jump == jumps.end()) {
          EXPECT_EQ(gap, 30min) << local.InZone(fires[i]);
        } else {
          EXPECT_LE(gap, 60min) << local.InZone(fires[i]);
        }
      }
    }
  }
}

TEST(CronPropertyTest, NoDoubleLocalTimeUnlessBothAndNoneLostUnlessSkip) {
  for (const std::string& zone : Zones()) {
    SCOPED_TRACE(zone);
    const CronSchedule local = Zone(zone);
    const auto jumps = JumpsOf(local);
    if (jumps.empty()) continue;
    for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth}) {
      const auto schedule = CronSchedule::Make("0,20,40 0-4 * * *", zone, rule);
      for (const Jump& jump : jumps) {
        const WallTime from = jump.at - days{2}, until = jump.at + days{2};
        std::map<std::int64_t, int> seen;
        for (const WallTime t : schedule->Between(from, until, 10'000)) ++seen[LocalSecond(local, t)];
        const std::int64_t after = LocalSecond(local, jump.at), before = after - jump.seconds;
        for (const auto& [second, count] : seen) {
          const bool repeated = jump.seconds < 0 && second >= after && second < before;
          EXPECT_LE(count, rule == DstRule::kBoth && repeated ? 2 : 1) << local.InZone(jump.at) << " " << Name(rule);
        }
        // Every wall-clock match that exists fires; one that does not exist fires at the end of the gap or, with skip, not.
        bool lost_in_gap = false;
        for (std::int64_t s = LocalSecond(local, from) / 1200 * 1200 + 2400; s < LocalSecond(local, until) - 2400; s += 1200) {
          const std::int64_t of_day = (s % 86400 + 86400) % 86400;
          if (of_day >= 5 * 3600) continue;
          const bool in_gap = jump.seconds > 0 && s >= before && s < after;
          lost_in_gap = lost_in_gap || in_gap;
          const bool twice = rule == DstRule::kBoth && jump.seconds < 0 && s >= after && s < before;
          EXPECT_GE(seen[s], in_gap ? 0 : twice ? 2 : 1) << local.InZone(jump.at) << " " << Name(rule) << ": local second " << s << " is lost";
        }
        EXPECT_TRUE(!lost_in_gap || rule == DstRule::kSkip || seen.contains(after)) << "the end of the gap: " << local.InZone(jump.at);
      }
    }
  }
}

TEST(CronPropertyTest, LastAndNthDaysAreThoseDaysInEveryZone) {
  for (const std::string& zone : Zones()) {
    SCOPED_TRACE(zone);
    const CronSchedule local = Zone(zone);
    const auto last = Fires("45 12 L * *", zone, DstRule::kOnce);
    EXPECT_EQ(last.size(), 120u);
    for (const WallTime t : last) EXPECT_EQ(local.InZone(t + days{1}).substr(8, 2), "01") << local.InZone(t);
    const auto second_monday = Fires("45 12 * * MON#2", zone, DstRule::kBoth);
    EXPECT_EQ(second_monday.size(), 120u);
    for (const WallTime t : second_monday) {
      EXPECT_EQ((LocalDay(local, t) + 4) % 7, 1) << local.InZone(t);
      const int day = std::stoi(local.InZone(t).substr(8, 2));
      EXPECT_TRUE(day >= 8 && day <= 14) << local.InZone(t);
    }
  }
}

TEST(CronPropertyTest, RandomExpressionsNeitherCrashNorGoBack) {
  const auto zones = Zones();
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
    const std::string cron = fmt::format("{} {} {} {} {}", field(0, 59), field(0, 23), random.Below(8) == 0 ? "L" : field(1, 31), field(1, 12),
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

}  // namespace
}  // namespace millrace
