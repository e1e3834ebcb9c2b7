// Tampers with real ledgers behind their back, 100 times in each of seven ways, and expects the verifier to find every one and
// to name the place. SQLite always; PostgreSQL with MILLRACE_TEST_POSTGRES.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>

#include "common/base/random.h"
#include "common/crypto/checkpoint.h"
#include "common/drivers/sqlite.h"
#include "common/ledger/audit_verify.h"
#include "common/ledger/ledger.h"
#include "common/ledger/rows.h"
#include "common/model/backfill.h"
#include "tests/support/test_postgres.h"

namespace millrace {
namespace {

using ledger::Column;
using ledger::ColumnType;
namespace fs = std::filesystem;
constexpr int kTriesPerKind = 100;

const SystemClock& TheClock() {
  static const SystemClock clock;
  return clock;
}
MonoTime In() { return TheClock().Now() + 30s; }

// One database with a way around the ledger, and snapshots to come back to.
class Store {
 public:
  virtual ~Store() = default;
  virtual Result<std::unique_ptr<Ledger>> Open(AuditWriterId writer, std::string actor) = 0;
  virtual void Snapshot(int number) = 0;                          // keeps the audited tables as they are now
  virtual void Restore(int number) = 0;                           // and puts them back
  virtual Ledger& Reader() = 0;                                   // to verify with
  virtual Result<std::int64_t> Exec(const std::string& sql) = 0;  // one statement; rows changed
  virtual std::string Bytes(std::span<const std::uint8_t> bytes) const = 0;
  virtual std::string Id(const Uuid& id) const = 0;
  virtual std::string RandomId() const = 0;
  // An expression for another value than the one the column has.
  virtual std::string Changed(const Column& column) const = 0;
};

class SqliteTamperStore final : public Store {
 public:
  SqliteTamperStore() {
    char folder[] = "/tmp/millrace_tamper_XXXXXX";
    EXPECT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
  }
  ~SqliteTamperStore() override {
    Close();
    fs::remove_all(folder_);
  }
  Result<std::unique_ptr<Ledger>> Open(AuditWriterId writer, std::string actor) override {
    return OpenSqliteLedger({.dsn = Path(), .clock = &TheClock(), .writer = writer, .actor = std::move(actor)}, In());
  }
  void Snapshot(int number) override {
    auto db = sqlite::Database::Open(Path(), {});
    ASSERT_TRUE(db && db->Exec("pragma wal_checkpoint(truncate)"));
    fs::copy_file(Path(), folder_ + "/" + std::to_string(number), fs::copy_options::overwrite_existing);
  }
  void Restore(int number) override {
    Close();
    for (const char* suffix : {"-wal", "-shm"}) fs::remove(Path() + suffix);
    fs::copy_file(folder_ + "/" + std::to_string(number), Path(), fs::copy_options::overwrite_existing);
    raw_ = std::make_unique<sqlite::Database>(*sqlite::Database::Open(Path(), {.synchronous = sqlite::Synchronous::kOff}));
  }
  Ledger& Reader() override {
    if (!reader_) reader_ = *Open({}, "auditor");
    return *reader_;
  }
  Result<std::int64_t> Exec(const std::string& sql) override {
    MILLRACE_TRY(raw_->Exec(sql));
    return raw_->Changes();
  }
  std::string Bytes(std::span<const std::uint8_t> bytes) const override { return "x'" + ToHex(bytes) + "'"; }
  std::string Id(const Uuid& id) const override { return Bytes(id.bytes); }
  std::string RandomId() const override { return "randomblob(16)"; }
  std::string Changed(const Column& column) const override {
    const std::string name(column.name);
    switch (column.type) {
      case ColumnType::kInt:
      case ColumnType::kTime: return "coalesce(" + name + ", 0) + 1";
      case ColumnType::kBool: return "1 - " + name;
      case ColumnType::kText: return "coalesce(" + name + ", '') || 'x'";
      case ColumnType::kBytes: return "cast(" + name + " || 'x' as blob)";
      case ColumnType::kUuid:
      case ColumnType::kUuidList: return RandomId();
    }
    return "";
  }

