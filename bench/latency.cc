// Submit-to-recorded latency, seen by a client of a running broker: bench/run_latency starts the servers and this program.
//   millrace_latency --endpoint E --ledger DSN --work DIR --form NAME [--runs N] [--warmup N] [--gap-ms N] [--scenario S]...
// Each run is planned here, sent as one SubmitRun with watch, and ends when the RunUpdate with its terminal state arrives,
// which the broker sends after the outcome is durable. Afterwards the ledger is read for its own times, for lost and repeated
// work, and for where the time of each run went. Prints one JSON object; run_latency makes tables of it.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "bench/samples.h"
#include "common/base/random.h"
#include "common/ledger/ledger.h"
#include "common/model/pipeline_parser.h"
#include "common/model/run_plan.h"
#include "common/wire/messages.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr Millis kRunBudget{60'000};
constexpr int kChainStages = 40;

struct Arguments {
  std::string endpoint, ledger, work, form = "embedded";
  int runs = 30, warmup = 5;
  Millis gap{500};
  std::vector<std::string> scenarios;
};

struct Scenario {
  std::string name, yaml;
  double limit_ms;  // what the project promises; 0 = nothing
};

std::string ChainYaml() {
  std::string yaml = "version: 1\npipeline: chain\nstages:\n";
  for (int i = 1; i <= kChainStages; ++i) {
    yaml += fmt::format("  s{}:\n    command: [sleep, \"0.01\"]\n", i);
    if (i > 1) yaml += fmt::format("    after: s{}\n", i - 1);
  }
  return yaml;
}

std::vector<Scenario> Scenarios() {
  return {{"noop", "version: 1\npipeline: noop\nstages:\n  only:\n    command: [\"true\"]\n", 0},
          {"tiny", R"(version: 1
pipeline: tiny
stages:
  sales:
    extract: { from: file, path: tiny.csv }
  by_shop:
    transform: |
      select day, shop, count(*) as sales, sum(amount) as total from sales group by day, shop
  result:
    load: { from: by_shop, to: warehouse, table: bench.tiny, mode: append }
)",
           100},
          {"chain40", ChainYaml(), 1500}};
}

// One conversation with the broker; used by one thread.
class Client {
 public:
  static Result<Client> Connect(const std::string& endpoint) {
    MILLRACE_TRY_ASSIGN(auto transport, wire::MakeZmtpTransport());
    MILLRACE_TRY_ASSIGN(auto socket, transport->Connect(endpoint));
    return Client(std::move(transport), std::move(socket));
  }

  Result<void> Send(const wire::Message& message, MonoTime deadline) {
    const std::string frame = wire::Encode(message);
    while (true) {
      auto sent = socket_->Send(frame);
      if (sent || sent.error().code != ErrorCode::kUnavailable || clock_.Now() >= deadline) return sent;
      transport_->Wait(Millis{10});  // not connected yet
    }
  }

  Result<wire::Message> Next(MonoTime deadline) {
    while (true) {
      if (auto frame = socket_->Receive()) return wire::Decode(*frame);
      const MonoTime now = clock_.Now();
      if (now >= deadline) return Fail(ErrorCode::kTimedOut, "the broker did not answer");
      transport_->Wait(std::chrono::ceil<Millis>(deadline - now));
    }
  }

 private:
  Client(std::unique_ptr<wire::Transport> transport, std::unique_ptr<wire::ClientSocket> socket)
      : transport_(std::move(transport)), socket_(std::move(socket)) {}
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> socket_;  // destroyed before its transport
  SystemClock clock_;
};

struct OneRun {
  RunId id;
  double accepted_ms = 0, ended_ms = 0;  // after the submit was sent
  bool succeeded = false;
};

