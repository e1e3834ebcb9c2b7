#include "common/base/log.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

std::string Logged(LogFormat format, std::string process, std::string_view message) {
  ConfigureLog(LogLevel::kInfo, format, std::move(process));
  testing::internal::CaptureStderr();
  LogDebug("{}", "below the level");
  LogInfo("{}", message);
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, JsonIsOneEscapedLineInUtc) {
  const std::string line = Logged(LogFormat::kJson, "w\"%v", "a\r\n\"b\"");
  EXPECT_TRUE(line.starts_with("{\"time\":\"20")) << line;
  EXPECT_TRUE(line.ends_with("Z\",\"level\":\"info\",\"process\":\"w\\\"%v\",\"message\":\"a\\u000d\\u000a\\\"b\\\"\"}\n"))
      << line;
}

TEST(LogTest, TextIsOneLineWhateverTheMessage) {
  const std::string line = Logged(LogFormat::kText, "broker", "a\r\nforged\x1b[2J");
  EXPECT_TRUE(line.ends_with(" broker: a\\r\\nforged\\x1b[2J\n")) << line;
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

}  // namespace
}  // namespace millrace
