// A command's conversation with a broker: submit a run, watch it, ask for the status. Used by one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/run_plan.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace::cli {

class BrokerClient {
 public:
  // `transport` belongs to the calling thread and outlives the client.
  static Result<BrokerClient> Connect(wire::Transport& transport, const std::string& endpoint, const Clock& clock);

  // Another broker serves the shard: whoever can write into the ledger does that instead, and the owner finds it there.
  static bool IsNotOwner(const Error& error);

  // Returns when the ledger has the run ("accepted"). The same ids may be submitted again: that is how an unknown outcome is
  // resolved, and it is done here until `deadline`, unless IsNotOwner. kTimedOut: no broker answered. kMaybeApplied: refused,
  // but an earlier one of these submits was not answered, and may have been taken.
  Result<void> SubmitRun(const RunPlan& plan, bool watch, MonoTime deadline);

  // The same for single jobs, in as many messages as they need: an answer for each, in their order, is added to `answers`.
  // After an error those are the first jobs, and of the others at most the next message's may be accepted: after kMaybeApplied
  // and kTimedOut. kLimit: a queue is full, and nothing more was taken.
  Result<void> SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline, std::vector<wire::SubmitReply::Item>& answers);
  // How many of the first of them go in one message.
  static std::size_t OneMessage(std::span<const JobSpec> jobs);

  // Whether what was submitted last, and refused, may have been taken: an earlier sending had no answer, or an unknown outcome.
  bool in_doubt() const { return in_doubt_; }

  // Whether SubmitRun can carry the plan in one message. What is larger goes into the ledger (Ledger::SubmitRun), where the
  // broker finds it.
  static bool FitsOneMessage(const RunPlan& plan);
  // Asks for updates of a run that the ledger has; Follow takes them.
  Result<void> Watch(OrgId org, RunId run, MonoTime deadline);

  // Takes updates of a watched run of `org` until it has ended and returns its last one. `on_update` sees each, `on_idle` is
  // called at least every 100 ms. kCancelled when `stop` becomes true; kTimedOut after `deadline`.
  Result<wire::RunUpdate> Follow(OrgId org, RunId run, MonoTime deadline, const std::atomic<bool>& stop,
                                 const std::function<void(const wire::RunUpdate&)>& on_update,
                                 const std::function<void()>& on_idle);

  // All stages of a run; or what runs of a job whose id stands in the run's place. `stages`: how many they are. kNotFound:
  // there is no such run, and no such job runs.
  Result<std::vector<wire::RunUpdate::Stage>> Look(OrgId org, RunId run, std::size_t stages, MonoTime deadline);

  Result<wire::StatusReply> Status(MonoTime deadline);
  // Asks for the end of runs and single jobs. Returns when the requests are durable; repeated until `deadline`, as SubmitRun.
  // What was cancelled meanwhile counts as cancelled by this, if an earlier request may have done it.
  Result<std::vector<wire::CancelReply::Item>> Cancel(wire::Cancel request, MonoTime deadline);

  // The new revision. kConflict: settings.revision is not the newest; kTimedOut: whether it was stored is not known.
  Result<std::int64_t> SetQueue(const QueueSettings& settings, std::string actor, MonoTime deadline);
  Result<std::vector<wire::ListQueuesReply::Item>> ListQueues(OrgId org, MonoTime deadline);
  // What is ready and taken by no connected worker. kTimedOut also from a broker that is older than this question.
  Result<wire::ListUnservedReply> ListUnserved(OrgId org, MonoTime deadline);
  // Jobs of `durability: redis` that wait, or whose first attempt runs: those that the ledger does not know. Of one queue and
  // kind, unless they are empty, and only those that `meant` names; each once. Each page may take `patience`. kTimedOut also
  // from an older broker.
  struct Kept {
    std::vector<JobId> jobs;  // at most `max`
    bool more = false;        // there are others
  };
  Result<Kept> ListKept(OrgId org, const std::string& queue, const std::string& kind,
                        const std::function<bool(const JobId&)>& meant, std::size_t max, Millis patience);
  // Those of `wanted` that ListKept would name, of all queues and kinds, each once into `found`: also of those that were seen
  // before an error. Ends when all are found, or at `deadline`.
  Result<void> FindKept(OrgId org, const std::unordered_set<JobId>& wanted, MonoTime deadline, std::vector<JobId>& found);

 private:
  BrokerClient(wire::Transport& transport, std::unique_ptr<wire::ClientSocket> socket, const Clock& clock)
      : transport_(&transport), socket_(std::move(socket)), clock_(&clock) {}
  // Waits for the connection, at most until `deadline`: a socket that has just been made has none yet.
  Result<void> Send(const wire::Message& message, MonoTime deadline);
  // Asks for all pages of what ListKept names, each until what `deadline` says when it is asked for, and gives `take` each job,
  // some more than once, until that says false.
  Result<void> ReadKept(OrgId org, const std::string& queue, const std::string& kind, const std::function<MonoTime()>& deadline,
                        const std::function<bool(const JobId&)>& take);
  // Sends what `make` gives until an answer comes that is not worth asking again for, or `deadline`: for requests that are
  // idempotent by their ids. The answer may be to any of the sendings. After a refusal it is not sent once more when an answer
  // could hardly come in time; an error that nobody answered with names the refusal before it.
  struct Repeated {
    Result<wire::Message> reply;
    bool doubt = false;  // a sending before the one that has the answer may have been taken
  };
  Repeated Repeat(const std::function<wire::Message(std::uint64_t)>& make, MonoTime deadline);
  // Waits for an answer to one of the requests from `first` to `last`; updates that come first are kept for Follow.
  Result<wire::Message> Await(std::uint64_t first, std::uint64_t last, MonoTime deadline);
  Result<wire::Message> Await(std::uint64_t request, MonoTime deadline) { return Await(request, request, deadline); }

  wire::Transport* transport_;
  std::unique_ptr<wire::ClientSocket> socket_;
  const Clock* clock_;
  std::uint64_t next_request_ = 1;
  bool in_doubt_ = false;
  std::vector<wire::RunUpdate> pending_updates_;
};

}  // namespace millrace::cli
