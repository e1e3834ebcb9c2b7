// Moves frames between processes. Implementations: ZeroMQ's protocol spoken by ourselves (zmtp_transport.h), and for tests
// libzmq (tests/support/zmq_transport.h) and an in-memory fake (tests/support/memory_transport.h). A Transport belongs to one
// thread, which alone calls it; Wake is the exception. It need not have any other thread: connections and heartbeats may make
// progress only inside its calls, so its thread comes back to Wait within a second or two.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::wire {

using PeerId = std::string;  // opaque routing id of a ROUTER's peer; empty on a DEALER

struct Received {
  PeerId peer;
  std::string frame;
};

// One ROUTER socket: many peers.
class ServerSocket {
 public:
  virtual ~ServerSocket() = default;
  // kUnavailable: no such peer (any more). kLimit: its high-water mark is reached; try again later.
  virtual Result<void> Send(const PeerId& peer, std::string frame) = 0;
  virtual std::optional<Received> Receive() = 0;  // without waiting
  virtual std::string Endpoint() const = 0;       // as bound; a port of 0 is resolved
};

// One DEALER socket: one peer, reconnects by itself.
class ClientSocket {
 public:
  virtual ~ClientSocket() = default;
  virtual Result<void> Send(std::string frame) = 0;
  virtual std::optional<std::string> Receive() = 0;
};

// The sockets of one thread, and the place where it waits.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual Result<std::unique_ptr<ServerSocket>> Bind(
      const std::string& endpoint) = 0;  // tcp://127.0.0.1:0, ipc://..., inproc://...
  virtual Result<std::unique_ptr<ClientSocket>> Connect(const std::string& endpoint) = 0;
  // Waits until a socket of this transport can be read, another thread called Wake, `extra_fd` (if >= 0) is readable, or the
  // timeout passes. May end earlier, as when a client socket gets or loses its connection. Flushes before it sleeps.
  virtual void Wait(Micros timeout, int extra_fd = -1) = 0;
  // Sends what Send has taken, without waiting: for a thread that will do something else before its next Wait.
  virtual void Flush() = 0;
  virtual void Wake() = 0;  // from any thread, and from a signal handler
};

}  // namespace millrace::wire
