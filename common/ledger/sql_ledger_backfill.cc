#include <algorithm>
#include <limits>

#include "common/ledger/sql_ledger.h"
#include "common/model/backfill.h"

// A backfill is one audited row, which never changes, and two tables of bookkeeping: how far it has been fed, and which of its
// runs were active when somebody last looked. What became of its slots is in the slots themselves.

namespace millrace::ledger {
namespace {

// Of a slot's run. One that is not there was pruned: it is not active, and nobody repeats it unasked. One that ended without
// success may have been retried, and so may that: the last one counts. All others cost no look at retries. The tables are
// named in the order in which a prune locks them.
constexpr std::string_view kRunState =
    "case when o.state <> 10 then (with recursive chain (run, n) as (select s.run, 0 union all select d.new_job, c.n + 1 "
    "from chain c join dead_action d on d.job = c.run) "
    "select coalesce(lo.state, case when lr.run is null then 10 end) from (select run from chain order by n desc limit 1) l "
    "left join run lr on lr.run = l.run left join run_outcome lo on lo.run = l.run) "
    "else coalesce(o.state, case when s.run is not null and r.run is null then 10 end) end";
constexpr std::string_view kSlotsWithRuns = "slot s left join run r on r.run = s.run left join run_outcome o on o.run = s.run";
// A run is live that is there and has no outcome. (The table of live runs is by shard, which SQL does not know.)
constexpr std::string_view kLiveOfBackfill =
    "exists (select 1 from run r where r.run = n.run) and not exists (select 1 from run_outcome o where o.run = n.run)";

constexpr int kCreateRoundsMax = 8;

std::vector<Uuid> KeysOf(const std::map<Uuid, Uuid>& map) {
  std::vector<Uuid> keys;
  for (const auto& [key, value] : map) keys.push_back(key);
  return keys;
}

BackfillState StateFrom(std::span<const Value> c, std::size_t at) {
  BackfillState s;
  s.row = BackfillFrom(c);
  s.position = TimeOf(c[at]);
  s.fed = c[at + 1].number != 0;
  if (!c[at + 2].null) s.ended_at = TimeOf(c[at + 2]);
  s.noted = static_cast<std::uint32_t>(c[at + 3].number);
  s.active = static_cast<std::uint32_t>(c[at + 4].number);
  if (!c[at + 5].null) s.stopped = CancelFrom(c.subspan(at + 5));
  return s;
}

}  // namespace

std::vector<Statement> StepStatements(const BackfillStep& step, WallTime now) {
  std::vector<Statement> all;
  // A run whose slot another scheduler had written was not created: it is not noted either.
  for (const RunId& run : step.runs)
    all.push_back(
        {"insert into backfill_live (backfill, run) select $1, r.run from run r where r.run = $2 "
         "on conflict do nothing",
         Params().Id(step.id.uuid).Id(run.uuid)});
  all.push_back({"update backfill_state set position = $3, fed = $4 where backfill = $1 and position = $2 and fed = 0",
                 Params().Id(step.id.uuid).Time(step.position_was).Time(step.position).Int(step.fed ? 1 : 0)});
  all.push_back({"delete from backfill_live as n where n.backfill = $1 and not (" + std::string(kLiveOfBackfill) + ")",
                 Params().Id(step.id.uuid)});
  all.push_back(
      {"update backfill_state set ended_at = $2 where backfill = $1 and fed = 1 and ended_at is null and not exists "
       "(select 1 from backfill_live l where l.backfill = $1)",
       Params().Id(step.id.uuid).Time(now)});
  return all;
}

// The stored backfill that `wanted` means, and the highest generation that is taken.
Result<std::optional<BackfillRow>> SqlLedger::SameBackfill(const BackfillRow& wanted, std::uint32_t& highest,
                                                           MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store_->Run("select " + store_->Columns(Table::kBackfill, "b") +
                      ", coalesce(s.ended_at, c.requested_at) from backfill b "
                      "join backfill_state s on s.backfill = b.backfill left join cancel c on c.item = b.backfill "
                      "where b.org = $1 and b.pipeline = $2 and b.schedule = $3 order by b.generation",
                  Params().Int(wanted.org.value()).Text(wanted.pipeline).Text(wanted.schedule), deadline));
  std::optional<BackfillRow> same;
  highest = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    BackfillRow row = BackfillFrom(rows[i]);
    highest = row.generation;
    const bool ended = !rows[i][DefOf(Table::kBackfill).columns.size()].null;
    const bool equal = row.from == wanted.from && row.to == wanted.to && row.options == wanted.options;
    if (wanted.generation == 0 && equal && !ended) same = std::move(row);
    if (wanted.generation == 0 || highest != wanted.generation) continue;
    if (!equal)
      return Fail(ErrorCode::kConflict,
                  "generation {} of schedule '{}' of pipeline '{}' is backfill {}, with another range or other options",
                  highest, wanted.schedule, wanted.pipeline, row.id.ToString());
    return row;
  }
  return same;
}

