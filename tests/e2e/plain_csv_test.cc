// The proof without the engine says yes only where the engine's own scans say the same, and the extract's promises hold on both
// ways: the quick one and the scans.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/support/stage_fixture.h"
#include "worker/stage/extract/lossless.h"
#include "worker/stage/extract/plain_csv.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

const std::vector<ColumnSpec> kColumns = {{"i", "smallint"}, {"b", "bigint"},     {"d", "decimal(6,2)"}, {"f", "double"},
                                          {"day", "date"},   {"at", "timestamp"}, {"ok", "boolean"},     {"t", "varchar"}};
constexpr const char* kHeader = "i,b,d,f,day,at,ok,t\n";
constexpr const char* kPlainRow = "1,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,text\n";

class PlainCsvTest : public StageTest {
 protected:
  static ReaderOptions Reader(std::vector<ColumnSpec> columns, std::map<std::string, std::string> options = {}) {
    return {.format = FileFormat::kCsv, .columns = std::move(columns), .options = std::move(options)};
  }
  std::optional<std::int64_t> Prove(const std::string& text, const ReaderOptions& reader, int threads = 1) {
    Write("x.csv", text);
    return PlainCsv(threads).Rows(Src("x.csv"), reader);
  }
  // What the engine's scans say of it: its rows, or why it is no such file.
  std::string Scans(const ReaderOptions& reader) {
    auto db = duck::Database::Open({});
    auto connection = db->Connect();
    const std::vector<std::string> paths = {Src("x.csv")};
    std::string counts = "count(*)";
    for (const auto& c : reader.columns) counts += fmt::format(", count({})", duck::QuoteName(c.name));
    const auto rows = connection->Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect(paths, reader)));
    if (!rows) return rows.error().message;
    if (auto exact = FailOnRounding(*connection, paths, reader); !exact) return exact.error().message;
    const auto iso = HoldsOnlyIsoDates(*connection, paths, reader);
    if (!iso || !*iso) return "dates of another form";
    for (std::size_t c = 0; c < reader.columns.size(); ++c)
      if (reader.columns[c].not_null && rows->Int(c + 1) != rows->Int()) return "a null in " + reader.columns[c].name;
    return fmt::format("{}", rows->Int());
  }
  StageOrder Declared(const std::string& stage, const std::string& file, const std::string& run = "r1") {
    StageOrder order = Extract(stage, file, run);
    std::get<ExtractSpec>(order.task.stage.work).columns = kColumns;
    return order;
  }
};

TEST_F(PlainCsvTest, PlainRowsAreCounted) {
  const ReaderOptions reader = Reader(kColumns);
  const std::string header = kHeader, row = kPlainRow;
  EXPECT_EQ(Prove(header, reader), 0);
  EXPECT_EQ(Prove(header + row + row, reader), 2);
  EXPECT_EQ(Prove(header + row + row.substr(0, row.size() - 1), reader), 2) << "the last line need not end";
  EXPECT_EQ(Prove(header + ",,,,,,,\n" + row, reader), 2) << "nulls";
  EXPECT_EQ(Prove(header + R"("1","2","3.25","4.5","2026-01-31","2026-01-31 10:20:30","true","a, b")" + "\n", reader), 1);
  EXPECT_EQ(Prove(header + "-32768,-9223372036854775808,-9999.99,-0.5,2024-02-29,0001-01-01 00:00:00.123456,false,\xC3\xA9\n",
                  reader),
            1);
  EXPECT_EQ(Prove("i,t\r\n1,a\r\n2,b\r\n", Reader({{"i", "bigint"}, {"t", "varchar"}})), 2);
  EXPECT_EQ(Prove("i;t\n1;a,b\n", Reader({{"i", "bigint"}, {"t", "varchar"}}, {{"delimiter", ";"}})), 1);
}

