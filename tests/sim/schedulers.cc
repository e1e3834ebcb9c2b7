#include <algorithm>
#include <string>

#include "common/model/pipeline_json.h"
#include "scheduler/scheduler.h"
#include "tests/sim/world.h"
#include "tests/support/no_ledger.h"

namespace millrace::sim {
namespace {

constexpr Micros kLastSlot{21'000'000};  // some are due when everything is healed
constexpr Micros kLate{1'000'000};
constexpr std::size_t kSlotsMax = 1000;
constexpr Millis kRetryMin{100}, kRetryMax{5000};  // as Scheduler::Run does it

}  // namespace

// One process start. It is the scheduler's connection too: time passes in every call, and the process may die or freeze in it.
struct SchedulerProcess final : test::NoLedger, Inbox {
  SchedulerProcess(World& w, std::size_t number, OwnerId id, const Clock& clock)
      : world(w),
        s(number),
        ids(clock, w.random_),
        scheduler({.name = std::to_string(number), .id = id, .shard_count = kShards}, *this, *this, clock, ids) {}

  template <class Call>
  auto Through(Call call) -> decltype(call()) {
    if (!world.SchedulerStep(s, *this)) return Fail(ErrorCode::kUnavailable, "killed");
    auto answer = call();
    if (!world.SchedulerStep(s, *this)) return Fail(ErrorCode::kMaybeApplied, "killed");
    return answer;
  }
  Result<Leadership> TryLead(OwnerId c, std::string_view n, Millis ttl, MonoTime d) override {
    return Through([&] { return world.ledger_.TryLead(c, n, ttl, d); });
  }
  Result<WallTime> Now(MonoTime d) override {
    return Through([&]() -> Result<WallTime> {
      MILLRACE_TRY_ASSIGN(const WallTime now, world.ledger_.Now(d));
      return world.SchedulerNow(s, now);
    });
  }
  Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t r, std::uint32_t l, MonoTime d) override {
    return Through([&] { return world.ledger_.SchedulesChanged(r, l, d); });
  }
  Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId o, std::span<const std::string> p, MonoTime d) override {
    return Through([&] { return world.ledger_.ScheduledVersions(o, p, d); });
  }
  Result<std::vector<std::string>> BusyPipelines(OrgId o, std::span<const std::string> p, MonoTime d) override {
    return Through([&] { return world.ledger_.BusyPipelines(o, p, d); });
  }
  Result<FireResult> Fire(const FireBatch& b, MonoTime d) override {
    return Through([&] { return world.ledger_.Fire(b, d); });
  }
  Result<std::vector<BackfillState>> Backfills(const BackfillFilter& f, MonoTime d) override {
    return Through([&] { return world.ledger_.Backfills(f, d); });
  }
  Result<void> SubmitRun(const RunSpec& run, std::span<const JobSpec> jobs, MonoTime d) override {  // of a mutant
    return Through([&] { return world.ledger_.SubmitRun(run, jobs, d); });
  }
  Result<void> Ring(ShardId shard) override {
    if (world.SchedulerStep(s, *this)) world.Ring(shard);
    return {};
  }
  Result<std::vector<ShardId>> Wait(std::span<const ShardId>, Millis) override { return std::vector<ShardId>{}; }

  World& world;
  const std::size_t s;
  bool dead = false;
  Millis retry = kRetryMin;
  IdGenerator ids;
  scheduler::Scheduler scheduler;
};

