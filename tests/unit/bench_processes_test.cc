// What `millrace bench` reads of /proc while the processes there come and go.
#include "client/bench/processes.h"

#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stop_token>
#include <thread>

namespace millrace::bench {
namespace {

// A file of /proc can be opened and not be read when its process has ended in between.
TEST(BenchProcesses, OnesThatEndWhileTheyAreLookedAtAreNoError) {
  const std::jthread others([](const std::stop_token& stop) {
    char name[] = "true";
    char* argv[] = {name, nullptr};
    while (!stop.stop_requested()) {
      pid_t pid = -1;
      if (::posix_spawnp(&pid, "true", nullptr, nullptr, argv, nullptr) == 0) ::waitpid(pid, nullptr, 0);
    }
  });
  for (int look = 0; look < 600; ++look) {
    const auto usage = UsageOf(::getpid());
    ASSERT_TRUE(usage);
    EXPECT_GT(usage->rss_bytes, 0);
  }
}

}  // namespace
}  // namespace millrace::bench
