// The log-linear histogram, the payload and the scoreboard that benchmarks rest on.
#include "client/bench/histogram.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <vector>

#include "client/bench/payload.h"
#include "client/bench/scoreboard.h"
#include "common/base/random.h"

namespace millrace::bench {
namespace {

TEST(Histogram, EveryBucketHoldsItsUpperEdgeAndNothingBeyond) {
  for (std::size_t bucket = 0; bucket < Histogram::kBuckets; ++bucket) {
    const std::uint64_t edge = Histogram::UpperEdge(bucket);
    ASSERT_EQ(Histogram::BucketOf(edge), bucket);
    if (bucket + 1 < Histogram::kBuckets) {
      ASSERT_EQ(Histogram::BucketOf(edge + 1), bucket + 1);
    }
  }
  EXPECT_EQ(Histogram::UpperEdge(Histogram::kBuckets - 1), Histogram::kMaxMicros);
}

TEST(Histogram, QuantilesAreWithinTheStatedErrorOfTheExactOnes) {
  SeededRandom random(7);
  auto histogram = std::make_unique<Histogram>();
  std::vector<std::uint64_t> values;
  for (int i = 0; i < 20'000; ++i) {
    values.push_back(random.Below(std::uint64_t{1} << (1 + random.Below(30))));
    histogram->Add(static_cast<std::int64_t>(values.back()));
  }
  std::ranges::sort(values);
  for (const double share : {0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const std::uint64_t exact = values[static_cast<std::size_t>(std::ceil(share * 20'000)) - 1];
    const std::uint64_t got = histogram->Quantile(share);
    EXPECT_GE(got, exact) << share;
    EXPECT_LE(static_cast<double>(got), static_cast<double>(exact) * 1.016 + 1) << share;
  }
  EXPECT_EQ(histogram->Max(), values.back());
  EXPECT_EQ(histogram->count(), 20'000u);
}

TEST(Histogram, EmptyNegativeAndHugeValues) {
  auto histogram = std::make_unique<Histogram>();
  EXPECT_EQ(histogram->Quantile(0.5), 0u);
  EXPECT_EQ(histogram->Max(), 0u);
  histogram->Add(-5);
  EXPECT_EQ(histogram->Quantile(1.0), 0u);
  histogram->Add(INT64_MAX);
  EXPECT_EQ(histogram->Max(), Histogram::kMaxMicros);
  EXPECT_EQ(histogram->Quantile(1.0), Histogram::kMaxMicros);
}

TEST(Histogram, MergingIsAddingAll) {
  auto a = std::make_unique<Histogram>(), b = std::make_unique<Histogram>(), all = std::make_unique<Histogram>();
  for (std::int64_t i = 0; i < 1000; ++i) {
    (i % 3 == 0 ? *a : *b).Add(i * i);
    all->Add(i * i);
  }
  a->Merge(*b);
  EXPECT_EQ(a->count(), all->count());
  EXPECT_EQ(a->Max(), all->Max());
  for (const double share : {0.1, 0.5, 0.99}) EXPECT_EQ(a->Quantile(share), all->Quantile(share));
}

TEST(Payload, ComesBackAsItWasAndShowsDamage) {
  for (const std::size_t bytes : {std::size_t{16}, std::size_t{23}, std::size_t{100}, std::size_t{4096}}) {
    const Payload payload{.number = 123'456'789, .intended = MonoTime{Micros{42}}};
    std::string text = EncodePayload(payload, bytes);
    ASSERT_EQ(text.size(), bytes);
    const auto back = DecodePayload(text);
    ASSERT_TRUE(back);
    EXPECT_EQ(back->number, payload.number);
    EXPECT_EQ(back->intended, payload.intended);
    if (bytes == kPayloadBytesMin) continue;
    text.back() = static_cast<char>(text.back() ^ 1);
    EXPECT_FALSE(DecodePayload(text)) << bytes;
  }
  EXPECT_FALSE(DecodePayload("short"));
  EXPECT_NE(EncodePayload({.number = 1}, 100).substr(16), EncodePayload({.number = 2}, 100).substr(16));
}

TEST(Scoreboard, TwoMappingsOfOneFileAreOneScoreboard) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("millrace-scoreboard-" + std::to_string(::getpid()))).string();
  const auto client = Scoreboard::Open(path, 10, 2);
  auto handler = Scoreboard::Open(path, 10, 2);
  ASSERT_TRUE(client && handler);
  handler->Mark(3);
  handler->Mark(3);
  handler->Mark(9);
  handler->Mark(10);  // not one of them
  Bump(handler->handler(0).executed, 2);
  Bump(handler->handler(1).executed);
  handler->handler(1).pickup.Add(77);
  EXPECT_EQ(client->Executions(3), 2);
  EXPECT_EQ(client->Executions(9), 1);
  EXPECT_EQ(client->Executions(0), 0);
  EXPECT_EQ(client->Executed(), 3u);
  EXPECT_EQ(client->Recorded(), 0u);
  EXPECT_EQ(client->handler(1).pickup.Max(), 77u);
  for (int i = 0; i < 400; ++i) handler->Mark(0);
  EXPECT_EQ(client->Executions(0), 255) << "it does not wrap to 'never'";
  std::filesystem::remove(path);
  EXPECT_FALSE(Scoreboard::Open("/no/such/folder/board", 1, 1));
}

}  // namespace
}  // namespace millrace::bench
