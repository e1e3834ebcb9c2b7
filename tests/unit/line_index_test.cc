// Which line comes next: order, limits, aging, weights and fair turns, by the numbers and under random histories.
#include "broker/line_index.h"
#include "broker/line_memo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <limits>

#include "common/base/random.h"

namespace millrace {
namespace {

constexpr ShardId kShard{0};

class LineIndexTest : public testing::Test {
 protected:
  static LineKey Key(int priority = kPriorityDefault, std::int64_t org = 1, const std::string& queue = "q",
                     const std::string& limit_key = "", const std::string& kind = "work") {
    return {.queue = queue, .priority = priority, .org = OrgId{org}, .root = "", .kind = kind, .limit_key = limit_key};
  }
  void Add(const LineKey& key, std::uint64_t n = 1) { index_.Add(kShard, key.ToString(), n, now_); }
  // The next job, taken; nothing when nothing may start.
  std::optional<LineKey> Start() {
    index_.Advance(now_);
    LineIndex::Line* line = index_.Next(*view_);
    if (line == nullptr) return std::nullopt;
    EXPECT_GE(LineIndex::Allowance(*line, now_), 1U);
    LineKey key = line->key();
    index_.Take(*line, 1, now_);
    return key;
  }
  std::vector<int> Priorities(int n) {
    std::vector<int> all;
    for (int i = 0; i < n; ++i)
      if (const auto key = Start()) all.push_back(key->priority);
    return all;
  }
  QueueSettings Settings(std::int64_t org = 1, const std::string& queue = "q") {
    QueueSettings settings;
    settings.org = OrgId{org};
    settings.queue = queue;
    return settings;
  }
  void Set(const QueueSettings& settings) { index_.Set(kShard, settings, now_); }

