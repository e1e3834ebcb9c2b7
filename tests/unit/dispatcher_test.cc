// The dispatcher's flows, one step at a time, against a queue and a ledger in memory.
#include "broker/dispatcher.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "broker/entry_codec.h"
#include "common/model/stage_task.h"
#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

using testing::DispatcherTest;

TEST_F(DispatcherTest, AJobGoesFromSubmitToOutcome) {
  Hello("w", 10);
  const JobSpec job = Job();
  const std::size_t before = queue_ops_;
  Submit({job});
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_FALSE(Last<wire::SubmitReply>()->accepted.at(0).duplicate);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(queue_ops_ - before, 1U) << "straight into flight, nothing else";
  EXPECT_EQ(grants_[0].second.delivery, 1U);
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(job), JobState::kSucceeded);
  ASSERT_EQ(replies_.size(), 1U);
  EXPECT_TRUE(replies_[0].accepted);
  EXPECT_EQ(dispatcher_.leases(), 0U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  EXPECT_TRUE(dispatcher_.Idle());
}

TEST_F(DispatcherTest, NothingIsAcceptedOrEnqueuedBeforeTheLedgerHasIt) {
  Hello("w", 10);
  ledger_.fault = [] { return test::LedgerFault::kUnavailable; };
  Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = 1, .jobs = {Job()}}});
  Flush();
  std::vector<Event> events;
  pump_.Step(events);
  EXPECT_TRUE(events.empty());
  Flush();
  EXPECT_EQ(Last<wire::SubmitReply>(), nullptr);
  EXPECT_TRUE(grants_.empty());
  ledger_.fault = nullptr;
  Advance(1s);
  EXPECT_NE(Last<wire::SubmitReply>(), nullptr);
  EXPECT_EQ(grants_.size(), 1U);
}

TEST_F(DispatcherTest, ACommandSpeaksForItsJobsOrgWhateverItsPayloadSays) {
  Hello("w", 100);
  const auto command = [&](OrgId org, OrgId said, Durability durability) {
    JobSpec job = Job();
    job.org = org;
    job.kind = kJobKindCommand;
    job.options.durability = durability;
    CommandTask task{.pipeline = "p", .stage = "s", .run = {}, .job = job.id, .command = {}, .base_dir = "/", .org = said};
    task.command.argv = {"true"};
    job.payload = ToJson(task);
    return job;
  };
  for (const Durability durability : {Durability::kLedger, Durability::kRedis})
    for (const auto& [org, said] : {std::pair{7, 1}, {7, 8}, {7, 7}, {1, 8}, {1, 1}}) {
      const JobSpec job = command(OrgId{org}, OrgId{said}, durability);
      Submit({job});
      ASSERT_EQ(grants_.back().second.id, job.id);
      EXPECT_EQ(CommandTaskFromJson(grants_.back().second.payload)->org, OrgId{org}) << "said " << said;
      End(grants_.size() - 1, AttemptEnd::kSucceeded);
    }
  wire::SubmitRun submit{.request = 1, .run = {}, .jobs = {command(OrgId{7}, OrgId{1}, Durability::kLedger)}, .watch = false};
  submit.run.id = ids_.Next<RunId>();
  submit.run.org = OrgId{7};
  submit.run.pipeline = "p";
  submit.jobs.front().run = submit.run.id;
  Handle(event::FromClient{.peer = "c", .message = submit});
  Settle();
  EXPECT_EQ(CommandTaskFromJson(grants_.back().second.payload)->org, OrgId{7}) << "of a run";
  JobSpec broken = command(OrgId{7}, OrgId{1}, Durability::kLedger);
  broken.payload = "{";
  Submit({broken});
  EXPECT_EQ(grants_.back().second.payload, "{") << "its worker says what is wrong with it";
  JobSpec full = command(OrgId{7}, OrgId{1}, Durability::kLedger);
  full.payload.insert(full.payload.find("true"), std::string(kPayloadBytesMax - full.payload.size(), 'x'));
  Submit({full});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_TRUE(Last<wire::Problem>()->message.contains("jobs[0]: payload: 1048584 bytes with the job's org 7 in it"))
      << Last<wire::Problem>()->message;
}