TEST_F(PlainCsvTest, OfAnythingElseNothingIsSaid) {
  const std::string header = kHeader, good = kPlainRow;
  const auto with = [&](std::size_t column, const std::string& value) {  // the plain row with another value
    std::vector<std::string> values = {"1", "2", "3.25", "4.5", "2026-01-31", "2026-01-31 10:20:30", "true", "text"};
    values[column] = value;
    std::string line;
    for (const auto& v : values) line += (line.empty() ? "" : ",") + v;
    return header + good + line + "\n" + good;
  };
  const ReaderOptions reader = Reader(kColumns);
  ASSERT_EQ(Prove(with(7, "other"), reader), 3);
  const std::vector<std::pair<std::size_t, std::vector<std::string>>> cases = {
      {0, {"32768", "-32769", "1.5", "1e2", "x", " 1", "1 ", "+1", "0x1", "1_000"}},
      {1, {"9223372036854775808", "12345678901234567890", "--1", "-"}},
      {2, {"1.234", "12345.00", "1.", ".5", "1e1"}},
      {3, {"nan", "inf", "1e400", "1,5"}},
      {4, {"31/01/2026", "2026-13-01", "2026-02-29", "2026-1-31", "0000-01-01", "2026-01-31 10:00:00", "infinity"}},
      {5, {"2026-01-31T10:20:30", "2026-01-31", "2026-01-31 10:20:30+02:00", "2026-01-31 24:00:00", "2026-01-31 10:20:30."}},
      {6, {"yes", "truex", "1"}},
      {7,
       {"a,b", "\"a", "a\"b\"", "\"a\"b", "\"a\"\"b\"", "\"a\nb\"", "a\rb", "\xFF", "\xED\xA0\x80", "\xC0\x80",
        std::string("a\0b", 3), "\"\""}}};
  for (const auto& [column, values] : cases)
    for (const auto& value : values) EXPECT_EQ(Prove(with(column, value), reader), std::nullopt) << column << " " << value;
  EXPECT_EQ(Prove(header + good + "\n" + good, reader), std::nullopt) << "an empty line";
  EXPECT_EQ(Prove(header + good + "1,2\n", reader), std::nullopt) << "too few fields";
  EXPECT_EQ(Prove("i,t\r\n1,a\n", Reader({{"i", "bigint"}, {"t", "varchar"}})), std::nullopt) << "ends of both kinds";
  EXPECT_EQ(Prove("i,t\n1,a\r\n", Reader({{"i", "bigint"}, {"t", "varchar"}})), std::nullopt);
  EXPECT_EQ(Prove("t\na\n", Reader({{"t", "varchar"}})), std::nullopt) << "one column";
  EXPECT_EQ(Prove("", reader), std::nullopt);
  EXPECT_EQ(PlainCsv(1).Rows(Src("none.csv"), reader), std::nullopt);
  const std::vector<ColumnSpec> two = {{"i", "bigint"}, {"t", "varchar"}};
  ASSERT_EQ(Prove("i,t\n1,a\n", Reader(two)), 1);
  const std::vector<std::pair<std::string, std::string>> unknown = {
      {"header", "false"}, {"quote", "'"},   {"escape", "\\"},    {"null", "NA"},
      {"skip", "1"},       {"comment", "#"}, {"delimiter", "::"}, {"encoding", "latin-1"}};
  for (const auto& option : unknown) EXPECT_EQ(Prove("i,t\n1,a\n", Reader(two, {option})), std::nullopt) << option.first;
  for (const char* type : {"uuid", "timestamp with time zone", "timestamp_ns", "bigint[]", "blob"})
    EXPECT_EQ(Prove("i,t\n1,\n", Reader({{"i", "bigint"}, {"t", type}})), std::nullopt) << type;
  EXPECT_EQ(Prove("i,t\n,a\n", Reader({{"i", "bigint", true}, {"t", "varchar"}})), std::nullopt) << "declared not null";
  ReaderOptions guessed = Reader({{"f", "double"}, {"t", "varchar"}});
  EXPECT_EQ(Prove("f,t\n1234567890123456,a\n", guessed), 1);
  guessed.guessed_doubles = {"f"};
  EXPECT_EQ(Prove("f,t\n1234567890123456,a\n", guessed), std::nullopt) << "a guess must keep whole numbers";
  EXPECT_EQ(Prove("d,t\n2026-01-31,a\n", Reader({{"d", "date"}, {"t", "varchar"}}, {{"dateformat", "%d/%m/%Y"}})),
            std::nullopt);
}

