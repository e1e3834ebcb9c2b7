#include "worker/stage/nursery.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "common/model/nursery_wire.h"

namespace millrace {
namespace {

constexpr int kSocketFdMin = 16;  // the socket stays above everything a child uses
constexpr int kFramesFd = 3;

using AskedFds = std::array<int, kNurseryFds>;

void CloseAll(const AskedFds& fds) {
  for (const int fd : fds) ::close(fd);
}

// The number of links of the folder of threads is two more than their number: one call, no listing.
Result<void> RequireOneThread() {
  struct stat info{};
  if (::stat("/proc/self/task", &info) != 0)
    return Fail(ErrorCode::kUnsupported, "nursery: cannot count threads: /proc/self/task: {}", std::strerror(errno));
  if (info.st_nlink != 3)
    return Fail(ErrorCode::kUnsupported, "nursery: {} threads run; a process is only forked while it has one",
                info.st_nlink - 2);
  return {};
}

// fork() for a child of our parent. The C library's own cannot do that; what it does besides is for processes with several
// threads, except for the two things below: the thread's id, which the kernel writes, and the list of robust mutexes.
pid_t ForkSibling(pid_t* tid_address) {
  void* robust = nullptr;
  std::size_t robust_size = 0;
  ::syscall(SYS_get_robust_list, 0, &robust, &robust_size);
  constexpr unsigned long kFlags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
  // The kernel's order of the last two differs between processors; without CLONE_SETTLS it reads only the child's address.
  const long pid = ::syscall(SYS_clone, kFlags, nullptr, nullptr, tid_address, tid_address);
  if (pid == 0 && robust != nullptr) ::syscall(SYS_set_robust_list, robust, robust_size);
  return static_cast<pid_t>(pid);
}

[[noreturn]] void BecomeChild(const AskedFds& fds, pid_t worker, const std::function<void()>& child) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != worker) ::_exit(127);  // it died before the prctl
  if (::dup2(fds[0], STDIN_FILENO) < 0 || ::dup2(fds[1], STDOUT_FILENO) < 0 || ::dup2(fds[1], STDERR_FILENO) < 0 ||
      ::dup2(fds[2], kFramesFd) < 0)
    ::_exit(127);
  ::syscall(SYS_close_range, static_cast<unsigned>(kFramesFd + 1), UINT_MAX, 0u);
  child();
  ::_exit(0);
}

// One ask; false: none waits.
Result<bool> Receive(int socket, NurseryAsk* ask, AskedFds* fds) {
  std::array<char, CMSG_SPACE(sizeof(AskedFds))> control{};
  iovec data{.iov_base = ask, .iov_len = sizeof *ask};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = 0;
  do got = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN) return false;
  if (got <= 0) return Fail(ErrorCode::kUnavailable, "nursery: the worker has gone");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (got != static_cast<ssize_t>(sizeof *ask) || ask->id == 0 || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
      header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(AskedFds)))
    return Fail(ErrorCode::kCorrupt, "nursery: a message that is no ask");
  std::memcpy(fds->data(), CMSG_DATA(header), sizeof(AskedFds));
  return true;
}

Result<void> Send(int socket, const NurseryAnswer& answer) {
  ssize_t sent = 0;
  do sent = ::send(socket, &answer, sizeof answer, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(sizeof answer))
    return Fail(ErrorCode::kUnavailable, "nursery: cannot answer: {}", std::strerror(errno));
  return {};
}

}  // namespace

Result<Nursery> Nursery::Open() {
  int type = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(STDIN_FILENO, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_SEQPACKET)
    return Fail(ErrorCode::kUnsupported, "nursery: stdin is not the socket of a worker");
  pid_t* tid_address = nullptr;
  if (::prctl(PR_GET_TID_ADDRESS, &tid_address) != 0 || tid_address == nullptr)
    return Fail(ErrorCode::kUnsupported, "nursery: the kernel does not tell the thread's id address (PR_GET_TID_ADDRESS): {}",
                std::strerror(errno));
  const int socket = ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, kSocketFdMin);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  // 0 to 3 stay taken: what an ask brings never gets a number that a child wants for something else.
  if (socket < 0 || null < 0 || ::dup2(null, STDIN_FILENO) < 0 || (null != kFramesFd && ::dup2(null, kFramesFd) < 0))
    return Fail(ErrorCode::kUnavailable, "nursery: {}", std::strerror(errno));
  if (null > kFramesFd) ::close(null);
  return Nursery(socket, tid_address, ::getppid());
}

Nursery::Nursery(Nursery&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)), tid_address_(other.tid_address_), worker_(other.worker_) {}
Nursery::~Nursery() {
  if (socket_ >= 0) ::close(socket_);
}

Result<void> Nursery::AnswerWaiting(const std::function<void()>& child) {
  while (true) {
    NurseryAsk ask;
    AskedFds fds{};
    MILLRACE_TRY_ASSIGN(const bool asked, Receive(socket_, &ask, &fds));
    if (!asked) return {};
    if (auto one = RequireOneThread(); !one) {
      CloseAll(fds);
      return one;
    }
    const pid_t pid = ForkSibling(tid_address_);
    const int error = errno;
    if (pid == 0) BecomeChild(fds, worker_, child);
    CloseAll(fds);
    MILLRACE_TRY(Send(socket_, {.id = ask.id, .pid = pid < 0 ? -error : pid}));
  }
}

Result<void> Nursery::SayWarm() { return Send(socket_, {.id = 0, .pid = ::getpid()}); }

Result<void> Nursery::AnswerAll(const std::function<void()>& child) {
  while (true) {
    pollfd waiting{.fd = socket_, .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, -1) < 0 && errno != EINTR)
      return Fail(ErrorCode::kUnavailable, "nursery: poll: {}", std::strerror(errno));
    MILLRACE_TRY(AnswerWaiting(child));
  }
}

}  // namespace millrace
