// Loads into PostgreSQL: exactly once under retries, zombies, kills at every failpoint and a lost COMMIT answer.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "common/drivers/postgres.h"
#include "tests/support/load_fixture.h"

#if defined(MILLRACE_FAILPOINTS)
#define NEEDS_FAILPOINTS() static_cast<void>(0)
#else
#define NEEDS_FAILPOINTS() GTEST_SKIP() << "built without MILLRACE_FAILPOINTS"
#endif

namespace millrace {
namespace {

class LoadPostgres : public testing::LoadFixture {
 protected:
  void SetUp() override {
    const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
    if (server == nullptr) {
      if (std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_POSTGRES is not set";
      GTEST_SKIP() << "MILLRACE_TEST_POSTGRES is not set";
    }
    LoadFixture::SetUp();
    static int next = 0;
    name_ = "mr_load_" + std::to_string(::getpid()) + "_" + std::to_string(++next);
    admin_dsn_ = server;
    admin_ = Open(admin_dsn_);
    ASSERT_TRUE(admin_->Exec("create database " + name_, Soon()));
    dsn_ = admin_dsn_ + " dbname=" + name_;
    connection_ = ConnectionSpec{"dest", "postgres", dsn_};
    sql_ = Open(dsn_);
  }
  void TearDown() override {
    if (!admin_) return;
    sql_.reset();
    (void)admin_->Exec("drop database if exists " + name_ + " with (force)", Soon());
    LoadFixture::TearDown();
  }
  MonoTime Soon() const { return clock_.Now() + std::chrono::seconds{30}; }
  std::unique_ptr<PgConnection> Open(const std::string& dsn) {
    PgOptions options;
    options.dsn = dsn;
    auto c = PgConnection::Connect(options, clock_, Soon());
    EXPECT_TRUE(c) << c.error().message;
    return c ? std::move(*c) : nullptr;
  }
  void Exec(const std::string& sql) {
    auto done = sql_->Exec(sql, Soon());
    ASSERT_TRUE(done) << sql << ": " << done.error().message;
  }
  std::int64_t Int(const std::string& sql) {
    auto r = sql_->QueryOnce(sql, PgParams{}, Soon());
    EXPECT_TRUE(r) << sql << ": " << r.error().message;
    return r && r->rows() == 1 ? r->Int(0, 0) : -1;
  }
  std::string Text(const std::string& sql) {
    auto r = sql_->QueryOnce(sql, PgParams{}, Soon());
    EXPECT_TRUE(r) << sql << ": " << r.error().message;
    return r && r->rows() == 1 && !r->IsNull(0, 0) ? r->Text(0, 0) : "";
  }
  std::int64_t Receipts() { return Int("select count(*) from millrace.receipt"); }

  SystemClock clock_;
  std::string name_, admin_dsn_, dsn_;
  std::unique_ptr<PgConnection> admin_, sql_;
};

const char* const kRows =
    "select range::integer as id, 'n' || range as name, (range * 1.5)::decimal(10,2) as price from range(100)";

void ExpectOk(const StageResult& r) {
  ASSERT_TRUE(r.ok) << r.error_class << ": " << r.error;
  EXPECT_TRUE(r.rows.Balanced());
}

TEST_F(LoadPostgres, EveryTypeMakesTheRoundTrip) {
  const Manifest input = Dataset(R"sql(
    select 1::integer as id, true as b, (-7)::tinyint as i1, (-32768)::smallint as i2, (-2147483648)::integer as i4,
      (-9223372036854775807)::bigint as i8, 1267650600228229401496703205376::hugeint as h, 255::utinyint as u1,
      65535::usmallint as u2, 4294967295::uinteger as u4, 18446744073709551615::ubigint as u8, 1.5::float as f4, 'nan'::double as f8,
      (-1.05)::decimal(4,2) as d2, (-12345.6789)::decimal(9,4) as d4, 123456789012.345678::decimal(18,6) as d8,
      (-1234567890123456789012345678.0123456789)::decimal(38,10) as d16, 0.00000001::decimal(20,8) as dz, 'é''"\' as t,
      '\x00\xff'::blob as y, date '1969-12-31' as d, time '23:59:59.999999' as tm, timestamp '1999-12-31 23:59:59.5' as ts,
      timestamptz '2001-02-03 04:05:06+00' as tz, interval '1 month 2 days 3 seconds' as iv,
      '550e8400-e29b-41d4-a716-446655440000'::uuid as u, [1, 2] as l, {'a': 'x'} as s
    union all select 2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
      null, null, null, null, null, null, null, null, null)sql");
  ExpectOk(Load(Order(LoadMode::kMerge, "types.all_of_them", "e", 1), input));
  EXPECT_EQ(Int("select count(*) from types.all_of_them"), 2);
  Exec("set timezone = 'UTC'");
  EXPECT_EQ(Text("select concat_ws('|', b, i1, i2, i4, i8, h, u1, u2, u4, u8, f4, f8) from types.all_of_them where id = 1"),
            "t|-7|-32768|-2147483648|-9223372036854775807|1267650600228229401496703205376|255|65535|4294967295|"
            "18446744073709551615|1.5|NaN");
  EXPECT_EQ(Text("select concat_ws('|', d2, d4, d8, d16, dz) from types.all_of_them where id = 1"),
            "-1.05|-12345.6789|123456789012.345678|-1234567890123456789012345678.0123456789|0.00000001");
  EXPECT_EQ(Text("select concat_ws('|', t, encode(y, 'hex'), d, tm, ts, tz, iv, u, l, s) from types.all_of_them where id = 1"),
            "é'\"\\|00ff|1969-12-31|23:59:59.999999|1999-12-31 23:59:59.5|2001-02-03 04:05:06+00|1 mon 2 days 00:00:03|"
            "550e8400-e29b-41d4-a716-446655440000|[1,2]|{\"a\":\"x\"}");
  EXPECT_EQ(Int("select num_nulls(b,i1,i2,i4,i8,h,u1,u2,u4,u8,f4,f8,d2,d4,d8,d16,dz,t,y,d,tm,ts,tz,iv,u,l,s)::bigint"
                " from types.all_of_them where id = 2"),
            27);
  const StageResult again = Load(Order(LoadMode::kMerge, "types.all_of_them", "e2", 1), input);
  ExpectOk(again);
  EXPECT_EQ(again.unchanged, 2);
}

TEST_F(LoadPostgres, AppendOnceAndTheRetryReportsTheReceipt) {
  const Manifest input = Dataset(kRows);
  const StageResult first = Load(Order(LoadMode::kAppend, "a.t", "e1", 1), input);
  ExpectOk(first);
  EXPECT_EQ(first.inserted, 100);
  EXPECT_GT(first.bytes_written, 1000);
  StageResult again = Load(Order(LoadMode::kAppend, "a.t", "e1", 2), input);
  ExpectOk(again);
  EXPECT_TRUE(again.already_applied);
  again.already_applied = false;
  EXPECT_EQ(again, first);
  EXPECT_EQ(Int("select count(*) from a.t"), 100);
  ExpectOk(Load(Order(LoadMode::kAppend, "a.t", "e2", 1), input));
  EXPECT_EQ(Int("select count(*) from a.t"), 200);
  EXPECT_EQ(Int("select version from millrace.target where target = 'a.t'"), 2);
}

TEST_F(LoadPostgres, MergeCountsExactly) {
  ExpectOk(Load(Order(LoadMode::kMerge, "a.m", "e1", 1), Dataset(kRows)));
  const StageResult same = Load(Order(LoadMode::kMerge, "a.m", "e2", 1), Dataset(kRows));
  ExpectOk(same);
  EXPECT_EQ(same.inserted, 0);
  EXPECT_EQ(same.updated, 0);
  EXPECT_EQ(same.unchanged, 100);
  const StageResult mixed =
      Load(Order(LoadMode::kMerge, "a.m", "e3", 1),
           Dataset("select range::integer as id, case when range < 95 then 'x' else 'n' || range end as name,"
                   " (range * 1.5)::decimal(10,2) as price from range(90, 105)"));
  ExpectOk(mixed);
  EXPECT_EQ(mixed.inserted, 5);
  EXPECT_EQ(mixed.updated, 5);
  EXPECT_EQ(mixed.unchanged, 5);
  EXPECT_EQ(Int("select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname = 'millrace'"
                " and relname like 'stg%'"),
            0);
}

TEST_F(LoadPostgres, MergeNeverPicksBetweenDifferingRows) {
  const StageResult dup = Load(Order(LoadMode::kMerge, "a.m", "e1", 1),
                               Dataset("select * from (values (1, 'a'), (1, 'b'), (2, 'c'), (2, 'c')) t(id, name)"));
  EXPECT_EQ(dup.error_class, "duplicate_key_in_batch");
  EXPECT_NE(dup.error.find("(1)"), std::string::npos) << dup.error;
  EXPECT_EQ(dup.error.find("(2)"), std::string::npos) << dup.error;
  const StageResult same =
      Load(Order(LoadMode::kMerge, "a.m", "e2", 1), Dataset("select * from (values (1, 'a'), (2, 'c'), (2, 'c')) t(id, name)"));
  ExpectOk(same);
  EXPECT_EQ(same.rows.read, 3);
  EXPECT_EQ(same.rows.deduplicated, 1);
  EXPECT_EQ(same.inserted, 2);
  EXPECT_EQ(Load(Order(LoadMode::kMerge, "a.m", "e3", 1), Dataset("select null::integer as id, 'a' as name")).error_class,
            "null_key");
}

TEST_F(LoadPostgres, MergeNeedsTheUniqueIndexAndSaysHow) {
  Exec("create schema a; create table a.m (id integer, name text, price numeric(10,2))");
  const StageResult r = Load(Order(LoadMode::kMerge, "a.m", "e1", 1), Dataset(kRows));
  EXPECT_EQ(r.error_class, "missing_unique_index");
  EXPECT_NE(r.error.find("create unique index on \"a\".\"m\" (\"id\")"), std::string::npos) << r.error;
}

TEST_F(LoadPostgres, SchemaMismatchIsFoundBeforeAByteIsSent) {
  Exec("create schema a; create table a.t (id smallint, price double precision, must integer not null)");
  const StageResult r = Load(Order(LoadMode::kAppend, "a.t", "e1", 1), Dataset(kRows));
  EXPECT_EQ(r.error_class, "schema_mismatch");
  for (const char* part : {"id: INTEGER in the dataset, smallint", "name:", "price:", "must:"}) {
    std::string lower = r.error, want = part;
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    for (char& c : want) c = static_cast<char>(std::tolower(c));
    EXPECT_NE(lower.find(want), std::string::npos) << part << " in " << r.error;
  }
  Exec("create table a.wide (id bigint primary key, name varchar(20), price numeric, extra text default 'd')");
  ExpectOk(Load(Order(LoadMode::kAppend, "a.wide", "e2", 1), Dataset(kRows)));
  EXPECT_EQ(Int("select count(*) from a.wide where extra = 'd' and price = id * 1.5"), 100);
}

TEST_F(LoadPostgres, ReplaceKeepsWhatBelongsToTheTable) {
  ExpectOk(Load(Order(LoadMode::kReplace, "a.r", "e0", 1), Dataset(kRows)));
  Exec(
      "create role " + name_ +
      "_reader; create table a.other (id integer primary key); insert into a.other select generate_series(0, 200);"
      "alter table a.r add primary key (id); alter table a.r add constraint price_ok check (price >= 0);"
      "alter table a.r add constraint other_fk foreign key (id) references a.other;"
      "create index by_name on a.r using btree (lower(name)) where id > 3; alter table a.r alter name set default 'x';"
      "grant select, insert on a.r to " +
      name_ +
      "_reader with grant option; grant update (name) on a.r to public;"
      "comment on table a.r is 'it''s a table'; comment on column a.r.id is 'the id'; comment on index a.by_name is 'an index';"
      "alter table a.r set (fillfactor = 70)");
  const char* const shape =
      "select md5(string_agg(x, '|' order by x)) from (select conname || pg_get_constraintdef(oid) x from pg_constraint"
      " where conrelid = 'a.r'::regclass union all select indexdef from pg_indexes where schemaname = 'a' and tablename = 'r'"
      " union all select relacl::text || coalesce(obj_description(oid), '') || reloptions::text from pg_class where oid = "
      "'a.r'::regclass"
      " union all select attname || coalesce(attacl::text, '') || coalesce(col_description(attrelid, attnum), '') from "
      "pg_attribute"
      " where attrelid = 'a.r'::regclass and attnum > 0) s";
  const std::string before = Text(shape);
  const StageResult r = Load(Order(LoadMode::kReplace, "a.r", "e1", 1), Dataset(std::string(kRows) + " where range < 50"));
  ExpectOk(r);
  EXPECT_NE(r.plan.find("rename swap"), std::string::npos) << r.plan;
  EXPECT_EQ(Text(shape), before);
  EXPECT_EQ(Int("select count(*) from a.r"), 50);
  EXPECT_EQ(Int("select count(*) from millrace.staging"), 0);

  Exec("create view a.v as select count(*) as n from a.r");
  const StageResult with_view = Load(Order(LoadMode::kReplace, "a.r", "e2", 1), Dataset(kRows));
  ExpectOk(with_view);
  EXPECT_NE(with_view.plan.find("delete and binary COPY"), std::string::npos) << with_view.plan;
  EXPECT_EQ(Int("select n from a.v"), 100);
  EXPECT_EQ(with_view.deleted, 50);

  Exec("create table a.child (id integer references a.r)");
  EXPECT_EQ(Load(Order(LoadMode::kReplace, "a.r", "e3", 1), Dataset(kRows)).error_class, "replace_refused");
  EXPECT_EQ(Int("select count(*) from a.r"), 100);
  Exec("drop table a.child, a.r cascade; drop role " + name_ + "_reader");
}

TEST_F(LoadPostgres, NothingNeverTruncates) {
  ExpectOk(Load(Order(LoadMode::kReplace, "a.r", "e0", 1), Dataset(kRows)));
  const Manifest empty = Dataset(std::string(kRows) + " where range < 0");
  EXPECT_EQ(Load(Order(LoadMode::kReplace, "a.r", "e1", 1), empty).error_class, "empty_input");
  EXPECT_EQ(Int("select count(*) from a.r"), 100);
  StageOrder allowed = Order(LoadMode::kReplace, "a.r", "e2", 1);
  Spec(allowed).allow_empty = true;
  ExpectOk(Load(allowed, empty));
  EXPECT_EQ(Int("select count(*) from a.r"), 0);
  ExpectOk(Load(Order(LoadMode::kAppend, "a.r", "e3", 1), empty));
}

TEST_F(LoadPostgres, BadValuesNameColumnAndRow) {
  const StageResult date =
      Load(Order(LoadMode::kAppend, "a.b", "e1", 1),
           Dataset("select case when range = 7 then date 'infinity' else date '2020-01-01' end as d from range(10)"));
  EXPECT_EQ(date.error_class, "data_rejected");
  EXPECT_NE(date.error.find("column 'd': the date is infinite"), std::string::npos) << date.error;
  const StageResult keyed =
      Load(Order(LoadMode::kMerge, "a.k", "e3", 1),
           Dataset("select range as x, range * 2 as id, case when range = 7 then date 'infinity' end as d from range(10)"));
  EXPECT_NE(keyed.error.find("in the row (id=14)"), std::string::npos) << keyed.error;
  const StageResult nul = Load(Order(LoadMode::kAppend, "a.b", "e2", 1), Dataset("select 'a' || chr(0) || 'b' as t"));
  EXPECT_NE(nul.error.find("zero byte"), std::string::npos) << nul.error;
  EXPECT_EQ(Int("select count(*) from pg_class where relname = 'b'"), 0);
}

TEST_F(LoadPostgres, ValuesThatTheServerRefusesNameColumnAndRow) {
  Exec("create schema a; create table a.v (id integer primary key, name varchar(4), doc json)");
  const auto load = [&](LoadMode mode, const std::string& effect, const std::string& name, const std::string& doc) {
    return Load(Order(mode, "a.v", effect, 1), Dataset("select range::integer as id, case when range = 7 then '" + name +
                                                       "' else 'ok' end as name, case when range"
                                                       " = 7 then '" +
                                                       doc + "' else '{}' end as doc from range(10)"));
  };
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const StageResult r = load(mode, "e" + std::to_string(static_cast<int>(mode)), "longer", "{}");
    EXPECT_EQ(r.error_class, "data_rejected") << r.error;
    EXPECT_NE(r.error.find("column 'name', in the row (id=7"), std::string::npos) << r.error;
  }
  const StageResult json = load(LoadMode::kAppend, "j", "n", "{");
  EXPECT_NE(json.error.find("column 'doc', in the row (id=7"), std::string::npos) << json.error;
  EXPECT_EQ(Int("select count(*) from a.v"), 0);
}

std::string StagingLeft() {
  return "select (select count(*) from millrace.staging) + (select count(*) from pg_class c join pg_namespace n on n.oid ="
         " c.relnamespace where nspname = 'millrace' and relkind = 'r' and (relname like 'stg%' or relname like 'new%'))";
}

TEST_F(LoadPostgres, AFailedLoadLeavesNoStaging) {
  Exec("create schema a; create table a.m (id integer primary key, name text check (name <> 'n7'), price numeric(10,2))");
  for (const LoadMode mode : {LoadMode::kMerge, LoadMode::kReplace}) {
    const StageResult r = Load(Order(mode, "a.m", "e" + std::to_string(static_cast<int>(mode)), 1), Dataset(kRows));
    EXPECT_EQ(r.error_class, "data_rejected") << r.error;
    EXPECT_EQ(Int(StagingLeft()), 0);
  }
}

TEST_F(LoadPostgres, StagingOfTheDeadIsDroppedAfterTenMinutesAndThatOfTheLivingIsNot) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  for (const LoadMode mode : {LoadMode::kMerge, LoadMode::kReplace})
    EXPECT_EQ(
        LoadInChild("load.after_staging=exit", Order(mode, "a.dead", "d" + std::to_string(static_cast<int>(mode)), 1), input),
        137);
  ExpectOk(Load(Order(LoadMode::kAppend, "a.other", "o1", 1), input));
  EXPECT_EQ(Int("select count(*) from millrace.staging"), 2) << "they may still be at work";
  Exec("update millrace.staging set created_at = now() - interval '11 minutes'");
  SetFailpointHook("load.after_staging", [&] {  // this one is alive, however old it says it is
    SetFailpointHook("load.after_staging", nullptr);
    Exec("update millrace.staging set created_at = now() - interval '11 minutes'");
    auto engine = OpenEngine();
    ASSERT_TRUE(engine);
    ExpectOk(RunLoad(Order(LoadMode::kAppend, "a.other", "o2", 1), input, engine->connection, {}));
    EXPECT_EQ(Int("select count(*) from millrace.staging"), 1);
  });
  ExpectOk(Load(Order(LoadMode::kMerge, "a.alive", "m", 1), input));
  EXPECT_EQ(Int(StagingLeft()), 0);
}

TEST_F(LoadPostgres, ABatchThatShrinksAfterItWasCountedIsNotCommitted) {
  NEEDS_FAILPOINTS();
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const Manifest input = Dataset(kRows), other = Dataset(std::string(kRows) + " where range < 60");
    SetFailpointHook("load.after_fence", [&] {
      SetFailpointHook("load.after_fence", nullptr);
      std::filesystem::rename(dir_ + "/" + other.files.front().path, dir_ + "/" + input.files.front().path);
    });
    const StageResult r = Load(Order(mode, "a.t", "e" + std::to_string(static_cast<int>(mode)), 1), input);
    EXPECT_EQ(r.error_class, "internal_error") << r.error;
    EXPECT_EQ(Int("select count(*) from pg_class where relname = 't'"), 0);
    EXPECT_EQ(Int(StagingLeft()) + Receipts(), 0);
  }
}

