// Cancelling, for every command that does it.
#pragma once

#include <optional>
#include <vector>

#include "client/cli/context.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/wire/messages.h"

namespace millrace::cli {

struct CancelAnswers {
  // One per item, in their order; after an error those of the first, which were asked.
  std::vector<wire::CancelReply::Item> items;
  // Why the ledger answered in the place of the broker that serves the org. Of jobs that only that one's queue has it knows
  // nothing, and calls them not found.
  std::optional<Error> unasked;
};

// Through the broker or, when none that serves the org answers, through the ledger. With `wait`, returns when every run of the
// items that is being cancelled has ended.
Result<void> CancelItems(Context& context, Ledger& ledger, const wire::Cancel& cancel, bool wait, CancelAnswers& answers);

}  // namespace millrace::cli
