// How weeks leave the tables, and what that costs those who write meanwhile: partitions in PostgreSQL, also those of a ledger
// that had fewer of them; bounded transactions in SQLite.
#include <algorithm>
#include <atomic>
#include <thread>

#include "common/ledger/audit_verify.h"
#include "common/ledger/migrations.h"
#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::LedgerKind;

constexpr auto kWeek = std::chrono::hours{24 * 7};
const WallTime kFirstWeek = *ParseRfc3339("2023-11-13T00:00:00Z");  // a Monday
constexpr Millis kPatience{20'000};

class LedgerPrunePartitionsTest : public testing::LedgerTest {
 protected:
  bool Postgres() const { return GetParam() == LedgerKind::kPostgres; }
  static WallTime Week(int n) { return kFirstWeek + n * kWeek; }
  template <class T>
  T IdAt(WallTime time) {
    Uuid id = NewId<T>().uuid;
    const auto ms = static_cast<std::uint64_t>(ToUnixMicros(time) / 1000);
    for (std::size_t i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
    return T{id};
  }
  std::int64_t Count(const std::string& sql) {
    if (!Postgres()) return *sqlite::Database::Open(dsn_, {})->QueryInt64(sql);
    auto connection = database_->Connect();
    EXPECT_TRUE(connection->Exec("set search_path = millrace", In()));
    const auto rows = connection->Query(sql, In());
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  // Of sessions in this database: the server has others, and a wait for a transaction names none.
  std::int64_t Locks(const std::string& which) {
    return Count(
        "select count(*) from pg_locks where pid in (select pid from pg_stat_activity where datname = "
        "current_database()) and " +
        which);
  }
  // Until `done` holds; false when it does not in time.
  bool Await(const std::function<bool()>& done) {
    for (const MonoTime until = clock_.Now() + kPatience; !done(); std::this_thread::sleep_for(5ms))
      if (clock_.Now() > until) return false;
    return true;
  }

  // A run with a job, whose cancellation was asked for, and a dead job that was discarded: all of that week.
  JobSpec Finished(ShardHold hold, WallTime time) {
    RunSpec run = Run();
    run.id = IdAt<RunId>(time);
    JobSpec job = Job(run.id, "s"), dead = Job();
    job.id = IdAt<JobId>(time), dead.id = IdAt<JobId>(time);
    auto batch = BatchOf(hold);
    batch.runs = {run};
    batch.jobs = {job, dead};
    Commit(batch);
    batch = BatchOf(hold);
    batch.outcomes = {Outcome(job), Outcome(dead, JobState::kDead)};
    batch.run_outcomes = {{.run = run.id, .state = RunState::kSucceeded, .reason = {}, .finished_at = time}};
    batch.cancels = {{.item = run.id.uuid, .is_run = true, .actor = "test", .reason = {}, .requested_at = time}};
    Commit(batch);
    const DeadActionRow action{.job = dead.id,
                               .org = kDefaultOrg,
                               .action = DeadAction::kDiscarded,
                               .new_job = {},
                               .actor = "test",
                               .reason = {},
                               .at = time};
    EXPECT_TRUE(ledger_->RequeueDead({.run = {}, .jobs = {}, .actions = {action}}, In()));
    return dead;
  }
  static constexpr std::uint64_t kRowsOfAWeek = 1 + 2 + 2 + 1 + 1 + 1;
  void Refused(const std::string& queue, WallTime at) {
    Raw("insert into enqueue (kind, queue) values ('', '" + queue + "')");
    ASSERT_EQ(ledger_->TakeEnqueued(std::vector{ShardOf(kDefaultOrg, testing::kShards)}, In())->refused, 1u);
    const std::string time = Postgres() ? "'" + ToRfc3339(at) + "'" : std::to_string(ToUnixMicros(at));
    Raw("update enqueue_refused set refused_at = " + time + " where queue = '" + queue + "'");
  }
  static PruneRequest Before(WallTime time) {
    return {.before = time, .actor = "test", .sign = {}, .despite_verification = false};
  }
  // As a broker does: a conflict is tried again.
  std::uint64_t Prune(Ledger& ledger, WallTime before, int* steps = nullptr) {
    std::uint64_t rows = 0;
    for (int conflicts = 0;;) {
      const auto step = ledger.PruneOldest(Before(before), In());
      if (!step && step.error().code == ErrorCode::kConflict && ++conflicts < 5) continue;
      EXPECT_TRUE(step) << step.error().message;
      if (!step) return rows;
      rows += step->rows;
      if (steps != nullptr) ++*steps;
      if (!step->more) return rows;
    }
  }
  void ExpectSoundAfterPrune() {
    const auto report = VerifyAudit(*ledger_, nullptr);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_TRUE(report->ok) << (report->first_bad ? report->first_bad->explanation : "");
  }
  // A ledger as a program of `version` left it, PostgreSQL.
  void MakeSchemaOf(std::size_t version) {
    ledger_.reset();
    Raw("drop schema millrace cascade; create schema millrace; create table millrace.schema_version (version integer primary "
        "key, "
        "applied_at timestamptz not null default now())");
    for (std::size_t v = 0; v < version; ++v) {
      Raw(std::string(ledger::PostgresMigrations()[v]));
      Raw("insert into schema_version values (" + std::to_string(v + 1) + ", now())");
    }
    ledger_ = Open();
    if (version == 0) return;
    Raw("insert into ledger_setting (name, number) values ('shard_count', " + std::to_string(testing::kShards) + ")");
    Raw("select ensure_partitions(now(), 4)");
  }
};

// How long the machine kept a thread waiting that did nothing but sleep: nobody else on it was faster.
class Lateness {
 public:
  Millis so_far() const { return Millis{static_cast<std::int64_t>(micros_ / 1000)}; }

 private:
  static constexpr Micros kTurn{5'000};
  std::atomic<std::int64_t> micros_ = 0;
  std::jthread thread_{[this](const std::stop_token& stop) {
    const SystemClock clock;
    while (!stop.stop_requested()) {
      const MonoTime asleep = clock.Now();
      std::this_thread::sleep_for(kTurn);
      micros_ += (clock.Now() - asleep - kTurn).count();
    }
  }};
};

// Somebody who commits a job after the other, over a connection of his own.
class BusyWriter {
 public:
  BusyWriter(Ledger& ledger, OwnerBatch batch, JobSpec like) {
    thread_ =
        std::jthread([this, &ledger, batch = std::move(batch), like = std::move(like)](const std::stop_token& stop) mutable {
          SystemClock clock;
          SystemRandom random;
          IdGenerator ids{clock, random};
          while (!stop.stop_requested()) {
            like.id = ids.Next<JobId>();
            batch.jobs = {like};
            const MonoTime begin = clock.Now();
            const auto done = ledger.Commit(batch, begin + kPatience);
            if (!done) error_ = done.error().message;
            longest_ms_ = std::max<std::int64_t>(longest_ms_, std::chrono::ceil<Millis>(clock.Now() - begin).count());
            ++commits_;
          }
        });
  }
  int commits() const { return commits_; }
  // Ends it; empty: every commit came through.
  std::string End() {
    thread_.request_stop();
    thread_.join();
    return error_;
  }
  std::int64_t longest_ms() const { return longest_ms_; }

 private:
  std::atomic<int> commits_ = 0;
  std::atomic<std::int64_t> longest_ms_ = 0;
  std::string error_;
  std::jthread thread_;
};

TEST_P(LedgerPrunePartitionsTest, NoRowOfAWeekIsDeletedByItself) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  const ShardHold hold = Own();
  for (const int week : {0, 1}) {
    Finished(hold, Week(week) + 1h);
    Refused("q" + std::to_string(week), Week(week) + 1h);
  }
  std::string forbid =
      "create function no_delete() returns trigger language plpgsql as $$ begin raise exception 'row of %', "
      "tg_table_name; end $$; ";
  for (const std::string table :
       {"run", "job", "attempt", "outcome", "run_outcome", "cancel", "dead_action", "enqueue_refused"}) {
    EXPECT_EQ(Count("select count(*) from " + table + "_default"), 0) << table;
    forbid += "create trigger no_delete before delete on " + table + " for each row execute function no_delete(); ";
  }
  Raw(forbid);
  EXPECT_EQ(Prune(*ledger_, Week(1)), kRowsOfAWeek + 1);
  EXPECT_EQ(Count("select count(*) from pg_class where relkind = 'r' and relname like '%\\_20231113'"), 0);
  EXPECT_EQ(Count("select count(*) from pg_class where relkind = 'r' and relname like '%\\_20231120'"), 8);
  EXPECT_EQ(Count("select count(*) from cancel"), 1);
  EXPECT_EQ(Count("select count(*) from dead_action"), 1);
  EXPECT_EQ(Count("select count(*) from enqueue_refused"), 1);
  ExpectSoundAfterPrune();
}

TEST_P(LedgerPrunePartitionsTest, ALedgerWithFewerPartitionsKeepsItsRowsAndPrunesThem) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  MakeSchemaOf(15);
  Raw("grant select on cancel, enqueue_refused to public; alter table cancel enable row level security; "
      "create policy own_org on cancel for select to public using (org = 1); "
      "create policy none on enqueue_refused as restrictive to public using (false)");
  const ShardHold hold = Own();
  const JobSpec dead = Finished(hold, Week(0) + 1h);
  Refused("before", Week(0) + 1h);
  const WallTime now = Now();
  const JobSpec recent = Finished(hold, now);
  Refused("recent", now);
  const auto migrated = ledger_->Migrate(In());
  ASSERT_TRUE(migrated) << migrated.error().message;

  EXPECT_EQ(ledger_->GetJob(kDefaultOrg, dead.id, In())->dead_action->action, DeadAction::kDiscarded);
  EXPECT_EQ(ledger_->Enqueued(kDefaultOrg, 10, In())->refused.size(), 2u);
  EXPECT_EQ(Count("select count(*) from cancel"), 2);
  EXPECT_EQ(Count("select count(*) from cancel_default"), 2) << "where they were";
  EXPECT_EQ(Count("select has_table_privilege('public', 'millrace.cancel', 'select')::int::bigint"), 1);
  EXPECT_EQ(Count("select has_table_privilege('public', 'millrace.enqueue_refused', 'select')::int::bigint"), 1);
  EXPECT_EQ(Count("select count(*) from pg_class where relname in ('cancel', 'enqueue_refused') and relrowsecurity"), 2);
  EXPECT_EQ(
      Count("select count(*) from pg_policies where (tablename = 'cancel' and policyname = 'own_org' and cmd = 'SELECT' and "
            "qual = '(org = 1)') or (tablename = 'enqueue_refused' and policyname = 'none' and permissive = 'RESTRICTIVE')"),
      2);
  ExpectSoundAfterPrune();
  // A second action, a second request are refused as before.
  const DeadActionRow again{.job = dead.id,
                            .org = kDefaultOrg,
                            .action = DeadAction::kDiscarded,
                            .new_job = {},
                            .actor = "test",
                            .reason = {},
                            .at = now};
  EXPECT_TRUE(ledger_->RequeueDead({.run = {}, .jobs = {}, .actions = {again}}, In()));
  EXPECT_EQ(Count("select count(*) from dead_action"), 2);

  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  EXPECT_EQ(Count("select count(*) from pg_class where relname in ('cancel_20231113', 'enqueue_refused_20231113')"), 0)
      << "that week has rows in another partition";
  Finished(hold, Week(1) + 1h);
  Refused("after", Week(1) + 1h);
  EXPECT_EQ(Count("select count(*) from cancel_20231120"), 1);
  EXPECT_EQ(Count("select count(*) from dead_action_20231120"), 1);
  EXPECT_EQ(Count("select count(*) from enqueue_refused"), 3);
  EXPECT_EQ(Count("select count(*) from enqueue_refused_default"), 0)
      << "so that no new partition has to look for its rows there";
  EXPECT_EQ(Prune(*ledger_, Week(2)), 2 * kRowsOfAWeek);
  EXPECT_FALSE(ledger_->GetJob(kDefaultOrg, dead.id, In()));
  EXPECT_TRUE(ledger_->GetJob(kDefaultOrg, recent.id, In()));
  EXPECT_EQ(ledger_->Enqueued(kDefaultOrg, 10, In())->refused.size(), 3u) << "they go when the last of their weeks goes";
  EXPECT_EQ(Count("select gone from prune_refused(now() + interval '15 days', 10)"), 3);
  EXPECT_EQ(Count("select count(*) from enqueue_refused"), 0);
  ExpectSoundAfterPrune();
}

// A version 16 before it was released, which had refused rows in the default partition and in weekly ones.
TEST_P(LedgerPrunePartitionsTest, RefusedRowsThatHavePartitionsAlreadyAreKept) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  MakeSchemaOf(16);
  Refused("first", Week(0) + 1h);
  Raw("alter table enqueue_refused rename to enqueue_refused_default; "
      "alter table enqueue_refused_default drop constraint enqueue_refused_pkey; "
      "alter index enqueue_refused_by_org rename to enqueue_refused_default_by_org; "
      "create table enqueue_refused (like enqueue_refused_default including defaults) partition by range (refused_at); "
      "alter table enqueue_refused attach partition enqueue_refused_default default; "
      "alter table enqueue_refused add primary key (job, refused_at); "
      "grant select on enqueue_refused to public; "
      "create index enqueue_refused_by_org on enqueue_refused (org, job); "
      "create index enqueue_refused_default_by_time on enqueue_refused_default (refused_at); "
      "alter table enqueue_refused enable row level security; "
      "create table enqueue_refused_20231120 partition of enqueue_refused for values from ('2023-11-20T00:00:00Z') to "
      "('2023-11-27T00:00:00Z')");
  Refused("second", Week(1) + 1h);
  Refused("far ahead", Now() + 100 * kWeek);
  const auto migrated = ledger_->Migrate(In());
  ASSERT_TRUE(migrated) << migrated.error().message;
  EXPECT_EQ(ledger_->Enqueued(kDefaultOrg, 10, In())->refused.size(), 3u);
  EXPECT_EQ(Count("select count(*) from enqueue_refused where refused_at > now()"), 0) << "no clock was right there";
  EXPECT_EQ(Count("select has_table_privilege('public', 'millrace.enqueue_refused', 'select')::int::bigint"), 1);
  Refused("new", Now());
  EXPECT_EQ(Count("select count(*) from enqueue_refused_default"), 0);
  const std::string shape =
      "select hashtextextended(string_agg(pg_get_indexdef(i.indexrelid) || c.relname, ' ' order by c.relname), 0) from "
      "pg_index i "
      "join pg_class c on c.oid = i.indrelid where c.relname in ('enqueue_refused', 'enqueue_refused_default', 'cancel')";
  const std::int64_t upgraded = Count(shape);
  MakeSchemaOf(0);
  ASSERT_TRUE(ledger_->Migrate(In()));
  EXPECT_EQ(upgraded, Count(shape)) << "as that of a new ledger";
}

TEST_P(LedgerPrunePartitionsTest, OfTwoBrokersThatReadABadRowOneRefusesIt) {
  if (!Postgres()) GTEST_SKIP() << "transactions of SQLite wait for one another";
  Raw("insert into enqueue (kind) values ('')");
  auto other = database_->Connect();
  ASSERT_TRUE(
      other->Exec("set search_path = millrace; begin; insert into enqueue_refused select e.*, 'by the other', now() from "
                  "enqueue e; delete from enqueue",
                  In()));
  std::jthread second([&] { EXPECT_TRUE(ledger_->TakeEnqueued(std::vector{ShardOf(kDefaultOrg, testing::kShards)}, In())); });
  EXPECT_TRUE(Await([&] { return Locks("not granted") > 0; }));
  ASSERT_TRUE(other->Exec("commit", In()));
  second.join();
  EXPECT_EQ(Count("select count(*) from enqueue_refused"), 1);
  EXPECT_EQ(Count("select count(*) from enqueue"), 0);
}

TEST_P(LedgerPrunePartitionsTest, AnIdThatIsRefusedAgainHasOneRow) {
  const std::string id = Postgres() ? "'018bcfe5-0000-4000-8000-000000000000'" : "x'018bcfe5000040008000000000000000'";
  for (const std::string kind : {"first", "second"}) {
    Raw("insert into enqueue (job, kind) values (" + id + ", '" + kind + "')");  // no UUIDv7
    EXPECT_EQ(ledger_->TakeEnqueued(std::vector{ShardOf(kDefaultOrg, testing::kShards)}, In())->refused, 1u);
    const auto refused = ledger_->Enqueued(kDefaultOrg, 10, In())->refused;
    ASSERT_EQ(refused.size(), 1u);
    EXPECT_EQ(refused[0].kind, kind);
  }
}

// Somebody reads for long, as a dump does: the prune waits for him, and nobody waits long for the prune.
TEST_P(LedgerPrunePartitionsTest, WritersGoOnWhileAPruneWaitsForAReader) {
  if (!Postgres()) GTEST_SKIP() << "readers of SQLite hold up nobody";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  const ShardHold hold = Own();
  Finished(hold, Week(0) + 1h);
  auto reader = database_->Connect();
  ASSERT_TRUE(reader->Exec("begin; select 1 from millrace.job limit 1", In()));
  auto writing = Open(), pruning = Open();
  const Lateness late;
  BusyWriter writer(*writing, BatchOf(hold), Job());
  std::atomic<std::uint64_t> rows = 0;
  std::jthread pruner([&] { rows = Prune(*pruning, Week(1)); });
  EXPECT_TRUE(Await([&] { return Locks("not granted and mode = 'AccessExclusiveLock' and relation = 'job'::regclass") > 0; }));
  const int before = writer.commits();
  EXPECT_TRUE(Await([&] { return writer.commits() >= before + 20; }));
  EXPECT_EQ(rows, 0u);
  ASSERT_TRUE(reader->Exec("commit", In()));
  pruner.join();
  EXPECT_EQ(rows, kRowsOfAWeek);
  EXPECT_EQ(writer.End(), "");
  EXPECT_LT(writer.longest_ms(), (Millis{3000} + late.so_far()).count()) << "a prune takes its locks for 300 ms at a time";
  ExpectSoundAfterPrune();
}

// The same for who makes the partitions of the next weeks, which every process does.
TEST_P(LedgerPrunePartitionsTest, WritersGoOnWhilePartitionsAreMadeBesideAReader) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  const ShardHold hold = Own();
  auto writing = Open(), making = Open();
  const Lateness late;
  BusyWriter writer(*writing, BatchOf(hold), Job());
  EXPECT_TRUE(Await([&] { return writer.commits() > 0; }));
  const std::string ahead =
      "from pg_class where relkind = 'r' and relname ~ "
      "'^(run|job|attempt|outcome|run_outcome|cancel|dead_action|enqueue_refused)_"
      "[0-9]{8}$' and to_date(right(relname, 8), 'YYYYMMDD') > now()";
  const std::int64_t all = Count("select count(*) " + ahead);
  EXPECT_GE(all, 8 * 4);
  Raw("do $$ declare t text; begin for t in select relname " + ahead +
      " loop execute format('drop table %I', t); end loop; end $$");
  auto reader = database_->Connect();
  ASSERT_TRUE(reader->Exec("begin; select 1 from millrace.job limit 1", In()));
  auto batch = BatchOf(hold);
  batch.jobs = {Job()};
  const MonoTime begin = clock_.Now();
  EXPECT_TRUE(making->Commit(batch, In()));
  EXPECT_LT(clock_.Now() - begin, 1s + late.so_far()) << "who makes them writes as well";
  EXPECT_LT(Count("select count(*) " + ahead), all);
  ASSERT_TRUE(reader->Exec("commit", In()));
  auto later = Open();
  EXPECT_TRUE(Await([&] {
    batch.jobs = {Job()};
    EXPECT_TRUE(later->Commit(batch, In()));
    return Count("select count(*) " + ahead) == all;
  }));
  EXPECT_EQ(writer.End(), "");
  EXPECT_LT(writer.longest_ms(), (Millis{1000} + late.so_far()).count())
      << "no lock on what everybody writes, and on the rest for 300 ms";
}

