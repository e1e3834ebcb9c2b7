// Our own reader of plain files beside the engine's: the same rows, to the bit, wherever the proof says yes; and what a file
// that changed, a small memory and many threads do to it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "common/drivers/duckdb_rows.h"
#include "tests/support/stage_fixture.h"
#include "worker/stage/extract/plain_csv.h"
#include "worker/stage/extract/plain_rows.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

std::size_t BytesOf(duck::Type type) {
  using duck::Type;
  switch (type) {
    case Type::kBoolean:
    case Type::kInt8:
    case Type::kUInt8: return 1;
    case Type::kInt16:
    case Type::kUInt16: return 2;
    case Type::kInt32:
    case Type::kUInt32:
    case Type::kFloat:
    case Type::kDate: return 4;
    case Type::kHugeInt: return 16;
    default: return 8;
  }
}

// A value as its bytes: two that print alike may differ.
std::string Bytes(const duck::ChunkColumn& column, const duck::ColumnType& type, std::size_t row) {
  if (column.IsNull(row)) return "null";
  if (type.storage == duck::Type::kVarchar) return fmt::format("'{}'", column.Text(row));
  const std::size_t bytes = BytesOf(type.storage);
  const char* data = column.Values<char>().data() + row * bytes;
  std::string out;
  for (std::size_t i = 0; i < bytes; ++i) out += fmt::format("{:02x}", static_cast<unsigned char>(data[i]));
  return out;
}

