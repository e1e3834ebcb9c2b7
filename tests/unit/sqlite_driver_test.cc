// The SQLite driver at its edges: locks, deadlines, damage, full disks.
#include "common/drivers/sqlite.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

namespace millrace::sqlite {
namespace {

namespace fs = std::filesystem;

class SqliteDriverTest : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/millrace_sqlite_XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    path_ = folder_ + "/a.db";
  }
  void TearDown() override { fs::remove_all(folder_); }
  Database Open(Options options = {}) {
    auto database = Database::Open(path_, options);
    EXPECT_TRUE(database) << database.error().message;
    return std::move(*database);
  }
  template <class T>
  static ErrorCode CodeOf(const Result<T>& result) {
    EXPECT_FALSE(result) << "succeeded";
    if (!result) last_message_ = result.error().message;
    return result ? ErrorCode::kMaybeApplied : result.error().code;
  }
  // Counts to about 10^9: longer than any of these tests.
  static constexpr std::string_view kForever =
      "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000000) select count(*) from n";

  static inline std::string last_message_;
  SystemClock clock_;
  std::string folder_, path_;
};

TEST_F(SqliteDriverTest, ADeadlineStopsAComputation) {
  Database db = Open();
  const MonoTime start = clock_.Now();
  db.SetDeadline(start + 50ms);
  EXPECT_EQ(CodeOf(db.QueryInt64(kForever)), ErrorCode::kTimedOut);
  EXPECT_LT(clock_.Now() - start, 5s);
  EXPECT_EQ(CodeOf(db.QueryInt64(kForever)), ErrorCode::kTimedOut) << "it has passed for the next statement too";
  db.SetDeadline(std::nullopt);
  EXPECT_EQ(*db.QueryInt64("select 7"), 7);
}

TEST_F(SqliteDriverTest, TheDeadlineIsTheClocks) {
  FakeClock fake;
  Database db = Open({.clock = &fake});
  db.SetDeadline(fake.Now() + 10s);
  EXPECT_EQ(
      *db.QueryInt64("with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) select count(*) from n"),
      20'000);
  fake.Advance(10s);
  EXPECT_EQ(CodeOf(db.QueryInt64(kForever)), ErrorCode::kTimedOut);
}

TEST_F(SqliteDriverTest, InterruptFromAnotherThread) {
  Database db = Open();
  std::jthread interrupter([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) db.Interrupt(), std::this_thread::yield();
  });
  EXPECT_EQ(CodeOf(db.QueryInt64(kForever)), ErrorCode::kCancelled);
  interrupter.request_stop();
  interrupter.join();
  EXPECT_EQ(*db.QueryInt64("select 7"), 7);
}

TEST_F(SqliteDriverTest, ConstraintsAreConflictsAndBadSqlIsRejected) {
  Database db = Open();
  ASSERT_TRUE(
      db.Exec("create table p (k integer primary key, t text not null check (t <> 'bad')) strict; "
              "create table c (p integer references p (k)) strict; insert into p values (1, 'a')"));
  EXPECT_EQ(CodeOf(db.Run("insert into p values (?1, ?2)", 1, "b")), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(db.Run("insert into p values (?1, ?2)", 2, nullptr)), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(db.Run("insert into p values (?1, ?2)", 2, "bad")), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(db.Run("insert into c values (?1)", 9)), ErrorCode::kConflict) << "foreign keys are on";
  EXPECT_EQ(CodeOf(db.Run("insert into c values (?1)", "x")), ErrorCode::kConflict) << "strict tables check types";
  EXPECT_EQ(CodeOf(db.Run("insert into nowhere values (1)")), ErrorCode::kRejected);
  EXPECT_EQ(CodeOf(db.Run("selec 1")), ErrorCode::kRejected);
  EXPECT_EQ(CodeOf(db.Run("select ?1", 1, 2)), ErrorCode::kRejected) << "one argument too many";
  EXPECT_NE(last_message_.find("parameter 2"), std::string::npos) << last_message_;
  EXPECT_EQ(CodeOf(db.Prepare("  -- nothing")), ErrorCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(db.QueryInt64("select k from p where k = ?1", 5)), ErrorCode::kNotFound);
  EXPECT_EQ(*db.QueryInt64("select count(*) from p"), 1);
}

