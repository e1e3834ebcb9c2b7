#include "client/cli/allocator.h"

#ifdef MILLRACE_JEMALLOC
#include <jemalloc/jemalloc.h>

#include <cstddef>

// jemalloc reads this before main. Few arenas are enough for a handful of threads and keep memory together; what is free is
// given back after a second by one thread of jemalloc's own, also while nothing is allocated.
extern "C" {
const char* malloc_conf = "narenas:4,background_thread:true,max_background_threads:1,dirty_decay_ms:1000,muzzy_decay_ms:0";
}
#endif

namespace millrace::cli {

std::string AllocatorVersion() {
#ifdef MILLRACE_JEMALLOC
  const char* text = nullptr;
  std::size_t size = sizeof text;
  if (mallctl("version", static_cast<void*>(&text), &size, nullptr, 0) != 0 || text == nullptr) return "jemalloc";
  const std::string version = text;  // "5.3.0-0-g54eaed1d8b56..."
  return "jemalloc " + version.substr(0, version.find('-'));
#else
  return "C library";
#endif
}

}  // namespace millrace::cli
