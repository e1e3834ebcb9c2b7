// After the rounds: what must hold, by the history checker (tests/checker), and what belongs to the rounds alone.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/observer.h"
#include "tests/chaos/rounds.h"
#include "tests/chaos/submitter.h"
#include "tests/checker/check.h"

namespace millrace::chaos {

struct Violation {
  std::string code;  // those of tests/checker/check.h; run_failed, died, harness
  std::string text;
};

struct Findings {
  std::vector<Violation> violations;
  // Counts.
  checker::Report report;
  std::int64_t runs_succeeded = 0, attempts_lost = 0, lost = 0, doubled = 0, stale_refused = 0;
  std::int64_t long_freezes = 0, long_freezes_of_brokers = 0;  // kLongFreeze and kLongFreezeOfBroker or more
  std::int64_t in_window = 0;                                  // kills between a load's first row and its recorded outcome
  std::map<std::string, std::map<std::string, int>> kills;     // victim -> phase -> how many
  std::map<std::string, std::vector<Millis>> service;          // victim -> kill until a job submitted after it has ended
  std::map<std::string, std::vector<Millis>> work;             // victim -> kill until the load that was under way has ended
  std::map<std::string, std::vector<Millis>> granted;          // worker, freeze -> until that load was granted again
  std::map<MonoTime, Millis> granted_after;                    // kill of a worker -> how long until then
  std::vector<Millis> taken;                                   // kill of a broker until a shard was taken

  bool Has(std::string_view code) const;
};

// An error: a question could not be asked at all. `cancelled`: runs and jobs that somebody asked to cancel; they may have ended
// so, all others must have succeeded.
Result<Findings> Check(Cluster& cluster, Observer& observer, const Rounds& rounds, const std::map<JobId, Accepted>& accepted,
                       const std::set<Uuid>& cancelled = {});

// For people.
std::string Report(const Findings& findings, const Rounds& rounds);

}  // namespace millrace::chaos
