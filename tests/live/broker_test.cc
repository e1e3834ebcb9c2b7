// The whole broker over its sockets with real ledgers and queues, SQLite and PostgreSQL + Redis: every job of 10,000 is
// recorded once, and how fast; rings; stop, kill and takeover; audit checkpoints.
#include "broker/broker.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "common/base/fd.h"
#include "common/base/log.h"
#include "common/crypto/checkpoint.h"
#include "common/drivers/redis.h"
#include "common/drivers/sqlite.h"
#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"
#include "common/wire/stream_socket.h"
#include "common/wire/zmtp_codec.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"
#include "tests/support/migrated_database.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLRACE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MILLRACE_TEST_SANITIZED 1
#endif
#endif

namespace millrace {
namespace {

#ifdef MILLRACE_TEST_SANITIZED
constexpr int kSlower = 5;
#else
constexpr int kSlower = 1;
#endif

enum class Backend { kSqlite, kPostgresRedis };

// Several users of one LocalInbox.
class SharedInbox final : public Inbox {
 public:
  explicit SharedInbox(std::shared_ptr<LocalInbox> inbox) : inbox_(std::move(inbox)) {}
  Result<void> Ring(ShardId shard) override { return inbox_->Ring(shard); }
  Result<std::vector<ShardId>> Wait(std::span<const ShardId> shards, Millis timeout) override {
    return inbox_->Wait(shards, timeout);
  }

 private:
  std::shared_ptr<LocalInbox> inbox_;
};

class BrokerTest : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    ConfigureLog(LogLevel::kError, LogFormat::kText, "broker_test");
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_broker_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
    if (GetParam() == Backend::kPostgresRedis) {
      MILLRACE_NEED_POSTGRES();
      const char* redis = std::getenv("MILLRACE_TEST_REDIS");
      if (redis == nullptr && std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set";
      if (redis == nullptr)
        GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: source DIR/env of tests/support/servers.sh start DIR";
      redis_.endpoint = fmt::format("redis://{}/0", redis);
      redis_.prefix = fmt::format("mrbroker-{}-{}", getpid(), ids_.Next<RunId>().ToString());
      database_ = testing::MigratedDatabase("broker", 1);
    }
    auto ledger = OpenLedger("test");
    ASSERT_TRUE(ledger) << ledger.error().message;
    ledger_ = std::move(*ledger);
    const auto migrated = ledger_->Migrate(In());
    ASSERT_TRUE(migrated) << migrated.error().message;
  }
  void TearDown() override {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    broker_.reset();
    client_.reset();
    worker_.reset();
    transport_.reset();
    ledger_.reset();
    if (!redis_.endpoint.empty()) {
      auto endpoint = redis::ParseEndpoint(redis_.endpoint);
      auto connection = redis::Connection::Connect(*endpoint, {.clock = &clock_}, In());
      ASSERT_TRUE(connection) << connection.error().message;
      for (const std::string_view key : {"epoch", "lines", "due", "flight", "kept_due", "kept", "server", "body", "expiry",
                                         "stubs", "kept_body", "kept_expiry", "kept_lines", "inbox"})
        EXPECT_TRUE(connection->Call({"DEL", fmt::format("{{{}:0}}:{}", redis_.prefix, key)}, In()));
    }
    if (!dir_.empty()) {
      std::vector<std::string> more = told_.Write(dir_ / "history" / "accepted");
      if (ended_) more.emplace_back("--ended");
      testing::EndHistory(database_ ? database_->dsn() : (dir_ / "ledger.db").string(), dir_ / "history", more);
    }
    std::filesystem::remove_all(dir_);
  }

