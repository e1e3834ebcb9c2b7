#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <unordered_set>

#include "common/base/check.h"
#include "common/ledger/sql_ledger.h"

// Live runs and single jobs are found through live_run and live_job, which are written and emptied in the transactions that
// write the run, the job and their outcomes: a takeover costs what is live, not what is kept.

namespace millrace::ledger {
namespace {

constexpr std::int64_t kPageJobsMax = 20'000;  // of the runs in one page: a page is read well within a read's budget

struct Latest {
  Counters counters;
  WallTime next_run_at{};
  Token token;
};
constexpr std::string_view kLatestColumns = "a.job, a.deliveries, a.failures, a.crashes, a.next_run_at, a.token";

std::unordered_map<Uuid, Latest> LatestOf(const Rows& rows) {  // in token order: the last one counts
  std::unordered_map<Uuid, Latest> latest;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto r = rows[i];
    latest[UuidOf(r[0])] = {{static_cast<std::uint32_t>(r[1].number), static_cast<std::uint32_t>(r[2].number),
                             static_cast<std::uint32_t>(r[3].number)},
                            TimeOf(r[4]),
                            Token{static_cast<std::uint64_t>(r[5].number)}};
  }
  return latest;
}

// $1 are the ids, $2 and $3 their bounds: without these the database takes a few hundred ids for much of a table that has grown
// since it was last looked at, and reads all of it.
Params Bounded(std::vector<Uuid> ids) {
  const auto [low, high] = std::ranges::minmax(ids);
  return Params().Ids(std::move(ids)).Id(low).Id(high);
}
std::string WithoutPayload(std::string columns) {
  constexpr std::string_view kColumn = "j.payload";
  const auto at = columns.find(kColumn);
  MILLRACE_CHECK(at != std::string::npos, "no column {}", kColumn);
  return columns.replace(at, kColumn.size(), "case when 1 = 0 then j.payload end");
}
std::string WithinBounds(std::string_view column) { return fmt::format(" and {0} >= $2 and {0} <= $3", column); }

}  // namespace

Result<std::set<Uuid>> SqlLedger::Cancelling(std::vector<Uuid> items, MonoTime deadline) {
  return Existing(Table::kCancel, std::move(items), deadline);
}

Result<std::vector<LiveJob>> SqlLedger::LoadJobs(const Rows& jobs, MonoTime deadline) {
  std::vector<LiveJob> all;
  if (jobs.empty()) return all;
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    all.push_back({.spec = JobFrom(jobs[i]), .counters = {}, .next_run_at = {}});
    ids.push_back(all.back().spec.id.uuid);
  }
  MILLRACE_TRY_ASSIGN(const Rows attempts, store_->Run("select " + std::string(kLatestColumns) + " from attempt a where a.job" +
                                                           store_->In(1) + " order by a.job, a.token",
                                                       Params().Ids(ids), deadline));
  MILLRACE_TRY_ASSIGN(const std::set<Uuid> cancelling, Cancelling(std::move(ids), deadline));
  const auto latest = LatestOf(attempts);
  for (LiveJob& job : all) {
    job.cancelling = cancelling.contains(job.spec.id.uuid);
    if (const auto found = latest.find(job.spec.id.uuid); found != latest.end()) {
      job.counters = found->second.counters;
      job.next_run_at = found->second.next_run_at;
      job.last_token = found->second.token;
    }
  }
  return all;
}

