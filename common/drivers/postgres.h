// PostgreSQL through libpq: one connection, deadlines on everything, statements prepared once, whole transactions in one
// round trip (pipeline mode), COPY in. No libpq type leaves the .cc.
//
// A connection is not thread-safe: one per thread. Every call blocks, and gives up at its deadline (of the Clock given at
// Connect); a call that gave up after it had sent something leaves the connection broken, because the answer may still come.
// Errors are classified in one place (ClassifySqlState):
//   kUnavailable    nothing was applied: no connection, server starting or stopping, out of disk, statement timeout,
//                   connection lost inside an open transaction before its COMMIT was sent
//   kTimedOut       the deadline passed before anything was sent
//   kMaybeApplied   sent, and the answer is lost (connection gone, deadline passed)
//   kConflict       unique key, serialization failure, deadlock, lock timeout
//   kInvalidArgument  the values do not fit (class 22, not-null and check constraints, foreign keys)
//   kStale          SQLSTATE MR001, raised by the ledger's own functions
//   kRejected       everything else: syntax, missing tables, permission
// last_sqlstate() keeps the five characters for callers that need more.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace {

// Parameters $1, $2 ... of one statement, copied, sent in binary with explicit types (so no casts are needed in the SQL,
// except where a parameter's type differs from its column's: text into json needs $1::json).
class PgParams {
 public:
  PgParams& Int(std::int64_t value);  // bigint
  PgParams& Bool(bool value);
  PgParams& Text(std::string_view value);   // text; REQUIRES: UTF-8 without NUL, else the server refuses
  PgParams& Bytes(std::string_view value);  // bytea
  PgParams& Id(const Uuid& value);          // uuid
  PgParams& Time(WallTime value);           // timestamptz
  PgParams& Null();                         // type inferred by the server
  PgParams& NullableInt(std::optional<std::int64_t> value);
  PgParams& NullableText(std::optional<std::string_view> value);
  PgParams& NullableId(const std::optional<Uuid>& value);
  PgParams& NullableTime(std::optional<WallTime> value);

  // Arrays, for `select ... from unnest($1, $2, ...)` and `= any($1)`.
  PgParams& IntArray(std::span<const std::int64_t> values);        // bigint[]
  PgParams& TextArray(std::span<const std::string_view> values);   // text[]
  PgParams& BytesArray(std::span<const std::string_view> values);  // bytea[]
  PgParams& IdArray(std::span<const Uuid> values);                 // uuid[]

  // An array built element by element, NULLs allowed: BeginArray, then one of Add... per element, then EndArray.
  enum class Element : std::uint8_t { kInt, kBool, kText, kBytes, kId, kTime };
  PgParams& BeginArray(Element element, std::size_t count);  // REQUIRES: exactly `count` elements follow
  PgParams& AddInt(std::int64_t value);
  PgParams& AddBool(bool value);
  PgParams& AddBytes(std::string_view value);  // kText, kBytes, kId (16 bytes)
  PgParams& AddTime(WallTime value);
  PgParams& AddNull();
  PgParams& EndArray();

  std::size_t size() const { return slots_.size(); }

 private:
  friend class PgConnection;
  struct Slot {
    std::uint32_t type;
    std::size_t offset;
    std::int64_t length;  // -1 = NULL
  };
  void Put(std::uint32_t type, std::string_view bytes);
  void PutInt32(std::int32_t value);
  void PutInt64(std::int64_t value);
  std::vector<Slot> slots_;
  std::string buffer_;
};

// One statement of a pipeline.
struct PgStatement {
  std::string_view sql;  // must outlive the call; prepared once per connection and kept (use few distinct texts)
  PgParams params;
};

// The answer to one statement, in binary. Views live as long as the result. REQUIRES for the getters: row and column in range,
// value not null, and the column's type is one the getter names (checked; cast in the SQL otherwise).
class PgResult {
 public:
  PgResult();
  PgResult(PgResult&&) noexcept;
  PgResult& operator=(PgResult&&) noexcept;
  ~PgResult();

  int rows() const;
  int columns() const;
  std::int64_t affected() const;  // of insert, update, delete, merge, copy; 0 otherwise
  std::string_view column_name(int column) const;
  bool IsNull(int row, int column) const;
  std::int64_t Int(int row, int column) const;  // smallint, integer, bigint, oid
  bool Bool(int row, int column) const;
  double Double(int row, int column) const;           // real, double precision
  std::string_view Bytes(int row, int column) const;  // text, varchar, name, json, bytea: the bytes; any other: binary form
  std::string Text(int row, int column) const { return std::string(Bytes(row, column)); }
  Uuid Id(int row, int column) const;                             // uuid
  WallTime Time(int row, int column) const;                       // timestamptz, timestamp
  std::vector<std::string> TextArray(int row, int column) const;  // text[], name[], varchar[] of one dimension; NULL = ""

