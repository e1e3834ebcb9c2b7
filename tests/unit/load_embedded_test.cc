// Loads that need no server: SQLite and files; the binary COPY encoder, the type table and failpoints.
#include <cstdint>
#include <fstream>
#include <thread>
#include <utility>

#include "common/drivers/sqlite.h"
#include "tests/support/load_fixture.h"
#include "worker/stage/files.h"
#include "worker/stage/load/fence.h"
#include "worker/stage/load/file_lock.h"
#include "worker/stage/load/pg_binary.h"
#include "worker/stage/load/scrub.h"
#include "worker/stage/load/types.h"

namespace millrace {
namespace {

const char* const kRows =
    "select range::integer as id, 'n' || range as name, (range * 1.5)::decimal(10,2) as price from range(100)";

void ExpectOk(const StageResult& r) {
  ASSERT_TRUE(r.ok) << r.error_class << ": " << r.error;
  EXPECT_TRUE(r.rows.Balanced());
}

class LoadSqlite : public testing::LoadFixture {
 protected:
  void SetUp() override {
    LoadFixture::SetUp();
    connection_ = ConnectionSpec{"dest", "sqlite", dir_ + "/dest.db"};
  }
  sqlite::Database Open() {
    auto db = sqlite::Database::Open(dir_ + "/dest.db", {});
    EXPECT_TRUE(db);
    return std::move(*db);
  }
  std::int64_t Int(const std::string& sql) { return Open().QueryInt64(sql).value_or(-1); }
  void Exec(const std::string& sql) {
    auto done = Open().Exec(sql);
    ASSERT_TRUE(done) << done.error().message;
  }
  std::string Text(const std::string& sql) {
    sqlite::Database db = Open();
    auto s = db.Prepare(sql);
    EXPECT_TRUE(s) << s.error().message;
    auto row = s->Step();
    return row && *row ? s->String(0) : "";
  }
};

TEST_F(LoadSqlite, ProvenanceNamesEffectAndTokenInEveryRow) {
  const Manifest input = Dataset(kRows);
  StageOrder first = Order(LoadMode::kAppend, "p", "it's e1", 5), second = Order(LoadMode::kAppend, "p", "e2", 9);
  Spec(first).provenance = Spec(second).provenance = true;
  ExpectOk(Load(first, input));
  ExpectOk(Load(second, input));
  EXPECT_EQ(Int("select count(*) from p where _millrace_effect = 'it''s e1' and _millrace_token = 5"), 100);
  EXPECT_EQ(Int("select count(*) from p where _millrace_effect = 'e2' and _millrace_token = 9"), 100);

  StageOrder taken = Order(LoadMode::kAppend, "q", "e3", 1);
  Spec(taken).provenance = true;
  const StageResult refused = Load(taken, Dataset("select 1 as id, 2 as _millrace_token"));
  EXPECT_FALSE(refused.ok);
  EXPECT_EQ(refused.error_class, "schema_mismatch");
}

TEST_F(LoadSqlite, EveryModeCountsAndTheRetryReportsTheReceipt) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "a.t", "e1", 1), input));
  const StageResult again = Load(Order(LoadMode::kAppend, "a.t", "e1", 2), input);
  ExpectOk(again);
  EXPECT_TRUE(again.already_applied);
  EXPECT_EQ(again.inserted, 100);
  EXPECT_EQ(Int("select count(*) from a_t"), 100);
  EXPECT_EQ(Int("select count(*) from a_t where price = id * 1.5"), 100);

  ExpectOk(Load(Order(LoadMode::kMerge, "a.m", "m1", 1), input));
  const StageResult same = Load(Order(LoadMode::kMerge, "a.m", "m2", 1), input);
  EXPECT_EQ(same.unchanged, 100) << same.error;
  EXPECT_EQ(same.inserted + same.updated, 0);
  const StageResult mixed =
      Load(Order(LoadMode::kMerge, "a.m", "m3", 1),
           Dataset("select range::integer as id, case when range < 95 then 'x' else 'n' || range end as name,"
                   " (range * 1.5)::decimal(10,2) as price from range(90, 105)"));
  ExpectOk(mixed);
  EXPECT_EQ(mixed.inserted, 5);
  EXPECT_EQ(mixed.updated, 5);
  EXPECT_EQ(mixed.unchanged, 5);

  Exec("create index by_name on a_t(name); create view v as select count(*) as n from a_t");
  const StageResult replaced =
      Load(Order(LoadMode::kReplace, "a.t", "r1", 1), Dataset(std::string(kRows) + " where range < 7"));
  ExpectOk(replaced);
  EXPECT_EQ(replaced.deleted, 100);
  EXPECT_EQ(Int("select n from v"), 7);
  EXPECT_EQ(Load(Order(LoadMode::kReplace, "a.t", "r2", 1), Dataset(std::string(kRows) + " where false")).error_class,
            "empty_input");
  EXPECT_EQ(Int("select n from v"), 7);
  EXPECT_EQ(Int("select count(*) from millrace_receipt"), 5);
}

