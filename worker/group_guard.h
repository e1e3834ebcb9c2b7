// A process beside a worker's that kills the process groups of its commands once the worker is dead, however it died. The
// kernel kills a command with its worker (child.h), but not what the command has started. Not thread-safe.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <memory>

#include "common/base/fd.h"
#include "common/base/result.h"

namespace millrace::worker {

inline constexpr int kGuardedGroupsMax = 16'384;  // more than attempts of a worker; what is beyond it is not guarded

class GroupGuard {
 public:
  // kUnavailable: no process or descriptor is left.
  static Result<std::unique_ptr<GroupGuard>> Start();
  ~GroupGuard();  // ends it; it kills nothing then
  GroupGuard(const GroupGuard&) = delete;
  GroupGuard& operator=(const GroupGuard&) = delete;

  bool Alive();  // false: somebody has killed it; start another one, and tell it of every group
  int fd() const { return socket_.get(); }
  pid_t pid() const { return pid_; }

  // As Watch, but for a moment waits for a guard that has not read yet: its socket holds some hundreds of numbers.
  bool WatchSurely(pid_t group);

  // What may be said over fd(). Async-signal-safe; a guard that is gone or does not read is told nothing: false.
  static bool Watch(int fd, pid_t group) { return Say(fd, group); }
  static bool Forget(int fd, pid_t group) { return Say(fd, -group); }  // before its number can be another one's

 private:
  GroupGuard() = default;
  static bool Say(int fd, pid_t number) {
    return fd < 0 || ::send(fd, &number, sizeof number, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof number;
  }
  Fd socket_;
  pid_t pid_ = -1;
};

}  // namespace millrace::worker
