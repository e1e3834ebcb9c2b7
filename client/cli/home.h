// The home directory of an embedded installation: ledger, queue, lake, warehouse, checkpoints. One process at a time.
#pragma once

#include <string>

#include "common/base/result.h"

namespace millrace::cli {

// Creates the directory (mode 0700) when it is missing; an existing one is left as it is. kInvalidArgument: the path cannot be
// a home; kConflict: everybody may write in it.
Result<void> MakeHome(const std::string& home);

// A home that may turn out not to be needed. Unless Keep is called, what this process made of a home that did not exist is
// taken away again: the files of Millrace, and the folder if nothing else is in it.
class NewHome {
 public:
  NewHome() = default;
  NewHome(const NewHome&) = delete;
  NewHome& operator=(const NewHome&) = delete;
  ~NewHome();  // REQUIRES: nothing of the home is open any more but its lock, which is still held

  // Call after HomeLock::Acquire. `made`: what it said.
  void Made(const std::string& home, bool made);
  void Keep() { home_.clear(); }
  bool Stays() const { return home_.empty(); }

 private:
  std::string home_;  // empty: nothing to do
};

// Holds the home's lock while it lives. Movable.
class HomeLock {
 public:
  // Makes the home (MakeHome). `command` is shown to whoever finds it in use. kConflict names the process that holds it, or says
  // that one has just taken it away (NewHome); else as MakeHome. `made`: whether it is new, and nobody has done anything in it.
  static Result<HomeLock> Acquire(const std::string& home, const std::string& command, bool* made = nullptr);
  HomeLock(HomeLock&& other) noexcept;
  HomeLock& operator=(HomeLock&& other) noexcept;
  HomeLock(const HomeLock&) = delete;
  HomeLock& operator=(const HomeLock&) = delete;
  ~HomeLock();

 private:
  explicit HomeLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace millrace::cli
