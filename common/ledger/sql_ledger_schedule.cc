#include <algorithm>
#include <map>
#include <tuple>

#include "common/ledger/sql_ledger.h"

namespace millrace::ledger {
namespace {

constexpr int kApplyRoundsMax = 8;
constexpr std::string_view kScheduleColumns =
    "org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, version, watermark, paused, active, "
    "starts, ends, jitter_ms, max_parallel, revision";

ScheduleRow ScheduleFrom(std::span<const Value> c) {
  ScheduleRow s;
  s.org = OrgId{c[0].number};
  s.pipeline = c[1].bytes;
  s.spec = {.name = std::string(c[2].bytes),
            .cron = std::string(c[3].bytes),
            .timezone = std::string(c[4].bytes),
            .catchup = std::string(c[5].bytes),
            .overlap = std::string(c[6].bytes),
            .dst = std::string(c[7].bytes),
            .misfire_grace = Millis{c[8].number},
            .start = std::string(c[13].bytes),
            .end = std::string(c[14].bytes),
            .jitter = Millis{c[15].number},
            .max_parallel = static_cast<std::uint32_t>(c[16].number)};
  s.version = c[9].number;
  s.watermark = TimeOf(c[10]);
  s.paused = c[11].number != 0;
  s.active = c[12].number != 0;
  s.revision = c[17].number;
  return s;
}

// A new, revived or re-timed schedule decides slots after now only; any other keeps its watermark. One that a newer version has
// set meanwhile stays as it is.
Statement UpsertSchedule(const ScheduleSpec& spec, OrgId org, std::string_view pipeline, std::int64_t version, WallTime now) {
  return {
      "insert into schedule (org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, version, "
      "watermark, starts, ends, jitter_ms, max_parallel) "
      "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) on conflict (org, pipeline, schedule) do "
      "update set "
      "cron = excluded.cron, timezone = excluded.timezone, catchup = excluded.catchup, overlap = excluded.overlap, "
      "dst = excluded.dst, misfire_grace_ms = excluded.misfire_grace_ms, version = excluded.version, active = 1, "
      "starts = excluded.starts, ends = excluded.ends, jitter_ms = excluded.jitter_ms, max_parallel = excluded.max_parallel, "
      "watermark = case when schedule.watermark < excluded.watermark and (schedule.active = 0 or schedule.cron <> "
      "excluded.cron or "
      "schedule.timezone <> excluded.timezone or schedule.dst <> excluded.dst or schedule.starts <> excluded.starts or "
      "schedule.ends <> excluded.ends) then excluded.watermark else schedule.watermark end where schedule.version <= "
      "excluded.version",
      Params()
          .Int(org.value())
          .Text(pipeline)
          .Text(spec.name)
          .Text(spec.cron)
          .Text(spec.timezone)
          .Text(spec.catchup)
          .Text(spec.overlap)
          .Text(spec.dst)
          .Int(spec.misfire_grace.count())
          .Int(version)
          .Time(now)
          .Text(spec.start)
          .Text(spec.end)
          .Int(spec.jitter.count())
          .Int(spec.max_parallel)};
}

// A herd of schedules goes to the same instant: one statement for all of an org's schedules of one name.
std::vector<Statement> MoveWatermarks(std::span<const FireBatch::Watermark> all, const SqlStore& store) {
  std::map<std::tuple<OrgId, std::string_view, WallTime>, std::vector<std::string>> groups;
  for (const auto& w : all) groups[{w.org, w.schedule, w.to}].push_back(w.pipeline);
  std::vector<Statement> statements;
  for (const auto& [group, pipelines] : groups) {
    const auto& [org, schedule, to] = group;
    Params params;
    params.Int(org.value()).Text(schedule).Time(to);
    const bool one = pipelines.size() == 1;
    if (one)
      params.Text(pipelines.front());
    else
      params.Texts(pipelines);
    // As a join: a list in a condition is searched from its start for each row when the plan does not know it.
    if (!one && store.HasFunctions()) {
      statements.push_back(
          {"update schedule s set watermark = $3 from unnest($4) u(pipeline) where s.org = $1 and "
           "s.pipeline = u.pipeline and s.schedule = $2 and s.watermark < $3",
           std::move(params)});
      continue;
    }
    statements.push_back(
        {"update schedule set watermark = $3 where org = $1 and schedule = $2 and watermark < $3 and pipeline" +
             (one ? std::string(" = $4") : store.InTexts(4)),
         std::move(params)});
  }
  return statements;
}

}  // namespace

Result<PipelineVersion> SqlLedger::ApplyPipeline(const Pipeline& pipeline, std::string_view definition_json,
                                                 std::string_view source, std::string_view base_dir, OrgId org,
                                                 MonoTime deadline) {
  return PutPipeline(pipeline, definition_json, source, base_dir, org, ScheduleUse::kApply, deadline);
}

Result<PipelineVersion> SqlLedger::StorePipeline(const Pipeline& pipeline, std::string_view definition_json,
                                                 std::string_view source, std::string_view base_dir, OrgId org,
                                                 MonoTime deadline) {
  return PutPipeline(pipeline, definition_json, source, base_dir, org, ScheduleUse::kKeep, deadline);
}

Result<PipelineVersion> SqlLedger::PutPipeline(const Pipeline& pipeline, std::string_view definition_json,
                                               std::string_view source, std::string_view base_dir, OrgId org, ScheduleUse use,
                                               MonoTime deadline) {
  const bool keep = use == ScheduleUse::kKeep;
  for (int round = 0; round < kApplyRoundsMax; ++round) {
    auto latest = GetPipeline(org, pipeline.name, std::nullopt, deadline);
    if (!latest && latest.error().code != ErrorCode::kNotFound) return std::unexpected(std::move(latest.error()));
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select " + std::string(kScheduleColumns) +
                                        " from schedule where org = $1 and pipeline = $2 and active = 1 order by schedule",
                                    Params().Int(org.value()).Text(pipeline.name), deadline));
    std::vector<ScheduleSpec> stored, wanted = pipeline.schedules;
    bool newest = true;  // every schedule runs the latest version
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const ScheduleRow row = ScheduleFrom(rows[i]);
      newest = newest && latest && row.version == latest->version;
      stored.push_back(row.spec);
    }
    std::ranges::sort(stored, {}, &ScheduleSpec::name);
    std::ranges::sort(wanted, {}, &ScheduleSpec::name);
    // What is stored already is no new version: only its schedules come into force.
    const bool unchanged = latest && latest->definition == definition_json && latest->base_dir == base_dir;
    if (unchanged && (keep || (stored == wanted && newest))) return *latest;

    MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
    const PipelineVersion version = unchanged ? *latest : PipelineVersion{org,
                                                                          pipeline.name,
                                                                          latest ? latest->version + 1 : 1,
                                                                          std::string(source),
                                                                          std::string(definition_json),
                                                                          std::string(base_dir),
                                                                          now};
    Batch batch;
    if (!unchanged) batch.versions.push_back(&version);
    if (!keep) {
      for (const ScheduleSpec& spec : wanted)
        batch.others.push_back(UpsertSchedule(spec, org, pipeline.name, version.version, now));
      batch.others.push_back({"update schedule set active = 0 where org = $1 and pipeline = $2 and version < $3",
                              Params().Int(org.value()).Text(pipeline.name).Int(version.version)});
    }
    const auto written = Write(batch, deadline);
    if (written) return version;
    if (!batch.version_exists) return std::unexpected(written.error());
  }
  return Fail(ErrorCode::kConflict, "pipeline '{}': others keep applying it at the same time; try again", pipeline.name);
}

