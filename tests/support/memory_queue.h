// A JobQueue in memory, for simulation and unit tests: fenced by the epoch like the real ones, and it can be wiped. Not
// thread-safe.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/queue/job_queue.h"

namespace millrace::test {

class MemoryQueue final : public JobQueue {
 public:
  std::vector<Result<QueueReply>> Execute(std::span<const QueueOp> ops) override {
    std::vector<Result<QueueReply>> replies;
    for (const QueueOp& op : ops)
      replies.push_back(
          Storable(op) ? std::visit([this](const auto& o) { return Apply(o); }, op)
                       : Result<QueueReply>(Fail(ErrorCode::kInvalidArgument, "an entry's time is not in 2^53 microseconds")));
    return replies;
  }
  Result<QueueDepth> Depth(ShardId id) override {
    const Shard& shard = shards_[id];
    QueueDepth depth{.ready = 0, .scheduled = shard.scheduled.size(), .in_flight = shard.in_flight.size()};
    for (const auto& [line, entries] : shard.lines) depth.ready += entries.size();
    depth.in_flight += shard.kept.size();
    return depth;
  }
  // It came back in an earlier state, and nobody has asked it for anything since.
  bool Unnoticed(ShardId id) { return shards_[id].taken_on != server_; }
  void Wipe() { shards_.clear(); }
  // A server that comes back with an earlier state of itself: every shard must be taken anew.
  void Save() { saved_ = shards_; }
  void RollBack() {
    shards_ = saved_;
    ++server_;
  }
  // A server that was restarted and lost nothing, which it cannot know.
  void Restart() { ++server_; }
  // A bit of what waits has flipped: it is no entry any more.
  void Damage(ShardId id, JobId job) {
    for (auto& [line, entries] : shards_[id].lines)
      for (QueueEntry& entry : entries)
        if (entry.id == job) entry.body = '\xff' + entry.body;
  }
  // As if the operation that took the job out of flight had not arrived.
  void Deliver(ShardId id, JobId job) {
    Shard& shard = shards_[id];
    std::erase_if(shard.scheduled, [&](const auto& due) { return due.second.id == job; });
    for (auto& [line, entries] : shard.lines) std::erase_if(entries, [&](const QueueEntry& entry) { return entry.id == job; });
    shard.in_flight.insert(job);
  }
  // As if what was delivered had come out of flight.
  void ForgetDelivered(ShardId id) { shards_[id].in_flight.clear(); }
  std::size_t take_page = 2;             // entries in flight that one Take shows
  std::size_t take_lines = 2;            // kept lines that one Take counts
  std::uint32_t claim_max = UINT32_MAX;  // one Claim gives no more, as the real queues do when bodies are large
  std::size_t list_page = 2;             // entries that one ListKept looks at
  std::size_t memory_max = SIZE_MAX;     // entries, waiting and in flight; beyond it an Enqueue is refused
  bool forget_removals = false;          // a broken queue, for mutants: Remove finds nothing
  void set_ignore_epochs(bool ignore) { ignore_epochs_ = ignore; }  // a broken queue, for mutants

 private:
  // Redis' scores are doubles: one entry that is out of their range, and nothing of the operation is done.
  static bool Storable(const QueueOp& op) {
    const auto in_range = [](const std::optional<WallTime>& at) {
      constexpr std::int64_t kMax = std::int64_t{1} << 53;
      return !at || (ToUnixMicros(*at) >= -kMax && ToUnixMicros(*at) <= kMax);
    };
    const auto fits = [&](const QueueEntry& entry) { return in_range(entry.run_at) && in_range(entry.expires_at); };
    if (const auto* put = std::get_if<queue_op::Enqueue>(&op))
      return std::ranges::all_of(put->entries, fits) && std::ranges::all_of(put->passed, fits);
    const auto* back = std::get_if<queue_op::Requeue>(&op);
    return back == nullptr || std::ranges::all_of(back->entries, fits);
  }

