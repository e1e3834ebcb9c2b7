// Settings of queues: one suite for both ledgers.
#include "common/model/whole_org.h"
#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;

class LedgerQueuesTest : public testing::LedgerTest {
 protected:
  QueueSettings Settings(const std::string& queue, OrgId org = kDefaultOrg) {
    QueueSettings settings;
    settings.org = org;
    settings.queue = queue;
    settings.concurrency = 4;
    settings.key_rate = {.count = 5, .per = Millis{60'000}, .burst = 7};
    return settings;
  }
};

TEST_P(LedgerQueuesTest, TheNewestRevisionCounts) {
  const auto first = ledger_->PutQueueSettings(Settings("Zürich"), "cli root@host", In());
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(first->revision, 1);
  QueueSettings changed = *first;
  changed.paused = true;
  changed.order = QueueOrder::kWeighted;
  changed.weights = {9, 3, 2, 1};
  const auto second = ledger_->PutQueueSettings(changed, "cli root@host", In());
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->revision, 2);
  const auto stored = ledger_->QueuesOf(kDefaultOrg, std::nullopt, In());
  ASSERT_TRUE(stored) << stored.error().message;
  ASSERT_EQ(stored->size(), 1u);
  EXPECT_EQ(stored->at(0), *second);
  ExpectSound();
}

TEST_P(LedgerQueuesTest, TheClassOfAQueueAndItsInstantsAreKept) {
  QueueSettings ledger = Settings("q");
  auto before = ledger_->PutQueueSettings(ledger, "x", In());
  ASSERT_TRUE(before) << before.error().message;
  const WallTime at = *ledger_->Now(In());
  for (const Durability durability : {Durability::kRedis, Durability::kLedger, Durability::kLedger}) {
    QueueSettings next = *before;
    next.durability = durability;
    next.redis_until = FromUnixMicros(1);  // whatever the writer says
    before = ledger_->PutQueueSettings(next, "x", In());
    ASSERT_TRUE(before) << before.error().message;
    const auto stored = ledger_->QueuesOf(kDefaultOrg, std::nullopt, In());
    ASSERT_TRUE(stored) << stored.error().message;
    ASSERT_EQ(stored->size(), 1u);
    EXPECT_EQ(stored->at(0), *before);
    EXPECT_EQ(stored->at(0).durability, durability);
    EXPECT_EQ(before->redis_until.has_value(), durability == Durability::kLedger);
  }
  EXPECT_GE(before->redis_until, at);
  EXPECT_LE(before->redis_until, *ledger_->Now(In()));
  ExpectSound();
}

TEST_P(LedgerQueuesTest, WhoReadAnOldRevisionIsRefused) {
  const auto first = ledger_->PutQueueSettings(Settings("q"), "a", In());
  ASSERT_TRUE(first) << first.error().message;
  const auto again = ledger_->PutQueueSettings(Settings("q"), "b", In());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kConflict);
  QueueSettings ahead = *first;
  ahead.revision = 7;
  const auto gap = ledger_->PutQueueSettings(ahead, "b", In());
  ASSERT_FALSE(gap);
  EXPECT_EQ(gap.error().code, ErrorCode::kConflict);
  QueueSettings bad = *first;
  bad.aging = Millis{0};
  const auto invalid = ledger_->PutQueueSettings(bad, "b", In());
  ASSERT_FALSE(invalid);
  EXPECT_EQ(invalid.error().code, ErrorCode::kInvalidArgument);
  ExpectSound();
}

TEST_P(LedgerQueuesTest, AnOwnerFindsThoseOfItsOrgs) {
  std::map<ShardId, std::size_t> wanted;
  for (std::int64_t org = 1; org <= 6; ++org)
    for (const char* queue : {"a", "b"}) {
      const auto stored = ledger_->PutQueueSettings(Settings(queue, OrgId{org}), "x", In());
      ASSERT_TRUE(stored) << stored.error().message;
      ++wanted[ShardOf(OrgId{org}, kShards)];
    }
  for (std::uint16_t s = 0; s < kShards; ++s) {
    const auto found = ledger_->QueuesOf(std::nullopt, ShardId{s}, In());
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(found->size(), wanted[ShardId{s}]);
    for (const QueueSettings& settings : *found) EXPECT_EQ(ShardOf(settings.org, kShards), ShardId{s});
  }
  const auto of_org = ledger_->QueuesOf(OrgId{3}, std::nullopt, In());
  ASSERT_TRUE(of_org) << of_org.error().message;
  ASSERT_EQ(of_org->size(), 2u);
  EXPECT_EQ(of_org->at(0).queue, "a");
  EXPECT_EQ(of_org->at(1).queue, "b");
  ExpectSound();
}

TEST_P(LedgerQueuesTest, TheWholeOrgHasBudgetsAndIsHeldByNothing) {
  QueueSettings org;
  org.queue = kWholeOrg;
  org.concurrency = 1;
  const auto wrong = ledger_->PutQueueSettings(org, "x", In());
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::kInvalidArgument);
  org.concurrency = 0;
  org.max_waiting_jobs = 5;
  const auto stored = ledger_->PutQueueSettings(org, "x", In());
  ASSERT_TRUE(stored) << stored.error().message;
  ASSERT_TRUE(ledger_->PutQueueSettings(Settings("a"), "x", In()));
  auto found = ledger_->QueuesOf(kDefaultOrg, std::nullopt, In());
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_EQ(found->size(), 2u);
  EXPECT_EQ(found->at(0), *stored);
  ExpectSound();
  Raw(R"(update queue_setting set settings = '{"of a newer version": 1}')");
  found = ledger_->QueuesOf(kDefaultOrg, std::nullopt, In());
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_EQ(found->size(), 2u);
  EXPECT_FALSE(found->at(0).paused) << "it could not be set again: an org is not paused";
  EXPECT_TRUE(found->at(1).paused);
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerQueuesTest, ::testing::Values(LedgerKind::kSqlite, LedgerKind::kPostgres),
                         [](const auto& i) { return i.param == LedgerKind::kPostgres ? "postgres" : "sqlite"; });

}  // namespace
}  // namespace millrace
