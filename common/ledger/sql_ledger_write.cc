#include <algorithm>
#include <map>
#include <unordered_map>

#include "common/ledger/sql_ledger.h"

// One way to write for everybody. The rows of a batch are first taken to be new: plain inserts, their leaves and the audit
// record in one transaction, in one round trip. When a key exists, nothing was written; the rows that exist are looked up,
// taken out of the batch, and the rest is tried again under the same sequence number. Rows are never deleted, so each round
// takes out at least one, and the audit record's leaves are exactly the rows that went in, numbered without gaps.

namespace millrace::ledger {
namespace {

constexpr int kRoundsMax = 16;
constexpr std::size_t kPrunePage = 50;  // keys of one statement; fewer texts mean fewer prepared statements

template <class T>
void AppendTable(Table table, const std::vector<const T*>& rows, WriteSet& set, std::vector<Digest>* leaves,
                 std::int64_t& next) {
  auto& out = set.tables[static_cast<std::size_t>(table)];
  const std::size_t width = DefOf(table).columns.size();
  out.cells.reserve(rows.size() * width);
  for (const T* row : rows) {
    Append(*row, set.arena, out.cells);
    out.index.push_back(next++);
    if (leaves != nullptr) leaves->push_back(LeafOf(table, std::span(out.cells).last(width)));
  }
}

// Takes out what `drop` says; true if anything went.
template <class T, class Drop>
bool TakeOut(std::vector<const T*>& rows, Drop drop) {
  return std::erase_if(rows, [&](const T* row) { return drop(*row); }) > 0;
}

// A run of more jobs than kOutboxBatchJobs, or larger ones than kOutboxBatchBytes, and what is alone in its shard, gets a row
// of its own: ReadOutbox bounds those by their jobs.
void PutTogether(const Batch& batch, WriteSet& set) {
  struct Size {
    std::size_t jobs = 0, bytes = 0;
    bool Fits() const { return jobs <= kOutboxBatchJobs && bytes <= kOutboxBatchBytes; }
    Size operator+(const Size& other) const { return {.jobs = jobs + other.jobs, .bytes = bytes + other.bytes}; }
  };
  std::unordered_map<Uuid, Size> sizes;
  for (const JobSpec* job : batch.jobs)
    if (job->run) sizes[job->run->uuid] = sizes[job->run->uuid] + Size{.jobs = 1, .bytes = job->payload.size()};
  std::map<ShardId, std::vector<Item>> open;
  const auto close = [&](std::vector<Item>& runs) {
    if (runs.size() == 1) set.outbox_runs.push_back(runs.front());
    if (runs.size() > 1) {
      ItemBatch& row = set.outbox_batches.emplace_back(runs.front().id, runs.front().shard, std::string{});
      row.runs.reserve(runs.size() * sizeof(Uuid));
      for (const Item& run : runs) row.runs += run.id.AsBytes();
    }
    runs.clear();
  };
  std::map<ShardId, Size> open_sizes;
  for (const Item& run : set.live_runs) {
    const Size size = sizes[run.id];
    if (!size.Fits()) {
      set.outbox_runs.push_back(run);
      continue;
    }
    std::vector<Item>& runs = open[run.shard];
    Size& sum = open_sizes[run.shard];
    if (runs.size() >= kOutboxBatchRuns || !(sum + size).Fits()) {
      close(runs);
      sum = {};
    }
    runs.push_back(run);
    sum = sum + size;
  }
  for (auto& [shard, runs] : open) close(runs);
}

}  // namespace

std::string ValuesOf(std::size_t rows, std::size_t columns) {
  std::string text = "(values ";
  for (std::size_t r = 0; r < rows; ++r) {
    text += r > 0 ? ", (" : "(";
    for (std::size_t c = 1; c <= columns; ++c) text += (c > 1 ? ", $" : "$") + std::to_string(r * columns + c);
    text += ')';
  }
  return text + ")";
}

SqlLedger::SqlLedger(std::unique_ptr<SqlStore> store, const LedgerOptions& options)
    : store_(std::move(store)), options_(options), chain_(options.writer, options.actor) {}

Result<void> SqlLedger::Migrate(MonoTime deadline) {
  shard_count_.reset();
  return store_->Migrate(options_.shard_count, deadline);
}

Result<std::uint16_t> SqlLedger::ShardCount(MonoTime deadline) {
  if (shard_count_) return *shard_count_;
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select number from ledger_setting where name = 'shard_count'", {}, deadline));
  if (rows.empty())
    return Fail(ErrorCode::kCorrupt, "the ledger does not say how many shards it has: table ledger_setting is empty");
  shard_count_ = static_cast<std::uint16_t>(rows[0][0].number);
  return *shard_count_;
}

Result<void> SqlLedger::CheckShardCount(std::uint16_t given, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const std::uint16_t stored, ShardCount(deadline));
  if (stored != given) return Fail(ErrorCode::kInvalidArgument, "shard count {}: the ledger has {} shards", given, stored);
  return {};
}

