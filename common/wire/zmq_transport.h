// Transport over ZeroMQ. Nothing on the wire is encrypted in this version, so only endpoints of this host are accepted.
#pragma once

#include <memory>

#include "common/base/result.h"
#include "common/wire/transport.h"

namespace millrace::wire {

// The I/O threads, and the namespace of inproc:// endpoints. Share one within a process. Thread-safe.
class ZmqContext;
std::shared_ptr<ZmqContext> MakeZmqContext();

// One per thread. Its sockets may outlive it, but then only Send and Receive of them work. Endpoints: tcp:// with a loopback
// address (127.0.0.0/8, [::1], localhost), ipc://path, inproc://name.
// Bind and Connect: kUnsupported for an endpoint off this host, kInvalidArgument for a malformed one, kConflict for an
// address in use. Send: kInvalidArgument for a frame over kFrameBytesMax; on a client socket kUnavailable while there is no
// connection. A peer that sends more than kFrameBytesMax is disconnected. Messages that are not one frame are dropped.
Result<std::unique_ptr<Transport>> MakeZmqTransport(std::shared_ptr<ZmqContext> context);

// The rule above on its own, for configuration checks.
Result<void> CheckLocalEndpoint(const std::string& endpoint);

}  // namespace millrace::wire
