#include "common/ledger/schema_version.h"

#include "common/drivers/sqlite.h"
#include "common/ledger/migrations.h"

namespace millrace {

Result<void> CheckSqliteLedgerVersion(const std::string& path, const Clock& clock, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(auto database, sqlite::Database::Open(path, {.access = sqlite::Access::kReadOnly, .clock = &clock}));
  database.SetDeadline(deadline);
  MILLRACE_TRY_ASSIGN(
      const std::int64_t tables,
      database.QueryInt64("select count(*) from sqlite_schema where type = 'table' and name = 'schema_version'"));
  if (tables == 0)
    return Fail(ErrorCode::kNotFound, "there is no ledger in {}: run a pipeline first, or give another --home", path);
  MILLRACE_TRY_ASSIGN(const std::int64_t found, database.QueryInt64("select coalesce(max(version), 0) from schema_version"));
  const auto known = static_cast<std::int64_t>(ledger::SqliteMigrations().size());
  if (found > known)
    return Fail(ErrorCode::kUnsupported, "ledger is of version {}, this program knows up to {}: use a newer millrace", found,
                known);
  return {};
}

}  // namespace millrace
