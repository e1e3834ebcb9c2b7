// Jobs, attempts, outcomes and runs as plain values: what the ledger stores, the wire carries and the dispatcher moves.
// The state machine is at the end. No I/O, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"

namespace millrace {

// Values are stored and sent: never renumber, never reuse.
enum class JobState : std::uint8_t {
  kBlocked = 1,    // waits for other jobs of its run
  kScheduled = 2,  // waits for a time: run_at or backoff
  kReady = 3,
  kRunning = 4,
  kCancelling = 5,
  // Terminal from here on: never change.
  kSucceeded = 10,
  kDead = 11,  // failed for good
  kCancelled = 12,
  kExpired = 13,
  kSkipped = 14,  // a job it depends on did not succeed
};
constexpr bool IsTerminal(JobState s) { return s >= JobState::kSucceeded; }
std::string_view Name(JobState state);
Result<JobState> ParseJobState(std::string_view name);

enum class RunState : std::uint8_t {
  kQueued = 1,  // overlap: queue, and an earlier run of the pipeline has not ended
  kRunning = 2,
  kCancelling = 3,
  kSucceeded = 10,
  kFailed = 11,
  kCancelled = 12,
  kSkipped = 13,
};
constexpr bool IsTerminal(RunState s) { return s >= RunState::kSucceeded; }
std::string_view Name(RunState state);
Result<RunState> ParseRunState(std::string_view name);

struct RetryPolicy {
  int max_attempts = kMaxAttemptsDefault;  // limits failures, 1 .. kMaxAttemptsMax
  Millis backoff_base{1000};               // doubles per failure (JobOptions::backoff: exponential), with jitter
  Millis backoff_cap{60'000};
  friend bool operator==(const RetryPolicy&, const RetryPolicy&) = default;
};
// How a job is executed.
inline constexpr std::string_view kJobKindStage = "stage";      // payload: StageTask as JSON (common/model/stage_task.h)
inline constexpr std::string_view kJobKindCommand = "command";  // payload: CommandTask as JSON
// Any other kind names a handler of a client-library worker; its payload is the client's own bytes.

enum class Backoff : std::uint8_t { kExponential = 1, kFixed = 2 };
enum class RunWhen : std::uint8_t {
  kAllSucceeded = 1,  // else it is skipped
  kAllEnded = 2,      // however they ended: a batch's callback
};
enum class Durability : std::uint8_t {
  kUnsaid = 0,  // its queue's (QueueSettings); a job that the ledger has is of kLedger then
  kLedger = 1,  // in the ledger before "accepted" is said
  kRedis = 2,   // in the queue only; its outcome is in the ledger. What it can lose: ops/docs/durability.md
};
enum class UniqueUntil : std::uint8_t {
  kStarted = 1,  // its first attempt was granted
  kEnded = 2,
  kWindow = 3,  // unique_window after it was submitted
};
std::string_view Name(Backoff backoff);
std::string_view Name(RunWhen when);
std::string_view Name(Durability durability);
std::string_view Name(UniqueUntil until);
std::optional<Backoff> ParseBackoff(std::string_view name);
std::optional<RunWhen> ParseRunWhen(std::string_view name);
std::optional<Durability> ParseDurability(std::string_view name);
std::optional<UniqueUntil> ParseUniqueUntil(std::string_view name);

// The wait after failure number `failures` (1-based). kFixed: the base. kExponential: uniform in [0, base * 2^(failures-1)]
// ("full jitter": jobs that failed together do not come back together). Never over the cap. `random` is any 64-bit number.
Millis BackoffDelay(const RetryPolicy& policy, Backoff kind, int failures, std::uint64_t random);

// What most jobs leave unsaid. Stored and sent as JSON (job_options.h); nothing at all while everything is at its default.
struct JobOptions {
  Backoff backoff = Backoff::kExponential;
  std::vector<std::string> no_retry;   // error classes that end the job at their first occurrence
  std::optional<WallTime> expires_at;  // not started by then: expired
  std::optional<WallTime> deadline;    // not ended by then: stopped, dead with error class "deadline_exceeded"
  std::string limit_key;               // its queue's limits per key count by it; empty: they do not concern it
  std::string unique_key;              // per org and queue; empty: not unique
  UniqueUntil unique_until = UniqueUntil::kEnded;
  Millis unique_window{0};  // kWindow only
  RunWhen run_when = RunWhen::kAllSucceeded;
  Durability durability = Durability::kUnsaid;
  bool has_sink = false;          // writes to a destination with a fence: a cancel raises it before it ends
  std::optional<JobId> retry_of;  // the dead job that this one repeats
  std::int64_t route_rows = 0;  // a stage that reads at most so many rows goes to kQueueSmall, else to kQueueLarge; 0 = neither
  friend bool operator==(const JobOptions&, const JobOptions&) = default;
};

// Where JobOptions::route_rows sends a stage (ops/docs/queue.md).
inline constexpr std::string_view kQueueSmall = "small";
inline constexpr std::string_view kQueueLarge = "large";

// One job as accepted: one immutable ledger row.
struct JobSpec {
  JobId id;  // made by the submitter
  OrgId org = kDefaultOrg;
  std::optional<RunId> run;
  std::string stage;  // its name inside the run; empty for a single job
  std::string kind;
  std::string queue = "default";
  int priority = kPriorityDefault;  // 0 (most urgent) .. kPriorityLevels - 1
  std::string payload;              // <= kPayloadBytesMax
  std::vector<JobId> depends_on;    // jobs of the same run
  std::string effect;               // effect key (see stage_task.h); empty for a job without sinks
  std::string root;                 // a path that the worker must reach; empty = any worker
  RetryPolicy retry;
  Millis timeout{0};               // of one attempt; 0 = none
  std::optional<WallTime> run_at;  // not before
  WallTime submitted_at{};
  JobOptions options;
  friend bool operator==(const JobSpec&, const JobSpec&) = default;
};

// Three numbers (design section 1): max_attempts limits failures; hand-backs and lost workers raise only deliveries; a crash
// of the job's own process raises all three.
struct Counters {
  std::uint32_t deliveries = 0;
  std::uint32_t failures = 0;
  std::uint32_t crashes = 0;
  friend bool operator==(const Counters&, const Counters&) = default;
};

// When a job that waits, whatever it waits for, ends without another attempt, and as what: at its deadline as kDead, at
// expires_at as kExpired, the latter only while no attempt of it was granted. The earlier one; a deadline at the same instant
// wins.
struct WaitEnd {
  WallTime at{};
  JobState state = JobState::kExpired;
  friend bool operator==(const WaitEnd&, const WaitEnd&) = default;
};
std::optional<WaitEnd> EndOfWait(const JobOptions& options, const Counters& counters);

// Error classes that the broker gives.
inline constexpr std::string_view kErrorCrashQuarantine = "crash_quarantine";    // it killed its process kCrashesMax times
inline constexpr std::string_view kErrorDeadlineExceeded = "deadline_exceeded";  // JobOptions::deadline passed
inline constexpr std::string_view kErrorExpired = "expired";                     // JobOptions::expires_at passed

// How an attempt ended.
enum class AttemptEnd : std::uint8_t {
  kSucceeded = 1,
  kFailed = 2,      // the work failed; retried while failures < max_attempts and the error is retryable
  kCrashed = 3,     // the job's own process died (signal, out of memory)
  kTimedOut = 4,    // killed at its deadline; counts as a failure
  kHandedBack = 5,  // the worker drains; counts only as a delivery
  kLost = 6,        // the worker is gone; counts only as a delivery
  kCancelled = 7,   // stopped because somebody asked for it; counts only as a delivery
};
std::string_view Name(AttemptEnd end);

// What a worker reports of an attempt, and what is stored of it.
struct AttemptReport {
  JobId job;
  Token token;
  AttemptEnd end = AttemptEnd::kFailed;
  bool retryable = true;    // an error that says "do not retry" ends the job at once
  std::string error_class;  // stable snake_case, e.g. "check_failed", "source_changed"; empty on success
  std::string error;        // one human line
  std::string result;       // JSON (StageResult for stages); <= kResultBytesMax
  std::int32_t exit_code = 0;
  std::int32_t signal = 0;
  std::string log_tail;  // last lines of the job's stderr; <= kLogTailBytesMax
  std::string worker;    // name of the worker
  WallTime started_at{};
  WallTime finished_at{};
  friend bool operator==(const AttemptReport&, const AttemptReport&) = default;
};

// An attempt that did not end the job: one immutable ledger row.
struct AttemptRow {
  AttemptReport report;
  OrgId org = kDefaultOrg;
  Counters counters;       // after this attempt
  WallTime next_run_at{};  // when it may start again
  std::string queue{};     // where it was routed by size; empty: its own
  friend bool operator==(const AttemptRow&, const AttemptRow&) = default;
};

// The terminal row of a job, which is also its last attempt. A job that ended without one (skipped, expired, cancelled
// while waiting) has a report with token 0.
struct OutcomeRow {
  AttemptReport report;
  OrgId org = kDefaultOrg;
  std::optional<RunId> run;
  JobState state = JobState::kDead;  // terminal
  Counters counters;
  WallTime recorded_at{};
  std::string queue{};  // where it was routed by size; empty: its own, or it was never ready
  friend bool operator==(const OutcomeRow&, const OutcomeRow&) = default;
};

// Where a run comes from.
struct RunSpec {
  RunId id;
  OrgId org = kDefaultOrg;
  std::string pipeline;
  std::int64_t version = 0;       // of the pipeline, 1-based
  std::string schedule;           // schedule's name; empty for a run by hand
  std::optional<WallTime> slot;   // UTC instant, before jitter
  std::uint32_t generation = 0;   // 0 = the fire itself
  std::string overlap = "queue";  // queue | allow | allow(N) | skip | cancel; what to do while another run is active
  std::string params = "{}";      // JSON object of the bound values
  WallTime created_at{};
  friend bool operator==(const RunSpec&, const RunSpec&) = default;
};

// Somebody asked that a job, or all of a run, be stopped: one immutable ledger row, durable before anything is stopped.
struct CancelRow {
  Uuid item;  // a RunId or the JobId of a single job
  bool is_run = false;
  OrgId org = kDefaultOrg;
  std::string actor;   // who: "cli root@host"
  std::string reason;  // free text; may be empty
  WallTime requested_at{};
  friend bool operator==(const CancelRow&, const CancelRow&) = default;
};
std::string CancelReason(std::string_view actor, std::string_view reason);  // "cancelled by cli root@host: wrong day"

// What a cancel came to.
enum class CancelEffect : std::uint8_t {
  kCancelled = 1,   // it had not started: it has ended
  kCancelling = 2,  // what runs of it is being stopped; Watch a run to see its end
  kEnded = 3,       // too late: it had ended as `state` says
  kUnknown = 4,     // no such run or single job in this org
};
std::string_view Name(CancelEffect effect);

struct RunOutcomeRow {
  RunId run;
  OrgId org = kDefaultOrg;
  RunState state = RunState::kFailed;  // terminal
  std::string reason;                  // "stage 'delays' is dead: ..."; empty on success
  WallTime finished_at{};
  friend bool operator==(const RunOutcomeRow&, const RunOutcomeRow&) = default;
};

// What became of a dead job; until then it is open. One immutable ledger row, at most one per job.
enum class DeadAction : std::uint8_t {
  kRequeued = 1,   // new_job repeats it
  kDiscarded = 2,  // somebody decided that nothing is to be done
};
std::string_view Name(DeadAction action);
struct DeadActionRow {
  JobId job;
  OrgId org = kDefaultOrg;
  DeadAction action = DeadAction::kDiscarded;
  std::optional<JobId> new_job;  // kRequeued
  std::string actor;             // who: "cli root@host"
  std::string reason;            // free text; may be empty
  WallTime at{};
  friend bool operator==(const DeadActionRow&, const DeadActionRow&) = default;
};

// What happened to a job, as seen by its owner.
enum class JobEvent : std::uint8_t {
  kUnblocked,  // every job it depends on succeeded; its time has come or it has none
  kDelayed,    // as kUnblocked, but run_at lies ahead
  kDue,        // run_at or the backoff has come
  kLeased,
  kRetry,     // the attempt did not end the job, and it waits for its backoff
  kRequeued,  // the attempt did not end the job, and it may start at once
  kSucceeded,
  kFailedForGood,
  kCancelRequested,
  kFenceNeeded,  // cancelled while it waits, but an earlier attempt may have left something at its sink
  kCancelled,    // its process group is gone and its sinks' fence is raised
  kExpired,
  kDeadlinePassed,  // while it waited
  kDependencyFailed,
};
// The next state. kConflict when `event` cannot happen in `from` (a terminal state never changes).
Result<JobState> NextState(JobState from, JobEvent event);

// Whether an attempt that ended like this ends the job, and with which counters. A job that crashed kCrashesMax times is dead
// whatever max_attempts says. Pure; the coordinator's only rule.
struct AttemptVerdict {
  Counters counters;                 // after the attempt
  std::optional<JobState> terminal;  // set when the job ends now
  bool immediate = false;            // not terminal: requeue at once (true) or after BackoffDelay (false)
};
AttemptVerdict Judge(const RetryPolicy& policy, Counters before, AttemptEnd end, bool retryable);

}  // namespace millrace
