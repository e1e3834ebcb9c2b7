// job list, job show, job requeue, job discard, run retry.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "client/cli/broker_look.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/find_run.h"
#include "client/cli/job_filter.h"
#include "client/cli/job_payload.h"
#include "client/cli/repeat.h"
#include "client/cli/run_report.h"
#include "common/base/tell.h"
#include "common/model/job_options.h"
#include "common/model/stage_task.h"
#include "common/model/whole_org.h"
#include "common/wire/text.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint32_t kListDefault = 50, kListMax = 500;
constexpr std::string_view kLiveState = "live";  // of a job that has not ended

// "2026-11-21T06:15:00Z", or a time before now: 90s, 15m, 2h, 7d.
Result<WallTime> Since(const std::string& text, WallTime now) {
  std::int64_t n = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (ec == std::errc{} && n >= 0 && n < 1'000'000 && end + 1 == text.data() + text.size()) {
    switch (*end) {
      case 's': return now - std::chrono::seconds{n};
      case 'm': return now - std::chrono::minutes{n};
      case 'h': return now - std::chrono::hours{n};
      case 'd': return now - std::chrono::hours{24 * n};
      default: break;
    }
  }
  auto time = ParseRfc3339(text);
  if (!time)
    return Fail(ErrorCode::kInvalidArgument, "--since: '{}' is neither a time (2026-11-21T06:15:00Z) nor an age (2h)", text);
  return *time;
}

}  // namespace

Result<JobFilter> FilterOf(const Options& options, const Context& context) {
  JobFilter filter;
  filter.org = context.org();
  filter.live = filter.live_of_runs = options.state == kLiveState;
  if (filter.live && (options.open || !options.error_class.empty()))
    return Fail(ErrorCode::kInvalidArgument, "--state live with {}: a job that has not ended has no {}; give one of them",
                options.open ? "--open" : "--error-class", options.open ? "end that somebody could act on" : "error class");
  if (!options.state.empty() && !filter.live) {
    const auto state = ParseJobState(options.state);
    if (!state || !IsTerminal(*state))
      return Fail(
          ErrorCode::kInvalidArgument,
          "--state: '{}' is no end of a job; give succeeded, dead, cancelled, expired or skipped, or live for those that "
          "have not ended",
          options.state);
    filter.state = *state;
  }
  if (!options.queue.empty()) filter.queue = options.queue;
  if (!options.kind.empty()) filter.kind = options.kind;
  if (!options.error_class.empty()) filter.error_class = options.error_class;
  if (!options.since.empty()) {
    MILLRACE_TRY_ASSIGN(filter.since, Since(options.since, context.clock().WallNow()));
  }
  return filter;
}

namespace {

std::string StateOf(const std::optional<OutcomeRow>& outcome) {
  return std::string(outcome ? Name(outcome->state) : kLiveState);
}
Cell ActionCell(const std::optional<DeadActionRow>& action) {
  return action ? Cell{std::string(Name(action->action))} : Cell{};
}

Result<ExitCode> DoList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  MILLRACE_TRY_ASSIGN(JobFilter filter, FilterOf(options, *context));
  filter.open = options.open;
  MILLRACE_TRY_ASSIGN(filter.limit, CountOf(options, kListDefault, kListMax));
  if (!options.before.empty()) {
    MILLRACE_TRY_ASSIGN(filter.before, JobId::Parse(options.before));
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto jobs, ledger->ListJobs(filter, context->Deadline()));
  Table table{.columns = {"job", "state", "queue", "kind", "stage", "run", "submitted_at", "finished_at", "deliveries",
                          "failures", "crashes", "error_class", "error", "action"},
              .rows = {}};
  for (const JobSummary& job : jobs) {
    const auto& o = job.outcome;
    const auto count = [&](std::uint32_t n) { return o ? Cell{std::int64_t{n}} : Cell{}; };
    const Counters counters = o ? o->counters : Counters{};
    table.rows.push_back({job.spec.id.ToString(), StateOf(o), job.spec.queue, job.spec.kind, job.spec.stage,
                          job.spec.run ? Cell{job.spec.run->ToString()} : Cell{}, ToRfc3339(job.spec.submitted_at),
                          o ? Cell{ToRfc3339(o->recorded_at)} : Cell{}, count(counters.deliveries), count(counters.failures),
                          count(counters.crashes), o ? Cell{o->report.error_class} : Cell{}, o ? Cell{o->report.error} : Cell{},
                          ActionCell(job.dead_action)});
  }
  Print(table, context->format());
  return ExitCode::kOk;
}