  struct Shard {
    std::optional<Epoch> epoch;
    Epoch unbroken_since;
    std::map<std::string, std::deque<QueueEntry>> lines;
    std::multimap<WallTime, QueueEntry> scheduled;
    std::set<JobId> in_flight;
    std::map<JobId, QueueEntry> kept;  // in flight, of kept lines
    std::uint64_t taken_on = 0;        // server_
  };
  Result<Shard*> Fenced(ShardId id, Epoch epoch) {
    Shard& shard = shards_[id];
    if (!shard.epoch || shard.taken_on != server_) return Fail(ErrorCode::kWiped, "shard {}: no epoch", id.value());
    if (*shard.epoch != epoch && !ignore_epochs_)
      return Fail(ErrorCode::kStale, "shard {}: epoch {} is stored", id.value(), shard.epoch->value());
    return &shard;
  }
  Result<QueueReply> Apply(const queue_op::Take& op) {
    Shard& shard = shards_[op.shard];
    if (shard.epoch && *shard.epoch > op.epoch) return Fail(ErrorCode::kStale, "a higher epoch is stored");
    if (!op.cursor.empty() && (shard.epoch != op.epoch || shard.taken_on != server_))
      return Fail(ErrorCode::kWiped, "shard {}: another store than the one that was being taken", op.shard.value());
    QueueReply reply;
    reply.maybe_old = shard.taken_on != server_;
    if (reply.maybe_old || !shard.epoch) shard.unbroken_since = op.epoch;
    shard.epoch = op.epoch;
    shard.taken_on = server_;
    if (op.cursor.empty()) reply.in_flight.assign(shard.in_flight.begin(), shard.in_flight.end());
    reply.unbroken_since = shard.unbroken_since;
    std::erase_if(shard.lines, [](const auto& line) { return !IsKeptLine(line.first) || line.second.empty(); });
    std::erase_if(shard.scheduled, [](const auto& due) { return !IsKeptLine(due.second.line); });
    for (auto line = shard.lines.upper_bound(op.cursor); line != shard.lines.end(); ++line) {
      if (reply.kept.size() == take_lines) {
        reply.cursor = reply.kept.back().line;
        break;
      }
      reply.kept.push_back({.line = line->first, .count = static_cast<std::uint32_t>(line->second.size())});
    }
    if (!shard.scheduled.empty()) reply.next_due = shard.scheduled.begin()->first;
    for (const auto& [id, entry] : shard.kept)
      if (op.cursor.empty() && reply.claimed.size() < take_page) reply.claimed.push_back(entry);
    if (!reply.claimed.empty()) reply.cursor.clear();
    return reply;
  }
  static void Put(Shard& shard, const QueueEntry& entry, bool front) {
    if (entry.run_at) {
      shard.scheduled.emplace(*entry.run_at, entry);
      return;
    }
    auto& line = shard.lines[entry.line];
    front ? line.push_front(entry) : line.push_back(entry);
  }
  static void Fly(Shard& shard, QueueEntry entry) {
    entry.run_at.reset();
    entry.expires_at.reset();
    if (IsKeptLine(entry.line))
      shard.kept.insert_or_assign(entry.id, std::move(entry));
    else
      shard.in_flight.insert(entry.id);
  }
  Result<QueueReply> Apply(const queue_op::Enqueue& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    const QueueDepth depth = *Depth(op.shard);
    if (depth.ready + depth.scheduled + depth.in_flight + op.entries.size() + op.passed.size() > memory_max)
      return Fail(ErrorCode::kLimit, "OOM: {} entries at most", memory_max);
    for (const QueueEntry& entry : op.passed) Fly(*shard, entry);
    for (const QueueEntry& entry : op.entries) Put(*shard, entry, false);
    return QueueReply{};
  }
  Result<QueueReply> Apply(const queue_op::Requeue& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    for (auto entry = op.entries.rbegin(); entry != op.entries.rend(); ++entry) {
      shard->in_flight.erase(entry->id);
      shard->kept.erase(entry->id);
      Put(*shard, *entry, true);
    }
    return QueueReply{};
  }
  Result<QueueReply> Apply(const queue_op::Claim& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    QueueReply reply;
    auto& line = shard->lines[op.line];
    while (reply.claimed.size() < std::min(op.max, claim_max) && !line.empty()) {
      line.front().expires_at.reset();
      if (IsKeptLine(op.line))
        shard->kept.insert_or_assign(line.front().id, line.front());
      else
        shard->in_flight.insert(line.front().id);
      reply.claimed.push_back(std::move(line.front()));
      line.pop_front();
    }
    return reply;
  }
  Result<QueueReply> Apply(const queue_op::Finish& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    for (const JobId& id : op.ids) shard->in_flight.erase(id), shard->kept.erase(id);
    return QueueReply{};
  }
  Result<QueueReply> Apply(const queue_op::Promote& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    QueueReply reply;
    std::map<std::string, std::uint32_t> gained;
    for (std::uint32_t n = 0; n < op.max && !shard->scheduled.empty() && shard->scheduled.begin()->first <= op.now; ++n) {
      QueueEntry entry = std::move(shard->scheduled.begin()->second);
      shard->scheduled.erase(shard->scheduled.begin());
      entry.run_at.reset();
      ++gained[entry.line];
      Put(*shard, entry, false);
    }
    for (const auto& [line, count] : gained) reply.promoted.push_back({.line = line, .count = count});
    if (!shard->scheduled.empty()) reply.next_due = shard->scheduled.begin()->first;
    return reply;
  }

