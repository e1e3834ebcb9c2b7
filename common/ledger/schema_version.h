// Whether this program can read a ledger, for those who only look (Ledger::Migrate is for those who write).
#pragma once

#include <string>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace {

// kUnsupported: the ledger in this SQLite file is of a newer version than this program. kNotFound: the file has no ledger.
// Changes nothing.
Result<void> CheckSqliteLedgerVersion(const std::string& path, const Clock& clock, MonoTime deadline);

}  // namespace millrace
