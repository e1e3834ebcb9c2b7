// Runs the fleet simulation over many seeds. MILLRACE_SIM_SEEDS sets how many, MILLRACE_SIM_FIRST where to begin (to repeat
// one that failed: MILLRACE_SIM_FIRST=<seed> MILLRACE_SIM_SEEDS=1).
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

constexpr std::uint64_t kMutantSeeds = 1000;  // a mutant must be found in one of the first so many
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
                fences = 0, passed = 0;
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
  }
}

TEST_F(SimulationTest, SameSeedSameTrace) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) EXPECT_EQ(Simulate(seed).trace, Simulate(seed).trace) << "seed " << seed;
  EXPECT_NE(Simulate(1).trace, Simulate(2).trace);
}

TEST_F(SimulationTest, EveryMutantIsFound) {
  for (const auto& [mutant, name] :
       {std::pair{Mutant::kAcceptOldToken, "an old token is accepted"},
        std::pair{Mutant::kForgetRequeue, "a lost job is not requeued"},
        std::pair{Mutant::kEnqueueTwice, "a job is enqueued twice"}, std::pair{Mutant::kNoEpochFence, "a deposed owner writes"},
        std::pair{Mutant::kCancelWithoutFence, "a cancel raises no fence"},
        std::pair{Mutant::kNoLimits, "the limits of queues are forgotten"},
        std::pair{Mutant::kAdoptOldToken, "an attempt goes on whose end is recorded"},
        std::pair{Mutant::kForgetRemovals, "what is cancelled stays in the queue"},
        std::pair{Mutant::kForgetDelivered, "a cancelled job ends while an attempt goes on"}}) {
    std::uint64_t found = 0;
    for (std::uint64_t seed = 1; seed <= kMutantSeeds && found == 0; ++seed)
      if (const Report report = Simulate(seed, mutant); !report.violations.empty()) {
        found = seed;
        fmt::print("mutant '{}': seed {}: {}\n", name, seed, report.violations.front());
      }
    EXPECT_NE(found, 0U) << "not found in " << kMutantSeeds << " seeds: " << name;
  }
}

}  // namespace
}  // namespace millrace::sim
