// What the dispatcher is told (events) and what it wants done (commands). Plain values; the loop thread carries them to and
// from the ledger thread, the queue thread and the sockets.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/queue/job_queue.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace {

using PieceId = Id<struct PieceIdTag, std::uint64_t>;      // one command::Commit; increasing per dispatcher
using QueueOpId = Id<struct QueueOpIdTag, std::uint64_t>;  // one command::Execute; increasing per dispatcher

// ---- commands ------------------------------------------------------------------------------------------------------------
namespace command {
// Rows of one shard, to be committed after all earlier pieces; the ledger thread merges whatever waits into one OwnerBatch.
// `rows.holds` and `rows.owner` are filled in there. Answered by event::Committed or event::CommitRefused, or not at all when
// the shard is lost.
struct Commit {
  PieceId piece;
  ShardHold hold;
  OwnerBatch rows;
  std::size_t bytes = 0;  // payloads and results in `rows`, about
};
struct ReadLiveRuns {
  ShardHold hold;
  std::optional<RunId> after;
};  // -> event::LiveRunsRead
struct ReadLiveJobs {
  ShardHold hold;
  std::optional<JobId> after;
  bool rebuild = true;  // the shard cannot be served without them
  bool whole = false;   // of a rebuild: also what the outbox shows
};  // -> event::LiveJobsRead
struct ReadOutbox {
  ShardHold hold;
  bool cancels_only = false;
};  // -> event::OutboxRead
struct ReadKnown {
  ShardHold hold;
  std::uint64_t check = 0;
  std::vector<JobId> jobs;
};  // -> event::KnownRead
struct ReadRun {
  wire::PeerId peer;
  std::uint64_t request = 0;
  OrgId org;
  RunId run;
};  // -> event::RunRead
struct ReadStates {
  ShardHold hold;
  std::uint64_t number = 0;  // of the request, echoed
  OrgId org;
  std::vector<Uuid> items;
};  // -> event::StatesRead
struct ReadQueueSettings {
  ShardHold hold;
  bool rebuild = false;  // the shard cannot be served without them
};  // -> event::QueueSettingsRead
struct PutQueueSettings {
  wire::PeerId peer;
  std::uint64_t request = 0;
  QueueSettings settings;  // revision: the one that is replaced
  std::string actor;
};  // -> event::QueueSettingsPut
// Rows came into the ledger's enqueue table: look now. From the thread that waits for them, not from the dispatcher.
struct TakeEnqueued {};
// The dispatcher dropped the shard's state (an unknown or failed queue operation): take it again with a higher epoch.
struct TakeShardAnew {
  ShardHold dropped;
  std::string reason;
};
// The answer to event::YieldShard: nothing of the hold is under way any more, and the dispatcher dropped it.
struct ReleaseShard {
  ShardHold hold;
};
// One operation of the queue, in order. -> event::QueueReplies
struct Execute {
  QueueOpId id;
  QueueOp op;
};
struct SendWorker {
  wire::PeerId peer;
  wire::Message message;
};
struct SendClient {
  wire::PeerId peer;
  wire::Message message;
};
}  // namespace command
using LedgerCommand =
    std::variant<command::Commit, command::ReadLiveRuns, command::ReadLiveJobs, command::ReadOutbox, command::ReadKnown,
                 command::ReadRun, command::ReadStates, command::ReadQueueSettings, command::PutQueueSettings,
                 command::TakeShardAnew, command::ReleaseShard, command::TakeEnqueued>;
using Command = std::variant<LedgerCommand, command::Execute, command::SendWorker, command::SendClient>;