TEST_F(LoadPostgres, StagingThatCannotBeDroppedStaysNamed) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  EXPECT_EQ(LoadInChild("load.after_staging=exit", Order(LoadMode::kMerge, "a.m", "e", 1), input), 137);
  const std::string name = Text("select name from millrace.staging");
  auto frozen = Open(dsn_);
  ASSERT_TRUE(frozen->Exec("begin; lock table millrace." + name + " in access share mode", Soon()));
  ExpectOk(Load(Order(LoadMode::kMerge, "a.m", "e", 2), input));
  EXPECT_EQ(Text("select name from millrace.staging"), name);
  ASSERT_TRUE(frozen->Exec("rollback", Soon()));
  Exec("update millrace.staging set created_at = now() - interval '11 minutes'");
  ExpectOk(Load(Order(LoadMode::kAppend, "a.other", "o", 1), input));
  EXPECT_EQ(Int(StagingLeft()), 0);
}

TEST_F(LoadPostgres, APartitionedTableIsMergedIntoAndCounted) {
  Exec(
      "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); create schema a;"
      " create table a.p (id integer, name text, price numeric(10,2), primary key (id)) partition by range (id);"
      " create table a.p1 partition of a.p for values from (0) to (50);"
      " create table a.p2 partition of a.p for values from (50) to (1000);"
      " create table a.c (id text collate ci, n integer, region integer, primary key (id, region)) partition by list (region);"
      " create table a.c1 partition of a.c for values in (1)");
  const StageResult first = Load(Order(LoadMode::kMerge, "a.p", "e1", 1), Dataset(kRows));
  ExpectOk(first);
  EXPECT_EQ(first.inserted, 100);
  const StageResult mixed =
      Load(Order(LoadMode::kMerge, "a.p", "e2", 1),
           Dataset("select range::integer as id, case when range < 95 then 'x' else 'n' || range end as name,"
                   " (range * 1.5)::decimal(10,2) as price from range(90, 105)"));
  ExpectOk(mixed);
  EXPECT_EQ(mixed.inserted, 5);
  EXPECT_EQ(mixed.updated, 5);
  EXPECT_EQ(mixed.unchanged, 5);
  EXPECT_EQ(Int("select count(*) from a.p2"), 55);
  for (const auto& [effect, rows] : {std::pair{"c1", "('A', 1, 1)"}, std::pair{"c2", "('a', 2, 1), ('b', 2, 1)"}}) {
    StageOrder order = Order(LoadMode::kMerge, "a.c", effect, 1);
    Spec(order).key = {"id", "region"};
    const StageResult r = Load(order, Dataset(std::string("select * from (values ") + rows + ") t(id, n, region)"));
    ExpectOk(r);
    EXPECT_EQ(r.inserted, 1);
  }
  EXPECT_EQ(Int("select count(*) from a.c where n = 2"), 2);
}

