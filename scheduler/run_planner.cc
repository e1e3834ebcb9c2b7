#include "scheduler/run_planner.h"

#include <vector>

#include "common/base/log.h"
#include "common/model/pipeline_json.h"
#include "common/model/schedule_rules.h"

namespace millrace::scheduler {

std::uint64_t RunPlanner::TailOf::Next() {
  const Uuid id = ids.Next();
  std::uint64_t bits = 0;
  for (std::size_t i = 10; i < 16; ++i) bits = bits << 8 | id.bytes[i];
  return bits;  // an id takes no more than these 48
}

Result<void> RunPlanner::Load(std::span<ScheduleBook::Entry* const> entries, MonoTime deadline) {
  if (versions_.size() > kVersionsMax) versions_.clear();
  std::map<OrgId, std::vector<std::string>> missing;
  for (const auto* entry : entries)
    if (!versions_.contains({entry->row().org, entry->row().pipeline}))
      missing[entry->row().org].push_back(entry->row().pipeline);
  for (const auto& [org, names] : missing) {
    MILLRACE_TRY_ASSIGN(const auto found, ledger_.ScheduledVersions(org, names, deadline));
    for (const PipelineVersion& version : found) {
      auto pipeline = PipelineFromJson(version.definition);
      if (!pipeline) LogError("pipeline {} version {} cannot run: {}", version.name, version.version, pipeline.error().message);
      versions_[{org, version.name}] = pipeline ? Version{version.version, std::move(*pipeline), version.base_dir} : Version{};
    }
  }
  return {};
}

RunPlanner::Known RunPlanner::Knows(const ScheduleRow& row) const {
  const auto version = versions_.find({row.org, row.pipeline});
  if (version == versions_.end()) return Known::kNotYet;
  if (version->second.number == 0) return Known::kBroken;
  return version->second.number == row.version ? Known::kYes : Known::kNotYet;
}

Result<RunPlan> RunPlanner::PlanWith(const ScheduleRow& row, WallTime slot, WallTime now, IdGenerator& ids) const {
  const Version& version = versions_.at({row.org, row.pipeline});
  RunRequest request{.org = row.org,
                     .version = row.version,
                     .base_dir = version.base_dir,
                     .schedule = row.spec.name,
                     .slot = slot,
                     .generation = 0,
                     .overlap = OverlapOfRuns(row.spec),
                     .params = {},
                     .run_at = std::nullopt,
                     .priority_min = 0,
                     .now = now};
  if (row.spec.jitter > Millis{0}) request.run_at = slot + JitterOf(row.pipeline, row.spec.name, slot, row.spec.jitter);
  return PlanRun(version.pipeline, request, ids);
}

Result<RunPlan> RunPlanner::Plan(const ScheduleRow& row, WallTime slot, WallTime now) const {
  return PlanWith(row, slot, now, ids_);
}

Result<RunPlan> RunPlanner::PlanAhead(const ScheduleRow& row, WallTime slot) {
  if (!slot_ids_ || slot_clock_.slot != slot) {
    slot_clock_.slot = slot;
    slot_ids_.emplace(slot_clock_, tail_);  // an older one would not go back to an earlier slot
  }
  return PlanWith(row, slot, slot, *slot_ids_);
}

void RunPlanner::Decided(RunPlan& plan, WallTime slot, WallTime now) {
  plan.run.created_at = now;
  for (JobSpec& job : plan.jobs) {
    job.submitted_at = now;
    if (job.options.deadline) *job.options.deadline += now - slot;
  }
}

}  // namespace millrace::scheduler
