// Requests of clients, and what watchers see.
#include <algorithm>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/model/stage_task.h"
#include "common/wire/check_job.h"
#include "common/wire/codec.h"
#include "common/wire/text.h"

namespace millrace {
using wire::CheckInstant;
using wire::CheckJob;
using wire::CheckName;

namespace {

Result<void> CheckEffect(std::string_view field, std::string_view effect, OrgId org) {
  const std::string mine = fmt::format("{}/", org.value());
  if (effect.starts_with(mine)) return {};
  return Fail(ErrorCode::kInvalidArgument, "{}: '{}' is not of org {}; give a key that begins with '{}'", field,
              wire::CleanText(effect, kNameBytesMax), org.value(), mine);
}

// Its datasets are found by its org; the fences and receipts of its sinks by its effect alone, which another org's stage could
// have as well.
Result<void> CheckStage(const JobSpec& job) {
  if (!job.effect.empty()) MILLRACE_TRY(CheckEffect("effect", job.effect, job.org));
  const auto task = StageTaskFromJson(job.payload);
  if (!task) return {};
  if (task->org != job.org)
    return Fail(ErrorCode::kInvalidArgument, "payload: is a stage of org {}, in a job of org {}", task->org.value(),
                job.org.value());
  return CheckEffect("payload: effect", task->effect, job.org);
}

// A command speaks for its job's org, whatever its payload says or leaves out. A stage has to say it. What is neither is its
// worker's to refuse.
Result<void> SetOrg(JobSpec& job) {
  if (job.kind == kJobKindStage) return CheckStage(job);
  if (job.kind != kJobKindCommand) return {};
  if (job.org == kDefaultOrg && !job.payload.contains("\"org\"")) return {};  // not read: it is left out, and right so
  auto task = CommandTaskFromJson(job.payload);
  if (!task || task->org == job.org) return {};
  task->org = job.org;
  job.payload = ToJson(*task);
  if (job.payload.size() > kPayloadBytesMax)
    return Fail(ErrorCode::kInvalidArgument,
                "payload: {} bytes with the job's org {} in it, limit {}: make the command shorter", job.payload.size(),
                job.org.value(), kPayloadBytesMax);
  return {};
}

}  // namespace

void Dispatcher::On(event::FromClient& e) {
  if (auto* jobs = std::get_if<wire::SubmitJobs>(&e.message)) return OnSubmitJobs(e.peer, *jobs);
  if (auto* run = std::get_if<wire::SubmitRun>(&e.message)) return OnSubmitRun(e.peer, *run);
  if (auto* watch = std::get_if<wire::Watch>(&e.message)) return OnWatch(e.peer, *watch);
  if (auto* status = std::get_if<wire::Status>(&e.message)) return OnStatus(e.peer, *status);
  if (auto* cancel = std::get_if<wire::Cancel>(&e.message)) return OnCancel(e.peer, *cancel);
  if (auto* set = std::get_if<wire::SetQueue>(&e.message)) return OnSetQueue(e.peer, *set);
  if (auto* list = std::get_if<wire::ListQueues>(&e.message)) return OnListQueues(e.peer, *list);
  if (auto* list = std::get_if<wire::ListUnserved>(&e.message)) return OnListUnserved(e.peer, *list);
  if (auto* list = std::get_if<wire::ListKept>(&e.message)) return OnListKept(e.peer, *list);
  Problem(e.peer, 0, "invalid_argument", "this message is not for the broker's front socket");
}

void Dispatcher::On(event::ClientPeerGone& e) {
  for (auto it = watchers_.begin(); it != watchers_.end();) {
    std::erase(it->second, e.peer);
    it = it->second.empty() ? watchers_.erase(it) : std::next(it);
  }
}

void Dispatcher::Problem(const wire::PeerId& peer, std::uint64_t request, std::string code, std::string message) {
  to_clients_.push_back(
      {.peer = peer, .message = wire::Problem{.request = request, .code = std::move(code), .message = std::move(message)}});
}

// Whether the request can go on now. Otherwise it was answered, or parked until its shards are taken.
template <class Request>
bool Dispatcher::Admit(const wire::PeerId& peer, const std::set<ShardId>& shards, Request& request, std::size_t rows) {
  const std::uint64_t number = request.request;
  if (stopping_) {
    Problem(peer, number, "unavailable", "the broker is stopping");
    return false;
  }
  bool ready = true;
  for (const ShardId id : shards) {
    const auto it = shards_.find(id);
    if (it == shards_.end() || it->second.phase == Phase::kElsewhere) {
      std::string what = fmt::format("shard {}", id.value());
      if constexpr (requires { request.org; }) what = fmt::format("org {}", request.org.value());
      Problem(peer, number, "not_owner",
              fmt::format("{} is served by broker '{}'", what, it == shards_.end() ? "" : it->second.owner_name));
      return false;
    }
    ready = ready && it->second.phase == Phase::kReady && !it->second.yield_by;
  }
  if (accepting_rows_ + rows > kAcceptingRowsMax || accepting_bytes_ > kAcceptingBytesMax) {
    Problem(peer, number, "limit",
            fmt::format("{} rows with {} bytes wait for the ledger, limits {} and {}", accepting_rows_, accepting_bytes_,
                        kAcceptingRowsMax, kAcceptingBytesMax));
    return false;
  }
  std::optional<std::string> out_of_reach;
  if constexpr (requires { request.jobs; }) {
    if (ready) {
      if (auto full = OverBudget(request.jobs)) {
        const std::string_view code = full->code == ErrorCode::kLimit ? "queue_full" : Name(full->code);
        Problem(peer, number, std::string(code), std::move(full->message));
        return false;
      }
      out_of_reach = OutOfReach(request.jobs);
    }
  }
  if (ready && !out_of_reach) return true;
  const MonoTime until = parked_until_.value_or(now_ + kParkTimeout);
  // After a start the workers come one by one: the one that reaches it may be the next.
  if (out_of_reach && (until <= now_ || workers_since_ + kParkTimeout <= now_)) {
    Problem(peer, number, "unreachable_input", *out_of_reach);
  } else if (until <= now_) {
    Problem(peer, number, "unavailable", "the shard is being taken over: try again");
  } else if (parked_.size() >= kParkedRequestsMax) {
    Problem(peer, number, "limit", fmt::format("{} requests wait for their shard", parked_.size()));
  } else {
    parked_.push_back({.peer = peer, .message = std::move(request), .until = until});
  }
  return false;
}

template bool Dispatcher::Admit(const wire::PeerId&, const std::set<ShardId>&, wire::Cancel&, std::size_t);

void Dispatcher::RetryParked() {
  auto parked = std::exchange(parked_, {});
  for (Parked& p : parked) {
    parked_until_ = p.until;
    event::FromClient again{.peer = std::move(p.peer), .message = std::move(p.message)};
    On(again);
  }
  parked_until_.reset();
}

void Dispatcher::AcceptJob(JobSpec spec, const std::shared_ptr<Submit>& submit, std::set<PieceId>& pieces) {
  if (const auto it = accepting_.find(spec.id.uuid); it != accepting_.end()) {
    submit->items.push_back({.id = spec.id.uuid, .duplicate = true, .conflict_with = {}});
    if (pieces.insert(it->second).second) pieces_.at(it->second).submits.push_back(submit);
    return;
  }
  Shard& shard = *ShardOfOrg(spec.org);
  if (spec.options.durability == Durability::kUnsaid) shard.recent.Seen(spec.id.uuid, now_);  // its queue's class may change
  spec.options.durability = Durability::kUnsaid;                                              // as rows have it
  Piece& piece = OpenPiece(shard, shard.submit_piece);
  submit->items.push_back({.id = spec.id.uuid, .duplicate = false, .conflict_with = {}});
  if (pieces.insert(shard.submit_piece).second) piece.submits.push_back(submit);
  accepting_.emplace(spec.id.uuid, shard.submit_piece);
  piece.accepting.push_back(spec.id.uuid);
  ++piece.accept_rows;
  ++accepting_rows_;
  piece.bytes += spec.payload.size();
  piece.accept_bytes += spec.payload.size();
  accepting_bytes_ += spec.payload.size();
  AddAccepting(shard, piece, spec);
  if (MILLRACE_MUTANT("mutant.drop_accepted")) return;
  piece.rows.jobs.push_back(std::move(spec));
}

void Dispatcher::OnSubmitJobs(const wire::PeerId& peer, wire::SubmitJobs& m) {
  std::set<ShardId> shards;
  if (m.jobs.size() > kBatchJobsMax)
    return Problem(peer, m.request, "limit", fmt::format("jobs: {} in one message, limit {}", m.jobs.size(), kBatchJobsMax));
  for (std::size_t i = 0; i < m.jobs.size(); ++i) {
    JobSpec& job = m.jobs[i];
    auto valid = CheckJob(job);
    if (valid && (job.run || !job.depends_on.empty()))
      valid = Fail(ErrorCode::kInvalidArgument, "a single job has no run and depends on nothing");
    if (valid) valid = SetOrg(job);
    if (!valid) return Problem(peer, m.request, "invalid_argument", fmt::format("jobs[{}]: {}", i, valid.error().message));
    if (job.submitted_at == WallTime{}) job.submitted_at = wall_;
    shards.insert(ShardOf(job.org, options_.shard_count));
  }
  if (!Admit(peer, shards, m, m.jobs.size())) return;
  auto submit = std::make_shared<Submit>();
  submit->peer = peer;
  submit->request = m.request;
  submit->items.reserve(m.jobs.size());
  std::set<PieceId> pieces;
  std::set<ShardId> kept;
  if (m.jobs.size() > 1)
    for (const JobSpec& job : m.jobs) ShardOfOrg(job.org)->recent.Prefetch(job.id.uuid);
  for (JobSpec& job : m.jobs)
    if (ClassOf(job) == Durability::kRedis)
      AcceptKept(job, submit, kept);
    else
      AcceptJob(std::move(job), submit, pieces);
  submit->pieces = pieces.size() + kept.size();
  submit->whole = submit->pieces == 1;
  if (submit->pieces == 0) FinishSubmit(*submit);
}

void Dispatcher::OnSubmitRun(const wire::PeerId& peer, wire::SubmitRun& m) {
  if (m.jobs.size() > kStagesPerPipelineMax)
    return Problem(peer, m.request, "limit", fmt::format("run: {} jobs, limit {}", m.jobs.size(), kStagesPerPipelineMax));
  auto valid = RunCoordinator::Validate(m.run, m.jobs);
  if (valid) valid = CheckName("pipeline", m.run.pipeline, kNameBytesMax);
  if (valid) valid = CheckInstant("created_at", m.run.created_at);
  if (valid && m.run.slot) valid = CheckInstant("slot", *m.run.slot);
  for (std::size_t i = 0; valid && i < m.jobs.size(); ++i) {
    valid = CheckJob(m.jobs[i]);
    if (valid && m.jobs[i].options.durability == Durability::kRedis)
      valid = Fail(ErrorCode::kInvalidArgument,
                   "jobs[{}]: durability redis is for single jobs: those of a run are in the ledger", i);
    if (valid) valid = SetOrg(m.jobs[i]);
    if (m.jobs[i].submitted_at == WallTime{}) m.jobs[i].submitted_at = wall_;
  }
  if (!valid) return Problem(peer, m.request, "invalid_argument", valid.error().message);
  if (m.run.created_at == WallTime{}) m.run.created_at = wall_;
  const ShardId shard_id = ShardOf(m.run.org, options_.shard_count);
  if (!Admit(peer, {shard_id}, m, m.jobs.size() + 1)) return;
  Shard& shard = shards_.at(shard_id);
  auto submit = std::make_shared<Submit>();
  submit->peer = peer;
  submit->request = m.request;
  submit->org = m.run.org;
  submit->run = true;
  submit->watch = m.watch;
  submit->items.push_back({.id = m.run.id.uuid, .duplicate = false, .conflict_with = {}});
  submit->pieces = 1;
  if (const auto it = accepting_.find(m.run.id.uuid); it != accepting_.end() || shard.runs.Knows(m.run.id)) {
    submit->items.front().duplicate = true;
    if (it == accepting_.end()) return FinishSubmit(*submit);
    pieces_.at(it->second).submits.push_back(submit);
    return;
  }
  Piece& piece = OpenPiece(shard, shard.submit_piece);
  piece.submits.push_back(submit);
  piece.accepting.push_back(m.run.id.uuid);
  accepting_.emplace(m.run.id.uuid, shard.submit_piece);
  piece.accept_rows += m.jobs.size() + 1;
  accepting_rows_ += m.jobs.size() + 1;
  for (const JobSpec& job : m.jobs) {
    piece.bytes += job.payload.size();
    piece.accept_bytes += job.payload.size();
    accepting_bytes_ += job.payload.size();
    AddAccepting(shard, piece, job);
  }
  piece.rows.runs.push_back(std::move(m.run));
  for (JobSpec& job : m.jobs) piece.rows.jobs.push_back(std::move(job));
}

void Dispatcher::AddWatcher(RunId run, const wire::PeerId& peer) {
  auto& peers = watchers_[run];
  if (std::ranges::find(peers, peer) == peers.end() && peers.size() < kWatchersPerRunMax) peers.push_back(peer);
}

void Dispatcher::OnWatch(const wire::PeerId& peer, const wire::Watch& m) {
  for (auto& [id, shard] : shards_) {
    if (!shard.runs.Knows(m.run)) continue;
    if (shard.runs.OrgOf(m.run) != m.org)
      return Problem(peer, m.request, "not_found", fmt::format("run {}: there is none", m.run.ToString()));
    AddWatcher(m.run, peer);
    if (const auto update = shard.runs.Update(m.run, true)) SendUpdate(peer, *update);
    return;
  }
  if (ShowJob(peer, m)) return;
  if (run_reads_ >= kRunReadsMax)
    return Problem(peer, m.request, "limit", fmt::format("{} watches wait for the ledger", run_reads_));
  ++run_reads_;
  ToLedger(command::ReadRun{.peer = peer, .request = m.request, .org = m.org, .run = m.run});
}

// A job that runs, shown once in the form of a run that is named like it.
bool Dispatcher::ShowJob(const wire::PeerId& peer, const wire::Watch& m) {
  const auto it = leases_.find(JobId{m.run.uuid});
  if (it == leases_.end()) return false;
  const Lease& lease = it->second;
  if (lease.spec->org != m.org || lease.presumed || lease.ending) return false;
  const bool cancelling = Cancelling(shards_.at(lease.shard), *lease.spec);
  wire::RunUpdate update{
      .run = m.run, .state = cancelling ? RunState::kCancelling : RunState::kRunning, .reason = {}, .changed = {}};
  update.changed.push_back({.job = lease.spec->id,
                            .stage = lease.spec->stage,
                            .state = cancelling ? JobState::kCancelling : JobState::kRunning,
                            .counters = lease.counters,
                            .worker = workers_.at(lease.worker).name,
                            .rows = lease.rows,
                            .bytes = lease.bytes,
                            .result = {},
                            .error = {}});
  to_clients_.push_back({.peer = peer, .message = std::move(update)});
  return true;
}

void Dispatcher::EmitUpdates(Shard& shard) {
  for (const RunId& run : shard.runs.TakeChangedRuns()) {
    const auto it = watchers_.find(run);
    if (it == watchers_.end()) continue;
    if (auto update = shard.runs.Update(run, false); update && !update->changed.empty())
      for (const auto& peer : it->second) SendUpdate(peer, *update);
  }
}

// In as many messages as it takes; only the last one says that the run has ended, because its reader stops there.
void Dispatcher::SendUpdate(const wire::PeerId& peer, const wire::RunUpdate& update) {
  wire::RunUpdate part{.run = update.run, .state = update.state, .reason = update.reason, .changed = {}};
  const RunState until_last = IsTerminal(update.state) ? RunState::kRunning : update.state;
  std::size_t bytes = 0;
  for (const auto& stage : update.changed) {
    const std::size_t size = wire::SizeBound(stage);
    if (!part.changed.empty() && bytes + size > wire::kBatchBytesMax) {
      to_clients_.push_back(
          {.peer = peer,
           .message = wire::RunUpdate{
               .run = update.run, .state = until_last, .reason = {}, .changed = std::exchange(part.changed, {})}});
      bytes = 0;
    }
    bytes += size;
    part.changed.push_back(stage);
  }
  to_clients_.push_back({.peer = peer, .message = std::move(part)});
}

void Dispatcher::OnStatus(const wire::PeerId& peer, const wire::Status& m) {
  wire::StatusReply reply{.request = m.request, .broker = options_.name, .shards = {}, .workers = {}};
  std::map<ShardId, std::uint64_t> running;
  for (const auto& [id, lease] : leases_) ++running[lease.shard];
  for (const auto& [id, shard] : shards_)
    if (shard.phase == Phase::kReady)
      reply.shards.push_back({.shard = id.value(),
                              .epoch = shard.hold.epoch.value(),
                              .ready = lines_.Ready(id),
                              .running = running[id],
                              .runs = shard.runs.size()});
  for (const auto& [id, worker] : workers_)
    reply.workers.push_back(
        {.name = worker.name, .concurrency = worker.concurrency, .running = static_cast<std::uint32_t>(worker.leases.size())});
  to_clients_.push_back({.peer = peer, .message = std::move(reply)});
}

}  // namespace millrace
