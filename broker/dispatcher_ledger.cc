// What the ledger made durable, and what follows from it.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
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

void Dispatcher::AppendEffects(Shard& shard, Piece& piece, RunEffects effects) {
  for (const RunEffects::Skip& skip : effects.skipped) {
    const RunCoordinator::Job* job = shard.runs.Find(skip.job);
    OutcomeRow row;
    row.report.job = skip.job;
    row.report.error_class = "dependency_failed";
    row.report.error = skip.reason;
    row.report.finished_at = wall_;
    row.report.retryable = false;
    row.org = job->spec->org;
    row.run = job->spec->run;
    row.state = JobState::kSkipped;
    row.counters = job->counters;
    row.recorded_at = wall_;
    piece.rows.outcomes.push_back(std::move(row));
  }
  for (const RunEffects::End& end : effects.ended)
    piece.rows.run_outcomes.push_back(
        {.run = end.run, .org = shard.runs.OrgOf(end.run), .state = end.state, .reason = end.reason, .finished_at = wall_});
  piece.effects.Append(std::move(effects));
}

void Dispatcher::WriteEffects(Shard& shard, RunEffects effects) {
  if (effects.skipped.empty() && effects.ended.empty()) {
    EffectsDurable(shard, effects);
    return;
  }
  AppendEffects(shard, OpenPiece(shard, shard.progress_piece), std::move(effects));
}

void Dispatcher::EffectsDurable(Shard& shard, const RunEffects& effects) {
  for (const RunEffects::Skip& skip : effects.skipped) shard.runs.Show(skip.job);
  for (const JobId& job : effects.ready) EnqueueRunJob(shard, job);
  for (const RunEffects::End& end : effects.ended) {
    shard.runs.ShowEnd(end.run);
    if (const auto it = watchers_.find(end.run); it != watchers_.end()) {
      if (auto update = shard.runs.Update(end.run, false))
        for (const auto& peer : it->second) SendUpdate(peer, *update);
      watchers_.erase(it);
    }
    shard.runs.Remove(end.run);
  }
}

void Dispatcher::On(event::Committed& e) {
  const Duplicates duplicates{.jobs = {e.result.duplicate_jobs.begin(), e.result.duplicate_jobs.end()},
                              .runs = {e.result.duplicate_runs.begin(), e.result.duplicate_runs.end()}};
  CommittedJobs(e, duplicates);
  for (const PieceId id : e.pieces) {
    auto node = pieces_.extract(id);
    if (node.empty()) continue;  // its shard was lost meanwhile; the rebuild reads what was committed
    CommittedPiece(node.mapped(), duplicates);
  }
}

// New jobs and runs. Those of a shard that was lost meanwhile are found by its rebuild.
void Dispatcher::CommittedJobs(event::Committed& e, const Duplicates& duplicates) {
  const auto current = [&](OrgId org) -> Shard* {
    Shard* shard = ShardOfOrg(org);
    return shard != nullptr && shard->phase == Phase::kReady &&
                   std::ranges::find(e.batch.holds, shard->hold) != e.batch.holds.end()
               ? shard
               : nullptr;
  };
  std::unordered_map<RunId, std::vector<JobSpec>> of_run;
  for (JobSpec& job : e.batch.jobs) {
    if (duplicates.jobs.contains(job.id)) continue;
    if (job.run) {
      of_run[*job.run].push_back(std::move(job));
    } else if (job.options.durability == Durability::kRedis) {
      continue;  // its spec came with an attempt: see dispatcher_durability.cc
    } else if (Shard* shard = current(job.org)) {
      Enqueue(*shard, job, Counters{}, job.run_at, false);
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

void Dispatcher::CommittedPiece(Piece& piece, const Duplicates& duplicates) {
  Shard* shard = Current(piece.hold);
  MILLRACE_CHECK(shard != nullptr, "shard {}: a piece outlived its hold", piece.hold.shard.value());
  for (const Uuid& id : piece.accepting) accepting_.erase(id);
  accepting_rows_ -= piece.accept_rows;
  accepting_bytes_ -= piece.accept_bytes;
  for (const auto& submit : piece.submits) {
    for (auto& item : submit->items)
      if (submit->run ? duplicates.runs.contains(RunId{item.id}) : duplicates.jobs.contains(JobId{item.id}))
        item.duplicate = true;
    if (--submit->pieces == 0 && !submit->failed) FinishSubmit(*submit);
  }
  for (const Ending& ending : piece.endings) EndingDurable(*shard, ending);
  for (const auto& [spec, counters] : piece.lost) Enqueue(*shard, *spec, counters, std::nullopt, true);
  for (const JobId& job : piece.unplaceable) {
    shard->finish.push_back(job);
    shard->runs.Show(job);
  }
  EffectsDurable(*shard, piece.effects);
  if (piece.outbox_runs.empty() && piece.outbox_jobs.empty()) return;
  for (const RunId& run : piece.outbox_runs) shard->outbox_taking.erase(run.uuid);
  for (const JobId& job : piece.outbox_jobs) shard->outbox_taking.erase(job.uuid);
  if (std::exchange(shard->outbox_again, false)) ReadOutbox(*shard);
}

void Dispatcher::EndingDurable(Shard& shard, const Ending& ending) {
  const auto it = leases_.find(ending.job);
  MILLRACE_CHECK(it != leases_.end() && it->second.token == ending.token && it->second.ending,
                 "job {}: its end is durable, but it holds no lease that was ending", ending.job.ToString());
  const Lease lease = std::move(it->second);
  leases_.erase(it);
  RememberEnded(ending.job, ending.token);
  if (const auto worker = workers_.find(lease.worker); worker != workers_.end())
    Reply(worker->second.peer, {.job = ending.job, .token = ending.token, .accepted = true, .reason = {}});
  if (ending.verdict.terminal) {
    shard.finish.push_back(ending.job);
    if (lease.spec->run) shard.runs.Show(ending.job);
    return;
  }
  if (lease.spec->run) {
    RunCoordinator::Job* job = shard.runs.Find(ending.job);
    job->counters = ending.verdict.counters;
    job->run_at = ending.run_at;
    shard.runs.Apply(*job, ending.run_at && *ending.run_at > wall_ ? JobEvent::kRetry : JobEvent::kRequeued);
    shard.runs.Show(ending.job);
  }
  Enqueue(shard, *lease.spec, ending.verdict.counters, ending.run_at, true);
}

void Dispatcher::FinishSubmit(Submit& submit) {
  to_clients_.push_back(
      {.peer = submit.peer, .message = wire::SubmitReply{.request = submit.request, .accepted = submit.items}});
  if (!submit.run || !submit.watch) return;
  OnWatch(submit.peer, {.request = submit.request, .run = RunId{submit.items.front().id}});
}

void Dispatcher::FailSubmits(Piece& piece, std::string code, const std::string& message) {
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
