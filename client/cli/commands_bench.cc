// bench queue, latency, chain, scale, and the processes that they start.
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "client/bench/handler_worker.h"
#include "client/cli/bench_common.h"
#include "client/cli/commands.h"
#include "client/cli/engine.h"

namespace millrace::cli {
namespace {

constexpr std::uint64_t kJobsMax = 100'000'000;
constexpr double kRateMax = 10'000'000;
constexpr Millis kSleepMax{60'000};
constexpr std::uint64_t kBacklogPerWorker = 1000;  // scale by workers: a tenth of a second's work waits for each

Result<bench::QueueOptions> QueueOptionsOf(const BenchFlags& flags) {
  bench::QueueOptions q;
  q.submit.jobs = flags.jobs.value_or(100'000);
  q.submit.warmup = flags.warmup.value_or(0);
  q.submit.batch = flags.batch;
  q.submit.outstanding = flags.outstanding;
  q.submit.rate = flags.rate.value_or(0);
  q.submit.payload_bytes = flags.payload;
  q.submit.orgs = flags.orgs;
  q.submit.limit_keys = flags.limit_keys;
  q.submit.priorities = flags.priorities;
  q.workers = flags.workers;
  q.concurrency = flags.concurrency.value_or(bench::kConcurrencyMax);
  q.prefetch = flags.prefetch.value_or(0);
  q.drain = flags.drain;
  MILLRACE_TRY_ASSIGN(q.sleep, BenchDuration("--sleep", flags.sleep, kSleepMax));
  MILLRACE_TRY(BenchRange("--jobs", q.submit.jobs, 1, kJobsMax));
  if (q.submit.warmup >= q.submit.jobs)
    return Fail(ErrorCode::kInvalidArgument, "--warmup {}: expected less than --jobs ({})", q.submit.warmup, q.submit.jobs);
  MILLRACE_TRY(BenchRange("--payload", flags.payload, bench::kPayloadBytesMin, kPayloadBytesMax));
  MILLRACE_TRY(BenchRange("--workers", flags.workers, 1, 256));
  MILLRACE_TRY(BenchRange("--concurrency", q.concurrency, 1, bench::kConcurrencyMax));
  MILLRACE_TRY(BenchRange("--prefetch", q.prefetch, 0, bench::kConcurrencyMax));
  MILLRACE_TRY(BenchRange("--batch", flags.batch, 1, kBatchJobsMax));
  MILLRACE_TRY(BenchRange("--batch x --payload", flags.batch * (flags.payload + 200), 1, kFrameBytesMax));
  MILLRACE_TRY(BenchRange("--outstanding", flags.outstanding, 1, 10'000));
  MILLRACE_TRY(BenchRange("--orgs", flags.orgs, 1, 1'000'000));
  MILLRACE_TRY(BenchRange("--limit-keys", flags.limit_keys, 0, 10'000'000));
  MILLRACE_TRY(BenchRange("--priorities", flags.priorities, 1, kPriorityLevels));
  if (!(q.submit.rate >= 0 && q.submit.rate <= kRateMax))
    return Fail(ErrorCode::kInvalidArgument, "--rate {}: expected 0 (closed loop) to {} jobs per second", q.submit.rate,
                kRateMax);
  if (q.submit.rate > 0 && q.drain)
    return Fail(ErrorCode::kInvalidArgument, "--rate and --drain: a drain has no rate; leave one of them out");
  return q;
}

Table RateTable(const std::vector<bench::QueueResult>& results) {
  Table table{.columns = {"durability", "form", "jobs", "enqueued_per_s", "executed_per_s", "recorded_per_s", "outcomes",
                          "lost", "duplicated", "queue_bytes_per_job", "ledger_bytes_per_job", "busiest_core"},
              .rows = {}};
  for (const auto& r : results) {
    const auto number = [](double v) { return std::int64_t{std::lround(v)}; };
    const auto optional = [&](const std::optional<double>& v) { return v ? Cell(number(*v)) : Cell(); };
    table.rows.push_back({r.durability, r.form, static_cast<std::int64_t>(r.jobs), number(r.enqueued_per_s),
                          number(r.executed_per_s), number(r.recorded_per_s), static_cast<std::int64_t>(r.outcomes),
                          static_cast<std::int64_t>(r.lost), static_cast<std::int64_t>(r.duplicated),
                          optional(r.queue_bytes_per_waiting_job), optional(r.ledger_bytes_per_waiting_job),
                          BusiestCore(r.costs)});
  }
  return table;
}

Result<ExitCode> DoQueue(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  MILLRACE_TRY_ASSIGN(auto queue, QueueOptionsOf(options.bench));
  MILLRACE_TRY_ASSIGN(queue.submit.durability, BenchDurability(options.bench.durability.value_or("ledger")));
  return RunBench(options, *context, {}, [&](BenchTarget& target) -> Result<BenchReport> {
    queue.folder = target.folder();
    MILLRACE_TRY_ASSIGN(const auto result, bench::MeasureQueue(target.at(), queue));
    return BenchReport{.name = "queue",
                       .results_json = JsonArray({ToJson(result)}),
                       .tables = {RateTable({result}), LatencyTable({result}), CostTable({{result.durability, result.costs}})},
                       .sound = result.Sound()};
  });
}

Result<ExitCode> DoLatency(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  BenchFlags flags = options.bench;
  flags.warmup = flags.warmup.value_or(50);
  flags.jobs = flags.jobs.value_or(500) + *flags.warmup;
  flags.rate = flags.rate.value_or(100);
  flags.concurrency = flags.concurrency.value_or(100);
  flags.batch = 1;
  MILLRACE_TRY_ASSIGN(auto queue, QueueOptionsOf(flags));
  if (queue.submit.rate <= 0) return Fail(ErrorCode::kInvalidArgument, "--rate 0: latency needs a rate, such as 100");
  queue.submit.from_send = true;  // at this rate no send waits for an earlier one: there is no omission to make up for
  std::vector<Durability> classes{Durability::kLedger, Durability::kRedis};
  if (flags.durability) {
    MILLRACE_TRY_ASSIGN(const Durability only, BenchDurability(*flags.durability));
    classes = {only};
  }
  return RunBench(options, *context, {}, [&](BenchTarget& target) -> Result<BenchReport> {
    queue.folder = target.folder();
    BenchReport report{.name = "latency", .results_json = {}, .tables = {}, .sound = true};
    std::vector<bench::QueueResult> results;
    std::vector<std::string> items;
    for (const Durability durability : classes) {
      queue.submit.durability = durability;
      MILLRACE_TRY_ASSIGN(auto result, bench::MeasureQueue(target.at(), queue));
      report.sound = report.sound && result.Sound();
      items.push_back(ToJson(result));
      results.push_back(std::move(result));
    }
    report.results_json = JsonArray(items);
    std::vector<std::pair<std::string, bench::Costs>> costs;
    for (const auto& r : results) costs.emplace_back(r.durability, r.costs);
    report.tables = {LatencyTable(results), RateTable(results), CostTable(costs)};
    return report;
  });
}

Result<ExitCode> DoScale(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  BenchFlags flags = options.bench;
  const bool by_depth = !flags.depths.empty();
  if (by_depth && !flags.worker_counts.empty())
    return Fail(ErrorCode::kInvalidArgument, "--depths and --worker-counts: one at a time");
  MILLRACE_TRY_ASSIGN(
      const auto steps,
      by_depth ? BenchList("--depths", flags.depths, 1, kJobsMax)
               : BenchList("--worker-counts", flags.worker_counts.empty() ? "1,2,4,8" : flags.worker_counts, 1, 256));
  if (!by_depth && flags.sleep == "0ms") flags.sleep = "5ms";
  if (!by_depth) flags.concurrency = flags.concurrency.value_or(50);
  if (!by_depth) flags.prefetch = flags.prefetch.value_or(*flags.concurrency / 2);
  const std::uint64_t per_step = flags.jobs.value_or(by_depth ? 1'000'000 : 20'000);
  const std::uint64_t ageing = flags.warmup.value_or(by_depth ? 2 * per_step : 0);
  flags.warmup = 0;  // of a step: a tenth of it, below
  MILLRACE_TRY(BenchRange("--jobs", per_step, 1, kJobsMax));
  MILLRACE_TRY(BenchRange("--warmup", ageing, 0, kJobsMax));
  MILLRACE_TRY_ASSIGN(auto queue, QueueOptionsOf(flags));
  MILLRACE_TRY_ASSIGN(queue.submit.durability, BenchDurability(flags.durability.value_or("redis")));
  return RunBench(options, *context, {}, [&](BenchTarget& target) -> Result<BenchReport> {
    queue.folder = target.folder();
    BenchReport report{.name = "scale", .results_json = {}, .tables = {}, .sound = true};
    std::vector<std::string> items;
    const char* step_name = by_depth ? "depth" : "workers";
    std::vector<std::pair<std::string, bench::Costs>> costs;
    Table table{.columns = {step_name, "jobs", "waiting", "executed_per_s", "recorded_per_s", "share_of_first", "lost",
                            "duplicated", "busiest_core"},
                .rows = {}};
    if (ageing > 0) {
      queue.workers = flags.workers;
      queue.steady = {.depth = kBacklogPerWorker, .warmup = 0, .jobs = ageing};
      MILLRACE_TRY_ASSIGN(const auto result, bench::MeasureQueue(target.at(), queue));
      if (!result.Sound())
        return Fail(ErrorCode::kCorrupt, "before the first depth: {} lost, {} duplicated, {} corrupted of {} jobs", result.lost,
                    result.duplicated, result.corrupted, result.accepted);
    }
    double first = 0;
    for (const std::uint64_t step : steps) {
      queue.workers = by_depth ? flags.workers : static_cast<std::uint32_t>(step);
      const std::uint64_t jobs = by_depth ? per_step : step * per_step;
      queue.steady = {.depth = by_depth ? step : step * kBacklogPerWorker, .warmup = jobs / 10, .jobs = jobs};
      MILLRACE_TRY_ASSIGN(const auto result, bench::MeasureQueue(target.at(), queue));
      report.sound = report.sound && result.Sound();
      items.push_back(ToJson(result, {{step_name, static_cast<std::int64_t>(step)}}));
      const double each = by_depth ? result.recorded_per_s : result.executed_per_s / static_cast<double>(step);
      if (first == 0) first = each;
      costs.emplace_back(std::to_string(step), result.costs);
      table.rows.push_back({static_cast<std::int64_t>(step), static_cast<std::int64_t>(result.jobs),
                            static_cast<std::int64_t>(std::llround(result.steady->waiting_mean)),
                            static_cast<std::int64_t>(result.executed_per_s), static_cast<std::int64_t>(result.recorded_per_s),
                            fmt::format("{:.0f} %", first > 0 ? each / first * 100 : 0), static_cast<std::int64_t>(result.lost),
                            static_cast<std::int64_t>(result.duplicated), BusiestCore(result.costs)});
    }
    report.results_json = JsonArray(items);
    report.tables = {std::move(table), CostTable(costs)};
    return report;
  });
}

Result<ExitCode> DoChain(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  const BenchFlags& flags = options.bench;
  bench::ChainOptions chain;
  MILLRACE_TRY(BenchRange("--runs", flags.runs, 0, 10'000'000));
  chain.stages = flags.stages;
  chain.rate = flags.rate.value_or(0);
  chain.runs = flags.runs != 0 ? flags.runs : chain.rate > 0 ? static_cast<std::uint32_t>(chain.rate * 10) + 1 : 30;
  chain.warmup = static_cast<std::uint32_t>(flags.warmup.value_or(3));
  chain.workers = flags.workers;
  chain.concurrency = flags.concurrency.value_or(100);
  MILLRACE_TRY(BenchRange("--stages", flags.stages, 1, kStagesPerPipelineMax));
  MILLRACE_TRY(BenchRange("--warmup", chain.warmup, 0, 1'000'000));
  MILLRACE_TRY(BenchRange("--workers", flags.workers, 1, 256));
  MILLRACE_TRY(BenchRange("--concurrency", chain.concurrency, 1, bench::kConcurrencyMax));
  MILLRACE_TRY_ASSIGN(chain.sleep, BenchDuration("--sleep", flags.sleep, kSleepMax));
  if (!(chain.rate >= 0 && chain.rate <= 100'000))
    return Fail(ErrorCode::kInvalidArgument, "--rate {}: expected 0 (one run after another) to 100000 runs per second",
                chain.rate);
  const auto handlers = bench::ParseChainHandlers(flags.handlers);
  if (!handlers)
    return Fail(ErrorCode::kInvalidArgument, "--handlers '{}': expected inprocess, processes or sql", flags.handlers);
  chain.handlers = *handlers;
  MILLRACE_TRY(BenchRange("--rows", flags.stage_rows, 1, 10'000'000));
  chain.rows = flags.stage_rows;
  const bool workers = *handlers != bench::ChainHandlers::kInProcess;
  if (workers && flags.storage == "sqlite")
    return Fail(ErrorCode::kInvalidArgument, "--handlers {}: with --storage sqlite there is no worker; use servers",
                flags.handlers);
  const BenchTarget::Needs needs{.workers = workers ? 1 : 0, .worker_concurrency = 4, .scheduler = false};
  return RunBench(options, *context, needs, [&](BenchTarget& target) -> Result<BenchReport> {
    chain.folder = target.folder();
    MILLRACE_TRY_ASSIGN(const auto r, bench::MeasureChain(target.at(), chain));
    const auto whole = [](double v) { return std::int64_t{std::lround(v)}; };
    const auto micros = [](std::uint64_t v) { return static_cast<std::int64_t>(v); };
    Table table{.columns = {"handlers", "stages", "runs", "runs_per_min", "stages_per_core_s", "p50_us", "p99_us", "max_us",
                            "accepted_p50_us", "lost", "duplicated", "busiest_core"},
                .rows = {{flags.handlers, std::int64_t{chain.stages}, micros(r.runs), whole(r.runs_per_min),
                          whole(r.stages_per_core_s), micros(r.ended.p50_us), micros(r.ended.p99_us), micros(r.ended.max_us),
                          micros(r.accept.p50_us), micros(r.lost), micros(r.duplicated), BusiestCore(r.costs)}}};
    return BenchReport{.name = "chain",
                       .results_json = JsonArray({ToJson(r, chain.stages)}),
                       .tables = {std::move(table), CostTable({{"per stage", r.costs}})},
                       .sound = r.Sound()};
  });
}

std::atomic<bool> stop_handlers{false};

Result<ExitCode> DoHandler(const Options& options) {
  const BenchFlags& flags = options.bench;
  ConfigureLog(LogLevel::kWarn, LogFormat::kText, options.name);
  std::signal(SIGTERM, [](int) { stop_handlers = true; });
  std::signal(SIGINT, [](int) { stop_handlers = true; });
  MILLRACE_TRY_ASSIGN(const auto board, bench::Scoreboard::Open(flags.board, flags.jobs.value_or(1), flags.handler_count));
  const bench::HandlerOptions handler{.endpoint = flags.endpoint,
                                      .name = options.name,
                                      .kind = flags.kind,
                                      .queue = options.queue,
                                      .concurrency = flags.concurrency.value_or(1),
                                      .prefetch = flags.prefetch.value_or(0),
                                      .sleep = Millis{flags.sleep_ms},
                                      .index = flags.index};
  MILLRACE_TRY(bench::ServeHandlers(handler, board, stop_handlers));
  return ExitCode::kOk;
}

// `millrace broker` for the embedded stores: bench alone, which has one process on them, starts it.
Result<ExitCode> DoServeBroker(const Options& options) {
  BlockStopSignals();
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "broker"));
  MILLRACE_TRY_ASSIGN(const auto engine, Engine::Start(*context, {.broker = true}));
  MILLRACE_TRY(ServeUntilSignal(*engine));
  return ExitCode::kOk;
}

}  // namespace

ExitCode BenchQueue(const Options& options) { return Finish(DoQueue(options)); }
ExitCode BenchLatency(const Options& options) { return Finish(DoLatency(options)); }
ExitCode BenchChain(const Options& options) { return Finish(DoChain(options)); }
ExitCode BenchScale(const Options& options) { return Finish(DoScale(options)); }
ExitCode BenchHandler(const Options& options) { return Finish(DoHandler(options)); }
ExitCode BenchServeBroker(const Options& options) { return Finish(DoServeBroker(options)); }

}  // namespace millrace::cli
