// Time comes in through a Clock. `steady_clock::now()` and `system_clock::now()` appear in clock.cc and nowhere else.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace millrace {

using namespace std::chrono_literals;
using Micros = std::chrono::microseconds;
using Millis = std::chrono::milliseconds;

// Monotonic: leases, timeouts, backoff. Never stored, never sent.
using MonoTime = std::chrono::time_point<std::chrono::steady_clock, Micros>;
// UTC, microseconds: rows, logs, slots. What is stored and sent as `<name>_us` (int64).
using WallTime = std::chrono::time_point<std::chrono::system_clock, Micros>;

constexpr std::int64_t ToUnixMicros(WallTime t) { return t.time_since_epoch().count(); }
constexpr WallTime FromUnixMicros(std::int64_t us) { return WallTime{Micros{us}}; }

std::string ToRfc3339(WallTime t);                  // "2026-11-21T04:05:06.123456Z" (fraction omitted when zero)
Result<WallTime> ParseRfc3339(std::string_view s);  // with 'Z' or a numeric offset; kInvalidArgument names the text

class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;
  virtual WallTime WallNow() const = 0;
};

class SystemClock final : public Clock {  // thread-safe
 public:
  MonoTime Now() const override;
  WallTime WallNow() const override;
};

// Moves only when told to. Thread-safe.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(WallTime start = FromUnixMicros(1'700'000'000'000'000)) : wall_us_(ToUnixMicros(start)) {}
  MonoTime Now() const override { return MonoTime{Micros{mono_us_.load()}}; }
  WallTime WallNow() const override { return FromUnixMicros(wall_us_.load()); }
  void Advance(Micros d) {
    mono_us_ += d.count();
    wall_us_ += d.count();
  }
  void StepWall(Micros d) { wall_us_ += d.count(); }  // an NTP step: the monotonic clock does not notice

 private:
  std::atomic<std::int64_t> mono_us_{1'000'000};
  std::atomic<std::int64_t> wall_us_;
};

}  // namespace millrace
