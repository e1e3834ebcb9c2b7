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
#include <functional>
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
#include "common/ledger/life_cycle.h"
#include "common/ledger/schedule_rows.h"
#include "common/model/job.h"
#include "common/model/pipeline.h"
#include "common/model/queue_settings.h"

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
// What a shard's owner need not read: false = there is no such row.
struct ShardContents {
  ShardId shard;
  bool live_runs = true, live_jobs = true, outbox = true, queue_settings = true;
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
  std::vector<RunId> outbox_done_runs;  // outbox rows that are now in the queue; one with a cancel request stays
  std::vector<JobId> outbox_done_jobs;
  std::vector<Uuid> outbox_done_cancels = {};  // of runs and jobs whose cancel request the owner has taken up: they go
  std::vector<Uuid> outbox_done_batches = {};  // Outbox::Batch::id
  std::vector<JobId> unique_started;           // first grants: keys with UniqueUntil::kStarted are free
  bool Empty() const {
    return runs.empty() && jobs.empty() && attempts.empty() && outcomes.empty() && run_outcomes.empty() && cancels.empty() &&
           outbox_done_runs.empty() && outbox_done_jobs.empty() && outbox_done_cancels.empty() && outbox_done_batches.empty() &&
           unique_started.empty();
  }
};
// A single job that was not accepted, because another one holds its unique key.
struct UniqueConflict {
  JobId job;
  JobId holder;
  friend bool operator==(const UniqueConflict&, const UniqueConflict&) = default;
};
// What did not go in because the same key was there before (a repeated submit, an outcome already recorded), or a job's run
// was. Not errors.
struct OwnerBatchResult {
  std::vector<RunId> duplicate_runs;
  std::vector<JobId> duplicate_jobs;
  std::vector<JobId> duplicate_outcomes;
  std::vector<UniqueConflict> conflicts;  // nothing of these jobs was written
};
struct SubmitJobsResult {
  std::vector<JobId> duplicates;
  std::vector<UniqueConflict> conflicts;
};
// What somebody did about dead jobs, and the jobs that repeat them.
struct RunRetry {
  RunId of;  // the run that did not succeed
  std::string actor, reason;
  WallTime at{};
};
struct Requeue {
  std::optional<RunSpec> run;  // set: `jobs` are this run's; else they are single ones
  std::vector<JobSpec> jobs;
  std::vector<DeadActionRow> actions;
  std::optional<RunRetry> retry = {};  // set: `run` repeats that one
  bool preview = false;                // nothing is written; the answer is what it would be now
};
// A run of a slot in a later generation: what it loads has another effect key than that of what was to be repeated.
struct LaterRun {
  Uuid of;  // the dead job, or the run of `retry`
  SlotKey slot;
  RunId run;
};
struct RequeueResult {
  std::optional<RunId> retried_as = {};   // the run of `retry` was retried before, as this one: nothing was written
  std::vector<JobId> already_done;        // dead jobs that had an action: what was to repeat them was not written
  std::vector<UniqueConflict> conflicts;  // likewise, `job` is the new one
  std::vector<LaterRun> later = {};       // likewise: their slots ran again
};

// Payloads of one page: of single jobs, or of the jobs of runs, unless the first run has more. A page has to come within the
// budget of a read, or what is behind it never does.
inline constexpr std::size_t kPageBytesMax = 8u << 20;
inline constexpr std::size_t kRunPayloadBytesMax = 4 * kPageBytesMax;  // of SubmitRun
// What one outbox row of Fire stands for, at most, and how many of those one ReadOutbox gives.
inline constexpr std::size_t kOutboxBatchRuns = 500, kOutboxBatchJobs = 2000, kOutboxBatchesMax = 4;
inline constexpr std::size_t kOutboxBatchBytes = kPageBytesMax / kOutboxBatchesMax;  // payloads of its jobs

