// How long the machine kept a process waiting that had asked for nothing but to sleep: what a limit on real processes allows
// for beside its promise. Header only.
#pragma once

#include <algorithm>
#include <chrono>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/clock.h"

namespace millrace::testing {

// Thread-safe. Measures from its making on, in a thread of its own.
class Lateness {
 public:
  Lateness() : thread_([this](const std::stop_token& stop) { Run(stop); }) {}

  // The sum of it from `from` to `to`.
  Millis Between(MonoTime from, MonoTime to) const {
    const std::scoped_lock lock(mutex_);
    Micros sum{0};
    for (const auto& [at, late] : turns_)
      if (at >= from && at - late <= to) sum += late;
    return std::chrono::ceil<Millis>(sum);
  }
  Millis Since(MonoTime from) const { return Between(from, clock_.Now()); }
  // In all, since it was made: take the difference of two looks.
  Millis so_far() const { return Between(MonoTime::min(), MonoTime::max()); }

 private:
  static constexpr Millis kTurn{20};
  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      const MonoTime asleep = clock_.Now();
      std::this_thread::sleep_for(kTurn);
      const MonoTime awake = clock_.Now();
      const std::scoped_lock lock(mutex_);
      turns_.emplace_back(awake, std::max(Micros{0}, std::chrono::duration_cast<Micros>(awake - asleep - kTurn)));
    }
  }

  SystemClock clock_;
  mutable std::mutex mutex_;
  std::vector<std::pair<MonoTime, Micros>> turns_;  // when it ended, and by how much too late
  std::jthread thread_;                             // last: it uses the rest
};

}  // namespace millrace::testing
