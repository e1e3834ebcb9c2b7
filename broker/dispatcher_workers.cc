// Sessions, leases and grants.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/size_routing.h"
#include "common/base/check.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/model/instants.h"

namespace millrace {
namespace {

// Beats that waited together in a socket are one look at the worker, not several.
constexpr auto kBeatSpacingMin = kHeartbeatInterval / 2;
constexpr std::uint8_t kBeatsMissedMax = 2;

}  // namespace

void Dispatcher::On(event::FromWorker& e) {
  if (auto* hello = std::get_if<wire::Hello>(&e.message)) return OnHello(e.peer, *hello);
  if (auto* beat = std::get_if<wire::Beat>(&e.message)) return OnBeat(e.peer, *beat);
  if (auto* ended = std::get_if<wire::Ended>(&e.message)) return OnEnded(e.peer, *ended);
  if (auto* orphans = std::get_if<wire::Orphans>(&e.message)) return OnOrphans(e.peer, *orphans);
  if (auto* goodbye = std::get_if<wire::Goodbye>(&e.message)) return OnGoodbye(*goodbye);
}

void Dispatcher::On(event::WorkerPeerGone& e) {
  for (auto& [id, worker] : workers_)
    if (worker.peer == e.peer) worker.unreachable = true;  // until it is heard again; its leases end by time
}

void Dispatcher::OnHello(const wire::PeerId& peer, wire::Hello& m) {
  auto it = workers_.find(m.worker);
  if (it == workers_.end()) {
    if (workers_.size() >= kWorkersMax) {
      LogWarn("worker {}: refused, {} workers are connected", m.name, workers_.size());
      return;
    }
    if (workers_.empty()) workers_since_ = now_;
    it = workers_.try_emplace(m.worker).first;
    LogInfo("worker {}: connected, concurrency {}", m.name, m.concurrency);
  }
  Worker& worker = it->second;
  worker.id = m.worker;
  worker.peer = peer;
  worker.name = std::move(m.name);
  worker.reach = {.queues = std::move(m.queues), .kinds = std::move(m.kinds), .roots = std::move(m.roots)};
  worker.view = lines_.ViewOf(worker.reach);
  worker.concurrency = std::max<std::uint32_t>(1, m.concurrency);
  worker.credit_limit = m.credit_limit;
  worker.heard = now_;
  worker.draining = worker.unreachable = false;
  to_workers_.push_back({.peer = peer,
                         .message = wire::Welcome{.broker = options_.name,
                                                  .heartbeat_ms = static_cast<std::uint32_t>(kHeartbeatInterval.count()),
                                                  .lease_ms = static_cast<std::uint32_t>(kLeaseTtl.count())}});
  Held(worker, m.held);
  // The worker counts grants from this Hello on; those that were under way when it said it are among them.
  worker.granted =
      static_cast<std::uint64_t>(std::ranges::count_if(worker.leases, [](const Lease* lease) { return !lease->listed; }));
  plan_needed_ = true;
}

void Dispatcher::OnBeat(const wire::PeerId& peer, wire::Beat& m) {
  const auto it = workers_.find(m.worker);
  if (it == workers_.end()) {
    to_workers_.push_back({.peer = peer, .message = wire::BrokerBeat{.known = false}});
    return;
  }
  Worker& worker = it->second;
  worker.peer = peer;
  worker.heard = now_;
  worker.unreachable = false;
  worker.draining = m.draining;
  worker.credit_limit = std::max(worker.credit_limit, m.credit_limit);
  to_workers_.push_back({.peer = peer, .message = wire::BrokerBeat{.known = true}});
  Held(worker, m.held);
  for (const wire::Beat::Progress& progress : m.progress) OnProgress(worker, progress);
  plan_needed_ = true;
}

// Progress names no token. It belongs to the lease when this very beat lists the attempt: after Held.
void Dispatcher::OnProgress(const Worker& worker, const wire::Beat::Progress& m) {
  const auto it = leases_.find(m.job);
  if (it == leases_.end() || it->second.worker != worker.id || it->second.beat != worker.beats || it->second.ending) return;
  Lease& lease = it->second;
  if (lease.rows == m.rows && lease.bytes == m.bytes) return;
  lease.rows = m.rows;
  lease.bytes = m.bytes;
  if (!lease.spec->run) return;
  Shard& shard = shards_.at(lease.shard);
  RunCoordinator::Job& job = *shard.runs.Find(m.job);
  job.rows = m.rows;
  job.bytes = m.bytes;
  shard.runs.Show(m.job);
}

// Renews what the worker says it runs, tells it to stop what it should not run, and notices grants that never arrived.
void Dispatcher::Held(Worker& worker, const std::vector<wire::Hello::Held>& held) {
  ++worker.beats;
  for (const auto& [job, token] : held) {
    const auto it = leases_.find(job);
    if (it != leases_.end() && it->second.token == token && it->second.worker == worker.id && !it->second.lost) {
      it->second.beat = worker.beats;
      it->second.listed = true;
      it->second.missed = 0;
      // The first request to stop may have come before the grant, or not at all.
      if (Cancelling(shards_.at(it->second.shard), *it->second.spec)) StopAttempt(job);
      continue;
    }
    if (recently_ended_.Of(job) == token) continue;  // the answer to its report is on the way
    const bool elsewhere = handed_over_.Of(job) == token;
    RevokeLater(worker.peer,
                {.job = job, .token = token, .reason = std::string(elsewhere ? wire::kHandedOver : wire::kNoLease)});
  }
  std::vector<JobId> lost;
  for (Lease* lease : worker.leases) {
    if (lease->beat == worker.beats || now_ - lease->counted_at < kBeatSpacingMin) continue;
    lease->counted_at = now_;
    if (++lease->missed >= kBeatsMissedMax) lost.push_back(lease->spec->id);
  }
  std::ranges::sort(lost);
  for (const JobId& job : lost) Lose(job, "the worker does not run it: the grant was lost on the way");
}

void Dispatcher::OnEnded(const wire::PeerId& peer, wire::Ended& m) {
  const auto session = workers_.find(m.worker);
  if (session != workers_.end()) {
    session->second.peer = peer;
    session->second.heard = now_;
    session->second.credit_limit = std::max(session->second.credit_limit, m.credit_limit);
    plan_needed_ = true;
  }
  for (std::size_t i = 0; i < m.reports.size(); ++i) {
    leases_.PrefetchAhead(m.reports, i, &AttemptReport::job);
    AttemptReport& report = m.reports[i];
    const auto it = leases_.find(report.job);
    const bool live = it != leases_.end() && it->second.token == report.token && it->second.worker == m.worker;
    if (live && it->second.ending) continue;  // a repeated report: answered when the first one is durable
    if (live) {
      ClampInstants(report);  // its clock may say anything
      EndAttempt(it->second, report);
      continue;
    }
    const bool known = recently_ended_.Of(report.job) == report.token;
    const bool elsewhere = handed_over_.Of(report.job) == report.token;
    Reply(peer, {.job = report.job,
                 .token = report.token,
                 .accepted = known,
                 .reason = known       ? ""
                           : elsewhere ? std::string(wire::kNotOwner)
                                       : "stale_token"});
  }
}

void Dispatcher::EndAttempt(Lease& lease, AttemptReport& report) {
  Shard& shard = shards_.at(lease.shard);
  const JobSpec& spec = *lease.spec;
  if (std::ranges::find(spec.options.no_retry, report.error_class) != spec.options.no_retry.end()) report.retryable = false;
  const bool cancelling = Cancelling(shard, spec);
  AttemptVerdict verdict =
      cancelling ? JudgeCancelled(lease, report) : Judge(spec.retry, lease.counters, report.end, report.retryable);
  if (!cancelling) JudgeTime(lease, report, verdict);
  lease.ending = true;
  Worker& worker = workers_.at(lease.worker);
  worker.Drop(lease);
  if (report.worker.empty()) report.worker = worker.name;
  if (MILLRACE_MUTANT("mutant.early_reply"))
    Reply(worker.peer, {.job = spec.id, .token = lease.token, .accepted = true, .reason = {}});
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  piece.bytes += report.result.size() + report.log_tail.size();
  if (lease.kept && verdict.terminal != JobState::kSucceeded) KeepSpec(piece, spec);
  Ending ending{.job = spec.id, .token = lease.token, .verdict = verdict, .run_at = std::nullopt};
  if (verdict.terminal) {
    if (spec.run) {
      RunCoordinator::Job& job = *shard.runs.Find(spec.id);
      job.worker = report.worker;
      job.result = report.result;
      job.error = report.error;
      AppendEffects(shard, piece, shard.runs.JobEnded(spec.id, *verdict.terminal, verdict.counters, report.error));
    }
    piece.rows.outcomes.push_back({.report = std::move(report),
                                   .org = spec.org,
                                   .run = spec.run,
                                   .state = *verdict.terminal,
                                   .counters = verdict.counters,
                                   .recorded_at = wall_,
                                   .queue = RoutedQueue(spec)});
  } else {
    if (!verdict.immediate && !MILLRACE_MUTANT("mutant.no_backoff"))
      ending.run_at = wall_ + BackoffDelay(spec.retry, spec.options.backoff, static_cast<int>(verdict.counters.failures),
                                           options_.random->Next());
    if (spec.run) shard.runs.Find(spec.id)->error = report.error;
    piece.rows.attempts.push_back({.report = std::move(report),
                                   .org = spec.org,
                                   .counters = verdict.counters,
                                   .next_run_at = ending.run_at.value_or(wall_),
                                   .queue = RoutedQueue(spec)});
  }
  piece.endings.push_back(ending);
}

// The job starts elsewhere as soon as the end of this attempt is durable: see dispatcher_handover.cc. One that only the queue
// has becomes the ledger's first.
void Dispatcher::Lose(JobId id, const std::string& why, WallTime not_before) {
  Lease& lease = leases_.at(id);
  MILLRACE_CHECK(!lease.ending, "job {}: lost while its end is being written", id.ToString());
  Shard& shard = shards_.at(lease.shard);
  const AttemptVerdict verdict = Judge(lease.spec->retry, lease.counters, AttemptEnd::kLost, true);
  AttemptRow row;
  row.report.job = id;
  row.report.token = lease.token;
  row.report.end = AttemptEnd::kLost;
  row.report.error_class = "worker_lost";
  row.report.error = why;
  row.report.finished_at = wall_;
  row.org = lease.spec->org;
  row.counters = verdict.counters;
  row.next_run_at = std::max(wall_, not_before);
  row.queue = RoutedQueue(*lease.spec);
  if (const auto worker = workers_.find(lease.worker); worker != workers_.end()) {
    row.report.worker = worker->second.name;
    worker->second.Drop(lease);
    if (!lease.listed && worker->second.granted > 0) --worker->second.granted;  // it never took this one
  }
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  piece.rows.attempts.push_back(std::move(row));
  if (lease.kept) {
    EndLease(lease);
    shard.settling[id] = {.org = lease.spec->org};
    KeepSpec(piece, *lease.spec);
    piece.lost.emplace_back(lease.spec, verdict.counters);
    leases_.erase(id);
    return;
  }
  lease.ending = lease.lost = true;
  const auto run_at = not_before > wall_ ? std::optional(not_before) : std::nullopt;
  piece.endings.push_back({.job = id, .token = lease.token, .verdict = verdict, .run_at = run_at});
}

void Dispatcher::LoseWorker(WorkerId id, const std::string& why) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  std::vector<JobId> lost;
  for (const Lease* lease : it->second.leases) lost.push_back(lease->spec->id);
  std::ranges::sort(lost);  // they go to the front of their lines together, in this order
  LogInfo("worker {}: gone ({}), {} jobs start elsewhere", it->second.name, why, lost.size());
  for (const JobId& job : lost) Lose(job, why);
  workers_.erase(id);
}

