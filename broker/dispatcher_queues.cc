// Settings of queues: read, changed, listed; and what they count.
#include <algorithm>
#include <optional>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/log.h"
#include "common/model/whole_org.h"

namespace millrace {

void Dispatcher::ReadQueueSettings(Shard& shard, bool rebuild) {
  if (std::exchange(shard.queues_reading, true)) return;
  ToLedger(command::ReadQueueSettings{.hold = shard.hold, .rebuild = rebuild});
}

void Dispatcher::On(event::QueueSettingsRead& e) {
  Shard* shard = Current(e.hold);
  if (shard == nullptr) return;
  shard->queues_reading = false;  // failed: the next poll reads them
  for (QueueSettings& settings : e.settings) ApplySettings(*shard, std::move(settings));
}

// An older revision may come late: a reading that began before a change was made.
void Dispatcher::ApplySettings(Shard& shard, QueueSettings settings) {
  QueueSettings& known = shard.queues[{settings.org, settings.queue}];
  if (known.revision >= settings.revision) return;
  settings.redis_until = std::max(settings.redis_until, known.redis_until);
  // Until here jobs were taken as it was. What that is later than what is stored is little beside kClassChangeDoubt.
  if (known.durability == Durability::kRedis && settings.durability != Durability::kRedis)
    settings.redis_until = std::max(settings.redis_until, std::optional(wall_));
  known = std::move(settings);
  if (!shard.yield_by && known.queue != kWholeOrg) lines_.Set(shard.hold.shard, known, now_);
  shard.budgets.Limit(known);
  plan_needed_ = true;
  if (shard.phase == Phase::kReady)
    LogInfo("org {}, queue '{}': settings of revision {}: {}", known.org.value(), known.queue, known.revision, ToJson(known));
}

// The shard of the org when it is served here; otherwise the request was answered.
Dispatcher::Shard* Dispatcher::OwnShard(const wire::PeerId& peer, std::uint64_t request, OrgId org) {
  Shard* shard = ShardOfOrg(org);
  if (shard != nullptr && shard->phase == Phase::kReady) return shard;
  const bool elsewhere = shard == nullptr || shard->phase == Phase::kElsewhere;
  Problem(peer, request, elsewhere ? "not_owner" : "unavailable",
          elsewhere ? fmt::format("org {} is served by broker '{}'", org.value(), shard == nullptr ? "" : shard->owner_name)
                    : "the shard is being taken over: try again");
  return nullptr;
}

void Dispatcher::OnSetQueue(const wire::PeerId& peer, wire::SetQueue& m) {
  if (auto valid = Validate(m.settings); !valid) return Problem(peer, m.request, "invalid_argument", valid.error().message);
  if (stopping_) return Problem(peer, m.request, "unavailable", "the broker is stopping");
  // While the shard is being taken, it is read with the rest.
  const Shard* shard = ShardOfOrg(m.settings.org);
  if ((shard == nullptr || shard->phase == Phase::kElsewhere) && OwnShard(peer, m.request, m.settings.org) == nullptr) return;
  if (run_reads_ >= kRunReadsMax)
    return Problem(peer, m.request, "limit", fmt::format("{} requests wait for the ledger", run_reads_));
  ++run_reads_;
  ToLedger(command::PutQueueSettings{
      .peer = peer, .request = m.request, .settings = std::move(m.settings), .actor = std::move(m.actor)});
}

void Dispatcher::On(event::QueueSettingsPut& e) {
  if (run_reads_ > 0) --run_reads_;
  if (!e.stored) return Problem(e.peer, e.request, std::string(Name(e.stored.error().code)), e.stored.error().message);
  to_clients_.push_back({.peer = e.peer, .message = wire::SetQueueReply{.request = e.request, .revision = e.stored->revision}});
  if (Shard* shard = ShardOfOrg(e.stored->org); shard != nullptr && shard->phase >= Phase::kTaking)
    ApplySettings(*shard, std::move(*e.stored));
}

// What its queues have together, if something was ever set for the whole org.
static void AddWholeOrg(std::map<std::string, wire::ListQueuesReply::Item>& items) {
  const auto whole = items.find(std::string(kWholeOrg));
  if (whole == items.end()) return;
  wire::ListQueuesReply::Item& sum = whole->second;
  for (const auto& [queue, item] : items) {
    if (&item == &sum) continue;
    sum.ready += item.ready;
    sum.running += item.running;
    sum.waiting += item.waiting;
    sum.waiting_bytes += item.waiting_bytes;
  }
}

void Dispatcher::OnListQueues(const wire::PeerId& peer, const wire::ListQueues& m) {
  Shard* shard = OwnShard(peer, m.request, m.org);
  if (shard == nullptr) return;
  std::map<std::string, wire::ListQueuesReply::Item> items;
  for (auto it = shard->queues.lower_bound({m.org, {}}); it != shard->queues.end() && it->first.first == m.org; ++it)
    items[it->first.second].settings = it->second;
  for (const auto& [queue, counts] : lines_.CountsOf(m.org)) {
    items[queue].ready = counts.ready;
    items[queue].running = counts.running;
  }
  for (const auto& [queue, amount] : shard->budgets.WaitingOf(m.org)) {
    items[queue].waiting = amount.jobs;
    items[queue].waiting_bytes = amount.bytes;
  }
  AddWholeOrg(items);
  wire::ListQueuesReply reply{.request = m.request, .queues = {}, .more = false};
  for (auto& [queue, item] : items) {
    if (!m.after.empty() && queue <= m.after) continue;
    if (reply.queues.size() == kQueuesListedMax) {
      reply.more = true;
      break;
    }
    item.settings.org = m.org;
    item.settings.queue = queue;
    reply.queues.push_back(std::move(item));
  }
  to_clients_.push_back({.peer = peer, .message = std::move(reply)});
}

void Dispatcher::On(event::QueueMemoryRead& e) {
  const bool was_full = StoreFull();
  queue_memory_ = e.memory;
  if (StoreFull() == was_full) return;
  if (!was_full) {
    LogWarn(
        "Redis holds {} bytes, {} % of its maxmemory of {} are the limit: submits are refused, and what is only in the ledger "
        "waits there",
        e.memory.used, kQueueMemoryPercentMax, e.memory.max);
    return;
  }
  LogInfo("Redis holds {} of {} bytes: submits and what waits in the ledger are taken again", e.memory.used, e.memory.max);
  for (auto& [id, shard] : shards_)
    if (shard.phase == Phase::kReady) {
      ReadOutbox(shard);
      ReadUnread(shard);
    }
}

// What is in the ledger already is never refused; a job that waits for others of its run does not wait in a queue.
std::optional<Error> Dispatcher::OverBudget(const std::vector<JobSpec>& jobs) const {
  if (StoreFull())
    return Error{ErrorCode::kLimit, fmt::format("Redis holds {} bytes, {} % of its maxmemory of {} are the limit; submit again "
                                                "when the queues have drained, or raise maxmemory",
                                                queue_memory_.used, kQueueMemoryPercentMax, queue_memory_.max)};
  QueueBudgets::Amounts more, of_orgs;
  for (const JobSpec& job : jobs) {
    const auto shard = shards_.find(ShardOf(job.org, options_.shard_count));
    if (shard == shards_.end() || !shard->second.budgets.Limited()) continue;
    if (!job.depends_on.empty() || accepting_.contains(job.id.uuid)) continue;
    if (job.run && (accepting_.contains(job.run->uuid) || shard->second.runs.Knows(*job.run))) continue;
    QueueBudgets::Amount& amount = more[{job.org, job.queue}];
    ++amount.jobs;
    amount.bytes += job.payload.size();
  }
  for (const auto& [queue, amount] : more) {
    QueueBudgets::Amount& sum = of_orgs[{queue.first, std::string(kWholeOrg)}];
    sum.jobs += amount.jobs;
    sum.bytes += amount.bytes;
  }
  std::optional<Error> full;
  for (const QueueBudgets::Amounts* amounts : {&more, &of_orgs})
    for (const auto& [queue, amount] : *amounts) {
      const QueueBudgets& budgets = shards_.at(ShardOf(queue.first, options_.shard_count)).budgets;
      auto refusal = budgets.Refusal(queue.first, queue.second, amount);
      if (refusal && (!full || refusal->code != ErrorCode::kLimit)) full = std::move(refusal);  // "never" before "not now"
    }
  return full;
}

void Dispatcher::AddAccepting(Shard& shard, Piece& piece, const JobSpec& job) {
  if (job.depends_on.empty()) shard.budgets.Accepting(job, piece.waiting);
}

void Dispatcher::EndLease(const Lease& lease) {
  if (!lease.counted || shards_.at(lease.shard).yield_by) return;  // the index knows nothing of it any more
  if (lease.slot) {
    lines_.Ended(lease.slot, now_);
  } else {
    lines_.Ended(line_memo_.Find(*lease.spec, lease.kept ? Durability::kRedis : Durability::kLedger)->key, now_);
  }
  plan_needed_ = true;
}

}  // namespace millrace
