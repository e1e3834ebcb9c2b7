#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <tuple>

#include "common/base/random.h"
#include "common/crypto/leaf_sums.h"
#include "common/ledger/audit_follow.h"
#include "common/ledger/audit_verify.h"
#include "tests/support/fake_audit_store.h"

namespace millrace {
namespace {

using testing::FakeAuditStore;
using testing::Row;
using testing::Writer;

struct World {
  FakeAuditStore store, older;
  CheckpointSet checkpoints;
};

World MakeWorld(Random& random) {
  World world;
  std::vector<AuditChain> chains;
  const std::uint8_t writers = static_cast<std::uint8_t>(1 + random.Below(3));
  for (std::uint8_t w = 0; w < writers; ++w) chains.emplace_back(Writer(static_cast<std::uint8_t>(w + 1)), "broker b1");
  const std::uint64_t count = 8 + random.Below(20);
  Checkpoint checkpoint;
  std::int64_t id = 1;
  for (std::uint64_t i = 0; i < count; ++i) {
    AuditChain& chain = chains[i < writers ? i : random.Below(writers)];
    std::vector<Digest> leaves;
    std::vector<Row> rows;
    const std::uint64_t n = 2 + random.Below(5);
    for (std::uint32_t index = 0; index < n; ++index, ++id) {
      rows.push_back({id, "v" + std::to_string(random.Next()), chain.writer(), 0, index});
      leaves.push_back(rows.back().Leaf());
    }
    const AuditRecord record = chain.Next(std::move(leaves), FromUnixMicros(static_cast<std::int64_t>(1000 * (i + 1))));
    chain.Advance(record);
    for (Row& row : rows) {
      row.seq = record.seq;
      world.store.rows.push_back(row);
    }
    world.store.records.push_back(record);
    checkpoint.records.push_back(CheckpointEntry::Of(record));
    checkpoint.at = record.at + Micros{1};
    if (i + 1 == count / 2) world.older = world.store;
    if (random.Below(3) == 0 || i + 1 == count) {
      checkpoint.heads = *world.store.AuditHeads({});
      world.checkpoints.Merge(checkpoint);
      checkpoint.records.clear();
    }
  }
  return world;
}

// Runs `tamper` on 120 random worlds; it changes the store and returns what the report must name.
struct Expected {
  std::vector<TamperKind> kinds;
  AuditWriterId writer;
  std::uint64_t seq = 0;
  std::optional<std::string> key;
  std::optional<std::uint32_t> index;
};
void Randomised(bool with_checkpoints, const std::function<Expected(World&, Random&)>& tamper) {
  const std::uint64_t base = SystemRandom().Next() % 1'000'000'000;
  for (std::uint64_t i = 0; i < 120; ++i) {
    SCOPED_TRACE(fmt::format("seed {}", base + i));
    SeededRandom random(base + i);
    World world = MakeWorld(random);
    const CheckpointSet* checkpoints = with_checkpoints ? &world.checkpoints : nullptr;
    const AuditVerifyOptions options{.batch_records = 3, .records_per_scan = 1 + i % 7};
    const auto clean = VerifyAudit(world.store, checkpoints, options);
    ASSERT_TRUE(clean && clean->ok) << (clean && clean->first_bad ? clean->first_bad->explanation : "error");
    ASSERT_EQ(clean->records, world.store.records.size());
    ASSERT_EQ(clean->rows, world.store.rows.size());
    const Expected expected = tamper(world, random);
    const auto report = VerifyAudit(world.store, checkpoints, options);
    ASSERT_TRUE(report);
    ASSERT_FALSE(report->ok) << "not found";
    const AuditFinding& bad = *report->first_bad;
    EXPECT_TRUE(std::ranges::find(expected.kinds, bad.kind) != expected.kinds.end())
        << Name(bad.kind) << ": " << bad.explanation;
    EXPECT_EQ(bad.writer, expected.writer) << bad.explanation;
    EXPECT_EQ(bad.seq, expected.seq) << bad.explanation;
    if (expected.key) {
      EXPECT_EQ(bad.key, *expected.key) << bad.explanation;
    }
    if (expected.index) {
      EXPECT_EQ(bad.index, expected.index) << bad.explanation;
    }
  }
}

TEST(AuditVerifyTest, EveryEditedRowIsNamed) {
  Randomised(false, [](World& world, Random& random) -> Expected {
    Row& row = world.store.rows[random.Below(world.store.rows.size())];
    row.value[random.Below(row.value.size())] ^= 1;
    return {{TamperKind::kEdit}, row.writer, row.seq, row.Key(), row.index};
  });
}

TEST(AuditVerifyTest, EveryDeletedRowIsNamedByItsPlace) {
  Randomised(false, [](World& world, Random& random) -> Expected {
    const auto at = world.store.rows.begin() + static_cast<std::ptrdiff_t>(random.Below(world.store.rows.size()));
    const Row gone = *at;
    world.store.rows.erase(at);
    return {{TamperKind::kDelete}, gone.writer, gone.seq, std::nullopt, gone.index};
  });
}

TEST(AuditVerifyTest, EveryInsertedRowIsNamed) {
  Randomised(false, [](World& world, Random& random) -> Expected {
    Row row = world.store.rows[random.Below(world.store.rows.size())];
    row.id = 999'999;
    switch (random.Below(3)) {
      case 0: break;                                       // a second row at a place that is taken
      case 1: row.index = 1'000; break;                    // beyond the end
      default: row.seq = 1'000 + random.Below(10); break;  // of a record that does not exist
    }
    world.store.rows.push_back(row);
    return {{TamperKind::kInsert}, row.writer, row.seq, row.Key(), row.index};
  });
}

TEST(AuditVerifyTest, EveryExchangeOfRowsOrRecordsIsFound) {
  Randomised(false, [](World& world, Random& random) -> Expected {
    if (random.Below(2) == 0) {
      const AuditRecord& record = world.store.records[random.Below(world.store.records.size())];
      std::vector<Row*> rows;
      for (Row& row : world.store.rows)
        if (row.writer == record.writer && row.seq == record.seq) rows.push_back(&row);
      std::swap(rows[0]->index, rows[1]->index);
      return {{TamperKind::kReorder}, record.writer, record.seq, rows[1]->Key(), 0u};
    }
    for (AuditRecord& record : world.store.records) {
      if (AuditRecord* next = world.store.Find(record.writer, record.seq + 1)) {
        const std::uint64_t first = record.seq;
        for (Row& row : world.store.rows)
          if (row.writer == record.writer && (row.seq == first || row.seq == first + 1)) row.seq = 2 * first + 1 - row.seq;
        std::swap(record.seq, next->seq);
        return {{TamperKind::kReorder}, record.writer, first, std::nullopt, std::nullopt};
      }
    }
    ADD_FAILURE() << "no two records in one chain";
    return {};
  });
}

TEST(AuditVerifyTest, EveryCutTailIsFoundWithCheckpoints) {
  Randomised(true, [](World& world, Random& random) -> Expected {
    const AuditRecord victim = world.store.records[random.Below(world.store.records.size())];
    const auto cut = [&](const auto& x) { return x.writer == victim.writer && x.seq >= victim.seq; };
    std::erase_if(world.store.records, cut);
    std::erase_if(world.store.rows, cut);
    return {{TamperKind::kTruncated, TamperKind::kRestored}, victim.writer, victim.seq, std::nullopt, std::nullopt};
  });
}

TEST(AuditVerifyTest, EveryRestoredOlderCopyIsFoundWithCheckpoints) {
  Randomised(true, [](World& world, Random&) -> Expected {
    std::map<AuditWriterId, std::uint64_t> then, now;
    for (const AuditRecord& r : world.older.records) then[r.writer] = std::max(then[r.writer], r.seq);
    for (const AuditRecord& r : world.store.records) now[r.writer] = std::max(now[r.writer], r.seq);
    world.store = world.older;
    AuditWriterId first;
    bool found = false;
    for (const bool present : {true, false})  // chains that exist are walked before those that are gone altogether
      for (const auto& [writer, seq] : now)
        if (!found && then.contains(writer) == present && then[writer] < seq) first = writer, found = true;
    return {{TamperKind::kRestored}, first, then[first] + 1, std::nullopt, std::nullopt};
  });
}

TEST(AuditVerifyTest, EveryFullRecomputationIsPinnedToItsRowWithCheckpointsOnly) {
  Randomised(true, [](World& world, Random& random) -> Expected {
    Row& row = world.store.rows[random.Below(world.store.rows.size())];
    row.value += "!";
    const Expected expected{{TamperKind::kRecomputed}, row.writer, row.seq, row.Key(), row.index};
    world.store.RecomputeEverything();
    const auto blind = VerifyAudit(world.store, nullptr);
    EXPECT_TRUE(blind && blind->ok);  // and the report says so:
    EXPECT_EQ(blind->unproven.size(), 3u);
    return expected;
  });
}

TEST(AuditVerifyTest, ForksChangedCheckpointsAndMissingRecordsAreFindings) {
  SeededRandom random(3);
  World world = MakeWorld(random);
  CheckpointSet forked = world.checkpoints;
  Checkpoint other;
  other.heads.push_back({world.store.records[0].writer, 1, Sha256("another history")});
  forked.Merge(other);
  EXPECT_EQ(VerifyAudit(world.store, &forked)->first_bad->kind, TamperKind::kForked);
  CheckpointSet changed = world.checkpoints;
  changed.problems.push_back("a.checkpoints:3: the signature does not verify");
  EXPECT_EQ(VerifyAudit(world.store, &changed)->first_bad->explanation,
            "checkpoint a.checkpoints:3: the signature does not verify");
  const AuditWriterId writer = world.store.records[0].writer;
  std::erase_if(world.store.records, [&](const AuditRecord& r) { return r.writer == writer && r.seq == 1; });
  const auto report = VerifyAudit(world.store, nullptr);
  EXPECT_EQ(report->first_bad->kind, TamperKind::kRecordMissing);
  EXPECT_EQ(report->first_bad->seq, 1u);
}

TEST(AuditVerifyTest, WhatNoChainHoldsIsFound) {
  SeededRandom random(4);
  const World world = MakeWorld(random);
  for (const AuditWriterId writer : {world.store.records[0].writer, Writer(99)}) {
    FakeAuditStore store = world.store;
    AuditRecord record;
    record.writer = writer;
    store.records.push_back(record);
    EXPECT_EQ(VerifyAudit(store, nullptr)->first_bad->kind, TamperKind::kRecordInserted);
    store.rows.push_back({999, "forged", writer, 0, 0});
    const auto report = VerifyAudit(store, &world.checkpoints);
    ASSERT_FALSE(report->ok);
    EXPECT_EQ(report->first_bad->kind, TamperKind::kInsert);
    EXPECT_EQ(report->first_bad->key, "job 999");
  }
}

// Somebody has dropped the primary key: between two batches the copy is behind the record that it is a copy of.
TEST(AuditVerifyTest, ACopyOfARecordIsFoundWhereverBatchesEnd) {
  SeededRandom random(5);
  const World world = MakeWorld(random);
  for (std::size_t i = 0; i < world.store.records.size(); ++i)
    for (const std::uint32_t batch : {1u, 2u, 3u, 200u}) {
      FakeAuditStore store = world.store;
      store.records.push_back(store.records[i]);
      EXPECT_FALSE(VerifyAudit(store, nullptr, {.batch_records = batch})->ok) << i << " " << batch;
    }
}

TEST(AuditVerifyTest, AStoredHashThatIsNotTheRecordsIsFound) {
  SeededRandom random(6);
  World world = MakeWorld(random);
  for (AuditRecord& record : world.store.records) record.stored_hash = record.Hash();
  ASSERT_TRUE(VerifyAudit(world.store, &world.checkpoints)->ok);
  world.store.records[2].stored_hash = Sha256("another");
  const auto report = VerifyAudit(world.store, nullptr);
  ASSERT_FALSE(report->ok);
  EXPECT_EQ(report->first_bad->kind, TamperKind::kRecordEdited);
  EXPECT_EQ(report->first_bad->seq, world.store.records[2].seq);
}

// A table that is rewritten while it is read: rows come twice, or not at all.
class MovingStore final : public FakeAuditStore {
 public:
  int moves = 0;  // so many times
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) override {
    if (moves-- <= 0) return FakeAuditStore::VisitRows(visit, deadline);
    FakeAuditStore other = *this;
    other.rows.erase(other.rows.begin());
    other.rows.push_back(other.rows.front());
    return other.VisitRows(visit, deadline);
  }
};

TEST(AuditVerifyTest, RowsThatMoveWhileTheyAreReadAreNoFinding) {
  SeededRandom random(7);
  const World world = MakeWorld(random);
  MovingStore store;
  store.records = world.store.records;
  store.rows = world.store.rows;
  store.moves = 2;
  const auto report = VerifyAudit(store, nullptr);
  ASSERT_TRUE(report && report->ok);
  EXPECT_EQ(report->rows, store.rows.size());
  store.moves = 100;
  const auto never = VerifyAudit(store, nullptr);
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code, ErrorCode::kUnavailable);
  store.moves = 1;
  store.rows.back().value += "x";
  const auto tampered = VerifyAudit(store, nullptr);
  ASSERT_TRUE(tampered && tampered->first_bad);
  EXPECT_EQ(tampered->first_bad->key, store.rows.back().Key());
}

