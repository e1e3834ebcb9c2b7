// millrace-stage as the worker drives it: real process, real files, real DuckDB.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/random.h"
#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/pipeline_json.h"
#include "common/model/stage_task.h"
#include "tests/support/stage_fixture.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(StageTest, ExtractsCsvByReferenceAndPinsItsSchema) {
  Write("a-1.csv", "id,name,day\n1,x,2020-01-01\n2,,2020-01-02\n");
  Write("a-2.csv", "id,name,day\n3,\"z,z\",2020-01-03\n");
  fs::create_directories(Src("a-9.csv"));  // a folder that matches is no source
  const StageResult result = Run(Extract("a", "a-*.csv"));
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.read, 3);
  EXPECT_EQ(result.rows.loaded, 3);
  EXPECT_TRUE(result.rows.Balanced());
  EXPECT_EQ(Rows("a", "id"), "1,x,2020-01-01\n2,null,2020-01-02\n3,z,z,2020-01-03\n");
  EXPECT_EQ(CountFiles("a", "data"), 0);
  EXPECT_TRUE(fs::exists(root_ / "lake" / PinnedSchemaPath(kDefaultOrg, "p", "a")));
}

TEST_F(StageTest, ReadsEveryFormatPlainAndCompressed) {
  const std::string rows = "(select i::bigint as id, 'n' || i as name from range(3) t(i))";
  for (const char* ending : {"csv", "csv.gz", "csv.zst", "tsv", "ndjson", "ndjson.gz", "ndjson.zst", "json", "parquet"}) {
    const std::string name = std::string(ending);
    std::string stage = "s_" + name;
    std::replace(stage.begin(), stage.end(), '.', '_');
    std::string options = name.starts_with("csv")      ? "format csv, header"
                          : name.starts_with("tsv")    ? "format csv, header, delimiter '\t'"
                          : name.starts_with("json")   ? "format json, array true"
                          : name.starts_with("ndjson") ? "format json"
                                                       : "format parquet";
    if (name.ends_with("gz")) options += ", compression gzip";
    if (name.ends_with("zst")) options += ", compression zstd";
    MakeFile(fmt::format("COPY {} TO '{}' ({})", rows, Src("f." + name), options));
    const StageResult result = Run(Extract(stage, "f." + name));
    ASSERT_TRUE(result.ok) << ending << ": " << result.error_class << " " << result.error;
    EXPECT_EQ(result.rows.loaded, 3) << ending;
    EXPECT_EQ(Rows(stage, "id"), "0,n0\n1,n1\n2,n2\n") << ending;
    EXPECT_EQ(Types(stage), "id bigint, name varchar") << ending;
  }
}

TEST_F(StageTest, DeclaredTypesReplaceSniffedOnes) {
  Write("a.csv", "code,v\n007,1\n");
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).columns = {{.name = "code", .type = "text"}};
  ASSERT_TRUE(Run(order).ok);
  EXPECT_EQ(Rows("a", "code"), "007,1\n");
}

TEST_F(StageTest, MissingFileNamesThePattern) {
  const StageResult result = Run(Extract("a", "none-*.csv"));
  EXPECT_EQ(result.error_class, "missing_file");
  EXPECT_THAT(result.error, HasSubstr("none-*.csv"));
}

TEST_F(StageTest, AFifoIsNoSourceAndDoesNotBlock) {
  ASSERT_EQ(::mkfifo(Src("a.csv").c_str(), 0600), 0);
  EXPECT_EQ(Run(Extract("a", "a.csv")).error_class, "missing_file");
}

TEST_F(StageTest, AnEmptyExtractFailsUnlessAllowed) {
  Write("a.csv", "id,name\n");
  EXPECT_EQ(Run(Extract("a", "a.csv")).error_class, "empty_extract");
  EXPECT_EQ(CountFiles("a", "manifests"), 0);
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).allow_empty = true;
  const StageResult result = Run(order);
  EXPECT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.loaded, 0);
}

TEST_F(StageTest, ABadValueNamesFileLineColumnAndValue) {
  Write("a.csv", "id,n\n1,1\n2,two\n");
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).columns = {{.name = "n", .type = "bigint"}};
  const StageResult result = Run(order);
  EXPECT_EQ(result.error_class, "bad_value");
  EXPECT_THAT(result.error, AllOf(HasSubstr("a.csv:3"), HasSubstr("'n'"), HasSubstr("two")));
  EXPECT_EQ(CountFiles("a", "manifests"), 0);
}

