// Real processes for tests: start, signal by pid, wait, look at their children. Linux only.
//
// Processes are tied to the thread that starts them (PR_SET_PDEATHSIG): start them on the main thread, and none of them
// outlives the test, however it ends.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::testing {

struct ProcessOptions {
  std::vector<std::string> argv;                         // argv[0] is looked up in PATH when it has no slash
  std::vector<std::pair<std::string, std::string>> env;  // on top of this process's own, without its MILLRACE_* variables
  std::string log;                                       // stdout and stderr are appended here; empty: /dev/null
};

// One child of this process. Destroying it kills it (SIGKILL) and reaps it. Not thread-safe.
class TestProcess {
 public:
  TestProcess() = default;
  // kRejected: cannot fork or the log cannot be opened. A program that does not exist ends with code 127.
  static Result<TestProcess> Start(const ProcessOptions& options);
  TestProcess(TestProcess&& other) noexcept;
  TestProcess& operator=(TestProcess&& other) noexcept;
  ~TestProcess();

  pid_t pid() const { return pid_; }  // -1: none
  bool Running();
  // Whether one of its threads keeps `signal` blocked: a program that takes its signals itself has come that far.
  bool Blocks(int signal) const;
  void Signal(int signal);  // nothing happens once it was reaped: the pid may be another process's
  // Its exit code, or 128 + signal; empty: still running after `timeout`.
  std::optional<int> Wait(Millis timeout);
  void KillAndReap();

 private:
  pid_t pid_ = -1;
  std::optional<int> code_;
};

// Runs to the end. kTimedOut: it was killed after `timeout`. Its output is in `options.log`.
Result<int> RunToEnd(const ProcessOptions& options, Millis timeout);

// A port of 127.0.0.1 that nobody listens on, below the range that the kernel gives to outgoing connections, so that it is
// still free when a killed server comes back to it. `salt` chooses where to look first.
Result<std::uint16_t> FreePort(std::uint64_t salt);

// The direct children of `parent` whose program is called `name` (as in /proc/PID/comm), in pid order.
std::vector<pid_t> ChildrenOf(pid_t parent, std::string_view name);

// The processes of the group `group` that have not ended, in pid order.
std::vector<pid_t> AliveInGroup(pid_t group);

// Which of `candidates` holds the IPv4 connection from local port `port`.
std::optional<pid_t> HolderOfPort(std::uint16_t port, const std::vector<pid_t>& candidates);

// The folder of the newest PostgreSQL server's programs. kNotFound: there is none.
Result<std::string> PostgresBin();

// `argv` as the user 'postgres' when this is root: PostgreSQL refuses to run as root.
std::vector<std::string> AsPostgres(std::vector<std::string> argv);

void SleepFor(Millis time);

}  // namespace millrace::testing
