// The scheduler on both ledgers: SQLite in virtual time, PostgreSQL (MILLRACE_TEST_POSTGRES) in the server's.
#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <filesystem>
#include <ranges>
#include <thread>

#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/sqlite.h"
#include "common/model/backfill.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/model/schedule_rules.h"
#include "common/queue/sqlite_queue.h"
#include "scheduler/slot_planner.h"
#include "tests/support/test_postgres.h"

namespace millrace::scheduler {
namespace {

using std::chrono::days;

// A ledger whose Fire dies before or after the transaction: what a scheduler that is killed there leaves behind.
class DyingLedger final : public Ledger {
 public:
  enum class Die : std::uint8_t { kNever, kBeforeFire, kAfterFire };
  DyingLedger(Ledger& real, Die when) : real_(real), when_(when) {}

  Result<FireResult> Fire(const FireBatch& b, MonoTime d) override {
    if (when_ == Die::kBeforeFire) return Fail(ErrorCode::kUnavailable, "killed");
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
  // The scheduler has no business with the rest.
  Result<std::vector<ScheduleRow>> Schedules(std::optional<OrgId>, MonoTime) override { return Never(); }
  Result<std::uint32_t> ActiveRuns(OrgId, std::string_view, MonoTime) override { return Never(); }
  Result<CreatedBackfill> CreateBackfill(BackfillRow, MonoTime) override { return Never(); }
  Result<std::map<RunState, std::uint64_t>> BackfillRuns(const BackfillRow&, MonoTime) override { return Never(); }
  Result<void> Migrate(MonoTime) override { return Never(); }
  Result<Epoch> TakeShard(ShardId, OwnerId, std::string_view, MonoTime) override { return Never(); }
  Result<void> RenewShards(std::span<const ShardHold>, OwnerId, MonoTime) override { return Never(); }
  Result<void> ReleaseShards(std::span<const ShardHold>, OwnerId, MonoTime) override { return Never(); }
  Result<std::vector<ShardStatus>> Shards(MonoTime) override { return Never(); }
  Result<OwnerBatchResult> Commit(const OwnerBatch&, MonoTime) override { return Never(); }
  Result<std::vector<LiveJob>> LiveSingleJobs(ShardId, std::uint16_t, std::optional<JobId>, std::uint32_t, MonoTime) override {
    return Never();
  }
  Result<std::vector<LiveRun>> LiveRuns(ShardId, std::uint16_t, std::optional<RunId>, std::uint32_t, MonoTime) override {
    return Never();
  }
  Result<Outbox> ReadOutbox(ShardId, std::uint16_t, std::uint32_t, MonoTime) override { return Never(); }
  Result<void> RequestCancel(std::span<const CancelRow>, MonoTime) override { return Never(); }
  Result<std::vector<ItemState>> States(OrgId, std::span<const Uuid>, MonoTime) override { return Never(); }
  Result<void> SubmitRun(const RunSpec&, std::span<const JobSpec>, MonoTime) override { return Never(); }
  Result<std::vector<JobId>> KnownJobs(std::span<const JobId>, MonoTime) override { return Never(); }
  Result<QueueSettings> PutQueueSettings(const QueueSettings&, std::string_view, MonoTime) override { return Never(); }
  Result<std::vector<QueueSettings>> QueuesOf(std::optional<OrgId>, std::optional<ShardId>, MonoTime) override {
    return Never();
  }
  Result<SubmitJobsResult> SubmitJobs(std::span<const JobSpec>, MonoTime) override { return Never(); }
  Result<RequeueResult> RequeueDead(const Requeue&, MonoTime) override { return Never(); }
  Result<std::vector<JobSummary>> ListJobs(const JobFilter&, MonoTime) override { return Never(); }
  Result<PipelineVersion> ApplyPipeline(const Pipeline&, std::string_view, std::string_view, std::string_view, OrgId,
                                        MonoTime) override {
    return Never();
  }
  Result<std::vector<PipelineVersion>> ListPipelines(OrgId, MonoTime) override { return Never(); }
  Result<std::vector<SlotRow>> Slots(OrgId, std::string_view, std::uint32_t, MonoTime) override { return Never(); }
  Result<void> SetPaused(OrgId, std::string_view, bool, MonoTime) override { return Never(); }
  Result<std::vector<RunSummary>> ListRuns(const RunFilter&, MonoTime) override { return Never(); }
  Result<RunDetail> GetRun(OrgId, RunId, MonoTime) override { return Never(); }
  Result<JobDetail> GetJob(OrgId, JobId, MonoTime) override { return Never(); }
  Result<std::vector<AuditHead>> AuditHeads(MonoTime) override { return Never(); }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId>, std::uint64_t, std::uint32_t, MonoTime) override {
    return Never();
  }
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId, std::uint64_t, MonoTime) override { return Never(); }
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t, MonoTime) override { return Never(); }

