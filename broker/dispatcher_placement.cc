// Jobs whose root no connected worker reaches: refused at submit, ended when they came another way.
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

void Dispatcher::LookForUnserved() {
  if (stopping_) return;
  std::vector<LineIndex::Line*> doomed;
  using Class = std::tuple<std::string_view, std::string_view, std::string_view>;
  std::map<Class, bool> served_classes;
  lines_.ForEachReady([&](LineIndex::Line& line) {
    const auto [known, first] = served_classes.try_emplace({line.key.queue, line.key.kind, line.key.root}, false);
    if (first)
      known->second = std::ranges::any_of(workers_, [&](const auto& entry) { return entry.second.reach.Serves(line.key); });
    const bool served = known->second;
    if (workers_.empty() || served) {
      line.unserved_since.reset();
      return;
    }
    if (!line.unserved_since) line.unserved_since = now_;
    if (now_ - *line.unserved_since < kUnreachableGrace) return;
    if (!Covered(line.key.root)) {
      doomed.push_back(&line);
    } else if (!std::exchange(line.warned, true)) {
      LogWarn("queue '{}', kind '{}', root '{}': jobs are ready, but no connected worker takes them", line.key.queue,
              line.key.kind, line.key.root);
    }
  });
  for (LineIndex::Line* line : doomed) EndLine(*line);
  EndUnservedFences();
}

// The queue says which jobs they are.
void Dispatcher::EndLine(LineIndex::Line& line) {
  const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(line.ready, kClaimJobsMax));
  doomed_.push_back({.shard = line.shard, .line = line.name, .key = line.key, .total = n, .split = {}});
  lines_.Remove(line, n, now_);
}

void Dispatcher::OnLineClaimed(const Op& op, QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  ClaimedAll(op, reply.claimed.size());
  const auto key = LineKey::Parse(op.line);
  if (!key) return TakeAnew(shard, key.error().message);
  const bool reached = workers_.empty() || Covered(key->root);  // somebody came meanwhile
  const bool kept = key->durability == Durability::kRedis;
  const std::string reason = fmt::format("no connected worker reaches '{}': {}", key->root, RootsOfWorkers());
  for (const QueueEntry& claimed : reply.claimed) {
    shard.budgets.Claimed(key->org, key->queue, std::nullopt);
    if (Leased(shard, claimed.id) || Left(shard, claimed.id)) continue;
    RunCoordinator::Job* job = claimed.body.empty() ? shard.runs.Find(claimed.id) : nullptr;
    if (claimed.body.empty() && (job == nullptr || IsTerminal(job->state) || job->state == JobState::kCancelling)) {
      shard.finish.push_back(claimed.id);
      continue;
    }
    JobEntry entry;
    if (job != nullptr) {
      entry = {.spec = *job->spec, .counters = job->counters};
    } else if (auto decoded = DecodeEntry(claimed.body, claimed.id, *key)) {
      entry = std::move(*decoded);
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