TEST_F(StageTest, ABadJsonValueNamesFileLineAndColumn) {
  Write("a.ndjson", "{\"id\":1,\"n\":5}\n{\"id\":2,\"n\":\"two\"}\n");
  StageOrder order = Extract("a", "a.ndjson");
  std::get<ExtractSpec>(order.task.stage.work).columns = {{.name = "n", .type = "bigint"}};
  const StageResult result = Run(order);
  EXPECT_EQ(result.error_class, "bad_value") << result.error;
  EXPECT_THAT(result.error, AllOf(HasSubstr("a.ndjson"), HasSubstr("line 2"), HasSubstr("'n'"), HasSubstr("two")));
}

TEST_F(StageTest, ContractOnExtractQuarantinesRowsThatDoNotParse) {
  Write("a.csv", "id,n\n1,1\n2,two\n3,\n");
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).columns = {{.name = "n", .type = "bigint"}};
  order.task.stage.contract =
      ContractSpec{.columns = {{.name = "n", .type = "bigint", .not_null = true}}, .on_violation = OnViolation::kQuarantine};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.read, 3);
  EXPECT_EQ(result.rows.loaded, 1);
  EXPECT_EQ(result.rows.quarantined, 2);
  EXPECT_EQ(Rows("a", "id"), "1,1\n");
  EXPECT_TRUE(fs::exists(root_ / "lake" / result.quarantine)) << result.quarantine;
}

