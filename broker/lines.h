// The words of dispatch: which jobs wait in the same FIFO (LineKey), and which of them a worker can run (WorkerReach).
// Plain values. Which line a worker gets next is decided in broker/line_index.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

// What makes two jobs wait in the same FIFO. `kind` and `root` are part of it: a line is claimed as a whole, so every job of
// a line must be one that the same workers can run. `limit_key` is: what limits one job of a line limits all of them.
struct LineKey {
  std::string queue;
  int priority = kPriorityDefault;
  Durability durability = Durability::kLedger;  // kRedis: the queue keeps the line over a takeover (IsKeptLine)
  OrgId org = kDefaultOrg;
  std::string root;
  std::string kind;
  std::string limit_key;
  static LineKey Of(const JobSpec& spec);  // of ledger class
  std::string ToString() const;
  static Result<LineKey> Parse(std::string_view text);  // kCorrupt: not what ToString made
  friend bool operator==(const LineKey&, const LineKey&) = default;
};

// A line by its name, which is made once and shared by all who speak of the line. Immutable. With its counters it takes up
// three lines of the cache; of each job of a crowd of lines they are in none.
struct NamedLine {
  LineKey key;
  std::string name;  // key.ToString()
};
using LineRef = std::shared_ptr<const NamedLine>;
LineRef NameLine(LineKey key);

struct WorkerReach {  // empty = all
  std::vector<std::string> queues, kinds, roots;
  bool Serves(const LineKey& line) const;
  bool Covers(std::string_view root) const;  // an empty root is reached by all
  friend bool operator==(const WorkerReach&, const WorkerReach&) = default;
};

}  // namespace millrace
