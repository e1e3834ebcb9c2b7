// run cancel, job cancel.

#include <atomic>
#include <cstdio>

#include "client/cli/broker_client.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/find_run.h"
#include "common/wire/zmq_transport.h"

namespace millrace::cli {
namespace {

constexpr Millis kBrokerAnswers{3000};
constexpr Millis kCancelTimeout{30'000};
constexpr Millis kLedgerPoll{100};
constexpr auto kWaitMax = std::chrono::hours{24};

void Say(RunId run, RunState state, const std::string& reason) {
  fmt::print(stderr, "run {}: {}{}{}\n", run.ToString(), Name(state), reason.empty() ? "" : ": ", reason);
}

// There is nobody to push it: `millrace run` has no door for other processes.
Result<void> AwaitInLedger(Context& context, Ledger& ledger, wire::Transport& transport, RunId run) {
  for (const MonoTime deadline = context.clock().Now() + kWaitMax; context.clock().Now() < deadline;) {
    MILLRACE_TRY_ASSIGN(const RunDetail detail, ledger.GetRun(kDefaultOrg, run, context.Deadline()));
    if (IsTerminal(detail.summary.state)) return Say(run, detail.summary.state, detail.summary.reason), Result<void>{};
    transport.Wait(kLedgerPoll);
  }
  return Fail(ErrorCode::kTimedOut, "run {} has not ended", run.ToString());
}

// No broker answers: the request is durable in the ledger, and the next one to own the shard acts on it.
Result<ExitCode> Record(Context& context, Ledger& ledger, wire::Transport& transport, const wire::Cancel& cancel, bool wait) {
  std::vector<Uuid> items;
  for (const auto& item : cancel.items) items.push_back(item.id);
  MILLRACE_TRY_ASSIGN(const auto states, ledger.States(cancel.org, items, context.Deadline()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger.Now(context.Deadline()));
  std::vector<CancelRow> rows;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const ItemState& state = states[i];
    const std::string what = fmt::format("{} {}", cancel.items[i].is_run ? "run" : "job", items[i].ToString());
    if (!state.known || cancel.items[i].is_run == (state.live || state.job_ended))
      return Fail(ErrorCode::kNotFound, "{}: there is none", what);
    if (state.run_ended || state.job_ended)
      return Fail(ErrorCode::kConflict, "{}: too late, it has ended: {}", what,
                  state.run_ended ? Name(*state.run_ended) : Name(*state.job_ended));
    rows.push_back({items[i], cancel.items[i].is_run, cancel.org, cancel.actor, cancel.reason, now});
  }
  MILLRACE_TRY(ledger.RequestCancel(rows, context.Deadline()));
  fmt::print(stderr, "recorded; whoever runs acts on it within seconds, and if nobody does, the next one will\n");
  if (!wait) return ExitCode::kOk;
  for (const CancelRow& row : rows) MILLRACE_TRY(AwaitInLedger(context, ledger, transport, RunId{row.item}));
  return ExitCode::kOk;
}

Result<void> WaitForEnd(Context& context, BrokerClient& client, RunId run) {
  const MonoTime deadline = context.clock().Now() + kWaitMax;
  MILLRACE_TRY(client.Watch(run, deadline));
  const std::atomic<bool> never{false};
  MILLRACE_TRY_ASSIGN(const wire::RunUpdate end, client.Follow(run, deadline, never, [](const wire::RunUpdate&) {}, [] {}));
  Say(run, end.state, end.reason);
  return {};
}

Result<ExitCode> Report(Context& context, const std::vector<wire::CancelReply::Item>& items, bool runs) {
  Table table{.columns = {runs ? "run" : "job", "effect", "state"}, .rows = {}};
  ExitCode code = ExitCode::kOk;
  for (const auto& item : items) {
    table.rows.push_back({item.id.ToString(), std::string(Name(item.effect)), item.state});
    if (item.effect == CancelEffect::kUnknown) code = ExitCodeFor(ErrorCode::kNotFound);
    if (item.effect == CancelEffect::kEnded && code == ExitCode::kOk) code = ExitCodeFor(ErrorCode::kConflict);
  }
  Print(table, context.format());
  return code;
}

Result<Uuid> Named(Context& context, Ledger& ledger, const std::string& text, bool run) {
  if (!run) return Uuid::Parse(text);
  MILLRACE_TRY_ASSIGN(const RunId found, FindRun(ledger, text, "", context.Deadline()));
  return found.uuid;
}

Result<ExitCode> DoCancel(const Options& options, bool runs) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, runs ? "run" : "job"));
  wire::Cancel cancel;
  cancel.actor = Actor();
  cancel.reason = options.reason;
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  for (const std::string& text : options.ids) {
    MILLRACE_TRY_ASSIGN(const Uuid id, Named(*context, *ledger, text, runs));
    cancel.items.push_back({.id = id, .is_run = runs});
  }
  MILLRACE_TRY_ASSIGN(const auto transport, wire::MakeZmqTransport(wire::MakeZmqContext()));
  auto client = BrokerClient::Connect(*transport, context->ClientEndpoint(), context->clock());
  if (!client || !client->Status(context->clock().Now() + kBrokerAnswers))
    return Record(*context, *ledger, *transport, cancel, options.wait);
  auto items = client->Cancel(cancel, context->clock().Now() + kCancelTimeout);
  if (!items && BrokerClient::IsNotOwner(items.error())) return Record(*context, *ledger, *transport, cancel, options.wait);
  if (!items) return Prefixed(std::move(items.error()), "broker at {}", context->ClientEndpoint());
  MILLRACE_TRY_ASSIGN(const ExitCode code, Report(*context, *items, runs));
  if (options.wait)
    for (const auto& item : *items)
      if (item.effect == CancelEffect::kCancelling) MILLRACE_TRY(WaitForEnd(*context, *client, RunId{item.id}));
  return code;
}

}  // namespace

ExitCode RunCancel(const Options& options) { return Finish(DoCancel(options, true)); }
ExitCode JobCancel(const Options& options) { return Finish(DoCancel(options, false)); }

}  // namespace millrace::cli
