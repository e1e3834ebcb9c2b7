// What a client was told that the system has, written down for the history checker's `--accepted`: by a client in the test's
// own process, or read from what commands of `millrace` printed. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"

namespace millrace::testing {

class AcceptedList {
 public:
  // Whoever is told of the same one again has learnt nothing.
  void Job(const Uuid& id, bool redis = false, WallTime at = {}) { jobs_.emplace(id, std::pair{redis, at}); }
  void Run(const Uuid& id) { runs_.insert(id); }
  std::size_t size() const { return jobs_.size() + runs_.size(); }

  // What `millrace ARGS...` printed on stdout in the folder `cwd`: ids of jobs and runs that it submitted. Other commands tell
  // nothing.
  void Printed(const std::vector<std::string>& args, std::string_view out, const std::filesystem::path& cwd) {
    const std::string command = CommandOf(args);
    if (command == "job submit") return Submitted(args, out, cwd);
    if (command == "job requeue") return Requeued(args, out);
    if (command != "run") return;
    for (const std::string_view id : IdsOf(out)) return Run(*Uuid::Parse(id));  // the first; what follows belongs to it
  }

  // The arguments of the checker. `path` is overwritten.
  std::vector<std::string> Write(const std::filesystem::path& path) const {
    std::ofstream file(path);
    for (const auto& [id, told] : jobs_)
      file << fmt::format(R"({{"job": "{}", "class": "{}", "at": {}}})", id.ToString(), told.first ? "redis" : "ledger",
                          ToUnixMicros(told.second))
           << '\n';
    for (const Uuid& id : runs_) file << fmt::format(R"({{"run": "{}"}})", id.ToString()) << '\n';
    return {"--accepted", path.string()};
  }

 private:
  static bool Has(const std::vector<std::string>& args, std::string_view word) {
    for (const std::string& arg : args)
      if (arg == word) return true;
    return false;
  }
  static std::string ValueOf(const std::vector<std::string>& args, std::string_view option) {
    for (std::size_t i = 0; i + 1 < args.size(); ++i)
      if (args[i] == option) return args[i + 1];
    return {};
  }
  // "job submit", "job requeue", or "run" for all that start one; empty: something else.
  static std::string CommandOf(const std::vector<std::string>& args) {
    for (std::size_t i = 0; i < args.size(); ++i) {
      const std::string next = i + 1 < args.size() ? args[i + 1] : "";
      if (args[i] == "job") return next == "submit" || next == "requeue" ? "job " + next : "";
      if (args[i] == "run")
        return next == "list" || next == "show" || next == "logs" || next == "cancel" || next == "--help" ? "" : "run";
      if (!args[i].starts_with('-') && (i == 0 || !args[i - 1].starts_with('-'))) return "";
    }
    return {};
  }
  // Every whole id in `text`, in order.
  static std::vector<std::string_view> IdsOf(std::string_view text) {
    constexpr std::size_t kSize = 36;
    const auto is_part = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0 || c == '-'; };
    std::vector<std::string_view> ids;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t end = at;
      while (end < text.size() && is_part(text[end])) ++end;
      const std::string_view word = text.substr(at, end - at);
      if (word.size() == kSize && Uuid::Parse(word)) ids.push_back(word);
      at = end + 1;
    }
    return ids;
  }
  void Submitted(const std::vector<std::string>& args, std::string_view out, const std::filesystem::path& cwd) {
    if (!ValueOf(args, "--then").empty()) {  // a run, and the job at its end
      const auto ids = IdsOf(out);
      if (!ids.empty()) Run(*Uuid::Parse(ids[0]));
      if (ids.size() > 1) Job(*Uuid::Parse(ids[1]));
      return;
    }
    std::string options = ValueOf(args, "--options");
    if (const auto batch = cwd / ValueOf(args, "--batch"); std::filesystem::is_regular_file(batch)) {
      std::ifstream in(batch);
      options.append(std::istreambuf_iterator<char>(in), {});
    }
    const bool redis = options.find("redis") != std::string::npos;
    // A row with two ids is a job that another one keeps out.
    for (const std::string& row : RowsOf(out))
      if (const auto ids = IdsOf(row); ids.size() == 1) Job(*Uuid::Parse(ids[0]), redis);
  }
  // The dead job and the new one; the ids of the new ones alone with -q.
  void Requeued(const std::vector<std::string>& args, std::string_view out) {
    if (Has(args, "--dry-run")) return;
    const bool quiet = Has(args, "-q") || Has(args, "--quiet");
    for (const std::string& row : RowsOf(out)) {
      const auto ids = IdsOf(row);
      if (quiet ? ids.size() == 1 : ids.size() == 2 && row.find("unique key") == std::string::npos)
        Job(*Uuid::Parse(ids.back()));
    }
  }
  // Lines, or the flat objects of a JSON array.
  static std::vector<std::string> RowsOf(std::string_view out) {
    std::vector<std::string> rows;
    std::istringstream in{std::string(out)};
    for (std::string row; std::getline(in, row, out.starts_with('[') ? '}' : '\n');) rows.push_back(row);
    return rows;
  }

  std::map<Uuid, std::pair<bool, WallTime>> jobs_;
  std::set<Uuid> runs_;
};

}  // namespace millrace::testing
