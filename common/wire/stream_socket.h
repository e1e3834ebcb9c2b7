// The system calls behind the transport's connections: TCP and UNIX stream sockets that never block.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "common/base/result.h"
#include "common/wire/endpoint.h"

namespace millrace::wire {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { Reset(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Reset();

 private:
  int fd_ = -1;
};

struct Listener {
  Fd fd;
  std::string endpoint;  // as bound
  std::string path;      // of a UNIX socket in the file system: to be removed at the end
};

// `at` is tcp or ipc. kConflict: somebody listens there, or the path is a file of another sort. The socket of a process that
// is gone is replaced.
Result<Listener> Listen(const Endpoint& at);

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
