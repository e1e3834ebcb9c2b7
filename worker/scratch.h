// A worker's folder for the scratch of its stages: found again, and removed, by the next worker when its own was killed.
#pragma once

#include <filesystem>
#include <stop_token>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace millrace::worker {

// `<parent>/millrace-<id>` with a file `lock` in it that is locked as long as this lives; whoever can take the lock of such a
// folder knows that its worker is dead. Not thread-safe.
class ScratchFolder {
 public:
  // kUnavailable: cannot.
  static Result<ScratchFolder> Make(const std::filesystem::path& parent, std::string_view id);
  ScratchFolder(ScratchFolder&& other) noexcept;
  ScratchFolder& operator=(ScratchFolder&&) = delete;
  ~ScratchFolder();  // removes the lock, and the folder if it is empty by then; if it is not, it stays for the next worker

  const std::string& path() const { return path_; }

  // Removes the folders of dead workers of this user in `parent`, until it is asked to stop: looked at between two of them. How
  // many there were.
  static int SweepDead(const std::filesystem::path& parent, const std::stop_token& stop = {});

 private:
  ScratchFolder(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
};

}  // namespace millrace::worker