TEST_F(LoadPostgres, RowsThatATriggerDropsAreNotCounted) {
  Exec(
      "create schema a; create table a.t (id integer primary key, name text, price numeric(10,2));"
      " create function a.drops() returns trigger language plpgsql as 'begin if new.id = 7 then return null; end if; return "
      "new; end';"
      " create trigger drops before insert on a.t for each row execute function a.drops()");
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const StageResult r = Load(Order(mode, "a.t", "e" + std::to_string(static_cast<int>(mode)), 1), Dataset(kRows));
    EXPECT_EQ(r.error_class, "data_rejected") << r.error;
    EXPECT_EQ(Int("select count(*) from a.t"), 0);
  }
  ExpectOk(Load(Order(LoadMode::kMerge, "a.t", "ok", 1), Dataset(std::string(kRows) + " where range < 7")));
}

TEST_F(LoadPostgres, ADsnWithItsOwnApplicationNameCannotHideAnOlderAttempt) {
  NEEDS_FAILPOINTS();
  connection_->dsn += " application_name=mine";
  std::string seen;
  SetFailpointHook("load.after_fence", [&] {
    seen = Text(
        "select application_name from pg_stat_activity where datname = current_database()"
        " and application_name like 'millrace load%'");
  });
  const StageResult r = Load(Order(LoadMode::kAppend, "a.t", "e1", 7), Dataset(kRows));
  SetFailpointHook("load.after_fence", nullptr);
  ExpectOk(r);
  EXPECT_TRUE(seen.starts_with("millrace load ") && seen.ends_with(" 7")) << seen;
}

