// The lines of jobs, each named once: most jobs come into a line that one was in before. Not thread-safe: owned by the
// dispatcher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "broker/line_index.h"
#include "broker/lines.h"
#include "common/base/ids.h"
#include "common/model/job.h"

namespace millrace {

// Keeps up to kKnownMax of them, some 300 bytes each, then begins anew.
class LineMemo {
 public:
  static constexpr std::size_t kKnownMax = 16'384;

  // The line of such a job. The reference is valid until the next call.
  const LineRef& Find(const JobSpec& spec, Durability durability);
  // What the index has of the line that was found last, or nullptr. Always the same index.
  LineIndex::Line* In(const LineIndex& index, ShardId shard);
  std::size_t known() const { return known_.size(); }

 private:
  struct Known {
    LineRef line;
    LineIndex::Line* indexed = nullptr;  // as long as the index has erased no line since
    std::uint64_t erased = 0;
  };
  struct Cell {
    std::uint64_t hash = 0;
    Known* known = nullptr;  // null: free
  };
  Cell& CellOf(std::uint64_t hash, const JobSpec& spec, Durability durability);
  void Grow();

  Known* last_ = nullptr;
  Known unusual_;  // of a job whose line does not say the same as it does
  std::deque<Known> known_;
  std::vector<Cell> cells_;  // a power of two of them, at most half of them used
};

}  // namespace millrace
