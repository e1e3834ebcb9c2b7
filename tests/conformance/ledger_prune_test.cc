// Retention: whole weeks of finished work go, what is live holds its week, and the audit trail goes on verifying and finding
// what was tampered with. One suite for both ledgers.
#include <algorithm>
#include <set>

#include "common/crypto/checkpoint.h"
#include "common/ledger/audit_verify.h"
#include "common/model/backfill.h"
#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::LedgerKind;

constexpr auto kWeek = std::chrono::hours{24 * 7};
const WallTime kFirstWeek = *ParseRfc3339("2023-11-13T00:00:00Z");  // a Monday

class LedgerPruneTest : public testing::LedgerTest {
 protected:
  // An id as a submitter made it at that time.
  template <class T>
  T IdAt(WallTime time) {
    Uuid id = NewId<T>().uuid;
    const auto ms = static_cast<std::uint64_t>(ToUnixMicros(time) / 1000);
    for (std::size_t i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
    return T{id};
  }
  static WallTime Week(int n) { return kFirstWeek + n * kWeek; }
  void MakePartitions() {
    if (GetParam() == LedgerKind::kPostgres) Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  }
  JobSpec JobAt(WallTime time, std::optional<RunId> run = std::nullopt) {
    JobSpec job = Job(run, run ? "s" : "");
    job.id = IdAt<JobId>(time);
    return job;
  }
  // A run with two jobs, the second of which needed two attempts, and a dead single job that was discarded: all of that week.
  void Finished(Ledger& ledger, ShardHold hold, WallTime time) {
    RunSpec run = Run();
    run.id = IdAt<RunId>(time);
    const JobSpec a = JobAt(time + 1s, run.id), b = JobAt(time + 2s, run.id), single = JobAt(time + 3s);
    auto batch = BatchOf(hold);
    batch.runs = {run};
    batch.jobs = {a, b, single};
    ASSERT_TRUE(ledger.Commit(batch, In()));
    batch = BatchOf(hold);
    batch.attempts = {Attempt(b, 1, {1, 1, 0}), Attempt(b, 2, {2, 2, 0})};
    batch.outcomes = {Outcome(a), Outcome(b), Outcome(single, JobState::kDead)};
    batch.run_outcomes = {{.run = run.id, .state = RunState::kSucceeded, .reason = {}, .finished_at = time + 4s}};
    batch.cancels = {{.item = run.id.uuid, .is_run = true, .actor = "test", .reason = {}, .requested_at = time}};
    ASSERT_TRUE(ledger.Commit(batch, In()));
    const DeadActionRow action{.job = single.id,
                               .org = kDefaultOrg,
                               .action = DeadAction::kDiscarded,
                               .new_job = {},
                               .actor = "test",
                               .reason = {},
                               .at = time + 5s};
    ASSERT_TRUE(ledger.RequeueDead({.run = {}, .jobs = {}, .actions = {action}}, In()));
    singles_.push_back(single);
    runs_.push_back(run.id);
  }
  static constexpr std::uint64_t kRowsOfAWeek = 1 + 3 + 2 + 3 + 1 + 1 + 1;

  PruneRequest Before(WallTime time) {
    return {.before = time, .actor = "test", .sign = [this](std::string_view bytes) {
              const Signature s = key_.Sign(bytes);
              return std::string(s.begin(), s.end());
            }};
  }
  PruneStep Prune(const PruneRequest& request) {
    PruneStep sum;
    do {
      const auto step = ledger_->PruneOldest(request, In());
      EXPECT_TRUE(step) << step.error().message;
      if (!step) break;
      sum.rows += step->rows;
      sum.records += step->records;
      sum.before = step->before;
      sum.held_by = step->held_by;
      sum.more = step->more;
    } while (sum.more);
    return sum;
  }
  AuditReport Verify(const CheckpointSet* checkpoints = nullptr) {
    AuditVerifyOptions options;
    options.key = key_.public_key();
    const auto report = VerifyAudit(*ledger_, checkpoints, options);
    EXPECT_TRUE(report) << report.error().message;
    return report.value_or(AuditReport{});
  }
  void ExpectSound(const CheckpointSet* checkpoints = nullptr) {
    const AuditReport report = Verify(checkpoints);
    EXPECT_TRUE(report.ok) << (report.first_bad ? report.first_bad->explanation : "");
  }
  void ExpectFound(TamperKind kind, std::string_view text) {
    const AuditReport report = Verify();
    ASSERT_TRUE(report.first_bad);
    EXPECT_EQ(report.first_bad->kind, kind);
    EXPECT_TRUE(report.first_bad->explanation.contains(text)) << report.first_bad->explanation;
  }
  // A checkpoint of everything that is there now.
  CheckpointSet Pinned() {
    Checkpoint checkpoint;
    checkpoint.log = NewId<AuditWriterId>();
    checkpoint.sequence = 1;
    checkpoint.at = Now();
    checkpoint.heads = *ledger_->AuditHeads(In());
    const auto records = ledger_->AuditRecords(std::nullopt, 0, 100'000, In());
    EXPECT_TRUE(records) << records.error().message;
    for (const AuditRecord& record : *records) checkpoint.records.push_back(CheckpointEntry::Of(record));
    CheckpointSet set;
    set.Merge(checkpoint);
    return set;
  }
  std::uint64_t Rows() { return Verify().rows; }

  SigningKey key_ = *SigningKey::FromSeed(std::string(32, 's'));
  std::vector<JobSpec> singles_;
  std::vector<RunId> runs_;
  int pruned_weeks_ = 0;
};

TEST_P(LedgerPruneTest, WeeksThatAreOverGoAndTheTrailStillVerifies) {
  MakePartitions();
  const ShardHold hold = Own();
  auto other = Open();  // a chain that ends with the first week: nothing but its last record is left of it
  Finished(*other, hold, Week(0) + 1h);
  for (const int week : {1, 2}) Finished(*ledger_, hold, Week(week) + 1h);
  const CheckpointSet before = Pinned();
  ExpectSound(&before);
  const std::uint64_t rows = Rows();
  EXPECT_EQ(rows, 3 * kRowsOfAWeek);

  EXPECT_EQ(Prune(Before(Week(1) - 1s)).rows, 0u) << "a week that is not over stays whole";
  const PruneStep first = Prune(Before(Week(1) + 3h));
  EXPECT_EQ(first.rows, kRowsOfAWeek);
  EXPECT_EQ(first.before, Week(1));
  EXPECT_EQ(first.records, 2u) << "the chain's last record stays";
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, singles_[0].id, In()));
  EXPECT_FALSE(ledger_->GetRun(kDefaultOrg, runs_[0], In()));
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, singles_[1].id, In()));
  EXPECT_TRUE(ledger_->GetRun(kDefaultOrg, runs_[1], In()));
  ExpectSound(&before);
  EXPECT_EQ(Verify().pruned_rows, 1u);
  EXPECT_EQ(Verify().pruned_records, 2u);

  EXPECT_EQ(Prune(Before(Week(3))).rows, 2 * kRowsOfAWeek);
  ExpectSound(&before);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 0u);
  JobFilter all;
  EXPECT_TRUE(ledger_->ListJobs(all, In())->empty());
  EXPECT_TRUE(ledger_->Retained(In())->empty());

  // An id that was pruned may come again: it is a new job, and goes like the others.
  const ShardHold again = hold;
  auto batch = BatchOf(again);
  batch.jobs = {singles_[0]};
  EXPECT_TRUE(Commit(batch).duplicate_jobs.empty());
  batch = BatchOf(again);
  batch.outcomes = {Outcome(singles_[0])};
  Commit(batch);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 2u);
  ExpectSound(&before);
}

