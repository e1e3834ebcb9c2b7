// What the verifier of the audit trail reads. A Ledger is one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/crypto/audit.h"

namespace millrace {

// What there was at one instant: whoever has walked every chain up to these heads and has not met as many records and rows has
// not seen everything.
struct AuditTotals {
  std::vector<AuditHead> heads;  // of all chains
  std::uint64_t records = 0;
  std::map<std::string, std::uint64_t> rows;  // by audited table
  std::optional<AuditHead> stray;             // one of the records that no chain can hold: a number below 1, a malformed writer
};

// Not thread-safe. Blocking; every call gives up at `deadline`.
class AuditSource {
 public:
  virtual ~AuditSource() = default;
  // The head of every chain.
  virtual Result<std::vector<AuditHead>> AuditHeads(MonoTime deadline) = 0;
  // Records with seq > after_seq in (writer, seq) order, at most `limit`.
  virtual Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                        std::uint32_t limit, MonoTime deadline) = 0;
  // Every audited row of a record as the store holds it now, in index order. For one record: it may read all tables.
  virtual Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) = 0;
  // Every audited row that was there when the call began, in any order, in parts of bounded size; rows that are written
  // meanwhile may be among them. A row that the store moves meanwhile (a table is rewritten) may come twice or not at all.
  // `visit` must not call the source; its error ends the visit.
  using LeafVisitor = std::function<Result<void>(std::string_view table, std::span<const AuditedLeaf> rows)>;
  virtual Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) = 0;
  // The newest of every chain from which something was pruned, and, for one chain, which rows of the records that are left, by
  // seq. A source that prunes nothing has none.
  virtual Result<std::vector<PrunedChain>> PrunedChains(MonoTime) { return std::vector<PrunedChain>{}; }
  virtual Result<std::vector<PrunedLeaves>> PrunedLeavesOf(AuditWriterId, MonoTime) { return std::vector<PrunedLeaves>{}; }
  // Between the two, reads of this source do not see what others prune: it waits, or it is not looked at. False: it cannot be
  // had now. Not for ever: those who prune lose patience, and a lost connection ends it; PrunedChains then differs.
  virtual Result<bool> HoldHistory(MonoTime) { return false; }
  virtual void ReleaseHistory() {}
  // Counted in one snapshot.
  virtual Result<AuditTotals> Totals(MonoTime deadline) = 0;
  // Rows that claim a record which does not exist or which no chain can hold, at most `limit`.
  virtual Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime deadline) = 0;
};

}  // namespace millrace
