// The broker's brain: a pure state machine over the shards one broker owns. Events in, commands out; no I/O, no clock, and
// randomness only for backoff jitter. The life of a job inside it is told in ops/docs/dispatch.md.
//
// Rules it keeps whatever happens:
//   - "accepted" is said only when the ledger has the rows; a job is enqueued after that, and leaves the queue only after its
//     outcome is durable. A job of `durability: redis` is accepted when the queue has it; the ledger has it from its first
//     attempt that did not succeed on (dispatcher_durability.cc);
//   - one lease per job, its token greater than any before; a report with another token changes nothing;
//   - a job gets a new token only when the end of its older one is durable;
//   - whoever takes a shard forgets nothing of the old owner's: the queue is emptied and built again from the ledger, and
//     attempts that still run are adopted, or end as lost (dispatcher_handover.cc).
//
// Not thread-safe: owned by the broker's loop thread. Handle every event at hand, then Flush once: that makes the batches.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "broker/dispatch_lease.h"
#include "broker/dispatch_requests.h"
#include "broker/dispatch_shard.h"
#include "broker/entry_codec.h"
#include "broker/events.h"
#include "broker/line_index.h"
#include "broker/line_memo.h"
#include "broker/lines.h"
#include "broker/ready_buffer.h"
#include "broker/recent_tokens.h"
#include "broker/run_coordinator.h"
#include "broker/shard_table.h"
#include "common/base/id_map.h"
#include "common/base/random.h"

namespace millrace {

struct DispatcherOptions {
  std::string name = "broker";
  std::uint16_t shard_count = 1;
  std::vector<ShardId> shards;  // that this broker may come to own; requests for them wait while they are being taken
  Random* random = nullptr;     // must outlive the dispatcher
  std::size_t unqueued_bytes_max = kUnqueuedBytesMax;
};

class Dispatcher {
 public:
  explicit Dispatcher(DispatcherOptions options);

  // Changes state; what is to be done is collected for Flush.
  void Handle(Event event, MonoTime now, WallTime wall);
  // Appends the commands that follow from everything handled since the last Flush, in the order in which they must be issued.
  void Flush(MonoTime now, WallTime wall, std::vector<Command>& out);

  // When a scheduled job is due next, if any is known: Handle(Tick) and Flush then, or after kDispatcherTick.
  std::optional<WallTime> NextDue() const;
  // After StopRequested: nothing waits for the ledger or the queue any more.
  bool Idle() const { return pieces_.empty() && ops_.empty(); }

  // For status and tests.
  bool Ready(ShardId shard) const;
  std::size_t leases() const { return leases_.size(); }
  std::size_t workers() const { return workers_.size(); }
  std::size_t live_runs() const;
  std::uint64_t adopted() const { return adopted_; }  // attempts of former owners that went on

 private:
  using Phase = dispatch::Phase;
  using Lease = dispatch::Lease;
  using Worker = dispatch::Worker;
  using Submit = dispatch::Submit;
  using Ending = dispatch::Ending;
  using Piece = dispatch::Piece;
  using Check = dispatch::Check;
  using Shard = dispatch::Shard;
  using Op = dispatch::Op;

  // Shards: dispatcher_shards.cc
  void On(event::ShardTaken& e);
  void On(event::ShardLost& e);
  void On(event::LiveRunsRead& e);
  void On(event::LiveJobsRead& e);
  void On(event::OutboxRead& e);
  void On(event::QueueReplies& e);
  void On(event::Rung& e);
  void DropShard(Shard& shard, const std::string& reason);
  void TakeAnew(Shard& shard, const std::string& reason);
  void BecomeReady(Shard& shard);
  void ReadOutbox(Shard& shard);
  void TakeOutOfOutbox(Shard& shard, const OwnerBatch& done);
  void TakeRun(Shard& shard, LiveRun& live, RunEffects& effects);  // of an outbox row
  void QueueFailed(const Op& op, const Error& error);
  void Release(WorkerId worker, std::uint32_t promised);
  Worker* NextTaker(ClaimPlan& plan);
  void OnClaimed(Op& op, QueueReply& reply);
  void ClaimedAll(const ClaimPlan& plan, std::size_t claimed);
  void OnPromoted(const Op& op, QueueReply& reply);

