// The system of record: pipelines, schedules, slots, runs, jobs, attempts, outcomes, ownership, audit. Two implementations
// (PostgreSQL, SQLite) and one conformance suite (tests/conformance/ledger_test.cc). Rows are appended, not updated.
//
// Every write is one transaction with one audit record (common/crypto/audit.h), which is also its proof: when the answer to
// a COMMIT is lost, the implementation reconnects and looks its audit record up, so callers see applied or not applied.
// kMaybeApplied is returned only when that look-up itself cannot be made before the deadline.
//
// Instances are not thread-safe: one per thread. Blocking; every call gives up at `deadline`.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/crypto/audit.h"
#include "common/crypto/audit_source.h"
#include "common/model/job.h"
#include "common/model/pipeline.h"

namespace millrace {

// ---- ownership ---------------------------------------------------------------------------------------------------------
struct ShardHold {
  ShardId shard;
  Epoch epoch;
  friend bool operator==(const ShardHold&, const ShardHold&) = default;
};
struct ShardStatus {
  ShardId shard;
  std::optional<OwnerId> owner;  // empty: never owned or released
  std::string owner_name;
  Epoch epoch;
  WallTime renewed_at{};
};

// ---- the owner's one transaction -----------------------------------------------------------------------------------------
// Everything a broker's ledger thread drained, committed together (group commit). Every shard it touches is in `holds`; each
// is locked for share and its epoch compared: one mismatch and nothing is committed (kStale names the shard).
struct OwnerBatch {
  std::vector<ShardHold> holds;
  OwnerId owner;
  std::vector<RunSpec> runs;
  std::vector<JobSpec> jobs;
  std::vector<AttemptRow> attempts;
  std::vector<OutcomeRow> outcomes;
  std::vector<RunOutcomeRow> run_outcomes;
  std::vector<CancelRow> cancels;       // one that is there already stays as it is
  std::vector<RunId> outbox_done_runs;  // outbox rows that are now in the queue
  std::vector<JobId> outbox_done_jobs;
  bool Empty() const {
    return runs.empty() && jobs.empty() && attempts.empty() && outcomes.empty() && run_outcomes.empty() && cancels.empty() &&
           outbox_done_runs.empty() && outbox_done_jobs.empty();
  }
};
// What did not go in because the same key was there before (a repeated submit, an outcome already recorded), or a job's run
// was. Not errors.
struct OwnerBatchResult {
  std::vector<RunId> duplicate_runs;
  std::vector<JobId> duplicate_jobs;
  std::vector<JobId> duplicate_outcomes;
};

// ---- rebuild ---------------------------------------------------------------------------------------------------------------
struct LiveJob {  // accepted, no outcome
  JobSpec spec;
  Counters counters;  // of its latest attempt row
  std::optional<WallTime> next_run_at;
  bool cancelling = false;  // a cancel row exists
};
struct LiveRun {  // accepted, no run outcome
  RunSpec spec;
  std::vector<JobSpec> jobs;  // all of the run, ended or not, in id order
  std::map<JobId, JobState> ended;
  std::map<JobId, Counters> counters;
  std::map<JobId, WallTime> next_run_at;
  bool cancelling = false;
};
// What became of something that a client named.
struct ItemState {
  bool known = false;                 // a run or a single job of that org
  bool cancelling = false;            // a cancel row exists
  std::optional<RunState> run_ended;  // at most one of these two
  std::optional<JobState> job_ended;
  std::optional<LiveJob> live;  // a single job that has not ended
};

// ---- scheduling ------------------------------------------------------------------------------------------------------------
struct PipelineVersion {
  OrgId org = kDefaultOrg;
  std::string name;
  std::int64_t version = 0;  // 1, 2, 3 ... per (org, name)
  std::string source;        // the YAML text as given
  std::string definition;    // canonical JSON of Pipeline
  std::string base_dir;
  WallTime applied_at{};
};
struct ScheduleRow {
  OrgId org = kDefaultOrg;
  std::string pipeline;
  ScheduleSpec spec;
  std::int64_t version = 0;  // the pipeline version that runs
  WallTime watermark{};      // slots at or before it are decided; never goes back
  bool paused = false;
};
struct SlotKey {
  OrgId org = kDefaultOrg;
  std::string pipeline, schedule;
  WallTime slot{};
  std::uint32_t generation = 0;
};
struct SlotRow {
  SlotKey key;
  std::string state;         // fired | skipped | missed
  std::string reason;        // overlap, misfire, catchup none, ...; empty when fired
  std::optional<RunId> run;  // fired
  WallTime decided_at{};     // ledger's clock
};
struct SlotDecision {
  SlotRow slot;
  std::optional<RunSpec> run;  // fired
  std::vector<JobSpec> jobs;
};
struct FireBatch {
  std::uint64_t leader_epoch = 0;  // guards nothing but waste: the slot's unique key is the guarantee
  std::vector<SlotDecision> decisions;
  struct Watermark {
    OrgId org;
    std::string pipeline, schedule;
    WallTime to;
  };
  std::vector<Watermark> watermarks;  // each becomes greatest(stored, to)
};
struct FireResult {
  std::vector<SlotKey> already_decided;  // slots that another scheduler had written: their runs were not created
};

// ---- reading, for people
// -----------------------------------------------------------------------------------------------------
struct RunFilter {
  OrgId org = kDefaultOrg;
  std::optional<std::string> pipeline;
  std::optional<RunState> state;
  std::optional<RunId> before;  // keyset: ids below
  std::uint32_t limit = 50;     // <= 500
};
struct RunSummary {
  RunSpec spec;
  RunState state = RunState::kRunning;  // kRunning unless an outcome exists
  std::string reason;
  std::optional<WallTime> finished_at;
  std::uint32_t jobs = 0, jobs_ended = 0;
};
struct JobDetail {
  JobSpec spec;
  std::vector<AttemptRow> attempts;
  std::optional<OutcomeRow> outcome;
};
struct RunDetail {
  RunSummary summary;
  std::vector<JobDetail> jobs;  // id order
};

class Ledger : public AuditSource {
 public:
  ~Ledger() override = default;

