// What `millrace bench` can be told, parsed (main.cc) but not yet checked (bench_common.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace millrace::cli {

struct BenchFlags {
  // Against what.
  bool own = false;                      // start an installation, whatever the configuration names
  bool keep = false;                     // leave its folder behind
  std::string storage = "servers";       // own: servers (Redis, PostgreSQL) or sqlite
  std::string appendfsync = "everysec";  // own: Redis' AOF policy

  // Which work. Unset: the command's default.
  std::optional<std::uint64_t> jobs, warmup;
  std::optional<double> rate;  // per second; queue: 0 = closed loop
  std::uint64_t payload = 100;
  std::optional<std::string> durability;
  std::uint32_t workers = 1, batch = 500, outstanding = 32;
  std::optional<std::uint32_t> concurrency, prefetch;
  bool drain = false;
  std::string sleep = "0ms";
  std::uint32_t orgs = 1, limit_keys = 0, priorities = 1;
  std::string worker_counts, depths;             // scale: "1,2,4,8"; "1000,100000"
  std::uint32_t stages = 40, runs = 0;           // chain
  std::uint32_t stage_rows = 1000;               // chain, of sql
  std::string handlers = "inprocess";            // chain: inprocess, processes or sql
  std::uint32_t schedules = 100, seconds = 10;   // cron, scale
  std::uint64_t rows = 1'000'000;                // load
  std::string to = "postgres", mode = "append";  // load
  bool by_hand = false, unlogged = false;
  std::string prototype;

  // Of the processes that bench starts for itself (hidden commands).
  std::string endpoint, kind, board;
  std::uint32_t handler_count = 1, index = 0, sleep_ms = 0;
};

}  // namespace millrace::cli