Result<PipelineVersion> SqlLedger::GetPipeline(OrgId org, std::string_view name, std::optional<std::int64_t> version,
                                               MonoTime deadline) {
  std::string sql = "select " + store_->Columns(Table::kPipelineVersion, "v") +
                    " from pipeline_version v where v.org = $1 and v.pipeline = $2";
  Params params;
  params.Int(org.value()).Text(name);
  if (version) {
    sql += " and v.version = $3";
    params.Int(*version);
  }
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql + " order by v.version desc limit 1", params, deadline));
  if (!rows.empty()) return PipelineVersionFrom(rows[0]);
  if (version) return Fail(ErrorCode::kNotFound, "pipeline '{}' has no version {}", name, *version);
  return Fail(ErrorCode::kNotFound, "no pipeline '{}' has been applied", name);
}

Result<std::vector<PipelineVersion>> SqlLedger::ListPipelines(OrgId org, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store_->Run(
          "select " + store_->Columns(Table::kPipelineVersion, "v") +
              " from pipeline_version v where v.org = $1 and v.version = (select max(w.version) from pipeline_version w where "
              "w.org = v.org and w.pipeline = v.pipeline) order by v.pipeline",
          Params().Int(org.value()), deadline));
  std::vector<PipelineVersion> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    all.push_back(PipelineVersionFrom(rows[i]));
    all.back().source.clear();
  }
  return all;
}

