// run FILE, run start, run list, run show, run logs.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "client/cli/broker_client.h"
#include "client/cli/broker_look.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/engine.h"
#include "client/cli/find_run.h"
#include "client/cli/home.h"
#include "client/cli/pipeline_file.h"
#include "client/cli/progress.h"
#include "client/cli/run_report.h"
#include "client/cli/stage_check.h"
#include "client/cli/submit_plan.h"
#include "common/base/suggest.h"
#include "common/model/cron.h"
#include "common/model/pipeline_json.h"
#include "common/model/run_plan.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::cli {
namespace {

constexpr Millis kTypeCheckTimeout{60'000};
constexpr Millis kSubmitTimeout{30'000};
constexpr Millis kLedgerLook{5000};  // without a word of the broker; then the ledger is asked
constexpr Millis kBrokerAnswers{3000};
constexpr auto kRunTimeoutMax = std::chrono::hours{24 * 30};
constexpr std::uint32_t kListDefault = 50, kListMax = 500;
constexpr std::size_t kFiresShown = 3;

ProgressStyle StyleOf(const Options& options) {
  return options.no_progress || options.quiet ? ProgressStyle::kNone : ProgressStyle::kAuto;
}

// Submits and follows to the end. kCancelled: a stop signal came; the run goes on wherever it runs. When the broker has nothing
// to say (another one serves the run, now or since a while), the ledger tells the end. `engine`: the embedded form's; it ends
// early when a part of it fails.
Result<wire::RunUpdate> SubmitAndFollow(BrokerClient& client, Ledger& ledger, const RunPlan& plan, const Options& options,
                                        const Clock& clock, const Engine* engine = nullptr) {
  MILLRACE_TRY(SubmitPlan(client, ledger, plan, true, clock.Now() + kSubmitTimeout));
  ProgressView progress(StyleOf(options), clock);
  std::atomic<bool> stop{false};
  MonoTime next_look = clock.Now() + kLedgerLook;
  std::optional<wire::RunUpdate> recorded;
  auto end = client.Follow(
      plan.run.org, plan.run.id, clock.Now() + kRunTimeoutMax, stop,
      [&](const wire::RunUpdate& update) {
        progress.Update(update);
        next_look = clock.Now() + kLedgerLook;
      },
      [&] {
        progress.Tick();
        if (StopSignalPending() || (engine != nullptr && engine->Ended())) stop = true;
        if (clock.Now() < next_look) return;
        next_look = clock.Now() + kLedgerLook;
        const auto detail = ledger.GetRun(plan.run.org, plan.run.id, clock.Now() + kLedgerLook);
        if (!detail || !IsTerminal(detail->summary.state)) return;
        recorded = wire::RunUpdate{
            .run = plan.run.id, .state = detail->summary.state, .reason = detail->summary.reason, .changed = {}};
        stop = true;
      });
  progress.Finish();
  if (!end && recorded) return *std::move(recorded);
  return end;
}

void PrintWhereThingsAre(const Context& context, const Pipeline& pipeline, const std::string& file, const std::string& run) {
  fmt::print("\ndata:    {}\nhistory: {}  (millrace run show {} --home {}{})\n", context.config().lake,
             RedactDsn(context.config().ledger.dsn.Reveal()), run, context.config().home, context.OrgOption());
  for (const ScheduleSpec& spec : pipeline.schedules) {
    const auto cron = CronSchedule::Make(spec);
    if (!cron) continue;
    fmt::print("schedule {} in {}; the next fires under 'millrace up {}':\n", spec.cron, spec.timezone, file);
    WallTime from = context.clock().WallNow();
    for (std::size_t i = 0; i < kFiresShown; ++i) {
      const auto next = cron->Next(from);
      if (!next) break;
      fmt::print("  {}  = {} UTC\n", cron->InZone(*next), ToRfc3339(*next));
      from = *next;
    }
  }
}

Result<RunReport> ReadRun(Context& context, Ledger& ledger, RunId run) {
  MILLRACE_TRY_ASSIGN(const RunDetail detail, ledger.GetRun(context.org(), run, context.Deadline()));
  return MakeRunReport(detail);
}

void PrintReport(Context& context, const RunReport& report) {
  if (context.format() == OutputFormat::kIds) {
    fmt::print("{}\n", report.run);
  } else if (context.format() == OutputFormat::kTable) {
    fmt::print("{}", ForPeople(report));
  } else if (context.format() == OutputFormat::kJson) {
    fmt::print("{}", ToJson(report));
  } else {
    Print(StageTable(report, context.format()), context.format());
  }
  std::fflush(stdout);
}

Result<RunReport> PrintRun(Context& context, Ledger& ledger, RunId run) {
  MILLRACE_TRY_ASSIGN(RunReport report, ReadRun(context, ledger, run));
  PrintReport(context, report);
  return report;
}

// `millrace run lst` looks for a file of that name; its user meant something else.
std::string DidYouMeanVerb(const std::string& word) {
  static constexpr std::array<std::string_view, 6> kVerbs{"start", "list", "show", "logs", "cancel", "retry"};
  const auto verb = Suggest(word, kVerbs);
  return verb ? fmt::format("; did you mean 'millrace run {}'?", *verb) : "";
}

ExitCode ExitCodeOf(RunState state) {
  return state == RunState::kSucceeded || state == RunState::kSkipped ? ExitCode::kOk : ExitCode::kWorkFailed;
}

// What a run by hand has opened, in the order in which it must be there.
struct Opened {
  std::optional<HomeLock> lock;
  std::unique_ptr<Ledger> ledger;
  std::unique_ptr<Engine> engine;

  Result<void> Open(Context& context) {
    MILLRACE_TRY_ASSIGN(lock, HomeLock::Acquire(context.config().home, "millrace run"));
    MILLRACE_TRY_ASSIGN(ledger, context.OpenLedger(Context::Create::kYes, "cli"));
    return engine->Open();
  }
  ~Opened() {
    engine.reset();
    ledger.reset();
  }
};

// Whether opening it makes nothing that was not there: a refused file leaves no home behind.
bool HomeIsThere(const Config& config) {
  return config.queue.kind == QueueConfig::Kind::kSqlite &&
         std::ranges::all_of(std::array<std::string, 5>{config.home + "/lock", std::string(config.ledger.dsn.Reveal()),
                                                        config.queue.path, config.audit.key_file, config.audit.checkpoint_dir},
                             [](const std::string& path) {
                               std::error_code ec;
                               return std::filesystem::exists(path, ec);
                             });
}

// Opens everything, beside the type check of `file`, whose failure comes first: nobody has taken a job by then.
Result<void> CheckAndOpen(Context& context, const PipelineFile& file, const std::map<std::string, std::string>& params,
                          Opened& opened) {
  auto answer = opened.engine->Ask(TypeCheckQuestion(file, params, context.config().lake, context.org()));
  const bool beside = HomeIsThere(context.config());
  Result<void> open;
  if (beside) open = opened.Open(context);
  MILLRACE_TRY_ASSIGN(const std::string types, AwaitStageCheck(std::move(answer), context.clock().Now() + kTypeCheckTimeout));
  MILLRACE_TRY(ReadTypeCheck(file, types));
  if (!beside) open = opened.Open(context);
  return open;
}

std::uint64_t CountStages(const RunPlan& plan) {
  return static_cast<std::uint64_t>(std::ranges::count(plan.jobs, kJobKindStage, &JobSpec::kind));
}

Result<ExitCode> DoRunFile(const Options& options) {
  if (options.file.empty())
    return Fail(ErrorCode::kInvalidArgument, "run: give a pipeline file, or one of list, show, logs, start");
  Options quiet_log = options;  // the run's own story is told by progress and report
  if (quiet_log.log_level.empty()) quiet_log.log_level = "warn";
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(quiet_log, "run"));
  if (!context->embedded())
    return Fail(ErrorCode::kInvalidArgument,
                "run FILE is the embedded form; with ledger.dsn set, use 'pipeline apply' and 'run start'");
  // The stage processes of a worker take longest to come: they warm up while the file is read. From here on a signal must not
  // end this process behind the engine's back: it leaves no scratch.
  Opened opened;
  BlockStopSignals();
  MILLRACE_TRY_ASSIGN(opened.engine, Engine::Prepare(*context, {.broker = true, .worker = true, .held = true}));
  auto read = ReadPipelineFile(options.file);
  if (!read && read.error().code == ErrorCode::kNotFound)
    return Fail(ErrorCode::kNotFound, "{}{}", read.error().message, DidYouMeanVerb(options.file));
  if (!read) return std::unexpected(std::move(read.error()));
  const PipelineFile file = std::move(*read);
  MILLRACE_TRY(CheckConnections(file, context->Connections()));
  MILLRACE_TRY_ASSIGN(const auto params, ParseParams(options.params));
  RunRequest request;
  request.org = context->org();
  request.base_dir = file.base_dir;
  request.params = params;
  MILLRACE_TRY(PlanRun(file.pipeline, request, context->ids()));  // parameters first: they are about the command line
  MILLRACE_TRY(CheckAndOpen(*context, file, params, opened));
  if (StopSignalPending()) return Fail(ErrorCode::kCancelled, "interrupted before the run began: nothing was run");
  Engine& engine = *opened.engine;

  MILLRACE_TRY_ASSIGN(const PipelineVersion version,
                      opened.ledger->StorePipeline(file.pipeline, ToJson(file.pipeline), file.source, file.base_dir,
                                                   context->org(), context->Deadline()));
  request.version = version.version;
  request.now = context->clock().WallNow();
  MILLRACE_TRY_ASSIGN(const RunPlan plan, PlanRun(file.pipeline, request, context->ids()));
  MILLRACE_TRY(engine.Release(CountStages(plan)));
  Result<wire::RunUpdate> end = Fail(ErrorCode::kUnavailable, "not started");
  {
    MILLRACE_TRY_ASSIGN(const auto transport, engine.MakeTransport());
    MILLRACE_TRY_ASSIGN(BrokerClient client, BrokerClient::Connect(*transport, engine.client_endpoint(), context->clock()));
    end = SubmitAndFollow(client, *opened.ledger, plan, options, context->clock(), &engine);
  }
  engine.RequestStop();
  if (!end) engine.RequestStop();  // interrupted: hand back at once
  // Read while the engine ends. Closed before it has: whoever closes the ledger last tidies it up.
  const Result<RunReport> report = end ? ReadRun(*context, *opened.ledger, plan.run.id) : Result<RunReport>();
  opened.ledger.reset();
  MILLRACE_TRY(engine.Join());
  if (!end && end.error().code == ErrorCode::kCancelled)
    return Fail(ErrorCode::kCancelled,
                "interrupted; run {} is kept and goes on with the next 'millrace up' or 'millrace run' in {}",
                plan.run.id.ToString(), context->config().home);
  if (!end) return std::unexpected(std::move(end.error()));

  if (!report) return std::unexpected(report.error());
  PrintReport(*context, *report);
  if (context->format() == OutputFormat::kTable) {
    if (report->state == RunState::kSucceeded && report->HasLoad() && report->Changed() == 0)
      fmt::print("The warehouse was up to date: this run changed nothing in it.\n");
    PrintWhereThingsAre(*context, file.pipeline, options.file, report->run);
  }
  return ExitCodeOf(report->state);
}

Result<ExitCode> DoRunStart(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "run"));
  MILLRACE_TRY_ASSIGN(const auto params, ParseParams(options.params));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const PipelineVersion version,
                      ledger->GetPipeline(context->org(), options.pipeline, std::nullopt, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const Pipeline pipeline, PipelineFromJson(version.definition));
  RunRequest request;
  request.org = context->org();
  request.version = version.version;
  request.base_dir = version.base_dir;
  request.params = params;
  MILLRACE_TRY_ASSIGN(request.now, ledger->Now(context->Deadline()));
  MILLRACE_TRY_ASSIGN(const RunPlan plan, PlanRun(pipeline, request, context->ids()));

  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(*context, *ledger, kBrokerAnswers));
  if (door.client() == nullptr)
    return Fail(ErrorCode::kUnavailable, "no broker answers at {}: start '{}'; nothing was submitted", door.endpoint(),
                context->embedded() ? "millrace up --home " + context->config().home : "millrace broker");
  BrokerClient& client = *door.client();
  if (!options.wait) {
    if (auto submitted = SubmitPlan(client, *ledger, plan, false, context->clock().Now() + kSubmitTimeout); !submitted)
      return Prefixed(std::move(submitted.error()), "broker at {}", door.endpoint());
    Print(Table{.columns = {"run", "pipeline", "version"}, .rows = {{plan.run.id.ToString(), pipeline.name, version.version}}},
          context->format());
    return ExitCode::kOk;
  }
  BlockStopSignals();
  auto end = SubmitAndFollow(client, *ledger, plan, options, context->clock());
  if (!end)
    return Prefixed(std::move(end.error()), "run {} (look with 'millrace run show{}')", plan.run.id.ToString(),
                    context->OrgOption());
  MILLRACE_TRY_ASSIGN(const RunReport report, PrintRun(*context, *ledger, plan.run.id));
  return ExitCodeOf(report.state);
}

