// What the ledger made durable, and what follows from it.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/size_routing.h"
#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace {

// Submits and the progress of attempts go into different pieces: a submit that the ledger refuses takes no outcome with it.
Dispatcher::Piece& Dispatcher::OpenPiece(Shard& shard, PieceId& slot) {
  if (slot != PieceId{}) {
    Piece& open = pieces_.at(slot);
    const OwnerBatch& rows = open.rows;
    if (rows.jobs.size() + rows.attempts.size() + rows.outcomes.size() < kOwnerBatchRowsMax && open.bytes < kPieceBytesMax)
      return open;
  }
  slot = PieceId{++last_piece_};
  open_pieces_.push_back(slot);
  Piece& piece = pieces_[slot];
  piece.hold = shard.hold;
  return piece;
}

// The outcome of a job that ends while no attempt of it runs.
OutcomeRow Dispatcher::UnrunOutcome(const JobSpec& spec, const Counters& counters, JobState state, std::string_view error_class,
                                    const std::string& reason) const {
  OutcomeRow row;
  row.report.job = spec.id;
  row.report.retryable = false;
  row.report.error_class = error_class;
  row.report.error = reason;
  row.report.finished_at = wall_;
  row.org = spec.org;
  row.run = spec.run;
  row.state = state;
  row.counters = counters;
  row.recorded_at = wall_;
  row.queue = RoutedQueue(spec);
  return row;
}

void Dispatcher::AppendEffects(Shard& shard, Piece& piece, RunEffects effects) {
  for (const RunEffects::Skip& skip : effects.skipped) {
    const RunCoordinator::Job* job = shard.runs.Find(skip.job);
    piece.rows.outcomes.push_back(
        UnrunOutcome(*job->spec, job->counters, JobState::kSkipped, "dependency_failed", skip.reason));
  }
  for (const RunEffects::Skip& cancelled : effects.cancelled) {
    const RunCoordinator::Job* job = shard.runs.Find(cancelled.job);
    piece.rows.outcomes.push_back(UnrunOutcome(*job->spec, job->counters, JobState::kCancelled, "cancelled", cancelled.reason));
  }
  for (const RunId& run : effects.replaced)
    piece.rows.cancels.push_back({.item = run.uuid,
                                  .is_run = true,
                                  .org = shard.runs.OrgOf(run),
                                  .actor = options_.name,
                                  .reason = "overlap: cancel, a later run takes its place",
                                  .requested_at = wall_});
  for (const RunEffects::End& end : effects.ended)
    piece.rows.run_outcomes.push_back(
        {.run = end.run, .org = shard.runs.OrgOf(end.run), .state = end.state, .reason = end.reason, .finished_at = wall_});
  piece.effects.Append(std::move(effects));
}

void Dispatcher::WriteEffects(Shard& shard, RunEffects effects) {
  if (!effects.HasRows()) {
    EffectsDurable(shard, effects);
    return;
  }
  AppendEffects(shard, OpenPiece(shard, shard.progress_piece), std::move(effects));
}

void Dispatcher::EffectsDurable(Shard& shard, const RunEffects& effects) {
  for (const RunId& run : effects.started) shard.runs.ShowStart(run, wall_);
  for (const RunEffects::Skip& skip : effects.skipped) shard.runs.Show(skip.job);
  for (const RunEffects::Skip& cancelled : effects.cancelled) shard.runs.Show(cancelled.job);
  for (const JobId& job : effects.ready) EnqueueRunJob(shard, job);
  for (const JobId& job : effects.stopping) StopAttempt(job);
  for (const JobId& id : effects.leaving)
    if (const RunCoordinator::Job* job = shard.runs.Find(id)) LeaveQueue(shard, *job->spec, job->run_at.has_value());
  for (const JobId& id : effects.fencing)
    if (const RunCoordinator::Job* job = shard.runs.Find(id)) FenceLater(shard, job->spec, job->counters, std::nullopt);
  for (const RunId& run : effects.replaced)
    ApplyCancel(shard, shard.runs.Cancel(run, "cancelled: a later run takes its place"));
  for (const RunEffects::End& end : effects.ended) {
    shard.runs.ShowEnd(end.run, wall_);
    if (const auto it = watchers_.find(end.run); it != watchers_.end()) {
      if (auto update = shard.runs.Update(end.run, false))
        for (const auto& peer : it->second) SendUpdate(peer, *update);
      watchers_.erase(it);
    }
    shard.runs.Remove(end.run);
  }
}

static std::unordered_map<JobId, JobId> ConflictsOf(const OwnerBatchResult& result) {
  std::unordered_map<JobId, JobId> conflicts;
  for (const UniqueConflict& conflict : result.conflicts) conflicts.emplace(conflict.job, conflict.holder);
  return conflicts;
}