Result<OneRun> RunOnce(Client& client, const RunPlan& plan, const Clock& clock) {
  OneRun one{.id = plan.run.id};
  const MonoTime start = clock.Now(), deadline = start + kRunBudget;
  const auto since = [&] { return static_cast<double>((clock.Now() - start).count()) / 1000.0; };
  MILLRACE_TRY(client.Send(wire::SubmitRun{.request = 1, .run = plan.run, .jobs = plan.jobs, .watch = true}, deadline));
  while (true) {
    MILLRACE_TRY_ASSIGN(const wire::Message message, client.Next(deadline));
    if (const auto* problem = std::get_if<wire::Problem>(&message))
      return Fail(ErrorCode::kRejected, "{}: {}", problem->code, problem->message);
    if (std::holds_alternative<wire::SubmitReply>(message)) one.accepted_ms = since();
    const auto* update = std::get_if<wire::RunUpdate>(&message);
    if (update == nullptr || update->run != plan.run.id || !IsTerminal(update->state)) continue;
    one.ended_ms = since();
    one.succeeded = update->state == RunState::kSucceeded;
    if (!one.succeeded) fmt::print(stderr, "run {}: {} {}\n", one.id.ToString(), Name(update->state), update->reason);
    return one;
  }
}

double Between(WallTime from, WallTime to) { return static_cast<double>((to - from).count()) / 1000.0; }

// Where one run's time went, by the ledger's rows: per stage the wait from when it could start (the run's acceptance is in
// `accept`, the earlier stage's record otherwise) to its start in the worker, its execution there, and from its end to the
// moment its outcome was handed to the ledger thread.
struct Hops {
  std::map<std::string, Samples> stage;  // "sales: start", "sales: run", "sales: record"
  std::vector<std::string> order;
  void Add(const std::string& name, double ms) {
    if (!stage.contains(name)) order.push_back(name);
    stage[name].Add(ms);
  }
};

struct Facts {
  Samples ledger_ms;
  int lost = 0, repeated = 0;
  Hops hops;
};

