// Kill -9 of a random process, again and again, while scheduled runs and single jobs flow; then every promise is checked from
// outside. MILLRACE_CHAOS=short (default) or long, MILLRACE_CHAOS_SEED=<number>, MILLRACE_CHAOS_KEEP=1 keeps the folder.
// MILLRACE_CHAOS_MUTANT=no_fence|no_receipt|no_epoch|drop_accepted|double_slot puts one deliberate defect into the processes:
// the same command must then fail. The Mutants tests below prove that it does.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/chaos/checker.h"
#include "tests/chaos/chosen.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/observer.h"
#include "tests/chaos/rounds.h"
#include "tests/chaos/settings.h"
#include "tests/chaos/submitter.h"
#include "tests/support/lateness.h"

namespace millrace::chaos {
namespace {

constexpr int kKillsShort = 12, kKillsLong = 50;
constexpr int kRecoveriesEach = 25, kLeaderKills = 50;
constexpr Millis kSlotEvery{3000};                                                // kAppendCron
constexpr Millis kGrantedElsewhere{5'000}, kTaken{10'000}, kServedAgain{10'000};  // promised in ops/docs/failure-modes.md
constexpr Millis kDrainTimeout{300'000};
constexpr int kAloneTries = 3;
constexpr Millis kFlowMin{11'000};  // of work, also when the rounds are few

#define MILLRACE_NEED_FAILPOINTS()                                                                               \
  do {                                                                                                           \
    if (!HaveFailpoints()) GTEST_SKIP() << "this build has no failpoints, so it has no mutants: use preset dev"; \
  } while (false)

constexpr std::uint64_t kMutantsShort = 3;

// They make every load slow enough to be hit in each of its phases. Without failpoints the target's own triggers do, but
// nothing can make a load wait between COMMIT and its report.
constexpr std::string_view kWindows =
    "load.after_fence=sleep(150),load.after_staging=sleep(500),load.before_commit=sleep(250),load.after_commit=sleep(500)";

// MILLRACE_CHAOS_FAILPOINTS=off: as in a build without them.
bool HaveFailpoints() {
#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
  return Env("MILLRACE_CHAOS_FAILPOINTS", "on") != "off";
#else
  return false;
#endif
}
std::vector<Phase> Phases() {
  std::vector<Phase> phases{Phase::kRowsSent, Phase::kReceipt, Phase::kCommitting};
  if (HaveFailpoints()) phases.push_back(Phase::kCommitted);
  return phases;
}

std::string MutantFailpoint(const std::string& mutant) {
  if (mutant.empty()) return "";
  return fmt::format(",mutant.{}=error{}", mutant, mutant == "drop_accepted" || mutant == "double_slot" ? "(1,1)" : "");
}

bool Drain(Observer& observer, const Clock& clock) {
  for (const MonoTime until = clock.Now() + kDrainTimeout; clock.Now() < until; testing::SleepFor(Millis{100}))
    if (observer.Live() == 0) return true;
  return false;
}

struct Scenario {
  std::uint64_t seed = 1;
  std::string mutant;
  std::vector<Round> plan;
  bool measured = false;  // begins with the kill of a worker that no other fault comes near to
};

// Returns when the job of the killed worker is lost, or when it should have been: what comes then does not hold up its next
// grant.
Result<void> KillAWorkerAlone(Rounds& rounds, Observer& observer, const Clock& clock) {
  const auto lost = [&] {
    const auto found = observer.Ledger("select count(*) from millrace.attempt where ended = 6");
    return found ? found->Int(0, 0) : 0;
  };
  for (int i = 0; i < kAloneTries; ++i) {
    const std::int64_t before = lost();
    MILLRACE_TRY(rounds.Play({.victim = Victim::kWorker, .phase = Phase::kRowsSent}));
    const MonoTime until = rounds.kills().back().mono + kGrantedElsewhere;
    while (lost() == before && clock.Now() < until) testing::SleepFor(Millis{50});
    if (InWindow(rounds.kills().back().phase)) break;
  }
  return {};
}

// Of the first `alone` kills: their loads were granted elsewhere within what is promised, beside what the machine was late.
void CheckGrantedElsewhere(const Rounds& rounds, std::size_t alone, const testing::Lateness& late, Findings& findings) {
  bool measured = false;
  for (std::size_t i = 0; i < alone; ++i) {
    const MonoTime at = rounds.kills()[i].mono;
    const auto found = findings.granted_after.find(at);
    if (found == findings.granted_after.end()) continue;
    measured = true;
    const Millis waited = late.Between(at, at + found->second);
    std::printf("the job of the worker that was killed alone was granted elsewhere after %lld ms, late by %lld ms\n",
                static_cast<long long>(found->second.count()), static_cast<long long>(waited.count()));
    if (found->second > kGrantedElsewhere + waited)
      findings.violations.push_back(
          {"slow", fmt::format("a killed worker's job was granted elsewhere after {} ms, promised {} ms", found->second.count(),
                               kGrantedElsewhere.count())});
  }
  if (!measured) findings.violations.push_back({"harness", "no worker was killed alone in the middle of a load"});
}

Result<Findings> Play(const Scenario& scenario) {
  const SystemClock clock;
  const testing::Lateness late;
  SeededRandom random(scenario.seed);
  const MonoTime started = clock.Now();
  MILLRACE_TRY_ASSIGN(
      Cluster cluster,
      Cluster::Start({.bin = MILLRACE_BIN_DIR,
                      .failpoints = HaveFailpoints() ? std::string(kWindows) + MutantFailpoint(scenario.mutant) : "",
                      .slow_target = !HaveFailpoints(),
                      .seed = scenario.seed}));
  std::printf("cluster in %s\n", cluster.dir().c_str());
  std::fflush(stdout);
  Observer observer(cluster.ledger_dsn(), cluster.warehouse_dsn());
  const MonoTime began = clock.Now();
  Submitter submitter(cluster.client_endpoints(), cluster.witness());
  Rounds rounds(cluster, observer, random);
  if (scenario.measured) MILLRACE_TRY(KillAWorkerAlone(rounds, observer, clock));
  const std::size_t alone = rounds.kills().size();
  for (const Round& round : scenario.plan) MILLRACE_TRY(rounds.Play(round));
  while (clock.Now() < began + kFlowMin) testing::SleepFor(Millis{100});
  submitter.Stop();
  const Result<void> stopped = cluster.StopSchedulers();
  const bool drained = Drain(observer, clock);
  MILLRACE_TRY_ASSIGN(Findings findings, Check(cluster, observer, rounds, submitter.accepted()));
  if (scenario.measured) CheckGrantedElsewhere(rounds, alone, late, findings);
  if (!stopped) findings.violations.push_back({"harness", stopped.error().message});
  if (!drained)
    findings.violations.push_back({"harness", fmt::format("not everything ended within {} s", kDrainTimeout.count() / 1000)});
  std::printf("%s%lld s in all\n", Report(findings, rounds).c_str(),
              static_cast<long long>(std::chrono::duration_cast<std::chrono::seconds>(clock.Now() - started).count()));
  if (Env("MILLRACE_CHAOS_KEEP", "").empty() && (findings.violations.empty() || !scenario.mutant.empty()))
    cluster.RemoveAtEnd();
  return findings;
}

TEST(KillRounds, EverySlotOneRunEveryRunOneEffect) {
  const std::string mutant = Env("MILLRACE_CHAOS_MUTANT", "");
  if (!mutant.empty()) MILLRACE_NEED_FAILPOINTS();
  std::printf("MILLRACE_CHAOS_SEED=%llu MILLRACE_CHAOS=%s\n", static_cast<unsigned long long>(Seed()),
              Long() ? "long" : "short");
  SeededRandom random(Seed());
  const int kills = std::atoi(Env("MILLRACE_CHAOS_KILLS", std::to_string(Long() ? kKillsLong : kKillsShort)).c_str());
  std::vector<Round> plan = MakePlan(kills, Phases(), random);
  if (Long()) FreezeForLong(plan);
  // One of the kills comes first, alone.
  const bool measured = mutant.empty();
  const auto worker = std::ranges::find_if(
      plan, [](const Round& round) { return round.fault == Fault::kKill && round.victim == Victim::kWorker; });
  if (measured && worker != plan.end()) plan.erase(worker);
  const auto findings = Play({.seed = Seed(), .mutant = mutant, .plan = std::move(plan), .measured = measured});
  ASSERT_TRUE(findings) << findings.error().message;
  for (const Violation& v : findings->violations) ADD_FAILURE() << v.code << ": " << v.text;
  EXPECT_GE(2 * findings->in_window, kills)
      << "at least half of the kills must fall between a load's first row and its outcome";
  EXPECT_GT(findings->stale_refused, 0) << "no frozen attempt came back to be refused";
  if (Long()) {
    EXPECT_GT(findings->long_freezes, 0) << "no worker was frozen for three leases until a newer attempt had begun";
    EXPECT_GT(findings->long_freezes_of_brokers, 0) << "no broker was frozen for a minute";
  }
  EXPECT_EQ(findings->lost, 0);
  EXPECT_EQ(findings->doubled, 0);
}

// Nine of ten within what is promised, all within twice that: the machine may be busy.
void ExpectWithin(Millis promised, std::string_view what, std::vector<Millis> times) {
  ASSERT_GE(times.size(), 20U) << what;
  std::ranges::sort(times);
  EXPECT_LE(times[times.size() * 9 / 10], promised) << what << ": p90";
  EXPECT_LE(times.back(), 2 * promised) << what << ": at most";
}

// How long each fault is felt: n >= 20 of each, in a shuffled order.
TEST(KillRounds, RecoveryTimes) {
  if (!Long()) GTEST_SKIP() << "takes a quarter of an hour: MILLRACE_CHAOS=long";
  std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
  SeededRandom random(Seed() + 1);
  std::vector<Round> plan;
  for (int i = 0; i < kRecoveriesEach; ++i) {
    plan.push_back({.victim = Victim::kWorker, .phase = Phase::kRowsSent, .settled = true});
    plan.push_back({.victim = Victim::kBroker, .phase = Phase::kRowsSent, .settled = true});
    plan.push_back({.fault = Fault::kFreeze, .settled = true});
    plan.push_back({.fault = Fault::kFlush, .settled = true});
    plan.push_back({.fault = Fault::kPostgresCrash, .settled = true});
  }
  for (std::size_t i = plan.size(); i > 1; --i) std::swap(plan[i - 1], plan[random.Below(i)]);
  const auto findings = Play({.seed = Seed() + 1, .mutant = "", .plan = std::move(plan)});
  ASSERT_TRUE(findings) << findings.error().message;
  for (const Violation& v : findings->violations) ADD_FAILURE() << v.code << ": " << v.text;
  const auto granted = [&](std::string_view fault) {
    const auto times = findings->granted.find(std::string(fault));
    return times == findings->granted.end() ? std::vector<Millis>{} : times->second;
  };
  ExpectWithin(kGrantedElsewhere, "the job of a killed worker is granted elsewhere", granted(Name(Victim::kWorker)));
  ExpectWithin(kGrantedElsewhere, "the job of a frozen worker is granted elsewhere", granted(Name(Fault::kFreeze)));
  ExpectWithin(kTaken, "a shard of a killed broker is taken", findings->taken);
  ExpectWithin(kServedAgain, "a job that was submitted after PostgreSQL crashed and was restarted has ended",
               findings->service.at(std::string(Name(Fault::kPostgresCrash))));
}

// The leading scheduler dies around the instant of a slot, again and again; the other one goes on. The same in virtual time, a
// thousand times: SchedulerTest.AThousandLeadersKilledAtTheSlotEdge.
TEST(KillRounds, LeaderKilledAtTheSlotEdge) {
  if (!Long()) GTEST_SKIP() << "takes three minutes: MILLRACE_CHAOS=long";
  std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
  const SystemClock clock;
  SeededRandom random(Seed() + 2);
  auto cluster = Cluster::Start({.bin = MILLRACE_BIN_DIR, .failpoints = "", .slow_target = true, .seed = Seed() + 2});
  ASSERT_TRUE(cluster) << cluster.error().message;
  Observer observer(cluster->ledger_dsn(), cluster->warehouse_dsn());
  Submitter submitter(cluster->client_endpoints(), cluster->witness());
  const Rounds rounds(*cluster, observer, random);
  for (int killed = 0; killed < kLeaderKills;) {
    const auto into = std::chrono::duration_cast<Millis>(clock.WallNow().time_since_epoch()) % kSlotEvery;
    testing::SleepFor(kSlotEvery - into + Millis{static_cast<std::int64_t>(random.Below(600)) - 300});
    const auto leader = observer.LeaderName();
    for (Member* member : cluster->OfRole(Role::kScheduler)) {
      if (!leader || leader->find(member->name) == std::string::npos) continue;
      ASSERT_TRUE(cluster->Dead().empty()) << cluster->Dead().front();
      member->process.Signal(SIGKILL);
      ASSERT_EQ(member->process.Wait(Millis{10'000}), 128 + SIGKILL);
      ++killed;
      testing::SleepFor(Millis{static_cast<std::int64_t>(random.Below(1500))});
      ASSERT_TRUE(cluster->Restart(*member));
    }
  }
  submitter.Stop();
  const Result<void> stopped = cluster->StopSchedulers();
  EXPECT_TRUE(stopped) << stopped.error().message;
  EXPECT_TRUE(Drain(observer, clock)) << "not everything ended";
  const auto findings = Check(*cluster, observer, rounds, submitter.accepted());
  ASSERT_TRUE(findings) << findings.error().message;
  std::printf("%d leaders killed around the edge of a slot; %s", kLeaderKills, Report(*findings, rounds).c_str());
  for (const Violation& v : findings->violations) ADD_FAILURE() << v.code << ": " << v.text;
  if (!HasFailure()) cluster->RemoveAtEnd();
}

// The same processes and the same checks with one defect each; the plan goes straight to where it shows.
void ExpectCaught(const std::string& mutant, std::vector<Round> plan, std::string_view code, std::string_view text) {
  const auto findings = Play({.seed = Seed() + mutant.size(), .mutant = mutant, .plan = std::move(plan)});
  ASSERT_TRUE(findings) << findings.error().message;
  EXPECT_TRUE(std::ranges::any_of(findings->violations,
                                  [&](const Violation& v) { return v.code == code && v.text.find(text) != std::string::npos; }))
      << "mutant " << mutant << " was not caught as '" << code << ": ..." << text << "'";
}

TEST(Mutants, NoFenceIsCaught) {
  MILLRACE_NEED_FAILPOINTS();
  MILLRACE_LONG_OR_CHOSEN(0, kMutantsShort);
  ExpectCaught("no_fence", {{.fault = Fault::kFreeze}, {.fault = Fault::kFreeze}}, "stale_accepted", "the frozen attempt");
}

TEST(Mutants, NoReceiptIsCaught) {
  MILLRACE_NEED_FAILPOINTS();
  MILLRACE_LONG_OR_CHOSEN(1, kMutantsShort);
  ExpectCaught("no_receipt",
               {{.victim = Victim::kStage, .phase = Phase::kCommitted, .append = true},
                {.victim = Victim::kWorker, .phase = Phase::kCommitted, .append = true}},
               "doubled", "were expected");
}

TEST(Mutants, NoEpochIsCaught) {
  if (!Long() && GTEST_FLAG_GET(filter) == "*")
    GTEST_SKIP() << "MILLRACE_CHAOS=long; in short, HistoryCheckTest.EpochCheckRemoved";
  MILLRACE_NEED_FAILPOINTS();
  ExpectCaught("no_epoch", {{.fault = Fault::kFreezeBroker}, {.fault = Fault::kFreezeBroker}}, "stale_accepted",
               "wrote under epoch");
}

TEST(Mutants, DoubledSlotIsCaught) {
  if (!Long() && GTEST_FLAG_GET(filter) == "*")
    GTEST_SKIP() << "MILLRACE_CHAOS=long; in short, HistoryCheckTest.OneSlotDoubled";
  MILLRACE_NEED_FAILPOINTS();
  ExpectCaught("double_slot", {{.victim = Victim::kScheduler, .phase = Phase::kNone}}, "slot", "is a second one of its slot");
}

TEST(Mutants, DroppedAcceptedJobIsCaught) {
  MILLRACE_NEED_FAILPOINTS();
  MILLRACE_LONG_OR_CHOSEN(2, kMutantsShort);
  ExpectCaught("drop_accepted",
               {{.victim = Victim::kScheduler, .phase = Phase::kNone}, {.victim = Victim::kRedis, .phase = Phase::kRowsSent}},
               "lost", "was accepted and the ledger has no row of it");
}

}  // namespace
}  // namespace millrace::chaos
