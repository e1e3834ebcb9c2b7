// Transactional enqueue against a real server: the caller's commit and rollback, late commits, brokers that race and are
// killed, 10,000 rows in one transaction, the role that may only insert, and the notification that wakes a broker.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/ledger/audit_verify.h"
#include "common/queue/sqlite_queue.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"
#include "tests/support/migrated_database.h"

namespace millrace {
namespace {

class EnqueueTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    ConfigureLog(LogLevel::kError, LogFormat::kText, "enqueue_test");
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_enqueue_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
    database_ = testing::MigratedDatabase("enqueue", 1);
    ledger_ = Open("test");
    const auto migrated = ledger_->Migrate(In());
    ASSERT_TRUE(migrated) << migrated.error().message;
    app_ = database_->Connect();
  }
  void TearDown() override {
    app_.reset();
    ledger_.reset();
    if (dir_.empty()) return;
    testing::EndHistory(database_->dsn(), dir_ / "history", told_.Write(dir_ / "history" / "accepted"));
    std::filesystem::remove_all(dir_);
  }
  MonoTime In() const { return clock_.Now() + 30s; }
  std::unique_ptr<Ledger> Open(std::string actor) {
    auto ledger = OpenPostgresLedger({.dsn = database_->dsn(),
                                      .clock = &clock_,
                                      .writer = ids_.Next<AuditWriterId>(),
                                      .shard_count = 1,
                                      .actor = std::move(actor)},
                                     In());
    EXPECT_TRUE(ledger) << ledger.error().message;
    return std::move(*ledger);
  }
  void App(const std::string& sql) {
    const auto done = app_->Exec(sql, In());
    ASSERT_TRUE(done) << done.error().message;
  }
  // Rows of one committed statement, whose ids the caller knows then.
  void Enqueue(const std::string& columns, const std::string& rows) {
    const auto done =
        app_->QueryOnce(fmt::format("insert into millrace.enqueue ({}) {} returning job", columns, rows), {}, In());
    ASSERT_TRUE(done) << done.error().message;
    for (int i = 0; i < done->rows(); ++i) told_.Job(done->Id(i, 0));
  }
  std::int64_t Count(const std::string& what) {
    const auto rows = app_->QueryOnce("select count(*) from " + (what.starts_with('(') ? what : "millrace." + what), {}, In());
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  EnqueueTaken TakeAll(Ledger& ledger) {
    EnqueueTaken sum;
    const std::vector<ShardId> shards{ShardId{0}};
    for (bool more = true; more;) {
      const auto taken = ledger.TakeEnqueued(shards, In());
      EXPECT_TRUE(taken) << taken.error().message;
      if (!taken) break;
      sum.accepted += taken->accepted;
      sum.refused += taken->refused;
      more = taken->more;
    }
    return sum;
  }
  void ExpectEachOnce(std::int64_t rows) {
    EXPECT_EQ(Count("enqueue"), 0);
    EXPECT_EQ(Count("enqueue_refused"), 0);
    EXPECT_EQ(Count("job"), rows);
    EXPECT_EQ(Count("live_job"), rows);
    EXPECT_EQ(Count("(select distinct convert_from(payload, 'UTF8') from millrace.job) d"), rows) << "each row's own payload";
    const auto report = VerifyAudit(*ledger_, nullptr);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_TRUE(report->ok) << (report->first_bad ? report->first_bad->explanation : "");
    EXPECT_GE(report->rows, static_cast<std::uint64_t>(rows));
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::filesystem::path dir_;
  std::unique_ptr<testing::TestDatabase> database_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<PgConnection> app_;  // the caller's own connection
  testing::AcceptedList told_;         // the ids of rows that the caller has committed
};

TEST_F(EnqueueTest, TheJobLivesAndDiesWithTheCallersTransaction) {
  App("create table orders (id integer primary key)");
  App("begin; insert into orders values (1); select millrace.enqueue_job('mail', '{\"order\": 1}', queue => 'mail')");
  EXPECT_EQ(TakeAll(*ledger_).accepted, 0u) << "not committed: nobody sees it";
  App("rollback");
  EXPECT_EQ(TakeAll(*ledger_).accepted, 0u);
  App("begin; insert into orders values (2); select millrace.enqueue_job('mail', '{\"order\": 2}', queue => 'mail'); commit");
  EXPECT_EQ(TakeAll(*ledger_).accepted, 1u);
  EXPECT_EQ(Count("job where queue = 'mail' and convert_from(payload, 'UTF8') = '{\"order\": 2}'"), 1);
  ExpectEachOnce(1);
}

TEST_F(EnqueueTest, ATransactionThatBeganEarlyAndCommitsLateIsTakenToo) {
  App("begin; insert into millrace.enqueue (kind, payload) values ('noop', 'late')");
  const auto other = database_->Connect();
  ASSERT_TRUE(other->Exec("insert into millrace.enqueue (kind, payload) values ('noop', 'early')", In()));
  EXPECT_EQ(TakeAll(*ledger_).accepted, 1u);
  App("commit");
  EXPECT_EQ(TakeAll(*ledger_).accepted, 1u);
  ExpectEachOnce(2);
}

TEST_F(EnqueueTest, TenThousandRowsOfOneTransactionAndTwoBrokersThatRace) {
  constexpr int kRows = 10'000;
  Enqueue("kind, payload", fmt::format("select 'noop', convert_to('row ' || i, 'UTF8') from generate_series(1, {}) i", kRows));
  const MonoTime begin = clock_.Now();
  std::atomic<std::uint32_t> accepted{0};
  {
    auto a = Open("broker a"), b = Open("broker b");
    std::jthread one([&] { accepted += TakeAll(*a).accepted; }), two([&] { accepted += TakeAll(*b).accepted; });
  }
  accepted += TakeAll(*ledger_).accepted;
  const auto ms = std::chrono::duration_cast<Millis>(clock_.Now() - begin).count();
  RecordProperty("milliseconds", static_cast<int>(ms));
  EXPECT_EQ(accepted, kRows);
  ExpectEachOnce(kRows);
}

TEST_F(EnqueueTest, BrokersThatAreKilledLoseAndDoubleNothing) {
  constexpr int kRows = 4000, kKills = 12;
  Enqueue("kind, payload", fmt::format("select 'noop', convert_to('row ' || i, 'UTF8') from generate_series(1, {}) i", kRows));
  int progressed = 0;
  for (int i = 0; i < kKills; ++i) {
    const std::int64_t before = Count("enqueue");
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto ledger = Open("killed");
      const std::vector<ShardId> shards{ShardId{0}};
      while (ledger->TakeEnqueued(shards, In())) {
      }
      _exit(1);
    }
    for (const MonoTime until = clock_.Now() + 5s; clock_.Now() < until && Count("enqueue") == before;) usleep(500);
    usleep(static_cast<useconds_t>(random_.Next() % 15'000));  // somewhere inside a transaction, or its answer
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    progressed += Count("enqueue") < before ? 1 : 0;
    if (Count("enqueue") == 0) break;
  }
  EXPECT_GT(progressed, 1) << "a kill came in the middle";
  TakeAll(*ledger_);
  ExpectEachOnce(kRows);
}

TEST_F(EnqueueTest, ARoleMayOnlyInsertRowsOfItsOrgAndKinds) {
  const std::string role = database_->name() + "_app";
  App(fmt::format("create role {0} login; select millrace.allow_enqueue('{0}', 7, array['mail'])", role));
  const auto as_role = database_->Connect();
  ASSERT_TRUE(as_role->Exec("set role " + role, In()));
  const auto refused = [&](const std::string& sql) {
    const auto done = as_role->Exec(sql, In());
    return !done && as_role->last_sqlstate() == "42501";
  };
  EXPECT_TRUE(as_role->Exec("insert into millrace.enqueue (org, kind) values (7, 'mail')", In()));
  EXPECT_TRUE(as_role->Exec("select millrace.enqueue_job('mail', 'x', org => 7)", In()));
  EXPECT_TRUE(refused("insert into millrace.enqueue (org, kind) values (7, 'command')"));
  EXPECT_TRUE(refused("insert into millrace.enqueue (org, kind) values (1, 'mail')"));
  EXPECT_TRUE(refused("select * from millrace.enqueue"));
  EXPECT_TRUE(refused("delete from millrace.enqueue"));
  EXPECT_TRUE(refused("insert into millrace.job (job) values (null)"));
  EXPECT_TRUE(refused("select * from millrace.job"));
  EXPECT_TRUE(refused(fmt::format("select millrace.allow_enqueue('{}', 1, array['mail'])", role)));
  EXPECT_EQ(TakeAll(*ledger_).accepted, 2u);
  EXPECT_EQ(Count("job where org = 7"), 2);
  ASSERT_TRUE(as_role->Exec("reset role", In()));
  App(fmt::format("drop owned by {0}; drop role {0}", role));
}

TEST_F(EnqueueTest, ABrokerIsWokenByTheCommit) {
  BrokerOptions options;
  options.name = "b1";
  options.owner = ids_.Next<OwnerId>();
  options.front_endpoints = {"ipc://" + (dir_ / "front").string()};
  options.back_endpoints = {"ipc://" + (dir_ / "back").string()};
  options.clock = &clock_;
  options.random = &random_;
  options.make_ledger = [this] { return Result<std::unique_ptr<Ledger>>(Open("broker b1")); };
  options.make_queue = [this] { return OpenSqliteQueue({.path = dir_ / "queue.db"}); };
  const auto names = wire::MakeLocalNames();
  options.make_transport = [names] { return wire::MakeZmtpTransport(names); };
  options.make_enqueue_watch = [this] { return OpenPostgresEnqueueWatch(database_->dsn(), clock_, In()); };
  Broker broker(std::move(options));
  const auto started = broker.Start();
  ASSERT_TRUE(started) << started.error().message;
  const auto wait_for = [&](const std::string& what, std::int64_t n) {
    const MonoTime begin = clock_.Now();
    while (Count(what) != n && clock_.Now() < begin + 40s) usleep(1000);
    return std::chrono::duration_cast<Millis>(clock_.Now() - begin);
  };
  Enqueue("kind", "values ('noop')");
  EXPECT_LT(wait_for("enqueue", 0), Millis{36'000}) << "the first look";
  std::vector<Millis> times;
  constexpr int kRows = 10;
  for (int i = 0; i < kRows; ++i) {
    Enqueue("kind, payload", fmt::format("values ('noop', '{}')", i));
    times.push_back(wait_for("enqueue", 0));
  }
  std::ranges::sort(times);
  EXPECT_LT(times[kRows / 2], Millis{kEnqueuePollInterval} / 2) << "polling alone would take a whole interval each";
  EXPECT_LT(wait_for("outbox", 0), Millis{20'000}) << "and it is in the queue";
  // Whoever ends the watch's connection takes nothing away: the table is polled, and watched again.
  App("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'millrace enqueue watch' "
      "and datname = current_database()");
  Enqueue("kind, payload", "values ('noop', 'after')");
  EXPECT_LT(wait_for("enqueue", 0), Millis{36'000});
  broker.RequestStop();
  broker.Join();
  EXPECT_EQ(Count("job"), kRows + 2);
}

}  // namespace
}  // namespace millrace
