#include "tests/support/tcp_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/random.h"

namespace millrace::testing {
namespace {

constexpr std::size_t kReadMax = 64 * 1024;
constexpr std::size_t kHeldMax = 1024 * 1024;  // beyond it nothing is read: the sender feels it

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

std::optional<sockaddr_in> Address(const std::string& host, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) return std::nullopt;
  return address;
}

Socket NewSocket() { return Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

void NoDelay(const Socket& socket) {
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

struct Chunk {
  std::string bytes;
  MonoTime due;
};

struct Direction {
  std::deque<Chunk> held;
  std::size_t held_bytes = 0;
  std::uint64_t read = 0;
  MonoTime next_write{};
  bool ended = false;   // the reader's end has closed
  bool closed = false;  // and the writer's end was told
  std::string tail;     // of what was read: a pattern may lie across two reads
};

struct Link {
  Socket client, server;
  bool connecting = true;
  bool swallow = false;  // the next bytes of the server are a dropped reply
  bool cut = false, gone = false, stranded = false;
  Direction up, down;  // to the server, to the client
};

struct Trap {
  std::string pattern;
  std::uint64_t one_in = 1, left = 0;
};

// Whether `pattern` ends in the new bytes.
bool Holds(std::string& tail, std::string_view bytes, std::string_view pattern) {
  tail.append(bytes);
  const bool found = tail.find(pattern) != std::string::npos;
  const std::size_t keep = pattern.empty() ? 0 : pattern.size() - 1;
  if (found)
    tail.clear();
  else if (tail.size() > keep)
    tail.erase(0, tail.size() - keep);
  return found;
}

}  // namespace

class TcpProxy::Loop {
 public:
  Loop(const TcpProxyOptions& options, Socket listener, Socket wake, sockaddr_in upstream, std::uint16_t port)
      : random_(options.seed), listener_(std::move(listener)), wake_(std::move(wake)), upstream_(upstream), port_(port) {}

  void Launch() {
    thread_ = std::jthread([this](const std::stop_token& stop) { Run(stop); });
  }
  ~Loop() {
    thread_.request_stop();
    Wake();
  }

  std::uint16_t port() const { return port_; }
  TcpProxyCounts counts() const {
    const std::scoped_lock lock(mutex_);
    return counts_;
  }
  // Runs `change` on the loop's thread and waits for it.
  void Change(const std::function<void()>& change) {
    std::unique_lock lock(mutex_);
    const std::uint64_t mine = ++asked_;
    changes_.push_back(change);
    Wake();
    done_changed_.wait(lock, [&] { return done_ >= mine; });
  }

  // Settings; only the loop's thread touches them.
  Trap reply_trap, request_trap;
  std::uint64_t cut_after = 0;
  Silence silence = Silence::kNone;
  Millis delay{0};
  std::size_t drip = 0;
  void CutAll() {
    for (Link& link : links_) link.cut = true;
  }
  void StrandAll() {
    for (Link& link : links_) {
      link.stranded = true;
      link.server = Socket();
    }
  }

 private:
  void Wake() const {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }
  bool Springs(Trap& trap) {
    if (trap.left == 0 || random_.Below(trap.one_in) != 0) return false;
    --trap.left;
    return true;
  }
  void Count(std::uint64_t TcpProxyCounts::* counter, std::uint64_t by = 1) {
    const std::scoped_lock lock(mutex_);
    counts_.*counter += by;
  }

  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      std::optional<MonoTime> due;
      const MonoTime now = clock_.Now();
      for (Link& link : links_) {
        fds.push_back({link.client.get(), Events(link, link.up, link.down, Silence::kToServer, now, due), 0});
        auto server = Events(link, link.down, link.up, Silence::kToClient, now, due);
        if (link.connecting && !link.stranded) server = POLLOUT;
        fds.push_back({link.server.get(), server, 0});
        // A descriptor of which nothing is wanted would report a hang-up again and again.
        for (std::size_t i = fds.size() - 2; i < fds.size(); ++i)
          if (fds[i].events == 0) fds[i].fd = -1;
      }
      const int wait = due ? static_cast<int>(std::max<std::int64_t>(0, std::chrono::ceil<Millis>(*due - now).count())) : -1;
      ::poll(fds.data(), fds.size(), wait);
      if ((fds[0].revents & POLLIN) != 0) Obey();
      std::size_t at = 2;
      for (Link& link : links_) {
        Serve(link, fds[at].revents, fds[at + 1].revents);
        at += 2;
      }
      if ((fds[1].revents & POLLIN) != 0) Accept();
      links_.remove_if([](const Link& link) { return link.gone; });
    }
  }

