#include "worker/poller.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace::worker {

Result<std::unique_ptr<Poller>> Poller::Make() {
  const int fd = ::epoll_create1(EPOLL_CLOEXEC);
  if (fd < 0) return Fail(ErrorCode::kUnavailable, "epoll_create1: {}", std::strerror(errno));
  return std::unique_ptr<Poller>(new Poller(fd));
}

Poller::~Poller() { ::close(epoll_fd_); }

Result<void> Poller::Add(int fd, Interest interest, Handler handler) {
  const std::uint64_t key = next_key_++;
  epoll_event event{};
  event.events = interest == Interest::kRead ? EPOLLIN : EPOLLOUT;
  event.data.u64 = key;
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0)
    return Fail(ErrorCode::kUnavailable, "epoll_ctl: {}", std::strerror(errno));
  by_fd_[fd] = {key, std::make_shared<Handler>(std::move(handler))};
  by_key_[key] = fd;
  return {};
}

void Poller::Remove(int fd) {
  const auto it = by_fd_.find(fd);
  if (it == by_fd_.end()) return;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
  by_key_.erase(it->second.key);
  by_fd_.erase(it);
}

void Poller::Dispatch() {
  std::array<epoll_event, 64> events;
  const int ready = ::epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < ready; ++i) {
    // A key is never used twice, so an event for a removed fd cannot reach the fd's next user.
    const auto key = by_key_.find(events[static_cast<std::size_t>(i)].data.u64);
    if (key == by_key_.end()) continue;
    const auto handler = by_fd_.at(key->second).handler;
    (*handler)();
  }
}

}  // namespace millrace::worker
