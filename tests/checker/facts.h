// What a ledger holds, read by plain SQL, without the code that wrote it: the checker must not believe what it checks.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace::checker {

// Numbers, booleans and times (microseconds since 1970) in `number`; texts, bytes and ids (16 bytes) in `bytes`.
struct Cell {
  bool null = true;
  std::int64_t number = 0;
  std::string bytes{};
  Uuid Id() const;  // nil when it is none
};
using Row = std::vector<Cell>;

// A PostgreSQL database (conninfo or URI) or a SQLite file (a path that exists). Not thread-safe.
class Database {
 public:
  static Result<Database> Open(const std::string& where);
  Database(Database&&) noexcept;
  ~Database();
  bool postgres() const;
  // Of one query. `search_path` is millrace in PostgreSQL.
  Result<std::vector<Row>> Ask(const std::string& sql);

 private:
  struct Impl;
  explicit Database(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Values as stored (common/model/job.h).
inline constexpr std::int64_t kStateSucceeded = 10;
inline constexpr std::int64_t kEndedSucceeded = 1, kEndedLost = 6;

struct JobFact {
  std::int64_t org = 0;
  std::optional<Uuid> run;
  std::string stage, kind, effect;
  std::vector<Uuid> depends_on;
  std::string options;  // JSON or empty
};
struct AttemptFact {
  Uuid job;
  std::int64_t token = 0, org = 0, ended = 0;
};
struct OutcomeFact {
  std::int64_t token = 0, org = 0, ended = 0, state = 0;
  WallTime recorded_at{};
};
struct RunFact {
  std::int64_t org = 0, generation = 0;
  std::string pipeline, schedule;
  std::optional<std::int64_t> slot;
  bool repeats = false;  // another run, at somebody's request: `millrace run retry`
};
struct SlotFact {
  std::int64_t org = 0, slot = 0, generation = 0;
  std::string pipeline, schedule, state, reason;
  std::optional<Uuid> run;
};
struct ScheduleFact {
  std::string cron, timezone, dst;
  bool active = true;  // and not paused
};

struct Facts {
  std::map<Uuid, JobFact> jobs;
  std::vector<AttemptFact> attempts;
  std::map<Uuid, OutcomeFact> outcomes;
  std::map<Uuid, RunFact> runs;
  std::map<Uuid, std::pair<std::int64_t, std::int64_t>> run_outcomes;  // org, state
  std::vector<SlotFact> slots;
  std::map<std::pair<std::string, std::string>, ScheduleFact> schedules;  // pipeline, schedule
  std::set<Uuid> live_jobs, live_runs;
  std::int64_t outbox = 0;
  bool pruned = false;  // retention took rows away: what is missing proves nothing
};

// All of it as of one instant.
Result<Facts> ReadFacts(Database& ledger);

}  // namespace millrace::checker
