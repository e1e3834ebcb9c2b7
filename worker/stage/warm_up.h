// Makes the engine do everything once before there is an order, so that a stage does not pay for first use: page faults,
// catalogs, readers and writers. Touches no file: data goes through memory (memfd).
#pragma once

#include <functional>

#include "common/drivers/duckdb.h"

namespace millrace {

// Best effort: what cannot be warmed is left cold. Looks at `needed` between its steps and stops once that is true. Starts no
// thread. `connection` is as before afterwards.
void WarmUp(duck::Connection& connection, const std::function<bool()>& needed);

}  // namespace millrace
