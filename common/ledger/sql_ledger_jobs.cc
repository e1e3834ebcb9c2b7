#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <tuple>

#include "common/ledger/sql_ledger.h"

// Unique keys, what is done about dead jobs, and lists of jobs.
//
// A unique key is a row of live_unique, inserted like everything else as if it were new: the primary key decides between
// concurrent submits, and Prune finds out who was first.

namespace millrace::ledger {
namespace {

constexpr std::uint32_t kListLimitMax = 500;
constexpr std::size_t kLiveIdsMax = 100'000, kLiveIdsPerSelect = 2'000;
constexpr std::int64_t kExpiredPerWrite = 100;  // windows that are over and that nobody asks for again

constexpr std::string_view kLaterRuns =
    "slot where org = $1 and pipeline = $2 and schedule = $3 and slot = $4 and generation > $5 and run is not null "
    "order by generation desc limit 1";
Params ParamsOf(const SlotKey& k) {
  return Params().Int(k.org.value()).Text(k.pipeline).Text(k.schedule).Time(k.slot).Int(k.generation);
}

std::optional<SlotKey> SlotOf(const RunSpec& run) {
  if (!run.slot) return {};
  return SlotKey{
      .org = run.org, .pipeline = run.pipeline, .schedule = run.schedule, .slot = *run.slot, .generation = run.generation};
}

using UniqueName = std::tuple<std::int64_t, std::string_view, std::string_view>;
UniqueName NameOf(const JobSpec& job) { return {job.org.value(), job.queue, job.options.unique_key}; }
bool IsUnique(const JobSpec& job) { return !job.run && !job.options.unique_key.empty(); }
std::int64_t Number(UniqueUntil until) { return static_cast<std::uint8_t>(until); }

// The columns of a table for a list of rows: what can be large is left out.
std::string LightColumns(Table table, std::string_view alias) {
  std::string list;
  for (const Column& c : DefOf(table).columns) {
    const bool heavy = c.type == ColumnType::kBytes || c.type == ColumnType::kUuidList;
    list += (list.empty() ? "" : ", ") + (heavy ? std::string("null") : std::string(alias) + "." + std::string(c.name));
  }
  return list;
}

// The smallest id of a UUIDv7's time or later.
Uuid FirstIdOf(WallTime time) {
  Uuid id;
  const auto ms = static_cast<std::uint64_t>(std::max<std::int64_t>(0, ToUnixMicros(time) / 1000));
  for (std::size_t i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
  return id;
}

}  // namespace

Result<void> SqlLedger::AddUniqueKeys(const Batch& batch, WriteSet& set, MonoTime deadline) {
  if (!batch.unique_started.empty())
    set.others.push_back({"delete from live_unique where job" + store_->In(1) + " and until = $2",
                          Params().Ids(batch.unique_started).Int(Number(UniqueUntil::kStarted))});
  if (!batch.outcomes.empty()) {
    std::vector<Uuid> ended;
    for (const OutcomeRow* outcome : batch.outcomes)
      if (!outcome->run) ended.push_back(outcome->report.job.uuid);
    if (!ended.empty())
      set.others.push_back({"delete from live_unique where job" + store_->In(1) + " and until <> $2",
                            Params().Ids(std::move(ended)).Int(Number(UniqueUntil::kWindow))});
  }
  std::vector<const JobSpec*> unique;
  for (const JobSpec* job : batch.jobs)
    if (IsUnique(*job)) unique.push_back(job);
  if (unique.empty()) return {};
  // Everybody locks in the same order.
  std::ranges::stable_sort(unique, [](const JobSpec* a, const JobSpec* b) { return NameOf(*a) < NameOf(*b); });
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  bool windows = false;
  for (const JobSpec* job : unique) {
    const bool window = job->options.unique_until == UniqueUntil::kWindow;
    const std::int64_t until =
        window ? ToUnixMicros(now + job->options.unique_window) : std::numeric_limits<std::int64_t>::max();
    windows = windows || window;
    set.others.push_back(
        {"delete from live_unique where org = $1 and queue = $2 and key = $3 and until_us <= $4",
         Params().Int(job->org.value()).Text(job->queue).Text(job->options.unique_key).Int(ToUnixMicros(now))});
    set.others.push_back({"insert into live_unique (org, queue, key, job, until, until_us) values ($1, $2, $3, $4, $5, $6)",
                          Params()
                              .Int(job->org.value())
                              .Text(job->queue)
                              .Text(job->options.unique_key)
                              .Id(job->id.uuid)
                              .Int(Number(job->options.unique_until))
                              .Int(until)});
  }
  if (windows)
    set.others.push_back(
        {"delete from live_unique where job in (select u.job from live_unique u where u.until_us <= $1 "
         "order by u.until_us limit $2) and until_us <= $1",
         Params().Int(ToUnixMicros(now)).Int(kExpiredPerWrite)});
  return {};
}

Result<bool> SqlLedger::PruneUniqueKeys(Batch& batch, MonoTime deadline) {
  if (std::ranges::none_of(batch.jobs, [](const JobSpec* job) { return IsUnique(*job); })) return false;
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  std::set<Uuid> ending, starting(batch.unique_started.begin(), batch.unique_started.end());
  for (const OutcomeRow* outcome : batch.outcomes) ending.insert(outcome->report.job.uuid);
  std::map<UniqueName, JobId> first;
  std::vector<const JobSpec*> kept;
  for (const JobSpec* job : batch.jobs) {
    if (!IsUnique(*job)) {
      kept.push_back(job);
      continue;
    }
    MILLRACE_TRY_ASSIGN(
        const Rows rows,
        store_->Run("select job, until from live_unique where org = $1 and queue = $2 and key = $3 and until_us > $4",
                    Params().Int(job->org.value()).Text(job->queue).Text(job->options.unique_key).Int(ToUnixMicros(now)),
                    deadline));
    std::optional<JobId> holder;
    if (!rows.empty()) {
      const auto until = static_cast<UniqueUntil>(rows[0][1].number);
      const Uuid id = UuidOf(rows[0][0]);
      const bool freed = (until != UniqueUntil::kWindow && ending.contains(id)) ||  // in this very transaction
                         (until == UniqueUntil::kStarted && starting.contains(id));
      if (!freed) holder = JobId{id};
    }
    if (!holder)
      if (const auto [it, is_first] = first.emplace(NameOf(*job), job->id); !is_first) holder = it->second;
    if (holder)
      batch.conflicts.push_back({.job = job->id, .holder = *holder});
    else
      kept.push_back(job);
  }
  const bool pruned = kept.size() != batch.jobs.size();
  batch.jobs = std::move(kept);
  return pruned;
}

// A dead job that somebody has acted on takes its new job along; a new job that was not accepted takes its action along.
Result<bool> SqlLedger::PruneDeadActions(Batch& batch, MonoTime deadline) {
  if (batch.dead_actions.empty()) return false;
  if (batch.retry_of) {
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select new_job from dead_action where job = $1",
                                                     Params().Id(batch.retry_of->uuid), deadline));
    if (!rows.empty()) {
      batch.retried_as = RunId{UuidOf(rows[0][0])};
      batch.runs.clear();
      batch.jobs.clear();
      batch.dead_actions.clear();
      return true;
    }
  }
  std::vector<Uuid> ids;
  for (const DeadActionRow* action : batch.dead_actions) ids.push_back(action->job.uuid);
  MILLRACE_TRY_ASSIGN(std::set<Uuid> there, Existing(Table::kDeadAction, std::move(ids), deadline));
  std::set<JobId> dropped, refused;
  for (const UniqueConflict& conflict : batch.conflicts) refused.insert(conflict.job);
  const auto gone = std::erase_if(batch.dead_actions, [&](const DeadActionRow* action) {
    if (action->new_job && refused.contains(*action->new_job)) return true;
    if (there.insert(action->job.uuid).second) return false;
    batch.duplicate_actions.push_back(action->job);
    if (action->new_job) dropped.insert(*action->new_job);
    return true;
  });
  std::erase_if(batch.jobs, [&](const JobSpec* job) { return !job->run && dropped.contains(job->id); });
  return gone > 0;
}