  void Obey() {
    std::uint64_t ignored = 0;
    (void)!::read(wake_.get(), &ignored, sizeof ignored);
    std::vector<std::function<void()>> changes;
    std::uint64_t upto = 0;
    {
      const std::scoped_lock lock(mutex_);
      changes.swap(changes_);
      upto = asked_;
    }
    for (const auto& change : changes) change();
    const std::scoped_lock lock(mutex_);
    done_ = upto;
    done_changed_.notify_all();
  }

  bool Silent(Silence way) const { return silence == Silence::kBoth || silence == way; }

  // What is wanted of the end that `in` is read from and `out` is written to.
  short Events(const Link& link, const Direction& in, const Direction& out, Silence way, MonoTime now,
               std::optional<MonoTime>& due) const {
    if (link.connecting || link.stranded) return 0;
    short events = 0;
    if (!in.ended && !Silent(way) && in.held_bytes < kHeldMax) events |= POLLIN;
    if (out.held.empty()) return events;
    const MonoTime when = std::max(out.held.front().due, out.next_write);
    if (when <= now)
      events |= POLLOUT;
    else if (!due || when < *due)
      due = when;
    return events;
  }

  void Accept() {
    Link link;
    link.client = Socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (link.client.get() < 0) return;
    link.server = NewSocket();
    NoDelay(link.client);
    NoDelay(link.server);
    if (::connect(link.server.get(), reinterpret_cast<const sockaddr*>(&upstream_), sizeof upstream_) != 0 &&
        errno != EINPROGRESS)
      return;
    Count(&TcpProxyCounts::connections);
    links_.push_back(std::move(link));
  }

  void Serve(Link& link, short client, short server) {
    if (link.cut) return Reset(link);
    if (link.stranded) return;
    if (link.connecting) {
      if ((server & (POLLERR | POLLHUP)) != 0) return Reset(link);
      if ((server & POLLOUT) != 0) link.connecting = false;
      return;
    }
    constexpr short kReadable = POLLIN | POLLHUP | POLLERR;
    if ((client & kReadable) != 0 && !Silent(Silence::kToServer)) Read(link, link.client, link.up, true);
    if (!link.cut && (server & kReadable) != 0 && !Silent(Silence::kToClient)) Read(link, link.server, link.down, false);
    if (!link.cut) Write(link, link.server, link.up, &TcpProxyCounts::to_server_bytes);
    if (!link.cut) Write(link, link.client, link.down, &TcpProxyCounts::to_client_bytes);
    if (link.cut) return Reset(link);
    if (link.up.closed && link.down.closed) link.gone = true;
  }

