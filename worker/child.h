// One child process with a process group of its own. Not thread-safe. Spawn must be called by a thread that outlives the
// child: the kernel kills the child when that thread ends (PR_SET_PDEATHSIG), so that no job survives its worker; what a child
// has started, its group, a GroupGuard kills then.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/fd.h"
#include "common/base/result.h"

namespace millrace::worker {

struct ChildOptions {
  std::vector<std::string> argv;  // argv[0]: a path, or a name that is looked up in the PATH of `env`
  std::vector<std::string> env;   // "NAME=value", all there is
  std::string cwd;                // empty: as ours
  bool frames = false;            // stdin and fd 3 are pipes to us; otherwise stdin is /dev/null
  int stdin_fd = -1;              // without frames: becomes its stdin; stays open here
  int nice = 0;                   // added to ours
  int guard_fd = -1;              // of a GroupGuard that is to watch its group; the caller has it forget the group at the end
};

struct ExitStatus {
  int code = 0;  // when signal is 0
  int signal = 0;
};

// Our ends of a child's pipes, and the child's, which are closed once it has them. All are close-on-exec, ours non-blocking.
struct ChildPipes {
  Fd input, frames, output;                    // its stdin, fd 3, stdout and stderr
  Fd child_input, child_frames, child_output;  // the other ends
};
// Pipes for a child with frames. kUnavailable: out of descriptors.
Result<ChildPipes> MakeChildPipes();

class Child {
 public:
  // kNotFound: no such program or working directory; kRejected: it may not be executed; kUnavailable: out of processes,
  // descriptors or memory. stdout and stderr go to one pipe. Signals are as after a login; no other descriptor is inherited.
  static Result<std::unique_ptr<Child>> Spawn(const ChildOptions& options);
  // A child of this process that a nursery has made (nursery_link.h): gives it a process group of its own. kUnavailable: it
  // cannot be watched; it is dead and reaped then.
  static Result<std::unique_ptr<Child>> Adopt(pid_t pid, ChildPipes pipes);
  ~Child();  // kills the group and reaps
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  int exit_fd() const { return pidfd_.get(); }  // readable once the process has ended
  Fd& input() { return input_; }                // its stdin; non-blocking
  Fd& frames() { return frames_; }              // its fd 3; non-blocking
  Fd& output() { return output_; }              // its stdout and stderr; non-blocking

  void SignalGroup(int signal);
  // The status once the process has ended: kills what is left of its group, then reaps. Never waits.
  std::optional<ExitStatus> TryReap();
  bool GroupGone() const;  // after TryReap: no process of the group exists any more

 private:
  Child() = default;
  Result<void> Watch();
  void TakePipes(ChildPipes pipes);  // closes the child's ends
  pid_t pid_ = -1;
  bool reaped_ = false;
  Fd pidfd_, input_, frames_, output_;
};

// The value of NAME in a list of "NAME=value", or empty.
std::string_view EnvValue(const std::vector<std::string>& env, std::string_view name);

}  // namespace millrace::worker