// A row that is there already: inserted, it is refused like any other key that exists.
Statement UnlessLaterRun(const SlotKey& slot) {
  return {"insert into slot select * from " + std::string(kLaterRuns), ParamsOf(slot)};
}

// Of what repeats a job: the slot of that one's run or, where it is a single one that repeats another, of that one's.
Result<void> SqlLedger::GuardSlots(Batch& batch, MonoTime deadline) {
  using Asked = std::pair<Uuid, const DeadActionRow*>;  // a job or run, and the action that goes back to it
  const auto ids = [](const std::vector<Asked>& all) {
    std::vector<Uuid> out;
    for (const auto& [id, action] : all) out.push_back(id);
    return out;
  };
  std::vector<Asked> jobs, runs;
  for (const DeadActionRow* action : batch.dead_actions)
    if (action->new_job) jobs.emplace_back(action->job.uuid, action);
  for (int step = 0; !jobs.empty() && step < kRepeatsMax; ++step) {
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select " + LightColumns(Table::kJob, "j") + " from job j where j.job" + store_->In(1),
                                    Params().Ids(ids(jobs)), deadline));
    std::map<Uuid, JobSpec> found;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      JobSpec job = JobFrom(rows[i]);
      found.emplace(job.id.uuid, std::move(job));
    }
    std::vector<Asked> next;
    for (const auto& [id, action] : jobs) {
      const auto job = found.find(id);
      if (job == found.end() || job->second.org != action->org) continue;
      if (job->second.run)
        runs.emplace_back(job->second.run->uuid, action);
      else if (const auto& earlier = job->second.options.retry_of)
        next.emplace_back(earlier->uuid, action);
    }
    jobs = std::move(next);
  }
  if (runs.empty()) return {};
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select " + store_->Columns(Table::kRun, "r") + " from run r where r.run" + store_->In(1),
                                  Params().Ids(ids(runs)), deadline));
  std::map<Uuid, std::optional<SlotKey>> slots;
  for (std::size_t i = 0; i < rows.size(); ++i) slots.emplace(UuidOf(rows[i][0]), SlotOf(RunFrom(rows[i])));
  for (const auto& [run, action] : runs)
    if (const auto slot = slots.find(run); slot != slots.end() && slot->second)
      batch.guards.push_back({.action = action->job, .slot = *slot->second});
  return {};
}

