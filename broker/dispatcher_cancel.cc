// Stopping what somebody wants stopped. In this order: the request is durable; the attempts are told to stop; the fences of
// their sinks are raised by an attempt that does nothing else; only then has the job ended. A receipt that exists wins.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace {

void Dispatcher::OnCancel(const wire::PeerId& peer, wire::Cancel& m) {
  if (m.items.size() > kBatchJobsMax)
    return Problem(peer, m.request, "limit", fmt::format("items: {} in one message, limit {}", m.items.size(), kBatchJobsMax));
  if (cancel_requests_.size() >= kCancelRequestsMax)
    return Problem(peer, m.request, "limit", fmt::format("{} cancel requests wait for the ledger", cancel_requests_.size()));
  const ShardId shard = ShardOf(m.org, options_.shard_count);
  if (!Admit(peer, {shard}, m, m.items.size())) return;
  std::vector<Uuid> items;
  items.reserve(m.items.size());
  for (const auto& item : m.items) items.push_back(item.id);
  const ShardHold hold = shards_.at(shard).hold;
  ToLedger(command::ReadStates{.hold = hold, .number = ++last_cancel_, .org = m.org, .items = std::move(items)});
  cancel_requests_.emplace(last_cancel_, CancelRequest{.peer = peer, .message = std::move(m), .hold = hold, .reply = {}});
}

void Dispatcher::On(event::StatesRead& e) {
  const auto it = cancel_requests_.find(e.number);
  if (it == cancel_requests_.end()) return;  // its shard was lost meanwhile
  CancelRequest& request = it->second;
  Shard& shard = *Current(e.hold);
  if (request.peer.empty()) {  // see CancelDurable
    cancel_requests_.erase(it);
    if (!e.states) return TakeAnew(shard, "a cancelled job: " + e.states.error().message);
    for (const ItemState& state : *e.states)
      if (state.live && !CancelStored(shard, *state.live)) LookForCancelled(shard, *state.live);
    return;
  }
  if (!e.states) {
    GiveBackFound(shard, request);
    Problem(request.peer, request.message.request, std::string(Name(e.states.error().code)), e.states.error().message);
    cancel_requests_.erase(it);
    return;
  }
  if (SearchKept(shard, request, e.number, *e.states)) return;
  AnswerCancel(shard, request, *e.states);
  OpenPiece(shard, shard.progress_piece).requests.push_back(e.number);
}

// Pieces are committed in their order: the answer is sent when the last one is durable.
void Dispatcher::AnswerCancel(Shard& shard, CancelRequest& request, const std::vector<ItemState>& states) {
  request.reply.request = request.message.request;
  std::map<std::pair<Uuid, bool>, std::size_t> answered;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const ItemState& state = states[i];
    const wire::Cancel::Item& item = request.message.items[i];
    wire::CancelReply::Item& reply = request.reply.items.emplace_back();
    reply.id = item.id;
    if (const auto [earlier, first] = answered.try_emplace({item.id, item.is_run}, i); !first) {  // named twice
      reply = request.reply.items[earlier->second];
      continue;
    }
    Piece& piece = OpenPiece(shard, shard.progress_piece);
    CancelRow row{.item = item.id,
                  .is_run = item.is_run,
                  .org = request.message.org,
                  .actor = request.message.actor,
                  .reason = request.message.reason,
                  .requested_at = wall_};
    if (!state.known && !state.of_run && !item.is_run && CancelKept(shard, piece, request, row, reply)) continue;
    const bool is_run = state.known && !state.live && !state.job_ended;
    if (!state.known || is_run != item.is_run) {
      if (!item.is_run && state.of_run) reply.state = state.of_run->ToString();
      continue;
    }
    if (state.run_ended || state.job_ended) {
      reply.effect = CancelEffect::kEnded;
      reply.state = state.run_ended ? Name(*state.run_ended) : Name(*state.job_ended);
      continue;
    }
    reply.effect = CancelEffect::kCancelling;
    piece.rows.cancels.push_back(row);
    if (!state.live) {
      piece.cancels.push_back({.row = std::move(row), .live = {}});
      continue;
    }
    const JobId id = state.live->spec.id;
    const bool waits = !Leased(shard, id);
    if (waits && !state.live->spec.options.has_sink && !shard.cancelling.contains(id)) {
      reply.effect = CancelEffect::kCancelled;
      EndWaiting(shard, piece, state.live->spec, state.live->counters);
      LeaveQueue(shard, state.live->spec, state.live->next_run_at || state.live->spec.run_at);
    } else {
      LiveJob live = *state.live;
      live.cancelling = false;  // it was not taken out of the queue for this: CancelKept, CancelDurable
      piece.cancels.push_back({.row = std::move(row), .live = std::move(live), .waiting = waits});
    }
  }
}

