#include "client/cli/context.h"

#include <unistd.h>

#include <climits>
#include <cstdio>
#include <filesystem>

#include "common/base/log.h"

namespace millrace::cli {

Result<std::unique_ptr<Context>> Context::Make(const Options& options, std::string process) {
  MILLRACE_TRY_ASSIGN(const OutputFormat format, ParseOutputFormat(options.output));
  ConfigInputs inputs = ConfigInputsOfProcess();
  if (!options.config_file.empty()) inputs.file = options.config_file;
  if (!options.home.empty()) inputs.flags.emplace_back("home", options.home);
  if (!options.log_level.empty()) inputs.flags.emplace_back("log.level", options.log_level);
  for (const std::string& setting : options.settings) {
    const std::size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0)
      return Fail(ErrorCode::kInvalidArgument, "--set '{}' is not of the form key=value", setting);
    inputs.flags.emplace_back(setting.substr(0, equals), setting.substr(equals + 1));
  }
  MILLRACE_TRY_ASSIGN(LoadedConfig loaded, LoadConfig(inputs));
  ConfigureLog(loaded.config.log_level, loaded.config.log_format, std::move(process));
  return std::unique_ptr<Context>(new Context(std::move(loaded), format));
}

Result<std::unique_ptr<Ledger>> Context::OpenLedger(Create create, std::string_view actor) {
  LedgerOptions options;
  options.dsn = config().ledger.dsn.Reveal();
  options.clock = &clock_;
  options.writer = ids_.Next<AuditWriterId>();
  options.actor = actor;
  options.shard_count = config().broker.shards;
  if (embedded() && create == Create::kNo && !std::filesystem::exists(options.dsn))
    return Fail(ErrorCode::kNotFound, "there is no ledger at {}: run a pipeline first, or give another --home", options.dsn);
  auto ledger = embedded() ? OpenSqliteLedger(options, Deadline()) : OpenPostgresLedger(options, Deadline());
  if (!ledger) return Prefixed(std::move(ledger.error()), "ledger");
  if (create == Create::kYes) {
    if (auto migrated = (*ledger)->Migrate(Deadline()); !migrated) return Prefixed(std::move(migrated.error()), "ledger");
  }
  return std::move(*ledger);
}

std::vector<ConnectionSpec> Context::Connections() const {
  std::vector<ConnectionSpec> connections;
  for (const auto& [name, connection] : config().connections)
    connections.push_back({.name = name,
                           .type = connection.type == LedgerConfig::Kind::kSqlite ? "sqlite" : "postgres",
                           .dsn = std::string(connection.dsn.Reveal())});
  return connections;
}

ExitCode Complain(const Error& error) {
  fmt::print(stderr, "millrace: {}\n", error.message);
  return ExitCodeFor(error.code);
}

std::string StageProgram() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) return "millrace-stage";
  return std::filesystem::path(std::string(path, static_cast<std::size_t>(n))).parent_path() / "millrace-stage";
}

}  // namespace millrace::cli