TEST_F(SqliteDriverTest, ValuesComeBackAsTheyWentIn) {
  Database db = Open();
  const std::string odd("a\0\xff'", 4);
  auto statement = *db.Prepare("select ?1, ?2, ?3, ?4, ?5, ?6");
  statement.BindAll(std::numeric_limits<std::uint64_t>::max(), odd, Blob{odd}, std::optional<int>{}, 0.1, std::string_view{});
  ASSERT_TRUE(*statement.Step());
  EXPECT_EQ(statement.Uint64(0), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(statement.View(1), odd);
  EXPECT_EQ(statement.View(2), odd);
  EXPECT_TRUE(statement.IsNull(3));
  EXPECT_EQ(statement.Double(4), 0.1);
  EXPECT_EQ(statement.KindOf(5), Statement::Kind::kText) << "an empty text is not NULL";
}

TEST_F(SqliteDriverTest, GarbageIsCorrupt) {
  std::ofstream(path_, std::ios::binary) << std::string(8192, 'x');
  const auto opened = Database::Open(path_, {});
  EXPECT_EQ(CodeOf(opened), ErrorCode::kCorrupt);
  EXPECT_NE(last_message_.find(path_), std::string::npos) << last_message_;
}

TEST_F(SqliteDriverTest, ATruncatedFileIsCorrupt) {
  {
    Database db = Open();
    ASSERT_TRUE(
        db.Exec("create table t (v text); insert into t with recursive n(i) as (select 1 union all select i + 1 from n where "
                "i < 2000) select hex(randomblob(50)) from n"));
    ASSERT_TRUE(db.Exec("pragma wal_checkpoint(truncate)"));
  }
  fs::resize_file(path_, fs::file_size(path_) / 2 / 4096 * 4096);
  const auto read = [&]() -> Result<std::int64_t> {
    MILLRACE_TRY_ASSIGN(Database db, Database::Open(path_, {}));
    return db.QueryInt64("select count(*) from t where v like '%zz%'");
  };
  EXPECT_EQ(CodeOf(read()), ErrorCode::kCorrupt);
}

TEST_F(SqliteDriverTest, ReadOnlyReadsAndRefusesToWrite) {
  EXPECT_EQ(CodeOf(Database::Open(path_, {.access = Access::kReadOnly})), ErrorCode::kUnavailable);
  EXPECT_FALSE(fs::exists(path_)) << "reading must not create the file";
  Database writer = Open();
  ASSERT_TRUE(writer.Exec("create table t (v integer); insert into t values (5)"));
  Database reader = Open({.access = Access::kReadOnly});
  EXPECT_EQ(*reader.QueryInt64("select v from t"), 5);
  EXPECT_EQ(CodeOf(reader.Run("insert into t values (6)")), ErrorCode::kRejected);
}

TEST_F(SqliteDriverTest, FilesArePrivateWhateverTheUmask) {
  const mode_t before = ::umask(0);
  Database db = Open();
  ASSERT_TRUE(db.Exec("create table t (v integer)"));
  ::umask(before);
  for (const char* suffix : {"", "-wal", "-shm"}) {
    struct stat status{};
    ASSERT_EQ(::stat((path_ + suffix).c_str(), &status), 0) << suffix;
    EXPECT_EQ(status.st_mode & 0777u, 0600u) << suffix;
  }
}

// As another process sees it: which one holds the shared lock that keeps others from taking the WAL away.
pid_t SharedLockHolder(const std::string& path) {
  int answer[2];
  EXPECT_EQ(::pipe(answer), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = 0x40000000 + 2;  // SQLite's SHARED_FIRST and SHARED_SIZE
    lock.l_len = 510;
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    const bool asked = fd >= 0 && ::fcntl(fd, F_GETLK, &lock) == 0;
    const pid_t holder = asked && lock.l_type != F_UNLCK ? lock.l_pid : 0;
    ::_exit(::write(answer[1], &holder, sizeof holder) == sizeof holder ? 0 : 1);
  }
  pid_t holder = 0;
  EXPECT_EQ(::read(answer[0], &holder, sizeof holder), static_cast<ssize_t>(sizeof holder));
  ::waitpid(child, nullptr, 0);
  ::close(answer[0]);
  ::close(answer[1]);
  return holder;
}

TEST_F(SqliteDriverTest, ASecondConnectionLeavesTheFirstItsLocks) {
  Database first = Open();
  ASSERT_TRUE(first.Exec("create table t (v integer); insert into t values (5)"));
  EXPECT_EQ(SharedLockHolder(path_), ::getpid());
  Database second = Open();
  EXPECT_EQ(SharedLockHolder(path_), ::getpid());
  EXPECT_EQ(*second.QueryInt64("select v from t"), 5);
}

TEST_F(SqliteDriverTest, ASymbolicLinkAndAMissingFolderAreRefused) {
  fs::create_symlink(folder_ + "/elsewhere.db", path_);
  EXPECT_EQ(CodeOf(Database::Open(path_, {})), ErrorCode::kRejected);
  EXPECT_FALSE(fs::exists(folder_ + "/elsewhere.db"));
  EXPECT_EQ(CodeOf(Database::Open(folder_ + "/none/a.db", {})), ErrorCode::kRejected);
}

TEST_F(SqliteDriverTest, ATransactionIsRolledBackUnlessCommitted) {
  Database db = Open();
  ASSERT_TRUE(db.Exec("create table t (v integer unique)"));
  {
    auto transaction = *Transaction::Begin(db);
    ASSERT_TRUE(db.Run("insert into t values (1)"));
    EXPECT_TRUE(db.InTransaction());
  }
  EXPECT_FALSE(db.InTransaction());
  {
    auto transaction = *Transaction::Begin(db);
    ASSERT_TRUE(db.Run("insert into t values (2)"));
    EXPECT_EQ(CodeOf(db.Run("insert into t values (2)")), ErrorCode::kConflict);
    auto moved = std::move(transaction);
    ASSERT_TRUE(moved.Commit());
  }
  EXPECT_EQ(*db.QueryInt64("select sum(v) from t"), 2) << "a refused row does not take the transaction with it";
}

TEST_F(SqliteDriverTest, TheSecondWriterWaitsAndThenGivesUp) {
  Database first = Open(), second = Open({.busy_timeout = 60ms});
  ASSERT_TRUE(first.Exec("create table t (v integer)"));
  auto held = std::make_optional(*Transaction::Begin(first));
  ASSERT_TRUE(first.Run("insert into t values (1)"));
  MonoTime start = clock_.Now();
  EXPECT_EQ(CodeOf(second.Run("insert into t values (2)")), ErrorCode::kUnavailable);
  EXPECT_NE(last_message_.find("locked by another connection"), std::string::npos) << last_message_;
  EXPECT_GE(clock_.Now() - start, 50ms) << "it did not wait";
  EXPECT_EQ(*second.QueryInt64("select count(*) from t"), 0) << "readers do not wait in WAL mode";
  start = clock_.Now();
  second.SetDeadline(start + 80ms);
  EXPECT_EQ(CodeOf(Transaction::Begin(second)), ErrorCode::kTimedOut);
  EXPECT_GE(clock_.Now() - start, 70ms);
  second.SetDeadline(clock_.Now() + 30s);
  std::jthread committer([&] {
    ::usleep(50'000);
    EXPECT_TRUE(held->Commit());
  });
  EXPECT_TRUE(second.Run("insert into t values (2)")) << "the lock was free within the deadline";
  committer.join();
  EXPECT_EQ(*second.QueryInt64("select count(*) from t"), 2);
}

TEST_F(SqliteDriverTest, ASnapshotThatIsTooOldToWriteIsAConflict) {
  Database first = Open(), second = Open();
  ASSERT_TRUE(first.Exec("create table t (v integer)"));
  auto transaction = *Transaction::Begin(second, Transaction::Mode::kDeferred);
  EXPECT_EQ(*second.QueryInt64("select count(*) from t"), 0);
  ASSERT_TRUE(first.Run("insert into t values (1)"));
  EXPECT_EQ(CodeOf(second.Run("insert into t values (2)")), ErrorCode::kConflict);
}

TEST_F(SqliteDriverTest, AFullDiskAppliesNothingAndTheFileStaysSound) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to mount a small tmpfs";
  const std::string small = folder_ + "/small";
  fs::create_directory(small);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "cannot mount a tmpfs here";
  struct Unmount {
    std::string at;
    ~Unmount() { EXPECT_EQ(::umount(at.c_str()), 0); }
  } const unmount{small};
  const std::string filler = small + "/filler";
  std::ofstream(filler) << std::string(256u << 10, 'x');
  path_ = small + "/a.db";
  {
    Database db = Open();
    ASSERT_TRUE(db.Exec("create table t (v blob); insert into t values ('first')"));
    ErrorCode code = ErrorCode::kCancelled;
    {
      auto transaction = *Transaction::Begin(db);
      for (int i = 0; i < 64; ++i) {
        const auto put = db.Run("insert into t values (zeroblob(65536))");
        if (put) continue;
        code = put.error().code;
        last_message_ = put.error().message;
        break;
      }
      if (code == ErrorCode::kCancelled) code = CodeOf(transaction.Commit());
    }
    EXPECT_EQ(code, ErrorCode::kUnavailable) << last_message_;
    EXPECT_NE(last_message_.find("disk full"), std::string::npos) << last_message_;
    EXPECT_FALSE(db.InTransaction());
    EXPECT_EQ(*db.QueryInt64("select count(*) from t"), 1);
    fs::remove(filler);
    EXPECT_TRUE(db.Run("insert into t values ('second')")) << "it goes on when there is room";
  }
  Database db = Open();
  EXPECT_EQ(*db.QueryInt64("select count(*) from t"), 2);
  auto check = *db.Prepare("pragma integrity_check");
  ASSERT_TRUE(*check.Step());
  EXPECT_EQ(check.View(0), "ok");
}

TEST_F(SqliteDriverTest, NestedUsesOfOneTextGetTheirOwnStatement) {
  Database db = Open();
  constexpr std::string_view kSql = "select ?1";
  auto outer = *db.Prepare(kSql);
  outer.Bind(1, 1);
  auto inner = *db.Prepare(kSql);
  inner.Bind(1, 2);
  ASSERT_TRUE(*outer.Step() && *inner.Step());
  EXPECT_EQ(outer.Int64(0), 1);
  EXPECT_EQ(inner.Int64(0), 2);
  EXPECT_EQ(db.path(), path_);
}

}  // namespace
}  // namespace millrace::sqlite