  MonoTime In() const { return clock_.Now() + 20s; }
  Result<std::unique_ptr<Ledger>> OpenLedger(std::string actor) {
    LedgerOptions options{.dsn = dir_ / "ledger.db",
                          .clock = &clock_,
                          .writer = ids_.Next<AuditWriterId>(),
                          .shard_count = 1,
                          .actor = std::move(actor)};
    last_writer_ = options.writer;
    if (!database_) return OpenSqliteLedger(options, In());
    options.dsn = database_->dsn();
    return OpenPostgresLedger(options, In());
  }
  Result<std::unique_ptr<JobQueue>> OpenQueue() {
    if (!database_) return OpenSqliteQueue({.path = dir_ / "queue.db"});
    MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open(redis_, In()));
    return std::unique_ptr<JobQueue>(std::move(queue));
  }
  Result<std::unique_ptr<Inbox>> OpenInbox() {
    if (!database_) return std::unique_ptr<Inbox>(std::make_unique<SharedInbox>(local_inbox_));
    return OpenRedisInbox(redis_);
  }
  std::string Front() const { return "ipc://" + (dir_ / "front").string(); }
  std::string Back() const { return "ipc://" + (dir_ / "back").string(); }
  std::unique_ptr<Broker> MakeBroker(const std::string& name) {
    BrokerOptions options;
    options.name = name;
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {Front()};
    options.back_endpoints = {Back()};
    options.clock = &clock_;
    options.random = &random_;
    options.checkpoint = checkpoint_;
    options.make_ledger = [this, name] { return OpenLedger(name); };
    options.make_queue = [this] { return OpenQueue(); };
    options.make_inbox = [this] { return OpenInbox(); };
    options.make_transport = [this] { return wire::MakeZmtpTransport(names_); };
    return std::make_unique<Broker>(std::move(options));
  }
  void StartBroker(const std::string& name = "b1") {
    broker_ = MakeBroker(name);
    const auto started = broker_->Start();
    ASSERT_TRUE(started) << started.error().message;
    Join();
  }
  // A broker in a process of its own, to be killed. Before this process has threads or sockets.
  void ForkBroker() {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto broker = MakeBroker("killed");
      const bool up = broker->Start().has_value() && write(ready[1], "1", 1) == 1;
      while (up) pause();
      _exit(1);
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1) << "the broker process did not start";
    close(ready[0]);
    Join();
  }
  void Join() {
    auto transport = wire::MakeZmtpTransport(names_);
    ASSERT_TRUE(transport);
    transport_ = std::move(*transport);
    client_ = Connect(Front());
    worker_ = Connect(Back());
  }
  std::unique_ptr<wire::ClientSocket> Connect(const std::string& endpoint) {
    auto socket = transport_->Connect(endpoint);
    EXPECT_TRUE(socket);
    return socket ? std::move(*socket) : nullptr;
  }
  std::int64_t Count(const std::string& what) {
    if (database_) {
      const auto connection = database_->Connect();
      EXPECT_TRUE(connection->Exec("set search_path = millrace", In()));
      const auto rows = connection->QueryOnce("select count(*) from " + what, {}, In());
      EXPECT_TRUE(rows) << rows.error().message;
      return rows ? rows->Int(0, 0) : -1;
    }
    auto db = sqlite::Database::Open(dir_ / "ledger.db", {});
    EXPECT_TRUE(db);
    const auto n = db->QueryInt64("select count(*) from " + what);
    EXPECT_TRUE(n) << n.error().message;
    return n.value_or(-1);
  }
  JobSpec Job() {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "noop";
    job.payload = std::string(100, 'x');
    return job;
  }
  void ToBroker(wire::ClientSocket& socket, const wire::Message& message) {
    const MonoTime deadline = clock_.Now() + 5s;
    while (!socket.Send(wire::Encode(message)) && clock_.Now() < deadline) transport_->Wait(Millis{1});
  }
  std::uint64_t CreditLimit() const { return taken_since_hello_ + std::min(credit_, take_at_most_ - taken_); }
  void SayHello() {
    said_hello_ = true;
    taken_since_hello_ = 0;
    ToBroker(*worker_, wire::Hello{.worker = worker_id_,
                                   .name = "w1",
                                   .queues = {},
                                   .kinds = {},
                                   .roots = {},
                                   .concurrency = 1000,
                                   .credit_limit = CreditLimit(),
                                   .held = {}});
  }
  // Takes what arrived: grants are ended at once, answers counted.
  void Pump(Millis wait) {
    transport_->Wait(wait);
    wire::Ended ended{.worker = worker_id_, .credit_limit = 0, .reports = {}};
    while (auto frame = worker_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message) << message.error().message;
      if (const auto* grant = std::get_if<wire::Grant>(&*message)) {
        first_grant_ = clock_.Now();
        for (const auto& job : grant->jobs) {
          ++taken_;
          ++taken_since_hello_;
          ++granted_[job.id];
          AttemptReport report;
          report.job = job.id;
          report.token = job.token;
          report.end = fails_.contains(job.id) ? AttemptEnd::kFailed : AttemptEnd::kSucceeded;
          report.retryable = report.end == AttemptEnd::kSucceeded;
          report.started_at = report.finished_at = report_times_.value_or(clock_.WallNow());
          ended.reports.push_back(std::move(report));
        }
        ended.credit_limit = CreditLimit();
        ToBroker(*worker_, std::exchange(ended, {.worker = worker_id_, .credit_limit = 0, .reports = {}}));
      } else if (const auto* reply = std::get_if<wire::EndedReply>(&*message)) {
        for (const auto& item : reply->items)
          if (item.accepted) recorded_.insert(item.job);
      } else if (const auto* beat = std::get_if<wire::BrokerBeat>(&*message); beat != nullptr && !beat->known) {
        SayHello();
      }
    }
    if (said_hello_ && clock_.Now() >= next_beat_) {
      next_beat_ = clock_.Now() + kHeartbeatInterval;
      ToBroker(*worker_,
               wire::Beat{.worker = worker_id_, .credit_limit = CreditLimit(), .held = {}, .progress = {}, .draining = false});
    }
    while (auto frame = client_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message) << message.error().message;
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) Accepted(*reply);
      if (const auto* update = std::get_if<wire::RunUpdate>(&*message)) run_state_ = update->state;
      if (const auto* set = std::get_if<wire::SetQueueReply>(&*message)) queue_revision_ = set->revision;
      if (const auto* problem = std::get_if<wire::Problem>(&*message);
          problem != nullptr && problem->code == expected_problem_) {
        problem_ = problem->message;
      } else if (problem != nullptr && problem->code != "unavailable")
        ADD_FAILURE() << problem->code << ": " << problem->message;
    }
  }
  void Accepted(const wire::SubmitReply& reply) {
    accepted_ += reply.accepted.size();
    for (const auto& item : reply.accepted) {
      if (!item.conflict_with.IsNil()) continue;
      if (runs_.contains(RunId{item.id}))
        told_.Run(item.id);
      else
        told_.Job(item.id);
    }
  }
  template <class Done>
  bool PumpUntil(Done done, Millis budget) {
    for (const MonoTime deadline = clock_.Now() + budget; clock_.Now() < deadline;) {
      Pump(Millis{5});
      if (done()) return true;
    }
    return done();
  }

  std::vector<JobId> SubmitJobs(std::size_t n) {
    std::vector<JobId> ids;
    for (std::uint64_t batch = 0; ids.size() < n; ++batch) {
      wire::SubmitJobs submit{.request = batch, .jobs = {}};
      while (submit.jobs.size() < kBatchJobsMax && ids.size() < n) {
        submit.jobs.push_back(Job());
        ids.push_back(submit.jobs.back().id);
      }
      ToBroker(*client_, submit);
    }
    return ids;
  }
  // Nothing lost, nothing twice: what the ledger says, not what the worker remembers.
  void ExpectAllOnce(std::size_t jobs) {
    const auto n = static_cast<std::int64_t>(jobs);
    EXPECT_EQ(Count("job"), n);
    EXPECT_EQ(Count("outcome"), n);
    EXPECT_EQ(Count("outcome where state = 10"), n);
    EXPECT_EQ(Count("(select distinct job from outcome) d"), n);
    EXPECT_EQ(Count("live_job"), 0);
    EXPECT_EQ(Count("live_run"), 0);
    EXPECT_EQ(Count("outbox"), 0);
    ended_ = true;
  }

  static constexpr std::uint64_t kCredit = 2000;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::filesystem::path dir_;
  std::unique_ptr<testing::TestDatabase> database_;
  RedisQueueOptions redis_;
  std::shared_ptr<LocalInbox> local_inbox_ = std::make_shared<LocalInbox>();
  std::unique_ptr<Ledger> ledger_;  // the test's own connection
  AuditWriterId last_writer_;
  CheckpointHook checkpoint_;
  std::shared_ptr<wire::LocalNames> names_ = wire::MakeLocalNames();
  pid_t child_ = -1;
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> client_, worker_;
  WorkerId worker_id_ = ids_.Next<WorkerId>();
  std::set<JobId> recorded_;
  std::map<JobId, int> granted_;
  std::set<JobId> fails_;  // and are not retried
  std::optional<WallTime> report_times_;
  std::size_t accepted_ = 0;
  std::set<RunId> runs_;        // that were submitted over the wire
  testing::AcceptedList told_;  // for the history checker
  bool ended_ = false;          // nothing is open any more
  std::uint64_t taken_ = 0, taken_since_hello_ = 0, credit_ = kCredit, take_at_most_ = 1'000'000;
  bool said_hello_ = false;
  MonoTime next_beat_{}, first_grant_{};
  RunState run_state_ = RunState::kQueued;
  std::int64_t queue_revision_ = 0;
  std::string expected_problem_ = "none", problem_;
};

