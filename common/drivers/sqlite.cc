#include "common/drivers/sqlite.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <unordered_map>

namespace millrace::sqlite {
namespace {

constexpr std::size_t kCachedStatementsMax = 256;
constexpr int kProgressOpcodes = 4000;  // the deadline is looked at about every 0.1 ms of computing
// Between two tries for a lock, at random. SQLite's own waits grow to 100 ms, while whoever has the lock is back for it within
// microseconds: of many writers some would never meet it free.
constexpr std::int64_t kLockPauseMinUs = 200, kLockPauseMaxUs = 2000;
constexpr Millis kLockWaitMax{3'600'000};

struct CloseDatabase {
  void operator()(sqlite3* db) const noexcept { sqlite3_close_v2(db); }
};
struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
};
using StatementHandle = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
};

const Clock& DefaultClock() {
  static const SystemClock clock;
  return clock;
}

// The one place that decides what a foreign code means to a caller.
ErrorCode Classify(int extended_code) {
  if (extended_code == SQLITE_BUSY_SNAPSHOT) return ErrorCode::kConflict;
  switch (extended_code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_NOMEM:
    case SQLITE_PROTOCOL: return ErrorCode::kUnavailable;
    case SQLITE_LOCKED:
    case SQLITE_SCHEMA:
    case SQLITE_CONSTRAINT: return ErrorCode::kConflict;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return ErrorCode::kCorrupt;
    case SQLITE_INTERRUPT: return ErrorCode::kCancelled;
    case SQLITE_TOOBIG: return ErrorCode::kLimit;
    default: return ErrorCode::kRejected;
  }
}

std::string OneLine(std::string_view sql) {
  constexpr std::size_t kShown = 120;
  std::string out;
  for (const char c : sql.substr(0, kShown)) {
    const bool space = c == '\n' || c == '\t' || c == ' ';
    if (!space)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (sql.size() > kShown) out += "...";
  return out;
}

std::string_view Pragma(Synchronous level) {
  switch (level) {
    case Synchronous::kOff: return "OFF";
    case Synchronous::kNormal: return "NORMAL";
    case Synchronous::kFull: return "FULL";
  }
  return "FULL";
}

}  // namespace

struct internal::Connection {
  std::unique_ptr<sqlite3, CloseDatabase> db;
  std::string path;
  Millis busy_timeout{0};
  const Clock* clock = nullptr;
  std::optional<MonoTime> deadline;
  Millis lock_wait{0};  // how long a lock is waited for, in real time: `clock` may stand
  MonoTime lock_since{};
  std::minstd_rand pause{static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(this))};
  std::unordered_map<std::string, StatementHandle, StringHash, std::equal_to<>> cache;  // destroyed before db

  std::unexpected<Error> Failure(int code, std::string_view what) const {
    const int extended = sqlite3_extended_errcode(db.get());
    if ((extended & 0xff) == (code & 0xff)) code = extended;
    const int primary = code & 0xff;
    const bool late = deadline && clock->Now() >= *deadline;
    ErrorCode error = Classify(code);
    if (late && (primary == SQLITE_INTERRUPT || primary == SQLITE_BUSY)) error = ErrorCode::kTimedOut;
    const char* hint = "";
    if (primary == SQLITE_FULL) hint = "disk full: ";
    if (primary == SQLITE_BUSY) hint = "locked by another connection: ";
    if (primary == SQLITE_IOERR) hint = "I/O error: ";
    return Fail(error, "sqlite {}: {}: {}{} (code {})", path, OneLine(what), hint, sqlite3_errmsg(db.get()), code);
  }

  // A cached statement is taken out of the cache while in use, so that nested uses of one text get their own.
  void GiveBack(sqlite3_stmt* statement) {
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    const std::string_view sql = sqlite3_sql(statement);
    if (cache.size() >= kCachedStatementsMax || cache.contains(sql)) {
      sqlite3_finalize(statement);
      return;
    }
    cache.emplace(std::string{sql}, statement);
  }
};

namespace {

int OnProgress(void* argument) {
  const auto& connection = *static_cast<internal::Connection*>(argument);
  return connection.deadline && connection.clock->Now() >= *connection.deadline ? 1 : 0;
}

// An errno, or 0. The file is not opened for it: closing any descriptor of a file drops every POSIX lock that this process
// holds on it, those of its other connections too, and whoever closes a connection elsewhere then takes the WAL away from
// under them.
int WhyNotUsable(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) return errno;
  if (S_ISLNK(status.st_mode)) return ELOOP;
  if (S_ISDIR(status.st_mode)) return EISDIR;
  return ::faccessat(AT_FDCWD, path.c_str(), R_OK | W_OK, AT_EACCESS) == 0 ? 0 : errno;
}

