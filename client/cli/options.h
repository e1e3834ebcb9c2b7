// Everything the command line can say, parsed (main.cc) but not yet interpreted. Each command reads what concerns it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/cli/output.h"
#include "client/cli/progress.h"

namespace millrace::cli {

struct Options {
  // Global.
  std::string config_file;            // --config
  std::string home;                   // --home
  std::vector<std::string> settings;  // --set key=value
  std::string output = "table";       // -o
  std::string log_level;              // --log-level
  bool no_progress = false;
  bool quiet = false;

  // Arguments of commands.
  std::string file;                 // FILE of run, check, plan, up, pipeline apply; FILE or NAME of schedule next
  std::vector<std::string> params;  // -p name=value
  std::string id;                   // run show, run logs
  std::string pipeline;             // names
  std::string state;
  std::string stage;
  std::vector<std::string> ids;                         // job requeue, job discard
  std::string queue, kind, error_class, since, before;  // job list, requeue, discard
  bool open = false;                                    // job list
  std::string to_queue, payload_file, reason;           // job requeue, discard; run retry
  int priority = -1, max_attempts = 0;                  // job requeue
  bool dry_run = false;                                 // job requeue, discard
  std::string connection, sql;                          // query
  std::string cron, timezone, dst = "once", from;       // schedule next, pipeline apply
  std::string base_dir;                                 // pipeline apply
  std::string checkpoints;                              // audit verify
  std::string public_key;                               // audit verify
  std::string name;                                     // worker, broker, scheduler --name
  int concurrency = 0;                                  // worker
  std::uint32_t count = 0;                              // -n
  bool wait = false;                                    // run start
  bool origin = false;                                  // config show
};

}  // namespace millrace::cli
