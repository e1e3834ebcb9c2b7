#include "tests/sim/simulation.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <set>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/ledger_pump.h"
#include "common/base/clock.h"
#include "common/base/random.h"
#include "tests/support/memory_ledger.h"
#include "tests/support/memory_queue.h"

namespace millrace::sim {
namespace {

using test::LedgerFault;
using test::MemoryLedger;
using test::MemoryQueue;

constexpr std::uint16_t kShards = 2;
constexpr Micros kFaultsEnd{20'000'000};
constexpr Micros kGiveUp{200'000'000};
constexpr std::size_t kBrokers = 2, kWorkers = 4;

struct Node {  // a broker process
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
  std::set<std::pair<JobId, Token>> ends_written;  // attempts whose end this process sent to the ledger
  std::map<JobId, std::pair<Token, WorkerId>> granted;
};

struct Attempt {
  Token token;
  bool done = false;
};
struct SimWorker {
  WorkerId id;
  std::uint64_t life = 0;
  bool up = false, welcome = false, draining = false;
  Micros frozen_until{0};
  std::size_t broker = 0;
  std::uint64_t taken = 0;
  std::map<JobId, Attempt> held;
  std::map<std::pair<JobId, Token>, AttemptReport> unanswered;
};
struct Request {  // of a client, sent again until it is answered
  wire::Message message;
  bool answered = false;
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
  World(std::uint64_t seed, Mutant mutant)
      : seed_(seed), mutant_(mutant), random_(seed), dispatcher_random_(seed ^ 0x9e37), ledger_(clock_, kShards) {
    ledger_.ignore_epochs = mutant == Mutant::kNoEpochFence;
    queue_.set_ignore_epochs(mutant == Mutant::kNoEpochFence);
    if (seed % 3 == 0) queue_.claim_max = 1 + static_cast<std::uint32_t>(seed % 2);  // large entries
    if (seed % 4 == 0) ledger_.outbox_page_max = 2;
    ledger_.fault = [this] { return NextFault(); };
    ledger_.before_commit = [this](const OwnerBatch& batch) { CheckCommit(batch); };
  }