void Dispatcher::On(event::Committed& e) {
  const dispatch::Duplicates duplicates{.jobs = {e.result.duplicate_jobs.begin(), e.result.duplicate_jobs.end()},
                                        .runs = {e.result.duplicate_runs.begin(), e.result.duplicate_runs.end()},
                                        .conflicts = ConflictsOf(e.result)};
  CommittedJobs(e, duplicates);
  for (const PieceId id : e.pieces) {
    auto node = pieces_.extract(id);
    if (node.empty()) continue;  // its shard was lost meanwhile; the rebuild reads what was committed
    CommittedPiece(node.mapped(), duplicates);
  }
}

// New jobs and runs. Those of a shard that was lost meanwhile are found by its rebuild.
void Dispatcher::CommittedJobs(event::Committed& e, const dispatch::Duplicates& duplicates) {
  const auto current = [&](OrgId org) -> Shard* {
    Shard* shard = ShardOfOrg(org);
    return shard != nullptr && shard->phase == Phase::kReady &&
                   std::ranges::find(e.batch.holds, shard->hold) != e.batch.holds.end()
               ? shard
               : nullptr;
  };
  std::unordered_map<RunId, std::vector<JobSpec>> of_run;
  for (JobSpec& job : e.batch.jobs) {
    if (duplicates.jobs.contains(job.id) || duplicates.conflicts.contains(job.id)) continue;
    if (job.run) {
      of_run[*job.run].push_back(std::move(job));
    } else if (job.options.durability == Durability::kRedis) {
      continue;  // its spec came with an attempt: see dispatcher_durability.cc
    } else if (Shard* shard = current(job.org)) {
      const std::optional<WallTime> run_at = job.run_at;
      const auto at_hand = AtHand(*shard, job, run_at);
      Enqueue(*shard, at_hand ? *at_hand : job, Counters{}, run_at, false, at_hand);
    }
  }
  for (RunSpec& run : e.batch.runs) {
    if (duplicates.runs.contains(run.id)) continue;
    Shard* shard = current(run.org);
    if (shard == nullptr || shard->runs.Knows(run.id)) continue;
    auto jobs = std::move(of_run[run.id]);
    WriteEffects(*shard, shard->runs.AddRun(std::move(run), std::move(jobs)));
  }
}

void Dispatcher::CommittedPiece(Piece& piece, const dispatch::Duplicates& duplicates) {
  Shard* shard = Current(piece.hold);
  MILLRACE_CHECK(shard != nullptr, "shard {}: a piece outlived its hold", piece.hold.shard.value());
  for (const Uuid& id : piece.accepting) accepting_.erase(id);
  accepting_rows_ -= piece.accept_rows;
  accepting_bytes_ -= piece.accept_bytes;
  shard->budgets.Accepted(piece.waiting);
  for (const auto& submit : piece.submits) {
    for (auto& item : submit->items) {
      if (const auto held = duplicates.conflicts.find(JobId{item.id}); !submit->run && held != duplicates.conflicts.end())
        item.conflict_with = held->second.uuid;
      if (submit->run ? duplicates.runs.contains(RunId{item.id}) : duplicates.jobs.contains(JobId{item.id}))
        item.duplicate = true;
    }
    if (--submit->pieces == 0 && !submit->failed) FinishSubmit(*submit);
  }
  for (const Piece::Cancel& cancel : piece.cancels)
    CancelDurable(*shard, cancel);  // before the endings: what failed is not retried
  for (std::size_t i = 0; i < piece.endings.size(); ++i) {
    leases_.PrefetchAhead(piece.endings, i, &Ending::job);
    EndingDurable(*shard, piece.endings[i]);
  }
  for (const auto& [spec, counters] : piece.lost) {
    shard->settling.erase(spec->id);
    Enqueue(*shard, *spec, counters, std::nullopt, true);
  }
  for (const JobId& job : piece.unleased) {
    shard->settling.erase(job);
    shard->finish.push_back(job);
    shard->runs.Show(job);
  }
  EffectsDurable(*shard, piece.effects);
  for (const std::uint64_t number : piece.requests) {
    auto request = cancel_requests_.extract(number);
    if (!request.empty()) to_clients_.push_back({.peer = request.mapped().peer, .message = std::move(request.mapped().reply)});
  }
  if (piece.outbox_items.empty() && piece.outbox_batches.empty()) return;
  for (const Uuid& batch : piece.outbox_batches) shard->outbox_batches_taking.erase(batch);
  for (const Uuid& item : piece.outbox_items) shard->outbox_taking.erase(item);
  if (std::exchange(shard->outbox_again, false)) ReadOutbox(*shard);
}

