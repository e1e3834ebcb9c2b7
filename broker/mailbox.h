// A bounded box between threads: many put, one takes everything at once (that is the batch). Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "common/base/clock.h"

namespace millrace {

template <class T>
class Mailbox {
 public:
  // Beyond `max` items Put waits for the taker.
  explicit Mailbox(std::size_t max) : max_(max) {}

  // False: closed, the item is dropped.
  bool Put(T item) {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [this] { return closed_ || items_.size() < max_; });
    if (closed_) return false;
    items_.push_back(std::move(item));
    lock.unlock();
    filled_.notify_one();
    return true;
  }
  // Everything there is; waits for something, `Close`, or the timeout.
  std::vector<T> TakeAll(Micros timeout) {
    std::unique_lock lock(mutex_);
    if (timeout > Micros{0}) filled_.wait_for(lock, timeout, [this] { return closed_ || !items_.empty(); });
    std::vector<T> taken = std::exchange(items_, {});
    lock.unlock();
    room_.notify_all();
    return taken;
  }
  // Nothing goes in any more; what is in can still be taken.
  void Close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    filled_.notify_all();
    room_.notify_all();
  }
  bool Closed() const {
    const std::scoped_lock lock(mutex_);
    return closed_;
  }

 private:
  const std::size_t max_;
  mutable std::mutex mutex_;
  std::condition_variable filled_, room_;
  std::vector<T> items_;
  bool closed_ = false;
};

}  // namespace millrace
