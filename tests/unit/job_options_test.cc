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

TEST(JobOptions, ComplaintsNameTheKey) {
  const std::pair<std::string, std::string> cases[] = {
      {R"({"limit_key":7})", "options: limit_key: expected a string"},
      {R"({"limitkey":"a"})", "options: limitkey: unknown key"},
      {R"({"backoff":"linear"})", "options: backoff: unknown value 'linear'"},
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
