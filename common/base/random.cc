#include "common/base/random.h"

#include <sys/random.h>

#include "common/base/check.h"

namespace millrace {
namespace {

std::uint64_t KernelSeed() {
  std::uint64_t seed = 0;
  MILLRACE_CHECK(getrandom(&seed, sizeof seed, 0) == static_cast<ssize_t>(sizeof seed), "getrandom failed");
  return seed;
}

}  // namespace

SystemRandom::SystemRandom() : seeded_(KernelSeed()) {}

}  // namespace millrace