TEST_F(LoadSqlite, TypesAreStoredAsDocumented) {
  ExpectOk(Load(
      Order(LoadMode::kMerge, "types", "e1", 1),
      Dataset("select 1::integer as id, true as b, 12.50::decimal(10,2) as d, 12345678901234567890.5::decimal(38,1) as long,"
              " 18446744073709551615::ubigint as u, date '2020-02-29' as day, timestamp '2020-01-01 10:00:00.5' as ts,"
              " timestamptz '2020-01-01 10:00:00+02' as tz, '\\x00\\xff'::blob as y, [1, 2] as l, null::double as missing")));
  EXPECT_EQ(Text("select concat_ws('|', b, typeof(b), d, long, u, day, ts, tz, hex(y), l, missing is null) from types"),
            "1|integer|12.5|12345678901234567890.5|18446744073709551615|2020-02-29|2020-01-01 10:00:00.5|2020-01-01 "
            "08:00:00+00:00|00FF|[1,2]|1");
  const StageResult infinite = Load(Order(LoadMode::kAppend, "inf", "e2", 1), Dataset("select date 'infinity' as d"));
  EXPECT_EQ(infinite.error_class, "data_rejected");
  EXPECT_NE(infinite.error.find("column 'd'"), std::string::npos) << infinite.error;
}

TEST_F(LoadSqlite, RefusalsChangeNothing) {
  ExpectOk(Load(Order(LoadMode::kAppend, "a.t", "e1", 1), Dataset(kRows)));
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "a_t", "e2", 1), Dataset(kRows)).error_class, "invalid_target");
  EXPECT_EQ(Load(Order(LoadMode::kMerge, "a.t", "e3", 1), Dataset(kRows)).error_class, "missing_unique_index");
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "a.t", "e4", 1), Dataset("select 'x' as id, 1 as extra")).error_class,
            "schema_mismatch");
  EXPECT_EQ(Load(Order(LoadMode::kMerge, "a.m", "e5", 1), Dataset("select * from (values (1, 'a'), (1, 'b')) t(id, name)"))
                .error_class,
            "duplicate_key_in_batch");
  Exec(
      "create table parent (id integer primary key, name text, price numeric); create table child (id integer references "
      "parent)");
  EXPECT_EQ(Load(Order(LoadMode::kReplace, "parent", "e6", 1), Dataset(kRows)).error_class, "replace_refused");
  StageOrder checked = Order(LoadMode::kAppend, "a.t", "e7", 1);
  CheckSpec check;
  check.expression = "id < 50";
  checked.task.stage.checks.push_back(check);
  EXPECT_EQ(Load(checked, Dataset(kRows)).error_class, "check_failed");
  EXPECT_EQ(Int("select count(*) from a_t"), 100);
  EXPECT_EQ(Int("select count(*) from millrace_receipt"), 1);
}

TEST_F(LoadSqlite, KeysThatOnlyTheCollationMakesEqualAreRefused) {
  const auto people = [](const std::string& rows) { return "select * from (values " + rows + ") t(email, n)"; };
  const auto merge = [&](const std::string& effect, const std::string& rows) {
    StageOrder order = Order(LoadMode::kMerge, "people", effect, 1);
    Spec(order).key = {"email"};
    return Load(order, Dataset(people(rows)));
  };
  Exec("create table people (email text collate nocase primary key, n integer)");
  const StageResult equal = merge("e1", "('A@x', 1), ('a@x', 2)");
  EXPECT_EQ(equal.error_class, "duplicate_key_in_batch") << equal.error;
  EXPECT_NE(equal.error.find("email="), std::string::npos) << equal.error;
  EXPECT_EQ(Int("select count(*) from people"), 0);
  ExpectOk(merge("e2", "('A@x', 1), ('b@x', 2)"));
  const StageResult updated = merge("e3", "('a@X', 5), ('c@x', 2)");
  ExpectOk(updated);
  EXPECT_EQ(updated.inserted, 1);
  EXPECT_EQ(updated.updated, 1);
  EXPECT_EQ(Int("select n from people where email = 'a@x'"), 5);
  Exec("drop table people; create table people (email text, n integer); create unique index i on people (email collate rtrim)");
  EXPECT_EQ(merge("e4", "('a', 1), ('a ', 2)").error_class, "duplicate_key_in_batch");
  EXPECT_EQ(Int("select count(*) from people"), 0);
}

