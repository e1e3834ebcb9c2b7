// Tests of which the short form plays one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "tests/chaos/settings.h"

namespace millrace::chaos {

inline constexpr std::uint64_t kClusterTests = 9;  // faults_test and cancel_rounds_test together: the short form plays one

}  // namespace millrace::chaos

// Skips the test `number` of `of`, unless the form is long, the seed chose it, or a --gtest_filter names tests.
#define MILLRACE_LONG_OR_CHOSEN(number, of)                                                                          \
  do {                                                                                                               \
    if (!::millrace::chaos::Long() && GTEST_FLAG_GET(filter) == "*" && ::millrace::chaos::Seed() % (of) != (number)) \
      GTEST_SKIP() << "the seed chose another one for the short form: MILLRACE_CHAOS=long plays all of them";        \
  } while (false)
