// Which jobs only the queue has, for who means jobs by a filter: whatever waits, runs for the first time, or is due later.
#include <gmock/gmock.h>

#include "common/wire/codec.h"
#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

using ::testing::IsSupersetOf;
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
  wire::ListKept Page(const std::string& cursor) {
    return {.request = ++pages_, .org = kDefaultOrg, .queue = {}, .kind = {}, .cursor = cursor};
  }
  // What the last question was answered with goes to `jobs`; where the next page begins. Empty: there is none.
  std::string Take(std::set<JobId>& jobs) {
    const auto* reply = Last<wire::ListKeptReply>();
    if (reply == nullptr || reply->request != pages_) {
      ADD_FAILURE() << "no answer to page " << pages_;
      return {};
    }
    EXPECT_LE(reply->jobs.size(), wire::kKeptListedMax);
    jobs.insert(reply->jobs.begin(), reply->jobs.end());
    return reply->cursor;
  }
  // Page by page.
  std::set<JobId> List(OrgId org, const std::string& queue = {}, const std::string& kind = {}) {
    std::set<JobId> jobs;
    std::string cursor;
    pages_ = 0;
    do {
      Ask({.request = ++pages_, .org = org, .queue = queue, .kind = kind, .cursor = cursor});
      cursor = Take(jobs);
    } while (!cursor.empty() && pages_ < 100);
    return jobs;
  }
  // The pages from `cursor` on.
  std::set<JobId> Rest(std::string cursor) {
    std::set<JobId> jobs;
    while (!cursor.empty() && pages_ < 100) {
      Ask(Page(cursor));
      cursor = Take(jobs);
    }
    return jobs;
  }
  // The queue has executed the first question, and its answer is under way: then comes `meanwhile`.
  template <class Meanwhile>
  std::set<JobId> ListAround(Meanwhile meanwhile) {
    queue_.list_page = 100;
    hold_replies_ = true;
    Ask(Page({}));
    meanwhile();
    LetRepliesThrough();
    std::set<JobId> jobs;
    EXPECT_EQ(Take(jobs), "");
    return jobs;
  }
  // Jobs that wait in the ready buffer.
  std::vector<JobId> Buffered(std::size_t n) {
    Hello("w", 0);
    std::vector<JobSpec> jobs;
    for (std::size_t i = 0; i < n; ++i) jobs.push_back(Kept());
    for (std::size_t at = 0; at < n; at += kBatchJobsMax)
      Submit({jobs.begin() + static_cast<std::ptrdiff_t>(at),
              jobs.begin() + static_cast<std::ptrdiff_t>(std::min(n, at + kBatchJobsMax))});
    ExpectDepth(0, n);
    return IdsOf(jobs);
  }
  // The ledger is asked about it before it starts, because its id is an old one, and it can wait nowhere but in the queue.
  JobSpec Doubtful() {
    JobSpec job = Kept();
    job.options.deadline = clock_.WallNow() + Millis{3'600'000};
    clock_.Advance(kFreshIdAge + Millis{1000});
    return job;
  }
  void Goodbye() { Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_.at("w")}}); }
  void ExpectAnew() {
    ASSERT_NE(Last<wire::Problem>(), nullptr);
    EXPECT_EQ(Last<wire::Problem>()->code, "stale");
    EXPECT_EQ(Last<wire::Problem>()->request, pages_);
    EXPECT_EQ(Last<wire::ListKeptReply>(), nullptr);
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

TEST_F(DispatcherListTest, WhatIsPagedOutBeforeTheAnswerIsListed) {
  const std::vector<JobId> ids = Buffered(5);
  EXPECT_THAT(ListAround([&] {
                clock_.Advance(kBufferedAgeAnyMax + Millis{1000});
                Beat("w", 0);
                Handle(event::Tick{});
                Settle();
                ExpectDepth(5, 0);
              }),
              UnorderedElementsAreArray(ids));
}

TEST_F(DispatcherListTest, WhatAHandoverPutsBackBeforeTheAnswerIsListed) {
  const std::vector<JobId> ids = Buffered(5);
  EXPECT_THAT(ListAround([&] {
                Handle(event::YieldShard{.hold = {.shard = ShardId{0}, .epoch = Epoch{1}}});
                Settle();
                ExpectDepth(5, 0);
              }),
              UnorderedElementsAreArray(ids));
}

TEST_F(DispatcherListTest, WhatAStopPutsBackBeforeTheAnswerIsListed) {
  const std::vector<JobId> ids = Buffered(5);
  EXPECT_THAT(ListAround([&] {
                Handle(event::StopRequested{});
                Settle();
                ExpectDepth(5, 0);
              }),
              UnorderedElementsAreArray(ids));
}

TEST_F(DispatcherListTest, WhatStartsWithAPutIsListed) {
  Hello("w", 0);
  const JobSpec job = Kept();
  hold_replies_ = true;
  queue_.list_page = 100;
  Ask(Page({}));
  Submit({job});
  Beat("w", 1);
  ASSERT_EQ(held_.replies.size(), 2U);
  event::QueueReplies list;
  list.replies.push_back(std::move(held_.replies.front()));
  held_.replies.erase(held_.replies.begin());
  Handle(std::move(list));
  Settle();
  std::set<JobId> jobs;
  EXPECT_EQ(Take(jobs), "");
  EXPECT_THAT(jobs, UnorderedElementsAre(job.id));
  LetRepliesThrough();
  EXPECT_EQ(Granted().size(), 1U);
}

TEST_F(DispatcherListTest, WhatTheLedgerIsAskedAboutIsListed) {
  const JobSpec job = Doubtful();
  hold_known_ = true;
  Submit({job});
  Hello("w", 1);
  ASSERT_EQ(held_known_.size(), 1U);
  EXPECT_THAT(List(kDefaultOrg, "mail"), UnorderedElementsAre(job.id));
  EXPECT_THAT(List(kDefaultOrg, "news"), UnorderedElementsAre());
}

TEST_F(DispatcherListTest, WhatIsHandedBackWithTheAnswerIsListed) {
  const JobSpec job = Kept();
  Submit({job});
  hold_replies_ = true;
  Hello("w", 1);
  ExpectDepth(0, 1);
  EXPECT_THAT(ListAround([&] { Goodbye(); }), UnorderedElementsAre(job.id));
  EXPECT_TRUE(Granted().empty());
}

TEST_F(DispatcherListTest, WhatIsLostIsListedUntilTheLedgerHasIt) {
  JobSpec of_ledger = Job();
  of_ledger.queue = "mail";
  const JobSpec job = Kept();
  Hello("w", 2);
  Submit({job, of_ledger});
  ASSERT_EQ(Granted().size(), 2U);
  queue_.list_page = 100;
  Goodbye();
  Handle(event::FromClient{.peer = "c", .message = Page({})});
  Flush();  // and the ledger does nothing yet
  Flush();
  ASSERT_FALSE(ledger_.jobs.contains(job.id));
  std::set<JobId> jobs;
  EXPECT_EQ(Take(jobs), "");
  EXPECT_THAT(jobs, UnorderedElementsAre(job.id));
  Settle();
  EXPECT_TRUE(ledger_.jobs.contains(job.id));
  EXPECT_THAT(List(kDefaultOrg), UnorderedElementsAre()) << "it is the ledger's";
}

TEST_F(DispatcherListTest, WhatACancelHasInItsHandsIsListed) {
  const JobSpec job = Kept();
  Submit({job});
  Handle(event::FromClient{.peer = "c",
                           .message = wire::Cancel{.request = 900,
                                                   .org = kDefaultOrg,
                                                   .items = {{.id = job.id.uuid, .is_run = false}},
                                                   .actor = "cli me",
                                                   .reason = {}}});
  std::vector<Event> events;
  Flush();
  pump_.Step(events);
  for (Event& event : events) Handle(std::move(event));
  queue_.list_page = 100;
  for (int i = 0; i < 4; ++i) Flush();  // it is found, and the states are to be read again
  ExpectDepth(0, 1);
  client_.clear();
  Handle(event::FromClient{.peer = "c", .message = Page({})});
  Flush();
  Flush();
  std::set<JobId> jobs;
  EXPECT_EQ(Take(jobs), "");
  EXPECT_THAT(jobs, UnorderedElementsAre(job.id)) << "the request may fail, and the job goes back";
}

// It is out of its line when the queue's page is there, and in it again before the next one.
TEST_F(DispatcherListTest, WhatIsBackInItsLineBehindThePagesIsListed) {
  const JobSpec job = Doubtful();
  const std::vector<JobSpec> others = {Kept("news"), Kept("news"), Kept("news"), Kept("news")};
  hold_known_ = true;
  reach_.queues = {"mail"};
  Submit({job});
  Submit(others);
  Hello("w", 1);
  ASSERT_EQ(held_known_.size(), 1U);
  std::set<JobId> jobs;
  Ask(Page({}));
  const std::string cursor = Take(jobs);
  ASSERT_FALSE(cursor.empty());
  EXPECT_FALSE(jobs.contains(job.id));
  Goodbye();
  LetKnownThrough();
  ExpectDepth(5, 0);
  jobs.merge(Rest(cursor));
  std::vector<JobId> all = IdsOf(others);
  all.push_back(job.id);
  EXPECT_THAT(jobs, UnorderedElementsAreArray(all));
}

TEST_F(DispatcherListTest, NoPageHasMoreThanAMessageMay) {
  const std::vector<JobId> ids = Buffered(110'000);
  EXPECT_EQ(List(kDefaultOrg), std::set<JobId>(ids.begin(), ids.end()));
  EXPECT_GE(pages_, 2U);
  EXPECT_LE(pages_, 5U);
}

TEST_F(DispatcherListTest, WhatGoesBackBetweenTwoPagesOfTheBrokersIsListed) {
  const std::vector<JobId> ids = Buffered(kListOwnJobsMax + 10);
  std::set<JobId> jobs;
  Ask(Page({}));
  const std::string cursor = Take(jobs);
  ASSERT_FALSE(cursor.empty());
  Handle(event::StopRequested{});
  Settle();
  jobs.merge(Rest(cursor));
  EXPECT_EQ(jobs, std::set<JobId>(ids.begin(), ids.end()));
}

TEST_F(DispatcherListTest, ALookThatNothingIsRecordedForAnyMoreBeginsAgain) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(Kept());
  Submit(jobs);
  const auto begin = [&] {
    std::set<JobId> seen;
    Ask(Page({}));
    return Take(seen);
  };
  const std::string idle = begin();
  Advance(kKeptRecordIdle + Millis{1000});
  Ask(Page(idle));
  ExpectAnew();
  const std::string cancelled = begin();
  Handle(event::FromClient{.peer = "c",
                           .message = wire::Cancel{.request = 900,
                                                   .org = kDefaultOrg,
                                                   .items = {{.id = jobs.front().id.uuid, .is_run = false}},
                                                   .actor = "cli me",
                                                   .reason = {}}});
  Settle();
  Ask(Page(cancelled));  // a look through a list from its end counts from there
  ExpectAnew();
  const std::string before = begin();
  queue_.Wipe();
  Submit({Kept()});
  for (int i = 0; i < 4; ++i) Advance(Millis{500});
  Submit({Kept(), Kept(), Kept()});
  Ask(Page(before));
  ExpectAnew();
  for (const std::string& none : {std::string("here"), std::string("1"), std::string("1 1 "), std::string("1 1 mhere")}) {
    Ask(Page(none));
    ExpectAnew();
  }
  EXPECT_NE(begin(), "") << "and from the beginning it goes";
}

TEST_F(DispatcherListTest, ALookThatIsUsedGoesOn) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 7; ++i) jobs.push_back(Kept());
  Submit(jobs);
  std::set<JobId> seen;
  Ask(Page({}));
  for (std::string cursor = Take(seen); !cursor.empty(); cursor = Take(seen)) {
    Advance(kKeptRecordIdle - Millis{1000});
    Ask(Page(cursor));
  }
  EXPECT_THAT(seen, UnorderedElementsAreArray(IdsOf(jobs)));
}

