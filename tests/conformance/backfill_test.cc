// Backfills and reprocessing on both ledgers; see scheduler_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <span>
#include <thread>

#include "tests/support/scheduler_fixture.h"

namespace millrace::scheduler {
namespace {

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

TEST_P(SchedulerTest, ARetryIsARunOfItsSlot) {
  Apply({.days_behind = 4});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  const auto slots = Generation(0);
  ASSERT_EQ(slots.size(), 4u);
  for (int i = 0; i < 4; ++i) EndOne(RunState::kFailed);
  EndRun(Retry(*slots[0].run), RunState::kSucceeded);
  const RunId twice = Retry(*slots[1].run);
  EndRun(twice, RunState::kCancelled);
  EndRun(Retry(twice), RunState::kSucceeded);
  const RunId active = Retry(*slots[2].run);
  EndRun(Retry(*slots[3].run), RunState::kFailed);
  std::vector<WallTime> days_of;
  for (const SlotRow& slot : slots) days_of.push_back(slot.key.slot);
  const auto histories = *ledger_->SlotHistories(kDefaultOrg, "p", "default", days_of, In());
  ASSERT_EQ(histories.size(), 4u);
  using State = std::optional<RunState>;
  EXPECT_EQ(histories[0].run_ended, State(RunState::kSucceeded));
  EXPECT_EQ(histories[1].run_ended, State(RunState::kSucceeded)) << "a retry of a retry";
  EXPECT_EQ(histories[2].run_ended, State()) << "active";
  EXPECT_EQ(histories[3].run_ended, State(RunState::kFailed));

  const BackfillRow failed = Create(Backfill(4, {.max_parallel = 10, .reprocess = Reprocess::kFailed})).row;
  Pass(*scheduler);
  ASSERT_EQ(Generation(1).size(), 1u);
  const RunId fed = *Generation(1)[0].run;
  EXPECT_EQ(Generation(1)[0].key.slot, slots[3].key.slot);
  EndRun(fed, RunState::kFailed);
  const RunId again = Retry(fed);
  using Counts = std::map<RunState, std::uint64_t>;
  EXPECT_EQ(*ledger_->BackfillRuns(failed, In()), (Counts{{RunState::kRunning, 1}}));
  EndRun(again, RunState::kSucceeded);
  EXPECT_EQ(*ledger_->BackfillRuns(failed, In()), (Counts{{RunState::kSucceeded, 1}}));
  EndRun(active, RunState::kSucceeded);
}

// A load that was requeued by itself has its run's effect: one of a later generation would load beside it.
TEST_P(SchedulerTest, ASlotWhoseLoadWasRequeuedIsNotReprocessed) {
  Apply(
      {.days_behind = 6,
       .stages = "  e: { extract: { from: file, path: in.csv } }\n  l: { load: { from: e, to: file, path: out.parquet } }\n"});
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  Pass(*scheduler);
  const auto slots = Generation(0);
  ASSERT_EQ(slots.size(), 6u);
  for (int i = 0; i < 6; ++i) EndOne(RunState::kFailed);
  const auto stage_of = [&](RunId run, bool load) {
    const auto detail = ledger_->GetRun(kDefaultOrg, run, In());
    for (const auto& job : detail->jobs)
      if (job.spec.options.has_sink == load) return job.spec;
    ADD_FAILURE() << "no such stage";
    return JobSpec{};
  };
  const auto requeue = [&](const JobSpec& dead) {
    JobSpec again = dead;
    again.id = ids_.Next<JobId>();
    again.run = std::nullopt;
    again.stage = "";
    again.depends_on.clear();
    again.options.retry_of = dead.id;
    const DeadActionRow row{.job = dead.id,
                            .org = kDefaultOrg,
                            .action = DeadAction::kRequeued,
                            .new_job = again.id,
                            .actor = "test",
                            .reason = "",
                            .at = now_};
    const auto done = ledger_->RequeueDead({.run = {}, .jobs = {again}, .actions = {row}}, In());
    EXPECT_TRUE(done && done->later.empty() && done->already_done.empty());
    return again;
  };
  const JobSpec lives = requeue(stage_of(*slots[0].run, true));
  EndJob(requeue(stage_of(*slots[1].run, true)), JobState::kSucceeded);
  EndJob(requeue(stage_of(*slots[2].run, true)), JobState::kDead);
  const JobSpec twice = requeue(stage_of(*slots[3].run, true));
  EndJob(twice, JobState::kDead);
  EndJob(requeue(twice), JobState::kSucceeded);
  EndJob(requeue(stage_of(*slots[4].run, false)), JobState::kSucceeded);
  const auto ended = [&](std::size_t slot) {
    return ledger_->SlotHistories(kDefaultOrg, "p", "default", std::span(&slots[slot].key.slot, 1), In())->at(0).run_ended;
  };
  using State = std::optional<RunState>;
  EXPECT_EQ(ended(0), State()) << "it may still load";
  EXPECT_EQ(ended(1), State(RunState::kSucceeded));
  EXPECT_EQ(ended(2), State(RunState::kFailed));
  EXPECT_EQ(ended(3), State(RunState::kSucceeded)) << "a requeue of a requeue";
  EXPECT_EQ(ended(4), State(RunState::kFailed)) << "an extract loads nothing";
  EXPECT_EQ(ended(5), State(RunState::kFailed));
  Create(Backfill(7, {.max_parallel = 10, .reprocess = Reprocess::kFailed}));
  Pass(*scheduler);
  std::set<WallTime> again;
  for (const SlotRow& slot : Generation(1)) again.insert(slot.key.slot);
  for (const std::size_t slot : {0u, 1u, 3u}) EXPECT_FALSE(again.contains(slots[slot].key.slot)) << slot;
  for (const std::size_t slot : {2u, 4u, 5u}) EXPECT_TRUE(again.contains(slots[slot].key.slot)) << slot;
  EndJob(lives, JobState::kSucceeded);
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

TEST_P(SchedulerTest, GenerationsDoNotRunOut) {
  Apply({});
  for (const std::uint32_t wanted : {kBackfillGenerationMax + 1, UINT32_MAX}) {
    const auto refused = ledger_->CreateBackfill(Backfill(3, {}, wanted), In());
    ASSERT_FALSE(refused) << wanted;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_TRUE(Create(Backfill(3, {}, kBackfillGenerationMax)).created);
  EXPECT_EQ(Create(Backfill(4)).row.generation, kBackfillGenerationMax + 1) << "there is always a next one";
  Raw(fmt::format("update backfill set generation = {} where generation = {}", UINT32_MAX, kBackfillGenerationMax));
  const auto none = ledger_->CreateBackfill(Backfill(5), In());  // stored before there was a limit
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message,
              ::testing::HasSubstr("generation 4294967295 of schedule 'default' of pipeline 'p' is taken"));
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
  const BackfillState broken = StateOf(gone.id);
  EXPECT_TRUE(broken.ended_at) << "it does not stay open for ever";
  ASSERT_TRUE(broken.stopped);
  EXPECT_EQ(broken.stopped->actor, kBackfillBrokenActor);
  EXPECT_EQ(broken.stopped->reason, "it cannot run: pipeline 'p' has no version 77");
}

TEST_P(SchedulerTest, ACancelledBackfillIsFedNoFurtherAndEndsWithItsRuns) {
  Apply({});
  const BackfillRow row = Create(Backfill(7, {.max_parallel = 3})).row;
  auto scheduler = Make(*ledger_, ids_.Next<OwnerId>());
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  EXPECT_EQ(Generation(1).size(), 3u);
  CancelRow stop{
      .item = row.id.uuid, .is_run = false, .org = OrgId{77}, .actor = "cli me", .reason = "wrong range", .requested_at = now_};
  const auto foreign = ledger_->RequestCancel(std::span{&stop, 1}, In());
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().code, ErrorCode::kNotFound) << "another org's";
  EXPECT_FALSE(StateOf(row.id).stopped);
  stop.org = row.org;
  for (int twice = 0; twice < 2; ++twice) ASSERT_TRUE(ledger_->RequestCancel(std::span{&stop, 1}, In()));
  ASSERT_TRUE(StateOf(row.id).stopped);
  EXPECT_EQ(StateOf(row.id).stopped->reason, "wrong range");
  for (int i = 0; i < 3; ++i) Pass(*scheduler);
  EXPECT_TRUE(StateOf(row.id).fed);
  EXPECT_FALSE(StateOf(row.id).ended_at) << "its runs go on";
  EndRuns();
  for (int i = 0; i < 3; ++i) Pass(*scheduler);
  EXPECT_TRUE(StateOf(row.id).ended_at);
  EXPECT_EQ(Generation(1).size(), 3u) << "no slot was fed after it";
  const auto again = Create(Backfill(7, {.max_parallel = 3}));
  EXPECT_TRUE(again.created) << "the same range may be asked for anew";
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
