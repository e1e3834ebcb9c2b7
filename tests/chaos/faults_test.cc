// Faults beside those of kill_rounds_test, one at a time, on real processes while scheduled runs and single jobs flow; then
// every promise is checked from outside, as after the kills (checker.h): clocks that step, fsyncs that fail, a network that is
// slow and loses packets at once, a Redis that comes back with older files, or has no memory left, a PostgreSQL that is
// restarted; and two kinds of kills: of everything at one instant, and of a worker in the middle of an extract.
// MILLRACE_CHAOS=short (default) or long, MILLRACE_CHAOS_SEED=<number>, MILLRACE_CHAOS_KEEP=1 keeps the folder. The short form
// plays one of the tests with a cluster, or that of cancel_rounds_test, which the seed chooses; all that a --gtest_filter
// names.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "tests/chaos/bulk.h"
#include "tests/chaos/checker.h"
#include "tests/chaos/chosen.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/network_lab.h"
#include "tests/chaos/observer.h"
#include "tests/chaos/rounds.h"
#include "tests/chaos/settings.h"
#include "tests/chaos/submitter.h"
#include "tests/checker/operations.h"
#include "tests/support/history_check.h"
#include "tests/support/job_driver.h"
#include "tests/support/lateness.h"

namespace millrace::chaos {
namespace {

constexpr Millis kDrainTimeout{300'000}, kAcceptTimeout{60'000}, kAnswerTimeout{30'000};
constexpr Millis kSettle{3'000};
constexpr Millis kProcessStep{3'600'000};          // of a process's clock
constexpr Millis kStep{20'000}, kSameTime{5'000};  // of the ledger's clock; two clocks that nobody stepped differ by less
constexpr Millis kStillRefused{2'000};
constexpr std::size_t kAcceptedMin = 25;
constexpr std::size_t kBulkJobs = 4'000, kBulkPerSecond = 250, kOfferedPerSecond = 60;
constexpr std::size_t kServerProxies = 2;              // those of PostgreSQL and Redis come first
constexpr int kTogetherShort = 3, kTogetherMax = 200;  // rounds in which everything is killed; the long form ends by time
constexpr Millis kTogetherLong{360'000};
constexpr Millis kDies{10'000};
constexpr int kExtractsShort = 2, kExtractsLong = 10;  // in which a worker is killed
constexpr int kRestartsShort = 2, kRestartsLong = 10;  // of PostgreSQL
// Promised in ops/docs/failure-modes.md, beside what the machine is late meanwhile.
constexpr Millis kGrantedElsewhere{6'000}, kServedAgain{10'000};  // the first is two leases

// A cluster with something flowing through it, and the end of every test here.
class Faults : public ::testing::Test {
 protected:
  void Begin(ClusterOptions options) {
    std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
    options.bin = MILLRACE_BIN_DIR;
    options.seed = Seed() + 11;
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster) << cluster.error().message;
    cluster_.emplace(std::move(*cluster));
    std::printf("cluster in %s\n", cluster_->dir().c_str());
    std::fflush(stdout);
    observer_.emplace(cluster_->ledger_dsn(), cluster_->warehouse_dsn());
    rounds_.emplace(*cluster_, *observer_, random_);
    submitter_.emplace(cluster_->client_endpoints(), cluster_->witness());
  }
  void BeginBulk(std::size_t jobs = kBulkJobs, std::size_t per_second = kBulkPerSecond, bool crashes = true) {
    bulk_jobs_ = jobs;
    std::vector<std::string> workers = cluster_->worker_endpoints();
    for (std::size_t i = 0; i < workers.size() && !cluster_->proxies().empty(); ++i)
      workers[i] = fmt::format("tcp://127.0.0.1:{}", cluster_->proxies()[kServerProxies + i]->port());
    bulk_.emplace(BulkOptions{.client_endpoints = cluster_->client_endpoints(),
                              .worker_endpoints = std::move(workers),
                              .witness = cluster_->witness(),
                              .seed = Seed(),
                              .jobs = jobs,
                              .per_second = per_second,
                              .crashes = crashes});
  }
  template <class So>
  bool WaitFor(So so, Millis timeout) {
    for (const MonoTime until = clock_.Now() + timeout; clock_.Now() < until; testing::SleepFor(Millis{50}))
      if (so()) return true;
    return so();
  }
  // Empty: the ledger does not answer.
  std::optional<std::int64_t> Ask(const std::string& sql) {
    const auto found = observer_->Ledger(sql);
    return found && found->rows() == 1 ? std::optional(found->Int(0, 0)) : std::nullopt;
  }
  // Asks until it answers; a failure when it does not.
  std::int64_t MustAsk(const std::string& sql) {
    std::optional<std::int64_t> answer;
    EXPECT_TRUE(WaitFor([&] { return (answer = Ask(sql)).has_value(); }, kAnswerTimeout)) << "the ledger does not say: " << sql;
    return answer.value_or(0);
  }
  // Jobs that ended, per second.
  double Goodput(Millis time) {
    const std::int64_t before = MustAsk("select count(*) from millrace.outcome");
    const MonoTime start = clock_.Now();
    testing::SleepFor(time);
    const std::int64_t ended = MustAsk("select count(*) from millrace.outcome") - before;
    return static_cast<double>(ended) * 1e6 / static_cast<double>(Micros(clock_.Now() - start).count());
  }
  std::int64_t AttemptsLost() { return MustAsk("select count(*) from millrace.attempt where ended = 6"); }
  // By the histories of the brokers: how long after `since` that job was given to a worker again.
  std::optional<Millis> GrantedAfter(MonoTime since, const std::string& job) {
    const auto history = checker::ReadHistory(cluster_->history());
    if (!history) return std::nullopt;
    for (const checker::Operation& o : history->operations)
      if (o.op == "grant" && o.By("broker:") && o.at > since.time_since_epoch().count() &&
          std::ranges::any_of(o.items, [&](const checker::Item& item) { return item.id.ToString() == job; }))
        return std::chrono::duration_cast<Millis>(Micros{o.at} - since.time_since_epoch());
    return std::nullopt;
  }
  bool WaitForAccepted(std::size_t more) {
    const std::size_t before = submitter_->accepted().size();
    return WaitFor([&] { return submitter_->accepted().size() >= before + more; }, kAcceptTimeout);
  }
  std::size_t Accepted() { return submitter_->accepted().size() + (bulk_ ? bulk_->accepted_count() : 0); }
  // How far a wall clock is from this process's.
  Millis LedgersStep() {
    const auto now = observer_->Ledger("select clock_timestamp()");
    return now ? std::chrono::duration_cast<Millis>(now->Time(0, 0) - clock_.WallNow()) : Millis{-1};
  }
  // Whether a line of the process's history says so of its clock.
  bool HistoryShows(const std::string& member, Millis step) {
    pid_t pid = -1;
    for (const Role role : {Role::kBroker, Role::kWorker, Role::kScheduler})
      for (Member* one : cluster_->OfRole(role))
        if (one->name == member) pid = one->process.pid();
    const std::int64_t wall = ToUnixMicros(clock_.WallNow()) - Micros{clock_.Now().time_since_epoch()}.count();
    for (const auto& file : std::filesystem::directory_iterator(cluster_->history())) {
      if (!file.path().filename().string().starts_with(fmt::format("{}-", pid))) continue;
      std::ifstream lines(file.path());
      for (std::string line; std::getline(lines, line);) {
        long long m = 0, t = 0;
        if (std::sscanf(line.c_str(), "{\"m\":%lld,\"t\":%lld,", &m, &t) == 2 &&
            std::chrono::abs(Micros{t - m - wall} - step) < kSameTime)
          return true;
      }
    }
    return false;
  }
  // False: the ledger's clock caught up with the last slot meanwhile, so that this shows nothing.
  bool ExpectNoSlotWhileTheClockIsBehind() {
    testing::SleepFor(kSettle);  // a leader asks for the time at each pass
    const std::int64_t slots = MustAsk("select count(*) from millrace.slot");
    testing::SleepFor(Millis{4'000});  // the next instant of kAppendCron
    const std::int64_t later = MustAsk("select count(*) from millrace.slot");
    if (MustAsk("select (max(slot) > clock_timestamp())::int::bigint from millrace.slot") != 1) return false;
    EXPECT_EQ(later, slots) << "a slot fired before its time";
    return true;
  }
  // How many lines of their logs have it.
  int LinesOfBrokers(std::string_view text) {
    int found = 0;
    for (const Member* broker : cluster_->OfRole(Role::kBroker)) {
      std::ifstream log(cluster_->dir() + "/logs/" + broker->name + ".log");
      for (std::string line; std::getline(log, line);) found += line.find(text) != std::string::npos ? 1 : 0;
    }
    return found;
  }
  std::string OwningBroker() {
    const auto owner = observer_->OwnerName();
    return owner && owner->find("broker-2") != std::string::npos ? "broker-2" : "broker-1";
  }

  // An attempt of an extract that has written its file and published nothing, and the worker that was granted it.
  struct Extract {
    Member* worker = nullptr;
    std::string job{}, file{}, manifest{};
    long long token = 0;
  };
  std::optional<Extract> ExtractUnderWay() {
    namespace fs = std::filesystem;
    const std::string folder = fmt::format("{}/lake/{}", cluster_->dir(), DatasetDir(kDefaultOrg, kAppendPipeline, "input"));
    std::error_code ec;
    for (const auto& entry : fs::directory_iterator(folder + "/data", ec)) {
      const std::string name = entry.path().filename();  // <hash>-<token>-0.parquet
      const std::size_t dash = name.find('-');
      Extract found{.file = entry.path(), .manifest = fmt::format("{}/manifests/{}.json", folder, name.substr(0, dash))};
      if (fs::exists(found.manifest) || std::sscanf(name.c_str() + dash, "-%lld-", &found.token) != 1) continue;
      for (Member* worker : cluster_->OfRole(Role::kWorker))
        if (const std::string job = JobGrantedTo(worker->process.pid(), found.token); !job.empty())
          found.worker = worker, found.job = job;
      if (found.worker != nullptr) return found;
    }
    return std::nullopt;
  }
  // By the history of that process; empty: it was not granted it.
  std::string JobGrantedTo(pid_t pid, long long token) {
    for (const auto& file : std::filesystem::directory_iterator(cluster_->history())) {
      if (!file.path().filename().string().starts_with(fmt::format("{}-", pid))) continue;
      std::ifstream lines(file.path());
      for (std::string line; std::getline(lines, line);) {
        const std::size_t at = line.find(fmt::format("\",{}]", token));
        if (at != std::string::npos && line.find(R"("op":"grant")") != std::string::npos) return line.substr(at - 36, 36);
      }
    }
    return {};
  }
  // What the load of that job's run has appended.
  std::optional<std::int64_t> RowsOfRunWith(const std::string& job) {
    const auto load = observer_->Ledger(
        "select l.effect from millrace.job l where l.stage = 'target' and l.run = (select run from millrace.job where " + job +
        ")");
    if (!load || load->rows() != 1) return std::nullopt;
    const auto rows = observer_->Warehouse(
        fmt::format("select count(*) from wh.appended where _millrace_effect = {}", PgLiteral(load->Text(0, 0))));
    return rows ? std::optional(rows->Int(0, 0)) : std::nullopt;
  }
  // kill -9 of the worker with all its stage processes. False: the extract had published before they stood still.
  bool KillIn(const Extract& extract) {
    const pid_t worker = extract.worker->process.pid();
    ::kill(worker, SIGSTOP);
    std::vector<pid_t> group = testing::ChildrenOf(worker, "millrace-stage");
    group.push_back(worker);
    for (const pid_t process : group) ::kill(process, SIGSTOP);
    const bool within = !std::filesystem::exists(extract.manifest);
    killed_at_ = clock_.Now();
    for (const pid_t process : group) ::kill(process, within ? SIGKILL : SIGCONT);
    if (!within) return false;
    EXPECT_EQ(extract.worker->process.Wait(kDies), 128 + SIGKILL);
    return true;
  }

  // Stops what makes work, waits for all of it, checks, reports; keeps the folder of what failed.
  void End() {
    if (HasFailure()) return;  // what is said already would only be said again, minutes later
    EXPECT_TRUE(WaitFor([&] { return submitter_->accepted().size() >= kAcceptedMin; }, kAcceptTimeout));
    EXPECT_TRUE(WaitFor([&] { return Ask("select count(distinct pipeline) from millrace.slot where state = 'fired'") == 2; },
                        kAcceptTimeout));
    if (bulk_) {
      EXPECT_TRUE(WaitFor([&] { return bulk_->accepted_count() >= bulk_jobs_ && bulk_->AllAnswered(); }, kDrainTimeout));
    }
    submitter_->Stop();
    const auto stopped = cluster_->StopSchedulers();
    EXPECT_TRUE(stopped) << stopped.error().message;
    EXPECT_TRUE(WaitFor([&] { return observer_->Live() == 0; }, kDrainTimeout)) << "not everything ended";
    auto accepted = submitter_->accepted();
    if (bulk_) {
      std::optional<std::int64_t> before;  // of class redis: in the ledger only when they have ended
      EXPECT_TRUE(WaitFor(
          [&] {
            testing::SleepFor(kSettle);
            const auto now = Ask("select count(*) from millrace.outcome");
            return now && std::exchange(before, now) == now;
          },
          kDrainTimeout));
      bulk_->Stop();
      accepted.merge(bulk_->accepted());
    }
    auto findings = Check(*cluster_, *observer_, *rounds_, accepted);
    ASSERT_TRUE(findings) << findings.error().message;
    findings_ = std::move(*findings);
    std::printf("%s", Report(findings_, *rounds_).c_str());
    if (clocks_were_wrong_)
      std::erase_if(findings_.violations, [](const Violation& v) {
        return v.code == "audit" && v.text.ends_with("it was added later, or its writer's clock was wrong");
      });
    std::map<std::string, int> shown;
    for (const Violation& v : findings_.violations)
      if (++shown[v.code] <= 5) ADD_FAILURE() << v.code << ": " << v.text;
    if (Env("MILLRACE_CHAOS_KEEP").empty() && !HasFailure()) cluster_->RemoveAtEnd();
  }

  SystemClock clock_;
  SeededRandom random_{Seed()};
  testing::Lateness lateness_;
  std::size_t bulk_jobs_ = 0;
  MonoTime killed_at_{};            // KillIn
  bool clocks_were_wrong_ = false;  // by more than the 10 minutes that the audit trail allows for
  Findings findings_;               // of End
  std::optional<Cluster> cluster_;
  std::optional<Observer> observer_;
  std::optional<Rounds> rounds_;
  std::optional<Bulk> bulk_;
  std::optional<Submitter> submitter_;  // last: it ends first
};

// Wall clocks of brokers, workers and schedulers step by an hour, forth and back, and PostgreSQL's, the ledger's, by seconds:
// no lease is lost, no slot is missed or fires twice. Monotonic clocks are not touched, as on a real machine. The audit trail
// has times of the clocks that were wrong, and says so.
TEST_F(Faults, ClocksThatStep) {
  MILLRACE_LONG_OR_CHOSEN(0, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true, .shimmed = true}));
  ASSERT_TRUE(WaitForAccepted(5));
  clocks_were_wrong_ = true;
  const std::int64_t lost_before = AttemptsLost();
  const std::vector<std::string> members{OwningBroker(), "scheduler-1", "worker-1", "scheduler-2", "worker-2"};
  for (const Millis step : {kProcessStep, -kProcessStep}) {
    for (const std::string& member : members) {
      cluster_->shim(member).StepClockTo(step);
      testing::SleepFor(Millis{Long() ? 5'000 : 700});
      EXPECT_TRUE(WaitForAccepted(2)) << member << " stepped by " << step.count() << " ms: nothing is accepted any more";
    }
    // Whoever does something says when; a scheduler that stands by does nothing.
    const auto leader = observer_->LeaderName();
    for (const std::string& member : members) {
      if (member.starts_with("scheduler") && (!leader || leader->find(member) == std::string::npos)) continue;
      EXPECT_TRUE(WaitFor([&] { return HistoryShows(member, step); }, kAcceptTimeout)) << member << " lives in the true time";
    }
  }
  const auto fires_ahead = [&] {  // of the true time
    return Ask("select (extract(epoch from max(slot)) * 1000000)::bigint from millrace.slot") >
           ToUnixMicros(clock_.WallNow() + kStep / 2);
  };
  int shown_behind = 0;
  for (const Millis step : {kStep, Millis{0}, -kStep, Millis{0}}) {
    cluster_->StepServersClock(step);
    EXPECT_LT(std::chrono::abs(LedgersStep() - step), kSameTime) << "the ledger lives in another time";
    testing::SleepFor(Millis{Long() ? 5'000 : 500});
    EXPECT_TRUE(WaitForAccepted(2)) << "the ledger's clock stepped to " << step.count() << " ms: nothing is accepted any more";
    if (step == kStep)
      ASSERT_TRUE(WaitFor(fires_ahead, kAcceptTimeout)) << "no slot fires by the ledger's clock";
    else
      shown_behind += ExpectNoSlotWhileTheClockIsBehind() ? 1 : 0;
  }
  EXPECT_GT(shown_behind, 0) << "the ledger's clock was never behind for long enough";
  for (const std::string& member : members) cluster_->shim(member).StepClockTo(Millis{0});
  EXPECT_EQ(AttemptsLost(), lost_before) << "a lease was lost although its worker lived";
  // The watermark never goes back: after a step back, the next slot waits for the clock.
  const std::int64_t slots = MustAsk("select count(*) from millrace.slot");
  EXPECT_TRUE(WaitFor([&] { return Ask("select count(*) from millrace.slot") > slots; }, kAcceptTimeout)) << "no slot fires";
  End();
}

// Redis has no memory left, first suddenly, then for longer. New work is refused; what was accepted runs, and no shard is given
// up for it: that would empty it, and the rebuild would meet the same wall.
TEST_F(Faults, RedisOutOfMemory) {
  MILLRACE_LONG_OR_CHOSEN(4, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true}));
  BeginBulk();
  ASSERT_TRUE(WaitForAccepted(5));
  ASSERT_TRUE(WaitFor([&] { return bulk_->accepted_count() > kBulkJobs / 10; }, kAcceptTimeout));
  for (const Millis hold : {Millis{700}, Millis{Long() ? 20'000 : 6'000}}) {
    const auto limited = cluster_->LimitRedis(50);
    ASSERT_TRUE(limited) << limited.error().message;
    std::size_t accepted = 0;
    const auto stands_still = [&] {
      const std::size_t now = bulk_->accepted_count();
      testing::SleepFor(Millis{1'500});
      accepted = bulk_->accepted_count();
      return accepted == now;
    };
    EXPECT_TRUE(WaitFor(stands_still, kAcceptTimeout));
    testing::SleepFor(hold);
    EXPECT_EQ(bulk_->accepted_count(), accepted) << "accepted although there is no memory for it";
    const auto lifted = cluster_->LimitRedis(0);
    ASSERT_TRUE(lifted) << lifted.error().message;
    EXPECT_TRUE(WaitFor([&] { return bulk_->accepted_count() > accepted; }, kAcceptTimeout)) << "nothing is accepted again";
    EXPECT_TRUE(WaitForAccepted(5));
  }
  EXPECT_GT(LinesOfBrokers("the queue has no memory left"), 0) << "nothing was refused";
  EXPECT_EQ(LinesOfBrokers("is over: queue"), 0) << "a shard was given up";
  End();
}

// fsync answers EIO. Redis under everysec refuses every write from then on, also when its disk works again, until it is started
// again; PostgreSQL ends its sessions, cannot recover either and shuts down. What was accepted is there.
TEST_F(Faults, FsyncsOfTheServersFail) {
  MILLRACE_LONG_OR_CHOSEN(1, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true, .shimmed = true}));
  BeginBulk();
  ASSERT_TRUE(WaitForAccepted(5));
  auto& redis = cluster_->shim("redis");
  redis.FailFsyncs(true);
  EXPECT_TRUE(WaitFor([&] { return redis.fsyncs_failed() > 0; }, kAcceptTimeout)) << "nothing was synced meanwhile";
  const auto refuses = [&] {
    const auto said = cluster_->AskRedis({"SET", "chaos", "1"});
    return !said && said.error().message.find("MISCONF") != std::string::npos;
  };
  EXPECT_TRUE(WaitFor(refuses, kAcceptTimeout)) << "Redis takes writes although it cannot sync them";
  testing::SleepFor(kSettle);  // what had been accepted is told
  const std::size_t accepted = Accepted();
  testing::SleepFor(Millis{Long() ? 12'000 : 3'000});
  redis.FailFsyncs(false);
  testing::SleepFor(kStillRefused);
  EXPECT_TRUE(refuses()) << "it takes writes again before it was started again";
  EXPECT_EQ(Accepted(), accepted) << "jobs are accepted while Redis refuses every write";
  EXPECT_TRUE(cluster_->OfRole(Role::kRedis).front()->process.Running()) << "under everysec it goes on";
  const auto restarted_redis = rounds_->Play({.victim = Victim::kRedis});
  ASSERT_TRUE(restarted_redis) << restarted_redis.error().message;
  EXPECT_TRUE(WaitForAccepted(5)) << "nothing is accepted after Redis was started again";
  auto& postgres = cluster_->shim("postgres");
  Member* server = cluster_->OfRole(Role::kPostgres).front();
  postgres.FailFsyncs(true);
  EXPECT_TRUE(WaitFor([&] { return !server->process.Running(); }, kAcceptTimeout))
      << "it goes on although nothing can be synced";
  postgres.FailFsyncs(false);
  std::printf("fsync failed %lld times in Redis, %lld times in PostgreSQL\n", static_cast<long long>(redis.fsyncs_failed()),
              static_cast<long long>(postgres.fsyncs_failed()));
  const auto restarted = cluster_->Restart(*server);
  ASSERT_TRUE(restarted) << restarted.error().message;
  EXPECT_TRUE(WaitForAccepted(5)) << "nothing is accepted after PostgreSQL's disk works again";
  End();
}

// 5 % of the packets lost and 200 ms per round trip at once: no worker is taken for dead, at least half of what an open loop
// offers gets done, and all that was accepted ends when it is over.
TEST_F(Faults, ASlowNetworkThatLosesPackets) {
  MILLRACE_LONG_OR_CHOSEN(2, kClusterTests);
  if (const std::string why = WhyNoNetworkLab(); !why.empty()) {
    if (!Env("CI").empty()) FAIL() << why;
    GTEST_SKIP() << why;
  }
  auto lab = NetworkLab::Start();
  ASSERT_TRUE(lab) << lab.error().message;
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = false, .lab = &*lab, .proxied = true}));
  BeginBulk((Long() ? 100 : 30) * kOfferedPerSecond, kOfferedPerSecond, false);
  ASSERT_TRUE(WaitForAccepted(5));
  const double quiet = Goodput(Millis{5'000});
  const std::int64_t lost_before = AttemptsLost();
  for (const auto& proxy : cluster_->proxies()) proxy->Delay(Millis{100});
  ASSERT_TRUE(lab->Lose(5));
  testing::SleepFor(Millis{2'000});  // what was under way
  const double slow = Goodput(Millis{Long() ? 60'000 : 8'000});
  const std::int64_t lost_after = AttemptsLost();
  std::printf("jobs per second, %zu offered: %.0f before, %.0f with 200 ms and 5 %% loss\n", kOfferedPerSecond, quiet, slow);
  ASSERT_TRUE(lab->Heal());
  for (const auto& proxy : cluster_->proxies()) proxy->Heal();
  EXPECT_EQ(lost_after, lost_before) << "a lease was lost although its worker lived";
  EXPECT_GE(slow, static_cast<double>(kOfferedPerSecond) / 2) << "goodput";
  EXPECT_TRUE(WaitForAccepted(5)) << "nothing is accepted after it";
  End();
  submitter_.reset();
  cluster_.reset();  // before the lab
}

// Redis comes back with the files of some seconds before, again and again: nothing of ledger class is lost, of class redis at
// most what was accepted since; nothing happens twice.
TEST_F(Faults, RedisComesBackOlder) {
  MILLRACE_LONG_OR_CHOSEN(3, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true}));
  BeginBulk();
  ASSERT_TRUE(WaitForAccepted(5));
  for (int i = 0; i < (Long() ? 12 : 2); ++i) {
    const auto played = rounds_->Play({.fault = Fault::kOlderRedis});
    ASSERT_TRUE(played) << played.error().message;
    EXPECT_TRUE(WaitForAccepted(3)) << "nothing is accepted with an older Redis";
  }
  End();
}

// All processes die at one instant, servers too, and are started again, now and then before they have recovered from the time
// before: nothing of ledger class is lost, nothing happens twice.
TEST_F(Faults, EverythingIsKilledTogether) {
  MILLRACE_LONG_OR_CHOSEN(5, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true}));
  Long() ? BeginBulk(18'000, 50) : BeginBulk();
  ASSERT_TRUE(WaitForAccepted(5));
  constexpr Phase kPhases[] = {Phase::kRowsSent, Phase::kNone, Phase::kCommitting, Phase::kReceipt};
  int rounds = 0;
  const MonoTime end = clock_.Now() + kTogetherLong;
  for (; Long() ? rounds < kTogetherMax && clock_.Now() < end : rounds < kTogetherShort; ++rounds) {
    const bool recovered = rounds % 4 != 2;  // else nobody owns a shard yet
    const auto played =
        rounds_->Play({.fault = Fault::kEverything, .phase = recovered ? kPhases[random_.Below(4)] : Phase::kNone});
    ASSERT_TRUE(played) << played.error().message;
    if (rounds % 4 == 1) continue;
    EXPECT_TRUE(WaitForAccepted(3)) << "nothing is accepted after everything was started again";
  }
  std::printf("everything was killed together %d times\n", rounds);
  End();
}

// A worker dies with its stage processes when an extract has written its file and published nothing: the job starts elsewhere,
// nobody reads what the dead attempt wrote, and the rows arrive once.
TEST_F(Faults, AWorkerIsKilledInAnExtract) {
  MILLRACE_LONG_OR_CHOSEN(6, kClusterTests);
#if !defined(MILLRACE_FAILPOINTS) || !MILLRACE_FAILPOINTS
  GTEST_SKIP() << "this build has no failpoints, so nothing holds an extract: use preset dev";
#endif
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = "stage.data_written=sleep(700)", .copy = true}));
  ASSERT_TRUE(WaitForAccepted(5));
  for (int kills = 0; kills < (Long() ? kExtractsLong : kExtractsShort); ++kills) {
    std::optional<Extract> extract;
    Millis late{0};
    const auto kill = [&] {
      late = lateness_.so_far();
      return (extract = ExtractUnderWay()) && KillIn(*extract);
    };
    ASSERT_TRUE(WaitFor(kill, kAcceptTimeout)) << "no extract was under way";
    const std::string job = "job = '" + extract->job + "'";
    std::printf("%s died in the extract %s, token %lld\n", extract->worker->name.c_str(), extract->job.c_str(), extract->token);
    EXPECT_TRUE(WaitFor(
        [&] {
          return Ask(fmt::format("select count(*) from millrace.outcome where {} and ended = 1 and token > {}", job,
                                 extract->token)) == 1;
        },
        kAcceptTimeout))
        << "it does not start elsewhere";
    late = lateness_.so_far() - late;
    const auto again = GrantedAfter(killed_at_, extract->job);
    ASSERT_TRUE(again) << "no broker's history says that it was granted again";
    std::printf("granted elsewhere after %lld ms, the machine was %lld ms late\n", static_cast<long long>(again->count()),
                static_cast<long long>(late.count()));
    EXPECT_LE(*again, kGrantedElsewhere + late) << "it starts elsewhere too late";
    EXPECT_EQ(MustAsk(fmt::format("select count(*) from millrace.attempt where {} and token = {} and ended = 6", job,
                                  extract->token)),
              1)
        << "the end of the dead attempt is no lost one";
    EXPECT_TRUE(WaitFor([&] { return !std::filesystem::exists(extract->file); }, kAnswerTimeout))
        << "what the dead attempt wrote is still there: " << extract->file;
    const auto restarted = cluster_->Restart(*extract->worker);
    ASSERT_TRUE(restarted) << restarted.error().message;
    EXPECT_TRUE(WaitForAccepted(3)) << "nothing is accepted after the worker was started again";
    EXPECT_TRUE(WaitFor([&] { return RowsOfRunWith(job) == kRowsPerEffect; }, kAcceptTimeout)) << "its run loads no rows";
  }
  End();  // each effect's rows are there once: S2
}

// PostgreSQL, the ledger and the warehouse, is shut down at once and started again under load: what was accepted is there, and
// soon after the fault a job that was submitted after it has ended.
TEST_F(Faults, PostgresRestartsUnderLoad) {
  MILLRACE_LONG_OR_CHOSEN(7, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin({.bin = {}, .failpoints = {}, .slow_target = true}));
  BeginBulk();
  std::vector<Millis> late;  // the machine, after each
  for (int i = 0; i < (Long() ? kRestartsLong : kRestartsShort); ++i) {
    ASSERT_TRUE(WaitForAccepted(5)) << "nothing is accepted after PostgreSQL was started again";
    const Millis before = lateness_.so_far();
    const auto played = rounds_->Play({.fault = Fault::kPostgresCrash});
    ASSERT_TRUE(played) << played.error().message;
    ASSERT_TRUE(WaitForAccepted(5)) << "nothing is accepted after PostgreSQL was started again";
    late.push_back(lateness_.so_far() - before);
  }
  End();
  const auto& served = findings_.service[std::string(Name(Fault::kPostgresCrash))];
  ASSERT_EQ(served.size(), late.size());
  for (std::size_t i = 0; i < late.size(); ++i)
    EXPECT_LE(served[i], kServedAgain + late[i]) << "restart " << i << "; the machine was " << late[i].count() << " ms late";
}

// The embedded home: everything in SQLite. While its fsyncs fail nothing is accepted; afterwards all that was is there.
TEST(EmbeddedFaults, FsyncsOfTheHomeFail) {
  namespace fs = std::filesystem;
  const SystemClock clock;
  std::string pattern = fs::temp_directory_path() / "millrace-eio-XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::string dir = pattern;
  fs::create_directory(dir + "/history");
  std::ofstream(dir + "/millrace.yaml") << fmt::format("version: 1\nhome: {0}/home\nlog: {{ format: text }}\n", dir);
  auto shim = testing::ShimControl::Make(dir + "/shim");
  ASSERT_TRUE(shim) << shim.error().message;
  testing::ProcessOptions options{
      .argv = {std::string(MILLRACE_BIN_DIR) + "/millrace", "--config", dir + "/millrace.yaml", "up"},
      .env = shim->Env(),
      .log = dir + "/up.log"};
  options.env.emplace_back("MILLRACE_HISTORY", dir + "/history");
  auto up = testing::TestProcess::Start(options);
  ASSERT_TRUE(up) << up.error().message;
  testing::JobDriver driver(wire::MakeLocalNames(), "ipc://" + dir + "/home/broker.sock", "");
  driver.SubmitJobsOf(std::string(kJobKindCommand), [](JobId job) {
    CommandTask task;
    task.job = job;
    task.command.argv = {"/bin/true"};
    task.base_dir = "/";
    return ToJson(task);
  });
  const auto feed = [&](Millis time) {
    for (const MonoTime until = clock.Now() + time; clock.Now() < until && !::testing::Test::HasFailure();) {
      if (driver.unanswered() == 0) driver.Submit(Durability::kLedger, 3);
      driver.PumpFor(Millis{25});
    }
  };
  ASSERT_TRUE(driver.PumpUntil([&] { return driver.accepted().size() > 20; }, Millis{60'000}, 1));
  for (int round = 0; round < (Long() ? 8 : 2); ++round) {
    // Nothing is under way: what is accepted from here on was written from here on.
    ASSERT_TRUE(driver.PumpUntil([&] { return driver.AllAnswered(); }, Millis{60'000}));
    shim->FailFsyncs(true);
    const std::size_t before = driver.accepted().size();
    feed(Millis{2'500});
    const std::size_t meanwhile = driver.accepted().size() - before;
    // The power fails before anything could be repaired: only what was synced would have been there. Here the page cache stays,
    // so that a kill is the most that can be shown.
    const bool kill = round % 2 == 1;
    EXPECT_TRUE(up->Running()) << "it did not go on, see " << dir << "/up.log";
    if (kill) up->KillAndReap();
    shim->FailFsyncs(false);
    std::printf("round %d: %lld fsyncs failed, %zu jobs accepted meanwhile, the process %s\n", round,
                static_cast<long long>(shim->fsyncs_failed()), meanwhile, kill ? "is started again" : "goes on");
    EXPECT_EQ(meanwhile, 0U) << "accepted although nothing could be synced";
    if (kill) {
      up = testing::TestProcess::Start(options);
      ASSERT_TRUE(up) << up.error().message;
    }
    const std::size_t now = driver.accepted().size();
    EXPECT_TRUE(driver.PumpUntil([&] { return driver.accepted().size() > now + 10; }, Millis{60'000}, 1))
        << "nothing is accepted after the disk works again";
    EXPECT_TRUE(up->Running()) << "it did not go on when the disk works again, see " << dir << "/up.log";
  }
  EXPECT_GT(shim->fsyncs_failed(), 0);
  ASSERT_TRUE(driver.PumpUntil([&] { return driver.AllAnswered(); }, Millis{60'000}));
  {
    std::ofstream list(dir + "/accepted");
    for (const auto& [job, told] : driver.accepted())
      list << fmt::format(R"({{"job": "{}", "class": "ledger", "at": 0}})", job.ToString()) << '\n';
  }
  testing::HistoryVerdict verdict;
  for (const MonoTime until = clock.Now() + Millis{120'000}; clock.Now() < until; driver.PumpFor(Millis{500})) {
    verdict = testing::RunHistoryCheck(
        {"--ledger", dir + "/home/ledger.db", "--history", dir + "/history", "--accepted", dir + "/accepted", "--checkpoints",
         dir + "/home/checkpoints", "--public-key", dir + "/home/audit.key.pub", "--ended"},
        dir);
    if (verdict.code == 0) break;
  }
  std::printf("%s", verdict.text.c_str());
  EXPECT_EQ(verdict.code, 0) << verdict.text;
  up->KillAndReap();
  if (!::testing::Test::HasFailure()) fs::remove_all(dir);
}

}  // namespace
}  // namespace millrace::chaos
