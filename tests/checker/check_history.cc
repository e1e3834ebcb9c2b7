// What the processes say they did, against the ledger and against each other. Their words prove nothing good: a job is done
// because the ledger and the witness say so. But what they say must not contradict that.
#include <algorithm>
#include <set>
#include <tuple>

#include "tests/checker/checker.h"

namespace millrace::checker {
namespace {

using history::Type;

std::uint64_t EpochOf(std::uint64_t token) { return token >> 32; }

}  // namespace

const Operation* Checker::InvokeOf(const Operation& ok) const {
  const auto found = invokes_.find({ok.file, ok.who, ok.number});
  return found == invokes_.end() ? nullptr : found->second;
}

// "submit ok", at the client or at the broker, is a promise.
void Checker::ReadTold() {
  std::set<Uuid> redis;  // of a job that leaves its class to its queue only the broker says it
  for (const Operation& o : history_.operations) {
    if (o.op == "write" && o.type == Type::kInvoke) invokes_[{o.file, o.who, o.number}] = &o;
    if (o.op != "submit" || o.type != Type::kInvoke) continue;
    for (const Item& item : o.items)
      if (item.word == "redis") redis.insert(item.id);
  }
  for (const Operation& o : history_.operations) {
    if (o.op != "submit" || o.type != Type::kOk) continue;
    for (const Item& item : o.items)
      if (!told_.contains(item.id))
        told_[item.id] = {.redis = redis.contains(item.id), .at = std::nullopt, .is_run = facts_.runs.contains(item.id)};
  }
}

void Checker::Writes() {
  for (const Operation& o : history_.operations)
    if (o.op == "write" && o.type == Type::kOk) WrittenRows(o);
}

// "write ok" names the rows that went in: they are there, and as they were.
void Checker::WrittenRows(const Operation& ok) {
  if (facts_.pruned) return;
  for (const Item& job : ok.jobs)
    if (!facts_.jobs.contains(job.id)) Add(1, "lost", "job {} was written and is gone", job.id.ToString());
  for (const Item& run : ok.runs)
    if (!facts_.runs.contains(run.id)) Add(1, "lost", "run {} was written and is gone", run.id.ToString());
  for (const Item& attempt : ok.attempts)
    if (!attempts_.contains({attempt.id, static_cast<std::int64_t>(attempt.token)}))
      Add(3, "terminal", "attempt {} of job {} was written and is gone", attempt.token, attempt.id.ToString());
  for (const Item& outcome : ok.outcomes) {
    Looked(3);
    const auto stored = facts_.outcomes.find(outcome.id);
    if (stored == facts_.outcomes.end())
      Add(3, "terminal", "the outcome of job {} was written and is gone", outcome.id.ToString());
    else if (static_cast<std::uint64_t>(stored->second.token) != outcome.token)
      Add(3, "terminal", "job {} ended with token {}, now its outcome has token {}", outcome.id.ToString(), outcome.token,
          stored->second.token);
  }
}

// S8 of schedulers. "fire ok" names the slots that were decided by it: they are there, with that run and no other. A run of a
// fire that failed is not there, unless another fire asked for it that did not fail.
void Checker::Fires() {
  if (facts_.pruned) return;
  std::map<std::tuple<std::string, std::string, std::int64_t, std::int64_t>, const SlotFact*> stored;
  for (const SlotFact& slot : facts_.slots) stored[{slot.pipeline, slot.schedule, slot.slot, slot.generation}] = &slot;
  std::map<std::tuple<std::size_t, std::string, std::uint64_t>, bool> failed;
  for (const Operation& o : history_.operations)
    if (o.op == "fire" && o.type == Type::kFail) failed[{o.file, o.who, o.number}] = true;
  std::set<Uuid> may_be_there;
  for (const Operation& o : history_.operations)
    if (o.op == "fire" && o.type == Type::kInvoke && !failed.contains({o.file, o.who, o.number}))
      for (const FiredSlot& slot : o.slots)
        if (slot.run) may_be_there.insert(*slot.run);
  for (const Operation& o : history_.operations) {
    if (o.op != "fire") continue;
    for (const FiredSlot& slot : o.slots) {
      const std::string name = fmt::format("{} {}", slot.pipeline, ToRfc3339(FromUnixMicros(slot.slot)));
      if (o.type == Type::kInvoke) {
        const bool there = slot.run && facts_.runs.contains(*slot.run);
        if (there && !may_be_there.contains(*slot.run))
          Add(8, "slot", "{}: to fire it failed, and its run {} is there", name, slot.run->ToString());
        continue;
      }
      if (o.type != Type::kOk) continue;
      Looked(8);
      const auto found = stored.find({slot.pipeline, slot.schedule, slot.slot, slot.generation});
      if (found == stored.end())
        Add(8, "slot", "{} was fired by {} and is gone", name, o.who);
      else if (found->second->run != slot.run)
        Add(8, "slot", "{} was fired by {} as another run than the one that is stored", name, o.who);
    }
  }
}

// S4 of owners: once a shard has been taken with a higher epoch, nothing is written under a lower one.
void Checker::Epochs() {
  std::map<std::uint64_t, std::map<std::uint64_t, std::int64_t>> taken;  // shard -> epoch -> since when
  for (const Operation& o : history_.operations)
    if (o.op == "own")
      for (const Hold& hold : o.holds) taken[hold.shard].emplace(hold.epoch, o.at);
  for (const Operation& o : history_.operations) {
    const Operation* invoke = o.op == "write" && o.type == Type::kOk ? InvokeOf(o) : nullptr;
    if (invoke == nullptr) continue;
    for (const Hold& hold : invoke->holds) {
      Looked(4);
      const auto& epochs = taken[hold.shard];
      const auto next = epochs.upper_bound(hold.epoch);
      if (next != epochs.end() && next->second < invoke->at)
        Add(4, "stale_accepted", "shard {}: {} wrote under epoch {}, {} ms after epoch {} had begun", hold.shard, o.who,
            hold.epoch, (invoke->at - next->second) / 1000, next->first);
    }
  }
}

// S4 of attempts: a broker's tokens of a job increase, no token is given twice, and an outcome is not of an attempt that had
// been overtaken when it was written.
void Checker::Grants() {
  std::map<std::pair<std::string, Uuid>, std::uint64_t> last;
  std::set<std::pair<Uuid, std::uint64_t>> given;
  TokensByJob grants;
  for (const Operation& o : history_.operations) {
    if (o.op != "grant" || !o.By("broker:")) continue;
    for (const Item& item : o.items) {
      Looked(4);
      std::uint64_t& before = last[{o.who, item.id}];
      if (item.token <= before)
        Add(4, "token_order", "job {}: token {} was granted after {}", item.id.ToString(), item.token, before);
      before = std::max(before, item.token);
      if (!given.emplace(item.id, item.token).second)
        Add(7, "two_leases", "job {}: token {} was granted twice", item.id.ToString(), item.token);
      grants[item.id].emplace_back(o.at, item.token);
    }
  }
  for (const Operation& o : history_.operations) {
    const Operation* invoke = o.op == "write" && o.type == Type::kOk ? InvokeOf(o) : nullptr;
    if (invoke == nullptr) continue;
    for (const Item& outcome : o.outcomes) {
      if (outcome.token == 0) continue;
      for (const auto& [at, token] : grants[outcome.id])
        if (at < invoke->at && token > outcome.token)
          Add(4, "stale_accepted", "job {}: token {} ended it after token {} had been granted", outcome.id.ToString(),
              outcome.token, token);
    }
  }
}

// S4 and S7 across owners, by what workers received. A frozen process may deliver or read a grant late, after a newer one; but
// each token of a job comes from one owner and reaches one worker, those of an epoch come from the owner of that epoch, so that
// they increase from owner to owner, and nothing of a token is written once a newer one has been received anywhere.
void Checker::Receipts() {
  std::map<std::pair<Uuid, std::uint64_t>, std::string_view> owners;  // job and epoch -> broker
  std::set<std::pair<Uuid, std::uint64_t>> granted;
  for (const Operation& o : history_.operations) {
    if (o.op != "grant" || !o.By("broker:")) continue;
    for (const Item& item : o.items) {
      granted.emplace(item.id, item.token);
      const auto [first, fresh] = owners.emplace(std::pair{item.id, EpochOf(item.token)}, o.who);
      if (!fresh && first->second != o.who)
        Add(7, "two_leases", "job {}: {} and {} granted it under one epoch, {}", item.id.ToString(), first->second, o.who,
            EpochOf(item.token));
    }
  }
  std::map<std::pair<Uuid, std::uint64_t>, std::string_view> receivers;
  TokensByJob received;
  for (const Operation& o : history_.operations) {
    if (o.op != "grant" || !o.By("worker:")) continue;
    for (const Item& item : o.items) {
      Looked(7);
      ++out_.received;
      const auto [first, fresh] = receivers.emplace(std::pair{item.id, item.token}, o.who);
      if (!fresh)
        Add(7, "two_leases", "job {}: token {} reached {} and {}", item.id.ToString(), item.token, first->second, o.who);
      if (!granted.empty() && !granted.contains({item.id, item.token}))
        Add(4, "token_order", "job {}: {} received token {}, which no broker granted", item.id.ToString(), o.who, item.token);
      auto& of_job = received[item.id];
      if (std::ranges::any_of(of_job, [&](const auto& before) { return before.second > item.token; })) ++out_.overtaken;
      of_job.emplace_back(o.at, item.token);
    }
  }
  for (const Operation& o : history_.operations) {
    const Operation* invoke = o.op == "write" && o.type == Type::kOk ? InvokeOf(o) : nullptr;
    if (invoke == nullptr) continue;
    for (const auto* ends : {&o.attempts, &o.outcomes})
      for (const Item& end : *ends) OvertakenEnd(end, invoke->at, received);
  }
}

void Checker::OvertakenEnd(const Item& end, std::int64_t written_at, const TokensByJob& received) {
  const auto of_job = received.find(end.id);
  if (end.token == 0 || of_job == received.end()) return;
  Looked(4);
  for (const auto& [at, token] : of_job->second)
    if (at < written_at && token > end.token)
      Add(4, "stale_accepted", "job {}: an end of token {} was written after a worker had received token {}", end.id.ToString(),
          end.token, token);
}

// S7: an owner grants a job again only when the end of the attempt before is durable. Under a later epoch another row may
// stand for it (a lease that nobody confirmed ends under a token of the new one), or none: the store may have lost the job.
void Checker::Leases() {
  std::map<std::pair<Uuid, std::uint64_t>, std::int64_t> ended;  // attempt -> when its end was durable
  for (const Operation& o : history_.operations)
    if (o.op == "write" && o.type == Type::kOk)
      for (const auto* list : {&o.attempts, &o.outcomes})
        for (const Item& item : *list) ended.emplace(std::pair{item.id, item.token}, o.at);
  std::map<std::pair<std::string, Uuid>, std::uint64_t> leases;  // owner and job -> token
  for (const Operation& o : history_.operations) {
    if (o.op != "grant" || !o.By("broker:")) continue;
    for (const Item& item : o.items) {
      Looked(7);
      std::uint64_t& before = leases[{o.who, item.id}];
      const auto end = ended.find({item.id, before});
      if (before != 0 && EpochOf(before) == EpochOf(item.token) && (end == ended.end() || end->second > o.at))
        Add(7, "two_leases", "job {}: token {} was granted before the end of token {} was durable", item.id.ToString(),
            item.token, before);
      before = item.token;
    }
  }
}

// S1 and S3 of what workers were told, by brokers' words and by their own: an end that was accepted is durable, as an
// attempt or as the outcome of that very token. Whoever adopts an attempt keeps its token.
void Checker::Ends() {
  if (facts_.pruned) return;
  for (const Operation& o : history_.operations) {
    if (o.op != "end" || o.type != Type::kOk) continue;
    for (const Item& item : o.items) {
      Looked(3);
      const auto token = static_cast<std::int64_t>(item.token);
      const auto outcome = facts_.outcomes.find(item.id);
      const bool last = outcome != facts_.outcomes.end() && outcome->second.token == token;
      if (!last && !attempts_.contains({item.id, token}))
        Add(1, "lost", "job {}: the end of token {} was accepted and is not in the ledger", item.id.ToString(), item.token);
    }
  }
}

// S2 of loads: one attempt per effect wrote, every other one found the receipt.
void Checker::Loads() {
  std::map<std::string, std::uint64_t> wrote;
  for (const Operation& o : history_.operations) {
    if (o.op != "load" || o.type != Type::kOk || o.again || o.effect.empty()) continue;
    Looked(2);
    const auto [first, fresh] = wrote.emplace(o.effect, o.items.front().token);
    if (!fresh) Add(2, "doubled", "effect {}: tokens {} and {} both wrote it", o.effect, first->second, o.items.front().token);
  }
}

}  // namespace millrace::checker
