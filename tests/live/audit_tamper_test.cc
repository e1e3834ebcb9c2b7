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
#include "common/ledger/audit_follow.h"
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
  // What whoever owns the database can do first: the table takes anything from now on (any type too, where the database
  // allows).
  virtual void DropConstraints(std::string_view table) = 0;
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

  void DropConstraints(std::string_view table) override {
    for (const char* sql :
         {"drop trigger if exists audit_record_inserted", "drop trigger if exists audit_record_updated",
          "create table anything as select * from {0}", "drop table {0}", "alter table anything rename to {0}"})
      ASSERT_TRUE(Exec(fmt::format(fmt::runtime(sql), table))) << sql;
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
    reader_.reset();  // it knows the tables as they were
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

  void DropConstraints(std::string_view table) override {
    const auto dropped = Exec(fmt::format(
        "do $$ declare c record; begin "
        "for c in select conname from pg_constraint where conrelid = 'millrace.{0}'::regclass and contype in ('c', 'p') loop "
        "execute format('alter table millrace.{0} drop constraint %I', c.conname); end loop; "
        "for c in select attname from pg_attribute where attrelid = 'millrace.{0}'::regclass and attnum > 0 and attnotnull "
        "loop "
        "execute format('alter table millrace.{0} alter column %I drop not null', c.attname); end loop; end $$",
        table));
    ASSERT_TRUE(dropped) << dropped.error().message;
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
        Changes(fmt::format("update {} set audit_index = 1000000 where {}", a.row.table, Where(a.row))) &&
        Changes(fmt::format("update {} set audit_index = {} where {}", b.row.table, a.row.index, Where(b.row))) &&
        Changes(fmt::format("update {} set audit_index = {} where {} and audit_index = 1000000", a.row.table, b.row.index,
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
    const bool moved = Changes(fmt::format("update audit_record set seq = 1000000{}{}", of, first)) &&
                       Changes(fmt::format("update audit_record set seq = {}{}{}", first, of, second)) &&
                       Changes(fmt::format("update audit_record set seq = {}{}1000000", second, of));
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

  // An audit record as somebody writes it who knows the format. No rows: its leaves stand for whatever he likes.
  AuditRecord Forged(AuditWriterId writer, std::uint64_t seq, WallTime at, std::vector<Digest> leaves) const {
    AuditRecord record;
    record.writer = writer;
    record.seq = seq;
    record.at = at;
    record.actor = "broker b1";
    record.root = MerkleRoot(leaves);
    record.leaves = std::move(leaves);
    return record;
  }
  std::string Insert(const AuditRecord& r, std::string_view writer = "") const {
    std::vector<std::uint8_t> leaves;
    for (const Digest& leaf : r.leaves) leaves.insert(leaves.end(), leaf.begin(), leaf.end());
    const bool sqlite = GetParam() == "sqlite";
    const std::string at = sqlite ? std::to_string(ToUnixMicros(r.at)) : "'" + ToRfc3339(r.at) + "'";
    return fmt::format(
        "insert into audit_record (writer, seq, previous, at, actor, leaves, root, hash) values ({}, {}, {}, {}, "
        "'{}', {}, {}, {})",
        writer.empty() ? store_->Id(r.writer.uuid) : writer, static_cast<std::int64_t>(r.seq), store_->Bytes(r.previous), at,
        r.actor, store_->Bytes(leaves), store_->Bytes(r.root), store_->Bytes(r.Hash()));
  }
  // A copy of some row of the table under another key, which claims a place in the trail.
  std::string InsertCopy(std::string_view table, std::string_view writer, std::int64_t seq, std::int64_t index) const {
    const auto of = std::ranges::find(rows_, table, [](const RowPlace& r) { return std::string_view(r.row.table); });
    std::string names, values;
    for (std::size_t c = 0; c < of->table->columns.size(); ++c) {
      const Column& column = of->table->columns[c];
      names += std::string(column.name) + ", ";
      const bool key = c + 1 == of->table->key_columns;
      values += !key                               ? std::string(column.name)
                : column.type == ColumnType::kUuid ? store_->RandomId()
                                                   : std::string(column.name) + " + 1000";
      values += ", ";
    }
    return fmt::format("insert into {0} ({1}audit_writer, audit_seq, audit_index) select {2}{3}, {4}, {5} from {0} where {6}",
                       table, names, values, writer, seq, index, Where(of->row));
  }
  // The report after `statements` must have a finding, without any checkpoint; everything is put back afterwards.
  AuditFinding MustBeFound(std::vector<std::string> statements, std::string_view what) {
    for (const std::string& sql : statements) {
      const auto done = store_->Exec(sql);
      EXPECT_TRUE(done) << what << ": " << (done ? "" : done.error().message) << "\n" << sql;
      EXPECT_GT(done.value_or(0), 0) << what << ": changed nothing: " << sql;
    }
    AuditFinding finding;
    const auto report = Must(VerifyAudit(store_->Reader(), nullptr));
    EXPECT_FALSE(report.ok) << what;
    if (report.first_bad) finding = *report.first_bad;
    store_->Restore(snapshots_);
    return finding;
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

// A record with a number below 1 is in no chain: what claims it was written by nobody.
TEST_P(AuditTamperTest, RowsOfARecordBeforeTheFirstAreFound) {
  const AuditRecord zero = Forged(records_[0].writer, 0, records_[0].at, {});
  EXPECT_FALSE(store_->Exec(Insert(zero))) << "the schema does not take it";
  store_->DropConstraints("audit_record");
  store_->Snapshot(++snapshots_);
  for (const AuditWriterId writer : {records_[0].writer, ids_.Next<AuditWriterId>()})
    for (const std::int64_t seq : {0, -5}) {
      const std::string record = Insert(Forged(writer, static_cast<std::uint64_t>(seq), records_[0].at, {Sha256("leaf")}));
      EXPECT_EQ(MustBeFound({record}, "a record").kind, TamperKind::kRecordInserted);
      for (const ledger::Table table : ledger::kTables) {
        // A copy of a backfill would be a generation that is taken; nothing was pruned here (see ledger_prune_test).
        if (table == ledger::Table::kBackfill || table == ledger::Table::kPruned) continue;
        const std::string name(ledger::DefOf(table).name);
        const auto bad = MustBeFound({record, InsertCopy(name, store_->Id(writer.uuid), seq, 0)}, name);
        EXPECT_EQ(bad.kind, TamperKind::kInsert) << name << ": " << bad.explanation;
        EXPECT_EQ(bad.table, name);
        EXPECT_FALSE(bad.key.empty());
      }
    }
}

TEST_P(AuditTamperTest, PlacesThatLookAlikeInFewerBitsAreFound) {
  for (const ledger::Table table : ledger::kTables) store_->DropConstraints(ledger::DefOf(table).name);
  if (GetParam() == "postgres") {
    for (const ledger::Table table : ledger::kTables)
      ASSERT_TRUE(store_->Exec(fmt::format("alter table {} alter column audit_index type bigint", ledger::DefOf(table).name)));
  }
  store_->Snapshot(++snapshots_);
  for (const ledger::Table table : ledger::kTables) {
    if (table == ledger::Table::kPruned) continue;  // nothing was
    const std::string_view name = ledger::DefOf(table).name;
    MustBeFound({fmt::format("update {} set audit_index = audit_index + 4294967296", name)}, name);
    MustBeFound({fmt::format("update {} set audit_seq = -audit_seq", name)}, name);
  }
  for (const char* change : {"audit_index = audit_index - 4294967296", "audit_index = -1 - audit_index", "audit_index = null",
                             "audit_writer = null", "audit_seq = null"})
    MustBeFound({fmt::format("update job set {}", change)}, change);
  const auto bad = MustBeFound({"update run set audit_index = audit_index + 4294967296"}, "run");
  EXPECT_EQ(bad.kind, TamperKind::kInsert);
  EXPECT_EQ(bad.table, "run");
}

// The rest of an audit record: what neither its own hash nor its rows' leaves cover.
TEST_P(AuditTamperTest, EveryColumnOfARecordCounts) {
  store_->DropConstraints("audit_record");
  store_->Snapshot(++snapshots_);
  const std::string longer = GetParam() == "sqlite" ? " = cast({} || x'00' as blob)" : " = {} || '\\x00'::bytea";
  for (const AuditRecord& record : {records_[0], records_[1], records_.back()}) {
    const std::string of = fmt::format(" where writer = {} and seq = {}", store_->Id(record.writer.uuid), record.seq);
    for (const char* column : {"previous", "leaves", "root", "hash"}) {
      MustBeFound({fmt::format("update audit_record set {}{}{}", column, fmt::format(fmt::runtime(longer), column), of)},
                  column);
      MustBeFound({fmt::format("update audit_record set {} = {}{}", column, store_->Bytes({}), of)}, column);
      MustBeFound({fmt::format("update audit_record set {} = {}{}", column, store_->Bytes(Sha256("x")), of)}, column);
    }
    MustBeFound({"update audit_record set actor = 'somebody'" + of}, "actor");
    MustBeFound({"insert into audit_record select * from audit_record" + of}, "a copy");
    const auto bad = MustBeFound({Insert(Forged(record.writer, 1, record.at, {}), "null")}, "a record of nobody");
    EXPECT_EQ(bad.kind, TamperKind::kRecordInserted) << bad.explanation;
  }
}

// SQLite tables can be made to take any type: '10abc' reads as the number 10, and a text may hold the bytes of an id.
TEST_P(AuditTamperTest, CellsOfAnotherTypeOrShapeAreFound) {
  if (GetParam() == "postgres") {
    const auto bad =
        MustBeFound({"update job set depends_on = array_append(depends_on, null) where depends_on <> '{}'"}, "a null");
    EXPECT_EQ(bad.kind, TamperKind::kEdit);
    MustBeFound({"update job set depends_on = ('[5:5]={' || depends_on[1] || '}')::uuid[] where depends_on <> '{}'"}, "bounds");
    MustBeFound({"update job set depends_on = ('{{' || depends_on[1] || '}}')::uuid[] where depends_on <> '{}'"}, "dimensions");
    return;
  }
  for (const ledger::Table table : ledger::kTables) store_->DropConstraints(ledger::DefOf(table).name);
  store_->DropConstraints("audit_record");
  store_->Snapshot(++snapshots_);
  for (const ledger::Table table : ledger::kTables) {
    if (table == ledger::Table::kPruned) continue;  // nothing was
    const ledger::TableDef& def = ledger::DefOf(table);
    for (const Column& column : def.columns) {
      const bool number =
          column.type == ColumnType::kInt || column.type == ColumnType::kBool || column.type == ColumnType::kTime;
      const std::string cast = number                             ? "{0} || 'abc'"
                               : column.type == ColumnType::kText ? "cast({0} as blob)"
                                                                  : "cast({0} as text)";
      const auto some = store_->Exec(fmt::format("update {0} set {1} = {1} where {1} is not null", def.name, column.name));
      if (!some || *some == 0) continue;
      const auto bad = MustBeFound({fmt::format("update {0} set {1} = {2} where {1} is not null", def.name, column.name,
                                                fmt::format(fmt::runtime(cast), column.name))},
                                   column.name);
      EXPECT_EQ(bad.kind, TamperKind::kEdit) << def.name << "." << column.name << ": " << bad.explanation;
    }
    for (const char* change : {"audit_index = audit_index || 'abc'", "audit_index = audit_index + 0.25",
                               "audit_seq = cast(audit_seq as blob)", "audit_writer = cast(audit_writer as text)"})
      MustBeFound({fmt::format("update {} set {}", def.name, change)}, change);
  }
  for (const char* change : {"seq = cast(seq as blob)", "at = at || 'abc'", "actor = cast(actor as blob)", "seq = seq + 0.25",
                             "previous = cast(previous as text)", "writer = cast(writer as text)"})
    MustBeFound({fmt::format("update audit_record set {}", change)}, change);
  // A record and a row that agree on a writer that is no id.
  const AuditRecord record = Forged(records_[0].writer, 1, records_[0].at, {Sha256("leaf")});
  for (const char* writer : {"'a text of 16 b.'", "x'0102'", "17", "zeroblob(17)"}) {
    const auto bad = MustBeFound({Insert(record, writer), InsertCopy("run", writer, 1, 0)}, writer);
    EXPECT_EQ(bad.kind, TamperKind::kInsert) << bad.explanation;
    EXPECT_EQ(bad.table, "run");
  }
}

// A chain of a made-up writer that is sound in itself: a record that says it is of 2023, and its run. Who signs it next does
// not make it true.
TEST_P(AuditTamperTest, AForgedChainThatIsDatedBackIsLateBeforeAndAfterItIsSigned) {
  const AuditWriterId writer = ids_.Next<AuditWriterId>();
  ASSERT_TRUE(Changes(InsertCopy("run", store_->Id(writer.uuid), 1, 0)));
  const auto rows = Must(store_->Reader().AuditedRows(writer, 1, In()));
  ASSERT_EQ(rows.size(), 1u);
  const AuditRecord record = Forged(writer, 1, FromUnixMicros(1'690'000'000'000'000), {rows[0].leaf});
  ASSERT_TRUE(Changes(Insert(record)));
  EXPECT_TRUE(Must(VerifyAudit(store_->Reader(), nullptr)).ok) << "nothing else is wrong with it";
  auto bad = Must(VerifyAudit(store_->Reader(), &checkpoints_)).first_bad;
  ASSERT_TRUE(bad);
  EXPECT_EQ(bad->kind, TamperKind::kLate) << bad->explanation;
  EXPECT_EQ(bad->writer, writer);

  const SigningKey key = Must(SigningKey::FromSeed("0123456789abcdef0123456789abcdef"));
  auto next = Must(CheckpointWriter::Open(checkpoint_dir_, key, ids_.Next<AuditWriterId>()));
  AuditFollower follower(next.written());
  const AuditNews news = Must(follower.Read(store_->Reader(), 1000, In()));
  EXPECT_EQ(news.records.size(), 1u) << "what was signed before is not read again";
  EXPECT_TRUE(news.complete);
  EXPECT_TRUE(Must(next.MaybeWrite(TheClock().Now(), TheClock().WallNow(), news.heads, news.records, news.complete)));
  const auto after = Must(ReadCheckpoints(checkpoint_dir_, key.public_key()));
  EXPECT_TRUE(after.problems.empty());
  EXPECT_EQ(after.pins.size(), checkpoints_.pins.size() + 1);
  bad = Must(VerifyAudit(store_->Reader(), &after)).first_bad;
  ASSERT_TRUE(bad);
  EXPECT_EQ(bad->kind, TamperKind::kLate) << bad->explanation;
}

INSTANTIATE_TEST_SUITE_P(Both, AuditTamperTest, ::testing::Values("sqlite", "postgres"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace
