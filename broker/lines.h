// The words of dispatch: which jobs wait in the same FIFO (LineKey), and which of them a worker can run (WorkerReach).
// Plain values. Which line a worker gets next is decided in broker/line_index.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
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
  OrgId org = kDefaultOrg;
  std::string root;
  std::string kind;
  std::string limit_key;
  Durability durability = Durability::kLedger;  // kRedis: the queue keeps the line over a takeover (IsKeptLine)
  static LineKey Of(const JobSpec& spec);       // of ledger class
  std::string ToString() const;
  static Result<LineKey> Parse(std::string_view text);  // kCorrupt: not what ToString made
  friend bool operator==(const LineKey&, const LineKey&) = default;
};

// The lines of jobs, each made once: most jobs come into a line that one was in before. Keeps up to kKnownMax of them, some
// 300 bytes each, then begins anew. Not thread-safe.
class LineMemo {
 public:
  static constexpr std::size_t kKnownMax = 16'384;

  void Find(const JobSpec& spec, Durability durability);  // then key() and name() are those of the job's line, until the next
  const LineKey& key() const { return last_->key; }
  const std::string& name() const { return last_->name; }
  std::size_t known() const { return known_.size(); }

 private:
  struct Line {
    LineKey key;
    std::string name;
  };
  struct Cell {
    std::uint64_t hash = 0;
    const Line* line = nullptr;  // null: free
  };
  Cell& CellOf(std::uint64_t hash, const JobSpec& spec, Durability durability);
  void Grow();

  const Line* last_ = nullptr;
  Line unusual_;  // of a job whose line does not say the same as it does
  std::deque<Line> known_;
  std::vector<Cell> cells_;  // a power of two of them, at most half of them used
};

struct WorkerReach {  // empty = all
  std::vector<std::string> queues, kinds, roots;
  bool Serves(const LineKey& line) const;
  bool Covers(std::string_view root) const;  // an empty root is reached by all
  friend bool operator==(const WorkerReach&, const WorkerReach&) = default;
};

}  // namespace millrace
