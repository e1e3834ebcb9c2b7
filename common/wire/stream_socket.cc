#include "common/wire/stream_socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace millrace::wire {
namespace {

const sockaddr* AddressOf(const Endpoint& endpoint) { return reinterpret_cast<const sockaddr*>(endpoint.address.data()); }
socklen_t SizeOf(const Endpoint& endpoint) { return static_cast<socklen_t>(endpoint.address.size()); }

Fd NewSocket(const Endpoint& endpoint) {
  return Fd(::socket(AddressOf(endpoint)->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

void SetFlag(int fd, int level, int option) {
  const int on = 1;
  ::setsockopt(fd, level, option, &on, sizeof on);
}

bool InFileSystem(const Endpoint& endpoint) { return endpoint.kind == Endpoint::Kind::kIpc && endpoint.name.front() != '@'; }

// bind() refuses a path that exists, also when the process that made it is gone.
Result<void> ClearPath(const Endpoint& at) {
  struct stat found{};
  if (::lstat(at.name.c_str(), &found) != 0) return {};
  if (!S_ISSOCK(found.st_mode))
    return Fail(ErrorCode::kConflict, "bind 'ipc://{}': there is a file that is no socket", at.name);
  const Fd probe = NewSocket(at);
  if (probe && (::connect(probe.get(), AddressOf(at), SizeOf(at)) == 0 || errno == EAGAIN))
    return Fail(ErrorCode::kConflict, "bind 'ipc://{}': another process listens there", at.name);
  ::unlink(at.name.c_str());
  return {};
}

// "127.0.0.1:7600", "[::1]:7600".
std::string TcpName(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
    return fmt::format("[::1]:{}", ntohs(v6->sin6_port));  // no other one is accepted
  }
  const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
  char host[INET_ADDRSTRLEN] = {};
  ::inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
  return fmt::format("{}:{}", host, ntohs(v4->sin_port));
}

std::string BoundTcp(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return {};
  return "tcp://" + TcpName(bound);
}

bool ConnectedWithItself(int fd) {
  sockaddr_storage here{}, there{};
  socklen_t here_size = sizeof here, there_size = sizeof there;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&here), &here_size) != 0 || here.ss_family == AF_UNIX) return false;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &there_size) != 0) return false;
  return here_size == there_size && std::memcmp(&here, &there, here_size) == 0;
}

}  // namespace

Result<Listener> Listen(const Endpoint& at) {
  Listener listener{.fd = NewSocket(at), .endpoint = {}, .path = {}};
  if (!listener.fd) return Fail(ErrorCode::kUnavailable, "socket: {}", std::strerror(errno));
  if (InFileSystem(at)) MILLRACE_TRY(ClearPath(at));
  if (at.kind == Endpoint::Kind::kTcp) SetFlag(listener.fd.get(), SOL_SOCKET, SO_REUSEADDR);
  const bool bound = ::bind(listener.fd.get(), AddressOf(at), SizeOf(at)) == 0;
  if (!bound || ::listen(listener.fd.get(), SOMAXCONN) != 0) {
    const int error = errno;
    if (bound && InFileSystem(at)) ::unlink(at.name.c_str());
    return Fail(error == EADDRINUSE ? ErrorCode::kConflict : ErrorCode::kUnavailable, "bind: {}", std::strerror(error));
  }
  if (InFileSystem(at)) listener.path = at.name;
  listener.endpoint = at.kind == Endpoint::Kind::kTcp ? BoundTcp(listener.fd.get()) : "ipc://" + at.name;
  return listener;
}

Result<HeldPort> HoldPort() {
  HeldPort port{.fd = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))};
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  // Bound and never listened on: with the flag on both sockets that is no obstacle to the one that listens.
  if (port.fd) SetFlag(port.fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (!port.fd || ::bind(port.fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(port.fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return Fail(ErrorCode::kUnavailable, "no free port on 127.0.0.1: {}", std::strerror(errno));
  port.number = ntohs(address.sin_port);
  return port;
}

Accepted Accept(int listener) {
  Accepted accepted{.fd = Fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC))};
  if (!accepted.fd) {
    accepted.error = errno;
  } else {
    SetFlag(accepted.fd.get(), IPPROTO_TCP, TCP_NODELAY);  // a UNIX socket has none and says so
  }
  return accepted;
}

Dialled Dial(const Endpoint& to) {
  Dialled dialled{.fd = NewSocket(to)};
  if (!dialled.fd) return dialled;
  if (to.kind == Endpoint::Kind::kTcp) SetFlag(dialled.fd.get(), IPPROTO_TCP, TCP_NODELAY);
  if (::connect(dialled.fd.get(), AddressOf(to), SizeOf(to)) == 0) return dialled;
  dialled.pending = errno == EINPROGRESS || errno == EINTR;
  if (!dialled.pending) dialled.fd.Close();
  return dialled;
}

int DialError(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  if (error != 0 || !ConnectedWithItself(fd)) return error;
  const linger now{.l_onoff = 1, .l_linger = 0};  // or the port would be taken for a minute, for the server too
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  return ECONNREFUSED;
}

std::optional<std::pair<Fd, Fd>> SocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) return std::nullopt;
  return std::pair{Fd(fds[0]), Fd(fds[1])};
}

std::string PeerName(int fd) {
  sockaddr_storage there{};
  socklen_t size = sizeof there;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &size) != 0) return "a peer that went away";
  if (there.ss_family != AF_UNIX) return TcpName(there);
  ucred who{};
  socklen_t who_size = sizeof who;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_size) != 0) return "a process of this host";
  return fmt::format("process {}", who.pid);
}

}  // namespace millrace::wire