TEST_F(LoadPostgres, ADsnThatCannotBeRightIsRefusedWithoutItsText) {
  for (const char* dsn : {"postgres://postgres:p%40ss/w0rd@host/db", "postgres://u:p@w0rd@host/db", "host=h password=my w0rd",
                          "host=h port=w0rd dbname=d", "host=h password=p sslmode=w0rd"}) {
    StageOrder order = Order(LoadMode::kAppend, "a.t", "e1", 1);
    order.connection->dsn = dsn;
    const StageResult r = Load(order, Dataset(kRows));
    EXPECT_EQ(r.error_class, "invalid_target") << r.error;
    EXPECT_NE(r.error.find("dsn"), std::string::npos) << r.error;
    for (const char* part : {"p@ss", "p%40ss", "w0rd"}) EXPECT_EQ(r.error.find(part), std::string::npos) << r.error;
  }
}

TEST_F(LoadPostgres, TheFilesOfAConnectionAreKnownBeforeTheWall) {
  ::setenv("HOME", dir_.c_str(), 1);
  std::ofstream(dir_ + "/.pg_service.conf") << "[s]\nhost=h\nsslkey=/keys/s.key\n";
  EXPECT_THAT(PgFilesOf("host=h sslcert=/c.crt"),
              ::testing::AllOf(::testing::Contains(dir_ + "/.pgpass"), ::testing::Contains("/c.crt"),
                               ::testing::Contains(dir_ + "/.postgresql/root.crt")));
  EXPECT_THAT(PgFilesOf("service=s passfile=/p"),
              ::testing::AllOf(::testing::Contains("/keys/s.key"), ::testing::Contains("/p"),
                               ::testing::Contains(dir_ + "/.pg_service.conf")));
}

