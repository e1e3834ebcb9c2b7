// The steady window of `bench scale`: what counts, what does not, and how deep the queue is kept.
#include "client/bench/steady_window.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "common/base/clock.h"

namespace millrace::bench {
namespace {

class SteadyWindowTest : public ::testing::Test {
 protected:
  SteadyWindowTest()
      : fleet_(*HandlerFleet::Make(
            {.name = "steady-" + std::to_string(::getpid()), .kind = "k", .folder = ::testing::TempDir()}, 10'000, 2)) {}

  void Run(std::uint32_t handler, std::uint64_t executed, std::uint64_t recorded) {
    Bump(fleet_.board().handler(handler).executed, executed);
    Bump(fleet_.board().handler(handler).recorded, recorded);
  }

  HandlerFleet fleet_;
  Installation at_;
  FakeClock clock_;
};

TEST_F(SteadyWindowTest, CountsWhatEndsInItAndNothingElse) {
  SteadyWindow window({.depth = 1000, .warmup = 100, .jobs = 400}, 50, fleet_, at_, clock_);
  EXPECT_EQ(SteadyWindow::Total({.depth = 1000, .warmup = 100, .jobs = 400}, 50), 1550u);
  EXPECT_EQ(window.Look(1000), 1050u) << "what waits, and what the handlers may hold";
  Run(0, 99, 90);
  clock_.Advance(Millis{700});  // the start of the handlers
  EXPECT_EQ(window.Look(1050), 1140u) << "each that has ended makes room for one";
  Run(0, 10, 10);
  Run(1, 41, 30);
  EXPECT_EQ(window.Look(1150), 1180u);  // 150 called, 130 ended: it begins with 1,000 waiting
  clock_.Advance(Millis{10});
  Run(1, 120, 120);
  EXPECT_EQ(window.Look(1170), 1300u);  // 270 called: 900 wait
  EXPECT_FALSE(window.result().complete) << "250 of 400";
  clock_.Advance(Millis{30});
  Run(0, 250, 260);
  EXPECT_EQ(window.Look(1570), 1560u);  // 520 called, 510 ended: 1,050 wait
  const SteadyResult r = window.result();
  EXPECT_TRUE(r.complete);
  EXPECT_EQ(r.jobs, 380u) << "the begin came 30 late, the end 10";
  EXPECT_DOUBLE_EQ(r.recorded_per_s, 380 / 0.04);
  EXPECT_DOUBLE_EQ(r.executed_per_s, 370 / 0.04);
  EXPECT_EQ(r.waiting_min, 900u);
  EXPECT_EQ(r.waiting_max, 1050u);
  EXPECT_DOUBLE_EQ(r.waiting_mean, (900 * 10 + 1050 * 30) / 40.0);
  Run(0, 1000, 1000);
  clock_.Advance(Millis{1000});
  window.Look(1550);
  EXPECT_DOUBLE_EQ(window.result().recorded_per_s, r.recorded_per_s) << "what comes later does not count";
}

TEST_F(SteadyWindowTest, ABatchLargerThanAllOfItStillHasAnEndAfterItsBegin) {
  SteadyWindow window({.depth = 10, .warmup = 5, .jobs = 20}, 5, fleet_, at_, clock_);
  Run(0, 30, 30);
  EXPECT_EQ(window.Look(30), 45u);
  EXPECT_FALSE(window.result().complete);
  clock_.Advance(Millis{1});
  window.Look(30);
  EXPECT_FALSE(window.result().complete) << "nothing has ended since";
  clock_.Advance(Millis{1});
  Run(1, 5, 5);
  window.Look(40);
  EXPECT_TRUE(window.result().complete);
  EXPECT_EQ(window.result().jobs, 5u);
  EXPECT_DOUBLE_EQ(window.result().recorded_per_s, 2500);
}

}  // namespace
}  // namespace millrace::bench
