// A ledger of each kind with an owner, and rows to put into it: the fixture of the ledger's conformance suites. PostgreSQL
// needs MILLRACE_TEST_POSTGRES.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/drivers/sqlite.h"
#include "common/ledger/ledger.h"
#include "tests/support/migrated_database.h"

namespace millrace::testing {

enum class LedgerKind { kPostgres, kSqlite };
inline constexpr std::uint16_t kShards = 4;

class LedgerTest : public ::testing::TestWithParam<LedgerKind> {
 protected:
  void SetUp() override {
    if (GetParam() == LedgerKind::kPostgres) {
      MILLRACE_NEED_POSTGRES();
      database_ = MigratedDatabase("ledger", kShards);
      dsn_ = database_->dsn();
    } else {
      char folder[] = "/tmp/millrace_ledger_XXXXXX";
      ASSERT_NE(mkdtemp(folder), nullptr);
      folder_ = folder;
      dsn_ = folder_ + "/ledger.db";
    }
    ledger_ = Open();
    const auto migrated = ledger_->Migrate(In());
    ASSERT_TRUE(migrated.has_value()) << migrated.error().message;
  }
  void TearDown() override {
    ledger_.reset();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  MonoTime In() const { return clock_.Now() + 20s; }
  template <class T>
  T NewId() {
    return ids_.Next<T>();
  }
  std::unique_ptr<Ledger> Open() {
    last_writer_ = NewId<AuditWriterId>();
    const LedgerOptions options{.dsn = dsn_, .clock = &clock_, .writer = last_writer_, .shard_count = kShards, .actor = "test"};
    auto opened = GetParam() == LedgerKind::kPostgres ? OpenPostgresLedger(options, In()) : OpenSqliteLedger(options, In());
    EXPECT_TRUE(opened.has_value()) << opened.error().message;
    return std::move(*opened);
  }
  Result<void> TryRaw(const std::string& sql) {  // behind the ledger's back
    if (GetParam() == LedgerKind::kPostgres) return database_->Connect()->Exec("set search_path = millrace; " + sql, In());
    MILLRACE_TRY_ASSIGN(auto db, sqlite::Database::Open(dsn_, {}));
    return db.Exec(sql);
  }
  void Raw(const std::string& sql) {
    const auto done = TryRaw(sql);
    ASSERT_TRUE(done.has_value()) << done.error().message;
  }
  WallTime Now() { return *ledger_->Now(In()); }

  JobSpec Job(std::optional<RunId> run = std::nullopt, std::string stage = "") {
    JobSpec j;
    j.id = NewId<JobId>();
    j.run = run;
    j.stage = std::move(stage);
    j.kind = "command";
    j.payload = std::string("a\0b", 3) + "\xff'\"\\";
    j.submitted_at = FromUnixMicros(1'700'000'000'123'457);
    return j;
  }
  RunSpec Run(std::string pipeline = "flights") {
    RunSpec r;
    r.id = NewId<RunId>();
    r.pipeline = std::move(pipeline);
    r.version = 1;
    r.params = R"({"since": "2001-01-01"})";
    r.created_at = FromUnixMicros(1'700'000'000'000'001);
    return r;
  }
  OutcomeRow Outcome(const JobSpec& job, JobState state = JobState::kSucceeded) {
    OutcomeRow o;
    o.report.job = job.id;
    o.report.token = Token::Make(Epoch{3}, 7);
    o.report.end = state == JobState::kSucceeded ? AttemptEnd::kSucceeded : AttemptEnd::kFailed;
    o.report.error = "it's \"broken\": Zürich 東京 𝄞";
    o.report.result = R"({"rows": 1})";
    o.report.exit_code = -3;
    o.report.signal = 9;
    o.report.log_tail = std::string("x\0\xfe", 3);
    o.report.worker = "w1";
    o.report.started_at = FromUnixMicros(1'700'000'001'000'003);
    o.report.finished_at = FromUnixMicros(1'700'000'002'999'999);
    o.run = job.run;
    o.state = state;
    o.counters = {4, 2, 1};
    o.recorded_at = FromUnixMicros(1'700'000'003'000'000);
    return o;
  }
  AttemptRow Attempt(const JobSpec& job, std::uint32_t counter, Counters counters) {
    AttemptRow a;
    a.report = Outcome(job, JobState::kDead).report;
    a.report.token = Token::Make(Epoch{1}, counter);
    a.counters = counters;
    a.next_run_at = FromUnixMicros(1'700'000'100'000'000 + counter);
    return a;
  }
  // The shard of the default org, owned by `owner_`.
  ShardHold Own() {
    const ShardId shard = ShardOf(kDefaultOrg, kShards);
    const auto epoch = ledger_->TakeShard(shard, owner_, "b1", In());
    EXPECT_TRUE(epoch.has_value()) << epoch.error().message;
    return {shard, *epoch};
  }
  OwnerBatch BatchOf(ShardHold hold) {
    OwnerBatch b;
    b.holds = {hold};
    b.owner = owner_;
    return b;
  }
  OwnerBatchResult Commit(const OwnerBatch& batch) {
    auto done = ledger_->Commit(batch, In());
    EXPECT_TRUE(done.has_value()) << done.error().message;
    return done.value_or(OwnerBatchResult{});
  }
  // Every record of every chain: linked, rooted, and its rows are what the tables hold.
  void ExpectSound() {
    const auto records = ledger_->AuditRecords(std::nullopt, 0, 100'000, In());
    ASSERT_TRUE(records.has_value()) << records.error().message;
    std::map<AuditWriterId, std::pair<std::uint64_t, Digest>> heads;
    for (const AuditRecord& r : *records) {
      auto& [seq, head] = heads[r.writer];
      EXPECT_EQ(r.seq, ++seq);
      EXPECT_EQ(r.previous, head);
      EXPECT_EQ(r.root, MerkleRoot(r.leaves));
      head = r.Hash();
      const auto rows = ledger_->AuditedRows(r.writer, r.seq, In());
      ASSERT_TRUE(rows.has_value()) << rows.error().message;
      ASSERT_EQ(rows->size(), r.leaves.size());
      for (std::size_t i = 0; i < rows->size(); ++i) {
        EXPECT_EQ((*rows)[i].index, i);
        EXPECT_EQ((*rows)[i].leaf, r.leaves[i]) << (*rows)[i].key;
      }
    }
    const auto stored = ledger_->AuditHeads(In());
    ASSERT_TRUE(stored.has_value()) << stored.error().message;
    EXPECT_EQ(stored->size(), heads.size());
    for (const AuditHead& h : *stored) {
      EXPECT_EQ(h.seq, heads[h.writer].first);
      EXPECT_EQ(h.hash, heads[h.writer].second);
    }
    const auto orphans = ledger_->OrphanRows(10, In());
    ASSERT_TRUE(orphans.has_value()) << orphans.error().message;
    EXPECT_TRUE(orphans->empty());
  }
  SlotDecision Slot(std::int64_t minute, bool fired = true) {
    SlotDecision d;
    d.slot.key = {kDefaultOrg, "flights", "default", FromUnixMicros(1'700'000'040'000'000 + minute * 60'000'000), 0};
    d.slot.state = fired ? "fired" : "missed";
    d.slot.reason = fired ? "" : "misfire";
    d.slot.decided_at = FromUnixMicros(1'700'000'050'000'001);
    if (fired) {
      d.run = Run();
      d.run->schedule = "default";
      d.run->slot = d.slot.key.slot;
      d.slot.run = d.run->id;
      d.jobs.push_back(Job(d.run->id, "extract"));
    }
    return d;
  }
  static RunFilter Filter(std::optional<std::string> pipeline, std::optional<RunState> state) {
    RunFilter filter;
    filter.pipeline = std::move(pipeline);
    filter.state = state;
    return filter;
  }
  Pipeline Scheduled() {
    Pipeline p;
    p.name = "flights";
    p.schedules.emplace_back().cron = "15 6 * * *";
    return p;
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::unique_ptr<TestDatabase> database_;
  std::string folder_, dsn_;
  AuditWriterId last_writer_;
  OwnerId owner_ = ids_.Next<OwnerId>();
  std::unique_ptr<Ledger> ledger_;
};

}  // namespace millrace::testing
