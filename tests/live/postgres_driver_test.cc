// The PostgreSQL driver and ledger against a real server whose connections die at the worst moments.
#include "common/drivers/postgres.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "common/ledger/ledger.h"
#include "tests/support/test_postgres.h"

namespace millrace {
namespace {

using testing::TestDatabase;

// Forwards bytes to the server; the next request after Arm() meets a fault.
class FaultyProxy {
 public:
  enum class Fault : int { kNone, kDropRequest, kHalfRequest, kCloseAfterRequest, kSwallowReply, kPanic, kCount };

  explicit FaultyProxy(int server_port) : server_port_(server_port) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Local(0);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::jthread([this](const std::stop_token& stop) { Accept(stop); });
  }
  ~FaultyProxy() {
    thread_.request_stop();
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  void Arm(Fault fault) { fault_ = fault; }

 private:
  static sockaddr_in Local(int port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(static_cast<std::uint16_t>(port));
    return a;
  }
  void Accept(const std::stop_token& stop) {
    std::vector<std::jthread> pairs;
    while (!stop.stop_requested()) {
      pollfd p{listener_, POLLIN, 0};
      if (poll(&p, 1, 20) <= 0) continue;
      const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client >= 0) pairs.emplace_back([this, client](const std::stop_token& s) { Serve(client, s); });
    }
  }
  void Serve(int client, const std::stop_token& stop) {
    const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Local(server_port_);
    bool open = connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    bool swallow = false, panic = false;
    char buffer[1 << 16];
    while (open && !stop.stop_requested()) {
      pollfd p[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
      if (poll(p, 2, 20) <= 0) continue;
      if (p[0].revents != 0) {
        const ssize_t n = recv(client, buffer, sizeof buffer, 0);
        if (n <= 0) break;
        const Fault fault = fault_.exchange(Fault::kNone);
        if (fault == Fault::kDropRequest) break;
        const auto part = static_cast<std::size_t>(fault == Fault::kHalfRequest ? n / 2 : n);
        open = send(server, buffer, part, MSG_NOSIGNAL) == static_cast<ssize_t>(part);
        if (fault == Fault::kHalfRequest || fault == Fault::kCloseAfterRequest) break;
        swallow |= fault == Fault::kSwallowReply;
        panic |= fault == Fault::kPanic;
      }
      if (p[1].revents != 0) {
        const ssize_t n = recv(server, buffer, sizeof buffer, 0);
        if (n > 0 && panic) Panic(client);
        if (n <= 0 || swallow || panic) break;
        open = send(client, buffer, static_cast<std::size_t>(n), MSG_NOSIGNAL) == n;
      }
    }
    close(server);
    close(client);
  }

  // What a server says whose log cannot be synced: the transaction may be in it, and is there after its recovery.
  static void Panic(int client) {
    std::string fields;
    for (const std::string_view field : {"SPANIC", "VPANIC", "C58030", "Mcould not fdatasync file: Input/output error"})
      fields.append(field).push_back('\0');
    fields.push_back('\0');
    std::string message = "E";
    const auto size = htonl(static_cast<std::uint32_t>(fields.size() + 4));
    message.append(reinterpret_cast<const char*>(&size), 4).append(fields);
    EXPECT_EQ(send(client, message.data(), message.size(), MSG_NOSIGNAL), static_cast<ssize_t>(message.size()));
  }

  int server_port_, listener_ = -1, port_ = 0;
  std::atomic<Fault> fault_{Fault::kNone};
  std::jthread thread_;
};

class PostgresTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    database_ = std::make_unique<TestDatabase>("driver");
    connection_ = database_->Connect();
    ASSERT_NE(connection_, nullptr);
  }
  static MonoTime In(Millis wait = 20s) { return TestDatabase::In(wait); }
  const Clock& clock_ = TestDatabase::clock();
  std::unique_ptr<TestDatabase> database_;
  std::unique_ptr<PgConnection> connection_;
};

