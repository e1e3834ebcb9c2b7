// run cancel, job cancel.

#include <algorithm>
#include <cstdio>
#include <unordered_set>

#include "client/cli/broker_look.h"
#include "client/cli/cancel_items.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/find_run.h"
#include "client/cli/job_filter.h"
#include "common/base/tell.h"
#include "common/queue/sqlite_queue.h"

namespace millrace::cli {
namespace {

constexpr Millis kCancelTimeout{30'000};
constexpr Millis kListTimeout{5000};    // of one page
constexpr Millis kFindTimeout{10'000};  // of all pages
constexpr Millis kLedgerPoll{100};
constexpr auto kWaitMax = std::chrono::hours{24};

void Say(RunId run, RunState state, const std::string& reason) {
  Tell("run {}: {}{}{}\n", run.ToString(), Name(state), reason.empty() ? "" : ": ", reason);
}

// The ledger says it, whoever serves the run then: its broker may be gone, and `millrace run` has no door for others.
Result<void> AwaitEnd(Context& context, Ledger& ledger, wire::Transport& transport, wire::CancelReply::Item& item) {
  const RunId run{item.id};
  for (const MonoTime deadline = context.clock().Now() + kWaitMax; context.clock().Now() < deadline;) {
    MILLRACE_TRY_ASSIGN(const RunDetail detail, ledger.GetRun(context.org(), run, context.Deadline()));
    if (!IsTerminal(detail.summary.state)) {
      transport.Wait(kLedgerPoll);
      continue;
    }
    Say(run, detail.summary.state, detail.summary.reason);
    item.effect = detail.summary.state == RunState::kCancelled ? CancelEffect::kCancelled : CancelEffect::kEnded;
    item.state = Name(detail.summary.state);
    return {};
  }
  return Fail(ErrorCode::kTimedOut, "run {} has not ended", run.ToString());
}

// What each item is, as the ledger has it: kCancelling stands for "it lives". `rows`: the requests for those.
Result<std::vector<wire::CancelReply::Item>> Classify(Context& context, Ledger& ledger, const wire::Cancel& cancel,
                                                      std::vector<CancelRow>& rows) {
  std::vector<Uuid> items;
  for (const auto& item : cancel.items) items.push_back(item.id);
  MILLRACE_TRY_ASSIGN(const auto states, ledger.States(cancel.org, items, context.Deadline()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger.Now(context.Deadline()));
  std::vector<wire::CancelReply::Item> replies;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const ItemState& state = states[i];
    const bool is_run = cancel.items[i].is_run;
    auto& reply = replies.emplace_back(wire::CancelReply::Item{.id = items[i], .effect = CancelEffect::kUnknown, .state = {}});
    if (!state.known || is_run == (state.live || state.job_ended)) {
      if (!is_run && state.of_run) reply.state = state.of_run->ToString();
      continue;
    }
    reply.effect = state.run_ended || state.job_ended ? CancelEffect::kEnded : CancelEffect::kCancelling;
    if (state.run_ended) reply.state = Name(*state.run_ended);
    if (state.job_ended) reply.state = Name(*state.job_ended);
    if (reply.effect == CancelEffect::kCancelling)
      rows.push_back({items[i], is_run, cancel.org, cancel.actor, cancel.reason, now});
  }
  return replies;
}

// No broker answers: the requests are durable in the ledger, and the next one to own the shard acts on them. Each item gets an
// answer of its own; "recorded" is said as `cancelling`.
Result<std::vector<wire::CancelReply::Item>> Record(Context& context, Ledger& ledger, const wire::Cancel& cancel) {
  std::vector<CancelRow> rows;
  MILLRACE_TRY_ASSIGN(auto replies, Classify(context, ledger, cancel, rows));
  MILLRACE_TRY(ledger.RequestCancel(rows, context.Deadline()));
  return replies;
}

// As many of `cancel`'s items as one message or transaction takes.
wire::Cancel PartOf(const wire::Cancel& cancel, std::size_t at) {
  wire::Cancel part;
  part.org = cancel.org;
  part.actor = cancel.actor;
  part.reason = cancel.reason;
  const auto begin = cancel.items.begin() + static_cast<std::ptrdiff_t>(at);
  part.items.assign(begin, begin + static_cast<std::ptrdiff_t>(std::min(kBatchJobsMax, cancel.items.size() - at)));
  return part;
}

// What the ledger does not know, a job that only the queue has may be.
bool IsHidden(const wire::CancelReply::Item& item) { return item.effect == CancelEffect::kUnknown && item.state.empty(); }

bool IsRecorded(const wire::CancelReply::Item& item) { return item.effect == CancelEffect::kCancelling; }

// Jobs that may be known to a queue alone whose owner was not asked. Embedded, he does not run, and his queue can be looked at.
std::unordered_set<Uuid> InDoubt(const Context& context, const CancelAnswers& answers) {
  std::unordered_set<Uuid> all;
  if (!answers.unasked) return all;
  for (const auto& item : answers.items)
    if (IsHidden(item)) all.insert(item.id);
  if (!context.embedded() || context.config().queue.kind != QueueConfig::Kind::kSqlite) return all;
  std::vector<JobId> ids;
  for (const Uuid& id : all) ids.push_back(JobId{id});
  const auto kept = KeptInSqliteQueue(context.config().queue.path, std::to_string(context.org().value()), ids);
  if (!kept) return all;
  all.clear();
  for (const JobId& id : *kept) all.insert(id.uuid);
  return all;
}

// What a filter means may end before it is reached: that is no error.
Result<ExitCode> Report(const Options& options, const Context& context, const CancelAnswers& answers,
                        const std::unordered_set<Uuid>& doubt, bool runs) {
  const auto& items = answers.items;
  Table table{.columns = {runs ? "run" : "job", "effect", "state"}, .rows = {}};
  ExitCode code = ExitCode::kOk;
  std::size_t cancelled = 0;
  for (const auto& item : items) {
    const bool stopped = item.effect == CancelEffect::kCancelled || item.effect == CancelEffect::kCancelling;
    const std::string_view effect = stopped && options.dry_run ? "would be cancelled"
                                    : doubt.contains(item.id)  ? "unknown"
                                                               : Name(item.effect);
    cancelled += stopped ? 1u : 0u;
    table.rows.push_back({item.id.ToString(), std::string(effect), item.state});
    if (item.effect == CancelEffect::kUnknown && !item.state.empty())
      Tell("job {} is a job of run {}; it is cancelled with its run: millrace run cancel {}{}\n", item.id.ToString(),
           item.state, item.state, context.OrgOption());
    if (options.ids.empty()) continue;
    if (item.effect == CancelEffect::kUnknown) code = ExitCodeFor(ErrorCode::kNotFound);
    if (item.effect == CancelEffect::kEnded && code == ExitCode::kOk) code = ExitCodeFor(ErrorCode::kConflict);
  }
  if (options.dry_run || options.ids.empty())
    Tell("{} {}{} {}\n", cancelled, runs ? "run" : "job", cancelled == 1 ? "" : "s",
         options.dry_run ? "would be cancelled" : "cancelled or being cancelled");
  if (options.quiet) {
    for (const auto& item : items)
      if (item.effect != CancelEffect::kUnknown) fmt::print("{}\n", item.id.ToString());
  } else {
    Print(table, context.format());
  }
  return code;
}

Result<Uuid> Named(Context& context, Ledger& ledger, const std::string& text, bool run) {
  if (!run) {
    MILLRACE_TRY_ASSIGN(const JobId job, FindJob(ledger, context.org(), text, context.Deadline()));
    return job.uuid;
  }
  MILLRACE_TRY_ASSIGN(const RunId found, FindRun(ledger, context.org(), text, "", context.Deadline()));
  return found.uuid;
}

Result<void> CheckCancel(const Options& options, bool runs) {
  const bool filtered = runs ? !(options.pipeline.empty() && options.state.empty())
                             : !(options.queue.empty() && options.kind.empty() && options.since.empty());
  if (options.ids.empty() == !filtered)
    return Fail(ErrorCode::kInvalidArgument, "{} cancel: give ids, or a filter ({})", runs ? "run" : "job",
                runs ? "--pipeline, --state" : "--queue, --kind, --since");
  if (!options.state.empty() && options.state != Name(RunState::kRunning))
    return Fail(ErrorCode::kInvalidArgument, "--state: '{}': only runs that have not ended are cancelled; give running",
                options.state);
  if (options.dry_run && options.wait)
    return Fail(ErrorCode::kInvalidArgument, "--wait: nothing is waited for with --dry-run; give one of them");
  return {};
}

// A part of the filter that the ledger's rows have, and of jobs that only the queue has nothing but their ids.
bool Since(const JobFilter& filter, const JobId& job) {
  return !filter.since || TimeOf(job.uuid) >= std::chrono::floor<Millis>(*filter.since);
}

Error NobodyAnswers(const Door& door) {
  return {ErrorCode::kUnavailable, fmt::format("no broker answers at {}", door.endpoint())};
}

// Jobs of `durability: redis` that the filter means and the ledger does not know: the broker that serves the org lists them.
Result<BrokerClient::Kept> KeptJobs(Context& context, Ledger& ledger, const JobFilter& filter) {
  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(context, ledger));
  if (door.client() == nullptr) return std::unexpected(NobodyAnswers(door));
  return door.client()->ListKept(
      filter.org, filter.queue.value_or(""), filter.kind.value_or(""), [&](const JobId& job) { return Since(filter, job); },
      kFilteredMax, kListTimeout);
}

// Which of `ids`, that the ledger does not know, that broker has: into `found`, also those that it named before an error.
Result<void> FindKept(Context& context, Ledger& ledger, const std::unordered_set<JobId>& ids, std::vector<JobId>& found) {
  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(context, ledger));
  if (door.client() == nullptr) return std::unexpected(NobodyAnswers(door));
  return door.client()->FindKept(context.org(), ids, context.clock().Now() + kFindTimeout, found);
}

// What the command line means: the ids, or what lives of a filter.
struct Meaning {
  std::vector<Uuid> ids;
  std::unordered_set<Uuid> kept;  // of them: what only the queue has
  bool more = false;              // of those there are more than one command takes
  std::optional<Error> unasked;   // why those are left out
};

Result<Meaning> MeantJobs(const Options& options, Context& context, Ledger& ledger) {
  MILLRACE_TRY_ASSIGN(JobFilter filter, FilterOf(options, context));
  filter.live = true;
  Meaning meaning;
  // Before the ledger: what an attempt takes there meanwhile is found in it.
  auto listed = KeptJobs(context, ledger, filter);
  if (!listed) meaning.unasked = std::move(listed.error());
  const BrokerClient::Kept kept = std::move(listed).value_or(BrokerClient::Kept{});
  for (const JobId& job : kept.jobs) meaning.kept.insert(job.uuid);
  MILLRACE_TRY_ASSIGN(const auto found, AllJobs(ledger, filter, "job cancel", context.clock()));
  for (const JobId& job : found) {
    meaning.kept.erase(job.uuid);
    meaning.ids.push_back(job.uuid);
  }
  meaning.more = kept.more;
  for (const JobId& job : kept.jobs)
    if (meaning.kept.contains(job.uuid)) meaning.ids.push_back(job.uuid);
  return meaning;
}

Result<Meaning> Meant(const Options& options, Context& context, Ledger& ledger, bool runs) {
  Meaning meaning;
  std::vector<Uuid>& ids = meaning.ids;
  for (const std::string& text : options.ids) {
    MILLRACE_TRY_ASSIGN(const Uuid id, Named(context, ledger, text, runs));
    ids.push_back(id);
  }
  if (!options.ids.empty()) return meaning;
  if (!runs) return MeantJobs(options, context, ledger);
  RunFilter filter;
  filter.org = context.org();
  filter.state = RunState::kRunning;
  if (!options.pipeline.empty()) filter.pipeline = options.pipeline;
  MILLRACE_TRY_ASSIGN(const auto found, AllRuns(ledger, filter, "run cancel", context.clock()));
  for (const RunId& run : found) ids.push_back(run.uuid);
  return meaning;
}

Result<std::vector<wire::CancelReply::Item>> ClassifyAll(Context& context, Ledger& ledger, const wire::Cancel& cancel) {
  std::vector<wire::CancelReply::Item> all;
  std::vector<CancelRow> unused;
  for (std::size_t at = 0; at < cancel.items.size(); at += kBatchJobsMax) {
    MILLRACE_TRY_ASSIGN(const auto items, Classify(context, ledger, PartOf(cancel, at), unused));
    all.insert(all.end(), items.begin(), items.end());
  }
  return all;
}

// What would be cancelled, as the ledger sees it, and of `kept`, which it does not see. With `named` the broker is asked for
// the ids that the ledger does not know.
Result<CancelAnswers> Preview(Context& context, Ledger& ledger, const wire::Cancel& cancel, std::unordered_set<Uuid> kept,
                              bool named) {
  CancelAnswers answers;
  MILLRACE_TRY_ASSIGN(answers.items, ClassifyAll(context, ledger, cancel));
  if (named && std::ranges::any_of(answers.items, IsHidden)) {
    std::unordered_set<JobId> hidden;
    for (const auto& item : answers.items)
      if (IsHidden(item)) hidden.insert(JobId{item.id});
    std::vector<JobId> found;
    if (auto looked = FindKept(context, ledger, hidden, found); !looked) answers.unasked = std::move(looked.error());
    for (const JobId& job : found) kept.insert(job.uuid);
    MILLRACE_TRY_ASSIGN(answers.items, ClassifyAll(context, ledger, cancel));  // what an attempt took there meanwhile
  }
  for (auto& item : answers.items)
    if (IsHidden(item) && kept.contains(item.id)) item.effect = CancelEffect::kCancelling;
  return answers;
}

// How a command ends that has reported its items. That nobody looked where only a broker can is no success. Of a filter, an
// embedded broker that does not answer does not run, and starts nothing either: there it is only said.
Result<ExitCode> Ended(const Context& context, ExitCode code, const Meaning& meaning, const CancelAnswers& answers,
                       const std::unordered_set<Uuid>& doubt) {
  const auto& unasked = meaning.unasked ? meaning.unasked : answers.unasked;
  if (unasked && (meaning.unasked || !doubt.empty())) {
    Error error{unasked->code,
                fmt::format("jobs of durability: redis that wait or run for the first time are known only to the broker that "
                            "serves org {}, and it was not asked: {}; {}",
                            context.org().value(), unasked->message,
                            context.embedded() ? "start 'millrace up --home " + context.config().home + "' and ask again"
                                               : "give its endpoint as broker.listen_clients")};
    if (!doubt.empty() || !context.embedded() || error.code != ErrorCode::kUnavailable)
      return std::unexpected(std::move(error));
    Tell("{}\n", error.message);
  }
  if (!meaning.more) return code;
  return Fail(
      ErrorCode::kLimit,
      "more than {} jobs of durability: redis match, and these are so many of them: give the command again for the others",
      kFilteredMax);
}

Result<ExitCode> DoCancel(const Options& options, bool runs) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, runs ? "run" : "job"));
  MILLRACE_TRY(CheckCancel(options, runs));
  wire::Cancel cancel;
  cancel.org = context->org();
  cancel.actor = Actor();
  cancel.reason = options.reason;
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const Meaning meaning, Meant(options, *context, *ledger, runs));
  for (const Uuid& id : meaning.ids) cancel.items.push_back({.id = id, .is_run = runs});
  CancelAnswers answers;
  if (options.dry_run) {
    MILLRACE_TRY_ASSIGN(answers, Preview(*context, *ledger, cancel, meaning.kept, !runs && !options.ids.empty()));
    const auto doubt = InDoubt(*context, answers);
    MILLRACE_TRY_ASSIGN(const ExitCode code, Report(options, *context, answers, doubt, runs));
    return Ended(*context, code, meaning, answers, doubt);
  }
  auto all = CancelItems(*context, *ledger, cancel, options.wait && runs, answers);
  if (!all && answers.items.empty()) return std::unexpected(std::move(all.error()));
  const auto doubt = runs ? std::unordered_set<Uuid>{} : InDoubt(*context, answers);
  MILLRACE_TRY_ASSIGN(const ExitCode code, Report(options, *context, answers, doubt, runs));
  if (all) return runs ? code : Ended(*context, code, meaning, answers, doubt);
  if (answers.items.size() == cancel.items.size()) return std::unexpected(std::move(all.error()));
  return Prefixed(std::move(all.error()), "{} of {} {} were asked to stop before this", answers.items.size(),
                  cancel.items.size(), runs ? "runs" : "jobs");
}

