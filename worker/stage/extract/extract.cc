#include "worker/stage/extract/extract.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "common/model/lake.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/check/contract.h"
#include "worker/stage/extract/csv_diagnosis.h"
#include "worker/stage/extract/lossless.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/files.h"
#include "worker/stage/input_sql.h"
#include "worker/stage/lake_writer.h"

namespace millrace {
namespace {

constexpr std::string_view kRejectsSql =
    "SELECT any_value(coalesce(e.column_name || ': ', '') || e.error_message) AS reason, s.file_path AS source, "
    "CAST(e.line AS BIGINT) AS line, any_value(e.csv_line) AS row FROM reject_errors e JOIN reject_scans s "
    "ON s.scan_id = e.scan_id AND s.file_id = e.file_id GROUP BY s.file_path, e.line";

std::string Shown(const std::string& path) { return std::filesystem::path(path).filename().string(); }

// A bad value's place, from the first rejected row.
StageOutcome<void> FailOnRejects(duck::Connection& connection, const ReaderOptions& reader) {
  MILLRACE_TRY_ASSIGN(
      const duck::Table first,
      connection.Query("SELECT s.file_path, e.line, e.column_name, e.error_message, count(*) OVER () FROM reject_errors e "
                       "JOIN reject_scans s ON s.scan_id = e.scan_id AND s.file_id = e.file_id "
                       "ORDER BY s.file_path, e.line, e.column_idx LIMIT 1"));
  if (first.rows.empty()) return {};
  std::string reason = first.Text(3);
  if (const std::size_t at = reason.find("Could not convert"); at != std::string::npos) reason = reason.substr(at);
  const std::string count = first.Int(4) == 1 ? "" : fmt::format(" ({} such errors in all)", first.Int(4));
  if (reason.starts_with("Expected Number of Columns") || reason.contains("quote")) {  // about the line, not a value
    if (const auto problem = FindCsvProblem(first.Text(0), reader.format, reader.options))
      return std::unexpected(StageFailure("source_malformed", problem->message + count));
  }
  const std::string column = first.Text(2).empty() ? "" : fmt::format("column '{}': ", first.Text(2));
  return std::unexpected(
      StageFailure("bad_value", fmt::format("{}:{}: {}{}{}", Shown(first.Text(0)), first.Int(1), column, reason, count)));
}

// JSON readers name file and line but not the column: find it with every value as text.
std::string JsonColumnAtFault(duck::Connection& connection, const std::vector<std::string>& paths, ReaderOptions reader) {
  reader.all_text = true;
  for (const auto& c : reader.columns) {
    const std::string name = duck::QuoteName(c.name);
    const auto bad =
        connection.Query(fmt::format("SELECT {} FROM ({}) WHERE {} IS NOT NULL AND TRY_CAST({} AS {}) IS NULL LIMIT 1", name,
                                     ReaderSelect(paths, reader), name, name, c.type));
    if (bad && !bad->rows.empty()) return fmt::format("column '{}': '{}' is not a {}: ", c.name, bad->Text(), c.type);
  }
  return {};
}

// Header names (csv), or names and types (parquet, json) of one file.
Result<std::vector<ColumnSpec>> ColumnsOfFile(duck::Connection& connection, const std::string& path, FileFormat format,
                                              const std::map<std::string, std::string>& options) {
  const ReaderOptions reader{.format = format, .options = options, .all_text = IsCsv(format), .skip_bad_rows = IsCsv(format)};
  return connection.Describe(fmt::format("SELECT * FROM {}", ReaderCall({path}, reader)));
}

// What to say of a file that cannot be read as its format.
StageFailure Malformed(const duck::Connection& connection, const std::string& path, FileFormat format,
                       const std::map<std::string, std::string>& options, Error error) {
  if (IsCsv(format)) {
    if (const auto problem = FindCsvProblem(path, format, options)) return {"source_malformed", problem->message};
  }
  error.message = fmt::format("{}: {}", Shown(path), WithoutEngineAdvice(std::move(error.message)));
  return SqlFailure("source_malformed", connection, std::move(error));
}

bool HasHeader(const std::map<std::string, std::string>& options) {
  const auto found = options.find("header");
  return found == options.end() || found->second == "true";
}

// One column named "id;name" is a file of another delimiter, unless the pipeline says otherwise.
StageOutcome<void> RefuseOtherDelimiter(const SourceFiles& sources, const ExtractSpec& spec,
                                        const std::vector<ColumnSpec>& columns) {
  if (columns.size() != 1 || spec.options.contains("delimiter") || !HasHeader(spec.options)) return {};
  const std::string& name = columns.front().name;
  if (std::any_of(spec.columns.begin(), spec.columns.end(), [&](const ColumnSpec& c) { return c.name == name; })) return {};
  const auto other = OtherDelimiter(name, sources.format == FileFormat::kTsv ? '\t' : ',');
  if (!other) return {};
  const std::string shown = *other == '\t' ? "\\t" : std::string(1, *other);
  std::string text = name;
  std::replace(text.begin(), text.end(), '\t', ' ');
  return std::unexpected(StageFailure(
      "source_malformed",
      fmt::format("{}: has one column, '{}': its fields seem to be separated by '{}'; set options: {{ delimiter: \"{}\" }} (or "
                  "\"{}\" if it is one column)",
                  Shown(sources.paths.front()), text, shown, shown, sources.format == FileFormat::kTsv ? "\\t" : ",")));
}

StageOutcome<void> ApplyDeclared(duck::Connection& connection, const ExtractSpec& spec, PinnedSchema* schema) {
  for (const auto& declared : spec.columns) {
    const auto found = std::find_if(schema->columns.begin(), schema->columns.end(),
                                    [&](const ColumnSpec& c) { return c.name == declared.name; });
    if (found == schema->columns.end()) {
      return std::unexpected(StageFailure(
          "schema_drift",
          fmt::format("missing: {} {} (declared, but the source does not have it)", declared.name, declared.type)));
    }
    if (!declared.type.empty()) {
      MILLRACE_TRY_ASSIGN(found->type, CanonicalType(connection, declared.type));
    }
    found->not_null = declared.not_null;
  }
  return {};
}

// Every file must have the pinned columns; text columns are read by position, so their order counts.
StageOutcome<void> CompareFiles(duck::Connection& connection, const SourceFiles& sources, const PinnedSchema& schema,
                                const std::vector<ColumnSpec>& pinned, std::string_view pinned_path) {
  if (IsCsv(sources.format) && !HasHeader(schema.read_options)) return {};
  for (const auto& path : sources.paths) {
    auto columns = ColumnsOfFile(connection, path, sources.format, schema.read_options);
    if (!columns)
      return std::unexpected(Malformed(connection, path, sources.format, schema.read_options, std::move(columns.error())));
    // An array or line file without a value for a column is not a drift: only what is new is.
    if (IsJson(sources.format)) {
      for (const auto& c : pinned) {
        if (std::none_of(columns->begin(), columns->end(), [&](const ColumnSpec& n) { return n.name == c.name; }))
          columns->push_back(c);
      }
    }
    const Compare compare = sources.format == FileFormat::kParquet ? Compare::kNamesAndTypes : Compare::kNames;
    const std::string diff = SchemaDiff(pinned, *columns, compare, IsCsv(sources.format));
    if (!diff.empty())
      return std::unexpected(StageFailure(
          "schema_drift",
          fmt::format(
              "{} differs from the pinned schema: {}; bring the file back into its form, or delete {} to pin the new one",
              Shown(path), diff, pinned_path)));
  }
  return {};
}

struct Scan {
  std::int64_t rows = 0;
};

// Reads every value once, so that what the manifest promises is true.
StageOutcome<Scan> ScanAll(duck::Connection& connection, const SourceFiles& sources, const ReaderOptions& reader) {
  std::string counts = "count(*)";
  const bool typed = sources.format != FileFormat::kParquet;
  for (const auto& c : reader.columns) {
    if (typed || c.not_null) counts += fmt::format(", count({})", duck::QuoteName(c.name));
  }
  auto table = connection.Query(fmt::format("SELECT {} FROM ({})", counts, ReaderSelect(sources.paths, reader)));
  if (!table) {
    const std::string column = IsJson(sources.format) ? JsonColumnAtFault(connection, sources.paths, reader) : "";
    if (IsCsv(sources.format)) {  // the engine does not say of which file
      for (const auto& path : sources.paths)
        if (const auto problem = FindCsvProblem(path, sources.format, reader.options))
          return std::unexpected(StageFailure("source_malformed", problem->message));
    }
    Error error = std::move(table.error());
    error.message = column + WithoutEngineAdvice(std::move(error.message));
    const bool value = connection.last_error().type == "Conversion" || !column.empty();
    return std::unexpected(SqlFailure(value ? "bad_value" : "source_malformed", connection, std::move(error)));
  }
  if (reader.store_rejects) MILLRACE_TRY(FailOnRejects(connection, reader));
  MILLRACE_TRY(FailOnRounding(connection, sources.paths, reader));
  std::size_t at = 1;
  for (const auto& c : reader.columns) {
    if (!typed && !c.not_null) continue;
    if (c.not_null && table->Int(at) != table->Int(0)) {
      return std::unexpected(StageFailure("bad_value", fmt::format("column '{}' is declared not null and is null in {} rows",
                                                                   c.name, table->Int(0) - table->Int(at))));
    }
    ++at;
  }
  return Scan{.rows = table->Int()};
}

StageOutcome<std::vector<DatasetFile>> DescribeFiles(duck::Connection& connection, const SourceFiles& sources,
                                                     std::int64_t rows, const ProgressFn& progress) {
  std::vector<DatasetFile> files;
  std::int64_t bytes = 0;
  for (const auto& path : sources.paths) {
    DatasetFile file;
    file.path = path;
    file.referenced = true;
    file.format = sources.format;
    file.rows = sources.paths.size() == 1 ? rows : -1;
    MILLRACE_TRY_ASSIGN(const FileStamp before, StampFile(path));
    MILLRACE_TRY_ASSIGN(file.sha256, Sha256OfFile(path));
    file.bytes = before.bytes;
    file.mtime_us = before.mtime_us;
    if (sources.format == FileFormat::kParquet) {
      MILLRACE_TRY_ASSIGN(const duck::Table count,
                          connection.Query(fmt::format("SELECT count(*) FROM read_parquet({})", duck::QuoteText(path))));
      file.rows = count.Int();
    }
    bytes += file.bytes;
    progress(rows, bytes);
    files.push_back(std::move(file));
  }
  return files;
}

StageOutcome<void> PinSchema(const StageOrder& order, const std::string& path, const PinnedSchema& schema) {
  const auto pinned = PublishFile(path, ToJson(schema), fmt::format("{}", order.token.value()));
  if (pinned) return {};
  if (pinned.error().code != ErrorCode::kConflict) return std::unexpected(StageFailure(pinned.error()));
  MILLRACE_TRY_ASSIGN(const auto other, ReadPinnedSchema(path));  // another attempt was faster
  if (!other) return std::unexpected(StageFailure("io_error", fmt::format("{} was there and is gone", path), true));
  const std::string diff = SchemaDiff(other->columns, schema.columns, Compare::kNamesAndTypes, true);
  if (!diff.empty())
    return std::unexpected(StageFailure("schema_drift", fmt::format("differs from the schema just pinned: {}", diff)));
  return {};
}

}  // namespace

StageOutcome<SourceFiles> FindSources(const ExtractSpec& spec, std::string_view base_dir) {
  SourceFiles sources;
  for (const auto& pattern : spec.paths) {
    MILLRACE_TRY_ASSIGN(auto found, ExpandGlob(base_dir, pattern));
    if (found.empty())
      return std::unexpected(StageFailure("missing_file", fmt::format("no file matches '{}' in {}", pattern, base_dir), true));
    sources.paths.insert(sources.paths.end(), found.begin(), found.end());
  }
  std::sort(sources.paths.begin(), sources.paths.end());
  sources.paths.erase(std::unique(sources.paths.begin(), sources.paths.end()), sources.paths.end());
  sources.format = spec.format == FileFormat::kAuto && !sources.paths.empty() ? FormatOf(sources.paths.front()) : spec.format;
  for (const auto& path : sources.paths) {
    const FileFormat format = spec.format == FileFormat::kAuto ? FormatOf(path) : spec.format;
    if (format == FileFormat::kAuto) {
      return std::unexpected(StageFailure(
          "invalid_stage",
          fmt::format("{}: the ending says no format; set format: csv, tsv, ndjson, json or parquet", Shown(path))));
    }
    if (format != sources.format)
      return std::unexpected(StageFailure("invalid_stage", fmt::format("{}: one extract reads one format", Shown(path))));
  }
  return sources;
}

StageOutcome<PinnedSchema> SniffSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec) {
  PinnedSchema schema{.columns = {}, .read_options = spec.options};
  ReaderOptions reader{.format = sources.format, .options = spec.options};
  const std::string& first = sources.paths.front();
  auto columns = connection.Describe(fmt::format("SELECT * FROM {}", ReaderCall({first}, reader)));
  if (!columns && IsCsv(sources.format)) {
    StageFailure failure = Malformed(connection, first, sources.format, spec.options, columns.error());
    const auto problem = FindCsvProblem(first, sources.format, spec.options);
    // With declared columns there is nothing to guess: lines that do not fit are the scan's to name or to set aside.
    if (spec.columns.empty() || (problem && problem->kind == CsvProblem::Kind::kEncoding))
      return std::unexpected(std::move(failure));
    reader.skip_bad_rows = true;
    columns = connection.Describe(fmt::format("SELECT * FROM {}", ReaderCall({first}, reader)));
    if (!columns) return std::unexpected(std::move(failure));
  }
  if (!columns) return std::unexpected(Malformed(connection, first, sources.format, spec.options, std::move(columns.error())));
  schema.columns = std::move(*columns);
  for (auto& c : schema.columns) {
    if (c.type == "\"null\"" || c.type == "unknown") c.type = "varchar";  // a column without a single value
  }
  if (IsCsv(sources.format)) {
    MILLRACE_TRY(RefuseOtherDelimiter(sources, spec, schema.columns));
    const auto sniffed = connection.Query(
        fmt::format("SELECT dateformat, timestampformat FROM sniff_csv({}{}, sample_size = -1{})", duck::QuoteText(first),
                    CsvArguments(sources.format, spec.options), reader.skip_bad_rows ? ", ignore_errors = true" : ""));
    if (sniffed && !sniffed->Text(0).empty()) schema.read_options.try_emplace("dateformat", sniffed->Text(0));
    if (sniffed && !sniffed->Text(1).empty()) schema.read_options.try_emplace("timestampformat", sniffed->Text(1));
  }
  MILLRACE_TRY(ApplyDeclared(connection, spec, &schema));
  return schema;
}

