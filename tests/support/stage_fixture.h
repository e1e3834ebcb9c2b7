// millrace-stage as the worker drives it, over a folder of sources and a lake of its own.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "tests/support/stage_runner.h"
#include "worker/stage/input_sql.h"

// Designated initialisers leave out fields on purpose.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace millrace {

namespace fs = std::filesystem;

inline const std::string kBinary = std::string(MILLRACE_BIN_DIR) + "/millrace-stage";

class StageTest : public ::testing::Test {
 protected:
  StageTest() {
    static std::atomic<int> next{0};
    root_ = fs::temp_directory_path() / fmt::format("millrace-stage-{}-{}", ::getpid(), next++);
    fs::create_directories(root_ / "src");
    fs::create_directories(root_ / "lake");
  }
  ~StageTest() override { fs::remove_all(root_); }

  std::string Src(const std::string& name) const { return (root_ / "src" / name).string(); }
  void Write(const std::string& name, const std::string& text) { std::ofstream(Src(name), std::ios::binary) << text; }

  StageOrder Order(const std::string& stage, const std::string& run = "r1") {
    StageOrder order;
    order.task.pipeline = "p";
    order.task.stage.name = stage;
    order.task.effect = Effect(stage, run);
    order.task.base_dir = (root_ / "src").string();
    order.token = Token{++token_};
    order.lake = (root_ / "lake").string();
    order.scratch = (root_ / fmt::format("scratch{}", token_)).string();
    order.threads = 2;
    return order;
  }
  static std::string Effect(const std::string& stage, const std::string& run) {
    return fmt::format("1/p/{}/lake/{}/-#0", stage, run);
  }
  StageOrder Extract(const std::string& stage, const std::string& pattern, const std::string& run = "r1") {
    StageOrder order = Order(stage, run);
    ExtractSpec spec;
    spec.paths = {pattern};
    order.task.stage.work = spec;
    return order;
  }
  StageOrder Transform(const std::string& stage, const std::string& sql, const std::vector<std::string>& inputs,
                       const std::string& run = "r1") {
    StageOrder order = Order(stage, run);
    order.task.stage.work = TransformSpec{.sql = sql};
    for (const auto& input : inputs) order.task.inputs.push_back({.stage = input, .effect = Effect(input, run)});
    return order;
  }

  static StageResult ResultOf(const stagetest::StageRun& run) {
    EXPECT_EQ(run.exit_code, 0);
    if (run.frames.empty()) return {};
    const std::string& last = run.frames.back();
    const std::string head = R"({"result":)";
    EXPECT_TRUE(last.starts_with(head)) << last;
    auto result = StageResultFromJson(std::string_view(last).substr(head.size(), last.size() - head.size() - 1));
    EXPECT_TRUE(result) << last;
    return result.value_or(StageResult{});
  }
  StageResult Run(const StageOrder& order, const std::vector<std::string>& environment = {}) {
    stagetest::StageProcess process(kBinary, {}, environment);
    EXPECT_EQ(process.Receive(), R"({"ready":true})");
    process.Send(ToJson(order));
    return ResultOf(process.Finish());
  }
  std::string Rows(const std::string& stage, const std::string& order_by, const std::string& run = "r1") {
    auto manifest = LoadManifest((root_ / "lake").string(), kDefaultOrg, "p", {.stage = stage, .effect = Effect(stage, run)});
    if (!manifest) return manifest.error().message;
    auto db = duck::Database::Open({});
    auto connection = db->Connect();
    auto sql = InputSql(*manifest, (root_ / "lake").string());
    auto table = connection->Query(fmt::format("SELECT * FROM ({}) ORDER BY {}", *sql, order_by));
    if (!table) return table.error().message;
    std::string out;
    for (const auto& row : table->rows) {
      for (std::size_t c = 0; c < row.size(); ++c) out += (c == 0 ? "" : ",") + row[c].value_or("null");
      out += "\n";
    }
    return out;
  }
  std::string Types(const std::string& stage, const std::string& run = "r1") const {
    auto manifest = LoadManifest((root_ / "lake").string(), kDefaultOrg, "p", {.stage = stage, .effect = Effect(stage, run)});
    if (!manifest) return manifest.error().message;
    std::string out;
    for (const auto& c : manifest->columns) out += (out.empty() ? "" : ", ") + c.name + " " + c.type;
    return out;
  }
  int CountFiles(const std::string& stage, const std::string& folder) {
    int count = 0;
    const fs::path path = root_ / "lake" / DatasetDir(kDefaultOrg, "p", stage) / folder;
    if (!fs::exists(path)) return 0;
    for (const auto& entry : fs::directory_iterator(path)) count += entry.is_regular_file() ? 1 : 0;
    return count;
  }
  void MakeFile(const std::string& sql) {
    auto db = duck::Database::Open({});
    auto connection = db->Connect();
    const auto done = connection->Execute(sql);
    ASSERT_TRUE(done) << done.error().message;
  }

  fs::path root_;
  std::uint64_t token_ = 0;
};

}  // namespace millrace
