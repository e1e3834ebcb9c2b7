// The outbox of a herd: many runs in one row (Ledger::Outbox::Batch), and watermarks that come after their slots.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/support/ledger_fixture.h"

namespace millrace::testing {
namespace {

class LedgerHerdTest : public LedgerTest {
 protected:
  FireBatch Herd(std::size_t slots, std::size_t jobs_each = 1) {
    FireBatch batch;
    batch.now = FromUnixMicros(1'700'000'050'000'001);
    for (std::size_t i = 0; i < slots; ++i) {
      batch.decisions.push_back(Slot(static_cast<std::int64_t>(i)));
      for (std::size_t j = 1; j < jobs_each; ++j)
        batch.decisions.back().jobs.push_back(Job(batch.decisions.back().run->id, "b"));
    }
    return batch;
  }
  FireResult Fire(const FireBatch& batch) {
    auto fired = ledger_->Fire(batch, In());
    EXPECT_TRUE(fired) << fired.error().message;
    return fired.value_or(FireResult{});
  }
  Ledger::Outbox Read(const ShardHold& hold, std::uint32_t limit = 500) {
    auto outbox = ledger_->ReadOutbox(hold.shard, kShards, limit, In());
    EXPECT_TRUE(outbox) << outbox.error().message;
    return outbox.value_or(Ledger::Outbox{});
  }
};

TEST_P(LedgerHerdTest, EveryRunOfAHerdIsInOneBatchOfTheOutbox) {
  const ShardHold hold = Own();
  const FireBatch herd = Herd(1201);
  EXPECT_TRUE(Fire(herd).already_decided.empty());
  const Ledger::Outbox outbox = Read(hold);
  EXPECT_TRUE(outbox.runs.empty() && outbox.jobs.empty());
  ASSERT_EQ(outbox.batches.size(), 3u);
  std::set<RunId> seen;
  for (const auto& batch : outbox.batches) {
    EXPECT_LE(batch.runs.size(), kOutboxBatchRuns);
    EXPECT_TRUE(std::ranges::is_sorted(batch.runs, {}, [](const LiveRun& r) { return r.spec.id; }));
    for (const LiveRun& run : batch.runs) {
      EXPECT_TRUE(seen.insert(run.spec.id).second);
      EXPECT_EQ(run.jobs.size(), 1u);
    }
  }
  for (const SlotDecision& d : herd.decisions) EXPECT_TRUE(seen.contains(d.run->id));
  EXPECT_FALSE(outbox.more);
  const auto contents = ledger_->Contents(In());
  for (const ShardContents& c : *contents) EXPECT_EQ(c.outbox, c.shard == hold.shard);

  OwnerBatch taken = BatchOf(hold);
  taken.outbox_done_batches = {outbox.batches[0].id, outbox.batches[2].id};
  Commit(taken);
  const Ledger::Outbox rest = Read(hold);
  ASSERT_EQ(rest.batches.size(), 1u);
  EXPECT_EQ(rest.batches[0].id, outbox.batches[1].id);
  EXPECT_EQ(ledger_->LiveRuns(hold.shard, kShards, std::nullopt, 10'000, In())->size(), 1201u) << "they live on";
  ExpectSound();
}

TEST_P(LedgerHerdTest, ReadsAreBoundedAndADeposedOwnerTakesNothingOut) {
  const ShardHold hold = Own();
  Fire(Herd(600, 10));  // 200 runs fill a row by their jobs
  const Ledger::Outbox first = Read(hold);
  ASSERT_EQ(first.batches.size(), 3u);
  for (const auto& batch : first.batches) EXPECT_EQ(batch.runs.size(), kOutboxBatchJobs / 10);
  FireBatch more;
  for (std::int64_t i = 0; i < 1000; ++i) more.decisions.push_back(Slot(10'000 + i));
  Fire(more);
  const Ledger::Outbox page = Read(hold);
  EXPECT_EQ(page.batches.size(), kOutboxBatchesMax);
  EXPECT_TRUE(page.more);
  const ShardHold anew = Own();
  OwnerBatch stale = BatchOf(hold);
  stale.outbox_done_batches = {page.batches[0].id};
  const auto refused = ledger_->Commit(stale, In());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStale);
  EXPECT_EQ(Read(anew).batches.size(), kOutboxBatchesMax);
}

TEST_P(LedgerHerdTest, ARunOfManyJobsAndALoneOneHaveRowsOfTheirOwn) {
  const ShardHold hold = Own();
  FireBatch batch = Herd(3);
  for (std::size_t j = 0; j < kOutboxBatchJobs; ++j) batch.decisions[1].jobs.push_back(Job(batch.decisions[1].run->id, "b"));
  Fire(batch);
  FireBatch lone;
  lone.decisions.push_back(Slot(99));
  Fire(lone);
  const Ledger::Outbox outbox = Read(hold);
  ASSERT_EQ(outbox.batches.size(), 1u);
  EXPECT_EQ(outbox.batches[0].runs.size(), 2u);
  ASSERT_EQ(outbox.runs.size(), 2u);
  EXPECT_EQ(outbox.runs[0].spec.id, batch.decisions[1].run->id);
  EXPECT_EQ(outbox.runs[1].spec.id, lone.decisions[0].run->id);
}

// What a rebuild found may end before its batch is read; a request to cancel comes to the owner although the batch goes.
TEST_P(LedgerHerdTest, EndedRunsAreLeftOutAndACancelKeepsARowOfItsOwn) {
  const ShardHold hold = Own();
  const FireBatch herd = Herd(5);
  Fire(herd);
  const RunSpec &ended = *herd.decisions[1].run, &cancelled = *herd.decisions[3].run;
  OwnerBatch end = BatchOf(hold);
  end.outcomes = {Outcome(herd.decisions[1].jobs[0])};
  end.run_outcomes = {{ended.id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)}};
  Commit(end);
  Ledger::Outbox outbox = Read(hold);
  ASSERT_EQ(outbox.batches.size(), 1u);
  EXPECT_EQ(outbox.batches[0].runs.size(), 4u);
  for (const LiveRun& run : outbox.batches[0].runs) EXPECT_NE(run.spec.id, ended.id);

  const CancelRow request{cancelled.id.uuid, true, kDefaultOrg, "cli", "why", FromUnixMicros(7)};
  ASSERT_TRUE(ledger_->RequestCancel(std::span(&request, 1), In()));
  OwnerBatch taken = BatchOf(hold);  // the owner had read the batch before the request came
  taken.outbox_done_batches = {outbox.batches[0].id};
  taken.outbox_done_runs = {cancelled.id};
  Commit(taken);
  outbox = Read(hold);
  EXPECT_TRUE(outbox.batches.empty());
  ASSERT_EQ(outbox.runs.size(), 1u) << "the request would be known at the next takeover only";
  EXPECT_EQ(outbox.runs[0].spec.id, cancelled.id);
  EXPECT_TRUE(outbox.runs[0].cancelling);

  end.outcomes.clear();
  end.run_outcomes.clear();
  for (const std::size_t i : {0U, 2U, 3U, 4U}) {
    end.outcomes.push_back(Outcome(herd.decisions[i].jobs[0]));
    end.run_outcomes.push_back({herd.decisions[i].run->id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)});
  }
  Commit(end);
  outbox = Read(hold);
  EXPECT_TRUE(outbox.runs.empty() && outbox.batches.empty());
  EXPECT_TRUE(ledger_->LiveRuns(hold.shard, kShards, std::nullopt, 10, In())->empty());
}

// All runs of a batch ended before anybody read it: its row still goes.
TEST_P(LedgerHerdTest, ABatchWithoutLiveRunsIsReadToBeTakenOut) {
  const ShardHold hold = Own();
  const FireBatch herd = Herd(2);
  Fire(herd);
  OwnerBatch end = BatchOf(hold);
  for (const SlotDecision& d : herd.decisions) {
    end.outcomes.push_back(Outcome(d.jobs[0]));
    end.run_outcomes.push_back({d.run->id, kDefaultOrg, RunState::kSucceeded, "", FromUnixMicros(5)});
  }
  Commit(end);
  const Ledger::Outbox outbox = Read(hold);
  ASSERT_EQ(outbox.batches.size(), 1u);
  EXPECT_TRUE(outbox.batches[0].runs.empty());
  OwnerBatch taken = BatchOf(hold);
  taken.outbox_done_batches = {outbox.batches[0].id};
  Commit(taken);
  EXPECT_TRUE(Read(hold).batches.empty());
}

// Two schedulers at the same herd, the second of which knows a part of it only from before.
TEST_P(LedgerHerdTest, WhoComesSecondAddsOnlyWhatIsNewToTheOutbox) {
  const ShardHold hold = Own();
  const FireBatch first = Herd(700), second = Herd(900);  // the same slots and 200 more, in other runs
  Fire(first);
  EXPECT_EQ(Fire(second).already_decided.size(), 700u);
  std::set<RunId> seen;
  for (const auto& batch : Read(hold).batches)
    for (const LiveRun& run : batch.runs) EXPECT_TRUE(seen.insert(run.spec.id).second);
  EXPECT_EQ(seen.size(), 900u);
  for (std::size_t i = 0; i < 900; ++i) {
    EXPECT_EQ(seen.contains(second.decisions[i].run->id), i >= 700);
    if (i < 700) {
      EXPECT_TRUE(seen.contains(first.decisions[i].run->id));
    }
  }
  ExpectSound();
}

// A batch is read as a range of ids where that is cheap: what others have in the range, little or much, is not in it.
TEST_P(LedgerHerdTest, ABatchIsReadAsItWasWrittenWhateverLiesBetween) {
  const ShardHold hold = Own();
  for (const std::size_t strangers : {0U, 1U, 30U}) {  // per run
    FireBatch herd;
    for (std::size_t i = 0; i < 6; ++i) {
      for (std::size_t s = 0; s < strangers; ++s) {
        const RunSpec other = Run("other");
        ASSERT_TRUE(ledger_->SubmitRun(other, std::vector<JobSpec>{Job(other.id, "o")}, In()));
      }
      herd.decisions.push_back(Slot(static_cast<std::int64_t>(100 * strangers + i)));
      SlotDecision& d = herd.decisions.back();
      d.jobs.push_back(Job(d.run->id, "b"));
      d.jobs.push_back(Job(d.run->id, "c"));
      d.jobs[2].depends_on = {d.jobs[0].id, d.jobs[1].id};
    }
    std::ranges::reverse(herd.decisions[2].jobs);  // whoever wrote them, they come by id
    Fire(herd);
    const Ledger::Outbox outbox = Read(hold, 500);
    ASSERT_EQ(outbox.batches.size(), 1U);
    ASSERT_EQ(outbox.batches[0].runs.size(), 6U);
    std::ranges::reverse(herd.decisions[2].jobs);
    for (std::size_t i = 0; i < 6; ++i) {
      const LiveRun& run = outbox.batches[0].runs[i];
      EXPECT_EQ(run.spec, *herd.decisions[i].run);
      EXPECT_EQ(run.jobs, herd.decisions[i].jobs);
      EXPECT_TRUE(run.ended.empty() && run.counters.empty() && !run.cancelling);
    }
    OwnerBatch taken = BatchOf(hold);
    taken.outbox_done_batches = {outbox.batches[0].id};
    Commit(taken);
  }
}

TEST_P(LedgerHerdTest, WhatHasBegunOrIsToStopIsSeenWhenItsBatchIsRead) {
  const ShardHold hold = Own();
  const FireBatch herd = Herd(5);
  Fire(herd);
  OwnerBatch tried = BatchOf(hold);
  tried.attempts = {Attempt(herd.decisions[1].jobs[0], 1, {.deliveries = 2, .failures = 1, .crashes = 0})};
  Commit(tried);
  const auto run = [&](std::size_t i) { return Read(hold).batches.at(0).runs.at(i); };
  EXPECT_EQ(run(1).counters.at(herd.decisions[1].jobs[0].id).deliveries, 2U);
  for (const std::size_t i : {0U, 2U, 3U, 4U}) EXPECT_TRUE(run(i).counters.empty()) << i;
  const CancelRow request{herd.decisions[2].run->id.uuid, true, kDefaultOrg, "cli", "why", FromUnixMicros(7)};
  ASSERT_TRUE(ledger_->RequestCancel(std::span(&request, 1), In()));
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(run(i).cancelling, i == 2) << i;
}

TEST_P(LedgerHerdTest, ARequestToStopAloneIsSeenToo) {
  const ShardHold hold = Own();
  const FireBatch herd = Herd(3);
  Fire(herd);
  const CancelRow request{herd.decisions[0].run->id.uuid, true, kDefaultOrg, "cli", "why", FromUnixMicros(7)};
  ASSERT_TRUE(ledger_->RequestCancel(std::span(&request, 1), In()));
  const Ledger::Outbox outbox = Read(hold);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(outbox.batches.at(0).runs.at(i).cancelling, i == 0) << i;
}

TEST_P(LedgerHerdTest, WatermarksThatComeAloneMoveForwardOnly) {
  const Pipeline pipeline = Scheduled();
  ASSERT_TRUE(ledger_->ApplyPipeline(pipeline, "{}", "", "/srv", kDefaultOrg, In()));
  const auto stored = [&] { return (*ledger_->Schedules(kDefaultOrg, In()))[0]; };
  const ScheduleRow before = stored();
  FireBatch batch;
  batch.watermarks.push_back({kDefaultOrg, "flights", "default", before.watermark + 60s});
  Fire(batch);
  EXPECT_EQ(stored().watermark, before.watermark + 60s);
  EXPECT_EQ(stored().revision, before.revision) << "it is no change that schedulers have to read";
  batch.watermarks[0].to = before.watermark + 10s;
  Fire(batch);
  EXPECT_EQ(stored().watermark, before.watermark + 60s);
  ExpectSound();
}

INSTANTIATE_TEST_SUITE_P(Ledgers, LedgerHerdTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& i) { return i.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace::testing
