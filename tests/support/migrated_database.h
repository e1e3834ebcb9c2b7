// A database with the ledger's tables, for one test. Header only; needs millrace_ledger and millrace_postgres.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/ledger/ledger.h"
#include "tests/support/test_postgres.h"

namespace millrace::testing {

// REQUIRES: HavePostgres(). A copy of a database that the program migrates once, for a ledger of so many shards: a copy takes
// a fifth of the time. Whoever opens it may migrate it again. Not thread-safe.
inline std::unique_ptr<TestDatabase> MigratedDatabase(const std::string& name, std::uint16_t shards) {
  const SystemClock& clock = TestDatabase::clock();  // first, so that it outlives them
  static std::map<std::uint16_t, std::unique_ptr<TestDatabase>> made;
  auto& model = made[shards];
  if (!model) {
    model = std::make_unique<TestDatabase>("model");
    SystemRandom random;
    const MonoTime deadline = TestDatabase::In(Millis{20'000});
    const auto ledger = OpenPostgresLedger({.dsn = model->dsn(),
                                            .clock = &clock,
                                            .writer = IdGenerator(clock, random).Next<AuditWriterId>(),
                                            .shard_count = shards,
                                            .actor = "test"},
                                           deadline);
    EXPECT_TRUE(ledger && (*ledger)->Migrate(deadline)) << "the tables were not made";
  }
  return std::make_unique<TestDatabase>(name, model->name());
}

}  // namespace millrace::testing
