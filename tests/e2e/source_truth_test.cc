// What a source says is what arrives, or the stage fails: every case here once ended in success with rows lost or changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <chrono>
#include <string>

#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "tests/support/stage_fixture.h"
#include "worker/stage/extract/csv_diagnosis.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Numbers(int rows) {
  std::string text = "id\n";
  for (int i = 0; i < rows; ++i) text += fmt::format("{}\n", i);
  return text;
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(::deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(::deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  ZSTD_CCtx* context = ::ZSTD_createCCtx();
  ::ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  std::string out(::ZSTD_compressBound(text.size()), '\0');
  out.resize(::ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
  ::ZSTD_freeCCtx(context);
  return out;
}

class SourceTruthTest : public StageTest {
 protected:
  StageOrder Declared(const std::string& stage, const std::string& file, std::vector<ColumnSpec> columns,
                      const std::string& run = "r1") {
    StageOrder order = Extract(stage, file, run);
    std::get<ExtractSpec>(order.task.stage.work).columns = std::move(columns);
    return order;
  }
  std::string Quarantined(const StageResult& result, const std::string& column) {
    auto db = duck::Database::Open({});
    auto table = db->Connect()->Query(
        fmt::format("SELECT {} FROM '{}' ORDER BY 1", column, (root_ / "lake" / result.quarantine).string()));
    if (!table) return table.error().message;
    std::string out;
    for (std::size_t r = 0; r < table->rows.size(); ++r) out += table->Text(0, r) + "\n";
    return out;
  }
  std::string Check(const Pipeline& pipeline) {
    stagetest::StageProcess process(kBinary, {"--check"});
    process.Send(
        fmt::format(R"({{"pipeline":{},"base_dir":"{}","lake":"{}"}})", ToJson(pipeline), Src(""), (root_ / "lake").string()));
    const stagetest::StageRun run = process.Finish();
    return run.frames.empty() ? std::string() : run.frames.front();
  }
};

TEST_F(SourceTruthTest, APackedFileIsWholeOrRefused) {
  const std::string text = Numbers(200'000);
  int n = 0;
  for (const bool gzip : {true, false}) {
    const std::string whole = gzip ? Gzip(text) : Zstd(text), ending = gzip ? ".csv.gz" : ".csv.zst";
    const auto run = [&](const std::string& bytes) {
      const std::string stage = fmt::format("s{}", n++);
      Write(stage + ending, bytes);
      return Run(Extract(stage, stage + ending));
    };
    for (const std::size_t left : {whole.size() / 2, whole.size() - 1, std::size_t{5}}) {
      const StageResult cut = run(whole.substr(0, left));
      EXPECT_EQ(cut.error_class, "source_malformed") << ending << " " << left << " " << cut.error;
      EXPECT_THAT(cut.error, HasSubstr(fmt::format("{} is cut off at byte {}", ending, left)));
    }
    std::string wrong = whole;
    wrong[wrong.size() - (gzip ? 8 : 4)] = static_cast<char>(wrong[wrong.size() - (gzip ? 8 : 4)] ^ 1);  // its checksum
    const StageResult changed = run(wrong);
    EXPECT_EQ(changed.error_class, "source_malformed") << changed.error;
    EXPECT_THAT(changed.error, HasSubstr("fails its checksum"));
    EXPECT_EQ(run(whole + std::string(512, '\0')).error_class, "source_malformed") << "the engine does not read padding";
    const StageResult two = run(whole + (gzip ? Gzip("7\n8\n") : Zstd("7\n8\n")));
    ASSERT_TRUE(two.ok) << two.error;
    EXPECT_EQ(two.rows.loaded, 200'002) << "several members are one file";
    EXPECT_EQ(run(whole).rows.loaded, 200'000);
  }
}

TEST_F(SourceTruthTest, ASourceThatChangesWhileItIsReadPublishesNothing) {
  Write("a.csv", Numbers(1000));
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  StageOrder order = Transform("t", "select count(*) as n from a", {"a"});
  stagetest::StageProcess process(kBinary, {}, {"MILLRACE_FAILPOINTS=stage.data_written=sleep(2500)"});
  ASSERT_TRUE(process.Receive());
  process.Send(ToJson(order));
  for (int i = 0; i < 1000 && CountFiles("t", "data") == 0; ++i) ::usleep(5'000);
  ::usleep(300'000);
  Write("a.csv", Numbers(999) + "9\n");
  const StageResult result = ResultOf(process.Finish());
  EXPECT_EQ(result.error_class, "source_changed") << result.error;
  EXPECT_THAT(result.error, HasSubstr("a.csv"));
  EXPECT_EQ(CountFiles("t", "manifests"), 0);
}

TEST_F(SourceTruthTest, ASourceThatChangesWhileItIsLoadedCommitsNothing) {
  Write("a.csv", Numbers(1000));
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  StageOrder order = Order("l");
  order.task.stage.work = LoadSpec{.from = "a", .to = "file", .path = (root_ / "out.csv").string(), .mode = LoadMode::kReplace};
  order.task.inputs = {{.stage = "a", .effect = Effect("a", "r1")}};
  {
    stagetest::StageProcess process(kBinary, {}, {"MILLRACE_FAILPOINTS=load.after_staging=sleep(2500)"});
    ASSERT_TRUE(process.Receive());
    process.Send(ToJson(order));
    for (int i = 0; i < 1000 && !fs::exists(root_ / "out.csv.millrace"); ++i) ::usleep(5'000);
    ::usleep(800'000);
    Write("a.csv", Numbers(999) + "9\n");
    const StageResult result = ResultOf(process.Finish());
    EXPECT_EQ(result.error_class, "source_changed") << result.error;
    EXPECT_TRUE(result.retryable);
    EXPECT_FALSE(fs::exists(root_ / "out.csv"));
  }
  order.token = Token{++token_};
  const StageResult again = Run(order);
  EXPECT_EQ(again.error_class, "source_changed") << "it is another file for good: " << again.error;
  EXPECT_FALSE(again.retryable);
  Write("a.csv", Numbers(1000));
  order.token = Token{++token_};
  const StageResult back = Run(order);
  ASSERT_TRUE(back.ok) << back.error;
  EXPECT_EQ(back.rows.loaded, 1000);
  fs::remove(Src("a.csv"));
  order.token = Token{++token_};
  EXPECT_TRUE(Run(order).already_applied) << "what is loaded needs its source no more";
}

TEST_F(SourceTruthTest, AnOffsetOrATimeOfDayIsNotDropped) {
  const std::string rows =
      "id,t\n1,2026-01-01 10:00:00+02:00\n2,2026-01-01T10:00:00-05:00\n3,2026-01-01 10:00:00\n"
      "4,2026-01-01 10:00:00Z\n5,2026-01-01 10:00:00+00\n";
  Write("a.csv", rows);
  const StageResult offset = Run(Declared("a", "a.csv", {{.name = "t", .type = "timestamp"}}));
  EXPECT_EQ(offset.error_class, "bad_value");
  EXPECT_THAT(offset.error,
              AllOf(HasSubstr("a.csv:2"), HasSubstr("'t'"), HasSubstr("declare timestamptz"), HasSubstr("2 such")));
  const StageResult kept = Run(Declared("k", "a.csv", {{.name = "t", .type = "timestamptz"}}));
  ASSERT_TRUE(kept.ok) << kept.error;
  ASSERT_TRUE(Run(Transform("u", "select id, epoch(t)::bigint as s from k where id < 4", {"k"})).ok);
  EXPECT_EQ(Rows("u", "id"), "1,1767254400\n2,1767279600\n3,1767261600\n");

  StageOrder aside = Declared("q", "a.csv", {{.name = "t", .type = "timestamp"}});
  aside.task.stage.contract =
      ContractSpec{.columns = {{.name = "id", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult set = Run(aside);
  ASSERT_TRUE(set.ok) << set.error;
  EXPECT_EQ(set.rows, (RowCounts{.read = 5, .loaded = 3, .quarantined = 2}));
  EXPECT_THAT(Quarantined(set, "reason"), HasSubstr("declare timestamptz"));

  Write("n.ndjson", "{\"t\":\"2026-01-01T10:00:00+02:00\"}\n{\"t\":\"2026-01-01T10:00:00\"}\n");
  EXPECT_EQ(Run(Declared("n", "n.ndjson", {{.name = "t", .type = "timestamp"}})).error_class, "bad_value");
  ASSERT_TRUE(Run(Extract("w", "n.ndjson")).ok) << "undeclared, such a text stays one";
  EXPECT_EQ(Types("w"), "t varchar");

  Write("d.csv", "d\n2026-01-01 23:30:00\n2026-01-02\n2026-01-03 00:00:00\n");
  const StageResult day = Run(Declared("d", "d.csv", {{.name = "d", .type = "date"}}));
  EXPECT_EQ(day.error_class, "bad_value");
  EXPECT_THAT(day.error, AllOf(HasSubstr("23:30:00"), HasSubstr("declare timestamp"), Not(HasSubstr("such"))));

  StageOrder contract = Transform("c",
                                  "select * from (values ('2026-01-01 10:00:00+02:00', '2026-01-01 23:30:00'), "
                                  "('2026-01-01 10:00:00', '2026-01-01')) v(t, d)",
                                  {});
  contract.task.stage.contract =
      ContractSpec{.columns = {{.name = "t", .type = "timestamp"}}, .on_violation = OnViolation::kFail};
  EXPECT_THAT(Run(contract).error, AllOf(HasSubstr("1 rows"), HasSubstr("declare timestamptz")));
  contract.task.stage.contract->columns = {{.name = "d", .type = "date"}};
  EXPECT_EQ(Run(contract).error_class, "contract_violation");
}

TEST_F(SourceTruthTest, OwnDateFormatsAreSetAsideWithTheSameParser) {
  Write("a.csv", "id,d,n\n1,31/12/2025,1\n2,01/02/2026,1.5\n3,nodate,2\n");
  StageOrder order = Declared("a", "a.csv", {{.name = "d", .type = "date"}, {.name = "n", .type = "bigint"}});
  std::get<ExtractSpec>(order.task.stage.work).options = {{"dateformat", "%d/%m/%Y"}};
  order.task.stage.contract =
      ContractSpec{.columns = {{.name = "n", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.rows, (RowCounts{.read = 3, .loaded = 1, .quarantined = 2}));
  EXPECT_EQ(Rows("a", "id"), "1,2025-12-31,1\n");
}

TEST_F(SourceTruthTest, DatesOfOtherFormsAreGuessedAlsoWhenEveryColumnIsDeclared) {
  const std::vector<ColumnSpec> types{
      {.name = "id", .type = "bigint"}, {.name = "d", .type = "date"}, {.name = "t", .type = "timestamp"}};
  Write("a.csv", "id,d,t\n1,31/12/2025,2025-12-31 10:00:00\n2,01/02/2026,\n");
  Write("b.csv", "id,d,t\n1,2025-12-31,2025-12-31T10:00\n2,2026-02-01,\n");
  const std::string rows = "1,2025-12-31,2025-12-31 10:00:00\n2,2026-02-01,null\n";
  for (const std::string name : {"a", "b"}) {
    const StageResult result = Run(Declared(name, name + ".csv", types));
    ASSERT_TRUE(result.ok) << result.error;
    EXPECT_EQ(Rows(name, "id"), rows);
  }
  Write("c.csv", "id,d,t\n1,1-10-24,\n2,2-12-24,\n");
  const StageResult short_year = Run(Declared("c", "c.csv", types));
  ASSERT_TRUE(short_year.ok) << short_year.error;
  EXPECT_EQ(Rows("c", "id"), "1,2024-10-01,null\n2,2024-12-02,null\n");
  Write("b.csv", "id,d,t\n1,2024-01-02 junk,\n");
  EXPECT_EQ(Run(Declared("b", "b.csv", types, "r2")).error_class, "bad_value") << "the form of the first file is pinned";
  Write("e.csv", "id,d,t,s\n1,2024-01-02,,caf\xe9\n");
  std::vector<ColumnSpec> with_text = types;
  with_text.push_back({.name = "s", .type = "varchar"});
  StageOrder latin = Declared("e", "e.csv", with_text);
  latin.task.stage.contract = ContractSpec{.columns = {{.name = "id", .type = "bigint"}}, .on_violation = OnViolation::kDrop};
  const StageResult refused = Run(latin);
  EXPECT_EQ(refused.error_class, "source_malformed");
  EXPECT_THAT(refused.error, HasSubstr("is not UTF-8"));
}

TEST_F(SourceTruthTest, JsonKeysThatDifferInCaseAreNamed) {
  Write("a.ndjson", "{\"a\":1,\"A\":2}\n");
  const StageResult both = Run(Extract("a", "a.ndjson"));
  EXPECT_EQ(both.error_class, "source_malformed");
  EXPECT_THAT(both.error, AllOf(HasSubstr("'a'"), HasSubstr("'A'")));
  Write("b.ndjson", "{\"Name\":\"x\"}\n{\"name\":\"y\"}\n");
  EXPECT_EQ(Run(Extract("b", "b.ndjson")).error_class, "source_malformed");
  Write("c.json", "[{\"name\":\"x\",\"name_1\":1}]");
  EXPECT_TRUE(Run(Extract("c", "c.json")).ok) << "such a name alone is none of the engine's";
  Write("c.json", "[{\"name\":\"x\",\"name_1\":1},{\"NAME\":\"y\"}]");
  EXPECT_EQ(Run(Extract("c", "c.json", "r2")).error_class, "source_malformed") << "pinned or not";
}

TEST_F(SourceTruthTest, JsonScalarsAreTypedAndNestedValuesStayJson) {
  Write("a.ndjson",
        "{\"i\":1,\"f\":1.5,\"b\":true,\"s\":\"x\",\"d\":\"2026-01-01\",\"u\":\"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11\",\"o\":{"
        "\"k\":[1]},"
        "\"l\":[1],\"m\":1,\"w\":123456789012345678901}\n"
        "{\"i\":2,\"f\":2,\"b\":false,\"s\":\"y\",\"d\":\"2026-01-02\",\"u\":\"b\",\"o\":null,\"l\":[],\"m\":\"z\",\"w\":1}\n");
  const StageResult result = Run(Extract("a", "a.ndjson"));
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(Types("a"),
            "i bigint, f double, b boolean, s varchar, d date, u varchar, o json, l json, m varchar, w decimal(38,0)");
  EXPECT_THAT(Rows("a", "i"), HasSubstr("123456789012345678901\n"));
}

TEST_F(SourceTruthTest, LongWholeNumbersStayExact) {
  Write("a.csv", "id,x\n12345678901234567890,1.5\n12345678901234567891,0.1234567890123456789\n");
  ASSERT_TRUE(Run(Extract("a", "a.csv")).ok);
  EXPECT_EQ(Types("a"), "id decimal(38,0), x double");
  EXPECT_THAT(Rows("a", "id"), AllOf(HasSubstr("12345678901234567890,"), HasSubstr("12345678901234567891,")));
  Write("b.csv", "id\n12345678901234567891\n1.5\n");
  const StageResult mixed = Run(Extract("b", "b.csv"));
  EXPECT_EQ(mixed.error_class, "source_malformed") << mixed.error;
  EXPECT_THAT(mixed.error, HasSubstr("declare columns: { id: text }"));
  EXPECT_TRUE(Run(Declared("c", "b.csv", {{.name = "id", .type = "double"}})).ok) << "who says double gets one";
  Write("d.csv", "id\n1.5\n");
  ASSERT_TRUE(Run(Extract("d", "d.csv")).ok);
  Write("d.csv", "id\n12345678901234567891\n");
  const StageResult later = Run(Extract("d", "d.csv", "r2"));
  EXPECT_EQ(later.error_class, "bad_value");
  EXPECT_THAT(later.error, AllOf(HasSubstr("d.csv:2"), HasSubstr("'12345678901234567891'")));
}

TEST_F(SourceTruthTest, DeclaredTypesOverParquetDoNotRound) {
  MakeFile(fmt::format(
      "COPY (select * from (values (1, 10.0::double), (2, 10.55), (3, null)) v(id, amount)) TO '{}' (format parquet)",
      Src("a.parquet")));
  const StageResult bad = Run(Declared("a", "a.parquet", {{.name = "amount", .type = "bigint"}}));
  EXPECT_EQ(bad.error_class, "bad_value");
  EXPECT_THAT(bad.error, AllOf(HasSubstr("a.parquet: record 2"), HasSubstr("amount is not a bigint: 10.55")));
  StageOrder aside = Declared("q", "a.parquet", {{.name = "amount", .type = "bigint"}});
  aside.task.stage.contract =
      ContractSpec{.columns = {{.name = "id", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult set = Run(aside);
  ASSERT_TRUE(set.ok) << set.error;
  EXPECT_EQ(set.rows, (RowCounts{.read = 3, .loaded = 2, .quarantined = 1}));
  EXPECT_EQ(Rows("q", "id"), "1,10\n3,null\n");
  ASSERT_TRUE(Run(Declared("d", "a.parquet", {{.name = "amount", .type = "decimal(9,2)"}})).ok);
  EXPECT_EQ(Rows("d", "id"), "1,10.00\n2,10.55\n3,null\n");
}

TEST_F(SourceTruthTest, TwoStarsReachEveryDepth) {
  for (const char* folder : {"data", "data/x", "data/x/y", "data/.hidden", "else"}) fs::create_directories(Src(folder));
  for (const char* file : {"data/1.csv", "data/x/2.csv", "data/x/y/3.csv", "data/.hidden/4.csv", "else/5.csv"})
    Write(file, fmt::format("f\n{}\n", fs::path(file).stem().string()));
  fs::create_directory_symlink(Src("data"), Src("data/x/loop"));
  ASSERT_TRUE(Run(Extract("a", "data/**/*.csv")).ok);
  EXPECT_EQ(Rows("a", "f"), "1\n2\n3\n");
  ASSERT_TRUE(Run(Extract("b", "data/**/y/**/*.csv")).ok);
  EXPECT_EQ(Rows("b", "f"), "3\n");
  const StageResult part = Run(Extract("c", "data/**.csv"));
  EXPECT_THAT(part.error, HasSubstr("'**' stands alone"));
  const ParseResult parsed =
      ParsePipeline("version: 1\npipeline: p\nstages:\n  a:\n    extract: { from: file, path: data/**.csv }\n", "p.yaml");
  ASSERT_EQ(parsed.diagnostics.size(), 1u);
  EXPECT_EQ(parsed.diagnostics.front().place.line, 5);
  EXPECT_EQ(parsed.diagnostics.front().code, "bad_value");
  EXPECT_THAT(parsed.diagnostics.front().help, HasSubstr("data/**/*.csv"));
  const StageResult none = Run(Extract("d", "nowhere/*.csv"));
  EXPECT_EQ(none.error_class, "missing_file") << none.error;
  EXPECT_THAT(none.error, HasSubstr("no file matches 'nowhere/*.csv'"));
  EXPECT_EQ(Run(Extract("e", "nowhere/**/*.csv")).error_class, "missing_file");
}

TEST_F(SourceTruthTest, AQuarantinedRowKeepsAColumnNamedR) {
  StageOrder order = Transform("t", "select * from (values (1, 'x', 'kept'), (2, '5', 'fine')) v(r, n, \"row\")", {});
  order.task.stage.contract =
      ContractSpec{.columns = {{.name = "n", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult result = Run(order);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(Quarantined(result, "\"row\""), "{\"r\":1,\"n\":\"x\",\"row\":\"kept\"}\n");
  order.task.stage.contract->on_violation = OnViolation::kFail;
  order.task.effect += "x";
  EXPECT_THAT(Run(order).error, HasSubstr("{\"r\":1,\"n\":\"x\""));
}

TEST_F(SourceTruthTest, TypesThatTheLakeWouldChangeAreRefusedByRunAndCheck) {
  struct Case {
    std::string sql, words;
  };
  int n = 0;
  Pipeline pipeline;
  pipeline.name = "p";
  for (const Case& c :
       {Case{"select interval '-00:00:00.123456' as gone", "interval"}, Case{"select '10:00:00+02'::timetz as gone", "timetz"},
        Case{"select [170141183460469231731687303715884105727::hugeint] as gone", "hugeint"}}) {
    const std::string stage = fmt::format("t{}", n++);
    const StageResult result = Run(Transform(stage, c.sql, {}));
    EXPECT_EQ(result.error_class, "unsupported_type") << result.error;
    EXPECT_FALSE(result.retryable);
    EXPECT_THAT(result.error, AllOf(HasSubstr("'gone'"), HasSubstr(c.words), HasSubstr("cast it")));
    StageSpec spec;
    spec.name = stage;
    spec.work = TransformSpec{.sql = c.sql};
    pipeline.stages = {spec};
    EXPECT_THAT(Check(pipeline), HasSubstr(R"("code":"unsupported_type")")) << c.sql;
  }
  EXPECT_TRUE(Run(Transform("u", "select {'interval': 1} as a, 1::hugeint as b", {})).ok) << "a field's name is no type";
}

TEST_F(SourceTruthTest, AWonManifestRemovesWhatEarlierAttemptsLeft) {
  StageOrder killed = Transform("t", "select i as n from range(100000000000) t(i)", {});
  {
    stagetest::StageProcess process(kBinary, {});
    ASSERT_TRUE(process.Receive());
    process.Send(ToJson(killed));
    for (int i = 0; i < 1000 && CountFiles("t", "data") == 0; ++i) ::usleep(10'000);
    process.Kill();
    process.Finish();
  }
  ASSERT_EQ(CountFiles("t", "data"), 1);
  const StageOrder other = Transform("t", "select 1 as n", {}, "r2");
  ASSERT_TRUE(Run(other).ok);
  EXPECT_EQ(CountFiles("t", "data"), 2) << "of another effect: it may still run";
  ASSERT_TRUE(Run(Transform("t", "select 1 as n", {})).ok);
  EXPECT_EQ(CountFiles("t", "data"), 2);
  EXPECT_EQ(Rows("t", "n"), "1\n");
  EXPECT_EQ(Rows("t", "n", "r2"), "1\n");
}

TEST_F(SourceTruthTest, CsvMistakesAreNamedInTheOrderTheyMatter) {
  StageOrder order = Declared("a", "a.csv", {{.name = "id", .type = "bigint"}, {.name = "t", .type = "text"}});
  order.task.stage.contract =
      ContractSpec{.columns = {{.name = "id", .type = "bigint"}}, .on_violation = OnViolation::kQuarantine};
  Write("a.csv", "id,t\n1,a\n2\n3,\"open\n4,d\n");
  const StageResult quote = Run(order);
  EXPECT_EQ(quote.error_class, "source_malformed") << quote.error;
  EXPECT_THAT(quote.error, AllOf(HasSubstr("a.csv:4: a quote is never closed"), Not(HasSubstr("on_violation"))));

  Write("l.csv", "id,t\n1,a\n2," + std::string(5'000'000, 'x') + "\n");
  EXPECT_EQ(Run(Extract("l", "l.csv")).rows.loaded, 2) << "a line of 5 MB is one";
  Write("h.csv", "id,t\n1,a\n2," + std::string(20'000'000, 'x') + "\n");
  const StageResult huge = Run(Extract("h", "h.csv"));
  EXPECT_EQ(huge.error_class, "source_malformed");
  EXPECT_THAT(huge.error, HasSubstr("h.csv:3: the line is longer than 16777216 bytes"));
  EXPECT_LT(huge.error.size(), 300u);
  Write("h.ndjson", "{\"t\":\"a\"}\n{\"t\":\"" + std::string(50'000'000, 'x') + "\"}\n");
  EXPECT_THAT(Run(Extract("j", "h.ndjson")).error, HasSubstr("h.ndjson:2: the record is longer than 16777216 bytes"));
  Write("v.csv", "n\n1\n" + std::string(5'000, 'x') + "\n");
  const StageResult value = Run(Declared("v", "v.csv", {{.name = "n", .type = "bigint"}}));
  EXPECT_THAT(value.error, HasSubstr("v.csv:3"));
  EXPECT_LT(value.error.size(), 300u) << value.error;

  EXPECT_EQ(WithoutEngineAdvice("it isn't a number, which the column's type asks for, says the engine of the text \"" +
                                std::string(200, 'y') + "\" here. Try setting 'auto_detect' to true"),
            "it isn't a number, which the column's type asks for, says the engine of the text \"" + std::string(60, 'y') +
                "...\" here.");

  Write("m.ndjson", "{\"a\":1}\n{\"a\":\"x\"}\n");
  const StageResult json = Run(Declared("m", "m.ndjson", {{.name = "a", .type = "bigint"}}));
  EXPECT_EQ(json.error_class, "bad_value");
  EXPECT_THAT(json.error, Not(HasSubstr("auto_detect")));
}

TEST_F(SourceTruthTest, CsvColumnsOfOneNameAreRefused) {
  for (const std::string header : {"name,name", "name,NAME"}) {
    Write("a.csv", header + "\n1,2\n");
    const StageResult result = Run(Extract("a", "a.csv"));
    EXPECT_EQ(result.error_class, "duplicate_column") << result.error;
    EXPECT_THAT(result.error, AllOf(HasSubstr("columns 1 and 2"), HasSubstr("'name'")));
  }
  Write("b.csv", "name,name_1\n1,2\n");
  EXPECT_TRUE(Run(Extract("b", "b.csv")).ok);
}

}  // namespace
}  // namespace millrace
