// An ext4 file system of a test's own that can lose its power: what was not synced is gone, as the file system has it
// (contents, sizes, names), and what was is there after the journal's recovery. It can also be small enough to be full.
//
// The model: the file system's shutdown call (EXT4_IOC_SHUTDOWN without a flush of the log) stops every write between the page
// cache and the disk at one instant; mounting again recovers the journal. A disk is assumed to keep all that it was given
// before that instant: a drive that lies about its own cache, reordered or torn sectors are not modelled.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"

namespace millrace::testing {

// Why this machine cannot do it (not root, no loop devices, no mkfs.ext4); empty: it can.
std::string WhyNoVolume();

// Moves this process and its future children into a mount namespace of their own, so that nothing stays mounted when they
// end, however they end. Call it once, on the main thread before there are others.
Result<void> EnterPrivateMounts();

// Not thread-safe. Unmounted and gone with the object, or with the process.
class Volume {
 public:
  // Mounted at `path`, which is made. The bytes live in memory where /dev/shm is there, else in the temporary folder.
  static Result<Volume> Make(const std::string& path, std::uint64_t bytes);
  Volume(Volume&& other) noexcept;
  Volume& operator=(Volume&&) = delete;
  ~Volume();

  const std::string& path() const { return path_; }
  // From now on every write fails, and what was not synced will not come back.
  Result<void> LosePower();
  // After LosePower and the end of all processes that have files open there: the state that was durable. kTimedOut: somebody
  // still has something open.
  Result<void> Restore();

 private:
  Volume() = default;
  Result<void> Mount();
  Result<void> Unmount();

  std::string path_, device_;
  int device_fd_ = -1;  // keeps the loop device while nothing is mounted
  bool mounted_ = false;
};

}  // namespace millrace::testing