// Its datasets, schemas and receipts are named after the org that the task says.
TEST_F(DispatcherTest, AStageOfAnotherOrgThanItsJobsIsRefused) {
  Hello("w", 100);
  const auto stage = [&](OrgId org, OrgId said, Durability durability) {
    JobSpec job = Job();
    job.org = org;
    job.kind = kJobKindStage;
    job.options.durability = durability;
    StageTask task;
    task.org = said;
    task.job = job.id;
    task.effect = fmt::format("{}/p/s/file/r/-#0", said.value());
    task.stage.name = "s";
    task.stage.work = LoadSpec{.from = "e", .to = "file", .table = {}, .path = "out.csv", .key = {}};
    job.payload = ToJson(task);
    return job;
  };
  const auto refusal = [&](OrgId org, OrgId said) {
    return fmt::format("payload: is a stage of org {}, in a job of org {}", said.value(), org.value());
  };
  for (const Durability durability : {Durability::kLedger, Durability::kRedis})
    for (const auto& [org, said] : {std::pair{7, 1}, {7, 8}, {7, 7}, {1, 8}, {1, 1}}) {
      const JobSpec job = stage(OrgId{org}, OrgId{said}, durability);
      const std::size_t granted = grants_.size();
      client_.clear();
      Submit({job});
      const auto* problem = Last<wire::Problem>();
      EXPECT_EQ(problem == nullptr, org == said) << org << " said " << said;
      EXPECT_EQ(grants_.size() - granted, org == said ? 1U : 0U);
      if (problem != nullptr) {
        EXPECT_EQ(problem->code, "invalid_argument");
        EXPECT_EQ(problem->message, "jobs[0]: " + refusal(OrgId{org}, OrgId{said}));
      } else {
        End(grants_.size() - 1, AttemptEnd::kSucceeded);
      }
    }
  client_.clear();
  wire::SubmitRun submit{.request = 1, .run = {}, .jobs = {stage(OrgId{7}, OrgId{1}, Durability::kLedger)}, .watch = false};
  submit.run.id = ids_.Next<RunId>();
  submit.run.org = OrgId{7};
  submit.run.pipeline = "p";
  submit.jobs.front().run = submit.run.id;
  Handle(event::FromClient{.peer = "c", .message = submit});
  Settle();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->message, refusal(OrgId{7}, OrgId{1}));
  JobSpec broken = stage(OrgId{7}, OrgId{1}, Durability::kLedger);
  broken.payload = "{";
  Submit({broken});
  EXPECT_EQ(grants_.back().second.payload, "{") << "its worker says what is wrong with it";
}

// The fence and the receipt of a sink are found by it alone, whosever they are.
TEST_F(DispatcherTest, AStageWithAnEffectThatIsNotItsOrgsIsRefused) {
  Hello("w", 100);
  const auto stage = [&](const std::string& effect, const std::string& said) {
    JobSpec job = Job();
    job.org = OrgId{7};
    job.kind = kJobKindStage;
    job.effect = said;
    StageTask task;
    task.org = job.org;
    task.job = job.id;
    task.effect = effect;
    task.stage.name = "s";
    task.stage.work = LoadSpec{.from = "e", .to = "file", .table = {}, .path = "out.csv", .key = {}};
    job.payload = ToJson(task);
    return job;
  };
  const std::string mine = EffectKey(OrgId{7}, "p", "s", "file", "r", "-", 0);
  const std::string longest = "7/" + std::string(8190, 'x');
  for (const std::string& good : {mine, longest}) {
    const std::size_t granted = grants_.size();
    Submit({stage(good, good), stage(good, "")});
    EXPECT_EQ(grants_.size(), granted + 2) << good;
  }
  for (const std::string bad : {"1/p/s/file/r/-#0", "70/p/s/file/r/-#0", "7", "", "e", " 7/p", "77"}) {
    client_.clear();
    Submit({stage(mine, mine), stage(bad, mine)});
    ASSERT_NE(Last<wire::Problem>(), nullptr) << bad;
    EXPECT_EQ(Last<wire::Problem>()->code, "invalid_argument");
    EXPECT_EQ(Last<wire::Problem>()->message,
              "jobs[1]: payload: effect: '" + bad + "' is not of org 7; give a key that begins with '7/'");
    if (bad.empty()) continue;
    client_.clear();
    Submit({stage(mine, bad)});
    ASSERT_NE(Last<wire::Problem>(), nullptr) << bad;
    EXPECT_EQ(Last<wire::Problem>()->message,
              "jobs[0]: effect: '" + bad + "' is not of org 7; give a key that begins with '7/'");
  }
}