  // For code that treats columns alike: what the value is by the column's type.
  enum class Kind : std::uint8_t { kNull, kInt, kBool, kTime, kBytes };
  Kind KindOf(int row, int column) const;
  Kind KindOf(int column) const;  // of its values that are not null

 private:
  friend class PgConnection;
  struct Impl;
  explicit PgResult(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct PgOptions {
  std::string dsn;  // libpq conninfo or URI
  std::string application_name = "millrace";
  bool application_name_wins = false;  // true: also over one that the dsn or PGAPPNAME gives
  std::string search_path;             // empty: the server's default
  Millis statement_timeout{30'000};    // 0 = none
  Millis lock_timeout{5'000};
  Millis idle_in_transaction_timeout{60'000};
};

// The SQLSTATE to ErrorCode table. `sent`: the statement had left this process. Empty state = the connection is gone.
ErrorCode ClassifySqlState(std::string_view state, bool sent);

class PgConnection {
 public:
  // kUnavailable (refused, starting up, unknown host), kRejected (password, database, role), kInvalidArgument (dsn),
  // kTimedOut. Messages name host, port and database, never a password; of a dsn that cannot be right they name the wrong
  // part and repeat nothing, since what was taken for a port may be half a password.
  static Result<std::unique_ptr<PgConnection>> Connect(const PgOptions& options, const Clock& clock, MonoTime deadline);
  ~PgConnection();
  PgConnection(const PgConnection&) = delete;
  PgConnection& operator=(const PgConnection&) = delete;

  // One statement with parameters, prepared on first use and cached by its text: for a fixed set of texts.
  Result<PgResult> Query(std::string_view sql, const PgParams& params, MonoTime deadline);
  Result<PgResult> Query(std::string_view sql, MonoTime deadline) { return Query(sql, PgParams{}, deadline); }
  // One statement with parameters, not kept: for texts with generated names in them.
  Result<PgResult> QueryOnce(std::string_view sql, const PgParams& params, MonoTime deadline);
  // The same for one that reads: `visit` gets the answer row by row, as results of one row, so that its size does not matter.
  // An error of `visit` is returned when the rest has been read past. `visit` must not use the connection.
  Result<void> Stream(const std::string& sql, const PgParams& params, const std::function<Result<void>(PgResult)>& visit,
                      MonoTime deadline);
  // One or many statements without parameters and results ("begin", "commit", DDL). Many in one text are one transaction.
  Result<void> Exec(std::string_view sql, MonoTime deadline);

  // All statements in one flush and one round trip, as one transaction when they begin with "begin" and end with "commit".
  // The first error stops the rest; then the transaction, if any, has been rolled back (or the connection is broken) and
  // failed_statement() is its index. On success one result per statement, in order.
  Result<std::vector<PgResult>> Pipeline(std::span<const PgStatement> statements, MonoTime deadline);
  std::size_t failed_statement() const { return failed_statement_; }

  // COPY ... FROM STDIN. After StartCopyIn only PutCopyData, EndCopy and AbortCopy may be called, in that order. PutCopyData
  // copies nothing beyond libpq's buffer: it waits until the server takes the data. EndCopy returns the number of rows.
  Result<void> StartCopyIn(std::string_view sql, MonoTime deadline);
  Result<void> PutCopyData(std::span<const char> data, MonoTime deadline);
  Result<std::int64_t> EndCopy(MonoTime deadline);
  Result<void> AbortCopy(std::string_view reason, MonoTime deadline);  // the server rolls the COPY back

  // After `listen channel`: waits for a notification and takes all that have come. False: none came before the deadline.
  Result<bool> WaitNotification(MonoTime deadline);

  // Asks the server to stop the running statement of this connection (opens a second connection). Thread-safe.
  Result<void> Cancel();

  bool broken() const;                     // must be thrown away
  bool in_transaction() const;             // an explicit transaction is open (also a failed one)
  std::string_view last_sqlstate() const;  // of the last failed call; empty: connection lost, or no failure yet
  int backend_pid() const;
  int server_version() const;  // 150004 = 15.4

 private:
  struct Impl;
  explicit PgConnection(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::size_t failed_statement_ = 0;
};

// The files that connecting with `dsn` may read: password file, client certificate and key, root certificates, revocation
// list, service file and what that names; whether or not they exist. Looks at the same environment as libpq. Thread-safe.
std::vector<std::string> PgFilesOf(const std::string& dsn);

// "name" with quotes doubled, for identifiers in generated SQL; 'text' likewise for literals (standard_conforming_strings).
std::string PgIdentifier(std::string_view name);
std::string PgLiteral(std::string_view text);

}  // namespace millrace