TEST_F(LoadSqlite, NanIsRefusedRatherThanStoredAsNull) {
  for (const char* type : {"double", "float"}) {
    const StageResult r = Load(Order(LoadMode::kAppend, "f", std::string("e") + type, 1),
                               Dataset(std::string("select 1 as id, 'nan'::") + type + " as ratio"));
    EXPECT_EQ(r.error_class, "data_rejected");
    EXPECT_NE(r.error.find("column 'ratio': NaN"), std::string::npos) << r.error;
  }
  StageOrder keyed = Order(LoadMode::kMerge, "k", "e3", 1);
  EXPECT_EQ(Load(keyed, Dataset("select 'nan'::double as id, 1 as n")).error_class, "data_rejected");
  ExpectOk(Load(Order(LoadMode::kAppend, "f", "e4", 1), Dataset("select 1 as id, 'infinity'::double as ratio")));
  EXPECT_EQ(Int("select count(*) from f where ratio > 1e308"), 1);
}

TEST_F(LoadSqlite, RowsThatTheTableDropsAreNotCounted) {
  const Manifest two = Dataset("select * from (values (1, 'a'), (2, 'b')) t(id, name)");
  Exec("create table ig (id integer primary key on conflict ignore, name text); insert into ig values (1, 'old')");
  const StageResult ignored = Load(Order(LoadMode::kAppend, "ig", "e1", 1), two);
  EXPECT_EQ(ignored.error_class, "data_rejected") << ignored.error;
  EXPECT_NE(ignored.error.find("(id=1, name=a)"), std::string::npos) << ignored.error;
  EXPECT_EQ(Int("select count(*) from ig"), 1);

  Exec(
      "create table tr (id integer primary key, name text);"
      " create trigger no_two before insert on tr when new.id = 2 begin select raise(ignore); end");
  EXPECT_EQ(Load(Order(LoadMode::kReplace, "tr", "e2", 1), two).error_class, "data_rejected");
  const StageResult merged = Load(Order(LoadMode::kMerge, "tr", "e3", 1), two);
  EXPECT_EQ(merged.error_class, "data_rejected") << merged.error;
  EXPECT_NE(merged.error.find("(id=2)"), std::string::npos) << merged.error;
  EXPECT_EQ(Int("select count(*) from tr"), 0);
  Exec("drop trigger no_two");
  ExpectOk(Load(Order(LoadMode::kMerge, "tr", "e4", 1), two));
  Exec("create trigger watches after insert on tr begin select 1; end");
  const StageResult same = Load(Order(LoadMode::kMerge, "tr", "e5", 1), two);
  ExpectOk(same);
  EXPECT_EQ(same.unchanged, 2);

  Exec("create table rep (id integer primary key, name text unique on  conflict\n replace); insert into rep values (9, 'a')");
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "rep", "e6", 1), two).error_class, "data_rejected");
  EXPECT_EQ(Load(Order(LoadMode::kMerge, "rep", "e7", 1), two).error_class, "invalid_target");
  EXPECT_EQ(Int("select count(*) from rep where id = 9"), 1);
  ExpectOk(Load(Order(LoadMode::kAppend, "rep", "e8", 1), Dataset("select 3 as id, 'c' as name")));
  Exec("create view vw as select id, name from tr; create trigger ins instead of insert on vw begin select 1; end");
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "vw", "e9", 1), two).error_class, "invalid_target");
}

TEST_F(LoadSqlite, NamesAreTheSameInAnyCase) {
  const Manifest fences = Dataset("select 'x' as effect, 1::bigint as token");
  ExpectOk(Load(Order(LoadMode::kAppend, "t", "e1", 1), Dataset(kRows)));
  for (const char* table : {"Millrace_Fence", "millrace_receipt", "MILLRACE.Target", "SQLite_master"}) {
    const StageResult r = Load(Order(LoadMode::kReplace, table, "e2", 1), fences);
    EXPECT_EQ(r.error_class, "invalid_target") << table << ": " << r.error;
  }
  EXPECT_EQ(Int("select count(*) from millrace_fence"), 1);
  ExpectOk(Load(Order(LoadMode::kAppend, "sales", "e3", 1), Dataset(kRows)));
  const StageResult other = Load(Order(LoadMode::kReplace, "Sales", "e4", 1), Dataset(kRows));
  EXPECT_EQ(other.error_class, "invalid_target") << other.error;
  ExpectOk(Load(Order(LoadMode::kAppend, "sales", "e5", 1), Dataset(kRows)));
  EXPECT_EQ(Int("select count(*) from sales"), 200);
}

