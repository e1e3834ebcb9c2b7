// The memory allocator of this program.
#pragma once

#include <string>

namespace millrace::cli {

// "jemalloc 5.3.0", or "C library" where jemalloc is not linked (builds with sanitizers, which bring their own). Thread-safe.
std::string AllocatorVersion();

}  // namespace millrace::cli
