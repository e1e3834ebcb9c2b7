// The simulation's world: brokers, workers, clients, a ledger, a queue and a sink under virtual time (world.cc), schedulers
// (schedulers.cc), what goes wrong in it (faults.cc) and what must hold nevertheless (checks.cc, retry_checks.cc). One thread;
// nothing here is thread-safe.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/ledger_pump.h"
#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/model/cron.h"
#include "tests/sim/node_clock.h"
#include "tests/sim/simulation.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"
#include "worker/session.h"

namespace millrace::sim {

using test::LedgerFault;
using test::MemoryLedger;
using test::MemoryQueue;

constexpr std::uint16_t kShards = 2;
constexpr Micros kFaultsEnd{20'000'000};
constexpr Micros kGiveUp{400'000'000};
// Payloads of jobs that kill their process every time, or fail every time.
constexpr std::string_view kPoison = "poison", kHopeless = "hopeless";
constexpr std::size_t kBrokers = 2, kWorkers = 4, kSchedulers = 2;

struct Node {  // a broker process
  explicit Node(const Clock& world) : clock(world) {}
  NodeClock clock;  // of its machine: it outlives the process
  OwnerId owner;
  std::uint64_t life = 0;  // changes at each crash: what was under way for the old one finds nobody
  bool up = false;
  Micros frozen_until{0};
  std::unique_ptr<Dispatcher> dispatcher;
  std::unique_ptr<LedgerPump> pump;
  std::vector<Event> events;
  std::vector<LedgerCommand> to_ledger;
  std::vector<command::Execute> to_queue;
  bool loop_due = false, queue_due = false;
  std::optional<Micros> pump_due;
  std::set<std::pair<JobId, Token>> ends_written;       // attempts whose end this process sent to the ledger
  std::map<JobId, std::pair<Token, WorkerId>> granted;  // or adopted
  std::map<JobId, Epoch> adopted;                       // in which epoch of its own
  std::set<std::pair<JobId, Token>> fences;             // of what was granted: to raise a fence only
};

struct SimWorker {  // the real Session, and what it started
  WorkerId id;
  std::uint64_t life = 0;
  bool up = false;
  Micros frozen_until{0};
  std::unique_ptr<worker::Session> session;
  std::map<JobId, Token> running;
  std::optional<Micros> turn_due;
};
struct SchedulerProcess;  // the real Scheduler, its ledger connection and its inbox: schedulers.cc
struct SimScheduler {     // a machine for schedulers
  explicit SimScheduler(const Clock& world) : clock(world) {}
  NodeClock clock;
  std::uint64_t life = 0;
  bool up = false;
  Micros frozen_until{0};
  std::shared_ptr<SchedulerProcess> process;  // a pass that is under way holds it too
  // What befalls it after so many more steps (0: nothing): it dies, or freezes for a while.
  std::uint64_t steps_left = 0;
  std::optional<Micros> freeze;
};
struct Scheduled {  // a pipeline with a schedule, and which slots of it must fire
  Pipeline pipeline;
  OrgId org;
  std::vector<WallTime> slots;
};
struct Request {  // of a client, sent again until it is answered
  wire::Message message;
  bool answered = false;
  bool sure = false;  // a cancel of what was accepted before it was sent
};
struct KeptJob {  // of durability redis: only the queue has it until it ended or failed
  JobSpec spec;
  bool accepted = false;
  Micros applied{0};  // when the queue took it last
};
struct Effect {
  Token fence;
  int published = 0;
};

class World {
 public:
  World(std::uint64_t seed, Mutant mutant, Detail detail);

  sim::Report Run();

 private:
  struct Item {
    Micros at;
    std::uint64_t order;
    std::shared_ptr<std::function<void()>> what;
    bool operator<(const Item& other) const { return std::pair{at, order} > std::pair{other.at, other.order}; }
  };
  Micros Now() const { return clock_.Now().time_since_epoch() - Micros{1'000'000}; }
  Micros Between(std::int64_t low, std::int64_t high);
  bool Chance(std::uint64_t percent) { return random_.Below(100) < percent; }
  void At(Micros at, std::function<void()> what);
  void In(Micros delay, std::function<void()> what) { At(Now() + delay, std::move(what)); }
  bool Step();                 // the next of the agenda; false: there is none, or it is of no use to go on
  void PassTime(Micros time);  // whatever the agenda has until then happens meanwhile
  void Trace(std::string_view what, std::string_view id = {}, std::uint64_t number = 0);
  void TraceMessage(std::string_view what, std::string_view peer, const wire::Message& message);
  void Violation(std::string text) { report_.violations.push_back(fmt::format("{} (at {} us)", text, Now().count())); }
  template <class T>
  T NewId() {
    T id;
    const std::uint64_t high = static_cast<std::uint64_t>(Now().count()) << 8 | 7, low = random_.Next();
    for (std::size_t i = 0; i < 8; ++i) {
      id.uuid.bytes[i] = static_cast<std::uint8_t>(high >> (56 - 8 * i));
      id.uuid.bytes[8 + i] = static_cast<std::uint8_t>(low >> (56 - 8 * i));
    }
    return id;
  }

