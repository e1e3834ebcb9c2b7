#include "common/model/job_options.h"

#include <gtest/gtest.h>

#include "common/base/random.h"
#include "tests/support/random_messages.h"

namespace millrace {
namespace {

TEST(JobOptions, DefaultsAreNoText) {
  EXPECT_EQ(ToJson(JobOptions{}), "");
  const auto read = JobOptionsFromJson("");
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, JobOptions{});
}

TEST(JobOptions, EveryOptionSurvivesTheText) {
  SeededRandom seed(7);
  testing::RandomMessages random(seed);
  for (int i = 0; i < 500; ++i) {
    const JobOptions options = random.MakeOptions();
    const std::string text = ToJson(options);
    ASSERT_LE(text.size(), kJobOptionsBytesMax);
    const auto read = JobOptionsFromJson(text);
    ASSERT_TRUE(read) << read.error().message << "\n" << text;
    ASSERT_EQ(*read, options) << text;
  }
}

// The usual texts have a way of their own, which must be no other.
TEST(JobOptions, WhatIsUsualIsReadAndWrittenLikeEverythingElse) {
  JobOptions options;
  options.limit_key = "key-17";
  options.durability = Durability::kRedis;
  EXPECT_EQ(ToJson(options), R"({"limit_key":"key-17","durability":"redis"})");
  options.limit_key.clear();
  EXPECT_EQ(ToJson(options), R"({"durability":"redis"})");
  options.durability = Durability::kLedger;
  EXPECT_EQ(ToJson(options), R"({"durability":"ledger"})");
  options.durability = Durability::kUnsaid;
  options.limit_key = "a \"b\"";
  EXPECT_EQ(ToJson(options), R"({"limit_key":"a \"b\""})");
  const std::pair<std::string, std::optional<std::string>> cases[] = {
      {R"({})", ""},
      {R"({"limit_key":"k"})", "k"},
      {R"({ "limit_key" : "k" })", "k"},
      {R"({"limit_key":"k","durability":"redis"})", "k"},
      {R"({"durability":"redis","limit_key":"k"})", "k"},
      {R"({"limit_key":"k","durability":"ledger"})", "k"},
      {R"({"limit_key":"a\u0041\\"})", "aA\\"},
      {R"({"limit_key":"ä"})", "ä"},
      {R"({"limit_key":"k""durability":"redis"})", std::nullopt},
      {R"({"limit_key":"k",})", std::nullopt},
      {R"({,"durability":"redis"})", std::nullopt},
      {R"({"limit_key":"k"}})", std::nullopt},
      {R"({"limit_key":"k","durability":"redis")", std::nullopt},
      {R"({"limit_key":"k)", std::nullopt},
      {R"({"durability":"disk"})", std::nullopt},
      {R"({"durability":"unsaid"})", std::nullopt},
      {"{\"limit_key\":\"a\nb\"}", std::nullopt},
      {"{\"limit_key\":\"\xff\"}", std::nullopt},
  };
  for (const auto& [text, key] : cases) {
    const auto read = JobOptionsFromJson(text);
    ASSERT_EQ(read.has_value(), key.has_value()) << text;
    if (!read) continue;
    EXPECT_EQ(read->limit_key, *key) << text;
    EXPECT_EQ(read->durability == Durability::kRedis, text.find("redis") != std::string::npos) << text;
    EXPECT_EQ(read->durability == Durability::kLedger, text.find("ledger") != std::string::npos) << text;
  }
}

TEST(JobOptions, ComplaintsNameTheKey) {
  const std::pair<std::string, std::string> cases[] = {
      {R"({"limit_key":7})", "options: limit_key: expected a string"},
      {R"({"limitkey":"a"})", "options: limitkey: unknown key"},
      {R"({"backoff":"linear"})", "options: backoff: unknown value 'linear'; give one of exponential, fixed"},
      {R"({"unique_until":"never"})", "options: unique_until: unknown value 'never'; give one of started, ended, window"},
      {R"({"unique_key":""})", "options: unique_key: is empty; give 1 to 128 bytes, or leave it out"},
      {R"({"unique_window_ms":-1})", "options: unique_window_ms: -1 is negative"},
      {R"({"limit_key":")" + std::string(200, 'x') + "\"}", "options: limit_key: 200 bytes, limit 128"},
      {R"({"unique_key":"a\u0001b"})", "options: unique_key: contains a control character"},
      {"[]", "options: expected an object"},
      {"{", "options: not a JSON document"},
  };
  for (const auto& [text, message] : cases) {
    const auto read = JobOptionsFromJson(text);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(read.error().message, message);
  }
}

}  // namespace
}  // namespace millrace