 private:
  static std::unexpected<Error> Never() {
    ADD_FAILURE() << "the scheduler called what is not its business";
    return Fail(ErrorCode::kUnsupported, "not for a scheduler");
  }
  Ledger& real_;
  Die when_;
};

class SchedulerTest : public ::testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() { ConfigureLog(LogLevel::kOff, LogFormat::kJson, "test"); }
  void SetUp() override {
    if (postgres()) {
      MILLRACE_NEED_POSTGRES();
      database_ = std::make_unique<testing::TestDatabase>("scheduler");
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
  };
  void Apply(const Plan& plan) {
    const std::string yaml = fmt::format(
        "version: 1\npipeline: {}\nschedule: {{ cron: \"{}\", catchup: {}, overlap: {}, misfire_grace: {}{} }}\n{}stages:\n"
        "  a: {{ command: [echo, one] }}\n  b: {{ command: [echo, two], after: [a] }}\n",
        plan.name, plan.cron.empty() ? DailyCron() : plan.cron, plan.catchup, plan.overlap, plan.grace, plan.more, plan.params);
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
  void EndRuns(const std::string& pipeline = "p", RunState state = RunState::kSucceeded, std::optional<RunId> only = {}) {
    const OwnerId owner = ids_.Next<OwnerId>();
    const ShardId shard = ShardOf(kDefaultOrg, 1);
    const auto epoch = ledger_->TakeShard(shard, owner, "b1", In());
    ASSERT_TRUE(epoch) << epoch.error().message;
    OwnerBatch batch;
    batch.holds = {{shard, *epoch}};
    batch.owner = owner;
    for (const RunSummary& run : Runs(pipeline))
      if (run.state == RunState::kRunning && (!only || *only == run.spec.id))
        batch.run_outcomes.push_back({run.spec.id, kDefaultOrg, state, "", now_});
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

TEST_P(SchedulerTest, ADueSlotFiresOnceWithRunJobsAndOutbox) {
  Apply({.catchup = "none", .grace = "3h", .days_behind = 1});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  EXPECT_TRUE(scheduler->leading());
  ASSERT_EQ(Fates(), "F");
  const SlotRow slot = Slots()[0];
  EXPECT_EQ(slot.key.slot, std::chrono::floor<std::chrono::minutes>(now_ - 2h));
  EXPECT_EQ(slot.key.schedule, "default");
  EXPECT_EQ(slot.key.generation, 0u);
  EXPECT_LT(std::chrono::abs(slot.decided_at - *ledger_->Now(In())), 20s);
  const auto run = ledger_->GetRun(kDefaultOrg, *slot.run, In());
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_EQ(run->summary.spec.slot, slot.key.slot);
  EXPECT_EQ(run->summary.spec.version, 1);
  ASSERT_EQ(run->jobs.size(), 2u);
  EXPECT_EQ(run->jobs[0].spec.stage, "a");
  EXPECT_EQ(run->jobs[1].spec.depends_on, std::vector{run->jobs[0].spec.id});
  const ShardId shard = ShardOf(kDefaultOrg, 1);
  const auto outbox = ledger_->ReadOutbox(shard, 1, 10, In());
  ASSERT_TRUE(outbox) << outbox.error().message;
  ASSERT_EQ(outbox->runs.size(), 1u);
  EXPECT_EQ(outbox->runs[0].spec.id, *slot.run);
  EXPECT_EQ(outbox->runs[0].jobs.size(), 2u);
  EXPECT_EQ(*inbox_.Wait({{shard}}, 0ms), std::vector{shard}) << "the owner of the shard was rung";
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, slot.key.slot);
  for (int i = 0; i < 3; ++i) Pass(*scheduler);
  EXPECT_EQ(Fates(), "F");
  ExpectOneRunPerFiredSlot();
  EXPECT_TRUE(inbox_.Wait({{shard}}, 0ms)->empty());
}

TEST_P(SchedulerTest, AnOutageIsCaughtUpAsTheScheduleSays) {
  const std::pair<const char*, const char*> cases[] = {
      {"none", "MMMMM"}, {"latest", "MMMMF"}, {"all", "FFFFF"}, {"all(2)", "MMMFF"}};
  int n = 0;
  for (const auto& [catchup, fates] : cases) Apply({.name = fmt::format("p{}", n++), .catchup = catchup, .days_behind = 5});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  n = 0;
  for (const auto& [catchup, fates] : cases) {
    const std::string name = fmt::format("p{}", n++);
    EXPECT_EQ(Fates(name), fates) << catchup;
    ExpectOneRunPerFiredSlot(name);
    for (const SlotRow& slot : Slots(name)) {
      if (slot.state != "missed") continue;
      EXPECT_NE(slot.reason.find("s late, misfire_grace is 60 s"), std::string::npos) << slot.reason;
    }
  }
}

TEST_P(SchedulerTest, OverlapSkipFiresAgainWhenTheRunHasEnded) {
  Apply({.overlap = "skip", .days_behind = 3});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "FSS");
  EXPECT_EQ(Slots()[1].reason, "an earlier run had not ended (overlap: skip)");
  Apply({.name = "q", .overlap = "skip", .days_behind = 1});
  Pass(*scheduler);
  EXPECT_EQ(Fates("q"), "F") << "another pipeline's run is no overlap";
  EndRuns();
  Raw("delete from slot where pipeline = 'p' and state <> 'fired'");
  SetWatermark("p", now_ - 3h);
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "FF");
  ExpectOneRunPerFiredSlot();
}

