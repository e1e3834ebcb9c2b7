// Publishing a dataset once (design section 7, Files): data files named by the token, contract and checks on what was written,
// then the manifest by rename without replacing.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/drivers/duckdb.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/files.h"
#include "worker/stage/input_sql.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// Parquet would cut the microseconds of an interval, drop the offset of a time with time zone, and round a hugeint inside a
// list, map or struct. kInvalidArgument names the first such column and what to cast it to.
Result<void> RequireLakeTypes(const std::vector<ColumnSpec>& columns);

// `sql` with columns that Parquet would change (hugeint) cast to decimal(38,0). `columns` are those of `sql`.
std::string PublishSql(std::string_view sql, const std::vector<ColumnSpec>& columns);

// Rows of a text source that could not be read, gathered while `sql` was written.
struct RejectSource {
  std::string quarantine_sql;  // SELECT reason, source, line, row; "" = the source has no rejects
};

// One per attempt. Not thread-safe. Data files of an attempt that did not publish are removed in the destructor.
class LakeWriter {
 public:
  // REQUIRES: both outlive this; folders exist (PrepareFolders).
  LakeWriter(const StageOrder& order, duck::Connection& connection) : order_(order), connection_(connection) {}
  LakeWriter(const LakeWriter&) = delete;
  LakeWriter& operator=(const LakeWriter&) = delete;
  ~LakeWriter();

  static Result<void> PrepareFolders(const StageOrder& order);
  // The dataset's folder, absolute.
  static std::string Folder(const StageOrder& order);

  // Asked just before the manifest is published: class source_changed, retryable, when a file was touched. REQUIRES: outlives
  // this.
  void BeforePublish(const SourceWatch* sources) { sources_ = sources; }

  // What an earlier attempt published under this effect, with already_applied set; nullopt if none did. What attempts before
  // this one left behind is then removed, after the result has been reported.
  StageOutcome<std::optional<StageResult>> FindPublished() const;

  // Runs `sql` once into Parquet, applies contract and checks of the stage, publishes. `result` carries input_rows and
  // bytes_read. Classes: contract_violation, check_failed, sql_error, resource_exhausted, io_error.
  StageOutcome<StageResult> WriteAndPublish(std::string_view sql, const std::vector<BoundParam>& params, std::string_view layer,
                                            StageResult result, const RejectSource& rejects = {});
  // Publishes a manifest whose files, columns and rows are set. A manifest that is there already wins.
  StageOutcome<StageResult> Publish(Manifest manifest, StageResult result);

 private:
  struct Written {
    std::string path;  // relative to the lake
    std::int64_t rows = 0;
  };
  StageOutcome<StageResult> Write(std::string_view sql, const std::vector<BoundParam>& params, std::string_view layer,
                                  StageResult result, const RejectSource& rejects);
  StageOutcome<Written> Copy(std::string_view sql, const std::vector<BoundParam>& params, std::string_view suffix);
  StageOutcome<void> ApplyContract(Written* data, Manifest* manifest, StageResult* result, const RejectSource& rejects);
  StageOutcome<void> RequireWhole(const StageResult& result) const;
  void SweepLost(Token published) const;
  std::string Absolute(std::string_view relative) const;

  const StageOrder& order_;
  duck::Connection& connection_;
  const SourceWatch* sources_ = nullptr;
  std::vector<std::string> own_files_;  // relative
  std::vector<std::string> keep_;       // those of a published manifest
  ParallelSync syncs_;                  // what must be durable before the manifest is there
};

// The failure of a statement: kLimit resource_exhausted, kCancelled cancelled, otherwise `error_class`, with the place in the
// SQL when the engine knows it.
StageFailure SqlFailure(std::string_view error_class, const duck::Connection& connection, Error error);

}  // namespace millrace
