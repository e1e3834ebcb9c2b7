// Runs the commands of ops/docs/queue.md, section "Every feature once", and looks for what they are said to print.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "tests/support/cli_runner.h"
#include "tests/support/process.h"

namespace millrace {
namespace {

constexpr std::string_view kHeading = "## Every feature once";
constexpr Millis kTimeLimit{240'000};

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

TEST(QueueDoc, EveryExampleRunsAndPrintsWhatItSays) {
  const std::string document = testing::ReadAll(std::string(MILLRACE_SOURCE_DIR) + "/ops/docs/queue.md");
  ASSERT_NE(document.find(kHeading), std::string::npos);
  const std::string folder = std::filesystem::temp_directory_path() / ("millrace-doc-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const std::string script = Script(document);
  EXPECT_GT(std::ranges::count(script, '\n'), 100) << "the section has lost its examples";
  EXPECT_EQ(BlocksThatShowNothing(document), 0) << "an example of which nothing is compared cannot fail";
  std::ofstream(folder + "/script") << script;
  const testing::ProcessOptions bash{
      .argv = {"bash", folder + "/script"},
      .env = {{"PATH", std::string(MILLRACE_BIN_DIR) + ":" + std::getenv("PATH")}, {"TMPDIR", folder}, {"HOME", folder}},
      .log = folder + "/log"};
  const auto code = testing::RunToEnd(bash, kTimeLimit);
  EXPECT_TRUE(code && *code == 0) << (code ? std::to_string(*code) : code.error().message) << "\n"
                                  << testing::ReadAll(folder + "/log");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace millrace
