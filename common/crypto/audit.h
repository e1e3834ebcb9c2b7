// The audit trail: one chain of records per writer (a ledger connection of one process start), one record per committed
// transaction with the Merkle root of its rows (RFC 9162 shape: leaf = SHA-256(0x00 || canonical row), node = SHA-256(0x01 ||
// left || right)). Every 10 s a signed checkpoint over all chain heads goes into a file outside the ledger. Format and threat
// model: ops/docs/audit.md.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"

namespace millrace {

using Digest = std::array<std::uint8_t, 32>;
using AuditWriterId = UuidId<struct AuditWriterTag>;

Digest Sha256(std::string_view bytes);
std::string ToHex(std::span<const std::uint8_t> bytes);
Result<Digest> DigestFromHex(std::string_view hex);

// Builds the canonical bytes of a row: table name, then each column as (tag, length, bytes), in a fixed order. Two rows have
// the same bytes only if they are equal; NULL differs from empty.
class CanonicalRow {
 public:
  explicit CanonicalRow(std::string_view table);
  CanonicalRow& Add(std::string_view text);
  CanonicalRow& Add(std::int64_t value);
  CanonicalRow& AddNull();
  Digest Leaf() const;
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

Digest MerkleRoot(std::span<const Digest> leaves);  // of no leaves: SHA-256 of nothing

struct AuditRecord {
  AuditWriterId writer;
  std::uint64_t seq = 0;  // 1, 2, 3 ... per writer, no gaps
  Digest previous{};      // hash of the record before it; zeros for the first
  WallTime at{};
  std::string actor;           // "broker b1", "scheduler s1", "cli root@host"
  std::vector<Digest> leaves;  // one per row, in row index order
  Digest root{};               // MerkleRoot(leaves)
  Digest Hash() const;         // over all of the above but the leaves (the root stands for them)
};

struct AuditHead {
  AuditWriterId writer;
  std::uint64_t seq = 0;
  Digest hash{};
};

// A row as the database holds it now.
struct AuditedRow {
  std::string table;
  std::string key;  // for people: "job 0189…", "outcome 0189…"
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::uint32_t index = 0;  // position in the record
  Digest leaf{};            // recomputed from its columns
};

// The next record of a chain. Pure: the caller stores it in the same transaction and calls Advance when that committed.
class AuditChain {
 public:
  AuditChain(AuditWriterId writer, std::string actor) : writer_(writer), actor_(std::move(actor)) {}
  AuditRecord Next(std::vector<Digest> leaves, WallTime at) const;
  void Advance(const AuditRecord& committed);
  // Goes on after `last`, the writer's last record in the database. REQUIRES: it is not older than the last one advanced to.
  void Resume(const AuditRecord& last);
  AuditWriterId writer() const { return writer_; }

 private:
  AuditWriterId writer_;
  std::string actor_;
  std::uint64_t seq_ = 0;
  Digest head_{};
};

}  // namespace millrace
