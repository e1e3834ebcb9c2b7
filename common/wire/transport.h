// Moves frames between processes. Two implementations: ZeroMQ (zmq_transport.h) and an in-memory fake for tests and
// simulation (tests/support/memory_transport.h). A Transport belongs to one thread, which alone calls it; Wake is the
// exception.
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
  // timeout passes.
  virtual void Wait(Millis timeout, int extra_fd = -1) = 0;
  virtual void Wake() = 0;  // from any thread
};

}  // namespace millrace::wire
