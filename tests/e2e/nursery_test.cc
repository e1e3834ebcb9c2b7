// Stages in children of a real `millrace-stage --nursery`: what they share with their siblings, and what they must not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "worker/process_pool.h"
#include "worker/stage/input_sql.h"
#include "worker/stage_frames.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using worker::Poller;
using worker::Process;
using worker::ProcessPool;

constexpr auto kPatience = Millis{60'000};

class NurseryTest : public ::testing::Test {
 protected:
  NurseryTest() {
    root_ = fs::temp_directory_path() / fmt::format("millrace-nursery-{}", ::getpid());
    fs::create_directories(root_ / "src");
    fs::create_directories(root_ / "lake");
    ProcessPool::Options options;
    options.program = MILLRACE_BIN_DIR "/millrace-stage";
    options.warm = 2;
    options.refill_delay = Millis{0};
    options.start_patience = kPatience;
    options.patience = kPatience;
    poller_ = *Poller::Make();
    pool_ = std::make_unique<ProcessPool>(*poller_, clock_, options);
    EXPECT_TRUE(Until([this] { return pool_->ready() == 2; }));
    nursery_ = pool_->nursery_pid();
  }
  ~NurseryTest() override {
    EXPECT_EQ(pool_->nursery_pid(), nursery_) << "every stage came from one nursery";
    fs::remove_all(root_);
  }

  bool Until(const std::function<bool()>& done) {
    const MonoTime end = clock_.Now() + kPatience;
    while (!done()) {
      if (clock_.Now() >= end) return false;
      pollfd ready{.fd = poller_->fd(), .events = POLLIN, .revents = 0};
      ::poll(&ready, 1, 5);
      poller_->Dispatch();
      pool_->Tick(clock_.Now());
    }
    return true;
  }

  static std::string Effect(const std::string& stage) { return fmt::format("1/p/{}/lake/r1/-#0", stage); }
  StageOrder Transform(const std::string& stage, const std::string& sql) {
    StageOrder order;
    order.task.pipeline = "p";
    order.task.stage.name = stage;
    order.task.stage.work = TransformSpec{.sql = sql};
    order.task.effect = Effect(stage);
    order.task.base_dir = root_ / "src";
    order.token = Token{++token_};
    order.lake = root_ / "lake";
    order.scratch = root_ / fmt::format("scratch{}", token_);
    order.threads = 2;
    order.memory_bytes_max = std::uint64_t{512} << 20;
    return order;
  }
  std::unique_ptr<Process> Begin(const StageOrder& order) {
    auto process = pool_->Take();
    if (!process) std::abort();
    (*process)->Write(worker::EncodeStageFrame(ToJson(order)));
    return std::move(*process);
  }
  StageResult Finish(Process& process) {
    StageResult result;
    EXPECT_TRUE(Until([&] {
      while (auto frame = process.TakeFrame()) {
        auto message = worker::ParseStageMessage(*frame);
        if (auto* r = message ? std::get_if<StageResult>(&*message) : nullptr) result = std::move(*r);
      }
      return process.exit().has_value();
    }));
    EXPECT_EQ(process.exit()->code, 0) << process.LogText();
    EXPECT_EQ(process.exit()->signal, 0);
    return result;
  }
  StageResult Run(const StageOrder& order) { return Finish(*Begin(order)); }
  // All rows of what a stage has published.
  std::string Rows(const std::string& stage) {
    const std::string lake = root_ / "lake";
    auto manifest = LoadManifest(lake, kDefaultOrg, "p", {.stage = stage, .effect = Effect(stage)});
    if (!manifest) return manifest.error().message;
    auto db = duck::Database::Open({});
    auto connection = db->Connect();
    auto table = connection->Query(*InputSql(*manifest, lake));
    if (!table) return table.error().message;
    std::string out;
    for (const auto& row : table->rows) {
      for (const auto& value : row) out += value.value_or("null") + ";";
    }
    return out;
  }

  SystemClock clock_;
  fs::path root_;
  std::unique_ptr<Poller> poller_;
  std::unique_ptr<ProcessPool> pool_;
  pid_t nursery_ = -1;
  std::uint64_t token_ = 0;
};

TEST_F(NurseryTest, ChanceIsNotSharedBySiblings) {
  std::map<std::string, std::set<std::string>> seen;
  const std::map<std::string, std::string> chances = {
      {"random", "select random() as r"},
      {"uuid", "select gen_random_uuid()::text as u"},
      {"uuidv7", "select right(uuidv7()::text, 20) as u"},
      {"sample", "select list(i order by i)::text as l from (select i from range(100000) t(i) using sample 5 rows)"}};
  for (const auto& [name, sql] : chances) {
    for (int i = 0; i < 5; ++i) {
      const std::string stage = fmt::format("{}{}", name, i);
      const StageResult result = Run(Transform(stage, sql));
      ASSERT_TRUE(result.ok) << result.error;
      seen[name].insert(Rows(stage));
    }
    EXPECT_EQ(seen[name].size(), 5u) << name << " repeats itself in siblings: " << *seen[name].begin();
  }
}

TEST_F(NurseryTest, TimeIsThatOfTheStage) {
  const auto before = std::chrono::duration_cast<std::chrono::milliseconds>(clock_.WallNow().time_since_epoch()).count();
  ASSERT_TRUE(Run(Transform("time", "select epoch_ms(now()) as t")).ok);
  EXPECT_GE(std::stoll(Rows("time")), before);
}

TEST_F(NurseryTest, SettingsOfAStageAreItsOwn) {
  const std::string settings =
      "select current_setting('threads') as t, current_setting('memory_limit') as m, "
      "current_setting('temp_directory') as d";
  StageOrder order = Transform("first", settings);
  order.threads = 3;
  ASSERT_TRUE(Run(order).ok);
  EXPECT_EQ(Rows("first"), fmt::format("3;409.5 MiB;{};", order.scratch));
  order = Transform("second", settings);
  order.memory_bytes_max = std::uint64_t{256} << 20;
  ASSERT_TRUE(Run(order).ok);
  EXPECT_EQ(Rows("second"), fmt::format("2;204.7 MiB;{};", order.scratch));
}

TEST_F(NurseryTest, MemoryIsLimitedInAChild) {
  StageOrder order = Transform("big", "select list(i) as l from range(100000000) t(i)");
  order.memory_bytes_max = std::uint64_t{128} << 20;
  const StageResult result = Run(order);
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(result.error_class, "resource_exhausted");
}

TEST_F(NurseryTest, AChildIsConfined) {
  std::ofstream(root_ / "secret.csv") << "a\n1\n";
  EXPECT_FALSE(Run(Transform("reads", fmt::format("select * from read_csv('{}')", (root_ / "secret.csv").string()))).ok);
  const auto process = Begin(Transform("slow", "select sum(a.i * b.i) as s from range(1000000) a(i), range(1000000) b(i)"));
  const std::string proc = fmt::format("/proc/{}/", process->pid());
  const auto status = [&](std::string_view key) {
    std::ifstream file(proc + "status");
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with(key)) return line.substr(key.size() + 2);
    }
    return std::string();
  };
  ASSERT_TRUE(Until([&] { return status("NoNewPrivs") == "1" && status("Threads") != "1"; })) << "it runs, with threads";
  EXPECT_NE(fs::read_symlink(proc + "ns/net"), fs::read_symlink("/proc/self/ns/net"));
  std::ifstream limits(proc + "limits");
  const std::string text{std::istreambuf_iterator<char>(limits), {}};
  EXPECT_THAT(text, ::testing::ContainsRegex("Max core file size +0 +0"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max address space +[0-9]+ +[0-9]+"));
  process->SignalGroup(SIGKILL);
  ASSERT_TRUE(Until([&] { return process->exit().has_value(); }));
  EXPECT_EQ(process->exit()->signal, SIGKILL);
}

TEST_F(NurseryTest, ManyAtOnceAllWork) {
  std::vector<std::unique_ptr<Process>> running;
  for (int i = 0; i < 12; ++i)
    running.push_back(
        Begin(Transform(fmt::format("many{}", i), fmt::format("select {} as n, count(*) as c from range(1000)", i))));
  for (int i = 0; i < 12; ++i) {
    const StageResult result = Finish(*running[static_cast<std::size_t>(i)]);
    ASSERT_TRUE(result.ok) << result.error;
    EXPECT_EQ(Rows(fmt::format("many{}", i)), fmt::format("{};1000;", i));
  }
}

TEST(NurseryProgramTest, IsStartedByAWorkerOnly) {
  const std::string program = MILLRACE_BIN_DIR "/millrace-stage";
  const int status = std::system((program + " --nursery </dev/null 2>/dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
}

}  // namespace
}  // namespace millrace