Result<std::vector<LiveRun>> SqlLedger::LoadRuns(const Rows& runs, MonoTime deadline) {
  std::vector<LiveRun> all;
  if (runs.empty()) return all;
  std::unordered_map<Uuid, std::size_t> place;
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    LiveRun& run = all.emplace_back();
    run.spec = RunFrom(runs[i]);
    place[run.spec.id.uuid] = i;
    ids.push_back(run.spec.id.uuid);
  }
  const Params of_runs = Bounded(ids);
  MILLRACE_TRY_ASSIGN(const Rows cancels, store_->Run("select c.item, c.actor, c.reason from cancel c where c.item" +
                                                          store_->In(1) + WithinBounds("c.item"),
                                                      of_runs, deadline));
  for (std::size_t i = 0; i < cancels.size(); ++i) {
    LiveRun& run = all[place.at(UuidOf(cancels[i][0]))];
    run.cancelling = true;
    run.cancel_reason = CancelReason(cancels[i][1].bytes, cancels[i][2].bytes);
  }
  MILLRACE_TRY_ASSIGN(const Rows jobs, store_->Run("select " + store_->Columns(Table::kJob, "j") + " from job j where j.run" +
                                                       store_->In(1) + WithinBounds("j.run") + " order by j.job",
                                                   of_runs, deadline));
  std::unordered_map<Uuid, std::size_t> run_of;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    JobSpec job = JobFrom(jobs[i]);
    const std::size_t at = place.at(job.run->uuid);
    run_of[job.id.uuid] = at;
    all[at].jobs.push_back(std::move(job));
  }
  MILLRACE_TRY(LoadProgress(all, run_of, deadline));
  return all;
}

// What has become of the jobs of these runs; `run_of`: which run each is of.
Result<void> SqlLedger::LoadProgress(std::vector<LiveRun>& runs, const std::unordered_map<Uuid, std::size_t>& run_of,
                                     MonoTime deadline) {
  if (run_of.empty()) return {};
  std::vector<Uuid> jobs;
  for (const auto& [job, run] : run_of) jobs.push_back(job);
  std::ranges::sort(jobs);
  const Params of_jobs = Bounded(std::move(jobs));
  MILLRACE_TRY_ASSIGN(const Rows attempts, store_->Run("select " + std::string(kLatestColumns) + " from attempt a where a.job" +
                                                           store_->In(1) + WithinBounds("a.job") + " order by a.job, a.token",
                                                       of_jobs, deadline));
  MILLRACE_TRY_ASSIGN(const Rows ended,
                      store_->Run("select o.job, o.state from outcome o where o.job" + store_->In(1) + WithinBounds("o.job"),
                                  of_jobs, deadline));
  for (std::size_t i = 0; i < ended.size(); ++i) {
    const Uuid job = UuidOf(ended[i][0]);
    if (const auto at = run_of.find(job); at != run_of.end())
      runs[at->second].ended[JobId{job}] = static_cast<JobState>(ended[i][1].number);
  }
  for (const auto& [job, latest] : LatestOf(attempts)) {
    const auto at = run_of.find(job);
    if (at == run_of.end()) continue;
    runs[at->second].counters[JobId{job}] = latest.counters;
    runs[at->second].next_run_at[JobId{job}] = latest.next_run_at;
    runs[at->second].last_tokens[JobId{job}] = latest.token;
  }
  return LoadRoutingResults(runs, deadline);
}

// What decides where a stage that is routed by size goes: most runs have none.
Result<void> SqlLedger::LoadRoutingResults(std::vector<LiveRun>& runs, MonoTime deadline) {
  std::unordered_map<Uuid, LiveRun*> wanted;
  for (LiveRun& run : runs)
    for (const JobSpec& job : run.jobs) {
      if (job.options.route_rows <= 0 || run.ended.contains(job.id)) continue;
      for (const JobId& need : job.depends_on)
        if (const auto it = run.ended.find(need); it != run.ended.end() && it->second == JobState::kSucceeded)
          wanted[need.uuid] = &run;
    }
  if (wanted.empty()) return {};
  std::vector<Uuid> ids;
  for (const auto& [id, run] : wanted) ids.push_back(id);
  std::ranges::sort(ids);
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select o.job, o.result from outcome o where o.job" + store_->In(1),
                                                   Params().Ids(std::move(ids)), deadline));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Uuid job = UuidOf(rows[i][0]);
    wanted.at(job)->results[JobId{job}] = rows[i][1].bytes;
  }
  return {};
}

