// The transform stage: inputs as views, one SELECT with bound parameters, published to the lake.
#pragma once

#include <vector>

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// `inputs` in the order of order.task.inputs. REQUIRES: the stage holds a TransformSpec; folders exist; the connection may read
// the inputs' files.
StageOutcome<StageResult> RunTransform(const StageOrder& order, const std::vector<Manifest>& inputs,
                                       duck::Connection& connection);

}  // namespace millrace