class PlainRowsTest : public StageTest {
 protected:
  static duck::Connection Connect(int threads) {
    auto connection = duck::Database::Open({.threads = threads})->Connect();
    EXPECT_TRUE(connection->Configure({.threads = threads}));
    return std::move(*connection);
  }
  static ReaderOptions Reader(std::vector<ColumnSpec> columns, std::map<std::string, std::string> options = {}) {
    return {.format = FileFormat::kCsv, .columns = std::move(columns), .options = std::move(options)};
  }
  // Every value of every row in the order in which they come, and the types; or the error.
  static std::vector<std::string> All(duck::Connection& connection, const std::string& sql) {
    std::vector<std::string> out;
    auto stream = connection.Stream(sql);
    if (!stream) return {stream.error().message};
    for (const auto& column : stream->columns()) out.push_back(column.name + " " + column.sql_type);
    while (true) {
      const auto rows = stream->Next();
      if (!rows) return {rows.error().message};
      if (*rows == 0) return out;
      const std::size_t begin = out.size();
      out.resize(begin + *rows);
      for (std::size_t c = 0; c < stream->columns().size(); ++c)
        for (std::size_t r = 0; r < *rows; ++r) out[begin + r] += Bytes(stream->Column(c), stream->columns()[c], r) + " ";
    }
  }
  std::string Offer(duck::Connection& connection, const std::vector<std::string>& files, const ReaderOptions& reader,
                    std::int64_t rows) {
    std::vector<std::string> paths;
    for (const auto& file : files) paths.push_back(Src(file));
    auto source = PlainRows(paths, reader, rows);
    if (source == nullptr) return "nothing";
    return connection.Offer(std::move(source)).value_or("not accepted");
  }
  // Proves the file and compares both readers, row by row; false: it is not plain.
  bool SameAsTheEngine(const std::string& text, const ReaderOptions& reader) {
    Write("x.csv", text);
    const auto rows = PlainCsv(1).Rows(Src("x.csv"), reader);
    if (!rows) return false;
    duck::Connection connection = Connect(1);
    const auto engine = All(connection, ReaderSelect({Src("x.csv")}, reader));
    const auto own = All(connection, "SELECT * FROM " + Offer(connection, {"x.csv"}, reader, *rows));
    EXPECT_EQ(own.size(), reader.columns.size() + static_cast<std::size_t>(*rows));
    EXPECT_EQ(own.size(), engine.size()) << engine.front();
    for (std::size_t i = 0; i < std::min(own.size(), engine.size()); ++i) {
      if (own[i] == engine[i]) continue;
      ADD_FAILURE() << "ours " << own[i] << "\nengine " << engine[i] << "\nrow " << i << " of\n" << text.substr(0, 10'000);
      break;
    }
    return true;
  }
};

// Values of one type that are plain, odd ones among them.
using Make = std::function<std::string(std::mt19937_64&)>;

std::uint64_t Below(std::mt19937_64& random, std::uint64_t n) { return random() % n; }

std::string DigitsOf(std::mt19937_64& random, std::uint64_t count) {
  std::string out;
  for (; count > 0; --count) out += static_cast<char>('0' + (Below(random, 4) == 0 ? Below(random, 2) * 9 : Below(random, 10)));
  return out;
}

Make Whole(std::vector<std::string> edges, std::uint64_t digits_max, bool sign) {
  return [=](std::mt19937_64& random) {
    if (Below(random, 3) == 0) return edges[Below(random, edges.size())];
    return (sign && Below(random, 2) == 0 ? "-" : "") + DigitsOf(random, 1 + Below(random, digits_max));
  };
}

Make Fixed(std::uint64_t width, std::uint64_t scale) {
  return [=](std::mt19937_64& random) {
    std::string out = Below(random, 2) == 0 ? "-" : "";
    out += width == scale ? "0" : DigitsOf(random, 1 + Below(random, width - scale));
    if (Below(random, 20) == 0) out = std::string(Below(random, 3), '0') + std::string(width - scale, '9');
    if (out.empty()) out = "0";
    return scale == 0 || Below(random, 3) == 0 ? out : out + "." + DigitsOf(random, 1 + Below(random, scale));
  };
}

std::string Floating(std::mt19937_64& random) {
  static const std::vector<std::string> kEdges = {"0",
                                                  "-0",
                                                  "0.0",
                                                  "-0.000",
                                                  "9007199254740993",
                                                  "9007199254740992",
                                                  "0.1",
                                                  "0.3",
                                                  "16777217",
                                                  "16777216.5",
                                                  "123456789012345678901234567890",
                                                  "0.000000000000000000000000000001",
                                                  "5e0",
                                                  "007.50",
                                                  "2.2250738585072011",
                                                  "1.00000005960464477539062",
                                                  "9007199254740992.5"};
  if (Below(random, 6) == 0) {
    const std::string& edge = kEdges[Below(random, kEdges.size())];
    return edge == "5e0" ? "5" : edge;
  }
  std::string out = (Below(random, 2) == 0 ? "-" : "") + DigitsOf(random, 1 + Below(random, Below(random, 4) == 0 ? 30 : 8));
  return Below(random, 4) == 0 ? out : out + "." + DigitsOf(random, 1 + Below(random, Below(random, 4) == 0 ? 30 : 8));
}

std::string Day(std::mt19937_64& random) {
  static const std::vector<std::string> kEdges = {"0001-01-01", "9999-12-31", "1970-01-01", "1969-12-31", "2000-02-29",
                                                  "1900-02-28", "1900-03-01", "2024-02-29", "0004-02-29", "1582-10-10"};
  if (Below(random, 4) == 0) return kEdges[Below(random, kEdges.size())];
  return fmt::format("{:04}-{:02}-{:02}", 1 + Below(random, 9999), 1 + Below(random, 12), 1 + Below(random, 28));
}

std::string Clock(std::mt19937_64& random) {
  std::string out = fmt::format("{:02}:{:02}:{:02}", Below(random, 24), Below(random, 60), Below(random, 60));
  if (Below(random, 8) == 0) out = Below(random, 2) == 0 ? "00:00:00" : "23:59:59";
  return Below(random, 2) == 0 ? out : out + "." + DigitsOf(random, 1 + Below(random, 6));
}

std::string Words(std::mt19937_64& random) {
  static const std::vector<std::string> kParts = {"a", "B", " ", "é",  "漢字", "🙂",
                                                  "0", "-", "'", "\\", "#",    "text of some length"};
  std::string out;
  for (std::uint64_t n = 1 + Below(random, 14); n > 0; --n) out += kParts[Below(random, kParts.size())];
  return out;
}

struct Typed {
  const char* type;
  Make make;
};

std::vector<Typed> EveryType() {
  const auto word = [](std::mt19937_64& random) {
    static const std::vector<std::string> kWords = {"true", "false", "True", "False", "TRUE", "FALSE"};
    return kWords[Below(random, kWords.size())];
  };
  return {{"tinyint", Whole({"-128", "127", "0", "-0", "007"}, 2, true)},
          {"smallint", Whole({"-32768", "32767", "00000000000032767"}, 4, true)},
          {"integer", Whole({"-2147483648", "2147483647"}, 9, true)},
          {"bigint", Whole({"-9223372036854775808", "9223372036854775807", "-1"}, 18, true)},
          {"hugeint", Whole({"9999999999999999999", "-9999999999999999999", "-9223372036854775809", "-0"}, 19, true)},
          {"utinyint", Whole({"255", "0"}, 2, false)},
          {"usmallint", Whole({"65535", "0"}, 4, false)},
          {"uinteger", Whole({"4294967295", "0"}, 9, false)},
          {"ubigint", Whole({"9999999999999999999", "9223372036854775808"}, 19, false)},
          {"decimal(4,2)", Fixed(4, 2)},
          {"decimal(5,0)", Fixed(5, 0)},
          {"decimal(9,3)", Fixed(9, 3)},
          {"decimal(10,2)", Fixed(10, 2)},
          {"decimal(18,18)", Fixed(18, 18)},
          {"decimal(18,4)", Fixed(18, 4)},
          {"decimal(19,4)", Fixed(19, 4)},
          {"decimal(38,10)", Fixed(38, 10)},
          {"decimal(38,0)", Fixed(38, 0)},
          {"double", Floating},
          {"float", Floating},
          {"boolean", word},
          {"date", Day},
          {"time", Clock},
          {"timestamp", [](std::mt19937_64& random) { return Day(random) + " " + Clock(random); }},
          {"varchar", Words}};
}

std::string RandomFile(std::mt19937_64& random, const std::vector<Typed>& types, char delimiter, std::uint64_t rows) {
  const std::string end = Below(random, 3) == 0 ? "\r\n" : "\n";
  std::string text;
  for (std::size_t c = 0; c < types.size(); ++c) text += fmt::format("{}c{}", c == 0 ? "" : std::string(1, delimiter), c);
  text += end;
  for (std::uint64_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < types.size(); ++c) {
      if (c > 0) text += delimiter;
      if (Below(random, 8) == 0) continue;
      std::string value = types[c].make(random);
      if (Below(random, 8) == 0) {
        if (std::string_view(types[c].type) == "varchar" && Below(random, 2) == 0) value += delimiter;
        value = '"' + value + '"';
      }
      text += value;
    }
    if (row + 1 < rows || Below(random, 3) != 0) text += end;
  }
  return text;
}

