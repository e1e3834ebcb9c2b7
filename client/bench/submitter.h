// The client of a benchmark: makes jobs and sends them, as fast as the broker accepts them or at a fixed rate.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "client/bench/histogram.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace::bench {

struct SubmitOptions {
  std::string endpoint;  // of the broker
  std::string kind, queue;
  Durability durability = Durability::kLedger;
  std::uint64_t jobs = 1;
  std::uint64_t warmup = 0;       // the first so many carry no send time: nobody measures their latency
  std::uint32_t batch = 1;        // jobs of one message, at most
  std::uint32_t outstanding = 1;  // closed loop: messages that wait for their answer
  double rate = 0;                // jobs per second, open loop; 0: closed loop
  bool from_send = false;         // open loop: latency counts from when a message is made, not from when it was to be made
  std::size_t payload_bytes = 100;
  // Closed loop: told how many jobs were accepted, it says how many may have been sent by now; asked once a millisecond at
  // least. A message waits until all of it may go. Empty: all.
  std::function<std::uint64_t(std::uint64_t accepted)> allowed;
  std::uint32_t orgs = 1, limit_keys = 0, priorities = 1;  // jobs are dealt out to them in turn; 0 keys: none
};

struct SubmitResult {
  std::uint64_t sent = 0, accepted = 0, duplicates = 0;
  MonoTime first_sent{}, last_accepted{};
  JobId first, last;  // smallest and largest id
  Histogram accept;   // from the send time, as above, to the broker's "accepted"
};

// Returns when every job was answered. The intended send time of job i is start + i / rate (open loop), whatever happens to
// earlier ones, or the moment its message is made (closed loop). kTimedOut: no answer for 30 s, or nothing more was allowed for
// so long; kRejected with the broker's own words when it refuses. `result` holds what happened until then; one that holds an
// earlier call's is continued: `jobs` is how many it shall have sent in the end (closed loop only).
Result<void> SubmitAll(const SubmitOptions& options, SubmitResult& result);

}  // namespace millrace::bench
