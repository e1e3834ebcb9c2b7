#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "common/base/failpoint.h"
#include "common/base/fd.h"
#include "worker/stage/load/file_lock.h"
#include "worker/stage/load/sinks.h"
#include "worker/stage/load/types.h"

namespace millrace::load {
namespace {

namespace fs = std::filesystem;

constexpr Millis kLockPatience{30'000};  // publishing takes milliseconds: whoever holds it longer is frozen

Failure IoFailure(std::string_view what, const fs::path& path) {
  const int code = errno;
  const bool full = code == ENOSPC || code == EDQUOT;
  const bool denied = code == EACCES || code == EPERM || code == EROFS;
  return Failure(full     ? "destination_full"
                 : denied ? "destination_rejected"
                          : "destination_unavailable",
                 fmt::format("{} {}: {}", what, path.string(), std::strerror(code)), !denied);
}

Outcome<void> SyncPath(const fs::path& path, int flags) {
  const Fd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd.get() < 0) return std::unexpected(IoFailure("open", path));
  if (::fsync(fd.get()) != 0) return std::unexpected(IoFailure("fsync", path));
  return {};
}

// Whole and durable, or not there: a temporary name, fsync, rename. `no_replace`: EEXIST when the name is taken.
Outcome<void> WriteFile(const fs::path& path, std::string_view text, unsigned int rename_flags) {
  const fs::path temporary = path.string() + fmt::format(".{}.tmp", ::getpid());
  {
    const Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return std::unexpected(IoFailure("create", temporary));
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
      if (n < 0 && errno != EINTR) return std::unexpected(IoFailure("write", temporary));
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    if (::fsync(fd.get()) != 0) return std::unexpected(IoFailure("fsync", temporary));
  }
  if (::syscall(SYS_renameat2, AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), rename_flags) != 0) {
    auto failure = IoFailure("create", path);
    ::unlink(temporary.c_str());
    return std::unexpected(std::move(failure));
  }
  return SyncPath(path.parent_path(), O_RDONLY | O_DIRECTORY);
}

Outcome<std::string> ReadFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::unexpected(IoFailure("read", path));
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// `<path>.millrace/` holds the lock, one fence file and one receipt per effect; `pending/` in it the data not yet published.
class FileLoad {
 public:
  FileLoad(LoadJob& job, duck::Connection& source) : job_(job), source_(source) {
    final_ = FileTarget(job.order, job.spec);
    side_ = FileSide(final_);
    pending_ = side_ / "pending";
    extension_ = final_.extension().string();
  }

  Outcome<Loaded> Run() {
    if (job_.spec.mode == LoadMode::kMerge) return Refuse("invalid_target", "files can be appended to or replaced, not merged");
    if (extension_ != ".parquet" && extension_ != ".csv")
      return Refuse("invalid_target", fmt::format("path '{}' does not end in .parquet or .csv", job_.spec.path));
    std::error_code error;
    const bool first = fs::create_directories(pending_, error);
    if (error) {
      errno = error.value();
      return std::unexpected(IoFailure("create directory", pending_));
    }
    if (first) AdoptOlderData();
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, Raise());
    if (stored) return Loaded{std::move(*stored), true};
    if (job_.order.fence_only) return Fenced();
    MILLRACE_FAILPOINT("load.after_fence");
    MILLRACE_TRY(job_.checked);
    MILLRACE_TRY_ASSIGN(Receipt receipt, WriteData());
    MILLRACE_FAILPOINT("load.after_staging");
    return Publish(std::move(receipt));
  }

 private:
  fs::path DataPath(std::uint64_t token) const { return pending_ / fmt::format("{}-{}.data", job_.hash, token); }
  fs::path FencePath() const { return side_ / (job_.hash + ".fence"); }
  fs::path ReceiptPath() const { return side_ / (job_.hash + ".json"); }
  std::uint64_t token() const { return job_.order.token.value(); }
  bool appends() const { return job_.spec.mode == LoadMode::kAppend; }

  Outcome<FileLock> Lock() const { return FileLock::Take(side_ / "lock", kLockPatience); }

  Outcome<std::uint64_t> FenceToken() const {
    if (!fs::exists(FencePath())) return std::uint64_t{0};
    MILLRACE_TRY_ASSIGN(const std::string text, ReadFile(FencePath()));
    return std::strtoull(text.c_str(), nullptr, 10);
  }

  Outcome<std::optional<Receipt>> FindReceipt() const {
    if (!fs::exists(ReceiptPath())) return std::optional<Receipt>{};
    MILLRACE_TRY_ASSIGN(const std::string text, ReadFile(ReceiptPath()));
    MILLRACE_TRY_ASSIGN(Receipt receipt, ReceiptFromJson(text));
    if (receipt.effect != job_.order.task.effect)
      return Refuse("destination_corrupt", ReceiptPath().string() + " is of another effect");
    return std::optional<Receipt>(std::move(receipt));
  }

  // The receipt is the publication; moving the data to where people look for it is redone by whoever comes next.
  Outcome<void> RollForward() const {
    for (const fs::directory_entry& entry : fs::directory_iterator(pending_)) {  // never grows with the effects there were
      const std::string name = entry.path().filename().string();
      if (!name.ends_with(".data") || name.size() < 18) continue;
      const fs::path receipt_path = side_ / (name.substr(0, 16) + ".json");
      if (!fs::exists(receipt_path)) continue;
      MILLRACE_TRY_ASSIGN(const std::string text, ReadFile(receipt_path));
      MILLRACE_TRY_ASSIGN(const Receipt receipt, ReceiptFromJson(text));
      if (name != fmt::format("{}-{}.data", name.substr(0, 16), receipt.token.value())) {
        ::unlink(entry.path().c_str());  // an attempt that lost
        continue;
      }
      MILLRACE_TRY(MoveIntoPlace(entry.path(), name, receipt.mode == "append"));
    }
    return {};
  }

