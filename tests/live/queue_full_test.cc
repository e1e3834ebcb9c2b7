// A Redis with a maxmemory that fills up under a real broker: submits are refused with queue_full while Redis still takes
// writes, nothing of what was accepted is lost, and submits are taken again when there is room.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/queue/redis_queue.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/history_check.h"
#include "tests/support/job_driver.h"
#include "tests/support/redis_server.h"

namespace millrace {
namespace {

constexpr std::size_t kPayload = 10'000, kAtFirst = 2000;
constexpr std::size_t kCreditAtFirst = 500;  // with which the driver's worker says hello
// The limit is 1.4 times what is held, so that submits end at 1.12 times. What comes until the broker looks again (once a
// second) must fit between there and the limit: at this pace 4 s of it do.
constexpr int kBatch = 20;
constexpr Millis kBetween{200}, kFull{2'500}, kPatience{60'000};

class QueueFullLiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ConfigureLog(std::getenv("MILLRACE_TEST_LOG") != nullptr ? LogLevel::kInfo : LogLevel::kOff, LogFormat::kText,
                 "queue_full_test");
    if (!testing::RedisServer::Installed()) {
      if (std::getenv("CI") != nullptr) FAIL() << "there is no redis-server on the path";
      GTEST_SKIP() << "there is no redis-server on the path: run ops/setup";
    }
    ASSERT_TRUE(server_.Start());
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_full_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
    auto fresh = OpenLedger();
    ASSERT_TRUE(fresh && (*fresh)->Migrate(In(20s)));
    StartBroker();
    driver_->SubmitJobsOf("noop", [](JobId) { return std::string(kPayload, 'x'); });
  }
  void TearDown() override {
    broker_.reset();
    if (std::filesystem::exists(dir_ / "ledger.db")) {
      std::vector<std::string> more = driver_->WriteLists(dir_ / "history");
      if (ended_) more.emplace_back("--ended");
      testing::EndHistory(dir_ / "ledger.db", dir_ / "history", more);
    }
    driver_.reset();
    std::filesystem::remove_all(dir_);
  }
  MonoTime In(Millis d) const { return clock_.Now() + d; }
  Result<std::unique_ptr<Ledger>> OpenLedger() {
    return OpenSqliteLedger(
        {.dsn = dir_ / "ledger.db", .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "test"},
        In(20s));
  }
  Result<std::unique_ptr<JobQueue>> OpenQueue() {
    MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open({.endpoint = server_.endpoint(), .prefix = "t"}, In(10s)));
    return std::unique_ptr<JobQueue>(std::move(queue));
  }
  void StartBroker() {
    BrokerOptions options;
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {"ipc://" + (dir_ / "front").string()};
    options.back_endpoints = {"ipc://" + (dir_ / "back").string()};
    options.clock = &clock_;
    options.random = &random_;
    options.make_ledger = [this] { return OpenLedger(); };
    options.make_queue = [this] { return OpenQueue(); };
    options.make_transport = [this] { return wire::MakeZmtpTransport(names_); };
    const std::string front = options.front_endpoints[0], back = options.back_endpoints[0];
    broker_ = std::make_unique<Broker>(std::move(options));
    const auto started = broker_->Start();
    ASSERT_TRUE(started) << started.error().message;
    driver_.emplace(names_, front, back);
  }
  QueueMemory Memory() {
    const auto queue = OpenQueue();
    const auto memory = queue ? (*queue)->Memory() : Result<QueueMemory>(std::unexpected(queue.error()));
    EXPECT_TRUE(memory) << memory.error().message;
    return memory.value_or(QueueMemory{});
  }
  void Limit(std::uint64_t bytes) { ASSERT_EQ(server_.Said({"CONFIG", "SET", "maxmemory", std::to_string(bytes)}), "OK"); }
  // A batch of each class in turn, every now and then, until `done`.
  template <class Done>
  bool FillUntil(Done done) {
    MonoTime next{};
    return driver_->PumpUntil(
        [&] {
          if (clock_.Now() >= next && driver_->unanswered() < 2) {
            next = clock_.Now() + kBetween;
            redis_class_ = !redis_class_;
            driver_->Submit(redis_class_ ? Durability::kRedis : Durability::kLedger, kBatch);
            EXPECT_EQ(server_.Said({"SET", "somebody", "else's"}), "OK") << "Redis takes no writes";
          }
          return done();
        },
        kPatience);
  }
  int Refused() const {
    const auto found = driver_->problems().find("queue_full");
    return found == driver_->problems().end() ? 0 : found->second;
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  testing::RedisServer server_{"everysec"};
  std::filesystem::path dir_;
  std::shared_ptr<wire::LocalNames> names_ = wire::MakeLocalNames();
  std::unique_ptr<Broker> broker_;
  std::optional<testing::JobDriver> driver_;
  bool redis_class_ = false, ended_ = false;
};

TEST_F(QueueFullLiveTest, SubmitsAreRefusedBeforeRedisIs) {
  driver_->TakeAtMost(0);
  ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->accepted().size() >= kAtFirst; }, kPatience, 1));
  ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->AllAnswered(); }, kPatience));
  ASSERT_EQ(Refused(), 0);
  std::uint64_t held = 0;  // a job of ledger class may be accepted before Redis has it
  ASSERT_TRUE(driver_->PumpUntil([&] { return (held = Memory().used) > (kAtFirst - kCreditAtFirst) * kPayload; }, kPatience))
      << "what waits is not in Redis, which holds " << held << " bytes";
  Limit(held / 10 * 14);

  ASSERT_TRUE(FillUntil([&] { return Refused() > 0; })) << "nothing is refused";
  const std::size_t accepted = driver_->accepted().size();
  EXPECT_GT(accepted, kAtFirst) << "refused before it was full";
  driver_->PumpFor(kFull);  // what was refused is sent again and again
  EXPECT_EQ(driver_->accepted().size(), accepted) << "accepted although Redis is nearly full";
  EXPECT_EQ(server_.Said({"SET", "somebody", "else's"}), "OK");
  const QueueMemory full = Memory();
  EXPECT_GE(full.used, full.max / 100 * 80);
  EXPECT_LT(full.used, full.max);
  EXPECT_EQ(server_.Said({"INFO", "errorstats"}).find("OOM"), std::string::npos) << "Redis refused a write";
  EXPECT_EQ(driver_->problems().size(), 1u) << "refused for another reason too";

  driver_->TakeAtMost(1'000'000);
  EXPECT_TRUE(driver_->PumpUntil([&] { return driver_->accepted().size() > accepted; }, kPatience)) << "not taken again";
  EXPECT_TRUE(driver_->PumpUntil([&] { return driver_->AllAnswered(); }, kPatience));
  EXPECT_TRUE(driver_->PumpUntil([&] { return driver_->recorded().size() == driver_->accepted().size(); }, kPatience))
      << driver_->recorded().size() << " of " << driver_->accepted().size() << " accepted jobs ended";
  EXPECT_EQ(driver_->after_end(), 0u);
  EXPECT_EQ(server_.Said({"INFO", "errorstats"}).find("OOM"), std::string::npos) << "Redis refused a write";
  ended_ = true;
  fmt::print("{} bytes of {} when {} jobs were accepted; {} refusals; {} jobs in the end\n", full.used, full.max, accepted,
             Refused(), driver_->accepted().size());
}

}  // namespace
}  // namespace millrace
