// Removes folders in the background, because a stage's scratch may hold gigabytes and heartbeats must not wait for that.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

namespace millrace::worker {

class Janitor {  // thread-safe
 public:
  Janitor();
  ~Janitor();  // after everything queued is removed
  void Remove(std::string folder);

 private:
  void Run(const std::stop_token& stop);
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<std::string> folders_;  // guarded by mutex_
  std::jthread thread_;              // last: it uses the members above
};

}  // namespace millrace::worker
