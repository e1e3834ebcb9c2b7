// Ready jobs of `durability: redis` that wait in the owner's memory: which do, that they start like all others, and that
// whoever looks for one, or takes the shard, finds it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>

#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherBufferTest : public testing::DispatcherTest {
 protected:
  JobSpec Kept(int priority = kPriorityDefault, OrgId org = kDefaultOrg) {
    JobSpec job = Job(priority);
    job.org = org;
    job.options.durability = Durability::kRedis;
    return job;
  }
  std::vector<JobSpec> Jobs(std::size_t n) {
    std::vector<JobSpec> jobs;
    while (jobs.size() < n) jobs.push_back(Kept());
    return jobs;
  }
  // The queue says nothing from here on, and a write of the shard is under way: what comes now starts with the answer to its
  // own.
  void HoldReplies() {
    hold_replies_ = true;
    JobSpec later = Kept();
    later.run_at = clock_.WallNow() + 24h;
    Submit({later});
  }
  void Cancel(std::uint64_t request, const JobSpec& job, OrgId org = kDefaultOrg) {
    Handle(event::FromClient{
        .peer = "c",
        .message = wire::Cancel{
            .request = request, .org = org, .items = {{.id = job.id.uuid, .is_run = false}}, .actor = "cli me", .reason = {}}});
    Settle();
  }
  std::optional<CancelEffect> Effect(std::uint64_t request) {
    for (const wire::Message& message : client_)
      if (const auto* reply = std::get_if<wire::CancelReply>(&message); reply != nullptr && reply->request == request)
        return reply->items.at(0).effect;
    return std::nullopt;
  }
  void Pause(bool paused) {  // the queue "default"
    QueueSettings settings;
    settings.queue = "default";
    settings.revision = revision_++;
    settings.paused = paused;
    Handle(event::FromClient{.peer = "c", .message = wire::SetQueue{.request = 3, .settings = settings, .actor = "t"}});
    Settle();
  }

  std::int64_t revision_ = 0;
};

TEST_F(DispatcherBufferTest, OneThatWaitsStartsWithoutAnotherRoundTrip) {
  Hello("w", 1);
  const std::vector<JobSpec> jobs = Jobs(3);
  Submit(jobs);
  ExpectDepth(0, 3);
  ASSERT_EQ(Granted(), IdsOf({jobs[0]}));
  hold_replies_ = true;  // the queue says nothing from here on
  Beat("w", 3);
  EXPECT_EQ(Granted(), IdsOf(jobs)) << "in the order of their submits";
}

TEST_F(DispatcherBufferTest, NoneStartsBeforeTheQueueHasIt) {
  Hello("w", 1);
  HoldReplies();
  std::vector<JobSpec> jobs = Jobs(2);
  Submit(jobs);
  jobs.push_back(Kept());
  Submit({jobs.back()});
  Beat("w", 10);  // promised to it by now
  EXPECT_TRUE(grants_.empty());
  EXPECT_EQ(Last<wire::SubmitReply>(), nullptr);
  LetRepliesThrough();
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherBufferTest, OfTwoPutsTheFirstIsAnsweredTheSecondWaitsForItsOwn) {
  Hello("w", 0);
  std::vector<JobSpec> jobs = Jobs(2);
  Submit(jobs);
  hold_replies_ = true;
  jobs.push_back(Kept());
  Submit({jobs.back()});
  Beat("w", 10);
  EXPECT_EQ(Granted(), IdsOf({jobs[0], jobs[1]}));
  LetRepliesThrough();
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherBufferTest, WithoutAWorkerItWaitsInItsLine) {
  const std::vector<JobSpec> jobs = Jobs(3);
  Submit(jobs);
  ExpectDepth(3, 0);
  Hello("w", 10);
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherBufferTest, NobodyOvertakesWhatWaitsInTheQueue) {
  std::vector<JobSpec> jobs = Jobs(3);
  Submit(jobs);
  Hello("w", 1);
  for (const JobSpec& later : Jobs(2)) {
    Submit({later});
    jobs.push_back(later);
  }
  ExpectDepth(4, 1);
  const JobSpec other_line = Kept(kPriorityDefault + 1);
  Submit({other_line});
  ExpectDepth(4, 2);
  Beat("w", 100);
  std::vector<JobId> granted = Granted();
  EXPECT_EQ(std::erase(granted, other_line.id), 1U);
  EXPECT_EQ(granted, IdsOf(jobs));
}