TEST_P(BrokerTest, AQueueIsPausedLimitedAndBoundedOverTheWireAndInTheLedger) {
  constexpr std::size_t kJobs = 150;
  QueueSettings settings;
  settings.queue = "default";
  settings.paused = true;
  settings.rate = {.count = 100, .per = Millis{1000}, .burst = 10};
  settings.max_waiting_jobs = kJobs;
  StartBroker();
  ToBroker(*client_, wire::SetQueue{.request = 1, .settings = settings, .actor = "test"});
  ASSERT_TRUE(PumpUntil([&] { return queue_revision_ == 1; }, 10s)) << "set when it is durable";
  SayHello();
  SubmitJobs(kJobs);
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == kJobs; }, 10s)) << "a paused queue accepts";
  expected_problem_ = "queue_full";
  SubmitJobs(1);
  ASSERT_TRUE(PumpUntil([&] { return !problem_.empty(); }, 10s));
  EXPECT_NE(problem_.find("150 jobs wait"), std::string::npos) << problem_;
  EXPECT_FALSE(PumpUntil([&] { return !granted_.empty(); }, 500ms)) << "it grants nothing";
  // Somebody who does not know this broker.
  auto other = OpenLedger("cli");
  ASSERT_TRUE(other) << other.error().message;
  settings.paused = false;
  settings.revision = 1;
  const auto resumed = (*other)->PutQueueSettings(settings, "cli", In());
  ASSERT_TRUE(resumed) << resumed.error().message;
  ASSERT_TRUE(PumpUntil([&] { return !granted_.empty(); }, 10s)) << "the owner looks every 2 s";
  const MonoTime first = clock_.Now();
  ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == kJobs; }, 20s * kSlower));
  EXPECT_GE(clock_.Now() - first, Micros{1'300'000}) << "10 at once, then 100 a second";
  ExpectAllOnce(kJobs);
  EXPECT_EQ(Count("queue_setting"), 2);
}