// Vacuum gives way to somebody who waits longer than a prune holds up writers: he is waited for with a lock that holds up none.
TEST_P(LedgerPrunePartitionsTest, APruneWaitsForAVacuumWithoutHoldingUpWriters) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no vacuum of its own";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  Finished(Own(), Week(0) + 1h);
  auto vacuum = database_->Connect();
  ASSERT_TRUE(vacuum->Exec("begin; lock table millrace.outcome_default in share update exclusive mode", In()));
  auto pruning = Open();
  std::jthread pruner([&] { EXPECT_EQ(Prune(*pruning, Week(1)), kRowsOfAWeek); });
  const std::string waits = "not granted and relation is not null and mode = ";
  const auto holds_up = [&] { return Locks(waits + "'AccessExclusiveLock'"); };
  EXPECT_TRUE(Await([&] {
    return Locks(waits + "'ShareUpdateExclusiveLock' and relation = 'outcome_default'::regclass") == 1 || holds_up() > 0;
  }));
  EXPECT_EQ(holds_up(), 0);
  ASSERT_TRUE(vacuum->Exec("commit", In()));
  pruner.join();
}

TEST_P(LedgerPrunePartitionsTest, OfTwoThatPruneOneWaits) {
  if (!Postgres()) GTEST_SKIP() << "transactions of SQLite wait for one another";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  Refused("old", Week(0) + 1h);
  auto other = database_->Connect();
  ASSERT_TRUE(other->Exec("set search_path = millrace; begin; select * from prune_refused('2023-11-13T00:00:00Z', 10)", In()));
  EXPECT_EQ(Locks("mode = 'RowExclusiveLock' and relation = 'enqueue_refused_default'::regclass"), 0)
      << "nothing of it is that old";
  auto step = ledger_->PruneOldest(Before(Week(1)), In());
  ASSERT_TRUE(step) << step.error().message;
  EXPECT_EQ(step->rows, 0u);
  EXPECT_TRUE(step->more);
  Finished(Own(), Week(0) + 1h);
  PruneRequest request = Before(Week(1));
  request.despite_verification = true;
  step = ledger_->PruneOldest(request, In());
  ASSERT_FALSE(step);
  EXPECT_EQ(step.error().code, ErrorCode::kConflict);
  ASSERT_TRUE(other->Exec("commit", In()));
  EXPECT_EQ(Prune(*ledger_, Week(1)), kRowsOfAWeek + 1);
}