void Dispatcher::EndingDurable(Shard& shard, const Ending& ending) {
  const auto it = leases_.find(ending.job);
  MILLRACE_CHECK(it != leases_.end() && it->second.token == ending.token && it->second.ending,
                 "job {}: its end is durable, but it holds no lease that was ending", ending.job.ToString());
  const Lease lease = std::move(it->second);
  leases_.erase(it);
  EndLease(lease);
  if (lease.lost)
    recently_lost_.Remember(ending.job, ending.token);
  else
    recently_ended_.Remember(ending.job, ending.token);
  if (const auto worker = workers_.find(lease.worker); worker != workers_.end() && !lease.lost)
    Reply(worker->second.peer, {.job = ending.job, .token = ending.token, .accepted = true, .reason = {}});
  if (ending.verdict.terminal) {
    shard.finish.push_back(ending.job);
    shard.cancelling.erase(ending.job);
    if (lease.spec->run) shard.runs.Show(ending.job);
    return;
  }
  const bool cancelling = Cancelling(shard, *lease.spec);
  if (cancelling && !lease.spec->options.has_sink) {  // asked for while its end was being written
    if (lease.spec->run) shard.runs.Find(ending.job)->counters = ending.verdict.counters;
    return EndStopped(shard, *lease.spec, ending.verdict.counters, "cancelled");
  }
  if (lease.spec->run) {
    RunCoordinator::Job* job = shard.runs.Find(ending.job);
    job->counters = ending.verdict.counters;
    job->run_at = ending.run_at;
    if (!cancelling) shard.runs.Apply(*job, ending.run_at && *ending.run_at > wall_ ? JobEvent::kRetry : JobEvent::kRequeued);
    shard.runs.Show(ending.job);
  }
  // Only a fence that failed waits before the next one; the backoff of the job's work does not count any more.
  if (cancelling) return FenceLater(shard, lease.spec, ending.verdict.counters, lease.fence ? ending.run_at : std::nullopt);
  Enqueue(shard, *lease.spec, ending.verdict.counters, ending.run_at, true);
}

void Dispatcher::FinishSubmit(Submit& submit) {
  to_clients_.push_back(
      {.peer = submit.peer, .message = wire::SubmitReply{.request = submit.request, .accepted = submit.items}});
  if (!submit.run || !submit.watch) return;
  OnWatch(submit.peer, {.request = submit.request, .org = submit.org, .run = RunId{submit.items.front().id}});
}

void Dispatcher::FailSubmits(Piece& piece, const std::string& code, const std::string& message) {
  for (const Uuid& id : piece.accepting) accepting_.erase(id);
  accepting_rows_ -= piece.accept_rows;
  accepting_bytes_ -= piece.accept_bytes;
  for (const auto& submit : piece.submits) {
    if (std::exchange(submit->failed, true)) continue;
    Problem(submit->peer, submit->request, code, message);
  }
}

void Dispatcher::On(event::CommitRefused& e) {
  auto node = pieces_.extract(e.piece);
  if (node.empty()) return;
  FailRequests(node.mapped());
  if (Shard* shard = Current(node.mapped().hold)) shard->budgets.Accepted(node.mapped().waiting);
  FailSubmits(node.mapped(), std::string(Name(e.error.code)), e.error.message);
}

void Dispatcher::On(event::RunRead& e) {
  if (run_reads_ > 0) --run_reads_;
  if (!e.detail) {
    Problem(e.peer, e.request, std::string(Name(e.detail.error().code)), e.detail.error().message);
    return;
  }
  const RunDetail& detail = *e.detail;
  Shard* shard = ShardOfOrg(detail.summary.spec.org);
  const bool ended = IsTerminal(detail.summary.state);
  if (!ended && (shard == nullptr || shard->phase == Phase::kElsewhere)) {
    Problem(e.peer, e.request, "not_owner", "the run belongs to another broker");
    return;
  }
  if (!ended) AddWatcher(e.run, e.peer);
  if (!ended && shard->runs.Knows(e.run)) {  // came in while the ledger was asked
    if (const auto update = shard->runs.Update(e.run, true)) SendUpdate(e.peer, *update);
    return;
  }
  wire::RunUpdate update{.run = e.run, .state = detail.summary.state, .reason = detail.summary.reason, .changed = {}};
  for (const JobDetail& job : detail.jobs) {
    wire::RunUpdate::Stage stage;
    stage.job = job.spec.id;
    stage.stage = job.spec.stage;
    if (!job.attempts.empty()) {
      stage.counters = job.attempts.back().counters;
      stage.error = job.attempts.back().report.error;
    }
    if (job.outcome) {
      stage.state = job.outcome->state;
      stage.counters = job.outcome->counters;
      stage.worker = job.outcome->report.worker;
      stage.result = job.outcome->report.result;
      stage.error = job.outcome->report.error;
    }
    update.changed.push_back(std::move(stage));
  }
  SendUpdate(e.peer, update);
}

}  // namespace millrace
