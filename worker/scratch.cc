#include "worker/scratch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace millrace::worker {
namespace {

constexpr std::string_view kPrefix = "millrace-";

std::string LockPath(const std::filesystem::path& folder) { return (folder / "lock").string(); }

// Another worker's sweep may have taken the folder between its making and its locking.
bool StillThere(const std::string& path, int fd) {
  struct stat held{}, there{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &there) == 0 && held.st_ino == there.st_ino &&
         held.st_dev == there.st_dev;
}

}  // namespace

Result<ScratchFolder> ScratchFolder::Make(const std::filesystem::path& parent, std::string_view id) {
  constexpr int kTries = 10;
  const std::filesystem::path folder = parent / fmt::format("{}{}", kPrefix, id);
  const std::string lock = LockPath(folder);
  for (int i = 0; i < kTries; ++i) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    const int fd = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 && errno != ENOENT)
      return Fail(ErrorCode::kUnavailable, "scratch folder '{}': {}", folder.string(), std::strerror(errno));
    if (fd < 0) continue;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && StillThere(lock, fd)) return ScratchFolder(folder.string(), fd);
    ::close(fd);
  }
  return Fail(ErrorCode::kUnavailable, "scratch folder '{}': another worker holds it", folder.string());
}

ScratchFolder::ScratchFolder(ScratchFolder&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

ScratchFolder::~ScratchFolder() {
  if (fd_ < 0) return;
  std::error_code error;
  // Without its lock the folder would be nobody's: it goes only together with the folder.
  bool empty = true;
  for (const auto& entry : std::filesystem::directory_iterator(path_, error))
    empty = empty && entry.path().filename() == "lock";
  if (empty && !error) std::filesystem::remove_all(path_, error);
  ::close(fd_);
}

int ScratchFolder::SweepDead(const std::filesystem::path& parent, const std::stop_token& stop) {
  int removed = 0;
  std::error_code error;
  std::filesystem::directory_iterator entries(parent, error);
  for (const std::filesystem::directory_iterator end; !error && entries != end && !stop.stop_requested();
       entries.increment(error)) {
    const std::filesystem::path folder = entries->path();
    struct stat status{};
    if (!folder.filename().string().starts_with(kPrefix)) continue;
    if (::lstat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != ::geteuid()) continue;
    const int fd = ::open(LockPath(folder).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) continue;  // no worker's scratch
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
      std::error_code gone;
      std::filesystem::remove_all(folder, gone);
      removed += gone ? 0 : 1;
    }
    ::close(fd);
  }
  return removed;
}

}  // namespace millrace::worker