TEST_F(PlainCsvTest, LargeFilesAreProvenInPieces) {
  const std::vector<ColumnSpec> columns = {{"i", "bigint"}, {"t", "varchar"}};
  std::string text = "i,t\n";
  std::int64_t rows = 0;
  for (; text.size() < (9u << 20); ++rows)
    text += fmt::format("{},{}\n", rows, std::string(static_cast<std::size_t>(rows % 97), 'x'));
  for (const int threads : {1, 2, 5}) EXPECT_EQ(Prove(text, Reader(columns), threads), rows) << threads;
  for (const std::size_t at : {text.size() / 2, text.size() - 3, std::size_t{4u << 20}}) {
    std::string broken = text;
    const std::size_t comma = broken.rfind(',', at);
    broken[comma - 1] = 'x';
    EXPECT_EQ(Prove(broken, Reader(columns), 2), std::nullopt) << at;
    broken = text;
    const std::size_t end = broken.rfind('\n', at);
    broken.insert(end, ",\"");  // a quote that swallows lines
    EXPECT_EQ(Prove(broken, Reader(columns), 2), std::nullopt) << at;
  }
  const std::string wide = "i,t\n1,a\n2," + std::string(10u << 20, 'y') + "\n3,c\n";  // one line over several pieces
  EXPECT_EQ(Prove(wide, Reader(columns), 2), 3);
  EXPECT_EQ(Prove("i,t\n1," + std::string(17u << 20, 'y') + "\n", Reader(columns), 2), std::nullopt) << "longer than is read";
}

// Random files, mostly plain: whenever the proof says how many rows there are, so do the scans.
TEST_F(PlainCsvTest, TheEngineAgreesWithEveryProof) {
  const std::vector<std::vector<std::string>> values = {
      {"", "0", "-0", "007", "42", "-32768", "32767", "32768", "\"5\"", "1.0", "1e1", " 1", "\"\""},
      {"", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "0000000000000000001", "1.5", "-"},
      {"", "0.25", "-9999.99", "9999.9", "00012.5", "10000", "0.125", "1.", "\"7.5\"", "-0.00"},
      {"", "1.5", "-0.25", "123456789012345678", "1e3", "0.1234567890123456789", "nan"},
      {"", "2026-01-31", "0001-01-01", "9999-12-31", "2024-02-29", "2026-02-29", "\"2026-12-01\"", "2026/01/31", "1/2/2026"},
      {"", "2026-01-31 10:20:30", "2026-01-31 10:20:30.123456", "2026-01-31 10:20:30.1", "2026-01-31 23:59:60", "2026-01-31",
       "2026-01-31 10:20:30Z"},
      {"", "true", "false", "TRUE", "False", "t", "no"},
      {"", "text", "\"a, b\"", "\xC3\xA9", "a b ", " a", "'q'", "\"say \"\"x\"\"\"", "a\"b", "#c", "\\N", "\xE0\x80\x80",
       "NULL", "\"two\nlines\""}};
  constexpr std::array<std::size_t, 8> kPlainOf = {5, 2, 2, 2, 4, 2, 4, 6};  // the first so many hold nothing odd
  std::mt19937 random(20'261'121);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  int proven = 0, refused = 0;
  for (int round = 0; round < 250; ++round) {
    const bool crlf = below(4) == 0, plain = below(4) != 0;
    const std::string end = crlf ? "\r\n" : "\n";
    std::vector<ColumnSpec> columns = kColumns;
    if (below(4) == 0) columns[below(8)].not_null = true;
    std::string text = "i,b,d,f,day,at,ok,t" + end;
    for (std::size_t row = 1 + below(20); row > 0; --row) {
      for (std::size_t c = 0; c < values.size(); ++c) {
        const bool odd = !plain && below(30) == 0;
        text += (c == 0 ? "" : ",") + values[c][below(odd ? values[c].size() : kPlainOf[c])];
      }
      if (row > 1 || below(4) != 0) text += end;
      if (!plain && below(60) == 0) text += end;
    }
    const ReaderOptions reader = Reader(columns);
    const auto rows = Prove(text, reader);
    rows ? ++proven : ++refused;
    if (!rows) continue;
    EXPECT_EQ(Scans(reader), fmt::format("{}", *rows)) << text;
  }
  EXPECT_GT(proven, 100);
  EXPECT_GT(refused, 20);
  // Each odd value alone: what the proof takes, the scans take.
  for (std::size_t c = 0; c < values.size(); ++c) {
    for (const auto& value : values[c]) {
      std::string line;
      for (std::size_t k = 0; k < values.size(); ++k) line += (k == 0 ? "" : ",") + (k == c ? value : values[k][1]);
      const auto rows = Prove(kHeader + line + "\n", Reader(kColumns));
      if (!rows) continue;
      EXPECT_EQ(Scans(Reader(kColumns)), fmt::format("{}", *rows)) << line;
    }
  }
}

