// Failpoints: named places where a test makes the program exit, wait or fail. Compiled in only with MILLRACE_FAILPOINTS=1
// (presets dev, asan, tsan); otherwise MILLRACE_FAILPOINT is nothing at all.
//
// Switched on by the environment variable MILLRACE_FAILPOINTS="name=action[,name=action...]", read at the first hit:
//   exit            exit(0.1)            _exit(137), always or with the probability given
//   sleep(250)      sleep(250,0.5)       milliseconds, then goes on
//   error           error(0.5)           the enclosing function returns ErrorCode::kUnavailable
// A number after the probability limits how often it strikes in one process: error(1,1) only the first time.
// The draws come from MILLRACE_FAILPOINT_SEED (default 1), so that a run can be repeated.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "common/base/result.h"

namespace millrace {

// Sets all failpoints anew from `spec` (the syntax above; empty = none) in place of the environment.
// kInvalidArgument names the entry that cannot be read; nothing changes then. Thread-safe.
Result<void> ConfigureFailpoints(std::string_view spec, std::uint64_t seed);

// Calls `hook` on the hitting thread at each hit of `name`, before its action. An empty function removes it. Thread-safe.
void SetFailpointHook(std::string_view name, std::function<void()> hook);

// What the macro calls. kUnavailable: the action was `error`. Thread-safe.
Result<void> HitFailpoint(std::string_view name);

}  // namespace millrace

#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
// In a function that returns a Result (or another std::expected that an Error converts to).
#define MILLRACE_FAILPOINT(name)                                                       \
  do {                                                                                 \
    if (auto millrace_failpoint = ::millrace::HitFailpoint(name); !millrace_failpoint) \
      return std::unexpected(std::move(millrace_failpoint.error()));                   \
  } while (false)
// A mutant: a deliberate defect that the chaos tests must find. True when the failpoint `name` strikes with `error`.
#define MILLRACE_MUTANT(name) (!::millrace::HitFailpoint(name))
#else
#define MILLRACE_FAILPOINT(name) static_cast<void>(0)
#define MILLRACE_MUTANT(name) false
#endif