 private:
  std::string Path() const { return folder_ + "/ledger.db"; }
  void Close() {
    reader_.reset();
    raw_.reset();
  }
  std::string folder_;
  std::unique_ptr<sqlite::Database> raw_;
  std::unique_ptr<Ledger> reader_;
};

constexpr std::string_view kTableNames[] = {"pipeline_version", "slot",          "run",         "job",
                                            "cancel",           "queue_setting", "backfill",    "dead_action",
                                            "attempt",          "outcome",       "run_outcome", "audit_record"};

class PostgresTamperStore final : public Store {
 public:
  PostgresTamperStore() : database_("tamper"), raw_(database_.Connect()) { EXPECT_TRUE(Exec("set synchronous_commit = off")); }
  Result<std::unique_ptr<Ledger>> Open(AuditWriterId writer, std::string actor) override {
    return OpenPostgresLedger({.dsn = database_.dsn(), .clock = &TheClock(), .writer = writer, .actor = std::move(actor)},
                              In());
  }
  void Snapshot(int number) override {
    std::string sql = fmt::format("create schema s{};", number);
    for (const auto table : kTableNames) sql += fmt::format("create table s{}.{} as table millrace.{};", number, table, table);
    const auto done = raw_->Exec(sql, In());
    ASSERT_TRUE(done) << done.error().message;
  }
  void Restore(int number) override {
    std::string sql = "begin;";
    for (const auto table : kTableNames)
      sql += fmt::format("delete from millrace.{1}; insert into millrace.{1} select * from s{0}.{1};", number, table);
    const auto done = raw_->Exec(sql + "commit", In());
    ASSERT_TRUE(done) << done.error().message;
  }
  Ledger& Reader() override {
    if (!reader_) reader_ = *Open({}, "auditor");
    return *reader_;
  }
  Result<std::int64_t> Exec(const std::string& sql) override {
    MILLRACE_TRY(raw_->Exec("set search_path = millrace", In()));
    MILLRACE_TRY_ASSIGN(const PgResult result, raw_->QueryOnce(sql, {}, In()));
    return result.affected();
  }
  std::string Bytes(std::span<const std::uint8_t> bytes) const override { return "'\\x" + ToHex(bytes) + "'::bytea"; }
  std::string Id(const Uuid& id) const override { return "'" + id.ToString() + "'::uuid"; }
  std::string RandomId() const override { return "gen_random_uuid()"; }
  std::string Changed(const Column& column) const override {
    const std::string name(column.name);
    switch (column.type) {
      case ColumnType::kInt: return name + " + 1";
      case ColumnType::kTime: return "coalesce(" + name + " + interval '1 microsecond', now())";
      case ColumnType::kBool: return "not " + name;
      case ColumnType::kText: return "coalesce(" + name + ", '') || 'x'";
      case ColumnType::kBytes: return name + " || '\\x78'::bytea";
      case ColumnType::kUuid: return RandomId();
      case ColumnType::kUuidList: return "array_append(" + name + ", gen_random_uuid())";
    }
    return "";
  }

 private:
  testing::TestDatabase database_;
  std::unique_ptr<PgConnection> raw_;
  std::unique_ptr<Ledger> reader_;
};

struct RowPlace {
  AuditedRow row;
  const ledger::TableDef* table = nullptr;
};

struct Expected {
  std::set<TamperKind> kinds;
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::optional<std::uint32_t> index;
  std::string table;  // empty: not a row
};

class AuditTamperTest : public ::testing::TestWithParam<std::string> {
 public:
  void SetUp() override {
    if (GetParam() == "postgres") {
      MILLRACE_NEED_POSTGRES();
      store_ = std::make_unique<PostgresTamperStore>();
    } else {
      store_ = std::make_unique<SqliteTamperStore>();
    }
    char folder[] = "/tmp/millrace_checkpoints_XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    checkpoint_dir_ = folder;
    ASSERT_NO_FATAL_FAILURE(Fill());
  }
  void TearDown() override {
    if (!checkpoint_dir_.empty()) fs::remove_all(checkpoint_dir_);
  }

