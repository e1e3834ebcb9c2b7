#include "tests/support/zmq_transport.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>
#include <zmq.hpp>

#include "common/base/limits.h"
#include "common/wire/endpoint.h"

namespace millrace::testing {

using namespace wire;

class ZmqContext {
 public:
  zmq::context_t context{1};
};

std::shared_ptr<ZmqContext> MakeZmqContext() { return std::make_shared<ZmqContext>(); }

namespace {

constexpr int kHighWaterMessages = 1000;
constexpr int kLingerMs = 500;  // a last Goodbye or EndedReply gets out; a dead peer does not hold up an exit
constexpr int kHeartbeatMs = 2000, kHeartbeatTimeoutMs = 6000;
constexpr int kHandshakeMs = 5000;
constexpr int kReconnectMs = 50, kReconnectMaxMs = 1000;
constexpr int kStrayPartsMax = 64;  // malformed messages skipped in one Receive

// What the sockets and their transport share; lives as long as any of them.
struct Shared {
  explicit Shared(std::shared_ptr<ZmqContext> c) : context(std::move(c)) {}
  ~Shared() {
    if (wake_fd >= 0) ::close(wake_fd);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  std::shared_ptr<ZmqContext> context;
  std::vector<void*> sockets;  // of the transport's thread, which alone touches them
  int wake_fd = -1;
};

Error FromZmq(const zmq::error_t& e, std::string_view what, const std::string& endpoint) {
  ErrorCode code = ErrorCode::kUnavailable;
  if (e.num() == EADDRINUSE) code = ErrorCode::kConflict;
  if (e.num() == EINVAL || e.num() == EPROTONOSUPPORT || e.num() == ENODEV || e.num() == ENOCOMPATPROTO)
    code = ErrorCode::kInvalidArgument;
  return Error{code, fmt::format("{} '{}': {}", what, endpoint, e.what())};
}

// A socket that Wait polls for as long as it lives.
class Socket {
 public:
  Socket(std::shared_ptr<Shared> shared, zmq::socket_type type)
      : shared_(std::move(shared)), socket_(shared_->context->context, type) {
    socket_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kFrameBytesMax));
    socket_.set(zmq::sockopt::sndhwm, kHighWaterMessages);
    socket_.set(zmq::sockopt::rcvhwm, kHighWaterMessages);
    socket_.set(zmq::sockopt::linger, kLingerMs);
    socket_.set(zmq::sockopt::immediate, true);
    socket_.set(zmq::sockopt::heartbeat_ivl, kHeartbeatMs);
    socket_.set(zmq::sockopt::heartbeat_timeout, kHeartbeatTimeoutMs);
    socket_.set(zmq::sockopt::heartbeat_ttl, kHeartbeatTimeoutMs);
    socket_.set(zmq::sockopt::handshake_ivl, kHandshakeMs);
    socket_.set(zmq::sockopt::reconnect_ivl, kReconnectMs);
    socket_.set(zmq::sockopt::reconnect_ivl_max, kReconnectMaxMs);
    if (type == zmq::socket_type::router) {
      socket_.set(zmq::sockopt::router_mandatory, true);
      socket_.set(zmq::sockopt::router_handover, false);
    }
    shared_->sockets.push_back(socket_.handle());
  }
  ~Socket() { std::erase(shared_->sockets, socket_.handle()); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  zmq::socket_t& get() { return socket_; }

  // The next message with exactly `parts` frames.
  bool Receive(zmq::message_t* frames, int parts) {
    for (int stray = 0; stray < kStrayPartsMax; ++stray) {
      int got = 0;
      bool more = true;
      while (more) {
        zmq::message_t part;
        if (!socket_.recv(part, zmq::recv_flags::dontwait)) return false;
        more = part.more();
        if (got < parts) frames[got] = std::move(part);
        ++got;
      }
      if (got == parts) return true;
    }
    return false;
  }

 private:
  std::shared_ptr<Shared> shared_;
  zmq::socket_t socket_;
};

Result<void> CheckFrame(const std::string& frame) {
  if (frame.size() > kFrameBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes, limit {}", frame.size(), kFrameBytesMax);
  return {};
}

class ZmqServerSocket final : public ServerSocket {
 public:
  explicit ZmqServerSocket(std::shared_ptr<Shared> shared) : socket_(std::move(shared), zmq::socket_type::router) {}

  void Bind(const std::string& endpoint) {
    socket_.get().bind(endpoint);
    endpoint_ = socket_.get().get(zmq::sockopt::last_endpoint);
  }

  Result<void> Send(const PeerId& peer, std::string frame) override try {
    MILLRACE_TRY(CheckFrame(frame));
    // Once the routing id is taken, the rest of the message goes to that peer's pipe whatever its mark says.
    if (!socket_.get().send(zmq::buffer(peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait))
      return Fail(ErrorCode::kLimit, "peer does not read: its high-water mark is reached");
    if (!socket_.get().send(zmq::buffer(frame), zmq::send_flags::dontwait))
      return Fail(ErrorCode::kUnavailable, "peer went away");
    return {};
  } catch (const zmq::error_t& e) {
    return Fail(ErrorCode::kUnavailable, "send: {}", e.what());
  }

  std::optional<Received> Receive() override try {
    zmq::message_t frames[2];
    if (!socket_.Receive(frames, 2)) return std::nullopt;
    return Received{frames[0].to_string(), frames[1].to_string()};
  } catch (const zmq::error_t&) {
    return std::nullopt;  // the context is being shut down
  }

  std::string Endpoint() const override { return endpoint_; }

 private:
  Socket socket_;
  std::string endpoint_;
};

class ZmqClientSocket final : public ClientSocket {
 public:
  explicit ZmqClientSocket(std::shared_ptr<Shared> shared) : socket_(std::move(shared), zmq::socket_type::dealer) {}

  void Connect(const std::string& endpoint) { socket_.get().connect(endpoint); }

  Result<void> Send(std::string frame) override try {
    MILLRACE_TRY(CheckFrame(frame));
    if (!socket_.get().send(zmq::buffer(frame), zmq::send_flags::dontwait))
      return Fail(ErrorCode::kUnavailable, "not connected, or the peer does not read");
    return {};
  } catch (const zmq::error_t& e) {
    return Fail(ErrorCode::kUnavailable, "send: {}", e.what());
  }

  std::optional<std::string> Receive() override try {
    zmq::message_t frame;
    if (!socket_.Receive(&frame, 1)) return std::nullopt;
    return frame.to_string();
  } catch (const zmq::error_t&) {
    return std::nullopt;
  }

 private:
  Socket socket_;
};

// libzmq would look the name up; what it resolves to is not ours to trust.
std::string WithoutLocalhost(const std::string& endpoint) {
  constexpr std::string_view kPrefix = "tcp://localhost:";
  if (!endpoint.starts_with(kPrefix)) return endpoint;
  return "tcp://127.0.0.1:" + endpoint.substr(kPrefix.size());
}

// libzmq takes over the path of a living ipc socket without a word, so ask whether somebody listens there.
bool SomebodyListens(const std::string& endpoint) {
  constexpr std::string_view kIpc = "ipc://";
  if (!endpoint.starts_with(kIpc) || endpoint[kIpc.size()] == '@') return false;  // abstract names do fail by themselves
  const std::string path = endpoint.substr(kIpc.size());
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path) return false;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN;
  ::close(fd);
  return connected;
}

class ZmqTransport final : public Transport {
 public:
  explicit ZmqTransport(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  Result<std::unique_ptr<ServerSocket>> Bind(const std::string& endpoint) override try {
    MILLRACE_TRY(CheckLocalEndpoint(endpoint));
    if (SomebodyListens(endpoint)) return Fail(ErrorCode::kConflict, "bind '{}': another process listens there", endpoint);
    auto socket = std::make_unique<ZmqServerSocket>(shared_);
    socket->Bind(WithoutLocalhost(endpoint));
    return socket;
  } catch (const zmq::error_t& e) {
    return std::unexpected(FromZmq(e, "bind", endpoint));
  }

  Result<std::unique_ptr<ClientSocket>> Connect(const std::string& endpoint) override try {
    MILLRACE_TRY(CheckLocalEndpoint(endpoint));
    auto socket = std::make_unique<ZmqClientSocket>(shared_);
    socket->Connect(WithoutLocalhost(endpoint));
    return socket;
  } catch (const zmq::error_t& e) {
    return std::unexpected(FromZmq(e, "connect", endpoint));
  }

  // zmq_poll asks each socket for its events before it sleeps, so that the edge-triggered descriptors cannot lose one.
  void Wait(Micros timeout, int extra_fd) override {
    items_.clear();
    for (void* socket : shared_->sockets) items_.push_back({socket, 0, ZMQ_POLLIN, 0});
    items_.push_back({nullptr, shared_->wake_fd, ZMQ_POLLIN, 0});
    const std::size_t wake = items_.size() - 1;
    if (extra_fd >= 0) items_.push_back({nullptr, extra_fd, ZMQ_POLLIN, 0});
    const auto wait_ms = std::max<Millis::rep>(std::chrono::ceil<Millis>(timeout).count(), 0);
    if (zmq_poll(items_.data(), static_cast<int>(items_.size()), static_cast<long>(wait_ms)) <= 0) return;
    if (items_[wake].revents != 0) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto ignored = ::read(shared_->wake_fd, &count, sizeof count);
    }
  }

  void Flush() override {}  // its I/O thread does
  void Wake() override {    // async-signal-safe
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(shared_->wake_fd, &one, sizeof one);
  }

 private:
  std::shared_ptr<Shared> shared_;
  std::vector<zmq_pollitem_t> items_;
};

}  // namespace

Result<std::unique_ptr<Transport>> MakeZmqTransport(std::shared_ptr<ZmqContext> context) {
  if (!context) return Fail(ErrorCode::kInvalidArgument, "a ZeroMQ transport needs a context");
  auto shared = std::make_shared<Shared>(std::move(context));
  shared->wake_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (shared->wake_fd < 0) return Fail(ErrorCode::kUnavailable, "eventfd: {}", std::strerror(errno));
  return std::unique_ptr<Transport>(std::make_unique<ZmqTransport>(std::move(shared)));
}

}  // namespace millrace::testing
