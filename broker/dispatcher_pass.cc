// Straight into flight: jobs that come into an empty line while a worker has credit for them. The plan claims them in the flush
// in which they are enqueued, so instead of putting them into the line and taking them out again, one operation of the queue
// has them in flight at once; and because the dispatcher still has them, nothing is read back. They count, and are judged, as
// what was put and claimed is: whatever could be ahead of them in their line makes them wait there.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "broker/dispatcher.h"

namespace millrace {
namespace {

struct LineOfFlush {
  std::uint64_t claimed = 0, added = 0;
  bool passes = true;
  std::vector<std::size_t> of;  // indexes of its passes
};

}  // namespace

// Whether a job that is ready now may find a worker in this very flush. A guess: what is kept for nothing costs an allocation.
bool Dispatcher::SpareCredit(const Shard& shard, std::optional<WallTime> run_at) {
  if (!Starts(shard) || (run_at && *run_at > wall_)) return false;
  if (!spare_credit_) {
    spare_credit_.emplace();
    for (const auto& [id, worker] : workers_) spare_credit_->all += worker.Credit();
    spare_credit_->left = spare_credit_->all;
  }
  if (spare_credit_->left == 0) return false;
  --spare_credit_->left;
  return true;
}

std::shared_ptr<const JobSpec> Dispatcher::AtHand(const Shard& shard, JobSpec& spec, std::optional<WallTime> run_at) {
  return SpareCredit(shard, run_at) ? std::make_shared<const JobSpec>(std::move(spec)) : nullptr;
}

// A claim that is under way may leave some of what it was promised in the line.
bool Dispatcher::Claiming(const Shard& shard, const std::string& line) { return shard.claiming.contains(line); }

// Takes out of this flush's claims and entries those that meet: the claims that would find nothing else in their line.
std::vector<dispatch::Pass> Dispatcher::TakePasses(Shard& shard, std::vector<QueueEntry>& passed) {
  std::vector<dispatch::Pass> passes;
  // What is being promoted goes ahead of what comes now, and the index does not know of it yet.
  if (claims_.empty() || !doomed_.empty() || shard.promoting) return passes;
  const ShardId id = shard.hold.shard;
  std::unordered_map<std::string, LineOfFlush> lines;
  for (const ClaimPlan& plan : claims_)
    if (plan.shard == id) lines[plan.line->name].claimed += plan.total;
  if (lines.empty()) return passes;
  std::vector<LineOfFlush*> line_of(shard.enqueue.size());
  for (std::size_t i = 0; i < shard.enqueue.size(); ++i) {
    const QueueEntry& entry = shard.enqueue[i];
    if (entry.run_at) continue;
    if (i > 0 && line_of[i - 1] != nullptr && entry.line == shard.enqueue[i - 1].line) {
      line_of[i] = line_of[i - 1];
    } else {
      const auto found = lines.find(entry.line);
      if (found == lines.end()) continue;
      line_of[i] = &found->second;
    }
    LineOfFlush& line = *line_of[i];
    if (line.added++ < line.claimed && !shard.enqueue_jobs[i].spec) line.passes = false;
  }
  for (auto& [name, line] : lines)
    line.passes = line.passes && line.added == lines_.Ready(id, name) + line.claimed && !shard.suspects.contains(name) &&
                  !Claiming(shard, name);
  for (ClaimPlan& plan : claims_) {
    if (plan.shard != id) continue;
    LineOfFlush& line = lines.at(plan.line->name);
    if (!line.passes) continue;
    line.of.push_back(passes.size());
    passes.push_back({.plan = std::exchange(plan, {}), .jobs = {}});
    passes.back().jobs.reserve(passes.back().plan.total);
  }
  if (passes.empty()) return passes;
  std::erase_if(claims_, [](const ClaimPlan& plan) { return plan.total == 0; });
  std::vector<QueueEntry> rest;
  for (std::size_t i = 0; i < shard.enqueue.size(); ++i) {
    LineOfFlush* line = line_of[i];
    if (line == nullptr || line->claimed == 0 || !line->passes) {
      rest.push_back(std::move(shard.enqueue[i]));
      continue;
    }
    --line->claimed;
    dispatch::Pass& pass = passes[line->of.front()];
    pass.jobs.push_back(std::move(shard.enqueue_jobs[i]));
    if (pass.jobs.size() == pass.plan.total) line->of.erase(line->of.begin());
    passed.push_back(std::move(shard.enqueue[i]));
  }
  shard.enqueue = std::move(rest);
  return passes;
}

void Dispatcher::OnPassed(const ShardHold& hold, dispatch::Pass& pass) {
  Shard& shard = *Current(hold);
  const LineKey& key = pass.plan.line->key;
  std::uint64_t started = 0;
  Check doubtful;
  for (dispatch::Claimed& job : pass.jobs) {
    const JobId id = job.spec->id;
    const RunCoordinator::Job* of_run = job.spec->run ? shard.runs.Find(id) : nullptr;
    const bool over =
        job.spec->run && (of_run == nullptr || IsTerminal(of_run->state) || of_run->state == JobState::kCancelling);
    const bool elsewhere = Leased(shard, id) || Left(shard, id);
    if (elsewhere || over) {
      shard.budgets.Claimed(key.org, key.queue, std::nullopt);
      if (!elsewhere) shard.finish.push_back(id);
      continue;
    }
    if (of_run != nullptr) job.counters = of_run->counters;
    if (StartClaimed(shard, pass.plan, std::move(job), false, doubtful)) ++started;
  }
  ClaimOver(shard, pass.plan, started, doubtful);
}

// What has come out of its line goes to a worker, or to those who have asked for it. True: it started.
bool Dispatcher::StartClaimed(Shard& shard, ClaimPlan& plan, dispatch::Claimed job, bool suspect, Check& doubtful) {
  const LineKey& key = plan.line->key;
  const bool kept = key.durability == Durability::kRedis;
  shard.budgets.Claimed(key.org, key.queue, job.spec->payload.size());
  if (kept && shard.wanted.contains(job.spec->id) &&
      HandOver(shard, {.spec = *job.spec, .counters = job.counters, .check = job.check}))
    return false;
  if (kept && (suspect || job.check)) {
    doubtful.claimed.push_back({.spec = *job.spec, .counters = job.counters, .check = job.check});
    return false;
  }
  return Deliver(shard, plan, std::move(job.spec), job.counters, kept);
}

void Dispatcher::ClaimOver(Shard& shard, ClaimPlan& plan, std::uint64_t started, Check& doubtful) {
  lines_.GiveBack(plan.line->key, plan.total - started - doubtful.claimed.size(), now_);
  if (started < plan.total) plan_needed_ = true;
  if (doubtful.claimed.empty()) return;
  doubtful.plan = std::move(plan);
  Ask(shard, std::move(doubtful));
}

}  // namespace millrace
