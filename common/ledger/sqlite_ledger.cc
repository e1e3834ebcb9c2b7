#include "common/ledger/sql_ledger.h"

namespace millrace {

Result<std::unique_ptr<Ledger>> OpenSqliteLedger(const LedgerOptions& options, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(auto store, ledger::OpenSqliteStore(options, deadline));
  return std::make_unique<ledger::SqlLedger>(std::move(store), options);
}

}  // namespace millrace
