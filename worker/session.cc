#include "worker/session.h"

#include <algorithm>
#include <utility>

#include "common/base/log.h"
#include "common/wire/codec.h"

namespace millrace::worker {
namespace {}  // namespace

std::string_view Name(KillReason reason) {
  switch (reason) {
    case KillReason::kRevoked: return "revoked";
    case KillReason::kCancelled: return "cancelled";
    case KillReason::kReplaced: return "replaced";
    case KillReason::kLeaseLost: return "lease_lost";
    case KillReason::kDrained: return "drained";
  }
  return "unknown";
}

Session::Session(Options options) : options_(std::move(options)), brokers_(options_.brokers) {
  for (Broker& b : brokers_) {
    b.heartbeat = options_.heartbeat;
    b.lease_ttl = options_.lease_ttl;
  }
}

std::size_t Session::live_brokers() const {
  return static_cast<std::size_t>(std::ranges::count(brokers_, Link::kLive, &Broker::link));
}

void Session::OnMessage(MonoTime now, std::size_t broker, const wire::Message& message) {
  Broker& b = brokers_[broker];
  b.heard_at = now;
  if (const auto* welcome = std::get_if<wire::Welcome>(&message)) return OnWelcome(now, broker, *welcome);
  if (const auto* reply = std::get_if<wire::EndedReply>(&message)) return OnEndedReply(now, broker, *reply);
  if (const auto* revoke = std::get_if<wire::Revoke>(&message)) return OnRevoke(now, broker, *revoke);
  if (const auto* adopt = std::get_if<wire::Adopt>(&message)) return OnAdopt(broker, *adopt);
  if (const auto* beat = std::get_if<wire::BrokerBeat>(&message)) {
    if (beat->known || b.link != Link::kLive) return;
    OrphanAllOf(now, broker);  // it was restarted, or took us for gone
    SendHello(now, broker);
    return;
  }
  // A grant that was under way when we said Hello is one that the broker counts from that Hello on.
  if (const auto* grant = std::get_if<wire::Grant>(&message); grant && b.link != Link::kNew) OnGrant(now, broker, *grant);
}

void Session::OnWelcome(MonoTime now, std::size_t broker, const wire::Welcome& welcome) {
  Broker& b = brokers_[broker];
  if (b.link == Link::kNew) return;
  b.link = Link::kLive;
  b.heartbeat = Millis{welcome.heartbeat_ms};
  b.lease_ttl = Millis{welcome.lease_ms};
  b.beat_at = now;
  orphans_now_ = true;
  for (auto& [id, attempt] : attempts_) attempt.sent_at.reset();  // this broker may be the one that waits for a report
}

void Session::OnGrant(MonoTime now, std::size_t broker, const wire::Grant& grant) {
  for (const auto& job : grant.jobs) Admit(now, broker, job);
  StartWaiting();
}

void Session::Admit(MonoTime now, std::size_t broker, const wire::Grant::Job& job) {
  if (const auto it = attempts_.find(job.id); it != attempts_.end()) {
    Attempt& old = it->second;
    if (job.token == old.token) return;  // a repeat: neither side counts it
    ++brokers_[broker].granted;
    if (job.token < old.token || (old.successor && job.token < old.successor->token)) return;
    if (old.phase == Phase::kWaiting) {
      old.token = job.token;
      old.broker = broker;
      old.job = job;
      return;
    }
    if (old.phase != Phase::kEnded) {
      old.successor = job;
      old.successor_broker = broker;
      KillAttempt(job.id, old, KillReason::kReplaced);
      return;
    }
    attempts_.erase(it);  // its report would be refused: the broker has granted anew
  } else {
    ++brokers_[broker].granted;
  }
  Attempt& attempt = attempts_[job.id];
  attempt.token = job.token;
  attempt.broker = broker;
  attempt.since = now;
  attempt.job = job;
  if (draining_) return HandBackWaiting(now, job.id, attempt, "the worker is draining");
  waiting_.push_back(job.id);
}

void Session::StartWaiting() {
  while (!waiting_.empty() && running_ < options_.concurrency) {
    Attempt& attempt = attempts_.at(waiting_.front());
    waiting_.pop_front();
    attempt.phase = Phase::kRunning;
    ++running_;
    commands_.emplace_back(Start{std::move(*attempt.job)});
    attempt.job.reset();
  }
}

void Session::HandBackWaiting(MonoTime now, JobId job, Attempt& attempt, std::string_view why) {
  std::erase(waiting_, job);
  AttemptReport report;
  report.job = job;
  report.token = attempt.token;
  report.end = AttemptEnd::kHandedBack;
  report.error_class = "not_started";
  report.error = std::string(why);
  report.worker = options_.name;
  attempt.job.reset();
  attempt.phase = Phase::kEnded;
  attempt.since = now;
  attempt.report = std::move(report);
}

void Session::KillAttempt(JobId job, Attempt& attempt, KillReason reason) {
  if (attempt.phase != Phase::kRunning) return;
  attempt.phase = Phase::kStopping;
  commands_.emplace_back(Kill{job, attempt.token, reason});
}

void Session::OnEndedReply(MonoTime now, std::size_t broker, const wire::EndedReply& reply) {
  for (const auto& item : reply.items) {
    const auto it = attempts_.find(item.job);
    if (it == attempts_.end() || it->second.token != item.token || it->second.phase != Phase::kEnded) continue;
    Attempt& attempt = it->second;
    if (item.accepted || item.reason != wire::kNotOwner) {
      if (!item.accepted) LogInfo("job {}: report refused: {}", item.job.ToString(), item.reason);
      attempts_.erase(it);
      continue;
    }
    if (attempt.broker == broker) {  // whoever owns its shard next may adopt it, and then wants the report
      Orphan(now, item.job, attempt);
      continue;
    }
    attempt.refused_by.insert(broker);
    if (attempt.refused_by.size() == brokers_.size() && now - attempt.since > options_.orphan_report_ttl) {
      LogWarn("job {}: no broker owns it; its report is dropped", item.job.ToString());
      attempts_.erase(it);
    }
  }
}

void Session::OnAdopt(std::size_t broker, const wire::Adopt& adopt) {
  for (const auto& item : adopt.items) {
    const auto it = attempts_.find(item.job);
    if (it == attempts_.end() || it->second.token != item.token || !it->second.orphan_since) continue;
    it->second.broker = broker;
    it->second.orphan_since.reset();
    it->second.sent_at.reset();
    brokers_[broker].beat_now = true;
    LogInfo("job {}: its new broker lets it go on", item.job.ToString());
  }
}

// It goes on, or waits with its report, for another broker.
void Session::Orphan(MonoTime now, JobId job, Attempt& attempt) {
  if (attempt.phase == Phase::kWaiting) HandBackWaiting(now, job, attempt, "its broker is gone");
  attempt.broker = kNoBroker;
  attempt.orphan_since = now;
  attempt.sent_at.reset();
  orphans_now_ = true;
}

void Session::OrphanAllOf(MonoTime now, std::size_t broker) {
  for (auto& [id, attempt] : attempts_) {
    if (attempt.successor && attempt.successor_broker == broker) attempt.successor.reset();  // it never began
    if (attempt.broker == broker) Orphan(now, id, attempt);
  }
}

void Session::EndOrphans(MonoTime now) {
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    Attempt& attempt = it->second;
    const bool unwanted = attempt.orphan_since && now - *attempt.orphan_since >= options_.orphan_ttl;
    if (unwanted && attempt.phase == Phase::kEnded) {
      LogWarn("job {}: no broker wants its report", it->first.ToString());
      it = attempts_.erase(it);
      continue;
    }
    if (unwanted) KillAttempt(it->first, attempt, KillReason::kLeaseLost);
    ++it;
  }
}

