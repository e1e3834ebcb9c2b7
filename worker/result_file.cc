#include "worker/result_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "common/base/fd.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/crypto/audit.h"
#include "common/wire/text.h"

namespace millrace::worker {
namespace {

Fd Open(const std::string& path, int flags) { return Fd(::open(path.c_str(), flags | O_CLOEXEC, 0644)); }

std::unexpected<Error> Failed(const std::string& path) {
  return Fail(ErrorCode::kUnavailable, "result file '{}': {}", path, std::strerror(errno));
}

std::unexpected<Error> NoPlainFile(std::string_view what) {
  return Fail(ErrorCode::kInvalidArgument,
              "$MILLRACE_RESULT is {}: what a command gives back it writes into a plain file of that name", what);
}

Result<void> WriteDurably(const std::string& path, std::string_view bytes) {
  const Fd file = Open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
  if (file.get() < 0) return Failed(path);
  while (!bytes.empty()) {
    const ssize_t n = ::write(file.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed(path);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(file.get()) != 0) return Failed(path);
  return {};
}

Result<void> SyncFolder(const std::string& path) {
  const Fd folder = Open(path, O_RDONLY | O_DIRECTORY);
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) return Failed(path);
  return {};
}

}  // namespace

Result<ResultFile> WriteResultFile(const std::string& lake, RunId run, JobId job, Token token, std::string_view bytes) {
  const std::string folder = "results/" + run.ToString();
  ResultFile file{.path = fmt::format("{}/{}-{}", folder, job.ToString(), token.value()),
                  .bytes = static_cast<std::int64_t>(bytes.size()),
                  .sha256 = ToHex(Sha256(bytes))};
  std::error_code error;
  std::filesystem::create_directories(lake + "/" + folder, error);
  if (error) return Fail(ErrorCode::kUnavailable, "folder '{}/{}': {}", lake, folder, error.message());
  const std::string path = lake + "/" + file.path, fresh = path + ".tmp";
  MILLRACE_TRY(WriteDurably(fresh, bytes));
  if (::rename(fresh.c_str(), path.c_str()) != 0) return Failed(path);
  for (const std::string& parent : {lake + "/" + folder, lake + "/results", lake}) MILLRACE_TRY(SyncFolder(parent));
  return file;
}

Result<void> TakeOutput(const std::string& path, const std::string& lake, RunId run, JobId job, Token token,
                        StageResult& result) {
  const Fd file = Open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if (file.get() < 0 && errno == ENOENT) return {};
  if (file.get() < 0 && errno == ELOOP) return NoPlainFile("a symbolic link");
  if (file.get() < 0 && errno == ENXIO) return NoPlainFile("a socket");
  struct stat about{};
  if (file.get() < 0 || ::fstat(file.get(), &about) != 0) return Failed(path);
  if (S_ISDIR(about.st_mode)) return NoPlainFile("a folder");
  if (!S_ISREG(about.st_mode)) return NoPlainFile("a pipe or device");
  std::string bytes(std::min(static_cast<std::size_t>(about.st_size), kOutputBytesMax + 1), '\0');
  std::size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t n = ::read(file.get(), bytes.data() + have, bytes.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed(path);
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  bytes.resize(have);
  if (have > kOutputBytesMax)
    return Fail(ErrorCode::kLimit, "the command wrote more than {} bytes to $MILLRACE_RESULT", kOutputBytesMax);
  if (have <= kOutputInlineBytesMax && wire::IsText(bytes)) {
    result.output = std::move(bytes);
    return {};
  }
  MILLRACE_TRY_ASSIGN(result.output_file, WriteResultFile(lake, run, job, token, bytes));
  return {};
}

std::string ResultJson(const StageResult& result, const std::string& lake, RunId run, JobId job, Token token) {
  std::string json = ToJson(result);
  if (json.size() <= kResultBytesMax && wire::IsText(json)) return json;
  StageResult shortened;  // the counts are what the ledger needs; the texts are what can be long
  shortened.ok = result.ok;
  shortened.rows = result.rows;
  shortened.input_rows = result.input_rows;
  shortened.already_applied = result.already_applied;
  if (auto file = WriteResultFile(lake, run, job, token, json))
    shortened.full = std::move(*file);
  else
    LogWarn("job {}: {}: only the counts of its result are kept", job.ToString(), file.error().message);
  return ToJson(shortened);
}

}  // namespace millrace::worker