Result<WriteSet> SqlLedger::Build(const Batch& batch, MonoTime deadline) {
  WriteSet set;
  set.holds.assign(batch.holds.begin(), batch.holds.end());
  set.owner = batch.owner;
  set.outbox_done = batch.outbox_done;
  set.outbox_done_cancels = batch.outbox_done_cancels;
  set.outbox_done_batches = batch.outbox_done_batches;
  set.others = batch.others;
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  const auto item_of = [&](const Uuid& id, OrgId org) { return Item{id, org, ShardOf(org, shards)}; };
  for (const RunSpec* run : batch.runs) {
    const Item item = item_of(run->id.uuid, run->org);
    set.live_runs.push_back(item);
    if (batch.outbox && !batch.outbox_batches) set.outbox_runs.push_back(item);
  }
  if (batch.outbox && batch.outbox_batches) PutTogether(batch, set);
  for (const JobSpec* job : batch.jobs) {
    if (job->run) continue;
    const Item item = item_of(job->id.uuid, job->org);
    set.live_jobs.push_back(item);
    if (batch.outbox) set.outbox_jobs.push_back(item);
  }
  // What a rebuild found may end before its outbox row is read: it must not be started from there again.
  for (const OutcomeRow* outcome : batch.outcomes)
    if (!outcome->run) set.ended_jobs.push_back(item_of(outcome->report.job.uuid, outcome->org));
  for (const RunOutcomeRow* outcome : batch.run_outcomes) set.ended_runs.push_back(item_of(outcome->run.uuid, outcome->org));
  MILLRACE_TRY(AddUniqueKeys(batch, set, deadline));
  for (const Batch::Guard& guard : batch.guards) set.others.push_back(UnlessLaterRun(guard.slot));
  return set;
}

// A writer id that was used before goes on where its chain ends; after a commit whose outcome is not known, that may be where
// it was before.
Result<void> SqlLedger::LoadChain(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select max(seq) from audit_record where writer = $1",
                                                   Params().Id(options_.writer.uuid), deadline));
  if (!rows.empty() && !rows[0][0].null) {
    const auto seq = static_cast<std::uint64_t>(rows[0][0].number);
    MILLRACE_TRY_ASSIGN(const auto last, AuditRecords(options_.writer, seq - 1, 1, deadline));
    if (!last.empty()) chain_.Resume(last.front());
  }
  chain_loaded_ = true;
  return {};
}

Result<void> SqlLedger::WriteRows(Batch& batch, MonoTime deadline) {
  if (!chain_loaded_) MILLRACE_TRY(LoadChain(deadline));
  for (int round = 0; round < kRoundsMax; ++round) {
    MILLRACE_TRY_ASSIGN(WriteSet set, Build(batch, deadline));
    std::vector<Digest> leaves;
    std::int64_t next = 0;
    AppendTable(Table::kPipelineVersion, batch.versions, set, &leaves, next);
    AppendTable(Table::kSlot, batch.slots, set, &leaves, next);
    AppendTable(Table::kRun, batch.runs, set, &leaves, next);
    AppendTable(Table::kJob, batch.jobs, set, &leaves, next);
    AppendTable(Table::kAttempt, batch.attempts, set, &leaves, next);
    AppendTable(Table::kOutcome, batch.outcomes, set, &leaves, next);
    AppendTable(Table::kRunOutcome, batch.run_outcomes, set, &leaves, next);
    AppendTable(Table::kCancel, batch.cancels, set, &leaves, next);
    AppendTable(Table::kQueueSetting, batch.queue_settings, set, &leaves, next);
    AppendTable(Table::kBackfill, batch.backfills, set, &leaves, next);
    AppendTable(Table::kDeadAction, batch.dead_actions, set, &leaves, next);
    AppendTable(Table::kPruned, batch.pruned, set, &leaves, next);
    std::optional<AuditRecord> record;
    if (!leaves.empty()) record = chain_.Next(std::move(leaves), options_.clock->WallNow());
    auto applied = store_->Apply(set, record ? &*record : nullptr, deadline);
    if (!applied) {
      if (applied.error().code == ErrorCode::kMaybeApplied) {
        chain_loaded_ = false;
        chain_in_doubt_ = true;
      }
      return std::unexpected(std::move(applied.error()));
    }
    if (*applied == SqlStore::Applied::kYes) {
      if (record) chain_.Advance(*record);
      chain_in_doubt_ = chain_in_doubt_ && !record;
      return {};
    }
    MILLRACE_TRY_ASSIGN(const bool pruned, Prune(batch, deadline));
    if (pruned) continue;
    // The key's holder let go of it in the meantime: once more.
    const bool unique = std::ranges::any_of(batch.jobs, [](const JobSpec* j) { return !j->options.unique_key.empty(); });
    if (unique && round + 1 < kRoundsMax && !chain_in_doubt_) continue;
    if (!chain_in_doubt_)
      return Fail(ErrorCode::kConflict, "audit writer {}: a record of this number exists, the writer id is used twice",
                  options_.writer.ToString());
    // The lost commit arrived after the chain was loaded. It is final now: Apply waits for it before it writes.
    chain_in_doubt_ = false;
    MILLRACE_TRY(LoadChain(deadline));
  }
  return Fail(ErrorCode::kConflict, "keys kept appearing while the batch was written; try again");
}

