// What every command starts from: configuration, clock, ids, and the ledger it opens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli/exit_code.h"
#include "client/cli/options.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/config/config.h"
#include "common/ledger/ledger.h"
#include "common/model/stage_task.h"

namespace millrace::cli {

inline constexpr Millis kLedgerCallTimeout{15'000};
inline constexpr Millis kMigrateTimeout{600'000};  // a long history is read once

class Context {
 public:
  // Loads the configuration and sets logging up. `process` names this process in log lines.
  static Result<std::unique_ptr<Context>> Make(const Options& options, std::string process);

  const Config& config() const { return loaded_.config; }
  const std::vector<ConfigValue>& config_values() const { return loaded_.values; }
  OutputFormat format() const { return quiet_ ? OutputFormat::kIds : format_; }
  // For what has no ids: the same with --quiet as without.
  OutputFormat full_format() const { return format_; }
  // Whom the command speaks for: what it reads and writes is of this org alone.
  OrgId org() const { return config().org; }
  // " --org 7", for a command that a message names; empty for the default org.
  std::string OrgOption() const;
  const Clock& clock() const { return clock_; }
  Random& random() { return random_; }
  IdGenerator& ids() { return ids_; }
  MonoTime Deadline() const { return clock_.Now() + kLedgerCallTimeout; }

  enum class Create : bool { kNo, kYes };
  // One connection, for one thread. kYes: makes and upgrades the schema. kNo: kNotFound when nothing was ever stored there.
  Result<std::unique_ptr<Ledger>> OpenLedger(Create create, std::string_view actor);
  bool embedded() const { return config().ledger.kind == LedgerConfig::Kind::kSqlite; }
  // Where a broker answers clients of other processes: the socket in the home of `millrace up`, or broker.listen_clients.
  std::string ClientEndpoint() const;
  std::vector<ConnectionSpec> Connections() const;  // with their secrets: for the worker and the query command

 private:
  Context(LoadedConfig loaded, OutputFormat format, bool quiet)
      : loaded_(std::move(loaded)), format_(format), quiet_(quiet), ids_(clock_, random_) {}

  LoadedConfig loaded_;
  OutputFormat format_;
  bool quiet_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_;
};

// -n of a list. kInvalidArgument: not in [1, max].
Result<std::uint32_t> CountOf(const Options& options, std::uint32_t fallback, std::uint32_t max);

// Prints "millrace: <message>" on stderr and returns the exit code of the error.
ExitCode Complain(const Error& error);

// The same for a command that reads a pipeline file: the file's own errors come rendered, with their places, and need no
// prefix.
ExitCode ComplainAboutFile(const Error& error);

// How every command ends: its own exit code, or its error said on stderr.
ExitCode Finish(const Result<ExitCode>& result);

// Who gives this command, for the audit trail: "cli root@host". The user is the process's, whatever its environment says.
std::string Actor();

// Where this installation keeps millrace-stage: beside the running executable.
std::string StageProgram();

}  // namespace millrace::cli
