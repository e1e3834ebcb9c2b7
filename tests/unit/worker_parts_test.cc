// The small parts of a worker that need no process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "common/base/limits.h"
#include "worker/command_runner.h"
#include "worker/log_tail.h"
#include "worker/result_file.h"
#include "worker/stage_frames.h"

namespace millrace::worker {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::Not;

TEST(StageFramesTest, FramesSurviveAnyCut) {
  const std::string stream = EncodeStageFrame("{\"ready\":true}") + EncodeStageFrame("") + EncodeStageFrame("{\"a\":1}");
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    StageFrameParser parser;
    std::vector<std::string> frames;
    for (std::size_t i = 0; i < stream.size(); i += piece) {
      parser.Append(std::string_view(stream).substr(i, piece));
      while (true) {
        auto next = parser.Next();
        ASSERT_TRUE(next);
        if (!*next) break;
        frames.push_back(**next);
      }
    }
    EXPECT_THAT(frames, ElementsAre("{\"ready\":true}", "", "{\"a\":1}"));
  }
}

TEST(StageFramesTest, ALengthOverTheLimitEndsTheStream) {
  StageFrameParser parser;
  parser.Append("\x01\x00\x80");
  EXPECT_FALSE(*parser.Next());
  StageFrameParser bad;
  bad.Append(std::string("\x01\x00\x80\x00", 4));  // 8 MiB + 1
  EXPECT_EQ(bad.Next().error().code, ErrorCode::kCorrupt);
}

TEST(StageFramesTest, MessagesAreChecked) {
  EXPECT_TRUE(std::holds_alternative<StageReady>(*ParseStageMessage("{\"ready\":true}")));
  const auto progress = ParseStageMessage("{\"progress\":{\"rows\":5,\"bytes\":60}}");
  ASSERT_TRUE(progress);
  EXPECT_EQ(std::get<StageProgress>(*progress).rows, 5);
  EXPECT_EQ(std::get<StageProgress>(*progress).bytes, 60);
  StageResult result;
  result.ok = true;
  result.rows.read = result.rows.loaded = 3;
  const auto parsed = ParseStageMessage("{\"result\":" + ToJson(result) + "}");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(std::get<StageResult>(*parsed), result);
  for (const char* bad :
       {"", "[]", "{}", "{\"x\":1}", "{\"ready\":true,\"result\":{}}", "{\"result\":5}", "{\"progress\":5}", "{"})
    EXPECT_FALSE(ParseStageMessage(bad)) << bad;
}

TEST(LogTailTest, KeepsTheEndFromALinesStart) {
  LogTail tail;
  EXPECT_EQ(tail.Text(), "");
  tail.Append("short\n");
  EXPECT_EQ(tail.Text(), "short\n");
  for (int i = 0; i < 5000; ++i) tail.Append("line " + std::to_string(i) + "\n");
  EXPECT_LE(tail.Text().size(), kLogTailBytesMax);
  EXPECT_THAT(tail.Text(), EndsWith("line 4999\n"));
  EXPECT_TRUE(tail.Text().starts_with("line "));
  tail.Append(std::string(100'000, 'x'));
  EXPECT_EQ(tail.Text(), std::string(kLogTailBytesMax, 'x'));
}

TEST(LogTailTest, ForwardsWholeLinesCutToTheLimit) {
  std::vector<std::string> lines;
  LogTail tail([&](std::string_view line) { lines.emplace_back(line); });
  tail.Append("one\ntw");
  tail.Append("o\n" + std::string(5000, 'y') + "\n\xFF\n");
  EXPECT_THAT(lines, ElementsAre("one", "two", std::string(LogTail::kLineBytesMax, 'y'), "?"));
}

TEST(CommandRunnerTest, LaterVariablesReplaceEarlierOnes) {
  CommandTask task;
  task.command.argv = {"x"};
  task.command.env = {{"LANG", "C"}, {"MILLRACE_TOKEN", "forged"}};
  task.base_dir = "/somewhere";
  task.stage = "s";
  const ChildOptions child = CommandChild(task, Token{9}, {"LANG=de_DE", "PATH=/bin"}, "/scratch", 5);
  EXPECT_THAT(child.env, Contains("LANG=C"));
  EXPECT_THAT(child.env, Not(Contains("LANG=de_DE")));
  EXPECT_THAT(child.env, Contains("MILLRACE_TOKEN=9"));
  EXPECT_THAT(child.env, Not(Contains("MILLRACE_TOKEN=forged")));
  EXPECT_EQ(EnvValue(child.env, "PATH"), "/bin");
  EXPECT_EQ(EnvValue(child.env, "MILLRACE_RESULT"), "/scratch/result");
  EXPECT_EQ(EnvValue(child.env, "MILLRACE_PROGRESS"), "/scratch/progress");
  EXPECT_EQ(EnvValue(child.env, "PAT"), "");
  EXPECT_EQ(child.cwd, "/somewhere");
}

TEST(CommandRunnerTest, ACommandSpeaksForItsOrgUnlessItsStageSaysOtherwise) {
  CommandTask task;
  task.command.argv = {"x"};
  EXPECT_EQ(EnvValue(CommandChild(task, Token{9}, {"MILLRACE_ORG=3"}, "/scratch", 0).env, "MILLRACE_ORG"), "1");
  task.org = OrgId{7};
  EXPECT_EQ(EnvValue(CommandChild(task, Token{9}, {}, "/scratch", 0).env, "MILLRACE_ORG"), "7");
  task.command.env = {{"MILLRACE_ORG", "8"}};
  const ChildOptions child = CommandChild(task, Token{9}, {}, "/scratch", 0);
  EXPECT_THAT(child.env, Contains("MILLRACE_ORG=8"));
  EXPECT_THAT(child.env, Not(Contains("MILLRACE_ORG=7")));
}

TEST(CommandRunnerTest, EndsAreDescribed) {
  const auto describe = [](ExitStatus exit) {
    AttemptReport report;
    DescribeCommandEnd(exit, report);
    return report;
  };
  EXPECT_EQ(describe({0, 0}).end, AttemptEnd::kSucceeded);
  EXPECT_TRUE(StageResultFromJson(describe({0, 0}).result)->rows.Balanced());
  EXPECT_EQ(describe({1, 0}).end, AttemptEnd::kFailed);
  EXPECT_EQ(describe({1, 0}).error, "the command ended with exit code 1");
  EXPECT_EQ(describe({75, 0}).error_class, "temporary_failure");
  EXPECT_TRUE(describe({75, 0}).retryable);
  EXPECT_EQ(describe({0, 9}).end, AttemptEnd::kCrashed);
}

// One class for all of them (ops/docs/errors.md), and none that another attempt could mend.
TEST(ResultFileTest, WhatIsNoPlainFileIsNoResult) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("millrace-result-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder / "a folder");
  std::filesystem::create_symlink("nowhere", folder / "a symbolic link");
  ASSERT_EQ(::mkfifo((folder / "a pipe or device").c_str(), 0600), 0);
  for (const char* what : {"a folder", "a symbolic link", "a pipe or device"}) {
    StageResult result;
    const auto taken = TakeOutput((folder / what).string(), folder.string(), RunId{}, JobId{}, Token{}, result);
    ASSERT_FALSE(taken) << what;
    EXPECT_EQ(taken.error().code, ErrorCode::kInvalidArgument) << what;
    EXPECT_EQ(taken.error().message,
              fmt::format("$MILLRACE_RESULT is {}: what a command gives back it writes into a plain file "
                          "of that name",
                          what));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace millrace::worker
