// Walks the whole audit trail and names the first thing that is not as it was written. What it can and cannot find:
// ops/docs/audit.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/crypto/audit_source.h"
#include "common/crypto/checkpoint.h"

namespace millrace {

enum class TamperKind : std::uint8_t {
  kEdit,            // a row's columns changed
  kDelete,          // a row is gone
  kInsert,          // a row too many
  kReorder,         // rows or records changed places
  kRecordEdited,    // an audit record changed
  kRecordMissing,   // a hole in a chain
  kTruncated,       // a chain ends before what a checkpoint or its head pins, while later records exist
  kRestored,        // the database as a whole ends before what the checkpoints pin (an older copy, or every tail cut)
  kRecomputed,      // the chain is consistent, but not the one that was signed
  kForked,          // two checkpoints sign different records in one place
  kCheckpoint,      // a checkpoint file itself was changed
  kRecordInserted,  // a record that no chain holds
  kLate,            // a record that claims to be older than a checkpoint which does not hold it
};
std::string_view Name(TamperKind kind);

struct AuditFinding {
  TamperKind kind = TamperKind::kEdit;
  std::string table, key;  // of the row, when it is known
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::optional<std::uint32_t> index;  // of the row in its record
  std::string explanation;             // one sentence, for people
};

struct AuditReport {
  bool ok = false;
  std::uint64_t writers = 0, records = 0, rows = 0, checkpoints = 0;
  std::uint64_t pruned_rows = 0, pruned_records = 0;  // gone by retention, and signed for when a key was given
  std::uint64_t unpinned_records = 0;                 // after the last checkpoint of their chain
  std::optional<AuditFinding> first_bad;
  std::vector<std::string> unproven;  // what this verification cannot say, in plain words
};

inline constexpr Millis kAuditLateGrace{600'000};

struct AuditVerifyOptions {
  std::uint32_t batch_records = 200;         // read at once; memory is bounded by it and by
  std::size_t records_per_scan = 8'000'000;  // those whose rows are looked for in one reading of all rows: 16 bytes each
  MonoTime deadline = MonoTime::max();
  std::optional<PublicKey> key{};  // of those who may prune: what is gone must be signed for with it. Empty: not looked at
  // How far the clocks of the hosts that write may be apart, and how long a commit may take: a record that is older by more
  // than a checkpoint that should hold it is a finding.
  Millis late_grace = kAuditLateGrace;
};

// Looks at what there was at one instant, reads it in batches and stops at the first finding: in the order of writers, records
// and rows in them. All rows are read once (more often when there are more records than records_per_scan). An Error means that
// the source could not be read, or (kUnavailable) that rows were pruned during each of several looks; tampering is a report
// with ok = false. What a prune takes away meanwhile is no finding. Read the checkpoints *before* calling: a live ledger may
// then only be ahead of them.
Result<AuditReport> VerifyAudit(AuditSource& source, const CheckpointSet* checkpoints, const AuditVerifyOptions& options = {});

}  // namespace millrace
