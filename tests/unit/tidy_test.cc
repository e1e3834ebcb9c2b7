// Rules that matter are tests: the arrows between folders, calls that only one file may make, budgets. The source tree is the
// subject.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct SourceFile {
  std::string path;  // relative to the root
  std::vector<std::string> lines;
};

const std::vector<SourceFile>& Product() {
  static const std::vector<SourceFile> files = [] {
    std::vector<SourceFile> found;
    for (const char* folder : {"common", "broker", "worker", "scheduler", "client"}) {
      for (const auto& entry : fs::recursive_directory_iterator(fs::path(MILLRACE_SOURCE_DIR) / folder)) {
        const auto extension = entry.path().extension();
        if (extension != ".cc" && extension != ".h") continue;
        SourceFile file{fs::relative(entry.path(), MILLRACE_SOURCE_DIR).string(), {}};
        std::ifstream in(entry.path());
        for (std::string line; std::getline(in, line);) file.lines.push_back(line);
        found.push_back(std::move(file));
      }
    }
    return found;
  }();
  return files;
}

bool StartsWithAny(std::string_view path, const std::vector<std::string_view>& prefixes) {
  return std::ranges::any_of(prefixes, [&](std::string_view p) { return path.starts_with(p); });
}

std::string Places(const std::vector<std::string>& places) {
  std::string text;
  for (const auto& place : places) text += "\n  " + place;
  return text;
}

TEST(TidyTest, TheTreeIsThere) { EXPECT_GT(Product().size(), 100u); }

TEST(TidyTest, OnlyTheNamedFilesMakeTheseCalls) {
  struct Ban {
    std::string_view text;
    std::vector<std::string_view> allowed;
    std::string_view instead;
  };
  const std::vector<Ban> bans{
      {"steady_clock::now", {"common/base/clock."}, "a Clock"},
      {"system_clock::now", {"common/base/clock."}, "a Clock"},
      // Reconnecting after a lost COMMIT answer, waiting for a file's or a database's lock, measuring: threads that do nothing
      // else, within a deadline.
      {"sleep_for",
       {"common/base/failpoint.cc", "common/drivers/sqlite.cc", "common/ledger/postgres_store.cc",
        "worker/stage/load/pg_fence.cc", "worker/stage/load/file_lock.cc", "client/bench/", "client/cli/commands_bench"},
       "a wait that can be interrupted, with a deadline"},
      {"std::random_device", {}, "Random"},
      {"mt19937", {"common/base/random.", "common/base/failpoint.cc"}, "Random"},
      {"#include <zmq", {}, "Transport"},
      {"#include <libpq-fe.h>", {"common/drivers/postgres"}, "common/drivers/postgres.h"},
      {"#include <sqlite3.h>", {"common/drivers/sqlite.cc"}, "common/drivers/sqlite.h"},
      {"#include <duckdb.h>", {"common/drivers/duckdb"}, "common/drivers/duckdb.h"},
      {"#include <hiredis", {"common/drivers/redis.cc"}, "common/drivers/redis.h"},
      {"#include <msgpack", {"common/wire/codec.cc"}, "common/wire/codec.h"},
      {"#include <libfyaml.h>", {"common/drivers/yaml.cc"}, "common/drivers/yaml.h"},
      {"#include <CLI/", {"client/cli/main.cc"}, "client/cli/options.h"},
      {"#include <spdlog/", {"common/base/log.cc"}, "common/base/log.h"},
      {"fmt::print(stderr", {}, "Tell, which does not throw"},
      {"#include <bits/", {}, "the standard header"},
      {"TODO", {}, "finishing it, or saying in the docs what is missing"},
      {"FIXME", {}, "fixing it"},
  };
  for (const Ban& ban : bans) {
    std::vector<std::string> places;
    for (const SourceFile& file : Product()) {
      if (StartsWithAny(file.path, ban.allowed)) continue;
      for (std::size_t i = 0; i < file.lines.size(); ++i)
        if (file.lines[i].find(ban.text) != std::string::npos) places.push_back(file.path + ":" + std::to_string(i + 1));
    }
    EXPECT_TRUE(places.empty()) << "'" << ban.text << "': use " << ban.instead << Places(places);
  }
}

