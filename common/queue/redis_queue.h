// JobQueue and Inbox over Redis 6.2 or newer. Layout, per shard, under the hash tag {prefix:shard}: epoch (string), lines (set
// of names of ordinary lines), kept_lines (zset of those of kept ones behind their org, all of score 0: in this order),
// l:<line> (list of id + body; of a kept line also blocks of many), due (zset of line length + line + id + body, score run_at
// in µs), flight (set of ids), kept (hash of what kept lines have in flight: by id, or blocks by their name, also of several
// lines), inbox (list of at most one mark). Every change is one run of a script that compares the epoch first.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/queue/job_queue.h"

namespace millrace {

struct RedisQueueOptions {
  std::string endpoint;             // see redis::ParseEndpoint
  std::string prefix = "millrace";  // of every key
  Millis operation_timeout{3000};   // of one Execute, Depth or Ring
  const Clock* clock = nullptr;     // nullptr: the system clock
};

struct RedisServerInfo {
  std::string version, run_id, role, maxmemory_policy;
  bool append_only = false;
  std::vector<std::string> warnings;  // what an operator should change; empty is good
};

// When the server is out of memory (maxmemory with noeviction), Enqueue is kUnavailable and nothing of it is applied; all
// others go on, so that what is there drains.
//
// After an unknown outcome (kMaybeApplied) every operation on its shard is kWiped until it is taken anew.
//
// After a lost connection the next call connects again. When the server's run_id has changed by then, its state may have been
// rolled back: operations on shards that this object took before are kWiped until they are taken anew.
class RedisQueue : public JobQueue {
 public:
  // kUnsupported: server older than 6.2. kRejected: a maxmemory policy that evicts keys, or the login is refused.
  static Result<std::unique_ptr<RedisQueue>> Open(const RedisQueueOptions& options, MonoTime deadline);
  // The server as it was when last connected.
  virtual const RedisServerInfo& Describe() const = 0;
};

// Ring may be called by any thread; Wait by one, on a connection of its own. Connects on use and again after a failure.
Result<std::unique_ptr<Inbox>> OpenRedisInbox(const RedisQueueOptions& options);

}  // namespace millrace