int OnBusy(void* argument, int tries) {
  auto& connection = *static_cast<internal::Connection*>(argument);
  const MonoTime now = DefaultClock().Now();
  if (tries == 0) connection.lock_since = now;
  if (now - connection.lock_since >= connection.lock_wait) return 0;
  std::uniform_int_distribution<std::int64_t> pause(kLockPauseMinUs, kLockPauseMaxUs);
  std::this_thread::sleep_for(std::chrono::microseconds{pause(connection.pause)});
  return 1;
}

// SQLite would create the file with the umask's mode; the ledger and the queue are the owner's business alone.
Result<void> CreatePrivately(const std::string& path) {
  int error = 0;
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) error = errno == EEXIST ? WhyNotUsable(path) : errno;
  if (error != 0) {
    const ErrorCode code = error == ENOSPC || error == EIO || error == EMFILE ? ErrorCode::kUnavailable : ErrorCode::kRejected;
    return Fail(code, "sqlite {}: cannot open: {}", path, std::strerror(error));
  }
  if (fd >= 0) ::close(fd);
  return {};
}

}  // namespace

// ---- Statement ---------------------------------------------------------------------------------------------------------

Statement::Statement(Statement&& other) noexcept
    : connection_(other.connection_),
      statement_(std::exchange(other.statement_, nullptr)),
      bind_error_(std::move(other.bind_error_)) {}

Statement& Statement::operator=(Statement&& other) noexcept {
  if (this == &other) return *this;
  if (statement_ != nullptr) connection_->GiveBack(statement_);
  connection_ = other.connection_;
  statement_ = std::exchange(other.statement_, nullptr);
  bind_error_ = std::move(other.bind_error_);
  return *this;
}

Statement::~Statement() {
  if (statement_ != nullptr) connection_->GiveBack(statement_);
}

void Statement::CheckBind(int index, int code) {
  if (code == SQLITE_OK || bind_error_) return;
  bind_error_ = connection_->Failure(code, sqlite3_sql(statement_)).error();
  bind_error_->message += fmt::format(", parameter {}", index);
}

Statement& Statement::BindInt(int index, std::int64_t value) {
  CheckBind(index, sqlite3_bind_int64(statement_, index, value));
  return *this;
}

Statement& Statement::Bind(int index, double value) {
  CheckBind(index, sqlite3_bind_double(statement_, index, value));
  return *this;
}

