// What comes back at once, and what keeps failing: ten thousand retries of one instant, an org that floods beside one that does
// not, a destination that is down for half an hour.
#include <algorithm>
#include <array>
#include <deque>
#include <map>

#include "tests/support/dispatcher_fixture.h"

namespace millrace::test {
namespace {

constexpr OrgId kFlooding{1}, kModest{2};

class Outage : public testing::DispatcherTest {
 protected:
  std::vector<JobSpec> Jobs(std::size_t n, OrgId org, const RetryPolicy& retry) {
    std::vector<JobSpec> jobs(n);
    for (JobSpec& job : jobs) {
      job = Job();
      job.org = org;
      job.retry = retry;
      submitted_[job.id] = clock_.Now();
    }
    return jobs;
  }
  void SubmitAll(const std::vector<JobSpec>& jobs) {
    for (std::size_t at = 0; at < jobs.size(); at += kBatchJobsMax)
      Submit({jobs.begin() + static_cast<std::ptrdiff_t>(at),
              jobs.begin() + static_cast<std::ptrdiff_t>(std::min(jobs.size(), at + kBatchJobsMax))});
  }
  // The worker reports the grants of [ended_, end), in one message per kBatchJobsMax.
  void EndUntil(std::size_t end, const AttemptReport& how, std::uint64_t slots) {
    while (ended_ < end) {
      wire::Ended ended{.worker = workers_["w"], .credit_limit = 0, .reports = {}};
      for (; ended_ < end && ended.reports.size() < kBatchJobsMax; ++ended_) {
        const wire::Grant::Job& job = grants_[ended_].second;
        ended.reports.push_back(how);
        ended.reports.back().job = job.id;
        ended.reports.back().token = job.token;
      }
      ended.credit_limit = ended_ + slots;
      Handle(event::FromWorker{.peer = "w", .message = std::move(ended)});
      Settle();
    }
  }
  static AttemptReport Report(AttemptEnd end, std::string error_class = "") {
    AttemptReport report;
    report.end = end;
    report.error_class = std::move(error_class);
    report.retryable = true;
    return report;
  }
  const OrgId& OrgOf(const JobId& id) const { return ledger_.jobs.at(id).spec.org; }

  // A worker of kSlots slots, each job of which takes kWork, while the modest org submits a burst every kEvery: from submit to
  // end of its jobs, in the median.
  static constexpr std::uint64_t kSlots = 50;
  static constexpr Millis kStep{10}, kWork{50}, kEvery{470};
  Millis MedianOfTheModest(int bursts) {
    std::vector<Millis> took;
    std::deque<std::pair<MonoTime, std::size_t>> running;  // until when, grants before this one
    std::size_t seen = ended_;
    for (int step = 0; step < bursts * (kEvery / kStep); ++step) {
      if (step % (kEvery / kStep) == 0) SubmitAll(Jobs(100, kModest, {}));
      Advance(kStep);
      std::size_t end = ended_;
      while (!running.empty() && running.front().first <= clock_.Now()) {
        end = running.front().second;
        running.pop_front();
      }
      for (std::size_t i = ended_; i < end; ++i)
        if (const JobId id = grants_[i].second.id; OrgOf(id) == kModest)
          took.push_back(std::chrono::duration_cast<Millis>(clock_.Now() - submitted_.at(id)));
      EndUntil(end, Report(AttemptEnd::kSucceeded), kSlots);
      if (grants_.size() > seen) running.emplace_back(clock_.Now() + kWork, seen = grants_.size());
    }
    EXPECT_GE(took.size(), static_cast<std::size_t>(bursts - 1) * 100) << "the modest org is served";
    std::ranges::sort(took);
    return took.empty() ? Millis{0} : took[took.size() / 2];
  }

