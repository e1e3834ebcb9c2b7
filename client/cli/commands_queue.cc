// queue list, queue show, queue set, queue pause, queue resume. A change goes through the broker, where it counts at once; when
// none answers, into the ledger, where the owner finds it within seconds.

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <functional>
#include <map>

#include "client/cli/broker_client.h"
#include "client/cli/broker_look.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "common/base/tell.h"
#include "common/model/whole_org.h"

namespace millrace::cli {
namespace {

constexpr Millis kBrokerTimeout{3000};
constexpr int kRoundsMax = 5;  // somebody else sets the same queue at the same time

using Item = wire::ListQueuesReply::Item;

// What is set, from the ledger, and what waits and runs, from the broker if it answers: `depths` says so.
struct Listing {
  std::map<std::string, Item> items;
  bool depths = false;
  // What of a queue is ready and taken by no connected worker, if that is known.
  struct Unserved {
    std::uint64_t ready = 0;
    std::optional<WallTime> since;
    std::vector<std::string> texts, fixes;
  };
  std::optional<std::map<std::string, Unserved>> unserved;
  const Unserved* UnservedOf(const std::string& queue) const {
    static const Unserved kNone;
    if (!unserved) return nullptr;
    const auto it = unserved->find(queue);
    return it == unserved->end() ? &kNone : &it->second;
  }
};

void ReadUnserved(BrokerClient& client, const Context& context, Listing& listing) {
  const auto reply = client.ListUnserved(context.org(), context.clock().Now() + kBrokerTimeout);
  if (!reply) {
    Tell("millrace: whether workers take what waits is not known: {}\n", reply.error().message);
    return;
  }
  if (reply->more) {
    Tell("millrace: whether workers take what waits is not known: more queues wait than one answer names\n");
    return;
  }
  listing.unserved.emplace();
  for (const auto& item : reply->items) {
    Listing::Unserved& unserved = (*listing.unserved)[item.queue];
    unserved.ready += item.ready;
    if (item.since) unserved.since = unserved.since ? std::min(*unserved.since, *item.since) : *item.since;
    unserved.texts.push_back(UnservedText(item));
    unserved.fixes.push_back(UnservedFix(item, reply->workers));
  }
}

// What the broker has, and whether it has told it.
Result<void> ReadDepths(BrokerClient& client, const Context& context, Listing& listing) {
  MILLRACE_TRY_ASSIGN(auto queues, client.ListQueues(context.org(), context.clock().Now() + kBrokerTimeout));
  listing.depths = true;
  for (Item& item : queues) {
    std::string name = item.settings.queue;
    listing.items[std::move(name)] = std::move(item);
  }
  ReadUnserved(client, context, listing);
  return {};
}

Result<Listing> ReadQueues(Context& context) {
  Listing listing;
  auto ledger = context.OpenLedger(Context::Create::kNo, "cli");
  if (ledger) {
    MILLRACE_TRY_ASSIGN(auto stored, (*ledger)->QueuesOf(context.org(), std::nullopt, context.Deadline()));
    for (QueueSettings& settings : stored) {
      std::string name = settings.queue;
      listing.items[std::move(name)].settings = std::move(settings);
    }
  } else if (ledger.error().code != ErrorCode::kNotFound) {
    return std::unexpected(std::move(ledger.error()));
  }
  MILLRACE_TRY_ASSIGN(Door door, ledger ? Door::OpenOwners(context, **ledger) : Door::Open(context));
  const Result<void> told = door.client() != nullptr
                                ? ReadDepths(*door.client(), context, listing)
                                : Fail(ErrorCode::kUnavailable, "no broker answers at {}", door.endpoint());
  if (!told) Tell("millrace: what waits and runs is not known: {}\n", told.error().message);
  return listing;
}

std::string WeightsText(const QueueSettings& settings) { return fmt::format("{}", fmt::join(settings.weights, ",")); }

Cell Limit(std::uint64_t limit) { return limit == 0 ? Cell{} : Cell{static_cast<std::int64_t>(limit)}; }
Cell RateCell(const Rate& rate) { return rate.Limited() ? Cell{ToString(rate)} : Cell{}; }

const std::vector<std::string> kColumns = {"queue",
                                           "paused",
                                           "ready",
                                           "running",
                                           "waiting",
                                           "waiting_bytes",
                                           "concurrency",
                                           "key_concurrency",
                                           "rate",
                                           "key_rate",
                                           "order",
                                           "weights",
                                           "aging_ms",
                                           "max_waiting_jobs",
                                           "max_waiting_bytes",
                                           "durability",
                                           "revision",
                                           "unserved",
                                           "unserved_since",
                                           "unserved_what"};

std::vector<Cell> RowOf(const std::string& queue, const Item& item, const Listing& listing) {
  const QueueSettings& s = item.settings;
  const bool org = queue == kWholeOrg;  // has budgets and sums only
  const Listing::Unserved* const unserved = org ? nullptr : listing.UnservedOf(queue);
  const bool waits = unserved != nullptr && unserved->ready > 0;
  const auto depth = [&](std::uint64_t n) { return listing.depths ? Cell{static_cast<std::int64_t>(n)} : Cell{}; };
  return {queue,
          org ? Cell{} : Cell{s.paused},
          depth(item.ready),
          depth(item.running),
          depth(item.waiting),
          depth(item.waiting_bytes),
          Limit(s.concurrency),
          Limit(s.key_concurrency),
          RateCell(s.rate),
          RateCell(s.key_rate),
          org ? Cell{} : Cell{std::string(Name(s.order))},
          s.order == QueueOrder::kWeighted ? Cell{WeightsText(s)} : Cell{},
          s.order == QueueOrder::kStrict && !org ? Cell{std::int64_t{s.aging.count()}} : Cell{},
          Limit(s.max_waiting_jobs),
          Limit(s.max_waiting_bytes),
          org ? Cell{} : Cell{std::string(Name(s.durability))},
          s.revision,
          unserved == nullptr ? Cell{} : Cell{static_cast<std::int64_t>(unserved->ready)},
          waits && unserved->since ? Cell{ToRfc3339(*unserved->since)} : Cell{},
          waits ? Cell{fmt::format("{}", fmt::join(unserved->texts, ", "))} : Cell{}};
}

void PrintOne(const std::string& queue, const Item& item, const Listing& listing, OutputFormat format) {
  std::vector<Cell> row = RowOf(queue, item, listing);
  if (format != OutputFormat::kTable) return Print({.columns = kColumns, .rows = {std::move(row)}}, format);
  Table table{.columns = {"of", "value"}, .rows = {}};
  for (std::size_t i = 0; i < kColumns.size(); ++i) table.rows.push_back({kColumns[i], std::move(row[i])});
  Print(table, format);
  if (const auto* unserved = listing.UnservedOf(queue); unserved != nullptr)
    for (const std::string& fix : unserved->fixes) fmt::print("{}\n", fix);
}

Result<ExitCode> DoQueueList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "queue"));
  MILLRACE_TRY_ASSIGN(const Listing listing, ReadQueues(*context));
  Table table{.columns = kColumns, .rows = {}};
  for (const auto& [queue, item] : listing.items) table.rows.push_back(RowOf(queue, item, listing));
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> DoQueueShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "queue"));
  MILLRACE_TRY_ASSIGN(const Listing listing, ReadQueues(*context));
  const auto it = listing.items.find(options.queue);
  if (it == listing.items.end())
    return Fail(ErrorCode::kNotFound, "queue '{}': nothing was ever set for it{}", options.queue,
                listing.depths ? ", and nothing waits or runs in it" : "");
  PrintOne(it->first, it->second, listing, context->format());
  return ExitCode::kOk;
}

