// Retries, counters, deadlines, expiry, unique keys and callbacks, one step at a time.
#include <algorithm>
#include <climits>
#include <cstdint>
#include <iterator>
#include <set>

#include "tests/support/dispatcher_fixture.h"

namespace millrace::test {
namespace {

class Lifecycle : public testing::DispatcherTest {
 protected:
  const OutcomeRow* End_(const JobSpec& job) {
    const auto& outcome = ledger_.jobs.at(job.id).outcome;
    return outcome ? &*outcome : nullptr;
  }
  std::string ErrorClass(const JobSpec& job) { return End_(job) == nullptr ? "" : End_(job)->report.error_class; }
  JobSpec Unique(const std::string& key, UniqueUntil until = UniqueUntil::kEnded) {
    JobSpec job = Job();
    job.options.unique_key = key;
    job.options.unique_until = until;
    return job;
  }
  wire::SubmitReply::Item Answer(std::size_t i = 0) { return Last<wire::SubmitReply>()->accepted.at(i); }
  static AttemptReport Failed(std::string error_class) {
    AttemptReport report;
    report.end = AttemptEnd::kFailed;
    report.error_class = std::move(error_class);
    report.error = "broke";
    return report;
  }
};

TEST(Backoff, FixedIsTheBaseAndExponentialJittersFully) {
  const RetryPolicy policy{.max_attempts = 9, .backoff_base = Millis{1000}, .backoff_cap = Millis{3000}};
  for (const std::uint64_t random : {std::uint64_t{0}, std::uint64_t{12345}, UINT64_MAX}) {
    EXPECT_EQ(BackoffDelay(policy, Backoff::kFixed, 1, random), Millis{1000});
    EXPECT_EQ(BackoffDelay(policy, Backoff::kFixed, 7, random), Millis{1000});
  }
  SeededRandom random(3);
  for (const auto& [failures, full] : {std::pair{1, 1000}, {2, 2000}, {3, 3000}, {60, 3000}}) {
    std::int64_t low = full, high = 0;
    for (int i = 0; i < 2000; ++i) {
      const std::int64_t wait = BackoffDelay(policy, Backoff::kExponential, failures, random.Next()).count();
      ASSERT_GE(wait, 0);
      ASSERT_LE(wait, full);
      low = std::min(low, wait);
      high = std::max(high, wait);
    }
    EXPECT_LT(low, full / 50) << "from nothing";
    EXPECT_GT(high, full - full / 50) << "to the full wait";
  }
  const RetryPolicy none{.max_attempts = 3, .backoff_base = Millis{0}, .backoff_cap = Millis{0}};
  EXPECT_EQ(BackoffDelay(none, Backoff::kExponential, 5, 77), Millis{0});
  const RetryPolicy capped{.max_attempts = 3, .backoff_base = Millis{5000}, .backoff_cap = Millis{100}};
  EXPECT_EQ(BackoffDelay(capped, Backoff::kFixed, 1, 0), Millis{100});
}

// Any policy, any number of failures: times of every size, and those at the ends of their type.
Millis AnyTime(Random& random) {
  constexpr std::int64_t kEnds[] = {0, 1, 2, -1, INT64_MAX, INT64_MAX - 1, INT64_MAX / 2, INT64_MAX / 2 + 1, INT64_MIN};
  if (random.Below(4) == 0) return Millis{kEnds[random.Below(std::size(kEnds))]};
  return Millis{static_cast<std::int64_t>(random.Next() >> (1 + random.Below(63)))};
}

int AnyFailures(Random& random) {
  constexpr int kEnds[] = {INT_MIN, -1, 0, 1, INT_MAX};
  return random.Below(8) == 0 ? kEnds[random.Below(std::size(kEnds))] : 1 + static_cast<int>(random.Below(100));
}

// min(cap, base * 2^(failures - 1)), by doubling in a type that has room for each step.
std::int64_t LongestWait(const RetryPolicy& policy, int failures) {
  const auto cap = static_cast<std::uint64_t>(std::max<std::int64_t>(policy.backoff_cap.count(), 0));
  auto full = std::min(static_cast<std::uint64_t>(std::max<std::int64_t>(policy.backoff_base.count(), 0)), cap);
  for (int i = 1; i < std::min(failures, 70); ++i) full = std::min(2 * full, cap);
  return static_cast<std::int64_t>(full);
}

TEST(Backoff, StaysInItsBoundsWhateverThePolicy) {
  for (std::uint64_t seed = 1; seed <= 5000; ++seed) {
    SeededRandom random(seed);
    const RetryPolicy policy{.max_attempts = 3, .backoff_base = AnyTime(random), .backoff_cap = AnyTime(random)};
    const int failures = AnyFailures(random);
    SCOPED_TRACE(fmt::format("seed {}: base {}, cap {}, failure {}", seed, policy.backoff_base.count(),
                             policy.backoff_cap.count(), failures));
    const std::int64_t longest = LongestWait(policy, failures);
    std::int64_t low = longest, high = 0;
    for (int i = 0; i < 64; ++i) {
      const std::uint64_t drawn = i == 0 ? 0 : i == 1 ? UINT64_MAX : random.Next();
      ASSERT_EQ(BackoffDelay(policy, Backoff::kFixed, failures, drawn), Millis{LongestWait(policy, 1)});
      const std::int64_t wait = BackoffDelay(policy, Backoff::kExponential, failures, drawn).count();
      ASSERT_GE(wait, 0);
      ASSERT_LE(wait, longest);
      low = std::min(low, wait);
      high = std::max(high, wait);
    }
    if (longest < 100) continue;
    ASSERT_LT(low, longest / 4) << "full jitter begins at nothing";
    ASSERT_GT(high, longest - longest / 4) << "and reaches the whole wait";
  }
}

TEST(EndOfWait, TheEarlierOneAndExpiryOnlyBeforeTheFirstAttempt) {
  JobOptions options;
  EXPECT_EQ(EndOfWait(options, {}), std::nullopt);
  options.expires_at = FromUnixMicros(100);
  options.deadline = FromUnixMicros(200);
  EXPECT_EQ(EndOfWait(options, {}), (WaitEnd{.at = FromUnixMicros(100), .state = JobState::kExpired}));
  EXPECT_EQ(EndOfWait(options, {.deliveries = 1}), (WaitEnd{.at = FromUnixMicros(200), .state = JobState::kDead}));
  options.deadline = FromUnixMicros(100);
  EXPECT_EQ(EndOfWait(options, {})->state, JobState::kDead);
}

TEST_F(Lifecycle, AFixedBackoffWaitsExactly) {
  Hello("w", 10);
  JobSpec job = Job();
  job.retry = {.max_attempts = 5, .backoff_base = Millis{10'000}, .backoff_cap = Millis{300'000}};
  job.options.backoff = Backoff::kFixed;
  Submit({job});
  for (std::size_t i = 0; i < 4; ++i) {
    End(i, AttemptEnd::kFailed);
    for (int s = 1; s < 10; ++s) Advance(1s), Beat("w", 100);
    EXPECT_EQ(grants_.size(), i + 1);
    Advance(1s);
    Beat("w", 100);
    EXPECT_EQ(grants_.size(), i + 2);
  }
  End(4, AttemptEnd::kFailed);
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(End_(job)->counters, (Counters{.deliveries = 5, .failures = 5, .crashes = 0}));
}

TEST_F(Lifecycle, ANoRetryClassEndsTheJobAtOnce) {
  Hello("w", 10);
  JobSpec job = Job();
  job.retry.max_attempts = 50;
  job.options.no_retry = {"check_failed", "crashed"};
  JobSpec crash = job;
  crash.id = Job().id;
  Submit({job, crash});
  End(0, Failed("temporary_failure"));
  EXPECT_FALSE(Outcome(job));
  Advance(1s);
  Beat("w", 100);
  const std::size_t again = grants_.size() - 1;
  ASSERT_EQ(grants_.at(again).second.id, job.id);
  End(again, Failed("check_failed"));
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(ErrorClass(job), "check_failed");
  AttemptReport crashed = Failed("crashed");
  crashed.end = AttemptEnd::kCrashed;
  End(1, crashed);
  EXPECT_EQ(Outcome(crash), JobState::kDead) << "one crash is enough when the job says so";
  EXPECT_EQ(End_(crash)->counters, (Counters{.deliveries = 1, .failures = 1, .crashes = 1}));
  EXPECT_EQ(ErrorClass(crash), "crashed");
}

TEST_F(Lifecycle, TheThirdCrashQuarantinesWhateverMaxAttemptsSays) {
  Hello("w", 10);
  JobSpec job = Job();
  job.retry.max_attempts = kMaxAttemptsMax;
  Submit({job});
  AttemptReport crashed = Failed("crashed");
  crashed.end = AttemptEnd::kCrashed;
  crashed.signal = 11;
  crashed.exit_code = -1;
  crashed.log_tail = "last words\n";
  std::size_t grant = 0;
  for (int i = 0; i < kCrashesMax; ++i) {
    End(grant++, i == 1 ? Failed("command_failed") : crashed);  // a failure between them does not count
    Advance(1s);
    Beat("w", 100);
  }
  ASSERT_FALSE(Outcome(job));
  End(grant, AttemptEnd::kHandedBack);
  ASSERT_FALSE(Outcome(job));
  End(++grant, crashed);
  ASSERT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(End_(job)->counters, (Counters{.deliveries = 5, .failures = 4, .crashes = 3}));
  EXPECT_EQ(ErrorClass(job), kErrorCrashQuarantine);
  EXPECT_EQ(End_(job)->report.signal, 11);
  EXPECT_EQ(End_(job)->report.exit_code, -1);
  EXPECT_EQ(End_(job)->report.log_tail, "last words\n");
  EXPECT_EQ(End_(job)->report.error, "its process died 3 times; at last: broke");
}

TEST_F(Lifecycle, AnAttemptGetsWhatIsLeftUntilTheDeadline) {
  Hello("w", 10);
  JobSpec cut = Job(), whole = Job(), alone = Job();
  cut.timeout = Millis{60'000};
  whole.timeout = Millis{1000};
  for (JobSpec* job : {&cut, &whole, &alone}) job->options.deadline = clock_.WallNow() + 5s;
  Submit({cut, whole, alone});
  ASSERT_EQ(grants_.size(), 3U);
  EXPECT_EQ(grants_[0].second.timeout_ms, 5000U);
  EXPECT_EQ(grants_[1].second.timeout_ms, 1000U);
  EXPECT_EQ(grants_[2].second.timeout_ms, 5000U);
  End(1, AttemptEnd::kTimedOut);
  EXPECT_FALSE(Outcome(whole)) << "its own timeout, and time is left";
  End(0, AttemptEnd::kTimedOut);
  EXPECT_EQ(Outcome(cut), JobState::kDead);
  EXPECT_EQ(ErrorClass(cut), kErrorDeadlineExceeded);
  for (int s = 0; s < 5; ++s) Advance(1s), Beat("w", 10, {{.job = alone.id, .token = grants_[2].second.token}});
  End(2, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(alone), JobState::kSucceeded) << "what succeeded has succeeded";
}

TEST_F(Lifecycle, PastItsDeadlineAJobIsDeadAlsoWhenItWaitsForItsBackoff) {
  Hello("w", 10);
  JobSpec job = Job();
  job.retry = {.max_attempts = 9, .backoff_base = Millis{60'000}, .backoff_cap = Millis{60'000}};
  job.options.backoff = Backoff::kFixed;
  job.options.deadline = clock_.WallNow() + 2s;
  job.options.expires_at = clock_.WallNow() + 1s;
  Submit({job});
  End(0, AttemptEnd::kFailed);
  Advance(1900ms);
  Beat("w", 10);
  EXPECT_FALSE(Outcome(job)) << "it was started in time: it does not expire";
  Advance(100ms);
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(ErrorClass(job), kErrorDeadlineExceeded);
  EXPECT_EQ(End_(job)->report.token, Token{});
  EXPECT_EQ(End_(job)->counters.failures, 1U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 0U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  Advance(60s);
  EXPECT_EQ(grants_.size(), 1U);
}

TEST_F(Lifecycle, ALostAttemptIsNotRepeatedAfterTheDeadline) {
  Hello("w", 10);
  JobSpec job = Job();
  job.options.deadline = clock_.WallNow() + 2s;
  Submit({job});
  ASSERT_EQ(grants_.size(), 1U);
  Hello("v", 10);
  for (int s = 0; s < 3; ++s) Advance(1s), Beat("v", 10);  // w is silent
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_EQ(Outcome(job), JobState::kDead);
  EXPECT_EQ(ErrorClass(job), kErrorDeadlineExceeded);
  EXPECT_EQ(End_(job)->counters, (Counters{.deliveries = 1, .failures = 0, .crashes = 0}));
}

TEST_F(Lifecycle, WaitingJobsExpireWhenNobodyClaimsThem) {
  std::vector<JobSpec> jobs;
  for (int i = 0; i < 900; ++i) {
    jobs.push_back(Job());
    if (i % 3 != 0) jobs.back().options.expires_at = clock_.WallNow() + 1s;
    if (i % 3 == 2) jobs.back().run_at = clock_.WallNow() + 10s;
  }
  Submit(jobs);
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 600U);
  ASSERT_TRUE(dispatcher_.NextDue());
  EXPECT_EQ(*dispatcher_.NextDue(), clock_.WallNow() + 1s);
  Advance(999ms);
  EXPECT_FALSE(Outcome(jobs[1]));
  Advance(1ms);
  std::set<JobId> expired;
  for (int i = 0; i < 900; ++i)
    if (Outcome(jobs[static_cast<std::size_t>(i)]) == JobState::kExpired) expired.insert(jobs[static_cast<std::size_t>(i)].id);
  EXPECT_EQ(expired.size(), 600U);
  EXPECT_EQ(ErrorClass(jobs[1]), kErrorExpired);
  EXPECT_EQ(queue_.Depth(ShardId{0})->ready, 300U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->scheduled, 0U);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 0U);
  const std::size_t before = queue_ops_;
  Hello("w", 1000);
  EXPECT_EQ(grants_.size(), 300U) << "the counts of lines are right: all that is left is granted";
  EXPECT_LE(queue_ops_ - before, 2U) << "and nothing is claimed in vain";
  for (const auto& [peer, grant] : grants_) EXPECT_FALSE(expired.contains(grant.id));
}

TEST_F(Lifecycle, AnExpiredJobIsNeverGrantedEvenWhenClaimAndExpiryCross) {
  JobSpec late = Job(), good = Job();
  late.options.expires_at = clock_.WallNow() + 1s;
  Submit({late, good});
  clock_.Advance(1s);  // no tick: the claim is planned at once
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  EXPECT_EQ(grants_[0].second.id, good.id);
  EXPECT_EQ(Outcome(late), JobState::kExpired);
  // The other way round: the claim is under way when the time comes.
  JobSpec crossing = Job();
  crossing.options.expires_at = clock_.WallNow() + 1s;
  hold_replies_ = true;
  Submit({crossing});
  clock_.Advance(1s);
  hold_replies_ = false;
  Handle(std::exchange(held_, {}));
  Settle();
  EXPECT_EQ(grants_.size(), 1U);
  EXPECT_EQ(Outcome(crossing), JobState::kExpired);
  EXPECT_EQ(queue_.Depth(ShardId{0})->in_flight, 1U) << "the good one runs";
}

TEST_F(Lifecycle, ExpiryAndDeadlineSurviveARebuild) {
  JobSpec expires = Job(), dies = Job();
  expires.options.expires_at = dies.options.deadline = clock_.WallNow() + 2s;
  Submit({expires, dies});
  queue_.Wipe();
  Hello("w", 0);
  Advance(1s);
  Submit({Job()});  // finds the queue wiped
  for (int i = 0; i < 6; ++i) Advance(500ms), Beat("w", 0);
  EXPECT_EQ(Outcome(expires), JobState::kExpired);
  EXPECT_EQ(Outcome(dies), JobState::kDead);
}

TEST_F(Lifecycle, TimeEndsJobsOfARunWhereverTheyWait) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Job(), Job(), Job(), Job()};
  jobs[0].stage = "hangs";
  jobs[1].stage = "blocked";
  jobs[1].depends_on = {jobs[0].id};
  jobs[1].options.deadline = clock_.WallNow() + 2s;
  jobs[2].depends_on = {jobs[1].id};
  jobs[3].run_at = clock_.WallNow() + 10s;
  jobs[3].options.expires_at = clock_.WallNow() + 3s;
  const RunSpec run = SubmitRun(jobs);
  ASSERT_EQ(grants_.size(), 1U);
  const auto held = [&] { return std::vector<wire::Hello::Held>{{.job = jobs[0].id, .token = grants_[0].second.token}}; };
  for (int i = 0; i < 2; ++i) Advance(1s), Beat("w", 100, held());
  EXPECT_EQ(Outcome(jobs[1]), JobState::kDead);
  EXPECT_EQ(ErrorClass(jobs[1]), kErrorDeadlineExceeded);
  EXPECT_EQ(Outcome(jobs[2]), JobState::kSkipped);
  Advance(1s);
  Beat("w", 100, held());
  EXPECT_EQ(Outcome(jobs[3]), JobState::kExpired);
  EXPECT_FALSE(ledger_.run_outcomes.contains(run.id));
  End(0, AttemptEnd::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kFailed);
}

