#include "broker/dispatcher.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "broker/entry_codec.h"
#include "common/base/check.h"

namespace millrace {
namespace {

constexpr int kPlanRoundsMax = 4;  // of one flush: what was planned for nothing makes room for another job

}  // namespace

Dispatcher::Dispatcher(DispatcherOptions options) : options_(std::move(options)) {
  MILLRACE_CHECK(options_.random != nullptr, "the dispatcher needs a source of randomness");
  for (const ShardId id : options_.shards) shards_[id].hold = {.shard = id, .epoch = Epoch{}};
}

void Dispatcher::Handle(Event event, MonoTime now, WallTime wall) {
  now_ = now;
  wall_ = wall;
  std::visit([this](auto& e) { On(e); }, event);
}

void Dispatcher::Flush(MonoTime now, WallTime wall, std::vector<Command>& out) {
  now_ = now;
  wall_ = wall;
  shards_.Wake(wall);
  if (lines_.Advance(now)) plan_needed_ = true;
  for (auto* const item : shards_.Touched()) TakeBack(item->second);
  ReleaseYielded();
  ResumeRequests();
  if (stopping_ && Idle()) LeaveAll();
  for (int round = 0; plan_needed_ && round < kPlanRoundsMax; ++round) {
    GrantFences();
    Plan();
    ServeBuffered();
  }
  EmitPieces(out);
  EmitQueue(out);
  EmitMessages(out);
  spare_credit_.reset();
  shards_.Rest([this](const Shard& shard) { return WaitOf(shard); });
}

ShardTable<Dispatcher::Shard>::Wait Dispatcher::WaitOf(const Shard& shard) const {
  ShardTable<Shard>::Wait wait{.due = std::nullopt, .always = shard.yield_by.has_value() || !shard.fences.Empty()};
  if (shard.phase != Phase::kReady || shard.yield_by) return wait;
  if (!shard.promoting) wait.due = shard.next_due;
  if (!shard.expiring && shard.next_expiry && (!wait.due || *shard.next_expiry < *wait.due)) wait.due = shard.next_expiry;
  if (const auto fence = shard.fences.DueAfter(wall_); fence && (!wait.due || *fence < *wait.due)) wait.due = fence;
  return wait;
}

std::optional<WallTime> Dispatcher::NextDue() const {
  std::optional<WallTime> due = shards_.NextDue([this](const Shard& shard) { return WaitOf(shard); });
  if (const auto token = lines_.NextToken()) {  // a rate lets something start again
    const WallTime at = wall_ + (*token - now_);
    if (!due || at < *due) due = at;
  }
  return due;
}

bool Dispatcher::Ready(ShardId shard) const {
  const auto it = shards_.find(shard);
  return it != shards_.end() && it->second.phase == Phase::kReady;
}

std::size_t Dispatcher::live_runs() const {
  std::size_t n = 0;
  for (const auto& [id, shard] : shards_) n += shard.runs.size();
  return n;
}

Dispatcher::Shard* Dispatcher::Current(const ShardHold& hold) {
  const auto it = shards_.find(hold.shard);
  return it != shards_.end() && it->second.hold == hold && it->second.phase >= Phase::kTaking ? &it->second : nullptr;
}

Dispatcher::Shard* Dispatcher::ShardOfOrg(OrgId org) {
  const auto it = shards_.find(ShardOf(org, options_.shard_count));
  return it == shards_.end() ? nullptr : &it->second;
}

void Dispatcher::On(event::Tick&) {
  std::vector<WorkerId> silent;
  for (const auto& [id, worker] : workers_)
    if (worker.heard + kLeaseTtl <= now_) silent.push_back(id);
  for (const WorkerId& id : silent) LoseWorker(id, "no heartbeat for the length of a lease");
  for (auto& [id, shard] : shards_) {
    shard.recent.Forget(now_);
    if (shard.listings.waiting.empty()) shard.listings.record.EndIfIdle(now_);
    if (shard.puts.refused_until <= now_) TryRefused(shard, false);
    if (shard.phase != Phase::kReady) continue;
    EndPresumed(shard);
    if (shard.yield_by) continue;
    EndOverdueBlocked(shard);
    if (!shard.fences.Empty()) plan_needed_ = true;
    if (shard.dispatches > kDispatchesPerEpochMax) {
      TakeAnew(shard, "the tokens of this epoch are used up");
    } else if (shard.next_outbox <= now_) {
      ReadOutbox(shard);
      ReadQueueSettings(shard, false);
    }
  }
  if (next_reach_look_ <= now_) {
    next_reach_look_ = now_ + kReachInterval;
    LookForUnserved();
    PageOutOld();
  }
  RetryParked();
}

void Dispatcher::On(event::StopRequested&) {
  stopping_ = true;
  for (auto& [id, shard] : shards_) PageOut(shard);
  RetryParked();
}

void Dispatcher::AddReady(Shard& shard, const std::string& line, std::uint64_t n) {
  if (shard.phase != Phase::kReady) {
    shard.held_lines[line] += n;
    return;
  }
  if (shard.yield_by) return;  // the next owner counts for himself
  lines_.Add(shard.hold.shard, line, n, now_);
  plan_needed_ = true;
}

void Dispatcher::Enqueue(Shard& shard, const JobSpec& spec, const Counters& counters, std::optional<WallTime> run_at,
                         bool front, std::shared_ptr<const JobSpec> at_hand) {
  EnqueueIn(shard, line_memo_.Find(spec, Durability::kLedger), spec, counters, run_at, front, false, std::move(at_hand));
}

void Dispatcher::EnqueueIn(Shard& shard, const LineRef& ref, const JobSpec& spec, const Counters& counters,
                           std::optional<WallTime> run_at, bool front, bool check, std::shared_ptr<const JobSpec> at_hand) {
  const LineKey& line = ref->key;
  QueueEntry entry{.id = spec.id, .line = ref->name, .body = {}, .run_at = {}, .expires_at = {}};
  // What is being cancelled is not over before its fence is raised.
  if (const auto end = Cancelling(shard, spec) ? std::nullopt : EndOfWait(spec.options, counters)) {
    entry.expires_at = end->at;
    shard.next_expiry = shard.next_expiry ? std::min(*shard.next_expiry, end->at) : end->at;
  }
  if (!spec.run) entry.body = EncodeEntry(spec, counters, line, check);
  shard.budgets.Enqueued(line.org, line.queue, spec.payload.size());
  if (line.durability == Durability::kRedis && !(run_at && *run_at > wall_)) {
    if (front) {
      shard.puts.handed_back.push_back({.entry = std::move(entry), .may_wait_here = at_hand != nullptr});
      return AddReady(shard, ref->name, 1);
    }
    if (!check && Buffer(shard, ref, entry, spec.payload.size(), at_hand)) return;
  }
  if (run_at && *run_at > wall_) {
    entry.run_at = run_at;
    shard.next_due = shard.next_due ? std::min(*shard.next_due, *run_at) : *run_at;
  } else {
    AddReady(shard, entry.line, 1);
  }
  // What the queue has in flight comes out of it with this.
  const bool delivered = !shard.delivered.empty() && shard.delivered.erase(spec.id) > 0;
  if (front || delivered) {
    shard.requeue.push_back(std::move(entry));
  } else {
    shard.enqueue.push_back(std::move(entry));
    shard.enqueue_jobs.push_back({.spec = std::move(at_hand), .counters = counters, .check = check});
  }
}

void Dispatcher::EnqueueRunJob(Shard& shard, JobId id) {
  RunCoordinator::Job* job = shard.runs.Find(id);
  if (job == nullptr || job->state != JobState::kBlocked) return;
  shard.runs.Apply(*job, job->run_at && *job->run_at > wall_ ? JobEvent::kDelayed : JobEvent::kUnblocked);
  shard.runs.Show(id);
  Enqueue(shard, *job->spec, job->counters, job->run_at, false, SpareCredit(shard, job->run_at) ? job->spec : nullptr);
}

void Dispatcher::EmitPieces(std::vector<Command>& out) {
  for (auto* const item : shards_.Touched()) {
    item->second.submit_piece = PieceId{};
    item->second.progress_piece = PieceId{};
  }
  for (auto& command : ledger_commands_) out.emplace_back(std::move(command));
  ledger_commands_.clear();
  for (const PieceId id : std::exchange(open_pieces_, {})) {
    const auto it = pieces_.find(id);
    if (it == pieces_.end()) continue;  // its shard was lost in this very flush
    Piece& piece = it->second;
    out.emplace_back(
        LedgerCommand{command::Commit{.piece = id, .hold = piece.hold, .rows = std::move(piece.rows), .bytes = piece.bytes}});
    piece.rows = {};
  }
}

void Dispatcher::Execute(const Shard& shard, QueueOp op, Op::Kind kind, std::vector<Command>& out) {
  const QueueOpId id{++last_op_};
  ops_.push_back({.id = id, .hold = shard.hold, .kind = kind});
  out.emplace_back(command::Execute{.id = id, .op = std::move(op)});
}

// The order matters: what leaves the flight before what may go straight into it, and what goes in before what is removed or
// claimed, so that a job can be accepted, enqueued and started in one round trip.
void Dispatcher::EmitQueue(std::vector<Command>& out) {
  for (auto& take : takes_) out.emplace_back(std::move(take));
  takes_.clear();
  for (auto* const item : shards_.Touched()) {
    Shard& shard = item->second;
    if (shard.phase < Phase::kTaking) continue;
    const ShardId s = shard.hold.shard;
    const Epoch e = shard.hold.epoch;
    if (!shard.finish.empty())
      Execute(shard, queue_op::Finish{.shard = s, .epoch = e, .ids = std::exchange(shard.finish, {})}, Op::Kind::kPlain, out);
    shard.listings.record.Back(shard.requeue);
    if (!shard.requeue.empty())
      Execute(shard, queue_op::Requeue{.shard = s, .epoch = e, .entries = std::exchange(shard.requeue, {})}, Op::Kind::kPlain,
              out);
    if (!shard.enqueue.empty() || !shard.puts.passed.empty()) {
      queue_op::Enqueue put{.shard = s, .epoch = e, .entries = {}, .passed = std::exchange(shard.puts.passed, {})};
      auto passes = std::exchange(shard.puts.passes, {});
      std::ranges::move(TakePasses(shard, put.passed), std::back_inserter(passes));
      put.entries = std::exchange(shard.enqueue, {});
      shard.enqueue_jobs.clear();
      Execute(shard, std::move(put), Op::Kind::kPlain, out);
      ++shard.puts.sent;
      shard.puts.unanswered.push_back({.id = ops_.back().id, .read_bytes = std::exchange(shard.puts.read_bytes, 0)});
      ops_.back().put = true;
      ops_.back().passes = std::move(passes);
      ops_.back().ahead = std::exchange(shard.puts.ahead, {});
      ops_.back().submits = std::exchange(shard.enqueue_submits, {});
      ops_.back().accept_rows = std::exchange(shard.enqueue_rows, 0);
      ops_.back().accept_bytes = std::exchange(shard.enqueue_bytes, 0);
    }
    EmitPaged(shard, out);
    if (std::exchange(shard.take_again, false))
      Execute(shard, queue_op::Take{.shard = s, .epoch = e, .cursor = std::exchange(shard.take_cursor, {})}, Op::Kind::kTake,
              out);
    if (shard.yield_by) continue;
    if (shard.phase == Phase::kReady && !shard.promoting && shard.next_due && *shard.next_due <= wall_) {
      shard.promoting = true;
      shard.next_due.reset();
      Execute(shard, queue_op::Promote{.shard = s, .epoch = e, .now = wall_, .max = kPromoteJobsMax}, Op::Kind::kPromote, out);
    }
    EmitExpire(shard, out);
    EmitRemove(shard, out);
    EmitListing(shard, out);
  }
  const auto claim = [&](ClaimPlan& plan, Op::Kind kind) {
    Shard& shard = shards_.at(plan.shard);
    const std::string& line = plan.line->name;
    ++shard.claiming[line];
    Execute(shard, queue_op::Claim{.shard = plan.shard, .epoch = shard.hold.epoch, .line = line, .max = plan.total}, kind, out);
    ops_.back().plan = std::move(plan);
  };
  std::ranges::stable_sort(claims_, {}, &ClaimPlan::shard);  // those of one owner are one script of the queue
  for (ClaimPlan& plan : std::exchange(claims_, {})) claim(plan, Op::Kind::kClaim);
  for (ClaimPlan& plan : std::exchange(doomed_, {})) claim(plan, Op::Kind::kEndLine);
}

void Dispatcher::EmitGrants(Worker& worker, std::vector<Command>& out) {
  wire::Grant grant;
  std::size_t bytes = 0;
  std::vector<wire::Grant::Job> jobs = std::exchange(worker.grants, {});
  grant.jobs.reserve(std::min(jobs.size(), kBatchJobsMax));
  for (auto& job : jobs) {
    if (!grant.jobs.empty() && (bytes + job.payload.size() > kGrantBytesMax || grant.jobs.size() >= kBatchJobsMax)) {
      out.emplace_back(command::SendWorker{.peer = worker.peer, .message = std::exchange(grant, {})});
      bytes = 0;
    }
    bytes += job.payload.size();
    grant.jobs.push_back(std::move(job));
  }
  if (!grant.jobs.empty()) out.emplace_back(command::SendWorker{.peer = worker.peer, .message = std::move(grant)});
}

// One message takes at most kBatchJobsMax items.
template <class T>
void SendInParts(const wire::PeerId& peer, T& message, std::vector<Command>& out) {
  for (std::size_t at = 0; at < message.items.size(); at += kBatchJobsMax) {
    const auto begin = message.items.begin() + static_cast<std::ptrdiff_t>(at);
    const auto n = static_cast<std::ptrdiff_t>(std::min(kBatchJobsMax, message.items.size() - at));
    T part;
    part.items.assign(std::make_move_iterator(begin), std::make_move_iterator(begin + n));
    out.emplace_back(command::SendWorker{.peer = peer, .message = std::move(part)});
  }
}

void Dispatcher::EmitMessages(std::vector<Command>& out) {
  for (auto& send : to_workers_) out.emplace_back(std::move(send));
  to_workers_.clear();
  for (auto& [peer, revoke] : revokes_) SendInParts(peer, revoke, out);
  revokes_.clear();
  for (auto& [peer, adopt] : adopts_) SendInParts(peer, adopt, out);
  adopts_.clear();
  for (auto& [peer, reply] : ended_replies_) SendInParts(peer, reply, out);
  ended_replies_.clear();
  std::ranges::sort(granting_);  // as the map has them: a simulation's trace does not depend on who was planned first
  for (const WorkerId& id : std::exchange(granting_, {}))
    if (const auto it = workers_.find(id); it != workers_.end()) EmitGrants(it->second, out);
  for (auto* const item : shards_.Touched()) EmitUpdates(item->second);
  for (auto& send : to_clients_) out.emplace_back(std::move(send));
  to_clients_.clear();
}

}  // namespace millrace
