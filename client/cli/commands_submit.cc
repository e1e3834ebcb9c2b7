// job submit: single jobs, or a batch with a callback.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "client/cli/broker_look.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "common/base/limits.h"
#include "common/model/job_options.h"
#include "common/model/stage_task.h"
#include "common/wire/check_job.h"
#include "common/wire/zmq_transport.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLineBytesMax = 2 * kPayloadBytesMax;
constexpr std::size_t kSinglesMax = 100'000;
constexpr Millis kLedgerPoll{100};

// A text is the payload; anything else is the payload as JSON.
std::string PayloadOf(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

Result<std::int64_t> IntegerOf(const Json& value, std::string_view key) {
  if (!value.is_number_integer()) return Fail(ErrorCode::kInvalidArgument, "{}: {} is no integer", key, value.dump());
  return value.get<std::int64_t>();
}

Result<void> Field(JobSpec& job, const std::string& key, const Json& value) {
  if (key == "payload") {
    job.payload = PayloadOf(value);
  } else if (key == "options") {
    MILLRACE_TRY_ASSIGN(job.options, JobOptionsFromJson(value.dump()));
  } else if (key == "kind" || key == "queue" || key == "run_at") {
    if (!value.is_string()) return Fail(ErrorCode::kInvalidArgument, "{}: {} is no text", key, value.dump());
    const auto text = value.get<std::string>();
    if (key == "run_at") {
      MILLRACE_TRY_ASSIGN(job.run_at, ParseRfc3339(text));
    } else {
      (key == "kind" ? job.kind : job.queue) = text;
    }
  } else if (key == "priority" || key == "max_attempts") {
    MILLRACE_TRY_ASSIGN(const std::int64_t n, IntegerOf(value, key));
    if (n < 0 || n > kMaxAttemptsMax) return Fail(ErrorCode::kInvalidArgument, "{}: {} is out of range", key, n);
    (key == "priority" ? job.priority : job.retry.max_attempts) = static_cast<int>(n);
  } else if (key == "timeout_ms" || key == "backoff_base_ms" || key == "backoff_cap_ms") {
    MILLRACE_TRY_ASSIGN(const std::int64_t n, IntegerOf(value, key));
    (key == "timeout_ms" ? job.timeout : key == "backoff_base_ms" ? job.retry.backoff_base : job.retry.backoff_cap) = Millis{n};
  } else {
    return Fail(ErrorCode::kInvalidArgument,
                "unknown key '{}'; a job has kind, queue, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms, "
                "timeout_ms, run_at and options",
                key);
  }
  return {};
}

// A job from its line. One of a batch belongs to `run`, and its command is told so.
Result<JobSpec> JobOf(const std::string& text, Context& context, std::optional<RunId> run) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return Fail(ErrorCode::kInvalidArgument, "is no JSON object");
  JobSpec job;
  job.id = context.ids().Next<JobId>();
  job.run = run;
  job.submitted_at = context.clock().WallNow();
  for (const auto& [key, value] : json.items()) MILLRACE_TRY(Field(job, key, value));
  if (job.kind == kJobKindStage)
    return Fail(ErrorCode::kInvalidArgument, "kind: stages come from pipelines: start one with millrace run start");
  if (job.kind == kJobKindCommand) {
    MILLRACE_TRY_ASSIGN(job.payload, CommandPayload(job.payload, job.id));
    if (run) {
      MILLRACE_TRY_ASSIGN(CommandTask task, CommandTaskFromJson(job.payload));
      task.run = *run;
      job.payload = ToJson(task);
    }
  }
  if (job.options.durability != Durability::kLedger)
    return Fail(ErrorCode::kInvalidArgument, "options: durability: what is written into the ledger is of its class");
  MILLRACE_TRY(wire::CheckJob(job));
  return job;
}

Result<std::vector<JobSpec>> ReadBatch(const std::string& name, Context& context, std::optional<RunId> run) {
  std::ifstream file;
  if (name != "-") {
    file.open(name, std::ios::binary);
    if (!file) return Fail(ErrorCode::kNotFound, "--batch: cannot read '{}'", name);
  }
  std::istream& in = name == "-" ? std::cin : file;
  const std::size_t max = run ? kStagesPerPipelineMax - 1 : kSinglesMax;
  std::vector<JobSpec> jobs;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line.size() > kLineBytesMax)
      return Fail(ErrorCode::kLimit, "{}:{}: {} bytes, limit {}", name, number, line.size(), kLineBytesMax);
    if (jobs.size() == max) return Fail(ErrorCode::kLimit, "{}:{}: more than {} jobs", name, number, max);
    auto job = JobOf(line, context, run);
    if (!job) return Prefixed(std::move(job.error()), "{}:{}", name, number);
    if (run) job->stage = std::to_string(jobs.size() + 1);
    jobs.push_back(std::move(*job));
  }
  if (jobs.empty()) return Fail(ErrorCode::kInvalidArgument, "{}: has no job", name);
  return jobs;
}

// Polls the ledger, which knows the end whoever serves the job.
Result<JobState> AwaitJob(Context& context, Ledger& ledger, wire::Transport& transport, JobId id) {
  while (true) {
    MILLRACE_TRY_ASSIGN(const JobDetail job, ledger.GetJob(kDefaultOrg, id, context.Deadline()));
    if (job.outcome) return job.outcome->state;
    transport.Wait(kLedgerPoll);
  }
}

