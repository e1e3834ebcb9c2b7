#include "broker/ledger_pump.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/base/log.h"
#include "common/model/instants.h"
#include "common/wire/text.h"

namespace millrace {
namespace {

// Between two renewals lie at most one interval, one commit or read, and the renewal's own budget.
constexpr Millis kCommitBudget{2500};
constexpr Millis kReadBudget{2000};
constexpr Millis kRenewBudget{1000};
constexpr Millis kAnnounceBudget{400};
constexpr Millis kBackoffFirst{20};
constexpr Millis kBackoffMax{500};
constexpr Millis kTakeRetry{1000};
// A broker that was killed is counted until its row is too old, its restart as another one: nothing is handed over so soon.
constexpr Millis kSurplusPatience = kOwnershipTtl + Millis{1000};
constexpr Millis kTakeAnewDelay{100}, kTakeAnewDelayMax{2000};
static_assert(kOwnershipRenewInterval + kCommitBudget + kRenewBudget + kAnnounceBudget < kOwnershipTtl);
constexpr std::uint32_t kUnreadPageJobs = 256;  // of what is read into a queue that had no memory
constexpr int kReadsPerStep = 4;
constexpr Millis kReadsTime{50};  // a ledger that is far away answers one; then commits that wait meanwhile have their turn

template <class T>
std::size_t MoveInto(std::vector<T>& to, std::vector<T>& from) {
  const std::size_t n = from.size();
  if (to.empty()) {
    to = std::move(from);
  } else {
    std::move(from.begin(), from.end(), std::back_inserter(to));
  }
  from.clear();
  return n;
}

template <class T>
void MoveBack(std::vector<T>& to, std::vector<T>& from, std::size_t& at, std::size_t n) {
  const auto begin = from.begin() + static_cast<std::ptrdiff_t>(at);
  to.assign(std::make_move_iterator(begin), std::make_move_iterator(begin + static_cast<std::ptrdiff_t>(n)));
  at += n;
}

// A ledger may hold instants that the queue refuses.
void Clamp(LiveJob& job) {
  ClampInstants(job.spec);
  if (job.next_run_at) ClampInstant(*job.next_run_at);
}

void Clamp(LiveRun& run) {
  ClampInstants(run.spec);
  for (JobSpec& job : run.jobs) ClampInstants(job);
  for (auto& [job, at] : run.next_run_at) ClampInstant(at);
}

void Clamp(Ledger::Outbox& rows) {
  for (LiveJob& job : rows.jobs) Clamp(job);
  for (LiveRun& run : rows.runs) Clamp(run);
  for (Ledger::Outbox::Batch& batch : rows.batches)
    for (LiveRun& run : batch.runs) Clamp(run);
}

std::size_t Rows(const OwnerBatch& b) {
  return b.runs.size() + b.jobs.size() + b.attempts.size() + b.outcomes.size() + b.run_outcomes.size() + b.cancels.size() +
         b.outbox_done_runs.size() + b.outbox_done_jobs.size() + b.outbox_done_cancels.size() + b.outbox_done_batches.size() +
         b.unique_started.size();
}

}  // namespace

LedgerPump::LedgerPump(LedgerPumpOptions options, Ledger& ledger, const Clock& clock)
    : options_(std::move(options)), ledger_(ledger), clock_(clock) {
  const MonoTime now = clock_.Now();
  for (const ShardId shard : options_.shards) next_take_[shard] = now;
}

bool LedgerPump::Holds(const ShardHold& hold) const {
  const auto it = holds_.find(hold.shard);
  return it != holds_.end() && it->second == hold.epoch;
}

void LedgerPump::Post(LedgerCommand posted) {
  if (auto* commit = std::get_if<command::Commit>(&posted)) {
    if (Holds(commit->hold)) pieces_.push_back(std::move(*commit));
  } else if (auto* anew = std::get_if<command::TakeShardAnew>(&posted)) {
    if (!Holds(anew->dropped)) return;
    LogWarn("shard {}: taking it anew: {}", anew->dropped.shard.value(), anew->reason);
    holds_.erase(anew->dropped.shard);
    yielding_.erase(anew->dropped.shard);
    next_take_[anew->dropped.shard] = clock_.Now() + TakeDelay(anew->dropped.shard);
    DropPieces();
  } else if (const auto* release = std::get_if<command::ReleaseShard>(&posted)) {
    if (!Holds(release->hold)) return;
    holds_.erase(release->hold.shard);
    yielding_.erase(release->hold.shard);
    next_take_[release->hold.shard] = clock_.Now() + kTakeRetry;
    DropPieces();
    // If it fails, the row says so until it is too old.
    if (auto done = ledger_.ReleaseShards(std::span{&release->hold, 1}, options_.owner, Deadline(kRenewBudget)); !done)
      LogWarn("shard {}: not released: {}", release->hold.shard.value(), done.error().message);
  } else if (std::holds_alternative<command::TakeEnqueued>(posted)) {
    next_enqueued_ = clock_.Now();
  } else {
    reads_.push_back(std::move(posted));
    ++reads_posted_;
  }
}

MonoTime LedgerPump::Step(std::vector<Event>& out) {
  const MonoTime now = clock_.Now();
  if (!holds_.empty() && next_renew_ <= now) Renew(now, out);
  if (next_announce_ <= now) Announce(now, out);
  TakeFree(now, out);
  if (retry_at_ <= now) CommitSome(now, out);
  ReadSome(out);
  if (next_enqueued_ <= now && !RenewalDue()) TakeEnqueued(now, out);
  if (RenewalDue()) return now;  // first things first: the next step renews
  MonoTime next = std::min(now + kOwnershipRenewInterval, next_announce_);
  if (!holds_.empty()) next = std::min({next, next_renew_, next_enqueued_});
  for (const auto& [shard, at] : next_take_) next = std::min(next, at);
  if (merged_ || !pieces_.empty()) next = std::min(next, retry_at_);
  if (!reads_.empty()) next = now;
  return next;
}

void LedgerPump::Renew(MonoTime now, std::vector<Event>& out) {
  std::vector<ShardHold> holds;
  for (const auto& [shard, epoch] : holds_) holds.push_back({.shard = shard, .epoch = epoch});
  const auto renewed = ledger_.RenewShards(holds, options_.owner, Deadline(kRenewBudget));
  if (renewed) {
    renewed_ = now;
    next_renew_ = now + kOwnershipRenewInterval;
    return;
  }
  next_renew_ = now + kOwnershipRenewInterval / 4;
  if (renewed.error().code == ErrorCode::kStale) {
    LoseStale(out);
  } else if (now - renewed_ >= kOwnershipTtl) {
    for (const ShardHold& hold : holds) Lose(hold.shard, "the ledger cannot be reached: " + renewed.error().message, out);
  }
}

// Which brokers live says how many shards are ours; commands find by it whom to ask.
void LedgerPump::Announce(MonoTime now, std::vector<Event>& out) {
  next_announce_ = now + kOwnershipRenewInterval;
  const bool nothing_to_share = options_.sole || options_.shards.size() < 2;  // who is first has it
  if (nothing_to_share) share_ = options_.shards.size();
  if (options_.sole) return;
  const auto alive = ledger_.AnnounceBroker(options_.owner, {.name = options_.owner_name, .clients = options_.clients}, false,
                                            Deadline(kAnnounceBudget));
  if (!alive) return;  // what was known stands
  const std::size_t brokers = std::max<std::size_t>(1, alive->size());
  const std::size_t share = (options_.shards.size() + brokers - 1) / brokers;
  if (share > share_)
    for (auto& [shard, at] : next_take_) at = std::min(at, std::max(now, taken_[shard].at + kTakeAnewDelay));
  share_ = share;
  YieldSurplus(now, out);
}

// What is too much for the whole of kSurplusPatience goes to the others: they have been below their share for as long.
void LedgerPump::YieldSurplus(MonoTime now, std::vector<Event>& out) {
  const std::size_t kept = holds_.size() - yielding_.size();
  if (kept <= share_) {
    surplus_since_.reset();
    return;
  }
  surplus_ = surplus_since_ ? std::min(surplus_, kept - share_) : kept - share_;
  if (!surplus_since_) surplus_since_ = now;
  if (now - *surplus_since_ < kSurplusPatience) return;
  surplus_since_.reset();
  for (auto it = holds_.rbegin(); it != holds_.rend() && surplus_ > 0; ++it) {
    if (!yielding_.insert(it->first).second) continue;
    --surplus_;
    out.emplace_back(event::YieldShard{.hold = {.shard = it->first, .epoch = it->second}});
  }
}

// We have our share: who has the others' shards is asked once, for all of them.
void LedgerPump::LookElsewhere(MonoTime now, std::vector<Event>& out) {
  if (std::ranges::none_of(next_take_, [&](const auto& entry) { return entry.second <= now; })) return;
  for (auto& [shard, at] : next_take_) at = now + kTakeRetry;
  const auto shards = ledger_.Shards(Deadline(kRenewBudget));
  if (!shards) return;
  for (const ShardStatus& s : *shards) {
    if (!next_take_.contains(s.shard) || !s.owner || elsewhere_[s.shard] == s.owner_name) continue;
    elsewhere_[s.shard] = s.owner_name;
    out.emplace_back(event::ShardLost{.shard = s.shard, .reason = "not ours", .owner_name = s.owner_name});
  }
}

void LedgerPump::TakeFree(MonoTime now, std::vector<Event>& out) {
  if (holds_.size() >= share_) LookElsewhere(now, out);
  for (auto& [shard, at] : next_take_) {
    if (at > now || holds_.contains(shard) || holds_.size() >= share_) continue;
    if (RenewalDue()) break;  // many shards of a ledger that is far away: those that are ours come first
    const auto epoch = ledger_.TakeShard(shard, options_.owner, options_.owner_name, Deadline(kRenewBudget));
    if (epoch) {
      if (holds_.empty()) {
        renewed_ = now;
        next_renew_ = now + kOwnershipRenewInterval;
      }
      holds_[shard] = *epoch;
      taken_[shard].at = clock_.Now();
      elsewhere_.erase(shard);
      out.emplace_back(event::ShardTaken{.hold = {.shard = shard, .epoch = *epoch}});
      continue;
    }
    at = now + kTakeRetry;
    if (epoch.error().code != ErrorCode::kConflict) {
      LogWarn("shard {}: {}", shard.value(), epoch.error().message);
      if (epoch.error().code == ErrorCode::kUnavailable) break;  // the others would not fare better
    } else if (elsewhere_[shard] != epoch.error().message) {
      elsewhere_[shard] = epoch.error().message;
      out.emplace_back(event::ShardLost{.shard = shard, .reason = "not ours", .owner_name = epoch.error().message});
    }
  }
  std::erase_if(next_take_, [&](const auto& entry) { return holds_.contains(entry.first); });
}

Millis LedgerPump::TakeDelay(ShardId shard) {
  Taken& taken = taken_[shard];
  const bool at_once = clock_.Now() - taken.at < kTakeAnewDelayMax;
  taken.delay = at_once ? std::clamp(taken.delay * 2, kTakeAnewDelay, kTakeAnewDelayMax) : kTakeAnewDelay;
  return taken.delay;
}

void LedgerPump::Lose(ShardId shard, const std::string& reason, std::vector<Event>& out) {
  if (holds_.erase(shard) == 0) return;
  yielding_.erase(shard);
  next_take_[shard] = clock_.Now() + TakeDelay(shard);
  out.emplace_back(event::ShardLost{.shard = shard, .reason = reason, .owner_name = {}});
  DropPieces();
}

void LedgerPump::DropPieces() {
  if (merged_) Split();
  std::erase_if(pieces_, [&](const command::Commit& piece) { return !Holds(piece.hold); });
}

// Somebody took a shard; which one, the ledger knows. When it cannot be asked, none is kept.
void LedgerPump::LoseStale(std::vector<Event>& out) {
  const auto shards = ledger_.Shards(Deadline(kRenewBudget));
  std::vector<ShardId> lost;
  for (const auto& [shard, epoch] : holds_) {
    const bool kept = shards && std::ranges::any_of(*shards, [&](const ShardStatus& s) {
                        // The analyzer follows a path in which an optional without a value is compared.
                        return s.shard == shard && s.epoch == epoch &&
                               s.owner == options_.owner;  // NOLINT(clang-analyzer-core.CallAndMessage)
                      });
    if (!kept) lost.push_back(shard);
  }
  for (const ShardId shard : lost) Lose(shard, "another broker took it", out);
}

void LedgerPump::Merge() {
  if (pieces_.empty()) return;
  merged_.emplace();
  OwnerBatch& all = merged_->batch;
  all.owner = options_.owner;
  std::size_t rows = 0, bytes = 0;
  std::set<ShardId> shards;
  while (!pieces_.empty() && (rows == 0 || (!alone_ && rows + Rows(pieces_.front().rows) <= kOwnerBatchRowsMax &&
                                            bytes + pieces_.front().bytes <= kOwnerBatchBytesMax))) {
    command::Commit piece = std::move(pieces_.front());
    pieces_.pop_front();
    rows += Rows(piece.rows);
    bytes += piece.bytes;
    if (shards.insert(piece.hold.shard).second) all.holds.push_back(piece.hold);
    OwnerBatch& r = piece.rows;
    const Counts counts{.runs = MoveInto(all.runs, r.runs),
                        .jobs = MoveInto(all.jobs, r.jobs),
                        .attempts = MoveInto(all.attempts, r.attempts),
                        .outcomes = MoveInto(all.outcomes, r.outcomes),
                        .run_outcomes = MoveInto(all.run_outcomes, r.run_outcomes),
                        .cancels = MoveInto(all.cancels, r.cancels),
                        .outbox_runs = MoveInto(all.outbox_done_runs, r.outbox_done_runs),
                        .outbox_jobs = MoveInto(all.outbox_done_jobs, r.outbox_done_jobs),
                        .outbox_cancels = MoveInto(all.outbox_done_cancels, r.outbox_done_cancels),
                        .outbox_batches = MoveInto(all.outbox_done_batches, r.outbox_done_batches),
                        .unique_started = MoveInto(all.unique_started, r.unique_started)};
    merged_->pieces.emplace_back(std::move(piece), counts);
    if (rows == 0) break;
  }
}

void LedgerPump::Split() {
  OwnerBatch& all = merged_->batch;
  Counts at{};
  for (auto& [piece, n] : merged_->pieces) {
    MoveBack(piece.rows.runs, all.runs, at.runs, n.runs);
    MoveBack(piece.rows.jobs, all.jobs, at.jobs, n.jobs);
    MoveBack(piece.rows.attempts, all.attempts, at.attempts, n.attempts);
    MoveBack(piece.rows.outcomes, all.outcomes, at.outcomes, n.outcomes);
    MoveBack(piece.rows.run_outcomes, all.run_outcomes, at.run_outcomes, n.run_outcomes);
    MoveBack(piece.rows.cancels, all.cancels, at.cancels, n.cancels);
    MoveBack(piece.rows.outbox_done_runs, all.outbox_done_runs, at.outbox_runs, n.outbox_runs);
    MoveBack(piece.rows.outbox_done_jobs, all.outbox_done_jobs, at.outbox_jobs, n.outbox_jobs);
    MoveBack(piece.rows.outbox_done_cancels, all.outbox_done_cancels, at.outbox_cancels, n.outbox_cancels);
    MoveBack(piece.rows.outbox_done_batches, all.outbox_done_batches, at.outbox_batches, n.outbox_batches);
    MoveBack(piece.rows.unique_started, all.unique_started, at.unique_started, n.unique_started);
  }
  for (auto it = merged_->pieces.rbegin(); it != merged_->pieces.rend(); ++it) pieces_.push_front(std::move(it->first));
  merged_.reset();
}

void LedgerPump::CommitSome(MonoTime now, std::vector<Event>& out) {
  if (!merged_) Merge();
  if (!merged_) {
    alone_ = false;
    return;
  }
  auto result = ledger_.Commit(merged_->batch, Deadline(kCommitBudget));
  if (result) {
    backoff_ = Millis{0};
    event::Committed committed{.pieces = {}, .batch = std::move(merged_->batch), .result = std::move(*result)};
    for (const auto& [piece, counts] : merged_->pieces) committed.pieces.push_back(piece.piece);
    merged_.reset();
    out.emplace_back(std::move(committed));
    return;
  }
  const Error error = std::move(result.error());
  switch (error.code) {
    case ErrorCode::kStale:
      Split();
      LoseStale(out);
      break;
    case ErrorCode::kMaybeApplied: {
      // Repeating it could take our own rows for somebody else's: the rebuild finds out what was applied.
      const auto holds = merged_->batch.holds;
      for (const ShardHold& hold : holds) Lose(hold.shard, "the outcome of a commit is not known: " + error.message, out);
      break;
    }
    case ErrorCode::kUnavailable:
    case ErrorCode::kTimedOut:
    case ErrorCode::kConflict:
    case ErrorCode::kLimit:
      if (backoff_ == Millis{0}) LogWarn("ledger: {}: trying again", error.message);
      backoff_ = std::clamp(backoff_ * 2, kBackoffFirst, kBackoffMax);
      retry_at_ = now + backoff_;
      break;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound:
    case ErrorCode::kWiped:
    case ErrorCode::kRejected:
    case ErrorCode::kCorrupt:
    case ErrorCode::kCancelled:
    case ErrorCode::kUnsupported: Refused(error, out); break;
  }
}

// Something in the batch will never be stored. Alone, each piece shows whether it is the one: a submit is refused to its
// client, the progress of attempts is stored without its free text, its instants within their range.
void LedgerPump::Refused(const Error& error, std::vector<Event>& out) {
  if (merged_->pieces.size() > 1) {
    alone_ = true;
    Split();
    return;
  }
  Split();
  command::Commit& piece = pieces_.front();
  // Progress may carry jobs too.
  const bool submit = piece.rows.attempts.empty() && piece.rows.outcomes.empty() && piece.rows.cancels.empty();
  if (submit && (!piece.rows.jobs.empty() || !piece.rows.runs.empty())) {
    LogWarn("ledger: a submit is refused: {}", error.message);
    out.emplace_back(event::CommitRefused{.piece = piece.piece, .rows = std::move(piece.rows), .error = error});
    pieces_.pop_front();
  } else if (!Scrub(piece.rows)) {
    LogError("ledger: the progress of attempts is refused: {}", error.message);
    Lose(piece.hold.shard, "the ledger refuses its rows: " + error.message, out);
  }
}

// False: nothing was left to take away.
bool LedgerPump::Scrub(OwnerBatch& rows) {
  bool changed = false;
  const auto scrub = [&](AttemptReport& report) {
    changed = ClampInstants(report) || changed;
    if (report.result.empty() && report.log_tail.empty() && report.error == "removed") return;
    changed = true;
    report.result.clear();
    report.log_tail.clear();
    report.error = "removed";
    report.error_class = wire::CleanText(report.error_class, kNameBytesMax);
    report.worker = wire::CleanText(report.worker, kNameBytesMax);
  };
  for (JobSpec& job : rows.jobs) changed = ClampInstants(job) || changed;
  for (AttemptRow& row : rows.attempts) scrub(row.report);
  for (OutcomeRow& row : rows.outcomes) scrub(row.report);
  for (RunOutcomeRow& row : rows.run_outcomes) row.reason = wire::CleanText(row.reason, kErrorMessageBytesMax);
  return changed;
}

// Only the orgs of our shards: other brokers take theirs at the same time.
void LedgerPump::TakeEnqueued(MonoTime now, std::vector<Event>& out) {
  next_enqueued_ = now + kEnqueuePollInterval;
  std::vector<ShardId> shards;
  for (const auto& [shard, epoch] : holds_) shards.push_back(shard);
  if (shards.empty()) return;
  const auto taken = ledger_.TakeEnqueued(shards, Deadline(kCommitBudget));
  if (!taken) {
    if (!std::exchange(enqueue_complained_, true)) LogWarn("enqueue: {}: trying again", taken.error().message);
    return;
  }
  enqueue_complained_ = false;
  if (taken->refused > 0) LogWarn("enqueue: {} rows are refused: see millrace job refused", taken->refused);
  if (taken->more) next_enqueued_ = now;
  for (const ShardId shard : taken->shards) out.emplace_back(event::Rung{.shard = shard});
}

void LedgerPump::ReadSome(std::vector<Event>& out) {
  if (RenewalDue()) return;
  const MonoTime until = clock_.Now() + kReadsTime;
  LookAtContents();
  for (int i = 0; i < kReadsPerStep && !reads_.empty() && !RenewalDue();) {
    LedgerCommand read = std::move(reads_.front());
    const bool covered = reads_posted_ - reads_.size() < contents_for_;
    reads_.pop_front();
    if (covered && ReadNothing(read, out)) continue;
    Read(read, out);
    if (++i < kReadsPerStep && clock_.Now() >= until) break;
  }
}

// Several reads of what is mostly empty wait, as after a takeover of many shards and at each poll of their outboxes: one
// question for all of them. What it says holds for reads that were posted before it was asked.
void LedgerPump::LookAtContents() {
  const auto is_new = [&](std::size_t at) { return reads_posted_ - reads_.size() + at >= contents_for_; };
  std::size_t open = 0;
  for (std::size_t at = 0; at < reads_.size() && open < 2; ++at)
    if (is_new(at) &&
        (std::holds_alternative<command::ReadLiveRuns>(reads_[at]) ||
         std::holds_alternative<command::ReadLiveJobs>(reads_[at]) || std::holds_alternative<command::ReadOutbox>(reads_[at]) ||
         std::holds_alternative<command::ReadQueueSettings>(reads_[at])))
      ++open;
  if (open < 2) return;
  const auto found = ledger_.Contents(Deadline(kReadBudget));
  if (!found) return;  // the reads will say why
  contents_.clear();
  for (const ShardContents& one : *found) contents_.emplace(one.shard, one);
  contents_for_ = reads_posted_;
}

// True: the read is answered, nothing is there.
bool LedgerPump::ReadNothing(const LedgerCommand& posted, std::vector<Event>& out) {
  const auto none = [&](const ShardHold& hold, bool ShardContents::* kind) {
    const auto it = contents_.find(hold.shard);
    return it != contents_.end() && !(it->second.*kind) && Holds(hold);
  };
  if (const auto* runs = std::get_if<command::ReadLiveRuns>(&posted); runs && none(runs->hold, &ShardContents::live_runs)) {
    out.emplace_back(event::LiveRunsRead{.hold = runs->hold, .runs = {}, .last = true});
  } else if (const auto* jobs = std::get_if<command::ReadLiveJobs>(&posted);
             jobs && none(jobs->hold, &ShardContents::live_jobs)) {
    out.emplace_back(event::LiveJobsRead{.hold = jobs->hold, .jobs = {}, .last = true, .failed = false});
  } else if (const auto* outbox = std::get_if<command::ReadOutbox>(&posted);
             outbox && none(outbox->hold, &ShardContents::outbox)) {
    out.emplace_back(event::OutboxRead{.hold = outbox->hold, .rows = {}, .cancels_only = outbox->cancels_only});
  } else if (const auto* queues = std::get_if<command::ReadQueueSettings>(&posted);
             queues && none(queues->hold, &ShardContents::queue_settings)) {
    out.emplace_back(event::QueueSettingsRead{.hold = queues->hold, .settings = {}, .failed = false});
  } else {
    return false;
  }
  return true;
}

void LedgerPump::Read(LedgerCommand& posted, std::vector<Event>& out) {
  const std::uint16_t shards = options_.shard_count;
  if (const auto* runs = std::get_if<command::ReadLiveRuns>(&posted)) {
    if (!Holds(runs->hold)) return;
    auto page = ledger_.LiveRuns(runs->hold.shard, shards, runs->after, kLivePageRuns, Deadline(kReadBudget));
    if (!page) return Lose(runs->hold.shard, "rebuild: " + page.error().message, out);
    const bool last = page->empty();
    for (LiveRun& run : *page) Clamp(run);
    out.emplace_back(event::LiveRunsRead{.hold = runs->hold, .runs = std::move(*page), .last = last});
  } else if (const auto* jobs = std::get_if<command::ReadLiveJobs>(&posted)) {
    if (!Holds(jobs->hold)) return;
    LivePage asked{.jobs = jobs->rebuild ? std::uint32_t{kLivePageJobs} : kUnreadPageJobs};
    asked.outbox_ids_only = jobs->rebuild && !jobs->whole;
    auto page = ledger_.LiveSingleJobs(jobs->hold.shard, shards, jobs->after, asked, Deadline(kReadBudget));
    if (!page && jobs->rebuild) return Lose(jobs->hold.shard, "rebuild: " + page.error().message, out);
    if (!page) {
      LogWarn("shard {}: jobs that wait in the ledger: {}", jobs->hold.shard.value(), page.error().message);
      out.emplace_back(event::LiveJobsRead{.hold = jobs->hold, .jobs = {}, .last = false, .failed = true});
      return;
    }
    for (LiveJob& job : page->jobs) Clamp(job);
    out.emplace_back(event::LiveJobsRead{
        .hold = jobs->hold, .jobs = std::move(page->jobs), .last = page->last, .failed = false, .after = jobs->after});
  } else if (const auto* outbox = std::get_if<command::ReadOutbox>(&posted)) {
    if (!Holds(outbox->hold)) return;
    const bool cancels_only = outbox->cancels_only;
    auto rows = cancels_only ? ledger_.ReadOutboxCancels(outbox->hold.shard, shards, kOutboxPage, Deadline(kReadBudget))
                             : ledger_.ReadOutbox(outbox->hold.shard, shards, kOutboxPage, Deadline(kReadBudget));
    if (!rows) {  // an empty page: it is read again at the next poll
      LogWarn("shard {}: outbox: {}", outbox->hold.shard.value(), rows.error().message);
      out.emplace_back(event::OutboxRead{.hold = outbox->hold, .rows = {}, .failed = true, .cancels_only = cancels_only});
      return;
    }
    const bool more = rows->more;
    Clamp(*rows);
    out.emplace_back(
        event::OutboxRead{.hold = outbox->hold, .rows = std::move(*rows), .more = more, .cancels_only = cancels_only});
  } else if (const auto* known = std::get_if<command::ReadKnown>(&posted)) {
    if (!Holds(known->hold)) return;
    auto found = ledger_.KnownJobs(known->jobs, Deadline(kReadBudget));
    if (!found) return Lose(known->hold.shard, "jobs of the queue: " + found.error().message, out);
    out.emplace_back(event::KnownRead{.hold = known->hold, .check = known->check, .known = std::move(*found)});
  } else if (auto* asked = std::get_if<command::ReadStates>(&posted)) {
    if (!Holds(asked->hold)) return;
    auto states = ledger_.States(asked->org, asked->items, Deadline(kReadBudget));
    if (states)
      for (ItemState& state : *states)
        if (state.live) Clamp(*state.live);
    out.emplace_back(event::StatesRead{.hold = asked->hold, .number = asked->number, .states = std::move(states)});
  } else if (auto* run = std::get_if<command::ReadRun>(&posted)) {
    auto detail = ledger_.GetRun(run->org, run->run, Deadline(kReadBudget));
    out.emplace_back(
        event::RunRead{.peer = std::move(run->peer), .request = run->request, .run = run->run, .detail = std::move(detail)});
  } else if (const auto* queues = std::get_if<command::ReadQueueSettings>(&posted)) {
    if (!Holds(queues->hold)) return;
    auto settings = ledger_.QueuesOf(std::nullopt, queues->hold.shard, Deadline(kReadBudget));
    if (!settings && queues->rebuild) return Lose(queues->hold.shard, "rebuild: " + settings.error().message, out);
    if (!settings) LogWarn("shard {}: queue settings: {}", queues->hold.shard.value(), settings.error().message);
    const bool failed = !settings;
    out.emplace_back(event::QueueSettingsRead{
        .hold = queues->hold, .settings = failed ? std::vector<QueueSettings>{} : std::move(*settings), .failed = failed});
  } else if (auto* put = std::get_if<command::PutQueueSettings>(&posted)) {
    auto stored = ledger_.PutQueueSettings(put->settings, put->actor, Deadline(kReadBudget));
    out.emplace_back(
        event::QueueSettingsPut{.peer = std::move(put->peer), .request = put->request, .stored = std::move(stored)});
  }
}

void LedgerPump::Release() {
  if (!options_.sole) {
    const auto gone = ledger_.AnnounceBroker(options_.owner, {.name = options_.owner_name}, true, Deadline(kRenewBudget));
    if (!gone) LogWarn("the other brokers wait {} ms for this one: {}", kOwnershipTtl.count(), gone.error().message);
  }
  std::vector<ShardHold> holds;
  for (const auto& [shard, epoch] : holds_) holds.push_back({.shard = shard, .epoch = epoch});
  if (holds.empty()) return;
  if (auto released = ledger_.ReleaseShards(holds, options_.owner, Deadline(kCommitBudget)); !released)
    LogWarn("shards not released: {}", released.error().message);
  holds_.clear();
}

}  // namespace millrace
