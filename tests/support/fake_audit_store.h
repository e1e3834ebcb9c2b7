// A ledger's audit part in memory, for what verifies it.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "common/ledger/audit_verify.h"

namespace millrace::testing {

inline AuditWriterId Writer(std::uint8_t n) {
  AuditWriterId id;
  id.uuid.bytes[15] = n;
  return id;
}

struct Row {
  std::int64_t id = 0;
  std::string value;
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::uint32_t index = 0;
  Digest Leaf() const { return CanonicalRow("job").Add(id).Add(value).Leaf(); }
  std::string Key() const { return "job " + std::to_string(id); }
};

// A ledger's audit part in memory, with its insides open for tampering.
class FakeAuditStore : public AuditSource {
 public:
  std::vector<AuditRecord> records;
  std::vector<Row> rows;

  AuditRecord* Find(AuditWriterId writer, std::uint64_t seq) {
    for (AuditRecord& record : records)
      if (record.writer == writer && record.seq == seq) return &record;
    return nullptr;
  }
  Result<std::vector<AuditHead>> AuditHeads(MonoTime) override {
    std::map<AuditWriterId, AuditHead> heads;
    for (const AuditRecord& r : records)
      if (r.seq != 0 && heads[r.writer].seq < r.seq) heads[r.writer] = {r.writer, r.seq, r.Hash()};
    std::vector<AuditHead> out;
    for (const auto& [writer, head] : heads) out.push_back(head);
    return out;
  }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after, std::uint32_t limit,
                                                MonoTime) override {
    std::vector<AuditRecord> out;
    for (const AuditRecord& r : records)
      if ((!writer || r.writer == *writer) && r.seq > after) out.push_back(r);
    std::ranges::sort(out, [](const auto& a, const auto& b) { return std::tie(a.writer, a.seq) < std::tie(b.writer, b.seq); });
    if (out.size() > limit) out.resize(limit);
    return out;
  }
  Result<std::vector<AuditedRow>> AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime) override {
    std::vector<AuditedRow> out;
    for (const Row& r : rows)
      if (r.writer == writer && r.seq == seq) out.push_back({"job", r.Key(), r.writer, r.seq, r.index, r.Leaf()});
    std::ranges::sort(out, {}, &AuditedRow::index);
    return out;
  }
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime) override {
    for (const Row& r : rows) {
      const AuditedLeaf leaf{r.writer, r.seq, r.index, r.Leaf()};
      MILLRACE_TRY(visit("job", std::span{&leaf, 1}));
    }
    return {};
  }
  Result<AuditTotals> Totals(MonoTime) override {
    AuditTotals totals{*AuditHeads({}), records.size(), {{"job", rows.size()}}, std::nullopt};
    for (const AuditRecord& r : records)
      if (r.seq == 0) totals.stray = AuditHead{r.writer, r.seq, kNoDigest};
    return totals;
  }
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t limit, MonoTime) override {
    std::vector<AuditedRow> out;
    for (const Row& r : rows)
      if ((r.seq == 0 || Find(r.writer, r.seq) == nullptr) && out.size() < limit)
        out.push_back({"job", r.Key(), r.writer, r.seq, r.index, r.Leaf()});
    return out;
  }
  // What an attacker with the whole database and no key can do: every leaf, root and link as if nothing had happened.
  void RecomputeEverything() {
    std::map<AuditWriterId, Digest> last;
    std::ranges::sort(records,
                      [](const auto& a, const auto& b) { return std::tie(a.writer, a.seq) < std::tie(b.writer, b.seq); });
    for (AuditRecord& record : records) {
      record.leaves.clear();
      for (const AuditedRow& row : *AuditedRows(record.writer, record.seq, {})) record.leaves.push_back(row.leaf);
      record.root = MerkleRoot(record.leaves);
      record.previous = last[record.writer];
      last[record.writer] = record.Hash();
    }
  }
};

}  // namespace millrace::testing
