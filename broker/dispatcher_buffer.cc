// Ready jobs of `durability: redis` that wait here and not in their lines (ready_buffer.h). To everyone who counts them they
// are entries like others: the line index, the budgets and the limits know of no difference. Only where one is taken out by
// name or by claim do both places have to be looked at, this one first.
#include <algorithm>
#include <iterator>
#include <ranges>
#include <utility>
#include <variant>

#include "broker/dispatcher.h"
#include "broker/entry_codec.h"
#include "common/base/check.h"

namespace millrace {
namespace {

// Where what is to start with the answer to that put has to wait. REQUIRES: it is not answered.
std::vector<dispatch::Pass>& PassesOf(dispatch::Puts& puts, std::deque<dispatch::Op>& ops, std::uint64_t put) {
  if (put > puts.sent) return puts.passes;
  const QueueOpId op = puts.unanswered[puts.unanswered.size() - 1 - (puts.sent - put)].id;
  return ops[op.value() - ops.front().id.value()].passes;
}

// It has waited, and is in no cache.
void Prefetch(const ReadyBuffer::Job& job) {
  const auto* entry = std::get_if<std::string>(&job.content);
  if (entry == nullptr) return;
  for (std::size_t at = 0; at < std::min<std::size_t>(entry->size(), 256); at += 64) __builtin_prefetch(entry->data() + at);
}

// As it goes to a worker. What the buffer has is what this process made.
dispatch::Claimed ToClaimed(ReadyBuffer::Job& job, const LineKey& line) {
  if (auto* spec = std::get_if<std::shared_ptr<const JobSpec>>(&job.content)) return {.spec = std::move(*spec), .counters = {}};
  const auto entry = std::make_shared<JobEntry>();
  const auto decoded = DecodeEntryInto(*entry, std::get<std::string>(job.content), job.id, line);
  MILLRACE_CHECK(decoded.has_value(), "an entry of the ready buffer: {}", decoded.error().message);
  return {.spec = {entry, &entry->spec}, .counters = entry->counters, .check = entry->check};
}

}  // namespace

// Whether it is worth keeping a job that comes now. Without a worker it may be long until it starts.
bool Dispatcher::MayBuffer(const Shard& shard, std::size_t payload_bytes) const {
  return Starts(shard) && !workers_.empty() && buffer_.Room(payload_bytes);
}

// True: the job waits here. Its line must have nothing that is older and waits in the queue, nor may get it: what is promoted
// goes ahead of what comes now, and a claim under way may leave some of its entries in the line.
bool Dispatcher::Buffer(Shard& shard, const LineRef& ref, QueueEntry& entry, std::size_t payload_bytes,
                        const std::shared_ptr<const JobSpec>& at_hand) {
  if (entry.expires_at || !MayBuffer(shard, payload_bytes)) return false;
  const ShardId id = shard.hold.shard;
  LineIndex::Line* line = line_memo_.In(lines_, id);
  const bool first = line == nullptr || line->ready == line->buffered.count();
  if (!first || shard.promoting || shard.suspects.contains(entry.line) || Claiming(shard, entry.line)) return false;
  if (line == nullptr)
    line = &lines_.Add(id, ref, 1, now_);
  else
    lines_.Add(*line, 1, now_);
  plan_needed_ = true;
  ReadyBuffer::Job job{.id = entry.id, .content = {}, .put = shard.puts.sent + 1, .since = now_};
  if (at_hand)
    job.content = at_hand;
  else
    job.content = entry.body;
  buffer_.Push(line->buffered, std::move(job), false);
  shard.puts.passed.push_back(std::move(entry));
  return true;
}

// What came out of a line and did not start: back to the front, before those that wait here, whether there is room or not
// (there are no more of them than workers had credit). One that cannot wait here takes the others with it.
void Dispatcher::TakeBack(Shard& shard) {
  std::vector<dispatch::HandedBack> all = std::exchange(shard.puts.handed_back, {});
  std::vector<QueueEntry>& paged = shard.puts.paged;
  std::vector<QueueEntry> out;  // the last one first
  for (auto& [back, may_wait_here] : std::views::reverse(all)) {
    const std::string& line = back.line;
    LineIndex::Line* known = lines_.Find(shard.hold.shard, line);
    if (known != nullptr && may_wait_here && !back.expires_at && Starts(shard) && !shard.suspects.contains(line)) {
      buffer_.Push(known->buffered, {.id = back.id, .content = std::move(back.body), .put = 0, .since = now_}, true);
      continue;
    }
    const std::size_t before = paged.size();
    PageOut(shard, line);
    for (; paged.size() > before; paged.pop_back()) out.push_back(std::move(paged.back()));
    out.push_back(std::move(back));
  }
  std::ranges::move(std::views::reverse(out), std::back_inserter(paged));
}

// Of what is planned for the line, those that are here: they are older than what waits in the queue. How many these are.
std::uint32_t Dispatcher::TakeBuffered(LineIndex::Line& line, std::uint32_t n, WorkerId worker) {
  n = std::min(n, line.buffered.count());
  for (std::uint32_t i = 0; i < n; ++i) {
    served_.push_back({.shard = line.shard,
                       .line = line.ref,
                       .slot = LineIndex::SlotOf(line),
                       .worker = worker,
                       .job = buffer_.TakeFront(line.buffered)});
    Prefetch(served_.back().job);
  }
  return n;
}

// Whether a pass whose put goes out with this flush starts now, and not with its answer: of a few jobs, where no other put is
// under way or refused. The answer decides whether they were accepted, as ever. Until then they may run without having been,
// which nobody can tell from an answer that was lost; so when it is not "yes", the client is told to submit again with the same
// ids.
bool Dispatcher::MayStartAhead(const Shard& shard, std::uint64_t put, const dispatch::Pass& pass) {
  const dispatch::Puts& puts = shard.puts;
  if (put <= puts.sent || !puts.unanswered.empty() || puts.refused_try_max > 0) return false;
  if (!puts.passes.empty() || puts.ahead.size() + pass.plan.total > kStartAheadMax) return false;  // in their order
  // Who looks for them does so in the queue; what leaves it would leave before it is there.
  return shard.wanted.Empty() &&
         std::ranges::none_of(pass.jobs, [&](const auto& job) { return shard.removals.Leaving(job.spec->id); });
}

// What was planned and is here. Those of one line that start with the same put go together.
void Dispatcher::ServeBuffered() {
  std::vector<dispatch::Served> served = std::exchange(served_, {});
  const auto put_of = [](const dispatch::Served& one, std::uint64_t answered) {
    return one.job.put <= answered ? 0 : one.job.put;
  };
  for (std::size_t i = 0; i < served.size();) {
    dispatch::Served& first = served[i];
    Shard& shard = shards_.at(first.shard);
    const std::uint64_t answered = shard.puts.sent - shard.puts.unanswered.size();
    const std::uint64_t put = put_of(first, answered);
    dispatch::Pass pass{
        .plan = {.shard = first.shard, .line = std::move(first.line), .total = 0, .split = {}, .slot = first.slot}, .jobs = {}};
    do {
      auto& split = pass.plan.split;
      if (split.empty() || split.back().first != served[i].worker) split.emplace_back(served[i].worker, 0);
      ++split.back().second;
      ++pass.plan.total;
      pass.jobs.push_back(ToClaimed(served[i].job, pass.plan.line->key));
      ++i;
    } while (i < served.size() && served[i].line == pass.plan.line && put_of(served[i], answered) == put);
    if (put > 0 && !MayStartAhead(shard, put, pass)) {
      PassesOf(shard.puts, ops_, put).push_back(std::move(pass));
      continue;
    }
    if (put > 0)
      for (const dispatch::Claimed& job : pass.jobs) shard.puts.ahead.push_back(job.spec->id);
    for (const auto& [worker, n] : pass.plan.split) Release(worker, n);
    OnPassed(shard.hold, pass);
  }
  served.clear();
  if (served_.empty()) served_ = std::move(served);  // its memory
}

// Somebody looks for these jobs, and has looked here before they can be claimed.
void Dispatcher::HandOverBuffered(Shard& shard, const std::unordered_set<JobId>& jobs) {
  if (jobs.empty()) return;
  TakeBack(shard);
  struct Found {
    LineRef line;
    ReadyBuffer::Job job;
  };
  std::vector<Found> all;
  lines_.ForEachBuffered([&](LineIndex::Line& line) {
    if (line.shard != shard.hold.shard) return;
    const auto wanted = [&](const ReadyBuffer::Job& job) {
      return jobs.contains(job.id) && shard.wanted.Seeker(job.id, line.key().org);
    };
    for (ReadyBuffer::Job& job : buffer_.TakeIf(line.buffered, wanted)) all.push_back({line.ref, std::move(job)});
  });
  for (auto& [line, found] : all) {
    const LineKey& key = line->key;
    const dispatch::Claimed job = ToClaimed(found, key);
    lines_.Forget(shard.hold.shard, line->name, 1, now_);
    shard.budgets.Claimed(key.org, key.queue, job.spec->payload.size());
    HandOver(shard, {.spec = *job.spec, .counters = job.counters, .check = job.check});
  }
}

// The last ones of the line go to its front in the queue: those that stay here are older.
void Dispatcher::PageOut(Shard& shard, const std::string& line, std::size_t most) {
  LineIndex::Line* known = lines_.Find(shard.hold.shard, line);
  if (known == nullptr || known->buffered.count() == 0) return;
  std::vector<ReadyBuffer::Job> jobs = buffer_.TakeLast(known->buffered, most);
  StandBefore(shard, line, jobs.size());
  for (ReadyBuffer::Job& waiting : jobs) {
    QueueEntry entry{.id = waiting.id, .line = line, .body = {}, .run_at = {}, .expires_at = {}};
    if (const auto* spec = std::get_if<std::shared_ptr<const JobSpec>>(&waiting.content)) {
      entry.body = EncodeEntry(**spec, Counters{}, line_memo_.Find(**spec, Durability::kRedis)->key);
    } else {
      entry.body = std::get<std::string>(std::move(waiting.content));
    }
    shard.puts.paged.push_back(std::move(entry));
  }
}

void Dispatcher::PageOut(Shard& shard) {
  TakeBack(shard);
  std::vector<std::string> names;
  lines_.ForEachBuffered([&](const LineIndex::Line& line) {
    if (line.shard == shard.hold.shard) names.push_back(line.name());
  });
  std::ranges::sort(names);
  for (const std::string& line : names) PageOut(shard, line);
}

// They are the next owner's.
void Dispatcher::ForgetBuffered(ShardId shard) {
  lines_.ForEachBuffered([&](LineIndex::Line& line) {
    if (line.shard == shard) buffer_.TakeFirst(line.buffered, SIZE_MAX);
  });
}

// To the fronts of their lines, so the last ones first. Redis does nothing else meanwhile: not too many at once.
void Dispatcher::EmitPaged(Shard& shard, std::vector<Command>& out) {
  std::vector<QueueEntry>& paged = shard.puts.paged;
  shard.listings.record.Back(paged);
  while (!paged.empty()) {
    const auto from = paged.end() - static_cast<std::ptrdiff_t>(std::min(paged.size(), kPagedJobsMax));
    queue_op::Requeue back{.shard = shard.hold.shard, .epoch = shard.hold.epoch, .entries = {}};
    back.entries.assign(std::make_move_iterator(from), std::make_move_iterator(paged.end()));
    paged.erase(from, paged.end());
    Execute(shard, std::move(back), Op::Kind::kPlain, out);
  }
}

// Those of a queue that is paused or at its limit, or that nobody serves. Not too many at once: Redis does nothing else
// meanwhile.
void Dispatcher::PageOutOld() {
  const bool scarce = buffer_.size() >= kBufferedJobsMax / 2 || buffer_.bytes() >= kBufferedBytesMax / 2;
  const MonoTime old_since = now_ - (scarce ? kBufferedAgeMax : kBufferedAgeAnyMax);
  std::vector<std::pair<ShardId, std::string>> old;
  lines_.ForEachBuffered([&](const LineIndex::Line& line) {
    if (buffer_.WaitsSince(line.buffered, old_since)) old.emplace_back(line.shard, line.name());
  });
  std::ranges::sort(old);
  std::size_t most = kPagedJobsMax;
  for (const auto& [id, line] : old) {
    const std::size_t before = buffer_.size();
    PageOut(shards_.at(id), line, most);
    most -= before - buffer_.size();
    if (most == 0) return;
  }
}

}  // namespace millrace