std::vector<ColumnSpec> ColumnsOf(const std::vector<Typed>& types) {
  std::vector<ColumnSpec> columns;
  for (std::size_t c = 0; c < types.size(); ++c) columns.push_back({.name = fmt::format("c{}", c), .type = types[c].type});
  return columns;
}

TEST_F(PlainRowsTest, EveryValueIsTheEnginesToTheBit) {
  std::mt19937_64 random(20'261'122);
  int proven = 0;
  for (int round = 0; round < 160; ++round) {
    std::vector<Typed> types = EveryType();
    std::shuffle(types.begin(), types.end(), random);
    if (round % 2 == 0) types.resize(2 + Below(random, 6));
    const char delimiter = std::string(",;|\t")[Below(random, 4)];
    const std::string text = RandomFile(random, types, delimiter, Below(random, 80));
    ReaderOptions reader = Reader(ColumnsOf(types), {{"delimiter", std::string(1, delimiter)}});
    if (Below(random, 2) == 0) reader.options.emplace("dateformat", "%Y-%m-%d");
    proven += SameAsTheEngine(text, reader) ? 1 : 0;
    if (HasFailure()) return;
  }
  EXPECT_GT(proven, 140) << "not all: a number of random digits may be too large for its type";
}

TEST_F(PlainRowsTest, EachTypeAloneOverManyValues) {
  std::mt19937_64 random(7);
  for (const Typed& type : EveryType()) {
    const std::vector<Typed> types = {type, {"bigint", [](std::mt19937_64&) { return std::string("1"); }}};
    int proven = 0;
    for (int round = 0; round < 3; ++round)
      proven += SameAsTheEngine(RandomFile(random, types, ',', 4000), Reader(ColumnsOf(types))) ? 1 : 0;
    EXPECT_EQ(proven, 3) << type.type;
    if (HasFailure()) return;
  }
}

