// A handful of measurements and their order statistics. Not thread-safe.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace millrace::bench {

class Samples {
 public:
  void Add(double value) { values_.insert(std::ranges::upper_bound(values_, value), value); }
  std::size_t size() const { return values_.size(); }
  double Min() const { return values_.empty() ? 0 : values_.front(); }
  double Max() const { return values_.empty() ? 0 : values_.back(); }
  // The mean of the middle two when their number is even; 0 when there are none.
  double Median() const {
    if (values_.empty()) return 0;
    const std::size_t half = values_.size() / 2;
    return values_.size() % 2 == 1 ? values_[half] : (values_[half - 1] + values_[half]) / 2;
  }
  // Nearest rank: the smallest value that at least the share `p` of all values does not exceed. `p` in (0, 1].
  double Percentile(double p) const {
    if (values_.empty()) return 0;
    const auto rank = static_cast<std::size_t>(std::ceil(p * static_cast<double>(values_.size())));
    return values_[std::clamp<std::size_t>(rank, 1, values_.size()) - 1];
  }

 private:
  std::vector<double> values_;  // sorted
};

}  // namespace millrace::bench
