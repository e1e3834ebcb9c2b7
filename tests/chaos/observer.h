// Looks into the destination and the ledger with plain SQL: how far the loads in flight are.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/drivers/postgres.h"

namespace millrace::chaos {

// How far a load is, as its destination shows. A sink's first write of data lies between kFenced and kRowsSent; the outcome
// is recorded some time after kCommitted.
enum class Phase : std::uint8_t { kNone, kFenced, kRowsSent, kReceipt, kCommitting, kCommitted };
std::string_view Name(Phase phase);
constexpr bool InWindow(Phase phase) { return phase >= Phase::kRowsSent; }

// A load's session in the destination.
struct LoadInFlight {
  std::string effect_hash;  // first 16 hex of the SHA-256 of the effect
  std::int64_t token = 0;
  std::uint16_t client_port = 0;
  Phase phase = Phase::kNone;
  bool append = false;
};

// Reconnects by itself; a failed look is an empty answer. Not thread-safe.
class Observer {
 public:
  Observer(std::string ledger_dsn, std::string warehouse_dsn);

  std::vector<LoadInFlight> Loads();
  std::int64_t FenceToken(std::string_view effect_hash);  // 0: none
  std::optional<std::string> OwnerName();                 // the broker that owns the default org's jobs
  std::optional<std::string> LeaderName();                // the leading scheduler
  // Jobs and runs that the ledger has accepted and that have not ended; empty: the ledger cannot be asked.
  std::optional<std::int64_t> Live();

  // For the checks at the end. `sql` is one query. An error is fatal there.
  Result<PgResult> Ledger(std::string_view sql) { return Ask(ledger_, sql); }
  Result<PgResult> Warehouse(std::string_view sql) { return Ask(warehouse_, sql); }

 private:
  struct Database {
    std::string dsn;
    std::unique_ptr<PgConnection> connection;
  };
  Result<PgResult> Ask(Database& database, std::string_view sql, const PgParams& params = {});
  Result<PgResult> AskOnce(Database& database, std::string_view sql, const PgParams& params);

  SystemClock clock_;
  Database ledger_, warehouse_;
};

}  // namespace millrace::chaos