TEST_P(LedgerPruneTest, WhatIsLiveHoldsItsWeekAndTheLaterOnes) {
  MakePartitions();
  const ShardHold hold = Own();
  for (const int week : {0, 1, 2}) Finished(*ledger_, hold, Week(week) + 1h);
  const JobSpec live = JobAt(Week(1) + 2h);
  auto batch = BatchOf(hold);
  batch.jobs = {live};
  Commit(batch);
  const auto weeks = ledger_->Retained(In());
  ASSERT_TRUE(weeks) << weeks.error().message;
  ASSERT_EQ(weeks->size(), 3u);
  EXPECT_EQ((*weeks)[1].begin, Week(1));
  EXPECT_EQ((*weeks)[1].jobs, 4u);
  EXPECT_EQ((*weeks)[1].runs, 1u);
  EXPECT_GT((*weeks)[1].bytes, 0u);
  const auto size = ledger_->SizeOfHistory(100, In());
  ASSERT_TRUE(size) << size.error().message;
  EXPECT_EQ(size->finished_jobs, 9u) << "what is live is not finished";
  EXPECT_GT(size->bytes, 0u);
  EXPECT_EQ(ledger_->SizeOfHistory(5, In())->finished_jobs, 5u) << "no further than its bound";
  PruneRequest dry = Before(Week(3));
  dry.dry_run = true;
  const PruneStep would = Prune(dry);
  EXPECT_EQ(would.before, Week(1));
  EXPECT_TRUE(would.held_by.contains(live.id.ToString())) << would.held_by;
  EXPECT_EQ(would.rows, 0u);
  const PruneStep step = Prune(Before(Week(3)));
  EXPECT_EQ(step.before, Week(1));
  EXPECT_EQ(step.rows, kRowsOfAWeek) << "the dry run took nothing";
  EXPECT_TRUE(step.held_by.contains(live.id.ToString())) << step.held_by;
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, live.id, In()));
  batch = BatchOf(hold);
  batch.outcomes = {Outcome(live)};
  Commit(batch);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 2 * kRowsOfAWeek + 2);
  // A live run holds its jobs however old their ids are.
  RunSpec run = Run();
  const JobSpec old = JobAt(Week(0) + 1h, run.id);
  batch = BatchOf(hold);
  batch.runs = {run};
  batch.jobs = {old};
  Commit(batch);
  EXPECT_EQ(ledger_->Retained(In())->at(0).jobs, 1u) << "that of a live run counts";
  EXPECT_EQ(Prune(Before(Week(3))).rows, 0u);
  ExpectSound();
}

