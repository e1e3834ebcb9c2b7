#include "client/bench/chain_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>

#include "client/bench/handler_fleet.h"
#include "client/bench/line.h"
#include "client/bench/payload.h"
#include "client/bench/probe.h"
#include "common/base/random.h"
#include "common/model/pipeline_parser.h"

namespace millrace::bench {
namespace {

constexpr Millis kStandstill{60'000};
constexpr Millis kWatchAgain{5000};  // an update may be lost with a connection
constexpr Millis kWaitMax{100};
constexpr std::size_t kPayload = 100;

class ChainMeasurement {
 public:
  ChainMeasurement(const Installation& at, const ChainOptions& options, std::string name, HandlerFleet fleet, Line line)
      : at_(at),
        options_(options),
        name_(std::move(name)),
        fleet_(std::move(fleet)),
        line_(std::move(line)),
        meter_(at),
        ids_(clock_, random_) {}

  Result<ChainResult> Run() {
    switch (options_.handlers) {
      case ChainHandlers::kInProcess: MILLRACE_TRY(fleet_.Start(at_)); break;
      case ChainHandlers::kProcesses: MILLRACE_TRY(Parse(Commands())); break;
      case ChainHandlers::kSql: MILLRACE_TRY(Parse(Transforms())); break;
    }
    meter_.Begin(fleet_.processes());
    start_ = moved_ = clock_.Now();
    const std::uint32_t all = options_.warmup + options_.runs;
    while (ended_ < all) {
      MILLRACE_TRY(SendDue(all));
      line_.Wait(kWaitMax, options_.rate > 0 && sent_ < all ? alarm_.fd() : -1);
      MILLRACE_TRY(Receive());
      if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      MILLRACE_TRY(WatchAgain());
    }
    result_.costs = meter_.End(fleet_.processes(), static_cast<double>(all) * options_.stages);
    fleet_.Stop();
    return Evaluate();
  }

 private:
  struct Pending {
    std::uint32_t number = 0;
    MonoTime intended{};
  };

  std::string Commands() const {
    std::string stages;
    for (std::uint32_t i = 1; i <= options_.stages; ++i) {
      stages +=
          fmt::format("  s{}:\n    command: [sleep, \"{:.3f}\"]\n", i, static_cast<double>(options_.sleep.count()) / 1000);
      if (i > 1) stages += fmt::format("    after: s{}\n", i - 1);
    }
    return stages;
  }

  std::string Transforms() const {
    std::string stages = fmt::format(
        "  s1:\n    transform: select i as id, i % 97 as shop, i * 0.25 as amount from range({}) t(i)\n", options_.rows);
    for (std::uint32_t i = 2; i <= options_.stages; ++i)
      stages += fmt::format("  s{}:\n    transform: select id, shop, amount + 1 as amount from s{}\n", i, i - 1);
    return stages;
  }

  Result<void> Parse(const std::string& stages) {
    const std::string yaml = "version: 1\npipeline: " + name_ + "\nstages:\n" + stages;
    auto parsed = ParsePipeline(yaml, "chain.yaml");
    if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, yaml));
    pipeline_ = std::move(*parsed.pipeline);
    return {};
  }

  MonoTime IntendedAt(std::uint32_t number) const {
    return start_ + Micros{static_cast<std::int64_t>(std::llround(static_cast<double>(number) * 1e6 / options_.rate))};
  }

  Result<void> SendDue(std::uint32_t all) {
    while (sent_ < all) {
      const MonoTime now = clock_.Now();
      const bool due = options_.rate > 0 ? IntendedAt(sent_) <= now : pending_.empty();
      if (!due) break;
      MILLRACE_TRY(SendRun(options_.rate > 0 ? IntendedAt(sent_) : now));
    }
    if (options_.rate > 0 && sent_ < all) alarm_.Set(IntendedAt(sent_));
    return {};
  }