TEST_P(BrokerTest, TenThousandJobsAreRecordedOnceEachAndCheckpointed) {
  constexpr std::size_t kJobs = 10'000 / kSlower;
  auto key = SigningKey::LoadOrCreate(dir_ / "key");
  ASSERT_TRUE(key) << key.error().message;
  const PublicKey public_key = key->public_key();
  auto writer = CheckpointWriter::Open(dir_ / "checkpoints", std::move(*key), ids_.Next<AuditWriterId>());
  ASSERT_TRUE(writer) << writer.error().message;
  checkpoint_ = [this, to = std::make_shared<CheckpointWriter>(std::move(*writer))](WallTime now, const AuditNews& news) {
    auto wrote = to->MaybeWrite(clock_.Now(), now, news.heads, news.records, news.complete);
    if (wrote) wrote = to->Flush(clock_.Now(), now, news.heads, news.complete);
    EXPECT_TRUE(wrote) << wrote.error().message;
  };
  StartBroker();
  SayHello();
  const MonoTime begin = clock_.Now();
  SubmitJobs(kJobs);
  ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == kJobs; }, Millis{60'000 * kSlower}))
      << recorded_.size() << " of " << kJobs;
  const double seconds = std::chrono::duration<double>(clock_.Now() - begin).count();
  fmt::print("{} no-op jobs through submit, queue, worker, outcome in {:.3f} s: {:.0f} jobs/s\n", kJobs, seconds,
             static_cast<double>(kJobs) / seconds);
  EXPECT_EQ(accepted_, kJobs);
  EXPECT_EQ(taken_, kJobs) << "no job was delivered twice";
  broker_.reset();
  ExpectAllOnce(kJobs);
  EXPECT_EQ(Count("attempt"), 0);
  const auto detail = ledger_->GetJob(kDefaultOrg, *recorded_.begin(), In());
  ASSERT_TRUE(detail) << detail.error().message;
  EXPECT_EQ(detail->outcome->state, JobState::kSucceeded);

  const auto checkpoints = ReadCheckpoints(dir_ / "checkpoints", public_key);
  ASSERT_TRUE(checkpoints) << checkpoints.error().message;
  EXPECT_TRUE(checkpoints->problems.empty());
  EXPECT_GE(checkpoints->checkpoints, 1U);
  const auto heads = ledger_->AuditHeads(In());
  ASSERT_TRUE(heads) << heads.error().message;
  ASSERT_FALSE(heads->empty());
  for (const AuditHead& head : *heads) {
    ASSERT_TRUE(checkpoints->last_seq.contains(head.writer));
    EXPECT_EQ(checkpoints->last_seq.at(head.writer), head.seq);
    EXPECT_EQ(checkpoints->pins.at({head.writer, head.seq}).hash, head.hash);
    for (std::uint64_t seq = 1; seq <= head.seq; ++seq)
      EXPECT_TRUE(checkpoints->pins.at({head.writer, seq}).leaf_prefixes) << seq;
  }
}

