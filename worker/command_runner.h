// How a CommandTask becomes a process, and its exit an AttemptReport. Stateless and thread-safe.
#pragma once

#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/model/job.h"
#include "common/model/stage_task.h"
#include "worker/child.h"

namespace millrace::worker {

inline constexpr int kExitTemporaryFailure = 75;  // EX_TEMPFAIL of sysexits.h

// What a command may write, in the folder `scratch` of its attempt: its output, and how far it is (progress_file.h).
std::string OutputPath(const std::string& scratch);
std::string ProgressPath(const std::string& scratch);

// The task's program in its base_dir with `inherited`, then MILLRACE_ORG, then the task's own variables, then MILLRACE_RUN,
// MILLRACE_JOB, MILLRACE_TOKEN, MILLRACE_STAGE, MILLRACE_PIPELINE, and the paths above as MILLRACE_RESULT and
// MILLRACE_PROGRESS; a later value replaces an earlier one.
ChildOptions CommandChild(const CommandTask& task, Token token, std::vector<std::string> inherited, const std::string& scratch,
                          int nice);

// Fills end, retryable, error_class, error, exit_code, signal and result. Exit code 0: succeeded, with an ok StageResult of no
// rows. 75: "temporary_failure". Another: "command_failed". A signal: crashed. All failures may be retried.
void DescribeCommandEnd(const ExitStatus& exit, AttemptReport& report);

}  // namespace millrace::worker
