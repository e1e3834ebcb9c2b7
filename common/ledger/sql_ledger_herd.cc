#include <algorithm>

#include "common/base/check.h"
#include "common/ledger/sql_ledger.h"

// How an owner reads the runs of a herd: a row of the outbox names hundreds. Their ids were made one after the other, so their
// rows and jobs are read as a range of an index, which costs a fraction of as many probes (one in each partition for the jobs
// of a run). Only a range that holds exactly these runs is read so: nothing of anybody else is touched, and what they hold is
// bounded by their writer.

namespace millrace::ledger {
// Whole rows of the outbox, whose jobs their writer bounds.
Result<std::vector<Ledger::Outbox::Batch>> SqlLedger::BatchesOf(std::span<const std::pair<Uuid, std::string_view>> rows,
                                                                ShardId shard, MonoTime deadline) {
  std::vector<Outbox::Batch> batches;
  std::unordered_map<Uuid, std::size_t> place;
  std::vector<Uuid> ids;
  for (const auto& [id, runs] : rows) {
    for (std::size_t at = 0; at + sizeof(Uuid) <= runs.size(); at += sizeof(Uuid)) {
      ids.push_back(*Uuid::FromBytes(runs.substr(at, sizeof(Uuid))));
      place.emplace(ids.back(), batches.size());
    }
    batches.push_back({id, {}});
  }
  if (ids.empty()) return batches;
  std::ranges::sort(ids);
  const auto twice = std::ranges::unique(ids);
  ids.erase(twice.begin(), twice.end());
  std::optional<std::vector<LiveRun>> live;
  MILLRACE_TRY_ASSIGN(const bool range, AreARange(ids, shard, deadline));
  if (range) {
    MILLRACE_TRY_ASSIGN(live, RangeOfRuns(ids, deadline));
  }
  if (!live) {
    MILLRACE_TRY_ASSIGN(live, StillLive(std::move(ids), shard, deadline));
  }
  for (LiveRun& run : *live) batches[place.at(run.spec.id.uuid)].runs.push_back(std::move(run));
  return batches;
}

// Whether these runs, sorted, are all that lies between the first and the last of them, all of them live, and nobody has asked
// to stop one. (Only who owns the shard, and asks this, ends them; a prune leaves weeks with live runs alone; a request to stop
// that comes later has its own row in the outbox.)
Result<bool> SqlLedger::AreARange(std::span<const Uuid> runs, ShardId shard, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const Rows found,
      store_->Run(
          "select (select count(*) from (select 1 from run r where r.run >= $1 and r.run <= $2 limit $4) x), "
          "(select count(*) from (select 1 from live_run l where l.shard = $3 and l.run >= $1 and l.run <= $2 limit $4) y), "
          "coalesce((select 1 from cancel c where c.item >= $1 and c.item <= $2 limit 1), 0)",
          Params().Id(runs.front()).Id(runs.back()).Int(shard.value()).Int(static_cast<std::int64_t>(runs.size() + 1)),
          deadline));
  const auto all = static_cast<std::int64_t>(runs.size());
  return found[0][0].number == all && found[0][1].number == all && found[0][2].number == 0;
}

// REQUIRES: AreARange. Nothing: it is not what it was; they have to be looked at one by one.
Result<std::optional<std::vector<LiveRun>>> SqlLedger::RangeOfRuns(std::span<const Uuid> ids, MonoTime deadline) {
  const auto range = [&](std::size_t most) {
    return Params().Id(ids.front()).Id(ids.back()).Int(static_cast<std::int64_t>(most));
  };
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + store_->Columns(Table::kRun, "r") +
                                                       " from run r where r.run >= $1 and r.run <= $2 order by r.run limit $3",
                                                   range(ids.size() + 1), deadline));
  const std::size_t jobs_max = kOutboxBatchesMax * kOutboxBatchJobs + ids.size() + 1;
  MILLRACE_TRY_ASSIGN(const Rows jobs, store_->Run("select " + store_->Columns(Table::kJob, "j") +
                                                       " from job j where j.run >= $1 and j.run <= $2 order by j.run limit $3",
                                                   range(jobs_max), deadline));
  if (rows.size() != ids.size() || jobs.size() == jobs_max) return std::nullopt;
  std::vector<LiveRun> runs;
  runs.reserve(ids.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (UuidOf(rows[i][0]) != ids[i]) return std::nullopt;
    runs.emplace_back().spec = RunFrom(rows[i]);
  }
  std::vector<Uuid> job_ids;
  std::size_t at = 0;  // both come in the order of the runs
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    JobSpec job = JobFrom(jobs[i]);
    while (at < runs.size() && runs[at].spec.id != *job.run) ++at;
    if (at == runs.size()) return std::nullopt;
    job_ids.push_back(job.id.uuid);
    runs[at].jobs.push_back(std::move(job));
  }
  for (LiveRun& run : runs) std::ranges::sort(run.jobs, {}, &JobSpec::id);
  MILLRACE_TRY_ASSIGN(const bool begun, AnyProgress(job_ids, deadline));
  if (!begun) return runs;
  std::unordered_map<Uuid, std::size_t> run_of;
  for (std::size_t i = 0; i < runs.size(); ++i)
    for (const JobSpec& job : runs[i].jobs) run_of[job.id.uuid] = i;
  MILLRACE_TRY(LoadProgress(runs, run_of, deadline));
  return runs;
}

// Whether there is an attempt or an end in the range of these jobs; maybe of others. Named in the order in which a prune locks.
Result<bool> SqlLedger::AnyProgress(std::span<const Uuid> jobs, MonoTime deadline) {
  if (jobs.empty()) return false;
  const auto [first, last] = std::ranges::minmax_element(jobs);
  MILLRACE_TRY_ASSIGN(const Rows found,
                      store_->Run("select coalesce((select 1 from attempt a where a.job >= $1 and a.job <= $2 limit 1), 0) + "
                                  "coalesce((select 1 from outcome o where o.job >= $1 and o.job <= $2 limit 1), 0)",
                                  Params().Id(*first).Id(*last), deadline));
  return found[0][0].number != 0;
}

}  // namespace millrace::ledger
