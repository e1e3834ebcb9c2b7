// A queue that has no memory left (Redis at its maxmemory). Near it, clients are refused and only cancels leave the outbox,
// so a put is refused only where something else fills the store, or its limit was lowered. Then whatever is in the queue goes
// on: workers drain it, and what the ledger has and the queue could not take waits here until it can. Of what is more than
// kUnqueuedBytesMax only the ids are kept: it is read from the ledger again. Jobs of `durability: redis` were not accepted,
// and their clients are told so.
#include <algorithm>
#include <map>
#include <set>
#include <unordered_set>
#include <utility>

#include "broker/dispatcher.h"
#include "common/base/log.h"

namespace millrace {
namespace {

constexpr std::size_t kRefusedTryMax = 4096;  // entries that are tried at once: fewer after each refusal, more after a success
constexpr auto kRefusedRetryInterval = kDispatcherTick;

std::size_t BytesOf(const QueueEntry& entry) { return sizeof entry + entry.line.size() + entry.body.size(); }

// It waits no more.
void Discount(QueueBudgets& budgets, const std::string& line) {
  if (const auto key = LineKey::Parse(line)) budgets.Claimed(key->org, key->queue, std::nullopt);
}

}  // namespace

bool Dispatcher::StoreFull() const {
  return queue_memory_.max > 0 && queue_memory_.used >= queue_memory_.max / 100 * kQueueMemoryPercentMax;
}

// Nothing of the put was applied: its entries neither wait in a line nor are in flight.
void Dispatcher::OnRefused(const Op& op, queue_op::Enqueue put) {
  Shard* shard = Current(op.hold);
  const auto may_run = [&] {
    for (const auto& submit : op.submits) submit->whole = false;
  };
  if (shard == nullptr) return may_run();  // who gave the shard away put into lines what waited here
  PutAnswered(*shard);
  std::size_t elsewhere = put.passed.size();  // that neither wait here nor were to start with it
  for (const dispatch::Pass& pass : op.passes) elsewhere -= std::min<std::size_t>(elsewhere, pass.plan.total);
  for (const dispatch::Pass& pass : op.passes) lines_.GiveBack(pass.plan.line->key, pass.plan.total, now_);
  std::map<std::string, std::uint64_t> gone;  // ready entries, by line
  for (const QueueEntry& entry : put.entries)
    if (!entry.run_at) ++gone[entry.line];
  const std::uint64_t number = shard->puts.sent - shard->puts.unanswered.size();
  std::set<std::string_view> passed;  // each line is looked through once
  for (const QueueEntry& entry : put.passed) passed.insert(entry.line);
  for (const std::string_view name : passed)
    if (LineIndex::Line* line = lines_.Find(shard->hold.shard, std::string(name));
        line != nullptr && line->buffered.count() > 0) {
      const std::size_t here = buffer_.TakeIf(line->buffered, [&](const auto& job) { return job.put == number; }).size();
      gone[line->name()] += here;
      elsewhere -= std::min(elsewhere, here);
    }
  if (elsewhere > 0) may_run();  // they started ahead, went to their lines since, or a cancel has them
  for (const auto& [line, n] : gone) {
    lines_.Forget(shard->hold.shard, line, n, now_);
    if (const auto held = shard->held_lines.find(line); held != shard->held_lines.end())
      held->second -= std::min(held->second, n);
  }
  if (shard->puts.refused_try_max == 0)
    LogWarn("shard {}: the queue has no memory left; what it cannot take waits in the broker", shard->hold.shard.value());
  for (QueueEntry& entry : put.entries) KeepRefused(*shard, std::move(entry));
  for (QueueEntry& entry : put.passed)
    if (std::ranges::find(op.ahead, entry.id) == op.ahead.end()) KeepRefused(*shard, std::move(entry));
  shard->puts.refused_until = now_ + kRefusedRetryInterval;
  shard->puts.refused_try_max = std::clamp<std::size_t>((put.entries.size() + put.passed.size()) / 2, 1, kRefusedTryMax);
  plan_needed_ = true;
}

void Dispatcher::KeepRefused(Shard& shard, QueueEntry entry) {
  if (IsKeptLine(entry.line)) {
    Discount(shard.budgets, entry.line);
    return;
  }
  if (!entry.body.empty() && TooMuchUnqueued()) {  // those of runs have no body, and are in the run coordinator
    Discount(shard.budgets, entry.line);
    LeaveUnread(shard, entry.id);
    return;
  }
  AddUnqueued(shard, BytesOf(entry));
  shard.puts.refused.push_back(std::move(entry));
}

// The first of them are tried again. `room`: the queue has just taken something. What leaves the queue meanwhile may have been
// looked for there already.
void Dispatcher::TryRefused(Shard& shard, bool room) {
  if (shard.yield_by) return;
  dispatch::Puts& puts = shard.puts;
  if (room && puts.refused_try_max > 0) {
    const bool over = puts.refused.empty() && puts.unread.jobs.empty();
    if (over) LogInfo("shard {}: the queue takes jobs again", shard.hold.shard.value());
    puts.refused_try_max = over ? 0 : std::min(kRefusedTryMax, 2 * puts.refused_try_max);
  }
  for (std::size_t n = 0; n < puts.refused_try_max && !puts.refused.empty(); ++n) {
    QueueEntry entry = std::move(puts.refused.front());
    puts.refused.pop_front();
    TakeUnqueued(shard, BytesOf(entry));
    if (shard.removals.Leaving(entry.id)) {
      Discount(shard.budgets, entry.line);
      continue;
    }
    if (entry.expires_at)
      shard.next_expiry = shard.next_expiry ? std::min(*shard.next_expiry, *entry.expires_at) : *entry.expires_at;
    if (entry.run_at)
      shard.next_due = shard.next_due ? std::min(*shard.next_due, *entry.run_at) : *entry.run_at;
    else
      AddReady(shard, entry.line, 1);
    shard.enqueue.push_back(std::move(entry));
    shard.enqueue_jobs.emplace_back();
  }
  ReadUnread(shard);
}

// They were to leave the queue.
void Dispatcher::DropRefused(Shard& shard, const std::vector<JobId>& jobs) {
  dispatch::Puts& puts = shard.puts;
  for (const JobId& id : jobs) puts.unread.jobs.erase(id);
  if (puts.refused.empty()) return;
  const std::unordered_set<JobId> wanted(jobs.begin(), jobs.end());
  std::erase_if(puts.refused, [&](const QueueEntry& entry) {
    if (!wanted.contains(entry.id)) return false;
    TakeUnqueued(shard, BytesOf(entry));
    Discount(shard.budgets, entry.line);
    return true;
  });
}

void Dispatcher::AddUnqueued(Shard& shard, std::size_t bytes) {
  shard.puts.unqueued_bytes += bytes;
  unqueued_bytes_ += bytes;
}

void Dispatcher::TakeUnqueued(Shard& shard, std::size_t bytes) {
  shard.puts.unqueued_bytes -= bytes;
  unqueued_bytes_ -= bytes;
}

// A job that was read from the ledger goes into the queue with the next put.
void Dispatcher::PutRead(Shard& shard, const LiveJob& job) {
  shard.puts.read_bytes += job.spec.payload.size();
  AddUnqueued(shard, job.spec.payload.size());
  Enqueue(shard, job.spec, job.counters, job.next_run_at ? job.next_run_at : job.spec.run_at, false);
}

void Dispatcher::PutAnswered(Shard& shard) {
  TakeUnqueued(shard, shard.puts.unanswered.front().read_bytes);
  shard.puts.unanswered.pop_front();
}

void Dispatcher::LeaveUnread(Shard& shard, JobId job) { shard.puts.unread.jobs.insert_or_assign(job, shard.puts.unread.pass); }

// A page at a time: what it has is put, and the next one is read when that was taken.
void Dispatcher::ReadUnread(Shard& shard) {
  dispatch::Unread& unread = shard.puts.unread;
  if (unread.jobs.empty() || unread.reading || !shard.puts.refused.empty()) return;
  if (!Starts(shard) || StoreFull() || TooMuchUnqueued()) return;
  if (!unread.after) ++unread.pass;
  unread.reading = true;
  ToLedger(command::ReadLiveJobs{.hold = shard.hold, .after = unread.after, .rebuild = false});
}

void Dispatcher::TakeUnread(Shard& shard, const event::LiveJobsRead& page) {
  dispatch::Unread& unread = shard.puts.unread;
  unread.reading = false;
  if (page.failed || shard.yield_by) return;  // it is read again with the next tick
  bool taken = false, last = page.last;
  for (const LiveJob& job : page.jobs) {
    if (TooMuchUnqueued()) {  // it goes on behind what was put
      last = false;
      break;
    }
    const JobId id = job.spec.id;
    unread.after = id;
    if (unread.jobs.erase(id) == 0 || Leased(shard, id) || shard.removals.Leaving(id)) continue;
    taken = true;
    if (job.cancelling) {
      (void)CancelStored(shard, job);  // one that settles is not unread
      continue;
    }
    PutRead(shard, job);
  }
  if (last) {  // what was left there before this pass began, and was not in it, has ended
    unread.after.reset();
    std::erase_if(unread.jobs, [&](const auto& left) { return left.second < unread.pass; });
  }
  if (!taken) ReadUnread(shard);
}

}  // namespace millrace
