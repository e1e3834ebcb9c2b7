// millrace-stage processes for one stage each: forked from a warm nursery, a few of them ahead of time; started from nothing
// when there is no nursery. Not thread-safe: belongs to the worker's loop thread, which must outlive the processes (see
// child.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "worker/nursery_link.h"
#include "worker/poller.h"
#include "worker/process.h"

namespace millrace::worker {

class ProcessPool {
 public:
  struct Options {
    std::string program;           // path of millrace-stage
    std::vector<std::string> env;  // all of its environment
    std::size_t warm = 1;          // children kept ready; 0: no nursery, every process is started from nothing
    int nice = 5;                  // jobs yield to heartbeats
    Millis refill_delay{50};       // between the first Take from a full pool and the asks for new ones: not beside a short run
    Millis retry_base{100};        // wait after a nursery or child that ended by itself; doubles up to retry_cap
    Millis retry_cap{5000};
    // Children share the nursery's address layout and stack canary: after this many, a new one takes its place when none is
    // awaited.
    std::uint64_t births_max = 500;
    Millis patience{1000};        // see NurseryLink
    Millis start_patience{3000};  // see NurseryLink
  };
  ProcessPool(Poller& poller, const Clock& clock, Options options)
      : poller_(poller), clock_(clock), options_(std::move(options)) {}

  // A process for one stage: ready if there is one, else one that is on its way, else a new one, forked if there is a nursery.
  // It may be written to at once. A nursery that does not come up with it is replaced by a start from nothing: the caller sees
  // only time. Never waits for a nursery. Errors as Child::Spawn.
  Result<std::unique_ptr<Process>> Take();
  // From now on no more children are kept ready than `stages`, of which each Take is one.
  void Expect(std::uint64_t stages) { expected_ = stages; }
  // For who will take no more: ends nursery and spare children without waiting for their end, and starts no new ones. A Take
  // that comes all the same starts its process from nothing.
  void Close();
  // Looks after the nursery, and asks it for what is missing. Call in every turn of the loop, after Poller::Dispatch.
  void Tick(MonoTime now);
  MonoTime NextTick() const;  // MonoTime{} = at once
  std::size_t ready() const;
  pid_t nursery_pid() const { return nursery_ ? nursery_->pid() : -1; }  // -1: none

 private:
  struct Slot {
    std::unique_ptr<Process> process;
    bool ready = false;
  };
  Result<std::unique_ptr<Process>> StartCold();
  Result<std::unique_ptr<Process>> AskNursery(MonoTime now);
  void Born(const std::weak_ptr<Process*>& expected, Result<std::unique_ptr<Child>> child);
  std::size_t wanted() const;  // spare children
  void LookAfterSpares(MonoTime now);
  void LookAfterNursery(MonoTime now);
  void Failed(MonoTime now, std::string_view why);

  Poller& poller_;
  const Clock& clock_;
  Options options_;
  std::vector<Slot> slots_;  // oldest first
  std::unique_ptr<NurseryLink> nursery_;
  std::uint64_t expected_ = UINT64_MAX;
  bool closed_ = false;
  bool taken_ = false;                  // since the last Tick
  std::optional<MonoTime> hold_until_;  // set by the first Take from a full pool, until it is full again
  bool sick_ = false;                   // a child of it ended by itself
  int failures_ = 0;                    // in a row
  MonoTime not_before_{};
};

}  // namespace millrace::worker