  Outcome<void> MoveIntoPlace(const fs::path& data, const std::string& name, bool append) const {
    fs::path into = final_;
    if (append) {
      std::error_code error;
      fs::create_directories(final_, error);
      into = final_ / (name.substr(0, name.size() - 5) + extension_);
    }
    if (::rename(data.c_str(), into.c_str()) != 0) return std::unexpected(IoFailure("rename to", into));
    MILLRACE_TRY(SyncPath(into.parent_path(), O_RDONLY | O_DIRECTORY));
    return SyncPath(pending_, O_RDONLY | O_DIRECTORY);
  }

  Outcome<std::optional<Receipt>> Raise() {
    MILLRACE_TRY_ASSIGN(const FileLock lock, Lock());
    MILLRACE_TRY_ASSIGN(const std::uint64_t seen, FenceToken());
    if (seen > token()) return std::unexpected(Stale(job_, seen));
    if (seen < token()) MILLRACE_TRY(WriteFile(FencePath(), std::to_string(token()) + "\n", 0));
    MILLRACE_TRY(RollForward());
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> receipt, FindReceipt());
    if (!receipt) DropOlderData();
    return receipt;
  }

  // Before there was pending/, data lay beside the receipts.
  void AdoptOlderData() const {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(side_, ignored))
      if (entry.path().extension() == ".data") fs::rename(entry.path(), pending_ / entry.path().filename(), ignored);
  }

  void DropOlderData() const {
    for (const fs::directory_entry& entry : fs::directory_iterator(pending_)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(job_.hash + "-") && name.ends_with(".data") && entry.path() != DataPath(token()))
        ::unlink(entry.path().c_str());
    }
  }

  Outcome<Receipt> WriteData() {
    std::string casts;
    for (const ColumnSpec& c : job_.columns) casts += (casts.empty() ? "" : ", ") + duck::QuoteName(c.name);
    const fs::path data = DataPath(token());
    const std::string format = extension_ == ".parquet" ? "format parquet, compression zstd" : "format csv, header true";
    auto written = source_.Execute(fmt::format("copy (select {} from ({}) as dataset) to {} ({})", casts, job_.dataset_sql,
                                               duck::QuoteText(data.string()), format));
    if (!written) {
      ::unlink(data.c_str());
      return std::unexpected(Failure("destination_unavailable", std::move(written.error().message), true));
    }
    MILLRACE_TRY(SyncPath(data, O_RDONLY));
    struct stat status{};
    if (::stat(data.c_str(), &status) != 0) return std::unexpected(IoFailure("stat", data));
    Receipt receipt = job_.NewReceipt(appends() ? "append: a new file, published by its receipt"
                                                : "replace: a new file, renamed over the old one");
    receipt.inserted = *written;
    receipt.rows.loaded = *written;
    receipt.bytes = status.st_size;
    if (job_.progress) job_.progress(receipt.inserted, receipt.bytes);
    return receipt;
  }

  Outcome<Loaded> Publish(Receipt receipt) {
    MILLRACE_TRY_ASSIGN(const FileLock lock, Lock());
    MILLRACE_TRY_ASSIGN(const std::uint64_t seen, FenceToken());
    if (seen != token()) {
      ::unlink(DataPath(token()).c_str());
      return std::unexpected(Stale(job_, seen));
    }
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, FindReceipt());
    if (stored) return Loaded{std::move(*stored), true};
    if (!appends() && fs::is_directory(final_))
      return Refuse("invalid_target", final_.string() + " is a directory (mode append made it?)");
    if (appends() && fs::exists(final_) && !fs::is_directory(final_))
      return Refuse("invalid_target", final_.string() + " is a file; mode append needs a directory of files there");
    MILLRACE_TRY(RollForward());  // an older effect that stopped between its receipt and its rename comes first
    MILLRACE_TRY(RequireBalance(receipt));
    MILLRACE_FAILPOINT("load.before_commit");
    MILLRACE_TRY(RequireUntouchedSources(job_));
    MILLRACE_TRY(WriteFile(ReceiptPath(), ReceiptToJson(receipt), RENAME_NOREPLACE));
    MILLRACE_FAILPOINT("load.after_commit");
    MILLRACE_TRY(RollForward());
    return Loaded{std::move(receipt), false};
  }

  LoadJob& job_;
  duck::Connection& source_;
  fs::path final_, side_, pending_;
  std::string extension_;
};

}  // namespace

fs::path FileTarget(const StageOrder& order, const LoadSpec& spec) {
  const fs::path path(spec.path);
  return (path.is_absolute() ? path : fs::path(order.task.base_dir) / path).lexically_normal();
}
fs::path FileSide(const fs::path& target) { return target.string() + ".millrace"; }

Outcome<Loaded> LoadIntoFiles(LoadJob& job, duck::Connection& source) try {
  return FileLoad(job, source).Run();
} catch (const fs::filesystem_error& e) {
  return std::unexpected(Failure("destination_unavailable", e.what(), true));
}

}  // namespace millrace::load
