// What time ends: deadlines of jobs, expiry of those that wait. A waiting single job costs no memory here: the queue keeps its
// time (QueueEntry::expires_at), and one bounded operation at a time takes out what is due.
#include <algorithm>
#include <chrono>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "common/base/check.h"

namespace millrace {

// An end that quarantine or the job's deadline brings about is named after it; how the last attempt ended stays in the row.
void Dispatcher::JudgeTime(const Lease& lease, AttemptReport& report, AttemptVerdict& verdict) const {
  const auto explain = [&](std::string_view error_class, std::string why) {
    report.error_class = error_class;
    report.error = report.error.empty() ? std::move(why) : fmt::format("{}; at last: {}", why, report.error);
  };
  if (report.end == AttemptEnd::kCrashed && verdict.counters.crashes >= static_cast<std::uint32_t>(kCrashesMax)) {
    MILLRACE_CHECK(verdict.terminal == JobState::kDead, "job {}: crashed {} times and lives", report.job.ToString(),
                   verdict.counters.crashes);
    return explain(kErrorCrashQuarantine, fmt::format("its process died {} times", verdict.counters.crashes));
  }
  const auto& deadline = lease.spec->options.deadline;
  const bool stopped_by_it = lease.cut && report.end == AttemptEnd::kTimedOut;
  if (!deadline || (*deadline > wall_ && !stopped_by_it)) return;
  if (verdict.terminal && !(verdict.terminal == JobState::kDead && stopped_by_it)) return;
  verdict.terminal = JobState::kDead;
  verdict.immediate = false;
  explain(kErrorDeadlineExceeded, fmt::format("its deadline was {}", ToRfc3339(*deadline)));
}

// An attempt's own timeout, or what is left until the deadline when that is less (`cut`). 0: none. A fence is raised whenever.
std::uint32_t Dispatcher::TimeoutOf(const JobSpec& spec, bool fence, bool& cut) const {
  std::int64_t timeout = std::max<std::int64_t>(spec.timeout.count(), 0);
  if (spec.options.deadline && !fence) {
    const std::int64_t left = std::max<std::int64_t>(std::chrono::ceil<Millis>(*spec.options.deadline - wall_).count(), 1);
    cut = timeout == 0 || left < timeout;
    if (cut) timeout = left;
  }
  return static_cast<std::uint32_t>(std::min<std::int64_t>(timeout, UINT32_MAX));
}

// Ends a job that waits, if its time has come: the outcome is written, and it leaves the queue when that is durable.
bool Dispatcher::EndIfOver(Shard& shard, const JobSpec& spec, const Counters& counters, bool kept) {
  const auto end = EndOfWait(spec.options, counters);
  if (!end || end->at > wall_ || Cancelling(shard, spec)) return false;
  const bool expired = end->state == JobState::kExpired;
  Piece& piece = OpenPiece(shard, shard.progress_piece);
  const std::string why = expired ? fmt::format("it was not started by {}", ToRfc3339(end->at))
                                  : fmt::format("its deadline was {}; it waited for {}", ToRfc3339(end->at),
                                                counters.failures > 0 ? "its next attempt" : "its first attempt");
  piece.unleased.push_back(spec.id);
  if (!spec.run) shard.settling[spec.id] = {.org = spec.org};
  if (kept) KeepSpec(piece, spec);
  piece.rows.outcomes.push_back(
      UnrunOutcome(spec, counters, end->state, expired ? kErrorExpired : kErrorDeadlineExceeded, why));
  if (spec.run) AppendEffects(shard, piece, shard.runs.JobOver(spec.id, end->state, why));
  return true;
}

void Dispatcher::EndOverdueBlocked(Shard& shard) {
  for (const JobId& id : shard.runs.TakeOverdue(wall_, kExpireJobsMax)) {
    const RunCoordinator::Job* job = shard.runs.Find(id);
    // The end of one may have skipped the next.
    if (job == nullptr || job->state != JobState::kBlocked) continue;
    const auto spec = job->spec;
    EndIfOver(shard, *spec, job->counters);
  }
}

void Dispatcher::EmitExpire(Shard& shard, std::vector<Command>& out) {
  if (shard.phase != Phase::kReady || shard.expiring || !shard.next_expiry || *shard.next_expiry > wall_) return;
  shard.expiring = true;
  shard.next_expiry.reset();
  Execute(shard, queue_op::ExpireDue{.shard = shard.hold.shard, .epoch = shard.hold.epoch, .now = wall_, .max = kExpireJobsMax},
          Op::Kind::kExpire, out);
}

void Dispatcher::OnExpired(const Op& op, QueueReply& reply) {
  Shard& shard = *Current(op.hold);
  shard.expiring = false;
  if (reply.next_due) shard.next_expiry = shard.next_expiry ? std::min(*shard.next_expiry, *reply.next_due) : *reply.next_due;
  ForgetLost(shard, reply);
  Check doubtful;  // where in its line an entry was is not known, so neither whether it is of an earlier state
  for (const QueueEntry& entry : reply.claimed) {
    const auto key = LineKey::Parse(entry.line);
    if (!key) return TakeAnew(shard, key.error().message);
    shard.budgets.Claimed(key->org, key->queue, std::nullopt);
    const bool kept = key->durability == Durability::kRedis;
    // It runs already, or has ended.
    if (Leased(shard, entry.id) || Left(shard, entry.id)) continue;
    JobEntry waiting;
    if (const RunCoordinator::Job* job = entry.body.empty() ? shard.runs.Find(entry.id) : nullptr) {
      if (IsTerminal(job->state) || job->state == JobState::kCancelling) {
        shard.finish.push_back(entry.id);
        continue;
      }
      waiting = {.spec = *job->spec, .counters = job->counters};
    } else if (entry.body.empty()) {
      shard.finish.push_back(entry.id);
      continue;
    } else if (auto decoded = DecodeEntry(entry.body, entry.id, *key)) {
      waiting = std::move(*decoded);
    } else if (kept) {
      EndDamaged(shard, *key, entry.id, decoded.error());
      continue;
    } else {
      return TakeAnew(shard, decoded.error().message);
    }
    if (kept && HandOver(shard, waiting)) continue;
    if (kept)
      doubtful.expired.push_back(std::move(waiting));
    else if (!EndIfOver(shard, waiting.spec, waiting.counters))  // the clock was set back
      Enqueue(shard, waiting.spec, waiting.counters, std::nullopt, true);
  }
  if (!doubtful.expired.empty()) Ask(shard, std::move(doubtful));
}

}  // namespace millrace
