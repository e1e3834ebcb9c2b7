// The name of a thread, as `top -H`, a debugger and bench/hops show it.
#pragma once

#include <sys/prctl.h>

namespace millrace {

// Of the calling thread; at most 15 characters.
inline void NameThread(const char* name) { ::prctl(PR_SET_NAME, name); }

}  // namespace millrace
