#include <algorithm>

#include "tests/sim/world.h"

namespace millrace::sim {

void World::CheckGrant(std::size_t i, const wire::Grant::Job& job, const wire::PeerId& peer) {
  Node& n = brokers_[i];
  const auto rows = ledger_.jobs.find(job.id);
  const auto kept = kept_.find(job.id);
  if (rows == ledger_.jobs.end() && kept == kept_.end()) return Violation("S1: a job is granted that the ledger does not have");
  Trace("grant", job.id.AsBytes(), job.token.value());
  const JobSpec& spec = SpecOf(job.id);
  const bool owner = ledger_.EpochOf(ShardOf(spec.org, kShards)) == job.token.epoch();
  const auto before = n.granted.find(job.id);
  const auto adopted = n.adopted.find(job.id);
  const bool of_this_epoch =
      before != n.granted.end() && (before->second.first.epoch() == job.token.epoch() ||
                                    (adopted != n.adopted.end() && adopted->second == job.token.epoch()));
  if (of_this_epoch && !n.ends_written.contains({job.id, before->second.first})) Violation("S7: a second live lease");
  // What is being cancelled is fenced, whatever time it is.
  if (const auto end = EndOfWait(spec.options, {.deliveries = job.delivery - 1});
      !job.fence_only && end && end->at <= n.clock.WallNow())
    Violation("a job is granted after its deadline or expiry");
  if (owner) {
    if (rows != ledger_.jobs.end() && rows->second.outcome)
      Violation("S3: job " + job.id.ToString() + " is granted after its outcome");
    if (job.token <= max_token_[job.id]) Violation("S4: a token does not increase");
    if (!job.fence_only) CheckLimits(n, spec, job.token);
    CheckStart(n, spec, job);
  }
  // One that is deposed and does not know it yet may have claimed before the new owner asked the queue.
  max_token_[job.id] = std::max(max_token_[job.id], job.token);
  if (job.fence_only) {
    n.fences.emplace(job.id, job.token);
    ++report_.fences;
  }
  n.granted[job.id] = {job.token, workers_[static_cast<std::size_t>(peer.front() - '0')].id};
}

// An owner lets an attempt go on only when it is the newest of its job, and the job has not ended.
void World::CheckAdopt(std::size_t i, const wire::Hello::Held& item, const wire::PeerId& peer) {
  Node& n = brokers_[i];
  Trace("adopt", item.job.AsBytes(), item.token.value());
  const Epoch epoch = ledger_.EpochOf(ShardOf(SpecOf(item.job).org, kShards));
  const auto shard = n.pump->holds().find(ShardOf(SpecOf(item.job).org, kShards));
  if (shard == n.pump->holds().end() || shard->second != epoch) return;  // deposed: nothing that it writes counts
  const auto before = n.granted.find(item.job);
  if (before != n.granted.end() && before->second.first == item.token) return;  // it is told again
  if (Ended(item.job)) Violation("S3: an attempt is adopted after its job's outcome");
  if (item.token != max_token_[item.job]) Violation("S4: an old attempt is adopted");
  n.granted[item.job] = {item.token, workers_[static_cast<std::size_t>(peer.front() - '0')].id};
  n.adopted[item.job] = epoch;
  ++report_.adopted;
}

void World::CheckEndedReply(const wire::EndedReply& reply) {
  for (const auto& item : reply.items) {
    if (!item.accepted) continue;
    ++report_.ends_accepted;
    const auto rows = ledger_.jobs.find(item.job);
    const auto same = [&](const auto& row) { return row.report.token == item.token; };
    const bool there = rows != ledger_.jobs.end() && ((rows->second.outcome && same(*rows->second.outcome)) ||
                                                      std::ranges::any_of(rows->second.attempts, same));
    if (!there) Violation("S1: the end of an attempt is accepted, but the ledger does not have it");
  }
}

void World::CheckLimits(const Node& n, const JobSpec& spec, Token token) {
  const auto settings = ledger_.queues.find({spec.org, spec.queue});
  if (settings == ledger_.queues.end()) return;
  const QueueSettings& q = settings->second;
  std::uint32_t of_queue = 1, of_key = 1;
  for (const auto& [id, grant] : n.granted) {
    const JobSpec& other = SpecOf(id);
    if (id == spec.id || grant.first.epoch() != token.epoch() || other.org != spec.org || other.queue != spec.queue ||
        n.ends_written.contains({id, grant.first}) || n.fences.contains({id, grant.first}))
      continue;
    ++of_queue;
    if (other.options.limit_key == spec.options.limit_key) ++of_key;
  }
  if (q.concurrency > 0 && of_queue > q.concurrency) Violation("limit: more run in the queue than it allows");
  if (!spec.options.limit_key.empty() && q.key_concurrency > 0 && of_key > q.key_concurrency)
    Violation("limit: more of a key run than the queue allows");
  CheckRate(q.rate, starts_[{spec.org, ""}], "queue");
  if (!spec.options.limit_key.empty()) CheckRate(q.key_rate, starts_[{spec.org, spec.options.limit_key}], "key");
  ++report_.granted_under_limits;
}

void World::CheckRate(const Rate& rate, std::vector<Micros>& starts, std::string_view of) {
  if (!rate.Limited()) return;
  starts.push_back(Now());
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const double allowed = 2.0 * rate.Burst() + 1 +
                           static_cast<double>(rate.count) * static_cast<double>((Now() - starts[i]).count()) /
                               static_cast<double>(Micros{rate.per}.count());
    if (static_cast<double>(starts.size() - i) > allowed)
      return Violation(fmt::format("limit: the rate of a {} is exceeded", of));
  }
}

