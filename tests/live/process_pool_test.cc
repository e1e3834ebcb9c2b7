// The pool of stage processes and its nursery, with real processes: tests/support/fake_stage.cc.
#include "worker/process_pool.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "worker/stage_frames.h"

namespace millrace::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr auto kPatience = Millis{15'000};

struct Stat {
  char state = 0;  // 0: no such process
  int parent = 0, group = 0;
};
Stat StatOf(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  Stat stat;
  if (!std::getline(file, line)) return stat;
  std::istringstream(line.substr(line.rfind(')') + 1)) >> stat.state >> stat.parent >> stat.group;
  return stat;
}
bool Alive(pid_t pid) {
  const char state = StatOf(pid).state;
  return state != 0 && state != 'Z' && state != 'X';
}
std::size_t CountEntries(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}
// Children of this process, dead ones that nobody has reaped among them.
std::vector<pid_t> Children() {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (StatOf(std::stoi(name)).parent == ::getpid()) children.push_back(std::stoi(name));
  }
  return children;
}

std::string Order(const std::string& stage) {
  StageOrder order;
  order.task.pipeline = "p";
  order.task.effect = "e";
  order.task.stage.name = stage;
  order.task.stage.work = TransformSpec{.sql = "select 1"};
  order.lake = "/tmp";
  return EncodeStageFrame(ToJson(order));
}

class ProcessPoolTest : public ::testing::Test {
 protected:
  explicit ProcessPoolTest() {
    options_.program = MILLRACE_BIN_DIR "/fake_stage";
    options_.warm = 3;
    options_.refill_delay = Millis{0};
  }
  void Open(const char* manner = nullptr) {
    if (manner != nullptr) options_.env.push_back(std::string("FAKE_NURSERY=") + manner);
    poller_ = *Poller::Make();
    pool_ = std::make_unique<ProcessPool>(*poller_, clock_, options_);
  }
  void Turn() {
    pollfd ready{.fd = poller_->fd(), .events = POLLIN, .revents = 0};
    ::poll(&ready, 1, 2);
    poller_->Dispatch();
    pool_->Tick(clock_.Now());
  }
  bool Until(const std::function<bool()>& done) {
    const MonoTime end = clock_.Now() + kPatience;
    while (!done()) {
      if (clock_.Now() >= end) return false;
      Turn();
    }
    return true;
  }
  bool UntilReady() {
    return Until([this] { return pool_->ready() == options_.warm; });
  }
  std::unique_ptr<Process> Begin(const std::string& stage) {
    auto process = pool_->Take();
    EXPECT_TRUE(process) << process.error().message;
    if (!process) std::abort();
    (*process)->Write(Order(stage));
    return std::move(*process);
  }
  // Until its end; its result, if there was one.
  std::optional<StageResult> Finish(Process& process) {
    std::optional<StageResult> result;
    EXPECT_TRUE(Until([&] {
      while (auto frame = process.TakeFrame()) {
        auto message = ParseStageMessage(*frame);
        EXPECT_TRUE(message);
        if (auto* r = message ? std::get_if<StageResult>(&*message) : nullptr) result = std::move(*r);
      }
      return process.exit().has_value();
    }));
    return result;
  }
  // One stage from Take to its end.
  void ExpectRuns() {
    const auto process = Begin("ok");
    const auto result = Finish(*process);
    EXPECT_TRUE(result && result->ok) << process->LogText();
    EXPECT_EQ(process->exit()->code, 0);
    EXPECT_EQ(process->exit()->signal, 0);
  }

  SystemClock clock_;
  ProcessPool::Options options_;
  std::unique_ptr<Poller> poller_;
  std::unique_ptr<ProcessPool> pool_;
};