Result<LiveJobs> SqlLedger::LiveSingleJobs(ShardId shard, std::uint16_t shard_count, std::optional<JobId> after,
                                           const LivePage& page, MonoTime deadline) {
  MILLRACE_TRY(CheckShardCount(shard_count, deadline));
  // The lengths first: they are known without the payloads. The outbox is read once, as a range: a plan may be of a time when
  // it was empty, and would look through all of it for each job.
  MILLRACE_TRY_ASSIGN(
      const Rows found,
      store_->Run("with l as materialized (select job from live_job where shard = $1 and job > $2 order by job limit $3), "
                  "z as materialized (select job from l order by job desc limit 1) "
                  "select l.job, case when l.job in (select o.item from outbox o where o.shard = $1 and o.item > $2 and "
                  "o.item <= (select z.job from z) and o.is_run = 0) then 1 else 0 end, "
                  "coalesce((select length(j.payload) from job j where j.job = l.job limit 1), 0) from l order by l.job",
                  Params().Int(shard.value()).Id(after ? after->uuid : Uuid{}).Int(page.jobs), deadline));
  std::vector<Uuid> waiting;
  for (std::size_t i = 0; i < found.size(); ++i)
    if (found[i][1].number != 0) waiting.push_back(UuidOf(found[i][0]));
  const std::unordered_set<Uuid> in_outbox(waiting.begin(), waiting.end());
  std::set<Uuid> cancelling;
  if (page.outbox_ids_only && !waiting.empty()) {
    MILLRACE_TRY_ASSIGN(cancelling, Cancelling(std::move(waiting), deadline));
  }
  LiveJobs live{.jobs = {}, .last = found.size() < page.jobs};
  std::vector<Uuid> whole;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (bytes >= page.bytes) {
      live.last = false;
      break;
    }
    const Uuid id = UuidOf(found[i][0]);
    if (page.outbox_ids_only && in_outbox.contains(id) && !cancelling.contains(id)) {
      LiveJob& job = live.jobs.emplace_back();
      job.spec.id = JobId{id};
      job.in_outbox = job.id_only = true;
      continue;
    }
    bytes += static_cast<std::size_t>(found[i][2].number);
    whole.push_back(id);
  }
  if (whole.empty()) return live;
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + store_->Columns(Table::kJob, "j") + " from job j where j.job" +
                                                       store_->In(1) + WithinBounds("j.job") + " order by j.job",
                                                   Bounded(std::move(whole)), deadline));
  MILLRACE_TRY_ASSIGN(std::vector<LiveJob> jobs, LoadJobs(rows, deadline));
  for (LiveJob& job : jobs) job.in_outbox = in_outbox.contains(job.spec.id.uuid);
  const auto id = [](const LiveJob& job) { return job.spec.id; };
  std::vector<LiveJob> all;
  all.reserve(live.jobs.size() + jobs.size());
  std::ranges::merge(std::make_move_iterator(live.jobs.begin()), std::make_move_iterator(live.jobs.end()),
                     std::make_move_iterator(jobs.begin()), std::make_move_iterator(jobs.end()), std::back_inserter(all), {},
                     id, id);
  live.jobs = std::move(all);
  return live;
}

// Runs in this order until their jobs fill a page, by their number or their payloads; the first one always.
Result<bool> SqlLedger::CutByJobs(std::vector<Uuid>& runs, MonoTime deadline) {
  if (runs.size() < 2) return false;
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select j.run, count(*), sum(length(j.payload)) from job j where j.run" +
                                                       store_->In(1) + " group by j.run",
                                                   Params().Ids(runs), deadline));
  struct Size {
    std::int64_t jobs = 0, bytes = 0;
  };
  std::unordered_map<Uuid, Size> sizes;
  for (std::size_t i = 0; i < rows.size(); ++i)
    sizes[UuidOf(rows[i][0])] = {.jobs = rows[i][1].number, .bytes = rows[i][2].number};
  Size sum;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Size& size = sizes[runs[i]];
    sum.jobs += size.jobs;
    sum.bytes += size.bytes;
    if (i == 0 || (sum.jobs <= kPageJobsMax && sum.bytes <= static_cast<std::int64_t>(kPageBytesMax))) continue;
    runs.resize(i);
    return true;
  }
  return false;
}

