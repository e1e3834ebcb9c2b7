#include "worker/stage/load/load.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "common/base/clock.h"
#include "common/base/history.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/input_sql.h"
#include "worker/stage/load/scrub.h"
#include "worker/stage/load/sinks.h"
#include "worker/stage/load/types.h"

namespace millrace {
namespace load {
namespace {

constexpr int kKeysNamedMax = 5;

std::string InputChecksum(const Manifest& input) {
  std::string all;
  for (const DatasetFile& file : input.files) all += fmt::format("{} {}\n", file.rows, file.sha256);
  return Sha256Hex(all);
}

// `provenance: true`: which effect and which attempt wrote a row, in the row itself.
Outcome<void> AddProvenance(LoadJob& job) {
  constexpr std::string_view kEffect = "_millrace_effect", kToken = "_millrace_token";
  for (const ColumnSpec& c : job.columns)
    if (c.name == kEffect || c.name == kToken)
      return Refuse("schema_mismatch",
                    fmt::format("the dataset has a column '{}', which provenance adds: rename it with AS", c.name));
  job.dataset_sql =
      fmt::format("select *, {}::varchar as {}, {}::bigint as {} from ({}) as dataset", duck::QuoteText(job.order.task.effect),
                  kEffect, job.order.token.value(), kToken, job.dataset_sql);
  job.columns.push_back({std::string(kEffect), "varchar", true});
  job.columns.push_back({std::string(kToken), "bigint", true});
  return {};
}

// A file that is damaged stays so; a disk that answers no read may answer the next attempt.
std::unexpected<Failure> Unverified(Error error) {
  if (error.code == ErrorCode::kCorrupt) return Refuse("corrupt", std::move(error.message));
  if (error.code != ErrorCode::kUnavailable && error.code != ErrorCode::kLimit)
    return Refuse("source_unreadable", std::move(error.message));
  StageFailure passing(std::move(error));
  return std::unexpected(Failure(passing.error_class, std::move(passing.message), passing.retryable));
}

// Begins to watch the sources, counts the dataset's rows into job.rows and runs the stage's checks.
Outcome<void> CheckBatch(LoadJob& job, duck::Connection& source) {
  auto sources = SourceWatch::Start({*job.input});
  if (!sources) return Refuse("source_changed", std::move(sources.error().message));
  job.sources = std::move(*sources);
  if (auto same = VerifySources(*job.input); !same) return Refuse("source_changed", std::move(same.error().message));
  if (auto sound = VerifyLake(*job.input, job.order.lake); !sound) return Unverified(std::move(sound.error()));
  auto count = source.Query(fmt::format("select count(*) from ({}) as dataset", job.dataset_sql));
  if (!count) return std::unexpected(Failure("source_unreadable", std::move(count.error().message), false));
  job.rows = count->Int();
  if (job.rows != job.input->rows.loaded)
    return Refuse("source_changed", fmt::format("the dataset of stage '{}' has {} rows and was published with {}",
                                                job.input->stage, job.rows, job.input->rows.loaded));
  if (job.rows == 0 && job.spec.mode == LoadMode::kReplace && !job.spec.allow_empty)
    return Refuse("empty_input", "the dataset has no rows, and replacing a target by nothing needs allow_empty: true");
  if (job.order.task.stage.checks.empty()) return {};
  auto checked = RunChecks(source, job.dataset_sql, job.order.task.stage.checks);
  if (!checked) return Refuse("check_failed", std::move(checked.error().message));
  return {};
}

Outcome<Loaded> Dispatch(LoadJob& job, duck::Connection& source) {
  if (job.order.token.value() == 0 || job.order.token.value() > INT64_MAX)
    return Refuse("invalid_target", fmt::format("token {} is not in [1, 2^63)", job.order.token.value()));
  if (!job.order.fence_only) {
    if (job.columns.empty()) return Refuse("schema_mismatch", "the dataset has no columns: select at least one");
    if (job.spec.provenance) MILLRACE_TRY(AddProvenance(job));
  }
  if (job.spec.mode == LoadMode::kMerge && job.spec.key.empty()) return Refuse("invalid_target", "mode merge needs a key");
  // The stage's own SQL runs before a destination is open. What it finds counts only where no receipt is.
  if (!job.order.fence_only) job.checked = CheckBatch(job, source);
  if (job.spec.to == "file") return LoadIntoFiles(job, source);
  if (!job.order.connection)
    return Refuse("invalid_target", fmt::format("connection '{}' is not defined on this worker", job.spec.to));
  if (job.order.connection->type == "postgres") {
    const SystemClock clock;
    return LoadIntoPostgres(job, source, clock);
  }
  if (job.order.connection->type == "sqlite") return LoadIntoSqlite(job, source);
  return Refuse("invalid_target", fmt::format("connection '{}' has type '{}', which is not postgres or sqlite",
                                              job.order.connection->name, job.order.connection->type));
}

std::string KeyList(const LoadJob& job, std::string_view between, std::string_view after) {
  std::string out;
  for (const std::string& k : job.spec.key)
    out += (out.empty() ? "" : std::string(between)) + duck::QuoteName(k) + std::string(after);
  return out;
}

}  // namespace

Outcome<void> RequireUntouchedSources(const LoadJob& job) {
  if (auto same = job.sources.Untouched(); !same)
    return std::unexpected(Failure("source_changed", std::move(same.error().message), true));
  return {};
}

Outcome<BatchKeys> CheckKeys(const LoadJob& job, duck::Connection& source, const std::string& cast_sql) {
  for (const std::string& key : job.spec.key)
    if (std::none_of(job.columns.begin(), job.columns.end(), [&](const ColumnSpec& c) { return c.name == key; }))
      return Refuse("invalid_target", fmt::format("key column '{}' is not in the dataset", key));
  const std::string keys = KeyList(job, ", ", "");
  const auto ask = [&](const std::string& sql) -> Outcome<duck::Table> {
    auto table = source.Query(sql);
    if (!table) return std::unexpected(Failure("data_rejected", std::move(table.error().message), false));
    return std::move(*table);
  };
  MILLRACE_TRY_ASSIGN(const duck::Table nulls, ask(fmt::format("select count(*) filter (where {} is null), count(*) from ({})",
                                                               KeyList(job, " is null or ", ""), cast_sql)));
  if (nulls.Int() != 0)
    return Refuse("null_key", fmt::format("{} rows have a null in the key ({})", nulls.Int(), fmt::join(job.spec.key, ", ")));
  const std::int64_t rows = nulls.Int(1);  // not job.rows: rows that are missing now are not further copies of others
  BatchKeys out{rows, 0, cast_sql};
  MILLRACE_TRY_ASSIGN(const duck::Table distinct,
                      ask(fmt::format("select count(*) from (select distinct {} from ({}))", keys, cast_sql)));
  if (distinct.Int() == rows) return out;
  MILLRACE_TRY_ASSIGN(const duck::Table differing,
                      ask(fmt::format("select {}, count(*) from (select distinct * from ({})) group by {} having count(*) > 1"
                                      " order by {} limit {}",
                                      KeyList(job, ", ", "::varchar"), cast_sql, keys, keys, kKeysNamedMax + 1)));
  if (!differing.rows.empty()) {
    std::string names;
    for (std::size_t i = 0; i < differing.rows.size() && i < static_cast<std::size_t>(kKeysNamedMax); ++i) {
      std::string one;
      for (std::size_t k = 0; k < job.spec.key.size(); ++k) one += (k == 0 ? "" : ", ") + differing.Text(k, i);
      names += fmt::format("{}({})", i == 0 ? "" : ", ", one);
    }
    return Refuse("duplicate_key_in_batch",
                  fmt::format("rows with the same key ({}) differ: {}{}", fmt::join(job.spec.key, ", "), names,
                              differing.rows.size() > kKeysNamedMax ? ", ..." : ""));
  }
  out.select_sql = fmt::format("select distinct * from ({})", cast_sql);
  out.rows = distinct.Int();
  out.deduplicated = rows - out.rows;
  return out;
}

}  // namespace load

namespace {

StageResult InvalidTarget(const StageOrder& order) {
  StageResult failed;
  failed.error_class = "invalid_target";
  failed.error = fmt::format("stage '{}' is not a load", order.task.stage.name);
  return failed;
}

// A load that would write over what the next run reads.
bool WritesOverItsSource(const StageOrder& order, const LoadSpec& spec, const Manifest& input) {
  if (spec.to != "file") return false;
  const std::filesystem::path target = load::FileTarget(order, spec);
  std::error_code ignored;
  return std::ranges::any_of(input.files, [&](const DatasetFile& file) {
    return file.referenced && (target == std::filesystem::path(file.path).lexically_normal() ||
                               std::filesystem::equivalent(target, file.path, ignored));
  });
}

void Record(const load::LoadJob& job, history::Type type, bool again) {
  if (!history::On()) return;
  history::Write("stage", "load", type,
                 fmt::format(R"("job":"{}","token":{},"effect":{},"again":{})", job.order.task.job.ToString(),
                             job.order.token.value(), history::Quoted(job.order.task.effect), again));
}

StageResult Finished(load::LoadJob& job, duck::Connection& connection) {
  Record(job, history::Type::kInvoke, false);
  const auto loaded = load::Dispatch(job, connection);
  // A refusal is an answer of the destination; when it could not be reached, nobody knows.
  const bool unknown = !loaded && loaded.error().error_class == "destination_unavailable";
  Record(job,
         loaded    ? history::Type::kOk
         : unknown ? history::Type::kUnknown
                   : history::Type::kFail,
         loaded && loaded->already_applied);
  if (loaded) return load::ToResult(loaded->receipt, loaded->already_applied);
  StageResult failed = load::ToResult(job, loaded.error());
  if (job.order.connection) failed.error = load::Scrubbed(std::move(failed.error), job.order.connection->dsn);
  return failed;
}

load::LoadJob MakeJob(const StageOrder& order, const LoadSpec& spec, const Manifest& input, const ProgressFn& progress) {
  return {order,
          spec,
          input.columns,
          {},
          0,
          spec.to == "file" ? spec.path : spec.table,
          load::Sha256Hex(order.task.effect).substr(0, 16),
          load::InputChecksum(input),
          progress,
          {},
          order.fence_only ? nullptr : &input,
          {}};
}

}  // namespace

StageResult RunLoad(const StageOrder& order, const Manifest& input, duck::Connection& connection, const ProgressFn& progress) {
  const auto* spec = std::get_if<LoadSpec>(&order.task.stage.work);
  if (spec == nullptr) return InvalidTarget(order);
  load::LoadJob job = MakeJob(order, *spec, input, progress);
  if (WritesOverItsSource(order, *spec, input))
    return load::ToResult(job, load::Failure("invalid_target", "the path is a file that this pipeline extracts", false));
  auto sql = OfferInput(connection, input, order.lake);
  if (!sql) return load::ToResult(job, load::Failure("source_unreadable", std::move(sql.error().message), false));
  job.dataset_sql = std::move(*sql);
  return Finished(job, connection);
}

StageResult RaiseFence(const StageOrder& order, duck::Connection& connection) {
  const auto* spec = std::get_if<LoadSpec>(&order.task.stage.work);
  if (spec == nullptr) return InvalidTarget(order);
  load::LoadJob job = MakeJob(order, *spec, Manifest{}, {});
  return Finished(job, connection);
}

}  // namespace millrace