Result<std::array<std::uint32_t, kPriorityLevels>> ParseWeights(const std::string& text) {
  std::array<std::uint32_t, kPriorityLevels> weights{};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto [next, ec] = std::from_chars(at, end, weights[i]);
    const bool last = i + 1 == weights.size();
    if (ec != std::errc{} || (last ? next != end : next == end || *next != ','))
      return Fail(ErrorCode::kInvalidArgument,
                  "--weights '{}': give {} numbers such as 8,4,2,1, the most urgent priority's first", text, weights.size());
    at = last ? next : next + 1;
  }
  return weights;
}

Result<void> Change(const QueueFlags& flags, QueueSettings& s) {
  if (flags.concurrency) s.concurrency = *flags.concurrency;
  if (flags.key_concurrency) s.key_concurrency = *flags.key_concurrency;
  if (flags.max_waiting) s.max_waiting_jobs = *flags.max_waiting;
  if (flags.max_waiting_bytes) s.max_waiting_bytes = *flags.max_waiting_bytes;
  if (flags.rate) {
    MILLRACE_TRY_ASSIGN(s.rate, ParseRate("--rate", *flags.rate));
  }
  if (flags.key_rate) {
    MILLRACE_TRY_ASSIGN(s.key_rate, ParseRate("--key-rate", *flags.key_rate));
  }
  if (flags.burst) s.rate.burst = *flags.burst;
  if (flags.key_burst) s.key_rate.burst = *flags.key_burst;
  if (flags.order) {
    MILLRACE_TRY_ASSIGN(s.order, ParseQueueOrder(*flags.order));
  }
  if (flags.weights) {
    MILLRACE_TRY_ASSIGN(s.weights, ParseWeights(*flags.weights));
  }
  if (flags.aging) {
    auto aging = ParseDuration(*flags.aging);
    if (!aging) return Prefixed(std::move(aging.error()), "--aging");
    s.aging = *aging;
  }
  if (flags.durability) {
    MILLRACE_TRY_ASSIGN(s.durability, ParseQueueDurability(*flags.durability));
  }
  return {};
}

