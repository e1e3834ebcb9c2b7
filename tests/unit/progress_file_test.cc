// What a command says of how far it is: which lines are taken, and that nothing in that file holds the worker up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "worker/progress_file.h"

namespace millrace::worker {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ProgressFileTest : public ::testing::Test {
 protected:
  ProgressFileTest() : dir_(fs::temp_directory_path() / ("mr_progress_" + std::to_string(::getpid()))) {
    fs::create_directories(dir_);
  }
  ~ProgressFileTest() override { fs::remove_all(dir_); }
  std::string path() const { return dir_ / "progress"; }
  Result<std::optional<ProgressCounts>> Read(const std::string& content) {
    std::ofstream(path(), std::ios::trunc) << content;
    return ReadProgressFile(path());
  }
  fs::path dir_;
};

TEST_F(ProgressFileTest, TheLastCompleteLineCounts) {
  EXPECT_EQ(ReadProgressFile(path()).value(), std::nullopt) << "no file";
  EXPECT_EQ(Read("").value(), std::nullopt);
  EXPECT_EQ(Read("7 4096\n").value(), (ProgressCounts{7, 4096}));
  EXPECT_EQ(Read("1 2\n30 40\n").value(), (ProgressCounts{30, 40})) << "appended";
  EXPECT_EQ(Read("1 2\n30 4").value(), (ProgressCounts{1, 2})) << "the rest is still to come";
  EXPECT_EQ(Read("\n7 8\n").value(), (ProgressCounts{7, 8}));
  EXPECT_EQ(Read("45\n").value(), (ProgressCounts{45, 0}));
}

TEST_F(ProgressFileTest, OnlyTheEndOfALongFileIsRead) {
  std::string much;
  for (int i = 0; i < 10'000; ++i) much += std::to_string(i) + " 1\n";
  EXPECT_EQ(Read(much).value(), (ProgressCounts{9999, 1}));
  EXPECT_EQ(Read(std::string(1'000'000, 'x') + "\n3 4\n").value(), (ProgressCounts{3, 4}));
  EXPECT_THAT(Read(std::string(kProgressBytesMax, '1') + "\n").error().message, HasSubstr("256 bytes"))
      << "a number whose beginning was not read";
  EXPECT_FALSE(Read(std::string(1'000'000, '1')));
}

TEST_F(ProgressFileTest, AnythingElseIsRefused) {
  for (const char* bad : {"7 8", "\n", "7 8\n\n", "-1 2\n", "-0 2\n", "1 -2\n", "+1 2\n", "1 2 3\n", "1,2\n", "1x 2\n",
                          "half\n", "9223372036854775808 0\n", "1.5 2\n"})
    EXPECT_FALSE(Read(bad)) << bad;
  EXPECT_THAT(Read("half done\n").error().message, HasSubstr("'half done' is not 'ROWS BYTES'"));
  EXPECT_LT(Read(std::string(200, 'y') + "\n").error().message.size(), 200u);
  EXPECT_EQ(ParseProgress("9223372036854775807\t0\r"), (ProgressCounts{INT64_MAX, 0}));
}

TEST_F(ProgressFileTest, WhatIsNoPlainFileIsNotWaitedFor) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  EXPECT_THAT(ReadProgressFile(path()).error().message, HasSubstr("no plain file"));
  fs::remove(path());
  fs::create_directory(path());
  EXPECT_FALSE(ReadProgressFile(path()));
  fs::remove(path());
  std::ofstream(dir_ / "other") << "1 2\n";
  fs::create_symlink(dir_ / "other", path());
  EXPECT_FALSE(ReadProgressFile(path())) << "a link may lead anywhere";
}

}  // namespace
}  // namespace millrace::worker