  // ---- brokers -----------------------------------------------------------------------------------------------------------
  void StartBroker(std::size_t i);
  void StopBroker(std::size_t i);
  // Runs `what` in the process's life, after it thawed.
  void OnBroker(std::size_t i, Micros delay, std::function<void(Node&)> what);
  void Tick(std::size_t i, std::uint64_t life);
  void AskMemory(std::size_t i);  // what the queue says of it, again and again
  void Tell(std::size_t i, Event event);
  void Loop(std::size_t i);
  void PumpAt(std::size_t i, Micros at);
  static void ForgetLimits(std::vector<Event>& events);
  static void ForgetTokens(std::vector<Event>& events);
  void Issue(std::size_t i, LedgerCommand& command);
  void Issue(std::size_t i, command::Execute& command);
  void QueueStep(std::size_t i, Node& n);
  void NoteKept(const QueueOp& op);
  void Issue(std::size_t i, command::SendWorker& command);
  void Issue(std::size_t, command::SendClient& command);

  // ---- workers -----------------------------------------------------------------------------------------------------------
  void StartWorker(std::size_t w);
  void OnWorker(std::size_t w, Micros delay, std::function<void(SimWorker&)> what);
  void FromWorker(std::size_t w, std::size_t broker, wire::Message message);
  static constexpr std::uint32_t kConcurrency = 3;
  void Turn(std::size_t w);  // carries out what the session wants, and comes back when it wants to be asked again
  void TurnAt(std::size_t w, Micros at);
  void KillAttempt(std::size_t w, const worker::Session::Kill& kill);
  void ToWorker(std::size_t i, std::size_t w, const wire::PeerId& peer, const wire::Message& message);
  void StartAttempt(std::size_t w, const wire::Grant::Job& job);
  void EndAttempt(std::size_t w, JobId id, Token token);
  void EndFence(std::size_t w, JobId id, Token token);
  bool StillRuns(std::size_t w, JobId id, Token token);
  void Report(std::size_t w, AttemptReport report);

  // ---- schedulers --------------------------------------------------------------------------------------------------------
  friend struct SchedulerProcess;
  void ApplySchedules();
  void StartScheduler(std::size_t s);
  void CrashScheduler(std::size_t s);
  void OnScheduler(std::size_t s, Micros delay, std::function<void(SimScheduler&)> what);
  void PassAt(std::size_t s, Micros delay);
  // Between its calls: time passes, and what is to befall it does. False: it is dead.
  bool SchedulerStep(std::size_t s, const SchedulerProcess& process);
  WallTime SchedulerNow(std::size_t s, WallTime of_ledger) const;
  void BreakScheduler();
  void CheckFire(const FireBatch& batch);
  std::size_t SlotsLeft() const;
  void CheckSlots();

  // ---- clients and faults --------------------------------------------------------------------------------------------------
  JobSpec NewJob(OrgId org);
  void SubmitSomething();
  void CancelSomething();
  void CancelOwnerless();
  // Limits stay as they are; only the pause comes and goes.
  void SetQueues();
  static std::uint64_t SetRequest(int i) { return 1'000'000 + static_cast<std::uint64_t>(i); }
  void Ring(OrgId org) { Ring(ShardOf(org, kShards)); }
  void Ring(ShardId shard);
  void Send(std::size_t request, std::size_t broker);
  void BreakSomething();
  void Crash(std::size_t b);
  void FreezeBroker(std::size_t b);
  void FreezeWorker(std::size_t w);
  void StepClock();
  // In some seeds the queue has no memory left for a while: it refuses what is put in, and says so or not (then something else
  // than what brokers ask about is short).
  bool RunsFull() const { return seed_ % 4 == 1; }
  void FillQueue();
  std::vector<Epoch> Epochs();
  bool AnyFrozen() const;
  bool Cut(std::size_t broker, std::size_t worker) const {
    const auto it = cut_until_.find({broker, worker});
    return it != cut_until_.end() && it->second > Now();
  }
  LedgerFault NextFault();
  void Heal();