Result<void> ReadRun(Ledger& ledger, RunId id, bool hops, Facts& facts, const Clock& clock) {
  MILLRACE_TRY_ASSIGN(const RunDetail detail, ledger.GetRun(kDefaultOrg, id, clock.Now() + Millis{10'000}));
  if (detail.summary.state != RunState::kSucceeded || !detail.summary.finished_at) {
    ++facts.lost;
    return {};
  }
  facts.ledger_ms.Add(Between(detail.summary.spec.created_at, *detail.summary.finished_at));
  WallTime from = detail.summary.spec.created_at;
  double start = 0, run = 0, record = 0;
  for (const JobDetail& job : detail.jobs) {
    if (!job.outcome) {
      ++facts.lost;
      continue;
    }
    facts.repeated += static_cast<int>(job.attempts.size());
    const AttemptReport& report = job.outcome->report;
    start += Between(from, report.started_at);
    run += Between(report.started_at, report.finished_at);
    record += Between(report.finished_at, job.outcome->recorded_at);
    if (hops) {
      facts.hops.Add(job.spec.stage + ": until started", Between(from, report.started_at));
      facts.hops.Add(job.spec.stage + ": in the worker", Between(report.started_at, report.finished_at));
      facts.hops.Add(job.spec.stage + ": back to the broker", Between(report.finished_at, job.outcome->recorded_at));
    }
    from = job.outcome->recorded_at;
  }
  facts.hops.Add("all stages: until started", start);
  facts.hops.Add("all stages: in the worker", run);
  facts.hops.Add("all stages: back to the broker", record);
  return {};
}

Result<Json> Measure(const Arguments& args, const Scenario& scenario, Client& client, IdGenerator& ids, const Clock& clock) {
  auto parsed = ParsePipeline(scenario.yaml, scenario.name + ".yaml");
  if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, scenario.yaml));
  Samples accepted, ended;
  std::vector<RunId> measured;
  int failed = 0;
  for (int i = -args.warmup; i < args.runs; ++i) {
    RunRequest request;
    request.version = 1;
    request.base_dir = args.work;
    request.overlap = "allow";
    request.now = clock.WallNow();
    MILLRACE_TRY_ASSIGN(const RunPlan plan, PlanRun(*parsed.pipeline, request, ids));
    MILLRACE_TRY_ASSIGN(const OneRun one, RunOnce(client, plan, clock));
    failed += one.succeeded ? 0 : 1;
    if (i >= 0) {
      accepted.Add(one.accepted_ms);
      ended.Add(one.ended_ms);
      measured.push_back(one.id);
    }
    std::this_thread::sleep_for(args.gap);
  }
  const bool postgres = args.ledger.find('=') != std::string::npos;
  const LedgerOptions options{.dsn = args.ledger, .clock = &clock, .writer = ids.Next<AuditWriterId>(), .actor = "bench"};
  const MonoTime open_until = clock.Now() + Millis{10'000};
  MILLRACE_TRY_ASSIGN(const auto ledger,
                      postgres ? OpenPostgresLedger(options, open_until) : OpenSqliteLedger(options, open_until));
  Facts facts;
  for (const RunId id : measured) MILLRACE_TRY(ReadRun(*ledger, id, parsed.pipeline->stages.size() <= 3, facts, clock));
  Json hops = Json::object();
  for (const std::string& name : facts.hops.order) hops[name] = facts.hops.stage.at(name).Median();
  const auto shape = [](const Samples& s) {
    return Json{{"min", s.Min()}, {"p50", s.Median()}, {"p95", s.Percentile(0.95)}, {"max", s.Max()}};
  };
  return Json{{"form", args.form},
              {"scenario", scenario.name},
              {"runs", args.runs},
              {"runs_with_warmup", args.runs + args.warmup},
              {"gap_ms", args.gap.count()},
              {"limit_ms", scenario.limit_ms},
              {"accepted_ms", shape(accepted)},
              {"ended_ms", shape(ended)},
              {"ledger_ms", shape(facts.ledger_ms)},
              {"failed", failed},
              {"lost", facts.lost},
              {"repeated_attempts", facts.repeated},
              {"hops_p50_ms", hops}};
}

Result<Arguments> Parse(int argc, char** argv) {
  Arguments args;
  for (int i = 1; i < argc; i += 2) {
    const std::string key = argv[i];
    if (i + 1 >= argc) return Fail(ErrorCode::kInvalidArgument, "{} needs a value", key);
    const std::string value = argv[i + 1];
    if (key == "--endpoint")
      args.endpoint = value;
    else if (key == "--ledger")
      args.ledger = value;
    else if (key == "--work")
      args.work = value;
    else if (key == "--form")
      args.form = value;
    else if (key == "--runs")
      args.runs = std::max(1, std::atoi(value.c_str()));
    else if (key == "--warmup")
      args.warmup = std::max(0, std::atoi(value.c_str()));
    else if (key == "--gap-ms")
      args.gap = Millis{std::max(0, std::atoi(value.c_str()))};
    else if (key == "--scenario")
      args.scenarios.push_back(value);
    else
      return Fail(ErrorCode::kInvalidArgument, "unknown argument '{}'", key);
  }
  if (args.endpoint.empty() || args.ledger.empty() || args.work.empty())
    return Fail(ErrorCode::kInvalidArgument, "--endpoint, --ledger and --work are needed");
  return args;
}

Result<void> Run(int argc, char** argv) {
  MILLRACE_TRY_ASSIGN(const Arguments args, Parse(argc, argv));
  std::error_code ec;
  std::filesystem::create_directories(args.work, ec);
  std::ofstream csv(args.work + "/tiny.csv");
  csv << "id,day,shop,amount\n1,2026-01-01,north,10.50\n2,2026-01-01,south,7.00\n3,2026-01-02,north,3.25\n";
  csv.close();
  if (!csv) return Fail(ErrorCode::kUnavailable, "cannot write {}/tiny.csv", args.work);
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  MILLRACE_TRY_ASSIGN(Client client, Client::Connect(args.endpoint));
  Json all = Json::array();
  for (const Scenario& scenario : Scenarios()) {
    if (!args.scenarios.empty() && std::ranges::find(args.scenarios, scenario.name) == args.scenarios.end()) continue;
    MILLRACE_TRY_ASSIGN(Json measured, Measure(args, scenario, client, ids, clock));
    all.push_back(std::move(measured));
  }
  fmt::print("{}\n", all.dump());
  return {};
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const auto done = millrace::bench::Run(argc, argv);
  if (done) return 0;
  fmt::print(stderr, "millrace_latency: {}\n", done.error().message);
  return 1;
}