StageOutcome<PinnedSchema> ResolveSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec,
                                         const std::string& pinned_path) {
  MILLRACE_TRY(CheckOptions(sources.format, spec.options));
  MILLRACE_TRY_ASSIGN(auto pinned, ReadPinnedSchema(pinned_path));
  if (!pinned) return SniffSchema(connection, sources, spec);
  MILLRACE_TRY(ApplyDeclared(connection, spec, &*pinned));
  return std::move(*pinned);
}

StageOutcome<StageResult> RunExtract(const StageOrder& order, const SourceFiles& sources, duck::Connection& connection,
                                     const ProgressFn& progress) {
  const StageTask& task = order.task;
  const auto& spec = std::get<ExtractSpec>(task.stage.work);
  const std::string pinned_path = fmt::format("{}/{}", order.lake, PinnedSchemaPath(task.org, task.pipeline, task.stage.name));
  MILLRACE_TRY_ASSIGN(const auto pinned, ReadPinnedSchema(pinned_path));
  MILLRACE_TRY_ASSIGN(const PinnedSchema schema, ResolveSchema(connection, sources, spec, pinned_path));
  // A declared type may differ from a Parquet file's own: it is cast. Files are compared with what was pinned of them.
  std::vector<ColumnSpec> of_files = pinned ? pinned->columns : schema.columns;
  if (sources.format == FileFormat::kParquet && !pinned) {
    MILLRACE_TRY_ASSIGN(of_files, ColumnsOfFile(connection, sources.paths.front(), sources.format, {}));
  }
  MILLRACE_TRY(CompareFiles(connection, sources, schema, of_files, pinned_path));
  const bool quarantine = task.stage.contract && task.stage.contract->on_violation != OnViolation::kFail;
  ReaderOptions reader{.format = sources.format,
                       .columns = schema.columns,
                       .options = schema.read_options,
                       .store_rejects = IsCsv(sources.format)};
  LakeWriter writer(order, connection);
  const PinnedSchema to_pin{.columns = of_files, .read_options = schema.read_options};
  StageResult result;
  MILLRACE_TRY_ASSIGN(std::vector<DatasetFile> files, DescribeFiles(connection, sources, -1, progress));
  for (const auto& file : files) result.bytes_read += file.bytes;
  Manifest manifest;
  manifest.layer = "bronze";
  manifest.columns = schema.columns;
  manifest.files = std::move(files);
  manifest.read_options = schema.read_options;
  std::int64_t rows = 0;
  std::string rows_sql = ReaderSelect(sources.paths, reader);
  std::string rejects_sql = quarantine && reader.store_rejects ? std::string(kRejectsSql) : "";
  if (!quarantine) {
    MILLRACE_TRY_ASSIGN(const Scan scan, ScanAll(connection, sources, reader));
    rows = scan.rows;
  } else {
    MILLRACE_TRY_ASSIGN(const std::int64_t rounding, CountRounding(connection, sources.paths, reader));
    if (rounding > 0) {
      const ExactRows exact = SplitRounding(sources.paths, reader);
      rows_sql = exact.kept;
      rejects_sql += (rejects_sql.empty() ? "" : " UNION ALL ") + exact.rejects;
    }
    MILLRACE_TRY_ASSIGN(
        const duck::Table count,
        connection.Query(fmt::format("SELECT count(*) FROM ({})", ReaderSelect(sources.paths, {.format = reader.format,
                                                                                               .columns = reader.columns,
                                                                                               .options = reader.options,
                                                                                               .skip_bad_rows = true}))));
    rows = count.Int();
  }
  if (rows == 0 && !spec.allow_empty) {
    return std::unexpected(StageFailure(
        "empty_extract", fmt::format("{} has no rows; set allow_empty: true if that is right", Shown(sources.paths.front()))));
  }
  if (!pinned) MILLRACE_TRY(PinSchema(order, pinned_path, to_pin));
  if (spec.copy || task.stage.contract) {
    result.input_rows = rows;
    auto done = writer.WriteAndPublish(rows_sql, {}, "bronze", std::move(result), {.quarantine_sql = rejects_sql});
    if (auto same = VerifySources(manifest); !same)
      return std::unexpected(StageFailure("source_changed", same.error().message, true));
    return done;
  }
  result.rows = {.read = rows, .loaded = rows};
  result.input_rows = rows;
  if (manifest.files.size() == 1) manifest.files.front().rows = rows;
  MILLRACE_TRY_ASSIGN(const std::string published, InputSql(manifest, order.lake));
  if (auto held = RunChecks(connection, published, task.stage.checks); !held) {
    return std::unexpected(
        StageFailure(held.error().code == ErrorCode::kConflict ? "check_failed" : "invalid_check", held.error().message));
  }
  if (auto same = VerifySources(manifest); !same)
    return std::unexpected(StageFailure("source_changed", same.error().message, true));
  progress(rows, result.bytes_read);
  return writer.Publish(std::move(manifest), std::move(result));
}

}  // namespace millrace
