#include "client/bench/processes.h"

#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>

namespace millrace::bench {
namespace {

constexpr Millis kStopTimeout{5000};

std::atomic<bool> interrupted{false};

// A process may end between the opening and the reading of what it has in /proc: then this is as much as was read. (An
// istreambuf_iterator throws.)
std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

struct Stat {
  pid_t parent = 0;
  double cpu_s = 0;
};

std::optional<Stat> ReadStat(pid_t pid) {
  const std::string text = ReadFile("/proc/" + std::to_string(pid) + "/stat");
  const auto at = text.rfind(')');
  if (at == std::string::npos) return std::nullopt;
  std::istringstream rest(text.substr(at + 2));
  std::string state, skip;
  Stat stat;
  double user = 0, system = 0, child_user = 0, child_system = 0;
  rest >> state >> stat.parent;
  for (int i = 0; i < 9; ++i) rest >> skip;
  rest >> user >> system >> child_user >> child_system;
  stat.cpu_s = (user + system + child_user + child_system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return stat;
}

std::int64_t KilobytesOf(const std::string& text, std::string_view key) {
  const auto at = text.find(key);
  return at == std::string::npos ? 0 : std::atoll(text.c_str() + at + key.size()) * 1024;
}

std::map<pid_t, Stat> AllProcesses() {
  std::map<pid_t, Stat> all;
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ec)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto pid = static_cast<pid_t>(std::atol(name.c_str()));
    if (const auto stat = ReadStat(pid)) all.emplace(pid, *stat);
  }
  return all;
}

// In the child, between fork and exec: only what is safe there.
[[noreturn]] void Exec(const ProcessOptions& options, char* const* argv, char* const* envp, uid_t uid, gid_t gid,
                       pid_t parent) {
  const int log = ::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (log >= 0) ::dup2(log, 1), ::dup2(log, 2);
  const int out = options.out.empty() ? -1 : ::open(options.out.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (out >= 0) ::dup2(out, 1);
  if (null >= 0) ::dup2(null, 0);
  sigset_t none;
  sigemptyset(&none);
  ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::setpgid(0, 0);  // Ctrl-C is for us: we stop what we started, in order
  if (uid != 0 && (::setgid(gid) != 0 || ::setuid(uid) != 0)) ::_exit(126);
  ::prctl(PR_SET_PDEATHSIG, options.stop_signal);
  if (::getppid() != parent) ::_exit(126);
  ::execve(argv[0], argv, envp);
  ::_exit(127);
}

}  // namespace

Result<Process> Process::Start(const ProcessOptions& options) {
  uid_t uid = 0;
  gid_t gid = 0;
  if (!options.user.empty()) {
    const passwd* user = ::getpwnam(options.user.c_str());
    if (user == nullptr) return Fail(ErrorCode::kNotFound, "there is no user '{}'", options.user);
    uid = user->pw_uid;
    gid = user->pw_gid;
  }
  std::vector<std::string> words = options.argv, environment;
  for (char** e = environ; *e != nullptr; ++e)
    if (!std::string_view(*e).starts_with("MILLRACE_")) environment.emplace_back(*e);
  std::vector<char*> argv, envp;
  for (auto& word : words) argv.push_back(word.data());
  for (auto& entry : environment) envp.push_back(entry.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return Fail(ErrorCode::kUnavailable, "cannot start {}: {}", options.argv[0], std::strerror(errno));
  if (pid == 0) Exec(options, argv.data(), envp.data(), uid, gid, parent);
  return Process(pid, options.stop_signal);
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), stop_signal_(other.stop_signal_), code_(other.code_) {}

Process& Process::operator=(Process&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(stop_signal_, other.stop_signal_);
  std::swap(code_, other.code_);
  return *this;
}

Process::~Process() { Stop(); }

bool Process::Running() { return pid_ > 0 && !Wait(Millis{0}); }

std::optional<int> Process::Wait(Millis timeout) {
  const SystemClock clock;
  const MonoTime give_up = clock.Now() + timeout;
  while (pid_ > 0 && !code_) {
    int status = 0;
    const pid_t done = ::waitpid(pid_, &status, WNOHANG);
    if (done == pid_) code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (done < 0 && errno != EINTR) code_ = -1;
    if (code_ || clock.Now() >= give_up) break;
    std::this_thread::sleep_for(Millis{2});
  }
  return code_;
}

void Process::Stop() {
  if (pid_ <= 0 || Wait(Millis{0})) return;
  ::kill(pid_, stop_signal_);
  if (!Wait(kStopTimeout)) {
    ::kill(pid_, SIGKILL);
    (void)Wait(kStopTimeout);
  }
}

std::optional<Usage> UsageOf(pid_t pid) {
  const auto all = AllProcesses();
  if (!all.contains(pid)) return std::nullopt;
  Usage usage;
  usage.rss_bytes = KilobytesOf(ReadFile("/proc/" + std::to_string(pid) + "/status"), "VmHWM:");
  std::vector<pid_t> tree{pid};
  for (std::size_t i = 0; i < tree.size(); ++i) {
    const Stat& stat = all.at(tree[i]);
    usage.cpu_s += stat.cpu_s;
    usage.pss_bytes += KilobytesOf(ReadFile("/proc/" + std::to_string(tree[i]) + "/smaps_rollup"), "\nPss:");
    for (const auto& [child, theirs] : all)
      if (theirs.parent == tree[i]) tree.push_back(child);
  }
  return usage;
}

Usage OwnUsage() {
  return {.cpu_s = 0,
          .rss_bytes = KilobytesOf(ReadFile("/proc/self/status"), "VmHWM:"),
          .pss_bytes = KilobytesOf(ReadFile("/proc/self/smaps_rollup"), "\nPss:")};
}

std::vector<double> CoreBusySeconds() {
  std::vector<double> busy;
  std::istringstream lines(ReadFile("/proc/stat"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("cpu") || line.size() < 4 || line[3] < '0' || line[3] > '9') continue;
    std::istringstream words(line);
    std::string name;
    double user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0;
    words >> name >> user >> nice >> system >> idle >> wait >> irq >> soft;
    busy.push_back((user + nice + system + irq + soft) / static_cast<double>(::sysconf(_SC_CLK_TCK)));
  }
  return busy;
}

std::optional<pid_t> ListenerOf(std::uint16_t port) {
  std::string inode;
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::istringstream lines(ReadFile(table));
    std::string line;
    std::getline(lines, line);
    while (inode.empty() && std::getline(lines, line)) {
      std::istringstream words(line);
      std::array<std::string, 10> word;
      for (auto& w : word) words >> w;
      const auto colon = word[1].rfind(':');
      if (word[3] == "0A" && colon != std::string::npos && std::strtoul(word[1].c_str() + colon + 1, nullptr, 16) == port)
        inode = "socket:[" + word[9] + "]";
    }
  }
  if (inode.empty()) return std::nullopt;
  for (const auto& [pid, stat] : AllProcesses()) {
    std::error_code ec;
    std::filesystem::directory_iterator fd("/proc/" + std::to_string(pid) + "/fd", ec);
    for (; !ec && fd != std::filesystem::directory_iterator(); fd.increment(ec)) {
      std::error_code closed;
      if (std::filesystem::read_symlink(fd->path(), closed) == inode) return pid;
    }
  }
  return std::nullopt;
}

void CatchStopSignals() {
  struct sigaction action{};
  action.sa_handler = [](int) { interrupted = true; };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return interrupted; }

std::string OwnProgram() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  return n <= 0 ? "millrace" : std::string(path, static_cast<std::size_t>(n));
}

}  // namespace millrace::bench
