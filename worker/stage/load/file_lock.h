// A lock between processes, as a file.
#pragma once

#include <filesystem>

#include "common/base/clock.h"
#include "worker/stage/load/fence.h"

namespace millrace::load {

// Held until destroyed, or until its process ends. Not thread-safe.
class FileLock {
 public:
  // Creates the file if need be and waits at most `patience`. Class destination_conflict, retryable: another process holds it
  // for so long (frozen, perhaps).
  static Outcome<FileLock> Take(const std::filesystem::path& path, Millis patience);

  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace millrace::load