TEST_F(PostgresTest, ValuesComeBack) {
  const Uuid id = *Uuid::Parse("0189aaaa-bbbb-7ccc-8ddd-eeeeffff0001");
  const std::string bytes("a\0\xff", 3);
  const auto r = connection_->Query(
      "select $1, $2, $3, $4, $5, $6, $7::int, 1.5::float8, array['x', null, 'z'], 7::smallint",
      PgParams().Int(-5).Text("Zürich '\"").Bytes(bytes).Bool(true).Id(id).Time(FromUnixMicros(-1)).Null(), In());
  ASSERT_TRUE(r.has_value()) << r.error().message;
  EXPECT_EQ(r->Int(0, 0), -5);
  EXPECT_EQ(r->Text(0, 1), "Zürich '\"");
  EXPECT_EQ(r->Bytes(0, 2), bytes);
  EXPECT_TRUE(r->Bool(0, 3));
  EXPECT_EQ(r->Id(0, 4), id);
  EXPECT_EQ(r->Time(0, 5), FromUnixMicros(-1));
  EXPECT_TRUE(r->IsNull(0, 6));
  EXPECT_EQ(r->Double(0, 7), 1.5);
  EXPECT_EQ(r->TextArray(0, 8), (std::vector<std::string>{"x", "", "z"}));
  EXPECT_EQ(r->Int(0, 9), 7);
  const std::vector<std::int64_t> numbers = {1, 2, 3};
  const std::vector<std::string_view> texts = {"a", "", "c,\"{}"};
  const auto u =
      connection_->Query("select * from unnest($1, $2) order by 1 desc", PgParams().IntArray(numbers).TextArray(texts), In());
  ASSERT_TRUE(u.has_value()) << u.error().message;
  ASSERT_EQ(u->rows(), 3);
  EXPECT_EQ(u->Text(0, 1), "c,\"{}");
  const auto none = connection_->Query("select count(*) from unnest($1) x", PgParams().IntArray({}), In());
  EXPECT_EQ(none->Int(0, 0), 0);
}

