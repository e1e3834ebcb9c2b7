// up, broker, worker, scheduler.
#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/engine.h"
#include "client/cli/home.h"
#include "client/cli/pipeline_file.h"
#include "common/base/log.h"
#include "common/model/pipeline_json.h"

namespace millrace::cli {
namespace {

Options WithFlag(Options options, const std::string& key, const std::string& value) {
  if (!value.empty()) options.settings.push_back(key + "=" + value);
  return options;
}

Result<ExitCode> Serve(Context& context, EngineParts parts) {
  BlockStopSignals();
  const auto engine = Engine::Start(context, parts);
  const bool stopped = !engine && engine.error().code == ErrorCode::kCancelled && StopSignalPending();
  if (!engine && !stopped) return std::unexpected(engine.error());
  if (engine) {
    LogInfo("started");
    MILLRACE_TRY(ServeUntilSignal(**engine));
  }
  LogInfo("stopped");
  return ExitCode::kOk;
}

Result<ExitCode> ServeAlone(const Options& options, const std::string& process, EngineParts parts) {
  BlockStopSignals();  // first: a service manager may stop what it has just started
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, process));
  if (context->embedded())
    return Fail(ErrorCode::kInvalidArgument,
                "{}: ledger.dsn names no PostgreSQL: set it (and queue.redis) in the configuration, or use 'millrace up'",
                process);
  return Serve(*context, parts);
}

Result<ExitCode> DoUp(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "up"));
  if (!context->embedded())
    return Fail(ErrorCode::kInvalidArgument,
                "up is the embedded form; with ledger.dsn set, start broker, worker and scheduler");
  MILLRACE_TRY_ASSIGN(const HomeLock lock, HomeLock::Acquire(context->config().home, "millrace up"));
  if (!options.file.empty()) {
    MILLRACE_TRY_ASSIGN(const PipelineFile file, ReadPipelineFile(options.file));
    MILLRACE_TRY(CheckConnections(file, context->Connections()));
    MILLRACE_TRY(TypeCheck(file, {}, context->config().lake, context->org(), context->clock().Now() + Millis{60'000}));
    MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kYes, "cli"));
    MILLRACE_TRY(ledger->ApplyPipeline(file.pipeline, ToJson(file.pipeline), file.source, file.base_dir, context->org(),
                                       context->Deadline()));
  }
  return Serve(*context, {.broker = true, .worker = true, .scheduler = true});
}

}  // namespace

ExitCode Up(const Options& options) { return Finish(DoUp(options)); }

ExitCode BrokerProcess(const Options& options) {
  return Finish(ServeAlone(WithFlag(options, "broker.name", options.name), "broker", {.broker = true}));
}

ExitCode WorkerProcess(const Options& options) {
  Options with = WithFlag(options, "worker.name", options.name);
  if (options.concurrency != 0) with = WithFlag(with, "worker.concurrency", std::to_string(options.concurrency));
  with = WithFlag(with, "worker.queues", options.queues);
  BlockStopSignals();
  const auto result = [&]() -> Result<ExitCode> {  // needs neither ledger nor queue: brokers and lake are enough
    MILLRACE_TRY_ASSIGN(const auto context, Context::Make(with, options.name.empty() ? "worker" : options.name));
    return Serve(*context, {.worker = true});
  }();
  return Finish(result);
}

ExitCode SchedulerProcess(const Options& options) {
  return Finish(ServeAlone(WithFlag(options, "scheduler.name", options.name), "scheduler", {.scheduler = true}));
}

}  // namespace millrace::cli
