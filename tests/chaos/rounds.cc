#include "tests/chaos/rounds.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "common/base/limits.h"

namespace millrace::chaos {
namespace {

constexpr Millis kPhaseTimeout{20'000};  // a broker's successor needs up to kOwnershipTtl before loads flow again
constexpr Millis kFreezeTimeout{15'000};
constexpr int kFreezeTries = 3;
constexpr int kLongFreezes = 3, kLongFreezesOfBrokers = 2;
constexpr Millis kWakeTimeout{8'000};
constexpr Millis kTakeoverTimeout{20'000};
constexpr Millis kSettleTimeout{60'000};
constexpr Millis kStageTimeout{60'000}, kDies{10'000};
constexpr int kKilled = 128 + SIGKILL;
// What a fault holds up shows only after a while. A killed worker's load starts elsewhere within 5 s; what a killed broker
// holds up (10 s) is more than kSettledLive by then.
constexpr Millis kRecovers{6'000};
constexpr std::int64_t kSettledLive = 12;  // one run of each pipeline with its jobs, and some single jobs
constexpr Millis kPoll{15};
constexpr std::string_view kStageProgram = "millrace-stage";
// Only the fence says which job a load is of. Nobody knows it of other stages: none of them is killed while there is a job that
// one more crash or two would end.
constexpr std::string_view kCrashedJobsSql =
    "select count(*) from millrace.attempt a where a.ended = 3"
    " and not exists (select 1 from millrace.outcome o where o.job = a.job)";

// A stage process confines itself when it has its order, and ends with it; a spare one does neither.
bool HasOrder(pid_t stage) {
  std::ifstream status("/proc/" + std::to_string(stage) + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("NoNewPrivs:")) return line.back() == '1';
  return false;
}

// Whoever is its parent may not have reaped it.
bool HasEnded(pid_t process) {
  std::ifstream stat(fmt::format("/proc/{}/stat", process));
  std::string text;
  if (!std::getline(stat, text)) return true;
  const auto name_end = text.rfind(") ");
  return name_end != std::string::npos && (text[name_end + 2] == 'Z' || text[name_end + 2] == 'X');
}

template <class T>
void Shuffle(std::vector<T>& values, Random& random) {
  for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random.Below(i)]);
}

}  // namespace

std::string_view Name(Victim victim) {
  switch (victim) {
    case Victim::kBroker: return "broker";
    case Victim::kWorker: return "worker";
    case Victim::kStage: return "stage";
    case Victim::kScheduler: return "scheduler";
    case Victim::kRedis: return "redis";
  }
  return "?";
}

std::string_view Name(Fault fault) {
  switch (fault) {
    case Fault::kKill: return "kill";
    case Fault::kFreeze: return "freeze";
    case Fault::kFreezeBroker: return "broker frozen";
    case Fault::kFlush: return "FLUSHALL";
    case Fault::kOlderRedis: return "older Redis";
    case Fault::kPostgresCrash: return "PostgreSQL crash";
    case Fault::kEverything: return "everything";
  }
  return "?";
}

std::vector<Round> MakePlan(int kills, const std::vector<Phase>& phases, Random& random) {
  std::vector<Round> plan;
  std::vector<Victim> bag;
  std::vector<Phase> left;
  for (int i = 0; i < kills; ++i) {
    if (bag.empty()) {
      bag.assign(std::begin(kVictims), std::end(kVictims));
      Shuffle(bag, random);
    }
    if (left.empty()) {
      left = phases;
      left.push_back(Phase::kNone);
      Shuffle(left, random);
    }
    plan.push_back({.fault = Fault::kKill, .victim = bag.back(), .phase = left.back()});
    bag.pop_back();
    left.pop_back();
    if (i % 6 == 1) plan.push_back({.fault = Fault::kFlush, .phase = random.Below(2) == 0 ? Phase::kNone : Phase::kRowsSent});
    if (i % 6 == 3) plan.push_back({.fault = Fault::kFreeze});
    if (i % 12 == 9) plan.push_back({.fault = Fault::kFreezeBroker});
    if (i % 12 == 6)
      plan.push_back({.fault = Fault::kPostgresCrash, .phase = random.Below(2) == 0 ? Phase::kNone : Phase::kReceipt});
  }
  return plan;
}

void FreezeForLong(std::vector<Round>& plan) {
  int workers = 0, brokers = 0;
  for (Round& round : plan) {
    if (round.fault == Fault::kFreeze && workers++ < kLongFreezes) round.at_least = kLongFreeze;
    if (round.fault == Fault::kFreezeBroker && brokers++ < kLongFreezesOfBrokers) round.at_least = kLongFreezeOfBroker;
  }
}

Millis Rounds::Between(Millis low, Millis high) {
  return low + Millis{static_cast<std::int64_t>(random_.Below(static_cast<std::uint64_t>((high - low).count()) + 1))};
}

Result<void> Rounds::Play(const Round& round) {
  testing::SleepFor(Between(Millis{150}, Millis{900}));
  if (round.settled) Settle();
  if (const auto dead = cluster_.Dead(); !dead.empty()) return Fail(ErrorCode::kRejected, "{}", dead.front());
  MILLRACE_TRY(PlayNow(round));
  played_at_ = clock_.Now();
  return {};
}

Result<void> Rounds::PlayNow(const Round& round) {
  switch (round.fault) {
    case Fault::kKill: return PlayKill(round);
    case Fault::kFreeze: return PlayFreezes(round);
    case Fault::kFreezeBroker: return PlayFreezeBroker(round);
    case Fault::kFlush: return PlayFlush(round);
    case Fault::kOlderRedis: return PlayOlderRedis();
    case Fault::kPostgresCrash: return PlayPostgresCrash(round);
    case Fault::kEverything: return PlayEverything(round);
  }
  return {};
}

void Rounds::Settle() {
  StayUntil(played_at_ + kRecovers);
  for (const MonoTime until = clock_.Now() + kSettleTimeout; clock_.Now() < until; testing::SleepFor(kPoll))
    if (const auto live = observer_.Live(); live && *live <= kSettledLive) return;
}

// The load that the round wants; the furthest one when it does not care or none came in time.
std::optional<LoadInFlight> Rounds::WaitFor(const Round& round) {
  const MonoTime until = clock_.Now() + (round.phase == Phase::kNone ? Millis{0} : kPhaseTimeout);
  std::optional<LoadInFlight> furthest;
  while (true) {
    furthest.reset();
    for (LoadInFlight& load : observer_.Loads()) {
      const bool crashed_enough = crashes_[load.effect_hash] >= kCrashesMax - 1;
      const bool wanted =
          load.phase == round.phase && (!round.append || load.append) && (round.victim != Victim::kStage || !crashed_enough);
      if (round.phase != Phase::kNone && wanted) return std::move(load);
      if (!furthest || load.phase > furthest->phase) furthest = std::move(load);
    }
    if (clock_.Now() >= until) return furthest;
    testing::SleepFor(kPoll);
  }
}

std::optional<Rounds::Holder> Rounds::HolderOf(const LoadInFlight& load) {
  for (Member* worker : cluster_.OfRole(Role::kWorker)) {
    const auto stage = testing::HolderOfPort(load.client_port, testing::ChildrenOf(worker->process.pid(), kStageProgram));
    if (stage) return Holder{worker, *stage};
  }
  return std::nullopt;
}

Member* Rounds::Choose(Victim victim, const std::optional<Holder>& holder) {
  const auto named = [&](Role role, const std::optional<std::string>& name) {
    std::vector<Member*> members = cluster_.OfRole(role);
    Member* chosen = members[random_.Below(members.size())];
    if (!name || random_.Below(5) == 0) return chosen;  // now and then the one that stands by
    for (Member* member : members)
      if (name->find(member->name) != std::string::npos) chosen = member;
    return chosen;
  };
  switch (victim) {
    case Victim::kBroker: return named(Role::kBroker, observer_.OwnerName());
    case Victim::kScheduler: return named(Role::kScheduler, observer_.LeaderName());
    case Victim::kRedis: return cluster_.OfRole(Role::kRedis).front();
    case Victim::kWorker:
    case Victim::kStage: return holder ? holder->worker : named(Role::kWorker, std::nullopt);
  }
  return nullptr;
}

// Any stage process with an order, but none whose load would end with one more crash, as it should.
std::optional<pid_t> Rounds::SomeStage() {
  std::vector<pid_t> all;
  for (Member* worker : cluster_.OfRole(Role::kWorker)) {
    const auto children = testing::ChildrenOf(worker->process.pid(), kStageProgram);
    std::ranges::copy_if(children, std::back_inserter(all), HasOrder);
  }
  std::map<pid_t, std::string> load_of;  // what they hold, by effect
  for (const LoadInFlight& load : observer_.Loads())
    if (const auto holder = HolderOf(load)) load_of[holder->stage] = load.effect_hash;
  const auto crashed = observer_.Ledger(kCrashedJobsSql);
  const bool any = crashed && crashed->Int(0, 0) == 0;
  std::erase_if(all, [&](pid_t stage) { return load_of.contains(stage) ? crashes_[load_of[stage]] >= kCrashesMax - 1 : !any; });
  if (all.empty()) return std::nullopt;
  const pid_t chosen = all[random_.Below(all.size())];
  if (load_of.contains(chosen)) ++crashes_[load_of[chosen]];
  return chosen;
}

Result<void> Rounds::PlayKill(const Round& round) {
  const auto load = WaitFor(round);
  const auto holder = load && round.phase != Phase::kNone ? HolderOf(*load) : std::nullopt;
  Kill kill{.victim = round.victim,
            .name = {},
            .phase = load ? load->phase : Phase::kNone,
            .at = clock_.WallNow(),
            .mono = clock_.Now(),
            .effect_hash = load ? load->effect_hash : ""};
  if (round.victim == Victim::kStage) {
    // Whoever holds the load; another one when there is none, or when one more crash would end its job.
    const bool holds = holder && crashes_[load->effect_hash] < kCrashesMax - 1;
    if (holds) ++crashes_[load->effect_hash];
    return KillStage(std::move(kill), holds ? std::optional(holder->stage) : std::nullopt);
  }
  return KillMember(std::move(kill), *Choose(round.victim, holder));
}

Result<void> Rounds::KillMember(Kill kill, Member& member) {
  kill.name = member.name;
  member.process.Signal(SIGKILL);
  const auto code = member.process.Wait(kDies);
  if (code != kKilled)
    return Fail(ErrorCode::kRejected, "{} did not die of SIGKILL but has code {}", member.name, code.value_or(-1));
  kills_.push_back(std::move(kill));
  testing::SleepFor(Between(Millis{100}, Millis{1200}));
  return cluster_.Restart(member);
}

Result<void> Rounds::KillNow(Victim victim, Member& member) {
  return KillMember(
      {.victim = victim, .name = {}, .phase = Phase::kNone, .at = clock_.WallNow(), .mono = clock_.Now(), .effect_hash = {}},
      member);
}

void Rounds::StayUntil(MonoTime time) {
  if (const Millis left = std::chrono::ceil<Millis>(time - clock_.Now()); left > Millis{0}) testing::SleepFor(left);
}

// `stage`, or the first other one with an order.
Result<void> Rounds::KillStage(Kill kill, std::optional<pid_t> stage) {
  for (const MonoTime until = clock_.Now() + kStageTimeout; clock_.Now() < until; testing::SleepFor(kPoll)) {
    if (!stage) stage = SomeStage();
    if (stage && HasOrder(*stage) && ::kill(*stage, SIGKILL) == 0) {
      kill.name = fmt::format("stage process {}", *stage);
      kills_.push_back(std::move(kill));
      return {};
    }
    stage.reset();  // there is none, or it ended before
    kill.phase = Phase::kNone;
    kill.effect_hash.clear();
    kill.at = clock_.WallNow();
    kill.mono = clock_.Now();
  }
  return Fail(ErrorCode::kTimedOut, "no stage process had an order for {} s", kStageTimeout.count() / 1000);
}

// A worker and its load stop in the middle, another attempt begins, and then the first one goes on as if nothing had happened.
Result<void> Rounds::PlayFreeze(const Round& round) {
  const auto load = WaitFor({.fault = Fault::kFreeze, .phase = Phase::kRowsSent, .append = true});
  const auto holder = load && load->phase == Phase::kRowsSent ? HolderOf(*load) : std::nullopt;
  if (!holder) return {};  // it was over before we looked
  ::kill(holder->stage, SIGSTOP);
  holder->worker->process.Signal(SIGSTOP);
  Freeze freeze{.worker = holder->worker->name,
                .effect_hash = load->effect_hash,
                .token = load->token,
                .at = clock_.WallNow(),
                .mono = clock_.Now(),
                .newer_began = false};
  for (const MonoTime until = clock_.Now() + kFreezeTimeout; clock_.Now() < until && !freeze.newer_began;
       testing::SleepFor(kPoll))
    freeze.newer_began = observer_.FenceToken(load->effect_hash) > load->token;
  StayUntil(freeze.mono + round.at_least);
  ::kill(holder->stage, SIGCONT);
  freeze.lasted = std::chrono::floor<Millis>(clock_.Now() - freeze.mono);
  const auto still_there = [&] {
    return std::ranges::any_of(
        observer_.Loads(), [&](const LoadInFlight& l) { return l.effect_hash == load->effect_hash && l.token == load->token; });
  };
  for (const MonoTime until = clock_.Now() + kWakeTimeout; clock_.Now() < until && still_there(); testing::SleepFor(kPoll)) {
  }
  holder->worker->process.Signal(SIGCONT);
  freezes_.push_back(std::move(freeze));
  return {};
}

// A load that ended before it could be stopped, or a newer attempt that did not come in time, shows nothing: try another.
Result<void> Rounds::PlayFreezes(const Round& round) {
  for (int i = 0; i < kFreezeTries; ++i) {
    MILLRACE_TRY(PlayFreeze(round));
    if (!freezes_.empty() && freezes_.back().newer_began) break;
  }
  return {};
}

// The broker that owns the jobs stops; another one takes them; then the first one goes on as if nothing had happened, with all
// that its sockets have collected meanwhile.
Result<void> Rounds::PlayFreezeBroker(const Round& round) {
  const auto before = observer_.OwnerName();
  Member* frozen = Choose(Victim::kBroker, std::nullopt);
  for (Member* broker : cluster_.OfRole(Role::kBroker))
    if (before && before->find(broker->name) != std::string::npos) frozen = broker;
  frozen->process.Signal(SIGSTOP);
  const MonoTime stopped = clock_.Now();
  Disturbance disturbance{.fault = Fault::kFreezeBroker, .at = clock_.WallNow()};
  const auto taken = [&] {
    const auto owner = observer_.OwnerName();
    return owner && owner != before;
  };
  for (const MonoTime until = clock_.Now() + kTakeoverTimeout; clock_.Now() < until && !taken();) testing::SleepFor(kPoll);
  testing::SleepFor(Between(Millis{300}, Millis{1500}));
  StayUntil(stopped + round.at_least);
  frozen->process.Signal(SIGCONT);
  disturbance.lasted = std::chrono::floor<Millis>(clock_.Now() - stopped);
  others_.push_back(disturbance);
  return {};
}

Result<void> Rounds::PlayFlush(const Round& round) {
  (void)WaitFor(round);
  others_.push_back({.fault = Fault::kFlush, .at = clock_.WallNow()});
  return cluster_.FlushRedis();
}

// Redis' files as they are, taken while it runs: a torn last command is what a snapshot of a disk would show too. Work goes on
// for some seconds; then Redis dies and comes back with them.
Result<void> Rounds::PlayOlderRedis() {
  namespace fs = std::filesystem;
  Member* server = cluster_.OfRole(Role::kRedis).front();
  const std::string folder = cluster_.dir() + "/redis", copy = cluster_.dir() + "/redis.older";
  std::error_code ec;
  fs::remove_all(copy, ec);
  const WallTime since = clock_.WallNow();
  fs::copy(folder, copy, fs::copy_options::recursive, ec);
  if (ec) return Fail(ErrorCode::kRejected, "copy of {}: {}", folder, ec.message());
  testing::SleepFor(Between(Millis{1500}, Millis{4000}));
  server->process.Signal(SIGKILL);
  if (server->process.Wait(kDies) != kKilled) return Fail(ErrorCode::kTimedOut, "Redis did not die of SIGKILL");
  others_.push_back({.fault = Fault::kOlderRedis, .at = clock_.WallNow(), .since = since});
  fs::remove_all(folder, ec);
  fs::rename(copy, folder, ec);
  if (ec) return Fail(ErrorCode::kRejected, "{}: {}", folder, ec.message());
  return cluster_.Restart(*server);
}

Result<void> Rounds::PlayPostgresCrash(const Round& round) {
  (void)WaitFor(round);
  Member* server = cluster_.OfRole(Role::kPostgres).front();
  others_.push_back({.fault = Fault::kPostgresCrash, .at = clock_.WallNow()});
  server->process.Signal(SIGQUIT);
  if (!server->process.Wait(Millis{20'000})) return Fail(ErrorCode::kTimedOut, "PostgreSQL did not end after SIGQUIT");
  testing::SleepFor(Between(Millis{100}, Millis{800}));
  return cluster_.Restart(*server);
}

Result<void> Rounds::PlayEverything(const Round& round) {
  (void)WaitFor(round);
  std::vector<Member*> members;  // in the order in which they come back
  for (const Role role : {Role::kPostgres, Role::kRedis, Role::kBroker, Role::kWorker, Role::kScheduler})
    for (Member* member : cluster_.OfRole(role)) members.push_back(member);
  std::vector<pid_t> all;
  for (const Member* member : members) {
    const pid_t process = member->process.pid();
    ::kill(process, SIGSTOP);  // no child comes after the look at its children
    all.push_back(process);
    const std::string_view program = member->role == Role::kPostgres ? "postgres" : kStageProgram;
    for (const pid_t child : testing::ChildrenOf(process, program)) all.push_back(child);
  }
  others_.push_back({.fault = Fault::kEverything, .at = clock_.WallNow()});
  for (const pid_t process : all) ::kill(process, SIGKILL);
  for (Member* member : members)
    if (member->process.Wait(kDies) != kKilled) return Fail(ErrorCode::kTimedOut, "{} did not die of SIGKILL", member->name);
  // PostgreSQL does not start while one of its former children has its shared memory.
  for (const MonoTime until = clock_.Now() + Millis{10'000}; clock_.Now() < until && !std::ranges::all_of(all, HasEnded);)
    testing::SleepFor(kPoll);
  testing::SleepFor(Between(Millis{100}, Millis{1200}));
  for (Member* member : members) MILLRACE_TRY(cluster_.Restart(*member));
  return {};
}

}  // namespace millrace::chaos
