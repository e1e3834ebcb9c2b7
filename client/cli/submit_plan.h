// How a run reaches its broker, from any command.
#pragma once

#include "client/cli/broker_client.h"
#include "common/ledger/ledger.h"

namespace millrace::cli {

// Through the broker, or through the ledger when it is too large for a message, or when this broker does not serve its shard:
// the one that does finds it there within seconds. `watch`: updates are asked for, too. Errors: those of both.
Result<void> SubmitPlan(BrokerClient& client, Ledger& ledger, const RunPlan& plan, bool watch, MonoTime deadline);

}  // namespace millrace::cli
