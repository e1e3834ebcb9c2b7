// Which jobs only the queue has, for a client that means jobs by a filter: the ledger does not know them, and the dispatcher
// knows the lines that wait in the queue by their count only. So the queue is asked, a page at a time, and after its last page
// comes what has left it and is here. What goes back into it meanwhile is on record (kept_record.h), so a job that the queue's
// pages missed is here then, or on record: it was out of its line when they came by.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "common/wire/codec.h"

namespace millrace {
namespace {

bool Meant(const wire::ListKept& m, OrgId org, std::string_view queue, std::string_view kind) {
  return org == m.org && (m.queue.empty() || m.queue == queue) && (m.kind.empty() || m.kind == kind);
}

// The ids of those that are meant.
class Collector {
 public:
  explicit Collector(const wire::ListKept& m) : m_(m) {}
  void Add(const JobSpec& spec) {
    if (Meant(m_, spec.org, spec.queue, spec.kind)) jobs_.push_back(spec.id);
  }
  void Add(const std::string& line, JobId id) {
    if (line != line_) {
      line_ = line;
      const auto key = IsKeptLine(line) ? LineKey::Parse(line) : Fail(ErrorCode::kNotFound, "of ledger class");
      meant_ = key && Meant(m_, key->org, key->queue, key->kind);
    }
    if (meant_) jobs_.push_back(id);
  }
  void Add(const std::vector<dispatch::Pass>& passes) {
    for (const dispatch::Pass& pass : passes)
      for (const dispatch::Claimed& job : pass.jobs) Add(pass.plan.line->name, job.spec->id);
  }
  // Each once, by id.
  std::vector<JobId> Take() {
    std::ranges::sort(jobs_);
    jobs_.erase(std::ranges::unique(jobs_).begin(), jobs_.end());
    return std::move(jobs_);
  }

