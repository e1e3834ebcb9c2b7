#include "broker/audit_pump.h"

#include <gtest/gtest.h>

#include "tests/support/fake_audit_store.h"

namespace millrace {
namespace {

using testing::FakeAuditStore;
using testing::Row;
using testing::Writer;

// Says how much was asked for, and can be out of reach.
class Source : public FakeAuditStore {
 public:
  Result<std::vector<AuditHead>> AuditHeads(MonoTime deadline) override {
    ++head_reads;
    if (away) return Fail(ErrorCode::kUnavailable, "away");
    return FakeAuditStore::AuditHeads(deadline);
  }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after, std::uint32_t limit,
                                                MonoTime deadline) override {
    largest = std::max(largest, limit);
    if (away) return Fail(ErrorCode::kUnavailable, "away");
    return FakeAuditStore::AuditRecords(writer, after, limit, deadline);
  }
  int head_reads = 0;
  std::uint32_t largest = 0;
  bool away = false;
};

class AuditPumpTest : public ::testing::Test {
 protected:
  void Add(AuditChain& chain, int count) {
    for (int i = 0; i < count; ++i) {
      const Row row{++rows_, "v", chain.writer(), 0, 0};
      const AuditRecord record = chain.Next({row.Leaf()}, FromUnixMicros(rows_));
      chain.Advance(record);
      source_.records.push_back(record);
    }
  }
  AuditPump Pump(std::uint32_t page) {
    return AuditPump({.checkpoint = [this](WallTime, const AuditNews& news) { told_.push_back(news); },
                      .checkpointed = {},
                      .interval = Millis{1000},
                      .page = page},
                     source_, clock_);
  }
  // Steps whenever the pump wants to, until the hook was called; how many steps that took.
  int StepUntilTold(AuditPump& pump) {
    const std::size_t before = told_.size();
    for (int steps = 1; steps < 1000; ++steps) {
      const MonoTime next = pump.Step();
      if (told_.size() > before) return steps;
      EXPECT_GE(next - clock_.Now(), kAuditRest) << "it rests between two pages";
      clock_.Advance(next - clock_.Now());
    }
    return -1;
  }

  FakeClock clock_;
  Source source_;
  AuditChain chain_{Writer(1), "broker b1"}, other_{Writer(2), "cli"};
  std::vector<AuditNews> told_;
  std::int64_t rows_ = 0;
};

TEST_F(AuditPumpTest, ALookReadsPagesAndIsToldOnceAndWhole) {
  Add(chain_, 25);
  Add(other_, 3);
  AuditPump pump = Pump(4);
  EXPECT_EQ(pump.Step(), clock_.Now() + Millis{1000}) << "the first look is due after one interval";
  EXPECT_EQ(source_.head_reads, 0);
  clock_.Advance(Millis{1000});
  const MonoTime began = clock_.Now();
  const int steps = StepUntilTold(pump);
  EXPECT_GE(steps, 7);
  EXPECT_EQ(source_.largest, 4U) << "no page is larger";
  EXPECT_EQ(source_.head_reads, 1) << "heads are asked for once per look";
  ASSERT_EQ(told_.size(), 1U);
  EXPECT_EQ(told_[0].records.size(), 28U);
  EXPECT_TRUE(told_[0].complete);
  ASSERT_EQ(told_[0].heads.size(), 2U);
  EXPECT_EQ(pump.Step(), began + Millis{1000}) << "one look per interval, however long it takes";
}

// What is written while a look goes on belongs to the next one; nothing of it is taken for a chain that was cut.
TEST_F(AuditPumpTest, WhatComesDuringALookIsNeitherLostNorTakenForABreak) {
  Add(chain_, 10);
  AuditPump pump = Pump(4);
  clock_.Advance(Millis{1000});
  pump.Step();
  Add(chain_, 10);
  Add(other_, 2);
  clock_.Advance(kAuditRest);
  StepUntilTold(pump);
  clock_.Advance(Millis{1000});
  StepUntilTold(pump);
  ASSERT_EQ(told_.size(), 2U);
  EXPECT_EQ(told_[0].records.size() + told_[1].records.size(), 22U);
  std::uint64_t seq = 0;
  for (const AuditNews& news : told_)
    for (const AuditRecord& record : news.records) {
      if (record.writer != Writer(1)) continue;
      EXPECT_EQ(record.seq, ++seq);
    }
  EXPECT_EQ(seq, 20U);
  EXPECT_TRUE(told_[1].complete);
}

TEST_F(AuditPumpTest, TheEndReadsAllThatIsLeft) {
  Add(chain_, 30);
  AuditPump pump = Pump(4);
  clock_.Advance(Millis{1000});
  pump.Step();     // in the middle of a look
  Add(chain_, 5);  // the last commits
  pump.Finish(Millis{2000});
  ASSERT_EQ(told_.size(), 1U);
  EXPECT_EQ(told_[0].records.size(), 35U);
  EXPECT_TRUE(told_[0].complete);
  EXPECT_EQ(told_[0].heads.at(0).seq, 35U);
}

TEST_F(AuditPumpTest, ALedgerOutOfReachIsLookedAtAgainAndNothingOfItIsMissing) {
  Add(chain_, 10);
  AuditPump pump = Pump(4);
  source_.away = true;
  clock_.Advance(Millis{1000});
  EXPECT_EQ(pump.Step(), clock_.Now() + Millis{1000});
  EXPECT_TRUE(told_.empty()) << "nothing was read";
  source_.away = false;
  clock_.Advance(Millis{1000});
  pump.Step();
  source_.away = true;  // in the middle
  clock_.Advance(kAuditRest);
  StepUntilTold(pump);
  ASSERT_EQ(told_.size(), 1U);
  EXPECT_FALSE(told_[0].complete);
  source_.away = false;
  clock_.Advance(Millis{1000});
  StepUntilTold(pump);
  ASSERT_EQ(told_.size(), 2U);
  EXPECT_EQ(told_[0].records.size() + told_[1].records.size(), 10U);
  EXPECT_TRUE(told_[1].complete);
}

TEST_F(AuditPumpTest, ALongLookIsHandedOverInParts) {
  Add(chain_, static_cast<int>(kAuditRecordsMax) + 100);
  AuditPump pump = Pump(5'000);
  clock_.Advance(Millis{1000});
  StepUntilTold(pump);
  clock_.Advance(kAuditRest);
  StepUntilTold(pump);
  ASSERT_EQ(told_.size(), 2U);
  EXPECT_EQ(told_[0].records.size(), kAuditRecordsMax);
  EXPECT_FALSE(told_[0].complete);
  EXPECT_EQ(told_[1].records.size(), 100U);
  EXPECT_TRUE(told_[1].complete);
  EXPECT_EQ(source_.head_reads, 2) << "what says that it is complete does not rest on heads of long ago";
}

}  // namespace
}  // namespace millrace