Result<std::set<Uuid>> SqlLedger::Existing(Table table, std::vector<Uuid> ids, MonoTime deadline) {
  std::set<Uuid> found;
  if (ids.empty()) return found;
  const TableDef& def = DefOf(table);
  const std::string key(def.columns[0].name);
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select " + key + " from " + std::string(def.name) + " where " + key + store_->In(1),
                                  Params().Ids(std::move(ids)), deadline));
  for (std::size_t i = 0; i < rows.size(); ++i) found.insert(UuidOf(rows[i][0]));
  return found;
}

Result<bool> SqlLedger::PruneSlots(Batch& batch, std::set<Uuid>& dropped_runs, MonoTime deadline) {
  std::vector<const SlotRow*> kept;
  using Key = std::tuple<std::int64_t, std::string, std::string, std::int64_t, std::int64_t>;
  std::set<Key> seen;
  // Two schedulers at the same herd of slots: whole pages of keys are asked for at once.
  for (std::size_t at = 0; at < batch.slots.size();) {
    const std::size_t count = batch.slots.size() - at >= kPrunePage ? kPrunePage : 1;
    Params params;
    for (std::size_t i = 0; i < count; ++i) {
      const SlotKey& k = batch.slots[at + i]->key;
      params.Int(k.org.value()).Text(k.pipeline).Text(k.schedule).Time(k.slot).Int(k.generation);
    }
    static const std::string kSql =
        "select org, pipeline, schedule, slot, generation from slot where (org, pipeline, schedule, slot, generation) in ";
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(kSql + ValuesOf(count, 5), params, deadline));
    for (std::size_t i = 0; i < rows.size(); ++i)
      seen.emplace(rows[i][0].number, rows[i][1].bytes, rows[i][2].bytes, ToUnixMicros(TimeOf(rows[i][3])), rows[i][4].number);
    at += count;
  }
  for (const SlotRow* slot : batch.slots) {
    const SlotKey& k = slot->key;
    if (seen.emplace(k.org.value(), k.pipeline, k.schedule, ToUnixMicros(k.slot), k.generation).second) {
      kept.push_back(slot);
      continue;
    }
    batch.duplicate_slots.push_back(k);
    if (slot->run) dropped_runs.insert(slot->run->uuid);
  }
  const bool pruned = kept.size() != batch.slots.size();
  batch.slots = std::move(kept);
  return pruned;
}

