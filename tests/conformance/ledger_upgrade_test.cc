// Ledgers of earlier versions, with what their users may have put into them.
#include "tests/support/old_ledger.h"

namespace millrace {
namespace {

using testing::LedgerKind;

class LedgerUpgradeTest : public testing::OldLedgerTest {
 protected:
  std::int64_t Count(const std::string& sql) {
    if (Postgres()) return database_->Connect()->Query("select count(*) from millrace." + sql, {}, In())->Int(0, 0);
    return *sqlite::Database::Open(dsn_, {})->QueryInt64("select count(*) from " + sql);
  }
  EnqueueTaken Take() {
    auto taken = ledger_->TakeEnqueued(std::vector{ShardOf(kDefaultOrg, testing::kShards)}, In());
    EXPECT_TRUE(taken) << taken.error().message;
    return taken.value_or(EnqueueTaken{});
  }
  void Migrate() {
    const auto migrated = ledger_->Migrate(In());
    ASSERT_TRUE(migrated) << migrated.error().message;
  }
};

// A table that is published and has no key takes no update, not even of no row.
TEST_P(LedgerUpgradeTest, ADatabaseWhoseTablesArePublishedGetsToTheNewestVersion) {
  if (!Postgres()) GTEST_SKIP() << "SQLite publishes nothing";
  MakeSchemaOf(15);
  Raw("create publication everything for all tables");
  Raw("insert into enqueue (kind) values ('')");
  EXPECT_EQ(Take().refused, 1u);
  ASSERT_NO_FATAL_FAILURE(Migrate());
  const JobId id = NewId<JobId>();
  for (int i = 0; i < 2; ++i) {
    Raw("insert into enqueue (job, kind) values ('" + id.ToString() + "', '')");
    EXPECT_EQ(Take().refused, 1u);
  }
  EXPECT_EQ(Count("enqueue_refused"), 2) << "the one from before, and the later of the two of one id";
}

TEST_P(LedgerUpgradeTest, AWeekOnWhichAViewDependsKeepsNoLaterOne) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  MakeSchemaOf(15);
  Raw("create view of_mine as select * from enqueue_refused");
  Raw("insert into enqueue (kind) values (''), (''), ('')");
  EXPECT_EQ(Take().refused, 3u);
  ASSERT_NO_FATAL_FAILURE(Migrate());
  Raw("select ensure_partitions(now() + interval '5 weeks', 1)");
  Raw("insert into enqueue (kind) values ('')");
  EXPECT_EQ(Take().refused, 1u);
  Raw("update enqueue_refused set refused_at = now() + interval '5 weeks' where job = (select max(job::text) from "
      "enqueue_refused)::uuid");
  EXPECT_EQ(Count("enqueue_refused where refused_at > now()"), 1);
  EXPECT_EQ(Count("of_mine"), 3);
  int steps = 0;
  for (; Count("prune_refused(now() + interval '8 weeks', 2) where more") > 0; ++steps) ASSERT_LT(steps, 10);
  EXPECT_EQ(Count("enqueue_refused"), 0);
  EXPECT_EQ(Count("of_mine"), 0) << "what is refused is deleted there, too";
  EXPECT_EQ(Count("weeks_before('enqueue_refused', now() + interval '8 weeks')"), 0);
}

TEST_P(LedgerUpgradeTest, WeeksBeginAtMidnightUtcAlsoInASessionOfAnotherZone) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  // Clocks in Berlin go back on 2026-10-25.
  Raw("set timezone = 'Europe/Berlin'; select ensure_partitions('2026-10-14T00:00:00Z', 1); "
      "select ensure_partitions('2026-10-28T00:00:00Z', 1)");
  EXPECT_EQ(Count("weeks_before('enqueue_refused', '2026-11-09T00:00:00Z') w where w like '%_202610__' or w like '%_20261102'"),
            5);
  Raw("set timezone = 'UTC'; select ensure_partitions('2026-10-21T00:00:00Z', 1)");
}

// Nobody could take such a row, or refuse it, and 500 of them held up what the org put behind them.
TEST_P(LedgerUpgradeTest, RowsWhoseIdIsOfAnotherLengthAreRefused) {
  if (Postgres()) GTEST_SKIP() << "PostgreSQL has a type for ids";
  MakeSchemaOf(14);
  Raw("insert into enqueue (job, kind) values (x'00', 'short'), (cast('0b9f64d3-3f4c-4b9a-8a52-6b0f2d0f3f11' as blob), "
      "'text')");
  Raw("insert into enqueue (kind) values ('good')");
  ASSERT_NO_FATAL_FAILURE(Migrate());
  EXPECT_EQ(Take().accepted, 1u);
  EXPECT_EQ(Count("enqueue"), 0);
  const auto status = ledger_->Enqueued(kDefaultOrg, 10, In());
  ASSERT_TRUE(status) << status.error().message;
  ASSERT_EQ(status->refused.size(), 2u);
  for (const auto& row : status->refused)
    EXPECT_NE(row.reason.find(row.kind == "short" ? "job: x'00' is no UUIDv7" : "is no UUIDv7"), std::string::npos)
        << row.reason;

  for (const std::string id : {"x'00'", "zeroblob(17)"}) {
    const auto refused = TryRaw("insert into enqueue (job, kind) values (" + id + ", 'k')");
    ASSERT_FALSE(refused) << id;
    EXPECT_NE(refused.error().message.find("enqueue.job is no UUIDv7"), std::string::npos) << refused.error().message;
  }
  Raw("insert into enqueue (kind) values ('good')");
  EXPECT_FALSE(TryRaw("update enqueue set job = x'00'"));
  EXPECT_EQ(Take().accepted, 1u);
}

TEST_P(LedgerUpgradeTest, RowsOfOrgsThatNoCommandSpeaksForAreRefused) {
  MakeSchemaOf(Postgres() ? 21 : 16);
  for (const std::string org : {"0", "-1", "1"}) Raw("insert into enqueue (kind, org) values ('noop', " + org + ")");
  ASSERT_NO_FATAL_FAILURE(Migrate());
  std::vector<ShardId> all;
  for (std::uint16_t i = 0; i < testing::kShards; ++i) all.emplace_back(i);
  const auto taken = ledger_->TakeEnqueued(all, In());
  ASSERT_TRUE(taken) << taken.error().message;
  EXPECT_EQ(taken->accepted, 1u);
  EXPECT_EQ(taken->refused, 2u);
  EXPECT_EQ(Count("enqueue_refused where reason like 'org: % is no org; give an integer in [1, %'"), 2);

  for (const std::string org : {"0", "-1"}) {
    const auto refused = TryRaw("insert into enqueue (kind, org) values ('noop', " + org + ")");
    ASSERT_FALSE(refused) << org;
    EXPECT_NE(refused.error().message.find(Postgres() ? "enqueue_org_is_1_or_more" : "1 or more"), std::string::npos)
        << refused.error().message;
  }
  Raw("insert into enqueue (kind) values ('noop')");
  EXPECT_FALSE(TryRaw("update enqueue set org = 0"));
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerUpgradeTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& param) { return param.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