TEST_P(LedgerPrunePartitionsTest, RefusedRowsThatCannotGoKeepNoHistory) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no locks of tables";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  Finished(Own(), Week(0) + 1h);
  Refused("old", Week(0) + 1h);
  auto reader = database_->Connect();
  ASSERT_TRUE(reader->Exec("begin; select 1 from millrace.enqueue_refused", In()));
  const auto step = ledger_->PruneOldest(Before(Week(1)), clock_.Now() + 8s);
  ASSERT_TRUE(step) << step.error().message;
  EXPECT_EQ(step->rows, kRowsOfAWeek);
  EXPECT_FALSE(step->more) << "the next hour's prune tries again";
  ASSERT_TRUE(reader->Exec("commit", In()));
  EXPECT_EQ(Prune(*Open(), Week(1)), 1u);
}

TEST_P(LedgerPrunePartitionsTest, WhoRefusesLocksNoOtherWeek) {
  if (!Postgres()) GTEST_SKIP() << "SQLite has no partitions";
  Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  Refused("other", Week(0) + 1h);
  const auto refuse = [&] {
    Raw("insert into enqueue (job, kind) values ('018bcfe5-0000-4000-8000-000000000000', '')");
    const auto taken = ledger_->TakeEnqueued(std::vector{ShardOf(kDefaultOrg, testing::kShards)}, clock_.Now() + 3s);
    ASSERT_TRUE(taken) << taken.error().message;
  };
  refuse();
  Raw("update enqueue_refused set refused_at = '2023-11-20T01:00:00Z' where queue = 'default'");
  auto counting = database_->Connect();
  ASSERT_TRUE(counting->Exec("begin; lock table millrace.enqueue_refused_20231113 in share mode", In()));
  refuse();
  ASSERT_TRUE(counting->Exec("commit", In()));
  EXPECT_EQ(Count("select count(*) from enqueue_refused where queue = 'default'"), 1);
  EXPECT_EQ(Count("select count(*) from enqueue_refused_20231120"), 0);
}

