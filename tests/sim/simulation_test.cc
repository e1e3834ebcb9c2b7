// Runs the fleet simulation over many seeds (ops/test --sim N). MILLRACE_SIM_SEEDS sets how many, MILLRACE_SIM_FIRST where to
// begin (to repeat one that failed: MILLRACE_SIM_FIRST=<seed> MILLRACE_SIM_SEEDS=1).
#include "tests/sim/simulation.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "common/base/log.h"

namespace millrace::sim {
namespace {

std::uint64_t FromEnv(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

// A sanitized build is ten times slower and looks for other faults.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSeeds = 100;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr std::uint64_t kSeeds = 100;
#else
constexpr std::uint64_t kSeeds = 1000;
#endif
#else
constexpr std::uint64_t kSeeds = 1000;
#endif

class SimulationTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { ConfigureLog(LogLevel::kOff, LogFormat::kText, "sim"); }
};

TEST_F(SimulationTest, InvariantsHoldUnderEverySeed) {
  const std::uint64_t first = FromEnv("MILLRACE_SIM_FIRST", 1), seeds = FromEnv("MILLRACE_SIM_SEEDS", kSeeds);
  std::uint64_t steps = 0, jobs = 0, runs = 0, lost = 0, takeovers = 0, cancelled = 0, limited = 0, expired = 0, overdue = 0,
                conflicts = 0, failed = 0, adopted = 0, handed_over = 0, kept = 0, kept_lost = 0, kept_cancelled = 0,
                fences = 0, passed = 0, slots = 0, slots_skipped = 0, late_slots = 0, terms = 0, clock_steps = 0,
                long_freezes = 0, retries = 0, handed_back = 0, quarantined = 0, spent = 0, ends_accepted = 0, puts_refused = 0;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const Report report = Simulate(seed);
    steps += report.steps;
    jobs += report.jobs;
    runs += report.runs;
    lost += report.lost;
    takeovers += report.takeovers;
    adopted += report.adopted;
    handed_over += report.handed_over;
    passed += report.passed;
    kept += report.kept;
    kept_lost += report.kept_lost;
    kept_cancelled += report.kept_cancelled;
    fences += report.fences;
    cancelled += report.cancelled;
    limited += report.granted_under_limits;
    expired += report.expired;
    overdue += report.overdue;
    conflicts += report.conflicts;
    slots += report.slots;
    slots_skipped += report.slots_skipped;
    late_slots += report.late_slots;
    terms += report.terms;
    clock_steps += report.clock_steps;
    long_freezes += report.long_freezes;
    retries += report.retries;
    handed_back += report.handed_back;
    quarantined += report.quarantined;
    spent += report.spent;
    ends_accepted += report.ends_accepted;
    puts_refused += report.puts_refused;
    if (report.violations.empty()) continue;
    for (const auto& violation : report.violations) ADD_FAILURE() << "seed " << seed << ": " << violation;
    if (++failed == 3) break;
  }
  fmt::print(
      "{} seeds: {} steps, {} jobs, {} runs, {} attempts lost, {} takeovers, {} of them handed over, {} attempts adopted, {} "
      "cancelled, {} grants under limits, {} expired, {} past their deadline, {} unique keys held; {} jobs of durability "
      "redis, {} "
      "lost with the queue's state, {} cancelled while they waited; {} fences; {} went straight into flight\n",
      seeds, steps, jobs, runs, lost, takeovers, handed_over, adopted, cancelled, limited, expired, overdue, conflicts, kept,
      kept_lost, kept_cancelled, fences, passed);
  fmt::print(
      "{} slots fired, {} of them late, {} skipped for overlap, under {} leaders; {} clock steps; {} brokers froze until "
      "others "
      "had their shards; {} failed attempts repeated, {} handed back, {} jobs spent their attempts, {} in crash quarantine; {} "
      "ends accepted; {} puts refused for want of memory\n",
      slots, late_slots, slots_skipped, terms, clock_steps, long_freezes, retries, handed_back, spent, quarantined,
      ends_accepted, puts_refused);
  EXPECT_GT(jobs, 0U);
  if (seeds >= 100) {
    EXPECT_GT(lost, 0U);
    EXPECT_GT(takeovers, seeds);
    EXPECT_GT(adopted, seeds / 10);
    EXPECT_GT(handed_over, seeds / 10);
    EXPECT_GT(kept, seeds);
    EXPECT_LT(kept_lost, kept / 4);
    EXPECT_GT(cancelled, seeds / 4);
    EXPECT_GT(kept_cancelled, seeds / 50);
    EXPECT_GT(fences, seeds / 4);
    EXPECT_GT(passed, seeds);
    EXPECT_LT(passed, jobs) << "others must have waited in their lines";
    EXPECT_GT(limited, seeds);
    EXPECT_GT(expired, seeds / 10);
    EXPECT_GT(overdue, seeds / 10);
    EXPECT_GT(conflicts, seeds / 10);
    EXPECT_GT(slots, seeds);
    EXPECT_GT(late_slots, seeds / 4);
    EXPECT_GT(slots_skipped, seeds / 20);
    EXPECT_GT(terms, seeds);
    EXPECT_GT(clock_steps, seeds);
    EXPECT_GT(long_freezes, seeds / 20);
    EXPECT_GT(retries, seeds);
    EXPECT_GT(handed_back, seeds / 10);
    EXPECT_GT(quarantined, seeds / 10);
    EXPECT_GT(spent, seeds / 20);
    EXPECT_GT(ends_accepted, jobs / 4);
    EXPECT_GT(puts_refused, seeds / 10);
  }
}

TEST_F(SimulationTest, SameSeedSameTrace) {
  const auto trace = [](std::uint64_t seed) { return Simulate(seed, Mutant::kNone, Detail::kMessages).trace; };
  for (std::uint64_t seed = 1; seed <= 20; ++seed) EXPECT_EQ(trace(seed), trace(seed)) << "seed " << seed;
  EXPECT_NE(trace(1), trace(2));
}

}  // namespace
}  // namespace millrace::sim
