#include <algorithm>

#include "common/ledger/sql_ledger.h"
#include "common/model/job_options.h"
#include "common/model/stage_task.h"
#include "common/wire/check_job.h"

// The enqueue table: rows of other people's transactions become jobs.
//
// What is there is taken, never "what is newer than the last one": a transaction that began early may commit late. A row
// goes in the transaction that inserts its job, and the job's primary key decides between brokers that read the same row.

namespace millrace::ledger {
namespace {

constexpr std::size_t kOrgsMax = 64;  // of one transaction; the others come with the next call
constexpr std::string_view kColumns =
    "job, org, queue, kind, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms, run_at, "
    "options, enqueued_at";

// Ids sort by time and name their partition: others would be found by nobody.
bool IsUuidV7(const Uuid& id) { return (id.bytes[6] >> 4) == 7 && (id.bytes[8] >> 6) == 2; }

// A column has numbers that no int has, and a complaint names the one that is there.
Result<int> InRange(std::string_view field, std::int64_t number, int least, int most) {
  if (number >= least && number <= most) return static_cast<int>(number);
  return Fail(ErrorCode::kInvalidArgument, "{}: {} is not in [{}, {}]", field, number, least, most);
}

Result<JobSpec> JobOf(std::span<const Value> c) {
  JobSpec j;
  j.id = JobId{UuidOf(c[0])};
  j.org = OrgId{c[1].number};
  j.queue = c[2].bytes;
  j.kind = c[3].bytes;
  j.payload = c[4].bytes;
  MILLRACE_TRY_ASSIGN(j.priority, InRange("priority", c[5].number, 0, kPriorityLevels - 1));
  MILLRACE_TRY_ASSIGN(const int max_attempts, InRange("max_attempts", c[6].number, 1, kMaxAttemptsMax));
  j.retry = {max_attempts, Millis{c[7].number}, Millis{c[8].number}};
  j.timeout = Millis{c[9].number};
  if (!c[10].null) j.run_at = TimeOf(c[10]);
  j.submitted_at = TimeOf(c[12]);
  if (!IsUuidV7(j.id.uuid))
    return Fail(ErrorCode::kInvalidArgument, "job: '{}' is no UUIDv7; leave the column out to get one", j.id.ToString());
  if (c[13].number > static_cast<std::int64_t>(kPayloadBytesMax))
    return Fail(ErrorCode::kInvalidArgument, "payload: {} bytes, limit {}", c[13].number, kPayloadBytesMax);
  if (c[11].bytes.size() > kJobOptionsBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "options: {} bytes, limit {}", c[11].bytes.size(), kJobOptionsBytesMax);
  MILLRACE_TRY_ASSIGN(j.options, JobOptionsFromJson(c[11].bytes));
  MILLRACE_TRY(wire::CheckClientsOptions(j.options));
  if (j.options.durability == Durability::kRedis)
    return Fail(ErrorCode::kInvalidArgument, "options: a row of the ledger is of durability: ledger");
  if (j.kind == kJobKindStage)
    return Fail(ErrorCode::kInvalidArgument, "kind: stages come from pipelines: start one with millrace run start");
  if (j.kind == kJobKindCommand) {
    MILLRACE_TRY_ASSIGN(j.payload, CommandPayload(j.payload, j.id, j.org));
  }
  MILLRACE_TRY(wire::CheckJob(j));
  return j;
}

bool IsRowsOwnFault(ErrorCode code) { return code == ErrorCode::kInvalidArgument || code == ErrorCode::kCorrupt; }

}  // namespace

struct SqlLedger::EnqueuePage {
  std::vector<JobSpec> jobs;
  std::vector<std::pair<Uuid, std::string>> refused;
  bool full = false;
};

Result<SqlLedger::EnqueuePage> SqlLedger::ReadEnqueued(OrgId org, std::size_t limit, MonoTime deadline) {
  // Payloads that are too large are not even read.
  const std::string read =
      "select job, org, queue, kind, case when bytes <= " + std::to_string(kPayloadBytesMax) +
      " then payload end, priority, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms, run_at, cast(options as text), "
      "enqueued_at, bytes from (select e.*, length(payload) as bytes, sum(length(payload)) over (order by job) as total from "
      "(select * from enqueue where org = $1 order by job limit $2) e) x where total - bytes < " +
      std::to_string(kEnqueueBytesMax) + " order by job";
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run(read, Params().Int(org.value()).Int(static_cast<std::int64_t>(limit)), deadline));
  EnqueuePage page;
  page.full = rows.size() == limit;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    bytes += rows[i][4].bytes.size();
    if (auto job = JobOf(rows[i]))
      page.jobs.push_back(std::move(*job));
    else
      page.refused.emplace_back(UuidOf(rows[i][0]), std::move(job.error().message));
  }
  page.full = page.full || bytes >= kEnqueueBytesMax;
  return page;
}

