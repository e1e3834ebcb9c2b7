// The load stage: a published dataset into a destination, once. Protocol, plans and promises: ops/docs/loads.md.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// What a load's process must reach besides its input and its scratch folder, for the wall around it. None of it is for the
// engine, in which the stage's own SQL runs, but `engine_folders`.
struct LoadReach {
  std::vector<std::string> write_files;     // a SQLite database, its log and its index
  std::vector<std::string> name_folders;    // where a file is published
  std::vector<std::string> engine_folders;  // where the engine writes a file's data
  std::vector<std::string> read_files;      // password file and certificates for PostgreSQL
  std::vector<std::string> read_folders;    // what a resolver, TLS and a unix socket need
  bool network = false;
  std::shared_ptr<void> hold;  // keeps a SQLite database's log and index where they are; until the load has ended
};
// To be called before the process is confined. Makes the folders of a load to a file; opens a SQLite database. Errors in the
// classes of ops/docs/loads.md.
StageOutcome<LoadReach> ReachOfLoad(const StageOrder& order);

// Loads the dataset of `input` as `order.task.stage` says (REQUIRES: it holds a LoadSpec): fence, checks, staging, one publish
// transaction with the receipt. Blocks. A result that is not ok has changed nothing in the target, except when its
// error_class is "outcome_unknown": then the next attempt finds out. `connection` must be able to read the dataset's
// files (and, for `to: file`, to write `<path>.millrace/`). Opens connections to the destination itself.
StageResult RunLoad(const StageOrder& order, const Manifest& input, duck::Connection& connection, const ProgressFn& progress);

// For an order with `fence_only`: raises the fence of its effect to its token, so that no earlier attempt publishes any more.
// ok with the receipt's counts when one has; else error_class kFencedErrorClass. The dataset is not looked at.
StageResult RaiseFence(const StageOrder& order, duck::Connection& connection);

}  // namespace millrace
