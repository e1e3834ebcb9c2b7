// Which weeks go by age and by bytes, and what of the lake goes with them.
#include "client/cli/retention.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "tests/support/memory_ledger.h"

namespace millrace::cli {
namespace {

constexpr auto kWeek = std::chrono::hours{24 * 7};
const WallTime kMonday = *ParseRfc3339("2023-11-13T00:00:00Z");

std::vector<RetainedWeek> Weeks() {
  std::vector<RetainedWeek> weeks;
  for (int i = 0; i < 4; ++i) weeks.push_back({.begin = kMonday + i * kWeek, .jobs = 1, .runs = 0, .bytes = 100});
  return weeks;
}

TEST(RetentionTest, AgeAndBytesDecideTogether) {
  const WallTime now = kMonday + 4 * kWeek;
  EXPECT_EQ(PruneBefore({}, Weeks(), now), WallTime{});
  EXPECT_EQ(PruneBefore({.age = Millis{kWeek}, .bytes = 0}, Weeks(), now), now - kWeek);
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 400}, Weeks(), now), WallTime{}) << "all fit";
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 399}, Weeks(), now), kMonday + kWeek) << "the oldest goes";
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 200}, Weeks(), now), kMonday + 2 * kWeek);
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 1}, Weeks(), now), kMonday + 4 * kWeek);
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 1}, Weeks(), now - 1s), now - 1s) << "the present week is not over";
  EXPECT_EQ(PruneBefore({.age = Millis{kWeek}, .bytes = 399}, Weeks(), now), now - kWeek) << "whichever takes more";
  EXPECT_EQ(PruneBefore({.age = Millis{10 * kWeek}, .bytes = 399}, Weeks(), now), kMonday + kWeek);
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 1}, {}, now), WallTime{});
}

TEST(RetentionTest, ALargeHistoryWithoutRetentionGrowsWithoutBound) {
  const HistorySize jobs{.finished_jobs = kUnprunedJobsMax + 1, .bytes = 0},
      bytes{.finished_jobs = 0, .bytes = kUnprunedBytesMax + 1};
  const HistorySize small{.finished_jobs = kUnprunedJobsMax, .bytes = kUnprunedBytesMax};
  EXPECT_TRUE(GrowsWithoutBound({}, jobs));
  EXPECT_TRUE(GrowsWithoutBound({}, bytes));
  EXPECT_FALSE(GrowsWithoutBound({}, small));
  EXPECT_FALSE(GrowsWithoutBound({.age = Millis{kWeek}, .bytes = 0}, jobs)) << "by age";
  EXPECT_FALSE(GrowsWithoutBound({.age = {}, .bytes = 1}, bytes)) << "by bytes";
}

TEST(RetentionTest, ResultsGoWithTheirRuns) {
  std::string lake = (std::filesystem::temp_directory_path() / "mr_retention_XXXXXX").string();
  ASSERT_NE(mkdtemp(lake.data()), nullptr);
  EXPECT_EQ(RemoveResults(lake, kMonday), 0u) << "there is no folder of results";
  const auto make = [&](WallTime time) {
    Uuid id;
    id.bytes[6] = 0x70;
    const auto ms = static_cast<std::uint64_t>(ToUnixMicros(time) / 1000);
    for (std::size_t i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
    const std::filesystem::path folder = lake + "/results/" + id.ToString();
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "a") << "a";
    std::ofstream(folder / "b") << "b";
    return folder;
  };
  const auto old = make(kMonday - 1s), young = make(kMonday);
  std::filesystem::create_directories(lake + "/results/of somebody else");
  EXPECT_EQ(RemoveResults(lake, kMonday), 2u);
  EXPECT_FALSE(std::filesystem::exists(old));
  EXPECT_TRUE(std::filesystem::exists(young / "a"));
  EXPECT_TRUE(std::filesystem::exists(lake + "/results/of somebody else"));
  EXPECT_EQ(RemoveResults(lake, kMonday), 0u);
  std::filesystem::remove_all(lake);
}

// Three steps of one row each; while `held` they wait, two seconds each time they are asked.
class HeldLedger final : public test::MemoryLedger {
 public:
  explicit HeldLedger(FakeClock& clock) : MemoryLedger(clock), clock_(clock) {}
  std::function<bool()> held;
  int left = 3, despite = 0;
  Result<PruneStep> PruneOldest(const PruneRequest& request, MonoTime) override {
    PruneStep step;
    despite += request.despite_verification ? 1 : 0;
    step.waits = !request.despite_verification && held();
    if (step.waits) clock_.Advance(2s);
    if (!step.waits) step.rows = 1, --left;
    step.more = left > 0;
    return step;
  }

 private:
  FakeClock& clock_;
};

TEST(RetentionTest, AVerificationIsWaitedForButNotForEver) {
  FakeClock clock;
  const MonoTime start = clock.Now();
  HeldLedger ledger(clock);
  ledger.held = [&] { return clock.Now() < start + 10min; };
  const auto prune = [&](const std::function<bool()>& stop) { return PruneHistory(ledger, {}, "/nonexistent", clock, stop); };
  auto total = prune([] { return false; });
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->rows, 3u);
  EXPECT_EQ(total->steps, 3u) << "waiting is no step";
  EXPECT_EQ(ledger.despite, 0);
  EXPECT_EQ(clock.Now(), start + 10min);

  ledger.held = [] { return true; };
  ledger.left = 3;
  total = prune([] { return false; });
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->rows, 3u);
  EXPECT_EQ(ledger.despite, 3);
  EXPECT_EQ(clock.Now(), start + 10min + 1h + 2s);

  // Short verifications, one before each step: together they take longer than one may.
  ledger.left = 3;
  ledger.despite = 0;
  MonoTime since = clock.Now();
  int left = 3;
  ledger.held = [&] {
    if (ledger.left != left) left = ledger.left, since = clock.Now();
    return clock.Now() < since + 50min;
  };
  const MonoTime begun = clock.Now();
  total = prune([] { return false; });
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->rows, 3u);
  EXPECT_EQ(ledger.despite, 0) << "nobody verified for an hour";
  EXPECT_EQ(clock.Now(), begun + 150min);

  ledger.held = [] { return true; };
  ledger.left = 3;
  const MonoTime told = clock.Now();
  total = prune([&] { return clock.Now() > told + 5min; });
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->rows, 0u) << "who is told to stop waits no longer";
  EXPECT_LE(clock.Now(), told + 5min + 2s);
}

}  // namespace
}  // namespace millrace::cli
