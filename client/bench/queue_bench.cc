#include "client/bench/queue_bench.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "client/bench/handler_fleet.h"
#include "client/bench/probe.h"

namespace millrace::bench {
namespace {

constexpr Millis kStandstill{30'000};  // no job moves for so long: what is missing will not come
constexpr Millis kLook{2};
constexpr Millis kLateRepeats{500};  // after the last outcome: a job that comes twice may come late

class Measurement {
 public:
  Measurement(const Installation& at, const QueueOptions& options, std::string name, HandlerFleet fleet)
      : at_(at), options_(options), name_(std::move(name)), fleet_(std::move(fleet)), board_(fleet_.board()), meter_(at) {}

  Result<QueueResult> Run() {
    SubmitOptions submit = options_.submit;
    submit.endpoint = at_.clients;
    submit.kind = submit.queue = name_;
    if (options_.steady) {
      MILLRACE_TRY(KeepSteady(submit));
    } else {
      StoreSizes before;
      if (options_.drain) {
        MILLRACE_TRY_ASSIGN(before, ProbeSizes(at_));
      } else {
        MILLRACE_TRY(fleet_.Start(at_));
      }
      meter_.Begin(fleet_.processes());
      MILLRACE_TRY(SubmitAll(submit, submitted_));
      if (options_.drain) {
        MILLRACE_TRY(WeighWaiting(before, submit.jobs));
        MILLRACE_TRY(fleet_.Start(at_));
      }
      MILLRACE_TRY(AwaitRecorded());
      result_.costs = meter_.End(fleet_.processes(), static_cast<double>(submit.jobs));
    }
    std::this_thread::sleep_for(kLateRepeats);
    fleet_.Stop();
    return Evaluate();
  }

 private:
  Result<void> WeighWaiting(const StoreSizes& before, std::uint64_t jobs) {
    MILLRACE_TRY_ASSIGN(const StoreSizes after, ProbeSizes(at_));
    const auto per_job = [&](std::int64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(jobs); };
    result_.queue_bytes_per_waiting_job = per_job(after.queue_bytes - before.queue_bytes);
    result_.ledger_bytes_per_waiting_job = per_job(after.ledger_bytes - before.ledger_bytes);
    return {};
  }

  Result<void> KeepSteady(SubmitOptions submit) {
    const std::uint64_t held = std::uint64_t{options_.workers} * (options_.concurrency + options_.prefetch);
    MILLRACE_TRY_ASSIGN(const StoreSizes before, ProbeSizes(at_));
    const std::uint64_t total = std::exchange(submit.jobs, options_.steady->depth);
    MILLRACE_TRY(SubmitAll(submit, submitted_));
    result_.enqueued_per_s = Rate(submit.jobs, submitted_.first_sent, submitted_.last_accepted);
    MILLRACE_TRY(WeighWaiting(before, submit.jobs));
    MILLRACE_TRY(fleet_.Start(at_));
    SteadyWindow window(*options_.steady, held, fleet_, at_, clock_);
    submit.jobs = total;
    submit.batch = static_cast<std::uint32_t>(std::min<std::uint64_t>(submit.batch, options_.steady->depth + held));
    submit.allowed = [&](std::uint64_t accepted) { return window.Look(accepted); };
    MILLRACE_TRY(SubmitAll(submit, submitted_));
    MILLRACE_TRY(AwaitRecorded(&window));
    if (!window.result().complete)
      return Fail(ErrorCode::kTimedOut, "{} jobs were submitted, and {} outcomes came: no steady window", submitted_.accepted,
                  board_.Recorded());
    result_.steady = window.result();
    return {};
  }

  static double Rate(std::uint64_t jobs, MonoTime from, MonoTime to) {
    return to <= from ? 0 : static_cast<double>(jobs) * 1e6 / static_cast<double>((to - from).count());
  }

  Result<void> AwaitRecorded(SteadyWindow* window = nullptr) {
    std::uint64_t seen = 0;
    MonoTime moved = clock_.Now();
    while (board_.Recorded() < submitted_.accepted) {
      if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      if (window != nullptr) (void)window->Look(submitted_.accepted);
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
    const std::uint64_t jobs = options_.submit.jobs;
    result_.durability = Name(options_.submit.durability);
    result_.form = options_.steady ? "steady" : options_.drain ? "drain" : "flow";
    if (const auto& steady = result_.steady) {
      result_.jobs = steady->jobs;
      result_.executed_per_s = steady->executed_per_s;
      result_.recorded_per_s = steady->recorded_per_s;
      result_.costs = steady->costs;
    } else {
      result_.jobs = jobs;
      result_.enqueued_per_s = Rate(jobs, submitted_.first_sent, submitted_.last_accepted);
      result_.executed_per_s = Rate(jobs, MonoTime{Micros{begin}}, MonoTime{Micros{last}});
      result_.recorded_per_s = Rate(jobs, MonoTime{Micros{begin}}, MonoTime{Micros{last_recorded}});
    }
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
    result_.redelivered = count.redelivered;
    const std::uint64_t unrecorded = jobs - std::min(jobs, count.succeeded);
    result_.lost = std::max(never, unrecorded);
    return std::move(result_);
  }

  const Installation& at_;
  const QueueOptions& options_;
  const std::string name_;
  HandlerFleet fleet_;
  const Scoreboard& board_;
  CostMeter meter_;
  SystemClock clock_;
  SubmitResult submitted_;
  QueueResult result_;
};

}  // namespace

Latency Summary(const Histogram& h) {
  return {.count = h.count(),
          .p50_us = h.Quantile(0.5),
          .p99_us = h.Quantile(0.99),
          .p999_us = h.Quantile(0.999),
          .max_us = h.Max()};
}

Result<QueueResult> MeasureQueue(const Installation& at, const QueueOptions& given) {
  QueueOptions options = given;
  if (options.steady)
    options.submit.jobs =
        SteadyWindow::Total(*options.steady, std::uint64_t{options.workers} * (options.concurrency + options.prefetch));
  const std::string name = UniqueName();
  FleetOptions fleet{.name = name,
                     .kind = name,
                     .concurrency = options.concurrency,
                     .prefetch = options.prefetch,
                     .sleep = options.sleep,
                     .folder = options.folder};
  MILLRACE_TRY_ASSIGN(auto handlers, HandlerFleet::Make(std::move(fleet), options.submit.jobs, options.workers));
  return Measurement(at, options, name, std::move(handlers)).Run();
}

}  // namespace millrace::bench
