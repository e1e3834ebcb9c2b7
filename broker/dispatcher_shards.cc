// Taking, rebuilding and losing shards, and the queue's replies.
#include <algorithm>
#include <ranges>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace {

void Dispatcher::On(event::ShardTaken& e) {
  Shard& shard = shards_[e.hold.shard];
  MILLRACE_CHECK(shard.hold.epoch < e.hold.epoch, "shard {}: epoch {} after {}", e.hold.shard.value(), e.hold.epoch.value(),
                 shard.hold.epoch.value());
  DropShard(shard, "taken anew");
  shard.hold = e.hold;
  shard.phase = Phase::kTaking;
  shard.dispatches = 0;
  lines_.Own(e.hold.shard, now_);
  // Take goes out with this flush, before anything else of the new epoch.
  ops_.push_back({.id = QueueOpId{++last_op_}, .hold = shard.hold, .kind = Op::Kind::kTake});
  takes_.push_back({.id = ops_.back().id, .op = queue_op::Take{.shard = e.hold.shard, .epoch = e.hold.epoch}});
}

void Dispatcher::On(event::ShardLost& e) {
  Shard& shard = shards_[e.shard];
  if (shard.phase >= Phase::kTaking) LogWarn("shard {}: lost, {}", e.shard.value(), e.reason);
  DropShard(shard, e.reason);
  shard.phase = e.owner_name.empty() ? Phase::kUnknown : Phase::kElsewhere;
  shard.owner_name = e.owner_name;
  if (shard.phase == Phase::kElsewhere) RetryParked();
}

// Everything of the hold is forgotten; the ledger has what matters.
void Dispatcher::DropShard(Shard& shard, const std::string& reason) {
  const ShardId id = shard.hold.shard;
  for (auto next = leases_.begin(); next != leases_.end();) {
    const auto it = next++;
    if (it->second.shard != id) continue;
    if (const auto w = workers_.find(it->second.worker); w != workers_.end()) {
      w->second.Drop(it->second);
      std::erase_if(w->second.grants, [&](const auto& grant) { return grant.id == it->first; });
      LeaveLease(shard, it->second);
    }
    leases_.erase(it);
  }
  for (auto it = pieces_.begin(); it != pieces_.end();) {
    if (it->second.hold.shard != id) {
      ++it;
      continue;
    }
    FailRequests(it->second);
    FailSubmits(it->second, "unavailable", "the outcome is not known: submit again with the same ids");
    it = pieces_.erase(it);
  }
  for (auto it = cancel_requests_.begin(); it != cancel_requests_.end();) {
    if (it->second.hold.shard == id) {
      if (!it->second.peer.empty())  // our own questions have none
        Problem(it->second.peer, it->second.message.request, "unavailable", "the shard is being taken over: ask again");
      it = cancel_requests_.erase(it);
    } else {
      ++it;
    }
  }
  for (const dispatch::Listing& listing : shard.listings.waiting)
    Problem(listing.peer, listing.message.request, "unavailable", "the shard is being taken over: ask again");
  std::erase_if(claims_, [&](const ClaimPlan& plan) {
    if (plan.shard != id) return false;
    for (const auto& [worker, n] : plan.split) Release(worker, n);
    return true;
  });
  std::erase_if(doomed_, [&](const ClaimPlan& plan) { return plan.shard == id; });
  if (shard.phase >= Phase::kTaking) LogInfo("shard {}: epoch {} is over: {}", id.value(), shard.hold.epoch.value(), reason);
  FailKept(shard);
  TakeUnqueued(shard, shard.puts.unqueued_bytes);
  ForgetBuffered(id);
  lines_.DropShard(id);
  const ShardHold hold = shard.hold;
  shard = Shard{};
  shard.hold = hold;
}

void Dispatcher::TakeAnew(Shard& shard, const std::string& reason) {
  ToLedger(command::TakeShardAnew{.dropped = shard.hold, .reason = reason});
  DropShard(shard, reason);
}

void Dispatcher::On(event::LiveRunsRead& e) {
  Shard* shard = Current(e.hold);
  if (shard == nullptr || shard->phase != Phase::kReadingRuns) return;
  std::optional<RunId> after;
  for (LiveRun& run : e.runs) {
    after = run.spec.id;
    NoteTokens(*shard, run);
    shard->runs.Restore(std::move(run));
  }
  if (!e.last && after) {
    ToLedger(command::ReadLiveRuns{.hold = e.hold, .after = after});
    return;
  }
  PresumeOfRuns(*shard);
  WriteEffects(*shard, shard->runs.FinishRestore());
  shard->phase = Phase::kReadingJobs;
  ToLedger(command::ReadLiveJobs{.hold = e.hold, .after = std::nullopt});
}

