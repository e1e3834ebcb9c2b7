// The part of a Ledger that brokers and schedulers use, in memory and fenced by epochs like the real ones: for simulation and
// unit tests. Faults are asked for per call. Everything else answers kUnsupported. Not thread-safe.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/memory_schedules.h"

namespace millrace::test {

class MemoryLedger : public MemoryScheduleLedger {
 public:
  explicit MemoryLedger(const Clock& clock, std::uint16_t shard_count = 1)
      : MemoryScheduleLedger(clock), shard_count_(shard_count) {}

  std::function<void(const OwnerBatch&)> before_commit;  // sees every batch that passed the fence
  std::function<void(const FireBatch&)> before_fire;     // sees every batch of slots
  bool ignore_epochs = false;                            // a broken ledger, for mutants

  struct JobRows {
    JobSpec spec;
    std::vector<AttemptRow> attempts;
    std::optional<OutcomeRow> outcome;
  };
  std::map<JobId, JobRows> jobs;
  std::map<RunId, RunSpec> runs;
  std::map<RunId, std::vector<JobId>> jobs_of_run;
  std::map<RunId, RunOutcomeRow> run_outcomes;
  std::map<Uuid, CancelRow> cancels;
  std::uint32_t outbox_page_max = UINT32_MAX;  // items of one ReadOutbox
  std::size_t bytes_in_time = SIZE_MAX;        // payloads of one page of a rebuild or of the outbox; with more it times out
  std::set<RunId> outbox_runs;
  std::set<JobId> outbox_jobs;
  std::map<Uuid, std::vector<RunId>> outbox_batches;  // by the id of their first run
  bool together = false;                              // SubmitRun puts a run into a batch instead of outbox_runs
  Epoch EpochOf(ShardId shard) { return shards_[shard].epoch; }

  Result<void> Migrate(MonoTime) override { return {}; }