TEST_P(SchedulerTest, ARequiredParameterIsASkippedSlotWithTheReason) {
  Apply({.params = "params:\n  since: { type: date, required: true }\n", .days_behind = 2});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "SS");
  EXPECT_EQ(Slots()[0].reason, "parameter 'since' (date) is required: give since=...");
  EXPECT_TRUE(Runs().empty());
}

TEST_P(SchedulerTest, ABrokenVersionOrScheduleDoesNotStopTheOthers) {
  for (const char* name : {"a", "b", "c", "d"}) Apply({.name = name, .days_behind = 1});
  Raw("update pipeline_version set definition = '{broken' where pipeline = 'a'");
  Raw("update schedule set cron = 'nonsense' where pipeline = 'b'");
  Raw("update schedule set catchup = 'sometimes' where pipeline = 'c'");
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  EXPECT_EQ(Fates("a") + Fates("b") + Fates("c"), "");
  EXPECT_EQ(Fates("d"), "F");
}

TEST_P(SchedulerTest, SlotsOfAPausedScheduleAreSkippedWithTheirReason) {
  Apply({.days_behind = 2});
  Apply({.name = "q", .days_behind = 1});
  ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, "p", true, In()));
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "SS");
  EXPECT_EQ(Slots()[0].reason, "paused");
  EXPECT_TRUE(Runs().empty());
  EXPECT_EQ(Fates("q"), "F") << "others go on";
  ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, "p", false, In()));
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "SS") << "what was skipped is not caught up with";
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, Slots()[1].key.slot);
  SetWatermark("p", now_ - 3h - days{3});  // the next slots, as after days
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "FFSS");
  ExpectOneRunPerFiredSlot();
}

