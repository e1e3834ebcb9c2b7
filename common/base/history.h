// The history of a process: what it was asked for and what came of it, one JSON object per line, for the checker that
// compares it with the ledger (tests/checker; ops/docs/failure-modes.md names the operations). Compiled in only with
// MILLRACE_FAILPOINTS=1; otherwise On() is false and nothing is left of it.
//
// Switched on by the environment variable MILLRACE_HISTORY=<folder>, which must exist: each process, also the child of a fork,
// appends to a file of its own there, one write(2) per line, so that nothing of what it wrote is lost when it is killed.
#pragma once

#include <string>
#include <string_view>

namespace millrace::history {

// How an operation went. Whoever got no answer does not know: kUnknown.
enum class Type { kInvoke, kOk, kFail, kUnknown };

#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
// Whether anything is written. Opens the file at its first call. Thread-safe.
bool On();
// One line: `who` (role and id, e.g. "broker:<uuid>"), the operation, and `fields`, JSON members without braces; both clocks
// and the pid go in front. Thread-safe. A line that cannot be written is lost.
void Write(std::string_view who, std::string_view op, Type type, std::string_view fields);
// Another folder from now on, in place of the environment's; empty: none. For tests that run several worlds in one process.
void SetFolder(const std::string& folder);
#else
constexpr bool On() { return false; }
inline void Write(std::string_view, std::string_view, Type, std::string_view) {}
inline void SetFolder(const std::string&) {}
#endif

// `text` as a JSON string, with its quotes.
std::string Quoted(std::string_view text);

}  // namespace millrace::history