struct Attempt {
  const AttemptReport* report = nullptr;
  Counters counters;
  std::optional<WallTime> next_run_at;
};

std::vector<Attempt> AttemptsOf(const JobDetail& job) {
  std::vector<Attempt> all;
  for (const AttemptRow& row : job.attempts) all.push_back({&row.report, row.counters, row.next_run_at});
  if (job.outcome) all.push_back({&job.outcome->report, job.outcome->counters, std::nullopt});
  return all;
}

// The queue that its size sent it to, as its latest attempt says; empty when it was not routed.
std::string RoutedTo(const JobDetail& job) {
  if (job.outcome) return job.outcome->queue;
  return job.attempts.empty() ? std::string{} : job.attempts.back().queue;
}

Json ResultOf(const JobDetail& job) {
  if (!job.outcome || job.outcome->report.result.empty()) return nullptr;
  Json result = Json::parse(job.outcome->report.result, nullptr, false);
  return result.is_discarded() ? Json(job.outcome->report.result) : result;
}

std::string Unserved(const JobDetail& job) {
  return job.outcome || !job.attempts.empty() ? std::string{} : ForeignKind(job.spec.kind);
}

// What a command says beside the ledger, which knows ends only.
struct Live {
  std::string unserved;                           // why it may wait for ever; empty when nothing is known against it
  std::optional<wire::RunUpdate::Stage> running;  // as its broker says
};

Live LookAt(const JobDetail& job, const Context& context, Ledger& ledger) {
  Live live{.unserved = Unserved(job), .running = {}};
  if (job.outcome) return live;
  auto running = RunningNow(context, ledger, job.spec.id.uuid, 1);
  if (!running.empty()) live.running = std::move(running.front());
  return live;
}

// False: the ledger has the end of a job that only the queue had, and nothing else of it.
bool IsKnown(const JobSpec& spec) { return !spec.kind.empty(); }

// When it was submitted: of a job of which only the end is known as its id says, if it is one that does (UUIDv7).
std::optional<WallTime> SubmittedAt(const JobSpec& spec) {
  if (IsKnown(spec)) return spec.submitted_at;
  if (spec.id.uuid.bytes[6] >> 4U != 7) return std::nullopt;
  return TimeOf(spec.id.uuid);
}

// Of a job that the ledger has: the row of one that is not of class redis does not say.
Durability ClassOf(const JobSpec& spec) {
  return spec.options.durability == Durability::kRedis ? Durability::kRedis : Durability::kLedger;
}

