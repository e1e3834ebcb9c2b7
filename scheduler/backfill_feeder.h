// Feeds the runs of backfills: each turn looks how many of a backfill's runs are active and adds as many as it still may.
// What is stored (the backfill's row, its position, its slots) is all there is: a feeder that is killed leaves nothing to
// repair, and two at once feed each slot once, because the slot's key is unique.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/ledger/ledger.h"
#include "common/model/backfill.h"
#include "common/model/cron.h"

namespace millrace::scheduler {

// The slots that a backfill is about, page by page in its order. Pure.
class BackfillRange {
 public:
  BackfillRange(const BackfillRow& row, const BackfillOptions& options, CronSchedule cron);
  // The next slots from `position` on (BackfillState::position), at most `limit`.
  std::vector<WallTime> Page(WallTime position, std::size_t limit) const;
  // The position when every slot up to and with `slot` is decided.
  WallTime After(WallTime slot) const { return newest_first_ ? slot : slot + Micros{1}; }

 private:
  WallTime from_, to_;  // half-open
  bool newest_first_;
  CronSchedule cron_;
};

// Whether a slot with these rows (all of one slot, by generation) gets a run in `generation`: never two, and else as
// `reprocess` says of all its other runs, those of other backfills included.
bool NeedsRun(std::span<const SlotHistory> rows, std::uint32_t generation, Reprocess reprocess);

// Not thread-safe. The ledger, clock and ids must outlive it.
class BackfillFeeder {
 public:
  BackfillFeeder(Ledger& ledger, const Clock& clock, IdGenerator& ids) : ledger_(ledger), clock_(clock), ids_(ids) {}

  struct Turn {
    std::size_t unended = 0;  // backfills
    bool moved = false;       // something was fed, passed over or found ended
    std::set<OrgId> fed;      // orgs that got runs
  };
  // One turn of every backfill that has not ended, until `enough`. `now`: the ledger's time. Errors are the ledger's.
  Result<Turn> Feed(WallTime now, MonoTime enough, MonoTime deadline);

 private:
  struct Source;  // options, range and pipeline of a backfill, parsed once
  Result<const Source*> SourceOf(const BackfillRow& row, MonoTime deadline);
  Result<void> FeedOne(const BackfillState& state, WallTime now, Turn& turn, MonoTime deadline);
  Result<void> Stop(const BackfillState& state, WallTime now, Turn& turn, MonoTime deadline);
  Result<bool> StillThere(const BackfillState& state, MonoTime deadline);
  SlotDecision Decide(const BackfillRow& row, const Source& source, WallTime slot, WallTime now);

  Ledger& ledger_;
  const Clock& clock_;
  IdGenerator& ids_;
  std::map<BackfillId, std::shared_ptr<const Source>> sources_;
  std::size_t first_ = 0;  // who is first in the next turn
};

}  // namespace millrace::scheduler
