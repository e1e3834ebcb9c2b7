// What one job costs the ledger: processor time of the program that writes (building, hashing and sending the batch), of the
// PostgreSQL backend, and bytes of its log, apart for the transactions that accept jobs and those that record outcomes.
// Processor time, because the clock says little on a machine that does something else too.
//   millrace_ledger_cost postgres|sqlite [JOBS] [BATCH] [--verify]     PostgreSQL: MILLRACE_TEST_POSTGRES (makes and drops a
// database). --verify: then verifies the audit trail of all that, as `millrace audit verify` does.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "common/drivers/postgres.h"
#include "common/ledger/audit_verify.h"
#include "common/ledger/ledger.h"

namespace millrace {
namespace {

constexpr std::size_t kLag = 8;  // batches between a job's acceptance and its outcome

double ThreadCpu() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

// Microseconds that the process has run.
double ProcessCpu(std::int64_t pid) {
  std::ifstream in(fmt::format("/proc/{}/schedstat", pid));
  double ns = 0;
  in >> ns;
  return ns / 1e3;
}

struct Cost {
  double writer_us = 0, backend_us = 0, log_bytes = 0;
};

class Measure {
 public:
  Measure(bool postgres, std::size_t jobs, std::size_t batch, bool verify)
      : postgres_(postgres), verify_(verify), jobs_(jobs), batch_(batch) {}

