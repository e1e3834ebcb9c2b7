// Loads behind the wall, as the worker runs them: what they reach, and what they must not.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"
#include "tests/support/stage_runner.h"
#include "worker/stage/confine.h"
#include "worker/stage/load/load.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
const std::string kBinary = std::string(MILLRACE_BIN_DIR) + "/millrace-stage";

class LoadConfined : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "millrace-confined-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    for (const char* folder : {"src", "home", "lake"}) fs::create_directories(root_ / folder);
    std::ofstream(root_ / "src/a.csv") << "id,name\n1,ann\n2,bob\n3,eve\n";
    std::ofstream(root_ / "home/audit.key") << "the key";
    StageOrder extract = Order("a");
    ExtractSpec spec;
    spec.paths = {"a.csv"};
    extract.task.stage.work = spec;
    const StageResult r = Run(extract);
    ASSERT_TRUE(r.ok) << r.error;
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string Path(const std::string& name) const { return (root_ / name).string(); }
  StageOrder Order(const std::string& stage) {
    StageOrder order;
    order.task.pipeline = "p";
    order.task.stage.name = stage;
    order.task.effect = "1/p/" + stage + "/lake/r1/-#0";
    order.task.base_dir = Path("src");
    order.token = Token{++token_};
    order.lake = Path("lake");
    order.scratch = Path("scratch" + std::to_string(token_));
    order.threads = 2;
    return order;
  }
  StageOrder Load(const std::string& effect) {
    StageOrder order = Order("load");
    order.task.effect = effect;
    order.task.inputs.push_back({.stage = "a", .effect = "1/p/a/lake/r1/-#0"});
    LoadSpec spec;
    spec.from = "a";
    spec.to = "warehouse";
    spec.table = "people";
    order.task.stage.work = spec;
    order.connection = ConnectionSpec{"warehouse", "sqlite", Path("home/warehouse.db")};
    return order;
  }
  StageOrder LoadFile(const std::string& effect) {
    StageOrder order = Load(effect);
    auto& spec = std::get<LoadSpec>(order.task.stage.work);
    spec.to = "file";
    spec.path = "../home/out.csv";
    spec.mode = LoadMode::kReplace;
    order.connection.reset();
    return order;
  }
  StageResult Run(const StageOrder& order, const std::vector<std::string>& environment = {}) {
    stagetest::StageProcess process(kBinary, {}, environment);
    EXPECT_EQ(process.Receive(), R"({"ready":true})");
    process.Send(ToJson(order));
    const stagetest::StageRun run = process.Finish();
    const std::string head = R"({"result":)";
    if (run.frames.empty() || !run.frames.back().starts_with(head)) return {};
    const std::string& last = run.frames.back();
    return StageResultFromJson(std::string_view(last).substr(head.size(), last.size() - head.size() - 1))
        .value_or(StageResult{});
  }
  // `body` in a child behind the wall of `order`'s load; its exit status. 90: the wall could not be built.
  static int Behind(const StageOrder& order, const std::function<int()>& body) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto reach = ReachOfLoad(order);
      if (!reach) ::_exit(90);
      const auto walled = Confine({.read_files = reach->read_files,
                                   .read_directories = reach->read_folders,
                                   .write_directories = reach->engine_folders,
                                   .write_files = reach->write_files,
                                   .name_directories = reach->name_folders,
                                   .network = reach->network});
      ::_exit(walled ? body() : 90);
    }
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
  }
  static int OpenError(const std::string& path, int flags) { return ::open(path.c_str(), flags, 0600) < 0 ? errno : 0; }

  fs::path root_;
  std::uint64_t token_ = 0;
};