// Nobody decided anything while it was paused, as when all schedulers were down.
TEST_P(SchedulerTest, ResumingDecidesTheSlotsOfThePauseWithoutAScheduler) {
  Apply({.days_behind = 3});
  ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, "p", true, In()));
  const auto resumed = ResumeSchedule(*ledger_, kDefaultOrg, "p", In());
  ASSERT_TRUE(resumed) << resumed.error().message;
  EXPECT_EQ(*resumed, 3u);
  EXPECT_EQ(Fates(), "SSS");
  EXPECT_FALSE((*ledger_->Schedules(kDefaultOrg, In()))[0].paused);
  Pass(*Make(*ledger_, ids_.Next<OwnerId>()));
  EXPECT_EQ(Fates(), "SSS");
  EXPECT_TRUE(Runs().empty());
  EXPECT_EQ(*ResumeSchedule(*ledger_, kDefaultOrg, "p", In()), 0u) << "one that is not paused";
  SetWatermark("p", now_ - 3h - days{5});
  EXPECT_EQ(*ResumeSchedule(*ledger_, kDefaultOrg, "p", In()), 0u) << "its due slots are the scheduler's";
  EXPECT_EQ(Fates(), "SSS");
  EXPECT_EQ(ResumeSchedule(*ledger_, kDefaultOrg, "nosuch", In()).error().code, ErrorCode::kNotFound);
}

TEST_P(SchedulerTest, AFailedTransactionLeavesNothingAndTheNextPassDecidesTheSame) {
  Apply({.days_behind = 3});
  const WallTime watermark = (*ledger_->Schedules(kDefaultOrg, In()))[0].watermark;
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Raw("alter table outbox rename to outbox_away");
  const auto failed = scheduler->Pass();
  EXPECT_FALSE(failed);
  EXPECT_EQ(Fates(), "");
  EXPECT_TRUE(Runs().empty());
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, watermark);
  EXPECT_EQ(*ledger_->ActiveRuns(kDefaultOrg, "p", In()), 0u);
  Raw("alter table outbox_away rename to outbox");
  Pass(*scheduler);
  EXPECT_EQ(Fates(), "FFF");
  ExpectOneRunPerFiredSlot();
}

TEST_P(SchedulerTest, AnAnswerThatIsLostIsNotASecondRun) {
  Apply({.days_behind = 3});
  const OwnerId id = ids_.Next<OwnerId>();
  DyingLedger dying(*ledger_, DyingLedger::Die::kAfterFire);
  EXPECT_FALSE(Make(dying, id)->Pass());
  EXPECT_EQ(Fates(), "FFF");
  Pass(*Make(*ledger_, id));
  SetWatermark("p", now_ - 3h - days{2});  // even with a watermark from before the slots
  Pass(*Make(*ledger_, id));
  EXPECT_EQ(Fates(), "FFF");
  ExpectOneRunPerFiredSlot();
}

// Both have the same id, so that both lead at once: the lease is an optimisation, the slot's key is the guarantee.
TEST_P(SchedulerTest, TwoSchedulersAtTheSameSlotsFireEachOnce) {
  constexpr int kRounds = 20, kSlotsPerRound = 10;
  for (int round = 0; round < kRounds; ++round) {
    Apply({.name = fmt::format("p{}", round), .days_behind = kSlotsPerRound});
    Raw(fmt::format("update schedule set active = 0 where pipeline = 'p{}'", round));
  }
  const OwnerId id = ids_.Next<OwnerId>();
  std::array<std::unique_ptr<Ledger>, 2> ledgers = {Open(), Open()};
  std::array<std::string, 2> errors;
  int next = 0;
  std::barrier start(2, [&]() noexcept { Raw(fmt::format("update schedule set active = 1 where pipeline = 'p{}'", next++)); });
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        auto scheduler = Make(*ledgers[t], id);
        for (int round = 0; round < kRounds; ++round) {
          start.arrive_and_wait();
          if (const auto passed = scheduler->Pass(); !passed) errors[t] += passed.error().message + "; ";
        }
      });
  }
  EXPECT_EQ(errors[0] + errors[1], "");
  for (int round = 0; round < kRounds; ++round) {
    const std::string name = fmt::format("p{}", round);
    EXPECT_EQ(Fates(name), std::string(kSlotsPerRound, 'F'));
    ExpectOneRunPerFiredSlot(name);
  }
}

TEST_P(SchedulerTest, AStandbyTakesOverWhenTheLeaderIsGone) {
  constexpr Millis kTtl{1000};
  Apply({.name = "p", .days_behind = 2});
  auto first = Make(*ledger_, ids_.Next<OwnerId>(), kTtl), second = Make(*ledger_, ids_.Next<OwnerId>(), kTtl);
  Pass(*first);
  Pass(*second);
  EXPECT_TRUE(first->leading());
  EXPECT_FALSE(second->leading());
  first.reset();
  Apply({.name = "q", .days_behind = 2});
  const MonoTime give_up = system_.Now() + 10s;
  while (!second->leading() && system_.Now() < give_up) {
    if (postgres())
      std::this_thread::sleep_for(50ms);  // the server's clock cannot be told
    else
      fake_.Advance(50ms);
    Pass(*second);
  }
  EXPECT_TRUE(second->leading());
  EXPECT_EQ(Fates("p") + Fates("q"), "FFFF");
}