void Session::SendOrphans() {
  wire::Orphans orphans{options_.worker, {}};
  for (const auto& [id, attempt] : attempts_)
    if (attempt.orphan_since && orphans.items.size() < wire::kHeldMax) orphans.items.push_back({id, attempt.token});
  if (orphans.items.empty()) return;
  for (std::size_t i = 0; i < brokers_.size(); ++i)
    if (IsLive(i)) commands_.emplace_back(Send{i, orphans});
}

void Session::OnRevoke(MonoTime now, std::size_t broker, const wire::Revoke& revoke) {
  for (const auto& item : revoke.items) {
    const auto it = attempts_.find(item.job);
    if (it == attempts_.end() || it->second.token != item.token) continue;
    if (item.reason == wire::kHandedOver) {
      if (it->second.broker == broker) Orphan(now, item.job, it->second);
      continue;
    }
    // A former owner, which does not know that another one adopted it.
    if (item.reason == wire::kNoLease && !it->second.orphan_since && it->second.broker != broker) continue;
    if (it->second.phase == Phase::kEnded && it->second.orphan_since) {  // nobody will want its report
      attempts_.erase(it);
      continue;
    }
    if (it->second.phase == Phase::kWaiting) {
      HandBackWaiting(now, item.job, it->second, item.reason);
      if (item.reason == "cancelled") {
        it->second.report->end = AttemptEnd::kCancelled;
        it->second.report->error_class = "cancelled";
        it->second.report->error = "cancelled before it started";
      }
    } else {
      KillAttempt(item.job, it->second, item.reason == "cancelled" ? KillReason::kCancelled : KillReason::kRevoked);
    }
  }
}

