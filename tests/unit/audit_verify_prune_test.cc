// `audit verify` while rows and records go by retention: nothing of it is tampering, and nothing else is excused by it.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "common/base/random.h"
#include "common/ledger/audit_verify.h"
#include "tests/support/fake_audit_store.h"

namespace millrace {
namespace {

using testing::FakeAuditStore;
using testing::Row;
using testing::Writer;

// Rows and records go by retention, or are said to, while they are verified.
class PruningStore final : public FakeAuditStore {
 public:
  PruningStore() {
    for (std::uint8_t w = 1; w <= 2; ++w) {
      AuditChain chain(Writer(w), "broker b1");
      for (int i = 0; i < 16; ++i) {
        std::vector<Row> added;
        for (std::uint32_t at = 0; at < 2; ++at)
          added.push_back({w * 1000 + i * 10 + std::int64_t{at}, "v", Writer(w), static_cast<std::uint64_t>(i + 1), at});
        const AuditRecord record = chain.Next({added[0].Leaf(), added[1].Leaf()}, FromUnixMicros(i));
        chain.Advance(record);
        records.push_back(record);
        std::ranges::copy(added, std::back_inserter(rows));
      }
    }
  }

  const SigningKey key = *SigningKey::FromSeed(std::string(32, 'p'));
  std::map<AuditWriterId, PrunedChain> chains;
  std::map<AuditWriterId, std::vector<PrunedLeaves>> leaves;
  std::function<void()> in_rows, in_records;

  Result<std::vector<PrunedChain>> PrunedChains(MonoTime) override {
    std::vector<PrunedChain> all;
    for (const auto& [writer, chain] : chains) all.push_back(chain);
    return all;
  }
  Result<std::vector<PrunedLeaves>> PrunedLeavesOf(AuditWriterId writer, MonoTime) override { return leaves[writer]; }
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) override {
    if (in_rows) in_rows();
    return FakeAuditStore::VisitRows(visit, deadline);
  }
  Result<std::vector<AuditRecord>> AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after, std::uint32_t limit,
                                                MonoTime deadline) override {
    if (in_records && after == 0 && limit > 1) in_records();
    return FakeAuditStore::AuditRecords(writer, after, limit, deadline);
  }

  void Delete(AuditWriterId writer, std::uint64_t seq, std::uint32_t index) {
    std::erase_if(rows, [&](const Row& r) { return r.writer == writer && r.seq == seq && r.index == index; });
  }
  void List(AuditWriterId writer, std::uint64_t seq, std::uint32_t index) {
    auto& list = leaves[writer];
    auto at = std::ranges::lower_bound(list, seq, {}, &PrunedLeaves::seq);
    if (at == list.end() || at->seq != seq) at = list.insert(at, {seq, {}});
    at->Add(index);
  }
  void Sign(AuditWriterId writer) {
    PrunedChain& chain = chains[writer];
    chain.writer = writer;
    ++chain.number;
    chain.leaves = DigestOf(leaves[writer]);
    const Signature signature = key.Sign(chain.SignedBytes());
    chain.signature.assign(signature.begin(), signature.end());
  }
  void PruneRow(AuditWriterId writer, std::uint64_t seq, std::uint32_t index) {
    Delete(writer, seq, index);
    List(writer, seq, index);
    Sign(writer);
  }
  void PruneRecord(AuditWriterId writer, std::uint64_t seq) {
    chains[writer].through = seq;
    chains[writer].through_hash = Find(writer, seq)->Hash();
    std::erase_if(rows, [&](const Row& r) { return r.writer == writer && r.seq <= seq; });
    std::erase_if(records, [&](const AuditRecord& r) { return r.writer == writer && r.seq <= seq; });
    Sign(writer);
  }
  PrunedChain Junk(AuditWriterId writer, std::uint64_t number) const {
    PrunedChain chain;
    chain.writer = writer;
    chain.number = number;
    chain.signature = std::string(64, 'x');
    return chain;
  }
  Result<AuditReport> Verify() { return VerifyAudit(*this, nullptr, {.key = key.public_key()}); }
  void ExpectGone(AuditWriterId writer, std::uint64_t seq, std::uint32_t index) {
    const auto report = Verify();
    ASSERT_TRUE(report) << report.error().message;
    ASSERT_TRUE(report->first_bad);
    EXPECT_EQ(report->first_bad->kind, TamperKind::kDelete) << report->first_bad->explanation;
    EXPECT_EQ(report->first_bad->writer, writer);
    EXPECT_EQ(report->first_bad->seq, seq);
    EXPECT_EQ(report->first_bad->index, index);
  }
};

TEST(AuditVerifyPruneTest, StatementsOfMadeUpWritersHideNoDeletion) {
  PruningStore store;
  store.Delete(Writer(2), 5, 1);
  std::uint8_t made_up = 50;
  store.in_rows = [&] {
    ++made_up;
    store.chains[Writer(made_up)] = store.Junk(Writer(made_up), 1);
  };
  store.ExpectGone(Writer(2), 5, 1);
}