// The broker's answer, or the ledger's when no broker that could take it answers.
Result<std::int64_t> Store(const Context& context, Ledger& ledger, Door& door, const QueueSettings& settings) {
  if (door.client() != nullptr) {
    auto set = door.client()->SetQueue(settings, Actor(), context.clock().Now() + kBrokerTimeout);
    if (set) return *set;
    const ErrorCode code = set.error().code;
    const bool unknown = code == ErrorCode::kTimedOut || code == ErrorCode::kMaybeApplied;  // the revision tells
    if (code != ErrorCode::kUnavailable && !unknown) return std::unexpected(std::move(set.error()));
    door.Close();
  }
  MILLRACE_TRY_ASSIGN(const QueueSettings stored, ledger.PutQueueSettings(settings, Actor(), context.Deadline()));
  Tell("millrace: stored; a broker that runs takes it up within 2 s\n");
  return stored.revision;
}

// A queue may be set before anything was ever run.
Result<void> MakeHome(const std::string& home) {
  std::error_code ec;
  if (std::filesystem::create_directories(home, ec)) std::filesystem::permissions(home, std::filesystem::perms::owner_all, ec);
  if (ec) return Fail(ErrorCode::kUnavailable, "home '{}': {}", home, ec.message());
  return {};
}

using Setting = std::function<Result<void>(QueueSettings&)>;

Result<QueueSettings> SetOne(Context& context, Ledger& ledger, Door& door, const std::string& queue, const Setting& change) {
  for (int round = 0; round < kRoundsMax; ++round) {
    MILLRACE_TRY_ASSIGN(const auto stored, ledger.QueuesOf(context.org(), std::nullopt, context.Deadline()));
    const auto it = std::ranges::find(stored, queue, &QueueSettings::queue);
    QueueSettings settings;
    settings.org = context.org();
    settings.queue = queue;
    if (it != stored.end()) settings = *it;
    MILLRACE_TRY(change(settings));
    MILLRACE_TRY(Validate(settings));
    if (it == stored.end() || settings != *it) {
      const auto revision = Store(context, ledger, door, settings);
      if (!revision && revision.error().code == ErrorCode::kConflict && round + 1 < kRoundsMax) continue;
      if (!revision) return std::unexpected(revision.error());
      settings.revision = *revision;
    }
    return settings;
  }
  return Fail(ErrorCode::kConflict, "queue '{}': others keep setting it at the same time; try again", queue);
}

void PrintSet(const std::vector<QueueSettings>& set, OutputFormat format) {
  if (set.size() == 1) {
    PrintOne(set.front().queue, {.settings = set.front()}, Listing{}, format);
  } else if (!set.empty()) {
    Table table{.columns = kColumns, .rows = {}};
    for (const QueueSettings& settings : set) table.rows.push_back(RowOf(settings.queue, {.settings = settings}, Listing{}));
    Print(table, format);
  }
}

// One queue after the other: what was set before one that fails stays, and is said.
Result<ExitCode> SetAnd(const Options& options, const std::vector<std::string>& queues, const Setting& change) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "queue"));
  QueueSettings readable;
  MILLRACE_TRY(change(readable));  // what cannot be read at all makes no ledger
  for (const std::string& queue : queues) {
    QueueSettings named;
    named.queue = queue;
    MILLRACE_TRY(Validate(named));
  }
  if (context->embedded()) MILLRACE_TRY(MakeHome(context->config().home));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kYes, "cli"));
  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(*context, *ledger));
  std::vector<QueueSettings> set;
  for (const std::string& queue : queues) {
    auto done = SetOne(*context, *ledger, door, queue, change);
    if (!done) {
      PrintSet(set, context->format());
      return std::unexpected(std::move(done.error()));
    }
    set.push_back(std::move(*done));
  }
  PrintSet(set, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> Pause(const Options& options, bool paused) {
  return SetAnd(options, options.names, [paused](QueueSettings& settings) -> Result<void> {
    settings.paused = paused;
    return {};
  });
}

}  // namespace

ExitCode QueueList(const Options& options) { return Finish(DoQueueList(options)); }
ExitCode QueueShow(const Options& options) { return Finish(DoQueueShow(options)); }
ExitCode QueueSet(const Options& options) {
  return Finish(
      SetAnd(options, {options.queue}, [&](QueueSettings& settings) { return Change(options.queue_flags, settings); }));
}
ExitCode QueuePause(const Options& options) { return Finish(Pause(options, true)); }
ExitCode QueueResume(const Options& options) { return Finish(Pause(options, false)); }

}  // namespace millrace::cli
