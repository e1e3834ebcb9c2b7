#include "client/cli/run_report.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "client/cli/find_run.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

Result<StageReport> MakeStageReport(const JobDetail& job) {
  StageReport report;
  report.stage = job.spec.stage;
  report.job = job.spec.id.ToString();
  report.kind = job.spec.kind;
  if (job.spec.kind == kJobKindStage) {
    MILLRACE_TRY_ASSIGN(const StageTask task, StageTaskFromJson(job.spec.payload));
    report.kind = task.stage.KindName();
  }
  if (!job.attempts.empty()) {
    const AttemptRow& last = job.attempts.back();
    report.counters = last.counters;
    report.state = JobState::kScheduled;
    report.error_class = last.report.error_class;
    report.error = last.report.error;
    report.log_tail = last.report.log_tail;
    report.worker = last.report.worker;
  }
  if (!job.outcome) return report;
  const OutcomeRow& outcome = *job.outcome;
  report.state = outcome.state;
  report.counters = outcome.counters;
  report.worker = outcome.report.worker;
  report.error_class = outcome.report.error_class;
  report.error = outcome.report.error;
  report.log_tail = outcome.report.log_tail;
  if (outcome.report.token != Token{}) report.started_at = outcome.report.started_at;
  report.finished_at = outcome.report.finished_at;
  if (!outcome.report.result.empty()) {
    if (auto result = StageResultFromJson(outcome.report.result)) report.result = std::move(*result);
  }
  return report;
}

// The ledger knows ends only: a job that nothing holds back any more waits or runs.
bool NothingHoldsBack(const JobDetail& job, const std::map<JobId, JobState>& ended) {
  return std::ranges::all_of(job.spec.depends_on, [&](const JobId& need) {
    const auto end = ended.find(need);
    return end != ended.end() && (end->second == JobState::kSucceeded || job.spec.options.run_when == RunWhen::kAllEnded);
  });
}

Cell MaybeCount(const std::optional<StageResult>& result, std::int64_t RowCounts::* member) {
  return result ? Cell{result->rows.*member} : Cell{};
}

std::string Lines(const std::string& text, std::string_view indent) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    out += fmt::format("{}{}\n", indent, std::string_view(text).substr(at, end - at));
    at = end + 1;
  }
  return out;
}

}  // namespace

std::int64_t RunReport::Changed() const {
  std::int64_t changed = 0;
  for (const auto& s : stages)
    if (s.kind == "load" && s.result && !s.result->already_applied)
      changed += s.result->inserted + s.result->updated + s.result->deleted;
  return changed;
}

bool RunReport::HasLoad() const {
  return std::ranges::any_of(stages, [](const auto& s) { return s.kind == "load"; });
}

bool RunReport::Balanced() const {
  return std::ranges::all_of(stages, [](const auto& s) { return !s.result || !s.result->ok || s.result->rows.Balanced(); });
}

Result<RunReport> MakeRunReport(const RunDetail& detail) {
  RunReport report;
  report.run = detail.summary.spec.id.ToString();
  report.pipeline = detail.summary.spec.pipeline;
  report.schedule = detail.summary.spec.schedule;
  report.version = detail.summary.spec.version;
  report.slot = detail.summary.spec.slot;
  report.state = detail.summary.state;
  report.reason = detail.summary.reason;
  report.created_at = detail.summary.spec.created_at;
  report.finished_at = detail.summary.finished_at;
  std::map<JobId, JobState> ended;
  for (const JobDetail& job : detail.jobs)
    if (job.outcome) ended.emplace(job.spec.id, job.outcome->state);
  for (const JobDetail& job : detail.jobs) {
    auto stage = MakeStageReport(job);
    if (!stage) return Prefixed(std::move(stage.error()), "run {}: job {}", report.run, job.spec.id.ToString());
    if (stage->state == JobState::kBlocked && NothingHoldsBack(job, ended)) stage->state = JobState::kReady;
    report.stages.push_back(std::move(*stage));
  }
  return report;
}

void AddRunning(RunReport& report, std::span<const wire::RunUpdate::Stage> running) {
  std::map<std::string, const wire::RunUpdate::Stage*> by_job;
  for (const auto& stage : running) by_job.emplace(stage.job.ToString(), &stage);
  for (StageReport& stage : report.stages) {
    const auto found = by_job.find(stage.job);
    if (found == by_job.end() || IsTerminal(stage.state)) continue;
    stage.running = *found->second;
    stage.state = stage.running->state;
    stage.worker = stage.running->worker;
  }
}

std::string ProgressText(const wire::RunUpdate::Stage& running) {
  std::string text = "on " + (running.worker.empty() ? "a worker that has not said so yet" : running.worker);
  if (running.rows > 0) text += fmt::format(": {} {}", HumanCount(running.rows), running.rows == 1 ? "row" : "rows");
  if (running.bytes > 0) text += fmt::format("{} {}", running.rows > 0 ? "," : ":", HumanBytes(running.bytes));
  return running.rows > 0 || running.bytes > 0 ? text + " so far" : text;
}

