#include "client/cli/bench_common.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "client/bench/probe.h"
#include "common/base/tell.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr Millis kRunningTimeout{3000};

double Rounded(double value, double unit) {
  const double per_one = std::round(1 / unit);
  return std::round(value * per_one) / per_one;
}

Json LatencyJson(const bench::Latency& l) {
  return {{"count", l.count}, {"p50_us", l.p50_us}, {"p99_us", l.p99_us}, {"p999_us", l.p999_us}, {"max_us", l.max_us}};
}

Json CostsJson(const bench::Costs& costs) {
  Json processes = Json::object(), cores = Json::array();
  for (const auto& [name, cost] : costs.processes)
    processes[name] = {{"cpu_us_per_job", Rounded(cost.cpu_us_per_job, 0.01)},
                       {"rss_mb", Rounded(cost.rss_mb, 0.1)},
                       {"pss_mb", Rounded(cost.pss_mb, 0.1)}};
  for (const double busy : costs.core_busy) cores.push_back(Rounded(busy, 0.01));
  return {{"processes", processes}, {"core_busy", cores}};
}

Json PairsJson(const std::vector<std::pair<std::string, std::string>>& pairs) {
  Json json = Json::object();
  for (const auto& [name, value] : pairs) json[name] = value;
  return json;
}

std::uint16_t PortOf(const std::string& endpoint) {
  const auto colon = endpoint.rfind(':');
  return colon == std::string::npos ? std::uint16_t{0} : static_cast<std::uint16_t>(std::atoi(endpoint.c_str() + colon + 1));
}

// What the configuration names, with the processes of this host that serve it.
bench::Installation Configured(const Context& context) {
  const Config& config = context.config();
  bench::Installation at;
  at.clients = context.ClientEndpoint();
  at.workers = config.worker.brokers.empty() ? config.broker.listen_workers : config.worker.brokers.front();
  at.ledger = config.ledger.dsn.Reveal();
  const QueueConfig& queue = config.queue;
  const std::string login = queue.password.empty() ? "" : fmt::format("{}:{}@", queue.user, queue.password.Reveal());
  at.redis = fmt::format("redis://{}{}:{}/{}", login, queue.host, queue.port, queue.database);
  if (const auto pid = bench::ListenerOf(PortOf(at.clients))) at.processes.emplace_back("broker", *pid);
  if (const auto pid = bench::ListenerOf(queue.port)) at.processes.emplace_back("redis", *pid);
  const auto port = at.ledger.find("port=");
  const int number = port == std::string::npos ? 5432 : std::atoi(at.ledger.c_str() + port + 5);
  if (const auto pid = bench::ListenerOf(static_cast<std::uint16_t>(number))) at.processes.emplace_back("postgres", *pid);
  return at;
}

Result<bench::OwnOptions> OwnOptionsOf(const BenchFlags& flags, const BenchTarget::Needs& needs) {
  if (flags.storage != "servers" && flags.storage != "sqlite")
    return Fail(ErrorCode::kInvalidArgument, "--storage '{}': expected servers or sqlite", flags.storage);
  if (flags.appendfsync != "always" && flags.appendfsync != "everysec" && flags.appendfsync != "no")
    return Fail(ErrorCode::kInvalidArgument, "--appendfsync '{}': expected always, everysec or no", flags.appendfsync);
  bench::OwnOptions own;
  own.sqlite = flags.storage == "sqlite";
  own.appendfsync = flags.appendfsync;
  own.workers = needs.workers;
  own.worker_concurrency = needs.worker_concurrency;
  own.scheduler = needs.scheduler;
  own.keep = flags.keep;
  if (own.sqlite && needs.scheduler)
    return Fail(ErrorCode::kInvalidArgument, "--storage sqlite: this benchmark needs a scheduler of its own: use servers");
  return own;
}

}  // namespace

Result<BenchTarget> BenchTarget::Make(const Options& options, Context& context, const Needs& needs) {
  bench::CatchStopSignals();
  BenchTarget target;
  target.machine_ = bench::ProbeMachine();
  MILLRACE_TRY_ASSIGN(const auto own, OwnOptionsOf(options.bench, needs));
  if (context.embedded() || options.bench.own) {
    MILLRACE_TRY_ASSIGN(auto installation, bench::OwnInstallation::Start(own));
    target.own_.emplace(std::move(installation));
    return target;
  }
  if (own.sqlite) return Fail(ErrorCode::kInvalidArgument, "--storage sqlite is for an installation of its own: add --own");
  target.running_ = Configured(context);
  if (auto ready = bench::AwaitBroker(target.running_.clients, 0, kRunningTimeout); !ready) {
    if (ready.error().code == ErrorCode::kCancelled) return std::unexpected(std::move(ready.error()));
    return Fail(ErrorCode::kUnavailable,
                "{}: start 'millrace broker', or give --own to measure an installation that bench starts for itself",
                ready.error().message);
  }
  MILLRACE_TRY_ASSIGN(target.folder_, bench::MakeTemporaryFolder());
  return target;
}