  // From owner to owner: dispatcher_handover.cc
  void On(event::YieldShard& e);
  void ReleaseYielded();
  void LeaveLease(const Shard& shard, const Lease& lease);
  void LeaveAll();
  void NoteDelivered(Shard& shard, QueueReply& reply);
  void NoteTokens(Shard& shard, LiveRun& run);
  void PresumeOfRuns(Shard& shard);
  void Presume(Shard& shard, const std::shared_ptr<const JobSpec>& spec, const Counters& counters,
               std::optional<WallTime> run_at);
  void FinishDelivered(Shard& shard);
  void EndPresumed(Shard& shard);
  void OnOrphans(const wire::PeerId& peer, const wire::Orphans& m);
  bool MayAdopt(const Lease& lease, Token token) const;
  void AdoptLease(Lease& lease, Worker& worker, Token token);

  // Jobs that only the queue has: dispatcher_durability.cc
  void On(event::KnownRead& e);
  void OnTaken(const Op& op, QueueReply& reply);
  bool SurelyNew(const Shard& shard, const JobSpec& spec) const;
  Durability ClassOf(const JobSpec& spec);
  bool BeforeUs(const Shard& shard, const JobSpec& spec) const;
  void AcceptKept(JobSpec& spec, const std::shared_ptr<Submit>& submit, std::set<ShardId>& shards);
  void AnswerKept(Op& op, const Error* error);
  void FailKept(Shard& shard);
  void EnqueueKept(Shard& shard, const JobSpec& spec, std::optional<WallTime> run_at, bool front, bool check,
                   std::shared_ptr<const JobSpec> at_hand = nullptr);
  std::uint64_t TakeSuspects(Shard& shard, const std::string& line, std::uint64_t n);
  void Ask(Shard& shard, Check check);
  bool Deliver(Shard& shard, ClaimPlan& plan, std::shared_ptr<const JobSpec> spec, const Counters& counters, bool kept);
  void StandBefore(Shard& shard, const std::string& line, std::uint64_t n);
  bool Leased(const Shard& shard, JobId job) const { return leases_.contains(job) || shard.settling.contains(job); }
  void KeepSpec(Piece& piece, const JobSpec& spec);

  // What only the queue has, listed: dispatcher_list.cc
  void OnListKept(const wire::PeerId& peer, wire::ListKept& m);
  void EmitListing(Shard& shard, std::vector<Command>& out);
  void OnListed(const Op& op, const QueueReply& reply);
  void ListAnew(const wire::PeerId& peer, std::uint64_t request);
  void AnswerOwn(const Shard& shard, const wire::PeerId& peer, const wire::ListKept& m, KeptPlace place,
                 std::vector<JobId> jobs);
  std::vector<JobId> OwnKept(const Shard& shard, const wire::ListKept& m);

  // Ledger: dispatcher_ledger.cc
  void On(event::Committed& e);
  void On(event::CommitRefused& e);
  void On(event::RunRead& e);
  void CommittedJobs(event::Committed& e, const dispatch::Duplicates& duplicates);
  void CommittedPiece(Piece& piece, const dispatch::Duplicates& duplicates);
  void EndingDurable(Shard& shard, const Ending& ending);
  void EffectsDurable(Shard& shard, const RunEffects& effects);
  void WriteEffects(Shard& shard, RunEffects effects);
  void AppendEffects(Shard& shard, Piece& piece, RunEffects effects);
  OutcomeRow UnrunOutcome(const JobSpec& spec, const Counters& counters, JobState state, std::string_view error_class,
                          const std::string& reason) const;
  void FinishSubmit(Submit& submit);
  Piece& OpenPiece(Shard& shard, PieceId& slot);
  void FailSubmits(Piece& piece, const std::string& code, const std::string& message);

