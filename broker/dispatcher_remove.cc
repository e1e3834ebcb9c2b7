// Entries that leave the queue by name: what was cancelled while it waited, and jobs of `durability: redis` that only the queue
// can find. An entry that is being looked for may come out another way meanwhile (claimed, expired): it does not count then,
// or is handed to whoever looks for it.
#include <utility>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "common/base/check.h"

namespace millrace {

// While the shard is rebuilt, nothing of it is in an ordinary line yet.
void Dispatcher::LeaveQueue(Shard& shard, const JobSpec& spec, bool scheduled) {
  if (shard.phase != Phase::kReady) return;
  shard.puts.unread.jobs.erase(spec.id);
  shard.removals.Add(spec.id, line_memo_.Find(spec, Durability::kLedger)->name, scheduled);
}

// True: the entry that came out of the queue is one that was to leave it.
bool Dispatcher::Left(Shard& shard, JobId job) {
  if (!shard.removals.Leaving(job)) return false;
  shard.finish.push_back(job);
  return true;
}

// Jobs that the ledger does not know may wait in a kept line. True: they are looked for, or somebody else has them in hand, and
// the states are read again after that; what is found then and the ledger still does not know has not ended. A look of another
// request says nothing to this one: that may fail with what it found in its hands, or have been past the line when the job
// came.
bool Dispatcher::SearchKept(Shard& shard, CancelRequest& request, std::uint64_t number, const std::vector<ItemState>& states) {
  const OrgId org = request.message.org;
  std::unordered_set<JobId> searched;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const JobId id{request.message.items[i].id};
    if (states[i].known || states[i].of_run || request.message.items[i].is_run || !shard.kept_seen) continue;
    if (TakeFound(shard, request, number, id) || Awaits(shard, request, number, id)) {
      request.awaited.push_back(id);  // who has the entry in hand may put it back where a look has been
      continue;
    }
    if (request.searched.contains(id) || !shard.wanted.Add(id, org, number)) continue;
    request.searched.insert(id);
    shard.removals.Search(org, id);
    searched.insert(id);
    ++request.searching;
  }
  HandOverBuffered(shard, searched);
  for (std::size_t i = 0; i < states.size(); ++i)  // an entry of an earlier state of the store
    if (const JobId id{request.message.items[i].id}; (states[i].known || states[i].of_run) && request.found.erase(id) > 0) {
      shard.settling.erase(id);
      shard.finish.push_back(id);
    }
  if (request.searching > 0) {
    request.awaited.clear();  // it is asked again when the look is over
    return true;
  }
  if (request.awaited.empty()) return false;
  awaiting_requests_.push_back(number);
  return true;
}

// From a later request that came by the entry while this one waited for something else; that one looks again if it must.
bool Dispatcher::TakeFound(Shard& shard, CancelRequest& request, std::uint64_t number, JobId job) {
  const auto settling = shard.settling.find(job);
  if (settling == shard.settling.end() || settling->second.org != request.message.org || settling->second.found_by <= number)
    return false;
  CancelRequest& later = cancel_requests_.at(settling->second.found_by);
  later.searched.erase(job);
  request.found.insert(later.found.extract(job));
  request.searched.insert(job);
  settling->second.found_by = number;
  return true;
}

// The job's first row is on the way into the ledger, its entry is out of its line until the ledger has said what it knows of
// it, or another request looks for it or has found it. For what is found, requests wait for earlier ones only, so never for
// each other; and what a later one looks for was not there when this one looked.
bool Dispatcher::Awaits(const Shard& shard, const CancelRequest& request, std::uint64_t number, JobId job) const {
  const OrgId org = request.message.org;
  if (const auto seeker = shard.wanted.Seeker(job, org); seeker && (*seeker < number || !request.searched.contains(job)))
    return true;
  if (shard.checking.contains(job)) return true;
  if (const auto lease = leases_.find(job); lease != leases_.end())
    return lease->second.ending && lease->second.spec->org == org;
  const auto settling = shard.settling.find(job);
  return settling != shard.settling.end() && settling->second.org == org && settling->second.found_by < number;
}