void Dispatcher::OnGoodbye(const wire::Goodbye& m) { LoseWorker(m.worker, "the worker said goodbye"); }

Dispatcher::Lease& Dispatcher::Grant(Shard& shard, Worker& worker, std::shared_ptr<const JobSpec> spec,
                                     const Counters& counters, bool kept) {
  const JobId id = spec->id;
  MILLRACE_CHECK(shard.dispatches < UINT32_MAX, "shard {}: tokens of epoch {} are used up", shard.hold.shard.value(),
                 shard.hold.epoch.value());
  const Token token = Token::Make(shard.hold.epoch, ++shard.dispatches);
  const bool fence = Cancelling(shard, *spec);
  if (spec->run) {
    RunCoordinator::Job& job = *shard.runs.Find(id);
    if (job.state == JobState::kScheduled) shard.runs.Apply(job, JobEvent::kDue);
    if (!fence) shard.runs.Apply(job, JobEvent::kLeased);
    job.worker = worker.name;
    job.error.clear();
    job.rows = job.bytes = 0;
    shard.runs.Show(id);
  }
  if (!spec->options.unique_key.empty() && spec->options.unique_until == UniqueUntil::kStarted && counters.deliveries == 0)
    OpenPiece(shard, shard.progress_piece).rows.unique_started.push_back(id);
  bool cut = false;
  const std::uint32_t timeout_ms = TimeoutOf(*spec, fence, cut);
  ++worker.granted;
  if (worker.grants.empty()) granting_.push_back(worker.id);
  worker.grants.push_back({.id = id,
                           .token = token,
                           .kind = spec->kind,
                           .payload = spec->payload,
                           .timeout_ms = timeout_ms,
                           .delivery = counters.deliveries + 1,
                           .fence_only = fence});
  const auto [lease, first] = leases_.try_emplace(id, Lease{.shard = shard.hold.shard,
                                                            .spec = std::move(spec),
                                                            .counters = counters,
                                                            .token = token,
                                                            .worker = worker.id,
                                                            .counted_at = now_,
                                                            .fence = fence,
                                                            .cut = cut,
                                                            .kept = kept});
  MILLRACE_CHECK(first, "job {}: two live leases", id.ToString());
  worker.Hold(lease->second);
  return lease->second;
}

