// The live runs of one shard: which jobs wait for which, what follows when one ends, and which run of a pipeline may start.
// Pure and derived from outcomes: after a restart the same state comes out of the ledger's rows, so a fan-in cannot hang.
// Not thread-safe: owned by the dispatcher.
//
// What JobEnded and AddRun return takes effect only when the ledger has the rows that belong to it; the caller commits them
// together and acts on the rest afterwards. What watchers may see lags behind in the same way (`shown`, Show).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/model/job.h"
#include "common/wire/messages.h"

namespace millrace {

// What follows from a change.
struct RunEffects {
  struct Skip {
    JobId job;
    std::string reason;
  };
  struct End {
    RunId run;
    RunState state = RunState::kFailed;
    std::string reason;
  };
  std::vector<JobId> ready;    // to be enqueued: all they depend on has succeeded and their run is active
  std::vector<Skip> skipped;   // outcome kSkipped to be written
  std::vector<End> ended;      // run outcome to be written
  std::vector<RunId> started;  // left "queued"
  bool Empty() const { return ready.empty() && skipped.empty() && ended.empty() && started.empty(); }
  void Append(RunEffects&& other);
};

class RunCoordinator {
 public:
  struct Job {
    std::shared_ptr<const JobSpec> spec;
    JobState state = JobState::kBlocked;
    JobState shown = JobState::kBlocked;  // what watchers may see: terminal only when durable
    Counters counters;
    std::optional<WallTime> run_at;  // not before
    std::string worker, result, error;
    std::int64_t rows = 0, bytes = 0;
    std::uint32_t waiting = 0;  // jobs it depends on that have not succeeded (RunWhen::kAllEnded: have not ended)
    std::vector<std::uint32_t> dependents;
    bool changed = false;  // since the last update to watchers
    bool told = false;     // it has ended, and its dependents were told
  };

  // kInvalidArgument names the job: an id twice, another run's job, an unknown or circular dependency, no job at all.
  static Result<void> Validate(const RunSpec& run, const std::vector<JobSpec>& jobs);

  // A run that was just accepted. One that Validate refuses (somebody else wrote it) ends as failed at once.
  RunEffects AddRun(RunSpec run, std::vector<JobSpec> jobs);
  // A live run read from the ledger. Nothing starts before FinishRestore. A run that is known already is ignored.
  void Restore(LiveRun live);
  RunEffects FinishRestore();

  bool Knows(RunId run) const { return runs_.contains(run); }
  OrgId OrgOf(RunId run) const { return runs_.at(run)->spec.org; }  // REQUIRES: Knows(run)
  Job* Find(JobId job);
  // Applies `event` to a live job. CHECKs that the state machine allows it.
  void Apply(Job& job, JobEvent event);
  // The job reached a terminal state; `reason` is for people. CHECKs that it had not before.
  RunEffects JobEnded(JobId job, JobState terminal, const Counters& counters, const std::string& reason);

  // Makes the job's present state visible to watchers.
  void Show(JobId job);
  void ShowEnd(RunId run);
  // A job that waits in the queue will never start; as JobEnded(kDead).
  RunEffects JobUnplaceable(JobId job, const std::string& reason);
  // A job that has not started ends by time: kExpired, or kDead past its deadline.
  RunEffects JobOver(JobId job, JobState terminal, const std::string& reason);
  // Blocked jobs whose wait is over by now (EndOfWait), at most `max`. A job is named once; one that is not blocked any more is
  // left to the queue.
  std::vector<JobId> TakeOverdue(WallTime now, std::size_t max);
  // For watchers: all stages, or those that changed since the last call with `all` = false (which clears the marks).
  std::optional<wire::RunUpdate> Update(RunId run, bool all);
  // Forgets a run whose end is durable.
  void Remove(RunId run);
  std::vector<RunId> TakeChangedRuns();  // runs with changed stages, each once

  std::size_t size() const { return runs_.size(); }
  std::vector<RunId> Runs() const;

 private:
  struct Run {
    RunSpec spec;
    RunState state = RunState::kQueued;
    RunState shown = RunState::kQueued;
    std::vector<Job> jobs;
    std::uint32_t unfinished = 0;
    bool failed = false;
    bool began = false;                  // restored: some job of it was delivered
    bool marked = false;                 // in changed_
    std::vector<std::uint32_t> changed;  // jobs that are marked
    std::string reason;
    std::string invalid;  // why it cannot run; empty when it can
    RunEffects::End end;
  };
  struct Group {  // the runs of one pipeline
    std::uint32_t active = 0;
    std::deque<RunId> waiting;
  };
  using GroupKey = std::pair<OrgId, std::string>;

  Run& Insert(RunSpec spec, std::vector<JobSpec> jobs);
  Group* GroupOf(const Run& run);
  void Start(Run& run, RunEffects& out);
  void StartWaiting(Group& group, RunEffects& out);
  void EndUnstarted(Run& run, RunState state, const std::string& reason, RunEffects& out);
  RunEffects Ended(Run& run, std::uint32_t index, const std::string& reason);
  void TellDependents(Run& run, std::uint32_t index, RunEffects& out);
  void EndIfFinished(Run& run, RunEffects& out);
  void Mark(Run& run, std::uint32_t index);

  std::unordered_map<RunId, std::unique_ptr<Run>> runs_;
  std::unordered_map<JobId, std::pair<Run*, std::uint32_t>> jobs_;
  std::map<GroupKey, Group> groups_;
  std::vector<RunId> restored_;  // in the order they were read
  std::vector<RunId> changed_;
  std::multimap<WallTime, JobId> ends_of_wait_;
};

}  // namespace millrace