TEST_F(DispatcherTest, PrioritiesAreStrict) {
  const JobSpec low = Job(3), high = Job(0), middle = Job(1);
  Submit({low, high, middle});
  Hello("w", 2);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[0].second.id, high.id);
  EXPECT_EQ(grants_[1].second.id, middle.id);
}

TEST_F(DispatcherTest, OrgsTakeTurns) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 10; ++i) jobs.push_back(Job());
  for (int i = 0; i < 2; ++i) jobs.push_back(Job()), jobs.back().org = OrgId{2};
  Submit(jobs);
  Hello("w", 4);
  ASSERT_EQ(grants_.size(), 4U);
  EXPECT_EQ(std::ranges::count_if(grants_, [&](const auto& g) { return ledger_.jobs.at(g.second.id).spec.org == OrgId{2}; }),
            2);
}

TEST_F(DispatcherTest, CreditIsNeverExceeded) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 20; ++i) jobs.push_back(Job());
  Submit(jobs);
  Hello("w", 3);
  EXPECT_EQ(grants_.size(), 3U);
  End(0, AttemptEnd::kSucceeded, true, 5);
  EXPECT_EQ(grants_.size(), 5U);
  Beat("w", 5, {});
  EXPECT_EQ(grants_.size(), 5U);
}

TEST_F(DispatcherTest, FewJobsSpreadOverWorkers) {
  Hello("a", 10);
  Hello("b", 10);
  std::vector<JobSpec> jobs{Job(), Job(), Job(), Job()};
  Submit(jobs);
  EXPECT_EQ(std::ranges::count_if(grants_, [](const auto& g) { return g.first == "a"; }), 2);
}

TEST_F(DispatcherTest, AWorkerGetsOnlyWhatItCanServe) {
  reach_ = {.queues = {"gpu"}, .kinds = {"work"}, .roots = {"/data"}};
  JobSpec queue = Job(), root = Job(), kind = Job(), good = Job();
  queue.queue = "default";
  root.queue = kind.queue = good.queue = "gpu";
  root.root = "/database";
  kind.kind = "other";
  good.root = "/data/in";
  Submit({queue, root, kind, good});
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].second.id, good.id);
}

TEST_F(DispatcherTest, AFailureWaitsForItsBackoffAndThenGoesDead) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kFailed);
  EXPECT_EQ(grants_.size(), 1U);
  ASSERT_TRUE(dispatcher_.NextDue());
  EXPECT_GT(*dispatcher_.NextDue(), clock_.WallNow());
  Advance(1000ms);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_GT(grants_[1].second.token, grants_[0].second.token);
  EXPECT_EQ(grants_[1].second.delivery, 2U);
  End(1, AttemptEnd::kFailed);
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(job.id).attempts.size(), 1U);
}

TEST_F(DispatcherTest, AHandBackStartsElsewhereAtOnceAndIsNoFailure) {
  Hello("w", 10);
  const JobSpec job = Job();
  Submit({job});
  End(0, AttemptEnd::kHandedBack);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(ledger_.jobs.at(job.id).attempts.at(0).counters, (Counters{.deliveries = 1, .failures = 0, .crashes = 0}));
}