// ---- rebuild ---------------------------------------------------------------------------------------------------------------
struct LiveJob {  // accepted, no outcome
  JobSpec spec;
  Counters counters;  // of its latest attempt row
  std::optional<WallTime> next_run_at;
  bool cancelling = false;  // a cancel row exists
  Token last_token{};       // of its latest attempt row; 0: there is none
  bool in_outbox = false;   // LiveSingleJobs: ReadOutbox will show it, too
  bool id_only = false;     // LiveSingleJobs: nothing else of it was read (LivePage::outbox_ids_only)
};
struct LivePage {                     // how much of the live single jobs is read at once
  std::uint32_t jobs = 0;             // at most
  std::size_t bytes = kPageBytesMax;  // of payloads: the job that reaches it ends the page
  bool outbox_ids_only = false;       // of a job that is in the outbox and has no cancel request only the id
};
struct LiveJobs {
  std::vector<LiveJob> jobs;  // in id order
  bool last = false;          // there are no others behind these
};
struct LiveRun {  // accepted, no run outcome
  RunSpec spec;
  std::vector<JobSpec> jobs;  // all of the run, ended or not, in id order
  std::map<JobId, JobState> ended;
  std::map<JobId, Counters> counters;
  std::map<JobId, WallTime> next_run_at;
  std::map<JobId, Token> last_tokens{};    // of their latest attempt rows
  std::map<JobId, std::string> results{};  // of succeeded jobs that a job with JobOptions::route_rows reads
  bool cancelling = false;
  std::string cancel_reason;  // "cancelled by cli root@host: wrong day"
};
// What became of something that a client named.
struct ItemState {
  bool known = false;                 // a run or a single job of that org
  bool cancelling = false;            // a cancel row exists
  std::optional<RunState> run_ended;  // at most one of these two
  std::optional<JobState> job_ended;
  std::optional<LiveJob> live;  // a single job that has not ended
  std::optional<RunId> of_run;  // not known by itself: a job of this run
};

// ---- reading, for people
// -----------------------------------------------------------------------------------------------------
struct RunFilter {
  OrgId org = kDefaultOrg;
  std::optional<std::string> pipeline;
  std::optional<RunState> state;
  std::optional<RunId> before;  // keyset: ids below
  std::uint32_t limit = 50;     // <= 500
  bool open = false;            // ended, not succeeded, and not retried
};
struct RunSummary {
  RunSpec spec;
  RunState state = RunState::kRunning;  // kRunning unless an outcome exists
  std::string reason;
  std::optional<WallTime> finished_at;
  std::uint32_t jobs = 0, jobs_ended = 0, jobs_succeeded = 0;
};
struct JobDetail {
  JobSpec spec;
  std::vector<AttemptRow> attempts;
  std::optional<OutcomeRow> outcome;
  std::optional<DeadActionRow> dead_action;
};
struct JobFilter {
  OrgId org = kDefaultOrg;
  std::optional<JobState> state;  // terminal; empty: any, ended or not
  bool open = false;              // dead and neither requeued nor discarded
  bool live = false;              // single jobs that have not ended; of durability: redis the ledger has none of these
  bool live_of_runs = false;      // with `live`: those of runs too
  std::optional<std::string> queue, kind, error_class;
  std::optional<WallTime> since;  // submitted then or later, by the time in the id (ms)
  std::optional<JobId> before;    // keyset: ids below
  std::uint32_t limit = 50;       // <= 500
};
struct JobSummary {
  JobSpec spec;                       // without payload and depends_on
  std::optional<OutcomeRow> outcome;  // without result and log_tail
  std::optional<DeadActionRow> dead_action;
};
struct RunDetail {
  RunSummary summary;
  std::vector<JobDetail> jobs;  // id order
};

struct BrokerAddress {
  std::string name;
  std::string clients = {};  // the endpoint where clients reach it; empty: not said
  friend bool operator==(const BrokerAddress&, const BrokerAddress&) = default;
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
  // Says that broker `owner` lives (`leaving`: that it goes) and tells who does: those that said so within the last
  // kOwnershipTtl on the ledger's clock, in the order of their ids. Not audited: it is no history.
  virtual Result<std::vector<OwnerId>> AnnounceBroker(OwnerId owner, const BrokerAddress& broker, bool leaving,
                                                      MonoTime deadline) = 0;
  // Those that AnnounceBroker tells of, as they said: also those that hold no shard.
  virtual Result<std::map<OwnerId, BrokerAddress>> LivingBrokers(MonoTime) { return std::map<OwnerId, BrokerAddress>{}; }

  virtual Result<OwnerBatchResult> Commit(const OwnerBatch& batch, MonoTime deadline) = 0;