TEST_P(SchedulerTest, EverySecondInRealTime) {
  if (!postgres()) GTEST_SKIP() << "SQLite runs in virtual time here";
  Apply({.catchup = "all", .cron = "*/1 * * * * *"});
  const WallTime from = (*ledger_->Schedules(kDefaultOrg, In()))[0].watermark;
  const OwnerId id = ids_.Next<OwnerId>();
  std::array<std::unique_ptr<Ledger>, 2> ledgers = {Open(), Open()};
  std::array<std::unique_ptr<Scheduler>, 2> schedulers = {Make(*ledgers[0], id), Make(*ledgers[1], id)};
  {
    std::jthread a([&] { schedulers[0]->Run(); }), b([&] { schedulers[1]->Run(); });
    const MonoTime give_up = system_.Now() + 15s;
    while (Slots().size() < 3 && system_.Now() < give_up) std::this_thread::sleep_for(100ms);
    for (auto& scheduler : schedulers) scheduler->RequestStop();
  }
  const auto slots = Slots();
  ASSERT_GE(slots.size(), 3u);
  for (std::size_t i = 0; i < slots.size(); ++i)
    EXPECT_EQ(slots[i].key.slot, std::chrono::floor<std::chrono::seconds>(from) + std::chrono::seconds{i + 1});
  EXPECT_EQ(Fates(), std::string(slots.size(), 'F'));
  ExpectOneRunPerFiredSlot();
}

