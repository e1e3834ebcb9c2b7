// Plans that a scheduler keeps with its schedules: whose they are, and how many.
#include "scheduler/schedule_book.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace millrace::scheduler {
namespace {

using namespace std::chrono_literals;

class ScheduleBookTest : public ::testing::Test {
 protected:
  ScheduleRow Row(const std::string& pipeline, const std::string& cron = "* * * * *") {
    ScheduleRow row;
    row.pipeline = pipeline;
    row.spec.name = "default";
    row.spec.cron = cron;
    row.spec.timezone = "UTC";
    row.watermark = now_;
    return row;
  }
  void Take(ScheduleRow row) {
    const auto taken = book_.Take(std::move(row));
    ASSERT_TRUE(taken) << taken.error().message;
  }
  std::size_t Unplanned() { return book_.Unplanned(now_, now_ + 10s).size(); }
  static RunPlan Plan(std::size_t payload = 10) {
    RunPlan plan;
    plan.jobs.resize(1);
    plan.jobs[0].payload.assign(payload, 'x');
    return plan;
  }

  const WallTime now_ = *ParseRfc3339("2026-01-31T12:34:56Z"), slot_ = *ParseRfc3339("2026-01-31T12:35:00Z");
  ScheduleBook book_;
};

// Not by address: a simulation must be able to repeat itself.
TEST_F(ScheduleBookTest, WhatIsDueTogetherComesInTheOrderOfItsTaking) {
  std::vector<std::string> taken;
  for (int i = 0; i < 50; ++i) Take(Row(taken.emplace_back("p" + std::to_string(i * 37 % 50))));
  Take(Row(taken.front()));  // taken anew: it is the last
  std::ranges::rotate(taken, taken.begin() + 1);
  std::vector<std::string> due, soon;
  for (const auto* entry : book_.Due(slot_)) due.push_back(entry->row().pipeline);
  for (const auto* entry : book_.Unplanned(now_, slot_)) soon.push_back(entry->row().pipeline);
  EXPECT_EQ(due, taken);
  EXPECT_EQ(soon, taken);
}

TEST_F(ScheduleBookTest, WhatIsDueSoonIsUnplannedUntilItWasTried) {
  Take(Row("a"));
  Take(Row("b"));
  Take(Row("later", "40 * * * *"));
  ScheduleRow paused = Row("paused");
  paused.paused = true;
  Take(paused);
  auto soon = book_.Unplanned(now_, now_ + 10s);
  ASSERT_EQ(soon.size(), 2u);
  EXPECT_EQ(soon[0]->next(), slot_);
  EXPECT_TRUE(book_.Unplanned(now_, slot_ - 1us).empty());
  EXPECT_TRUE(book_.Unplanned(slot_, slot_ + 10s).empty()) << "what is due is not ahead";
  book_.Keep(*soon[0], Plan());
  book_.KeepNone(*soon[1]);
  EXPECT_EQ(Unplanned(), 0u);
  EXPECT_TRUE(soon[0]->planned());
  EXPECT_FALSE(soon[1]->planned());
  EXPECT_TRUE(book_.TakePlan(*soon[0]));
  EXPECT_FALSE(book_.TakePlan(*soon[0])) << "it is given once";
  EXPECT_FALSE(book_.TakePlan(*soon[1]));
}

TEST_F(ScheduleBookTest, APlanIsForgottenWithWhatItWasMadeOf) {
  const auto plan = [&] {
    auto soon = book_.Unplanned(now_, now_ + 10s);
    EXPECT_EQ(soon.size(), 1u);
    book_.Keep(*soon.at(0), Plan());
    EXPECT_EQ(Unplanned(), 0u);
    return soon.at(0);
  };
  Take(Row("a"));
  plan();
  Take(Row("a"));  // changed
  ScheduleBook::Entry* entry = plan();
  book_.Advance(*entry, slot_);
  EXPECT_FALSE(entry->planned());
  book_.Advance(*entry, now_);
  EXPECT_EQ(plan(), entry);
  book_.Park(*entry);
  EXPECT_FALSE(entry->planned());
  Take(Row("a"));
  plan();
  book_.Clear();
  EXPECT_EQ(Unplanned(), 0u);
  Take(Row("a"));
  plan();
  ScheduleRow gone = Row("a");
  gone.active = false;
  Take(gone);
  EXPECT_EQ(Unplanned(), 0u);
}

TEST_F(ScheduleBookTest, PlansAreBoundedByWhatTheyTake) {
  for (int i = 0; i < 6; ++i) Take(Row("p" + std::to_string(i)));
  const auto soon = book_.Unplanned(now_, now_ + 10s);
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(book_.PlansAreFull());
    book_.Keep(*soon[static_cast<std::size_t>(i)], Plan(kPlannedBytesMax / 4));
  }
  EXPECT_TRUE(book_.PlansAreFull());
  EXPECT_EQ(Unplanned(), 0u);
  book_.TakePlan(*soon[0]);
  EXPECT_FALSE(book_.PlansAreFull());
  EXPECT_EQ(Unplanned(), 3u);
  Take(Row("p1"));  // its plan goes too
  book_.Clear();
  EXPECT_FALSE(book_.PlansAreFull());
}

}  // namespace
}  // namespace millrace::scheduler
