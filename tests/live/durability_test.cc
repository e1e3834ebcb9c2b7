// `durability: redis` with a Redis that is killed (SIGKILL) and restarted from its append-only file, by appendfsync policy:
// how many answered writes it lost, and how many accepted jobs of a whole broker were lost or ran after they had ended.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/queue/redis_queue.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"
#include "tests/support/redis_server.h"

namespace millrace {
namespace {

using testing::RedisServer;

std::string Named(const ::testing::TestParamInfo<std::string>& i) { return i.param; }

class DurabilityLiveTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ConfigureLog(std::getenv("MILLRACE_TEST_LOG") != nullptr ? LogLevel::kInfo : LogLevel::kOff, LogFormat::kText,
                 "durability_test");
    if (!RedisServer::Installed()) {
      if (std::getenv("CI") != nullptr) FAIL() << "there is no redis-server on the path";
      GTEST_SKIP() << "there is no redis-server on the path: run ops/setup";
    }
    ASSERT_TRUE(server_.Start());
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_durability_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    testing::BeginHistory(dir_ / "history");
  }
  void TearDown() override {
    broker_.reset();
    client_.reset();
    worker_.reset();
    transport_.reset();
    if (std::filesystem::exists(dir_ / "ledger.db")) {
      std::vector<std::string> more = told_.Write(dir_ / "history" / "accepted");
      more.insert(more.end(), may_lose_.begin(), may_lose_.end());
      if (ended_) more.emplace_back("--ended");
      testing::EndHistory(dir_ / "ledger.db", dir_ / "history", more);
    }
    std::filesystem::remove_all(dir_);
  }
  MonoTime In(Millis d) const { return clock_.Now() + d; }
  JobSpec Job() {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "noop";
    job.payload = std::string(100, 'x');
    job.options.durability = Durability::kRedis;
    return job;
  }

