#include "worker/stage/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <glob.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

namespace millrace {
namespace {

class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::unexpected<Error> SystemError(std::string_view what, const std::string& path, int code) {
  const ErrorCode kind = code == ENOENT                    ? ErrorCode::kNotFound
                         : code == EACCES || code == EPERM ? ErrorCode::kRejected
                                                           : ErrorCode::kUnavailable;
  return Fail(kind, "cannot {} {}: {}", what, path, std::strerror(code));
}

Result<int> OpenRegular(const std::string& path, struct stat* status) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path, errno);
  if (::fstat(fd, status) != 0 || !S_ISREG(status->st_mode)) {
    ::close(fd);
    return Fail(ErrorCode::kRejected, "{} is not a regular file", path);
  }
  return fd;
}

struct FreeDigest {
  void operator()(EVP_MD_CTX* context) const noexcept { EVP_MD_CTX_free(context); }
};

}  // namespace

std::string ParentOf(const std::string& path) { return std::filesystem::path(path).parent_path().string(); }

namespace {
std::string Absolute(std::string_view base_dir, std::string_view pattern) {
  const std::filesystem::path full = pattern.starts_with('/') ? std::string(pattern) : fmt::format("{}/{}", base_dir, pattern);
  return full.lexically_normal().string();  // so that names compare equal with the engine's allow-list
}
}  // namespace

std::string GlobFolder(std::string_view base_dir, std::string_view pattern) {
  const std::string full = Absolute(base_dir, pattern);
  const std::size_t glob_at = full.find_first_of("*?[");
  const std::string fixed = full.substr(0, glob_at);
  return fixed.substr(0, std::max<std::size_t>(1, fixed.rfind('/')));
}

namespace {

// Patterns with a component `**`, which glob(3) takes for `*`.
class RecursiveGlob {
 public:
  explicit RecursiveGlob(const std::string& pattern) {
    for (std::size_t at = 1; at <= pattern.size();) {
      const std::size_t end = std::min(pattern.find('/', at), pattern.size());
      if (end > at) parts_.push_back(pattern.substr(at, end - at));
      at = end + 1;
    }
  }

  Result<std::vector<std::string>> Run() {
    MILLRACE_TRY(Walk("", 0));
    std::sort(found_.begin(), found_.end());  // `a/**/**/x` reaches a file in several ways
    found_.erase(std::unique(found_.begin(), found_.end()), found_.end());
    return std::move(found_);
  }

 private:
  Result<void> Walk(const std::string& folder, std::size_t part) {
    if (part == parts_.size()) return {};
    const std::string& pattern = parts_[part];
    const bool last = part + 1 == parts_.size();
    if (pattern.find_first_of("*?[") == std::string::npos) return Take(folder + "/" + pattern, part, last);
    const bool any_depth = pattern == "**";
    if (any_depth && !last) MILLRACE_TRY(Walk(folder, part + 1));  // no folder at all
    MILLRACE_TRY_ASSIGN(const std::vector<std::string> names, List(folder));
    for (const std::string& name : names) {
      const std::string path = folder + "/" + name;
      if (!any_depth) {
        if (::fnmatch(pattern.c_str(), name.c_str(), FNM_PERIOD) == 0) MILLRACE_TRY(Take(path, part, last));
        continue;
      }
      if (name.starts_with('.')) continue;
      struct stat status{};
      if (::lstat(path.c_str(), &status) != 0) continue;  // gone meanwhile
      if (S_ISDIR(status.st_mode)) {
        MILLRACE_TRY(Walk(path, part));
      } else if (last) {
        MILLRACE_TRY(Take(path, part, last));
      }
    }
    return {};
  }

  Result<void> Take(const std::string& path, std::size_t part, bool last) {
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0) return {};
    if (last && S_ISREG(status.st_mode)) found_.push_back(path);
    return !last && S_ISDIR(status.st_mode) ? Walk(path, part + 1) : Result<void>();
  }

  Result<std::vector<std::string>> List(const std::string& folder) {
    if (++folders_ > kGlobFoldersMax)
      return Fail(ErrorCode::kLimit, "'**' leads through more than {} folders", kGlobFoldersMax);
    std::vector<std::string> names;
    std::error_code error;
    std::filesystem::directory_iterator entries(folder.empty() ? "/" : folder, error);
    for (const std::filesystem::directory_iterator end; !error && entries != end; entries.increment(error))
      names.push_back(entries->path().filename().string());
    if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
      return Fail(ErrorCode::kUnavailable, "cannot list {}: {}", folder, error.message());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::vector<std::string> parts_, found_;
  int folders_ = 0;
};

int StopUnlessMissing(const char*, int code) { return code == ENOENT || code == ENOTDIR ? 0 : 1; }

}  // namespace