TEST_F(Lifecycle, ARunThatWaitsForItsTurnCanEndByTime) {
  Hello("w", 100);
  std::vector<JobSpec> first{Job()}, queued{Job(), Job()}, third{Job()};
  queued[1].depends_on = {queued[0].id};
  for (JobSpec& job : queued) job.options.expires_at = clock_.WallNow() + 1s;
  SubmitRun(first);
  const RunSpec run = SubmitRun(queued);
  SubmitRun(third);
  Advance(1s);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kFailed);
  End(0, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 2U);
  EXPECT_EQ(grants_[1].second.id, third[0].id);
  End(1, AttemptEnd::kSucceeded);
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

TEST_F(Lifecycle, AUniqueKeyIsHeldUntilItsJobEnds) {
  Hello("w", 10);
  const JobSpec holder = Unique("k"), second = Unique("k"), other = Unique("other");
  JobSpec elsewhere = Unique("k");
  elsewhere.queue = "another";
  JobSpec org = Unique("k");
  org.org = OrgId{2};
  Submit({holder, second, other, elsewhere, org});
  EXPECT_EQ(Answer(0).conflict_with, Uuid{});
  EXPECT_EQ(Answer(1).conflict_with, holder.id.uuid);
  EXPECT_FALSE(Answer(1).duplicate);
  for (const std::size_t i : {2U, 3U, 4U}) EXPECT_EQ(Answer(i).conflict_with, Uuid{});
  EXPECT_FALSE(ledger_.jobs.contains(second.id)) << "nothing of it was written";
  EXPECT_EQ(grants_.size(), 4U);
  Submit({holder});
  EXPECT_TRUE(Answer().duplicate) << "the holder itself, submitted again";
  EXPECT_EQ(Answer().conflict_with, Uuid{});
  Submit({second});
  EXPECT_EQ(Answer().conflict_with, holder.id.uuid);
  End(0, AttemptEnd::kSucceeded);
  Submit({second});
  EXPECT_EQ(Answer().conflict_with, Uuid{});
  EXPECT_TRUE(ledger_.jobs.contains(second.id));
}