Result<std::vector<ScheduleRow>> SqlLedger::Schedules(std::optional<OrgId> org, MonoTime deadline) {
  std::string sql = "select " + std::string(kScheduleColumns) + " from schedule where active = 1";
  Params params;
  if (org) {
    sql += " and org = $1";
    params.Int(org->value());
  }
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql + " order by org, pipeline, schedule", params, deadline));
  std::vector<ScheduleRow> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(ScheduleFrom(rows[i]));
  return all;
}

Result<void> SqlLedger::SetPaused(OrgId org, std::string_view pipeline, bool paused, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select count(*) from schedule where org = $1 and pipeline = $2 and active = 1",
                                  Params().Int(org.value()).Text(pipeline), deadline));
  if (rows[0][0].number == 0) {
    MILLRACE_TRY(GetPipeline(org, pipeline, std::nullopt, deadline));
    return Fail(ErrorCode::kNotFound, "pipeline '{}' has no schedule", pipeline);
  }
  Batch batch;
  batch.others.push_back({"update schedule set paused = $3 where org = $1 and pipeline = $2 and active = 1",
                          Params().Int(org.value()).Text(pipeline).Int(paused ? 1 : 0)});
  return Write(batch, deadline);
}

Result<std::vector<ScheduleRow>> SqlLedger::SchedulesChanged(std::int64_t after_revision, std::uint32_t limit,
                                                             MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + std::string(kScheduleColumns) +
                                                       " from schedule where revision > $1 order by revision limit $2",
                                                   Params().Int(after_revision).Int(limit), deadline));
  std::vector<ScheduleRow> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(ScheduleFrom(rows[i]));
  return all;
}

Result<std::vector<PipelineVersion>> SqlLedger::ScheduledVersions(OrgId org, std::span<const std::string> pipelines,
                                                                  MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store_->Run("select distinct v.org, v.pipeline, v.version, '' as source, v.definition, v.base_dir, v.applied_at "
                  "from schedule s join pipeline_version v on v.org = s.org and v.pipeline = s.pipeline and "
                  "v.version = s.version where s.active = 1 and s.org = $1 and s.pipeline" +
                      store_->InTexts(2),
                  Params().Int(org.value()).Texts(pipelines), deadline));
  std::vector<PipelineVersion> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(PipelineVersionFrom(rows[i]));
  return all;
}

Result<std::vector<std::string>> SqlLedger::BusyPipelines(OrgId org, std::span<const std::string> pipelines,
                                                          MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select distinct r.pipeline from live_run l join run r on r.run = l.run "
                                  "where l.org = $1 and l.shard = $3 and r.generation = 0 and r.pipeline" +
                                      store_->InTexts(2),
                                  Params().Int(org.value()).Texts(pipelines).Int(ShardOf(org, shards).value()), deadline));
  std::vector<std::string> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.emplace_back(rows[i][0].bytes);
  return all;
}

Result<FireResult> SqlLedger::Fire(const FireBatch& given, MonoTime deadline) {
  Batch batch;
  batch.outbox = batch.outbox_batches = batch.jobs_follow_runs = true;
  for (const SlotDecision& d : given.decisions) {
    batch.slots.push_back(&d.slot);
    if (!d.run) continue;
    if (d.slot.run != d.run->id)
      return Fail(ErrorCode::kInvalidArgument, "slot of pipeline '{}': its run is not the run given with it",
                  d.slot.key.pipeline);
    batch.runs.push_back(&*d.run);
    for (const JobSpec& job : d.jobs) batch.jobs.push_back(&job);
  }
  for (Statement& statement : MoveWatermarks(given.watermarks, *store_)) batch.others.push_back(std::move(statement));
  for (const BackfillStep& step : given.steps)
    for (Statement& statement : StepStatements(step, given.now)) batch.others.push_back(std::move(statement));
  if (batch.slots.empty() && batch.others.empty()) return FireResult{};
  MILLRACE_TRY(Write(batch, deadline));
  return FireResult{std::move(batch.duplicate_slots)};
}

Result<std::vector<SlotRow>> SqlLedger::Slots(OrgId org, std::string_view pipeline, std::uint32_t limit, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select " + store_->Columns(Table::kSlot, "s") +
                                                       " from slot s where s.org = $1 and s.pipeline = $2 "
                                                       "order by s.slot desc, s.schedule, s.generation desc limit $3",
                                                   Params().Int(org.value()).Text(pipeline).Int(limit), deadline));
  std::vector<SlotRow> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(SlotFrom(rows[i]));
  return all;
}

}  // namespace millrace::ledger
