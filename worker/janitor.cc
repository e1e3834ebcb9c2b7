#include "worker/janitor.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "common/base/log.h"

namespace millrace::worker {

Janitor::Janitor() : thread_([this](const std::stop_token& stop) { Run(stop); }) {}
Janitor::~Janitor() {
  thread_.request_stop();
  thread_.join();
}

void Janitor::Remove(std::string folder) {
  {
    const std::scoped_lock lock(mutex_);
    folders_.push_back(std::move(folder));
  }
  changed_.notify_one();
}

void Janitor::Run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, stop, [this] { return !folders_.empty(); });
    if (folders_.empty()) return;
    const std::string folder = std::move(folders_.front());
    folders_.pop_front();
    lock.unlock();
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    if (error) LogWarn("cannot remove '{}': {}", folder, error.message());
    lock.lock();
  }
}

}  // namespace millrace::worker