void World::CheckCommit(const OwnerBatch& batch) {
  ++commits_;
  const auto n = std::ranges::find(brokers_, batch.owner, &Node::owner);
  if (n == brokers_.end()) return Violation("a commit of nobody");
  for (const OutcomeRow& row : batch.outcomes) ended_.try_emplace(row.report.job, commits_);
  for (const JobSpec& job : batch.jobs) accepted_[job.id] = ledger_.jobs.contains(job.id) ? accepted_[job.id] : commits_;
  for (const AttemptRow& row : batch.attempts) {
    if (Ended(row.report.job)) Violation("S3: an attempt after the outcome");
    if (row.report.end == AttemptEnd::kLost) ++report_.lost;
    CheckCounters(row.report, row.counters);
    if (const JobSpec& spec = SpecOf(row.report.job, &batch); !Cancelling(spec, batch)) CheckRetry(*n, spec, row);
  }
  for (const OutcomeRow& row : batch.outcomes) {
    Trace("outcome", row.report.job.AsBytes(), row.report.token.value());
    if (Ended(row.report.job)) Violation("S3: a second outcome");
    const Uuid item = row.run ? row.run->uuid : row.report.job.uuid;
    const bool asked =
        ledger_.cancels.contains(item) || std::ranges::find(batch.cancels, item, &CancelRow::item) != batch.cancels.end();
    if (row.state == JobState::kCancelled && !asked) Violation("a job is cancelled that nobody wanted to be cancelled");
    if (row.state == JobState::kCancelled && row.report.token == Token{}) cancelled_at_.try_emplace(row.report.job, Now());
    CheckCounters(row.report, row.counters);
    const JobSpec& spec = SpecOf(row.report.job, &batch);
    CheckOutcomeTime(*n, spec, row);
    if (row.report.token == Token{}) continue;
    if (!Cancelling(spec, batch)) CheckVerdict(spec, row);
    if (row.report.result != std::to_string(max_token_[row.report.job].value()))
      Violation(fmt::format("S4: the outcome comes from token {}, the last granted one is {}", row.report.result,
                            max_token_[row.report.job].value()));
    if (row.state == JobState::kSucceeded && effects_[row.report.job].published != 1)
      Violation("S2: succeeded without exactly one effect");
  }
  for (const RunOutcomeRow& row : batch.run_outcomes)
    if (ledger_.run_outcomes.contains(row.run)) Violation("S3: a second run outcome");
}

