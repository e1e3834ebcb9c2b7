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
  line_memo_.Find(spec, Durability::kLedger);
  shard.removals.Add(spec.id, line_memo_.name(), scheduled);
}

// True: the entry that came out of the queue is one that was to leave it.
bool Dispatcher::Left(Shard& shard, JobId job) {
  if (!shard.removals.Leaving(job)) return false;
  shard.finish.push_back(job);
  return true;
}

// Jobs that the ledger does not know may wait in a kept line. True: they are looked for, and the states are read again after
// that; what is found then and the ledger still does not know has not ended.
bool Dispatcher::SearchKept(Shard& shard, CancelRequest& request, std::uint64_t number, const std::vector<ItemState>& states) {
  bool again = false;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const JobId id{request.message.items[i].id};
    if (states[i].known || states[i].of_run || request.message.items[i].is_run || !shard.kept_seen) continue;
    const auto lease = leases_.find(id);
    const bool found = request.found.contains(id);
    // Its first row is on the way into the ledger.
    if (lease != leases_.end() ? lease->second.ending : !found && shard.settling.contains(id)) again = true;
    const auto wanted = shard.wanted.find(id);
    if (wanted != shard.wanted.end() && wanted->second != number) again = true;  // another request looks for it
    if (request.searched || wanted != shard.wanted.end()) continue;
    shard.wanted.emplace(id, number);
    shard.removals.Search(id);
    ++request.searching;
  }
  for (std::size_t i = 0; i < states.size(); ++i)  // an entry of an earlier state of the store
    if (const JobId id{request.message.items[i].id}; states[i].known && request.found.erase(id) > 0) {
      shard.settling.erase(id);
      shard.finish.push_back(id);
    }
  request.searched = true;
  if (request.searching > 0) return true;
  if (!again) return false;
  std::vector<Uuid> items;
  for (const auto& item : request.message.items) items.push_back(item.id);
  ToLedger(command::ReadStates{.hold = shard.hold, .number = number, .org = request.message.org, .items = std::move(items)});
  return true;
}

// To the request that looks for it; none of its entries counts from then on.
bool Dispatcher::HandOver(Shard& shard, JobEntry entry) {
  const auto wanted = shard.wanted.find(entry.spec.id);
  if (wanted == shard.wanted.end()) return false;
  CancelRequest& request = cancel_requests_.at(wanted->second);
  if (entry.spec.org != request.message.org) return false;
  shard.settling.insert(entry.spec.id);
  request.found.emplace(entry.spec.id, std::move(entry));
  return true;
}

// The request failed.
void Dispatcher::GiveBackFound(Shard& shard, CancelRequest& request) {
  for (const auto& item : request.message.items) {
    const auto found = request.found.extract(JobId{item.id});
    if (found.empty()) continue;
    shard.settling.erase(found.key());
    EnqueueKept(shard, found.mapped().spec, std::nullopt, true, true);
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
    ops_.back().key.durability = durability;
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
  const bool kept = op.key.durability == Durability::kRedis;
  ForgetLost(shard, reply);
  const std::vector<JobId> over = shard.removals.Answered(kept, reply);
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
    if (!waiting) return TakeAnew(shard, waiting.error().message);
    if (!HandOver(shard, *waiting)) EnqueueKept(shard, waiting->spec, std::nullopt, true, waiting->check);
  }
  for (const JobId& id : kept ? over : std::vector<JobId>{}) {
    const auto wanted = shard.wanted.extract(id);
    MILLRACE_CHECK(!wanted.empty(), "job {}: looked for, but nobody wants it", id.ToString());
    CancelRequest& request = cancel_requests_.at(wanted.mapped());
    if (--request.searching > 0) continue;
    std::vector<Uuid> items;
    for (const auto& item : request.message.items) items.push_back(item.id);
    ToLedger(command::ReadStates{
        .hold = shard.hold, .number = wanted.mapped(), .org = request.message.org, .items = std::move(items)});
  }
}

}  // namespace millrace
