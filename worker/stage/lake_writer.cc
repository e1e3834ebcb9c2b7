#include "worker/stage/lake_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "common/base/failpoint.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/check/contract.h"
#include "worker/stage/exact_text.h"
#include "worker/stage/files.h"
#include "worker/stage/input_sql.h"

namespace millrace {
namespace {

constexpr int kViolationsShown = 5;

// Between stages: numbers as differences, which leaves so little to compress that the lowest level of zstd writes fewer bytes
// in less time than a higher one over Parquet's first version. A dictionary is for columns of few values: the engine looks for
// one in every column, and gives up the sooner the smaller it must be. Rows that were set aside are for readers of other makes.
constexpr std::string_view kDatasetFormat =
    "FORMAT parquet, PARQUET_VERSION v2, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 1000";
constexpr std::string_view kQuarantineFormat = "FORMAT parquet, COMPRESSION zstd";
constexpr std::string_view kQuarantineSuffix = ".quarantine";

std::string ReadSql(std::string_view absolute) {
  return fmt::format("SELECT * FROM read_parquet({})", duck::QuoteText(absolute));
}

}  // namespace

StageFailure SqlFailure(std::string_view error_class, const duck::Connection& connection, Error error) {
  if (error.code == ErrorCode::kLimit || error.code == ErrorCode::kCancelled) return StageFailure(std::move(error));
  const duck::SqlError& sql = connection.last_error();
  if (sql.type == "Permission") return {"permission_denied", std::move(error.message)};
  if (sql.type == "IO") return {"io_error", std::move(error.message), true};
  return {error_class, std::move(error.message)};
}

Result<void> RequireLakeTypes(const std::vector<ColumnSpec>& columns) {
  for (const auto& c : columns) {
    std::string type;  // without the names of a struct's fields
    bool quoted = false;
    for (const char ch : c.type) {
      if (ch == '"') quoted = !quoted;
      if (!quoted) type += ch;
    }
    const auto has = [&](std::string_view word) { return type.find(word) != std::string::npos; };
    if (has("interval"))
      return Fail(ErrorCode::kInvalidArgument,
                  "column '{}': the lake does not keep an interval exactly; cast it, for example to text or to seconds with "
                  "epoch()",
                  c.name);
    if (has("time with time zone"))
      return Fail(ErrorCode::kInvalidArgument,
                  "column '{}': the lake does not keep the offset of a timetz; cast it to text or time", c.name);
    if (has("hugeint") && type != "hugeint" && type != "uhugeint")
      return Fail(ErrorCode::kInvalidArgument,
                  "column '{}': the lake does not keep a hugeint inside {}; cast it to decimal(38,0)", c.name, c.type);
  }
  return {};
}

std::string PublishSql(std::string_view sql, const std::vector<ColumnSpec>& columns) {
  std::string casts;
  for (const auto& c : columns) {
    if (c.type != "hugeint" && c.type != "uhugeint") continue;
    const std::string name = duck::QuoteName(c.name);
    casts += fmt::format("{}CAST({} AS DECIMAL(38,0)) AS {}", casts.empty() ? "" : ", ", name, name);
  }
  const std::string_view bare = duck::StripSemicolon(sql);
  return casts.empty() ? std::string(bare) : fmt::format("SELECT * REPLACE ({}) FROM ({}\n)", casts, bare);
}

LakeWriter::~LakeWriter() {
  for (const auto& file : own_files_) {
    if (std::find(keep_.begin(), keep_.end(), file) == keep_.end()) ::unlink(Absolute(file).c_str());
  }
}

std::string LakeWriter::Absolute(std::string_view relative) const { return fmt::format("{}/{}", order_.lake, relative); }

std::string LakeWriter::Folder(const StageOrder& order) {
  const StageTask& task = order.task;
  return fmt::format("{}/{}", order.lake, DatasetDir(task.org, task.pipeline, task.stage.name));
}

Result<void> LakeWriter::PrepareFolders(const StageOrder& order) {
  MILLRACE_TRY(EnsureDirectory(Folder(order) + "/data"));
  return EnsureDirectory(Folder(order) + "/manifests");
}

StageOutcome<std::optional<StageResult>> LakeWriter::FindPublished() const {
  const StageTask& task = order_.task;
  auto manifest = LoadManifest(order_.lake, task.org, task.pipeline, {.stage = task.stage.name, .effect = task.effect});
  if (!manifest) {
    if (manifest.error().code == ErrorCode::kNotFound) return std::nullopt;
    return std::unexpected(StageFailure(std::move(manifest.error())));
  }
  SweepLost(manifest->token);
  StageResult result = std::move(manifest->result);
  result.already_applied = true;
  return result;
}

// An attempt with a lower token can publish no more once a manifest is there, so that nobody reads or finishes what it wrote.
void LakeWriter::SweepLost(Token published) const {
  const StageTask& task = order_.task;
  std::string prefix =
      std::filesystem::path(ManifestPath(task.org, task.pipeline, task.stage.name, task.effect)).stem().string() + "-";
  AfterResult(
      [folder = Folder(order_) + "/data", prefix = std::move(prefix), own = order_.token.value(), won = published.value()] {
        std::error_code error;
        std::filesystem::directory_iterator entries(folder, error);
        for (const std::filesystem::directory_iterator end; !error && entries != end; entries.increment(error)) {
          const std::string name = entries->path().filename().string();
          if (!name.starts_with(prefix)) continue;
          std::uint64_t token = 0;
          const auto read = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), token);
          if (read.ec == std::errc{} && token < own && token != won) ::unlink(entries->path().c_str());
        }
      });
}

