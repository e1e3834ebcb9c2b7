// What the tests of the scheduler share: a ledger of each kind with a clock, and one that dies in mid-transaction.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <ranges>

#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/sqlite.h"
#include "common/model/backfill.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/model/schedule_rules.h"
#include "common/queue/sqlite_queue.h"
#include "scheduler/scheduler.h"
#include "scheduler/slot_planner.h"
#include "tests/support/migrated_database.h"
#include "tests/support/no_ledger.h"

namespace millrace::scheduler {

using std::chrono::days;

// A ledger whose Fire dies before or after the transaction: what a scheduler that is killed there leaves behind.
class DyingLedger final : public test::NoLedger {
 public:
  enum class Die : std::uint8_t { kNever, kBeforeFire, kAfterFire, kAfterFirstBatch };
  DyingLedger(Ledger& real, Die when) : real_(real), when_(when) {}

  Result<FireResult> Fire(const FireBatch& b, MonoTime d) override {
    if (when_ == Die::kBeforeFire) return Fail(ErrorCode::kUnavailable, "killed");
    if (when_ == Die::kAfterFirstBatch && !b.decisions.empty() && ++batches_ > 1)
      return Fail(ErrorCode::kUnavailable, "killed");
    auto fired = real_.Fire(b, d);
    if (when_ == Die::kAfterFire) return Fail(ErrorCode::kMaybeApplied, "killed");
    return fired;
  }
  Result<WallTime> Now(MonoTime d) override { return real_.Now(d); }
  Result<Leadership> TryLead(OwnerId c, std::string_view n, Millis ttl, MonoTime d) override {
    return real_.TryLead(c, n, ttl, d);
  }
  Result<std::vector<ScheduleRow>> SchedulesChanged(std::int64_t r, std::uint32_t l, MonoTime d) override {
    return real_.SchedulesChanged(r, l, d);
  }
  Result<std::vector<PipelineVersion>> ScheduledVersions(OrgId o, std::span<const std::string> p, MonoTime d) override {
    return real_.ScheduledVersions(o, p, d);
  }
  Result<std::vector<std::string>> BusyPipelines(OrgId o, std::span<const std::string> p, MonoTime d) override {
    return real_.BusyPipelines(o, p, d);
  }
  Result<std::vector<BackfillState>> Backfills(const BackfillFilter& f, MonoTime d) override { return real_.Backfills(f, d); }
  Result<std::vector<SlotHistory>> SlotHistories(OrgId o, std::string_view p, std::string_view s, std::span<const WallTime> t,
                                                 MonoTime d) override {
    return real_.SlotHistories(o, p, s, t, d);
  }
  Result<PipelineVersion> GetPipeline(OrgId o, std::string_view n, std::optional<std::int64_t> v, MonoTime d) override {
    return real_.GetPipeline(o, n, v, d);
  }

