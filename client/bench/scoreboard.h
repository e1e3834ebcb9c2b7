// What the handler processes of a benchmark saw, in a file that they and the client map: one byte per job, and per process
// counters and histograms. The client never learns of executions in any other way, so that what the queue claims and what
// handlers did are two accounts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "client/bench/histogram.h"
#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::bench {

// Written by one handler process.
struct HandlerScore {
  std::uint64_t executed = 0;                                    // handler calls, repetitions too
  std::uint64_t recorded = 0;                                    // reports that the broker answered: the outcome is durable
  std::uint64_t corrupted = 0;                                   // payloads that were not what the client sent
  std::uint64_t ready = 0;                                       // 1: the broker knows this worker
  std::int64_t first_us = 0, last_us = 0, last_recorded_us = 0;  // monotonic clock
  Histogram pickup;                                              // intended send time to the call of the handler
  Histogram outcome;  // intended send time to the broker's answer that the outcome is durable
};

// Copyable view of the mapping, which lives until the process ends.
class Scoreboard {
 public:
  // Creates the file (or opens it, when it has this shape already). kUnavailable with the path and the reason.
  static Result<Scoreboard> Open(const std::string& path, std::uint64_t jobs, std::uint32_t handlers);

  // Marks one execution of job `number`; ignored when it is not below jobs().
  void Mark(std::uint64_t number);
  std::uint8_t Executions(std::uint64_t number) const { return marks_[number]; }

  HandlerScore& handler(std::uint32_t index) const { return scores_[index]; }
  std::uint32_t handlers() const { return handlers_; }
  std::uint64_t jobs() const { return jobs_; }

  // Sums over the handlers; atomic reads, each at most a few updates old.
  std::uint64_t Executed() const;
  std::uint64_t Recorded() const;

 private:
  Scoreboard() = default;
  std::uint8_t* marks_ = nullptr;
  HandlerScore* scores_ = nullptr;
  std::uint64_t jobs_ = 0;
  std::uint32_t handlers_ = 0;
};

// A counter that one process writes and others read.
void Bump(std::uint64_t& word, std::uint64_t by = 1);
std::uint64_t Peek(const std::uint64_t& word);

}  // namespace millrace::bench
