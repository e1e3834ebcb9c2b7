// The audit trail: one chain of records per writer (a ledger connection of one process start), one record per committed
// transaction with the Merkle root of its rows (RFC 9162 shape: leaf = SHA-256(0x00 || canonical row), node = SHA-256(0x01 ||
// left || right)). Every 10 s a signed checkpoint over all chain heads goes into a file outside the ledger. Format and threat
// model: ops/docs/audit.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
  std::string actor;                    // "broker b1", "scheduler s1", "cli root@host"
  std::vector<Digest> leaves;           // one per row, in row index order
  Digest root{};                        // MerkleRoot(leaves)
  std::optional<Digest> stored_hash{};  // of a record that was read: the hash that the store keeps beside it
  Digest Hash() const;                  // over all of the above but the leaves (the root stands for them)
};

struct AuditHead {
  AuditWriterId writer;
  std::uint64_t seq = 0;
  Digest hash{};
};

// Nothing hashes to it: stands for a digest that is stored in no valid form.
inline constexpr Digest kNoDigest = [] {
  Digest digest{};
  digest.fill(0xFF);
  return digest;
}();
inline constexpr std::uint32_t kNoAuditIndex = 0xFFFF'FFFF;  // no record has so many rows

// A row as the database holds it now.
struct AuditedRow {
  std::string table;
  std::string key;  // for people: "job 0189…", "outcome 0189…"
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::uint32_t index = 0;  // position in the record; kNoAuditIndex: what is stored is no position
  Digest leaf{};            // recomputed from its columns; kNoDigest: a cell has a type or shape that is never written
};

// The same as far as it is compared.
struct AuditedLeaf {
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::uint32_t index = 0;
  Digest leaf{};
};

// What retention took away from a chain; the newest one of a chain counts, and says all of it. Signed with the key of the
// checkpoints, so that somebody who can only write to the database cannot explain a missing row with one of his own.
struct PrunedChain {
  AuditWriterId writer;
  std::uint64_t number = 0;   // 1, 2, 3 ... per chain
  std::uint64_t through = 0;  // this record and those before it are gone with all their rows
  Digest through_hash{};      // its hash: the next record continues from it
  std::uint64_t rows = 0;     // rows of later records that are gone
  Digest leaves{};            // DigestOf what PrunedLeaves says about those
  WallTime before{};          // rows of runs and jobs that were submitted earlier went
  WallTime at{};
  std::string actor;
  std::string signature;            // 64 bytes over SignedBytes; empty: pruned without a key
  std::string SignedBytes() const;  // canonical
};
// Which rows of a record are gone: leaf i, when bit i % 8 (from the lowest) of byte i / 8 is set.
struct PrunedLeaves {
  std::uint64_t seq = 0;
  std::string bits;
  bool Has(std::uint32_t leaf) const {
    return leaf / 8 < bits.size() && (static_cast<unsigned char>(bits[leaf / 8]) >> (leaf % 8) & 1) != 0;
  }
  void Add(std::uint32_t leaf);
  std::uint64_t Count() const;
};
Digest DigestOf(std::span<const PrunedLeaves> leaves);  // in the order of seq; the bits without trailing zero bytes

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