Json JobJson(const JobDetail& job, const Live& live) {
  const JobSpec& s = job.spec;
  Json json{{"job", s.id.ToString()},
            {"org", s.org.value()},
            {"state", StateOf(job.outcome)},
            {"queue", s.queue},
            {"priority", s.priority},
            {"kind", s.kind},
            {"stage", s.stage},
            {"effect", s.effect},
            {"run", nullptr},
            {"submitted_at", nullptr},
            {"max_attempts", s.retry.max_attempts},
            {"durability", Name(ClassOf(s))}};
  if (s.run) json["run"] = s.run->ToString();
  if (const auto at = SubmittedAt(s)) json["submitted_at"] = ToRfc3339(*at);
  json["options"] = Json::parse(ToJson(s.options), nullptr, false);
  if (json["options"].is_discarded()) json["options"] = Json::object();
  json["routed_to"] = RoutedTo(job);
  const bool text = wire::IsText(s.payload);
  json["payload_bytes"] = s.payload.size();
  json["payload"] = text ? Json(s.payload) : Json();
  if (!text) json["payload_base64"] = Base64(s.payload);
  if (!IsKnown(s))
    for (const char* field :
         {"queue", "priority", "kind", "stage", "effect", "max_attempts", "options", "payload_bytes", "payload"})
      json[field] = nullptr;
  json["unserved"] = live.unserved.empty() ? Json() : Json(live.unserved);
  json["progress"] = nullptr;
  if (const auto& r = live.running) json["progress"] = {{"worker", r->worker}, {"rows", r->rows}, {"bytes", r->bytes}};
  const Counters counters = job.outcome            ? job.outcome->counters
                            : job.attempts.empty() ? Counters{}
                                                   : job.attempts.back().counters;
  json["deliveries"] = counters.deliveries;
  json["failures"] = counters.failures;
  json["crashes"] = counters.crashes;
  json["action"] = nullptr;
  if (const auto& a = job.dead_action)
    json["action"] = {{"action", Name(a->action)},
                      {"new_job", a->new_job ? Json(a->new_job->ToString()) : Json()},
                      {"actor", a->actor},
                      {"reason", a->reason},
                      {"at", ToRfc3339(a->at)}};
  json["attempts"] = Json::array();
  for (const Attempt& attempt : AttemptsOf(job)) {
    const AttemptReport& r = *attempt.report;
    const bool ran = r.token != Token{};
    json["attempts"].push_back({{"token", r.token.value()},
                                {"end", ran ? std::string(Name(r.end)) : std::string("none")},
                                {"worker", r.worker},
                                {"started_at", ran && r.started_at != WallTime{} ? Json(ToRfc3339(r.started_at)) : Json()},
                                {"finished_at", ToRfc3339(r.finished_at)},
                                {"exit_code", r.exit_code},
                                {"signal", r.signal},
                                {"error_class", r.error_class},
                                {"error", r.error},
                                {"log_tail", r.log_tail},
                                {"next_run_at", attempt.next_run_at ? Json(ToRfc3339(*attempt.next_run_at)) : Json()}});
  }
  json["result"] = ResultOf(job);
  return json;
}