TEST_F(DispatcherTest, CrashesCount) {
  Hello("w", 10);
  JobSpec job = Job();
  job.retry.max_attempts = 50;
  Submit({job});
  for (std::size_t i = 0; i < kCrashesMax; ++i) {
    End(i, AttemptEnd::kCrashed);
    Advance(1s);
    Beat("w", 100);
  }
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(ledger_.jobs.at(job.id).outcome->counters.crashes, 3U);
}

TEST_F(DispatcherTest, ASilentWorkerLosesItsLeasesAndItsLateReportIsRefused) {
  Hello("a", 1);
  const JobSpec job = Job();
  Submit({job});
  Advance(1s);
  Hello("b", 1);
  Advance(1900ms);
  Beat("b", 1);
  EXPECT_EQ(grants_.size(), 1U) << "2.9 s: the lease lives";
  Advance(200ms);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[1].first, "b");
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(replies_.size(), 1U);
  EXPECT_FALSE(replies_[0].accepted);
  EXPECT_EQ(replies_[0].reason, "stale_token");
  EXPECT_FALSE(Outcome(job));
  Beat("a", 1, {{.job = job.id, .token = grants_[0].second.token}});
  EXPECT_FALSE(known_);
  Hello("a", 1, {{.job = job.id, .token = grants_[0].second.token}});
  ASSERT_EQ(revokes_.size(), 1U);
  EXPECT_EQ(revokes_[0].token, grants_[0].second.token);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(job), JobState::kSucceeded);
}

TEST_F(DispatcherTest, AGrantThatNoBeatListsTwiceIsGivenAgain) {
  Hello("w", 1);
  const JobSpec job = Job();
  Submit({job});
  clock_.Advance(1s);
  Beat("w", 1);
  EXPECT_EQ(grants_.size(), 1U);
  clock_.Advance(1s);
  Beat("w", 1);
  ASSERT_EQ(grants_.size(), 2U) << "and its credit is free again";
  clock_.Advance(1s);
  Beat("w", 1, {{.job = job.id, .token = grants_[1].second.token}});
  EXPECT_TRUE(revokes_.empty());
  EXPECT_EQ(dispatcher_.leases(), 1U);
}

TEST_F(DispatcherTest, ARepeatedReportIsAnsweredTheSame) {
  Hello("w", 10);
  Submit({Job()});
  End(0, AttemptEnd::kSucceeded);
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(replies_.size(), 2U);
  EXPECT_TRUE(replies_[1].accepted);
}

TEST_F(DispatcherTest, ARepeatedSubmitRunsOnce) {
  Hello("w", 10);
  const JobSpec job = Job();
  for (int i = 0; i < 2; ++i)  // both before the ledger answers
    Handle(event::FromClient{.peer = "c", .message = wire::SubmitJobs{.request = 1, .jobs = {job}}});
  Settle();
  Submit({job});
  EXPECT_TRUE(Last<wire::SubmitReply>()->accepted.at(0).duplicate);
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_EQ(std::ranges::count_if(client_, [](const auto& m) { return std::holds_alternative<wire::SubmitReply>(m); }), 3);
}

TEST_F(DispatcherTest, FanOutAndFanInFollowTheOutcomes) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Job(), Job(), Job(), Job()};
  jobs[1].depends_on = jobs[2].depends_on = {jobs[0].id};
  jobs[3].depends_on = {jobs[1].id, jobs[2].id};
  const RunSpec run = SubmitRun(jobs, "queue", true);
  ASSERT_EQ(grants_.size(), 1U);
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 3U);
  End(1, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 3U);
  End(2, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 4U);
  EXPECT_FALSE(ledger_.run_outcomes.contains(run.id));
  End(3, AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kSucceeded);
  EXPECT_EQ(Last<wire::RunUpdate>()->state, RunState::kSucceeded);
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

