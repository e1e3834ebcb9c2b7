#include "common/ledger/postgres_combine.h"

#include <gtest/gtest.h>

namespace millrace::ledger {
namespace {

constexpr std::string_view kCheck = "select f($1, $2)", kInsert = "insert into t select unnest($1), $12, $2",
                           kDelete = "delete from u where id = any($1)";

PgStatement Check() { return {kCheck, PgParams().Int(1).Int(2)}; }
PgStatement Insert() { return {kInsert, PgParams().Int(3).Text("x").Null()}; }
PgStatement Delete() { return {kDelete, PgParams().Text("y")}; }

TEST(StatementCombinerTest, PartsComeBeforeTheCheckAndTheirParametersBehindItsOwn) {
  StatementCombiner combiner;
  PgStatement check = Check();
  std::vector<PgStatement> parts;
  parts.push_back(Insert());
  parts.push_back(Delete());
  const auto combined = combiner.Combine(check, parts);
  ASSERT_TRUE(combined);
  EXPECT_EQ(combined->sql,
            "with p0 as (insert into t select unnest($3), $14, $4), p1 as (delete from u where id = any($6)) select f($1, $2)");
  EXPECT_EQ(combined->params.size(), 6u);
}

TEST(StatementCombinerTest, EqualStatementsHaveOneTextForEver) {
  StatementCombiner combiner;
  std::vector<const char*> texts;
  for (int i = 0; i < 3; ++i) {
    PgStatement check = Check();
    std::vector<PgStatement> parts;
    parts.push_back(i == 1 ? Delete() : Insert());
    texts.push_back(combiner.Combine(check, parts)->sql.data());
  }
  EXPECT_EQ(texts[0], texts[2]);
  EXPECT_NE(texts[0], texts[1]);
}

TEST(StatementCombinerTest, WhatIsTooMuchStaysApart) {
  StatementCombiner combiner;
  PgStatement check = Check();
  std::vector<PgStatement> none;
  EXPECT_FALSE(combiner.Combine(check, none));
  std::vector<PgStatement> many;
  for (std::size_t i = 0; i <= StatementCombiner::kPartsMax; ++i) many.push_back(Insert());
  EXPECT_FALSE(combiner.Combine(check, many));
  EXPECT_EQ(check.params.size(), 2u) << "what was not combined is as it was";
  EXPECT_EQ(many.back().params.size(), 3u);

  std::vector<PgStatement> large;
  large.push_back({kDelete, PgParams().Text(std::string(StatementCombiner::kBytesMax, 'x'))});
  EXPECT_FALSE(combiner.Combine(check, large));
  large[0].params = PgParams().Text(std::string(StatementCombiner::kBytesMax - 100, 'x'));
  EXPECT_TRUE(combiner.Combine(check, large));

  std::vector<std::string> texts;
  for (std::size_t i = 0; i <= StatementCombiner::kTextsMax; ++i) texts.push_back("delete from u where id = $1");
  for (std::size_t i = 0; i < texts.size(); ++i) {
    PgStatement again = Check();
    std::vector<PgStatement> parts;
    parts.push_back({texts[i], PgParams().Int(1)});
    EXPECT_EQ(combiner.Combine(again, parts).has_value(), i + 1 < StatementCombiner::kTextsMax) << "one is there already";
  }
}

}  // namespace
}  // namespace millrace::ledger