Result<std::vector<std::string>> ExpandGlob(std::string_view base_dir, std::string_view pattern) {
  const std::string full = Absolute(base_dir, pattern);
  bool recursive = false;
  for (std::size_t at = full.find("**"); at != std::string::npos; at = full.find("**", at + 2)) {
    recursive = true;
    if (full[at - 1] != '/' || (at + 2 < full.size() && full[at + 2] != '/'))
      return Fail(ErrorCode::kInvalidArgument, "path '{}': '**' stands alone between slashes, as in data/**/*.csv", pattern);
  }
  if (recursive) return RecursiveGlob(full).Run();
  glob_t found{};
  const int code = ::glob(full.c_str(), 0, StopUnlessMissing, &found);
  std::vector<std::string> paths;
  for (std::size_t i = 0; code == 0 && i < found.gl_pathc; ++i) {
    struct stat status{};
    if (::stat(found.gl_pathv[i], &status) == 0 && S_ISREG(status.st_mode)) paths.emplace_back(found.gl_pathv[i]);
  }
  ::globfree(&found);
  if (code != 0 && code != GLOB_NOMATCH)
    return Fail(ErrorCode::kUnavailable, "cannot list '{}': {}", pattern, std::strerror(errno));
  return paths;
}

Result<FileStamp> StampFile(const std::string& path) {
  struct stat status{};
  MILLRACE_TRY_ASSIGN(const int fd, OpenRegular(path, &status));
  ::close(fd);
  return FileStamp{.bytes = status.st_size,
                   .mtime_us = std::int64_t{status.st_mtim.tv_sec} * 1'000'000 + status.st_mtim.tv_nsec / 1000,
                   .changed_ns = std::int64_t{status.st_ctim.tv_sec} * 1'000'000'000 + status.st_ctim.tv_nsec,
                   .inode = status.st_ino};
}

Result<std::string> Sha256OfFile(const std::string& path, const std::function<Result<void>(std::string_view)>& also) {
  struct stat status{};
  MILLRACE_TRY_ASSIGN(const int raw_fd, OpenRegular(path, &status));
  const OwnedFd fd(raw_fd);
  const std::unique_ptr<EVP_MD_CTX, FreeDigest> context(EVP_MD_CTX_new());
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1)
    return Fail(ErrorCode::kUnavailable, "sha256: cannot start");
  // No larger than the file: the pages of an unused buffer would cost a small one more than its digest.
  std::vector<char> buffer(static_cast<std::size_t>(std::clamp<std::int64_t>(status.st_size, 4096, std::int64_t{1} << 20)));
  while (true) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError("read", path, errno);
    if (got == 0) break;
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(got));
    if (also) MILLRACE_TRY(also({buffer.data(), static_cast<std::size_t>(got)}));
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &size);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

Result<void> EnsureDirectory(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) return Fail(ErrorCode::kUnavailable, "cannot create folder {}: {}", path, code.message());
  return {};
}

namespace {
Result<void> SyncPath(const std::string& path, int flags) {
  const OwnedFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd.get() < 0) return SystemError("open", path, errno);
  if (::fsync(fd.get()) != 0) return SystemError("sync", path, errno);
  return {};
}
}  // namespace

Result<void> SyncFile(const std::string& path) { return SyncPath(path, O_RDONLY); }
Result<void> SyncDirectory(const std::string& path) { return SyncPath(path, O_RDONLY | O_DIRECTORY); }

void ParallelSync::Start(Result<void> (*sync)(const std::string&), std::string path) {
  try {
    running_.push_back(std::async(std::launch::async, sync, path));
  } catch (const std::system_error&) {  // no thread to be had
    running_.push_back(std::async(std::launch::deferred, sync, std::move(path)));
  }
}

Result<void> ParallelSync::Wait() {
  Result<void> all;
  for (auto& one : running_) {
    if (auto done = one.get(); !done && all) all = std::move(done);
  }
  running_.clear();
  return all;
}

Result<std::string> ReadWholeFile(const std::string& path, std::size_t bytes_max) {
  struct stat status{};
  MILLRACE_TRY_ASSIGN(const int raw_fd, OpenRegular(path, &status));
  const OwnedFd fd(raw_fd);
  if (static_cast<std::size_t>(status.st_size) > bytes_max)
    return Fail(ErrorCode::kLimit, "{} has {} bytes, limit {}", path, status.st_size, bytes_max);
  std::string content(static_cast<std::size_t>(status.st_size), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::read(fd.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return SystemError("read", path, got == 0 ? EIO : errno);
    done += static_cast<std::size_t>(got);
  }
  return content;
}

Result<void> PublishFile(const std::string& path, std::string_view content, std::string_view temporary_suffix,
                         ParallelSync* before) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, temporary_suffix);
  {
    const OwnedFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return SystemError("create", temporary, errno);
    std::size_t done = 0;
    while (done < content.size()) {
      const ssize_t put = ::write(fd.get(), content.data() + done, content.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return SystemError("write", temporary, errno);
      done += static_cast<std::size_t>(put);
    }
    if (::fsync(fd.get()) != 0) return SystemError("sync", temporary, errno);
  }
  if (before != nullptr) {
    if (auto synced = before->Wait(); !synced) {
      ::unlink(temporary.c_str());
      return synced;
    }
  }
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) != 0) {
    const int code = errno;
    ::unlink(temporary.c_str());
    if (code == EEXIST) return Fail(ErrorCode::kConflict, "{} exists already", path);
    return SystemError("publish", path, code);
  }
  return SyncDirectory(ParentOf(path));
}

}  // namespace millrace
