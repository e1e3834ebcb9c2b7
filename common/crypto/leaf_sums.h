// Compares what audit records say of their rows with the rows that a database holds, when the rows come in any order.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "common/crypto/audit.h"

namespace millrace {

// Each record is 16 bytes here, however many rows it has: two sums modulo 2^64, one of what it says and one of what was met.
// A row's summand is SipHash-2-4 of its index and leaf under a key that is drawn anew for each object: whoever wrote the
// database cannot know it, so rows that differ from what a record says have its sum with a probability of 2^-64. Not
// thread-safe.
class LeafSums {
 public:
  LeafSums();
  // Rows that `pruned` says are gone are not expected. REQUIRES: the records of a chain come in order, without gaps and other
  // chains between them.
  void Expect(const AuditRecord& record, const PrunedLeaves* pruned);
  // A row that was met; false: its record is none of those that are expected.
  bool Meet(const AuditedLeaf& row);
  std::size_t records() const { return records_; }
  // Instead of what Expect said of a record: `record` is null when it and all its rows are gone. Of one that is not expected:
  // nothing.
  void ExpectInstead(AuditWriterId writer, std::uint64_t seq, const AuditRecord* record, const PrunedLeaves* pruned);
  // The records, in the order of Expect, whose rows are not those that were met; the first of them.
  std::vector<std::pair<AuditWriterId, std::uint64_t>> Different() const;
  std::optional<std::pair<AuditWriterId, std::uint64_t>> FirstDifferent() const;
  void ForgetRows();  // what was met
  void Clear();

 private:
  struct Sums {
    std::uint64_t expected = 0, met = 0;
  };
  struct Chain {
    AuditWriterId writer;
    std::uint64_t first = 0;  // seq of records[0]
    std::vector<Sums> records;
  };
  std::uint64_t Summand(std::uint32_t index, const Digest& leaf) const;
  std::uint64_t SumOf(const AuditRecord& record, const PrunedLeaves* pruned) const;

  std::array<unsigned char, 16> key_;
  std::vector<Chain> chains_;
  std::map<AuditWriterId, std::size_t> place_;  // in chains_
  std::size_t last_ = 0;                        // of the row before: rows of a writer lie together
  std::size_t records_ = 0;
};

}  // namespace millrace