// ---- events ----------------------------------------------------------------------------------------------------------------
namespace event {
struct ShardTaken {
  ShardHold hold;
};
// Not ours (any more): every piece and read of it is dropped. `owner_name` is empty when nobody else is known to have it.
struct ShardLost {
  ShardId shard;
  std::string reason;
  std::string owner_name;
};
// Another broker's share of the shards is too small, ours too large: this one is to be released.
struct YieldShard {
  ShardHold hold;
};
struct LiveRunsRead {
  ShardHold hold;
  std::vector<LiveRun> runs;
  bool last = false;
};
struct LiveJobsRead {
  ShardHold hold;
  std::vector<LiveJob> jobs;
  bool last = false;
  bool failed = false;
  std::optional<JobId> after = {};  // as asked
};  // failed: not read, and not for a rebuild
struct OutboxRead {
  ShardHold hold;
  Ledger::Outbox rows;
  bool more = false;
  bool failed = false;
  bool cancels_only = false;
};  // failed: not read
struct KnownRead {
  ShardHold hold;
  std::uint64_t check = 0;
  std::vector<JobId> known;  // of those asked about
};
struct RunRead {
  wire::PeerId peer;
  std::uint64_t request = 0;
  RunId run;
  Result<RunDetail> detail;
};
struct StatesRead {
  ShardHold hold;
  std::uint64_t number = 0;
  Result<std::vector<ItemState>> states;
};
struct QueueSettingsRead {
  ShardHold hold;
  std::vector<QueueSettings> settings;
  bool failed = false;
};  // failed: not read
struct QueueSettingsPut {
  wire::PeerId peer;
  std::uint64_t request = 0;
  Result<QueueSettings> stored;  // with its revision
};
// `batch` is the merged batch of `pieces` as it was committed, handed back so that nobody has to copy job specifications.
struct Committed {
  std::vector<PieceId> pieces;
  OwnerBatch batch;
  OwnerBatchResult result;
};
// The ledger will never take this piece (bad bytes in it); nothing of it was applied.
struct CommitRefused {
  PieceId piece;
  OwnerBatch rows;
  Error error;
};
struct QueueReplies {
  std::vector<std::pair<QueueOpId, Result<QueueReply>>> replies;  // in the order of the commands
  std::deque<queue_op::Enqueue> refused;                          // those of them that are kLimit, to be put later
  void Add(QueueOpId id, QueueOp& op, Result<QueueReply> result) {
    if (auto* put = std::get_if<queue_op::Enqueue>(&op); put != nullptr && !result && result.error().code == ErrorCode::kLimit)
      refused.push_back(std::move(*put));
    replies.emplace_back(id, std::move(result));
  }
};
struct QueueMemoryRead {
  QueueMemory memory;
};  // once a second
struct Rung {
  ShardId shard;
};  // the inbox rang
struct FromWorker {
  wire::PeerId peer;
  wire::Message message;
};
struct FromClient {
  wire::PeerId peer;
  wire::Message message;
};
struct WorkerPeerGone {
  wire::PeerId peer;
};  // a message could not be sent to it
struct ClientPeerGone {
  wire::PeerId peer;
};
struct Tick {};           // at least every kDispatcherTick
struct StopRequested {};  // no new jobs, no new grants; what is being written is finished
}  // namespace event
using Event = std::variant<event::ShardTaken, event::ShardLost, event::YieldShard, event::LiveRunsRead, event::LiveJobsRead,
                           event::OutboxRead, event::KnownRead, event::RunRead, event::StatesRead, event::QueueSettingsRead,
                           event::QueueSettingsPut, event::Committed, event::CommitRefused, event::QueueReplies,
                           event::QueueMemoryRead, event::Rung, event::FromWorker, event::FromClient, event::WorkerPeerGone,
                           event::ClientPeerGone, event::Tick, event::StopRequested>;

// ---- limits
// ------------------------------------------------------------------------------------------------------------------
inline constexpr auto kDispatcherTick = std::chrono::milliseconds{200};
inline constexpr auto kOutboxPollInterval = std::chrono::milliseconds{2000};   // the inbox may lose a ring
inline constexpr auto kEnqueuePollInterval = std::chrono::milliseconds{2000};  // the notification may be lost
inline constexpr auto kMemoryPollInterval = std::chrono::milliseconds{1000};
inline constexpr std::uint64_t kQueueMemoryPercentMax = 80;            // of Redis' maxmemory; then submits are refused
inline constexpr auto kParkTimeout = std::chrono::milliseconds{3000};  // a request waits this long for its shard
inline constexpr std::size_t kParkedRequestsMax = 256;
inline constexpr std::size_t kAcceptingRowsMax = 50'000;       // rows of submits that wait for the ledger
inline constexpr std::size_t kAcceptingBytesMax = 256u << 20;  // and their payloads
inline constexpr std::size_t kPieceBytesMax = 16u << 20;       // payloads and results of one piece, unless one row has more
inline constexpr std::size_t kOwnerBatchBytesMax = 64u << 20;  // of one ledger transaction, unless one piece has more
inline constexpr std::size_t kRunReadsMax = 1000;              // watches that wait for the ledger
inline constexpr std::size_t kCancelRequestsMax = 1000;        // that wait for the ledger
inline constexpr std::size_t kListingsMax = 100;               // questions for kept jobs that wait for the queue, per shard
inline constexpr std::uint32_t kListPageEntries = 4000;        // of kept lines that one page of the answer looks at
inline constexpr auto kReachInterval = std::chrono::milliseconds{1000};       // between looks at lines that nobody serves
inline constexpr auto kUnreachableGrace = std::chrono::milliseconds{10'000};  // then the jobs of a root out of reach are dead
inline constexpr auto kYieldBudget = std::chrono::milliseconds{5000};  // for what is under way when a shard is handed over
inline constexpr auto kAdoptionWindow = kLeaseTtl;                     // in which workers tell a new owner what they run
inline constexpr std::size_t kLivePageRuns = 200;
inline constexpr std::size_t kLivePageJobs = 2000;
inline constexpr std::size_t kUnqueuedBytesMax = 256u << 20;  // of a broker: what the queue refused, or has to take
inline constexpr std::size_t kOutboxPage = 500;               // runs, and single jobs, of one ReadOutbox
inline constexpr std::size_t kRecentlyEndedMax = 16'384;      // ended attempts remembered for a repeated report
inline constexpr std::size_t kGrantBytesMax = 4u << 20;       // payload bytes of one Grant
inline constexpr std::size_t kWatchersPerRunMax = 64;
inline constexpr std::uint32_t kPromoteJobsMax = 1000;
// A job of `durability: redis` whose id is older or newer than this may have been submitted before: it is looked up.
inline constexpr auto kFreshIdAge = std::chrono::milliseconds{2000}, kFreshIdAhead = std::chrono::milliseconds{1000};
inline constexpr std::uint32_t kExpireJobsMax = 500;  // per step: waiting entries of one ExpireDue, blocked jobs of one look
inline constexpr std::uint32_t kDispatchesPerEpochMax =
    0xF000'0000;  // then the shard is taken anew: a token's counter has 32 bits

}  // namespace millrace
