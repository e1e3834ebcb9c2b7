#include "scheduler/backfill_feeder.h"

#include <algorithm>

#include "common/base/log.h"
#include "common/model/pipeline_json.h"
#include "common/model/run_plan.h"
#include "common/model/schedule_rules.h"

namespace millrace::scheduler {
namespace {

constexpr std::size_t kRunsPerTurnMax = 200;   // of one backfill: one transaction
constexpr std::size_t kPagesPerTurnMax = 20;   // of slots looked at
constexpr std::uint32_t kBackfillsMax = 1000;  // looked at in a turn

bool SameSlot(const SlotHistory& a, WallTime slot) { return a.slot == slot; }

}  // namespace

BackfillRange::BackfillRange(const BackfillRow& row, const BackfillOptions& options, CronSchedule cron)
    : from_(row.from),
      to_(std::min(row.to, row.until + Micros{1})),
      newest_first_(options.newest_first),
      cron_(std::move(cron)) {}

std::vector<WallTime> BackfillRange::Page(WallTime position, std::size_t limit) const {
  if (newest_first_) return cron_.LastBefore(std::min(position, to_), from_, limit);
  return cron_.Between(std::max(position, from_) - Micros{1}, to_ - Micros{1}, limit);
}

bool NeedsRun(std::span<const SlotHistory> rows, std::uint32_t generation, Reprocess reprocess) {
  const SlotHistory* latest = nullptr;  // with a run
  for (const SlotHistory& row : rows) {
    if (row.generation == generation) return false;
    if (row.run) latest = &row;
  }
  switch (reprocess) {
    case Reprocess::kNone: return latest == nullptr;
    case Reprocess::kFailed: return latest == nullptr || (latest->run_ended && *latest->run_ended != RunState::kSucceeded);
    case Reprocess::kAll: return true;
  }
  return false;
}

struct BackfillFeeder::Source {
  BackfillOptions options;
  BackfillRange range;
  Pipeline pipeline;
  std::string base_dir;
};

Result<const BackfillFeeder::Source*> BackfillFeeder::SourceOf(const BackfillRow& row, MonoTime deadline) {
  if (const auto it = sources_.find(row.id); it != sources_.end()) return it->second.get();
  MILLRACE_TRY_ASSIGN(BackfillOptions options, BackfillOptionsFromJson(row.options));
  MILLRACE_TRY_ASSIGN(CronSchedule cron, CronSchedule::Make(options.schedule));
  MILLRACE_TRY_ASSIGN(const PipelineVersion version, ledger_.GetPipeline(row.org, row.pipeline, row.version, deadline));
  MILLRACE_TRY_ASSIGN(Pipeline pipeline, PipelineFromJson(version.definition));
  BackfillRange range(row, options, std::move(cron));
  auto source =
      std::make_shared<const Source>(Source{std::move(options), std::move(range), std::move(pipeline), version.base_dir});
  return sources_.emplace(row.id, std::move(source)).first->second.get();
}

SlotDecision BackfillFeeder::Decide(const BackfillRow& row, const Source& source, WallTime slot, WallTime now) {
  SlotDecision decision;
  decision.slot = SlotRow{.key = {row.org, row.pipeline, row.schedule, slot, row.generation},
                          .state = "fired",
                          .reason = {},
                          .run = std::nullopt,
                          .decided_at = now};
  // A run of a backfill neither cancels nor is dropped for another run: it waits.
  std::string overlap = OverlapOfRuns(source.options.schedule);
  if (!overlap.starts_with("allow")) overlap = "queue";
  const RunRequest request{.org = row.org,
                           .version = row.version,
                           .base_dir = source.base_dir,
                           .schedule = row.schedule,
                           .slot = slot,
                           .generation = row.generation,
                           .overlap = overlap,
                           .params = source.options.params,
                           .run_at = std::nullopt,
                           .priority_min = kPriorityLevels - 1,
                           .now = now};
  auto planned = PlanRun(source.pipeline, request, ids_);
  if (!planned) {
    decision.slot.state = "skipped";
    decision.slot.reason = planned.error().message;
    return decision;
  }
  decision.slot.run = planned->run.id;
  decision.run = std::move(planned->run);
  decision.jobs = std::move(planned->jobs);
  return decision;
}

Result<bool> BackfillFeeder::StillThere(const BackfillState& state, MonoTime deadline) {
  BackfillFilter filter;
  filter.id = state.row.id;
  MILLRACE_TRY_ASSIGN(const auto again, ledger_.Backfills(filter, deadline));
  return !again.empty() && again[0].position == state.position && again[0].fed == state.fed;
}

// What was fed goes on; it has ended when that has.
Result<void> BackfillFeeder::Stop(const BackfillState& state, WallTime now, Turn& turn, MonoTime deadline) {
  if (state.fed && state.noted == state.active && state.active > 0) return {};
  FireBatch batch{.decisions = {}, .watermarks = {}, .steps = {}, .now = now};
  batch.steps.push_back(
      {.id = state.row.id, .position_was = state.position, .position = state.position, .fed = true, .runs = {}});
  MILLRACE_TRY(ledger_.Fire(batch, deadline));
  turn.moved = true;
  return {};
}

Result<void> BackfillFeeder::FeedOne(const BackfillState& state, WallTime now, Turn& turn, MonoTime deadline) {
  if (state.stopped) return Stop(state, now, turn, deadline);
  MILLRACE_TRY_ASSIGN(const Source* const source, SourceOf(state.row, deadline));
  const BackfillRow& row = state.row;
  const std::uint32_t max = source->options.max_parallel;
  std::size_t free = std::min<std::size_t>(max > state.active ? max - state.active : 0, kRunsPerTurnMax);
  FireBatch batch{.decisions = {}, .watermarks = {}, .steps = {}, .now = now};
  BackfillStep step{.id = row.id, .position_was = state.position, .position = state.position, .fed = state.fed, .runs = {}};
  bool alone = false;
  for (std::size_t page = 0; page < kPagesPerTurnMax && free > 0 && !step.fed; ++page) {
    const auto slots = source->range.Page(step.position, kSlotHistoriesMax);
    MILLRACE_TRY_ASSIGN(const auto rows, ledger_.SlotHistories(row.org, row.pipeline, row.schedule, slots, deadline));
    for (std::size_t i = 0; i < slots.size() && free > 0; ++i) {
      const auto first = std::ranges::find_if(rows, [&](const auto& r) { return SameSlot(r, slots[i]); });
      const auto last = std::find_if_not(first, rows.end(), [&](const auto& r) { return SameSlot(r, slots[i]); });
      const std::span<const SlotHistory> history(first, last);
      // A row of this backfill beyond its position: another feeder is at work. Unless the position is still what it was,
      // the number of active runs is not what it was either.
      if (!alone && std::ranges::any_of(history, [&](const auto& r) { return r.generation == row.generation; })) {
        MILLRACE_TRY_ASSIGN(alone, StillThere(state, deadline));
        if (!alone) return {};
      }
      if (NeedsRun(history, row.generation, source->options.reprocess)) {
        batch.decisions.push_back(Decide(row, *source, slots[i], now));
        if (batch.decisions.back().run) {
          step.runs.push_back(batch.decisions.back().run->id);
          --free;
        }
      }
      step.position = source->range.After(slots[i]);
    }
    step.fed = source->range.Page(step.position, 1).empty();
  }
  const bool found_ended = state.noted > state.active || (step.fed && state.active == 0);
  if (step.position == state.position && step.fed == state.fed && !found_ended) return {};
  batch.steps.push_back(std::move(step));
  MILLRACE_TRY(ledger_.Fire(batch, deadline));
  turn.moved = true;
  if (!batch.decisions.empty()) turn.fed.insert(row.org);
  return {};
}

Result<BackfillFeeder::Turn> BackfillFeeder::Feed(WallTime now, MonoTime enough, MonoTime deadline) {
  BackfillFilter filter;
  filter.unended = true;
  filter.limit = kBackfillsMax;
  MILLRACE_TRY_ASSIGN(const auto backfills, ledger_.Backfills(filter, deadline));
  Turn turn;
  turn.unended = backfills.size();
  if (backfills.empty()) {
    sources_.clear();
    return turn;
  }
  for (std::size_t i = 0; i < backfills.size() && clock_.Now() <= enough; ++i) {
    const BackfillState& state = backfills[(first_ + i) % backfills.size()];
    const auto fed = FeedOne(state, now, turn, deadline);
    if (fed) continue;
    const ErrorCode code = fed.error().code;
    if (code != ErrorCode::kCorrupt && code != ErrorCode::kInvalidArgument && code != ErrorCode::kNotFound)
      return std::unexpected(fed.error());
    // One broken backfill must not stop the others, and does not stay open: it is stopped, and says why.
    LogError("backfill {} of pipeline {} cannot run: {}", state.row.id.ToString(), state.row.pipeline, fed.error().message);
    const CancelRow stop{.item = state.row.id.uuid,
                         .is_run = false,
                         .org = state.row.org,
                         .actor = std::string(kBackfillBrokenActor),
                         .reason = "it cannot run: " + fed.error().message,
                         .requested_at = now};
    MILLRACE_TRY(ledger_.RequestCancel(std::span{&stop, 1}, deadline));
    turn.moved = true;
  }
  ++first_;
  return turn;
}

}  // namespace millrace::scheduler
