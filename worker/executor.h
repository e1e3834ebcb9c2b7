// Runs attempts as child processes and turns their ends into reports. Not thread-safe: belongs to the worker's loop thread,
// which must outlive the children (child.h). Nothing here waits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/model/job.h"
#include "common/model/stage_task.h"
#include "common/wire/messages.h"
#include "worker/group_guard.h"
#include "worker/janitor.h"
#include "worker/poller.h"
#include "worker/process.h"
#include "worker/process_pool.h"
#include "worker/session.h"

namespace millrace::worker {

class Executor {
 public:
  struct Options {
    std::string worker;        // name, for reports
    std::string lake;          // absolute path of the lake's root
    std::string scratch_root;  // absolute; each attempt has a folder of its own in it
    std::vector<ConnectionSpec> connections;
    std::uint64_t memory_bytes_max = 0;
    int threads_per_stage = 1;
    bool sandbox = true;
    int nice = 5;
    Millis term_grace{2000};   // between SIGTERM and SIGKILL of a command
    Millis exit_grace{200};    // between a stage's failure and SIGKILL
    Millis leave_grace{5000};  // between a stage's success, which is reported at once, and SIGKILL
    Millis group_grace{1000};  // how long to wait for killed members of a group to disappear
  };
  Executor(Options options, const Clock& clock, Poller& poller, ProcessPool& pool);

  // Starts an attempt. One that cannot start is reported by TakeEnded like any other. REQUIRES: the job is not running.
  void Start(const wire::Grant::Job& job);
  // Ends it: a command that is cancelled gets SIGTERM first, anything else SIGKILL. Unknown attempts are ignored.
  void Kill(JobId job, Token token, KillReason reason);
  // Looks after frames, ends and deadlines. Call in every turn of the loop, after Poller::Dispatch.
  void Tick();
  MonoTime NextTick() const;

  // Looks at what commands have written about how far they are, for TakeProgress. To be called before a heartbeat is made.
  void ReadProgress();

  std::vector<AttemptReport> TakeEnded();
  struct Progress {
    JobId job;
    std::int64_t rows, bytes;
  };
  std::vector<Progress> TakeProgress();
  std::size_t running() const { return running_.size(); }
  bool Idle() const { return running_.empty() && leaving_.empty(); }  // no process of an attempt exists any more

 private:
  struct Running {
    Token token;
    bool stage = false;
    WallTime started_at{};
    std::unique_ptr<Process> process;
    std::string scratch;
    RunId run;
    std::optional<MonoTime> deadline;     // the attempt's
    std::optional<MonoTime> kill_at;      // SIGKILL
    std::optional<MonoTime> group_until;  // the process has ended; its group may be there until then
    std::optional<KillReason> killed;
    bool timed_out = false;
    bool progress_refused = false;  // its file held something else: said in the log, once
    std::optional<StageResult> result;
    std::string broken;  // what was wrong with its messages
  };

  // A stage that has published and said so: nothing depends on its process any more, which closes files and frees memory.
  struct Leaving {
    std::unique_ptr<Process> process;
    std::string scratch;
    MonoTime kill_at;
  };

  Result<void> StartStage(const wire::Grant::Job& job, Running& running, AttemptReport& refusal);
  Result<void> StartCommand(const wire::Grant::Job& job, Running& running, AttemptReport& refusal);
  void ReadMessages(JobId job, Running& running);
  void CheckTimes(MonoTime now, Running& running);
  void SeeOff(MonoTime now);
  AttemptReport Report(JobId job, const Running& running) const;
  void ReportCommand(const ExitStatus& exit, JobId job, const Running& running, AttemptReport& report) const;
  int Guard();
  Result<void> MakeScratch(const wire::Grant::Job& job, Running& running, AttemptReport& refusal) const;
  AttemptReport Blank(JobId job, Token token) const;

  Options options_;
  const Clock& clock_;
  Poller& poller_;
  ProcessPool& pool_;
  Janitor janitor_;
  std::unique_ptr<GroupGuard> guard_;  // from the first command on
  std::map<JobId, Running> running_;
  std::vector<Leaving> leaving_;
  std::vector<AttemptReport> ended_;
  std::vector<Progress> progress_;
};

// PATH, HOME, LANG and TZ of this process as "NAME=value": all that a child inherits.
std::vector<std::string> InheritedEnv();

}  // namespace millrace::worker
