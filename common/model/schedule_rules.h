// Small rules of schedules that more than one process has to agree on. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/model/pipeline.h"

namespace millrace {

inline constexpr Millis kJitterMax{24 * 60 * 60 * 1000};
inline constexpr std::uint32_t kMaxParallelMax = 10'000;
inline constexpr std::uint32_t kCatchupRunsMax = 1000;  // N of catchup all(N)

// How much later than its slot a run starts: in [0, jitter], the same for the same (pipeline, schedule, slot) in every
// process and version, and evenly spread over slots and pipelines.
Millis JitterOf(std::string_view pipeline, std::string_view schedule, WallTime slot, Millis jitter);

// What a run of the schedule carries as RunSpec::overlap: the schedule's word, and with max_parallel "allow(N)".
std::string OverlapOfRuns(const ScheduleSpec& spec);
// How many runs of the pipeline may be active while a run with this RunSpec::overlap is: allow = UINT32_MAX, allow(N) = N,
// everything else (queue, skip, cancel, unknown words) = 1.
std::uint32_t ParallelRunsOf(std::string_view overlap);

// Why no slot of a schedule could become a run of the pipeline: a parameter without a value, with the fix. Empty: none of them.
std::string WhyNoSlotRuns(const Pipeline& pipeline);

// "15 6 * * * America/New_York, overlap allow at most 3, from 2026-01-01, ...": everything that is not at its default.
std::string Describe(const ScheduleSpec& spec);

}  // namespace millrace