  // ---- a broker, a client and a worker ----
  Result<std::unique_ptr<Ledger>> OpenLedger() {
    return OpenSqliteLedger(
        {.dsn = dir_ / "ledger.db", .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "test"},
        In(20s));
  }
  void StartBroker() {
    auto fresh = OpenLedger();
    ASSERT_TRUE(fresh && (*fresh)->Migrate(In(20s)));
    BrokerOptions options;
    options.owner = ids_.Next<OwnerId>();
    options.front_endpoints = {"ipc://" + (dir_ / "front").string()};
    options.back_endpoints = {"ipc://" + (dir_ / "back").string()};
    options.clock = &clock_;
    options.random = &random_;
    options.make_ledger = [this] { return OpenLedger(); };
    options.make_queue = [this]() -> Result<std::unique_ptr<JobQueue>> {
      MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open({.endpoint = server_.endpoint(), .prefix = "t"}, In(10s)));
      return std::unique_ptr<JobQueue>(std::move(queue));
    };
    options.make_transport = [this] { return wire::MakeZmtpTransport(names_); };
    const std::string front = options.front_endpoints[0], back = options.back_endpoints[0];
    broker_ = std::make_unique<Broker>(std::move(options));
    const auto started = broker_->Start();
    ASSERT_TRUE(started) << started.error().message;
    transport_ = std::move(*wire::MakeZmtpTransport(names_));
    client_ = std::move(*transport_->Connect(front));
    worker_ = std::move(*transport_->Connect(back));
    Hello();
  }
  void Send(wire::ClientSocket& socket, const wire::Message& message) {
    const std::string frame = wire::Encode(message);
    for (const MonoTime until = In(5s); !socket.Send(frame) && clock_.Now() < until;) transport_->Wait(Millis{1});
  }
  std::uint64_t Limit() const { return taken_ + 500; }
  void Hello() {
    taken_ = 0;
    Send(*worker_, wire::Hello{.worker = me_,
                               .name = "w",
                               .queues = {},
                               .kinds = {},
                               .roots = {},
                               .concurrency = 500,
                               .credit_limit = Limit(),
                               .held = {}});
  }
  void Batch() {
    const std::uint64_t request = ++last_request_;
    wire::SubmitJobs submit{.request = request, .jobs = {}};
    for (int i = 0; i < 20; ++i) submit.jobs.push_back(Job());
    Send(*client_, submit);
    waiting_.emplace(request, std::pair{std::move(submit), clock_.Now()});
  }
  void Pump() {
    transport_->Wait(Millis{2});
    while (auto frame = client_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message);
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) {
        for (const auto& item : reply->accepted) {
          answered_.insert(JobId{item.id});
          told_.Job(item.id, true, clock_.WallNow());
        }
        waiting_.erase(reply->request);
      }
      if (const auto* problem = std::get_if<wire::Problem>(&*message))
        if (const auto it = waiting_.find(problem->request); it != waiting_.end()) it->second.second = clock_.Now() - 900ms;
    }
    for (auto& [request, one] : waiting_)
      if (clock_.Now() - one.second > 1s) {  // told that it is not known, or not told at all: the same ids again
        ++resubmits_;
        one.second = clock_.Now();
        Send(*client_, one.first);
      }
    wire::Ended ended{.worker = me_, .credit_limit = 0, .reports = {}};
    while (auto frame = worker_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message);
      if (const auto* grant = std::get_if<wire::Grant>(&*message))
        for (const auto& job : grant->jobs) {
          ++taken_;
          ++attempts_;
          if (recorded_.contains(job.id)) ++after_end_;
          AttemptReport report;
          report.job = job.id;
          report.token = job.token;
          report.end = AttemptEnd::kSucceeded;
          ended.reports.push_back(std::move(report));
        }
      if (const auto* reply = std::get_if<wire::EndedReply>(&*message))
        for (const auto& item : reply->items)
          if (item.accepted) recorded_.insert(item.job);
      if (const auto* beat = std::get_if<wire::BrokerBeat>(&*message); beat != nullptr && !beat->known) Hello();
    }
    ended.credit_limit = Limit();
    if (!ended.reports.empty()) Send(*worker_, ended);
    if (clock_.Now() < next_beat_) return;
    next_beat_ = clock_.Now() + kHeartbeatInterval;
    Send(*worker_, wire::Beat{.worker = me_, .credit_limit = Limit(), .held = {}, .progress = {}, .draining = false});
  }
  // What ops/docs/durability.md says of a killed Redis: what it answered shortly before, and what was answered on its way.
  void MayLoseAt(WallTime killed) {
    const auto window = fmt::format("{}:{}", ToUnixMicros(killed - Millis{3000}), ToUnixMicros(killed + Millis{1000}));
    may_lose_.insert(may_lose_.end(), {"--redis-may-lose", window});
  }
  template <class Done>
  bool PumpUntil(Done done, Millis budget) {
    for (const MonoTime until = In(budget); clock_.Now() < until && !HasFailure();) {
      Pump();
      if (done()) return true;
    }
    return done();
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  RedisServer server_{GetParam()};
  std::filesystem::path dir_;
  std::shared_ptr<wire::LocalNames> names_ = wire::MakeLocalNames();
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> client_, worker_;
  WorkerId me_ = ids_.Next<WorkerId>();
  std::map<std::uint64_t, std::pair<wire::SubmitJobs, MonoTime>> waiting_;
  std::set<JobId> answered_, recorded_;
  testing::AcceptedList told_;
  std::vector<std::string> may_lose_;  // for the history checker
  bool ended_ = false;                 // nothing is open any more
  std::uint64_t last_request_ = 0, taken_ = 0;
  std::size_t attempts_ = 0, after_end_ = 0, resubmits_ = 0;
  MonoTime next_beat_{};
};

