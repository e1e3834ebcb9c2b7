// The whole broker over ZeroMQ (inproc) with SQLite ledger and queue: every job of 10,000 is recorded once, and how fast.
#include "broker/broker.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "common/base/log.h"
#include "common/queue/sqlite_queue.h"
#include "common/wire/zmq_transport.h"

namespace millrace {
namespace {

class BrokerTest : public testing::Test {
 protected:
  void SetUp() override {
    ConfigureLog(LogLevel::kWarn, LogFormat::kText, "broker_test");
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_broker_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    BrokerOptions options;
    options.name = "b1";
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {"inproc://front"};
    options.back_endpoints = {"inproc://back"};
    options.clock = &clock_;
    options.random = &random_;
    options.make_ledger = [this] { return OpenLedger(); };
    options.make_queue = [this] { return OpenSqliteQueue({.path = dir_ / "queue.db"}); };
    options.make_inbox = [this]() -> Result<std::unique_ptr<Inbox>> { return std::make_unique<LocalInbox>(); };
    options.make_transport = [this] { return wire::MakeZmqTransport(context_); };
    {
      auto ledger = OpenLedger();
      ASSERT_TRUE(ledger) << ledger.error().message;
      const auto migrated = (*ledger)->Migrate(clock_.Now() + 10s);
      ASSERT_TRUE(migrated) << migrated.error().message;
    }
    broker_ = std::make_unique<Broker>(std::move(options));
    const auto started = broker_->Start();
    ASSERT_TRUE(started) << started.error().message;
    auto transport = wire::MakeZmqTransport(context_);
    ASSERT_TRUE(transport);
    transport_ = std::move(*transport);
    client_ = Connect("inproc://front");
    worker_ = Connect("inproc://back");
  }
  void TearDown() override {
    if (broker_) {
      broker_->RequestStop();
      broker_->Join();
    }
    std::filesystem::remove_all(dir_);
  }
  Result<std::unique_ptr<Ledger>> OpenLedger() {
    return OpenSqliteLedger({.dsn = dir_ / "ledger.db", .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1},
                            clock_.Now() + 10s);
  }
  std::unique_ptr<wire::ClientSocket> Connect(const std::string& endpoint) {
    auto socket = transport_->Connect(endpoint);
    EXPECT_TRUE(socket);
    return socket ? std::move(*socket) : nullptr;
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
  void SayHello() {
    ToBroker(*worker_, wire::Hello{.worker = worker_id_, .name = "w1", .queues = {}, .kinds = {}, .roots = {}, .concurrency = 1000,
                                   .credit_limit = kCredit, .held = {}});
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
          AttemptReport report;
          report.job = job.id;
          report.token = job.token;
          report.end = AttemptEnd::kSucceeded;
          report.finished_at = clock_.WallNow();
          ended.reports.push_back(std::move(report));
        }
        ended.credit_limit = taken_ + kCredit;
        ToBroker(*worker_, std::exchange(ended, {.worker = worker_id_, .credit_limit = 0, .reports = {}}));
      } else if (const auto* reply = std::get_if<wire::EndedReply>(&*message)) {
        for (const auto& item : reply->items)
          if (item.accepted) recorded_.insert(item.job);
      }
    }
    if (clock_.Now() >= next_beat_) {
      next_beat_ = clock_.Now() + kHeartbeatInterval;
      ToBroker(*worker_, wire::Beat{.worker = worker_id_, .credit_limit = taken_ + kCredit, .held = {}, .progress = {}, .draining = false});
    }
    while (auto frame = client_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message) << message.error().message;
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) accepted_ += reply->accepted.size();
      if (const auto* update = std::get_if<wire::RunUpdate>(&*message)) run_state_ = update->state;
      if (const auto* problem = std::get_if<wire::Problem>(&*message)) ADD_FAILURE() << problem->code << ": " << problem->message;
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

  static constexpr std::uint64_t kCredit = 2000;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::filesystem::path dir_;
  std::shared_ptr<wire::ZmqContext> context_ = wire::MakeZmqContext();
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> client_, worker_;
  WorkerId worker_id_ = ids_.Next<WorkerId>();
  std::set<JobId> recorded_;
  std::size_t accepted_ = 0;
  std::uint64_t taken_ = 0;
  MonoTime next_beat_{}, first_grant_{};
  RunState run_state_ = RunState::kQueued;
};

TEST_F(BrokerTest, TenThousandJobsAreRecordedOnceEach) {
  constexpr std::size_t kJobs = 10'000;
  SayHello();
  const MonoTime begin = clock_.Now();
  for (std::uint64_t batch = 0; batch < kJobs / kBatchJobsMax; ++batch) {
    wire::SubmitJobs submit{.request = batch, .jobs = {}};
    for (std::size_t i = 0; i < kBatchJobsMax; ++i) submit.jobs.push_back(Job());
    ToBroker(*client_, submit);
  }
  ASSERT_TRUE(PumpUntil([&] { return recorded_.size() == kJobs; }, Millis{60'000})) << recorded_.size() << " of " << kJobs;
  const double seconds = std::chrono::duration<double>(clock_.Now() - begin).count();
  fmt::print("{} no-op jobs through submit, queue, worker, outcome in {:.3f} s: {:.0f} jobs/s\n", kJobs, seconds,
             static_cast<double>(kJobs) / seconds);
  EXPECT_EQ(accepted_, kJobs);
  EXPECT_EQ(taken_, kJobs) << "no job was delivered twice";
  broker_->RequestStop();
  broker_->Join();
  auto ledger = OpenLedger();
  ASSERT_TRUE(ledger);
  const auto live = (*ledger)->LiveSingleJobs(ShardId{0}, 1, std::nullopt, 10, clock_.Now() + 10s);
  ASSERT_TRUE(live) << live.error().message;
  EXPECT_TRUE(live->empty());
  const auto detail = (*ledger)->GetJob(kDefaultOrg, *recorded_.begin(), clock_.Now() + 10s);
  ASSERT_TRUE(detail) << detail.error().message;
  ASSERT_TRUE(detail->outcome);
  EXPECT_EQ(detail->outcome->state, JobState::kSucceeded);
}

TEST_F(BrokerTest, AnIdleSystemStartsAJobAtOnce) {
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
  EXPECT_LT(micros[25], 100'000);
}

TEST_F(BrokerTest, ARunEndsAndItsWatcherIsTold) {
  SayHello();
  wire::SubmitRun submit{.request = 1, .run = {}, .jobs = {Job(), Job(), Job()}, .watch = true};
  submit.run.id = ids_.Next<RunId>();
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

}  // namespace
}  // namespace millrace