TEST_F(PostgresTest, APipelineIsAllOrNothingAndTheConnectionStaysUsable) {
  ASSERT_TRUE(connection_->Exec("create table t (k bigint primary key check (k < 100), v text not null)", In()).has_value());
  const auto insert = [](std::int64_t k) { return PgStatement{"insert into t values ($1, 'x')", PgParams().Int(k)}; };
  const auto run = [&](std::int64_t a, std::int64_t b) {
    const std::vector<PgStatement> all = {{"begin", {}}, insert(a), insert(b), {"select count(*) from t", {}}, {"commit", {}}};
    return connection_->Pipeline(all, In());
  };
  const auto good = run(1, 2);
  ASSERT_TRUE(good.has_value()) << good.error().message;
  EXPECT_EQ(good->size(), 5u);
  EXPECT_EQ((*good)[1].affected(), 1);
  EXPECT_EQ((*good)[3].Int(0, 0), 2);
  const auto twice = run(3, 3);
  ASSERT_FALSE(twice.has_value());
  EXPECT_EQ(twice.error().code, ErrorCode::kConflict);
  EXPECT_EQ(connection_->last_sqlstate(), "23505");
  EXPECT_EQ(connection_->failed_statement(), 2u);
  EXPECT_FALSE(connection_->in_transaction());
  EXPECT_EQ(run(4, 500).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(connection_->Query("select nonsense", In()).error().code, ErrorCode::kRejected);
  EXPECT_EQ(connection_->Query("select count(*) from t", In())->Int(0, 0), 2);
}

TEST_F(PostgresTest, DeadlinesHold) {
  const auto start = clock_.Now();
  const auto slow = connection_->Query("select pg_sleep(5)", In(200ms));
  ASSERT_FALSE(slow.has_value());
  EXPECT_EQ(slow.error().code, ErrorCode::kMaybeApplied);
  EXPECT_LT(clock_.Now() - start, 2s);
  EXPECT_TRUE(connection_->broken());
  EXPECT_EQ(connection_->Query("select 1", In()).error().code, ErrorCode::kUnavailable);
  auto other = database_->Connect();
  EXPECT_EQ(other->Query("select 1", clock_.Now()).error().code, ErrorCode::kTimedOut);
  EXPECT_FALSE(other->broken());
}

TEST_F(PostgresTest, AKilledBackendIsNoticedBeforeSending) {
  const auto kill =
      database_->admin().Query("select pg_terminate_backend($1::int)", PgParams().Int(connection_->backend_pid()), In());
  ASSERT_TRUE(kill.has_value()) << kill.error().message;
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(connection_->Query("select 1", In()).error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(connection_->broken());
}

TEST_F(PostgresTest, CopiesIn) {
  ASSERT_TRUE(connection_->Exec("create table t (a bigint, b text)", In()).has_value());
  ASSERT_TRUE(connection_->StartCopyIn("copy t from stdin", In()).has_value());
  std::string data;
  for (int i = 0; i < 200'000; ++i) data += std::to_string(i) + "\tsome text of a row\n";
  ASSERT_TRUE(connection_->PutCopyData(data, In()).has_value());
  const auto rows = connection_->EndCopy(In());
  ASSERT_TRUE(rows.has_value()) << rows.error().message;
  EXPECT_EQ(*rows, 200'000);
  ASSERT_TRUE(connection_->StartCopyIn("copy t from stdin", In()).has_value());
  ASSERT_TRUE(connection_->PutCopyData(std::string_view("not a number\tx\n"), In()).has_value());
  EXPECT_EQ(connection_->EndCopy(In()).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(connection_->StartCopyIn("copy t from stdin", In()).has_value());
  ASSERT_TRUE(connection_->AbortCopy("changed my mind", In()).has_value());
  EXPECT_EQ(connection_->StartCopyIn("copy missing from stdin", In()).error().code, ErrorCode::kRejected);
  EXPECT_EQ(connection_->Query("select count(*) from t", In())->Int(0, 0), 200'000);
}

TEST_F(PostgresTest, StreamsRowByRowAndStaysUsable) {
  const int pid = connection_->backend_pid();
  std::int64_t sum = 0;
  const auto add = [&](const PgResult& row) -> Result<void> {
    EXPECT_EQ(row.rows(), 1);
    sum += row.Int(0, 0);
    return sum > 5000 ? Fail(ErrorCode::kLimit, "enough") : Result<void>{};
  };
  const std::string numbers = "select n, repeat('x', 1000) from generate_series(1, $1::bigint) n";
  for (int round = 0; round < 2; ++round) {  // what follows a stream is no stream
    sum = 0;
    ASSERT_TRUE(connection_->Stream(numbers, PgParams().Int(99), add, In()));
    EXPECT_EQ(sum, 4950);
    const auto two = connection_->Query("select n from generate_series(1, 2) n", In());
    ASSERT_TRUE(two) << two.error().message;
    EXPECT_EQ(two->rows(), 2);
  }
  const auto stopped = connection_->Stream(numbers, PgParams().Int(1000), add, In());
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kLimit);
  sum = 0;
  const auto refused = connection_->Stream("select 1 / (3 - n) from generate_series(1, 5) n", {}, add, In());
  ASSERT_FALSE(refused);
  EXPECT_EQ(connection_->last_sqlstate(), "22012");
  EXPECT_EQ(connection_->Query("select 7", In())->Int(0, 0), 7);
  EXPECT_EQ(connection_->backend_pid(), pid);
  EXPECT_FALSE(connection_->broken());
}

TEST(SqlState, IsClassifiedInOnePlace) {
  EXPECT_EQ(ClassifySqlState("", true), ErrorCode::kMaybeApplied);
  EXPECT_EQ(ClassifySqlState("57P01", false), ErrorCode::kUnavailable);
  EXPECT_EQ(ClassifySqlState("40001", true), ErrorCode::kConflict);
  EXPECT_EQ(ClassifySqlState("53100", true), ErrorCode::kUnavailable);
  EXPECT_EQ(ClassifySqlState("22003", true), ErrorCode::kInvalidArgument);
  EXPECT_EQ(ClassifySqlState("42601", true), ErrorCode::kRejected);
  EXPECT_EQ(ClassifySqlState("MR001", true), ErrorCode::kStale);
}

// ---- the ledger over connections that die
// ------------------------------------------------------------------------------------

class LedgerFaultTest : public PostgresTest {
 protected:
  void Start(const std::string& dsn) {
    auto opened = OpenPostgresLedger(
        {.dsn = dsn, .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "t"}, In());
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    ledger_ = std::move(*opened);
    ASSERT_TRUE(ledger_->Migrate(In()).has_value());
    epoch_ = *ledger_->TakeShard(ShardId{0}, owner_, "b", In());
  }
  // One batch of two fresh jobs; must be applied exactly once, whatever happens to the connection.
  void CommitOne() {
    OwnerBatch batch;
    batch.holds = {{ShardId{0}, epoch_}};
    batch.owner = owner_;
    for (int i = 0; i < 2; ++i) {
      JobSpec job;
      job.id = ids_.Next<JobId>();
      job.kind = "k";
      job.payload.assign(200, 'p');
      batch.jobs.push_back(job);
      jobs_.insert(job.id);
    }
    const auto done = ledger_->Commit(batch, In());
    ASSERT_TRUE(done.has_value()) << Name(done.error().code) << ": " << done.error().message;
    EXPECT_TRUE(done->duplicate_jobs.empty());
    ++commits_;
  }
  void ExpectExact() {
    const auto r = connection_->QueryOnce(
        "select (select count(*) from millrace.job), (select count(*) from millrace.live_job), (select count(*) from "
        "millrace.audit_record), "
        "(select coalesce(max(seq), 0) from millrace.audit_record), (select count(*) from (select distinct audit_writer, "
        "audit_seq, "
        "audit_index from millrace.job) x)",
        {}, In());
    ASSERT_TRUE(r.has_value()) << r.error().message;
    EXPECT_EQ(r->Int(0, 0), static_cast<std::int64_t>(jobs_.size()));
    EXPECT_EQ(r->Int(0, 1), static_cast<std::int64_t>(jobs_.size()));
    EXPECT_EQ(r->Int(0, 2), commits_);
    EXPECT_EQ(r->Int(0, 3), commits_);
    EXPECT_EQ(r->Int(0, 4), static_cast<std::int64_t>(jobs_.size()));
  }
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  OwnerId owner_ = ids_.Next<OwnerId>();
  Epoch epoch_;
  std::unique_ptr<Ledger> ledger_;
  std::set<JobId> jobs_;
  std::int64_t commits_ = 0;
};

TEST_F(LedgerFaultTest, EveryKindOfLostAnswerIsResolvedExactly) {
  const auto port = database_->admin().QueryOnce("select current_setting('port')", {}, In());
  ASSERT_TRUE(port.has_value());
  FaultyProxy proxy(std::stoi(port->Text(0, 0)));
  Start(database_->dsn() +
        " host=127.0.0.1 hostaddr=127.0.0.1 sslmode=disable gssencmode=disable port=" + std::to_string(proxy.port()));
  CommitOne();
  SeededRandom random(20261121);
  std::map<int, int> chosen;
  for (int round = 0; round < 200; ++round) {
    const auto fault = static_cast<FaultyProxy::Fault>(random.Below(static_cast<std::uint64_t>(FaultyProxy::Fault::kCount)));
    ++chosen[static_cast<int>(fault)];
    proxy.Arm(fault);
    CommitOne();
    if (HasFatalFailure()) FAIL() << "round " << round << ", fault " << static_cast<int>(fault);
  }
  EXPECT_EQ(chosen.size(), static_cast<std::size_t>(FaultyProxy::Fault::kCount));
  ExpectExact();
}

TEST_F(LedgerFaultTest, BackendsKilledAnyTime) {
  constexpr int kKillsMin = 10;
  Start(database_->dsn());
  std::atomic<int> kills{0};
  {
    std::jthread killer([&](const std::stop_token& stop) {
      SeededRandom random(7);
      while (!stop.stop_requested()) {
        const auto r = database_->admin().Query(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1 and "
            "application_name like 'millrace t%'",
            PgParams().Text(database_->name()), In());
        if (r) kills += static_cast<int>(r->Int(0, 0));
        std::this_thread::sleep_for(Millis{static_cast<std::int64_t>(20 + random.Below(30))});
      }
    });
    // As many commits as it takes for enough kills: a fast machine does 150 before the fourth.
    for (int i = 0; i < 150 || (kills < kKillsMin && i < 20'000); ++i) {
      CommitOne();
      if (HasFatalFailure()) FAIL() << "round " << i;
    }
  }
  EXPECT_GE(kills.load(), kKillsMin);
  ExpectExact();
  EXPECT_TRUE(ledger_->Shards(In()).has_value());  // reads reconnect, too
}

// The commit is sent, its answer does not come in time, and then it does commit: the next batch goes on behind it.
TEST_F(LedgerFaultTest, ACommitThatOutlivesItsDeadlineDoesNotStopTheNext) {
  Start(database_->dsn());
  CommitOne();
  auto blocker = database_->Connect();
  ASSERT_TRUE(blocker->Exec("begin; lock table millrace.live_job in access exclusive mode", In()).has_value());
  OwnerBatch batch;
  batch.holds = {{ShardId{0}, epoch_}};
  batch.owner = owner_;
  JobSpec job;
  job.id = ids_.Next<JobId>();
  job.kind = "k";
  batch.jobs = {job};
  const auto late = ledger_->Commit(batch, clock_.Now() + 300ms);
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, ErrorCode::kMaybeApplied) << late.error().message;
  ASSERT_TRUE(blocker->Exec("commit", In()).has_value());
  for (int i = 0; i < 100; ++i) {
    const auto there = connection_->QueryOnce("select count(*) from millrace.job", {}, In());
    ASSERT_TRUE(there.has_value());
    if (there->Int(0, 0) == 3) break;
    std::this_thread::sleep_for(Millis{20});
  }
  jobs_.insert(job.id);
  ++commits_;
  CommitOne();
  CommitOne();
  ExpectExact();
}

}  // namespace
}  // namespace millrace