  Result<void> Run() {
    MILLRACE_TRY(Open());
    Cost accept, outcome;
    std::deque<std::vector<JobSpec>> waiting;
    std::size_t made = 0, ended = 0;
    while (ended < jobs_) {
      if (made < jobs_) {
        OwnerBatch batch = Empty();
        batch.jobs = Jobs();
        made += batch.jobs.size();
        MILLRACE_TRY(Commit(batch, accept));
        waiting.push_back(std::move(batch.jobs));
        if (waiting.size() < kLag && made < jobs_) continue;
      }
      OwnerBatch batch = Empty();
      for (const JobSpec& job : waiting.front()) batch.outcomes.push_back(Outcome(job));
      waiting.pop_front();
      ended += batch.outcomes.size();
      MILLRACE_TRY(Commit(batch, outcome));
    }
    Print("accept", accept, made);
    Print("outcome", outcome, ended);
    return verify_ ? Verify() : Result<void>{};
  }
  ~Measure() {
    ledger_.reset();
    watch_.reset();
    if (!name_.empty() && postgres_)
      if (auto admin = Connect("")) (void)(*admin)->Exec("drop database if exists " + name_ + " with (force)", In());
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  Measure(const Measure&) = delete;
  Measure& operator=(const Measure&) = delete;

 private:
  MonoTime In() const { return clock_.Now() + 60s; }
  Result<std::unique_ptr<PgConnection>> Connect(const std::string& more) {
    PgOptions options;
    options.dsn = std::getenv("MILLRACE_TEST_POSTGRES") + more;
    return PgConnection::Connect(options, clock_, In());
  }
  Result<void> Open() {
    LedgerOptions options{.dsn = {}, .clock = &clock_, .writer = ids_.Next<AuditWriterId>(), .shard_count = 1, .actor = "cost"};
    name_ = fmt::format("mr_cost_{}", getpid());
    if (postgres_) {
      if (std::getenv("MILLRACE_TEST_POSTGRES") == nullptr)
        return Fail(ErrorCode::kInvalidArgument, "MILLRACE_TEST_POSTGRES is not set");
      MILLRACE_TRY_ASSIGN(const auto admin, Connect(""));
      MILLRACE_TRY(admin->Exec("create database " + name_, In()));
      options.dsn = std::getenv("MILLRACE_TEST_POSTGRES") + (" dbname=" + name_);
    } else {
      folder_ = std::filesystem::temp_directory_path() / name_;
      std::filesystem::create_directories(folder_);
      options.dsn = (folder_ / "ledger.db").string();
    }
    MILLRACE_TRY_ASSIGN(ledger_, postgres_ ? OpenPostgresLedger(options, In()) : OpenSqliteLedger(options, In()));
    MILLRACE_TRY(ledger_->Migrate(In()));
    MILLRACE_TRY_ASSIGN(epoch_, ledger_->TakeShard(ShardId{0}, owner_, "cost", In()));
    OwnerBatch first = Empty();
    first.jobs = Jobs();  // statements are prepared, the chain is read
    MILLRACE_TRY(ledger_->Commit(first, In()));
    OwnerBatch second = Empty();
    for (const JobSpec& job : first.jobs) second.outcomes.push_back(Outcome(job));
    MILLRACE_TRY(ledger_->Commit(second, In()));
    if (!postgres_) return {};
    MILLRACE_TRY_ASSIGN(watch_, Connect(" dbname=" + name_));
    MILLRACE_TRY_ASSIGN(const PgResult row,
                        watch_->Query("select pid from pg_stat_activity where application_name = 'millrace cost' and "
                                      "datname = current_database()",
                                      In()));
    backend_ = row.Int(0, 0);
    return {};
  }
  OwnerBatch Empty() const {
    OwnerBatch b;
    b.holds = {{ShardId{0}, epoch_}};
    b.owner = owner_;
    return b;
  }
  std::vector<JobSpec> Jobs() {
    std::vector<JobSpec> jobs(batch_);
    for (JobSpec& j : jobs) {
      j.id = ids_.Next<JobId>();
      j.kind = "bench";
      for (int i = 0; i < 25; ++i) j.payload += fmt::format("{:04x}", random_.Next() & 0xFFFF);
      j.submitted_at = clock_.WallNow();
    }
    return jobs;
  }
  OutcomeRow Outcome(const JobSpec& job) {
    OutcomeRow o;
    o.report.job = job.id;
    o.report.token = Token::Make(epoch_, ++counter_);
    o.report.end = AttemptEnd::kSucceeded;
    o.report.worker = "worker-1";
    o.report.started_at = clock_.WallNow();
    o.report.finished_at = o.report.started_at + Micros{3};
    o.state = JobState::kSucceeded;
    o.counters = {1, 0, 0};
    o.recorded_at = o.report.started_at + Micros{5};
    return o;
  }
  Result<double> LogBytes() {
    MILLRACE_TRY_ASSIGN(const PgResult row, watch_->Query("select (pg_current_wal_insert_lsn() - '0/0')::bigint", In()));
    return static_cast<double>(row.Int(0, 0));
  }
  Result<void> Commit(const OwnerBatch& batch, Cost& cost) {
    double log = 0, backend = 0;
    if (postgres_) {
      MILLRACE_TRY_ASSIGN(log, LogBytes());
      backend = ProcessCpu(backend_);
    }
    const double before = ThreadCpu();
    MILLRACE_TRY(ledger_->Commit(batch, In()));
    cost.writer_us += ThreadCpu() - before;
    if (!postgres_) return {};
    cost.backend_us += ProcessCpu(backend_) - backend;
    MILLRACE_TRY_ASSIGN(const double now, LogBytes());
    cost.log_bytes += now - log;
    return {};
  }
  Result<void> Verify() {
    const double backend = postgres_ ? ProcessCpu(backend_) : 0, before = ThreadCpu();
    const MonoTime start = clock_.Now();
    MILLRACE_TRY_ASSIGN(const AuditReport report, VerifyAudit(*ledger_, nullptr));
    const double wall = std::chrono::duration<double>(clock_.Now() - start).count();
    fmt::print(
        "{{\"ledger\": \"{}\", \"what\": \"verify\", \"ok\": {}, \"rows\": {}, \"records\": {}, \"seconds\": {:.2f}, "
        "\"reader_us_per_row\": {:.2f}, \"backend_us_per_row\": {:.2f}}}\n",
        postgres_ ? "postgres" : "sqlite", report.ok, report.rows, report.records, wall,
        (ThreadCpu() - before) / static_cast<double>(report.rows),
        postgres_ ? (ProcessCpu(backend_) - backend) / static_cast<double>(report.rows) : 0.0);
    return {};
  }
  void Print(std::string_view what, const Cost& cost, std::size_t jobs) const {
    const auto n = static_cast<double>(jobs);
    fmt::print(
        "{{\"ledger\": \"{}\", \"what\": \"{}\", \"jobs\": {}, \"batch\": {}, \"writer_us_per_job\": {:.2f}, "
        "\"backend_us_per_job\": {:.2f}, \"log_bytes_per_job\": {:.0f}}}\n",
        postgres_ ? "postgres" : "sqlite", what, jobs, batch_, cost.writer_us / n, cost.backend_us / n, cost.log_bytes / n);
  }

  bool postgres_, verify_;
  std::size_t jobs_, batch_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  OwnerId owner_ = ids_.Next<OwnerId>();
  Epoch epoch_;
  std::uint32_t counter_ = 0;
  std::string name_;
  std::filesystem::path folder_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<PgConnection> watch_;
  std::int64_t backend_ = 0;
};

int Main(int argc, char** argv) {
  const std::string kind = argc > 1 ? argv[1] : "";
  if (kind != "postgres" && kind != "sqlite") {
    fmt::print(stderr, "usage: {} postgres|sqlite [JOBS] [BATCH] [--verify]\n", argv[0]);
    return 2;
  }
  const auto number = [&](int at, std::size_t otherwise) {
    return argc > at ? static_cast<std::size_t>(std::strtoull(argv[at], nullptr, 10)) : otherwise;
  };
  const bool verify = argc > 2 && std::string_view(argv[argc - 1]) == "--verify";
  if (verify) --argc;
  Measure measure(kind == "postgres", number(2, 200'000), std::max<std::size_t>(1, number(3, 1000)), verify);
  if (auto done = measure.Run(); !done) {
    fmt::print(stderr, "{}\n", done.error().message);
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
