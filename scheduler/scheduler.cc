#include "scheduler/scheduler.h"

#include <algorithm>

#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/model/pipeline_json.h"
#include "common/model/run_plan.h"
#include "common/model/schedule_rules.h"
#include "common/model/stage_task.h"
#include "scheduler/slot_planner.h"

namespace millrace::scheduler {
namespace {

constexpr Millis kScheduleReloadInterval{1000};  // how soon an applied or paused schedule is noticed
constexpr Millis kLedgerDeadline{10'000};
constexpr Millis kRetryDelayMax{5000};
constexpr Millis kVersionRetry{100};          // a version that is not there yet
constexpr Millis kBackfillWaitMin{20};        // after a turn that moved something; grows while nothing moves
constexpr std::size_t kFireRunsMax = 2000;    // runs of one transaction
constexpr std::size_t kHerdMax = 2000;        // schedules looked at together
constexpr std::size_t kVersionsMax = 10'000;  // kept
constexpr std::size_t kSchedulesLogged = 20;
constexpr std::uint32_t kChangesPage = 1000;

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, Ledger& ledger, Inbox& inbox, const Clock& clock, IdGenerator& ids)
    : options_(std::move(options)), ledger_(ledger), inbox_(inbox), clock_(clock), ids_(ids), feeder_(ledger, clock, ids) {}

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
    versions_.clear();
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
      versions_.erase({row.org, row.pipeline});
      // One broken schedule must not stop the others.
      if (const auto taken = book_.Take(std::move(row)); !taken) LogError("{} cannot run: {}", what, taken.error().message);
    }
    if (last) return true;
    if (clock_.Now() > enough) return false;
  }
}

