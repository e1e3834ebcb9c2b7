// The destinations. Each runs the whole protocol of ops/docs/loads.md; a Failure has changed nothing in the target.
#pragma once

#include <filesystem>
#include <string>

#include "common/base/clock.h"
#include "common/drivers/duckdb.h"
#include "worker/stage/load/fence.h"

namespace millrace::load {

struct Loaded {
  Receipt receipt;
  bool already_applied = false;
};

inline constexpr Millis kSqlitePatience{30'000};  // how long a load waits for other writers of a SQLite database

Outcome<Loaded> LoadIntoPostgres(LoadJob& job, duck::Connection& source, const Clock& clock);
Outcome<Loaded> LoadIntoSqlite(LoadJob& job, duck::Connection& source);
Outcome<Loaded> LoadIntoFiles(LoadJob& job, duck::Connection& source);

// Where a load to a file puts it, and the folder beside it that holds lock, fences, receipts and data not yet published.
std::filesystem::path FileTarget(const StageOrder& order, const LoadSpec& spec);
std::filesystem::path FileSide(const std::filesystem::path& target);

// To be called after the last row was read and before the receipt is committed: nobody may have touched a source file
// meanwhile. Class: source_changed (retryable).
Outcome<void> RequireUntouchedSources(const LoadJob& job);

// What merge needs to know about the batch before a byte is sent.
struct BatchKeys {
  std::int64_t rows = 0;          // distinct rows: what will be sent
  std::int64_t deduplicated = 0;  // further copies of identical rows
  std::string select_sql;         // `cast_sql`, made distinct where that is needed
};
// `cast_sql` yields the rows as they are sent. Classes: null_key, duplicate_key_in_batch (rows of one key that differ, up to
// five keys named), invalid_target (a key column that the dataset lacks).
Outcome<BatchKeys> CheckKeys(const LoadJob& job, duck::Connection& source, const std::string& cast_sql);

}  // namespace millrace::load
