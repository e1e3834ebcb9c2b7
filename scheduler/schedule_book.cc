#include "scheduler/schedule_book.h"

#include <algorithm>

#include "scheduler/slot_planner.h"

namespace millrace::scheduler {
namespace {

std::string KeyOf(const ScheduleRow& row) {
  return fmt::format("{}\x1f{}\x1f{}", row.org.value(), row.pipeline, row.spec.name);
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
  entry.reset(new Entry(std::move(row), std::move(cron)));
  Place(*entry, entry->cron_.Next(entry->row_.watermark));  // a paused one too: its slots are decided as skipped
  return {};
}

void ScheduleBook::Clear() {
  order_.clear();
  entries_.clear();
}

std::vector<ScheduleBook::Entry*> ScheduleBook::Due(WallTime now) {
  std::vector<Entry*> due;
  for (const auto& [next, entry] : order_) {
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
  return order_.begin()->first;
}

void ScheduleBook::Place(Entry& entry, std::optional<WallTime> next) {
  if (entry.next_) order_.erase({*entry.next_, &entry});
  entry.next_ = next;
  if (next) order_.emplace(*next, &entry);
}

}  // namespace millrace::scheduler