TEST_F(StageTest, ANumberThatDoesNotFitThePinnedTypeIsNotRounded) {
  Write("a.csv", "id,price\n1,10\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  ASSERT_EQ(Rows("a", "id"), "1,10\n");
  Write("a.csv", "id,price\n1,10\n2,11.0\n3,10.55\n4,1e2\n5,0.5\n");
  const StageResult day2 = Run(Extract("a", "a.csv", "r2"));
  EXPECT_EQ(day2.error_class, "bad_value") << day2.error;
  EXPECT_THAT(day2.error, AllOf(HasSubstr("a.csv:4"), HasSubstr("'price'"), HasSubstr("'10.55'"), HasSubstr("bigint"),
                                HasSubstr("2 such values")));
  EXPECT_EQ(CountFiles("a", "manifests"), 1);
  Write("a.csv", "id,price\n2,11.0\n3,1e2\n4,+5\n5, 6 \n6,\n");
  const StageResult exact = Run(Extract("a", "a.csv", "r3"));
  ASSERT_TRUE(exact.ok) << exact.error;
  EXPECT_EQ(Rows("a", "id", "r3"), "2,11\n3,100\n4,5\n5,6\n6,null\n");
}

TEST_F(StageTest, ANumberThatDoesNotFitADeclaredTypeIsNotRounded) {
  struct Case {
    std::string type, good, bad, separator;
  };
  int n = 0;
  for (const Case& c :
       {Case{"int", "10", "10.55", ""}, Case{"smallint", "-3.", "-0.5", ""}, Case{"ubigint", "1", "1e-5", ""},
        Case{"decimal(5,2)", "10.5500", "10.555", ""}, Case{"decimal(5,2)", "1.5e1", "1.5e-2", ""},
        Case{"decimal(5,2)", "10,50", "10,505", ","}, Case{"hugeint", "123456789012345678901234567890", "1.5", ""}}) {
    const std::string stage = fmt::format("s{}", n++);
    StageOrder order = Extract(stage, stage + ".csv");
    auto& spec = std::get<ExtractSpec>(order.task.stage.work);
    spec.columns = {{.name = "v", .type = c.type}};
    spec.options = {{"delimiter", ";"}};
    if (!c.separator.empty()) spec.options["decimal_separator"] = c.separator;
    Write(stage + ".csv", fmt::format("id;v\n1;{}\n2;{}\n", c.good, c.bad));
    const StageResult bad = Run(order);
    EXPECT_EQ(bad.error_class, "bad_value") << c.type << " " << c.bad << " " << bad.error;
    EXPECT_THAT(bad.error, AllOf(HasSubstr(stage + ".csv"), HasSubstr("'v'"), HasSubstr("'" + c.bad + "'"))) << c.type;
    if (c.bad.find('e') == std::string::npos) {
      EXPECT_THAT(bad.error, HasSubstr(".csv:3:")) << c.type;
    }
    Write(stage + ".csv", fmt::format("id;v\n1;{}\n", c.good));
    order.token = Token{++token_};
    const StageResult good = Run(order);
    EXPECT_TRUE(good.ok) << c.type << " " << c.good << " " << good.error;
  }
}

TEST_F(StageTest, AJsonNumberThatDoesNotFitIsNotRounded) {
  for (const std::string ending : {"ndjson", "json"}) {
    const bool array = ending == "json";
    const auto text = [&](const std::string& v) {
      const std::string first = "{\"id\":1,\"n\":5.0}", second = fmt::format("{{\"id\":2,\"n\":{}}}", v);
      return array ? "[" + first + ",\n" + second + "]" : first + "\n" + second + "\n";
    };
    StageOrder order = Extract(ending, "a." + ending);
    std::get<ExtractSpec>(order.task.stage.work).columns = {{.name = "n", .type = "bigint"}};
    Write("a." + ending, text("10.55"));
    const StageResult bad = Run(order);
    EXPECT_EQ(bad.error_class, "bad_value") << bad.error;
    EXPECT_THAT(bad.error, AllOf(HasSubstr("a." + ending), HasSubstr("record 2"), HasSubstr("'n'"), HasSubstr("'10.55'")));
    Write("a." + ending, text("1e1"));
    order.token = Token{++token_};
    const StageResult good = Run(order);
    ASSERT_TRUE(good.ok) << good.error;
    EXPECT_EQ(Rows(ending, "id"), "1,5\n2,10\n");
  }
}

TEST_F(StageTest, ContractOnExtractQuarantinesWhatThePinnedTypeWouldRound) {
  const auto contract =
      ContractSpec{.columns = {{.name = "n", .type = "bigint", .not_null = true}}, .on_violation = OnViolation::kQuarantine};
  for (const std::string ending : {"csv", "ndjson"}) {
    const bool csv = ending == "csv";
    const std::string file = "a." + ending;
    Write(file, csv ? "id,n,d\n1,10,2020-01-01\n" : "{\"id\":1,\"n\":10,\"d\":\"2020-01-01\"}\n");
    StageOrder day1 = Extract(ending, file);
    day1.task.stage.contract = contract;
    const std::vector<ColumnSpec> declared = {
        {.name = "id", .type = "bigint"}, {.name = "n", .type = "bigint"}, {.name = "d", .type = "date"}};
    if (!csv) std::get<ExtractSpec>(day1.task.stage.work).columns = declared;
    ASSERT_TRUE(Run(day1).ok);
    // A rounding value, one that is no number, null, and a row that has a bad date besides (only CSV has rejects).
    Write(file,
          csv ? "id,n,d\n1,7,2020-01-01\n2,10.55,2020-01-01\n3,two,2020-01-01\n4,,2020-01-01\n5,1.5,nodate\n6,8,2020-01-02\n"
              : "{\"id\":1,\"n\":7,\"d\":\"2020-01-01\"}\n{\"id\":2,\"n\":10.55,\"d\":\"2020-01-01\"}\n"
                "{\"id\":3,\"n\":\"two\",\"d\":\"2020-01-01\"}\n{\"id\":4,\"d\":\"2020-01-01\"}\n"
                "{\"id\":5,\"n\":1.5,\"d\":\"2020-01-01\"}\n{\"id\":6,\"n\":8,\"d\":\"2020-01-02\"}\n");
    StageOrder day2 = Extract(ending, file, "r2");
    day2.task.stage.contract = contract;
    if (!csv) std::get<ExtractSpec>(day2.task.stage.work).columns = declared;
    const StageResult result = Run(day2);
    ASSERT_TRUE(result.ok) << ending << result.error;
    EXPECT_EQ(result.rows.read, 6) << ending;
    EXPECT_EQ(result.rows.loaded, 2) << ending;
    EXPECT_EQ(result.rows.quarantined, 4) << ending;
    EXPECT_EQ(Rows(ending, "id", "r2"), "1,7,2020-01-01\n6,8,2020-01-02\n");
    auto db = duck::Database::Open({});
    auto bad = db->Connect()->Query(
        fmt::format("SELECT reason FROM '{}' WHERE contains(reason, '10.55')", (root_ / "lake" / result.quarantine).string()));
    ASSERT_TRUE(bad) << bad.error().message;
    ASSERT_EQ(bad->rows.size(), 1u);
    EXPECT_EQ(bad->Text(), "n is not a bigint: 10.55");
  }
}

TEST_F(StageTest, SchemaDriftIsAnErrorWithADiff) {
  Write("a.csv", "id,name\n1,x\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  Write("a.csv", "id,title\n1,x\n");
  const StageResult result = Run(Extract("a", "a.csv", "r2"));
  EXPECT_EQ(result.error_class, "schema_drift");
  EXPECT_THAT(result.error, AllOf(HasSubstr("missing: name"), HasSubstr("new: title")));
  Write("a.csv", "name,id\nx,1\n");
  EXPECT_THAT(Run(Extract("a", "a.csv", "r3")).error, HasSubstr("another order"));
  MakeFile(fmt::format("COPY (select 1::integer as id) TO '{}' (format parquet)", Src("b.parquet")));
  ASSERT_TRUE(Run(Extract("b", "b.parquet")).ok);
  MakeFile(fmt::format("COPY (select 1.5::double as id) TO '{}' (format parquet)", Src("b.parquet")));
  EXPECT_THAT(Run(Extract("b", "b.parquet", "r2")).error, HasSubstr("id: double, was integer"));
}

TEST_F(StageTest, AChangedSourceIsFoundByItsReader) {
  Write("a.csv", "id\n1\n2\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  fs::last_write_time(Src("a.csv"), fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_TRUE(Run(Transform("same", "select * from a", {"a"})).ok) << "touched, but the same bytes";
  Write("a.csv", "id\n1\n3\n");
  const StageResult result = Run(Transform("t", "select * from a", {"a"}));
  EXPECT_EQ(result.error_class, "source_changed");
  EXPECT_THAT(result.error, HasSubstr("a.csv"));
}

TEST_F(StageTest, CopyWritesParquetIntoTheLake) {
  Write("a.csv", "id\n1\n2\n");
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).copy = true;
  ASSERT_TRUE(Run(order).ok);
  fs::remove(Src("a.csv"));
  EXPECT_EQ(Rows("a", "id"), "1\n2\n");
}

TEST_F(StageTest, AFlippedBitInALakeFileIsNamedAndNothingIsMadeOfIt) {
  std::string rows = "id,name\n";
  for (int i = 0; i < 300; ++i) rows += fmt::format("{},name {}\n", i, i * 7);
  Write("a.csv", rows);
  StageOrder order = Extract("a", "a.csv");
  std::get<ExtractSpec>(order.task.stage.work).copy = true;
  ASSERT_TRUE(Run(order).ok);
  const std::string lake = (root_ / "lake").string();
  const auto manifest = LoadManifest(lake, kDefaultOrg, "p", {.stage = "a", .effect = Effect("a", "r1")});
  ASSERT_TRUE(manifest);
  const std::string path = lake + "/" + manifest->files.at(0).path;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto flip = [&](std::uint64_t bit) {
    file.seekg(static_cast<std::streamoff>(bit / 8));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(bit / 8));
    file.put(static_cast<char>(byte ^ 1 << bit % 8)).flush();
  };
  SeededRandom random(26);
  for (int trial = 0; trial < 1000; ++trial) {
    const std::uint64_t bit = random.Below(fs::file_size(path) * 8);
    flip(bit);
    const auto sound = VerifyLake(*manifest, lake);
    ASSERT_FALSE(sound) << "bit " << bit;
    ASSERT_EQ(sound.error().code, ErrorCode::kCorrupt);
    ASSERT_THAT(sound.error().message, HasSubstr(path));
    flip(bit);
  }
  ASSERT_TRUE(VerifyLake(*manifest, lake));

  flip(8 * fs::file_size(path) / 3);
  StageOrder load = Order("l");
  load.task.stage.work = LoadSpec{.from = "a", .to = "file", .path = (root_ / "out.csv").string(), .mode = LoadMode::kReplace};
  load.task.inputs = {{.stage = "a", .effect = Effect("a", "r1")}};
  for (const StageOrder& reader : {Transform("t", "select count(*) as n from a", {"a"}), load}) {
    const StageResult result = Run(reader);
    EXPECT_EQ(result.error_class, "corrupt") << result.error;
    EXPECT_FALSE(result.retryable);
    EXPECT_THAT(result.error, HasSubstr(path + " is damaged: SHA-256 "));
  }
  EXPECT_EQ(CountFiles("t", "manifests"), 0);
  EXPECT_FALSE(fs::exists(root_ / "out.csv"));
  fs::resize_file(path, fs::file_size(path) - 1);
  EXPECT_THAT(Run(Transform("t", "select * from a", {"a"})).error,
              HasSubstr(fmt::format("is damaged: {} bytes, published with", fs::file_size(path))));
}

TEST_F(StageTest, TransformBindsParametersAndKeepsWideSums) {
  Write("a.csv", "id,day\n1,2020-01-01\n2,2020-01-02\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  StageOrder order =
      Transform("t", "select sum(id) as total, max($label) as l, $n + 1 as n from a where day >= $since; -- done", {"a"});
  order.task.params = {{.name = "since", .type = "date", .value = "2020-01-02"},
                       {.name = "label", .type = "text", .value = "it's; --"},
                       {.name = "n", .type = "bigint", .value = "41"},
                       {.name = "unused", .type = "text", .value = ""}};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(Rows("t", "total"), "2,it's; --,42\n");
  EXPECT_EQ(result.input_rows, 2);
  EXPECT_EQ(result.rows.read, 1);
}

TEST_F(StageTest, TransformOfNoRowsIsADataset) {
  ASSERT_TRUE(Run(Transform("t", "select 1 as a where false", {})).ok);
  EXPECT_EQ(Rows("t", "a"), "");
}

TEST_F(StageTest, OnlyOneSelectRuns) {
  for (const char* sql : {"drop table x", "select 1; select 2", "copy (select 1) to 'x.csv'", "select 1) to 'x.csv' --",
                          "attach 'x.db'", "set threads = 1"}) {
    EXPECT_THAT(Run(Transform("t", sql, {})).error_class, ::testing::AnyOf("sql_error", "permission_denied")) << sql;
  }
}

TEST_F(StageTest, AContractDoesNotRoundTextIntoANumber) {
  StageOrder order =
      Transform("t", "SELECT * FROM (VALUES ('1', '7', '1.25'), ('2', '10.55', '1.0'), ('3', '1e2', '1.255')) v(id, n, d)", {});
  order.task.stage.contract = ContractSpec{.columns = {{.name = "n", .type = "bigint"}, {.name = "d", .type = "decimal(6,2)"}},
                                           .on_violation = OnViolation::kQuarantine};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.read, 3);
  EXPECT_EQ(result.rows.loaded, 1);
  EXPECT_EQ(result.rows.quarantined, 2);
  EXPECT_EQ(Rows("t", "id"), "1,7,1.25\n");
}

TEST_F(StageTest, AContractDoesNotRoundJsonIntoANumber) {
  Write("a.ndjson", "{\"id\":1,\"n\":10}\n{\"id\":2,\"n\":10.55}\n");
  StageOrder order = Extract("a", "a.ndjson");
  order.task.stage.contract =
      ContractSpec{.columns = {{.name = "n", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.loaded, 1);
  EXPECT_EQ(result.rows.quarantined, 1);
}

TEST_F(StageTest, ContractModes) {
  const std::string sql = "select * from (values (1, '5', 1.0), (null, '6', 2.0), (3, 'x', 3.0), (4, '8', 4.5)) t(id, n, d)";
  ContractSpec contract{.columns = {{.name = "id", .type = "integer", .not_null = true},
                                    {.name = "n", .type = "bigint"},
                                    {.name = "d", .type = "bigint"}},
                        .on_violation = OnViolation::kFail};
  StageOrder order = Transform("t", sql, {});
  order.task.stage.contract = contract;
  StageResult result = Run(order);
  EXPECT_EQ(result.error_class, "contract_violation");
  EXPECT_THAT(result.error, AllOf(HasSubstr("3 rows"), HasSubstr("id is null"), HasSubstr("n is not a bigint: x"),
                                  HasSubstr("d is not a bigint: 4.5")));
  EXPECT_EQ(CountFiles("t", "data"), 0);
  order.task.stage.contract->on_violation = OnViolation::kQuarantine;
  result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows, (RowCounts{.read = 4, .loaded = 1, .quarantined = 3}));
  EXPECT_EQ(Rows("t", "id"), "1,5,1\n");
  EXPECT_EQ(CountFiles("t", "data"), 2);
  order = Transform("u", sql, {});
  order.task.stage.contract = contract;
  order.task.stage.contract->on_violation = OnViolation::kDrop;
  result = Run(order);
  EXPECT_EQ(result.rows, (RowCounts{.read = 4, .loaded = 1, .filtered = 3}));
  order.task.stage.contract->columns = {{.name = "nope", .type = "date"}};
  order.task.effect += "x";
  EXPECT_THAT(Run(order).error, HasSubstr("'nope'"));
}

TEST_F(StageTest, EachCheckHoldsOrFails) {
  const std::string sql = "select i as id, i % 2 as odd, nullif(i, 2) as n from range(4) t(i)";
  struct Case {
    CheckSpec check;
    std::string error;  // empty: holds
  };
  const std::vector<Case> cases = {
      {{.kind = CheckKind::kNotNull, .columns = {"id", "odd"}}, ""},
      {{.kind = CheckKind::kNotNull, .columns = {"n"}}, "not_null(n) does not hold for 1 rows"},
      {{.kind = CheckKind::kUnique, .columns = {"id"}}, ""},
      {{.kind = CheckKind::kUnique, .columns = {"odd"}}, "unique(odd) does not hold for 2 keys"},
      {{.kind = CheckKind::kAcceptedValues, .columns = {"odd"}, .values = {"0", "1"}}, ""},
      {{.kind = CheckKind::kAcceptedValues, .columns = {"id"}, .values = {"0", "1"}}, "does not hold for 2 rows"},
      {{.kind = CheckKind::kExpression, .expression = "id >= 0 -- all"}, ""},
      {{.kind = CheckKind::kExpression, .expression = "n > 0"}, "expression(n > 0) does not hold for 2 rows"},
      {{.kind = CheckKind::kRowCount, .min_rows = 4, .max_rows = 4}, ""},
      {{.kind = CheckKind::kRowCount, .min_rows = 5}, "4 rows"},
  };
  int number = 0;
  for (const auto& c : cases) {
    const std::string stage = fmt::format("t{}", number++);
    StageOrder order = Transform(stage, sql, {});
    order.task.stage.checks = {c.check};
    const StageResult result = Run(order);
    EXPECT_EQ(result.error_class, c.error.empty() ? "" : "check_failed") << stage << " " << result.error;
    EXPECT_THAT(result.error, HasSubstr(c.error));
    EXPECT_EQ(CountFiles(stage, "manifests"), c.error.empty() ? 1 : 0);
    EXPECT_EQ(CountFiles(stage, "data"), c.error.empty() ? 1 : 0);
  }
}

TEST_F(StageTest, ARetryReportsWhatIsPublished) {
  const StageResult first = Run(Transform("t", "select 1 as a", {}));
  const StageResult second = Run(Transform("t", "select broken", {}));
  ASSERT_TRUE(second.ok) << second.error;
  EXPECT_TRUE(second.already_applied);
  EXPECT_EQ(second.rows, first.rows);
  EXPECT_EQ(CountFiles("t", "data"), 1);
}

TEST_F(StageTest, OfRacingAttemptsExactlyOnePublishes) {
  constexpr int kAttempts = 4;
  std::vector<StageOrder> orders;
  for (int i = 0; i < kAttempts; ++i) orders.push_back(Transform("t", "select count(*) as n from range(2000000)", {}));
  std::vector<StageResult> results(kAttempts);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < kAttempts; ++i) threads.emplace_back([&, i] { results[i] = Run(orders[i]); });
  }
  int published = 0;
  for (const auto& result : results) {
    EXPECT_TRUE(result.ok) << result.error;
    published += result.already_applied ? 0 : 1;
  }
  EXPECT_EQ(published, 1);
  EXPECT_EQ(CountFiles("t", "manifests"), 1);
  EXPECT_EQ(CountFiles("t", "data"), 1);
  EXPECT_EQ(Rows("t", "n"), "2000000\n");
}

