#include "scheduler/slot_planner.h"

#include <gtest/gtest.h>

namespace millrace::scheduler {
namespace {

WallTime At(std::string_view text) { return *ParseRfc3339(text); }

struct Plan {
  std::string fates;  // F fired, S skipped, M missed, in order
  std::string watermark;
};

Plan Decide(std::string catchup, std::string overlap, std::string_view watermark, std::string_view now, bool active = false,
            std::string cron = "* * * * *") {
  ScheduleSpec spec{.name = "default",
                    .cron = cron,
                    .timezone = "UTC",
                    .catchup = catchup,
                    .overlap = overlap,
                    .dst = "once",
                    .misfire_grace = Millis{60'000}};
  const auto schedule = CronSchedule::Make(spec);
  const auto plan = PlanSlots(spec, *schedule, At(watermark), At(now), active);
  EXPECT_TRUE(plan);
  Plan out;
  WallTime last = At(watermark);
  for (const auto& slot : plan->slots) {
    EXPECT_GT(slot.slot, last);
    last = slot.slot;
    out.fates += slot.fate == SlotFate::kFired ? 'F' : slot.fate == SlotFate::kSkipped ? 'S' : 'M';
    EXPECT_EQ(slot.reason.empty(), slot.fate == SlotFate::kFired);
  }
  out.watermark = ToRfc3339(plan->watermark);
  return out;
}

TEST(SlotPlannerTest, ASlotWithinItsGraceAlwaysFires) {
  EXPECT_EQ(Decide("none", "allow", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z").fates, "F");
  EXPECT_EQ(Decide("none", "allow", "2026-01-01T00:00:00Z", "2026-01-01T00:02:00Z").fates, "FF")
      << "exactly 60 s late is in time";
  EXPECT_EQ(Decide("none", "allow", "2026-01-01T00:00:00Z", "2026-01-01T00:00:59Z").fates, "");
}

TEST(SlotPlannerTest, APausedScheduleSkipsWhateverIsDue) {
  for (const char* catchup : {"none", "latest", "all"}) {
    const ScheduleSpec spec{.cron = "0 * * * *", .timezone = "UTC", .catchup = catchup};
    const auto cron = CronSchedule::Make(spec);
    const auto plan = PlanSlots(spec, *cron, At("2026-01-01T00:00:00Z"), At("2026-01-01T03:00:10Z"), false, true);
    ASSERT_TRUE(plan);
    ASSERT_EQ(plan->slots.size(), 3u);
    for (const PlannedSlot& slot : plan->slots) {
      EXPECT_EQ(slot.fate, SlotFate::kSkipped);
      EXPECT_EQ(slot.reason, "paused");
    }
    EXPECT_EQ(plan->watermark, At("2026-01-01T03:00:00Z"));
  }
}

TEST(SlotPlannerTest, MissedSlotsGoToCatchup) {
  const auto* from = "2026-01-01T00:00:00Z";
  const auto* now = "2026-01-01T00:05:30Z";  // 00:01 .. 00:05 due; 00:05 is in its grace
  EXPECT_EQ(Decide("none", "allow", from, now).fates, "MMMMF");
  EXPECT_EQ(Decide("latest", "allow", from, now).fates, "MMMMF");
  EXPECT_EQ(Decide("all", "allow", from, now).fates, "FFFFF");
  EXPECT_EQ(Decide("all(3)", "allow", from, now).fates, "MMFFF");
}

TEST(SlotPlannerTest, LatestRunsTheNewestMissedSlotOnce) {
  const Plan plan = Decide("latest", "allow", "2026-01-01T00:00:00Z", "2026-01-01T05:30:00Z", false, "0 * * * *");
  EXPECT_EQ(plan.fates, "MMMMF");
  EXPECT_EQ(plan.watermark, "2026-01-01T05:00:00Z");
  EXPECT_EQ(Decide("none", "allow", "2026-01-01T00:00:00Z", "2026-01-01T05:30:00Z", false, "0 * * * *").fates, "MMMMM");
}

TEST(SlotPlannerTest, OverlapSkipFiresOneAtATime) {
  EXPECT_EQ(Decide("all", "skip", "2026-01-01T00:00:00Z", "2026-01-01T00:03:30Z").fates, "FSS");
  EXPECT_EQ(Decide("all", "skip", "2026-01-01T00:00:00Z", "2026-01-01T00:03:30Z", true).fates, "SSS");
}

TEST(SlotPlannerTest, ALongOutageIsDecidedInBoundedPassesWithTheSameResult) {
  ScheduleSpec spec{.name = "default",
                    .cron = "* * * * *",
                    .timezone = "UTC",
                    .catchup = "all(10)",
                    .overlap = "allow",
                    .dst = "once",
                    .misfire_grace = Millis{60'000}};
  const auto schedule = CronSchedule::Make(spec);
  const WallTime now = At("2026-01-08T00:00:30Z");
  WallTime watermark = At("2026-01-01T00:00:00Z");
  std::size_t fired = 0, decided = 0, passes = 0;
  while (true) {
    const auto plan = PlanSlots(spec, *schedule, watermark, now, false);
    ASSERT_LE(plan->slots.size(), kSlotsPerPassMax);
    if (plan->slots.empty()) break;
    ++passes;
    for (const auto& slot : plan->slots) fired += slot.fate == SlotFate::kFired;
    decided += plan->slots.size();
    watermark = plan->watermark;
  }
  EXPECT_EQ(decided, 7u * 24 * 60);
  EXPECT_EQ(fired, 10u);
  EXPECT_GT(passes, 9u);
}

TEST(SlotPlannerTest, AllMeansAllHoweverLongTheOutage) {
  const ScheduleSpec spec{.cron = "* * * * *", .timezone = "UTC", .catchup = "all"};
  const auto schedule = CronSchedule::Make(spec);
  WallTime watermark = At("2026-01-01T00:00:00Z");
  std::size_t fired = 0;
  while (true) {
    const auto plan = PlanSlots(spec, *schedule, watermark, At("2026-01-04T00:00:30Z"), false);
    if (plan->slots.empty()) break;
    for (const auto& slot : plan->slots) fired += slot.fate == SlotFate::kFired;
    watermark = plan->watermark;
  }
  EXPECT_EQ(fired, 3u * 24 * 60);
}

TEST(SlotPlannerTest, AWallClockThatWentBackDecidesNothing) {
  const Plan plan = Decide("all", "allow", "2026-01-01T00:10:00Z", "2026-01-01T00:05:00Z");
  EXPECT_EQ(plan.fates, "");
  EXPECT_EQ(plan.watermark, "2026-01-01T00:10:00Z");
}

TEST(SlotPlannerTest, CatchupTextIsChecked) {
  for (const char* good : {"none", "latest", "all", "all(1)", "all(1000)"}) EXPECT_TRUE(ParseCatchup(good)) << good;
  for (const char* bad : {"", "None", "all(0)", "all(1001)", "all()", "all(-1)", "all(1", "every"}) {
    const auto c = ParseCatchup(bad);
    ASSERT_FALSE(c) << bad;
    EXPECT_EQ(c.error().message, std::string("catchup '") + bad + "' is not none, latest, all or all(N) with N in [1, 1000]");
  }
}

}  // namespace
}  // namespace millrace::scheduler