void Dispatcher::On(event::LiveJobsRead& e) {
  Shard* shard = Current(e.hold);
  if (shard != nullptr && shard->phase == Phase::kReady) return TakeUnread(*shard, e);
  if (shard == nullptr || shard->phase != Phase::kReadingJobs) return;
  std::optional<JobId> after;
  for (const LiveJob& job : e.jobs) {
    if (job.id_only && shard->delivered.contains(job.spec.id)) {  // it may run: what it is has to be known
      ToLedger(command::ReadLiveJobs{.hold = e.hold, .after = after ? after : e.after, .whole = true});
      return;
    }
    after = job.spec.id;
    // The outbox shows it when there is room for it.
    if (job.in_outbox && !job.cancelling && !shard->delivered.contains(job.spec.id)) continue;
    if (!shard->restored_jobs.insert(job.spec.id).second) continue;
    const auto run_at = job.next_run_at ? job.next_run_at : job.spec.run_at;
    bool presumed = false;
    if (const auto delivered = shard->delivered.find(job.spec.id); delivered != shard->delivered.end()) {
      delivered->second = job.last_token;
      presumed = true;
      Presume(*shard, std::make_shared<const JobSpec>(job.spec), job.counters, run_at);
    }
    // What may still run is stopped when its worker speaks up, and is cancelled only then, or when nobody does.
    if (presumed && job.cancelling) shard->cancelling.insert(job.spec.id);
    if (presumed) continue;
    if (job.cancelling) {
      (void)CancelStored(*shard, job);  // nothing settles yet
      continue;
    }
    if (TooMuchUnqueued()) {
      LeaveUnread(*shard, job.spec.id);
      continue;
    }
    PutRead(*shard, job);
  }
  if (!e.last && after) {
    ToLedger(command::ReadLiveJobs{.hold = e.hold, .after = after});
    return;
  }
  BecomeReady(*shard);
}

void Dispatcher::BecomeReady(Shard& shard) {
  shard.phase = Phase::kReady;
  shard.ready_at = wall_;
  LogInfo("shard {}: ready in epoch {}, {} runs, {} single jobs", shard.hold.shard.value(), shard.hold.epoch.value(),
          shard.runs.size(), shard.restored_jobs.size());
  if (!shard.puts.unread.jobs.empty())
    LogWarn("shard {}: {} of these jobs stay in the ledger until the queue has memory for them", shard.hold.shard.value(),
            shard.puts.unread.jobs.size());
  for (const auto& [line, n] : std::exchange(shard.held_lines, {})) AddReady(shard, line, n);
  FinishDelivered(shard);
  ReadOutbox(shard);
  for (const RunId& run : shard.runs.Runs())
    if (const auto it = watchers_.find(run); it != watchers_.end())
      for (const auto& peer : it->second)
        if (const auto update = shard.runs.Update(run, true)) SendUpdate(peer, *update);
  RetryParked();
}

void Dispatcher::On(event::Rung& e) {
  const auto it = shards_.find(e.shard);
  if (it == shards_.end() || it->second.phase != Phase::kReady) return;
  // Near a store that is full most rings are for what stays in the ledger, and each would have all of it looked at.
  if (StoreFull() && it->second.next_outbox > now_) return;
  ReadOutbox(it->second);
}

void Dispatcher::ReadOutbox(Shard& shard) {
  if (shard.yield_by) return;
  if (shard.outbox_reading) {
    shard.outbox_again = true;
    return;
  }
  shard.outbox_reading = true;
  shard.next_outbox = now_ + kOutboxPollInterval;
  // Near a store that is full nothing is put into it: what is to be put is read as soon as there is room. Behind much that it
  // has not answered, with a later poll.
  ToLedger(command::ReadOutbox{.hold = shard.hold, .cancels_only = StoreFull() || TooMuchUnqueued()});
}

void Dispatcher::TakeRun(Shard& shard, LiveRun& live, RunEffects& effects) {
  const RunId id = live.spec.id;
  if (shard.runs.Knows(id)) {
    if (live.cancelling) ApplyCancel(shard, shard.runs.Cancel(id, live.cancel_reason));  // asked for through the ledger
  } else if (live.ended.empty() && live.counters.empty() && !live.cancelling) {
    effects.Append(shard.runs.AddRun(std::move(live.spec), std::move(live.jobs)));
  } else {  // an owner before us began it
    shard.runs.Restore(std::move(live));
    effects.Append(shard.runs.FinishRestore());
  }
}

namespace {

// Up to which run a page has all of them, of both kinds of rows; nothing: the page is not cut, or by single jobs.
std::optional<RunId> EndOfPage(const Ledger::Outbox& rows) {
  if (!rows.more) return std::nullopt;
  if (rows.batches.size() == kOutboxBatchesMax) {
    for (const auto& batch : std::views::reverse(rows.batches))
      if (!batch.runs.empty()) return batch.runs.back().spec.id;
    return std::nullopt;
  }
  return rows.runs.empty() ? std::nullopt : std::optional(rows.runs.back().spec.id);
}

}  // namespace

