#include "client/bench/histogram.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

namespace millrace::bench {
namespace {

// Only the writer changes a word: a relaxed load and store are enough, and cost nothing.
void Raise(std::uint64_t& word, std::uint64_t by) {
  const std::atomic_ref ref(word);
  ref.store(ref.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

std::uint64_t Read(const std::uint64_t& word) {
  return std::atomic_ref(const_cast<std::uint64_t&>(word)).load(std::memory_order_relaxed);
}

}  // namespace

std::size_t Histogram::BucketOf(std::uint64_t micros) {
  micros = std::min(micros, kMaxMicros);
  const int width = static_cast<int>(std::bit_width(micros));
  if (width <= kSubBits + 1) return static_cast<std::size_t>(micros);  // two octaves' worth, one value each
  const int shift = width - kSubBits - 1;
  return (static_cast<std::size_t>(shift) << kSubBits) + static_cast<std::size_t>(micros >> shift);
}

std::uint64_t Histogram::UpperEdge(std::size_t bucket) {
  if (bucket < (std::size_t{2} << kSubBits)) return bucket;
  const std::size_t shift = (bucket >> kSubBits) - 1;
  const std::uint64_t base = bucket - (shift << kSubBits);
  return ((base + 1) << shift) - 1;
}

void Histogram::Add(std::int64_t micros) {
  const std::uint64_t value = micros < 0 ? 0 : std::min(static_cast<std::uint64_t>(micros), kMaxMicros);
  Raise(counts_[BucketOf(value)], 1);
  if (value > max_) Raise(max_, value - max_);
  Raise(count_, 1);
}

void Histogram::Merge(const Histogram& other) {
  for (std::size_t i = 0; i < kBuckets; ++i) counts_[i] += Read(other.counts_[i]);
  count_ += other.count();
  max_ = std::max(max_, other.Max());
}

std::uint64_t Histogram::count() const { return Read(count_); }
std::uint64_t Histogram::Max() const { return Read(max_); }

std::uint64_t Histogram::Quantile(double share) const {
  const std::uint64_t all = count();
  if (all == 0) return 0;
  const auto rank = std::clamp<std::uint64_t>(static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(all))), 1, all);
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < kBuckets; ++i) {
    seen += Read(counts_[i]);
    if (seen >= rank) return std::min(UpperEdge(i), Max());
  }
  return Max();
}

}  // namespace millrace::bench
