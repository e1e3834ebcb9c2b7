// Tells that rows came into the ledger's enqueue table, so that nobody has to look often. A hint: a notification may be lost
// with its connection, so whoever waits here also looks by himself from time to time.
#pragma once

#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace {

// One user, one thread.
class EnqueueWatch {
 public:
  virtual ~EnqueueWatch() = default;
  // True: rows were committed since the last call. False: none in that time. An error: open another one.
  virtual Result<bool> Wait(Millis timeout) = 0;
};

// On a connection of its own (LISTEN millrace_enqueue). `clock` must outlive it.
Result<std::unique_ptr<EnqueueWatch>> OpenPostgresEnqueueWatch(const std::string& dsn, const Clock& clock, MonoTime deadline);

}  // namespace millrace
