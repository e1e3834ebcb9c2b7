// What a queue entry carries of a single job: its specification and counters, so that the broker keeps nothing in memory for
// a job that waits. Entries of a run's jobs are empty: the run coordinator has them. Private to the broker: the queue is
// emptied at every takeover, so no other version ever reads it.
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

struct JobEntry {
  JobSpec spec;
  Counters counters;
  friend bool operator==(const JobEntry&, const JobEntry&) = default;
};

std::string EncodeEntry(const JobSpec& spec, const Counters& counters);
Result<JobEntry> DecodeEntry(std::string_view bytes);  // kCorrupt: not what EncodeEntry made

}  // namespace millrace