void Session::OnEnded(MonoTime now, AttemptReport report) {
  const auto it = attempts_.find(report.job);
  if (it == attempts_.end() || it->second.token != report.token || it->second.phase == Phase::kEnded) return;
  Attempt& attempt = it->second;
  --running_;
  if (attempt.successor) {
    Attempt next;
    next.token = attempt.successor->token;
    next.broker = attempt.successor_broker;
    next.since = now;
    next.job = std::move(attempt.successor);
    const JobId id = report.job;
    attempt = std::move(next);
    if (draining_) {
      HandBackWaiting(now, id, attempt, "the worker is draining");
    } else {
      waiting_.push_back(id);
    }
  } else {
    attempt.phase = Phase::kEnded;
    attempt.since = now;
    attempt.report = std::move(report);
  }
  StartWaiting();
}

void Session::OnProgress(JobId job, std::int64_t rows, std::int64_t bytes) {
  const auto it = attempts_.find(job);
  if (it == attempts_.end() || it->second.phase != Phase::kRunning) return;
  it->second.rows = rows;
  it->second.bytes = bytes;
  it->second.progressed = true;
}

void Session::DropLeases(MonoTime now, std::size_t broker) {
  brokers_[broker].link = Link::kNew;
  OrphanAllOf(now, broker);
  if (live_brokers() == 0) StopAll(now);
}

void Session::StopAll(MonoTime now) {
  for (auto& [id, attempt] : attempts_) {
    if (attempt.phase == Phase::kWaiting) {
      HandBackWaiting(now, id, attempt, "the lease was lost before it started");
    } else {
      KillAttempt(id, attempt, KillReason::kLeaseLost);
    }
  }
}

void Session::OnTick(MonoTime now) {
  for (std::size_t i = 0; i < brokers_.size(); ++i) {
    Broker& b = brokers_[i];
    if (b.link == Link::kLive && (now - b.heard_at > b.lease_ttl || now - b.beat_at > b.lease_ttl)) DropLeases(now, i);
    if (b.link == Link::kLive) {
      if (b.BeatDue(now)) b.beat_now = true;
    } else if (b.link == Link::kNew || now >= b.next_hello) {
      SendHello(now, i);
    }
  }
  EndOrphans(now);
  while (!waiting_.empty()) {
    Attempt& first = attempts_.at(waiting_.front());
    if (now - first.since < options_.overflow_wait) break;
    const JobId id = waiting_.front();
    HandBackWaiting(now, id, first, "no free slot");
  }
}

bool Session::BeatDue(MonoTime now) const {
  return std::ranges::any_of(brokers_, [now](const Broker& b) { return b.link == Link::kLive && b.BeatDue(now); });
}

void Session::OnNotSent(MonoTime now, std::size_t broker) {
  Broker& b = brokers_[broker];
  if (b.link == Link::kHelloSent) b.next_hello = std::min(b.next_hello, now + options_.hello_retry);
}

void Session::Release() { options_.held = false; }

void Session::Drain(MonoTime now) {
  draining_ = true;
  while (!waiting_.empty()) {
    const JobId id = waiting_.front();
    HandBackWaiting(now, id, attempts_.at(id), "the worker is draining");
  }
  for (Broker& b : brokers_) b.beat_now = true;
}

void Session::HandBackAll(MonoTime now) {
  Drain(now);
  for (auto& [id, attempt] : attempts_) KillAttempt(id, attempt, KillReason::kDrained);
}

void Session::SayGoodbye() {
  for (std::size_t i = 0; i < brokers_.size(); ++i) {
    if (brokers_[i].link != Link::kNew) commands_.emplace_back(Send{i, wire::Goodbye{options_.worker}});
  }
}

std::vector<wire::Hello::Held> Session::Held(std::size_t broker) const {
  std::vector<wire::Hello::Held> held;
  held.reserve(attempts_.size());
  for (const auto& [id, attempt] : attempts_) {
    if (held.size() == wire::kHeldMax) break;
    if (attempt.broker == broker) held.push_back({id, attempt.token});
    if (attempt.successor && attempt.successor_broker == broker && held.size() < wire::kHeldMax)
      held.push_back({id, attempt.successor->token});
  }
  return held;
}

