#include "tests/support/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

extern char** environ;

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;

constexpr Millis kPoll{5};
constexpr std::uint16_t kPortFirst = 20'000, kPortCount = 12'000;  // ip_local_port_range begins at 32768

std::vector<std::string> Environment(const ProcessOptions& options) {
  std::vector<std::string> env;
  for (char** e = environ; *e != nullptr; ++e)
    if (!std::string_view(*e).starts_with("MILLRACE_")) env.emplace_back(*e);
  for (const auto& [name, value] : options.env) env.push_back(name + "=" + value);
  return env;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& s : strings) pointers.push_back(s.data());
  pointers.push_back(nullptr);
  return pointers;
}

struct Relatives {
  pid_t parent = 0, group = 0;
};
// "pid (name) state ppid pgrp ...": the name may hold anything, also a parenthesis. Empty: it has ended.
std::optional<Relatives> RelativesOf(const fs::path& proc) {
  std::ifstream file(proc / "stat");
  std::string stat;
  if (!std::getline(file, stat)) return std::nullopt;
  const auto paren = stat.rfind(')');
  if (paren == std::string::npos) return std::nullopt;
  char state = 0;
  Relatives found;
  std::istringstream(stat.substr(paren + 1)) >> state >> found.parent >> found.group;
  if (state == 'Z' || state == 'X') return std::nullopt;
  return found;
}

// Those of whom `so` holds, in pid order.
template <class So>
std::vector<pid_t> ProcessesThat(So so) {
  std::vector<pid_t> found;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator("/proc", ec)) {
    const std::string text = entry.path().filename();
    if (text.front() >= '0' && text.front() <= '9' && so(entry.path())) found.push_back(std::stoi(text));
  }
  std::ranges::sort(found);
  return found;
}

// The socket's inode, from /proc/net/tcp.
std::optional<std::uint64_t> InodeOfPort(std::uint16_t port) {
  std::ifstream table("/proc/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream in(line);
    std::string slot, local, remote, state, queues, timer, retransmits;
    std::uint64_t uid = 0, timeout = 0, inode = 0;
    in >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
    const auto colon = local.find(':');
    if (colon == std::string::npos || inode == 0) continue;
    if (std::stoul(local.substr(colon + 1), nullptr, 16) == port) return inode;
  }
  return std::nullopt;
}

}  // namespace

Result<TestProcess> TestProcess::Start(const ProcessOptions& options) {
  const std::string log = options.log.empty() ? "/dev/null" : options.log;
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (out < 0) return Fail(ErrorCode::kRejected, "{}: {}", log, std::strerror(errno));
  std::vector<std::string> argv = options.argv, env = Environment(options);
  const std::vector<char*> argv_pointers = Pointers(argv), env_pointers = Pointers(env);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    ::execvpe(argv_pointers[0], argv_pointers.data(), env_pointers.data());
    ::_exit(127);
  }
  ::close(out);
  if (pid < 0) return Fail(ErrorCode::kRejected, "fork: {}", std::strerror(errno));
  TestProcess process;
  process.pid_ = pid;
  return process;
}

TestProcess::TestProcess(TestProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), code_(std::exchange(other.code_, std::nullopt)) {}

TestProcess& TestProcess::operator=(TestProcess&& other) noexcept {
  if (this != &other) {
    KillAndReap();
    pid_ = std::exchange(other.pid_, -1);
    code_ = std::exchange(other.code_, std::nullopt);
  }
  return *this;
}

TestProcess::~TestProcess() { KillAndReap(); }

bool TestProcess::Running() { return pid_ > 0 && !Wait(Millis{0}); }

bool TestProcess::Blocks(int signal) const {
  std::error_code gone;
  // A thread that waits for a signal does not show it as blocked.
  for (const auto& task : fs::directory_iterator(fmt::format("/proc/{}/task", pid_), gone)) {
    std::ifstream status(task.path() / "status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("SigBlk:") &&
          (std::stoull(line.substr(7), nullptr, 16) >> static_cast<unsigned>(signal - 1) & 1U) != 0)
        return true;
  }
  return false;
}

void TestProcess::Signal(int signal) {
  if (Running()) ::kill(pid_, signal);
}

std::optional<int> TestProcess::Wait(Millis timeout) {
  if (pid_ <= 0 || code_) return code_;
  const SystemClock clock;
  const MonoTime until = clock.Now() + timeout;
  while (true) {
    int status = 0;
    const pid_t got = ::waitpid(pid_, &status, WNOHANG);
    if (got == pid_) {
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      return code_;
    }
    if (clock.Now() >= until) return std::nullopt;
    SleepFor(kPoll);
  }
}

void TestProcess::KillAndReap() {
  if (pid_ <= 0 || code_) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  code_ = 128 + SIGKILL;
}

Result<int> RunToEnd(const ProcessOptions& options, Millis timeout) {
  MILLRACE_TRY_ASSIGN(TestProcess process, TestProcess::Start(options));
  const auto code = process.Wait(timeout);
  if (!code) return Fail(ErrorCode::kTimedOut, "{} did not end within {} ms", options.argv.front(), timeout.count());
  return *code;
}

Result<std::uint16_t> FreePort(std::uint64_t salt) {
  for (std::uint64_t i = 0; i < kPortCount; ++i) {
    const auto port = static_cast<std::uint16_t>(kPortFirst + (salt + i) % kPortCount);
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool free = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    if (free) return port;
  }
  return Fail(ErrorCode::kLimit, "no free port");
}

std::vector<pid_t> ChildrenOf(pid_t parent, std::string_view name) {
  return ProcessesThat([&](const fs::path& proc) {
    const auto relatives = RelativesOf(proc);
    if (!relatives || relatives->parent != parent) return false;
    std::ifstream file(proc / "comm");
    std::string comm;
    std::getline(file, comm);
    return comm == name.substr(0, 15);
  });
}

std::vector<pid_t> AliveInGroup(pid_t group) {
  return ProcessesThat([&](const fs::path& proc) {
    const auto relatives = RelativesOf(proc);
    return relatives && relatives->group == group;
  });
}

std::optional<pid_t> HolderOfPort(std::uint16_t port, const std::vector<pid_t>& candidates) {
  const auto inode = InodeOfPort(port);
  if (!inode) return std::nullopt;
  const std::string wanted = fmt::format("socket:[{}]", *inode);
  for (const pid_t pid : candidates) {
    std::error_code ec;
    for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), ec)) {
      const fs::path target = fs::read_symlink(entry.path(), ec);
      if (!ec && target == wanted) return pid;
    }
  }
  return std::nullopt;
}

Result<std::string> PostgresBin() {
  std::string best;
  std::error_code ec;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ec)) {
    const std::string bin = version.path() / "bin";
    if (fs::exists(bin + "/postgres") && bin > best) best = bin;
  }
  if (best.empty()) return Fail(ErrorCode::kNotFound, "no PostgreSQL server. Run: ops/setup");
  return best;
}

// PostgreSQL refuses to run as root.
std::vector<std::string> AsPostgres(std::vector<std::string> argv) {
  if (::geteuid() != 0) return argv;
  std::vector<std::string> out{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "KILL",
                               "--"};
  out.insert(out.end(), argv.begin(), argv.end());
  return out;
}

void SleepFor(Millis time) { std::this_thread::sleep_for(time); }

}  // namespace millrace::testing
