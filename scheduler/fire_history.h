// Ledger::Fire as a scheduler asks for it, in the history that the checker reads (common/base/history.h).
#pragma once

#include "common/base/ids.h"
#include "common/ledger/ledger.h"

namespace millrace::scheduler {

// ledger.Fire, and when a history is written, the operation `fire` of "scheduler:<who>": invoke with the slots and their runs,
// then ok with those that were not decided before, fail (nothing of it is in the ledger) or unknown.
Result<FireResult> FireRecorded(Ledger& ledger, const FireBatch& batch, OwnerId who, MonoTime deadline);

}  // namespace millrace::scheduler
