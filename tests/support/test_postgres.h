// A database of its own for a live test, dropped afterwards. Header only; needs millrace_postgres.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/drivers/postgres.h"

namespace millrace::testing {

// True: MILLRACE_TEST_POSTGRES names a server. Otherwise the caller skips, except on CI, where it must fail.
inline bool HavePostgres() {
  if (std::getenv("MILLRACE_TEST_POSTGRES") != nullptr) return true;
  if (std::getenv("CI") != nullptr) ADD_FAILURE() << "MILLRACE_TEST_POSTGRES is not set";
  return false;
}
#define MILLRACE_NEED_POSTGRES()                                                                                 \
  do {                                                                                                           \
    if (!::millrace::testing::HavePostgres())                                                                    \
      GTEST_SKIP() << "MILLRACE_TEST_POSTGRES is not set: source DIR/env of tests/support/servers.sh start DIR"; \
  } while (false)

// REQUIRES: HavePostgres(). Makes database mr_<name>_<pid>_<n>.
class TestDatabase {
 public:
  explicit TestDatabase(const std::string& name) : TestDatabase(name, "template1") {}
  // A copy of `of`, to which nobody may be connected.
  TestDatabase(const std::string& name, const std::string& of) {
    static std::atomic<int> counter{0};
    name_ = "mr_" + name + "_" + std::to_string(getpid()) + "_" + std::to_string(counter++);
    admin_ = Connect(std::getenv("MILLRACE_TEST_POSTGRES"));
    if (admin_) Exec(*admin_, "create database " + name_ + " template " + of);
  }
  ~TestDatabase() {
    if (admin_) Exec(*admin_, "drop database if exists " + name_ + " with (force)");
  }
  TestDatabase(const TestDatabase&) = delete;
  TestDatabase& operator=(const TestDatabase&) = delete;

  std::string dsn() const { return std::string(std::getenv("MILLRACE_TEST_POSTGRES")) + " dbname=" + name_; }
  const std::string& name() const { return name_; }
  std::unique_ptr<PgConnection> Connect() const { return Connect(dsn()); }
  PgConnection& admin() { return *admin_; }
  static MonoTime In(Millis wait) { return clock().Now() + wait; }
  static const SystemClock& clock() {
    static const SystemClock system;
    return system;
  }

 private:
  static PgOptions OptionsFor(const std::string& dsn) {
    PgOptions options;
    options.dsn = dsn;
    return options;
  }
  static std::unique_ptr<PgConnection> Connect(const std::string& dsn) {
    auto connection = PgConnection::Connect(OptionsFor(dsn), clock(), In(Millis{20'000}));
    if (!connection) {
      ADD_FAILURE() << connection.error().message;
      return nullptr;
    }
    return std::move(*connection);
  }
  static void Exec(PgConnection& connection, const std::string& sql) {
    const auto done = connection.Exec(sql, In(Millis{30'000}));
    EXPECT_TRUE(done.has_value()) << done.error().message;
  }
  std::string name_;
  std::unique_ptr<PgConnection> admin_;
};

}  // namespace millrace::testing
