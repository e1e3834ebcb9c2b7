// Runs `millrace-history-check`, the program, over what a test left behind: in the TearDown of every fixture that owns a
// ledger. The test's target must depend on millrace-history-check.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/base/history.h"

namespace millrace::testing {

struct HistoryVerdict {
  int code = -1;  // 0: all of S1 to S10 hold, 1: a violation, 2: something could not be read
  std::string text;
};

// `scratch` is an existing folder for its output.
inline HistoryVerdict RunHistoryCheck(std::vector<std::string> arguments, const std::filesystem::path& scratch) {
  const std::string out = (scratch / "history-check.out").string();
  arguments.insert(arguments.begin(), std::string(MILLRACE_BIN_DIR) + "/millrace-history-check");
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t pid = -1;
  HistoryVerdict verdict;
  if (::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ) == 0) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    verdict.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  posix_spawn_file_actions_destroy(&actions);
  std::ifstream in(out, std::ios::binary);
  verdict.text.assign(std::istreambuf_iterator<char>(in), {});
  return verdict;
}

// From now on this process writes its history to `folder`, which is made.
inline void BeginHistory(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  history::SetFolder(folder.string());
}

// A failure of the test unless all that can be verified holds. `history`: the folder that the processes wrote to, may be
// missing. `more`: further arguments of the program.
inline void ExpectHistoryHolds(const std::string& ledger, const std::filesystem::path& history,
                               const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{"--ledger", ledger};
  if (std::filesystem::exists(history)) arguments.insert(arguments.end(), {"--history", history.string()});
  arguments.insert(arguments.end(), more.begin(), more.end());
  const std::filesystem::path scratch = std::filesystem::exists(history) ? history : std::filesystem::temp_directory_path();
  const HistoryVerdict verdict = RunHistoryCheck(std::move(arguments), scratch);
  EXPECT_EQ(verdict.code, 0) << verdict.text;
}

// The end of BeginHistory: what this process and those that it started have written is checked.
inline void EndHistory(const std::string& ledger, const std::filesystem::path& history,
                       const std::vector<std::string>& more = {}) {
  history::SetFolder("");
  ExpectHistoryHolds(ledger, history, more);
}

}  // namespace millrace::testing
