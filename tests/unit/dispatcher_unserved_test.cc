// What is ready and taken by no connected worker: who asks is told, of the own org alone.
#include <gtest/gtest.h>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherUnservedTest : public testing::DispatcherTest {
 protected:
  JobSpec JobOf(const std::string& kind, const std::string& queue = "default", OrgId org = kDefaultOrg) {
    JobSpec job = Job();
    job.kind = kind;
    job.queue = queue;
    job.org = org;
    return job;
  }
  wire::ListUnservedReply Listed(OrgId org = kDefaultOrg) {
    client_.clear();
    Handle(event::FromClient{.peer = "c", .message = wire::ListUnserved{.request = 9, .org = org}});
    Settle();
    const auto* reply = Last<wire::ListUnservedReply>();
    EXPECT_NE(reply, nullptr);
    return reply == nullptr ? wire::ListUnservedReply{} : *reply;
  }
};

TEST_F(DispatcherUnservedTest, WhatNoWorkerTakesIsListedWithItsTime) {
  EXPECT_EQ(Listed(), (wire::ListUnservedReply{.request = 9, .items = {}, .more = false, .workers = 0}));
  JobSpec urgent = JobOf("mail");
  urgent.priority = 0;
  JobSpec kept = JobOf("mail");
  kept.options.durability = Durability::kRedis;
  Submit({JobOf("mail"), urgent, kept, JobOf("stage", "heavy")});
  Submit({JobOf("mail", "default", OrgId{77})});
  wire::ListUnservedReply reply = Listed();
  ASSERT_EQ(reply.items.size(), 2U);
  EXPECT_EQ(reply.items[0], (wire::ListUnservedReply::Item{"default", "mail", "", 3, std::nullopt})) << "not looked at yet";
  EXPECT_EQ(reply.items[1], (wire::ListUnservedReply::Item{"heavy", "stage", "", 1, std::nullopt}));
  EXPECT_EQ(reply.workers, 0U);
  EXPECT_FALSE(reply.more);
  ASSERT_EQ(Listed(OrgId{77}).items.size(), 1U);
  EXPECT_EQ(Listed(OrgId{77}).items[0].ready, 1U);

  Advance(kReachInterval);
  const WallTime seen = clock_.WallNow();
  Advance(Millis{1000});
  reply = Listed();
  ASSERT_EQ(reply.items.size(), 2U);
  EXPECT_EQ(reply.items[0].since, seen) << "also when no worker is there at all";

  reach_.kinds = {"stage"};
  Hello("w", 10);
  Advance(kReachInterval);
  reply = Listed();
  ASSERT_EQ(reply.items.size(), 1U);
  EXPECT_EQ(reply.items[0], (wire::ListUnservedReply::Item{"default", "mail", "", 3, seen}));
  EXPECT_EQ(reply.workers, 1U);

  reach_.kinds = {"mail"};
  Hello("v", 1);  // takes one; the others wait for its credit
  Advance(kReachInterval);
  EXPECT_TRUE(Listed().items.empty());
}

TEST_F(DispatcherUnservedTest, WhoServesAgainAndGoesBeginsANewTime) {
  reach_.kinds = {"mail"};
  Hello("w", 0);
  Submit({JobOf("mail")});
  Advance(kReachInterval);
  EXPECT_TRUE(Listed().items.empty());
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  Settle();
  Advance(kReachInterval);
  const wire::ListUnservedReply reply = Listed();
  ASSERT_EQ(reply.items.size(), 1U);
  EXPECT_EQ(reply.items[0].since, clock_.WallNow());
  EXPECT_EQ(reply.workers, 0U);
}

TEST_F(DispatcherUnservedTest, ALineThatEmptiesBetweenTwoLooksBeginsANewTime) {
  Submit({JobOf("mail")});
  Advance(kReachInterval);
  Advance(Millis{1000});
  const WallTime first = clock_.WallNow();
  reach_.kinds = {"mail"};
  Hello("w", 10);
  End(0, AttemptEnd::kSucceeded);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  Settle();
  Submit({JobOf("mail")});
  Advance(kReachInterval);
  const wire::ListUnservedReply reply = Listed();
  ASSERT_EQ(reply.items.size(), 1U);
  ASSERT_TRUE(reply.items[0].since.has_value());
  EXPECT_GT(*reply.items[0].since, first);
}

TEST_F(DispatcherUnservedTest, OneAnswerHasItsLimit) {
  std::vector<JobSpec> jobs;
  for (std::size_t i = 0; i <= kQueuesListedMax; ++i) {
    jobs.push_back(JobOf(fmt::format("kind{:05}", i)));
    if (jobs.size() == 500) Submit(std::exchange(jobs, {}));
  }
  Submit(std::move(jobs));
  const wire::ListUnservedReply reply = Listed();
  EXPECT_EQ(reply.items.size(), kQueuesListedMax);
  EXPECT_EQ(reply.items[0].kind, "kind00000");
  EXPECT_TRUE(reply.more);
}

}  // namespace
}  // namespace millrace
