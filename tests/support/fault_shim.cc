// The preloaded side: libc's clocks and syncs, by system call. Nothing here may allocate or throw; it runs in signal handlers
// and before main.
#include "tests/support/fault_shim.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

namespace {

using millrace::testing::ShimState;

constexpr long kNanos = 1'000'000'000;

ShimState* Map() {
  const char* path = std::getenv("FAULT_SHIM_FILE");
  if (path == nullptr) return nullptr;
  const int fd = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC));
  if (fd < 0) return nullptr;
  void* memory = ::mmap(nullptr, sizeof(ShimState), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::syscall(SYS_close, fd);
  return memory == MAP_FAILED ? nullptr : static_cast<ShimState*>(memory);
}

// Mapped at the first call, which is before there are threads.
ShimState* State() {
  static std::atomic<ShimState*> state{nullptr};
  static std::atomic<bool> tried{false};
  if (!tried.exchange(true)) state = Map();
  return state;
}

void Shift(clockid_t id, timespec* ts) {
  ShimState* state = State();
  if (state == nullptr || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return;
  const long long offset = __atomic_load_n(&state->clock_offset_ns, __ATOMIC_RELAXED);
  const long long all = static_cast<long long>(ts->tv_sec) * kNanos + ts->tv_nsec + offset;
  ts->tv_sec = static_cast<time_t>(all / kNanos);
  ts->tv_nsec = static_cast<long>(all % kNanos);
}

bool SyncFails() {
  ShimState* state = State();
  if (state == nullptr || __atomic_load_n(&state->fsync_fails, __ATOMIC_RELAXED) == 0) return false;
  __atomic_fetch_add(&state->fsyncs_failed, 1, __ATOMIC_RELAXED);
  errno = EIO;
  return true;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int clock_gettime(clockid_t id, struct timespec* ts) {
  const int done = static_cast<int>(::syscall(SYS_clock_gettime, id, ts));
  if (done == 0) Shift(id, ts);
  return done;
}

__attribute__((visibility("default"))) int gettimeofday(struct timeval* tv, void*) {
  timespec ts{};
  if (clock_gettime(CLOCK_REALTIME, &ts) != 0) return -1;
  tv->tv_sec = ts.tv_sec;
  tv->tv_usec = static_cast<suseconds_t>(ts.tv_nsec / 1000);
  return 0;
}

__attribute__((visibility("default"))) time_t time(time_t* out) {
  timespec ts{};
  clock_gettime(CLOCK_REALTIME, &ts);
  if (out != nullptr) *out = ts.tv_sec;
  return ts.tv_sec;
}

__attribute__((visibility("default"))) int fsync(int fd) {
  return SyncFails() ? -1 : static_cast<int>(::syscall(SYS_fsync, fd));
}

__attribute__((visibility("default"))) int fdatasync(int fd) {
  return SyncFails() ? -1 : static_cast<int>(::syscall(SYS_fdatasync, fd));
}

__attribute__((visibility("default"))) int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
  return SyncFails() ? -1 : static_cast<int>(::syscall(SYS_sync_file_range, fd, offset, bytes, flags));
}

}  // extern "C"
