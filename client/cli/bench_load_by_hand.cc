#include "client/cli/bench_load_by_hand.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <vector>

#include "client/bench/processes.h"
#include "client/cli/bench_common.h"
#include "common/base/tell.h"

namespace millrace::cli {
namespace {

constexpr int kNoProgram = 127;
constexpr std::array<std::string_view, 10> kColumns{"order_id",   "customer_id", "created_at", "ship_date", "qty",
                                                    "unit_price", "discount",    "country",    "sku",       "status"};
constexpr std::string_view kTypes =
    "(order_id bigint, customer_id integer, created_at timestamp, ship_date date, qty smallint, unit_price numeric(10,2), "
    "discount numeric(6,4), country text, sku text, status text)";

constexpr Millis kPoll{10};

std::vector<std::string> Commands(const HandLoad& load) {
  const auto copy = [&](const std::string& table) {
    return fmt::format("\\copy {} from '{}' (format csv, header) where order_id is not null", table, load.csv);
  };
  const std::string& table = load.table;
  const std::string fresh = table + "_new";
  if (load.mode == "append") return {CreateTable(load, table), copy(table)};
  if (load.mode == "replace")
    return {CreateTable(load, fresh), copy(fresh), "analyze " + fresh,
            fmt::format("begin; drop table if exists {0}; alter table {1} rename to {0}; commit", table, fresh)};
  std::string select, set;
  for (const std::string_view name : kColumns) {
    select += fmt::format("{}{}", select.empty() ? "" : ", ", name == "country" ? "upper(country)" : name);
    if (name != "order_id") set += fmt::format("{}{} = excluded.{}", set.empty() ? "" : ", ", name, name);
  }
  return {fmt::format("create unlogged table {} {}", fresh, kTypes), copy(fresh), "analyze " + fresh,
          fmt::format("insert into {} select {} from {} on conflict (order_id) do update set {}", table, select, fresh, set),
          "drop table " + fresh};
}

Result<int> Wait(const bench::ProcessOptions& options) {
  MILLRACE_TRY_ASSIGN(auto process, bench::Process::Start(options));
  std::optional<int> code;
  while (!(code = process.Wait(kPoll)))
    if (bench::Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
  return *code;
}

// nullopt: there is no psql.
Result<std::optional<double>> Psql(const HandLoad& load, const std::vector<std::string>& commands, const Clock& clock) {
  std::vector<std::string> argv{"/usr/bin/env", "psql", "-Xq", "-v", "ON_ERROR_STOP=1", load.dsn};
  for (const std::string& command : commands) {
    argv.emplace_back("-c");
    argv.push_back(command);
  }
  const MonoTime start = clock.Now();
  MILLRACE_TRY_ASSIGN(const int code, Wait({.argv = argv, .log = load.log, .out = "", .user = ""}));
  const double wall_s = static_cast<double>((clock.Now() - start).count()) / 1e6;
  if (code == kNoProgram) return std::nullopt;
  if (code != 0) return Fail(ErrorCode::kRejected, "the load by hand failed (exit code {}): see {}", code, load.log);
  return wall_s;
}

Result<double> RawCopy(const HandLoad& load, const Clock& clock) {
  const std::string raw = load.table + "_raw", ready = load.csv + ".bin";
  const std::vector<std::string> prepare{fmt::format("\\copy {} to '{}' (format binary)", load.table, ready),
                                         CreateTable(load, raw), "checkpoint"};
  MILLRACE_TRY(Psql(load, prepare, clock));
  const auto wall_s = Psql(load, {fmt::format("\\copy {} from '{}' (format binary)", raw, ready)}, clock);
  std::error_code ec;
  std::filesystem::remove(ready, ec);
  MILLRACE_TRY(Psql(load, {"drop table " + raw}, clock));
  if (!wall_s) return std::unexpected(wall_s.error());
  return wall_s->value_or(0);
}

}  // namespace

std::string PrototypeTable(const HandLoad& load) { return load.table + "_plain"; }

Result<double> RunPrototype(const HandLoad& load, const Clock& clock) {
  const MonoTime start = clock.Now();
  MILLRACE_TRY_ASSIGN(
      const int code,
      Wait({.argv = {load.prototype, load.csv, load.dsn, PrototypeTable(load)}, .log = load.log, .out = "", .user = ""}));
  if (code != 0) return Fail(ErrorCode::kRejected, "{} failed (exit code {}): see {}", load.prototype, code, load.log);
  return static_cast<double>((clock.Now() - start).count()) / 1e6;
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

std::string CreateTable(const HandLoad& load, const std::string& table) {
  return fmt::format("create {}table {} {}", load.unlogged ? "unlogged " : "", table, kTypes);
}

Result<std::optional<HandCost>> LoadByHand(const HandLoad& load, const bench::Installation& at, const Clock& clock) {
  const double client = ChildrenCpuSeconds(), server = PostgresCpuSeconds(at);
  MILLRACE_TRY_ASSIGN(const auto wall_s, Psql(load, Commands(load), clock));
  if (!wall_s) {
    Tell("millrace: --by-hand: there is no psql: its columns stay empty, and nothing is compared\n");
    return std::nullopt;
  }
  HandCost cost{
      .wall_s = *wall_s, .client_cpu_s = ChildrenCpuSeconds() - client, .server_cpu_s = PostgresCpuSeconds(at) - server};
  if (load.mode == "append") {
    MILLRACE_TRY_ASSIGN(cost.raw_copy_s, RawCopy(load, clock));
  }
  return cost;
}

}  // namespace millrace::cli
