// What the history checker forgives a destination whose clock was stepped, and what not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/ledger/ledger.h"
#include "tests/checker/check.h"
#include "tests/support/test_postgres.h"

namespace millrace {
namespace {

constexpr std::int64_t kSecond = 1'000'000;
constexpr std::int64_t kStart = 1'800'000'000 * kSecond;

class DestinationClock : public ::testing::Test {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    database_ = std::make_unique<testing::TestDatabase>("clock");
    auto ledger = OpenPostgresLedger(
        {.dsn = database_->dsn(), .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "test"},
        In());
    ASSERT_TRUE(ledger && (*ledger)->Migrate(In()));
    Sql("create table millrace.fence (effect text primary key, token bigint, raised_at timestamptz)");
    Sql("create table millrace.receipt (effect text primary key, token bigint, published_at timestamptz)");
    Sql("create table millrace.staging (effect text, name text, created_at timestamptz)");
  }
  MonoTime In() const { return clock_.Now() + Millis{20'000}; }
  void Sql(const std::string& sql) {
    const auto done = database_->Connect()->QueryOnce(sql, {}, In());
    EXPECT_TRUE(done) << done.error().message;
  }
  // Token 1 publishes at `published`, after token 2 has raised the fence at `raised`; both by the destination's clock.
  void Stale(const std::string& effect, std::int64_t published, std::int64_t raised) {
    const auto at = [](std::int64_t micros) { return fmt::format("timestamptz 'epoch' + interval '{} microseconds'", micros); };
    Sql(fmt::format("insert into millrace.fence values ('{}', 2, {})", effect, at(raised)));
    Sql(fmt::format("insert into millrace.receipt values ('{}', 1, {})", effect, at(published)));
  }
  std::vector<std::string> Found(std::int64_t back, checker::Window stepped) {
    checker::Inputs inputs;
    inputs.ledger = inputs.destination = database_->dsn();
    inputs.skip_audit = true;
    inputs.destination_steps_back = back;
    inputs.destination_stepped = stepped;
    const auto report = checker::Check(inputs);
    EXPECT_TRUE(report) << report.error().message;
    std::vector<std::string> effects;
    for (const checker::Violation& v : report->violations) effects.push_back(v.text.substr(0, v.text.find(':')));
    std::ranges::sort(effects);
    return effects;
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::unique_ptr<testing::TestDatabase> database_;
};

TEST_F(DestinationClock, OnlyReceiptsOfTheTimeOfAStepMaySeemLate) {
  Stale("before", kStart - 1 * kSecond, kStart - 6 * kSecond);
  Stale("within", kStart + 5 * kSecond, kStart + 1 * kSecond);
  Stale("beyond", kStart + 30 * kSecond, kStart + 1 * kSecond);
  Stale("after", kStart + 41 * kSecond, kStart + 39 * kSecond);
  const checker::Window stepped{kStart, kStart + 40 * kSecond};
  EXPECT_EQ(Found(20 * kSecond, stepped), (std::vector<std::string>{"effect after", "effect before", "effect beyond"}));
  EXPECT_EQ(Found(0, {}).size(), 4U);
}

}  // namespace
}  // namespace millrace
