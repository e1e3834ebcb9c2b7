// One child process with a process group of its own. Not thread-safe. Spawn must be called by a thread that outlives the
// child: the kernel kills the child when that thread ends (PR_SET_PDEATHSIG), so that no job survives its worker.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"

namespace millrace::worker {

struct ChildOptions {
  std::vector<std::string> argv;  // argv[0]: a path, or a name that is looked up in the PATH of `env`
  std::vector<std::string> env;   // "NAME=value", all there is
  std::string cwd;                // empty: as ours
  bool frames = false;            // stdin and fd 3 are pipes to us; otherwise stdin is /dev/null
  int nice = 0;                   // added to ours
};

struct ExitStatus {
  int code = 0;  // when signal is 0
  int signal = 0;
};

// A file descriptor with an owner.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept;
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

class Child {
 public:
  // kNotFound: no such program or working directory; kRejected: it may not be executed; kUnavailable: out of processes,
  // descriptors or memory. stdout and stderr go to one pipe. Signals are as after a login; no other descriptor is inherited.
  static Result<std::unique_ptr<Child>> Spawn(const ChildOptions& options);
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
  pid_t pid_ = -1;
  bool reaped_ = false;
  Fd pidfd_, input_, frames_, output_;
};

// The value of NAME in a list of "NAME=value", or empty.
std::string_view EnvValue(const std::vector<std::string>& env, std::string_view name);

}  // namespace millrace::worker
