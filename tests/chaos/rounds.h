// Kill -9 of one process after another while runs flow, at chosen moments of a load.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/random.h"
#include "common/base/result.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/observer.h"

namespace millrace::chaos {

enum class Victim : std::uint8_t { kBroker, kWorker, kStage, kScheduler, kRedis };
inline constexpr Victim kVictims[] = {Victim::kBroker, Victim::kWorker, Victim::kStage, Victim::kScheduler, Victim::kRedis};
std::string_view Name(Victim victim);

inline constexpr Millis kLongFreeze = 3 * Millis{kLeaseTtl};  // of a worker
inline constexpr Millis kLongFreezeOfBroker{60'000};

enum class Fault : std::uint8_t {
  kKill,           // kill -9 of the victim; all but a stage process are started again after a moment
  kFreeze,         // SIGSTOP of a worker and its load until a newer attempt has begun
  kFlush,          // FLUSHALL of Redis
  kOlderRedis,     // kill -9 of Redis, restart with the files of some seconds before
  kFreezeBroker,   // SIGSTOP of the broker that owns the jobs until another one owns them, and it goes on
  kPostgresCrash,  // immediate shutdown (no checkpoint, sessions cut) of the server that holds ledger and warehouse, restart
  kEverything,     // kill -9 of all processes at one instant, servers and stage processes too; then all are started again
};
std::string_view Name(Fault fault);

struct Round {
  Fault fault = Fault::kKill;
  Victim victim = Victim::kWorker;  // kKill
  Phase phase = Phase::kNone;       // kNone: whenever; otherwise a load must be there (for a worker or stage: its load)
  bool append = false;              // only a load into the append target will do
  bool settled = false;             // not before what earlier rounds held up has ended
  Millis at_least{0};               // kFreeze, kFreezeBroker: frozen for so long, also when another one has gone on before
};

// A process that was alive when SIGKILL came and ended by it; of a stage process, one that had an order.
struct Kill {
  Victim victim = Victim::kWorker;
  std::string name;            // of the process
  Phase phase = Phase::kNone;  // of the load that was furthest, or that was waited for
  WallTime at{};
  MonoTime mono{};
  std::string effect_hash;  // of that load; empty: none
};

struct Freeze {
  std::string worker;
  std::string effect_hash;
  std::int64_t token = 0;  // of the frozen attempt
  WallTime at{};
  MonoTime mono{};
  bool newer_began = false;  // a newer attempt raised the fence before the frozen one went on
  Millis lasted{0};          // until the load went on
};

// What else was done, beside kills and freezes.
struct Disturbance {
  Fault fault = Fault::kFlush;
  WallTime at{};
  WallTime since{};  // kOlderRedis: when the files were copied
  Millis lasted{0};  // kFreezeBroker
};

// `kills` rounds that kill; every victim comes up equally often, in an order drawn from `random`, and most wait for a
// load between its first row and its outcome. Among each twelve: two freezes, two flushes, one crash of PostgreSQL, one freeze
// of a broker. `phases`: those that loads can be hit in here.
std::vector<Round> MakePlan(int kills, const std::vector<Phase>& phases, Random& random);
// The first freezes of workers and of brokers in `plan` last three leases and a minute.
void FreezeForLong(std::vector<Round>& plan);

// Not thread-safe.
class Rounds {
 public:
  Rounds(Cluster& cluster, Observer& observer, Random& random) : cluster_(cluster), observer_(observer), random_(random) {}

  struct Holder {
    Member* worker = nullptr;
    pid_t stage = -1;
  };

  // An error is the harness's (a server does not come back), or names a process that ended by itself.
  Result<void> Play(const Round& round);
  // kill -9 of this member, outside of any round; it is started again after a moment.
  Result<void> KillNow(Victim victim, Member& member);
  // Empty: it has ended, or no worker of ours has it.
  std::optional<Holder> HolderOf(const LoadInFlight& load);

  const std::vector<Kill>& kills() const { return kills_; }
  const std::vector<Freeze>& freezes() const { return freezes_; }
  const std::vector<Disturbance>& others() const { return others_; }

 private:
  Result<void> PlayNow(const Round& round);
  void Settle();
  void StayUntil(MonoTime time);
  std::optional<LoadInFlight> WaitFor(const Round& round);
  Member* Choose(Victim victim, const std::optional<Holder>& holder);
  std::optional<pid_t> SomeStage();
  Result<void> PlayKill(const Round& round);
  Result<void> KillMember(Kill kill, Member& member);
  Result<void> KillStage(Kill kill, std::optional<pid_t> stage);
  Result<void> PlayFreeze(const Round& round);
  Result<void> PlayFreezes(const Round& round);
  Result<void> PlayFreezeBroker(const Round& round);
  Result<void> PlayFlush(const Round& round);
  Result<void> PlayOlderRedis();
  Result<void> PlayPostgresCrash(const Round& round);
  Result<void> PlayEverything(const Round& round);
  Millis Between(Millis low, Millis high);

  Cluster& cluster_;
  Observer& observer_;
  Random& random_;
  SystemClock clock_;
  std::vector<Kill> kills_;
  std::vector<Freeze> freezes_;
  std::vector<Disturbance> others_;
  MonoTime played_at_{};                // the round before
  std::map<std::string, int> crashes_;  // stage kills by effect: the third would end the job, as it should
};

}  // namespace millrace::chaos
