// The handler processes of one measurement.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "client/bench/installation.h"
#include "client/bench/processes.h"
#include "client/bench/scoreboard.h"
#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::bench {

struct FleetOptions {
  std::string name;               // of the measurement: its queue, and how the workers' names begin
  std::string kind;               // of the jobs; "command" for jobs of pipelines, whose payload is not looked at
  std::uint32_t concurrency = 1;  // of each process
  std::uint32_t prefetch = 0;     // of each process (HandlerOptions)
  Millis sleep{0};                // of each job
  std::string folder;             // for logs and the scoreboard
};

class HandlerFleet {
 public:
  // The scoreboard for `jobs` jobs and `workers` processes; nothing is started yet.
  static Result<HandlerFleet> Make(FleetOptions options, std::uint64_t jobs, std::uint32_t workers);
  HandlerFleet(HandlerFleet&&) = default;
  HandlerFleet& operator=(HandlerFleet&&) = delete;
  ~HandlerFleet();  // stops them

  // Starts every process and waits until the broker knows it. kUnavailable with the log's name.
  Result<void> Start(const Installation& at);
  void Stop();

  const Scoreboard& board() const { return board_; }
  const std::vector<Process>& processes() const { return processes_; }

 private:
  HandlerFleet(FleetOptions options, Scoreboard board, std::string path)
      : options_(std::move(options)), board_(board), path_(std::move(path)) {}
  FleetOptions options_;
  Scoreboard board_;
  std::string path_;
  std::vector<Process> processes_;
};

// A word that no other benchmark uses, fit to name queues, pipelines and tables.
std::string UniqueName();

}  // namespace millrace::bench
