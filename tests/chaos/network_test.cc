// Every process on a host of its own; links are cut one way or both, lose packets, or are slow, while scheduled runs and single
// jobs flow; then every promise is checked from outside, as after the kills (checker.h).
// MILLRACE_CHAOS=short (default) or long, MILLRACE_CHAOS_SEED=<number>, MILLRACE_CHAOS_KEEP=1 keeps the folder.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/chaos/checker.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/network_lab.h"
#include "tests/chaos/observer.h"
#include "tests/chaos/rounds.h"
#include "tests/chaos/settings.h"
#include "tests/chaos/submitter.h"

namespace millrace::chaos {
namespace {

constexpr int kCutsShort = 5, kCutsLong = 60;
constexpr Millis kCutThatCosts{6'000};  // twice a lease
constexpr Millis kLostTimeout{15'000}, kStill{10'000}, kStillTimeout{60'000};
constexpr int kCutTriesMax = 4;
constexpr int kLossPercent = 5;
constexpr Millis kLossShort{4'000}, kLossLong{600'000};
constexpr Millis kSlowShort{4'000}, kSlowLong{120'000};
constexpr Millis kOneWayDelay{100};
constexpr Millis kAcceptTimeout{60'000};
constexpr std::size_t kAcceptedMin = 25;  // the end has enough to count,
constexpr Millis kFlowMin{12'000};        // also slots and a signed checkpoint
constexpr std::size_t kDripBytesPerMs = 64;
constexpr Millis kDrainTimeout{300'000};

enum class Link : std::uint8_t { kWorkerBroker, kBrokerRedis, kBrokerPostgres, kSchedulerPostgres, kWorkerPostgres };
constexpr Link kLinks[] = {Link::kWorkerBroker, Link::kBrokerRedis, Link::kBrokerPostgres, Link::kSchedulerPostgres,
                           Link::kWorkerPostgres};
enum class Way : std::uint8_t { kBoth, kThere, kBack };
constexpr std::string_view kWayNames[] = {"<->", "-->", "<--"};

struct Break {
  Link link;
  Way way;
  Millis time;
  bool costs;  // attempts must be lost to it
};

// Every link comes up equally often, and each way of a link before any of its comes again. The first one of worker and broker
// is both ways and long enough for the worker's leases to end; so are others of these two, one way: in the short form one,
// in the long form one each way.
std::vector<Break> MakePlan(int cuts, Random& random) {
  std::vector<Break> plan;
  const std::uint64_t first = random.Below(3);
  for (int i = 0; i < cuts; ++i) {
    const auto n = static_cast<std::size_t>(i);
    const std::size_t lap = n / std::size(kLinks);
    const Millis time{1500 + static_cast<std::int64_t>(random.Below(Long() ? 9000 : 2500))};
    const bool costs = i == 0;
    static_assert(kLinks[0] == Link::kWorkerBroker);
    plan.push_back({.link = kLinks[n % std::size(kLinks)],
                    .way = costs ? Way::kBoth : static_cast<Way>((first + n + lap) % 3),
                    .time = costs ? kCutThatCosts + time : time,
                    .costs = costs});
  }
  constexpr Way kOneWays[] = {Way::kThere, Way::kBack};
  const std::size_t one_way = random.Below(std::size(kOneWays));
  for (std::size_t i = 0; i < (Long() ? std::size(kOneWays) : 1); ++i)
    plan.push_back({.link = Link::kWorkerBroker,
                    .way = kOneWays[(one_way + i) % std::size(kOneWays)],
                    .time = kCutThatCosts,
                    .costs = true});
  for (std::size_t i = plan.size(); i > 1; --i) std::swap(plan[i - 1], plan[random.Below(i)]);
  return plan;
}

// The two hosts: the owner of the jobs or the leader where there is one, else either.
std::pair<std::string, std::string> Ends(Link link, Observer& observer, Random& random) {
  const auto named = [&](std::string_view role, const std::optional<std::string>& name) {
    for (const int i : {1, 2})
      if (const std::string host = fmt::format("{}-{}", role, i); name && name->find(host) != std::string::npos) return host;
    return fmt::format("{}-{}", role, 1 + random.Below(2));
  };
  switch (link) {
    case Link::kWorkerBroker: return {named("worker", std::nullopt), named("broker", observer.OwnerName())};
    case Link::kBrokerRedis: return {named("broker", observer.OwnerName()), "redis"};
    case Link::kBrokerPostgres: return {named("broker", observer.OwnerName()), "postgres"};
    case Link::kSchedulerPostgres: return {named("scheduler", observer.LeaderName()), "postgres"};
    case Link::kWorkerPostgres: return {named("worker", std::nullopt), "postgres"};
  }
  return {};
}

// Of that worker; empty: of all. -1: the ledger does not answer.
std::int64_t AttemptsLost(Observer& observer, const std::string& worker = {}) {
  const auto found = observer.Ledger("select count(*) from millrace.attempt where ended = 6" +
                                     (worker.empty() ? std::string() : " and worker = " + PgLiteral(worker)));
  return found ? found->Int(0, 0) : -1;
}

// What cuts cost is over when no attempt was lost for a while.
std::int64_t WaitUntilNoMoreIsLost(Observer& observer) {
  const SystemClock clock;
  std::int64_t lost = AttemptsLost(observer);
  MonoTime since = clock.Now();
  for (const MonoTime until = clock.Now() + kStillTimeout; clock.Now() < until && clock.Now() < since + kStill;) {
    testing::SleepFor(Millis{200});
    const std::int64_t before = std::exchange(lost, AttemptsLost(observer));
    if (lost != before) since = clock.Now();
  }
  return lost;
}

// What that worker was given so far, by its own history.
std::size_t GrantsTo(Cluster& cluster, const std::string& worker) {
  std::size_t grants = 0;
  for (const Member* member : cluster.OfRole(Role::kWorker)) {
    if (member->name != worker) continue;
    for (const auto& file : std::filesystem::directory_iterator(cluster.history())) {
      if (!file.path().filename().string().starts_with(fmt::format("{}-", member->process.pid()))) continue;
      std::ifstream lines(file.path());
      for (std::string line; std::getline(lines, line);)
        if (line.find(R"("op":"grant")") != std::string::npos) ++grants;
    }
  }
  return grants;
}

// After a cut it takes a while until it is known again.
bool WaitUntilItIsGranted(Cluster& cluster, const std::string& worker) {
  const SystemClock clock;
  const std::size_t before = GrantsTo(cluster, worker);
  for (const MonoTime until = clock.Now() + kAcceptTimeout; clock.Now() < until; testing::SleepFor(Millis{50}))
    if (GrantsTo(cluster, worker) > before) return true;
  return false;
}

// How many more than `before` that worker lost; 0: none in time.
std::int64_t WaitForLostAttempt(Observer& observer, const std::string& worker, std::int64_t before) {
  const SystemClock clock;
  for (const MonoTime until = clock.Now() + kLostTimeout; clock.Now() < until; testing::SleepFor(Millis{100}))
    if (const std::int64_t lost = AttemptsLost(observer, worker); lost > before) return lost - before;
  return 0;
}

bool WaitUntilNothingLives(Observer& observer, const Clock& clock) {
  for (const MonoTime until = clock.Now() + kDrainTimeout; clock.Now() < until; testing::SleepFor(Millis{100}))
    if (observer.Live() == 0) return true;
  return false;
}

// Until that many single jobs were accepted in all.
void WaitForAccepted(const Submitter& submitter, std::size_t jobs) {
  const SystemClock clock;
  for (const MonoTime until = clock.Now() + kAcceptTimeout; clock.Now() < until && submitter.accepted().size() < jobs;)
    testing::SleepFor(Millis{50});
}

// Stops what makes work, waits for all of it, checks, reports; keeps the folder of what failed.
void Finish(Cluster& cluster, Observer& observer, Submitter& submitter, const Rounds& rounds, MonoTime began) {
  const SystemClock clock;
  while (clock.Now() < began + kFlowMin) testing::SleepFor(Millis{100});
  WaitForAccepted(submitter, kAcceptedMin);
  submitter.Stop();
  const Result<void> stopped = cluster.StopSchedulers();
  EXPECT_TRUE(stopped) << stopped.error().message;
  EXPECT_TRUE(WaitUntilNothingLives(observer, clock)) << "not everything ended";
  const auto findings = Check(cluster, observer, rounds, submitter.accepted());
  ASSERT_TRUE(findings) << findings.error().message;
  std::printf("%s", Report(*findings, rounds).c_str());
  for (const Violation& v : findings->violations) ADD_FAILURE() << v.code << ": " << v.text;
  EXPECT_EQ(findings->lost, 0);
  EXPECT_EQ(findings->doubled, 0);
  if (Env("MILLRACE_CHAOS_KEEP").empty() && !::testing::Test::HasFailure()) cluster.RemoveAtEnd();
}

void Cut(NetworkLab& lab, const Break& one, const std::pair<std::string, std::string>& ends, const Submitter& submitter) {
  const auto& [a, b] = ends;
  const std::size_t before = submitter.accepted().size();
  ASSERT_TRUE(one.way == Way::kBack || lab.Cut(a, b));
  ASSERT_TRUE(one.way == Way::kThere || lab.Cut(b, a));
  testing::SleepFor(one.time);
  ASSERT_TRUE(lab.Heal());
  std::printf("%s %s %s cut for %lld ms; %zu jobs accepted meanwhile\n", a.c_str(),
              std::string(kWayNames[static_cast<std::size_t>(one.way)]).c_str(), b.c_str(),
              static_cast<long long>(one.time.count()), submitter.accepted().size() - before);
  std::fflush(stdout);
}

enum class CutResult : std::uint8_t { kCost, kNothing, kMoved };

// A cut to which its worker must lose attempts. After an earlier one the brokers share their shards anew: where the jobs went
// to the other broker meanwhile, what was cut off had nothing of them (kMoved).
CutResult CutAtACost(Cluster& cluster, NetworkLab& lab, const Break& one, Observer& observer, Random& random,
                     const Submitter& submitter) {
  const auto ends = Ends(one.link, observer, random);
  const auto& [worker, broker] = ends;
  EXPECT_TRUE(WaitUntilItIsGranted(cluster, worker)) << worker << " is given nothing";
  const std::int64_t lost = AttemptsLost(observer, worker);
  EXPECT_GE(lost, 0) << "the ledger could not be asked";
  const auto owner = observer.OwnerName();
  Cut(lab, one, ends, submitter);
  if (::testing::Test::HasFatalFailure()) return CutResult::kNothing;
  const std::int64_t more = WaitForLostAttempt(observer, worker, lost);
  std::printf("%s lost %lld attempts to it\n", worker.c_str(), static_cast<long long>(more));
  if (more > 0) return CutResult::kCost;
  const bool moved = !owner || owner->find(broker) == std::string::npos || observer.OwnerName() != owner;
  if (moved) std::printf("the jobs went to the other broker meanwhile: once more\n");
  return moved ? CutResult::kMoved : CutResult::kNothing;
}

TEST(Network, CutsAndLossLoseNothingAndDoubleNothing) {
  if (const std::string why = WhyNoNetworkLab(); !why.empty()) {
    if (!Env("CI").empty()) FAIL() << why;
    GTEST_SKIP() << why;
  }
  std::printf("MILLRACE_CHAOS_SEED=%llu MILLRACE_CHAOS=%s\n", static_cast<unsigned long long>(Seed()),
              Long() ? "long" : "short");
  SeededRandom random(Seed());
  const SystemClock clock;
  auto lab = NetworkLab::Start();
  ASSERT_TRUE(lab) << lab.error().message;
  auto cluster = Cluster::Start({.bin = MILLRACE_BIN_DIR, .failpoints = "", .slow_target = true, .seed = Seed(), .lab = &*lab});
  ASSERT_TRUE(cluster) << cluster.error().message;
  std::printf("cluster in %s\n", cluster->dir().c_str());
  Observer observer(cluster->ledger_dsn(), cluster->warehouse_dsn());
  const MonoTime began = clock.Now();
  Submitter submitter(cluster->client_endpoints(), cluster->witness());
  const Rounds rounds(*cluster, observer, random);
  for (const Break& one : MakePlan(Long() ? kCutsLong : kCutsShort, random)) {
    testing::SleepFor(Millis{300 + static_cast<std::int64_t>(random.Below(600))});
    if (!one.costs) {
      ASSERT_NO_FATAL_FAILURE(Cut(*lab, one, Ends(one.link, observer, random), submitter));
      continue;
    }
    CutResult done = CutResult::kMoved;
    for (int i = 0; i < kCutTriesMax && done == CutResult::kMoved; ++i)
      done = CutAtACost(*cluster, *lab, one, observer, random, submitter);
    EXPECT_EQ(done, CutResult::kCost) << "the cut cost nothing: was it one?";
  }
  // What is lost from here on is lost to packet loss alone.
  const std::int64_t lost_before = WaitUntilNoMoreIsLost(observer);
  ASSERT_TRUE(lab->Lose(kLossPercent));
  testing::SleepFor(Long() ? kLossLong : kLossShort);
  const std::int64_t lost_after = AttemptsLost(observer);
  ASSERT_TRUE(lab->Heal());
  std::printf("%d %% loss on every host: %lld attempts lost their lease\n", kLossPercent,
              static_cast<long long>(lost_after - lost_before));
  EXPECT_EQ(lost_after, lost_before) << "a lease was lost although its worker lived";
  Finish(*cluster, observer, submitter, rounds, began);
}

// 200 ms from request to reply and a trickle of bytes on every link: no worker is taken for dead, and all that was accepted
// ends when it is over. Brokers cannot keep their shards over such links to the ledger (ops/docs/failure-modes.md).
TEST(Network, ASlowNetworkLosesNoLease) {
  std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
  const SystemClock clock;
  SeededRandom random(Seed());
  auto cluster =
      Cluster::Start({.bin = MILLRACE_BIN_DIR, .failpoints = "", .slow_target = false, .seed = Seed() + 7, .proxied = true});
  ASSERT_TRUE(cluster) << cluster.error().message;
  std::printf("cluster in %s\n", cluster->dir().c_str());
  Observer observer(cluster->ledger_dsn(), cluster->warehouse_dsn());
  const MonoTime began = clock.Now();
  Submitter submitter(cluster->client_endpoints(), cluster->witness());
  const Rounds rounds(*cluster, observer, random);
  const std::int64_t lost_before = AttemptsLost(observer);
  for (const auto& proxy : cluster->proxies()) {
    proxy->Delay(kOneWayDelay);
    proxy->Drip(kDripBytesPerMs);
  }
  const std::size_t accepted_before = submitter.accepted().size();
  testing::SleepFor(Long() ? kSlowLong : kSlowShort);
  WaitForAccepted(submitter, accepted_before + 1);
  const std::size_t accepted = submitter.accepted().size() - accepted_before;
  const std::int64_t lost_after = AttemptsLost(observer);
  for (const auto& proxy : cluster->proxies()) proxy->Heal();
  std::printf("200 ms per round trip and %zu bytes/ms on every link: %zu jobs accepted, %lld attempts lost their lease\n",
              kDripBytesPerMs, accepted, static_cast<long long>(lost_after - lost_before));
  EXPECT_EQ(lost_after, lost_before) << "a lease was lost although its worker lived";
  EXPECT_GT(accepted, 0U) << "nothing was accepted over slow links";
  Finish(*cluster, observer, submitter, rounds, began);
}

}  // namespace
}  // namespace millrace::chaos