void World::ApplySchedules() {
  const std::uint64_t pipelines = 1 + random_.Below(2);
  for (std::uint64_t p = 0; p < pipelines; ++p) {
    Scheduled item{.pipeline = {}, .org = OrgId{static_cast<std::int64_t>(1 + random_.Below(4))}, .slots = {}};
    item.pipeline.name = "s" + std::to_string(p);
    ScheduleSpec spec;
    spec.cron = fmt::format("*/{} * * * * *", std::array{3, 4, 6, 10}[random_.Below(4)]);
    spec.overlap = std::array{"queue", "allow", "skip", "cancel"}[random_.Below(4)];
    // Nothing may be missed: what is too late for its grace is caught up with.
    spec.catchup = Chance(50) ? "all" : "latest";
    spec.misfire_grace = spec.catchup == "all" ? Millis{1000} : Millis{600'000};
    if (Chance(20)) spec.jitter = Millis{2000};
    spec.end = ToRfc3339(clock_.WallNow() - Now() + kLastSlot);
    item.pipeline.schedules = {spec};
    for (const char* name : {"a", "b"}) {
      StageSpec stage;
      stage.name = name;
      stage.work = CommandSpec{.argv = {"work"}, .env = {}};
      stage.retry = {.max_attempts = 4, .backoff_base = Millis{200}, .backoff_cap = Millis{2000}};
      if (*name == 'b') stage.after = stage.depends_on = {"a"};
      item.pipeline.stages.push_back(std::move(stage));
      if (Chance(50)) break;
    }
    const WallTime applied = ledger_clock_.WallNow();
    (void)ledger_.schedules.Apply(item.pipeline, ToJson(item.pipeline), "", "/", item.org, applied);
    item.slots = CronSchedule::Make(spec)->Between(applied, clock_.WallNow() - Now() + kLastSlot, kSlotsMax);
    scheduled_.push_back(std::move(item));
    if (!Chance(30)) continue;
    At(Between(2'000'000, 18'000'000), [this, p] {  // a new version; its schedule stays as it is
      Pipeline& pipeline = scheduled_[p].pipeline;
      pipeline.description = "edited";
      (void)ledger_.schedules.Apply(pipeline, ToJson(pipeline), "", "/", scheduled_[p].org, ledger_clock_.WallNow());
    });
  }
}

void World::StartScheduler(std::size_t s) {
  SimScheduler& node = schedulers_[s];
  ++node.life;
  node.up = true;
  node.process = std::make_shared<SchedulerProcess>(*this, s, NewId<OwnerId>(), node.clock);
  PassAt(s, Between(0, 50'000));
}

void World::CrashScheduler(std::size_t s) {
  SimScheduler& node = schedulers_[s];
  if (!node.up || healed_) return;
  Trace("scheduler crash", {}, s);
  node.up = false;
  ++node.life;
  node.frozen_until = Micros{0};
  node.process->dead = true;
  node.process.reset();
  In(Between(50'000, 5'000'000), [this, s] {
    if (!schedulers_[s].up) StartScheduler(s);
  });
}

void World::OnScheduler(std::size_t s, Micros delay, std::function<void(SimScheduler&)> what) {
  In(delay, [this, s, life = schedulers_[s].life, what = std::move(what)]() mutable {
    SimScheduler& node = schedulers_[s];
    if (node.life != life || !node.up) return;
    if (node.frozen_until > Now()) return OnScheduler(s, node.frozen_until - Now(), std::move(what));
    what(node);
  });
}

void World::PassAt(std::size_t s, Micros delay) {
  OnScheduler(s, delay, [this, s](SimScheduler& node) {
    const std::shared_ptr<SchedulerProcess> process = node.process;
    const auto wait = process->scheduler.Pass();
    if (process->dead) return;
    PassAt(s, wait ? std::max(Micros{1000}, Micros{*wait}) : process->retry);
    process->retry = wait ? kRetryMin : std::min(process->retry * 2, kRetryMax);
  });
}

bool World::SchedulerStep(std::size_t s, const SchedulerProcess& process) {
  if (process.dead) return false;
  SimScheduler& node = schedulers_[s];
  if (node.steps_left > 0 && --node.steps_left == 0) {
    if (!node.freeze) {
      CrashScheduler(s);
      return false;
    }
    node.frozen_until = std::max(node.frozen_until, Now() + *node.freeze);
    Trace("scheduler freezes", {}, s);
  }
  PassTime(Between(20, 500));
  while (!process.dead && node.frozen_until > Now() && report_.violations.empty()) PassTime(node.frozen_until - Now());
  return !process.dead;
}

WallTime World::SchedulerNow(std::size_t s, WallTime of_ledger) const {
  return mutant_ == Mutant::kOwnClock ? schedulers_[s].clock.WallNow() : of_ledger;
}

void World::BreakScheduler() {
  std::size_t s = random_.Below(kSchedulers);
  for (std::size_t i = 0; i < kSchedulers; ++i)  // the one that leads is the interesting one
    if (schedulers_[i].up && schedulers_[i].process->scheduler.leading() && Chance(80)) s = i;
  SimScheduler& node = schedulers_[s];
  Trace("break scheduler", {}, s);
  node.steps_left = 1 + random_.Below(40);  // a pass has some ten
  node.freeze.reset();
  if (Chance(50)) node.freeze = Between(500'000, 12'000'000);
}

void World::CheckFire(const FireBatch& batch) {
  for (const SlotDecision& decision : batch.decisions) {
    const SlotKey& key = decision.slot.key;
    Trace("fire " + key.pipeline + decision.slot.state, decision.run ? decision.run->id.AsBytes() : "",
          static_cast<std::uint64_t>(ToUnixMicros(key.slot)));
    if (key.slot > ledger_clock_.High()) Violation("S8: a slot is decided before its time");
    if (decision.run && ledger_clock_.WallNow() > key.slot + kLate) ++report_.late_slots;
  }
}

std::size_t World::SlotsLeft() const {
  std::size_t all = 0;
  for (const Scheduled& item : scheduled_) all += item.slots.size();
  return all - std::min(all, ledger_.schedules.slots.size());
}

void World::CheckSlots() {
  std::map<std::pair<std::string, WallTime>, std::size_t> runs;
  for (const auto& [id, run] : ledger_.runs)
    if (run.slot) ++runs[{run.pipeline, *run.slot}];
  std::map<std::pair<std::string, WallTime>, const SlotRow*> rows;
  for (const auto& [id, row] : ledger_.schedules.slots) rows[{row.key.pipeline, row.key.slot}] = &row;
  for (const Scheduled& item : scheduled_)
    for (const WallTime slot : item.slots) {
      const std::string name = item.pipeline.name + " " + ToRfc3339(slot);
      const auto found = rows.extract({item.pipeline.name, slot});
      const std::size_t fired = runs[{item.pipeline.name, slot}];
      runs.erase({item.pipeline.name, slot});
      if (found.empty()) {
        Violation("S8: slot " + name + " was not decided");
        continue;
      }
      const SlotRow& row = *found.mapped();
      const bool may_skip = item.pipeline.schedules.front().overlap == "skip" && row.state == "skipped";
      if (row.state != "fired" && !may_skip) Violation("S8: slot " + name + " is " + row.state + ": " + row.reason);
      if (fired != (row.state == "fired" ? 1 : 0)) Violation(fmt::format("S8: slot {} has {} runs", name, fired));
      if (row.run.has_value() != (row.state == "fired") || (row.run && !ledger_.runs.contains(*row.run)))
        Violation("S8: slot " + name + " names a run that is not its own");
      row.state == "fired" ? ++report_.slots : ++report_.slots_skipped;
    }
  for (const auto& [slot, row] : rows) Violation("S8: there is no slot " + slot.first + " " + ToRfc3339(slot.second));
  for (const auto& [slot, count] : runs) Violation("S8: a run of no slot: " + slot.first + " " + ToRfc3339(slot.second));
}

}  // namespace millrace::sim
