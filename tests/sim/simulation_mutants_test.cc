// The simulation must find what is wrong: each mutant in one of the first seeds. MILLRACE_SIM_MUTANT=<part of a name> tries
// only those.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "common/base/log.h"
#include "tests/sim/simulation.h"

namespace millrace::sim {
namespace {

constexpr std::uint64_t kMutantSeeds = 1000;  // a mutant must be found in one of the first so many
#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
constexpr bool kFailpoints = true;
#else
constexpr bool kFailpoints = false;
#endif

TEST(SimulationMutantsTest, EveryMutantIsFound) {
  ConfigureLog(LogLevel::kOff, LogFormat::kText, "sim");
  const char* only = std::getenv("MILLRACE_SIM_MUTANT");
  for (const auto& [mutant, name] :
       {std::pair{Mutant::kAcceptOldToken, "an old token is accepted"},
        std::pair{Mutant::kForgetRequeue, "a lost job is not requeued"},
        std::pair{Mutant::kEnqueueTwice, "a job is enqueued twice"}, std::pair{Mutant::kNoEpochFence, "a deposed owner writes"},
        std::pair{Mutant::kCancelWithoutFence, "a cancel raises no fence"},
        std::pair{Mutant::kNoLimits, "the limits of queues are forgotten"},
        std::pair{Mutant::kAdoptOldToken, "an attempt goes on whose end is recorded"},
        std::pair{Mutant::kForgetRemovals, "what is cancelled stays in the queue"},
        std::pair{Mutant::kForgetDelivered, "a cancelled job ends while an attempt goes on"},
        std::pair{Mutant::kForgetRunAt, "what comes back to the queue starts at once"},
        std::pair{Mutant::kOwnClock, "a scheduler goes by its own clock"}, std::pair{Mutant::kDoubleSlot, "one slot doubled"},
        std::pair{Mutant::kHandBackFails, "a hand-back counts as a failure"}, std::pair{Mutant::kNoBackoff, "no backoff"},
        std::pair{Mutant::kNeverStops, "an attempt goes on for ever"},
        std::pair{Mutant::kEarlyReply, "an end is accepted before it is recorded"}}) {
    if (only != nullptr && !std::string_view(name).contains(only)) continue;
    if (!FailpointOf(mutant).empty() && !kFailpoints) continue;
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
