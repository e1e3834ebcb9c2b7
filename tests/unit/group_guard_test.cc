// The process beside a worker that kills what its commands have left, when the worker is gone.
#include "worker/group_guard.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace millrace::worker {
namespace {

// A process that waits for ever in a group of its own.
pid_t Sleeper() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::setpgid(0, 0);
    while (true) ::pause();
  }
  ::setpgid(pid, pid);
  return pid;
}

// Whether a child of ours ends within some seconds.
bool Ends(pid_t pid) {
  for (int i = 0; i < 1000; ++i, std::this_thread::sleep_for(std::chrono::milliseconds{10}))
    if (::waitpid(pid, nullptr, WNOHANG) == pid) return true;
  return false;
}

bool Lives(pid_t pid) { return ::waitpid(pid, nullptr, WNOHANG) == 0; }

TEST(GroupGuardTest, WhatItWatchesDiesWithItsWorkerAndNothingElseDoes) {
  const pid_t watched = Sleeper(), forgotten = Sleeper(), stranger = Sleeper();
  const pid_t worker = ::fork();
  if (worker == 0) {
    auto guard = GroupGuard::Start();
    if (!guard) ::_exit(1);
    const int fd = (*guard)->fd();
    const bool said = GroupGuard::Watch(fd, watched) && GroupGuard::Watch(fd, forgotten) && GroupGuard::Forget(fd, forgotten);
    if (!said) ::_exit(1);
    ::kill(::getpid(), SIGKILL);
  }
  ASSERT_GT(worker, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(worker, &status, 0), worker);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(Ends(watched));
  for (const pid_t other : {forgotten, stranger}) {
    EXPECT_TRUE(Lives(other));
    ::kill(other, SIGKILL);
    EXPECT_TRUE(Ends(other));
  }
}

TEST(GroupGuardTest, OneThatIsEndedKillsNothing) {
  const pid_t watched = Sleeper();
  {
    const auto guard = GroupGuard::Start();
    ASSERT_TRUE(guard) << guard.error().message;
    EXPECT_TRUE(GroupGuard::Watch((*guard)->fd(), watched));
    EXPECT_TRUE((*guard)->Alive());
  }
  EXPECT_TRUE(Lives(watched));
  ::kill(watched, SIGKILL);
  EXPECT_TRUE(Ends(watched));
}

// Its owner starts another one then: this one would kill who has a number that it was to forget.
TEST(GroupGuardTest, OneThatDoesNotReadIsSaid) {
  const auto guard = GroupGuard::Start();
  ASSERT_TRUE(guard) << guard.error().message;
  ASSERT_EQ(::kill((*guard)->pid(), SIGSTOP), 0);
  int told = 0;
  while (told < 100'000 && GroupGuard::Forget((*guard)->fd(), 1'000'000)) ++told;
  EXPECT_LT(told, 100'000);
  EXPECT_FALSE((*guard)->WatchSurely(1'000'000));
  ASSERT_EQ(::kill((*guard)->pid(), SIGCONT), 0);
  EXPECT_TRUE((*guard)->WatchSurely(1'000'000));
  GroupGuard::Forget((*guard)->fd(), 1'000'000);
}

}  // namespace
}  // namespace millrace::worker