const JobSpec& World::SpecOf(const JobId& id, const OwnerBatch* batch) const {
  const auto kept = kept_.find(id);
  if (kept == kept_.end() && batch != nullptr && !ledger_.jobs.contains(id))
    return *std::ranges::find(batch->jobs, id, &JobSpec::id);
  return kept != kept_.end() ? kept->second.spec : ledger_.jobs.at(id).spec;
}

bool World::Ended(const JobId& id) const {
  const auto rows = ledger_.jobs.find(id);
  return rows != ledger_.jobs.end() && rows->second.outcome;
}

bool World::MayBeLost(const KeptJob& job) const {
  return std::ranges::any_of(losses_, [&](const auto& l) { return l.first <= job.applied && job.applied <= l.second; });
}

bool World::Finished() const {
  if (AnyFrozen() || SlotsLeft() > 0) return false;
  for (const auto& request : requests_)
    if (!request.answered) return false;
  for (const auto& [id, job] : kept_)
    if (job.accepted && !Ended(id) && !MayBeLost(job)) return false;
  for (const auto& [id, rows] : ledger_.jobs)
    if (!rows.outcome) return false;
  for (const auto& [id, run] : ledger_.runs)
    if (!ledger_.run_outcomes.contains(id)) return false;
  return true;
}

bool World::Idle() const {
  return std::ranges::all_of(workers_, [](const SimWorker& worker) { return worker.running.empty(); });
}

void World::CheckGoesOn(std::size_t w, const JobId& id) {
  const auto cancelled = cancelled_at_.find(id);
  if (cancelled == cancelled_at_.end() || Now() - cancelled->second <= kLeaseTtl + Millis{1000}) return;
  const Micros since = std::max(Micros{1}, cancelled->second - Micros{15'000'000});
  const bool lost =
      std::ranges::any_of(losses_, [&](const auto& loss) { return loss.second >= since && loss.first <= cancelled->second; });
  const bool unheard =
      std::ranges::any_of(cut_until_, [&](const auto& cut) { return cut.first.second == w && cut.second >= since; });
  if (!lost && !unheard && workers_[w].frozen_until < since) Violation("an attempt of a job that is cancelled goes on");
}

void World::CheckTimes(const MemoryLedger::JobRows& rows) {
  const OutcomeRow& outcome = *rows.outcome;
  const JobOptions& options = rows.spec.options;
  if (outcome.state == JobState::kExpired) {
    ++report_.expired;
    if (outcome.counters.deliveries > 0) Violation("expired although it was started");
  }
  if (outcome.report.error_class == kErrorDeadlineExceeded) ++report_.overdue;
  if (outcome.report.error_class == kErrorCrashQuarantine) ++report_.quarantined;
  if (outcome.state == JobState::kSkipped && options.run_when == RunWhen::kAllEnded &&
      outcome.report.error.starts_with("stage '"))
    Violation("a callback was skipped because of what it waits for");
  if (outcome.report.token == Token{} || !rows.spec.run || options.run_when == RunWhen::kAllEnded) return;
  for (const JobId& need : rows.spec.depends_on)
    if (ledger_.jobs.at(need).outcome->state != JobState::kSucceeded) Violation("a job ran although what it needs failed");
}

void World::CheckUnique() {
  std::map<std::string, std::vector<const MemoryLedger::JobRows*>> by_key;
  for (const auto& [id, rows] : ledger_.jobs)
    if (!rows.spec.run && !rows.spec.options.unique_key.empty() && rows.spec.options.unique_until == UniqueUntil::kEnded)
      by_key[fmt::format("{} {}", rows.spec.org.value(), rows.spec.options.unique_key)].push_back(&rows);
  for (auto& [key, all] : by_key) {
    std::ranges::sort(all, {}, [this](const auto* rows) { return accepted_.at(rows->spec.id); });
    for (std::size_t i = 1; i < all.size(); ++i)
      if (ended_.at(all[i - 1]->spec.id) > accepted_.at(all[i]->spec.id)) Violation("two jobs held the unique key " + key);
  }
}

