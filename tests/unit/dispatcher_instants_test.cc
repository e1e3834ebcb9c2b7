// Instants that neither queue nor ledger holds: refused where a client names them, brought into their range where a ledger, a
// queue or a worker does. Whatever happens, the shard stays with its owner.
#include <gtest/gtest.h>

#include "broker/entry_codec.h"
#include "broker/lines.h"
#include "common/model/instants.h"
#include "tests/support/dispatcher_fixture.h"

namespace millrace {
namespace {

class DispatcherInstantsTest : public testing::DispatcherTest {
 protected:
  JobSpec Good() {
    JobSpec job = Job();
    job.org = OrgId{2};
    return job;
  }
  void ExpectSameHold() { EXPECT_EQ(ledger_.EpochOf(ShardId{0}), epoch_) << "the shard was taken anew"; }
  bool WasGranted(const JobSpec& job) const { return std::ranges::count(Granted(), job.id) == 1; }
  static WallTime At(std::string_view text) { return *ParseRfc3339(text); }

  const Epoch epoch_ = ledger_.EpochOf(ShardId{0});
};

TEST_F(DispatcherInstantsTest, AClientIsToldAndNothingElseIsTouched) {
  Hello("w", 10);
  for (const Durability durability : {Durability::kLedger, Durability::kRedis})
    for (const WallTime at : {At("2300-01-01T00:00:00Z"), At("0001-01-01T00:00:00Z"), WallTime::min(), WallTime::max()})
      for (const auto set : {+[](JobSpec& job, WallTime time) { job.run_at = time; },
                             +[](JobSpec& job, WallTime time) { job.submitted_at = time; },
                             +[](JobSpec& job, WallTime time) { job.options.deadline = time; },
                             +[](JobSpec& job, WallTime time) { job.options.expires_at = time; }}) {
        client_.clear();
        JobSpec bad = Job();
        bad.options.durability = durability;
        set(bad, at);
        Submit({bad});
        const auto* problem = Last<wire::Problem>();
        ASSERT_NE(problem, nullptr);
        EXPECT_EQ(problem->code, "invalid_argument");
        EXPECT_TRUE(problem->message.contains("out of range")) << problem->message;
        EXPECT_FALSE(ledger_.jobs.contains(bad.id));
      }
  const JobSpec good = Good();
  Submit({good});
  EXPECT_EQ(Granted(), IdsOf({good}));
  ExpectSameHold();
}

TEST_F(DispatcherInstantsTest, ARunIsCheckedToo) {
  for (const auto set : {+[](wire::SubmitRun& m) { m.run.created_at = WallTime::min(); },
                         +[](wire::SubmitRun& m) { m.run.slot = WallTime::max(); },
                         +[](wire::SubmitRun& m) { m.jobs.front().options.deadline = WallTime::max(); }}) {
    client_.clear();
    wire::SubmitRun submit{.request = 1, .run = {}, .jobs = {Job()}, .watch = false};
    submit.run.id = ids_.Next<RunId>();
    submit.run.pipeline = "p";
    submit.jobs.front().run = submit.run.id;
    set(submit);
    Handle(event::FromClient{.peer = "c", .message = submit});
    Settle();
    const auto* problem = Last<wire::Problem>();
    ASSERT_NE(problem, nullptr);
    EXPECT_TRUE(problem->message.contains("out of range")) << problem->message;
  }
  ExpectSameHold();
}

// In the outbox, then in a rebuild.
TEST_F(DispatcherInstantsTest, WhatALedgerHoldsWedgesNoShard) {
  std::vector<JobSpec> late(3), over(2);
  for (auto* jobs : {&late, &over})
    for (JobSpec& job : *jobs) job = Job();
  late[0].run_at = At("2300-01-01T00:00:00Z");
  late[1].options.deadline = At("9999-12-31T00:00:00Z");
  late[2].options.expires_at = WallTime::max();
  late[1].run_at = late[2].run_at = clock_.WallNow() + 1h;
  late[2].submitted_at = WallTime::min();
  over[0].options.deadline = WallTime::min();
  over[1].options.expires_at = At("0001-01-01T00:00:00Z");
  RunSpec run;
  run.id = ids_.Next<RunId>();
  run.pipeline = "p";
  run.created_at = WallTime::min();
  JobSpec of_run = Job();
  of_run.run = run.id;
  of_run.options.deadline = of_run.options.expires_at = WallTime::max();
  ASSERT_TRUE(ledger_.SubmitJobs(late, {}));
  ASSERT_TRUE(ledger_.SubmitJobs(over, {}));
  ASSERT_TRUE(ledger_.SubmitRun(run, std::span{&of_run, 1}, {}));
  const JobSpec good = Good();
  ASSERT_TRUE(ledger_.SubmitJobs(std::vector{good}, {}));
  Handle(event::Rung{.shard = ShardId{0}});
  Settle();
  Advance(kDispatcherTick);
  EXPECT_EQ(Outcome(over[0]), JobState::kDead);
  EXPECT_EQ(Outcome(over[1]), JobState::kExpired);
  EXPECT_EQ((*queue_.Depth(ShardId{0})).scheduled, late.size());
  ExpectSameHold();

  queue_.Wipe();
  Submit({Job()});  // is how the broker notices
  for (int i = 0; i < 5; ++i) Advance(1s);
  EXPECT_EQ(ledger_.EpochOf(ShardId{0}), Epoch{epoch_.value() + 1}) << "the queue was wiped once";
  EXPECT_EQ((*queue_.Depth(ShardId{0})).scheduled, late.size());
  Hello("w", 10);
  EXPECT_TRUE(WasGranted(good));
  EXPECT_TRUE(WasGranted(of_run));
  Advance(2h);
  Hello("w", 20);
  EXPECT_TRUE(WasGranted(late[1]));
  EXPECT_TRUE(WasGranted(late[2]));
  EXPECT_FALSE(WasGranted(late[0])) << "not before 2250";
}

// What a worker's clock says reaches the ledger with the job that only the queue had.
TEST_F(DispatcherInstantsTest, AReportOfAWorkerWithoutAClockIsRecorded) {
  Hello("w", 10);
  for (const Durability durability : {Durability::kLedger, Durability::kRedis})
    for (const WallTime at : {WallTime::min(), At("0001-01-01T00:00:00Z") - std::chrono::days{3'000'000}, WallTime::max()})
      for (const AttemptEnd end : {AttemptEnd::kSucceeded, AttemptEnd::kFailed}) {
        grants_.clear();
        JobSpec job = Job();
        job.options.durability = durability;
        Submit({job});
        ASSERT_EQ(grants_.size(), 1U);
        AttemptReport report;
        report.end = end;
        report.retryable = false;
        report.error = "broke";
        report.started_at = report.finished_at = at;
        End(0, report, 100);
        ASSERT_TRUE(Outcome(job)) << ToUnixMicros(at);
        const AttemptReport& stored = ledger_.jobs.at(job.id).outcome->report;
        EXPECT_EQ(stored.started_at, at < WallTime{} ? kInstantMin : kInstantMax);
        EXPECT_EQ(stored.finished_at, stored.started_at);
        EXPECT_EQ(stored.error, "broke") << "nothing of it is taken away for its times";
      }
  ExpectSameHold();
}

// Rows that came past every check: they are stored with the nearest instants, and the shard is kept.
TEST_F(DispatcherInstantsTest, RowsThatTheLedgerRefusesForTheirTimesAreMended) {
  JobSpec job = Job();
  job.options.durability = Durability::kRedis;
  job.submitted_at = WallTime::min();
  AttemptRow attempt;
  attempt.report.job = job.id;
  attempt.report.error = "removed";
  attempt.report.started_at = WallTime::min();
  OwnerBatch rows;
  rows.jobs = {job};
  rows.attempts = {attempt};
  pump_.Post(command::Commit{.piece = PieceId{999}, .hold = {.shard = ShardId{0}, .epoch = epoch_}, .rows = rows});
  for (int i = 0; i < 3; ++i) Settle();  // refused, mended, stored
  ASSERT_TRUE(ledger_.jobs.contains(job.id));
  EXPECT_EQ(ledger_.jobs.at(job.id).spec.submitted_at, kInstantMin);
  EXPECT_EQ(ledger_.jobs.at(job.id).attempts.front().report.started_at, kInstantMin);
  ExpectSameHold();
}

TEST_F(DispatcherInstantsTest, AnEntryOfTheQueueHasItsInstantsInTheirRange) {
  JobSpec job = Job();
  LineKey line = LineKey::Of(job);
  line.durability = Durability::kRedis;
  job.options.durability = Durability::kRedis;
  job.submitted_at = WallTime::min();
  job.run_at = WallTime::min();
  job.options.deadline = job.options.expires_at = WallTime::max();
  const auto entry = DecodeEntry(EncodeEntry(job, {}, line), job.id, line);
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->spec.submitted_at, kInstantMin);
  EXPECT_EQ(entry->spec.run_at, kInstantMin);
  EXPECT_EQ(entry->spec.options.deadline, kInstantMax);
  EXPECT_EQ(entry->spec.options.expires_at, kInstantMax);
}

}  // namespace
}  // namespace millrace
