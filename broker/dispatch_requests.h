// What the dispatcher keeps of a request or a plan until it can go on with it. Plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "broker/entry_codec.h"
#include "broker/lines.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/ledger/ledger.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace {

struct CancelRequest {
  wire::PeerId peer;  // empty: of the dispatcher itself, whose request is durable already
  wire::Cancel message;
  ShardHold hold;
  wire::CancelReply reply = {};                    // once the states are known
  std::unordered_map<JobId, JobEntry> found = {};  // in kept lines: out of them, in flight
  std::size_t searching = 0;                       // ids that are still looked for there
  bool searched = false;
};

struct Parked {  // its shard is being taken
  wire::PeerId peer;
  wire::Message message;
  MonoTime until;
};

struct ClaimPlan {
  ShardId shard;
  std::string line;
  LineKey key;
  std::uint32_t total = 0;
  std::vector<std::pair<WorkerId, std::uint32_t>> split;
};

}  // namespace millrace