TEST_F(DispatcherBufferTest, WhatExpiresOrIsDueLaterOrWasSeenBeforeWaitsInTheQueue) {
  Hello("w", 0);
  JobSpec expiring = Kept(), later = Kept(), job = Kept();
  expiring.options.deadline = clock_.WallNow() + 1h;
  later.run_at = clock_.WallNow() + 1h;
  Submit({job});
  ExpectDepth(0, 1);
  Submit({expiring});
  Submit({later});
  Submit({job});  // a repeated submit
  ExpectDepth(2, 1);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 1U);
  Beat("w", 10);
  EXPECT_EQ(Granted(), IdsOf({job, expiring}));
}

TEST_F(DispatcherBufferTest, WhatDoesNotFitWaitsInTheQueueAndComesAfter) {
  Hello("w", 0);
  std::vector<JobSpec> jobs;
  while (jobs.size() < kBufferedJobsMax + 700) {
    const std::vector<JobSpec> batch = Jobs(500);
    Submit(batch);
    jobs.insert(jobs.end(), batch.begin(), batch.end());
  }
  ExpectDepth(jobs.size() - kBufferedJobsMax, kBufferedJobsMax);
  JobSpec large = Kept(kPriorityDefault + 1);
  large.payload.assign(kBufferedPayloadMax + 1, 'x');
  Submit({large});
  ExpectDepth(jobs.size() - kBufferedJobsMax + 1, kBufferedJobsMax);
  Beat("w", 10'000);
  EXPECT_EQ(grants_.size(), 10'000U);
  const JobSpec last = Kept();
  Submit({last});  // there is room again, but not before those that wait in the queue
  Beat("w", 1'000'000);
  jobs.push_back(last);
  jobs.push_back(large);
  const std::vector<JobId> granted = Granted(), all = IdsOf(jobs);
  ASSERT_EQ(granted.size(), all.size());
  EXPECT_EQ(std::ranges::mismatch(granted, all).in1 - granted.begin(), std::ssize(all)) << "the first that is out of order";
}

TEST_F(DispatcherBufferTest, ACancelFindsItAndSoDoesNoOtherOrg) {
  constexpr OrgId kOther{77};
  Hello("w", 0);
  const JobSpec first = Kept(), second = Kept(), third = Kept();
  Submit({first, second, third});
  Cancel(5, second, kOther);
  EXPECT_EQ(Effect(5), CancelEffect::kUnknown);
  Cancel(6, second);
  EXPECT_EQ(Effect(6), CancelEffect::kCancelled);
  EXPECT_EQ(Outcome(second), JobState::kCancelled);
  ExpectDepth(0, 2);
  Beat("w", 10);
  EXPECT_EQ(Granted(), IdsOf({first, third}));
  for (std::size_t i = 0; i < 2; ++i) End(i, AttemptEnd::kSucceeded);
  ExpectDepth(0, 0);
  EXPECT_TRUE(dispatcher_.Idle());
}

TEST_F(DispatcherBufferTest, OneThatIsCancelledBeforeItsPutIsAnsweredDoesNotStart) {
  Hello("w", 1);
  HoldReplies();
  const std::vector<JobSpec> jobs = Jobs(2);  // one is to start with the answer, one waits
  Submit(jobs);
  Cancel(5, jobs[0]);
  Cancel(6, jobs[1]);
  Beat("w", 10);
  LetRepliesThrough();
  EXPECT_TRUE(grants_.empty());
  EXPECT_EQ(Effect(5), CancelEffect::kCancelled);
  EXPECT_EQ(Effect(6), CancelEffect::kCancelled);
  ExpectDepth(0, 0);
  Submit(Jobs(10));
  EXPECT_EQ(grants_.size(), 10U) << "nothing of its credit is lost";
}

TEST_F(DispatcherBufferTest, ACancelFindsWhatComesBackInTheSameTurn) {
  Hello("w", 1);
  HoldReplies();
  const JobSpec job = Kept();
  Submit({job});
  Hello("v", 0);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  wire::Cancel cancel{.request = 5, .org = kDefaultOrg, .items = {{job.id.uuid, false}}, .actor = "cli me", .reason = {}};
  Handle(event::FromClient{.peer = "c", .message = std::move(cancel)});
  Flush();
  std::vector<Event> states;
  pump_.Step(states);
  ASSERT_FALSE(states.empty());
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));                      // it finds no worker, and before the next flush
  for (Event& state : states) Handle(std::move(state));  // the ledger says that it knows nothing of it
  Settle();
  EXPECT_EQ(Effect(5), CancelEffect::kCancelled);
  Beat("v", 10);
  EXPECT_TRUE(grants_.empty());
  ExpectDepth(0, 0);
}