void Dispatcher::TakeOutOfOutbox(Shard& shard, const OwnerBatch& done) {
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  append(piece.rows.outbox_done_runs, done.outbox_done_runs);
  append(piece.rows.outbox_done_jobs, done.outbox_done_jobs);
  append(piece.rows.outbox_done_cancels, done.outbox_done_cancels);
  append(piece.rows.outbox_done_batches, done.outbox_done_batches);
  append(piece.outbox_batches, done.outbox_done_batches);
  append(piece.outbox_items, done.outbox_done_cancels);
  for (const RunId& run : done.outbox_done_runs) piece.outbox_items.push_back(run.uuid);
  for (const JobId& job : done.outbox_done_jobs) piece.outbox_items.push_back(job.uuid);
}

// A row is seen again until its removal is durable. `outbox_taking` has those that are being removed, `restored_jobs` those
// that the rebuild found before (it is needed until one reading that began after the rebuild has seen every row of that time).
void Dispatcher::On(event::OutboxRead& e) {
  Shard* shard = Current(e.hold);
  if (shard == nullptr || shard->phase != Phase::kReady) return;
  shard->outbox_reading = false;
  if (e.failed || shard->yield_by) return;  // the next poll reads it
  RunEffects effects;
  OwnerBatch done;
  // Runs of one pipeline come in the order of their ids, whichever kind of row names them.
  std::vector<LiveRun*> taken;
  const std::optional<RunId> end = EndOfPage(e.rows);
  for (Ledger::Outbox::Batch& batch : e.rows.batches) {
    if (end && !batch.runs.empty() && batch.runs.front().spec.id > *end) continue;
    if (!shard->outbox_batches_taking.insert(batch.id).second) continue;
    done.outbox_done_batches.push_back(batch.id);
    for (LiveRun& live : batch.runs) taken.push_back(&live);
  }
  for (LiveRun& live : e.rows.runs) {
    const RunId id = live.spec.id;
    if ((end && id > *end) || !shard->outbox_taking.insert(id.uuid).second) continue;
    if (live.cancelling)
      done.outbox_done_cancels.push_back(id.uuid);
    else
      done.outbox_done_runs.push_back(id);
    taken.push_back(&live);
  }
  std::ranges::sort(taken, {}, [](const LiveRun* live) { return live->spec.id; });
  for (LiveRun* live : taken) TakeRun(*shard, *live, effects);
  for (const LiveJob& live : e.rows.jobs) {
    const JobId id = live.spec.id;
    if (!shard->outbox_taking.insert(id.uuid).second) continue;
    if (live.cancelling) {
      if (CancelStored(*shard, live))
        done.outbox_done_cancels.push_back(id.uuid);
      else
        shard->outbox_taking.erase(id.uuid);  // the next poll shows it, unless it has ended
      continue;
    }
    done.outbox_done_jobs.push_back(id);
    if (shard->restored_jobs.contains(id) || Leased(*shard, id)) continue;
    PutRead(*shard, live);
  }
  if (!done.Empty()) {
    WriteEffects(*shard, std::move(effects));
    TakeOutOfOutbox(*shard, done);
  }
  const bool rung = std::exchange(shard->outbox_again, false);
  if (!e.more) {
    if (!e.cancels_only) shard->restored_jobs.clear();
    if (rung) ReadOutbox(*shard);
  } else if (shard->outbox_taking.empty() && shard->outbox_batches_taking.empty()) {
    ReadOutbox(*shard);
  } else {
    shard->outbox_again = true;  // the next page shows once this one's rows are removed: see CommittedPiece
  }
}

void Dispatcher::On(event::QueueReplies& e) {
  for (auto& [id, result] : e.replies) {
    MILLRACE_CHECK(!ops_.empty() && ops_.front().id == id, "queue reply {} is out of order", id.value());
    Op op = std::move(ops_.front());
    ops_.pop_front();
    for (const auto& [worker, n] : op.plan.split) Release(worker, n);
    for (const dispatch::Pass& pass : op.passes)
      for (const auto& [worker, n] : pass.plan.split) Release(worker, n);
    const bool refused = op.put && !result && result.error().code == ErrorCode::kLimit;
    if (refused) {
      OnRefused(op, std::move(e.refused.front()));
      e.refused.pop_front();
    }
    if (!op.submits.empty()) AnswerKept(op, result ? nullptr : &result.error());
    if (!result) {
      if (!refused) QueueFailed(op, result.error());
      continue;
    }
    Shard* shard = Current(op.hold);
    if (shard == nullptr) continue;
    switch (op.kind) {
      case Op::Kind::kTake: OnTaken(op, *result); break;
      case Op::Kind::kPlain:
        if (op.put) PutAnswered(*shard);
        for (dispatch::Pass& pass : op.passes) OnPassed(op.hold, pass);
        if (op.put) TryRefused(*shard, true);
        break;
      case Op::Kind::kClaim: OnClaimed(op, *result); break;
      case Op::Kind::kEndLine: OnLineClaimed(op, *result); break;
      case Op::Kind::kPromote: OnPromoted(op, *result); break;
      case Op::Kind::kExpire: OnExpired(op, *result); break;
      case Op::Kind::kRemove: OnRemoved(op, *result); break;
      case Op::Kind::kList: OnListed(op, *result); break;
    }
  }
}