// Called after PruneDeadActions: a guard goes with its action. An action whose slot ran again takes along what it was to make.
Result<bool> SqlLedger::PruneGuarded(Batch& batch, MonoTime deadline) {
  std::set<JobId> refused, dropped;
  std::erase_if(batch.guards, [&](const Batch::Guard& guard) {
    return std::ranges::none_of(batch.dead_actions, [&](const auto* action) { return action->job == guard.action; });
  });
  for (const auto& [action, slot] : batch.guards) {
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select generation, run from " + std::string(kLaterRuns), ParamsOf(slot), deadline));
    if (rows.empty()) continue;
    LaterRun& later = batch.later.emplace_back(action.uuid, slot, RunId{UuidOf(rows[0][1])});
    later.slot.generation = static_cast<std::uint32_t>(rows[0][0].number);
    refused.insert(action);
  }
  if (refused.empty()) return false;
  std::erase_if(batch.guards, [&](const Batch::Guard& guard) { return refused.contains(guard.action); });
  if (batch.retry_of) {
    batch.runs.clear();
    batch.jobs.clear();
    batch.dead_actions.clear();
    return true;
  }
  std::erase_if(batch.dead_actions, [&](const DeadActionRow* action) {
    if (!refused.contains(action->job)) return false;
    if (action->new_job) dropped.insert(*action->new_job);
    return true;
  });
  std::erase_if(batch.jobs, [&](const JobSpec* job) { return dropped.contains(job->id); });
  return true;
}

Result<RequeueResult> SqlLedger::RequeueDead(const Requeue& requeue, MonoTime deadline) {
  Batch batch;
  batch.outbox = batch.jobs_follow_runs = true;
  if (requeue.run) batch.runs.push_back(&*requeue.run);
  for (const JobSpec& job : requeue.jobs) batch.jobs.push_back(&job);
  for (const DeadActionRow& action : requeue.actions) batch.dead_actions.push_back(&action);
  // The retry of a run is a row among the actions, under the run's id: its key decides who was first.
  DeadActionRow retry;
  if (requeue.run && requeue.retry) {
    retry = {.job = JobId{requeue.retry->of.uuid},
             .org = requeue.run->org,
             .action = DeadAction::kRequeued,
             .new_job = JobId{requeue.run->id.uuid},
             .actor = requeue.retry->actor,
             .reason = requeue.retry->reason,
             .at = requeue.retry->at};
    batch.dead_actions.push_back(&retry);
    batch.retry_of = requeue.retry->of;
    if (const auto slot = SlotOf(*requeue.run)) batch.guards.push_back({.action = retry.job, .slot = *slot});
  }
  if (batch.runs.empty() && batch.jobs.empty() && batch.dead_actions.empty()) return RequeueResult{};
  if (!requeue.run) MILLRACE_TRY(GuardSlots(batch, deadline));
  if (requeue.preview)
    MILLRACE_TRY(Prune(batch, deadline));
  else
    MILLRACE_TRY(Write(batch, deadline));
  return RequeueResult{.retried_as = batch.retried_as,
                       .already_done = std::move(batch.duplicate_actions),
                       .conflicts = std::move(batch.conflicts),
                       .later = std::move(batch.later)};
}