Result<ExitCode> DoRunList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "run"));
  RunFilter filter;
  filter.org = context->org();
  MILLRACE_TRY_ASSIGN(filter.limit, CountOf(options, kListDefault, kListMax));
  if (!options.pipeline.empty()) filter.pipeline = options.pipeline;
  if (!options.state.empty()) {
    MILLRACE_TRY_ASSIGN(filter.state, ParseRunState(options.state));
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto runs, ledger->ListRuns(filter, context->Deadline()));
  if (context->format() == OutputFormat::kTable) {
    fmt::print("{}", RunsForPeople(runs, context->clock().WallNow()));
    return ExitCode::kOk;
  }
  Table table{.columns = {"run", "pipeline", "version", "state", "slot", "created_at", "duration_ms", "jobs_ended",
                          "jobs_succeeded", "jobs", "reason"},
              .rows = {}};
  for (const RunSummary& run : runs)
    table.rows.push_back({run.spec.id.ToString(), run.spec.pipeline, run.spec.version, std::string(Name(run.state)),
                          run.spec.slot ? Cell{ToRfc3339(*run.spec.slot)} : Cell{}, ToRfc3339(run.spec.created_at),
                          run.finished_at ? DurationCell(*run.finished_at - run.spec.created_at, context->format()) : Cell{},
                          std::int64_t{run.jobs_ended}, std::int64_t{run.jobs_succeeded}, std::int64_t{run.jobs}, run.reason});
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> DoRunShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "run"));
  MILLRACE_TRY(CheckRunName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const RunId run, FindRun(*ledger, context->org(), options.id, options.pipeline, context->Deadline()));
  MILLRACE_TRY_ASSIGN(RunReport report, ReadRun(*context, *ledger, run));
  if (!IsTerminal(report.state)) AddRunning(report, RunningNow(*context, *ledger, run.uuid, report.stages.size()));
  PrintReport(*context, report);
  return ExitCode::kOk;
}

