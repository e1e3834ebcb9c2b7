// check, plan, pipeline apply, pipeline list, pipeline show.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/pipeline_file.h"
#include "common/base/tell.h"
#include "common/model/cron.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/model/run_plan.h"
#include "common/model/schedule_rules.h"

namespace millrace::cli {
namespace {

constexpr Millis kTypeCheckTimeout{60'000};

std::string Joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// What a stage reads or writes, in one line.
std::string Describe(const StageSpec& stage) {
  if (const auto* e = std::get_if<ExtractSpec>(&stage.work)) return "files " + Joined(e->paths);
  if (const auto* l = std::get_if<LoadSpec>(&stage.work)) {
    const std::string_view mode = l->mode == LoadMode::kAppend ? "append" : l->mode == LoadMode::kReplace ? "replace" : "merge";
    return fmt::format("{} {} into {}{}{}", mode, l->from, l->to, l->path.empty() ? " table " + l->table : " " + l->path,
                       l->key.empty() ? "" : " by " + Joined(l->key));
  }
  if (const auto* c = std::get_if<CommandSpec>(&stage.work)) return Joined(c->argv);
  return "SQL";
}

// As JSON one object, with the same `ok` and `errors` as when the file is refused.
void PrintChecked(const Table& table, std::string_view rows, OutputFormat format) {
  if (format != OutputFormat::kJson) return Print(table, format);
  fmt::print("{}", FormatChecked(table, rows));
  std::fflush(stdout);
}

// To stderr: the schedule of a file and its next fire.
void PrintSchedules(const Pipeline& pipeline, WallTime now) {
  for (const ScheduleSpec& spec : pipeline.schedules) {
    const auto cron = CronSchedule::Make(spec);
    const auto next = cron ? cron->Next(now) : std::nullopt;
    Tell("schedule: {}, next {}\n", Describe(spec), next ? ToRfc3339(*next) : "never");
  }
}

Result<ExitCode> DoCheck(const Options& options, std::vector<Diagnostic>* diagnostics) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "check"));
  MILLRACE_TRY_ASSIGN(const PipelineFile file, ReadPipelineFile(options.file, diagnostics));
  if (context->embedded()) MILLRACE_TRY(CheckConnections(file, context->Connections(), diagnostics));
  MILLRACE_TRY_ASSIGN(const auto params, ParseParams(options.params));
  RunRequest request;
  request.org = context->org();
  request.params = WithSamples(file.pipeline, params);
  MILLRACE_TRY(PlanRun(file.pipeline, request, context->ids()));  // wrong values are about the command line, not the file
  MILLRACE_TRY_ASSIGN(const auto schemas, TypeCheck(file, params, context->config().lake, context->org(),
                                                    context->clock().Now() + kTypeCheckTimeout, diagnostics));
  Table table{.columns = {"stage", "column", "type", "not_null"}, .rows = {}};
  for (const StageSchema& schema : schemas)
    for (const ColumnSpec& column : schema.columns)
      table.rows.push_back({schema.stage, column.name, column.type, column.not_null});
  PrintChecked(table, "columns", context->full_format());
  PrintSchedules(file.pipeline, context->clock().WallNow());
  Tell("{}: ok, {} stages\n", options.file, file.pipeline.stages.size());
  return ExitCode::kOk;
}

Result<ExitCode> DoPlan(const Options& options, std::vector<Diagnostic>* diagnostics) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "plan"));
  MILLRACE_TRY_ASSIGN(const PipelineFile file, ReadPipelineFile(options.file, diagnostics));
  if (context->embedded()) MILLRACE_TRY(CheckConnections(file, context->Connections(), diagnostics));
  MILLRACE_TRY_ASSIGN(const auto params, ParseParams(options.params));
  RunRequest request;
  request.base_dir = file.base_dir;
  request.params = params;
  request.version = 0;
  request.now = context->clock().WallNow();
  MILLRACE_TRY_ASSIGN(const RunPlan plan, PlanRun(file.pipeline, request, context->ids()));
  MILLRACE_TRY(
      TypeCheck(file, params, context->config().lake, context->org(), context->clock().Now() + kTypeCheckTimeout, diagnostics));
  Table table{
      .columns = {"stage", "kind", "does", "after", "checks", "contract", "max_attempts", "timeout_ms", "queue", "effect"},
      .rows = {}};
  for (std::size_t i = 0; i < file.pipeline.stages.size(); ++i) {
    const StageSpec& stage = file.pipeline.stages[i];
    table.rows.push_back({stage.name, std::string(stage.KindName()), Describe(stage), Joined(stage.depends_on),
                          static_cast<std::int64_t>(stage.checks.size()), stage.contract.has_value(),
                          std::int64_t{stage.retry.max_attempts}, stage.timeout.count(), stage.queue, plan.jobs[i].effect});
  }
  PrintChecked(table, "stages", context->full_format());
  PrintSchedules(file.pipeline, request.now);
  return ExitCode::kOk;
}

