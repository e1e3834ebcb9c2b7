// The steady part of a measurement: the queue is kept at one depth, and what so many jobs took is read while nothing begins or
// ends: neither the filling of the queue, nor the start of the handlers, nor the last jobs count.
#pragma once

#include <cstdint>

#include "client/bench/cost_meter.h"
#include "client/bench/handler_fleet.h"
#include "common/base/clock.h"

namespace millrace::bench {

struct SteadyOptions {
  std::uint64_t depth = 1;   // jobs that wait, beside those that the handlers may hold
  std::uint64_t warmup = 0;  // jobs that end before the window, at least
  std::uint64_t jobs = 1;    // jobs that end in the window: so many but for those of one batch, at either end
};

struct SteadyResult {
  bool complete = false;                          // the window ended; otherwise the rest says nothing
  std::uint64_t jobs = 0;                         // outcomes of the window
  double executed_per_s = 0, recorded_per_s = 0;  // handler calls and durable outcomes of the window, by its length
  double waiting_mean = 0;                        // over the time of the window: accepted, and no handler called
  std::uint64_t waiting_min = 0, waiting_max = 0;
  Costs costs;  // of the window alone, per outcome
};

// For one thread, which keeps the queue filled: it looks at least once a millisecond, until the window has ended.
class SteadyWindow {
 public:
  // `held`: jobs that all handlers together may hold. The references live as long as this.
  SteadyWindow(const SteadyOptions& options, std::uint64_t held, const HandlerFleet& fleet, const Installation& at,
               const Clock& clock)
      : options_(options), held_(held), fleet_(fleet), meter_(at), clock_(clock) {}

  // How many jobs the whole takes: those of the window and its warm-up, and those that are there when it ends.
  static std::uint64_t Total(const SteadyOptions& options, std::uint64_t held) {
    return options.depth + held + options.warmup + options.jobs;
  }

  // Begins the window, counts it, ends it: each at the first look at which enough outcomes have come, the end at a later one
  // than the begin. `accepted`: jobs that the broker has accepted so far. Returns how many may have been sent by now, so that
  // the queue is as deep as it was told to be: each job that has ended makes room for one.
  std::uint64_t Look(std::uint64_t accepted);

  const SteadyResult& result() const { return result_; }

 private:
  struct Mark {
    MonoTime at{};
    std::uint64_t executed = 0, recorded = 0;
  };
  void End(const Mark& now);

  const SteadyOptions options_;
  const std::uint64_t held_;
  const HandlerFleet& fleet_;
  CostMeter meter_;
  const Clock& clock_;
  bool begun_ = false;
  Mark begin_, last_;
  double waiting_time_ = 0;  // jobs x microseconds
  SteadyResult result_;
};

}  // namespace millrace::bench
