// Jobs whose root no connected worker reaches: refused at submit, ended when they came another way. And those that wait because
// no connected worker takes them: listed.
#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "common/base/log.h"

namespace millrace {
namespace {

constexpr std::size_t kWorkersNamedMax = 5;
constexpr std::size_t kRootsNamedMax = 5;
constexpr std::size_t kUnservedBytesMax = 1u << 20;  // names in one answer

}  // namespace

bool Dispatcher::Covered(std::string_view root) const {
  return root.empty() || std::ranges::any_of(workers_, [&](const auto& entry) { return entry.second.reach.Covers(root); });
}

std::string Dispatcher::RootsOfWorkers() const {
  std::string text;
  std::size_t named = 0;
  for (const auto& [id, worker] : workers_) {
    if (named++ == kWorkersNamedMax) return text + fmt::format(", and {} more", workers_.size() - kWorkersNamedMax);
    const auto& roots = worker.reach.roots;
    const auto shown = static_cast<std::ptrdiff_t>(std::min(roots.size(), kRootsNamedMax));
    if (!text.empty()) text += ", ";
    text += fmt::format("'{}' reaches {}{}", worker.name, fmt::join(roots.begin(), roots.begin() + shown, " "),
                        roots.size() > kRootsNamedMax ? " ..." : "");
  }
  return text;
}

// With no worker at all nothing is known yet: the job waits.
std::optional<std::string> Dispatcher::OutOfReach(const std::vector<JobSpec>& jobs) const {
  if (workers_.empty()) return std::nullopt;
  std::unordered_map<std::string_view, bool> covered;
  for (const JobSpec& job : jobs) {
    const auto [it, first] = covered.try_emplace(job.root, false);
    if (first) it->second = Covered(job.root);
    if (it->second) continue;
    return fmt::format("{}: no connected worker reaches '{}': {}",
                       job.stage.empty() ? fmt::format("job {}", job.id.ToString()) : fmt::format("stage '{}'", job.stage),
                       job.root, RootsOfWorkers());
  }
  return std::nullopt;
}

bool Dispatcher::Served(const LineKey& line) const {
  return std::ranges::any_of(workers_, [&](const auto& entry) { return entry.second.reach.Serves(line); });
}

void Dispatcher::OnListUnserved(const wire::PeerId& peer, const wire::ListUnserved& m) {
  if (OwnShard(peer, m.request, m.org) == nullptr) return;
  using Class = std::tuple<std::string_view, std::string_view, std::string_view>;
  std::map<Class, wire::ListUnservedReply::Item> items;
  std::map<Class, bool> served_classes;
  lines_.ForEachReady([&](const LineIndex::Line& line) {
    if (line.key().org != m.org) return;
    const Class name{line.key().queue, line.key().kind, line.key().root};
    const auto [known, first] = served_classes.try_emplace(name, false);
    if (first) known->second = Served(line.key());
    if (known->second) return;
    wire::ListUnservedReply::Item& item = items[name];
    item.ready += line.ready;
    if (!line.unserved) return;
    const WallTime since = wall_ - (now_ - line.unserved->alone_since);
    item.since = item.since ? std::min(*item.since, since) : since;
  });
  wire::ListUnservedReply reply{.request = m.request, .items = {}, .more = false, .workers = workers_.size()};
  std::size_t bytes = 0;
  for (auto& [name, item] : items) {
    bytes += std::get<0>(name).size() + std::get<1>(name).size() + std::get<2>(name).size();
    if (reply.items.size() == kQueuesListedMax || bytes > kUnservedBytesMax) {
      reply.more = true;
      break;
    }
    std::tie(item.queue, item.kind, item.root) = name;
    reply.items.push_back(std::move(item));
  }
  to_clients_.push_back({.peer = peer, .message = std::move(reply)});
}

void Dispatcher::LookForUnserved() {
  if (stopping_) return;
  std::vector<LineIndex::Line*> doomed;
  using Class = std::tuple<std::string_view, std::string_view, std::string_view>;
  std::map<Class, bool> served_classes;
  lines_.ForEachReady([&](LineIndex::Line& line) {
    const auto [known, first] = served_classes.try_emplace({line.key().queue, line.key().kind, line.key().root}, false);
    if (first) known->second = Served(line.key());
    const bool served = known->second;
    if (served) return line.unserved.reset();
    if (!line.unserved)
      line.unserved =
          std::make_unique<LineIndex::Unserved>(LineIndex::Unserved{.alone_since = now_, .unserved_since = std::nullopt});
    auto& since = line.unserved->unserved_since;
    if (workers_.empty()) return since.reset();
    if (!since) since = now_;
    if (now_ - *since < kUnreachableGrace) return;
    if (!Covered(line.key().root)) {
      doomed.push_back(&line);
    } else if (!std::exchange(line.warned, true)) {
      LogWarn("queue '{}', kind '{}', root '{}': jobs are ready, but no connected worker takes them", line.key().queue,
              line.key().kind, line.key().root);
    }
  });
  for (LineIndex::Line* line : doomed) EndLine(*line);
  EndUnservedFences();
}

// The queue says which jobs they are.
void Dispatcher::EndLine(LineIndex::Line& line) {
  Shard& shard = shards_.at(line.shard);
  TakeBack(shard);
  PageOut(shard, line.name());
  const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(line.ready, kClaimJobsMax));
  doomed_.push_back({.shard = line.shard, .line = line.ref, .total = n, .split = {}});
  lines_.Remove(line, n, now_);
}

