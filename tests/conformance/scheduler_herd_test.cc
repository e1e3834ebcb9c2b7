// Runs that are planned before their slots are due, and herds: on both ledgers. SQLite has a clock that is told; PostgreSQL has
// its own, so there the slots are seconds ahead, and what came too late for its slot is tried once more with more time.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <thread>

#include "common/base/failpoint.h"
#include "common/base/history.h"
#include "tests/support/scheduler_fixture.h"

namespace millrace::scheduler {
namespace {

class SchedulerHerdTest : public SchedulerTest {
 protected:
  static constexpr int kHerd = 4500;  // three batches

  // The next slots will be slot_ and, `slots` in all, every period_ from there: minutes, or few seconds of one minute.
  void SlotsAhead(Micros lead, int slots = 1, Micros period = 60s) {
    period_ = period;
    if (!postgres()) {
      slot_ = std::chrono::ceil<std::chrono::minutes>(fake_.WallNow() + 1s);
      cron_ = "* * * * *";
      return;
    }
    slot_ = std::chrono::ceil<std::chrono::seconds>(*ledger_->Now(In()) + lead);
    if (std::chrono::floor<std::chrono::minutes>(slot_) !=
        std::chrono::floor<std::chrono::minutes>(slot_ + (slots - 1) * period))
      slot_ = std::chrono::ceil<std::chrono::minutes>(slot_);
    const auto seconds = std::chrono::floor<std::chrono::seconds>(slot_).time_since_epoch().count();
    std::string list;
    for (int i = 0; i < slots; ++i)
      list +=
          fmt::format("{}{}", i > 0 ? "," : "", seconds % 60 + i * std::chrono::floor<std::chrono::seconds>(period).count());
    cron_ = fmt::format("{} {} {} * * *", list, seconds / 60 % 60, seconds / 3600 % 24);
  }
  // A schedule of each name, due at slot_.
  void ApplyDue(const std::vector<std::string>& names, Micros lead = 500ms) {
    SlotsAhead(lead);
    for (const std::string& name : names) Apply({.name = name, .cron = cron_});
  }
  // Whether it is not yet `at`.
  bool Before(WallTime at) { return *ledger_->Now(In()) < at; }
  void GoTo(WallTime at) {
    if (!postgres()) return fake_.Advance(at - fake_.WallNow());
    while (Before(at)) std::this_thread::sleep_for(5ms);
  }
  // Passes until it leads; whoever led before it gives up soon.
  bool Leads(Scheduler& scheduler) {
    for (const MonoTime limit = In(); clock().Now() < limit; std::this_thread::sleep_for(5ms)) {
      Pass(scheduler);
      if (scheduler.leading() || !postgres()) break;
    }
    return scheduler.leading();
  }
  // To some time before the slot, from when on it is planned.
  void GoBefore(WallTime slot, Micros before) {
    if (!postgres()) GoTo(slot - before);
  }
  // One is applied as everybody does, the others are copied from it; all have one slot that is due.
  void ApplyHerd(int count) {
    Apply({.name = "herd", .grace = "3h", .days_behind = 1});
    slot_ = std::chrono::floor<std::chrono::minutes>(now_ - 2h);
    const std::string numbers =
        fmt::format("with recursive g(n) as (select 2 union all select n + 1 from g where n < {}) ", count);
    Raw(numbers +
        "insert into pipeline_version select org, 'herd' || n, version, source, replace(definition, '\"herd\"', '\"herd' || n "
        "|| '\"'), base_dir, applied_at, audit_writer, audit_seq, audit_index from pipeline_version, g where pipeline = 'herd' "
        "and n <= " +
        std::to_string(count));
    Raw(numbers +
        "insert into schedule (org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, version, "
        "watermark, starts, ends) select org, 'herd' || n, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms, "
        "version, watermark, starts, ends from schedule, g where pipeline = 'herd' and n <= " +
        std::to_string(count));
  }
  std::unique_ptr<Scheduler> MakeWithLane(Ledger& ledger, OwnerId id, OpenLedger open) {
    return std::make_unique<Scheduler>(
        SchedulerOptions{.name = "s", .id = id, .lead_ttl = 600'000ms, .shard_count = 1, .open_ledger = std::move(open)},
        ledger, inbox_, clock(), ids_);
  }
  std::size_t Behind() {  // schedules whose stored watermark is before the slot
    const auto rows = ledger_->Schedules(std::nullopt, In());
    return static_cast<std::size_t>(std::ranges::count_if(*rows, [&](const ScheduleRow& r) { return r.watermark < slot_; }));
  }
  // Each of the herd has one run, and the broker finds each of them once.
  void ExpectOneRunEach(std::size_t count) {
    std::set<std::string> pipelines;
    std::set<RunId> runs;
    RunFilter filter;
    filter.limit = 500;
    while (true) {
      const auto page = ledger_->ListRuns(filter, In());
      ASSERT_TRUE(page) << page.error().message;
      if (page->empty()) break;
      for (const RunSummary& run : *page) {
        EXPECT_TRUE(pipelines.insert(run.spec.pipeline).second) << run.spec.pipeline << " ran twice";
        EXPECT_EQ(run.spec.slot, slot_);
        runs.insert(run.spec.id);
      }
      filter.before = page->back().spec.id;
    }
    EXPECT_EQ(pipelines.size(), count);
    const OwnerId owner = ids_.Next<OwnerId>();
    const ShardId shard = ShardOf(kDefaultOrg, 1);
    OwnerBatch taken;
    taken.owner = owner;
    taken.holds = {{shard, *ledger_->TakeShard(shard, owner, "b", In())}};
    std::size_t found = 0;
    for (bool more = true; more;) {
      const auto outbox = ledger_->ReadOutbox(shard, 1, 500, In());
      ASSERT_TRUE(outbox) << outbox.error().message;
      more = outbox->more;
      taken.outbox_done_batches.clear();
      taken.outbox_done_runs.clear();
      for (const auto& batch : outbox->batches) {
        taken.outbox_done_batches.push_back(batch.id);
        for (const LiveRun& run : batch.runs) found += runs.erase(run.spec.id);
      }
      for (const LiveRun& run : outbox->runs) {
        taken.outbox_done_runs.push_back(run.spec.id);
        found += runs.erase(run.spec.id);
      }
      if (!taken.Empty()) {
        ASSERT_TRUE(ledger_->Commit(taken, In()));
      }
    }
    EXPECT_EQ(found, count) << "in the outbox";
    ASSERT_TRUE(ledger_->ReleaseShards(taken.holds, owner, In()));
  }

  WallTime slot_{};
  Micros period_{60s};
  std::string cron_;
};

TEST_P(SchedulerHerdTest, ARunIsPlannedBeforeItsSlotAndNamesTheInstant) {
  std::string name;
  for (const Micros lead : {Micros{500ms}, Micros{3s}, Micros{16s}}) {
    name = fmt::format("p{}", lead.count());
    ApplyDue({name}, lead);
    auto scheduler = Make(*ledger_, ids_.Next<OwnerId>(), 500ms);
    GoBefore(slot_, 5s);
    ASSERT_TRUE(Leads(*scheduler));
    EXPECT_EQ(Fates(name), "");
    EXPECT_TRUE(Runs(name).empty());
    Raw("update pipeline_version set definition = '{broken'");  // what is read at the slot's time does not matter any more
    GoBefore(slot_, 1ms);
    Pass(*scheduler);
    if (!Before(slot_)) continue;
    EXPECT_EQ(Fates(name), "") << "not before its time";
    GoTo(slot_ + 40ms);
    Pass(*scheduler);
    break;
  }
  ASSERT_EQ(Fates(name), "F");
  const SlotRow slot = Slots(name)[0];
  EXPECT_EQ(slot.key.slot, slot_);
  EXPECT_GE(slot.decided_at, slot_ + 40ms);
  if (!postgres()) {
    EXPECT_EQ(slot.decided_at, slot_ + 40ms);
  }
  const auto run = ledger_->GetRun(kDefaultOrg, *slot.run, In());
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_EQ(run->summary.spec.created_at, slot.decided_at);
  EXPECT_EQ(TimeOf(run->summary.spec.id.uuid), slot_);
  ASSERT_EQ(run->jobs.size(), 2u);
  EXPECT_EQ(run->jobs[0].spec.stage, "a");
  EXPECT_EQ(run->jobs[1].spec.depends_on, std::vector{run->jobs[0].spec.id});
  for (const JobDetail& job : run->jobs) {
    EXPECT_EQ(job.spec.submitted_at, slot.decided_at);
    EXPECT_EQ(TimeOf(job.spec.id.uuid), slot_);
  }
}

TEST_P(SchedulerHerdTest, ADeadlineCountsFromTheDecisionNotFromThePlan) {
  const auto ahead = [&](WallTime now) {
    RunPlan plan;
    plan.jobs.resize(2);
    plan.jobs[1].options.deadline = slot_ + 30s;
    RunPlanner::Decided(plan, slot_, now);
    EXPECT_FALSE(plan.jobs[0].options.deadline);
    return *plan.jobs[1].options.deadline;
  };
  slot_ = now_;
  EXPECT_EQ(ahead(slot_), slot_ + 30s);
  EXPECT_EQ(ahead(slot_ + 2s), slot_ + 32s);
}

// Everything that can happen to a schedule between the plan and the slot.
TEST_P(SchedulerHerdTest, AnEditAPauseOrADeletionAfterThePlanIsHeeded) {
  std::string of;
  const auto name = [&](const char* what) { return what + of; };
  for (const Micros lead : {Micros{1s}, Micros{5s}, Micros{20s}}) {
    of = fmt::format("{}", lead.count());
    ApplyDue({name("edited"), name("paused"), name("resumed"), name("deleted"), name("retimed"), name("left")}, lead);
    auto scheduler = Make(*ledger_, ids_.Next<OwnerId>(), 500ms);
    GoBefore(slot_, 8s);
    ASSERT_TRUE(Leads(*scheduler));
    GoBefore(slot_, 1ms);  // no pass in between sees any of it
    Apply({.name = name("edited"), .params = "params:\n  since: { type: date, default: 2001-01-01 }\n", .cron = cron_});
    ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, name("paused"), true, In()));
    ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, name("resumed"), true, In()));
    ASSERT_TRUE(ledger_->SetPaused(kDefaultOrg, name("resumed"), false, In()));
    Raw("update schedule set active = 0 where pipeline = '" + name("deleted") + "'");
    Apply({.name = name("retimed")});  // was due two hours ago
    if (!Before(slot_)) continue;
    GoTo(slot_ + 1ms);
    for (int i = 0; i < 3; ++i) Pass(*scheduler);
    break;
  }
  EXPECT_EQ(Fates(name("edited")), "F");
  ASSERT_EQ(Runs(name("edited")).size(), 1u);
  EXPECT_EQ(Runs(name("edited"))[0].spec.version, 2);
  EXPECT_NE(Runs(name("edited"))[0].spec.params.find("2001-01-01"), std::string::npos);
  EXPECT_EQ(Fates(name("paused")), "S");
  EXPECT_EQ(Slots(name("paused"))[0].reason, "paused");
  EXPECT_EQ(Fates(name("resumed")), "F");
  EXPECT_EQ(Fates(name("deleted")), "");
  EXPECT_EQ(Fates(name("retimed")), "");
  EXPECT_EQ(Fates(name("left")), "F");
  EXPECT_EQ(Runs(name("left"))[0].spec.version, 1);
  for (const char* what : {"edited", "paused", "resumed", "deleted", "retimed", "left"}) ExpectOneRunPerFiredSlot(name(what));
}

