#include "tests/support/memory_transport.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "common/base/limits.h"

namespace millrace::testing {
namespace {

struct Flying {
  MonoTime due;
  std::uint64_t order;
  wire::PeerId peer;  // of the sender, at a server
  std::string frame;
  std::string from, to;  // hosts
};

// Where frames for one socket wait.
struct Box {
  std::string host;
  int wake_fd = -1;  // of its transport
  std::vector<Flying> flying;
};

struct Connection {
  std::uint64_t id = 0;
  std::string endpoint;
  Box box;                    // towards the client
  std::uint64_t session = 0;  // part of the peer id: changes with a reconnect
  wire::PeerId Peer() const { return fmt::format("c{}.{}", id, session); }
};

}  // namespace

class MemoryNetwork::State {
 public:
  State(const Clock& c, Random& r) : clock(c), random(r) {}

  std::mutex mutex;
  const Clock& clock;
  Random& random;
  Faults faults;
  Counts counts;
  std::set<std::pair<std::string, std::string>> partitions;
  std::map<std::string, Box> servers;  // by endpoint
  std::map<std::uint64_t, Connection> connections;
  std::uint64_t next_id = 1, next_order = 1;

  bool Parted(const std::string& a, const std::string& b) const {
    return partitions.contains({a, b}) || partitions.contains({b, a});
  }

  void Post(Box& to, const std::string& from_host, wire::PeerId peer, std::string frame) {
    ++counts.sent;
    if (Parted(from_host, to.host) || random.Below(1'000'000) < faults.drop_ppm) {
      ++counts.dropped;
      return;
    }
    const int copies = random.Below(1'000'000) < faults.duplicate_ppm ? 2 : 1;
    counts.duplicated += static_cast<std::uint64_t>(copies - 1);
    for (int i = 0; i < copies; ++i) {
      const auto spread = static_cast<std::uint64_t>((faults.delay_max - faults.delay_min).count());
      const Micros delay = faults.delay_min + Micros{spread == 0 ? 0 : static_cast<std::int64_t>(random.Below(spread + 1))};
      to.flying.push_back({clock.Now() + delay, next_order++, peer, frame, from_host, to.host});
    }
    Ring(to.wake_fd);
  }

  // The next frame that is due, in order of (due, sent).
  std::optional<Flying> Take(Box& box) {
    const auto first = std::ranges::min_element(box.flying, {}, [](const Flying& f) { return std::pair(f.due, f.order); });
    if (first == box.flying.end() || first->due > clock.Now()) return std::nullopt;
    ++counts.delivered;
    std::optional<Flying> taken = std::move(*first);
    box.flying.erase(first);
    return taken;
  }

  std::optional<MonoTime> NextDue(int wake_fd) const {
    std::optional<MonoTime> next;
    const auto look = [&](const Box& box) {
      if (box.wake_fd != wake_fd) return;
      for (const Flying& f : box.flying) next = next ? std::min(*next, f.due) : f.due;
    };
    for (const auto& [endpoint, box] : servers) look(box);
    for (const auto& [id, connection] : connections) look(connection.box);
    return next;
  }

  static void Ring(int fd) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(fd, &one, sizeof one);
  }
};

namespace {

using State = MemoryNetwork::State;

class MemoryServer final : public wire::ServerSocket {
 public:
  MemoryServer(std::shared_ptr<State> state, std::string endpoint, std::string host)
      : state_(std::move(state)), endpoint_(std::move(endpoint)), host_(std::move(host)) {}
  ~MemoryServer() override {
    const std::scoped_lock lock(state_->mutex);
    state_->servers.erase(endpoint_);
  }

  Result<void> Send(const wire::PeerId& peer, std::string frame) override {
    if (frame.size() > kFrameBytesMax) return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes", frame.size());
    const std::scoped_lock lock(state_->mutex);
    for (auto& [id, connection] : state_->connections) {
      if (connection.endpoint != endpoint_ || connection.Peer() != peer) continue;
      state_->Post(connection.box, host_, {}, std::move(frame));
      return {};
    }
    return Fail(ErrorCode::kUnavailable, "no such peer: {}", peer);
  }

  std::optional<wire::Received> Receive() override {
    const std::scoped_lock lock(state_->mutex);
    auto taken = state_->Take(state_->servers.at(endpoint_));
    if (!taken) return std::nullopt;
    return wire::Received{std::move(taken->peer), std::move(taken->frame)};
  }

  std::string Endpoint() const override { return endpoint_; }

 private:
  std::shared_ptr<State> state_;
  std::string endpoint_, host_;
};

class MemoryClient final : public wire::ClientSocket {
 public:
  MemoryClient(std::shared_ptr<State> state, std::uint64_t id) : state_(std::move(state)), id_(id) {}
  ~MemoryClient() override {
    const std::scoped_lock lock(state_->mutex);
    state_->connections.erase(id_);
  }

