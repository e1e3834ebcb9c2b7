#include "common/model/cron.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

std::vector<std::string> Fires(std::string_view cron, std::string_view zone, std::string_view after, int n,
                               DstRule rule = DstRule::kOnce) {
  auto schedule = CronSchedule::Make(cron, zone, rule);
  EXPECT_TRUE(schedule) << (schedule ? "" : schedule.error().message);
  std::vector<std::string> fires;
  if (!schedule) return fires;
  auto t = *ParseRfc3339(after);
  for (int i = 0; i < n; ++i) {
    const auto next = schedule->Next(t);
    if (!next) break;
    EXPECT_GT(*next, t);
    fires.push_back(ToRfc3339(*next));
    t = *next;
  }
  return fires;
}
using V = std::vector<std::string>;

TEST(CronTest, FieldsNamesRangesStepsAndLists) {
  EXPECT_EQ(Fires("*/20 9-10 * * *", "UTC", "2026-01-01T09:20:00Z", 4),
            (V{"2026-01-01T09:40:00Z", "2026-01-01T10:00:00Z", "2026-01-01T10:20:00Z", "2026-01-01T10:40:00Z"}));
  EXPECT_EQ(Fires("0 12 * jan,MAR mon-fri", "UTC", "2026-01-30T13:00:00Z", 2),
            (V{"2026-03-02T12:00:00Z", "2026-03-03T12:00:00Z"}));
  EXPECT_EQ(Fires("*/10 * * * * *", "UTC", "2026-01-01T00:00:55Z", 2), (V{"2026-01-01T00:01:00Z", "2026-01-01T00:01:10Z"}));
  EXPECT_EQ(Fires("5/25 0 * * *", "UTC", "2026-01-01T00:00:00Z", 3),
            (V{"2026-01-01T00:05:00Z", "2026-01-01T00:30:00Z", "2026-01-01T00:55:00Z"}));
  EXPECT_EQ(Fires("@monthly", "UTC", "2026-01-15T00:00:00Z", 2), (V{"2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"}));
  EXPECT_EQ(Fires("0 0 * * fri-sun", "UTC", "2026-11-19T00:00:00Z", 4),
            (V{"2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "2026-11-27T00:00:00Z"}));
}

TEST(CronTest, LastDayLastWeekdayAndNthWeekday) {
  EXPECT_EQ(Fires("0 0 L * *", "UTC", "2024-01-31T00:00:00Z", 3),
            (V{"2024-02-29T00:00:00Z", "2024-03-31T00:00:00Z", "2024-04-30T00:00:00Z"}));
  EXPECT_EQ(Fires("0 0 * * friL", "UTC", "2026-11-01T00:00:00Z", 2), (V{"2026-11-27T00:00:00Z", "2026-12-25T00:00:00Z"}));
  EXPECT_EQ(Fires("0 0 * * MON#2", "UTC", "2026-11-01T00:00:00Z", 2), (V{"2026-11-09T00:00:00Z", "2026-12-14T00:00:00Z"}));
  EXPECT_EQ(Fires("0 0 * * 1#5", "UTC", "2026-11-01T00:00:00Z", 1), (V{"2026-11-30T00:00:00Z"}));
}

TEST(CronTest, BothDayFieldsRestrictedMeansEither) {
  EXPECT_EQ(Fires("0 0 13 * 5", "UTC", "2026-11-01T00:00:00Z", 4),
            (V{"2026-11-06T00:00:00Z", "2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z", "2026-11-27T00:00:00Z"}));
  EXPECT_EQ(Fires("0 0 */2 * 5", "UTC", "2026-11-01T00:00:00Z", 2), (V{"2026-11-13T00:00:00Z", "2026-11-27T00:00:00Z"}))
      << "a field that begins with * restricts together with the other";
}

TEST(CronTest, LeapDayOnAWeekdayIsFoundYearsAhead) {
  EXPECT_EQ(Fires("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1), (V{"2104-02-29T00:00:00Z"}));
}

TEST(CronTest, NewYorkSpringForward) {  // 2026-03-08 02:00 EST -> 03:00 EDT at 07:00Z
  EXPECT_EQ(Fires("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
            (V{"2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"}));
  EXPECT_EQ(Fires("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2, DstRule::kSkip),
            (V{"2026-03-09T06:30:00Z", "2026-03-10T06:30:00Z"}));
  EXPECT_EQ(Fires("0,30 2,3 * * *", "America/New_York", "2026-03-08T05:00:00Z", 3),
            (V{"2026-03-08T07:00:00Z", "2026-03-08T07:30:00Z", "2026-03-09T06:00:00Z"}))
      << "the shifted slots and the real 03:00 are one instant: one fire";
  EXPECT_EQ(Fires("30 * * * *", "America/New_York", "2026-03-08T06:00:00Z", 3),
            (V{"2026-03-08T06:30:00Z", "2026-03-08T07:30:00Z", "2026-03-08T08:30:00Z"}));
}

TEST(CronTest, NewYorkFallBack) {  // 2026-11-01 02:00 EDT -> 01:00 EST at 06:00Z
  EXPECT_EQ(Fires("30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 2),
            (V{"2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"}));
  EXPECT_EQ(Fires("30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 3, DstRule::kBoth),
            (V{"2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z", "2026-11-02T06:30:00Z"}));
  EXPECT_EQ(Fires("*/30 * * * *", "America/New_York", "2026-11-01T04:59:00Z", 5),
            (V{"2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z",
               "2026-11-01T07:00:00Z"}))
      << "elapsed time";
}

TEST(CronTest, OddZones) {
  EXPECT_EQ(Fires("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),  // a half-hour gap 02:00-02:30
            (V{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"}));
  EXPECT_EQ(Fires("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 1), (V{"2011-12-30T10:00:00Z"}))
      << "30 December 2011 does not exist in Samoa: the slot fires at the end of the gap";
  EXPECT_EQ(Fires("0 0 * * *", "Asia/Kathmandu", "2026-01-01T00:00:00Z", 1), (V{"2026-01-01T18:15:00Z"}));
}

TEST(CronTest, BadExpressionsNameTheField) {
  const std::pair<const char*, const char*> cases[] = {
      {"60 * * * *", "cron field minute: '60' is outside [0, 59]"},
      {"*/0 * * * *", "cron field minute: step '0' in '*/0' is not an integer in [1, 59]"},
      {"5-1 * * * *", "cron field minute: range '5-1' goes backwards; write it as two ranges"},
      {"* * * *", "cron '* * * *' has 4 fields; expected 5 (minute hour day month weekday) or 6 with leading seconds"},
      {"* * * * * * *",
       "cron '* * * * * * *' has 7 fields; expected 5 (minute hour day month weekday) or 6 with leading seconds"},
      {"0 0 31 2 *", "cron '0 0 31 2 *' never fires: no such day exists"},
      {"0 24 * * *", "cron field hour: '24' is outside [0, 23]"},
      {"0 0 0 * *", "cron field day-of-month: '0' is outside [1, 31]"},
      {"0 0 * 13 *", "cron field month: '13' is outside [1, 12]"},
      {"0 0 * FOO *", "cron field month: 'FOO' is not a value in [1, 12]"},
      {"0 0 * * 8", "cron field day-of-week: '8' is outside [0, 7]"},
      {"0 0 * * MON#6", "cron field day-of-week: '6' in 'MON#6' is not a number in [1, 5]"},
      {"-1 * * * *", "cron field minute: '-1' is not a value in [0, 59]"},
      {"1, * * * *", "cron field minute: '' is not a value in [0, 59]"},
      {"@dialy", "cron '@dialy' is not one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly"},
      {"", "cron '' has 0 fields; expected 5 (minute hour day month weekday) or 6 with leading seconds"},
  };
  for (const auto& [text, message] : cases) {
    const auto e = CronExpression::Parse(text);
    ASSERT_FALSE(e) << text;
    EXPECT_EQ(e.error().message, message);
  }
  for (const char* zone : {"Mars/Base", "", "../../etc/passwd", "/etc/passwd", "Europe"})
    EXPECT_FALSE(CronSchedule::Make("0 0 * * *", zone, DstRule::kOnce)) << zone;
}

TEST(CronTest, InZoneShowsLocalTimeAndOffset) {
  const auto s = CronSchedule::Make("15 6 * * *", "America/New_York", DstRule::kOnce);
  EXPECT_EQ(s->InZone(*ParseRfc3339("2026-11-21T11:15:00Z")), "2026-11-21 06:15:00 EST (-05:00)");
  EXPECT_EQ(s->InZone(*ParseRfc3339("9999-12-31T23:59:59Z") + 6h), "10000-01-01 00:59:59 EST (-05:00)");
}

}  // namespace
}  // namespace millrace
