// Pre-started millrace-stage processes. Each serves one stage; its replacement is started off the critical path (in Tick).
// Not thread-safe: belongs to the worker's loop thread, which must outlive the processes (see child.h).
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "worker/poller.h"
#include "worker/process.h"

namespace millrace::worker {

class ProcessPool {
 public:
  struct Options {
    std::string program;           // path of millrace-stage
    std::vector<std::string> env;  // all of its environment
    std::size_t warm = 1;          // processes kept ready
    int nice = 5;                  // jobs yield to heartbeats
    Millis replace_delay{
        150};                // a used one is replaced no sooner: not while a short run goes on. Who finds none waits for none
    Millis retry_base{100};  // wait after a process that could not start; doubles up to retry_cap
    Millis retry_cap{5000};
  };
  ProcessPool(Poller& poller, Options options) : poller_(poller), options_(std::move(options)) {}

  // A process for one stage: ready if there is one, else the one that has been starting longest, else a new one. It may be
  // written to at once. Errors as Child::Spawn.
  Result<std::unique_ptr<Process>> Take();
  // Notes which processes became ready or died, and starts at most one more. Call in every turn of the loop.
  void Tick(MonoTime now);
  MonoTime NextTick() const;  // MonoTime{} = at once
  std::size_t ready() const;

 private:
  struct Slot {
    std::unique_ptr<Process> process;
    bool ready = false;
  };
  Result<std::unique_ptr<Process>> StartOne();
  void Failed(MonoTime now, std::string_view why);

  Poller& poller_;
  Options options_;
  std::vector<Slot> slots_;             // oldest first
  bool taken_ = false;                  // since the last Tick
  std::optional<MonoTime> hold_until_;  // set by the first Take from a full pool, until it is full again
  int failures_ = 0;                    // in a row
  MonoTime not_before_{};
};

}  // namespace millrace::worker
