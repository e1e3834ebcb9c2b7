#include "client/cli/context.h"

#include <pwd.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <cstdio>
#include <filesystem>

#include "client/cli/engine.h"
#include "client/cli/home.h"
#include "common/base/log.h"
#include "common/base/tell.h"
#include "common/ledger/schema_version.h"

namespace millrace::cli {
namespace {

constexpr std::uintmax_t kFullDiskBytes = 1u << 20;

// A damaged file or a full disk (for which SQLite has many names) comes with what to do about it.
Error LedgerError(Error error, bool embedded, const std::string& home) {
  error.message = "ledger: " + error.message;
  std::error_code ec;
  const auto space = std::filesystem::space(home, ec);
  if (embedded && error.code == ErrorCode::kUnavailable && !ec && space.available < kFullDiskBytes)
    error.message += fmt::format("; the disk is full: free some space for {}", home);
  if (embedded && error.code == ErrorCode::kCorrupt)
    error.message += "; restore this file from a backup, or move it away to begin with an empty history";
  return error;
}

}  // namespace

Result<std::unique_ptr<Context>> Context::Make(const Options& options, std::string process) {
  MILLRACE_TRY_ASSIGN(const OutputFormat format, ParseOutputFormat(options.output));
  ConfigInputs inputs = ConfigInputsOfProcess();
  if (!options.config_file.empty()) inputs.file = options.config_file;
  if (!options.home.empty()) inputs.flags.emplace_back("home", options.home);
  if (!options.org.empty()) inputs.flags.emplace_back("org", options.org);
  if (!options.log_level.empty()) inputs.flags.emplace_back("log.level", options.log_level);
  for (const std::string& setting : options.settings) {
    const std::size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0)
      return Fail(ErrorCode::kInvalidArgument, "--set '{}' is not of the form key=value", setting);
    inputs.flags.emplace_back(setting.substr(0, equals), setting.substr(equals + 1));
  }
  MILLRACE_TRY_ASSIGN(LoadedConfig loaded, LoadConfig(inputs));
  std::error_code ec;
  const auto home = std::filesystem::status(loaded.config.home, ec);
  if (loaded.config.ledger.kind == LedgerConfig::Kind::kSqlite && std::filesystem::exists(home) &&
      !std::filesystem::is_directory(home))
    return Fail(ErrorCode::kInvalidArgument, "--home '{}' is not a directory: give another one", loaded.config.home);
  ConfigureLog(loaded.config.log_level, loaded.config.log_format, std::move(process));
  return std::unique_ptr<Context>(new Context(std::move(loaded), format, options.quiet));
}

Result<std::unique_ptr<Ledger>> Context::OpenLedger(Create create, std::string_view actor) {
  LedgerOptions options;
  options.dsn = config().ledger.dsn.Reveal();
  options.clock = &clock_;
  options.writer = ids_.Next<AuditWriterId>();
  options.actor = actor;
  options.shard_count = config().broker.shards;
  options.stop = StopSignalWaits;
  if (embedded() && create == Create::kNo && !std::filesystem::exists(options.dsn))
    return Fail(ErrorCode::kNotFound, "there is no ledger at {}: run a pipeline first, or give another --home", options.dsn);
  if (embedded() && create == Create::kNo) {
    if (auto known = CheckSqliteLedgerVersion(options.dsn, clock_, Deadline()); !known)
      return std::unexpected(LedgerError(std::move(known.error()), true, config().home));
  }
  if (embedded() && create == Create::kYes) MILLRACE_TRY(MakeHome(config().home));
  auto ledger = embedded() ? OpenSqliteLedger(options, Deadline()) : OpenPostgresLedger(options, Deadline());
  if (!ledger) return std::unexpected(LedgerError(std::move(ledger.error()), embedded(), config().home));
  if (create == Create::kYes) {
    if (auto migrated = (*ledger)->Migrate(clock_.Now() + kMigrateTimeout); !migrated)
      return std::unexpected(LedgerError(std::move(migrated.error()), embedded(), config().home));
  }
  return std::move(*ledger);
}

std::string Context::ClientEndpoint() const {
  return embedded() ? "ipc://" + config().home + "/broker.sock" : config().broker.listen_clients;
}

std::string Context::OrgOption() const { return org() == kDefaultOrg ? "" : fmt::format(" --org {}", org().value()); }

std::vector<ConnectionSpec> Context::Connections() const {
  std::vector<ConnectionSpec> connections;
  for (const auto& [name, connection] : config().connections)
    connections.push_back({.name = name,
                           .type = connection.type == LedgerConfig::Kind::kSqlite ? "sqlite" : "postgres",
                           .dsn = std::string(connection.dsn.Reveal())});
  return connections;
}

Result<std::uint32_t> CountOf(const Options& options, std::uint32_t fallback, std::uint32_t max) {
  const std::uint32_t count = options.count.value_or(fallback);
  if (count < 1 || count > max) return Fail(ErrorCode::kInvalidArgument, "-n: {} is not in [1, {}]", count, max);
  return count;
}

ExitCode Complain(const Error& error) {
  Tell("millrace: {}\n", error.message);
  return ExitCodeFor(error.code);
}

ExitCode ComplainAboutFile(const Error& error) {
  const std::string_view text = error.message;
  if (error.code != ErrorCode::kRejected || !text.ends_with('\n')) return Complain(error);
  Tell("{}", text);
  return ExitCode::kWorkFailed;
}

ExitCode Finish(const Result<ExitCode>& result) { return result ? *result : ComplainAboutFile(result.error()); }

std::string Actor() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '?';
  const passwd* user = ::getpwuid(::geteuid());
  return fmt::format("cli {}@{}", user != nullptr ? user->pw_name : std::to_string(::geteuid()), host.data());
}

std::string StageProgram() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) return "millrace-stage";
  return std::filesystem::path(std::string(path, static_cast<std::size_t>(n))).parent_path() / "millrace-stage";
}

}  // namespace millrace::cli
