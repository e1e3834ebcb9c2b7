// epoll for the file descriptors of child processes. Not thread-safe: belongs to the worker's loop thread, which waits for
// fd() together with its sockets.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "common/base/result.h"

namespace millrace::worker {

class Poller {
 public:
  using Handler = std::function<void()>;
  enum class Interest : std::uint8_t { kRead, kWrite };

  static Result<std::unique_ptr<Poller>> Make();
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  int fd() const { return epoll_fd_; }
  // Calls `handler` from Dispatch whenever `fd` is ready (level-triggered; an error or a hang-up counts as ready).
  // kUnavailable: the kernel refused. REQUIRES: `fd` is not added.
  Result<void> Add(int fd, Interest interest, Handler handler);
  void Remove(int fd);  // nothing happens if it is not added; allowed inside a handler, for any fd
  void Dispatch();      // runs the handlers of what is ready now; never waits

 private:
  explicit Poller(int epoll_fd) : epoll_fd_(epoll_fd) {}
  struct Entry {
    std::uint64_t key;
    std::shared_ptr<Handler> handler;  // shared: a handler may remove itself
  };
  int epoll_fd_;
  std::uint64_t next_key_ = 1;
  std::map<int, Entry> by_fd_;
  std::map<std::uint64_t, int> by_key_;
};

}  // namespace millrace::worker
