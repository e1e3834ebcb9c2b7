// The commands of the millrace executable. Each prints data on stdout, everything else on stderr, and returns its exit code.
#pragma once

#include "client/cli/exit_code.h"
#include "client/cli/options.h"

namespace millrace::cli {

// Pipelines (commands_pipeline.cc).
ExitCode CheckFile(const Options& options);
ExitCode PlanFile(const Options& options);
ExitCode PipelineApply(const Options& options);
ExitCode PipelineList(const Options& options);
ExitCode PipelineShow(const Options& options);

// Runs (commands_run.cc).
ExitCode RunFile(const Options& options);
ExitCode RunStart(const Options& options);
ExitCode RunList(const Options& options);
ExitCode RunShow(const Options& options);
ExitCode RunLogs(const Options& options);

// Cancelling (commands_cancel.cc).
ExitCode RunCancel(const Options& options);
ExitCode JobCancel(const Options& options);
// Backfills (commands_backfill.cc).
ExitCode BackfillStart(const Options& options);
ExitCode BackfillList(const Options& options);
ExitCode BackfillShow(const Options& options);
ExitCode BackfillCancel(const Options& options);
// Jobs, and what repeats them (commands_job.cc).
ExitCode JobList(const Options& options);
ExitCode JobShow(const Options& options);
ExitCode JobRequeue(const Options& options);
ExitCode JobDiscard(const Options& options);
ExitCode JobSubmit(const Options& options);   // commands_submit.cc
ExitCode JobRefused(const Options& options);  // commands_result.cc
ExitCode JobResult(const Options& options);   // commands_result.cc
ExitCode RunRetry(const Options& options);

// What the ledger holds, and what of it may go (commands_ledger.cc).
ExitCode LedgerList(const Options& options);
ExitCode LedgerPrune(const Options& options);

// Processes (commands_process.cc). They end with SIGTERM or SIGINT; a second signal hands running jobs back at once.
ExitCode Up(const Options& options);
ExitCode BrokerProcess(const Options& options);
ExitCode WorkerProcess(const Options& options);
ExitCode SchedulerProcess(const Options& options);

// Queues (commands_queue.cc).
ExitCode QueueList(const Options& options);
ExitCode QueueShow(const Options& options);
ExitCode QueueSet(const Options& options);
ExitCode QueuePause(const Options& options);
ExitCode QueueResume(const Options& options);

// Looking (commands_look.cc).
ExitCode Status(const Options& options);
ExitCode ScheduleList(const Options& options);
ExitCode SchedulePause(const Options& options);
ExitCode ScheduleResume(const Options& options);
ExitCode ScheduleSlots(const Options& options);
ExitCode ScheduleNext(const Options& options);
ExitCode Query(const Options& options);
ExitCode AuditVerify(const Options& options);
ExitCode ConfigShow(const Options& options);
ExitCode Doctor(const Options& options);
ExitCode Version(const Options& options);

// Benchmarks (commands_bench*.cc; ops/docs/benchmarks.md). The last two are processes that they start.
ExitCode BenchQueue(const Options& options);
ExitCode BenchLatency(const Options& options);
ExitCode BenchChain(const Options& options);
ExitCode BenchCron(const Options& options);
ExitCode BenchLoad(const Options& options);
ExitCode BenchScale(const Options& options);
ExitCode BenchHandler(const Options& options);
ExitCode BenchServeBroker(const Options& options);

}  // namespace millrace::cli
