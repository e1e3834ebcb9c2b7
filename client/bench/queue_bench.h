// One measurement of the queue: handler processes, a client, and whatever the installation consists of, with everything that
// must stand beside a figure: losses, repetitions, latencies, costs, durability.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/bench/cost_meter.h"
#include "client/bench/installation.h"
#include "client/bench/steady_window.h"
#include "client/bench/submitter.h"
#include "common/base/result.h"

namespace millrace::bench {

struct QueueOptions {
  SubmitOptions submit;  // endpoint, kind and queue are filled in
  std::uint32_t workers = 1;
  std::uint32_t concurrency = 1;        // jobs that one worker holds (with sleep: runs)
  std::uint32_t prefetch = 0;           // with sleep: jobs that it holds beside them
  Millis sleep{0};                      // of each job
  bool drain = false;                   // accept everything first, then start the workers; otherwise both at once
  std::optional<SteadyOptions> steady;  // instead of submit.jobs, which it fills in: rates and costs of a steady window
  std::string folder;                   // for the scoreboard and the workers' logs
};

struct Latency {
  std::uint64_t count = 0, p50_us = 0, p99_us = 0, p999_us = 0, max_us = 0;
};

struct QueueResult {
  std::string durability, form;
  std::uint64_t jobs = 0;           // that rates are about: warm-up included in counts, not in latency; steady: of the window
  double enqueued_per_s = 0;        // first send to last "accepted"
  double executed_per_s = 0;        // first send (drain: first handler call) to last handler call; steady: of the window
  double recorded_per_s = 0;        // the same begin to the last durable outcome
  Latency accept, pickup, outcome;  // from the send, as SubmitOptions counts it
  std::uint64_t accepted = 0, executed = 0, outcomes = 0;
  std::uint64_t lost = 0;         // accepted, and never executed or without a succeeded outcome in the ledger
  std::uint64_t duplicated = 0;   // executed more than once
  std::uint64_t redelivered = 0;  // outcomes that took more than one delivery: a lost grant, a silent worker
  std::uint64_t corrupted = 0;    // arrived with another payload
  Costs costs;
  std::optional<double> queue_bytes_per_waiting_job, ledger_bytes_per_waiting_job;  // drain and steady
  std::optional<SteadyResult> steady;

  bool Sound() const { return lost == 0 && duplicated == 0 && corrupted == 0; }
};

// kTimedOut: nothing moves any more (what is missing then is lost, and said in the message), or a steady window never ended;
// kCancelled: Interrupted(). Steady: the queue is filled to the depth, then the handlers start; at the end all of it is
// drained.
Result<QueueResult> MeasureQueue(const Installation& at, const QueueOptions& options);

// The quantiles that are shown.
Latency Summary(const Histogram& histogram);

}  // namespace millrace::bench
