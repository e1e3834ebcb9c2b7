// From a pipeline version, a slot (or a run by hand) and parameters to a run and its jobs. Pure: ids and time come in.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/model/job.h"
#include "common/model/pipeline.h"

namespace millrace {

struct RunRequest {
  OrgId org = kDefaultOrg;
  std::int64_t version = 0;
  std::string base_dir;  // absolute folder of the pipeline file
  std::string schedule;  // empty: by hand
  std::optional<WallTime> slot;
  std::uint32_t generation = 0;
  std::string overlap = "queue";              // of the schedule; a run by hand passes "queue"
  std::map<std::string, std::string> params;  // overrides, as text
  std::optional<WallTime> run_at;             // the run's first jobs start not before
  int priority_min = 0;                       // no job is more urgent than this (larger numbers are less urgent)
  WallTime now{};
};

struct RunPlan {
  RunSpec run;
  std::vector<JobSpec> jobs;  // topological order; each depends_on refers to earlier ones
};

// kInvalidArgument names the parameter that is unknown, missing or not of its type. A stage's job gets kind "stage" (or
// "command"), payload = its StageTask (CommandTask), effect = EffectKey(...) with the slot's RFC 3339 time or the run's id.
// Extract jobs carry root = the longest directory prefix of their paths that has no glob.
Result<RunPlan> PlanRun(const Pipeline& pipeline, const RunRequest& request, IdGenerator& ids);

}  // namespace millrace