// A prune has the tables locked for longer than a statement waits.
class LockedStore final : public FakeAuditStore {
 public:
  int locked = 0, holds = 0, releases = 0;
  Result<AuditTotals> Totals(MonoTime deadline) override {
    if (locked-- > 0) return Fail(ErrorCode::kConflict, "lock timeout");
    return FakeAuditStore::Totals(deadline);
  }
  Result<bool> HoldHistory(MonoTime) override {
    ++holds;
    return true;
  }
  void ReleaseHistory() override { ++releases; }
};

TEST(AuditVerifyTest, AfterALockedTableItLooksAgainAndHoldsTheHistory) {
  SeededRandom random(9);
  const World world = MakeWorld(random);
  LockedStore store;
  store.records = world.store.records;
  store.rows = world.store.rows;
  ASSERT_TRUE(VerifyAudit(store, nullptr)->ok);
  EXPECT_EQ(store.holds, 0) << "a verification that nobody disturbs keeps nobody from pruning";
  store.locked = 2;
  const auto report = VerifyAudit(store, nullptr);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->ok);
  EXPECT_EQ(store.holds, 2);
  EXPECT_EQ(store.releases, 2);
  store.locked = 100;
  const auto never = VerifyAudit(store, nullptr);
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code, ErrorCode::kUnavailable) << "as for looks that are disturbed otherwise";
  EXPECT_EQ(store.releases, store.holds);
}

