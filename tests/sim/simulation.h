// A whole fleet in one thread: two brokers (the real Dispatcher and LedgerPump), workers, clients, a ledger, a queue and a
// sink, under virtual time and a fault schedule drawn from one seed. The same seed gives the same trace, to the byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace millrace::sim {

// A fault in the product, injected around it: each must be found.
enum class Mutant : std::uint8_t {
  kNone,
  kAcceptOldToken,      // an old attempt's report is taken for the live one's
  kForgetRequeue,       // a job that must start again is not put back
  kEnqueueTwice,        // a job is enqueued twice
  kNoEpochFence,        // ledger and queue take writes of a deposed owner
  kCancelWithoutFence,  // a cancelled job ends although an old attempt of it could still publish
  kNoLimits,            // a broker forgets the limits of its queues
  kAdoptOldToken,       // a new owner lets attempts go on whose end is recorded
  kForgetRemovals,      // the queue does not find what is to be taken out of it
  kForgetDelivered,     // a new owner is not told what was delivered
};

struct Report {
  std::vector<std::string> violations;  // empty: all invariants held
  std::uint64_t trace = 0;              // FNV-1a over everything that happened
  std::uint64_t steps = 0;
  std::size_t jobs = 0, runs = 0, lost = 0, takeovers = 0, cancelled = 0, expired = 0, overdue = 0, conflicts = 0;
  std::size_t adopted = 0, handed_over = 0;    // attempts that went on under a new owner; shards that were given away
  std::size_t passed = 0;                      // entries that went straight into flight
  std::size_t granted_under_limits = 0;        // grants that were checked against limits
  std::size_t kept_cancelled = 0, fences = 0;  // jobs of durability redis that a cancel found waiting; fence-only grants
  std::size_t kept = 0, kept_lost = 0;         // jobs of durability redis that were accepted; those lost with the queue's state
};

Report Simulate(std::uint64_t seed, Mutant mutant = Mutant::kNone);

}  // namespace millrace::sim