// What is in the manifest and what is in the files must be what is counted; a receipt that does not add up is no receipt.
TEST(LoadReceipt, MustAddUp) {
  load::Receipt receipt;
  receipt.rows.read = 10;
  receipt.rows.loaded = 9;
  EXPECT_EQ(load::RequireBalance(receipt).error().error_class, "internal_error");
  receipt.rows.deduplicated = 1;
  EXPECT_TRUE(load::RequireBalance(receipt));
}

TEST_F(LoadSqlite, AReceiptCountsMoreThanAFailingCheck) {
  StageOrder order = Order(LoadMode::kAppend, "t", "e1", 1);
  ExpectOk(Load(order, Dataset(kRows)));
  CheckSpec check;
  check.expression = "id < 0";
  order.task.stage.checks.push_back(check);
  EXPECT_TRUE(Load(order, Dataset(kRows)).already_applied);
  order.task.effect = "e2";
  EXPECT_EQ(Load(order, Dataset(kRows)).error_class, "check_failed");
  EXPECT_EQ(Int("select count(*) from millrace_fence"), 2) << "older attempts are fenced off all the same";
}

// Linux answers EIO to who reads the start of /proc/self/mem, a regular file of 0 bytes.
TEST_F(LoadSqlite, ALakeFileThatCannotBeReadNowIsTriedAgain) {
  Manifest input = Dataset(kRows);
  const std::filesystem::path file = dir_ + "/" + input.files.front().path;
  const std::int64_t bytes = std::exchange(input.files.front().bytes, 0);
  std::filesystem::rename(file, dir_ + "/kept");
  std::filesystem::create_symlink("/proc/self/mem", file);
  const StageResult r = Load(Order(LoadMode::kAppend, "t", "e", 1), input);
  EXPECT_EQ(r.error_class, "io_error") << r.error;
  EXPECT_TRUE(r.retryable);
  EXPECT_NE(r.error.find(file.string()), std::string::npos) << r.error;
  input.files.front().bytes = bytes;
  std::filesystem::rename(dir_ + "/kept", file);
  ExpectOk(Load(Order(LoadMode::kAppend, "t", "e", 2), input));
}

#if defined(MILLRACE_FAILPOINTS)
TEST_F(LoadSqlite, ZombiesAreStaleAndKillsLeaveOneEffect) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "t", "first", 1), input));
  StageResult second;
  SetFailpointHook("load.after_staging", [&] {
    SetFailpointHook("load.after_staging", nullptr);
    auto engine = OpenEngine();
    ASSERT_TRUE(engine);
    second = RunLoad(Order(LoadMode::kAppend, "t", "z", 2), input, engine->connection, {});
  });
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "t", "z", 1), input).error_class, "stale_token");
  ExpectOk(second);
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "t", "z", 1), input).error_class, "stale_token");
  EXPECT_EQ(Int("select count(*) from t"), 200);
  int n = 0;
  for (const char* point :
       {"load.after_fence", "load.after_staging", "load.mid_copy", "load.before_commit", "load.after_commit"}) {
    SCOPED_TRACE(point);
    const std::string effect = "k" + std::to_string(++n);
    EXPECT_EQ(LoadInChild(std::string(point) + "=exit", Order(LoadMode::kAppend, "t", effect, 1), input), 137);
    const StageResult r = Load(Order(LoadMode::kAppend, "t", effect, 2), input);
    ExpectOk(r);
    EXPECT_EQ(r.already_applied, std::string(point) == "load.after_commit");
    EXPECT_EQ(Int("select count(*) from t"), 200 + 100 * n);
  }
}

TEST_F(LoadSqlite, ABatchThatShrinksAfterItWasCountedIsNotCommitted) {
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const Manifest input = Dataset(kRows), other = Dataset(std::string(kRows) + " where range < 60");
    SetFailpointHook("load.after_fence", [&] {
      SetFailpointHook("load.after_fence", nullptr);
      std::filesystem::rename(dir_ + "/" + other.files.front().path, dir_ + "/" + input.files.front().path);
    });
    const StageResult r = Load(Order(mode, "t", "e", 1), input);
    EXPECT_EQ(r.error_class, "internal_error") << r.error;
    EXPECT_NE(r.error.find("read 100, loaded 60"), std::string::npos) << r.error;
    EXPECT_EQ(Int("select count(*) from millrace_receipt"), 0);
    EXPECT_EQ(Int("select count(*) from sqlite_master where name = 't'"), 0);
  }
}

