// Verification of whole ledgers: rows of many writers, rows larger than what is read at once, and a schema of before. One suite
// for both ledgers.
#include <algorithm>

#include "common/ledger/audit_verify.h"
#include "tests/support/old_ledger.h"

namespace millrace {
namespace {

using testing::LedgerKind;

class LedgerVerifyTest : public testing::OldLedgerTest {
 protected:
  std::string Id(const JobId& id) const { return Postgres() ? "'" + id.ToString() + "'" : "x'" + ToHex(id.uuid.bytes) + "'"; }
  AuditReport Verify(std::size_t records_per_scan) {
    const auto report = VerifyAudit(*ledger_, nullptr, {.batch_records = 3, .records_per_scan = records_per_scan});
    EXPECT_TRUE(report.has_value()) << report.error().message;
    return report.value_or(AuditReport{});
  }
  std::int64_t Count(const std::string& sql) {
    if (Postgres()) return database_->Connect()->Query(sql, In())->Int(0, 0);
    return *sqlite::Database::Open(dsn_, {})->QueryInt64(sql);
  }
};

TEST_P(LedgerVerifyTest, RowsOfManyWritersAreTheirs) {
  const ShardHold hold = Own();
  std::vector<std::unique_ptr<Ledger>> writers;
  for (int i = 0; i < 3; ++i) writers.push_back(Open());
  std::vector<JobSpec> jobs;
  std::uint64_t rows = 0;
  for (int round = 0; round < 12; ++round) {
    auto batch = BatchOf(hold);
    for (int i = 0; i <= round % 4; ++i) batch.jobs.push_back(Job());
    batch.jobs.back().payload.assign(300'000, static_cast<char>('a' + round));  // out of line, where there is such a thing
    if (round > 0) batch.outcomes = {Outcome(jobs.back())};
    rows += batch.jobs.size() + batch.outcomes.size();
    jobs.insert(jobs.end(), batch.jobs.begin(), batch.jobs.end());
    ASSERT_TRUE(writers[static_cast<std::size_t>(round) % writers.size()]->Commit(batch, In()));
  }
  for (const std::size_t records : {1u, 2u, 5u, 1000u}) {
    const AuditReport report = Verify(records);
    EXPECT_TRUE(report.ok) << report.first_bad->explanation;
    EXPECT_EQ(report.rows, rows);
    EXPECT_EQ(report.records, 12u);
  }
  ExpectSound();
  // Two at once: the first in the order of writers and records is the one that is named.
  const JobSpec& early = jobs[1];
  Raw("update job set stage = 'other' where job = " + Id(early.id));
  Raw("delete from outcome where job = " + Id(jobs[9].id));  // a record later, of the same writer
  for (const std::size_t records : {1u, 2u, 1000u}) {
    const AuditReport report = Verify(records);
    ASSERT_TRUE(report.first_bad);
    EXPECT_EQ(report.first_bad->kind, TamperKind::kEdit);
    EXPECT_EQ(report.first_bad->key, "job " + early.id.ToString());
  }
  Raw("update job set stage = '' where job = " + Id(early.id));
  const AuditReport report = Verify(4);
  ASSERT_TRUE(report.first_bad);
  EXPECT_EQ(report.first_bad->kind, TamperKind::kDelete);
}

TEST_P(LedgerVerifyTest, AnOlderSchemaLosesItsAuditIndexesAndGoesOn) {
  MakeSchemaOf(Postgres() ? 12 : 11);
  const std::string indexes =
      Postgres() ? "select count(*) from pg_indexes where schemaname = 'millrace' and indexname like '%audit%' "
                   "and indexname <> 'audit_record_pkey'"
                 : "select count(*) from sqlite_schema where type = 'index' and name like '%\\_audit' escape '\\'";
  ASSERT_GT(Count(indexes), 0);
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  batch.jobs = {Job(), Job()};
  const JobSpec job = batch.jobs[0];
  Commit(batch);
  ASSERT_TRUE(ledger_->Migrate(In()));
  EXPECT_EQ(Count(indexes), 0);
  batch = BatchOf(hold);
  batch.attempts = {Attempt(job, 1, {1, 1, 0})};
  batch.outcomes = {Outcome(job)};
  Commit(batch);
  const AuditReport report = Verify(1000);
  EXPECT_TRUE(report.ok) << report.first_bad->explanation;
  EXPECT_EQ(report.rows, 4u);
  Raw("update job set kind = 'other' where job = " + Id(job.id));
  const AuditReport tampered = Verify(1000);
  ASSERT_TRUE(tampered.first_bad);
  EXPECT_EQ(tampered.first_bad->key, "job " + job.id.ToString());
}

// In SQLite such a column hides the number of a row.
TEST_P(LedgerVerifyTest, AColumnNamedRowidHidesNothing) {
  if (Postgres()) GTEST_SKIP() << "it has no such numbers";
  auto batch = BatchOf(Own());
  batch.jobs = {Job(), Job()};
  const JobSpec job = batch.jobs[1];
  Commit(batch);
  Raw("alter table job add column rowid integer");
  for (const char* more : {"", "_rowid_", "oid"}) {
    if (*more != '\0') Raw(std::string("alter table job add column ") + more + " integer");
    const AuditReport report = Verify(1000);
    EXPECT_TRUE(report.ok) << report.first_bad->explanation;
    EXPECT_EQ(report.rows, 2u);
  }
  Raw("update job set kind = 'other' where job = " + Id(job.id));
  const AuditReport tampered = Verify(1000);
  ASSERT_TRUE(tampered.first_bad);
  EXPECT_EQ(tampered.first_bad->key, "job " + job.id.ToString());
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerVerifyTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& param) { return param.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
