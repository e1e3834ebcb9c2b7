// What travels between client, broker and worker: one message = a header (protocol version, kind) and one msgpack body.
// Batches everywhere. Byte layout and rules for other languages: ops/docs/wire.md. Codec in codec.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"
#include "common/model/queue_settings.h"

namespace millrace::wire {

inline constexpr std::uint8_t kProtocolVersion = 1;

// Never renumber, never reuse.
enum class Kind : std::uint8_t {
  kUnknown = 0,
  // worker -> broker
  kHello = 1,
  kBeat = 2,
  kEnded = 3,
  kGoodbye = 4,
  kOrphans = 5,
  // broker -> worker
  kWelcome = 16,
  kGrant = 17,
  kEndedReply = 18,
  kRevoke = 19,
  kBrokerBeat = 20,
  kAdopt = 21,
  // client -> broker
  kSubmitJobs = 32,
  kSubmitRun = 33,
  kWatch = 34,
  kStatus = 35,
  kCancel = 36,
  kSetQueue = 40,
  kListQueues = 41,
  kListUnserved = 42,
  kListKept = 43,
  // broker -> client
  kSubmitReply = 48,
  kRunUpdate = 49,
  kStatusReply = 50,
  kProblem = 51,
  kCancelReply = 52,
  kSetQueueReply = 56,
  kListQueuesReply = 57,
  kListUnservedReply = 58,
  kListKeptReply = 59,
};

// ---- worker -> broker ----------------------------------------------------------------------------------------------------
// First message of a session, and again after every reconnect or when the broker says it does not know the session.
struct Hello {
  WorkerId worker;
  std::string name;
  std::vector<std::string> queues;  // empty = all
  std::vector<std::string> kinds;   // job kinds it can run
  std::vector<std::string> roots;   // absolute paths it can reach; empty = all
  std::uint32_t concurrency = 1;
  std::uint64_t credit_limit = 0;  // see Beat
  struct Held {
    JobId job;
    Token token;
    friend bool operator==(const Held&, const Held&) = default;
  };
  std::vector<Held> held;  // attempts it still runs, for the new owner to keep or revoke
  friend bool operator==(const Hello&, const Hello&) = default;
};
// Each kHeartbeatInterval, from a thread that runs no job: renews every lease the worker holds.
struct Beat {
  WorkerId worker;
  std::uint64_t credit_limit = 0;  // grants the worker will have taken since Hello, all in all: monotonic, so it cannot race
  std::vector<Hello::Held> held;   // every attempt it runs; a grant that stays missing here was lost on the way
  struct Progress {
    JobId job;
    std::int64_t rows = 0, bytes = 0;
    friend bool operator==(const Progress&, const Progress&) = default;
  };
  std::vector<Progress> progress;
  bool draining = false;
  friend bool operator==(const Beat&, const Beat&) = default;
};
struct Ended {  // repeated until EndedReply answers it
  WorkerId worker;
  std::uint64_t credit_limit = 0;
  std::vector<AttemptReport> reports;
  friend bool operator==(const Ended&, const Ended&) = default;
};
struct Goodbye {
  WorkerId worker;
  friend bool operator==(const Goodbye&, const Goodbye&) = default;
};
// Attempts whose broker is gone or has given their shard up: each beat, to every broker, until one adopts or revokes them.
struct Orphans {
  WorkerId worker;
  std::vector<Hello::Held> items;
  friend bool operator==(const Orphans&, const Orphans&) = default;
};

// ---- broker -> worker ----------------------------------------------------------------------------------------------------
struct Welcome {
  std::string broker;
  std::uint32_t heartbeat_ms = 1000, lease_ms = 3000;
  friend bool operator==(const Welcome&, const Welcome&) = default;
};
struct Grant {
  struct Job {
    JobId id;
    Token token;
    std::string kind;
    std::string payload;
    std::uint32_t timeout_ms = 0;  // 0 = none
    std::uint32_t delivery = 1;    // 1-based
    bool fence_only = false;  // do not work: raise the fence of the job's sink and report kCancelled, or what its receipt says
    friend bool operator==(const Job&, const Job&) = default;
  };
  std::vector<Job> jobs;
  friend bool operator==(const Grant&, const Grant&) = default;
};
struct EndedReply {  // sent when the outcome is durable (or refused for good)
  struct Item {
    JobId job;
    Token token;
    bool accepted = false;
    std::string reason;
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items;
  friend bool operator==(const EndedReply&, const EndedReply&) = default;
};
// The reason of a Revoke that does not stop anything: the attempts are orphans from now on, another broker will adopt them.
inline constexpr std::string_view kHandedOver = "handed_over";
inline constexpr std::string_view kNoLease = "no_lease";    // the broker has no such lease: nobody wants the attempt
inline constexpr std::string_view kNotOwner = "not_owner";  // EndedReply: another broker may want the report
struct Revoke {                                             // stop these attempts: they hold no lease (any more)
  struct Item {
    JobId job;
    Token token;
    std::string reason;
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items;
  friend bool operator==(const Revoke&, const Revoke&) = default;
};
struct BrokerBeat {
  bool known = true;
  friend bool operator==(const BrokerBeat&, const BrokerBeat&) = default;
};  // known = false: say Hello again
struct Adopt {  // these orphans hold a lease of this broker's now, under the token they have
  std::vector<Hello::Held> items;
  friend bool operator==(const Adopt&, const Adopt&) = default;
};

// ---- client -> broker ----------------------------------------------------------------------------------------------------
struct SubmitJobs {
  std::uint64_t request = 0;  // echoed
  std::vector<JobSpec> jobs;
  friend bool operator==(const SubmitJobs&, const SubmitJobs&) = default;
};
struct SubmitRun {  // planned by the client (common/model/run_plan.h): the broker needs no pipeline file
  std::uint64_t request = 0;
  RunSpec run;
  std::vector<JobSpec> jobs;
  bool watch = false;  // send RunUpdate until it ends
  friend bool operator==(const SubmitRun&, const SubmitRun&) = default;
};
struct Watch {  // a run of that org; one of another is not_found
  std::uint64_t request = 0;
  OrgId org = kDefaultOrg;
  RunId run;
  friend bool operator==(const Watch&, const Watch&) = default;
};
struct Status {
  std::uint64_t request = 0;
  friend bool operator==(const Status&, const Status&) = default;
};
struct Cancel {  // runs and single jobs of one org
  std::uint64_t request = 0;
  OrgId org = kDefaultOrg;
  struct Item {
    Uuid id;
    bool is_run = false;
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items;
  std::string actor, reason;
  friend bool operator==(const Cancel&, const Cancel&) = default;
};

struct SetQueue {  // settings.revision: the one that is replaced, 0 when there is none
  std::uint64_t request = 0;
  QueueSettings settings;
  std::string actor;
  friend bool operator==(const SetQueue&, const SetQueue&) = default;
};
struct ListQueues {  // those that were ever set, and those in which something waits or runs
  std::uint64_t request = 0;
  OrgId org = kDefaultOrg;
  std::string after;  // only names after this one; empty: from the first
  friend bool operator==(const ListQueues&, const ListQueues&) = default;
};
struct ListUnserved {  // what is ready and taken by no connected worker
  std::uint64_t request = 0;
  OrgId org = kDefaultOrg;
  friend bool operator==(const ListUnserved&, const ListUnserved&) = default;
};
struct ListKept {  // jobs of `durability: redis` that the ledger does not know: they wait, or their first attempt runs
  std::uint64_t request = 0;
  OrgId org = kDefaultOrg;
  std::string queue, kind;  // only of these; empty: of all
  std::string cursor;       // ListKeptReply's; empty: from the beginning
  friend bool operator==(const ListKept&, const ListKept&) = default;
};

// ---- broker -> client ----------------------------------------------------------------------------------------------------
struct SubmitReply {  // after the ledger has it: "accepted"
  std::uint64_t request = 0;
  struct Item {
    Uuid id;
    bool duplicate = false;
    Uuid conflict_with;  // not nil: not accepted, that job holds its unique key
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> accepted;  // jobs, or the one run
  friend bool operator==(const SubmitReply&, const SubmitReply&) = default;
};
struct RunUpdate {
  RunId run;
  RunState state = RunState::kRunning;
  std::string reason;
  struct Stage {
    JobId job;
    std::string stage;
    JobState state = JobState::kBlocked;
    Counters counters;
    std::string worker;
    std::int64_t rows = 0, bytes = 0;  // progress while running
    std::string result;                // JSON, once ended
    std::string error;
    friend bool operator==(const Stage&, const Stage&) = default;
  };
  std::vector<Stage> changed;  // stages whose state or progress changed since the last update; all in the first
  friend bool operator==(const RunUpdate&, const RunUpdate&) = default;
};
struct StatusReply {
  std::uint64_t request = 0;
  std::string broker;
  struct Shard {
    std::uint16_t shard = 0;
    std::uint32_t epoch = 0;
    std::uint64_t ready = 0, running = 0, runs = 0;
    friend bool operator==(const Shard&, const Shard&) = default;
  };
  std::vector<Shard> shards;
  struct Worker {
    std::string name;
    std::uint32_t concurrency = 0, running = 0;
    friend bool operator==(const Worker&, const Worker&) = default;
  };
  std::vector<Worker> workers;
  friend bool operator==(const StatusReply&, const StatusReply&) = default;
};
// Sent when the request is durable.
struct CancelReply {
  std::uint64_t request = 0;
  struct Item {
    Uuid id;
    CancelEffect effect = CancelEffect::kUnknown;
    std::string state;  // kEnded: the terminal state's name; kUnknown, when it is a job of a run: the run's id
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items;
  friend bool operator==(const CancelReply&, const CancelReply&) = default;
};
struct SetQueueReply {  // sent when the settings are durable; they count from then on
  std::uint64_t request = 0;
  std::int64_t revision = 0;
  friend bool operator==(const SetQueueReply&, const SetQueueReply&) = default;
};
struct ListQueuesReply {
  std::uint64_t request = 0;
  struct Item {
    QueueSettings settings;
    std::uint64_t ready = 0, running = 0;
    std::uint64_t waiting = 0, waiting_bytes = 0;  // ready, due later, and being accepted
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> queues;  // by name, at most kQueuesListedMax
  bool more = false;
  friend bool operator==(const ListQueuesReply&, const ListQueuesReply&) = default;
};
struct ListUnservedReply {
  std::uint64_t request = 0;
  struct Item {  // jobs of one queue, kind and root
    std::string queue, kind, root;
    std::uint64_t ready = 0;
    std::optional<WallTime> since;  // from when on they were seen so; unset: not seen yet but for this answer
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items;    // by queue, kind and root, at most kQueuesListedMax
  bool more = false;          // there are others
  std::uint64_t workers = 0;  // that are connected
  friend bool operator==(const ListUnservedReply&, const ListUnservedReply&) = default;
};
struct ListKeptReply {  // what is there all the time is in one of the pages; some may be in several
  std::uint64_t request = 0;
  std::vector<JobId> jobs;  // at most kKeptListedMax; a page may be empty
  std::string cursor;       // where the next page begins; empty: this is the last
  friend bool operator==(const ListKeptReply&, const ListKeptReply&) = default;
};
struct Problem {  // the request was refused
  std::uint64_t request = 0;
  std::string code;  // Name(ErrorCode), or a narrower stable word such as "not_owner"
  std::string message;
  friend bool operator==(const Problem&, const Problem&) = default;
};

using Message =
    std::variant<Hello, Beat, Ended, Goodbye, Orphans, Welcome, Grant, EndedReply, Revoke, BrokerBeat, Adopt, SubmitJobs,
                 SubmitRun, Watch, Status, Cancel, SetQueue, ListQueues, ListUnserved, ListKept, SubmitReply, RunUpdate,
                 StatusReply, CancelReply, SetQueueReply, ListQueuesReply, ListUnservedReply, ListKeptReply, Problem>;

// Encodes header and body. The bytes are one ZeroMQ frame.
std::string Encode(const Message& message);
// kInvalidArgument: not a message of this protocol (version, kind, type, a limit exceeded, trailing bytes). Never allocates
// more than the frame's own size times a small constant.
Result<Message> Decode(std::string_view frame);

}  // namespace millrace::wire