TEST_F(Lifecycle, AKeyUntilStartedIsFreeWithTheFirstGrantAndAWindowByTime) {
  const JobSpec waits = Unique("k", UniqueUntil::kStarted), next = Unique("k", UniqueUntil::kStarted);
  Submit({waits});
  Submit({next});
  EXPECT_EQ(Answer().conflict_with, waits.id.uuid);
  Hello("w", 10);
  ASSERT_EQ(grants_.size(), 1U);
  Submit({next});
  EXPECT_EQ(Answer().conflict_with, Uuid{});
  JobSpec window = Unique("w", UniqueUntil::kWindow), later = Unique("w", UniqueUntil::kWindow);
  window.options.unique_window = later.options.unique_window = Millis{5000};
  Submit({window});
  End(grants_.size() - 1, AttemptEnd::kSucceeded);
  Advance(4s);
  Submit({later});
  EXPECT_EQ(Answer().conflict_with, window.id.uuid) << "ended or not";
  Advance(1s);
  Submit({later});
  EXPECT_EQ(Answer().conflict_with, Uuid{});
}

TEST_F(Lifecycle, AUniqueKeyThatCannotBeKeptIsRefused) {
  std::vector<JobSpec> of_run{Unique("k")};
  SubmitRun(of_run);
  ASSERT_NE(Last<wire::Problem>(), nullptr);
  EXPECT_NE(Last<wire::Problem>()->message.find("only a single job"), std::string::npos);
  Submit({Unique("k", UniqueUntil::kWindow)});
  EXPECT_NE(Last<wire::Problem>()->message.find("not a window"), std::string::npos);
}

