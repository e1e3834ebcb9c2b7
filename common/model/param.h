// Values of pipeline parameters as text. Types: text, bigint, double, boolean, date, timestamp.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace millrace {

std::span<const std::string_view> ParamTypes();

// The type that an unquoted default has: `true` boolean, `12` bigint, `1.5` double, `2001-01-01` date,
// `2001-01-01 10:00:00` or RFC 3339 timestamp, else text (also `no`, `0123`, `0x1f`).
std::string_view InferParamType(std::string_view text);

// The one text of a value: bigint without '+', double in the shortest form that reads back, date YYYY-MM-DD, timestamp
// "YYYY-MM-DD HH:MM:SS[.ffffff]" in UTC. kInvalidArgument: `text` is not of that type, or there is no such type.
Result<std::string> CanonicalParam(std::string_view type, std::string_view text);

}  // namespace millrace