TEST_F(ProcessPoolTest, SparesAreChildrenOfOursWithAGroupAndNothingElseOfTheNursery) {
  options_.nice = 3;
  Open();
  ASSERT_TRUE(UntilReady());
  const pid_t nursery = pool_->nursery_pid();
  EXPECT_EQ(StatOf(nursery).group, nursery);
  const auto process = Begin("hang");
  ASSERT_TRUE(process->arrived());
  const Stat stat = StatOf(process->pid());
  EXPECT_EQ(stat.parent, ::getpid());
  EXPECT_EQ(stat.group, process->pid());
  EXPECT_EQ(::getpriority(PRIO_PROCESS, static_cast<id_t>(process->pid())), ::getpriority(PRIO_PROCESS, 0) + 3);
  EXPECT_EQ(CountEntries(fmt::format("/proc/{}/fd", process->pid())), 4u);
  EXPECT_NE(process->pid(), nursery);
  process->SignalGroup(SIGKILL);
  Finish(*process);
  EXPECT_EQ(process->exit()->signal, SIGKILL);
  EXPECT_TRUE(process->GroupGone());
  EXPECT_EQ(pool_->nursery_pid(), nursery);
}

TEST_F(ProcessPoolTest, ACrashIsACrashOfTheChild) {
  Open();
  ASSERT_TRUE(UntilReady());
  const auto crash = Begin("segv");
  EXPECT_FALSE(Finish(*crash));
  EXPECT_EQ(crash->exit()->signal, SIGSEGV);
  EXPECT_THAT(crash->LogText(), HasSubstr("about to crash"));
  const auto silent = Begin("silent");
  EXPECT_FALSE(Finish(*silent));
  EXPECT_EQ(silent->exit()->code, 3);
  ExpectRuns();
}

TEST_F(ProcessPoolTest, WhoFindsNoSpareHasHisChildForked) {
  options_.warm = 1;
  Open();
  ASSERT_TRUE(UntilReady());
  std::vector<std::unique_ptr<Process>> many;
  for (int i = 0; i < 8; ++i) many.push_back(Begin("ok"));
  EXPECT_FALSE(many.back()->arrived()) << "Take must not wait for the nursery";
  for (const auto& process : many) {
    const auto result = Finish(*process);
    EXPECT_TRUE(result && result->ok);
  }
}

TEST_F(ProcessPoolTest, TwoHundredStagesLeaveNothingBehind) {
  Open();
  ASSERT_TRUE(UntilReady());
  const pid_t nursery = pool_->nursery_pid();
  const std::size_t fds = CountEntries("/proc/self/fd"), threads = CountEntries("/proc/self/task");
  const std::size_t nursery_fds = CountEntries(fmt::format("/proc/{}/fd", nursery));
  for (int i = 0; i < 200; ++i) ExpectRuns();
  ASSERT_TRUE(UntilReady());
  EXPECT_EQ(CountEntries("/proc/self/fd"), fds);
  EXPECT_EQ(CountEntries("/proc/self/task"), threads);
  EXPECT_EQ(pool_->nursery_pid(), nursery);
  EXPECT_EQ(CountEntries(fmt::format("/proc/{}/fd", nursery)), nursery_fds);
  EXPECT_EQ(Children().size(), 1 + options_.warm) << "the nursery and its spares, and no zombie";
  pool_.reset();
  EXPECT_TRUE(Children().empty());
}

TEST_F(ProcessPoolTest, NoMoreChildrenAreKeptThanStagesAreExpected) {
  Open();
  ASSERT_TRUE(UntilReady());
  pool_->Expect(4);
  ExpectRuns();
  ASSERT_TRUE(UntilReady());
  for (std::size_t left = 2;; --left) {
    ExpectRuns();
    EXPECT_TRUE(Until([&] { return pool_->ready() == left; }));
    for (int i = 0; i < 5; ++i) Turn();
    EXPECT_EQ(Children().size(), 1 + left);
    if (left == 0) break;
  }
  ExpectRuns();  // more than was expected
  EXPECT_EQ(Children().size(), 1u);
}

