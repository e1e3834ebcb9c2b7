// The ledger in memory keeps to what tests/conformance/ledger_test.cc asks of the real ones, as far as a scheduler uses them.
#include "tests/support/memory_schedules.h"

#include <gtest/gtest.h>

#include "tests/support/memory_ledger.h"

namespace millrace::test {
namespace {

class MemorySchedulesTest : public ::testing::Test {
 protected:
  static MonoTime In() { return MonoTime{}; }
  static OwnerId Owner(std::uint8_t n) {
    OwnerId id;
    id.uuid.bytes[15] = n;
    return id;
  }
  static Pipeline Scheduled() {
    Pipeline p;
    p.name = "flights";
    ScheduleSpec spec;
    spec.cron = "* * * * *";
    p.schedules = {spec};
    return p;
  }
  SlotDecision Slot(int minute) {
    SlotDecision d;
    const SlotKey key{kDefaultOrg, "flights", "default", clock_.WallNow() + std::chrono::minutes{minute}, 0};
    RunSpec run;
    run.id.uuid.bytes[0] = static_cast<std::uint8_t>(minute);
    run.id.uuid.bytes[15] = ++runs_;
    run.pipeline = "flights";
    run.slot = key.slot;
    d.slot = {.key = key, .state = "fired", .reason = "", .run = run.id, .decided_at = clock_.WallNow()};
    d.run = run;
    return d;
  }
  std::int64_t Apply(const Pipeline& p, const char* definition) {
    return ledger_.ApplyPipeline(p, definition, "source", "/", kDefaultOrg, In())->version;
  }

  FakeClock clock_;
  MemoryLedger ledger_{clock_};
  std::uint8_t runs_ = 0;
};

TEST_F(MemorySchedulesTest, OneLeads) {
  EXPECT_EQ(ledger_.TryLead(Owner(1), "s1", 30s, In())->epoch, 1u);
  EXPECT_EQ(ledger_.TryLead(Owner(1), "s1", 30s, In())->epoch, 1u);
  const auto second = ledger_.TryLead(Owner(2), "s2", 30s, In());
  EXPECT_FALSE(second->leader);
  EXPECT_EQ(second->holder, "s1");
  clock_.Advance(31s);
  EXPECT_EQ(ledger_.TryLead(Owner(2), "s2", 30s, In())->epoch, 2u);
  EXPECT_FALSE(ledger_.TryLead(Owner(1), "s1", 30s, In())->leader);
}

TEST_F(MemorySchedulesTest, AClockThatWasSetBackKeepsNobodyOut) {
  ASSERT_TRUE(ledger_.TakeShard(ShardId{0}, Owner(1), "dead", In()));
  ASSERT_TRUE(ledger_.TryLead(Owner(1), "dead", 5s, In())->leader);
  clock_.StepWall(-1h);
  EXPECT_TRUE(ledger_.TakeShard(ShardId{0}, Owner(2), "next", In()));
  EXPECT_TRUE(ledger_.TryLead(Owner(2), "next", 5s, In())->leader);
  clock_.StepWall(-2s);  // a small step is no reason to take anything
  EXPECT_FALSE(ledger_.TakeShard(ShardId{0}, Owner(1), "dead", In()));
  EXPECT_FALSE(ledger_.TryLead(Owner(1), "dead", 5s, In())->leader);
}

TEST_F(MemorySchedulesTest, ASlotFiresOnceAndTheWatermarkNeverGoesBack) {
  ASSERT_EQ(Apply(Scheduled(), "{}"), 1);
  const WallTime ahead = clock_.WallNow() + 1h;
  FireBatch first{.decisions = {Slot(1)}, .watermarks = {{kDefaultOrg, "flights", "default", ahead}}, .steps = {}, .now = {}};
  EXPECT_TRUE(ledger_.Fire(first, In())->already_decided.empty());
  FireBatch second{.decisions = {Slot(1), Slot(2)},
                   .watermarks = {{kDefaultOrg, "flights", "default", ahead - 30min}},
                   .steps = {},
                   .now = {}};
  const auto fired = ledger_.Fire(second, In());
  ASSERT_EQ(fired->already_decided.size(), 1u);
  EXPECT_EQ(fired->already_decided[0].slot, second.decisions[0].slot.key.slot);
  EXPECT_FALSE(ledger_.runs.contains(second.decisions[0].run->id));
  EXPECT_TRUE(ledger_.runs.contains(second.decisions[1].run->id));
  EXPECT_EQ((*ledger_.Schedules(kDefaultOrg, In()))[0].watermark, ahead);
  EXPECT_EQ(ledger_.Slots(kDefaultOrg, "flights", 10, In())->size(), 2u);
  EXPECT_EQ(ledger_.ReadOutbox(ShardId{0}, 1, 10, In())->runs.size(), 2u);
  EXPECT_EQ(*ledger_.BusyPipelines(kDefaultOrg, std::vector<std::string>{"flights", "other"}, In()),
            std::vector<std::string>{"flights"});
}

TEST_F(MemorySchedulesTest, AnAnswerThatIsLostMayHaveBeenApplied) {
  ledger_.fault = [] { return LedgerFault::kAppliedButUnknown; };
  EXPECT_EQ(ledger_.Fire({.decisions = {Slot(1)}, .watermarks = {}, .steps = {}, .now = {}}, In()).error().code,
            ErrorCode::kMaybeApplied);
  EXPECT_EQ(ledger_.runs.size(), 1u);
  ledger_.fault = [] { return LedgerFault::kNotAppliedButUnknown; };
  EXPECT_FALSE(ledger_.Fire({.decisions = {Slot(2)}, .watermarks = {}, .steps = {}, .now = {}}, In()));
  EXPECT_EQ(ledger_.runs.size(), 1u);
}

TEST_F(MemorySchedulesTest, ChangesHaveRevisionsAndWatermarksSurviveVersions) {
  Pipeline p = Scheduled();
  ASSERT_EQ(Apply(p, "{}"), 1);
  const ScheduleRow before = (*ledger_.SchedulesChanged(-1, 10, In())).at(0);
  clock_.Advance(1h);
  EXPECT_EQ(Apply(p, "{}"), 1);
  EXPECT_TRUE(ledger_.SchedulesChanged(before.revision, 10, In())->empty()) << "nothing has changed";
  EXPECT_EQ(Apply(p, "{1}"), 2);
  const ScheduleRow after = (*ledger_.SchedulesChanged(before.revision, 10, In())).at(0);
  EXPECT_EQ(after.watermark, before.watermark);
  EXPECT_EQ(after.version, 2);
  EXPECT_EQ((*ledger_.ScheduledVersions(kDefaultOrg, std::vector<std::string>{"flights"}, In())).at(0).definition, "{1}");
  p.schedules[0].cron = "0 7 * * *";  // an edit decides only slots after now
  EXPECT_EQ(Apply(p, "{2}"), 3);
  EXPECT_EQ((*ledger_.Schedules(kDefaultOrg, In())).at(0).watermark, clock_.WallNow());
  p.schedules.clear();
  EXPECT_EQ(Apply(p, "{3}"), 4);
  EXPECT_TRUE(ledger_.Schedules(kDefaultOrg, In())->empty());
  EXPECT_FALSE((*ledger_.SchedulesChanged(after.revision, 10, In())).back().active);
}

}  // namespace
}  // namespace millrace::test
