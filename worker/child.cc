#include "worker/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "worker/group_guard.h"

namespace millrace::worker {
namespace {

constexpr int kFramesFd = 3, kStatusFd = 4;  // in the child
constexpr int kFirstOwnFd = 16;              // ours stay above the child's, so that dup2 never hits one of them

struct Pipe {
  Fd read, write;
};

Result<Fd> Raise(int fd, std::string_view what) {
  const int raised = ::fcntl(fd, F_DUPFD_CLOEXEC, kFirstOwnFd);
  const int error = errno;
  ::close(fd);
  if (raised < 0) return Fail(ErrorCode::kUnavailable, "{}: {}", what, std::strerror(error));
  return Fd{raised};
}

Result<Pipe> MakePipe() {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return Fail(ErrorCode::kUnavailable, "pipe: {}", std::strerror(errno));
  auto read = Raise(fds[0], "pipe");
  auto write = Raise(fds[1], "pipe");
  if (!read) return std::unexpected(read.error());
  if (!write) return std::unexpected(write.error());
  return Pipe{std::move(*read), std::move(*write)};
}

void SetNonBlocking(const Fd& fd) {
  if (fd) ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

// As execvp would find it, but with the child's PATH; what does not exist comes back as it is, and exec names the error.
std::string FindProgram(const ChildOptions& options) {
  const std::string& name = options.argv.front();
  if (name.find('/') != std::string::npos) return name;
  std::string_view path = EnvValue(options.env, "PATH");
  while (!path.empty()) {
    const auto colon = path.find(':');
    const std::string_view dir = path.substr(0, colon);
    std::string candidate = (dir.empty() ? std::string(".") : std::string(dir)) + "/" + name;
    struct stat info{};
    if (::stat(candidate.c_str(), &info) == 0 && S_ISREG(info.st_mode) && ::access(candidate.c_str(), X_OK) == 0)
      return candidate;
    path = colon == std::string_view::npos ? std::string_view{} : path.substr(colon + 1);
  }
  return "./" + name;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Everything the child needs between fork and exec, prepared before: there it may only make system calls.
struct Plan {
  const char* program;
  char* const* argv;
  char* const* env;
  const char* cwd;  // or null
  int in, out, frames, status;
  int nice;
  int guard;
  pid_t parent;
};

struct SpawnError {
  int error;
  int step;  // 0 setup, 1 chdir, 2 exec
};

[[noreturn]] void Report(int step) {
  const SpawnError failure{errno, step};
  [[maybe_unused]] const auto ignored = ::write(kStatusFd, &failure, sizeof failure);
  ::_exit(127);
}

[[noreturn]] void RunInChild(const Plan& plan) {
  ::setpgid(0, 0);
  GroupGuard::Watch(plan.guard, ::getpid());  // by the child: there is no moment in which it could start somebody unguarded
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(127);  // it died before the prctl
  for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD, SIGUSR1, SIGUSR2}) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.nice != 0) ::setpriority(PRIO_PROCESS, 0, ::getpriority(PRIO_PROCESS, 0) + plan.nice);
  if (::dup3(plan.status, kStatusFd, O_CLOEXEC) < 0) ::_exit(127);
  if (::dup2(plan.in, STDIN_FILENO) < 0 || ::dup2(plan.out, STDOUT_FILENO) < 0 || ::dup2(plan.out, STDERR_FILENO) < 0)
    Report(0);
  if (plan.frames >= 0) {
    if (::dup2(plan.frames, kFramesFd) < 0) Report(0);
  } else {
    ::close(kFramesFd);
  }
  ::syscall(SYS_close_range, static_cast<unsigned>(kStatusFd + 1), UINT_MAX, 0u);
  if (plan.cwd && ::chdir(plan.cwd) != 0) Report(1);
  ::execve(plan.program, plan.argv, plan.env);
  Report(2);
}

Error FromSpawn(const SpawnError& failure, const ChildOptions& options) {
  const std::string text = std::strerror(failure.error);
  ErrorCode code = ErrorCode::kRejected;
  if (failure.error == ENOENT || failure.error == ENOTDIR) code = ErrorCode::kNotFound;
  if (failure.error == ENOMEM || failure.error == EAGAIN || failure.error == EMFILE) code = ErrorCode::kUnavailable;
  if (failure.step == 1) return {code, fmt::format("cannot enter folder '{}': {}", options.cwd, text)};
  return {code, fmt::format("cannot start '{}': {}", options.argv.front(), text)};
}

}  // namespace

std::string_view EnvValue(const std::vector<std::string>& env, std::string_view name) {
  for (const std::string_view entry : env) {
    if (entry.size() > name.size() && entry.starts_with(name) && entry[name.size()] == '=')
      return entry.substr(name.size() + 1);
  }
  return {};
}

Result<ChildPipes> MakeChildPipes() {
  MILLRACE_TRY_ASSIGN(Pipe input, MakePipe());
  MILLRACE_TRY_ASSIGN(Pipe frames, MakePipe());
  MILLRACE_TRY_ASSIGN(Pipe output, MakePipe());
  for (const Fd* ours : {&input.write, &frames.read, &output.read}) SetNonBlocking(*ours);
  return ChildPipes{std::move(input.write), std::move(frames.read),  std::move(output.read),
                    std::move(input.read),  std::move(frames.write), std::move(output.write)};
}

