#include "broker/run_coordinator.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <unordered_set>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/model/schedule_rules.h"
#include "common/model/stage_task.h"

namespace millrace {
namespace {

template <class T>
void MoveAppend(std::vector<T>& to, std::vector<T>&& from) {
  if (to.empty()) {
    to = std::move(from);
    return;
  }
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

void RunEffects::Append(RunEffects&& other) {
  MoveAppend(ready, std::move(other.ready));
  MoveAppend(skipped, std::move(other.skipped));
  MoveAppend(ended, std::move(other.ended));
  MoveAppend(started, std::move(other.started));
  MoveAppend(cancelled, std::move(other.cancelled));
  MoveAppend(stopping, std::move(other.stopping));
  MoveAppend(fencing, std::move(other.fencing));
  MoveAppend(leaving, std::move(other.leaving));
  MoveAppend(replaced, std::move(other.replaced));
}

Result<void> RunCoordinator::Validate(const RunSpec& run, const std::vector<JobSpec>& jobs) {
  if (jobs.empty()) return Fail(ErrorCode::kInvalidArgument, "run {}: has no jobs", run.id.ToString());
  for (const JobSpec& job : jobs)
    if (job.run != run.id || job.org != run.org)
      return Fail(ErrorCode::kInvalidArgument, "job {}: belongs to another run or org", job.id.ToString());
  if (jobs.size() == 1 && jobs.front().depends_on.empty()) return {};
  std::unordered_map<JobId, std::size_t> index;
  for (const JobSpec& job : jobs) {
    if (!index.emplace(job.id, index.size()).second)
      return Fail(ErrorCode::kInvalidArgument, "job {}: twice in the run", job.id.ToString());
  }
  std::vector<std::vector<std::size_t>> dependents(jobs.size());
  std::vector<std::size_t> waiting(jobs.size());
  std::vector<std::size_t> free;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    for (const JobId& need : jobs[i].depends_on) {
      const auto it = index.find(need);
      if (it == index.end())
        return Fail(ErrorCode::kInvalidArgument, "stage '{}': depends on job {}, which is not in the run", jobs[i].stage,
                    need.ToString());
      dependents[it->second].push_back(i);
    }
    waiting[i] = jobs[i].depends_on.size();
    if (waiting[i] == 0) free.push_back(i);
  }
  std::size_t seen = 0;
  while (!free.empty()) {
    const std::size_t i = free.back();
    free.pop_back();
    ++seen;
    for (const std::size_t d : dependents[i])
      if (--waiting[d] == 0) free.push_back(d);
  }
  if (seen != jobs.size())
    return Fail(ErrorCode::kInvalidArgument, "run {}: its jobs depend on each other in a circle", run.id.ToString());
  return {};
}

RunCoordinator::Run& RunCoordinator::Insert(RunSpec spec, std::vector<JobSpec> jobs) {
  auto owned = std::make_unique<Run>();
  Run& run = *owned;
  const RunId id = spec.id;
  run.spec = std::move(spec);
  run.arrival = ++arrivals_;
  run.jobs.resize(jobs.size());
  run.unfinished = static_cast<std::uint32_t>(jobs.size());
  for (std::uint32_t i = 0; i < run.jobs.size(); ++i) {
    Job& job = run.jobs[i];
    job.run_at = jobs[i].run_at;
    job.spec = std::make_shared<const JobSpec>(std::move(jobs[i]));
    const auto [at, is_new] = jobs_.try_emplace(job.spec->id, &run, i);
    if (!is_new) at->second = {&run, i};
    if (const auto end = EndOfWait(job.spec->options, job.counters)) ends_of_wait_.emplace(end->at, job.spec->id);
  }
  for (std::uint32_t i = 0; i < run.jobs.size(); ++i) {
    for (const JobId& need : run.jobs[i].spec->depends_on) {
      const auto it = jobs_.find(need);
      if (it == jobs_.end() || it->second.first != &run) continue;  // not a job of this run: nothing to wait for
      run.jobs[it->second.second].dependents.push_back(i);
      ++run.jobs[i].waiting;
    }
  }
  runs_.try_emplace(id, std::move(owned));
  return run;
}

// A run without a pipeline's name competes with nobody.
RunCoordinator::Group* RunCoordinator::GroupOf(const Run& run) {
  return run.spec.pipeline.empty() ? nullptr : &groups_[GroupKey{run.spec.org, run.spec.pipeline}];
}

RunEffects RunCoordinator::AddRun(RunSpec spec, std::vector<JobSpec> jobs) {
  RunEffects out;
  const auto valid = Validate(spec, jobs);
  Run& run = Insert(std::move(spec), std::move(jobs));
  if (!valid) {
    EndUnstarted(run, RunState::kFailed, valid.error().message, out);
    return out;
  }
  Group* group = GroupOf(run);
  if (group == nullptr || WaitsForNobody(run)) {
    Start(run, group, out);
    return out;
  }
  // A run of a backfill stands behind every other run, and none waits behind it longer than it is active.
  const bool others_wait = !group->waiting.empty() && !IsBackfill(*runs_.at(group->waiting.front()));
  const bool others_active = group->active.size() > group->backfills;
  if (run.spec.overlap == "cancel") ReplaceOthers(*group, run, out);
  if (run.spec.overlap == "skip" && !IsBackfill(run) && (others_active || others_wait)) {
    EndUnstarted(run, RunState::kSkipped, "overlap: an earlier run of the pipeline is active", out);
  } else if (!MayStart(*group, run) || others_wait || (IsBackfill(run) && !group->waiting.empty())) {
    Wait(*group, run);
    LogInfo("pipeline {}, run {}: waits for the active run of this pipeline", run.spec.pipeline, ShortId(run.spec.id));
  } else {
    Start(run, group, out);
  }
  return out;
}

void RunCoordinator::ReplaceOthers(const Group& group, const Run& by, RunEffects& out) {
  if (IsBackfill(by)) return;
  const auto replace = [&](const RunId& id) {
    const Run& other = *runs_.at(id);
    if (!other.cancelling && !IsBackfill(other)) out.replaced.push_back(id);
  };
  std::ranges::for_each(group.active, replace);
  std::ranges::for_each(group.waiting, replace);
}

// Whether the group has room for the run: as many active ones as its overlap bears. Runs of backfills do not count each other
// where one run at a time is the rule: how many of them there are is for the one who feeds them to say. Runs that wait for
// nobody count only for those that came after them: a steady stream of them would hold up the others for ever.
bool RunCoordinator::MayStart(const Group& group, const Run& run) const {
  const std::uint32_t limit = ParallelRunsOf(run.spec.overlap);
  if (group.active.size() < limit) return true;
  const auto counts = [&](const RunId& id) {
    const Run& other = *runs_.at(id);
    if (limit == 1 && IsBackfill(run) && IsBackfill(other)) return false;
    return !WaitsForNobody(other) || other.arrival < run.arrival;
  };
  return std::ranges::count_if(group.active, counts) < limit;
}

void RunCoordinator::Wait(Group& group, const Run& run) {
  auto at = group.waiting.end();
  if (!IsBackfill(run)) at = std::ranges::find_if(group.waiting, [&](const RunId& id) { return IsBackfill(*runs_.at(id)); });
  group.waiting.insert(at, run.spec.id);
}

void RunCoordinator::Restore(LiveRun live) {
  if (runs_.contains(live.spec.id)) return;
  const auto valid = Validate(live.spec, live.jobs);
  Run& run = Insert(std::move(live.spec), std::move(live.jobs));
  restored_.push_back(run.spec.id);
  run.cancelling = live.cancelling;
  if (run.cancelling) run.reason = live.cancel_reason;
  run.restored = true;
  if (!valid) run.invalid = valid.error().message;
  for (Job& job : run.jobs) {
    const JobId id = job.spec->id;
    if (const auto it = live.counters.find(id); it != live.counters.end()) {
      job.counters = it->second;
      run.began = true;
    }
    if (const auto it = live.next_run_at.find(id); it != live.next_run_at.end()) job.run_at = it->second;
    if (const auto it = live.results.find(id); it != live.results.end()) job.result = std::move(it->second);
    const auto ended = live.ended.find(id);
    if (ended == live.ended.end()) continue;
    run.began = true;
    job.state = job.shown = ended->second;
    --run.unfinished;
    if (job.state != JobState::kSucceeded) {
      run.failed = true;
      if (run.reason.empty()) run.reason = fmt::format("stage '{}' is {}", job.spec->stage, Name(job.state));
    }
  }
}

std::vector<JobId> RunCoordinator::Restored() const {
  std::vector<JobId> jobs;
  for (const RunId& id : restored_)
    if (const Run& run = *runs_.at(id); run.invalid.empty())
      for (const Job& job : run.jobs)
        if (!IsTerminal(job.state)) jobs.push_back(job.spec->id);
  return jobs;
}

void RunCoordinator::Delivered(JobId id) {
  Job& job = *Find(id);
  Route(job);
  Apply(job, JobEvent::kUnblocked);
}

RunEffects RunCoordinator::FinishRestore() {
  RunEffects out;
  std::vector<RunId> waiting, cancelling;
  for (const RunId& id : std::exchange(restored_, {})) {
    Run& run = *runs_.at(id);
    if (run.cancelling && run.invalid.empty()) cancelling.push_back(id);
    if (!run.invalid.empty()) {
      EndUnstarted(run, RunState::kFailed, run.invalid, out);
      continue;
    }
    // A "skip" run was let in when it was accepted: that decision is not taken twice, but it runs beside nobody.
    Group* group = GroupOf(run);
    if (group == nullptr || run.began || WaitsForNobody(run)) {
      Start(run, group, out);
    } else {
      waiting.push_back(id);
    }
  }
  for (const RunId& id : waiting) {
    Run& run = *runs_.at(id);
    if (run.spec.overlap == "cancel" && !run.cancelling) ReplaceOthers(*GroupOf(run), run, out);
    Wait(*GroupOf(run), run);
  }
  for (const RunId& id : cancelling) CancelJobs(*runs_.at(id), runs_.at(id)->reason, out);
  for (auto& [key, group] : groups_) StartWaiting(group, out);
  return out;
}

RunCoordinator::Job* RunCoordinator::Find(JobId job) {
  const auto it = jobs_.find(job);
  return it == jobs_.end() ? nullptr : &it->second.first->jobs[it->second.second];
}

const RunCoordinator::Job* RunCoordinator::Find(JobId job) const {
  const auto it = jobs_.find(job);
  return it == jobs_.end() ? nullptr : &it->second.first->jobs[it->second.second];
}

void RunCoordinator::Apply(Job& job, JobEvent event) {
  const auto next = NextState(job.state, event);
  MILLRACE_CHECK(next, "job {}: {}", job.spec->id.ToString(), next.error().message);
  job.state = *next;
}

void RunCoordinator::Activate(Group& group, const Run& run) {
  group.active.push_back(run.spec.id);
  if (IsBackfill(run)) ++group.backfills;
}

void RunCoordinator::Start(Run& run, Group* group, RunEffects& out) {
  if (group != nullptr) Activate(*group, run);
  out.started.push_back(run.spec.id);
  for (std::uint32_t i = 0; i < run.jobs.size(); ++i)
    if (IsTerminal(run.jobs[i].state)) TellDependents(run, i, out);
  run.state = run.shown = RunState::kRunning;
  for (Job& job : run.jobs) {
    if (job.state != JobState::kBlocked || job.waiting != 0) continue;
    Route(job);
    out.ready.push_back(job.spec->id);
  }
  EndIfFinished(run, out);
}

void RunCoordinator::ShowStart(RunId id, WallTime now) {
  const auto it = runs_.find(id);
  if (it == runs_.end()) return;
  Run& run = *it->second;
  run.started_at = now;
  if (run.spec.pipeline.empty() || !LogEnabled(LogLevel::kInfo)) return;
  LogInfo("pipeline {}, run {}: {}: {} {}{}", run.spec.pipeline, ShortId(run.spec.id), run.began ? "goes on" : "starts",
          run.jobs.size(), run.jobs.size() == 1 ? "stage" : "stages",
          run.spec.slot ? ", slot " + ToRfc3339(*run.spec.slot) : ", by hand");
}

void RunCoordinator::LogEnd(const Run& run, WallTime now) {
  if (run.spec.pipeline.empty() || !LogEnabled(LogLevel::kInfo)) return;
  std::int64_t read = 0, loaded = 0, quarantined = 0;
  bool loads = false;
  for (const Job& job : run.jobs) {
    if (job.spec->kind != kJobKindStage || job.result.empty()) continue;
    const auto result = StageResultFromJson(job.result);
    if (!result) continue;
    quarantined += result->rows.quarantined;
    if (job.spec->depends_on.empty() && result->bytes_read > 0) read += result->rows.read;  // an extract
    loads = loads || !result->target.empty();
    if (!result->target.empty()) loaded += result->rows.loaded;
  }
  std::string text = fmt::format("pipeline {}, run {}: {}", run.spec.pipeline, ShortId(run.spec.id), Name(run.state));
  if (run.started_at) {
    const auto ms = std::chrono::duration_cast<Millis>(now - *run.started_at).count();
    text += fmt::format(" in {}.{:03} s", ms / 1000, ms % 1000);
  }
  text += loads ? fmt::format(", {} rows loaded", loaded) : fmt::format(", {} rows read", read);
  if (quarantined > 0) text += fmt::format(", {} quarantined", quarantined);
  LogInfo("{}{}{}", text, run.end.reason.empty() ? "" : ": ", run.end.reason);
}

void RunCoordinator::StartWaiting(Group& group, RunEffects& out) {
  while (!group.waiting.empty() && MayStart(group, *runs_.at(group.waiting.front()))) {
    const RunId id = group.waiting.front();
    group.waiting.pop_front();
    Start(*runs_.at(id), &group, out);
  }
}

void RunCoordinator::EndUnstarted(Run& run, RunState state, const std::string& reason, RunEffects& out) {
  run.state = state;
  run.end = {.run = run.spec.id, .state = state, .reason = reason};
  run.unfinished = 0;
  for (Job& job : run.jobs) {
    if (IsTerminal(job.state)) continue;
    job.state = JobState::kSkipped;
    job.error = reason;
    out.skipped.push_back({.job = job.spec->id, .reason = reason});
  }
  out.ended.push_back(run.end);
}

// Each job that has ended tells its dependents once. Success counts one down for all of them; another end does so for those
// that wait for any end, and skips the others, which then have ended too. Of a run that has not started nothing becomes ready.
void RunCoordinator::TellDependents(Run& run, std::uint32_t index, RunEffects& out) {
  std::vector<std::uint32_t> from{index};
  while (!from.empty()) {
    Job& cause = run.jobs[from.back()];
    from.pop_back();
    if (std::exchange(cause.told, true)) continue;
    for (const std::uint32_t d : cause.dependents) {
      Job& job = run.jobs[d];
      if (cause.state == JobState::kSucceeded || job.spec->options.run_when == RunWhen::kAllEnded) {
        if (--job.waiting == 0 && job.state == JobState::kBlocked && run.state != RunState::kQueued) {
          Route(job);
          out.ready.push_back(job.spec->id);
        }
        continue;
      }
      if (job.state != JobState::kBlocked) continue;
      Apply(job, JobEvent::kDependencyFailed);
      job.error = fmt::format("stage '{}', on which it depends, is {}", cause.spec->stage, Name(cause.state));
      out.skipped.push_back({.job = job.spec->id, .reason = job.error});
      --run.unfinished;
      from.push_back(d);
    }
  }
}

void RunCoordinator::EndIfFinished(Run& run, RunEffects& out) {
  if (run.unfinished > 0 || IsTerminal(run.state)) return;
  const bool queued = run.state == RunState::kQueued;
  run.state = !run.failed ? RunState::kSucceeded : run.cancelling ? RunState::kCancelled : RunState::kFailed;
  run.end = {.run = run.spec.id, .state = run.state, .reason = run.reason};
  if (run.cancelling && !run.failed) run.end.reason = "cancel_too_late: every stage had succeeded";
  out.ended.push_back(run.end);
  Group* group = GroupOf(run);
  if (group == nullptr) return;
  if (queued) {  // all of it ended by time while it waited for its turn
    std::erase(group->waiting, run.spec.id);
    return;
  }
  MILLRACE_CHECK(std::erase(group->active, run.spec.id) == 1, "run {}: ended but was not active", run.spec.id.ToString());
  if (IsBackfill(run)) --group->backfills;
  StartWaiting(*group, out);
}

void RunCoordinator::CancelJob(Run& run, Job& job, RunEffects& out) {
  // The ledger does not say whether an attempt was running when a former owner went away.
  const bool fence = job.spec->options.has_sink && (job.counters.deliveries > 0 || run.restored);
  switch (job.state) {
    case JobState::kBlocked:
      if (fence && job.waiting == 0) {
        Apply(job, JobEvent::kUnblocked);
        break;
      }
      Apply(job, JobEvent::kCancelRequested);
      break;
    case JobState::kScheduled:
    case JobState::kReady: out.leaving.push_back(job.spec->id); break;
    case JobState::kRunning:
      Apply(job, JobEvent::kCancelRequested);
      out.stopping.push_back(job.spec->id);
      Show(job.spec->id);
      return;
    case JobState::kCancelling:
    case JobState::kSucceeded:
    case JobState::kDead:
    case JobState::kCancelled:
    case JobState::kExpired:
    case JobState::kSkipped: return;
  }
  if (job.state != JobState::kCancelled) Apply(job, fence ? JobEvent::kFenceNeeded : JobEvent::kCancelRequested);
  if (job.state == JobState::kCancelling) {
    Route(job);
    out.fencing.push_back(job.spec->id);
    Show(job.spec->id);
    return;
  }
  job.error = "cancelled before it started";
  out.cancelled.push_back({.job = job.spec->id, .reason = job.error});
  run.failed = true;
  --run.unfinished;
}

void RunCoordinator::CancelJobs(Run& run, const std::string& reason, RunEffects& out) {
  if (IsTerminal(run.state)) return;
  run.cancelling = true;
  if (run.reason.empty()) run.reason = reason;
  if (run.state == RunState::kQueued) {
    Group* group = GroupOf(run);
    std::erase(group->waiting, run.spec.id);
    Activate(*group, run);
  }
  run.state = run.shown = RunState::kCancelling;
  for (Job& job : run.jobs) CancelJob(run, job, out);
  EndIfFinished(run, out);
}

RunEffects RunCoordinator::Cancel(RunId id, const std::string& reason) {
  RunEffects out;
  const auto it = runs_.find(id);
  if (it != runs_.end() && !it->second->cancelling) CancelJobs(*it->second, reason, out);
  return out;
}

RunEffects RunCoordinator::JobStopped(JobId id, const std::string& reason) {
  RunEffects out = JobEnded(id, JobState::kCancelled, Find(id)->counters, reason);
  out.cancelled.push_back({.job = id, .reason = reason});
  return out;
}

RunEffects RunCoordinator::Ended(Run& run, std::uint32_t index, const std::string& reason) {
  RunEffects out;
  const Job& job = run.jobs[index];
  --run.unfinished;
  if (job.state != JobState::kSucceeded) {
    if (run.reason.empty())
      run.reason = fmt::format("stage '{}' is {}{}{}", job.spec->stage, Name(job.state), reason.empty() ? "" : ": ", reason);
    run.failed = true;
  }
  TellDependents(run, index, out);
  EndIfFinished(run, out);
  return out;
}

RunEffects RunCoordinator::JobEnded(JobId id, JobState terminal, const Counters& counters, const std::string& reason) {
  const auto [run, index] = jobs_.at(id);
  Job& job = run->jobs[index];
  Apply(job, terminal == JobState::kSucceeded   ? JobEvent::kSucceeded
             : terminal == JobState::kCancelled ? JobEvent::kCancelled
                                                : JobEvent::kFailedForGood);
  MILLRACE_CHECK(job.state == terminal, "job {}: ended as {}, asked for {}", id.ToString(), Name(job.state), Name(terminal));
  job.counters = counters;
  return Ended(*run, index, reason);
}

RunEffects RunCoordinator::JobOver(JobId id, JobState terminal, const std::string& reason) {
  const auto [run, index] = jobs_.at(id);
  Job& job = run->jobs[index];
  Apply(job, terminal == JobState::kExpired ? JobEvent::kExpired : JobEvent::kDeadlinePassed);
  job.error = reason;
  return Ended(*run, index, reason);
}

std::vector<JobId> RunCoordinator::TakeOverdue(WallTime now, std::size_t max) {
  std::vector<JobId> over;
  while (over.size() < max && !ends_of_wait_.empty() && ends_of_wait_.begin()->first <= now) {
    const JobId id = ends_of_wait_.begin()->second;
    ends_of_wait_.erase(ends_of_wait_.begin());
    if (const Job* job = Find(id); job != nullptr && job->state == JobState::kBlocked) over.push_back(id);
  }
  return over;
}

RunEffects RunCoordinator::JobUnplaceable(JobId id, const std::string& reason) {
  Job& job = *Find(id);
  if (job.state == JobState::kScheduled) Apply(job, JobEvent::kDue);
  if (job.state == JobState::kReady) Apply(job, JobEvent::kLeased);  // by nobody: the claim itself
  job.error = reason;
  return JobEnded(id, JobState::kDead, job.counters, reason);
}

void RunCoordinator::Mark(Run& run, std::uint32_t index) {
  if (!std::exchange(run.jobs[index].changed, true)) run.changed.push_back(index);
  if (run.marked) return;
  run.marked = true;
  changed_.push_back(run.spec.id);
}

void RunCoordinator::Show(JobId id) {
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return;
  Run& run = *it->second.first;
  Job& job = run.jobs[it->second.second];
  job.shown = job.state;
  Mark(run, it->second.second);
}

void RunCoordinator::ShowEnd(RunId id, WallTime now) {
  const auto it = runs_.find(id);
  if (it == runs_.end()) return;
  it->second->shown = it->second->state;
  LogEnd(*it->second, now);
}

std::optional<wire::RunUpdate> RunCoordinator::Update(RunId id, bool all) {
  const auto it = runs_.find(id);
  if (it == runs_.end()) return std::nullopt;
  Run& run = *it->second;
  wire::RunUpdate update{.run = id, .state = run.shown, .reason = {}, .changed = {}};
  if (IsTerminal(run.shown)) update.reason = run.end.reason;
  const auto add = [&update](const Job& job) {
    const bool ended = IsTerminal(job.shown);
    update.changed.push_back({.job = job.spec->id,
                              .stage = job.spec->stage,
                              .state = job.shown,
                              .counters = job.counters,
                              .worker = job.worker,
                              .rows = job.rows,
                              .bytes = job.bytes,
                              .result = ended ? job.result : std::string{},
                              .error = job.error});
  };
  if (all) {
    for (const Job& job : run.jobs) add(job);
    return update;
  }
  for (const std::uint32_t index : std::exchange(run.changed, {})) {
    run.jobs[index].changed = false;
    add(run.jobs[index]);
  }
  return update;
}

std::vector<RunId> RunCoordinator::TakeChangedRuns() {
  auto taken = std::exchange(changed_, {});
  for (const RunId& id : taken)
    if (const auto it = runs_.find(id); it != runs_.end()) it->second->marked = false;
  return taken;
}

void RunCoordinator::Remove(RunId id) {
  const auto it = runs_.find(id);
  if (it == runs_.end()) return;
  Run& run = *it->second;
  for (const Job& job : run.jobs) {
    jobs_.erase(job.spec->id);
    if (const auto end = EndOfWait(job.spec->options, job.counters)) {
      const auto [from, to] = ends_of_wait_.equal_range(end->at);
      const auto mine = std::find_if(from, to, [&](const auto& entry) { return entry.second == job.spec->id; });
      if (mine != to) ends_of_wait_.erase(mine);
    }
  }
  if (Group* group = GroupOf(run); group != nullptr && group->active.empty() && group->waiting.empty())
    groups_.erase(GroupKey{run.spec.org, run.spec.pipeline});
  runs_.erase(it);
}

std::vector<RunId> RunCoordinator::Runs() const {
  std::vector<RunId> ids;
  ids.reserve(runs_.size());
  for (const auto& [id, run] : runs_) ids.push_back(id);
  return ids;
}

}  // namespace millrace
