#include "scheduler/fire_lane.h"

#include <utility>

#include "common/base/check.h"
#include "scheduler/fire_history.h"

namespace millrace::scheduler {

FireLane::~FireLane() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool FireLane::busy() const {
  const std::scoped_lock lock(mutex_);
  return batch_ != nullptr;
}

void FireLane::Start(const FireBatch& batch, MonoTime deadline) {
  {
    const std::scoped_lock lock(mutex_);
    MILLRACE_CHECK(batch_ == nullptr && !result_, "a batch is fired, or what became of it was not asked for");
    batch_ = &batch;
    deadline_ = deadline;
  }
  if (!thread_.joinable()) thread_ = std::thread([this] { Work(); });
  changed_.notify_all();
}

Result<FireResult> FireLane::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return batch_ == nullptr; });
  MILLRACE_CHECK(result_, "nothing was started");
  return *std::exchange(result_, std::nullopt);
}

void FireLane::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return batch_ != nullptr || stop_; });
    if (batch_ == nullptr) return;
    const FireBatch& batch = *batch_;
    const MonoTime deadline = deadline_;
    lock.unlock();
    auto result = Fire(batch, deadline);
    lock.lock();
    result_.emplace(std::move(result));
    batch_ = nullptr;
    changed_.notify_all();
  }
}

Result<FireResult> FireLane::Fire(const FireBatch& batch, MonoTime deadline) {
  if (!ledger_) {
    MILLRACE_TRY_ASSIGN(ledger_, open_());
  }
  MILLRACE_TRY_ASSIGN(FireResult fired, FireRecorded(*ledger_, batch, who_, deadline));
  done_(batch);
  return fired;
}

}  // namespace millrace::scheduler