Result<bool> SqlLedger::Prune(Batch& batch, MonoTime deadline) {
  const auto ids = [](const auto& rows, auto id) {
    std::vector<Uuid> out;
    for (const auto* row : rows) out.push_back(id(*row));
    return out;
  };
  const auto run_id = [](const RunSpec& r) { return r.id.uuid; };
  const auto job_id = [](const JobSpec& j) { return j.id.uuid; };
  const auto outcome_id = [](const OutcomeRow& o) { return o.report.job.uuid; };
  const auto run_outcome_id = [](const RunOutcomeRow& o) { return o.run.uuid; };
  bool pruned = false;

  for (const PipelineVersion* v : batch.versions) {
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select 1 from pipeline_version where org = $1 and pipeline = $2 and version = $3",
                                    Params().Int(v->org.value()).Text(v->name).Int(v->version), deadline));
    if (!rows.empty()) batch.version_exists = true;
  }
  if (batch.version_exists) return Fail(ErrorCode::kConflict, "another one applied the pipeline at the same time");

  for (const QueueSettingRow* row : batch.queue_settings) {
    const QueueSettings& q = row->settings;
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select 1 from queue_setting where org = $1 and queue = $2 and revision = $3",
                                    Params().Int(q.org.value()).Text(q.queue).Int(q.revision), deadline));
    if (!rows.empty()) batch.setting_exists = true;
  }
  if (batch.setting_exists) return Fail(ErrorCode::kConflict, "another one set the queue at the same time; look and set again");
  for (const BackfillRow* b : batch.backfills) {
    MILLRACE_TRY_ASSIGN(
        const Rows rows,
        store_->Run("select 1 from backfill where org = $1 and pipeline = $2 and schedule = $3 and generation = $4",
                    Params().Int(b->org.value()).Text(b->pipeline).Text(b->schedule).Int(b->generation), deadline));
    if (!rows.empty()) batch.generation_exists = true;
  }
  if (batch.generation_exists) return Fail(ErrorCode::kConflict, "another one took the generation at the same time");

  std::set<Uuid> dropped;
  MILLRACE_TRY_ASSIGN(pruned, PruneSlots(batch, dropped, deadline));
  MILLRACE_TRY_ASSIGN(auto runs, Existing(Table::kRun, ids(batch.runs, run_id), deadline));
  const std::set<Uuid> stored_runs = runs;
  pruned |= TakeOut(batch.runs, [&](const RunSpec& r) {
    if (dropped.contains(r.id.uuid)) return true;
    if (runs.insert(r.id.uuid).second) return false;  // not there, and the first of its id in this batch
    batch.duplicate_runs.push_back(r.id);
    if (batch.jobs_follow_runs && stored_runs.contains(r.id.uuid)) dropped.insert(r.id.uuid);
    return true;
  });
  MILLRACE_TRY_ASSIGN(auto jobs, Existing(Table::kJob, ids(batch.jobs, job_id), deadline));
  pruned |= TakeOut(batch.jobs, [&](const JobSpec& j) {
    if (!(j.run && dropped.contains(j.run->uuid)) && jobs.insert(j.id.uuid).second) return false;
    batch.duplicate_jobs.push_back(j.id);
    return true;
  });
  std::set<std::pair<Uuid, std::uint64_t>> attempts;
  if (!batch.attempts.empty()) {
    MILLRACE_TRY_ASSIGN(
        const Rows rows,
        store_->Run("select job, token from attempt where job" + store_->In(1),
                    Params().Ids(ids(batch.attempts, [](const AttemptRow& a) { return a.report.job.uuid; })), deadline));
    for (std::size_t i = 0; i < rows.size(); ++i)
      attempts.emplace(UuidOf(rows[i][0]), static_cast<std::uint64_t>(rows[i][1].number));
  }
  pruned |= TakeOut(batch.attempts,
                    [&](const AttemptRow& a) { return !attempts.emplace(a.report.job.uuid, a.report.token.value()).second; });
  MILLRACE_TRY_ASSIGN(auto outcomes, Existing(Table::kOutcome, ids(batch.outcomes, outcome_id), deadline));
  pruned |= TakeOut(batch.outcomes, [&](const OutcomeRow& o) {
    if (outcomes.insert(o.report.job.uuid).second) return false;
    batch.duplicate_outcomes.push_back(o.report.job);
    return true;
  });
  MILLRACE_TRY_ASSIGN(auto run_outcomes, Existing(Table::kRunOutcome, ids(batch.run_outcomes, run_outcome_id), deadline));
  MILLRACE_TRY_ASSIGN(auto cancels,
                      Existing(Table::kCancel, ids(batch.cancels, [](const CancelRow& c) { return c.item; }), deadline));
  pruned |= TakeOut(batch.cancels, [&](const CancelRow& c) { return !cancels.insert(c.item).second; });
  pruned |= TakeOut(batch.run_outcomes, [&](const RunOutcomeRow& o) { return !run_outcomes.insert(o.run.uuid).second; });
  MILLRACE_TRY_ASSIGN(const bool refused, PruneUniqueKeys(batch, deadline));
  MILLRACE_TRY_ASSIGN(const bool acted, PruneDeadActions(batch, deadline));
  MILLRACE_TRY_ASSIGN(const bool guarded, PruneGuarded(batch, deadline));
  pruned = pruned || refused || acted || guarded;
  return pruned;
}