TEST_F(LoadPostgres, ViolatedConstraintsAreTheDatasFault) {
  Exec("create schema a; create table a.u (id integer primary key, name text check (name <> 'n7'), price numeric(10,2))");
  const StageResult check = Load(Order(LoadMode::kAppend, "a.u", "e1", 1), Dataset(kRows));
  EXPECT_EQ(check.error_class, "data_rejected") << check.error;
  ExpectOk(Load(Order(LoadMode::kAppend, "a.u", "e2", 1), Dataset(std::string(kRows) + " where range < 5")));
  const StageResult unique = Load(Order(LoadMode::kAppend, "a.u", "e3", 1), Dataset(std::string(kRows) + " where range < 6"));
  EXPECT_EQ(unique.error_class, "data_rejected") << unique.error;
  EXPECT_FALSE(unique.retryable);
  EXPECT_EQ(Int("select count(*) from a.u"), 5);
}

TEST_F(LoadPostgres, StaleTokensAreRefusedBeforeStagingAndAtPublish) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "a.t", "other", 1), input));
  Exec("insert into millrace.fence values ('e1', 9)");
  EXPECT_EQ(Load(Order(LoadMode::kAppend, "a.t", "e1", 8), input).error_class, "stale_token");
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const std::string effect = "mid" + std::to_string(static_cast<int>(mode));
    const std::string table = "a.s" + std::to_string(static_cast<int>(mode));
    ExpectOk(Load(Order(mode, table, effect + "-0", 1), input));
    SetFailpointHook("load.after_staging",
                     [&] { Exec("update millrace.fence set token = 50 where effect = '" + effect + "'"); });
    const StageResult r = Load(Order(mode, table, effect, 8), input);
    SetFailpointHook("load.after_staging", nullptr);
    EXPECT_EQ(r.error_class, "stale_token") << r.error;
    EXPECT_FALSE(r.retryable);
    EXPECT_EQ(Int("select count(*) from " + table), 100);
  }
}

