// What the drivers in C++ share; the same rules as common.cjs.
#pragma once
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

constexpr int kStandstillSeconds = 20;

inline long long Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}
inline std::string MakePayload(long long number) {
  std::string text = std::to_string(number) + " " + std::to_string(Now()) + " ";
  unsigned long long x = static_cast<unsigned long long>(number) * 2654435761u + 88172645463325252ull;
  while (text.size() < 100) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    text += "0123456789abcdef"[x & 15];
  }
  return text;
}
class Handler {  // thread-safe
 public:
  explicit Handler(long long jobs) : jobs_(jobs), seen_(static_cast<std::size_t>(jobs)) {
    std::thread([this] { WatchForStandstill(); }).detach();
  }
  bool Handle(const char* text) {  // true: all jobs have been seen
    const long long t = Now();
    char* rest = nullptr;
    const long long number = strtoll(text, &rest, 10), sent = strtoll(rest, nullptr, 10);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (executed_++ == 0) first_ = t;
    last_ = t;
    if (number >= 0 && number < jobs_ && seen_[static_cast<std::size_t>(number)]++ == 0) ++distinct_;
    if (latencies_.size() < 5000) latencies_.push_back((t - sent) / 1000);
    return distinct_ == jobs_;
  }
  void Report() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<long long> l(latencies_.begin() + static_cast<long>(std::min<std::size_t>(50, latencies_.size() / 2)), latencies_.end());
    std::sort(l.begin(), l.end());
    const auto q = [&](double p) {
      return l.empty() ? 0 : l[std::min(l.size() - 1, static_cast<std::size_t>(std::ceil(p * static_cast<double>(l.size()))) - 1)];
    };
    printf("DONE %lld %lld %lld %lld %lld %lld\n", first_, last_, executed_, distinct_, q(0.5), q(0.99));
    fflush(stdout);
  }

 private:
  void WatchForStandstill() {
    for (long long before = 0, seconds = 0;; sleep(1)) {
      std::unique_lock<std::mutex> lock(mutex_);
      const long long now = executed_;
      lock.unlock();
      seconds = now == before && now > 0 ? seconds + 1 : 0;
      before = now;
      if (seconds <= kStandstillSeconds) continue;
      Report();
      _exit(0);
    }
  }
  const long long jobs_;
  std::mutex mutex_;
  std::vector<unsigned char> seen_;
  std::vector<long long> latencies_;
  long long executed_ = 0, distinct_ = 0, first_ = 0, last_ = 0;
};
inline void Produce(long long jobs, int gap_ms, int size, const std::function<void(const std::vector<std::string>&)>& batch) {
  printf("SET\n");
  fflush(stdout);
  (void)getchar();
  const long long begin = Now();
  const int step = gap_ms > 0 ? 1 : size;
  for (long long i = 0; i < jobs; i += step) {
    std::vector<std::string> list;
    for (long long j = i; j < std::min<long long>(jobs, i + step); ++j) list.push_back(MakePayload(j));
    batch(list);
    if (gap_ms > 0) usleep(static_cast<useconds_t>(gap_ms) * 1000);
  }
  printf("PRODUCED %lld %lld\n", begin, Now());
}
