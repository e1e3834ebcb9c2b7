#include "scheduler/scheduler.h"

#include <algorithm>
#include <iterator>

#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/model/stage_task.h"
#include "scheduler/fire_history.h"

namespace millrace::scheduler {
namespace {

constexpr Millis kScheduleReloadInterval{1000};  // how soon an applied or paused schedule is noticed
constexpr Millis kLedgerDeadline{10'000};
constexpr Millis kRetryDelayMax{5000};
constexpr Millis kVersionRetry{100};        // a version that is not there yet
constexpr Millis kBackfillWaitMin{20};      // after a turn that moved something; grows while nothing moves
constexpr std::size_t kFireRunsMax = 2000;  // runs of one transaction
constexpr std::size_t kHerdMax = 2000;      // schedules looked at together
constexpr Millis kPlanAhead{10'000};        // runs of slots that are due within are planned
constexpr Millis kPlanPause{50};            // ... but not when a slot is due within
constexpr std::size_t kPlanPage = 500;
constexpr std::size_t kWatermarksPage = 2000;         // of one transaction
constexpr std::size_t kWatermarksLaterMax = 100'000;  // moved at the latest then
constexpr Millis kWatermarksLater{5000};              // a herd that never ends does not hold them back for longer
constexpr Millis kLastWatermarks{2000};               // of one who stops
constexpr std::size_t kSchedulesLogged = 20;
constexpr std::uint32_t kChangesPage = 1000;

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, Ledger& ledger, Inbox& inbox, const Clock& clock, IdGenerator& ids)
    : options_(std::move(options)),
      ledger_(ledger),
      inbox_(inbox),
      clock_(clock),
      ids_(ids),
      planner_(ledger, ids),
      feeder_(ledger, clock, ids) {
  if (options_.open_ledger)
    lane_.emplace(options_.open_ledger, options_.id, [this](const FireBatch& batch) { RingFor(batch); });
}

Scheduler::~Scheduler() = default;

Result<bool> Scheduler::Lead(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Ledger::Leadership lead, ledger_.TryLead(options_.id, options_.name, options_.lead_ttl, deadline));
  if (lead.leader != leading_) {
    introduce_ = lead.leader;
    LogInfo("{}",
            lead.leader ? fmt::format("leading (term {})", lead.epoch) : fmt::format("standing by; {} leads", lead.holder));
    leading_ = lead.leader;
  }
  // Watermarks that another leader may have moved are no longer known.
  if (!leading_ || lead.epoch != lead_epoch_) {
    book_.Clear();
    planner_.Clear();
    watermarks_.clear();  // whoever decides their slots again finds them decided, and moves these
    revision_ = kNoRevision;
  }
  lead_epoch_ = lead.epoch;
  return leading_;
}

// A new leader reads everything: in turns, between which it renews its lease, or two loaded schedulers would take it from each
// other for ever.
Result<bool> Scheduler::ReadChanges(MonoTime enough, MonoTime deadline) {
  while (true) {
    MILLRACE_TRY_ASSIGN(std::vector<ScheduleRow> rows, ledger_.SchedulesChanged(revision_, kChangesPage, deadline));
    const bool last = rows.size() < kChangesPage;
    for (ScheduleRow& row : rows) {
      revision_ = row.revision;
      const std::string what = fmt::format("schedule {} of pipeline {} version {}", row.spec.name, row.pipeline, row.version);
      planner_.Forget(row.org, row.pipeline);
      // One broken schedule must not stop the others.
      if (const auto taken = book_.Take(std::move(row)); !taken) LogError("{} cannot run: {}", what, taken.error().message);
    }
    if (last) return true;
    if (clock_.Now() > enough) return false;
  }
}

Result<std::set<Scheduler::Name>> Scheduler::BusyOnes(Entries due, MonoTime deadline) {
  std::map<OrgId, std::vector<std::string>> asked;
  for (const auto* entry : due)
    if (entry->row().spec.overlap == "skip" && !entry->row().paused) asked[entry->row().org].push_back(entry->row().pipeline);
  std::set<Name> busy;
  for (const auto& [org, names] : asked) {
    MILLRACE_TRY_ASSIGN(const auto found, ledger_.BusyPipelines(org, names, deadline));
    for (const std::string& name : found) busy.emplace(org, name);
  }
  return busy;
}

void Scheduler::Batch::Clear() {
  rows.decisions.clear();
  rows.watermarks.clear();
  decided.clear();
}

// Whether all that is due of it has a plan: a single slot.
bool Scheduler::IsPlanned(const ScheduleBook::Entry& entry, WallTime now) const {
  if (!entry.planned()) return false;
  const auto second = entry.cron().Next(entry.next());
  return !second || *second > now;
}

// False: its version is not there (yet).
Result<bool> Scheduler::Decide(ScheduleBook::Entry& entry, bool planned, bool busy, WallTime now, Batch& batch) {
  const ScheduleRow& row = entry.row();
  if (!planned) {
    const RunPlanner::Known known = planner_.Knows(row);
    if (known == RunPlanner::Known::kBroken) book_.Park(entry);
    if (known != RunPlanner::Known::kYes) return known == RunPlanner::Known::kBroken;
  }
  MILLRACE_TRY_ASSIGN(const SlotPlan plan, PlanSlots(row.spec, entry.cron(), row.watermark, now, busy, row.paused));
  std::size_t not_fired = 0;
  for (const PlannedSlot& slot : plan.slots) {
    MILLRACE_TRY_ASSIGN(SlotDecision decision, DecideSlot(entry, slot, now));
    if (decision.slot.run && herd_) {
      // a line for each batch: see Fired
    } else if (decision.slot.run) {
      LogInfo("pipeline {}: slot {} fires as run {}", row.pipeline, ToRfc3339(slot.slot), ShortId(*decision.slot.run));
    } else if (++not_fired == 1 && !herd_) {
      LogInfo("pipeline {}: slot {} is {}: {}", row.pipeline, ToRfc3339(slot.slot), decision.slot.state, decision.slot.reason);
    }
    batch.rows.decisions.push_back(std::move(decision));
  }
  if (not_fired > 1 && !herd_) LogInfo("pipeline {}: and {} more slots that do not fire", row.pipeline, not_fired - 1);
  batch.rows.watermarks.push_back({row.org, row.pipeline, row.spec.name, plan.watermark});
  batch.decided.push_back({&entry, plan.watermark});
  return true;
}

Result<SlotDecision> Scheduler::DecideSlot(ScheduleBook::Entry& entry, const PlannedSlot& slot, WallTime now) {
  const ScheduleRow& row = entry.row();
  SlotDecision decision;
  decision.slot = SlotRow{.key = {row.org, row.pipeline, row.spec.name, slot.slot, 0},
                          .state = std::string(scheduler::Name(slot.fate)),
                          .reason = slot.reason,
                          .run = std::nullopt,
                          .decided_at = now};
  if (slot.fate != SlotFate::kFired) return decision;
  if (MILLRACE_MUTANT("mutant.double_slot"))
    if (planner_.Knows(row) == RunPlanner::Known::kYes)
      if (const auto twin = planner_.Plan(row, slot.slot, now))
        MILLRACE_TRY(ledger_.SubmitRun(twin->run, twin->jobs, clock_.Now() + kLedgerDeadline));
  Result<RunPlan> planned = RunPlan{};
  if (auto ahead = slot.slot == entry.next() ? book_.TakePlan(entry) : std::nullopt) {
    RunPlanner::Decided(*ahead, slot.slot, now);
    planned = std::move(*ahead);
  } else {
    planned = planner_.Plan(row, slot.slot, now);
  }
  if (planned) {
    decision.slot.run = planned->run.id;
    decision.run = std::move(planned->run);
    decision.jobs = std::move(planned->jobs);
  } else {  // e.g. a required parameter: a schedule cannot give it, and silence would hide it
    decision.slot.state = scheduler::Name(SlotFate::kSkipped);
    decision.slot.reason = planned.error().message;
  }
  return decision;
}

// What will be due soon: its versions are read and its runs are planned while there is time, so that a herd's slots have only
// to be written when they are due.
Result<bool> Scheduler::PlanAhead(WallTime now, MonoTime enough, MonoTime deadline) {
  const std::vector<ScheduleBook::Entry*> soon = book_.Unplanned(now, now + kPlanAhead);
  const auto next = book_.Next();
  for (std::size_t at = 0; at < soon.size() && !book_.PlansAreFull(); at += kPlanPage) {
    if (next && LedgerNow() + kPlanPause > *next) return true;  // what is due comes first; the rest waits for its turn
    if (clock_.Now() > enough) return false;
    const Entries page = Entries(soon).subspan(at, std::min(kPlanPage, soon.size() - at));
    MILLRACE_TRY(planner_.Load(page, deadline));
    for (ScheduleBook::Entry* entry : page) {
      if (book_.PlansAreFull()) return true;
      const RunPlanner::Known known = planner_.Knows(entry->row());
      if (known == RunPlanner::Known::kNotYet) continue;
      auto planned = known == RunPlanner::Known::kYes ? planner_.PlanAhead(entry->row(), entry->next()) : RunPlan{};
      if (known == RunPlanner::Known::kYes && planned)
        book_.Keep(*entry, std::move(*planned));
      else
        book_.KeepNone(*entry);
    }
  }
  return true;
}

void Scheduler::Ring(const std::set<ShardId>& shards) {
  // The ring only wakes the owner: it finds the outbox rows by itself too, so a failure here loses nothing.
  for (const ShardId shard : shards)
    if (const auto rung = inbox_.Ring(shard); !rung) LogWarn("cannot ring shard {}: {}", shard.value(), rung.error().message);
}

// Also called by the lane's thread.
void Scheduler::RingFor(const FireBatch& batch) {
  std::set<ShardId> shards;
  for (const SlotDecision& decision : batch.decisions)
    if (decision.run) shards.insert(ShardOf(decision.run->org, options_.shard_count));
  Ring(shards);
}

// In turns with the lane, if there is one and there is more to come.
Result<void> Scheduler::Fire(Batch& batch, bool more, MonoTime deadline) {
  if (batch.decided.empty()) return {};
  if (herd_) batch.rows.watermarks.clear();  // see Fired
  if (lane_ && herd_ && more && !lane_->busy()) {
    MILLRACE_TRY(FinishLane());
    std::swap(in_lane_, batch);
    batch.rows.now = in_lane_.rows.now;
    lane_->Start(in_lane_.rows, deadline);
    return {};
  }
  MILLRACE_TRY_ASSIGN(const FireResult fired, FireRecorded(ledger_, batch.rows, options_.id, deadline));
  RingFor(batch.rows);
  Fired(batch, fired);
  return {};
}

// What the lane could not do is done here; if it did and only the answer was lost, its slots are found decided.
Result<void> Scheduler::FinishLane() {
  if (!lane_ || in_lane_.decided.empty()) return {};
  auto fired = lane_->Wait();
  if (!fired) {
    LogWarn("the second connection for herds: {}", fired.error().message);
    fired = FireRecorded(ledger_, in_lane_.rows, options_.id, clock_.Now() + kLedgerDeadline);
    if (fired) RingFor(in_lane_.rows);
  }
  if (fired)
    Fired(in_lane_, *fired);
  else
    in_lane_.Clear();
  if (!fired) return std::unexpected(std::move(fired.error()));
  return {};
}

void Scheduler::Fired(Batch& batch, const FireResult& fired) {
  if (!fired.already_decided.empty())
    LogInfo("{} slots had been decided before, the first: {} of {}", fired.already_decided.size(),
            ToRfc3339(fired.already_decided.front().slot), fired.already_decided.front().pipeline);
  if (herd_ && !batch.rows.decisions.empty())
    LogInfo("{} slots of a herd are decided, the first: {} of {}", batch.rows.decisions.size(),
            ToRfc3339(batch.rows.decisions.front().slot.key.slot), batch.rows.decisions.front().slot.key.pipeline);
  if (herd_ && watermarks_.empty()) watermarks_since_ = clock_.Now();
  for (const auto& [entry, watermark] : batch.decided) {
    const ScheduleRow& row = entry->row();
    if (herd_) watermarks_.push_back({row.org, row.pipeline, row.spec.name, watermark});
    book_.Advance(*entry, watermark);
  }
  batch.Clear();
}

Result<void> Scheduler::MoveWatermarks(MonoTime deadline) {
  while (!watermarks_.empty()) {
    MILLRACE_FAILPOINT("scheduler.before_watermarks");
    FireBatch batch;
    const std::size_t n = std::min(kWatermarksPage, watermarks_.size());
    batch.watermarks.assign(watermarks_.end() - static_cast<std::ptrdiff_t>(n), watermarks_.end());
    MILLRACE_TRY(ledger_.Fire(batch, deadline));
    watermarks_.resize(watermarks_.size() - n);
  }
  return {};
}

Result<bool> Scheduler::FireAll(Entries due, WallTime now, MonoTime enough, MonoTime deadline) {
  Batch batch;
  batch.rows.now = now;
  bool all = true;
  for (std::size_t at = 0; at < due.size(); at += kHerdMax) {
    if (at > 0 && clock_.Now() > enough) return false;
    deadline = clock_.Now() + kLedgerDeadline;
    const Entries entries = due.subspan(at, std::min(kHerdMax, due.size() - at));
    std::vector<ScheduleBook::Entry*> unplanned;
    for (ScheduleBook::Entry* entry : entries)
      if (!IsPlanned(*entry, now)) unplanned.push_back(entry);
    MILLRACE_TRY(planner_.Load(unplanned, deadline));
    MILLRACE_TRY_ASSIGN(const auto busy, BusyOnes(entries, deadline));
    auto next_unplanned = unplanned.begin();
    for (ScheduleBook::Entry* entry : entries) {
      const bool planned = next_unplanned == unplanned.end() || *next_unplanned != entry;
      if (!planned) ++next_unplanned;
      const bool is_busy = !busy.empty() && busy.contains({entry->row().org, entry->row().pipeline});
      MILLRACE_TRY_ASSIGN(const bool decided, Decide(*entry, planned, is_busy, now, batch));
      all = all && decided;
      if (batch.rows.decisions.size() >= kFireRunsMax) MILLRACE_TRY(Fire(batch, true, deadline));
    }
    MILLRACE_TRY(Fire(batch, at + kHerdMax < due.size(), deadline));
  }
  return all;
}

Result<bool> Scheduler::FireDue(WallTime now, MonoTime enough, MonoTime deadline) {
  const std::vector<ScheduleBook::Entry*> due = book_.Due(now);
  herd_ = due.size() > kHerdMax;
  auto all = FireAll(due, now, enough, deadline);
  auto last = FinishLane();  // also when something failed: it has entries of the book in hand
  if (!all) return all;
  MILLRACE_TRY(last);
  const bool late = !watermarks_.empty() && clock_.Now() - watermarks_since_ >= kWatermarksLater;
  if (!herd_ || late || watermarks_.size() >= kWatermarksLaterMax) MILLRACE_TRY(MoveWatermarks(clock_.Now() + kLedgerDeadline));
  return all;
}

void Scheduler::Introduce() const {
  const auto soonest = book_.Soonest(kSchedulesLogged);
  for (const ScheduleBook::Entry* entry : soonest) {
    const ScheduleRow& row = entry->row();
    LogInfo("pipeline {}: schedule '{}' {}, {}", row.pipeline, row.spec.cron, row.spec.timezone,
            row.paused ? "paused" : "next fire " + ToRfc3339(entry->next()));
  }
  if (book_.size() > soonest.size()) LogInfo("and {} more schedules", book_.size() - soonest.size());
}

Result<Millis> Scheduler::Pass() {
  const MonoTime begin = clock_.Now(), deadline = begin + kLedgerDeadline, enough = begin + options_.lead_ttl / 3;
  MILLRACE_TRY_ASSIGN(const bool leading, Lead(deadline));
  if (!leading) return options_.lead_ttl / 3;
  // The clock first: whatever was applied before the slots that are due now is known then.
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger_.Now(deadline));
  ledger_now_ = now;
  ledger_asked_ = clock_.Now();
  MILLRACE_TRY_ASSIGN(const bool read, ReadChanges(enough, deadline));
  if (!read) return Millis{0};
  if (std::exchange(introduce_, false)) Introduce();
  MILLRACE_TRY_ASSIGN(const bool all, FireDue(now, enough, deadline));
  const auto wait_until_due = [&] {
    const Millis wait = std::min(kScheduleReloadInterval, options_.lead_ttl / 3);
    const auto next = book_.Next();
    return next ? std::clamp(std::chrono::ceil<Millis>(*next - LedgerNow()), Millis{0}, wait) : wait;
  };
  if (!all) return std::max(wait_until_due(), clock_.Now() > enough ? Millis{0} : kVersionRetry);
  MILLRACE_TRY_ASSIGN(const bool planned, PlanAhead(now, enough, deadline));
  if (!planned) return Millis{0};

