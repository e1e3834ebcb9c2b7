// Every queue, buffer, batch, retry and frame has a named limit; beyond it the caller gets an error, not more memory.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace millrace {

using namespace std::chrono_literals;

// Leases and heartbeats (design section 1).
inline constexpr auto kHeartbeatInterval = std::chrono::milliseconds{1000};
inline constexpr auto kLeaseTtl = std::chrono::milliseconds{3000};
static_assert(kHeartbeatInterval * 3 <= kLeaseTtl, "three missed heartbeats end a lease");
inline constexpr auto kOwnershipRenewInterval = std::chrono::milliseconds{1000};
inline constexpr auto kOwnershipTtl = std::chrono::milliseconds{5000};  // a dead broker's shards may be taken after this

inline constexpr std::uint16_t kShardCountDistributed = 16;
inline constexpr std::uint16_t kShardCountEmbedded = 1;

// Retention (ops/docs/ledger.md).
inline constexpr auto kRetentionMin = std::chrono::milliseconds{86'400'000};
inline constexpr auto kRetentionInterval = std::chrono::milliseconds{3'600'000};  // between two looks of a broker

// The wire.
inline constexpr std::size_t kFrameBytesMax = 8u << 20;
inline constexpr std::size_t kBatchJobsMax = 1000;              // jobs in one submit, lease or completion message
inline constexpr std::size_t kPayloadBytesMax = 1u << 20;       // one job's payload
inline constexpr std::size_t kResultBytesMax = 64u << 10;       // one attempt's result
inline constexpr std::size_t kOutputInlineBytesMax = 8u << 10;  // a command's output; what is longer goes into a file ...
inline constexpr std::size_t kOutputBytesMax = 16u << 20;       // ... of at most so many bytes
inline constexpr std::size_t kLogTailBytesMax = 8u << 10;
inline constexpr std::size_t kNameBytesMax = 128;  // queue, stage, pipeline, worker names
inline constexpr std::size_t kErrorMessageBytesMax = 4u << 10;

// Jobs and runs.
inline constexpr int kMaxAttemptsMax = 100;
inline constexpr int kMaxAttemptsDefault = 3;
inline constexpr int kCrashesMax = 3;                   // a job that kills its process this often goes dead
inline constexpr std::uint32_t kFenceFailuresMax = 10;  // of attempts to raise a cancelled job's fence; then it goes dead
inline constexpr std::size_t kNoRetryClassesMax = 16;
inline constexpr std::size_t kJobOptionsBytesMax = 4u << 10;  // as JSON
inline constexpr std::size_t kStagesPerPipelineMax = 10'000;
inline constexpr std::int64_t kRouteRowsDefault = 10'000;  // input of a "small" stage, at most
inline constexpr std::int64_t kRouteRowsMax = 1'000'000'000'000;
inline constexpr std::size_t kPipelineFileBytesMax = 4u << 20;
inline constexpr std::size_t kPipelineDepthMax = 64;
inline constexpr int kPriorityLevels = 4;  // 0 is the most urgent
inline constexpr int kPriorityDefault = 2;

// Broker.
inline constexpr std::size_t kOwnerBatchRowsMax = 4000;    // rows of one ledger transaction
inline constexpr std::size_t kEnqueuePage = 500;           // rows of `enqueue` of one transaction
inline constexpr std::size_t kEnqueueBytesMax = 8u << 20;  // and their payloads, unless one row has more
inline constexpr std::size_t kClaimJobsMax = 500;          // jobs of one claim
inline constexpr std::size_t kWorkersMax = 10'000;

// Queues (ops/docs/queue.md).
inline constexpr auto kAgingDefault = std::chrono::milliseconds{60'000};  // a waiting line counts one level higher after each
inline constexpr auto kAgingMin = std::chrono::milliseconds{100};
inline constexpr auto kAgingMax = std::chrono::milliseconds{86'400'000};
inline constexpr std::uint32_t kQueueWeightMax = 1000;
inline constexpr std::uint32_t kQueueConcurrencyMax = 1'000'000;
inline constexpr std::uint32_t kRateCountMax = 1'000'000;  // jobs per period, and the burst of a bucket
inline constexpr auto kRatePeriodMin = std::chrono::milliseconds{1};
inline constexpr auto kRatePeriodMax = std::chrono::milliseconds{3'600'000};
inline constexpr std::uint64_t kQueueWaitingJobsMax = 1'000'000'000;
inline constexpr std::uint64_t kQueueWaitingBytesMax = std::uint64_t{1} << 50;
inline constexpr std::size_t kQueueSettingsBytesMax = 4u << 10;  // as JSON
inline constexpr std::size_t kQueuesListedMax = 1000;            // of one answer

}  // namespace millrace