TEST_F(DispatcherBufferTest, AWorkerThatGoesBeforeTheAnswerLeavesTheOrderAsItWas) {
  Hello("w", 2);
  HoldReplies();
  const std::vector<JobSpec> jobs = Jobs(4);
  Submit(jobs);
  Hello("v", 0);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  LetRepliesThrough();
  EXPECT_TRUE(grants_.empty());
  Beat("v", 10);
  // Of those that were promised to the first worker the ledger is asked before: something else may have started them.
  EXPECT_EQ(Granted(), IdsOf({jobs[2], jobs[3], jobs[0], jobs[1]}));
}

TEST_F(DispatcherBufferTest, WhatComesBackWhenTheLastWorkerIsGoneStaysBeforeTheOthers) {
  Hello("w", 2);
  HoldReplies();
  JobSpec expiring = Kept();
  expiring.options.deadline = clock_.WallNow() + 1h;
  std::vector<JobSpec> jobs = {Kept(), expiring, Kept(), Kept()};
  Submit(jobs);
  Handle(event::FromWorker{.peer = "w", .message = wire::Goodbye{.worker = workers_["w"]}});
  Settle();
  LetRepliesThrough();
  jobs.push_back(Kept());
  Submit({jobs.back()});
  const auto put = std::ranges::find_if(executed_.rbegin(), executed_.rend(),
                                        [](const QueueOp& op) { return std::holds_alternative<queue_op::Enqueue>(op); });
  ASSERT_NE(put, executed_.rend());
  const auto& last = std::get<queue_op::Enqueue>(*put);
  ASSERT_EQ(last.entries.size(), 1U) << "no worker: it goes to its line";
  const QueueOp claim = queue_op::Claim{.shard = ShardId{0}, .epoch = last.epoch, .line = last.entries.front().line, .max = 10};
  std::vector<JobId> order;
  const auto claimed = queue_.Execute(std::span{&claim, 1}).front();
  ASSERT_TRUE(claimed) << claimed.error().message;
  for (const QueueEntry& entry : claimed->claimed) order.push_back(entry.id);
  const std::vector<JobId> all = IdsOf(jobs);
  ASSERT_FALSE(order.empty());
  EXPECT_EQ(order, std::vector(all.end() - static_cast<std::ptrdiff_t>(order.size()), all.end()))
      << "what is not in the line waits before it";
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 5U);
}