TEST_F(LoadPostgres, KilledAtEveryFailpointThenRetried) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  int n = 0;
  for (const char* point :
       {"load.after_fence", "load.mid_copy", "load.after_staging", "load.before_commit", "load.after_commit"})
    for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
      SCOPED_TRACE(std::string(point) + " mode " + std::to_string(static_cast<int>(mode)));
      const std::string effect = "k" + std::to_string(++n), table = "k.t" + std::to_string(n);
      EXPECT_EQ(LoadInChild(std::string(point) + "=exit", Order(mode, table, effect, 1), input), 137);
      const StageResult r = Load(Order(mode, table, effect, 2), input);
      ExpectOk(r);
      EXPECT_EQ(r.already_applied, std::string(point) == "load.after_commit");
      EXPECT_EQ(r.inserted, 100);
      EXPECT_EQ(Int("select count(*) from " + table), 100);
      EXPECT_EQ(Int("select count(*) from millrace.receipt where effect = '" + effect + "'"), 1);
    }
  EXPECT_EQ(Int("select count(*) from millrace.staging"), 0);
  EXPECT_EQ(Int("select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname = 'millrace'"
                " and relkind = 'r' and (relname like 'stg%' or relname like 'new%')"),
            0);
}

TEST_F(LoadPostgres, AZombieThatWakesUpIsStale) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const std::string table = "z.t" + std::to_string(static_cast<int>(mode)), effect = "z" + table;
    ExpectOk(Load(Order(mode, table, effect + "-0", 1),
                  Dataset("select 1000::integer as id, 'old' as name, 1::decimal(10,2) as price")));
    StageResult second;
    SetFailpointHook("load.after_staging", [&] {
      SetFailpointHook("load.after_staging", nullptr);
      auto engine = OpenEngine();
      ASSERT_TRUE(engine);
      second = RunLoad(Order(mode, table, effect, 2), input, engine->connection, [](std::int64_t, std::int64_t) {});
    });
    const StageResult zombie = Load(Order(mode, table, effect, 1), input);
    ExpectOk(second);
    EXPECT_EQ(zombie.error_class, "stale_token") << zombie.error;
    EXPECT_EQ(Int("select count(*) from " + table), mode == LoadMode::kReplace ? 100 : 101);
  }
}

