// SQLite behind RAII: connections, cached statements, transactions. One file, WAL, one connection per thread.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/clock.h"
#include "common/base/result.h"

struct sqlite3_stmt;

namespace millrace::sqlite {

// How long a commit waits for the disk (PRAGMA synchronous, WAL mode).
enum class Synchronous : std::uint8_t {
  kOff,     // a power loss may lose commits and may corrupt the file; a killed process loses nothing
  kNormal,  // a power loss may lose the last commits; the file stays sound
  kFull,    // a commit that was answered survives a power loss
};
enum class Access : std::uint8_t { kReadWrite, kReadOnly };

struct Options {
  Millis busy_timeout{5000};  // how long a statement waits for another connection's lock
  Synchronous synchronous = Synchronous::kFull;
  Access access = Access::kReadWrite;  // kReadOnly: the file must exist; journal mode is left as it is
  const Clock* clock = nullptr;        // for SetDeadline; nullptr: the system clock
};

// The oldest SQLite library that is accepted: older ones can corrupt a WAL on reset.
inline constexpr int kLibraryVersionMin = 3'051'003;

// A blob parameter (a plain string is text).
struct Blob {
  std::string_view bytes;
};

namespace internal {
struct Connection;
}

// A prepared statement, borrowed from its connection's cache; goes back, reset and unbound, when destroyed. Not thread-safe.
// The Database must outlive it. A failed Bind is reported by the next Step.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&& other) noexcept;
  ~Statement();

  // Parameters are numbered from 1. Values are copied. Unsigned 64-bit values are stored as their two's complement.
  template <std::integral T>
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  Statement& Bind(int index, T value) {
    return BindInt(index, static_cast<std::int64_t>(value));
  }
  Statement& Bind(int index, bool value) { return BindInt(index, value ? 1 : 0); }
  Statement& Bind(int index, double value);
  Statement& Bind(int index, std::string_view text);
  Statement& Bind(int index, const std::string& text) { return Bind(index, std::string_view{text}); }
  Statement& Bind(int index, const char* text) { return Bind(index, std::string_view{text}); }
  Statement& Bind(int index, Blob blob);
  Statement& Bind(int index, std::nullptr_t);
  template <class T>
  Statement& Bind(int index, const std::optional<T>& value) {
    return value ? Bind(index, *value) : Bind(index, nullptr);
  }
  // Binds every argument in order, from parameter 1 on.
  template <class... Args>
  Statement& BindAll(const Args&... args) {
    int index = 0;
    (Bind(++index, args), ...);
    return *this;
  }

  // True: a row is there to be read. False: done.
  Result<bool> Step();
  // Steps to the end, ignoring rows, and resets: for statements that only write. Bindings stay.
  Result<void> Run();
  // Ready to be bound and stepped again. Bindings stay.
  void Reset();

  // Columns of the current row are numbered from 0. SQLite converts as documented (NULL reads as 0, 0.0 or "").
  // REQUIRES: the last Step returned true. The view stays valid until the next Step, Reset or destruction.
  std::int64_t Int64(int column) const;
  std::uint64_t Uint64(int column) const { return static_cast<std::uint64_t>(Int64(column)); }
  double Double(int column) const;
  std::string_view View(int column) const;  // text or blob
  std::string String(int column) const { return std::string{View(column)}; }
  bool IsNull(int column) const;
  std::optional<std::int64_t> OptionalInt64(int column) const;
  std::optional<std::string> OptionalString(int column) const;
  int ColumnCount() const;
  std::string ColumnName(int column) const;
  enum class Kind : std::uint8_t { kNull, kInteger, kReal, kText, kBlob };
  Kind KindOf(int column) const;  // of the value in the current row

 private:
  friend class Database;
  Statement(internal::Connection* connection, sqlite3_stmt* statement) : connection_(connection), statement_(statement) {}
  Statement& BindInt(int index, std::int64_t value);
  void CheckBind(int index, int code);

  internal::Connection* connection_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
  std::optional<Error> bind_error_;
};

// One connection. Not thread-safe (SQLITE_THREADSAFE=2): one thread at a time, except Interrupt.
//
// Errors, the same for every call: kUnavailable (locked by another connection beyond the busy timeout, disk full, I/O error:
// nothing was applied), kConflict (constraint, stale snapshot), kCorrupt (not a database, damaged), kTimedOut (SetDeadline),
// kCancelled (Interrupt), kRejected (everything else, e.g. SQL errors; read-only file).
class Database {
 public:
  // Opens or creates `path` (mode 0600) with WAL, foreign keys, no mmap, untrusted schema, cell size checks. ":memory:" is a
  // private database in memory. kUnsupported: the SQLite library is older than kLibraryVersionMin.
  static Result<Database> Open(const std::string& path, const Options& options);

  Database(Database&&) noexcept;
  Database& operator=(Database&&) noexcept;
  ~Database();

  // The statement for `sql`, which is one statement. Cached by text: use constant texts.
  Result<Statement> Prepare(std::string_view sql);
  // Runs one or more statements without parameters (schema, pragmas).
  Result<void> Exec(const std::string& sql);
  // Runs one statement to its end with the arguments bound in order.
  template <class... Args>
  Result<void> Run(std::string_view sql, const Args&... args) {
    MILLRACE_TRY_ASSIGN(Statement statement, Prepare(sql));
    return statement.BindAll(args...).Run();
  }
  // The first column of the first row; kNotFound without a row.
  template <class... Args>
  Result<std::int64_t> QueryInt64(std::string_view sql, const Args&... args) {
    MILLRACE_TRY_ASSIGN(Statement statement, Prepare(sql));
    MILLRACE_TRY_ASSIGN(const bool row, statement.BindAll(args...).Step());
    if (!row) return Fail(ErrorCode::kNotFound, "{}: no row", sql);
    return statement.Int64(0);
  }

  // Rows that the last insert, update or delete changed (triggers and cascades not counted).
  std::int64_t Changes() const;
  std::int64_t LastInsertRowid() const;
  bool InTransaction() const;

  // From now on, statements give up at `deadline` (kTimedOut), whether they wait for a lock or compute. nullopt: no deadline;
  // locks are waited for as long as Options::busy_timeout says. COMMIT and ROLLBACK themselves are not
  // cut short.
  void SetDeadline(std::optional<MonoTime> deadline);
  // Makes the running statement return kCancelled. Thread-safe while the Database exists.
  void Interrupt();

  const std::string& path() const;

 private:
  explicit Database(std::unique_ptr<internal::Connection> connection);
  std::unique_ptr<internal::Connection> connection_;
};

// A transaction; rolled back when destroyed before Commit succeeded. The Database must outlive it and must not be moved.
class Transaction {
 public:
  enum class Mode : std::uint8_t { kImmediate, kDeferred };  // kImmediate takes the write lock now; kDeferred is for reading
  static Result<Transaction> Begin(Database& database, Mode mode = Mode::kImmediate);

  Transaction(Transaction&& other) noexcept : database_(std::exchange(other.database_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();

  // After an error the transaction is still open and is rolled back by the destructor: nothing was applied.
  Result<void> Commit();

 private:
  explicit Transaction(Database* database) : database_(database) {}
  Database* database_;
};

std::string_view LibraryVersion();  // "3.53.2"

}  // namespace millrace::sqlite