// Each leader lives for one pass near the edge of a minute and dies before, in or after the transaction, or not at all; the
// next one has another id and waits for the lease.
TEST_P(SchedulerTest, AThousandLeadersKilledAtTheSlotEdge) {
  if (postgres()) GTEST_SKIP() << "needs virtual time";
  constexpr int kKills = 1000;
  const std::uint64_t seed = SystemRandom().Next() % 1'000'000'000;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  SeededRandom random(seed);
  Apply({.catchup = "all", .cron = "* * * * *"});
  const WallTime from = (*ledger_->Schedules(kDefaultOrg, In()))[0].watermark;
  int kills = 0, in_fire = 0;
  while (kills < kKills) {
    const WallTime now = fake_.WallNow();
    const WallTime edge = std::chrono::ceil<std::chrono::minutes>(now + 1s);
    fake_.Advance(edge - now - 1500ms + Millis{random.Below(1500)});
    const std::uint64_t leaders = 1 + random.Below(3);
    for (std::uint64_t l = 0; l < leaders && kills < kKills; ++l, ++kills) {
      const auto die = static_cast<DyingLedger::Die>(random.Below(3));
      DyingLedger dying(*ledger_, die);
      auto scheduler = Make(dying, ids_.Next<OwnerId>());
      for (int i = 0; i < 6; ++i, fake_.Advance(Millis{500 + random.Below(600)})) {
        const auto passed = scheduler->Pass();
        if (!passed) ++in_fire;
        if (!passed || (scheduler->leading() && random.Below(2) == 0)) break;
      }
    }
  }
  fake_.Advance(10s);
  Pass(*Make(*ledger_, ids_.Next<OwnerId>()));
  const auto due = CronSchedule::Make("* * * * *", "UTC", DstRule::kOnce)->Between(from, fake_.WallNow(), 100'000);
  const auto slots = Slots();
  ASSERT_EQ(slots.size(), due.size());
  for (std::size_t i = 0; i < due.size(); ++i) EXPECT_EQ(slots[i].key.slot, due[i]);
  const std::string fates = Fates();
  EXPECT_EQ(fates, std::string(due.size(), 'F'));
  ExpectOneRunPerFiredSlot();
  EXPECT_GT(in_fire, 100) << "too few died inside the transaction to prove anything";
  fmt::print("{} leaders killed, {} of them in the transaction; {} slots, {} missed, {} runs\n", kills, in_fire, slots.size(),
             std::ranges::count(fates, 'M'), Runs().size());
}

TEST_P(SchedulerTest, RangeJitterAndLimitAreStoredAndAReapplyKeepsTheWatermark) {
  const std::string more = ", start: 2020-01-01, end: 2090-01-01, jitter: 30s, max_parallel: 3";
  Apply({.catchup = "none", .grace = "3h", .days_behind = 1, .more = more});
  auto row = (*ledger_->Schedules(kDefaultOrg, In()))[0];
  EXPECT_EQ(row.spec.start, "2020-01-01");
  EXPECT_EQ(row.spec.end, "2090-01-01");
  EXPECT_EQ(row.spec.jitter, 30s);
  EXPECT_EQ(row.spec.max_parallel, 3u);
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  ASSERT_EQ(Fates(), "F");
  const SlotRow slot = Slots()[0];
  const auto run = ledger_->GetRun(kDefaultOrg, *slot.run, In());
  EXPECT_EQ(run->summary.spec.overlap, "allow(3)");
  EXPECT_EQ(run->summary.spec.slot, slot.key.slot) << "the slot is the time before jitter";
  EXPECT_EQ(run->jobs[0].spec.run_at, slot.key.slot + JitterOf("p", "default", slot.key.slot, 30s));
  EXPECT_FALSE(run->jobs[1].spec.run_at) << "it follows the first";
  const WallTime watermark = (*ledger_->Schedules(kDefaultOrg, In()))[0].watermark;
  Apply({.catchup = "none", .grace = "3h", .more = ", start: 2020-01-01, end: 2090-01-01, jitter: 60s, max_parallel: 4"});
  row = (*ledger_->Schedules(kDefaultOrg, In()))[0];
  EXPECT_EQ(row.version, 2);
  EXPECT_EQ(row.spec.jitter, 60s);
  EXPECT_EQ(row.watermark, watermark);
  Apply({.catchup = "none", .grace = "3h", .more = ", start: 2021-01-01, end: 2090-01-01"});
  row = (*ledger_->Schedules(kDefaultOrg, In()))[0];
  EXPECT_GT(row.watermark, watermark) << "another range decides only slots after now";
  EXPECT_EQ(row.spec.max_parallel, 0u);
}

TEST_P(SchedulerTest, ASlotOutsideTheRangeDoesNotFire) {
  const auto day = [&](int back) { return ToRfc3339(now_ - days{back} - 1h); };
  Apply({.days_behind = 5, .more = fmt::format(", start: \"{}\", end: \"{}\"", day(3), day(1))});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  EXPECT_EQ(Fates(), "FF");
  EXPECT_EQ(Slots()[0].key.slot, std::chrono::floor<std::chrono::minutes>(now_ - 2h) - days{2});
}

TEST_P(SchedulerTest, OnlyChangedSchedulesAreReadAgain) {
  for (const char* name : {"a", "b"}) Apply({.name = name});
  const auto all = ledger_->SchedulesChanged(-1, 10, In());
  ASSERT_TRUE(all) << all.error().message;
  ASSERT_EQ(all->size(), 2u);
  const std::int64_t revision = all->back().revision;
  EXPECT_GT(revision, all->front().revision);
  const auto changed = [&] {
    std::string names;
    const auto rows = ledger_->SchedulesChanged(revision, 10, In());
    for (const auto& row : *rows) names += row.pipeline + (row.paused ? "!" : "") + (row.active ? "" : "-");
    return names;
  };
  EXPECT_EQ(changed(), "");
  FireBatch batch;
  batch.watermarks.push_back({kDefaultOrg, "a", "default", now_ + 1h});
  ASSERT_TRUE(ledger_->Fire(batch, In()));
  EXPECT_EQ(changed(), "") << "a watermark that goes forward is no change";
  SetWatermark("a", now_ - 1h);
  EXPECT_EQ(changed(), "a");
  Raw("update schedule set paused = 1 where pipeline = 'b'");
  EXPECT_EQ(changed(), "ab!");
  EXPECT_EQ(ledger_->SchedulesChanged(revision, 1, In())->size(), 1u);
}

TEST_P(SchedulerTest, ABackfillIsFedWithinItsLimitOldestFirst) {
  Apply({});
  const BackfillRow row = Create(Backfill(7, {.max_parallel = 3})).row;
  EXPECT_EQ(row.generation, 1u);
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (const std::size_t fed : {3u, 6u, 7u}) {
    for (int i = 0; i < 3; ++i) Pass(*scheduler);
    EXPECT_EQ(Generation(1).size(), fed);
    EXPECT_FALSE(StateOf(row.id).ended_at);
    EndRuns();
  }
  Pass(*scheduler);
  EXPECT_TRUE(StateOf(row.id).ended_at);
  const auto slots = Generation(1);
  ASSERT_EQ(slots.size(), 7u);
  for (std::size_t i = 0; i < slots.size(); ++i)
    EXPECT_EQ(slots[i].key.slot, std::chrono::floor<std::chrono::minutes>(now_ - 2h) - days{6 - i});
  const auto run = ledger_->GetRun(kDefaultOrg, *slots[0].run, In());
  EXPECT_EQ(run->summary.spec.generation, 1u);
  EXPECT_EQ(run->jobs[0].spec.priority, kPriorityLevels - 1) << "behind everything of the schedule itself";
  EXPECT_EQ(*ledger_->BackfillRuns(row, In()), (std::map<RunState, std::uint64_t>{{RunState::kSucceeded, 7}}));
  ExpectOneRunPerFiredSlot();
}

TEST_P(SchedulerTest, ABackfillCanBeginAtTheEnd) {
  Apply({});
  const BackfillRow row = Create(Backfill(5, {.newest_first = true, .max_parallel = 2})).row;
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 5; ++i, EndRuns()) Pass(*scheduler);
  const auto slots = Generation(1);
  ASSERT_EQ(slots.size(), 5u);
  for (std::size_t i = 1; i < slots.size(); ++i) EXPECT_LT(slots[i].key.slot, slots[i - 1].key.slot);
  EXPECT_TRUE(StateOf(row.id).ended_at);
}