TEST_F(PlainRowsTest, DaysOfManyYears) {
  std::string text = "day,at\n";
  for (int year : {1, 1899}) {
    for (int y = year; y < year + 202; ++y)
      for (int m = 1; m <= 12; ++m)
        for (int d : {1, 28, 29, 30, 31}) {
          const bool leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
          if (d > (m == 2 ? (leap ? 29 : 28) : m == 4 || m == 6 || m == 9 || m == 11 ? 30 : 31)) continue;
          text += fmt::format("{0:04}-{1:02}-{2:02},{0:04}-{1:02}-{2:02} {3:02}:00:59\n", y, m, d, (y + m + d) % 24);
        }
  }
  EXPECT_TRUE(SameAsTheEngine(text, Reader({{"day", "date"}, {"at", "timestamp"}})));
  EXPECT_TRUE(SameAsTheEngine(text, Reader({{"day", "date"}, {"at", "timestamp"}},
                                           {{"dateformat", "%Y-%m-%d"}, {"timestampformat", "%Y-%m-%d %H:%M:%S"}})));
}

TEST_F(PlainRowsTest, EdgesOfAFile) {
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  for (const char* text : {"i,t\n", "i,t\r\n", "i,t\n1,a", "i,t\n1,a\n", "i,t\r\n1,a", "i,t\r\n1,a\r\n", "i,t\n,\n,\n",
                           "i,t\n,", "i,t\n1,\"a,b\"\n2,\"x\"", "\"i\",\"t\"\n\"1\",\"a\"\n"})
    EXPECT_TRUE(SameAsTheEngine(text, reader)) << text;
  EXPECT_FALSE(SameAsTheEngine("i,t\r\n1,a\r", reader));
  const std::string wide(16'000'000, 'w');  // a line that no other fits beside
  EXPECT_TRUE(SameAsTheEngine("i,t\n1,a\n2," + wide + "\n3,c\n", reader));
  EXPECT_TRUE(SameAsTheEngine("i,t\n1," + wide, reader));
  EXPECT_TRUE(SameAsTheEngine("i,t\n1," + wide + "\n2," + wide + "\n", reader));
}

// Lines whose ends fall on, before and behind the ends of blocks and pieces.
TEST_F(PlainRowsTest, CutsBetweenBlocksAndPieces) {
  constexpr std::size_t kBlock = 256 << 10, kPiece = 8'000'000, kLine = 50'000;
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  for (const std::size_t cut : {kBlock, kPiece}) {
    for (const std::string end : {"\n", "\r\n"}) {
      for (int off = -2; off <= 2; ++off) {
        std::string text = "i,t" + end;
        const std::size_t lines_end = text.size() + cut + static_cast<std::size_t>(off + 2) - 2;
        const auto line = [&](std::size_t bytes) {
          text += fmt::format("1,{}{}", std::string(bytes - std::strlen("1,") - end.size(), 'f'), end);
        };
        while (lines_end - text.size() > 2 * kLine) line(kLine);
        line(lines_end - text.size());
        ASSERT_EQ(text.size(), lines_end);
        text += "8,next" + end + "9,";
        ASSERT_TRUE(SameAsTheEngine(text, reader)) << cut << " " << off;
      }
    }
  }
}