TEST(TidyTest, FoldersIncludeOnlyWhatTheirArrowsAllow) {
  struct Arrow {
    std::string_view folder;
    std::vector<std::string_view> may_include;
  };
  const std::vector<std::string_view> base{"common/base/"};
  const std::vector<Arrow> arrows{
      {"common/base/", base},
      {"common/model/", {"common/base/", "common/model/", "common/drivers/yaml.h"}},
      {"common/wire/", {"common/base/", "common/model/", "common/wire/"}},
      {"common/crypto/", {"common/base/", "common/crypto/"}},
      {"common/config/", {"common/base/", "common/config/", "common/drivers/yaml.h"}},
      {"common/drivers/", {"common/base/", "common/drivers/", "common/model/"}},
      {"common/queue/", {"common/base/", "common/drivers/", "common/queue/"}},
      {"common/ledger/",
       {"common/base/", "common/crypto/", "common/drivers/", "common/ledger/", "common/model/", "common/wire/check_job.h"}},
      {"broker/",
       {"broker/", "common/base/", "common/crypto/", "common/ledger/", "common/model/", "common/queue/", "common/wire/"}},
      {"scheduler/", {"scheduler/", "common/base/", "common/ledger/ledger.h", "common/model/", "common/queue/job_queue.h"}},
      {"worker/stage/", {"worker/stage/", "common/base/", "common/drivers/", "common/model/"}},
      {"worker/", {"worker/", "common/base/", "common/crypto/audit.h", "common/model/", "common/wire/"}},
      {"client/bench/", {"client/bench/", "common/base/", "common/drivers/", "common/model/", "common/wire/"}},
      {"client/cli/",
       {"client/cli/", "client/bench/", "common/", "broker/broker.h", "scheduler/", "worker/worker.h", "worker/child.h"}},
  };
  std::vector<std::string> places;
  for (const SourceFile& file : Product()) {
    const auto arrow = std::ranges::find_if(arrows, [&](const Arrow& a) { return file.path.starts_with(a.folder); });
    ASSERT_NE(arrow, arrows.end()) << file.path << " is in no known folder";
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      if (!line.starts_with("#include \"")) continue;
      const std::string_view target = std::string_view(line).substr(10);
      if (!StartsWithAny(target, arrow->may_include)) places.push_back(file.path + ":" + std::to_string(i + 1) + " " + line);
    }
  }
  EXPECT_TRUE(places.empty()) << "arrows (ARCHITECTURE.md, Folders and arrows):" << Places(places);
}

TEST(TidyTest, FilesStayWithinTheirBudgets) {
  std::vector<std::string> places;
  for (const SourceFile& file : Product()) {
    const std::size_t budget = file.path.ends_with(".h") ? 400 : 800;
    if (file.lines.size() > budget)
      places.push_back(file.path + ": " + std::to_string(file.lines.size()) + " lines, budget " + std::to_string(budget));
    if (file.path.ends_with(".h") && std::ranges::find(file.lines, "#pragma once") == file.lines.end())
      places.push_back(file.path + ": no #pragma once");
  }
  EXPECT_TRUE(places.empty()) << Places(places);
}

TEST(TidyTest, EveryErrorClassIsInTheReference) {
  std::string reference;
  for (const char* page : {"ops/docs/errors.md", "ops/docs/loads.md"}) {
    std::ifstream in(fs::path(MILLRACE_SOURCE_DIR) / page);
    reference.append(std::istreambuf_iterator<char>(in), {});
  }
  const std::regex named(
      R"re(\b(?:(?:Stage|Sql)?Failure\(|Refuse\(|FailedStage\(\{|CannotStart\(.*, |k\w*Error\w* = |KillReason::k\w+: return )"([a-z_]+)")re"),
      quoted(R"re("([a-z_]+)")re");
  std::set<std::string> found;
  for (const SourceFile& file : Product())
    for (const std::string& line : file.lines) {
      const bool assigned = line.find("error_class = ") != std::string::npos && line.find("\\\"") == std::string::npos;
      for (std::sregex_iterator m(line.begin(), line.end(), assigned ? quoted : named), end; m != end; ++m)
        found.insert((*m)[1]);
    }
  EXPECT_GT(found.size(), 30u) << "the pattern no longer finds them";
  for (const std::string& name : found)
    EXPECT_TRUE(std::regex_search(reference, std::regex("\\b" + name + "\\b"))) << "no page explains '" << name << "'";
}

// What retry.no_retry may name is what the tables of attempts explain.
TEST(TidyTest, TheErrorClassesOfAttemptsAreThoseOfTheReference) {
  const std::regex word("[a-z]+(_[a-z]+)*");
  std::set<std::string> explained, known;
  for (const auto& [page, headings] : std::map<std::string, std::set<std::string>>{
           {"ops/docs/errors.md", {"## Ends of attempts", "## Results of commands"}}, {"ops/docs/loads.md", {"## Failures"}}}) {
    std::ifstream in(fs::path(MILLRACE_SOURCE_DIR) / page);
    bool inside = false;
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with("## ")) inside = headings.contains(line);
      if (!inside || !line.starts_with("| ") || line.starts_with("| error")) continue;
      const std::string cell = line.substr(0, line.find('|', 1));
      for (std::sregex_iterator m(cell.begin(), cell.end(), word), end; m != end; ++m) explained.insert(m->str());
    }
  }
  const std::regex quoted(R"re("([a-z_]+)")re");
  for (const SourceFile& file : Product())
    if (file.path == "common/model/error_classes.h")
      for (const std::string& line : file.lines)
        for (std::sregex_iterator m(line.begin(), line.end(), quoted), end; m != end; ++m) known.insert((*m)[1]);
  EXPECT_EQ(known, explained);
}

}  // namespace
