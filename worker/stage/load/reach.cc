#include <filesystem>
#include <utility>

#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"
#include "worker/stage/files.h"
#include "worker/stage/load/load.h"
#include "worker/stage/load/sinks.h"

namespace millrace {
namespace {

StageFailure Unreachable(const LoadSpec& spec, load::Failure failure) {
  return {failure.error_class, fmt::format("load into {}: {}", spec.table, failure.message), failure.retryable};
}

// The log and its index are made by the first connection and removed by the last, which takes rights on the whole folder; the
// ledger and the audit key may lie there. With one connection open from before the wall on, they stay what they are.
Result<std::shared_ptr<void>> Hold(const std::string& path) {
  std::error_code ignored;
  const bool was_there = std::filesystem::exists(path + "-wal", ignored);
  sqlite::Options options;
  options.busy_timeout = load::kSqlitePatience;
  MILLRACE_TRY_ASSIGN(sqlite::Database opened, sqlite::Database::Open(path, options));
  auto database = std::make_shared<sqlite::Database>(std::move(opened));
  MILLRACE_TRY(database->QueryInt64("select count(*) from sqlite_master"));  // opens both
  // Behind the wall SQLite cannot sync the folder that names its new files.
  if (!was_there) MILLRACE_TRY(SyncDirectory(ParentOf(path)));
  return std::shared_ptr<void>(std::move(database));
}

StageOutcome<LoadReach> ReachOfSqlite(const StageOrder& order, const LoadSpec& spec) {
  LoadReach out;
  auto hold = Hold(order.connection->dsn);
  if (!hold) return std::unexpected(Unreachable(spec, load::Failure(std::move(hold.error()))));
  out.hold = std::move(*hold);
  std::error_code ignored;
  const std::string path = std::filesystem::weakly_canonical(order.connection->dsn, ignored).string();  // links lead to it
  for (const char* suffix : {"", "-wal", "-shm"}) out.write_files.push_back(path + suffix);
  return out;
}

}  // namespace

StageOutcome<LoadReach> ReachOfLoad(const StageOrder& order) {
  const auto& spec = std::get<LoadSpec>(order.task.stage.work);
  LoadReach out;
  if (!order.connection) {
    const std::filesystem::path target = load::FileTarget(order, spec), side = load::FileSide(target);
    MILLRACE_TRY(EnsureDirectory(side));
    out.name_folders.push_back(target.parent_path());
    out.engine_folders.push_back(side);
    return out;
  }
  if (order.connection->type == "sqlite") return ReachOfSqlite(order, spec);
  out.network = true;
  out.read_folders = {"/etc", "/usr", "/lib", "/lib64", "/run", "/var/run"};
  out.read_files = PgFilesOf(order.connection->dsn);
  return out;
}

}  // namespace millrace