void PrintJob(const JobDetail& job, const Live& live) {
  const JobSpec& s = job.spec;
  fmt::print("job {}  {}\n", s.id.ToString(), StateOf(job.outcome));
  const bool known = IsKnown(s);
  if (known)
    fmt::print("  queue {}, priority {}, kind {}{}\n", s.queue, s.priority, s.kind,
               s.stage.empty() ? "" : ", stage " + s.stage);
  if (const std::string routed = RoutedTo(job); !routed.empty()) fmt::print("  routed by size to queue {}\n", routed);
  if (!live.unserved.empty()) fmt::print("  {}\n", live.unserved);
  if (live.running) fmt::print("  {} {}\n", Name(live.running->state), ProgressText(*live.running));
  if (s.run) fmt::print("  run {}\n", s.run->ToString());
  if (!s.effect.empty()) fmt::print("  effect {}\n", s.effect);
  if (const std::string options = ToJson(s.options); known && !options.empty()) fmt::print("  options {}\n", options);
  const auto submitted = SubmittedAt(s);
  fmt::print("  {}{}durability {}\n", submitted ? fmt::format("submitted {}, ", ToRfc3339(*submitted)) : "",
             known ? fmt::format("at most {} attempts, ", s.retry.max_attempts) : "", Name(ClassOf(s)));
  if (!known) fmt::print("  queue, kind and payload went with the queue's entry: the ledger has only its end\n");
  if (!s.payload.empty()) fmt::print("  payload {} bytes: {}\n", s.payload.size(), PayloadPreview(s.payload));
  if (const auto& a = job.dead_action)
    fmt::print("  {}{} by {} at {}{}\n", Name(a->action), a->new_job ? " as " + a->new_job->ToString() : "", a->actor,
               ToRfc3339(a->at), a->reason.empty() ? "" : ": " + a->reason);
  for (const Attempt& attempt : AttemptsOf(job)) {
    const AttemptReport& r = *attempt.report;
    if (r.token == Token{}) {
      fmt::print("-- ended without an attempt at {}: {}: {}\n", ToRfc3339(r.finished_at), r.error_class, r.error);
      continue;
    }
    const bool lost = r.started_at == WallTime{};  // nobody said when it began
    fmt::print("-- attempt {} on {}: {}, {}{}\n", attempt.counters.deliveries, r.worker.empty() ? "nobody" : r.worker,
               Name(r.end), lost ? "noticed at " : ToRfc3339(r.started_at) + " to ", ToRfc3339(r.finished_at));
    fmt::print("   deliveries {}, failures {}, crashes {}, exit code {}, signal {}\n", attempt.counters.deliveries,
               attempt.counters.failures, attempt.counters.crashes, r.exit_code, r.signal);
    if (!r.error.empty()) fmt::print("   {}: {}\n", r.error_class, r.error);
    if (!r.log_tail.empty()) fmt::print("{}{}", r.log_tail, r.log_tail.ends_with('\n') ? "" : "\n");
  }
  const Json result = ResultOf(job);
  if (!result.is_null()) fmt::print("-- result\n   {}\n", result.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// The bytes that a worker was given, and nothing else.
Result<ExitCode> ShowPayload(Ledger& ledger, const Context& context, JobId id) {
  auto job = ledger.GetJob(context.org(), id, context.Deadline());
  if (!job && job.error().code == ErrorCode::kNotFound)
    return Fail(ErrorCode::kNotFound,
                "no job {} of org {}: the ledger never had it, or it was pruned, and its payload with it (ledger.retention)",
                id.ToString(), context.org().value());
  if (!job) return std::unexpected(std::move(job.error()));
  if (!IsKnown(job->spec))
    return Fail(ErrorCode::kNotFound,
                "job {}: the ledger has only its end; what was asked of it went with the queue's entry (durability: redis)",
                id.ToString());
  std::fwrite(job->spec.payload.data(), 1, job->spec.payload.size(), stdout);
  return ExitCode::kOk;
}

Result<ExitCode> DoShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  MILLRACE_TRY(CheckJobName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const JobId id, FindJob(*ledger, context->org(), options.id, context->Deadline()));
  if (options.show_payload) return ShowPayload(*ledger, *context, id);
  MILLRACE_TRY_ASSIGN(const JobDetail job, ledger->GetJob(context->org(), id, context->Deadline()));
  const Live live = LookAt(job, *context, *ledger);
  if (context->format() == OutputFormat::kIds) {
    fmt::print("{}\n", id.ToString());
  } else if (context->format() == OutputFormat::kTable) {
    PrintJob(job, live);
  } else if (context->format() == OutputFormat::kCsv) {
    Table table{.columns = {"token", "end", "worker", "exit_code", "signal", "error_class", "error", "log_tail"}, .rows = {}};
    for (const Attempt& a : AttemptsOf(job))
      table.rows.push_back({static_cast<std::int64_t>(a.report->token.value()), std::string(Name(a.report->end)),
                            a.report->worker, std::int64_t{a.report->exit_code}, std::int64_t{a.report->signal},
                            a.report->error_class, a.report->error, a.report->log_tail});
    Print(table, context->format());
  } else {
    const int indent = context->format() == OutputFormat::kJson ? 2 : -1;
    fmt::print("{}\n", JobJson(job, live).dump(indent, ' ', false, Json::error_handler_t::replace));
  }
  return ExitCode::kOk;
}

// The dead jobs that the command line means: those named, or the open ones of a filter.
Result<std::vector<JobId>> Meant(const Options& options, Ledger& ledger, Context& context, std::string_view command) {
  std::vector<JobId> ids;
  const bool filtered =
      !(options.queue.empty() && options.kind.empty() && options.error_class.empty() && options.since.empty());
  if (options.ids.empty() == !filtered)
    return Fail(ErrorCode::kInvalidArgument, "job {}: give ids, or a filter (--queue, --kind, --error-class, --since)",
                command);
  std::set<JobId> seen;
  for (const std::string& text : options.ids) {
    MILLRACE_TRY_ASSIGN(const JobId id, FindJob(ledger, context.org(), text, context.Deadline()));
    if (seen.insert(id).second) ids.push_back(id);
  }
  if (!filtered) return ids;
  MILLRACE_TRY_ASSIGN(JobFilter filter, FilterOf(options, context));
  filter.state.reset();
  filter.open = true;
  return AllJobs(ledger, filter, fmt::format("job {}", command), context.clock());
}

// `payload`: what --payload names, if it is given.
Result<void> Edit(JobSpec& job, JobId dead, const std::optional<std::string>& payload, const Options& options) {
  if (payload) {
    if (job.kind == kJobKindStage || (job.kind == kJobKindCommand && !job.stage.empty()))
      return Fail(ErrorCode::kInvalidArgument, "--payload: a {} job's payload comes from its pipeline: change the file instead",
                  job.kind);
    auto edited = EditedPayload(*payload, job, dead);
    if (!edited) return Prefixed(std::move(edited.error()), "--payload");
    job.payload = std::move(*edited);
  }
  if (options.to_queue == kWholeOrg)
    return Fail(ErrorCode::kInvalidArgument, "--to-queue: '{}' is all queues of an org; give the name of one", kWholeOrg);
  if (!options.to_queue.empty()) job.queue = options.to_queue;
  job.priority = options.priority.value_or(job.priority);
  job.retry.max_attempts = options.max_attempts.value_or(job.retry.max_attempts);
  return {};
}

Error RanAgain(std::string_view what, const LaterRun& later) {
  return {
      ErrorCode::kConflict,
      fmt::format("{} {}: its slot {} ran again in generation {}, as run {}, and would be loaded twice; retry that one if it "
                  "failed, or run the slot anew with 'millrace backfill {} --reprocess all'",
                  what, later.of.ToString(), ToRfc3339(later.slot.slot), later.slot.generation, later.run.ToString(),
                  later.slot.pipeline)};
}

void SayLeftOut(std::size_t n, std::string_view what) {
  if (n == 0) return;
  Tell("{} {}{} left out: a later generation of the slot (a backfill) has run or is running\n", n, what, n == 1 ? "" : "s");
}

// What became of the dead jobs of a command; of a dry run, what would.
struct Acted {
  Table table{.columns = {"job", "result", "new_job"}, .rows = {}};
  std::size_t done = 0, refusals = 0, left_out = 0;
  std::vector<Error> ran_again;  // of jobs that were named
};

Result<void> Note(const Requeue& batch, const RequeueResult& result, const Options& options, Ledger& ledger,
                  const Context& context, Acted& acted) {
  for (const DeadActionRow& row : batch.actions) {
    const std::string id = row.job.ToString();
    if (const auto later = std::ranges::find(result.later, row.job.uuid, &LaterRun::of); later != result.later.end()) {
      ++acted.left_out;
      if (options.ids.empty()) continue;
      acted.table.rows.push_back({id, fmt::format("its slot ran again in generation {}", later->slot.generation), Cell{}});
      acted.ran_again.push_back(RanAgain("job", *later));
    } else if (std::ranges::find(result.already_done, row.job) != result.already_done.end()) {
      MILLRACE_TRY_ASSIGN(const JobDetail before, ledger.GetJob(context.org(), row.job, context.Deadline()));
      const auto& earlier = before.dead_action;
      const bool same = earlier && earlier->action == row.action;  // the same was asked for before: it is done, once
      acted.refusals += same ? 0 : 1;
      acted.table.rows.push_back({id, same ? fmt::format("already {}", Name(row.action)) : "somebody has acted on it before",
                                  same && earlier->new_job ? Cell{earlier->new_job->ToString()} : Cell{}});
    } else if (const auto held =
                   std::ranges::find_if(result.conflicts, [&](const UniqueConflict& c) { return c.job == row.new_job; });
               held != result.conflicts.end()) {
      ++acted.refusals;
      acted.table.rows.push_back({id, "job " + held->holder.ToString() + " holds its unique key", Cell{}});
    } else {
      ++acted.done;
      acted.table.rows.push_back({id, fmt::format("{}{}", options.dry_run ? "would be " : "", Name(row.action)),
                                  row.new_job && !options.dry_run ? Cell{row.new_job->ToString()} : Cell{}});
    }
  }
  return {};
}

Result<void> ActOn(std::span<const JobId> ids, DeadAction action, const Options& options, Ledger& ledger, Context& context,
                   Acted& acted) {
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger.Now(context.Deadline()));
  std::optional<std::string> payload;
  if (!options.payload_file.empty()) {
    MILLRACE_TRY_ASSIGN(payload, ReadPayload(options.payload_file));
  }
  for (std::size_t at = 0; at < ids.size();) {
    Requeue batch{.run = {}, .jobs = {}, .actions = {}, .preview = options.dry_run};
    std::size_t bytes = 0;
    for (; at < ids.size() && batch.actions.size() < kListMax && bytes < kPayloadBytesMax * 8; ++at) {
      MILLRACE_TRY_ASSIGN(const JobDetail job, ledger.GetJob(context.org(), ids[at], context.Deadline()));
      if (!job.outcome || job.outcome->state != JobState::kDead)
        return Fail(ErrorCode::kConflict, "job {} is {}: only a dead job can be {}", ids[at].ToString(), StateOf(job.outcome),
                    Name(action));
      DeadActionRow row{.job = ids[at],
                        .org = job.spec.org,
                        .action = action,
                        .new_job = {},
                        .actor = Actor(),
                        .reason = options.reason,
                        .at = now};
      if (action == DeadAction::kRequeued) {
        MILLRACE_TRY_ASSIGN(JobSpec again, RepeatJob(job.spec, now, context.ids()));
        MILLRACE_TRY(Edit(again, ids[at], payload, options));
        row.new_job = again.id;
        bytes += again.payload.size();
        batch.jobs.push_back(std::move(again));
      }
      batch.actions.push_back(std::move(row));
    }
    MILLRACE_TRY_ASSIGN(const RequeueResult result, ledger.RequeueDead(batch, context.Deadline()));
    MILLRACE_TRY(Note(batch, result, options, ledger, context, acted));
  }
  return {};
}

