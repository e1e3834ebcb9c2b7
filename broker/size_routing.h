// Routing by size: which of two queues a stage goes to (JobOptions::route_rows, ops/docs/queue.md). Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "common/model/job.h"

namespace millrace {

// Rows of the dataset that an earlier stage of the run published; nothing when it told none.
using RowsOfStage = std::function<std::optional<std::int64_t>(std::string_view stage)>;

// kQueueSmall when all that the stage reads has at most route_rows rows together, kQueueLarge when it has more or when that
// is not known: what may be large must not stand in the way of what is small. Empty: the job is not routed.
std::string_view RouteBySize(const JobSpec& job, const RowsOfStage& rows_of);

// Rows of the dataset in a stage's result (StageResult as JSON).
std::optional<std::int64_t> RowsInResult(std::string_view result);

// For the rows of an attempt and an outcome: the queue of a job that was routed, else nothing.
std::string RoutedQueue(const JobSpec& job);

}  // namespace millrace