  template <class T>
  T Must(Result<T> result) {
    EXPECT_TRUE(result) << result.error().message;
    if (!result) throw std::runtime_error(result.error().message);
    return std::move(*result);
  }
  void Must(Result<void> result) { ASSERT_TRUE(result) << result.error().message; }

  JobSpec Job(std::optional<RunId> run, std::string stage) {
    JobSpec j;
    j.id = ids_.Next<JobId>();
    j.run = run;
    j.stage = std::move(stage);
    j.kind = "command";
    j.payload = "{}";
    j.submitted_at = TheClock().WallNow();
    return j;
  }
  RunSpec Run() {
    RunSpec r;
    r.id = ids_.Next<RunId>();
    r.pipeline = "flights";
    r.version = 1;
    r.created_at = TheClock().WallNow();
    return r;
  }
  AttemptReport Report(const JobSpec& job, std::uint32_t token, AttemptEnd end) {
    AttemptReport r;
    r.job = job.id;
    r.token = Token::Make(Epoch{1}, token);
    r.end = end;
    r.result = "{}";
    r.worker = "w1";
    r.started_at = r.finished_at = TheClock().WallNow();
    return r;
  }

  void FireSlots(Ledger& scheduler, int round) {
    FireBatch batch;
    for (int i = 0; i < 3; ++i) {
      SlotDecision d;
      d.slot.key = {kDefaultOrg, "flights", "default", FromUnixMicros(1'700'000'000'000'000 + (round * 3 + i) * 60'000'000LL),
                    0};
      d.slot.state = i == 2 ? "missed" : "fired";
      d.slot.decided_at = TheClock().WallNow();
      if (i < 2) {
        d.run = Run();
        d.run->slot = d.slot.key.slot;
        d.slot.run = d.run->id;
        d.jobs = {Job(d.run->id, "a"), Job(d.run->id, "b")};
        d.jobs[1].depends_on = {d.jobs[0].id};
        waiting_.push_back(*d.run);
        jobs_.insert(jobs_.end(), d.jobs.begin(), d.jobs.end());
      }
      batch.decisions.push_back(std::move(d));
    }
    Must(scheduler.Fire(batch, In()));
  }
  void CommitOutcomes(Ledger& broker, ShardHold hold, OwnerId owner, std::uint32_t round) {
    OwnerBatch batch;
    batch.holds = {hold};
    batch.owner = owner;
    batch.jobs = {Job(std::nullopt, ""), Job(std::nullopt, "")};
    for (const JobSpec& job : batch.jobs)
      batch.attempts.push_back({Report(job, round, AttemptEnd::kFailed), kDefaultOrg, {1, 1, 0}, TheClock().WallNow()});
    jobs_.insert(jobs_.end(), batch.jobs.begin(), batch.jobs.end());
    for (std::size_t i = 0; i < 3 && !jobs_.empty(); ++i, jobs_.erase(jobs_.begin()))
      batch.outcomes.push_back({Report(jobs_.front(), round + 100, AttemptEnd::kSucceeded),
                                kDefaultOrg,
                                jobs_.front().run,
                                JobState::kSucceeded,
                                {2, 1, 0},
                                TheClock().WallNow()});
    if (!waiting_.empty()) {
      batch.run_outcomes = {{waiting_.front().id, kDefaultOrg, RunState::kSucceeded, "", TheClock().WallNow()}};
      waiting_.erase(waiting_.begin());
    }
    batch.cancels = {{.item = jobs_.back().id.uuid,
                      .is_run = false,
                      .org = kDefaultOrg,
                      .actor = "cli",
                      .reason = "too late",
                      .requested_at = TheClock().WallNow()}};
    Must(broker.Commit(batch, In()));
  }

  // Two writers, thirteen records, a checkpoint about every second record, a snapshot after each record.
  void Fill() {
    auto scheduler = Must(store_->Open(ids_.Next<AuditWriterId>(), "scheduler s1"));
    auto broker = Must(store_->Open(ids_.Next<AuditWriterId>(), "broker b1"));
    Must(scheduler->Migrate(In()));
    const SigningKey key = Must(SigningKey::FromSeed("0123456789abcdef0123456789abcdef"));
    auto writer = Must(CheckpointWriter::Open(checkpoint_dir_, key, ids_.Next<AuditWriterId>()));
    std::map<AuditWriterId, std::uint64_t> kept;
    MonoTime mono = TheClock().Now();
    const auto note = [&] {
      std::vector<AuditRecord> fresh;
      const auto heads = Must(scheduler->AuditHeads(In()));
      for (const AuditHead& head : heads) {
        for (AuditRecord& r : Must(scheduler->AuditRecords(head.writer, kept[head.writer], 1000, In())))
          fresh.push_back(std::move(r));
        kept[head.writer] = head.seq;
      }
      mono += 6s;
      Must(writer.MaybeWrite(mono, Must(scheduler->Now(In())), heads, fresh));
      store_->Snapshot(++snapshots_);
    };
    Pipeline pipeline;
    pipeline.name = "flights";
    pipeline.schedules.push_back({.cron = "15 6 * * *"});
    Must(scheduler->ApplyPipeline(pipeline, "{}", "source", "/data", kDefaultOrg, In()));
    note();
    Must(scheduler->ApplyPipeline(pipeline, R"({"a": 1})", "source 2", "/data", kDefaultOrg, In()));
    note();
    QueueSettings settings;
    settings.queue = "default";
    settings.concurrency = 4;
    settings = Must(scheduler->PutQueueSettings(settings, "cli", In()));
    BackfillOptions options;
    options.schedule = pipeline.schedules[0];
    BackfillRow backfill;
    backfill.id = ids_.Next<BackfillId>();
    backfill.pipeline = "flights";
    backfill.schedule = "default";
    backfill.from = FromUnixMicros(1'700'000'000'000'000);
    backfill.to = backfill.until = FromUnixMicros(1'700'086'400'000'000);
    backfill.version = 2;
    backfill.options = ToJson(options);
    backfill.actor = "cli test";
    Must(scheduler->CreateBackfill(backfill, In()));
    note();
    const OwnerId owner = ids_.Next<OwnerId>();
    const ShardId shard = ShardOf(kDefaultOrg, 1);
    const Epoch epoch = Must(broker->TakeShard(shard, owner, "b1", In()));
    for (int round = 0; round < 5; ++round) {
      FireSlots(*scheduler, round);
      note();
      CommitOutcomes(*broker, {shard, epoch}, owner, static_cast<std::uint32_t>(round + 1));
      note();
    }
    Must(broker->RequeueDead({.run = {},
                              .jobs = {},
                              .actions = {{.job = ids_.Next<JobId>(),
                                           .org = kDefaultOrg,
                                           .action = DeadAction::kDiscarded,
                                           .new_job = {},
                                           .actor = "cli root@host",
                                           .reason = "known",
                                           .at = TheClock().WallNow()}}},
                             In()));
    note();
    Must(writer.Flush(mono + 60s, Must(scheduler->Now(In())), Must(scheduler->AuditHeads(In()))));
    scheduler.reset();
    broker.reset();
    checkpoints_ = Must(ReadCheckpoints(checkpoint_dir_, key.public_key()));
    store_->Restore(snapshots_);
    heads_ = Must(store_->Reader().AuditHeads(In()));
    records_ = Must(store_->Reader().AuditRecords(std::nullopt, 0, 1000, In()));
    for (const AuditRecord& record : records_)
      for (AuditedRow& row : Must(store_->Reader().AuditedRows(record.writer, record.seq, In())))
        for (const ledger::Table table : ledger::kTables)
          if (ledger::DefOf(table).name == row.table) rows_.push_back({row, &ledger::DefOf(table)});
    const auto clean = Must(VerifyAudit(store_->Reader(), &checkpoints_));
    ASSERT_TRUE(clean.ok) << clean.first_bad->explanation;
    ASSERT_EQ(clean.rows, rows_.size());
    ASSERT_GT(clean.checkpoints, 3u);
    std::set<std::string> tables;
    for (const RowPlace& r : rows_) tables.insert(r.row.table);
    // `pruned` explains rows that are missing: what is tampered with there shows elsewhere, in ledger_prune_test.
    ASSERT_EQ(tables.size(), ledger::kTableCount - 1) << "every other audited table has rows to tamper with";
  }

  std::string Where(const AuditedRow& row) const {
    return Where(row.writer, row.seq) + fmt::format(" and audit_index = {}", row.index);
  }
  std::string Where(AuditWriterId writer, std::uint64_t seq) const {
    return fmt::format("audit_writer = {} and audit_seq = {}", store_->Id(writer.uuid), seq);
  }
  const RowPlace& AnyRow(Random& random) const { return rows_[random.Below(rows_.size())]; }
  // Runs one statement that must change one row; false: a key was taken, choose again.
  bool Changes(const std::string& sql, std::int64_t rows = 1) {
    const auto changed = store_->Exec(sql);
    if (!changed) {
      EXPECT_EQ(changed.error().code, ErrorCode::kConflict) << changed.error().message;
      return false;
    }
    EXPECT_EQ(*changed, rows) << sql;
    return *changed == rows;
  }

  std::optional<Expected> Edit(Random& random) {
    const RowPlace& at = AnyRow(random);
    const Column& column = at.table->columns[random.Below(at.table->columns.size())];
    if (!Changes(
            fmt::format("update {} set {} = {} where {}", at.row.table, column.name, store_->Changed(column), Where(at.row))))
      return {};
    return Expected{{TamperKind::kEdit}, at.row.writer, at.row.seq, at.row.index, at.row.table};
  }
  std::optional<Expected> Delete(Random& random) {
    const RowPlace& at = AnyRow(random);
    if (!Changes(fmt::format("delete from {} where {}", at.row.table, Where(at.row)))) return {};
    return Expected{{TamperKind::kDelete}, at.row.writer, at.row.seq, at.row.index, ""};
  }
  std::optional<Expected> Insert(Random& random) {
    const RowPlace& at = AnyRow(random);
    std::uint64_t seq = at.row.seq;
    std::uint32_t index = at.row.index;
    const std::uint64_t way = random.Below(3);  // at a place that is taken, behind the last, of no record
    if (way == 1) index += 1000;
    if (way == 2) seq += 1000;
    std::string names, values;
    for (std::size_t c = 0; c < at.table->columns.size(); ++c) {
      const Column& column = at.table->columns[c];
      const std::string name(column.name);
      names += name + ", ";
      const bool key = c + 1 == at.table->key_columns;
      values += !key ? name : column.type == ColumnType::kUuid ? store_->RandomId() : name + " + 1000";
      values += ", ";
    }
    if (!Changes(fmt::format(
            "insert into {0} ({1}audit_writer, audit_seq, audit_index) select {2}audit_writer, {3}, {4} from {0} where {5}",
            at.row.table, names, values, seq, index, Where(at.row))))
      return {};
    return Expected{{TamperKind::kInsert}, at.row.writer, seq, index, at.row.table};
  }
  std::optional<Expected> Reorder(Random& random) {
    return random.Below(2) == 0 ? ReorderRows(random) : ReorderRecords(random);
  }
  std::optional<Expected> ReorderRows(Random& random) {
    const RowPlace &a = AnyRow(random), &b = AnyRow(random);
    if (a.row.writer != b.row.writer || a.row.seq != b.row.seq || a.row.index == b.row.index) return {};
    const bool moved =
        Changes(fmt::format("update {} set audit_index = -1 where {}", a.row.table, Where(a.row))) &&
        Changes(fmt::format("update {} set audit_index = {} where {}", b.row.table, a.row.index, Where(b.row))) &&
        Changes(fmt::format("update {} set audit_index = {} where {} and audit_index = -1", a.row.table, b.row.index,
                            Where(a.row.writer, a.row.seq)));
    if (!moved) return {};
    const RowPlace& first = a.row.index < b.row.index ? b : a;  // it stands now where the other one belongs
    return Expected{{TamperKind::kReorder}, a.row.writer, a.row.seq, std::min(a.row.index, b.row.index), first.row.table};
  }
  std::optional<Expected> ReorderRecords(Random& random) {
    const AuditRecord& record = records_[random.Below(records_.size())];
    const std::uint64_t first = record.seq, second = first + 1;
    if (std::ranges::none_of(records_, [&](const AuditRecord& r) { return r.writer == record.writer && r.seq == second; }))
      return {};
    const std::string of = " where writer = " + store_->Id(record.writer.uuid) + " and seq = ";
    const bool moved = Changes(fmt::format("update audit_record set seq = -1{}{}", of, first)) &&
                       Changes(fmt::format("update audit_record set seq = {}{}{}", first, of, second)) &&
                       Changes(fmt::format("update audit_record set seq = {}{}-1", second, of));
    if (!moved) return {};
    for (const ledger::Table table : ledger::kTables) {
      const auto changed =
          store_->Exec(fmt::format("update {} set audit_seq = {} - audit_seq where audit_writer = {} and audit_seq in ({}, {})",
                                   ledger::DefOf(table).name, first + second, store_->Id(record.writer.uuid), first, second));
      EXPECT_TRUE(changed) << changed.error().message;
    }
    return Expected{{TamperKind::kReorder}, record.writer, first, std::nullopt, ""};
  }
  std::optional<Expected> CutTail(Random& random) {
    const AuditRecord& record = records_[random.Below(records_.size())];
    const std::string writer = store_->Id(record.writer.uuid);
    for (const ledger::Table table : ledger::kTables)
      EXPECT_TRUE(store_->Exec(fmt::format("delete from {} where audit_writer = {} and audit_seq >= {}",
                                           ledger::DefOf(table).name, writer, record.seq)));
    const auto gone = store_->Exec(fmt::format("delete from audit_record where writer = {} and seq >= {}", writer, record.seq));
    EXPECT_TRUE(gone && *gone > 0);
    return Expected{{TamperKind::kTruncated, TamperKind::kRestored}, record.writer, record.seq, std::nullopt, ""};
  }
  std::optional<Expected> RestoreOlder(Random& random) {
    store_->Restore(1 + static_cast<int>(random.Below(static_cast<std::uint64_t>(snapshots_ - 1))));
    std::map<AuditWriterId, std::uint64_t> then;
    for (const AuditHead& head : Must(store_->Reader().AuditHeads(In()))) then[head.writer] = head.seq;
    for (const bool present : {true, false})  // chains that exist are walked before those that are gone altogether
      for (const AuditHead& head : heads_)
        if (then.contains(head.writer) == present && then[head.writer] < head.seq)
          return Expected{{TamperKind::kRestored}, head.writer, then[head.writer] + 1, std::nullopt, ""};
    ADD_FAILURE() << "the older copy is not older";
    return {};
  }
  // Changes a row, then every leaf, root and link behind it, as somebody can who has the whole database and no key.
  std::optional<Expected> Recompute(Random& random) {
    const RowPlace& at = AnyRow(random);
    const Column& column = at.table->columns[random.Below(at.table->columns.size())];
    if (!Changes(
            fmt::format("update {} set {} = {} where {}", at.row.table, column.name, store_->Changed(column), Where(at.row))))
      return {};
    AuditRecord last;
    for (AuditRecord record : Must(store_->Reader().AuditRecords(at.row.writer, 0, 1000, In()))) {
      if (record.seq >= at.row.seq) {
        record.leaves.clear();
        for (const AuditedRow& row : Must(store_->Reader().AuditedRows(record.writer, record.seq, In())))
          record.leaves.push_back(row.leaf);
        record.root = MerkleRoot(record.leaves);
        if (record.seq > 1) record.previous = last.Hash();
        std::vector<std::uint8_t> leaves;
        for (const Digest& leaf : record.leaves) leaves.insert(leaves.end(), leaf.begin(), leaf.end());
        EXPECT_TRUE(Changes(fmt::format(
            "update audit_record set previous = {}, leaves = {}, root = {}, hash = {} where writer = {} and seq = {}",
            store_->Bytes(record.previous), store_->Bytes(leaves), store_->Bytes(record.root), store_->Bytes(record.Hash()),
            store_->Id(record.writer.uuid), record.seq)));
      }
      last = record;
    }
    if (random.Below(10) == 0) {
      const auto blind = VerifyAudit(store_->Reader(), nullptr);
      EXPECT_TRUE(blind && blind->ok) << "the recomputation is complete: only a checkpoint can tell";
    }
    return Expected{{TamperKind::kRecomputed}, at.row.writer, at.row.seq, at.row.index, at.row.table};
  }

  using Tamper = std::optional<Expected> (AuditTamperTest::*)(Random&);
  // `checkpoints`: whether this kind needs them.
  void Repeat(std::string_view name, Tamper tamper, bool checkpoints) {
    const std::uint64_t seed = SystemRandom().Next() % 1'000'000'000;
    SeededRandom random(seed);
    SCOPED_TRACE(fmt::format("{} seed {}", name, seed));
    int tampered = 0, found = 0, named = 0;
    bool dirty = true;
    const MonoTime start = TheClock().Now();
    while (tampered < kTriesPerKind && !HasFatalFailure()) {
      if (dirty) store_->Restore(snapshots_);
      const std::optional<Expected> expected = (this->*tamper)(random);
      dirty = expected.has_value();
      if (!expected) continue;
      ++tampered;
      const auto report = VerifyAudit(store_->Reader(), checkpoints ? &checkpoints_ : nullptr);
      ASSERT_TRUE(report) << report.error().message;
      if (report->ok) {
        ADD_FAILURE() << "not found, try " << tampered;
        continue;
      }
      ++found;
      const AuditFinding& bad = *report->first_bad;
      const bool right = expected->kinds.contains(bad.kind) && bad.writer == expected->writer && bad.seq == expected->seq &&
                         (!expected->index || bad.index == expected->index) &&
                         (expected->table.empty() || bad.table == expected->table) &&
                         (expected->table.empty() || !bad.key.empty()) && !bad.explanation.empty();
      if (right)
        ++named;
      else
        ADD_FAILURE() << "wrong place: " << Name(bad.kind) << ": " << bad.explanation << " (expected record " << expected->seq
                      << " of " << expected->writer.ToString() << ")";
    }
    fmt::print("{:8} {:10} tampered {:3}  found {:3}  named {:3}  {} ms\n", GetParam(), name, tampered, found, named,
               std::chrono::duration_cast<Millis>(TheClock().Now() - start).count());
    EXPECT_EQ(found, kTriesPerKind);
    EXPECT_EQ(named, kTriesPerKind);
  }

  SystemRandom random_;
  IdGenerator ids_{TheClock(), random_};
  std::unique_ptr<Store> store_;
  std::string checkpoint_dir_;
  CheckpointSet checkpoints_;
  int snapshots_ = 0;
  std::vector<AuditHead> heads_;
  std::vector<AuditRecord> records_;
  std::vector<RowPlace> rows_;
  std::vector<RunSpec> waiting_;
  std::vector<JobSpec> jobs_;
};

TEST_P(AuditTamperTest, EveryTamperingIsFoundAndNamed) {
  fmt::print("{}: {} records, {} rows, {} checkpoints\n", GetParam(), records_.size(), rows_.size(), checkpoints_.checkpoints);
  Repeat("edit", &AuditTamperTest::Edit, false);
  Repeat("delete", &AuditTamperTest::Delete, false);
  Repeat("insert", &AuditTamperTest::Insert, false);
  Repeat("reorder", &AuditTamperTest::Reorder, false);
  Repeat("truncate", &AuditTamperTest::CutTail, true);
  Repeat("restore", &AuditTamperTest::RestoreOlder, true);
  Repeat("recompute", &AuditTamperTest::Recompute, true);
}

INSTANTIATE_TEST_SUITE_P(Both, AuditTamperTest, ::testing::Values("sqlite", "postgres"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace
