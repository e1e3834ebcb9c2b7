// What the environment says of a chaos test: MILLRACE_CHAOS=short|long, and MILLRACE_CHAOS_SEED, else one by chance.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "common/base/random.h"

namespace millrace::chaos {

// `fallback` when the variable is not set or empty.
inline std::string Env(const char* name, std::string fallback = {}) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? std::move(fallback) : std::string(value);
}
inline bool Long() { return Env("MILLRACE_CHAOS") == "long"; }
// The same for the whole process.
inline std::uint64_t Seed() {
  static const std::uint64_t seed = [] {
    const std::string text = Env("MILLRACE_CHAOS_SEED");
    return text.empty() ? SystemRandom().Next() % 1'000'000 : std::strtoull(text.c_str(), nullptr, 10);
  }();
  return seed;
}

}  // namespace millrace::chaos
