// What a checkpoint may sign: every chain of a ledger, followed record by record from where the checkpoint before it stood.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/crypto/audit_source.h"

namespace millrace {

struct AuditNews {
  std::vector<AuditHead> heads;      // of all chains, as far as they were followed
  std::vector<AuditRecord> records;  // since the call before
  bool complete = true;              // false: there is more to read, or something could not be read
};

// Keeps the end of every chain. A record that does not continue its chain, or whose root or stored hash is wrong, is never in
// the news, nor is anything behind it in the same chain: the break is logged, and stays for as long as the follower lives. A
// pruned chain goes on behind what is gone (whether its certificate is signed, VerifyAudit looks). It does not compare rows
// with leaves, which is what VerifyAudit does. Not thread-safe.
class AuditFollower {
 public:
  // `signed_before`: the heads of checkpoints that were written earlier; what lies before them is not read again.
  explicit AuditFollower(std::map<AuditWriterId, AuditHead> signed_before = {}) : known_(std::move(signed_before)) {}

  // Reads at most about `limit` records. An Error means that nothing was read.
  Result<AuditNews> Read(AuditSource& source, std::uint32_t limit, MonoTime deadline);
  // The same, up to the heads that the last Read saw: what it left when it came to its limit, without asking for heads again.
  AuditNews ReadOn(AuditSource& source, std::uint32_t limit, MonoTime deadline);

 private:
  bool Follow(AuditSource& source, const AuditHead& head, std::uint32_t limit, MonoTime deadline, AuditNews& news);
  void Break(AuditWriterId writer, std::string why);

  std::map<AuditWriterId, AuditHead> known_;
  std::set<AuditWriterId> broken_;
  std::vector<AuditHead> open_;                // of the last Read: not reached yet
  std::map<AuditWriterId, AuditHead> pruned_;  // as the last Read saw it
};

// Why `record` cannot be the one behind `last` (seq 0: it is to be the first); empty when it can.
std::string WhyNotNext(const AuditHead& last, const AuditRecord& record);

}  // namespace millrace