TEST_F(LoadSqlite, ACancelFencesWhatStillRuns) {
  const Manifest input = Dataset(kRows);
  StageResult fence;
  SetFailpointHook("load.after_staging", [&] {
    SetFailpointHook("load.after_staging", nullptr);
    fence = Fence(Order(LoadMode::kAppend, "t", "e", 2));
  });
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "t", "e", 1), input).error_class, "stale_token");
  EXPECT_EQ(fence.error_class, kFencedErrorClass) << fence.error;
  ExpectOk(Load(Order(LoadMode::kAppend, "t", "e", 3), input));
  EXPECT_TRUE(Fence(Order(LoadMode::kAppend, "t", "e", 4)).already_applied) << "the receipt wins";
  EXPECT_EQ(Int("select count(*) from t"), 100);
}
#endif

class LoadFiles : public testing::LoadFixture {
 protected:
  StageOrder FileOrder(LoadMode mode, const std::string& path, const std::string& effect, std::uint64_t token) {
    StageOrder order = Order(mode, "", effect, token);
    Spec(order).to = "file";
    Spec(order).path = path;
    return order;
  }
  std::int64_t Count(const std::string& what) {
    auto table = engine_->connection.Query("select count(*) from '" + dir_ + "/" + what + "'");
    EXPECT_TRUE(table) << table.error().message;
    return table ? table->Int() : -1;
  }
};

TEST_F(LoadFiles, ReplaceAndAppendOnce) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(FileOrder(LoadMode::kReplace, "out.csv", "e1", 1), input));
  EXPECT_EQ(Count("out.csv"), 100);
  const StageResult again = Load(FileOrder(LoadMode::kReplace, "out.csv", "e1", 2), input);
  EXPECT_TRUE(again.already_applied) << again.error;
  ExpectOk(Load(FileOrder(LoadMode::kReplace, "out.csv", "e2", 1), Dataset(std::string(kRows) + " where range < 3")));
  EXPECT_EQ(Count("out.csv"), 3);
  EXPECT_TRUE(Load(FileOrder(LoadMode::kReplace, "out.csv", "e1", 3), input).already_applied);
  EXPECT_EQ(Count("out.csv"), 3) << "an old effect's retry must not bring its file back";
  EXPECT_EQ(Load(FileOrder(LoadMode::kReplace, "out.csv", "e3", 1), Dataset(std::string(kRows) + " where false")).error_class,
            "empty_input");
  for (const char* effect : {"a1", "a1", "a2"}) ExpectOk(Load(FileOrder(LoadMode::kAppend, "parts.parquet", effect, 1), input));
  EXPECT_EQ(Count("parts.parquet/*.parquet"), 200);
  EXPECT_EQ(Load(FileOrder(LoadMode::kMerge, "m.csv", "e", 1), input).error_class, "invalid_target");
  EXPECT_EQ(Load(FileOrder(LoadMode::kReplace, "m.txt", "e", 1), input).error_class, "invalid_target");
}

TEST_F(LoadFiles, ACancelFencesWhatComesLater) {
  const Manifest input = Dataset(kRows);
  EXPECT_EQ(Fence(FileOrder(LoadMode::kReplace, "out.csv", "e", 2)).error_class, kFencedErrorClass);
  EXPECT_EQ(Load(FileOrder(LoadMode::kReplace, "out.csv", "e", 1), input).error_class, "stale_token");
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/out.csv"));
  ExpectOk(Load(FileOrder(LoadMode::kReplace, "out.csv", "e", 3), input));
  EXPECT_TRUE(Fence(FileOrder(LoadMode::kReplace, "out.csv", "e", 4)).already_applied);
}

#if defined(MILLRACE_FAILPOINTS)
TEST_F(LoadFiles, ABatchThatShrinksAfterItWasCountedIsNotPublished) {
  const Manifest input = Dataset(kRows), other = Dataset(std::string(kRows) + " where range < 60");
  SetFailpointHook("load.after_fence", [&] {
    SetFailpointHook("load.after_fence", nullptr);
    std::filesystem::rename(dir_ + "/" + other.files.front().path, dir_ + "/" + input.files.front().path);
  });
  EXPECT_EQ(Load(FileOrder(LoadMode::kReplace, "out.csv", "e", 1), input).error_class, "internal_error");
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/out.csv"));
}

