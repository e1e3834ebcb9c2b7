// The power of PostgreSQL's, Redis' or the embedded files' machine fails: every file system loses what was not synced, at one
// instant, and every process on it dies (tests/support/volume.h says what is modelled). Then: what was accepted, per durability
// class and policy, and what of it was lost; and the history checker's verdict. MILLRACE_CHAOS=short (default) or long,
// MILLRACE_CHAOS_SEED=<number>.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <pwd.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/random.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/drivers/sqlite.h"
#include "common/model/stage_task.h"
#include "common/wire/stream_socket.h"
#include "tests/chaos/settings.h"
#include "tests/support/history_check.h"
#include "tests/support/job_driver.h"
#include "tests/support/process.h"
#include "tests/support/volume.h"

namespace millrace::chaos {
namespace {

namespace fs = std::filesystem;
using testing::JobDriver;
using testing::TestProcess;
using testing::Volume;

constexpr std::uint64_t kVolumeBytes = 256u << 20;
constexpr Millis kServerStart{60'000};
constexpr Millis kQuiet{3'000};       // nothing has moved for so long: what is not done of class redis is lost
constexpr Millis kOutcomes{120'000};  // of what must not be lost
constexpr Millis kFull{2'000};
constexpr Millis kTakeover{15'000};
constexpr Millis kAnswers{60'000};
constexpr Millis kMayLose{3'000}, kOnItsWay{500};  // class redis: answered so long before a loss, or on its way then
constexpr std::size_t kOpen = 4;                   // submits under way
constexpr std::uint64_t kTakenPerRound = 400;      // what the worker takes before the loss: the rest waits in the queue

class PowerLoss : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoVolume(); !why.empty()) {
      if (!Env("CI").empty()) FAIL() << why;
      GTEST_SKIP() << why;
    }
    static const Result<void> entered = testing::EnterPrivateMounts();
    ASSERT_TRUE(entered) << entered.error().message;
    std::string pattern = fs::temp_directory_path() / "millrace-power-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    ::chmod(dir_.c_str(), 0755);
    fs::create_directory(dir_ + "/history");
    std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
  }
  void TearDown() override {
    driver_.reset();
    broker_.KillAndReap();
    redis_.KillAndReap();
    KillPostgres();
    std::error_code ec;
    if (HasFailure() && embedded()) fs::copy(dir_ + "/home", dir_ + "/kept", fs::copy_options::recursive, ec);
    volumes_.clear();
    if (!HasFailure() && !dir_.empty()) fs::remove_all(dir_, ec);
  }

  bool embedded() const { return GetParam() == "embedded"; }
  MonoTime In(Millis time) const { return clock_.Now() + time; }

  void MakeVolume(const std::string& name) {
    auto volume = Volume::Make(dir_ + "/" + name, kVolumeBytes);
    ASSERT_TRUE(volume) << volume.error().message;
    volumes_.push_back(std::move(*volume));
  }
  std::uint16_t Port() {
    auto port = wire::HoldPort();
    EXPECT_TRUE(port) << port.error().message;
    if (!port) return 0;
    ports_.push_back(std::move(*port));
    return ports_.back().number;
  }
  void Start(TestProcess& process, const std::string& name, std::vector<std::string> argv) {
    auto started = TestProcess::Start(
        {.argv = std::move(argv), .env = {{"MILLRACE_HISTORY", dir_ + "/history"}}, .log = dir_ + "/" + name + ".log"});
    ASSERT_TRUE(started) << started.error().message;
    process = std::move(*started);
  }

  // ---- PostgreSQL ----
  std::string Dsn(std::string_view database) const {
    return fmt::format("host=127.0.0.1 port={} user=postgres dbname={}", postgres_port_, database);
  }
  Result<std::unique_ptr<PgConnection>> Connect(std::string_view database) {
    PgOptions options;
    options.dsn = Dsn(database);
    return PgConnection::Connect(options, clock_, In(kServerStart));
  }
  void MakePostgres() {
    MakeVolume("pg");
    const std::string folder = dir_ + "/pg/data";
    fs::create_directory(folder);
    const passwd* user = ::getpwnam("postgres");
    ASSERT_TRUE(user != nullptr && ::chown(folder.c_str(), user->pw_uid, user->pw_gid) == 0);
    const auto bin = testing::PostgresBin();
    ASSERT_TRUE(bin) << bin.error().message;
    const auto made = testing::RunToEnd({.argv = testing::AsPostgres({*bin + "/initdb", "-D", folder, "-U", "postgres", "-A",
                                                                      "trust", "-E", "UTF8", "--no-locale"}),
                                         .env = {},
                                         .log = dir_ + "/initdb.log"},
                                        kServerStart);
    ASSERT_TRUE(made && *made == 0);
    postgres_port_ = Port();
    StartPostgres();
    ASSERT_TRUE((*Connect("postgres"))->Exec("create database millrace", In(kServerStart)));
  }
  void StartPostgres() {
    std::error_code ec;
    fs::remove(dir_ + "/pg/data/postmaster.pid", ec);  // of a process that is not there any more
    Start(postgres_, "postgres",
          testing::AsPostgres({*testing::PostgresBin() + "/postgres", "-D", dir_ + "/pg/data", "-p",
                               std::to_string(postgres_port_), "-c", "listen_addresses=127.0.0.1", "-c",
                               "unix_socket_directories=", "-c", "max_connections=50"}));
    std::string why;
    for (const MonoTime until = In(kServerStart); clock_.Now() < until; testing::SleepFor(Millis{50})) {
      const auto connection = Connect("postgres");
      if (connection) return;
      why = connection.error().message;
    }
    FAIL() << "PostgreSQL does not answer: " << why;
  }
  void KillPostgres() {
    const auto children = testing::ChildrenOf(postgres_.pid(), "postgres");
    postgres_.KillAndReap();
    for (const pid_t child : children) ::kill(child, SIGKILL);
  }

  // ---- Redis ----
  void MakeRedis() {
    MakeVolume("redis");
    redis_port_ = Port();
    StartRedis();
  }
  std::vector<std::string> RedisCommand() const {
    return {"redis-server",  "--port",    std::to_string(redis_port_),
            "--bind",        "127.0.0.1", "--dir",
            dir_ + "/redis", "--save",    "",
            "--appendonly",  "yes",       "--appendfsync",
            GetParam()};
  }
  std::string AppendOnlyFile() const {  // the one that is written to
    std::error_code ec;
    for (const auto& file : fs::directory_iterator(dir_ + "/redis/appendonlydir", ec))
      if (file.path().string().ends_with(".incr.aof")) return file.path();
    return "";
  }
  void StartRedis() {
    Start(redis_, "redis", RedisCommand());
    for (const MonoTime until = In(kServerStart); clock_.Now() < until; testing::SleepFor(Millis{20}))
      if (RedisSays({"PING"}) == "PONG") return;
    FAIL() << "Redis does not answer, see " << dir_ << "/redis.log";
  }
  std::string RedisSays(std::initializer_list<std::string_view> command) {
    auto endpoint = redis::ParseEndpoint(fmt::format("127.0.0.1:{}", redis_port_));
    auto connection = redis::Connection::Connect(*endpoint, {}, In(Millis{2000}));
    if (!connection) return connection.error().message;
    const auto reply = connection->Call(command, In(Millis{2000}));
    return reply ? reply->text : reply.error().message;
  }

  // ---- the broker, on a machine of its own unless embedded ----
  void WriteConfig() {
    front_ = fmt::format("tcp://127.0.0.1:{}", Port());
    back_ = fmt::format("tcp://127.0.0.1:{}", Port());
    std::ofstream file(dir_ + "/millrace.yaml");
    file << fmt::format(
        "version: 1\nhome: {0}/home\nlog: {{ format: text }}\n"
        "broker: {{ listen_clients: \"{1}\", listen_workers: \"{2}\" }}\n",
        dir_, front_, back_);
    if (embedded()) {
      front_ = "ipc://" + dir_ + "/home/broker.sock";
      return;
    }
    file << fmt::format("ledger: {{ dsn: \"{}\" }}\nqueue: {{ redis: \"127.0.0.1:{}\" }}\n", Dsn("millrace"), redis_port_);
  }
  void StartBroker() {
    Start(broker_, "broker",
          {std::string(MILLRACE_BIN_DIR) + "/millrace", "--config", dir_ + "/millrace.yaml", embedded() ? "up" : "broker"});
  }
  void StartDriver() {
    driver_.emplace(wire::MakeLocalNames(), front_, embedded() ? "" : back_);
    if (!embedded()) return;
    driver_->SubmitJobsOf(std::string(kJobKindCommand), [](JobId job) {
      CommandTask task;
      task.job = job;
      task.command.argv = {"/bin/true"};
      task.base_dir = "/";
      return ToJson(task);
    });
  }
  // Submits of both classes until `end`.
  void Feed(MonoTime end) {
    for (std::uint64_t i = 0; clock_.Now() < end && !HasFailure();) {
      while (driver_->unanswered() < (embedded() ? 1 : kOpen))
        driver_->Submit(++i % 2 == 0 ? Durability::kLedger : Durability::kRedis, embedded() ? 3 : 10);
      driver_->PumpFor(embedded() ? Millis{25} : Millis{2});  // `up` starts a process per job: it could not keep up
    }
  }
  // Until all that was accepted has ended, but for `lost`. Jobs of class redis, if they may be lost, are waited for while
  // anything ends; the first end after a loss waits for the dead broker's ownership lease.
  void WaitForOutcomes(const std::set<JobId>& lost, bool redis_may_be_lost) {
    const std::size_t first = Outcomes().size();
    std::size_t before = first;
    MonoTime moved = clock_.Now();
    for (const MonoTime until = In(kOutcomes); clock_.Now() < until && !HasFailure();) {
      driver_->PumpFor(Millis{200});
      const std::set<JobId> done = Outcomes();
      std::size_t open = 0, may_be_lost = 0;
      for (const auto& [job, told] : driver_->accepted()) {
        if (done.contains(job) || lost.contains(job)) continue;
        ++open;
        may_be_lost += redis_may_be_lost && told.durability == Durability::kRedis ? 1 : 0;
      }
      if (open == 0) return;
      if (std::exchange(before, done.size()) != done.size()) moved = clock_.Now();
      const bool quiet = clock_.Now() - moved >= (before == first ? kTakeover : kQuiet);
      if (quiet && open == may_be_lost) return;
    }
  }

  // Whatever of class redis the client was told shortly before `loss`, and what was on its way to it then: read by now.
  void MayLoseSince(WallTime loss) {
    driver_->PumpFor(kOnItsWay);
    if (GetParam() == "always") return;
    const auto window = fmt::format("{}:{}", ToUnixMicros(loss - kMayLose), ToUnixMicros(clock_.WallNow()));
    may_lose_.insert(may_lose_.end(), {"--redis-may-lose", window});
  }
  // S1 to S10 by what the client was told, the worker did and the processes say.
  void ExpectHistoryHolds() {
    std::vector<std::string> more = driver_->WriteLists(dir_ + "/history");
    more.insert(more.end(), may_lose_.begin(), may_lose_.end());
    more.emplace_back("--ended");
    testing::ExpectHistoryHolds(embedded() ? dir_ + "/home/ledger.db" : Dsn("millrace"), dir_ + "/history", more);
  }

  // Writes until there is no space left.
  static void Fill(const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    const std::string block(1u << 20, 'x');
    while (file.write(block.data(), static_cast<std::streamsize>(block.size())) && file.flush()) {
    }
  }

  // How many of a class were accepted and have no outcome, and how old (from acceptance to the loss) the oldest of those was.
  struct Lost {
    std::size_t accepted = 0, lost = 0;
    Millis oldest{0};
  };
  std::set<JobId> Outcomes() {
    std::set<JobId> done;
    if (embedded()) {
      auto db = sqlite::Database::Open(dir_ + "/home/ledger.db", {});
      EXPECT_TRUE(db) << db.error().message;
      if (!db) return done;
      auto rows = db->Prepare("select job from outcome where state = 10");
      EXPECT_TRUE(rows) << rows.error().message;
      while (rows) {
        const auto more = rows->Step();
        EXPECT_TRUE(more) << more.error().message;
        if (!more || !*more) break;
        const auto id = Uuid::FromBytes(rows->View(0));
        if (id) done.insert(JobId{*id});
      }
      return done;
    }
    const auto connection = Connect("millrace");
    EXPECT_TRUE(connection) << connection.error().message;
    if (!connection) return done;
    const auto rows = (*connection)->QueryOnce("select job from millrace.outcome where state = 10", {}, In(kServerStart));
    EXPECT_TRUE(rows) << rows.error().message;
    for (int i = 0; rows && i < rows->rows(); ++i) done.insert(JobId{rows->Id(i, 0)});
    return done;
  }
  Lost Count(Durability durability, MonoTime at, const std::set<JobId>& done, std::set<JobId>& known_lost) {
    Lost out;
    for (const auto& [job, told] : driver_->accepted()) {
      if (told.durability != durability) continue;
      ++out.accepted;
      if (done.contains(job) || !known_lost.insert(job).second) continue;
      ++out.lost;
      out.oldest = std::max(out.oldest, std::chrono::duration_cast<Millis>(at - told.accepted_at));
    }
    return out;
  }

  SystemClock clock_;
  std::string dir_, front_, back_;
  std::vector<Volume> volumes_;
  TestProcess postgres_, redis_, broker_;
  std::uint16_t postgres_port_ = 0, redis_port_ = 0;
  std::vector<wire::HeldPort> ports_;
  std::optional<JobDriver> driver_;
  std::vector<std::string> may_lose_;  // for the history checker
};

TEST_P(PowerLoss, AcceptedAndLost) {
  if (!Long() && GetParam() == "always") GTEST_SKIP() << "everysec and embedded in the short form";
  const int rounds = Long() ? 10 : 1;
  SeededRandom random(Seed());
  if (embedded()) {
    ASSERT_NO_FATAL_FAILURE(MakeVolume("home"));
  } else {
    ASSERT_NO_FATAL_FAILURE(MakePostgres());
    ASSERT_NO_FATAL_FAILURE(MakeRedis());
  }
  WriteConfig();
  ASSERT_NO_FATAL_FAILURE(StartBroker());
  StartDriver();
  ASSERT_TRUE(driver_->PumpUntil([&] { return !driver_->accepted().empty(); }, kAnswers, 1))
      << "nothing works before any fault";
  std::size_t lost_ledger = 0, lost_redis = 0, rounds_that_lost = 0;
  Millis window{0};
  std::set<JobId> known_lost;
  for (int round = 0; round < rounds; ++round) {
    driver_->TakeAtMost(kTakenPerRound);
    // Both classes, more than the worker takes; now and then the append-only file is rewritten meanwhile.
    if (!embedded() && random.Below(3) == 0) (void)RedisSays({"BGREWRITEAOF"});
    const MonoTime loss = In(Millis{700 + static_cast<std::int64_t>(random.Below(1800))});
    Feed(loss);
    const bool broker_too = embedded() || random.Below(2) == 0;
    for (Volume& volume : volumes_) ASSERT_TRUE(volume.LosePower());
    const MonoTime at = clock_.Now();
    const WallTime loss_wall = clock_.WallNow();
    if (broker_too) broker_.KillAndReap();
    redis_.KillAndReap();
    KillPostgres();
    MayLoseSince(loss_wall);
    for (Volume& volume : volumes_) {
      const auto restored = volume.Restore();
      ASSERT_TRUE(restored) << restored.error().message;
    }
    if (!embedded()) {
      ASSERT_NO_FATAL_FAILURE(StartPostgres());
      ASSERT_NO_FATAL_FAILURE(StartRedis());
    }
    if (broker_too) StartBroker();
    driver_->TakeAtMost(1'000'000);
    ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->AllAnswered(); }, kAnswers)) << "a submit was never answered";
    WaitForOutcomes(known_lost, true);
    const std::set<JobId> done = Outcomes();
    const std::size_t lost_before = lost_ledger + lost_redis;
    lost_ledger += Count(Durability::kLedger, at, done, known_lost).lost;
    const Lost fast = Count(Durability::kRedis, at, done, known_lost);
    lost_redis += fast.lost;
    window = std::max(window, fast.oldest);
    rounds_that_lost += lost_ledger + lost_redis > lost_before ? 1 : 0;
  }
  std::size_t accepted_ledger = 0;
  for (const auto& [job, told] : driver_->accepted()) accepted_ledger += told.durability == Durability::kLedger ? 1 : 0;
  std::printf(
      "power loss, %s: %d rounds; ledger class: %zu accepted, %zu lost; redis class: %zu accepted, %zu lost in %zu"
      " rounds, the oldest %lld ms before\n",
      GetParam().c_str(), rounds, accepted_ledger, lost_ledger, driver_->accepted().size() - accepted_ledger, lost_redis,
      rounds_that_lost, static_cast<long long>(window.count()));
  EXPECT_GT(accepted_ledger, 0U);
  EXPECT_EQ(lost_ledger, 0U) << "jobs of ledger class were accepted and are lost";
  EXPECT_TRUE(lost_redis == 0 || GetParam() != "always") << "appendfsync always: every answer comes after the sync";
  EXPECT_EQ(driver_->after_end(), 0U) << "a job ran although its outcome was durable";
  EXPECT_EQ(driver_->token_order(), 0U) << "a token did not increase";
  ExpectHistoryHolds();
}

// The disks of PostgreSQL and Redis are full for a while: nothing is accepted that cannot be kept, and all goes on afterwards.
TEST_P(PowerLoss, AFullDiskLosesNothing) {
  if (embedded()) GTEST_SKIP() << "shown by SqliteDriverTest.AFullDiskAppliesNothingAndTheFileStaysSound and CliData";
  if (!Long() && GetParam() != "everysec") GTEST_SKIP() << "MILLRACE_CHAOS=long plays both policies";
  ASSERT_NO_FATAL_FAILURE(MakePostgres());
  ASSERT_NO_FATAL_FAILURE(MakeRedis());
  WriteConfig();
  ASSERT_NO_FATAL_FAILURE(StartBroker());
  StartDriver();
  ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->accepted().size() > 100; }, kAnswers, kOpen));
  for (const Volume& volume : volumes_) Fill(volume.path() + "/filler");
  Feed(In(kFull));
  const std::size_t before = driver_->accepted().size();
  Feed(In(kFull));
  const std::size_t meanwhile = driver_->accepted().size() - before;
  for (const Volume& volume : volumes_) fs::remove(volume.path() + "/filler");
  const bool postgres_ended = !postgres_.Running(), redis_ended = !redis_.Running();
  if (postgres_ended) StartPostgres();
  if (redis_ended) StartRedis();
  ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->AllAnswered(); }, kAnswers)) << "a submit was never answered";
  WaitForOutcomes({}, false);
  const std::set<JobId> done = Outcomes();
  const auto lost = std::ranges::count_if(driver_->accepted(), [&](const auto& one) { return !done.contains(one.first); });
  std::printf("full disks, %s: %zu jobs accepted, %zu of them in the last %lld ms of it, %lld lost; PostgreSQL %s, Redis %s\n",
              GetParam().c_str(), driver_->accepted().size(), meanwhile, static_cast<long long>(kFull.count()),
              static_cast<long long>(lost), postgres_ended ? "had ended" : "went on", redis_ended ? "had ended" : "went on");
  EXPECT_EQ(lost, 0) << "jobs were accepted and are lost";
  EXPECT_EQ(driver_->after_end(), 0U) << "a job ran although its outcome was durable";
  ExpectHistoryHolds();
}