  // Workers: dispatcher_workers.cc
  void On(event::FromWorker& e);
  void On(event::WorkerPeerGone& e);
  void OnHello(const wire::PeerId& peer, wire::Hello& m);
  void OnBeat(const wire::PeerId& peer, wire::Beat& m);
  void OnEnded(const wire::PeerId& peer, wire::Ended& m);
  void OnGoodbye(const wire::Goodbye& m);
  void OnProgress(const Worker& worker, const wire::Beat::Progress& m);
  void Held(Worker& worker, const std::vector<wire::Hello::Held>& held);
  void EndAttempt(Lease& lease, AttemptReport& report);
  void Lose(JobId job, const std::string& why, WallTime not_before = {});
  void LoseWorker(WorkerId worker, const std::string& why);
  Lease& Grant(Shard& shard, Worker& worker, std::shared_ptr<const JobSpec> spec, const Counters& counters, bool kept);
  void Plan();
  bool PlanFor(Worker& worker, std::uint64_t budget, std::size_t hungry);
  void Reply(const wire::PeerId& peer, wire::EndedReply::Item item);
  void RevokeLater(const wire::PeerId& peer, wire::Revoke::Item item);

  // Clients: dispatcher_clients.cc
  void On(event::FromClient& e);
  void On(event::ClientPeerGone& e);
  void OnSubmitJobs(const wire::PeerId& peer, wire::SubmitJobs& m);
  void OnSubmitRun(const wire::PeerId& peer, wire::SubmitRun& m);
  void OnWatch(const wire::PeerId& peer, const wire::Watch& m);
  bool ShowJob(const wire::PeerId& peer, const wire::Watch& m);
  void OnStatus(const wire::PeerId& peer, const wire::Status& m);
  template <class Request>
  bool Admit(const wire::PeerId& peer, const std::set<ShardId>& shards, Request& request, std::size_t rows);
  void SendUpdate(const wire::PeerId& peer, const wire::RunUpdate& update);
  void AcceptJob(JobSpec spec, const std::shared_ptr<Submit>& submit, std::set<PieceId>& pieces);
  void Problem(const wire::PeerId& peer, std::uint64_t request, std::string code, std::string message);
  void AddWatcher(RunId run, const wire::PeerId& peer);
  void RetryParked();
  void EmitUpdates(Shard& shard);

  // Cancelling: dispatcher_cancel.cc
  void OnCancel(const wire::PeerId& peer, wire::Cancel& m);
  void On(event::StatesRead& e);
  void AnswerCancel(Shard& shard, CancelRequest& request, const std::vector<ItemState>& states);
  bool CancelKept(Shard& shard, Piece& piece, CancelRequest& request, CancelRow row, wire::CancelReply::Item& reply);
  void EndWaiting(Shard& shard, Piece& piece, const JobSpec& spec, const Counters& counters);
  bool MayStillRun(const Shard& shard, const JobSpec& spec, const Counters& counters) const;
  void CancelDurable(Shard& shard, const Piece::Cancel& cancel);
  void ApplyCancel(Shard& shard, RunEffects effects);
  void StopAttempt(JobId job);
  bool Cancelling(const Shard& shard, const JobSpec& spec) const;
  AttemptVerdict JudgeCancelled(const Lease& lease, AttemptReport& report) const;
  void EndStopped(Shard& shard, const JobSpec& spec, const Counters& counters, const std::string& reason);
  bool CancelStored(Shard& shard, const LiveJob& job);
  void EndDamaged(Shard& shard, const LineKey& line, JobId job, const Error& error);
  void LookForCancelled(const Shard& shard, const LiveJob& job);
  void FailRequests(Piece& piece);
  void FenceLater(Shard& shard, std::shared_ptr<const JobSpec> spec, const Counters& counters, std::optional<WallTime> run_at);
  void GrantFences();
  void EndUnservedFences();

  // Out of the queue by name: dispatcher_remove.cc
  void LeaveQueue(Shard& shard, const JobSpec& spec, bool scheduled);
  bool Left(Shard& shard, JobId job);
  bool SearchKept(Shard& shard, CancelRequest& request, std::uint64_t number, const std::vector<ItemState>& states);
  bool TakeFound(Shard& shard, CancelRequest& request, std::uint64_t number, JobId job);
  bool Awaits(const Shard& shard, const CancelRequest& request, std::uint64_t number, JobId job) const;
  void ReadStatesAgain(CancelRequest& request, std::uint64_t number);
  void ResumeRequests();
  bool HandOver(Shard& shard, JobEntry entry);
  void GiveBackFound(Shard& shard, CancelRequest& request);
  void EmitRemove(Shard& shard, std::vector<Command>& out);
  void OnRemoved(const Op& op, QueueReply& reply);
  void ForgetLost(const Shard& shard, const QueueReply& reply);

