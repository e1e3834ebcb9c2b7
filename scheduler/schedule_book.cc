#include "scheduler/schedule_book.h"

#include <algorithm>

#include "scheduler/slot_planner.h"

namespace millrace::scheduler {
namespace {

std::string KeyOf(const ScheduleRow& row) {
  return fmt::format("{}\x1f{}\x1f{}", row.org.value(), row.pipeline, row.spec.name);
}

// What a plan takes, about.
std::size_t BytesOf(const RunPlan& plan) {
  std::size_t bytes = sizeof(RunPlan) + plan.run.pipeline.size() + plan.run.schedule.size() + plan.run.params.size();
  for (const JobSpec& job : plan.jobs)
    bytes += sizeof(JobSpec) + job.payload.size() + job.stage.size() + job.effect.size() + job.root.size() +
             job.depends_on.size() * sizeof(JobId);
  return bytes;
}

}  // namespace

Result<void> ScheduleBook::Take(ScheduleRow row) {
  const std::string key = KeyOf(row);
  if (const auto it = entries_.find(key); it != entries_.end()) {
    Place(*it->second, std::nullopt);
    entries_.erase(it);
  }
  if (!row.active) return {};
  MILLRACE_TRY_ASSIGN(CronSchedule cron, CronSchedule::Make(row.spec));
  MILLRACE_TRY(ParseCatchup(row.spec.catchup));
  std::unique_ptr<Entry>& entry = entries_[key];
  entry.reset(new Entry(std::move(row), cron));
  entry->number_ = ++taken_;
  Place(*entry, entry->cron_.Next(entry->row_.watermark));  // a paused one too: its slots are decided as skipped
  return {};
}

std::vector<const ScheduleBook::Entry*> ScheduleBook::Soonest(std::size_t max) const {
  std::vector<const Entry*> soonest;
  for (const auto& [next, number, entry] : order_) {
    if (soonest.size() == max) break;
    soonest.push_back(entry);
  }
  return soonest;
}

void ScheduleBook::Clear() {
  order_.clear();
  entries_.clear();
  plans_ = plan_bytes_ = 0;
}

std::vector<ScheduleBook::Entry*> ScheduleBook::Due(WallTime now) {
  std::vector<Entry*> due;
  for (const auto& [next, number, entry] : order_) {
    if (next > now) break;
    due.push_back(entry);
  }
  // A long catch-up must not hold back what is on time.
  std::ranges::stable_partition(due, [&](const Entry* e) { return now - *e->next_ <= e->row_.spec.misfire_grace; });
  return due;
}

void ScheduleBook::Advance(Entry& entry, WallTime watermark) {
  entry.row_.watermark = watermark;
  Place(entry, entry.cron_.Next(watermark));
}

void ScheduleBook::Park(Entry& entry) { Place(entry, std::nullopt); }

std::optional<WallTime> ScheduleBook::Next() const {
  if (order_.empty()) return std::nullopt;
  return std::get<WallTime>(*order_.begin());
}

std::vector<ScheduleBook::Entry*> ScheduleBook::Unplanned(WallTime now, WallTime until) {
  std::vector<Entry*> found;
  if (PlansAreFull()) return found;
  for (auto it = order_.lower_bound({now + Micros{1}, 0, nullptr}); it != order_.end(); ++it) {
    const auto& [next, number, entry] = *it;
    if (next > until) break;
    if (entry->tried_ || entry->row_.paused) continue;
    found.push_back(entry);
    if (found.size() + plans_ >= kPlannedRunsMax) break;
  }
  return found;
}

void ScheduleBook::Keep(Entry& entry, RunPlan plan) {
  Forget(entry);
  entry.tried_ = true;
  entry.plan_bytes_ = BytesOf(plan);
  entry.plan_ = std::make_unique<RunPlan>(std::move(plan));
  ++plans_;
  plan_bytes_ += entry.plan_bytes_;
}

std::optional<RunPlan> ScheduleBook::TakePlan(Entry& entry) {
  if (!entry.plan_) return std::nullopt;
  std::optional<RunPlan> plan(std::move(*entry.plan_));
  Forget(entry);
  return plan;
}

void ScheduleBook::Forget(Entry& entry) {
  entry.tried_ = false;
  if (!entry.plan_) return;
  --plans_;
  plan_bytes_ -= std::exchange(entry.plan_bytes_, 0);
  entry.plan_.reset();
}

void ScheduleBook::Place(Entry& entry, std::optional<WallTime> next) {
  Forget(entry);
  if (entry.next_) order_.erase({*entry.next_, entry.number_, &entry});
  entry.next_ = next;
  if (next) order_.emplace(*next, entry.number_, &entry);
}

}  // namespace millrace::scheduler