// The names, and whether they are read without the engine; with it if not.
TEST_F(PlainCsvTest, NamesAreTheEnginesOrLeftToIt) {
  const auto engine = [&](const std::map<std::string, std::string>& options) {
    auto db = duck::Database::Open({});
    auto connection = db->Connect();
    const ReaderOptions reader{.format = FileFormat::kCsv, .options = options, .all_text = true, .skip_bad_rows = true};
    std::vector<std::string> names;
    const auto columns = connection->Describe(fmt::format("SELECT * FROM {}", ReaderCall({Src("x.csv")}, reader)));
    EXPECT_TRUE(columns);
    if (columns)
      for (const auto& c : *columns) names.push_back(c.name);
    return names;
  };
  std::string many = "i,t\n";
  for (int i = 0; i < 30'000; ++i) many += fmt::format("{},{}\n", i, std::string(150, 't'));
  const std::vector<std::pair<std::string, std::map<std::string, std::string>>> plain = {
      {"a,b\n1,2\n", {}},
      {"a,b\n1,2", {}},
      {"a,b\n", {}},
      {"a,b\r\n1,2\r\n,\r\n", {}},
      {"\"a\",\"B_2\",c\n\"x,y\",2,\n", {}},
      {"a;b\n1,5;2\n", {{"delimiter", ";"}}},
      {"a\tb\n1\t2\n", {{"delimiter", "\\t"}, {"dateformat", "%Y-%m-%d"}}},
      {"select,column0,_x\ntrue,1,2026-01-01\n", {}},
      {"a,b\na,b\n", {}},
      {many, {}}};
  for (const auto& [text, options] : plain) {
    Write("x.csv", text);
    const auto names = PlainNames(Src("x.csv"), FileFormat::kCsv, options);
    ASSERT_TRUE(names) << text.substr(0, 60);
    EXPECT_EQ(*names, engine(options)) << text.substr(0, 60);
  }
  for (const std::string& text :
       {std::string("a,A\n1,2\n"), std::string("a,a\n1,2\n"), std::string("a,\n1,2\n"), std::string("a b,c\n1,2\n"),
        std::string("1a,b\n1,2\n"),
        std::string("\xEF\xBB\xBF"
                    "a,b\n1,2\n"),
        std::string("a\n1\n"), std::string("a,b"), std::string(""), std::string("a,b\n1,2,3\n"), std::string("a,b\n1\n"),
        std::string("a,b\n\n1,2\n"), std::string("a,b\r\n1,2\n"), std::string("a,b\n\xFF,2\n"),
        std::string("a,b\n\"x\"\"y\",2\n"), "i,t\n1," + std::string(5u << 20, 't')}) {
    Write("x.csv", text);
    EXPECT_EQ(PlainNames(Src("x.csv"), FileFormat::kCsv, {}), std::nullopt) << text.substr(0, 60);
  }
  Write("x.csv", "a,b\n1,2\n");
  EXPECT_EQ(PlainNames(Src("x.csv"), FileFormat::kCsv, {{"skip", "1"}}), std::nullopt);
  EXPECT_EQ(PlainNames(Src("x.csv"), FileFormat::kCsv, {{"header", "false"}}), std::nullopt);
  EXPECT_EQ(PlainNames(Src("x.csv"), FileFormat::kNdjson, {}), std::nullopt);
  EXPECT_EQ(PlainNames(Src("none.csv"), FileFormat::kCsv, {}), std::nullopt);
}

constexpr int kManyRows = 60'000;  // beyond what is sniffed of a file whose columns are declared

std::string ManyRows(const std::string& bad_line) {
  std::string text = kHeader;
  for (int i = 0; i < kManyRows; ++i) text += kPlainRow;
  return text + bad_line + kPlainRow;
}

TEST_F(PlainCsvTest, ALateBadValueIsNamedWithFileLineAndColumn) {
  const std::string line = fmt::format("x.csv:{}: column ", kManyRows + 2);
  const std::vector<std::array<std::string, 3>> cases = {
      {"40000,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,text\n", "'i'", "40000"},
      {"1,2.5,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,text\n", "'b'", "2.5"},
      {"1,2,3.255,4.5,2026-01-31,2026-01-31 10:20:30,true,text\n", "'d'", "3.255"},
      {"1,2,3.25,4.5,2026-02-31,2026-01-31 10:20:30,true,text\n", "'day'", "2026-02-31"},
      {"1,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30+02:00,true,text\n", "'at'", "2026-01-31 10:20:30+02:00"},
  };
  int n = 0;
  for (const auto& [bad, column, value] : cases) {
    Write("x.csv", ManyRows(bad));
    const StageResult result = Run(Declared(fmt::format("s{}", n++), "x.csv"));
    EXPECT_FALSE(result.ok);
    EXPECT_EQ(result.error_class, "bad_value") << result.error;
    EXPECT_THAT(result.error, HasSubstr(line + column));
    EXPECT_THAT(result.error, HasSubstr(value));
  }
  Write("x.csv", ManyRows("1,2,3.25\n"));
  const StageResult ragged = Run(Declared("ragged", "x.csv"));
  EXPECT_EQ(ragged.error_class, "source_malformed") << ragged.error;
  EXPECT_THAT(ragged.error, HasSubstr(fmt::format("x.csv:{}: 3 fields", kManyRows + 2)));
  Write("x.csv", ManyRows("1,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,\xFF\n"));
  const StageResult encoding = Run(Declared("encoding", "x.csv"));
  EXPECT_EQ(encoding.error_class, "source_malformed") << encoding.error;
  EXPECT_THAT(encoding.error, HasSubstr(fmt::format("x.csv:{}: is not UTF-8", kManyRows + 2)));
}

TEST_F(PlainCsvTest, RowsAddUpOnBothWays) {
  Write("x.csv", ManyRows(kPlainRow));
  const StageResult plain = Run(Declared("plain", "x.csv"));
  ASSERT_TRUE(plain.ok) << plain.error;
  EXPECT_EQ(plain.rows, (RowCounts{.read = kManyRows + 2, .loaded = kManyRows + 2}));
  Write("y.csv", ManyRows("1,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,\"with a \"\"quote\"\"\"\n"));
  const StageResult scanned = Run(Declared("scanned", "y.csv"));
  ASSERT_TRUE(scanned.ok) << scanned.error;
  EXPECT_EQ(scanned.rows, plain.rows);
  EXPECT_EQ(Types("scanned"), Types("plain"));

  StageOrder order = Declared("aside", "z.csv");
  order.task.stage.contract = ContractSpec{.columns = {{"i", "smallint"}}, .on_violation = OnViolation::kQuarantine};
  Write("z.csv", ManyRows("40000,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,text\n"));
  const StageResult aside = Run(order);
  ASSERT_TRUE(aside.ok) << aside.error;
  EXPECT_EQ(aside.rows, (RowCounts{.read = kManyRows + 2, .loaded = kManyRows + 1, .quarantined = 1}));
  order = Declared("whole", "x.csv");
  order.task.stage.contract = ContractSpec{.columns = {{"i", "smallint"}}, .on_violation = OnViolation::kQuarantine};
  const StageResult whole = Run(order);
  ASSERT_TRUE(whole.ok) << whole.error;
  EXPECT_EQ(whole.rows, plain.rows);
  EXPECT_EQ(whole.quarantine, "");
}

TEST_F(PlainCsvTest, AFileThatChangedAfterItsExtractIsAnError) {
  Write("x.csv", ManyRows(kPlainRow));
  ASSERT_TRUE(Run(Declared("a", "x.csv")).ok);
  ASSERT_TRUE(Run(Transform("t", "select count(*) as n from a", {"a"})).ok);
  EXPECT_EQ(Rows("t", "n"), fmt::format("{}\n", kManyRows + 2));
  Write("x.csv", ManyRows("1,2,3.25,4.5,2026-01-31,2026-01-31 10:20:30,true,TEXT\n"));  // as many bytes
  const StageResult changed = Run(Transform("u", "select count(*) as n from a", {"a"}));
  EXPECT_EQ(changed.error_class, "source_changed") << changed.error;
  EXPECT_EQ(CountFiles("u", "manifests"), 0);
  // The next run reads what is there now, with the schema that is pinned.
  const StageResult again = Run(Declared("a", "x.csv", "r2"));
  ASSERT_TRUE(again.ok) << again.error;
  EXPECT_EQ(again.rows.loaded, kManyRows + 2);
}

}  // namespace
}  // namespace millrace
