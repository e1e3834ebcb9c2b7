// The exactly-once protocol in a PostgreSQL destination: schema millrace with fence, receipt, target and staging.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/drivers/postgres.h"
#include "worker/stage/load/fence.h"

namespace millrace::load {

// One load's way into PostgreSQL, in this order: Open, Raise, [NewStaging, data], Begin, LockTarget, [data], Finish.
// Not thread-safe. Destroying it rolls back whatever was not committed.
class PgFence {
 public:
  static Outcome<std::unique_ptr<PgFence>> Open(const LoadJob& job, const Clock& clock);

  // Creates the tables if need be, raises the fence to the job's token and drops orphaned staging. The receipt, if the
  // effect is there already. Class stale_token: a newer attempt was here.
  Outcome<std::optional<Receipt>> Raise();

  // A name in schema millrace for this attempt's staging table, "<kind>_<hash>_<token>", written down in millrace.staging
  // so that it can be dropped later; `ddl` creates it. One transaction. The quoted, qualified name.
  Outcome<std::string> NewStaging(std::string_view kind, std::string_view ddl_after_name, bool unlogged);

  Outcome<void> Begin();
  // In the publish transaction: locks the fence row and requires token = mine, finds no receipt (else returns it: nothing
  // must be published), locks the target's row.
  Outcome<std::optional<Receipt>> LockTarget();
  // Forgets the staging table (already dropped or renamed in this transaction), writes the receipt, moves the target's
  // version, commits. A receipt that does not add up is refused (internal_error). If the answer to COMMIT is lost, finds out on
  // a new connection. The receipt's rows are the caller's.
  Outcome<Receipt> Finish(const Receipt& receipt);

  // Every statement with a generous deadline.
  Outcome<PgResult> Query(std::string_view sql, const PgParams& params = {});
  Outcome<void> Exec(std::string_view sql);

  // A further connection with the same settings, for parallel COPYs.
  Outcome<std::unique_ptr<PgConnection>> Connect() const;
  PgConnection& connection() { return *connection_; }
  const Clock& clock() const { return clock_; }

  // To be called when the load has ended: drops this attempt's staging table if nothing was published from it. Rolls back an
  // open transaction first. Best effort: what remains is an orphan.
  void DropOwnStaging();

  // `failure`, unless a newer attempt has raised the fence in the meantime: then that is why. Rolls back.
  Failure Explain(Failure failure);

 private:
  PgFence(const LoadJob& job, const Clock& clock) : job_(job), clock_(clock) {}
  MonoTime Deadline() const;
  Outcome<void> CreateTables();
  Outcome<std::uint64_t> RaiseOnce();
  Outcome<void> DropOrphans();
  void DropStaging(const std::string& name, std::string_view lock_timeout);
  Outcome<std::optional<Receipt>> FindReceipt();
  Outcome<void> WriteReceipt(const Receipt& receipt, std::int64_t version);
  Outcome<Receipt> Resolve(const Receipt& receipt, const Error& lost);
  Outcome<void> EndOlderSessions(bool also_mine);
  std::int64_t token() const { return static_cast<std::int64_t>(job_.order.token.value()); }

  const LoadJob& job_;
  const Clock& clock_;
  std::unique_ptr<PgConnection> connection_;
  std::string staging_;  // the table that NewStaging made, until it is published
};

}  // namespace millrace::load
