// How jobs come into the ledger through a table, and how they leave it: values of Ledger::TakeEnqueued, Enqueued, PruneOldest,
// Retained and SizeOfHistory. A ledger without such a table, or that keeps everything, has nothing to take and nothing to
// prune.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"

namespace millrace {

// TakeEnqueued turns rows of `enqueue` that belong to its shards into jobs with outbox rows, the job's id being the row's. Row
// and job change in one transaction, so that each row becomes one job however many try and crash. A row that is no job, or
// whose unique key is held, goes to `enqueue_refused` with the reason and holds up no other. At most kEnqueuePage rows of a
// call. Nothing is fenced: whoever owns the shard finds the outbox row.
//
// Rows that anybody with the right to insert wrote inside a transaction of his own (table `enqueue`, ops/docs/enqueue.md).
struct EnqueueTaken {
  std::set<ShardId> shards;  // outbox rows were written for these
  std::uint32_t accepted = 0, duplicates = 0, refused = 0;
  bool more = false;  // there may be others
};
// A row that is no job and never will be: it stays in `enqueue_refused` until somebody deletes or repairs it, or retention
// takes it.
struct EnqueueRefused {
  JobId job;
  OrgId org = kDefaultOrg;
  std::string queue, kind, reason;
  WallTime refused_at{};
};
struct EnqueueStatus {
  std::uint64_t waiting = 0;
  std::vector<EnqueueRefused> refused;  // newest first
};

// PruneOldest takes one step, which is one transaction, so that a caller can stop in between: call again while `more`. Of two
// that prune at the same time one gets kConflict, and tries again. kCorrupt: a row that would go is not as it was written, and
// nothing goes before somebody has asked `audit verify`. While a verification holds the history, nothing goes either
// (PruneStep::waits).
//
// Runs and jobs that ended long ago go, with their attempts, outcomes, cancel requests and dead-job actions; the audit trail
// stays provable (PrunedChain). Rows of `enqueue_refused` go by the week in which they were refused, whatever is live. Slots,
// pipelines, settings, backfills and live unique keys stay.
struct PruneRequest {
  // Of submission: rounded down to a week (Monday, UTC), and to the week of the oldest live run or job. Of refusal: to a week.
  WallTime before{};
  std::string actor;
  std::function<std::string(std::string_view)> sign;  // of SigningKey; empty: what goes is not signed for
  bool despite_verification = false;                  // who verifies has to look again, or gives up
  bool dry_run = false;                               // nothing goes: the step says only `before` and `held_by`
};
struct PruneStep {
  WallTime before{};          // what was submitted earlier is gone, or is going
  std::uint64_t rows = 0;     // went in this step, of all tables
  std::uint64_t records = 0;  // audit records, of which nothing was left
  bool more = false;
  bool waits = false;   // nothing went, because the audit trail is verified; there may be more
  std::string held_by;  // "run 0189... is live": why `before` is earlier than asked; empty when it is not
};
// A week of submissions as the ledger holds it, oldest first.
struct RetainedWeek {
  WallTime begin{};
  std::uint64_t jobs = 0, runs = 0, bytes = 0;  // jobs: ended and live, at least; bytes: about, with indexes
};
// The same at a glance, which costs little however much there is: SizeOfHistory counts no further than its bound.
struct HistorySize {
  std::uint64_t finished_jobs = 0, bytes = 0;
};

}  // namespace millrace