// The append-only file loses its last bytes: Redis starts with less, as by default. Then it is damaged in the middle: Redis
// refuses to start until somebody takes the file away, and starts empty. The ledger has what is of its class.
TEST_P(PowerLoss, ADamagedAppendOnlyFileLosesNothingOfTheLedger) {
  if (GetParam() != "everysec" || !Long()) GTEST_SKIP() << "once, with MILLRACE_CHAOS=long";
  ASSERT_NO_FATAL_FAILURE(MakePostgres());
  ASSERT_NO_FATAL_FAILURE(MakeRedis());
  WriteConfig();
  ASSERT_NO_FATAL_FAILURE(StartBroker());
  StartDriver();
  ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->accepted().size() > 100; }, kAnswers, kOpen));
  std::set<JobId> known_lost;
  for (const bool middle : {false, true}) {
    driver_->TakeAtMost(50);
    for (const MonoTime until = In(Millis{1200}); clock_.Now() < until; driver_->Pump())
      if (driver_->unanswered() < kOpen) driver_->Submit(Durability::kLedger);
    redis_.KillAndReap();
    const std::string file = AppendOnlyFile();
    ASSERT_FALSE(file.empty());
    const std::uintmax_t size = fs::file_size(file);
    ASSERT_GT(size, 4096U);
    if (middle) {
      // Where a command begins: inside a value Redis would not notice.
      std::fstream damaged(file, std::ios::binary | std::ios::in | std::ios::out);
      const std::string bytes{std::istreambuf_iterator<char>(damaged), {}};
      damaged.clear();
      damaged.seekp(static_cast<std::streamoff>(bytes.find("\r\n*", size / 2) + 2));
      damaged.write("0123456789abcdef", 16);
      damaged.close();
      Start(redis_, "redis", RedisCommand());
      const auto code = redis_.Wait(kServerStart);
      ASSERT_TRUE(code && *code != 0) << "Redis took a damaged file";
      fs::remove_all(dir_ + "/redis/appendonlydir");
    } else {
      fs::resize_file(file, size - 37);
    }
    StartRedis();
    driver_->TakeAtMost(1'000'000);
    ASSERT_TRUE(driver_->PumpUntil([&] { return driver_->AllAnswered(); }, kAnswers)) << "a submit was never answered";
    WaitForOutcomes({}, true);
    const Lost lost = Count(Durability::kLedger, clock_.Now(), Outcomes(), known_lost);
    std::printf("append-only file %s: %zu jobs accepted, %zu lost\n", middle ? "damaged in the middle" : "cut by 37 bytes",
                lost.accepted, lost.lost);
    EXPECT_EQ(lost.lost, 0U);
  }
  EXPECT_EQ(driver_->after_end(), 0U) << "a job ran although its outcome was durable";
  ExpectHistoryHolds();
}

std::string Named(const ::testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Policy, PowerLoss, ::testing::Values("always", "everysec", "embedded"), Named);

}  // namespace
}  // namespace millrace::chaos
