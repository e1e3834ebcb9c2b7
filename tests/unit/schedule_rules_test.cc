// Jitter, parallel runs, the range of a schedule, and what is shown around the jumps of a zone's clock.
#include "common/model/schedule_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "common/model/backfill.h"
#include "common/model/cron.h"
#include "common/model/dst_preview.h"
#include "common/model/pipeline_json.h"

namespace millrace {
namespace {

WallTime At(std::string_view text) { return *ParseRfc3339(text); }

TEST(ScheduleRulesTest, JitterIsTheSameForTheSameSlotAndSpreadOverOthers) {
  const WallTime slot = At("2026-01-01T00:00:00Z");
  EXPECT_EQ(JitterOf("p", "default", slot, 30s), JitterOf("p", "default", slot, 30s));
  EXPECT_EQ(JitterOf("p", "default", slot, 0ms), 0ms);
  // Fixed for ever: a scheduler of another version must come to the same answer.
  EXPECT_EQ(JitterOf("flights", "default", slot, 30s), JitterOf(std::string("fli") + "ghts", "default", slot, 30'000ms));
  std::set<Millis> seen;
  std::array<int, 10> tenths{};
  for (int i = 0; i < 10'000; ++i) {
    const Millis jitter = JitterOf("p" + std::to_string(i), "default", slot, 9999ms);
    ASSERT_GE(jitter, 0ms);
    ASSERT_LE(jitter, 9999ms);
    ++tenths[static_cast<std::size_t>(jitter.count() / 1000)];
    seen.insert(jitter);
  }
  for (const int n : tenths) EXPECT_NEAR(n, 1000, 150);
  EXPECT_GT(seen.size(), 6000u);
  EXPECT_NE(JitterOf("a", "bc", slot, 3600s), JitterOf("ab", "c", slot, 3600s));
}

TEST(ScheduleRulesTest, OverlapOfRunsCarriesTheLimit) {
  ScheduleSpec spec;
  EXPECT_EQ(OverlapOfRuns(spec), "queue");
  spec.overlap = "allow";
  EXPECT_EQ(OverlapOfRuns(spec), "allow");
  spec.max_parallel = 3;
  EXPECT_EQ(OverlapOfRuns(spec), "allow(3)");
  EXPECT_EQ(ParallelRunsOf("allow(3)"), 3u);
  EXPECT_EQ(ParallelRunsOf("allow"), UINT32_MAX);
  for (const char* one : {"queue", "skip", "cancel", "", "allow(", "allow()", "allow(0)", "allow(x)", "allow(-1)"})
    EXPECT_EQ(ParallelRunsOf(one), 1u) << one;
}

TEST(ScheduleRulesTest, ARequiredParameterIsWhyNoSlotRuns) {
  // Applied before files were refused for it: it goes on to load.
  auto pipeline = PipelineFromJson(
      R"({"name":"p","schedules":[{"cron":"@daily"}],"params":[{"name":"since","type":"date","required":true}],"stages":[]})");
  ASSERT_TRUE(pipeline) << pipeline.error().message;
  EXPECT_EQ(WhyNoSlotRuns(*pipeline),
            "parameter 'since' (date) is required and a slot has no value for it: no slot can run; give it a default");
  pipeline->params[0].required = false;
  EXPECT_EQ(WhyNoSlotRuns(*pipeline), "");
}

TEST(ScheduleRulesTest, AnEdgeIsAnInstantOrADayOfTheZone) {
  const auto from = [](std::string_view text, std::string_view zone) {
    return ToRfc3339(*ParseRangeEdge(text, zone, RangeEdge::kFrom));
  };
  const auto to = [](std::string_view text, std::string_view zone) {
    return ToRfc3339(*ParseRangeEdge(text, zone, RangeEdge::kTo));
  };
  EXPECT_EQ(from("2026-01-01", "UTC"), "2026-01-01T00:00:00Z");
  EXPECT_EQ(to("2026-01-01", "UTC"), "2026-01-02T00:00:00Z") << "a day as the end is inside";
  EXPECT_EQ(from("2026-01-01", "America/New_York"), "2026-01-01T05:00:00Z");
  EXPECT_EQ(from("2026-01-01T06:00:00+02:00", "America/New_York"), "2026-01-01T04:00:00Z");
  EXPECT_EQ(to("2026-01-01T06:00:00Z", "America/New_York"), "2026-01-01T06:00:00Z");
  EXPECT_EQ(from("2024-03-31", "Asia/Beirut"), "2024-03-30T22:00:00Z") << "00:00 does not exist: the day begins at 01:00";
  EXPECT_EQ(from("2024-11-03", "America/Havana"), "2024-11-03T04:00:00Z") << "00:00 comes twice: the first";
  for (const char* bad : {"", "2026-13-01", "2026-02-30", "tomorrow", "01/02/2026", "2026-1-1"})
    EXPECT_FALSE(ParseRangeEdge(bad, "UTC", RangeEdge::kFrom)) << bad;
  EXPECT_FALSE(ParseRangeEdge("2026-01-01", "Mars/Base", RangeEdge::kFrom));
  EXPECT_EQ(to("2011-12-29", "Pacific/Apia"), from("2011-12-31", "Pacific/Apia"));
  for (const RangeEdge edge : {RangeEdge::kFrom, RangeEdge::kTo}) {
    const auto none = ParseRangeEdge("2011-12-30", "Pacific/Apia", edge);
    ASSERT_FALSE(none);
    EXPECT_THAT(none.error().message, ::testing::HasSubstr("Pacific/Apia has no day 2011-12-30"));
  }
}

TEST(ScheduleRulesTest, ARangeBoundsTheSlots) {
  ScheduleSpec spec;
  spec.cron = "0 12 * * *";
  spec.start = "2026-01-10";
  spec.end = "2026-01-12";
  const auto cron = CronSchedule::Make(spec);
  ASSERT_TRUE(cron);
  EXPECT_EQ(cron->Between(At("2020-01-01T00:00:00Z"), At("2030-01-01T00:00:00Z"), 100),
            (std::vector{At("2026-01-10T12:00:00Z"), At("2026-01-11T12:00:00Z"), At("2026-01-12T12:00:00Z")}));
  EXPECT_FALSE(cron->Next(At("2026-01-12T12:00:00Z")));
  spec.start = "2026-01-10T12:00:00Z";
  spec.end = "2026-01-11T12:00:00Z";
  EXPECT_EQ(CronSchedule::Make(spec)->Between(At("2020-01-01T00:00:00Z"), At("2030-01-01T00:00:00Z"), 100),
            std::vector{At("2026-01-10T12:00:00Z")})
      << "an instant as start is inside, as end it is not";
  spec.end = spec.start;
  EXPECT_FALSE(CronSchedule::Make(spec));
}

TEST(ScheduleRulesTest, LastBeforeIsBetweenBackwards) {
  const auto from = At("2020-01-01T00:00:00Z");
  for (const char* text : {"* * * * *", "0 */6 * * *", "30 2 * * *", "0 0 29 2 *", "0 0 1 1 *"}) {
    const auto cron = CronSchedule::Make(text, "Europe/Berlin", DstRule::kOnce);
    for (const WallTime before : {At("2021-03-28T01:00:00Z"), At("2020-10-25T01:30:00Z"), At("2020-01-01T00:00:30Z"), from}) {
      auto all = cron->Between(from - Micros{1}, before - Micros{1}, 1'000'000);
      std::ranges::reverse(all);
      all.resize(std::min<std::size_t>(all.size(), 5));
      EXPECT_EQ(cron->LastBefore(before, from, 5), all) << text << " " << ToRfc3339(before);
    }
  }
}

// "part local offset fire why", a line each.
std::vector<std::string> Shown(const std::string& cron, const std::string& zone, std::string_view after, DstRule rule) {
  const auto schedule = CronSchedule::Make(cron, zone, rule);
  EXPECT_TRUE(schedule);
  const auto previews = PreviewTransitions(*schedule, At(after), 1);
  EXPECT_EQ(previews.size(), 1u);
  std::vector<std::string> lines;
  if (previews.empty()) return lines;
  for (const auto& row : previews[0].rows)
    lines.push_back(fmt::format("{} {} {} {}{}{}", Name(row.part), row.local.substr(5, 11), OffsetText(row.offset),
                                row.fire ? ToRfc3339(*row.fire).substr(8, 9) : "-", row.why.empty() ? "" : " ", row.why));
  return lines;
}
using Lines = std::vector<std::string>;

TEST(DstPreviewTest, NewYorkInSpring) {
  EXPECT_EQ(Shown("30 2 * * *", "America/New_York", "2026-01-01T00:00:00Z", DstRule::kOnce),
            (Lines{"before 03-06 02:30 -05:00 06T07:30:", "before 03-07 02:30 -05:00 07T07:30:",
                   "in 03-08 02:30 -05:00 08T07:00: gap, once: fires when the gap ends",
                   "after 03-09 02:30 -04:00 09T06:30:", "after 03-10 02:30 -04:00 10T06:30:"}));
  EXPECT_EQ(Shown("30 2 * * *", "America/New_York", "2026-01-01T00:00:00Z", DstRule::kSkip)[2],
            "in 03-08 02:30 -05:00 - gap, skip: does not fire");
  EXPECT_EQ(Shown("*/30 * * * *", "America/New_York", "2026-01-01T00:00:00Z", DstRule::kSkip),
            (Lines{"before 03-08 01:00 -05:00 08T06:00:", "before 03-08 01:30 -05:00 08T06:30:",
                   "in 03-08 02:00 -05:00 - gap, wildcard hour: does not fire",
                   "in 03-08 02:30 -05:00 - gap, wildcard hour: does not fire",
                   "after 03-08 03:00 -04:00 08T07:00:", "after 03-08 03:30 -04:00 08T07:30:"}));
}

TEST(DstPreviewTest, NewYorkInAutumn) {
  EXPECT_EQ(Shown("30 1 * * *", "America/New_York", "2026-06-01T00:00:00Z", DstRule::kOnce),
            (Lines{"before 10-30 01:30 -04:00 30T05:30:", "before 10-31 01:30 -04:00 31T05:30:",
                   "in 11-01 01:30 -04:00 01T05:30: first time, once: fires",
                   "in 11-01 01:30 -05:00 - second time, once: does not fire",
                   "after 11-02 01:30 -05:00 02T06:30:", "after 11-03 01:30 -05:00 03T06:30:"}));
  EXPECT_EQ(Shown("30 1 * * *", "America/New_York", "2026-06-01T00:00:00Z", DstRule::kBoth)[3],
            "in 11-01 01:30 -05:00 01T06:30: second time, both: fires");
  EXPECT_EQ(Shown("30 * * * *", "America/New_York", "2026-06-01T00:00:00Z", DstRule::kOnce)[3],
            "in 11-01 01:30 -05:00 01T06:30: second time, wildcard hour: fires");
}

TEST(DstPreviewTest, OddZones) {
  EXPECT_EQ(Shown("15 2 * * *", "Australia/Lord_Howe", "2026-08-01T00:00:00Z", DstRule::kOnce)[2],
            "in 10-04 02:15 +10:30 03T15:30: gap, once: fires when the gap ends");
  EXPECT_EQ(Shown("45 1 * * *", "Australia/Lord_Howe", "2026-01-01T00:00:00Z", DstRule::kOnce)[3],
            "in 04-05 01:45 +10:30 - second time, once: does not fire");
  // Clocks that jump at midnight: the day begins at 01:00, or has two midnights.
  EXPECT_EQ(Shown("0 0 * * *", "Asia/Beirut", "2024-01-01T00:00:00Z", DstRule::kOnce)[2],
            "in 03-31 00:00 +02:00 30T22:00: gap, once: fires when the gap ends");
  EXPECT_EQ(Shown("30 0 * * *", "America/Havana", "2024-06-01T00:00:00Z", DstRule::kOnce)[3],
            "in 11-03 00:30 -05:00 - second time, once: does not fire");
  EXPECT_EQ(Shown("30 0 * * *", "America/Sao_Paulo", "2018-10-01T00:00:00Z", DstRule::kOnce)[2],
            "in 11-04 00:30 -03:00 04T03:00: gap, once: fires when the gap ends")
      << "history";
  // Morocco's clock goes back for Ramadan and forth after it: daylight saving the other way round.
  for (const char* zone : {"Africa/Casablanca", "Africa/El_Aaiun"}) {
    const auto schedule = CronSchedule::Make("30 2 * * *", zone, DstRule::kOnce);
    const auto previews = PreviewTransitions(*schedule, At("2024-01-01T00:00:00Z"), 2);
    ASSERT_EQ(previews.size(), 2u) << zone;
    EXPECT_EQ(previews[0].jump.seconds(), -3600) << ToRfc3339(previews[0].jump.at);
    EXPECT_EQ(previews[1].jump.seconds(), 3600);
    EXPECT_LT(previews[1].jump.at - previews[0].jump.at, std::chrono::days{45});
    EXPECT_EQ(previews[0].rows.size(), 6u);
    EXPECT_EQ(previews[1].rows.size(), 5u);
  }
}

// What the preview says of the clock is what the zone says, also for fires beyond the next jump or before the last one.
TEST(DstPreviewTest, TheLocalTimeOfAFireIsThatOfItsZone) {
  for (const char* zone : {"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "America/Havana",
                           "Asia/Beirut", "Europe/Dublin", "Pacific/Apia", "America/St_Johns"})
    for (const char* cron :
         {"30 4 1 1,7 *", "0 0 1 1 *", "30 2 * * *", "15 */6 * * *", "0 12 29 2 *", "*/20 * 1 4,10 *", "@weekly"})
      for (const DstRule rule : {DstRule::kOnce, DstRule::kSkip, DstRule::kBoth}) {
        const auto schedule = CronSchedule::Make(cron, zone, rule);
        ASSERT_TRUE(schedule);
        for (const JumpPreview& preview : PreviewTransitions(*schedule, At("2010-06-01T00:00:00Z"), 12))
          for (const PreviewRow& row : preview.rows) {
            if (!row.fire || row.why.starts_with("gap")) continue;
            EXPECT_TRUE(schedule->InZone(*row.fire).starts_with(row.local) &&
                        schedule->InZone(*row.fire).ends_with("(" + OffsetText(row.offset) + ")"))
                << zone << " '" << cron << "' " << ToRfc3339(*row.fire) << ": " << row.local << " " << OffsetText(row.offset)
                << ", the zone says " << schedule->InZone(*row.fire);
          }
      }
}

TEST(DstPreviewTest, WhatIsOutsideTheScheduleSaysSo) {
  const auto why = [](std::string_view start, std::string_view end, std::string_view cron, std::string_view from,
                      std::size_t row) {
    ScheduleSpec spec;
    spec.cron = cron;
    spec.timezone = "America/New_York";
    spec.start = start;
    spec.end = end;
    const auto previews = PreviewTransitions(*CronSchedule::Make(spec), At(from), 1);
    return previews.at(0).rows.at(row).why;
  };
  EXPECT_EQ(why("", "2026-10-31", "30 1 * * *", "2026-06-01T00:00:00Z", 2), "first time, past end: does not fire");
  EXPECT_EQ(why("", "2026-11-01T05:30:00Z", "30 1 * * *", "2026-06-01T00:00:00Z", 2), "first time, past end: does not fire");
  EXPECT_EQ(why("", "2026-11-01T05:30:01Z", "30 1 * * *", "2026-06-01T00:00:00Z", 2), "first time, once: fires");
  EXPECT_EQ(why("2026-11-02", "", "30 1 * * *", "2026-06-01T00:00:00Z", 0), "first time, before start: does not fire");
  EXPECT_EQ(why("", "2026-03-07", "30 2 * * *", "2026-01-01T00:00:00Z", 2), "gap, past end: does not fire");
  EXPECT_EQ(why("2026-03-09", "", "30 2 * * *", "2026-01-01T00:00:00Z", 0), "gap, before start: does not fire");
}

TEST(DstPreviewTest, AZoneWithoutJumpsAndACrowdedOne) {
  EXPECT_TRUE(
      PreviewTransitions(*CronSchedule::Make("* * * * *", "UTC", DstRule::kOnce), At("2026-01-01T00:00:00Z"), 2).empty());
  EXPECT_TRUE(
      PreviewTransitions(*CronSchedule::Make("* * * * *", "Asia/Kathmandu", DstRule::kOnce), At("2026-01-01T00:00:00Z"), 2)
          .empty());
  const auto previews =
      PreviewTransitions(*CronSchedule::Make("* * * * * *", "Europe/Berlin", DstRule::kOnce), At("2026-01-01T00:00:00Z"), 1);
  ASSERT_EQ(previews.size(), 1u);
  EXPECT_EQ(previews[0].rows.size(), kPreviewInMax + 4);
  EXPECT_EQ(previews[0].left_out, 3600 - kPreviewInMax);
}

TEST(BackfillOptionsTest, ComeBackFromJson) {
  BackfillOptions options;
  options.newest_first = true;
  options.max_parallel = 7;
  options.reprocess = Reprocess::kFailed;
  options.params = {{"since", "2026-01-01"}};
  options.schedule.cron = "0 * * * *";
  options.schedule.start = "2026-01-01";
  options.schedule.jitter = 30s;
  const auto back = BackfillOptionsFromJson(ToJson(options));
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(*back, options);
  EXPECT_FALSE(BackfillOptionsFromJson("{}"));
  EXPECT_FALSE(BackfillOptionsFromJson(R"({"reprocess":"some","schedule":{"cron":"* * * * *"}})"));
}

}  // namespace
}  // namespace millrace