TEST_F(StageTest, KilledInTheMiddleLeavesNoManifestAndTheRetryWorks) {
  {
    stagetest::StageProcess process(kBinary, {});
    ASSERT_TRUE(process.Receive());
    process.Send(ToJson(Transform("t", "select i as n from range(100000000000) t(i)", {})));
    for (int i = 0; i < 1000 && CountFiles("t", "data") == 0; ++i) ::usleep(10'000);
    ASSERT_EQ(CountFiles("t", "data"), 1) << "it never began to write";
    process.Kill();
    EXPECT_EQ(process.Finish().signal, SIGKILL);
  }
  EXPECT_EQ(CountFiles("t", "manifests"), 0);
  EXPECT_TRUE(Run(Transform("t", "select 1 as n", {})).ok);
  EXPECT_EQ(Rows("t", "n"), "1\n");
}

TEST_F(StageTest, TenMillionRowsStayWithinMemory) {
  StageOrder order = Transform("t", "select i, hash(i) as h, 'row ' || i as s from range(10000000) t(i) order by h", {});
  order.memory_bytes_max = 512u << 20;
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows.loaded, 10'000'000);
  rusage usage{};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  EXPECT_LT(usage.ru_maxrss, 900 * 1024) << "KiB";
}

TEST_F(StageTest, AnExpressionThatIgnoresTheMemoryLimitFailsCleanly) {
  StageOrder order = Transform("t", "select list_sum(range(2000000000)) as s", {});
  order.memory_bytes_max = 256u << 20;
  EXPECT_EQ(Run(order).error_class, "resource_exhausted");
}

