// Which jobs only the queue has, for who means jobs by a filter: whatever waits, runs for the first time, or is due later.
#include <gmock/gmock.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

using ::testing::UnorderedElementsAre;
using ::testing::UnorderedElementsAreArray;

constexpr OrgId kOther{77};

class DispatcherListTest : public testing::DispatcherTest {
 protected:
  JobSpec Kept(std::string queue = "mail", OrgId org = kDefaultOrg) {
    JobSpec job = Job();
    job.org = org;
    job.queue = std::move(queue);
    job.options.durability = Durability::kRedis;
    return job;
  }
  void Ask(wire::ListKept m) {
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = std::move(m)});
    Settle();
  }
  // Page by page.
  std::set<JobId> List(OrgId org, const std::string& queue = {}, const std::string& kind = {}) {
    std::set<JobId> jobs;
    std::string cursor;
    pages_ = 0;
    do {
      Ask({.request = ++pages_, .org = org, .queue = queue, .kind = kind, .cursor = cursor});
      const auto* reply = Last<wire::ListKeptReply>();
      if (reply == nullptr || reply->request != pages_) {
        ADD_FAILURE() << "no answer to page " << pages_;
        break;
      }
      jobs.insert(reply->jobs.begin(), reply->jobs.end());
      cursor = reply->cursor;
    } while (!cursor.empty() && pages_ < 100);
    return jobs;
  }
  std::uint64_t pages_ = 0;
};

TEST_F(DispatcherListTest, WhatWaitsIsListedByQueueAndKindAndOrg) {
  JobSpec other_kind = Kept(), later = Kept(), ledger = Job();
  other_kind.kind = "other";
  later.run_at = clock_.WallNow() + Millis{3'600'000};
  ledger.queue = "mail";
  const JobSpec first = Kept(), second = Kept(), news = Kept("news"), theirs = Kept("mail", kOther);
  Submit({first, second, news, other_kind, later, ledger});
  Submit({theirs});
  EXPECT_THAT(List(kDefaultOrg), UnorderedElementsAre(first.id, second.id, news.id, other_kind.id, later.id));
  EXPECT_GT(pages_, 1U);
  EXPECT_THAT(List(kDefaultOrg, "mail"), UnorderedElementsAre(first.id, second.id, other_kind.id, later.id));
  EXPECT_THAT(List(kDefaultOrg, "mail", "other"), UnorderedElementsAre(other_kind.id));
  EXPECT_THAT(List(kOther), UnorderedElementsAre(theirs.id));
  EXPECT_THAT(List(OrgId{5}), UnorderedElementsAre());
  EXPECT_TRUE(ledger_.cancels.empty());
}

TEST_F(DispatcherListTest, WhatRunsOrWaitsInTheBufferIsListedToo) {
  Hello("w", 1);
  std::vector<JobSpec> jobs;
  std::vector<JobId> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(jobs.emplace_back(Kept()).id);
  Submit(jobs);
  ASSERT_EQ(Granted().size(), 1U);
  EXPECT_THAT(List(kDefaultOrg, "mail"), UnorderedElementsAreArray(ids));
  EXPECT_THAT(List(kDefaultOrg, "news"), UnorderedElementsAre());
  EXPECT_EQ(Granted().size(), 1U) << "nothing moved";
}

TEST_F(DispatcherListTest, QuestionsAreBoundedAndAnsweredWhenTheShardIsLost) {
  Submit({Kept()});
  hold_replies_ = true;
  for (std::uint64_t n = 1; n <= kListingsMax; ++n) {
    Handle(event::FromClient{
        .peer = "c", .message = wire::ListKept{.request = n, .org = kDefaultOrg, .queue = {}, .kind = {}, .cursor = {}}});
  }
  Settle();
  Ask({.request = 500, .org = kDefaultOrg, .queue = {}, .kind = {}, .cursor = {}});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "limit");
  EXPECT_EQ(Last<wire::Problem>()->request, 500U);
  client_.clear();
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  for (std::size_t n = 0; n < 2 * kListingsMax && Flush(); ++n) {
  }
  Settle();
  EXPECT_EQ(std::ranges::count_if(client_, [](const auto& m) { return std::holds_alternative<wire::ListKeptReply>(m); }),
            static_cast<std::ptrdiff_t>(kListingsMax));
  queue_.Wipe();
  Ask({.request = 501, .org = kDefaultOrg, .queue = {}, .kind = {}, .cursor = {}});
  ASSERT_NE(Last<wire::Problem>(), nullptr) << "the queue was emptied: the shard is taken anew";
  EXPECT_EQ(Last<wire::Problem>()->code, "unavailable");
  EXPECT_EQ(Last<wire::Problem>()->request, 501U);
}

}  // namespace
}  // namespace millrace