Result<ExitCode> Act(const Options& options, DeadAction action) {
  const bool requeue = action == DeadAction::kRequeued;
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, Actor()));
  MILLRACE_TRY_ASSIGN(const std::vector<JobId> ids, Meant(options, *ledger, *context, requeue ? "requeue" : "discard"));
  Acted acted;
  MILLRACE_TRY(ActOn(ids, action, options, *ledger, *context, acted));
  Tell("{} {} {}{}\n", acted.done, acted.done == 1 ? "job" : "jobs", options.dry_run ? "would be " : "", Name(action));
  if (options.ids.empty()) SayLeftOut(acted.left_out, "job");
  if (requeue && acted.done > 0 && !options.dry_run)
    SayIfNobodyRuns(*context, *ledger, acted.done == 1 ? "the new job" : "the new jobs");
  if (options.quiet) {
    for (const auto& row : acted.table.rows)
      if (const auto* id = std::get_if<std::string>(&row[2])) fmt::print("{}\n", *id);
  } else {
    Print(acted.table, context->format());
  }
  for (std::size_t i = 1; i < acted.ran_again.size(); ++i) (void)Complain(acted.ran_again[i]);
  if (!acted.ran_again.empty()) return std::unexpected(std::move(acted.ran_again.front()));
  return acted.refusals > 0 ? ExitCode::kWorkFailed : ExitCode::kOk;
}

