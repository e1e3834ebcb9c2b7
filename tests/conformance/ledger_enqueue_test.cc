// Transactional enqueue: rows of the enqueue table become jobs, once; what is no job is refused with its reason. One suite for
// both ledgers.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <thread>

#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::kShards;
using testing::LedgerKind;

class LedgerEnqueueTest : public testing::LedgerTest {
 protected:
  static std::vector<ShardId> All() {
    std::vector<ShardId> shards;
    for (std::uint16_t i = 0; i < kShards; ++i) shards.emplace_back(i);
    return shards;
  }
  EnqueueTaken Take() { return TakeBy(*ledger_); }
  EnqueueTaken TakeBy(Ledger& ledger) {
    auto taken = ledger.TakeEnqueued(All(), In());
    EXPECT_TRUE(taken) << taken.error().message;
    return taken.value_or(EnqueueTaken{});
  }
  EnqueueStatus Status(OrgId org = kDefaultOrg) {
    auto status = ledger_->Enqueued(org, 100, In());
    EXPECT_TRUE(status) << status.error().message;
    return status.value_or(EnqueueStatus{});
  }
  std::string IdLiteral(const Uuid& id) const {
    return GetParam() == LedgerKind::kPostgres ? "'" + id.ToString() + "'" : "x'" + ToHex(id.bytes) + "'";
  }
  std::string Bytes(const std::string& text) const {
    return (GetParam() == LedgerKind::kPostgres ? "'\\x" : "x'") +
           ToHex(std::span(reinterpret_cast<const std::uint8_t*>(text.data()), text.size())) + "'";
  }
  std::vector<JobSummary> Jobs() {
    JobFilter filter;
    filter.limit = 500;
    auto jobs = ledger_->ListJobs(filter, In());
    EXPECT_TRUE(jobs) << jobs.error().message;
    return jobs.value_or(std::vector<JobSummary>{});
  }
};

