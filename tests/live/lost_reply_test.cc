// The network between a part and its servers loses answers: a proxy forwards a COMMIT or a queue write, lets the server carry
// it out, drops the reply and cuts; or it goes silent with connections open. Nothing is lost, nothing happens twice.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/drivers/redis.h"
#include "common/queue/redis_queue.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/history_check.h"
#include "tests/support/job_driver.h"
#include "tests/support/lateness.h"
#include "tests/support/load_fixture.h"
#include "tests/support/migrated_database.h"
#include "tests/support/tcp_proxy.h"
#include "tests/support/test_postgres.h"

namespace millrace {
namespace {

using testing::Silence;
using testing::TcpProxy;

// CommandComplete with the tag COMMIT, as it stands in the server's bytes.
const std::string kCommitDone(
    "C\0\0\0\x0b"
    "COMMIT\0",
    12);
constexpr std::size_t kOpen = 4;  // submits under way
// ops/docs/failure-modes.md, "Network": until work goes on. To the ledger a call that is given up (2.5 s), a new connection (1
// s) and a commit; to the queue a call (3 s), a takeover (up to 2 s after the one before), and the submits that waited for it.
constexpr Millis kLedgerBack{5'000}, kQueueBack{8'000}, kPatience{60'000};
bool Long() {
  const char* chaos = std::getenv("MILLRACE_CHAOS");
  return chaos != nullptr && std::string(chaos) == "long";
}
// A lost reply of the queue costs a takeover, and those are up to 2 s apart.
// The fault catalogue's 500 in the long form; each costs a new connection or more.
std::uint64_t DropsLedger() { return Long() ? 200 : 100; }
std::uint64_t DropsSink() { return Long() ? 300 : 50; }
std::uint64_t DropsRedis() { return Long() ? 100 : 6; }

std::uint16_t PortOf(const std::string& dsn) {
  const auto at = dsn.find("port=");
  return at == std::string::npos ? std::uint16_t{5432} : static_cast<std::uint16_t>(std::atoi(dsn.c_str() + at + 5));
}

std::unique_ptr<TcpProxy> ProxyTo(std::uint16_t port) {
  auto proxy = TcpProxy::Start({.upstream_port = port, .seed = 7});
  EXPECT_TRUE(proxy) << proxy.error().message;
  return proxy ? std::move(*proxy) : nullptr;
}

// A broker on PostgreSQL and Redis, each behind a proxy; a client that sends what was not answered again, with the same ids; a
// worker that ends every job at once.
class LostReplies : public ::testing::Test {
 protected:
  void SetUp() override {
    ConfigureLog(std::getenv("MILLRACE_TEST_LOG") != nullptr ? LogLevel::kInfo : LogLevel::kOff, LogFormat::kText, "test");
    MILLRACE_NEED_POSTGRES();
    const char* redis = std::getenv("MILLRACE_TEST_REDIS");
    if (redis == nullptr) {
      if (std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set";
      GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: source DIR/env of tests/support/servers.sh start DIR";
    }
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_replies_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
    database_ = testing::MigratedDatabase("replies", 1);
    redis_endpoint_ = redis;
    prefix_ = fmt::format("mrreplies-{}-{}", getpid(), ids_.Next<RunId>().ToString());
    postgres_proxy_ = ProxyTo(PortOf(database_->dsn()));
    redis_proxy_ = ProxyTo(redis::ParseEndpoint(redis)->port);
    auto ledger = OpenLedger(database_->dsn());
    ASSERT_TRUE(ledger && (*ledger)->Migrate(In(20s)));
    StartBroker();
    ASSERT_TRUE(driver_->PumpUntil([this] { return driver_->recorded().size() >= 20; }, 20s, 1))
        << "nothing works before any fault";
  }
  void TearDown() override {
    broker_.reset();
    if (!redis_endpoint_.empty()) {
      auto connection = redis::Connection::Connect(*redis::ParseEndpoint(redis_endpoint_), {.clock = &clock_}, In(10s));
      ASSERT_TRUE(connection) << connection.error().message;
      const auto keys = connection->Call({"KEYS", fmt::format("{{{}:*", prefix_)}, In(10s));
      if (keys)
        for (const auto& key : keys->elements) (void)connection->Call({"DEL", key.text}, In(10s));
    }
    postgres_proxy_.reset();
    redis_proxy_.reset();
    if (driver_) {
      std::vector<std::string> more = driver_->WriteLists(dir_ / "history");
      if (ended_) more.emplace_back("--ended");
      testing::EndHistory(database_->dsn(), dir_ / "history", more);
    }
    driver_.reset();
    database_.reset();
    if (!dir_.empty()) std::filesystem::remove_all(dir_);
  }
  MonoTime In(Millis d) const { return clock_.Now() + d; }
  Result<std::unique_ptr<Ledger>> OpenLedger(const std::string& dsn) {
    return OpenPostgresLedger(
        {.dsn = dsn, .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "test"}, In(20s));
  }
  void StartBroker() {
    BrokerOptions options;
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {"ipc://" + (dir_ / "front").string()};
    options.back_endpoints = {"ipc://" + (dir_ / "back").string()};
    options.clock = &clock_;
    options.random = &random_;
    options.make_ledger = [this] {
      return OpenLedger(fmt::format("{} host=127.0.0.1 port={}", database_->dsn(), postgres_proxy_->port()));
    };
    options.make_queue = [this]() -> Result<std::unique_ptr<JobQueue>> {
      MILLRACE_TRY_ASSIGN(
          auto queue,
          RedisQueue::Open({.endpoint = fmt::format("127.0.0.1:{}", redis_proxy_->port()), .prefix = prefix_}, In(10s)));
      return std::unique_ptr<JobQueue>(std::move(queue));
    };
    options.make_transport = [this] { return wire::MakeZmtpTransport(names_); };
    const std::string front = options.front_endpoints[0], back = options.back_endpoints[0];
    broker_ = std::make_unique<Broker>(std::move(options));
    const auto started = broker_->Start();
    ASSERT_TRUE(started) << started.error().message;
    driver_.emplace(names_, front, back);
  }
  std::int64_t Count(const std::string& what) {
    const auto connection = database_->Connect();
    const auto rows = connection->QueryOnce("select count(*) from millrace." + what, {}, In(20s));
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  // Everything that was accepted has ended, once, and the ledger holds nothing else.
  void ExpectNothingLostNothingTwice() {
    ASSERT_TRUE(driver_->PumpUntil([this] { return driver_->AllAnswered(); }, 60s)) << "a submit was never answered";
    const auto ended = [this] { return Count("outcome") == static_cast<std::int64_t>(driver_->accepted().size()); };
    for (const MonoTime until = In(60s); !ended() && clock_.Now() < until;) driver_->PumpFor(200ms);
    const auto n = static_cast<std::int64_t>(driver_->accepted().size());
    EXPECT_EQ(Count("job"), n);
    EXPECT_EQ(Count("outcome"), n);
    EXPECT_EQ(Count("outcome where state = 10"), n);
    EXPECT_EQ(Count("live_job"), 0);
    EXPECT_EQ(Count("outcome o where not exists (select 1 from millrace.job j where j.job = o.job)"), 0);
    EXPECT_EQ(driver_->after_end(), 0U) << "a job ran although its outcome was durable";
    EXPECT_EQ(driver_->token_order(), 0U) << "a token did not increase";
    ended_ = true;
  }
  // From now until the outcome of a job that was submitted later is durable.
  Millis BackWithin(Millis promised, const std::string& after) {
    const MonoTime at = clock_.Now();
    const Millis late_before = lateness_.so_far();
    EXPECT_TRUE(driver_->PumpUntil([&] { return driver_->newest_recorded() > at; }, kPatience, kOpen)) << after << ": not back";
    const auto took = std::chrono::duration_cast<Millis>(clock_.Now() - at);
    const Millis late = lateness_.so_far() - late_before;
    EXPECT_LE(took, promised + late) << after << "; the machine was " << late.count() << " ms late";
    return took;
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  testing::Lateness lateness_;
  std::filesystem::path dir_;
  std::unique_ptr<testing::TestDatabase> database_;
  std::string redis_endpoint_, prefix_;
  std::unique_ptr<TcpProxy> postgres_proxy_, redis_proxy_;
  std::shared_ptr<wire::LocalNames> names_ = wire::MakeLocalNames();
  std::unique_ptr<Broker> broker_;
  std::optional<testing::JobDriver> driver_;
  bool ended_ = false;  // nothing is open any more
};

TEST_F(LostReplies, CommitRepliesOfTheLedger) {
  const std::uint64_t drops = DropsLedger();
  postgres_proxy_->DropReply(kCommitDone, 3, drops);
  EXPECT_TRUE(driver_->PumpUntil([&] { return postgres_proxy_->counts().replies_dropped >= drops; }, 180s, kOpen))
      << postgres_proxy_->counts().replies_dropped << " replies dropped";
  postgres_proxy_->Heal();
  ExpectNothingLostNothingTwice();
  fmt::print("ledger: {} COMMIT replies dropped; {} jobs accepted, {} lost, {} after their end\n",
             postgres_proxy_->counts().replies_dropped, driver_->accepted().size(),
             static_cast<std::int64_t>(driver_->accepted().size()) - Count("outcome"), driver_->after_end());
}

TEST_F(LostReplies, QueueWritesOfRedis) {
  const std::uint64_t drops = DropsRedis();
  redis_proxy_->DropReplyTo("EVALSHA", 3, drops);
  EXPECT_TRUE(driver_->PumpUntil([&] { return redis_proxy_->counts().replies_dropped >= drops; }, 240s, kOpen))
      << redis_proxy_->counts().replies_dropped << " replies dropped";
  redis_proxy_->Heal();
  ExpectNothingLostNothingTwice();
  fmt::print("queue: {} replies to scripts dropped; {} jobs accepted, {} lost, {} after their end\n",
             redis_proxy_->counts().replies_dropped, driver_->accepted().size(),
             static_cast<std::int64_t>(driver_->accepted().size()) - Count("outcome"), driver_->after_end());
}

// A call that nobody answers is given up, a new connection is made, and a shard whose state is in doubt is taken anew.
TEST_F(LostReplies, HalfOpenConnectionsAreFound) {
  for (const bool ledger : {true, false}) {
    for (int i = 0; i < (Long() ? 20 : 1); ++i) {
      driver_->PumpFor(300ms, kOpen);
      (ledger ? postgres_proxy_ : redis_proxy_)->Strand();
      const Millis took = BackWithin(ledger ? kLedgerBack : kQueueBack, ledger ? "half-open ledger" : "half-open queue");
      fmt::print("{}: connections half-open: work goes on after {} ms\n", ledger ? "ledger" : "queue", took.count());
    }
  }
  ExpectNothingLostNothingTwice();
}

// By default a server keeps the locks of a host that is gone for two hours.
TEST_F(LostReplies, VanishedHostsAreFoundByTheServer) {
  const auto connection = database_->Connect();
  const auto set = connection->QueryOnce(
      "select current_setting('tcp_keepalives_idle')::bigint"
      " + current_setting('tcp_keepalives_interval')::bigint * current_setting('tcp_keepalives_count')::bigint",
      {}, In(20s));
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_EQ(set->Int(0, 0), 7);
}

TEST_F(LostReplies, SilenceInOneDirectionOrBoth) {
  for (TcpProxy* proxy : {postgres_proxy_.get(), redis_proxy_.get()}) {
    for (const Silence way : {Silence::kToClient, Silence::kToServer, Silence::kBoth}) {
      if (!Long() && (way == Silence::kBoth || (proxy == redis_proxy_.get() && way == Silence::kToServer))) continue;
      driver_->PumpFor(200ms, kOpen);
      proxy->Go(way);
      driver_->PumpFor(3s, kOpen);
      proxy->Heal();
      proxy->Cut();
      const bool ledger = proxy == postgres_proxy_.get();
      const Millis took = BackWithin(ledger ? kLedgerBack : kQueueBack, ledger ? "silent ledger" : "silent queue");
      fmt::print("{}: silence over: work goes on after {} ms\n", ledger ? "ledger" : "queue", took.count());
    }
  }
  ExpectNothingLostNothingTwice();
}

class LostSinkReplies : public testing::LoadFixture {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    LoadFixture::SetUp();
    database_ = std::make_unique<testing::TestDatabase>("sink");
    proxy_ = ProxyTo(PortOf(database_->dsn()));
    connection_ =
        ConnectionSpec{"dest", "postgres", fmt::format("{} host=127.0.0.1 port={}", database_->dsn(), proxy_->port())};
  }
  void TearDown() override {
    if (!database_) return;
    LoadFixture::TearDown();
    proxy_.reset();
    database_.reset();
  }
  std::int64_t Int(const std::string& sql) {
    const auto connection = database_->Connect();
    const auto rows = connection->QueryOnce(sql, {}, testing::TestDatabase::In(Millis{20'000}));
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  std::unique_ptr<testing::TestDatabase> database_;
  std::unique_ptr<TcpProxy> proxy_;
};

// Appends into a table without a key, under one effect each, tried with growing tokens until one reports success.
TEST_F(LostSinkReplies, CommitRepliesOfTheDestination) {
  constexpr std::int64_t kRows = 10;
  const Manifest input = Dataset(fmt::format("select range::integer as id from range({})", kRows));
  ASSERT_TRUE(Load(Order(LoadMode::kAppend, "s.t", "e0", 1), input).ok);
  const std::uint64_t drops = DropsSink();
  std::int64_t effects = 1, attempts = 0, already = 0;
  const SystemClock clock;
  for (const MonoTime until = clock.Now() + 200s; clock.Now() < until; ++effects) {
    const std::uint64_t left = drops - std::min(drops, proxy_->counts().replies_dropped);
    if (left == 0) break;
    proxy_->DropReply(kCommitDone, 1, left);
    for (std::uint64_t token = 1;; ++token) {
      ASSERT_LT(token, 60U) << "an effect does not end";
      ++attempts;
      const StageResult result = Load(Order(LoadMode::kAppend, "s.t", fmt::format("e{}", effects), token), input);
      if (result.ok) {
        EXPECT_EQ(result.inserted, kRows);
        already += result.already_applied ? 1 : 0;
        break;
      }
      EXPECT_TRUE(result.retryable) << result.error_class << ": " << result.error;
    }
  }
  EXPECT_EQ(proxy_->counts().replies_dropped, drops);
  EXPECT_EQ(Int("select count(*) from s.t"), effects * kRows);
  EXPECT_EQ(Int("select count(*) from millrace.receipt"), effects);
  fmt::print("sink: {} COMMIT replies dropped; {} effects, {} attempts, {} found their receipt; {} rows too few\n",
             proxy_->counts().replies_dropped, effects, attempts, already, effects * kRows - Int("select count(*) from s.t"));
}

}  // namespace
}  // namespace millrace