  // Creates or upgrades the schema. kUnsupported: the ledger is of a newer version than this program.
  virtual Result<void> Migrate(MonoTime deadline) = 0;
  // The ledger's clock (PostgreSQL's own; the system clock for SQLite). Slots and ownership use no other.
  virtual Result<WallTime> Now(MonoTime deadline) = 0;

  // Ownership. Take succeeds when nobody owns the shard, its owner has not renewed for kOwnershipTtl on the ledger's clock,
  // or `owner` holds it already; the epoch goes up by one each time. kConflict names the present owner.
  virtual Result<Epoch> TakeShard(ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline) = 0;
  // kStale: somebody took one of them.
  virtual Result<void> RenewShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) = 0;
  virtual Result<void> ReleaseShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) = 0;
  virtual Result<std::vector<ShardStatus>> Shards(MonoTime deadline) = 0;

  virtual Result<OwnerBatchResult> Commit(const OwnerBatch& batch, MonoTime deadline) = 0;

  // Rebuild, in id order. `shard_count` selects the orgs of the shard. LiveRuns may give fewer than `limit`, to bound the
  // number of jobs in one page: only an empty page is the last.
  virtual Result<std::vector<LiveJob>> LiveSingleJobs(ShardId shard, std::uint16_t shard_count, std::optional<JobId> after,
                                                      std::uint32_t limit, MonoTime deadline) = 0;
  virtual Result<std::vector<LiveRun>> LiveRuns(ShardId shard, std::uint16_t shard_count, std::optional<RunId> after,
                                                std::uint32_t limit, MonoTime deadline) = 0;
  // Outbox rows of the shard: runs and single jobs written by others and not yet taken over by the owner.
  // `more`: there are others; they come when these have been removed.
  struct Outbox {
    std::vector<LiveRun> runs;
    std::vector<LiveJob> jobs;
    bool more = false;
  };
  virtual Result<Outbox> ReadOutbox(ShardId shard, std::uint16_t shard_count, std::uint32_t limit, MonoTime deadline) = 0;
  // Those of `ids` that the ledger has a job or an outcome of, in id order: what an owner asks about jobs of `durability:
  // redis` that the queue may hold although they have ended or have become the ledger's.
  virtual Result<std::vector<JobId>> KnownJobs(std::span<const JobId> ids, MonoTime deadline) = 0;
  // One answer per item (a run or a single job of `org`), in their order.
  virtual Result<std::vector<ItemState>> States(OrgId org, std::span<const Uuid> items, MonoTime deadline) = 0;
  // Submit for those who are not the owner: run, jobs and outbox rows in one transaction. A run that exists is not an error.
  virtual Result<void> SubmitRun(const RunSpec& run, std::span<const JobSpec> jobs, MonoTime deadline) = 0;
  virtual Result<void> SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline) = 0;

  // Pipelines. Applying the same definition, base_dir and schedules again changes nothing and returns the stored version.
  // A schedule's watermark survives new versions; a new schedule starts at the ledger's time.
  virtual Result<PipelineVersion> ApplyPipeline(const Pipeline& pipeline, std::string_view definition_json,
                                                std::string_view source, std::string_view base_dir, OrgId org,
                                                MonoTime deadline) = 0;
  virtual Result<PipelineVersion> GetPipeline(OrgId org, std::string_view name, std::optional<std::int64_t> version,
                                              MonoTime deadline) = 0;                            // kNotFound
  virtual Result<std::vector<PipelineVersion>> ListPipelines(OrgId org, MonoTime deadline) = 0;  // latest of each; no source

  // Scheduling. The leader lease is an optimisation; the slot's unique key is the guarantee.
  struct Leadership {
    bool leader = false;
    std::uint64_t epoch = 0;
    std::string holder;
  };
  virtual Result<Leadership> TryLead(OwnerId candidate, std::string_view name, Millis ttl, MonoTime deadline) = 0;
  virtual Result<std::vector<ScheduleRow>> Schedules(std::optional<OrgId> org, MonoTime deadline) = 0;
  virtual Result<FireResult> Fire(const FireBatch& batch, MonoTime deadline) = 0;
  // Runs of a pipeline without an outcome (for overlap: skip).
  virtual Result<std::uint32_t> ActiveRuns(OrgId org, std::string_view pipeline, MonoTime deadline) = 0;
  virtual Result<std::vector<SlotRow>> Slots(OrgId org, std::string_view pipeline, std::uint32_t limit,
                                             MonoTime deadline) = 0;  // newest first

  virtual Result<std::vector<RunSummary>> ListRuns(const RunFilter& filter, MonoTime deadline) = 0;
  virtual Result<RunDetail> GetRun(OrgId org, RunId run, MonoTime deadline) = 0;  // kNotFound
  // kNotFound. A job of `durability: redis` that succeeded at once has an outcome only: its spec is the id, org and class.
  virtual Result<JobDetail> GetJob(OrgId org, JobId job, MonoTime deadline) = 0;

  // Audit. The heads of all chains, and everything the verifier reads, in (writer, seq) order.
  Result<std::vector<AuditHead>> AuditHeads(MonoTime deadline) override = 0;
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                std::uint32_t limit, MonoTime deadline) override = 0;
  // Every audited row of a record as the database holds it now, canonical (AuditLeaf), in index order.
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) override = 0;
  // Audited rows that claim a record which does not exist (inserted behind Millrace's back), at most `limit`.
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime deadline) override = 0;
};

struct LedgerOptions {
  std::string dsn;  // postgres: conninfo/URI; sqlite: absolute path
  const Clock* clock = nullptr;
  AuditWriterId writer;            // a fresh one per process start and instance
  std::uint16_t shard_count = 1;   // written by the first Migrate; afterwards the stored one counts
  std::string actor = "millrace";  // who the audit records name: "broker b1", "cli root@host"
};
Result<std::unique_ptr<Ledger>> OpenPostgresLedger(const LedgerOptions& options, MonoTime deadline);
Result<std::unique_ptr<Ledger>> OpenSqliteLedger(const LedgerOptions& options, MonoTime deadline);

}  // namespace millrace