 private:
  std::unexpected<Error> No() const override {
    ADD_FAILURE() << "the scheduler called what is not its business";
    return Fail(ErrorCode::kUnsupported, "not for a scheduler");
  }
  Ledger& real_;
  Die when_;
  int batches_ = 0;  // with decisions
};

class SchedulerTest : public ::testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() { ConfigureLog(LogLevel::kOff, LogFormat::kJson, "test"); }
  void SetUp() override {
    if (postgres()) {
      MILLRACE_NEED_POSTGRES();
      database_ = testing::MigratedDatabase("scheduler", 1);
      dsn_ = database_->dsn();
    } else {
      // In memory where there is such a folder: these tests commit thousands of times and do not test the disk.
      std::string folder =
          std::filesystem::is_directory("/dev/shm") ? "/dev/shm/millrace_scheduler_XXXXXX" : "/tmp/millrace_scheduler_XXXXXX";
      ASSERT_NE(::mkdtemp(folder.data()), nullptr);
      folder_ = folder;
      dsn_ = folder_ + "/ledger.db";
    }
    ledger_ = Open();
    const auto migrated = ledger_->Migrate(In());
    ASSERT_TRUE(migrated) << migrated.error().message;
    now_ = *ledger_->Now(In());
  }
  void TearDown() override {
    ledger_.reset();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  bool postgres() const { return GetParam() == "postgres"; }
  const Clock& clock() const { return postgres() ? static_cast<const Clock&>(system_) : fake_; }
  MonoTime In() const { return clock().Now() + 20s; }
  std::unique_ptr<Ledger> Open() {
    const LedgerOptions options{.dsn = dsn_, .clock = &clock(), .writer = ids_.Next<AuditWriterId>(), .actor = "test"};
    auto opened = postgres() ? OpenPostgresLedger(options, In()) : OpenSqliteLedger(options, In());
    EXPECT_TRUE(opened) << opened.error().message;
    return std::move(*opened);
  }
  void Raw(const std::string& sql) {
    if (postgres()) {
      const auto done = database_->Connect()->Exec("set search_path = millrace; " + sql, In());
      ASSERT_TRUE(done) << done.error().message;
    } else {
      const auto done = sqlite::Database::Open(dsn_, {})->Exec(sql);
      ASSERT_TRUE(done) << done.error().message;
    }
  }
  // A cron expression with one slot a day, two hours before now_: what is due does not depend on when the test runs.
  std::string DailyCron() const {
    const auto minute = std::chrono::duration_cast<std::chrono::minutes>((now_ - 2h).time_since_epoch()).count() % (24 * 60);
    return fmt::format("{} {} * * *", minute % 60, minute / 60);
  }
  struct Plan {
    std::string name = "p";
    std::string catchup = "all";
    std::string overlap = "allow";
    std::string grace = "60s";
    std::string params = {};
    std::string cron = {};
    int days_behind = 0;    // how many slots of DailyCron are due
    std::string more = {};  // more keys of the schedule, with a comma before
    std::string stages = "  a: { command: [echo, one] }\n  b: { command: [echo, two], after: [a] }\n";
  };
  void Apply(const Plan& plan) {
    const std::string yaml = fmt::format(
        "version: 1\npipeline: {}\nschedule: {{ cron: \"{}\", catchup: {}, overlap: {}, misfire_grace: {}{} }}\n{}stages:\n{}",
        plan.name, plan.cron.empty() ? DailyCron() : plan.cron, plan.catchup, plan.overlap, plan.grace, plan.more, plan.params,
        plan.stages);
    const auto parsed = ParsePipeline(yaml, "p.yaml");
    ASSERT_TRUE(parsed.pipeline) << RenderAll(parsed.diagnostics, yaml);
    const auto applied = ledger_->ApplyPipeline(*parsed.pipeline, ToJson(*parsed.pipeline), yaml, "/srv", kDefaultOrg, In());
    ASSERT_TRUE(applied) << applied.error().message;
    if (plan.days_behind > 0) SetWatermark(plan.name, now_ - 3h - days{plan.days_behind - 1});
  }
  void SetWatermark(const std::string& pipeline, WallTime to) {
    const std::int64_t us = ToUnixMicros(to);
    Raw(fmt::format("update schedule set watermark = {} where pipeline = '{}'",
                    postgres() ? fmt::format("timestamptz 'epoch' + interval '1 microsecond' * {}", us) : std::to_string(us),
                    pipeline));
  }
  std::unique_ptr<Scheduler> Make(Ledger& ledger, OwnerId id, Millis ttl = 3000ms) {
    return std::make_unique<Scheduler>(SchedulerOptions{.name = "s", .id = id, .lead_ttl = ttl}, ledger, inbox_, clock(), ids_);
  }
  void Pass(Scheduler& scheduler) {
    const auto passed = scheduler.Pass();
    ASSERT_TRUE(passed) << passed.error().message;
    EXPECT_GE(*passed, 0ms);
  }
  std::vector<SlotRow> Slots(const std::string& pipeline = "p") {  // oldest first
    auto slots = ledger_->Slots(kDefaultOrg, pipeline, 5000, In());
    EXPECT_TRUE(slots) << slots.error().message;
    return {slots->rbegin(), slots->rend()};
  }
  std::string Fates(const std::string& pipeline = "p") {  // F fired, S skipped, M missed; oldest first
    std::string fates;
    for (const SlotRow& slot : Slots(pipeline)) {
      fates += slot.state == "fired" ? 'F' : slot.state == "skipped" ? 'S' : 'M';
      EXPECT_EQ(slot.run.has_value(), slot.state == "fired");
      EXPECT_EQ(slot.reason.empty(), slot.state == "fired");
    }
    return fates;
  }
  std::vector<RunSummary> Runs(const std::string& pipeline = "p") {
    std::vector<RunSummary> all;
    RunFilter filter;
    filter.pipeline = pipeline;
    filter.limit = 500;
    while (true) {
      const auto page = ledger_->ListRuns(filter, In());
      EXPECT_TRUE(page) << page.error().message;
      if (!page || page->empty()) return all;
      all.insert(all.end(), page->begin(), page->end());
      filter.before = all.back().spec.id;
    }
  }
  // Every fired slot has one run, every run one slot.
  void ExpectOneRunPerFiredSlot(const std::string& pipeline = "p") {
    std::map<WallTime, RunId> fired;
    for (const SlotRow& slot : Slots(pipeline))
      if (slot.run) {
        EXPECT_TRUE(fired.emplace(slot.key.slot, *slot.run).second) << "two rows of one slot";
      }
    const auto runs = Runs(pipeline);
    EXPECT_EQ(runs.size(), fired.size());
    for (const RunSummary& run : runs) {
      ASSERT_TRUE(run.spec.slot);
      EXPECT_EQ(fired[*run.spec.slot], run.spec.id);
      EXPECT_EQ(run.jobs, 2u);
    }
  }
  // The backfill of the last `days_back` days, of the schedule as it is now.
  BackfillRow Backfill(int days_back, BackfillOptions options = {}, std::uint32_t generation = 0) {
    const ScheduleRow schedule = (*ledger_->Schedules(kDefaultOrg, In()))[0];
    options.schedule = schedule.spec;
    BackfillRow row;
    row.id = ids_.Next<BackfillId>();
    row.pipeline = schedule.pipeline;
    row.schedule = schedule.spec.name;
    row.from = now_ - 3h - days{days_back - 1};
    row.to = now_;
    row.until = schedule.watermark;
    row.generation = generation;
    row.version = schedule.version;
    row.options = ToJson(options);
    row.actor = "test";
    row.created_at = now_;
    return row;
  }
  Ledger::CreatedBackfill Create(const BackfillRow& row) {
    auto made = ledger_->CreateBackfill(row, In());
    EXPECT_TRUE(made) << made.error().message;
    return made.value_or(Ledger::CreatedBackfill{});
  }
  BackfillState StateOf(BackfillId id) {
    BackfillFilter filter;
    filter.id = id;
    const auto found = ledger_->Backfills(filter, In());
    EXPECT_TRUE(found) << found.error().message;
    return found->at(0);
  }
  // The slots of a generation in the order in which they were decided.
  std::vector<SlotRow> Generation(std::uint32_t generation) {
    std::vector<SlotRow> slots;
    for (const SlotRow& slot : Slots())
      if (slot.key.generation == generation) slots.push_back(slot);
    std::ranges::stable_sort(slots, {}, [](const SlotRow& s) { return s.run.value_or(RunId{}); });
    return slots;
  }
  std::size_t Active() {
    const auto runs = Runs();
    return static_cast<std::size_t>(std::ranges::count(runs, RunState::kRunning, &RunSummary::state));
  }
  // Ends the oldest active run.
  void EndOne(RunState state = RunState::kSucceeded) {
    const auto runs = Runs();
    for (const RunSummary& run : runs | std::views::reverse)
      if (run.state == RunState::kRunning) return EndRuns("p", state, run.spec.id);
  }
  void EndRun(RunId run, RunState state) { EndRuns("p", state, run); }
  // What `run retry` stores: a run of the same slot and generation, here without jobs.
  RunId Retry(RunId of) {
    const auto failed = ledger_->GetRun(kDefaultOrg, of, In());
    EXPECT_TRUE(failed) << failed.error().message;
    Requeue again;
    again.run = failed->summary.spec;
    again.run->id = ids_.Next<RunId>();
    again.retry = RunRetry{.of = of, .actor = "test", .reason = "", .at = now_};
    EXPECT_TRUE(ledger_->RequeueDead(again, In()));
    return again.run->id;
  }
  void EndRuns(const std::string& pipeline = "p", RunState state = RunState::kSucceeded, std::optional<RunId> only = {}) {
    OwnerBatch batch;
    for (const RunSummary& run : Runs(pipeline))
      if (run.state == RunState::kRunning && (!only || *only == run.spec.id))
        batch.run_outcomes.push_back({run.spec.id, kDefaultOrg, state, "", now_});
    CommitAsOwner(std::move(batch));
  }
  void EndJob(const JobSpec& job, JobState state) {
    OutcomeRow outcome;
    outcome.report.job = job.id;
    outcome.report.token = Token::Make(Epoch{1}, 1);
    outcome.report.end = state == JobState::kSucceeded ? AttemptEnd::kSucceeded : AttemptEnd::kFailed;
    outcome.report.started_at = outcome.report.finished_at = outcome.recorded_at = now_;
    outcome.run = job.run;
    outcome.state = state;
    OwnerBatch batch;
    batch.outcomes = {outcome};
    CommitAsOwner(std::move(batch));
  }
  // As a broker that takes the shard, writes this and leaves.
  void CommitAsOwner(OwnerBatch batch) {
    const OwnerId owner = ids_.Next<OwnerId>();
    const ShardId shard = ShardOf(kDefaultOrg, 1);
    const auto epoch = ledger_->TakeShard(shard, owner, "b1", In());
    ASSERT_TRUE(epoch) << epoch.error().message;
    batch.holds = {{shard, *epoch}};
    batch.owner = owner;
    ASSERT_TRUE(ledger_->Commit(batch, In()));
    ASSERT_TRUE(ledger_->ReleaseShards(batch.holds, owner, In()));
  }

  SystemClock system_;
  FakeClock fake_{*ParseRfc3339("2026-01-31T12:34:56Z")};
  SystemRandom random_;
  IdGenerator ids_{system_, random_};
  LocalInbox inbox_;
  std::unique_ptr<testing::TestDatabase> database_;
  std::string folder_, dsn_;
  std::unique_ptr<Ledger> ledger_;
  WallTime now_{};
};

}  // namespace millrace::scheduler