TEST_F(LoadConfined, ASqliteLoadReachesItsDatabaseAndNothingBesideIt) {
  for (const char* effect : {"e1", "e2"}) {
    const StageResult r = Run(Load(effect));
    ASSERT_TRUE(r.ok) << r.error_class << ": " << r.error;
    EXPECT_EQ(r.inserted, 3);
  }
  EXPECT_TRUE(Run(Load("e2")).already_applied);
  std::error_code none;
  const auto log = fs::file_size(Path("home/warehouse.db-wal"), none);
  EXPECT_TRUE(none || log == 0) << log << " bytes of log were left behind";
  auto db = sqlite::Database::Open(Path("home/warehouse.db"), {});
  ASSERT_TRUE(db);
  EXPECT_EQ(db->QueryInt64("select count(*) from people").value_or(-1), 6);

  EXPECT_EQ(Behind(Load("e3"), [&] { return OpenError(Path("home/warehouse.db"), O_RDWR); }), 0);
  EXPECT_EQ(Behind(Load("e3"), [&] { return OpenError(Path("home/audit.key"), O_RDONLY); }), EACCES);
  EXPECT_EQ(Behind(Load("e3"), [&] { return OpenError(Path("home/ledger.db"), O_RDWR | O_CREAT); }), EACCES);
  EXPECT_EQ(Behind(Load("e3"), [&] { return ::unlink(Path("home/audit.key").c_str()) == 0 ? 0 : errno; }), EACCES);
}

TEST_F(LoadConfined, AFileLoadPublishesIntoAFolderItCannotRead) {
  for (const char* effect : {"e1", "e2"}) {
    const StageResult r = Run(LoadFile(effect));
    ASSERT_TRUE(r.ok) << r.error_class << ": " << r.error;
  }
  std::ifstream out(Path("home/out.csv"));
  std::string line;
  std::getline(out, line);
  EXPECT_EQ(line, "id,name");
  EXPECT_EQ(Behind(LoadFile("e3"), [&] { return OpenError(Path("home/audit.key"), O_RDONLY); }), EACCES);
  EXPECT_EQ(Behind(LoadFile("e3"), [&] { return OpenError(Path("home/audit.key"), O_WRONLY); }), EACCES);
}

TEST_F(LoadConfined, TheChecksOfALoadReadItsInputAlone) {
  for (const bool to_file : {false, true}) {
    for (const char* name : {"home/audit.key", "home/warehouse.db", "lake/../src/../home/audit.key"}) {
      StageOrder order = to_file ? LoadFile("e1") : Load("e1");
      order.sandbox = false;  // the engine's settings alone
      CheckSpec check;
      check.expression = "(select count(*) from read_blob('" + Path(name) + "')) = 1";
      order.task.stage.checks.push_back(check);
      const StageResult r = Run(order);
      EXPECT_EQ(r.error_class, "check_failed") << name;
      EXPECT_NE(r.error.find("ermission"), std::string::npos) << r.error;
    }
  }
}

TEST_F(LoadConfined, PostgresFilesUnderHomeAreReachable) {
  const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
  if (server == nullptr) {
    if (std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_POSTGRES is not set";
    GTEST_SKIP() << "MILLRACE_TEST_POSTGRES is not set";
  }
  const SystemClock clock;
  const auto soon = [&] { return clock.Now() + std::chrono::seconds{30}; };
  auto admin = PgConnection::Connect({.dsn = server, .application_name = "t", .search_path = {}}, clock, soon());
  ASSERT_TRUE(admin) << admin.error().message;
  const std::string name = "mr_confined_" + std::to_string(::getpid());
  ASSERT_TRUE((*admin)->Exec("create database " + name, soon()));
  std::string lines = std::string("[here]\n") + server + "\n";
  for (char& c : lines)
    if (c == ' ') c = '\n';
  std::ofstream(root_ / ".pg_service.conf") << lines;
  StageOrder order = Load("e1");
  order.connection = ConnectionSpec{"warehouse", "postgres", "service=here dbname=" + name};
  const StageResult r = Run(order, {"HOME=" + root_.string()});
  EXPECT_TRUE(r.ok) << r.error_class << ": " << r.error;
  EXPECT_EQ(r.inserted, 3);
  (void)(*admin)->Exec("drop database if exists " + name + " with (force)", soon());
}

}  // namespace
}  // namespace millrace