// Single jobs in this order until their payloads fill a page.
Result<bool> SqlLedger::CutByBytes(std::vector<Uuid>& jobs, MonoTime deadline) {
  if (jobs.size() <= kPageBytesMax / kPayloadBytesMax) return false;
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select j.job, length(j.payload) from job j where j.job" + store_->In(1) +
                                                       WithinBounds("j.job") + " order by j.job",
                                                   Bounded(std::move(jobs)), deadline));
  jobs.clear();
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < rows.size() && bytes < kPageBytesMax; ++i) {
    bytes += static_cast<std::size_t>(rows[i][1].number);
    jobs.push_back(UuidOf(rows[i][0]));
  }
  return jobs.size() < rows.size();
}

Result<std::vector<LiveRun>> SqlLedger::RunsOf(std::vector<Uuid> ids, MonoTime deadline) {
  if (ids.empty()) return std::vector<LiveRun>{};
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + store_->Columns(Table::kRun, "r") + " from run r where r.run" +
                                                       store_->In(1) + WithinBounds("r.run") + " order by r.run",
                                                   Bounded(std::move(ids)), deadline));
  return LoadRuns(rows, deadline);
}

// What a rebuild found may have ended meanwhile: it must not be started from the outbox again.
Result<std::vector<LiveRun>> SqlLedger::StillLive(std::vector<Uuid> ids, ShardId shard, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows found,
                      store_->Run("select " + store_->Columns(Table::kRun, "r") + " from run r where r.run" + store_->In(1) +
                                      WithinBounds("r.run") +
                                      " and exists (select 1 from live_run l where l.shard = $4 and l.run = r.run) "
                                      "order by r.run",
                                  Bounded(std::move(ids)).Int(shard.value()), deadline));
  return LoadRuns(found, deadline);
}

Result<std::vector<LiveRun>> SqlLedger::LiveRuns(ShardId shard, std::uint16_t shard_count, std::optional<RunId> after,
                                                 std::uint32_t limit, MonoTime deadline) {
  MILLRACE_TRY(CheckShardCount(shard_count, deadline));
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select run from live_run where shard = $1 and run > $2 order by run limit $3",
                                  Params().Int(shard.value()).Id(after ? after->uuid : Uuid{}).Int(limit), deadline));
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < rows.size(); ++i) ids.push_back(UuidOf(rows[i][0]));
  MILLRACE_TRY(CutByJobs(ids, deadline));
  return RunsOf(std::move(ids), deadline);
}

Result<std::vector<JobId>> SqlLedger::KnownJobs(std::span<const JobId> ids, MonoTime deadline) {
  if (ids.empty()) return std::vector<JobId>{};
  std::vector<Uuid> asked;
  for (const JobId& id : ids) asked.push_back(id.uuid);
  // The range keeps the database from reading whole tables: ids that are asked about together were made together.
  const auto [low, high] = std::ranges::minmax(asked);
  std::set<Uuid> known;
  for (const std::string table : {"outcome", "job"}) {
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select job from " + table + " where job >= $2 and job <= $3 and job" + store_->In(1),
                                    Params().Ids(asked).Id(low).Id(high), deadline));
    for (std::size_t i = 0; i < rows.size(); ++i) known.insert(UuidOf(rows[i][0]));
  }
  std::vector<JobId> found;
  for (const Uuid& id : known) found.push_back(JobId{id});
  return found;
}

Result<void> SqlLedger::LoadPayloadsOfSinks(std::span<LiveJob> jobs, MonoTime deadline) {
  std::unordered_map<Uuid, LiveJob*> of_sinks;
  std::vector<Uuid> ids;
  for (LiveJob& job : jobs)
    if (job.spec.options.has_sink) of_sinks.emplace(ids.emplace_back(job.spec.id.uuid), &job);
  if (ids.empty()) return {};
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select j.job, j.payload from job j where j.job" + store_->In(1) + WithinBounds("j.job"),
                                  Bounded(std::move(ids)), deadline));
  for (std::size_t i = 0; i < rows.size(); ++i) of_sinks.at(UuidOf(rows[i][0]))->spec.payload = rows[i][1].bytes;
  return {};
}

