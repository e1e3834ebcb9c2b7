// Which durability class a job has that does not say one: its queue's, whatever is set, repeated and taken over in between.
#include <algorithm>
#include <set>

#include "tests/support/durability_fixture.h"

namespace millrace {
namespace {

class DispatcherClassTest : public testing::DurabilityTest {
 protected:
  // A job that leaves its class to its queue.
  JobSpec Unsaid() {
    JobSpec job = Job();
    job.options = {};
    return job;
  }
  void SetClass(Durability durability, const std::string& queue = "default") {
    wire::SetQueue set{.request = ++request_, .settings = {}, .actor = "t"};
    set.settings = ledger_.queues[{kDefaultOrg, queue}];
    set.settings.queue = queue;
    set.settings.durability = durability;
    Handle(event::FromClient{.peer = "c", .message = std::move(set)});
    Settle();
    ASSERT_NE(Last<wire::SetQueueReply>(), nullptr);
  }
  // What a ledger that was not told of the job by an attempt knows of it.
  bool Accepted(const JobSpec& job) const { return ledger_.jobs.contains(job.id); }
};

TEST_F(DispatcherClassTest, AJobThatDoesNotSayIsOfItsQueuesClass) {
  SetClass(Durability::kRedis);
  JobSpec taken = Unsaid(), said = Unsaid(), elsewhere = Unsaid(), unique = Unsaid();
  said.options.durability = Durability::kLedger;
  elsewhere.queue = "other";
  unique.options.unique_key = "k";
  Submit({taken, said, elsewhere, unique});
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_FALSE(Accepted(taken)) << "only the queue has it";
  EXPECT_TRUE(Accepted(said));
  EXPECT_TRUE(Accepted(elsewhere)) << "the setting is of one queue";
  EXPECT_TRUE(Accepted(unique)) << "its key is decided in the ledger";
  EXPECT_EQ(ledger_.jobs.at(said.id).spec.options, JobOptions{}) << "a row says nothing of it, as ever";
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "p";
  run.overlap = "allow";
  JobSpec stage = Unsaid();
  stage.run = run.id;
  stage.stage = "a";
  Handle(event::FromClient{.peer = "c", .message = wire::SubmitRun{.request = 9, .run = run, .jobs = {stage}, .watch = false}});
  Settle();
  EXPECT_TRUE(Accepted(stage)) << "jobs of a run are the ledger's";
  SetClass(Durability::kLedger);
  clock_.Advance(1ms);
  JobSpec later = Unsaid();
  const JobSpec fast = Job();
  Submit({later, fast});
  EXPECT_TRUE(Accepted(later));
  EXPECT_FALSE(Accepted(fast)) << "it says redis";
  Hello(10);
  EXPECT_EQ(grants_.size(), 7U);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  EXPECT_TRUE(Succeeded(taken) && Succeeded(fast) && Succeeded(later));
}

TEST_F(DispatcherClassTest, AJobOfItsQueuesClassThatFailedIsShownWithIt) {
  SetClass(Durability::kRedis);
  const JobSpec job = Unsaid();
  Submit({job});
  Hello(1);
  End(0, AttemptEnd::kFailed);
  EXPECT_EQ(ledger_.jobs.at(job.id).spec.options.durability, Durability::kRedis);
}

TEST_F(DispatcherClassTest, ARepeatedSubmitHasTheClassOfTheFirstOne) {
  const JobSpec first = Unsaid();
  Submit({first});
  clock_.Advance(1ms);
  SetClass(Durability::kRedis);
  Submit({first});
  clock_.Advance(1ms);
  const JobSpec second = Unsaid();
  Submit({second});
  SetClass(Durability::kLedger);
  for (const Micros wait : {Micros{0}, Micros{5s}, Micros{60s}}) {
    Advance(wait);
    Submit({second});
    EXPECT_FALSE(Accepted(second));
  }
  Hello(10);
  EXPECT_EQ(grants_.size(), 2U);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  Submit({first, second});
  Advance(1s);
  EXPECT_EQ(grants_.size(), 2U) << "they have ended";
  EXPECT_TRUE(Succeeded(first) && Succeeded(second));
}

// Clocks of brokers are minutes apart, and step.
TEST_F(DispatcherClassTest, ARepeatedSubmitOfAnIdThatIsAheadRunsOnce) {
  for (const bool takeover : {false, true})
    for (const bool changed : {false, true}) {
      SetClass(Durability::kRedis);
      clock_.Advance(60s);
      const JobSpec job = Unsaid();
      Submit({job});
      EXPECT_FALSE(Accepted(job));
      if (changed) SetClass(Durability::kLedger);
      clock_.StepWall(-60s);
      if (takeover) Restart();
      if (!takeover) Advance(13s);
      Submit({job});
      EXPECT_FALSE(Accepted(job)) << takeover << changed;
    }
  Hello(10);
  EXPECT_EQ(grants_.size(), 4U);
}

// A setting that was written past the broker counts from when it reads it; what is stored is older.
TEST_F(DispatcherClassTest, AJobThatWasTakenBeforeTheBrokerKnewOfTheChangeRunsOnce) {
  SetClass(Durability::kRedis);
  QueueSettings next = ledger_.queues[{kDefaultOrg, "default"}];
  next.durability = Durability::kLedger;
  ASSERT_TRUE(ledger_.PutQueueSettings(next, "x", {}));
  clock_.Advance(1500ms);
  const JobSpec job = Unsaid();
  Submit({job});
  EXPECT_FALSE(Accepted(job)) << "not read yet";
  Restart();
  Submit({job});
  Hello(10);
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_FALSE(Accepted(job));
  clock_.Advance(5s);
  const JobSpec fresh = Unsaid();
  Submit({fresh});
  EXPECT_TRUE(Accepted(fresh)) << "nobody can have been asked for this one";
}

TEST_F(DispatcherClassTest, SomeTimeAfterTheChangeEveryJobIsOfTheNewClass) {
  SetClass(Durability::kRedis);
  SetClass(Durability::kLedger);
  JobSpec doubtful = Unsaid();
  clock_.Advance(kClassChangeDoubt);
  Submit({doubtful});
  EXPECT_FALSE(Accepted(doubtful)) << "made when brokers may still have known the former class";
  clock_.Advance(1ms);
  const JobSpec old = Unsaid();
  clock_.Advance(60s);
  Submit({old});
  EXPECT_TRUE(Accepted(old)) << "it was kept for a minute, but is of a time when it was ledger class for sure";
}

// Classes are set, jobs submitted, repeated, run and taken over in any order: each runs to its end once.
TEST_F(DispatcherClassTest, WhateverIsSetMeanwhileAJobRunsOnce) {
  SeededRandom random(11);
  std::vector<JobSpec> jobs;
  std::set<JobId> ended;
  std::size_t seen = 0;
  std::uint64_t credit = 0;
  const auto run = [&](std::uint64_t more) {  // few enough that jobs wait
    credit += more;
    Hello(credit);
    for (; seen < grants_.size(); ++seen) {
      EXPECT_TRUE(ended.insert(grants_[seen].id).second) << "it ran twice";
      End(seen, AttemptEnd::kSucceeded, true, credit);
    }
  };
  for (int step = 0; step < 3000; ++step) {
    clock_.Advance(Micros{static_cast<std::int64_t>(random.Below(4) == 0 ? random.Below(4'000'000) : random.Below(2'000))});
    const std::uint64_t what = random.Below(100);
    if (what < 25) {
      SetClass(what < 12 ? Durability::kRedis : Durability::kLedger);
    } else if (what < 55) {
      jobs.push_back(Unsaid());
      Submit({jobs.back()});
    } else if (what < 80 && !jobs.empty()) {
      Submit({jobs[jobs.size() - 1 - random.Below(std::min<std::size_t>(jobs.size(), 20))]});
    } else if (what < 97) {
      run(1 + random.Below(3));
    } else {
      Restart();
      seen = 0;
      credit = 0;
    }
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
  for (int i = 0; i < 60; ++i, Advance(1s)) run(100);  // what a broker before left running starts again after a while
  EXPECT_EQ(ended.size(), jobs.size()) << "all were accepted";
}

}  // namespace
}  // namespace millrace