TEST_P(SchedulerTest, WhatIsReprocessed) {
  Apply({.days_behind = 4});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  ASSERT_EQ(Fates(), "FFFF");
  EndOne(RunState::kFailed);  // the oldest
  EndOne();
  EndOne();  // the newest stays active
  const auto days_of = [&](std::uint32_t generation) {
    std::string text;
    for (const SlotRow& slot : Generation(generation))
      text += std::to_string(std::chrono::round<days>(now_ - 2h - slot.key.slot).count());
    return text;
  };
  const auto feed = [&](Reprocess reprocess) {
    const BackfillRow row = Create(Backfill(6, {.max_parallel = 10, .reprocess = reprocess})).row;
    for (int i = 0; i < 2; ++i) Pass(*scheduler);
    return row;
  };
  feed(Reprocess::kNone);
  EXPECT_EQ(days_of(1), "54") << "only slots without any run";
  feed(Reprocess::kFailed);
  EXPECT_EQ(days_of(2), "3") << "those of the first backfill are active";
  feed(Reprocess::kAll);
  EXPECT_EQ(days_of(3), "543210");
  EndRuns();
  feed(Reprocess::kFailed);
  EXPECT_EQ(days_of(4), "") << "the latest run of each slot succeeded";
}

TEST_P(SchedulerTest, ABackfillLeavesToTheScheduleWhatIsStillToBeDecided) {
  Apply({.days_behind = 3});
  const BackfillRow row = Create(Backfill(5, {.max_parallel = 10})).row;  // the watermark is three slots back
  Raw("update schedule set paused = 1");
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  EXPECT_EQ(Generation(1).size(), 2u);
  Raw("update schedule set paused = 0");
  Pass(*scheduler);
  EXPECT_EQ(Generation(0).size(), 3u);
  EXPECT_EQ(Generation(1).size(), 2u);
  EndRuns();
  Pass(*scheduler);
  EXPECT_TRUE(StateOf(row.id).ended_at);
}

