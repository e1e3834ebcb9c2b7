#include "worker/stage/load/load.h"

#include <algorithm>
#include <utility>

#include "common/base/clock.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/input_sql.h"
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

// The text a driver's error may carry must never contain the connection's secret.
std::string Scrubbed(std::string text, std::string_view dsn) {
  const auto hide = [&](std::string_view secret) {
    if (secret.size() < 3) return;
    for (auto at = text.find(secret); at != std::string::npos; at = text.find(secret, at + 3))
      text.replace(at, secret.size(), "***");
  };
  hide(dsn);
  if (const auto at = dsn.find("password="); at != std::string_view::npos) {
    std::string_view rest = dsn.substr(at + 9);
    if (rest.starts_with('\''))
      rest = rest.substr(1, rest.find('\'', 1) - 1);
    else
      rest = rest.substr(0, rest.find_first_of(" &"));
    hide(rest);
  }
  if (const auto scheme = dsn.find("://"); scheme != std::string_view::npos) {
    const std::string_view authority = dsn.substr(scheme + 3, dsn.find('/', scheme + 3) - scheme - 3);
    const auto at = authority.rfind('@');
    const auto colon = authority.find(':');
    if (at != std::string_view::npos && colon < at) hide(authority.substr(colon + 1, at - colon - 1));
  }
  return text;
}

Outcome<Loaded> Dispatch(LoadJob& job, duck::Connection& source) {
  if (job.order.token.value() == 0 || job.order.token.value() > INT64_MAX)
    return Refuse("invalid_target", fmt::format("token {} is not in [1, 2^63)", job.order.token.value()));
  if (!job.order.fence_only) {
    if (job.columns.empty()) return Refuse("schema_mismatch", "the dataset has no columns");
    if (job.spec.provenance) MILLRACE_TRY(AddProvenance(job));
  }
  if (job.spec.mode == LoadMode::kMerge && job.spec.key.empty()) return Refuse("invalid_target", "mode merge needs a key");
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

Outcome<void> CheckBatch(LoadJob& job, duck::Connection& source) {
  auto sources = SourceWatch::Start({*job.input});
  if (!sources) return Refuse("source_changed", std::move(sources.error().message));
  job.sources = std::move(*sources);
  if (auto same = VerifySources(*job.input); !same) return Refuse("source_changed", std::move(same.error().message));
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

Outcome<void> BeforeCommit(const LoadJob& job, const Receipt& receipt) {
  const RowCounts& rows = receipt.rows;
  if (!rows.Balanced())
    return Refuse("internal_error",
                  fmt::format("rows do not add up: read {}, loaded {}, deduplicated {}; nothing was committed", rows.read,
                              rows.loaded, rows.deduplicated));
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
  MILLRACE_TRY_ASSIGN(const duck::Table nulls, ask(fmt::format("select count(*) from ({}) where {} is null", cast_sql,
                                                               KeyList(job, " is null or ", ""))));
  if (nulls.Int() != 0)
    return Refuse("null_key", fmt::format("{} rows have a null in the key ({})", nulls.Int(), fmt::join(job.spec.key, ", ")));
  BatchKeys out{job.rows, 0, cast_sql};
  MILLRACE_TRY_ASSIGN(const duck::Table distinct,
                      ask(fmt::format("select count(*) from (select distinct {} from ({}))", keys, cast_sql)));
  if (distinct.Int() == job.rows) return out;
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
  out.deduplicated = job.rows - out.rows;
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

StageResult Finished(load::LoadJob& job, duck::Connection& connection) {
  const auto loaded = load::Dispatch(job, connection);
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
          order.fence_only ? nullptr : &input,
          {}};
}

}  // namespace

StageResult RunLoad(const StageOrder& order, const Manifest& input, duck::Connection& connection, const ProgressFn& progress) {
  const auto* spec = std::get_if<LoadSpec>(&order.task.stage.work);
  if (spec == nullptr) return InvalidTarget(order);
  load::LoadJob job = MakeJob(order, *spec, input, progress);
  auto sql = InputSql(input, order.lake);
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
