// bench cron: many schedules due at the same seconds. How long after its slot a run is written, its job starts in a handler,
// and its outcome is durable; and whether each slot fired exactly once.
#include <cstdio>
#include <memory>
#include <thread>

#include "client/bench/cost_meter.h"
#include "client/bench/handler_fleet.h"
#include "client/cli/bench_common.h"
#include "client/cli/commands.h"
#include "common/drivers/postgres.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"

namespace millrace::cli {
namespace {

using std::chrono::seconds;

constexpr seconds kLead{3};   // between the last apply and the first slot that counts
constexpr seconds kLate{30};  // how long after the last slot an outcome may come
constexpr Millis kQueryTimeout{60'000};
constexpr Millis kLook{200};

struct CronResult {
  std::uint64_t slots = 0, fired = 0, runs = 0, outcomes = 0, lost = 0, duplicated = 0;
  bench::Latency written, started, recorded;  // after the slot
  bench::Costs costs;
};

class CronMeasurement {
 public:
  CronMeasurement(const bench::Installation& at, const BenchFlags& flags, std::string folder, Context& context)
      : at_(at), flags_(flags), folder_(std::move(folder)), context_(context), name_(bench::UniqueName()), meter_(at) {}

  Result<CronResult> Run() {
    MILLRACE_TRY_ASSIGN(
        auto fleet,
        bench::HandlerFleet::Make({.name = name_, .kind = std::string(kJobKindCommand), .concurrency = 1000, .folder = folder_},
                                  std::uint64_t{flags_.schedules} * flags_.seconds * 4, 1));
    MILLRACE_TRY(fleet.Start(at_));
    MILLRACE_TRY_ASSIGN(ledger_, OpenPostgresLedger({.dsn = at_.ledger,
                                                     .clock = &context_.clock(),
                                                     .writer = context_.ids().Next<AuditWriterId>(),
                                                     .actor = "bench cron"},
                                                    In(kQueryTimeout)));
    MILLRACE_TRY(Apply());
    meter_.Begin(fleet.processes());
    auto measured = Watch();
    for (std::uint32_t i = 0; i < flags_.schedules; ++i)
      (void)ledger_->SetPaused(kDefaultOrg, PipelineName(i), true, In(kQueryTimeout));
    MILLRACE_TRY(std::move(measured));
    result_.costs = meter_.End(fleet.processes(), static_cast<double>(result_.runs));
    return std::move(result_);
  }

 private:
  MonoTime In(Millis timeout) const { return context_.clock().Now() + timeout; }
  std::string PipelineName(std::uint32_t i) const { return fmt::format("{}_{}", name_, i + 1); }

  Result<void> Apply() {
    for (std::uint32_t i = 0; i < flags_.schedules; ++i) {
      const std::string yaml = fmt::format(
          "version: 1\npipeline: {}\nschedule: {{ cron: \"* * * * * *\", overlap: allow }}\nstages:\n"
          "  only:\n    command: [\"true\"]\n    queue: {}\n",
          PipelineName(i), name_);
      auto parsed = ParsePipeline(yaml, "bench.yaml");
      if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, yaml));
      MILLRACE_TRY(
          ledger_->ApplyPipeline(*parsed.pipeline, ToJson(*parsed.pipeline), yaml, folder_, kDefaultOrg, In(kQueryTimeout)));
      if (bench::Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
    }
    return {};
  }

  Result<void> Watch() {
    PgOptions options;
    options.dsn = at_.ledger;
    MILLRACE_TRY_ASSIGN(pg_, PgConnection::Connect(options, context_.clock(), In(kQueryTimeout)));
    MILLRACE_TRY_ASSIGN(const WallTime now, ledger_->Now(In(kQueryTimeout)));
    from_ = std::chrono::floor<seconds>(now) + kLead;
    to_ = from_ + seconds{flags_.seconds};
    result_.slots = std::uint64_t{flags_.schedules} * flags_.seconds;
    while (true) {
      std::this_thread::sleep_for(kLook);
      if (bench::Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      MILLRACE_TRY_ASSIGN(const WallTime current, ledger_->Now(In(kQueryTimeout)));
      if (current < to_ + seconds{1}) continue;
      MILLRACE_TRY(Count());
      if (result_.outcomes >= result_.slots || current > to_ + kLate) break;
    }
    return ReadTimes();
  }

  PgParams Range() const {
    PgParams params;
    params.Text(name_ + "_").Time(from_).Time(to_);
    return params;
  }

  Result<void> Count() {
    MILLRACE_TRY_ASSIGN(
        const auto rows,
        pg_->Query(
            "select count(distinct (s.pipeline, s.slot)), count(distinct r.run), count(distinct o.job), "
            "count(distinct r.run) - count(distinct (r.pipeline, r.slot)), count(distinct o.job) filter (where o.state = 10) "
            "from millrace.slot s left join millrace.run r on r.pipeline = s.pipeline and r.slot = s.slot "
            "left join millrace.outcome o on o.run = r.run "
            "where starts_with(s.pipeline, $1) and s.slot >= $2 and s.slot < $3",
            Range(), In(kQueryTimeout)));
    const auto number = [&](int column) { return static_cast<std::uint64_t>(rows.Int(0, column)); };
    result_.fired = number(0);
    result_.runs = number(1);
    result_.outcomes = number(2);
    result_.duplicated = number(3);
    result_.lost = result_.slots - std::min(result_.slots, number(4));
    return {};
  }

  Result<void> ReadTimes() {
    MILLRACE_TRY_ASSIGN(const auto rows,
                        pg_->Query("select s.slot, r.created_at, o.started_at, o.recorded_at from millrace.slot s "
                                   "join millrace.run r using (run) join millrace.outcome o on o.run = r.run "
                                   "where starts_with(s.pipeline, $1) and s.slot >= $2 and s.slot < $3",
                                   Range(), In(kQueryTimeout)));
    auto written = std::make_unique<bench::Histogram>();
    auto started = std::make_unique<bench::Histogram>();
    auto recorded = std::make_unique<bench::Histogram>();
    for (int i = 0; i < rows.rows(); ++i) {
      const WallTime slot = rows.Time(i, 0);
      written->Add((rows.Time(i, 1) - slot).count());
      started->Add((rows.Time(i, 2) - slot).count());
      recorded->Add((rows.Time(i, 3) - slot).count());
    }
    result_.written = bench::Summary(*written);
    result_.started = bench::Summary(*started);
    result_.recorded = bench::Summary(*recorded);
    return {};
  }

  const bench::Installation& at_;
  const BenchFlags& flags_;
  const std::string folder_;
  Context& context_;
  const std::string name_;
  bench::CostMeter meter_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<PgConnection> pg_;
  WallTime from_{}, to_{};
  CronResult result_;
};

Result<ExitCode> DoCron(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  const BenchFlags& flags = options.bench;
  MILLRACE_TRY(BenchRange("--schedules", flags.schedules, 1, 100'000));
  MILLRACE_TRY(BenchRange("--seconds", flags.seconds, 1, 3600));
  const BenchTarget::Needs needs{.workers = 0, .worker_concurrency = 2, .scheduler = true};
  return RunBench(options, *context, needs, [&](BenchTarget& target) -> Result<BenchReport> {
    MILLRACE_TRY_ASSIGN(const CronResult r, CronMeasurement(target.at(), flags, target.folder(), *context).Run());
    const auto count = [](std::uint64_t v) { return static_cast<std::int64_t>(v); };
    Table counts{.columns = {"schedules", "slots", "fired", "runs", "outcomes", "lost", "duplicated", "busiest_core"},
                 .rows = {{std::int64_t{flags.schedules}, count(r.slots), count(r.fired), count(r.runs), count(r.outcomes),
                           count(r.lost), count(r.duplicated), BusiestCore(r.costs)}}};
    Table times{.columns = {"after_the_slot", "p50_us", "p99_us", "p999_us", "max_us"}, .rows = {}};
    std::vector<std::pair<std::string, bench::Latency>> named{
        {"written", r.written}, {"started", r.started}, {"recorded", r.recorded}};
    for (const auto& [name, l] : named)
      times.rows.push_back({name, count(l.p50_us), count(l.p99_us), count(l.p999_us), count(l.max_us)});
    return BenchReport{.name = "cron",
                       .results_json = JsonArray({BenchJson({{"schedules", flags.schedules},
                                                             {"slots", r.slots},
                                                             {"fired", r.fired},
                                                             {"runs", r.runs},
                                                             {"outcomes", r.outcomes},
                                                             {"lost", r.lost},
                                                             {"duplicated", r.duplicated}},
                                                            named, r.costs)}),
                       .tables = {std::move(counts), std::move(times), CostTable({{"per run", r.costs}})},
                       .sound = r.lost == 0 && r.duplicated == 0};
  });
}

}  // namespace

ExitCode BenchCron(const Options& options) { return Finish(DoCron(options)); }

}  // namespace millrace::cli