TEST_P(SchedulerHerdTest, OverlapSkipIsAskedAtTheSlotNotAtThePlan) {
  std::string name;
  bool in_time = false;
  for (const Micros period : {Micros{1s}, Micros{3s}, Micros{10s}}) {
    name = fmt::format("p{}", period.count());
    SlotsAhead(500ms, 3, postgres() ? period : Micros{60s});
    Apply({.name = name, .overlap = "skip", .cron = cron_});
    auto scheduler = Make(*ledger_, ids_.Next<OwnerId>(), 500ms);
    in_time = true;
    for (int i = 0; i < 3 && in_time; ++i) {
      GoBefore(slot_ + i * period_, 5s);
      ASSERT_TRUE(Leads(*scheduler));
      if (i == 2) EndRuns(name);  // after the plan
      in_time = Before(slot_ + i * period_);
      GoTo(slot_ + i * period_);
      Pass(*scheduler);
    }
    if (in_time) break;
  }
  EXPECT_TRUE(in_time);
  EXPECT_EQ(Fates(name), "FSF");
  ExpectOneRunPerFiredSlot(name);
}

TEST_P(SchedulerHerdTest, ALeaderKilledBetweenPlanAndSlotIsReplaced) {
  ApplyDue({"p", "q"});
  GoBefore(slot_, 2s);
  const Millis ttl{postgres() ? 1000 : 3000};
  auto first = Make(*ledger_, ids_.Next<OwnerId>(), ttl), second = Make(*ledger_, ids_.Next<OwnerId>(), ttl);
  Pass(*first);
  Pass(*second);
  ASSERT_TRUE(first->leading());
  first.reset();
  const WallTime limit = slot_ + (postgres() ? 20s : 5s);
  for (; Before(limit) && Fates("q").empty(); GoTo(*ledger_->Now(In()) + (postgres() ? 50ms : 500ms))) Pass(*second);
  EXPECT_TRUE(second->leading());
  EXPECT_EQ(Fates("p") + Fates("q"), "FF");
  ExpectOneRunPerFiredSlot("p");
  ExpectOneRunPerFiredSlot("q");
}