// A worker that was lost and came back meanwhile has made fewer promises than this one.
void Dispatcher::Release(WorkerId worker, std::uint32_t promised) {
  const auto it = workers_.find(worker);
  if (it != workers_.end()) it->second.reserved -= std::min(it->second.reserved, promised);
}

void Dispatcher::QueueFailed(const Op& op, const Error& error) {
  if (Shard* shard = Current(op.hold)) TakeAnew(*shard, fmt::format("queue: {}: {}", Name(error.code), error.message));
}

// The worker to whom the claim's next job goes; nullptr when all of them are gone or full.
Dispatcher::Worker* Dispatcher::NextTaker(ClaimPlan& plan) {
  while (!plan.split.empty()) {
    auto& [id, share] = plan.split.front();
    const auto it = workers_.find(id);
    if (share > 0 && it != workers_.end() && it->second.Credit() > 0 && !stopping_) {
      --share;
      return &it->second;
    }
    plan.split.erase(plan.split.begin());
  }
  return nullptr;
}

// A claim of large entries gives less than was asked for: the rest is still in its line. One that gives nothing at all says
// that the line is empty, whatever was counted.
void Dispatcher::ClaimedAll(const ClaimPlan& plan, std::size_t claimed) {
  Shard& shard = shards_.at(plan.shard);
  const std::string& line = plan.line->name;
  const auto claims = shard.claiming.find(line);
  MILLRACE_CHECK(claims != shard.claiming.end(), "line '{}': a claim that was not sent", line);
  if (--claims->second == 0) shard.claiming.erase(claims);
  if (claimed > 0 && claimed < plan.total) AddReady(shard, line, plan.total - claimed);
}

void Dispatcher::OnClaimed(Op& op, QueueReply& reply) {
  Shard* shard = Current(op.hold);
  ClaimPlan& plan = op.plan;
  const LineKey& key = plan.line->key;
  ClaimedAll(plan, reply.claimed.size());
  const bool kept = key.durability == Durability::kRedis;
  std::uint64_t suspects = kept ? TakeSuspects(*shard, plan.line->name, reply.claimed.size()) : 0;
  std::uint64_t started = 0;
  Check doubtful;
  for (auto& [id, line, body, run_at, expires_at] : reply.claimed) {
    const bool suspect = suspects > 0;
    if (suspect) --suspects;
    const auto left = [&] { shard->budgets.Claimed(key.org, key.queue, std::nullopt); };
    // The queue had it twice, or it ended meanwhile.
    if (Leased(*shard, id) || Left(*shard, id)) {
      left();
      continue;
    }
    dispatch::Claimed job;
    if (body.empty()) {
      const RunCoordinator::Job* of_run = shard->runs.Find(id);
      if (of_run == nullptr || IsTerminal(of_run->state) || of_run->state == JobState::kCancelling) {
        left();
        shard->finish.push_back(id);
        continue;
      }
      job = {.spec = of_run->spec, .counters = of_run->counters};
    } else {
      const auto entry = std::make_shared<JobEntry>();
      const auto decoded = DecodeEntryInto(*entry, body, id, key);
      if (!decoded && !kept) return TakeAnew(*shard, decoded.error().message);
      if (!decoded) {
        left();
        EndDamaged(*shard, key, id, decoded.error());
        continue;
      }
      job = {.spec = {entry, &entry->spec}, .counters = entry->counters, .check = entry->check};
    }
    if (StartClaimed(*shard, plan, std::move(job), suspect, doubtful)) ++started;
  }
  ClaimOver(*shard, plan, started, doubtful);
}

void Dispatcher::OnPromoted(const Op& op, QueueReply& reply) {
  Shard* shard = Current(op.hold);
  shard->promoting = false;
  for (const LineCount& gained : reply.promoted) {
    AddReady(*shard, gained.line, gained.count);
    if (shard->due_suspect && IsKeptLine(gained.line)) shard->suspects[gained.line] = UINT64_MAX;
  }
  if (reply.next_due) shard->next_due = shard->next_due ? std::min(*shard->next_due, *reply.next_due) : *reply.next_due;
}

}  // namespace millrace