// Once for each kind that needs a worker of somebody else's.
void SayForeignKinds(std::span<const JobSpec> jobs) {
  std::set<std::string> kinds;
  for (const JobSpec& job : jobs)
    if (kinds.insert(job.kind).second)
      if (const std::string text = ForeignKind(job.kind); !text.empty()) fmt::print(stderr, "{}\n", text);
}

// The state of each job, once all of them have ended.
Result<std::vector<JobState>> AwaitJobs(Context& context, Ledger& ledger, const std::vector<JobId>& ids) {
  SayIfNobodyRuns(context, ids.size() == 1 ? "the job" : "each job");
  MILLRACE_TRY_ASSIGN(const auto transport, wire::MakeZmqTransport(wire::MakeZmqContext()));
  std::vector<JobState> states;
  for (const JobId& id : ids) {
    MILLRACE_TRY_ASSIGN(const JobState state, AwaitJob(context, ledger, *transport, id));
    states.push_back(state);
  }
  return states;
}

ExitCode ExitCodeOf(const std::vector<JobState>& states) {
  return std::ranges::all_of(states, [](JobState state) { return state == JobState::kSucceeded; }) ? ExitCode::kOk
                                                                                                   : ExitCode::kWorkFailed;
}

Result<ExitCode> SubmitBatch(const Options& options, Context& context) {
  RunSpec run;
  run.id = context.ids().Next<RunId>();
  run.overlap = "allow";
  run.created_at = context.clock().WallNow();
  MILLRACE_TRY_ASSIGN(std::vector<JobSpec> jobs, ReadBatch(options.batch, context, run.id));
  auto then = JobOf(options.then, context, run.id);
  if (!then) return Prefixed(std::move(then.error()), "--then");
  then->stage = "then";
  then->options.run_when = RunWhen::kAllEnded;
  for (const JobSpec& job : jobs) then->depends_on.push_back(job.id);
  jobs.push_back(std::move(*then));
  MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kYes, Actor()));
  MILLRACE_TRY(ledger->SubmitRun(run, jobs, context.Deadline()));
  SayForeignKinds(jobs);
  std::vector<JobState> states;
  if (options.wait) {
    std::vector<JobId> ids;
    for (const JobSpec& job : jobs) ids.push_back(job.id);
    MILLRACE_TRY_ASSIGN(states, AwaitJobs(context, *ledger, ids));
  }
  if (options.quiet) {
    fmt::print("{}\n", run.id.ToString());
    return ExitCodeOf(states);
  }
  Table table{.columns = {"run", "jobs", "then"}, .rows = {}};
  table.rows.push_back({run.id.ToString(), static_cast<std::int64_t>(jobs.size() - 1), jobs.back().id.ToString()});
  Print(table, context.format());
  return ExitCodeOf(states);
}

Result<ExitCode> SubmitSingles(const Options& options, Context& context) {
  std::vector<JobSpec> jobs;
  if (!options.batch.empty()) {
    MILLRACE_TRY_ASSIGN(jobs, ReadBatch(options.batch, context, std::nullopt));
  } else {
    Json json{{"kind", options.kind}, {"payload", options.payload}};
    if (!options.queue.empty()) json["queue"] = options.queue;
    MILLRACE_TRY_ASSIGN(JobSpec job, JobOf(json.dump(-1, ' ', false, Json::error_handler_t::replace), context, std::nullopt));
    jobs.push_back(std::move(job));
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kYes, Actor()));
  Table table{.columns = {"job", "queue", "kind", "conflict_with"}, .rows = {}};
  std::vector<JobId> accepted;
  std::vector<std::size_t> row_of;  // of each accepted job
  for (std::size_t at = 0; at < jobs.size(); at += kBatchJobsMax) {
    const auto page = std::span(jobs).subspan(at, std::min(kBatchJobsMax, jobs.size() - at));
    MILLRACE_TRY_ASSIGN(const SubmitJobsResult result, ledger->SubmitJobs(page, context.Deadline()));
    for (const JobSpec& job : page) {
      const auto held = std::ranges::find(result.conflicts, job.id, &UniqueConflict::job);
      const bool conflict = held != result.conflicts.end();
      if (options.quiet && !conflict) fmt::print("{}\n", job.id.ToString());
      if (!conflict) {
        accepted.push_back(job.id);
        row_of.push_back(table.rows.size());
      }
      table.rows.push_back({job.id.ToString(), job.queue, job.kind, conflict ? Cell{held->holder.ToString()} : Cell{}});
    }
  }
  SayForeignKinds(jobs);
  std::vector<JobState> states;
  if (options.wait) {
    std::fflush(stdout);  // the ids, before the wait
    MILLRACE_TRY_ASSIGN(states, AwaitJobs(context, *ledger, accepted));
    table.columns.emplace_back("state");
    for (auto& row : table.rows) row.emplace_back();
    for (std::size_t i = 0; i < states.size(); ++i) table.rows[row_of[i]].back() = std::string(Name(states[i]));
  }
  if (!options.quiet) Print(table, context.format());
  return ExitCodeOf(states);
}

Result<ExitCode> DoSubmit(const Options& options) {
  if (options.batch.empty() == options.kind.empty())
    return Fail(ErrorCode::kInvalidArgument, "job submit: give --kind (and --payload), or --batch FILE");
  if (!options.then.empty() && options.batch.empty())
    return Fail(ErrorCode::kInvalidArgument, "job submit: --then is the end of a --batch");
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  return options.then.empty() ? SubmitSingles(options, *context) : SubmitBatch(options, *context);
}

}  // namespace

ExitCode JobSubmit(const Options& options) { return Finish(DoSubmit(options)); }

}  // namespace millrace::cli