BenchTarget::~BenchTarget() {
  std::error_code ec;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ec);
}

void BenchTarget::KeepLogs() {
  if (own_) own_->Keep();
  Tell("millrace: logs are in {}\n", folder());
  folder_.clear();
}

Result<Durability> BenchDurability(const std::string& text) {
  const auto durability = ParseDurability(text);
  if (!durability) return Fail(ErrorCode::kInvalidArgument, "--durability '{}': expected ledger or redis", text);
  return *durability;
}

Result<void> BenchRange(const char* option, std::uint64_t value, std::uint64_t min, std::uint64_t max) {
  if (value < min || value > max) return Fail(ErrorCode::kInvalidArgument, "{} {}: expected {} to {}", option, value, min, max);
  return {};
}

Result<std::vector<std::uint64_t>> BenchList(const std::string& option, const std::string& text, std::uint64_t min,
                                             std::uint64_t max) {
  std::vector<std::uint64_t> values;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, end - at);
    const bool number = !item.empty() && item.size() < 12 && item.find_first_not_of("0123456789") == std::string::npos;
    const std::uint64_t value = number ? std::strtoull(item.c_str(), nullptr, 10) : 0;
    if (!number || value < min || value > max)
      return Fail(ErrorCode::kInvalidArgument, "{} '{}': expected numbers from {} to {} with commas between them", option, text,
                  min, max);
    values.push_back(value);
    at = end + 1;
  }
  return values;
}

Result<Millis> BenchDuration(const char* option, const std::string& text, Millis max) {
  const auto duration = ParseDuration(text);
  if (!duration || *duration > max)
    return Fail(ErrorCode::kInvalidArgument, "{} '{}': expected a duration up to {} ms, such as 5ms", option, text,
                max.count());
  return *duration;
}

std::string ToJson(const bench::QueueResult& r, const std::vector<std::pair<std::string, std::int64_t>>& label) {
  Json json = Json::object();
  for (const auto& [name, value] : label) json[name] = value;
  json.update(Json{{"durability", r.durability},
                   {"form", r.form},
                   {"jobs", r.jobs},
                   {"enqueued_per_s", std::llround(r.enqueued_per_s)},
                   {"executed_per_s", std::llround(r.executed_per_s)},
                   {"recorded_per_s", std::llround(r.recorded_per_s)},
                   {"wall_s", Rounded(r.costs.wall_s, 0.001)},
                   {"accepted", r.accepted},
                   {"executed", r.executed},
                   {"outcomes", r.outcomes},
                   {"lost", r.lost},
                   {"duplicated", r.duplicated},
                   {"redelivered", r.redelivered},
                   {"corrupted", r.corrupted},
                   {"accept", LatencyJson(r.accept)},
                   {"pickup", LatencyJson(r.pickup)},
                   {"outcome", LatencyJson(r.outcome)}});
  json.update(CostsJson(r.costs));
  const auto optional = [](const std::optional<double>& v) { return v ? Json(Rounded(*v, 0.1)) : Json(nullptr); };
  json["queue_bytes_per_waiting_job"] = optional(r.queue_bytes_per_waiting_job);
  json["ledger_bytes_per_waiting_job"] = optional(r.ledger_bytes_per_waiting_job);
  if (r.steady)
    json["waiting"] = {
        {"mean", std::llround(r.steady->waiting_mean)}, {"min", r.steady->waiting_min}, {"max", r.steady->waiting_max}};
  return json.dump();
}

std::string BenchJson(const std::vector<std::pair<std::string, std::uint64_t>>& counts,
                      const std::vector<std::pair<std::string, bench::Latency>>& latencies, const bench::Costs& costs) {
  Json json = Json::object();
  for (const auto& [name, value] : counts) json[name] = value;
  for (const auto& [name, latency] : latencies) json[name] = LatencyJson(latency);
  json.update(CostsJson(costs));
  return json.dump();
}

std::string JsonArray(const std::vector<std::string>& items) {
  std::string out = "[";
  for (const std::string& item : items) out += (out.size() > 1 ? "," : "") + item;
  return out + "]";
}