// Killed in the transaction, before and after its commit: the plans are gone with it, or in the ledger.
TEST_P(SchedulerHerdTest, PlansDieWithTheirLeaderAndNoSlotFiresTwice) {
  const int slots = postgres() ? 2 : 6;
  SlotsAhead(500ms, slots, postgres() ? 1s : 60s);
  for (const char* name : {"p", "q"}) Apply({.name = name, .cron = cron_});
  const OwnerId id = ids_.Next<OwnerId>();
  for (int i = 0; i < slots; ++i) {
    DyingLedger dying(*ledger_, i % 2 == 0 ? DyingLedger::Die::kBeforeFire : DyingLedger::Die::kAfterFire);
    auto first = Make(dying, id), again = Make(*ledger_, id);
    const WallTime slot = slot_ + i * period_;
    GoBefore(slot, 3s);
    const bool planned = first->Pass() && again->Pass() && Before(slot);
    EXPECT_TRUE(planned || postgres()) << "a slow machine comes too late";
    GoTo(slot);
    if (planned) {
      EXPECT_FALSE(first->Pass());
      if (i % 3 == 0) {
        EXPECT_FALSE(first->Pass()) << "its plans are used up, and the next ones die the same way";
      }
    }
    Pass(*again);
    Pass(*again);
  }
  for (const char* name : {"p", "q"}) {
    EXPECT_EQ(Fates(name), std::string(static_cast<std::size_t>(slots), 'F'));
    ExpectOneRunPerFiredSlot(name);
  }
}