Table StageTable(const RunReport& report, OutputFormat format) {
  const bool people = format == OutputFormat::kTable;
  Table table{.columns = {"stage", "kind", "state", "attempts", "read", "loaded", "filtered", "quarantined", "deduplicated",
                          "bytes", people ? "duration" : "duration_ms"},
              .rows = {}};
  for (const StageReport& s : report.stages) {
    std::vector<Cell> row{s.stage, s.kind, std::string(Name(s.state)), std::int64_t{s.counters.deliveries}};
    for (const auto member :
         {&RowCounts::read, &RowCounts::loaded, &RowCounts::filtered, &RowCounts::quarantined, &RowCounts::deduplicated})
      row.push_back(MaybeCount(s.result, member));
    const std::int64_t bytes = !s.result ? 0 : s.kind == "extract" ? s.result->bytes_read : s.result->bytes_written;
    row.push_back(!s.result ? Cell{} : people ? Cell{HumanBytes(bytes)} : Cell{bytes});
    row.push_back(s.started_at && s.finished_at ? DurationCell(*s.finished_at - *s.started_at, format) : Cell{});
    table.rows.push_back(std::move(row));
  }
  return table;
}

Json ResultJson(const StageResult& r) {
  return {{"rows",
           {{"read", r.rows.read},
            {"loaded", r.rows.loaded},
            {"filtered", r.rows.filtered},
            {"quarantined", r.rows.quarantined},
            {"deduplicated", r.rows.deduplicated}}},
          {"bytes_read", r.bytes_read},
          {"bytes_written", r.bytes_written},
          {"inserted", r.inserted},
          {"updated", r.updated},
          {"unchanged", r.unchanged},
          {"deleted", r.deleted},
          {"already_applied", r.already_applied},
          {"manifest", r.manifest},
          {"target", r.target},
          {"plan", r.plan},
          {"quarantine", r.quarantine}};
}

