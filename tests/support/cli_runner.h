// Runs the real `millrace` executable as a user would: own folder, no MILLRACE_* variables, no user configuration, stdout and
// stderr apart. For the e2e tier. Not thread-safe.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"

namespace millrace::testing {

struct CliResult {
  int code = -1;  // exit code, or 128 + signal
  std::string out, err;
  std::chrono::milliseconds wall{0};
};

inline std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct CliOptions {
  std::vector<std::pair<std::string, std::string>> env{};
  std::filesystem::path cwd{};  // empty: the test's folder
};

// A started command. Destroying it kills it (SIGKILL) and reaps it.
class CliProcess {
 public:
  CliProcess(const std::vector<std::string>& args, const std::filesystem::path& cwd, const std::filesystem::path& capture,
             const std::vector<std::pair<std::string, std::string>>& env)
      : out_(capture.string() + ".out"), err_(capture.string() + ".err"), started_(std::chrono::steady_clock::now()) {
    std::vector<std::string> words{std::string(MILLRACE_BIN_DIR) + "/millrace"};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<std::string> environment = CleanEnvironment(cwd);
    for (const auto& [name, value] : env) environment.push_back(name + "=" + value);
    std::vector<char*> argv, envp;
    for (auto& w : words) argv.push_back(w.data());
    for (auto& e : environment) envp.push_back(e.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addchdir_np(&actions, cwd.c_str());
    if (::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), envp.data()) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    EXPECT_GT(pid_, 0) << "cannot start " << argv[0];
  }
  CliProcess(const CliProcess&) = delete;
  CliProcess& operator=(const CliProcess&) = delete;
  ~CliProcess() {
    Signal(SIGKILL);
    (void)Wait(std::chrono::seconds{10});
  }

  pid_t pid() const { return pid_; }
  // As in CliResult, from when it has ended on; it outlives the process.
  std::shared_ptr<const int> code() const { return code_; }
  void Signal(int number) {
    if (pid_ > 0 && !result_) ::kill(pid_, number);
  }
  std::string Out() const { return ReadAll(out_); }
  std::string Err() const { return ReadAll(err_); }

  // Its result; killed, and a test failure, when it has not ended in time.
  CliResult Wait(std::chrono::milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!result_ && pid_ > 0) {
      int status = 0;
      const pid_t done = ::waitpid(pid_, &status, WNOHANG);
      if (done == pid_ || (done < 0 && errno == ECHILD)) {
        result_ = CliResult{
            .code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            .out = Out(),
            .err = Err(),
            .wall = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - started_)};
        *code_ = result_->code;
        break;
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        ADD_FAILURE() << "still running after " << timeout.count() << " ms; stderr:\n" << Err();
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, &status, 0);
        result_ = CliResult{.code = -1, .out = Out(), .err = Err(), .wall = timeout};
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds{2});
    }
    return result_.value_or(CliResult{});
  }

 private:
  static std::vector<std::string> CleanEnvironment(const std::filesystem::path& home) {
    std::vector<std::string> out;
    for (char** e = environ; *e != nullptr; ++e) {
      const std::string_view entry = *e;
      const bool ours = entry.starts_with("MILLRACE_") || entry.starts_with("HOME=") || entry.starts_with("XDG_CONFIG_HOME=") ||
                        entry.starts_with("TERM=") || entry.starts_with("CI=");
      if (!ours) out.emplace_back(entry);
    }
    out.push_back("HOME=" + home.string());
    out.push_back("XDG_CONFIG_HOME=" + home.string() + "/.no_such_config");
    out.emplace_back("TERM=dumb");
    return out;
  }

  std::string out_, err_;
  std::chrono::steady_clock::time_point started_;
  pid_t pid_ = -1;
  std::optional<CliResult> result_;
  std::shared_ptr<int> code_ = std::make_shared<int>(-1);
};

