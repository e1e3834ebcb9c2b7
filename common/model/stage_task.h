// What a stage job carries (JSON in JobSpec::payload), and what millrace-stage is told and answers. A task is complete: the
// process that runs it needs no ledger, no queue and no pipeline file. JSON codec in stage_task.cc; unknown keys are refused.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/model/pipeline.h"

namespace millrace {

// The unit of exactly-once: retry, requeue and "retry from failed" reuse it.
// "org/pipeline/stage/sink/slot-or-run/partition#generation", e.g.
// "1/flight_delays/warehouse/warehouse:analytics.flight_delays/2001-01-01T06:15:00Z/-#0".
std::string EffectKey(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view sink,
                      std::string_view slot_or_run, std::string_view partition, std::uint32_t generation);

struct StageInput {  // a dataset that an earlier stage of the run published
  std::string stage;
  std::string effect;  // names its manifest: lake.h, ManifestPath
  friend bool operator==(const StageInput&, const StageInput&) = default;
};

// For log lines: the beginning of a run's id, to the millisecond of its time. `run show` takes it.
std::string ShortId(RunId run);
// For log lines, of a job's kind and payload: "pipeline shop, run 01a1fc86-aaa1, stage orders, slot 2026-11-21T06:15:00Z";
// empty for kinds other than stages and commands, and for a payload that cannot be read.
std::string DescribeJob(std::string_view kind, std::string_view payload);

struct BoundParam {
  std::string name;
  std::string type;
  std::string value;  // text in the type's canonical form
  friend bool operator==(const BoundParam&, const BoundParam&) = default;
};

struct StageTask {
  OrgId org = kDefaultOrg;
  std::string pipeline;
  std::int64_t version = 0;
  RunId run;
  JobId job;
  std::string effect;
  std::uint32_t generation = 0;
  std::optional<WallTime> slot;
  StageSpec stage;                 // extract, transform or load
  std::vector<StageInput> inputs;  // in the order of stage.inputs
  std::vector<BoundParam> params;  // all parameters of the pipeline
  std::string base_dir;            // absolute; relative paths of the pipeline start here
  friend bool operator==(const StageTask&, const StageTask&) = default;
};

struct CommandTask {
  std::string pipeline, stage;
  RunId run;
  JobId job;
  CommandSpec command;
  std::string base_dir;     // working directory
  OrgId org = kDefaultOrg;  // whom the command speaks for; not written when it is the default: older readers refuse the key
  friend bool operator==(const CommandTask&, const CommandTask&) = default;
};

// Where data goes. A secret (the password inside `dsn`) is resolved by the worker and reaches only the stage that needs it.
struct ConnectionSpec {
  std::string name;
  std::string type;  // "sqlite" | "postgres"
  std::string dsn;   // sqlite: absolute path of the database file; postgres: libpq conninfo or URI
};

// The envelope the worker sends to millrace-stage: the task plus what belongs to this attempt and this machine.
struct StageOrder {
  StageTask task;
  Token token;
  std::string lake;                          // absolute path of the lake's root
  std::string scratch;                       // a directory of this attempt alone; the worker removes it
  std::optional<ConnectionSpec> connection;  // load to a database
  std::uint64_t memory_bytes_max = 0;        // 0 = no limit
  int threads = 1;
  bool sandbox = true;
  bool fence_only =
      false;  // a load that was cancelled: raise the fence, load nothing. Result: the receipt's, or kFencedErrorClass
};
inline constexpr std::string_view kFencedErrorClass = "fenced";

// S9: read = loaded + filtered + quarantined + deduplicated.
struct RowCounts {
  std::int64_t read = 0, loaded = 0, filtered = 0, quarantined = 0, deduplicated = 0;
  bool Balanced() const { return read == loaded + filtered + quarantined + deduplicated; }
  friend bool operator==(const RowCounts&, const RowCounts&) = default;
};

// A file with what is too long for a result: under the lake's root, written before the result that names it.
struct ResultFile {
  std::string path;  // "results/<run>/<job>-<token>", relative to the lake
  std::int64_t bytes = 0;
  std::string sha256;  // hex
  friend bool operator==(const ResultFile&, const ResultFile&) = default;
};

struct StageResult {
  bool ok = false;
  std::string error_class;  // see ops/docs/errors.md; empty when ok
  std::string error;        // one line; names the file, row, column or check
  bool retryable = false;
  RowCounts rows;
  std::int64_t input_rows = 0;  // transform: rows of all inputs together
  std::int64_t bytes_read = 0, bytes_written = 0;
  std::int64_t inserted = 0, updated = 0, unchanged = 0, deleted = 0;  // load: what happened in the target
  bool already_applied = false;           // the receipt or manifest was there: the stored counts are reported
  std::string manifest;                   // path of the published manifest, relative to the lake
  std::string target;                     // load: what was written, for people
  std::string plan;                       // load: the publish plan that was chosen
  std::string quarantine;                 // dataset with the quarantined rows, relative to the lake; may be empty
  std::string output;                     // command: what it wrote to $MILLRACE_RESULT, text of at most kOutputInlineBytesMax
  std::optional<ResultFile> output_file;  // command: the same, when it is longer or no text
  std::optional<ResultFile> full;         // this result as it was before it was shortened to kResultBytesMax
  friend bool operator==(const StageResult&, const StageResult&) = default;
};

std::string ToJson(const StageTask& task);
Result<StageTask> StageTaskFromJson(std::string_view json);
std::string ToJson(const CommandTask& task);
Result<CommandTask> CommandTaskFromJson(std::string_view json);
// The payload of a single command job `job` of `org` from a shorter form: {"argv": ["sh", "-c", "echo hi"], "env": {...},
// "base_dir":
// "/srv"} (the last two may be left out; base_dir is absolute). A payload that has "command" is a whole task already, and is
// given back, with its org set to `org`, when it is that job's. kInvalidArgument says what is wrong.
Result<std::string> CommandPayload(std::string_view json, JobId job, OrgId org);
std::string ToJson(const StageOrder& order);
Result<StageOrder> StageOrderFromJson(std::string_view json);
std::string ToJson(const StageResult& result);
Result<StageResult> StageResultFromJson(std::string_view json);

// Frames between the worker and millrace-stage (stdin and fd 3 of the child): u32 little-endian length, then JSON, at most
// kFrameBytesMax. Worker -> stage: exactly one StageOrder. Stage -> worker: {"progress":{"rows":n,"bytes":n}} any number
// of times (at most 5 a second), then exactly one {"result":StageResult}; then the child exits 0. A child that exits or is
// killed without a result has crashed. The child writes {"ready":true} once it can take an order (DuckDB is loaded).

}  // namespace millrace
