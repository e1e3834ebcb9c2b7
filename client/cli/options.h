// Everything the command line can say, parsed (main.cc) but not yet interpreted. Each command reads what concerns it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/bench_options.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"

namespace millrace::cli {

struct QueueFlags {  // queue set: what is given is changed
  std::optional<std::uint32_t> concurrency, key_concurrency, burst, key_burst;
  std::optional<std::uint64_t> max_waiting, max_waiting_bytes;
  std::optional<std::string> rate, key_rate, order, weights, aging, durability;
};

struct Options {
  // Global.
  std::string config_file;            // --config
  std::string home;                   // --home
  std::string org;                    // --org
  std::vector<std::string> settings;  // --set key=value
  std::string output = "table";       // -o
  std::string log_level;              // --log-level
  bool no_progress = false;
  bool quiet = false;

  // Arguments of commands.
  std::string file;                 // FILE of run, check, plan, up, pipeline apply; FILE or NAME of schedule next
  std::vector<std::string> params;  // -p name=value
  std::string id;                   // run show, run logs, ...
  std::vector<std::string> ids;     // run cancel, run retry, job cancel, requeue, discard
  std::vector<std::string> names;   // queue pause, resume; schedule pause, resume
  std::string reason;               // run cancel, run retry, job cancel, requeue, discard
  std::string pipeline;             // names
  std::string queue;                // queue show, set; job list, requeue, discard, cancel
  QueueFlags queue_flags;           // queue set
  BenchFlags bench;                 // bench ...
  std::string state;
  std::string stage;
  std::string kind, error_class, since, before;    // job list, requeue, discard, cancel
  bool open = false;                               // job list
  std::string batch, then, payload;                // job submit
  std::string run_at, timeout, job_options;        // job submit
  std::string backoff, backoff_base, backoff_cap;  // job submit
  std::string deadline, expires_in, durability;    // job submit
  std::string queues;                              // worker
  std::string to_queue, payload_file;              // job requeue
  bool show_payload = false;                       // job show
  std::optional<int> priority, max_attempts;       // job requeue, job submit
  std::string connection, sql;                     // query
  std::string cron, timezone, dst = "once", from;  // schedule next, pipeline apply
  std::string base_dir;                            // pipeline apply
  std::string checkpoints;                         // audit verify
  std::string public_key;                          // audit verify
  std::string older_than, max_bytes;               // ledger prune
  std::string name;                                // worker, broker, scheduler --name
  int concurrency = 0;                             // worker
  std::optional<std::uint32_t> count;              // -n
  bool running = false;                            // backfill cancel
  bool wait = false;                               // run start, run cancel, job submit
  bool origin = false;                             // config show
  bool transitions = false;                        // schedule next
  std::string to, schedule, reprocess = "none";    // backfill; from is its other edge
  bool newest_first = false, dry_run = false;  // backfill; job requeue, discard, cancel, run retry, run cancel, ledger prune
  std::uint32_t max_parallel = 1;              // backfill
  std::optional<std::uint32_t> generation;     // backfill; empty: the next
};

}  // namespace millrace::cli
