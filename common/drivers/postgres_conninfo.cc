#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "common/drivers/postgres_impl.h"

namespace millrace {
namespace {

struct OptionsFree {
  void operator()(PQconninfoOption* options) const noexcept { PQconninfoFree(options); }
};

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string HomeFolder() {
  if (std::string home = Env("HOME"); !home.empty()) return home;
  passwd entry{};
  passwd* found = nullptr;
  char buffer[4096];
  if (::getpwuid_r(::geteuid(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr) return "";
  return found->pw_dir;
}

struct FileOption {
  const char* keyword;
  const char* variable;
  const char* in_home;
};
constexpr FileOption kFileOptions[] = {
    {"passfile", "PGPASSFILE", "/.pgpass"},
    {"sslcert", "PGSSLCERT", "/.postgresql/postgresql.crt"},
    {"sslkey", "PGSSLKEY", "/.postgresql/postgresql.key"},
    {"sslrootcert", "PGSSLROOTCERT", "/.postgresql/root.crt"},
    {"sslcrl", "PGSSLCRL", "/.postgresql/root.crl"},
};

// The files that any service of a service file names.
void AddFilesOfServices(const std::string& path, std::vector<std::string>& files) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    for (const FileOption& option : kFileOptions)
      if (const std::string key = std::string(option.keyword) + "="; line.starts_with(key))
        files.push_back(line.substr(key.size()));
}

}  // namespace

Result<PgConninfo> PgConninfo::Parse(const std::string& dsn) {
  char* message = nullptr;
  const std::unique_ptr<PQconninfoOption, OptionsFree> parsed(PQconninfoParse(dsn.c_str(), &message));
  if (message != nullptr) PQfreemem(message);  // may quote a part of the dsn, and with it a password
  if (!parsed) return Fail(ErrorCode::kInvalidArgument, "dsn: neither a libpq conninfo string nor a postgresql:// URI");
  PgConninfo out;
  out.is_uri_ = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
  for (const PQconninfoOption* o = parsed.get(); o->keyword != nullptr; ++o)
    if (o->val != nullptr) out.values_.emplace(o->keyword, o->val);
  return out;
}

std::optional<std::string> PgConninfo::Value(std::string_view keyword) const {
  const auto found = values_.find(std::string(keyword));
  return found == values_.end() ? std::nullopt : std::optional(found->second);
}

Result<void> PgConninfo::Check() const {
  constexpr std::string_view kHint =
      "is a part of the password missing its percent-encoding? '/' is %2F, '@' is %40, ':' is %3A, '#' is %23, '?' is %3F";
  const auto digits_or_commas = [](char c) { return (c >= '0' && c <= '9') || c == ','; };
  if (const auto port = Value("port"); port && !std::ranges::all_of(*port, digits_or_commas))
    return Fail(ErrorCode::kInvalidArgument, "postgres: dsn: its port is not a number{}{}", is_uri_ ? "; " : "",
                is_uri_ ? kHint : "");
  if (!is_uri_) return {};
  for (const std::string_view part : {"host", "dbname"})
    if (const auto value = Value(part); value && value->find('@') != std::string::npos)
      return Fail(ErrorCode::kInvalidArgument, "postgres: dsn: its {} contains an '@'; {}", part, kHint);
  return {};
}

std::vector<std::string> PgFilesOf(const std::string& dsn) {
  std::vector<std::string> files;
  const auto parsed = PgConninfo::Parse(dsn);
  if (!parsed) return files;
  const std::string home = HomeFolder();
  for (const FileOption& option : kFileOptions) {
    std::string path = parsed->Value(option.keyword).value_or(Env(option.variable));
    if (path.empty() && !home.empty()) path = home + option.in_home;
    if (!path.empty()) files.push_back(std::move(path));
  }
  if (!parsed->Value("service") && Env("PGSERVICE").empty()) return files;
  std::string services = Env("PGSERVICEFILE");
  if (services.empty() && !home.empty()) services = home + "/.pg_service.conf";
  if (!services.empty()) {
    files.push_back(services);
    AddFilesOfServices(services, files);
  }
  return files;
}

}  // namespace millrace
