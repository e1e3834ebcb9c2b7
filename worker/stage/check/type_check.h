// Type-checks a whole pipeline without its data: empty tables with each stage's columns, every SQL prepared in order.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/drivers/duckdb.h"
#include "common/model/pipeline.h"
#include "common/model/pipeline_places.h"

namespace millrace {

struct StageProblem {
  std::string stage;
  std::string code;  // sql_error, missing_file, schema_drift, unknown_column, unknown_type, source_malformed, ...
  std::string message;
  std::string help;   // may be empty
  SourcePlace place;  // inside the stage's SQL text, 1-based; 0 = unknown
  StagePart part{};   // what it is about; empty path: the stage
};
struct StageColumns {
  std::string stage;
  std::vector<ColumnSpec> columns;
};
struct TypeCheck {
  std::vector<StageProblem> problems;
  std::vector<StageColumns> stages;  // extract and transform stages whose columns are known
};
struct TypeCheckRequest {
  OrgId org = kDefaultOrg;
  std::string base_dir{};
  std::string lake{};                // may not exist yet
  std::vector<BoundParam> params{};  // one per parameter of the pipeline
};

// A stage whose inputs have problems is skipped: one mistake, one message. Reads source files only to sniff a schema that is
// neither pinned nor known; no SQL of the pipeline can make it read another one. Leaves `connection` restricted.
TypeCheck CheckPipeline(duck::Connection& connection, const Pipeline& pipeline, const TypeCheckRequest& request);

// The same as JSON. In: {"pipeline": canonical JSON, "base_dir", "lake", "params": {name: text}, "org": 1}. Out:
// {"problems":[{"stage","code","message","help","line","column","path":[...],"key","offset","length"}],
// "stages":[{"stage","columns":[{"name","type","not_null"}]}]} or {"error": "..."} for a request that cannot be read.
std::string CheckPipelineJson(duck::Connection& connection, std::string_view request);

}  // namespace millrace
