// The worker of a benchmark: one process, one thread, which takes jobs over the wire, decodes each payload, hands it to a
// handler, and reports. It keeps the whole contract of a worker (ops/docs/wire.md): leases, credit, repeats, revokes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "client/bench/payload.h"
#include "client/bench/scoreboard.h"
#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::bench {

struct HandlerOptions {
  std::string endpoint;     // of the broker
  std::string name;         // shown in outcome rows
  std::string kind, queue;  // the only ones it takes; kind "command": payloads are a pipeline's and not looked at
  // Jobs it runs at a time; those that take no time (sleep 0) count until they are answered as durable. At most
  // kConcurrencyMax.
  std::uint32_t concurrency = 1;
  std::uint32_t prefetch = 0;  // jobs that take time: how many may wait here for a slot, so that none stands empty
  Millis sleep{0};             // how long each job takes, beside the handler itself: a timer, so no thread is held
  std::uint32_t index = 0;     // its place on the scoreboard
};

inline constexpr std::uint32_t kConcurrencyMax = 10'000;  // what one heartbeat can name (ops/docs/wire.md)

// Serves until `stop`; says goodbye. Errors of the socket end it; what the broker says wrong is logged.
Result<void> ServeHandlers(const HandlerOptions& options, Scoreboard board, const std::atomic<bool>& stop);

}  // namespace millrace::bench
