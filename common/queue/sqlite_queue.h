// JobQueue over one SQLite file, and the Inbox of a single process: what `millrace up` uses instead of Redis.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/queue/job_queue.h"

namespace millrace {

struct SqliteQueueOptions {
  std::string path;
  // False, the default, is WAL with synchronous NORMAL: no fsync per commit; a power loss may lose the last commits but not
  // the file, and the owner rebuilds the queue from the ledger anyway. True: FULL.
  bool durable = false;
};

// Opens or creates the file. kCorrupt: delete the file; it is rebuilt from the ledger. One Execute is one transaction: when
// the store itself fails (disk full, locked), every operation of it fails and nothing was applied.
Result<std::unique_ptr<JobQueue>> OpenSqliteQueue(const SqliteQueueOptions& options);

// Those of `ids` that kept lines of `org` (OrgOfLine) have in the file, waiting, due later or in flight; for who does not own
// it. Nothing is written, and a file that is not there is not made: it has none.
Result<std::vector<JobId>> KeptInSqliteQueue(const std::string& path, std::string_view org, std::span<const JobId> ids);

// Rings within a process. Thread-safe.
class LocalInbox final : public Inbox {
 public:
  Result<void> Ring(ShardId shard) override;
  Result<std::vector<ShardId>> Wait(std::span<const ShardId> shards, Millis timeout) override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<ShardId> rung_;  // guarded by mutex_
};

}  // namespace millrace