TEST_P(LedgerPruneTest, AWeekOfJobsThatHaveNothingButOutcomesIsCounted) {
  MakePartitions();
  const ShardHold hold = Own();
  Finished(*ledger_, hold, Week(1) + 1h);
  auto batch = BatchOf(hold);
  for (int i = 0; i < 10; ++i) {
    JobSpec job = JobAt(Week(0) + 1h);  // class redis, succeeded at once: nothing stored its spec
    job.options.durability = Durability::kRedis;
    batch.outcomes.push_back(Outcome(job));
  }
  Commit(batch);
  const auto weeks = ledger_->Retained(In());
  ASSERT_TRUE(weeks) << weeks.error().message;
  ASSERT_EQ(weeks->size(), 2u);
  EXPECT_EQ((*weeks)[0].begin, Week(0));
  EXPECT_EQ((*weeks)[0].jobs, 10u);
  EXPECT_EQ((*weeks)[0].runs, 0u);
  EXPECT_EQ((*weeks)[1].jobs, 3u);
  // Ten outcomes beside a run, three specs and three outcomes.
  EXPECT_NEAR(static_cast<double>((*weeks)[0].bytes) / static_cast<double>((*weeks)[1].bytes), 10.0 / 7.0, 0.01);
}

TEST_P(LedgerPruneTest, ARowThatIsNotAsItWasWrittenStopsThePrune) {
  MakePartitions();
  const ShardHold hold = Own();
  Finished(*ledger_, hold, Week(0) + 1h);
  Raw("update outcome set worker = 'another' where state = 11");
  const auto step = ledger_->PruneOldest(Before(Week(3)), In());
  ASSERT_FALSE(step);
  EXPECT_EQ(step.error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(step.error().message.contains("outcome " + singles_[0].id.ToString())) << step.error().message;
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, singles_[0].id, In())) << "nothing went";
  ExpectFound(TamperKind::kEdit, "outcome");
}