  // Backfills come after everything that is due.
  MILLRACE_TRY_ASSIGN(const auto turn, feeder_.Feed(now, begin + options_.lead_ttl / 2, deadline));
  std::set<ShardId> shards;
  for (const OrgId org : turn.fed) shards.insert(ShardOf(org, options_.shard_count));
  Ring(shards);
  const Millis wait = wait_until_due();
  if (turn.unended == 0) return wait;
  backfill_wait_ = turn.moved ? kBackfillWaitMin : std::min(backfill_wait_ * 2, kScheduleReloadInterval);
  return std::min(wait, backfill_wait_);
}

void Scheduler::Run() {
  Millis retry{100};
  bool complained = false;
  while (true) {
    const auto wait = Pass();
    if (wait) {
      if (complained) LogInfo("the ledger answers again");
      complained = false;
      retry = Millis{100};
    } else if (!complained) {
      LogError("{}; retrying", wait.error().message);
      complained = true;
    }
    std::unique_lock lock(stop_mutex_);
    if (stop_signal_.wait_for(lock, wait ? *wait : retry, [&] { return stop_; })) break;
    if (!wait) retry = std::min(retry * 2, kRetryDelayMax);
  }
  if (const auto moved = MoveWatermarks(clock_.Now() + kLastWatermarks); !moved)
    LogInfo("the next leader moves {} watermarks: {}", watermarks_.size(), moved.error().message);
}

Result<std::size_t> ResumeSchedule(Ledger& ledger, OrgId org, std::string_view pipeline, MonoTime deadline) {
  std::size_t decided = 0;
  while (true) {
    MILLRACE_TRY_ASSIGN(const std::vector<ScheduleRow> schedules, ledger.Schedules(org, deadline));
    MILLRACE_TRY_ASSIGN(const WallTime now, ledger.Now(deadline));
    FireBatch batch;
    for (const ScheduleRow& row : schedules) {
      if (row.pipeline != pipeline || !row.paused) continue;
      const auto cron = CronSchedule::Make(row.spec);
      if (!cron) continue;  // a broken row has no slots
      MILLRACE_TRY_ASSIGN(const SlotPlan plan, PlanSlots(row.spec, *cron, row.watermark, now, false, true));
      for (const PlannedSlot& slot : plan.slots)
        batch.decisions.push_back({.slot = {.key = {org, row.pipeline, row.spec.name, slot.slot, 0},
                                            .state = std::string(Name(slot.fate)),
                                            .reason = slot.reason,
                                            .run = std::nullopt,
                                            .decided_at = now},
                                   .run = std::nullopt,
                                   .jobs = {}});
      if (!plan.slots.empty()) batch.watermarks.push_back({org, row.pipeline, row.spec.name, plan.watermark});
    }
    if (batch.decisions.empty()) break;
    MILLRACE_TRY_ASSIGN(const FireResult fired, ledger.Fire(batch, deadline));
    decided += batch.decisions.size() - fired.already_decided.size();
  }
  MILLRACE_TRY(ledger.SetPaused(org, pipeline, false, deadline));
  return decided;
}

void Scheduler::RequestStop() {
  {
    const std::scoped_lock lock(stop_mutex_);
    stop_ = true;
  }
  stop_signal_.notify_all();
}

}  // namespace millrace::scheduler
