// How a shard goes from one owner to the next without its running attempts being run again.
//
// The rule that makes it safe: before a job gets a new token, the end of its older one is durable in its attempt rows. So of
// all tokens of a job at most one has no row, it is the newest, and it may go on under whoever owns the shard. The queue says
// which jobs may have such a token (it keeps what was claimed and is not out of flight yet). The new owner holds them back as
// leases of an unknown worker; a worker that says it runs one, under a token above the job's last row, keeps it. What nobody
// says within kAdoptionWindow is lost, like a lease whose worker went silent; at once when the queue was restarted meanwhile.
// No wall clock has a say in what may run: that of the owner before may have been ahead by any amount when it started a job.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace {

// ---- the old owner -------------------------------------------------------------------------------------------------------

// Nothing is started any more; what was started and what is being written goes on until nothing is under way.
void Dispatcher::On(event::YieldShard& e) {
  Shard* shard = Current(e.hold);
  if (shard == nullptr || shard->yield_by) return;
  LogInfo("shard {}: epoch {} is handed to another broker", e.hold.shard.value(), e.hold.epoch.value());
  PageOut(*shard);
  shard->yield_by = now_ + kYieldBudget;
  lines_.DropShard(e.hold.shard);
}

void Dispatcher::ReleaseYielded() {
  for (auto* const touched : std::vector(shards_.Touched())) {
    Shard& shard = touched->second;
    if (!shard.yield_by) continue;
    const auto of_it = [&](const auto& item) { return item.hold == shard.hold; };
    const bool busy = std::ranges::any_of(ops_, of_it) || !shard.checks.empty() || !shard.enqueue.empty() ||
                      !shard.requeue.empty() || !shard.finish.empty() || !shard.puts.Empty() ||
                      std::ranges::any_of(pieces_, [&](const auto& piece) { return of_it(piece.second); });
    // What is then still on its way is treated as at any other loss: its outcome is not known.
    if (busy && now_ < *shard.yield_by) continue;
    ToLedger(command::ReleaseShard{.hold = shard.hold});
    DropShard(shard, "handed to another broker");
  }
}

// To the worker of a lease whose shard is not ours any more.
void Dispatcher::LeaveLease(const Shard& shard, const Lease& lease) {
  const auto worker = workers_.find(lease.worker);
  if (worker == workers_.end()) return;
  // Of kept jobs and of those that are being cancelled nobody knows enough: they start again.
  const bool goes_on = !lease.kept && !lease.fence && !lease.lost && !Cancelling(shard, *lease.spec);
  // What the worker has sent meanwhile must not make it stop, nor forget, what the next owner may adopt.
  if (goes_on) handed_over_.Remember(lease.spec->id, lease.token);
  RevokeLater(
      worker->second.peer,
      {.job = lease.spec->id, .token = lease.token, .reason = goes_on ? std::string(wire::kHandedOver) : "owner_changed"});
}

void Dispatcher::LeaveAll() {
  if (std::exchange(left_, true)) return;
  for (const auto& [job, lease] : leases_) LeaveLease(shards_.at(lease.shard), lease);
}

// ---- the new owner -------------------------------------------------------------------------------------------------------

void Dispatcher::NoteDelivered(Shard& shard, QueueReply& reply) {
  shard.unbroken_since = reply.unbroken_since;
  for (const JobId& id : std::exchange(reply.in_flight, {})) shard.delivered.try_emplace(id);
}

// What the rebuild found to be delivered, of a run.
void Dispatcher::NoteTokens(Shard& shard, LiveRun& run) {
  if (shard.delivered.empty()) return;
  for (const JobSpec& job : run.jobs) {
    const auto delivered = shard.delivered.find(job.id);
    if (delivered == shard.delivered.end()) continue;
    run.counters.try_emplace(job.id);  // the run has begun, whether or not a row says so
    if (const auto token = run.last_tokens.find(job.id); token != run.last_tokens.end()) delivered->second = token->second;
  }
}

// Of the restored runs, before anything follows from their restoration: one that is being cancelled ends what does not run.
void Dispatcher::PresumeOfRuns(Shard& shard) {
  if (shard.delivered.empty()) return;
  for (const JobId& id : shard.runs.Restored()) {
    RunCoordinator::Job& job = *shard.runs.Find(id);
    if (!shard.delivered.contains(id)) continue;
    shard.runs.Delivered(id);
    shard.runs.Apply(job, JobEvent::kLeased);
    shard.runs.Show(id);
    Presume(shard, job.spec, job.counters, job.run_at);
  }
}

// A job that may run somewhere: nobody else gets it before its worker had time to speak up.
void Dispatcher::Presume(Shard& shard, const std::shared_ptr<const JobSpec>& spec, const Counters& counters,
                         std::optional<WallTime> run_at) {
  const JobId id = spec->id;
  const auto delivered = shard.delivered.find(id);
  const bool first = leases_
                         .try_emplace(id, Lease{.shard = shard.hold.shard,
                                                .spec = spec,
                                                .counters = counters,
                                                // Above all that may run, below all that will: its end stands for theirs.
                                                .token = Token::Make(shard.hold.epoch, ++shard.dispatches),
                                                .worker = WorkerId{},
                                                .counted_at = now_,
                                                .counted = true,
                                                .presumed = true,
                                                .last_token = delivered->second})
                         .second;
  MILLRACE_CHECK(first, "job {}: presumed to run beside a lease", id.ToString());
  if (!shard.yield_by) lines_.Running(shard.hold.shard, LineKey::Of(*spec), now_);
  shard.delivered.erase(delivered);
  shard.presumed.emplace(id, run_at.value_or(WallTime{}));
}

