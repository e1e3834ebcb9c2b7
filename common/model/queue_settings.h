// What an org has set for one of its queues: order, aging, limits, budgets, pause. A plain value; its rules are told in
// ops/docs/queue.md. Stored and sent as JSON.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

// A token bucket: `count` tokens flow in per `per`, evenly, and at most `burst` are kept. One job takes one.
struct Rate {
  std::uint32_t count = 0;  // 0 = no limit
  Millis per{1000};
  std::uint32_t burst = 0;  // 0 = count
  bool Limited() const { return count > 0; }
  std::uint32_t Burst() const { return burst > 0 ? burst : count; }
  friend bool operator==(const Rate&, const Rate&) = default;
};
std::string ToString(const Rate& rate);  // "100/1s", "5/1m burst 10", "none"
// "100/1s", "5/m", "3/250ms", "none"; burst stays 0. kInvalidArgument names `field`, the text and what would be right.
Result<Rate> ParseRate(std::string_view field, std::string_view text);

enum class QueueOrder : std::uint8_t { kStrict = 1, kWeighted = 2 };
std::string_view Name(QueueOrder order);
Result<QueueOrder> ParseQueueOrder(std::string_view name);

struct QueueSettings {
  OrgId org = kDefaultOrg;
  std::string queue;
  std::int64_t revision = 0;  // 0: never set. The next one written is revision + 1

  bool paused = false;
  QueueOrder order = QueueOrder::kStrict;
  std::array<std::uint32_t, kPriorityLevels> weights{8, 4, 2, 1};  // kWeighted: turns of each priority
  Millis aging{kAgingDefault};                                     // kStrict
  std::uint32_t concurrency = 0;                                   // running jobs of the queue; 0 = no limit
  std::uint32_t key_concurrency = 0;                               // running jobs of one limit key; 0 = no limit
  Rate rate, key_rate;                                             // starts of the queue, of one limit key
  std::uint64_t max_waiting_jobs = 0, max_waiting_bytes = 0;       // 0 = no limit
  Durability durability = Durability::kLedger;                     // of single jobs that do not say theirs
  std::optional<WallTime> redis_until;                             // when it last ceased to be kRedis; see NoteClassChange
  friend bool operator==(const QueueSettings&, const QueueSettings&) = default;
};

// For so long after a queue has ceased to be of class redis, by their ids, its jobs may have been taken as such: more than
// clocks are apart.
inline constexpr Millis kClassChangeDoubt{3'600'000};
// Gives `next`, which replaces `before`, its `redis_until`, as long as it counts. The ledger does this, whoever writes.
void NoteClassChange(const QueueSettings& before, WallTime now, QueueSettings& next);
// "ledger", "redis".
Result<Durability> ParseQueueDurability(std::string_view name);

// Everything but org, queue and revision; only what differs from the default, "{}" when nothing does.
std::string ToJson(const QueueSettings& settings);
// The inverse; org, queue and revision are the caller's to fill in. kInvalidArgument names the key, its value and the fix.
Result<QueueSettings> QueueSettingsFromJson(std::string_view text);
// Every field within the limits of common/base/limits.h, and a queue name that jobs can have; or kWholeOrg with budgets only.
Result<void> Validate(const QueueSettings& settings);

}  // namespace millrace
