#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "tests/support/fault_shim.h"

namespace millrace::testing {
namespace {

std::atomic_ref<std::int64_t> Shared(std::int64_t& value) { return std::atomic_ref<std::int64_t>(value); }

}  // namespace

Result<ShimControl> ShimControl::Make(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return Fail(ErrorCode::kRejected, "{}: {}", path, std::strerror(errno));
  ::fchmod(fd, 0666);  // PostgreSQL is another user
  void* memory = ::ftruncate(fd, sizeof(ShimState)) == 0
                     ? ::mmap(nullptr, sizeof(ShimState), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                     : MAP_FAILED;
  ::close(fd);
  if (memory == MAP_FAILED) return Fail(ErrorCode::kRejected, "{}: {}", path, std::strerror(errno));
  ShimControl control;
  control.path_ = path;
  control.state_ = static_cast<ShimState*>(memory);
  return control;
}

ShimControl::ShimControl(ShimControl&& other) noexcept
    : path_(std::move(other.path_)), state_(std::exchange(other.state_, nullptr)) {}

ShimControl& ShimControl::operator=(ShimControl&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(state_, other.state_);
  return *this;
}

ShimControl::~ShimControl() {
  if (state_ != nullptr) ::munmap(state_, sizeof(ShimState));
}

std::vector<std::pair<std::string, std::string>> ShimControl::Env() const {
  return {{"LD_PRELOAD", MILLRACE_FAULT_SHIM}, {"FAULT_SHIM_FILE", path_}};
}

void ShimControl::StepClockTo(Millis offset) {
  Shared(state_->clock_offset_ns).store(std::chrono::duration_cast<std::chrono::nanoseconds>(offset).count());
}

void ShimControl::FailFsyncs(bool fail) { Shared(state_->fsync_fails).store(fail ? 1 : 0); }

std::int64_t ShimControl::fsyncs_failed() const { return Shared(state_->fsyncs_failed).load(); }

}  // namespace millrace::testing