Result<std::vector<wire::CancelReply::Item>> CancelPart(Context& context, Ledger& ledger, Door& door, const wire::Cancel& part,
                                                        std::optional<Error>& unasked) {
  if (door.client() == nullptr) {
    unasked = NobodyAnswers(door);
  } else {
    auto items = door.client()->Cancel(part, context.clock().Now() + kCancelTimeout);
    if (items) return items;
    if (!BrokerClient::IsNotOwner(items.error())) return Prefixed(std::move(items.error()), "broker at {}", door.endpoint());
    unasked = std::move(items.error());
  }
  return Record(context, ledger, part);
}

Result<void> CancelParts(Context& context, Ledger& ledger, Door& door, const wire::Cancel& cancel, CancelAnswers& answers) {
  bool recorded = false;
  Result<void> all;
  for (std::size_t at = 0; all && at < cancel.items.size(); at += kBatchJobsMax) {
    auto items = CancelPart(context, ledger, door, PartOf(cancel, at), answers.unasked);
    if (!items) all = std::unexpected(std::move(items.error()));
    if (!items) break;
    answers.items.insert(answers.items.end(), items->begin(), items->end());
    recorded = recorded || (answers.unasked && std::ranges::any_of(*items, IsRecorded));
  }
  if (recorded) Tell("recorded; whoever runs acts on it within seconds, and if nobody does, the next one will\n");
  return all;
}

}  // namespace

Result<void> CancelItems(Context& context, Ledger& ledger, const wire::Cancel& cancel, bool wait, CancelAnswers& answers) {
  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(context, ledger));
  MILLRACE_TRY(CancelParts(context, ledger, door, cancel, answers));
  for (auto& item : answers.items)
    if (wait && item.effect == CancelEffect::kCancelling) MILLRACE_TRY(AwaitEnd(context, ledger, door.transport(), item));
  return {};
}

ExitCode RunCancel(const Options& options) { return Finish(DoCancel(options, true)); }
ExitCode JobCancel(const Options& options) { return Finish(DoCancel(options, false)); }

}  // namespace millrace::cli
