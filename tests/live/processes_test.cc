// `millrace broker` and `millrace worker`, the programs, on PostgreSQL and Redis: what `millrace job cancel` does to a job that
// waits, runs or has ended, what SIGTERM does to a worker and to a broker while commands run, and to who waits for the ledger's
// tables, and how commands reach a broker that is not the configured one.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "common/base/limits.h"
#include "common/drivers/redis.h"
#include "common/wire/stream_socket.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"
#include "tests/support/lateness.h"
#include "tests/support/migrated_database.h"
#include "tests/support/process.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using testing::TestProcess;

constexpr std::uint16_t kShards = 2;
constexpr Millis kPatience{60'000};
constexpr Millis kAtOnce{2'000};     // several messages, commits and looks of a process that is idle
constexpr Millis kTermGrace{2'000};  // of a command, ops/docs/jobs.md
constexpr Millis kDrain{3'000};      // what a worker is given here
constexpr Millis kNoDrain{600'000};  // longer than any patience
constexpr Millis kJoinShare{6'000};  // ops/docs/failure-modes.md
constexpr Millis kPoll{20};

class ProcessesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MILLRACE_NEED_POSTGRES();
    const char* redis = std::getenv("MILLRACE_TEST_REDIS");
    if (redis == nullptr && std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set";
    if (redis == nullptr)
      GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: source DIR/env of tests/support/servers.sh start DIR";
    std::string pattern = (std::filesystem::temp_directory_path() / "mr_processes_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    redis_ = redis;
    std::filesystem::create_directory(dir_ / "history");
    database_ = testing::MigratedDatabase("processes", kShards);
    connection_ = database_->Connect();
    std::ofstream(dir_ / "millrace.yaml") << fmt::format(R"(version: 1
home: {0}/home
lake: {0}/lake
log: {{ format: text }}
ledger: {{ dsn: "{1}" }}
queue: {{ redis: "{2}", prefix: "{3}" }}
broker: {{ shards: {4}, listen_clients: "{5}", listen_workers: "{6}" }}
worker: {{ brokers: ["{6}", "{7}"], concurrency: 2 }}
)",
                                                         dir_.string(), database_->dsn(), redis_, Prefix(), kShards, Port(0),
                                                         Port(1), Port(3));
  }
  void TearDown() override {
    processes_.clear();
    connection_.reset();
    if (dir_.empty()) return;
    ForgetKeys();
    std::vector<std::string> more = told_.Write(dir_ / "history" / "accepted");
    more.insert(more.end(), {"--witness", (dir_ / "witness").string(), "--ended"});
    testing::ExpectHistoryHolds(database_->dsn(), dir_ / "history", more);
    if (!HasFailure()) std::filesystem::remove_all(dir_);
  }
  void ForgetKeys() {
    auto connection = redis::Connection::Connect(*redis::ParseEndpoint(redis_), {.clock = &clock_}, In());
    ASSERT_TRUE(connection) << connection.error().message;
    for (std::uint16_t s = 0; s < kShards; ++s)
      for (const std::string_view key : {"epoch", "lines", "due", "flight", "kept_due", "kept", "server", "body", "expiry",
                                         "stubs", "kept_body", "kept_expiry", "inbox"})
        EXPECT_TRUE(connection->Call({"DEL", fmt::format("{{{}:{}}}:{}", Prefix(), s, key)}, In()));
  }
  MonoTime In(Millis wait = Millis{20'000}) const { return clock_.Now() + wait; }
  static std::string Prefix() { return fmt::format("mrprocesses-{}", getpid()); }
  std::string Port(std::size_t i) const { return fmt::format("tcp://127.0.0.1:{}", ports_[i].number); }

  testing::ProcessOptions Millrace(std::vector<std::string> arguments, const std::string& log) const {
    std::vector<std::string> argv{std::string(MILLRACE_BIN_DIR) + "/millrace", "--config", (dir_ / "millrace.yaml").string()};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return {.argv = std::move(argv),
            .env = {{"MILLRACE_HISTORY", (dir_ / "history").string()}, {"HOME", dir_.string()}},
            .log = (dir_ / log).string()};
  }
  TestProcess& Start(const std::string& name, const std::vector<std::string>& arguments) {
    auto started = TestProcess::Start(Millrace(arguments, name + ".log"));
    EXPECT_TRUE(started) << started.error().message;
    return processes_[name] = started ? std::move(*started) : TestProcess();
  }
  // Number 1 is the one whose clients the configuration names.
  TestProcess& StartBroker(std::size_t number) {
    const std::string name = fmt::format("broker-{}", number);
    return Start(name, {"--set", "broker.listen_clients=" + Port(2 * number - 2), "--set",
                        "broker.listen_workers=" + Port(2 * number - 1), "broker", "--name", name});
  }
  TestProcess& StartWorker(const std::string& name, Millis drain) {
    return Start(name, {"--set", fmt::format("worker.drain_timeout={}ms", drain.count()), "worker", "--name", name});
  }
  // One command to its end; stdout and stderr.
  std::string Told(const std::vector<std::string>& arguments, int code = 0) {
    const std::string log = fmt::format("command-{}", ++commands_);
    const auto ended = testing::RunToEnd(Millrace(arguments, log), kPatience);
    EXPECT_TRUE(ended) << ended.error().message;
    const std::string text = TextOf(log);
    EXPECT_EQ(ended.value_or(-1), code) << text;
    return text;
  }
  std::string TextOf(const std::string& file) const {
    std::ifstream in(dir_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // Of a shell command that is given the test's folder as $0.
  std::string Submit(const std::string& script, std::vector<std::string> more = {}) {
    const nlohmann::json payload{{"argv", {"/bin/sh", "-c", script, dir_.string()}}};
    std::vector<std::string> arguments{"job", "submit", "--kind", "command", "-q", "--payload", payload.dump()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::string id = Told(arguments);
    if (id.ends_with('\n')) id.pop_back();
    const auto uuid = Uuid::Parse(id);
    EXPECT_TRUE(uuid) << id;
    if (uuid) told_.Job(*uuid);
    return id;
  }
  static std::string SaysGroup() { return "echo $$ >\"$0/group-$MILLRACE_JOB\"; "; }
  static std::string Witness() { return "echo $MILLRACE_JOB $MILLRACE_TOKEN >>\"$0/witness\""; }
  static std::string UntilFinish() { return "while [ ! -e \"$0/finish\" ]; do sleep 0.1; done; "; }
  void Finish() const { std::ofstream(dir_ / "finish").put('\n'); }
  // The process group of the attempt that has run last; empty: none has begun.
  std::optional<pid_t> GroupOf(const std::string& job) const {
    std::ifstream in(dir_ / ("group-" + job));
    pid_t group = 0;
    return in >> group ? std::optional(group) : std::nullopt;
  }
  bool HasBegun(const std::string& job) const { return GroupOf(job).has_value(); }

  template <class So>
  bool WaitFor(So so, Millis limit = kPatience) {
    for (const MonoTime begin = clock_.Now(); !so(); testing::SleepFor(kPoll))
      if (clock_.Now() - begin > limit + late_.Since(begin)) return so();
    return true;
  }
  PgResult Ask(const std::string& sql) {
    auto found = connection_->QueryOnce(sql, {}, In());
    EXPECT_TRUE(found) << found.error().message;
    return found ? std::move(*found) : PgResult();
  }
  std::int64_t Count(const std::string& of) {
    const PgResult found = Ask("select count(*) from millrace." + of);
    return found.rows() == 1 ? found.Int(0, 0) : -1;
  }
  bool HasEnded(const std::string& job) { return Count("outcome where job = '" + job + "'") == 1; }
  // "state deliveries failures crashes worker" of its outcome.
  std::string OutcomeOf(const std::string& job) {
    const PgResult found = Ask(
        "select concat_ws(' ', state, deliveries, failures, crashes, worker) from millrace.outcome where job = '" + job + "'");
    return found.rows() == 1 ? found.Text(0, 0) : "none";
  }
  // "ended deliveries failures crashes worker" of its attempts before the last one.
  std::vector<std::string> AttemptsOf(const std::string& job) {
    const PgResult found =
        Ask("select concat_ws(' ', ended, deliveries, failures, crashes, worker) from millrace.attempt where job = '" + job +
            "' order by token");
    std::vector<std::string> attempts;
    for (int i = 0; i < found.rows(); ++i) attempts.push_back(found.Text(i, 0));
    return attempts;
  }
  std::map<std::string, std::int64_t> Owned() {
    const PgResult found =
        Ask("select owner_name, count(*) from millrace.shard_owner where owner is not null group by owner_name");
    std::map<std::string, std::int64_t> owned;
    for (int i = 0; i < found.rows(); ++i) owned[found.Text(i, 0)] = found.Int(i, 1);
    return owned;
  }
  void StartTwoThatShare() {
    StartBroker(1);
    ASSERT_TRUE(WaitFor([&] { return Owned()["broker-1"] == kShards; })) << TextOf("broker-1.log");
    StartBroker(2);
    const std::map<std::string, std::int64_t> shared{{"broker-1", 1}, {"broker-2", 1}};
    ASSERT_TRUE(WaitFor([&] { return Owned() == shared; }, kJoinShare + kAtOnce)) << TextOf("broker-2.log");
  }
  OrgId ServedBy(const std::string& broker) {
    const PgResult theirs = Ask("select shard from millrace.shard_owner where owner_name = '" + broker + "'");
    OrgId org{1};
    while (ShardOf(org, kShards).value() != theirs.Int(0, 0)) org = OrgId{org.value() + 1};
    return org;
  }
  static std::vector<std::string> IdsIn(const std::string& told) {
    std::istringstream in(told);
    std::vector<std::string> ids;
    for (std::string line; std::getline(in, line);)
      if (Uuid::Parse(line)) ids.push_back(line);
    return ids;
  }
  void StartOneOfEach(Millis drain) {
    StartBroker(1);
    ASSERT_TRUE(WaitFor([&] { return Owned()["broker-1"] == kShards; })) << TextOf("broker-1.log");
    StartWorker("worker-1", drain);
  }
  Millis Took(MonoTime since) const { return std::chrono::duration_cast<Millis>(clock_.Now() - since); }
  // How it ended; nothing of it may take longer than `limit`.
  void ExpectEnds(TestProcess& process, MonoTime since, Millis limit) {
    const auto code = process.Wait(kPatience);
    const Millis took = Took(since), late = late_.Since(since);
    ASSERT_TRUE(code) << "it runs on";
    EXPECT_EQ(*code, 0);
    EXPECT_LE(took, limit + late) << "the machine was late by " << late.count() << " ms";
    fmt::print("ended {} ms after the signal, late by {} ms\n", took.count(), late.count());
  }

  SystemClock clock_;
  testing::Lateness late_;
  std::filesystem::path dir_;
  std::string redis_;
  const std::vector<wire::HeldPort> ports_ = [] {
    std::vector<wire::HeldPort> held;
    while (held.size() < 4) held.push_back(wire::HoldPort().value());
    return held;
  }();
  std::unique_ptr<testing::TestDatabase> database_;
  std::unique_ptr<PgConnection> connection_;
  std::map<std::string, TestProcess> processes_;
  testing::AcceptedList told_;
  int commands_ = 0;
};

TEST_F(ProcessesTest, CancelStopsWhatWaitsAndWhatRunsAndNothingThatHasEnded) {
  StartOneOfEach(kNoDrain);
  const std::string ended = Submit(Witness());
  ASSERT_TRUE(WaitFor([&] { return HasEnded(ended); }));
  const std::string polite = Submit("trap 'echo >\"$0/cleaned\"; exit 1' TERM; " + SaysGroup() + "while :; do sleep 0.1; done");
  const std::string stubborn = Submit("trap '' TERM; sleep 600 & sleep 600 & " + SaysGroup() + "while :; do sleep 0.1; done");
  ASSERT_TRUE(WaitFor([&] { return HasBegun(polite) && HasBegun(stubborn); }));
  const std::string waiting = Submit(SaysGroup());
  const std::string later = Submit(SaysGroup(), {"--run-at", "2099-01-01T00:00:00Z"});

  const auto cancel = [&](const std::string& job, int code = 0) {
    const std::string text = Told({"job", "cancel", job, "--reason", "wrong customer"}, code);
    EXPECT_THAT(text, Not(HasSubstr("recorded;"))) << "no broker was asked";
    EXPECT_EQ(Count("cancel where reason = 'wrong customer' and item = '" + job + "'"), code == 0 ? 1 : 0)
        << "the answer comes when the request is durable";
    return text;
  };
  EXPECT_THAT(cancel(ended, 5), AllOf(HasSubstr("ended"), HasSubstr("succeeded")));
  EXPECT_EQ(OutcomeOf(ended), "10 1 0 0 worker-1");
  for (const std::string& job : {waiting, later}) {
    EXPECT_THAT(cancel(job), HasSubstr("cancelled"));
    EXPECT_TRUE(WaitFor([&] { return HasEnded(job); }, kAtOnce));
    EXPECT_EQ(OutcomeOf(job), "12 0 0 0 ");
  }

  MonoTime asked = clock_.Now();
  EXPECT_THAT(cancel(polite), HasSubstr("cancelling"));
  EXPECT_TRUE(WaitFor([&] { return HasEnded(polite); }, kAtOnce));
  EXPECT_THAT(testing::AliveInGroup(*GroupOf(polite)), IsEmpty());
  EXPECT_TRUE(std::filesystem::exists(dir_ / "cleaned")) << "SIGTERM comes first";
  EXPECT_EQ(OutcomeOf(polite), "12 1 0 0 worker-1");
  const Millis politely = Took(asked);

  const std::string finisher = Submit("trap '" + Witness() + "; exit 0' TERM; " + SaysGroup() + "while :; do sleep 0.1; done");
  ASSERT_TRUE(WaitFor([&] { return HasBegun(finisher); }));
  EXPECT_THAT(cancel(finisher), HasSubstr("cancelling"));
  EXPECT_TRUE(WaitFor([&] { return HasEnded(finisher); }, kAtOnce));
  EXPECT_EQ(OutcomeOf(finisher), "10 1 0 0 worker-1") << "a command that ends with code 0 has done its work";
  EXPECT_EQ(Count("outcome where error_class = 'cancel_too_late' and job = '" + finisher + "'"), 1);

  const auto group = testing::AliveInGroup(*GroupOf(stubborn));
  EXPECT_GE(group.size(), 3u);
  asked = clock_.Now();
  EXPECT_THAT(cancel(stubborn), HasSubstr("cancelling"));
  while (Took(asked) < kTermGrace - kAtOnce / 4 && !HasFailure()) {
    EXPECT_FALSE(HasEnded(stubborn)) << "after " << Took(asked).count() << " ms, though it ignores SIGTERM";
    testing::SleepFor(kPoll);
  }
  EXPECT_TRUE(WaitFor([&] { return HasEnded(stubborn); }, kTermGrace + kAtOnce));
  EXPECT_THAT(testing::AliveInGroup(*GroupOf(stubborn)), IsEmpty()) << "`cancelled` comes after the end of its processes";
  EXPECT_EQ(OutcomeOf(stubborn), "12 1 0 0 worker-1");
  fmt::print("cancelled: politely after {} ms, by SIGKILL after {} ms\n", politely.count(), Took(asked).count());

  EXPECT_EQ(Count("cancel c join millrace.outcome o on o.job = c.item where o.recorded_at < c.requested_at"), 0);
  EXPECT_FALSE(HasBegun(waiting) || HasBegun(later)) << "what was cancelled while it waited has started";
}

// A job with one attempt: the hand-back must not be it.
TEST_F(ProcessesTest, SigtermLetsAWorkerFinishForItsLimitAndHandsTheRestBack) {
  StartOneOfEach(kDrain);
  const std::string quick = Submit(SaysGroup() + "sleep 1.5; " + Witness());
  const std::string slow = Submit(SaysGroup() + UntilFinish() + Witness(), {"--max-attempts", "1"});
  ASSERT_TRUE(WaitFor([&] { return HasBegun(quick) && HasBegun(slow); }));
  const std::string waiting = Submit(SaysGroup() + Witness(), {"--max-attempts", "1"});
  const pid_t group = *GroupOf(slow);

  TestProcess& worker = processes_["worker-1"];
  const MonoTime signalled = clock_.Now();
  worker.Signal(SIGTERM);
  const std::string after = Submit(SaysGroup() + Witness(), {"--max-attempts", "1"});
  ExpectEnds(worker, signalled, kDrain + kAtOnce);
  EXPECT_GE(Took(signalled), kDrain) << "what runs has the whole limit";
  EXPECT_THAT(testing::AliveInGroup(group), IsEmpty());
  EXPECT_EQ(OutcomeOf(quick), "10 1 0 0 worker-1") << "what ends within the limit ends there";
  EXPECT_TRUE(WaitFor([&] { return !AttemptsOf(slow).empty(); }, kAtOnce));
  EXPECT_THAT(AttemptsOf(slow), ::testing::ElementsAre("5 1 0 0 worker-1")) << "handed back: neither failure nor crash";
  EXPECT_FALSE(HasBegun(waiting) || HasBegun(after)) << "it took a job after SIGTERM";

  Finish();
  StartWorker("worker-2", kNoDrain);
  for (const std::string& job : {slow, waiting, after}) {
    EXPECT_TRUE(WaitFor([&] { return HasEnded(job); })) << job;
    EXPECT_THAT(OutcomeOf(job), AllOf(::testing::StartsWith("10 "), ::testing::EndsWith(" 0 0 worker-2")));
  }
  EXPECT_EQ(OutcomeOf(slow), "10 2 0 0 worker-2");
}

TEST_F(ProcessesTest, ASecondSigtermHandsBackAtOnce) {
  StartOneOfEach(kNoDrain);
  const std::string job =
      Submit("trap '' TERM; sleep 600 & " + SaysGroup() + UntilFinish() + Witness(), {"--max-attempts", "1"});
  ASSERT_TRUE(WaitFor([&] { return HasBegun(job); }));
  const pid_t group = *GroupOf(job);
  TestProcess& worker = processes_["worker-1"];
  worker.Signal(SIGTERM);
  ASSERT_TRUE(WaitFor([&] { return TextOf("worker-1.log").find("draining: 1 attempts run") != std::string::npos; }));
  testing::SleepFor(kAtOnce / 2);
  ASSERT_TRUE(worker.Running()) << "one signal lets what runs go on";
  EXPECT_THAT(testing::AliveInGroup(group), Not(IsEmpty()));

  const MonoTime signalled = clock_.Now();
  worker.Signal(SIGTERM);
  ExpectEnds(worker, signalled, kAtOnce);
  EXPECT_THAT(testing::AliveInGroup(group), IsEmpty());
  EXPECT_TRUE(WaitFor([&] { return !AttemptsOf(job).empty(); }, kAtOnce));
  EXPECT_THAT(AttemptsOf(job), ::testing::ElementsAre("5 1 0 0 worker-1"));

  Finish();
  StartWorker("worker-2", kNoDrain);
  EXPECT_TRUE(WaitFor([&] { return HasEnded(job); }));
  EXPECT_EQ(OutcomeOf(job), "10 2 0 0 worker-2");
}

// The kernel ends the shell with its worker; what the shell has started, the worker's guard, or the one after it.
TEST_F(ProcessesTest, NothingThatACommandHasStartedOutlivesAKilledWorker) {
  StartOneOfEach(kNoDrain);
  TestProcess& worker = processes_["worker-1"];
  const std::string script = "trap '' TERM HUP INT; sleep 600 & sleep 600 & " + SaysGroup() + UntilFinish() + Witness();
  std::vector<std::string> jobs;
  std::vector<pid_t> groups, guards;
  for (int i = 0; i < 2; ++i) {
    jobs.push_back(Submit(script));
    ASSERT_TRUE(WaitFor([&] { return HasBegun(jobs.back()); }));
    groups.push_back(*GroupOf(jobs.back()));
    EXPECT_GE(testing::AliveInGroup(groups.back()).size(), 3u);
    guards = testing::ChildrenOf(worker.pid(), "millrace-guard");
    ASSERT_THAT(guards, SizeIs(1));
    if (i == 0) ::kill(guards.front(), SIGKILL);
  }

  worker.KillAndReap();
  groups.push_back(guards.front());  // it does not outlive what it guards
  for (const pid_t group : groups) EXPECT_TRUE(WaitFor([&] { return testing::AliveInGroup(group).empty(); }, kAtOnce)) << group;
  Finish();
  StartWorker("worker-2", kNoDrain);
  for (const std::string& job : jobs) {
    EXPECT_TRUE(WaitFor([&] { return HasEnded(job); }));
    EXPECT_EQ(OutcomeOf(job), "10 2 0 0 worker-2");
  }
}

TEST_F(ProcessesTest, SigtermOfABrokerGivesItsShardsToTheOtherWhileCommandsGoOn) {
  StartOneOfEach(kNoDrain);
  const std::vector<std::string> jobs{Submit(SaysGroup() + UntilFinish() + Witness()),
                                      Submit(SaysGroup() + UntilFinish() + Witness())};
  ASSERT_TRUE(WaitFor([&] { return HasBegun(jobs[0]) && HasBegun(jobs[1]); }));
  const MonoTime started = clock_.Now();
  StartBroker(2);
  const std::map<std::string, std::int64_t> shared{{"broker-1", 1}, {"broker-2", 1}};
  ASSERT_TRUE(WaitFor([&] { return Owned() == shared; }, kJoinShare + kAtOnce)) << TextOf("broker-2.log");
  fmt::print("the second broker has its share after {} ms\n", Took(started).count());

  const MonoTime signalled = clock_.Now();
  processes_["broker-1"].Signal(SIGTERM);
  ExpectEnds(processes_["broker-1"], signalled, kAtOnce);
  EXPECT_TRUE(WaitFor([&] { return Owned()["broker-2"] == kShards; }, kAtOnce)) << "who leaves gives its shards back";
  const std::map<std::string, pid_t> groups{{jobs[0], *GroupOf(jobs[0])}, {jobs[1], *GroupOf(jobs[1])}};
  testing::SleepFor(kLeaseTtl);  // who was not adopted would start again
  for (const auto& [job, group] : groups) {
    EXPECT_THAT(testing::AliveInGroup(group), Not(IsEmpty())) << "a command was stopped for it";
    EXPECT_EQ(GroupOf(job), group) << "it has begun again";
  }
  Finish();
  for (const std::string& job : jobs) {
    EXPECT_TRUE(WaitFor([&] { return HasEnded(job); })) << job;
    EXPECT_EQ(OutcomeOf(job), "10 1 0 0 worker-1");
    EXPECT_THAT(AttemptsOf(job), IsEmpty());
  }
}

TEST_F(ProcessesTest, ProgressIsShownWhicheverBrokerServesTheOrg) {
  StartOneOfEach(kNoDrain);
  StartWorker("worker-2", kNoDrain);
  StartBroker(2);
  const std::map<std::string, std::int64_t> shared{{"broker-1", 1}, {"broker-2", 1}};
  ASSERT_TRUE(WaitFor([&] { return Owned() == shared; }, kJoinShare + kAtOnce)) << TextOf("broker-2.log");
  const std::string script =
      "echo 7 4096 >$MILLRACE_PROGRESS; while [ ! -e finish ]; do sleep 0.1; done; echo $MILLRACE_JOB $MILLRACE_TOKEN "
      ">>witness";
  std::ofstream(dir_ / "long.yaml") << fmt::format(
      "version: 1\npipeline: long\nstages:\n  copy:\n    command: [sh, -c, '{}']\n", script);

  for (std::uint16_t shard = 0; shard < kShards; ++shard) {
    OrgId org{1};
    while (ShardOf(org, kShards) != ShardId{shard}) org = OrgId{org.value() + 1};
    const std::string of = fmt::format("--org={}", org.value()), follower = fmt::format("follower-{}", shard);
    SCOPED_TRACE(of);
    const std::string job = Submit("echo 7 4096 >$MILLRACE_PROGRESS; " + UntilFinish() + Witness(), {of});
    Told({of, "pipeline", "apply", (dir_ / "long.yaml").string()});
    Start(follower, {of, "run", "start", "long", "--wait"});
    EXPECT_TRUE(WaitFor([&] { return TextOf(follower + ".log").contains("stage copy: running"); }, kJoinShare))
        << TextOf(follower + ".log");
    std::string run;
    ASSERT_TRUE(WaitFor([&] { return !(run = Told({of, "run", "list", "-q"})).empty(); }));
    run.pop_back();
    const auto shown = [&](const std::string& noun, const std::string& id) {
      const auto all = nlohmann::json::parse(Told({of, noun, "show", id, "-o", "json"}));
      const auto progress = noun == "job" ? all.at("progress") : all.at("stages").at(0).at("progress");
      return progress.is_null() ? std::string("nothing")
                                : fmt::format("{} {}", progress.at("rows").get<int>(), progress.at("bytes").get<int>());
    };
    EXPECT_TRUE(WaitFor([&] { return shown("job", job) == "7 4096"; }, kJoinShare)) << shown("job", job);
    EXPECT_TRUE(WaitFor([&] { return shown("run", run) == "7 4096"; }, kJoinShare)) << shown("run", run);
  }
  Finish();
  for (std::uint16_t shard = 0; shard < kShards; ++shard)
    EXPECT_EQ(processes_[fmt::format("follower-{}", shard)].Wait(kPatience), 0);
  EXPECT_TRUE(WaitFor([&] { return Count("outcome") == 2 * kShards; }));
}

TEST_F(ProcessesTest, SigtermEndsWhoWaitsForSomebodyElsesMigration) {
  testing::TestDatabase fresh("fresh");
  const auto asks = fresh.Connect();
  auto holder = fresh.Connect();
  ASSERT_TRUE(holder->Exec("begin", In()) && holder->Exec("select pg_advisory_xact_lock(7318349394477057)", In()));
  const auto count = [&](const std::string& of) {
    const auto found = asks->QueryOnce("select count(*) from " + of, {}, In());
    return found ? found->Int(0, 0) : -1;
  };
  const std::string waiting =
      "pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = "
      "current_database())";
  for (const std::string part : {"broker", "scheduler"}) {
    SCOPED_TRACE(part);
    TestProcess& process = Start(part, {"--set", "ledger.dsn=" + fresh.dsn(), part});
    ASSERT_TRUE(WaitFor([&] { return count(waiting) == 1; })) << TextOf(part + ".log");
    const MonoTime signalled = clock_.Now();
    process.Signal(SIGTERM);
    ExpectEnds(process, signalled, kAtOnce);
    EXPECT_THAT(TextOf(part + ".log"), HasSubstr("stopped"));
    EXPECT_EQ(count(waiting), 0) << "it stands in line no more";
  }
  EXPECT_EQ(count("pg_namespace where nspname = 'millrace'"), 0);
}

TEST_F(ProcessesTest, ACancelReachesTheBrokerThatServesTheOrgOrSaysThatNobodyLooked) {
  ASSERT_NO_FATAL_FAILURE(StartTwoThatShare());
  const OrgId org = ServedBy("broker-2");
  const std::string of = fmt::format("--org={}", org.value()), owner = "broker.listen_clients=" + Port(2);
  Told({of, "--set", owner, "queue", "pause", "mail"});
  const std::vector<std::string> redis{of, "--set", owner, "--queue", "mail", "--durability", "redis"};
  const std::string job = Submit("exit 0", redis), other = Submit("exit 0", redis);

  // Of an earlier version, say: it has not said where it is.
  Ask("update millrace.broker_presence set clients = '' where name = 'broker-2'");
  const std::string served = fmt::format("org {} is served by broker 'broker-2'", org.value());
  EXPECT_THAT(Told({of, "job", "cancel", job}, 6), AllOf(HasSubstr(served), HasSubstr("unknown"), Not(HasSubstr("not_found"))));
  EXPECT_THAT(Told({of, "job", "cancel", "--queue", "mail"}, 6), AllOf(HasSubstr(served), HasSubstr("0 jobs")));
  EXPECT_THAT(Told({of, "job", "cancel", "--queue", "mail", "--dry-run"}, 6), HasSubstr(served));
  EXPECT_EQ(Count("cancel"), 0);

  Ask("update millrace.broker_presence set clients = '" + Port(2) + "' where name = 'broker-2'");
  EXPECT_THAT(Told({of, "job", "cancel", job}), HasSubstr("cancelled"));
  EXPECT_THAT(Told({of, "job", "cancel", "--queue", "mail"}), HasSubstr(other));
  for (const std::string& id : {job, other}) EXPECT_TRUE(WaitFor([&] { return HasEnded(id); }, kAtOnce)) << id;
  EXPECT_EQ(Count("cancel"), 2);
  EXPECT_THAT(Told({of, "job", "cancel", job}, 5), HasSubstr("ended")) << "the ledger knows it now";
}

TEST_F(ProcessesTest, ASubmitReachesTheBrokerThatServesTheOrgOrSaysWhoDoes) {
  ASSERT_NO_FATAL_FAILURE(StartTwoThatShare());
  const OrgId org = ServedBy("broker-2");
  const std::string of = fmt::format("--org={}", org.value());
  EXPECT_THAT(Told({of, "queue", "pause", "mail"}), Not(HasSubstr("takes it up"))) << "the owner has it at once";
  std::ofstream(dir_ / "two.ndjson") << R"({"kind": "command", "payload": {"argv": ["true"]}, "queue": "mail"})"
                                        "\n"
                                     << R"({"kind": "mail", "queue": "mail", "durability": "redis"})"
                                        "\n";
  const std::string batch = (dir_ / "two.ndjson").string();
  std::vector<std::string> jobs{Submit("exit 0", {of, "--queue", "mail", "--durability", "redis"})};
  const std::string more = Told({of, "job", "submit", "--batch", batch, "-q"});
  for (const std::string& id : IdsIn(more)) jobs.push_back(id);
  EXPECT_THAT(jobs, SizeIs(3));
  const auto shown = nlohmann::json::parse(Told({of, "queue", "show", "mail", "-o", "json"}));
  EXPECT_EQ(shown.at(0).at("ready"), 3) << shown;
  const std::string found = Told({of, "doctor"}, 1);
  for (const char* broker : {"broker-1 at ", "broker-2 at "}) EXPECT_THAT(found, HasSubstr(broker));
  EXPECT_THAT(found, HasSubstr("queue 'mail': 1 of kind 'mail' ready")) << "it asks the one that serves the org";

  const std::string late = Submit("exit 0", {of, "--queue", "mail", "--deadline", "1s"});
  ASSERT_TRUE(WaitFor([&] { return HasEnded(late); }));
  const std::string elsewhere = "broker.listen_clients=tcp://127.0.0.1:1";
  EXPECT_THAT(Told({of, "--set", elsewhere, "job", "requeue", late}), Not(HasSubstr("no broker answers")));
  jobs.push_back(Submit("exit 0", {of, "--set", elsewhere, "--queue", "mail", "--durability", "redis"}));

  // The ledger says what is not so: each is asked once or twice, and nothing is taken.
  const std::vector<std::string> refused{of, "job", "submit", "--kind", "mail", "--durability", "redis"};
  Ask("update millrace.broker_presence set clients = '" + Port(0) + "' where name = 'broker-2'");
  const std::string served = fmt::format("org {} is served by broker 'broker-2'", org.value());
  EXPECT_THAT(Told(refused, 6), AllOf(HasSubstr(served), HasSubstr("broker.listen_clients")));
  Ask("update millrace.broker_presence set clients = 'tcp://127.0.0.1:1' where name = 'broker-2'");
  EXPECT_THAT(Told(refused, 6), AllOf(HasSubstr(served), HasSubstr("was not reached at tcp://127.0.0.1:1")));
  EXPECT_THAT(Told({of, "doctor"}, 1), HasSubstr("that it lives, and does not answer at tcp://127.0.0.1:1"));
  Told({of, "job", "submit", "--kind", "mail", "--queue", "mail"});
  EXPECT_THAT(Told({of, "--set", "broker.listen_clients=" + Port(2), "queue", "show", "mail"}), Not(HasSubstr("is not known")))
      << "the configured one is the owner, whatever address it announces";
  // As of a broker that announces the default address: from here, another one answers there.
  Ask("update millrace.broker_presence set clients = '" + Port(0) + "' where name = 'broker-2'");
  const std::string mistaken = fmt::format("is reached at {}, where 'broker-1' answers", Port(0));
  EXPECT_THAT(Told(refused, 6), AllOf(HasSubstr(served), HasSubstr(mistaken)));
  EXPECT_THAT(Told({of, "doctor"}, 1), HasSubstr(mistaken));
  std::vector<std::string> from_elsewhere = refused;
  from_elsewhere.insert(from_elsewhere.begin(), {"--set", elsewhere});
  EXPECT_THAT(Told(from_elsewhere, 6), HasSubstr(mistaken)) << "it is not told of the job";
  EXPECT_THAT(Told({of, "--set", elsewhere, "queue", "show", "mail"}), HasSubstr("no broker answers at tcp://127.0.0.1:1"));
  Ask("update millrace.broker_presence set clients = '" + Port(2) + "' where name = 'broker-2'");

  for (const std::string& id : IdsIn(Told({of, "job", "cancel", "--queue", "mail", "-q"}))) {
    std::erase(jobs, id);
    EXPECT_TRUE(WaitFor([&] { return HasEnded(id); }, kAtOnce)) << id;
  }
  EXPECT_THAT(jobs, IsEmpty());
}

}  // namespace
}  // namespace millrace