// Only the queue, or its first attempt, has this job: it becomes the ledger's together with the request. False: nobody has it.
bool Dispatcher::CancelKept(Shard& shard, Piece& piece, CancelRequest& request, CancelRow row, wire::CancelReply::Item& reply) {
  const JobId id{row.item};
  if (auto found = request.found.extract(id); !found.empty()) {
    const JobEntry& entry = found.mapped();
    KeepSpec(piece, entry.spec);
    piece.rows.cancels.push_back(row);
    reply.effect = entry.spec.options.has_sink ? CancelEffect::kCancelling : CancelEffect::kCancelled;
    shard.settling[id] = {.org = entry.spec.org};
    if (entry.spec.options.has_sink)
      piece.cancels.push_back(
          {.row = std::move(row),
           .live = LiveJob{.spec = entry.spec, .counters = entry.counters, .next_run_at = {}, .cancelling = true},
           .waiting = true});
    else
      EndWaiting(shard, piece, entry.spec, entry.counters);
    return true;
  }
  const auto lease = leases_.find(id);
  if (lease == leases_.end() || lease->second.spec->org != request.message.org || !lease->second.kept) return false;
  KeepSpec(piece, *lease->second.spec);
  piece.rows.cancels.push_back(row);
  reply.effect = CancelEffect::kCancelling;
  piece.cancels.push_back(
      {.row = std::move(row),
       .live =
           LiveJob{.spec = *lease->second.spec, .counters = lease->second.counters, .next_run_at = {}, .cancelling = true}});
  return true;
}

// A single job without a sink of which no attempt runs: it ends `cancelled` with the piece.
void Dispatcher::EndWaiting(Shard& shard, Piece& piece, const JobSpec& spec, const Counters& counters) {
  // Its worker is to hear so when it speaks up.
  if (MayStillRun(shard, spec, counters)) recently_lost_.Remember(spec.id, Token::Make(shard.hold.epoch, shard.dispatches));
  shard.settling[spec.id] = {.org = spec.org};
  piece.unleased.push_back(spec.id);
  piece.rows.outcomes.push_back(UnrunOutcome(spec, counters, JobState::kCancelled, "cancelled", "cancelled before it started"));
}

// Whether an attempt of a job that waits may run that nobody adopts: one that was lost, or that a former owner delivered. Of
// the latter the ledger knows only with the attempt's end; what of ledger class was delivered the queue knows, unless it was
// restarted since.
bool Dispatcher::MayStillRun(const Shard& shard, const JobSpec& spec, const Counters& counters) const {
  if (counters.deliveries > 0) return true;
  if (spec.options.durability != Durability::kRedis && shard.unbroken_since != shard.hold.epoch) return false;
  return shard.hold.epoch > Epoch{1} && (shard.phase != Phase::kReady || BeforeUs(shard, spec));
}

void Dispatcher::CancelDurable(Shard& shard, const Piece::Cancel& cancel) {
  const CancelRow& row = cancel.row;
  if (row.is_run) return ApplyCancel(shard, shard.runs.Cancel(RunId{row.item}, CancelReason(row.actor, row.reason)));
  const JobId id = cancel.live->spec.id;
  if (const auto lease = leases_.find(id); lease != leases_.end()) {
    lease->second.kept = false;
    shard.cancelling.insert(id);
    StopAttempt(id);
  } else if (cancel.waiting) {
    // One that CancelKept took out is settled by this; another one's time may have come meanwhile, and then it ends so.
    if (cancel.live->cancelling && shard.settling.erase(id) > 0) shard.finish.push_back(id);
    CancelStored(shard, *cancel.live);
  } else {
    LookForCancelled(shard, *cancel.live);
  }
}

