// The next slot of a schedule, one after the other: expressions that match often and seldom, in zones with daylight saving and
// without, under both kinds of hour fields (cron.h).
#include <benchmark/benchmark.h>

#include <string_view>

#include "common/model/cron.h"

namespace millrace {
namespace {

constexpr WallTime kFrom = FromUnixMicros(1'700'000'000'000'000);  // 2023-11-14

// `expected_s`: the first slot after kFrom, in seconds.
void Next(benchmark::State& state, std::string_view cron, std::string_view zone, std::int64_t expected_s) {
  const auto schedule = CronSchedule::Make(cron, zone, DstRule::kOnce);
  if (!schedule) return state.SkipWithError(schedule.error().message.c_str());
  if (schedule->Next(kFrom) != FromUnixMicros(expected_s * 1'000'000)) return state.SkipWithError("this is not the first slot");
  const WallTime end = kFrom + std::chrono::years{10};  // the rules of zones are known until 2037
  WallTime at = kFrom;
  for (auto _ : state) {
    const auto next = schedule->Next(at);
    if (!next || *next <= at) {
      state.SkipWithError("slots do not go on");
      break;
    }
    at = *next < end ? *next : kFrom;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK_CAPTURE(Next, each_minute_utc, "* * * * *", "UTC", 1'700'000'040);
BENCHMARK_CAPTURE(Next, each_minute_berlin, "* * * * *", "Europe/Berlin", 1'700'000'040);
BENCHMARK_CAPTURE(Next, weekdays_utc, "15 6 * * mon-fri", "UTC", 1'700'028'900);
BENCHMARK_CAPTURE(Next, weekdays_kolkata, "15 6 * * mon-fri", "Asia/Kolkata", 1'700'009'100);
BENCHMARK_CAPTURE(Next, weekdays_new_york, "15 6 * * mon-fri", "America/New_York", 1'700'046'900);
BENCHMARK_CAPTURE(Next, in_the_gap_new_york, "30 2 * * *", "America/New_York", 1'700'033'400);
BENCHMARK_CAPTURE(Next, last_friday_london, "0 17 * * fril", "Europe/London", 1'700'845'200);
BENCHMARK_CAPTURE(Next, leap_day_utc, "0 0 29 2 *", "UTC", 1'709'164'800);

void BM_Parse(benchmark::State& state) {
  for (auto _ : state) {
    const auto schedule = CronSchedule::Make("15 6 * * mon-fri", "America/New_York", DstRule::kOnce);
    if (!schedule) {
      state.SkipWithError(schedule.error().message.c_str());
      break;
    }
    benchmark::DoNotOptimize(schedule->expression());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Parse);

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
