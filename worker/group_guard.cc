#include "worker/group_guard.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

namespace millrace::worker {
namespace {

std::array<pid_t, kGuardedGroupsMax> groups;  // of the guard
std::size_t count = 0;

void Take(pid_t number) {
  const auto end = groups.begin() + static_cast<std::ptrdiff_t>(count);
  if (number > 0 && count < groups.size()) {
    groups[count++] = number;
  } else if (const auto it = std::find(groups.begin(), end, -number); number < 0 && it != end) {
    *it = groups[--count];
  }
}

// In a copy of a process that has threads: system calls only. In a group of its own, so that who kills the worker's whole
// group, as a terminal does, does not kill it first; and without the worker's descriptors, which would stay open with it.
[[noreturn]] void Guard(int socket) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_NAME, "millrace-guard");
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  ::dup2(socket, STDIN_FILENO);
  ::syscall(SYS_close_range, 1u, UINT_MAX, 0u);
  [[maybe_unused]] const int ignored = ::chdir("/");
  while (true) {
    pid_t number = 0;
    const ssize_t got = ::recv(STDIN_FILENO, &number, sizeof number, 0);
    if (got == static_cast<ssize_t>(sizeof number)) Take(number);
    if (got == 0 || (got < 0 && errno != EINTR)) break;  // nobody has the other end any more
  }
  for (std::size_t i = 0; i < count; ++i) ::kill(-groups[i], SIGKILL);
  ::_exit(0);
}

}  // namespace

Result<std::unique_ptr<GroupGuard>> GroupGuard::Start() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return Fail(ErrorCode::kUnavailable, "socketpair: {}", std::strerror(errno));
  Fd ours{ends[0]};
  const Fd its{ends[1]};
  const pid_t pid = ::fork();
  if (pid < 0) return Fail(ErrorCode::kUnavailable, "fork: {}", std::strerror(errno));
  if (pid == 0) Guard(its.get());
  std::unique_ptr<GroupGuard> guard(new GroupGuard());
  guard->socket_ = std::move(ours);
  guard->pid_ = pid;
  return guard;
}

GroupGuard::~GroupGuard() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

bool GroupGuard::WatchSurely(pid_t group) {
  if (Watch(fd(), group)) return true;
  constexpr int kPatienceMs = 200;
  pollfd room{.fd = fd(), .events = POLLOUT, .revents = 0};
  return ::poll(&room, 1, kPatienceMs) > 0 && Watch(fd(), group);
}

bool GroupGuard::Alive() {
  if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) != 0) pid_ = -1;
  return pid_ > 0;
}

}  // namespace millrace::worker
