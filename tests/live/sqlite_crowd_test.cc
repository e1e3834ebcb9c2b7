// The ledger of an embedded home under what SQLite is feared for: many threads and processes that write at once, and a process
// that dies in the middle of a checkpoint. At the end the history checker compares what was accepted with what is there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/drivers/sqlite.h"
#include "common/ledger/ledger.h"
#include "tests/support/accepted_list.h"
#include "tests/support/history_check.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr Millis kBusyMax{5'000};  // nobody may wait longer for the others
constexpr Millis kCrowdFor{6'000};
constexpr std::size_t kThreads = 20, kProcesses = 3, kThreadsEach = 4;
constexpr std::size_t kRounds = 24;
constexpr int kCommitsBetween = 20, kCommitsMax = 2'000;
constexpr int kPagesMax = 40;  // of a checkpoint, before the process dies
constexpr int kJobsEach = 3;

// ---- a process that dies where a checkpoint is --------------------------------------------------------------------------

// In the middle of a page of the database; of the first write of the next log; before the log is cut.
enum class Place : std::uint8_t { kPage, kNewLog, kTruncate };
constexpr std::size_t kPlaces = 3;
constexpr const char* kCheckpoints[kPlaces] = {"pragma wal_checkpoint(passive)", "pragma wal_checkpoint(restart)",
                                               "pragma wal_checkpoint(truncate)"};  // that come to it

// Of this process, which is a child of the test. SQLite calls the functions below instead of the system's.
struct Doom {
  Place place = Place::kPage;
  int after = 0;  // pages that are still written
  ino_t database = 0, log = 0;
};
Doom doom;
std::atomic<int> pages_written{0};

ino_t InodeOf(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) == 0 ? status.st_ino : 0;
}
void Die() { ::kill(::getpid(), SIGKILL); }

ssize_t DoomedWrite(int fd, const void* bytes, std::size_t size, off_t at) {
  const ino_t file = InodeOf(fd);
  const bool page = file == doom.database && doom.place == Place::kPage && pages_written >= doom.after;
  const bool new_log = file == doom.log && at == 0 && doom.place == Place::kNewLog && pages_written > 0;
  if (page || new_log) {
    (void)!::pwrite(fd, bytes, size / 2, at);  // torn
    Die();
  }
  if (file == doom.database) ++pages_written;
  return ::pwrite(fd, bytes, size, at);
}
int DoomedTruncate(int fd, off_t size) {
  if (InodeOf(fd) == doom.log && doom.place == Place::kTruncate && pages_written > 0) Die();
  return ::ftruncate(fd, size);
}

bool Doomed() {
  sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
  bool writes = false;
  for (const char* name : {"pwrite", "pwrite64"}) {
    if (vfs->xGetSystemCall(vfs, name) == nullptr) continue;
    writes = vfs->xSetSystemCall(vfs, name, reinterpret_cast<sqlite3_syscall_ptr>(&DoomedWrite)) == SQLITE_OK;
  }
  return writes && vfs->xSetSystemCall(vfs, "ftruncate", reinterpret_cast<sqlite3_syscall_ptr>(&DoomedTruncate)) == SQLITE_OK;
}

class SqliteCrowdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/millrace_crowd_XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    testing::BeginHistory(History());
    const auto ledger = Open();
    ASSERT_TRUE(ledger) << ledger.error().message;
    const auto migrated = (*ledger)->Migrate(clock_.Now() + 20s);
    ASSERT_TRUE(migrated) << migrated.error().message;
  }
  void TearDown() override {
    for (const pid_t child : children_) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
    testing::AcceptedList accepted;
    for (const std::string& id : Noted("accepted")) accepted.Job(*Uuid::Parse(id));
    EXPECT_GT(accepted.size(), 0U);
    testing::EndHistory(Path(), History(), accepted.Write(folder_ + "/accepted-list"));
    fs::remove_all(folder_);
  }
  std::string Path() const { return folder_ + "/ledger.db"; }
  std::string History() const { return folder_ + "/history"; }
  Result<std::unique_ptr<Ledger>> Open() {
    return OpenSqliteLedger({.dsn = Path(), .clock = &clock_, .writer = ids_.Next<AuditWriterId>()}, clock_.Now() + 20s);
  }
  // `what` in a process of its own, which ends by it. Before this process has threads.
  pid_t Fork(const std::function<void()>& what) {
    const pid_t child = ::fork();
    EXPECT_GE(child, 0);
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      what();
      ::_exit(0);
    }
    children_.push_back(child);
    return child;
  }
  int Reap(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    std::erase(children_, child);
    return status;
  }
  // One write, so that a line is there or not, whoever dies.
  void Note(const std::string& file, const std::string& lines) const {
    const int fd = ::open((folder_ + "/" + file).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    (void)!::write(fd, lines.data(), lines.size());
    ::close(fd);
  }
  std::vector<std::string> Noted(const std::string& file) const {
    std::vector<std::string> lines;
    std::ifstream in(folder_ + "/" + file);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }
  // Submits until `enough`; what was accepted and what went wrong is noted. How long the slowest one took.
  Millis Write(const std::function<bool()>& enough) {
    SystemRandom random;
    IdGenerator ids(clock_, random);
    auto ledger = OpenSqliteLedger({.dsn = Path(), .clock = &clock_, .writer = ids.Next<AuditWriterId>()}, clock_.Now() + 20s);
    if (!ledger) return Note("errors", ledger.error().message + "\n"), Millis{0};
    Millis slowest{0};
    while (!enough()) {
      std::vector<JobSpec> jobs(kJobsEach);
      std::string lines;
      for (JobSpec& job : jobs) {
        job.id = ids.Next<JobId>();
        job.kind = "command";
        job.payload = std::string(3'000, 'x');
        lines += job.id.ToString() + "\n";
      }
      const MonoTime start = clock_.Now();
      const auto done = (*ledger)->SubmitJobs(jobs, start + kBusyMax);
      slowest = std::max(slowest, std::chrono::duration_cast<Millis>(clock_.Now() - start));
      Note(done ? "accepted" : "errors", done ? lines : done.error().message + "\n");
    }
    return slowest;
  }
  // The file is sound, and holds everything that was accepted.
  void ExpectWhole() {
    auto database = sqlite::Database::Open(Path(), {});
    ASSERT_TRUE(database) << database.error().message;
    auto check = *database->Prepare("pragma integrity_check");
    ASSERT_TRUE(*check.Step());
    EXPECT_EQ(check.View(0), "ok");
    std::set<std::string> there;
    auto jobs = *database->Prepare("select job from job");
    while (*jobs.Step()) there.insert(JobId{*Uuid::FromBytes(jobs.View(0))}.ToString());
    std::size_t lost = 0;
    for (const std::string& id : Noted("accepted")) lost += there.contains(id) ? 0U : 1U;
    EXPECT_EQ(lost, 0U) << "of " << Noted("accepted").size() << " accepted jobs";
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::string folder_;
  std::vector<pid_t> children_;
};

TEST_F(SqliteCrowdTest, ThirtyTwoWritersOfFourProcessesAreNeverTurnedAway) {
  const MonoTime end = clock_.Now() + kCrowdFor;
  const auto crowd = [&](std::size_t threads) {
    std::vector<Millis> slowest(threads);
    {
      std::vector<std::jthread> writers;
      for (Millis& mine : slowest) writers.emplace_back([&] { mine = Write([&] { return clock_.Now() >= end; }); });
    }
    Note("slowest", std::to_string(std::ranges::max(slowest).count()) + "\n");
  };
  std::vector<pid_t> processes;
  for (std::size_t i = 0; i < kProcesses; ++i) processes.push_back(Fork([&] { crowd(kThreadsEach); }));
  crowd(kThreads);
  for (const pid_t process : processes) EXPECT_EQ(Reap(process), 0);
  EXPECT_EQ(Noted("errors"), std::vector<std::string>{});
  std::int64_t slowest = 0;
  for (const std::string& ms : Noted("slowest")) slowest = std::max(slowest, std::stol(ms));
  std::printf("%zu commits of %zu writers in %lld s, the slowest took %lld ms\n", Noted("accepted").size() / kJobsEach,
              kThreads + kProcesses * kThreadsEach, static_cast<long long>(kCrowdFor.count() / 1000),
              static_cast<long long>(slowest));
  EXPECT_GT(Noted("accepted").size(), 0U);
  ExpectWhole();
}

// Two connections: one commits all the time, the other one makes checkpoints.
TEST_F(SqliteCrowdTest, KilledInTheMiddleOfACheckpointNothingIsLost) {
  SeededRandom random(24);
  std::size_t accepted = 0;
  for (std::size_t round = 0; round < kRounds; ++round) {
    const auto place = static_cast<Place>(round % kPlaces);
    const int after = static_cast<int>(random.Below(kPagesMax));
    const pid_t process = Fork([&] {
      auto checkpoints = sqlite::Database::Open(Path(), {});  // the log is there from here on
      if (!checkpoints || !Doomed()) return;
      struct stat database{}, log{};
      ::stat(Path().c_str(), &database);
      ::stat((Path() + "-wal").c_str(), &log);
      doom = {.place = place, .after = after, .database = database.st_ino, .log = log.st_ino};
      std::atomic<int> committed{0};
      const std::jthread writer([&] { Write([&] { return ++committed > kCommitsMax; }); });
      for (int checkpoint = 1; committed <= kCommitsMax; ++checkpoint) {
        while (committed < checkpoint * kCommitsBetween && committed <= kCommitsMax) std::this_thread::sleep_for(1ms);
        (void)checkpoints->Exec(kCheckpoints[round % kPlaces]);
      }
    });
    const int status = Reap(process);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "round " << round << ": no checkpoint came that far";
    ExpectWhole();
    EXPECT_EQ(Noted("errors"), std::vector<std::string>{});
    EXPECT_GT(Noted("accepted").size(), accepted) << "round " << round;
    accepted = Noted("accepted").size();
  }
  std::printf("%zu checkpoints interrupted, %zu jobs accepted\n", kRounds, accepted);
}

}  // namespace
}  // namespace millrace