TEST_F(DispatcherTest, AFailedStageSkipsWhatDependsOnIt) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Job(), Job(), Job(), Job()};
  jobs[0].stage = "a";
  jobs[1].depends_on = {jobs[0].id};
  jobs[2].depends_on = {jobs[1].id};
  const RunSpec run = SubmitRun(jobs);
  ASSERT_EQ(grants_.size(), 2U);
  const std::size_t first = grants_[0].second.id == jobs[0].id ? 0 : 1;
  End(first, AttemptEnd::kFailed, false);
  EXPECT_EQ(Outcome(jobs[0]), JobState::kDead);
  EXPECT_EQ(Outcome(jobs[1]), JobState::kSkipped);
  EXPECT_EQ(Outcome(jobs[2]), JobState::kSkipped);
  EXPECT_FALSE(ledger_.run_outcomes.contains(run.id)) << "an independent stage still runs";
  End(1 - first, AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kFailed);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).reason, "stage 'a' is dead: broke");
}

TEST_F(DispatcherTest, OverlapQueueSkipAndAllow) {
  Hello("w", 100);
  std::vector<JobSpec> first{Job()}, queued{Job()}, skipped{Job()}, allowed{Job()};
  SubmitRun(first);
  SubmitRun(queued);
  const RunSpec skip = SubmitRun(skipped, "skip");
  SubmitRun(allowed, "allow");
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(ledger_.run_outcomes.at(skip.id).state, RunState::kSkipped);
  EXPECT_EQ(Outcome(skipped[0]), JobState::kSkipped);
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 3U) << "the allowed run came after it";
  EXPECT_EQ(grants_[2].second.id, queued[0].id);
}

TEST_F(DispatcherTest, ACircleOrForeignJobIsRefused) {
  std::vector<JobSpec> jobs{Job(), Job()};
  jobs[0].depends_on = {jobs[1].id};
  jobs[1].depends_on = {jobs[0].id};
  SubmitRun(jobs);
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "invalid_argument");
  EXPECT_TRUE(ledger_.runs.empty());
}

TEST_F(DispatcherTest, AWipedQueueIsRebuiltAndRunningAttemptsAreRevoked) {
  Hello("w", 1);
  std::vector<JobSpec> jobs{Job(), Job()};
  Submit(jobs);
  ASSERT_EQ(grants_.size(), 1U);
  queue_.Wipe();
  Submit({Job()});
  Advance(200ms);
  ASSERT_EQ(revokes_.size(), 1U);
  EXPECT_TRUE(dispatcher_.Ready(ShardId{0}));
  EXPECT_EQ(ledger_.EpochOf(ShardId{0}), Epoch{2});
  Hello("x", 10);
  ASSERT_EQ(grants_.size(), 4U);
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(grants_[i].second.token.epoch(), Epoch{2});
    End(i, AttemptEnd::kSucceeded);
  }
  for (const auto& [id, rows] : ledger_.jobs) EXPECT_TRUE(rows.outcome);
}

TEST_F(DispatcherTest, TheOutboxIsTakenOnceHoweverOftenItRings) {
  Hello("w", 10);
  const JobSpec job = Job();
  ASSERT_TRUE(ledger_.SubmitJobs(std::span{&job, 1}, clock_.Now()));
  for (int i = 0; i < 3; ++i) Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_TRUE(ledger_.outbox_jobs.empty());
  const JobSpec silent = Job();
  ASSERT_TRUE(ledger_.SubmitJobs(std::span{&silent, 1}, clock_.Now()));
  Advance(kOutboxPollInterval + 1ms);
  EXPECT_EQ(grants_.size(), 2U) << "without a ring";
}

TEST_F(DispatcherTest, AClaimThatGivesLessThanAskedForLeavesNothingBehind) {
  queue_.claim_max = 3;  // as the real queues do when bodies are large
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 20; ++i) jobs.push_back(Job());
  Submit(jobs);
  Hello("w", 100);
  EXPECT_EQ(grants_.size(), 20U);
}

TEST_F(DispatcherTest, AWorkerThatWasLostWhileAClaimWasUnderWayGetsItsWholeCreditAgain) {
  Hello("w", 10);
  hold_replies_ = true;
  Submit({Job(), Job()});
  Advance(kLeaseTtl);
  ASSERT_EQ(dispatcher_.workers(), 0U);
  Hello("w", 10);
  Submit({Job(), Job(), Job()});
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  Settle();
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 20; ++i) jobs.push_back(Job());
  Submit(jobs);
  EXPECT_EQ(grants_.size(), 10U);
}