TEST_F(StageTest, TheEngineRefusesOtherFiles) {
  StageOrder order = Transform("t", "select * from read_text('/etc/passwd')", {});
  order.sandbox = false;  // the engine's settings alone
  EXPECT_EQ(Run(order).error_class, "permission_denied");
  order.task.stage.work = TransformSpec{.sql = "select * from glob('/etc/*')"};
  EXPECT_NE(Run(order).error_class, "");
}

TEST_F(StageTest, TheKernelRefusesWhatASymlinkLeadsTo) {
  fs::create_symlink("/etc/passwd", Src("a.csv"));  // the engine is allowed to open exactly this name
  const StageResult walled = Run(Extract("a", "a.csv"));
  EXPECT_FALSE(walled.ok);
  EXPECT_EQ(CountFiles("a", "manifests"), 0);
}

TEST_F(StageTest, AnOrderThatCannotBeReadIsAResult) {
  stagetest::StageProcess process(kBinary, {});
  ASSERT_TRUE(process.Receive());
  process.Send("{\"nonsense\":1}");
  EXPECT_EQ(ResultOf(process.Finish()).error_class, "invalid_order");
}

TEST_F(StageTest, CheckFindsAMissingColumnAndItsPlace) {
  Write("a.csv", "id,name\n1,x\n");
  Pipeline pipeline;
  pipeline.name = "p";
  StageSpec a;
  a.name = "a";
  a.work = ExtractSpec{.paths = {"a.csv"}};
  StageSpec t;
  t.name = "t";
  t.work = TransformSpec{.sql = "select id,\n       nmae\nfrom a"};
  t.inputs = t.depends_on = {"a"};
  StageSpec after = t;
  after.name = "after";
  after.work = TransformSpec{.sql = "select * from t"};
  after.inputs = after.depends_on = {"t"};
  StageSpec l;
  l.name = "l";
  l.work = LoadSpec{.from = "a", .to = "w", .table = "x", .mode = LoadMode::kMerge, .key = {"nokey"}};
  l.inputs = l.depends_on = {"a"};
  pipeline.stages = {a, t, after, l};
  stagetest::StageProcess process(kBinary, {"--check"});
  process.Send(
      fmt::format(R"({{"pipeline":{},"base_dir":"{}","lake":"{}"}})", ToJson(pipeline), Src(""), (root_ / "lake").string()));
  const stagetest::StageRun run = process.Finish();
  ASSERT_EQ(run.frames.size(), 1u);
  const std::string& answer = run.frames.front();
  EXPECT_THAT(answer, HasSubstr(R"("stage":"t","code":"sql_error")"));
  EXPECT_THAT(answer, HasSubstr(R"("line":2,"column":8)"));
  EXPECT_THAT(answer, HasSubstr("did you mean 'name'?"));
  EXPECT_THAT(answer, HasSubstr("no column 'nokey'"));
  EXPECT_THAT(
      answer,
      HasSubstr(
          R"({"stage":"a","columns":[{"name":"id","type":"bigint","not_null":false},{"name":"name","type":"varchar","not_null":false}]})"));
  EXPECT_THAT(answer, ::testing::Not(HasSubstr(R"("stage":"after")"))) << "one mistake, one message";
}