  MonoTime now_{Micros{1'000'000'000}};
  LineIndex index_;
  std::shared_ptr<LineIndex::View> view_ = index_.ViewOf({});
};

TEST_F(LineIndexTest, ALineIsNamedByAllItsParts) {
  LineKey key = Key(1, -7, "a b", "customer 5");
  key.root = "/data";
  const auto parsed = LineKey::Parse(key.ToString());
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed, key);
  for (const char* wrong : {"", "q",
                            "q\x1f"
                            "2\x1f"
                            "1\x1f\x1f"
                            "work",
                            "q\x1f"
                            "9\x1f"
                            "1\x1f\x1fk\x1f",
                            "q\x1f"
                            "1\x1f"
                            "1\x1f\x1fk\x1f\x1f"})
    EXPECT_FALSE(LineKey::Parse(wrong)) << wrong;
  JobSpec spec;
  spec.queue =
      "a\x1f"
      "b";
  spec.options.limit_key = "x";
  EXPECT_EQ(LineKey::Of(spec).queue, "a?b");
  EXPECT_EQ(LineKey::Of(spec).limit_key, "x");
}

TEST_F(LineIndexTest, PriorityIsStrictAndLinesOfAnOrgTakeTurns) {
  Add(Key(3), 2);
  Add(Key(0), 2);
  Add(Key(1, 1, "other"), 2);
  Add(Key(1), 2);
  EXPECT_EQ(Priorities(9), (std::vector{0, 0, 1, 1, 1, 1, 3, 3}));
  EXPECT_TRUE(index_.Empty());
  Add(Key(2, 1, "a"), 3);
  Add(Key(2, 1, "b"), 3);
  std::string queues;
  while (const auto key = Start()) queues += key->queue;
  EXPECT_EQ(queues, "ababab");
}

TEST_F(LineIndexTest, AWorkerSeesOnlyWhatItServes) {
  const auto gpu = index_.ViewOf({.queues = {"gpu"}, .kinds = {}, .roots = {}});
  EXPECT_EQ(gpu, index_.ViewOf({.queues = {"gpu"}, .kinds = {}, .roots = {}})) << "workers that serve the same share it";
  Add(Key(0), 1);
  EXPECT_EQ(index_.Next(*gpu), nullptr);
  Add(Key(3, 1, "gpu"), 1);
  ASSERT_NE(index_.Next(*gpu), nullptr);
  EXPECT_EQ(index_.Next(*gpu)->key().queue, "gpu");
}

TEST_F(LineIndexTest, AgingLetsAStarvedLineHaveATurn) {
  QueueSettings settings = Settings();
  settings.aging = Millis{60'000};
  Set(settings);
  Add(Key(0), 1'000'000);
  Add(Key(3), 10);
  std::vector<int> turn_of_low;  // by second
  for (int second = 0; second < 600; ++second, now_ += Micros{1'000'000})
    if (Start()->priority == 3) turn_of_low.push_back(second);
  // After 3 * 60 s it counts as priority 0; the next turn of that level but one is its own; then it begins to wait again.
  EXPECT_EQ(turn_of_low, (std::vector{181, 362, 543}));
}

TEST_F(LineIndexTest, AgingCountsLevelByLevel) {
  QueueSettings settings = Settings();
  settings.aging = Millis{1000};
  Set(settings);
  Add(Key(3), 5);
  now_ += Micros{1'000'000};
  Add(Key(2), 5);
  Add(Key(1), 5);
  EXPECT_EQ(Start()->priority, 1);
  now_ += Micros{999'999};
  EXPECT_EQ(Start()->priority, 1) << "2 counts as 2, 3 counts as 2";
  now_ += Micros{1};  // both have aged to 1
  EXPECT_EQ(Priorities(3), (std::vector{1, 2, 3})) << "three lines at one level take turns; a turn ends the aging";
}

TEST_F(LineIndexTest, WeightsShareTurnsBetweenPriorities) {
  QueueSettings settings = Settings();
  settings.order = QueueOrder::kWeighted;
  settings.weights = {8, 4, 2, 1};
  Set(settings);
  for (int p = 0; p < 4; ++p) Add(Key(p), 10'000);
  std::array<int, 4> turns{};
  for (const int p : Priorities(1500)) ++turns[static_cast<std::size_t>(p)];
  for (std::size_t p = 0; p < 4; ++p) EXPECT_NEAR(turns[p], 100 * settings.weights[p], 2) << p;
  // A priority that was empty has no claim to the turns of that time.
  for (int i = 0; i < 40'000 && !index_.Empty(); ++i) Start();
  Add(Key(0), 1000);
  for (int i = 0; i < 500; ++i) Start();
  Add(Key(3), 1000);
  turns = {};
  for (const int p : Priorities(90)) ++turns[static_cast<std::size_t>(p)];
  EXPECT_NEAR(turns[3], 10, 1);
}

TEST_F(LineIndexTest, APausedQueueStartsNothingAndGoesOnWhereItWas) {
  QueueSettings settings = Settings();
  Add(Key(), 3);
  ASSERT_TRUE(Start());
  settings.paused = true;
  Set(settings);
  EXPECT_FALSE(Start());
  Add(Key(0), 1);
  EXPECT_FALSE(Start());
  EXPECT_EQ(index_.CountsOf(OrgId{1}, "q").ready, 3U);
  EXPECT_EQ(index_.CountsOf(OrgId{1}, "q").running, 1U);
  Add(Key(2, 2, "q"), 1);
  EXPECT_EQ(Start()->org, OrgId{2}) << "another org's queue of that name is another queue";
  settings.paused = false;
  Set(settings);
  EXPECT_EQ(Priorities(5), (std::vector{0, 2, 2}));
}

TEST_F(LineIndexTest, ConcurrencyOfQueueAndKey) {
  QueueSettings settings = Settings();
  settings.concurrency = 3;
  settings.key_concurrency = 2;
  Set(settings);
  Add(Key(2, 1, "q", "a"), 5);
  Add(Key(0, 1, "q", "a"), 1);
  Add(Key(3, 1, "q", "b"), 5);
  EXPECT_EQ(Start()->priority, 0);
  EXPECT_EQ(Start()->limit_key, "a");
  EXPECT_EQ(Start()->limit_key, "b") << "two of key a run";
  EXPECT_FALSE(Start()) << "three of the queue run";
  index_.Ended(Key(3, 1, "q", "b"), now_);
  EXPECT_EQ(Start()->limit_key, "b");
  index_.Ended(Key(0, 1, "q", "a"), now_);
  EXPECT_EQ(Start()->limit_key, "a");
  EXPECT_FALSE(Start());
  settings.concurrency = 4;
  Set(settings);
  EXPECT_EQ(Start()->limit_key, "b");
  EXPECT_EQ(index_.RunningOfKey(OrgId{1}, "q", "b"), 2U);
  settings.concurrency = 1;
  Set(settings);
  index_.Ended(Key(2, 1, "q", "a"), now_);
  EXPECT_FALSE(Start()) << "what runs goes on; nothing new starts above a limit that was lowered";
}

TEST_F(LineIndexTest, RatesAreTokenBuckets) {
  QueueSettings settings = Settings();
  settings.rate = {.count = 10, .per = Millis{1000}, .burst = 3};
  settings.key_rate = {.count = 1, .per = Millis{1000}, .burst = 0};
  Set(settings);
  Add(Key(2, 1, "q", "a"), 100);
  Add(Key(2, 1, "q"), 100);
  int a = 0, rest = 0;
  for (int i = 0; i < 3; ++i) ++(Start()->limit_key == "a" ? a : rest);
  EXPECT_EQ(a, 1);
  EXPECT_EQ(rest, 2);
  EXPECT_FALSE(Start()) << "the bucket is empty";
  ASSERT_EQ(index_.NextToken(), now_ + Micros{100'000});
  now_ += Micros{99'999};
  EXPECT_FALSE(Start());
  now_ += Micros{1};
  EXPECT_TRUE(index_.Advance(now_));
  EXPECT_TRUE(Start());
  EXPECT_FALSE(Start());
  for (int i = 0; i < 1000; ++i) {
    now_ += Micros{10'000};
    while (const auto key = Start()) ++(key->limit_key == "a" ? a : rest);
  }
  EXPECT_EQ(a + rest, 3 + 100) << "10 s at 10 per second";
  EXPECT_LE(a, 1 + 10);
  EXPECT_GE(a, 9) << "its token may have to wait for one of the queue";
}

TEST_F(LineIndexTest, WhatWasNotStartedGivesItsTokenBack) {
  QueueSettings settings = Settings();
  settings.rate = {.count = 1, .per = Millis{60'000}, .burst = 2};
  settings.concurrency = 2;
  Set(settings);
  Add(Key(), 5);
  LineIndex::Line* line = index_.Next(*view_);
  ASSERT_EQ(LineIndex::Allowance(*line, now_), 2U);
  index_.Take(*line, 2, now_);
  EXPECT_FALSE(Start());
  index_.GiveBack(Key(), 2, now_);
  EXPECT_TRUE(Start());
  index_.Ended(Key(), now_);
  EXPECT_TRUE(Start());
  EXPECT_FALSE(Start()) << "the second token; an end gives none back";
}

TEST_F(LineIndexTest, ANewOwnerBeginsWithEmptyBuckets) {
  index_.Own(kShard, now_);
  QueueSettings settings = Settings();
  settings.rate = {.count = 2, .per = Millis{1000}, .burst = 0};
  Set(settings);
  Add(Key(), 5);
  // The rate may have been the owner's before: what it spent is not known.
  settings.rate.count = 4;
  index_.DropShard(kShard);
  index_.Own(kShard, now_);
  Set(settings);
  Add(Key(2, 1, "q", "k"), 5);
  now_ += Micros{250'000};
  EXPECT_TRUE(Start());
}

TEST_F(LineIndexTest, DroppingAShardLeavesNothingOfIt) {
  Add(Key(2, 1, "q", "k"), 5);
  Start();
  index_.Add(ShardId{1}, Key(2, 2).ToString(), 2, now_);
  index_.DropShard(kShard);
  EXPECT_EQ(index_.Ready(kShard), 0U);
  EXPECT_EQ(index_.Ready(ShardId{1}), 2U);
  EXPECT_EQ(index_.CountsOf(OrgId{1}, "q").running, 0U);
  index_.Ended(Key(2, 1, "q", "k"), now_);  // of a lease that went with it
  EXPECT_EQ(Start()->org, OrgId{2});
  index_.DropShard(ShardId{1});
  EXPECT_TRUE(index_.Empty());
  EXPECT_TRUE(index_.NothingEligible());
}

// The claim: one org with 100,000 jobs at most doubles another's median wait. One server, one job a second.
struct Waits {
  double median = 0, worst = 0;
};
Waits WaitsOfSmallOrg(std::uint64_t jobs_of_large, std::int64_t others, std::uint64_t claim, int arrive_after) {
  LineIndex index;
  const auto view = index.ViewOf({});
  const auto key = [](std::int64_t org) {
    return LineKey{.queue = "q", .priority = 2, .org = OrgId{org}, .root = "", .kind = "work", .limit_key = ""};
  };
  MonoTime now{Micros{1'000'000}};
  if (jobs_of_large > 0) index.Add(kShard, key(1).ToString(), jobs_of_large, now);
  for (std::int64_t org = 0; org < others; ++org) index.Add(kShard, key(100 + org).ToString(), 10, now);
  std::vector<double> waits;
  std::deque<std::int64_t> claimed;
  constexpr std::uint64_t kSmall = 10;
  MonoTime arrived{};
  for (int step = 0; waits.size() < kSmall; ++step, now += Micros{1'000'000}) {
    if (step == arrive_after) {
      index.Add(kShard, key(2).ToString(), kSmall, now);
      arrived = now;
    }
    if (claimed.empty()) {
      if (LineIndex::Line* line = index.Next(*view)) {
        const std::uint64_t n = std::min(LineIndex::Allowance(*line, now), claim);
        claimed.assign(n, line->key().org.value());
        index.Take(*line, n, now);
      }
    }
    if (claimed.empty()) continue;
    if (claimed.front() == 2) waits.push_back(std::chrono::duration<double>(now - arrived).count());
    claimed.pop_front();
  }
  std::ranges::sort(waits);
  return {.median = (waits[4] + waits[5]) / 2, .worst = waits.back()};
}

TEST(Fairness, AnOrgWithAHundredThousandJobsAtMostDoublesTheMedianWait) {
  for (const int arrive_after : {0, 1, 7, 1000}) {
    const Waits alone = WaitsOfSmallOrg(0, 0, 1, arrive_after);
    const Waits beside = WaitsOfSmallOrg(100'000, 0, 1, arrive_after);
    EXPECT_DOUBLE_EQ(alone.median, 4.5);
    EXPECT_LE(beside.median, 2 * alone.median + 1) << "and the one job that was running when it came; after " << arrive_after;
    EXPECT_LE(beside.worst, 2 * alone.worst + 1);
  }
}

TEST(Fairness, ManyOrgsShareAndTheLargeOneIsOnlyOneOfThem) {
  const Waits without = WaitsOfSmallOrg(0, 9, 1, 0);
  const Waits with = WaitsOfSmallOrg(100'000, 9, 1, 0);
  EXPECT_LE(with.median, without.median * 11 / 10 + 1) << "eleven orgs instead of ten";
}

TEST(Fairness, LargeClaimsEvenOut) {
  const Waits alone = WaitsOfSmallOrg(0, 0, 5, 50);
  const Waits beside = WaitsOfSmallOrg(100'000, 0, 5, 50);
  EXPECT_LE(beside.median, 2 * alone.median + 5) << "and the claim that was under way";
}

TEST(Fairness, OrgsStayFairWhileOneIsHeldBackByItsLimits) {
  LineIndex index;
  const auto view = index.ViewOf({});
  MonoTime now{Micros{1}};
  QueueSettings limited;
  limited.org = OrgId{1};
  limited.queue = "q";
  limited.rate = {.count = 1, .per = Millis{10}, .burst = 1};
  index.Set(kShard, limited, now);
  std::map<std::int64_t, int> turns;
  for (std::int64_t org = 1; org <= 3; ++org)
    index.Add(kShard,
              LineKey{.queue = "q", .priority = 2, .org = OrgId{org}, .root = "", .kind = "k", .limit_key = ""}.ToString(),
              10'000, now);
  for (int i = 0; i < 3000; ++i, now += Micros{1000}) {
    index.Advance(now);
    LineIndex::Line* line = index.Next(*view);
    ++turns[line->key().org.value()];
    index.Take(*line, 1, now);
  }
  EXPECT_NEAR(turns[1], 300, 2) << "its rate";
  EXPECT_NEAR(turns[2], 1350, 5) << "the others share the rest";
  EXPECT_NEAR(turns[3], 1350, 5);
}

// Against a plain model: whatever happens, no limit is exceeded, nothing eligible is overlooked, and nothing is lost.
TEST(LineIndexRandom, LimitsHoldAndNothingIsLost) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SeededRandom random(seed);
    LineIndex index;
    const auto view = index.ViewOf({});
    MonoTime now{Micros{1'000'000}};
    std::map<std::pair<OrgId, std::string>, QueueSettings> settings;
    std::map<std::string, std::uint64_t> ready;
    std::vector<LineKey> running;
    const auto of_queue = [&](const LineKey& key) {
      return std::ranges::count_if(running, [&](const LineKey& r) { return r.org == key.org && r.queue == key.queue; });
    };
    const auto of_key = [&](const LineKey& key) {
      return std::ranges::count_if(
          running, [&](const LineKey& r) { return r.org == key.org && r.queue == key.queue && r.limit_key == key.limit_key; });
    };
    const auto may_start = [&](const LineKey& key) {  // but for rates
      const QueueSettings& s = settings[{key.org, key.queue}];
      return !s.paused && (s.concurrency == 0 || of_queue(key) < s.concurrency) &&
             (key.limit_key.empty() || s.key_concurrency == 0 || of_key(key) < s.key_concurrency);
    };
    for (int step = 0; step < 1500; ++step) {
      const LineKey key{.queue = random.Below(2) == 0 ? "a" : "b",
                        .priority = static_cast<int>(random.Below(4)),
                        .org = OrgId{static_cast<std::int64_t>(1 + random.Below(3))},
                        .root = "",
                        .kind = random.Below(2) == 0 ? "k" : "l",
                        .limit_key = random.Below(2) == 0 ? "" : std::to_string(random.Below(4))};
      switch (random.Below(8)) {
        case 0: {
          QueueSettings s;
          s.org = key.org;
          s.queue = key.queue;
          s.paused = random.Below(5) == 0;
          if (random.Below(2) == 0) s.order = QueueOrder::kWeighted;
          s.concurrency = static_cast<std::uint32_t>(random.Below(6));
          s.key_concurrency = static_cast<std::uint32_t>(random.Below(3));
          if (random.Below(3) == 0) s.rate = {static_cast<std::uint32_t>(1 + random.Below(5)), Millis{100}, 0};
          if (random.Below(3) == 0) s.key_rate = {1, Millis{50}, 2};
          settings[{key.org, key.queue}] = s;
          index.Set(kShard, s, now);
          break;
        }
        case 1:
        case 2: {
          const std::uint64_t n = 1 + random.Below(4);
          ready[key.ToString()] += n;
          index.Add(kShard, key.ToString(), n, now);
          break;
        }
        case 3:
          if (running.empty()) break;
          std::swap(running[random.Below(running.size())], running.back());
          if (random.Below(3) == 0) {
            index.GiveBack(running.back(), 1, now);
          } else {
            index.Ended(running.back(), now);
          }
          running.pop_back();
          break;
        case 4: now += Micros{static_cast<std::int64_t>(random.Below(80'000))}; break;
        default: {
          index.Advance(now);
          LineIndex::Line* line = index.Next(*view);
          if (line == nullptr) {
            for (const auto& [name, n] : ready) {
              const LineKey waiting = *LineKey::Parse(name);
              const QueueSettings& s = settings[{waiting.org, waiting.queue}];
              const bool overlooked = n > 0 && !s.rate.Limited() && !s.key_rate.Limited() && may_start(waiting);
              ASSERT_FALSE(overlooked) << "seed " << seed;
            }
            break;
          }
          const std::uint64_t n = 1 + random.Below(LineIndex::Allowance(*line, now));
          const LineKey taken = line->key();
          ASSERT_GE(ready[line->name()], n);
          ready[line->name()] -= n;
          index.Take(*line, n, now);
          for (std::uint64_t i = 0; i < n; ++i) {
            ASSERT_TRUE(may_start(taken)) << "seed " << seed << ": a limit is exceeded";
            running.push_back(taken);
          }
        }
      }
      ASSERT_EQ(index.CountsOf(key.org, key.queue).running, static_cast<std::uint64_t>(of_queue(key)));
    }
    // Without limits all of it comes out.
    for (auto& [queue, s] : settings) {
      s.paused = false;
      s.concurrency = s.key_concurrency = 0;
      s.rate = s.key_rate = Rate{};
      index.Set(kShard, s, now);
    }
    index.Advance(now);
    while (LineIndex::Line* line = index.Next(*view)) {
      ready[line->name()] -= 1;
      index.Take(*line, 1, now);
    }
    for (const auto& [name, n] : ready) EXPECT_EQ(n, 0U) << "seed " << seed;
    EXPECT_TRUE(index.Empty());
  }
}

TEST(TokenBucket, NeverMoreThanBurstAndRate) {
  SeededRandom random(11);
  for (int round = 0; round < 200; ++round) {
    const Rate rate{.count = static_cast<std::uint32_t>(1 + random.Below(1000)),
                    .per = Millis{static_cast<std::int64_t>(1 + random.Below(100'000))},
                    .burst = static_cast<std::uint32_t>(random.Below(50))};
    const MonoTime start{Micros{1'000'000}};
    MonoTime now = start;
    TokenBucket bucket;
    std::uint64_t taken = 0;
    for (int i = 0; i < 300; ++i) {
      now += Micros{static_cast<std::int64_t>(random.Below(2'000'000))};
      if (const std::uint64_t n = bucket.Tokens(rate, now); n > 0) {
        const std::uint64_t take = 1 + random.Below(n);
        bucket.Take(rate, take, now);
        taken += take;
      } else {
        const MonoTime next = bucket.NextToken(rate, now);
        ASSERT_GT(next, now);
        TokenBucket early = bucket, then = bucket;
        ASSERT_EQ(early.Tokens(rate, next - Micros{1}), 0U);
        ASSERT_EQ(then.Tokens(rate, next), 1U);
      }
      const double most = rate.Burst() + std::chrono::duration<double>(now - start) / std::chrono::duration<double>(rate.per) *
                                             static_cast<double>(rate.count);
      ASSERT_LE(static_cast<double>(taken), most + 1e-6);
    }
  }
}

// What is looked for again and again is found as it would be made, also when there are more lines than are kept, and when jobs
// say what a line cannot.
TEST(LineMemo, SaysWhatTheJobSays) {
  LineMemo memo;
  SeededRandom random(3);
  const auto expect = [&](const JobSpec& spec, Durability durability) {
    LineKey key = LineKey::Of(spec);
    key.durability = durability;
    const LineRef& line = memo.Find(spec, durability);
    ASSERT_EQ(line->key, key);
    ASSERT_EQ(line->name, key.ToString());
  };
  const std::array<std::string, 5> texts{"", "default",
                                         "a\x1f"
                                         "b",
                                         "\x1e", std::string(40, 'k')};
  for (int i = 0; i < 20'000; ++i) {
    JobSpec spec;
    spec.org = OrgId{static_cast<std::int64_t>(random.Next() % 3)};
    spec.priority = static_cast<int>(random.Next() % 6) - 1;
    spec.queue = texts.at(random.Next() % texts.size());
    spec.kind = texts.at(random.Next() % texts.size());
    spec.root = texts.at(random.Next() % texts.size());
    spec.options.limit_key = texts.at(random.Next() % texts.size());
    expect(spec, random.Next() % 2 == 0 ? Durability::kRedis : Durability::kLedger);
  }
  std::vector<JobSpec> many(LineMemo::kKnownMax + 1000);
  for (std::size_t i = 0; i < many.size(); ++i) many[i].options.limit_key = "key-" + std::to_string(i);
  for (int round = 0; round < 2; ++round)
    for (const JobSpec& spec : many) {
      expect(spec, Durability::kRedis);
      ASSERT_LE(memo.known(), LineMemo::kKnownMax);
    }
}

// A slot is the queue and the key of what was taken, without their names.
TEST_F(LineIndexTest, WhatEndsBySlotMakesRoomForTheNext) {
  QueueSettings settings = Settings();
  settings.concurrency = 2;
  settings.key_concurrency = 1;
  index_.Set(kShard, settings, now_);
  Add(Key(kPriorityDefault, 1, "q", "k"), 3);
  index_.Advance(now_);
  LineIndex::Line* line = index_.Next(*view_);
  ASSERT_NE(line, nullptr);
  const LineIndex::Slot slot = LineIndex::SlotOf(*line);
  ASSERT_TRUE(slot);
  EXPECT_FALSE(LineIndex::Slot{});
  index_.Take(*line, 1, now_);
  EXPECT_FALSE(Start()) << "its key is at its limit";
  index_.Ended(slot, now_);
  EXPECT_EQ(index_.RunningOfKey(OrgId{1}, "q", "k"), 0U);
  EXPECT_TRUE(Start());
  EXPECT_EQ(index_.RunningOfKey(OrgId{1}, "q", "k"), 1U);
  EXPECT_EQ(index_.CountsOf(OrgId{1}, "q").running, 1U);
}

}  // namespace
}  // namespace millrace