TEST_F(PlainRowsTest, ThreadsShareTheFileAndOneKeepsItsOrder) {
  std::string text = "i,t,d\n";
  std::int64_t rows = 0;
  std::mt19937_64 random(3);
  for (; text.size() < 30'000'000; ++rows)
    text +=
        fmt::format("{},{},{}.5\n", rows, std::string(Below(random, 5000) == 0 ? 300'000 : Below(random, 60), 'x'), rows % 977);
  Write("x.csv", text);
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}, {"d", "decimal(9,1)"}});
  ASSERT_EQ(PlainCsv(2).Rows(Src("x.csv"), reader), rows);
  const std::string sums =
      "SELECT count(*), count(DISTINCT i), sum(i), min(i), max(i), sum(length(t)), sum(hash(i, t, d)) FROM ";
  for (const int threads : {1, 2, 5}) {
    duck::Connection connection = Connect(threads);
    const std::string table = Offer(connection, {"x.csv"}, reader, rows);
    const auto own = All(connection, sums + table);
    ASSERT_EQ(own.size(), 8U);
    EXPECT_EQ(own, All(connection, fmt::format("{} ({})", sums, ReaderSelect({Src("x.csv")}, reader)))) << threads;
    EXPECT_EQ(connection.Query("SELECT count(*) FROM " + table)->Int(), rows) << "of no column";
    if (threads > 1) continue;
    const auto disorder = connection.Query(
        fmt::format("SELECT count(*) FROM (SELECT i, row_number() OVER () - 1 AS n FROM {}) WHERE i <> n", table));
    EXPECT_EQ(disorder->Int(), 0);
  }
}

// What the engine reads by one thread comes in the file's order, whatever the number of threads; the same holds for ours.
TEST_F(PlainRowsTest, AFileOfOnePieceIsReadInOrder) {
  std::string text = "i,t\n";
  std::int64_t rows = 0;
  for (; text.size() < 7'900'000; ++rows) text += fmt::format("{},abcdefghij\n", rows);
  Write("x.csv", text);
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  duck::Connection connection = Connect(4);
  const std::string table = Offer(connection, {"x.csv"}, reader, rows);
  for (const std::string& from : {"(" + ReaderSelect({Src("x.csv")}, reader) + ")", table}) {
    auto stream = connection.Stream("SELECT i FROM " + from);
    ASSERT_TRUE(stream);
    std::int64_t next = 0, disorder = 0;
    while (const std::size_t got = stream->Next().value_or(0))
      for (std::size_t r = 0; r < got; ++r) disorder += stream->Column(0).Values<std::int64_t>()[r] == next++ ? 0 : 1;
    EXPECT_EQ(next, rows) << from;
    EXPECT_EQ(disorder, 0) << from;
  }
}

