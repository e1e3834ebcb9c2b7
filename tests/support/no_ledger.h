// A Ledger that serves nobody: every call answers kUnsupported, or what a double says instead (No). For doubles that need a
// part of the interface.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/ledger/ledger.h"

namespace millrace::test {

class NoLedger : public Ledger {
 public:
  Result<void> Migrate(MonoTime) override { return No(); }
  Result<WallTime> Now(MonoTime) override { return No(); }
  Result<Epoch> TakeShard(ShardId, OwnerId, std::string_view, MonoTime) override { return No(); }
  Result<void> RenewShards(std::span<const ShardHold>, OwnerId, MonoTime) override { return No(); }
  Result<void> ReleaseShards(std::span<const ShardHold>, OwnerId, MonoTime) override { return No(); }
  Result<std::vector<ShardStatus>> Shards(MonoTime) override { return No(); }
  Result<std::vector<OwnerId>> AnnounceBroker(OwnerId, const BrokerAddress&, bool, MonoTime) override { return No(); }
  Result<OwnerBatchResult> Commit(const OwnerBatch&, MonoTime) override { return No(); }
  Result<LiveJobs> LiveSingleJobs(ShardId, std::uint16_t, std::optional<JobId>, const LivePage&, MonoTime) override {
    return No();
  }
  Result<std::vector<LiveRun>> LiveRuns(ShardId, std::uint16_t, std::optional<RunId>, std::uint32_t, MonoTime) override {
    return No();
  }
  Result<Outbox> ReadOutbox(ShardId, std::uint16_t, std::uint32_t, MonoTime) override { return No(); }
  Result<Outbox> ReadOutboxCancels(ShardId, std::uint16_t, std::uint32_t, MonoTime) override { return No(); }
  Result<std::vector<JobId>> KnownJobs(std::span<const JobId>, MonoTime) override { return No(); }
  Result<std::vector<ItemState>> States(OrgId, std::span<const Uuid>, MonoTime) override { return No(); }
  Result<void> SubmitRun(const RunSpec&, std::span<const JobSpec>, MonoTime) override { return No(); }
  Result<SubmitJobsResult> SubmitJobs(std::span<const JobSpec>, MonoTime) override { return No(); }
  Result<RequeueResult> RequeueDead(const Requeue&, MonoTime) override { return No(); }
  Result<void> RequestCancel(std::span<const CancelRow>, MonoTime) override { return No(); }
  Result<QueueSettings> PutQueueSettings(const QueueSettings&, std::string_view, MonoTime) override { return No(); }
  Result<std::vector<QueueSettings>> QueuesOf(std::optional<OrgId>, std::optional<ShardId>, MonoTime) override { return No(); }
  Result<PipelineVersion> ApplyPipeline(const Pipeline&, std::string_view, std::string_view, std::string_view, OrgId,
                                        MonoTime) override {
    return No();
  }
  Result<PipelineVersion> StorePipeline(const Pipeline&, std::string_view, std::string_view, std::string_view, OrgId,
                                        MonoTime) override {
    return No();
  }
  Result<PipelineVersion> GetPipeline(OrgId, std::string_view, std::optional<std::int64_t>, MonoTime) override { return No(); }
  Result<std::vector<PipelineVersion>> ListPipelines(OrgId, MonoTime) override { return No(); }
  Result<Leadership> TryLead(OwnerId, std::string_view, Millis, MonoTime) override { return No(); }
  Result<std::vector<ScheduleRow>> Schedules(std::optional<OrgId>, MonoTime) override { return No(); }
  Result<void> SetPaused(OrgId, std::string_view, bool, MonoTime) override { return No(); }
  Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t, std::uint32_t, MonoTime) override { return No(); }
  Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId, std::span<const std::string>, MonoTime) override {
    return No();
  }
  Result<std::vector<std::string>> BusyPipelines(OrgId, std::span<const std::string>, MonoTime) override { return No(); }
  Result<FireResult> Fire(const FireBatch&, MonoTime) override { return No(); }
  Result<std::vector<SlotRow>> Slots(OrgId, std::string_view, std::uint32_t, MonoTime) override { return No(); }
  Result<CreatedBackfill> CreateBackfill(BackfillRow, MonoTime) override { return No(); }
  Result<std::vector<BackfillState>> Backfills(const BackfillFilter&, MonoTime) override { return No(); }
  Result<std::vector<SlotHistory>> SlotHistories(OrgId, std::string_view, std::string_view, std::span<const WallTime>,
                                                 MonoTime) override {
    return No();
  }
  Result<std::map<RunState, std::uint64_t>> BackfillRuns(const BackfillRow&, MonoTime) override { return No(); }
  Result<std::vector<RunSummary>> ListRuns(const RunFilter&, MonoTime) override { return No(); }
  Result<RunDetail> GetRun(OrgId, RunId, MonoTime) override { return No(); }
  Result<JobDetail> GetJob(OrgId, JobId, MonoTime) override { return No(); }
  Result<std::vector<JobSummary>> ListJobs(const JobFilter&, MonoTime) override { return No(); }
  Result<std::vector<AuditHead>> AuditHeads(MonoTime) override { return No(); }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId>, std::uint64_t, std::uint32_t, MonoTime) override {
    return No();
  }
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId, std::uint64_t, MonoTime) override { return No(); }
  Result<void> VisitRows(const LeafVisitor&, MonoTime) override { return No(); }
  Result<AuditTotals> Totals(MonoTime) override { return No(); }
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t, MonoTime) override { return No(); }

 private:
  virtual std::unexpected<Error> No() const { return Fail(ErrorCode::kUnsupported, "this ledger of a test has no such call"); }
};

}  // namespace millrace::test