// A row whose cells only look like those of a record: no look-up by record finds it, the search for orphans does.
class UnsoundStore final : public FakeAuditStore {
 public:
  Result<void> VisitRows(const LeafVisitor& visit, MonoTime deadline) override {
    const AuditedLeaf extra{rows.front().writer, rows.front().seq, rows.front().index, kNoDigest};
    MILLRACE_TRY(visit("job", std::span{&extra, 1}));
    return FakeAuditStore::VisitRows(visit, deadline);
  }
  Result<std::vector<AuditedRow>> OrphanRows(std::uint32_t, MonoTime) override {
    return std::vector<AuditedRow>{{"job", "job 999", rows.front().writer, rows.front().seq, rows.front().index, kNoDigest}};
  }
};

TEST(AuditVerifyTest, ARowThatOnlyLooksLikeOneOfARecordIsNamed) {
  SeededRandom random(8);
  const World world = MakeWorld(random);
  UnsoundStore store;
  store.records = world.store.records;
  store.rows = world.store.rows;
  const auto report = VerifyAudit(store, nullptr);
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_TRUE(report->first_bad);
  EXPECT_EQ(report->first_bad->kind, TamperKind::kInsert);
  EXPECT_EQ(report->first_bad->key, "job 999");
}

TEST(LeafSumsTest, TellsRowsThatARecordHasFromOthers) {
  AuditRecord record;
  record.writer = Writer(1);
  record.seq = 4;
  for (const std::string_view text : {"a", "b", "c"}) record.leaves.push_back(Sha256(text));
  const auto leaf = [&](std::uint32_t index, std::string_view text) {
    return AuditedLeaf{record.writer, record.seq, index, Sha256(text)};
  };
  const auto same = [&](const std::vector<AuditedLeaf>& rows, const PrunedLeaves* pruned) {
    LeafSums sums;
    sums.Expect(record, pruned);
    for (const AuditedLeaf& row : rows) EXPECT_TRUE(sums.Meet(row));
    return !sums.FirstDifferent().has_value();
  };
  EXPECT_TRUE(same({leaf(2, "c"), leaf(0, "a"), leaf(1, "b")}, nullptr)) << "in any order";
  EXPECT_FALSE(same({leaf(0, "a"), leaf(1, "b")}, nullptr)) << "one is gone";
  EXPECT_FALSE(same({leaf(0, "a"), leaf(1, "b"), leaf(2, "d")}, nullptr)) << "one was changed";
  EXPECT_FALSE(same({leaf(0, "b"), leaf(1, "a"), leaf(2, "c")}, nullptr)) << "two were exchanged";
  EXPECT_FALSE(same({leaf(0, "a"), leaf(1, "b"), leaf(2, "c"), leaf(2, "c")}, nullptr)) << "one is there twice";
  EXPECT_FALSE(same({leaf(0, "a"), leaf(1, "b"), leaf(2, "c"), leaf(7, "x"), leaf(7, "x")}, nullptr)) << "a pair too many";
  PrunedLeaves pruned;
  pruned.Add(1);
  EXPECT_TRUE(same({leaf(0, "a"), leaf(2, "c")}, &pruned));
  EXPECT_FALSE(same({leaf(0, "a"), leaf(1, "b"), leaf(2, "c")}, &pruned)) << "said to be gone";
  LeafSums sums;
  sums.Expect(record, nullptr);
  EXPECT_FALSE(sums.Meet({Writer(2), 4, 0, {}})) << "of another chain";
  EXPECT_FALSE(sums.Meet({Writer(1), 3, 0, {}}));
  EXPECT_FALSE(sums.Meet({Writer(1), 5, 0, {}}));
  EXPECT_EQ(sums.FirstDifferent(), (std::pair{Writer(1), std::uint64_t{4}}));
}