TEST_F(LoadFiles, KillsLeaveOneEffectAndAreRolledForward) {
  const Manifest input = Dataset(kRows);
  int n = 0;
  for (const char* point : {"load.after_fence", "load.after_staging", "load.before_commit", "load.after_commit"}) {
    SCOPED_TRACE(point);
    const std::string effect = "k" + std::to_string(++n);
    EXPECT_EQ(LoadInChild(std::string(point) + "=exit", FileOrder(LoadMode::kAppend, "p.parquet", effect, 1), input), 137);
    const StageResult r = Load(FileOrder(LoadMode::kAppend, "p.parquet", effect, 2), input);
    ExpectOk(r);
    EXPECT_EQ(r.already_applied, std::string(point) == "load.after_commit");
    EXPECT_EQ(Count("p.parquet/*.parquet"), 100 * n);
  }
  StageResult second;
  SetFailpointHook("load.after_staging", [&] {
    SetFailpointHook("load.after_staging", nullptr);
    auto engine = OpenEngine();
    second = RunLoad(FileOrder(LoadMode::kAppend, "p.parquet", "z", 2), input, engine->connection, {});
  });
  EXPECT_EQ(Load(FileOrder(LoadMode::kAppend, "p.parquet", "z", 1), input).error_class, "stale_token");
  ExpectOk(second);
  EXPECT_EQ(Count("p.parquet/*.parquet"), 100 * (n + 1));
  int data = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_ + "/p.parquet.millrace"))
    data += entry.path().extension() == ".data";
  EXPECT_EQ(data, 0);
}
#endif

TEST_F(LoadFiles, AFrozenHolderOfTheLockIsWaitedForOnlySoLong) {
  const std::string path = dir_ + "/lock";
  {
    const auto held = load::FileLock::Take(path, Millis{0});
    ASSERT_TRUE(held);
    const auto second = load::FileLock::Take(path, Millis{20});
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().error_class, "destination_conflict");
    EXPECT_TRUE(second.error().retryable);
  }
  EXPECT_TRUE(load::FileLock::Take(path, Millis{0}));
}

TEST_F(LoadFiles, DataLeftBesideTheReceiptsByAnOlderVersionIsPublished) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(FileOrder(LoadMode::kReplace, "out.csv", "e1", 1), input));
  const std::string side = dir_ + "/out.csv.millrace";
  std::string receipt;
  for (const auto& entry : std::filesystem::directory_iterator(side))
    if (entry.path().extension() == ".json") receipt = entry.path().stem().string();
  std::filesystem::rename(dir_ + "/out.csv", side + "/" + receipt + "-1.data");
  std::filesystem::remove_all(side + "/pending");
  EXPECT_TRUE(Load(FileOrder(LoadMode::kReplace, "out.csv", "e1", 2), input).already_applied);
  EXPECT_EQ(Count("out.csv"), 100);
}

TEST_F(LoadFiles, ASourceIsNotWrittenOver) {
  Manifest input = Dataset(kRows);
  input.files.front().referenced = true;
  input.files.front().path = dir_ + "/" + input.files.front().path;
  input.files.front().mtime_us = StampFile(input.files.front().path)->mtime_us;
  std::filesystem::create_symlink(input.files.front().path, dir_ + "/link.parquet");
  for (const std::string path : {"x/../d1.parquet", "link.parquet"})
    EXPECT_EQ(Load(FileOrder(LoadMode::kReplace, path, "e", 1), input).error_class, "invalid_target") << path;
  ExpectOk(Load(FileOrder(LoadMode::kReplace, "d2.parquet", "e", 1), input));
}

TEST(LoadScrub, HidesEveryFormAndPieceOfAPassword) {
  const struct {
    const char *dsn, *text;
  } kTable[] = {
      {"postgres://u:p%40ss/w0rd@host/db", "invalid integer value \"p@ss\" for connection option \"port\""},
      {"postgres://u:p%40ss/w0rd@host/db", "database \"w0rd@host/db\" does not exist"},
      {"postgres://u:hunter2@h/db", "user u with hunter2"},
      {"postgres://h/db?user=u&password=hun%74er2", "sent hunter2 and hun%74er2"},
      {"host=h password='hun ter2' dbname=d", "sent hun ter2"},
      {"host=h password = hun\\ ter2", "sent hun ter2"},
      {"host=h password=hunter2", "dsn host=h password=hunter2"},
  };
  for (const auto& [dsn, text] : kTable) {
    const std::string scrubbed = load::Scrubbed(text, dsn);
    EXPECT_NE(scrubbed.find("***"), std::string::npos) << scrubbed;
    for (const char* part : {"p@ss", "w0rd", "hunter2", "hun%74er2", "ter2"})
      EXPECT_EQ(scrubbed.find(part), std::string::npos) << scrubbed;
  }
  EXPECT_EQ(load::Scrubbed("host h, database d", "host=h dbname=d password=zzzz"), "host h, database d");
}