TEST_F(DispatcherBufferTest, CreditThatWasPromisedComesBackWhenTheShardIsTakenAnew) {
  Hello("w", 5);
  hold_replies_ = true;
  Submit(Jobs(3));
  Submit(Jobs(4));
  queue_.Wipe();
  Submit(Jobs(1));  // is told so
  LetRepliesThrough();
  for (int second = 0; second < 3; ++second) {
    Advance(1s);
    Beat("w", 5);
  }
  grants_.clear();
  const std::vector<JobSpec> jobs = Jobs(7);
  Submit(jobs);
  Beat("w", 100);
  for (const JobId& id : IdsOf(jobs)) EXPECT_TRUE(std::ranges::count(Granted(), id) == 1);
}

TEST_F(DispatcherBufferTest, ThoseOfAPausedQueueMakeRoomAndKeepTheirOrder) {
  Pause(true);
  Hello("w", 1'000'000);
  std::vector<JobSpec> jobs;
  while (jobs.size() < kBufferedJobsMax / 2 + kPagedJobsMax) {
    const std::vector<JobSpec> batch = Jobs(512);
    Submit(batch);
    jobs.insert(jobs.end(), batch.begin(), batch.end());
  }
  ExpectDepth(0, jobs.size());
  const auto wait = [&](int seconds) {
    for (int second = 0; second < seconds; ++second) {
      Advance(1s);
      Beat("w", 1'000'000);
    }
  };
  wait(11);
  ExpectDepth(kPagedJobsMax, jobs.size() - kPagedJobsMax);
  wait(10);
  EXPECT_LT(queue_.Depth(ShardId{0})->in_flight, kBufferedJobsMax / 2) << "but not more than that: there is room";
  EXPECT_GE(queue_.Depth(ShardId{0})->in_flight, kBufferedJobsMax / 2 - kPagedJobsMax);
  jobs.push_back(Kept());
  Submit({jobs.back()});
  Pause(false);
  EXPECT_EQ(Granted(), IdsOf(jobs));
}

TEST_F(DispatcherBufferTest, ABrokerThatStopsPutsThemBack) {
  Hello("w", 1);
  const std::vector<JobSpec> jobs = Jobs(5);
  Submit(jobs);
  Handle(event::StopRequested{});
  Settle();
  ExpectDepth(4, 1);
  EXPECT_TRUE(dispatcher_.Idle());
  Submit({Kept()});
  ASSERT_NE(Last<wire::Problem>(), nullptr) << "no new ones";
}

TEST_F(DispatcherBufferTest, AShardThatIsHandedOverHasThemInItsLines) {
  Hello("w", 1);
  const std::vector<JobSpec> jobs = Jobs(5);
  Submit(jobs);
  hold_replies_ = true;
  const JobSpec last = Kept();
  Submit({last});  // its put is not answered when the shard has to go
  const auto& put = std::get<queue_op::Enqueue>(executed_.back());
  const std::string line = put.passed.front().line;
  const Epoch epoch = put.epoch;
  Handle(event::YieldShard{.hold = {.shard = ShardId{0}, .epoch = epoch}});
  Settle();
  ExpectDepth(5, 1);
  const QueueOp claim = queue_op::Claim{.shard = ShardId{0}, .epoch = epoch, .line = line, .max = 10};
  const auto claimed = queue_.Execute(std::span{&claim, 1}).front();
  ASSERT_TRUE(claimed) << claimed.error().message;
  std::vector<JobId> waiting;
  for (const QueueEntry& entry : claimed->claimed) waiting.push_back(entry.id);
  EXPECT_EQ(waiting, IdsOf({jobs[1], jobs[2], jobs[3], jobs[4], last}));
}

TEST_F(DispatcherBufferTest, WhoseRootNobodyReachesTheyEndLikeThoseInTheQueue) {
  reach_.roots = {"/here"};
  Hello("w", 0);
  JobSpec job = Kept();
  job.root = "/here";
  Submit({job});
  ExpectDepth(0, 1);
  reach_.roots = {"/elsewhere"};
  Hello("w", 0);
  for (int second = 0; second < 15; ++second) {
    Advance(1s);
    Beat("w", 0);
  }
  EXPECT_EQ(Outcome(job), JobState::kDead);
  ExpectDepth(0, 0);
}