// What the checker reads (tests/checker).
TEST_P(SchedulerHerdTest, WhatIsFiredIsInTheHistory) {
  Apply({.grace = "3h", .days_behind = 2});
  std::string folder = "/tmp/millrace_history_XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  history::SetFolder(folder);
  const OwnerId id = ids_.Next<OwnerId>();
  DyingLedger lost(*ledger_, DyingLedger::Die::kAfterFire), dead(*ledger_, DyingLedger::Die::kBeforeFire);
  EXPECT_FALSE(Make(dead, id)->Pass());
  EXPECT_FALSE(Make(lost, id)->Pass());
  Pass(*Make(*ledger_, id));
  SetWatermark("p", now_ - 3h - days{1});
  Pass(*Make(*ledger_, id));
  history::SetFolder("");
  std::string text;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    std::ifstream in(file.path());
    for (std::string line; std::getline(in, line);)
      if (line.contains(R"("op":"fire")")) text += line + "\n";
  }
  std::filesystem::remove_all(folder);
  const auto count = [&](std::string_view what) {
    int n = 0;
    for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++n;
    return n;
  };
  EXPECT_EQ(count(fmt::format(R"("who":"scheduler:{}")", id.ToString())), 6) << text;
  EXPECT_EQ(count(R"("type":"invoke")"), 3) << "the third had nothing to do";
  EXPECT_EQ(count(R"("type":"fail")"), 1);
  EXPECT_EQ(count(R"("type":"unknown")"), 1);
  EXPECT_EQ(count(R"("type":"ok")"), 1);
  EXPECT_EQ(count(R"("slots":[])"), 1) << "those were decided before";
  EXPECT_EQ(count(R"(["p","default",)"), 6) << "two slots, asked for three times";
}

