// What is said to be pruned, from look to look of a verification, and whether somebody has pruned meanwhile.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/crypto/audit_source.h"
#include "common/crypto/checkpoint.h"

namespace millrace {

// Why nobody vouches for `chain`; empty when its signature verifies, or when there is no key to tell.
std::string_view ProblemOf(const PrunedChain& chain, const std::optional<PublicKey>& key);

// Not thread-safe. Every Error is the source's.
class PruneWatch {
 public:
  PruneWatch(AuditSource& source, std::optional<PublicKey> key, MonoTime deadline)
      : source_(source), key_(key), deadline_(deadline) {}

  // Reads what is said to be pruned; chains() is that until the next look.
  Result<void> BeginLook();
  const std::map<AuditWriterId, PrunedChain>& chains() const { return chains_; }

  // Whether somebody has pruned since the look began. Somebody who only writes to the database, and has no key, cannot make
  // this true: each statement that is new must be of a chain that exists, signed, and of a higher number than any seen before.
  Result<bool> Pruned();

  // What is said of one chain now: statement and list as of one instant.
  struct Gone {
    PrunedChain chain;  // number 0: nothing is
    std::vector<PrunedLeaves> leaves;
    std::string_view problem;  // why the statement is not to be believed; empty when it is
    bool torn = false;         // the list never agreed with the statement, because others came in each time it was read
    bool Has(std::uint64_t seq) const { return problem.empty() && seq <= chain.through; }  // the record with all its rows
    const PrunedLeaves* Of(std::uint64_t seq) const;                                       // what of a record; may be null
  };
  Result<Gone> GoneOf(AuditWriterId writer);

 private:
  AuditSource& source_;
  const std::optional<PublicKey> key_;
  const MonoTime deadline_;
  std::map<AuditWriterId, PrunedChain> chains_;
  std::map<AuditWriterId, std::uint64_t> highest_;  // number in any look
};

}  // namespace millrace
