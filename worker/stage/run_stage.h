// One StageOrder from start to result: what is needed is found, the process is confined, the stage runs.
#pragma once

#include "common/drivers/duckdb.h"
#include "common/model/stage_task.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// REQUIRES: one thread in the process, `connection` on a database with threads = 1 that has run nothing. Confines the process
// for good. Never throws; a failure is a result with error_class.
StageResult RunStage(const StageOrder& order, duck::Connection& connection, const ProgressFn& progress);

}  // namespace millrace