  // ---- checks --------------------------------------------------------------------------------------------------------------
  void CheckAdopt(std::size_t i, const wire::Hello::Held& item, const wire::PeerId& peer);
  void CheckGrant(std::size_t i, const wire::Grant::Job& job, const wire::PeerId& peer);
  // An end that is accepted is in the ledger when its worker is told so.
  void CheckEndedReply(const wire::EndedReply& reply);
  // As the owner knows it: attempts of its epoch whose end it has not sent to the ledger.
  void CheckLimits(const Node& n, const JobSpec& spec, Token token);
  // A broker that froze between claim and grant grants late: one burst more.
  void CheckRate(const Rate& rate, std::vector<Micros>& starts, std::string_view of);
  void CheckCommit(const OwnerBatch& batch);
  // Of an attempt or an outcome that is about to be stored: its end is the one that was reported, its counters are what the
  // rows before it and its own end make them.
  void CheckCounters(const AttemptReport& report, const Counters& counters);
  bool Cancelling(const JobSpec& spec, const OwnerBatch& batch) const;
  void CheckRetry(const Node& n, const JobSpec& spec, const AttemptRow& row);
  void CheckBackoff(const Node& n, const JobSpec& spec, const AttemptRow& row);
  void CheckVerdict(const JobSpec& spec, const OutcomeRow& row);
  // An end by time comes with a time that has passed, never before it.
  void CheckOutcomeTime(const Node& n, const JobSpec& spec, const OutcomeRow& row);
  // A grant is the delivery after the last recorded one, and not before the time that that one or the job names.
  void CheckStart(const Node& n, const JobSpec& spec, const wire::Grant::Job& job);
  // As it was submitted; of a job of the queue the ledger may have less. One that is in `batch` may not be there yet.
  const JobSpec& SpecOf(const JobId& id, const OwnerBatch* batch = nullptr) const;
  bool Ended(const JobId& id) const;
  // A job of durability redis may be lost when the store lost the state in which it took it, and only then.
  bool MayBeLost(const KeptJob& job) const;
  bool Finished() const;
  // No attempt runs, not even of a job that nobody was told is accepted.
  bool Idle() const;
  // Skipping follows from what a job depends on, and what expired was never started.
  void CheckTimes(const MemoryLedger::JobRows& rows);
  // `cancelled` without a fence means that nothing of the job runs any more: what goes on must hear so within a lease. Not
  // asked of what could not be known: the queue lost what was delivered, or worker and broker did not hear each other.
  void CheckGoesOn(std::size_t w, const JobId& id);
  // Of jobs that hold their key until they end no two lived at the same time.
  void CheckUnique();
  void CheckCancelReply(const wire::CancelReply& reply);
  void CheckEnd();
  // What has ended is not in the queue any more, wherever it waited.
  void CheckQueueIsEmpty();

  const std::uint64_t seed_;
  const Mutant mutant_;
  const Detail detail_;
  FakeClock clock_;  // the truth, and what clients go by
  NodeClock ledger_clock_{clock_};
  SeededRandom random_, dispatcher_random_;
  MemoryLedger ledger_;
  MemoryQueue queue_;
  std::array<Node, kBrokers> brokers_{Node{clock_}, Node{clock_}};
  std::array<SimWorker, kWorkers> workers_;
  std::array<SimScheduler, kSchedulers> schedulers_{SimScheduler{clock_}, SimScheduler{clock_}};
  std::vector<Scheduled> scheduled_;
  std::vector<Request> requests_;
  std::map<JobId, Effect> effects_;
  std::map<JobId, KeptJob> kept_;
  std::vector<std::pair<Micros, Micros>> losses_;  // what the queue took between the two may be gone
  std::map<JobId, Token> max_token_;
  std::map<std::pair<JobId, Token>, AttemptEnd> reported_;               // by workers, whatever brokers make of it
  std::map<std::pair<OrgId, std::string>, std::vector<Micros>> starts_;  // of a queue (no key) and of its limit keys
  std::map<JobId, std::uint64_t> accepted_, ended_;                      // in which commit
  std::map<JobId, Micros> cancelled_at_;                                 // without a fence
  std::uint64_t commits_ = 0;
  std::priority_queue<Item> agenda_;
  std::uint64_t order_ = 0, trace_ = 0xcbf29ce484222325ULL;
  bool healed_ = false;
  std::map<std::pair<std::size_t, std::size_t>, Micros> cut_until_;  // broker and worker do not hear each other
  Micros ledger_down_until_{0}, ledger_unknown_until_{0};
  Micros full_until_{0};
  bool says_full_ = false;
  sim::Report report_;
};

}  // namespace millrace::sim