namespace {

// Without frames: /dev/null or what the caller wants as stdin, and a pipe for the output.
Result<ChildPipes> MakePlainPipes(int stdin_fd) {
  ChildPipes pipes;
  MILLRACE_TRY_ASSIGN(Pipe output, MakePipe());
  const int in = stdin_fd >= 0 ? ::fcntl(stdin_fd, F_DUPFD_CLOEXEC, kFirstOwnFd) : ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (in < 0) return Fail(ErrorCode::kUnavailable, "stdin of a child: {}", std::strerror(errno));
  MILLRACE_TRY_ASSIGN(pipes.child_input, Raise(in, "stdin of a child"));
  pipes.output = std::move(output.read);
  pipes.child_output = std::move(output.write);
  SetNonBlocking(pipes.output);
  return pipes;
}

}  // namespace

Result<std::unique_ptr<Child>> Child::Spawn(const ChildOptions& options) {
  if (options.argv.empty() || options.argv.front().empty())
    return Fail(ErrorCode::kNotFound, "cannot start a command without a program");
  MILLRACE_TRY_ASSIGN(ChildPipes pipes, options.frames ? MakeChildPipes() : MakePlainPipes(options.stdin_fd));
  MILLRACE_TRY_ASSIGN(Pipe status, MakePipe());
  const std::string program = FindProgram(options);
  const std::vector<char*> argv = Pointers(options.argv), env = Pointers(options.env);
  const Plan plan{.program = program.c_str(),
                  .argv = argv.data(),
                  .env = env.data(),
                  .cwd = options.cwd.empty() ? nullptr : options.cwd.c_str(),
                  .in = pipes.child_input.get(),
                  .out = pipes.child_output.get(),
                  .frames = pipes.child_frames.get(),
                  .status = status.write.get(),
                  .nice = options.nice,
                  .guard = options.guard_fd,
                  .parent = ::getpid()};
  const pid_t pid = ::fork();
  if (pid < 0) return Fail(ErrorCode::kUnavailable, "fork: {}", std::strerror(errno));
  if (pid == 0) RunInChild(plan);

  std::unique_ptr<Child> child(new Child());
  child->pid_ = pid;
  ::setpgid(pid, pid);  // both sides do it: whoever comes first, the group exists before anyone signals it
  status.write.Close();
  SpawnError failure{};
  ssize_t got = 0;
  do got = ::read(status.read.get(), &failure, sizeof failure);
  while (got < 0 && errno == EINTR);
  const bool failed = got == static_cast<ssize_t>(sizeof failure);
  Result<void> watched = failed ? Result<void>(std::unexpected(FromSpawn(failure, options))) : child->Watch();
  if (!watched) {
    GroupGuard::Forget(options.guard_fd, pid);
    return std::unexpected(std::move(watched.error()));
  }
  child->TakePipes(std::move(pipes));
  return child;
}

Result<std::unique_ptr<Child>> Child::Adopt(pid_t pid, ChildPipes pipes) {
  std::unique_ptr<Child> child(new Child());
  child->pid_ = pid;
  // It has not executed a program since it was made by a process of ours, so the kernel lets us. Failing that it is killed
  // alone: a group of its number does not exist.
  if (::setpgid(pid, pid) != 0) {
    const int error = errno;
    ::kill(pid, SIGKILL);
    return Fail(ErrorCode::kUnavailable, "setpgid: {}", std::strerror(error));
  }
  MILLRACE_TRY(child->Watch());
  child->TakePipes(std::move(pipes));
  return child;
}

Result<void> Child::Watch() {
  const auto pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0u));
  if (pidfd < 0) return Fail(ErrorCode::kUnavailable, "pidfd_open: {}", std::strerror(errno));
  pidfd_ = Fd{pidfd};  // close-on-exec by definition
  return {};
}

void Child::TakePipes(ChildPipes pipes) {
  input_ = std::move(pipes.input);
  frames_ = std::move(pipes.frames);
  output_ = std::move(pipes.output);
}

Child::~Child() {
  if (pid_ < 0 || reaped_) return;
  ::kill(-pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void Child::SignalGroup(int signal) {
  if (!reaped_) ::kill(-pid_, signal);
}

std::optional<ExitStatus> Child::TryReap() {
  siginfo_t info{};
  // Until it is reaped, the process keeps its id and so its group's: only now is the group safe to signal.
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
    return std::nullopt;
  ::kill(-pid_, SIGKILL);
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  reaped_ = true;
  ExitStatus exit;
  if (WIFEXITED(status)) exit.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) exit.signal = WTERMSIG(status);
  return exit;
}

bool Child::GroupGone() const {
  if (::kill(-pid_, 0) != 0) return errno == ESRCH;
  // Dead members whose new parent has not reaped them still count for kill, and some containers' init never does.
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.front() < '0' || name.front() > '9') continue;
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    if (!std::getline(file, stat)) continue;  // it ended meanwhile
    const auto paren = stat.rfind(')');       // "pid (name) state ppid pgrp ...": the name may hold anything
    if (paren == std::string::npos) continue;
    char state = 0;
    int parent = 0, group = 0;
    std::istringstream(stat.substr(paren + 1)) >> state >> parent >> group;
    if (group == pid_ && state != 'Z' && state != 'X') return false;
  }
  return true;
}

}  // namespace millrace::worker
