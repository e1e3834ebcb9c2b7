#include "common/wire/zmtp_transport.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/wire/endpoint.h"
#include "common/wire/local_names.h"
#include "common/wire/stream_socket.h"
#include "common/wire/zmtp_connection.h"
#include "common/wire/zmtp_loop.h"

namespace millrace::wire {
namespace {

using zmtp::Connection;
using zmtp::Loop;
using zmtp::SocketType;

constexpr std::size_t kReadAheadMessages = 1000;
constexpr std::size_t kReadAheadBytes = kFrameBytesMax;
constexpr std::size_t kItemsKept = 4 * kReadAheadMessages;  // of memory for messages, while there are none
constexpr int kAcceptsPerTurn = 64;
constexpr Millis kInprocRedial{5};
constexpr Millis kStale{1000};  // a client that has not looked at its connection for so long looks before it sends

Result<void> CheckFrame(const std::string& frame) {
  if (frame.size() > kFrameBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes, limit {}", frame.size(), kFrameBytesMax);
  return {};
}

// Messages that were read and not yet received.
template <class T>
class Inbox {
 public:
  void Put(T item, std::size_t bytes) {
    items_.push_back(std::move(item));
    bytes_ += bytes;
  }
  T Take(std::size_t (*size)(const T&)) {
    T item = std::move(items_[head_++]);
    bytes_ -= size(item);
    if (head_ == items_.size()) {
      items_.clear();
      head_ = 0;
      if (items_.capacity() > kItemsKept) items_.shrink_to_fit();
    } else if (head_ >= kReadAheadMessages) {  // one that is never empty does not grow
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return item;
  }
  bool empty() const { return items_.empty(); }
  bool HasRoom() const { return items_.size() - head_ < kReadAheadMessages && bytes_ < kReadAheadBytes; }

 private:
  std::vector<T> items_;
  std::size_t head_ = 0, bytes_ = 0;
};

// The last messages of sockets that end get out, as far as their peers read.
void WriteOut(Loop& loop, const std::vector<Connection*>& connections, Millis linger) {
  const MonoTime end = loop.Now() + linger;
  for (Connection* connection : connections) connection->Flush();
  std::vector<pollfd> waiting;
  while (true) {
    waiting.clear();
    for (const Connection* connection : connections)
      if (connection->unsent()) waiting.push_back({.fd = connection->fd(), .events = POLLOUT, .revents = 0});
    const auto left = std::chrono::ceil<Millis>(end - loop.Now()).count();
    if (waiting.empty() || left <= 0) return;
    if (::poll(waiting.data(), waiting.size(), static_cast<int>(left)) < 0 && errno != EINTR) return;
    for (Connection* connection : connections)
      if (connection->unsent()) connection->Flush();
  }
}

// Takes connections from a listening socket or from a mailbox.
class Acceptor final : public zmtp::Pollable {
 public:
  class Owner {
   public:
    virtual void OnAccepted(Fd fd) = 0;

   protected:
    ~Owner() = default;
  };

  Acceptor(Loop& loop, Owner& owner, Listener listener, std::shared_ptr<Mailbox> mailbox)
      : loop_(loop), owner_(owner), listener_(std::move(listener)), mailbox_(std::move(mailbox)) {}
  ~Acceptor() override {
    if (watched_) loop_.Unwatch(fd(), this);
    if (!listener_.path.empty()) ::unlink(listener_.path.c_str());
  }
  bool Start() { return watched_ = loop_.Watch(fd(), this); }

  // Out of descriptors, the listening socket stays readable: asking again at once would be all this thread does.
  void Resume() {
    if (std::exchange(paused_, false)) loop_.WatchReads(fd(), true, this);
  }

 private:
  int fd() const { return mailbox_ ? mailbox_->bell() : listener_.fd.get(); }

  void OnEvents(bool, bool) override {
    for (int i = 0; i < kAcceptsPerTurn; ++i) {
      if (mailbox_) {
        auto connection = mailbox_->Take();
        if (!connection) return;
        owner_.OnAccepted(std::move(*connection));
        continue;
      }
      Accepted accepted = Accept(listener_.fd.get());
      if (accepted.fd) {
        owner_.OnAccepted(std::move(accepted.fd));
      } else {
        if (accepted.error == EMFILE || accepted.error == ENFILE || accepted.error == ENOMEM || accepted.error == ENOBUFS)
          Pause();
        return;
      }
    }
  }

  void Pause() {
    LogWarn("{}: out of descriptors or memory: new connections wait", listener_.endpoint);
    paused_ = true;
    loop_.WatchReads(fd(), false, this);
  }

  Loop& loop_;
  Owner& owner_;
  Listener listener_;
  std::shared_ptr<Mailbox> mailbox_;
  bool watched_ = false, paused_ = false;
};

class ZmtpServerSocket final : public ServerSocket, public zmtp::Member, public Connection::Owner, public Acceptor::Owner {
 public:
  ZmtpServerSocket(std::shared_ptr<Loop> loop, const ZmtpTimes& times) : loop_(std::move(loop)), linger_(times.linger) {
    loop_->Join(this);
  }
  ~ZmtpServerSocket() override {
    acceptor_.reset();
    std::vector<Connection*> all;
    for (const auto& [connection, owned] : connections_) all.push_back(connection);
    WriteOut(*loop_, all, linger_);
    connections_.clear();
    loop_->Leave(this);
  }
  ZmtpServerSocket(const ZmtpServerSocket&) = delete;
  ZmtpServerSocket& operator=(const ZmtpServerSocket&) = delete;

  Result<void> Open(const wire::Endpoint& at, LocalNames& names) {
    Listener listener;
    std::shared_ptr<Mailbox> mailbox;
    if (at.kind == wire::Endpoint::Kind::kInproc) {
      MILLRACE_TRY_ASSIGN(mailbox, names.Claim(at.name));
      listener.endpoint = "inproc://" + at.name;
    } else {
      MILLRACE_TRY_ASSIGN(listener, Listen(at));
    }
    endpoint_ = listener.endpoint;
    acceptor_ = std::make_unique<Acceptor>(*loop_, *this, std::move(listener), std::move(mailbox));
    if (!acceptor_->Start()) return Fail(ErrorCode::kUnavailable, "bind '{}': epoll refuses", endpoint_);
    return {};
  }

  Result<void> Send(const PeerId& peer, std::string frame) override {
    MILLRACE_TRY(CheckFrame(frame));
    const auto it = peers_.find(peer);
    if (it == peers_.end()) return Fail(ErrorCode::kUnavailable, "no such peer");
    switch (it->second->Send(std::move(frame))) {
      case Connection::Put::kFull: return Fail(ErrorCode::kLimit, "peer does not read: its high-water mark is reached");
      case Connection::Put::kBroken: return Fail(ErrorCode::kUnavailable, "peer went away");
      case Connection::Put::kTaken: break;
    }
    return {};
  }

  std::optional<Received> Receive() override {
    if (inbox_.empty() && seen_turn_ == loop_->turn()) loop_->Poll();  // asked twice without a wait
    if (!inbox_.empty()) return inbox_.Take([](const Received& received) { return received.frame.size(); });
    seen_turn_ = loop_->turn();
    return std::nullopt;
  }

  std::string Endpoint() const override { return endpoint_; }

 private:
  bool HasInput() const override { return !inbox_.empty(); }
  bool WantsInput() const override { return inbox_.HasRoom(); }
  const std::string& endpoint() const override { return endpoint_; }

  void Sweep(MonoTime now) override {
    acceptor_->Resume();
    for (auto it = connections_.begin(); it != connections_.end();) {
      Connection& connection = *it->first;
      ++it;  // it may end
      connection.Tick(now);
    }
  }

  void OnAccepted(Fd fd) override {
    auto connection = std::make_unique<Connection>(*loop_, *this, SocketType::kRouter, std::move(fd), false);
    Connection* raw = connection.get();
    connections_.emplace(raw, std::move(connection));
    if (!raw->Start()) connections_.erase(raw);
  }

  bool OnReady(Connection& connection) override {
    PeerId peer = connection.identity();
    if (peer.empty()) peer = NextPeerId();
    if (!peers_.emplace(peer, &connection).second) return false;
    connection.peer = std::move(peer);
    return true;
  }
  void OnMessage(Connection& connection, std::string frame) override {
    const std::size_t bytes = frame.size();
    inbox_.Put(Received{.peer = connection.peer, .frame = std::move(frame)}, bytes);
  }
  void OnClosed(Connection& connection) override {
    if (!connection.peer.empty()) peers_.erase(connection.peer);
    const auto it = connections_.find(&connection);
    loop_->Bury(std::move(it->second));
    connections_.erase(it);
  }

  // Begins with a zero, as no identity of a peer does; short enough to need no memory of its own.
  PeerId NextPeerId() {
    PeerId id(1, '\0');
    ++last_peer_;
    for (int shift = 56; shift >= 0; shift -= 8) id.push_back(static_cast<char>(last_peer_ >> shift));
    return id;
  }

  std::shared_ptr<Loop> loop_;
  const Millis linger_;
  std::string endpoint_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unordered_map<Connection*, std::unique_ptr<Connection>> connections_;
  std::unordered_map<PeerId, Connection*> peers_;  // those that are ready
  Inbox<Received> inbox_;
  std::uint64_t seen_turn_ = 0, last_peer_ = 0;
};

class ZmtpClientSocket final : public ClientSocket, public zmtp::Member, public Connection::Owner {
 public:
  ZmtpClientSocket(std::shared_ptr<Loop> loop, const ZmtpTimes& times, std::string name, Endpoint to,
                   std::shared_ptr<LocalNames> names)
      : loop_(std::move(loop)), times_(times), name_(std::move(name)), to_(std::move(to)), names_(std::move(names)) {
    loop_->Join(this);
    DialNow();
  }
  ~ZmtpClientSocket() override {
    if (connection_) WriteOut(*loop_, {connection_.get()}, times_.linger);
    connection_.reset();
    loop_->Leave(this);
  }
  ZmtpClientSocket(const ZmtpClientSocket&) = delete;
  ZmtpClientSocket& operator=(const ZmtpClientSocket&) = delete;

  Result<void> Send(std::string frame) override {
    MILLRACE_TRY(CheckFrame(frame));
    if (loop_->Now() - loop_->looked() >= kStale) loop_->Poll();
    if (!connection_ || !connection_->ready()) return Fail(ErrorCode::kUnavailable, "not connected");
    switch (connection_->Send(std::move(frame))) {
      case Connection::Put::kFull:
        return Fail(ErrorCode::kUnavailable, "the peer does not read: its high-water mark is reached");
      case Connection::Put::kBroken: return Fail(ErrorCode::kUnavailable, "not connected any more");
      case Connection::Put::kTaken: break;
    }
    return {};
  }

  std::optional<std::string> Receive() override {
    if (inbox_.empty() && seen_turn_ == loop_->turn()) loop_->Poll();  // asked twice without a wait
    if (!inbox_.empty()) return inbox_.Take([](const std::string& frame) { return frame.size(); });
    seen_turn_ = loop_->turn();
    return std::nullopt;
  }

 private:
  bool HasInput() const override { return !inbox_.empty(); }
  bool WantsInput() const override { return inbox_.HasRoom(); }
  const std::string& endpoint() const override { return name_; }

  void Sweep(MonoTime now) override {
    if (connection_) connection_->Tick(now);
  }
  std::optional<MonoTime> Due() const override { return dial_at_; }
  void OnDue(MonoTime) override { DialNow(); }

  void DialNow() {
    dial_at_.reset();
    Dialled dialled = to_.kind == Endpoint::Kind::kInproc ? Dialled{.fd = names_->Dial(to_.name)} : Dial(to_);
    if (dialled.fd) {
      connection_ = std::make_unique<Connection>(*loop_, *this, SocketType::kDealer, std::move(dialled.fd), dialled.pending);
      if (connection_->Start()) return;
      connection_.reset();
    }
    DialLater();
  }

  // Between half and the whole of a time that doubles: many clients of a server that restarts do not come at one instant.
  void DialLater() {
    if (to_.kind == Endpoint::Kind::kInproc) {  // costs nothing, and who is not there yet is about to be
      dial_at_ = loop_->Now() + kInprocRedial;
      return;
    }
    const auto most = std::min(times_.reconnect_max, times_.reconnect_min * 2 * (1 << failures_));
    if (most < times_.reconnect_max) ++failures_;
    const Micros half = most / 2;
    dial_at_ = loop_->Now() + half +
               Micros{static_cast<Micros::rep>(loop_->random().Below(static_cast<std::uint64_t>(half.count()) + 1))};
  }

  bool OnReady(Connection&) override {
    failures_ = 0;
    loop_->Stir();
    return true;
  }
  void OnMessage(Connection&, std::string frame) override {
    const std::size_t bytes = frame.size();
    inbox_.Put(std::move(frame), bytes);
  }
  void OnClosed(Connection&) override {
    loop_->Bury(std::move(connection_));
    DialLater();
    loop_->Stir();
  }

  std::shared_ptr<Loop> loop_;
  const ZmtpTimes times_;
  const std::string name_;
  const Endpoint to_;
  const std::shared_ptr<LocalNames> names_;
  std::unique_ptr<Connection> connection_;
  std::optional<MonoTime> dial_at_;
  int failures_ = 0;
  Inbox<std::string> inbox_;
  std::uint64_t seen_turn_ = 0;
};

class ZmtpTransport final : public Transport {
 public:
  ZmtpTransport(std::shared_ptr<Loop> loop, std::shared_ptr<LocalNames> names, const ZmtpTimes& times)
      : loop_(std::move(loop)), names_(std::move(names)), times_(times) {}

  Result<std::unique_ptr<ServerSocket>> Bind(const std::string& endpoint) override {
    MILLRACE_TRY_ASSIGN(const Endpoint at, ParseEndpoint(endpoint));
    auto socket = std::make_unique<ZmtpServerSocket>(loop_, times_);
    MILLRACE_TRY(socket->Open(at, *names_));
    return socket;
  }

  Result<std::unique_ptr<ClientSocket>> Connect(const std::string& endpoint) override {
    MILLRACE_TRY_ASSIGN(Endpoint to, ParseEndpoint(endpoint));
    return std::make_unique<ZmtpClientSocket>(loop_, times_, endpoint, std::move(to), names_);
  }

  void Wait(Micros timeout, int extra_fd) override { loop_->Wait(timeout, extra_fd); }
  void Flush() override { loop_->Flush(); }
  void Wake() override { loop_->Wake(); }

 private:
  std::shared_ptr<Loop> loop_;
  std::shared_ptr<LocalNames> names_;
  const ZmtpTimes times_;
};

}  // namespace

std::shared_ptr<LocalNames> MakeLocalNames() { return std::make_shared<LocalNames>(); }

Result<std::unique_ptr<Transport>> MakeZmtpTransport(std::shared_ptr<LocalNames> names, const ZmtpTimes& times) {
  MILLRACE_TRY_ASSIGN(
      auto loop,
      Loop::Make({.handshake = times.handshake, .heartbeat = times.heartbeat, .heartbeat_timeout = times.heartbeat_timeout}));
  if (!names) names = MakeLocalNames();
  return std::unique_ptr<Transport>(std::make_unique<ZmtpTransport>(std::move(loop), std::move(names), times));
}

}  // namespace millrace::wire