  Result<void> SendRun(MonoTime intended) {
    wire::SubmitRun submit{.request = sent_ + 1, .run = {}, .jobs = {}, .watch = true};
    if (pipeline_) {
      RunRequest request;
      request.version = 1;
      request.base_dir = options_.folder;
      request.overlap = "allow";
      request.now = clock_.WallNow();
      MILLRACE_TRY_ASSIGN(auto plan, PlanRun(*pipeline_, request, ids_));
      submit.run = std::move(plan.run);
      submit.jobs = std::move(plan.jobs);
    } else {
      MakeJobs(submit, intended);
    }
    runs_.push_back(submit.run.id);
    pending_.emplace(submit.run.id.uuid, Pending{.number = sent_, .intended = intended});
    accepting_.emplace(submit.request, Pending{.number = sent_, .intended = intended});
    ++sent_;
    return line_.Send(submit);
  }

  void MakeJobs(wire::SubmitRun& submit, MonoTime intended) {
    submit.run.id = ids_.Next<RunId>();
    submit.run.pipeline = name_;
    submit.run.version = 1;
    submit.run.overlap = "allow";
    submit.run.created_at = clock_.WallNow();
    for (std::uint32_t stage = 0; stage < options_.stages; ++stage) {
      JobSpec job;
      job.id = ids_.Next<JobId>();
      job.run = submit.run.id;
      job.stage = fmt::format("s{}", stage + 1);
      job.kind = job.queue = name_;
      job.submitted_at = submit.run.created_at;
      if (stage > 0) job.depends_on = {submit.jobs.back().id};
      const std::uint64_t number = std::uint64_t{sent_} * options_.stages + stage;
      job.payload = EncodePayload({.number = number, .intended = stage == 0 ? intended : MonoTime{}}, kPayload);
      submit.jobs.push_back(std::move(job));
    }
  }

  Result<void> Receive() {
    while (true) {
      MILLRACE_TRY_ASSIGN(const auto message, line_.Receive());
      if (!message) return {};
      const MonoTime now = clock_.Now();
      if (const auto* problem = std::get_if<wire::Problem>(&*message))
        return Fail(ErrorCode::kRejected, "the broker refused a run: {}: {}", problem->code, problem->message);
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) {
        const auto it = accepting_.find(reply->request);
        if (it == accepting_.end()) continue;
        if (it->second.number >= options_.warmup) accept_.Add((now - it->second.intended).count());
        accepting_.erase(it);
      } else if (const auto* update = std::get_if<wire::RunUpdate>(&*message)) {
        if (IsTerminal(update->state)) Ended(*update, now);
      }
    }
  }

  void Ended(const wire::RunUpdate& update, MonoTime now) {
    const auto it = pending_.find(update.run.uuid);
    if (it == pending_.end()) return;
    const Pending run = it->second;
    pending_.erase(it);
    ++ended_;
    last_ended_ = moved_ = now;
    if (run.number < options_.warmup) {
      first_timed_ = now;
      return;
    }
    result_.succeeded += update.state == RunState::kSucceeded ? 1U : 0U;
    const std::int64_t took = (now - run.intended).count();
    ended_in_.Add(took);
    quarters_[std::min<std::uint64_t>(3, (run.number - options_.warmup) * std::uint64_t{4} / options_.runs)].Add(took);
  }

  Result<void> WatchAgain() {
    const MonoTime now = clock_.Now();
    if (pending_.empty() || now - moved_ < kWatchAgain) return {};
    if (now - moved_ > kStandstill)
      return Fail(ErrorCode::kTimedOut, "{} runs have not ended, and none has for {} s{}", pending_.size(),
                  kStandstill.count() / 1000, pipeline_ ? ": is there a worker?" : "");
    if (now < next_watch_) return {};
    next_watch_ = now + kWatchAgain;
    std::uint64_t request = 1'000'000'000;
    for (const auto& [run, pending] : pending_) MILLRACE_TRY(line_.Send(wire::Watch{.request = ++request, .run = RunId{run}}));
    return {};
  }