TEST_F(PlainRowsTest, OnlyTheColumnsThatAreAskedFor) {
  Write("x.csv", "a,b,c,d\n1,\"x,y\",2.50,2026-01-31\n,,,\n3,z,4.25,2026-02-28\n");
  const ReaderOptions reader = Reader({{"a", "integer"}, {"b", "varchar"}, {"c", "decimal(5,2)"}, {"d", "date"}});
  ASSERT_EQ(PlainCsv(1).Rows(Src("x.csv"), reader), 3);
  duck::Connection connection = Connect(2);
  const std::string own = Offer(connection, {"x.csv"}, reader, 3);
  const std::string engine = "(" + ReaderSelect({Src("x.csv")}, reader) + ")";
  for (const char* sql :
       {"SELECT d, a FROM {} t", "SELECT b FROM {} t", "SELECT c + 1, upper(b) FROM {} t WHERE d IS NOT NULL",
        "SELECT 1 FROM {} t", "SELECT count(*) FROM {} t", "SELECT count(c), count(*) FROM {} t",
        "SELECT x.a, y.b FROM {0} x JOIN {0} y USING (a)", "SELECT * FROM {} t ORDER BY a DESC NULLS FIRST LIMIT 2",
        "SELECT * FROM {} t LIMIT 1", "SELECT * FROM {} t LIMIT 0", "SELECT * EXCLUDE (a) FROM {} t",
        "SELECT (SELECT max(a) FROM {0} i WHERE i.b = o.b) AS m FROM {0} o"}) {
    const auto ours = All(connection, fmt::format(fmt::runtime(sql), own));
    EXPECT_EQ(ours, All(connection, fmt::format(fmt::runtime(sql), engine))) << sql;
    EXPECT_GT(ours.size(), 0U);
  }
  EXPECT_FALSE(connection.Query("SELECT nope FROM " + own));
  EXPECT_FALSE(connection.Query("SELECT * FROM millrace_rows_0('/etc/passwd')")) << "the table has no argument";
}

TEST_F(PlainRowsTest, TheRowsThatAreThereCountNotThoseThatWereSaid) {
  Write("x.csv", "i,t\n1,a\n2,b\n3,c\n");
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  for (const std::int64_t said : {0, 1, 7}) {
    duck::Connection connection = Connect(2);
    const std::string own = Offer(connection, {"x.csv"}, reader, said);
    EXPECT_EQ(connection.Query("SELECT count(*) FROM " + own)->Int(), 3);
    EXPECT_EQ(connection.Query("SELECT sum(i) FROM " + own)->Int(), 6);
    EXPECT_EQ(connection.Query(fmt::format("SELECT count(*) FROM {0} a JOIN {0} b USING (i)", own))->Int(), 3);
    EXPECT_GE(connection.RowsProcessed(), 3);
  }
}

TEST_F(PlainRowsTest, SeveralFilesAreOneTable) {
  Write("a.csv", "i,t\n1,a\n2,b\n");
  Write("b.csv", "i,t\r\n");
  Write("c.csv", "x,y\r\n3,c\r\n4,d");
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  ASSERT_EQ(PlainCsv(1).Rows({Src("a.csv"), Src("b.csv"), Src("c.csv")}, reader), 4);
  duck::Connection connection = Connect(1);
  const std::string own = Offer(connection, {"a.csv", "b.csv", "c.csv"}, reader, 4);
  const auto table = connection.Query("SELECT string_agg(i || t, ' ') FROM " + own);
  ASSERT_TRUE(table);
  EXPECT_EQ(table->Text(), "1a 2b 3c 4d");
}