  void Read(Link& link, const Socket& from, Direction& way, bool request) {
    if (way.ended || way.held_bytes >= kHeldMax) return;
    std::string bytes(kReadMax, '\0');
    const ssize_t got = ::recv(from.get(), bytes.data(), bytes.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got < 0) {
      link.cut = true;
      return;
    }
    if (got == 0) {
      way.ended = true;
      return;
    }
    bytes.resize(static_cast<std::size_t>(got));
    way.read += bytes.size();
    if (request) {
      if (request_trap.left > 0 && Holds(way.tail, bytes, request_trap.pattern) && Springs(request_trap)) link.swallow = true;
    } else if (link.swallow || (reply_trap.left > 0 && Holds(way.tail, bytes, reply_trap.pattern) && Springs(reply_trap))) {
      Count(&TcpProxyCounts::replies_dropped);
      link.cut = true;
      return;
    } else if (cut_after != 0 && way.read >= cut_after) {
      bytes.resize(bytes.size() - static_cast<std::size_t>(std::min<std::uint64_t>(way.read - cut_after, bytes.size())));
      (void)!::send(link.client.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      link.cut = true;
      return;
    }
    way.held_bytes += bytes.size();
    way.held.push_back({std::move(bytes), clock_.Now() + delay});
  }

  void Write(Link& link, const Socket& to, Direction& way, std::uint64_t TcpProxyCounts::* counter) {
    while (!way.held.empty()) {
      const MonoTime now = clock_.Now();
      Chunk& chunk = way.held.front();
      if (chunk.due > now || way.next_write > now) return;
      const std::size_t size = drip == 0 ? chunk.bytes.size() : std::min(drip, chunk.bytes.size());
      const ssize_t sent = ::send(to.get(), chunk.bytes.data(), size, MSG_NOSIGNAL);
      if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (sent < 0) {
        link.cut = true;
        return;
      }
      const auto n = static_cast<std::size_t>(sent);
      Count(counter, n);
      way.held_bytes -= n;
      chunk.bytes.erase(0, n);
      if (chunk.bytes.empty()) way.held.pop_front();
      if (drip != 0) way.next_write = now + Millis{1};
    }
    if (way.ended && !way.closed) {
      ::shutdown(to.get(), SHUT_WR);
      way.closed = true;
    }
  }

  void Reset(Link& link) {
    const linger now{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(link.client.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    link.gone = true;
    Count(&TcpProxyCounts::cuts);
  }

  SystemClock clock_;
  SeededRandom random_;
  Socket listener_, wake_;
  sockaddr_in upstream_;
  std::uint16_t port_;
  std::list<Link> links_;
  mutable std::mutex mutex_;
  std::condition_variable done_changed_;
  std::vector<std::function<void()>> changes_;
  std::uint64_t asked_ = 0, done_ = 0;
  TcpProxyCounts counts_;
  std::jthread thread_;  // last: it uses the rest
};

Result<std::unique_ptr<TcpProxy>> TcpProxy::Start(const TcpProxyOptions& options) {
  auto address = Address(options.listen_host, options.listen_port);
  const auto upstream = Address(options.upstream_host, options.upstream_port);
  if (!address || !upstream) return Fail(ErrorCode::kInvalidArgument, "proxy: an address is not numeric IPv4");
  Socket listener = NewSocket();
  const int on = 1;
  ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t size = sizeof *address;
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&*address), size) != 0 || ::listen(listener.get(), 128) != 0 ||
      ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&*address), &size) != 0)
    return Fail(ErrorCode::kUnavailable, "proxy: {}:{}: {}", options.listen_host, options.listen_port, std::strerror(errno));
  auto loop = std::make_unique<Loop>(options, std::move(listener), Socket(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), *upstream,
                                     ntohs(address->sin_port));
  loop->Launch();
  return std::unique_ptr<TcpProxy>(new TcpProxy(std::move(loop)));
}

TcpProxy::TcpProxy(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
TcpProxy::~TcpProxy() = default;

std::uint16_t TcpProxy::port() const { return loop_->port(); }
TcpProxyCounts TcpProxy::counts() const { return loop_->counts(); }

void TcpProxy::DropReply(std::string pattern, std::uint64_t one_in, std::uint64_t count) {
  loop_->Change([&] { loop_->reply_trap = {std::move(pattern), one_in, count}; });
}
void TcpProxy::DropReplyTo(std::string pattern, std::uint64_t one_in, std::uint64_t count) {
  loop_->Change([&] { loop_->request_trap = {std::move(pattern), one_in, count}; });
}
void TcpProxy::CutAfter(std::uint64_t bytes) {
  loop_->Change([&] { loop_->cut_after = bytes; });
}
void TcpProxy::Go(Silence silence) {
  loop_->Change([&] { loop_->silence = silence; });
}
void TcpProxy::Strand() {
  loop_->Change([&] { loop_->StrandAll(); });
}
void TcpProxy::Delay(Millis each_way) {
  loop_->Change([&] { loop_->delay = each_way; });
}
void TcpProxy::Drip(std::size_t bytes_per_ms) {
  loop_->Change([&] { loop_->drip = bytes_per_ms; });
}
void TcpProxy::Cut() {
  loop_->Change([&] { loop_->CutAll(); });
}
void TcpProxy::Heal() {
  loop_->Change([&] {
    loop_->reply_trap = loop_->request_trap = {};
    loop_->cut_after = 0;
    loop_->silence = Silence::kNone;
    loop_->delay = Millis{0};
    loop_->drip = 0;
  });
}

}  // namespace millrace::testing
