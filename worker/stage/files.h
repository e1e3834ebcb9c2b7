// The few file operations of a stage: regular files only, digests, and what makes a publish durable.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace millrace {

struct FileStamp {
  std::int64_t bytes = 0;
  std::int64_t mtime_us = 0;
  std::int64_t changed_ns = 0;  // ctime: no program can set it back
  std::uint64_t inode = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

// Folders that one pattern with `**` may lead through.
inline constexpr int kGlobFoldersMax = 100'000;

// Regular files that match a glob (absolute, or relative to `base_dir`), sorted by path. Directories, FIFOs and devices do
// not match. A component `**` stands for any number of folders; links to folders and hidden folders are not followed there. A
// folder that does not exist matches nothing. kUnavailable: a folder cannot be read. kInvalidArgument: `**` is only a part of a
// component. kLimit: `**` leads through more than kGlobFoldersMax folders.
Result<std::vector<std::string>> ExpandGlob(std::string_view base_dir, std::string_view pattern);

// The longest folder in front of the first glob character, absolute.
std::string GlobFolder(std::string_view base_dir, std::string_view pattern);

// kNotFound: gone. kRejected: not a regular file, or not readable. Never blocks on a FIFO.
Result<FileStamp> StampFile(const std::string& path);

// Lower-case hex. Errors as StampFile. Every byte is shown to `also`, in order, whose error ends it.
Result<std::string> Sha256OfFile(const std::string& path, const std::function<Result<void>(std::string_view)>& also = {});

// kUnavailable: the system refused; the message names the path.
Result<void> EnsureDirectory(const std::string& path);
Result<void> SyncFile(const std::string& path);
Result<void> SyncDirectory(const std::string& path);

// Makes several things durable at once, which costs the disk hardly more than one of them. Not thread-safe.
class ParallelSync {
 public:
  void Start(Result<void> (*sync)(const std::string&), std::string path);  // SyncFile or SyncDirectory
  Result<void> Wait();                                                     // until all are done; the first error

 private:
  std::vector<std::future<Result<void>>> running_;
};

Result<std::string> ReadWholeFile(const std::string& path, std::size_t bytes_max);  // kNotFound when absent

// Writes `content` so that it is either absent or complete and durable under `path`: temporary file, fsync, rename without
// replacing, fsync of the folder. kConflict: `path` exists already (nothing changed). Waits for `before` just before it
// renames: what the content refers to is then durable; an error of it publishes nothing.
Result<void> PublishFile(const std::string& path, std::string_view content, std::string_view temporary_suffix,
                         ParallelSync* before = nullptr);

// The folder of a path.
std::string ParentOf(const std::string& path);

}  // namespace millrace