// An attempt of it has ended meanwhile: the ledger knows whether the job has.
void Dispatcher::LookForCancelled(const Shard& shard, const LiveJob& job) {
  const std::uint64_t number = ++last_cancel_;
  ToLedger(command::ReadStates{.hold = shard.hold, .number = number, .org = job.spec.org, .items = {job.spec.id.uuid}});
  cancel_requests_.emplace(number, CancelRequest{.peer = {}, .message = {}, .hold = shard.hold});
}

// The request is durable: attempts stop now, not when the outcomes of what never started are written too.
void Dispatcher::ApplyCancel(Shard& shard, RunEffects effects) {
  RunEffects now;
  now.stopping = std::exchange(effects.stopping, {});
  now.fencing = std::exchange(effects.fencing, {});
  now.leaving = std::exchange(effects.leaving, {});
  EffectsDurable(shard, now);
  WriteEffects(shard, std::move(effects));
}

void Dispatcher::StopAttempt(JobId job) {
  const auto it = leases_.find(job);
  if (it == leases_.end() || it->second.ending || it->second.fence) return;
  if (const auto worker = workers_.find(it->second.worker); worker != workers_.end())
    RevokeLater(worker->second.peer, {.job = job, .token = it->second.token, .reason = "cancelled"});
}

bool Dispatcher::Cancelling(const Shard& shard, const JobSpec& spec) const {
  if (!spec.run) return shard.cancelling.contains(spec.id);
  const RunCoordinator::Job* job = shard.runs.Find(spec.id);
  return job != nullptr && job->state == JobState::kCancelling;
}

// As Judge, for a job that is being cancelled. Changes the report's class where the ledger should say why it ended.
AttemptVerdict Dispatcher::JudgeCancelled(const Lease& lease, AttemptReport& report) const {
  AttemptVerdict verdict{.counters = lease.counters, .terminal = std::nullopt, .immediate = true};
  ++verdict.counters.deliveries;
  switch (report.end) {
    case AttemptEnd::kSucceeded:
      verdict.terminal = JobState::kSucceeded;
      report.error_class = "cancel_too_late";
      return verdict;
    case AttemptEnd::kFailed:
    case AttemptEnd::kTimedOut:
      ++verdict.counters.failures;
      verdict.immediate = false;
      break;
    case AttemptEnd::kCrashed:
      ++verdict.counters.failures;
      ++verdict.counters.crashes;
      verdict.immediate = false;
      break;
    case AttemptEnd::kHandedBack:
    case AttemptEnd::kLost: break;
    case AttemptEnd::kCancelled:
      if (lease.fence) verdict.terminal = JobState::kCancelled;
      break;
  }
  if (!lease.spec->options.has_sink) {
    verdict.terminal = JobState::kCancelled;
    report.error_class = "cancelled";
  } else if (!lease.fence) {
    verdict.immediate = true;  // whatever stopped it: next comes the fence
  } else if (!verdict.terminal && !verdict.immediate &&
             (!report.retryable ||
              verdict.counters.failures >= static_cast<std::uint32_t>(lease.spec->retry.max_attempts) + kFenceFailuresMax)) {
    verdict.terminal = JobState::kDead;
    report.error_class = "cancel_unfenced";
  }
  return verdict;
}

// Nothing of a job that is being cancelled runs any more, and it has no sink to be fenced.
void Dispatcher::EndStopped(Shard& shard, const JobSpec& spec, const Counters& counters, const std::string& reason) {
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  piece.unleased.push_back(spec.id);
  if (spec.run) {
    AppendEffects(shard, piece, shard.runs.JobStopped(spec.id, reason));
    return;
  }
  shard.cancelling.erase(spec.id);
  shard.settling[spec.id] = {.org = spec.org};
  piece.rows.outcomes.push_back(UnrunOutcome(spec, counters, JobState::kCancelled, "cancelled", reason));
}