void Dispatcher::ReadStatesAgain(CancelRequest& request, std::uint64_t number) {
  std::vector<Uuid> items;
  for (const auto& item : request.message.items) items.push_back(item.id);
  ToLedger(command::ReadStates{.hold = request.hold, .number = number, .org = request.message.org, .items = std::move(items)});
}

void Dispatcher::ResumeRequests() {
  std::erase_if(awaiting_requests_, [this](std::uint64_t number) {
    const auto it = cancel_requests_.find(number);
    if (it == cancel_requests_.end()) return true;
    CancelRequest& request = it->second;
    const Shard& shard = *Current(request.hold);
    while (!request.awaited.empty() && !Awaits(shard, request, number, request.awaited.back())) request.awaited.pop_back();
    if (!request.awaited.empty()) return false;
    ReadStatesAgain(request, number);
    return true;
  });
}

// To the request that looks for it; none of its entries counts from then on.
bool Dispatcher::HandOver(Shard& shard, JobEntry entry) {
  const auto seeker = shard.wanted.Seeker(entry.spec.id, entry.spec.org);
  if (!seeker) return false;
  shard.settling[entry.spec.id] = {.org = entry.spec.org, .found_by = *seeker};
  cancel_requests_.at(*seeker).found.emplace(entry.spec.id, std::move(entry));
  return true;
}

// The request failed.
void Dispatcher::GiveBackFound(Shard& shard, CancelRequest& request) {
  for (const auto& item : request.message.items) {
    const auto found = request.found.extract(JobId{item.id});
    if (found.empty()) continue;
    shard.settling.erase(found.key());
    EnqueueKept(shard, found.mapped().spec, found.mapped().spec.run_at, true, true);
  }
}

void Dispatcher::EmitRemove(Shard& shard, std::vector<Command>& out) {
  if (shard.phase != Phase::kReady) return;
  for (const Durability durability : {Durability::kLedger, Durability::kRedis}) {
    auto remove = shard.removals.Next(durability == Durability::kRedis);
    if (!remove) continue;
    remove->shard = shard.hold.shard;
    remove->epoch = shard.hold.epoch;
    Execute(shard, std::move(*remove), Op::Kind::kRemove, out);
    ops_.back().kept = durability == Durability::kRedis;
  }
}

// What a claim under way was promised may be among it: then the count stays, too high rather than too low. A claim that finds
// nothing corrects the one; what waits uncounted would never be asked for.
void Dispatcher::ForgetLost(const Shard& shard, const QueueReply& reply) {
  for (const LineCount& lost : reply.lost)
    if (!Claiming(shard, lost.line)) lines_.Forget(shard.hold.shard, lost.line, lost.count, now_);
}

void Dispatcher::OnRemoved(const Op& op, QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  const bool kept = op.kept;
  ForgetLost(shard, reply);
  const Removals::Over over = shard.removals.Answered(kept, reply);
  for (QueueEntry& entry : reply.claimed) {
    const auto key = LineKey::Parse(entry.line);
    if (!key) return TakeAnew(shard, key.error().message);
    shard.budgets.Claimed(key->org, key->queue, std::nullopt);
    if (Leased(shard, entry.id)) continue;  // it runs, or its end is being written
    if (!kept) {
      shard.finish.push_back(entry.id);
      continue;
    }
    auto waiting = DecodeEntry(entry.body, entry.id, *key);
    if (!waiting) {
      EndDamaged(shard, *key, entry.id, waiting.error());
      continue;
    }
    if (!HandOver(shard, *waiting)) EnqueueKept(shard, waiting->spec, waiting->spec.run_at, true, waiting->check);
  }
  if (!kept) return DropRefused(shard, over.ids);
  // What waits before them has come nearer to the end of its line, which a look that goes on there has seen.
  if (!reply.lost.empty()) shard.listings.record.End();
  for (const JobId& id : over.ids) {
    const auto seeker = shard.wanted.Take(id, over.org);
    MILLRACE_CHECK(seeker.has_value(), "job {}: looked for, but nobody wants it", id.ToString());
    CancelRequest& request = cancel_requests_.at(*seeker);
    if (--request.searching == 0) ReadStatesAgain(request, *seeker);
  }
}

}  // namespace millrace
