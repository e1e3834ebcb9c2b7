#include "worker/progress_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "common/base/fd.h"
#include "common/wire/text.h"

namespace millrace::worker {
namespace {

constexpr std::size_t kShownBytesMax = 64;

std::string_view SkipBlanks(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(" \t\r"), text.size()));
}

// Takes a number off the front of `text`.
bool TakeNumber(std::string_view& text, std::int64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || out < 0 || text.front() == '-') return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

}  // namespace

std::optional<ProgressCounts> ParseProgress(std::string_view line) {
  ProgressCounts counts;
  std::string_view rest = SkipBlanks(line);
  if (!TakeNumber(rest, counts.rows)) return std::nullopt;
  const std::size_t left = rest.size();
  rest = SkipBlanks(rest);
  if (rest.empty()) return counts;
  const bool apart = rest.size() < left;
  if (!apart || !TakeNumber(rest, counts.bytes) || !SkipBlanks(rest).empty()) return std::nullopt;
  return counts;
}

Result<std::optional<ProgressCounts>> ReadProgressFile(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (file.get() < 0 && errno == ENOENT) return std::nullopt;
  struct stat about{};
  if (file.get() < 0 || ::fstat(file.get(), &about) != 0)
    return Fail(ErrorCode::kInvalidArgument, "it cannot be read: {}", std::strerror(errno));
  if (!S_ISREG(about.st_mode)) return Fail(ErrorCode::kInvalidArgument, "it is no plain file");
  std::array<char, kProgressBytesMax> buffer;
  const auto size = static_cast<std::size_t>(about.st_size);
  const std::size_t from = size - std::min(size, buffer.size());
  const ssize_t n = ::pread(file.get(), buffer.data(), buffer.size(), static_cast<off_t>(from));
  if (n < 0) return Fail(ErrorCode::kInvalidArgument, "it cannot be read: {}", std::strerror(errno));
  if (n == 0) return std::nullopt;
  std::string_view line(buffer.data(), static_cast<std::size_t>(n));
  const std::size_t end = line.rfind('\n');
  const std::size_t before = end == std::string_view::npos || end == 0 ? std::string_view::npos : line.rfind('\n', end - 1);
  // Without the end of the line before it, its beginning may be what was not read.
  if (end == std::string_view::npos || (before == std::string_view::npos && from > 0))
    return Fail(ErrorCode::kInvalidArgument, "it does not end with a whole line of at most {} bytes", kProgressBytesMax);
  line = line.substr(before + 1, end - before - 1);
  const auto counts = ParseProgress(line);
  if (!counts)
    return Fail(ErrorCode::kInvalidArgument, "'{}' is not 'ROWS BYTES', two integers from 0 on",
                wire::CleanText(line, kShownBytesMax));
  return counts;
}

}  // namespace millrace::worker
