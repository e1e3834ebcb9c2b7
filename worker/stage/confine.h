// The outer wall around one stage (design section 8): rlimits, no new privileges, an empty network namespace, Landlock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"

namespace millrace {

struct ConfineOptions {
  std::vector<std::string> read_files;         // files that may be read; missing ones are skipped
  std::vector<std::string> read_directories;   // and everything below
  std::vector<std::string> write_directories;  // read, write, create, rename and remove below; must exist
  std::vector<std::string> write_files;        // files that may be read and written, not made or removed; must exist
  std::vector<std::string> name_directories;   // names below may be made, replaced and removed, not read or written; must exist
  bool network = false;                        // true: keep the network of the worker
  std::uint64_t memory_bytes_max = 0;          // 0 = no limit; the address space limit lies above it (see AddressSpaceLimit)
  int threads = 1;
};

// Applies to this thread and those it starts later, for good. REQUIRES: the process has one thread (Landlock and namespaces
// are per thread; kUnsupported otherwise). kUnsupported: the kernel lacks or forbids a part; the message names it and the fix.
Result<void> Confine(const ConfineOptions& options);

// Limits alone: core 0, open files, address space. For stages with `sandbox: off`.
Result<void> LimitResources(const ConfineOptions& options);

// How many threads this process has.
int CountThreads();

}  // namespace millrace