std::string Hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  return out;
}

std::string Numeric(load::Int128 value, int scale) {
  load::PgBinaryBuffer buffer;
  buffer.Numeric(value, scale);
  return Hex(buffer.view());
}

// The bytes are those of PostgreSQL 15's numeric_send, date_send, timestamp_send and interval_send.
TEST(PgBinaryBuffer, WritesPostgresBytes) {
  load::PgBinaryBuffer b;
  b.Header();
  EXPECT_EQ(Hex(b.view()), "5047434f50590aff0d0a000000000000000000");
  b.Clear();
  b.BeginRow(3);
  b.Null();
  b.Int4(-2);
  b.Bytes("hi");
  b.Trailer();
  EXPECT_EQ(Hex(b.view()), "0003ffffffff00000004fffffffe000000026869ffff");
  b.Clear();
  b.Date(0);
  EXPECT_EQ(Hex(b.view()), "00000004ffffd533");
  b.Clear();
  b.Timestamp(946'684'800'000'001);
  EXPECT_EQ(Hex(b.view()), "000000080000000000000001");
  b.Clear();
  b.Interval(1, 2, 3);
  EXPECT_EQ(Hex(b.view()), "0000001000000000000000030000000200000001");
  b.Clear();
  b.Jsonb("{}");
  EXPECT_EQ(Hex(b.view()), "00000003017b7d");
}

