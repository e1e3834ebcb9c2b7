#include "worker/executor.h"

#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/wire/text.h"
#include "worker/command_runner.h"
#include "worker/progress_file.h"
#include "worker/result_file.h"

namespace millrace::worker {
namespace {

constexpr auto kGroupPoll = Millis{5};

MonoTime Earliest(MonoTime a, const std::optional<MonoTime>& b) { return b ? std::min(a, *b) : a; }

std::unexpected<Error> Malformed(AttemptReport& refusal, std::string_view what) {
  refusal.retryable = false;
  refusal.error_class = "malformed_payload";
  return Fail(ErrorCode::kInvalidArgument, "{}", what);
}

// A machine that has no process to spare may have one later; a wrong program or folder may be right on another worker.
std::unexpected<Error> CannotStart(AttemptReport& refusal, Error error, std::string_view error_class) {
  refusal.retryable = true;
  refusal.error_class = error.code == ErrorCode::kUnavailable ? "no_resources" : std::string(error_class);
  return std::unexpected(std::move(error));
}

}  // namespace

std::vector<std::string> InheritedEnv() {
  std::vector<std::string> env;
  for (const char* name : {
           "PATH",
           "HOME",
           "LANG",
           "TZ",
#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
           "MILLRACE_FAILPOINTS",
           "MILLRACE_FAILPOINT_SEED",
           "MILLRACE_HISTORY",
#endif
       }) {
    if (const char* value = std::getenv(name)) env.push_back(fmt::format("{}={}", name, value));
  }
  return env;
}

Executor::Executor(Options options, const Clock& clock, Poller& poller, ProcessPool& pool)
    : options_(std::move(options)), clock_(clock), poller_(poller), pool_(pool) {}

AttemptReport Executor::Blank(JobId job, Token token) const {
  AttemptReport report;
  report.job = job;
  report.token = token;
  report.worker = options_.worker;
  report.started_at = report.finished_at = clock_.WallNow();
  return report;
}

void Executor::Start(const wire::Grant::Job& job) {
  MILLRACE_CHECK(!running_.contains(job.id), "job {} is started while it runs", job.id.ToString());
  Running running;
  running.token = job.token;
  running.started_at = clock_.WallNow();
  AttemptReport refusal = Blank(job.id, job.token);
  Result<void> started;
  if (job.fence_only && job.kind != kJobKindStage) {  // nothing of it is left and it has no sink
    refusal.end = AttemptEnd::kCancelled;
    refusal.error_class = "cancelled";
    ended_.push_back(std::move(refusal));
    return;
  }
  if (job.kind == kJobKindStage) {
    started = StartStage(job, running, refusal);
  } else if (job.kind == kJobKindCommand) {
    started = StartCommand(job, running, refusal);
  } else {
    refusal.retryable = false;
    refusal.error_class = "unknown_kind";
    started = Fail(ErrorCode::kUnsupported, "this worker runs jobs of kind 'stage' and 'command', not '{}'", job.kind);
  }
  if (!started) {
    refusal.end = AttemptEnd::kFailed;
    refusal.error = wire::CleanText(started.error().message, kErrorMessageBytesMax);
    if (!running.scratch.empty()) janitor_.Remove(std::move(running.scratch));
    ended_.push_back(std::move(refusal));
    return;
  }
  if (job.timeout_ms != 0) running.deadline = clock_.Now() + Millis{job.timeout_ms};
  running_.emplace(job.id, std::move(running));
}

Result<void> Executor::StartStage(const wire::Grant::Job& job, Running& running, AttemptReport& refusal) {
  auto task = StageTaskFromJson(job.payload);
  if (!task) return Malformed(refusal, task.error().message);
  if (task->job != job.id) return Malformed(refusal, "the payload names another job: " + task->job.ToString());
  StageOrder order;
  order.task = std::move(*task);
  order.token = job.token;
  order.lake = options_.lake;
  order.memory_bytes_max = options_.memory_bytes_max;
  order.threads = options_.threads_per_stage;
  order.sandbox = options_.sandbox;
  order.fence_only = job.fence_only;
  if (const auto* load = std::get_if<LoadSpec>(&order.task.stage.work); load && load->to != "file") {
    const auto found = std::ranges::find(options_.connections, load->to, &ConnectionSpec::name);
    if (found == options_.connections.end()) {
      std::string known;
      for (const auto& c : options_.connections) known += (known.empty() ? "'" : ", '") + c.name + "'";
      refusal.retryable = false;
      refusal.error_class = "unknown_connection";
      return Fail(ErrorCode::kNotFound, "worker '{}' has no connection '{}'; it knows {}", options_.worker, load->to,
                  known.empty() ? "none" : known);
    }
    order.connection = *found;
  }
  MILLRACE_TRY(MakeScratch(job, running, refusal));
  order.scratch = running.scratch;
  running.run = order.task.run;
  auto process = pool_.Take();
  if (!process) return CannotStart(refusal, std::move(process.error()), "stage_program_unavailable");
  running.stage = true;
  running.process = std::move(*process);
  running.process->set_label(fmt::format("job {} ({})", job.id.ToString(), order.task.stage.name));
  running.process->Write(EncodeStageFrame(ToJson(order)));
  return {};
}

Result<void> Executor::MakeScratch(const wire::Grant::Job& job, Running& running, AttemptReport& refusal) const {
  std::string scratch = fmt::format("{}/{}-{}", options_.scratch_root, job.id.ToString(), job.token.value());
  std::error_code error;
  std::filesystem::create_directories(scratch, error);
  if (error)
    return CannotStart(refusal, {ErrorCode::kUnavailable, fmt::format("scratch folder '{}': {}", scratch, error.message())},
                       "no_resources");
  running.scratch = std::move(scratch);
  return {};
}

Result<void> Executor::StartCommand(const wire::Grant::Job& job, Running& running, AttemptReport& refusal) {
  const auto task = CommandTaskFromJson(job.payload);
  if (!task) return Malformed(refusal, task.error().message);
  if (task->job != job.id) return Malformed(refusal, "the payload names another job: " + task->job.ToString());
  if (task->command.argv.empty()) return Malformed(refusal, "the command is empty");
  MILLRACE_TRY(MakeScratch(job, running, refusal));
  running.run = task->run;
  ChildOptions child = CommandChild(*task, job.token, InheritedEnv(), running.scratch, options_.nice);
  child.guard_fd = Guard();
  auto process = Process::Start(poller_, child, fmt::format("job {} ({})", job.id.ToString(), task->stage));
  if (!process) return CannotStart(refusal, std::move(process.error()), "command_not_startable");
  running.process = std::move(*process);
  return {};
}

// Where a command says its group. -1: there is no guard to be had.
int Executor::Guard() {
  if (guard_ && guard_->Alive()) return guard_->fd();
  auto started = GroupGuard::Start();
  if (!started) {
    LogWarn("what commands start will outlive this worker if it is killed: {}", started.error().message);
    return -1;
  }
  guard_ = std::move(*started);
  for (const auto& [id, running] : running_)
    if (!running.stage && running.process && !guard_->WatchSurely(running.process->pid()))
      LogWarn("what process {} starts will outlive this worker if it is killed", running.process->pid());
  return guard_->fd();
}

void Executor::Kill(JobId job, Token token, KillReason reason) {
  const auto it = running_.find(job);
  if (it == running_.end() || it->second.token != token || it->second.killed) return;
  Running& running = it->second;
  running.killed = reason;
  if (reason == KillReason::kCancelled && !running.stage) {
    running.process->SignalGroup(SIGTERM);
    running.kill_at = Earliest(clock_.Now() + options_.term_grace, running.kill_at);
  } else {
    running.process->SignalGroup(SIGKILL);
  }
}

void Executor::ReadMessages(JobId job, Running& running) {
  while (auto frame = running.process->TakeFrame()) {
    auto message = ParseStageMessage(*frame);
    if (!message) {
      running.broken = message.error().message;
      running.process->SignalGroup(SIGKILL);
      return;
    }
    if (const auto* progress = std::get_if<StageProgress>(&*message)) {
      progress_.push_back({job, progress->rows, progress->bytes});
    } else if (auto* result = std::get_if<StageResult>(&*message); result && !running.result) {
      running.result = std::move(*result);
      running.kill_at = clock_.Now() + options_.exit_grace;
    }
  }
  if (running.process->frames_broken() && running.broken.empty()) {
    running.broken = "the stage process sent something that is not a frame";
    running.process->SignalGroup(SIGKILL);
  }
}

void Executor::ReadProgress() {
  for (auto& [job, running] : running_) {
    if (running.stage || running.group_until) continue;
    const auto progress = ReadProgressFile(ProgressPath(running.scratch));
    if (progress && *progress) progress_.push_back({job, (*progress)->rows, (*progress)->bytes});
    if (!progress && !std::exchange(running.progress_refused, true))
      LogWarn("job {}: $MILLRACE_PROGRESS is not taken: {}", job.ToString(), progress.error().message);
  }
}

void Executor::CheckTimes(MonoTime now, Running& running) {
  if (running.deadline && now >= *running.deadline && !running.result && !running.killed) {
    running.timed_out = true;
    running.deadline.reset();
    if (running.stage) {
      running.process->SignalGroup(SIGKILL);
    } else {
      running.process->SignalGroup(SIGTERM);
      running.kill_at = Earliest(now + options_.term_grace, running.kill_at);
    }
  }
  if (running.kill_at && now >= *running.kill_at) {
    running.process->SignalGroup(SIGKILL);
    running.kill_at.reset();
  }
}

void Executor::Tick() {
  const MonoTime now = clock_.Now();
  for (auto it = running_.begin(); it != running_.end();) {
    Running& running = it->second;
    if (running.stage) ReadMessages(it->first, running);
    if (!running.process->exit() && running.result && running.result->ok && !running.killed) {
      ended_.push_back(Report(it->first, running));
      leaving_.push_back({std::move(running.process), std::move(running.scratch), now + options_.leave_grace});
      it = running_.erase(it);
      continue;
    }
    if (!running.process->exit()) {
      CheckTimes(now, running);
      ++it;
      continue;
    }
    if (!running.group_until) running.group_until = now + options_.group_grace;
    if (!running.process->GroupGone() && now < *running.group_until) {
      ++it;
      continue;
    }
    ended_.push_back(Report(it->first, running));
    const bool guarded = !running.stage && guard_;
    const pid_t group = running.process->pid();
    if (!running.scratch.empty()) janitor_.Remove(std::move(running.scratch));
    it = running_.erase(it);
    if (guarded && !GroupGuard::Forget(guard_->fd(), group)) {  // it would kill who has that number next
      guard_.reset();
      (void)Guard();
    }
  }
  SeeOff(now);
}

void Executor::SeeOff(MonoTime now) {
  std::erase_if(leaving_, [&](Leaving& leaving) {
    if (!leaving.process->exit()) {
      if (now < leaving.kill_at) return false;
      leaving.process->SignalGroup(SIGKILL);
      leaving.kill_at = MonoTime::max();
      return false;
    }
    if (!leaving.scratch.empty()) janitor_.Remove(std::move(leaving.scratch));
    return true;
  });
}

AttemptReport Executor::Report(JobId job, const Running& running) const {
  AttemptReport report = Blank(job, running.token);
  report.started_at = running.started_at;
  report.log_tail = running.process->LogText();
  const ExitStatus exit = running.process->exit().value_or(ExitStatus{});
  report.exit_code = exit.code;
  report.signal = exit.signal;
  if (running.stage && running.result) {  // whatever happened afterwards: its effect is published, or it says why not
    report.exit_code = report.signal = 0;
    report.end = running.result->ok                                 ? AttemptEnd::kSucceeded
                 : running.result->error_class == kFencedErrorClass ? AttemptEnd::kCancelled
                                                                    : AttemptEnd::kFailed;
    report.retryable = running.result->ok || running.result->retryable;
    report.error_class = wire::CleanText(running.result->error_class, kNameBytesMax);
    report.error = wire::CleanText(running.result->error, kErrorMessageBytesMax);
    report.result = ResultJson(*running.result, options_.lake, running.run, job, running.token);
  } else if (!running.stage && exit.signal == 0 && exit.code == 0) {
    ReportCommand(exit, job, running, report);  // it was faster than the signal
  } else if (running.killed) {
    report.end = *running.killed == KillReason::kCancelled ? AttemptEnd::kCancelled : AttemptEnd::kHandedBack;
    report.error_class = Name(*running.killed);
    report.error = fmt::format("stopped by the worker: {}", Name(*running.killed));
  } else if (running.timed_out) {
    report.end = AttemptEnd::kTimedOut;
    report.error_class = "timed_out";
    report.error = "the attempt was killed at its deadline";
  } else if (!running.stage) {
    ReportCommand(exit, job, running, report);
  } else {
    report.end = AttemptEnd::kCrashed;
    report.error_class = running.broken.empty() ? "crashed" : "bad_stage_message";
    report.error = !running.broken.empty() ? wire::CleanText(running.broken, kErrorMessageBytesMax)
                   : exit.signal != 0      ? fmt::format("the stage process was killed by signal {}", exit.signal)
                                           : fmt::format("the stage process ended with exit code {} and no result", exit.code);
  }
  return report;
}

// A command that succeeded and whose output cannot be kept has failed: who waits for the output would not get it.
void Executor::ReportCommand(const ExitStatus& exit, JobId job, const Running& running, AttemptReport& report) const {
  StageResult result;
  result.ok = true;
  DescribeCommandEnd(exit, report);
  if (report.end != AttemptEnd::kSucceeded) return;
  auto taken = TakeOutput(OutputPath(running.scratch), options_.lake, running.run, job, running.token, result);
  if (taken) {
    report.result = ResultJson(result, options_.lake, running.run, job, running.token);
    return;
  }
  report.end = AttemptEnd::kFailed;
  report.result.clear();
  report.retryable = taken.error().code == ErrorCode::kUnavailable;
  report.error_class = report.retryable                                    ? "result_not_stored"
                       : taken.error().code == ErrorCode::kInvalidArgument ? "result_not_a_file"
                                                                           : "result_too_large";
  report.error = wire::CleanText(taken.error().message, kErrorMessageBytesMax);
}

MonoTime Executor::NextTick() const {
  MonoTime next = MonoTime::max();
  for (const auto& [id, running] : running_) {
    if (running.group_until) {
      next = std::min(next, clock_.Now() + kGroupPoll);
      continue;
    }
    if (!running.timed_out && !running.result && !running.killed) next = Earliest(next, running.deadline);
    next = Earliest(next, running.kill_at);
  }
  for (const Leaving& leaving : leaving_) next = std::min(next, leaving.kill_at);
  return next;
}

std::vector<AttemptReport> Executor::TakeEnded() { return std::exchange(ended_, {}); }
std::vector<Executor::Progress> Executor::TakeProgress() { return std::exchange(progress_, {}); }

}  // namespace millrace::worker
