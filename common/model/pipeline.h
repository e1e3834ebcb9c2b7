// A pipeline as a value: what the YAML file says, checked. Made by ParsePipeline (pipeline_parser.h), stored as canonical
// JSON (ToJson/FromJson in pipeline_json.h) in the ledger. See ops/docs/pipeline.md for the language.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/model/job.h"

namespace millrace {

struct ScheduleSpec {
  std::string name = "default";
  std::string cron;                // 5 fields, or 6 with leading seconds, or @daily ...
  std::string timezone = "UTC";    // IANA name
  std::string catchup = "latest";  // none | latest | all | all(N)
  std::string overlap = "queue";   // skip | queue | allow | cancel
  std::string dst = "once";        // once | skip | both
  Millis misfire_grace{60'000};
  std::string start{}, end{};      // edges of the range of slots (ParseRangeEdge); empty: none
  Millis jitter{0};                // a slot's run starts up to so much later (JitterOf); 0 .. kJitterMax
  std::uint32_t max_parallel = 0;  // overlap: allow; runs of the pipeline at once; 0 = no limit
  friend bool operator==(const ScheduleSpec&, const ScheduleSpec&) = default;
};

// A parameter and its default. Types: text, bigint, double, boolean, date, timestamp (as DuckDB names them).
struct ParamSpec {
  std::string name;
  std::string type;
  std::string default_value;  // as text in the type's canonical form; every parameter has a default or is required
  bool required = false;
  friend bool operator==(const ParamSpec&, const ParamSpec&) = default;
};

struct ColumnSpec {
  std::string name;
  std::string type;  // a DuckDB type name, e.g. "double", "decimal(10,2)", "date"
  bool not_null = false;
  friend bool operator==(const ColumnSpec&, const ColumnSpec&) = default;
};

enum class FileFormat : std::uint8_t { kAuto, kCsv, kTsv, kNdjson, kJson, kParquet };  // kAuto: by the file name's ending
enum class OnViolation : std::uint8_t { kFail, kQuarantine, kDrop };

struct ExtractSpec {  // extract: { from: file, path: ... }
  std::string from = "file";
  std::vector<std::string> paths;  // globs, relative to the pipeline's folder
  FileFormat format = FileFormat::kAuto;
  std::vector<ColumnSpec> columns;             // empty: sniffed, then pinned
  std::map<std::string, std::string> options;  // csv: delimiter, header, quote, null, ...
  bool copy = false;                           // copy into the lake instead of reference
  bool allow_empty = false;
  friend bool operator==(const ExtractSpec&, const ExtractSpec&) = default;
};

struct TransformSpec {  // transform: | sql
  std::string sql;      // one SELECT; $name are parameters, other stages are tables
  friend bool operator==(const TransformSpec&, const TransformSpec&) = default;
};

enum class LoadMode : std::uint8_t { kAppend, kReplace, kMerge };

struct LoadSpec {     // load: { from, to, table, mode, key } or { from, to: file, path }
  std::string from;   // stage
  std::string to;     // a connection's name, or "file"
  std::string table;  // schema.table or table
  std::string path;   // to: file — a .parquet or .csv path
  LoadMode mode = LoadMode::kAppend;
  std::vector<std::string> key;  // merge
  bool allow_empty = false;
  bool provenance = false;  // adds the columns _millrace_effect text and _millrace_token bigint to every row
  friend bool operator==(const LoadSpec&, const LoadSpec&) = default;
};

struct CommandSpec {  // command: [program, argument, ...]
  std::vector<std::string> argv;
  std::map<std::string, std::string> env;
  friend bool operator==(const CommandSpec&, const CommandSpec&) = default;
};

enum class CheckKind : std::uint8_t { kNotNull, kUnique, kAcceptedValues, kExpression, kRowCount };
struct CheckSpec {
  CheckKind kind = CheckKind::kExpression;
  std::vector<std::string> columns;  // not_null, unique; accepted_values: exactly one
  std::vector<std::string> values;   // accepted_values, as text
  std::string expression;            // SQL boolean over one row
  std::optional<std::int64_t> min_rows, max_rows;
  friend bool operator==(const CheckSpec&, const CheckSpec&) = default;
};

struct ContractSpec {  // what each row must be, by column
  std::vector<ColumnSpec> columns;
  OnViolation on_violation = OnViolation::kFail;
  friend bool operator==(const ContractSpec&, const ContractSpec&) = default;
};

// The words of the language: "parquet", "quarantine", "merge", "row_count". The parse functions are exact.
std::string_view Name(FileFormat format);
std::string_view Name(OnViolation action);
std::string_view Name(LoadMode mode);
std::string_view Name(CheckKind kind);
std::optional<FileFormat> ParseFileFormat(std::string_view name);
std::optional<OnViolation> ParseOnViolation(std::string_view name);
std::optional<LoadMode> ParseLoadMode(std::string_view name);
std::optional<CheckKind> ParseCheckKind(std::string_view name);

// Where something stands in the file, for messages about it later (checks, SQL errors). 1-based; 0 = unknown.
struct SourcePlace {
  int line = 0;
  int column = 0;
  friend bool operator==(const SourcePlace&, const SourcePlace&) = default;
};

struct StageSpec {
  std::string name;
  std::variant<ExtractSpec, TransformSpec, LoadSpec, CommandSpec> work;
  std::optional<ContractSpec> contract;  // not for load and command
  std::vector<CheckSpec> checks;         // not for command
  std::vector<std::string> after;        // order without data
  std::vector<std::string> depends_on;   // derived: load.from, tables named in the SQL, after; sorted, no duplicates
  std::vector<std::string> inputs;       // derived: those of depends_on whose data is read
  std::vector<std::string> param_names;  // derived: parameters the SQL binds, in order of first use
  RetryPolicy retry;
  Backoff backoff = Backoff::kExponential;
  std::vector<std::string> no_retry;  // error classes that end the stage at their first occurrence
  Millis timeout{0};                  // of one attempt; 0 = none
  Millis deadline{0};                 // of the stage, from the run's creation; 0 = none
  std::string queue = "default";
  int priority = kPriorityDefault;
  std::string limit_key;              // its queue's limits per key count by it; empty: they do not concern it
  std::int64_t route_rows = 0;        // JobOptions::route_rows
  SourcePlace place;                  // of the stage's key
  SourcePlace sql_place;              // of the first line of the SQL text
  std::string_view KindName() const;  // "extract", "transform", "load", "command"
  friend bool operator==(const StageSpec&, const StageSpec&) = default;
};

struct Pipeline {
  std::string name;
  std::string description;
  std::vector<ScheduleSpec> schedules;  // at most one in version 1 of the language
  std::vector<ParamSpec> params;
  std::vector<StageSpec> stages;  // in topological order; ties in file order
  const StageSpec* FindStage(std::string_view stage_name) const;
  friend bool operator==(const Pipeline&, const Pipeline&) = default;
};

// One complaint about a file. Rendered as
//   file.yaml:12:5: error: unknown key 'tabel'
//      12 |     tabel: x
//         |     ^~~~~
//   help: did you mean 'table'?
struct Diagnostic {
  std::string file;
  SourcePlace place;
  int length = 1;    // of the marked text, in columns
  std::string code;  // stable snake_case: unknown_key, duplicate_key, wrong_type, pipeline_cycle, unknown_stage, ...
  std::string message;
  std::string help;  // the fix; may be empty
};
// `source` is the file's text, for the excerpt.
std::string Render(const Diagnostic& diagnostic, std::string_view source);

}  // namespace millrace
