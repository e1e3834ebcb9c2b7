// The history checker itself: over a sound world it finds nothing, and every kind of defect, one at a time, makes it fail with
// the finding that belongs to it. The program, not the library.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>

#include "common/base/failpoint.h"
#include "common/base/history.h"
#include "common/crypto/checkpoint.h"
#include "tests/support/history_check.h"
#include "tests/support/ledger_fixture.h"

namespace millrace {
namespace {

using testing::HistoryVerdict;
using testing::LedgerKind;

constexpr int kRows = 3;  // per effect in the append-only target

class HistoryCheckTest : public testing::LedgerTest {
 protected:
  void SetUp() override {
    LedgerTest::SetUp();
    if (IsSkipped()) return;
    char folder[] = "/tmp/millrace_history_XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    dir_ = folder;
    std::filesystem::create_directory(dir_ + "/history");
    history::SetFolder(dir_ + "/history");
    MakeWorld();
  }
  void TearDown() override {
    ASSERT_TRUE(ConfigureFailpoints("", 1));
    history::SetFolder("");
    std::filesystem::remove_all(dir_);
    LedgerTest::TearDown();
  }

  OutcomeRow Ended(const JobSpec& job, std::uint32_t counter, const std::string& result) {
    OutcomeRow row = Outcome(job);
    row.report.token = Token::Make(hold_.epoch, counter);
    row.report.result = result;
    return row;
  }
  void Append(const std::string& file, const std::string& line) {
    std::ofstream(dir_ + "/" + file, std::ios::app) << line << '\n';
  }
  void Destination(const std::string& sql) {
    auto db = sqlite::Database::Open(dir_ + "/destination.db", {});
    ASSERT_TRUE(db) << db.error().message;
    const auto done = db->Exec(sql);
    ASSERT_TRUE(done) << done.error().message;
  }
  void AcceptedAndSeen(const JobSpec& job, Token token) {
    Append("accepted", fmt::format(R"({{"job": "{}", "class": "ledger", "at": 1700000000000000}})", job.id.ToString()));
    Append("witness", fmt::format("{} {}", job.id.ToString(), token.value()));
  }

  // A fired slot whose run extracted, loaded kRows rows and succeeded; two single jobs, one of them at its second attempt.
  void MakeWorld() {
    hold_ = Own();
    const SlotDecision slot = Slot(0);
    run_ = *slot.slot.run;
    ASSERT_TRUE(ledger_->Fire({.decisions = {slot}, .watermarks = {}, .steps = {}, .now = Now()}, In()));
    extract_ = slot.jobs.front();
    load_ = Job(run_, "load");
    load_.kind = extract_.kind = "stage";
    load_.effect = kEffect;
    load_.depends_on = {extract_.id};
    retried_ = Job();
    single_ = Job();
    OwnerBatch batch = BatchOf(hold_);
    batch.jobs = {load_, retried_, single_};
    AttemptRow lost = Attempt(retried_, 3, {.deliveries = 1, .failures = 0, .crashes = 0});
    lost.report.token = Token::Make(hold_.epoch, 3);
    lost.report.end = AttemptEnd::kLost;
    batch.attempts = {lost};
    batch.outcomes = {Ended(extract_, 1, R"({"ok": true, "rows": {"read": 4, "loaded": 3, "filtered": 1}})"),
                      Ended(load_, 2, R"({"ok": true, "target": "wh", "rows": {"read": 3, "loaded": 3}})"),
                      Ended(retried_, 4, ""), Ended(single_, 5, "")};
    batch.run_outcomes = {{.run = run_, .org = kDefaultOrg, .state = RunState::kSucceeded, .reason = "", .finished_at = Now()}};
    Commit(batch);
    AcceptedAndSeen(retried_, Token::Make(hold_.epoch, 4));
    AcceptedAndSeen(single_, Token::Make(hold_.epoch, 5));
    Append("witness", fmt::format("{} {}", retried_.id.ToString(), lost.report.token.value()));  // before it was lost
    token_ = static_cast<std::int64_t>(Token::Make(hold_.epoch, 2).value());
    Destination(
        fmt::format("create table millrace_fence (effect text primary key, token integer not null, raised_at text not null);"
                    "create table millrace_receipt (effect text primary key, token integer not null, target text not null,"
                    " rows_loaded integer not null, published_at text not null);"
                    "create table wh (id integer, _millrace_effect text, _millrace_token integer);"
                    "insert into millrace_fence values ('{0}', {1}, '2026-01-01T00:00:00');"
                    "insert into millrace_receipt values ('{0}', {1}, 'warehouse:wh', {2}, '2026-01-01T00:00:01');"
                    "insert into wh values (1, '{0}', {1}), (2, '{0}', {1}), (3, '{0}', {1})",
                    kEffect, token_, kRows));
  }