TEST_P(SchedulerHerdTest, TwoLeadersWithTheSamePlannedSlotsFireEachOnce) {
  std::vector<std::string> names;
  for (int i = 0; i < 30; ++i) names.push_back(fmt::format("p{}", i));
  ApplyDue(names, 1s);
  const OwnerId id = ids_.Next<OwnerId>();  // the same: both lead
  auto ledger = Open();
  auto first = Make(*ledger_, id), second = Make(*ledger, id);
  GoBefore(slot_, 3s);
  Pass(*first);
  Pass(*second);
  GoTo(slot_);
  std::string errors;
  {
    std::jthread other([&] {
      if (const auto passed = second->Pass(); !passed) errors = passed.error().message;
    });
    Pass(*first);
  }
  EXPECT_EQ(errors, "");
  for (const std::string& name : names) {
    EXPECT_EQ(Fates(name), "F");
    ExpectOneRunPerFiredSlot(name);
  }
}

TEST_P(SchedulerHerdTest, AHerdIsDecidedFirstAndItsWatermarksMoveAfterwards) {
  ApplyHerd(kHerd);
  auto scheduler = MakeWithLane(*ledger_, ids_.Next<OwnerId>(), {});
  Pass(*scheduler);
  EXPECT_EQ(Behind(), static_cast<std::size_t>(kHerd)) << "not in the transactions of the slots";
  ASSERT_TRUE(ConfigureFailpoints("scheduler.before_watermarks=error(1,1)", 1));
  EXPECT_FALSE(scheduler->Pass());
  ASSERT_TRUE(ConfigureFailpoints("", 1));
  Pass(*scheduler);
  EXPECT_EQ(Behind(), 0u);
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  ExpectOneRunEach(kHerd);
}

TEST_P(SchedulerHerdTest, ALeaderKilledBeforeTheWatermarksOfItsHerdIsReplaced) {
  ApplyHerd(kHerd);
  const OwnerId id = ids_.Next<OwnerId>();
  Pass(*MakeWithLane(*ledger_, id, {}));
  ASSERT_EQ(Behind(), static_cast<std::size_t>(kHerd));
  auto next = MakeWithLane(*ledger_, id, {});  // sees all of the slots as due, and finds them decided
  for (int i = 0; i < 3; ++i) Pass(*next);
  EXPECT_EQ(Behind(), 0u);
  ExpectOneRunEach(kHerd);
}