TEST_F(StageTest, CheckReportsAMissingFileAlsoWhenTheSchemaIsPinned) {
  Write("a.csv", "id,name\n1,x\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  fs::remove(Src("a.csv"));
  Pipeline pipeline;
  pipeline.name = "p";
  StageSpec a;
  a.name = "a";
  a.work = ExtractSpec{.paths = {"a.csv"}, .options = {{"delimiter", ","}}};
  pipeline.stages = {a};
  const auto check = [&] {
    stagetest::StageProcess process(kBinary, {"--check"});
    process.Send(
        fmt::format(R"({{"pipeline":{},"base_dir":"{}","lake":"{}"}})", ToJson(pipeline), Src(""), (root_ / "lake").string()));
    const stagetest::StageRun run = process.Finish();
    return run.frames.empty() ? std::string() : run.frames.front();
  };
  const std::string missing = check();
  EXPECT_THAT(missing, AllOf(HasSubstr(R"("stage":"a","code":"missing_file")"), HasSubstr("'a.csv'")));
  EXPECT_THAT(missing, ::testing::Not(HasSubstr("invalid_stage"))) << "one mistake, one message";
  Write("a.csv", "id,name\n1,x\n");
  EXPECT_THAT(check(), HasSubstr(R"({"problems":[],)"));
}

std::string CacheDir() {
  if (const char* cache = std::getenv("MILLRACE_CACHE")) return cache;
  const char* home = std::getenv("HOME");
  return fmt::format("{}/.cache/millrace", home == nullptr ? "" : home);
}

TEST_F(StageTest, TheDemoTransformEqualsPlainDuckDb) {
  const std::string data = CacheDir() + "/vega-datasets-3.2.1";
  if (!fs::exists(data)) {
    if (std::getenv("CI") != nullptr) FAIL() << "missing " << data << ": run ops/setup";
    GTEST_SKIP() << "missing " << data << ": run ops/setup";
  }
  const auto sql = [](const std::string& flights, const std::string& airports, const std::string& since) {
    return fmt::format(
        "select f.origin, a.city, cast(f.date as date) as day, count(*) as flights, avg(f.delay) as mean_delay, "
        "quantile_cont(f.delay, 0.95) as p95_delay from {} f join {} a on a.iata = f.origin "
        "where f.date >= {} and f.delay between -60 and 1440 group by all",
        flights, airports, since);
  };
  ASSERT_TRUE(Run(Extract("flights", data + "/flights-*.parquet")).ok);
  const StageResult airports = Run(Extract("airports", data + "/airports.csv"));
  ASSERT_TRUE(airports.ok) << airports.error;
  StageOrder order = Transform("t", sql("flights", "airports", "$since"), {"flights", "airports"});
  order.task.params = {{.name = "since", .type = "date", .value = "2001-02-01"}};
  order.task.stage.contract = ContractSpec{
      .columns = {{.name = "day", .type = "date", .not_null = true}, {.name = "flights", .type = "bigint", .not_null = true}},
      .on_violation = OnViolation::kQuarantine};
  order.task.stage.checks = {{.kind = CheckKind::kUnique, .columns = {"origin", "day"}}};
  const auto start = std::chrono::steady_clock::now();
  const StageResult result = Run(order);
  const auto took = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(result.ok) << result.error;
  auto db = duck::Database::Open({.threads = 2});
  auto connection = db->Connect();
  const auto plain_start = std::chrono::steady_clock::now();
  ASSERT_TRUE(connection->Execute(fmt::format("create temp table plain as {}",
                                              sql(fmt::format("read_parquet('{}/flights-3m.parquet')", data),
                                                  fmt::format("read_csv('{}/airports.csv')", data), "date '2001-02-01'"))));
  const auto plain_took = std::chrono::steady_clock::now() - plain_start;
  auto manifest = LoadManifest(order.lake, kDefaultOrg, "p", {.stage = "t", .effect = Effect("t", "r1")});
  const std::string ours = *InputSql(*manifest, order.lake);
  const auto difference = connection->Query(
      fmt::format("select (select count(*) from plain), (select count(*) from (select * from plain except all {})), "
                  "(select count(*) from ({} except all select * from plain))",
                  ours, ours));
  ASSERT_TRUE(difference) << difference.error().message;
  EXPECT_GT(difference->Int(0), 1000);
  EXPECT_EQ(difference->Int(0), result.rows.loaded);
  EXPECT_EQ(difference->Int(1), 0);
  EXPECT_EQ(difference->Int(2), 0);
  RecordProperty("stage_ms", static_cast<int>(took / std::chrono::milliseconds(1)));
  RecordProperty("plain_ms", static_cast<int>(plain_took / std::chrono::milliseconds(1)));
}

}  // namespace
}  // namespace millrace
