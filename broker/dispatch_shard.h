// One shard of the dispatcher: all that it knows of it, from the moment it begins to take it until it is somebody else's. Plain
// values; what may change them is told in broker/dispatcher.h. Not thread-safe: owned by the dispatcher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "broker/dispatch_requests.h"
#include "broker/events.h"
#include "broker/fence_list.h"
#include "broker/queue_budgets.h"
#include "broker/recent_ids.h"
#include "broker/removals.h"
#include "broker/run_coordinator.h"
#include "broker/wanted_jobs.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/queue_settings.h"

namespace millrace::dispatch {

enum class Phase : std::uint8_t { kUnknown, kElsewhere, kTaking, kReadingRuns, kReadingJobs, kReady };

struct Shard {  // NOLINT(clang-analyzer-optin.performance.Padding): there are few, and what belongs together stands together
  ShardHold hold;
  Phase phase = Phase::kUnknown;
  std::string owner_name;  // kElsewhere
  RunCoordinator runs;
  std::uint32_t dispatches = 0;
  std::map<std::string, std::uint64_t> held_lines;  // ready counts found while rebuilding
  std::unordered_set<JobId> restored_jobs;          // until the outbox has been read once
  // Outbox rows whose removal is not durable yet, of one item and of many (which may have an item's id).
  std::unordered_set<Uuid> outbox_taking, outbox_batches_taking;
  bool outbox_reading = false, outbox_again = false;
  MonoTime next_outbox{};
  std::optional<WallTime> next_due, next_expiry;  // of waiting entries; next_expiry: may be of one that waits no more
  bool promoting = false, expiring = false;
  // Single jobs with a durable cancel request that have a lease or a fence to be raised; those of runs are kCancelling.
  std::unordered_set<JobId> cancelling;
  FenceList fences;
  Removals removals;
  WantedJobs wanted;  // kept jobs that requests of cancel_requests_ look for
  Listings listings;
  // Single jobs whose end, or whose first row, goes into the ledger while no lease has them: no entry of theirs counts.
  std::unordered_map<JobId, Settling> settling;
  std::map<std::pair<OrgId, std::string>, QueueSettings> queues;  // that were ever set
  bool queues_reading = false;
  QueueBudgets budgets;
  PieceId submit_piece, progress_piece;  // open in this flush; 0 = none
  std::vector<QueueEntry> enqueue, requeue;
  std::vector<Claimed> enqueue_jobs;  // of `enqueue`, one each; without a spec where it is not at hand
  std::vector<JobId> finish;
  Puts puts;
  std::unordered_map<std::string, std::uint32_t> claiming;  // claims under way of each line
  std::vector<std::shared_ptr<Submit>> enqueue_submits;     // of kept lines, answered with `enqueue`
  std::size_t enqueue_rows = 0, enqueue_bytes = 0;
  std::map<std::uint64_t, Check> checks;
  std::unordered_multiset<JobId> checking;        // what of them was claimed or has expired
  std::map<std::string, std::uint64_t> suspects;  // entries at the line's front that may be of an earlier state
  bool maybe_old = false, due_suspect = false, kept_seen = false;
  bool take_again = false;   // after this flush's Requeue and Finish
  std::string take_cursor;   // of `take_again`: kept lines that are not counted yet
  std::uint64_t stayed = 0;  // entries of those that are
  WallTime ready_at{};
  std::optional<MonoTime> yield_by;            // set: to be handed over, at the latest then
  Epoch unbroken_since;                        // from which on the queue knows what was delivered
  std::unordered_map<JobId, Token> delivered;  // by former owners, to be looked at; with the token of the latest attempt row
  std::map<JobId, WallTime> presumed;          // leases without a worker; before then their jobs do not start again
  MonoTime adopt_until{};                      // then they are lost
  RecentIds recent{2 * (kFreshIdAge + kFreshIdAhead)};
};

}  // namespace millrace::dispatch
