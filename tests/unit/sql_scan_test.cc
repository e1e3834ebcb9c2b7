#include "common/model/sql_scan.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

std::string Names(const std::vector<SqlReference>& references) {
  std::string out;
  for (const SqlReference& r : references) out += (out.empty() ? "" : ",") + r.name;
  return out;
}

TEST(SqlScan, FindsTables) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"select * from a", "a"},
      {"SELECT count(*) as flights FROM Trips", "trips"},
      {"select * from a, b x, c", "a,b,c"},
      {"select a, b from c where x in (1, 2)", "c"},
      {"select * from a left join b using (k), c", "a,b,c"},
      {"select * from a join b on a.x = b.x, c", "a,b,c"},
      {"select * from (a join b on a.x = b.x) join c using (z)", "a,b,c"},
      {"select * from (select * from a, b) q, c", "a,b,c"},
      {"select extract(year from ts), substring(x from 2), trim(both from y) from t", "t"},
      {"select extract(year from (select max(ts) from m)) from t", "m,t"},
      {"select x is distinct from y, x is not distinct from z from t", "t"},
      {"with q as (select * from a) select * from q join b using (x)", "a,b"},
      {"with a as (select * from a) select * from a", "a"},
      {"with recursive r as (select 1 union all select * from r) select * from r", ""},
      {"with x(n) as materialized (select 1), y as (from x) from y, z", "z"},
      {"select * from (with q as (select 1) select * from q), q", "q"},
      {"from a", "a"},
      {"from a select x, y where z union all from b", "a,b"},
      {"select * from main.a, information_schema.tables, b", "b"},
      {"select * from range(10) r, unnest([1, 2]) u, t", "t"},
      {"select 'from x', \"from\" from \"T\" -- from y\n /* from z /* from w */ */", "t"},
      {"select $$ from x $$, $q$ from y $q$ from t", "t"},
      {"select * from t where x in (select y from u) and exists (from v)", "t,u,v"},
      {"values (1, 2)", ""},
      {"select a, (select max(b) from c), d from e order by f, g", "c,e"},
      {"select * from a x: b", "a"},
      {"select * from x: b", "b"},
      {"select * from a, lateral (select * from b where b.i = a.i) l", "a,b"},
      {"select * from a asof join b on a.t >= b.t", "a,b"},
      {"select * from (pivot a on x using sum(y))", "a"},
      {"select e'it\\'s from x' from t", "t"},
      {"select t.from from t", "t"},
      {"select * from a a1 join a a2 on true", "a"},
      {"select 1 from t limit 5 offset 2", "t"},
  };
  for (const auto& [sql, tables] : cases) {
    const SqlScan scan = ScanSql(sql);
    EXPECT_EQ(Names(scan.tables), tables) << sql;
    EXPECT_FALSE(scan.problem) << sql << ": " << (scan.problem ? scan.problem->message : "");
    EXPECT_EQ(scan.statements, 1) << sql;
  }
}

TEST(SqlScan, FindsParametersAndFiles) {
  const SqlScan scan = ScanSql("select $a, '$b', $c::int, $a from 'x.csv' where y > $d -- $e");
  EXPECT_EQ(Names(scan.params), "a,c,d");
  EXPECT_EQ(scan.params[0], (SqlReference{"a", 7, 2}));
  EXPECT_EQ(scan.files, (std::vector<SqlReference>{{"x.csv", 34, 7}}));
  EXPECT_EQ(scan.first_word, "select");
}

TEST(SqlScan, CountsStatements) {
  EXPECT_EQ(ScanSql("").statements, 0);
  EXPECT_EQ(ScanSql(" ; -- x\n;").statements, 0);
  EXPECT_EQ(ScanSql("select ';' ;").statements, 1);
  EXPECT_EQ(ScanSql("select 1; drop table x").statements, 2);
  EXPECT_EQ(ScanSql("(select 1)").first_word, "(");
}

TEST(SqlScan, NamesWhatIsNotClosed) {
  const std::pair<std::string_view, std::size_t> cases[] = {{"select 'x", 7},   {"select \"x", 7}, {"select $$x", 7},
                                                            {"select /* x", 7}, {"select (1", 7},  {"select 1)", 8},
                                                            {"select ?", 7}};
  for (const auto& [sql, offset] : cases) {
    const SqlScan scan = ScanSql(sql);
    ASSERT_TRUE(scan.problem) << sql;
    EXPECT_EQ(scan.problem->offset, offset) << sql;
  }
}

}  // namespace
}  // namespace millrace