TEST_F(PlainRowsTest, AFileThatIsNotWhatWasProvenEndsTheStatement) {
  const ReaderOptions reader = Reader({{"i", "bigint"}, {"t", "varchar"}});
  std::string text = "i,t\n";
  for (int i = 0; i < 50'000; ++i) text += fmt::format("{},text\n", i);
  for (const int threads : {1, 2}) {
    Write("x.csv", text);
    duck::Connection connection = Connect(threads);
    const std::string own = Offer(connection, {"x.csv"}, reader, 50'000);
    const std::string sql = "SELECT sum(i), max(t) FROM " + own;
    ASSERT_TRUE(connection.Query(sql));
    const auto fails = [&](const std::string& what) {
      const auto done = connection.Query(sql);
      ASSERT_FALSE(done) << what;
      EXPECT_EQ(connection.last_error().type, "IO") << what;
      EXPECT_EQ(done.error().code, ErrorCode::kRejected) << what;
      EXPECT_THAT(done.error().message, HasSubstr("x.csv: is not what was extracted any more")) << what;
    };
    for (const char* bad : {"1\xFFx\n", "x,1\n", "1,a\"b\n", "1\n", "1,2,3\n", "\n", "1,a\r\n"}) {
      Write("x.csv", text + bad + text.substr(4));
      fails(bad);
    }
    Write("x.csv", text + std::string("2,a\0b\n", 6));
    fails("a zero byte");
    Write("x.csv", "no header");
    fails("no line");
    Write("x.csv", text + "1," + std::string(17u << 20, 'x') + "\n" + text.substr(4));
    fails("a line longer than is read");
    fs::remove(Src("x.csv"));
    ASSERT_FALSE(connection.Query(sql));
    EXPECT_EQ(connection.last_error().type, "IO");
    EXPECT_THAT(connection.last_error().message, HasSubstr("x.csv: cannot be read"));
    ASSERT_FALSE(connection.Query("SELECT no_such_column FROM " + own));
    EXPECT_EQ(connection.last_error().type, "Binder") << "an older error is not this one's";
  }
}

TEST_F(PlainRowsTest, WhatIsNotPlainIsLeftToTheEngine) {
  Write("x.csv", "i,t\n1,a\n");
  const auto none = [&](const ReaderOptions& reader) { return PlainRows({Src("x.csv")}, reader, 1) == nullptr; };
  EXPECT_FALSE(none(Reader({{"i", "bigint"}, {"t", "varchar"}})));
  EXPECT_TRUE(none(Reader({{"i", "bigint"}, {"t", "uuid"}})));
  EXPECT_TRUE(none(Reader({{"i", "bigint"}, {"t", "varchar"}}, {{"header", "false"}})));
  EXPECT_TRUE(none(Reader({{"i", "bigint"}, {"t", "varchar"}}, {{"null", "NA"}})));
  EXPECT_TRUE(none(Reader({{"i", "bigint"}})));
  EXPECT_EQ(PlainRows({}, Reader({{"i", "bigint"}, {"t", "varchar"}}), 0), nullptr);
}

// ---- in the stages

StageOrder WithColumns(StageOrder order, std::vector<ColumnSpec> columns) {
  std::get<ExtractSpec>(order.task.stage.work).columns = std::move(columns);
  return order;
}

TEST_F(PlainRowsTest, StagesReadProvenFilesSoAndAllOthersAsEver) {
  const std::vector<ColumnSpec> columns = {{"i", "bigint"}, {"d", "decimal(9,2)"}, {"t", "varchar"}};
  Write("plain.csv", "i,d,t\n1,2.50,a\n2,,\"b,c\"\n,-0.01,\n");
  Write("odd.csv", "i,d,t\n1,2.50,a\n2,,\"b,c\"\n,-0.01,\n3,1,\"say \"\"x\"\"\"\n");
  Write("guessed.csv", "i,d,t\n1,2.50,a\n");
  ASSERT_TRUE(Run(WithColumns(Extract("plain", "plain.csv"), columns)).ok);
  ASSERT_TRUE(Run(WithColumns(Extract("odd", "odd.csv"), columns)).ok);
  ASSERT_TRUE(Run(Extract("guessed", "guessed.csv")).ok);
  const auto proven = [&](const std::string& stage) {
    auto manifest = LoadManifest((root_ / "lake").string(), kDefaultOrg, "p", {.stage = stage, .effect = Effect(stage, "r1")});
    const auto found = manifest->read_options.find(std::string(kProvenRows));
    return found == manifest->read_options.end() ? "no" : found->second;
  };
  EXPECT_EQ(proven("plain"), "3");
  EXPECT_EQ(proven("odd"), "no");
  EXPECT_EQ(proven("guessed"), "1");
  const StageResult all =
      Run(Transform("t", "select 'p' as f, * from plain union all select 'o', * from odd", {"plain", "odd"}));
  ASSERT_TRUE(all.ok) << all.error;
  EXPECT_EQ(all.rows.loaded, 7);
  EXPECT_EQ(Rows("t", "f, i, d"),
            "o,1,2.50,a\no,2,null,b,c\no,3,1.00,say \"x\"\no,null,-0.01,null\n"
            "p,1,2.50,a\np,2,null,b,c\np,null,-0.01,null\n");
  ASSERT_TRUE(Run(Transform("u", "select * from guessed", {"guessed"})).ok);
  EXPECT_EQ(Rows("u", "i"), "1,2.5,a\n");
  // What readers of a dataset's manifest see.
  EXPECT_EQ(Rows("plain", "i"), "1,2.50,a\n2,null,b,c\nnull,-0.01,null\n");
  const StageResult forged = Run(Transform("f", "select * from millrace_rows_1()", {"plain"}));
  EXPECT_FALSE(forged.ok) << "only what is offered can be read";
}

TEST_F(PlainRowsTest, NoRowsAndAllowedToBe) {
  Write("x.csv", "i,t\n");
  StageOrder order = WithColumns(Extract("x", "x.csv"), {{"i", "bigint"}, {"t", "varchar"}});
  std::get<ExtractSpec>(order.task.stage.work).allow_empty = true;
  ASSERT_TRUE(Run(order).ok);
  const StageResult none = Run(Transform("t", "select count(*) as n, max(i) as m from x", {"x"}));
  ASSERT_TRUE(none.ok) << none.error;
  EXPECT_EQ(Rows("t", "n"), "0,null\n");
}

TEST_F(PlainRowsTest, AFileLargerThanTheMemory) {
  std::string text = "i,t,d\n";
  for (int i = 0; i < 1'000'000; ++i) text += fmt::format("{},{:060},{}.25\n", i, i, i % 1000);
  Write("x.csv", text);
  StageOrder extract = WithColumns(Extract("x", "x.csv"), {{"i", "bigint"}, {"t", "varchar"}, {"d", "double"}});
  StageOrder transform =
      Transform("t", "select i % 10 as k, count(*) as n, sum(d) as s, max(t) as t from x group by all", {"x"});
  for (StageOrder* order : {&extract, &transform}) {
    order->memory_bytes_max = 64u << 20;
    const StageResult result = Run(*order);
    ASSERT_TRUE(result.ok) << result.error;
  }
  EXPECT_GT(text.size(), transform.memory_bytes_max);
  EXPECT_THAT(Rows("t", "k"), HasSubstr("3,100000,"));
}

// A chunk of the engine's is 2,048 rows: not of such rows.
TEST_F(PlainRowsTest, RowsThatAreLongerThanTheMemoryWhenTaken2048AtATime) {
  const std::string tail(60'000, 'x');
  std::string text = "i,t\n";
  for (int i = 0; i < 2'500; ++i) text += fmt::format("{},{}{}\n", i, i % 10, tail);
  Write("x.csv", text);
  StageOrder extract = WithColumns(Extract("x", "x.csv"), {{"i", "bigint"}, {"t", "varchar"}});
  StageOrder transform = Transform("t", "select count(*) as n, max(i) as i, sum(length(t)) as l from x", {"x"});
  transform.memory_bytes_max = 64u << 20;
  for (const StageOrder& order : {extract, transform}) {
    const StageResult result = Run(order);
    ASSERT_TRUE(result.ok) << result.error;
  }
  EXPECT_THAT(Rows("t", "n"), HasSubstr("2500,2499,150002500"));
}

TEST_F(PlainRowsTest, AnEmptyFormatIsTheEnginesToRefuse) {
  for (const auto& [option, type, usual] :
       {std::array{"dateformat", "date", "%Y-%m-%d"}, std::array{"timestampformat", "timestamp", "%Y-%m-%d %H:%M:%S"}}) {
    ReaderOptions reader{.format = FileFormat::kCsv, .columns = {{"d", type}, {"i", "bigint"}}, .options = {{option, usual}}};
    EXPECT_NE(PlainRows({"x.csv"}, reader, 1), nullptr) << option;
    reader.options[option] = "";
    EXPECT_EQ(PlainRows({"x.csv"}, reader, 1), nullptr) << option;
  }
}

}  // namespace
}  // namespace millrace