TEST_F(LoadPostgres, ACancelFencesWhatStillRuns) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const std::string table = "f.t" + std::to_string(static_cast<int>(mode)), effect = "f" + table;
    StageResult fence;
    SetFailpointHook("load.after_staging", [&] {
      SetFailpointHook("load.after_staging", nullptr);
      fence = Fence(Order(mode, table, effect, 2));
    });
    const StageResult zombie = Load(Order(mode, table, effect, 1), input);
    EXPECT_EQ(fence.error_class, kFencedErrorClass) << fence.error;
    EXPECT_EQ(zombie.error_class, "stale_token") << zombie.error;
    EXPECT_EQ(Int("select count(*) from millrace.receipt where effect = '" + effect + "'"), 0);
    ExpectOk(Load(Order(mode, table, effect, 3), input));  // "retry from failed" uses the effect again
    const StageResult late = Fence(Order(mode, table, effect, 4));
    EXPECT_TRUE(late.ok) << "the receipt wins: " << late.error;
    EXPECT_TRUE(late.already_applied);
    EXPECT_EQ(late.inserted, 100);
    EXPECT_EQ(Fence(Order(mode, table, effect, 3)).error_class, "stale_token");
  }
  EXPECT_EQ(Int("select count(*) from millrace.staging"), 0);
}

TEST_F(LoadPostgres, ConcurrentAttemptsHaveOneEffect) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "c.t", "first", 1), input));
  for (int round = 0; round < 20; ++round) {
    const std::string effect = "c" + std::to_string(round);
    std::barrier start(3);
    std::vector<std::thread> threads;
    std::atomic<int> published = 0;
    for (std::uint64_t token = 1; token <= 3; ++token)
      threads.emplace_back([&, token] {
        auto engine = OpenEngine();
        start.arrive_and_wait();
        if (!engine) return;
        const StageResult r = RunLoad(Order(LoadMode::kAppend, "c.t", effect, token), input, engine->connection, {});
        if (r.ok && !r.already_applied) ++published;
      });
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(published, 1);
    EXPECT_EQ(Int("select count(*) from c.t"), 100 * (round + 2));
  }
}

// Two runs whose loads are the first of one table: the later one finds it made, and goes on as if it had been there.
TEST_F(LoadPostgres, FirstLoadsSideBySideAllSucceed) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "m.before", "before", 1), input));
  for (const char* point : {"load.after_look", "load.after_staging"})
    for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
      // By then an append holds the target, so that nobody can come between.
      if (mode == LoadMode::kAppend && std::string_view(point) == "load.after_staging") continue;
      const std::string table = fmt::format("m.{}{}", point + 5, static_cast<int>(mode));
      SCOPED_TRACE(table);
      StageResult first;
      SetFailpointHook(point, [&] {
        SetFailpointHook(point, nullptr);
        auto engine = OpenEngine();
        ASSERT_TRUE(engine);
        const Manifest other =
            Dataset("select range::integer + 50 as id, 'first' as name, 1::decimal(10,2) as price from range(100)");
        first = RunLoad(Order(mode, table, table + "-first", 1), other, engine->connection, {});
      });
      const StageResult second = Load(Order(mode, table, table + "-second", 1), input);
      SetFailpointHook(point, nullptr);
      ExpectOk(first);
      ExpectOk(second);
      EXPECT_FALSE(second.already_applied);
      const std::int64_t rows = mode == LoadMode::kAppend ? 200 : mode == LoadMode::kMerge ? 150 : 100;
      EXPECT_EQ(Int("select count(*) from " + table), rows);
      EXPECT_EQ(Int("select count(*) from " + table + " where name <> 'first'"), 100);
      EXPECT_EQ(Int("select version from millrace.target where target = '" + table + "'"), 2);
    }
  EXPECT_EQ(Int("select count(*) from millrace.staging"), 0);
}

// The first loads of two tables, in a schema that is not there either.
TEST_F(LoadPostgres, FirstLoadsOfANewSchemaAllSucceed) {
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "before.t", "before", 1), input));
  for (int round = 0; round < 20; ++round) {
    std::barrier start(2);
    std::vector<std::thread> threads;
    std::vector<StageResult> results(2);
    for (std::size_t i = 0; i < 2; ++i)
      threads.emplace_back([&, i] {
        auto engine = OpenEngine();
        start.arrive_and_wait();
        const std::string table = fmt::format("s{}.t{}", round, i);
        if (engine) results[i] = RunLoad(Order(LoadMode::kAppend, table, table, 1), input, engine->connection, {});
      });
    for (std::thread& t : threads) t.join();
    for (const StageResult& r : results) ExpectOk(r);
  }
}

TEST_F(LoadPostgres, ErrorsSayWhoseFaultItIsAndNoSecret) {
  StageOrder order = Order(LoadMode::kAppend, "a.t", "e1", 1);
  order.connection->dsn = "host=127.0.0.1 port=1 user=u dbname=d password=hunter22";
  const StageResult down = Load(order, Dataset(kRows));
  EXPECT_EQ(down.error_class, "destination_unavailable") << down.error;
  EXPECT_TRUE(down.retryable);
  EXPECT_EQ(down.error.find("hunter22"), std::string::npos);
  Exec("create role " + name_ + "_u login; create schema a; create table a.t (id integer, name text, price numeric(10,2))");
  ExpectOk(Load(Order(LoadMode::kAppend, "b.t", "e0", 1), Dataset(kRows)));
  order.connection->dsn = dsn_ + " user=" + name_ + "_u";
  const StageResult denied = Load(order, Dataset(kRows));
  EXPECT_EQ(denied.error_class, "destination_rejected") << denied.error;
  EXPECT_FALSE(denied.retryable);
  Exec("drop role " + name_ + "_u");
}