  // Rebuild, in id order. `shard_count` selects the orgs of the shard. LiveRuns may give fewer than `limit`, to bound the
  // number of jobs in one page, and their payloads: only an empty page is the last.
  virtual Result<LiveJobs> LiveSingleJobs(ShardId shard, std::uint16_t shard_count, std::optional<JobId> after,
                                          const LivePage& page, MonoTime deadline) = 0;
  virtual Result<std::vector<LiveRun>> LiveRuns(ShardId shard, std::uint16_t shard_count, std::optional<RunId> after,
                                                std::uint32_t limit, MonoTime deadline) = 0;
  // Outbox rows of the shard: runs and single jobs written by others and not yet taken over by the owner.
  // `more`: there are others, beyond `limit`, kPageBytesMax or what runs have of jobs; they come when these have been removed.
  struct Outbox {
    // Runs of one transaction of Fire: one row for up to kOutboxBatchRuns of them, which goes as a whole. Those that have
    // ended are left out, and a run with a cancel request has a row of its own beside it.
    struct Batch {
      Uuid id;
      std::vector<LiveRun> runs;  // in id order
    };
    std::vector<LiveRun> runs;
    std::vector<LiveJob> jobs;
    std::vector<Batch> batches = {};  // at most kOutboxBatchesMax, beside `limit` runs and jobs
    bool more = false;
  };
  virtual Result<Outbox> ReadOutbox(ShardId shard, std::uint16_t shard_count, std::uint32_t limit, MonoTime deadline) = 0;
  // Of them only the runs and jobs that have a cancel request; no batches.
  virtual Result<Outbox> ReadOutboxCancels(ShardId shard, std::uint16_t shard_count, std::uint32_t limit,
                                           MonoTime deadline) = 0;
  // One answer for all shards, instead of a read of each that finds nothing. A shard that is not named may hold anything.
  virtual Result<std::vector<ShardContents>> Contents(MonoTime) { return std::vector<ShardContents>{}; }
  // Those of `ids` that the ledger has a job or an outcome of, in id order: what an owner asks about jobs of `durability:
  // redis` that the queue may hold although they have ended or have become the ledger's.
  virtual Result<std::vector<JobId>> KnownJobs(std::span<const JobId> ids, MonoTime deadline) = 0;
  // One answer per item (a run or a single job of `org`), in their order; an item that is named twice is answered twice.
  virtual Result<std::vector<ItemState>> States(OrgId org, std::span<const Uuid> items, MonoTime deadline) = 0;
  // Submit for those who are not the owner: run, jobs and outbox rows in one transaction. A run that exists is not an error.
  virtual Result<void> SubmitRun(const RunSpec& run, std::span<const JobSpec> jobs, MonoTime deadline) = 0;
  // Unique keys are decided here as in Commit: of concurrent submits, whoever makes them, exactly one gets the key.
  virtual Result<SubmitJobsResult> SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline) = 0;
  // Rows of `enqueue` of these shards become jobs, and what waits and was refused there, of one org: life_cycle.h.
  virtual Result<EnqueueTaken> TakeEnqueued(std::span<const ShardId>, MonoTime) { return EnqueueTaken{}; }
  virtual Result<EnqueueStatus> Enqueued(OrgId, std::uint32_t, MonoTime) { return EnqueueStatus{}; }
  // One transaction, by anybody; runs and jobs get outbox rows. A dead job gets one action for ever: of two that act on it at
  // the same time the second is told so, and its new job is not written (unless it belongs to `run`). A run is retried once
  // for ever: whoever comes second is told as which run, and writes nothing. The caller has seen that the jobs are dead and
  // the run did not succeed, which does not change. Of a slot that has a run in a later generation nothing earlier is
  // repeated: no run of it, no job of such a run, and no job that repeats one. What commits at the same time may come before.
  virtual Result<RequeueResult> RequeueDead(const Requeue& requeue, MonoTime deadline) = 0;
  // As above: the requests, and outbox rows for what has not ended. A request that exists stays as it is. kNotFound, and
  // nothing is written: an item that is no run, no single job and no backfill of its row's org.
  virtual Result<void> RequestCancel(std::span<const CancelRow> rows, MonoTime deadline) = 0;

  // Queues. Settings are appended, revision by revision; the newest counts. Stores `settings` as revision + 1 and returns it.
  // kConflict: `settings.revision` is not the newest one (0: there is none yet).
  virtual Result<QueueSettings> PutQueueSettings(const QueueSettings& settings, std::string_view actor, MonoTime deadline) = 0;
  // The newest of every queue that was ever set, of one org or of all, of one shard or of all; in (org, queue) order.
  virtual Result<std::vector<QueueSettings>> QueuesOf(std::optional<OrgId> org, std::optional<ShardId> shard,
                                                      MonoTime deadline) = 0;

  // Pipelines. A version is its definition (schedules and all) and base_dir: storing or applying the latest makes no new one.
  // A schedule's watermark survives new versions; a new schedule starts at the ledger's time.
  virtual Result<PipelineVersion> ApplyPipeline(const Pipeline& pipeline, std::string_view definition_json,
                                                std::string_view source, std::string_view base_dir, OrgId org,
                                                MonoTime deadline) = 0;
  // The same without its schedules: those in force, and the versions they run, stay as they are. For a run of a file by hand.
  virtual Result<PipelineVersion> StorePipeline(const Pipeline& pipeline, std::string_view definition_json,
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
  // Pauses or resumes the schedules of a pipeline; nothing else of them changes, and a new version keeps it. Repeatable.
  // kNotFound: the pipeline has no schedule.
  virtual Result<void> SetPaused(OrgId org, std::string_view pipeline, bool paused, MonoTime deadline) = 0;
  // Rows (active or not) with a higher revision, in its order. Revisions become visible in order: none below the highest one
  // that was read can come later.
  virtual Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t after_revision, std::uint32_t limit,
                                                            MonoTime deadline) = 0;
  // The versions that the active schedules of these pipelines run, without their source.
  virtual Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId org, std::span<const std::string> pipelines,
                                                                 MonoTime deadline) = 0;
  // Those of the pipelines that have a run without an outcome, runs of backfills apart (for overlap: skip).
  virtual Result<std::vector<std::string>> BusyPipelines(OrgId org, std::span<const std::string> pipelines,
                                                         MonoTime deadline) = 0;
  virtual Result<FireResult> Fire(const FireBatch& batch, MonoTime deadline) = 0;
  virtual Result<std::vector<SlotRow>> Slots(OrgId org, std::string_view pipeline, std::uint32_t limit,
                                             MonoTime deadline) = 0;  // newest first

  // Backfills. With generation 0: takes the next one of the schedule, or gives back a backfill of the same range and options
  // that has not ended. With a generation: creates it, or gives back the one that has it; kConflict when that one is another.
  // kInvalidArgument: a generation above kBackfillGenerationMax.
  struct CreatedBackfill {
    BackfillRow row;
    bool created = false;
  };
  virtual Result<CreatedBackfill> CreateBackfill(BackfillRow row, MonoTime deadline) = 0;
  virtual Result<std::vector<BackfillState>> Backfills(const BackfillFilter& filter, MonoTime deadline) = 0;  // newest first
  // All rows of these slots (at most kSlotHistoriesMax), by slot and generation.
  virtual Result<std::vector<SlotHistory>> SlotHistories(OrgId org, std::string_view pipeline, std::string_view schedule,
                                                         std::span<const WallTime> slots, MonoTime deadline) = 0;
  // How many slots of a backfill have a run in each state, that of its latest retry; kRunning: no outcome.
  virtual Result<std::map<RunState, std::uint64_t>> BackfillRuns(const BackfillRow& row, MonoTime deadline) = 0;

  virtual Result<std::vector<RunSummary>> ListRuns(const RunFilter& filter, MonoTime deadline) = 0;
  virtual Result<RunDetail> GetRun(OrgId org, RunId run, MonoTime deadline) = 0;  // kNotFound
  // kNotFound. A job of `durability: redis` that succeeded at once has an outcome only: its spec is the id, org and class.
  virtual Result<JobDetail> GetJob(OrgId org, JobId job, MonoTime deadline) = 0;
  virtual Result<std::vector<JobSummary>> ListJobs(const JobFilter& filter, MonoTime deadline) = 0;  // newest first

  // Retention: life_cycle.h.
  virtual Result<PruneStep> PruneOldest(const PruneRequest&, MonoTime) { return PruneStep{}; }
  virtual Result<std::vector<RetainedWeek>> Retained(MonoTime) { return std::vector<RetainedWeek>{}; }
  virtual Result<HistorySize> SizeOfHistory(std::uint64_t /*jobs_max*/, MonoTime) { return HistorySize{}; }

  // Audit. The heads of all chains, and everything the verifier reads, in (writer, seq) order.
  Result<std::vector<AuditHead>> AuditHeads(MonoTime deadline) override = 0;
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                std::uint32_t limit, MonoTime deadline) override = 0;
  // Every audited row of a record as the database holds it now, canonical (AuditLeaf), in index order.
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) override = 0;
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) override = 0;
  Result<AuditTotals> Totals(MonoTime deadline) override = 0;
  // Audited rows that claim a record which does not exist (inserted behind Millrace's back), at most `limit`.
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime deadline) override = 0;
};

struct LedgerOptions {
  std::string dsn;  // postgres: conninfo/URI; sqlite: absolute path
  const Clock* clock = nullptr;
  AuditWriterId writer;            // a fresh one per process start and instance
  std::uint16_t shard_count = 1;   // written by the first Migrate; afterwards the stored one counts
  std::string actor = "millrace";  // who the audit records name: "broker b1", "cli root@host"
  // PostgreSQL: Migrate ends with kCancelled when this says so: before it makes a version, and while it waits for another
  // process.
  std::function<bool()> stop = {};
};
Result<std::unique_ptr<Ledger>> OpenPostgresLedger(const LedgerOptions& options, MonoTime deadline);
Result<std::unique_ptr<Ledger>> OpenSqliteLedger(const LedgerOptions& options, MonoTime deadline);

}  // namespace millrace
