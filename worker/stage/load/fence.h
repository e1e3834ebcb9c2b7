// What every sink shares: the failure type, the receipt, and what identifies one load.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/input_sql.h"
#include "worker/stage/stage_context.h"

namespace millrace::load {

// Why a load did not happen; becomes a StageResult (ops/docs/loads.md lists the classes).
struct Failure {
  std::string error_class;
  std::string message;
  bool retryable = false;
  Failure(std::string_view class_name, std::string text, bool may_retry)
      : error_class(class_name), message(std::move(text)), retryable(may_retry) {}
  // A driver's error. kUnavailable, kTimedOut, kMaybeApplied, kConflict, kLimit may be retried; kMaybeApplied only because a
  // retry begins with the fence and the receipt, never with the data.
  Failure(Error error);  // NOLINT: implicit, so that MILLRACE_TRY works
};
template <class T>
using Outcome = std::expected<T, Failure>;

std::unexpected<Failure> Refuse(std::string_view error_class, std::string message);

// What proves an effect in a destination.
struct Receipt {
  std::string effect;
  Token token;
  std::string run, pipeline, stage, target, mode, plan;
  RowCounts rows;
  std::int64_t inserted = 0, updated = 0, unchanged = 0, deleted = 0;
  std::int64_t bytes = 0;
  std::string checksum;  // hex SHA-256 over the row count and checksums of the input's files, in order
};

// One load, as the sinks see it. Refers to the order: must not outlive it.
struct LoadJob {
  const StageOrder& order;
  const LoadSpec& spec;
  std::vector<ColumnSpec> columns;  // of the dataset
  std::string dataset_sql;          // one SELECT in DuckDB
  std::int64_t rows = 0;            // of the dataset
  std::string target;               // "schema.table", "table" or the path
  std::string hash;                 // first 16 hex of the SHA-256 of the effect
  std::string checksum;
  ProgressFn progress;
  // What the batch's checks found, before the destination was opened; to be returned once the receipt is known to be absent.
  // Classes: empty_input (replace by no rows without allow_empty), check_failed, source_unreadable, source_changed.
  Outcome<void> checked{};
  const Manifest* input = nullptr;  // what is loaded; null: a fence_only order
  SourceWatch sources{};            // the referenced files, watched since CheckBatch

  Receipt NewReceipt(std::string plan) const;
};

std::string_view ModeName(LoadMode mode);
std::string Sha256Hex(std::string_view bytes);
std::string ReceiptToJson(const Receipt& receipt);
Result<Receipt> ReceiptFromJson(std::string_view json);  // kCorrupt

// Class internal_error: what was read is not what was loaded and deduplicated (S9). No sink commits such a receipt.
Outcome<void> RequireBalance(const Receipt& receipt);

// What a fence_only order ends with when no receipt is there: class kFencedErrorClass.
std::unexpected<Failure> Fenced();
// "token 7 of effect '...' is older than token 9, which the destination has seen": class stale_token, not retryable.
Failure Stale(const LoadJob& job, std::uint64_t seen);

StageResult ToResult(const Receipt& receipt, bool already_applied);
StageResult ToResult(const LoadJob& job, const Failure& failure);

}  // namespace millrace::load
