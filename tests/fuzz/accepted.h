// How many inputs of this process's corpus a target accepted: a corpus of which nothing is accepted (after a change of a
// format, say) shows nothing of what the target says about accepted inputs, and its replay fails (replay_main.cc).
#pragma once

#include <cstddef>

namespace millrace::fuzz {

inline std::size_t accepted = 0;

}  // namespace millrace::fuzz
