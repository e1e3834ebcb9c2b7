// What a queue entry carries of a single job: its specification and counters, so that the broker keeps nothing in memory for
// a job that waits. Entries of a run's jobs are empty: the run coordinator has them. Private to the broker, but entries of
// `durability: redis` outlive it: a later version must read what an earlier one wrote (the version is the first byte).
//
// An entry says what its id and its line do not: a job with defaults is its payload and 5 to 7 bytes more.
#pragma once

#include <string>
#include <string_view>

#include "broker/lines.h"
#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

struct JobEntry {
  JobSpec spec;
  Counters counters;
  bool check = false;  // it may be in the queue twice, or have ended: the ledger is asked before it is granted
  friend bool operator==(const JobEntry&, const JobEntry&) = default;
};

// For an entry that waits in `line` under `spec.id`. Never empty.
std::string EncodeEntry(const JobSpec& spec, const Counters& counters, const LineKey& line, bool check = false);
// kCorrupt: not what EncodeEntry made.
Result<JobEntry> DecodeEntry(std::string_view bytes, const JobId& id, const LineKey& line);
// The same, where it is to stay. REQUIRES: `entry` is as it was made.
Result<void> DecodeEntryInto(JobEntry& entry, std::string_view bytes, const JobId& id, const LineKey& line);

}  // namespace millrace
