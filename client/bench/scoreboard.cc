#include "client/bench/scoreboard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace millrace::bench {

void Bump(std::uint64_t& word, std::uint64_t by) {
  const std::atomic_ref ref(word);
  ref.store(ref.load(std::memory_order_relaxed) + by, std::memory_order_release);
}

std::uint64_t Peek(const std::uint64_t& word) {
  return std::atomic_ref(const_cast<std::uint64_t&>(word)).load(std::memory_order_acquire);
}

Result<Scoreboard> Scoreboard::Open(const std::string& path, std::uint64_t jobs, std::uint32_t handlers) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return Fail(ErrorCode::kUnavailable, "cannot open {}: {}", path, std::strerror(errno));
  const std::size_t size = sizeof(HandlerScore) * handlers + jobs;
  void* at = MAP_FAILED;
  if (::ftruncate(fd, static_cast<off_t>(size)) == 0) at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (at == MAP_FAILED) return Fail(ErrorCode::kUnavailable, "cannot map {} bytes of {}: {}", size, path, std::strerror(error));
  Scoreboard board;
  board.scores_ = static_cast<HandlerScore*>(at);
  board.marks_ = static_cast<std::uint8_t*>(at) + sizeof(HandlerScore) * handlers;
  board.jobs_ = jobs;
  board.handlers_ = handlers;
  return board;
}

void Scoreboard::Mark(std::uint64_t number) {
  if (number >= jobs_) return;
  const std::atomic_ref mark(marks_[number]);  // two processes may run one job: that is what is looked for
  if (mark.fetch_add(1, std::memory_order_relaxed) == 255) mark.store(255, std::memory_order_relaxed);
}

std::uint64_t Scoreboard::Executed() const {
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < handlers_; ++i) sum += Peek(scores_[i].executed);
  return sum;
}

std::uint64_t Scoreboard::Recorded() const {
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < handlers_; ++i) sum += Peek(scores_[i].recorded);
  return sum;
}

}  // namespace millrace::bench
