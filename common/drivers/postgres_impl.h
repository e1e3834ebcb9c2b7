// libpq handles of the driver. Included by the driver's .cc files only.
#pragma once

#include <libpq-fe.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/drivers/postgres.h"

namespace millrace {

struct PgResultFree {
  void operator()(PGresult* result) const noexcept { PQclear(result); }
};
using PgResultHandle = std::unique_ptr<PGresult, PgResultFree>;
struct PgConnFree {
  void operator()(PGconn* connection) const noexcept { PQfinish(connection); }
};

// A dsn taken apart. No message of it repeats any of its text.
class PgConninfo {
 public:
  static Result<PgConninfo> Parse(const std::string& dsn);  // kInvalidArgument
  std::optional<std::string> Value(std::string_view keyword) const;
  // kInvalidArgument: a part that cannot be what libpq takes it for, as when a password was not percent-encoded.
  Result<void> Check() const;

 private:
  bool is_uri_ = false;
  std::unordered_map<std::string, std::string> values_;
};

struct PgResult::Impl {
  PgResultHandle result;
};

// Pointers into one statement's parameters, as libpq wants them.
struct Bound {
  std::vector<Oid> types;
  std::vector<const char*> values;
  std::vector<int> lengths, formats;
  int size() const { return static_cast<int>(types.size()); }
};

struct PgConnection::Impl {
  std::unique_ptr<PGconn, PgConnFree> connection;
  const Clock* clock = nullptr;
  bool broken = false;
  std::string state;                                      // SQLSTATE of the last failure
  std::unordered_map<std::string, std::string> prepared;  // text -> name
  std::uint64_t next_name = 0;

  PGconn* get() const { return connection.get(); }
  enum class Wait : std::uint8_t { kRead, kWrite, kBoth };
  // Waits for the socket. kTimedOut at the deadline.
  Result<void> Poll(Wait wait, MonoTime deadline) const;
  // Nothing is under way: notices a connection that the server has closed, before anything is sent.
  Result<void> CheckIdle();
  Result<void> Flush(MonoTime deadline);
  // The next result; null at the end of one command's results.
  Result<PgResultHandle> Next(MonoTime deadline);
  // The error of a failed result, classified; marks the connection broken when the server said FATAL.
  Error ErrorOf(const PGresult* result);
  // `error` as it is, unless the server ended the session with it: then what was sent may be applied, or cannot be.
  Error LastWord(Error error, bool may_commit) const;
  // The connection failed or the deadline passed after something was sent.
  Error Lost(bool may_commit, std::string_view what);

  // Statements that travel together.
  struct Batch {
    std::span<const PgStatement> statements;
    bool may_commit = false;
    std::vector<bool> prepares{};      // a Parse goes ahead of the statement's Execute
    std::vector<std::string> names{};  // under which it is prepared
    std::vector<PgResult> results{};
    std::optional<Error> error{};  // of the first statement that failed
    std::size_t failed = 0;        // which one that was
  };
  static Bound Bind(const PgParams& params);
  // In pipeline mode: sends all statements and the sync.
  Result<void> Send(Batch& batch, MonoTime deadline);
  // Reads the results of one of them. An error here means that the connection is lost.
  Result<void> Receive(Batch& batch, std::size_t statement, MonoTime deadline);
  // Reads the sync and leaves pipeline mode.
  Result<void> EndPipeline(const Batch& batch, MonoTime deadline);
};

}  // namespace millrace
