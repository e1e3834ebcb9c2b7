#include "common/wire/check_job.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/limits.h"
#include "common/model/whole_org.h"
#include "common/wire/text.h"

namespace millrace::wire {
namespace {

Result<void> CheckTime(std::string_view field, Millis time) {
  if (time < Millis{0}) return Fail(ErrorCode::kInvalidArgument, "{}: {} ms is a negative duration", field, time.count());
  if (time > kJobTimeMax)
    return Fail(ErrorCode::kInvalidArgument, "{}: {} ms, limit {}", field, time.count(), kJobTimeMax.count());
  return {};
}

}  // namespace

Result<void> CheckName(std::string_view field, std::string_view value, std::size_t max) {
  if (value.size() > max) return Fail(ErrorCode::kInvalidArgument, "{}: {} bytes, limit {}", field, value.size(), max);
  if (!IsText(value)) return Fail(ErrorCode::kInvalidArgument, "{}: is not UTF-8 text", field);
  if (std::ranges::any_of(value, [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
    return Fail(ErrorCode::kInvalidArgument, "{}: contains a control character", field);
  return {};
}

Result<void> CheckInstant(std::string_view field, WallTime time) {
  if (IsInstant(time)) return {};
  return Fail(ErrorCode::kInvalidArgument, "{}: {} microseconds since 1970 is out of range: give a time from {} to {}", field,
              ToUnixMicros(time), ToRfc3339(kInstantMin), ToRfc3339(kInstantMax));
}

Result<void> CheckJob(const JobSpec& job) {
  constexpr std::size_t kPathMax = 4096;
  if (job.id.IsNil()) return Fail(ErrorCode::kInvalidArgument, "id: is nil");
  if (std::ranges::all_of(job.id.uuid.bytes, [](std::uint8_t byte) { return byte == 0xff; }))
    return Fail(ErrorCode::kInvalidArgument, "id: is all ones");  // the queue keeps it for itself
  if (job.org < kDefaultOrg)
    return Fail(ErrorCode::kInvalidArgument, "org: {} is no org; give an integer in [1, {}]", job.org.value(),
                std::numeric_limits<std::int64_t>::max());
  if (job.kind.empty()) return Fail(ErrorCode::kInvalidArgument, "kind: is empty");
  if (job.queue.empty())
    return Fail(ErrorCode::kInvalidArgument, "queue: is empty; give a name of 1 to {} bytes", kNameBytesMax);
  MILLRACE_TRY(CheckName("stage", job.stage, kNameBytesMax));
  MILLRACE_TRY(CheckName("kind", job.kind, kNameBytesMax));
  MILLRACE_TRY(CheckName("queue", job.queue, kNameBytesMax));
  if (job.queue == kWholeOrg)
    return Fail(ErrorCode::kInvalidArgument, "queue: '{}' is all queues of an org; give the name of one", job.queue);
  MILLRACE_TRY(CheckName("root", job.root, kPathMax));
  MILLRACE_TRY(CheckName("effect", job.effect, 2 * kPathMax));
  if (job.priority < 0 || job.priority >= kPriorityLevels)
    return Fail(ErrorCode::kInvalidArgument, "priority: {} is not in [0, {}]", job.priority, kPriorityLevels - 1);
  if (job.payload.size() > kPayloadBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "payload: {} bytes, limit {}", job.payload.size(), kPayloadBytesMax);
  if (job.retry.max_attempts < 1 || job.retry.max_attempts > kMaxAttemptsMax)
    return Fail(ErrorCode::kInvalidArgument, "max_attempts: {} is not in [1, {}]", job.retry.max_attempts, kMaxAttemptsMax);
  MILLRACE_TRY(CheckTime("backoff_base", job.retry.backoff_base));
  MILLRACE_TRY(CheckTime("backoff_cap", job.retry.backoff_cap));
  MILLRACE_TRY(CheckTime("timeout", job.timeout));
  MILLRACE_TRY(CheckTime("unique_window", job.options.unique_window));
  MILLRACE_TRY(CheckInstant("submitted_at", job.submitted_at));
  if (job.run_at) MILLRACE_TRY(CheckInstant("run_at", *job.run_at));
  if (job.options.expires_at) MILLRACE_TRY(CheckInstant("expires_at", *job.options.expires_at));
  if (job.options.deadline) MILLRACE_TRY(CheckInstant("deadline", *job.options.deadline));
  if (job.options.unique_key.empty()) return {};
  if (job.run) return Fail(ErrorCode::kInvalidArgument, "unique_key: only a single job has one, not a job of a run");
  if (job.options.durability == Durability::kRedis)
    return Fail(ErrorCode::kInvalidArgument, "unique_key: needs durability: ledger, where it is decided");
  if (job.options.unique_until == UniqueUntil::kWindow && job.options.unique_window <= Millis{0})
    return Fail(ErrorCode::kInvalidArgument, "unique_window: {} ms is not a window; give unique_window_ms in [1, {}]",
                job.options.unique_window.count(), kJobTimeMax.count());
  return {};
}

Result<void> CheckClientsOptions(const JobOptions& options) {
  const JobOptions unsaid;
  if (options.run_when != unsaid.run_when || options.has_sink || options.retry_of)
    return Fail(ErrorCode::kInvalidArgument, "options: run_when, has_sink and retry_of are not for single jobs of a client");
  if (!options.unique_key.empty()) return {};
  for (const auto& [field, said] : {std::pair{"unique_until", options.unique_until != unsaid.unique_until},
                                    std::pair{"unique_window_ms", options.unique_window != unsaid.unique_window}})
    if (said) return Fail(ErrorCode::kInvalidArgument, "options: {}: says nothing without a unique_key; give one", field);
  return {};
}

}  // namespace millrace::wire
