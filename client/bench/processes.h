// Processes that a benchmark starts, and what any process of this host costs, read from /proc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::bench {

struct ProcessOptions {
  std::vector<std::string> argv;  // argv[0] is a path
  std::string log;                // stdout and stderr are appended here
  std::string out;                // not empty: stdout goes here instead
  int stop_signal = 15;           // how it is asked to end; also sent when this process dies
  std::string user;               // runs as this user; empty: as ours
};

// One child of this process. The environment is ours without MILLRACE_ variables. Started by a thread that outlives it.
class Process {
 public:
  // kUnavailable: it cannot be forked; a program that does not exist ends at once with code 127.
  static Result<Process> Start(const ProcessOptions& options);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();  // asks it to end, kills it after 5 s, and reaps it

  pid_t pid() const { return pid_; }
  bool Running();
  // Its exit code, or 128 + signal; empty: still running after `timeout`.
  std::optional<int> Wait(Millis timeout);
  void Stop();

 private:
  Process(pid_t pid, int stop_signal) : pid_(pid), stop_signal_(stop_signal) {}
  pid_t pid_ = -1;
  int stop_signal_ = 15;
  std::optional<int> code_;
};

// What a process and its descendants have used so far.
struct Usage {
  double cpu_s = 0;            // user and system, ended children included
  std::int64_t rss_bytes = 0;  // largest resident size that the process itself ever had
  std::int64_t pss_bytes = 0;  // of all of them now; shared pages are counted once
};
// Empty: no such process, or it may not be looked at.
std::optional<Usage> UsageOf(pid_t pid);
// Memory of this process alone; cpu_s is not filled in.
Usage OwnUsage();
// Seconds that each processor was busy since boot.
std::vector<double> CoreBusySeconds();
// Who listens on this TCP port of this host; empty: nobody, or it may not be looked at.
std::optional<pid_t> ListenerOf(std::uint16_t port);
// From now on SIGINT and SIGTERM only make Interrupted() true: what was started can be stopped in order.
void CatchStopSignals();
bool Interrupted();
// This executable.
std::string OwnProgram();

}  // namespace millrace::bench