TEST_P(LedgerEnqueueTest, ARowBecomesTheJobThatItSays) {
  const JobId id = NewId<JobId>();
  const std::string at = GetParam() == LedgerKind::kPostgres ? "'2030-01-01T00:00:00Z'" : "1893456000000000";
  Raw("insert into enqueue (job, queue, kind, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms, "
      "run_at, options) values (" +
      IdLiteral(id.uuid) + ", 'mail', 'send', " + Bytes(std::string("a\0\xff", 3)) + ", 0, 7, 11, 13, 17, " + at +
      R"(, '{"limit_key": "k", "unique_key": "u"}'))");
  const EnqueueTaken taken = Take();
  EXPECT_EQ(taken.accepted, 1u);
  EXPECT_EQ(taken.refused, 0u);
  EXPECT_EQ(taken.shards, std::set{ShardOf(kDefaultOrg, kShards)});
  EXPECT_FALSE(taken.more);
  const auto job = ledger_->GetJob(kDefaultOrg, id, In());
  ASSERT_TRUE(job) << job.error().message;
  const JobSpec& s = job->spec;
  EXPECT_EQ(s.queue, "mail");
  EXPECT_EQ(s.kind, "send");
  EXPECT_EQ(s.payload, std::string("a\0\xff", 3));
  EXPECT_EQ(s.priority, 0);
  EXPECT_EQ(s.retry, (RetryPolicy{7, Millis{11}, Millis{13}}));
  EXPECT_EQ(s.timeout, Millis{17});
  EXPECT_EQ(s.run_at, FromUnixMicros(1'893'456'000'000'000));
  EXPECT_EQ(s.options.limit_key, "k");
  EXPECT_EQ(s.options.unique_key, "u");
  EXPECT_LT(Now() - s.submitted_at, Micros{60'000'000}) << "the time of the insert";
  const auto outbox = ledger_->ReadOutbox(ShardOf(kDefaultOrg, kShards), kShards, 10, In());
  ASSERT_TRUE(outbox);
  ASSERT_EQ(outbox->jobs.size(), 1u) << "its owner finds it";
  EXPECT_EQ(outbox->jobs[0].spec.id, id);
  EXPECT_EQ(Take().accepted, 0u);
  EXPECT_EQ(Status().waiting, 0u);
  ExpectSound();
}

TEST_P(LedgerEnqueueTest, DefaultsMakeAJobWithAnIdOfNow) {
  for (int i = 0; i < 20; ++i) Raw("insert into enqueue (kind) values ('noop')");
  EXPECT_EQ(Status().waiting, 20u);
  EXPECT_EQ(Take().accepted, 20u);
  const auto jobs = Jobs();
  ASSERT_EQ(jobs.size(), 20u);
  for (const JobSummary& job : jobs) {
    EXPECT_EQ(job.spec.queue, "default");
    EXPECT_EQ(job.spec.priority, kPriorityDefault);
    EXPECT_EQ(job.spec.retry, RetryPolicy{});
    const Micros age = Now() - TimeOf(job.spec.id.uuid);
    EXPECT_GE(age, Micros{-1'000'000}) << job.spec.id.ToString();
    EXPECT_LT(age, Micros{60'000'000}) << job.spec.id.ToString();
  }
}

TEST_P(LedgerEnqueueTest, BadRowsAreRefusedWithTheReasonAndHoldUpNothing) {
  const JobId held = NewId<JobId>(), v4{*Uuid::Parse("0b9f64d3-3f4c-4b9a-8a52-6b0f2d0f3f11")};
  Raw("insert into enqueue (job, kind, options) values (" + IdLiteral(held.uuid) + R"(, 'noop', '{"unique_key": "k"}'))");
  EXPECT_EQ(Take().accepted, 1u);
  Raw("insert into enqueue (kind) values ('')");
  Raw("insert into enqueue (kind, priority) values ('noop', 9)");
  Raw("insert into enqueue (kind, max_attempts) values ('noop', 0)");
  Raw("insert into enqueue (kind, max_attempts) values ('noop', 2000000000)");
  Raw("insert into enqueue (kind, timeout_ms) values ('noop', -1)");
  Raw("insert into enqueue (kind, queue) values ('noop', '')");
  Raw(R"(insert into enqueue (kind, options) values ('noop', '{"unique_until": "window", "unique_window_ms": 5}'))");
  Raw(R"(insert into enqueue (kind, options) values ('noop', '{"unique_key": ""}'))");
  Raw("insert into enqueue (kind, payload) values ('command', " + Bytes(R"({"argv": ["tr\u0000ue"]})") + ")");
  Raw("insert into enqueue (kind, queue) values ('noop', 'a\nb')");
  Raw("insert into enqueue (kind, queue) values ('noop', '*')");
  Raw(R"(insert into enqueue (kind, options) values ('noop', '{"colour": "red"}'))");
  Raw(R"(insert into enqueue (kind, options) values ('noop', '{"durability": "redis"}'))");
  Raw(R"(insert into enqueue (kind, options) values ('noop', '{"unique_key": "k"}'))");
  Raw("insert into enqueue (job, kind) values (" + IdLiteral(v4.uuid) + ", 'noop')");
  Raw(std::string("insert into enqueue (kind, payload) values ('noop', ") +
      (GetParam() == LedgerKind::kPostgres ? "decode(repeat('00', 1048577), 'hex'))" : "zeroblob(1048577))"));
  Raw("insert into enqueue (kind) values ('good')");
  EnqueueTaken sum;
  for (int i = 0; i < 5; ++i) {
    const EnqueueTaken taken = Take();
    sum.accepted += taken.accepted;
    sum.refused += taken.refused;
  }
  EXPECT_EQ(sum.accepted, 1u);
  EXPECT_EQ(sum.refused, 16u);
  const EnqueueStatus status = Status();
  EXPECT_EQ(status.waiting, 0u);
  ASSERT_EQ(status.refused.size(), 16u);
  const auto refused_for = [&](std::string_view text) {
    return std::ranges::count_if(status.refused, [&](const EnqueueRefused& r) { return r.reason.contains(text); });
  };
  for (const std::string_view why :
       {"kind: is empty", "priority: 9 is not in [0, 3]", "max_attempts: 0 is not in [1, 100]",
        "max_attempts: 2000000000 is not in [1, 100]", "a negative duration", "queue: contains", "queue: is empty",
        "queue: '*' is all queues", "colour", "unique_until: says nothing", "unique_key: is empty",
        "payload: argv[0]: contains a NUL", "durability", "UUIDv7", "payload: 1048577 bytes"})
    EXPECT_EQ(refused_for(why), 1) << why;
  EXPECT_EQ(refused_for("unique_key: held by job " + held.ToString()), 1);
  EXPECT_TRUE(
      std::ranges::all_of(status.refused, [&](const EnqueueRefused& r) { return Now() - r.refused_at < Micros{60'000'000}; }));
  // Repaired and put back, it is taken.
  Raw("insert into enqueue (kind, queue) select 'repaired', 'later' from enqueue_refused where kind = ''; "
      "delete from enqueue_refused where kind = ''");
  EXPECT_EQ(Take().accepted, 1u);
  EXPECT_EQ(Status().refused.size(), 15u);
  ExpectSound();
}

TEST_P(LedgerEnqueueTest, TwoOrgsKeepARefusedRowOfOneIdEach) {
  const std::string id = IdLiteral(*Uuid::Parse("0b9f64d3-3f4c-4b9a-8a52-6b0f2d0f3f11"));
  for (const int org : {1, 2, 1}) {
    Raw(fmt::format("insert into enqueue (job, kind, org) values ({}, 'noop', {})", id, org));
    EXPECT_EQ(Take().refused, 1u);
  }
  Raw("insert into enqueue (kind, org) values ('noop', 2)");
  EXPECT_EQ(Take().accepted, 1u) << "its intake goes on";
  for (const int org : {1, 2}) {
    const EnqueueStatus status = Status(OrgId{org});
    EXPECT_EQ(status.waiting, 0u);
    EXPECT_EQ(status.refused.size(), 1u) << org;
  }
}

TEST_P(LedgerEnqueueTest, ATimeThatTheQueueDoesNotHoldIsRefusedAndTheOtherRowsOfTheOrgAreTaken) {
  std::vector<std::string> times{"-9223372036854775808", "9223372036854775807", "9007199254740993", "-210866803200000000"};
  if (GetParam() == LedgerKind::kPostgres)
    times = {"'-infinity'", "'infinity'", "'2300-01-01T00:00:00Z'", "'4713-01-01T00:00:00Z BC'"};
  for (const std::string& at : times) Raw("insert into enqueue (kind, run_at) values ('bad', " + at + ")");
  Raw("insert into enqueue (kind, enqueued_at) values ('bad', " + times.front() + ")");
  Raw(R"(insert into enqueue (kind, options) values ('bad', '{"deadline_us": 253402214400000000}'))");
  Raw(R"(insert into enqueue (kind, options) values ('bad', '{"expires_at_us": -9223372036854775808}'))");
  Raw("insert into enqueue (kind) values ('good')");
  EXPECT_EQ(Take().accepted, 1u);
  const EnqueueStatus status = Status();
  EXPECT_EQ(status.waiting, 0u);
  ASSERT_EQ(status.refused.size(), times.size() + 3);
  for (const auto& [field, n] : std::map<std::string, std::size_t>{
           {"run_at: ", times.size()}, {"submitted_at: ", 1}, {"deadline: ", 1}, {"expires_at: ", 1}})
    EXPECT_EQ(std::ranges::count_if(
                  status.refused,
                  [&](const EnqueueRefused& r) { return r.reason.starts_with(field) && r.reason.contains("out of range"); }),
              n)
        << field;
  ExpectSound();
}

TEST_P(LedgerEnqueueTest, OneRowIsOneJobHoweverManyTakeItAndHoweverOftenItIsWritten) {
  const JobId id = NewId<JobId>();
  const std::string insert = "insert into enqueue (job, kind) values (" + IdLiteral(id.uuid) + ", 'noop')";
  Raw(insert);
  EXPECT_EQ(Take().accepted, 1u);
  Raw(insert);  // the client that heard no answer repeats its transaction
  const EnqueueTaken again = Take();
  EXPECT_EQ(again.accepted, 0u);
  EXPECT_EQ(again.duplicates, 1u);
  EXPECT_EQ(Status().waiting, 0u);

  constexpr int kRows = 300;
  for (int i = 0; i < kRows; ++i) Raw("insert into enqueue (kind) values ('noop')");
  std::vector<std::unique_ptr<Ledger>> ledgers;
  for (int i = 0; i < 3; ++i) ledgers.push_back(Open());
  std::atomic<std::uint32_t> accepted{0};
  {
    std::vector<std::jthread> threads;
    for (auto& ledger : ledgers)
      threads.emplace_back([&] {
        for (int i = 0; i < 3; ++i) accepted += TakeBy(*ledger).accepted;
      });
  }
  EXPECT_EQ(accepted, kRows);
  EXPECT_EQ(Jobs().size(), kRows + 1u);
  EXPECT_EQ(Status().waiting, 0u);
  ExpectSound();
}

TEST_P(LedgerEnqueueTest, OnlyTheOrgsOfTheShardsAreTaken) {
  std::array<int, 2> orgs{1, 2};
  while (ShardOf(OrgId{orgs[1]}, kShards) == ShardOf(OrgId{orgs[0]}, kShards)) ++orgs[1];
  for (const int org : orgs) Raw(fmt::format("insert into enqueue (kind, org) values ('noop', {})", org));
  const std::vector<ShardId> mine{ShardOf(OrgId{orgs[1]}, kShards)};
  auto taken = ledger_->TakeEnqueued(mine, In());
  ASSERT_TRUE(taken) << taken.error().message;
  EXPECT_EQ(taken->accepted, 1u);
  EXPECT_EQ(Status(OrgId{orgs[0]}).waiting, 1u);
  EXPECT_EQ(Status(OrgId{orgs[1]}).waiting, 0u);
  EXPECT_EQ(Take().accepted, 1u);
}

INSTANTIATE_TEST_SUITE_P(Both, LedgerEnqueueTest, ::testing::Values(LedgerKind::kPostgres, LedgerKind::kSqlite),
                         [](const auto& param) { return param.param == LedgerKind::kPostgres ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace millrace