void Dispatcher::OnLineClaimed(const Op& op, QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  ClaimedAll(op.plan, reply.claimed.size());
  const LineKey& key = op.plan.line->key;
  const bool reached = workers_.empty() || Covered(key.root);  // somebody came meanwhile
  const bool kept = key.durability == Durability::kRedis;
  const std::string reason = fmt::format("no connected worker reaches '{}': {}", key.root, RootsOfWorkers());
  for (const QueueEntry& claimed : reply.claimed) {
    shard.budgets.Claimed(key.org, key.queue, std::nullopt);
    if (Leased(shard, claimed.id) || Left(shard, claimed.id)) continue;
    RunCoordinator::Job* job = claimed.body.empty() ? shard.runs.Find(claimed.id) : nullptr;
    if (claimed.body.empty() && (job == nullptr || IsTerminal(job->state) || job->state == JobState::kCancelling)) {
      shard.finish.push_back(claimed.id);
      continue;
    }
    JobEntry entry;
    if (job != nullptr) {
      entry = {.spec = *job->spec, .counters = job->counters};
    } else if (auto decoded = DecodeEntry(claimed.body, claimed.id, key)) {
      entry = std::move(*decoded);
    } else if (kept) {
      EndDamaged(shard, key, claimed.id, decoded.error());
      continue;
    } else {
      return TakeAnew(shard, decoded.error().message);
    }
    if (kept && HandOver(shard, entry)) continue;
    if (reached) {
      if (kept)
        EnqueueKept(shard, entry.spec, std::nullopt, true, entry.check);
      else
        Enqueue(shard, entry.spec, entry.counters, std::nullopt, true);
      continue;
    }
    Piece& piece = OpenPiece(shard, shard.progress_piece);
    OutcomeRow row = UnrunOutcome(entry.spec, entry.counters, JobState::kDead, "unreachable_input", reason);
    piece.unleased.push_back(claimed.id);
    if (job == nullptr) shard.settling[claimed.id] = {.org = entry.spec.org};
    if (kept) KeepSpec(piece, entry.spec);
    if (job != nullptr) AppendEffects(shard, piece, shard.runs.JobUnplaceable(claimed.id, reason));
    piece.rows.outcomes.push_back(std::move(row));
  }
}

}  // namespace millrace