// One turn of the broker answers what one commit has made durable: thousands of messages of one client, which is elsewhere.
TEST_P(BrokerTest, EveryMessageIsAnsweredHoweverLateItsClientReads) {
  StartBroker();
  constexpr std::size_t kMessages = 6'000 / kSlower;
  ToBroker(*client_, wire::SubmitJobs{.request = 0, .jobs = {Job()}});
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == 1; }, Millis{10'000 * kSlower})) << "the shard is taken";
  for (std::uint64_t i = 1; i < kMessages; ++i) ToBroker(*client_, wire::SubmitJobs{.request = i, .jobs = {Job()}});
  // Long enough for most of them to be answered, and not so long that the client is taken for dead.
  for (const MonoTime until = clock_.Now() + 3s; Count("job") < static_cast<std::int64_t>(kMessages) && clock_.Now() < until;)
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  EXPECT_TRUE(PumpUntil([&] { return accepted_ == kMessages; }, Millis{10'000 * kSlower})) << accepted_ << " of " << kMessages;
}

TEST_P(BrokerTest, AnIdleSystemStartsAJobAtOnce) {
  StartBroker();
  SayHello();
  std::vector<std::int64_t> micros;
  for (std::uint64_t i = 0; i < 50; ++i) {
    const MonoTime begin = clock_.Now();
    ToBroker(*client_, wire::SubmitJobs{.request = i, .jobs = {Job()}});
    ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == i + 1; }, Millis{10'000})) << i;
    micros.push_back((first_grant_ - begin).count());
  }
  std::ranges::sort(micros);
  fmt::print("submit to start on an idle system: p50 {} us, max {} us\n", micros[25], micros.back());
  EXPECT_LT(micros[25], 100'000 * kSlower);
}

TEST_P(BrokerTest, WaitingJobsExpireWithNobodyToClaimThemAndAUniqueKeyIsGivenOnce) {
  StartBroker();
  wire::SubmitJobs submit{.request = 1, .jobs = {}};
  const WallTime expiry = clock_.WallNow() + Millis{1500};
  for (int i = 0; i < 800; ++i) {
    submit.jobs.push_back(Job());
    if (i % 8 != 0) submit.jobs.back().options.expires_at = expiry;
    if (i % 8 == 1) submit.jobs.back().run_at = expiry + std::chrono::hours{1};
  }
  for (int i = 0; i < 5; ++i) {
    submit.jobs.push_back(Job());
    submit.jobs.back().options.unique_key = "daily report";
  }
  ToBroker(*client_, submit);
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == 805; }, Millis{10'000}));
  EXPECT_EQ(Count("job"), 801) << "one of five has the key; the others are answered, not stored";
  EXPECT_TRUE(PumpUntil([&] { return Count("outcome where state = 13") == 700; }, Millis{5'000 * kSlower}))
      << Count("outcome where state = 13");
  EXPECT_EQ(Count("outcome where state = 13 and error_class = 'expired' and token = 0"), 700);
  SayHello();
  EXPECT_TRUE(PumpUntil([&] { return recorded_.size() == 101; }, Millis{20'000})) << recorded_.size();
  EXPECT_EQ(taken_, 101U) << "what has expired is never granted, and nothing else is lost";
  broker_.reset();
  EXPECT_EQ(Count("live_job"), 0);
  EXPECT_EQ(Count("live_unique"), 0);
}

// A client, an old row and a worker name times that the stores do not hold: the jobs of others run, in the same epoch.
TEST_P(BrokerTest, AnInstantOutOfRangeConcernsNobodyElse) {
  std::vector<JobSpec> stored(3);
  for (JobSpec& job : stored) job = Job();
  stored[0].run_at = *ParseRfc3339("2300-01-01T00:00:00Z");
  stored[1].options.deadline = *ParseRfc3339("9999-12-31T00:00:00Z");
  stored[2].options.deadline = *ParseRfc3339("0001-01-01T00:00:00Z");
  ASSERT_TRUE(ledger_->SubmitJobs(stored, In()));
  for (const JobSpec& job : stored) told_.Job(job.id.uuid);
  StartBroker();
  report_times_ = WallTime::min();  // the worker's clock
  SayHello();
  for (const Durability durability : {Durability::kRedis, Durability::kLedger}) {
    wire::SubmitJobs bad{.request = 1, .jobs = {Job(), Job()}}, good{.request = 2, .jobs = {Job(), Job()}};
    for (JobSpec& job : bad.jobs) job.options.durability = durability;
    bad.jobs[1].run_at = WallTime::min();
    for (JobSpec& job : good.jobs) job.options.durability = durability, job.org = OrgId{2};
    fails_.insert(good.jobs[1].id);  // its specification goes into the ledger with its report
    expected_problem_ = "invalid_argument";
    problem_.clear();
    ToBroker(*client_, bad);
    ASSERT_TRUE(PumpUntil([&] { return !problem_.empty(); }, Millis{20'000}));
    EXPECT_TRUE(problem_.starts_with("jobs[1]: run_at: ")) << problem_;
    ToBroker(*client_, good);
    ASSERT_TRUE(
        PumpUntil([&] { return recorded_.contains(good.jobs[0].id) && recorded_.contains(good.jobs[1].id); }, Millis{20'000}));
  }
  EXPECT_TRUE(
      PumpUntil([&] { return recorded_.contains(stored[1].id) && Count("outcome where state = 11") == 3; }, Millis{20'000}))
      << Count("outcome where state = 11");
  const auto shards = ledger_->Shards(In());
  ASSERT_TRUE(shards);
  ASSERT_EQ(shards->size(), 1U);
  EXPECT_EQ(shards->front().epoch, Epoch{1}) << "the shard was taken anew";
}

TEST_P(BrokerTest, ARunEndsAndItsWatcherIsTold) {
  StartBroker();
  SayHello();
  wire::SubmitRun submit{.request = 1, .run = {}, .jobs = {Job(), Job(), Job()}, .watch = true};
  submit.run.id = ids_.Next<RunId>();
  runs_.insert(submit.run.id);
  submit.run.pipeline = "p";
  submit.run.version = 1;
  for (std::size_t i = 0; i < 3; ++i) {
    submit.jobs[i].run = submit.run.id;
    submit.jobs[i].stage = fmt::format("s{}", i);
    if (i > 0) submit.jobs[i].depends_on = {submit.jobs[i - 1].id};
  }
  ToBroker(*client_, submit);
  EXPECT_TRUE(PumpUntil([&] { return run_state_ == RunState::kSucceeded; }, Millis{20'000})) << Name(run_state_);
}

TEST_P(BrokerTest, LargePayloadsAreNotLeftInTheQueue) {
  constexpr std::size_t kJobs = 60;  // more bytes than one claim of a queue gives
  StartBroker();
  for (std::size_t i = 0; i < kJobs; i += 6) {
    wire::SubmitJobs submit{.request = i, .jobs = {}};
    for (std::size_t n = 0; n < 6; ++n) {
      submit.jobs.push_back(Job());
      submit.jobs.back().payload.assign(1u << 20, 'x');
    }
    ToBroker(*client_, submit);
  }
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == kJobs; }, Millis{30'000}));
  SayHello();
  EXPECT_TRUE(PumpUntil([&] { return recorded_.size() == kJobs; }, Millis{30'000})) << recorded_.size();
}

// A worker that says hello and beats, and reads nothing of what it is sent.
class DeafWorker {
 public:
  DeafWorker(const std::string& endpoint, WorkerId id) : id_(id), fd_(wire::Dial(*wire::ParseEndpoint(endpoint)).fd) {
    Say(wire::zmtp::EncodeGreeting("NULL") + wire::zmtp::EncodeReady("DEALER"));
    Say(wire::Hello{.worker = id_,
                    .name = "deaf",
                    .queues = {},
                    .kinds = {},
                    .roots = {},
                    .concurrency = 1000,
                    .credit_limit = kCredit,
                    .held = {}});
  }
  void BeatNowAndThen(MonoTime now) {
    if (now < next_beat_) return;
    next_beat_ = now + kHeartbeatInterval * 6 / 10;
    Say(wire::Beat{.worker = id_, .credit_limit = kCredit, .held = {}, .progress = {}, .draining = false});
  }

 private:
  static constexpr std::uint64_t kCredit = 1'000'000;
  void Say(const wire::Message& message) {
    const std::string body = wire::Encode(message);
    const wire::zmtp::Header header = wire::zmtp::MessageHeader(body.size());
    Say(std::string(header.bytes.data(), header.size).append(body));
  }
  void Say(const std::string& bytes) {
    EXPECT_EQ(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), std::ssize(bytes)) << "the broker hung up";
  }

  WorkerId id_;
  Fd fd_;
  MonoTime next_beat_{};
};

std::size_t MegabytesAtMost(pid_t process) {  // that it ever had
  std::ifstream status(fmt::format("/proc/{}/status", process));
  for (std::string word; status >> word;)
    if (word == "VmHWM:" && status >> word) return std::stoul(word) / 1024;
  return 0;
}

// The store plays no part: one is enough.
class DeafWorkerTest : public BrokerTest {};
TEST_P(DeafWorkerTest, ItsJobsComeBackAndWhatWaitsForItIsBounded) {
  constexpr std::size_t kJobs = 120, kPayload = 200u << 10, kBatch = 30, kTimes = 10;
  constexpr std::size_t kForOnePeer = 64;  // MB: 32 in the transport, 32 in the broker
  ForkBroker();
  if (HasFailure()) return;
  DeafWorker deaf(Back(), ids_.Next<WorkerId>());
  for (std::size_t i = 0; i < kJobs; i += kBatch) {
    wire::SubmitJobs submit{.request = i, .jobs = {}};
    for (std::size_t n = 0; n < kBatch; ++n) submit.jobs.push_back(Job()), submit.jobs.back().payload.assign(kPayload, 'x');
    ToBroker(*client_, submit);
  }
  const auto beating = [&](auto done) { return [&, done] { return deaf.BeatNowAndThen(clock_.Now()), done(); }; };
  ASSERT_TRUE(PumpUntil(beating([&] { return accepted_ == kJobs; }), Millis{30'000}));
  const std::size_t before = MegabytesAtMost(child_);
  MonoTime next_look{};
  ASSERT_TRUE(PumpUntil(beating([&] {
                          if (clock_.Now() < next_look) return false;
                          next_look = clock_.Now() + 500ms;
                          return Count("attempt where ended = 6") >= static_cast<std::int64_t>(kTimes * kJobs);
                        }),
                        Millis{90'000}))
      << "its jobs do not come back";
  const std::size_t granted = kTimes * kJobs * kPayload >> 20, after = MegabytesAtMost(child_);
  fmt::print("{} MB were granted to a worker that reads nothing: the broker grew from {} to {} MB\n", granted, before, after);
  EXPECT_LT(after, before + kForOnePeer + granted / 4);
  SayHello();
  EXPECT_TRUE(PumpUntil(beating([&] { return recorded_.size() == kJobs; }), Millis{60'000})) << recorded_.size();
  ExpectAllOnce(kJobs);
}
INSTANTIATE_TEST_SUITE_P(Sqlite, DeafWorkerTest, ::testing::Values(Backend::kSqlite));

TEST_P(BrokerTest, ARingStartsARunLongBeforeThePoll) {
  StartBroker();
  SayHello();
  auto inbox = OpenInbox();
  ASSERT_TRUE(inbox);
  std::vector<std::int64_t> micros;
  for (std::size_t i = 0; i < 7; ++i) {
    RunSpec run;
    run.id = ids_.Next<RunId>();
    JobSpec job = Job();
    job.run = run.id;
    job.stage = "s";
    PumpUntil([] { return false; }, Millis{300});  // away from the poll that came with the last one
    const MonoTime begin = clock_.Now();
    ASSERT_TRUE(ledger_->SubmitRun(run, std::span{&job, 1}, In()));
    told_.Run(run.id.uuid);
    ASSERT_TRUE((*inbox)->Ring(ShardId{0}));
    ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == i + 1; }, Millis{10'000})) << i;
    micros.push_back((first_grant_ - begin).count());
  }
  std::ranges::sort(micros);
  fmt::print("ledger submit and ring to start: p50 {} us, max {} us\n", micros[3], micros.back());
  EXPECT_LT(micros[3], 200'000 * kSlower);
}

// What does not fit into a message: the client writes it into the ledger and asks to watch it.
TEST_P(BrokerTest, ARunOfTenThousandStagesGoesThroughTheLedger) {
  constexpr std::size_t kStages = kStagesPerPipelineMax / kSlower;
  StartBroker();
  SayHello();
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "large";
  std::vector<JobSpec> jobs;
  for (std::size_t i = 0; i < kStages; ++i) {
    jobs.push_back(Job());
    jobs.back().run = run.id;
    jobs.back().stage = fmt::format("s{}", i);
    if (i > 0 && i + 1 < kStages) jobs.back().depends_on = {jobs.front().id};  // fans out ...
  }
  for (std::size_t i = 1; i + 1 < kStages; ++i) jobs.back().depends_on.push_back(jobs[i].id);  // ... and in
  const MonoTime begin = clock_.Now();
  ASSERT_TRUE(ledger_->SubmitRun(run, jobs, In()));
  told_.Run(run.id.uuid);
  auto inbox = OpenInbox();
  ASSERT_TRUE(inbox);
  ASSERT_TRUE((*inbox)->Ring(ShardId{0}));
  ToBroker(*client_, wire::Watch{.request = 1, .run = run.id});
  ASSERT_TRUE(PumpUntil([&] { return run_state_ == RunState::kSucceeded; }, Millis{60'000 * kSlower})) << recorded_.size();
  fmt::print("a run of {} stages, watched: {} ms\n", kStages, std::chrono::floor<Millis>(clock_.Now() - begin).count());
  EXPECT_EQ(taken_, kStages);
  ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == kStages; }, Millis{5000}));
  ExpectAllOnce(kStages);
}

TEST_P(BrokerTest, AStoppedBrokersWorkIsFinishedByTheNext) {
  constexpr std::size_t kJobs = 500;
  StartBroker("b1");
  credit_ = 20;
  take_at_most_ = 100;
  SayHello();
  SubmitJobs(kJobs);
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == kJobs && recorded_.size() == take_at_most_; }, Millis{30'000}));
  broker_->RequestStop();
  broker_->Join();
  broker_.reset();
  EXPECT_EQ(Count("outcome"), 100);
  EXPECT_EQ(Count("shard_owner where owner is not null"), 0) << "the shards are given back";
  const MonoTime begin = clock_.Now();
  take_at_most_ = 1'000'000;
  StartBroker("b2");
  SayHello();
  ASSERT_TRUE(PumpUntil([&] { return Count("live_job") == 0; }, Millis{120'000}));
  fmt::print("stop to the last of {} jobs: {} ms\n", kJobs, std::chrono::floor<Millis>(clock_.Now() - begin).count());
  ExpectAllOnce(kJobs);
}

TEST_P(BrokerTest, AKilledBrokersWorkIsFinishedByTheNext) {
  constexpr std::size_t kJobs = 500;
  ForkBroker();
  if (HasFailure()) return;
  credit_ = 20;
  take_at_most_ = 100;
  SayHello();
  SubmitJobs(kJobs);
  ASSERT_TRUE(PumpUntil([&] { return accepted_ == kJobs && recorded_.size() == take_at_most_; }, Millis{30'000}));
  kill(child_, SIGKILL);
  waitpid(std::exchange(child_, -1), nullptr, 0);
  const MonoTime begin = clock_.Now();
  EXPECT_EQ(Count("shard_owner where owner is not null"), 1);
  take_at_most_ = 1'000'000;
  StartBroker("standby");
  SayHello();
  ASSERT_TRUE(PumpUntil([&] { return Count("live_job") == 0; }, Millis{120'000}));
  const auto took = std::chrono::floor<Millis>(clock_.Now() - begin);
  fmt::print("kill -9 to the last of {} jobs elsewhere: {} ms\n", kJobs, took.count());
  EXPECT_LT(took, kOwnershipTtl + Millis{16'000} * kSlower);
  ExpectAllOnce(kJobs);
  EXPECT_EQ(taken_, kJobs);
}

INSTANTIATE_TEST_SUITE_P(Both, BrokerTest, ::testing::Values(Backend::kSqlite, Backend::kPostgresRedis),
                         [](const auto& tested) { return tested.param == Backend::kSqlite ? "Sqlite" : "PostgresRedis"; });

}  // namespace
}  // namespace millrace