 private:
  const wire::ListKept& m_;
  std::string line_;
  bool meant_ = false;  // what is in `line_`
  std::vector<JobId> jobs_;
};

}  // namespace

void Dispatcher::OnListKept(const wire::PeerId& peer, wire::ListKept& m) {
  Shard* shard = OwnShard(peer, m.request, m.org);
  if (shard == nullptr) return;
  KeptPlace place;
  if (!m.cursor.empty()) {
    auto said = KeptPlace::Parse(m.cursor);
    if (!said || said->epoch != shard->hold.epoch || !shard->listings.record.Has(said->record))
      return ListAnew(peer, m.request);
    place = *std::move(said);
    shard->listings.record.Use(now_);
    if (place.after) return AnswerOwn(*shard, peer, m, std::move(place), {});
  }
  if (shard->listings.waiting.size() >= kListingsMax)
    return Problem(peer, m.request, "limit",
                   fmt::format("{} questions for jobs of durability: redis wait for the queue: ask again", kListingsMax));
  shard->listings.waiting.push_back({.peer = peer, .message = std::move(m), .place = std::move(place)});
}

void Dispatcher::ListAnew(const wire::PeerId& peer, std::uint64_t request) {
  Problem(peer, request, std::string(Name(ErrorCode::kStale)),
          "the queue has changed too much since the first page: ask again from the beginning");
}

void Dispatcher::EmitListing(Shard& shard, std::vector<Command>& out) {
  if (shard.listings.waiting.empty() || shard.listings.asked || shard.phase != Phase::kReady) return;
  auto& [peer, m, place] = shard.listings.waiting.front();
  if (m.cursor.empty())
    place = {.epoch = shard.hold.epoch, .record = shard.listings.record.Use(now_), .after = {}, .queue = {}};
  shard.listings.asked = true;
  Execute(shard,
          queue_op::ListKept{.shard = shard.hold.shard,
                             .epoch = shard.hold.epoch,
                             .org = std::to_string(m.org.value()),
                             .cursor = place.queue,
                             .max = kListPageEntries},
          Op::Kind::kList, out);
}

void Dispatcher::OnListed(const Op& op, const QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  auto [peer, m, place] = std::move(shard.listings.waiting.front());
  shard.listings.waiting.pop_front();
  shard.listings.asked = false;
  std::vector<JobId> jobs;
  for (const QueueEntry& entry : reply.listed) {
    const auto key = LineKey::Parse(entry.line);
    if (!key) return TakeAnew(shard, key.error().message);
    if (Meant(m, key->org, key->queue, key->kind)) jobs.push_back(entry.id);
  }
  if (!shard.listings.record.Has(place.record)) return ListAnew(peer, m.request);
  shard.listings.record.Use(now_);
  if (jobs.size() > wire::kKeptListedMax)
    return Problem(
        peer, m.request, "rejected",
        fmt::format("more than {} jobs of durability: redis in one page: give a narrower filter", wire::kKeptListedMax));
  if (reply.cursor.empty()) return AnswerOwn(shard, peer, m, std::move(place), std::move(jobs));
  place.queue = reply.cursor;
  to_clients_.push_back(
      {.peer = peer,
       .message = wire::ListKeptReply{.request = m.request, .jobs = std::move(jobs), .cursor = place.ToString()}});
}

// After the queue's last page, with its jobs, or behind `place`: of what is here, by id, as much as a page takes. What leaves
// meanwhile for the queue is on record, so nothing is missed between two of these either.
void Dispatcher::AnswerOwn(const Shard& shard, const wire::PeerId& peer, const wire::ListKept& m, KeptPlace place,
                           std::vector<JobId> jobs) {
  std::vector<JobId> own = OwnKept(shard, m);
  if (place.after) own.erase(own.begin(), std::ranges::upper_bound(own, *place.after));
  const std::size_t room = std::min(kListOwnJobsMax, wire::kKeptListedMax - jobs.size());
  std::string cursor;
  if (own.size() > room) {
    own.resize(room);
    place.after = own.empty() ? place.after.value_or(JobId{}) : own.back();
    cursor = place.ToString();
  }
  jobs.insert(jobs.end(), own.begin(), own.end());
  to_clients_.push_back(
      {.peer = peer,
       .message = wire::ListKeptReply{.request = m.request, .jobs = std::move(jobs), .cursor = std::move(cursor)}});
}

// Wherever a job can be between its line and the ledger: about to start or running; claimed and not yet looked up; about to go
// back; in the hands of a cancel request; lost, and its first row is on the way. And what has gone back.
std::vector<JobId> Dispatcher::OwnKept(const Shard& shard, const wire::ListKept& m) {
  Collector all(m);
  for (const auto& [id, lease] : leases_)
    if (lease.kept && lease.shard == shard.hold.shard) all.Add(*lease.spec);
  lines_.ForEachBuffered([&](const LineIndex::Line& line) {
    if (line.shard == shard.hold.shard && Meant(m, line.key().org, line.key().queue, line.key().kind))
      buffer_.ForEach(line.buffered, [&](const ReadyBuffer::Job& job) { all.Add(line.name(), job.id); });
  });
  for (const Op& op : ops_)
    if (op.hold == shard.hold) all.Add(op.passes);
  all.Add(shard.puts.passes);
  for (const dispatch::HandedBack& back : shard.puts.handed_back) all.Add(back.entry.line, back.entry.id);
  for (const auto* entries : {&shard.puts.paged, &shard.requeue})
    for (const QueueEntry& entry : *entries) all.Add(entry.line, entry.id);
  for (const auto& [number, check] : shard.checks)
    for (const auto* entries : {&check.expired, &check.claimed})
      for (const JobEntry& entry : *entries) all.Add(entry.spec);
  for (const auto& [number, request] : cancel_requests_)
    if (request.hold == shard.hold)
      for (const auto& [id, entry] : request.found) all.Add(entry.spec);
  for (const auto& [id, piece] : pieces_)
    if (piece.hold == shard.hold)
      for (const auto& [spec, counters] : piece.lost)
        if (spec->options.durability == Durability::kRedis) all.Add(*spec);
  shard.listings.record.ForEach([&](const std::string& line, JobId id) { all.Add(line, id); });
  return all.Take();
}

}  // namespace millrace
