#include "client/cli/bench_load_by_hand.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <array>
#include <cstdio>
#include <string_view>
#include <vector>

#include "client/bench/processes.h"
#include "client/cli/bench_common.h"

namespace millrace::cli {
namespace {

constexpr int kNoProgram = 127;
constexpr std::array<std::string_view, 10> kColumns{"order_id",   "customer_id", "created_at", "ship_date", "qty",
                                                    "unit_price", "discount",    "country",    "sku",       "status"};
constexpr std::string_view kTypes =
    "(order_id bigint, customer_id integer, created_at timestamp, ship_date date, qty smallint, unit_price numeric(10,2), "
    "discount numeric(6,4), country text, sku text, status text)";

std::vector<std::string> Commands(const HandLoad& load) {
  const auto copy = [&](const std::string& table) {
    return fmt::format("\\copy {} from '{}' (format csv, header) where order_id is not null", table, load.csv);
  };
  const std::string& table = load.table;
  const std::string fresh = table + "_new";
  if (load.mode == "append") return {fmt::format("create table {} {}", table, kTypes), copy(table)};
  if (load.mode == "replace")
    return {fmt::format("create table {} {}", fresh, kTypes), copy(fresh), "analyze " + fresh,
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

}  // namespace

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

Result<std::optional<HandCost>> LoadByHand(const HandLoad& load, const bench::Installation& at, const Clock& clock) {
  constexpr Millis kPoll{10};
  std::vector<std::string> argv{"/usr/bin/env", "psql", "-Xq", "-v", "ON_ERROR_STOP=1", load.dsn};
  for (const std::string& command : Commands(load)) {
    argv.emplace_back("-c");
    argv.push_back(command);
  }
  const double client = ChildrenCpuSeconds(), server = PostgresCpuSeconds(at);
  const MonoTime start = clock.Now();
  MILLRACE_TRY_ASSIGN(auto psql, bench::Process::Start({.argv = argv, .log = load.log, .out = "", .user = ""}));
  std::optional<int> code;
  while (!(code = psql.Wait(kPoll)))
    if (bench::Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
  const HandCost cost{.wall_s = static_cast<double>((clock.Now() - start).count()) / 1e6,
                      .client_cpu_s = ChildrenCpuSeconds() - client,
                      .server_cpu_s = PostgresCpuSeconds(at) - server};
  if (*code == kNoProgram) {
    fmt::print(stderr, "millrace: --by-hand: there is no psql: its columns stay empty, and nothing is compared\n");
    return std::nullopt;
  }
  if (*code != 0) return Fail(ErrorCode::kRejected, "the load by hand failed (exit code {}): see {}", *code, load.log);
  return cost;
}

}  // namespace millrace::cli