// A ledger that is written by one process after the other, each of which signs what is new.
class SignedWorld : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    dir_ = folder_ + "/checkpoints";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  static constexpr std::int64_t kMinute = 60'000'000;

  AuditRecord Add(AuditChain& chain, std::int64_t at) {
    const Row row{++rows_, "v", chain.writer(), 0, 0};
    AuditRecord record = chain.Next({row.Leaf()}, FromUnixMicros(at));
    chain.Advance(record);
    store_.records.push_back(record);
    store_.rows.push_back(row);
    store_.rows.back().seq = record.seq;
    return record;
  }
  void Open() {
    AuditWriterId log = Writer(0);
    log.uuid.bytes[0] = ++logs_;
    auto writer = CheckpointWriter::Open(dir_, key_, log);
    ASSERT_TRUE(writer);
    writer_.emplace(std::move(*writer));
    follower_ = AuditFollower(writer_->written());
  }
  AuditNews Sign(std::int64_t at, std::uint32_t limit = 10'000) {
    AuditNews news = *follower_.Read(store_, limit, {});
    EXPECT_TRUE(writer_->MaybeWrite(mono_, FromUnixMicros(at), news.heads, news.records, news.complete));
    mono_ += 10s;
    return news;
  }
  CheckpointSet Checkpoints() const { return *ReadCheckpoints(dir_, key_.public_key()); }
  std::optional<AuditFinding> Verify() {
    const CheckpointSet set = Checkpoints();
    return VerifyAudit(store_, &set)->first_bad;
  }

  std::string folder_ = (std::filesystem::temp_directory_path() / "millrace-signed-XXXXXX").string(), dir_;
  const SigningKey key_ = *SigningKey::FromSeed(std::string(32, 's'));
  FakeAuditStore store_;
  std::optional<CheckpointWriter> writer_;
  AuditFollower follower_;
  MonoTime mono_{};
  std::uint8_t logs_ = 0;
  std::int64_t rows_ = 0;
};