Statement& Statement::Bind(int index, std::string_view text) {
  const char* data = text.data() == nullptr ? "" : text.data();  // a null pointer would bind NULL
  CheckBind(index, sqlite3_bind_text64(statement_, index, data, text.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
  return *this;
}

Statement& Statement::Bind(int index, Blob blob) {
  const char* data = blob.bytes.data() == nullptr ? "" : blob.bytes.data();
  CheckBind(index, sqlite3_bind_blob64(statement_, index, data, blob.bytes.size(), SQLITE_TRANSIENT));
  return *this;
}

Statement& Statement::Bind(int index, std::nullptr_t) {
  CheckBind(index, sqlite3_bind_null(statement_, index));
  return *this;
}

Result<bool> Statement::Step() {
  if (bind_error_) return std::unexpected(*bind_error_);
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  auto failure = connection_->Failure(code, sqlite3_sql(statement_));
  sqlite3_reset(statement_);
  return failure;
}

Result<void> Statement::Run() {
  while (true) {
    MILLRACE_TRY_ASSIGN(const bool row, Step());
    if (!row) break;
  }
  Reset();
  return {};
}

void Statement::Reset() { sqlite3_reset(statement_); }

std::int64_t Statement::Int64(int column) const { return sqlite3_column_int64(statement_, column); }
double Statement::Double(int column) const { return sqlite3_column_double(statement_, column); }
bool Statement::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
int Statement::ColumnCount() const { return sqlite3_column_count(statement_); }

std::string Statement::ColumnName(int column) const {
  const char* name = sqlite3_column_name(statement_, column);
  return name != nullptr ? name : "";
}

Statement::Kind Statement::KindOf(int column) const {
  switch (sqlite3_column_type(statement_, column)) {
    case SQLITE_INTEGER: return Kind::kInteger;
    case SQLITE_FLOAT: return Kind::kReal;
    case SQLITE_TEXT: return Kind::kText;
    case SQLITE_BLOB: return Kind::kBlob;
    default: return Kind::kNull;
  }
}

std::string_view Statement::View(int column) const {
  const bool text = sqlite3_column_type(statement_, column) != SQLITE_BLOB;
  const void* data =
      text ? static_cast<const void*>(sqlite3_column_text(statement_, column)) : sqlite3_column_blob(statement_, column);
  if (data == nullptr) return {};
  return {static_cast<const char*>(data), static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
}

std::optional<std::int64_t> Statement::OptionalInt64(int column) const {
  if (IsNull(column)) return std::nullopt;
  return Int64(column);
}

std::optional<std::string> Statement::OptionalString(int column) const {
  if (IsNull(column)) return std::nullopt;
  return String(column);
}

// ---- Database ----------------------------------------------------------------------------------------------------------

Database::Database(std::unique_ptr<internal::Connection> connection) : connection_(std::move(connection)) {}
Database::Database(Database&&) noexcept = default;
Database& Database::operator=(Database&&) noexcept = default;
Database::~Database() = default;

Result<Database> Database::Open(const std::string& path, const Options& options) {
  if (sqlite3_libversion_number() < kLibraryVersionMin) {
    return Fail(ErrorCode::kUnsupported,
                "sqlite: library {} is older than 3.51.3, which can corrupt a WAL; build with the pinned one",
                sqlite3_libversion());
  }
  const bool writable = options.access == Access::kReadWrite;
  const bool in_memory = path == ":memory:";
  if (writable && !in_memory) MILLRACE_TRY(CreatePrivately(path));

  auto connection = std::make_unique<internal::Connection>();
  connection->path = path;
  connection->busy_timeout = options.busy_timeout;
  connection->clock = options.clock != nullptr ? options.clock : &DefaultClock();
  const int flags = (writable ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY) | (in_memory ? SQLITE_OPEN_CREATE : 0) |
                    SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &raw, flags, nullptr);
  connection->db.reset(raw);
  if (code != SQLITE_OK) return connection->Failure(code, "open");

  sqlite3_db_config(raw, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_progress_handler(raw, kProgressOpcodes, OnProgress, connection.get());
  sqlite3_busy_handler(raw, OnBusy, connection.get());
  Database database(std::move(connection));
  database.SetDeadline(std::nullopt);
  MILLRACE_TRY(
      database.Exec("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0; PRAGMA foreign_keys=ON"));
  if (!writable) return database;

  MILLRACE_TRY(database.Exec(fmt::format("PRAGMA synchronous={}", Pragma(options.synchronous))));
  MILLRACE_TRY_ASSIGN(Statement mode, database.Prepare("PRAGMA journal_mode=WAL"));
  MILLRACE_TRY_ASSIGN(const bool row, mode.Step());
  if (!in_memory && (!row || mode.View(0) != "wal")) {
    return Fail(ErrorCode::kUnsupported,
                "sqlite {}: the file system does not allow WAL (journal mode is '{}'); use a local disk", path,
                row ? mode.String(0) : "");
  }
  return database;
}

Result<Statement> Database::Prepare(std::string_view sql) {
  if (const auto cached = connection_->cache.find(sql); cached != connection_->cache.end()) {
    StatementHandle handle = std::move(cached->second);
    connection_->cache.erase(cached);
    return Statement(connection_.get(), handle.release());
  }
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v3(connection_->db.get(), sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) return connection_->Failure(code, sql);
  if (statement == nullptr) return Fail(ErrorCode::kInvalidArgument, "sqlite {}: empty statement", connection_->path);
  return Statement(connection_.get(), statement);
}

Result<void> Database::Exec(const std::string& sql) {
  const int code = sqlite3_exec(connection_->db.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return connection_->Failure(code, sql);
  return {};
}

std::int64_t Database::Changes() const { return sqlite3_changes64(connection_->db.get()); }
std::int64_t Database::LastInsertRowid() const { return sqlite3_last_insert_rowid(connection_->db.get()); }
bool Database::InTransaction() const { return sqlite3_get_autocommit(connection_->db.get()) == 0; }
const std::string& Database::path() const { return connection_->path; }
void Database::Interrupt() { sqlite3_interrupt(connection_->db.get()); }

void Database::SetDeadline(std::optional<MonoTime> deadline) {
  connection_->deadline = deadline;
  Millis wait = connection_->busy_timeout;
  if (deadline) {
    // Rounded up, so that a lock that is given up at the deadline reads as late (kTimedOut), not as busy.
    wait = std::chrono::ceil<Millis>(*deadline - connection_->clock->Now());
  }
  connection_->lock_wait = std::clamp(wait, Millis{0}, kLockWaitMax);
}

// ---- Transaction -------------------------------------------------------------------------------------------------------

Result<Transaction> Transaction::Begin(Database& database, Mode mode) {
  MILLRACE_TRY(database.Run(mode == Mode::kImmediate ? "BEGIN IMMEDIATE" : "BEGIN DEFERRED"));
  return Transaction(&database);
}

Transaction::~Transaction() {
  // SQLite has rolled back by itself after some errors (disk full); a failure here leaves nothing to undo.
  if (database_ == nullptr || !database_->InTransaction()) return;
  static_cast<void>(database_->Exec("ROLLBACK"));
}

Result<void> Transaction::Commit() {
  MILLRACE_TRY(database_->Run("COMMIT"));
  database_ = nullptr;
  return {};
}

std::string_view LibraryVersion() { return sqlite3_libversion(); }

}  // namespace millrace::sqlite