// A single job whose cancel request is in the ledger: found by a rebuild, or put there by somebody else. False: it is not known
// whether the job has ended, its last attempt is being written.
bool Dispatcher::CancelStored(Shard& shard, const LiveJob& job) {
  const JobId id = job.spec.id;
  if (shard.settling.contains(id)) return false;
  if (shard.fences.Contains(id)) return true;
  if (leases_.contains(id)) {
    shard.cancelling.insert(id);
    StopAttempt(id);
    return true;
  }
  if (shard.removals.Leaving(id)) return true;  // it has ended
  LeaveQueue(shard, job.spec, job.next_run_at || job.spec.run_at);
  if (!job.spec.options.has_sink) {
    EndWaiting(shard, OpenPiece(shard, shard.progress_piece), job.spec, job.counters);
    return true;
  }
  // Whether an attempt ran under a former owner is not known.
  shard.cancelling.insert(id);
  FenceLater(shard, std::make_shared<const JobSpec>(job.spec), job.counters, std::nullopt);
  return true;
}

void Dispatcher::FenceLater(Shard& shard, std::shared_ptr<const JobSpec> spec, const Counters& counters,
                            std::optional<WallTime> run_at) {
  shard.fences.Add(std::move(spec), counters, run_at.value_or(wall_));
  plan_needed_ = true;
}

// Before anything that waits in the queue, and past its limits, rates and pauses: a fence is no work, and what it ends was
// asked to end.
void Dispatcher::GrantFences() {
  if (stopping_) return;
  for (auto* const item : std::vector(shards_.Touched())) {
    Shard& shard = item->second;
    if (shard.phase != Phase::kReady || shard.yield_by || shard.fences.Empty()) continue;
    std::vector<Worker*> takers;
    for (auto& [id, worker] : workers_)
      if (worker.Credit() > 0) takers.push_back(&worker);
    if (takers.empty()) return;
    for (const JobId& id : shard.fences.Due(wall_)) {
      if (leases_.contains(id)) {  // it runs after all: its end asks for the fence again
        shard.fences.Erase(id);
        StopAttempt(id);
        continue;
      }
      const LineKey& key = shard.fences.At(id).key;
      Worker* best = nullptr;
      for (Worker* worker : takers)
        if (worker->reach.Serves(key) && worker->Credit() > (best == nullptr ? 0 : best->Credit())) best = worker;
      if (best == nullptr) continue;
      const FenceList::Fence fence = shard.fences.At(id);
      shard.fences.Erase(id);
      Grant(shard, *best, fence.spec, fence.counters, false);
    }
  }
}

// As for a line that nobody reaches: LookForUnserved.
void Dispatcher::EndUnservedFences() {
  for (auto& [shard_id, shard] : shards_) {
    if (shard.phase != Phase::kReady || shard.yield_by) continue;
    for (const JobId& id : shard.fences.Due(wall_)) {
      FenceList::Fence& fence = shard.fences.At(id);
      if (workers_.empty() || Covered(fence.key.root)) {
        fence.unserved_since.reset();
        continue;
      }
      if (!fence.unserved_since) fence.unserved_since = now_;
      if (now_ - *fence.unserved_since < kUnreachableGrace) continue;
      const FenceList::Fence gone = fence;
      shard.fences.Erase(id);
      const std::string reason =
          fmt::format("no connected worker reaches '{}' to raise its fence: {}", gone.key.root, RootsOfWorkers());
      Piece& piece = OpenPiece(shard, shard.progress_piece);
      OutcomeRow row = UnrunOutcome(*gone.spec, gone.counters, JobState::kDead, "unreachable_input", reason);
      piece.unleased.push_back(id);
      if (gone.spec->run) {
        AppendEffects(shard, piece, shard.runs.JobUnplaceable(id, reason));
      } else {
        shard.cancelling.erase(id);
        shard.settling[id] = {.org = gone.spec->org};
      }
      piece.rows.outcomes.push_back(std::move(row));
    }
  }
}

void Dispatcher::FailRequests(Piece& piece) {
  for (const std::uint64_t number : std::exchange(piece.requests, {})) {
    const auto request = cancel_requests_.extract(number);
    if (!request.empty())
      Problem(request.mapped().peer, request.mapped().message.request, "unavailable",
              "whether the request was recorded is not known: ask again");
  }
}

}  // namespace millrace
