// The worker's side of a nursery: a `millrace-stage --nursery`, which is warm and makes children of this process by forking
// itself (common/model/nursery_wire.h). Nothing here waits for it, except the destructor, for processes it has killed. Not
// thread-safe: belongs to the worker's loop thread, which must outlive it (child.h).
#pragma once

#include <signal.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "worker/child.h"
#include "worker/poller.h"
#include "worker/process.h"

namespace millrace::worker {

class NurseryLink {
 public:
  struct Options {
    std::string program;
    std::vector<std::string> env;
    int nice = 0;
    Millis patience{1000};        // for an answer of a warm nursery
    Millis start_patience{3000};  // for the first one, and for being warm
  };
  // Errors as Child::Spawn.
  static Result<std::unique_ptr<NurseryLink>> Start(Poller& poller, Options options, MonoTime now);
  // Kills the nursery and the children that nobody has heard of (they have no orders), and reaps them. Children that were given
  // away go on. No callback is called.
  ~NurseryLink();
  NurseryLink(const NurseryLink&) = delete;
  NurseryLink& operator=(const NurseryLink&) = delete;

  // Called once per ask, from Poller::Dispatch or GiveUp: the child, or why there is none.
  using Born = std::function<void(Result<std::unique_ptr<Child>>)>;
  // Asks for a child. kUnavailable: the nursery is dead or does not read; `born` is not called then.
  Result<void> Ask(MonoTime now, Born born);
  bool warm() const { return warm_; }
  std::size_t asked() const { return asks_.size(); }  // without an answer yet
  std::uint64_t births() const { return births_; }    // so far
  pid_t pid() const { return process_->pid(); }

  // Why it is of no use any more; empty: it is. Silence is noticed at Deadline(), the rest at once.
  std::string Trouble(MonoTime now) const;
  MonoTime Deadline() const;  // MonoTime::max() = nothing is awaited
  // Begins the end of it and of the children that nobody has heard of; the destructor then waits for less. Call GiveUp next.
  void Kill() { process_->SignalGroup(SIGKILL); }
  // Answers every ask that has no answer with an error. Call it before the end of a nursery in trouble.
  void GiveUp();

 private:
  struct Asked {
    std::uint64_t id;
    MonoTime deadline;
    ChildPipes pipes;
    Born born;
  };
  NurseryLink(Poller& poller, Options options, MonoTime now) : poller_(poller), options_(std::move(options)), started_(now) {}
  void ReadAnswers();
  void Answered(std::uint64_t id, std::int64_t pid);

  Poller& poller_;
  Options options_;
  MonoTime started_;
  std::unique_ptr<Process> process_;
  Fd socket_;
  std::vector<Asked> asks_;  // oldest first
  std::uint64_t next_id_ = 1, births_ = 0;
  bool warm_ = false, unanswered_ = false;
  std::string broken_;
};

}  // namespace millrace::worker