  // Queues: dispatcher_queues.cc
  void On(event::QueueSettingsRead& e);
  void On(event::QueueSettingsPut& e);
  void On(event::QueueMemoryRead& e);
  void OnSetQueue(const wire::PeerId& peer, wire::SetQueue& m);
  void OnListQueues(const wire::PeerId& peer, const wire::ListQueues& m);
  void OnListUnserved(const wire::PeerId& peer, const wire::ListUnserved& m);
  Shard* OwnShard(const wire::PeerId& peer, std::uint64_t request, OrgId org);
  void ReadQueueSettings(Shard& shard, bool rebuild);
  void ApplySettings(Shard& shard, QueueSettings settings);
  std::optional<Error> OverBudget(const std::vector<JobSpec>& jobs) const;
  void AddAccepting(Shard& shard, Piece& piece, const JobSpec& job);
  void EndLease(const Lease& lease);  // every lease that ends is counted off here, unless its shard goes with it

  // Placement: dispatcher_placement.cc
  bool Covered(std::string_view root) const;
  std::string RootsOfWorkers() const;
  std::optional<std::string> OutOfReach(const std::vector<JobSpec>& jobs) const;
  bool Served(const LineKey& line) const;
  void LookForUnserved();
  void EndLine(LineIndex::Line& line);
  void OnLineClaimed(const Op& op, QueueReply& reply);

  // Straight into flight: dispatcher_pass.cc
  std::shared_ptr<const JobSpec> AtHand(const Shard& shard, JobSpec& spec, std::optional<WallTime> run_at);
  bool SpareCredit(const Shard& shard, std::optional<WallTime> run_at);
  static bool Claiming(const Shard& shard, const std::string& line);
  std::vector<dispatch::Pass> TakePasses(Shard& shard, std::vector<QueueEntry>& passed);
  void OnPassed(const ShardHold& hold, dispatch::Pass& pass);
  bool StartClaimed(Shard& shard, ClaimPlan& plan, dispatch::Claimed job, bool suspect, Check& doubtful);
  void ClaimOver(Shard& shard, ClaimPlan& plan, std::uint64_t started, Check& doubtful);

  // A queue that has no memory left: dispatcher_refused.cc
  bool StoreFull() const;
  void OnRefused(const Op& op, queue_op::Enqueue put);
  void KeepRefused(Shard& shard, QueueEntry entry);
  void TryRefused(Shard& shard, bool room);
  void DropRefused(Shard& shard, const std::vector<JobId>& jobs);
  bool TooMuchUnqueued() const { return unqueued_bytes_ >= options_.unqueued_bytes_max; }
  void AddUnqueued(Shard& shard, std::size_t bytes);
  void TakeUnqueued(Shard& shard, std::size_t bytes);
  void PutRead(Shard& shard, const LiveJob& job);
  void PutAnswered(Shard& shard);
  void LeaveUnread(Shard& shard, JobId job);
  void ReadUnread(Shard& shard);
  void TakeUnread(Shard& shard, const event::LiveJobsRead& page);

  // Ready jobs in memory: dispatcher_buffer.cc
  bool MayBuffer(const Shard& shard, std::size_t payload_bytes) const;
  bool Buffer(Shard& shard, const LineRef& ref, QueueEntry& entry, std::size_t payload_bytes,
              const std::shared_ptr<const JobSpec>& at_hand);
  void TakeBack(Shard& shard);
  std::uint32_t TakeBuffered(LineIndex::Line& line, std::uint32_t n, WorkerId worker);
  static bool MayStartAhead(const Shard& shard, std::uint64_t put, const dispatch::Pass& pass);
  void ServeBuffered();
  void HandOverBuffered(Shard& shard, const std::unordered_set<JobId>& jobs);
  void PageOut(Shard& shard, const std::string& line, std::size_t most = SIZE_MAX);
  void PageOut(Shard& shard);
  void ForgetBuffered(ShardId shard);
  void PageOutOld();
  void EmitPaged(Shard& shard, std::vector<Command>& out);

  // What time ends: dispatcher_expiry.cc
  void JudgeTime(const Lease& lease, AttemptReport& report, AttemptVerdict& verdict) const;
  std::uint32_t TimeoutOf(const JobSpec& spec, bool fence, bool& cut) const;
  bool EndIfOver(Shard& shard, const JobSpec& spec, const Counters& counters, bool kept = false);
  void EndOverdueBlocked(Shard& shard);
  void EmitExpire(Shard& shard, std::vector<Command>& out);
  void OnExpired(const Op& op, QueueReply& reply);

