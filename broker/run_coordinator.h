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
#include <utility>
#include <vector>

#include "common/base/id_map.h"
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
  std::vector<JobId> ready;     // to be enqueued: all they depend on has succeeded and their run is active
  std::vector<Skip> skipped;    // outcome kSkipped to be written
  std::vector<End> ended;       // run outcome to be written
  std::vector<RunId> started;   // left "queued"
  std::vector<Skip> cancelled;  // outcome kCancelled to be written: they had not started, or nothing of them is left
  std::vector<JobId> stopping;  // run now: their attempts are to be revoked
  std::vector<JobId> fencing;   // wait, but an attempt of theirs may have touched its sink: to be granted once more, fence_only
  std::vector<JobId> leaving;   // of the two before: those that wait in the queue and have no business there any more
  std::vector<RunId> replaced;  // overlap: cancel. To be cancelled once their cancel rows are written
  bool Empty() const {
    return ready.empty() && skipped.empty() && ended.empty() && started.empty() && cancelled.empty() && stopping.empty() &&
           fencing.empty() && leaving.empty() && replaced.empty();
  }
  bool HasRows() const { return !skipped.empty() || !ended.empty() || !cancelled.empty() || !replaced.empty(); }
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
  // Before FinishRestore: the jobs of restored runs that have not ended, without those of runs that cannot run.
  std::vector<JobId> Restored() const;
  // One of them is with a worker, for all one knows: a cancel must stop it. It is kReady, to be leased by the caller.
  void Delivered(JobId job);

  // Somebody asked for it and the request is durable. What has not started ends at once, what runs is to be stopped. Nothing
  // when the run is unknown, has ended, or is being cancelled.
  RunEffects Cancel(RunId run, const std::string& reason);
  // A job that is being cancelled and of which nothing is left: its attempt is lost, or ended while the request was written.
  RunEffects JobStopped(JobId job, const std::string& reason);

  bool Knows(RunId run) const { return runs_.contains(run); }
  OrgId OrgOf(RunId run) const { return runs_.at(run)->spec.org; }  // REQUIRES: Knows(run)
  Job* Find(JobId job);
  const Job* Find(JobId job) const;
  // Applies `event` to a live job. CHECKs that the state machine allows it.
  void Apply(Job& job, JobEvent event);
  // The job reached a terminal state; `reason` is for people. CHECKs that it had not before.
  RunEffects JobEnded(JobId job, JobState terminal, const Counters& counters, const std::string& reason);

  // Makes the job's present state visible to watchers.
  void Show(JobId job);
  // Its start and its end, to watchers and in the log.
  void ShowStart(RunId run, WallTime now);
  void ShowEnd(RunId run, WallTime now);
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
    std::uint64_t arrival = 0;  // grows; of restored runs in the order they were read
    RunState state = RunState::kQueued;
    RunState shown = RunState::kQueued;
    std::vector<Job> jobs;
    std::uint32_t unfinished = 0;
    bool failed = false;                 // some job did not succeed
    bool cancelling = false;             // a durable request
    bool restored = false;               // a former owner may have started jobs of it
    bool began = false;                  // restored: some job of it was delivered
    bool marked = false;                 // in changed_
    std::vector<std::uint32_t> changed;  // jobs that are marked
    std::optional<WallTime> started_at;  // for the log
    std::string reason;
    std::string invalid;  // why it cannot run; empty when it can
    RunEffects::End end;
  };
  struct Group {  // the runs of one pipeline
    std::vector<RunId> active;
    std::uint32_t backfills = 0;  // so many of the active ones
    std::deque<RunId> waiting;    // runs of backfills behind all others
  };
  using GroupKey = std::pair<OrgId, std::string>;

  Run& Insert(RunSpec spec, std::vector<JobSpec> jobs);
  Group* GroupOf(const Run& run);
  static bool IsBackfill(const Run& run) { return run.spec.generation > 0; }
  static bool WaitsForNobody(const Run& run) { return run.spec.overlap == "allow" && !IsBackfill(run); }
  bool MayStart(const Group& group, const Run& run) const;
  void Wait(Group& group, const Run& run);
  static void Activate(Group& group, const Run& run);
  void ReplaceOthers(const Group& group, const Run& by, RunEffects& out);
  void Start(Run& run, Group* group, RunEffects& out);  // `group` is the run's
  void StartWaiting(Group& group, RunEffects& out);
  void EndUnstarted(Run& run, RunState state, const std::string& reason, RunEffects& out);
  RunEffects Ended(Run& run, std::uint32_t index, const std::string& reason);
  void TellDependents(Run& run, std::uint32_t index, RunEffects& out);
  void EndIfFinished(Run& run, RunEffects& out);
  // Before it is enqueued: a job with JobOptions::route_rows gets its queue from what its inputs reported. The same outcomes
  // give the same queue, so that a rebuild sends it where it was.
  void Route(Job& job) const;
  static void LogEnd(const Run& run, WallTime now);
  void CancelJob(Run& run, Job& job, RunEffects& out);
  void CancelJobs(Run& run, const std::string& reason, RunEffects& out);
  void Mark(Run& run, std::uint32_t index);

  std::uint64_t arrivals_ = 0;
  IdMap<RunId, std::unique_ptr<Run>> runs_;
  IdMap<JobId, std::pair<Run*, std::uint32_t>> jobs_;
  std::map<GroupKey, Group> groups_;
  std::vector<RunId> restored_;  // in the order they were read
  std::vector<RunId> changed_;
  std::multimap<WallTime, JobId> ends_of_wait_;
};

}  // namespace millrace