TEST(KeptRecord, IsBoundedAndCountsKeptLinesOnly) {
  LineKey key;
  const std::string line = key.ToString();
  key.durability = Durability::kRedis;
  const std::string kept = key.ToString();
  const auto entry = [](std::uint32_t n, const std::string& name) {
    Uuid id;
    id.bytes[0] = 1;
    for (std::size_t i = 0; i < 4; ++i) id.bytes[12 + i] = static_cast<std::uint8_t>(n >> (8 * i));
    return std::vector<QueueEntry>{{.id = JobId{id}, .line = name, .body = {}, .run_at = {}, .expires_at = {}}};
  };
  KeptRecord record;
  record.Back(entry(0, kept));
  EXPECT_FALSE(record.Has(0));
  EXPECT_FALSE(record.Has(1));
  const std::uint64_t number = record.Use(MonoTime{});
  record.Back(entry(0, line));
  for (std::uint32_t i = 0; i < kKeptRecordJobsMax; ++i) record.Back(entry(i, kept));
  record.Back(entry(0, kept));
  EXPECT_EQ(record.Use(MonoTime{}), number);
  std::size_t n = 0;
  record.ForEach([&](const std::string& name, JobId) {
    EXPECT_EQ(name, kept);
    ++n;
  });
  EXPECT_EQ(n, kKeptRecordJobsMax);
  record.Back(entry(kKeptRecordJobsMax, kept));
  EXPECT_FALSE(record.Has(number));
  EXPECT_EQ(record.Use(MonoTime{}), number + 1);
  record.ForEach([](const std::string&, JobId) { ADD_FAILURE() << "of the record before"; });
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