// Forwards one connection after another to the server; from the first "commit" of a client on, the server's answer is
// swallowed and the client's connection closed.
class CommitEater {
 public:
  explicit CommitEater(int port) : server_port_(port) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 8), 0);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~CommitEater() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    for (std::thread& t : pumps_) t.join();
    ::close(listener_);
  }
  int port() const { return port_; }
  std::atomic<bool> armed = false;
  std::atomic<bool> deliver_commit = true;  // false: the COMMIT never reaches the server
  std::atomic<int> eaten = 0;

 private:
  void Serve() {
    while (true) {
      const int client = ::accept(listener_, nullptr, nullptr);
      if (client < 0) return;
      pumps_.emplace_back([this, client] { Pump(client); });
    }
  }
  void Pump(int client) {
    const int server = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(server_port_));
    if (::connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) Copy(client, server);
    ::close(client);
    ::close(server);
  }
  void Copy(int client, int server) {
    char bytes[65536];
    while (true) {
      pollfd fds[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
      if (::poll(fds, 2, 20'000) <= 0) return;
      for (int i = 0; i < 2; ++i) {
        if ((fds[i].revents & (POLLIN | POLLHUP)) == 0) continue;
        const ssize_t n = ::recv(fds[i].fd, bytes, sizeof bytes, 0);
        if (n <= 0) return;
        const std::string_view text(bytes, static_cast<std::size_t>(n));
        const bool commit = i == 0 && armed && text.find("commit") != std::string_view::npos;
        if (commit && !deliver_commit) {
          ++eaten;
          armed = false;
          return;
        }
        if (::send(fds[1 - i].fd, bytes, static_cast<std::size_t>(n), MSG_NOSIGNAL) != n) return;
        if (commit) {
          ++eaten;
          armed = false;
          (void)::recv(server, bytes, sizeof bytes, 0);  // the answer is here, and nobody gets it
          return;
        }
      }
    }
  }
  int listener_ = -1, port_ = 0, server_port_;
  std::thread thread_;
  std::vector<std::thread> pumps_;
};

TEST_F(LoadPostgres, ALostCommitAnswerIsResolvedByTheReceipt) {
  NEEDS_FAILPOINTS();
  const Manifest input = Dataset(kRows);
  ExpectOk(Load(Order(LoadMode::kAppend, "l.t", "e0", 1), input));
  const auto at = admin_dsn_.find("port=");
  ASSERT_NE(at, std::string::npos);
  CommitEater proxy(std::atoi(admin_dsn_.c_str() + at + 5));
  StageOrder order = Order(LoadMode::kAppend, "l.t", "e1", 1);
  order.connection->dsn = dsn_ + " host=127.0.0.1 port=" + std::to_string(proxy.port());
  SetFailpointHook("load.before_commit", [&] { proxy.armed = true; });
  const StageResult applied = Load(order, input);
  EXPECT_EQ(proxy.eaten, 1);
  ExpectOk(applied);
  EXPECT_EQ(applied.inserted, 100);
  EXPECT_EQ(Int("select count(*) from l.t"), 200);

  proxy.deliver_commit = false;
  order.task.effect = "e2";
  const StageResult lost = Load(order, input);
  SetFailpointHook("load.before_commit", nullptr);
  EXPECT_EQ(proxy.eaten, 2);
  EXPECT_EQ(lost.error_class, "destination_unavailable") << lost.error;
  EXPECT_TRUE(lost.retryable);
  EXPECT_EQ(Int("select count(*) from l.t"), 200);
  order.token = Token{2};
  ExpectOk(Load(order, input));
  EXPECT_EQ(Int("select count(*) from l.t"), 300);
}

TEST_F(LoadPostgres, AMillionRows) {
  const Manifest input = Dataset(
      "select range as id, 'name ' || range as name, (range * 1.25)::decimal(12,2) as price, range::double / 3 as ratio,"
      " timestamp '2020-01-01' + to_seconds(range) as at from range(1000000)");
  for (const LoadMode mode : {LoadMode::kAppend, LoadMode::kReplace, LoadMode::kMerge}) {
    const auto start = clock_.Now();
    const StageResult r = Load(
        Order(mode, "big.t" + std::to_string(static_cast<int>(mode)), "e" + std::to_string(static_cast<int>(mode)), 1), input);
    ExpectOk(r);
    const double seconds = std::chrono::duration<double>(clock_.Now() - start).count();
    std::printf("1,000,000 rows, %s: %.2f s, %.0f rows/s\n", r.plan.c_str(), seconds, 1e6 / seconds);
    EXPECT_EQ(r.inserted, 1'000'000);
  }
  EXPECT_EQ(Int("select count(*) from (select * from big.t0 except select * from big.t1) d"), 0);
}

}  // namespace
}  // namespace millrace
