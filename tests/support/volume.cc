#include "tests/support/volume.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tests/support/process.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;

constexpr Millis kToolTimeout{30'000};
constexpr Millis kUnmountTimeout{15'000};
constexpr int kDeviceTries = 20;  // another process may be faster to take a free loop device

// linux/ext4.h is not installed everywhere. _IOR('X', 125, __u32); 2: without flushing the log.
constexpr unsigned long kShutdown = _IOR('X', 125, std::uint32_t);
constexpr std::uint32_t kNoLogFlush = 2;

std::unexpected<Error> Errno(std::string_view what) { return Fail(ErrorCode::kRejected, "{}: {}", what, std::strerror(errno)); }

// A loop device over `file`; the descriptor keeps it, and it goes when nobody has it any more.
Result<int> Attach(int file, std::string& name) {
  const int control = ::open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return Errno("/dev/loop-control");
  for (int i = 0; i < kDeviceTries; ++i) {
    const int number = ::ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) break;
    name = fmt::format("/dev/loop{}", number);
    const int device = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
    if (device < 0) break;
    if (::ioctl(device, LOOP_SET_FD, file) == 0) {
      loop_info64 info{};
      info.lo_flags = LO_FLAGS_AUTOCLEAR;
      ::ioctl(device, LOOP_SET_STATUS64, &info);
      ::close(control);
      return device;
    }
    ::close(device);
  }
  ::close(control);
  return Errno("no free loop device");
}

}  // namespace

std::string WhyNoVolume() {
  if (::geteuid() != 0) return "only root can mount";
  if (std::system("command -v mkfs.ext4 >/dev/null 2>&1") != 0) return "mkfs.ext4 is not installed. Run: ops/setup";
  if (::access("/dev/loop-control", R_OK | W_OK) != 0) return "there are no loop devices";
  return "";
}

Result<void> EnterPrivateMounts() {
  if (::unshare(CLONE_NEWNS) != 0) return Errno("unshare");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return Errno("mount --make-rprivate /");
  return {};
}

Result<Volume> Volume::Make(const std::string& path, std::uint64_t bytes) {
  std::string pattern = (fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path()) / "mr_volume_XXXXXX";
  const int file = ::mkostemp(pattern.data(), O_CLOEXEC);
  if (file < 0) return Errno(pattern);
  Result<int> made = ::ftruncate(file, static_cast<off_t>(bytes)) != 0
                         ? Result<int>(Errno("ftruncate"))
                         : RunToEnd({.argv = {"mkfs.ext4", "-q", "-F", pattern}, .env = {}, .log = {}}, kToolTimeout);
  Volume volume;
  volume.path_ = path;
  if (made && *made == 0) {
    auto device = Attach(file, volume.device_);
    if (device)
      volume.device_fd_ = *device;
    else
      made = std::unexpected(device.error());
  } else if (made) {
    made = Fail(ErrorCode::kRejected, "mkfs.ext4: exit code {}", *made);
  }
  ::unlink(pattern.c_str());  // the device has it
  ::close(file);
  if (!made) return std::unexpected(made.error());
  std::error_code ec;
  fs::create_directories(path, ec);
  MILLRACE_TRY(volume.Mount());
  return volume;
}

Volume::Volume(Volume&& other) noexcept
    : path_(std::move(other.path_)),
      device_(std::move(other.device_)),
      device_fd_(std::exchange(other.device_fd_, -1)),
      mounted_(std::exchange(other.mounted_, false)) {}

Volume::~Volume() {
  if (mounted_ && !Unmount()) ::umount2(path_.c_str(), MNT_DETACH);
  if (device_fd_ >= 0) ::close(device_fd_);
}

Result<void> Volume::Mount() {
  if (::mount(device_.c_str(), path_.c_str(), "ext4", MS_NOATIME, nullptr) != 0) return Errno(path_);
  mounted_ = true;
  ::chmod(path_.c_str(), 0755);
  return {};
}

Result<void> Volume::Unmount() {
  const SystemClock clock;
  for (const MonoTime until = clock.Now() + kUnmountTimeout; ::umount2(path_.c_str(), 0) != 0; SleepFor(Millis{20})) {
    if (errno != EBUSY) return Errno(path_);
    if (clock.Now() >= until) return Fail(ErrorCode::kTimedOut, "{}: somebody has files open there", path_);
  }
  mounted_ = false;
  return {};
}

Result<void> Volume::LosePower() {
  const int root = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (root < 0) return Errno(path_);
  std::uint32_t how = kNoLogFlush;
  const int done = ::ioctl(root, kShutdown, &how);
  const int why = errno;
  ::close(root);
  errno = why;
  if (done != 0) return Errno("EXT4_IOC_SHUTDOWN");
  return {};
}

Result<void> Volume::Restore() {
  MILLRACE_TRY(Unmount());
  return Mount();
}

}  // namespace millrace::testing