TEST_F(Lifecycle, ACallbackRunsWhenAllOfItsBatchHasEndedHoweverThatWas) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Job(), Job(), Job(), Job(), Job()};
  jobs[2].depends_on = {jobs[1].id};
  jobs[3].depends_on = {jobs[0].id, jobs[1].id, jobs[2].id};
  jobs[3].options.run_when = RunWhen::kAllEnded;
  jobs[4].depends_on = {jobs[3].id, jobs[2].id};
  const RunSpec run = SubmitRun(jobs);
  ASSERT_EQ(grants_.size(), 2U);
  const std::size_t dies = grants_[0].second.id == jobs[1].id ? 0 : 1;
  End(dies, AttemptEnd::kFailed, false);
  EXPECT_EQ(Outcome(jobs[2]), JobState::kSkipped);
  EXPECT_EQ(Outcome(jobs[4]), JobState::kSkipped) << "one of its needs was skipped: nothing to wait for";
  EXPECT_EQ(grants_.size(), 2U) << "the callback still waits for the third";
  End(1 - dies, AttemptEnd::kSucceeded);
  ASSERT_EQ(grants_.size(), 3U);
  EXPECT_EQ(grants_[2].second.id, jobs[3].id);
  End(2, AttemptEnd::kSucceeded);
  EXPECT_EQ(Outcome(jobs[3]), JobState::kSucceeded);
  EXPECT_EQ(ledger_.run_outcomes.at(run.id).state, RunState::kFailed) << "a callback does not make the batch a success";
  EXPECT_EQ(dispatcher_.live_runs(), 0U);
}

TEST_F(Lifecycle, ACallbackComesThroughARebuild) {
  Hello("w", 100);
  std::vector<JobSpec> jobs{Job(), Job(), Job()};
  jobs[2].depends_on = {jobs[0].id, jobs[1].id};
  jobs[2].options.run_when = RunWhen::kAllEnded;
  SubmitRun(jobs);
  End(0, AttemptEnd::kFailed, false);
  queue_.Wipe();
  Submit({Job()});  // finds the queue wiped
  Advance(1s);
  Beat("w", 100);
  std::size_t again = grants_.size();
  for (std::size_t i = 2; i < grants_.size(); ++i)
    if (grants_[i].second.id == grants_[1].second.id) again = i;
  ASSERT_LT(again, grants_.size());
  End(again, AttemptEnd::kFailed, false);
  EXPECT_TRUE(std::ranges::any_of(grants_, [&](const auto& g) { return g.second.id == jobs[2].id; }));
}

}  // namespace
}  // namespace millrace::test
