#include "client/bench/queue_bench.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "client/bench/probe.h"
#include "client/bench/scoreboard.h"
#include "common/base/random.h"

namespace millrace::bench {
namespace {

constexpr Millis kReadyTimeout{20'000};
constexpr Millis kStandstill{30'000};  // no job recorded for so long: what is missing will not come
constexpr Millis kLook{2};

double OwnCpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Latency Summary(const Histogram& h) {
  return {.count = h.count(),
          .p50_us = h.Quantile(0.5),
          .p99_us = h.Quantile(0.99),
          .p999_us = h.Quantile(0.999),
          .max_us = h.Max()};
}

class Measurement {
 public:
  Measurement(const Installation& at, const QueueOptions& options, Scoreboard board, std::string name, std::string path)
      : at_(at), options_(options), board_(board), name_(std::move(name)), path_(std::move(path)) {}

  Result<QueueResult> Run() {
    SubmitOptions submit = options_.submit;
    submit.endpoint = at_.clients;
    submit.kind = submit.queue = name_;
    if (!options_.drain) MILLRACE_TRY(StartWorkers());
    StoreSizes before;
    if (options_.drain) {
      MILLRACE_TRY_ASSIGN(before, ProbeSizes(at_));
    }
    Begin();
    MILLRACE_TRY(SubmitAll(submit, submitted_));
    if (options_.drain) {
      MILLRACE_TRY_ASSIGN(const StoreSizes after, ProbeSizes(at_));
      const auto per_job = [&](std::int64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(submit.jobs); };
      result_.queue_bytes_per_waiting_job = per_job(after.queue_bytes - before.queue_bytes);
      result_.ledger_bytes_per_waiting_job = per_job(after.ledger_bytes - before.ledger_bytes);
      MILLRACE_TRY(StartWorkers());
    }
    MILLRACE_TRY(AwaitRecorded());
    End();
    for (Process& worker : workers_) worker.Stop();
    return Evaluate();
  }

 private:
  Result<void> StartWorkers() {
    for (std::uint32_t i = 0; i < options_.workers; ++i) {
      MILLRACE_TRY_ASSIGN(auto process, Process::Start({.argv = {OwnProgram(),
                                                                 "bench",
                                                                 "handler",
                                                                 "--endpoint",
                                                                 at_.workers,
                                                                 "--name",
                                                                 fmt::format("{}-{}", name_, i + 1),
                                                                 "--kind",
                                                                 name_,
                                                                 "--concurrency",
                                                                 std::to_string(options_.concurrency),
                                                                 "--sleep-ms",
                                                                 std::to_string(options_.sleep.count()),
                                                                 "--board",
                                                                 path_,
                                                                 "--jobs",
                                                                 std::to_string(board_.jobs()),
                                                                 "--handlers",
                                                                 std::to_string(board_.handlers()),
                                                                 "--index",
                                                                 std::to_string(i)},
                                                        .log = Log(),
                                                        .stop_signal = 15,
                                                        .user = ""}));
      workers_.push_back(std::move(process));
    }
    const MonoTime give_up = clock_.Now() + kReadyTimeout;
    for (std::uint32_t i = 0; i < options_.workers; ++i) {
      while (Peek(board_.handler(i).ready) == 0) {
        if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
        if (!workers_[i].Running() || clock_.Now() >= give_up)
          return Fail(ErrorCode::kUnavailable, "a handler process does not reach the broker at {}; its log is {}", at_.workers,
                      Log());
        std::this_thread::sleep_for(kLook);
      }
    }
    return {};
  }
  std::string Log() const { return options_.folder + "/handlers.log"; }

  std::vector<std::pair<std::string, Usage>> Usages() const {
    std::vector<std::pair<std::string, Usage>> all;
    for (const auto& [name, pid] : at_.processes)
      if (const auto usage = UsageOf(pid)) all.emplace_back(name, *usage);
    Usage handlers;
    for (const Process& worker : workers_) {
      const auto usage = UsageOf(worker.pid());
      if (!usage) continue;
      handlers.cpu_s += usage->cpu_s;
      handlers.pss_bytes += usage->pss_bytes;
      handlers.rss_bytes = std::max(handlers.rss_bytes, usage->rss_bytes);
    }
    all.emplace_back("handlers", handlers);
    Usage client;
    if (const auto usage = UsageOf(::getpid())) client.rss_bytes = usage->rss_bytes;
    client.cpu_s = OwnCpuSeconds();
    all.emplace_back("client", client);
    return all;
  }

  void Begin() {
    usage_before_ = Usages();
    cores_before_ = CoreBusySeconds();
    began_ = clock_.Now();
  }
  void End() {
    const double wall = static_cast<double>((clock_.Now() - began_).count()) / 1e6;
    result_.wall_s = wall;
    const auto cores = CoreBusySeconds();
    for (std::size_t i = 0; i < std::min(cores.size(), cores_before_.size()); ++i)
      result_.core_busy.push_back(wall > 0 ? (cores[i] - cores_before_[i]) / wall : 0);
    const auto jobs = static_cast<double>(options_.submit.jobs);
    for (const auto& [name, after] : Usages()) {
      double cpu = after.cpu_s;
      for (const auto& [other, before] : usage_before_)
        if (other == name) cpu -= before.cpu_s;  // workers that were started later began at nothing
      result_.costs.emplace_back(name, QueueResult::Cost{.cpu_us_per_job = cpu * 1e6 / jobs,
                                                         .rss_mb = static_cast<double>(after.rss_bytes) / 1e6,
                                                         .pss_mb = static_cast<double>(after.pss_bytes) / 1e6});
    }
  }

  Result<void> AwaitRecorded() {
    std::uint64_t seen = 0;
    MonoTime moved = clock_.Now();
    while (board_.Recorded() < submitted_.accepted) {
      if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      const std::uint64_t now = board_.Recorded() + board_.Executed();
      if (now != seen) {
        seen = now;
        moved = clock_.Now();
      } else if (clock_.Now() - moved > kStandstill) {
        return {};  // counted as lost
      }
      std::this_thread::sleep_for(kLook);
    }
    return {};
  }

  Result<QueueResult> Evaluate() {
    Histogram pickup, outcome;
    std::int64_t first = INT64_MAX, last = 0, last_recorded = 0;
    for (std::uint32_t i = 0; i < board_.handlers(); ++i) {
      const HandlerScore& score = board_.handler(i);
      pickup.Merge(score.pickup);
      outcome.Merge(score.outcome);
      if (score.first_us != 0) first = std::min(first, score.first_us);
      last = std::max(last, score.last_us);
      last_recorded = std::max(last_recorded, score.last_recorded_us);
      result_.corrupted += Peek(score.corrupted);
    }
    const std::int64_t sent = submitted_.first_sent.time_since_epoch().count();
    const std::int64_t begin = options_.drain ? first : sent;
    const auto rate = [&](std::int64_t from, std::int64_t to) {
      return to <= from ? 0 : static_cast<double>(options_.submit.jobs) * 1e6 / static_cast<double>(to - from);
    };
    result_.durability = Name(options_.submit.durability);
    result_.form = options_.drain ? "drain" : "flow";
    result_.jobs = options_.submit.jobs;
    result_.enqueued_per_s = rate(sent, submitted_.last_accepted.time_since_epoch().count());
    result_.executed_per_s = rate(begin, last);
    result_.recorded_per_s = rate(begin, last_recorded);
    result_.accept = Summary(submitted_.accept);
    result_.pickup = Summary(pickup);
    result_.outcome = Summary(outcome);
    result_.accepted = submitted_.accepted;
    std::uint64_t never = 0;
    for (std::uint64_t number = 0; number < board_.jobs(); ++number) {
      never += board_.Executions(number) == 0 ? 1U : 0U;
      result_.executed += board_.Executions(number);
      result_.duplicated += board_.Executions(number) > 1 ? 1U : 0U;
    }
    MILLRACE_TRY_ASSIGN(const OutcomeCount count, CountOutcomes(at_, submitted_.first, submitted_.last, name_));
    result_.outcomes = count.rows;
    const std::uint64_t unrecorded = result_.jobs - std::min(result_.jobs, count.succeeded);
    result_.lost = std::max(never, unrecorded);
    return std::move(result_);
  }

  const Installation& at_;
  const QueueOptions& options_;
  Scoreboard board_;
  const std::string name_, path_;
  SystemClock clock_;
  std::vector<Process> workers_;
  SubmitResult submitted_;
  std::vector<std::pair<std::string, Usage>> usage_before_;
  std::vector<double> cores_before_;
  MonoTime began_{};
  QueueResult result_;
};

}  // namespace

std::string UniqueName() {
  SystemRandom random;
  return fmt::format("bench-{:08x}", static_cast<std::uint32_t>(random.Next()));
}

Result<QueueResult> MeasureQueue(const Installation& at, const QueueOptions& options) {
  const std::string name = UniqueName(), path = options.folder + "/" + name + ".board";
  MILLRACE_TRY_ASSIGN(const Scoreboard board, Scoreboard::Open(path, options.submit.jobs, options.workers));
  auto result = Measurement(at, options, board, name, path).Run();
  ::unlink(path.c_str());
  return result;
}

}  // namespace millrace::bench
