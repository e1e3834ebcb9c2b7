// A small lake and orders for tests of the load stage.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "common/base/failpoint.h"
#include "common/drivers/duckdb.h"
#include "worker/stage/files.h"
#include "worker/stage/load/load.h"

namespace millrace::testing {

class LoadFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "millrace-load-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    auto engine = OpenEngine();
    ASSERT_TRUE(engine) << engine.error().message;
    engine_.emplace(std::move(*engine));
  }
  void TearDown() override {
    (void)ConfigureFailpoints("", 1);
    engine_.reset();
    std::filesystem::remove_all(dir_);
  }

  struct Engine {
    duck::Database database;
    duck::Connection connection;
  };
  static Result<Engine> OpenEngine() {
    duck::DatabaseOptions options;
    options.threads = 2;
    MILLRACE_TRY_ASSIGN(duck::Database database, duck::Database::Open(options));
    MILLRACE_TRY_ASSIGN(duck::Connection connection, database.Connect());
    return Engine{std::move(database), std::move(connection)};
  }

  // A published dataset with the rows of `sql`.
  Manifest Dataset(const std::string& sql) {
    Manifest manifest;
    manifest.stage = "source";
    manifest.layer = "silver";
    auto columns = engine_->connection.Describe(sql);
    EXPECT_TRUE(columns) << columns.error().message;
    if (columns) manifest.columns = *columns;
    DatasetFile file;
    file.path = "d" + std::to_string(++files_) + ".parquet";
    auto rows =
        engine_->connection.Execute("copy (" + sql + ") to " + duck::QuoteText(dir_ + "/" + file.path) + " (format parquet)");
    EXPECT_TRUE(rows) << rows.error().message;
    file.format = FileFormat::kParquet;
    file.rows = rows.value_or(0);
    file.bytes = static_cast<std::int64_t>(std::filesystem::file_size(dir_ + "/" + file.path));
    file.sha256 = Sha256OfFile(dir_ + "/" + file.path).value_or("");
    manifest.files.push_back(file);
    manifest.rows.read = manifest.rows.loaded = file.rows;
    return manifest;
  }

  StageOrder Order(LoadMode mode, const std::string& table, const std::string& effect, std::uint64_t token) {
    StageOrder order;
    order.task.pipeline = "p";
    order.task.effect = effect;
    order.task.run = RunId{Uuid{{1, 2, 3}}};
    order.task.base_dir = dir_;
    order.task.stage.name = "warehouse";
    LoadSpec spec;
    spec.from = "source";
    spec.to = "dest";
    spec.table = table;
    spec.mode = mode;
    if (mode == LoadMode::kMerge) spec.key = {"id"};
    order.task.stage.work = spec;
    order.token = Token{token};
    order.lake = dir_;
    order.threads = 2;
    order.connection = connection_;
    return order;
  }
  static LoadSpec& Spec(StageOrder& order) { return std::get<LoadSpec>(order.task.stage.work); }

  StageResult Load(const StageOrder& order, const Manifest& input) {
    return RunLoad(order, input, engine_->connection, [](std::int64_t, std::int64_t) {});
  }

  StageResult Fence(StageOrder order) {
    order.fence_only = true;
    return RaiseFence(order, engine_->connection);
  }

  // Runs `body` in a forked child with the failpoints of `spec`; its exit status (137: the failpoint struck).
  static int InChild(const std::string& spec, const std::function<int()>& body) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (!ConfigureFailpoints(spec, 1)) ::_exit(99);
      ::_exit(body());
    }
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
  }
  // One load in a child with an engine of its own (threads do not survive a fork). 0 ok, 1 failed.
  static int LoadInChild(const std::string& spec, const StageOrder& order, const Manifest& input) {
    return InChild(spec, [&] {
      auto engine = OpenEngine();
      if (!engine) return 98;
      return RunLoad(order, input, engine->connection, [](std::int64_t, std::int64_t) {}).ok ? 0 : 1;
    });
  }

  std::string dir_;
  std::optional<Engine> engine_;
  std::optional<ConnectionSpec> connection_;
  int files_ = 0;
};

}  // namespace millrace::testing
