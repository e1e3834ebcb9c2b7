#include "common/model/queue_settings.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "common/base/random.h"
#include "common/model/whole_org.h"
#include "tests/support/random_messages.h"

namespace millrace {
namespace {

TEST(QueueSettings, SurviveTheirText) {
  EXPECT_EQ(ToJson(QueueSettings{}), "{}");
  SeededRandom seed(5);
  testing::RandomMessages random(seed);
  for (int i = 0; i < 500; ++i) {
    QueueSettings settings = random.MakeSettings();
    const std::string text = ToJson(settings);
    ASSERT_LE(text.size(), kQueueSettingsBytesMax);
    const auto read = QueueSettingsFromJson(text);
    ASSERT_TRUE(read) << read.error().message << "\n" << text;
    settings.org = kDefaultOrg;  // not in the text
    settings.queue.clear();
    settings.revision = 0;
    ASSERT_EQ(*read, settings) << text;
  }
}

TEST(QueueSettings, AComplaintNamesFieldValueAndFix) {
  const auto complaint = [](std::string_view text) {
    const auto read = QueueSettingsFromJson(text);
    EXPECT_FALSE(read) << text;
    if (read) return std::string();
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument);
    return read.error().message;
  };
  EXPECT_EQ(complaint("["), "queue settings: not a JSON document");
  EXPECT_EQ(complaint(R"({"speed":1})"), "queue settings: speed: unknown key");
  EXPECT_EQ(complaint(R"({"paused":1})"), "queue settings: paused: expected true or false");
  EXPECT_EQ(complaint(R"({"order":"fast"})"), "order: 'fast' is neither strict nor weighted");
  EXPECT_EQ(complaint(R"({"weights":[1,2]})"), "weights: 2 numbers; give 4, the most urgent priority's first");
  EXPECT_EQ(complaint(R"({"weights":[1,2,3,0]})"), "weights: 0 is not in [1, 1000]");
  EXPECT_NE(complaint(R"({"aging_ms":0})").find("aging: 0 ms is not in"), std::string::npos);
  EXPECT_EQ(complaint(R"({"concurrency":2000000})"), "concurrency: 2000000 is not in [0, 1000000]");
  EXPECT_EQ(complaint(R"({"rate":{"count":0,"burst":3}})"), "rate: a burst of 3 without a rate; give the rate too");
  EXPECT_NE(complaint(R"({"key_rate":{"count":1,"per_ms":0}})").find("key_rate: a period of 0 ms"), std::string::npos);
  EXPECT_EQ(complaint(R"({"durability":"disk"})"),
            "queue settings: durability: unknown value 'disk'; give one of ledger, redis");
  EXPECT_EQ(complaint(R"({"max_waiting_jobs":-1})"), "queue settings: max_waiting_jobs: expected an integer in range");
}

TEST(QueueSettings, AChangeOfTheClassNotesItsInstant) {
  const WallTime at = FromUnixMicros(1'000'000);
  QueueSettings ledger, redis;
  redis.durability = Durability::kRedis;
  QueueSettings other = ledger;
  other.paused = true;
  NoteClassChange(ledger, at, other);
  EXPECT_FALSE(other.redis_until) << "the class is the same";
  NoteClassChange(ledger, at, redis);
  EXPECT_FALSE(redis.redis_until);
  ledger.redis_until = FromUnixMicros(9'000'000'000'000'000);  // whatever a client says
  NoteClassChange(redis, at, ledger);
  EXPECT_EQ(ledger.redis_until, at);
  QueueSettings next;
  NoteClassChange(ledger, at + kClassChangeDoubt, next);
  EXPECT_EQ(next.redis_until, ledger.redis_until) << "of somebody who does not know it";
  NoteClassChange(ledger, at + kClassChangeDoubt + Millis{1}, next);
  EXPECT_FALSE(next.redis_until) << "it does not count any more, and older programs can read the settings again";
}

TEST(QueueSettings, AQueueHasAName) {
  QueueSettings settings;
  EXPECT_FALSE(Validate(settings));
  settings.queue = "a\nb";
  EXPECT_FALSE(Validate(settings));
  settings.queue = std::string(kNameBytesMax + 1, 'q');
  EXPECT_FALSE(Validate(settings));
  settings.queue = "default";
  EXPECT_TRUE(Validate(settings));
}

TEST(QueueSettings, TheWholeOrgHasBudgetsAndNothingElse) {
  QueueSettings org;
  org.queue = kWholeOrg;
  org.max_waiting_jobs = 5;
  org.max_waiting_bytes = 100;
  EXPECT_TRUE(Validate(org));
  using Set = std::function<void(QueueSettings&)>;
  const std::pair<std::string, Set> others[] = {
      {"paused", [](QueueSettings& s) { s.paused = true; }},
      {"order", [](QueueSettings& s) { s.order = QueueOrder::kWeighted; }},
      {"weights", [](QueueSettings& s) { s.weights[3] = 2; }},
      {"aging", [](QueueSettings& s) { s.aging = Millis{30'000}; }},
      {"concurrency", [](QueueSettings& s) { s.concurrency = 1; }},
      {"key_concurrency", [](QueueSettings& s) { s.key_concurrency = 1; }},
      {"rate", [](QueueSettings& s) { s.rate = {.count = 1}; }},
      {"key_rate", [](QueueSettings& s) { s.key_rate = {.count = 1}; }},
      {"durability", [](QueueSettings& s) { s.durability = Durability::kRedis; }},
  };
  for (const auto& [field, set] : others) {
    QueueSettings settings = org;
    set(settings);
    const auto valid = Validate(settings);
    ASSERT_FALSE(valid) << field;
    EXPECT_EQ(valid.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(
        valid.error().message,
        field + ": '*' is the whole org and has only max_waiting_jobs and max_waiting_bytes; set this for a queue by its name");
  }
}

TEST(Rate, ReadsAndWritesWhatPeopleWrite) {
  const auto rate = [](std::string_view text) {
    const auto parsed = ParseRate("rate", text);
    EXPECT_TRUE(parsed) << parsed.error().message;
    return parsed ? *parsed : Rate{};
  };
  EXPECT_EQ(rate("100/1s"), (Rate{100, Millis{1000}, 0}));
  EXPECT_EQ(rate("5/m"), (Rate{5, Millis{60'000}, 0}));
  EXPECT_EQ(rate("3/250ms"), (Rate{3, Millis{250}, 0}));
  EXPECT_EQ(rate("none"), Rate{});
  EXPECT_EQ(ToString(rate("90/60s")), "90/1m");
  EXPECT_EQ(ToString(rate("3/1500ms")), "3/1500ms");
  EXPECT_EQ(ToString(Rate{}), "none");
  EXPECT_EQ(ToString(Rate{5, Millis{60'000}, 9}), "5/1m burst 9");
  for (const char* wrong :
       {"", "5", "5/", "/1s", "0/1s", "5/1d", "-1/1s", "5/0s", "5/2h", "9999999/1s", "5/1s ", "99999999999999999999/1s"}) {
    const auto parsed = ParseRate("key-rate", wrong);
    ASSERT_FALSE(parsed) << wrong;
    EXPECT_TRUE(parsed.error().message.starts_with("key-rate: ")) << parsed.error().message;
  }
}

}  // namespace
}  // namespace millrace