  HistoryVerdict Check(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"--ledger",      dsn_,
                                       "--history",     dir_ + "/history",
                                       "--accepted",    dir_ + "/accepted",
                                       "--witness",     dir_ + "/witness",
                                       "--destination", dir_ + "/destination.db",
                                       "--target",      fmt::format("wh={}", kRows),
                                       "--ended"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return testing::RunHistoryCheck(arguments, dir_);
  }
  void ExpectCaught(const std::string& invariant, const std::string& code, const std::vector<std::string>& more = {}) {
    const HistoryVerdict verdict = Check(more);
    EXPECT_EQ(verdict.code, 1) << verdict.text;
    EXPECT_NE(verdict.text.find(fmt::format("VIOLATION {} {}: ", invariant, code)), std::string::npos) << verdict.text;
  }

  static constexpr const char* kEffect = "1/flights/load/wh/slot/-#0";
  std::string dir_;
  ShardHold hold_;
  RunId run_;
  JobSpec extract_, load_, retried_, single_;
  std::int64_t token_ = 0;  // of the load
};

TEST_P(HistoryCheckTest, ASoundWorldHolds) {
  const HistoryVerdict verdict = Check();
  EXPECT_EQ(verdict.code, 0) << verdict.text;
  EXPECT_NE(verdict.text.find("accepted 4, done 4, open 0, lost 0, doubled 0, stale accepted 0"), std::string::npos)
      << verdict.text;
}

TEST_P(HistoryCheckTest, WhatCannotBeReadIsNoVerdict) {
  std::filesystem::remove(dir_ + "/accepted");
  EXPECT_EQ(Check().code, 2);
}

// A killed process leaves at most one line without its end, the last.
TEST_P(HistoryCheckTest, ATornLastLineIsCounted) {
  const auto cut = [&](const char* file) {
    std::ofstream(dir_ + file) << R"({"m":1,"t":1,"pid":7,"who":"broker:b","op":"gra)";
  };
  cut("/history/7-7.jsonl");
  cut("/history/8-8.jsonl");
  const HistoryVerdict verdict = Check();
  EXPECT_EQ(verdict.code, 0) << verdict.text;
  EXPECT_NE(verdict.text.find("2 torn last lines, 0 unreadable lines"), std::string::npos) << verdict.text;
}

// The line that its death tears would be in the middle of its parent's file.
TEST_P(HistoryCheckTest, TheChildOfAForkHasAFileOfItsOwn) {
  history::Write("test", "own", history::Type::kInvoke, "");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    history::Write("test", "own", history::Type::kInvoke, "");
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const auto files_of = [&](pid_t pid) {
    return std::ranges::count_if(std::filesystem::directory_iterator(dir_ + "/history"), [&](const auto& entry) {
      return entry.path().filename().string().starts_with(fmt::format("{}-", pid));
    });
  };
  EXPECT_EQ(files_of(::getpid()), 1);
  EXPECT_EQ(files_of(child), 1);
}

// What else is no operation could be the one that breaks an invariant.
TEST_P(HistoryCheckTest, AnyOtherUnreadableLineIsNoVerdict) {
  const std::string job = single_.id.ToString(),
                    sound = fmt::format(R"({{"m":1,"who":"worker:w","op":"grant","type":"invoke","jobs":[["{}",{}]]}})", job,
                                        Token::Make(hold_.epoch, 5).value());
  Append("history/7-7.jsonl", sound);
  ASSERT_EQ(Check().code, 0);
  const auto changed = [&](std::string_view from, std::string_view to) {
    std::string line = sound;
    return line.replace(line.find(from), from.size(), to);
  };
  std::size_t found = 0;
  for (const std::string& line :
       {sound.substr(0, 40), std::string(), std::string("null"), changed("grant", "grnat"), changed("invoke", "invoked"),
        changed(job, "no-uuid"), changed(R"("who":"worker:w",)", ""), changed(R"("jobs":[[)", R"("jobs":[[],[)")}) {
    Append("history/7-7.jsonl", line);
    ++found;
    const HistoryVerdict verdict = Check();
    EXPECT_EQ(verdict.code, 2) << line << "\n" << verdict.text;
    EXPECT_NE(verdict.text.find(fmt::format("0 torn last lines, {} unreadable lines", found)), std::string::npos)
        << line << "\n"
        << verdict.text;
  }
  EXPECT_NE(Check().text.find(fmt::format("UNREADABLE 7-7.jsonl:2: '{}'", sound.substr(0, 40))), std::string::npos)
      << Check().text;
  Append("accepted", fmt::format(R"({{"job": "{}", "class": "ledger", "at": 1}})", NewId<JobId>().ToString()));
  ExpectCaught("S1", "lost");  // a violation comes before it
}

TEST_P(HistoryCheckTest, CheckpointsWithoutTheirKeyAreNoVerdict) {
  const HistoryVerdict none = Check();
  EXPECT_NE(none.text.find("audit trail: no checkpoints looked at"), std::string::npos) << none.text;
  const auto key = SigningKey::LoadOrCreate(dir_ + "/audit.key");
  ASSERT_TRUE(key) << key.error().message;
  auto checkpoints = CheckpointWriter::Open(dir_ + "/checkpoints", *key, NewId<AuditWriterId>());
  ASSERT_TRUE(checkpoints && *checkpoints->Flush(clock_.Now(), Now(), *ledger_->AuditHeads(In())));
  const std::string folder = dir_ + "/checkpoints", public_key = dir_ + "/audit.key.pub";
  const HistoryVerdict with = Check({"--checkpoints", folder, "--public-key", public_key});
  EXPECT_EQ(with.code, 0) << with.text;
  EXPECT_NE(with.text.find("audit trail: verified against 1 checkpoints"), std::string::npos) << with.text;
  std::filesystem::remove(public_key);
  for (const HistoryVerdict& verdict :
       {Check({"--checkpoints", folder}), Check({"--checkpoints", folder, "--public-key", public_key})}) {
    EXPECT_EQ(verdict.code, 2) << verdict.text;
    EXPECT_NE(verdict.text.find("--public-key"), std::string::npos) << verdict.text;
  }
}

TEST_P(HistoryCheckTest, OneAcceptedJobDropped) {
  Append("accepted", fmt::format(R"({{"job": "{}", "class": "ledger", "at": 1}})", NewId<JobId>().ToString()));
  ExpectCaught("S1", "lost");
}

TEST_P(HistoryCheckTest, OneAcceptedRunDropped) {
  Append("accepted", fmt::format(R"({{"run": "{}"}})", run_.ToString()));
  EXPECT_EQ(Check().code, 0) << "it is there";
  Append("accepted", fmt::format(R"({{"run": "{}"}})", NewId<RunId>().ToString()));
  ExpectCaught("S1", "lost");
}

TEST_P(HistoryCheckTest, AJobOfClassRedisIsLostOutsideItsWindow) {
  Append("accepted", fmt::format(R"({{"job": "{}", "class": "redis", "at": 1000}})", NewId<JobId>().ToString()));
  ExpectCaught("S1", "lost");
  EXPECT_EQ(Check({"--redis-may-lose", "1:2", "--redis-may-lose", "999:1001"}).code, 0);
  ExpectCaught("S1", "lost", {"--redis-may-lose", "1:999"});
  ExpectCaught("S1", "lost", {"--redis-may-lose", "1001:2000"});
}

TEST_P(HistoryCheckTest, AJobThatNoRebuildWouldFind) {
  const JobSpec waiting = Job();
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {waiting};
  Commit(batch);
  const std::vector<std::string> open{"--ledger", dsn_, "--history", dir_ + "/history"};
  EXPECT_EQ(testing::RunHistoryCheck(open, dir_).code, 0) << "open, but there";
  Raw("delete from live_job");
  const HistoryVerdict verdict = testing::RunHistoryCheck(open, dir_);
  EXPECT_EQ(verdict.code, 1) << verdict.text;
}

TEST_P(HistoryCheckTest, ReceiptRemoved) {
  Destination(fmt::format("delete from millrace_receipt; insert into wh select id, _millrace_effect, {} from wh", token_ + 1));
  ExpectCaught("S2", "doubled");
}

TEST_P(HistoryCheckTest, TwoLoadsOfOneEffectWrote) {
  const JobSpec again = [&] {
    JobSpec job = Job(run_, "load");
    job.kind = "stage";
    job.effect = kEffect;
    return job;
  }();
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {again};
  batch.outcomes = {Ended(again, 9, R"({"ok": true, "target": "wh", "rows": {"read": 3, "loaded": 3}})")};
  Commit(batch);
  ExpectCaught("S2", "doubled");
}

TEST_P(HistoryCheckTest, OneAttemptDidItsWorkTwice) {
  Append("witness", fmt::format("{} {}", single_.id.ToString(), Token::Make(hold_.epoch, 5).value()));
  ExpectCaught("S2", "doubled");
}

TEST_P(HistoryCheckTest, AnOutcomeChanged) {
  Raw("update outcome set token = token + 100 where deliveries = 4 and run is null");
  ExpectCaught("S3", "terminal", {"--no-audit"});
}

TEST_P(HistoryCheckTest, FenceRemoved) {
  Destination("update millrace_fence set token = token + 1, raised_at = '2026-01-01T00:00:00.500'");
  ExpectCaught("S4", "stale_accepted");
}

// The real ledger with its epoch check removed, and a broker that was deposed and does not know it.
TEST_P(HistoryCheckTest, EpochCheckRemoved) {
#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
  ASSERT_TRUE(ledger_->ReleaseShards({{hold_}}, owner_, In()));
  ASSERT_TRUE(ledger_->TakeShard(hold_.shard, NewId<OwnerId>(), "b2", In()));
  OwnerBatch batch = BatchOf(hold_);
  const JobSpec late = Job();
  batch.jobs = {late};
  batch.outcomes = {Ended(late, 20, "")};
  ASSERT_EQ(ledger_->Commit(batch, In()).error().code, ErrorCode::kStale);
  EXPECT_EQ(Check().code, 0) << "it was refused";
  ASSERT_TRUE(ConfigureFailpoints("mutant.no_epoch=error", 1));
  ASSERT_TRUE(ledger_->Commit(batch, In()));
  ExpectCaught("S4", "stale_accepted");
#else
  GTEST_SKIP() << "this build has no failpoints";
#endif
}

TEST_P(HistoryCheckTest, AnOldTokenEndedAJob) {
  const auto line = [&](std::int64_t at, const std::string& rest) {
    Append("history/7-7.jsonl", fmt::format(R"({{"m":{},"t":1,"pid":7,"who":{}}})", at, rest));
  };
  const auto grant = [&](std::int64_t at, std::uint32_t counter) {
    line(at, fmt::format(R"("broker:b","op":"grant","type":"invoke","jobs":[["{}",{}]])", single_.id.ToString(),
                         Token::Make(hold_.epoch, counter).value()));
  };
  const auto write = [&](std::int64_t at, const char* type) {
    line(at, fmt::format(R"("ledger:b","op":"write","type":"{}","n":1,"outcomes":[["{}",{},"succeeded"]])", type,
                         single_.id.ToString(), Token::Make(hold_.epoch, 5).value()));
  };
  grant(10, 5);
  write(20, "invoke");
  write(21, "ok");
  EXPECT_EQ(Check().code, 0);
  grant(15, 6);
  ExpectCaught("S4", "stale_accepted");
}

TEST_P(HistoryCheckTest, ATokenRanAfterItsJobHadEnded) {
  Append("witness", fmt::format("{} {}", single_.id.ToString(), Token::Make(hold_.epoch, 6).value()));
  ExpectCaught("S4", "token_order");
}

TEST_P(HistoryCheckTest, ARowOfAnotherOrg) {
  Raw("update attempt set org = 2");
  ExpectCaught("S5", "org", {"--no-audit"});
}

TEST_P(HistoryCheckTest, ARowThatWasEdited) {
  Raw("update attempt set log_tail = result");
  ExpectCaught("S6", "audit");
}

TEST_P(HistoryCheckTest, TwoLeasesOfOneJob) {
  const auto line = [&](std::int64_t at, const std::string& rest) {
    Append("history/7-7.jsonl", fmt::format(R"({{"m":{},"t":1,"pid":7,"who":{}}})", at, rest));
  };
  const std::string job = retried_.id.ToString();
  const auto grant = [&](std::int64_t at, Epoch epoch, std::uint32_t counter) {
    line(at, fmt::format(R"("broker:b","op":"grant","type":"invoke","jobs":[["{}",{}]])", job,
                         Token::Make(epoch, counter).value()));
  };
  const Epoch before{hold_.epoch.value() - 1};
  grant(10, before, 1);
  grant(20, hold_.epoch, 3);
  for (const char* type : {"invoke", "ok"})
    line(30, fmt::format(R"("ledger:b","op":"write","type":"{}","n":1,"attempts":[["{}",{},"lost"]])", type, job,
                         Token::Make(hold_.epoch, 3).value()));
  grant(40, hold_.epoch, 4);
  EXPECT_EQ(Check().code, 0) << "the end of each was durable, or there was another owner between them";
  grant(50, hold_.epoch, 5);  // token 4 ended later
  ExpectCaught("S7", "two_leases");
}

// What workers received, whoever granted it: the retried job's tokens 3 and 4, and one of the owner before.
class HistoryCheckReceiptsTest : public HistoryCheckTest {
 protected:
  void SetUp() override {
    HistoryCheckTest::SetUp();
    start_ = std::chrono::duration_cast<Micros>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  void Grant(std::int64_t at, const std::string& who, Token token) {
    Append("history/7-7.jsonl", fmt::format(R"({{"m":{},"who":"{}","op":"grant","type":"invoke","jobs":[["{}",{}]]}})",
                                            After(at), who, retried_.id.ToString(), token.value()));
  }
  // From the broker to the worker.
  void Granted(std::int64_t at, const std::string& broker, const std::string& worker, Token token) {
    Grant(at, "broker:" + broker, token);
    Grant(at + 1, "worker:" + worker, token);
  }
  void Wrote(std::int64_t at, const char* rows, Token token, const char* word) {
    ++writes_;
    for (const char* type : {"invoke", "ok"})
      Append("history/7-7.jsonl",
             fmt::format(R"({{"m":{},"who":"ledger:b","op":"write","type":"{}","n":{},"{}":[["{}",{},"{}"]]}})", After(at++),
                         type, writes_, rows, retried_.id.ToString(), token.value(), word));
  }
  // The rows of the world are written before all of it.
  std::int64_t After(std::int64_t at) const { return start_ + at; }
  Token Old() const { return Token::Make(Epoch{hold_.epoch.value() - 1}, 9); }
  Token Lost() const { return Token::Make(hold_.epoch, 3); }
  Token Last() const { return Token::Make(hold_.epoch, 4); }
  std::int64_t start_ = 0;
  int writes_ = 0;
};

TEST_P(HistoryCheckReceiptsTest, AnOwnerThatComesBackLateIsHarmless) {
  Granted(20, "b2", "w1", Lost());
  Wrote(30, "attempts", Lost(), "lost");
  Granted(40, "b2", "w2", Last());
  Granted(50, "b1", "w1", Old());  // it had claimed the job before the other took the shard
  Wrote(60, "outcomes", Last(), "succeeded");
  const HistoryVerdict verdict = Check();
  EXPECT_EQ(verdict.code, 0) << verdict.text;
  EXPECT_NE(verdict.text.find("workers received 3 grants, 1 of them after a newer one"), std::string::npos) << verdict.text;
}

TEST_P(HistoryCheckReceiptsTest, AnEndOfAnOlderTokenWasWritten) {
  Grant(20, "worker:w1", Lost());
  Grant(25, "worker:w2", Last());
  Wrote(20, "attempts", Lost(), "lost");
  EXPECT_EQ(Check().code, 0) << "it was on its way when the newer one came";
  Wrote(30, "attempts", Lost(), "lost");
  ExpectCaught("S4", "stale_accepted");
}

TEST_P(HistoryCheckReceiptsTest, OneTokenReachedTwoWorkers) {
  Granted(20, "b2", "w1", Last());
  ASSERT_EQ(Check().code, 0);
  Grant(22, "worker:w2", Last());
  ExpectCaught("S7", "two_leases");
}

TEST_P(HistoryCheckReceiptsTest, TwoOwnersOfOneEpoch) {
  Granted(20, "b1", "w1", Lost());
  Wrote(30, "attempts", Lost(), "lost");
  ASSERT_EQ(Check().code, 0);
  Granted(40, "b2", "w2", Last());
  ExpectCaught("S7", "two_leases");
}

TEST_P(HistoryCheckReceiptsTest, ATokenThatNobodyGranted) {
  Granted(20, "b2", "w1", Last());
  ASSERT_EQ(Check().code, 0);
  Grant(30, "worker:w1", Token::Make(hold_.epoch, 5));
  ExpectCaught("S4", "token_order");
}

TEST_P(HistoryCheckReceiptsTest, AnEndThatTheWorkerWasToldIsGone) {
  const auto told = [&](JobId job, Token token) {
    Append("history/7-7.jsonl", fmt::format(R"({{"m":9,"who":"worker:w","op":"end","type":"ok","jobs":[["{}",{}]]}})",
                                            job.ToString(), token.value()));
  };
  told(retried_.id, Last());
  EXPECT_EQ(Check().code, 0);
  told(retried_.id, Lost());
  EXPECT_EQ(Check().code, 0) << "an attempt that did not end its job";
  told(NewId<JobId>(), Last());
  ExpectCaught("S1", "lost");
}

// Its broker answered before the commit and died; the next owner ran the job again, under another token.
TEST_P(HistoryCheckReceiptsTest, AnEndThatTheWorkerWasToldIsNotTheOneThatWasRecorded) {
  const auto told = [&](Token token) {
    Append("history/7-7.jsonl", fmt::format(R"({{"m":9,"who":"worker:w","op":"end","type":"ok","jobs":[["{}",{}]]}})",
                                            retried_.id.ToString(), token.value()));
  };
  told(Last());
  ASSERT_EQ(Check().code, 0);
  told(Old());
  ExpectCaught("S1", "lost");
}

TEST_P(HistoryCheckTest, OneSlotDoubled) {
  RunSpec twin = Run();
  twin.schedule = "default";
  twin.slot = Slot(0).slot.key.slot;
  ASSERT_TRUE(ledger_->SubmitRun(twin, {}, In()));
  ExpectCaught("S8", "slot");
}

// Slots 0 and 1 fired; the schedules are asked about from before slot 0 up to a later one.
class HistoryCheckSlotsTest : public HistoryCheckTest {
 protected:
  void SetUp() override {
    HistoryCheckTest::SetUp();
    if (IsSkipped()) return;
    AddSchedule("flights", false);
    ASSERT_TRUE(ledger_->Fire({.decisions = {Slot(1)}, .watermarks = {}, .steps = {}, .now = Now()}, In()));
  }
  void AddSchedule(const std::string& pipeline, bool paused) {
    Raw(fmt::format(
        "insert into schedule (org, pipeline, schedule, cron, timezone, catchup, overlap, dst, misfire_grace_ms,"
        " version, watermark, paused) values (1, '{}', 'default', '* * * * *', 'UTC', 'all', 'queue', 'once', 0, 1, 0, {})",
        pipeline, paused ? 1 : 0));
  }
  // An empty `to`: only what lies between fired slots.
  std::string Found(std::optional<int> to) {
    std::vector<std::string> arguments{"--ledger", dsn_, "--history", dir_ + "/history", "--contiguous-slots"};
    const auto micros = [&](int slot) { return ToUnixMicros(Slot(slot).slot.key.slot); };
    if (to) arguments.insert(arguments.end(), {"--slots", fmt::format("{}:{}", micros(0) - 1, micros(*to))});
    const HistoryVerdict verdict = testing::RunHistoryCheck(arguments, dir_);
    EXPECT_EQ(verdict.code != 0, verdict.text.find("VIOLATION S8 slot: ") != std::string::npos) << verdict.text;
    return verdict.code == 0 ? "" : verdict.text;
  }
};

TEST_P(HistoryCheckSlotsTest, ALastSlotThatIsMissing) {
  EXPECT_EQ(Found(std::nullopt), "");
  EXPECT_EQ(Found(1), "");
  EXPECT_NE(Found(2).find("flights 2023-11-14T22:16:00Z is missing"), std::string::npos) << Found(2);
}

TEST_P(HistoryCheckSlotsTest, AScheduleThatNeverFired) {
  AddSchedule("paused", true);
  EXPECT_EQ(Found(1), "");
  AddSchedule("silent", false);
  EXPECT_EQ(Found(std::nullopt), "") << "nobody said since when it should fire";
  EXPECT_NE(Found(1).find("silent 2023-11-14T22:15:00Z is missing"), std::string::npos) << Found(1);
}

// What a scheduler says it fired, against the slots.
TEST_P(HistoryCheckTest, AFireThatTheLedgerContradicts) {
  const auto fire = [&](int number, const char* answer, int slot, RunId run) {
    for (const char* type : {"invoke", answer})
      Append(
          "history/s.jsonl",
          fmt::format(
              R"({{"m":{0},"who":"scheduler:s","op":"fire","type":"{1}","n":{0},"slots":[["flights","default",{2},0,"{3}"]]}})",
              number, type, ToUnixMicros(Slot(slot).slot.key.slot), run.ToString()));
  };
  fire(1, "ok", 0, run_);
  fire(2, "fail", 0, run_);
  EXPECT_EQ(Check().code, 0) << "one of them did it";
  fire(3, "unknown", 51, NewId<RunId>());
  fire(4, "fail", 51, NewId<RunId>());
  EXPECT_EQ(Check().code, 0) << "it is not there, which is no wonder";
  fire(5, "ok", 0, NewId<RunId>());
  ExpectCaught("S8", "slot");  // another run of the slot
}

TEST_P(HistoryCheckTest, AFireWhoseSlotIsGone) {
  Append("history/s.jsonl",
         fmt::format(R"({{"m":1,"who":"scheduler:s","op":"fire","type":"ok","n":1,"slots":[["flights","default",{},0,"{}"]]}})",
                     ToUnixMicros(Slot(60).slot.key.slot), NewId<RunId>().ToString()));
  ExpectCaught("S8", "slot");
}

TEST_P(HistoryCheckTest, AFireThatFailedAndLeftItsRun) {
  for (const char* type : {"invoke", "fail"})
    Append(
        "history/s.jsonl",
        fmt::format(R"({{"m":1,"who":"scheduler:s","op":"fire","type":"{}","n":1,"slots":[["flights","default",{},0,"{}"]]}})",
                    type, ToUnixMicros(Slot(0).slot.key.slot), run_.ToString()));
  ExpectCaught("S8", "slot");
}

TEST_P(HistoryCheckTest, RowsThatVanishedBetweenReadAndLoaded) {
  const JobSpec leaky = [&] {
    JobSpec job = Job(run_, "leaky");
    job.kind = "stage";
    return job;
  }();
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {leaky};
  batch.outcomes = {Ended(leaky, 11, R"({"ok": true, "rows": {"read": 4, "loaded": 3}})")};
  Commit(batch);
  ExpectCaught("S9", "counts");
}

TEST_P(HistoryCheckTest, AnEmptyReplaceThatSucceeded) {
  JobSpec empty = Job(run_, "empty");
  empty.kind = "stage";
  empty.payload = R"({"stage": {"load": {"from": "x", "to": "warehouse", "mode": "replace"}}})";
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {empty};
  batch.outcomes = {Ended(empty, 12, R"({"ok": true, "rows": {"read": 0, "loaded": 0}})")};
  Commit(batch);
  ExpectCaught("S10", "truncated");
}

TEST_P(HistoryCheckTest, ALoadAfterAFailedExtract) {
  JobSpec failed = Job(run_, "failed"), after = Job(run_, "after");
  after.depends_on = {failed.id};
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {failed, after};
  batch.outcomes = {Outcome(failed, JobState::kDead), Ended(after, 13, "")};
  Commit(batch);
  ExpectCaught("S10", "truncated");
}

// The other ledger is read by other SQL; what is made of it is the same code. One world, defect upon defect.
class HistoryCheckPostgresTest : public HistoryCheckTest {};
TEST_P(HistoryCheckPostgresTest, SoundThenNot) {
  HistoryVerdict verdict = Check();
  ASSERT_EQ(verdict.code, 0) << verdict.text;
  EXPECT_NE(verdict.text.find("accepted 4, done 4, open 0, lost 0, doubled 0, stale accepted 0"), std::string::npos)
      << verdict.text;
  Append("accepted", fmt::format(R"({{"job": "{}", "class": "ledger", "at": 1}})", NewId<JobId>().ToString()));
  ExpectCaught("S1", "lost");
  Raw("update outcome set token = token + 100 where deliveries = 4 and run is null");
  ExpectCaught("S3", "terminal");
  ExpectCaught("S6", "audit");
  RunSpec twin = Run();
  twin.schedule = "default";
  twin.slot = Slot(0).slot.key.slot;
  ASSERT_TRUE(ledger_->SubmitRun(twin, {}, In()));
  ExpectCaught("S8", "slot");
  JobSpec failed = Job(run_, "failed"), after = Job(run_, "after");
  after.depends_on = {failed.id};
  OwnerBatch batch = BatchOf(hold_);
  batch.jobs = {failed, after};
  batch.outcomes = {Outcome(failed, JobState::kDead), Ended(after, 13, "")};
  Commit(batch);
  ExpectCaught("S10", "truncated");
#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
  ASSERT_TRUE(ledger_->ReleaseShards({{hold_}}, owner_, In()));
  ASSERT_TRUE(ledger_->TakeShard(hold_.shard, NewId<OwnerId>(), "b2", In()));
  batch = BatchOf(hold_);
  batch.jobs = {Job()};
  ASSERT_EQ(ledger_->Commit(batch, In()).error().code, ErrorCode::kStale);
  EXPECT_EQ(Check().text.find("stale_accepted:"), std::string::npos) << "it was refused";
  ASSERT_TRUE(ConfigureFailpoints("mutant.no_epoch=error", 1));
  ASSERT_TRUE(ledger_->Commit(batch, In()));
  ExpectCaught("S4", "stale_accepted");
#endif
}

INSTANTIATE_TEST_SUITE_P(Sqlite, HistoryCheckSlotsTest, ::testing::Values(LedgerKind::kSqlite));
INSTANTIATE_TEST_SUITE_P(Sqlite, HistoryCheckReceiptsTest, ::testing::Values(LedgerKind::kSqlite));
INSTANTIATE_TEST_SUITE_P(Sqlite, HistoryCheckTest, ::testing::Values(LedgerKind::kSqlite));
INSTANTIATE_TEST_SUITE_P(Postgres, HistoryCheckPostgresTest, ::testing::Values(LedgerKind::kPostgres));

}  // namespace
}  // namespace millrace
