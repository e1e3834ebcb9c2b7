#include "worker/stage/frames.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "common/base/limits.h"

namespace millrace {
namespace {

Result<void> ReadAll(int fd, char* out, std::size_t size) {
  while (size > 0) {
    const ssize_t got = ::read(fd, out, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return Fail(ErrorCode::kUnavailable, "read of a frame: {}", got == 0 ? "end of stream" : std::strerror(errno));
    out += got;
    size -= static_cast<std::size_t>(got);
  }
  return {};
}

}  // namespace

Result<std::string> ReadFrame(int fd) {
  std::array<unsigned char, 4> head{};
  MILLRACE_TRY(ReadAll(fd, reinterpret_cast<char*>(head.data()), head.size()));
  const std::uint32_t size =
      std::uint32_t{head[0]} | std::uint32_t{head[1]} << 8 | std::uint32_t{head[2]} << 16 | std::uint32_t{head[3]} << 24;
  if (size > kFrameBytesMax) return Fail(ErrorCode::kLimit, "a frame of {} bytes, limit {}", size, kFrameBytesMax);
  std::string json(size, '\0');
  MILLRACE_TRY(ReadAll(fd, json.data(), json.size()));
  return json;
}

Result<void> WriteFrame(int fd, std::string_view json) {
  if (json.size() > kFrameBytesMax)
    return Fail(ErrorCode::kLimit, "a frame of {} bytes, limit {}", json.size(), kFrameBytesMax);
  const auto size = static_cast<std::uint32_t>(json.size());
  std::string frame;
  for (int shift = 0; shift < 32; shift += 8) frame += static_cast<char>((size >> shift) & 0xff);
  frame += json;
  std::size_t done = 0;
  while (done < frame.size()) {
    const ssize_t put = ::write(fd, frame.data() + done, frame.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Fail(ErrorCode::kUnavailable, "write of a frame: {}", std::strerror(errno));
    done += static_cast<std::size_t>(put);
  }
  return {};
}

void ProgressWriter::Report(std::int64_t rows, std::int64_t bytes) {
  const std::scoped_lock lock(mutex_);
  const MonoTime now = clock_.Now();
  if (closed_ || now - last_ < 200ms || (rows <= rows_ && bytes <= bytes_)) return;
  last_ = now;
  rows_ = std::max(rows, rows_);
  bytes_ = std::max(bytes, bytes_);
  static_cast<void>(WriteFrame(fd_, fmt::format(R"({{"progress":{{"rows":{},"bytes":{}}}}})", rows_, bytes_)));
}

void ProgressWriter::Close() {
  const std::scoped_lock lock(mutex_);
  closed_ = true;
}

}  // namespace millrace