TEST_F(DispatcherBufferTest, AQueueThatFailsStartsNoneAndTheyAreFoundByTheNextOwner) {
  Hello("w", 1);
  const std::vector<JobSpec> jobs = Jobs(3);
  Submit(jobs);
  ASSERT_EQ(grants_.size(), 1U);
  std::size_t found = 0;
  for (bool more = true; more;) {  // the next owner's takeover, page by page
    const std::vector<QueueOp> take{queue_op::Take{.shard = ShardId{0}, .epoch = Epoch{100}}};
    const QueueReply page = *queue_.Execute(take).front();
    const std::vector<QueueOp> back{queue_op::Requeue{.shard = ShardId{0}, .epoch = Epoch{100}, .entries = page.claimed}};
    ASSERT_TRUE(queue_.Execute(back).front());
    found += page.claimed.size();
    more = !page.claimed.empty();
  }
  EXPECT_EQ(found, 3U);
  Beat("w", 100);  // this owner does not know yet
  const std::size_t before = grants_.size();
  Submit(Jobs(kStartAheadMax + 1));
  EXPECT_EQ(grants_.size(), before) << "fenced";
  ASSERT_NE(Last<wire::Problem>(), nullptr);
}

// More of them than go back in one operation of the queue: the order is that of their submits all the same, of each line.
TEST_F(DispatcherBufferTest, ManyThatGoBackToTheirLinesKeepTheirOrder) {
  Hello("w", 0);
  std::vector<JobSpec> jobs;
  while (jobs.size() < 2 * kPagedJobsMax + 100) {
    std::vector<JobSpec> batch = Jobs(499);
    for (std::size_t i = 0; i < batch.size(); ++i) batch[i].options.limit_key = i % 5 == 0 ? "key" : "";
    Submit(batch);
    jobs.insert(jobs.end(), batch.begin(), batch.end());
  }
  ExpectDepth(0, jobs.size());
  Handle(event::StopRequested{});
  Settle();
  ExpectDepth(jobs.size(), 0);
  std::map<std::string, std::vector<JobId>> waiting;
  std::size_t operations = 0;
  for (const QueueOp& op : executed_) {
    const auto* back = std::get_if<queue_op::Requeue>(&op);
    if (back == nullptr) continue;
    ++operations;
    EXPECT_LE(back->entries.size(), kPagedJobsMax);
    for (const QueueEntry& entry : back->entries) waiting[entry.line];
  }
  EXPECT_EQ(operations, (jobs.size() + kPagedJobsMax - 1) / kPagedJobsMax);
  EXPECT_EQ(waiting.size(), 2U);
  const auto& put = std::get<queue_op::Enqueue>(
      *std::ranges::find_if(executed_, [](const QueueOp& op) { return std::holds_alternative<queue_op::Enqueue>(op); }));
  for (auto& [line, ids] : waiting) {
    const QueueOp claim = queue_op::Claim{.shard = ShardId{0}, .epoch = put.epoch, .line = line, .max = 10'000};
    const auto claimed = queue_.Execute(std::span{&claim, 1}).front();
    ASSERT_TRUE(claimed) << claimed.error().message;
    for (const QueueEntry& entry : claimed->claimed) ids.push_back(entry.id);
    std::vector<JobId> expected;
    for (const JobSpec& job : jobs)
      if (line.ends_with("key") == (job.options.limit_key == "key")) expected.push_back(job.id);
    EXPECT_EQ(ids, expected) << line;
  }
}

// What waits is kept as its entry: it has to come out as it went in.
TEST_F(DispatcherBufferTest, WhatHasWaitedStartsAsItWasSubmitted) {
  Hello("w", 0);
  JobSpec plain = Kept(), odd = Kept(0, OrgId{9});
  odd.payload.assign(3000, '\x7f');
  odd.timeout = Millis{1234};
  odd.options.limit_key = "a \"key\"";
  odd.options.no_retry = {"never"};
  odd.retry.max_attempts = 1;
  Submit({plain, odd});
  ExpectDepth(0, 2);
  Beat("w", 10);
  ASSERT_EQ(Granted(), IdsOf({odd, plain}));
  EXPECT_EQ(grants_[0].second.payload, odd.payload);
  EXPECT_EQ(grants_[0].second.timeout_ms, 1234U);
  EXPECT_EQ(grants_[1].second.payload, plain.payload);
  End(0, AttemptEnd::kFailed);
  EXPECT_EQ(Outcome(odd), JobState::kDead) << "it had one attempt";
  ExpectDepth(0, 1);
}

// The buffer itself, against a deque for each line.
TEST(ReadyBuffer, IsADequeForEachLine) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(seed);
    SeededRandom random(seed);
    FakeClock clock;
    IdGenerator ids(clock, random);
    ReadyBuffer buffer;
    std::array<ReadyBuffer::List, 6> lists;
    std::array<std::deque<JobId>, 6> model;
    const auto ids_of = [](const std::vector<ReadyBuffer::Job>& jobs) {
      std::vector<JobId> out;
      for (const auto& waiting : jobs) out.push_back(waiting.id);
      return out;
    };
    for (int step = 0; step < 400; ++step) {
      const std::size_t at = random.Next() % lists.size();
      ReadyBuffer::List& list = lists.at(at);
      std::deque<JobId>& line = model.at(at);
      switch (random.Next() % 4) {
        case 0:
        case 1: {
          const JobId id = ids.Next<JobId>();
          const bool front = random.Next() % 4 == 0;
          front ? line.push_front(id) : line.push_back(id);
          ReadyBuffer::Job job{.id = id, .content = "entry", .put = 1, .since = MonoTime{1s}};
          if (random.Next() % 2 == 0) {
            auto spec = std::make_shared<JobSpec>();
            spec->id = id;
            spec->payload = "12345";
            job.content = std::shared_ptr<const JobSpec>(std::move(spec));
          }
          buffer.Push(list, std::move(job), front);
          break;
        }
        case 2: {
          const std::size_t most = random.Next() % 4;
          const auto n = static_cast<std::ptrdiff_t>(std::min(most, line.size()));
          const bool back = random.Next() % 2 == 0;
          const auto from = back ? line.end() - n : line.begin();
          const std::vector<JobId> expected(from, from + n);
          line.erase(from, from + n);
          EXPECT_EQ(ids_of(back ? buffer.TakeLast(list, most) : buffer.TakeFirst(list, most)), expected);
          break;
        }
        default: {
          if (line.empty()) break;
          const JobId gone = line[random.Next() % line.size()];
          std::erase(line, gone);
          const auto wanted = [&](const ReadyBuffer::Job& job) { return job.id == gone; };
          EXPECT_EQ(ids_of(buffer.TakeIf(list, wanted)), std::vector{gone});
          EXPECT_TRUE(buffer.TakeIf(list, wanted).empty());
        }
      }
      std::size_t all = 0;
      for (std::size_t i = 0; i < lists.size(); ++i) {
        EXPECT_EQ(lists.at(i).count(), model.at(i).size());
        all += model.at(i).size();
        EXPECT_EQ(buffer.WaitsSince(lists.at(i), MonoTime{2s}), !model.at(i).empty());
        EXPECT_FALSE(buffer.WaitsSince(lists.at(i), MonoTime{1s}));
      }
      EXPECT_EQ(buffer.size(), all);
      EXPECT_EQ(buffer.bytes(), 5 * all);
    }
  }
}

}  // namespace
}  // namespace millrace