Result<void> SqlLedger::AcceptEnqueued(std::span<const JobSpec> jobs, EnqueuePage& page, EnqueueTaken& taken,
                                       MonoTime deadline) {
  Batch batch;
  batch.outbox = true;
  std::vector<Uuid> ids;
  for (const JobSpec& job : jobs) {
    batch.jobs.push_back(&job);
    ids.push_back(job.id.uuid);
  }
  // Whatever is a job now; a row whose unique key was held is not.
  batch.others.push_back(
      {"delete from enqueue where job" + store_->In(1) + " and exists (select 1 from job j where j.job = enqueue.job)",
       Params().Ids(std::move(ids))});
  if (auto written = Write(batch, deadline); !written) {
    if (!IsRowsOwnFault(written.error().code)) return written;
    if (jobs.size() == 1) {
      page.refused.emplace_back(jobs[0].id.uuid, std::move(written.error().message));
      return {};
    }
    MILLRACE_TRY(AcceptEnqueued(jobs.first(jobs.size() / 2), page, taken, deadline));
    return AcceptEnqueued(jobs.subspan(jobs.size() / 2), page, taken, deadline);
  }
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  for (const JobSpec* job : batch.jobs) taken.shards.insert(ShardOf(job->org, shards));
  for (const UniqueConflict& conflict : batch.conflicts)
    page.refused.emplace_back(conflict.job.uuid, "unique_key: held by job " + conflict.holder.ToString());
  taken.accepted += static_cast<std::uint32_t>(batch.jobs.size());
  taken.duplicates += static_cast<std::uint32_t>(batch.duplicate_jobs.size());
  return {};
}

// A row that is refused again replaces the org's earlier one of that id. That one is looked up before, so that only its week is
// locked; where another broker refuses the id in between, both rows stay.
Result<void> SqlLedger::RefuseEnqueued(OrgId org, const EnqueuePage& page, MonoTime deadline) {
  if (page.refused.empty()) return {};
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  std::vector<Uuid> ids;
  for (const auto& [id, reason] : page.refused) ids.push_back(id);
  MILLRACE_TRY_ASSIGN(const Rows earlier,
                      store_->Run("select job, refused_at from enqueue_refused where org = $1 and job" + store_->In(2),
                                  Params().Int(org.value()).Ids(std::move(ids)), deadline));
  Batch batch;
  Arena arena;
  // Of two brokers that read the same row the second waits here, and then finds nothing to refuse.
  for (const auto& [id, reason] : page.refused)
    batch.others.push_back({"select 1 from enqueue where job = $1" + std::string(store_->ForUpdate()), Params().Id(id)});
  for (std::size_t i = 0; i < earlier.size(); ++i)
    batch.others.push_back(
        {"delete from enqueue_refused where org = $1 and job = $2 and refused_at = $3 and exists (select 1 from "
         "enqueue e where e.job = $2 and e.org = $1)",
         Params().Int(org.value()).Id(UuidOf(earlier[i][0])).Time(TimeOf(earlier[i][1]))});
  for (const auto& [id, reason] : page.refused) {
    batch.others.push_back({"insert into enqueue_refused (" + std::string(kColumns) + ", reason, refused_at) select " +
                                std::string(kColumns) + ", $3, $4 from enqueue where job = $1 and org = $2",
                            Params().Id(id).Int(org.value()).Text(CleanText(reason, arena)).Time(now)});
    batch.others.push_back({"delete from enqueue where job = $1 and org = $2", Params().Id(id).Int(org.value())});
  }
  return Write(batch, deadline);
}

Result<EnqueueTaken> SqlLedger::TakeEnqueued(std::span<const ShardId> shards, MonoTime deadline) {
  // One look into the index per org, however many rows an org has.
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("with recursive o(org) as (select min(org) from enqueue union all select (select min(e.org) "
                                  "from enqueue e where e.org > o.org) from o where o.org is not null) select org from o where "
                                  "org is not null",
                                  {}, deadline));
  EnqueueTaken taken;
  if (rows.empty()) return taken;
  MILLRACE_TRY_ASSIGN(const std::uint16_t count, ShardCount(deadline));
  std::vector<OrgId> orgs;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (const OrgId org{rows[i][0].number}; std::ranges::find(shards, ShardOf(org, count)) != shards.end()) orgs.push_back(org);
  taken.more = orgs.size() > kOrgsMax;
  if (taken.more) {  // in turns
    std::ranges::rotate(orgs, std::ranges::upper_bound(orgs, enqueued_up_to_));
    orgs.resize(kOrgsMax);
    enqueued_up_to_ = orgs.back();
  }
  for (const OrgId org : orgs) {
    MILLRACE_TRY_ASSIGN(EnqueuePage page, ReadEnqueued(org, std::max<std::size_t>(1, kEnqueuePage / orgs.size()), deadline));
    const std::vector<JobSpec> jobs = std::move(page.jobs);
    if (!jobs.empty()) MILLRACE_TRY(AcceptEnqueued(jobs, page, taken, deadline));
    MILLRACE_TRY(RefuseEnqueued(org, page, deadline));
    taken.refused += static_cast<std::uint32_t>(page.refused.size());
    taken.more = taken.more || page.full;
  }
  return taken;
}

Result<EnqueueStatus> SqlLedger::Enqueued(OrgId org, std::uint32_t limit, MonoTime deadline) {
  EnqueueStatus status;
  MILLRACE_TRY_ASSIGN(const Rows waiting,
                      store_->Run("select count(*) from enqueue where org = $1", Params().Int(org.value()), deadline));
  status.waiting = static_cast<std::uint64_t>(waiting[0][0].number);
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select job, org, queue, kind, reason, refused_at from enqueue_refused where org = $1 "
                                  "order by job desc limit $2",
                                  Params().Int(org.value()).Int(limit), deadline));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto c = rows[i];
    status.refused.push_back({.job = JobId{UuidOf(c[0])},
                              .org = OrgId{c[1].number},
                              .queue = std::string(c[2].bytes),
                              .kind = std::string(c[3].bytes),
                              .reason = std::string(c[4].bytes),
                              .refused_at = TimeOf(c[5])});
  }
  return status;
}

}  // namespace millrace::ledger
