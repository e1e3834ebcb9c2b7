// The clock of one machine of the simulation: the world's time, its wall off by as much as the machine's is.
#pragma once

#include <algorithm>

#include "common/base/clock.h"

namespace millrace::sim {

class NodeClock final : public Clock {
 public:
  explicit NodeClock(const Clock& world) : world_(world) {}  // `world` must outlive it
  MonoTime Now() const override { return world_.Now(); }
  WallTime WallNow() const override { return world_.WallNow() + offset_; }

  void StepTo(Micros offset) {
    high_ = High();
    offset_ = offset;
    least_ = std::min(least_, offset);
  }
  WallTime High() const { return std::max(high_, WallNow()); }  // the latest time that it ever showed
  Micros LeastOffset() const { return least_; }                 // the furthest that it was ever behind

 private:
  const Clock& world_;
  Micros offset_{0}, least_{0};
  WallTime high_{};
};

}  // namespace millrace::sim
