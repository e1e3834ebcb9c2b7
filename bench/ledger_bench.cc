// Jobs accepted and outcomes recorded per second by batch size. PostgreSQL needs MILLRACE_TEST_POSTGRES (it makes and drops a
// database of its own); SQLite runs with synchronous=FULL in a file under TMPDIR.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "common/drivers/postgres.h"
#include "common/ledger/ledger.h"

namespace millrace {
namespace {

class Bench {
 public:
  explicit Bench(bool postgres) : postgres_(postgres) {
    name_ = "mr_bench_" + std::to_string(getpid());
    LedgerOptions options{
        .dsn = {}, .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "bench"};
    if (postgres_) {
      const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
      if (server == nullptr) return;
      Admin("drop database if exists " + name_ + " with (force)");
      Admin("create database " + name_);
      options.dsn = std::string(server) + " dbname=" + name_;
    } else {
      folder_ = std::filesystem::temp_directory_path() / name_;
      std::filesystem::create_directories(folder_);
      options.dsn = (folder_ / "ledger.db").string();
    }
    auto opened = postgres_ ? OpenPostgresLedger(options, In()) : OpenSqliteLedger(options, In());
    if (!opened || !(*opened)->Migrate(In())) return;
    const auto epoch = (*opened)->TakeShard(ShardId{0}, owner_, "bench", In());
    if (!epoch) return;
    epoch_ = *epoch;
    ledger_ = std::move(*opened);
  }
  ~Bench() {
    ledger_.reset();
    if (postgres_)
      Admin("drop database if exists " + name_ + " with (force)");
    else
      std::filesystem::remove_all(folder_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  bool ready() const { return ledger_ != nullptr; }
  OwnerBatch Empty() const {
    OwnerBatch b;
    b.holds = {{ShardId{0}, epoch_}};
    b.owner = owner_;
    return b;
  }
  std::vector<JobSpec> Jobs(std::size_t count) {
    std::vector<JobSpec> jobs(count);
    for (JobSpec& j : jobs) {
      j.id = ids_.Next<JobId>();
      j.kind = "bench";
      j.payload.assign(100, 'p');
      j.submitted_at = clock_.WallNow();
    }
    return jobs;
  }
  OutcomeRow Outcome(const JobSpec& job) const {
    OutcomeRow o;
    o.report.job = job.id;
    o.report.token = Token::Make(epoch_, 1);
    o.report.end = AttemptEnd::kSucceeded;
    o.report.worker = "w1";
    o.report.result = "{}";
    o.state = JobState::kSucceeded;
    o.counters = {1, 0, 0};
    o.recorded_at = clock_.WallNow();
    return o;
  }
  bool Commit(const OwnerBatch& batch) { return ledger_->Commit(batch, In()).has_value(); }

 private:
  MonoTime In() const { return clock_.Now() + 30s; }
  void Admin(const std::string& sql) {
    const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
    if (server == nullptr) return;
    PgOptions options;
    options.dsn = server;
    auto connection = PgConnection::Connect(options, clock_, In());
    if (connection) (void)(*connection)->Exec(sql, In());
  }

  bool postgres_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  OwnerId owner_ = ids_.Next<OwnerId>();
  Epoch epoch_;
  std::string name_;
  std::filesystem::path folder_;
  std::unique_ptr<Ledger> ledger_;
};

void Accept(benchmark::State& state, bool postgres) {
  Bench bench(postgres);
  if (!bench.ready()) return state.SkipWithError("no ledger: is MILLRACE_TEST_POSTGRES set?");
  const auto count = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    OwnerBatch batch = bench.Empty();
    batch.jobs = bench.Jobs(count);
    state.ResumeTiming();
    if (!bench.Commit(batch)) return state.SkipWithError("commit failed");
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void Outcomes(benchmark::State& state, bool postgres) {
  Bench bench(postgres);
  if (!bench.ready()) return state.SkipWithError("no ledger: is MILLRACE_TEST_POSTGRES set?");
  const auto count = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    OwnerBatch jobs = bench.Empty(), outcomes = bench.Empty();
    jobs.jobs = bench.Jobs(count);
    for (const JobSpec& j : jobs.jobs) outcomes.outcomes.push_back(bench.Outcome(j));
    if (!bench.Commit(jobs)) return state.SkipWithError("commit failed");
    state.ResumeTiming();
    if (!bench.Commit(outcomes)) return state.SkipWithError("commit failed");
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

BENCHMARK_CAPTURE(Accept, postgres, true)->Arg(1)->Arg(100)->Arg(1000)->UseRealTime();
BENCHMARK_CAPTURE(Outcomes, postgres, true)->Arg(1)->Arg(100)->Arg(1000)->UseRealTime();
BENCHMARK_CAPTURE(Accept, sqlite_full, false)->Arg(1)->Arg(100)->Arg(1000)->UseRealTime();
BENCHMARK_CAPTURE(Outcomes, sqlite_full, false)->Arg(1)->Arg(100)->Arg(1000)->UseRealTime();

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
