// Runs the commands of ops/docs/queue.md, section "Every feature once", and looks for what they are said to print; then the
// history checker compares what they left behind with the ids that they printed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "tests/support/accepted_list.h"
#include "tests/support/cli_runner.h"
#include "tests/support/history_check.h"
#include "tests/support/process.h"

namespace millrace {
namespace {

constexpr std::string_view kHeading = "## Every feature once";
constexpr Millis kTimeLimit{360'000};

// What stands before the first block makes the ground for all; each other one must show something.
int BlocksThatShowNothing(const std::string& document) {
  int silent = 0, blocks = 0;
  bool inside = false, shows = false;
  std::istringstream lines(document.substr(document.find(kHeading)));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("```")) {
      if (inside) silent += blocks++ > 0 && !shows ? 1 : 0;
      inside = line == "```sh";
      shows = false;
    }
    shows = shows || line.find("# prints: ") != std::string::npos;
  }
  return silent;
}

// The blocks as one script that ends at the first command that fails or does not print what stands behind it.
std::string Script(const std::string& document) {
  std::string script =
      "set -euo pipefail\nUP=\ntrap 'test -z \"$UP\" || kill -9 $UP 2>/dev/null || true' EXIT\n"
      "prints() { case \"$2\" in *\"$1\"*) ;; *) echo \"wanted: $1\"; echo \"got: $2\"; exit 9 ;; esac; }\n";
  const std::regex expectation(R"((.*?)\s+# prints: (.*))");
  bool inside = false;
  std::istringstream lines(document.substr(document.find(kHeading)));
  for (std::string line; std::getline(lines, line);) {
    std::smatch parts;
    if (line.starts_with("```")) {
      inside = line == "```sh";
    } else if (!inside) {
      continue;
    } else if (std::regex_match(line, parts, expectation)) {
      script += "echo '+ '" + ("'" + std::regex_replace(parts[1].str(), std::regex("'"), "'\\''") + "'\n");
      script += "got=$(" + parts[1].str() + ")\nprints '" + parts[2].str() + "' \"$got\"\n";
    } else {
      script += line + "\n";
    }
  }
  return script;
}

// A `millrace` that is first in the PATH: it keeps the arguments, the output and the exit code of each command, for what it
// printed was told to a client. `up` goes on as the program itself, for the signals that the script sends it.
constexpr std::string_view kWrapper = R"(#!/bin/bash
[ "$1" = up ] && exec "{0}/millrace" "$@"
told=$(mktemp "$MILLRACE_DOC_TOLD/XXXXXXXX")
printf '%s\0' "$@" >"$told.args"
"{0}/millrace" "$@" >"$told"
code=$?
echo $code >"$told.code"
cat "$told"
exit $code
)";

testing::AcceptedList ToldIn(const std::filesystem::path& folder) {
  testing::AcceptedList accepted;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".args") continue;
    std::istringstream in(testing::ReadAll(entry.path()));
    std::vector<std::string> args;
    for (std::string arg; std::getline(in, arg, '\0');) args.push_back(arg);
    const std::string out = testing::ReadAll(std::filesystem::path(entry.path()).replace_extension());
    const bool succeeded = testing::ReadAll(std::filesystem::path(entry.path()).replace_extension("code")) == "0\n";
    EXPECT_TRUE(accepted.Printed(args, out, testing::AcceptedList::BatchOf(args, folder)) || !succeeded)
        << ::testing::PrintToString(args) << " told of nothing:\n"
        << out;
  }
  return accepted;
}

TEST(QueueDoc, EveryExampleRunsAndPrintsWhatItSays) {
  const std::string document = testing::ReadAll(std::string(MILLRACE_SOURCE_DIR) + "/ops/docs/queue.md");
  ASSERT_NE(document.find(kHeading), std::string::npos);
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("millrace-doc-" + std::to_string(::getpid()));
  for (const char* name : {"bin", "told", "history", "homes"}) std::filesystem::create_directories(folder / name);
  const std::string script = Script(document);
  EXPECT_GT(std::ranges::count(script, '\n'), 100) << "the section has lost its examples";
  EXPECT_EQ(BlocksThatShowNothing(document), 0) << "an example of which nothing is compared cannot fail";
  std::ofstream(folder / "script") << script;
  std::ofstream(folder / "bin" / "millrace") << fmt::format(kWrapper, MILLRACE_BIN_DIR);
  std::filesystem::permissions(folder / "bin" / "millrace", std::filesystem::perms::owner_all);
  const testing::ProcessOptions bash{.argv = {"bash", folder / "script"},
                                     .env = {{"PATH", (folder / "bin").string() + ":" + std::getenv("PATH")},
                                             {"TMPDIR", folder / "homes"},
                                             {"HOME", folder},
                                             {"MILLRACE_HISTORY", folder / "history"},
                                             {"MILLRACE_DOC_TOLD", folder / "told"}},
                                     .log = folder / "log"};
  const auto code = testing::RunToEnd(bash, kTimeLimit);
  EXPECT_TRUE(code && *code == 0) << (code ? std::to_string(*code) : code.error().message) << "\n"
                                  << testing::ReadAll(folder / "log");
  std::filesystem::path ledger;
  for (const auto& home : std::filesystem::directory_iterator(folder / "homes"))
    if (std::filesystem::exists(home.path() / "ledger.db")) ledger = home.path() / "ledger.db";
  const testing::AcceptedList accepted = ToldIn(folder / "told");
  EXPECT_GT(accepted.size(), 20U) << "the wrapper has not seen what the commands printed";
  std::vector<std::string> more = accepted.Write(folder / "accepted");
  more.insert(more.end(),
              {"--checkpoints", ledger.parent_path() / "checkpoints", "--public-key", ledger.parent_path() / "audit.key.pub"});
  testing::ExpectHistoryHolds(ledger, folder / "history", more);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace millrace
