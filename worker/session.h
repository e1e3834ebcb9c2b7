// What a worker owes its brokers, as a pure state machine: events in, commands out; no I/O, no clock, no thread.
//
// Rules (ops/docs/wire.md has them for other languages):
//  - Hello on start, after silence, and when a broker says it does not know us. It restarts the count of grants.
//  - credit_limit = grants taken since Hello + free slots; it never goes down. With several brokers each sees all free slots:
//    what they send at once beyond the slots waits here for `overflow_wait` and is then handed back.
//  - An attempt is held from its grant until an EndedReply answers its report, so its lease lasts until the outcome is durable.
//    Each broker hears only of attempts that it granted or adopted.
//  - An attempt whose broker is gone while another is live, whose broker knows the session no more, or whose broker hands its
//    shard over (a Revoke says so) is an orphan: it goes on, every live broker is told of it with each beat, and its report
//    waits, until one adopts or revokes it. One that nobody wants for `orphan_ttl` is stopped and forgotten.
//  - A report goes to the broker that granted, or to every live one once that broker says not_owner or is gone for long.
//  - A broker silent for `lease_ttl`, or one that had no beat of ours for so long, renews nothing. When that leaves no live
//    broker at all, every attempt is killed: it is us who are cut off, and others may have the jobs.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/model/job.h"
#include "common/wire/messages.h"

namespace millrace::worker {

// Why an attempt that has not ended is stopped. Its report then says kHandedBack with Name(reason) as error_class.
enum class KillReason : std::uint8_t {
  kRevoked,    // the broker said so: the lease is somebody else's or nobody's
  kCancelled,  // the broker said so because the job is being cancelled: a command may clean up first
  kReplaced,   // the same job came again with a higher token
  kLeaseLost,  // no lease can be renewed any more
  kDrained,    // the drain timeout passed
};
std::string_view Name(KillReason reason);  // "revoked", "cancelled", ...

class Session {
 public:
  struct Options {
    WorkerId worker;
    std::string name;
    std::vector<std::string> queues, kinds, roots;  // as in Hello
    std::uint32_t concurrency = 1;
    std::size_t brokers = 1;                // addressed below by index
    Millis heartbeat = kHeartbeatInterval;  // until a Welcome says otherwise
    Millis lease_ttl = kLeaseTtl;
    Millis overflow_wait{500};
    Millis hello_retry{20};            // after a hello that could not be sent
    Millis orphan_ttl{12'000};         // longer than a takeover takes (10 s)
    bool held = false;                 // has no credit before Release
    Millis orphan_report_ttl{60'000};  // after its end, a report that its granter has not answered is shown to all
  };

  struct Send {
    std::size_t broker;
    wire::Message message;
  };
  struct Start {
    wire::Grant::Job job;
  };  // the caller runs it and calls OnEnded exactly once
  struct Kill {
    JobId job;
    Token token;
    KillReason reason;
  };  // likewise ends with OnEnded
  using Command = std::variant<Send, Start, Kill>;

  explicit Session(Options options);

  // Events. `now` never goes back.
  void OnMessage(MonoTime now, std::size_t broker, const wire::Message& message);
  void OnEnded(MonoTime now, AttemptReport report);
  void OnProgress(JobId job, std::int64_t rows, std::int64_t bytes);
  void OnTick(MonoTime now);
  void OnNotSent(MonoTime now, std::size_t broker);  // a Send could not go out: no connection yet; a hello is tried again soon
  void Drain(MonoTime now);                          // take nothing more; hand back what has not started
  void HandBackAll(MonoTime now);                    // kill what still runs (implies Drain)
  void Release();                                    // of a held session: it takes jobs from now on
  void SayGoodbye();                                 // to every broker; the last event

  // What the events ask for, in order. Call after each batch of events; also packs the reports that ended meanwhile.
  std::vector<Command> TakeCommands(MonoTime now);

  MonoTime NextTick() const;         // when OnTick has something to do
  bool BeatDue(MonoTime now) const;  // OnTick would send one: what OnProgress says before is in it
  bool Idle() const { return running_ == 0 && waiting_.empty(); }
  bool Settled() const { return attempts_.empty(); }  // nothing runs, every report is answered
  std::size_t running() const { return running_; }
  std::size_t live_brokers() const;

 private:
  static constexpr std::size_t kNoBroker = static_cast<std::size_t>(-1);
  enum class Link : std::uint8_t { kNew, kHelloSent, kLive };
  struct Broker {
    Link link = Link::kNew;
    MonoTime next_hello{};           // unless welcomed before
    MonoTime heard_at{}, beat_at{};  // last
    Millis heartbeat{}, lease_ttl{};
    std::uint64_t granted = 0;       // since the last Hello
    std::uint64_t credit_limit = 0;  // as computed now
    std::uint64_t credit_sent = 0;   // as last told
    bool beat_now = false;
    bool BeatDue(MonoTime now) const { return now - beat_at >= heartbeat; }
  };
  enum class Phase : std::uint8_t { kWaiting, kRunning, kStopping, kEnded };
  struct Attempt {
    Token token;
    std::size_t broker = kNoBroker;  // who granted it; kNoBroker once that one said not_owner
    Phase phase = Phase::kWaiting;
    MonoTime since{};                           // waiting since, or ended at
    std::optional<wire::Grant::Job> job;        // while waiting
    std::optional<wire::Grant::Job> successor;  // the same job with a higher token, starts when this one is gone
    std::size_t successor_broker = kNoBroker;
    std::int64_t rows = 0, bytes = 0;
    bool progressed = false;
    std::optional<AttemptReport> report;  // once ended
    std::optional<MonoTime> sent_at;
    std::set<std::size_t> refused_by;      // said not_owner
    std::optional<MonoTime> orphan_since;  // nobody renews its lease
  };

  void OnGrant(MonoTime now, std::size_t broker, const wire::Grant& grant);
  void OnEndedReply(MonoTime now, std::size_t broker, const wire::EndedReply& reply);
  void OnRevoke(MonoTime now, std::size_t broker, const wire::Revoke& revoke);
  void OnAdopt(std::size_t broker, const wire::Adopt& adopt);
  void OnWelcome(MonoTime now, std::size_t broker, const wire::Welcome& welcome);
  void Admit(MonoTime now, std::size_t broker, const wire::Grant::Job& job);
  void StartWaiting();
  void HandBackWaiting(MonoTime now, JobId job, Attempt& attempt, std::string_view why);
  void KillAttempt(JobId job, Attempt& attempt, KillReason reason);
  void Orphan(MonoTime now, JobId job, Attempt& attempt);
  void OrphanAllOf(MonoTime now, std::size_t broker);
  void EndOrphans(MonoTime now);
  void SendOrphans();
  void DropLeases(MonoTime now, std::size_t broker);
  void StopAll(MonoTime now);
  void SendHello(MonoTime now, std::size_t broker);
  void SendBeat(MonoTime now, std::size_t broker);
  void SendReports(MonoTime now);
  void UpdateCredit();
  std::vector<wire::Hello::Held> Held(std::size_t broker) const;
  bool IsLive(std::size_t broker) const { return broker != kNoBroker && brokers_[broker].link == Link::kLive; }

  Options options_;
  std::vector<Broker> brokers_;
  std::map<JobId, Attempt> attempts_;
  std::deque<JobId> waiting_;  // granted, no slot yet, in the order of their grants
  std::size_t running_ = 0;    // slots in use
  bool draining_ = false;
  bool orphans_now_ = false;  // there are new ones, or a new broker to tell them to
  std::vector<Command> commands_;
};

}  // namespace millrace::worker
