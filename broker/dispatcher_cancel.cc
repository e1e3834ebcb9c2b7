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
  if (!e.states) {
    Problem(request.peer, request.message.request, std::string(Name(e.states.error().code)), e.states.error().message);
    cancel_requests_.erase(it);
    return;
  }
  Shard& shard = *Current(e.hold);
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  request.reply.request = request.message.request;
  for (std::size_t i = 0; i < e.states->size(); ++i) {
    const ItemState& state = (*e.states)[i];
    const wire::Cancel::Item& item = request.message.items[i];
    wire::CancelReply::Item& reply = request.reply.items.emplace_back();
    reply.id = item.id;
    const bool is_run = state.known && !state.live && !state.job_ended;
    if (!state.known || is_run != item.is_run) continue;
    if (state.run_ended || state.job_ended) {
      reply.effect = CancelEffect::kEnded;
      reply.state = state.run_ended ? Name(*state.run_ended) : Name(*state.job_ended);
      continue;
    }
    reply.effect = CancelEffect::kCancelling;
    CancelRow row{.item = item.id,
                  .is_run = item.is_run,
                  .org = request.message.org,
                  .actor = request.message.actor,
                  .reason = request.message.reason,
                  .requested_at = wall_};
    piece.rows.cancels.push_back(row);
    if (state.live && EndWaitingJob(shard, piece, *state.live)) {
      reply.effect = CancelEffect::kCancelled;
    } else {
      const bool waits = state.live && !Leased(shard, state.live->spec.id);
      piece.cancels.push_back({.row = std::move(row), .waiting = waits ? state.live : std::nullopt});
    }
  }
  piece.requests.push_back(e.number);
}

// A single job without a sink that waits in the queue, or is on its way there, ends with its request. Its entry stays in the
// queue until somebody claims it.
bool Dispatcher::EndWaitingJob(Shard& shard, Piece& piece, const LiveJob& job) {
  if (Leased(shard, job.spec.id) || job.spec.options.has_sink || shard.cancelling.contains(job.spec.id)) return false;
  if (!shard.ended_waiting.insert(job.spec.id).second) return true;
  piece.rows.outcomes.push_back(
      UnrunOutcome(job.spec, job.counters, JobState::kCancelled, "cancelled", "cancelled before it started"));
  return true;
}

bool Dispatcher::EndedWhileWaiting(Shard& shard, JobId job) {
  if (shard.ended_waiting.erase(job) == 0 && !shard.ended_fenced.contains(job)) return false;
  shard.finish.push_back(job);
  return true;
}

void Dispatcher::CancelDurable(Shard& shard, const Piece::Cancel& cancel) {
  const CancelRow& row = cancel.row;
  if (row.is_run) {
    ApplyCancel(shard, shard.runs.Cancel(RunId{row.item}, CancelReason(row.actor, row.reason)));
  } else if (cancel.waiting) {
    CancelStored(shard, *cancel.waiting);
  } else {
    shard.cancelling.insert(JobId{row.item});
    StopAttempt(JobId{row.item});
  }
}

// The request is durable: attempts stop now, not when the outcomes of what never started are written too.
void Dispatcher::ApplyCancel(Shard& shard, RunEffects effects) {
  RunEffects now;
  now.stopping = std::exchange(effects.stopping, {});
  now.fencing = std::exchange(effects.fencing, {});
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
  piece.rows.outcomes.push_back(UnrunOutcome(spec, counters, JobState::kCancelled, "cancelled", reason));
}

// A single job whose cancel request is in the ledger: found by a rebuild, or put there by somebody else.
void Dispatcher::CancelStored(Shard& shard, const LiveJob& job) {
  const JobId id = job.spec.id;
  if (shard.ended_waiting.contains(id) || shard.ended_fenced.contains(id) || shard.settling.contains(id)) return;
  const bool first = shard.cancelling.insert(id).second;
  if (leases_.contains(id)) return StopAttempt(id);
  // Whether an attempt ran under a former owner is not known, nor whether the queue has it already: it does no harm twice.
  if (job.spec.options.has_sink) return Enqueue(shard, job.spec, job.counters, std::nullopt, true);
  if (!first) return;
  shard.cancelling.erase(id);
  shard.ended_waiting.insert(id);
  OpenPiece(shard, shard.progress_piece)
      .rows.outcomes.push_back(
          UnrunOutcome(job.spec, job.counters, JobState::kCancelled, "cancelled", "cancelled before it started"));
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