StageOutcome<LakeWriter::Written> LakeWriter::Copy(std::string_view sql, const std::vector<BoundParam>& params,
                                                   std::string_view suffix) {
  const StageTask& task = order_.task;
  std::string path = DataFilePath(task.org, task.pipeline, task.stage.name, task.effect, order_.token, 0);
  constexpr std::string_view kEnding = ".parquet";
  path.insert(path.size() - kEnding.size(), suffix);
  own_files_.push_back(path);
  auto rows = connection_.Execute(fmt::format("COPY ({}\n) TO {} ({})", sql, duck::QuoteText(Absolute(path)),
                                              suffix == kQuarantineSuffix ? kQuarantineFormat : kDatasetFormat),
                                  params);
  if (!rows) return std::unexpected(SqlFailure("sql_error", connection_, std::move(rows.error())));
  return Written{.path = std::move(path), .rows = *rows};
}

StageOutcome<void> LakeWriter::ApplyContract(Written* data, Manifest* manifest, StageResult* result,
                                             const RejectSource& rejects) {
  const auto& contract = order_.task.stage.contract;
  const std::string raw = ReadSql(Absolute(data->path));
  ContractPlan plan{.columns = manifest->columns};
  if (contract) {
    MILLRACE_TRY_ASSIGN(plan, PlanContract(connection_, manifest->columns, *contract));
  }
  std::int64_t violations = 0;
  if (!plan.violation.empty()) {
    MILLRACE_TRY_ASSIGN(const duck::Table count,
                        connection_.Query(fmt::format("SELECT count({}) FROM ({})", plan.violation, raw)));
    violations = count.Int();
  }
  std::int64_t rejected = 0;
  if (!rejects.quarantine_sql.empty()) {
    MILLRACE_TRY_ASSIGN(const duck::Table count,
                        connection_.Query(fmt::format("SELECT count(*) FROM ({})", rejects.quarantine_sql)));
    rejected = count.Int();
  }
  const std::string bad_rows = plan.violation.empty()
                                   ? ""
                                   : fmt::format(
                                         "SELECT {} AS reason, CAST(NULL AS VARCHAR) AS source, CAST(NULL AS BIGINT) AS line, "
                                         "{} AS row FROM ({}) WHERE {} IS NOT NULL",
                                         plan.violation, RowJson(manifest->columns), raw, plan.violation);
  if (violations > 0 && contract->on_violation == OnViolation::kFail) {
    MILLRACE_TRY_ASSIGN(const duck::Table rows,
                        connection_.Query(fmt::format("SELECT reason, row FROM ({}) LIMIT {}", bad_rows, kViolationsShown)));
    std::string shown;
    for (std::size_t r = 0; r < rows.rows.size(); ++r)
      shown += fmt::format("{}{} in {}", r == 0 ? "" : "; ", rows.Text(0, r), rows.Text(1, r));
    return std::unexpected(
        StageFailure("contract_violation", fmt::format("{} rows break the contract: {}", violations, shown)));
  }
  result->rows.read = data->rows + rejected;
  const bool quarantine = contract && contract->on_violation == OnViolation::kQuarantine;
  if (violations + rejected > 0 && quarantine) {
    const std::string both = bad_rows.empty() || violations == 0 ? rejects.quarantine_sql
                             : rejected == 0                     ? bad_rows
                                             : fmt::format("{} UNION ALL {}", bad_rows, rejects.quarantine_sql);
    MILLRACE_TRY_ASSIGN(const Written bad, Copy(both, {}, kQuarantineSuffix));
    syncs_.Start(SyncFile, Absolute(bad.path));
    result->quarantine = bad.path;
    keep_.push_back(bad.path);
  }
  (quarantine ? result->rows.quarantined : result->rows.filtered) = violations + rejected;
  if (plan.casts || violations > 0) {
    MILLRACE_TRY_ASSIGN(
        *data, Copy(fmt::format("SELECT {} FROM ({}) WHERE {} IS NULL", plan.select_list, raw, plan.violation), {}, ".kept"));
  }
  manifest->columns = std::move(plan.columns);
  return {};
}