// The runs that the command line means: those named, or those of a filter that ended so and that nobody has retried, the
// oldest first.
Result<std::vector<RunId>> MeantRuns(const Options& options, Ledger& ledger, Context& context) {
  std::vector<RunId> ids;
  std::set<RunId> seen;
  for (const std::string& text : options.ids) {
    MILLRACE_TRY_ASSIGN(const RunId id, FindRun(ledger, context.org(), text, "", context.Deadline()));
    if (seen.insert(id).second) ids.push_back(id);
  }
  if (!options.ids.empty()) return ids;
  RunFilter filter{
      .org = context.org(), .pipeline = {}, .state = RunState::kFailed, .before = {}, .limit = kListMax, .open = true};
  if (!options.pipeline.empty()) filter.pipeline = options.pipeline;
  if (!options.state.empty()) {
    MILLRACE_TRY_ASSIGN(filter.state, ParseRunState(options.state));
  }
  if (!IsTerminal(*filter.state) || filter.state == RunState::kSucceeded)
    return Fail(ErrorCode::kInvalidArgument,
                "--state: a {} run is not retried; give failed (which --pipeline alone means), cancelled or skipped",
                options.state);
  MILLRACE_TRY_ASSIGN(ids, AllRuns(ledger, filter, "run retry", context.clock()));
  std::ranges::reverse(ids);
  return ids;
}