TEST_P(LedgerPruneTest, RowsThatWereNotPrunedAreMissed) {
  MakePartitions();
  const ShardHold hold = Own();
  for (const int week : {0, 1}) Finished(*ledger_, hold, Week(week) + 1h);
  Prune(Before(Week(1)));
  ExpectSound();
  Raw("delete from outcome where state = 11");
  ExpectFound(TamperKind::kDelete, "is gone");
}

TEST_P(LedgerPruneTest, NobodyCanDeclareARowPruned) {
  MakePartitions();
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  batch.jobs = {JobAt(Week(0) + 1h), Job()};  // of one record
  Commit(batch);
  batch.outcomes = {Outcome(batch.jobs[0]), Outcome(batch.jobs[1])};
  batch.jobs.clear();
  Commit(batch);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 2u);
  ExpectSound();
  // The list of what is gone, made longer to cover a deletion.
  const std::string all = GetParam() == LedgerKind::kPostgres ? "'\\x03'" : "x'03'";
  Raw("delete from job; update pruned_leaf set bits = " + all + " where seq = 1");
  ExpectFound(TamperKind::kDelete, "differs from the rows that are listed");
  // And the statement about it computed anew: nobody has the key.
  const auto chains = ledger_->PrunedChains(In());
  ASSERT_TRUE(chains && chains->size() == 1u);
  const auto leaves = ledger_->PrunedLeavesOf(chains->front().writer, In());
  ASSERT_TRUE(leaves);
  const std::string digest = ToHex(DigestOf(*leaves));
  Raw("update pruned set leaves = " + (GetParam() == LedgerKind::kPostgres ? "'\\x" + digest + "'" : "x'" + digest + "'"));
  ExpectFound(TamperKind::kDelete, "signature that does not verify");
  Raw(std::string("update pruned set signature = ") + (GetParam() == LedgerKind::kPostgres ? "''" : "x''"));
  ExpectFound(TamperKind::kDelete, "is not signed");
  const auto without_key = VerifyAudit(*ledger_, nullptr);
  ASSERT_TRUE(without_key && without_key->first_bad) << "its own record shows the edit even without the key";
  EXPECT_EQ(without_key->first_bad->table, "pruned");
  // A row that is listed as gone and is there: nobody pruned it.
  Raw("update pruned_leaf set bits = " + all);
  const auto longer = ledger_->PrunedLeavesOf(chains->front().writer, In());
  ASSERT_TRUE(longer && longer->size() == 2u);
  const std::string of_both = ToHex(DigestOf(*longer));
  Raw("update pruned set leaves = " + (GetParam() == LedgerKind::kPostgres ? "'\\x" + of_both + "'" : "x'" + of_both + "'"));
  const auto there = VerifyAudit(*ledger_, nullptr);
  ASSERT_TRUE(there && there->first_bad);
  EXPECT_EQ(there->first_bad->kind, TamperKind::kInsert);
  EXPECT_EQ(there->first_bad->key, "outcome " + batch.outcomes[1].report.job.ToString());
  EXPECT_NE(there->first_bad->explanation.find("although it is listed as pruned"), std::string::npos);
}

