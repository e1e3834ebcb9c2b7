// How late the machine lets this process go on: a thread sleeps for short turns and adds up by how much each was longer. A test
// that asserts a promised time allows for that much more, and for no constant. Header only.
#pragma once

#include <atomic>
#include <chrono>
#include <stop_token>
#include <thread>

#include "common/base/clock.h"

namespace millrace::testing {

// Thread-safe.
class Lateness {
 public:
  Lateness() : thread_([this](const std::stop_token& stop) { Run(stop); }) {}

  // In all, since it was made: take the difference of two looks.
  Millis so_far() const { return std::chrono::ceil<Millis>(Micros{late_us_}); }

 private:
  static constexpr Micros kTurn{50'000};
  void Run(const std::stop_token& stop) {
    const SystemClock clock;
    while (!stop.stop_requested()) {
      const MonoTime asleep = clock.Now();
      std::this_thread::sleep_for(kTurn);
      late_us_ += Micros{clock.Now() - asleep - kTurn}.count();
    }
  }

  std::atomic<std::int64_t> late_us_{0};
  std::jthread thread_;  // last: it uses the rest
};

}  // namespace millrace::testing