Result<Ledger::CreatedBackfill> SqlLedger::CreateBackfill(BackfillRow row, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const BackfillOptions options, BackfillOptionsFromJson(row.options));
  const bool any_generation = row.generation == 0;
  if (row.generation > kBackfillGenerationMax)
    return Fail(ErrorCode::kInvalidArgument, "generation {} is not in [1, {}]: leave it out for the next one", row.generation,
                kBackfillGenerationMax);
  for (int round = 0; round < kCreateRoundsMax; ++round) {
    std::uint32_t highest = 0;
    if (any_generation) row.generation = 0;
    MILLRACE_TRY_ASSIGN(auto same, SameBackfill(row, highest, deadline));
    if (same) return CreatedBackfill{std::move(*same), false};
    if (any_generation && highest == std::numeric_limits<std::uint32_t>::max())
      return Fail(ErrorCode::kConflict,
                  "generation {} of schedule '{}' of pipeline '{}' is taken, and there is none after it: give a free one "
                  "(--generation)",
                  highest, row.schedule, row.pipeline);
    if (any_generation) row.generation = highest + 1;
    Batch batch;
    batch.backfills.push_back(&row);
    batch.others.push_back({"insert into backfill_state (backfill, position) values ($1, $2)",
                            Params().Id(row.id.uuid).Time(options.newest_first ? row.to : row.from)});
    const auto written = Write(batch, deadline);
    if (written) return CreatedBackfill{std::move(row), true};
    if (!batch.generation_exists) return std::unexpected(written.error());
  }
  return Fail(ErrorCode::kConflict, "pipeline '{}': others keep making backfills at the same time; try again", row.pipeline);
}

Result<std::vector<BackfillState>> SqlLedger::Backfills(const BackfillFilter& filter, MonoTime deadline) {
  // Position and active runs in one statement: one view of the ledger.
  std::string sql = "select " + store_->Columns(Table::kBackfill, "b") +
                    ", s.position, s.fed, s.ended_at, "
                    "(select count(*) from backfill_live n where n.backfill = b.backfill), "
                    "(select count(*) from backfill_live n where n.backfill = b.backfill and " +
                    std::string(kLiveOfBackfill) + "), " + store_->Columns(Table::kCancel, "c") +
                    " from backfill_state s join backfill b on b.backfill = s.backfill "
                    "left join cancel c on c.item = b.backfill where s.backfill is not null";
  Params params;
  int at = 0;
  if (filter.unended) sql += " and s.ended_at is null";
  if (filter.org) {
    sql += " and b.org = $" + std::to_string(++at);
    params.Int(filter.org->value());
  }
  if (filter.id) {
    sql += " and b.backfill = $" + std::to_string(++at);
    params.Id(filter.id->uuid);
  }
  if (filter.pipeline) {
    sql += " and b.pipeline = $" + std::to_string(++at);
    params.Text(*filter.pipeline);
  }
  params.Int(filter.limit);
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run(sql + " order by b.backfill desc limit $" + std::to_string(++at), params, deadline));
  std::vector<BackfillState> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(StateFrom(rows[i], DefOf(Table::kBackfill).columns.size()));
  return all;
}

Result<std::vector<SlotHistory>> SqlLedger::SlotHistories(OrgId org, std::string_view pipeline, std::string_view schedule,
                                                          std::span<const WallTime> slots, MonoTime deadline) {
  std::vector<SlotHistory> all;
  if (slots.empty()) return all;
  if (slots.size() > kSlotHistoriesMax)
    return Fail(ErrorCode::kInvalidArgument, "{} slots, limit {}", slots.size(), kSlotHistoriesMax);
  // Always the same text: what is left of the list repeats its last slot.
  static const std::string kSql = [] {
    std::string list;
    for (std::size_t i = 0; i < kSlotHistoriesMax; ++i) list += (i > 0 ? ", $" : "$") + std::to_string(i + 4);
    return "select s.slot, s.generation, s.state, s.run, " + std::string(kRunState) + " from " + std::string(kSlotsWithRuns) +
           " where s.org = $1 and s.pipeline = $2 and s.schedule = $3 and s.slot in (" + list +
           ") order by s.slot, s.generation";
  }();
  Params params;
  params.Int(org.value()).Text(pipeline).Text(schedule);
  for (std::size_t i = 0; i < kSlotHistoriesMax; ++i) params.Time(slots[std::min(i, slots.size() - 1)]);
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(kSql, params, deadline));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = rows[i];
    SlotHistory h{.slot = TimeOf(row[0]),
                  .generation = static_cast<std::uint32_t>(row[1].number),
                  .state = std::string(row[2].bytes),
                  .run = std::nullopt,
                  .run_ended = std::nullopt};
    if (!row[3].null) h.run = RunId{UuidOf(row[3])};
    if (!row[4].null) h.run_ended = static_cast<RunState>(row[4].number);
    all.push_back(std::move(h));
  }
  MILLRACE_TRY(SeeRequeuedLoads(all, deadline));
  return all;
}