// A fixture with a folder of its own, removed at the end.
class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    static std::atomic<int> next{0};
    dir_ =
        std::filesystem::temp_directory_path() / ("millrace-cli-" + std::to_string(::getpid()) + "-" + std::to_string(next++));
    std::filesystem::create_directories(dir_ / ".capture");
    home_ = dir_ / "home";
  }
  ~CliTest() override {
    CheckHistories();
    std::error_code ec;
    std::filesystem::remove_all(dir_, ec);
  }
  // What the commands did, faults or none, and the ids that they printed, are checked against each home's ledger and
  // warehouse, once.
  void CheckHistories() {
    std::error_code ec;
    for (const auto& [home, history] : std::exchange(histories_, {})) {
      if (!check_history_ || !HasLedger(home)) continue;
      AcceptedList accepted;
      for (const Started& command : started_)
        if (command.history == history) {
          const std::string out = ReadAll(command.out);
          EXPECT_TRUE(accepted.Printed(command.args, out, command.batch) || *command.code != 0)
              << ::testing::PrintToString(command.args) << " told of nothing that was submitted:\n"
              << out;
        }
      std::vector<std::string> more = accepted.Write(history / "accepted");
      if (std::filesystem::exists(home / "warehouse.db", ec))
        more.insert(more.end(), {"--destination", (home / "warehouse.db").string()});
      ExpectHistoryHolds(LedgerOf(home), history, more);
    }
  }

  std::string Path(const std::string& name) const { return (dir_ / name).string(); }
  void Write(const std::string& name, std::string_view text) const {
    std::filesystem::create_directories((dir_ / name).parent_path());
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }
  // A pipeline file from its stages (two spaces of indentation) and what stands before them.
  void WritePipeline(const std::string& name, const std::string& stages, const std::string& head = "") const {
    Write(name + ".yaml", "version: 1\npipeline: " + name + "\n" + head + "stages:\n" + stages);
  }

  std::unique_ptr<CliProcess> Start(std::vector<std::string> args, const CliOptions& options = {}) {
    if (HomeOf(args).empty()) args.insert(args.end(), {"--home", home_.string()});
    const std::filesystem::path cwd = options.cwd.empty() ? dir_ : options.cwd;
    auto env = options.env;
    const std::filesystem::path history = HistoryOf((cwd / HomeOf(args)).lexically_normal());
    env.emplace_back("MILLRACE_HISTORY", history.string());
    const std::filesystem::path capture = dir_ / ".capture" / std::to_string(commands_++);
    std::string batch = AcceptedList::BatchOf(args, cwd);
    auto process = std::make_unique<CliProcess>(args, cwd, capture, env);
    started_.push_back({.args = args,
                        .history = history,
                        .out = capture.string() + ".out",
                        .batch = std::move(batch),
                        .code = process->code()});
    return process;
  }
  CliResult Run(const std::vector<std::string>& args, const CliOptions& options = {}) {
    return Start(args, options)->Wait(std::chrono::seconds{60});
  }
  // Its stdout as JSON. A failure when it is none.
  nlohmann::json RunJson(std::vector<std::string> args, int code = 0) {
    args.insert(args.end(), {"-o", "json"});
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, code) << result.err << result.out;
    auto json = nlohmann::json::parse(result.out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << result.out << result.err;
    return json;
  }
  // The one stage of a report by its name.
  static nlohmann::json StageOf(const nlohmann::json& run, const std::string& stage) {
    for (const auto& s : run.at("stages"))
      if (s.at("stage") == stage) return s;
    ADD_FAILURE() << "no stage " << stage << " in " << run.dump(2);
    return {};
  }
  // `query -o csv` of the home's warehouse, without carriage returns.
  std::string Warehouse(const std::string& sql) {
    CliResult result = Run({"query", "warehouse", sql, "-o", "csv"});
    EXPECT_EQ(result.code, 0) << result.err;
    std::erase(result.out, '\r');
    return result.out;
  }

  // What must hold after anything: the audit trail verifies, and every file in the lake belongs to a manifest.
  void ExpectSound() {
    if (!std::filesystem::exists(home_ / "ledger.db")) return;
    const CliResult audit = Run({"audit", "verify"});
    EXPECT_EQ(audit.code, 0) << audit.out << audit.err;
    if (!std::filesystem::exists(home_ / "lake")) return;
    std::string manifests;
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(home_ / "lake")) {
      if (!entry.is_regular_file()) continue;
      if (entry.path().parent_path().filename() == "manifests") {
        const std::string text = ReadAll(entry.path());
        EXPECT_TRUE(nlohmann::json::accept(text)) << entry.path();
        manifests += text;
      } else if (entry.path().filename() != "schema.json") {
        files.push_back(entry.path());
      }
    }
    for (const auto& file : files) EXPECT_NE(manifests.find(file.filename().string()), std::string::npos) << "orphan " << file;
  }
  int CountManifests(const std::string& pipeline, const std::string& stage) const {
    int count = 0;
    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(home_ / "lake" / "1" / pipeline / stage / "manifests", ec))
      count += entry.is_regular_file() ? 1 : 0;
    return count;
  }

  // Asks until it is so, at most `timeout`.
  static bool Eventually(const std::function<bool()>& so, std::chrono::milliseconds timeout = std::chrono::seconds{20}) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (std::chrono::steady_clock::now() < deadline) {
      if (so()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds{20});
    }
    return so();
  }

  // RFC 4180, strictly: every row has as many fields as the header. A failure when it does not.
  static std::vector<std::vector<std::string>> ParseCsv(std::string_view text) {
    std::vector<std::vector<std::string>> rows;
    std::size_t at = 0;
    while (at < text.size()) {
      std::vector<std::string> row;
      for (bool more = true; more;) {
        std::string field;
        if (text[at] == '"') {
          for (++at; at < text.size() && !(text[at] == '"' && (at + 1 >= text.size() || text[at + 1] != '"')); ++at) {
            if (text[at] == '"') ++at;
            field += text[at];
          }
          ++at;
        } else {
          while (at < text.size() && text[at] != ',' && text[at] != '\r') field += text[at++];
        }
        row.push_back(std::move(field));
        more = at < text.size() && text[at] == ',';
        if (more) ++at;
      }
      EXPECT_EQ(text.substr(at, 2), "\r\n") << "row " << rows.size();
      at += 2;
      if (!rows.empty()) {
        EXPECT_EQ(row.size(), rows.front().size()) << "row " << rows.size();
      }
      rows.push_back(std::move(row));
    }
    return rows;
  }

  std::filesystem::path dir_, home_;
  std::string ledger_;         // of home_, when it is not the home's ledger.db
  bool check_history_ = true;  // false: the test leaves a ledger behind that is not as its writers left it

 private:
  // The folder that --home names; empty: none is named.
  static std::string HomeOf(const std::vector<std::string>& args) {
    constexpr std::string_view kHome = "--home=";
    for (std::size_t i = 0; i < args.size(); ++i) {
      if (args[i].starts_with(kHome)) return args[i].substr(kHome.size());
      if (args[i] == "--home" && i + 1 < args.size()) return args[i + 1];
    }
    return {};
  }
  std::string LedgerOf(const std::filesystem::path& home) const {
    return home == home_ && !ledger_.empty() ? ledger_ : (home / "ledger.db").string();
  }
  bool HasLedger(const std::filesystem::path& home) const {
    std::error_code ec;
    return (home == home_ && !ledger_.empty()) || std::filesystem::exists(home / "ledger.db", ec);
  }
  // Where the history of `home` is written.
  std::filesystem::path HistoryOf(const std::filesystem::path& home) {
    auto& folder = histories_[home];
    // A home that has no ledger, any more, begins anew.
    if (folder.empty() || !HasLedger(home)) folder = dir_ / ".history" / std::to_string(commands_);
    std::filesystem::create_directories(folder);
    return folder;
  }
  struct Started {
    std::vector<std::string> args;
    std::filesystem::path history, out;
    std::string batch;  // what --batch named
    std::shared_ptr<const int> code;
  };
  std::map<std::filesystem::path, std::filesystem::path> histories_;  // of each home
  std::vector<Started> started_;
  int commands_ = 0;
};

}  // namespace millrace::testing
