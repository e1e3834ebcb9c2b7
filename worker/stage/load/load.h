// The load stage: a published dataset into a destination, once. Protocol, plans and promises: ops/docs/loads.md.
#pragma once

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// Loads the dataset of `input` as `order.task.stage` says (REQUIRES: it holds a LoadSpec): fence, checks, staging, one publish
// transaction with the receipt. Blocks. A result that is not ok has changed nothing in the target, except when its
// error_class is "outcome_unknown": then the next attempt finds out. `connection` must be able to read the dataset's
// files (and, for `to: file`, to write `<path>.millrace/`). Opens connections to the destination itself.
StageResult RunLoad(const StageOrder& order, const Manifest& input, duck::Connection& connection, const ProgressFn& progress);

// For an order with `fence_only`: raises the fence of its effect to its token, so that no earlier attempt publishes any more.
// ok with the receipt's counts when one has; else error_class kFencedErrorClass. The dataset is not looked at.
StageResult RaiseFence(const StageOrder& order, duck::Connection& connection);

}  // namespace millrace
