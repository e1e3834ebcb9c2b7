// A log-linear histogram of durations, after HdrHistogram: exact below 128 µs, then 64 buckets per power of two, so that a
// quantile is at most 1.6 % too high. Plain memory of a fixed size: it may lie in a file that two processes map.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace millrace::bench {

// One writer at a time. A reader in another process sees counts that are at most a few updates old.
class Histogram {
 public:
  static constexpr int kSubBits = 6;
  static constexpr std::uint64_t kMaxMicros = (std::uint64_t{1} << 40) - 1;  // 12 days; longer ones count as this
  static constexpr std::size_t kBuckets = (40 - kSubBits + 1) << kSubBits;

  // A negative duration (two clocks that disagree) counts as 0.
  void Add(std::int64_t micros);
  void Merge(const Histogram& other);

  std::uint64_t count() const;
  // The largest value that was added, exactly; 0 when there is none.
  std::uint64_t Max() const;
  // Nearest rank: the upper edge of the bucket that holds it, never more than Max(). `share` in (0, 1]; 0 when empty.
  std::uint64_t Quantile(double share) const;

  static std::size_t BucketOf(std::uint64_t micros);
  static std::uint64_t UpperEdge(std::size_t bucket);  // the largest value that falls into it

 private:
  std::array<std::uint64_t, kBuckets> counts_{};
  std::uint64_t count_ = 0, max_ = 0;
};

}  // namespace millrace::bench