std::string ToJson(const RunReport& report) {
  Json json;
  json["run"] = report.run;
  json["pipeline"] = report.pipeline;
  json["version"] = report.version;
  json["schedule"] = report.schedule.empty() ? Json(nullptr) : Json(report.schedule);
  json["slot"] = report.slot ? Json(ToRfc3339(*report.slot)) : Json(nullptr);
  json["state"] = Name(report.state);
  json["reason"] = report.reason;
  json["created_at"] = ToRfc3339(report.created_at);
  json["finished_at"] = report.finished_at ? Json(ToRfc3339(*report.finished_at)) : Json(nullptr);
  json["duration_ms"] = report.finished_at ? Json((*report.finished_at - report.created_at).count() / 1000) : Json(nullptr);
  json["changed"] = report.Changed();
  json["balanced"] = report.Balanced();
  json["stages"] = Json::array();
  for (const StageReport& s : report.stages) {
    Json stage;
    stage["stage"] = s.stage;
    stage["kind"] = s.kind;
    stage["job"] = s.job;
    stage["state"] = Name(s.state);
    stage["deliveries"] = s.counters.deliveries;
    stage["failures"] = s.counters.failures;
    stage["crashes"] = s.counters.crashes;
    stage["worker"] = s.worker;
    stage["progress"] = nullptr;
    if (s.running) stage["progress"] = {{"worker", s.running->worker}, {"rows", s.running->rows}, {"bytes", s.running->bytes}};
    stage["started_at"] = s.started_at ? Json(ToRfc3339(*s.started_at)) : Json(nullptr);
    stage["finished_at"] = s.finished_at ? Json(ToRfc3339(*s.finished_at)) : Json(nullptr);
    const Json result = ResultJson(s.result.value_or(StageResult{}));
    for (const auto& [key, value] : result.items()) stage[key] = s.result ? value : Json(nullptr);
    stage["error_class"] = s.error_class;
    stage["error"] = s.error;
    json["stages"].push_back(std::move(stage));
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string ForPeople(const RunReport& report) {
  std::string out = fmt::format("{} version {}: run {} {}", report.pipeline, report.version, report.run, Name(report.state));
  if (report.finished_at) out += " in " + HumanDuration(*report.finished_at - report.created_at);
  if (report.slot) out += " for slot " + ToRfc3339(*report.slot);
  out += "\n\n" + Format(StageTable(report, OutputFormat::kTable), OutputFormat::kTable);
  if (report.state == RunState::kSucceeded)
    out += fmt::format("\nread = loaded + filtered + quarantined + deduplicated {} every stage\n",
                       report.Balanced() ? "holds for" : "DOES NOT HOLD for");
  bool explained = false;
  for (const StageReport& s : report.stages) {
    if (s.running) out += fmt::format("{}: {} {}\n", s.stage, Name(s.running->state), ProgressText(*s.running));
    if (s.result && s.result->rows.quarantined > 0)
      out += fmt::format("{}: {} rows quarantined, each with its reason, in the lake under {}\n", s.stage,
                         HumanCount(s.result->rows.quarantined), s.result->quarantine);
    if (s.kind == "load" && s.result && s.result->ok) {
      const StageResult& r = *s.result;
      const bool same = r.already_applied || r.inserted + r.updated + r.deleted == 0;
      out += fmt::format("{}: {} ({}): {} inserted, {} updated, {} unchanged{}\n", s.stage, r.target, r.plan,
                         HumanCount(r.inserted), HumanCount(r.updated), HumanCount(r.unchanged),
                         r.already_applied ? "; applied before, nothing was done again"
                         : same            ? "; nothing changed"
                                           : "");
    }
    if (!s.error.empty()) {
      explained = true;
      out += fmt::format("\nstage {} {} after {} {}: {}: {}\n", s.stage, Name(s.state), s.counters.deliveries,
                         s.counters.deliveries == 1 ? "attempt" : "attempts", s.error_class, s.error);
      if (s.error_class == "crashed" || s.kind == "command") out += Lines(s.log_tail, "  | ");
    }
  }
  // The reason of a failed run repeats its stage's error.
  if (!explained && !report.reason.empty() && report.state != RunState::kSucceeded) out += "\n" + report.reason + "\n";
  return out;
}

namespace {

constexpr std::size_t kPipelineColumnsMin = 8, kReasonColumnsMin = 12;

// "06:15:00" on the day of `now`, "11-20 06:15" in its year, else "2025-12-31".
std::string ShortTime(WallTime t, std::string_view now) {
  std::string text = ToRfc3339(t).substr(0, 19);
  text[10] = ' ';
  if (text.substr(0, 10) == now.substr(0, 10)) return text.substr(11);
  return text.substr(0, 4) == now.substr(0, 4) ? text.substr(5, 11) : text.substr(0, 10);
}

// The widest cell of each column, by what a terminal shows.
std::size_t WidthOf(const Table& table, std::size_t column) {
  std::size_t width = DisplayWidth(table.columns[column]);
  for (const auto& row : table.rows)
    if (const auto* text = std::get_if<std::string>(&row[column])) width = std::max(width, DisplayWidth(*text));
  return width;
}

}  // namespace

std::string RunsForPeople(const std::vector<RunSummary>& runs, WallTime now) {
  std::vector<RunId> ids;
  for (const RunSummary& run : runs) ids.push_back(run.spec.id);
  const std::size_t id_length = ShortIdLength(ids);
  const std::string today = ToRfc3339(now);
  const bool slots = std::ranges::any_of(runs, [](const RunSummary& run) { return run.spec.slot.has_value(); });
  Table table{.columns = {"run", "pipeline", "state", "created"}, .rows = {}};
  if (slots) table.columns.emplace_back("slot");
  for (const char* name : {"duration", "stages", "reason"}) table.columns.emplace_back(name);
  for (const RunSummary& run : runs) {
    std::vector<Cell> row{run.spec.id.ToString().substr(0, id_length), run.spec.pipeline, std::string(Name(run.state)),
                          ShortTime(run.spec.created_at, today)};
    // The date of a slot is that of its run unless it says otherwise.
    if (slots) row.push_back(run.spec.slot ? Cell{ShortTime(*run.spec.slot, ToRfc3339(run.spec.created_at))} : Cell{});
    row.push_back(run.finished_at ? Cell{HumanDuration(*run.finished_at - run.spec.created_at)} : Cell{});
    row.emplace_back(fmt::format("{}/{}", run.jobs_succeeded, run.jobs));
    std::string reason = run.reason;
    std::ranges::replace(reason, '\n', ' ');
    row.emplace_back(std::move(reason));
    table.rows.push_back(std::move(row));
  }
  constexpr std::size_t kPipeline = 1;
  std::size_t others = 0;
  for (std::size_t c = 0; c + 1 < table.columns.size(); ++c) others += (c == kPipeline ? 0 : WidthOf(table, c)) + 2;
  const std::size_t room = kRunListColumns - std::min(others, kRunListColumns);
  // A long name gives way to the reason, as far as it stays a name.
  const std::size_t reason = std::min(WidthOf(table, table.columns.size() - 1), kReasonColumnsMin);
  const std::size_t name = std::min(WidthOf(table, kPipeline), std::max(kPipelineColumnsMin, room - std::min(reason, room)));
  for (auto& row : table.rows) {
    row[kPipeline] = Ellipsized(std::get<std::string>(row[kPipeline]), name);
    row.back() = Ellipsized(std::get<std::string>(row.back()), std::max(kReasonColumnsMin, room - std::min(name, room)));
  }
  return Format(table, OutputFormat::kTable);
}

}  // namespace millrace::cli
