#include "client/cli/repeat.h"

#include <map>
#include <optional>
#include <utility>

#include "common/model/stage_task.h"

namespace millrace::cli {
namespace {

// The payload of a stage or command names its job and run; a command's also its org.
Result<std::string> Readdressed(const JobSpec& job, JobId id, std::optional<RunId> run) {
  if (job.kind == kJobKindStage) {
    MILLRACE_TRY_ASSIGN(StageTask task, StageTaskFromJson(job.payload));
    task.job = id;
    if (run) task.run = *run;
    return ToJson(task);
  }
  if (job.kind == kJobKindCommand) {
    MILLRACE_TRY_ASSIGN(CommandTask task, CommandTaskFromJson(job.payload));
    task.job = id;
    task.org = job.org;
    if (run) task.run = *run;
    return ToJson(task);
  }
  return job.payload;
}

Result<JobSpec> Repeated(const JobSpec& job, std::optional<RunId> run, JobId id, WallTime now) {
  JobSpec again = job;
  again.id = id;
  again.run = run;
  again.depends_on.clear();
  again.run_at.reset();
  again.submitted_at = now;
  again.options.retry_of = job.id;
  again.options.durability = Durability::kUnsaid;  // it goes into the ledger
  if (job.options.deadline) again.options.deadline = now + (*job.options.deadline - job.submitted_at);
  if (job.options.expires_at) again.options.expires_at = now + (*job.options.expires_at - job.submitted_at);
  auto payload = Readdressed(job, id, run);
  if (!payload) return Prefixed(std::move(payload.error()), "job {}", job.id.ToString());
  again.payload = std::move(*payload);
  return again;
}

}  // namespace

Result<JobSpec> RepeatJob(const JobSpec& dead, WallTime now, IdGenerator& ids) {
  return Repeated(dead, std::nullopt, ids.Next<JobId>(), now);
}

Result<Requeue> RepeatRun(const RunDetail& failed, const std::string& actor, const std::string& reason, WallTime now,
                          IdGenerator& ids) {
  const RunSummary& old = failed.summary;
  if (!IsTerminal(old.state))
    return Fail(ErrorCode::kConflict, "run {} has not ended: it is {}; wait for its end, or cancel it", old.spec.id.ToString(),
                Name(old.state));
  if (old.state == RunState::kSucceeded)
    return Fail(ErrorCode::kConflict, "run {} succeeded: there is nothing to retry", old.spec.id.ToString());
  Requeue out;
  out.retry = RunRetry{.of = old.spec.id, .actor = actor, .reason = reason, .at = now};
  RunSpec& run = out.run.emplace(old.spec);
  run.id = ids.Next<RunId>();
  run.created_at = now;
  std::map<JobId, std::optional<JobId>> new_ids;  // empty: left out
  for (const JobDetail& job : failed.jobs) {
    const bool done = job.outcome && job.outcome->state == JobState::kSucceeded && job.spec.effect.empty();
    new_ids[job.spec.id] = done ? std::nullopt : std::optional(ids.Next<JobId>());
  }
  for (const JobDetail& job : failed.jobs) {
    const std::optional<JobId> id = new_ids.at(job.spec.id);
    if (!id) continue;
    MILLRACE_TRY_ASSIGN(JobSpec again, Repeated(job.spec, run.id, *id, now));
    for (const JobId& need : job.spec.depends_on)
      if (const auto it = new_ids.find(need); it != new_ids.end() && it->second) again.depends_on.push_back(*it->second);
    out.jobs.push_back(std::move(again));
    if (job.outcome && job.outcome->state == JobState::kDead && !job.dead_action)
      out.actions.push_back({.job = job.spec.id,
                             .org = job.spec.org,
                             .action = DeadAction::kRequeued,
                             .new_job = id,
                             .actor = actor,
                             .reason = reason,
                             .at = now});
  }
  return out;
}

}  // namespace millrace::cli
