// A worker, and its right to a job, as the dispatcher keeps them. Plain values.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "broker/line_index.h"
#include "broker/lines.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace::dispatch {

struct Lease {
  ShardId shard;
  std::shared_ptr<const JobSpec> spec;
  Counters counters;  // before this attempt
  Token token;
  WorkerId worker;
  std::uint64_t beat = 0;  // the worker's beat that last listed it
  MonoTime counted_at{};   // when the grant was sent, or was last found missing in a beat
  std::uint8_t missed = 0;
  bool listed = false;     // some beat listed it: the grant arrived
  bool fence = false;      // granted to raise the fence of a cancelled job, not to work
  bool cut = false;        // its timeout is what was left until the job's deadline
  bool ending = false;     // its end is on the way into the ledger
  bool counted = false;    // against the limits of its queue: what came from a claim is
  LineIndex::Slot slot{};  // and so where, unless it has to be looked for
  bool kept = false;       // only the queue has it: it came from a kept line
  bool lost = false;       // ending, because its worker is gone
  bool presumed = false;   // a former owner's attempt that may run: no worker has said so yet
  Token last_token{};      // presumed: of the job's latest attempt row
  static constexpr std::uint32_t kNowhere = UINT32_MAX;
  std::uint32_t place = kNowhere;    // in its worker's leases
  std::int64_t rows = 0, bytes = 0;  // how far it is, as it said last
};

struct Worker {
  WorkerId id;
  wire::PeerId peer;
  std::string name;
  WorkerReach reach;
  std::shared_ptr<LineIndex::View> view;
  std::uint32_t concurrency = 1;
  std::uint64_t credit_limit = 0;  // as the worker counts
  std::uint64_t granted = 0;       // grants since its Hello that it has taken or will take
  std::uint32_t reserved = 0;      // promised to claims that are under way
  std::vector<Lease*> leases;      // that are not ending; Hold and Drop alone change it
  MonoTime heard{};
  std::uint64_t beats = 0;
  bool draining = false, unreachable = false;
  std::vector<wire::Grant::Job> grants;  // of this flush
  std::uint64_t Credit() const;
  void Hold(Lease& lease);
  void Drop(Lease& lease);  // nothing, when it does not hold it
};

}  // namespace millrace::dispatch