TEST_P(SchedulerTest, AskingAgainIsTheSameBackfill) {
  Apply({});
  const BackfillRow first = Backfill(3, {.max_parallel = 10});
  const auto made = Create(first);
  EXPECT_TRUE(made.created);
  const auto again = Create(Backfill(3, {.max_parallel = 10}));
  EXPECT_FALSE(again.created);
  EXPECT_EQ(again.row, made.row);
  EXPECT_EQ(Create(Backfill(3, {.max_parallel = 9})).row.generation, 2u) << "other options: another one";
  EXPECT_EQ(Create(Backfill(3, {.max_parallel = 10}, 1)).row.id, made.row.id);
  const auto other = ledger_->CreateBackfill(Backfill(4, {.max_parallel = 10}, 1), In());
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::kConflict);
  EXPECT_EQ(Create(Backfill(4, {.max_parallel = 10}, 7)).row.generation, 7u);
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 20; ++i, EndRuns()) Pass(*scheduler);
  EXPECT_EQ(Generation(1).size() + Generation(2).size() + Generation(7).size(), 4u)
      << "what one has run is not left for the other";
  EXPECT_EQ(Create(Backfill(3, {.max_parallel = 10})).row.generation, 8u) << "the first one has ended";
}

TEST_P(SchedulerTest, ABrokenBackfillDoesNotStopTheOthers) {
  Apply({});
  BackfillRow gone = Backfill(3);
  gone.version = 77;
  Create(gone);
  Create(Backfill(2, {.max_parallel = 2}));
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  EXPECT_EQ(Generation(1).size() + Generation(2).size(), 2u);
}

// A feeder dies before, in or after its transaction; runs end in between. Nothing is fed twice, nothing is left out, and there
// are never more active runs than allowed.
TEST_P(SchedulerTest, FeedersKilledAtAnyPointFeedEachSlotOnce) {
  const int slots = postgres() ? 40 : 150;
  constexpr std::size_t kParallel = 4;
  const std::uint64_t seed = SystemRandom().Next() % 1'000'000'000;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  SeededRandom random(seed);
  Apply({});
  const BackfillRow row = Create(Backfill(slots, {.newest_first = random.Below(2) == 0, .max_parallel = kParallel})).row;
  const OwnerId id = ids_.Next<OwnerId>();  // the lease is an optimisation: all of them lead
  int killed = 0;
  for (int i = 0; i < 3000 && !StateOf(row.id).ended_at; ++i) {
    DyingLedger dying(*ledger_, static_cast<DyingLedger::Die>(random.Below(3)));
    if (!Make(dying, id)->Pass()) ++killed;
    EXPECT_LE(Active(), kParallel);
    for (std::uint64_t n = random.Below(3); n > 0; --n) EndOne(random.Below(2) == 0 ? RunState::kSucceeded : RunState::kFailed);
  }
  EXPECT_TRUE(StateOf(row.id).ended_at);
  EXPECT_EQ(Generation(1).size(), static_cast<std::size_t>(slots));
  ExpectOneRunPerFiredSlot();
  EXPECT_GT(killed, slots / 8);
}

TEST_P(SchedulerTest, TwoFeedersAtOnceFeedEachSlotOnceAndKeepTheLimit) {
  constexpr int kSlots = 40;
  constexpr std::size_t kParallel = 3;
  Apply({});
  const BackfillRow row = Create(Backfill(kSlots, {.max_parallel = kParallel})).row;
  const OwnerId id = ids_.Next<OwnerId>();
  std::array<std::unique_ptr<Ledger>, 2> ledgers = {Open(), Open()};
  std::atomic<bool> done{false};
  std::array<std::string, 2> errors;
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        auto scheduler = Make(*ledgers[t], id);
        while (!done)
          if (const auto passed = scheduler->Pass(); !passed) errors[t] += passed.error().message + "; ";
      });
    const MonoTime give_up = system_.Now() + 40s;
    while (!StateOf(row.id).ended_at && system_.Now() < give_up) {
      EXPECT_LE(Active(), kParallel);
      EndOne();
    }
    done = true;
  }
  EXPECT_EQ(errors[0] + errors[1], "");
  EXPECT_TRUE(StateOf(row.id).ended_at);
  EXPECT_EQ(Generation(1).size(), static_cast<std::size_t>(kSlots));
  ExpectOneRunPerFiredSlot();
}

INSTANTIATE_TEST_SUITE_P(Both, SchedulerTest, ::testing::Values("sqlite", "postgres"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::scheduler