Result<void> Scheduler::LoadVersions(Entries due, MonoTime deadline) {
  std::map<OrgId, std::vector<std::string>> missing;
  for (const auto* entry : due)
    if (!versions_.contains({entry->row().org, entry->row().pipeline}))
      missing[entry->row().org].push_back(entry->row().pipeline);
  for (const auto& [org, names] : missing) {
    MILLRACE_TRY_ASSIGN(const auto found, ledger_.ScheduledVersions(org, names, deadline));
    for (const PipelineVersion& version : found) {
      auto pipeline = PipelineFromJson(version.definition);
      if (!pipeline) LogError("pipeline {} version {} cannot run: {}", version.name, version.version, pipeline.error().message);
      // Number 0 is no version: what cannot be read is remembered as that.
      versions_[{org, version.name}] = pipeline ? Version{version.version, std::move(*pipeline), version.base_dir} : Version{};
    }
  }
  return {};
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

// False: its version is not there (yet).
Result<bool> Scheduler::Decide(ScheduleBook::Entry& entry, bool busy, WallTime now, Herd& herd) {
  const ScheduleRow& row = entry.row();
  const auto version = versions_.find({row.org, row.pipeline});
  if (version != versions_.end() && version->second.number == 0) {
    book_.Park(entry);
    return true;
  }
  // A version that was applied a moment ago: the change of the row is read next.
  if (version == versions_.end() || version->second.number != row.version) return false;
  MILLRACE_TRY_ASSIGN(const SlotPlan plan, PlanSlots(row.spec, entry.cron(), row.watermark, now, busy, row.paused));
  std::size_t not_fired = 0;
  for (const PlannedSlot& slot : plan.slots) {
    SlotDecision decision;
    decision.slot = SlotRow{.key = {row.org, row.pipeline, row.spec.name, slot.slot, 0},
                            .state = std::string(scheduler::Name(slot.fate)),
                            .reason = slot.reason,
                            .run = std::nullopt,
                            .decided_at = now};
    if (slot.fate == SlotFate::kFired) {
      RunRequest request{.org = row.org,
                         .version = row.version,
                         .base_dir = version->second.base_dir,
                         .schedule = row.spec.name,
                         .slot = slot.slot,
                         .generation = 0,
                         .overlap = OverlapOfRuns(row.spec),
                         .params = {},
                         .run_at = std::nullopt,
                         .priority_min = 0,
                         .now = now};
      if (row.spec.jitter > Millis{0})
        request.run_at = slot.slot + JitterOf(row.pipeline, row.spec.name, slot.slot, row.spec.jitter);
      auto planned = PlanRun(version->second.pipeline, request, ids_);
      if (planned) {
        decision.slot.run = planned->run.id;
        decision.run = std::move(planned->run);
        decision.jobs = std::move(planned->jobs);
        herd.shards.insert(ShardOf(row.org, options_.shard_count));
        if (MILLRACE_MUTANT("mutant.double_slot"))
          if (const auto twin = PlanRun(version->second.pipeline, request, ids_))
            MILLRACE_TRY(ledger_.SubmitRun(twin->run, twin->jobs, clock_.Now() + kLedgerDeadline));
      } else {  // e.g. a required parameter: a schedule cannot give it, and silence would hide it
        decision.slot.state = scheduler::Name(SlotFate::kSkipped);
        decision.slot.reason = planned.error().message;
      }
    }
    if (decision.slot.run) {
      LogInfo("pipeline {}: slot {} fires as run {}", row.pipeline, ToRfc3339(slot.slot), ShortId(*decision.slot.run));
    } else if (++not_fired == 1) {
      LogInfo("pipeline {}: slot {} is {}: {}", row.pipeline, ToRfc3339(slot.slot), decision.slot.state, decision.slot.reason);
    }
    herd.batch.decisions.push_back(std::move(decision));
  }
  if (not_fired > 1) LogInfo("pipeline {}: and {} more slots that do not fire", row.pipeline, not_fired - 1);
  herd.batch.watermarks.push_back({row.org, row.pipeline, row.spec.name, plan.watermark});
  herd.decided.push_back({&entry, plan.watermark});
  return true;
}

void Scheduler::Ring(const std::set<ShardId>& shards) {
  // The ring only wakes the owner: it finds the outbox rows by itself too, so a failure here loses nothing.
  for (const ShardId shard : shards)
    if (const auto rung = inbox_.Ring(shard); !rung) LogWarn("cannot ring shard {}: {}", shard.value(), rung.error().message);
}

Result<void> Scheduler::Fire(Herd& herd, MonoTime deadline) {
  if (herd.decided.empty()) return {};
  MILLRACE_TRY_ASSIGN(const FireResult fired, ledger_.Fire(herd.batch, deadline));
  if (!fired.already_decided.empty())
    LogInfo("{} slots had been decided by another scheduler, the first: {} of {}", fired.already_decided.size(),
            ToRfc3339(fired.already_decided.front().slot), fired.already_decided.front().pipeline);
  Ring(herd.shards);
  for (const auto& [entry, watermark] : herd.decided) book_.Advance(*entry, watermark);
  herd.batch.decisions.clear();
  herd.batch.watermarks.clear();
  herd.decided.clear();
  herd.shards.clear();
  return {};
}

Result<bool> Scheduler::FireDue(WallTime now, MonoTime enough, MonoTime deadline) {
  const std::vector<ScheduleBook::Entry*> due = book_.Due(now);
  Herd herd{.batch = {.decisions = {}, .watermarks = {}, .steps = {}, .now = now}, .decided = {}, .shards = {}};
  bool all = true;
  for (std::size_t at = 0; at < due.size(); at += kHerdMax) {
    if (at > 0 && clock_.Now() > enough) return false;
    if (versions_.size() > kVersionsMax) versions_.clear();
    const Entries entries = Entries(due).subspan(at, std::min(kHerdMax, due.size() - at));
    MILLRACE_TRY(LoadVersions(entries, deadline));
    MILLRACE_TRY_ASSIGN(const auto busy, BusyOnes(entries, deadline));
    for (ScheduleBook::Entry* entry : entries) {
      MILLRACE_TRY_ASSIGN(const bool decided,
                          Decide(*entry, busy.contains({entry->row().org, entry->row().pipeline}), now, herd));
      all = all && decided;
      if (herd.batch.decisions.size() >= kFireRunsMax) MILLRACE_TRY(Fire(herd, deadline));
    }
    MILLRACE_TRY(Fire(herd, deadline));
  }
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
  const MonoTime begin = clock_.Now(), deadline = begin + kLedgerDeadline;
  MILLRACE_TRY_ASSIGN(const bool leading, Lead(deadline));
  if (!leading) return options_.lead_ttl / 3;
  MILLRACE_TRY_ASSIGN(const bool read, ReadChanges(begin + options_.lead_ttl / 3, deadline));
  if (!read) return Millis{0};
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger_.Now(deadline));
  if (std::exchange(introduce_, false)) Introduce();
  MILLRACE_TRY_ASSIGN(const bool all, FireDue(now, begin + options_.lead_ttl / 3, deadline));
  Millis wait = std::min(kScheduleReloadInterval, options_.lead_ttl / 3);
  if (const auto next = book_.Next()) wait = std::clamp(std::chrono::ceil<Millis>(*next - now), Millis{0}, wait);
  if (!all) return std::max(wait, clock_.Now() > begin + options_.lead_ttl / 3 ? Millis{0} : kVersionRetry);

  // Backfills come after everything that is due.
  MILLRACE_TRY_ASSIGN(const auto turn, feeder_.Feed(now, begin + options_.lead_ttl / 2, deadline));
  std::set<ShardId> shards;
  for (const OrgId org : turn.fed) shards.insert(ShardOf(org, options_.shard_count));
  Ring(shards);
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