// Nobody's lock is in the way. Who writes waits for a change of the catalogue (PostgreSQL) or for one bounded step (SQLite).
TEST_P(LedgerPrunePartitionsTest, WritersGoOnWhileWeeksGo) {
  constexpr int kBatches = 25, kJobs = 1000;
  if (Postgres()) Raw("select ensure_partitions('2023-11-20T00:00:00Z', 3)");
  const ShardHold hold = Own();
  for (int i = 0; i < kBatches; ++i) {
    auto batch = BatchOf(hold);
    for (int n = 0; n < kJobs; ++n) batch.jobs.emplace_back(Job()).id = IdAt<JobId>(Week(0) + 1h);
    Commit(batch);
    auto ended = BatchOf(hold);
    for (const JobSpec& job : batch.jobs) ended.outcomes.push_back(Outcome(job));
    Commit(ended);
  }
  auto writing = Open(), pruning = Open();
  BusyWriter writer(*writing, BatchOf(hold), Job());
  EXPECT_TRUE(Await([&] { return writer.commits() > 0; }));
  const int before = writer.commits();
  int steps = 0;
  const MonoTime begin = clock_.Now();
  EXPECT_EQ(Prune(*pruning, Week(1), &steps), 2u * kBatches * kJobs);
  const auto took = std::chrono::ceil<Millis>(clock_.Now() - begin);
  const int meanwhile = writer.commits() - before;
  EXPECT_EQ(writer.End(), "");
  EXPECT_EQ(steps, Postgres() ? 1 : 2);
  EXPECT_GT(meanwhile, steps);
  EXPECT_LT(writer.longest_ms(), 10'000);
  RecordProperty("prune_ms", std::to_string(took.count()));
  RecordProperty("longest_commit_ms", std::to_string(writer.longest_ms()));
  ExpectSoundAfterPrune();
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerPrunePartitionsTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& param) { return param.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