void Session::SendHello(MonoTime now, std::size_t broker) {
  Broker& b = brokers_[broker];
  b.link = Link::kHelloSent;
  b.next_hello = now + b.heartbeat;
  b.beat_now = false;
  b.granted = 0;
  const std::size_t busy = running_ + waiting_.size();
  b.credit_limit = b.credit_sent = draining_ || options_.held || busy >= options_.concurrency ? 0 : options_.concurrency - busy;
  commands_.emplace_back(Send{broker, wire::Hello{options_.worker, options_.name, options_.queues, options_.kinds,
                                                  options_.roots, options_.concurrency, b.credit_sent, Held(broker)}});
}

void Session::SendBeat(MonoTime now, std::size_t broker) {
  Broker& b = brokers_[broker];
  wire::Beat beat{options_.worker, b.credit_limit, Held(broker), {}, draining_};
  for (auto& [id, attempt] : attempts_) {
    if (attempt.progressed && attempt.phase == Phase::kRunning && attempt.broker == broker)
      beat.progress.push_back({id, attempt.rows, attempt.bytes});
  }
  b.beat_at = now;
  b.beat_now = false;
  b.credit_sent = b.credit_limit;
  commands_.emplace_back(Send{broker, std::move(beat)});
}

void Session::UpdateCredit() {
  if (draining_ || options_.held) return;
  const std::size_t busy = running_ + waiting_.size();
  const std::size_t free = busy >= options_.concurrency ? 0 : options_.concurrency - busy;
  for (Broker& b : brokers_) {
    if (b.link == Link::kLive) b.credit_limit = std::max<std::uint64_t>(b.credit_limit, b.granted + free);
  }
}

void Session::SendReports(MonoTime now) {
  std::vector<wire::Ended> batches(brokers_.size());
  std::vector<std::size_t> bytes(brokers_.size(), 0);
  const auto flush = [&](std::size_t i) {
    if (batches[i].reports.empty()) return;
    batches[i].worker = options_.worker;
    batches[i].credit_limit = brokers_[i].credit_sent = brokers_[i].credit_limit;
    commands_.emplace_back(Send{i, std::exchange(batches[i], {})});
    bytes[i] = 0;
  };
  for (auto& [id, attempt] : attempts_) {
    if (attempt.phase != Phase::kEnded || attempt.orphan_since) continue;
    if (attempt.sent_at && now - *attempt.sent_at < options_.heartbeat) continue;
    // Another broker calls it stale as long as the granter lives, so ask it only when that one is gone for good.
    const bool to_granter = attempt.broker != kNoBroker && now - attempt.since < options_.orphan_report_ttl;
    if (to_granter && !IsLive(attempt.broker)) continue;
    for (std::size_t i = 0; i < brokers_.size(); ++i) {
      if (to_granter ? i != attempt.broker : !IsLive(i)) continue;
      const std::size_t size = wire::SizeBound(*attempt.report);
      if (batches[i].reports.size() == kBatchJobsMax || bytes[i] + size > wire::kBatchBytesMax) flush(i);
      batches[i].reports.push_back(*attempt.report);
      bytes[i] += size;
      attempt.sent_at = now;
    }
  }
  for (std::size_t i = 0; i < brokers_.size(); ++i) flush(i);
}

std::vector<Session::Command> Session::TakeCommands(MonoTime now) {
  UpdateCredit();
  SendReports(now);
  for (std::size_t i = 0; i < brokers_.size(); ++i) {
    Broker& b = brokers_[i];
    if (b.link != Link::kLive || (!b.beat_now && b.credit_sent >= b.credit_limit)) continue;
    orphans_now_ = orphans_now_ || b.beat_now;
    SendBeat(now, i);
  }
  if (std::exchange(orphans_now_, false)) SendOrphans();
  return std::exchange(commands_, {});
}

MonoTime Session::NextTick() const {
  MonoTime next = MonoTime::max();
  for (const Broker& b : brokers_) {
    if (b.link == Link::kNew) return MonoTime{};
    next = std::min(next, b.link == Link::kLive ? b.beat_at + b.heartbeat : b.next_hello);
  }
  if (!waiting_.empty()) next = std::min(next, attempts_.at(waiting_.front()).since + options_.overflow_wait);
  for (const auto& [id, attempt] : attempts_) {
    if (attempt.phase == Phase::kEnded && attempt.sent_at) next = std::min(next, *attempt.sent_at + options_.heartbeat);
  }
  return next;
}

}  // namespace millrace::worker
