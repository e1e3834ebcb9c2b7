// The lines of jobs, each named once: most jobs come into a line that one was in before. Not thread-safe: owned by the
// dispatcher.
#pragma once

#include <cstddef>
#include <cstdint>
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
  std::size_t known() const { return known_; }

 private:
  struct Known {
    std::uint64_t hash = 0;
    LineRef line;                        // null: a cell that is free
    LineIndex::Line* indexed = nullptr;  // as long as the index has erased no line since
    std::uint64_t erased = 0;
  };
  Known& CellOf(std::uint64_t hash, const JobSpec& spec, Durability durability);
  void Grow();

  Known* last_ = nullptr;
  Known unusual_;             // of a job whose line does not say the same as it does
  std::vector<Known> cells_;  // a power of two of them, at most half of them used
  std::size_t known_ = 0;     // that are
};

}  // namespace millrace
