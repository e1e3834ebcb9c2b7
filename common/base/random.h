// Randomness comes in through an interface, so that a simulation is a function of its seed.
#pragma once

#include <cstdint>
#include <mutex>
#include <random>

namespace millrace {

class Random {  // implementations are thread-safe
 public:
  virtual ~Random() = default;
  virtual std::uint64_t Next() = 0;
  // Uniform in [0, bound). REQUIRES: bound > 0.
  std::uint64_t Below(std::uint64_t bound) { return Next() % bound; }
};

// Deterministic from its seed.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t Next() override {
    const std::scoped_lock lock(mutex_);
    return engine_();
  }

 private:
  std::mutex mutex_;
  std::mt19937_64 engine_;
};

// Seeded by the kernel (getrandom).
class SystemRandom final : public Random {
 public:
  SystemRandom();
  std::uint64_t Next() override { return seeded_.Next(); }

 private:
  SeededRandom seeded_;
};

}  // namespace millrace
