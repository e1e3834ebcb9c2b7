// The scheduler on both ledgers: SQLite in virtual time, PostgreSQL (MILLRACE_TEST_POSTGRES) in the server's.
#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <thread>

#include "tests/support/scheduler_fixture.h"

namespace millrace::scheduler {
namespace {

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
  Apply({.params = "params:\n  since: 2026-01-01\n", .days_behind = 2});
  // As it was applied before files were refused for this.
  Raw(R"(update pipeline_version set definition = replace(definition, '"default":"2026-01-01"', '"required":true'))");
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
  Raw("alter table outbox_batch rename to outbox_away");
  const auto failed = scheduler->Pass();
  EXPECT_FALSE(failed);
  EXPECT_EQ(Fates(), "");
  EXPECT_TRUE(Runs().empty());
  EXPECT_EQ((*ledger_->Schedules(kDefaultOrg, In()))[0].watermark, watermark);
  Raw("alter table outbox_away rename to outbox_batch");
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
    for (std::uint64_t l = 0; l < leaders && kills < kKills; ++l) {
      const auto die = static_cast<DyingLedger::Die>(random.Below(3));
      DyingLedger dying(*ledger_, die);
      auto scheduler = Make(dying, ids_.Next<OwnerId>());
      bool led = false;  // or it waited for the lease of the one before all its life
      for (int i = 0; i < 6; ++i, fake_.Advance(Millis{500 + random.Below(600)})) {
        const auto passed = scheduler->Pass();
        if (!passed) ++in_fire;
        led = !passed || scheduler->leading();
        if (!passed || (scheduler->leading() && random.Below(2) == 0)) break;
      }
      kills += led ? 1 : 0;
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

INSTANTIATE_TEST_SUITE_P(Both, SchedulerTest, ::testing::Values("sqlite", "postgres"), [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::scheduler
