// The extract stage for files: globs, schema (sniffed once, then pinned), a proof that every value fits (one pass over plain
// CSV, scans of the engine over all else), and a manifest that lists the files by reference. With `copy: true` or a contract
// the rows are written to the lake instead.
#pragma once

#include <string>
#include <vector>

#include "common/drivers/duckdb.h"
#include "common/model/stage_task.h"
#include "worker/stage/extract/pinned_schema.h"
#include "worker/stage/extract/plain_csv.h"
#include "worker/stage/stage_context.h"

namespace millrace {

// What an extract reads: found before the engine is restricted to exactly these files.
struct SourceFiles {
  std::vector<std::string> paths;  // absolute, sorted, no duplicates
  FileFormat format = FileFormat::kParquet;
};

// Classes: missing_file (names the pattern), invalid_stage (formats mixed or unknown), io_error.
StageOutcome<SourceFiles> FindSources(const ExtractSpec& spec, std::string_view base_dir);

// The columns of `sources` as sniffed over the whole first file, with the declared types in place. `plain` keeps what it proves
// of the first file on the way; null: only names and types are asked for, and a file whose columns are all declared is not read
// to its end. Classes: source_malformed, schema_drift (a declared column that no file has), invalid_stage.
StageOutcome<PinnedSchema> SniffSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec,
                                       PlainCsv* plain);

// The pinned schema if `path` exists, with the declared types in place; otherwise sniffed.
StageOutcome<PinnedSchema> ResolveSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec,
                                         const std::string& pinned_path, PlainCsv* plain);

// REQUIRES: the stage holds an ExtractSpec; folders exist; the connection may read `sources`. Further classes: schema_drift,
// bad_value (names file, line, column and value), empty_extract, source_changed, contract_violation, check_failed.
StageOutcome<StageResult> RunExtract(const StageOrder& order, const SourceFiles& sources, duck::Connection& connection,
                                     const ProgressFn& progress);

}  // namespace millrace
