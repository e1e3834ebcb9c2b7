// What a scheduler uses of a ledger, in memory: the leader's lease, pipeline versions, schedules with revisions and watermarks,
// slots with their unique key. The base of MemoryLedger, which has runs and jobs too. Not thread-safe.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/ledger/ledger.h"
#include "tests/support/no_ledger.h"

namespace millrace::test {

enum class LedgerFault : std::uint8_t { kNone, kUnavailable, kAppliedButUnknown, kNotAppliedButUnknown };

class MemorySchedules {  // the rows; times come in
 public:
  using SlotId = std::tuple<OrgId, std::string, std::string, WallTime, std::uint32_t>;
  static SlotId IdOf(const SlotKey& k) { return {k.org, k.pipeline, k.schedule, k.slot, k.generation}; }

  std::map<SlotId, SlotRow> slots;
  std::uint64_t terms() const { return term_; }

  Ledger::Leadership TryLead(OwnerId candidate, std::string_view name, Millis ttl, WallTime now) {
    const bool mine = leader_ == candidate;
    const bool clock_was_set_back = lease_end_ > now + 2 * ttl;
    if (term_ > 0 && !mine && lease_end_ > now && !clock_was_set_back) return {false, term_, leader_name_};
    if (!mine || term_ == 0) ++term_;
    leader_ = candidate;
    leader_name_ = name;
    lease_end_ = now + ttl;
    return {true, term_, leader_name_};
  }

  PipelineVersion Apply(const Pipeline& pipeline, std::string_view definition, std::string_view source,
                        std::string_view base_dir, OrgId org, WallTime now) {
    std::vector<PipelineVersion>& all = versions_[{org, pipeline.name}];
    if (all.empty() || all.back().definition != definition || all.back().base_dir != base_dir)
      all.push_back({org, pipeline.name, static_cast<std::int64_t>(all.size()) + 1, std::string(source),
                     std::string(definition), std::string(base_dir), now});
    for (const ScheduleSpec& spec : pipeline.schedules) Put(spec, org, pipeline.name, all.back().version, now);
    for (auto& [key, row] : rows_)
      if (row.org == org && row.pipeline == pipeline.name && row.active && row.version < all.back().version)
        row.active = false, row.revision = ++revision_;
    return all.back();
  }

  std::vector<ScheduleRow> All(std::optional<OrgId> org) const {
    std::vector<ScheduleRow> all;
    for (const auto& [key, row] : rows_)
      if (row.active && (!org || row.org == *org)) all.push_back(row);
    return all;
  }
  std::vector<ScheduleRow> Changed(std::int64_t after_revision, std::uint32_t limit) const {
    std::vector<ScheduleRow> all;
    for (const auto& [key, row] : rows_)
      if (row.revision > after_revision) all.push_back(row);
    std::ranges::sort(all, {}, &ScheduleRow::revision);
    if (all.size() > limit) all.resize(limit);
    return all;
  }
  std::vector<PipelineVersion> Versions(OrgId org, std::span<const std::string> pipelines) const {
    std::set<std::pair<std::string, std::int64_t>> wanted;
    for (const auto& [key, row] : rows_)
      if (row.active && row.org == org && std::ranges::find(pipelines, row.pipeline) != pipelines.end())
        wanted.emplace(row.pipeline, row.version);
    std::vector<PipelineVersion> all;
    for (const auto& [name, number] : wanted) {
      all.push_back(versions_.at({org, name}).at(static_cast<std::size_t>(number - 1)));
      all.back().source.clear();
    }
    return all;
  }

  // False: the slot was decided before.
  bool Decide(const SlotRow& slot) { return slots.emplace(IdOf(slot.key), slot).second; }
  void MoveWatermark(const FireBatch::Watermark& w) {
    if (const auto row = rows_.find({w.org, w.pipeline, w.schedule}); row != rows_.end())
      row->second.watermark = std::max(row->second.watermark, w.to);
  }

 private:
  // A new, revived or re-timed schedule decides slots after now only; any other keeps its watermark.
  void Put(const ScheduleSpec& spec, OrgId org, const std::string& pipeline, std::int64_t version, WallTime now) {
    ScheduleRow& row = rows_[{org, pipeline, spec.name}];
    if (row.revision > 0 && row.active && row.version == version && row.spec == spec) return;
    const bool same_slots = row.revision > 0 && row.active && row.spec.cron == spec.cron &&
                            row.spec.timezone == spec.timezone && row.spec.dst == spec.dst && row.spec.start == spec.start &&
                            row.spec.end == spec.end;
    if (!same_slots) row.watermark = std::max(row.watermark, now);
    row.org = org;
    row.pipeline = pipeline;
    row.spec = spec;
    row.version = version;
    row.active = true;
    row.revision = ++revision_;
  }

  OwnerId leader_;
  std::string leader_name_;
  WallTime lease_end_{};
  std::uint64_t term_ = 0;
  std::int64_t revision_ = 0;
  std::map<std::tuple<OrgId, std::string, std::string>, ScheduleRow> rows_;
  std::map<std::pair<OrgId, std::string>, std::vector<PipelineVersion>> versions_;
};

class MemoryScheduleLedger : public NoLedger {
 public:
  explicit MemoryScheduleLedger(const Clock& clock) : clock_(clock) {}

  std::function<LedgerFault()> fault;  // asked before every call; empty: none
  MemorySchedules schedules;

  Result<WallTime> Now(MonoTime) override {
    MILLRACE_TRY(Up());
    return clock_.WallNow();
  }
  Result<PipelineVersion> ApplyPipeline(const Pipeline& pipeline, std::string_view definition, std::string_view source,
                                        std::string_view base_dir, OrgId org, MonoTime) override {
    MILLRACE_TRY(Up());
    return schedules.Apply(pipeline, definition, source, base_dir, org, clock_.WallNow());
  }
  Result<Leadership> TryLead(OwnerId candidate, std::string_view name, Millis ttl, MonoTime) override {
    MILLRACE_TRY(Up());
    return schedules.TryLead(candidate, name, ttl, clock_.WallNow());
  }
  Result<std::vector<ScheduleRow>> Schedules(std::optional<OrgId> org, MonoTime) override {
    MILLRACE_TRY(Up());
    return schedules.All(org);
  }
  Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t after, std::uint32_t limit, MonoTime) override {
    MILLRACE_TRY(Up());
    return schedules.Changed(after, limit);
  }
  Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId org, std::span<const std::string> pipelines, MonoTime) override {
    MILLRACE_TRY(Up());
    return schedules.Versions(org, pipelines);
  }
  Result<std::vector<SlotRow>> Slots(OrgId org, std::string_view pipeline, std::uint32_t limit, MonoTime) override {
    MILLRACE_TRY(Up());
    std::vector<SlotRow> newest;
    for (auto it = schedules.slots.rbegin(); it != schedules.slots.rend() && newest.size() < limit; ++it)
      if (it->second.key.org == org && it->second.key.pipeline == pipeline) newest.push_back(it->second);
    return newest;
  }
  Result<std::vector<BackfillState>> Backfills(const BackfillFilter&, MonoTime) override {
    MILLRACE_TRY(Up());
    return std::vector<BackfillState>{};  // there are none
  }

 protected:
  Result<void> Up() {
    if (fault && fault() == LedgerFault::kUnavailable) return Fail(ErrorCode::kUnavailable, "down");
    return {};
  }

  const Clock& clock_;
};

}  // namespace millrace::test
