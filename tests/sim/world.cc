#include "tests/sim/world.h"

#include <algorithm>
#include <utility>

#include "common/base/failpoint.h"

namespace millrace::sim {

World::World(std::uint64_t seed, Mutant mutant, Detail detail)
    : seed_(seed),
      mutant_(mutant),
      detail_(detail),
      random_(seed),
      dispatcher_random_(seed ^ 0x9e37),
      ledger_(ledger_clock_, kShards) {
  ledger_.ignore_epochs = mutant == Mutant::kNoEpochFence;
  queue_.set_ignore_epochs(mutant == Mutant::kNoEpochFence);
  if (seed % 3 == 0) queue_.claim_max = 1 + static_cast<std::uint32_t>(seed % 2);  // large entries
  if (seed % 4 == 0) ledger_.outbox_page_max = 2;
  ledger_.together = seed % 5 < 2;
  queue_.forget_removals = mutant == Mutant::kForgetRemovals;
  ledger_.fault = [this] { return NextFault(); };
  ledger_.before_commit = [this](const OwnerBatch& batch) { CheckCommit(batch); };
  ledger_.before_fire = [this](const FireBatch& batch) { CheckFire(batch); };
}

sim::Report World::Run() {
  for (std::size_t i = 0; i < kBrokers; ++i) StartBroker(i);
  for (std::size_t i = 0; i < kWorkers; ++i) StartWorker(i);
  ApplySchedules();
  for (std::size_t i = 0; i < kSchedulers; ++i) StartScheduler(i);
  if (seed_ % 2 == 0) SetQueues();
  for (int i = 0; i < 14; ++i) At(Between(100'000, 15'000'000), [this] { SubmitSomething(); });
  for (int i = 0; i < 10; ++i) At(Between(500'000, 18'000'000), [this] { BreakSomething(); });
  for (int i = 0; i < 5; ++i) At(Between(300'000, 16'000'000), [this] { CancelSomething(); });
  for (int i = 0; i < 5; ++i) At(Between(500'000, 18'000'000), [this] { BreakScheduler(); });
  if (seed_ % 3 != 0)
    for (int i = 0; i < 3; ++i) At(Between(500'000, 18'000'000), [this] { StepClock(); });
  if (RunsFull())
    for (int i = 0; i < 3; ++i) At(Between(500'000, 16'000'000), [this] { FillQueue(); });
  At(kFaultsEnd, [this] { Heal(); });
  std::optional<Micros> until;  // what is on its way out of the queue gets the time to leave
  std::uint64_t look = 0;
  while (Step()) {
    if (until && Now() > *until) {
      if (Idle()) break;
      until = Now() + Micros{12'000'000};
    }
    if (until || !healed_ || report_.steps < look) continue;
    look = report_.steps + 64;
    if (Finished()) until = Now() + Micros{12'000'000};
  }
  CheckEnd();
  report_.jobs = ledger_.jobs.size();
  report_.runs = ledger_.runs.size();
  report_.terms = ledger_.schedules.terms();
  for (std::uint16_t s = 0; s < kShards; ++s) report_.takeovers += ledger_.EpochOf(ShardId{s}).value() - 1;
  report_.trace = trace_;
  return std::move(report_);
}

Micros World::Between(std::int64_t low, std::int64_t high) {
  return Micros{low + static_cast<std::int64_t>(random_.Below(static_cast<std::uint64_t>(high - low)))};
}

void World::At(Micros at, std::function<void()> what) {
  agenda_.push(
      {.at = std::max(at, Now()), .order = ++order_, .what = std::make_shared<std::function<void()>>(std::move(what))});
}

bool World::Step() {
  if (agenda_.empty() || Now() >= kGiveUp || report_.violations.size() >= 5) return false;
  const auto next = agenda_.top();
  agenda_.pop();
  clock_.Advance(std::max(Micros{0}, next.at - Now()));
  ++report_.steps;
  (*next.what)();
  return true;
}

void World::PassTime(Micros time) {
  const Micros until = Now() + time;
  while (!agenda_.empty() && agenda_.top().at <= until && Step()) {
  }
  clock_.Advance(std::max(Micros{0}, until - Now()));
}

void World::TraceMessage(std::string_view what, std::string_view peer, const wire::Message& message) {
  Trace(what, peer, message.index());
  if (detail_ == Detail::kMessages) Trace("bytes", wire::Encode(message));
}

void World::Trace(std::string_view what, std::string_view id, std::uint64_t number) {
  const auto eat = [this](std::string_view bytes) {
    for (const char c : bytes) trace_ = (trace_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  };
  eat(what);
  eat(id);
  eat(std::to_string(number));
  eat(std::to_string(Now().count()));
}

void World::StartBroker(std::size_t i) {
  Node& n = brokers_[i];
  ++n.life;
  n.up = true;
  n.frozen_until = Micros{0};  // that was the old process
  n.owner = NewId<OwnerId>();
  const std::vector<ShardId> shards{ShardId{0}, ShardId{1}};
  n.dispatcher = std::make_unique<Dispatcher>(
      DispatcherOptions{.name = "b", .shard_count = kShards, .shards = shards, .random = &dispatcher_random_});
  n.pump = std::make_unique<LedgerPump>(
      LedgerPumpOptions{.owner = n.owner, .owner_name = std::to_string(i), .shards = shards, .shard_count = kShards}, ledger_,
      n.clock);
  n.events.clear();
  n.to_ledger.clear();
  n.to_queue.clear();
  n.loop_due = n.queue_due = false;
  n.granted.clear();
  n.adopted.clear();
  n.pump_due.reset();
  PumpAt(i, Now() + Between(0, 50'000));
  Tick(i, n.life);
  if (RunsFull()) AskMemory(i);
}

void World::StopBroker(std::size_t i) {
  Trace("crash", {}, i);
  brokers_[i].up = false;
  ++brokers_[i].life;
}

void World::OnBroker(std::size_t i, Micros delay, std::function<void(Node&)> what) {
  In(delay, [this, i, life = brokers_[i].life, what = std::move(what)]() mutable {
    Node& n = brokers_[i];
    if (n.life != life || !n.up) return;
    if (n.frozen_until > Now()) return OnBroker(i, n.frozen_until - Now(), std::move(what));
    what(n);
  });
}

void World::Tick(std::size_t i, std::uint64_t life) {
  OnBroker(i, kDispatcherTick, [this, i, life](Node& n) {
    n.events.push_back(event::Tick{});
    Loop(i);
    Tick(i, life);
  });
}

void World::AskMemory(std::size_t i) {
  OnBroker(i, kMemoryPollInterval, [this, i](Node&) {
    Tell(i, event::QueueMemoryRead{.memory = {.used = says_full_ ? 100U : 10U, .max = 100}});
    AskMemory(i);
  });
}

void World::Tell(std::size_t i, Event event) {
  brokers_[i].events.push_back(std::move(event));
  if (std::exchange(brokers_[i].loop_due, true)) return;
  OnBroker(i, Micros{20}, [this, i](Node&) { Loop(i); });
}

void World::Loop(std::size_t i) {
  Node& n = brokers_[i];
  n.loop_due = false;
  const WallTime wall = n.clock.WallNow();
  for (Event& event : std::exchange(n.events, {})) n.dispatcher->Handle(std::move(event), clock_.Now(), wall);
  std::vector<Command> commands;
  n.dispatcher->Flush(clock_.Now(), wall, commands);
  for (Command& command : commands) std::visit([&](auto& c) { Issue(i, c); }, command);
}

void World::PumpAt(std::size_t i, Micros at) {
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
    if (mutant_ == Mutant::kAdoptOldToken) ForgetTokens(out);
    // The same delay for all, so that answers keep their order.
    OnBroker(i, Micros{300}, [this, i, out = std::make_shared<std::vector<Event>>(std::move(out))](Node&) {
      for (Event& event : *out) Tell(i, std::move(event));
    });
    PumpAt(i, std::max(Now() + Micros{500}, next.time_since_epoch() - Micros{1'000'000}));
  });
}

void World::ForgetLimits(std::vector<Event>& events) {
  const auto forget = [](QueueSettings& q) { q.concurrency = q.key_concurrency = 0, q.rate = q.key_rate = Rate{}; };
  for (Event& event : events) {
    if (auto* read = std::get_if<event::QueueSettingsRead>(&event)) std::ranges::for_each(read->settings, forget);
    if (auto* put = std::get_if<event::QueueSettingsPut>(&event); put != nullptr && put->stored) forget(*put->stored);
  }
}

void World::ForgetTokens(std::vector<Event>& events) {
  for (Event& event : events) {
    if (auto* runs = std::get_if<event::LiveRunsRead>(&event))
      for (LiveRun& run : runs->runs) run.last_tokens.clear();
    if (auto* jobs = std::get_if<event::LiveJobsRead>(&event))
      for (LiveJob& job : jobs->jobs) job.last_token = {};
  }
}

void World::Issue(std::size_t i, LedgerCommand& command) {
  if (auto* commit = std::get_if<command::Commit>(&command)) {
    for (const AttemptRow& row : commit->rows.attempts) brokers_[i].ends_written.emplace(row.report.job, row.report.token);
    for (const OutcomeRow& row : commit->rows.outcomes) brokers_[i].ends_written.emplace(row.report.job, row.report.token);
    Trace("commit", {}, commit->piece.value());
  }
  if (std::holds_alternative<command::ReleaseShard>(command)) ++report_.handed_over;
  brokers_[i].to_ledger.push_back(std::move(command));
  PumpAt(i, Now() + Micros{800});
}

void World::Issue(std::size_t i, command::Execute& command) {
  Node& n = brokers_[i];
  if (auto* requeue = std::get_if<queue_op::Requeue>(&command.op); requeue && mutant_ == Mutant::kForgetRequeue)
    requeue->entries.clear();
  if (auto* requeue = std::get_if<queue_op::Requeue>(&command.op); requeue && mutant_ == Mutant::kForgetRunAt)
    for (QueueEntry& entry : requeue->entries) entry.run_at.reset();
  if (auto* enqueue = std::get_if<queue_op::Enqueue>(&command.op); enqueue && mutant_ == Mutant::kEnqueueTwice) {
    auto copy = enqueue->entries;
    copy.insert(copy.end(), enqueue->passed.begin(), enqueue->passed.end());
    enqueue->entries.insert(enqueue->entries.end(), copy.begin(), copy.end());
  }
  n.to_queue.push_back(std::move(command));
  if (std::exchange(n.queue_due, true)) return;
  OnBroker(i, Micros{100}, [this, i](Node& node) { QueueStep(i, node); });
}

void World::QueueStep(std::size_t i, Node& n) {
  n.queue_due = false;
  auto taken = std::exchange(n.to_queue, {});
  event::QueueReplies replies;
  const bool fails = !healed_ && Chance(1) && Chance(30), applied = Chance(50);
  for (auto& [id, op] : taken) {
    std::vector<Result<QueueReply>> results;
    if (!fails || applied) results = queue_.Execute(std::span{&op, 1});
    if (!results.empty() && results.front()) NoteKept(op);
    if (!results.empty() && !results.front() && results.front().error().code == ErrorCode::kLimit) ++report_.puts_refused;
    if (const auto* take = std::get_if<queue_op::Take>(&op); take && mutant_ == Mutant::kForgetDelivered && !results.empty()) {
      queue_.ForgetDelivered(take->shard);
      if (results.front()) results.front()->in_flight.clear();
    }
    if (fails) results = {Fail(ErrorCode::kMaybeApplied, "the connection broke")};
    replies.Add(id, op, std::move(results.front()));
  }
  OnBroker(i, Micros{100},
           [this, i, all = std::make_shared<event::QueueReplies>(std::move(replies))](Node&) { Tell(i, std::move(*all)); });
}

void World::NoteKept(const QueueOp& op) {
  const auto* enqueue = std::get_if<queue_op::Enqueue>(&op);
  if (enqueue == nullptr) return;
  report_.passed += enqueue->passed.size();
  for (const auto* entries : {&enqueue->entries, &enqueue->passed})
    for (const QueueEntry& entry : *entries)
      if (IsKeptLine(entry.line)) kept_[entry.id].applied = Now();
}

void World::Issue(std::size_t i, command::SendWorker& command) {
  if (const auto* grant = std::get_if<wire::Grant>(&command.message))
    for (const auto& job : grant->jobs) CheckGrant(i, job, command.peer);
  if (const auto* adopt = std::get_if<wire::Adopt>(&command.message))
    for (const auto& item : adopt->items) CheckAdopt(i, item, command.peer);
  if (const auto* reply = std::get_if<wire::EndedReply>(&command.message)) CheckEndedReply(*reply);
  TraceMessage("to worker", command.peer, command.message);
  const std::size_t w = static_cast<std::size_t>(command.peer.front() - '0');
  if (!healed_ && (Cut(i, w) || Chance(2))) return;  // lost on the way
  const auto deliver = [this, i, w, peer = command.peer, message = std::move(command.message)] {
    ToWorker(i, w, peer, message);
  };
  In(Between(50, 400), deliver);
  if (!healed_ && Chance(1)) In(Between(50, 4'000'000), deliver);
}

void World::Issue(std::size_t, command::SendClient& command) {
  TraceMessage("to client", command.peer, command.message);
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
    CheckCancelReply(*reply);
    requests_[reply->request].answered = true;
  }
}

void World::StartWorker(std::size_t w) {
  SimWorker& worker = workers_[w];
  const std::uint64_t life = worker.life + 1;
  worker = SimWorker{};
  worker.id = NewId<WorkerId>();
  worker.life = life;
  worker.up = true;
  worker::Session::Options options;
  options.worker = worker.id;
  options.name = fmt::format("w{}", w);
  options.concurrency = kConcurrency;
  options.brokers = kBrokers;
  worker.session = std::make_unique<worker::Session>(std::move(options));
  TurnAt(w, Now() + Between(0, 500'000));
}

void World::OnWorker(std::size_t w, Micros delay, std::function<void(SimWorker&)> what) {
  In(delay, [this, w, life = workers_[w].life, what = std::move(what)]() mutable {
    SimWorker& worker = workers_[w];
    if (worker.life != life || !worker.up) return;
    if (worker.frozen_until > Now()) return OnWorker(w, worker.frozen_until - Now(), std::move(what));
    what(worker);
  });
}

void World::TurnAt(std::size_t w, Micros at) {
  SimWorker& worker = workers_[w];
  if (worker.turn_due && *worker.turn_due <= at) return;
  worker.turn_due = at;
  OnWorker(w, std::max(Micros{0}, at - Now()), [this, w, at](SimWorker& now) {
    if (now.turn_due != at) return;
    now.turn_due.reset();
    now.session->OnTick(clock_.Now());
    Turn(w);
  });
}

void World::Turn(std::size_t w) {
  worker::Session& session = *workers_[w].session;
  for (worker::Session::Command& command : session.TakeCommands(clock_.Now())) {
    if (auto* send = std::get_if<worker::Session::Send>(&command)) {
      if (auto* ended = std::get_if<wire::Ended>(&send->message))
        for (AttemptReport& report : ended->reports)  // of those that never started
          if (report.result.empty()) report.result = std::to_string(report.token.value());
      FromWorker(w, send->broker, std::move(send->message));
    } else if (const auto* start = std::get_if<worker::Session::Start>(&command)) {
      StartAttempt(w, start->job);
    } else {
      KillAttempt(w, std::get<worker::Session::Kill>(command));
    }
  }
  TurnAt(w, std::max(Now() + Micros{1'000}, session.NextTick().time_since_epoch() - Micros{1'000'000}));
}

void World::FromWorker(std::size_t w, std::size_t i, wire::Message message) {
  const wire::PeerId peer = fmt::format("{}-{}", w, workers_[w].life);
  TraceMessage("from worker", peer, message);
  if (const auto* ended = std::get_if<wire::Ended>(&message))
    for (const AttemptReport& report : ended->reports) reported_[{report.job, report.token}] = report.end;
  if (!healed_ && (Cut(i, w) || Chance(2))) return;
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

void World::ToWorker(std::size_t i, std::size_t w, const wire::PeerId& peer, const wire::Message& message) {
  OnWorker(w, Micros{0}, [this, i, w, peer, message](SimWorker& worker) {
    if (peer != fmt::format("{}-{}", w, worker.life)) return;
    worker.session->OnMessage(clock_.Now(), i, message);
    Turn(w);
  });
}

void World::StartAttempt(std::size_t w, const wire::Grant::Job& job) {
  workers_[w].running[job.id] = job.token;
  Effect& effect = effects_[job.id];
  if (job.fence_only && mutant_ != Mutant::kCancelWithoutFence) effect.fence = std::max(effect.fence, job.token);
  if (job.fence_only) {
    OnWorker(w, Between(1'000, 200'000), [this, w, id = job.id, token = job.token](SimWorker&) { EndFence(w, id, token); });
    return;
  }
  if (effect.fence < job.token) effect.fence = job.token;  // raises the fence, unless a newer attempt did
  const Micros duration = Chance(seed_ % 3 == 1 ? 40 : 80)   ? Between(1'000, 300'000)
                          : Chance(seed_ % 3 == 1 ? 40 : 80) ? Between(300'000, 6'000'000)
                                                             : Between(6'000'000, 20'000'000);  // longer than a takeover takes
  OnWorker(w, duration, [this, w, id = job.id, token = job.token](SimWorker&) { EndAttempt(w, id, token); });
}

bool World::StillRuns(std::size_t w, JobId id, Token token) {
  const auto it = workers_[w].running.find(id);
  if (it == workers_[w].running.end() || it->second != token) return false;
  workers_[w].running.erase(it);
  return true;
}

void World::Report(std::size_t w, AttemptReport report) {
  report.result = std::to_string(report.token.value());  // what really ran, whatever becomes of `token`
  report.finished_at = clock_.WallNow();
  workers_[w].session->OnEnded(clock_.Now(), std::move(report));
  Turn(w);
}

void World::KillAttempt(std::size_t w, const worker::Session::Kill& kill) {
  OnWorker(w, Between(100, 50'000), [this, w, kill](SimWorker&) {
    if (!StillRuns(w, kill.job, kill.token)) return;
    if (mutant_ == Mutant::kNeverStops && Ended(kill.job)) {
      workers_[w].running[kill.job] = Token{};
      return;
    }
    AttemptReport report;
    report.job = kill.job;
    report.token = kill.token;
    report.end = kill.reason == worker::KillReason::kCancelled ? AttemptEnd::kCancelled : AttemptEnd::kHandedBack;
    Report(w, std::move(report));
  });
}

void World::EndAttempt(std::size_t w, JobId id, Token token) {
  if (!StillRuns(w, id, token)) return;
  CheckGoesOn(w, id);
  AttemptReport report;
  report.job = id;
  report.token = token;
  Effect& effect = effects_[id];
  const std::string& payload = SpecOf(id).payload;
  const std::uint64_t dice = payload == kPoison ? 93 : payload == kHopeless ? 78 : random_.Below(100);
  const bool doomed = payload == kPoison || payload == kHopeless;
  if (!doomed && (dice < 78 || healed_)) {
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
  Report(w, std::move(report));
}

void World::EndFence(std::size_t w, JobId id, Token token) {
  if (!StillRuns(w, id, token)) return;
  AttemptReport report;
  report.job = id;
  report.token = token;
  report.end = effects_[id].published > 0        ? AttemptEnd::kSucceeded
               : healed_ || random_.Below(5) > 0 ? AttemptEnd::kCancelled
                                                 : AttemptEnd::kFailed;
  Trace("fenced", id.AsBytes(), token.value());
  Report(w, std::move(report));
}

std::string_view FailpointOf(Mutant mutant) {
  switch (mutant) {
    case Mutant::kDoubleSlot: return "mutant.double_slot";
    case Mutant::kHandBackFails: return "mutant.hand_back_fails";
    case Mutant::kNoBackoff: return "mutant.no_backoff";
    case Mutant::kEarlyReply: return "mutant.early_reply";
    default: return {};
  }
}

sim::Report Simulate(std::uint64_t seed, Mutant mutant, Detail detail) {
  const std::string_view failpoint = FailpointOf(mutant);
  if (failpoint.empty()) return World(seed, mutant, detail).Run();
  (void)ConfigureFailpoints(fmt::format("{}=error", failpoint), seed);
  sim::Report report = World(seed, mutant, detail).Run();
  (void)ConfigureFailpoints("", seed);
  return report;
}

}  // namespace millrace::sim
