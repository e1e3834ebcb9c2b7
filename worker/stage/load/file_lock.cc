#include "worker/stage/load/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

namespace millrace::load {
namespace {

constexpr Millis kFirstPause{2}, kLongestPause{100};

Failure CannotLock(const std::filesystem::path& path, int code) {
  const bool denied = code == EACCES || code == EPERM || code == EROFS;
  return Failure(denied ? "destination_rejected" : "destination_unavailable",
                 fmt::format("lock {}: {}", path.string(), std::strerror(code)), !denied);
}

}  // namespace

Outcome<FileLock> FileLock::Take(const std::filesystem::path& path, Millis patience) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return std::unexpected(CannotLock(path, errno));
  FileLock lock(fd);
  Millis pause = kFirstPause;
  for (Millis waited{0};; waited += pause, pause = std::min(pause * 2, kLongestPause)) {
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return std::unexpected(CannotLock(path, errno));
    if (waited >= patience)
      return std::unexpected(Failure(
          "destination_conflict",
          fmt::format("another process has held {} for {} s", path.string(), static_cast<double>(patience.count()) / 1000.0),
          true));
    std::this_thread::sleep_for(pause);
  }
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace millrace::load
