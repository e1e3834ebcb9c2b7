// What is ready, scheduled and in flight, per shard, fenced by the owner's epoch. Two implementations (Redis, SQLite) and one
// conformance suite (tests/conformance/job_queue_test.cc).
//
// The queue is not the system of record: it may be emptied at any time, and its owner rebuilds it from the ledger. So an
// unknown outcome (kMaybeApplied) is never repeated: the owner takes the shard anew with a higher epoch. Only lines that
// are kept (IsKeptLine) hold what the ledger does not: they survive a Take (ops/docs/durability.md).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace {

// A line whose name begins with this is kept: its entries wait nowhere else (jobs of `durability: redis`).
inline constexpr char kKeptLineMark = '\x1e';
constexpr bool IsKeptLine(std::string_view line) { return line.starts_with(kKeptLineMark); }

// Whose line it is: the third of the parts of its name, between which '\x1f' stands; empty: it has fewer.
constexpr std::string_view OrgOfLine(std::string_view line) {
  for (int part = 0; part < 2; ++part) {
    const auto at = line.find('\x1f');
    if (at == std::string_view::npos) return {};
    line.remove_prefix(at + 1);
  }
  return line.substr(0, line.find('\x1f'));
}

// What is before that: lines with the same are likely to have their turns at the same time (their queue and priority).
constexpr std::string_view TurnOfLine(std::string_view line) {
  const auto first = line.find('\x1f');
  return first == std::string_view::npos ? std::string_view{} : line.substr(0, line.find('\x1f', first + 1));
}

// A waiting job as the queue holds it. `line` is opaque here, but for what the two above read: the dispatcher's (queue,
// priority, org, root, kind, limit key).
struct QueueEntry {
  JobId id;
  std::string line;
  std::string body;                    // opaque; what the dispatcher needs to grant the job
  std::optional<WallTime> run_at;      // set: scheduled, moves to the end of its line when due
  std::optional<WallTime> expires_at;  // set: ExpireDue takes it out from then on, wherever it waits
  friend bool operator==(const QueueEntry&, const QueueEntry&) = default;
};

// Operations of a shard's owner. Every one carries the epoch; kStale when the stored epoch is another, kWiped when it is gone.
namespace queue_op {
struct Take {  // become the owner: fences every lower epoch and empties the shard, but for kept lines. kStale: a higher
  ShardId shard;
  Epoch epoch;  // epoch is stored. Repeating it with the same epoch empties the shard again.
  // Answers what stayed: the first scheduled entry of kept lines as `next_due`, and a page of those in flight as `claimed`.
  // The owner puts each of the page back (Requeue) or ends it (Finish) and takes again, until the page is empty: then the
  // ready ones are `kept`, some lines at a time (with a page, only where there are few lines: it may be one of many). Ids of
  // ordinary lines in flight stay so as long as the store's state is unbroken (`in_flight`).
  //
  // As long as QueueReply::cursor is not empty, there are more lines: it is to be repeated with it before anything else is done
  // to the shard. kWiped: the store was emptied, restarted or replaced in between. Only without a cursor it answers
  // `in_flight`.
  std::string cursor{};
};
struct Enqueue {  // to the ends of their lines, or scheduled
  ShardId shard;
  Epoch epoch;
  std::vector<QueueEntry> entries;
  // Go straight into flight, as if they had been put into their lines and claimed from there, with `entries` or not at all:
  // nobody reads them back. Their run_at and expires_at do not count. In order where that is to the caller: what waits in a
  // line is not looked at.
  std::vector<QueueEntry> passed{};
};
struct Claim {  // up to `max` entries from the front of a line, which are then in flight
  ShardId shard;
  Epoch epoch;
  std::string line;
  std::uint32_t max = 0;
};
struct Finish {  // out of flight for ever; unknown ids are ignored
  ShardId shard;
  Epoch epoch;
  std::vector<JobId> ids;
};
struct Requeue {  // out of flight; back to the FRONT of their lines (they were there before), the first one first; or scheduled
  ShardId shard;
  Epoch epoch;
  std::vector<QueueEntry> entries;
};
// Of this and the next at most `max` entries, and no more after about 16 MiB of bodies: what is left is due at once.
struct Promote {  // scheduled entries with run_at <= now go to the ends of their lines, earliest first
  ShardId shard;
  Epoch epoch;
  WallTime now;
  std::uint32_t max = 0;
};
struct ExpireDue {  // entries with expires_at <= now leave their lines or schedule and are in flight, earliest first
  ShardId shard;
  Epoch epoch;
  WallTime now;
  std::uint32_t max = 0;
};
struct Remove {  // waiting entries with one of `ids` leave their lines or schedule and are in flight
  ShardId shard;
  Epoch epoch;
  // Of which lines. Given: of these, none of them kept, and with `scheduled` those due later, each id once. Empty: of kept
  // lines, wherever they wait, each id as often as it is there.
  std::vector<std::string> lines;
  bool scheduled = false;
  std::vector<JobId> ids;
  // A long look is taken in steps of about `max` entries: as long as QueueReply::cursor is not empty, the operation is to be
  // repeated with it, without the ids that were found (but with those of kept lines). Meanwhile entries may come and go; what
  // waited all the time is found. REQUIRES: no other look at the same lines in between.
  std::string cursor;
  std::uint32_t max = 0;
  // Not empty: of kept lines only those whose OrgOfLine it is. Entries of the others stay where they are, in their order.
  std::string org{};
};
// A cursor of ListKept has at most so many bytes, beside a name of a line.
inline constexpr std::size_t kListCursorPlaceMax = 32;

// A page of the ids and lines of what waits in the kept lines of an org, or is due in them later: nothing moves. Pages follow
// one another by QueueReply::cursor, whatever happens between them: what waits all the time is in one of them, and some may be
// in several. A cursor that no reply gave is one of some place, or none.
struct ListKept {
  ShardId shard;
  Epoch epoch;
  std::string org;  // OrgOfLine
  std::string cursor;
  std::uint32_t max = 0;  // about so many entries, and lines without any, are looked at
};
}  // namespace queue_op
using QueueOp = std::variant<queue_op::Take, queue_op::Enqueue, queue_op::Claim, queue_op::Finish, queue_op::Requeue,
                             queue_op::Promote, queue_op::ExpireDue, queue_op::Remove, queue_op::ListKept>;

