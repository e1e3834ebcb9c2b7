#include "worker/stage/extract/extract.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <span>
#include <system_error>

#include "common/model/lake.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/check/contract.h"
#include "worker/stage/extract/csv_diagnosis.h"
#include "worker/stage/extract/declared_casts.h"
#include "worker/stage/extract/json_columns.h"
#include "worker/stage/extract/lossless.h"
#include "worker/stage/extract/packed.h"
#include "worker/stage/extract/plain_rows.h"
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

constexpr std::size_t kBytesLookedForTypes = 1u << 20;

constexpr std::string_view kValueAdvice = "fix the source, or declare the column as text and cast it in a transform";

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
  reason = WithoutEngineAdvice(std::move(reason));
  if (reason.starts_with("Expected Number of Columns") || reason.contains("quote")) {  // about the line, not a value
    if (const auto problem = FindCsvProblem(first.Text(0), reader.format, reader.options))
      return std::unexpected(StageFailure("source_malformed", problem->message + count));
  }
  const std::string column = first.Text(2).empty() ? "" : fmt::format("column '{}': ", first.Text(2));
  return std::unexpected(StageFailure(
      "bad_value", fmt::format("{}:{}: {}{}{}; {}", Shown(first.Text(0)), first.Int(1), column, reason, count, kValueAdvice)));
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
  if (const auto names = PlainNames(path, format, options)) {
    std::vector<ColumnSpec> columns;
    for (const auto& name : *names) columns.push_back({.name = name, .type = "varchar"});
    return columns;
  }
  const ReaderOptions reader{
      .format = format, .options = options, .all_text = format != FileFormat::kParquet, .skip_bad_rows = IsCsv(format)};
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

// Said instead of naming every column that it lacks.
StageOutcome<void> RefuseNoBytes(const SourceFiles& sources) {
  if (!IsCsv(sources.format)) return {};
  for (const auto& path : sources.paths) {
    std::error_code ec;
    if (std::filesystem::file_size(path, ec) != 0 || ec) continue;
    return std::unexpected(StageFailure(
        "empty_extract", fmt::format("{} is empty: it has 0 bytes, not even a header; fix what writes it", Shown(path))));
  }
  return {};
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

// Every file must have the pinned columns; text columns are read by position, so their order counts. The first `known` files
// are those that `pinned` was read from just now.
StageOutcome<void> CompareFiles(duck::Connection& connection, const SourceFiles& sources, const PinnedSchema& schema,
                                const std::vector<ColumnSpec>& pinned, std::string_view pinned_path, std::size_t known) {
  if (IsCsv(sources.format) && !HasHeader(schema.read_options)) return {};
  for (const auto& path : std::span(sources.paths).subspan(known)) {
    auto columns = ColumnsOfFile(connection, path, sources.format, schema.read_options);
    if (!columns)
      return std::unexpected(Malformed(connection, path, sources.format, schema.read_options, std::move(columns.error())));
    MILLRACE_TRY(RefuseEqualNames(connection, path, sources.format, schema.read_options, *columns));
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
      return std::unexpected(StageFailure("bad_value", fmt::format("column '{}' is declared not null and is null in {} rows; "
                                                                   "fix the source, or take `not null` from the column",
                                                                   c.name, table->Int(0) - table->Int(at))));
    }
    ++at;
  }
  return Scan{.rows = table->Int()};
}

// Reads every byte once: for the digest, and to find a packed file that is cut or damaged.
StageOutcome<std::vector<DatasetFile>> DescribeFiles(const SourceFiles& sources, const SourceWatch& watch,
                                                     const ProgressFn& progress) {
  std::vector<DatasetFile> files;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < sources.paths.size(); ++i) {
    DatasetFile file;
    file.path = sources.paths[i];
    file.referenced = true;
    file.format = sources.format;
    file.rows = -1;
    const auto content = WatchBytes(file.path, sources.format);
    const auto feed = [&](std::string_view part) { return content->Feed(part); };
    auto digest = content ? Sha256OfFile(file.path, feed) : Sha256OfFile(file.path);
    if (digest && content) {
      if (auto whole = content->Finish(); !whole) digest = std::unexpected(std::move(whole.error()));
    }
    if (!digest && digest.error().code == ErrorCode::kCorrupt)
      return std::unexpected(StageFailure("source_malformed", std::move(digest.error().message)));
    MILLRACE_TRY_ASSIGN(file.sha256, std::move(digest));
    file.bytes = watch.stamp(i).bytes;
    file.mtime_us = watch.stamp(i).mtime_us;
    bytes += file.bytes;
    progress(-1, bytes);
    files.push_back(std::move(file));
  }
  return files;
}