TEST_F(DispatcherTest, WhatARebuildFoundIsNotTakenFromALongOutboxAgain) {
  Hello("w", 100);
  ledger_.outbox_page_max = 2;
  std::vector<JobSpec> singles{Job(), Job(), Job()};
  std::vector<JobSpec> of_run{Job()};
  RunSpec run;
  run.id = ids_.Next<RunId>();
  of_run[0].run = run.id;
  ASSERT_TRUE(ledger_.SubmitJobs(singles, {}));
  ASSERT_TRUE(ledger_.SubmitRun(run, of_run, {}));
  queue_.Wipe();  // the shard is taken anew: its rebuild finds all of them before the outbox is read
  Submit({Job()});
  Advance(1s);
  for (std::size_t i = 0; i < grants_.size(); ++i) End(i, AttemptEnd::kSucceeded);
  for (int i = 0; i < 5; ++i) {
    Advance(2s);
    Beat("w", 100);
  }
  std::map<JobId, int> granted;
  for (const auto& [peer, job] : grants_) ++granted[job.id];
  for (const JobSpec& job : singles) EXPECT_EQ(granted[job.id], 1);
  EXPECT_EQ(granted[of_run[0].id], 1);
  EXPECT_TRUE(ledger_.outbox_jobs.empty() && ledger_.outbox_runs.empty());
  EXPECT_TRUE(ledger_.run_outcomes.contains(run.id));
}

TEST_F(DispatcherTest, AnInputThatNoWorkerReachesIsRefused) {
  JobSpec job = Job();
  job.root = "/data/in";
  Submit({job});  // no worker: nothing is known, it waits
  ASSERT_NE(Last<wire::SubmitReply>(), nullptr);
  reach_.roots = {"/lake", "/data"};
  Hello("near", 10);
  ASSERT_EQ(grants_.size(), 1U);
  Advance(1s);
  Beat("near", 10, {{.job = job.id, .token = grants_[0].second.token}});
  Advance(2s);
  Beat("near", 10, {{.job = job.id, .token = grants_[0].second.token}});
  JobSpec far = Job();
  far.root = "/database";
  Submit({far});
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "unreachable_input");
  EXPECT_NE(Last<wire::Problem>()->message.find("'/database': 'near' reaches /lake /data"), std::string::npos)
      << Last<wire::Problem>()->message;
  EXPECT_FALSE(ledger_.jobs.contains(far.id));
  std::vector<JobSpec> jobs{Job(), Job()};
  jobs[1].root = "/elsewhere";
  jobs[1].stage = "orders";
  client_.clear();
  SubmitRun(jobs);
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_NE(Last<wire::Problem>()->message.find("stage 'orders': no connected worker reaches '/elsewhere'"), std::string::npos);
}

TEST_F(DispatcherTest, AfterAStartTheRequestWaitsForTheOtherWorkers) {
  reach_.roots = {"/a"};
  Hello("a", 10);
  JobSpec job = Job();
  job.root = "/b";
  Submit({job});
  EXPECT_TRUE(client_.empty());
  reach_.roots = {"/b"};
  Hello("b", 10);
  Advance(200ms);
  EXPECT_NE(Last<wire::SubmitReply>(), nullptr);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].first, "b");
  client_.clear();
  JobSpec never = Job();
  never.root = "/c";
  Submit({never});
  EXPECT_TRUE(client_.empty());
  for (int i = 0; i < 4; ++i) {
    Advance(1s);
    Beat("a", 10);
    Beat("b", 10, {{.job = job.id, .token = grants_[0].second.token}});
  }
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "unreachable_input");
}

