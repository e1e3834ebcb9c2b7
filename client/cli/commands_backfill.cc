// backfill, backfill list, backfill show. A backfill is a row in the ledger; the scheduler does the rest.

#include <algorithm>
#include <cstdio>
#include <limits>

#include "client/cli/cancel_items.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/find_run.h"
#include "client/cli/pipeline_file.h"
#include "common/base/tell.h"
#include "common/model/backfill.h"
#include "common/model/cron.h"
#include "common/model/pipeline_json.h"
#include "common/model/run_plan.h"
#include "common/wire/zmtp_transport.h"
#include "scheduler/backfill_feeder.h"

namespace millrace::cli {
namespace {

constexpr std::uint32_t kListDefault = 50, kListMax = 500;
constexpr Millis kFeederStops{5000}, kFeederPoll{100};

Result<ScheduleRow> FindScheduleRow(Ledger& ledger, const Options& options, OrgId org, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const auto rows, ledger.Schedules(org, deadline));
  for (const ScheduleRow& row : rows)
    if (row.pipeline == options.pipeline && (options.schedule.empty() || row.spec.name == options.schedule)) return row;
  MILLRACE_TRY(ledger.GetPipeline(org, options.pipeline, std::nullopt, deadline));
  return Fail(ErrorCode::kNotFound, "pipeline '{}' has no schedule{}: a backfill runs the slots of one", options.pipeline,
              options.schedule.empty() ? "" : fmt::format(" '{}'", options.schedule));
}

Result<WallTime> Edge(const std::string& text, const ScheduleSpec& spec, RangeEdge which, std::string_view option) {
  if (text.empty()) return Fail(ErrorCode::kInvalidArgument, "backfill: {} is missing", option);
  auto at = ParseRangeEdge(text, spec.timezone, which);
  if (!at) return Prefixed(std::move(at.error()), "{}", option);
  return *at;
}

Result<BackfillRow> MakeRow(const Options& options, const ScheduleRow& schedule, WallTime now, IdGenerator& ids) {
  BackfillRow row;
  row.id = ids.Next<BackfillId>();
  row.org = schedule.org;
  row.pipeline = schedule.pipeline;
  row.schedule = schedule.spec.name;
  MILLRACE_TRY_ASSIGN(row.from, Edge(options.from, schedule.spec, RangeEdge::kFrom, "--from"));
  MILLRACE_TRY_ASSIGN(row.to, Edge(options.to, schedule.spec, RangeEdge::kTo, "--to"));
  if (row.to <= row.from) return Fail(ErrorCode::kInvalidArgument, "--to {} is not after --from {}", options.to, options.from);
  if (options.max_parallel < 1 || options.max_parallel > kBackfillParallelMax)
    return Fail(ErrorCode::kInvalidArgument, "--max-parallel: {} is not in [1, {}]", options.max_parallel,
                kBackfillParallelMax);
  if (options.generation && (*options.generation == 0 || *options.generation > kBackfillGenerationMax))
    return Fail(ErrorCode::kInvalidArgument, "--generation: {} is not in [1, {}]: leave it out for the next one",
                *options.generation, kBackfillGenerationMax);
  BackfillOptions stored;
  stored.newest_first = options.newest_first;
  stored.max_parallel = options.max_parallel;
  stored.schedule = schedule.spec;
  MILLRACE_TRY_ASSIGN(stored.reprocess, ParseReprocess(options.reprocess));
  MILLRACE_TRY_ASSIGN(stored.params, ParseParams(options.params));
  row.until = schedule.watermark;
  row.generation = options.generation.value_or(0);
  row.version = schedule.version;
  row.options = ToJson(stored);
  row.actor = Actor();
  row.created_at = now;
  return row;
}

// What a backfill would do, as the ledger is now.
struct Preview {
  std::int64_t slots = 0, with_run = 0, to_run = 0;
  std::optional<WallTime> first, last;  // of the slots
  std::int64_t left = 0;                // slots of the range that the schedule has not decided yet
};

Result<Preview> Look(Ledger& ledger, const BackfillRow& row, const Context& context) {
  MILLRACE_TRY_ASSIGN(const BackfillOptions options, BackfillOptionsFromJson(row.options));
  MILLRACE_TRY_ASSIGN(const CronSchedule cron, CronSchedule::Make(options.schedule));
  Preview preview;
  const auto all = cron.Between(row.from - Micros{1}, row.to - Micros{1}, kBackfillSlotsMax + 1);
  if (all.size() > kBackfillSlotsMax)
    return Fail(ErrorCode::kInvalidArgument, "the range has more than {} slots: take a smaller one", kBackfillSlotsMax);
  const auto end = std::ranges::upper_bound(all, row.until);
  preview.left = all.end() - end;
  const std::span<const WallTime> slots(all.begin(), end);
  preview.slots = static_cast<std::int64_t>(slots.size());
  if (!slots.empty()) {
    preview.first = slots.front();
    preview.last = slots.back();
  }
  const std::uint32_t generation = row.generation == 0 ? std::numeric_limits<std::uint32_t>::max() : row.generation;
  for (std::size_t at = 0; at < slots.size(); at += kSlotHistoriesMax) {
    const auto page = slots.subspan(at, std::min(kSlotHistoriesMax, slots.size() - at));
    MILLRACE_TRY_ASSIGN(const auto rows, ledger.SlotHistories(row.org, row.pipeline, row.schedule, page, context.Deadline()));
    auto from = rows.begin();
    for (const WallTime slot : page) {
      const auto to = std::find_if(from, rows.end(), [&](const auto& r) { return r.slot > slot; });
      const std::span<const SlotHistory> history(from, to);
      from = to;
      if (std::ranges::any_of(history, [](const auto& r) { return r.run.has_value(); })) ++preview.with_run;
      if (scheduler::NeedsRun(history, generation, options.reprocess)) ++preview.to_run;
    }
  }
  return preview;
}

Cell TimeCell(std::optional<WallTime> t) { return t ? Cell{ToRfc3339(*t)} : Cell{}; }

Result<BackfillState> Find(const Context& context, Ledger& ledger, BackfillId id) {
  BackfillFilter filter;
  filter.org = context.org();
  filter.id = id;
  MILLRACE_TRY_ASSIGN(auto found, ledger.Backfills(filter, context.Deadline()));
  if (found.empty()) return Fail(ErrorCode::kNotFound, "there is no backfill {}", id.ToString());
  return std::move(found.front());
}

// One of before may be over: its generation was asked for.
void SayWhoFeeds(const Context& context, const BackfillRow& row, const std::optional<BackfillState>& before) {
  const std::string id = row.id.ToString();
  if (before && (before->stopped || before->ended_at))
    Tell("it was stored before and {}; nothing more of it is fed: millrace backfill show {}{}\n",
         before->stopped ? "was stopped" : "has ended", id, context.OrgOption());
  else
    Tell("{}; the scheduler feeds it{}: millrace backfill show {}{}\n", before ? "it was stored before and goes on" : "stored",
         context.embedded() ? " while 'millrace up' runs" : "", id, context.OrgOption());
}

Result<ExitCode> DoBackfill(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "backfill"));
  if (options.pipeline.empty())
    return Fail(ErrorCode::kInvalidArgument, "backfill: give a pipeline, or one of the commands list and show");
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, Actor()));
  MILLRACE_TRY_ASSIGN(const ScheduleRow schedule, FindScheduleRow(*ledger, options, context->org(), context->Deadline()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger->Now(context->Deadline()));
  MILLRACE_TRY_ASSIGN(const BackfillRow wanted, MakeRow(options, schedule, now, context->ids()));
  MILLRACE_TRY_ASSIGN(const Preview preview, Look(*ledger, wanted, *context));
  if (preview.slots == 0 && preview.left > 0)
    return Fail(
        ErrorCode::kInvalidArgument,
        "--from {}: no slot of the range is at or before {}, up to which the schedule has decided; its {} slots are the "
        "schedule's own when they are due",
        options.from, ToRfc3339(wanted.until), preview.left);
  if (preview.left > 0)
    Tell("{} slots after {} are not part of it: the schedule itself decides them\n", preview.left, ToRfc3339(wanted.until));
  if (options.dry_run) {
    Print(Table{.columns = {"pipeline", "schedule", "slots", "first", "last", "with_run", "to_run", "left_to_schedule"},
                .rows = {{wanted.pipeline, wanted.schedule, preview.slots, TimeCell(preview.first), TimeCell(preview.last),
                          preview.with_run, preview.to_run, preview.left}}},
          context->full_format());
    return ExitCode::kOk;
  }
  // A parameter that is missing or wrong is said now, not in every slot.
  MILLRACE_TRY_ASSIGN(const PipelineVersion version,
                      ledger->GetPipeline(wanted.org, wanted.pipeline, wanted.version, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const Pipeline pipeline, PipelineFromJson(version.definition));
  RunRequest request;
  request.org = wanted.org;
  MILLRACE_TRY_ASSIGN(request.params, ParseParams(options.params));
  MILLRACE_TRY(PlanRun(pipeline, request, context->ids()));

  MILLRACE_TRY_ASSIGN(const auto made, ledger->CreateBackfill(wanted, context->Deadline()));
  const std::string id = made.row.id.ToString();
  if (options.quiet) {
    fmt::print("{}\n", id);
    return ExitCode::kOk;
  }
  std::optional<BackfillState> before;
  if (!made.created) {
    MILLRACE_TRY_ASSIGN(before, Find(*context, *ledger, made.row.id));
  }
  const bool over = before && (before->stopped || before->ended_at);
  Print(Table{.columns = {"backfill", "pipeline", "schedule", "generation", "slots", "to_run", "created"},
              .rows = {{id, made.row.pipeline, made.row.schedule, std::int64_t{made.row.generation}, preview.slots,
                        over ? 0 : preview.to_run, made.created}}},
        context->format());
  SayWhoFeeds(*context, made.row, before);
  return ExitCode::kOk;
}

std::string_view StateOf(const BackfillState& state) {
  if (state.stopped && state.stopped->actor == kBackfillBrokenActor) return "failed";
  if (state.stopped) return state.ended_at ? "cancelled" : "cancelling";
  return state.ended_at ? "ended" : state.fed ? "finishing" : "feeding";
}

Result<ExitCode> DoList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "backfill"));
  BackfillFilter filter;
  filter.org = context->org();
  MILLRACE_TRY_ASSIGN(filter.limit, CountOf(options, kListDefault, kListMax));
  if (!options.pipeline.empty()) filter.pipeline = options.pipeline;
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto all, ledger->Backfills(filter, context->Deadline()));
  Table table{.columns = {"backfill", "pipeline", "schedule", "generation", "from", "to", "state", "position", "active",
                          "created_by", "created_at", "ended_at"},
              .rows = {}};
  for (const BackfillState& s : all) {
    table.rows.push_back({s.row.id.ToString(), s.row.pipeline, s.row.schedule, std::int64_t{s.row.generation},
                          ToRfc3339(s.row.from), ToRfc3339(s.row.to), std::string(StateOf(s)), ToRfc3339(s.position),
                          std::int64_t{s.active}, s.row.actor, ToRfc3339(s.row.created_at), TimeCell(s.ended_at)});
  }
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> DoShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "backfill"));
  BackfillFilter filter;
  filter.org = context->org();
  MILLRACE_TRY(CheckBackfillName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(filter.id, FindBackfill(*ledger, context->org(), options.id, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const auto found, ledger->Backfills(filter, context->Deadline()));
  if (found.empty()) return Fail(ErrorCode::kNotFound, "there is no backfill {}", options.id);
  const BackfillState& state = found.front();
  MILLRACE_TRY_ASSIGN(const BackfillOptions stored, BackfillOptionsFromJson(state.row.options));
  MILLRACE_TRY_ASSIGN(const CronSchedule cron, CronSchedule::Make(stored.schedule));
  MILLRACE_TRY_ASSIGN(auto runs, ledger->BackfillRuns(state.row, context->Deadline()));
  const WallTime end = std::min(state.row.to, state.row.until + Micros{1});
  const auto slots = cron.Between(state.row.from - Micros{1}, end - Micros{1}, kBackfillSlotsMax);
  const auto before = std::ranges::lower_bound(slots, state.position) - slots.begin();
  const auto total = static_cast<std::int64_t>(slots.size());
  const std::int64_t decided = stored.newest_first ? total - before : before;
  std::uint64_t fed = 0;
  for (const auto& [run_state, count] : runs) fed += count;
  const auto count = [&](RunState s) { return static_cast<std::int64_t>(runs[s]); };
  Table table{
      .columns = {"backfill",     "pipeline",     "version",    "schedule",   "generation", "from",       "to",     "reprocess",
                  "newest_first", "max_parallel", "state",      "slots",      "decided",    "runs",       "active", "succeeded",
                  "failed",       "cancelled",    "created_by", "created_at", "ended_at",   "stopped_by", "reason"},
      .rows = {{state.row.id.ToString(),
                state.row.pipeline,
                state.row.version,
                state.row.schedule,
                std::int64_t{state.row.generation},
                ToRfc3339(state.row.from),
                ToRfc3339(state.row.to),
                std::string(Name(stored.reprocess)),
                stored.newest_first,
                std::int64_t{stored.max_parallel},
                std::string(StateOf(state)),
                total,
                decided,
                static_cast<std::int64_t>(fed),
                count(RunState::kRunning),
                count(RunState::kSucceeded),
                count(RunState::kFailed),
                count(RunState::kCancelled) + count(RunState::kSkipped),
                state.row.actor,
                ToRfc3339(state.row.created_at),
                TimeCell(state.ended_at),
                state.stopped ? Cell{state.stopped->actor} : Cell{},
                state.stopped ? Cell{state.stopped->reason} : Cell{}}}};
  if (context->format() == OutputFormat::kTable) {  // one line a field
    Table lines{.columns = {"field", "value"}, .rows = {}};
    for (std::size_t i = 0; i < table.columns.size(); ++i) lines.rows.push_back({table.columns[i], table.rows[0][i]});
    table = std::move(lines);
  }
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<std::vector<RunId>> ActiveRuns(const Context& context, Ledger& ledger, const BackfillRow& row) {
  std::vector<RunId> runs;
  RunFilter filter;
  filter.org = row.org;
  filter.pipeline = row.pipeline;
  filter.state = RunState::kRunning;
  filter.limit = kListMax;
  while (true) {
    MILLRACE_TRY_ASSIGN(const auto page, ledger.ListRuns(filter, context.Deadline()));
    for (const RunSummary& run : page)
      if (run.spec.generation == row.generation && run.spec.schedule == row.schedule) runs.push_back(run.spec.id);
    if (page.size() < kListMax) return runs;
    filter.before = page.back().spec.id;
  }
}

// The scheduler says that it feeds no more: it may be in the middle of a turn. Without a scheduler nobody feeds.
Result<void> AwaitFed(const Context& context, Ledger& ledger, BackfillId id) {
  MILLRACE_TRY_ASSIGN(const auto transport, wire::MakeZmtpTransport());
  for (const MonoTime until = context.clock().Now() + kFeederStops; context.clock().Now() < until;) {
    MILLRACE_TRY_ASSIGN(const BackfillState state, Find(context, ledger, id));
    if (state.fed) return {};
    transport->Wait(kFeederPoll);
  }
  Tell("no scheduler has noticed it yet; the next one will\n");
  return {};
}

Result<ExitCode> DoCancel(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "backfill"));
  MILLRACE_TRY(CheckBackfillName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, Actor()));
  MILLRACE_TRY_ASSIGN(const BackfillId id, FindBackfill(*ledger, context->org(), options.id, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const BackfillState before, Find(*context, *ledger, id));
  if (before.ended_at && !before.stopped) return Fail(ErrorCode::kConflict, "backfill {}: too late, it has ended", options.id);
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger->Now(context->Deadline()));
  const CancelRow row{
      .item = id.uuid, .is_run = false, .org = before.row.org, .actor = Actor(), .reason = options.reason, .requested_at = now};
  MILLRACE_TRY(ledger->RequestCancel(std::span{&row, 1}, context->Deadline()));
  std::int64_t cancelled = 0;
  if (options.running) {
    MILLRACE_TRY(AwaitFed(*context, *ledger, id));
    MILLRACE_TRY_ASSIGN(const std::vector<RunId> runs, ActiveRuns(*context, *ledger, before.row));
    wire::Cancel cancel;
    cancel.org = before.row.org;
    cancel.actor = Actor();
    cancel.reason = options.reason.empty() ? "backfill " + id.ToString() + " was cancelled" : options.reason;
    for (const RunId& run : runs) cancel.items.push_back({.id = run.uuid, .is_run = true});
    if (!runs.empty()) {
      CancelAnswers answers;
      if (auto all = CancelItems(*context, *ledger, cancel, false, answers); !all)
        return Prefixed(std::move(all.error()), "{} of {} runs were asked to stop before this", answers.items.size(),
                        runs.size());
      cancelled = std::ranges::count_if(answers.items, [](const auto& item) {
        return item.effect == CancelEffect::kCancelled || item.effect == CancelEffect::kCancelling;
      });
    }
  }
  MILLRACE_TRY_ASSIGN(const BackfillState after, Find(*context, *ledger, id));
  Print(Table{.columns = {"backfill", "state", "active", "runs_cancelled"},
              .rows = {{id.ToString(), std::string(StateOf(after)), std::int64_t{after.active}, cancelled}}},
        context->format());
  return ExitCode::kOk;
}

}  // namespace

ExitCode BackfillCancel(const Options& options) { return Finish(DoCancel(options)); }
ExitCode BackfillStart(const Options& options) { return Finish(DoBackfill(options)); }
ExitCode BackfillList(const Options& options) { return Finish(DoList(options)); }
ExitCode BackfillShow(const Options& options) { return Finish(DoShow(options)); }

}  // namespace millrace::cli
