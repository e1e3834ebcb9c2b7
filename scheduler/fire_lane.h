// A second connection to the ledger for the slots of a herd: two transactions are under way at a time.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "common/ledger/ledger.h"

namespace millrace::scheduler {

using OpenLedger = std::function<Result<std::unique_ptr<Ledger>>()>;

// One batch at a time, fired by a thread of its own; `done` is called there when it is in the ledger. The thread and the ledger
// (another audit writer: a chain of its own) come with the first batch. Start, Wait and busy are for one thread.
class FireLane {
 public:
  using Done = std::function<void(const FireBatch&)>;
  FireLane(OpenLedger open, OwnerId who, Done done) : open_(std::move(open)), who_(who), done_(std::move(done)) {}
  ~FireLane();
  FireLane(const FireLane&) = delete;
  FireLane& operator=(const FireLane&) = delete;

  bool busy() const;
  // The batch must live until Wait has returned. REQUIRES: what was started before was waited for.
  void Start(const FireBatch& batch, MonoTime deadline);
  // What became of the batch; waits until it is known. REQUIRES: one was started.
  Result<FireResult> Wait();

 private:
  void Work();
  Result<FireResult> Fire(const FireBatch& batch, MonoTime deadline);

  const OpenLedger open_;
  const OwnerId who_;
  const Done done_;
  std::unique_ptr<Ledger> ledger_;  // the thread's
  std::thread thread_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  const FireBatch* batch_ = nullptr;  // from here on guarded by mutex_; set: being fired
  MonoTime deadline_{};
  std::optional<Result<FireResult>> result_;
  bool stop_ = false;
};

}  // namespace millrace::scheduler
