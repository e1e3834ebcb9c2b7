#include "common/base/tell.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace millrace {
namespace {

TEST(TellDeathTest, WordsThatCannotBeWrittenAreLostAndNothingElse) {
  const auto tell_into = [](const char* path) {
    ::dup2(::open(path, O_WRONLY), STDERR_FILENO);
    Tell("{} jobs\n", 3);
    std::_Exit(7);
  };
  EXPECT_EXIT(tell_into("/dev/full"), ::testing::ExitedWithCode(7), "");
  EXPECT_EXIT(
      {
        ::close(STDERR_FILENO);
        Tell("{} jobs\n", 3);
        std::_Exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

// 7: the files that are opened next get numbers of their own, and stdin and stdout are still no files.
TEST(TellDeathTest, NoFileGetsTheNumberOfAClosedOne) {
  const auto closed = [] {
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(fd);
    HoldStandardFiles();
    char byte = 0;
    if (::open("/dev/null", O_RDONLY) <= STDERR_FILENO) std::_Exit(1);
    if (::read(STDIN_FILENO, &byte, 1) >= 0 || ::write(STDOUT_FILENO, "", 1) >= 0) std::_Exit(2);
    std::_Exit(::write(STDERR_FILENO, "", 1) == 1 ? 7 : 3);
  };
  EXPECT_EXIT(closed(), ::testing::ExitedWithCode(7), "");
}

TEST(TellTest, TheWordsAreThere) {
  ::testing::internal::CaptureStderr();
  Tell("{} {}\n", 3, "jobs");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "3 jobs\n");
}

}  // namespace
}  // namespace millrace
