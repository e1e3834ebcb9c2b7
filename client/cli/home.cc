#include "client/cli/home.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace millrace::cli {

Result<void> MakeHome(const std::string& home) {
  std::error_code ec;
  const bool created = std::filesystem::create_directories(home, ec);
  if (ec) return Fail(ErrorCode::kInvalidArgument, "--home '{}': cannot create it: {}", home, ec.message());
  if (created) {
    if (::chmod(home.c_str(), 0700) == 0) return {};
    return Fail(ErrorCode::kInvalidArgument, "--home '{}': {}", home, std::strerror(errno));
  }
  struct stat about{};
  if (::stat(home.c_str(), &about) != 0)
    return Fail(ErrorCode::kInvalidArgument, "--home '{}': {}", home, std::strerror(errno));
  if (!S_ISDIR(about.st_mode))
    return Fail(ErrorCode::kInvalidArgument, "--home '{}' is not a directory: give another one", home);
  // Who may write in it could put a ledger or a key of his own in place of ours.
  if ((about.st_mode & S_IWOTH) != 0)
    return Fail(
        ErrorCode::kConflict,
        "--home '{}': everybody may write in it (mode {:04o}): give another one, or chmod o-w it if it is meant to be a home",
        home, about.st_mode & 07777U);
  return {};
}

Result<HomeLock> HomeLock::Acquire(const std::string& home, const std::string& command) {
  MILLRACE_TRY(MakeHome(home));
  const std::string path = home + "/lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return Fail(ErrorCode::kInvalidArgument, "--home '{}': cannot open its lock: {}", home, std::strerror(errno));
  HomeLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    char holder[256] = {};
    const ssize_t n = ::pread(fd, holder, sizeof holder - 1, 0);
    return Fail(ErrorCode::kConflict, "home '{}' is in use by {}: stop that process, or give another --home", home,
                n > 0 ? holder : "another process");
  }
  const std::string text = "process " + std::to_string(::getpid()) + " (" + command + ")";
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    return Fail(ErrorCode::kUnavailable, "home '{}': cannot write its lock: {}", home, std::strerror(errno));
  return lock;
}

HomeLock::HomeLock(HomeLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

HomeLock& HomeLock::operator=(HomeLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

HomeLock::~HomeLock() {
  if (fd_ >= 0) ::close(fd_);  // releases the lock; the file stays, or a second process could lock an unlinked one
}

}  // namespace millrace::cli
