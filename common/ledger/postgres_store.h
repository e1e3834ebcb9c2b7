// SqlStore on PostgreSQL, schema `millrace`. Internal to common/ledger.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/drivers/postgres.h"
#include "common/ledger/postgres_insert.h"
#include "common/ledger/sql_store.h"

namespace millrace::ledger {

PgParams ToPg(const Params& params);

class PostgresStore final : public SqlStore {
 public:
  // No statement waits longer for a lock than `lock_timeout`, but for that of Migrate, which waits until its deadline.
  explicit PostgresStore(const LedgerOptions& options, Millis lock_timeout = PgOptions{}.lock_timeout);

  Result<void> Connect(MonoTime deadline);
  Result<Rows> Run(std::string_view sql, const Params& params, MonoTime deadline) override;
  Result<void> Transact(const std::function<Result<void>()>& body, MonoTime deadline) override;
  Result<void> Scan(std::string_view table, const std::string& what,
                    const std::function<Result<void>(std::span<const Value>)>& visit, MonoTime deadline) override;
  Result<WallTime> Now(MonoTime deadline) override;
  Result<void> Migrate(std::uint16_t shard_count, MonoTime deadline) override;
  Result<Applied> Apply(const WriteSet& set, const AuditRecord* record, MonoTime deadline) override;
  bool HasFunctions() const override { return true; }
  std::string Columns(Table table, std::string_view alias) const override;
  std::string In(int parameter) const override { return " = any($" + std::to_string(parameter) + ")"; }
  std::string InTexts(int parameter) const override { return In(parameter); }
  std::string_view ForUpdate() const override { return " for update"; }
  std::vector<Statement> DropBefore(const Uuid& end, WallTime before, std::span<const std::int64_t> expected,
                                    std::vector<Statement> first) const override;
  Result<RefusedGone> DropRefusedBefore(WallTime before, std::int64_t rows_max, MonoTime deadline) override;
  Result<bool> HoldHistory(MonoTime deadline) override;
  void ReleaseHistory() override;
  Result<bool> HistoryIsHeld(MonoTime deadline) override;
  std::vector<Statement> UnlessHistoryIsHeld() const override;
  bool DropsWeeks() const override { return true; }
  Result<std::uint64_t> BytesOfHistory(MonoTime deadline) override;
  std::string Sound(Table table, std::string_view alias) const override;
  std::string SoundRecord(std::string_view) const override { return "true"; }

 private:
  Result<Rows> RunOnce(std::string_view sql, const Params& params, MonoTime deadline);
  Result<void> ScanPage(const std::string& sql, const std::function<Result<void>(std::span<const Value>)>& visit,
                        MonoTime deadline);
  Result<void> MigrateNext(std::uint16_t shard_count, bool& more, MonoTime deadline);
  Result<std::size_t> SchemaVersion(MonoTime deadline);
  Result<void> LockSchema(MonoTime deadline);
  Result<void> KeepShardCount(std::uint16_t shard_count, MonoTime deadline);
  // A connection that may write for this audit writer; older connections of the writer commit nothing from then on.
  Result<void> Register(MonoTime deadline);
  void EnsurePartitions(MonoTime deadline);
  Result<bool> MakePartitions(MonoTime deadline);  // whether there are more to make
  std::vector<PgStatement> Statements(const WriteSet& set, const AuditRecord* record);
  // After a lost answer. True: the record is in the ledger. kMaybeApplied: could not be found out before the deadline.
  Result<bool> Resolve(const AuditRecord* record, const Error& lost, MonoTime deadline);
  Error Explained(Error error) const;

  LedgerOptions options_;
  Millis lock_timeout_;
  RowInserter inserter_;
  std::unique_ptr<PgConnection> connection_;
  std::optional<std::int64_t> session_;  // of this connection; empty until it is registered
  std::optional<MonoTime> partitions_due_at_;
  bool in_transact_ = false;
};

}  // namespace millrace::ledger