void World::CheckQueueIsEmpty() {
  for (std::uint16_t s = 0; s < kShards; ++s) {
    const auto depth = queue_.Depth(ShardId{s});
    if (depth->ready + depth->scheduled + depth->in_flight > 0 && !queue_.Unnoticed(ShardId{s}))
      Violation(fmt::format("shard {}: everything has ended, but the queue holds {} ready, {} scheduled, {} in flight", s,
                            depth->ready, depth->scheduled, depth->in_flight));
  }
}

void World::CheckCancelReply(const wire::CancelReply& reply) {
  for (const auto& item : reply.items) {
    const bool promised = item.effect == CancelEffect::kCancelled || item.effect == CancelEffect::kCancelling;
    if (promised && !ledger_.cancels.contains(item.id)) Violation("a cancel is confirmed that the ledger does not have");
    const auto job = ledger_.jobs.find(JobId{item.id});
    if (item.effect == CancelEffect::kCancelled && (job == ledger_.jobs.end() || !job->second.outcome))
      Violation("a job is said to be cancelled that has not ended");
    const auto kept = kept_.find(JobId{item.id});
    if (item.effect == CancelEffect::kUnknown && kept != kept_.end() && requests_[reply.request].sure &&
        !MayBeLost(kept->second))
      Violation("a job of the queue is said to be unknown");
  }
}

void World::CheckEnd() {
  if (!report_.violations.empty()) return;
  for (const auto& [id, rows] : ledger_.jobs)
    if (!rows.outcome) Violation("S1: job " + id.ToString() + " never ended");
  for (const auto& [id, run] : ledger_.runs)
    if (!ledger_.run_outcomes.contains(id)) Violation("S1: run " + id.ToString() + " never ended");
  for (const auto& [id, job] : kept_) {
    if (job.accepted) ++report_.kept;
    if (const auto rows = ledger_.jobs.find(id); rows != ledger_.jobs.end() && rows->second.outcome &&
                                                 rows->second.outcome->state == JobState::kCancelled &&
                                                 rows->second.outcome->report.token == Token{})
      ++report_.kept_cancelled;
    if (!job.accepted || Ended(id)) continue;
    if (MayBeLost(job))
      ++report_.kept_lost;
    else
      Violation("S1: job " + id.ToString() + " of the queue never ended");
  }
  for (std::size_t i = 0; i < requests_.size(); ++i)
    if (!requests_[i].answered) Violation(fmt::format("request {} was never answered", i));
  if (!report_.violations.empty()) return;
  for (const auto& [id, rows] : ledger_.jobs) CheckTimes(rows);
  CheckUnique();
  CheckSlots();
  CheckQueueIsEmpty();
  for (const auto& [id, run] : ledger_.run_outcomes) {
    bool all = true;
    for (const JobId& job : ledger_.jobs_of_run[id])
      if (const auto& outcome = ledger_.jobs.at(job).outcome) all = all && outcome->state == JobState::kSucceeded;
    if ((run.state == RunState::kSucceeded) != all)
      Violation("run " + id.ToString() + ": its outcome does not follow from its jobs");
  }
  if (!Idle()) Violation("everything has ended, but an attempt still runs");
  for (const auto& [id, effect] : effects_) {
    if (!Ended(id)) continue;  // lost with the queue
    const auto& rows = ledger_.jobs.at(id);
    if (rows.outcome->state != JobState::kCancelled) continue;
    ++report_.cancelled;
    if (rows.spec.options.has_sink && effect.published > 0)
      Violation("S2: the cancelled job " + id.ToString() + " has an effect");
  }
  for (const auto& [id, effect] : effects_)
    if (effect.published > 1) Violation("S2: two effects of job " + id.ToString());
}
}  // namespace millrace::sim