// What became of one run: its new one, or the one that an earlier retry made. A dry run says how many jobs there would be.
struct Retried {
  std::optional<RunId> run;
  std::string pipeline;
  std::size_t jobs = 0;
  bool already = false;
  bool left_out = false;  // by a filter: its slot ran again in a later generation
};

Result<Retried> RetryOne(RunId id, const Options& options, Ledger& ledger, Context& context) {
  MILLRACE_TRY_ASSIGN(const RunDetail failed, ledger.GetRun(context.org(), id, context.Deadline()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger.Now(context.Deadline()));
  MILLRACE_TRY_ASSIGN(Requeue again, RepeatRun(failed, Actor(), options.reason, now, context.ids()));
  again.preview = options.dry_run;
  MILLRACE_TRY_ASSIGN(const RequeueResult done, ledger.RequeueDead(again, context.Deadline()));
  Retried out{.run = {}, .pipeline = again.run->pipeline, .jobs = again.jobs.size(), .already = done.retried_as.has_value()};
  out.left_out = !done.later.empty();
  if (out.left_out && !options.ids.empty()) return std::unexpected(RanAgain("run", done.later.front()));
  if (!out.left_out && !options.dry_run) out.run = done.retried_as.value_or(again.run->id);
  return out;
}

Result<void> CheckRetry(const Options& options) {
  const bool filtered = !options.pipeline.empty() || !options.state.empty();
  if (options.ids.empty() == !filtered)
    return Fail(ErrorCode::kInvalidArgument, "run retry: give ids, or a filter (--pipeline, --state)");
  for (const std::string& text : options.ids) MILLRACE_TRY(CheckRunName(text));
  return {};
}

// Each run has an answer of its own; the first that cannot be retried decides the exit code.
Result<ExitCode> DoRetry(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "run"));
  MILLRACE_TRY(CheckRetry(options));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, Actor()));
  MILLRACE_TRY_ASSIGN(const std::vector<RunId> ids, MeantRuns(options, *ledger, *context));
  Table table{.columns = {"run", "retry_of", "pipeline", "jobs", "already"}, .rows = {}};
  std::size_t fresh = 0, left_out = 0;
  std::optional<Error> failed;
  for (const RunId id : ids) {
    auto done = RetryOne(id, options, *ledger, *context);
    if (!done) {
      if (failed) (void)Complain(done.error());
      if (!failed) failed = std::move(done.error());
      continue;
    }
    if (done->left_out) {
      ++left_out;
      continue;
    }
    fresh += done->already ? 0u : 1u;
    const Cell run = done->run ? Cell{done->run->ToString()} : Cell{};
    if (done->already) Tell("run {}: already retried{}\n", id.ToString(), done->run ? " as " + done->run->ToString() : "");
    if (options.quiet && (done->run || !done->already)) fmt::print("{}\n", done->run.value_or(id).ToString());
    table.rows.push_back({run, id.ToString(), done->pipeline,
                          done->already ? Cell{} : Cell{static_cast<std::int64_t>(done->jobs)}, done->already});
  }
  if (options.dry_run) Tell("{} {} would be retried\n", fresh, fresh == 1 ? "run" : "runs");
  SayLeftOut(left_out, "run");
  if (fresh > 0 && !options.dry_run) SayIfNobodyRuns(*context, *ledger, fresh == 1 ? "the new run" : "the new runs");
  if (!options.quiet && (!table.rows.empty() || !failed)) Print(table, context->format());
  if (failed) return std::unexpected(*std::move(failed));
  return ExitCode::kOk;
}

}  // namespace

ExitCode JobList(const Options& options) { return Finish(DoList(options)); }
ExitCode JobShow(const Options& options) { return Finish(DoShow(options)); }
ExitCode JobRequeue(const Options& options) { return Finish(Act(options, DeadAction::kRequeued)); }
ExitCode JobDiscard(const Options& options) { return Finish(Act(options, DeadAction::kDiscarded)); }
ExitCode RunRetry(const Options& options) { return Finish(DoRetry(options)); }

}  // namespace millrace::cli