TEST_F(SignedWorld, EveryRecordIsSignedOnceHoweverManyProcessesStart) {
  std::size_t entries = 0, heads = 0;
  for (std::uint8_t start = 0; start < 20; ++start) {
    AuditChain chain(Writer(static_cast<std::uint8_t>(start + 1)), "broker b1");
    Open();
    for (int i = 0; i < 4; ++i) Add(chain, start * kMinute + i);
    EXPECT_EQ(Sign(start * kMinute + 10).records.size(), 4u) << "only what is new is read";
    EXPECT_EQ(Sign(start * kMinute + 20).records.size(), 0u);
    std::ifstream in(writer_->path());
    for (std::string line; std::getline(in, line);) {
      const auto checkpoint = ParseCheckpointLine(line, key_.public_key());
      ASSERT_TRUE(checkpoint);
      entries += checkpoint->records.size();
      heads += checkpoint->heads.size();
    }
  }
  EXPECT_EQ(entries, 80u);
  EXPECT_EQ(heads, 20u);
  EXPECT_FALSE(Verify());
  // The chain of a process that ended long ago is still pinned.
  const auto cut = [&](const auto& x) { return x.writer == Writer(3) && x.seq >= 3; };
  std::erase_if(store_.records, cut);
  std::erase_if(store_.rows, cut);
  const auto bad = Verify();
  ASSERT_TRUE(bad);
  EXPECT_EQ(bad->kind, TamperKind::kTruncated);
  EXPECT_EQ(bad->writer, Writer(3));
  EXPECT_EQ(bad->seq, 3u);
}

