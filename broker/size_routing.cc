#include "broker/size_routing.h"

#include "broker/run_coordinator.h"
#include "common/model/stage_task.h"

namespace millrace {

std::string_view RouteBySize(const JobSpec& job, const RowsOfStage& rows_of) {
  if (job.options.route_rows <= 0 || job.kind != kJobKindStage) return {};
  const auto task = StageTaskFromJson(job.payload);
  if (!task || task->inputs.empty()) return {};
  std::int64_t left = job.options.route_rows;
  for (const StageInput& input : task->inputs) {
    const auto rows = rows_of(input.stage);
    if (!rows || *rows > left) return kQueueLarge;
    left -= *rows;
  }
  return kQueueSmall;
}

std::optional<std::int64_t> RowsInResult(std::string_view result) {
  if (result.empty()) return std::nullopt;
  const auto parsed = StageResultFromJson(result);
  if (!parsed || parsed->rows.loaded < 0) return std::nullopt;
  return parsed->rows.loaded;
}

std::string RoutedQueue(const JobSpec& job) {
  return job.options.route_rows > 0 && (job.queue == kQueueSmall || job.queue == kQueueLarge) ? job.queue : std::string{};
}

void RunCoordinator::Route(Job& job) const {
  const auto rows_of = [&](std::string_view stage) -> std::optional<std::int64_t> {
    for (const JobId& need : job.spec->depends_on)
      if (const Job* other = Find(need); other != nullptr && other->spec->stage == stage) return RowsInResult(other->result);
    return std::nullopt;
  };
  const std::string_view queue = RouteBySize(*job.spec, rows_of);
  if (queue.empty() || job.spec->queue == queue) return;
  auto routed = std::make_shared<JobSpec>(*job.spec);
  routed->queue = queue;
  job.spec = std::move(routed);
}

}  // namespace millrace
