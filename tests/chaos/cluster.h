// A whole distributed Millrace of real processes for the chaos tests: PostgreSQL, Redis (append-only file), two brokers, two
// workers, two schedulers, two scheduled pipelines. Everything lives in one folder and on free ports of 127.0.0.1.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/wire/stream_socket.h"
#include "tests/support/fault_shim.h"
#include "tests/support/process.h"
#include "tests/support/tcp_proxy.h"

namespace millrace::chaos {

class NetworkLab;

using testing::ProcessOptions;
using testing::TestProcess;

enum class Role : std::uint8_t { kPostgres, kRedis, kBroker, kWorker, kScheduler };

struct Member {
  Role role;
  std::string name;
  ProcessOptions options;
  TestProcess process;
  bool stopped = false;  // it was told to end and did
};

// By the ledger's clock. `to` is empty until the schedulers were stopped.
struct SlotSpan {
  WallTime from{}, to{};
};

// By how much PostgreSQL's clock was set back, at most, and its times from `from` to `to`, of which one may for that reason
// seem later than one that was taken after it.
struct ClockSteps {
  Millis back{0};
  WallTime from = WallTime::max(), to = WallTime::min();
};

struct ClusterOptions {
  std::string bin;           // folder of millrace and millrace-stage
  std::string failpoints;    // MILLRACE_FAILPOINTS of every Millrace process; empty: none
  bool copy = false;         // extracts copy their rows into the lake, so that they write a file of their own
  bool slow_target = false;  // the target tables' triggers make a load wait where failpoints would
  std::uint64_t seed = 1;
  NetworkLab* lab = nullptr;  // every process is a host of its own there, by its name; must outlive the cluster
  bool shimmed = false;       // Cluster::shim of every process but stages
  bool proxied = false;       // a TCP proxy before PostgreSQL, Redis and each broker's workers: Cluster::proxies
};

inline constexpr int kInputRows = 400;
inline constexpr int kRowsPerEffect = 360;  // of those: the ones whose id is not a multiple of ten
inline constexpr std::string_view kAppendPipeline = "chaos_append";
inline constexpr std::string_view kMergePipeline = "chaos_merge";
inline constexpr std::string_view kAppendCron =
    "*/3 * * * * *";  // publishing into one target is serial: there must be room for catching up
inline constexpr std::string_view kMergeCron = "*/5 * * * * *";

// Not thread-safe; start it on the main thread (tests/support/process.h).
class Cluster {
 public:
  // Starts the servers, creates databases and target tables, starts all processes, waits until both workers are connected,
  // applies the pipelines, waits for the first load, and from then on COMMIT of a load takes a moment (a deferred trigger on
  // millrace.receipt), so that it can be hit in the middle.
  static Result<Cluster> Start(const ClusterOptions& options);
  Cluster(Cluster&&) = default;
  ~Cluster();

  std::vector<Member*> OfRole(Role role);
  // After its process has ended: until it answers (Redis, PostgreSQL) or listens (brokers). An error: it does not, or it ended.
  Result<void> Restart(Member& member);
  // Every member that ended and was not stopped: its exit code and the end of its log.
  std::vector<std::string> Dead();
  Result<void> FlushRedis();
  // The text of Redis' answer; the message of an error has what it refused with.
  Result<std::string> AskRedis(std::initializer_list<std::string_view> command);
  // Lets Redis use `percent` of what it uses at that moment; 0: as much as it likes.
  Result<void> LimitRedis(unsigned percent);
  // Waits until every schedule has a slot that was not yet due when this was called, then ends the schedulers with SIGTERM. An
  // error names one that did not end with code 0 in time, or says that slots do not flow.
  Result<void> StopSchedulers();
  // Every instant of the schedules in it must be a slot: from when both pipelines were applied.
  const SlotSpan& slots() const { return slots_; }
  // One `millrace` command, to its end; its output is appended to `<dir>/logs/cli.log`.
  Result<int> Run(std::vector<std::string> arguments, Millis timeout);

  const ClusterOptions& options() const { return options_; }
  const std::string& dir() const { return dir_; }
  const std::string& ledger_dsn() const { return ledger_dsn_; }
  const std::string& warehouse_dsn() const { return warehouse_dsn_; }
  const std::vector<std::string>& client_endpoints() const { return client_endpoints_; }
  const std::vector<std::string>& worker_endpoints() const { return worker_endpoints_; }
  // PostgreSQL's (ledger and warehouse), Redis', then one per broker for its workers; empty unless `proxied`. The observer
  // and clients do not go through them.
  const std::vector<std::unique_ptr<testing::TcpProxy>>& proxies() const { return proxies_; }
  // Of a member, by its name; only if `shimmed`.
  testing::ShimControl& shim(const std::string& member) { return shims_.at(member); }
  // PostgreSQL's clock is this far from the true one from now on; only if `shimmed`.
  void StepServersClock(Millis offset);
  const ClockSteps& clock_steps() const { return clock_steps_; }
  std::string witness() const { return dir_ + "/witness"; }
  std::string checkpoints() const { return dir_ + "/checkpoints"; }
  std::string public_key() const { return dir_ + "/audit.key.pub"; }
  std::string history() const { return dir_ + "/history"; }  // of every Millrace process: MILLRACE_HISTORY
  // From now on the folder is removed with the cluster.
  void RemoveAtEnd() { keep_ = false; }

 private:
  Cluster() = default;
  Result<void> StartPostgres();
  Result<void> StartRedis();
  Result<redis::Connection> ConnectToRedis() const;
  Result<void> CreateTargets();
  Result<void> SlowCommits();
  Result<void> Sql(const std::string& dsn, std::string_view sql);
  Result<PgResult> AskLedger(std::string_view sql);
  Result<void> WaitForSlots();
  // Nobody else is given it while this lives; inside the lab there is nobody else.
  Result<std::uint16_t> TakePort(std::uint64_t salt);
  Result<void> WriteFiles();
  Result<void> WriteConfig();
  Result<std::uint16_t> ProxyTo(std::uint16_t port);  // the port to use instead; the same one unless `proxied`
  Result<std::vector<std::string>> OnHost(const std::string& name, std::vector<std::string> argv);
  Result<void> StartMembers();
  Result<void> WaitForWorkers();
  Result<void> Launch(Role role, std::string name, std::vector<std::string> argv);
  Result<void> WaitUntilItAnswers(Member& member);
  Result<void> WaitUntilItListens(Member& broker);
  std::vector<std::string> EndpointsOf(std::string_view broker) const;
  ProcessOptions Millrace(const std::string& name, std::vector<std::string> arguments) const;

  ClusterOptions options_;
  std::string dir_;
  bool keep_ = true;
  std::vector<wire::HeldPort> ports_;
  std::uint16_t postgres_port_ = 0, redis_port_ = 0;
  SlotSpan slots_;
  std::string ledger_dsn_, warehouse_dsn_;
  std::vector<std::string> client_endpoints_, worker_endpoints_;
  std::vector<std::unique_ptr<testing::TcpProxy>> proxies_;
  std::map<std::string, testing::ShimControl> shims_;
  Millis clock_offset_{0}, clock_least_{0}, clock_most_{0};  // of PostgreSQL's clock: that of now, and of all until now
  ClockSteps clock_steps_;
  std::vector<Member> members_;  // in the order of starting
};

}  // namespace millrace::chaos
