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

}  // namespace millrace::pg
