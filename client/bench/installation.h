// What a benchmark runs against: an installation that is there, or one that is started for it in a temporary folder (Redis
// and PostgreSQL, or SQLite; a broker; optionally workers and a scheduler of the product) and removed afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/bench/processes.h"
#include "common/base/clock.h"
#include "common/base/fd.h"
#include "common/base/result.h"

namespace millrace::bench {

// How to reach it. Secrets are in the endpoints: never print them.
struct Installation {
  std::string clients, workers;                          // the broker's endpoints
  std::string ledger;                                    // conninfo or URI of PostgreSQL, or path of the SQLite file
  bool sqlite = false;                                   // ledger and queue
  std::string redis;                                     // as redis::ParseEndpoint takes it; empty with SQLite
  std::string queue_path;                                // of SQLite's queue
  std::string config;                                    // configuration file for further processes; empty: not ours
  std::vector<std::pair<std::string, pid_t>> processes;  // of this host, by role: broker, redis, postgres, ...
};

struct OwnOptions {
  bool sqlite = false;                   // embedded stores instead of Redis and PostgreSQL
  std::string appendfsync = "everysec";  // always, everysec or no
  int workers = 0;                       // processes of `millrace worker`, for stages and commands
  std::uint32_t worker_concurrency = 2;
  bool scheduler = false;
  std::string log_level = "warn";
  bool keep = false;  // leave the folder behind
};

class OwnInstallation {
 public:
  // Starts everything and waits until the broker owns its shards. kNotFound: a server is not installed (says what to do);
  // kUnavailable: something ended by itself (with the last line of its log).
  static Result<OwnInstallation> Start(const OwnOptions& options);
  OwnInstallation(OwnInstallation&&) = default;
  OwnInstallation& operator=(OwnInstallation&&) = delete;
  ~OwnInstallation();  // stops all of it in order, by process id, and removes the folder

  const Installation& at() const { return at_; }
  const std::string& folder() const { return folder_.path; }
  // The folder stays for whoever wants to read the logs.
  void Keep() { folder_.keep = true; }
  // The last line of a process's log, for messages.
  std::string LastWords(const std::string& name) const;

 private:
  struct Folder {
    std::string path;
    bool keep = false;
    Folder() = default;
    Folder(Folder&& other) noexcept : path(std::exchange(other.path, {})), keep(other.keep) {}
    Folder& operator=(Folder&&) = delete;
    ~Folder();
  };
  OwnInstallation() = default;
  Result<void> StartProcess(const std::string& name, std::vector<std::string> argv, int stop_signal, const std::string& user);
  Result<void> StartRedis(const OwnOptions& options);
  Result<void> StartPostgres();
  Result<void> WriteConfig(const OwnOptions& options);
  Result<void> StartMillrace(const OwnOptions& options);

  Result<std::uint16_t> HoldPort();  // until the end of the installation

  Folder folder_;  // first: removed when nothing writes into it any more
  std::vector<Fd> held_ports_;
  std::vector<std::pair<std::string, Process>> processes_;
  Installation at_;
};

// Waits until the broker at `endpoint` answers, owns every shard and, if asked, knows so many workers. kUnavailable when not
// within `timeout`.
Result<void> AwaitBroker(const std::string& endpoint, std::size_t workers, Millis timeout);

// A new folder under the system's temporary folder that every user may enter.
Result<std::string> MakeTemporaryFolder();

}  // namespace millrace::bench