// The store alone: batches in a closed loop until the process is killed; then what it answered is compared with what it has.
TEST_P(DurabilityLiveTest, AnsweredWritesOfAKilledProcess) {
  constexpr ShardId kShard{0};
  constexpr std::uint32_t kKills = 8;
  std::uint64_t lost = 0, answered_all = 0;
  std::uint32_t kills_that_lost = 0;
  for (std::uint32_t kill = 1; kill <= kKills; ++kill) {
    auto queue = RedisQueue::Open({.endpoint = server_.endpoint(), .prefix = fmt::format("k{}", kill)}, In(10s));
    ASSERT_TRUE(queue) << queue.error().message;
    const QueueOp take[] = {queue_op::Take{kShard, Epoch{1}}};
    ASSERT_TRUE((*queue)->Execute(take).front());
    std::jthread killer([&] {
      std::this_thread::sleep_for(Millis{200 + static_cast<std::int64_t>(random_.Below(1200))});
      server_.Kill();
    });
    std::uint64_t answered = 0;
    while (true) {
      queue_op::Enqueue put{kShard, Epoch{1}, {}};
      for (int i = 0; i < 100; ++i)
        put.entries.push_back(
            {.id = ids_.Next<JobId>(), .line = "l", .body = std::string(100, 'x'), .run_at = {}, .expires_at = {}});
      const QueueOp ops[] = {std::move(put)};
      if (!(*queue)->Execute(ops).front()) break;
      answered += 100;
    }
    killer.join();
    ASSERT_TRUE(server_.Start());
    const auto depth =
        (*RedisQueue::Open({.endpoint = server_.endpoint(), .prefix = fmt::format("k{}", kill)}, In(10s)))->Depth(kShard);
    ASSERT_TRUE(depth) << depth.error().message;
    answered_all += answered;
    if (depth->ready >= answered) continue;
    lost += answered - depth->ready;
    ++kills_that_lost;
  }
  fmt::print("appendfsync {}: {} kills, {} answered writes, {} lost in {} kills\n", GetParam(), kKills, answered_all, lost,
             kills_that_lost);
  EXPECT_GT(answered_all, 0U);
  if (GetParam() != "everysec") {
    EXPECT_EQ(lost, 0U) << "every answer came after the write to the file";
  }
}

TEST_P(DurabilityLiveTest, AcceptedJobsOfABrokerWhoseRedisIsKilled) {
  StartBroker();
  PumpUntil([] { return false; }, 500ms);
  for (int kill = 0; kill < 3; ++kill) {
    const MonoTime at = In(Millis{300 + static_cast<std::int64_t>(random_.Below(700))});
    while (clock_.Now() < at && !HasFailure()) {
      if (waiting_.size() < 8) Batch();
      Pump();
    }
    server_.Kill();
    if (GetParam() == "everysec") MayLoseAt(clock_.WallNow());
    PumpUntil([] { return false; }, 200ms);
    ASSERT_TRUE(server_.Start());
  }
  ASSERT_TRUE(PumpUntil([this] { return waiting_.empty(); }, 30s)) << "a submit was never answered";
  const auto open = [this] {
    return std::ranges::count_if(answered_, [this](const JobId& id) { return !recorded_.contains(id); });
  };
  // Until nothing moves and the queue is empty: an outcome whose answer a takeover cut off is in the ledger, and nobody tells
  // the worker again.
  const auto queue_is_empty = [this] {
    auto queue = RedisQueue::Open({.endpoint = server_.endpoint(), .prefix = "t"}, In(10s));
    const auto depth = queue ? (*queue)->Depth(ShardId{0}) : std::unexpected(queue.error());
    return depth && depth->ready + depth->scheduled + depth->in_flight == 0;
  };
  std::size_t seen = recorded_.size();
  const MonoTime give_up = In(60s);
  for (MonoTime moved = clock_.Now(); open() > 0 && clock_.Now() < give_up && !HasFailure(); Pump()) {
    if (std::exchange(seen, recorded_.size()) != recorded_.size()) moved = clock_.Now();
    if (clock_.Now() - moved < 2s) continue;
    if (queue_is_empty()) break;
    moved = clock_.Now();
  }
  broker_->RequestStop();
  broker_->Join();
  ended_ = true;
  auto ledger = OpenLedger();
  ASSERT_TRUE(ledger) << ledger.error().message;
  std::size_t lost = 0;
  for (const JobId& id : answered_) {
    const auto detail = (*ledger)->GetJob(kDefaultOrg, id, In(5s));
    if (!detail || !detail->outcome) ++lost;
  }
  fmt::print("appendfsync {}: {} accepted, {} lost, {} attempts, {} after their job had ended, {} batches sent again\n",
             GetParam(), answered_.size(), lost, attempts_, after_end_, resubmits_);
  EXPECT_GT(answered_.size(), 100U);
  EXPECT_EQ(after_end_, 0U) << "a job ran although its outcome was durable";
  if (GetParam() != "everysec") {
    EXPECT_EQ(lost, 0U);
  }
}

INSTANTIATE_TEST_SUITE_P(Fsync, DurabilityLiveTest, ::testing::Values("always", "everysec", "no"), Named);

}  // namespace
}  // namespace millrace
