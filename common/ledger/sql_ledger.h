// Ledger on a SqlStore: everything that is the same for PostgreSQL and SQLite. Internal to common/ledger.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/ledger/ledger.h"
#include "common/ledger/sql_store.h"

namespace millrace::ledger {

// What one transaction is to add. Rows whose keys exist are taken out and reported, never overwritten.
struct Batch {
  std::span<const ShardHold> holds;
  std::optional<OwnerId> owner;
  std::vector<const PipelineVersion*> versions;
  std::vector<const SlotRow*> slots;
  std::vector<const RunSpec*> runs;
  std::vector<const JobSpec*> jobs;
  std::vector<const AttemptRow*> attempts;
  std::vector<const OutcomeRow*> outcomes;
  std::vector<const RunOutcomeRow*> run_outcomes;
  std::vector<const CancelRow*> cancels;
  std::vector<const QueueSettingRow*> queue_settings;
  std::vector<const BackfillRow*> backfills;
  std::vector<const DeadActionRow*> dead_actions;
  std::vector<const PrunedChain*> pruned;
  std::vector<Uuid> unique_started;
  std::vector<Uuid> outbox_done, outbox_done_cancels, outbox_done_batches;
  std::vector<Statement> others;
  bool outbox = false;            // runs and single jobs get outbox rows
  bool outbox_batches = false;    // many runs get one together
  bool jobs_follow_runs = false;  // a run that is taken out takes its jobs along, a slot its run
  struct Guard {                  // nothing is written as long as the slot has a run in a later generation
    JobId action;                 // of dead_actions: what it repeats is of this slot
    SlotKey slot;
  };
  std::vector<Guard> guards;

  std::vector<RunId> duplicate_runs;
  std::vector<JobId> duplicate_jobs, duplicate_outcomes;
  std::vector<JobId> duplicate_actions;
  std::optional<RunId> retry_of, retried_as;  // the run that batch.runs repeats; it was repeated before
  std::vector<UniqueConflict> conflicts;
  std::vector<LaterRun> later;
  std::vector<SlotKey> duplicate_slots;
  bool version_exists = false;
  bool setting_exists = false;
  bool generation_exists = false;
};

class SqlLedger final : public Ledger {
 public:
  SqlLedger(std::unique_ptr<SqlStore> store, const LedgerOptions& options);

  Result<void> Migrate(MonoTime deadline) override;
  Result<WallTime> Now(MonoTime deadline) override { return store_->Now(deadline); }