// What the queue has in flight and no live job stands for has ended.
void Dispatcher::FinishDelivered(Shard& shard) {
  std::erase_if(shard.delivered, [&](const auto& entry) {
    const RunCoordinator::Job* job = shard.runs.Find(entry.first);
    if (job != nullptr && !IsTerminal(job->state)) return false;  // its run's rows are being written: it comes to the queue yet
    shard.finish.push_back(entry.first);
    return true;
  });
  // A queue that cannot vouch for the epochs before: nothing is adopted (MayAdopt), so nobody is waited for.
  const auto window = shard.unbroken_since == shard.hold.epoch ? Millis{0} : Millis{kAdoptionWindow};
  shard.adopt_until = now_ + window;
  if (!shard.presumed.empty() && window > Millis{0})
    LogInfo("shard {}: {} jobs may be running: their workers have {} ms to say so", shard.hold.shard.value(),
            shard.presumed.size(), window.count());
  EndPresumed(shard);
}

void Dispatcher::EndPresumed(Shard& shard) {
  if (shard.presumed.empty() || now_ < shard.adopt_until) return;
  const std::map<JobId, WallTime> lost = std::exchange(shard.presumed, {});
  LogInfo("shard {}: {} jobs that a former owner had delivered start again", shard.hold.shard.value(), lost.size());
  const std::string why = shard.unbroken_since == shard.hold.epoch
                              ? "a former broker had delivered it, and the queue was restarted since"
                              : "no worker says that it runs it, after its shard changed its owner";
  // They go to the front of their lines together, in this order. One whose time is still to come waits for it: the attempt
  // that was delivered had ended, and the queue was not told, or its owner's clock was ahead.
  for (const auto& [id, run_at] : lost) Lose(id, why, run_at);
}

void Dispatcher::OnOrphans(const wire::PeerId& peer, const wire::Orphans& m) {
  const auto it = workers_.find(m.worker);
  if (it == workers_.end()) {
    to_workers_.push_back({.peer = peer, .message = wire::BrokerBeat{.known = false}});
    return;
  }
  Worker& worker = it->second;
  worker.peer = peer;
  worker.heard = now_;
  for (const auto& [job, token] : m.items) {
    const auto found = leases_.find(job);
    if (found == leases_.end()) {
      // Of another shard, or of one that is being rebuilt, unless we saw it end.
      if (recently_ended_.Of(job) == token)
        Reply(peer, {.job = job, .token = token, .accepted = true, .reason = {}});
      else if (token <= std::max(recently_ended_.Of(job), recently_lost_.Of(job)))
        RevokeLater(peer, {.job = job, .token = token, .reason = std::string(wire::kNoLease)});
      continue;
    }
    Lease& lease = found->second;
    if (lease.presumed && MayAdopt(lease, token)) {
      AdoptLease(lease, worker, token);
    } else if (!lease.presumed && !lease.lost && lease.token == token && lease.worker == worker.id) {
      lease.beat = worker.beats;  // we did not know that it took us for gone
      lease.listed = true;
      lease.missed = 0;
    } else {
      const bool rebuilding = lease.presumed && shards_.at(lease.shard).phase != Phase::kReady;  // it will be asked again
      if (token <= lease.token && !rebuilding)
        RevokeLater(peer, {.job = job, .token = token, .reason = std::string(wire::kNoLease)});
      continue;
    }
    adopts_[peer].items.push_back({.job = job, .token = token});
  }
}

bool Dispatcher::MayAdopt(const Lease& lease, Token token) const {
  const Shard& shard = shards_.at(lease.shard);
  return shard.phase == Phase::kReady && !lease.ending && token > lease.last_token && token < lease.token &&
         token.epoch() >= shard.unbroken_since;
}

void Dispatcher::AdoptLease(Lease& lease, Worker& worker, Token token) {
  const JobSpec& spec = *lease.spec;
  Shard& shard = shards_.at(lease.shard);
  shard.presumed.erase(spec.id);
  lease.presumed = false;
  lease.token = token;
  lease.worker = worker.id;
  lease.beat = worker.beats;
  lease.listed = true;
  lease.counted_at = now_;
  TimeoutOf(spec, false, lease.cut);
  worker.Hold(lease);
  // Whether the owner before wrote it is not known.
  if (!spec.options.unique_key.empty() && spec.options.unique_until == UniqueUntil::kStarted && lease.counters.deliveries == 0)
    OpenPiece(shard, shard.progress_piece).rows.unique_started.push_back(spec.id);
  if (spec.run) {
    shard.runs.Find(spec.id)->worker = worker.name;
    shard.runs.Show(spec.id);
  }
  ++adopted_;
  if (Cancelling(shard, spec)) StopAttempt(spec.id);
}

}  // namespace millrace