// What is not in the ledger has no watermark to be moved, whenever the scheduler stops.
TEST_P(SchedulerHerdTest, ABatchThatFailedIsDecidedByTheNextLeader) {
  ApplyHerd(kHerd);
  const OwnerId id = ids_.Next<OwnerId>();
  DyingLedger dying(*ledger_, DyingLedger::Die::kAfterFirstBatch);
  auto scheduler = MakeWithLane(dying, id, {});
  EXPECT_FALSE(scheduler->Pass());
  scheduler->RequestStop();
  scheduler->Run();  // fails once more, and moves what it may
  EXPECT_GT(Behind(), 0u);
  EXPECT_LT(Behind(), static_cast<std::size_t>(kHerd)) << "the first batch is decided";
  auto next = MakeWithLane(*ledger_, id, {});
  for (int i = 0; i < 3; ++i) Pass(*next);
  EXPECT_EQ(Behind(), 0u);
  ExpectOneRunEach(kHerd);
}

TEST_P(SchedulerHerdTest, AHerdGoesThroughTwoConnections) {
  if (!postgres()) GTEST_SKIP() << "SQLite has one writer at a time";
  ApplyHerd(kHerd);
  int opened = 0;
  auto scheduler = MakeWithLane(*ledger_, ids_.Next<OwnerId>(), [&]() -> Result<std::unique_ptr<Ledger>> {
    ++opened;
    return Open();
  });
  for (int i = 0; i < 2; ++i) Pass(*scheduler);
  EXPECT_EQ(opened, 1);
  EXPECT_EQ(ledger_->AuditHeads(In())->size(), 2u) << "the second one is a writer of its own";
  EXPECT_EQ(Behind(), 0u);
  ExpectOneRunEach(kHerd);
}

TEST_P(SchedulerHerdTest, WhatTheSecondConnectionCannotDoTheFirstDoes) {
  ApplyHerd(kHerd);
  const OwnerId id = ids_.Next<OwnerId>();
  std::unique_ptr<Ledger> real = Open();
  // It cannot be opened, then loses the answer of what it has committed, then dies before.
  for (int round = 0; round < 3; ++round) {
    if (round > 0)
      Raw("delete from slot; delete from run; delete from job; delete from live_run; delete from outbox_batch; "
          "delete from outbox; update schedule set watermark = watermark - " +
          std::string(postgres() ? "interval '1 day'" : "86400000000"));
    auto scheduler = MakeWithLane(*ledger_, id, [&]() -> Result<std::unique_ptr<Ledger>> {
      if (round == 0) return Fail(ErrorCode::kUnavailable, "too many connections");
      return std::unique_ptr<Ledger>(
          new DyingLedger(*real, round == 1 ? DyingLedger::Die::kAfterFire : DyingLedger::Die::kBeforeFire));
    });
    // A busy machine may need longer than a deadline for what it finds decided: the next pass goes on.
    for (int i = 0; i < 20 && Behind() > 0; ++i) (void)scheduler->Pass();
    EXPECT_EQ(Behind(), 0u);
    ExpectOneRunEach(kHerd);
  }
}

// Both lead, both have two connections.
TEST_P(SchedulerHerdTest, TwoLeadersOfOneHerdFireEachSlotOnce) {
  if (!postgres()) GTEST_SKIP() << "SQLite has one writer at a time";
  ApplyHerd(kHerd);
  const OwnerId id = ids_.Next<OwnerId>();
  std::array<std::unique_ptr<Ledger>, 2> ledgers = {Open(), Open()};
  std::array<std::string, 2> errors;
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        auto scheduler = MakeWithLane(*ledgers[t], id, [&]() -> Result<std::unique_ptr<Ledger>> { return Open(); });
        for (int i = 0; i < 2; ++i)
          if (const auto passed = scheduler->Pass(); !passed) errors[t] += passed.error().message + "; ";
      });
  }
  EXPECT_EQ(errors[0] + errors[1], "");
  EXPECT_EQ(Behind(), 0u);
  ExpectOneRunEach(kHerd);
}

INSTANTIATE_TEST_SUITE_P(Both, SchedulerHerdTest, ::testing::Values("sqlite", "postgres"),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace millrace::scheduler