Result<ExitCode> DoApply(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "pipeline"));
  MILLRACE_TRY_ASSIGN(PipelineFile file, ReadPipelineFile(options.file));
  if (context->embedded()) MILLRACE_TRY(CheckConnections(file, context->Connections()));
  if (!options.timezone.empty() && options.cron.empty())
    return Fail(ErrorCode::kInvalidArgument, "--timezone is the zone of --cron: give both, or set the zone in the file");
  if (!options.base_dir.empty()) {
    std::error_code ec;
    file.base_dir = std::filesystem::absolute(options.base_dir, ec).lexically_normal().string();
    if (file.base_dir.size() > 1 && file.base_dir.ends_with('/')) file.base_dir.pop_back();
  }
  MILLRACE_TRY(TypeCheck(file, {}, context->config().lake, context->org(), context->clock().Now() + kTypeCheckTimeout));
  if (!options.cron.empty()) {
    if (file.pipeline.schedules.empty()) file.pipeline.schedules.emplace_back();
    file.pipeline.schedules.front().cron = options.cron;
    if (!options.timezone.empty()) file.pipeline.schedules.front().timezone = options.timezone;
    MILLRACE_TRY(CronSchedule::Make(file.pipeline.schedules.front()));
    if (const std::string why = WhyNoSlotRuns(file.pipeline); !why.empty())
      return Fail(ErrorCode::kInvalidArgument, "--cron: {}", why);
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kYes, "cli"));
  MILLRACE_TRY_ASSIGN(const PipelineVersion version, ledger->ApplyPipeline(file.pipeline, ToJson(file.pipeline), file.source,
                                                                           file.base_dir, context->org(), context->Deadline()));
  Table table{.columns = {"pipeline", "version", "applied_at", "base_dir"},
              .rows = {{version.name, version.version, ToRfc3339(version.applied_at), version.base_dir}}};
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> DoList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "pipeline"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto versions, ledger->ListPipelines(context->org(), context->Deadline()));
  Table table{.columns = {"pipeline", "version", "applied_at", "base_dir"}, .rows = {}};
  for (const PipelineVersion& v : versions) table.rows.push_back({v.name, v.version, ToRfc3339(v.applied_at), v.base_dir});
  Print(table, context->format());
  return ExitCode::kOk;
}

std::string DescribeOrNone(const std::optional<ScheduleSpec>& spec) { return spec ? Describe(*spec) : "none"; }

// `pipeline apply --cron` and `run FILE` make what is in force differ from what the newest file says.
Result<std::optional<ScheduleSpec>> InForce(Ledger& ledger, const std::string& pipeline, const Context& context) {
  MILLRACE_TRY_ASSIGN(const auto rows, ledger.Schedules(context.org(), context.Deadline()));
  const auto row = std::ranges::find(rows, pipeline, &ScheduleRow::pipeline);
  return row == rows.end() ? std::nullopt : std::optional(row->spec);
}

Result<ExitCode> DoShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "pipeline"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const PipelineVersion v,
                      ledger->GetPipeline(context->org(), options.pipeline, std::nullopt, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const auto in_force, InForce(*ledger, v.name, *context));
  if (context->format() == OutputFormat::kTable) {
    std::fwrite(v.source.data(), 1, v.source.size(), stdout);
    const ParseResult file = ParsePipeline(v.source, v.name);
    if (!file.pipeline) return ExitCode::kOk;  // of a version of Millrace with another grammar
    const auto written = file.pipeline->schedules.empty() ? std::nullopt : std::optional(file.pipeline->schedules.front());
    if (in_force != written)
      Tell("schedule in force: {}; the file says: {}\n", DescribeOrNone(in_force), DescribeOrNone(written));
  } else {
    Print(Table{.columns = {"pipeline", "version", "applied_at", "base_dir", "source", "schedule"},
                .rows = {{v.name, v.version, ToRfc3339(v.applied_at), v.base_dir, v.source,
                          in_force ? Cell{Describe(*in_force)} : Cell{}}}},
          context->format());
  }
  return ExitCode::kOk;
}

using FileCommand = Result<ExitCode> (*)(const Options&, std::vector<Diagnostic>*);

// Programs read what is wrong from stdout; stderr has it for people either way.
ExitCode RunFileCommand(FileCommand command, const Options& options) {
  std::vector<Diagnostic> diagnostics;
  const auto result = command(options, &diagnostics);
  if (!result && (options.output == "json" || options.output == "ndjson")) {
    fmt::print("{}", FileErrorsJson(options.file, result.error(), diagnostics, options.output == "json" ? 2 : -1));
    std::fflush(stdout);
  }
  return Finish(result);
}

}  // namespace

ExitCode CheckFile(const Options& options) { return RunFileCommand(DoCheck, options); }
ExitCode PlanFile(const Options& options) { return RunFileCommand(DoPlan, options); }
ExitCode PipelineApply(const Options& options) { return Finish(DoApply(options)); }
ExitCode PipelineList(const Options& options) { return Finish(DoList(options)); }
ExitCode PipelineShow(const Options& options) { return Finish(DoShow(options)); }

}  // namespace millrace::cli