Result<OwnerBatchResult> SqlLedger::Commit(const OwnerBatch& given, MonoTime deadline) {
  if (given.Empty()) return OwnerBatchResult{};
  Batch batch;
  batch.holds = given.holds;
  batch.owner = given.owner;
  batch.jobs_follow_runs = true;
  for (const auto& r : given.runs) batch.runs.push_back(&r);
  for (const auto& r : given.jobs) batch.jobs.push_back(&r);
  for (const auto& r : given.attempts) batch.attempts.push_back(&r);
  for (const auto& r : given.outcomes) batch.outcomes.push_back(&r);
  for (const auto& r : given.run_outcomes) batch.run_outcomes.push_back(&r);
  for (const auto& r : given.cancels) batch.cancels.push_back(&r);
  for (const auto& id : given.outbox_done_runs) batch.outbox_done.push_back(id.uuid);
  for (const auto& id : given.outbox_done_jobs) batch.outbox_done.push_back(id.uuid);
  batch.outbox_done_cancels = given.outbox_done_cancels;
  batch.outbox_done_batches = given.outbox_done_batches;
  for (const auto& id : given.unique_started) batch.unique_started.push_back(id.uuid);
  MILLRACE_TRY(Write(batch, deadline));
  return OwnerBatchResult{std::move(batch.duplicate_runs), std::move(batch.duplicate_jobs), std::move(batch.duplicate_outcomes),
                          std::move(batch.conflicts)};
}

Result<void> SqlLedger::SubmitRun(const RunSpec& run, std::span<const JobSpec> jobs, MonoTime deadline) {
  std::size_t bytes = 0;
  for (const JobSpec& job : jobs) bytes += job.payload.size();
  if (bytes > kRunPayloadBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "run: its {} jobs have {} bytes of payloads, limit {}: make several runs of it",
                jobs.size(), bytes, kRunPayloadBytesMax);
  Batch batch;
  batch.outbox = batch.jobs_follow_runs = true;
  batch.runs.push_back(&run);
  for (const auto& job : jobs) batch.jobs.push_back(&job);
  return Write(batch, deadline);
}

Result<SubmitJobsResult> SqlLedger::SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline) {
  if (jobs.empty()) return SubmitJobsResult{};
  Batch batch;
  batch.outbox = true;
  for (const auto& job : jobs) batch.jobs.push_back(&job);
  MILLRACE_TRY(Write(batch, deadline));
  return SubmitJobsResult{std::move(batch.duplicate_jobs), std::move(batch.conflicts)};
}

Result<void> SqlLedger::CheckCancels(std::span<const CancelRow> rows, MonoTime deadline) {
  std::map<OrgId, std::vector<const CancelRow*>> by_org;
  for (const CancelRow& row : rows) by_org[row.org].push_back(&row);
  for (const auto& [org, mine] : by_org) {
    std::vector<Uuid> items;
    for (const CancelRow* row : mine) items.push_back(row->item);
    MILLRACE_TRY_ASSIGN(const auto states, States(org, items, deadline));
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const bool is_run = !states[i].live && !states[i].job_ended;
      if (states[i].known && is_run == mine[i]->is_run) continue;
      MILLRACE_TRY_ASSIGN(const Rows backfill, store_->Run("select 1 from backfill where backfill = $1 and org = $2",
                                                           Params().Id(items[i]).Int(org.value()), deadline));
      if (!mine[i]->is_run && !backfill.empty()) continue;
      return Fail(ErrorCode::kNotFound, "{} {}: there is none", mine[i]->is_run ? "run" : "job", items[i].ToString());
    }
  }
  return {};
}

Result<void> SqlLedger::RequestCancel(std::span<const CancelRow> rows, MonoTime deadline) {
  if (rows.empty()) return {};
  MILLRACE_TRY(CheckCancels(rows, deadline));
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  Batch batch;
  for (const CancelRow& row : rows) {
    batch.cancels.push_back(&row);
    // A row that was there stays, also if the owner is about to take it out (WriteSet::outbox_done): he has not seen the
    // request yet. What is live is locked: an end that commits meanwhile takes out no row that comes after it.
    const std::string table = row.is_run ? "live_run" : "live_job", key = row.is_run ? "run" : "job";
    batch.others.push_back({"insert into outbox (item, org, shard, is_run, cancel_requested) select " + key + ", org, shard, " +
                                (row.is_run ? "1" : "0") + ", 1 from " + table + " where " + key +
                                " = $1 and org = $2 and shard = $3" + std::string(store_->ForUpdate()) +
                                " on conflict (shard, item) do update set cancel_requested = 1",
                            Params().Id(row.item).Int(row.org.value()).Int(ShardOf(row.org, shards).value())});
  }
  return Write(batch, deadline);
}

}  // namespace millrace::ledger
