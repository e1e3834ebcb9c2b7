#include "common/ledger/enqueue_watch.h"

#include "common/drivers/postgres.h"

namespace millrace {
namespace {

class PostgresEnqueueWatch final : public EnqueueWatch {
 public:
  PostgresEnqueueWatch(std::unique_ptr<PgConnection> connection, const Clock& clock)
      : connection_(std::move(connection)), clock_(clock) {}
  Result<bool> Wait(Millis timeout) override { return connection_->WaitNotification(clock_.Now() + timeout); }

 private:
  std::unique_ptr<PgConnection> connection_;
  const Clock& clock_;
};

}  // namespace

Result<std::unique_ptr<EnqueueWatch>> OpenPostgresEnqueueWatch(const std::string& dsn, const Clock& clock, MonoTime deadline) {
  PgOptions options;
  options.dsn = dsn;
  options.application_name = "millrace enqueue watch";
  MILLRACE_TRY_ASSIGN(auto connection, PgConnection::Connect(options, clock, deadline));
  MILLRACE_TRY(connection->Exec("listen millrace_enqueue", deadline));
  return std::make_unique<PostgresEnqueueWatch>(std::move(connection), clock);
}

}  // namespace millrace
