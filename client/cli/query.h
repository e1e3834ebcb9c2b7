// One read-only query on a connection, for `millrace query`.
#pragma once

#include <string>

#include "client/cli/output.h"
#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/stage_task.h"

namespace millrace::cli {

inline constexpr std::size_t kQueryRowsMax = 100'000;  // kInvalidArgument beyond it: this is for looking, not for moving data

// kInvalidArgument: not exactly one query; kNotFound: an SQLite file that does not exist.
Result<Table> RunQuery(const ConnectionSpec& connection, const std::string& sql, const Clock& clock, MonoTime deadline);

}  // namespace millrace::cli
