// Jobs of `durability: redis`: only the queue has them, in kept lines, until their outcome is recorded. The ledger takes such
// a job over (spec and attempt in one transaction) when an attempt does not succeed; from then on it waits in an ordinary
// line. So an id that the ledger knows has no business in a kept line any more, and that is the one question asked of every
// entry whose past is not certain: found in flight by Take, of an earlier state of the store, or submitted twice.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/check.h"
#include "common/base/failpoint.h"
#include "common/base/history.h"
#include "common/base/log.h"

namespace millrace {

// An owner before us may have been asked for the same.
bool Dispatcher::BeforeUs(const Shard& shard, const JobSpec& spec) const {
  return shard.hold.epoch > Epoch{1} && TimeOf(spec.id.uuid) < shard.ready_at + kFreshIdAhead;
}

// Nobody was asked for a job of this id before.
bool Dispatcher::SurelyNew(const Shard& shard, const JobSpec& spec) const {
  const WallTime made = TimeOf(spec.id.uuid);
  return !shard.recent.Has(spec.id.uuid) && !BeforeUs(shard, spec) && made >= wall_ - kFreshIdAge &&
         made <= wall_ + kFreshIdAhead;
}

// Of a job that does not say: its queue's. Where that was redis until lately, one that may have been taken as such is taken so
// again: it is looked up in the ledger, whereas what goes there is not looked for among those that only the queue has.
Durability Dispatcher::ClassOf(const JobSpec& spec) {
  if (spec.options.durability != Durability::kUnsaid) return spec.options.durability;
  const Shard& shard = *ShardOfOrg(spec.org);
  if (shard.queues.empty() || !spec.options.unique_key.empty() || accepting_.contains(spec.id.uuid)) return Durability::kLedger;
  const auto found = shard.queues.find({spec.org, spec.queue});
  if (found == shard.queues.end()) return Durability::kLedger;
  const QueueSettings& settings = found->second;
  if (settings.durability == Durability::kRedis) return Durability::kRedis;
  const bool doubt = settings.redis_until && TimeOf(spec.id.uuid) <= *settings.redis_until + kClassChangeDoubt;
  return doubt && !SurelyNew(shard, spec) ? Durability::kRedis : Durability::kLedger;
}

void Dispatcher::AcceptKept(JobSpec& spec, const std::shared_ptr<Submit>& submit, std::set<ShardId>& shards) {
  Shard& shard = *ShardOfOrg(spec.org);
  if (spec.options.durability == Durability::kUnsaid && history::On())  // for who reads the client's, which does not say
    history::Write(options_.name, "submit", history::Type::kInvoke,
                   fmt::format(R"("jobs":[["{}","redis"]])", spec.id.ToString()));
  spec.options.durability = Durability::kRedis;
  shard.kept_seen = true;
  if (shards.insert(shard.hold.shard).second) shard.enqueue_submits.push_back(submit);
  submit->items.push_back({.id = spec.id.uuid, .duplicate = false, .conflict_with = {}});
  ++shard.enqueue_rows;
  ++accepting_rows_;
  shard.enqueue_bytes += spec.payload.size();
  accepting_bytes_ += spec.payload.size();
  // A repeated submit: of an id seen a moment ago, or one from before (an answer that was lost, an owner before us).
  const bool check = !SurelyNew(shard, spec);
  (void)shard.recent.Seen(spec.id.uuid, now_);
  if (MILLRACE_MUTANT("mutant.drop_accepted")) return;
  const std::optional<WallTime> run_at = spec.run_at;
  // Behind more than can start now it waits as an entry.
  const bool waits = !check && spare_credit_ && buffer_.size() >= spare_credit_->all;
  const auto at_hand = waits ? nullptr : AtHand(shard, spec, run_at);
  EnqueueKept(shard, at_hand ? *at_hand : spec, run_at, false, check, at_hand);
}

// The queue's answer is the acceptance, whoever owns the shard by now.
void Dispatcher::AnswerKept(Op& op, const Error* error) {
  accepting_rows_ -= op.accept_rows;
  accepting_bytes_ -= op.accept_bytes;
  for (const auto& submit : op.submits) {
    if (error != nullptr) {
      if (std::exchange(submit->failed, true)) continue;
      const bool full = error->code == ErrorCode::kLimit && submit->whole;
      Problem(submit->peer, submit->request, full ? "queue_full" : "unavailable",
              full ? fmt::format("Redis has no memory left; submit again with the same ids when the queues have drained, or "
                                 "raise maxmemory: {}",
                                 error->message)
                   : fmt::format("the outcome is not known: submit again with the same ids: {}", error->message));
    } else if (--submit->pieces == 0 && !submit->failed) {
      FinishSubmit(*submit);
    }
  }
}

// What of the hold was not sent yet, and what waits for the ledger.
void Dispatcher::FailKept(Shard& shard) {
  accepting_rows_ -= shard.enqueue_rows;
  accepting_bytes_ -= shard.enqueue_bytes;
  for (const auto& submit : shard.enqueue_submits) {
    if (std::exchange(submit->failed, true)) continue;
    Problem(submit->peer, submit->request, "unavailable", "the shard is being taken over: submit again with the same ids");
  }
  for (const auto& [id, check] : shard.checks)
    for (const auto& [worker, n] : check.plan.split) Release(worker, n);
}

// Only the queue has this job, and what it is cannot be read: taking the shard anew would find the same entry.
void Dispatcher::EndDamaged(Shard& shard, const LineKey& line, JobId job, const Error& error) {
  LogError("shard {}: job {} of queue '{}' ends: its entry in the queue is damaged: {}", shard.hold.shard.value(),
           job.ToString(), line.queue, error.message);
  JobSpec known;
  known.id = job;
  known.org = line.org;
  known.queue = line.queue;
  shard.settling[job] = {.org = line.org};
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  piece.unleased.push_back(job);
  piece.rows.outcomes.push_back(UnrunOutcome(known, {}, JobState::kDead, "damaged_entry", error.message));
}

// `n` entries that are not suspect go to the front of the line.
void Dispatcher::StandBefore(Shard& shard, const std::string& line, std::uint64_t n) {
  const auto suspects = shard.suspects.find(line);
  if (suspects != shard.suspects.end() && suspects->second != UINT64_MAX) suspects->second += n;
}

void Dispatcher::EnqueueKept(Shard& shard, const JobSpec& spec, std::optional<WallTime> run_at, bool front, bool check,
                             std::shared_ptr<const JobSpec> at_hand) {
  const LineRef& line = line_memo_.Find(spec, Durability::kRedis);
  if (front) StandBefore(shard, line->name, 1);
  EnqueueIn(shard, line, spec, Counters{}, run_at, front, check, std::move(at_hand));
}

void Dispatcher::OnTaken(const Op& op, QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  shard.maybe_old = shard.maybe_old || reply.maybe_old;
  NoteDelivered(shard, reply);
  shard.kept_seen = shard.kept_seen || !reply.claimed.empty() || !reply.kept.empty() || reply.next_due.has_value();
  if (!reply.claimed.empty()) {
    std::ranges::sort(reply.claimed, {}, &QueueEntry::id);  // the oldest is the next again
    return Ask(shard, {.stayed = std::move(reply.claimed), .expired = {}, .claimed = {}, .plan = {}});
  }
  for (const LineCount& line : reply.kept) {
    AddReady(shard, line.line, line.count);
    // Their sizes are not known, nor those that are scheduled: the budget has them as they come by.
    if (const auto key = LineKey::Parse(line.line)) shard.budgets.Enqueued(key->org, key->queue, 0, line.count);
    if (shard.maybe_old) shard.suspects[line.line] = line.count;
    shard.stayed += line.count;
  }
  if (!reply.cursor.empty()) {
    shard.take_cursor = std::move(reply.cursor);
    shard.take_again = true;
    return;
  }
  shard.next_due = reply.next_due;
  shard.due_suspect = shard.maybe_old && reply.next_due.has_value();
  if (shard.stayed > 0 || reply.next_due) shard.next_expiry = wall_;  // the first ExpireDue says which time it is
  if (shard.stayed > 0)
    LogInfo("shard {}: {} jobs that only the queue has are still there{}", shard.hold.shard.value(), shard.stayed,
            shard.maybe_old ? ", of a state that may be an earlier one" : "");
  shard.phase = Phase::kReadingRuns;
  ReadQueueSettings(shard, true);  // answered first: nothing starts before its limits are known
  ToLedger(command::ReadLiveRuns{.hold = op.hold, .after = std::nullopt});
}

// How many of the next `n` entries of the line are suspect.
std::uint64_t Dispatcher::TakeSuspects(Shard& shard, const std::string& line, std::uint64_t n) {
  const auto it = shard.suspects.find(line);
  if (it == shard.suspects.end()) return 0;
  if (it->second == UINT64_MAX) return n;
  const std::uint64_t taken = std::min(it->second, n);
  it->second -= taken;
  if (it->second == 0) shard.suspects.erase(it);
  return taken;
}

void Dispatcher::Ask(Shard& shard, Check check) {
  command::ReadKnown read{.hold = shard.hold, .check = ++last_check_, .jobs = {}};
  for (const QueueEntry& entry : check.stayed) read.jobs.push_back(entry.id);
  for (const std::vector<JobEntry>* entries : {&check.expired, &check.claimed})
    for (const JobEntry& entry : *entries) {
      read.jobs.push_back(entry.spec.id);
      shard.checking.insert(entry.spec.id);
    }
  for (const auto& [worker, n] : check.plan.split)
    if (const auto w = workers_.find(worker); w != workers_.end()) w->second.reserved += n;
  shard.checks.emplace(read.check, std::move(check));
  ToLedger(std::move(read));
}

void Dispatcher::On(event::KnownRead& e) {
  Shard* shard = Current(e.hold);
  if (shard == nullptr) return;
  auto node = shard->checks.extract(e.check);
  MILLRACE_CHECK(!node.empty(), "shard {}: the ledger answers a question that nobody asked", e.hold.shard.value());
  Check& check = node.mapped();
  const std::unordered_set<JobId> known(e.known.begin(), e.known.end());
  for (QueueEntry& entry : check.stayed) {
    if (known.contains(entry.id)) {
      shard->finish.push_back(entry.id);
      continue;
    }
    const auto key = LineKey::Parse(entry.line);
    if (const auto waiting = key ? DecodeEntry(entry.body, entry.id, *key) : std::unexpected(key.error())) {
      if (const auto end = EndOfWait(waiting->spec.options, waiting->counters)) entry.expires_at = end->at;
      if (waiting->spec.run_at && *waiting->spec.run_at > wall_) entry.run_at = waiting->spec.run_at;  // a cancel took it out
    }
    shard->requeue.push_back(std::move(entry));
  }
  if (!check.stayed.empty()) {
    shard->take_again = true;
    return;
  }
  for (const std::vector<JobEntry>* entries : {&check.expired, &check.claimed})
    for (const JobEntry& entry : *entries) shard->checking.erase(shard->checking.find(entry.spec.id));
  // Nobody looks for these: requests wait until they are back in their lines, start or end.
  for (const JobEntry& entry : check.expired) {
    const JobId id = entry.spec.id;
    if (Leased(*shard, id)) continue;
    if (known.contains(id))
      shard->finish.push_back(id);
    else if (!EndIfOver(*shard, entry.spec, entry.counters, true))  // the clock was set back
      EnqueueKept(*shard, entry.spec, entry.spec.run_at, true, entry.check);
  }
  for (const auto& [worker, n] : check.plan.split) Release(worker, n);
  std::uint64_t started = 0;
  for (JobEntry& entry : check.claimed) {
    const JobId id = entry.spec.id;
    if (Leased(*shard, id)) continue;  // it is running from its other entry
    if (known.contains(id))
      shard->finish.push_back(id);
    else if (Deliver(*shard, check.plan, std::make_shared<const JobSpec>(std::move(entry.spec)), entry.counters, true))
      ++started;
  }
  if (!check.claimed.empty()) lines_.GiveBack(check.plan.line->key, check.claimed.size() - started, now_);
  plan_needed_ = true;
}

// What was claimed goes to a worker, unless it is over; else back to the front of its line. True: it started.
bool Dispatcher::Deliver(Shard& shard, ClaimPlan& plan, std::shared_ptr<const JobSpec> spec, const Counters& counters,
                         bool kept) {
  if (EndIfOver(shard, *spec, counters, kept)) return false;
  if (Worker* worker = NextTaker(plan)) {
    Lease& lease = Grant(shard, *worker, std::move(spec), counters, kept);
    lease.counted = true;
    lease.slot = plan.slot;
    return true;
  }
  if (kept)
    EnqueueKept(shard, *spec, std::nullopt, true, true, spec);  // another entry of its id may be started meanwhile
  else
    Enqueue(shard, *spec, counters, std::nullopt, true);  // was not delivered: its counters stay
  return false;
}

// With the first row that says more than "succeeded", so that it can be tried again, inspected and repeated.
void Dispatcher::KeepSpec(Piece& piece, const JobSpec& spec) {
  piece.rows.jobs.push_back(spec);
  piece.bytes += spec.payload.size();
}

}  // namespace millrace
