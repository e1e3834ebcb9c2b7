// What the dispatcher keeps of a request or a plan until it can go on with it. Plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "broker/entry_codec.h"
#include "broker/events.h"
#include "broker/kept_record.h"
#include "broker/line_index.h"
#include "broker/lines.h"
#include "broker/queue_budgets.h"
#include "broker/ready_buffer.h"
#include "broker/run_coordinator.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/ledger/ledger.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace {

struct CancelRequest {
  wire::PeerId peer;  // empty: of the dispatcher itself, whose request is durable already
  wire::Cancel message;
  ShardHold hold;
  wire::CancelReply reply = {};                    // once the states are known
  std::unordered_map<JobId, JobEntry> found = {};  // in kept lines: out of them, in flight
  std::size_t searching = 0;                       // ids that are still looked for there
  std::unordered_set<JobId> searched = {};         // ids that this request itself has had looked for
  std::vector<JobId> awaited = {};  // what others have in hand: the states are read again when they are through with it
};

struct Parked {  // its shard is being taken
  wire::PeerId peer;
  wire::Message message;
  MonoTime until;
};

struct ClaimPlan {  // entries of a line that are promised to workers
  ShardId shard;
  LineRef line;
  std::uint32_t total = 0;
  std::vector<std::pair<WorkerId, std::uint32_t>> split;
  LineIndex::Slot slot{};
};

namespace dispatch {

struct Settling {
  OrgId org;
  std::uint64_t found_by = 0;  // the cancel request that has the job's entry and is not answered yet; 0: none
};

struct Submit {  // one request of a client, which may touch several shards
  wire::PeerId peer;
  std::uint64_t request = 0;
  std::size_t pieces = 0;  // still to be committed
  bool whole = false;      // it was one piece from the start: refused, nothing of it was taken
  bool failed = false;
  bool run = false, watch = false;
  OrgId org;  // of the run
  std::vector<wire::SubmitReply::Item> items;
};

struct Ending {
  JobId job;
  Token token;
  AttemptVerdict verdict;
  std::optional<WallTime> run_at;
};

struct Check {                     // entries of kept lines that wait for what the ledger says of them
  std::vector<QueueEntry> stayed;  // found in flight by Take
  std::vector<JobEntry> expired;   // taken out by ExpireDue
  std::vector<JobEntry> claimed;
  ClaimPlan plan;  // of `claimed`; what it promises is reserved
};

struct Piece {  // what of one shard is written into the ledger together
  ShardHold hold;
  OwnerBatch rows;  // moved into the command when it is sealed
  std::vector<std::shared_ptr<Submit>> submits;
  std::vector<Uuid> accepting;
  std::vector<Ending> endings;
  RunEffects effects;
  std::vector<Uuid> outbox_items, outbox_batches;
  std::vector<JobId> unleased;                                            // ended without a lease
  std::vector<std::pair<std::shared_ptr<const JobSpec>, Counters>> lost;  // kept jobs: start again when this is durable
  struct Cancel {
    CancelRow row;
    std::optional<LiveJob> live;  // a single job that has not ended
    bool waiting = false;         // and had no attempt when the request was looked at
  };
  std::vector<Cancel> cancels;          // what takes effect when they are durable
  std::vector<std::uint64_t> requests;  // of cancel_requests_: answered then
  QueueBudgets::Amounts waiting;        // what will wait once it is accepted
  std::size_t accept_rows = 0, accept_bytes = 0;
  std::size_t bytes = 0;  // in rows, about
};

struct Duplicates {  // of a committed batch
  std::unordered_set<JobId> jobs;
  std::unordered_set<RunId> runs;
  std::unordered_map<JobId, JobId> conflicts;  // to the holder of the unique key
};

struct Claimed {  // on its way to a worker
  std::shared_ptr<const JobSpec> spec;
  Counters counters;
  bool check = false;  // as in JobEntry
};

struct Served {  // a job of the ready buffer that a worker gets in this flush
  ShardId shard;
  LineRef line;
  LineIndex::Slot slot;
  WorkerId worker;
  ReadyBuffer::Job job;
};

struct Pass {  // a claim of entries that come in with the same operation, and go straight into flight
  ClaimPlan plan;
  std::vector<Claimed> jobs;  // as many as were asked for
};

struct HandedBack {  // a kept entry that goes back to the front of its line
  QueueEntry entry;
  bool may_wait_here = false;  // it was about to start: there are not many of those
};

struct SpareCredit {  // of all workers, in one flush
  std::uint64_t all = 0, left = 0;
};

// Single jobs of ledger class that the queue had no memory for and that only the ledger has: read again when there is some.
struct Unread {
  std::unordered_map<JobId, std::uint64_t> jobs;  // in which pass they were left there
  std::optional<JobId> after;                     // where the next page begins
  std::uint64_t pass = 0;                         // over all live jobs of the ledger, by pages
  bool reading = false;
};

// An operation that puts something in and is not answered.
struct Put {
  QueueOpId id;
  std::size_t read_bytes = 0;  // payloads that were read from the ledger for it
};

// Of jobs that wait in the ready buffer, or come back: what the queue is to be told of them.
struct Puts {
  std::vector<HandedBack> handed_back;  // in this flush, in order
  std::vector<QueueEntry> passed;       // come in, and go straight into flight
  std::vector<Pass> passes;             // start when it has done so
  std::vector<JobId> ahead;             // of `passed`: have started already
  std::vector<QueueEntry> paged;        // go back to their lines, after that
  std::uint64_t sent = 0;               // operations that put something in, ever
  std::deque<Put> unanswered;           // the latest of them
  std::deque<QueueEntry> refused;       // that the queue had no memory for
  std::size_t read_bytes = 0;           // Put::read_bytes of the next one
  std::size_t unqueued_bytes = 0;       // of `refused`, and all read_bytes
  std::size_t refused_try_max = 0;      // so many of them are tried at once; 0: the queue takes everything
  MonoTime refused_until{};             // when they are tried again, unless another put shows that there is memory
  Unread unread;
  bool Empty() const { return handed_back.empty() && passed.empty() && paged.empty(); }
};

struct Listing {  // a client asks which jobs only the queue has
  wire::PeerId peer;
  wire::ListKept message;
  KeptPlace place;  // of a first page it is set when the queue is asked
};

struct Listings {  // of one shard: a page at a time
  std::deque<Listing> waiting;
  bool asked = false;  // the first one's page is under way
  KeptRecord record;
};

struct Op {
  QueueOpId id;
  ShardHold hold;
  enum class Kind : std::uint8_t { kTake, kPlain, kClaim, kEndLine, kPromote, kExpire, kRemove, kList } kind = Kind::kPlain;
  ClaimPlan plan = {};                                // kClaim, kEndLine
  std::vector<std::shared_ptr<Submit>> submits = {};  // kPlain: accepted with it
  std::vector<Pass> passes = {};                      // kPlain: started with it
  std::vector<JobId> ahead = {};                      // kPlain: started before it
  std::size_t accept_rows = 0, accept_bytes = 0;
  bool put = false;   // kPlain: an Enqueue
  bool kept = false;  // kRemove: out of kept lines
};

}  // namespace dispatch
}  // namespace millrace
