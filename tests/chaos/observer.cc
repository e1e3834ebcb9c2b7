#include "tests/chaos/observer.h"

#include <charconv>
#include <utility>

#include "common/base/ids.h"
#include "common/base/limits.h"

namespace millrace::chaos {
namespace {

constexpr Millis kAskTimeout{5000};
constexpr std::string_view kSessionsSql =
    "select application_name, coalesce(client_port, 0), coalesce(state, ''), lower(left(query, 200)), exists (select 1 from "
    "millrace.fence f"
    " where left(encode(sha256(convert_to(f.effect, 'UTF8')), 'hex'), 16) = split_part(application_name, ' ', 3)"
    " and f.effect like '%/chaos_append/%') from pg_stat_activity where datname = current_database() and application_name like "
    "'millrace load %' order by pid";

// The statement that a session runs, or ran last, says where it is: each place that makes a load wait follows another one.
Phase PhaseOf(std::string_view state, std::string_view query) {
  const bool idle = state == "idle";
  if (query.starts_with("copy ") || query.starts_with("analyze ")) return Phase::kRowsSent;
  if (!idle && (query.starts_with("insert into millrace.receipt") || query.starts_with("update millrace.target")))
    return Phase::kReceipt;
  if (query == "commit") return idle ? Phase::kCommitted : Phase::kCommitting;
  if (idle && query.starts_with("insert into millrace.fence")) return Phase::kFenced;
  return Phase::kNone;
}

}  // namespace

std::string_view Name(Phase phase) {
  switch (phase) {
    case Phase::kNone: return "no load";
    case Phase::kFenced: return "fenced";
    case Phase::kRowsSent: return "rows sent";
    case Phase::kReceipt: return "receipt written";
    case Phase::kCommitting: return "in COMMIT";
    case Phase::kCommitted: return "committed";
  }
  return "?";
}

Observer::Observer(std::string ledger_dsn, std::string warehouse_dsn)
    : ledger_{std::move(ledger_dsn), nullptr}, warehouse_{std::move(warehouse_dsn), nullptr} {}

// Once more when the server went away since the last look: nothing here changes anything.
Result<PgResult> Observer::Ask(Database& database, std::string_view sql, const PgParams& params) {
  auto found = AskOnce(database, sql, params);
  if (!found && database.connection && database.connection->broken()) return AskOnce(database, sql, params);
  return found;
}

Result<PgResult> Observer::AskOnce(Database& database, std::string_view sql, const PgParams& params) {
  const MonoTime deadline = clock_.Now() + kAskTimeout;
  if (!database.connection || database.connection->broken()) {
    PgOptions options;
    options.dsn = database.dsn;
    options.application_name = "chaos observer";
    MILLRACE_TRY_ASSIGN(database.connection, PgConnection::Connect(options, clock_, deadline));
  }
  return database.connection->QueryOnce(sql, params, deadline);
}

std::vector<LoadInFlight> Observer::Loads() {
  std::vector<LoadInFlight> loads;
  const auto sessions = Ask(warehouse_, kSessionsSql);
  if (!sessions) return loads;
  for (int i = 0; i < sessions->rows(); ++i) {
    const std::string name = sessions->Text(i, 0);  // "millrace load <hash> <token>"
    const std::string_view rest = std::string_view(name).substr(14);
    const auto space = rest.find(' ');
    LoadInFlight load;
    load.effect_hash = std::string(rest.substr(0, space));
    if (space != std::string_view::npos) std::from_chars(rest.data() + space + 1, rest.data() + rest.size(), load.token);
    load.client_port = static_cast<std::uint16_t>(sessions->Int(i, 1));
    load.phase = PhaseOf(sessions->Bytes(i, 2), sessions->Bytes(i, 3));
    load.append = sessions->Bool(i, 4);
    loads.push_back(std::move(load));
  }
  return loads;
}

std::int64_t Observer::FenceToken(std::string_view effect_hash) {
  const auto found =
      Ask(warehouse_, "select token from millrace.fence where left(encode(sha256(convert_to(effect, 'UTF8')), 'hex'), 16) = $1",
          PgParams{}.Text(effect_hash));
  return found && found->rows() == 1 ? found->Int(0, 0) : 0;
}

std::optional<std::string> Observer::OwnerName() {
  const ShardId shard = ShardOf(kDefaultOrg, kShardCountDistributed);
  const auto found = Ask(ledger_, "select owner_name from millrace.shard_owner where shard = $1 and owner is not null",
                         PgParams{}.Int(shard.value()));
  return found && found->rows() == 1 ? std::optional(found->Text(0, 0)) : std::nullopt;
}

std::optional<std::string> Observer::LeaderName() {
  const auto found = Ask(ledger_, "select name from millrace.leader");
  return found && found->rows() == 1 ? std::optional(found->Text(0, 0)) : std::nullopt;
}

std::optional<std::int64_t> Observer::Live() {
  const auto found = Ask(
      ledger_,
      "select (select count(*) from millrace.job j where not exists (select 1 from millrace.outcome o where o.job = j.job))"
      " + (select count(*) from millrace.run r where not exists (select 1 from millrace.run_outcome o where o.run = r.run))");
  return found ? std::optional(found->Int(0, 0)) : std::nullopt;
}

}  // namespace millrace::chaos
