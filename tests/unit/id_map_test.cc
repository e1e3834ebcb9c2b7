#include "common/base/id_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <unordered_map>

#include "broker/recent_tokens.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"

namespace millrace {
namespace {

struct Ids {
  FakeClock clock{FromUnixMicros(1'700'000'000'000'000)};
  SeededRandom random{7};
  IdGenerator generator{clock, random};
  JobId Next() { return generator.Next<JobId>(); }
};

// Ids that begin their probe at the end of the table, so that the probes go over it.
JobId Colliding(std::uint8_t n) {
  for (std::uint64_t i = std::uint64_t{n} << 40;; ++i) {
    JobId id;
    for (std::size_t k = 0; k < 8; ++k) id.uuid.bytes[8 + k] = static_cast<std::uint8_t>(i >> (8 * k));
    if ((std::hash<JobId>{}(id) & 63) >= 62) return id;
  }
}

TEST(IdMapTest, IsWhatAStandardMapIs) {
  Ids ids;
  SeededRandom random(3);
  IdMap<JobId, int> map;
  std::unordered_map<JobId, int> model;
  std::vector<JobId> known;
  for (int step = 0; step < 40'000; ++step) {
    const JobId id = known.empty() || random.Below(2) == 0 ? ids.Next() : known[random.Below(known.size())];
    known.push_back(id);
    switch (random.Below(4)) {
      case 0: EXPECT_EQ(map.try_emplace(id, step).second, model.try_emplace(id, step).second); break;
      case 1:
        if (map.contains(id)) map.at(id) = model[id] = step;
        break;
      case 2: EXPECT_EQ(map.erase(id), model.erase(id)); break;
      default: EXPECT_EQ(map.contains(id), model.contains(id));
    }
    ASSERT_EQ(map.size(), model.size());
    if (const auto found = model.find(id); found != model.end()) {
      ASSERT_EQ(map.at(id), found->second);
    }
  }
  const std::unordered_map<JobId, int> all(map.begin(), map.end());
  EXPECT_EQ(all, model);
  EXPECT_GT(all.size(), 1000u);
}

TEST(IdMapTest, ProbesOverTheEndAreFoundAndClosed) {
  for (std::size_t gone = 0; gone < 12; ++gone) {
    IdMap<JobId, std::size_t> map;
    std::vector<JobId> ids;
    for (std::uint8_t n = 0; n < 12; ++n) ids.push_back(Colliding(n));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      map.try_emplace(ids[i], i);
    }
    EXPECT_EQ(map.erase(ids[gone]), 1u);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(map.contains(ids[i]), i != gone) << gone << " " << i;
    }
  }
}

TEST(IdMapTest, ReferencesStayAndErasingWhileIteratingVisitsTheRest) {
  Ids ids;
  IdMap<JobId, std::unique_ptr<int>> map;
  const JobId first = ids.Next();
  std::unique_ptr<int>& kept = map.try_emplace(first, std::make_unique<int>(42)).first->second;
  for (int i = 0; i < 5000; ++i) map.try_emplace(ids.Next(), std::make_unique<int>(i));
  EXPECT_EQ(&kept, &map.at(first));
  int visited = 0;
  for (auto next = map.begin(); next != map.end(); ++visited) {
    const auto it = next++;
    if (*it->second % 2 == 0 && it->first != first) map.erase(it);
  }
  EXPECT_EQ(visited, 5001);
  EXPECT_EQ(map.size(), 2501u);
  EXPECT_EQ(*kept, 42);
}

TEST(RecentTokensTest, ForgetsTheOldest) {
  Ids ids;
  RecentTokens recent;
  std::vector<JobId> jobs;
  for (std::size_t i = 0; i < kRecentlyEndedMax + 10; ++i) {
    jobs.push_back(ids.Next());
    recent.Remember(jobs.back(), Token{i + 1});
    recent.Remember(jobs.back(), Token{i + 2});
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) ASSERT_EQ(recent.Of(jobs[i]), i < 10 ? Token{} : Token{i + 2}) << i;
}

}  // namespace
}  // namespace millrace