struct LineCount {
  std::string line;
  std::uint32_t count = 0;
  friend bool operator==(const LineCount&, const LineCount&) = default;
};
struct QueueReply {
  std::vector<QueueEntry> claimed;  // Claim, ExpireDue, Take, Remove; run_at and expires_at unset
  std::vector<LineCount> promoted;  // Promote: how many entries each line gained
  std::vector<LineCount> lost;      // ExpireDue, Remove: how many ready entries each line lost
  std::optional<WallTime>
      next_due;                 // Promote, ExpireDue, Take: when the next (for Take: scheduled) entry is due, if any is left
  std::vector<LineCount> kept;  // Take: ready entries of kept lines
  bool maybe_old = false;       // Take: the store was restarted or replaced since the last one, so what stayed may be of an
                                // earlier state: entries that ended meanwhile may be among it
  // Take: ids of ordinary lines that were put into flight and are not out of flight: all since the Take of `unbroken_since`,
  // or, when that is this very Take (the store was emptied, restarted or replaced), what it remembers, maybe of an older state.
  std::vector<JobId> in_flight{};
  Epoch unbroken_since{};
  std::string cursor;                // Take, Remove, ListKept: where the look goes on; empty: it is over
  std::vector<QueueEntry> listed{};  // ListKept: only id and line of each are set
};

// How full the store is. `max` 0: it has no limit of its own.
struct QueueMemory {
  std::uint64_t used = 0, max = 0;  // bytes
  friend bool operator==(const QueueMemory&, const QueueMemory&) = default;
};

struct QueueDepth {
  std::uint64_t ready = 0, scheduled = 0, in_flight = 0;
};

class JobQueue {
 public:
  virtual ~JobQueue() = default;

  // Executes the operations in order, in one round trip where the store allows it. One result per operation; an operation
  // may fail while others succeed. When the connection fails, every operation whose fate is unknown is kMaybeApplied and
  // those not sent are kUnavailable. An Enqueue for which the store has no memory is kLimit: nothing of it was applied, and
  // everything else goes on. Called by one thread (the owner's queue thread).
  virtual std::vector<Result<QueueReply>> Execute(std::span<const QueueOp> ops) = 0;

  // What the shard holds, for status and tests. Not fenced.
  virtual Result<QueueDepth> Depth(ShardId shard) = 0;

  // Of the whole store, not only what is ours. Cheap enough for once a second.
  virtual Result<QueueMemory> Memory() { return QueueMemory{}; }
};

// The other way in: everyone who is not the owner writes job and outbox row into the ledger and then rings here. A ring may be
// lost (the owner also finds outbox rows by itself); it may come twice.
class Inbox {
 public:
  virtual ~Inbox() = default;
  virtual Result<void> Ring(ShardId shard) = 0;
  // Waits until one of the shards was rung, or the timeout passes (empty result). Called by one thread.
  virtual Result<std::vector<ShardId>> Wait(std::span<const ShardId> shards, Millis timeout) = 0;
};

}  // namespace millrace
