// bench load: a CSV file, cleaned by SQL, into PostgreSQL, SQLite or Parquet, by the pipeline that a user would write.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "client/bench/handler_fleet.h"
#include "client/bench/sample_csv.h"
#include "client/cli/bench_common.h"
#include "client/cli/bench_load_by_hand.h"
#include "client/cli/commands.h"
#include "common/drivers/postgres.h"
#include "common/drivers/sqlite.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr Millis kRunTimeout{3'600'000};
constexpr Millis kQueryTimeout{300'000};
constexpr Millis kPoll{10};
constexpr std::uint64_t kRowsMax = 1'000'000'000;

struct LoadPlan {
  std::string to, mode, table, dsn;  // dsn: of PostgreSQL
  std::string folder, csv;
  std::string prototype;  // a program, or empty
  bool by_hand = false, unlogged = false;
  std::int64_t expected = 0, key_sum = 0;  // of the target, when all is in it
  std::string home() const { return folder + "/load-home"; }
};

struct LoadResult {
  double wall_s = 0, client_cpu_s = 0, server_cpu_s = 0, peak_rss_mb = 0;
  std::map<std::string, double> stage_ms;
  std::int64_t loaded = 0, key_sum = 0;
  std::optional<HandCost> by_hand;
  bool same_rows = true;  // a merge: as the one by hand
};

std::string PipelineYaml(const LoadPlan& plan) {
  const std::string target = plan.to == "parquet" ? "to: file, path: \"" + plan.folder + "/out.parquet\", mode: replace"
                                                  : fmt::format("to: warehouse, table: {}, mode: {}", plan.table, plan.mode);
  const std::string key = plan.mode == "merge" ? ", key: [order_id]" : "";
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
      "  result:\n    load: {{ from: clean, {}{} }}\n",
      plan.csv, columns, target, key);
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

Result<void> Exec(const LoadPlan& plan, const Clock& clock, const std::vector<std::string>& statements) {
  PgOptions options;
  options.dsn = plan.dsn;
  options.statement_timeout = kQueryTimeout;
  MILLRACE_TRY_ASSIGN(const auto pg, PgConnection::Connect(options, clock, clock.Now() + Millis{10'000}));
  for (const std::string& statement : statements) MILLRACE_TRY(pg->Exec(statement, clock.Now() + kQueryTimeout));
  return {};
}

std::string HandTable(const LoadPlan& plan) { return plan.table + "_by_hand"; }

Result<void> DropTarget(const LoadPlan& plan, const Clock& clock) {
  if (plan.to != "postgres") return {};
  return Exec(plan, clock, {"drop table if exists " + plan.table, "drop table if exists " + HandTable(plan)});
}

// Whether both tables hold the same rows.
Result<bool> SameRows(const LoadPlan& plan, const Clock& clock) {
  PgOptions options;
  options.dsn = plan.dsn;
  options.statement_timeout = kQueryTimeout;
  MILLRACE_TRY_ASSIGN(const auto pg, PgConnection::Connect(options, clock, clock.Now() + Millis{10'000}));
  std::array<std::string, 2> sums;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string sql = fmt::format("select count(*) || ' ' || sum(hashtextextended(t::text, 0)) from {} t",
                                        i == 0 ? plan.table : HandTable(plan));
    MILLRACE_TRY_ASSIGN(const auto rows, pg->QueryOnce(sql, {}, clock.Now() + kQueryTimeout));
    sums[i] = rows.Text(0, 0);
  }
  return sums[0] == sums[1];
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
  while (!(code = run.Wait(kPoll))) {
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

// What the changes are merged into, and its twin for the load by hand. None of it is measured.
Result<void> FillTarget(LoadPlan plan, const bench::Installation& at, const Clock& clock) {
  plan.csv = plan.folder + "/orders.csv";
  const bool postgres = plan.to == "postgres";
  if (postgres) plan.mode = "append";
  MILLRACE_TRY(WriteFiles(plan));
  MILLRACE_TRY(LoadOnce(plan, at, clock));
  if (!postgres) return {};
  std::vector<std::string> statements{fmt::format("alter table {} add primary key (order_id)", plan.table)};
  if (plan.by_hand) {
    statements.push_back(fmt::format("create table {} (like {} including all)", HandTable(plan), plan.table));
    statements.push_back(fmt::format("insert into {} select * from {}", HandTable(plan), plan.table));
    statements.push_back("vacuum analyze " + HandTable(plan));
  }
  statements.push_back("vacuum analyze " + plan.table);
  statements.emplace_back("checkpoint");
  return Exec(plan, clock, statements);
}

// The prototype's seconds. What it leaves in the target must be what ours left, and is dropped.
Result<double> MeasurePrototype(const LoadPlan& plan, const HandLoad& hand, const Clock& clock) {
  MILLRACE_TRY(Exec(plan, clock, {"checkpoint"}));
  MILLRACE_TRY_ASSIGN(const double seconds, RunPrototype(hand, clock));
  LoadPlan there = plan;
  there.table = PrototypeTable(hand);
  LoadResult result;
  MILLRACE_TRY(ReadTarget(there, clock, result));
  MILLRACE_TRY(Exec(plan, clock, {"drop table " + there.table}));
  if (result.loaded != plan.expected || result.key_sum != plan.key_sum)
    return Fail(ErrorCode::kCorrupt, "{} left {} rows in its table, which are not those of the file", plan.prototype,
                result.loaded);
  return seconds;
}

Result<LoadResult> MeasureOne(const LoadPlan& plan, const bench::Installation& at, const Clock& clock) {
  const bool merge = plan.mode == "merge";
  if (merge) MILLRACE_TRY(FillTarget(plan, at, clock));
  const HandLoad hand{.mode = plan.mode,
                      .csv = plan.csv,
                      .dsn = plan.dsn,
                      .log = plan.folder + "/by-hand.log",
                      .table = HandTable(plan),
                      .unlogged = plan.unlogged,
                      .prototype = plan.prototype};
  if (plan.unlogged) MILLRACE_TRY(Exec(plan, clock, {CreateTable(hand, plan.table)}));
  MILLRACE_TRY(WriteFiles(plan));
  // Who writes to a new server first makes the files of its log, which the next one finds. So the prototype goes first once,
  // unmeasured, and everybody begins when the dirty pages of the one before are written.
  if (!plan.prototype.empty()) MILLRACE_TRY(MeasurePrototype(plan, hand, clock));
  if (plan.by_hand) MILLRACE_TRY(Exec(plan, clock, {"checkpoint"}));
  MILLRACE_TRY_ASSIGN(LoadResult result, LoadOnce(plan, at, clock));
  if (!plan.by_hand) return result;
  double prototype_s = 0;
  if (!plan.prototype.empty()) {
    MILLRACE_TRY_ASSIGN(prototype_s, MeasurePrototype(plan, hand, clock));
  }
  MILLRACE_TRY(Exec(plan, clock, {"checkpoint"}));
  MILLRACE_TRY_ASSIGN(result.by_hand, LoadByHand(hand, at, clock));
  if (result.by_hand) result.by_hand->prototype_s = prototype_s;
  if (merge && result.by_hand) {
    MILLRACE_TRY_ASSIGN(result.same_rows, SameRows(plan, clock));
  }
  return result;
}

double Round(double value) { return std::round(value * 1000) / 1000; }

Result<LoadPlan> CheckedPlan(const BenchFlags& flags) {
  LoadPlan plan;
  plan.to = flags.to;
  plan.mode = flags.mode;
  if (plan.to != "postgres" && plan.to != "sqlite" && plan.to != "parquet")
    return Fail(ErrorCode::kInvalidArgument, "--to '{}': expected postgres, sqlite or parquet", plan.to);
  if (plan.mode != "append" && plan.mode != "replace" && plan.mode != "merge")
    return Fail(ErrorCode::kInvalidArgument, "--mode '{}': expected append, replace or merge", plan.mode);
  if (plan.mode == "merge" && plan.to == "parquet")
    return Fail(ErrorCode::kInvalidArgument, "--mode merge: a file can only be replaced");
  plan.by_hand = flags.by_hand;
  plan.unlogged = flags.unlogged;
  if (plan.unlogged && (plan.to != "postgres" || plan.mode != "append"))
    return Fail(ErrorCode::kInvalidArgument, "--unlogged: for --to postgres and --mode append");
  plan.prototype = flags.prototype;
  if (!plan.prototype.empty() && (plan.to != "postgres" || plan.mode != "replace" || !plan.by_hand))
    return Fail(ErrorCode::kInvalidArgument, "--prototype: for --to postgres, --mode replace and --by-hand");
  if (plan.to == "parquet") plan.mode = "replace";                                          // a file can only be replaced
  MILLRACE_TRY(BenchRange("--rows", flags.rows, plan.mode == "merge" ? 10 : 1, kRowsMax));  // merge: a tenth is changed
  MILLRACE_TRY(BenchRange("--runs", flags.runs, 0, 1000));
  return plan;
}

Json ByHandJson(const LoadResult& r) {
  if (!r.by_hand) return nullptr;
  return {{"wall_s", Round(r.by_hand->wall_s)},
          {"client_cpu_s", Round(r.by_hand->client_cpu_s)},
          {"server_cpu_s", Round(r.by_hand->server_cpu_s)},
          {"wall_ratio", Round(r.wall_s / r.by_hand->wall_s)},
          {"raw_copy_s", r.by_hand->raw_copy_s > 0 ? Json(Round(r.by_hand->raw_copy_s)) : Json(nullptr)},
          {"prototype_s", r.by_hand->prototype_s > 0 ? Json(Round(r.by_hand->prototype_s)) : Json(nullptr)}};
}

Result<BenchReport> MeasureLoads(LoadPlan plan, const BenchFlags& flags, const BenchTarget& target, const Clock& clock) {
  const bool merge = plan.mode == "merge";
  plan.folder = target.folder();
  plan.csv = plan.folder + "/orders.csv";
  MILLRACE_TRY_ASSIGN(bench::SampleFile file, bench::WriteSampleCsv(plan.csv, flags.rows));
  std::uint64_t expected = file.kept, key_sum = file.key_sum;
  if (merge) {  // from here on the file is that of the changes
    plan.csv = plan.folder + "/changes.csv";
    MILLRACE_TRY_ASSIGN(file, bench::WriteSampleChanges(plan.csv, flags.rows));
    expected += file.kept;
    key_sum += file.key_sum;
  }
  plan.expected = static_cast<std::int64_t>(expected);
  plan.key_sum = static_cast<std::int64_t>(key_sum);
  BenchReport report{.name = "load", .results_json = {}, .tables = {}, .sound = true};
  Table table{.columns = {"to", "mode", "rows", "loaded", "wall_s", "rows_per_s", "extract_ms", "transform_ms", "load_ms",
                          "client_cpu_s", "server_cpu_s", "peak_rss_mb", "lost", "duplicated"},
              .rows = {}};
  if (plan.by_hand)
    table.columns.insert(table.columns.end(), {"by_hand_s", "by_hand_cpu_s", "wall_ratio", "raw_copy_s", "prototype_s"});
  std::vector<std::string> items;
  const std::string word = bench::UniqueName();
  for (std::uint32_t i = 0; i < std::max(1u, flags.runs); ++i) {
    plan.table = plan.mode == "replace" ? word : fmt::format("{}_{}", word, i + 1);
    auto measured = MeasureOne(plan, target.at(), clock);
    if (plan.mode != "replace" || i + 1 >= flags.runs || !measured) (void)DropTarget(plan, clock);
    MILLRACE_TRY_ASSIGN(const LoadResult r, std::move(measured));
    const std::int64_t kept = plan.expected;
    const std::int64_t lost = std::max<std::int64_t>(0, kept - r.loaded), doubled = std::max<std::int64_t>(0, r.loaded - kept);
    const bool keys = plan.to == "parquet" || r.key_sum == plan.key_sum;
    report.sound = report.sound && lost == 0 && doubled == 0 && keys && r.same_rows;
    const double rate = static_cast<double>(file.rows) / r.wall_s;
    const auto stage = [&](const char* name) { return r.stage_ms.contains(name) ? Cell(Round(r.stage_ms.at(name))) : Cell(); };
    auto& row = table.rows.emplace_back(std::vector<Cell>{plan.to, plan.mode, static_cast<std::int64_t>(file.rows), r.loaded,
                                                          Round(r.wall_s), static_cast<std::int64_t>(rate), stage("orders"),
                                                          stage("clean"), stage("result"), Round(r.client_cpu_s),
                                                          Round(r.server_cpu_s), Round(r.peak_rss_mb), lost, doubled});
    if (plan.by_hand && r.by_hand)
      row.insert(row.end(),
                 {Round(r.by_hand->wall_s), Round(r.by_hand->client_cpu_s + r.by_hand->server_cpu_s),
                  Round(r.wall_s / r.by_hand->wall_s), r.by_hand->raw_copy_s > 0 ? Cell(Round(r.by_hand->raw_copy_s)) : Cell(),
                  r.by_hand->prototype_s > 0 ? Cell(Round(r.by_hand->prototype_s)) : Cell()});
    else if (plan.by_hand)
      row.insert(row.end(), {Cell(), Cell(), Cell(), Cell(), Cell()});
    items.push_back(Json{{"to", plan.to},
                         {"mode", plan.mode},
                         {"unlogged", plan.unlogged},
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
                         {"duplicated", doubled},
                         {"by_hand", ByHandJson(r)},
                         {"same_rows_as_by_hand", r.by_hand && merge ? Json(r.same_rows) : Json(nullptr)}}
                        .dump());
  }
  report.results_json = JsonArray(items);
  report.tables = {std::move(table)};
  return report;
}

Result<ExitCode> DoLoad(Options options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "bench"));
  MILLRACE_TRY_ASSIGN(LoadPlan plan, CheckedPlan(options.bench));
  const bool running = !context->embedded() && !options.bench.own;
  if (plan.by_hand && (plan.to != "postgres" || running))  // psql gets the DSN as an argument: not one with a password
    return Fail(ErrorCode::kInvalidArgument, "--by-hand: for --to postgres and a server of its own (--own)");
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