  // dispatcher.cc
  void On(event::Tick& e);
  void On(event::StopRequested& e);
  // `at_hand` is `spec`, kept so that the job can pass straight into flight; or none.
  void Enqueue(Shard& shard, const JobSpec& spec, const Counters& counters, std::optional<WallTime> run_at, bool front,
               std::shared_ptr<const JobSpec> at_hand = nullptr);
  void EnqueueIn(Shard& shard, const LineRef& line, const JobSpec& spec, const Counters& counters,
                 std::optional<WallTime> run_at, bool front, bool check, std::shared_ptr<const JobSpec> at_hand);
  void EnqueueRunJob(Shard& shard, JobId job);
  void AddReady(Shard& shard, const std::string& line, std::uint64_t n);
  void EmitPieces(std::vector<Command>& out);
  void EmitQueue(std::vector<Command>& out);
  void EmitMessages(std::vector<Command>& out);
  void EmitGrants(Worker& worker, std::vector<Command>& out);
  void Execute(const Shard& shard, QueueOp op, Op::Kind kind, std::vector<Command>& out);
  Shard* Current(const ShardHold& hold);  // nullptr: that hold is over
  Shard* ShardOfOrg(OrgId org);
  bool Starts(const Shard& shard) const { return shard.phase == Phase::kReady && !shard.yield_by && !stopping_; }
  ShardTable<Shard>::Wait WaitOf(const Shard& shard) const;
  void ToLedger(LedgerCommand command) { ledger_commands_.push_back(std::move(command)); }

  const DispatcherOptions options_;
  MonoTime now_{};
  WallTime wall_{};
  bool stopping_ = false, plan_needed_ = false;

  ShardTable<Shard> shards_;
  LineIndex lines_;
  ReadyBuffer buffer_;
  LineMemo line_memo_;
  IdMap<JobId, Lease> leases_;
  std::map<WorkerId, Worker> workers_;
  WorkerId plan_from_;                            // round robin over workers
  MonoTime next_reach_look_{}, workers_since_{};  // since: when the first of those that are connected came
  RecentTokens recently_ended_, recently_lost_, handed_over_;
  std::uint64_t adopted_ = 0;
  bool left_ = false;  // stopping: the workers were told

  std::map<PieceId, Piece> pieces_;
  std::vector<PieceId> open_pieces_;
  std::uint64_t last_piece_ = 0, last_op_ = 0, last_check_ = 0, last_cancel_ = 0;
  QueueMemory queue_memory_;
  std::size_t unqueued_bytes_ = 0;                                        // of all shards
  std::unordered_map<Uuid, PieceId> accepting_;                           // jobs and runs on their way into the ledger
  std::size_t accepting_rows_ = 0, accepting_bytes_ = 0, run_reads_ = 0;  // under way
  std::map<std::uint64_t, CancelRequest> cancel_requests_;
  std::vector<std::uint64_t> awaiting_requests_;       // of them; may name some that are answered
  std::deque<Op> ops_;                                 // under way, in order
  std::vector<command::Execute> takes_;                // of this flush
  std::vector<ClaimPlan> claims_, doomed_;             // of this flush; doomed: nobody reaches their root
  std::optional<dispatch::SpareCredit> spare_credit_;  // in this flush, once it was asked for
  std::vector<dispatch::Served> served_;               // of this round of plans
  std::deque<Parked> parked_;
  std::optional<MonoTime> parked_until_;  // set while a parked request is tried again
  std::unordered_map<RunId, std::vector<wire::PeerId>> watchers_;
  std::vector<LedgerCommand> ledger_commands_;  // of this flush, before the pieces
  std::map<wire::PeerId, wire::EndedReply> ended_replies_;
  std::map<wire::PeerId, wire::Revoke> revokes_;
  std::vector<WorkerId> granting_;  // workers that got grants in this flush
  std::map<wire::PeerId, wire::Adopt> adopts_;
  std::vector<command::SendWorker> to_workers_;
  std::vector<command::SendClient> to_clients_;
};

}  // namespace millrace