StageOutcome<StageResult> LakeWriter::WriteAndPublish(std::string_view sql, const std::vector<BoundParam>& params,
                                                      std::string_view layer, StageResult result, const RejectSource& rejects) {
  auto done = Write(sql, params, layer, std::move(result), rejects);
  if (done) return done;
  // An attempt that has published removes the files of those before it, also from under one that still reads them.
  const bool lost = std::ranges::any_of(own_files_, [&](const std::string& file) { return !StampFile(Absolute(file)); });
  if (!lost) return done;
  auto stored = FindPublished();
  if (!stored || !*stored) return done;
  keep_.clear();
  return std::move(**stored);
}

StageOutcome<StageResult> LakeWriter::Write(std::string_view sql, const std::vector<BoundParam>& params, std::string_view layer,
                                            StageResult result, const RejectSource& rejects) {
  auto columns = connection_.Describe(sql, params);
  if (!columns) return std::unexpected(SqlFailure("sql_error", connection_, std::move(columns.error())));
  if (auto kept = RequireLakeTypes(*columns); !kept)
    return std::unexpected(StageFailure("unsupported_type", kept.error().message));
  MILLRACE_TRY_ASSIGN(Written data, Copy(PublishSql(sql, *columns), params, ""));
  MILLRACE_FAILPOINT("stage.data_written");
  Manifest manifest;
  manifest.layer = layer;
  MILLRACE_TRY_ASSIGN(manifest.columns, connection_.Describe(ReadSql(Absolute(data.path))));
  MILLRACE_TRY(ApplyContract(&data, &manifest, &result, rejects));
  const std::string path = Absolute(data.path);
  if (auto held = RunChecks(connection_, ReadSql(path), order_.task.stage.checks); !held) {
    return std::unexpected(
        StageFailure(held.error().code == ErrorCode::kConflict ? "check_failed" : "invalid_check", held.error().message));
  }
  syncs_.Start(SyncFile, path);
  syncs_.Start(SyncDirectory, ParentOf(path));
  MILLRACE_TRY_ASSIGN(const FileStamp stamp, StampFile(path));
  MILLRACE_TRY_ASSIGN(std::string digest, Sha256OfFile(path));
  result.rows.loaded = data.rows;
  result.bytes_written = stamp.bytes;
  keep_.push_back(data.path);
  DatasetFile& file = manifest.files.emplace_back();
  file.path = data.path;
  file.bytes = stamp.bytes;
  file.rows = data.rows;
  file.mtime_us = stamp.mtime_us;
  file.sha256 = std::move(digest);
  return Publish(std::move(manifest), std::move(result));
}

StageOutcome<void> LakeWriter::RequireWhole(const StageResult& result) const {
  if (!result.rows.Balanced()) {
    return std::unexpected(StageFailure(
        "internal_error", fmt::format("rows do not add up: read {}, loaded {}, filtered {}, quarantined {}", result.rows.read,
                                      result.rows.loaded, result.rows.filtered, result.rows.quarantined)));
  }
  if (sources_ == nullptr) return {};
  if (auto same = sources_->Untouched(); !same)
    return std::unexpected(StageFailure("source_changed", same.error().message, true));
  return {};
}

StageOutcome<StageResult> LakeWriter::Publish(Manifest manifest, StageResult result) {
  const StageTask& task = order_.task;
  result.ok = true;
  MILLRACE_TRY(RequireWhole(result));
  manifest.effect = task.effect;
  manifest.token = order_.token;
  manifest.run = task.run;
  manifest.stage = task.stage.name;
  manifest.rows = result.rows;
  result.manifest = ManifestPath(task.org, task.pipeline, task.stage.name, task.effect);
  manifest.result = result;
  MILLRACE_FAILPOINT("stage.before_publish");
  const auto published =
      PublishFile(Absolute(result.manifest), ToJson(manifest), fmt::format("{}", order_.token.value()), &syncs_);
  if (published) {
    SweepLost(order_.token);
    return result;
  }
  keep_.clear();
  if (published.error().code != ErrorCode::kConflict) return std::unexpected(StageFailure(published.error()));
  MILLRACE_TRY_ASSIGN(auto stored, FindPublished());
  if (!stored) return std::unexpected(StageFailure("io_error", fmt::format("{} was there and is gone", result.manifest), true));
  return std::move(*stored);
}

}  // namespace millrace
