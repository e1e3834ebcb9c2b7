// Cancelling, for every command that does it.
#pragma once

#include <vector>

#include "client/cli/context.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/wire/messages.h"

namespace millrace::cli {

// Through the broker or, when none answers, through the ledger. One answer per item, in their order. With `wait`, returns when
// every run of the items that is being cancelled has ended.
Result<std::vector<wire::CancelReply::Item>> CancelItems(Context& context, Ledger& ledger, wire::Cancel cancel, bool wait);

}  // namespace millrace::cli