// By what each of these runs or jobs was repeated, and that again, with which of `from` it goes back to. In steps by id: as one
// recursive statement the planner reads the whole history.
Result<std::map<Uuid, Uuid>> SqlLedger::RepeatsOf(const std::map<Uuid, Uuid>& from, MonoTime deadline) {
  std::map<Uuid, Uuid> all, last = from;
  for (int step = 0; !last.empty() && step < kRepeatsMax; ++step) {
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select job, new_job from dead_action where job" + store_->In(1) +
                                                         " and new_job is not null",
                                                     Params().Ids(KeysOf(last)), deadline));
    std::map<Uuid, Uuid> next;
    for (std::size_t i = 0; i < rows.size(); ++i) next.emplace(UuidOf(rows[i][1]), last.at(UuidOf(rows[i][0])));
    all.insert(next.begin(), next.end());
    last = std::move(next);
  }
  return all;
}

// A load that was requeued by itself is of its run's effect: what runs the slot again in a later generation would load beside
// it.
Result<void> SqlLedger::SeeRequeuedLoads(std::span<SlotHistory> slots, MonoTime deadline) {
  const auto failed = [](const SlotHistory& h) { return h.run && h.run_ended && *h.run_ended != RunState::kSucceeded; };
  std::map<Uuid, Uuid> runs;  // retries included, with the slot's
  for (const SlotHistory& h : slots)
    if (failed(h)) runs.emplace(h.run->uuid, h.run->uuid);
  if (runs.empty()) return {};
  MILLRACE_TRY_ASSIGN(const auto retries, RepeatsOf(runs, deadline));
  runs.insert(retries.begin(), retries.end());
  // What is not a load writes to the lake (EffectKey), or has no effect.
  MILLRACE_TRY_ASSIGN(const Rows loads, store_->Run("select job, run from job where run" + store_->In(1) +
                                                        " and effect <> '' and effect not like '%/%/%/lake/%'",
                                                    Params().Ids(KeysOf(runs)), deadline));
  std::map<Uuid, Uuid> jobs;
  for (std::size_t i = 0; i < loads.size(); ++i) jobs.emplace(UuidOf(loads[i][0]), runs.at(UuidOf(loads[i][1])));
  MILLRACE_TRY_ASSIGN(const auto again, RepeatsOf(jobs, deadline));
  if (again.empty()) return {};
  // Those of a retried run are that run's. One without an outcome lives.
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select j.job, o.state from job j left join outcome o on o.job = j.job where j.job" +
                                      store_->In(1) + " and j.run is null",
                                  Params().Ids(KeysOf(again)), deadline));
  std::map<Uuid, std::optional<RunState>> became;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool lives = rows[i][1].null;
    if (!lives && rows[i][1].number != static_cast<std::int64_t>(JobState::kSucceeded)) continue;
    auto& state = became[again.at(UuidOf(rows[i][0]))];
    if (!lives) state = RunState::kSucceeded;
  }
  for (SlotHistory& h : slots)
    if (const auto it = failed(h) ? became.find(h.run->uuid) : became.end(); it != became.end()) h.run_ended = it->second;
  return {};
}

Result<std::map<RunState, std::uint64_t>> SqlLedger::BackfillRuns(const BackfillRow& row, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store_->Run(
          "select x.state, count(*) from (select " + std::string(kRunState) + " as state from " + std::string(kSlotsWithRuns) +
              " where s.org = $1 and s.pipeline = $2 and s.schedule = $3 and s.slot >= $4 and s.slot < $5 and s.generation = "
              "$6 and "
              "s.run is not null) x group by x.state",
          Params().Int(row.org.value()).Text(row.pipeline).Text(row.schedule).Time(row.from).Time(row.to).Int(row.generation),
          deadline));
  std::map<RunState, std::uint64_t> counts;
  for (std::size_t i = 0; i < rows.size(); ++i)
    counts[rows[i][0].null ? RunState::kRunning : static_cast<RunState>(rows[i][0].number)] +=
        static_cast<std::uint64_t>(rows[i][1].number);
  return counts;
}

}  // namespace millrace::ledger