TEST(AuditVerifyPruneTest, AStatementThatNobodySignedHidesNothing) {
  PruningStore store;
  store.PruneRow(Writer(2), 3, 0);
  store.Delete(Writer(2), 5, 1);
  store.in_rows = [&] { store.chains[Writer(2)] = store.Junk(Writer(2), store.chains[Writer(2)].number + 1); };
  const auto report = store.Verify();
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_TRUE(report->first_bad);
  EXPECT_TRUE(report->first_bad->explanation.contains("signature that does not verify")) << report->first_bad->explanation;
}

TEST(AuditVerifyPruneTest, ASignedStatementOfAWriterWithoutRecordsHidesNothing) {
  PruningStore store;
  store.Delete(Writer(2), 5, 1);
  std::uint8_t other = 50;
  store.in_rows = [&] { store.Sign(Writer(++other)); };  // of another database under the same key
  store.ExpectGone(Writer(2), 5, 1);
}

// Who kept the statements of earlier prunes can show them again.
TEST(AuditVerifyPruneTest, OldStatementsHideNoDeletion) {
  PruningStore store;
  std::vector<std::pair<PrunedChain, std::vector<PrunedLeaves>>> kept;
  for (std::uint64_t seq = 1; seq <= 12; ++seq) {
    store.PruneRow(Writer(1), seq, 0);
    kept.emplace_back(store.chains[Writer(1)], store.leaves[Writer(1)]);
  }
  const auto show = [&](std::size_t i) { std::tie(store.chains[Writer(1)], store.leaves[Writer(1)]) = kept[i]; };
  store.Delete(Writer(2), 5, 1);
  std::size_t shown = kept.size() - 1;
  store.in_rows = [&] { show(shown = shown == kept.size() - 1 ? shown - 1 : kept.size() - 1); };  // to and fro
  auto report = store.Verify();
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_FALSE(report->ok);
  // One after the other, each of them new to this verification.
  store.in_rows = [&] { show(shown = std::min(shown + 1, kept.size() - 1)); };
  show(shown = 0);
  report = store.Verify();
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_FALSE(report->ok);
}

TEST(AuditVerifyPruneTest, NobodyCanListARowAsPrunedWhileItIsLookedFor) {
  PruningStore store;
  store.PruneRow(Writer(2), 3, 0);
  store.Delete(Writer(2), 5, 1);
  store.in_rows = [&] { store.List(Writer(2), 5, 1); };
  const auto report = store.Verify();
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_TRUE(report->first_bad);
  EXPECT_EQ(report->first_bad->kind, TamperKind::kDelete);
  EXPECT_TRUE(report->first_bad->explanation.contains("differs from the rows that are listed"))
      << report->first_bad->explanation;
}

TEST(AuditVerifyPruneTest, APruneIsNeverTampering) {
  for (const bool whole_records : {false, true})
    for (const int steps : {1, 2, 3, 4, 5, 100}) {
      PruningStore store;
      int step = 0;
      (whole_records ? store.in_records : store.in_rows) = [&] {
        if (step >= std::min(steps, 15)) return;
        ++step;
        const auto seq = static_cast<std::uint64_t>(step);
        if (whole_records)
          store.PruneRecord(Writer(1), seq);
        else
          store.PruneRow(Writer(1), seq, 1);
      };
      const auto report = store.Verify();
      if (report)
        EXPECT_TRUE(report->ok) << steps << ": " << report->first_bad->explanation;
      else
        EXPECT_EQ(report.error().code, ErrorCode::kUnavailable) << report.error().message;
      EXPECT_EQ(report.has_value(), steps < 5) << steps;
      store.in_records = store.in_rows = nullptr;
      EXPECT_TRUE(store.Verify()->ok);
    }
}

// The first thing that is found is always the work of a prune; what is behind it is not.
TEST(AuditVerifyPruneTest, APruneHidesNothingBehindIt) {
  for (const bool whole_records : {false, true})
    for (const std::string what : {"edit", "insert", "delete", "record"}) {
      PruningStore store;
      std::uint64_t step = 0;
      (whole_records ? store.in_records : store.in_rows) = [&] {
        if (step == 15) return;
        ++step;
        if (whole_records)
          store.PruneRecord(Writer(1), step);
        else
          store.PruneRow(Writer(1), step, 1);
      };
      Row& row = *std::ranges::find_if(store.rows, [](const Row& r) { return r.writer == Writer(2) && r.seq == 5; });
      TamperKind kind = TamperKind::kEdit;
      if (what == "edit") row.value = "changed";
      if (what == "insert") {
        store.rows.push_back({9999, "v", Writer(2), 5, 2});
        kind = TamperKind::kInsert;
      }
      if (what == "delete") {
        store.Delete(Writer(2), 5, 1);
        kind = TamperKind::kDelete;
      }
      if (what == "record") {
        store.Find(Writer(2), 5)->at += Micros{1};
        kind = TamperKind::kRecordEdited;
      }
      const auto report = store.Verify();
      ASSERT_TRUE(report) << what << ": " << report.error().message;
      ASSERT_TRUE(report->first_bad) << what;
      EXPECT_EQ(report->first_bad->kind, kind) << report->first_bad->explanation;
      EXPECT_EQ(report->first_bad->writer, Writer(2));
    }
}

}  // namespace
}  // namespace millrace