struct LogEntry {
  std::string stage;
  std::uint32_t attempt = 0;
  const AttemptReport* report = nullptr;
};

void PrintLogs(const std::vector<LogEntry>& entries, OutputFormat format) {
  if (format != OutputFormat::kTable) {
    Table table{.columns = {"stage", "attempt", "worker", "end", "error", "log"}, .rows = {}};
    for (const auto& [stage, attempt, report] : entries)
      table.rows.push_back(
          {stage, std::int64_t{attempt}, report->worker, std::string(Name(report->end)), report->error, report->log_tail});
    return Print(table, format);
  }
  for (const auto& [stage, attempt, report] : entries) {
    fmt::print("-- {} attempt {} on {}: {}{}\n", stage, attempt, report->worker.empty() ? "nobody" : report->worker,
               Name(report->end), report->error.empty() ? "" : ": " + report->error);
    if (!report->log_tail.empty()) fmt::print("{}{}", report->log_tail, report->log_tail.ends_with('\n') ? "" : "\n");
  }
}

Result<ExitCode> DoRunLogs(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "run"));
  MILLRACE_TRY(CheckRunName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const RunId run, FindRun(*ledger, context->org(), options.id, options.pipeline, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const RunDetail detail, ledger->GetRun(context->org(), run, context->Deadline()));
  bool found = options.stage.empty();
  std::vector<LogEntry> entries;
  for (const JobDetail& job : detail.jobs) {
    if (!options.stage.empty() && job.spec.stage != options.stage) continue;
    found = true;
    for (const AttemptRow& attempt : job.attempts)
      entries.push_back({job.spec.stage, attempt.counters.deliveries, &attempt.report});
    if (job.outcome && job.outcome->report.token != Token{})
      entries.push_back({job.spec.stage, job.outcome->counters.deliveries, &job.outcome->report});
  }
  if (!found) return Fail(ErrorCode::kNotFound, "run {} has no stage '{}'", run.ToString(), options.stage);
  PrintLogs(entries, context->full_format());
  return ExitCode::kOk;
}

}  // namespace

ExitCode RunFile(const Options& options) { return Finish(DoRunFile(options)); }
ExitCode RunStart(const Options& options) { return Finish(DoRunStart(options)); }
ExitCode RunList(const Options& options) { return Finish(DoRunList(options)); }
ExitCode RunShow(const Options& options) { return Finish(DoRunShow(options)); }
ExitCode RunLogs(const Options& options) { return Finish(DoRunLogs(options)); }

}  // namespace millrace::cli
