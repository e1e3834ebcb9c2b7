// Runs, jobs and backfills as people name them: by a whole id, by its beginning, or as `last`.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"

namespace millrace::cli {

// Whether FindRun could mean a run by it. kInvalidArgument otherwise.
Result<void> CheckRunName(std::string_view text);

// `text`: an id, its first 4 or more hexadecimal digits (with or without hyphens), or "last", the newest run. `pipeline`: only
// runs of it, empty: of any. kInvalidArgument: not of these forms, or several runs begin so, which the message lists.
// kNotFound: none.
Result<RunId> FindRun(Ledger& ledger, std::string_view text, const std::string& pipeline, MonoTime deadline);

// The same for jobs and backfills. A whole id is taken as it is: a job that only the queue has is in no list. Of a beginning
// that more of them share than one list has (500 backfills), the newest count.
Result<void> CheckJobName(std::string_view text);
Result<JobId> FindJob(Ledger& ledger, std::string_view text, MonoTime deadline);
Result<void> CheckBackfillName(std::string_view text);
Result<BackfillId> FindBackfill(Ledger& ledger, std::string_view text, MonoTime deadline);

// The smallest id that is greater: `before` of a list whose first item may be this one. Nothing after the greatest.
std::optional<RunId> IdAfter(RunId run);

// How many characters of these ids tell them apart; at least those that hold their time to the millisecond.
std::size_t ShortIdLength(const std::vector<RunId>& runs);

}  // namespace millrace::cli
