// Three broker processes, a worker process with real commands, PostgreSQL and Redis: a broker joins and gets its share, the one
// that was there leaves, another is killed, the last one leaves; the commands that run all the while run once.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/redis.h"
#include "common/model/stage_task.h"
#include "common/queue/redis_queue.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"
#include "tests/support/migrated_database.h"
#include "worker/worker.h"

namespace millrace {
namespace {

constexpr std::uint16_t kShards = 4;
constexpr int kJobs = 8;
// What is promised, beside what the machine was late.
constexpr Millis kJoinMax{8'000};  // 6 s of patience with who has too much, and a look of each of the two, every second
constexpr Millis kLeaveMax{2'000};
constexpr Millis kOwnerChangeMax{10'000};
constexpr Millis kPatience{60'000};
constexpr Millis kTurn{50};

std::atomic<bool> stop{false};

class HandoverLiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    const char* redis = std::getenv("MILLRACE_TEST_REDIS");
    if (redis == nullptr && std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set";
    if (redis == nullptr)
      GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: source DIR/env of tests/support/servers.sh start DIR";
    ConfigureLog(LogLevel::kWarn, LogFormat::kText, "handover_test");
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_handover_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
    redis_.endpoint = fmt::format("redis://{}/0", redis);
    redis_.prefix = fmt::format("mrhandover-{}", getpid());
    database_ = testing::MigratedDatabase("handover", kShards);
    ledger_ = OpenLedger("test").value();
    ASSERT_TRUE(ledger_->Migrate(In()));
  }
  void TearDown() override {
    for (std::size_t child = 0; child < children_.size(); ++child) {
      if (left_.contains(child)) continue;
      ::kill(children_[child], SIGKILL);
      ::waitpid(children_[child], nullptr, 0);
    }
    connection_.reset();
    ledger_.reset();
    if (!redis_.endpoint.empty()) {
      auto connection = redis::Connection::Connect(*redis::ParseEndpoint(redis_.endpoint), {.clock = &clock_}, In());
      ASSERT_TRUE(connection) << connection.error().message;
      for (std::uint16_t s = 0; s < kShards; ++s)
        for (const std::string_view key : {"epoch", "lines", "due", "flight", "kept_due", "kept", "server", "body", "expiry",
                                           "stubs", "kept_body", "kept_expiry", "kept_lines", "inbox"})
          EXPECT_TRUE(connection->Call({"DEL", fmt::format("{{{}:{}}}:{}", redis_.prefix, s, key)}, In()));
    }
    if (dir_.empty()) return;
    std::vector<std::string> more = told_.Write(dir_ / "history" / "accepted");
    more.insert(more.end(), {"--witness", dir_ / "begun"});
    if (ended_) more.emplace_back("--ended");
    testing::EndHistory(database_->dsn(), dir_ / "history", more);
    std::filesystem::remove_all(dir_);
  }

  MonoTime In(Millis wait = Millis{20'000}) const { return clock_.Now() + wait; }
  Result<std::unique_ptr<Ledger>> OpenLedger(std::string actor) {
    return OpenPostgresLedger({.dsn = database_->dsn(),
                               .clock = &clock_,
                               .writer = ids_.Next<AuditWriterId>(),
                               .shard_count = kShards,
                               .actor = std::move(actor)},
                              In());
  }
  std::string Back(const std::string& broker) const { return "ipc://" + (dir_ / (broker + ".back")).string(); }

  // Runs `body` in a process of its own until SIGTERM, once a byte comes through the pipe. All are forked before the first
  // thread is made.
  template <class Body>
  int Spawn(Body body) {
    int pipe[2];
    EXPECT_EQ(::pipe(pipe), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(pipe[1]);
      ::signal(SIGTERM, [](int) { stop = true; });
      char go = 0;
      const bool told = ::read(pipe[0], &go, 1) == 1;
      ::_exit(told && body() ? 0 : 1);
    }
    ::close(pipe[0]);
    children_.push_back(child);
    return pipe[1];
  }
  static void Go(int pipe) { EXPECT_EQ(::write(pipe, "g", 1), 1); }

  bool RunBroker(const std::string& name) {
    BrokerOptions options;
    options.name = name;
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {"ipc://" + (dir_ / (name + ".front")).string()};
    options.back_endpoints = {Back(name)};
    options.shard_count = kShards;
    options.clock = &clock_;
    options.random = &random_;
    options.make_ledger = [this, name] { return OpenLedger(name); };
    options.make_queue = [this]() -> Result<std::unique_ptr<JobQueue>> {
      MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open(redis_, In()));
      return std::unique_ptr<JobQueue>(std::move(queue));
    };
    options.make_inbox = [this] { return OpenRedisInbox(redis_); };
    const auto names = wire::MakeLocalNames();
    options.make_transport = [&] { return wire::MakeZmtpTransport(names); };
    Broker broker(std::move(options));
    if (!broker.Start()) return false;
    while (!stop) std::this_thread::sleep_for(Millis{10});
    broker.RequestStop();
    broker.Join();
    return true;
  }
  bool RunWorker() {
    auto transport = wire::MakeZmtpTransport();
    worker::WorkerOptions options;
    options.name = "w";
    options.id = ids_.Next<WorkerId>();
    options.brokers = {Back("a"), Back("b"), Back("c")};
    options.concurrency = kJobs;
    options.kinds = {"command"};
    options.scratch_root = dir_ / "scratch";
    worker::Worker worker(options, clock_, std::move(*transport));
    return worker.Run().has_value();
  }

  std::map<std::string, int> Owned() {
    std::map<std::string, int> owned;
    const auto shards = ledger_->Shards(In());
    if (!shards) return owned;
    for (const ShardStatus& s : *shards)
      if (s.owner) ++owned[s.owner_name];
    return owned;
  }
  // Milliseconds until `done`, or -1. `late_` is how long the machine kept this process waiting meanwhile.
  template <class Done>
  std::int64_t Await(Millis limit, Done done) {
    const MonoTime begin = clock_.Now();
    late_ = Millis{0};
    while (!done()) {
      const MonoTime asleep = clock_.Now();
      if (asleep - begin > limit) return -1;
      std::this_thread::sleep_for(kTurn);
      late_ += std::chrono::duration_cast<Millis>(clock_.Now() - asleep) - kTurn;
    }
    return std::chrono::duration_cast<Millis>(clock_.Now() - begin).count();
  }
  // A limit, with what the machine was late in the last Await.
  std::int64_t Within(Millis limit) const { return (limit + late_).count(); }
  // Whether it has ended, with exit code 0.
  bool HasLeft(std::size_t child) {
    int status = 0;
    if (!left_.contains(child) && ::waitpid(children_[child], &status, WNOHANG) == children_[child]) {
      left_.insert(child);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    }
    return left_.contains(child);
  }
  bool IsPresent(const std::string& broker) {
    const auto present =
        connection_->QueryOnce("select 1 from millrace.broker_presence where name = $1", PgParams{}.Text(broker), In());
    return present && present->rows() == 1;
  }
  // The commands go on: who was not adopted would begin again when its lease is over.
  void ExpectNobodyBeginsAgain(const std::string& after) {
    std::this_thread::sleep_for(kLeaseTtl + Millis{1000});
    EXPECT_EQ(Begun().size(), kJobs) << after;
  }
  // "job token" of every command that began.
  std::multimap<std::string, std::string> Begun() const {
    std::multimap<std::string, std::string> begun;
    std::ifstream in(dir_ / "begun");
    for (std::string job, token; in >> job >> token;) begun.emplace(job, token);
    return begun;
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::filesystem::path dir_;
  RedisQueueOptions redis_;
  std::unique_ptr<testing::TestDatabase> database_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<PgConnection> connection_;
  std::vector<pid_t> children_;
  std::set<std::size_t> left_;  // of them: reaped
  testing::AcceptedList told_;
  Millis late_{0};
  bool ended_ = false;  // nothing is open any more
};

TEST_F(HandoverLiveTest, CommandsRunOnceWhileBrokersJoinLeaveAndDie) {
  const int a = Spawn([this] { return RunBroker("a"); });
  const int b = Spawn([this] { return RunBroker("b"); });
  const int c = Spawn([this] { return RunBroker("c"); });
  const int w = Spawn([this] { return RunWorker(); });
  connection_ = database_->Connect();
  Go(a);
  Go(w);
  ASSERT_GE(Await(kPatience, [&] { return Owned()["a"] == kShards; }), 0);
  const auto finish = dir_ / "finish";
  std::vector<JobSpec> jobs;
  std::set<ShardId> shards;
  for (int i = 0; i < kJobs; ++i) {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.org = OrgId{i + 1};
    job.kind = kJobKindCommand;
    CommandTask task;
    task.job = job.id;
    task.stage = "hold";
    task.base_dir = dir_;
    task.command.argv = {"/bin/sh", "-c",
                         "echo $MILLRACE_JOB $MILLRACE_TOKEN >> begun; while [ ! -e finish ]; do sleep 0.2; done"};
    job.payload = ToJson(task);
    shards.insert(ShardOf(job.org, kShards));
    jobs.push_back(std::move(job));
  }
  ASSERT_EQ(shards.size(), kShards);
  for (const JobSpec& job : jobs) {
    ASSERT_TRUE(ledger_->SubmitJobs(std::span{&job, 1}, In()));
    told_.Job(job.id.uuid);
  }
  ASSERT_GE(Await(kPatience, [&] { return Begun().size() == kJobs; }), 0);

  Go(b);
  ASSERT_GE(Await(kPatience, [&] { return IsPresent("b"); }), 0);
  const auto joined = Await(kPatience, [&] { return Owned() == std::map<std::string, int>{{"a", 2}, {"b", 2}}; });
  ASSERT_GE(joined, 0) << "a broker that joins gets its share";
  EXPECT_LE(joined, Within(kJoinMax));
  ExpectNobodyBeginsAgain("the new owner has not adopted them");

  ASSERT_EQ(::kill(children_[0], SIGTERM), 0);
  const auto left = Await(kPatience, [&] { return HasLeft(0) && Owned()["b"] == kShards; });
  ASSERT_GE(left, 0) << "who leaves gives its shards back";
  EXPECT_LE(left, Within(kLeaveMax));
  ExpectNobodyBeginsAgain("the commands of the broker that has left go on");

  Go(c);
  ASSERT_GE(Await(kPatience, [&] { return IsPresent("c"); }), 0);
  ASSERT_EQ(::kill(children_[1], SIGKILL), 0);
  const auto killed = Await(kPatience, [&] { return Owned()["c"] == kShards; });
  ASSERT_GE(killed, 0);
  EXPECT_LE(killed, Within(kOwnerChangeMax));
  ExpectNobodyBeginsAgain("the commands of the dead broker go on");

  std::ofstream(finish).put('\n');
  const auto has_ended = [&](const JobSpec& job) {
    const auto detail = ledger_->GetJob(job.org, job.id, In());
    return detail && detail->outcome.has_value();
  };
  ASSERT_GE(Await(kPatience, [&] { return std::ranges::all_of(jobs, has_ended); }), 0);
  ended_ = true;
  const auto begun = Begun();
  for (const JobSpec& job : jobs) {
    const auto detail = ledger_->GetJob(job.org, job.id, In());
    ASSERT_TRUE(detail);
    EXPECT_EQ(detail->outcome->state, JobState::kSucceeded);
    EXPECT_TRUE(detail->attempts.empty()) << "no attempt was lost";
    ASSERT_EQ(begun.count(job.id.ToString()), 1u);
    EXPECT_EQ(begun.find(job.id.ToString())->second, std::to_string(detail->outcome->report.token.value()));
  }

  ASSERT_EQ(::kill(children_[2], SIGTERM), 0);
  const auto last = Await(kPatience, [&] { return HasLeft(2); });
  ASSERT_GE(last, 0);
  EXPECT_LE(last, Within(kLeaveMax));
  EXPECT_TRUE(Owned().empty()) << "who leaves gives its shards back, also when nobody is there to take them";
  fmt::print("joined: share after {} ms; left: taken after {} ms; killed: taken after {} ms; the last one left in {} ms\n",
             joined, left, killed, last);
}

}  // namespace
}  // namespace millrace