Result<std::vector<ItemState>> SqlLedger::States(OrgId org, std::span<const Uuid> items, MonoTime deadline) {
  std::vector<ItemState> states(items.size());
  if (items.empty()) return states;
  std::unordered_map<Uuid, std::size_t> place;
  for (std::size_t i = 0; i < items.size(); ++i) place.emplace(items[i], i);  // the first of those that are named twice
  const Params ids = Params().Ids({items.begin(), items.end()}).Int(org.value());
  MILLRACE_TRY_ASSIGN(const Rows runs,
                      store_->Run("select r.run, o.state from run r left join run_outcome o on o.run = r.run where r.run" +
                                      store_->In(1) + " and r.org = $2",
                                  ids, deadline));
  for (std::size_t i = 0; i < runs.size(); ++i) {
    ItemState& state = states[place.at(UuidOf(runs[i][0]))];
    state.known = true;
    if (!runs[i][1].null) state.run_ended = static_cast<RunState>(runs[i][1].number);
  }
  MILLRACE_TRY_ASSIGN(const Rows ended, store_->Run("select o.job, o.state from outcome o where o.job" + store_->In(1) +
                                                        " and o.org = $2 and o.run is null",
                                                    ids, deadline));
  for (std::size_t i = 0; i < ended.size(); ++i) {
    ItemState& state = states[place.at(UuidOf(ended[i][0]))];
    state.known = true;
    state.job_ended = static_cast<JobState>(ended[i][1].number);
  }
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  // Without their payloads, which may be large: only a job with a sink is started once more.
  MILLRACE_TRY_ASSIGN(const Rows live, store_->Run("select " + WithoutPayload(store_->Columns(Table::kJob, "j")) +
                                                       " from live_job l join job j on j.job = l.job where l.job" +
                                                       store_->In(1) + " and l.org = $2 and l.shard = $3",
                                                   Params(ids).Int(ShardOf(org, shards).value()), deadline));
  MILLRACE_TRY_ASSIGN(std::vector<LiveJob> jobs, LoadJobs(live, deadline));
  MILLRACE_TRY(LoadPayloadsOfSinks(jobs, deadline));
  for (LiveJob& job : jobs) {
    ItemState& state = states[place.at(job.spec.id.uuid)];
    state.known = true;
    state.cancelling = job.cancelling;
    state.live = std::move(job);
  }
  MILLRACE_TRY_ASSIGN(const std::set<Uuid> cancelling, Cancelling({items.begin(), items.end()}, deadline));
  for (const Uuid& item : cancelling) states[place.at(item)].cancelling = true;
  std::vector<Uuid> unknown;
  for (const auto& [item, at] : place)
    if (!states[at].known) unknown.push_back(item);
  if (!unknown.empty()) {
    MILLRACE_TRY_ASSIGN(const Rows of_runs, store_->Run("select j.job, j.run from job j where j.job" + store_->In(1) +
                                                            " and j.org = $2 and j.run is not null",
                                                        Params().Ids(std::move(unknown)).Int(org.value()), deadline));
    for (std::size_t i = 0; i < of_runs.size(); ++i)
      states[place.at(UuidOf(of_runs[i][0]))].of_run = RunId{UuidOf(of_runs[i][1])};
  }
  for (std::size_t i = 0; i < items.size(); ++i)
    if (const std::size_t first = place.at(items[i]); first != i) states[i] = states[first];
  return states;
}