  Result<Epoch> TakeShard(ShardId id, OwnerId owner, std::string_view name, MonoTime) override {
    MILLRACE_TRY(Up());
    ShardStatus& shard = shards_[id];
    if (shard.owner && *shard.owner != owner && Fresh(shard.renewed_at))
      return Fail(ErrorCode::kConflict, "{}", shard.owner_name);
    shard = {.shard = id,
             .owner = owner,
             .owner_name = std::string(name),
             .epoch = Epoch{shard.epoch.value() + 1},
             .renewed_at = clock_.WallNow()};
    return shard.epoch;
  }
  Result<void> RenewShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime) override {
    MILLRACE_TRY(Up());
    for (const ShardHold& hold : holds) MILLRACE_TRY(Fence(hold, owner));
    for (const ShardHold& hold : holds) shards_[hold.shard].renewed_at = clock_.WallNow();
    return {};
  }
  Result<void> ReleaseShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime) override {
    for (const ShardHold& hold : holds)
      if (Fence(hold, owner)) shards_[hold.shard].owner.reset();
    return {};
  }
  Result<std::vector<ShardStatus>> Shards(MonoTime) override {
    MILLRACE_TRY(Up());
    std::vector<ShardStatus> all;
    for (const auto& [id, shard] : shards_) all.push_back(shard);
    return all;
  }

  Result<std::vector<OwnerId>> AnnounceBroker(OwnerId owner, const BrokerAddress&, bool leaving, MonoTime) override {
    MILLRACE_TRY(Up());
    brokers_[owner] = clock_.WallNow();
    if (leaving) brokers_.erase(owner);
    std::vector<OwnerId> alive;
    for (const auto& [id, at] : brokers_)
      if (Fresh(at)) alive.push_back(id);
    return alive;
  }

  Result<OwnerBatchResult> Commit(const OwnerBatch& batch, MonoTime) override {
    const LedgerFault f = fault ? fault() : LedgerFault::kNone;
    if (f == LedgerFault::kUnavailable) return Fail(ErrorCode::kUnavailable, "down");
    if (f == LedgerFault::kNotAppliedButUnknown) return Fail(ErrorCode::kMaybeApplied, "the answer is lost");
    for (const ShardHold& hold : batch.holds) MILLRACE_TRY(Fence(hold, batch.owner));
    if (!Storable(batch)) return Fail(ErrorCode::kInvalidArgument, "timestamp out of range");
    if (before_commit) before_commit(batch);
    OwnerBatchResult result;
    for (const RunSpec& run : batch.runs)
      if (!runs.emplace(run.id, run).second) result.duplicate_runs.push_back(run.id);
    const auto run_was_there = [&](const JobSpec& job) {
      return job.run && std::ranges::find(result.duplicate_runs, *job.run) != result.duplicate_runs.end();
    };
    for (const JobId& id : batch.unique_started) Free(id, {UniqueUntil::kStarted});
    for (const OutcomeRow& row : batch.outcomes) Free(row.report.job, {UniqueUntil::kStarted, UniqueUntil::kEnded});
    for (const JobSpec& job : batch.jobs) {
      if (const auto holder = HolderOf(job)) {
        result.conflicts.push_back({.job = job.id, .holder = *holder});
      } else if (run_was_there(job) || !AddJob(job)) {
        result.duplicate_jobs.push_back(job.id);
      }
    }
    for (const AttemptRow& row : batch.attempts) jobs.at(row.report.job).attempts.push_back(row);
    for (const OutcomeRow& row : batch.outcomes) {
      auto& stored = Rows(row).outcome;
      if (stored) {
        result.duplicate_outcomes.push_back(row.report.job);
      } else {
        stored = row;
        outbox_jobs.erase(row.report.job);
      }
    }
    for (const RunOutcomeRow& row : batch.run_outcomes) {
      run_outcomes.emplace(row.run, row);
      outbox_runs.erase(row.run);
    }
    for (const CancelRow& row : batch.cancels) cancels.emplace(row.item, row);
    for (const RunId& run : batch.outbox_done_runs)
      if (!cancels.contains(run.uuid)) outbox_runs.erase(run);
    for (const JobId& job : batch.outbox_done_jobs)
      if (!cancels.contains(job.uuid)) outbox_jobs.erase(job);
    for (const Uuid& item : batch.outbox_done_cancels) outbox_runs.erase(RunId{item}), outbox_jobs.erase(JobId{item});
    for (const Uuid& id : batch.outbox_done_batches) outbox_batches.erase(id);
    if (f == LedgerFault::kAppliedButUnknown) return Fail(ErrorCode::kMaybeApplied, "the answer is lost");
    return result;
  }

  Result<LiveJobs> LiveSingleJobs(ShardId shard, std::uint16_t, std::optional<JobId> after, const LivePage& page,
                                  MonoTime) override {
    MILLRACE_TRY(Up());
    LiveJobs live{.jobs = {}, .last = true};
    std::size_t bytes = 0;
    for (auto it = after ? jobs.upper_bound(*after) : jobs.begin(); it != jobs.end(); ++it) {
      if (it->second.spec.run || it->second.outcome || ShardOf(it->second.spec.org, shard_count_) != shard) continue;
      if (live.jobs.size() == page.jobs || bytes >= page.bytes) {
        live.last = false;
        break;
      }
      LiveJob job = Live(it->second);
      job.in_outbox = outbox_jobs.contains(it->first);
      if (page.outbox_ids_only && job.in_outbox && !job.cancelling) {
        job = {.spec = {}, .counters = {}, .next_run_at = {}, .in_outbox = true, .id_only = true};
        job.spec.id = it->first;
      }
      bytes += job.spec.payload.size();
      live.jobs.push_back(std::move(job));
    }
    MILLRACE_TRY(InTime(bytes));
    return live;
  }
  Result<std::vector<LiveRun>> LiveRuns(ShardId shard, std::uint16_t, std::optional<RunId> after, std::uint32_t limit,
                                        MonoTime) override {
    MILLRACE_TRY(Up());
    std::vector<LiveRun> live;
    std::size_t bytes = 0;
    for (auto it = after ? runs.upper_bound(*after) : runs.begin(); it != runs.end() && live.size() < limit; ++it) {
      if (run_outcomes.contains(it->first) || ShardOf(it->second.org, shard_count_) != shard) continue;
      LiveRun run = Live(it->second);
      if (!live.empty() && bytes + BytesOf(run) > kPageBytesMax) break;
      bytes += BytesOf(run);
      live.push_back(std::move(run));
    }
    MILLRACE_TRY(InTime(bytes));
    return live;
  }
  Result<Outbox> ReadOutbox(ShardId shard, std::uint16_t, std::uint32_t limit, MonoTime) override {
    MILLRACE_TRY(Up());
    limit = std::min(limit, outbox_page_max);
    MILLRACE_TRY_ASSIGN(Outbox out, OutboxOf(OutboxItems(shard), limit));
    const std::size_t batches_max = std::min<std::size_t>(kOutboxBatchesMax, outbox_page_max);
    for (const auto& [id, ids] : outbox_batches) {
      if (ShardOf(runs.at(ids.front()).org, shard_count_) != shard) continue;
      Outbox::Batch& batch = out.batches.emplace_back(id, std::vector<LiveRun>{});
      for (const RunId& run : ids)
        if (!run_outcomes.contains(run)) batch.runs.push_back(Live(runs.at(run)));
      if (out.batches.size() < batches_max) continue;
      out.more = true;
      break;
    }
    return out;
  }
  Result<Outbox> ReadOutboxCancels(ShardId shard, std::uint16_t, std::uint32_t limit, MonoTime) override {
    MILLRACE_TRY(Up());
    std::map<Uuid, bool> items = OutboxItems(shard);
    std::erase_if(items, [&](const auto& item) { return !cancels.contains(item.first); });
    return OutboxOf(items, std::min(limit, outbox_page_max));
  }
  Result<void> SubmitRun(const RunSpec& run, std::span<const JobSpec> specs, MonoTime) override {
    if (!runs.emplace(run.id, run).second) return {};
    for (const JobSpec& job : specs) AddJob(job);
    if (together)
      outbox_batches[run.id.uuid] = {run.id};
    else
      outbox_runs.insert(run.id);
    return {};
  }
  Result<SubmitJobsResult> SubmitJobs(std::span<const JobSpec> specs, MonoTime) override {
    SubmitJobsResult result;
    for (const JobSpec& job : specs) {
      if (const auto holder = HolderOf(job)) {
        result.conflicts.push_back({.job = job.id, .holder = *holder});
      } else if (AddJob(job)) {
        outbox_jobs.insert(job.id);
      } else {
        result.duplicates.push_back(job.id);
      }
    }
    return result;
  }
  Result<void> RequestCancel(std::span<const CancelRow> rows, MonoTime) override {
    for (const CancelRow& row : rows) {
      cancels.emplace(row.item, row);
      if (row.is_run && !run_outcomes.contains(RunId{row.item})) outbox_runs.insert(RunId{row.item});
      if (!row.is_run && !jobs.at(JobId{row.item}).outcome) outbox_jobs.insert(JobId{row.item});
    }
    return {};
  }
  Result<std::vector<JobId>> KnownJobs(std::span<const JobId> ids, MonoTime) override {
    MILLRACE_TRY(Up());
    std::set<JobId> known;
    for (const JobId& id : ids)
      if (jobs.contains(id)) known.insert(id);
    return std::vector<JobId>(known.begin(), known.end());
  }
  Result<std::vector<ItemState>> States(OrgId org, std::span<const Uuid> items, MonoTime) override {
    MILLRACE_TRY(Up());
    std::vector<ItemState> states(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      states[i].cancelling = cancels.contains(items[i]);
      if (const auto run = runs.find(RunId{items[i]}); run != runs.end() && run->second.org == org) {
        states[i].known = true;
        if (const auto end = run_outcomes.find(run->first); end != run_outcomes.end()) states[i].run_ended = end->second.state;
      }
      if (const auto job = jobs.find(JobId{items[i]}); job != jobs.end() && job->second.spec.org == org) {
        if ((states[i].of_run = job->second.spec.run)) continue;
        states[i].known = true;
        if (job->second.outcome)
          states[i].job_ended = job->second.outcome->state;
        else if ((states[i].live = Live(job->second)); !job->second.spec.options.has_sink)
          states[i].live->spec.payload.clear();
      }
    }
    return states;
  }
  Result<RunDetail> GetRun(OrgId, RunId id, MonoTime) override {
    MILLRACE_TRY(Up());
    const auto it = runs.find(id);
    if (it == runs.end()) return Fail(ErrorCode::kNotFound, "run {}: unknown", id.ToString());
    RunDetail detail;
    detail.summary.spec = it->second;
    if (const auto end = run_outcomes.find(id); end != run_outcomes.end()) {
      detail.summary.state = end->second.state;
      detail.summary.reason = end->second.reason;
    }
    for (const JobId& job : jobs_of_run[id])
      detail.jobs.push_back(
          {.spec = jobs.at(job).spec, .attempts = jobs.at(job).attempts, .outcome = jobs.at(job).outcome, .dead_action = {}});
    return detail;
  }

  std::map<std::pair<OrgId, std::string>, QueueSettings> queues;
  Result<QueueSettings> PutQueueSettings(const QueueSettings& settings, std::string_view, MonoTime) override {
    MILLRACE_TRY(Up());
    QueueSettings& stored = queues[{settings.org, settings.queue}];
    if (stored.revision != settings.revision)
      return Fail(ErrorCode::kConflict, "queue '{}': revision {} is stored", settings.queue, stored.revision);
    const QueueSettings before = std::exchange(stored, settings);
    ++stored.revision;
    NoteClassChange(before, clock_.WallNow(), stored);
    return stored;
  }
  Result<std::vector<QueueSettings>> QueuesOf(std::optional<OrgId> org, std::optional<ShardId> shard, MonoTime) override {
    MILLRACE_TRY(Up());
    std::vector<QueueSettings> all;
    for (const auto& [key, settings] : queues)
      if ((!org || key.first == *org) && (!shard || ShardOf(key.first, shard_count_) == *shard)) all.push_back(settings);
    return all;
  }

  Result<std::vector<std::string>> BusyPipelines(OrgId org, std::span<const std::string> pipelines, MonoTime) override {
    MILLRACE_TRY(Up());
    std::set<std::string> busy;
    for (const auto& [id, run] : runs)
      if (run.org == org && run.generation == 0 && !run_outcomes.contains(id) &&
          std::ranges::find(pipelines, run.pipeline) != pipelines.end())
        busy.insert(run.pipeline);
    return std::vector<std::string>(busy.begin(), busy.end());
  }
  Result<FireResult> Fire(const FireBatch& batch, MonoTime) override {
    const LedgerFault f = fault ? fault() : LedgerFault::kNone;
    if (f == LedgerFault::kUnavailable) return Fail(ErrorCode::kUnavailable, "down");
    if (f == LedgerFault::kNotAppliedButUnknown) return Fail(ErrorCode::kMaybeApplied, "the answer is lost");
    if (before_fire) before_fire(batch);
    FireResult result;
    std::map<ShardId, std::vector<RunId>> new_runs;
    for (const SlotDecision& decision : batch.decisions) {
      if (!schedules.Decide(decision.slot)) {
        result.already_decided.push_back(decision.slot.key);
      } else if (decision.run && runs.emplace(decision.run->id, *decision.run).second) {
        for (const JobSpec& job : decision.jobs) AddJob(job);
        new_runs[ShardOf(decision.run->org, shard_count_)].push_back(decision.run->id);
      }
    }
    for (auto& [shard, ids] : new_runs) {
      std::ranges::sort(ids);
      if (together)
        outbox_batches[ids.front().uuid] = ids;
      else
        outbox_runs.insert(ids.begin(), ids.end());
    }
    for (const FireBatch::Watermark& watermark : batch.watermarks) schedules.MoveWatermark(watermark);
    if (f == LedgerFault::kAppliedButUnknown) return Fail(ErrorCode::kMaybeApplied, "the answer is lost");
    return result;
  }

 private:
  // PostgreSQL's timestamps begin in 4713 BC.
  static bool Storable(const OwnerBatch& batch) {
    static constexpr WallTime kFirst = FromUnixMicros(-210'866'803'200'000'000);
    const auto row = [](const auto& r) { return r.report.started_at >= kFirst && r.report.finished_at >= kFirst; };
    return std::ranges::all_of(batch.attempts, row) && std::ranges::all_of(batch.outcomes, row) &&
           std::ranges::all_of(batch.jobs, [](const JobSpec& job) {
             return job.submitted_at >= kFirst && (!job.run_at || *job.run_at >= kFirst);
           });
  }
  Result<void> InTime(std::size_t bytes) const {
    if (bytes <= bytes_in_time) return {};
    return Fail(ErrorCode::kTimedOut, "{} bytes of payloads do not come in time", bytes);
  }
  static std::size_t BytesOf(const LiveRun& run) {
    std::size_t bytes = 0;
    for (const JobSpec& job : run.jobs) bytes += job.payload.size();
    return bytes;
  }
  // A job of `durability: redis` that succeeded at once has no row but its outcome.
  JobRows& Rows(const OutcomeRow& row) {
    const auto [it, fresh] = jobs.try_emplace(row.report.job);
    if (fresh) {
      it->second.spec.id = row.report.job;
      it->second.spec.org = row.org;
      it->second.spec.options.durability = Durability::kRedis;
    }
    return it->second;
  }
  // What lies far ahead says nothing: the clock was set back.
  bool Fresh(WallTime renewed) const {
    const Micros age = clock_.WallNow() - renewed;
    return age < kOwnershipTtl && age > -kOwnershipTtl;
  }
  Result<void> Fence(const ShardHold& hold, OwnerId owner) {
    const ShardStatus& shard = shards_[hold.shard];
    if (ignore_epochs || (shard.epoch == hold.epoch && shard.owner == owner)) return {};
    return Fail(ErrorCode::kStale, "shard {}: epoch {} is stored", hold.shard.value(), shard.epoch.value());
  }
  struct Key {
    UniqueUntil until;
    JobId job;
    WallTime end;
  };
  static std::string KeyOf(const JobSpec& job) {
    return fmt::format("{} {} {}", job.org.value(), job.queue, job.options.unique_key);
  }
  // Somebody else who holds the job's unique key.
  std::optional<JobId> HolderOf(const JobSpec& job) {
    if (job.run || job.options.unique_key.empty() || jobs.contains(job.id)) return std::nullopt;
    const auto it = unique_.find(KeyOf(job));
    if (it == unique_.end() || it->second.end <= clock_.WallNow()) return std::nullopt;
    return it->second.job;
  }
  void Free(JobId job, const std::set<UniqueUntil>& kinds) {
    std::erase_if(unique_, [&](const auto& entry) { return entry.second.job == job && kinds.contains(entry.second.until); });
  }
  bool AddJob(const JobSpec& job) {
    if (!jobs.emplace(job.id, JobRows{.spec = job, .attempts = {}, .outcome = {}}).second) return false;
    if (!job.run && !job.options.unique_key.empty())
      unique_[KeyOf(job)] = {.until = job.options.unique_until,
                             .job = job.id,
                             .end = job.options.unique_until == UniqueUntil::kWindow
                                        ? clock_.WallNow() + job.options.unique_window
                                        : WallTime::max()};
    if (job.run) jobs_of_run[*job.run].push_back(job.id);
    return true;
  }
  // One list, in id order: is it a run?
  std::map<Uuid, bool> OutboxItems(ShardId shard) const {
    std::map<Uuid, bool> items;
    for (const RunId& id : outbox_runs)
      if (ShardOf(runs.at(id).org, shard_count_) == shard) items.emplace(id.uuid, true);
    for (const JobId& id : outbox_jobs)
      if (ShardOf(jobs.at(id).spec.org, shard_count_) == shard) items.emplace(id.uuid, false);
    return items;
  }
  Result<Outbox> OutboxOf(const std::map<Uuid, bool>& items, std::uint32_t limit) {
    Outbox out;
    out.more = items.size() >= limit;
    std::size_t bytes = 0;
    for (const auto& [id, is_run] : items) {
      if (limit-- == 0) break;
      if (bytes >= kPageBytesMax) {
        out.more = true;
        break;
      }
      is_run ? out.runs.push_back(Live(runs.at(RunId{id}))) : out.jobs.push_back(Live(jobs.at(JobId{id})));
      bytes += is_run ? BytesOf(out.runs.back()) : out.jobs.back().spec.payload.size();
    }
    MILLRACE_TRY(InTime(bytes));
    return out;
  }
  LiveJob Live(const JobRows& rows) {
    LiveJob live{.spec = rows.spec,
                 .counters = {},
                 .next_run_at = {},
                 .cancelling = cancels.contains(rows.spec.id.uuid),
                 .last_token = {}};
    if (!rows.attempts.empty()) {
      live.counters = rows.attempts.back().counters;
      live.next_run_at = rows.attempts.back().next_run_at;
      live.last_token = rows.attempts.back().report.token;
    }
    return live;
  }
  LiveRun Live(const RunSpec& run) {
    LiveRun live{.spec = run,
                 .jobs = {},
                 .ended = {},
                 .counters = {},
                 .next_run_at = {},
                 .last_tokens = {},
                 .results = {},
                 .cancelling = cancels.contains(run.id.uuid),
                 .cancel_reason = {}};
    if (live.cancelling) live.cancel_reason = CancelReason(cancels.at(run.id.uuid).actor, cancels.at(run.id.uuid).reason);
    for (const JobId& id : jobs_of_run[run.id]) {
      const JobRows& rows = jobs.at(id);
      live.jobs.push_back(rows.spec);
      if (rows.outcome) live.ended[id] = rows.outcome->state;
      if (rows.outcome) live.results[id] = rows.outcome->report.result;
      if (rows.attempts.empty()) continue;
      live.counters[id] = rows.attempts.back().counters;
      live.next_run_at[id] = rows.attempts.back().next_run_at;
      live.last_tokens[id] = rows.attempts.back().report.token;
    }
    return live;
  }

  std::uint16_t shard_count_;
  std::map<ShardId, ShardStatus> shards_;
  std::map<OwnerId, WallTime> brokers_;
  std::map<std::string, Key> unique_;
};

}  // namespace millrace::test
