// ledger list, ledger prune.
#include <nlohmann/json.hpp>

#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/retention.h"
#include "common/base/tell.h"
#include "common/crypto/checkpoint.h"

namespace millrace::cli {
namespace {

Result<ExitCode> DoList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "ledger"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto weeks, WeeksFor({.age = {}, .bytes = 1}, *ledger, context->clock()));
  Table table{.columns = {"week", "runs", "jobs", "bytes"}, .rows = {}};
  for (const RetainedWeek& week : weeks)
    table.rows.push_back({ToRfc3339(week.begin).substr(0, 10), static_cast<std::int64_t>(week.runs),
                          static_cast<std::int64_t>(week.jobs), static_cast<std::int64_t>(week.bytes)});
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<RetentionPolicy> PolicyOf(const Options& options, const Config& config) {
  RetentionPolicy policy{.age = config.ledger.retention, .bytes = config.ledger.retention_bytes};
  if (!options.older_than.empty() || !options.max_bytes.empty()) policy = {};
  if (!options.older_than.empty()) {
    auto age = ParseDuration(options.older_than);
    if (!age) return Prefixed(std::move(age.error()), "--older-than");
    policy.age = *age;
  }
  if (!options.max_bytes.empty()) {
    auto bytes = ParseSize(options.max_bytes);
    if (!bytes) return Prefixed(std::move(bytes.error()), "--max-bytes");
    policy.bytes = *bytes;
  }
  if (policy.age == Millis{0} && policy.bytes == 0)
    return Fail(ErrorCode::kInvalidArgument,
                "ledger prune: say what may go: --older-than 90d, --max-bytes 20GiB, or "
                "ledger.retention in the configuration");
  return policy;
}

Result<ExitCode> DoPrune(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "ledger"));
  MILLRACE_TRY_ASSIGN(const RetentionPolicy policy, PolicyOf(options, context->config()));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, Actor()));
  MILLRACE_TRY_ASSIGN(auto weeks, WeeksFor(policy, *ledger, context->clock()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger->Now(context->Deadline()));
  const WallTime before = PruneBefore(policy, weeks, now);
  if (options.dry_run) {
    MILLRACE_TRY_ASSIGN(const PruneStep would,
                        ledger->PruneOldest({.before = before, .actor = {}, .sign = {}, .dry_run = true}, context->Deadline()));
    MILLRACE_TRY_ASSIGN(weeks, WeeksFor({.age = {}, .bytes = 1}, *ledger, context->clock()));
    Table table{.columns = {"week", "runs", "jobs", "bytes"}, .rows = {}};
    constexpr auto kWeek = std::chrono::hours{24 * 7};
    for (const RetainedWeek& week : weeks)
      if (week.begin + kWeek <= would.before)
        table.rows.push_back({ToRfc3339(week.begin).substr(0, 10), static_cast<std::int64_t>(week.runs),
                              static_cast<std::int64_t>(week.jobs), static_cast<std::int64_t>(week.bytes)});
    Print(table, context->format());
    Tell("{} {} would go; nothing was removed\n", table.rows.size(), table.rows.size() == 1 ? "week" : "weeks");
    if (!would.held_by.empty()) Tell("not further: {}\n", would.held_by);
    return ExitCode::kOk;
  }
  MILLRACE_TRY_ASSIGN(const SigningKey key, SigningKey::LoadOrCreate(context->config().audit.key_file));
  PruneRequest request{.before = before, .actor = Actor(), .sign = [&](std::string_view bytes) {
                         const Signature s = key.Sign(bytes);
                         return std::string(s.begin(), s.end());
                       }};
  MILLRACE_TRY_ASSIGN(const PruneTotal total, PruneHistory(*ledger, std::move(request), context->config().lake,
                                                           context->clock(), [] { return false; }));
  Table table{.columns = {"before", "rows", "audit_records", "result_files"}, .rows = {}};
  table.rows.push_back({ToRfc3339(total.before), static_cast<std::int64_t>(total.rows),
                        static_cast<std::int64_t>(total.records), static_cast<std::int64_t>(total.result_files)});
  Print(table, context->full_format());
  if (!total.held_by.empty()) Tell("not further: {}\n", total.held_by);
  return ExitCode::kOk;
}

}  // namespace

ExitCode LedgerList(const Options& options) { return Finish(DoList(options)); }
ExitCode LedgerPrune(const Options& options) { return Finish(DoPrune(options)); }

}  // namespace millrace::cli
