// Type numbers of PostgreSQL's catalog that the driver reads and writes in binary. Internal to the driver.
#pragma once

#include <cstdint>

namespace millrace::pg {

using Oid = std::uint32_t;
inline constexpr Oid kBool = 16, kBytea = 17, kName = 19, kInt8 = 20, kInt2 = 21, kInt4 = 23, kText = 25, kOid = 26,
                     kFloat4 = 700, kFloat8 = 701, kTimestamp = 1114, kTimestamptz = 1184, kUuid = 2950;
inline constexpr Oid kBoolArray = 1000, kByteaArray = 1001, kTextArray = 1009, kInt8Array = 1016, kTimestamptzArray = 1185,
                     kUuidArray = 2951;
inline constexpr std::int64_t kEpochMicros = 946'684'800'000'000;  // 2000-01-01: where the server counts from

// What is too early to be counted from there becomes a time that the server refuses (not its "-infinity"), and "infinity" the
// latest one.
constexpr std::int64_t FromUnix(std::int64_t us) { return us <= INT64_MIN + kEpochMicros ? INT64_MIN + 1 : us - kEpochMicros; }
constexpr std::int64_t ToUnix(std::int64_t us) { return us > INT64_MAX - kEpochMicros ? INT64_MAX : us + kEpochMicros; }

}  // namespace millrace::pg