  Result<void> Send(std::string frame) override {
    if (frame.size() > kFrameBytesMax) return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes", frame.size());
    const std::scoped_lock lock(state_->mutex);
    Connection& self = state_->connections.at(id_);
    const auto server = state_->servers.find(self.endpoint);
    if (server == state_->servers.end()) return Fail(ErrorCode::kUnavailable, "nobody is bound to {}", self.endpoint);
    state_->Post(server->second, self.box.host, self.Peer(), std::move(frame));
    return {};
  }

  std::optional<std::string> Receive() override {
    const std::scoped_lock lock(state_->mutex);
    auto taken = state_->Take(state_->connections.at(id_).box);
    if (!taken) return std::nullopt;
    return std::move(taken->frame);
  }

 private:
  std::shared_ptr<State> state_;
  std::uint64_t id_;
};

class MemoryTransport final : public wire::Transport {
 public:
  MemoryTransport(std::shared_ptr<State> state, std::string host, bool blocking)
      : state_(std::move(state)), host_(std::move(host)), blocking_(blocking), fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~MemoryTransport() override { ::close(fd_); }

  Result<std::unique_ptr<wire::ServerSocket>> Bind(const std::string& endpoint) override {
    const std::scoped_lock lock(state_->mutex);
    if (!state_->servers.emplace(endpoint, Box{host_, fd_, {}}).second)
      return Fail(ErrorCode::kConflict, "bind '{}': address in use", endpoint);
    return std::unique_ptr<wire::ServerSocket>(std::make_unique<MemoryServer>(state_, endpoint, host_));
  }

  Result<std::unique_ptr<wire::ClientSocket>> Connect(const std::string& endpoint) override {
    const std::scoped_lock lock(state_->mutex);
    const std::uint64_t id = state_->next_id++;
    state_->connections[id] = {id, endpoint, Box{host_, fd_, {}}, 0};
    return std::unique_ptr<wire::ClientSocket>(std::make_unique<MemoryClient>(state_, id));
  }

  void Wait(Micros wait, int extra_fd) override {
    if (!blocking_) return;
    auto timeout = std::chrono::ceil<Millis>(wait);
    {
      const std::scoped_lock lock(state_->mutex);
      if (const auto due = state_->NextDue(fd_)) {
        const auto left = std::chrono::ceil<Millis>(*due - state_->clock.Now());
        timeout = std::clamp(left, Millis{0}, std::max(timeout, Millis{0}));
      }
    }
    pollfd fds[2] = {{fd_, POLLIN, 0}, {extra_fd, POLLIN, 0}};
    ::poll(fds, extra_fd >= 0 ? 2 : 1, static_cast<int>(timeout.count()));
    std::uint64_t count = 0;
    [[maybe_unused]] const auto ignored = ::read(fd_, &count, sizeof count);
  }

  void Flush() override {}
  void Wake() override { State::Ring(fd_); }

 private:
  std::shared_ptr<State> state_;
  std::string host_;
  bool blocking_;
  int fd_;
};

}  // namespace

MemoryNetwork::MemoryNetwork(const Clock& clock, Random& random) : state_(std::make_shared<State>(clock, random)) {}
MemoryNetwork::~MemoryNetwork() = default;

std::unique_ptr<wire::Transport> MemoryNetwork::MakeTransport(const std::string& host, bool blocking) {
  return std::make_unique<MemoryTransport>(state_, host, blocking);
}

void MemoryNetwork::SetFaults(const Faults& faults) {
  const std::scoped_lock lock(state_->mutex);
  state_->faults = faults;
}

void MemoryNetwork::Partition(const std::string& a, const std::string& b) {
  const std::scoped_lock lock(state_->mutex);
  state_->partitions.insert({a, b});
  // Lost now, not when somebody looks: a heal that comes first must not bring it back.
  const auto lose = [&](Box& box) {
    state_->counts.dropped += std::erase_if(box.flying, [&](const Flying& f) { return state_->Parted(f.from, f.to); });
  };
  for (auto& [endpoint, box] : state_->servers) lose(box);
  for (auto& [id, connection] : state_->connections) lose(connection.box);
}

void MemoryNetwork::Heal() {
  const std::scoped_lock lock(state_->mutex);
  state_->partitions.clear();
}

void MemoryNetwork::Disconnect(const std::string& endpoint) {
  const std::scoped_lock lock(state_->mutex);
  for (auto& [id, connection] : state_->connections) {
    if (connection.endpoint != endpoint) continue;
    ++connection.session;
    state_->counts.dropped += connection.box.flying.size();
    connection.box.flying.clear();
  }
}

MemoryNetwork::Counts MemoryNetwork::counts() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->counts;
}

}  // namespace millrace::testing