TEST_F(DispatcherTest, WhatComesThroughTheOutboxAndReachesNobodyGoesDead) {
  reach_.roots = {"/a"};
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "p";
  std::vector<JobSpec> jobs{Job(), Job(), Job()};
  for (JobSpec& job : jobs) job.run = run.id;
  jobs[0].stage = "orders";
  jobs[0].root = "/b";
  jobs[1].depends_on = {jobs[0].id};
  jobs[2].root = "/a/x";
  JobSpec single = Job();
  single.root = "/b";
  ASSERT_TRUE(ledger_.SubmitRun(run, jobs, {}));
  ASSERT_TRUE(ledger_.SubmitJobs(std::span{&single, 1}, {}));
  Advance(60s);  // no worker at all: they wait
  EXPECT_FALSE(Outcome(jobs[0]));
  Hello("a", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].second.id, jobs[2].id);
  End(0, AttemptEnd::kSucceeded);
  for (int i = 0; i < 9; ++i) {
    Advance(1s);
    Beat("a", 10);
  }
  EXPECT_FALSE(Outcome(jobs[0]));
  for (int i = 0; i < 3; ++i) {
    Advance(1s);
    Beat("a", 10);
  }
  EXPECT_EQ(Outcome(jobs[0]), JobState::kDead);
  EXPECT_EQ(Outcome(jobs[1]), JobState::kSkipped);
  EXPECT_EQ(Outcome(single), JobState::kDead);
  const AttemptReport& report = ledger_.jobs.at(jobs[0].id).outcome->report;
  EXPECT_EQ(report.error_class, "unreachable_input");
  EXPECT_EQ(report.error, "no connected worker reaches '/b': 'a' reaches /a");
  EXPECT_EQ(report.token, Token{});
  ASSERT_TRUE(ledger_.run_outcomes.contains(run.id));
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kFailed);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).reason, "stage 'orders' is dead: no connected worker reaches '/b': 'a' reaches /a");
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 0U);
  EXPECT_TRUE(dispatcher_.Idle());
}

TEST_F(DispatcherTest, AWorkerThatComesInTimeSavesThem) {
  JobSpec job = Job();
  job.root = "/b";
  Submit({job});
  reach_.roots = {"/a"};
  Hello("a", 10);
  for (int i = 0; i < 8; ++i) {
    Advance(1s);
    Beat("a", 10);
  }
  reach_.roots = {"/b"};
  Hello("b", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_FALSE(Outcome(job));
}

TEST_F(DispatcherTest, AQueueThatNobodyServesOnlyWaits) {
  JobSpec job = Job();
  job.queue = "gpu";
  Submit({job});
  reach_.queues = {"default"};
  Hello("a", 10);
  for (int i = 0; i < 60; ++i) {
    Advance(1s);
    Beat("a", 10);
  }
  EXPECT_FALSE(Outcome(job));
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 1U);
}

TEST_F(DispatcherTest, ALargeUpdateComesInPartsAndOnlyTheLastSaysThatTheRunEnded) {
  constexpr std::size_t kStages = 300;
  std::vector<JobSpec> jobs;
  for (std::size_t i = 0; i < kStages; ++i) jobs.push_back(Job()), jobs.back().stage = std::to_string(i);
  Hello("w", 1000);
  const RunSpec run = SubmitRun(jobs, "queue", true);
  ASSERT_EQ(grants_.size(), kStages);
  client_.clear();
  wire::Ended ended{.worker = workers_["w"], .credit_limit = 1000, .reports = {}};
  for (const auto& [peer, job] : grants_) {
    AttemptReport report;
    report.job = job.id;
    report.token = job.token;
    report.end = AttemptEnd::kSucceeded;
    report.result = std::string(kResultBytesMax, 'r');
    ended.reports.push_back(std::move(report));
  }
  Handle(event::FromWorker{.peer = "w", .message = std::move(ended)});
  Settle();
  const auto check = [&](std::size_t parts_min) {
    std::set<JobId> seen;
    std::size_t parts = 0;
    for (const auto& message : client_) {
      const auto* update = std::get_if<wire::RunUpdate>(&message);
      ASSERT_NE(update, nullptr);
      ++parts;
      EXPECT_LE(wire::Encode(message).size(), kFrameBytesMax);
      for (const auto& stage : update->changed) seen.insert(stage.job);
      EXPECT_EQ(IsTerminal(update->state), seen.size() == kStages) << parts;
    }
    EXPECT_GE(parts, parts_min);
    EXPECT_EQ(seen.size(), kStages);
    EXPECT_EQ(Last<wire::RunUpdate>()->state, RunState::kSucceeded);
  };
  check(4);
  client_.clear();  // from the ledger, when it has ended
  Handle(event::FromClient{.peer = "late", .message = wire::Watch{.request = 9, .run = run.id}});
  Settle();
  check(4);
}

