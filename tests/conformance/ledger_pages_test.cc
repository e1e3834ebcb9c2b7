// Pages of what is live and of the outbox are bounded by the payloads in them: each comes within the budget of a read, and all
// of them together are everything, in order.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "tests/support/ledger_fixture.h"

namespace millrace::testing {
namespace {

class LedgerPagesTest : public LedgerTest {
 protected:
  std::vector<JobSpec> Jobs(std::size_t n, std::size_t bytes, std::optional<RunId> run = std::nullopt) {
    std::vector<JobSpec> jobs;
    while (jobs.size() < n) {
      jobs.push_back(Job(run, run ? "s" : ""));
      jobs.back().payload.assign(bytes, static_cast<char>('a' + jobs.size() % 26));
    }
    return jobs;
  }
  std::vector<JobSpec> Accepted(std::size_t n, std::size_t bytes) {
    std::vector<JobSpec> jobs = Jobs(n, bytes);
    for (std::size_t at = 0; at < n; at += 10) {
      OwnerBatch batch = BatchOf(hold_);
      batch.jobs.assign(jobs.begin() + static_cast<std::ptrdiff_t>(at),
                        jobs.begin() + static_cast<std::ptrdiff_t>(std::min(n, at + 10)));
      Commit(batch);
    }
    return jobs;
  }
  void SetUp() override {
    LedgerTest::SetUp();
    if (ledger_) hold_ = Own();
  }
  LiveJobs Page(std::optional<JobId> after, const LivePage& page) {
    auto read = ledger_->LiveSingleJobs(hold_.shard, kShards, after, page, In());
    EXPECT_TRUE(read) << read.error().message;
    return read.value_or(LiveJobs{.jobs = {}, .last = true});
  }
  // All pages, each of which `look` sees.
  std::vector<JobSpec> All(const LivePage& page, const std::function<void(const LiveJobs&, std::size_t bytes)>& look) {
    std::vector<JobSpec> all;
    for (std::optional<JobId> after;;) {
      const LiveJobs read = Page(after, page);
      std::size_t bytes = 0;
      for (const LiveJob& job : read.jobs) {
        bytes += job.spec.payload.size();
        all.push_back(job.spec);
      }
      look(read, bytes);
      if (read.last || read.jobs.empty()) return all;
      after = all.back().id;
    }
  }
  static std::size_t BytesOf(const std::vector<LiveRun>& runs) {
    std::size_t bytes = 0;
    for (const LiveRun& run : runs)
      for (const JobSpec& job : run.jobs) bytes += job.payload.size();
    return bytes;
  }
  ShardHold hold_;
};

TEST_P(LedgerPagesTest, LargeLiveJobsComeInPagesOfBoundedSizeAllOfThemInOrder) {
  const std::vector<JobSpec> jobs = Accepted(40, kPayloadBytesMax);
  std::vector<std::size_t> pages;
  bool ended = false;
  const auto all = All({.jobs = 2000}, [&](const LiveJobs& page, std::size_t bytes) {
    EXPECT_FALSE(ended);
    EXPECT_GE(bytes, page.last ? 0 : kPageBytesMax) << "nor is it smaller than it may be";
    EXPECT_LT(bytes, kPageBytesMax + kPayloadBytesMax);
    pages.push_back(page.jobs.size());
    ended = page.last;
  });
  EXPECT_TRUE(ended);
  EXPECT_EQ(all, jobs);
  pages.erase(std::ranges::remove(pages, 0u).begin(), pages.end());
  EXPECT_EQ(pages, std::vector<std::size_t>(5, 8));
  ExpectSound();
}

TEST_P(LedgerPagesTest, OneJobIsReadHoweverLittleAPageMayHold) {
  const std::vector<JobSpec> jobs = Accepted(3, 1000);
  std::size_t pages = 0;
  EXPECT_EQ(All({.jobs = 10, .bytes = 1}, [&](const LiveJobs& page, std::size_t) { pages += page.jobs.size() == 1 ? 1U : 0U; }),
            jobs);
  EXPECT_EQ(pages, 3u);
}

TEST_P(LedgerPagesTest, TheLastPageSaysSoWhateverEndedThoseBeforeIt) {
  const std::vector<JobSpec> jobs = Accepted(7, 10);
  EXPECT_FALSE(Page(std::nullopt, {.jobs = 6}).last);
  EXPECT_TRUE(Page(std::nullopt, {.jobs = 8}).last);
  EXPECT_TRUE(Page(jobs[5].id, {.jobs = 2}).last);
  EXPECT_TRUE(Page(jobs[6].id, {.jobs = 2}).last);
  EXPECT_FALSE(Page(std::nullopt, {.jobs = 10, .bytes = 60}).last);
  EXPECT_EQ(Page(std::nullopt, {.jobs = 10, .bytes = 60}).jobs.size(), 6u);
  EXPECT_TRUE(Page(std::nullopt, {.jobs = 10, .bytes = 71}).last);
}

// The rebuild passes over what the outbox shows: its payloads neither come nor count.
TEST_P(LedgerPagesTest, OfWhatWaitsInTheOutboxOnlyTheIdsAreRead) {
  const std::vector<JobSpec> first = Accepted(2, 100), waiting = Jobs(20, kPayloadBytesMax);
  ASSERT_TRUE(ledger_->SubmitJobs(std::span(waiting).first(10), In()));
  ASSERT_TRUE(ledger_->SubmitJobs(std::span(waiting).last(10), In()));
  const std::vector<JobSpec> behind = Accepted(2, 100);
  const CancelRow request{waiting[7].id.uuid, false, kDefaultOrg, "cli", "why", FromUnixMicros(7)};
  ASSERT_TRUE(ledger_->RequestCancel(std::span(&request, 1), In()));
  const LiveJobs page = Page(std::nullopt, {.jobs = 100, .outbox_ids_only = true});
  EXPECT_TRUE(page.last);
  ASSERT_EQ(page.jobs.size(), 24u);
  for (std::size_t i = 0; i < 24; ++i) {
    const LiveJob& job = page.jobs[i];
    const bool waits = i >= 2 && i < 22, cancelled = i == 9;
    EXPECT_EQ(job.in_outbox, waits) << i;
    EXPECT_EQ(job.cancelling, cancelled) << i;
    EXPECT_EQ(job.id_only, waits && !cancelled) << i;
    const JobSpec& spec = i < 2 ? first[i] : i < 22 ? waiting[i - 2] : behind[i - 22];
    EXPECT_EQ(job.spec.id, spec.id) << i;
    JobSpec read;
    read.id = spec.id;
    if (!job.id_only) read = spec;
    EXPECT_EQ(job.spec, read) << i;
  }
  std::vector<JobSpec> whole = first;
  whole.insert(whole.end(), waiting.begin(), waiting.end());
  whole.insert(whole.end(), behind.begin(), behind.end());
  EXPECT_EQ(All({.jobs = 100},
                [](const LiveJobs& read, std::size_t bytes) {
                  EXPECT_LT(bytes, kPageBytesMax + kPayloadBytesMax);
                  for (const LiveJob& job : read.jobs) EXPECT_FALSE(job.id_only);
                }),
            whole);
}

TEST_P(LedgerPagesTest, LargeJobsOfTheOutboxComeInPagesOfBoundedSize) {
  const std::vector<JobSpec> jobs = Jobs(20, kPayloadBytesMax);
  ASSERT_TRUE(ledger_->SubmitJobs(std::span(jobs).first(10), In()));
  ASSERT_TRUE(ledger_->SubmitJobs(std::span(jobs).last(10), In()));
  std::vector<JobSpec> all;
  for (bool more = true; more;) {
    const auto page = ledger_->ReadOutbox(hold_.shard, kShards, 500, In());
    ASSERT_TRUE(page) << page.error().message;
    ASSERT_FALSE(page->jobs.empty());
    EXPECT_LE(page->jobs.size(), kPageBytesMax / kPayloadBytesMax);
    more = page->more;
    OwnerBatch taken = BatchOf(hold_);
    for (const LiveJob& job : page->jobs) {
      all.push_back(job.spec);
      taken.outbox_done_jobs.push_back(job.spec.id);
    }
    Commit(taken);
  }
  EXPECT_EQ(all, jobs);
}

// It is read at once, whoever waits behind it.
TEST_P(LedgerPagesTest, ARunThatIsTooLargeIsRefused) {
  const RunSpec run = Run();
  std::vector<JobSpec> jobs = Jobs(kRunPayloadBytesMax / kPayloadBytesMax, kPayloadBytesMax, run.id);
  jobs.push_back(Job(run.id, "last"));
  const auto refused = ledger_->SubmitRun(run, jobs, In());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  jobs.pop_back();
  ASSERT_TRUE(ledger_->SubmitRun(run, jobs, In()));
  const auto page = ledger_->ReadOutbox(hold_.shard, kShards, 500, In());
  ASSERT_TRUE(page) << page.error().message;
  ASSERT_EQ(page->runs.size(), 1u);
  EXPECT_EQ(page->runs[0].jobs.size(), jobs.size());
}

// A run that is larger than a page comes alone.
TEST_P(LedgerPagesTest, RunsOfLargeJobsComeInPagesOfBoundedSize) {
  std::vector<RunId> runs;
  for (const std::size_t jobs : {3U, 3U, 3U, 9U, 2U, 2U}) {
    const RunSpec run = Run();
    runs.push_back(run.id);
    ASSERT_TRUE(ledger_->SubmitRun(run, Jobs(jobs, kPayloadBytesMax, run.id), In()));
  }
  const auto expect_bounded = [](const std::vector<LiveRun>& page) {
    EXPECT_TRUE(page.size() == 1 || BytesOf(page) <= kPageBytesMax) << page.size() << " runs of " << BytesOf(page) << " bytes";
  };
  std::vector<RunId> live, taken;
  for (std::optional<RunId> after;;) {
    const auto page = ledger_->LiveRuns(hold_.shard, kShards, after, 200, In());
    ASSERT_TRUE(page) << page.error().message;
    if (page->empty()) break;
    expect_bounded(*page);
    for (const LiveRun& run : *page) live.push_back(run.spec.id);
    after = live.back();
  }
  EXPECT_EQ(live, runs);
  for (bool more = true; more;) {
    const auto page = ledger_->ReadOutbox(hold_.shard, kShards, 500, In());
    ASSERT_TRUE(page) << page.error().message;
    ASSERT_FALSE(page->runs.empty());
    expect_bounded(page->runs);
    more = page->more;
    OwnerBatch done = BatchOf(hold_);
    for (const LiveRun& run : page->runs) done.outbox_done_runs.push_back(run.spec.id);
    Commit(done);
    taken.insert(taken.end(), done.outbox_done_runs.begin(), done.outbox_done_runs.end());
  }
  EXPECT_EQ(taken, runs);
}

// What one row stands for is bounded where it is written.
TEST_P(LedgerPagesTest, AHerdOfLargeRunsIsReadInPagesOfBoundedSize) {
  FireBatch herd;
  herd.now = FromUnixMicros(1'700'000'050'000'001);
  std::vector<RunId> runs, taken;
  for (int i = 0; i < 30; ++i) {
    herd.decisions.push_back(Slot(i));
    runs.push_back(herd.decisions.back().run->id);
    herd.decisions.back().jobs[0].payload.assign(i == 13 ? kPayloadBytesMax : kPayloadBytesMax / 2, 'x');
  }
  const auto fired = ledger_->Fire(herd, In());
  ASSERT_TRUE(fired) << fired.error().message;
  for (bool more = true; more;) {
    const auto page = ledger_->ReadOutbox(hold_.shard, kShards, 500, In());
    ASSERT_TRUE(page) << page.error().message;
    if (page->runs.empty() && page->batches.empty()) break;
    OwnerBatch done = BatchOf(hold_);
    std::size_t bytes = BytesOf(page->runs);
    for (const LiveRun& run : page->runs) done.outbox_done_runs.push_back(run.spec.id);
    for (const auto& batch : page->batches) {
      EXPECT_LE(BytesOf(batch.runs), kOutboxBatchBytes);
      bytes += BytesOf(batch.runs);
      done.outbox_done_batches.push_back(batch.id);
      for (const LiveRun& run : batch.runs) taken.push_back(run.spec.id);
    }
    EXPECT_LE(bytes, 2 * kPageBytesMax);
    taken.insert(taken.end(), done.outbox_done_runs.begin(), done.outbox_done_runs.end());
    more = page->more;
    Commit(done);
  }
  std::ranges::sort(taken);
  EXPECT_EQ(taken, runs);
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerPagesTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& test) { return test.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace::testing