TEST_P(LedgerPruneTest, ASlotKeepsItsRowAndItsPrunedRunIsNotActive) {
  MakePartitions();
  const ShardHold hold = Own();
  SlotDecision decision = Slot(0);
  decision.run->id = IdAt<RunId>(Week(0) + 1h);
  decision.slot.run = decision.run->id;
  decision.jobs[0].id = IdAt<JobId>(Week(0) + 2h);
  decision.jobs[0].run = decision.run->id;
  FireBatch fire;
  fire.decisions = {decision};
  ASSERT_TRUE(ledger_->Fire(fire, In()));
  const auto history = [&] {
    const std::vector<WallTime> slots{decision.slot.key.slot};
    const auto all = ledger_->SlotHistories(kDefaultOrg, "flights", "default", slots, In());
    EXPECT_TRUE(all && all->size() == 1u);
    return all && !all->empty() ? all->front() : SlotHistory{};
  };
  EXPECT_FALSE(history().run_ended) << "active";
  auto batch = BatchOf(hold);
  batch.outcomes = {Outcome(decision.jobs[0], JobState::kDead)};
  batch.run_outcomes = {{.run = decision.run->id, .state = RunState::kFailed, .reason = "x", .finished_at = Now()}};
  Commit(batch);
  EXPECT_EQ(history().run_ended, RunState::kFailed);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 4u);
  EXPECT_TRUE(history().run);
  EXPECT_EQ(history().run_ended, RunState::kSucceeded) << "not active, and no failure that somebody would repeat";
  EXPECT_EQ(ledger_->Slots(kDefaultOrg, "flights", 10, In())->size(), 1u);
  ExpectSound();
}

TEST_P(LedgerPruneTest, TheRequestToStopABackfillStaysAndHoldsUpNothing) {
  MakePartitions();
  const ShardHold hold = Own();
  BackfillRow backfill;
  backfill.id = IdAt<BackfillId>(Week(0) + 1h);
  backfill.pipeline = "flights";
  backfill.schedule = "default";
  backfill.from = Week(-1);
  backfill.to = backfill.until = backfill.created_at = Week(0);
  backfill.generation = 1;
  backfill.version = 1;
  backfill.options = ToJson(BackfillOptions{});
  backfill.actor = "test";
  ASSERT_TRUE(ledger_->CreateBackfill(backfill, In()));
  const CancelRow stop{.item = backfill.id.uuid,
                       .is_run = false,
                       .org = kDefaultOrg,
                       .actor = "test",
                       .reason = "wrong range",
                       .requested_at = Week(0) + 2h};
  ASSERT_TRUE(ledger_->RequestCancel(std::span{&stop, 1}, In()));
  for (const int week : {1, 2}) Finished(*ledger_, hold, Week(week) + 1h);

  const PruneStep all = Prune(Before(Week(3)));
  EXPECT_EQ(all.rows, 2 * kRowsOfAWeek);
  EXPECT_FALSE(all.more);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 0u);
  const auto backfills = ledger_->Backfills({}, In());
  ASSERT_TRUE(backfills && backfills->size() == 1u);
  EXPECT_TRUE((*backfills)[0].stopped) << "it would go on";
  ExpectSound();
}

TEST_P(LedgerPruneTest, RefusedRowsOfTheEnqueueTableGoWithTheirWeek) {
  MakePartitions();
  const ShardHold hold = Own();
  auto batch = BatchOf(hold);
  const JobSpec live = JobAt(Week(0) + 2h);  // it holds what is finished, and no refused row
  batch.jobs = {live};
  Commit(batch);
  const auto refused_at = [&](const std::string& queue, WallTime at) {
    Raw("insert into enqueue (kind, queue) values ('', '" + queue + "')");
    const std::vector<ShardId> shards{ShardOf(kDefaultOrg, testing::kShards)};
    ASSERT_EQ(ledger_->TakeEnqueued(shards, In())->refused, 1u);
    const std::string time = GetParam() == LedgerKind::kPostgres ? "'" + ToRfc3339(at) + "'" : std::to_string(ToUnixMicros(at));
    Raw("update enqueue_refused set refused_at = " + time + " where queue = '" + queue + "'");
  };
  const auto left = [&] {
    std::set<std::string> queues;
    for (const EnqueueRefused& row : ledger_->Enqueued(kDefaultOrg, 100, In())->refused) queues.insert(row.queue);
    return queues;
  };
  refused_at("first", Week(0) + 1h);
  refused_at("last_of_first", Week(1) - 1s);
  refused_at("second", Week(1));
  refused_at("new", Now());
  EXPECT_EQ(Prune(Before(Week(1) - 1s)).rows, 0u) << "a week that is not over stays whole";
  EXPECT_EQ(Prune(Before(Week(1) + 3h)).rows, 2u);
  EXPECT_EQ(left(), (std::set<std::string>{"second", "new"}));
  batch = BatchOf(hold);
  batch.outcomes = {Outcome(live)};
  Commit(batch);
  EXPECT_EQ(Prune(Before(Week(3))).rows, 3u) << "the job, its outcome, a refused row";
  EXPECT_EQ(left(), std::set<std::string>{"new"});
  ExpectSound();
}

