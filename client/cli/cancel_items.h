// Cancelling, for every command that does it.
#pragma once

#include <vector>

#include "client/cli/context.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/wire/messages.h"

namespace millrace::cli {

// Through the broker or, when none answers, through the ledger. `answers`: one per item, in their order; after an error those
// of the first items, which were asked. With `wait`, returns when every run of the items that is being cancelled has ended.
Result<void> CancelItems(Context& context, Ledger& ledger, const wire::Cancel& cancel, bool wait,
                         std::vector<wire::CancelReply::Item>& answers);

}  // namespace millrace::cli
