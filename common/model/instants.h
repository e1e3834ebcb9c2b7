// The instants that a job, a run or a report may name: one range that PostgreSQL, the queue's scores (doubles: 2^53
// microseconds) and RFC 3339 hold exactly. What clients send outside it is refused (wire::CheckJob); what a store
// holds all the same, and what a worker's clock says, is brought into it where the broker reads it.
#pragma once

#include <algorithm>
#include <chrono>

#include "common/base/clock.h"
#include "common/model/job.h"

namespace millrace {

inline constexpr WallTime kInstantMin = std::chrono::sys_days{std::chrono::year{1700} / 1 / 1};
inline constexpr WallTime kInstantMax = WallTime{std::chrono::sys_days{std::chrono::year{2250} / 1 / 1}} - Micros{1};
static_assert(ToUnixMicros(kInstantMin) > -(std::int64_t{1} << 53) && ToUnixMicros(kInstantMax) < (std::int64_t{1} << 53));

constexpr bool IsInstant(WallTime time) { return time >= kInstantMin && time <= kInstantMax; }

// The nearest one. True: it was another.
constexpr bool ClampInstant(WallTime& time) {
  const bool out = !IsInstant(time);
  time = std::clamp(time, kInstantMin, kInstantMax);
  return out;
}

// Every one of them; but not the slot of a run, which its ledger row is named by. True: some were others.
bool ClampInstants(JobSpec& job);
bool ClampInstants(RunSpec& run);
bool ClampInstants(AttemptReport& report);

}  // namespace millrace