TEST_P(LedgerPruneTest, WeeksGoAsPartitions) {
  if (GetParam() != LedgerKind::kPostgres) GTEST_SKIP() << "SQLite has no partitions: rows are deleted, 20,000 at a time";
  MakePartitions();
  const ShardHold hold = Own();
  Finished(*ledger_, hold, Week(0) + 1h);
  Finished(*ledger_, hold, Week(40) + 1h);  // of no partition: in the default ones
  const auto count = [&](const std::string& like) {
    auto connection = database_->Connect();
    const auto rows = connection->QueryOnce(
        "select count(*) from pg_inherits h join pg_class c on c.oid = h.inhrelid where c.relkind = 'r' and c.relname like '" +
            like + "'",
        {}, In());
    return rows ? rows->Int(0, 0) : -1;
  };
  EXPECT_EQ(count("%\\_20231113"), 8) << "run, job, attempt, outcome, run_outcome, cancel, dead_action, enqueue_refused";
  EXPECT_EQ(Prune(Before(Week(1))).rows, kRowsOfAWeek);
  EXPECT_EQ(count("%\\_20231113"), 0);
  EXPECT_EQ(count("%\\_20231120"), 8);
  EXPECT_EQ(Prune(Before(Week(41))).rows, kRowsOfAWeek);
  EXPECT_EQ(count("%\\_20231120"), 0);
  ExpectSound();
}

// A ledger in which something happens each time before all rows are read, as it does when others prune meanwhile.
class DisturbedSource final : public AuditSource {
 public:
  DisturbedSource(Ledger& ledger, std::function<void(int look)> disturb) : ledger_(ledger), disturb_(std::move(disturb)) {}
  bool may_hold = true;
  int looks = 0;

  Result<std::vector<AuditHead>> AuditHeads(MonoTime d) override { return ledger_.AuditHeads(d); }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after, std::uint32_t limit,
                                                MonoTime d) override {
    return ledger_.AuditRecords(writer, after, limit, d);
  }
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime d) override {
    return ledger_.AuditedRows(writer, seq, d);
  }
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime d) override {
    disturb_(++looks);
    return ledger_.VisitRows(visit, d);
  }
  Result<std::vector<PrunedChain>> PrunedChains(MonoTime d) override { return ledger_.PrunedChains(d); }
  Result<std::vector<PrunedLeaves>> PrunedLeavesOf(AuditWriterId writer, MonoTime d) override {
    return ledger_.PrunedLeavesOf(writer, d);
  }
  Result<bool> HoldHistory(MonoTime d) override { return may_hold ? ledger_.HoldHistory(d) : Result<bool>(false); }
  void ReleaseHistory() override { ledger_.ReleaseHistory(); }
  Result<AuditTotals> Totals(MonoTime d) override { return ledger_.Totals(d); }
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime d) override { return ledger_.OrphanRows(limit, d); }

 private:
  Ledger& ledger_;
  const std::function<void(int)> disturb_;
};

