// Who makes the ledger's tables in PostgreSQL, and who waits for him.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/ledger/migrations.h"
#include "common/ledger/postgres_store.h"
#include "tests/support/migrated_database.h"

namespace millrace::ledger {
namespace {

constexpr std::uint16_t kShards = 4;
constexpr Millis kLockTimeout{50};  // of every other lock
constexpr std::string_view kLock = "select pg_advisory_xact_lock(7318349394477057)";

class MigrateWait : public ::testing::Test {
 protected:
  void SetUp() override { MILLRACE_NEED_POSTGRES(); }
  MonoTime In(Millis wait = Millis{20'000}) const { return clock_.Now() + wait; }
  // Somebody who migrates and does not come to an end, until his connection is closed.
  std::unique_ptr<PgConnection> Holder() {
    auto holder = database_->Connect();
    EXPECT_TRUE(holder->Exec("begin", In()) && holder->Exec(kLock, In()));
    return holder;
  }
  Result<void> Migrate(MonoTime deadline, std::function<bool()> stop = {}) {
    PostgresStore store({.dsn = database_->dsn(),
                         .clock = &clock_,
                         .writer = {},
                         .shard_count = kShards,
                         .actor = "test",
                         .stop = std::move(stop)},
                        kLockTimeout);
    return store.Migrate(kShards, deadline);
  }
  std::int64_t Count(const std::string& sql) {
    const auto rows = database_->Connect()->QueryOnce(sql, {}, In());
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  SystemClock clock_;
  std::unique_ptr<testing::TestDatabase> database_;
};

TEST_F(MigrateWait, TwoWaitForAThirdLongerThanForAnyOtherLock) {
  database_ = std::make_unique<testing::TestDatabase>("wait");
  auto holder = Holder();
  Result<void> first, second;
  std::jthread one([&] { first = Migrate(In()); }), other([&] { second = Migrate(In()); });
  const std::string waiting =
      "select count(*) from pg_locks l where l.locktype = 'advisory' and not l.granted and l.database = (select oid from "
      "pg_database where datname = current_database()) and l.waitstart < clock_timestamp() - interval '100 milliseconds'";
  std::int64_t patient = 0;
  for (const MonoTime until = In(); patient < 2 && clock_.Now() < until; std::this_thread::sleep_for(Millis{5}))
    patient = Count(waiting);
  EXPECT_EQ(patient, 2);
  holder.reset();
  one.join(), other.join();
  EXPECT_TRUE(first) << first.error().message;
  EXPECT_TRUE(second) << second.error().message;
  EXPECT_EQ(Count("select count(*) from millrace.schema_version"), static_cast<std::int64_t>(PostgresMigrations().size()));
}

TEST_F(MigrateWait, EndsWithTheCallersDeadline) {
  database_ = std::make_unique<testing::TestDatabase>("wait");
  const auto holder = Holder();
  const auto refused = Migrate(In(Millis{1'000}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(refused.error().message,
            "another process still makes or changes the tables: start again when it has ended (pg_stat_activity shows it)");
  EXPECT_EQ(Count("select count(*) from pg_namespace where nspname = 'millrace'"), 0);
}

TEST_F(MigrateWait, StopsWhileItWaits) {
  database_ = std::make_unique<testing::TestDatabase>("wait");
  auto holder = Holder();
  std::atomic<bool> stop{false};
  Result<void> refused;
  std::jthread one([&] { refused = Migrate(In(), [&] { return stop.load(); }); });
  const std::string waiting =
      "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database "
      "where datname = current_database())";
  for (const MonoTime until = In(); Count(waiting) == 0 && clock_.Now() < until; std::this_thread::sleep_for(Millis{5})) {
  }
  const MonoTime asked = clock_.Now();
  stop = true;
  one.join();
  EXPECT_LT(clock_.Now() - asked, Millis{2'000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(Count(waiting), 0);
  holder.reset();
  EXPECT_TRUE(Migrate(In(), [] { return false; }));
}

TEST_F(MigrateWait, StopsBetweenTwoVersionsAndTheNextOneGoesOn) {
  database_ = std::make_unique<testing::TestDatabase>("wait");
  const auto all = PostgresMigrations();
  const auto connection = database_->Connect();
  ASSERT_TRUE(
      connection->Exec("create schema millrace; set search_path to millrace; create table schema_version (version "
                       "integer primary key, applied_at timestamptz not null default now())",
                       In()));
  const std::int64_t old = 5;
  for (std::size_t v = 0; v < old; ++v)
    ASSERT_TRUE(connection->Exec(fmt::format("{}; insert into schema_version values ({})", all[v], v + 1), In()));
  ASSERT_TRUE(
      connection->Exec(fmt::format("insert into ledger_setting (name, number) values ('shard_count', {})", kShards), In()));
  const auto version = [&] { return Count("select max(version) from millrace.schema_version"); };
  const auto stopped = Migrate(In(), [&] { return version() > old; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(version(), old + 1) << "the version that it was making is made";
  const auto done = Migrate(In());
  EXPECT_TRUE(done) << done.error().message;
  EXPECT_EQ(version(), static_cast<std::int64_t>(all.size()));
}

TEST_F(MigrateWait, ACurrentSchemaNeedsNoLock) {
  database_ = testing::MigratedDatabase("wait", kShards);
  const auto holder = Holder();
  const auto done = Migrate(In());
  EXPECT_TRUE(done) << done.error().message;
}

}  // namespace
}  // namespace millrace::ledger
