// The scheduler process: turns due slots into slot, run, jobs and outbox rows (one ledger transaction) and rings the inbox of
// the shard. Any number of schedulers may run: the slot's unique key is the guarantee, the leader lease only spares work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <tuple>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/ledger/ledger.h"
#include "common/model/cron.h"
#include "common/queue/job_queue.h"

namespace millrace::scheduler {

struct SchedulerOptions {
  std::string name = "scheduler";
  OwnerId id;  // of this process start
  Millis lead_ttl{3000};
  std::uint16_t shard_count = 1;
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

  // Decides every due slot. Returns how long nothing can be due (at most kScheduleReloadInterval). Errors are the
  // ledger's; nothing is half-done, the next pass decides the same slots.
  Result<Millis> Pass();

  // Passes until RequestStop; a failing ledger is retried with backoff and logged once per outage.
  void Run();
  void RequestStop();

  bool leading() const { return leading_; }

 private:
  struct Compiled;  // a pipeline version and its schedule, parsed once
  Result<std::shared_ptr<const Compiled>> Compile(const ScheduleRow& row, MonoTime deadline);
  void LogSchedules(const std::vector<ScheduleRow>& schedules, WallTime now) const;
  Result<void> Decide(const ScheduleRow& row, WallTime now, FireBatch& batch, std::set<ShardId>& shards,
                      std::optional<WallTime>& next, MonoTime deadline);

  SchedulerOptions options_;
  Ledger& ledger_;
  Inbox& inbox_;
  const Clock& clock_;
  IdGenerator& ids_;
  bool leading_ = false;
  std::uint64_t lead_epoch_ = 0;
  std::map<std::tuple<OrgId, std::string, std::int64_t>, std::shared_ptr<const Compiled>> compiled_;
  std::set<std::tuple<OrgId, std::string, std::int64_t>> complained_;  // broken versions, named once in the log

  std::mutex stop_mutex_;
  std::condition_variable stop_signal_;
  bool stop_ = false;
};

}  // namespace millrace::scheduler
