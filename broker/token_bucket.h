// A token bucket without a clock: whoever asks says what time it is. Integers only, so that no token is ever made or lost by
// rounding. The rate is given with each call, because it is the queue's and may change.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/model/queue_settings.h"

namespace millrace {

class TokenBucket {
 public:
  // As if it had been empty at `empty_at`; full when that is long ago.
  explicit TokenBucket(MonoTime empty_at = MonoTime::min()) : at_(empty_at) {}

  // Tokens that can be taken now.
  std::uint64_t Tokens(const Rate& rate, MonoTime now) {
    Refill(rate, now);
    return static_cast<std::uint64_t>(level_ / Cost(rate));
  }
  // REQUIRES: n <= Tokens(rate, now).
  void Take(const Rate& rate, std::uint64_t n, MonoTime now) {
    Refill(rate, now);
    level_ -= static_cast<std::int64_t>(n) * Cost(rate);
    MILLRACE_CHECK(level_ >= 0, "token bucket: {} taken that were not there", n);
  }
  // Tokens that were taken and not used.
  void GiveBack(const Rate& rate, std::uint64_t n, MonoTime now) {
    Refill(rate, now);
    level_ = std::min(Full(rate), level_ + static_cast<std::int64_t>(n) * Cost(rate));
  }
  // When there is a token.
  MonoTime NextToken(const Rate& rate, MonoTime now) { return WhenLevel(rate, Cost(rate), now); }
  // When it is as if nothing had ever been taken.
  MonoTime WhenFull(const Rate& rate, MonoTime now) { return WhenLevel(rate, Full(rate), now); }
  // Whole tokens survive, fractions do not. A limit that is new counts from when the bucket was made.
  void Change(const Rate& from, const Rate& to, MonoTime now) {
    if (from == to || (!from.Limited() && to.Limited())) return;
    level_ = to.Limited() ? std::min(Full(to), static_cast<std::int64_t>(Tokens(from, now)) * Cost(to)) : 0;
    at_ = now;
  }

 private:
  // `level_` counts in microseconds * tokens per period, so that one microsecond brings exactly `count`.
  static std::int64_t Cost(const Rate& rate) { return std::max<std::int64_t>(1, Micros{rate.per}.count()); }
  static std::int64_t Full(const Rate& rate) { return Cost(rate) * rate.Burst(); }
  void Refill(const Rate& rate, MonoTime now) {
    if (now <= at_ || !rate.Limited()) return;
    const std::int64_t to_full = (Full(rate) - level_ + rate.count - 1) / rate.count;  // microseconds
    level_ = at_ == MonoTime::min() || (now - at_).count() >= to_full ? Full(rate) : level_ + (now - at_).count() * rate.count;
    at_ = now;
  }
  MonoTime WhenLevel(const Rate& rate, std::int64_t level, MonoTime now) {
    Refill(rate, now);
    return level_ >= level ? now : now + Micros{(level - level_ + rate.count - 1) / rate.count};
  }

  std::int64_t level_ = 0;
  MonoTime at_;
};

}  // namespace millrace
