// The scheduler process: turns due slots into slot, run, jobs and outbox rows (one ledger transaction) and rings the inbox of
// the shard. Any number of schedulers may run: the slot's unique key is the guarantee, the leader lease only spares work.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/ledger/ledger.h"
#include "common/queue/job_queue.h"
#include "scheduler/backfill_feeder.h"
#include "scheduler/fire_lane.h"
#include "scheduler/run_planner.h"
#include "scheduler/schedule_book.h"
#include "scheduler/slot_planner.h"

namespace millrace::scheduler {

struct SchedulerOptions {
  std::string name = "scheduler";
  OwnerId id;  // of this process start
  Millis lead_ttl{3000};
  std::uint16_t shard_count = 1;
  OpenLedger open_ledger = {};  // another connection to the same ledger, which herds use too; may be empty
};

// Resumes the schedules of a pipeline: decides what is due as skipped ("paused"), so that nothing of the pause is caught up
// with, also when no scheduler ran meanwhile, then lets them fire again. The number of slots it decided; 0 when the pipeline
// was not paused. kNotFound: it has no schedule.
Result<std::size_t> ResumeSchedule(Ledger& ledger, OrgId org, std::string_view pipeline, MonoTime deadline);

// Not thread-safe but for RequestStop. Run() blocks; Pass() is one turn of its loop, for tests.
class Scheduler {
 public:
  Scheduler(SchedulerOptions options, Ledger& ledger, Inbox& inbox, const Clock& clock, IdGenerator& ids);
  ~Scheduler();

  // Decides due slots for about a third of the lease's time, then feeds backfills for as long. Returns how long nothing can
  // be due (at most kScheduleReloadInterval; 0: some still are). Errors are the ledger's; nothing is half-done, the next pass
  // decides the same slots. It costs what is due and what was changed since the last one, not what there is.
  Result<Millis> Pass();

  // Passes until RequestStop; a failing ledger is retried with backoff and logged once per outage.
  void Run();
  void RequestStop();

  bool leading() const { return leading_; }

 private:
  using Entries = std::span<ScheduleBook::Entry* const>;
  using Name = std::pair<OrgId, std::string>;  // of a pipeline
  struct Decided {
    ScheduleBook::Entry* entry;
    WallTime watermark;
  };
  struct Batch {  // what has been decided and is to be fired, or is
    FireBatch rows;
    std::vector<Decided> decided;
    void Clear();
  };

  Result<bool> Lead(MonoTime deadline);
  Result<bool> ReadChanges(MonoTime enough, MonoTime deadline);            // false: there are more
  Result<bool> FireDue(WallTime now, MonoTime enough, MonoTime deadline);  // false: not all was decided
  Result<bool> FireAll(Entries due, WallTime now, MonoTime enough, MonoTime deadline);
  Result<bool> PlanAhead(WallTime now, MonoTime enough, MonoTime deadline);  // false: there is more
  Result<std::set<Name>> BusyOnes(Entries due, MonoTime deadline);
  bool IsPlanned(const ScheduleBook::Entry& entry, WallTime now) const;
  Result<bool> Decide(ScheduleBook::Entry& entry, bool planned, bool busy, WallTime now, Batch& batch);
  Result<SlotDecision> DecideSlot(ScheduleBook::Entry& entry, const PlannedSlot& slot, WallTime now);
  Result<void> Fire(Batch& batch, bool more, MonoTime deadline);
  Result<void> FinishLane();
  void Fired(Batch& batch, const FireResult& fired);
  Result<void> MoveWatermarks(MonoTime deadline);
  void Introduce() const;  // what is scheduled, in the log
  void Ring(const std::set<ShardId>& shards);
  void RingFor(const FireBatch& batch);
  // The ledger's clock now, as of the last time it was asked for.
  WallTime LedgerNow() const { return ledger_now_ + (clock_.Now() - ledger_asked_); }

  SchedulerOptions options_;
  Ledger& ledger_;
  Inbox& inbox_;
  const Clock& clock_;
  IdGenerator& ids_;
  bool leading_ = false;
  bool introduce_ = false;  // once per term
  std::uint64_t lead_epoch_ = 0;
  ScheduleBook book_;
  std::int64_t revision_ = kNoRevision;  // up to which book_ is known
  RunPlanner planner_;
  WallTime ledger_now_{};
  MonoTime ledger_asked_{};
  std::optional<FireLane> lane_;  // a second connection, if there may be one
  Batch in_lane_;
  bool herd_ = false;  // more is due than one batch holds
  // Of slots that are in the ledger. A slot's row says that it is decided: these only spare the look at it, and come when the
  // herd is through.
  std::vector<FireBatch::Watermark> watermarks_;
  MonoTime watermarks_since_{};  // the oldest of them
  BackfillFeeder feeder_;
  Millis backfill_wait_{0};

  static constexpr std::int64_t kNoRevision = -1;

  std::mutex stop_mutex_;
  std::condition_variable stop_signal_;
  bool stop_ = false;
};

}  // namespace millrace::scheduler