  Result<ChainResult> Evaluate() {
    const std::uint64_t stages = std::uint64_t{options_.warmup + options_.runs} * options_.stages;
    MILLRACE_TRY_ASSIGN(const RunOutcomeCount count, CountRunOutcomes(at_, runs_));
    result_.handlers = options_.handlers;
    result_.runs = options_.runs;
    result_.outcomes = count.rows;
    result_.lost = stages - std::min(stages, count.succeeded);
    result_.duplicated = count.repeated;
    if (!pipeline_) {
      result_.duplicated = 0;
      std::uint64_t never = 0;
      for (std::uint64_t number = 0; number < stages; ++number) {
        result_.duplicated += fleet_.board().Executions(number) > 1 ? 1U : 0U;
        never += fleet_.board().Executions(number) == 0 ? 1U : 0U;
      }
      result_.lost = std::max(result_.lost, never);
    }
    const MonoTime begin = options_.warmup > 0 && options_.rate <= 0 ? first_timed_ : start_;
    const double counted = options_.rate > 0 ? options_.warmup + options_.runs : options_.runs;
    const auto wall = static_cast<double>(std::max<std::int64_t>(1, (last_ended_ - begin).count())) / 6e7;
    result_.runs_per_min = counted / wall;
    result_.accept = Summary(accept_);
    result_.ended = Summary(ended_in_);
    for (const Histogram& quarter : quarters_) result_.ended_p99_by_quarter.push_back(quarter.Quantile(0.99));
    double cpu_us = 0;
    for (const auto& [name, cost] : result_.costs.processes)
      if (name != "client") cpu_us += cost.cpu_us_per_job;
    result_.stages_per_core_s = cpu_us > 0 ? 1e6 / cpu_us : 0;
    return std::move(result_);
  }

  const Installation& at_;
  const ChainOptions& options_;
  const std::string name_;
  HandlerFleet fleet_;
  Line line_;
  CostMeter meter_;
  Alarm alarm_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_;
  std::optional<Pipeline> pipeline_;
  MonoTime start_{}, moved_{}, last_ended_{}, first_timed_{}, next_watch_{};
  std::uint32_t sent_ = 0, ended_ = 0;
  std::vector<RunId> runs_;
  std::unordered_map<Uuid, Pending> pending_;
  std::unordered_map<std::uint64_t, Pending> accepting_;
  Histogram accept_, ended_in_;
  std::array<Histogram, 4> quarters_;
  ChainResult result_;
};

constexpr std::array<std::pair<ChainHandlers, std::string_view>, 3> kNames{
    {{ChainHandlers::kInProcess, "inprocess"}, {ChainHandlers::kProcesses, "processes"}, {ChainHandlers::kSql, "sql"}}};

}  // namespace

std::string_view Name(ChainHandlers handlers) {
  return std::ranges::find(kNames, handlers, [](const auto& pair) { return pair.first; })->second;
}

std::optional<ChainHandlers> ParseChainHandlers(std::string_view text) {
  const auto found = std::ranges::find(kNames, text, [](const auto& pair) { return pair.second; });
  return found == kNames.end() ? std::nullopt : std::optional(found->first);
}

Result<ChainResult> MeasureChain(const Installation& at, const ChainOptions& options) {
  const std::string name = UniqueName();
  const std::uint64_t jobs = std::uint64_t{options.warmup + options.runs} * options.stages;
  FleetOptions fleet{
      .name = name, .kind = name, .concurrency = options.concurrency, .sleep = options.sleep, .folder = options.folder};
  MILLRACE_TRY_ASSIGN(auto handlers, HandlerFleet::Make(std::move(fleet), jobs, options.workers));
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(at.clients));
  return ChainMeasurement(at, options, name, std::move(handlers), std::move(line)).Run();
}

}  // namespace millrace::bench
