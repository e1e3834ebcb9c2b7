// Runs whose load is under way, and commands that ignore SIGTERM and have children, are cancelled over the wire, while
// scheduled runs and single jobs flow; around the request, at a random moment, the worker that has them or the owning broker
// dies (kill -9) and is started again, or nothing does. Then every promise is checked from outside, as after the kills
// (checker.h). MILLRACE_CHAOS=short (default) or long, MILLRACE_CHAOS_SEED=<number>, MILLRACE_CHAOS_KEEP=1 keeps the folder.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "common/model/stage_task.h"
#include "common/wire/codec.h"
#include "common/wire/zmtp_transport.h"
#include "tests/chaos/checker.h"
#include "tests/chaos/chosen.h"
#include "tests/chaos/cluster.h"
#include "tests/chaos/observer.h"
#include "tests/chaos/rounds.h"
#include "tests/chaos/settings.h"
#include "tests/chaos/submitter.h"
#include "tests/support/lateness.h"

namespace millrace::chaos {
namespace {

using ::testing::IsEmpty;

constexpr int kRoundsLong = 36;
constexpr Millis kPatience{60'000}, kDrainTimeout{300'000};
constexpr Millis kAnswerTimeout{700}, kPoll{20};
constexpr Millis kAround{900};  // the request and the fault come within so much of each other
// From the answer to the recorded end, beside what the machine was late: 2 s of grace for a command, 1.25 s for a COMMIT that
// is under way here, and some steps; after a fault also what ops/docs/failure-modes.md promises for it.
constexpr Millis kEnds{6'000}, kWorkerIsNoticed{5'000}, kBrokerIsReplaced{10'000};
constexpr std::size_t kCommandsGroupMin = 3;  // the shell and its two children

// Asks the brokers in turn, again and again, until one answers; not thread-safe.
class Client {
 public:
  explicit Client(const std::vector<std::string>& endpoints) {
    auto transport = wire::MakeZmtpTransport();
    if (!transport) return;
    transport_ = std::move(*transport);
    for (const std::string& endpoint : endpoints)
      if (auto socket = transport_->Connect(endpoint)) sockets_.push_back(std::move(*socket));
  }
  // Empty: nobody has answered within kPatience.
  template <class Reply, class Message>
  std::optional<Reply> Ask(Message message) {
    for (const MonoTime until = clock_.Now() + kPatience; clock_.Now() < until && !sockets_.empty(); ++at_) {
      message.request = ++request_;
      wire::ClientSocket& socket = *sockets_[at_ % sockets_.size()];
      if (!socket.Send(wire::Encode(message))) continue;
      if (auto reply = Await<Reply>(socket)) return reply;
    }
    return std::nullopt;
  }

 private:
  // Answers to what was asked before are passed over: a broker may have come back with them.
  template <class Reply>
  std::optional<Reply> Await(wire::ClientSocket& socket) {
    for (const MonoTime until = clock_.Now() + kAnswerTimeout; clock_.Now() < until; transport_->Wait(kPoll)) {
      while (const auto frame = socket.Receive()) {
        auto message = wire::Decode(*frame);
        if (!message) continue;
        if (auto* reply = std::get_if<Reply>(&*message); reply && reply->request == request_) return std::move(*reply);
        if (const auto* problem = std::get_if<wire::Problem>(&*message); problem && problem->request == request_) {
          transport_->Wait(kPoll);
          return std::nullopt;
        }
      }
    }
    return std::nullopt;
  }

  SystemClock clock_;
  std::unique_ptr<wire::Transport> transport_;
  std::vector<std::unique_ptr<wire::ClientSocket>> sockets_;
  std::size_t at_ = 0;
  std::uint64_t request_ = 0;
};

enum class Work : std::uint8_t { kLoad, kCommand };
enum class Around : std::uint8_t { kNothing, kWorker, kBroker };
std::string_view Name(Around around) {
  constexpr std::string_view kNames[] = {"nothing dies", "its worker dies", "its broker dies"};
  return kNames[static_cast<std::size_t>(around)];
}
Millis EndsWithin(Around around) {
  if (around == Around::kWorker) return kEnds + kWorkerIsNoticed;
  return around == Around::kBroker ? kEnds + kBrokerIsReplaced : kEnds;
}

struct Asked {
  MonoTime at{}, answered{};
  std::optional<CancelEffect> effect;  // empty: no answer
};

class CancelRounds : public ::testing::Test {
 protected:
  void Begin() {
    std::printf("MILLRACE_CHAOS_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
    auto cluster = Cluster::Start({.bin = MILLRACE_BIN_DIR, .failpoints = {}, .slow_target = true, .seed = Seed() + 17});
    ASSERT_TRUE(cluster) << cluster.error().message;
    cluster_.emplace(std::move(*cluster));
    std::printf("cluster in %s\n", cluster_->dir().c_str());
    std::fflush(stdout);
    observer_.emplace(cluster_->ledger_dsn(), cluster_->warehouse_dsn());
    rounds_.emplace(*cluster_, *observer_, random_);
    client_.emplace(cluster_->client_endpoints());
    submitter_.emplace(cluster_->client_endpoints(), cluster_->witness());
  }
  // Each pair of work and fault equally often, in an order of the seed; short: a load and a command, of which the worker of one
  // and the broker of the other dies. What nothing dies in has tests/live/processes_test.cc.
  std::vector<std::pair<Work, Around>> Plan() {
    if (!Long()) {
      const bool load = random_.Below(2) == 0;
      return {{Work::kLoad, load ? Around::kWorker : Around::kBroker},
              {Work::kCommand, load ? Around::kBroker : Around::kWorker}};
    }
    std::vector<std::pair<Work, Around>> plan, bag;
    while (plan.size() < static_cast<std::size_t>(kRoundsLong)) {
      if (bag.empty())
        for (const Work work : {Work::kLoad, Work::kCommand})
          for (const Around around : {Around::kNothing, Around::kWorker, Around::kBroker}) bag.emplace_back(work, around);
      const std::size_t at = random_.Below(bag.size());
      plan.push_back(bag[at]);
      bag.erase(bag.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return plan;
  }
  template <class So>
  bool WaitFor(So so, Millis timeout = kPatience) {
    for (const MonoTime until = clock_.Now() + timeout; clock_.Now() < until; testing::SleepFor(kPoll))
      if (so()) return true;
    return so();
  }
  // Asks until it answers; a failure when it does not.
  std::int64_t Ask(bool warehouse, const std::string& sql) {
    std::optional<std::int64_t> answer;
    EXPECT_TRUE(WaitFor([&] {
      const auto found = warehouse ? observer_->Warehouse(sql) : observer_->Ledger(sql);
      if (found && found->rows() == 1) answer = found->Int(0, 0);
      return answer.has_value();
    })) << "no answer to "
        << sql;
    return answer.value_or(-1);
  }
  std::int64_t Ledger(const std::string& sql) { return Ask(false, sql); }
  std::int64_t Warehouse(const std::string& sql) { return Ask(true, sql); }

  Member& Owner() {
    const auto owner = observer_->OwnerName();
    const auto brokers = cluster_->OfRole(Role::kBroker);
    return owner && owner->find(brokers[1]->name) != std::string::npos ? *brokers[1] : *brokers[0];
  }
  Millis Moment() { return Millis{static_cast<std::int64_t>(random_.Below(static_cast<std::uint64_t>(kAround.count())))}; }
  // The request, and around it what dies.
  Asked Cancel(wire::Cancel::Item item, Around around, Member& worker) {
    Asked asked;
    const Millis before = Moment() / 3, fault = Moment();  // a load that is under way takes about a second
    Member& victim = around == Around::kBroker ? Owner() : worker;
    auto request = std::async(std::launch::async, [&] {
      testing::SleepFor(before);
      asked.at = clock_.Now();
      const auto reply = client_->Ask<wire::CancelReply>(
          wire::Cancel{.request = 0, .org = kDefaultOrg, .items = {item}, .actor = "chaos", .reason = "chaos"});
      asked.answered = clock_.Now();
      if (reply && reply->items.size() == 1) asked.effect = reply->items.front().effect;
    });
    testing::SleepFor(fault);
    if (around != Around::kNothing) {
      const auto killed = rounds_->KillNow(around == Around::kBroker ? Victim::kBroker : Victim::kWorker, victim);
      EXPECT_TRUE(killed) << killed.error().message;
    }
    request.wait();
    EXPECT_TRUE(asked.effect) << "nobody answers";
    EXPECT_NE(asked.effect, CancelEffect::kUnknown);
    return asked;
  }
  // Its outcome's state; within the time that is stated.
  std::int64_t AwaitEnd(const std::string& table, const std::string& id, const Asked& asked, Around around) {
    const std::string sql = fmt::format("select coalesce(max(state), 0)::bigint from millrace.{0} where {1} = '{2}'", table,
                                        table == "run_outcome" ? "run" : "job", id);
    std::int64_t state = 0;
    EXPECT_TRUE(WaitFor([&] { return (state = Ledger(sql)) != 0; })) << id << " does not end";
    const MonoTime now = clock_.Now();
    const Millis took = std::chrono::duration_cast<Millis>(now - asked.answered), late = late_.Between(asked.answered, now);
    EXPECT_LE(took, EndsWithin(around) + late) << id << "; the machine was late by " << late.count() << " ms";
    longest_[around] = std::max(longest_[around], took);
    return state;
  }
  // Durable before anything was stopped.
  void ExpectRecorded(const std::string& id, const Asked& asked) {
    if (asked.effect == CancelEffect::kEnded && Ledger("select count(*) from millrace.cancel where item = '" + id + "'") == 0)
      return;  // one that had ended before
    EXPECT_EQ(Ledger("select count(*) from millrace.cancel where reason = 'chaos' and item = '" + id + "'"), 1)
        << "the request is gone";
    EXPECT_EQ(Ledger("select count(*) from millrace.cancel c join millrace.outcome o on o.job = c.item or o.run = c.item"
                     " where o.error_class in ('cancelled', 'cancel_too_late') and o.recorded_at < c.requested_at"
                     " and c.item = '" +
                     id + "'"),
              0);
  }

  struct Load {
    LoadInFlight flight;
    Rounds::Holder holder;
    std::string run, job, effect;
  };
  // An append in the phase that is wanted, or in any other after a while.
  std::optional<Load> FindLoad(Phase wanted) {
    std::optional<Load> found;
    const MonoTime choosy = clock_.Now() + kPatience / 4;
    WaitFor([&] {
      for (LoadInFlight& flight : observer_->Loads()) {
        if (!flight.append || !InWindow(flight.phase) || (flight.phase != wanted && clock_.Now() < choosy)) continue;
        const auto holder = rounds_->HolderOf(flight);
        const auto row = observer_->Ledger(
            fmt::format("select run::text, job::text, effect from millrace.job where stage = 'target' and run is not null and"
                        " left(encode(sha256(convert_to(effect, 'UTF8')), 'hex'), 16) = '{}'",
                        flight.effect_hash));
        if (!holder || !row || row->rows() != 1) continue;
        found = Load{std::move(flight), *holder, row->Text(0, 0), row->Text(0, 1), row->Text(0, 2)};
        return true;
      }
      return false;
    });
    return found;
  }
  void CancelALoad(Around around) {
    constexpr Phase kPhases[] = {Phase::kRowsSent, Phase::kRowsSent, Phase::kReceipt, Phase::kCommitting};
    const auto load = FindLoad(kPhases[random_.Below(std::size(kPhases))]);
    ASSERT_TRUE(load) << "no load was under way";
    asked_for_.insert(*Uuid::Parse(load->run));
    const Asked asked = Cancel({.id = *Uuid::Parse(load->run), .is_run = true}, around, *load->holder.worker);
    const std::int64_t state = AwaitEnd("run_outcome", load->run, asked, around);
    const bool cancelled = state == static_cast<std::int64_t>(RunState::kCancelled);
    std::printf("a load, %s, when %s: %s\n", std::string(Name(load->flight.phase)).c_str(), std::string(Name(around)).c_str(),
                cancelled ? "cancelled" : "too late");
    ++(cancelled ? cancelled_ : too_late_);
    EXPECT_TRUE(cancelled || state == static_cast<std::int64_t>(RunState::kSucceeded)) << state;
    EXPECT_THAT(testing::AliveInGroup(load->holder.stage), IsEmpty()) << "the attempt runs on";
    ExpectRecorded(load->run, asked);
    const std::string effect = PgLiteral(load->effect);
    EXPECT_EQ(Warehouse("select count(*) from millrace.receipt where effect = " + effect), cancelled ? 0 : 1);
    EXPECT_EQ(Warehouse("select count(*) from wh.appended where _millrace_effect = " + effect), cancelled ? 0 : kRowsPerEffect);
    if (cancelled) {
      EXPECT_GT(observer_->FenceToken(load->flight.effect_hash), load->flight.token) << "the old token may still publish";
    } else if (asked.effect != CancelEffect::kEnded) {
      EXPECT_EQ(Ledger("select count(*) from millrace.outcome where job = '" + load->job +
                       "' and state = 10 and error_class in ('cancel_too_late', '')"),
                1);
    }
  }

  // The process groups of its attempts.
  std::vector<pid_t> GroupsOf(const std::string& job) const {
    std::vector<pid_t> groups;
    for (const auto& file : std::filesystem::directory_iterator(cluster_->dir())) {
      if (!file.path().filename().string().starts_with("group-" + job)) continue;
      std::ifstream in(file.path());
      if (pid_t group = 0; in >> group) groups.push_back(group);
    }
    return groups;
  }
  std::string SubmitCommand() {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = kJobKindCommand;
    CommandTask task;
    task.job = job.id;
    task.command.argv = {"/bin/sh", "-c",
                         "trap '' TERM; sleep 600 & sleep 600 & echo $$ >\"$0/group-$MILLRACE_JOB-$MILLRACE_TOKEN\";"
                         " while :; do sleep 0.2; done",
                         cluster_->dir()};
    task.base_dir = "/";
    job.payload = ToJson(task);
    job.priority = 0;
    job.retry.max_attempts = kMaxAttemptsMax;
    EXPECT_TRUE(client_->Ask<wire::SubmitReply>(wire::SubmitJobs{.request = 0, .jobs = {job}}));
    return job.id.ToString();
  }
  Member& WorkerOf(pid_t process) {
    const auto workers = cluster_->OfRole(Role::kWorker);
    const auto children = testing::ChildrenOf(workers[1]->process.pid(), "sh");
    return *workers[std::ranges::find(children, process) != children.end() ? 1 : 0];
  }
  void CancelACommand(Around around) {
    const std::string job = SubmitCommand();
    asked_for_.insert(*Uuid::Parse(job));
    ASSERT_TRUE(WaitFor([&] { return !GroupsOf(job).empty(); })) << "it does not begin";
    const pid_t group = GroupsOf(job).front();
    EXPECT_GE(testing::AliveInGroup(group).size(), kCommandsGroupMin);
    const Asked asked = Cancel({.id = *Uuid::Parse(job), .is_run = false}, around, WorkerOf(group));
    EXPECT_NE(asked.effect, CancelEffect::kEnded) << "it never ends by itself";
    EXPECT_EQ(AwaitEnd("outcome", job, asked, around), static_cast<std::int64_t>(JobState::kCancelled));
    const auto groups = GroupsOf(job);
    std::printf("a command, when %s: cancelled, %zu attempts\n", std::string(Name(around)).c_str(), groups.size());
    for (const pid_t each : groups) EXPECT_THAT(testing::AliveInGroup(each), IsEmpty()) << "cancelled, and goes on";
    ExpectRecorded(job, asked);
    ++cancelled_;
  }

  void End() {
    if (HasFailure()) return;
    EXPECT_TRUE(WaitFor([&] { return submitter_->accepted().size() >= 25; }));
    submitter_->Stop();
    const auto stopped = cluster_->StopSchedulers();
    EXPECT_TRUE(stopped) << stopped.error().message;
    EXPECT_TRUE(WaitFor([&] { return observer_->Live() == 0; }, kDrainTimeout)) << "not everything ended";
    const auto findings = Check(*cluster_, *observer_, *rounds_, submitter_->accepted(), asked_for_);
    ASSERT_TRUE(findings) << findings.error().message;
    std::printf("%s%d cancelled, %d too late\n", Report(*findings, *rounds_).c_str(), cancelled_, too_late_);
    for (const auto& [around, took] : longest_)
      std::printf("when %s: at most %lld ms from the answer to the end\n", std::string(Name(around)).c_str(),
                  static_cast<long long>(took.count()));
    for (const Violation& v : findings->violations) ADD_FAILURE() << v.code << ": " << v.text;
    if (Env("MILLRACE_CHAOS_KEEP").empty() && !HasFailure()) cluster_->RemoveAtEnd();
  }

  SystemClock clock_;
  SeededRandom random_{Seed() + 17};
  SystemRandom chance_;
  IdGenerator ids_{clock_, chance_};
  testing::Lateness late_;
  std::set<Uuid> asked_for_;
  std::map<Around, Millis> longest_;
  int cancelled_ = 0, too_late_ = 0;
  std::optional<Cluster> cluster_;
  std::optional<Observer> observer_;
  std::optional<Rounds> rounds_;
  std::optional<Client> client_;
  std::optional<Submitter> submitter_;  // last: it ends first
};

TEST_F(CancelRounds, ARequestIsKeptWhoeverDies) {
  MILLRACE_LONG_OR_CHOSEN(8, kClusterTests);
  ASSERT_NO_FATAL_FAILURE(Begin());
  for (const auto& [work, around] : Plan()) {
    ASSERT_NO_FATAL_FAILURE(work == Work::kLoad ? CancelALoad(around) : CancelACommand(around));
    if (HasFailure()) break;  // the first one says most
  }
  EXPECT_GT(cancelled_, 0) << "the command, at least";
  if (Long()) {
    EXPECT_GT(too_late_, 0) << "no receipt was ever there first";
  }
  End();
}

}  // namespace
}  // namespace millrace::chaos