TEST_F(ProcessPoolTest, AClosedPoolEndsWhatNobodyHasAndStartsFromNothing) {
  Open();
  ASSERT_TRUE(UntilReady());
  const auto running = Begin("hang");
  ASSERT_TRUE(Until([&] { return running->arrived(); }));
  ASSERT_EQ(::kill(pool_->nursery_pid(), SIGSTOP), 0);
  while (pool_->ready() > 0) (void)pool_->Take();
  const auto awaited = Begin("ok");  // asked of a nursery that does not answer
  EXPECT_FALSE(awaited->arrived());
  pool_->Close();
  const auto result = Finish(*awaited);
  EXPECT_TRUE(result && result->ok);
  ExpectRuns();
  EXPECT_FALSE(running->exit()) << "what has an order goes on";
  EXPECT_TRUE(Until([&] { return Children() == std::vector<pid_t>{running->pid()}; }));
  EXPECT_EQ(pool_->NextTick(), MonoTime::max());
  poller_->Dispatch();
  pollfd ready{.fd = poller_->fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&ready, 1, 100), 0) << "whoever drains would not sleep";
  running->SignalGroup(SIGKILL);
  EXPECT_TRUE(Until([&] { return running->exit().has_value(); }));
}

TEST_F(ProcessPoolTest, ADeadNurseryTakesNobodyWithItAndIsReplaced) {
  Open();
  ASSERT_TRUE(UntilReady());
  const auto running = Begin("slow");
  const pid_t nursery = pool_->nursery_pid();
  ::kill(nursery, SIGKILL);
  const auto result = Finish(*running);
  EXPECT_TRUE(result && result->ok);
  ASSERT_TRUE(Until([&] { return pool_->nursery_pid() != nursery && pool_->nursery_pid() > 0; }));
  ASSERT_TRUE(UntilReady());
  ExpectRuns();
  pool_.reset();
  EXPECT_TRUE(Children().empty());
}

TEST_F(ProcessPoolTest, AFrozenNurseryCostsOnlyTime) {
  options_.patience = Millis{100};
  Open();
  ASSERT_TRUE(UntilReady());
  const pid_t nursery = pool_->nursery_pid();
  ::kill(nursery, SIGSTOP);
  for (int i = 0; i < 5; ++i) ExpectRuns();  // more than there are spares
  ASSERT_TRUE(Until([&] { return !Alive(nursery) && pool_->nursery_pid() > 0; }));
  ASSERT_TRUE(UntilReady());
  ExpectRuns();
}

class BadNursery : public ProcessPoolTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(BadNursery, StagesStartFromNothing) {
  options_.patience = options_.start_patience = Millis{100};
  Open(GetParam());
  for (int i = 0; i < 4; ++i) ExpectRuns();
  pool_.reset();
  EXPECT_TRUE(Children().empty());
}

INSTANTIATE_TEST_SUITE_P(Manners, BadNursery, ::testing::Values("dead", "mute", "mute_when_warm", "threads"));

TEST_F(ProcessPoolTest, AProcessWithTwoThreadsIsNotForked) {
  Open("threads");
  ASSERT_TRUE(Until([&] { return pool_->nursery_pid() > 0; }));
  ::testing::internal::CaptureStderr();
  const pid_t first = pool_->nursery_pid();
  const bool replaced = Until([&] { return pool_->nursery_pid() != first; });
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("2 threads run; a process is only forked while it has one"));
  EXPECT_TRUE(replaced);
  EXPECT_EQ(pool_->ready(), 0u);
}

TEST_F(ProcessPoolTest, ANurseryWhoseChildrenDieIsReplacedWithBackOff) {
  options_.retry_base = Millis{50};
  Open("sick_children");
  std::vector<MonoTime> nurseries;
  pid_t last = -1;
  ASSERT_TRUE(Until([&] {
    const pid_t pid = pool_->nursery_pid();
    if (pid > 0 && pid != last) nurseries.push_back(clock_.Now());
    if (pid > 0) last = pid;
    return nurseries.size() == 4;
  }));
  EXPECT_GE(nurseries.back() - nurseries.front(), Millis{350}) << "50 + 100 + 200 ms lie between them";
}