  Report Run() {
    for (std::size_t i = 0; i < kBrokers; ++i) StartBroker(i);
    for (std::size_t i = 0; i < kWorkers; ++i) StartWorker(i);
    if (seed_ % 2 == 0) SetQueues();
    for (int i = 0; i < 14; ++i) At(Between(100'000, 15'000'000), [this] { SubmitSomething(); });
    for (int i = 0; i < 10; ++i) At(Between(500'000, 18'000'000), [this] { BreakSomething(); });
    for (int i = 0; i < 5; ++i) At(Between(300'000, 16'000'000), [this] { CancelSomething(); });
    At(kFaultsEnd, [this] { Heal(); });
    while (!agenda_.empty() && Now() < kGiveUp && report_.violations.size() < 5) {
      auto next = agenda_.top();
      agenda_.pop();
      clock_.Advance(next.at - Now());
      ++report_.steps;
      (*next.what)();
      if (healed_ && report_.steps % 64 == 0 && Finished()) break;
    }
    CheckEnd();
    report_.jobs = ledger_.jobs.size();
    report_.runs = ledger_.runs.size();
    for (std::uint16_t s = 0; s < kShards; ++s) report_.takeovers += ledger_.EpochOf(ShardId{s}).value() - 1;
    report_.trace = trace_;
    return std::move(report_);
  }

 private:
  struct Item {
    Micros at;
    std::uint64_t order;
    std::shared_ptr<std::function<void()>> what;
    bool operator<(const Item& other) const { return std::pair{at, order} > std::pair{other.at, other.order}; }
  };
  Micros Now() const { return clock_.Now().time_since_epoch() - Micros{1'000'000}; }
  Micros Between(std::int64_t low, std::int64_t high) {
    return Micros{low + static_cast<std::int64_t>(random_.Below(static_cast<std::uint64_t>(high - low)))};
  }
  bool Chance(std::uint64_t percent) { return random_.Below(100) < percent; }
  void At(Micros at, std::function<void()> what) {
    agenda_.push(
        {.at = std::max(at, Now()), .order = ++order_, .what = std::make_shared<std::function<void()>>(std::move(what))});
  }
  void In(Micros delay, std::function<void()> what) { At(Now() + delay, std::move(what)); }
  void Trace(std::string_view what, std::string_view id = {}, std::uint64_t number = 0) {
    const auto eat = [this](std::string_view bytes) {
      for (const char c : bytes) trace_ = (trace_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
    };
    eat(what);
    eat(id);
    eat(std::to_string(number));
    eat(std::to_string(Now().count()));
  }
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
  void StartBroker(std::size_t i) {
    Node& n = brokers_[i];
    ++n.life;
    n.up = true;
    n.owner = NewId<OwnerId>();
    const std::vector<ShardId> shards{ShardId{0}, ShardId{1}};
    n.dispatcher = std::make_unique<Dispatcher>(
        DispatcherOptions{.name = "b", .shard_count = kShards, .shards = shards, .random = &dispatcher_random_});
    n.pump = std::make_unique<LedgerPump>(
        LedgerPumpOptions{
            .owner = n.owner, .owner_name = std::to_string(i), .shards = shards, .shard_count = kShards, .checkpoint = {}},
        ledger_, clock_);
    n.events.clear();
    n.to_ledger.clear();
    n.to_queue.clear();
    n.loop_due = n.queue_due = false;
    n.pump_due.reset();
    PumpAt(i, Now() + Between(0, 50'000));
    Tick(i, n.life);
  }
  void StopBroker(std::size_t i) {
    Trace("crash", {}, i);
    brokers_[i].up = false;
    ++brokers_[i].life;
  }
  // Runs `what` in the process's life, after it thawed.
  void OnBroker(std::size_t i, Micros delay, std::function<void(Node&)> what) {
    In(delay, [this, i, life = brokers_[i].life, what = std::move(what)]() mutable {
      Node& n = brokers_[i];
      if (n.life != life || !n.up) return;
      if (n.frozen_until > Now()) return OnBroker(i, n.frozen_until - Now(), std::move(what));
      what(n);
    });
  }
  void Tick(std::size_t i, std::uint64_t life) {
    OnBroker(i, kDispatcherTick, [this, i, life](Node& n) {
      n.events.push_back(event::Tick{});
      Loop(i);
      Tick(i, life);
    });
  }
  void Tell(std::size_t i, Event event) {
    brokers_[i].events.push_back(std::move(event));
    if (std::exchange(brokers_[i].loop_due, true)) return;
    OnBroker(i, Micros{20}, [this, i](Node&) { Loop(i); });
  }
  void Loop(std::size_t i) {
    Node& n = brokers_[i];
    n.loop_due = false;
    for (Event& event : std::exchange(n.events, {})) n.dispatcher->Handle(std::move(event), clock_.Now(), clock_.WallNow());
    std::vector<Command> commands;
    n.dispatcher->Flush(clock_.Now(), clock_.WallNow(), commands);
    for (Command& command : commands) std::visit([&](auto& c) { Issue(i, c); }, command);
  }
  void PumpAt(std::size_t i, Micros at) {
    Node& n = brokers_[i];
    if (n.pump_due && *n.pump_due <= at) return;
    n.pump_due = at;
    OnBroker(i, std::max(Micros{0}, at - Now()), [this, i, at](Node& node) {
      if (node.pump_due != at) return;
      node.pump_due.reset();
      for (LedgerCommand& command : std::exchange(node.to_ledger, {})) node.pump->Post(std::move(command));
      std::vector<Event> out;
      const MonoTime next = node.pump->Step(out);
      if (mutant_ == Mutant::kNoLimits) ForgetLimits(out);
      // The same delay for all, so that answers keep their order.
      OnBroker(i, Micros{300}, [this, i, out = std::make_shared<std::vector<Event>>(std::move(out))](Node&) {
        for (Event& event : *out) Tell(i, std::move(event));
      });
      PumpAt(i, std::max(Now() + Micros{500}, next.time_since_epoch() - Micros{1'000'000}));
    });
  }
  static void ForgetLimits(std::vector<Event>& events) {
    const auto forget = [](QueueSettings& q) { q.concurrency = q.key_concurrency = 0, q.rate = q.key_rate = Rate{}; };
    for (Event& event : events) {
      if (auto* read = std::get_if<event::QueueSettingsRead>(&event)) std::ranges::for_each(read->settings, forget);
      if (auto* put = std::get_if<event::QueueSettingsPut>(&event); put != nullptr && put->stored) forget(*put->stored);
    }
  }
  void Issue(std::size_t i, LedgerCommand& command) {
    if (auto* commit = std::get_if<command::Commit>(&command)) {
      for (const AttemptRow& row : commit->rows.attempts) brokers_[i].ends_written.emplace(row.report.job, row.report.token);
      for (const OutcomeRow& row : commit->rows.outcomes) brokers_[i].ends_written.emplace(row.report.job, row.report.token);
      Trace("commit", {}, commit->piece.value());
    }
    brokers_[i].to_ledger.push_back(std::move(command));
    PumpAt(i, Now() + Micros{800});
  }
  void Issue(std::size_t i, command::Execute& command) {
    Node& n = brokers_[i];
    if (auto* requeue = std::get_if<queue_op::Requeue>(&command.op); requeue && mutant_ == Mutant::kForgetRequeue)
      requeue->entries.clear();
    if (auto* enqueue = std::get_if<queue_op::Enqueue>(&command.op); enqueue && mutant_ == Mutant::kEnqueueTwice) {
      const auto copy = enqueue->entries;
      enqueue->entries.insert(enqueue->entries.end(), copy.begin(), copy.end());
    }
    n.to_queue.push_back(std::move(command));
    if (std::exchange(n.queue_due, true)) return;
    OnBroker(i, Micros{100}, [this, i](Node& node) { QueueStep(i, node); });
  }
  void QueueStep(std::size_t i, Node& n) {
    n.queue_due = false;
    auto taken = std::exchange(n.to_queue, {});
    event::QueueReplies replies;
    const bool fails = !healed_ && Chance(1) && Chance(30), applied = Chance(50);
    for (auto& [id, op] : taken) {
      std::vector<Result<QueueReply>> results;
      if (!fails || applied) results = queue_.Execute(std::span{&op, 1});
      if (!results.empty() && results.front()) NoteKept(op);
      if (fails) results = {Fail(ErrorCode::kMaybeApplied, "the connection broke")};
      replies.replies.emplace_back(id, std::move(results.front()));
    }
    OnBroker(i, Micros{100},
             [this, i, all = std::make_shared<event::QueueReplies>(std::move(replies))](Node&) { Tell(i, std::move(*all)); });
  }
  void NoteKept(const QueueOp& op) {
    if (const auto* enqueue = std::get_if<queue_op::Enqueue>(&op))
      for (const QueueEntry& entry : enqueue->entries)
        if (IsKeptLine(entry.line)) kept_[entry.id].applied = Now();
  }
  void Issue(std::size_t i, command::SendWorker& command) {
    if (const auto* grant = std::get_if<wire::Grant>(&command.message))
      for (const auto& job : grant->jobs) CheckGrant(i, job, command.peer);
    Trace("to worker", command.peer, command.message.index());
    const std::size_t w = static_cast<std::size_t>(command.peer.front() - '0');
    if (!healed_ && Chance(2)) return;  // lost on the way
    const auto deliver = [this, i, w, peer = command.peer, message = std::move(command.message)] {
      ToWorker(i, w, peer, message);
    };
    In(Between(50, 400), deliver);
    if (!healed_ && Chance(1)) In(Between(50, 4'000'000), deliver);
  }
  void Issue(std::size_t, command::SendClient& command) {
    if (const auto* reply = std::get_if<wire::SubmitReply>(&command.message)) {
      Trace("accepted", {}, reply->request);
      for (const auto& item : reply->accepted) {
        if (const auto kept = kept_.find(JobId{item.id}); kept != kept_.end()) {
          if (kept->second.applied == Micros{0}) Violation("S1: accepted, but the queue never took it");
          kept->second.accepted = true;
          continue;
        }
        const bool stored = ledger_.jobs.contains(JobId{item.id}) || ledger_.runs.contains(RunId{item.id});
        if (item.conflict_with == Uuid{}) {
          if (!stored) Violation("S1: accepted, but the ledger does not have it");
          continue;
        }
        ++report_.conflicts;
        if (!ledger_.jobs.contains(JobId{item.conflict_with})) Violation("the holder of a unique key does not exist");
      }
      if (Chance(90) || healed_) requests_[reply->request].answered = true;
    }
    if (const auto* reply = std::get_if<wire::CancelReply>(&command.message)) {
      for (const auto& item : reply->items) {
        const bool promised = item.effect == CancelEffect::kCancelled || item.effect == CancelEffect::kCancelling;
        if (promised && !ledger_.cancels.contains(item.id)) Violation("a cancel is confirmed that the ledger does not have");
        const auto job = ledger_.jobs.find(JobId{item.id});
        if (item.effect == CancelEffect::kCancelled && (job == ledger_.jobs.end() || !job->second.outcome))
          Violation("a job is said to be cancelled that has not ended");
      }
      requests_[reply->request].answered = true;
    }
  }

  // ---- workers -----------------------------------------------------------------------------------------------------------
  void StartWorker(std::size_t w) {
    SimWorker& worker = workers_[w];
    const std::uint64_t life = worker.life + 1;
    worker = SimWorker{};
    worker.id = NewId<WorkerId>();
    worker.life = life;
    worker.up = true;
    worker.broker = w % kBrokers;
    Beat(w, worker.life);
  }
  void OnWorker(std::size_t w, Micros delay, std::function<void(SimWorker&)> what) {
    In(delay, [this, w, life = workers_[w].life, what = std::move(what)]() mutable {
      SimWorker& worker = workers_[w];
      if (worker.life != life || !worker.up) return;
      if (worker.frozen_until > Now()) return OnWorker(w, worker.frozen_until - Now(), std::move(what));
      what(worker);
    });
  }
  void FromWorker(std::size_t w, wire::Message message) {
    SimWorker& worker = workers_[w];
    if (!healed_ && Chance(2)) return;
    const std::size_t i = worker.broker;
    const wire::PeerId peer = fmt::format("{}-{}", w, worker.life);
    OnBroker(i, Micros{200}, [this, i, peer, message = std::move(message)](Node& n) mutable {
      if (auto* ended = std::get_if<wire::Ended>(&message); ended && mutant_ == Mutant::kAcceptOldToken) {
        for (const AttemptReport& report : ended->reports) {
          wire::Ended one{.worker = ended->worker, .credit_limit = ended->credit_limit, .reports = {report}};
          if (const auto it = n.granted.find(report.job); it != n.granted.end()) {
            one.reports[0].token = it->second.first;
            one.worker = it->second.second;
          }
          Tell(i, event::FromWorker{.peer = peer, .message = std::move(one)});
        }
        return;
      }
      Tell(i, event::FromWorker{.peer = peer, .message = std::move(message)});
    });
  }
  static constexpr std::uint64_t kConcurrency = 3;
  std::uint64_t CreditLimit(const SimWorker& worker) const {
    const std::uint64_t busy = worker.held.size();
    return worker.taken + (busy < kConcurrency + 1 ? kConcurrency + 1 - busy : 0);
  }
  std::vector<wire::Hello::Held> HeldBy(const SimWorker& worker) const {
    std::vector<wire::Hello::Held> held;
    for (const auto& [job, attempt] : worker.held) held.push_back({.job = job, .token = attempt.token});
    return held;
  }
  void Hello(std::size_t w) {
    SimWorker& worker = workers_[w];
    worker.taken = 0;
    FromWorker(w, wire::Hello{.worker = worker.id,
                              .name = fmt::format("w{}", w),
                              .queues = {},
                              .kinds = {},
                              .roots = {},
                              .concurrency = kConcurrency,
                              .credit_limit = CreditLimit(worker),
                              .held = HeldBy(worker)});
  }
  void Beat(std::size_t w, std::uint64_t life) {
    OnWorker(w, kHeartbeatInterval, [this, w, life](SimWorker& worker) {
      if (!worker.welcome) {
        Hello(w);
      } else {
        FromWorker(w, wire::Beat{.worker = worker.id,
                                 .credit_limit = CreditLimit(worker),
                                 .held = HeldBy(worker),
                                 .progress = {},
                                 .draining = false});
      }
      if (!worker.unanswered.empty()) Report_(w);
      Beat(w, life);
    });
  }
  void Report_(std::size_t w) {
    SimWorker& worker = workers_[w];
    wire::Ended ended{.worker = worker.id, .credit_limit = CreditLimit(worker), .reports = {}};
    for (const auto& [key, report] : worker.unanswered) ended.reports.push_back(report);
    FromWorker(w, std::move(ended));
  }
  void ToWorker(std::size_t i, std::size_t w, const wire::PeerId& peer, const wire::Message& message) {
    OnWorker(w, Micros{0}, [this, i, w, peer, message](SimWorker& worker) {
      if (peer != fmt::format("{}-{}", w, worker.life) || worker.broker != i) return;
      if (std::holds_alternative<wire::Welcome>(message)) worker.welcome = true;
      if (const auto* beat = std::get_if<wire::BrokerBeat>(&message); beat && !beat->known) Hello(w);
      if (const auto* grant = std::get_if<wire::Grant>(&message))
        for (const auto& job : grant->jobs) StartAttempt(w, job);
      if (const auto* revoke = std::get_if<wire::Revoke>(&message))
        for (const auto& item : revoke->items)
          if (const auto it = worker.held.find(item.job); it != worker.held.end() && it->second.token == item.token) {
            worker.held.erase(it);
            if (item.reason != "cancelled") continue;
            AttemptReport report;
            report.job = item.job;
            report.token = item.token;
            report.end = AttemptEnd::kCancelled;
            report.result = std::to_string(item.token.value());
            worker.unanswered.emplace(std::pair{item.job, item.token}, report);
            Report_(w);
          }
      if (const auto* reply = std::get_if<wire::EndedReply>(&message))
        for (const auto& item : reply->items) worker.unanswered.erase({item.job, item.token});
    });
  }
  void StartAttempt(std::size_t w, const wire::Grant::Job& job) {
    SimWorker& worker = workers_[w];
    ++worker.taken;
    if (const auto it = worker.held.find(job.id); it != worker.held.end() && it->second.token >= job.token) return;
    if (worker.unanswered.contains({job.id, job.token})) return;
    worker.held[job.id] = {.token = job.token};
    Effect& effect = effects_[job.id];
    if (job.fence_only && mutant_ != Mutant::kCancelWithoutFence) effect.fence = std::max(effect.fence, job.token);
    if (job.fence_only) {
      OnWorker(w, Between(1'000, 200'000), [this, w, id = job.id, token = job.token](SimWorker&) { EndFence(w, id, token); });
      return;
    }
    if (effect.fence < job.token) effect.fence = job.token;  // raises the fence, unless a newer attempt did
    const Micros duration = Chance(85) ? Between(1'000, 300'000) : Between(300'000, 6'000'000);
    OnWorker(w, duration, [this, w, id = job.id, token = job.token](SimWorker&) { EndAttempt(w, id, token); });
  }
  void EndAttempt(std::size_t w, JobId id, Token token) {
    SimWorker& worker = workers_[w];
    const auto it = worker.held.find(id);
    if (it == worker.held.end() || it->second.token != token) return;
    worker.held.erase(it);
    AttemptReport report;
    report.job = id;
    report.token = token;
    report.result = std::to_string(token.value());  // what really ran, whatever becomes of `token`
    Effect& effect = effects_[id];
    const std::uint64_t dice = random_.Below(100);
    if (dice < 78 || healed_) {
      if (effect.published == 0 && effect.fence == token) ++effect.published;
      report.end = effect.published > 0 ? AttemptEnd::kSucceeded : AttemptEnd::kFailed;
    } else if (dice < 90) {
      report.end = AttemptEnd::kFailed;
    } else if (dice < 93) {
      report.end = AttemptEnd::kFailed;
      report.retryable = false;
    } else if (dice < 96) {
      report.end = AttemptEnd::kCrashed;
    } else {
      report.end = AttemptEnd::kHandedBack;
    }
    Trace("end", id.AsBytes(), token.value());
    worker.unanswered.emplace(std::pair{id, token}, report);
    Report_(w);
  }

  void EndFence(std::size_t w, JobId id, Token token) {
    SimWorker& worker = workers_[w];
    const auto it = worker.held.find(id);
    if (it == worker.held.end() || it->second.token != token) return;
    worker.held.erase(it);
    AttemptReport report;
    report.job = id;
    report.token = token;
    report.result = std::to_string(token.value());
    report.end = effects_[id].published > 0        ? AttemptEnd::kSucceeded
                 : healed_ || random_.Below(5) > 0 ? AttemptEnd::kCancelled
                                                   : AttemptEnd::kFailed;
    Trace("fenced", id.AsBytes(), token.value());
    worker.unanswered.emplace(std::pair{id, token}, report);
    Report_(w);
  }

  // ---- clients and faults --------------------------------------------------------------------------------------------------
  JobSpec NewJob(OrgId org) {
    JobSpec job;
    job.id = NewId<JobId>();
    job.org = org;
    job.kind = "work";
    job.priority = static_cast<int>(random_.Below(kPriorityLevels));
    job.retry = {.max_attempts = 4, .backoff_base = Millis{200}, .backoff_cap = Millis{2000}};
    job.options.has_sink = Chance(50);
    if (seed_ % 2 == 0 && Chance(40)) job.options.limit_key = std::to_string(random_.Below(3));
    if (Chance(15)) job.run_at = clock_.WallNow() + Between(0, 3'000'000);
    if (Chance(10)) job.options.backoff = Backoff::kFixed;
    if (Chance(12)) job.options.expires_at = clock_.WallNow() + Between(100'000, 6'000'000);
    if (Chance(12)) job.options.deadline = clock_.WallNow() + Between(300'000, 9'000'000);
    return job;
  }
  void SubmitSomething() {
    const OrgId org{static_cast<std::int64_t>(1 + random_.Below(4))};
    if (Chance(50)) {
      std::vector<JobSpec> jobs;
      for (std::uint64_t n = 1 + random_.Below(6); n > 0; --n) {
        jobs.push_back(NewJob(org));
        if (!Chance(25)) continue;
        jobs.back().options.unique_key = std::to_string(random_.Below(3));
        jobs.back().options.unique_until = Chance(50) ? UniqueUntil::kEnded : UniqueUntil::kStarted;
      }
      if (Chance(30)) {
        ++commits_;
        for (const JobSpec& job : jobs) accepted_[job.id] = commits_;
        (void)ledger_.SubmitJobs(jobs, clock_.Now());
        return Ring(org);
      }
      const std::uint64_t kept = std::array<std::uint64_t, 3>{0, 50, 100}[random_.Below(3)];
      for (JobSpec& job : jobs)
        if (Chance(kept) && job.options.unique_key.empty()) {
          job.options.durability = Durability::kRedis;
          kept_[job.id].spec = job;
        }
      requests_.push_back({.message = wire::SubmitJobs{.request = requests_.size(), .jobs = jobs}});
      return Send(requests_.size() - 1, random_.Below(kBrokers));
    }
    RunSpec run;
    run.id = NewId<RunId>();
    run.org = org;
    run.pipeline = Chance(70) ? "p" : "q";
    run.overlap = std::array{"queue", "allow", "skip", "cancel"}[random_.Below(4)];
    std::vector<JobSpec> jobs;
    for (std::uint64_t n = 1 + random_.Below(6); n > 0; --n) {
      JobSpec job = NewJob(org);
      job.run = run.id;
      for (const JobSpec& earlier : jobs)
        if (Chance(40)) job.depends_on.push_back(earlier.id);
      if (Chance(25)) job.options.run_when = RunWhen::kAllEnded;
      jobs.push_back(std::move(job));
    }
    if (Chance(40)) {
      (void)ledger_.SubmitRun(run, jobs, clock_.Now());
      return Ring(org);
    }
    requests_.push_back(
        {.message = wire::SubmitRun{.request = requests_.size(), .run = run, .jobs = jobs, .watch = Chance(50)}});
    Send(requests_.size() - 1, random_.Below(kBrokers));
  }
  void CancelSomething() {
    std::vector<CancelRow> all;
    for (const auto& [id, run] : ledger_.runs) all.push_back({id.uuid, true, run.org, "sim", "", {}});
    for (const auto& [id, rows] : ledger_.jobs)
      if (!rows.spec.run) all.push_back({id.uuid, false, rows.spec.org, "sim", "", {}});
    if (all.empty()) return;
    // The newest are the likeliest to be alive.
    const std::size_t back = random_.Below(std::min<std::size_t>(all.size(), 8));
    std::ranges::sort(all, {}, &CancelRow::item);
    CancelRow row = all[all.size() - 1 - back];
    for (const SimWorker& worker : workers_) {  // what a frozen worker will go on with is the interesting case
      if (!worker.up || worker.frozen_until <= Now() || worker.held.empty() || Chance(20)) continue;
      const JobSpec& job = SpecOf(worker.held.begin()->first);
      row = {job.run ? job.run->uuid : job.id.uuid, job.run.has_value(), job.org, "sim", "", {}};
    }
    if (Chance(30) && (row.is_run || ledger_.jobs.contains(JobId{row.item}))) {
      (void)ledger_.RequestCancel(std::span{&row, 1}, clock_.Now());
      return Ring(row.org);
    }
    wire::Cancel cancel;
    cancel.request = requests_.size();
    cancel.org = row.org;
    cancel.items = {{.id = row.item, .is_run = row.is_run}};
    requests_.push_back({.message = std::move(cancel)});
    Send(requests_.size() - 1, random_.Below(kBrokers));
  }
  // Limits stay as they are; only the pause comes and goes.
  void SetQueues() {
    for (std::int64_t org = 1; org <= 4; ++org) {
      QueueSettings q;
      q.org = OrgId{org};
      q.queue = "default";
      if (Chance(30)) q.order = QueueOrder::kWeighted;
      q.aging = Millis{static_cast<std::int64_t>(100 + random_.Below(3000))};
      if (Chance(60)) q.concurrency = static_cast<std::uint32_t>(1 + random_.Below(4));
      if (Chance(50)) q.key_concurrency = static_cast<std::uint32_t>(1 + random_.Below(2));
      if (Chance(40)) q.rate = {static_cast<std::uint32_t>(2 + random_.Below(10)), Millis{1000}, 0};
      if (Chance(30)) q.key_rate = {static_cast<std::uint32_t>(1 + random_.Below(3)), Millis{1000}, 2};
      if (Chance(30)) q.max_waiting_jobs = 6 + random_.Below(6);
      ledger_.queues[{q.org, q.queue}] = q;
      ++ledger_.queues[{q.org, q.queue}].revision;
    }
    for (int i = 0; i < 6; ++i)
      At(Between(1'000'000, 18'000'000), [this, i] {
        QueueSettings q = ledger_.queues.at({OrgId{static_cast<std::int64_t>(1 + random_.Below(4))}, "default"});
        q.paused = !q.paused;
        Trace("pause", {}, static_cast<std::uint64_t>(q.org.value()));
        if (Chance(50))
          return Tell(random_.Below(kBrokers),
                      event::FromClient{.peer = "c",
                                        .message = wire::SetQueue{.request = SetRequest(i), .settings = q, .actor = "sim"}});
        (void)ledger_.PutQueueSettings(q, "sim", clock_.Now());
      });
  }
  static std::uint64_t SetRequest(int i) { return 1'000'000 + static_cast<std::uint64_t>(i); }
  void Ring(OrgId org) {
    if (Chance(30)) return;  // the ring is lost
    for (std::size_t i = 0; i < kBrokers; ++i)
      OnBroker(i, Micros{300}, [this, i, shard = ShardOf(org, kShards)](Node&) { Tell(i, event::Rung{.shard = shard}); });
  }
  void Send(std::size_t request, std::size_t broker) {
    if (requests_[request].answered) return;
    if (healed_ || !Chance(5))
      OnBroker(broker, Micros{200}, [this, request, broker](Node&) {
        Tell(broker, event::FromClient{.peer = "c", .message = requests_[request].message});
      });
    In(Between(200'000, 1'500'000), [this, request, broker] { Send(request, (broker + 1) % kBrokers); });
  }
  void BreakSomething() {
    const std::size_t b = random_.Below(kBrokers), w = random_.Below(kWorkers);
    Trace("break", {}, b * 10 + w);
    switch (random_.Below(8)) {
      case 0:
        if (!brokers_[b].up) return;
        StopBroker(b);
        return In(Between(50'000, 7'000'000), [this, b] {
          if (!brokers_[b].up) StartBroker(b);
        });
      case 1: brokers_[b].frozen_until = Now() + Between(500'000, 9'000'000); return;
      case 2:
        if (!workers_[w].up) return;
        workers_[w].up = false;
        return In(Between(100'000, 4'000'000), [this, w] {
          if (!workers_[w].up) StartWorker(w);
        });
      case 3:
        workers_[w].frozen_until = Now() + Between(500'000, 8'000'000);
        if (Chance(50)) In(Between(1'000, 500'000), [this] { CancelSomething(); });
        return;
      case 4: losses_.emplace_back(Micros{0}, Now()); return queue_.Wipe();
      case 7:  // the store comes back as it was a while before
        queue_.Save();
        return In(Between(1'000, 3'000'000), [this, saved = Now()] {
          losses_.emplace_back(saved, Now());
          queue_.RollBack();
        });
      case 5: ledger_down_until_ = Now() + Between(100'000, 7'000'000); return;
      case 6: ledger_unknown_until_ = Now() + Between(50'000, 500'000); return;
    }
  }
  LedgerFault NextFault() {
    if (healed_) return LedgerFault::kNone;
    if (ledger_down_until_ > Now()) return LedgerFault::kUnavailable;
    if (ledger_unknown_until_ > Now() && Chance(50))
      return Chance(50) ? LedgerFault::kAppliedButUnknown : LedgerFault::kNotAppliedButUnknown;
    return LedgerFault::kNone;
  }
  void Heal() {
    healed_ = true;
    for (auto& [key, q] : ledger_.queues) {
      q.paused = false;
      ++q.revision;
    }
    for (std::size_t i = 0; i < kBrokers; ++i) {
      brokers_[i].frozen_until = Now();
      if (!brokers_[i].up) StartBroker(i);
    }
    for (std::size_t w = 0; w < kWorkers; ++w) {
      workers_[w].frozen_until = Now();
      if (!workers_[w].up) StartWorker(w);
    }
    // A broker that owns nothing is of no use to a worker: all of them look for the owners.
    Roam();
  }
  void Roam() {
    for (std::size_t w = 0; w < kWorkers; ++w) {
      SimWorker& worker = workers_[w];
      std::size_t to = w % kBrokers;
      if (brokers_[to].pump->holds().empty()) to = (to + 1) % kBrokers;
      if (to == worker.broker) continue;
      worker.broker = to;
      worker.welcome = false;
    }
    In(Micros{5'000'000}, [this] { Roam(); });
  }

  // ---- checks --------------------------------------------------------------------------------------------------------------
  void CheckGrant(std::size_t i, const wire::Grant::Job& job, const wire::PeerId& peer) {
    Node& n = brokers_[i];
    const auto rows = ledger_.jobs.find(job.id);
    const auto kept = kept_.find(job.id);
    if (rows == ledger_.jobs.end() && kept == kept_.end())
      return Violation("S1: a job is granted that the ledger does not have");
    Trace("grant", job.id.AsBytes(), job.token.value());
    const JobSpec& spec = SpecOf(job.id);
    const bool owner = ledger_.EpochOf(ShardOf(spec.org, kShards)) == job.token.epoch();
    const auto before = n.granted.find(job.id);
    if (before != n.granted.end() && before->second.first.epoch() == job.token.epoch() &&
        !n.ends_written.contains({job.id, before->second.first}))
      Violation("S7: a second live lease");
    // What is being cancelled is fenced, whatever time it is.
    if (const auto end = EndOfWait(spec.options, {.deliveries = job.delivery - 1});
        !job.fence_only && end && end->at <= clock_.WallNow())
      Violation("a job is granted after its deadline or expiry");
    if (owner) {
      if (rows != ledger_.jobs.end() && rows->second.outcome)
        Violation("S3: job " + job.id.ToString() + " is granted after its outcome");
      if (job.token <= max_token_[job.id]) Violation("S4: a token does not increase");
      CheckLimits(n, spec, job.token);
      max_token_[job.id] = job.token;
    }
    n.granted[job.id] = {job.token, workers_[static_cast<std::size_t>(peer.front() - '0')].id};
  }
  // As the owner knows it: attempts of its epoch whose end it has not sent to the ledger.
  void CheckLimits(const Node& n, const JobSpec& spec, Token token) {
    const auto settings = ledger_.queues.find({spec.org, spec.queue});
    if (settings == ledger_.queues.end()) return;
    const QueueSettings& q = settings->second;
    std::uint32_t of_queue = 1, of_key = 1;
    for (const auto& [id, grant] : n.granted) {
      const JobSpec& other = SpecOf(id);
      if (id == spec.id || grant.first.epoch() != token.epoch() || other.org != spec.org || other.queue != spec.queue ||
          n.ends_written.contains({id, grant.first}))
        continue;
      ++of_queue;
      if (other.options.limit_key == spec.options.limit_key) ++of_key;
    }
    if (q.concurrency > 0 && of_queue > q.concurrency) Violation("limit: more run in the queue than it allows");
    if (!spec.options.limit_key.empty() && q.key_concurrency > 0 && of_key > q.key_concurrency)
      Violation("limit: more of a key run than the queue allows");
    CheckRate(q.rate, starts_[{spec.org, ""}], "queue");
    if (!spec.options.limit_key.empty()) CheckRate(q.key_rate, starts_[{spec.org, spec.options.limit_key}], "key");
    ++report_.granted_under_limits;
  }
  // A broker that froze between claim and grant grants late: one burst more.
  void CheckRate(const Rate& rate, std::vector<Micros>& starts, std::string_view of) {
    if (!rate.Limited()) return;
    starts.push_back(Now());
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const double allowed = 2.0 * rate.Burst() + 1 +
                             static_cast<double>(rate.count) * static_cast<double>((Now() - starts[i]).count()) /
                                 static_cast<double>(Micros{rate.per}.count());
      if (static_cast<double>(starts.size() - i) > allowed)
        return Violation(fmt::format("limit: the rate of a {} is exceeded", of));
    }
  }
  void CheckCommit(const OwnerBatch& batch) {
    ++commits_;
    for (const OutcomeRow& row : batch.outcomes) ended_.try_emplace(row.report.job, commits_);
    for (const JobSpec& job : batch.jobs) accepted_[job.id] = ledger_.jobs.contains(job.id) ? accepted_[job.id] : commits_;
    for (const AttemptRow& row : batch.attempts) {
      if (Ended(row.report.job)) Violation("S3: an attempt after the outcome");
      if (row.report.end == AttemptEnd::kLost) ++report_.lost;
    }
    for (const OutcomeRow& row : batch.outcomes) {
      Trace("outcome", row.report.job.AsBytes(), row.report.token.value());
      if (Ended(row.report.job)) Violation("S3: a second outcome");
      const Uuid item = row.run ? row.run->uuid : row.report.job.uuid;
      const bool asked =
          ledger_.cancels.contains(item) || std::ranges::find(batch.cancels, item, &CancelRow::item) != batch.cancels.end();
      if (row.state == JobState::kCancelled && !asked) Violation("a job is cancelled that nobody wanted to be cancelled");
      if (row.report.token == Token{}) continue;
      if (row.report.result != std::to_string(max_token_[row.report.job].value()))
        Violation(fmt::format("S4: the outcome comes from token {}, the last granted one is {}", row.report.result,
                              max_token_[row.report.job].value()));
      if (row.state == JobState::kSucceeded && effects_[row.report.job].published != 1)
        Violation("S2: succeeded without exactly one effect");
    }
    for (const RunOutcomeRow& row : batch.run_outcomes)
      if (ledger_.run_outcomes.contains(row.run)) Violation("S3: a second run outcome");
  }
  // As it was submitted; of a job of the queue the ledger may have less.
  const JobSpec& SpecOf(const JobId& id) const {
    const auto kept = kept_.find(id);
    return kept != kept_.end() ? kept->second.spec : ledger_.jobs.at(id).spec;
  }
  bool Ended(const JobId& id) const {
    const auto rows = ledger_.jobs.find(id);
    return rows != ledger_.jobs.end() && rows->second.outcome;
  }
  // A job of durability redis may be lost when the store lost the state in which it took it, and only then.
  bool MayBeLost(const KeptJob& job) const {
    return std::ranges::any_of(losses_, [&](const auto& l) { return l.first <= job.applied && job.applied <= l.second; });
  }
  bool Finished() const {
    for (const auto& request : requests_)
      if (!request.answered) return false;
    for (const auto& [id, job] : kept_)
      if (job.accepted && !Ended(id) && !MayBeLost(job)) return false;
    for (const auto& [id, rows] : ledger_.jobs)
      if (!rows.outcome) return false;
    for (const auto& [id, run] : ledger_.runs)
      if (!ledger_.run_outcomes.contains(id)) return false;
    return true;
  }
  // An end by time comes with a time that has passed, never before it; skipping follows from what a job depends on.
  void CheckTimes(const MemoryLedger::JobRows& rows) {
    const OutcomeRow& outcome = *rows.outcome;
    const JobOptions& options = rows.spec.options;
    if (outcome.state == JobState::kExpired) {
      ++report_.expired;
      if (!options.expires_at || outcome.recorded_at < *options.expires_at) Violation("expired before its time");
      if (outcome.counters.deliveries > 0) Violation("expired although it was started");
    }
    if (outcome.report.error_class == kErrorDeadlineExceeded) {
      ++report_.overdue;
      if (!options.deadline || outcome.recorded_at < *options.deadline) Violation("dead before its deadline");
    }
    if (outcome.state == JobState::kSkipped && options.run_when == RunWhen::kAllEnded &&
        outcome.report.error.starts_with("stage '"))
      Violation("a callback was skipped because of what it waits for");
    if (outcome.report.token == Token{} || !rows.spec.run || options.run_when == RunWhen::kAllEnded) return;
    for (const JobId& need : rows.spec.depends_on)
      if (ledger_.jobs.at(need).outcome->state != JobState::kSucceeded) Violation("a job ran although what it needs failed");
  }
  // Of jobs that hold their key until they end no two lived at the same time.
  void CheckUnique() {
    std::map<std::string, std::vector<const MemoryLedger::JobRows*>> by_key;
    for (const auto& [id, rows] : ledger_.jobs)
      if (!rows.spec.run && !rows.spec.options.unique_key.empty() && rows.spec.options.unique_until == UniqueUntil::kEnded)
        by_key[fmt::format("{} {}", rows.spec.org.value(), rows.spec.options.unique_key)].push_back(&rows);
    for (auto& [key, all] : by_key) {
      std::ranges::sort(all, {}, [this](const auto* rows) { return accepted_.at(rows->spec.id); });
      for (std::size_t i = 1; i < all.size(); ++i)
        if (ended_.at(all[i - 1]->spec.id) > accepted_.at(all[i]->spec.id)) Violation("two jobs held the unique key " + key);
    }
  }
  void CheckEnd() {
    if (!report_.violations.empty()) return;
    for (const auto& [id, rows] : ledger_.jobs)
      if (!rows.outcome) Violation("S1: job " + id.ToString() + " never ended");
    for (const auto& [id, run] : ledger_.runs)
      if (!ledger_.run_outcomes.contains(id)) Violation("S1: run " + id.ToString() + " never ended");
    for (const auto& [id, job] : kept_) {
      if (job.accepted) ++report_.kept;
      if (!job.accepted || Ended(id)) continue;
      if (MayBeLost(job))
        ++report_.kept_lost;
      else
        Violation("S1: job " + id.ToString() + " of the queue never ended");
    }
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (!requests_[i].answered) Violation(fmt::format("request {} was never answered", i));
    if (!report_.violations.empty()) return;
    for (const auto& [id, rows] : ledger_.jobs) CheckTimes(rows);
    CheckUnique();
    for (const auto& [id, run] : ledger_.run_outcomes) {
      bool all = true;
      for (const JobId& job : ledger_.jobs_of_run[id])
        if (const auto& outcome = ledger_.jobs.at(job).outcome) all = all && outcome->state == JobState::kSucceeded;
      if ((run.state == RunState::kSucceeded) != all)
        Violation("run " + id.ToString() + ": its outcome does not follow from its jobs");
    }
    for (const auto& [id, effect] : effects_) {
      if (!Ended(id)) continue;  // lost with the queue
      const auto& rows = ledger_.jobs.at(id);
      if (rows.outcome->state != JobState::kCancelled) continue;
      ++report_.cancelled;
      if (rows.spec.options.has_sink && effect.published > 0)
        Violation("S2: the cancelled job " + id.ToString() + " has an effect");
    }
    for (const auto& [id, effect] : effects_)
      if (effect.published > 1) Violation("S2: two effects of job " + id.ToString());
  }

  const std::uint64_t seed_;
  const Mutant mutant_;
  FakeClock clock_;
  SeededRandom random_, dispatcher_random_;
  MemoryLedger ledger_;
  MemoryQueue queue_;
  std::array<Node, kBrokers> brokers_;
  std::array<SimWorker, kWorkers> workers_;
  std::vector<Request> requests_;
  std::map<JobId, Effect> effects_;
  std::map<JobId, KeptJob> kept_;
  std::vector<std::pair<Micros, Micros>> losses_;  // what the queue took between the two may be gone
  std::map<JobId, Token> max_token_;
  std::map<std::pair<OrgId, std::string>, std::vector<Micros>> starts_;  // of a queue (no key) and of its limit keys
  std::map<JobId, std::uint64_t> accepted_, ended_;                      // in which commit
  std::uint64_t commits_ = 0;
  std::priority_queue<Item> agenda_;
  std::uint64_t order_ = 0, trace_ = 0xcbf29ce484222325ULL;
  bool healed_ = false;
  Micros ledger_down_until_{0}, ledger_unknown_until_{0};
  Report report_;
};

}  // namespace

Report Simulate(std::uint64_t seed, Mutant mutant) { return World(seed, mutant).Run(); }

}  // namespace millrace::sim
