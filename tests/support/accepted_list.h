// What a client was told that the system has, written down for the history checker's `--accepted`: by a client in the test's
// own process, or read from what commands of `millrace` printed. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
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

  // The lines of the file that `millrace ARGS...` is given as --batch in the folder `cwd`; to be read before somebody writes
  // over it. Empty: there is none.
  static std::string BatchOf(const std::vector<std::string>& args, const std::filesystem::path& cwd) {
    const auto path = cwd / ValueOf(args, "--batch");
    if (!std::filesystem::is_regular_file(path)) return {};
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // What `millrace ARGS...` printed on stdout: ids of jobs and runs that it submitted. Other commands tell nothing. False: it
  // is a submit that told of nothing, which one that ended with code 0 never is.
  bool Printed(const std::vector<std::string>& args, std::string_view out, const std::string& batch) {
    const std::string command = CommandOf(args);
    if (Has(args, "--help") || Has(args, "--dry-run")) return true;
    if (command == "job submit") return Submitted(args, out, batch);
    if (command == "job requeue") Requeued(args, out);
    if (command == "run retry") Retried(args, out);
    if (command != "run" && command != "run start") return true;
    const auto ids = IdsOf(out);
    if (!ids.empty()) Run(*Uuid::Parse(ids.front()));  // what follows belongs to it
    return command == "run" || !ids.empty();
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
  static bool IsQuiet(const std::vector<std::string>& args) { return Has(args, "-q") || Has(args, "--quiet"); }
  // "job submit", "job requeue", "run start", "run retry", or "run" for all else that starts one; empty: something else.
  static std::string CommandOf(const std::vector<std::string>& args) {
    for (std::size_t i = 0; i < args.size(); ++i) {
      const std::string next = i + 1 < args.size() ? args[i + 1] : "";
      if (args[i] == "job") return next == "submit" || next == "requeue" ? "job " + next : "";
      if (args[i] == "run" && (next == "start" || next == "now")) return "run start";
      if (args[i] == "run" && next == "retry") return "run retry";
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
  static bool IsRedis(const nlohmann::json& options) {
    return options.is_object() && options.value("durability", nlohmann::json()) == "redis";
  }
  // Of each job that is submitted, in their order: whether its class is redis.
  static std::vector<bool> ClassesOf(const std::vector<std::string>& args, const std::string& batch) {
    if (batch.empty())
      return {ValueOf(args, "--durability") == "redis" ||
              IsRedis(nlohmann::json::parse(ValueOf(args, "--options"), nullptr, false))};
    std::vector<bool> redis;
    std::istringstream lines(batch);
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      const auto job = nlohmann::json::parse(line, nullptr, false);
      redis.push_back(IsRedis(job) || (job.is_object() && IsRedis(job.value("options", nlohmann::json()))));
    }
    return redis;
  }
  bool Submitted(const std::vector<std::string>& args, std::string_view out, const std::string& batch) {
    if (!ValueOf(args, "--then").empty()) {  // a run, and the job at its end
      const auto ids = IdsOf(out);
      if (!ids.empty()) Run(*Uuid::Parse(ids[0]));
      if (ids.size() > 1) Job(*Uuid::Parse(ids[1]));
      return !ids.empty();
    }
    std::vector<std::vector<std::string_view>> told;
    const std::vector<std::string> rows = RowsOf(out);
    for (const std::string& row : rows)
      if (auto ids = IdsOf(row); !ids.empty()) told.push_back(std::move(ids));
    const std::vector<bool> redis = ClassesOf(args, batch);
    // With -q a job that another one keeps out has no row: then nobody can say whose line a row is of.
    const bool mixed = std::set<bool>(redis.begin(), redis.end()).size() > 1;
    const bool by_line = redis.size() == told.size() || (!IsQuiet(args) && told.size() < redis.size());
    for (std::size_t i = 0; i < told.size(); ++i)
      if (told[i].size() == 1)  // a row with two ids is a job that another one keeps out
        Job(*Uuid::Parse(told[i][0]), mixed ? by_line && redis[i] : !redis.empty() && redis[0]);
    return !told.empty() || (IsQuiet(args) && out.empty());
  }
  // The dead job and the new one; the ids of the new ones alone with -q.
  void Requeued(const std::vector<std::string>& args, std::string_view out) {
    for (const std::string& row : RowsOf(out)) {
      const auto ids = IdsOf(row);
      if (IsQuiet(args) ? ids.size() == 1 : ids.size() == 2 && row.find("unique key") == std::string::npos)
        Job(*Uuid::Parse(ids.back()));
    }
  }
  // The new run and the old one; the ids of the new ones alone with -q.
  void Retried(const std::vector<std::string>& args, std::string_view out) {
    for (const std::string& row : RowsOf(out))
      if (const auto ids = IdsOf(row); ids.size() == (IsQuiet(args) ? 1 : 2)) Run(*Uuid::Parse(ids.front()));
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
