// A whole fleet in one thread: two brokers (the real Dispatcher and LedgerPump), two schedulers (the real Scheduler), workers,
// clients, a ledger, a queue and a sink, under virtual time and a fault schedule drawn from one seed. The same seed gives the
// same trace, to the byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::sim {

// A fault in the product, injected around it or switched on in it (MILLRACE_MUTANT): each must be found.
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
  kForgetRunAt,         // the queue forgets when what comes back to it may start
  kNeverStops,          // an attempt that nobody wants any more goes on for ever
  kOwnClock,            // a scheduler goes by its own wall clock instead of the ledger's
  // Only of builds with failpoints:
  kDoubleSlot,     // a slot gets a second run
  kHandBackFails,  // a hand-back counts as a failure
  kNoBackoff,      // a failed attempt is repeated at once
  kEarlyReply,     // a worker is told that its end is recorded before it is
};

// The failpoint that makes a mutant; empty: it is injected around the product.
std::string_view FailpointOf(Mutant mutant);

enum class Detail : std::uint8_t { kEvents, kMessages };  // what goes into the trace: messages cost time

struct Report {
  std::vector<std::string> violations;  // empty: all invariants held
  std::uint64_t trace = 0;              // FNV-1a over everything that happened
  std::uint64_t steps = 0;
  std::size_t jobs = 0, runs = 0, lost = 0, takeovers = 0, cancelled = 0, expired = 0, overdue = 0, conflicts = 0;
  std::size_t adopted = 0, handed_over = 0;    // attempts that went on under a new owner; shards that were given away
  std::size_t passed = 0;                      // entries that went straight into flight
  std::size_t granted_under_limits = 0;        // grants that were checked against limits
  std::size_t kept_cancelled = 0, fences = 0;  // jobs of durability redis that a cancel found waiting; fence-only grants
  std::size_t slots = 0, slots_skipped = 0, terms = 0;  // slots that fired; that overlap skipped; leaders of the schedulers
  std::size_t late_slots = 0;                           // that fired more than a second after their time
  std::size_t clock_steps = 0, long_freezes = 0;        // of a broker for longer than any lease, and shards were taken over
  std::size_t retries = 0, handed_back = 0, quarantined = 0,
              spent = 0;                // attempts that failed and went on; ...; at max_attempts
  std::size_t ends_accepted = 0;        // of which workers were told
  std::size_t puts_refused = 0;         // by a queue that had no memory left
  std::size_t kept = 0, kept_lost = 0;  // jobs of durability redis that were accepted; those lost with the queue's state
};

Report Simulate(std::uint64_t seed, Mutant mutant = Mutant::kNone, Detail detail = Detail::kEvents);

}  // namespace millrace::sim
