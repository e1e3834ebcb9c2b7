// The state of one check. Internal to tests/checker.
#pragma once

#include <fmt/format.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/checker/check.h"
#include "tests/checker/facts.h"
#include "tests/checker/operations.h"

namespace millrace::checker {

// What somebody was told that the system has.
struct Told {
  bool redis = false;
  std::optional<std::int64_t> at;  // micros since 1970
  bool is_run = false;
};

using TokensByJob = std::map<Uuid, std::vector<std::pair<std::int64_t, std::uint64_t>>>;  // when somebody had which

class Checker {
 public:
  explicit Checker(const Inputs& inputs) : inputs_(inputs) {}
  Result<Report> Run();

 private:
  template <class... Args>
  void Add(int invariant, std::string_view code, fmt::format_string<Args...> format, Args&&... args) {
    out_.violations.push_back({invariant, std::string(code), fmt::format(format, std::forward<Args>(args)...)});
  }
  void Looked(int invariant, std::size_t things = 1) {
    out_.looked_at[static_cast<std::size_t>(invariant - 1)] += static_cast<std::int64_t>(things);
  }

  // checker.cc: the ledger, the client, the witness, the destination
  Result<void> ReadAccepted();
  void Accepted();
  void RunsAndOpenJobs();
  void Attempts();
  void Orgs();
  Result<void> Slots();
  void ContiguousSlots(std::string_view pipeline, std::string_view schedule, const std::multiset<std::int64_t>& there);
  Result<void> Stages();
  void Stage(Uuid job, const std::string& result, const std::string& payload);
  Result<void> Witness();
  Result<void> Destination();
  Result<void> Target(Database& destination, const AppendTarget& target);
  Result<void> Audit();

  // check_history.cc: what the processes say they did
  void ReadTold();
  void Writes();
  void Fires();
  void WrittenRows(const Operation& ok);
  void Epochs();
  void Grants();
  void Receipts();
  void OvertakenEnd(const Item& end, std::int64_t written_at, const TokensByJob& received);
  void Leases();
  void Ends();
  void Loads();
  const Operation* InvokeOf(const Operation& ok) const;

  const Inputs& inputs_;
  Facts facts_;
  History history_;
  std::map<Uuid, Told> told_;
  std::set<std::pair<Uuid, std::int64_t>> attempts_;  // job, token
  // Writes and submits by file, who and number; the latest of that number.
  std::map<std::tuple<std::size_t, std::string, std::uint64_t>, const Operation*> invokes_;
  Report out_;
};

}  // namespace millrace::checker
