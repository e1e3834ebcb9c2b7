#include "client/cli/doctor.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>

#include "broker/broker.h"
#include "client/cli/broker_client.h"
#include "client/cli/broker_look.h"
#include "client/cli/retention.h"
#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"
#include "common/model/cron.h"
#include "common/queue/redis_queue.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::cli {
namespace {

constexpr Millis kProbeTimeout{3000};
constexpr Millis kBrokerPatience{1000};  // embedded, mostly none runs
constexpr Millis kCountTimeout{30'000};  // a million rows that are in no cache
constexpr Millis kClockSkewMax{500};
constexpr std::uint64_t kFreeBytesMin = 1ull << 30;

Finding Good(std::string check, std::string found) { return {std::move(check), true, std::move(found), {}}; }
Finding Bad(std::string check, std::string found, std::string fix) {
  return {std::move(check), false, std::move(found), std::move(fix)};
}

Finding StageProgramFinding() {
  const std::string path = StageProgram();
  if (::access(path.c_str(), X_OK) == 0) return Good("millrace-stage", path);
  return Bad("millrace-stage", path + " is missing or not executable", "install it beside the millrace executable");
}

Finding TimeZones() {
  const auto zone = CronSchedule::Make("0 0 * * *", "America/New_York", DstRule::kOnce);
  return zone ? Good("tzdata", "time zones are there") : Bad("tzdata", "no time zone data", "apt-get install tzdata");
}

Finding RetentionFinding(const Context& context, Ledger& ledger) {
  const LedgerConfig& config = context.config().ledger;
  const RetentionPolicy policy{.age = config.retention, .bytes = config.retention_bytes};
  const auto size = ledger.SizeOfHistory(kUnprunedJobsMax + 1, context.clock().Now() + kCountTimeout);
  if (!size) return Good("retention", "how much the ledger holds is not known: " + size.error().message);
  const std::string jobs = size->finished_jobs > kUnprunedJobsMax ? fmt::format("more than {}", kUnprunedJobsMax)
                                                                  : fmt::format("{}", size->finished_jobs);
  const bool set = policy.age > Millis{0} || policy.bytes > 0;
  const std::string found = fmt::format("{}; {} finished jobs, {}", set ? "set" : "none is set, nothing ever goes", jobs,
                                        HumanBytes(static_cast<std::int64_t>(size->bytes)));
  if (!GrowsWithoutBound(policy, *size)) return Good("retention", found);
  return Bad("retention", found,
             "set ledger.retention (e.g. 90d) or ledger.retention_bytes (e.g. 20GiB); once: millrace ledger prune --older-than "
             "90d");
}

// The ledger, where it can be asked.
std::unique_ptr<Ledger> LedgerFindings(Context& context, std::vector<Finding>& out) {
  const std::string shown = RedactDsn(context.config().ledger.dsn.Reveal());
  auto ledger = context.OpenLedger(Context::Create::kNo, "doctor");
  if (!ledger) {
    if (context.embedded() && ledger.error().code == ErrorCode::kNotFound) {
      out.push_back(Good("ledger", shown + " (not made yet)"));
    } else {
      out.push_back(Bad("ledger", ledger.error().message,
                        context.embedded() ? "see the message; another --home is a fresh start"
                                           : "check ledger.dsn and that the server runs"));
    }
    return nullptr;
  }
  const WallTime before = context.clock().WallNow();
  const auto now = (*ledger)->Now(context.clock().Now() + kProbeTimeout);
  if (!now) {
    out.push_back(Bad("ledger", now.error().message, "check ledger.dsn and that the server runs"));
    return nullptr;
  }
  out.push_back(Good("ledger", shown));
  const auto skew = std::chrono::abs(*now - before);
  const std::string text = HumanDuration(skew) + " between this host and the ledger";
  out.push_back(skew <= kClockSkewMax ? Good("clock", text) : Bad("clock", text, "run an NTP client on both hosts"));
  out.push_back(RetentionFinding(context, **ledger));
  return std::move(*ledger);
}

// As the broker sees it, which then refuses submits.
Finding MemoryFinding(std::string found, const QueueMemory& memory) {
  const auto text = [](std::uint64_t bytes) { return HumanBytes(static_cast<std::int64_t>(bytes)); };
  if (memory.max == 0) return Good("queue", found + fmt::format("; holds {}, no maxmemory", text(memory.used)));
  found += fmt::format("; holds {} of its maxmemory of {}", text(memory.used), text(memory.max));
  if (memory.used < memory.max / 100 * kQueueMemoryPercentMax) return Good("queue", std::move(found));
  return Bad("queue", found + fmt::format(": from {} % on every submit is refused (queue_full)", kQueueMemoryPercentMax),
             "raise Redis' maxmemory, or let workers drain the queues (millrace queue list); what else is in that Redis "
             "counts too");
}

Finding QueueFinding(const Context& context) {
  const QueueConfig& queue = context.config().queue;
  if (queue.kind == QueueConfig::Kind::kSqlite)
    return Good("queue", queue.path + " (SQLite " + std::string(sqlite::LibraryVersion()) + ")");
  RedisQueueOptions options;
  options.endpoint = queue.password.empty() ? fmt::format("redis://{}:{}/{}", queue.host, queue.port, queue.database)
                                            : fmt::format("redis://{}:{}@{}:{}/{}", queue.user, queue.password.Reveal(),
                                                          queue.host, queue.port, queue.database);
  options.prefix = queue.prefix;
  const auto redis = RedisQueue::Open(options, context.clock().Now() + kProbeTimeout);
  const std::string where = fmt::format("redis {}:{}", queue.host, queue.port);
  if (!redis) return Bad("queue", where + ": " + redis.error().message, "check queue.redis and that the server runs");
  const RedisServerInfo& info = (*redis)->Describe();
  std::string found = where + ", version " + info.version;
  for (const std::string& warning : info.warnings) found += "; " + warning;
  const auto memory = (*redis)->Memory();
  if (!memory) return Good("queue", found + "; how full it is is not known: " + memory.error().message);
  return MemoryFinding(std::move(found), *memory);
}

Finding LakeFinding(const Context& context) {
  const std::string& lake = context.config().lake;
  std::filesystem::path existing = lake;
  while (!existing.empty() && !std::filesystem::exists(existing)) existing = existing.parent_path();
  struct statvfs fs{};
  if (::statvfs(existing.c_str(), &fs) != 0) return Bad("lake", lake + ": cannot look at it", "check the setting 'lake'");
  const std::uint64_t free = std::uint64_t{fs.f_bavail} * fs.f_frsize;
  const std::string found = fmt::format("{}, {} free", lake, HumanBytes(static_cast<std::int64_t>(free)));
  if (::access(existing.c_str(), W_OK) != 0) return Bad("lake", lake + ": not writable", "give this user write access to it");
  return free >= kFreeBytesMin ? Good("lake", found) : Bad("lake", found, "free some space");
}

Finding ConnectionFinding(const ConnectionSpec& connection, const Clock& clock) {
  const std::string check = "connection " + connection.name;
  if (connection.type == "sqlite") return Good(check, connection.dsn);
  const auto pg = PgConnection::Connect({.dsn = connection.dsn, .application_name = "millrace doctor", .search_path = {}},
                                        clock, clock.Now() + kProbeTimeout);
  if (!pg) return Bad(check, pg.error().message, "check connections." + connection.name + ".dsn");
  const int version = (*pg)->server_version();
  return Good(check, fmt::format("PostgreSQL {}.{}", version / 10000, version % 10000));
}

struct Answer {
  std::string name;  // of the broker; empty: it could not even be asked
  Finding finding;
};

std::optional<Answer> AnsweringBroker(const Context& context, const std::string& endpoint) {
  auto transport = wire::MakeZmtpTransport();
  if (!transport) return Answer{{}, Bad("broker", transport.error().message, "")};
  auto client = BrokerClient::Connect(**transport, endpoint, context.clock());
  if (!client) return Answer{{}, Bad("broker", client.error().message, "check broker.listen_clients")};
  const auto status = client->Status(context.clock().Now() + kProbeTimeout);
  if (!status) return std::nullopt;
  return Answer{status->broker,
                Good("broker", fmt::format("{} at {}, {} workers", status->broker, endpoint, status->workers.size()))};
}

// What `answer`, from the address that `broker` announces, says of it.
Finding FindingOf(const BrokerAddress& broker, std::optional<Answer> answer) {
  constexpr const char* kFix = "give it an address as broker.listen_clients that reaches it from here";
  if (!answer)
    return Bad("broker",
               fmt::format("'{}' said less than {} s ago that it lives, and does not answer at {}", broker.name,
                           std::chrono::duration_cast<std::chrono::seconds>(kOwnershipTtl).count(), broker.clients),
               fmt::format("see whether it died or hangs, or {}", kFix));
  if (answer->name.empty() || answer->name == broker.name) return std::move(answer->finding);
  return Bad("broker",
             fmt::format("'{}' says that it is reached at {}, where '{}' answers", broker.name, broker.clients, answer->name),
             kFix);
}

// The configured one, and all others that live, as the ledger has them.
void BrokerFindings(const Context& context, Ledger* ledger, std::vector<Finding>& out) {
  const std::string& configured = context.config().broker.listen_clients;
  const auto here = AnsweringBroker(context, configured);
  out.push_back(here ? here->finding : Bad("broker", "nobody answers at " + configured, "start 'millrace broker'"));
  if (ledger == nullptr) return;
  const auto living = ledger->LivingBrokers(context.clock().Now() + kProbeTimeout);
  if (!living) return out.push_back(Bad("broker", "which others live is not known: " + living.error().message, "see 'ledger'"));
  for (const auto& [owner, broker] : *living) {
    const bool is_configured = broker.clients == configured;
    if (broker.clients.empty() || (is_configured && (!here || here->name.empty() || here->name == broker.name))) continue;
    out.push_back(FindingOf(broker, is_configured ? here : AnsweringBroker(context, broker.clients)));
  }
}

// Of the broker that serves the org, if it answers: what is ready and taken by no connected worker. What waits a moment between
// two workers counts too, so that nothing that waits is passed over.
void UnservedFindings(const Context& context, Ledger* ledger, std::vector<Finding>& out) {
  auto door = ledger != nullptr ? Door::OpenOwners(context, *ledger, kBrokerPatience) : Door::Open(context, kBrokerPatience);
  if (!door || door->client() == nullptr) return;
  const auto reply = door->client()->ListUnserved(context.org(), context.clock().Now() + kProbeTimeout);
  if (!reply) return out.push_back(Good("workers", "what waits is not known: " + reply.error().message));
  for (const auto& item : reply->items)
    out.push_back(Bad("workers",
                      fmt::format("queue '{}': {} ready{}, and no connected worker takes them", item.queue, UnservedText(item),
                                  item.since ? " since " + ToRfc3339(*item.since) : std::string{}),
                      UnservedFix(item, reply->workers)));
  if (reply->more) out.push_back(Bad("workers", "and more queues, kinds and roots that no connected worker takes", ""));
  if (reply->items.empty()) out.push_back(Good("workers", "all that is ready is taken by a connected worker"));
}

}  // namespace

std::vector<Finding> Examine(Context& context) {
  std::vector<Finding> out;
  out.push_back(StageProgramFinding());
  out.push_back(TimeZones());
  const auto ledger = LedgerFindings(context, out);
  out.push_back(QueueFinding(context));
  out.push_back(LakeFinding(context));
  for (const ConnectionSpec& connection : context.Connections()) out.push_back(ConnectionFinding(connection, context.clock()));
  if (!context.embedded()) BrokerFindings(context, ledger.get(), out);
  UnservedFindings(context, ledger.get(), out);
  return out;
}

}  // namespace millrace::cli
