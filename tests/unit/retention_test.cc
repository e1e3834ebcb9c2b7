// Which weeks go by age and by bytes, and what of the lake goes with them.
#include "client/cli/retention.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

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
  EXPECT_EQ(PruneBefore({.age = Millis{kWeek}, .bytes = 399}, Weeks(), now), now - kWeek) << "whichever takes more";
  EXPECT_EQ(PruneBefore({.age = Millis{10 * kWeek}, .bytes = 399}, Weeks(), now), kMonday + kWeek);
  EXPECT_EQ(PruneBefore({.age = {}, .bytes = 1}, {}, now), WallTime{});
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

}  // namespace
}  // namespace millrace::cli
