#include <algorithm>

#include "common/base/check.h"
#include "common/ledger/sql_ledger.h"

// How an owner reads the runs of a herd: a row of the outbox names hundreds. Their ids were made one after the other, so they
// are read as a range of an index, which costs a fraction of as many probes (one in each partition for the jobs of a run). Of
// a range in which nothing has ended, was tried or is being cancelled, nothing else needs to be asked.

namespace millrace::ledger {
namespace {

// Ids of others between theirs: a range with more is left alone.
constexpr std::size_t kStrangersPerRun = 3, kStrangersMin = 100;

std::size_t PlaceOf(const Uuid& run, std::span<const LiveRun> sorted, std::size_t hint) {
  for (std::size_t at = hint; at < std::min(hint + 2, sorted.size()); ++at)
    if (sorted[at].spec.id.uuid == run) return at;
  const auto found = std::ranges::lower_bound(sorted, run, {}, [](const LiveRun& r) { return r.spec.id.uuid; });
  const bool is_there = found != sorted.end() && found->spec.id.uuid == run;
  return is_there ? static_cast<std::size_t>(found - sorted.begin()) : sorted.size();
}

}  // namespace

// Whole rows of the outbox, whose jobs their writer bounds.
Result<std::vector<Ledger::Outbox::Batch>> SqlLedger::BatchesOf(std::span<const std::pair<Uuid, std::string_view>> rows,
                                                                ShardId shard, MonoTime deadline) {
  std::vector<Outbox::Batch> batches;
  std::vector<std::pair<Uuid, std::size_t>> wanted;  // with the batch that it is of
  for (const auto& [id, runs] : rows) {
    for (std::size_t at = 0; at + sizeof(Uuid) <= runs.size(); at += sizeof(Uuid))
      wanted.emplace_back(*Uuid::FromBytes(runs.substr(at, sizeof(Uuid))), batches.size());
    batches.push_back({id, {}});
    batches.back().runs.reserve(runs.size() / sizeof(Uuid));
  }
  if (wanted.empty()) return batches;
  std::ranges::sort(wanted);
  std::vector<Uuid> ids;
  for (const auto& [id, batch] : wanted) ids.push_back(id);
  MILLRACE_TRY_ASSIGN(auto live, UntouchedRuns(ids, deadline));
  if (!live) {
    MILLRACE_TRY_ASSIGN(live, StillLive(std::move(ids), shard, deadline));
  }
  auto at = wanted.begin();
  for (LiveRun& run : *live) {  // by id too
    at = std::find_if(at, wanted.end(), [&](const auto& w) { return w.first == run.spec.id.uuid; });
    MILLRACE_CHECK(at != wanted.end(), "run {} was not asked for", run.spec.id.ToString());
    batches[at->second].runs.push_back(std::move(run));
  }
  return batches;
}

// Those of the sorted ids that exist, by id, if they are as their writer left them: live, and nobody has begun anything.
// Nothing: they have to be looked at one by one.
Result<std::optional<std::vector<LiveRun>>> SqlLedger::UntouchedRuns(std::span<const Uuid> ids, MonoTime deadline) {
  const std::size_t runs_max = ids.size() * (1 + kStrangersPerRun) + kStrangersMin;
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select " + store_->Columns(Table::kRun, "r") +
                                      " from run r where r.run >= $1 and r.run <= $2 order by r.run limit $3",
                                  Params().Id(ids.front()).Id(ids.back()).Int(static_cast<std::int64_t>(runs_max)), deadline));
  if (rows.size() == runs_max) return std::nullopt;
  std::vector<LiveRun> runs;
  runs.reserve(ids.size());
  auto wanted = ids.begin();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Uuid run = UuidOf(rows[i][0]);
    wanted = std::find_if(wanted, ids.end(), [&](const Uuid& id) { return id >= run; });
    if (wanted != ids.end() && *wanted == run) runs.emplace_back().spec = RunFrom(rows[i]);
  }
  const std::size_t jobs_max = kOutboxBatchesMax * kOutboxBatchJobs + runs_max;
  MILLRACE_TRY_ASSIGN(const Rows jobs,
                      store_->Run("select " + store_->Columns(Table::kJob, "j") +
                                      " from job j where j.run >= $1 and j.run <= $2 order by j.run limit $3",
                                  Params().Id(ids.front()).Id(ids.back()).Int(static_cast<std::int64_t>(jobs_max)), deadline));
  if (jobs.size() == jobs_max) return std::nullopt;
  std::size_t at = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    JobSpec job = JobFrom(jobs[i]);
    const std::size_t of = PlaceOf(job.run->uuid, runs, at);
    if (of == runs.size()) continue;
    at = of;
    runs[at].jobs.push_back(std::move(job));
  }
  for (LiveRun& run : runs) std::ranges::sort(run.jobs, {}, &JobSpec::id);
  MILLRACE_TRY_ASSIGN(const bool untouched, Untouched(runs, deadline));
  if (!untouched) return std::nullopt;
  return runs;
}

// Whether there is no end, attempt or request to cancel in the range of these runs, sorted, and of their jobs.
Result<bool> SqlLedger::Untouched(std::span<const LiveRun> runs, MonoTime deadline) {
  if (runs.empty()) return true;
  Uuid first = runs.front().spec.id.uuid, last = first;  // of jobs; of a run without any, itself
  bool any = false;
  for (const LiveRun& run : runs)
    for (const JobSpec& job : run.jobs) {
      first = any ? std::min(first, job.id.uuid) : job.id.uuid;
      last = any ? std::max(last, job.id.uuid) : job.id.uuid;
      any = true;
    }
  MILLRACE_TRY_ASSIGN(
      const Rows found,
      store_->Run("select coalesce((select 1 from run_outcome r where r.run >= $1 and r.run <= $2 limit 1), 0) + "
                  "coalesce((select 1 from cancel c where c.item >= $1 and c.item <= $2 limit 1), 0) + "
                  "coalesce((select 1 from outcome o where o.job >= $3 and o.job <= $4 limit 1), 0) + "
                  "coalesce((select 1 from attempt a where a.job >= $3 and a.job <= $4 limit 1), 0)",
                  Params().Id(runs.front().spec.id.uuid).Id(runs.back().spec.id.uuid).Id(first).Id(last), deadline));
  return found[0][0].number == 0;
}

}  // namespace millrace::ledger