TEST_F(DispatcherTest, TheStatusOfTheLargestFleetFitsIntoOneFrame) {
  for (std::size_t i = 0; i < kWorkersMax; ++i) {
    wire::Hello hello{.worker = ids_.Next<WorkerId>(),
                      .name = std::string(kNameBytesMax, 'n'),
                      .queues = {},
                      .kinds = {},
                      .roots = {},
                      .concurrency = UINT32_MAX,
                      .credit_limit = 0,
                      .held = {}};
    Handle(event::FromWorker{.peer = std::to_string(i), .message = std::move(hello)});
  }
  Handle(event::FromClient{.peer = "c", .message = wire::Status{.request = 1}});
  Flush();
  ASSERT_NE(Last<wire::StatusReply>(), nullptr);
  EXPECT_EQ(Last<wire::StatusReply>()->workers.size(), kWorkersMax);
  const std::string frame = wire::Encode(*Last<wire::StatusReply>());
  EXPECT_LE(frame.size(), kFrameBytesMax);
  EXPECT_TRUE(wire::Decode(frame));
}

TEST_F(DispatcherTest, RequestsThatCannotBeServedAreAnswered) {
  Handle(event::FromClient{.peer = "c", .message = wire::CancelReply{}});
  Settle();
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_EQ(Last<wire::Problem>()->code, "invalid_argument");
  Handle(event::FromClient{.peer = "c", .message = wire::Watch{.request = 10, .run = ids_.Next<RunId>()}});
  Settle();
  EXPECT_EQ(Last<wire::Problem>()->code, "not_found");
  Beat("stranger", 1);
  EXPECT_FALSE(known_);
  JobSpec bad = Job();
  bad.retry.max_attempts = 0;
  Submit({bad});
  EXPECT_EQ(Last<wire::Problem>()->message, "jobs[0]: max_attempts: 0 is not in [1, 100]");
  Handle(event::StopRequested{});
  Submit({Job()});
  EXPECT_EQ(Last<wire::Problem>()->code, "unavailable");
}

TEST_F(DispatcherTest, AnEntryComesBackAsItWas) {
  JobEntry entry{.spec = Job(), .counters = {.deliveries = 3, .failures = 2, .crashes = 1}};
  entry.spec.payload = std::string("a\0b", 3);
  entry.spec.run_at = clock_.WallNow();
  const LineKey line = LineKey::Of(entry.spec);
  const std::string bytes = EncodeEntry(entry.spec, entry.counters, line);
  const auto back = DecodeEntry(bytes, entry.spec.id, line);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, entry);
  for (std::size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(DecodeEntry(bytes.substr(0, n), entry.spec.id, line)) << n;
  EXPECT_FALSE(DecodeEntry(bytes + "x", entry.spec.id, line));
}

// The queue is a store that others can write to: what no encoder makes is refused as corrupt, not read as something else.
TEST_F(DispatcherTest, AnEntryThatNobodyMadeIsCorrupt) {
  const JobSpec job = Job();
  const LineKey line = LineKey::Of(job);
  const std::string attempts_over_2_to_the_31("\x03\x02\x00\x80\x80\x80\x80\x10\x00", 9);
  const std::string options_of_a_number(
      "\x03\x40\x00\x0f"
      R"({"limit_key":7})"
      "\x00",
      20);
  for (const std::string& bytes : {attempts_over_2_to_the_31, options_of_a_number}) {
    const auto entry = DecodeEntry(bytes, job.id, line);
    ASSERT_FALSE(entry);
    EXPECT_EQ(entry.error().code, ErrorCode::kCorrupt) << entry.error().message;
  }
}

}  // namespace
}  // namespace millrace
