// The history that the processes wrote (common/base/history.h), read back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/history.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace::checker {

// A job, run or attempt that an operation names: `word` is a durability class, an end or a state.
struct Item {
  Uuid id;
  std::uint64_t token = 0;
  std::string word{};
};
struct Hold {
  std::uint64_t shard = 0, epoch = 0;
};

struct FiredSlot {
  std::string pipeline, schedule;
  std::int64_t slot = 0, generation = 0;  // slot: micros since 1970
  std::optional<Uuid> run;                // empty: skipped or missed
};

struct Operation {
  std::size_t order = 0;  // in which it was read
  std::size_t file = 0;   // one per process start
  std::int64_t at = 0;    // the machine's monotonic clock, in microseconds
  std::string who;  // "broker:<owner>", "worker:<id>", "ledger:<writer>", "owner:<owner>", "scheduler:<id>", "client", "stage"
  std::string op;   // submit, grant, end, write, own, load, fire
  history::Type type = history::Type::kInvoke;
  std::uint64_t number = 0;                          // of the request or the write, unique per file and who
  std::vector<Item> items;                           // jobs and runs of a submit; attempts of a grant, an end or a load
  std::vector<Item> runs, jobs, attempts, outcomes;  // of a write
  std::vector<Hold> holds;                           // of a write; what an `own` took
  std::vector<FiredSlot> slots;                      // of a write or a fire
  std::string effect;                                // of a load
  bool again = false;                                // a load that found its receipt

  bool By(std::string_view role) const { return who.starts_with(role); }
};

struct History {
  std::vector<Operation> operations;  // in the order of `at`; those of one file in the order in which they were written
  std::size_t files = 0;
  std::size_t torn = 0;                 // last lines of a file that are no operation and have no end
  std::vector<std::string> unreadable;  // every other line that is no operation: its file, number and beginning
};

// All *.jsonl files of `folder`. kNotFound: no such folder.
Result<History> ReadHistory(const std::string& folder);

}  // namespace millrace::checker