Table LatencyTable(const std::vector<bench::QueueResult>& results) {
  Table table{.columns = {"durability", "latency_from_send_to", "p50_us", "p99_us", "p999_us", "max_us"}, .rows = {}};
  for (const auto& r : results) {
    const auto add = [&](const char* name, const bench::Latency& l) {
      table.rows.push_back({r.durability, std::string(name), static_cast<std::int64_t>(l.p50_us),
                            static_cast<std::int64_t>(l.p99_us), static_cast<std::int64_t>(l.p999_us),
                            static_cast<std::int64_t>(l.max_us)});
    };
    add("accepted", r.accept);
    add("handler called", r.pickup);
    add("outcome durable", r.outcome);
  }
  return table;
}

Table CostTable(const std::vector<std::pair<std::string, bench::Costs>>& costs) {
  Table table{.columns = {"measurement", "process", "cpu_us_per_job", "rss_mb", "pss_mb"}, .rows = {}};
  for (const auto& [label, one] : costs)
    for (const auto& [name, cost] : one.processes)
      table.rows.push_back(
          {label, name, Rounded(cost.cpu_us_per_job, 0.1), Rounded(cost.rss_mb, 0.1), Rounded(cost.pss_mb, 0.1)});
  return table;
}

std::string BusiestCore(const bench::Costs& costs) {
  const auto busiest = std::ranges::max_element(costs.core_busy);
  return busiest == costs.core_busy.end() ? "" : fmt::format("{:.0f} %", *busiest * 100);
}

std::string ToJson(const bench::ChainResult& r, std::uint32_t stages) {
  Json json{{"handlers", Name(r.handlers)},
            {"stages", stages},
            {"runs", r.runs},
            {"runs_per_min", std::llround(r.runs_per_min)},
            {"stages_per_core_s", Rounded(r.stages_per_core_s, 0.1)},
            {"succeeded", r.succeeded},
            {"outcomes", r.outcomes},
            {"lost", r.lost},
            {"duplicated", r.duplicated},
            {"accept", LatencyJson(r.accept)},
            {"ended", LatencyJson(r.ended)},
            {"ended_p99_us_by_quarter", r.ended_p99_by_quarter}};
  json.update(CostsJson(r.costs));
  return json.dump();
}

Result<ExitCode> PrintBench(Context& context, const BenchTarget& target, const BenchReport& report) {
  auto versions = std::vector<std::pair<std::string, std::string>>{{"millrace", MILLRACE_VERSION}};
  MILLRACE_TRY_ASSIGN(auto servers, bench::ProbeServers(target.at()));
  std::vector<std::pair<std::string, std::string>> durability;
  for (auto& [name, value] : servers) (name.ends_with("_fsync") ? durability : versions).emplace_back(name, value);
  const char* installation = target.own() ? "own" : "running";
  if (context.full_format() == OutputFormat::kJson) {
    const Json json{{"bench", report.name},
                    {"installation", installation},
                    {"machine", PairsJson(target.machine())},
                    {"versions", PairsJson(versions)},
                    {"durability", PairsJson(durability)},
                    {"sound", report.sound},
                    {"results", Json::parse(report.results_json)}};
    fmt::print("{}\n", json.dump(2));
  } else if (context.full_format() == OutputFormat::kTable) {
    for (const auto* pairs : std::array{&target.machine(), &std::as_const(versions), &std::as_const(durability)}) {
      std::string line;
      for (const auto& [name, value] : *pairs) line += fmt::format("{}{}: {}", line.empty() ? "" : "; ", name, value);
      fmt::print("{}\n", line);
    }
    for (const Table& table : report.tables) fmt::print("\n{}", Format(table, OutputFormat::kTable));
  } else if (!report.tables.empty()) {
    Print(report.tables.front(), context.full_format());
  }
  if (report.sound) return ExitCode::kOk;
  Tell("millrace: work was lost, done twice or damaged: see the counts\n");
  return ExitCode::kWorkFailed;
}

Result<ExitCode> RunBench(const Options& options, Context& context, const BenchTarget::Needs& needs,
                          const BenchMeasure& measure) {
  MILLRACE_TRY_ASSIGN(BenchTarget target, BenchTarget::Make(options, context, needs));
  auto report = measure(target);
  if (!report) {
    if (report.error().code != ErrorCode::kCancelled) target.KeepLogs();
    return std::unexpected(std::move(report.error()));
  }
  if (!report->sound) target.KeepLogs();
  return PrintBench(context, target, *report);
}

}  // namespace millrace::cli