  Result<Epoch> TakeShard(ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline) override;
  Result<void> RenewShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) override;
  Result<void> ReleaseShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) override;
  Result<std::vector<ShardStatus>> Shards(MonoTime deadline) override;
  Result<std::vector<OwnerId>> AnnounceBroker(OwnerId owner, const BrokerAddress& broker, bool leaving,
                                              MonoTime deadline) override;
  Result<std::map<OwnerId, BrokerAddress>> LivingBrokers(MonoTime deadline) override;

  Result<OwnerBatchResult> Commit(const OwnerBatch& batch, MonoTime deadline) override;

  Result<LiveJobs> LiveSingleJobs(ShardId shard, std::uint16_t shard_count, std::optional<JobId> after, const LivePage& page,
                                  MonoTime deadline) override;
  Result<std::vector<LiveRun>> LiveRuns(ShardId shard, std::uint16_t shard_count, std::optional<RunId> after,
                                        std::uint32_t limit, MonoTime deadline) override;
  Result<Outbox> ReadOutbox(ShardId shard, std::uint16_t shard_count, std::uint32_t limit, MonoTime deadline) override;
  Result<Outbox> ReadOutboxCancels(ShardId shard, std::uint16_t shard_count, std::uint32_t limit, MonoTime deadline) override;
  Result<std::vector<ShardContents>> Contents(MonoTime deadline) override;
  Result<std::vector<JobId>> KnownJobs(std::span<const JobId> ids, MonoTime deadline) override;
  Result<std::vector<ItemState>> States(OrgId org, std::span<const Uuid> items, MonoTime deadline) override;
  Result<void> SubmitRun(const RunSpec& run, std::span<const JobSpec> jobs, MonoTime deadline) override;
  Result<void> RequestCancel(std::span<const CancelRow> rows, MonoTime deadline) override;

  Result<QueueSettings> PutQueueSettings(const QueueSettings& settings, std::string_view actor, MonoTime deadline) override;
  Result<std::vector<QueueSettings>> QueuesOf(std::optional<OrgId> org, std::optional<ShardId> shard,
                                              MonoTime deadline) override;
  Result<SubmitJobsResult> SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline) override;
  Result<EnqueueTaken> TakeEnqueued(std::span<const ShardId> shards, MonoTime deadline) override;
  Result<EnqueueStatus> Enqueued(OrgId org, std::uint32_t limit, MonoTime deadline) override;
  Result<RequeueResult> RequeueDead(const Requeue& requeue, MonoTime deadline) override;

  Result<PipelineVersion> ApplyPipeline(const Pipeline& pipeline, std::string_view definition_json, std::string_view source,
                                        std::string_view base_dir, OrgId org, MonoTime deadline) override;
  Result<PipelineVersion> StorePipeline(const Pipeline& pipeline, std::string_view definition_json, std::string_view source,
                                        std::string_view base_dir, OrgId org, MonoTime deadline) override;
  Result<PipelineVersion> GetPipeline(OrgId org, std::string_view name, std::optional<std::int64_t> version,
                                      MonoTime deadline) override;
  Result<std::vector<PipelineVersion>> ListPipelines(OrgId org, MonoTime deadline) override;

  Result<Leadership> TryLead(OwnerId candidate, std::string_view name, Millis ttl, MonoTime deadline) override;
  Result<std::vector<ScheduleRow>> Schedules(std::optional<OrgId> org, MonoTime deadline) override;
  Result<void> SetPaused(OrgId org, std::string_view pipeline, bool paused, MonoTime deadline) override;
  Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t after_revision, std::uint32_t limit,
                                                    MonoTime deadline) override;
  Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId org, std::span<const std::string> pipelines,
                                                         MonoTime deadline) override;
  Result<std::vector<std::string>> BusyPipelines(OrgId org, std::span<const std::string> pipelines, MonoTime deadline) override;
  Result<FireResult> Fire(const FireBatch& batch, MonoTime deadline) override;
  Result<std::vector<SlotRow>> Slots(OrgId org, std::string_view pipeline, std::uint32_t limit, MonoTime deadline) override;

  Result<CreatedBackfill> CreateBackfill(BackfillRow row, MonoTime deadline) override;
  Result<std::vector<BackfillState>> Backfills(const BackfillFilter& filter, MonoTime deadline) override;
  Result<std::vector<SlotHistory>> SlotHistories(OrgId org, std::string_view pipeline, std::string_view schedule,
                                                 std::span<const WallTime> slots, MonoTime deadline) override;
  Result<std::map<RunState, std::uint64_t>> BackfillRuns(const BackfillRow& row, MonoTime deadline) override;

  Result<std::vector<RunSummary>> ListRuns(const RunFilter& filter, MonoTime deadline) override;
  Result<RunDetail> GetRun(OrgId org, RunId run, MonoTime deadline) override;
  Result<JobDetail> GetJob(OrgId org, JobId job, MonoTime deadline) override;
  Result<std::vector<JobSummary>> ListJobs(const JobFilter& filter, MonoTime deadline) override;

  Result<PruneStep> PruneOldest(const PruneRequest& request, MonoTime deadline) override;
  Result<std::vector<RetainedWeek>> Retained(MonoTime deadline) override;
  Result<HistorySize> SizeOfHistory(std::uint64_t jobs_max, MonoTime deadline) override;

  Result<std::vector<PrunedChain>> PrunedChains(MonoTime deadline) override;
  Result<std::vector<PrunedLeaves>> PrunedLeavesOf(AuditWriterId writer, MonoTime deadline) override;
  Result<std::vector<AuditHead>> AuditHeads(MonoTime deadline) override;
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                std::uint32_t limit, MonoTime deadline) override;
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) override;
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) override;
  Result<bool> HoldHistory(MonoTime deadline) override { return store_->HoldHistory(deadline); }
  void ReleaseHistory() override { store_->ReleaseHistory(); }
  Result<AuditTotals> Totals(MonoTime deadline) override;
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime deadline) override;

 private:
  enum class ScheduleUse : std::uint8_t { kApply, kKeep };
  Result<PipelineVersion> PutPipeline(const Pipeline& pipeline, std::string_view definition_json, std::string_view source,
                                      std::string_view base_dir, OrgId org, ScheduleUse use, MonoTime deadline);
  // sql_ledger_ownership.cc
  Result<Epoch> TakeStepByStep(ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline);
  // sql_ledger_write.cc
  Result<std::uint16_t> ShardCount(MonoTime deadline);  // the stored one
  Result<void> CheckShardCount(std::uint16_t given, MonoTime deadline);
  // Every change goes through here: Apply, recorded in the history.
  Result<void> Write(Batch& batch, MonoTime deadline);
  Result<void> WriteRows(Batch& batch, MonoTime deadline);
  Result<void> LoadChain(MonoTime deadline);  // goes on where the stored chain ends
  Result<WriteSet> Build(const Batch& batch, MonoTime deadline);
  Result<bool> Prune(Batch& batch, MonoTime deadline);  // false: nothing was there to be taken out
  Result<std::set<Uuid>> Existing(Table table, std::vector<Uuid> ids, MonoTime deadline);
  Result<void> CheckCancels(std::span<const CancelRow> rows, MonoTime deadline);
  Result<bool> PruneSlots(Batch& batch, std::set<Uuid>& dropped_runs, MonoTime deadline);
  // sql_ledger_backfill.cc
  Result<std::optional<BackfillRow>> SameBackfill(const BackfillRow& wanted, std::uint32_t& highest, MonoTime deadline);
  // sql_ledger_jobs.cc
  Result<void> AddUniqueKeys(const Batch& batch, WriteSet& set, MonoTime deadline);
  Result<bool> PruneUniqueKeys(Batch& batch, MonoTime deadline);
  Result<bool> PruneDeadActions(Batch& batch, MonoTime deadline);
  Result<void> GuardSlots(Batch& batch, MonoTime deadline);
  Result<bool> PruneGuarded(Batch& batch, MonoTime deadline);
  Result<std::vector<Uuid>> LiveJobIds(const JobFilter& filter, MonoTime deadline);
  Result<std::vector<JobSummary>> SelectJobs(const JobFilter& filter, std::vector<Uuid> among, MonoTime deadline);
  // sql_ledger_backfill.cc
  Result<std::map<Uuid, Uuid>> RepeatsOf(const std::map<Uuid, Uuid>& from, MonoTime deadline);
  Result<void> SeeRequeuedLoads(std::span<SlotHistory> slots, MonoTime deadline);
  // sql_ledger_enqueue.cc
  struct EnqueuePage;
  Result<EnqueuePage> ReadEnqueued(OrgId org, std::size_t limit, MonoTime deadline);
  Result<void> AcceptEnqueued(std::span<const JobSpec> jobs, EnqueuePage& page, EnqueueTaken& taken, MonoTime deadline);
  Result<void> RefuseEnqueued(OrgId org, const EnqueuePage& page, MonoTime deadline);
  // sql_ledger_rebuild.cc
  Result<std::vector<LiveRun>> LoadRuns(const Rows& runs, MonoTime deadline);
  Result<void> LoadProgress(std::vector<LiveRun>& runs, const std::unordered_map<Uuid, std::size_t>& run_of, MonoTime deadline);
  Result<void> LoadRoutingResults(std::vector<LiveRun>& runs, MonoTime deadline);
  Result<bool> CutByJobs(std::vector<Uuid>& runs, MonoTime deadline);   // true: some were left out
  Result<bool> CutByBytes(std::vector<Uuid>& jobs, MonoTime deadline);  // likewise
  Result<std::vector<LiveRun>> RunsOf(std::vector<Uuid> ids, MonoTime deadline);
  Result<std::vector<LiveRun>> StillLive(std::vector<Uuid> ids, ShardId shard, MonoTime deadline);
  Result<void> LoadPayloadsOfSinks(std::span<LiveJob> jobs, MonoTime deadline);
  Result<std::set<Uuid>> Cancelling(std::vector<Uuid> items, MonoTime deadline);
  Result<std::vector<LiveJob>> LoadJobs(const Rows& jobs, MonoTime deadline);
  // sql_ledger_herd.cc
  Result<Outbox> OutboxOf(const Rows& items, ShardId shard, std::uint32_t limit, MonoTime deadline);
  Result<std::vector<Outbox::Batch>> BatchesOf(std::span<const std::pair<Uuid, std::string_view>> rows, ShardId shard,
                                               MonoTime deadline);
  Result<bool> AreARange(std::span<const Uuid> runs, ShardId shard, MonoTime deadline);
  Result<std::optional<std::vector<LiveRun>>> RangeOfRuns(std::span<const Uuid> ids, MonoTime deadline);
  Result<bool> AnyProgress(std::span<const Uuid> jobs, MonoTime deadline);
  // sql_ledger_prune.cc
  struct Going;
  Result<WallTime> PruneLimit(WallTime before, std::string& held_by, MonoTime deadline);
  Result<Uuid> EndOfStep(WallTime before, bool& more, MonoTime deadline);
  // Rows by the Monday of their ids; weeks without any are left out.
  Result<std::map<WallTime, std::uint64_t>> RowsByWeek(const std::string& name, const std::string& key, MonoTime deadline);
  void DropRefused(WallTime before, PruneStep& step, MonoTime deadline);
  Result<void> DropHistory(const PruneRequest& request, const Uuid& end, WallTime now, PruneStep& step, MonoTime deadline);
  Result<void> CollectTable(Table table, const Uuid& end, Going& going, MonoTime deadline);
  Result<void> CheckAgainstRecords(const Rows& rows, Table table, Going& going, MonoTime deadline);
  Result<void> MergeChain(AuditWriterId writer, Going& going, MonoTime deadline);
  // sql_ledger_read.cc
  Result<std::vector<RunSummary>> Summaries(const std::string& where, const Params& params, std::uint32_t limit,
                                            MonoTime deadline);
  Result<std::vector<JobDetail>> Details(std::string_view where, const Params& params, MonoTime deadline);

  std::unique_ptr<SqlStore> store_;
  LedgerOptions options_;
  AuditChain chain_;
  OrgId enqueued_up_to_{0};  // whose rows of `enqueue` were taken last: the next in the order come first
  bool chain_loaded_ = false;
  bool chain_in_doubt_ = false;  // a commit whose outcome stayed unknown may still arrive
  std::optional<std::uint16_t> shard_count_;
};

inline constexpr int kRepeatsMax = 1000;  // so far a chain of retries or requeues is followed

// Violates a key as long as the slot has a run in a later generation.
Statement UnlessLaterRun(const SlotKey& slot);

// What a turn of feeding a backfill changes beside its slots and runs.
std::vector<Statement> StepStatements(const BackfillStep& step, WallTime now);

}  // namespace millrace::ledger
