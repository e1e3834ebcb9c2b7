#include <gtest/gtest.h>

#include <set>

#include "common/base/clock.h"
#include "common/base/ids.h"

namespace millrace {
namespace {

TEST(ClockTest, Rfc3339RoundTripsAndRejectsTheMalformed) {
  for (const char* text : {"2026-11-21T04:05:06Z", "1970-01-01T00:00:00Z", "2024-02-29T23:59:59.000001Z"}) {
    const auto t = ParseRfc3339(text);
    ASSERT_TRUE(t) << text;
    EXPECT_EQ(ToRfc3339(*t), text);
  }
  EXPECT_EQ(ToRfc3339(*ParseRfc3339("2026-11-21T04:05:06+02:30")), "2026-11-21T01:35:06Z");
  for (const char* bad : {"", "2026-11-21", "2026-02-30T00:00:00Z", "2026-11-21T24:00:00Z", "2026-11-21T04:05:06",
                          "2026-11-21T04:05:06.Z", "2026-11-21T04:05:06+2:30", "2026-11-21T04:05:06Zx"}) {
    EXPECT_FALSE(ParseRfc3339(bad)) << bad;
  }
}

TEST(IdsTest, UuidTextRoundTripsAndRejectsTheMalformed) {
  const std::string text = "01890a5d-ac96-774b-bcce-b302099a8057";
  EXPECT_EQ(Uuid::Parse(text)->ToString(), text);
  for (const char* bad : {"", "01890a5d-ac96-774b-bcce-b302099a805", "01890a5d-ac96-774b-bcce-b302099a805g",
                          "01890a5dxac96-774b-bcce-b302099a8057", "../../../../../../../../../../../etc"}) {
    EXPECT_FALSE(Uuid::Parse(bad)) << bad;
  }
}

TEST(IdsTest, GeneratedIdsStrictlyIncreaseEvenWhenTheWallClockGoesBack) {
  FakeClock clock;
  SeededRandom random(7);
  IdGenerator ids(clock, random);
  Uuid last = ids.Next();
  for (int i = 0; i < 100'000; ++i) {
    if (i == 50'000) clock.StepWall(-1h);
    if (i % 1000 == 0) clock.Advance(1ms);
    const Uuid next = ids.Next();
    ASSERT_LT(last, next);
    last = next;
  }
  EXPECT_EQ(last.bytes[6] >> 4, 7);
  EXPECT_EQ(last.bytes[8] >> 6, 2);
}

TEST(IdsTest, TokenOfALaterEpochIsGreaterWhateverTheCounters) {
  EXPECT_LT(Token::Make(Epoch{1}, 0xffffffffu), Token::Make(Epoch{2}, 0));
  EXPECT_EQ(Token::Make(Epoch{9}, 5).epoch(), Epoch{9});
}

TEST(IdsTest, ShardsSpreadOrgs) {
  std::set<std::uint16_t> seen;
  for (std::int64_t org = 1; org <= 1000; ++org) seen.insert(ShardOf(OrgId{org}, 16).value());
  EXPECT_EQ(seen.size(), 16u);
}

}  // namespace
}  // namespace millrace