// On a thread of its own, unless the stage has only one.
template <class Work>
auto Beside(int threads, Work work) -> std::future<decltype(work())> {
  if (threads > 1) {
    try {
      return std::async(std::launch::async, work);
    } catch (const std::system_error&) {  // no thread to be had
    }
  }
  return std::async(std::launch::deferred, std::move(work));
}

StageOutcome<void> CountParquetRows(duck::Connection& connection, std::vector<DatasetFile>* files) {
  for (auto& file : *files) {
    MILLRACE_TRY_ASSIGN(const duck::Table count,
                        connection.Query(fmt::format("SELECT count(*) FROM read_parquet({})", duck::QuoteText(file.path))));
    file.rows = count.Int();
  }
  return {};
}

std::vector<std::string> Guessed(const ExtractSpec& spec, const std::vector<ColumnSpec>& columns) {
  std::vector<std::string> names;
  for (const auto& c : columns) {
    const auto declared = [&](const ColumnSpec& d) { return d.name == c.name && !d.type.empty(); };
    if (std::none_of(spec.columns.begin(), spec.columns.end(), declared)) names.push_back(c.name);
  }
  return names;
}

// The rows of the sources as SQL, and those that are no rows of the declared types.
struct Proven {
  std::int64_t rows = 0;
  std::string rows_sql, rejects_sql;
};

// Nothing can be set aside: there are no rejects.
StageOutcome<Proven> ProvenPlain(duck::Connection& connection, const SourceFiles& sources, ReaderOptions reader,
                                 std::int64_t rows) {
  reader.store_rejects = false;
  Proven out{.rows = rows, .rows_sql = ReaderSelect(sources.paths, reader), .rejects_sql = {}};
  if (auto plain = PlainRows(sources.paths, reader, rows)) {
    MILLRACE_TRY_ASSIGN(const std::string table, connection.Offer(std::move(plain)));
    out.rows_sql = "SELECT * FROM " + table;
  }
  return out;
}

// Every value fits its type, or the first that does not is the error.
StageOutcome<Proven> ProveAll(duck::Connection& connection, const SourceFiles& sources, const ReaderOptions& reader,
                              const DeclaredCasts& casts) {
  MILLRACE_TRY(FailOnLossyCasts(connection, sources.paths, casts));
  MILLRACE_TRY_ASSIGN(const Scan scan, ScanAll(connection, sources, reader));
  return Proven{.rows = scan.rows, .rows_sql = ReaderSelect(sources.paths, reader), .rejects_sql = {}};
}

