#include "worker/scratch.h"

#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace millrace::worker {
namespace {

namespace fs = std::filesystem;

class ScratchTest : public ::testing::Test {
 protected:
  ScratchTest() : parent_(fs::temp_directory_path() / ("scratch-test-" + std::to_string(::getpid()))) {
    fs::create_directories(parent_);
  }
  ~ScratchTest() override { fs::remove_all(parent_); }
  // A worker that made its folder, wrote into it and was killed.
  void KilledWorker(const std::string& id) {
    const pid_t child = ::fork();
    if (child == 0) {
      auto folder = ScratchFolder::Make(parent_, id);
      std::ofstream(fs::path(folder->path()) / "spilled") << "gigabytes";
      ::_exit(0);  // runs no destructor
    }
    ::waitpid(child, nullptr, 0);
  }
  fs::path parent_;
};

TEST_F(ScratchTest, TheNextWorkerRemovesWhatAKilledOneLeft) {
  KilledWorker("a");
  ASSERT_TRUE(fs::exists(parent_ / "millrace-a" / "spilled"));
  const auto next = ScratchFolder::Make(parent_, "b");
  ASSERT_TRUE(next);
  EXPECT_EQ(ScratchFolder::SweepDead(parent_), 1);
  EXPECT_FALSE(fs::exists(parent_ / "millrace-a"));
  EXPECT_TRUE(fs::exists(parent_ / "millrace-b"));
}

TEST_F(ScratchTest, TheFolderOfALivingWorkerAndForeignOnesStay) {
  const auto living = ScratchFolder::Make(parent_, "a");
  ASSERT_TRUE(living);
  fs::create_directories(parent_ / "millrace-other");
  fs::create_directories(parent_ / "elsewhere");
  std::ofstream(parent_ / "elsewhere" / "lock") << "";
  EXPECT_EQ(ScratchFolder::SweepDead(parent_), 0);
  EXPECT_TRUE(fs::exists(living->path()));
  EXPECT_TRUE(fs::exists(parent_ / "millrace-other"));
  EXPECT_TRUE(fs::exists(parent_ / "elsewhere"));
}

TEST_F(ScratchTest, AnEmptyFolderGoesWithItsWorkerAndAFullOneWaitsForTheNext) {
  {
    ASSERT_TRUE(ScratchFolder::Make(parent_, "a"));
  }
  EXPECT_FALSE(fs::exists(parent_ / "millrace-a"));
  {
    const auto full = ScratchFolder::Make(parent_, "b");
    ASSERT_TRUE(full);
    std::ofstream(fs::path(full->path()) / "left") << "x";
  }
  EXPECT_TRUE(fs::exists(parent_ / "millrace-b" / "left"));
  EXPECT_EQ(ScratchFolder::SweepDead(parent_), 1);
  EXPECT_FALSE(fs::exists(parent_ / "millrace-b"));
}

}  // namespace
}  // namespace millrace::worker