Result<std::vector<JobSummary>> SqlLedger::ListJobs(const JobFilter& filter, MonoTime deadline) {
  if (!filter.live || !filter.live_of_runs) return SelectJobs(filter, {}, deadline);
  const std::size_t limit = std::clamp(filter.limit, 1u, kListLimitMax);
  std::vector<JobSummary> all;
  JobFilter rest = filter;
  while (true) {
    MILLRACE_TRY_ASSIGN(const std::vector<Uuid> ids, LiveJobIds(rest, deadline));
    for (std::size_t at = 0; at < ids.size(); at += kLiveIdsPerSelect) {
      const auto part = std::span(ids).subspan(at, std::min(kLiveIdsPerSelect, ids.size() - at));
      MILLRACE_TRY_ASSIGN(auto found, SelectJobs(rest, {part.begin(), part.end()}, deadline));
      std::ranges::move(found, std::back_inserter(all));
      if (all.size() < limit) continue;
      all.resize(limit);
      return all;
    }
    if (ids.size() < kLiveIdsMax) return all;
    rest.before = JobId{ids.back()};
  }
}

// The newest jobs that are single and live, or of a run that is: of these some have ended. Step by step: with their outcomes,
// or their runs, beside them the planner reads the whole history.
Result<std::vector<Uuid>> SqlLedger::LiveJobIds(const JobFilter& filter, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  const std::string shard = std::to_string(ShardOf(filter.org, shards).value());
  MILLRACE_TRY_ASSIGN(const Rows live, store_->Run("select run from live_run where shard = " + shard, {}, deadline));
  std::vector<Uuid> runs, ids;
  for (std::size_t i = 0; i < live.size(); ++i) runs.push_back(UuidOf(live[i][0]));
  const auto newest = [&](const std::string& from, Params params, int next) -> Result<void> {
    std::string sql = "select job from " + from;
    if (filter.since) sql += " and job >= $" + std::to_string(next++), params.Id(FirstIdOf(*filter.since));
    if (filter.before) sql += " and job < $" + std::to_string(next++), params.Id(filter.before->uuid);
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run(sql + " order by job desc limit " + std::to_string(kLiveIdsMax), params, deadline));
    for (std::size_t i = 0; i < rows.size(); ++i) ids.push_back(UuidOf(rows[i][0]));
    return {};
  };
  MILLRACE_TRY(newest("live_job where shard = " + shard, {}, 1));
  if (!runs.empty()) MILLRACE_TRY(newest("job where run" + store_->In(1), Params().Ids(std::move(runs)), 2));
  std::ranges::sort(ids, std::greater());
  ids.resize(std::min(ids.size(), kLiveIdsMax));
  return ids;
}

// With `among`: those of them that have not ended.
Result<std::vector<JobSummary>> SqlLedger::SelectJobs(const JobFilter& filter, std::vector<Uuid> among, MonoTime deadline) {
  const bool ended = filter.state || filter.open || filter.error_class;
  std::string where = "j.org = $1";
  Params params;
  params.Int(filter.org.value());
  int next = 2;
  const auto add = [&](std::string_view condition) { where += " and " + std::string(condition) + std::to_string(next++); };
  std::string from = "job j";
  if (!among.empty()) {
    where += " and o.job is null and j.job" + store_->In(next++);
    params.Ids(std::move(among));
  } else if (filter.live) {  // few, however long the history is
    MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
    from = "live_job l join job j on j.job = l.job";
    add("l.shard = $"), params.Int(ShardOf(filter.org, shards).value());
  }
  if (filter.before) add("j.job < $"), params.Id(filter.before->uuid);
  if (filter.since) add("j.job >= $"), params.Id(FirstIdOf(*filter.since));
  if (filter.queue) add("j.queue = $"), params.Text(*filter.queue);
  if (filter.kind) add("j.kind = $"), params.Text(*filter.kind);
  if (filter.error_class) add("o.error_class = $"), params.Text(*filter.error_class);
  const auto state = filter.open ? std::optional(JobState::kDead) : filter.state;
  // Written out, so that the index over dead jobs can be used.
  if (state) where += " and o.state = " + std::to_string(static_cast<int>(*state));
  if (filter.open) where += " and d.job is null";
  const std::string sql = "select " + LightColumns(Table::kJob, "j") + ", " + LightColumns(Table::kOutcome, "o") + ", " +
                          LightColumns(Table::kDeadAction, "d") + " from " + from + (ended ? " " : " left ") +
                          "join outcome o on o.job = j.job left join dead_action d on d.job = j.job where " + where +
                          " order by j.job desc limit " + std::to_string(std::clamp(filter.limit, 1u, kListLimitMax));
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql, params, deadline));
  const std::size_t outcome_at = DefOf(Table::kJob).columns.size();
  const std::size_t action_at = outcome_at + DefOf(Table::kOutcome).columns.size();
  std::vector<JobSummary> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = rows[i];
    JobSummary& job = all.emplace_back();
    job.spec = JobFrom(row);
    if (!row[outcome_at].null) job.outcome = OutcomeFrom(row.subspan(outcome_at));
    if (!row[action_at].null) job.dead_action = DeadActionFrom(row.subspan(action_at));
  }
  return all;
}

}  // namespace millrace::ledger