  Result<QueueReply> Apply(const queue_op::ExpireDue& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    QueueReply reply;
    std::map<std::string, std::uint32_t> lost;
    std::optional<WallTime> next;
    const auto look = [&](const QueueEntry& entry, bool ready) {  // true: it goes
      if (!entry.expires_at) return false;
      if (*entry.expires_at > op.now || reply.claimed.size() >= op.max) {
        next = next ? std::min(*next, *entry.expires_at) : *entry.expires_at;
        return false;
      }
      if (ready) ++lost[entry.line];
      QueueEntry& out = reply.claimed.emplace_back(entry);
      out.run_at.reset();
      out.expires_at.reset();
      if (IsKeptLine(out.line))
        shard->kept.insert_or_assign(out.id, out);
      else
        shard->in_flight.insert(out.id);
      return true;
    };
    for (auto& [name, line] : shard->lines) std::erase_if(line, [&](const QueueEntry& e) { return look(e, true); });
    std::erase_if(shard->scheduled, [&](const auto& e) { return look(e.second, false); });
    for (const auto& [line, count] : lost) reply.lost.push_back({.line = line, .count = count});
    reply.next_due = next;
    return reply;
  }

  // One line, or the schedule, in each step.
  Result<QueueReply> Apply(const queue_op::Remove& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    QueueReply reply;
    if (forget_removals) return reply;
    std::set<JobId> wanted(op.ids.begin(), op.ids.end());
    const bool kept = op.lines.empty();
    const auto look = [&](const QueueEntry& entry, bool ready) {  // true: it goes
      if (IsKeptLine(entry.line) != kept || !wanted.contains(entry.id)) return false;
      if (kept && !op.org.empty() && OrgOfLine(entry.line) != op.org) return false;
      if (!kept) wanted.erase(entry.id);
      QueueEntry& out = reply.claimed.emplace_back(entry);
      out.run_at.reset();
      out.expires_at.reset();
      if (kept)
        shard->kept.insert_or_assign(out.id, out);
      else
        shard->in_flight.insert(out.id);
      if (ready) reply.lost.push_back({.line = entry.line, .count = 1});
      return true;
    };
    if (op.cursor.empty() && (kept || op.scheduled)) {
      std::erase_if(shard->scheduled, [&](const auto& e) { return look(e.second, false); });
      if (!wanted.empty()) reply.cursor = " ";
      return reply;
    }
    std::set<std::string> lines(op.lines.begin(), op.lines.end());
    if (kept)
      for (const auto& [name, entries] : shard->lines)
        if (IsKeptLine(name)) lines.insert(name);
    const auto line = lines.lower_bound(op.cursor.empty() ? op.cursor : op.cursor.substr(1));
    if (line == lines.end()) return reply;
    if (const auto found = shard->lines.find(*line); found != shard->lines.end())
      std::erase_if(found->second, [&](const QueueEntry& e) { return look(e, true); });
    if (std::next(line) != lines.end() && !wanted.empty()) reply.cursor = " " + *std::next(line);
    return reply;
  }

  // In the order of ids; a cursor is the last one that was looked at.
  Result<QueueReply> Apply(const queue_op::ListKept& op) {
    MILLRACE_TRY_ASSIGN(Shard * shard, Fenced(op.shard, op.epoch));
    std::set<std::pair<std::string, std::string>> all;
    const auto look = [&](const QueueEntry& e) { all.emplace(e.id.AsBytes(), e.line); };
    for (const auto& [name, entries] : shard->lines) std::ranges::for_each(entries, look);
    for (const auto& [due, entry] : shard->scheduled) look(entry);
    QueueReply reply;
    std::string last;
    std::size_t seen = 0;
    for (const auto& [id, line] : all) {
      if (id <= op.cursor) continue;
      if (seen++ == list_page) {
        reply.cursor = last;
        break;
      }
      last = id;
      if (!IsKeptLine(line) || OrgOfLine(line) != op.org) continue;
      reply.listed.push_back({.id = JobId{*Uuid::FromBytes(id)}, .line = line, .body = {}, .run_at = {}, .expires_at = {}});
    }
    return reply;
  }

  std::map<ShardId, Shard> shards_, saved_;
  std::uint64_t server_ = 1;
  bool ignore_epochs_ = false;
};

}  // namespace millrace::test
