// Which jobs only the queue has, for a client that means jobs by a filter: the ledger does not know them, and the dispatcher
// knows the lines that wait in the queue by their count only. So the queue is asked, a page at a time. What has left it is a
// lease or in the ready buffer, or was when the client began to ask: the first page and the last one have those.
#include <utility>

#include "broker/dispatcher.h"
#include "common/wire/codec.h"

namespace millrace {
namespace {

bool Meant(const wire::ListKept& m, OrgId org, std::string_view queue, std::string_view kind) {
  return org == m.org && (m.queue.empty() || m.queue == queue) && (m.kind.empty() || m.kind == kind);
}

}  // namespace

void Dispatcher::OnListKept(const wire::PeerId& peer, wire::ListKept& m) {
  Shard* shard = OwnShard(peer, m.request, m.org);
  if (shard == nullptr) return;
  if (shard->listings.waiting.size() >= kListingsMax)
    return Problem(peer, m.request, "limit",
                   fmt::format("{} questions for jobs of durability: redis wait for the queue: ask again", kListingsMax));
  shard->listings.waiting.push_back({.peer = peer, .message = std::move(m)});
}

void Dispatcher::EmitListing(Shard& shard, std::vector<Command>& out) {
  if (shard.listings.waiting.empty() || shard.listings.asked || shard.phase != Phase::kReady) return;
  const wire::ListKept& m = shard.listings.waiting.front().message;
  shard.listings.asked = true;
  Execute(shard,
          queue_op::ListKept{.shard = shard.hold.shard,
                             .epoch = shard.hold.epoch,
                             .org = std::to_string(m.org.value()),
                             .cursor = m.cursor,
                             .max = kListPageEntries},
          Op::Kind::kList, out);
}

void Dispatcher::OnListed(const Op& op, const QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  const dispatch::Listing listing = std::move(shard.listings.waiting.front());
  shard.listings.waiting.pop_front();
  shard.listings.asked = false;
  const wire::ListKept& m = listing.message;
  wire::ListKeptReply answer{.request = m.request, .jobs = {}, .cursor = reply.cursor};
  for (const QueueEntry& entry : reply.listed) {
    const auto key = LineKey::Parse(entry.line);
    if (!key) return TakeAnew(shard, key.error().message);
    if (Meant(m, key->org, key->queue, key->kind)) answer.jobs.push_back(entry.id);
  }
  if (m.cursor.empty() || reply.cursor.empty()) {
    for (const auto& [id, lease] : leases_)
      if (lease.kept && lease.shard == op.hold.shard && Meant(m, lease.spec->org, lease.spec->queue, lease.spec->kind))
        answer.jobs.push_back(id);
    lines_.ForEachBuffered([&](const LineIndex::Line& line) {
      if (line.shard != op.hold.shard || !Meant(m, line.key().org, line.key().queue, line.key().kind)) return;
      buffer_.ForEach(line.buffered, [&](const ReadyBuffer::Job& job) { answer.jobs.push_back(job.id); });
    });
  }
  if (answer.jobs.size() > wire::kKeptListedMax)
    return Problem(listing.peer, m.request, "rejected",
                   fmt::format("more than {} jobs of durability: redis match: give a narrower filter", wire::kKeptListedMax));
  to_clients_.push_back({.peer = listing.peer, .message = std::move(answer)});
}

}  // namespace millrace
