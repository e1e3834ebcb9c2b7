// The command line's grammar. CLI11 stays in this file (it is slow to compile).
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/cli/commands.h"
#include "common/base/suggest.h"
#include "common/base/tell.h"
#include "common/model/job.h"

namespace millrace::cli {
namespace {

using Command = std::function<ExitCode(const Options&)>;

struct Grammar {
  CLI::App app{"Millrace: scheduled data pipelines on a distributed job queue.", "millrace"};
  Options options;
  Command chosen;

  CLI::App* Add(CLI::App* parent, const std::string& name, const std::string& help, const Command& command) {
    CLI::App* sub = parent->add_subcommand(name, help);
    sub->fallthrough();
    if (command)
      sub->callback([this, sub, command] {
        if (sub->get_subcommands().empty()) chosen = command;
      });
    return sub;
  }
  CLI::App* Group(const std::string& name, const std::string& help) {
    CLI::App* sub = Add(&app, name, help, nullptr);
    sub->require_subcommand(1);
    return sub;
  }
};

void AddGlobalOptions(Grammar& g) {
  g.app
      .add_option("--config", g.options.config_file,
                  "Configuration file (default: ./millrace.yaml, then the user's, then /etc's)")
      ->envname("MILLRACE_CONFIG");
  g.app.add_option("--home", g.options.home, "Home directory of the embedded form (default: $MILLRACE_HOME, then ./.millrace)");
  g.app.add_option("--org", g.options.org, "Whose jobs, runs, queues and pipelines (default: $MILLRACE_ORG, then 1)")
      ->check([](const std::string& org) { return std::string(org.empty() ? "is empty; give the number of an org" : ""); });
  g.app.add_option("--set", g.options.settings, "A setting as key=value, e.g. --set worker.concurrency=4; may be repeated")
      ->take_all();
  g.app.add_option("-o,--output", g.options.output, "table, json, ndjson or csv");
  g.app.add_option("--log-level", g.options.log_level, "debug, info, warn, error or off");
  g.app.add_flag("--no-progress", g.options.no_progress, "No progress on stderr");
  g.app.add_flag("-q,--quiet", g.options.quiet, "Print ids or names only, one a line");
}

constexpr const char* kRunIdHelp = "Run id, or its first characters (at least 4), or 'last'";
constexpr const char* kJobIdHelp = "Job id, or its first characters (at least 4), or 'last'";
constexpr const char* kBackfillIdHelp = "Backfill id, or its first characters (at least 4), or 'last'";

// An empty word, as of a variable that a script never set, would be no filter at all: everything.
std::string NotEmpty(const std::string& word) { return word.empty() ? "is empty; give one, or leave the option out" : ""; }

void AddRunCommands(Grammar& g) {
  CLI::App* run = g.Add(&g.app, "run", "Run a pipeline file here and now, embedded; or look at runs", RunFile);
  run->add_option("FILE", g.options.file, "Pipeline file");
  run->add_option("-p,--param", g.options.params, "A parameter as name=value; may be repeated")->take_all();
  CLI::App* start = g.Add(run, "start", "Start a run of an applied pipeline", RunStart);
  start->add_option("PIPELINE", g.options.pipeline, "Name of the pipeline")->required();
  start->add_option("-p,--param", g.options.params, "A parameter as name=value; may be repeated")->take_all();
  start->alias("now");
  start->add_flag("--wait", g.options.wait, "Follow it to its end and exit with its outcome");
  CLI::App* list = g.Add(run, "list", "Runs, newest first", RunList);
  list->add_option("--pipeline", g.options.pipeline, "Only this pipeline's")->check(NotEmpty);
  list->add_option("--state", g.options.state, "Only runs in this state")->check(NotEmpty);
  list->add_option("-n,--limit", g.options.count, "How many (default 50, at most 500)");
  CLI::App* show = g.Add(run, "show", "One run: stages, rows, errors", RunShow);
  show->add_option("ID", g.options.id, kRunIdHelp)->required();
  show->add_option("--pipeline", g.options.pipeline, "Only among the runs of this pipeline");
  CLI::App* retry = g.Add(run, "retry", "Run failed runs again: what succeeded is not repeated", RunRetry);
  retry->add_option("ID", g.options.ids, "Run ids, their beginnings, or last; or give a filter");
  retry->add_option("--pipeline", g.options.pipeline, "Failed runs of this pipeline that nobody has retried")->check(NotEmpty);
  retry->add_option("--state", g.options.state, "Only runs that ended so: failed (default), cancelled or skipped")
      ->check(NotEmpty);
  retry->add_flag("--dry-run", g.options.dry_run, "Only say which runs and how many");
  retry->add_option("--reason", g.options.reason, "Why; kept in the audit trail");
  CLI::App* logs = g.Add(run, "logs", "What the stages of a run wrote to their logs, attempt by attempt", RunLogs);
  logs->add_option("ID", g.options.id, kRunIdHelp)->required();
  logs->add_option("--pipeline", g.options.pipeline, "Only among the runs of this pipeline");
  logs->add_option("--stage", g.options.stage, "Only this stage");
  CLI::App* cancel = g.Add(run, "cancel", "Stop runs: what has not started never does, what runs is stopped", RunCancel);
  cancel->add_option("ID", g.options.ids, "Run ids, their beginnings, or last; or give a filter");
  cancel->add_option("--pipeline", g.options.pipeline, "All runs of this pipeline that have not ended")->check(NotEmpty);
  cancel->add_option("--state", g.options.state, "running: all runs that have not ended")->check(NotEmpty);
  cancel->add_flag("--dry-run", g.options.dry_run, "Only say which runs and how many");
  cancel->add_option("--reason", g.options.reason, "Why; goes on the record");
  cancel->add_flag("--wait", g.options.wait, "Wait until nothing of them runs any more");
}

void AddJobFilter(CLI::App* command, Options& options, bool ended = true) {
  command->add_option("--queue", options.queue, "Only jobs of this queue")->check(NotEmpty);
  command->add_option("--kind", options.kind, "Only jobs of this kind")->check(NotEmpty);
  if (ended)
    command->add_option("--error-class", options.error_class, "Only jobs that ended with this error class")->check(NotEmpty);
  command->add_option("--since", options.since, "Only jobs submitted since this time, or this long ago (2h, 7d)")
      ->check(NotEmpty);
}

void AddPriority(CLI::App* command, Options& options, const std::string& priority, const std::string& attempts) {
  command->add_option("--priority", options.priority, priority)->check(CLI::Range(0, kPriorityLevels - 1));
  command->add_option("--max-attempts", options.max_attempts, attempts)->check(CLI::Range(1, kMaxAttemptsMax));
}

void AddJobCommands(Grammar& g) {
  CLI::App* job = g.Group("job", "Jobs, and what to do about dead ones");
  CLI::App* list = g.Add(job, "list", "Jobs, newest first", JobList);
  AddJobFilter(list, g.options);
  list->add_option("--state", g.options.state,
                   "Only jobs that ended so: succeeded, dead, cancelled, expired, skipped; or live: not ended");
  list->add_flag("--open", g.options.open, "Only dead jobs that nobody has requeued or discarded");
  list->add_option("--before", g.options.before, "The page after this job id");
  list->add_option("-n,--limit", g.options.count, "How many (default 50, at most 500)");
  CLI::App* show = g.Add(job, "show", "One job: attempts, counters, signal, exit code, last log lines", JobShow);
  show->add_option("ID", g.options.id, kJobIdHelp)->required();
  show->add_flag("--payload", g.options.show_payload, "Only its payload, byte for byte");
  CLI::App* requeue = g.Add(job, "requeue", "Repeat dead jobs: each by a new job with the same effect", JobRequeue);
  CLI::App* discard = g.Add(job, "discard", "Note that nothing is to be done about dead jobs", JobDiscard);
  for (CLI::App* command : {requeue, discard}) {
    command->add_option("ID", g.options.ids, "Job ids, their beginnings, or last; or give a filter");
    AddJobFilter(command, g.options);
    command->add_flag("--dry-run", g.options.dry_run, "Only say which jobs and how many");
    command->add_option("--reason", g.options.reason, "Why; kept in the audit trail");
  }
  requeue->add_option("--payload", g.options.payload_file, "File with a new payload ('-': stdin)");
  requeue->add_option("--to-queue", g.options.to_queue, "Put them into this queue instead")->check(NotEmpty);
  AddPriority(requeue, g.options, "New priority, 0 (most urgent) to 3", "New number of attempts, 1 to 100");
  CLI::App* submit = g.Add(job, "submit", "Submit single jobs, or a batch with a job that runs when all have ended", JobSubmit);
  submit->add_option("--batch", g.options.batch, "File with one job a line, as JSON ('-': stdin)");
  submit->add_option("--then", g.options.then, "With --batch: the job, as JSON, that runs when all of them have ended");
  submit->add_option("--kind", g.options.kind, "One job: its kind");
  submit->add_option("--queue", g.options.queue, "One job: its queue (default: default)")->check(NotEmpty);
  submit->add_option("--payload", g.options.payload, "One job: its payload");
  AddPriority(submit, g.options, "One job: 0 (most urgent) to 3 (default: 2)",
              "One job: attempts that may fail, 1 to 100 (default: 3)");
  submit->add_option("--run-at", g.options.run_at, "One job: not before, e.g. 2026-12-24T18:00:00Z");
  submit->add_option("--timeout", g.options.timeout, "One job: of one attempt, e.g. 90s");
  submit->add_option("--backoff", g.options.backoff, "One job: fixed or exponential (default) waits between attempts");
  submit->add_option("--backoff-base", g.options.backoff_base, "One job: the first wait (default: 1s)");
  submit->add_option("--backoff-cap", g.options.backoff_cap, "One job: no wait is longer (default: 60s)");
  submit->add_option("--deadline", g.options.deadline, "One job: dead if it has not ended so long from now, e.g. 2h");
  submit->add_option("--expires-in", g.options.expires_in, "One job: expired if it has not started so long from now, e.g. 10m");
  submit->add_option("--durability", g.options.durability, "One job: ledger or redis (default: its queue's)");
  submit->add_option("--options", g.options.job_options, "One job: as JSON: unique_key, limit_key, no_retry ...");
  submit->add_flag("--wait", g.options.wait, "Wait until all have ended; exit code 1 if one did not succeed");
  CLI::App* result = g.Add(job, "result", "What a job gave back: a command's output, a stage's counts", JobResult);
  result->add_option("ID", g.options.id, kJobIdHelp)->required();
  CLI::App* refused = g.Add(job, "refused", "Rows of the enqueue table that became no job, and why", JobRefused);
  refused->add_option("-n,--limit", g.options.count, "How many (default 50, at most 500)");
  CLI::App* cancel = g.Add(job, "cancel", "Stop single jobs; those of a run are stopped with their run", JobCancel);
  cancel->add_option("ID", g.options.ids, "Job ids, their beginnings, or last; or give a filter");
  AddJobFilter(cancel, g.options, false);
  cancel->add_flag("--dry-run", g.options.dry_run, "Only say which jobs and how many");
  cancel->add_option("--reason", g.options.reason, "Why; goes on the record");
}

void AddPipelineCommands(Grammar& g) {
  CLI::App* check = g.Add(&g.app, "check", "Check a pipeline file: grammar, graph, types, SQL. Nothing runs", CheckFile);
  check->add_option("FILE", g.options.file, "Pipeline file")->required();
  check->add_option("-p,--param", g.options.params, "A parameter as name=value; may be repeated")->take_all();
  CLI::App* plan = g.Add(&g.app, "plan", "Show what a run of a pipeline file would do", PlanFile);
  plan->add_option("FILE", g.options.file, "Pipeline file")->required();
  plan->add_option("-p,--param", g.options.params, "A parameter as name=value; may be repeated")->take_all();

  CLI::App* pipeline = g.Group("pipeline", "Pipelines in the ledger");
  CLI::App* apply =
      g.Add(pipeline, "apply", "Store a pipeline file as the newest version; its schedule takes effect", PipelineApply);
  apply->add_option("FILE", g.options.file, "Pipeline file")->required();
  apply->add_option("--cron", g.options.cron, "Use this schedule instead of the file's");
  apply->add_option("--timezone", g.options.timezone, "Time zone of --cron (default: the file's, then UTC)");
  apply->add_option("--base-dir", g.options.base_dir, "Where relative paths start (default: the file's folder)");
  g.Add(pipeline, "list", "The newest version of each pipeline", PipelineList);
  CLI::App* show = g.Add(pipeline, "show", "A pipeline's file as it was applied", PipelineShow);
  show->add_option("NAME", g.options.pipeline, "Name of the pipeline")->required();

  CLI::App* schedule = g.Group("schedule", "Schedules");
  g.Add(schedule, "list", "Schedules in the ledger and their next fire", ScheduleList);
  for (const auto& [name, help, command] :
       {std::tuple{"pause", "Stop schedules of pipelines: due slots are skipped until 'schedule resume'",
                   Command(SchedulePause)},
        std::tuple{"resume", "Let paused schedules fire again, from now on", Command(ScheduleResume)}}) {
    CLI::App* sub = g.Add(schedule, name, help, command);
    sub->add_option("PIPELINE", g.options.names, "Names of applied pipelines")->required();
  }
  CLI::App* slots = g.Add(schedule, "slots", "Decided slots of a pipeline: fired, skipped or missed, and why", ScheduleSlots);
  slots->add_option("PIPELINE", g.options.pipeline, "Name of the applied pipeline")->required();
  slots->add_option("-n,--limit", g.options.count, "How many (default 50, at most 500)");
  CLI::App* next = g.Add(schedule, "next", "The next fires of a pipeline, a file or a bare expression", ScheduleNext);
  next->add_option("PIPELINE", g.options.file, "Pipeline file, or the name of an applied pipeline");
  next->add_option("--cron", g.options.cron, "A bare expression instead");
  next->add_option("--timezone", g.options.timezone, "Time zone of --cron (default UTC)");
  next->add_option("--dst", g.options.dst, "Daylight-saving rule of --cron: once, skip or both");
  next->add_option("--from", g.options.from, "Fires after this time (default: now), as 2026-11-21T06:15:00Z");
  next->add_flag("--transitions", g.options.transitions,
                 "Instead, what happens around the next two jumps of the zone's clock (daylight saving)");
  next->add_option("-n,--count", g.options.count, "How many (default 10, at most 10000)");
}

void AddBackfillCommands(Grammar& g) {
  CLI::App* backfill = g.Add(&g.app, "backfill", "Run the slots of a range in the past; or look at backfills", BackfillStart);
  backfill->add_option("PIPELINE", g.options.pipeline, "Name of the pipeline");
  backfill->add_option("--from", g.options.from, "First day, as 2026-01-01 in the schedule's zone, or instant");
  backfill->add_option("--to", g.options.to, "Last day, which belongs to the range, or instant, which does not");
  backfill->add_option("--schedule", g.options.schedule, "Name of the schedule (default: the only one)");
  backfill->add_option("--reprocess", g.options.reprocess,
                       "Slots to run: none (those without a run, the default), failed (those too whose last run failed), all");
  backfill->add_flag("--newest-first", g.options.newest_first, "Begin at the end of the range");
  backfill->add_option("--max-parallel", g.options.max_parallel, "Runs at once (default 1)");
  backfill->add_option("-p,--param", g.options.params, "A parameter as name=value; may be repeated")->take_all();
  backfill->add_option("--generation", g.options.generation, "Go on with, or create, exactly this generation");
  backfill->add_flag("--dry-run", g.options.dry_run, "Only say what would be run");
  CLI::App* list = g.Add(backfill, "list", "Backfills, newest first, and how far they are", BackfillList);
  list->add_option("--pipeline", g.options.pipeline, "Only this pipeline's");
  list->add_option("-n,--limit", g.options.count, "How many (default 50, at most 500)");
  CLI::App* show = g.Add(backfill, "show", "One backfill: range, options, progress", BackfillShow);
  show->add_option("ID", g.options.id, kBackfillIdHelp)->required();
  CLI::App* cancel = g.Add(backfill, "cancel", "Feed no further slots of a backfill", BackfillCancel);
  cancel->add_option("ID", g.options.id, kBackfillIdHelp)->required();
  cancel->add_flag("--running", g.options.running, "Cancel its runs that have not ended too");
  cancel->add_option("--reason", g.options.reason, "Why; goes on the record");
}

void AddProcessCommands(Grammar& g) {
  CLI::App* up = g.Add(&g.app, "up", "Scheduler, broker and worker in one process, on SQLite", Up);
  up->add_option("FILE", g.options.file, "Pipeline file to apply first");
  for (const auto& [name, help, command] : {std::tuple{"broker", "A broker process", Command(BrokerProcess)},
                                            std::tuple{"worker", "A worker process", Command(WorkerProcess)},
                                            std::tuple{"scheduler", "A scheduler process", Command(SchedulerProcess)}}) {
    CLI::App* process = g.Add(&g.app, name, help, command);
    process->add_option("--name", g.options.name, "Its name in logs and records");
    if (std::string(name) != "worker") continue;
    process->add_option("--concurrency", g.options.concurrency, "Jobs at a time")->check(CLI::Range(1, 10'000));
    process->add_option("--queues", g.options.queues, "Only jobs of these queues, e.g. default,small (default: all)");
  }
  g.Add(&g.app, "status", "Shards and workers of a running broker", Status);
}

void AddQueueCommands(Grammar& g) {
  CLI::App* queue = g.Group("queue", "Queues: what waits and runs, limits, order, pause");
  g.Add(queue, "list", "Every queue that was ever set, or in which something waits or runs", QueueList);
  CLI::App* set = nullptr;
  for (const auto& [name, help, command] : {std::tuple{"show", "One queue", Command(QueueShow)},
                                            std::tuple{"set", "Change what is given, and only that", Command(QueueSet)},
                                            std::tuple{"pause", "Start nothing more; what runs goes on", Command(QueuePause)},
                                            std::tuple{"resume", "Go on after a pause", Command(QueueResume)}}) {
    CLI::App* sub = g.Add(queue, name, help, command);
    const bool several = std::string(name) == "pause" || std::string(name) == "resume";
    if (several) sub->add_option("QUEUE", g.options.names, "Names of queues")->required();
    if (!several) sub->add_option("QUEUE", g.options.queue, "Name of the queue; '*': all queues of the org")->required();
    if (std::string(name) == "set") set = sub;
  }
  QueueFlags& flags = g.options.queue_flags;
  set->add_option("--concurrency", flags.concurrency, "Jobs that run at a time; 0 = no limit");
  set->add_option("--key-concurrency", flags.key_concurrency, "Jobs of one limit key that run at a time; 0 = no limit");
  set->add_option("--rate", flags.rate, "Jobs that start per period, e.g. 100/1s; none = no limit");
  set->add_option("--burst", flags.burst, "Starts that --rate lets come at once after a quiet time (default: its count)");
  set->add_option("--key-rate", flags.key_rate, "The same for one limit key, e.g. 5/1m");
  set->add_option("--key-burst", flags.key_burst, "The same for --key-rate");
  set->add_option("--order", flags.order, "strict (the most urgent first) or weighted (turns by --weights)");
  set->add_option("--weights", flags.weights, "Turns of the priorities 0 to 3, e.g. 8,4,2,1");
  set->add_option("--aging", flags.aging, "Strict order: a line that waited so long counts one priority higher, e.g. 60s");
  set->add_option("--max-waiting", flags.max_waiting, "Jobs that may wait; more are refused (queue_full); 0 = no limit");
  set->add_option("--max-waiting-bytes", flags.max_waiting_bytes, "Payload bytes that may wait; 0 = no limit");
  set->add_option("--durability", flags.durability, "Of single jobs that do not say theirs: ledger (default) or redis (fast)");
}

void AddBenchTarget(CLI::App* command, BenchFlags& flags) {
  command->add_flag("--own", flags.own, "Start an installation for this, whatever the configuration names");
  command->add_flag("--keep", flags.keep, "Leave that installation's folder (logs, data) behind");
  command->add_option("--storage", flags.storage, "Of an own installation: servers (Redis, PostgreSQL; default) or sqlite");
  command->add_option("--appendfsync", flags.appendfsync, "Of an own Redis: always, everysec (default) or no");
}

void AddBenchLoad(CLI::App* command, BenchFlags& flags) {
  command->add_option("--jobs", flags.jobs, "How many jobs");
  command->add_option("--payload", flags.payload, "Bytes of each job's payload (default 100)");
  command->add_option("--durability", flags.durability, "ledger or redis");
  command->add_option("--workers", flags.workers, "Handler processes (default 1)");
  command->add_option("--concurrency", flags.concurrency, "Jobs that one handler process holds (with --sleep: runs) at a time");
  command->add_option("--prefetch", flags.prefetch,
                      "With --sleep: jobs that one handler process may hold beside those that run (default scale by workers: "
                      "half of --concurrency)");
  command->add_option("--sleep", flags.sleep, "How long each job takes, e.g. 5ms (default 0ms)");
  command->add_option("--batch", flags.batch, "Jobs of one submit message (default 500)");
  command->add_option("--outstanding", flags.outstanding, "Closed loop: messages that wait for their answer (default 32)");
}

// The processes that a benchmark starts: not for people.
void AddBenchProcesses(Grammar& g, CLI::App* bench) {
  BenchFlags& flags = g.options.bench;
  CLI::App* handler = g.Add(bench, "handler", "A handler process of a benchmark", BenchHandler);
  handler->group("");
  handler->add_option("--endpoint", flags.endpoint)->required();
  handler->add_option("--name", g.options.name)->required();
  handler->add_option("--queue", g.options.queue)->required();
  handler->add_option("--kind", flags.kind)->required();
  handler->add_option("--board", flags.board)->required();
  handler->add_option("--concurrency", flags.concurrency);
  handler->add_option("--prefetch", flags.prefetch);
  handler->add_option("--sleep-ms", flags.sleep_ms);
  handler->add_option("--jobs", flags.jobs);
  handler->add_option("--handlers", flags.handler_count);
  handler->add_option("--index", flags.index);
  g.Add(bench, "serve-broker", "A broker on the embedded stores", BenchServeBroker)->group("");
}

void AddBenchCommands(Grammar& g) {
  CLI::App* bench = g.Group("bench", "Measure this installation, or one that is started for it");
  BenchFlags& flags = g.options.bench;
  CLI::App* queue = g.Add(bench, "queue", "Throughput: accepted, executed, recorded; losses; costs", BenchQueue);
  CLI::App* latency = g.Add(bench, "latency", "Pickup latency of single jobs on an idle queue, both classes", BenchLatency);
  CLI::App* chain = g.Add(bench, "chain", "Runs of several stages, each after the one before", BenchChain);
  CLI::App* scale = g.Add(bench, "scale", "The rate by number of workers, or by depth of the queue", BenchScale);
  for (CLI::App* command : {queue, latency, scale}) {
    AddBenchTarget(command, flags);
    AddBenchLoad(command, flags);
  }
  for (CLI::App* command : {queue, latency}) {
    command->add_option("--rate", flags.rate, "Jobs per second, open loop; queue: 0 (default) is a closed loop");
    command->add_option("--warmup", flags.warmup, "Jobs at the start whose latency does not count");
  }
  queue->add_flag("--drain", flags.drain, "Accept everything first, then start the handlers; also bytes per waiting job");
  queue->add_option("--orgs", flags.orgs, "Deal the jobs out to so many orgs (default 1)");
  queue->add_option("--limit-keys", flags.limit_keys, "and limit keys (default: none)");
  queue->add_option("--priorities", flags.priorities, "and priorities (default 1)");
  scale->add_option(
      "--worker-counts", flags.worker_counts,
      "Numbers of handler processes (default 1,2,4,8); jobs that sleep 5 ms, 50 each, --jobs per process (20000)");
  scale->add_option("--depths", flags.depths,
                    "Instead: numbers of jobs that wait all the time, --jobs measured at each (1000000)");
  scale->add_option("--warmup", flags.warmup,
                    "Jobs before the first step, which nobody measures (default: depths twice --jobs, worker counts none)");
  AddBenchTarget(chain, flags);
  chain->add_option("--stages", flags.stages, "Stages of each run (default 40)");
  chain->add_option("--runs", flags.runs, "Runs to measure (default 30; with --rate, ten seconds' worth)");
  chain->add_option("--warmup", flags.warmup, "Runs before those (default 3)");
  chain->add_option("--sleep", flags.sleep, "How long each stage takes, e.g. 10ms (default 0ms)");
  chain->add_option("--rate", flags.rate, "Runs per second, open loop (default 0: one after another)");
  chain->add_option("--handlers", flags.handlers,
                    "inprocess (default), processes (a command of a worker) or sql (a transform of a worker)");
  chain->add_option("--rows", flags.stage_rows, "Of sql: rows that each stage writes (default 1000)");
  chain->add_option("--workers", flags.workers, "Handler processes (default 1)");
  chain->add_option("--concurrency", flags.concurrency, "Jobs that one handler process holds at a time (default 100)");
  CLI::App* cron = g.Add(bench, "cron", "Schedules due every second: slot to run, start and outcome", BenchCron);
  AddBenchTarget(cron, flags);
  cron->add_option("--schedules", flags.schedules, "How many, all due every second (default 100)");
  cron->add_option("--seconds", flags.seconds, "For so long (default 10)");
  CLI::App* load = g.Add(bench, "load", "A CSV file, cleaned by SQL, into PostgreSQL, SQLite or Parquet", BenchLoad);
  AddBenchTarget(load, flags);
  load->add_option("--rows", flags.rows, "Rows of the file, ten columns (default 1000000)");
  load->add_option("--to", flags.to, "postgres (default), sqlite or parquet");
  load->add_option("--mode", flags.mode,
                   "append (default), replace, or merge: a tenth of the rows, changed, into a keyed table");
  load->add_flag("--unlogged", flags.unlogged, "append to a table that is there before, unlogged and empty");
  load->add_flag("--by-hand", flags.by_hand, "the same load by psql after each run; a merge must leave the same rows");
  load->add_option(
      "--prototype", flags.prototype,
      "with --mode replace --by-hand: a program that loads the file too, given CSV, conninfo and a new table's name");
  load->add_option("--runs", flags.runs, "How often (default 1)");
  AddBenchProcesses(g, bench);
}

void AddOtherCommands(Grammar& g) {
  CLI::App* query = g.Add(&g.app, "query", "Read from a connection with SQL", Query);
  query->add_option("CONNECTION", g.options.connection, "Name of the connection, e.g. warehouse")->required();
  query->add_option("SQL", g.options.sql, "One query")->required();
  CLI::App* audit = g.Group("audit", "The audit trail");
  CLI::App* verify =
      g.Add(audit, "verify", "Find whatever was edited, deleted, inserted, reordered, cut off or recomputed", AuditVerify);
  verify->add_option("--checkpoints", g.options.checkpoints, "Folder of signed checkpoints (default: audit.checkpoint_dir)");
  verify->add_option("--public-key", g.options.public_key, "Public key of the checkpoints (default: beside audit.key_file)");
  CLI::App* ledger = g.Group("ledger", "What the ledger holds, and what of it may go");
  g.Add(ledger, "list", "Weeks of finished and live work, and what they take", LedgerList);
  CLI::App* prune =
      g.Add(ledger, "prune", "Remove whole weeks of finished work; the audit trail goes on verifying", LedgerPrune);
  prune->add_option("--older-than", g.options.older_than, "What was submitted longer ago, e.g. 90d");
  prune->add_option("--max-bytes", g.options.max_bytes, "The oldest weeks, while the others take more, e.g. 20GiB");
  prune->add_flag("--dry-run", g.options.dry_run, "Only say what would go");
  CLI::App* config = g.Group("config", "The configuration");
  CLI::App* show = g.Add(config, "show", "Every setting and its value; secrets are not shown", ConfigShow);
  show->add_flag("--origin", g.options.origin, "Also where each value comes from");
  g.Add(&g.app, "doctor", "Look whether everything this installation needs is there", Doctor);
  g.Add(&g.app, "version", "Versions of this program and its libraries", Version);
}

// Every command shows how it is used, and where its other options are.
constexpr std::array<std::pair<std::string_view, std::string_view>, 60> kExamples{{
    {"bench", "bench queue\nbench latency -o json"},
    {"bench queue", "bench queue --jobs 300000 --durability redis\nbench queue --rate 5000 --jobs 900000 -o json"},
    {"bench latency", "bench latency\nbench latency --durability redis --jobs 2000"},
    {"bench chain", "bench chain --sleep 10ms\nbench chain --stages 2 --rate 500 --runs 30000"},
    {"bench cron", "bench cron\nbench cron --schedules 1000 --seconds 30"},
    {"bench load", "bench load --rows 5000000\nbench load --to parquet -o json"},
    {"bench scale", "bench scale --worker-counts 1,2,4,8\nbench scale --depths 1000,100000,1000000"},
    {"run", "run shop.yaml\nrun shop.yaml -p since=2026-01-01 -o json\nrun list --pipeline shop"},
    {"run start", "run start shop --wait\nrun start shop -p since=2026-01-01 -q"},
    {"run list", "run list\nrun list --pipeline shop --state failed -n 5 -o json"},
    {"run show", "run show last\nrun show last --pipeline shop -o json\nrun show 01a1fc86-aaa1"},
    {"run logs", "run logs last --stage orders\nrun logs 01a1fc86-aaa1"},
    {"run retry", "run retry last\nrun retry --pipeline shop --dry-run"},
    {"job", "job list --open\njob requeue --error-class timed_out --since 2h --dry-run"},
    {"job list", "job list --state dead --queue mail -n 20\njob list --open -o json"},
    {"job show", "job show 01a1fc86-aaa2-7b01-9c5e-0f6a7d8e9b10\njob show last --payload"},
    {"job requeue",
     "job requeue 01a1fc86-aaa2-7b01-9c5e-0f6a7d8e9b10 --max-attempts 5\njob requeue --queue mail --since 2h --dry-run"},
    {"job discard", "job discard 01a1fc86-aaa2-7b01-9c5e-0f6a7d8e9b10 --reason 'customer is gone'"},
    {"job submit",
     "job submit --kind command --payload '{\"argv\": [\"echo\", \"hi\"]}' --wait\njob submit --batch mails.ndjson --then "
     "'{\"kind\": \"command\", \"payload\": {\"argv\": [\"echo\", \"all sent\"]}}'"},
    {"job result", "job result 01a1fc86-aaa2-7b01-9c5e-0f6a7d8e9b10 > report.csv"},
    {"job refused", "job refused\njob refused -n 5 -o json"},
    {"check", "check shop.yaml\ncheck shop.yaml -o json"},
    {"plan", "plan shop.yaml\nplan shop.yaml -p since=2026-01-01"},
    {"up", "up shop.yaml\nup --home /var/lib/shop"},
    {"broker", "broker --config /etc/millrace/config.yaml --name broker-1"},
    {"worker", "worker --name worker-1 --concurrency 8\nworker --queues default,small"},
    {"scheduler", "scheduler --name scheduler-1"},
    {"status", "status\nstatus -o json"},
    {"pipeline", "pipeline apply shop.yaml\npipeline list"},
    {"pipeline apply", "pipeline apply shop.yaml\npipeline apply shop.yaml --cron '0 6 * * *' --timezone Europe/Paris"},
    {"pipeline list", "pipeline list -o csv"},
    {"pipeline show", "pipeline show shop"},
    {"schedule", "schedule list\nschedule next shop"},
    {"schedule list", "schedule list -o json"},
    {"run cancel", "run cancel last\nrun cancel 0199a3 --reason 'wrong day' --wait\nrun cancel --pipeline shop --dry-run"},
    {"job cancel", "job cancel 0199a3f0-5b1e-7c3a-9d61-2f8a4c5e6b70 --reason obsolete\njob cancel --queue mail --dry-run"},
    {"schedule pause", "schedule pause shop\nschedule pause shop mails"},
    {"schedule resume", "schedule resume shop"},
    {"schedule slots", "schedule slots shop -n 10"},
    {"schedule next",
     "schedule next shop.yaml\nschedule next --cron '30 2 * * *' --timezone America/New_York --from 2026-03-07T00:00:00Z -n 3\n"
     "schedule next shop --transitions"},
    {"backfill",
     "backfill shop --from 2026-01-01 --to 2026-01-31 --dry-run\nbackfill shop --from 2026-01-01 --to 2026-01-31 "
     "--max-parallel 4"},
    {"backfill list", "backfill list --pipeline shop"},
    {"backfill cancel", "backfill cancel 01a1fc86-aaa1-71b6-be1e-5b4980682c42 --running --reason 'wrong range'"},
    {"backfill show", "backfill show 01a1fc86-aaa1-71b6-be1e-5b4980682c42"},
    {"queue", "queue list\nqueue set default --concurrency 8"},
    {"queue list", "queue list\nqueue list -o json"},
    {"queue show", "queue show default"},
    {"queue set",
     "queue set api --rate 100/1s --key-rate 5/1m --key-concurrency 2\nqueue set batch --order weighted --weights "
     "8,4,2,1\nqueue set batch --max-waiting 100000\nqueue set clicks --durability redis\nqueue set '*' --org 7 --max-waiting "
     "1000000"},
    {"queue pause", "queue pause api\nqueue pause api mail"},
    {"queue resume", "queue resume api"},
    {"query",
     "query warehouse \"select * from shop_per_country limit 10\"\nquery warehouse \"select count(*) from orders\" -o csv"},
    {"audit", "audit verify"},
    {"audit verify", "audit verify\naudit verify --checkpoints /mnt/worm/checkpoints -o json"},
    {"ledger", "ledger list\nledger prune --older-than 90d --dry-run"},
    {"ledger list", "ledger list\nledger list -o json"},
    {"ledger prune", "ledger prune --older-than 90d --dry-run\nledger prune --max-bytes 20GiB"},
    {"config", "config show --origin"},
    {"config show", "config show --origin\nconfig show --set worker.concurrency=4 -o json"},
    {"doctor", "doctor\ndoctor --home /var/lib/shop"},
    {"version", "version\nversion -o json"},
}};

std::string Footer(std::string_view command) {
  std::string text;
  for (const auto& [name, lines] : kExamples) {
    if (name != command) continue;
    text = lines.contains('\n') ? "Examples:" : "Example:";
    for (std::size_t at = 0; at <= lines.size();) {
      const std::size_t end = std::min(lines.find('\n', at), lines.size());
      text += fmt::format("\n  millrace {}", lines.substr(at, end - at));
      at = end + 1;
    }
  }
  return text + "\n\nOptions of every command (--home, -o, --set, ...): millrace --help";
}

void AddFooters(CLI::App& app, const std::string& prefix) {
  for (CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    const std::string name = prefix.empty() ? sub->get_name() : prefix + " " + sub->get_name();
    sub->footer(Footer(name));
    AddFooters(*sub, name);
  }
}

std::string DidYouMean(std::string_view word, const std::vector<std::string>& names) {
  const std::vector<std::string_view> views(names.begin(), names.end());
  const auto nearest = Suggest(word, views);
  return nearest ? fmt::format("; did you mean '{}'?", *nearest) : "";
}

void AddOptionNames(const CLI::App& app, std::vector<std::string>* names) {
  for (const CLI::Option* option : app.get_options([](const CLI::Option*) { return true; }))
    for (const std::string& name : option->get_lnames()) names->push_back("--" + name);
}

// CLI11 says only "A subcommand is required" or "not expected" for a typo: name the word and the nearest command or option.
std::string Hint(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* at = &app;
  std::vector<std::string> options;
  AddOptionNames(app, &options);
  bool is_command = true;  // later words are arguments
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string word = words[i].substr(0, words[i].find('='));
    if (word == "--") return "";
    if (word.starts_with('-')) {
      const CLI::Option* option = at->get_option_no_throw(word);
      if (option == nullptr) option = app.get_option_no_throw(word);
      const bool attached = !word.starts_with("--") && word.size() > 2;  // -ojson
      if (option == nullptr && !attached) return fmt::format("unknown option '{}'{}", word, DidYouMean(word, options));
      if (option != nullptr && option->get_items_expected_max() > 0 && words[i].size() == word.size()) ++i;
      continue;
    }
    if (!is_command) continue;
    const CLI::App* next = nullptr;
    std::vector<std::string> names;
    for (const CLI::App* sub : at->get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(sub->get_name());
      if (names.back() == word) next = sub;
    }
    if (next != nullptr) {
      at = next;
      AddOptionNames(*at, &options);
    } else {
      is_command = false;
      const bool takes_words = at->get_subcommands([](const CLI::App*) { return true; }).empty() || at->get_name() == "run" ||
                               at->get_name() == "backfill";
      if (!takes_words) return fmt::format("unknown command '{}'{}", word, DidYouMean(word, names));
    }
  }
  return "";
}

// A command's own words and options given beside one of its subcommands: "run list shop" must not list the runs of all.
std::string StrayArgument(const CLI::App& app) {
  for (const CLI::App* parent : app.get_subcommands()) {
    if (parent->get_subcommands().empty()) continue;
    const std::string sub = parent->get_subcommands().front()->get_name();
    for (const CLI::Option* option : parent->get_options())
      if (option->count() > 0)
        return fmt::format("'{} {}' takes no {}{}", parent->get_name(), sub,
                           option->get_positional() ? fmt::format("'{}'", option->results().front()) : option->get_name(),
                           parent->get_name() == "backfill"
                               ? fmt::format("; for a pipeline of that name: millrace backfill OPTIONS -- {}", sub)
                               : "");
  }
  return "";
}

// Data that did not reach a full disk or a closed file is no success. A reader that has read enough (head) is none of ours.
int WithFlushed(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  pollfd out{STDOUT_FILENO, POLLOUT, 0};
  if (::poll(&out, 1, 0) > 0 && (out.revents & POLLERR) != 0) return code;
  Tell("millrace: stdout cannot be written (is the disk full, or the file closed?): the output is not complete\n");
  return code == 0 ? static_cast<int>(ExitCode::kWorkFailed) : code;
}

int Main(int argc, char** argv) {
  HoldStandardFiles();
  std::signal(SIGPIPE, SIG_IGN);
  Grammar g;
  g.app.require_subcommand(1);
  g.app.set_version_flag("--version", MILLRACE_VERSION);
  AddGlobalOptions(g);
  AddRunCommands(g);
  AddJobCommands(g);
  AddPipelineCommands(g);
  AddBackfillCommands(g);
  AddProcessCommands(g);
  AddQueueCommands(g);
  AddBenchCommands(g);
  AddOtherCommands(g);
  AddFooters(g.app, "");
  try {
    g.app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return g.app.exit(e);  // --help, --version
    const std::string hint = Hint(g.app, std::vector<std::string>(argv + 1, argv + argc));
    Tell("millrace: {}\n", hint.empty() ? e.what() : hint);
    Tell("Run with --help for the commands and their options.\n");
    return static_cast<int>(ExitCode::kUsage);
  }
  if (!g.chosen) {
    Tell("millrace: no command\n");
    return static_cast<int>(ExitCode::kUsage);
  }
  if (const std::string stray = StrayArgument(g.app); !stray.empty()) {
    Tell("millrace: {}\nRun with --help for the commands and their options.\n", stray);
    return static_cast<int>(ExitCode::kUsage);
  }
  return WithFlushed(static_cast<int>(g.chosen(g.options)));
}

}  // namespace
}  // namespace millrace::cli

int main(int argc, char** argv) {
  try {
    return millrace::cli::Main(argc, argv);
  } catch (const std::exception& e) {  // nothing of ours throws; a library that does must not look like a crash
    millrace::Tell("millrace: {}\n", e.what());
    return 1;
  }
}