TEST_F(ProcessPoolTest, OneThatIsKilledBeforeItsChildComesHasEnded) {
  Open("mute");
  Turn();
  ASSERT_GT(pool_->nursery_pid(), 0);
  const auto process = Begin("ok");
  ASSERT_FALSE(process->arrived());
  process->SignalGroup(SIGKILL);
  ASSERT_TRUE(process->exit());
  EXPECT_EQ(process->exit()->signal, SIGKILL);
  EXPECT_TRUE(process->GroupGone());
}

TEST_F(ProcessPoolTest, AChildThatNobodyWantsAnyMoreIsReaped) {
  options_.warm = 1;
  Open();
  ASSERT_TRUE(UntilReady());
  for (int i = 0; i < 5; ++i) {
    const auto spare = Begin("hang");
    const auto late = Begin("hang");
    EXPECT_FALSE(late->arrived());
  }
  ASSERT_TRUE(UntilReady());
  EXPECT_EQ(Children().size(), 2u);
}

TEST_F(ProcessPoolTest, ANurseryIsReplacedAfterSoManyBirths) {
  options_.births_max = 10;
  Open();
  ASSERT_TRUE(UntilReady());
  const pid_t first = pool_->nursery_pid();
  for (int i = 0; i < 12; ++i) ExpectRuns();
  ASSERT_TRUE(Until([&] { return pool_->nursery_pid() != first && pool_->ready() == options_.warm; }));
  ExpectRuns();
}

TEST_F(ProcessPoolTest, WithoutWarmOnesThereIsNoNursery) {
  options_.warm = 0;
  Open();
  ExpectRuns();
  EXPECT_EQ(pool_->nursery_pid(), -1);
  EXPECT_EQ(pool_->NextTick(), MonoTime::max());
}

TEST_F(ProcessPoolTest, NurseryAndChildrenDieWithTheThreadThatStartedThem) {
  std::vector<pid_t> pids;
  std::thread loop([&] {
    Open();
    ASSERT_TRUE(UntilReady());
    pids = {pool_->nursery_pid()};
    for (const pid_t pid : Children()) pids.push_back(pid);
  });
  loop.join();  // the pool still exists, as it would if a loop thread were lost
  ASSERT_EQ(pids.size(), 2 + options_.warm);
  const MonoTime end = clock_.Now() + kPatience;
  for (const pid_t pid : pids) {
    while (Alive(pid) && clock_.Now() < end) std::this_thread::yield();
    EXPECT_FALSE(Alive(pid));
  }
}

TEST_F(ProcessPoolTest, NurseryAndChildrenDieWithTheWorker) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // the orphans become ours, so that their end can be told from an unreaped one
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  const pid_t worker = ::fork();
  if (worker == 0) {
    Open();
    if (!UntilReady()) ::_exit(1);
    const auto running = Begin("hang");
    std::array<pid_t, 6> pids{};
    const auto children = Children();
    std::ranges::copy_n(children.begin(), static_cast<std::ptrdiff_t>(std::min(children.size(), pids.size())), pids.begin());
    if (::write(pipe[1], pids.data(), sizeof pids) < 0) ::_exit(1);
    while (true) Turn();
  }
  std::array<pid_t, 6> pids{};
  ASSERT_EQ(::read(pipe[0], pids.data(), sizeof pids), static_cast<ssize_t>(sizeof pids));
  ::kill(worker, SIGKILL);
  ASSERT_EQ(::waitpid(worker, nullptr, 0), worker);
  int ended = 0;
  for (const pid_t pid : pids) {
    if (pid == 0) continue;
    ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);  // killed, or ended by the end of its pipes, which may come first
    ++ended;
  }
  EXPECT_GE(ended, 4) << "nursery, stage, spares";
  for (const int fd : pipe) ::close(fd);
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {  // a spare asked for at the last moment
  }
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

}  // namespace
}  // namespace millrace::worker
