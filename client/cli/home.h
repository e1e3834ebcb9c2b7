// The home directory of an embedded installation: ledger, queue, lake, warehouse, checkpoints. One process at a time.
#pragma once

#include <string>

#include "common/base/result.h"

namespace millrace::cli {

// Creates the directory (mode 0700) when it is missing; an existing one is left as it is. kInvalidArgument: the path cannot be
// a home; kConflict: everybody may write in it.
Result<void> MakeHome(const std::string& home);

// Holds the home's lock while it lives. Movable.
class HomeLock {
 public:
  // Makes the home (MakeHome). `command` is shown to whoever finds it in use. kConflict names the process that holds it;
  // else as MakeHome.
  static Result<HomeLock> Acquire(const std::string& home, const std::string& command);
  HomeLock(HomeLock&& other) noexcept;
  HomeLock& operator=(HomeLock&& other) noexcept;
  HomeLock(const HomeLock&) = delete;
  HomeLock& operator=(const HomeLock&) = delete;
  ~HomeLock();

 private:
  explicit HomeLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace millrace::cli