TEST(PgBinaryBuffer, WritesNumerics) {
  EXPECT_EQ(Numeric(0, 0), "000000080000000000000000");
  EXPECT_EQ(Numeric(0, 2), "000000080000000000000002");
  EXPECT_EQ(Numeric(-105, 2), "0000000c0002000040000002000101f4");
  EXPECT_EQ(Numeric(10'000, 0), "0000000a00010001000000000001");
  EXPECT_EQ(Numeric(1, 8), "0000000a0001fffe000000080001");
  EXPECT_EQ(Numeric(123'456'789, 3), "0000000e0003000100000003000c0d801ed2");
}

// What the server makes of the bytes: digits of base 10,000 around the point.
load::Int128 UnscaledOf(std::string_view bytes, int* scale) {
  const auto word = [&](std::size_t i) {
    return static_cast<int>(static_cast<unsigned char>(bytes[4 + 2 * i]) << 8 | static_cast<unsigned char>(bytes[5 + 2 * i]));
  };
  const int digits = word(0), weight = static_cast<std::int16_t>(word(1));
  *scale = word(3);
  EXPECT_EQ(bytes.size(), static_cast<std::size_t>(12 + 2 * digits));
  load::Int128 value = 0;
  for (int i = 0; i < digits; ++i) {
    load::Int128 digit = word(static_cast<std::size_t>(4 + i));
    EXPECT_LT(digit, 10'000);
    int exponent = 4 * (weight - i) + *scale;
    for (; exponent > 0; --exponent) digit *= 10;
    for (; exponent < 0; ++exponent) {
      EXPECT_EQ(digit % 10, 0) << "a digit past the scale";
      digit /= 10;
    }
    value += digit;
  }
  if (digits > 0) {
    EXPECT_NE(word(4), 0) << "no zero in front";
    EXPECT_NE(word(static_cast<std::size_t>(3 + digits)), 0) << "and none at the end";
  }
  return word(2) == 0x4000 ? -value : value;
}

TEST(PgBinaryBuffer, NumericsOfAnySizeAndScaleMeanTheirValue) {
  std::vector<load::Int128> values{0, 1, 9, 10, 9'999, 10'000, 100'000'000, INT64_MAX};
  load::Int128 power = 1;
  for (int i = 0; i < 38; ++i, power *= 10)
    for (const load::Int128 v : {power, power - 1, power + 1, power * 7 + 30}) values.push_back(v);
  const load::Int128 past64 = static_cast<load::Int128>(UINT64_MAX);
  for (int i = -2; i <= 2; ++i) values.push_back(past64 + i);
  std::uint64_t state = 88'172'645'463'325'252ULL;
  for (int i = 0; i < 200; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    values.push_back(static_cast<load::Int128>(state >> (i % 64)));
  }
  load::PgBinaryBuffer buffer;
  for (const load::Int128 value : values)
    for (int scale = 0; scale <= 38; ++scale)
      for (const load::Int128 v : {value, -value}) {
        buffer.Clear();
        buffer.Numeric(v, scale);
        int said = -1;
        ASSERT_TRUE(UnscaledOf(buffer.view(), &said) == v)
            << "scale " << scale << ", low half " << static_cast<std::uint64_t>(value);
        ASSERT_EQ(said, scale);
      }
}

TEST(PgBinaryBuffer, GrowsPastOneRow) {
  load::PgBinaryBuffer b;
  const std::string large(3u << 20, 'x');
  b.Bytes("a");
  b.Bytes(large);
  EXPECT_EQ(b.size(), 4 + 1 + 4 + large.size());
  EXPECT_EQ(b.view().substr(9, 100), large.substr(0, 100));
  EXPECT_FALSE(load::PgBinaryBuffer::IsPgDate(INT32_MAX));
  EXPECT_FALSE(load::PgBinaryBuffer::IsPgTimestamp(INT64_MAX));
  EXPECT_FALSE(load::PgBinaryBuffer::IsPgTimestamp(-INT64_MAX));
  EXPECT_TRUE(load::PgBinaryBuffer::IsPgTimestamp(0));
}

TEST(LoadTypes, WideningIsAllowedAndNarrowingIsNot) {
  const auto fits = [](const char* duck, const char* pg) { return load::PlanPgColumn({"c", duck, false}, pg).has_value(); };
  EXPECT_TRUE(fits("INTEGER", "bigint"));
  EXPECT_FALSE(fits("bigint", "integer"));
  EXPECT_TRUE(fits("integer", "double precision"));
  EXPECT_FALSE(fits("bigint", "double precision"));
  EXPECT_FALSE(fits("double", "real"));
  EXPECT_TRUE(fits("decimal(10, 2)", "numeric(12,2)"));
  EXPECT_FALSE(fits("decimal(10,2)", "numeric(10,3)"));
  EXPECT_TRUE(fits("decimal(10,2)", "numeric"));
  EXPECT_FALSE(fits("ubigint", "numeric(19,0)"));
  EXPECT_TRUE(fits("varchar", "character varying(10)"));
  EXPECT_FALSE(fits("varchar", "integer"));
  EXPECT_TRUE(fits("struct(a integer)", "jsonb"));
  EXPECT_FALSE(fits("timestamp", "timestamp with time zone"));
  EXPECT_FALSE(fits("timestamp", "timestamp(3) without time zone"));
  EXPECT_FALSE(load::ParseDuckType("uhugeint").has_value());
  EXPECT_FALSE(load::ParseDuckType("decimal(39,0)").has_value());
  EXPECT_FALSE(load::ParseDuckType("no such type").has_value());
  EXPECT_EQ(load::PgTypeFor(*load::ParseDuckType("TIMESTAMP  WITH TIME ZONE")), "timestamp with time zone");
}

TEST(Failpoints, SpecAndSeed) {
  EXPECT_FALSE(ConfigureFailpoints("x=explode", 1).has_value());
  EXPECT_FALSE(ConfigureFailpoints("x", 1).has_value());
  EXPECT_FALSE(ConfigureFailpoints("x=error(1,1,1)", 1).has_value());
  ASSERT_TRUE(ConfigureFailpoints("x=error(1,2)", 1).has_value());  // strikes twice
  EXPECT_FALSE(HitFailpoint("x").has_value());
  EXPECT_FALSE(HitFailpoint("x").has_value());
  EXPECT_TRUE(HitFailpoint("x").has_value());
  EXPECT_FALSE(ConfigureFailpoints("x=sleep", 1).has_value());
  const auto draw = [](std::uint64_t seed) {
    EXPECT_TRUE(ConfigureFailpoints("x=error(0.5),y=sleep(0,1)", seed));
    std::string out;
    for (int i = 0; i < 40; ++i) out += HitFailpoint("x") ? '.' : 'e';
    return out;
  };
  const std::string first = draw(7);
  EXPECT_EQ(draw(7), first);
  EXPECT_NE(first.find('e'), std::string::npos);
  EXPECT_NE(first.find('.'), std::string::npos);
  EXPECT_TRUE(HitFailpoint("unknown").has_value());
  EXPECT_TRUE(ConfigureFailpoints("", 1));
}

}  // namespace
}  // namespace millrace
