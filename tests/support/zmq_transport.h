// Transport over libzmq: what the product's own ZMTP (common/wire/zmtp_transport.h) is compared with and talks to.
#pragma once

#include <memory>

#include "common/base/result.h"
#include "common/wire/transport.h"

namespace millrace::testing {

// The I/O threads, and the namespace of inproc:// endpoints. Share one within a process. Thread-safe.
class ZmqContext;
std::shared_ptr<ZmqContext> MakeZmqContext();

// One per thread. Endpoints and errors are those of MakeZmtpTransport.
Result<std::unique_ptr<wire::Transport>> MakeZmqTransport(std::shared_ptr<ZmqContext> context);

}  // namespace millrace::testing