  std::map<JobId, MonoTime> submitted_;
  std::size_t ended_ = 0;  // of grants_
};

TEST_F(Outage, TenThousandRetriesOfOneInstantComeBackSpreadAndStarveNobody) {
  constexpr std::size_t kRetries = 10'000, kFlood = 4'000;
  constexpr Millis kBackoff{10'000};
  Hello("w", kSlots);
  const Millis alone = MedianOfTheModest(4);
  EXPECT_GE(alone, kWork);

  const auto jobs = Jobs(kRetries, kFlooding, {.max_attempts = 3, .backoff_base = kBackoff, .backoff_cap = kBackoff});
  EndUntil(grants_.size(), Report(AttemptEnd::kSucceeded), kRetries);
  SubmitAll(jobs);
  const std::size_t first = ended_;
  Beat("w", ended_ + kRetries);
  ASSERT_EQ(grants_.size(), first + kRetries);
  EndUntil(grants_.size(), Report(AttemptEnd::kFailed, "destination_unavailable"), kSlots);
  std::array<std::size_t, 10> due{};
  for (const JobSpec& job : jobs) {
    const Micros wait = ledger_.jobs.at(job.id).attempts.back().next_run_at - clock_.WallNow();
    ASSERT_TRUE(wait >= Micros{0} && wait <= kBackoff) << wait.count();
    ++due[static_cast<std::size_t>(std::min<std::int64_t>(9, wait / (kBackoff / 10)))];
  }
  for (const std::size_t n : due) EXPECT_NEAR(static_cast<double>(n), kRetries / 10.0, 100.0) << "due in one second of ten";

  SubmitAll(Jobs(kFlood, kFlooding, {}));
  const Millis beside = MedianOfTheModest(20);
  EXPECT_LE(beside, 2 * alone + kWork) << "and the jobs that were running when it came";
  std::size_t back = 0;
  for (const JobSpec& job : jobs) back += Outcome(job) == JobState::kSucceeded ? 1U : 0U;
  EXPECT_GT(back, kRetries / 10) << "the retries come back meanwhile";
  std::printf("from submit to end, median: %lld ms alone, %lld ms beside the flood\n", static_cast<long long>(alone.count()),
              static_cast<long long>(beside.count()));
}

TEST_F(Outage, ADestinationThatIsDownForHalfAnHourIsNotStormedAndEveryEffectHappensOnce) {
  constexpr std::size_t kLoads = 100;
  constexpr Millis kCap{60'000}, kTick{250}, kDown{30 * 60'000};
  constexpr std::size_t kPerSecondMax = 4 * kLoads / 30;  // the mean wait at the cap is 30 s
  const auto loads = Jobs(kLoads, kFlooding, {.max_attempts = 100, .backoff_base = Millis{1000}, .backoff_cap = kCap});
  const auto impatient = Jobs(1, kFlooding, {.max_attempts = 3, .backoff_base = Millis{1000}, .backoff_cap = kCap});
  Hello("w", 1000);
  SubmitAll(loads);
  SubmitAll(impatient);
  const MonoTime began = clock_.Now();
  std::map<std::int64_t, std::size_t> attempts;  // by second
  std::map<JobId, int> effects;
  const auto done = [&] { return effects.size() == kLoads; };
  while (!done() && clock_.Now() < began + kDown + 2 * kCap) {
    const bool down = clock_.Now() < began + kDown;
    const std::int64_t second = (clock_.Now() - began) / Millis{1000};
    for (std::size_t i = ended_; i < grants_.size(); ++i) {
      ++attempts[second];
      if (!down) ++effects[grants_[i].second.id];
    }
    EndUntil(grants_.size(), down ? Report(AttemptEnd::kFailed, "destination_unavailable") : Report(AttemptEnd::kSucceeded),
             1000);
    Advance(kTick);
    if (second != (clock_.Now() - began) / Millis{1000}) Beat("w", ended_ + 1000);
  }
  EXPECT_TRUE(done()) << "of " << kLoads << " loads " << effects.size() << " came through";
  EXPECT_LE(clock_.Now() - began, kDown + kCap + kTick) << "nobody waits longer than the cap";
  for (const JobSpec& load : loads) {
    EXPECT_EQ(effects[load.id], 1);
    EXPECT_EQ(Outcome(load), JobState::kSucceeded);
  }
  EXPECT_EQ(Outcome(impatient.front()), JobState::kDead) << "its attempts were used up long before";
  std::size_t total = 0, most = 0;
  for (const auto& [second, n] : attempts) {
    total += n;
    if (second >= 60) most = std::max(most, n);
  }
  std::printf("%zu loads: %zu attempts in half an hour, at most %zu in one second after the first minute\n", kLoads, total,
              most);
  EXPECT_LE(most, kPerSecondMax);
  EXPECT_LE(total, kLoads * 80) << "about 65 each";
}

}  // namespace
}  // namespace millrace::test
