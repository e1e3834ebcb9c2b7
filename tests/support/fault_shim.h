// A library for LD_PRELOAD that makes one process live in another time, and its fsyncs fail, when a test says so. The process
// needs the environment of ShimControl::Env; without its file the library does nothing. Test only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::testing {

// What the shim reads at each call, in a file that both sides map.
struct ShimState {
  std::int64_t clock_offset_ns;  // added to CLOCK_REALTIME; the monotonic clock is never touched
  std::int64_t fsync_fails;      // not 0: fsync, fdatasync and sync_file_range answer EIO, and nothing is synced
  std::int64_t fsyncs_failed;    // how many did
};

// The test's side of one process's shim. Not thread-safe; the process sees a change at its next call.
class ShimControl {
 public:
  // Makes the file.
  static Result<ShimControl> Make(const std::string& path);
  ShimControl(ShimControl&&) noexcept;
  ShimControl& operator=(ShimControl&&) noexcept;
  ~ShimControl();

  std::vector<std::pair<std::string, std::string>> Env() const;
  // The process's wall clock is this far from the true one.
  void StepClockTo(Millis offset);
  void FailFsyncs(bool fail);
  std::int64_t fsyncs_failed() const;

 private:
  ShimControl() = default;
  std::string path_;
  ShimState* state_ = nullptr;
};

}  // namespace millrace::testing
