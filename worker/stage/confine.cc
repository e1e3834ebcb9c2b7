#include "worker/stage/confine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/landlock.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace millrace {
namespace {

constexpr std::uint64_t kReadFile = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr std::uint64_t kReadDirectory = kReadFile | LANDLOCK_ACCESS_FS_READ_DIR;
// Rights of ABI 2 and 3, by value: Debian 12's header stops earlier.
constexpr std::uint64_t kRefer = 1ULL << 13;
constexpr std::uint64_t kTruncate = 1ULL << 14;
constexpr std::uint64_t kIoctl = 1ULL << 15;
constexpr std::uint64_t kAllAbi1 = (1ULL << 13) - 1;

constexpr std::string_view kHelp = "run on a kernel with Landlock and namespaces, or set worker.sandbox: off";

std::unexpected<Error> CannotConfine(std::string_view part, int code) {
  return Fail(ErrorCode::kUnsupported, "the stage cannot be confined: {}: {}; {}", part, std::strerror(code), kHelp);
}

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

enum class Missing : bool { kError, kSkip };

Result<void> AllowPath(int ruleset, const std::string& path, std::uint64_t rights, Missing missing) {
  const OwnedFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
  if (fd.get() < 0) {
    if (missing == Missing::kSkip && (errno == ENOENT || errno == ENOTDIR)) return {};
    return CannotConfine(path, errno);
  }
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return CannotConfine(path, errno);
  if (!S_ISDIR(status.st_mode)) rights &= kReadFile | LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate;
  landlock_path_beneath_attr rule{.allowed_access = rights, .parent_fd = fd.get()};
  if (::syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) return CannotConfine(path, errno);
  return {};
}

Result<void> RestrictFiles(const ConfineOptions& options) {
  const long abi = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (abi < 1) return CannotConfine("Landlock", errno);
  std::uint64_t handled = kAllAbi1;
  if (abi >= 2) handled |= kRefer;
  if (abi >= 3) handled |= kTruncate;
  if (abi >= 5) handled |= kIoctl;
  const landlock_ruleset_attr attributes{.handled_access_fs = handled};
  const OwnedFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0)));
  if (ruleset.get() < 0) return CannotConfine("Landlock", errno);
  constexpr std::uint64_t kNever = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK |
                                   LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SYM;
  for (const auto& path : options.read_files) MILLRACE_TRY(AllowPath(ruleset.get(), path, kReadFile, Missing::kSkip));
  for (const auto& path : options.read_directories)
    MILLRACE_TRY(AllowPath(ruleset.get(), path, kReadDirectory, Missing::kSkip));
  for (const auto& path : options.write_directories) {
    MILLRACE_TRY(AllowPath(ruleset.get(), path, handled & ~kNever & ~kIoctl, Missing::kError));
  }
  for (const auto& path : options.write_files)
    MILLRACE_TRY(
        AllowPath(ruleset.get(), path, handled & (kReadFile | LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate), Missing::kError));
  constexpr std::uint64_t kNames = LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR |
                                   LANDLOCK_ACCESS_FS_REMOVE_FILE | kRefer;
  for (const auto& path : options.name_directories)
    MILLRACE_TRY(AllowPath(ruleset.get(), path, handled & kNames, Missing::kError));
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return CannotConfine("Landlock", errno);
  return {};
}

std::uint64_t AddressSpaceNow() {
  std::ifstream statm("/proc/self/statm");
  std::uint64_t pages = 0;
  statm >> pages;
  return pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

Result<void> Limit(int resource, std::uint64_t value, std::string_view name) {
  rlimit current{};
  if (::getrlimit(static_cast<__rlimit_resource_t>(resource), &current) != 0) return CannotConfine(name, errno);
  const rlim_t wanted = current.rlim_max == RLIM_INFINITY ? value : std::min<rlim_t>(value, current.rlim_max);
  const rlimit next{.rlim_cur = wanted, .rlim_max = wanted};
  if (::setrlimit(static_cast<__rlimit_resource_t>(resource), &next) != 0) return CannotConfine(name, errno);
  return {};
}

}  // namespace

int CountThreads() {
  int count = 0;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", code)) count += entry.exists(code) ? 1 : 0;
  return count;
}

Result<void> LimitResources(const ConfineOptions& options) {
  MILLRACE_TRY(Limit(RLIMIT_CORE, 0, "RLIMIT_CORE"));
  MILLRACE_TRY(Limit(RLIMIT_NOFILE, 4096, "RLIMIT_NOFILE"));
  if (options.memory_bytes_max > 0) {
    // Address space is more than memory: each thread brings a stack and an arena, and allocators keep what they freed mapped.
    constexpr std::uint64_t kFixed = 384ULL << 20, kPerThread = 160ULL << 20;
    const std::uint64_t room = options.memory_bytes_max + options.memory_bytes_max / 2 + kFixed +
                               kPerThread * static_cast<std::uint64_t>(std::max(1, options.threads));
    MILLRACE_TRY(Limit(RLIMIT_AS, AddressSpaceNow() + room, "RLIMIT_AS"));
  }
  return {};
}

Result<void> Confine(const ConfineOptions& options) {
  if (const int threads = CountThreads(); threads != 1) {
    return Fail(ErrorCode::kUnsupported, "the stage cannot be confined: {} threads run already; {}", threads, kHelp);
  }
  MILLRACE_TRY(LimitResources(options));
  if (!options.network && ::unshare(CLONE_NEWNET) != 0) {
    const int code = errno;
    // Without privileges a network namespace needs a user namespace of its own.
    if (code != EPERM || ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return CannotConfine("network namespace", code);
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return CannotConfine("no_new_privs", errno);
  return RestrictFiles(options);
}

}  // namespace millrace
