// What the stores of an installation say about themselves: sizes, versions, durability settings, recorded outcomes. Read-only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/bench/installation.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace::bench {

struct StoreSizes {
  std::int64_t queue_bytes = 0;   // Redis: used_memory_dataset; SQLite: the files
  std::int64_t ledger_bytes = 0;  // tables and indexes of the ledger; SQLite: the files
};
Result<StoreSizes> ProbeSizes(const Installation& at);

// Outcome rows of jobs between two ids that were written for workers whose name starts with `worker`.
struct OutcomeCount {
  std::uint64_t rows = 0, succeeded = 0, redelivered = 0;  // redelivered: it took more than one delivery
};
Result<OutcomeCount> CountOutcomes(const Installation& at, JobId first, JobId last, const std::string& worker);

// Outcome rows of all jobs of these runs; `repeated`: jobs that were delivered more than once.
struct RunOutcomeCount {
  std::uint64_t rows = 0, succeeded = 0, repeated = 0;
};
Result<RunOutcomeCount> CountRunOutcomes(const Installation& at, std::span<const RunId> runs);

// Name and value, in order: versions of the servers and what they do for durability.
Result<std::vector<std::pair<std::string, std::string>>> ProbeServers(const Installation& at);
// The same for this machine: processor, cores, memory, kernel, file system of temporary files, load average.
std::vector<std::pair<std::string, std::string>> ProbeMachine();

}  // namespace millrace::bench