TEST_P(LedgerPruneTest, ALongPruneIsNoTampering) {
  MakePartitions();
  const ShardHold hold = Own();
  constexpr int kWeeks = 9;
  for (int week = 0; week < kWeeks; ++week) Finished(*ledger_, hold, Week(week) + 1h);
  const CheckpointSet checkpoints = Pinned();
  auto pruner = Open();
  int waited = 0;
  DisturbedSource source(*ledger_, [&](int look) {
    const auto step = pruner->PruneOldest(Before(Week(look)), In());
    ASSERT_TRUE(step) << step.error().message;
    waited += step->waits ? 1 : 0;
    EXPECT_EQ(step->rows, step->waits ? 0u : kRowsOfAWeek);
  });
  const AuditVerifyOptions options{.key = key_.public_key()};
  const auto report = VerifyAudit(source, &checkpoints, options);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->ok) << (report->first_bad ? report->first_bad->explanation : "");
  EXPECT_EQ(source.looks, 2) << "the second look is not disturbed";
  EXPECT_EQ(waited, GetParam() == LedgerKind::kPostgres ? 1 : 0) << "a snapshot of SQLite keeps nobody waiting";

  // Who has waited long enough prunes all the same, and prunes go on after the verification.
  ASSERT_TRUE(*ledger_->HoldHistory(In()));
  EXPECT_EQ(pruner->PruneOldest(Before(Week(3)), In())->waits, GetParam() == LedgerKind::kPostgres);
  PruneRequest despite = Before(Week(3));
  despite.despite_verification = true;
  EXPECT_TRUE(pruner->PruneOldest(despite, In()));
  ledger_->ReleaseHistory();
  Prune(Before(Week(4)));
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, singles_[3].id, In()));
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, singles_[4].id, In()));
  ExpectSound(&checkpoints);
}

