// bench load: a CSV file, cleaned by SQL, into PostgreSQL, SQLite or Parquet, by the pipeline that a user would write.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "client/bench/handler_fleet.h"
#include "client/bench/sample_csv.h"
#include "client/cli/bench_common.h"
#include "client/cli/commands.h"
#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr Millis kRunTimeout{3'600'000};
constexpr Millis kQueryTimeout{300'000};
constexpr std::uint64_t kRowsMax = 1'000'000'000;

struct LoadPlan {
  std::string to, mode, table, dsn;  // dsn: of PostgreSQL
  std::string folder, csv;
  std::string home() const { return folder + "/load-home"; }
};

struct LoadResult {
  double wall_s = 0, client_cpu_s = 0, server_cpu_s = 0, peak_rss_mb = 0;
  std::map<std::string, double> stage_ms;
  std::int64_t loaded = 0, key_sum = 0;
};

std::string PipelineYaml(const LoadPlan& plan) {
  const std::string target = plan.to == "parquet" ? "to: file, path: \"" + plan.folder + "/out.parquet\", mode: replace"
                                                  : fmt::format("to: warehouse, table: {}, mode: {}", plan.table, plan.mode);
  std::string columns;
  for (const auto& [name, type] :
       std::initializer_list<std::pair<const char*, const char*>>{{"order_id", "bigint"},
                                                                  {"customer_id", "integer"},
                                                                  {"created_at", "timestamp"},
                                                                  {"ship_date", "date"},
                                                                  {"qty", "smallint"},
                                                                  {"unit_price", "\"decimal(10,2)\""},
                                                                  {"discount", "\"decimal(6,4)\""},
                                                                  {"country", "text"},
                                                                  {"sku", "text"},
                                                                  {"status", "text"}})
    columns += fmt::format("{}{}: {}", columns.empty() ? "" : ", ", name, type);
  return fmt::format(
      "version: 1\npipeline: bench_load\nstages:\n"
      "  orders:\n    extract: {{ from: file, path: \"{}\", columns: {{ {} }} }}\n"
      "  clean:\n    transform: |\n      select * replace (upper(country) as country) from orders where order_id is not null\n"
      "  result:\n    load: {{ from: clean, {} }}\n",
      plan.csv, columns, target);
}

// With secrets in it: for this user alone.
Result<void> WritePrivate(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const bool wrote = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (fd >= 0) ::close(fd);
  if (!wrote) return Fail(ErrorCode::kUnavailable, "cannot write {}", path);
  return {};
}

Result<void> WriteFiles(const LoadPlan& plan) {
  MILLRACE_TRY(WritePrivate(plan.folder + "/load.yaml", PipelineYaml(plan)));
  std::string config = fmt::format("version: 1\nhome: {}\nlog: {{ level: warn }}\n", plan.home());
  if (plan.to == "postgres")
    config += fmt::format("connections:\n  warehouse: {{ type: postgres, dsn: {} }}\n", Json(plan.dsn).dump());
  return WritePrivate(plan.folder + "/load-config.yaml", config);
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

double ChildrenCpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double PostgresCpuSeconds(const bench::Installation& at) {
  for (const auto& [name, pid] : at.processes)
    if (name == "postgres")
      if (const auto usage = bench::UsageOf(pid)) return usage->cpu_s;
  return 0;
}

// What the target holds now: rows, and the sum of their keys.
Result<void> ReadTarget(const LoadPlan& plan, const Clock& clock, LoadResult& result) {
  if (plan.to == "parquet") return {};  // the run's own count stands: the file's writer is the only reader here
  const std::string sql = "select count(*), cast(coalesce(sum(order_id), 0) as bigint) from ";
  if (plan.to == "sqlite") {
    MILLRACE_TRY_ASSIGN(auto db, sqlite::Database::Open(plan.home() + "/warehouse.db", {.access = sqlite::Access::kReadOnly}));
    MILLRACE_TRY_ASSIGN(auto statement, db.Prepare(sql + plan.table));
    MILLRACE_TRY_ASSIGN(const bool row, statement.Step());
    result.loaded = row ? statement.Int64(0) : 0;
    result.key_sum = row ? statement.Int64(1) : 0;
    return {};
  }
  PgOptions options;
  options.dsn = plan.dsn;
  options.statement_timeout = kQueryTimeout;
  MILLRACE_TRY_ASSIGN(const auto pg, PgConnection::Connect(options, clock, clock.Now() + Millis{10'000}));
  MILLRACE_TRY_ASSIGN(const auto rows, pg->QueryOnce(sql + plan.table, {}, clock.Now() + kQueryTimeout));
  result.loaded = rows.Int(0, 0);
  result.key_sum = rows.Int(0, 1);
  return {};
}

Result<void> DropTarget(const LoadPlan& plan, const Clock& clock) {
  if (plan.to != "postgres") return {};
  PgOptions options;
  options.dsn = plan.dsn;
  MILLRACE_TRY_ASSIGN(const auto pg, PgConnection::Connect(options, clock, clock.Now() + Millis{10'000}));
  return pg->Exec("drop table if exists " + plan.table, clock.Now() + kQueryTimeout);
}

Result<LoadResult> LoadOnce(const LoadPlan& plan, const bench::Installation& at, const Clock& clock) {
  const std::string out = plan.folder + "/load.json", log = plan.folder + "/load.log";
  std::filesystem::remove(out);
  const double cpu = ChildrenCpuSeconds(), server = PostgresCpuSeconds(at);
  const MonoTime start = clock.Now();
  MILLRACE_TRY_ASSIGN(auto run,
                      bench::Process::Start({.argv = {bench::OwnProgram(), "--config", plan.folder + "/load-config.yaml", "run",
                                                      plan.folder + "/load.yaml", "-o", "json"},
                                             .log = log,
                                             .out = out,
                                             .user = ""}));
  std::optional<int> code;
  while (!(code = run.Wait(Millis{100}))) {
    if (bench::Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
    if (clock.Now() - start > kRunTimeout) return Fail(ErrorCode::kTimedOut, "the load does not end");
  }
  LoadResult result;
  result.wall_s = static_cast<double>((clock.Now() - start).count()) / 1e6;
  if (*code != 0) return Fail(ErrorCode::kRejected, "the load failed (exit code {}): see {}", *code, log);
  result.client_cpu_s = ChildrenCpuSeconds() - cpu;
  result.server_cpu_s = PostgresCpuSeconds(at) - server;
  rusage usage{};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  result.peak_rss_mb = static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
  const Json report = Json::parse(ReadText(out), nullptr, false);
  if (report.is_discarded() || !report.contains("stages"))
    return Fail(ErrorCode::kCorrupt, "the run's report is not JSON: see {}", out);
  for (const Json& stage : report["stages"]) {
    const auto started = ParseRfc3339(stage.value("started_at", "")), finished = ParseRfc3339(stage.value("finished_at", ""));
    if (started && finished)
      result.stage_ms[stage.value("stage", "")] = static_cast<double>((*finished - *started).count()) / 1000;
    if (stage.value("stage", "") == "result") result.loaded = stage["rows"].value("loaded", std::int64_t{0});
  }
  MILLRACE_TRY(ReadTarget(plan, clock, result));
  return result;
}

double Round(double value) { return std::round(value * 1000) / 1000; }

Result<LoadPlan> CheckedPlan(const BenchFlags& flags) {
  LoadPlan plan;
  plan.to = flags.to;
  plan.mode = flags.mode;
  if (plan.to != "postgres" && plan.to != "sqlite" && plan.to != "parquet")
    return Fail(ErrorCode::kInvalidArgument, "--to '{}': expected postgres, sqlite or parquet", plan.to);
  if (plan.mode != "append" && plan.mode != "replace")
    return Fail(ErrorCode::kInvalidArgument, "--mode '{}': expected append or replace", plan.mode);
  if (plan.to == "parquet") plan.mode = "replace";  // a file can only be replaced
  MILLRACE_TRY(BenchRange("--rows", flags.rows, 1, kRowsMax));
  MILLRACE_TRY(BenchRange("--runs", flags.runs, 0, 1000));
  return plan;
}

Result<BenchReport> MeasureLoads(LoadPlan plan, const BenchFlags& flags, const BenchTarget& target, const Clock& clock) {
  plan.folder = target.folder();
  plan.csv = plan.folder + "/orders.csv";
  MILLRACE_TRY_ASSIGN(const auto file, bench::WriteSampleCsv(plan.csv, flags.rows));
  BenchReport report{.name = "load", .results_json = {}, .tables = {}, .sound = true};
  Table table{.columns = {"to", "mode", "rows", "loaded", "wall_s", "rows_per_s", "extract_ms", "transform_ms", "load_ms",
                          "client_cpu_s", "server_cpu_s", "peak_rss_mb", "lost", "duplicated"},
              .rows = {}};
  std::vector<std::string> items;
  const std::string word = bench::UniqueName();
  for (std::uint32_t i = 0; i < std::max(1u, flags.runs); ++i) {
    plan.table = plan.mode == "replace" ? word : fmt::format("{}_{}", word, i + 1);
    MILLRACE_TRY(WriteFiles(plan));
    auto measured = LoadOnce(plan, target.at(), clock);
    if (plan.mode == "append" || i + 1 >= flags.runs || !measured) (void)DropTarget(plan, clock);
    MILLRACE_TRY_ASSIGN(const LoadResult r, std::move(measured));
    const auto kept = static_cast<std::int64_t>(file.kept);
    const std::int64_t lost = std::max<std::int64_t>(0, kept - r.loaded), doubled = std::max<std::int64_t>(0, r.loaded - kept);
    const bool keys = plan.to == "parquet" || r.key_sum == static_cast<std::int64_t>(file.key_sum);
    report.sound = report.sound && lost == 0 && doubled == 0 && keys;
    const double rate = static_cast<double>(file.rows) / r.wall_s;
    const auto stage = [&](const char* name) { return r.stage_ms.contains(name) ? Cell(Round(r.stage_ms.at(name))) : Cell(); };
    table.rows.push_back({plan.to, plan.mode, static_cast<std::int64_t>(file.rows), r.loaded, Round(r.wall_s),
                          static_cast<std::int64_t>(rate), stage("orders"), stage("clean"), stage("result"),
                          Round(r.client_cpu_s), Round(r.server_cpu_s), Round(r.peak_rss_mb), lost, doubled});
    items.push_back(Json{
        {"to", plan.to},
        {"mode", plan.mode},
        {"rows", file.rows},
        {"file_bytes", file.bytes},
        {"loaded", r.loaded},
        {"expected", kept},
        {"keys_agree", keys},
        {"wall_s", Round(r.wall_s)},
        {"rows_per_s", std::llround(rate)},
        {"stage_ms", r.stage_ms},
        {"client_cpu_s", Round(r.client_cpu_s)},
        {"server_cpu_s", Round(r.server_cpu_s)},
        {"peak_rss_mb", Round(r.peak_rss_mb)},
        {"lost", lost},
        {"duplicated",
         doubled}}.dump());
  }
  report.results_json = JsonArray(items);
  report.tables = {std::move(table)};
  return report;
}

Result<ExitCode> DoLoad(Options options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  MILLRACE_TRY_ASSIGN(LoadPlan plan, CheckedPlan(options.bench));
  const bool running = !context->embedded() && !options.bench.own;
  if (plan.to != "postgres" && !running) options.bench.storage = "sqlite";  // no server is needed
  if (plan.to == "postgres" && options.bench.storage == "sqlite")
    return Fail(ErrorCode::kInvalidArgument, "--storage sqlite: --to postgres needs a server; use servers");
  if (plan.to == "postgres" && running)
    for (const auto& connection : context->Connections())
      if (connection.name == "warehouse" && connection.type == "postgres") plan.dsn = connection.dsn;
  if (plan.to == "postgres" && running && plan.dsn.empty())
    return Fail(ErrorCode::kInvalidArgument, "connections.warehouse is no PostgreSQL: set it, or give --own or --to sqlite");
  return RunBench(options, *context, {}, [&](BenchTarget& target) -> Result<BenchReport> {
    if (target.own() && plan.to == "postgres") {
      plan.dsn = target.at().ledger;
      plan.dsn.replace(plan.dsn.rfind("dbname="), std::string::npos, "dbname=warehouse");
    }
    return MeasureLoads(plan, options.bench, target, context->clock());
  });
}

}  // namespace

ExitCode BenchLoad(const Options& options) { return Finish(DoLoad(options)); }

}  // namespace millrace::cli