Result<Ledger::Outbox> SqlLedger::ReadOutbox(ShardId shard, std::uint16_t shard_count, std::uint32_t limit, MonoTime deadline) {
  MILLRACE_TRY(CheckShardCount(shard_count, deadline));
  // One question: the ledger may be far away.
  MILLRACE_TRY_ASSIGN(
      const Rows items,
      store_->Run("select x.item, x.is_run, cast(null as bytea) from (select item, is_run from outbox where shard = $1 "
                  "order by item limit $2) x union all select b.batch, 2, b.runs from (select batch, runs from outbox_batch "
                  "where shard = $1 order by batch limit $3) b",
                  Params().Int(shard.value()).Int(limit).Int(kOutboxBatchesMax), deadline));
  return OutboxOf(items, shard, limit, deadline);
}

Result<Ledger::Outbox> SqlLedger::ReadOutboxCancels(ShardId shard, std::uint16_t shard_count, std::uint32_t limit,
                                                    MonoTime deadline) {
  MILLRACE_TRY(CheckShardCount(shard_count, deadline));
  MILLRACE_TRY_ASSIGN(const Rows items, store_->Run("select item, is_run, cast(null as bytea) from outbox where shard = $1 and "
                                                    "cancel_requested = 1 order by item limit $2",
                                                    Params().Int(shard.value()).Int(limit), deadline));
  return OutboxOf(items, shard, limit, deadline);
}

// `items`: id, what it is (a job, a run, a batch), the ids of a batch.
Result<Ledger::Outbox> SqlLedger::OutboxOf(const Rows& items, ShardId shard, std::uint32_t limit, MonoTime deadline) {
  std::vector<Uuid> run_ids, job_ids;
  std::vector<std::pair<Uuid, std::string_view>> batches;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i][1].number == 2)
      batches.emplace_back(UuidOf(items[i][0]), items[i][2].bytes);
    else
      (items[i][1].number != 0 ? run_ids : job_ids).push_back(UuidOf(items[i][0]));
  }
  Outbox outbox;
  outbox.more = run_ids.size() + job_ids.size() >= limit || batches.size() >= kOutboxBatchesMax;
  MILLRACE_TRY_ASSIGN(const bool cut, CutByJobs(run_ids, deadline));
  outbox.more = outbox.more || cut;
  MILLRACE_TRY_ASSIGN(outbox.runs, RunsOf(std::move(run_ids), deadline));
  MILLRACE_TRY_ASSIGN(outbox.batches, BatchesOf(batches, shard, deadline));
  if (!job_ids.empty()) {
    MILLRACE_TRY_ASSIGN(const bool cut_jobs, CutByBytes(job_ids, deadline));
    outbox.more = outbox.more || cut_jobs;
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + store_->Columns(Table::kJob, "j") + " from job j where j.job" +
                                                         store_->In(1) + " order by j.job",
                                                     Params().Ids(std::move(job_ids)), deadline));
    MILLRACE_TRY_ASSIGN(outbox.jobs, LoadJobs(rows, deadline));
  }
  return outbox;
}

Result<std::vector<ShardContents>> SqlLedger::Contents(MonoTime deadline) {
  // With a limit: a plain `exists` may be answered from a list of all rows of the table, made anew each time.
  const auto any = [](std::string_view table) {
    return fmt::format("coalesce((select 1 from {} x where x.shard = s.shard limit 1), 0)", table);
  };
  static const std::string kSql = fmt::format("select s.shard, {}, {}, {} + {}, {} from shard_owner s", any("live_run"),
                                              any("live_job"), any("outbox"), any("outbox_batch"), any("queue_setting"));
  static const std::string kCall = "select shard, live_runs, live_jobs, outbox, queue_settings from shard_contents()";
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(store_->HasFunctions() ? kCall : kSql, {}, deadline));
  std::vector<ShardContents> all;
  for (std::size_t i = 0; i < rows.size(); ++i)
    all.push_back({.shard = ShardId{static_cast<std::uint16_t>(rows[i][0].number)},
                   .live_runs = rows[i][1].number != 0,
                   .live_jobs = rows[i][2].number != 0,
                   .outbox = rows[i][3].number != 0,
                   .queue_settings = rows[i][4].number != 0});
  return all;
}

}  // namespace millrace::ledger
