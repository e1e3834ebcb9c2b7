#include "scheduler/scheduler.h"

#include <algorithm>

#include "common/base/log.h"
#include "common/model/pipeline_json.h"
#include "common/model/run_plan.h"
#include "common/model/stage_task.h"
#include "scheduler/slot_planner.h"

namespace millrace::scheduler {
namespace {

constexpr Millis kScheduleReloadInterval{1000};  // how soon an applied or paused schedule is noticed
constexpr Millis kLedgerDeadline{10'000};
constexpr Millis kRetryDelayMax{5000};
constexpr std::size_t kFireRunsMax = 500;  // runs of one transaction
constexpr std::size_t kSchedulesLogged = 20;

}  // namespace

struct Scheduler::Compiled {
  Pipeline pipeline;
  std::string base_dir;
  CronSchedule cron;
};

Scheduler::Scheduler(SchedulerOptions options, Ledger& ledger, Inbox& inbox, const Clock& clock, IdGenerator& ids)
    : options_(std::move(options)), ledger_(ledger), inbox_(inbox), clock_(clock), ids_(ids) {}

Scheduler::~Scheduler() = default;

Result<std::shared_ptr<const Scheduler::Compiled>> Scheduler::Compile(const ScheduleRow& row, MonoTime deadline) {
  const auto key = std::tuple{row.org, row.pipeline + "/" + row.spec.name, row.version};
  if (const auto it = compiled_.find(key); it != compiled_.end()) return it->second;
  MILLRACE_TRY_ASSIGN(const PipelineVersion version, ledger_.GetPipeline(row.org, row.pipeline, row.version, deadline));
  MILLRACE_TRY_ASSIGN(Pipeline pipeline, PipelineFromJson(version.definition));
  MILLRACE_TRY_ASSIGN(CronSchedule cron, CronSchedule::Make(row.spec));
  MILLRACE_TRY(ParseCatchup(row.spec.catchup));  // here, where a broken row is this schedule's problem alone
  auto compiled = std::make_shared<const Compiled>(Compiled{std::move(pipeline), version.base_dir, cron});
  // Older versions of the same schedule cannot come back: one entry per schedule.
  std::erase_if(compiled_, [&](const auto& entry) {
    return std::get<0>(entry.first) == std::get<0>(key) && std::get<1>(entry.first) == std::get<1>(key);
  });
  compiled_.emplace(key, compiled);
  return compiled;
}

Result<void> Scheduler::Decide(const ScheduleRow& row, WallTime now, FireBatch& batch, std::set<ShardId>& shards,
                               std::optional<WallTime>& next, MonoTime deadline) {
  const auto compiled = Compile(row, deadline);
  if (!compiled) {
    if (compiled.error().code == ErrorCode::kUnavailable || compiled.error().code == ErrorCode::kTimedOut)
      return std::unexpected(compiled.error());
    // One broken schedule must not stop the others.
    if (complained_.emplace(row.org, row.pipeline, row.version).second)
      LogError("schedule {} of pipeline {} version {} cannot run: {}", row.spec.name, row.pipeline, row.version,
               compiled.error().message);
    return {};
  }
  const CronSchedule& cron = (*compiled)->cron;
  const auto due = cron.Next(row.watermark);
  if (!due || *due > now) {
    if (due && (!next || *due < *next)) next = due;
    return {};
  }
  bool active = false;
  if (row.spec.overlap == "skip" && !row.paused) {
    MILLRACE_TRY_ASSIGN(const std::uint32_t runs, ledger_.ActiveRuns(row.org, row.pipeline, deadline));
    active = runs > 0;
  }
  MILLRACE_TRY_ASSIGN(const SlotPlan plan, PlanSlots(row.spec, cron, row.watermark, now, active, row.paused));
  std::size_t not_fired = 0;
  for (const PlannedSlot& slot : plan.slots) {
    SlotDecision decision;
    decision.slot = SlotRow{.key = {row.org, row.pipeline, row.spec.name, slot.slot, 0},
                            .state = std::string(Name(slot.fate)),
                            .reason = slot.reason,
                            .run = std::nullopt,
                            .decided_at = now};
    if (slot.fate == SlotFate::kFired) {
      RunRequest request{.org = row.org,
                         .version = row.version,
                         .base_dir = (*compiled)->base_dir,
                         .schedule = row.spec.name,
                         .slot = slot.slot,
                         .generation = 0,
                         .overlap = row.spec.overlap,
                         .params = {},
                         .now = now};
      auto planned = PlanRun((*compiled)->pipeline, request, ids_);
      if (planned) {
        decision.slot.run = planned->run.id;
        decision.run = std::move(planned->run);
        decision.jobs = std::move(planned->jobs);
        shards.insert(ShardOf(row.org, options_.shard_count));
      } else {  // e.g. a required parameter: a schedule cannot give it, and silence would hide it
        decision.slot.state = Name(SlotFate::kSkipped);
        decision.slot.reason = planned.error().message;
      }
    }
    if (decision.slot.run) {
      LogInfo("pipeline {}: slot {} fires as run {}", row.pipeline, ToRfc3339(slot.slot), ShortId(*decision.slot.run));
    } else if (++not_fired == 1) {
      LogInfo("pipeline {}: slot {} is {}: {}", row.pipeline, ToRfc3339(slot.slot), decision.slot.state, decision.slot.reason);
    }
    batch.decisions.push_back(std::move(decision));
  }
  if (not_fired > 1) LogInfo("pipeline {}: and {} more slots that do not fire", row.pipeline, not_fired - 1);
  batch.watermarks.push_back({row.org, row.pipeline, row.spec.name, plan.watermark});
  if (plan.next && (!next || *plan.next < *next)) next = plan.next;
  return {};
}

// What to expect: said once when this scheduler begins to lead.
void Scheduler::LogSchedules(const std::vector<ScheduleRow>& schedules, WallTime now) const {
  if (!LogEnabled(LogLevel::kInfo)) return;
  for (std::size_t i = 0; i < std::min(schedules.size(), kSchedulesLogged); ++i) {
    const ScheduleRow& row = schedules[i];
    const auto cron = CronSchedule::Make(row.spec);
    if (!cron) continue;  // Decide says so
    const auto next = cron->Next(std::max(now, row.watermark));
    LogInfo("pipeline {}: schedule '{}' {}, {}", row.pipeline, row.spec.cron, row.spec.timezone,
            row.paused ? "paused"
            : next     ? "next fire " + ToRfc3339(*next)
                       : "never fires again");
  }
  if (schedules.size() > kSchedulesLogged) LogInfo("and {} more schedules", schedules.size() - kSchedulesLogged);
}

Result<Millis> Scheduler::Pass() {
  const MonoTime deadline = clock_.Now() + kLedgerDeadline;
  MILLRACE_TRY_ASSIGN(const Ledger::Leadership lead, ledger_.TryLead(options_.id, options_.name, options_.lead_ttl, deadline));
  const bool begins = lead.leader && !leading_;
  if (lead.leader != leading_) {
    LogInfo("{}",
            lead.leader ? fmt::format("leading (term {})", lead.epoch) : fmt::format("standing by; {} leads", lead.holder));
    leading_ = lead.leader;
  }
  lead_epoch_ = lead.epoch;
  if (!leading_) return options_.lead_ttl / 3;

  MILLRACE_TRY_ASSIGN(const std::vector<ScheduleRow> schedules, ledger_.Schedules(std::nullopt, deadline));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger_.Now(deadline));
  if (begins) LogSchedules(schedules, now);
  std::optional<WallTime> next;
  FireBatch batch{.leader_epoch = lead_epoch_, .decisions = {}, .watermarks = {}};
  std::set<ShardId> shards;
  const auto flush = [&]() -> Result<void> {
    if (batch.decisions.empty() && batch.watermarks.empty()) return {};
    MILLRACE_TRY_ASSIGN(const FireResult fired, ledger_.Fire(batch, deadline));
    if (!fired.already_decided.empty())
      LogInfo("{} slots had been decided by another scheduler, the first: {} of {}", fired.already_decided.size(),
              ToRfc3339(fired.already_decided.front().slot), fired.already_decided.front().pipeline);
    // The ring only wakes the owner: it finds the outbox rows by itself too, so a failure here loses nothing.
    for (const ShardId shard : shards)
      if (const auto rung = inbox_.Ring(shard); !rung) LogWarn("cannot ring shard {}: {}", shard.value(), rung.error().message);
    batch.decisions.clear();
    batch.watermarks.clear();
    shards.clear();
    return {};
  };
  for (const ScheduleRow& row : schedules) {
    MILLRACE_TRY(Decide(row, now, batch, shards, next, deadline));
    if (batch.decisions.size() >= kFireRunsMax) MILLRACE_TRY(flush());
  }
  MILLRACE_TRY(flush());
  Millis wait = std::min(kScheduleReloadInterval, options_.lead_ttl / 3);
  if (next) wait = std::clamp(std::chrono::ceil<Millis>(*next - now), Millis{0}, wait);
  return wait;
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
    if (stop_signal_.wait_for(lock, wait ? *wait : retry, [&] { return stop_; })) return;
    if (!wait) retry = std::min(retry * 2, kRetryDelayMax);
  }
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
