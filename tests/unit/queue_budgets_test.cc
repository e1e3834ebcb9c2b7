#include "broker/queue_budgets.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "common/base/random.h"
#include "common/model/whole_org.h"

namespace millrace {
namespace {

constexpr OrgId kSeven{7};
const std::string kAll{kWholeOrg};

QueueSettings Limits(OrgId org, const std::string& queue, std::uint64_t jobs, std::uint64_t bytes = 0) {
  QueueSettings settings;
  settings.org = org;
  settings.queue = queue;
  settings.max_waiting_jobs = jobs;
  settings.max_waiting_bytes = bytes;
  return settings;
}

JobSpec Job(OrgId org, const std::string& queue, std::size_t bytes) {
  JobSpec job;
  job.org = org;
  job.queue = queue;
  job.payload = std::string(bytes, 'x');
  return job;
}

std::string Said(const std::optional<Error>& refusal) {
  return refusal ? fmt::format("{}: {}", Name(refusal->code), refusal->message) : "";
}

// Waiting for the queue to drain would not help: who submits is told what does.
TEST(QueueBudgets, WhatNeverFitsIsToldApartFromWhatDoesNotFitNow) {
  QueueBudgets budgets;
  budgets.Limit(Limits(kSeven, "a", 100, 1000));
  budgets.Limit(Limits(kDefaultOrg, kAll, 0, 50));
  EXPECT_EQ(Said(budgets.Refusal(kSeven, "a", {.jobs = 100, .bytes = 1000})), "");
  EXPECT_EQ(
      Said(budgets.Refusal(kSeven, "a", {.jobs = 101, .bytes = 1})),
      "invalid_argument: queue 'a': 101 jobs at once never fit into its limit of 100; submit fewer at a time, or raise the "
      "limit: millrace queue set a --max-waiting N --org 7");
  EXPECT_EQ(Said(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 51})),
            "invalid_argument: org 1: 51 bytes at once never fit into its limit of 50; submit fewer at a time, or raise the "
            "limit: millrace queue set '*' --max-waiting-bytes N");
  budgets.Enqueued(kSeven, "a", 1);
  EXPECT_EQ(budgets.Refusal(kSeven, "a", {.jobs = 100, .bytes = 1})->code, ErrorCode::kLimit);
  EXPECT_EQ(budgets.Refusal(kSeven, "a", {.jobs = 100, .bytes = 1001})->code, ErrorCode::kInvalidArgument);
}

TEST(QueueBudgets, AnOrgsBudgetIsOverAllItsQueuesAndOverNobodyElses) {
  QueueBudgets budgets;
  EXPECT_FALSE(budgets.Limited());
  budgets.Limit(Limits(kSeven, kAll, 3));
  EXPECT_TRUE(budgets.Limited());
  budgets.Enqueued(kSeven, "a", 10);
  budgets.Enqueued(kSeven, "b", 10);
  budgets.Enqueued(kDefaultOrg, "a", 10, 100);
  EXPECT_FALSE(budgets.Refusal(kSeven, kAll, {.jobs = 1, .bytes = 10}));
  EXPECT_EQ(
      Said(budgets.Refusal(kSeven, kAll, {.jobs = 2, .bytes = 20})),
      "limit: org 7: 2 jobs wait in its queues, 2 more do not fit into its limit of 3; submit again when it has drained, or "
      "raise the limit: millrace queue set '*' --max-waiting N --org 7");
  EXPECT_FALSE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 100, .bytes = 1}));
  EXPECT_FALSE(budgets.Refusal(kSeven, "a", {.jobs = 100, .bytes = 1})) << "the queue has no limit of its own";
  budgets.Claimed(kSeven, "a", 10);
  EXPECT_FALSE(budgets.Refusal(kSeven, kAll, {.jobs = 2, .bytes = 20}));
}

TEST(QueueBudgets, AnOrgsBudgetCountsWhatWaitedBeforeItWasSet) {
  QueueBudgets budgets;
  budgets.Enqueued(kDefaultOrg, "a", 40, 2);
  QueueBudgets::Amounts piece;
  budgets.Accepting(Job(kDefaultOrg, "b", 30), piece);
  budgets.Limit(Limits(kDefaultOrg, kAll, 0, 100));
  EXPECT_FALSE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 30}));
  EXPECT_EQ(Said(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 31})),
            "limit: org 1: 70 bytes wait in its queues, 31 more do not fit into its limit of 100; submit again when it has "
            "drained, or "
            "raise the limit: millrace queue set '*' --max-waiting-bytes N");
  budgets.Accepted(piece);
  EXPECT_FALSE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 60}));
  budgets.Limit(Limits(kDefaultOrg, kAll, 0, 50));  // a limit that changes counts nothing twice
  EXPECT_FALSE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 10}));
  EXPECT_TRUE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 11}));
  budgets.Limit(Limits(kDefaultOrg, kAll, 0));
  EXPECT_FALSE(budgets.Limited());
  EXPECT_FALSE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 1000}));
  budgets.Claimed(kDefaultOrg, "a", std::nullopt);
  budgets.Limit(Limits(kDefaultOrg, kAll, 1));
  EXPECT_TRUE(budgets.Refusal(kDefaultOrg, kAll, {.jobs = 1, .bytes = 1}));
}

// Whatever happens to queues and limits, the sum is that of the queues: also when bytes are known about only.
TEST(QueueBudgets, TheSumOfAnOrgIsThatOfItsQueues) {
  SeededRandom random(11);
  QueueBudgets budgets;
  const std::string queues[] = {"a", "b", "c"};
  std::vector<QueueBudgets::Amounts> pieces;
  std::set<OrgId> limited;
  for (int step = 0; step < 20'000; ++step) {
    const OrgId org{1 + static_cast<std::int64_t>(random.Below(2))};
    const std::string& queue = queues[random.Below(3)];
    const std::size_t bytes = random.Below(50);
    switch (random.Below(8)) {
      case 0:
        if (random.Below(3) > 0) {
          limited.insert(org);
        } else {
          limited.erase(org);
        }
        budgets.Limit(Limits(org, kAll, limited.contains(org) ? 1'000'000 : 0));
        break;
      case 1: budgets.Accepting(Job(org, queue, bytes), pieces.emplace_back()); break;
      case 2:
        if (pieces.empty()) break;
        budgets.Accepted(pieces.back());
        pieces.pop_back();
        break;
      case 3:
      case 4: budgets.Enqueued(org, queue, bytes, 1 + random.Below(2)); break;
      case 5: budgets.Claimed(org, queue, std::nullopt); break;
      default: budgets.Claimed(org, queue, bytes);
    }
    QueueBudgets::Amount sum;
    for (const auto& [name, amount] : budgets.WaitingOf(org)) {
      sum.jobs += amount.jobs;
      sum.bytes += amount.bytes;
    }
    if (!limited.contains(org)) continue;
    ASSERT_EQ(budgets.Waiting(org, kAll).jobs, sum.jobs) << step;
    ASSERT_EQ(budgets.Waiting(org, kAll).bytes, sum.bytes) << step;
  }
}

}  // namespace
}  // namespace millrace