TEST_P(LedgerPruneTest, WhoPrunesDespiteAVerificationHasItGiveUp) {
  MakePartitions();
  const ShardHold hold = Own();
  for (int week = 0; week < 9; ++week) Finished(*ledger_, hold, Week(week) + 1h);
  auto pruner = Open();
  DisturbedSource source(*ledger_, [&](int look) {
    PruneRequest request = Before(Week(look));
    request.despite_verification = true;
    EXPECT_EQ(pruner->PruneOldest(request, In())->rows, kRowsOfAWeek);
  });
  source.may_hold = false;
  const auto report = VerifyAudit(source, nullptr, {.key = key_.public_key()});
  ASSERT_FALSE(report) << (report->first_bad ? report->first_bad->explanation : "it cannot know");
  EXPECT_EQ(report.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(report.error().message.contains("pruned during each")) << report.error().message;
  ExpectSound();
}

TEST_P(LedgerPruneTest, WhatIsTamperedWithDuringAPruneIsFound) {
  MakePartitions();
  ASSERT_TRUE(ledger_->ApplyPipeline(Scheduled(), "{}", "as it was", "/data", kDefaultOrg, In()));
  const ShardHold hold = Own();
  for (int week = 0; week < 9; ++week) Finished(*ledger_, hold, Week(week) + 1h);
  const std::string last = singles_.back().id.ToString();
  const std::string id =
      GetParam() == LedgerKind::kPostgres ? "'" + last + "'" : "x'" + ToHex(singles_.back().id.uuid.bytes) + "'";
  auto pruner = Open();
  const auto verify = [&](bool may_hold, const std::string& tamper) {
    DisturbedSource source(*ledger_, [&, first = pruned_weeks_](int look) {
      if (look == 1) Raw(tamper);
      const auto step = pruner->PruneOldest(Before(Week(first + look)), In());
      EXPECT_TRUE(step) << step.error().message;
      if (step && step->rows > 0) ++pruned_weeks_;
    });
    source.may_hold = may_hold;
    return VerifyAudit(source, nullptr, {.key = key_.public_key()});
  };
  const auto deleted = verify(true, "delete from outcome where job = " + id);
  ASSERT_TRUE(deleted) << deleted.error().message;
  ASSERT_TRUE(deleted->first_bad);
  EXPECT_EQ(deleted->first_bad->kind, TamperKind::kDelete);
  EXPECT_TRUE(deleted->first_bad->explanation.contains("is gone")) << deleted->first_bad->explanation;
  // What no prune can have done is said even after looks that were all disturbed.
  const auto edited = verify(false, "update pipeline_version set source = 'as it was not'");
  ASSERT_TRUE(edited) << edited.error().message;
  ASSERT_TRUE(edited->first_bad);
  EXPECT_EQ(edited->first_bad->kind, TamperKind::kEdit);
  EXPECT_EQ(edited->first_bad->table, "pipeline_version");
}

// Whoever writes to the database can say that something was pruned. Nobody signed it.
TEST_P(LedgerPruneTest, WhatNobodySignedHidesNoDeletion) {
  MakePartitions();
  const ShardHold hold = Own();
  for (int week = 0; week < 2; ++week) Finished(*ledger_, hold, Week(week) + 1h);
  Prune(Before(Week(1)));
  const bool postgres = GetParam() == LedgerKind::kPostgres;
  const auto bytes = [&](std::string_view hex) { return (postgres ? "'\\x" : "x'") + std::string(hex) + "'"; };
  const auto junk = [&](const std::string& writer, int number) {
    const std::string digest = bytes(std::string(64, '0')), time = postgres ? "now()" : "0";
    return "insert into pruned (writer, number, through, through_hash, pruned_rows, leaves, before, at, actor, signature, "
           "audit_writer, audit_seq, audit_index) values (" +
           writer + ", " + std::to_string(number) + ", 1, " + digest + ", 1, " + digest + ", " + time + ", " + time +
           ", 'x', " + bytes(std::string(128, '7')) + ", " + writer + ", 1, 0)";
  };
  const auto verify = [&](const std::function<std::string(int)>& insert) {
    DisturbedSource source(*ledger_, [&](int look) { Raw(insert(look)); });
    source.may_hold = false;
    return VerifyAudit(source, nullptr, {.key = key_.public_key()});
  };
  Raw("delete from outcome where state = 11");
  const auto deleted = verify([&](int look) { return junk(postgres ? "gen_random_uuid()" : "randomblob(16)", look); });
  ASSERT_TRUE(deleted) << deleted.error().message;
  ASSERT_TRUE(deleted->first_bad);
  EXPECT_EQ(deleted->first_bad->kind, TamperKind::kDelete) << deleted->first_bad->explanation;
  EXPECT_TRUE(deleted->first_bad->explanation.contains("is gone")) << deleted->first_bad->explanation;
  const std::string real =
      "(select max(writer" + std::string(postgres ? "::text)::uuid" : ")") + " from pruned where actor = 'test')";
  const auto of_real = verify([&](int look) { return junk(real, 1000 + look); });
  ASSERT_TRUE(of_real) << of_real.error().message;
  EXPECT_FALSE(of_real->ok);
}

TEST_P(LedgerPruneTest, SomebodyElseWhoPrunesIsNoVerification) {
  if (GetParam() != LedgerKind::kPostgres) GTEST_SKIP() << "transactions of SQLite wait for one another";
  MakePartitions();
  const ShardHold hold = Own();
  Finished(*ledger_, hold, Week(0) + 1h);
  auto other = database_->Connect();
  ASSERT_TRUE(other->Exec("begin; select pg_advisory_xact_lock(7318349394477059)", In()));
  const auto step = ledger_->PruneOldest(Before(Week(1)), In());
  ASSERT_FALSE(step) << "the clock of those who wait for a verification does not start";
  EXPECT_EQ(step.error().code, ErrorCode::kConflict) << step.error().message;
  ASSERT_TRUE(other->Exec("rollback; select pg_advisory_lock_shared(7318349394477059)", In()));
  const auto held = ledger_->PruneOldest(Before(Week(1)), In());
  ASSERT_TRUE(held) << held.error().message;
  EXPECT_TRUE(held->waits);
  ASSERT_TRUE(other->Exec("select pg_advisory_unlock_shared(7318349394477059)", In()));
  EXPECT_EQ(Prune(Before(Week(1))).rows, kRowsOfAWeek);
  ExpectSound();
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerPruneTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& param) { return param.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