// Every value fits its type, or its row is among the rejects.
StageOutcome<Proven> SplitAll(duck::Connection& connection, const SourceFiles& sources, const ReaderOptions& reader,
                              const DeclaredCasts& casts, const std::vector<ColumnSpec>& of_files) {
  Proven out{.rows = 0,
             .rows_sql = ReaderSelect(sources.paths, reader),
             .rejects_sql = reader.store_rejects ? std::string(kRejectsSql) : ""};
  MILLRACE_TRY_ASSIGN(const std::vector<std::string> rounding, ColumnsThatRound(connection, sources.paths, reader));
  if (!rounding.empty() || !casts.none) {
    ExactRows exact =
        casts.none ? SplitRounding(sources.paths, reader, rounding) : SplitLossyCasts(sources.paths, of_files, casts);
    out.rows_sql = std::move(exact.kept);
    out.rejects_sql += (out.rejects_sql.empty() ? "" : " UNION ALL ") + exact.rejects;
  }
  ReaderOptions readable = reader;
  readable.store_rejects = false;
  readable.skip_bad_rows = true;
  const std::string all = casts.none ? ReaderSelect(sources.paths, readable) : ReaderSelect(sources.paths, {});
  MILLRACE_TRY_ASSIGN(const duck::Table count, connection.Query(fmt::format("SELECT count(*) FROM ({})", all)));
  out.rows = count.Int();
  return out;
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

// The schema of a text file of which every column is declared, so that nothing has to be guessed but the form of dates: absent
// when it must be sniffed after all.
StageOutcome<std::optional<PinnedSchema>> DeclaredSchema(duck::Connection& connection, const SourceFiles& sources,
                                                         const ExtractSpec& spec, PlainCsv* plain) {
  if (!IsCsv(sources.format) || !HasHeader(spec.options)) return std::nullopt;
  const std::string& first = sources.paths.front();
  auto names = ColumnsOfFile(connection, first, sources.format, spec.options);
  if (!names) return std::nullopt;
  PinnedSchema schema{.columns = std::move(*names), .read_options = spec.options};
  if (!Guessed(spec, schema.columns).empty()) return std::nullopt;
  const auto wrong_encoding = [&](std::size_t bytes_max) {  // the sniffer has a message for it
    const auto problem = FindCsvProblem(first, sources.format, spec.options, bytes_max);
    return problem && problem->kind == CsvProblem::Kind::kEncoding;
  };
  if (plain == nullptr && wrong_encoding(kBytesLookedForTypes)) return std::nullopt;
  MILLRACE_TRY(RefuseEqualNames(connection, first, sources.format, spec.options, schema.columns));
  MILLRACE_TRY(ApplyDeclared(connection, spec, &schema));
  if (plain == nullptr) return schema;
  // As the sniffer would say of dates in ISO form: later values are held to it.
  if (std::ranges::any_of(schema.columns, [](const ColumnSpec& c) { return c.type == "date"; }))
    schema.read_options.try_emplace("dateformat", "%Y-%m-%d");
  ReaderOptions reader{.format = sources.format, .columns = schema.columns, .options = schema.read_options};
  if (plain->Rows(first, reader)) return schema;
  if (wrong_encoding(kDiagnosedBytesMax)) return std::nullopt;
  reader.options = spec.options;
  reader.skip_bad_rows = true;
  MILLRACE_TRY_ASSIGN(const bool iso, HoldsOnlyIsoDates(connection, {first}, reader));
  if (!iso) return std::nullopt;
  return schema;
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

StageOutcome<PinnedSchema> SniffSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec,
                                       PlainCsv* plain) {
  MILLRACE_TRY_ASSIGN(auto declared, DeclaredSchema(connection, sources, spec, plain));
  if (declared) return std::move(*declared);
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
  MILLRACE_TRY(RefuseEqualNames(connection, first, sources.format, spec.options, schema.columns));
  if (IsJson(sources.format)) MILLRACE_TRY(PlainJsonTypes(connection, first, sources.format, &schema.columns));
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
  if (sources.format == FileFormat::kParquet) return schema;
  reader.options = schema.read_options;
  MILLRACE_TRY(KeepWideIntegers(connection, first, reader, Guessed(spec, schema.columns), &schema.columns));
  return schema;
}

StageOutcome<PinnedSchema> ResolveSchema(duck::Connection& connection, const SourceFiles& sources, const ExtractSpec& spec,
                                         const std::string& pinned_path, PlainCsv* plain) {
  MILLRACE_TRY(CheckOptions(sources.format, spec.options));
  MILLRACE_TRY_ASSIGN(auto pinned, ReadPinnedSchema(pinned_path));
  if (HasHeader(pinned ? pinned->read_options : spec.options)) MILLRACE_TRY(RefuseNoBytes(sources));
  if (!pinned) return SniffSchema(connection, sources, spec, plain);
  MILLRACE_TRY(ApplyDeclared(connection, spec, &*pinned));
  return std::move(*pinned);
}

StageOutcome<StageResult> RunExtract(const StageOrder& order, const SourceFiles& sources, duck::Connection& connection,
                                     const ProgressFn& progress) {
  const StageTask& task = order.task;
  const auto& spec = std::get<ExtractSpec>(task.stage.work);
  const std::string pinned_path = fmt::format("{}/{}", order.lake, PinnedSchemaPath(task.org, task.pipeline, task.stage.name));
  MILLRACE_TRY_ASSIGN(const SourceWatch watch, SourceWatch::Start(sources.paths));
  Manifest manifest;
  PlainCsv plain(order.threads);
  auto described = Beside(order.threads, [&] { return DescribeFiles(sources, watch, progress); });
  MILLRACE_TRY_ASSIGN(const auto pinned, ReadPinnedSchema(pinned_path));
  auto resolved = ResolveSchema(connection, sources, spec, pinned_path, &plain);
  MILLRACE_TRY_ASSIGN(manifest.files, described.get());  // what is wrong with the bytes comes first
  MILLRACE_TRY_ASSIGN(const PinnedSchema schema, std::move(resolved));
  // A declared type may differ from a Parquet file's own: it is cast. Files are compared with what was pinned of them.
  std::vector<ColumnSpec> of_files = pinned ? pinned->columns : schema.columns;
  const bool read_now = sources.format == FileFormat::kParquet && !pinned;
  if (read_now) {
    MILLRACE_TRY_ASSIGN(of_files, ColumnsOfFile(connection, sources.paths.front(), sources.format, {}));
  }
  MILLRACE_TRY(CompareFiles(connection, sources, schema, of_files, pinned_path, read_now ? 1 : 0));
  DeclaredCasts casts;
  if (sources.format == FileFormat::kParquet) {
    MILLRACE_TRY(CountParquetRows(connection, &manifest.files));
    MILLRACE_TRY_ASSIGN(casts, PlanCasts(connection, of_files, schema.columns));
  }
  ReaderOptions reader{.format = sources.format,
                       .columns = schema.columns,
                       .options = schema.read_options,
                       .store_rejects = IsCsv(sources.format),
                       .guessed_doubles = Guessed(spec, schema.columns)};
  const bool quarantine = task.stage.contract && task.stage.contract->on_violation != OnViolation::kFail;
  const auto plain_rows = plain.Rows(sources.paths, reader);
  MILLRACE_TRY_ASSIGN(Proven proven, plain_rows   ? ProvenPlain(connection, sources, reader, *plain_rows)
                                     : quarantine ? SplitAll(connection, sources, reader, casts, of_files)
                                                  : ProveAll(connection, sources, reader, casts));
  if (proven.rows == 0 && !spec.allow_empty) {
    return std::unexpected(StageFailure(
        "empty_extract", fmt::format("{} has no rows; set allow_empty: true if that is right", Shown(sources.paths.front()))));
  }
  const PinnedSchema to_pin{.columns = of_files, .read_options = schema.read_options};
  if (!pinned) MILLRACE_TRY(PinSchema(order, pinned_path, to_pin));
  LakeWriter writer(order, connection);
  writer.BeforePublish(&watch);
  StageResult result;
  for (const auto& file : manifest.files) result.bytes_read += file.bytes;
  result.input_rows = proven.rows;
  if (spec.copy || task.stage.contract)
    return writer.WriteAndPublish(proven.rows_sql, {}, "bronze", std::move(result),
                                  {.quarantine_sql = std::move(proven.rejects_sql)});
  manifest.layer = "bronze";
  manifest.columns = schema.columns;
  manifest.read_options = schema.read_options;
  if (plain_rows) manifest.read_options.insert_or_assign(std::string(kProvenRows), fmt::format("{}", *plain_rows));
  result.rows = {.read = proven.rows, .loaded = proven.rows};
  if (manifest.files.size() == 1) manifest.files.front().rows = proven.rows;
  MILLRACE_TRY_ASSIGN(const std::string published, OfferInput(connection, manifest, order.lake));
  if (auto held = RunChecks(connection, published, task.stage.checks); !held) {
    return std::unexpected(
        StageFailure(held.error().code == ErrorCode::kConflict ? "check_failed" : "invalid_check", held.error().message));
  }
  progress(proven.rows, result.bytes_read);
  return writer.Publish(std::move(manifest), std::move(result));
}

}  // namespace millrace