// First the idle slots of all workers, then what they take ahead; in each round every worker gets its share, so that few jobs
// spread and many go out in large claims.
void Dispatcher::Plan() {
  plan_needed_ = false;
  if (stopping_ || lines_.NothingEligible()) return;
  std::vector<Worker*> order;
  order.reserve(workers_.size());
  for (auto it = workers_.upper_bound(plan_from_); it != workers_.end(); ++it) order.push_back(&it->second);
  for (auto it = workers_.begin(); it != workers_.end() && it->first <= plan_from_; ++it) order.push_back(&it->second);
  std::erase_if(order, [](const Worker* worker) { return worker->Credit() == 0; });
  for (const bool ahead : {false, true}) {
    const auto budget = [ahead](const Worker& worker) {
      const std::uint64_t busy = worker.leases.size() + worker.reserved;
      const std::uint64_t idle = worker.concurrency > busy ? worker.concurrency - busy : 0;
      return ahead ? worker.Credit() : std::min(worker.Credit(), idle);
    };
    std::vector<Worker*> hungry = order;
    while (!hungry.empty() && !lines_.NothingEligible()) {
      std::erase_if(hungry, [&](const Worker* worker) { return budget(*worker) == 0; });
      std::size_t sharing = hungry.size();
      std::erase_if(hungry, [&](Worker* worker) { return !PlanFor(*worker, budget(*worker), sharing--); });
    }
  }
}

