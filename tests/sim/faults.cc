#include <algorithm>
#include <array>

#include "tests/sim/world.h"

namespace millrace::sim {
namespace {

constexpr Micros kStepMax{300'000'000}, kLedgerStepMax{30'000'000};  // of a wall clock

}  // namespace

JobSpec World::NewJob(OrgId org) {
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
  if (Chance(5)) job.payload = Chance(50) ? kPoison : kHopeless;
  if (Chance(12)) job.options.deadline = clock_.WallNow() + Between(300'000, 9'000'000);
  return job;
}

void World::SubmitSomething() {
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
  requests_.push_back({.message = wire::SubmitRun{.request = requests_.size(), .run = run, .jobs = jobs, .watch = Chance(50)}});
  Send(requests_.size() - 1, random_.Below(kBrokers));
}

void World::CancelSomething() {
  std::vector<CancelRow> all;
  for (const auto& [id, run] : ledger_.runs)
    if (run.schedule.empty() || Chance(20)) all.push_back({id.uuid, true, run.org, "sim", "", {}});
  for (const auto& [id, rows] : ledger_.jobs)
    if (!rows.spec.run) all.push_back({id.uuid, false, rows.spec.org, "sim", "", {}});
  for (const auto& [id, job] : kept_)  // only the queue knows them
    if (!ledger_.jobs.contains(id)) all.push_back({id.uuid, false, job.spec.org, "sim", "", {}});
  if (all.empty()) return;
  // The newest are the likeliest to be alive.
  const std::size_t back = random_.Below(std::min<std::size_t>(all.size(), 8));
  std::ranges::sort(all, {}, &CancelRow::item);
  CancelRow row = all[all.size() - 1 - back];
  for (const SimWorker& worker : workers_) {  // what a frozen worker will go on with is the interesting case
    if (!worker.up || worker.frozen_until <= Now() || worker.running.empty() || Chance(20)) continue;
    const JobSpec& job = SpecOf(worker.running.begin()->first);
    row = {job.run ? job.run->uuid : job.id.uuid, job.run.has_value(), job.org, "sim", "", {}};
  }
  if (Chance(25)) return CancelOwnerless();
  if (Chance(30) && (row.is_run || ledger_.jobs.contains(JobId{row.item}))) {
    (void)ledger_.RequestCancel(std::span{&row, 1}, clock_.Now());
    return Ring(row.org);
  }
  wire::Cancel cancel;
  cancel.request = requests_.size();
  cancel.org = row.org;
  cancel.items = {{.id = row.item, .is_run = row.is_run}};
  const auto kept = kept_.find(JobId{row.item});
  requests_.push_back({.message = std::move(cancel), .sure = kept != kept_.end() && kept->second.accepted});
  Send(requests_.size() - 1, random_.Below(kBrokers));
}

// What runs is cancelled while its shard has no owner: the next one finds the request and what was delivered.
void World::CancelOwnerless() {
  std::vector<CancelRow> running;
  for (const SimWorker& worker : workers_)
    for (const auto& [id, token] : worker.running)
      if (const JobSpec& job = SpecOf(id); worker.up && worker.frozen_until <= Now() && ledger_.jobs.contains(id))
        running.push_back({job.run ? job.run->uuid : id.uuid, job.run.has_value(), job.org, "sim", "", {}});
  if (running.empty()) return;
  const CancelRow row = running[random_.Below(running.size())];
  for (std::size_t b = 0; b < kBrokers; ++b)
    if (brokers_[b].up && brokers_[b].dispatcher->Ready(ShardOf(row.org, kShards))) Crash(b);
  In(Between(1'000, 3'000'000), [this, row] { (void)ledger_.RequestCancel(std::span{&row, 1}, clock_.Now()); });
}

void World::SetQueues() {
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
        return Tell(
            random_.Below(kBrokers),
            event::FromClient{.peer = "c", .message = wire::SetQueue{.request = SetRequest(i), .settings = q, .actor = "sim"}});
      (void)ledger_.PutQueueSettings(q, "sim", clock_.Now());
    });
}

void World::Ring(ShardId shard) {
  if (Chance(30)) return;  // the ring is lost
  for (std::size_t i = 0; i < kBrokers; ++i)
    OnBroker(i, Micros{300}, [this, i, shard](Node&) { Tell(i, event::Rung{.shard = shard}); });
}

void World::Send(std::size_t request, std::size_t broker) {
  if (requests_[request].answered) return;
  if (healed_ || !Chance(5))
    OnBroker(broker, Micros{200}, [this, request, broker](Node&) {
      Tell(broker, event::FromClient{.peer = "c", .message = requests_[request].message});
    });
  In(Between(200'000, 1'500'000), [this, request, broker] { Send(request, (broker + 1) % kBrokers); });
}

void World::Crash(std::size_t b) {
  if (!brokers_[b].up || healed_) return;
  StopBroker(b);
  In(Between(50'000, 7'000'000), [this, b] {
    if (!brokers_[b].up) StartBroker(b);
  });
}

void World::BreakSomething() {
  const std::size_t b = random_.Below(kBrokers), w = random_.Below(kWorkers);
  Trace("break", {}, b * 10 + w);
  switch (random_.Below(9)) {
    case 0: return Crash(b);
    case 8:  // the worker loses one broker only: what it runs is an orphan, and lost for that broker, which may die then
      cut_until_[{b, w}] = Now() + Between(2'000'000, 9'000'000);
      if (Chance(60)) In(Between(3'200'000, 7'000'000), [this, b] { Crash(b); });
      return;
    case 1: return FreezeBroker(b);
    case 2:
      if (!workers_[w].up) return;
      workers_[w].up = false;
      return In(Between(100'000, 4'000'000), [this, w] {
        if (!workers_[w].up) StartWorker(w);
      });
    case 3:
      FreezeWorker(w);
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

// A long one outlasts the healing: the others finish everything meanwhile, and what it then goes on with must change nothing.
void World::FreezeBroker(std::size_t b) {
  const bool lasts = Chance(30);
  const Micros time = lasts ? Between(9'000'000, 70'000'000) : Between(500'000, 9'000'000);
  brokers_[b].frozen_until = std::max(brokers_[b].frozen_until, Now() + time);
  if (!lasts) return;
  In(time, [this, b, life = brokers_[b].life, epochs = Epochs()] {
    if (brokers_[b].life == life && brokers_[b].up && epochs != Epochs()) ++report_.long_freezes;
  });
}

std::vector<Epoch> World::Epochs() {
  std::vector<Epoch> epochs;
  for (std::uint16_t s = 0; s < kShards; ++s) epochs.push_back(ledger_.EpochOf(ShardId{s}));
  return epochs;
}

bool World::AnyFrozen() const {
  return std::ranges::any_of(brokers_, [this](const Node& n) { return n.frozen_until > Now(); }) ||
         std::ranges::any_of(schedulers_, [this](const SimScheduler& s) { return s.frozen_until > Now(); });
}

void World::FreezeWorker(std::size_t w) {
  const Micros time = Chance(25) ? Between(8'000'000, 15'000'000) : Between(500'000, 8'000'000);
  workers_[w].frozen_until = std::max(workers_[w].frozen_until, Now() + time);
}

// As an operator or a time server sets the clock of one machine, or sets it right again.
void World::StepClock() {
  const std::uint64_t which = random_.Below(2 * kBrokers + 2 * kSchedulers + 1);
  NodeClock& clock = which < 2 * kBrokers                   ? brokers_[which / 2].clock
                     : which < 2 * (kBrokers + kSchedulers) ? schedulers_[which / 2 - kBrokers].clock
                                                            : ledger_clock_;
  // Half of the steps are of seconds, which is how far times in the world are apart.
  const std::int64_t most = &clock == &ledger_clock_ || Chance(50) ? kLedgerStepMax.count() : kStepMax.count();
  const Micros to = Chance(20) ? Micros{0} : Micros{Between(-most, most)};
  Trace("clock", {}, which);
  ++report_.clock_steps;
  clock.StepTo(to);
}

void World::FillQueue() {
  const Micros time = Between(300'000, 5'000'000);
  queue_.memory_max = Chance(50) ? 0 : random_.Below(8);
  says_full_ = Chance(50);
  full_until_ = std::max(full_until_, Now() + time);
  Trace("full", {}, queue_.memory_max);
  In(time, [this] {
    if (full_until_ > Now()) return;  // filled again meanwhile
    queue_.memory_max = SIZE_MAX;
    says_full_ = false;
    Trace("room");
  });
}

LedgerFault World::NextFault() {
  if (healed_) return LedgerFault::kNone;
  if (ledger_down_until_ > Now()) return LedgerFault::kUnavailable;
  if (ledger_unknown_until_ > Now() && Chance(50))
    return Chance(50) ? LedgerFault::kAppliedButUnknown : LedgerFault::kNotAppliedButUnknown;
  return LedgerFault::kNone;
}

void World::Heal() {
  healed_ = true;
  for (auto& [pair, until] : cut_until_) until = std::min(until, Now());
  for (auto& [key, q] : ledger_.queues) {
    q.paused = false;
    ++q.revision;
  }
  ledger_clock_.StepTo(Micros{0});
  for (std::size_t i = 0; i < kBrokers; ++i) {
    brokers_[i].clock.StepTo(Micros{0});
    if (!brokers_[i].up) StartBroker(i);
  }
  for (std::size_t i = 0; i < kSchedulers; ++i) {
    schedulers_[i].clock.StepTo(Micros{0});
    if (!schedulers_[i].up) StartScheduler(i);
  }
  for (std::size_t w = 0; w < kWorkers; ++w) {
    workers_[w].frozen_until = std::min(workers_[w].frozen_until, Now());
    if (!workers_[w].up) StartWorker(w);
  }
}

}  // namespace millrace::sim
