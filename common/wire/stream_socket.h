// The system calls behind the transport's connections: TCP and UNIX stream sockets that never block.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "common/base/fd.h"
#include "common/base/result.h"
#include "common/wire/endpoint.h"

namespace millrace::wire {

struct Listener {
  Fd fd;
  std::string endpoint;  // as bound
  std::string path;      // of a UNIX socket in the file system: to be removed at the end
};

// `at` is tcp or ipc. kConflict: somebody listens there, or the path is a file of another sort. The socket of a process that
// is gone is replaced.
Result<Listener> Listen(const Endpoint& at);

// A port of 127.0.0.1 for a server that is about to start, or to start again. While this lives the kernel gives the port to
// nobody who asks for any port, neither to listen on nor to connect from; a server that names it and sets SO_REUSEADDR (ours,
// Redis, PostgreSQL) can listen there. kUnavailable: no port is free.
struct HeldPort {
  Fd fd;
  std::uint16_t number = 0;
};
Result<HeldPort> HoldPort();

struct Accepted {
  Fd fd;
  int error = 0;  // errno, when fd is empty; EAGAIN: nobody waits
};
Accepted Accept(int listener);

struct Dialled {
  Fd fd;                 // empty: refused at once
  bool pending = false;  // wait until it can be written, then ask DialError
};
Dialled Dial(const Endpoint& to);
// 0, or the errno of a connection that was pending. ECONNREFUSED also when the kernel connected the socket with itself, as it
// may on this host while nobody listens on a port of the ephemeral range.
int DialError(int fd);

std::optional<std::pair<Fd, Fd>> SocketPair();

std::string PeerName(int fd);  // of a connection, for the log: an address and port, or a process

}  // namespace millrace::wire
