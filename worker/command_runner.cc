#include "worker/command_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace millrace::worker {
namespace {

void SetEnv(std::vector<std::string>& env, std::string_view name, std::string_view value) {
  std::erase_if(env, [&](std::string_view entry) {
    return entry.size() > name.size() && entry.starts_with(name) && entry[name.size()] == '=';
  });
  env.push_back(fmt::format("{}={}", name, value));
}

}  // namespace

std::string OutputPath(const std::string& scratch) { return scratch + "/result"; }
std::string ProgressPath(const std::string& scratch) { return scratch + "/progress"; }

ChildOptions CommandChild(const CommandTask& task, Token token, std::vector<std::string> inherited, const std::string& scratch,
                          int nice) {
  SetEnv(inherited, "MILLRACE_ORG", fmt::format("{}", task.org.value()));
  for (const auto& [name, value] : task.command.env) SetEnv(inherited, name, value);
  SetEnv(inherited, "MILLRACE_RUN", task.run.ToString());
  SetEnv(inherited, "MILLRACE_JOB", task.job.ToString());
  SetEnv(inherited, "MILLRACE_TOKEN", fmt::format("{}", token.value()));
  SetEnv(inherited, "MILLRACE_STAGE", task.stage);
  SetEnv(inherited, "MILLRACE_PIPELINE", task.pipeline);
  SetEnv(inherited, "MILLRACE_RESULT", OutputPath(scratch));
  SetEnv(inherited, "MILLRACE_PROGRESS", ProgressPath(scratch));
  return {.argv = task.command.argv, .env = std::move(inherited), .cwd = task.base_dir, .frames = false, .nice = nice};
}

void DescribeCommandEnd(const ExitStatus& exit, AttemptReport& report) {
  report.exit_code = exit.code;
  report.signal = exit.signal;
  report.retryable = true;
  if (exit.signal != 0) {
    report.end = AttemptEnd::kCrashed;
    report.error_class = "crashed";
    report.error = fmt::format("the command was killed by signal {}", exit.signal);
  } else if (exit.code != 0) {
    report.end = AttemptEnd::kFailed;
    report.error_class = exit.code == kExitTemporaryFailure ? "temporary_failure" : "command_failed";
    report.error = fmt::format("the command ended with exit code {}", exit.code);
  } else {
    report.end = AttemptEnd::kSucceeded;
    StageResult result;
    result.ok = true;
    report.result = ToJson(result);
  }
}

}  // namespace millrace::worker