// Promises `worker` its share of the best lines it serves: one turn of every org. `sharing` workers, this one included, have
// not had their turn in this round. False: there is nothing for it.
bool Dispatcher::PlanFor(Worker& worker, std::uint64_t budget, std::size_t sharing) {
  const auto share_of = [](std::uint64_t all, std::uint64_t parts) { return (all + parts - 1) / parts; };
  std::size_t orgs_left = 1;
  for (bool any = false; budget > 0 && orgs_left > 0; any = true, --orgs_left) {
    LineIndex::Line* line = lines_.Next(*worker.view);
    if (line == nullptr) return any;
    if (!any) orgs_left = lines_.OrgsBeside(*line);
    const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(
        {budget, share_of(LineIndex::Allowance(*line, now_), sharing), share_of(budget, orgs_left), kClaimJobsMax}));
    if (const std::uint32_t here = TakeBuffered(*line, n, worker.id); here < n) {
      ClaimPlan* plan = line->claim < claims_.size() ? &claims_[line->claim] : nullptr;
      if (plan == nullptr || plan->line != line->ref || plan->total + (n - here) > kClaimJobsMax) {
        line->claim = static_cast<std::uint32_t>(claims_.size());
        plan = &claims_.emplace_back(
            ClaimPlan{.shard = line->shard, .line = line->ref, .total = 0, .split = {}, .slot = LineIndex::SlotOf(*line)});
      }
      plan->total += n - here;
      plan->split.emplace_back(worker.id, n - here);
    }
    worker.reserved += n;
    budget -= n;
    lines_.Take(*line, n, now_);
  }
  plan_from_ = worker.id;
  return true;
}

void Dispatcher::Reply(const wire::PeerId& peer, wire::EndedReply::Item item) {
  ended_replies_[peer].items.push_back(std::move(item));
}

void Dispatcher::RevokeLater(const wire::PeerId& peer, wire::Revoke::Item item) {
  revokes_[peer].items.push_back(std::move(item));
}

}  // namespace millrace