TEST_F(SignedWorld, ARecordThatSaysItIsOlderThanACheckpointWithoutItIsLate) {
  AuditChain broker(Writer(1), "broker b1"), cli(Writer(2), "cli"), forger(Writer(3), "broker b1");
  Open();
  Add(broker, 1'000 * kMinute);
  Sign(1'001 * kMinute);
  Add(broker, 1'020 * kMinute);
  Sign(1'021 * kMinute);
  Add(cli, 1'012 * kMinute);  // its clock is behind, within the grace
  ASSERT_FALSE(Verify());
  const FakeAuditStore sound = store_;
  Add(forger, 1'000 * kMinute);
  auto bad = Verify();
  ASSERT_TRUE(bad) << "before anybody signs it";
  EXPECT_EQ(bad->kind, TamperKind::kLate);
  EXPECT_EQ(bad->writer, Writer(3));
  Open();
  EXPECT_EQ(Sign(1'030 * kMinute).records.size(), 2u);
  bad = Verify();
  ASSERT_TRUE(bad) << "and after";
  EXPECT_EQ(bad->kind, TamperKind::kLate);
  EXPECT_EQ(bad->seq, 1u);
  std::erase_if(store_.records, [](const AuditRecord& r) { return r.writer == Writer(3); });
  std::erase_if(store_.rows, [](const Row& r) { return r.writer == Writer(3); });
  EXPECT_EQ(Verify()->kind, TamperKind::kRestored) << "what was signed cannot be taken back";
  store_ = sound;
  Add(broker, 1'005 * kMinute);  // at the end of a chain that exists
  EXPECT_EQ(Verify()->kind, TamperKind::kLate);
}

// A first checkpoint over a long history takes several lines: none of them says that it holds everything of its time.
TEST_F(SignedWorld, RecordsThatWaitForTheirCheckpointAreNotLate) {
  AuditChain chain(Writer(1), "broker b1"), other(Writer(2), "cli");
  for (int i = 0; i < 10; ++i) Add(chain, i), Add(other, i);
  Open();
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(Sign((100 + 20 * i) * kMinute, 8).complete);
  EXPECT_FALSE(Verify());
  EXPECT_TRUE(Sign(200 * kMinute, 8).complete);
  EXPECT_FALSE(Verify());
  EXPECT_EQ(Checkpoints().pins.size(), 20u);
}

TEST_F(SignedWorld, WhatDoesNotContinueAChainIsNotSigned) {
  AuditChain chain(Writer(1), "broker b1");
  Open();
  Add(chain, 1);
  Sign(2);
  const AuditRecord good = Add(chain, 3);
  const auto signed_after = [&](const AuditRecord& bad) {
    store_.records.back() = bad;
    Open();
    const AuditNews news = *follower_.Read(store_, 100, {});
    EXPECT_EQ(news.heads.size(), 1u);
    return news.heads[0].seq;
  };
  AuditRecord bad = good;
  bad.previous = Sha256("another");
  EXPECT_EQ(signed_after(bad), 1u);
  bad = good;
  bad.root = Sha256("another");
  EXPECT_EQ(signed_after(bad), 1u);
  bad = good;
  bad.stored_hash = Sha256("another");
  EXPECT_EQ(signed_after(bad), 1u);
  bad = good;
  bad.seq = 3;
  EXPECT_EQ(signed_after(bad), 1u);
  EXPECT_EQ(signed_after(good), 2u);
  store_.records[0].at += Micros{1};  // what was signed, computed anew: the record behind it does not continue it any more
  store_.records[1].previous = store_.records[0].Hash();
  EXPECT_EQ(signed_after(store_.records[1]), 1u);
  store_.records.clear();
  Open();
  EXPECT_EQ(follower_.Read(store_, 100, {})->heads[0].seq, 1u);
}

}  // namespace
}  // namespace millrace
